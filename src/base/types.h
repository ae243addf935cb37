/* Integer and address types, after the Linux kernel's names. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef unsigned __int128 u128;
typedef __int128 s128;

typedef u64 gva_t; /* guest linear address */
typedef u64 gpa_t; /* guest-physical address: what EPT or NPT translates */
typedef u64 pa_t;  /* physical address of the machine Nestor emulates */

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define noinline __attribute__((noinline))
#define alwaysinline inline __attribute__((always_inline))
#define printf_like(fmt, args) __attribute__((format(printf, fmt, args)))
