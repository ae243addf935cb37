/* Value bodies: bit tests and scans, counts, BMI, CRC32. */
#pragma once
#include "cpu/ops_flags.h"

/* Register (or immediate) bit numbers are taken modulo the width by the host's register form. */
#define OP_BT(bits)                                                                                          \
    static alwaysinline void op_bt##bits(struct vcpu *v, u##bits a, u##bits n)                                  \
    {                                                                                                       \
        u32 f = flags_get(v);                                                                               \
        __asm__(FLAGS_LOAD "bt %2, %1\n\t" FLAGS_SAVE : "+&a"(f) : "r"(a), "r"(n) : "cc");                         \
        flags_put(v, f);                                                                                    \
    }
#define OP_BT_WRITE(name, bits)                                                                              \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a, u##bits n)                            \
    {                                                                                                       \
        u32 f = flags_get(v);                                                                               \
        __asm__(FLAGS_LOAD #name " %2, %0\n\t" FLAGS_SAVE : "+r"(a), "+&a"(f) : "r"(n) : "cc");                    \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }
/*
 * BSF and BSR of 0 leave the destination as it was (documented by AMD, done by everybody), with
 * 32-bit operands the upper half too: those rows have a 64-bit destination and a 32-bit source.
 */
#define OP_SCAN(name, bits)                                                                                  \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a, u##bits b)                            \
    {                                                                                                       \
        u32 f = flags_get(v);                                                                               \
        __asm__(FLAGS_LOAD #name " %2, %0\n\t" FLAGS_SAVE : "+r"(a), "+&a"(f) : "r"(b) : "cc");                    \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }
/* One source, some flags undefined. */
#define OP_UNARY(name, bits)                                                                                 \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a)                                      \
    {                                                                                                       \
        u32 f = flags_get(v);                                                                               \
        u##bits r;                                                                                          \
        __asm__(FLAGS_LOAD #name " %2, %0\n\t" FLAGS_SAVE : "=&r"(r), "+&a"(f) : "r"(a) : "cc");                   \
        flags_put(v, f);                                                                                    \
        return r;                                                                                           \
    }
#define OP_BITS(bits)                                                                                        \
    OP_BT(bits)                                                                                             \
    OP_BT_WRITE(bts, bits)                                                                                  \
    OP_BT_WRITE(btr, bits)                                                                                  \
    OP_BT_WRITE(btc, bits)                                                                                  \
    OP_SCAN(bsf, bits)                                                                                      \
    OP_SCAN(bsr, bits)                                                                                      \
    OP_UNARY(popcnt, bits)                                                                                  \
    OP_UNARY(lzcnt, bits)                                                                                   \
    OP_UNARY(tzcnt, bits)
OP_BITS(16)
OP_BITS(32)
OP_BITS(64)

/* VEX forms; operands in Intel order: result, first source, second source. */
#define OP_VEX(name, bits, order)                                                                            \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a, u##bits b)                            \
    {                                                                                                       \
        u32 f = flags_get(v);                                                                               \
        u##bits r;                                                                                          \
        __asm__(FLAGS_LOAD #name " " order ", %0\n\t" FLAGS_SAVE : "=&r"(r), "+&a"(f) : "r"(a), "r"(b) : "cc");    \
        flags_put(v, f);                                                                                    \
        return r;                                                                                           \
    }
#define OP_VEX_FLAGLESS(name, bits)                                                                          \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a, u##bits b)                            \
    {                                                                                                       \
        u##bits r;                                                                                          \
        __asm__(#name " %2, %1, %0" : "=r"(r) : "r"(a), "r"(b));                                               \
        return r;                                                                                           \
    }
#define OP_BMI(bits)                                                                                         \
    OP_VEX(andn, bits, "%3, %2")                                                                            \
    OP_VEX(bextr, bits, "%3, %2")                                                                           \
    OP_VEX(bzhi, bits, "%3, %2")                                                                            \
    OP_UNARY(blsi, bits)                                                                                    \
    OP_UNARY(blsr, bits)                                                                                    \
    OP_UNARY(blsmsk, bits)                                                                                  \
    OP_VEX_FLAGLESS(pdep, bits)                                                                             \
    OP_VEX_FLAGLESS(pext, bits)
OP_BMI(32)
OP_BMI(64)

/* CRC32 by source width; the destination is 32 bits, or 64 with REX.W (upper half zeroed). */
#define OP_CRC32(suffix, insn, source)                                                                       \
    static alwaysinline u32 op_crc32_##suffix##32(struct vcpu *v, u32 crc, source x)                            \
    {                                                                                                       \
        __asm__(insn " %1, %0" : "+r"(crc) : "r"(x));                                                          \
        return crc;                                                                                         \
    }                                                                                                       \
    static alwaysinline u64 op_crc32_##suffix##64(struct vcpu *v, u64 crc, source x)                            \
    {                                                                                                       \
        return op_crc32_##suffix##32(v, (u32)crc, x);                                                        \
    }
OP_CRC32(b, "crc32b", u8)
OP_CRC32(w, "crc32w", u16)
OP_CRC32(d, "crc32l", u32)
static alwaysinline u64 op_crc32_q64(struct vcpu *v, u64 crc, u64 x)
{
    __asm__("crc32q %1, %0" : "+r"(crc) : "r"(x));
    return crc;
}

#undef OP_BT
#undef OP_BT_WRITE
#undef OP_SCAN
#undef OP_UNARY
#undef OP_BITS
#undef OP_VEX
#undef OP_VEX_FLAGLESS
#undef OP_BMI
#undef OP_CRC32
