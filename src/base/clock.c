#include "base/clock.h"

#include <time.h>

static u64 host_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (u64)ts.tv_sec * NSEC_PER_SEC + (u64)ts.tv_nsec;
}

void clock_init(struct clock *c, enum clock_kind kind)
{
    *c = (struct clock){.kind = kind, .host_base = host_now()};
}

u64 clock_now(const struct clock *c)
{
    if (c->kind == CLOCK_HOST)
        return host_now() - c->host_base;
    return c->icount_ns + (c->live ? c->live->count(c->live_of) - c->live_base : 0);
}

void clock_follow(struct clock *c, const struct clock_source *live, void *opaque)
{
    c->live = live;
    c->live_of = opaque;
    c->live_base = live ? live->count(opaque) : 0;
}

u64 clock_stop(const struct clock *c) { return clock_now(c); }

void clock_continue(struct clock *c, u64 stopped)
{
    if (c->kind == CLOCK_HOST)
        c->host_base = host_now() - stopped;
}

void clock_advance(struct clock *c, u64 ns) { c->icount_ns += ns; }

u64 clock_next(const struct clock *c) { return c->armed ? c->armed->deadline : UINT64_MAX; }

unsigned clock_run(struct clock *c)
{
    unsigned fired = 0;
    /* One reading for the whole pass: a timer that rearms itself for "now" cannot loop for ever. */
    u64 now = clock_now(c);
    while (c->armed && c->armed->deadline <= now) {
        struct timer *t = c->armed;
        c->armed = t->next;
        t->armed = false;
        t->fire(t->opaque);
        fired++;
        if (fired > 4096)
            break;
    }
    return fired;
}

void timer_init(struct timer *t, struct clock *c, void (*fire)(void *opaque), void *opaque)
{
    *t = (struct timer){.clock = c, .fire = fire, .opaque = opaque};
}

static void unlink_timer(struct timer *t)
{
    if (!t->armed)
        return;
    struct timer **p = &t->clock->armed;
    while (*p != t)
        p = &(*p)->next;
    *p = t->next;
    t->armed = false;
}

void timer_cancel(struct timer *t)
{
    if (!t->armed)
        return;
    lock_take(t->clock->lock);
    unlink_timer(t);
    lock_give(t->clock->lock);
}

void timer_arm(struct timer *t, u64 deadline)
{
    struct clock *c = t->clock;
    lock_take(c->lock);
    unlink_timer(t);
    t->deadline = deadline;
    t->armed = true;
    struct timer **p = &c->armed;
    while (*p && (*p)->deadline <= deadline)
        p = &(*p)->next;
    t->next = *p;
    *p = t;
    if (c->live && c->armed == t) {
        u64 now = clock_now(c);
        c->live->due(c->live_of, deadline > now ? deadline - now : 0);
    }
    if (c->armed == t && c->sooner)
        c->sooner(c->sooner_opaque);
    lock_give(c->lock);
}
