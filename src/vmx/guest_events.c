/*
 * Events in VMX non-root operation: exceptions, interrupts, what VM entry and the controls make
 * pending between two instructions, and faults of EPT.
 */
#include "devices/irq.h"
#include "vmx/vmx.h"

#include <stdlib.h>

#define F(name) (x->f[VMCS_##name])

/* ---- exceptions (SDM "Other Causes of VM Exits") ---- */
static bool exception_exits(const struct vmx *x, const struct event *ev)
{
    bool bit = F(EXCEPTION_BITMAP) >> (ev->vector & 31) & 1;
    if (ev->vector != VEC_PF)
        return bit;
    bool match = (ev->error & F(PAGE_FAULT_ERROR_CODE_MASK)) == F(PAGE_FAULT_ERROR_CODE_MATCH);
    return match ? bit : !bit;
}

static void hook_exception(struct vcpu *v, const struct event *ev)
{
    if (!exception_exits(v->vmx, ev))
        return;
    bool software = ev->type == EV_SOFT_EXC || ev->type == EV_PRIV_SOFT_EXC;
    struct vmx_exit e = { .reason = EXIT_REASON_EXCEPTION_NMI, .intr_info = vmx_intr_info(ev->type, ev->vector, ev->has_error),
                          .intr_error = ev->error, .keeps_rf = true };
    if (ev->vector == VEC_PF || ev->vector == VEC_DB)
        e.qualification = ev->payload;
    if (software)
        e.insn_len = ev->insn_len;
    /* RF as it would be pushed: set by faults other than #DB. */
    e.sets_rf = !software && ev->vector != VEC_DB;
    vmx_exit(v, &e);
}

static void hook_double_fault(struct vcpu *v, const struct event *first)
{
    struct vmx *x = v->vmx;
    if (!(F(EXCEPTION_BITMAP) & BIT64(VEC_DF)))
        return;
    struct vmx_exit e = { .reason = EXIT_REASON_EXCEPTION_NMI, .intr_info = vmx_intr_info(EV_HARD_EXC, VEC_DF, true),
                          .keeps_rf = true, .no_vectoring = true };
    vmx_exit(v, &e);
}

static void hook_triple_fault(struct vcpu *v)
{
    struct vmx_exit e = { .reason = EXIT_REASON_TRIPLE_FAULT, .keeps_rf = true, .no_vectoring = true };
    vmx_exit(v, &e);
}

static void __attribute__((noreturn)) event_exit(struct vcpu *v, u32 reason, u64 qualification)
{
    struct vmx_exit e = { .reason = reason, .qualification = qualification, .keeps_rf = true };
    vmx_exit(v, &e);
}

/* ---- INIT, SIPI, NMI, interrupts ---- */
static void hook_init(struct vcpu *v) { event_exit(v, EXIT_REASON_INIT, 0); }

static void hook_sipi(struct vcpu *v, u8 vector)
{
    if (v->activity == ACTIVITY_WAIT_SIPI)
        event_exit(v, EXIT_REASON_SIPI, vector);
}

static void hook_nmi(struct vcpu *v)
{
    if (!pin_ctl(v->vmx, PIN_NMI_EXITING))
        return;
    struct vmx_exit e = { .reason = EXIT_REASON_EXCEPTION_NMI, .intr_info = vmx_intr_info(EV_NMI, VEC_NMI, false), .keeps_rf = true };
    vmx_exit(v, &e);
}

static void hook_smi(struct vcpu *v) {} /* ordinary SMM: no exit without the dual-monitor treatment */

static void hook_external_interrupt(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    if (!pin_ctl(x, PIN_EXTERNAL_INTERRUPT_EXITING))
        return;
    struct vmx_exit e = { .reason = EXIT_REASON_EXTERNAL_INTERRUPT, .keeps_rf = true };
    if (exit_ctl(x, EXIT_ACK_INTERRUPT)) {
        int vector = v->intc_ops->ack(v->intc);
        if (vector < 0)
            cpu_unwind(v, UNWIND_RETRY); /* withdrawn before it was acknowledged */
        if (pin_ctl(x, PIN_POSTED_INTERRUPTS) && vapic_post(v, (u8)vector)) {
            cpu_attention(v, ATT_VIRT);
            cpu_unwind(v, UNWIND_RETRY);
        }
        e.intr_info = vmx_intr_info(EV_EXTINT, (unsigned)vector, false);
    }
    vmx_exit(v, &e);
}

/* With external-interrupt exiting RFLAGS.IF does not matter; interrupt shadows still cover one instruction. */
static bool hook_interrupt_enabled(struct vcpu *v, bool shadow)
{
    return !shadow && (pin_ctl(v->vmx, PIN_EXTERNAL_INTERRUPT_EXITING) || v->rflags & FL_IF);
}

static bool hook_nmi_enabled(struct vcpu *v) { return !v->nmi_blocked && !(v->shadow & SHADOW_MOVSS); }
static void hook_nmi_delivered(struct vcpu *v) { v->nmi_blocked = true; }

