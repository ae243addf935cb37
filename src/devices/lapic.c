/* The local APIC. Section titles cited are those of the SDM's APIC chapter (edition 325384-084). */
#include "devices/lapic.h"
#include "base/log.h"

#include <pthread.h>
#include <stdlib.h>

/* Register numbers: xAPIC offset / 16 = x2APIC MSR - 0x800. */
enum {
    R_ID = 0x02, R_LVR = 0x03, R_TPR = 0x08, R_APR = 0x09, R_PPR = 0x0a, R_EOI = 0x0b, R_RRD = 0x0c,
    R_LDR = 0x0d, R_DFR = 0x0e, R_SVR = 0x0f, R_ISR = 0x10, R_TMR = 0x18, R_IRR = 0x20, R_ESR = 0x28,
    R_CMCI = 0x2f, R_ICR = 0x30, R_ICR2 = 0x31, R_TIMER = 0x32, R_THERMAL = 0x33, R_PERF = 0x34,
    R_LINT0 = 0x35, R_LINT1 = 0x36, R_ERROR = 0x37, R_TMICT = 0x38, R_TMCCT = 0x39, R_TDCR = 0x3e,
    R_SELF_IPI = 0x3f,
};

enum { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_CMCI, LVT_COUNT };

#define LVT_REMOTE_IRR BIT(14)
#define LVT_LEVEL      BIT(15)
#define LVT_MASKED     BIT(16)
#define LVT_PERIODIC   BIT(17)
#define LVT_DEADLINE   BIT(18)
#define LVT_STATUS     BIT(12)

#define SVR_ENABLE       BIT(8)
#define SVR_FOCUS        BIT(9)
#define SVR_EOI_SUPPRESS BIT(12)

#define BASE_BSP  BIT64(8)
#define BASE_EXTD BIT64(10)
#define BASE_EN   BIT64(11)

#define ESR_SEND_ILLEGAL    BIT(5)
#define ESR_RECEIVE_ILLEGAL BIT(6)
#define ESR_ILLEGAL_REG     BIT(7)

#define MSR_APIC_BASE    0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC       0x800

struct lapic {
    pthread_mutex_t lock;
    struct apic_bus *bus;
    struct lapic_config cfg;
    struct clock *clock;
    u64 tsc_hz;
    u64 base; /* IA32_APIC_BASE */
    u32 id;   /* xAPIC ID, 8 bits */
    u32 tpr, ldr, dfr, svr, esr, esr_pending;
    u64 icr;
    u32 lvt[LVT_COUNT];
    u32 irr[8], isr[8], tmr[8];
    u32 tmict, tdcr;
    struct timer timer;
    bool counting;    /* one-shot or periodic, between a write of TMICT and its end */
    u64 count_start;  /* clock time of the last (re)load */
    u64 tsc_deadline; /* IA32_TSC_DEADLINE, 0: disarmed */
    bool lint[2];
    bool extint_msg; /* an ExtINT message arrived and was not acknowledged yet */
    bool intr;       /* what pins.intr was told last */
};

/* ---- bits and priorities ("Interrupt, Task, and Processor Priority") ---- */

static void bit_set(u32 *map, u8 v) { map[v >> 5] |= BIT(v & 31); }
static void bit_clear(u32 *map, u8 v) { map[v >> 5] &= ~BIT(v & 31); }
static bool bit_test(const u32 *map, u8 v) { return map[v >> 5] & BIT(v & 31); }

static int bit_highest(const u32 *map)
{
    for (int i = 7; i >= 0; i--)
        if (map[i])
            return i * 32 + 31 - __builtin_clz(map[i]);
    return -1;
}

static u8 ppr(const struct lapic *l)
{
    int isrv = bit_highest(l->isr);
    if (isrv < 0 || l->tpr >> 4 >= (u32)isrv >> 4)
        return (u8)l->tpr;
    return (u8)(isrv & 0xf0);
}

static bool hw_enabled(const struct lapic *l) { return l->base & BASE_EN; }
static bool x2apic(const struct lapic *l) { return l->base & BASE_EXTD; }
static bool sw_enabled(const struct lapic *l) { return l->svr & SVR_ENABLE; }
static u32 lvt_mode(u32 lvt) { return (lvt >> 8) & 7; }

/* The vector that waits above the processor priority, or -1. */
static int pending(const struct lapic *l)
{
    int v = hw_enabled(l) ? bit_highest(l->irr) : -1;
    return v >= 0 && v >> 4 > ppr(l) >> 4 ? v : -1;
}

