/*
 * VMRUN ("VMRUN Instruction: Basic Operation"): read the VMCB, check, save the host, load the guest,
 * inject. Nothing of the guest has been loaded when a check says no: the host's state is loaded again,
 * as after every #VMEXIT.
 */
#include "cpu/exit_profile.h"
#include "cpu/msr.h"
#include "cpu/pmu.h"
#include "svm/svm.h"

#define F(name) (x->f[VMCB_##name])

#define RFLAGS_VALID                                                                                          \
    (FL_ARITH | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_RF | FL_VM | FL_AC | FL_VIF | FL_VIP | FL_ID)
#define DR6_WRITABLE 0xe00full
#define DR7_WRITABLE 0xffff23ffull

void svm_take_snapshot(struct vcpu *v, struct svm_snapshot *s)
{
    const struct svm *x = v->svm;
    *s = (struct svm_snapshot){.f = x->f, .features = v->features, .maxphyaddr = v->maxphyaddr,
                               .cr4_reserved = cpu_cr4_reserved(v), .efer_reserved = cpu_efer_reserved(v),
                               .host_paging = v->cr0 & CR0_PG, .u_cet = v->u_cet};
    bool pae = F(CR0) & CR0_PG && F(CR4) & CR4_PAE && !(F(EFER) & EFER_LME);
    if (pae && !(F(CR3) >> v->maxphyaddr))
        physmap_read(v->pm, F(CR3) & 0xffffffe0, s->pdpte, sizeof(s->pdpte));
}

static void note_failure(struct vcpu *v, const struct virt_check *c)
{
    v->svm->last_failure = c;
    log_at(vmentry, "cpu%u VMRUN refused by %s: %s (%s, %s)", v->index, c->id, c->rule, c->title, c->section);
    for (unsigned i = 0; log_on(LOG_vmentry) && i < c->nfields; i++) {
        int n = vmcb_find(c->fields[i]);
        if (n >= 0)
            log_line(LOG_vmentry, "    %s = 0x%llx", vmcb_fields[n].name, (unsigned long long)v->svm->f[n]);
    }
}

static void save_host(struct vcpu *v)
{
    v->svm->host = (struct svm_host){
        .es = v->seg[SEG_ES], .cs = v->seg[SEG_CS], .ss = v->seg[SEG_SS], .ds = v->seg[SEG_DS],
        .gdtr = v->gdtr, .idtr = v->idtr, .efer = v->efer, .cr0 = v->cr0, .cr3 = v->cr3, .cr4 = v->cr4,
        .rflags = cpu_rflags(v), .rip = v->next_rip, .rsp = v->gpr[RSP], .rax = v->gpr[RAX], .pat = v->pat,
        .s_cet = v->s_cet, .ssp = v->ssp, .isst = v->int_ssp_table,
    };
}

/* "LBR Virtualization": without it host and guest share these registers. */
static void swap_last_branches(struct vcpu *v)
{
    struct svm *x = v->svm;
    u64 *last = v->misc_msr + SLOT_LAST_BRANCH;
    x->host.debugctl = v->debugctl;
    memcpy(x->host.last_branch, last, sizeof(x->host.last_branch));
    v->debugctl = F(DBGCTL) & (DEBUGCTL_LBR | DEBUGCTL_BTF);
    memcpy(last, &F(BR_FROM), sizeof(x->host.last_branch));
}

static struct segment guest_segment(const struct vcpu *v, enum vmcb_index selector)
{
    const u64 *s = v->svm->f + selector;
    return vmcb_segment(s[0], s[1], s[2], (u64)sign_extend(s[3], v->linear_width));
}