/* IRET (SDM "Changes to Instruction Behavior in VMX Non-Root Operation"). */
static void hook_iret(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    x->iret_unblocked = pin_ctl(x, PIN_VIRTUAL_NMIS) ? x->virtual_nmi_blocked : !pin_ctl(x, PIN_NMI_EXITING) && v->nmi_blocked;
    if (!pin_ctl(x, PIN_NMI_EXITING))
        v->nmi_blocked = false;
    x->virtual_nmi_blocked = false;
    /* The boundary after it forgets iret_unblocked, and an NMI window may have opened. */
    cpu_attention(v, ATT_VIRT);
}

/* ---- between two instructions ---- */
/* Has anything run or been delivered since the VM entry? A REP string instruction that has done an
 * iteration has moved RCX. */
static bool progressed(const struct vcpu *v)
{
    const struct vmx *x = v->vmx;
    return x->entry_vectored || (x->marked && (v->icount != x->mark_icount || v->rip != x->mark_rip || v->gpr[RCX] != x->mark_rcx));
}

static bool nmi_waits(struct vcpu *v)
{
    return (v->nmi_pending || atomic_load_explicit(&v->requests, memory_order_acquire) & REQ_NMI) && hook_nmi_enabled(v);
}

/*
 * In order of priority: trap-like exits of APIC virtualization (they belong to the instruction that
 * ended), monitor trap flag, (debug traps,) preemption timer, NMI window, interrupt window, virtual interrupt.
 * @watch: something can become due without another hook noticing.
 */
void vmx_hook_boundary(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    bool watch = false;

    x->iret_unblocked = false;
    if (x->pending_flush_trap)
        event_exit(v, EXIT_REASON_TRAP_AFTER_FLUSH, 0);
    if (x->pending_eoi)
        event_exit(v, EXIT_REASON_VIRTUALIZED_EOI, x->eoi_vector);
    if (x->pending_apic_write)
        event_exit(v, EXIT_REASON_APIC_WRITE, x->apic_write_offset);
    if (x->pending_tpr)
        event_exit(v, EXIT_REASON_TPR_BELOW_THRESHOLD, 0);

    if (x->mtf_event)
        event_exit(v, EXIT_REASON_MONITOR_TRAP_FLAG, 0);
    if (pri_ctl(x, PRI_MONITOR_TRAP_FLAG)) {
        if (progressed(v))
            event_exit(v, EXIT_REASON_MONITOR_TRAP_FLAG, 0);
        x->marked = true;
        x->mark_icount = v->icount;
        x->mark_rip = v->rip;
        x->mark_rcx = v->gpr[RCX];
        watch = true;
    }
    /* Debug traps on the previous instruction come next; the core delivers them. */
    if (v->pending_dbg && !(v->shadow & SHADOW_MOVSS))
        return;

    if (pin_ctl(x, PIN_PREEMPTION_TIMER) && v->activity != ACTIVITY_WAIT_SIPI) {
        if (cpu_tsc(v) >> VMX_MISC_TIMER_SHIFT >= x->timer_end)
            event_exit(v, EXIT_REASON_PREEMPTION_TIMER, 0);
        if (!x->timer.armed) /* it fired early by a rounding error */
            timer_arm(&x->timer, cpu_tsc_to_ns(v, x->timer_end << VMX_MISC_TIMER_SHIFT) + 1);
    }

    if (pri_ctl(x, PRI_NMI_WINDOW_EXITING) && v->activity != ACTIVITY_WAIT_SIPI && !x->virtual_nmi_blocked) {
        if (!(v->shadow & SHADOW_MOVSS))
            event_exit(v, EXIT_REASON_NMI_WINDOW, 0);
        watch = true;
    }

    bool awake = v->activity == ACTIVITY_ACTIVE || v->activity == ACTIVITY_HLT || v->activity == ACTIVITY_MWAIT;
    bool window = pri_ctl(x, PRI_INTERRUPT_WINDOW_EXITING), virtual_interrupt = vapic_interrupt_pending(v);
    if ((window || virtual_interrupt) && awake && v->rflags & FL_IF) { /* IF becoming 1 sets ATT_VIRT (cpu_rearm) */
        watch = true;
        /* An NMI that can be taken goes first. */
        if (!v->shadow && !nmi_waits(v)) {
            if (window)
                event_exit(v, EXIT_REASON_INTERRUPT_WINDOW, 0);
            struct event ev = { .valid = true, .type = EV_EXTINT, .vector = (u8)vapic_take(v) };
            v->activity = ACTIVITY_ACTIVE;
            cpu_deliver(v, &ev);
            watch = vapic_interrupt_pending(v);
        }
    }
    if (!watch)
        atomic_fetch_and_explicit(&v->attention, ~(u32)ATT_VIRT, memory_order_relaxed);
}

/* ---- task switches ---- */
static void hook_task_switch(struct vcpu *v, u16 selector, unsigned source, const struct insn *i)
{
    struct vmx_exit e = { .reason = EXIT_REASON_TASK_SWITCH, .qualification = selector | (u64)source << 30, .keeps_rf = true };
    if (source != TASK_GATE && i)
        e.insn_len = i->len;
    vmx_exit(v, &e);
}

