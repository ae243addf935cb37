/*
 * Refused far transfers: each check of JMP, CALL, RET, IRET, INT, of interrupts and of task switches, with
 * its vector and error code, and that nothing has changed. The order of the rows is that of the manual's
 * pseudocode (SDM vol. 2 "JMP", "CALL", "RET", "IRET/IRETD/IRETQ", "INT n/INTO/INT3/INT1"; vol. 3 table
 * "Exception Conditions Checked During a Task Switch").
 */
#include "protected_guest.h"

/* Descriptors that a row brings along. */
enum { SLOT = 0xb0, SLOT2 = 0xc0, SLOTS_END = 0xd0 };
#define CODE32(dpl, type) descriptor(0, 0xfffff, 0xc090 | (dpl) << 5 | (type))
#define CODE64(dpl, type) descriptor(0, 0xfffff, 0xa090 | (dpl) << 5 | (type))
#define ABSENT_CODE descriptor(0, 0xfffff, 0xc01b)
#define NOT_PRESENT (1ull << 47)
#define NONE (-1)

enum how { JMP, CALL, RETF, IRET, INT, EXTERNAL };

struct row {
    const char *what;
    enum how how;
    u8 ring;
    u16 sel; /* the target's; of INT and EXTERNAL the vector */
    u64 slot, slot2;
    int vector;
    u32 error;
    u64 offset;    /* 0: CODE */
    u16 ss;        /* RETF, IRET: popped with it */
    u64 slot_high; /* of a 16-byte descriptor */
};

static struct insn instruction; /* opsize is the only field that matters */

static void transfer(struct guest *g, const struct row *r, unsigned size)
{
    struct vcpu *v = g->v;
    u64 offset = r->offset ? r->offset : CODE;
    instruction = (struct insn){.opsize = (u8)size, .len = 2};
    u64 frame[5] = {offset, r->sel, FL_FIXED, STACK - 0x100, r->ss};
    unsigned words[5] = {0, 1, 2, 3, 4}, n = 5;
    if (r->how == RETF)
        words[2] = 3, words[3] = 4, n = 4;
    for (unsigned k = 0; k < n; k++)
        put(g, v->gpr[RSP] + k * size, frame[words[k]], size);
    switch (r->how) {
    case JMP: cpu_far_jump(v, r->sel, offset, &instruction); break;
    case CALL: cpu_far_call(v, r->sel, offset, &instruction); break;
    case RETF: cpu_far_return(v, 0, &instruction); break;
    case IRET: cpu_iret(v, &instruction); break;
    case INT: cpu_software_interrupt(v, r->sel, EV_SOFT_INT, &instruction); break;
    case EXTERNAL: cpu_deliver(v, &(struct event){.valid = true, .type = EV_EXTINT, .vector = (u8)r->sel}); break;
    }
}

/* Everything a refused transfer must leave alone. */
struct before {
    u64 gpr[16], rflags, cr0, cr3;
    struct segment seg[SEG_COUNT];
    u8 cpl;
};
static void remember(const struct vcpu *v, struct before *b)
{
    memset(b, 0, sizeof(*b));
    memcpy(b->gpr, v->gpr, sizeof(b->gpr));
    memcpy(b->seg, v->seg, sizeof(b->seg));
    b->rflags = cpu_rflags(v);
    b->cr0 = v->cr0;
    b->cr3 = v->cr3;
    b->cpl = v->cpl;
}

static void run_rows(const struct row *rows, unsigned count, bool wide, void (*stage)(struct guest *))
{
    for (volatile unsigned n = 0; n < count; n++) {
        const struct row *r = &rows[n];
        void *state;
        assert_int_equal(setup(&state), 0);
        struct guest *g = state;
        struct vcpu *v = g->v;
        if (wide)
            to_long(g);
        v->gdtr.limit = SLOTS_END - 1;
        put(g, GDT + SLOT, r->slot, 8);
        put(g, GDT + SLOT + 8, r->slot_high, 8);
        put(g, GDT + SLOT2, r->slot2, 8);
        if (r->ring == 3)
            to_ring3(g);
        if (stage)
            stage(g);
        v->next_rip = CODE + 2;
        struct before before, after;
        remember(v, &before);
        int vector = RAISES(g, transfer(g, r, wide ? 8 : 4));
        if (vector != r->vector)
            fail_msg("%s: vector %d, expected %d", r->what, vector, r->vector);
        if (vector >= 0 && v->raised.error != r->error)
            fail_msg("%s: error code %#x, expected %#x", r->what, v->raised.error, r->error);
        remember(v, &after);
        if (vector >= 0 && memcmp(&before, &after, sizeof(before)))
            fail_msg("%s: refused, but something has changed", r->what);
        teardown(&state);
    }
}
#define RUN(rows, wide, stage) run_rows(rows, ARRAY_SIZE(rows), wide, stage)

