/*
 * Events in SVM guest mode: exceptions, interrupts physical and virtual, faults of nested paging; and
 * the table of hooks.
 */
#include "devices/irq.h"
#include "svm/svm.h"

#include <stdlib.h>

#define F(name) (x->f[VMCB_##name])

/* ---- "Exception Intercepts" ---- */
static void hook_exception(struct vcpu *v, const struct event *ev)
{
    struct svm *x = v->svm;
    x->write_trap = 0;
    /* INT1 dispatches through vector 1 but has an intercept of its own. */
    if (ev->type == EV_PRIV_SOFT_EXC || ev->vector > 31 || !svm_intercepts(x, SVM_EXIT_EXCP0 + ev->vector))
        return;
    bool software = ev->type == EV_SOFT_EXC;
    struct svm_exit e = {.code = SVM_EXIT_EXCP0 + ev->vector, .info1 = ev->has_error ? ev->error : 0,
                         .next_rip = software || ev->vector == VEC_BR};
    if (ev->vector == VEC_PF && !software) {
        e.info2 = ev->payload;
        e.insn_bytes = !(ev->error & BIT(4)); /* not for a fetch */
    } else if (ev->vector == VEC_DB) {
        /* DR6 and DR7 as a handler would see them. */
        v->dr6 = (v->dr6 & ~0xfull) | DR6_FIXED | (ev->payload & (0xf | DR6_BD | DR6_BS | DR6_BT));
        v->dr7 &= ~DR7_GD;
    }
    svm_exit(v, &e);
}

static void hook_double_fault(struct vcpu *v, const struct event *first)
{
    if (!svm_intercepts(v->svm, SVM_EXIT_EXCP0 + VEC_DF))
        return;
    struct svm_exit e = {.code = SVM_EXIT_EXCP0 + VEC_DF, .no_vectoring = true};
    svm_exit(v, &e);
}

static void hook_triple_fault(struct vcpu *v)
{
    struct svm_exit e = {.code = SVM_EXIT_SHUTDOWN, .no_vectoring = true};
    if (svm_intercepts(v->svm, SVM_EXIT_SHUTDOWN))
        svm_exit(v, &e);
    /* The processor shuts down, not the guest. */
    v->guest_mode = false;
    v->virt = NULL;
    mmu_set_guest(v, &(const struct slat){.kind = SLAT_NONE}, 0);
}

/* ---- "Interrupt Intercepts" ---- */
static void __attribute__((noreturn)) event_exit(struct vcpu *v, u64 code)
{
    struct svm_exit e = {.code = code};
    svm_exit(v, &e);
}

/* What is intercepted stays pending and is taken by the host, once it sets GIF. */
static void hook_init(struct vcpu *v)
{
    if (!svm_intercepts(v->svm, SVM_EXIT_INIT))
        return;
    vcpu_request(v, REQ_INIT);
    event_exit(v, SVM_EXIT_INIT);
}

static void hook_sipi(struct vcpu *v, u8 vector) {}

static void hook_nmi(struct vcpu *v)
{
    if (!svm_intercepts(v->svm, SVM_EXIT_NMI))
        return;
    v->nmi_pending = true;
    event_exit(v, SVM_EXIT_NMI);
}

static void hook_smi(struct vcpu *v)
{
    if (svm_intercepts(v->svm, SVM_EXIT_SMI))
        event_exit(v, SVM_EXIT_SMI);
}

static void hook_external_interrupt(struct vcpu *v)
{
    if (svm_intercepts(v->svm, SVM_EXIT_INTR))
        event_exit(v, SVM_EXIT_INTR);
}

/* "Interrupt Masking in EFLAGS.IF and TPR": with V_INTR_MASKING the host's IF counts. The shadow of a
 * guest instruction does not hold back an exit. */
static bool hook_interrupt_enabled(struct vcpu *v, bool shadow)
{
    const struct svm *x = v->svm;
    u64 flags = F(INT_CTL) & V_INTR_MASKING ? x->host.rflags : v->rflags;
    return flags & FL_IF && (!shadow || svm_intercepts(x, SVM_EXIT_INTR));
}

static bool hook_nmi_enabled(struct vcpu *v) { return !v->nmi_blocked; }
static void hook_nmi_delivered(struct vcpu *v) { v->nmi_blocked = true; }

static void hook_iret(struct vcpu *v)
{
    struct svm *x = v->svm;
    if (x->vnmi)
        F(INT_CTL) &= ~V_NMI_MASK;
    else
        v->nmi_blocked = false;
    cpu_attention(v, ATT_VIRT);
}

/* ---- between two instructions: virtual NMI and virtual interrupt ---- */
static bool physical_waits(struct vcpu *v)
{
    u32 req = atomic_load_explicit(&v->requests, memory_order_acquire);
    if (!v->gif)
        return false;
    if ((v->nmi_pending || req & REQ_NMI) && hook_nmi_enabled(v))
        return true;
    return req & REQ_INTR && v->intc_ops && v->intc_ops->peek(v->intc) >= 0 && hook_interrupt_enabled(v, v->shadow != 0);
}

