/*
 * APIC virtualization (SDM "APIC Virtualization and Virtual Interrupts"): the virtual-APIC page, the
 * TPR shadow, register virtualization, virtual-interrupt delivery, posted interrupts.
 */
#include "devices/irq.h"
#include "vmx/vmx.h"

#define F(name) (x->f[VMCS_##name])

enum { APIC_ID = 0x20, APIC_VERSION = 0x30, APIC_TPR = 0x80, APIC_PPR = 0xa0, APIC_EOI = 0xb0, APIC_LDR = 0xd0, APIC_DFR = 0xe0,
       APIC_SVR = 0xf0, APIC_ISR = 0x100, APIC_TMR = 0x180, APIC_IRR = 0x200, APIC_ESR = 0x280, APIC_ICR = 0x300,
       APIC_ICR_HIGH = 0x310, APIC_SELF_IPI = 0x3f0 };

#define X2APIC_ICR_RESERVED 0xfff33000ull

u32 vapic_read(struct vcpu *v, u32 offset)
{
    return (u32)physmap_load(v->pm, v->vmx->f[VMCS_VIRTUAL_APIC_PAGE_ADDR] + offset, 4);
}
static void vapic_write(struct vcpu *v, u32 offset, u32 value)
{
    physmap_store(v->pm, v->vmx->f[VMCS_VIRTUAL_APIC_PAGE_ADDR] + offset, value, 4);
}

/* ---- 256-bit registers: 32 bits every 16 bytes ---- */
static void vector_set(struct vcpu *v, u32 reg, u8 vector, bool on)
{
    u32 offset = reg + vector / 32 * 16, word = vapic_read(v, offset), bit = BIT(vector % 32);
    vapic_write(v, offset, on ? word | bit : word & ~bit);
}
static u8 vector_highest(struct vcpu *v, u32 reg)
{
    for (int n = 7; n >= 0; n--) {
        u32 word = vapic_read(v, reg + (u32)n * 16);
        if (word)
            return (u8)(n * 32 + 31 - __builtin_clz(word));
    }
    return 0;
}

static u8 rvi(const struct vmx *x) { return (u8)F(GUEST_INTR_STATUS); }
static u8 svi(const struct vmx *x) { return (u8)(F(GUEST_INTR_STATUS) >> 8); }
static void set_rvi(struct vmx *x, u8 vector) { F(GUEST_INTR_STATUS) = (F(GUEST_INTR_STATUS) & 0xff00) | vector; }
static void set_svi(struct vmx *x, u8 vector) { F(GUEST_INTR_STATUS) = (F(GUEST_INTR_STATUS) & 0xff) | (u64)vector << 8; }

/* PPR Virtualization */
static void virtualize_ppr(struct vcpu *v)
{
    u8 tpr = (u8)vapic_read(v, APIC_TPR), service = svi(v->vmx);
    vapic_write(v, APIC_PPR, tpr >> 4 >= service >> 4 ? tpr : service & 0xf0u);
}

/* Evaluation of Pending Virtual Interrupts: recognised while RVI outranks VPPR. */
bool vapic_interrupt_pending(const struct vcpu *v)
{
    const struct vmx *x = v->vmx;
    if (!sec_ctl(x, SEC_VIRTUAL_INTERRUPT_DELIVERY))
        return false;
    return rvi(x) >> 4 > (physmap_load(v->pm, F(VIRTUAL_APIC_PAGE_ADDR) + APIC_PPR, 1) & 0xff) >> 4;
}

void vapic_evaluate(struct vcpu *v)
{
    virtualize_ppr(v);
    if (vapic_interrupt_pending(v))
        cpu_attention(v, ATT_VIRT);
}

/* TPR Virtualization */
void vapic_tpr_written(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    if (sec_ctl(x, SEC_VIRTUAL_INTERRUPT_DELIVERY)) {
        vapic_evaluate(v);
    } else if ((vapic_read(v, APIC_TPR) >> 4 & 0xf) < (F(TPR_THRESHOLD) & 0xf)) {
        x->pending_tpr = true;
        cpu_attention(v, ATT_VIRT);
    }
}

