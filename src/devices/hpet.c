/* IA-PC HPET (High Precision Event Timers) Specification 1.0a, chapter "Register Model". */
#include "devices/hpet.h"
#include "base/log.h"

#include <stdlib.h>

#define TIMERS    3
#define NS_TICK   (HPET_PERIOD_FS / 1000000)
#define VENDOR    0x8086u
/* Which I/O APIC inputs a timer may use: those PCI shares, 20-23. */
#define ROUTE_CAP 0x00f00000ull

enum { GCAP_ID = 0x000, GEN_CONF = 0x010, GINTR_STA = 0x020, MAIN_CNT = 0x0f0, TIM0 = 0x100, TIM_STEP = 0x20 };
enum { ENABLE_CNF = BIT(0), LEG_RT_CNF = BIT(1) };
enum {
    TN_INT_TYPE = BIT(1), TN_INT_ENB = BIT(2), TN_TYPE = BIT(3), TN_PER_INT_CAP = BIT(4), TN_SIZE_CAP = BIT(5),
    TN_VAL_SET = BIT(6), TN_32MODE = BIT(8), TN_INT_ROUTE = 0x1f << 9,
};
#define TN_WRITABLE (TN_INT_TYPE | TN_INT_ENB | TN_TYPE | TN_VAL_SET | TN_32MODE | TN_INT_ROUTE)

struct hpet_timer {
    struct hpet *hpet;
    u64 conf;       /* writable bits only */
    u64 comparator; /* what the next match compares with */
    u64 period;     /* periodic mode: what is added at each match */
    struct timer timer;
};

struct hpet {
    struct board *board;
    u64 conf, sta;
    u64 counter; /* while halted */
    u64 start;   /* tick at which the running counter was zero (modulo 2^64) */
    struct hpet_timer tim[TIMERS];
    void (*legacy)(void *opaque, bool on);
    void *legacy_opaque;
};

static u64 ticks(const struct hpet *h) { return clock_now(h->board->clock) / NS_TICK; }
static bool enabled(const struct hpet *h) { return h->conf & ENABLE_CNF; }
static u64 counter(const struct hpet *h) { return enabled(h) ? ticks(h) - h->start : h->counter; }
static u64 width(const struct hpet_timer *t) { return t->conf & TN_32MODE ? 0xffffffffull : ~0ull; }

static unsigned index_of(const struct hpet_timer *t) { return (unsigned)(t - t->hpet->tim); }

/* The wire of a timer: "LegacyReplacement Route" or Tn_INT_ROUTE_CNF; -1 for none. */
static int route(const struct hpet_timer *t)
{
    unsigned n = index_of(t);
    if ((t->hpet->conf & LEG_RT_CNF) && n < 2)
        return n ? 8 : 0;
    unsigned gsi = (unsigned)(t->conf >> 9) & 31;
    return ROUTE_CAP >> gsi & 1 ? (int)gsi : -1;
}

static void set_line(const struct hpet_timer *t, bool level, bool pulse)
{
    int gsi = route(t);
    if (gsi < 0)
        return;
    struct board *b = t->hpet->board;
    struct irq_line line = b->irq(b, (unsigned)gsi);
    if (pulse)
        irq_pulse(&line);
    else
        irq_set(&line, level);
}

static void arm(struct hpet_timer *t)
{
    struct hpet *h = t->hpet;
    timer_cancel(&t->timer);
    if (!enabled(h))
        return;
    u64 left = (t->comparator - counter(h)) & width(t);
    /* A comparator equal to the counter matched already: the next match is a whole turn away. */
    u128 delta = left ? left : (u128)width(t) + 1;
    u128 when = ((u128)ticks(h) + delta) * NS_TICK;
    if (when < UINT64_MAX >> 1)
        timer_arm(&t->timer, (u64)when);
}

