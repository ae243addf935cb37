/* Value bodies: shifts and rotates. A count that is 0 after masking changes no flag. */
#pragma once
#include "cpu/ops_flags.h"

#define COUNT_MASK(bits) ((bits) == 64 ? 63 : 31)

#define OP_SHIFT(name, bits)                                                                                 \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a, u8 count)                            \
    {                                                                                                       \
        u32 f;                                                                                              \
        if (!(count & COUNT_MASK(bits)))                                                                    \
            return a;                                                                                       \
        __asm__(#name " %%cl, %0\n\t" FLAGS_SAVE : "+q"(a), "=a"(f) : "c"(count) : "cc");                       \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }
/* Rotates leave SF, ZF, AF, PF (and for some counts OF) as they are; RCL and RCR read CF. */
#define OP_ROTATE(name, bits)                                                                                \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a, u8 count)                            \
    {                                                                                                       \
        u32 f = flags_get(v);                                                                               \
        __asm__(FLAGS_LOAD #name " %%cl, %0\n\t" FLAGS_SAVE : "+q"(a), "+&a"(f) : "c"(count) : "cc");              \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }
#define OP_SHIFTS(bits)                                                                                      \
    OP_SHIFT(shl, bits)                                                                                     \
    OP_SHIFT(shr, bits)                                                                                     \
    OP_SHIFT(sar, bits)                                                                                     \
    OP_ROTATE(rol, bits)                                                                                    \
    OP_ROTATE(ror, bits)                                                                                    \
    OP_ROTATE(rcl, bits)                                                                                    \
    OP_ROTATE(rcr, bits)
OP_SHIFTS(8)
OP_SHIFTS(16)
OP_SHIFTS(32)
OP_SHIFTS(64)

/* With 16-bit operands and counts above 16 the result is undefined too: the host's. */
#define OP_DOUBLE(name, bits)                                                                                \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a, u##bits b, u8 count)                  \
    {                                                                                                       \
        u32 f = flags_get(v);                                                                               \
        __asm__(FLAGS_LOAD #name " %%cl, %2, %0\n\t" FLAGS_SAVE                                                 \
                : "+r"(a), "+&a"(f)                                                                            \
                : "r"(b), "c"(count)                                                                          \
                : "cc");                                                                                    \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }
OP_DOUBLE(shld, 16)
OP_DOUBLE(shld, 32)
OP_DOUBLE(shld, 64)
OP_DOUBLE(shrd, 16)
OP_DOUBLE(shrd, 32)
OP_DOUBLE(shrd, 64)

/* BMI2: no flags. */
#define OP_FLAGLESS(bits)                                                                                    \
    static alwaysinline u##bits op_shlx##bits(struct vcpu *v, u##bits a, u##bits count)                          \
    {                                                                                                       \
        return a << (count & COUNT_MASK(bits));                                                             \
    }                                                                                                       \
    static alwaysinline u##bits op_shrx##bits(struct vcpu *v, u##bits a, u##bits count)                          \
    {                                                                                                       \
        return a >> (count & COUNT_MASK(bits));                                                             \
    }                                                                                                       \
    static alwaysinline u##bits op_sarx##bits(struct vcpu *v, u##bits a, u##bits count)                          \
    {                                                                                                       \
        return (u##bits)((s##bits)a >> (count & COUNT_MASK(bits)));                                          \
    }                                                                                                       \
    static alwaysinline u##bits op_rorx##bits(struct vcpu *v, u##bits a, u8 count)                              \
    {                                                                                                       \
        count &= COUNT_MASK(bits);                                                                          \
        return a >> count | a << ((bits - count) & (bits - 1));                                              \
    }
OP_FLAGLESS(32)
OP_FLAGLESS(64)

#undef OP_SHIFT
#undef OP_ROTATE
#undef OP_SHIFTS
#undef OP_DOUBLE
#undef OP_FLAGLESS
#undef COUNT_MASK