/* "Virtual Interrupts": pending, and above V_TPR. */
static bool virtual_interrupt(const struct vcpu *v)
{
    const struct svm *x = v->svm;
    u64 ctl = F(INT_CTL);
    return ctl & V_IRQ && (ctl & V_IGN_TPR || V_INTR_PRIO(ctl) > (ctl & V_TPR)) && svm_guest_gif(v);
}

static bool virtual_nmi(const struct vcpu *v)
{
    const struct svm *x = v->svm;
    return x->vnmi && (F(INT_CTL) & (V_NMI | V_NMI_MASK)) == V_NMI && svm_guest_gif(v);
}

static void deliver(struct vcpu *v, unsigned type, u8 vector)
{
    struct event ev = {.valid = true, .type = (u8)type, .vector = vector};
    v->activity = ACTIVITY_ACTIVE;
    cpu_deliver(v, &ev);
}

static void hook_boundary(struct vcpu *v)
{
    struct svm *x = v->svm;
    if (unlikely(x->write_trap))
        svm_write_trap_exit(v);
    if (cpu_trap_pending(v))
        return; /* called again after the trap */
    bool watch = false, awake = v->activity != ACTIVITY_SHUTDOWN && v->activity != ACTIVITY_WAIT_SIPI;
    /* Physical events first: the core takes them after this. */
    if (awake && virtual_nmi(v)) {
        watch = true;
        if (!v->shadow && !physical_waits(v)) {
            F(INT_CTL) = (F(INT_CTL) & ~V_NMI) | V_NMI_MASK;
            deliver(v, EV_NMI, VEC_NMI);
        }
    }
    /* IF becoming 1 sets ATT_VIRT (cpu_rearm); so do STGI and writes of CR8. */
    if (awake && virtual_interrupt(v) && v->rflags & FL_IF) {
        watch = true;
        if (!v->shadow && !physical_waits(v)) {
            if (svm_intercepts(x, SVM_EXIT_VINTR))
                event_exit(v, SVM_EXIT_VINTR);
            F(INT_CTL) &= ~V_IRQ;
            watch = false;
            deliver(v, EV_EXTINT, (u8)F(INT_VECTOR));
        }
    }
    if (!watch)
        atomic_fetch_and_explicit(&v->attention, ~(u32)ATT_VIRT, memory_order_relaxed);
}

/* ---- "Task Switch Intercept" ---- */
static void hook_task_switch(struct vcpu *v, u16 selector, unsigned source, const struct insn *i)
{
    const struct event *d = &v->delivering;
    if (!svm_intercepts(v->svm, SVM_EXIT_TASK_SWITCH))
        return;
    struct svm_exit e = {.code = SVM_EXIT_TASK_SWITCH, .info1 = selector};
    if (source == TASK_IRET)
        e.info2 |= BIT64(36);
    if (source == TASK_JMP)
        e.info2 |= BIT64(38);
    if (source == TASK_GATE && d->valid && d->has_error)
        e.info2 |= BIT64(44) | d->error;
    if (v->rflags & FL_RF)
        e.info2 |= BIT64(48);
    svm_exit(v, &e);
}

/* ---- "Nested Page Faults" ---- */
void svm_hook_slat_fault(struct vcpu *v, gva_t la, u32 access, const struct walk *w)
{
    struct svm_exit e = {.code = SVM_EXIT_NPF, .info1 = w->error_code | w->error_hi << 32, .info2 = w->gpa,
                         .insn_bytes = !(access & ACCESS_EXEC)};
    svm_exit(v, &e);
}

/* ---- the table of hooks. There is no APIC-access page: virt_apic_page stays unset ---- */
const struct virt_ops svm_virt_ops = {
    .name = "SVM",
    .insn = svm_hook_insn,
    .io = svm_hook_io,
    .msr = svm_hook_msr,
    .cr_read = svm_hook_cr_read,
    .cr_write = svm_hook_cr_write,
    .clts = svm_hook_clts,
    .lmsw = svm_hook_lmsw,
    .smsw = svm_hook_smsw,
    .dr = svm_hook_dr,
    .rdmsr = svm_hook_rdmsr,
    .wrmsr = svm_hook_wrmsr,
    .tsc = svm_hook_tsc,
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
    .boundary = hook_boundary,
    .task_switch = hook_task_switch,
    .slat_fault = svm_hook_slat_fault,
};

/* ---- life ---- */
struct svm *svm_new(struct vcpu *v)
{
    return v->svm = calloc(1, sizeof(struct svm));
}

void svm_free(struct vcpu *v)
{
    free(v->svm);
    v->svm = NULL;
}

void svm_reset(struct vcpu *v)
{
    if (v->svm)
        v->svm->cached = false;
}

const struct svm_stats *svm_stats(const struct vcpu *v) { return v->svm ? &v->svm->stats : NULL; }
