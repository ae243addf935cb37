/*
 * VM entry (SDM "VM Entries"): snapshot, checks, load, inject. Nothing has changed when a check of
 * the controls or the host area says no; a check of the guest area ends as a VM exit (exit.c).
 */
#include "cpu/exit_profile.h"
#include "cpu/pmu.h"
#include "vmx/vmx.h"

/* ---- outcomes of VMX instructions (SDM "Conventions": VMsucceed, VMfailInvalid, VMfailValid) ---- */
static void set_arithmetic_flags(struct vcpu *v, u32 flags) { v->aflags = flags; }

void vmx_succeed(struct vcpu *v) { set_arithmetic_flags(v, 0); }
void vmx_fail_invalid(struct vcpu *v)
{
    v->vmx->stats.vmfails++;
    set_arithmetic_flags(v, FL_CF);
}
void vmx_fail_valid(struct vcpu *v, u32 error)
{
    v->vmx->stats.vmfails++;
    v->vmx->f[VMCS_VM_INSTRUCTION_ERROR] = error;
    if (v->vmx->enlightened)
        evmcs_store_error(v);
    set_arithmetic_flags(v, FL_ZF);
}
void vmx_fail(struct vcpu *v, u32 error)
{
    if (v->vmx->current == VMX_NO_VMCS)
        vmx_fail_invalid(v);
    else
        vmx_fail_valid(v, error);
}

/* ---- the snapshot ---- */
static bool within_width(const struct vcpu *v, u64 pa) { return !(pa & (PAGE_SIZE - 1)) && !(pa >> v->maxphyaddr); }

/* The secondary controls in force. */
static u32 secondary(const u64 *f)
{
    return f[VMCS_CPU_BASED_VM_EXEC_CONTROL] & BIT(PRI_SECONDARY_CONTROLS) ? (u32)f[VMCS_SECONDARY_VM_EXEC_CONTROL] : 0;
}

void vmx_take_snapshot(struct vcpu *v, struct vmx_snapshot *s)
{
    struct vmx *x = v->vmx;
    const u64 *f = x->f;
    memset(s, 0, sizeof(*s));
    s->f = f;
    s->caps = vmx_caps_now(x);
    s->maxphyaddr = v->maxphyaddr;
    s->linear_width = v->linear_width;
    s->lma = cpu_lma(v);
    s->efer_reserved = cpu_efer_reserved(v);
    s->pgc_reserved = pmu_global_ctrl_reserved(v);
    s->current_vmcs = x->current;
    /* Each word of memory a rule names is read once; an address that a rule refuses is not followed. */
    if (f[VMCS_CPU_BASED_VM_EXEC_CONTROL] & BIT(PRI_TPR_SHADOW) && within_width(v, f[VMCS_VIRTUAL_APIC_PAGE_ADDR]))
        s->vtpr = (u8)vapic_read(v, 0x80);
    if (f[VMCS_VMCS_LINK_POINTER] != ~0ull && within_width(v, f[VMCS_VMCS_LINK_POINTER]))
        vmcs_memory_revision(v, f[VMCS_VMCS_LINK_POINTER], &s->link_word);
    bool pae = f[VMCS_GUEST_CR0] & CR0_PG && f[VMCS_GUEST_CR4] & CR4_PAE && !(f[VMCS_VM_ENTRY_CONTROLS] & BIT(ENTRY_IA32E_GUEST));
    if (pae && !(secondary(f) & BIT(SEC_EPT)) && !(f[VMCS_GUEST_CR3] >> v->maxphyaddr))
        physmap_read(v->pm, f[VMCS_GUEST_CR3] & 0xffffffe0, s->pdpte, sizeof(s->pdpte));
}

static void note_failure(struct vcpu *v, const struct virt_check *c)
{
    v->vmx->last_failure = c;
    log_at(vmentry, "cpu%u VM entry refused by %s: %s (%s, %s)", v->index, c->id, c->rule, c->title, c->section);
    for (unsigned i = 0; log_on(LOG_vmentry) && i < c->nfields; i++) {
        int slot = vmcs_slot(c->fields[i]);
        if (slot >= 0)
            log_line(LOG_vmentry, "    %s = 0x%llx", vmcs_fields[slot].name, (unsigned long long)v->vmx->f[slot]);
    }
}

