/*
 * Writing x86-64 machine code. Register numbers are the encoding's; every operand size but 64 bits is
 * 32. A buffer that is full swallows what follows and says so: the translation is then thrown away.
 */
#pragma once
#include "base/bits.h"

enum host_reg { H_RAX, H_RCX, H_RDX, H_RBX, H_RSP, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_R12, H_R13, H_R14, H_R15 };
#define H_NONE 16

enum host_cc { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A, CC_S, CC_NS, CC_P, CC_NP, CC_L, CC_GE, CC_LE, CC_G };

struct code_buf {
    u8 *p, *end;
    bool full;
};

static inline void put_bytes(struct code_buf *c, const void *bytes, size_t n)
{
    if ((size_t)(c->end - c->p) < n) {
        c->full = true;
        return;
    }
    memcpy(c->p, bytes, n);
    c->p += n;
}
static inline void put1(struct code_buf *c, unsigned x)
{
    u8 b = (u8)x;
    put_bytes(c, &b, 1);
}
static inline void put4(struct code_buf *c, u32 x) { put_bytes(c, &x, 4); }
static inline void put8(struct code_buf *c, u64 x) { put_bytes(c, &x, 8); }

/* An opcode of one byte, or two (0x0fXX). */
static inline void put_opcode(struct code_buf *c, unsigned op)
{
    if (op > 0xff)
        put1(c, op >> 8);
    put1(c, op & 0xff);
}

static inline void put_rex(struct code_buf *c, bool w, unsigned reg, unsigned index, unsigned base)
{
    unsigned rex = (w ? 8u : 0) | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | (base >> 3 & 1);
    if (rex)
        put1(c, 0x40 | rex);
}

/* op reg, rm */
static inline void put_rr(struct code_buf *c, bool w, unsigned op, unsigned reg, unsigned rm)
{
    put_rex(c, w, reg, 0, rm);
    put_opcode(c, op);
    put1(c, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

static inline void put_address(struct code_buf *c, unsigned reg, unsigned base, unsigned index, unsigned scale, s32 disp)
{
    if (base == H_NONE) { /* [index << scale + disp32], or [disp32] */
        put1(c, (reg & 7) << 3 | 4);
        put1(c, scale << 6 | (index == H_NONE ? 4 : index & 7) << 3 | 5);
        put4(c, (u32)disp);
        return;
    }
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp == (s8)disp ? 1 : 2;
    bool sib = index != H_NONE || (base & 7) == 4;
    put1(c, mod << 6 | (reg & 7) << 3 | (sib ? 4 : base & 7));
    if (sib)
        put1(c, (index == H_NONE ? 0 : scale) << 6 | (index == H_NONE ? 4 : index & 7) << 3 | (base & 7));
    if (mod == 1)
        put1(c, (u8)disp);
    else if (mod == 2)
        put4(c, (u32)disp);
}

/* op reg, [base + index << scale + disp] */
static inline void put_rmx(struct code_buf *c, bool w, unsigned op, unsigned reg, unsigned base, unsigned index, unsigned scale,
                           s32 disp)
{
    put_rex(c, w, reg, index == H_NONE ? 0 : index, base == H_NONE ? 0 : base);
    put_opcode(c, op);
    put_address(c, reg, base, index, scale, disp);
}
static inline void put_rm(struct code_buf *c, bool w, unsigned op, unsigned reg, unsigned base, s32 disp)
{
    put_rmx(c, w, op, reg, base, H_NONE, 0, disp);
}

static inline void put_mov_rr(struct code_buf *c, unsigned dst, unsigned src)
{
    if (dst != src)
        put_rr(c, true, 0x8b, dst, src);
}
static inline void put_mov_imm32(struct code_buf *c, unsigned dst, u32 imm) /* zero-extends */
{
    put_rex(c, false, 0, 0, dst);
    put1(c, 0xb8 | (dst & 7));
    put4(c, imm);
}
static inline void put_mov_imm(struct code_buf *c, unsigned dst, u64 imm)
{
    if (imm <= 0xffffffffu) {
        put_mov_imm32(c, dst, (u32)imm);
    } else if ((s64)imm == (s32)imm) {
        put_rr(c, true, 0xc7, 0, dst);
        put4(c, (u32)imm);
    } else {
        put_rex(c, true, 0, 0, dst);
        put1(c, 0xb8 | (dst & 7));
        put8(c, imm);
    }
}
/* ADD /0, OR /1, AND /4, SUB /5, CMP /7 with an immediate */
static inline void put_alu_imm(struct code_buf *c, bool w, unsigned ext, unsigned reg, s32 imm)
{
    bool small = imm == (s8)imm;
    put_rr(c, w, small ? 0x83 : 0x81, ext, reg);
    if (small)
        put1(c, (u8)imm);
    else
        put4(c, (u32)imm);
}
static inline void put_alu_imm_mem(struct code_buf *c, bool w, unsigned ext, unsigned base, s32 disp, s32 imm)
{
    bool small = imm == (s8)imm;
    put_rm(c, w, small ? 0x83 : 0x81, ext, base, disp);
    if (small)
        put1(c, (u8)imm);
    else
        put4(c, (u32)imm);
}

/* Jumps: the address of the rel32 is returned (NULL when full), to be set by put_target(). */
static inline u8 *put_jcc(struct code_buf *c, unsigned cc)
{
    put1(c, 0x0f);
    put1(c, 0x80 | cc);
    put4(c, 0);
    return c->full ? NULL : c->p - 4;
}
static inline u8 *put_jmp(struct code_buf *c)
{
    put1(c, 0xe9);
    put4(c, 0);
    return c->full ? NULL : c->p - 4;
}
static inline void put_target(u8 *at, const u8 *target)
{
    if (at)
        store32(at, (u32)(target - (at + 4)));
}
static inline void put_jmp_to(struct code_buf *c, const u8 *target) { put_target(put_jmp(c), target); }
static inline void put_call_to(struct code_buf *c, const u8 *target)
{
    put1(c, 0xe8);
    put4(c, 0);
    if (!c->full)
        put_target(c->p - 4, target);
}
static inline void put_push(struct code_buf *c, unsigned r)
{
    put_rex(c, false, 0, 0, r);
    put1(c, 0x50 | (r & 7));
}
static inline void put_pop(struct code_buf *c, unsigned r)
{
    put_rex(c, false, 0, 0, r);
    put1(c, 0x58 | (r & 7));
}
