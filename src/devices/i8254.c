/*
 * Intel 8254 Programmable Interval Timer (data sheet 231164), section "Mode Definitions".
 *
 * A channel is a formula, not a counter: from the moment it started, its mode, gate and count follow
 * the output and the count register at any later tick. One host-side timer, for the next rising
 * edge of OUT0, is all that runs.
 */
#include "devices/i8254.h"
#include "base/log.h"

#include <stdlib.h>

enum { RW_LSB = 1, RW_MSB = 2, RW_BOTH = 3 };

struct channel {
    u8 mode, rw;     /* from the control word */
    bool bcd;
    bool gate;
    bool loaded;     /* a count was written since the control word */
    bool triggered;  /* modes 1 and 5: a gate edge came */
    u32 count;       /* 1..0x10000 (10000 in BCD): what it counts now */
    u64 start;       /* tick at which that count was loaded */
    bool paused;     /* modes 0 and 4: gate low; elapsed holds */
    u64 elapsed;
    u32 next_count;  /* modes 2 and 3: takes over at next_at; 0 none */
    u64 next_at;
    bool write_high, read_high; /* the other byte's turn */
    u8 low;
    bool latched, status_latched;
    u16 latch;
    u8 status;
};

struct i8254 {
    struct board *board;
    struct channel ch[3];
    struct irq_line irq0;
    struct timer timer;
    bool irq_on;
    u8 port61; /* bits 3:0 */
};

static u64 ticks(const struct i8254 *p)
{
    return (u64)((u128)clock_now(p->board->clock) * I8254_HZ / NSEC_PER_SEC);
}

static u64 tick_ns(u64 tick) { return (u64)(((u128)tick * NSEC_PER_SEC + I8254_HZ - 1) / I8254_HZ); }

static u32 from_bcd(u32 v) { return (v >> 12 & 15) * 1000 + (v >> 8 & 15) * 100 + (v >> 4 & 15) * 10 + (v & 15); }
static u32 to_bcd(u32 v) { return v / 1000 % 10 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10; }
static u32 modulus(const struct channel *c) { return c->bcd ? 10000 : 0x10000; }

/* Brings a pending count of modes 2 and 3 into force. */
static void settle(struct channel *c, u64 now)
{
    if (c->next_count && now >= c->next_at) {
        c->start = c->next_at;
        c->count = c->next_count;
        c->next_count = 0;
    }
}

static u64 elapsed(const struct channel *c, u64 now) { return c->paused ? c->elapsed : now - c->start; }

/* Whether the channel counts at all at this moment. */
static bool running(const struct channel *c)
{
    if (!c->loaded)
        return false;
    switch (c->mode) {
    case 1:
    case 5:
        return c->triggered;
    case 2:
    case 3:
        return c->gate;
    }
    return true;
}

static bool output(const struct channel *c, u64 now)
{
    if (!running(c))
        return c->mode != 0;
    u64 d = elapsed(c, now);
    switch (c->mode) {
    case 0:
    case 1:
        return d >= c->count;
    case 2:
        return d % c->count != c->count - 1;
    case 3:
        return d % c->count < (c->count + 1) / 2;
    default: /* 4, 5: a strobe one clock wide */
        return d != c->count;
    }
}

static u16 counter(const struct channel *c, u64 now)
{
    u32 v;
    if (!running(c)) {
        v = c->loaded ? c->count : 0;
    } else {
        u64 d = elapsed(c, now);
        if (c->mode == 2) {
            v = c->count - (u32)(d % c->count);
        } else if (c->mode == 3) {
            /* Counts down by two, twice a period. An odd count takes its extra clock in the high half. */
            u32 half = (c->count + 1) / 2, r = (u32)(d % c->count);
            u32 even = c->count & ~1u;
            v = even - 2 * (r < half ? r : r - half);
            if ((c->count & 1) && r == half - 1)
                v = 0;
        } else {
            v = (u32)((c->count + (u64)modulus(c) - d % modulus(c)) % modulus(c));
        }
    }
    v %= modulus(c);
    return (u16)(c->bcd ? to_bcd(v) : v);
}