/* ---- EPT ---- */
/* Length of the instruction whose data access or page walk faults; unknown for a fetch. */
static u32 accessing_length(const struct vcpu *v, u32 access)
{
    return !(access & ACCESS_EXEC) && v->insn && !v->delivering.valid ? v->insn->len : 0;
}

/* "Convertible EPT Violations": delivered as #VE where the tables allow it. */
static void virtualization_exception(struct vcpu *v, gva_t la, const struct walk *w)
{
    struct vmx *x = v->vmx;
    struct {
        u32 reason, busy;
        u64 qualification, linear, physical;
        u16 eptp_index;
    } __attribute__((packed)) info;
    if (!sec_ctl(x, SEC_EPT_VIOLATION_VE) || w->suppress_ve || !(v->cr0 & CR0_PE) || v->delivering.valid)
        return;
    pa_t area = F(VE_INFORMATION_ADDRESS);
    if (physmap_load(v->pm, area + 4, 4))
        return;
    info.reason = EXIT_REASON_EPT_VIOLATION;
    info.busy = 0xffffffff;
    info.qualification = w->qualification;
    info.linear = la;
    info.physical = w->gpa;
    info.eptp_index = (u16)F(EPTP_INDEX);
    physmap_write(v->pm, area, &info, sizeof(info));
    cpu_raise(v, VEC_VE);
}

void vmx_hook_slat_fault(struct vcpu *v, gva_t la, u32 access, const struct walk *w)
{
    struct vmx_exit e = { .reason = EXIT_REASON_EPT_MISCONFIG, .physical = w->gpa, .has_physical = true, .keeps_rf = true,
                          .sets_rf = true, .insn_len = accessing_length(v, access) };
    if (w->fault == WALK_EPT_VIOLATION) {
        virtualization_exception(v, la, w);
        e.reason = EXIT_REASON_EPT_VIOLATION;
        e.qualification = w->qualification;
        e.linear = la;
        e.has_linear = w->qualification & BIT64(7);
    } else if (w->fault == WALK_PML_FULL) {
        e.reason = EXIT_REASON_PML_FULL;
    }
    vmx_exit(v, &e);
}

/* ---- the table of hooks ---- */
const struct virt_ops vmx_virt_ops = {
    .name = "VMX",
    .insn = vmx_hook_insn,
    .io = vmx_hook_io,
    .msr = vmx_hook_msr,
    .cr_read = vmx_hook_cr_read,
    .cr_write = vmx_hook_cr_write,
    .clts = vmx_hook_clts,
    .lmsw = vmx_hook_lmsw,
    .smsw = vmx_hook_smsw,
    .dr = vmx_hook_dr,
    .rdmsr = vmx_hook_rdmsr,
    .wrmsr = vmx_hook_wrmsr,
    .tsc = vmx_hook_tsc,
    .exception = hook_exception,
    .double_fault = hook_double_fault,
    .triple_fault = hook_triple_fault,
    .init = hook_init,
    .sipi = hook_sipi,
    .nmi = hook_nmi,
    .smi = hook_smi,
    .external_interrupt = hook_external_interrupt,
    .interrupt_enabled = hook_interrupt_enabled,
    .nmi_enabled = hook_nmi_enabled,
    .nmi_delivered = hook_nmi_delivered,
    .iret = hook_iret,
    .boundary = vmx_hook_boundary,
    .task_switch = hook_task_switch,
    .slat_fault = vmx_hook_slat_fault,
    .apic_access = vmx_hook_apic_access,
};

/* ---- life ---- */
static void timer_fired(void *opaque)
{
    struct vcpu *v = opaque;
    if (v->guest_mode) {
        cpu_attention(v, ATT_VIRT);
        vcpu_kick(v);
    }
}

struct vmx *vmx_new(struct vcpu *v)
{
    struct vmx *x = calloc(1, sizeof(*x));
    if (!x)
        return NULL;
    x->v = v;
    vmx_caps_init(&x->caps, v);
    vmx_caps_evmcs(&x->evmcs_caps, &x->caps);
    vmx_caps_apply(v, &x->caps);
    x->current = x->shadow_vmcs = VMX_NO_VMCS;
    timer_init(&x->timer, v->clock, timer_fired, v);
    v->vmx = x;
    return x;
}

void vmx_free(struct vcpu *v)
{
    if (!v->vmx)
        return;
    timer_cancel(&v->vmx->timer);
    free(v->vmx);
    v->vmx = NULL;
}

void vmx_reset(struct vcpu *v)
{
    if (!v->vmx)
        return;
    timer_cancel(&v->vmx->timer);
    v->vmx->current = VMX_NO_VMCS;
    v->vmx->enlightened = false;
}

const struct vmx_stats *vmx_stats(const struct vcpu *v) { return v->vmx ? &v->vmx->stats : NULL; }