/* Whether the 8259 is to be asked: through LINT0, or past an APIC that is switched off. */
static bool extint(const struct lapic *l)
{
    if (!hw_enabled(l))
        return l->lint[0];
    u32 lint0 = l->lvt[LVT_LINT0];
    return l->extint_msg || (l->lint[0] && !(lint0 & LVT_MASKED) && lvt_mode(lint0) == APIC_EXTINT);
}

static void update(struct lapic *l)
{
    bool intr = extint(l) || pending(l) >= 0;
    if (intr != l->intr) {
        l->intr = intr;
        if (l->cfg.pins.intr)
            l->cfg.pins.intr(l->cfg.cpu, intr);
    }
}

/* ---- acceptance ("Accepting Fixed Interrupts") and errors ("Error Handling") ---- */

static bool accept_fixed(struct lapic *l, u8 vector, bool level);

static void set_error(struct lapic *l, u32 bit)
{
    l->esr_pending |= bit;
    u32 lvt = l->lvt[LVT_ERROR];
    if (lvt & LVT_MASKED)
        return;
    if ((lvt & 0xff) < 16)
        l->esr_pending |= ESR_RECEIVE_ILLEGAL;
    else
        accept_fixed(l, (u8)lvt, false);
}

static bool accept_fixed(struct lapic *l, u8 vector, bool level)
{
    if (!sw_enabled(l))
        return false;
    if (vector < 16) {
        set_error(l, ESR_RECEIVE_ILLEGAL);
        return false;
    }
    bit_set(l->irr, vector);
    if (level)
        bit_set(l->tmr, vector);
    else
        bit_clear(l->tmr, vector);
    update(l);
    return true;
}

static bool deliver(struct lapic *l, enum apic_delivery mode, u8 vector, bool level)
{
    const struct cpu_pins *pins = &l->cfg.pins;
    switch (mode) {
    case APIC_FIXED:
    case APIC_LOWEST:
        return accept_fixed(l, vector, level);
    case APIC_SMI:
        if (pins->smi)
            pins->smi(l->cfg.cpu);
        return true;
    case APIC_NMI:
        if (pins->nmi)
            pins->nmi(l->cfg.cpu);
        return true;
    case APIC_INIT:
        if (pins->init)
            pins->init(l->cfg.cpu);
        return true;
    case APIC_STARTUP:
        if (pins->sipi)
            pins->sipi(l->cfg.cpu, vector);
        return true;
    case APIC_EXTINT:
        l->extint_msg = true;
        update(l);
        return true;
    case APIC_RESERVED:
        break;
    }
    return false;
}

bool lapic_deliver(struct lapic *l, enum apic_delivery mode, u8 vector, bool level)
{
    pthread_mutex_lock(&l->lock);
    bool accepted = deliver(l, mode, vector, level);
    pthread_mutex_unlock(&l->lock);
    return accepted;
}

/* "Local Vector Table": sends what entry @n says. */
static void local_deliver(struct lapic *l, unsigned n)
{
    u32 lvt = l->lvt[n];
    if (lvt & LVT_MASKED)
        return;
    u32 mode = n == LVT_TIMER || n == LVT_ERROR ? APIC_FIXED : lvt_mode(lvt);
    bool level = (n == LVT_LINT0 || n == LVT_LINT1) && mode == APIC_FIXED && (lvt & LVT_LEVEL);
    /* Other modes are reserved in an LVT; ExtINT is a level that extint() reads. */
    if (mode != APIC_FIXED && mode != APIC_SMI && mode != APIC_NMI && mode != APIC_INIT)
        return;
    if (level && (lvt & LVT_REMOTE_IRR))
        return;
    if (deliver(l, (enum apic_delivery)mode, (u8)lvt, level) && level)
        l->lvt[n] |= LVT_REMOTE_IRR;
    /* "Performance monitoring counters": the mask is set when the interrupt is delivered. */
    if (n == LVT_PERF)
        l->lvt[n] |= LVT_MASKED;
}

void lapic_local_event(struct lapic *l, enum lapic_local what)
{
    static const u8 entry[] = {[LAPIC_THERMAL] = LVT_THERMAL, [LAPIC_PERF] = LVT_PERF, [LAPIC_CMCI] = LVT_CMCI};
    pthread_mutex_lock(&l->lock);
    if (hw_enabled(l))
        local_deliver(l, entry[what]);
    pthread_mutex_unlock(&l->lock);
}