/* The next tick after @now at which OUT rises, or 0 for never. */
static u64 next_rise(const struct channel *c, u64 now)
{
    if (!running(c) || c->paused)
        return 0;
    u64 d = now - c->start, at;
    switch (c->mode) {
    case 0:
    case 1:
        return d < c->count ? c->start + c->count : 0;
    case 2:
    case 3:
        if (c->mode == 2 && c->count == 1)
            return 0; /* an illegal count in mode 2: OUT never moves */
        at = c->start + (d / c->count + 1) * c->count;
        return c->next_count && at > c->next_at ? c->next_at : at;
    default:
        return d <= c->count ? c->start + c->count + 1 : 0;
    }
}

static void schedule(struct i8254 *p)
{
    u64 at = next_rise(&p->ch[0], ticks(p));
    if (at)
        timer_arm(&p->timer, tick_ns(at));
    else
        timer_cancel(&p->timer);
}

static void irq0(struct i8254 *p, bool level)
{
    if (p->irq_on)
        irq_set(&p->irq0, level);
}

static void fire(void *opaque)
{
    struct i8254 *p = opaque;
    u64 now = ticks(p);
    settle(&p->ch[0], now);
    /* OUT was low for at least one clock before it rose; late arrivals merge into one edge. */
    irq0(p, false);
    irq0(p, true);
    schedule(p);
}

static void changed(struct i8254 *p, unsigned n)
{
    if (n)
        return;
    irq0(p, output(&p->ch[0], ticks(p)));
    schedule(p);
}

static void load(struct i8254 *p, unsigned n, u32 v)
{
    struct channel *c = &p->ch[n];
    u64 now = ticks(p);
    settle(c, now);
    if (c->bcd)
        v = from_bcd(v);
    u32 count = v ? v : modulus(c);
    if (c->loaded && running(c) && (c->mode == 2 || c->mode == 3)) {
        /* The present period ends first (data sheet, mode 2 and mode 3: "writing a new count"). */
        c->next_count = count;
        c->next_at = c->start + ((now - c->start) / c->count + 1) * c->count;
    } else if (c->loaded && c->triggered && (c->mode == 1 || c->mode == 5)) {
        c->next_count = count; /* taken at the next trigger */
        c->next_at = UINT64_MAX;
    } else {
        c->count = count;
        c->start = now;
        c->elapsed = 0;
        c->paused = !c->gate && (c->mode == 0 || c->mode == 4);
    }
    c->loaded = true;
    changed(p, n);
}

static void set_gate(struct i8254 *p, unsigned n, bool gate)
{
    struct channel *c = &p->ch[n];
    if (gate == c->gate)
        return;
    u64 now = ticks(p);
    settle(c, now);
    c->gate = gate;
    switch (c->mode) {
    case 0:
    case 4:
        if (!c->loaded)
            break;
        if (gate)
            c->start = now - c->elapsed;
        else
            c->elapsed = now - c->start;
        c->paused = !gate;
        break;
    default: /* a rising edge (re)loads: modes 1, 5 trigger, modes 2, 3 restart */
        if (gate && c->loaded) {
            if (c->next_count)
                c->count = c->next_count;
            c->next_count = 0;
            c->start = now;
            c->triggered = true;
        }
    }
    changed(p, n);
}

static u8 status_byte(const struct i8254 *p, struct channel *c)
{
    u64 now = ticks(p);
    settle(c, now);
    bool null_count = !c->loaded || c->next_count;
    return (u8)(output(c, now) << 7 | null_count << 6 | c->rw << 4 | c->mode << 1 | c->bcd);
}

static void latch_count(struct i8254 *p, struct channel *c)
{
    if (c->latched)
        return; /* a second latch command is ignored until the first was read */
    u64 now = ticks(p);
    settle(c, now);
    c->latch = counter(c, now);
    c->latched = true;
}

