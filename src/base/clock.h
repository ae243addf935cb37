/*
 * The machine's one clock, and timers on it. Everything a guest can read as time comes from here:
 * host time (`--clock host`) or retired instructions (`--clock icount`). Timers fire only from
 * clock_run(), which the run loop calls on the machine's thread between slices.
 */
#pragma once
#include "base/lock.h"
#include "base/types.h"

#define NSEC_PER_SEC 1000000000ull

enum clock_kind { CLOCK_HOST, CLOCK_ICOUNT };

struct timer {
    u64 deadline; /* ns of the clock; meaningful while armed */
    bool armed;
    void (*fire)(void *opaque);
    void *opaque;
    struct clock *clock;
    struct timer *next; /* armed timers, soonest first */
};

/* What counts instructions under --clock icount. */
struct clock_source {
    u64 (*count)(void *opaque);
    /* A timer has become due within @ns, which may be 0: the slice has to end then. */
    void (*due)(void *opaque, u64 ns);
};

struct clock {
    enum clock_kind kind;
    u64 host_base;     /* host: CLOCK_MONOTONIC ns at start */
    u64 icount_ns;     /* icount: ns so far, moved by clock_advance() */
    const struct clock_source *live; /* icount: the running processor, or NULL */
    void *live_of;
    u64 live_base;     /* its count when clock_follow() was called */
    struct timer *armed;
    struct lock *lock; /* NULL, or what arming and cancelling take, and the caller of clock_run() holds */
    void (*sooner)(void *opaque); /* NULL, or called when the next deadline has come closer */
    void *sooner_opaque;
};

void clock_init(struct clock *c, enum clock_kind kind);
/* Nanoseconds since the machine started; never goes back. */
u64 clock_now(const struct clock *c);
/* icount only: time passes by @ns. */
void clock_advance(struct clock *c, u64 ns);
/* icount only: while a slice runs, time also follows @live's count (NULL: it does not). */
void clock_follow(struct clock *c, const struct clock_source *live, void *opaque);
/* No time passes between clock_stop(), whose result goes to it, and clock_continue(): a debugger's pause. */
u64 clock_stop(const struct clock *c);
void clock_continue(struct clock *c, u64 stopped);
/* The soonest deadline, UINT64_MAX when no timer is armed. */
u64 clock_next(const struct clock *c);
/* Fires every timer whose deadline has passed; returns how many. */
unsigned clock_run(struct clock *c);

void timer_init(struct timer *t, struct clock *c, void (*fire)(void *opaque), void *opaque);
/* (Re)arms @t for @deadline; a deadline in the past fires at the next clock_run(). */
void timer_arm(struct timer *t, u64 deadline);
void timer_cancel(struct timer *t);