void lapic_set_lint(struct lapic *l, unsigned n, bool level)
{
    pthread_mutex_lock(&l->lock);
    bool rising = level && !l->lint[n];
    l->lint[n] = level;
    if (hw_enabled(l)) {
        u32 lvt = l->lvt[LVT_LINT0 + n];
        bool level_triggered = lvt_mode(lvt) == APIC_FIXED && (lvt & LVT_LEVEL);
        if (rising || (level && level_triggered))
            local_deliver(l, LVT_LINT0 + n);
    } else if (n == 1 && rising && l->cfg.pins.nmi) {
        /* "Enabling or Disabling the Local APIC": LINT1 is the NMI pin then, LINT0 is INTR. */
        l->cfg.pins.nmi(l->cfg.cpu);
    }
    update(l);
    pthread_mutex_unlock(&l->lock);
}

/* ---- what the bus asks ("Determining IPI Destination") ---- */

bool lapic_enabled(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    bool on = hw_enabled(l);
    pthread_mutex_unlock(&l->lock);
    return on;
}

bool lapic_takes_fixed(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    bool on = hw_enabled(l) && sw_enabled(l);
    pthread_mutex_unlock(&l->lock);
    return on;
}

unsigned lapic_priority(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    unsigned p = ppr(l);
    pthread_mutex_unlock(&l->lock);
    return p;
}

static u32 x2apic_ldr(const struct lapic *l) { return (l->cfg.id >> 4) << 16 | BIT(l->cfg.id & 15); }

static bool matches(const struct lapic *l, const struct apic_msg *m)
{
    if (!hw_enabled(l))
        return false;
    u32 dest = m->dest;
    if (dest == (m->wide_dest ? ~0u : 0xffu))
        return true;
    if (!m->logical)
        return dest == (x2apic(l) ? l->cfg.id : l->id);
    if (x2apic(l)) {
        u32 ldr = x2apic_ldr(l);
        return dest >> 16 == ldr >> 16 && (dest & ldr & 0xffff);
    }
    if (dest > 0xff)
        return false;
    u32 logical = l->ldr >> 24;
    if (l->dfr >> 28 == 0xf)
        return dest & logical; /* flat */
    if (l->dfr >> 28 == 0)
        return dest >> 4 == logical >> 4 && (dest & logical & 0xf); /* cluster */
    return false; /* the other models are reserved */
}

bool lapic_matches(struct lapic *l, const struct apic_msg *m)
{
    pthread_mutex_lock(&l->lock);
    bool yes = matches(l, m);
    pthread_mutex_unlock(&l->lock);
    return yes;
}

/* ---- timer ("APIC Timer") ---- */

static unsigned divide_shift(u32 tdcr) { return (((tdcr & 3) | ((tdcr >> 1) & 4)) + 1) & 7; }

static u64 ticks_to_ns(u64 ticks) { return ticks * (NSEC_PER_SEC / LAPIC_TIMER_HZ); }
static u64 period_ns(const struct lapic *l) { return ticks_to_ns((u64)l->tmict << divide_shift(l->tdcr)); }

static u64 guest_tsc(const struct lapic *l)
{
    if (l->cfg.tsc)
        return l->cfg.tsc(l->cfg.cpu);
    return (u64)((u128)clock_now(l->clock) * l->tsc_hz / NSEC_PER_SEC);
}

static u64 tsc_to_ns(const struct lapic *l, u64 tsc)
{
    if (l->cfg.tsc_to_ns)
        return l->cfg.tsc_to_ns(l->cfg.cpu, tsc);
    u64 hz = l->tsc_hz ? l->tsc_hz : 1;
    u128 ns = ((u128)tsc * NSEC_PER_SEC + hz - 1) / hz;
    return ns >> 63 ? UINT64_MAX >> 1 : (u64)ns;
}

static u32 current_count(const struct lapic *l)
{
    if (!l->counting || !l->tmict)
        return 0;
    u64 period = period_ns(l), elapsed = clock_now(l->clock) - l->count_start;
    if (elapsed >= period) {
        if (!(l->lvt[LVT_TIMER] & LVT_PERIODIC))
            return 0;
        elapsed %= period;
    }
    return l->tmict - (u32)((elapsed / ticks_to_ns(1)) >> divide_shift(l->tdcr));
}