static void load_guest(struct vcpu *v)
{
    struct svm *x = v->svm;
    bool real = !(F(CR0) & CR0_PE), v86 = !real && F(RFLAGS) & FL_VM;
    unsigned cpl = real ? 0 : v86 ? 3 : F(CPL) & 3;

    v->cr0 = F(CR0) | CR0_ET;
    v->cr2 = F(CR2);
    v->cr3 = F(CR3);
    v->cr4 = F(CR4);
    v->efer = F(EFER) & ~EFER_LMA;
    if (v->efer & EFER_LME && v->cr0 & CR0_PG)
        v->efer |= EFER_LMA;
    v->dr6 = (F(DR6) & DR6_WRITABLE) | DR6_FIXED;
    v->dr7 = (F(DR7) & DR7_WRITABLE) | DR7_FIXED;
    if (x->nested_paging)
        v->pat = F(G_PAT);
    if (cpu_has(v, FEAT_V_SPEC_CTRL)) {
        x->host.spec_ctrl = v->spec_ctrl;
        v->spec_ctrl = F(SPEC_CTRL) & cpu_spec_ctrl_allowed(v);
    }
    if (x->virtual_lbr)
        swap_last_branches(v);
    if (cpu_has(v, FEAT_CET_SS)) {
        v->s_cet = F(S_CET);
        v->ssp = F(SSP);
        v->int_ssp_table = F(ISST_ADDR);
    }

    v->seg[SEG_ES] = guest_segment(v, VMCB_ES_SELECTOR);
    v->seg[SEG_CS] = guest_segment(v, VMCB_CS_SELECTOR);
    v->seg[SEG_SS] = guest_segment(v, VMCB_SS_SELECTOR);
    v->seg[SEG_DS] = guest_segment(v, VMCB_DS_SELECTOR);
    /* Of CS only D, L and R count; the rest is what a code segment has. */
    v->seg[SEG_CS].ar = (v->seg[SEG_CS].ar & ~AR_UNUSABLE) | AR_P | AR_S | (real || v86 ? 0 : 9);
    /* The CPL comes from its own field; SS.DPL is its image. */
    v->seg[SEG_SS].ar = (v->seg[SEG_SS].ar & ~(3u << 5)) | cpl << 5;
    v->gdtr = (struct desc_table){(u64)sign_extend(F(GDTR_BASE), v->linear_width), (u16)F(GDTR_LIMIT)};
    v->idtr = (struct desc_table){(u64)sign_extend(F(IDTR_BASE), v->linear_width), (u16)F(IDTR_LIMIT)};

    v->rip = v->next_rip = F(RIP);
    v->gpr[RSP] = F(RSP);
    v->gpr[RAX] = F(RAX);
    cpu_put_rflags(v, F(RFLAGS) & RFLAGS_VALID);
    v->activity = ACTIVITY_ACTIVE;
    v->monitor_armed = false;
    v->pending_dbg = 0;
    v->shadow = 0;
    if (F(INTERRUPT_SHADOW) & 1)
        cpu_set_shadow(v, SHADOW_STI);
}

/* "Enabling Nested Paging": the tables are read in the paging mode of the host at the time of VMRUN. */
struct slat svm_slat(u64 n_cr3, u64 host_efer, u64 host_cr0, u64 host_cr4)
{
    return (struct slat){
        .kind = SLAT_NPT, .nx = host_efer & EFER_NXE, .smep = host_cr4 & CR4_SMEP, .pse = host_cr4 & CR4_PSE,
        .wp = host_cr0 & CR0_WP, .root = n_cr3, .tag = n_cr3,
        .host_mode = host_efer & EFER_LMA ? (host_cr4 & CR4_LA57 ? PAGING_5LEVEL : PAGING_4LEVEL)
                     : host_cr4 & CR4_PAE ? PAGING_PAE
                                          : PAGING_32BIT,
    };
}

static void apply_slat(struct vcpu *v)
{
    struct svm *x = v->svm;
    const struct svm_host *h = &x->host;
    struct slat slat = {.kind = SLAT_NONE};
    if (x->nested_paging)
        slat = svm_slat(F(N_CR3), h->efer, h->cr0, h->cr4);
    u32 asid = (u32)F(GUEST_ASID);
    mmu_set_guest(v, &slat, asid);
    /* "TLB Control" */
    u8 control = (u8)F(TLB_CONTROL);
    if (control == TLB_NOTHING)
        return;
    if (cpu_has(v, FEAT_FLUSHBYASID) && (control == TLB_FLUSH_ASID || control == TLB_FLUSH_ASID_LOCAL))
        mmu_flush_asid(v, asid, control == TLB_FLUSH_ASID_LOCAL);
    else
        mmu_flush_all(v);
}