/* ---- loading the guest state ---- */
/* CR0 bits that VM entry and VM exit load; ET, NW, CD and the reserved bits stay (SDM "Loading Guest
 * Control Registers, Debug Registers, and MSRs"). */
#define CR0_LOADED (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_PG)

static void load_guest_registers(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    const u64 *f = x->f;
    bool ia32e = entry_ctl(x, ENTRY_IA32E_GUEST);

    /* Loading Guest Control Registers, Debug Registers, and MSRs */
    v->cr0 = (v->cr0 & ~CR0_LOADED) | (f[VMCS_GUEST_CR0] & CR0_LOADED) | CR0_ET;
    v->cr3 = f[VMCS_GUEST_CR3];
    v->cr4 = f[VMCS_GUEST_CR4];
    if (entry_ctl(x, ENTRY_LOAD_DEBUG)) {
        v->dr7 = (f[VMCS_GUEST_DR7] & ~(BIT64(12) | BIT64(14) | BIT64(15))) | DR7_FIXED;
        v->debugctl = f[VMCS_GUEST_IA32_DEBUGCTL];
    }
    v->sysenter_cs = f[VMCS_GUEST_SYSENTER_CS];
    v->sysenter_esp = f[VMCS_GUEST_SYSENTER_ESP];
    v->sysenter_eip = f[VMCS_GUEST_SYSENTER_EIP];
    if (entry_ctl(x, ENTRY_LOAD_EFER)) {
        v->efer = f[VMCS_GUEST_IA32_EFER];
    } else {
        u64 bits = EFER_LMA | (v->cr0 & CR0_PG ? EFER_LME : 0);
        v->efer = (v->efer & ~bits) | (ia32e ? bits : 0);
    }
    if (entry_ctl(x, ENTRY_LOAD_PERF_GLOBAL_CTRL))
        pmu_set_global_ctrl(v, f[VMCS_GUEST_IA32_PERF_GLOBAL_CTRL]);
    if (entry_ctl(x, ENTRY_LOAD_PAT))
        v->pat = f[VMCS_GUEST_IA32_PAT];
    if (entry_ctl(x, ENTRY_LOAD_CET)) {
        v->s_cet = f[VMCS_GUEST_S_CET];
        v->ssp = f[VMCS_GUEST_SSP];
        v->int_ssp_table = f[VMCS_GUEST_INTR_SSP_TABLE];
    }
    if (entry_ctl(x, ENTRY_LOAD_PKRS))
        v->pkrs = (u32)f[VMCS_GUEST_IA32_PKRS];

    /* Loading Guest Segment Registers and Descriptor-Table Registers */
    for (unsigned n = 0; n < SEG_COUNT; n++)
        v->seg[n] = (struct segment){ .base = f[VMCS_GUEST_ES_BASE + n], .limit = (u32)f[VMCS_GUEST_ES_LIMIT + n],
                                      .ar = (u32)f[VMCS_GUEST_ES_AR_BYTES + n] & 0x1f0ff,
                                      .sel = (u16)f[VMCS_GUEST_ES_SELECTOR + n] };
    v->gdtr = (struct desc_table){ f[VMCS_GUEST_GDTR_BASE], (u16)f[VMCS_GUEST_GDTR_LIMIT] };
    v->idtr = (struct desc_table){ f[VMCS_GUEST_IDTR_BASE], (u16)f[VMCS_GUEST_IDTR_LIMIT] };

    /* Loading Guest RIP, RSP, RFLAGS, and SSP */
    v->rip = v->next_rip = f[VMCS_GUEST_RIP];
    v->gpr[RSP] = f[VMCS_GUEST_RSP];
    cpu_put_rflags(v, f[VMCS_GUEST_RFLAGS]);
}

