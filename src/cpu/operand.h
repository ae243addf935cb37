/* Operands of raw bodies, by size in bytes: registers, r/m, memory. */
#pragma once
#include "cpu/mem.h"

/* Bits of a value of @size bytes (1, 2, 4, 8). */
static alwaysinline u64 size_mask(unsigned size) { return ~0ull >> (64 - 8 * size); }

/* @r is a register number; for bytes a byte offset in the register file (insn.h: reg8, rm8). */
static alwaysinline u64 reg_get(const struct vcpu *v, unsigned r, unsigned size)
{
    switch (size) {
    case 1: return reg8_get(v, r);
    case 2: return reg16_get(v, r);
    case 4: return reg32_get(v, r);
    default: return reg64_get(v, r);
    }
}
static alwaysinline void reg_set(struct vcpu *v, unsigned r, u64 x, unsigned size)
{
    switch (size) {
    case 1: reg8_set(v, r, (u8)x); break;
    case 2: reg16_set(v, r, (u16)x); break;
    case 4: reg32_set(v, r, (u32)x); break;
    default: reg64_set(v, r, x);
    }
}

static alwaysinline u64 mem_get(struct vcpu *v, unsigned seg, u64 offset, unsigned size)
{
    switch (size) {
    case 1: return mem_read8(v, seg, offset);
    case 2: return mem_read16(v, seg, offset);
    case 4: return mem_read32(v, seg, offset);
    default: return mem_read64(v, seg, offset);
    }
}
static alwaysinline void mem_put(struct vcpu *v, unsigned seg, u64 offset, u64 x, unsigned size)
{
    switch (size) {
    case 1: mem_write8(v, seg, offset, (u8)x); break;
    case 2: mem_write16(v, seg, offset, (u16)x); break;
    case 4: mem_write32(v, seg, offset, (u32)x); break;
    default: mem_write64(v, seg, offset, x);
    }
}

/* Eb when @size is 1, else Ev. */
static alwaysinline u64 rm_get(struct vcpu *v, const struct insn *i, unsigned size)
{
    if (i->flags & INSN_MEM)
        return mem_get(v, i->seg, insn_ea(v, i), size);
    return reg_get(v, size == 1 ? i->rm8 : i->rm, size);
}
static alwaysinline u64 rmw_begin(struct vcpu *v, unsigned seg, u64 offset, struct rmw *m, unsigned size)
{
    switch (size) {
    case 1: return rmw_begin8(v, seg, offset, m);
    case 2: return rmw_begin16(v, seg, offset, m);
    case 4: return rmw_begin32(v, seg, offset, m);
    default: return rmw_begin64(v, seg, offset, m);
    }
}
static alwaysinline void rmw_end(struct vcpu *v, struct rmw *m, u64 x, unsigned size)
{
    switch (size) {
    case 1: rmw_end8(v, m, (u8)x); break;
    case 2: rmw_end16(v, m, (u16)x); break;
    case 4: rmw_end32(v, m, (u32)x); break;
    default: rmw_end64(v, m, x);
    }
}
/* The size of integer rows whose even opcode is the byte form. */
static alwaysinline unsigned row_size(const struct insn *i) { return i->opcode & 1 ? i->opsize : 1; }

/* PUSH, POP, near branches: 32-bit operands do not exist in 64-bit mode. */
static alwaysinline unsigned stack_opsize(const struct vcpu *v, const struct insn *i)
{
    return v->code_mode == CODE_64 && i->opsize == 4 ? 8 : i->opsize;
}

/* ---- the stack, inline for the hot bodies ---- */
static alwaysinline void push_inline(struct vcpu *v, u64 value, unsigned size)
{
    u64 sp = (v->gpr[RSP] - size) & stack_mask(v);
    mem_put(v, SEG_SS, sp, value, size);
    stack_set_pointer(v, sp);
}
static alwaysinline u64 peek_inline(struct vcpu *v, u64 *rsp, unsigned size)
{
    u64 mask = stack_mask(v);
    u64 value = mem_get(v, SEG_SS, *rsp & mask, size);
    *rsp = (*rsp + size) & mask;
    return value;
}
