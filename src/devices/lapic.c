/* The local APIC: priorities, delivery, timer. Section titles cited are those of the SDM's APIC chapter (edition
 * 325384-084). */
#include "devices/lapic_internal.h"
#include "base/log.h"

#include <stdlib.h>

/* ---- bits and priorities ("Interrupt, Task, and Processor Priority") ---- */

u8 lapic_ppr(const struct lapic *l)
{
    int isrv = bit_highest(l->isr);
    if (isrv < 0 || l->tpr >> 4 >= (u32)isrv >> 4)
        return (u8)l->tpr;
    return (u8)(isrv & 0xf0);
}

/* The vector that waits above the processor priority, or -1. */
static int pending(const struct lapic *l)
{
    int v = hw_enabled(l) ? bit_highest(l->irr) : -1;
    return v >= 0 && v >> 4 > lapic_ppr(l) >> 4 ? v : -1;
}

/* Whether the 8259 is to be asked: through LINT0, or past an APIC that is switched off. */
static bool extint(const struct lapic *l)
{
    if (!hw_enabled(l))
        return l->lint[0];
    u32 lint0 = l->lvt[LVT_LINT0];
    return l->extint_msg || (l->lint[0] && !(lint0 & LVT_MASKED) && lvt_mode(lint0) == APIC_EXTINT);
}

void lapic_update(struct lapic *l)
{
    bool intr = extint(l) || pending(l) >= 0;
    if (intr != l->intr) {
        l->intr = intr;
        if (l->cfg.pins.intr)
            l->cfg.pins.intr(l->cfg.cpu, intr);
    }
}

/* ---- acceptance ("Accepting Fixed Interrupts") and errors ("Error Handling") ---- */

void lapic_set_error(struct lapic *l, u32 bit)
{
    l->esr_pending |= bit;
    u32 lvt = l->lvt[LVT_ERROR];
    if (lvt & LVT_MASKED)
        return;
    if ((lvt & 0xff) < 16)
        l->esr_pending |= ESR_RECEIVE_ILLEGAL;
    else
        lapic_accept_fixed(l, (u8)lvt, false);
}

bool lapic_accept_fixed(struct lapic *l, u8 vector, bool level)
{
    if (!sw_enabled(l))
        return false;
    if (vector < 16) {
        lapic_set_error(l, ESR_RECEIVE_ILLEGAL);
        return false;
    }
    bit_set(l->irr, vector);
    if (level)
        bit_set(l->tmr, vector);
    else
        bit_clear(l->tmr, vector);
    lapic_update(l);
    return true;
}

static bool deliver(struct lapic *l, enum apic_delivery mode, u8 vector, bool level)
{
    const struct cpu_pins *pins = &l->cfg.pins;
    switch (mode) {
    case APIC_FIXED:
    case APIC_LOWEST:
        return lapic_accept_fixed(l, vector, level);
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
        lapic_update(l);
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
void lapic_local_deliver(struct lapic *l, unsigned n)
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
        lapic_local_deliver(l, entry[what]);
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
            lapic_local_deliver(l, LVT_LINT0 + n);
    } else if (n == 1 && rising && l->cfg.pins.nmi) {
        /* "Enabling or Disabling the Local APIC": LINT1 is the NMI pin then, LINT0 is INTR. */
        l->cfg.pins.nmi(l->cfg.cpu);
    }
    lapic_update(l);
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
    unsigned p = lapic_ppr(l);
    pthread_mutex_unlock(&l->lock);
    return p;
}

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

u32 lapic_current_count(const struct lapic *l)
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
void lapic_timer_update(struct lapic *l)
{
    timer_cancel(&l->timer);
    if (l->lvt[LVT_TIMER] & LVT_DEADLINE) {
        if (!l->tsc_deadline)
            return;
        if (guest_tsc(l) >= l->tsc_deadline) {
            l->tsc_deadline = 0;
            lapic_local_deliver(l, LVT_TIMER);
            return;
        }
        u64 now = clock_now(l->clock), when = tsc_to_ns(l, l->tsc_deadline);
        timer_arm(&l->timer, when > now ? when : now + 1);
    } else if (l->counting) {
        timer_arm(&l->timer, l->count_start + period_ns(l));
    }
}