/* EOI Virtualization */
static void virtualize_eoi(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    u8 vector = svi(x);
    vector_set(v, APIC_ISR, vector, false);
    set_svi(x, vector_highest(v, APIC_ISR));
    virtualize_ppr(v);
    if (x->f[VMCS_EOI_EXIT_BITMAP0 + vector / 64] >> (vector % 64) & 1) {
        x->pending_eoi = true;
        x->eoi_vector = vector;
        cpu_attention(v, ATT_VIRT);
    } else if (vapic_interrupt_pending(v)) {
        cpu_attention(v, ATT_VIRT);
    }
}

/* Self-IPI Virtualization */
static void virtualize_self_ipi(struct vcpu *v, u8 vector)
{
    struct vmx *x = v->vmx;
    vector_set(v, APIC_IRR, vector, true);
    if (vector > rvi(x))
        set_rvi(x, vector);
    if (vapic_interrupt_pending(v))
        cpu_attention(v, ATT_VIRT);
}

/* Sets @bits in a word of a posted-interrupt descriptor, as others do at the same time; returns what was there. */
static u64 descriptor_set(struct vcpu *v, pa_t pa, u64 bits)
{
    u64 old;
    do
        old = physmap_load(v->pm, pa, 8);
    while ((old & bits) != bits && physmap_ram(v->pm, pa) && !physmap_cmpxchg(v->pm, pa, old, old | bits, 8));
    return old;
}

/* IPI Virtualization: posts @vector for the virtual processor @id. False: the hypervisor has to do it. */
static bool virtualize_ipi(struct vcpu *v, u8 vector, u32 id)
{
    enum { ON = BIT(0), SN = BIT(1) };
    struct vmx *x = v->vmx;
    if (vector < 16 || id > F(LAST_PID_POINTER_INDEX))
        return false;
    u64 pointer = physmap_load(v->pm, F(PID_POINTER_TABLE) + 8ull * id, 8), descriptor = pointer & ~1ull;
    if ((pointer & 0x3f) != 1 || pointer >> v->maxphyaddr)
        return false;
    descriptor_set(v, descriptor + vector / 64 * 8, BIT64(vector % 64));
    u64 control = physmap_load(v->pm, descriptor + 32, 8);
    if (!(control & (ON | SN)) && !((control = descriptor_set(v, descriptor + 32, ON)) & ON) && v->intc_ops->ipi)
        v->intc_ops->ipi(v->intc, (u32)(control >> 32), (u8)(control >> 16));
    return true;
}

/* A fixed, edge-triggered IPI to one physical destination, with no reserved bit set. */
static bool is_plain_ipi(const struct vmx *x, u32 icr)
{
    return ter_ctl(x, TER_IPI_VIRTUALIZATION) && !(icr & 0xfff3a700) && !(icr & (BITS64(19, 18) | BITS64(12, 11)));
}

/* Virtual-Interrupt Delivery */
int vapic_take(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    u8 vector = rvi(x);
    vector_set(v, APIC_ISR, vector, true);
    set_svi(x, vector);
    vapic_write(v, APIC_PPR, vector & 0xf0);
    vector_set(v, APIC_IRR, vector, false);
    set_rvi(x, vector_highest(v, APIC_IRR));
    return vector;
}

/* Posted-Interrupt Processing. The notification has been acknowledged at the APIC. */
bool vapic_post(struct vcpu *v, u8 vector)
{
    struct vmx *x = v->vmx;
    if (vector != (F(POSTED_INTR_NV) & 0xff))
        return false;
    pa_t descriptor = F(POSTED_INTR_DESC_ADDR);
    u64 control;
    do
        control = physmap_load(v->pm, descriptor + 32, 8);
    while (control & 1 && physmap_ram(v->pm, descriptor) && !physmap_cmpxchg(v->pm, descriptor + 32, control, control & ~1ull, 8));
    /* EOI, in whichever mode the APIC is. */
    if (v->apic_page != ~0ull)
        v->intc_ops->mmio_write(v->intc, APIC_EOI, 0, 4);
    else
        v->intc_ops->wrmsr(v->intc, 0x80b, 0);
    for (unsigned n = 0; n < 4; n++) {
        u64 requests;
        do
            requests = physmap_load(v->pm, descriptor + 8 * n, 8);
        while (requests && physmap_ram(v->pm, descriptor) && !physmap_cmpxchg(v->pm, descriptor + 8 * n, requests, 0, 8));
        for (; requests; requests &= requests - 1) {
            u8 posted = (u8)(n * 64 + (unsigned)__builtin_ctzll(requests));
            vector_set(v, APIC_IRR, posted, true);
            if (posted > rvi(x))
                set_rvi(x, posted);
        }
    }
    vapic_evaluate(v);
    return true;
}

