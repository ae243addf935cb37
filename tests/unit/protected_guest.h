/*
 * One processor in 32-bit protected mode (or 64-bit mode) with a GDT, an IDT whose 256 handlers halt,
 * and TSSs, for tests of protection and events. Include once per test program.
 */
#pragma once
#include "base/clock.h"
#include "cpu/models.h"
#include "cpu/system.h"
#include "cpu/engine.h"
#include "devices/irq.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#ifndef GUEST_CPU
#define GUEST_CPU "" /* the default model */
#endif
#define RAM (4u << 20)
#define GDT 0x1000u
#define IDT 0x2000u
#define TSS 0x3800u   /* the current task's; IST1 and RSP0 of it in 64-bit mode */
#define TSS2 0x3a00u
#define TSS16 0x3c00u
#define PML4 0x10000u /* and the next two pages */
#define HANDLER(vector) (0x6000u + (vector) * 16u)
#define CODE 0x8000u
#define USER_STACK 0x9800u
#define STACK 0xa000u
#define STACK0 0xb000u /* ring 0's in the TSS */
#define STACK_IST 0xc000u

enum selector {
    CS0 = 0x08, DS0 = 0x10, CS3 = 0x1b, DS3 = 0x23, TSS_SEL = 0x28, TSS2_SEL = 0x30, TSS16_SEL = 0x38, CS0_64 = 0x40,
    CS3_64 = 0x4b, GATE = 0x50, TASK_GATE_SEL = 0x58, ABSENT = 0x60, READ_ONLY = 0x68, CONFORMING = 0x70, EXEC_ONLY = 0x78,
    EXPAND_DOWN = 0x80, LDT_SEL = 0x88, GATE16 = 0x98, TSS64_SEL = 0xa0, GDT_END = 0xb0,
};

struct guest {
    struct physmap *pm;
    struct clock clock;
    struct vcpu *v;
    int irq; /* vector the interrupt controller offers, or -1 */
};

static inline void put(struct guest *g, pa_t pa, u64 value, unsigned size) { physmap_write(g->pm, pa, &value, size); }
static inline u64 get(struct guest *g, pa_t pa, unsigned size)
{
    u64 value = 0;
    physmap_read(g->pm, pa, &value, size);
    return value;
}
static inline void poke(struct guest *g, pa_t pa, const void *code, size_t n) { physmap_write(g->pm, pa, code, n); }
#define CODE_AT(g, pa, ...) poke(g, pa, (const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__}))

/* An 8-byte segment descriptor; @attr is bits 55:40 without the limit. */
static inline u64 descriptor(u32 base, u32 limit, u32 attr)
{
    return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)attr << 40 | (u64)(limit & 0xf0000) << 32 | (u64)(base >> 24) << 56;
}
static inline u64 gate(u16 sel, u32 offset, u32 attr, u32 count)
{
    return (offset & 0xffff) | (u64)sel << 16 | (u64)(count & 31) << 32 | (u64)attr << 40 | (u64)(offset >> 16) << 48;
}

static int fake_peek(void *intc) { return ((struct guest *)intc)->irq; }
static int fake_ack(void *intc)
{
    struct guest *g = intc;
    int vector = g->irq;
    g->irq = -1;
    atomic_fetch_and(&g->v->requests, ~(u32)REQ_INTR);
    return vector;
}
static int fake_msr_read(void *intc, u32 msr, u64 *value) { return *value = msr == 0x1b ? 0xfee00900 : 0, 0; }
static int fake_msr_write(void *intc, u32 msr, u64 value) { return 0; }
static void fake_init(void *intc) {}
static u64 fake_page(void *intc) { return ~0ull; }
static u8 fake_tpr(void *intc) { return 0; }
static void fake_set_tpr(void *intc, u8 tpr) {}
static u32 fake_id(void *intc) { return 0; }
static const struct intc_ops fake_intc = {
    .peek = fake_peek, .ack = fake_ack, .get_tpr = fake_tpr, .set_tpr = fake_set_tpr, .rdmsr = fake_msr_read, .wrmsr = fake_msr_write, .init = fake_init,
    .page = fake_page, .id = fake_id,
};