/* Loading Page-Directory-Pointer-Table Entries: those the checks have judged. */
static void load_pdptes(struct vcpu *v, const struct vmx_snapshot *s)
{
    if (!(v->cr0 & CR0_PG) || !(v->cr4 & CR4_PAE) || cpu_lma(v))
        return;
    for (unsigned i = 0; i < 4; i++)
        v->pdpte[i] = sec_ctl(v->vmx, SEC_EPT) ? v->vmx->f[VMCS_GUEST_PDPTE0 + i] : s->pdpte[i];
}

struct slat vmx_slat(const struct vcpu *v, u32 sec)
{
    struct vmx *x = v->vmx;
    u64 eptp = x->f[VMCS_EPT_POINTER];
    if (!(sec & BIT(SEC_EPT)))
        return (struct slat){ .kind = SLAT_NONE };
    return (struct slat){ .kind = SLAT_EPT, .levels = (u8)((eptp >> 3 & 7) + 1), .ad = eptp >> 6 & 1,
                          .mbec = sec >> SEC_MODE_BASED_EXECUTE & 1,
                          .exec_only = x->caps.ept_vpid & VMX_EPT_EXEC_ONLY, .huge_1g = x->caps.ept_vpid & VMX_EPT_1G,
                          .huge_2m = x->caps.ept_vpid & VMX_EPT_2M, .advanced_info = x->caps.ept_vpid & VMX_EPT_ADVANCED_INFO,
                          .ve = sec >> SEC_EPT_VIOLATION_VE & 1, .pml = sec >> SEC_PML & 1,
                          .pml_index = (u16 *)&x->f[VMCS_GUEST_PML_INDEX], .pml_address = x->f[VMCS_PML_ADDRESS],
                          .root = eptp & BITS64(v->maxphyaddr - 1, 12), .tag = eptp };
}

void vmx_apply_slat(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    struct slat slat = vmx_slat(v, v->guest_mode ? x->sec : 0);
    mmu_set_guest(v, &slat, v->guest_mode && sec_ctl(x, SEC_VPID) ? (u32)x->f[VMCS_VIRTUAL_PROCESSOR_ID] : 0);
    /* Without VPIDs, linear and combined mappings of VPID 0000H are invalidated at VM entries and VM
     * exits (SDM "Operations that Invalidate Cached Mappings"). */
    if (!sec_ctl(x, SEC_VPID))
        mmu_invvpid(v, false, 0, false, false, 0);
}

/* Loading Guest Non-Register State, Loading Activity State */
static void load_non_register_state(struct vcpu *v, bool vectoring, unsigned inj_type)
{
    struct vmx *x = v->vmx;
    const u64 *f = x->f;
    u32 interruptibility = (u32)f[VMCS_GUEST_INTERRUPTIBILITY_INFO];
    bool nmi_blocked = interruptibility & BIT(3);

    /* With virtual NMIs the bit is virtual-NMI blocking and physical NMIs are not blocked. */
    x->virtual_nmi_blocked = pin_ctl(x, PIN_VIRTUAL_NMIS) && nmi_blocked;
    v->nmi_blocked = !pin_ctl(x, PIN_VIRTUAL_NMIS) && nmi_blocked;

    /* A vectored event ends the inactive state it found. */
    v->activity = vectoring ? ACTIVITY_ACTIVE : (u8)f[VMCS_GUEST_ACTIVITY_STATE];
    v->monitor_armed = false;
    v->shadow = 0;
    if (!vectoring)
        cpu_set_shadow(v, interruptibility & 3);

    /* Delivery of Pending Debug Exceptions after VM Entry: injected events of most types swallow them. */
    v->pending_dbg = 0;
    bool swallowed = vectoring
        && (inj_type == EV_EXTINT || inj_type == EV_NMI || inj_type == EV_HARD_EXC || inj_type == EV_SOFT_EXC
            || !(interruptibility & SHADOW_MOVSS));
    u64 dbg = f[VMCS_GUEST_PENDING_DBG_EXCEPTIONS];
    if (!swallowed && dbg & (DR6_BS | BIT64(12))) {
        v->pending_dbg = dbg & (DR6_BS | 0xf);
        cpu_attention(v, ATT_DEBUG);
    }
}

struct msr_entry {
    u32 index, reserved;
    u64 value;
};