/* Accounts for a count that has reached zero, whether or not the host-side timer came first. */
void lapic_count_expire(struct lapic *l)
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
    lapic_local_deliver(l, LVT_TIMER);
}

/* A write of the initial count starts the count, or stops it when zero. */
void lapic_set_count(struct lapic *l, u32 count)
{
    l->tmict = count;
    l->counting = count != 0;
    l->count_start = clock_now(l->clock);
    lapic_timer_update(l);
}

/* The count stands; only its speed changes. */
void lapic_set_divide(struct lapic *l, u32 tdcr)
{
    lapic_count_expire(l);
    u32 left = lapic_current_count(l);
    l->tdcr = tdcr & 0xb;
    if (l->counting) {
        u64 done = ticks_to_ns((u64)(l->tmict - left) << divide_shift(l->tdcr));
        l->count_start = clock_now(l->clock) - done;
        lapic_timer_update(l);
    }
}

static void timer_fire(void *opaque)
{
    struct lapic *l = opaque;
    pthread_mutex_lock(&l->lock);
    lapic_count_expire(l);
    lapic_timer_update(l);
    pthread_mutex_unlock(&l->lock);
}

void lapic_tsc_changed(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    if (l->lvt[LVT_TIMER] & LVT_DEADLINE)
        lapic_timer_update(l);
    pthread_mutex_unlock(&l->lock);
}

/* ---- reset ---- */

void lapic_timer_stop(struct lapic *l)
{
    l->counting = false;
    l->tsc_deadline = 0;
    timer_cancel(&l->timer);
}

/* "Local APIC State After Power-Up or Reset" and "... After an INIT Reset": all but ID and base. */
void lapic_reset_registers(struct lapic *l)
{
    lapic_timer_stop(l);
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
    lapic_update(l);
}

void lapic_reset(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    l->base = 0xfee00000u | BASE_EN | (l->cfg.bsp ? BASE_BSP : 0);
    l->id = l->cfg.id & 0xff;
    lapic_reset_registers(l);
    pthread_mutex_unlock(&l->lock);
}

static void op_init(void *intc)
{
    struct lapic *l = intc;
    pthread_mutex_lock(&l->lock);
    lapic_reset_registers(l);
    pthread_mutex_unlock(&l->lock);
}

void lapic_virtual_wire(struct lapic *l)
{
    pthread_mutex_lock(&l->lock);
    l->svr = 0xff | SVR_ENABLE;
    if (l->cfg.bsp)
        l->lvt[LVT_LINT0] = APIC_EXTINT << 8;
    l->lvt[LVT_LINT1] = APIC_NMI << 8;
    lapic_update(l);
    pthread_mutex_unlock(&l->lock);
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
        lapic_update(l);
    } else {
        v = pending(l);
        if (v >= 0) {
            bit_clear(l->irr, (u8)v);
            bit_set(l->isr, (u8)v);
        }
        lapic_update(l);
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
    lapic_update(l);
    pthread_mutex_unlock(&l->lock);
}

static u32 op_id(void *intc) { return ((struct lapic *)intc)->cfg.id; }

static u64 op_page(void *intc)
{
    struct lapic *l = intc;
    return hw_enabled(l) && !x2apic(l) ? l->base & BITS64(51, 12) : ~0ull;
}

static void op_pmi(void *intc) { lapic_local_event(intc, LAPIC_PERF); }

/* SDM "Posted-Interrupt Processing": NDST is an x2APIC ID, or an xAPIC ID in its bits 15:8. */
static void op_ipi(void *intc, u32 ndst, u8 vector)
{
    struct lapic *l = intc;
    bool wide = x2apic(l);
    apic_bus_send(l->bus, &(struct apic_msg){.dest = wide ? ndst : ndst >> 8 & 0xff, .wide_dest = wide, .vector = vector, .mode = APIC_FIXED});
}

const struct intc_ops lapic_intc_ops = {
    .peek = op_peek,
    .ack = op_ack,
    .get_tpr = op_get_tpr,
    .set_tpr = op_set_tpr,
    .rdmsr = lapic_rdmsr,
    .wrmsr = lapic_wrmsr,
    .init = op_init,
    .id = op_id,
    .page = op_page,
    .mmio_read = lapic_mmio_read,
    .mmio_write = lapic_mmio_write,
    .pmi = op_pmi,
    .ipi = op_ipi,
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
