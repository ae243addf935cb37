/* Bit arithmetic shared by every room. */
#pragma once
#include "base/types.h"
#include <string.h>

#define BIT(n) (1u << (n))
#define BIT64(n) (1ull << (n))
/* Bits hi..lo set, 63 >= hi >= lo >= 0. */
#define BITS64(hi, lo) (((~0ull) << (lo)) & (~0ull >> (63 - (hi))))

static inline u64 bits_get(u64 value, unsigned hi, unsigned lo)
{
    return (value & BITS64(hi, lo)) >> lo;
}

/* The low @bits bits of @value, sign-extended; 1 <= bits <= 64. */
static inline s64 sign_extend(u64 value, unsigned bits)
{
    return (s64)(value << (64 - bits)) >> (64 - bits);
}

/* Whether bits 63:width-1 of a linear address are all the same. */
static inline bool is_canonical(u64 addr, unsigned width)
{
    return (u64)sign_extend(addr, width) == addr;
}

/* Unaligned little-endian access to host memory. */
static inline u16 load16(const void *p) { u16 v; memcpy(&v, p, 2); return v; }
static inline u32 load32(const void *p) { u32 v; memcpy(&v, p, 4); return v; }
static inline u64 load64(const void *p) { u64 v; memcpy(&v, p, 8); return v; }
static inline void store16(void *p, u16 v) { memcpy(p, &v, 2); }
static inline void store32(void *p, u32 v) { memcpy(p, &v, 4); }
static inline void store64(void *p, u64 v) { memcpy(p, &v, 8); }

/* A little-endian value of @size bytes (1, 2, 4 or 8). */
static inline u64 load_le(const void *p, unsigned size)
{
    u64 v = 0;
    memcpy(&v, p, size);
    return v;
}
static inline void store_le(void *p, u64 v, unsigned size) { memcpy(p, &v, size); }