/* Arms the host-side timer for whatever the registers ask. A deadline that has passed fires here. */
static void timer_update(struct lapic *l)
{
    timer_cancel(&l->timer);
    if (l->lvt[LVT_TIMER] & LVT_DEADLINE) {
        if (!l->tsc_deadline)
            return;
        if (guest_tsc(l) >= l->tsc_deadline) {
            l->tsc_deadline = 0;
            local_deliver(l, LVT_TIMER);
            return;
        }
        u64 now = clock_now(l->clock), when = tsc_to_ns(l, l->tsc_deadline);
        timer_arm(&l->timer, when > now ? when : now + 1);
    } else if (l->counting) {
        timer_arm(&l->timer, l->count_start + period_ns(l));
    }
}

/* Accounts for a count that has reached zero, whether or not the host-side timer came first. */
static void count_expire(struct lapic *l)
{
    if ((l->lvt[LVT_TIMER] & LVT_DEADLINE) || !l->counting)
        return;
    u64 period = period_ns(l), elapsed = clock_now(l->clock) - l->count_start;
    if (elapsed < period)
        return;
    /* Periods that passed unnoticed are one interrupt: IRR has one bit. */
    if (l->lvt[LVT_TIMER] & LVT_PERIODIC)
        l->count_start += elapsed / period * period;
    else
        l->counting = false;
    local_deliver(l, LVT_TIMER);
}

static void timer_fire(void *opaque)
{
    struct lapic *l = opaque;
    pthread_mutex_lock(&l->lock);
    count_expire(l);
    timer_update(l);
    pthread_mutex_unlock(&l->lock);
}

void lapic_tsc_changed(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    if (l->lvt[LVT_TIMER] & LVT_DEADLINE)
        timer_update(l);
    pthread_mutex_unlock(&l->lock);
}

/* ---- reset ---- */

static void timer_stop(struct lapic *l)
{
    l->counting = false;
    l->tsc_deadline = 0;
    timer_cancel(&l->timer);
}

/* "Local APIC State After Power-Up or Reset" and "... After an INIT Reset": all but ID and base. */
static void reset_registers(struct lapic *l)
{
    timer_stop(l);
    l->tpr = l->ldr = l->esr = l->esr_pending = l->tmict = l->tdcr = 0;
    l->dfr = ~0u;
    l->svr = 0xff;
    l->icr = 0;
    for (unsigned i = 0; i < LVT_COUNT; i++)
        l->lvt[i] = LVT_MASKED;
    memset(l->irr, 0, sizeof(l->irr));
    memset(l->isr, 0, sizeof(l->isr));
    memset(l->tmr, 0, sizeof(l->tmr));
    l->extint_msg = false;
    update(l);
}

void lapic_reset(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    l->base = 0xfee00000u | BASE_EN | (l->cfg.bsp ? BASE_BSP : 0);
    l->id = l->cfg.id & 0xff;
    reset_registers(l);
    pthread_mutex_unlock(&l->lock);
}

static void op_init(void *intc)
{
    struct lapic *l = intc;
    pthread_mutex_lock(&l->lock);
    reset_registers(l);
    pthread_mutex_unlock(&l->lock);
}

void lapic_virtual_wire(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    l->svr = 0xff | SVR_ENABLE;
    if (l->cfg.bsp)
        l->lvt[LVT_LINT0] = APIC_EXTINT << 8;
    l->lvt[LVT_LINT1] = APIC_NMI << 8;
    update(l);
    pthread_mutex_unlock(&l->lock);
}

/* ---- registers ---- */

static int lvt_index(unsigned reg)
{
    if (reg >= R_TIMER && reg <= R_ERROR)
        return (int)(reg - R_TIMER) + LVT_TIMER;
    return reg == R_CMCI ? LVT_CMCI : -1;
}

/* Which bits of an LVT entry software may set ("Local Vector Table", figure). */
static u32 lvt_writable(const struct lapic *l, int n)
{
    switch (n) {
    case LVT_TIMER:
        return 0xff | LVT_MASKED | LVT_PERIODIC | (l->cfg.tsc_deadline ? LVT_DEADLINE : 0);
    case LVT_ERROR:
        return 0xff | LVT_MASKED;
    case LVT_LINT0:
    case LVT_LINT1:
        return 0x7ff | BIT(13) | LVT_LEVEL | LVT_MASKED;
    default:
        return 0x7ff | LVT_MASKED;
    }
}

static u32 svr_writable(const struct lapic *l)
{
    return 0xff | SVR_ENABLE | SVR_FOCUS | (l->cfg.directed_eoi ? SVR_EOI_SUPPRESS : 0);
}

