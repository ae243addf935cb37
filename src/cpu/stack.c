/*
 * The stack: PUSH, POP, PUSHA, POPA, ENTER, LEAVE. RSP changes after everything that can fault, so
 * that a fault leaves it where it was (SDM vol. 3 "Fault-class exceptions restore the stack pointer").
 */
#include "cpu/bodies_int.h"
#include "cpu/operand.h"

void stack_push(struct vcpu *v, u64 value, unsigned size) { push_inline(v, value, size); }

u64 stack_peek(struct vcpu *v, u64 *rsp, unsigned size) { return peek_inline(v, rsp, size); }

void insn_push_reg(struct vcpu *v, const struct insn *i)
{
    unsigned size = stack_opsize(v, i);
    if (likely(size == 8))
        push_inline(v, v->gpr[i->rm], 8);
    else
        push_inline(v, reg_get(v, i->rm, size), size);
}

void insn_pop_reg(struct vcpu *v, const struct insn *i)
{
    unsigned size = stack_opsize(v, i);
    u64 rsp = v->gpr[RSP];
    if (likely(size == 8)) {
        u64 value = peek_inline(v, &rsp, 8);
        stack_set_pointer(v, rsp);
        v->gpr[i->rm] = value; /* POP RSP: the value popped wins */
        return;
    }
    u64 value = peek_inline(v, &rsp, size);
    stack_set_pointer(v, rsp);
    reg_set(v, i->rm, value, size);
}

void insn_push_rm(struct vcpu *v, const struct insn *i)
{
    unsigned size = stack_opsize(v, i);
    push_inline(v, rm_get(v, i, size), size);
}

void insn_push_imm(struct vcpu *v, const struct insn *i)
{
    push_inline(v, i->imm, stack_opsize(v, i));
}

void insn_pop_rm(struct vcpu *v, const struct insn *i)
{
    unsigned size = stack_opsize(v, i);
    u64 old = v->gpr[RSP], rsp = old;
    u64 value = peek_inline(v, &rsp, size);
    if (!(i->flags & INSN_MEM)) {
        stack_set_pointer(v, rsp);
        reg_set(v, i->rm, value, size);
        return;
    }
    /* An address based on RSP is computed after the increment (SDM vol. 2 "POP"). */
    stack_set_pointer(v, rsp);
    u64 ea = insn_ea(v, i);
    v->gpr[RSP] = old;
    mem_put(v, i->seg, ea, value, size);
    stack_set_pointer(v, rsp);
}

void insn_pusha(struct vcpu *v, const struct insn *i)
{
    unsigned size = i->opsize;
    u64 mask = stack_mask(v), top = v->gpr[RSP];
    /* In the order of the pushes, RAX first, which says what address a fault reports. */
    for (unsigned r = 0; r < 8; r++)
        mem_probe_write(v, SEG_SS, (top - (r + 1) * size) & mask, size);
    for (unsigned r = 0; r < 8; r++)
        mem_put(v, SEG_SS, (top - (r + 1) * size) & mask, v->gpr[r], size);
    stack_set_pointer(v, (top - 8 * size) & mask);
}

void insn_popa(struct vcpu *v, const struct insn *i)
{
    u64 rsp = v->gpr[RSP], values[8];
    for (unsigned r = 0; r < 8; r++)
        values[r] = peek_inline(v, &rsp, i->opsize);
    stack_set_pointer(v, rsp);
    for (unsigned r = 0; r < 8; r++)
        if (7 - r != RSP)
            reg_set(v, 7 - r, values[r], i->opsize);
}

void insn_enter(struct vcpu *v, const struct insn *i)
{
    unsigned size = stack_opsize(v, i), level = i->imm2 & 31;
    u64 mask = stack_mask(v), sp = (v->gpr[RSP] - size) & mask, bp = v->gpr[RBP];
    mem_put(v, SEG_SS, sp, v->gpr[RBP], size);
    u64 frame = sp;
    if (level) {
        for (unsigned n = 1; n < level; n++) {
            bp = (bp - size) & mask;
            u64 link = mem_get(v, SEG_SS, bp, size);
            sp = (sp - size) & mask;
            mem_put(v, SEG_SS, sp, link, size);
        }
        sp = (sp - size) & mask;
        mem_put(v, SEG_SS, sp, frame, size);
    }
    sp = (sp - (u16)i->imm) & mask;
    /* A write with the final stack pointer must be possible (SDM vol. 2 "ENTER", exceptions). */
    mem_probe_write(v, SEG_SS, sp, size);
    reg_set(v, RBP, frame, size);
    stack_set_pointer(v, sp);
}

void insn_leave(struct vcpu *v, const struct insn *i)
{
    unsigned size = stack_opsize(v, i);
    u64 rsp = v->gpr[RBP];
    u64 value = peek_inline(v, &rsp, size);
    stack_set_pointer(v, rsp);
    reg_set(v, RBP, value, size);
}
