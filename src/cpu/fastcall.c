/*
 * SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS.
 * Manual: Intel SDM 325462 (2023) and AMD APM 24593, vol. 3 ("System Instructions") of each. Where they
 * differ the processor model decides: Intel knows SYSCALL and SYSRET in 64-bit mode only, AMD knows
 * SYSENTER and SYSEXIT outside long mode only.
 */
#include "cpu/cet.h"
#include "cpu/system.h"

/* A flat segment; CS and SS only. */
static void set_flat(struct vcpu *v, unsigned seg, unsigned sel, u32 ar, unsigned dpl)
{
    v->seg[seg] = (struct segment){.sel = (u16)sel, .base = 0, .limit = 0xffffffff, .ar = ar | AR_SET_DPL(dpl)};
}

/*
 * Single-stepping these instructions goes by the TF they leave, not the one they found: a SYSCALL that
 * masks TF is not followed by a trap, a SYSRET that sets it is.
 */
static void step_by_new_tf(struct vcpu *v)
{
    if (v->rflags & FL_TF)
        cpu_attention(v, ATT_TF);
    else
        atomic_fetch_and_explicit(&v->attention, ~(u32)ATT_TF, memory_order_relaxed);
}

void insn_syscall(struct vcpu *v, const struct insn *i)
{
    (void)i;
    bool amd = cpu_is_amd(v);
    if (!(v->efer & EFER_SCE) || !cpu_protected(v) || (!amd && v->mode != MODE_LONG64))
        cpu_ud(v);
    unsigned sel = (unsigned)(v->star >> 32) & 0xfffc;
    if (cpu_lma(v)) {
        u64 target = v->mode == MODE_LONG64 ? v->lstar : v->cstar;
        v->gpr[RCX] = v->next_rip;
        v->gpr[R11] = cpu_rflags(v) & ~FL_RF;
        v->next_rip = target;
        set_flat(v, SEG_CS, sel, AR_FLAT_CODE64, 0);
        set_flat(v, SEG_SS, sel + 8, AR_FLAT_DATA, 0);
        cpu_put_rflags(v, cpu_rflags(v) & ~(v->sfmask | FL_RF));
    } else {
        v->gpr[RCX] = (u32)v->next_rip;
        v->next_rip = (u32)v->star;
        set_flat(v, SEG_CS, sel, AR_FLAT_CODE32, 0);
        set_flat(v, SEG_SS, sel + 8, AR_FLAT_DATA, 0);
        cpu_put_rflags(v, cpu_rflags(v) & ~(FL_VM | FL_IF | FL_RF));
    }
    if (cet_on(v))
        cet_fast_entry(v);
    cs_ss_changed(v, 0);
    step_by_new_tf(v);
    cpu_flags_changed(v);
}

void insn_sysret(struct vcpu *v, const struct insn *i)
{
    bool amd = cpu_is_amd(v), to64 = i->opsize == 8;
    if (!(v->efer & EFER_SCE) || !cpu_protected(v) || (!amd && v->mode != MODE_LONG64))
        cpu_ud(v);
    if (v->cpl != 0)
        cpu_gp0(v);
    unsigned sel = (unsigned)(v->star >> 48);
    if (cpu_lma(v)) {
        u64 target = to64 ? v->gpr[RCX] : (u32)v->gpr[RCX];
        if (!amd && to64 && !cpu_canonical(v, target))
            cpu_gp0(v);
        cpu_put_rflags(v, v->gpr[R11] & 0x3c7fd7);
        v->next_rip = target;
    } else {
        v->next_rip = (u32)v->gpr[RCX];
        cpu_put_rflags(v, cpu_rflags(v) | FL_IF);
    }
    set_flat(v, SEG_CS, (to64 ? sel + 16 : sel) | 3, to64 ? AR_FLAT_CODE64 : AR_FLAT_CODE32, 3);
    set_flat(v, SEG_SS, (sel + 8) | 3, AR_FLAT_DATA, 3);
    if (cet_on(v))
        cet_fast_exit(v);
    cs_ss_changed(v, 3);
    step_by_new_tf(v);
    cpu_flags_changed(v);
}

void insn_sysenter(struct vcpu *v, const struct insn *i)
{
    (void)i;
    bool lma = cpu_lma(v);
    if (lma && cpu_is_amd(v))
        cpu_ud(v);
    unsigned sel = (unsigned)v->sysenter_cs & 0xfffc;
    if (!(v->cr0 & CR0_PE) || sel == 0)
        cpu_gp0(v);
    cpu_put_rflags(v, cpu_rflags(v) & ~(FL_VM | FL_IF | FL_RF));
    v->gpr[RSP] = lma ? v->sysenter_esp : (u32)v->sysenter_esp;
    v->next_rip = lma ? v->sysenter_eip : (u32)v->sysenter_eip;
    set_flat(v, SEG_CS, sel, lma ? AR_FLAT_CODE64 : AR_FLAT_CODE32, 0);
    set_flat(v, SEG_SS, sel + 8, AR_FLAT_DATA, 0);
    if (cet_on(v))
        cet_fast_entry(v);
    cs_ss_changed(v, 0);
    cpu_flags_changed(v);
}

void insn_sysexit(struct vcpu *v, const struct insn *i)
{
    bool to64 = i->opsize == 8;
    if (cpu_lma(v) && cpu_is_amd(v))
        cpu_ud(v);
    unsigned sel = (unsigned)v->sysenter_cs & 0xfffc;
    if (!cpu_protected(v) || sel == 0 || v->cpl != 0)
        cpu_gp0(v);
    u64 rip = v->gpr[RDX], rsp = v->gpr[RCX];
    if (!to64) {
        rip = (u32)rip;
        rsp = (u32)rsp;
    } else if (!cpu_canonical(v, rip) || !cpu_canonical(v, rsp)) {
        cpu_gp0(v);
    }
    v->next_rip = rip;
    v->gpr[RSP] = rsp;
    set_flat(v, SEG_CS, (sel + (to64 ? 32 : 16)) | 3, to64 ? AR_FLAT_CODE64 : AR_FLAT_CODE32, 3);
    set_flat(v, SEG_SS, (sel + (to64 ? 40 : 24)) | 3, AR_FLAT_DATA, 3);
    if (cet_on(v))
        cet_fast_exit(v);
    cs_ss_changed(v, 3);
}

void insn_swapgs(struct vcpu *v, const struct insn *i)
{
    (void)i;
    if (v->mode != MODE_LONG64)
        cpu_ud(v);
    if (v->cpl != 0)
        cpu_gp0(v);
    u64 base = v->seg[SEG_GS].base;
    v->seg[SEG_GS].base = v->seg_base[SEG_GS] = v->kernel_gs_base;
    v->kernel_gs_base = base;
}