/* ---- accesses to the APIC-access page ---- */
static bool register_in(u32 offset, const u16 *list, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (list[i] == (offset & 0xff0))
            return true;
    return false;
}

/* Virtualizing Reads from the APIC-Access Page */
static bool read_virtualized(const struct vmx *x, u32 offset)
{
    static const u16 registers[] = { APIC_ID, APIC_VERSION, APIC_TPR, APIC_EOI, APIC_LDR, APIC_DFR, APIC_SVR, APIC_ESR, APIC_ICR,
                                     APIC_ICR_HIGH, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x3e0 };
    if (!sec_ctl(x, SEC_APIC_REGISTER_VIRTUALIZATION))
        return (offset & 0xff0) == APIC_TPR;
    return (offset >= APIC_ISR && offset < APIC_ESR) || register_in(offset, registers, ARRAY_SIZE(registers));
}

/* Virtualizing Writes to the APIC-Access Page */
static bool write_virtualized(const struct vmx *x, u32 offset)
{
    static const u16 registers[] = { APIC_ID, APIC_TPR, APIC_EOI, APIC_LDR, APIC_DFR, APIC_SVR, APIC_ESR, APIC_ICR, APIC_ICR_HIGH,
                                     0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x3e0 };
    if (sec_ctl(x, SEC_APIC_REGISTER_VIRTUALIZATION))
        return register_in(offset, registers, ARRAY_SIZE(registers));
    if ((offset & 0xff0) == APIC_TPR)
        return true;
    if (ter_ctl(x, TER_IPI_VIRTUALIZATION) && (offset & 0xff0) == APIC_ICR)
        return true;
    return sec_ctl(x, SEC_VIRTUAL_INTERRUPT_DELIVERY) && ((offset & 0xff0) == APIC_EOI || (offset & 0xff0) == APIC_ICR);
}

/* A fixed, edge-triggered self-IPI of a legal vector, with no reserved bit set. */
static bool is_self_ipi(u32 icr)
{
    return !(icr & 0xfff3a700) && (icr >> 18 & 3) == 1 && !(icr & BIT(12)) && icr >> 4 & 0xf;
}

/* APIC-Write Emulation: the value is on the page already. */
static void write_emulation(struct vcpu *v, u32 offset)
{
    struct vmx *x = v->vmx;
    bool vid = sec_ctl(x, SEC_VIRTUAL_INTERRUPT_DELIVERY);
    switch (offset & 0xff0) {
    case APIC_TPR:
        vapic_write(v, APIC_TPR, vapic_read(v, APIC_TPR) & 0xff);
        vapic_tpr_written(v);
        return;
    case APIC_EOI:
        if (!vid)
            break;
        vapic_write(v, APIC_EOI, 0);
        virtualize_eoi(v);
        return;
    case APIC_ICR: {
        u32 icr = vapic_read(v, APIC_ICR);
        if (vid && is_self_ipi(icr)) {
            virtualize_self_ipi(v, (u8)icr);
            return;
        }
        if (is_plain_ipi(x, icr) && virtualize_ipi(v, (u8)icr, vapic_read(v, APIC_ICR_HIGH) >> 24))
            return;
        break;
    }
    case APIC_ICR_HIGH:
        vapic_write(v, APIC_ICR_HIGH, vapic_read(v, APIC_ICR_HIGH) & 0xff000000);
        return;
    default:
        break;
    }
    x->pending_apic_write = true;
    x->apic_write_offset = (u16)(offset & 0xff0);
    cpu_attention(v, ATT_VIRT);
}

