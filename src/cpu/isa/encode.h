/*
 * The encoder: re-emits a decoded instruction with other registers and another memory operand, as
 * 64-bit code for the host. Both engines use it: the interpreter for its one-instruction thunks
 * (cpu/borrow.c), the JIT for rows of class `copy`.
 */
#pragma once
#include "cpu/isa/insn.h"

/* What replaces the registers and the address of an instruction. Fields the row has no operand for are ignored. */
struct encode_regs {
    u8 reg, rm, vvvv, is4;  /* ModRM.reg; ModRM.rm or opcode+r, when a register; VEX vvvv; imm8[7:4]. 0..15, vectors 0..31 */
    u8 mask;                /* EVEX opmask; 0 stays 0 whatever is here */
    u8 base;                /* memory form: host register with the address, 0..15 */
    u8 index;               /* REG_NONE; else a host register added << scale (VSIB: a vector register) */
    u8 scale;
    bool high_reg, high_rm; /* byte operand reg or rm is AH..BH (numbers 0..3); no REX can be used with it */
    s32 disp;
};

#define INSN_ENCODE_MAX 16

/*
 * Writes the instruction to @out (INSN_ENCODE_MAX bytes) and returns its length; 0 when the row
 * cannot be re-emitted so (branches, far pointers, moffs, string, segment and system registers, or
 * a high byte register together with something that needs REX). Segment override, address-size and
 * repeat prefixes are dropped: the address is @regs' already.
 */
unsigned insn_encode(const struct insn *i, const struct encode_regs *regs, u8 *out);

/* Whether the row's ModRM.reg / ModRM.rm name an operand (else they are opcode bits). */
bool insn_reg_is_operand(const struct insn *i);
bool insn_rm_is_operand(const struct insn *i);
/* REX.W, VEX.W or EVEX.W of the instruction. */
bool insn_wide(const struct insn *i);