static void write_lvt(struct lapic *l, int n, u32 v)
{
    if (n == LVT_TIMER)
        count_expire(l); /* under the mode in which it expired */
    u32 old = l->lvt[n];
    v &= lvt_writable(l, n);
    if (!sw_enabled(l))
        v |= LVT_MASKED;
    /* Remote IRR is the APIC's own; it means nothing once the entry is edge-triggered. */
    if ((v & LVT_LEVEL) && lvt_mode(v) == APIC_FIXED)
        v |= old & LVT_REMOTE_IRR;
    l->lvt[n] = v;
    if (n == LVT_TIMER) {
        /* "TSC-Deadline Mode": a change to or from it disarms the timer; one-shot and periodic share the count. */
        if ((old ^ v) & LVT_DEADLINE)
            timer_stop(l);
        else
            timer_update(l);
    } else if (n == LVT_LINT0 || n == LVT_LINT1) {
        if (l->lint[n - LVT_LINT0] && (v & LVT_LEVEL) && lvt_mode(v) == APIC_FIXED)
            local_deliver(l, (unsigned)n);
        update(l);
    }
}

static void write_svr(struct lapic *l, u32 v)
{
    l->svr = v & svr_writable(l);
    if (!sw_enabled(l))
        for (unsigned i = 0; i < LVT_COUNT; i++)
            l->lvt[i] |= LVT_MASKED;
    update(l);
}

static u32 read_reg(struct lapic *l, unsigned reg)
{
    int n = lvt_index(reg);
    if (n >= 0 && (n != LVT_CMCI || l->cfg.cmci))
        return l->lvt[n];
    if (reg >= R_ISR && reg < R_ISR + 8)
        return l->isr[reg - R_ISR];
    if (reg >= R_TMR && reg < R_TMR + 8)
        return l->tmr[reg - R_TMR];
    if (reg >= R_IRR && reg < R_IRR + 8)
        return l->irr[reg - R_IRR];
    switch (reg) {
    case R_ID:
        return x2apic(l) ? l->cfg.id : l->id << 24;
    case R_LVR:
        return 0x14 | (l->cfg.cmci ? 6u : 5u) << 16 | (l->cfg.directed_eoi ? BIT(24) : 0);
    case R_TPR:
        return l->tpr;
    case R_APR:
    case R_PPR:
        return ppr(l);
    case R_EOI:
    case R_RRD:
        return 0;
    case R_LDR:
        return x2apic(l) ? x2apic_ldr(l) : l->ldr;
    case R_DFR:
        return l->dfr;
    case R_SVR:
        return l->svr;
    case R_ESR:
        return l->esr;
    case R_ICR:
        return (u32)l->icr;
    case R_ICR2:
        return (u32)(l->icr >> 32);
    case R_TMICT:
        return l->tmict;
    case R_TMCCT:
        return current_count(l);
    case R_TDCR:
        return l->tdcr;
    }
    set_error(l, ESR_ILLEGAL_REG);
    return 0;
}

/* Registers that only this APIC feels; EOI, ICR and SELF IPI are handled by their callers. */
static void write_reg(struct lapic *l, unsigned reg, u32 v)
{
    int n = lvt_index(reg);
    if (n >= 0 && (n != LVT_CMCI || l->cfg.cmci)) {
        write_lvt(l, n, v);
        return;
    }
    switch (reg) {
    case R_ID:
        l->id = v >> 24;
        break;
    case R_TPR:
        l->tpr = v & 0xff;
        update(l);
        break;
    case R_LDR:
        l->ldr = v & 0xff000000;
        break;
    case R_DFR:
        l->dfr = v | 0x0fffffff;
        break;
    case R_SVR:
        write_svr(l, v);
        break;
    case R_ESR:
        /* "Error Status Register": a write moves what was gathered since the last one into view. */
        l->esr = l->esr_pending;
        l->esr_pending = 0;
        break;
    case R_TMICT:
        if (l->lvt[LVT_TIMER] & LVT_DEADLINE)
            break;
        l->tmict = v;
        l->counting = v != 0;
        l->count_start = clock_now(l->clock);
        timer_update(l);
        break;
    case R_TDCR: {
        u32 left = current_count(l);
        l->tdcr = v & 0xb;
        if (l->counting) {
            /* The count stands; only its speed changes. */
            u64 done = ticks_to_ns((u64)(l->tmict - left) << divide_shift(l->tdcr));
            l->count_start = clock_now(l->clock) - done;
            timer_update(l);
        }
        break;
    }
    case R_LVR:
    case R_APR:
    case R_PPR:
    case R_RRD:
    case R_TMCCT:
        break; /* read-only */
    default:
        if (reg < R_ISR || reg >= R_IRR + 8)
            set_error(l, ESR_ILLEGAL_REG);
    }
}

