/* One-operand multiplication and division, sign extension into rDX, and decimal arithmetic. */
#include "cpu/bodies_int.h"
#include "cpu/operand.h"
#include "cpu/ops_arith.h"

/* AX, or rDX:rAX, by the operand size. */
static void put_pair(struct vcpu *v, u64 lo, u64 hi, unsigned size)
{
    if (size == 1) {
        reg16_set(v, RAX, (u16)lo);
    } else {
        reg_set(v, RAX, lo, size);
        reg_set(v, RDX, hi, size);
    }
}

/* The flags that the manual leaves undefined are the host's, which may depend on those before. */
#define HOST_OP(mnemonic, operand)                                                                           \
    __asm__(FLAGS_LOAD "mov %1, %%rax\n\t" mnemonic " " operand "\n\tmov %%rax, %1\n\t" FLAGS_SAVE               \
            : "+&a"(f), "+&r"(lo), "+&d"(hi)                                                                    \
            : "r"(x)                                                                                          \
            : "cc")
#define HOST_OP_SIZED(mnemonic)                                                                              \
    switch (size) {                                                                                         \
    case 1: HOST_OP(mnemonic "b", "%b3"); break;                                                              \
    case 2: HOST_OP(mnemonic "w", "%w3"); break;                                                              \
    case 4: HOST_OP(mnemonic "l", "%k3"); break;                                                              \
    default: HOST_OP(mnemonic "q", "%3");                                                                     \
    }

void insn_mul(struct vcpu *v, const struct insn *i)
{
    unsigned size = row_size(i);
    u64 x = rm_get(v, i, size), lo = v->gpr[RAX], hi = 0;
    u32 f = flags_get(v);
    HOST_OP_SIZED("mul")
    flags_put(v, f);
    put_pair(v, lo, hi, size);
}

void insn_imul_rm(struct vcpu *v, const struct insn *i)
{
    unsigned size = row_size(i);
    u64 x = rm_get(v, i, size), lo = v->gpr[RAX], hi = 0;
    u32 f = flags_get(v);
    HOST_OP_SIZED("imul")
    flags_put(v, f);
    put_pair(v, lo, hi, size);
}

/* The dividend, zero-extended: AX, DX:AX, EDX:EAX, RDX:RAX. */
static u128 dividend(const struct vcpu *v, unsigned size)
{
    if (size == 1)
        return (u16)v->gpr[RAX];
    return (u128)(v->gpr[RDX] & size_mask(size)) << 8 * size | (v->gpr[RAX] & size_mask(size));
}

void insn_div(struct vcpu *v, const struct insn *i)
{
    unsigned size = row_size(i);
    u64 x = rm_get(v, i, size), lo = v->gpr[RAX], hi = v->gpr[RDX];
    /* The quotient fits when the upper half of the dividend is below the divisor (never, when that is 0). */
    if ((u64)(dividend(v, size) >> 8 * size) >= x)
        cpu_raise(v, VEC_DE);
    u32 f = flags_get(v);
    HOST_OP_SIZED("div")
    flags_put(v, f);
    put_pair(v, lo, hi, size);
}

void insn_idiv(struct vcpu *v, const struct insn *i)
{
    unsigned size = row_size(i), bits = 8 * size;
    u64 x = rm_get(v, i, size), lo = v->gpr[RAX], hi = v->gpr[RDX];
    /* |dividend| and |divisor|; a quotient fits up to 2^(bits-1), that included when it is negative. */
    u128 n = dividend(v, size), sign = (u128)1 << (2 * bits - 1);
    bool negative = n & sign;
    if (negative)
        n = (sign << 1) - n; /* 2^128 wraps to 0, as wanted */
    s64 divisor = sign_extend(x, bits);
    u64 d = divisor < 0 ? -(u64)divisor : (u64)divisor;
    negative ^= divisor < 0;
    u128 bound = ((u128)d << (bits - 1)) + (negative ? d : 0);
    if (n >= bound)
        cpu_raise(v, VEC_DE);
    u32 f = flags_get(v);
    HOST_OP_SIZED("idiv")
    flags_put(v, f);
    put_pair(v, lo, hi, size);
}

