/*
 * The synthetic interrupt controller and its timers (TLFS "Virtual Interrupt Controller", "Timers"):
 * sixteen sources with a vector each, a page of message slots, a page of event flags. Messages come
 * from the timers alone; there is no other partition to send any.
 */
#include "cpu/hyperv.h"
#include "mmu/physmap.h"

enum { SYNIC_SCONTROL = 0x40000080, SYNIC_SVERSION, SYNIC_SIEFP, SYNIC_SIMP, SYNIC_EOM, SYNIC_SINT0 = 0x40000090, STIMER0 = 0x400000b0 };
#define ENABLE BIT64(0)
#define SINT_MASKED BIT64(16)
#define SINT_AUTO_EOI BIT64(17)
#define SINT_BITS (BIT64(18) | SINT_MASKED | 0xff) /* polling, masked, vector */

#define TIMER_ENABLE BIT64(0)
#define TIMER_PERIODIC BIT64(1)
#define TIMER_AUTO_ENABLE BIT64(3)
#define TIMER_DIRECT BIT64(12)
#define TIMER_BITS (BITS64(12, 0) | BITS64(19, 16))

#define MESSAGE_SIZE 256u
#define MESSAGE_TIMER_EXPIRED 0x80000010u
#define MESSAGE_PENDING 1u

static u8 timer_vector(u64 config) { return (u8)bits_get(config, 11, 4); }
static unsigned timer_sint(u64 config) { return (unsigned)bits_get(config, 19, 16); }

/* Puts the timer's message into its slot. False: the slot is taken; the guest is asked to tell when it is free. */
static bool post(struct hv_timer *t)
{
    struct hyperv_vp *vp = t->vp;
    struct physmap *pm = vp->v->pm;
    unsigned sint = timer_sint(t->config);
    if (!(vp->scontrol & ENABLE) || !(vp->simp & ENABLE))
        return true; /* nowhere to: the message is lost */
    pa_t slot = (vp->simp & PAGE_MASK) + sint * MESSAGE_SIZE;
    if (physmap_load(pm, slot, 4)) {
        physmap_store(pm, slot + 5, physmap_load(pm, slot + 5, 1) | MESSAGE_PENDING, 1);
        return false;
    }
    u8 m[40] = {0};
    store32(m, MESSAGE_TIMER_EXPIRED);
    m[4] = 24; /* bytes of payload */
    store32(m + 16, (u32)(t - vp->timer));
    store64(m + 24, t->expires);
    store64(m + 32, hyperv_reference_time(vp->hv));
    physmap_write(pm, slot, m, sizeof(m));
    if (!(vp->sint[sint] & SINT_MASKED))
        hv_interrupt(vp, (u8)vp->sint[sint]);
    return true;
}

static void arm(struct hv_timer *t)
{
    u64 ns = t->expires > UINT64_MAX / 100 ? UINT64_MAX : t->expires * 100;
    timer_arm(&t->timer, ns);
}

static void fired(void *opaque)
{
    struct hv_timer *t = opaque;
    if (t->config & TIMER_DIRECT)
        hv_interrupt(t->vp, timer_vector(t->config));
    else
        t->message_waits = !post(t);
    if (!(t->config & TIMER_PERIODIC)) {
        t->config &= ~TIMER_ENABLE;
        return;
    }
    /* A period that was missed altogether is not made up for. */
    u64 now = hyperv_reference_time(t->vp->hv);
    t->expires += t->count;
    if (t->expires <= now)
        t->expires = now + t->count - (now - t->expires) % t->count;
    arm(t);
}

static void start(struct hv_timer *t)
{
    timer_cancel(&t->timer);
    t->message_waits = false;
    if (!(t->config & TIMER_ENABLE) || !t->count)
        return;
    t->expires = t->config & TIMER_PERIODIC ? hyperv_reference_time(t->vp->hv) + t->count : t->count;
    arm(t);
}

