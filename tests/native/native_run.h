/* The host's side of the native differential test: one instruction with every register chosen. */
#pragma once
#include "base/types.h"

#define NATIVE_XSAVE 2688

struct native_regs {
    u64 gpr[16];
    u64 rip, rflags;
    bool legacy; /* in a 32-bit code segment */
    int vector;   /* of the exception it ended with, -1 for none */
    u32 error;
    u64 cr2;
    _Alignas(64) u8 xsave[NATIVE_XSAVE]; /* standard format: x87, SSE, AVX, AVX-512 */
};

extern u32 nat_mask;            /* XCR0 bits of the image */
extern const char native_exit[];/* where code jumps when it is done */

bool native_interrupted(void); /* by ^C or SIGTERM */
void native_init(void); /* signal handlers; nat_mask must be set */
/* Runs the code at r->rip; @end is the RIP to report when it reaches native_exit. */
void native_run(struct native_regs *r, u64 end);