/* Loading MSRs. Returns 0 or the number of the entry that failed, counted from 1. */
static u32 load_msrs(struct vcpu *v, struct vmx_snapshot *s)
{
    struct vmx *x = v->vmx;
    u64 base = x->f[VMCS_VM_ENTRY_MSR_LOAD_ADDR];
    for (u32 n = 0; n < (u32)x->f[VMCS_VM_ENTRY_MSR_LOAD_COUNT]; n++) {
        struct msr_entry e;
        if (n >= VMX_MSR_LIST_MAX)
            return n + 1;
        physmap_read(v->pm, base + 16ull * n, &e, sizeof(e));
        s->msr_index = e.index;
        s->msr_reserved = e.reserved;
        s->msr_writable = true;
        const struct virt_check *c = vmx_check_first_failure(s, STAGE_MSR_LOAD, STAGE_MSR_LOAD);
        if (!c) {
            s->msr_writable = cpu_wrmsr(v, e.index, e.value);
            c = vmx_check_first_failure(s, STAGE_MSR_LOAD, STAGE_MSR_LOAD);
        }
        if (c) {
            note_failure(v, c);
            return n + 1;
        }
    }
    return 0;
}

/* ---- special features of VM entry ---- */
static void start_preemption_timer(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    if (!pin_ctl(x, PIN_PREEMPTION_TIMER))
        return;
    x->timer_end = (cpu_tsc(v) >> VMX_MISC_TIMER_SHIFT) + x->f[VMCS_VMX_PREEMPTION_TIMER_VALUE];
    u64 deadline = cpu_tsc_to_ns(v, x->timer_end << VMX_MISC_TIMER_SHIFT);
    timer_arm(&x->timer, deadline);
    /* Timers fire between slices; where instructions are time, this slice ends when the timer does. */
    if (v->clock->kind == CLOCK_ICOUNT) {
        u64 now = clock_now(v->clock), left = deadline > now ? deadline - now : 1;
        if (v->budget_end - v->icount > left)
            v->budget_end = v->icount + left;
    }
}

/* Event Injection. Faults met on the way are ordinary exceptions of the guest. */
static void inject(struct vcpu *v, u32 info)
{
    struct vmx *x = v->vmx;
    struct event e = { .valid = true, .type = (u8)(info >> 8 & 7), .vector = (u8)info, .has_error = info & BIT(11) };
    if (e.has_error)
        e.error = (u32)x->f[VMCS_VM_ENTRY_EXCEPTION_ERROR_CODE];
    /* Software events push the address behind the instruction that they stand for. */
    if (e.type >= EV_SOFT_INT && e.type <= EV_SOFT_EXC) {
        e.insn_len = (u8)x->f[VMCS_VM_ENTRY_INSTRUCTION_LEN];
        v->rip = (v->rip + e.insn_len) & v->linear_mask;
    }
    if (e.type == EV_NMI) {
        if (pin_ctl(x, PIN_VIRTUAL_NMIS))
            x->virtual_nmi_blocked = true;
        else
            v->nmi_blocked = true;
    }
    cpu_deliver(v, &e);
}

