/*
 * PUSHF, POPF, CLI, STI, CLAC, STAC.
 * Manual: Intel SDM 325462 (2023), vol. 2 of each; vol. 3 "Virtual Mode Extensions" and
 * "Protected-Mode Virtual Interrupts".
 */
#include "cpu/system.h"

static unsigned iopl(const struct vcpu *v) { return (unsigned)(v->rflags >> 12) & 3; }

void insn_pushf(struct vcpu *v, const struct insn *i)
{
    u64 flags = cpu_rflags(v) & ~(FL_VM | FL_RF);
    if (v->mode == MODE_V86 && iopl(v) < 3) {
        if (!(v->cr4 & CR4_VME) || i->opsize != 2)
            cpu_gp0(v);
        flags = (flags & ~FL_IF) | FL_IOPL | (flags & FL_VIF ? FL_IF : 0);
    }
    stack_push(v, flags, i->opsize);
}

void insn_popf(struct vcpu *v, const struct insn *i)
{
    u64 mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
    if (i->opsize != 2)
        mask |= FL_AC | FL_ID;
    bool vme = v->mode == MODE_V86 && iopl(v) < 3;
    if (vme && (!(v->cr4 & CR4_VME) || i->opsize != 2))
        cpu_gp0(v);
    if (v->cpl == 0)
        mask |= FL_IF | FL_IOPL;
    else if (v->cpl <= iopl(v))
        mask |= FL_IF;

    u64 rsp = v->gpr[RSP];
    u64 flags = stack_peek(v, &rsp, i->opsize);
    if (vme) {
        if ((flags & FL_TF) || ((flags & FL_IF) && (v->rflags & FL_VIP)))
            cpu_gp0(v);
        mask |= FL_VIF;
        flags = (flags & ~FL_VIF) | (flags & FL_IF ? FL_VIF : 0);
    }
    stack_set_pointer(v, rsp);
    cpu_put_rflags(v, ((cpu_rflags(v) & ~mask) | (flags & mask)) & ~FL_RF);
    cpu_flags_changed(v);
}

/* Whether CLI and STI act on IF, on VIF (virtual-8086 mode or PVI), or fault. */
enum if_target { ON_IF, ON_VIF };

static enum if_target interrupt_flag(struct vcpu *v)
{
    if (v->mode == MODE_REAL || iopl(v) >= v->cpl)
        return ON_IF;
    if (v->mode == MODE_V86 ? v->cr4 & CR4_VME : v->cpl == 3 && (v->cr4 & CR4_PVI))
        return ON_VIF;
    cpu_gp0(v);
}

void insn_cli(struct vcpu *v, const struct insn *i)
{
    (void)i;
    v->rflags &= ~(interrupt_flag(v) == ON_IF ? FL_IF : FL_VIF);
}

void insn_sti(struct vcpu *v, const struct insn *i)
{
    (void)i;
    if (interrupt_flag(v) == ON_VIF) {
        if (v->rflags & FL_VIP)
            cpu_gp0(v);
        v->rflags |= FL_VIF;
        return;
    }
    if (v->rflags & FL_IF)
        return;
    v->rflags |= FL_IF;
    cpu_set_shadow(v, SHADOW_STI);
    cpu_rearm(v); /* guest mode: a virtual interrupt may wait for IF */
}

static void set_ac(struct vcpu *v, bool on)
{
    if (v->cpl != 0)
        cpu_ud(v);
    u64 old = v->rflags;
    v->rflags = on ? old | FL_AC : old & ~FL_AC;
    if (v->rflags != old)
        mmu_update_privilege(v);
}

void insn_clac(struct vcpu *v, const struct insn *i) { (void)i; set_ac(v, false); }
void insn_stac(struct vcpu *v, const struct insn *i) { (void)i; set_ac(v, true); }