bool vmx_hook_apic_access(struct vcpu *v, u32 offset, bool write, unsigned size, u64 *value, u32 access, gva_t la)
{
    struct vmx *x = v->vmx;
    bool contained = size <= 4 && (offset & 0xf) + size <= 4;
    if (pri_ctl(x, PRI_TPR_SHADOW) && contained && !(access & ACCESS_EXEC)
        && (write ? write_virtualized(x, offset) : read_virtualized(x, offset))) {
        pa_t pa = F(VIRTUAL_APIC_PAGE_ADDR) + offset;
        if (!write) {
            *value = 0;
            physmap_read(v->pm, pa, value, size);
        } else {
            physmap_write(v->pm, pa, value, size);
            write_emulation(v, offset);
        }
        return true;
    }
    /* "Exit Qualification for APIC-Access VM Exits from Linear Accesses" */
    u64 kind = v->delivering.valid ? 3 : access & ACCESS_EXEC ? 2 : write ? 1 : 0;
    struct vmx_exit e = { .reason = EXIT_REASON_APIC_ACCESS, .qualification = (offset & 0xfff) | kind << 12, .keeps_rf = true,
                          .sets_rf = true, .linear = la, .has_linear = true };
    if (kind < 2 && v->insn)
        e.insn_len = v->insn->len;
    vmx_exit(v, &e);
}

/* ---- MSRs: x2APIC registers and the TSC ---- */
bool vmx_hook_rdmsr(struct vcpu *v, u32 msr, u64 *value)
{
    struct vmx *x = v->vmx;
    if (msr == 0x10) {
        *value = vmx_hook_tsc(v, cpu_tsc(v));
        return true;
    }
    if (msr >> 8 != 8 || !sec_ctl(x, SEC_VIRTUALIZE_X2APIC_MODE))
        return false;
    u32 offset = (msr & 0xff) << 4;
    if (offset != APIC_TPR && !sec_ctl(x, SEC_APIC_REGISTER_VIRTUALIZATION))
        return false;
    *value = physmap_load(v->pm, F(VIRTUAL_APIC_PAGE_ADDR) + offset, 8);
    return true;
}

/* "Virtualizing MSR-Based APIC Accesses" */
bool vmx_hook_wrmsr(struct vcpu *v, u32 msr, u64 value)
{
    struct vmx *x = v->vmx;
    if (msr >> 8 != 8 || !sec_ctl(x, SEC_VIRTUALIZE_X2APIC_MODE))
        return false;
    bool vid = sec_ctl(x, SEC_VIRTUAL_INTERRUPT_DELIVERY);
    switch ((msr & 0xff) << 4) {
    case APIC_TPR:
        if (value >> 8)
            cpu_gp0(v);
        vapic_write(v, APIC_TPR, (u32)value);
        vapic_write(v, APIC_TPR + 4, 0);
        vapic_tpr_written(v);
        return true;
    case APIC_EOI:
        if (!vid)
            return false;
        if (value)
            cpu_gp0(v);
        vapic_write(v, APIC_EOI, 0);
        vapic_write(v, APIC_EOI + 4, 0);
        virtualize_eoi(v);
        return true;
    case APIC_ICR:
        if (!ter_ctl(x, TER_IPI_VIRTUALIZATION))
            return false;
        if (value & X2APIC_ICR_RESERVED)
            cpu_gp0(v);
        vapic_write(v, APIC_ICR, (u32)value);
        vapic_write(v, APIC_ICR + 4, (u32)(value >> 32));
        if (!is_plain_ipi(x, (u32)value) || !virtualize_ipi(v, (u8)value, (u32)(value >> 32))) {
            x->pending_apic_write = true;
            x->apic_write_offset = APIC_ICR;
            cpu_attention(v, ATT_VIRT);
        }
        return true;
    case APIC_SELF_IPI:
        if (!vid)
            return false;
        if (value >> 8)
            cpu_gp0(v);
        vapic_write(v, APIC_SELF_IPI, (u32)value);
        vapic_write(v, APIC_SELF_IPI + 4, 0);
        if (value >> 4) {
            virtualize_self_ipi(v, (u8)value);
        } else {
            x->pending_apic_write = true;
            x->apic_write_offset = APIC_SELF_IPI;
            cpu_attention(v, ATT_VIRT);
        }
        return true;
    default:
        return false;
    }
}
