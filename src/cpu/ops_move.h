/* Value bodies: moves, extensions, conditional moves and sets, byte swaps. No flags. */
#pragma once
#include "cpu/ops_flags.h"

#define OP_MOVE(bits)                                                                                        \
    static alwaysinline u##bits op_mov##bits(struct vcpu *v, u##bits x) { return x; }
OP_MOVE(8)
OP_MOVE(16)
OP_MOVE(32)
OP_MOVE(64)

#define OP_MOVES(bits)                                                                                       \
    /* The operand is the effective address itself. */                                                      \
    static alwaysinline u##bits op_lea##bits(struct vcpu *v, u64 ea) { return (u##bits)ea; }                    \
    static alwaysinline u##bits op_movzx_b##bits(struct vcpu *v, u8 x) { return x; }                            \
    static alwaysinline u##bits op_movzx_w##bits(struct vcpu *v, u16 x) { return x; }                           \
    static alwaysinline u##bits op_movsx_b##bits(struct vcpu *v, u8 x) { return (u##bits)(s8)x; }               \
    static alwaysinline u##bits op_movsx_w##bits(struct vcpu *v, u16 x) { return (u##bits)(s16)x; }             \
    static alwaysinline u##bits op_movsxd##bits(struct vcpu *v, u32 x) { return (u##bits)(s64)(s32)x; }         \
    /* The source is read, and a 32-bit destination cleared above, whether or not the move happens. */      \
    static alwaysinline u##bits op_cmovcc##bits(struct vcpu *v, u##bits old, u##bits x)                          \
    {                                                                                                       \
        return cc_holds(v, v->insn->opcode) ? x : old;                                                       \
    }
OP_MOVES(16)
OP_MOVES(32)
OP_MOVES(64)

static alwaysinline u8 op_setcc8(struct vcpu *v) { return cc_holds(v, v->insn->opcode); }

/* BSWAP with a 16-bit operand is undefined: the host's result. */
static alwaysinline u16 op_bswap16(struct vcpu *v, u16 a)
{
    __asm__(".byte 0x66, 0x0f, 0xc8" : "+a"(a)); /* bswap %ax */
    return a;
}
static alwaysinline u32 op_bswap32(struct vcpu *v, u32 a) { return __builtin_bswap32(a); }
static alwaysinline u64 op_bswap64(struct vcpu *v, u64 a) { return __builtin_bswap64(a); }

static alwaysinline u16 op_movbe16(struct vcpu *v, u16 a) { return __builtin_bswap16(a); }
static alwaysinline u32 op_movbe32(struct vcpu *v, u32 a) { return __builtin_bswap32(a); }
static alwaysinline u64 op_movbe64(struct vcpu *v, u64 a) { return __builtin_bswap64(a); }

#undef OP_MOVE
#undef OP_MOVES
