/* Value bodies: addition, subtraction, logic, comparison, multiplication. */
#pragma once
#include "cpu/ops_flags.h"

/* a = a INSN b, all flags written. */
#define OP_BINARY(name, bits)                                                                                \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a, u##bits b)                            \
    {                                                                                                       \
        u32 f;                                                                                              \
        __asm__(#name " %2, %0\n\t" FLAGS_SAVE : "+q"(a), "=a"(f) : "q"(b) : "cc");                             \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }
/* The same with CF as an input. */
#define OP_CARRY(name, bits)                                                                                 \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a, u##bits b)                            \
    {                                                                                                       \
        u32 f;                                                                                              \
        __asm__("bt $0, %3\n\t" #name " %2, %0\n\t" FLAGS_SAVE                                                  \
                : "+q"(a), "=a"(f)                                                                            \
                : "q"(b), "r"(v->aflags)                                                                      \
                : "cc");                                                                                    \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }
/* Only the flags matter. */
#define OP_COMPARE(name, bits)                                                                               \
    static alwaysinline void op_##name##bits(struct vcpu *v, u##bits a, u##bits b)                               \
    {                                                                                                       \
        u32 f;                                                                                              \
        __asm__(#name " %2, %1\n\t" FLAGS_SAVE : "=a"(f) : "q"(a), "q"(b) : "cc");                              \
        flags_put(v, f);                                                                                    \
    }
/* INC and DEC leave CF alone. */
#define OP_COUNT(name, bits)                                                                                 \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a)                                      \
    {                                                                                                       \
        u32 f;                                                                                              \
        __asm__("bt $0, %2\n\t" #name " %0\n\t" FLAGS_SAVE : "+q"(a), "=a"(f) : "r"(v->aflags) : "cc");           \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }
#define OP_NEG(bits)                                                                                         \
    static alwaysinline u##bits op_neg##bits(struct vcpu *v, u##bits a)                                         \
    {                                                                                                       \
        u32 f;                                                                                              \
        __asm__("neg %0\n\t" FLAGS_SAVE : "+q"(a), "=a"(f) : : "cc");                                           \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }                                                                                                       \
    static alwaysinline u##bits op_not##bits(struct vcpu *v, u##bits a) { return (u##bits)~a; }

#define OP_ARITH(bits)                                                                                       \
    OP_BINARY(add, bits)                                                                                    \
    OP_BINARY(or, bits)                                                                                     \
    OP_CARRY(adc, bits)                                                                                     \
    OP_CARRY(sbb, bits)                                                                                     \
    OP_BINARY(and, bits)                                                                                    \
    OP_BINARY(sub, bits)                                                                                    \
    OP_BINARY(xor, bits)                                                                                    \
    OP_COMPARE(cmp, bits)                                                                                   \
    OP_COMPARE(test, bits)                                                                                  \
    OP_COUNT(inc, bits)                                                                                     \
    OP_COUNT(dec, bits)                                                                                     \
    OP_NEG(bits)
OP_ARITH(8)
OP_ARITH(16)
OP_ARITH(32)
OP_ARITH(64)

/* IMUL with two and three operands: SF, ZF, AF, PF are undefined. */
#define OP_IMUL(bits)                                                                                        \
    static alwaysinline u##bits op_imul2##bits(struct vcpu *v, u##bits a, u##bits b)                             \
    {                                                                                                       \
        u32 f = flags_get(v);                                                                               \
        __asm__(FLAGS_LOAD "imul %2, %0\n\t" FLAGS_SAVE : "+r"(a), "+&a"(f) : "r"(b) : "cc");                      \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }                                                                                                       \
    static alwaysinline u##bits op_imul3##bits(struct vcpu *v, u##bits a, u##bits b)                             \
    {                                                                                                       \
        return op_imul2##bits(v, a, b);                                                                      \
    }
OP_IMUL(16)
OP_IMUL(32)
OP_IMUL(64)

/* ADCX and ADOX touch one flag each. */
#define OP_ADX(name, bits)                                                                                   \
    static alwaysinline u##bits op_##name##bits(struct vcpu *v, u##bits a, u##bits b)                            \
    {                                                                                                       \
        u32 f = flags_get(v);                                                                               \
        __asm__(FLAGS_LOAD #name " %2, %0\n\t" FLAGS_SAVE : "+r"(a), "+&a"(f) : "r"(b) : "cc");                    \
        flags_put(v, f);                                                                                    \
        return a;                                                                                           \
    }
OP_ADX(adcx, 32)
OP_ADX(adcx, 64)
OP_ADX(adox, 32)
OP_ADX(adox, 64)

#undef OP_BINARY
#undef OP_CARRY
#undef OP_COMPARE
#undef OP_COUNT
#undef OP_NEG
#undef OP_ARITH
#undef OP_IMUL
#undef OP_ADX