static void jumps_and_calls(void **state)
{
    const struct row rows[] = {
        {"JMP null", JMP, 0, 0, 0, 0, VEC_GP, 0},
        {"JMP beyond the table", JMP, 0, 0x1000, 0, 0, VEC_GP, 0x1000},
        {"JMP to data", JMP, 0, DS0, 0, 0, VEC_GP, DS0},
        {"JMP to code of another level", JMP, 3, SLOT, CODE32(0, 0xb), 0, VEC_GP, SLOT},
        {"JMP to absent code", JMP, 0, SLOT, ABSENT_CODE, 0, VEC_NP, SLOT},
        {"JMP beyond the limit", JMP, 0, SLOT, descriptor(0, 0xfff, 0x409b), 0, VEC_GP, 0, 0x1000},
        {"JMP to a reserved type", JMP, 0, SLOT, descriptor(0, 0, 0x80), 0, VEC_GP, SLOT},
        {"JMP to an LDT", JMP, 0, LDT_SEL, 0, 0, VEC_GP, LDT_SEL},
        {"JMP to an interrupt gate", JMP, 0, SLOT, gate(CS0, CODE, 0x8e, 0), 0, VEC_GP, SLOT},
        {"JMP through a gate of an inner level", JMP, 3, SLOT, gate(CS0, CODE, 0x8c, 0), 0, VEC_GP, SLOT},
        {"JMP through a gate, RPL above its DPL", JMP, 0, SLOT | 3, gate(CS0, CODE, 0x8c, 0), 0, VEC_GP, SLOT},
        {"JMP through an absent gate", JMP, 0, SLOT, gate(CS0, CODE, 0x6c, 0), 0, VEC_NP, SLOT},
        {"JMP through a gate to null", JMP, 0, SLOT, gate(0, CODE, 0xec, 0), 0, VEC_GP, 0},
        {"JMP through a gate beyond the table", JMP, 0, SLOT, gate(0x1008, CODE, 0xec, 0), 0, VEC_GP, 0x1008},
        {"JMP through a gate to data", JMP, 0, SLOT, gate(DS0, CODE, 0xec, 0), 0, VEC_GP, DS0},
        {"JMP through a gate outwards", JMP, 0, SLOT, gate(CS3, CODE, 0xec, 0), 0, VEC_GP, CS3 & ~3},
        {"JMP through a gate inwards", JMP, 3, SLOT | 3, gate(CS0, CODE, 0xec, 0), 0, VEC_GP, CS0},
        {"JMP through a gate to absent code", JMP, 0, SLOT, gate(SLOT2, CODE, 0xec, 0), ABSENT_CODE, VEC_NP, SLOT2},
        {"JMP through a gate", JMP, 0, SLOT, gate(CS0, CODE, 0xec, 0), 0, NONE, 0},
        {"JMP through a gate to conforming code", JMP, 3, SLOT | 3, gate(CONFORMING, CODE, 0xec, 0), 0, NONE, 0},
        {"JMP to a TSS of an inner level", JMP, 3, TSS2_SEL, 0, 0, VEC_GP, TSS2_SEL},
        {"JMP to a busy TSS", JMP, 0, TSS_SEL, 0, 0, VEC_GP, TSS_SEL},
        {"JMP to an absent TSS", JMP, 0, SLOT, descriptor(TSS2, 0x67, 0x09), 0, VEC_NP, SLOT},
        {"JMP to a task gate of an inner level", JMP, 3, SLOT, gate(TSS2_SEL, 0, 0x85, 0), 0, VEC_GP, SLOT},
        {"JMP to an absent task gate", JMP, 0, SLOT, gate(TSS2_SEL, 0, 0x65, 0), 0, VEC_NP, SLOT},
        {"JMP to a task gate into an LDT", JMP, 0, SLOT, gate(TSS2_SEL | 4, 0, 0xe5, 0), 0, VEC_GP, TSS2_SEL | 4},
        {"JMP to a task gate to a busy TSS", JMP, 0, SLOT, gate(TSS_SEL, 0, 0xe5, 0), 0, VEC_GP, TSS_SEL},
        {"JMP to a short TSS", JMP, 0, SLOT, descriptor(TSS2, 0x66, 0x89), 0, VEC_TS, SLOT},
        {"CALL null", CALL, 0, 0, 0, 0, VEC_GP, 0},
        {"CALL beyond the table", CALL, 0, 0x1000, 0, 0, VEC_GP, 0x1000},
        {"CALL to data", CALL, 0, DS0, 0, 0, VEC_GP, DS0},
        {"CALL beyond the limit", CALL, 0, SLOT, descriptor(0, 0xfff, 0x409b), 0, VEC_GP, 0, 0x1000},
        {"CALL to code of another level", CALL, 0, CS3, 0, 0, VEC_GP, CS3 & ~3},
        {"CALL through a gate to absent code", CALL, 0, SLOT, gate(SLOT2, CODE, 0xec, 0), ABSENT_CODE, VEC_NP, SLOT2},
        {"CALL through a gate to the same level", CALL, 0, SLOT, gate(CS0, CODE, 0xec, 0), 0, NONE, 0},
        {"CALL through a gate inwards, beyond the limit", CALL, 3, SLOT | 3, gate(SLOT2, 0x1000, 0xec, 0), descriptor(0, 0xfff, 0x409b),
         VEC_GP, 0},
        {"CALL to a TSS", CALL, 3, TSS2_SEL | 3, 0, 0, VEC_GP, TSS2_SEL},
        {"CALL to an absent task gate", CALL, 0, SLOT, gate(TSS2_SEL, 0, 0x65, 0), 0, VEC_NP, SLOT},
    };
    RUN(rows, false, NULL);
}

