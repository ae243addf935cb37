/*
 * Near control transfers. The target is checked before anything is stored: outside 64-bit mode it is
 * truncated to the operand size and must lie within the CS limit, in 64-bit mode (where the decoder
 * makes the operand size 64 bits, but AMD models heed a 66 prefix) it must be canonical; else #GP(0) with the branch itself as the saved RIP.
 */
#include "cpu/bodies_int.h"
#include "cpu/operand.h"
#include "cpu/ops_flags.h"

static alwaysinline u64 branch_target(struct vcpu *v, const struct insn *i, u64 target)
{
    if (likely(i->opsize == 8)) {
        /* Same upper bits as the running code: canonical. */
        if (unlikely((target ^ v->rip) >> 47) && !cpu_canonical(v, target))
            cpu_gp0(v);
        return target;
    }
    target &= i->opsize == 2 ? 0xffffu : 0xffffffffu;
    if (unlikely(target > v->seg[SEG_CS].limit) && v->code_mode != CODE_64)
        cpu_gp0(v);
    return target;
}

void insn_jmp_rel(struct vcpu *v, const struct insn *i)
{
    v->next_rip = branch_target(v, i, v->next_rip + i->imm);
}

void insn_jcc(struct vcpu *v, const struct insn *i)
{
    if (cc_holds(v, i->opcode))
        v->next_rip = branch_target(v, i, v->next_rip + i->imm);
}

void insn_jmp_ind(struct vcpu *v, const struct insn *i)
{
    v->next_rip = branch_target(v, i, rm_get(v, i, i->opsize));
}

void insn_call_rel(struct vcpu *v, const struct insn *i)
{
    u64 target = branch_target(v, i, v->next_rip + i->imm);
    push_inline(v, v->next_rip, i->opsize);
    v->next_rip = target;
}

void insn_call_ind(struct vcpu *v, const struct insn *i)
{
    unsigned size = i->opsize;
    u64 target = branch_target(v, i, rm_get(v, i, size));
    push_inline(v, v->next_rip, size);
    v->next_rip = target;
}

void insn_ret(struct vcpu *v, const struct insn *i)
{
    u64 rsp = v->gpr[RSP];
    u64 target = branch_target(v, i, peek_inline(v, &rsp, i->opsize));
    if (i->opcode == 0xc2)
        rsp += (u16)i->imm;
    stack_set_pointer(v, rsp);
    v->next_rip = target;
}

/* LOOP counts in the address size; a fault at the target leaves the count as it was. */
static void loop_if(struct vcpu *v, const struct insn *i, bool condition)
{
    u64 count = (v->gpr[RCX] - 1) & size_mask(i->adsize);
    if (count && condition)
        v->next_rip = branch_target(v, i, v->next_rip + i->imm);
    reg_set(v, RCX, count, i->adsize);
}

void insn_loop(struct vcpu *v, const struct insn *i) { loop_if(v, i, true); }
void insn_loope(struct vcpu *v, const struct insn *i) { loop_if(v, i, v->aflags & FL_ZF); }
void insn_loopne(struct vcpu *v, const struct insn *i) { loop_if(v, i, !(v->aflags & FL_ZF)); }

void insn_jrcxz(struct vcpu *v, const struct insn *i)
{
    if (!(v->gpr[RCX] & size_mask(i->adsize)))
        v->next_rip = branch_target(v, i, v->next_rip + i->imm);
}