void vmx_enter(struct vcpu *v, bool launch)
{
    struct vmx *x = v->vmx;
    struct vmx_snapshot s;
    const struct virt_check *failed;
    u64 pointer;

    if ((evmcs_in_use(v, &pointer) && !evmcs_load(v, pointer)) || x->current == VMX_NO_VMCS || x->current_is_shadow) {
        vmx_fail_invalid(v);
        return;
    }
    if (v->shadow & SHADOW_MOVSS) {
        vmx_fail_valid(v, 26);
        return;
    }
    /* An enlightened VMCS has no launch state. */
    if (launch == x->launched && !x->enlightened) {
        vmx_fail_valid(v, launch ? 4 : 5);
        return;
    }

    vmx_take_snapshot(v, &s);
    vmx_again_begin(&x->again, &s);
    failed = vmx_again_first_failure(&x->again, &s, STAGE_CONTROLS, STAGE_HOST);
    if (failed) {
        x->stats.entry_failures++;
        note_failure(v, failed);
        vmx_fail_valid(v, failed->stage == STAGE_HOST ? 8 : 7);
        return;
    }

    x->pin = (u32)x->f[VMCS_PIN_BASED_VM_EXEC_CONTROL];
    x->pri = (u32)x->f[VMCS_CPU_BASED_VM_EXEC_CONTROL];
    x->sec = secondary(x->f);
    x->ter = x->pri & BIT(PRI_TERTIARY_CONTROLS) ? x->f[VMCS_TERTIARY_VM_EXEC_CONTROL] : 0;
    x->entry = (u32)x->f[VMCS_VM_ENTRY_CONTROLS];
    x->exit = (u32)x->f[VMCS_VM_EXIT_CONTROLS];

    failed = vmx_again_first_failure(&x->again, &s, STAGE_GUEST, STAGE_GUEST);
    if (failed) {
        note_failure(v, failed);
        vmx_entry_failed(v, EXIT_REASON_INVALID_GUEST_STATE, failed->qualification);
    }

    u32 info = (u32)x->f[VMCS_VM_ENTRY_INTR_INFO_FIELD];
    bool inject_event = info >> 31, pending_mtf = inject_event && (info >> 8 & 7) == EV_OTHER;
    bool vectoring = inject_event && !pending_mtf;
    x->pending_apic_write = x->pending_eoi = x->pending_tpr = x->pending_flush_trap = false;
    x->iret_unblocked = x->marked = false;
    x->ple_first = x->ple_last = 0;

    load_guest_registers(v);
    load_pdptes(v, &s);
    v->guest_mode = true;
    v->virt = &vmx_virt_ops;
    v->guest_cr0_fixed = sec_ctl(x, SEC_UNRESTRICTED_GUEST) ? 0 : CR0_PE | CR0_PG;
    v->virt_apic_page = sec_ctl(x, SEC_VIRTUALIZE_APIC_ACCESSES) ? x->f[VMCS_APIC_ACCESS_ADDR] : ~0ull;
    x->shadow_vmcs = sec_ctl(x, SEC_VMCS_SHADOWING) ? x->f[VMCS_VMCS_LINK_POINTER] : VMX_NO_VMCS;
    vmx_apply_slat(v);
    load_non_register_state(v, vectoring, info >> 8 & 7);
    cpu_mode_changed(v);
    mmu_watch_changed(v);

    u32 bad_entry = load_msrs(v, &s);
    if (bad_entry)
        vmx_entry_failed(v, EXIT_REASON_MSR_LOAD_FAILURE, bad_entry);

    /* The entry has succeeded. */
    x->last_failure = NULL;
    x->launched = true;
    x->stats.entries++;
    x->stats.evmcs_entries += x->enlightened;
    if (unlikely(v->exits != NULL))
        exit_profile_entry(v, x->current);
    v->icount++;
    v->delivering.valid = false;
    v->fault_depth = 0;
    log_at(vmentry, "cpu%u %s %svmcs=0x%llx rip=0x%llx inject=0x%x", v->index, launch ? "VMLAUNCH" : "VMRESUME", x->enlightened ? "e" : "",
           (unsigned long long)x->current, (unsigned long long)v->rip, info);

    start_preemption_timer(v);
    /* "VM exits due to TPR threshold": with virtualized APIC accesses the comparison is made here
     * rather than by a check. */
    if (pri_ctl(x, PRI_TPR_SHADOW) && !sec_ctl(x, SEC_VIRTUAL_INTERRUPT_DELIVERY) && sec_ctl(x, SEC_VIRTUALIZE_APIC_ACCESSES))
        x->pending_tpr = (vapic_read(v, 0x80) >> 4 & 0xf) < (x->f[VMCS_TPR_THRESHOLD] & 0xf);
    if (sec_ctl(x, SEC_VIRTUAL_INTERRUPT_DELIVERY))
        vapic_evaluate(v);
    x->mtf_event = pending_mtf;
    x->entry_vectored = vectoring;
    cpu_flags_changed(v);
    cpu_attention(v, ATT_VIRT | ATT_IRQ_WINDOW);

    if (vectoring)
        inject(v, info);
    cpu_unwind(v, UNWIND_EXIT);
}