static void returns(void **state)
{
    const struct row rows[] = {
        {"RETF to null", RETF, 0, 0, 0, 0, VEC_GP, 0},
        {"RETF beyond the table", RETF, 0, 0x1000, 0, 0, VEC_GP, 0x1000},
        {"RETF to data", RETF, 0, DS0, 0, 0, VEC_GP, DS0},
        {"RETF inwards", RETF, 3, CS0, 0, 0, VEC_GP, CS0},
        {"RETF with an RPL that is not the DPL", RETF, 0, CS0 | 3, 0, 0, VEC_GP, CS0},
        {"RETF to conforming code above the RPL", RETF, 0, SLOT, CODE32(3, 0xf), 0, VEC_GP, SLOT},
        {"RETF to absent code", RETF, 0, SLOT, ABSENT_CODE, 0, VEC_NP, SLOT},
        {"RETF beyond the limit", RETF, 0, SLOT, descriptor(0, 0xfff, 0x409b), 0, VEC_GP, 0, 0x1000},
        {"RETF outwards, null stack", RETF, 0, CS3, 0, 0, VEC_GP, 0, 0, 0},
        {"RETF outwards, stack beyond the table", RETF, 0, CS3, 0, 0, VEC_GP, 0x1000, 0, 0x1003},
        {"RETF outwards, stack of another RPL", RETF, 0, CS3, 0, 0, VEC_GP, DS0, 0, DS0},
        {"RETF outwards, stack of another DPL", RETF, 0, CS3, 0, 0, VEC_GP, DS0, 0, DS0 | 3},
        {"RETF outwards, stack that is code", RETF, 0, CS3, 0, 0, VEC_GP, CS3 & ~3, 0, CS3},
        {"RETF outwards, absent stack", RETF, 0, CS3, descriptor(0, 0xfffff, 0xc073), 0, VEC_SS, SLOT, 0, SLOT | 3},
        {"RETF outwards, beyond the limit", RETF, 0, SLOT | 3, descriptor(0, 0xfff, 0x40fb), 0, VEC_GP, 0, 0x1000, DS3},
        {"RETF outwards", RETF, 0, CS3, 0, 0, NONE, 0, 0, DS3},
        {"RETF", RETF, 0, CS0, 0, 0, NONE, 0},
        {"IRET to null", IRET, 0, 0, 0, 0, VEC_GP, 0},
        {"IRET inwards", IRET, 3, CS0, 0, 0, VEC_GP, CS0},
        {"IRET to absent code", IRET, 0, SLOT, ABSENT_CODE, 0, VEC_NP, SLOT},
        {"IRET beyond the limit", IRET, 0, SLOT, descriptor(0, 0xfff, 0x409b), 0, VEC_GP, 0, 0x1000},
        {"IRET outwards, absent stack", IRET, 0, CS3, descriptor(0, 0xfffff, 0xc073), 0, VEC_SS, SLOT, 0, SLOT | 3},
        {"IRET outwards, beyond the limit", IRET, 0, SLOT | 3, descriptor(0, 0xfff, 0x40fb), 0, VEC_GP, 0, 0x1000, DS3},
        {"IRET outwards", IRET, 0, CS3, 0, 0, NONE, 0, 0, DS3},
        {"IRET", IRET, 0, CS0, 0, 0, NONE, 0},
    };
    RUN(rows, false, NULL);
}

/* IRET with NT: the task whose selector the current TSS holds. */
static u16 link;
static void nested(struct guest *g)
{
    put(g, TSS, link, 2);
    cpu_put_rflags(g->v, cpu_rflags(g->v) | FL_NT);
}
static void nested_short(struct guest *g)
{
    nested(g);
    g->v->seg[SEG_TR].limit = 0;
}

static void nested_returns(void **state)
{
    const struct { u16 link; u64 slot; int vector; u32 error; } links[] = {
        {0, 0, VEC_TS, 0}, {TSS2_SEL, 0, VEC_TS, TSS2_SEL} /* not busy */, {TSS_SEL | 4, 0, VEC_TS, TSS_SEL | 4},
        {0x1000, 0, VEC_TS, 0x1000}, {DS0, 0, VEC_TS, DS0}, {SLOT, descriptor(TSS2, 0x67, 0x0b), VEC_NP, SLOT},
        {SLOT, descriptor(TSS2, 0x66, 0x8b), VEC_TS, SLOT},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(links); n++) {
        link = links[n].link;
        const struct row row = {"IRET to a nested task", IRET, 0, CS0, links[n].slot, 0, links[n].vector, links[n].error};
        run_rows(&row, 1, false, nested);
    }
    const struct row shorter = {"IRET without a link", IRET, 0, CS0, 0, 0, VEC_TS, TSS_SEL};
    run_rows(&shorter, 1, false, nested_short);
    const struct row wide = {"IRETQ with NT", IRET, 0, CS0_64, 0, 0, VEC_GP, 0};
    run_rows(&wide, 1, true, nested);
}

/* The gate of vector 0x30 and, for a way inwards, the stack in the TSS. */
static u64 idt_gate, idt_gate_high;
static u16 stack_sel;
static u32 tss_limit;
static void with_gate(struct guest *g)
{
    bool wide = g->v->efer & EFER_LMA;
    put(g, IDT + 0x30 * 8, idt_gate, 8);
    put(g, 0x14000 + 0x30 * 16, idt_gate, 8);
    put(g, 0x14000 + 0x30 * 16 + 8, idt_gate_high, 8);
    g->v->idtr.limit = wide ? 0x30 * 16 + 15 : 0x30 * 8 + 7;
    if (!wide)
        put(g, TSS + 8, stack_sel, 4);
    if (tss_limit)
        g->v->seg[SEG_TR].limit = tss_limit;
}