static void fire(void *opaque)
{
    struct hpet_timer *t = opaque;
    struct hpet *h = t->hpet;
    if ((t->conf & TN_TYPE) && t->period) {
        /* Step past all periods that went by: late matches merge into one interrupt. */
        u64 behind = (counter(h) - t->comparator) & width(t);
        t->comparator = (t->comparator + (behind / t->period + 1) * t->period) & width(t);
    }
    if (t->conf & TN_INT_TYPE) {
        h->sta |= BIT64(index_of(t)); /* the status bit follows the match even while the interrupt is off */
        if (t->conf & TN_INT_ENB)
            set_line(t, true, false);
    } else if (t->conf & TN_INT_ENB) {
        set_line(t, true, true);
    }
    arm(t);
}

static void write_conf(struct hpet *h, u64 v)
{
    u64 old = h->conf;
    if ((old ^ v) & LEG_RT_CNF) {
        for (unsigned i = 0; i < TIMERS; i++)
            if (h->sta >> i & 1)
                set_line(&h->tim[i], false, false);
        h->conf = (h->conf & ~(u64)LEG_RT_CNF) | (v & LEG_RT_CNF);
        if (h->legacy)
            h->legacy(h->legacy_opaque, v & LEG_RT_CNF);
    }
    if (!(old & ENABLE_CNF) && (v & ENABLE_CNF)) {
        h->start = ticks(h) - h->counter;
    } else if ((old & ENABLE_CNF) && !(v & ENABLE_CNF)) {
        h->counter = counter(h);
    }
    h->conf = v & (ENABLE_CNF | LEG_RT_CNF);
    for (unsigned i = 0; i < TIMERS; i++)
        arm(&h->tim[i]);
}

static void write_tim_conf(struct hpet_timer *t, u64 v)
{
    struct hpet *h = t->hpet;
    u64 bit = BIT64(index_of(t));
    bool was_raised = (t->conf & TN_INT_TYPE) && (t->conf & TN_INT_ENB) && (h->sta & bit);
    if (was_raised)
        set_line(t, false, false);
    t->conf = v & TN_WRITABLE;
    if (t->conf & TN_32MODE) {
        t->comparator &= 0xffffffff;
        t->period &= 0xffffffff;
    }
    if (!(t->conf & TN_INT_TYPE))
        h->sta &= ~bit;
    else if ((t->conf & TN_INT_ENB) && (h->sta & bit))
        set_line(t, true, false);
    arm(t);
}

/* "Timer n Comparator Register": in periodic mode a write sets the period, and the comparator too when
 * VAL_SET was written just before, which it consumes. */
static void write_comparator(struct hpet_timer *t, u64 v)
{
    v &= width(t);
    if (!(t->conf & TN_TYPE) || (t->conf & TN_VAL_SET))
        t->comparator = v;
    if (t->conf & TN_TYPE)
        t->period = v;
    t->conf &= ~(u64)TN_VAL_SET;
    arm(t);
}

static u64 read64(struct hpet *h, u64 reg)
{
    switch (reg) {
    case GCAP_ID:
        return (u64)HPET_PERIOD_FS << 32 | VENDOR << 16 | BIT(15) /* legacy */ | BIT(13) /* 64-bit */ |
               (TIMERS - 1) << 8 | 1;
    case GEN_CONF:
        return h->conf;
    case GINTR_STA:
        return h->sta;
    case MAIN_CNT:
        return counter(h);
    }
    if (reg >= TIM0 && reg < TIM0 + TIMERS * TIM_STEP) {
        struct hpet_timer *t = &h->tim[(reg - TIM0) / TIM_STEP];
        switch ((reg - TIM0) % TIM_STEP) {
        case 0:
            return t->conf | TN_PER_INT_CAP | TN_SIZE_CAP | ROUTE_CAP << 32;
        case 8:
            return t->comparator;
        }
    }
    return 0;
}