/* MULX rd1, rd2, r/m: high half to ModRM.reg, low half to vvvv, which is written first. No flags. */
void insn_mulx(struct vcpu *v, const struct insn *i)
{
    u64 x = rm_get(v, i, i->opsize);
    if (i->opsize == 8) {
        u128 p = (u128)v->gpr[RDX] * x;
        v->gpr[i->vvvv] = (u64)p;
        v->gpr[i->reg] = (u64)(p >> 64);
    } else {
        u64 p = (u64)(u32)v->gpr[RDX] * (u32)x;
        v->gpr[i->vvvv] = (u32)p;
        v->gpr[i->reg] = p >> 32;
    }
}

/* 99: CWD, CDQ, CQO. */
void insn_cwd(struct vcpu *v, const struct insn *i)
{
    reg_set(v, RDX, (u64)(sign_extend(v->gpr[RAX], 8 * i->opsize) >> 63), i->opsize);
}

/* 98: CBW, CWDE, CDQE. */
void insn_cbw(struct vcpu *v, const struct insn *i)
{
    reg_set(v, RAX, (u64)sign_extend(v->gpr[RAX], 4 * i->opsize), i->opsize);
}

/* ---- decimal arithmetic: not in the host's 64-bit mode, so by the manual's pseudo-code (SDM vol. 2) ---- */

/* SF, ZF, PF of AL, with the CF and AF given; OF stays as it was. */
static void decimal_flags(struct vcpu *v, bool cf, bool af)
{
    u32 of = v->aflags & FL_OF;
    op_test8(v, (u8)v->gpr[RAX], (u8)v->gpr[RAX]);
    v->aflags = (v->aflags & (FL_SF | FL_ZF | FL_PF)) | of | (cf ? FL_CF : 0) | (af ? FL_AF : 0);
}

static void decimal_adjust(struct vcpu *v, int sign)
{
    u8 old = (u8)v->gpr[RAX], al = old;
    bool old_cf = v->aflags & FL_CF, cf = false;
    bool af = (al & 15) > 9 || (v->aflags & FL_AF);
    if (af) {
        cf = old_cf || (sign > 0 ? al > 0xff - 6 : al < 6);
        al = (u8)(al + 6 * sign);
    }
    if (old > 0x99 || old_cf) {
        al = (u8)(al + 0x60 * sign);
        cf = true;
    } else if (sign > 0) {
        cf = false;
    }
    reg8_set(v, 0, al);
    decimal_flags(v, cf, af);
}

void insn_daa(struct vcpu *v, const struct insn *i) { decimal_adjust(v, 1); }
void insn_das(struct vcpu *v, const struct insn *i) { decimal_adjust(v, -1); }

static void ascii_adjust(struct vcpu *v, int sign)
{
    bool adjust = (v->gpr[RAX] & 15) > 9 || (v->aflags & FL_AF);
    if (adjust)
        reg16_set(v, RAX, (u16)(v->gpr[RAX] + 0x106 * sign));
    reg8_set(v, 0, (u8)v->gpr[RAX] & 15);
    decimal_flags(v, adjust, adjust);
}

void insn_aaa(struct vcpu *v, const struct insn *i) { ascii_adjust(v, 1); }
void insn_aas(struct vcpu *v, const struct insn *i) { ascii_adjust(v, -1); }

void insn_aam(struct vcpu *v, const struct insn *i)
{
    u8 base = (u8)i->imm, al = (u8)v->gpr[RAX];
    if (!base)
        cpu_raise(v, VEC_DE);
    reg16_set(v, RAX, (u16)(al / base << 8 | al % base));
    op_test8(v, (u8)v->gpr[RAX], (u8)v->gpr[RAX]);
}

void insn_aad(struct vcpu *v, const struct insn *i)
{
    u8 al = (u8)v->gpr[RAX], ah = (u8)(v->gpr[RAX] >> 8);
    al = (u8)(al + ah * (u8)i->imm);
    reg16_set(v, RAX, al);
    op_test8(v, al, al);
}