static void interrupts(void **state)
{
    const struct { const char *what; u64 gate, slot2; u8 ring; int vector; u32 error; u16 ss; u32 tss_limit; u8 number; } rows[] = {
        {"beyond the table", gate(CS0, CODE, 0xee, 0), 0, 0, VEC_GP, 0x31 * 8 + 2, DS0, 0, 0x31},
        {"call gate", gate(CS0, CODE, 0xec, 0), 0, 0, VEC_GP, 0x30 * 8 + 2, DS0},
        {"code segment", CODE32(3, 0xb), 0, 0, VEC_GP, 0x30 * 8 + 2, DS0},
        {"absent gate", gate(CS0, CODE, 0x6e, 0), 0, 0, VEC_NP, 0x30 * 8 + 2, DS0},
        {"target null", gate(0, CODE, 0xee, 0), 0, 0, VEC_GP, 0, DS0},
        {"target beyond the table", gate(0x1008, CODE, 0xee, 0), 0, 0, VEC_GP, 0x1008, DS0},
        {"target data", gate(DS0, CODE, 0xee, 0), 0, 0, VEC_GP, DS0, DS0},
        {"target outwards", gate(CS3, CODE, 0xee, 0), 0, 0, VEC_GP, CS3 & ~3, DS0},
        {"target absent", gate(SLOT2, CODE, 0xee, 0), ABSENT_CODE, 0, VEC_NP, SLOT2, DS0},
        {"target beyond its limit", gate(SLOT2, 0x1000, 0xee, 0), descriptor(0, 0xfff, 0x409b), 0, VEC_GP, 0, DS0},
        {"inwards: no room in the TSS", gate(CS0, CODE, 0xee, 0), 0, 3, VEC_TS, TSS_SEL, DS0, 8},
        {"inwards: null stack", gate(CS0, CODE, 0xee, 0), 0, 3, VEC_TS, 0, 0},
        {"inwards: stack beyond the table", gate(CS0, CODE, 0xee, 0), 0, 3, VEC_TS, 0x1000, 0x1000},
        {"inwards: stack of another RPL", gate(CS0, CODE, 0xee, 0), 0, 3, VEC_TS, DS0, DS0 | 3},
        {"inwards: stack of another DPL", gate(CS0, CODE, 0xee, 0), 0, 3, VEC_TS, DS3 & ~3, DS3 & ~3},
        {"inwards: stack not writable", gate(CS0, CODE, 0xee, 0), 0, 3, VEC_TS, READ_ONLY, READ_ONLY},
        {"inwards: stack absent", gate(CS0, CODE, 0xee, 0), descriptor(0, 0xfffff, 0xc013), 3, VEC_SS, SLOT2, SLOT2},
        {"inwards: stack too small", gate(CS0, CODE, 0xee, 0), descriptor(0, 0xff, 0x4093), 3, VEC_SS, SLOT2, SLOT2},
        {"task gate to a busy TSS", gate(TSS_SEL, 0, 0xe5, 0), 0, 0, VEC_GP, TSS_SEL, DS0},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++)
        for (unsigned external = 0; external < 2; external++) { /* EXT is bit 0 of the error code */
            struct row row = {rows[n].what, external ? EXTERNAL : INT, rows[n].ring, rows[n].number ? rows[n].number : 0x30, 0, rows[n].slot2,
                              rows[n].vector, rows[n].error | external};
            idt_gate = rows[n].gate;
            stack_sel = rows[n].ss;
            tss_limit = rows[n].tss_limit;
            run_rows(&row, 1, false, with_gate);
        }
    tss_limit = 0;
    stack_sel = DS0;
    idt_gate = gate(CS0, CODE, 0x8e, 0);
    const struct row level = {"INT through a gate of an inner level", INT, 3, 0x30, 0, 0, VEC_GP, 0x30 * 8 + 2};
    const struct row passes = {"an interrupt does not ask for the DPL", EXTERNAL, 3, 0x30, 0, 0, NONE, 0};
    run_rows(&level, 1, false, with_gate);
    run_rows(&passes, 1, false, with_gate);
}

/* ---- 64-bit mode ---- */

static void bad_stack(struct guest *g) { put(g, TSS + 4, 0x8000000000000000, 8); }
static void short_tss(struct guest *g) { g->v->seg[SEG_TR].limit = 10; }

