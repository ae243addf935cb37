/* #VMEXIT ("#VMEXIT"): GIF to 0, the guest's state and the reason into the VMCB, the host's state back. */
#include "cpu/exit_profile.h"
#include "cpu/msr.h"
#include "cpu/pmu.h"
#include "svm/svm.h"

#define F(name) (x->f[VMCB_##name])

static void save_segment(struct svm *x, enum vmcb_index selector, const struct segment *s)
{
    u64 *f = x->f + selector;
    f[0] = s->sel;
    f[1] = vmcb_attrib(s);
    f[2] = s->limit;
    f[3] = s->base;
}

static void save_guest(struct vcpu *v)
{
    struct svm *x = v->svm;
    save_segment(x, VMCB_ES_SELECTOR, &v->seg[SEG_ES]);
    save_segment(x, VMCB_CS_SELECTOR, &v->seg[SEG_CS]);
    save_segment(x, VMCB_SS_SELECTOR, &v->seg[SEG_SS]);
    save_segment(x, VMCB_DS_SELECTOR, &v->seg[SEG_DS]);
    F(GDTR_BASE) = v->gdtr.base;
    F(GDTR_LIMIT) = v->gdtr.limit;
    F(IDTR_BASE) = v->idtr.base;
    F(IDTR_LIMIT) = v->idtr.limit;
    F(CPL) = v->cpl;
    F(EFER) = v->efer;
    F(CR0) = v->cr0;
    F(CR2) = v->cr2;
    F(CR3) = v->cr3;
    F(CR4) = v->cr4;
    F(DR6) = v->dr6;
    F(DR7) = v->dr7;
    F(RFLAGS) = cpu_rflags(v);
    F(RIP) = v->rip;
    F(RSP) = v->gpr[RSP];
    F(RAX) = v->gpr[RAX];
    F(INTERRUPT_SHADOW) = v->shadow ? 1 : 0;
    if (x->nested_paging)
        F(G_PAT) = v->pat;
    if (cpu_has(v, FEAT_V_SPEC_CTRL)) {
        F(SPEC_CTRL) = v->spec_ctrl;
        v->spec_ctrl = x->host.spec_ctrl;
    }
    if (x->virtual_lbr) {
        u64 *last = v->misc_msr + SLOT_LAST_BRANCH;
        F(DBGCTL) = v->debugctl;
        memcpy(&F(BR_FROM), last, sizeof(x->host.last_branch));
        v->debugctl = x->host.debugctl;
        memcpy(last, x->host.last_branch, sizeof(x->host.last_branch));
    }
    F(S_CET) = v->s_cet;
    F(SSP) = v->ssp;
    F(ISST_ADDR) = v->int_ssp_table;
}

/* "Nested and intercepted #PF": the bytes at RIP, as far as they can be fetched. */
static void fetch_bytes(struct vcpu *v)
{
    struct svm *x = v->svm;
    u32 access = ACCESS_EXEC | ACCESS_NO_AD | mmu_access_mode(v);
    for (unsigned n = 0; n < sizeof(x->insn_bytes); n++) {
        gva_t la = (v->seg_base[SEG_CS] + v->rip + n) & v->linear_mask;
        struct translation t;
        struct walk w;
        if ((cpu_long64(v) && !cpu_canonical(v, la)) || !mmu_translate(v, la, access, &t, &w) || !t.host)
            return;
        /* To the end of the page at once. */
        unsigned run = (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK)), room = (unsigned)sizeof(x->insn_bytes) - n;
        if (run > room)
            run = room;
        memcpy(x->insn_bytes + n, t.host, run);
        F(INSN_LEN) = n + run;
        n += run - 1;
    }
}

/* EXITINTINFO: the event whose delivery the exit interrupted. INT1, INT3 and INTO count as exceptions. */
static u64 vectoring_info(const struct event *d)
{
    unsigned type = d->type == EV_EXTINT  ? EVENT_INTR
                    : d->type == EV_NMI   ? EVENT_NMI
                    : d->type == EV_SOFT_INT ? EVENT_SOFT_INT
                                             : EVENT_EXCEPTION;
    return EVENT_VALID | (d->has_error ? EVENT_ERROR_VALID | (u64)d->error << 32 : 0) | (u64)type << 8 | d->vector;
}