static bool timer_write(struct hv_timer *t, bool count, u64 value)
{
    if (count) {
        t->count = value;
        if (!value)
            t->config &= ~TIMER_ENABLE;
        else if (t->config & TIMER_AUTO_ENABLE)
            t->config |= TIMER_ENABLE;
    } else {
        if (value & ~TIMER_BITS)
            return false;
        /* A message timer needs a source: number 0 is for the hypervisor's own messages. */
        if (!(value & TIMER_DIRECT) && !timer_sint(value))
            value &= ~TIMER_ENABLE;
        t->config = value;
    }
    start(t);
    return true;
}

/* The guest has emptied a slot: what waited may go into it. */
static void end_of_message(struct hyperv_vp *vp)
{
    for (unsigned n = 0; n < HV_TIMERS; n++)
        if (vp->timer[n].message_waits)
            vp->timer[n].message_waits = !post(&vp->timer[n]);
}

bool hv_synic_rdmsr(struct hyperv_vp *vp, u32 msr, u64 *value)
{
    switch (msr) {
    case SYNIC_SCONTROL: *value = vp->scontrol; return true;
    case SYNIC_SVERSION: *value = 1; return true;
    case SYNIC_SIEFP: *value = vp->siefp; return true;
    case SYNIC_SIMP: *value = vp->simp; return true;
    case SYNIC_EOM: *value = 0; return true;
    default: break;
    }
    if (msr - SYNIC_SINT0 < HV_SINTS) {
        *value = vp->sint[msr - SYNIC_SINT0];
        return true;
    }
    if (msr - STIMER0 < 2 * HV_TIMERS) {
        const struct hv_timer *t = &vp->timer[(msr - STIMER0) / 2];
        *value = (msr - STIMER0) & 1 ? t->count : t->config;
        return true;
    }
    return false;
}

bool hv_synic_wrmsr(struct hyperv_vp *vp, u32 msr, u64 value)
{
    bool page_ok = !(value >> vp->v->maxphyaddr);
    switch (msr) {
    case SYNIC_SCONTROL: vp->scontrol = value & ENABLE; return true;
    case SYNIC_SIEFP:
        if (page_ok)
            vp->siefp = value & (PAGE_MASK | ENABLE);
        return page_ok;
    case SYNIC_SIMP:
        if (page_ok)
            vp->simp = value & (PAGE_MASK | ENABLE);
        return page_ok;
    case SYNIC_EOM: end_of_message(vp); return true;
    default: break;
    }
    if (msr - SYNIC_SINT0 < HV_SINTS) {
        /* Vectors below 16 are the processor's, unless the source is masked. Automatic EOI is recommended
         * against (leaf 40000004H), and absent. */
        if (value & SINT_AUTO_EOI || (!(value & SINT_MASKED) && (u8)value < 16))
            return false;
        vp->sint[msr - SYNIC_SINT0] = value & SINT_BITS;
        return true;
    }
    if (msr - STIMER0 < 2 * HV_TIMERS)
        return timer_write(&vp->timer[(msr - STIMER0) / 2], (msr - STIMER0) & 1, value);
    return false;
}

void hv_synic_init(struct hyperv_vp *vp, struct clock *clock)
{
    for (unsigned n = 0; n < HV_TIMERS; n++) {
        vp->timer[n].vp = vp;
        timer_init(&vp->timer[n].timer, clock, fired, &vp->timer[n]);
    }
    hv_synic_reset(vp);
}

void hv_synic_reset(struct hyperv_vp *vp)
{
    vp->scontrol = vp->siefp = vp->simp = 0;
    for (unsigned n = 0; n < HV_SINTS; n++)
        vp->sint[n] = SINT_MASKED;
    for (unsigned n = 0; n < HV_TIMERS; n++) {
        struct hv_timer *t = &vp->timer[n];
        timer_cancel(&t->timer);
        t->config = t->count = t->expires = 0;
        t->message_waits = false;
    }
}