static void long_mode(void **state)
{
    const struct row rows[] = {
        {"JMP to code with L and D", JMP, 0, SLOT, descriptor(0, 0xfffff, 0xe09b), 0, VEC_GP, SLOT},
        {"JMP to a non-canonical address", JMP, 0, CS0_64, 0, 0, VEC_GP, 0, 1ull << 47},
        {"JMP from compatibility to 4 GiB", JMP, 0, CS0, 0, 0, VEC_GP, 0, 1ull << 32},
        {"JMP to a 16-bit gate", JMP, 0, SLOT, gate(CS0_64, CODE, 0xe4, 0), 0, VEC_GP, SLOT},
        {"JMP to a TSS", JMP, 0, TSS2_SEL, 0, 0, VEC_GP, TSS2_SEL},
        {"JMP to a gate whose upper half has a type", JMP, 0, SLOT, gate(CS0_64, CODE, 0xec, 0), 0, VEC_GP, SLOT, 0, 0, 1ull << 40},
        {"JMP through a gate to 32-bit code", JMP, 0, SLOT, gate(CS0, CODE, 0xec, 0), 0, VEC_GP, CS0},
        {"JMP through a gate to nowhere", JMP, 0, SLOT, gate(CS0_64, CODE, 0xec, 0), 0, VEC_GP, 0, 0, 0, 0x8000},
        {"JMP through a gate", JMP, 0, SLOT, gate(CS0_64, CODE, 0xec, 0), 0, NONE, 0},
        {"CALL through a gate to absent code", CALL, 0, SLOT, gate(SLOT2, CODE, 0xec, 0), CODE64(0, 0xb) & ~NOT_PRESENT, VEC_NP, SLOT2},
        {"CALL through a gate to L and D", CALL, 0, SLOT, gate(SLOT2, CODE, 0xec, 0), descriptor(0, 0xfffff, 0xe09b), VEC_GP, SLOT2},
        {"CALL through a gate inwards", CALL, 3, SLOT | 3, gate(CS0_64, CODE, 0xec, 0), 0, NONE, 0},
        {"RETF to L and D", RETF, 0, SLOT, descriptor(0, 0xfffff, 0xe09b), 0, VEC_GP, SLOT},
        {"RETF to a non-canonical address", RETF, 0, CS0_64, 0, 0, VEC_GP, 0, 1ull << 47},
        {"RETF outwards to a null stack", RETF, 0, CS3_64, 0, 0, VEC_GP, 0, 0, 3},
        {"RETF outwards", RETF, 0, CS3_64, 0, 0, NONE, 0, 0, DS3},
        {"IRETQ to a null stack in ring 0", IRET, 0, CS0_64, 0, 0, NONE, 0, 0, 0},
        {"IRETQ to a null stack of another RPL", IRET, 0, CS0_64, 0, 0, VEC_GP, 0, 0, 1},
        {"IRETQ to a null stack in ring 3", IRET, 0, CS3_64, 0, 0, VEC_GP, 0, 0, 3},
        {"IRETQ to 32-bit code with a null stack", IRET, 0, CS0, 0, 0, VEC_GP, 0, 0, 0},
        {"IRETQ to L and D", IRET, 0, SLOT, descriptor(0, 0xfffff, 0xe09b), 0, VEC_GP, SLOT, 0, DS0},
    };
    RUN(rows, true, NULL);
    const struct row inner = {"CALL inwards with a bad RSP0", CALL, 3, SLOT | 3, gate(CS0_64, CODE, 0xec, 0), 0, VEC_SS, 0};
    const struct row room = {"CALL inwards, no room in the TSS", CALL, 3, SLOT | 3, gate(CS0_64, CODE, 0xec, 0), 0, VEC_TS, TSS64_SEL};
    run_rows(&inner, 1, true, bad_stack);
    run_rows(&room, 1, true, short_tss);
    const struct { const char *what; u64 gate, high, slot2; int vector; u32 error; u8 number; } gates[] = {
        {"beyond the table", gate(CS0_64, CODE, 0xee, 0), 0, 0, VEC_GP, 0x31 * 8 + 2, 0x31},
        {"task gate", gate(TSS2_SEL, 0, 0xe5, 0), 0, 0, VEC_GP, 0x30 * 8 + 2},
        {"16-bit gate", gate(CS0_64, CODE, 0xe6, 0), 0, 0, VEC_GP, 0x30 * 8 + 2},
        {"absent gate", gate(CS0_64, CODE, 0x6e, 0), 0, 0, VEC_NP, 0x30 * 8 + 2},
        {"target null", gate(0, CODE, 0xee, 0), 0, 0, VEC_GP, 0},
        {"target 32-bit code", gate(CS0, CODE, 0xee, 0), 0, 0, VEC_GP, CS0},
        {"target absent", gate(SLOT2, CODE, 0xee, 0), 0, CODE64(0, 0xb) & ~NOT_PRESENT, VEC_NP, SLOT2},
        {"not canonical", gate(CS0_64, CODE, 0xee, 0), 0x8000, 0, VEC_GP, 0},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(gates); n++)
        for (unsigned external = 0; external < 2; external++) {
            struct row row = {gates[n].what, external ? EXTERNAL : INT, 0, gates[n].number ? gates[n].number : 0x30, 0, gates[n].slot2,
                              gates[n].vector, gates[n].error | external};
            idt_gate = gates[n].gate;
            idt_gate_high = gates[n].high;
            run_rows(&row, 1, true, with_gate);
        }
    idt_gate_high = 0;
}

/* ---- tasks: everything after the switch is the new task's own fault ---- */

static const u32 new_eip = CODE + 0x100;

static void fill_task(struct guest *g, pa_t tss)
{
    put(g, tss + 0x20, new_eip, 4);
    put(g, tss + 0x24, FL_FIXED, 4);
    put(g, tss + 0x28 + 4 * RSP, STACK_IST, 4);
    put(g, tss + 0x48, DS0, 4);
    put(g, tss + 0x4c, CS0, 4);
    put(g, tss + 0x50, DS0, 4);
    put(g, tss + 0x54, DS0, 4);
    put(g, tss + 0x58, 0, 4);
    put(g, tss + 0x5c, 0, 4);
    put(g, tss + 0x60, 0, 4);
}

