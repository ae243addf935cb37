/*
 * The SVM instructions (APM volume 3, "System Instruction Reference"). The rows' checks (EFER.SVME,
 * protected mode, CPL) and intercepts have been done; an address is looked at only after them.
 */
#include "cpu/mem.h"
#include "handlers.h"
#include "svm/svm.h"

static u64 rax_operand(const struct vcpu *v, const struct insn *i)
{
    return i->adsize == 8 ? v->gpr[RAX] : i->adsize == 4 ? (u32)v->gpr[RAX] : (u16)v->gpr[RAX];
}

static pa_t vmcb_operand(struct vcpu *v, const struct insn *i)
{
    u64 pa = rax_operand(v, i);
    if (!v->svm)
        cpu_ud(v);
    if (pa & (PAGE_SIZE - 1) || pa >> v->maxphyaddr)
        cpu_gp0(v);
    return pa;
}

void insn_vmrun(struct vcpu *v, const struct insn *i) { svm_enter(v, vmcb_operand(v, i)); }

/* "Virtual VMLOAD and VMSAVE": the guest's rAX is a guest-physical address, translated by nested paging. */
static pa_t translated(struct vcpu *v, pa_t pa, u32 access)
{
    struct walk w = {0};
    if (!v->guest_mode || !v->svm->virtual_vmload)
        return pa;
    if (!walk_gpa(v->pm, mmu_context(v), pa, access, &w))
        svm_hook_slat_fault(v, 0, access, &w);
    return w.pa;
}

void insn_vmload(struct vcpu *v, const struct insn *i)
{
    pa_t pa = vmcb_operand(v, i);
    vmcb_load_more(v, translated(v, pa, ACCESS_READ));
}

void insn_vmsave(struct vcpu *v, const struct insn *i)
{
    pa_t pa = vmcb_operand(v, i);
    vmcb_save_more(v, translated(v, pa, ACCESS_WRITE));
}

/* VMMCALL is for hypervisors: without an intercept it is undefined. */
void insn_vmmcall(struct vcpu *v, const struct insn *i)
{
    (void)i;
    cpu_ud(v);
}

/* "Virtual GIF": a guest that has it moves that one. */
static void set_gif(struct vcpu *v, bool gif)
{
    struct svm *x = v->svm;
    if (!x)
        cpu_ud(v);
    if (v->guest_mode && x->vgif)
        x->f[VMCB_INT_CTL] = (x->f[VMCB_INT_CTL] & ~V_GIF) | (gif ? V_GIF : 0);
    else
        v->gif = gif;
    if (gif)
        cpu_attention(v, ATT_REQUEST | ATT_IRQ_WINDOW | (v->guest_mode ? ATT_VIRT : 0));
}

void insn_stgi(struct vcpu *v, const struct insn *i)
{
    (void)i;
    set_gif(v, true);
}

void insn_clgi(struct vcpu *v, const struct insn *i)
{
    (void)i;
    set_gif(v, false);
}

/* CPUID does not offer it: its row is never chosen. */
void insn_skinit(struct vcpu *v, const struct insn *i)
{
    (void)i;
    cpu_ud(v);
}

void insn_invlpga(struct vcpu *v, const struct insn *i)
{
    mmu_invlpga(v, (u32)v->gpr[RCX], rax_operand(v, i));
}