/* "Signaling Interrupt Servicing Completion". Called without the lock. */
static void write_eoi(struct lapic *l)
{
    bool broadcast = false;
    pthread_mutex_lock(&l->lock);
    int v = bit_highest(l->isr);
    if (v >= 0) {
        bit_clear(l->isr, (u8)v);
        broadcast = bit_test(l->tmr, (u8)v) && !(l->svr & SVR_EOI_SUPPRESS);
        for (unsigned n = LVT_LINT0; n <= LVT_LINT1; n++) {
            if (!(l->lvt[n] & LVT_REMOTE_IRR) || (int)(l->lvt[n] & 0xff) != v)
                continue;
            l->lvt[n] &= ~LVT_REMOTE_IRR;
            if (l->lint[n - LVT_LINT0])
                local_deliver(l, n);
        }
        update(l);
    }
    pthread_mutex_unlock(&l->lock);
    if (broadcast)
        apic_bus_eoi(l->bus, (u8)v);
}

/* "Interrupt Command Register (ICR)". Called without the lock. */
static void write_icr(struct lapic *l, u64 icr)
{
    pthread_mutex_lock(&l->lock);
    bool wide = x2apic(l);
    l->icr = icr & ~(u64)LVT_STATUS; /* delivery is instantaneous: never busy */
    struct apic_msg m = {
        .dest = wide ? (u32)(icr >> 32) : (u32)(icr >> 56),
        .wide_dest = wide,
        .logical = icr & BIT(11),
        .vector = (u8)icr,
        .mode = (enum apic_delivery)bits_get(icr, 10, 8),
    };
    bool illegal = (m.mode == APIC_FIXED || m.mode == APIC_LOWEST) && m.vector < 16;
    if (illegal)
        set_error(l, ESR_SEND_ILLEGAL);
    pthread_mutex_unlock(&l->lock);

    bool deassert = m.mode == APIC_INIT && (icr & BIT(15)) && !(icr & BIT(14));
    if (illegal || deassert || m.mode == APIC_RESERVED || m.mode == APIC_EXTINT)
        return;
    switch (bits_get(icr, 19, 18)) {
    case 0:
        apic_bus_send(l->bus, &m);
        break;
    case 1:
        lapic_deliver(l, m.mode, m.vector, false);
        break;
    case 2:
        apic_bus_send_all(l->bus, &m, NULL);
        break;
    case 3:
        apic_bus_send_all(l->bus, &m, l);
        break;
    }
}

static void write_self_ipi(struct lapic *l, u8 vector)
{
    pthread_mutex_lock(&l->lock);
    if (vector < 16)
        set_error(l, ESR_SEND_ILLEGAL);
    else
        accept_fixed(l, vector, false);
    pthread_mutex_unlock(&l->lock);
}

static u64 op_mmio_read(void *intc, u32 offset, unsigned size)
{
    struct lapic *l = intc;
    offset &= 0xfff;
    /* Registers are 32 bits at 16-byte steps; what lies between them is undefined and reads as zero. */
    if ((offset & 0xc) || (size < 4 && (offset & 3) + size > 4) || (size >= 4 && (offset & 3)))
        return 0;
    pthread_mutex_lock(&l->lock);
    u32 v = read_reg(l, offset >> 4);
    pthread_mutex_unlock(&l->lock);
    return v >> (8 * (offset & 3));
}

static void op_mmio_write(void *intc, u32 offset, u64 value, unsigned size)
{
    struct lapic *l = intc;
    offset &= 0xfff;
    if ((offset & 0xf) || size < 4)
        return; /* "Programming Note": anything but aligned 32-bit accesses is undefined */
    unsigned reg = offset >> 4;
    if (reg == R_EOI) {
        write_eoi(l);
        return;
    }
    if (reg == R_ICR) {
        pthread_mutex_lock(&l->lock);
        u64 icr = (l->icr & 0xff00000000000000ull) | ((u32)value & 0xcdfff);
        pthread_mutex_unlock(&l->lock);
        write_icr(l, icr);
        return;
    }
    pthread_mutex_lock(&l->lock);
    if (reg == R_ICR2)
        l->icr = (l->icr & 0xffffffff) | (value & 0xff000000) << 32;
    else
        write_reg(l, reg, (u32)value);
    pthread_mutex_unlock(&l->lock);
}