static inline void interrupt(struct guest *g, int vector)
{
    g->irq = vector;
    vcpu_request(g->v, REQ_INTR);
}

static void written(void *opaque, pa_t pa, size_t len) { engine_interp.code_written(((struct guest *)opaque)->v, pa, len); }

static void set_segment(struct vcpu *v, unsigned seg, u16 sel, u64 desc)
{
    segment_unpack(&v->seg[seg], sel, desc | 1ull << 40);
}

static void write_tables(struct guest *g)
{
    put(g, GDT + CS0, descriptor(0, 0xfffff, 0xc09b), 8);
    put(g, GDT + DS0, descriptor(0, 0xfffff, 0xc093), 8);
    put(g, GDT + (CS3 & ~7), descriptor(0, 0xfffff, 0xc0fb), 8);
    put(g, GDT + (DS3 & ~7), descriptor(0, 0xfffff, 0xc0f3), 8);
    put(g, GDT + TSS_SEL, descriptor(TSS, 0xff, 0x8b), 8);
    put(g, GDT + TSS2_SEL, descriptor(TSS2, 0x67, 0x89), 8);
    put(g, GDT + TSS16_SEL, descriptor(TSS16, 0x2b, 0x81), 8);
    put(g, GDT + CS0_64, descriptor(0, 0xfffff, 0xa09b), 8);
    put(g, GDT + (CS3_64 & ~7), descriptor(0, 0xfffff, 0xa0fb), 8);
    put(g, GDT + GATE, gate(CS0, HANDLER(0x90), 0xec, 2), 8);
    put(g, GDT + TASK_GATE_SEL, gate(TSS2_SEL, 0, 0xe5, 0), 8);
    put(g, GDT + ABSENT, descriptor(0, 0xfffff, 0xc013), 8);
    put(g, GDT + READ_ONLY, descriptor(0, 0xfffff, 0xc091), 8);
    put(g, GDT + CONFORMING, descriptor(0, 0xfffff, 0xc09f), 8);
    put(g, GDT + EXEC_ONLY, descriptor(0, 0xfffff, 0xc099), 8);
    put(g, GDT + EXPAND_DOWN, descriptor(0, 0x0fff, 0x4097), 8);
    put(g, GDT + LDT_SEL, descriptor(0x5000, 0x17, 0x82), 8);
    put(g, GDT + GATE16, gate(CS0, HANDLER(0x91) & 0xffff, 0xe4, 1), 8);
    put(g, GDT + TSS64_SEL, descriptor(TSS, 0xff, 0x8b), 8);
    for (unsigned n = 0; n < 256; n++) {
        put(g, IDT + n * 8, gate(CS0, HANDLER(n), 0xee, 0), 8);
        put(g, HANDLER(n), 0xf4, 1);
    }
    put(g, TSS + 4, STACK0, 4);
    put(g, TSS + 8, DS0, 4);
    put(g, TSS + 102, 0x88, 2); /* I/O map; the interrupt redirection bitmap is at 0x68 */
}

static int setup(void **state)
{
    struct guest *g = calloc(1, sizeof(*g));
    const struct cpu_model *model;
    static u8 features[FEAT_COUNT];
    struct error err;
    g->irq = -1;
    g->pm = physmap_new();
    clock_init(&g->clock, CLOCK_ICOUNT);
    if (physmap_add_ram(g->pm, 0, RAM, "RAM", &err) || cpu_model_parse(GUEST_CPU, &model, features, NULL, &err))
        return -1;
    const struct cpu_config cfg = {.model = model, .features = features, .tsc_hz = 1000000000, .pm = g->pm, .clock = &g->clock};
    g->v = vcpu_new(&cfg, &err);
    if (g->v)
        g->v->jit_options.heat = 1; /* lock-step: whole translations at once */
    if (!g->v || engine_interp.attach(g->v))
        return -1;
    vcpu_attach_intc(g->v, &fake_intc, g);
    physmap_subscribe(g->pm, PAGE_CODE, written, g);
    write_tables(g);

    struct vcpu *v = g->v;
    v->activity = ACTIVITY_ACTIVE;
    v->cr0 = CR0_PE | CR0_NE | CR0_ET;
    v->gdtr = (struct desc_table){GDT, GDT_END - 1};
    v->idtr = (struct desc_table){IDT, 0x7ff};
    set_segment(v, SEG_CS, CS0, get(g, GDT + CS0, 8));
    static const u8 data[] = {SEG_DS, SEG_ES, SEG_SS, SEG_FS, SEG_GS};
    for (unsigned n = 0; n < ARRAY_SIZE(data); n++)
        set_segment(v, data[n], DS0, get(g, GDT + DS0, 8));
    set_segment(v, SEG_TR, TSS_SEL, get(g, GDT + TSS_SEL, 8));
    v->seg[SEG_LDTR].ar = AR_UNUSABLE;
    v->rip = CODE;
    v->gpr[RSP] = STACK;
    cpu_put_rflags(v, FL_FIXED);
    cpu_mode_changed(v);
    *state = g;
    return 0;
}