static void control(struct i8254 *p, u8 v)
{
    unsigned n = v >> 6;
    if (n == 3) { /* read-back command */
        for (unsigned i = 0; i < 3; i++) {
            struct channel *c = &p->ch[i];
            if (!(v & BIT(1 + i)))
                continue;
            if (!(v & BIT(5)))
                latch_count(p, c);
            if (!(v & BIT(4)) && !c->status_latched) {
                c->status = status_byte(p, c);
                c->status_latched = true;
            }
        }
        return;
    }
    struct channel *c = &p->ch[n];
    if (!(v >> 4 & 3)) { /* counter latch command */
        latch_count(p, c);
        return;
    }
    u8 mode = v >> 1 & 7;
    *c = (struct channel){
        .mode = mode > 5 ? mode - 4 : mode, .rw = v >> 4 & 3, .bcd = v & 1, .gate = c->gate, .count = 1,
    };
    changed(p, n);
}

static void write_count(struct i8254 *p, unsigned n, u8 v)
{
    struct channel *c = &p->ch[n];
    switch (c->rw) {
    case RW_LSB:
        load(p, n, v);
        break;
    case RW_MSB:
        load(p, n, (u32)v << 8);
        break;
    default:
        if (!c->write_high) {
            c->low = v;
            c->write_high = true;
            if (c->mode == 0) { /* the first byte stops the count and OUT stays low */
                c->loaded = false;
                changed(p, n);
            }
        } else {
            c->write_high = false;
            load(p, n, (u32)v << 8 | c->low);
        }
    }
}

static u8 read_count(struct i8254 *p, unsigned n)
{
    struct channel *c = &p->ch[n];
    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    u64 now = ticks(p);
    settle(c, now);
    u16 v = c->latched ? c->latch : counter(c, now);
    if (c->rw == RW_LSB || c->rw == RW_MSB) {
        c->latched = false;
        return (u8)(c->rw == RW_LSB ? v : v >> 8);
    }
    bool high = c->read_high;
    c->read_high = !high;
    if (high)
        c->latched = false;
    return (u8)(high ? v >> 8 : v);
}

static u64 pit_read(void *opaque, u64 off, unsigned size)
{
    return off < 3 ? read_count(opaque, (unsigned)off) : 0xff; /* the control word cannot be read */
}

static void pit_write(void *opaque, u64 off, u64 v, unsigned size)
{
    if (off < 3)
        write_count(opaque, (unsigned)off, (u8)v);
    else
        control(opaque, (u8)v);
}

static u64 port61_read(void *opaque, u64 off, unsigned size)
{
    struct i8254 *p = opaque;
    struct channel *c = &p->ch[2];
    u64 now = ticks(p);
    settle(c, now);
    /* Bit 4 toggles with each memory refresh request, every 15.085 us on a PC/AT. */
    u64 refresh = clock_now(p->board->clock) / 15085 & 1;
    return p->port61 | refresh << 4 | (u64)output(c, now) << 5;
}

static void port61_write(void *opaque, u64 off, u64 v, unsigned size)
{
    struct i8254 *p = opaque;
    p->port61 = v & 0xf;
    set_gate(p, 2, v & 1);
}

static const struct io_ops pit_ops = {pit_read, pit_write};
static const struct io_ops port61_ops = {port61_read, port61_write};

void i8254_irq_enable(struct i8254 *p, bool on)
{
    if (!on)
        irq0(p, false);
    p->irq_on = on;
}

void i8254_reset(struct i8254 *p)
{
    timer_cancel(&p->timer);
    for (unsigned i = 0; i < 3; i++)
        p->ch[i] = (struct channel){.rw = RW_BOTH, .gate = i != 2, .count = 1};
    p->port61 = 0;
    p->irq_on = true;
    irq0(p, false);
}

struct i8254 *i8254_new(struct board *b, struct error *err)
{
    struct i8254 *p = device_alloc(sizeof(*p));
    p->board = b;
    p->irq0 = b->irq(b, 0);
    timer_init(&p->timer, b->clock, fire, p);
    if (pio_bus_add8(b->pio, 0x40, 4, &pit_ops, p, "8254", err) ||
        pio_bus_add8(b->pio, 0x61, 1, &port61_ops, p, "port 61", err)) {
        free(p);
        return NULL;
    }
    i8254_reset(p);
    return p;
}

void i8254_free(struct i8254 *p)
{
    if (!p)
        return;
    timer_cancel(&p->timer);
    pio_bus_remove(p->board->pio, 0x40);
    pio_bus_remove(p->board->pio, 0x61);
    free(p);
}