/* ---- MSRs ("Extended XAPIC (x2APIC)") ---- */

static int rdmsr_x2apic(struct lapic *l, unsigned reg, u64 *value)
{
    bool readable;
    switch (reg) {
    case R_ID: case R_LVR: case R_TPR: case R_PPR: case R_LDR: case R_SVR: case R_ESR: case R_ICR:
    case R_TIMER: case R_THERMAL: case R_PERF: case R_LINT0: case R_LINT1: case R_ERROR:
    case R_TMICT: case R_TMCCT: case R_TDCR:
        readable = true;
        break;
    case R_CMCI:
        readable = l->cfg.cmci;
        break;
    default: /* EOI and SELF IPI are write-only; DFR, APR, RRD and ICR2 do not exist here */
        readable = reg >= R_ISR && reg < R_IRR + 8;
    }
    if (!readable)
        return -1;
    *value = reg == R_ICR ? l->icr : read_reg(l, reg);
    return 0;
}

/* Bits a WRMSR may set, 0 for a register it may not write at all ("Reserved Bit Checking"). */
static bool x2apic_writable(const struct lapic *l, unsigned reg, u64 *mask)
{
    int n = lvt_index(reg);
    if (n >= 0) {
        *mask = lvt_writable(l, n) | LVT_STATUS | (n == LVT_LINT0 || n == LVT_LINT1 ? LVT_REMOTE_IRR : 0);
        return n != LVT_CMCI || l->cfg.cmci;
    }
    switch (reg) {
    case R_TPR: case R_SELF_IPI:
        *mask = 0xff;
        return true;
    case R_EOI: case R_ESR:
        *mask = 0;
        return true;
    case R_SVR:
        *mask = svr_writable(l);
        return true;
    case R_ICR:
        /* Bit 12, delivery status in xAPIC mode: reserved in the text, ignored by processors. */
        *mask = 0xffffffff000cdfffull & ~BIT64(13);
        return true;
    case R_TMICT:
        *mask = 0xffffffff;
        return true;
    case R_TDCR:
        *mask = 0xb;
        return true;
    }
    return false;
}

static int wrmsr_x2apic(struct lapic *l, unsigned reg, u64 value)
{
    u64 mask;
    if (!x2apic_writable(l, reg, &mask) || (value & ~mask))
        return -1;
    if (reg == R_EOI) {
        write_eoi(l);
    } else if (reg == R_ICR) {
        write_icr(l, value);
    } else if (reg == R_SELF_IPI) {
        write_self_ipi(l, (u8)value);
    } else {
        pthread_mutex_lock(&l->lock);
        write_reg(l, reg, (u32)value);
        pthread_mutex_unlock(&l->lock);
    }
    return 0;
}

/* "x2APIC State Transitions": which changes of (EN, EXTD) are faults. */
static int write_base(struct lapic *l, u64 value)
{
    unsigned width = l->cfg.phys_bits >= 32 && l->cfg.phys_bits <= 52 ? l->cfg.phys_bits : 36;
    u64 valid = BITS64(width - 1, 12) | BASE_EN | BASE_BSP | (l->cfg.x2apic ? BASE_EXTD : 0);
    if (value & ~valid)
        return -1;
    bool en = value & BASE_EN, extd = value & BASE_EXTD;
    if (extd && (!en || !hw_enabled(l)))
        return -1;
    if (en && !extd && x2apic(l))
        return -1;
    pthread_mutex_lock(&l->lock);
    if (!en && hw_enabled(l)) {
        /* Switched off: what comes back when EN is set again is the power-up state. */
        l->base = value;
        l->id = l->cfg.id & 0xff;
        reset_registers(l);
    } else {
        bool to_x2apic = extd && !x2apic(l);
        l->base = value;
        if (to_x2apic) {
            l->id = l->cfg.id & 0xff;
            l->icr &= 0xffffffff;
        }
    }
    update(l);
    pthread_mutex_unlock(&l->lock);
    log_at(irq, "APIC %u: base %#llx", l->cfg.id, (unsigned long long)value);
    return 0;
}

