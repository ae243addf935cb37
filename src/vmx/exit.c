/*
 * VM exit (SDM "VM Exits"): record, save the guest state, store MSRs, load the host state, load MSRs.
 */
#include "cpu/exit_profile.h"
#include "cpu/pmu.h"
#include "vmx/vmx.h"

#define F(name) (x->f[VMCS_##name])
#define CR0_LOADED (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_PG)

const struct vmx_exit_info vmx_exits[VMX_EXIT_REASONS] = {
#define VMX_EXIT(number, ename, ctl, qual, layout)                                                           \
    [number] = { .name = #ename, .control = ctl, .qualification = QUAL_##qual, .info = INFO_##layout },
#include "vmx/exits.def"
#undef VMX_EXIT
};

/* "VMX Aborts": the processor records why and shuts down. */
void vmx_abort(struct vcpu *v, u32 code)
{
    log_at(vmexit, "cpu%u VMX abort %u", v->index, code);
    vmcs_set_abort(v, code);
    v->guest_mode = false;
    v->virt = NULL;
    v->delivering.valid = false;
    v->fault_depth = 0;
    v->activity = ACTIVITY_SHUTDOWN;
    cpu_attention(v, ATT_STOP | ATT_BLOCK);
    cpu_unwind(v, UNWIND_EXIT);
}

/* ---- Saving Guest State ---- */
static void save_guest_state(struct vcpu *v, const struct vmx_exit *e, bool vectoring)
{
    struct vmx *x = v->vmx;

    /* Saving Control Registers, Debug Registers, and MSRs */
    F(GUEST_CR0) = v->cr0;
    F(GUEST_CR3) = v->cr3;
    F(GUEST_CR4) = v->cr4;
    F(GUEST_SYSENTER_CS) = (u32)v->sysenter_cs;
    F(GUEST_SYSENTER_ESP) = v->sysenter_esp;
    F(GUEST_SYSENTER_EIP) = v->sysenter_eip;
    if (exit_ctl(x, EXIT_SAVE_DEBUG)) {
        F(GUEST_DR7) = v->dr7;
        F(GUEST_IA32_DEBUGCTL) = v->debugctl;
    }
    if (exit_ctl(x, EXIT_SAVE_PERF_GLOBAL_CTRL))
        F(GUEST_IA32_PERF_GLOBAL_CTRL) = pmu_global_ctrl(v);
    if (exit_ctl(x, EXIT_SAVE_PAT))
        F(GUEST_IA32_PAT) = v->pat;
    if (exit_ctl(x, EXIT_SAVE_EFER))
        F(GUEST_IA32_EFER) = v->efer;
    if (vmx_offers(vmx_caps_now(x), CTL_ENTRY_LOAD_CET)) {
        F(GUEST_S_CET) = v->s_cet;
        F(GUEST_SSP) = v->ssp;
        F(GUEST_INTR_SSP_TABLE) = v->int_ssp_table;
    }
    if (vmx_offers(vmx_caps_now(x), CTL_ENTRY_LOAD_PKRS))
        F(GUEST_IA32_PKRS) = v->pkrs;
    /* IA32_VMX_MISC[5]: EFER.LMA goes into the "IA-32e mode guest" control. */
    F(VM_ENTRY_CONTROLS) = (F(VM_ENTRY_CONTROLS) & ~BIT64(ENTRY_IA32E_GUEST)) | (cpu_lma(v) ? BIT64(ENTRY_IA32E_GUEST) : 0);

    /* Saving Segment Registers and Descriptor-Table Registers */
    for (unsigned n = 0; n < SEG_COUNT; n++) {
        x->f[VMCS_GUEST_ES_SELECTOR + n] = v->seg[n].sel;
        x->f[VMCS_GUEST_ES_BASE + n] = v->seg[n].base;
        x->f[VMCS_GUEST_ES_LIMIT + n] = v->seg[n].limit;
        x->f[VMCS_GUEST_ES_AR_BYTES + n] = v->seg[n].ar & 0x1f0ff;
    }
    /* SS DPL is the CPL, usable or not. */
    F(GUEST_SS_AR_BYTES) = (F(GUEST_SS_AR_BYTES) & ~0x60ull) | (u64)v->cpl << 5;
    F(GUEST_GDTR_BASE) = v->gdtr.base;
    F(GUEST_GDTR_LIMIT) = v->gdtr.limit;
    F(GUEST_IDTR_BASE) = v->idtr.base;
    F(GUEST_IDTR_LIMIT) = v->idtr.limit;

    /* Saving RIP, RSP, RFLAGS, and SSP */
    F(GUEST_RIP) = v->rip;
    F(GUEST_RSP) = v->gpr[RSP];
    u64 flags = cpu_rflags(v);
    if (!e->keeps_rf)
        flags &= ~FL_RF;
    if (e->sets_rf && !vectoring)
        flags |= FL_RF;
    F(GUEST_RFLAGS) = flags;

    /* Saving Non-Register State */
    F(GUEST_ACTIVITY_STATE) = v->activity <= ACTIVITY_WAIT_SIPI ? v->activity : ACTIVITY_ACTIVE;
    bool nmi_blocked = pin_ctl(x, PIN_VIRTUAL_NMIS) ? x->virtual_nmi_blocked : v->nmi_blocked;
    F(GUEST_INTERRUPTIBILITY_INFO) = (v->shadow & 3u) | (nmi_blocked ? BIT(3) : 0);
    u64 dbg = v->pending_dbg & (0xf | DR6_BS);
    /* With blocking, or halted, VM entry demands this relation of BS to TF; the processor keeps it. */
    if (v->shadow || v->activity == ACTIVITY_HLT) {
        dbg &= ~DR6_BS;
        if (flags & FL_TF && !(v->debugctl & DEBUGCTL_BTF))
            dbg |= DR6_BS;
    }
    F(GUEST_PENDING_DBG_EXCEPTIONS) = dbg | (dbg & 0xf ? BIT64(12) : 0);
    if (pin_ctl(x, PIN_PREEMPTION_TIMER)) {
        timer_cancel(&x->timer);
        if (exit_ctl(x, EXIT_SAVE_PREEMPTION_TIMER)) {
            u64 now = cpu_tsc(v) >> VMX_MISC_TIMER_SHIFT;
            F(VMX_PREEMPTION_TIMER_VALUE) = e->reason == EXIT_REASON_PREEMPTION_TIMER || now >= x->timer_end ? 0
                                                                                                          : (u32)(x->timer_end - now);
        }
    }
    if (sec_ctl(x, SEC_EPT))
        for (unsigned i = 0; i < 4; i++)
            x->f[VMCS_GUEST_PDPTE0 + i] = v->pdpte[i];
}

struct msr_entry {
    u32 index, reserved;
    u64 value;
};

/* Saving MSRs */
static bool store_msrs(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    for (u32 n = 0; n < (u32)F(VM_EXIT_MSR_STORE_COUNT); n++) {
        pa_t pa = F(VM_EXIT_MSR_STORE_ADDR) + 16ull * n;
        struct msr_entry e;
        physmap_read(v->pm, pa, &e, sizeof(e));
        if (n >= VMX_MSR_LIST_MAX || e.reserved || e.index >> 8 == 8 || !cpu_rdmsr(v, e.index, &e.value))
            return false;
        physmap_write(v->pm, pa + 8, &e.value, sizeof(e.value));
    }
    return true;
}

/* Loading MSRs */
static bool load_msrs(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    for (u32 n = 0; n < (u32)F(VM_EXIT_MSR_LOAD_COUNT); n++) {
        struct msr_entry e;
        physmap_read(v->pm, F(VM_EXIT_MSR_LOAD_ADDR) + 16ull * n, &e, sizeof(e));
        if (n >= VMX_MSR_LIST_MAX || e.reserved || e.index == 0xc0000100 || e.index == 0xc0000101 || e.index >> 8 == 8 || e.index == 0x9b || e.index == 0x79
            || e.index <= 1 || !cpu_wrmsr(v, e.index, e.value))
            return false;
    }
    return true;
}

/* ---- Loading Host State ---- */
static void load_host_state(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    bool host64 = exit_ctl(x, EXIT_HOST_ADDRESS_SPACE_SIZE);

    v->guest_mode = false;
    v->virt = NULL;
    v->virt_apic_page = ~0ull;
    timer_cancel(&x->timer);

    /* Loading Host Control Registers, Debug Registers, MSRs */
    v->cr0 = (v->cr0 & ~CR0_LOADED) | (F(HOST_CR0) & CR0_LOADED) | CR0_ET;
    v->cr3 = F(HOST_CR3);
    v->cr4 = F(HOST_CR4);
    if (host64)
        v->cr4 |= CR4_PAE;
    else
        v->cr4 &= ~CR4_PCIDE;
    v->dr7 = DR7_FIXED;
    v->debugctl = 0;
    v->sysenter_cs = F(HOST_IA32_SYSENTER_CS);
    v->sysenter_esp = F(HOST_IA32_SYSENTER_ESP);
    v->sysenter_eip = F(HOST_IA32_SYSENTER_EIP);
    v->efer = (v->efer & ~(EFER_LMA | EFER_LME)) | (host64 ? EFER_LMA | EFER_LME : 0);
    if (exit_ctl(x, EXIT_LOAD_EFER))
        v->efer = F(HOST_IA32_EFER);
    if (exit_ctl(x, EXIT_LOAD_PERF_GLOBAL_CTRL))
        pmu_set_global_ctrl(v, F(HOST_IA32_PERF_GLOBAL_CTRL));
    if (exit_ctl(x, EXIT_LOAD_PAT))
        v->pat = F(HOST_IA32_PAT);
    if (exit_ctl(x, EXIT_LOAD_CET)) {
        v->s_cet = F(HOST_S_CET);
        v->ssp = F(HOST_SSP);
        v->int_ssp_table = F(HOST_INTR_SSP_TABLE);
    }
    if (exit_ctl(x, EXIT_LOAD_PKRS))
        v->pkrs = (u32)F(HOST_IA32_PKRS);

    /* Loading Host Segment and Descriptor-Table Registers */
    for (unsigned n = SEG_ES; n <= SEG_GS; n++) {
        u16 sel = (u16)x->f[VMCS_HOST_ES_SELECTOR + n];
        v->seg[n] = (struct segment){ .sel = sel, .base = 0, .limit = 0xffffffff, .ar = AR_G | AR_DB | AR_P | AR_S | 3 };
        if (!sel && n != SEG_CS)
            v->seg[n].ar |= AR_UNUSABLE;
    }
    v->seg[SEG_CS].ar = AR_G | (host64 ? AR_L : AR_DB) | AR_P | AR_S | 11;
    v->seg[SEG_FS].base = F(HOST_FS_BASE);
    v->seg[SEG_GS].base = F(HOST_GS_BASE);
    v->seg[SEG_TR] = (struct segment){ .sel = (u16)F(HOST_TR_SELECTOR), .base = F(HOST_TR_BASE), .limit = 0x67, .ar = AR_P | 11 };
    v->seg[SEG_LDTR] = (struct segment){ .ar = AR_UNUSABLE };
    v->gdtr = (struct desc_table){ F(HOST_GDTR_BASE), 0xffff };
    v->idtr = (struct desc_table){ F(HOST_IDTR_BASE), 0xffff };

    /* Loading Host RIP, RSP, RFLAGS, and SSP */
    v->rip = v->next_rip = F(HOST_RIP);
    v->gpr[RSP] = F(HOST_RSP);
    cpu_put_rflags(v, FL_FIXED);

    /* Updating Non-Register State */
    v->activity = ACTIVITY_ACTIVE;
    v->shadow = 0;
    v->pending_dbg = 0;
    v->monitor_armed = false;
    v->delivering.valid = false;
    v->fault_depth = 0;
    x->pending_apic_write = x->pending_eoi = x->pending_tpr = x->mtf_event = x->pending_flush_trap = false;

    vmx_apply_slat(v);
    /* Checking and Loading Host Page-Directory-Pointer-Table Entries */
    if (v->cr0 & CR0_PG && v->cr4 & CR4_PAE && !host64) {
        u64 pdpte[4];
        physmap_read(v->pm, v->cr3 & 0xffffffe0, pdpte, sizeof(pdpte));
        for (unsigned i = 0; i < 4; i++)
            if (pdpte[i] & 1 && pdpte[i] & (BITS64(2, 1) | BITS64(8, 5) | ~0ull << v->maxphyaddr))
                vmx_abort(v, 2);
        memcpy(v->pdpte, pdpte, sizeof(pdpte));
    }
    cpu_mode_changed(v);
    cpu_flags_changed(v);
    mmu_watch_changed(v);
    if (!load_msrs(v))
        vmx_abort(v, 4);
    cpu_attention(v, ATT_IRQ_WINDOW);
}

void vmx_exit(struct vcpu *v, const struct vmx_exit *e)
{
    struct vmx *x = v->vmx;
    const struct event *d = &v->delivering;
    bool vectoring = d->valid && !e->no_vectoring;
    u32 intr_info = e->intr_info, insn_len = e->insn_len;
    u64 qualification = e->qualification;

    /* Information for VM Exits Due to Vectored Events: bit 12, except for #DF and during delivery. */
    bool unblocked = x->iret_unblocked && !vectoring;
    if (unblocked && intr_info && (intr_info & 0x7ff) != ((u32)EV_HARD_EXC << 8 | VEC_DF))
        intr_info |= BIT(12);
    if (unblocked && (e->reason == EXIT_REASON_EPT_VIOLATION || e->reason == EXIT_REASON_PML_FULL))
        qualification |= BIT64(12);

    /* Recording VM-Exit Information and Updating VM-Entry Control Fields */
    F(VM_EXIT_REASON) = e->reason;
    F(EXIT_QUALIFICATION) = qualification;
    F(VM_EXIT_INTR_INFO) = intr_info;
    if (intr_info & BIT(11))
        F(VM_EXIT_INTR_ERROR_CODE) = e->intr_error;
    F(IDT_VECTORING_INFO_FIELD) = vectoring ? vmx_intr_info(d->type, d->vector, d->has_error) : 0;
    if (vectoring) {
        if (d->has_error)
            F(IDT_VECTORING_ERROR_CODE) = d->error;
        if (d->type >= EV_SOFT_INT && d->type <= EV_SOFT_EXC)
            insn_len = d->insn_len;
    }
    F(VM_EXIT_INSTRUCTION_LEN) = insn_len;
    F(VMX_INSTRUCTION_INFO) = e->insn_info;
    if (e->has_linear)
        F(GUEST_LINEAR_ADDRESS) = e->linear;
    if (e->has_physical)
        F(GUEST_PHYSICAL_ADDRESS) = e->physical;
    F(VM_ENTRY_INTR_INFO_FIELD) &= ~BIT64(31);

    if (e->reason < VMX_EXIT_REASONS)
        x->stats.exits[e->reason]++;
    if (unlikely(v->exits != NULL))
        exit_profile_exit(v, e->reason, x->current, e->reason == EXIT_REASON_VMLAUNCH || e->reason == EXIT_REASON_VMRESUME, false);
    log_at(vmexit, "cpu%u %s qualification=0x%llx intr=0x%x idt=0x%llx rip=0x%llx len=%u rax=0x%llx rcx=0x%llx", v->index,
           e->reason < VMX_EXIT_REASONS && vmx_exits[e->reason].name ? vmx_exits[e->reason].name : "TRAP_AFTER_FLUSH",
           (unsigned long long)qualification, intr_info, (unsigned long long)F(IDT_VECTORING_INFO_FIELD),
           (unsigned long long)v->rip, insn_len, (unsigned long long)v->gpr[RAX], (unsigned long long)v->gpr[RCX]);

    save_guest_state(v, e, vectoring);
    /* The lists are the hypervisor's: the TSC and the like are stored as VMX root operation sees them. */
    v->guest_mode = false;
    if (x->enlightened)
        evmcs_store(v);
    if (!store_msrs(v))
        vmx_abort(v, 1);
    /* Only an NMI that exits leaves NMIs blocked; other exits change nothing (virtual blocking is gone). */
    if ((intr_info & (BIT(31) | 0x700)) == (BIT(31) | EV_NMI << 8))
        v->nmi_blocked = true;
    load_host_state(v);
    cpu_unwind(v, UNWIND_EXIT);
}

void vmx_exit_insn(struct vcpu *v, u32 reason, u64 qualification, const struct insn *i)
{
    struct vmx_exit e = { .reason = reason, .qualification = qualification, .insn_len = i->len };
    vmx_exit(v, &e);
}

/* SDM "VM-Entry Failures During or After Loading Guest State": reason and qualification only; the
 * guest area and the MSR-store list are left alone. */
void vmx_entry_failed(struct vcpu *v, u32 reason, u64 qualification)
{
    struct vmx *x = v->vmx;
    F(VM_EXIT_REASON) = reason | EXIT_ENTRY_FAILURE;
    F(EXIT_QUALIFICATION) = qualification;
    x->stats.exits[reason]++;
    x->stats.entry_failures++;
    if (x->enlightened)
        evmcs_store(v);
    if (unlikely(v->exits != NULL))
        exit_profile_exit(v, reason, x->current, false, true);
    log_at(vmexit, "cpu%u VM-entry failure: %s qualification=%llu", v->index, vmx_exits[reason].name, (unsigned long long)qualification);
    load_host_state(v);
    v->icount++;
    cpu_unwind(v, UNWIND_EXIT);
}