static void task_stages(void **state)
{
    enum { ES = 0x48, CS = 0x4c, SS = 0x50, DS = 0x54, FS = 0x58, LDT = 0x60, EIP = 0x20 };
    const struct { const char *what; u16 at; u32 value; u64 slot; int vector; u32 error; } rows[] = {
        {"all well", FS, 0, 0, NONE, 0},
        {"LDT in the LDT", LDT, LDT_SEL | 4, 0, VEC_TS, LDT_SEL | 4},
        {"LDT beyond the table", LDT, 0x1000, 0, VEC_TS, 0x1000},
        {"LDT that is none", LDT, DS0, 0, VEC_TS, DS0},
        {"LDT absent", LDT, SLOT, descriptor(0x5000, 0x17, 0x02), VEC_TS, SLOT},
        {"CS null", CS, 0, 0, VEC_TS, 0},
        {"CS beyond the table", CS, 0x1000, 0, VEC_TS, 0x1000},
        {"CS data", CS, DS0, 0, VEC_TS, DS0},
        {"CS of another level", CS, SLOT, CODE32(3, 0xb), VEC_TS, SLOT},
        {"CS conforming, above the RPL", CS, SLOT, CODE32(3, 0xf), VEC_TS, SLOT},
        {"CS absent", CS, SLOT, ABSENT_CODE, VEC_NP, SLOT},
        {"SS null", SS, 0, 0, VEC_TS, 0},
        {"SS of another RPL", SS, DS0 | 3, 0, VEC_TS, DS0},
        {"SS of another DPL", SS, DS3 & ~3, 0, VEC_TS, DS3 & ~3},
        {"SS not writable", SS, READ_ONLY, 0, VEC_TS, READ_ONLY},
        {"SS absent", SS, ABSENT, 0, VEC_SS, ABSENT},
        {"DS beyond the table", DS, 0x1000, 0, VEC_TS, 0x1000},
        {"DS a system segment", DS, LDT_SEL, 0, VEC_TS, LDT_SEL},
        {"DS not readable", DS, EXEC_ONLY, 0, VEC_TS, EXEC_ONLY},
        {"ES with a high RPL", ES, DS0 | 3, 0, VEC_TS, DS0},
        {"ES conforming code with a high RPL", ES, CONFORMING | 3, 0, NONE, 0},
        {"FS absent", FS, ABSENT, 0, VEC_NP, ABSENT},
        {"EIP beyond the limit", CS, SLOT, descriptor(0, 0xfff, 0x409b), VEC_GP, 0},
    };
    for (volatile unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        void *s;
        assert_int_equal(setup(&s), 0);
        struct guest *g = s;
        struct vcpu *v = g->v;
        v->gdtr.limit = SLOTS_END - 1;
        put(g, GDT + SLOT, rows[n].slot, 8);
        fill_task(g, TSS2);
        put(g, TSS2 + rows[n].at, rows[n].value, 4);
        v->next_rip = CODE + 7;
        int vector = RAISES(g, cpu_task_switch(v, TSS2_SEL, TASK_CALL, false, 0, &(struct insn){.opsize = 4, .len = 7}));
        if (vector != rows[n].vector || (vector >= 0 && v->raised.error != rows[n].error))
            fail_msg("%s: vector %d with %#x, expected %d with %#x", rows[n].what, vector, v->raised.error, rows[n].vector, rows[n].error);
        /* The switch itself has happened. */
        assert_int_equal(v->seg[SEG_TR].sel, TSS2_SEL);
        assert_int_equal(v->rip, new_eip);
        assert_int_equal(v->gpr[RSP], STACK_IST);
        assert_int_equal(get(g, TSS2, 2), TSS_SEL);
        assert_int_equal(get(g, TSS + 0x20, 4), CODE + 7);
        assert_int_equal(get(g, GDT + TSS2_SEL + 5, 1), 0x8b);
        assert_true(v->rflags & FL_NT);
        teardown(&s);
    }
}

/* A task of virtual-8086 mode: its selectors are paragraphs. */
static void task_to_v86(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    fill_task(g, TSS2);
    put(g, TSS2 + 0x20, 0x10, 4);
    put(g, TSS2 + 0x24, FL_FIXED | FL_VM, 4);
    put(g, TSS2 + 0x4c, CODE >> 4, 4);
    put(g, TSS2 + 0x50, 0x900, 4);
    put(g, TSS2 + 0x28 + 4 * RSP, 0x100, 4);
    CODE_AT(g, CODE + 0x10, 0x0e, 0x58, 0x0f, 0x0b); /* push cs; pop ax; ud2 */
    CODE_AT(g, CODE, 0xea, 0, 0, 0, 0, TSS2_SEL, 0);
    put(g, TSS2 + 4, STACK0, 4);
    put(g, TSS2 + 8, DS0, 4);
    expect_handler(g, VEC_UD);
    assert_int_equal(v->gpr[RAX] & 0xffff, CODE >> 4);
    assert_int_equal(get(g, v->gpr[RSP], 4), 0x12);
    assert_int_equal(get(g, v->gpr[RSP] + 4, 4), CODE >> 4);
    assert_true(get(g, v->gpr[RSP] + 8, 4) & FL_VM);
}