static int op_rdmsr(void *intc, u32 msr, u64 *value)
{
    struct lapic *l = intc;
    int rc = -1;
    pthread_mutex_lock(&l->lock);
    if (msr == MSR_APIC_BASE) {
        *value = l->base;
        rc = 0;
    } else if (msr == MSR_TSC_DEADLINE && l->cfg.tsc_deadline) {
        *value = l->tsc_deadline;
        rc = 0;
    } else if (msr >= MSR_X2APIC && msr < MSR_X2APIC + 0x40 && x2apic(l)) {
        rc = rdmsr_x2apic(l, msr - MSR_X2APIC, value);
    }
    pthread_mutex_unlock(&l->lock);
    return rc;
}

static int op_wrmsr(void *intc, u32 msr, u64 value)
{
    struct lapic *l = intc;
    if (msr == MSR_APIC_BASE)
        return write_base(l, value);
    if (msr == MSR_TSC_DEADLINE && l->cfg.tsc_deadline) {
        pthread_mutex_lock(&l->lock);
        /* "TSC-Deadline Mode": in the other modes the MSR reads zero and ignores writes. */
        if (l->lvt[LVT_TIMER] & LVT_DEADLINE) {
            l->tsc_deadline = value;
            timer_update(l);
        }
        pthread_mutex_unlock(&l->lock);
        return 0;
    }
    if (msr >= MSR_X2APIC && msr < MSR_X2APIC + 0x40 && x2apic(l))
        return wrmsr_x2apic(l, msr - MSR_X2APIC, value);
    return -1;
}

/* ---- the processor's side ---- */

static int op_peek(void *intc)
{
    struct lapic *l = intc;
    pthread_mutex_lock(&l->lock);
    bool ext = extint(l);
    int v = pending(l);
    pthread_mutex_unlock(&l->lock);
    if (ext) {
        int e = apic_bus_inta_peek(l->bus);
        if (e >= 0)
            return e;
    }
    return v;
}

static int op_ack(void *intc)
{
    struct lapic *l = intc;
    pthread_mutex_lock(&l->lock);
    bool ext = extint(l);
    int v = -1;
    if (ext) {
        l->extint_msg = false;
        update(l);
    } else {
        v = pending(l);
        if (v >= 0) {
            bit_clear(l->irr, (u8)v);
            bit_set(l->isr, (u8)v);
        }
        update(l);
    }
    pthread_mutex_unlock(&l->lock);
    return ext ? apic_bus_inta(l->bus) : v;
}

static u8 op_get_tpr(void *intc)
{
    struct lapic *l = intc;
    return (u8)l->tpr; /* written by this thread only */
}

static void op_set_tpr(void *intc, u8 tpr)
{
    struct lapic *l = intc;
    if (l->tpr == tpr)
        return;
    pthread_mutex_lock(&l->lock);
    l->tpr = tpr;
    update(l);
    pthread_mutex_unlock(&l->lock);
}

static u32 op_id(void *intc) { return ((struct lapic *)intc)->cfg.id; }

static u64 op_page(void *intc)
{
    struct lapic *l = intc;
    return hw_enabled(l) && !x2apic(l) ? l->base & BITS64(51, 12) : ~0ull;
}

const struct intc_ops lapic_intc_ops = {
    .peek = op_peek,
    .ack = op_ack,
    .get_tpr = op_get_tpr,
    .set_tpr = op_set_tpr,
    .rdmsr = op_rdmsr,
    .wrmsr = op_wrmsr,
    .init = op_init,
    .id = op_id,
    .page = op_page,
    .mmio_read = op_mmio_read,
    .mmio_write = op_mmio_write,
};

struct lapic *lapic_new(struct board *b, struct apic_bus *bus, const struct lapic_config *config, struct error *err)
{
    struct lapic *l = device_alloc(sizeof(*l));
    l->bus = bus;
    l->cfg = *config;
    l->clock = b->clock;
    l->tsc_hz = b->tsc_hz;
    pthread_mutex_init(&l->lock, NULL);
    timer_init(&l->timer, b->clock, timer_fire, l);
    if (apic_bus_attach(bus, l)) {
        error_set(err, "local APIC %u: a machine has at most %d", config->id, APIC_BUS_MAX);
        pthread_mutex_destroy(&l->lock);
        free(l);
        return NULL;
    }
    lapic_reset(l);
    return l;
}

void lapic_free(struct lapic *l)
{
    if (!l)
        return;
    timer_cancel(&l->timer);
    apic_bus_detach(l->bus, l);
    pthread_mutex_destroy(&l->lock);
    free(l);
}