static int teardown(void **state)
{
    struct guest *g = *state;
    engine_interp.detach(g->v);
    vcpu_free(g->v);
    physmap_free(g->pm);
    free(g);
    return 0;
}

/* Ring 3 of the mode the processor is in. */
static inline void to_ring3(struct guest *g)
{
    struct vcpu *v = g->v;
    u16 cs = v->mode == MODE_LONG64 ? CS3_64 : CS3;
    set_segment(v, SEG_CS, cs, get(g, GDT + (cs & ~7u), 8));
    static const u8 data[] = {SEG_DS, SEG_ES, SEG_SS, SEG_FS, SEG_GS};
    for (unsigned n = 0; n < ARRAY_SIZE(data); n++)
        set_segment(v, data[n], DS3, get(g, GDT + (DS3 & ~7), 8));
    v->gpr[RSP] = USER_STACK;
    cpu_mode_changed(v);
}

/* 64-bit mode, the first 4 MiB mapped for all, 16-byte gates; vector 0x40 uses IST1. */
static inline void to_long(struct guest *g)
{
    struct vcpu *v = g->v;
    put(g, PML4, (PML4 + 0x1000) | 7, 8);
    put(g, PML4 + 0x1000, (PML4 + 0x2000) | 7, 8);
    put(g, PML4 + 0x2000, 0x87, 8);
    put(g, PML4 + 0x2008, 0x200087, 8);
    for (unsigned n = 0; n < 256; n++) {
        put(g, 0x14000 + n * 16, gate(CS0_64, HANDLER(n), 0xee, n == 0x40), 8);
        put(g, 0x14008 + n * 16, 0, 8);
    }
    v->idtr = (struct desc_table){0x14000, 0xfff};
    put(g, TSS + 4, STACK0, 8);
    put(g, TSS + 36, STACK_IST, 8);
    v->cr4 |= CR4_PAE;
    v->cr3 = PML4;
    v->efer |= EFER_LME | EFER_LMA | EFER_SCE;
    v->cr0 |= CR0_PG;
    set_segment(v, SEG_CS, CS0_64, get(g, GDT + CS0_64, 8));
    v->seg[SEG_TR].sel = TSS64_SEL;
    cpu_mode_changed(v);
}

static inline enum run_result run(struct guest *g, u64 instructions)
{
    g->v->budget_end = g->v->icount + instructions;
    return engine_interp.run(g->v);
}

/* Runs until something halts, which must be the handler of @vector. */
static inline void expect_handler(struct guest *g, unsigned vector)
{
    assert_int_equal(run(g, 1000), RUN_HALTED);
    assert_int_equal(g->v->rip, HANDLER(vector) + 1);
}

/* Runs @code outside the engine; the vector it raised, or -1. */
#define RAISES(g, code)                                                                                      \
    __extension__({                                                                                         \
        (g)->v->raised.valid = false;                                                                       \
        if (setjmp((g)->v->unwind) == 0) {                                                                  \
            code;                                                                                           \
        }                                                                                                   \
        (g)->v->raised.valid ? (int)(g)->v->raised.vector : -1;                                             \
    })