/* Page faults while TSSs are read and written: the old task's, with nothing changed. */
static void task_page_faults(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    /* Two pages of their own: TSS2 in one, the current TSS in the other. */
    const pa_t tables = 0x20000, old = 0x30000, new = 0x31000;
    put(g, tables, 0x21000 | 7, 4);
    for (unsigned n = 0; n < 1024; n++)
        put(g, 0x21000 + n * 4, n << 12 | 7, 4);
    put(g, GDT + TSS_SEL, descriptor((u32)old, 0xff, 0x8b), 8);
    put(g, GDT + TSS2_SEL, descriptor((u32)new, 0x67, 0x89), 8);
    set_segment(v, SEG_TR, TSS_SEL, get(g, GDT + TSS_SEL, 8));
    fill_task(g, new);
    put(g, new + 0x1c, tables, 4);
    v->cr3 = tables;
    v->cr0 |= CR0_PG | CR0_WP;
    cpu_mode_changed(v);
    static const struct { u32 page, entry, error, cr2; } rows[] = {
        {0x30, 0, 2, 0x30020}, {0x30, 0x30005, 3, 0x30020}, {0x31, 0, 0, 0x3101c}, {0x31, 0x31005, 3, 0x31000},
    };
    for (volatile unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        put(g, 0x21000 + rows[n].page * 4, rows[n].entry, 4);
        mmu_flush_all(v);
        v->rip = CODE, v->next_rip = CODE + 7;
        struct before before, after;
        remember(v, &before);
        int vector = RAISES(g, cpu_task_switch(v, TSS2_SEL, TASK_CALL, false, 0, &(struct insn){.opsize = 4, .len = 7}));
        remember(v, &after);
        assert_int_equal(vector, VEC_PF);
        assert_int_equal(v->raised.error, rows[n].error);
        assert_int_equal(v->raised.payload, rows[n].cr2);
        assert_memory_equal(&before, &after, sizeof(before));
        assert_int_equal(get(g, GDT + TSS2_SEL + 5, 1), 0x89);
        assert_int_equal(get(g, old + 0x20, 4), 0);
        assert_int_equal(get(g, new, 2), 0);
        put(g, 0x21000 + rows[n].page * 4, rows[n].page << 12 | 7, 4);
    }
    mmu_flush_all(v);
    assert_int_equal(RAISES(g, cpu_task_switch(v, TSS2_SEL, TASK_CALL, false, 0, &(struct insn){.opsize = 4, .len = 7})), -1);
    assert_int_equal(v->rip, new_eip);
}

/* ---- 16-bit TSS: the inner stack is SS:SP at its own offsets ---- */

static void stack_of_tss16(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    put(g, TSS16 + 2, STACK0, 2);
    put(g, TSS16 + 4, DS0, 2);
    set_segment(v, SEG_TR, TSS16_SEL, descriptor(TSS16, 0x2b, 0x83));
    put(g, GDT + GATE16, gate(CS0, HANDLER(0x91) & 0xffff, 0xe4, 1), 8);
    CODE_AT(g, CODE, 0x66, 0x68, 0x34, 0x12, 0x9a, 0, 0, 0, 0, GATE16 | 3, 0); /* push word; call the 16-bit gate */
    to_ring3(g);
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->rip, HANDLER(0x91) + 1);
    assert_int_equal(v->gpr[RSP], STACK0 - 10);
    static const u16 frame[] = {CODE + 11, CS3, 0x1234, USER_STACK - 2, DS3};
    for (unsigned n = 0; n < ARRAY_SIZE(frame); n++)
        assert_int_equal(get(g, v->gpr[RSP] + 2 * n, 2), frame[n]);
    /* No room for it in the TSS. */
    to_ring3(g);
    v->seg[SEG_TR].limit = 4;
    assert_int_equal(RAISES(g, cpu_far_call(v, GATE16 | 3, 0, &(struct insn){.opsize = 4, .len = 7})), VEC_TS);
    assert_int_equal(v->raised.error, TSS16_SEL);
}

/* ---- fast system calls ---- */

static void fast_calls(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    struct insn i = {.opsize = 4, .len = 2}, wide = {.opsize = 8, .len = 3};
    v->efer &= ~EFER_SCE;
    assert_int_equal(RAISES(g, insn_syscall(v, &i)), VEC_UD);
    assert_int_equal(RAISES(g, insn_sysret(v, &i)), VEC_UD);
    v->efer |= EFER_SCE;
    assert_int_equal(RAISES(g, insn_syscall(v, &i)), VEC_UD); /* Intel: in 64-bit mode only */
    assert_int_equal(RAISES(g, insn_sysret(v, &i)), VEC_UD);
    assert_int_equal(RAISES(g, insn_swapgs(v, &i)), VEC_UD);
    v->sysenter_cs = 3; /* null, whatever its RPL */
    assert_int_equal(RAISES(g, insn_sysenter(v, &i)), VEC_GP);
    assert_int_equal(RAISES(g, insn_sysexit(v, &i)), VEC_GP);
    v->sysenter_cs = CS0;
    to_ring3(g);
    assert_int_equal(RAISES(g, insn_sysexit(v, &i)), VEC_GP);
    v->sysenter_eip = CODE + 0x40;
    v->sysenter_esp = STACK - 8;
    v->next_rip = CODE;
    cpu_put_rflags(v, FL_FIXED | FL_IF);
    assert_int_equal(RAISES(g, insn_sysenter(v, &i)), -1);
    assert_int_equal(v->next_rip, CODE + 0x40);
    assert_int_equal(v->gpr[RSP], STACK - 8);
    assert_int_equal(v->cpl, 0);
    assert_int_equal(v->seg[SEG_CS].sel, CS0);
    assert_int_equal(v->seg[SEG_SS].sel, CS0 + 8);
    assert_false(cpu_rflags(v) & FL_IF);
    v->gpr[RDX] = CODE + 0x80;
    v->gpr[RCX] = USER_STACK;
    assert_int_equal(RAISES(g, insn_sysexit(v, &i)), -1);
    assert_int_equal(v->next_rip, CODE + 0x80);
    assert_int_equal(v->gpr[RSP], USER_STACK);
    assert_int_equal(v->cpl, 3);
    assert_int_equal(v->seg[SEG_CS].sel, (CS0 + 16) | 3);

    cpu_set_cpl(v, 0);
    to_long(g);
    v->efer |= EFER_SCE;
    v->gpr[RCX] = 1ull << 47;
    assert_int_equal(RAISES(g, insn_sysret(v, &wide)), VEC_GP); /* Intel checks before it has left */
    v->gpr[RDX] = CODE;
    assert_int_equal(RAISES(g, insn_sysexit(v, &wide)), VEC_GP);
    v->gpr[RCX] = CODE;
    v->gpr[RDX] = 1ull << 47;
    assert_int_equal(RAISES(g, insn_sysexit(v, &wide)), VEC_GP);
    to_ring3(g);
    assert_int_equal(RAISES(g, insn_sysret(v, &wide)), VEC_GP);
    assert_int_equal(RAISES(g, insn_swapgs(v, &i)), VEC_GP);
    v->mode = MODE_COMPAT32;
    assert_int_equal(RAISES(g, insn_syscall(v, &i)), VEC_UD);
    v->mode = MODE_LONG64;
}