/* "Event Injection". Intercepts are not asked; faults met on the way are ordinary exceptions of the guest. */
static void inject(struct vcpu *v)
{
    struct svm *x = v->svm;
    u64 info = F(EVENTINJ);
    struct event e = {.valid = true, .vector = (u8)info, .has_error = info & EVENT_ERROR_VALID, .error = (u32)(info >> 32)};
    switch (info >> 8 & 7) {
    case EVENT_INTR: e.type = EV_EXTINT; break;
    case EVENT_NMI:
        e.type = EV_NMI;
        e.vector = VEC_NMI;
        if (x->vnmi)
            F(INT_CTL) |= V_NMI_MASK;
        else
            v->nmi_blocked = true;
        break;
    case EVENT_SOFT_INT: e.type = EV_SOFT_INT; break;
    default: e.type = e.vector == VEC_BP || e.vector == VEC_OF ? EV_SOFT_EXC : EV_HARD_EXC; break;
    }
    /* Software events push the address behind their instruction, which is in NRIP. */
    if ((e.type == EV_SOFT_INT || e.type == EV_SOFT_EXC) && cpu_has(v, FEAT_NRIPS)) {
        u64 len = (F(NRIP) - v->rip) & v->linear_mask;
        if (len <= 15)
            e.insn_len = (u8)len;
        v->rip = F(NRIP);
    }
    cpu_deliver(v, &e);
}

void svm_enter(struct vcpu *v, pa_t vmcb)
{
    struct svm *x = v->svm;
    struct svm_snapshot s;

    vmcb_load(v, vmcb);
    x->nested_paging = cpu_has(v, FEAT_NPT) && F(NESTED_CTL) & NESTED_CTL_NP;
    x->vgif = cpu_has(v, FEAT_VGIF) && F(INT_CTL) & V_GIF_ENABLE;
    x->vnmi = cpu_has(v, FEAT_VNMI) && F(INT_CTL) & V_NMI_ENABLE;
    x->virtual_lbr = cpu_has(v, FEAT_LBRV) && F(VIRT_EXT) & VIRT_EXT_LBR;
    x->virtual_vmload = cpu_has(v, FEAT_VVMLOAD) && F(VIRT_EXT) & VIRT_EXT_VMLOAD_VMSAVE;
    svm_take_snapshot(v, &s);
    save_host(v);
    v->icount++;

    const struct virt_check *failed = svm_check_first_failure(&s);
    if (failed) {
        note_failure(v, failed);
        x->stats.entry_failures++;
        x->stats.exits[SVM_SLOT_INVALID]++;
        if (unlikely(v->exits != NULL))
            exit_profile_exit(v, SVM_SLOT_INVALID, vmcb, false, true);
        vmcb_write(v, vmcb, VMCB_EXITCODE, SVM_EXIT_INVALID);
        vmcb_write(v, vmcb, VMCB_EXITINFO1, 0);
        vmcb_write(v, vmcb, VMCB_EXITINFO2, 0);
        svm_load_host(v);
        cpu_unwind(v, UNWIND_EXIT);
    }

    u64 dr7 = v->dr7;
    if (unlikely(v->pmu_split))
        pmu_domain_ends(v);
    load_guest(v);
    v->guest_mode = true;
    v->flags_intercepted = svm_intercepts(x, SVM_EXIT_PUSHF) || svm_intercepts(x, SVM_EXIT_POPF);
    v->virt = &svm_virt_ops;
    v->guest_cr0_fixed = 0;
    v->gif = true;
    v->delivering.valid = false;
    v->fault_depth = 0;
    apply_slat(v);
    if (!x->nested_paging)
        memcpy(v->pdpte, s.pdpte, sizeof(v->pdpte));
    cpu_mode_changed(v);
    if (unlikely(v->pmu_split))
        pmu_domain_begins(v);
    if (v->dr7 != dr7)
        mmu_watch_changed(v);
    cpu_flags_changed(v);
    x->write_trap = 0;
    x->pause_count = (u16)F(PAUSE_FILTER_COUNT);
    x->pause_last = cpu_retired(v);

    x->last_failure = NULL;
    x->stats.entries++;
    if (unlikely(v->exits != NULL))
        exit_profile_entry(v, vmcb);
    log_at(vmentry, "cpu%u VMRUN vmcb=0x%llx rip=0x%llx inject=0x%llx", v->index, (unsigned long long)vmcb,
           (unsigned long long)v->rip, (unsigned long long)F(EVENTINJ));
    cpu_attention(v, ATT_VIRT | ATT_IRQ_WINDOW);
    if (F(EVENTINJ) & EVENT_VALID)
        inject(v);
    cpu_unwind(v, UNWIND_EXIT);
}