static void write64(struct hpet *h, u64 reg, u64 v, u64 touched)
{
    switch (reg) {
    case GEN_CONF:
        write_conf(h, v);
        return;
    case GINTR_STA:
        for (unsigned i = 0; i < TIMERS; i++) {
            if (v & touched & h->sta & BIT64(i)) {
                h->sta &= ~BIT64(i);
                set_line(&h->tim[i], false, false);
            }
        }
        return;
    case MAIN_CNT:
        /* Meant for a halted counter; while it runs the write is as good as the moment it arrives. */
        h->counter = v;
        h->start = ticks(h) - v;
        for (unsigned i = 0; i < TIMERS; i++)
            arm(&h->tim[i]);
        return;
    }
    if (reg >= TIM0 && reg < TIM0 + TIMERS * TIM_STEP) {
        struct hpet_timer *t = &h->tim[(reg - TIM0) / TIM_STEP];
        switch ((reg - TIM0) % TIM_STEP) {
        case 0:
            write_tim_conf(t, v);
            break;
        case 8:
            write_comparator(t, v);
            break;
        }
    }
}

static u64 mmio_read(void *opaque, u64 offset, unsigned size)
{
    return bits_get(read64(opaque, offset & ~7ull) >> 8 * (offset & 7), 8 * size - 1, 0);
}

static void mmio_write(void *opaque, u64 offset, u64 value, unsigned size)
{
    struct hpet *h = opaque;
    if (size == 8 && !(offset & 7)) {
        write64(h, offset, value, ~0ull);
        return;
    }
    if (size != 4 || (offset & 3))
        return; /* "Register Model": accesses are aligned 32 or 64 bits */
    u64 reg = offset & ~7ull, shift = 8 * (offset & 4), mask = 0xffffffffull << shift;
    struct hpet_timer *t =
        reg >= TIM0 && reg < TIM0 + TIMERS * TIM_STEP ? &h->tim[(reg - TIM0) / TIM_STEP] : NULL;
    if (t && (reg - TIM0) % TIM_STEP == 8 && (t->conf & TN_TYPE)) {
        /* Periodic mode by halves: the low one carries VAL_SET; the high one extends what it wrote. */
        if (shift) {
            t->period = (t->period & 0xffffffff) | (value << 32 & width(t));
            arm(t);
        } else {
            write_comparator(t, (u32)value);
        }
        return;
    }
    write64(h, reg, (read64(h, reg) & ~mask) | (value << shift & mask), mask);
}

static const struct io_ops ops = {mmio_read, mmio_write};

void hpet_reset(struct hpet *h)
{
    for (unsigned i = 0; i < TIMERS; i++) {
        struct hpet_timer *t = &h->tim[i];
        if (h->sta >> i & 1)
            set_line(t, false, false);
        timer_cancel(&t->timer);
        t->conf = t->period = 0;
        t->comparator = ~0ull;
    }
    if ((h->conf & LEG_RT_CNF) && h->legacy)
        h->legacy(h->legacy_opaque, false);
    h->conf = h->sta = h->counter = h->start = 0;
}

struct hpet *hpet_new(struct board *b, void (*legacy)(void *opaque, bool on), void *opaque, struct error *err)
{
    struct hpet *h = device_alloc(sizeof(*h));
    h->board = b;
    h->legacy = legacy;
    h->legacy_opaque = opaque;
    for (unsigned i = 0; i < TIMERS; i++) {
        h->tim[i].hpet = h;
        timer_init(&h->tim[i].timer, b->clock, fire, &h->tim[i]);
    }
    hpet_reset(h);
    if (physmap_add_mmio(b->pm, HPET_BASE, PAGE_SIZE, &ops, h, "HPET", err)) {
        free(h);
        return NULL;
    }
    return h;
}

void hpet_free(struct hpet *h)
{
    if (!h)
        return;
    for (unsigned i = 0; i < TIMERS; i++)
        timer_cancel(&h->tim[i].timer);
    physmap_remove_mmio(h->board->pm, HPET_BASE);
    free(h);
}