/* ---- LLDT, LTR ---- */

static void table_registers(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    v->gdtr.limit = SLOTS_END - 1;
    const struct { const char *what; bool tr; u16 sel; u64 slot, high; bool wide; int vector; u32 error; } rows[] = {
        {"LLDT null", false, 3, 0, 0, false, NONE, 0},
        {"LLDT", false, LDT_SEL, 0, 0, false, NONE, 0},
        {"LLDT in the LDT", false, LDT_SEL | 4, 0, 0, false, VEC_GP, LDT_SEL | 4},
        {"LLDT beyond the table", false, 0x1000, 0, 0, false, VEC_GP, 0x1000},
        {"LLDT a TSS", false, TSS2_SEL, 0, 0, false, VEC_GP, TSS2_SEL},
        {"LLDT absent", false, SLOT, descriptor(0x5000, 0x17, 0x02), 0, false, VEC_NP, SLOT},
        {"LTR null", true, 0, 0, 0, false, VEC_GP, 0},
        {"LTR in the LDT", true, TSS2_SEL | 4, 0, 0, false, VEC_GP, TSS2_SEL | 4},
        {"LTR data", true, DS0, 0, 0, false, VEC_GP, DS0},
        {"LTR busy", true, TSS_SEL, 0, 0, false, VEC_GP, TSS_SEL},
        {"LTR absent", true, SLOT, descriptor(TSS2, 0x67, 0x09), 0, false, VEC_NP, SLOT},
        {"LTR a 16-bit TSS", true, TSS16_SEL, 0, 0, false, NONE, 0},
        {"LTR a 16-bit TSS, long mode", true, SLOT, descriptor(TSS16, 0x2b, 0x81), 0, true, VEC_GP, SLOT},
        {"LTR with a type in the upper half", true, SLOT, descriptor(TSS2, 0x67, 0x89), 1ull << 40, true, VEC_GP, SLOT},
        {"LTR with a base that is not canonical", true, SLOT, descriptor(TSS2, 0x67, 0x89), 0x1000000, true, VEC_GP, SLOT},
        {"LLDT with a type in the upper half", false, SLOT, descriptor(0x5000, 0x17, 0x82), 1ull << 40, true, VEC_GP, SLOT},
        {"LLDT in long mode", false, SLOT, descriptor(0x5000, 0x17, 0x82), 1, true, NONE, 0},
        {"LTR in long mode", true, SLOT, descriptor(TSS2, 0x67, 0x89), 1, true, NONE, 0},
    };
    for (volatile unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        if (rows[n].wide && v->mode != MODE_LONG64)
            to_long(g);
        put(g, GDT + SLOT, rows[n].slot, 8);
        put(g, GDT + SLOT + 8, rows[n].high, 8);
        unsigned seg = rows[n].tr ? SEG_TR : SEG_LDTR;
        struct segment before = v->seg[seg];
        struct insn i = {.rm = RAX, .opsize = 2};
        v->gpr[RAX] = rows[n].sel;
        int vector = RAISES(g, rows[n].tr ? insn_ltr(v, &i) : insn_lldt(v, &i));
        if (vector != rows[n].vector || (vector >= 0 && v->raised.error != rows[n].error))
            fail_msg("%s: vector %d with %#x", rows[n].what, vector, v->raised.error);
        if (vector >= 0) {
            assert_memory_equal(&before, &v->seg[seg], sizeof(before));
        } else {
            assert_int_equal(v->seg[seg].sel, rows[n].sel);
            if (rows[n].wide)
                assert_int_equal(v->seg[seg].base >> 32, 1);
            if (rows[n].tr) /* marked busy in memory */
                assert_int_equal(get(g, GDT + (rows[n].sel & ~7u) + 5, 1) & 2, 2);
        }
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jumps_and_calls), cmocka_unit_test(returns), cmocka_unit_test(nested_returns), cmocka_unit_test(interrupts),
        cmocka_unit_test(long_mode), cmocka_unit_test(task_stages), T(task_to_v86), T(task_page_faults), T(stack_of_tss16), T(fast_calls),
        T(table_registers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