/* The host's state is as VMRUN found it, but for GIF, DR7 and what guests share with their host. */
void svm_load_host(struct vcpu *v)
{
    struct svm *x = v->svm;
    const struct svm_host *h = &x->host;
    bool watch_changed = v->dr7 != DR7_FIXED;
    if (unlikely(v->pmu_split))
        pmu_domain_ends(v);
    v->gif = false;
    v->guest_mode = false;
    v->virt = NULL;
    v->cr0 = h->cr0 | CR0_PE;
    v->cr3 = h->cr3;
    v->cr4 = h->cr4;
    v->efer = h->efer;
    v->dr7 = DR7_FIXED;
    v->pat = h->pat;
    v->s_cet = h->s_cet;
    v->ssp = h->ssp;
    v->int_ssp_table = h->isst;
    v->seg[SEG_ES] = h->es;
    v->seg[SEG_CS] = h->cs;
    v->seg[SEG_SS] = h->ss;
    v->seg[SEG_DS] = h->ds;
    v->gdtr = h->gdtr;
    v->idtr = h->idtr;
    v->rip = v->next_rip = h->rip;
    v->gpr[RSP] = h->rsp;
    v->gpr[RAX] = h->rax;
    cpu_put_rflags(v, h->rflags & ~(FL_VM | FL_RF));
    v->activity = ACTIVITY_ACTIVE;
    v->shadow = 0;
    v->monitor_armed = false;
    v->delivering.valid = false;
    v->fault_depth = 0;
    /* A host that single-steps traps when VMRUN is done. */
    v->pending_dbg = h->rflags & FL_TF ? DR6_BS : 0;
    mmu_set_guest(v, &(const struct slat){.kind = SLAT_NONE}, 0);
    if (v->cr0 & CR0_PG && v->cr4 & CR4_PAE && !cpu_lma(v)) {
        physmap_read(v->pm, v->cr3 & 0xffffffe0, v->pdpte, sizeof(v->pdpte));
        for (unsigned i = 0; i < 4; i++)
            if (v->pdpte[i] & 1 && v->pdpte[i] & (BITS64(2, 1) | BITS64(8, 5) | ~0ull << v->maxphyaddr)) {
                v->activity = ACTIVITY_SHUTDOWN;
                cpu_attention(v, ATT_STOP | ATT_BLOCK);
            }
    }
    cpu_mode_changed(v);
    if (unlikely(v->pmu_split))
        pmu_domain_begins(v);
    cpu_flags_changed(v);
    if (watch_changed)
        mmu_watch_changed(v);
    cpu_attention(v, ATT_IRQ_WINDOW);
}

void svm_exit(struct vcpu *v, const struct svm_exit *e)
{
    struct svm *x = v->svm;
    const struct event *d = &v->delivering;

    F(EXITCODE) = e->code;
    F(EXITINFO1) = e->info1;
    F(EXITINFO2) = e->info2;
    F(EXITINTINFO) = d->valid && !e->no_vectoring ? vectoring_info(d) : 0;
    F(EVENTINJ) = 0;
    F(NRIP) = e->next_rip && cpu_has(v, FEAT_NRIPS) ? v->next_rip & v->linear_mask : 0;
    F(INSN_LEN) = 0;
    if (e->insn_bytes && cpu_has(v, FEAT_DECODEASSISTS) && !d->valid)
        fetch_bytes(v);
    x->stats.exits[svm_exit_slot(e->code)]++;
    if (unlikely(v->exits != NULL))
        exit_profile_exit(v, svm_exit_slot(e->code), x->vmcb, e->code == SVM_EXIT_VMRUN, false);
    log_at(vmexit, "cpu%u %s info1=0x%llx info2=0x%llx int=0x%llx rip=0x%llx rax=0x%llx rcx=0x%llx", v->index,
           svm_exit_name(e->code) ? svm_exit_name(e->code) : "?", (unsigned long long)e->info1, (unsigned long long)e->info2,
           (unsigned long long)F(EXITINTINFO), (unsigned long long)v->rip, (unsigned long long)v->gpr[RAX],
           (unsigned long long)v->gpr[RCX]);
    save_guest(v);
    vmcb_store(v);
    svm_load_host(v);
    cpu_unwind(v, UNWIND_EXIT);
}

void svm_exit_insn(struct vcpu *v, u64 code, u64 info1, u64 info2)
{
    struct svm_exit e = {.code = code, .info1 = info1, .info2 = info2, .next_rip = true};
    svm_exit(v, &e);
}
