/* The local APIC's registers, by memory and by MSR. Section titles are those of the SDM's APIC chapter. */
#include "devices/lapic_internal.h"
#include "base/log.h"

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
        lapic_count_expire(l); /* under the mode in which it expired */
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
            lapic_timer_stop(l);
        else
            lapic_timer_update(l);
    } else if (n == LVT_LINT0 || n == LVT_LINT1) {
        if (l->lint[n - LVT_LINT0] && (v & LVT_LEVEL) && lvt_mode(v) == APIC_FIXED)
            lapic_local_deliver(l, (unsigned)n);
        lapic_update(l);
    }
}

static void write_svr(struct lapic *l, u32 v)
{
    l->svr = v & svr_writable(l);
    if (!sw_enabled(l))
        for (unsigned i = 0; i < LVT_COUNT; i++)
            l->lvt[i] |= LVT_MASKED;
    lapic_update(l);
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
        return lapic_ppr(l);
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
        return lapic_current_count(l);
    case R_TDCR:
        return l->tdcr;
    }
    lapic_set_error(l, ESR_ILLEGAL_REG);
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
        lapic_update(l);
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
        lapic_set_count(l, v);
        break;
    case R_TDCR:
        lapic_set_divide(l, v);
        break;
    case R_LVR:
    case R_APR:
    case R_PPR:
    case R_RRD:
    case R_TMCCT:
        break; /* read-only */
    default:
        if (reg < R_ISR || reg >= R_IRR + 8)
            lapic_set_error(l, ESR_ILLEGAL_REG);
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
                lapic_local_deliver(l, n);
        }
        lapic_update(l);
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
        lapic_set_error(l, ESR_SEND_ILLEGAL);
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
        lapic_set_error(l, ESR_SEND_ILLEGAL);
    else
        lapic_accept_fixed(l, vector, false);
    pthread_mutex_unlock(&l->lock);
}

u64 lapic_mmio_read(void *intc, u32 offset, unsigned size)
{
    struct lapic *l = intc;
    offset &= 0xfff;
    /* Registers are 32 bits at 16-byte steps; what lies between them is undefined and reads as zero. */
    if ((offset & 0xc) || (size < 4 && (offset & 3) + size > 4) || (size >= 4 && (offset & 3)))
        return 0;
    pthread_mutex_lock(&l->lock);
    u32 v = read_reg(l, offset >> 4);
    pthread_mutex_unlock(&l->lock);
    return bits_get(v >> (8 * (offset & 3)), 8 * (size < 4 ? size : 4) - 1, 0);
}

void lapic_mmio_write(void *intc, u32 offset, u64 value, unsigned size)
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
        lapic_reset_registers(l);
    } else {
        bool to_x2apic = extd && !x2apic(l);
        l->base = value;
        if (to_x2apic) {
            l->id = l->cfg.id & 0xff;
            l->icr &= 0xffffffff;
        }
    }
    lapic_update(l);
    pthread_mutex_unlock(&l->lock);
    log_at(irq, "APIC %u: base %#llx", l->cfg.id, (unsigned long long)value);
    return 0;
}

int lapic_rdmsr(void *intc, u32 msr, u64 *value)
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

int lapic_wrmsr(void *intc, u32 msr, u64 value)
{
    struct lapic *l = intc;
    if (msr == MSR_APIC_BASE)
        return write_base(l, value);
    if (msr == MSR_TSC_DEADLINE && l->cfg.tsc_deadline) {
        pthread_mutex_lock(&l->lock);
        /* "TSC-Deadline Mode": in the other modes the MSR reads zero and ignores writes. */
        if (l->lvt[LVT_TIMER] & LVT_DEADLINE) {
            l->tsc_deadline = value;
            lapic_timer_update(l);
        }
        pthread_mutex_unlock(&l->lock);
        return 0;
    }
    if (msr >= MSR_X2APIC && msr < MSR_X2APIC + 0x40 && x2apic(l))
        return wrmsr_x2apic(l, msr - MSR_X2APIC, value);
    return -1;
}
