/*
 * Two small machines with the same contents, one run by the interpreter and one by another engine, compared
 * after every run: for random programs and for fuzzing. What differs is printed.
 */
#pragma once
#include "base/clock.h"
#include "cpu/cpu.h"
#include "cpu/engine.h"
#include "devices/bus.h"

/*
 * Physical memory; linear addresses are the same, and once more at TWIN_ALIAS where there is paging.
 *   0x01000 paging structures, 0x05000 GDT and TSS, 0x06000 IDT
 *   0x07000 RECOVER (the address at which an exception handler goes on), MIX, COUNT
 *   0x10000 code, 0x20000 data, 0x28000..0x30000 stacks
 * With paging 0x24000 is read-only, 0x26000 not present and 0x27000 for supervisors only.
 */
#define TWIN_RAM 0x40000u
#define TWIN_PT 0x4000u /* the page table of all pages */
#define TWIN_RECOVER 0x7000u
#define TWIN_CODE 0x10000u
#define TWIN_CODE_SIZE 0x10000u
#define TWIN_DATA 0x20000u
#define TWIN_STACK 0x2c000u
#define TWIN_ALIAS 0x100000u
#define TWIN_PT 0x4000u /* the page table, of all linear memory */
#define TWIN_READ_ONLY 0x24000u
#define TWIN_ABSENT 0x26000u
#define TWIN_SUPERVISOR 0x27000u

/* IA-32e mode, protected mode without paging, real mode; IA-32e mode with SMAP, where only 0x21000..0x23fff is the user's. */
enum twin_world { TWIN_LONG, TWIN_LEGACY, TWIN_REAL, TWIN_SMAP };
/* In the GDT of the worlds that have one. */
enum twin_selector {
    SEL_CODE64 = 0x08, SEL_DATA = 0x10, SEL_CODE32 = 0x18, SEL_CODE16 = 0x20, SEL_USER_CODE64 = 0x2b, SEL_USER_CODE32 = 0x33,
    SEL_USER_DATA = 0x3b, SEL_TSS = 0x40, SEL_USER_CODE16 = 0x53,
    SEL_BASED = 0x5b, /* data, with a base of 0x80 */
    SEL_DATA16 = 0x60, /* 64 KiB from TWIN_DATA + 0x40 on, for a 16-bit stack too; and SEL_CODE16 begins at TWIN_CODE */
};

struct twin {
    struct physmap *pm;
    struct pio_bus *pio;
    struct clock clock;
    struct vcpu *v;
    const struct engine *engine;
    u8 *ram;
};
struct twins {
    struct twin a, b;
    u64 seed; /* of what runs, for the report */
};

void twins_new(struct twins *t, const struct engine *b);
void twins_free(struct twins *t);
/* Both: memory as described, @code at TWIN_CODE, registers from @seed; running at @rip with code segment @cs.
 * An exception goes on at a HLT at the end of the code, unless the code sets RECOVER. */
void twins_load(struct twins *t, enum twin_world world, u16 cs, const u8 *code, size_t size, u64 rip, u64 seed);
/* Both: the alias of the code page @page (0..15) leads to @to from now on, as an INVLPG would have it. */
void twins_remap(struct twins *t, unsigned page, unsigned to);
/* Runs both for @budget more instructions and compares everything; aborts at a difference. */
enum run_result twins_run(struct twins *t, u64 budget);
