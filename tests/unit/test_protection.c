/* Segments, call gates, task switches, control-register rules. */
#include "protected_guest.h"

static u32 pushed(struct guest *g, unsigned n) { return (u32)get(g, g->v->gpr[RSP] + n * 4, 4); }

/* ---- selector loads ---- */

static void segment_loads(void **state)
{
    struct guest *g = *state;
    static const struct { unsigned seg; u16 sel; int vector; u32 error; } rows[] = {
        {SEG_DS, 0, -1, 0}, {SEG_DS, 3, -1, 0},         /* null, whatever the RPL */
        {SEG_DS, DS0, -1, 0}, {SEG_DS, DS3, -1, 0}, {SEG_DS, DS0 | 3, VEC_GP, DS0},
        {SEG_DS, CS0, -1, 0}, {SEG_DS, EXEC_ONLY, VEC_GP, EXEC_ONLY}, {SEG_DS, CONFORMING | 3, -1, 0},
        {SEG_DS, READ_ONLY, -1, 0}, {SEG_DS, ABSENT, VEC_NP, ABSENT}, {SEG_DS, TSS_SEL, VEC_GP, TSS_SEL},
        {SEG_DS, GDT_END, VEC_GP, GDT_END}, {SEG_DS, DS0 | 4, VEC_GP, DS0 | 4}, /* no LDT */
        {SEG_SS, 0, VEC_GP, 0}, {SEG_SS, DS0, -1, 0}, {SEG_SS, DS3, VEC_GP, DS3 & ~3}, {SEG_SS, DS0 | 1, VEC_GP, DS0},
        {SEG_SS, READ_ONLY, VEC_GP, READ_ONLY}, {SEG_SS, CS0, VEC_GP, CS0}, {SEG_SS, ABSENT, VEC_SS, ABSENT},
        {SEG_GS, EXPAND_DOWN, -1, 0},
    };
    for (volatile unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        struct segment before = g->v->seg[rows[n].seg];
        int vector = RAISES(g, cpu_load_segment(g->v, rows[n].seg, rows[n].sel));
        if (vector != rows[n].vector)
            fail_msg("row %u: vector %d, expected %d", n, vector, rows[n].vector);
        if (vector >= 0) {
            assert_int_equal(g->v->raised.error, rows[n].error);
            assert_memory_equal(&before, &g->v->seg[rows[n].seg], sizeof(before));
        } else {
            assert_int_equal(g->v->seg[rows[n].seg].sel, rows[n].sel);
        }
    }
}

static void accessed_bit(void **state)
{
    struct guest *g = *state;
    put(g, GDT + DS0, descriptor(0, 0xfffff, 0xc092), 8);
    assert_int_equal(RAISES(g, cpu_load_segment(g->v, SEG_ES, DS0)), -1);
    assert_int_equal(get(g, GDT + DS0 + 5, 1), 0x93);
    assert_int_equal(g->v->seg[SEG_ES].ar & AR_TYPE, 3);
}

static void null_stack_in_64bit_mode(void **state)
{
    struct guest *g = *state;
    to_long(g);
    assert_int_equal(RAISES(g, cpu_load_segment(g->v, SEG_SS, 0)), -1);
    assert_int_equal(g->v->cpl, 0);
    assert_int_equal(RAISES(g, cpu_load_segment(g->v, SEG_SS, 1)), VEC_GP);
    to_ring3(g);
    assert_int_equal(RAISES(g, cpu_load_segment(g->v, SEG_SS, 3)), VEC_GP);
}

static void limits(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    static const struct { u32 attr, limit; u64 offset; unsigned size; u32 access; bool ok; } rows[] = {
        {0x4093, 0xfff, 0xffc, 4, ACCESS_READ, true},   {0x4093, 0xfff, 0xffd, 4, ACCESS_READ, false},
        {0x4097, 0xfff, 0x1000, 4, ACCESS_WRITE, true}, {0x4097, 0xfff, 0xfff, 4, ACCESS_WRITE, false},
        {0x4097, 0xfff, 0xfffffffd, 4, ACCESS_READ, false}, {0x0097, 0xfff, 0xfffd, 4, ACCESS_READ, false},
        {0x0097, 0xfff, 0xfffc, 4, ACCESS_READ, true},  {0xc091, 0xfffff, 0, 4, ACCESS_WRITE, false},
        {0xc091, 0xfffff, 0, 4, ACCESS_READ, true},     {0xc09b, 0xfffff, 0, 4, ACCESS_WRITE, false},
        {0xc099, 0xfffff, 0, 4, ACCESS_READ, false},    {0xc09b, 0xfffff, 0, 4, ACCESS_READ, true},
    };
    for (volatile unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        segment_unpack(&v->seg[SEG_ES], 8, descriptor(0x100, rows[n].limit, rows[n].attr));
        cpu_segments_changed(v);
        volatile gva_t la = 0;
        int vector = RAISES(g, la = seg_linear(v, SEG_ES, rows[n].offset, rows[n].size, rows[n].access));
        if (vector != (rows[n].ok ? -1 : VEC_GP))
            fail_msg("row %u: vector %d", n, vector);
        if (rows[n].ok)
            assert_int_equal(la, rows[n].offset + 0x100);
        /* What translated code looks at: all there is where the segment is of the usual kind, else nothing. */
        bool usual = rows[n].attr != 0x4097 && rows[n].attr != 0x0097;
        u64 room = v->seg_room[(rows[n].access == ACCESS_WRITE ? SEG_LDTR : 0) + SEG_ES];
        if ((rows[n].offset + rows[n].size <= room) != (rows[n].ok && usual))
            fail_msg("row %u: room for %llu bytes", n, (unsigned long long)room);
    }
    segment_set_null(v, SEG_ES, 0, 0);
    cpu_segments_changed(v);
    assert_int_equal(RAISES(g, seg_linear(v, SEG_ES, 0, 1, ACCESS_READ)), VEC_GP);
    v->seg[SEG_SS].limit = 0x10;
    cpu_segments_changed(v);
    assert_int_equal(RAISES(g, seg_linear(v, SEG_SS, 0x11, 1, ACCESS_READ)), VEC_SS);
}

/* ---- gates ---- */

static void call_gate_inner(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    /* push 0x11111111; push 0x22222222; call GATE:0; int 0x80 */
    CODE_AT(g, CODE, 0x68, 0x11, 0x11, 0x11, 0x11, 0x68, 0x22, 0x22, 0x22, 0x22, 0x9a, 0, 0, 0, 0, GATE | 3, 0, 0xcd, 0x80);
    CODE_AT(g, HANDLER(0x90), 0xca, 8, 0); /* retf 8 */
    to_ring3(g);
    run(g, 3);
    assert_int_equal(v->cpl, 0);
    assert_int_equal(v->rip, HANDLER(0x90));
    assert_int_equal(v->gpr[RSP], STACK0 - 24);
    assert_int_equal(pushed(g, 0), CODE + 17);
    assert_int_equal(pushed(g, 1), CS3);
    assert_int_equal(pushed(g, 2), 0x22222222);
    assert_int_equal(pushed(g, 3), 0x11111111);
    assert_int_equal(pushed(g, 4), USER_STACK - 8);
    assert_int_equal(pushed(g, 5), DS3);
    set_segment(v, SEG_FS, DS0, get(g, GDT + DS0, 8));
    run(g, 1);
    assert_int_equal(v->cpl, 3);
    assert_int_equal(v->rip, CODE + 17);
    assert_int_equal(v->gpr[RSP], USER_STACK);      /* both stacks dropped the parameters */
    assert_true(v->seg[SEG_FS].ar & AR_UNUSABLE);   /* ring 3 may not keep it */
    assert_int_equal(v->seg[SEG_DS].sel, DS3);
}

static void call_gate_privilege(void **state)
{
    struct guest *g = *state;
    put(g, GDT + GATE, gate(CS0, HANDLER(0x90), 0x8c, 0), 8); /* DPL 0 */
    CODE_AT(g, CODE, 0x9a, 0, 0, 0, 0, GATE, 0);
    to_ring3(g);
    expect_handler(g, VEC_GP);
    assert_int_equal(pushed(g, 0), GATE);
}

static void far_jump_checks(void **state)
{
    struct guest *g = *state;
    struct insn i = {.opsize = 4, .len = 7};
    static const struct { u16 sel; int vector; u32 error; } rows[] = {
        {CS0, -1, 0}, {CONFORMING, -1, 0}, {0, VEC_GP, 0}, {CS3, VEC_GP, CS3 & ~3}, {CS0 | 3, VEC_GP, CS0}, {DS0, VEC_GP, DS0},
        {GDT_END, VEC_GP, GDT_END}, {TSS_SEL, VEC_GP, TSS_SEL} /* busy */, {LDT_SEL, VEC_GP, LDT_SEL},
    };
    for (volatile unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        int vector = RAISES(g, cpu_far_jump(g->v, rows[n].sel, CODE, &i));
        if (vector != rows[n].vector)
            fail_msg("row %u: vector %d, expected %d", n, vector, rows[n].vector);
        if (vector >= 0)
            assert_int_equal(g->v->raised.error, rows[n].error);
    }
}

/* ---- tasks ---- */

static void fill_task(struct guest *g, pa_t tss, u32 eip)
{
    put(g, tss + 0x20, eip, 4);
    put(g, tss + 0x24, FL_FIXED, 4);
    put(g, tss + 0x28 + 4 * RBX, 0xb0b, 4);
    put(g, tss + 0x28 + 4 * RSP, STACK_IST, 4);
    put(g, tss + 0x48, DS0, 4);
    put(g, tss + 0x4c, CS0, 4);
    put(g, tss + 0x50, DS0, 4);
    put(g, tss + 0x54, DS0, 4);
}

static void task_call_and_return(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    fill_task(g, TSS2, CODE + 0x100);
    CODE_AT(g, CODE, 0x9a, 0, 0, 0, 0, TSS2_SEL, 0, 0xf4); /* call TSS2; hlt */
    CODE_AT(g, CODE + 0x100, 0xcf);                        /* iret */
    v->gpr[RDX] = 0xd00d;
    run(g, 1);
    assert_int_equal(v->rip, CODE + 0x100);
    assert_int_equal(v->seg[SEG_TR].sel, TSS2_SEL);
    assert_int_equal(v->gpr[RBX], 0xb0b);
    assert_int_equal(v->gpr[RSP], STACK_IST);
    assert_true(v->rflags & FL_NT);
    assert_true(v->cr0 & CR0_TS);
    assert_int_equal(get(g, TSS2, 2), TSS_SEL);                    /* back link */
    assert_int_equal(get(g, TSS + 0x20, 4), CODE + 7);
    assert_int_equal(get(g, TSS + 0x28 + 4 * RDX, 4), 0xd00d);
    assert_int_equal(get(g, GDT + TSS2_SEL + 5, 1), 0x8b);         /* both busy */
    assert_int_equal(get(g, GDT + TSS_SEL + 5, 1), 0x8b);
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 8);
    assert_int_equal(v->gpr[RDX], 0xd00d);
    assert_false(v->rflags & FL_NT);
    assert_int_equal(get(g, GDT + TSS2_SEL + 5, 1), 0x89);
    assert_int_equal(get(g, TSS2 + 0x24, 4) & FL_NT, 0);
}

static void task_gate_with_error_code(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    fill_task(g, TSS2, CODE + 0x100);
    put(g, IDT + VEC_GP * 8, gate(TSS2_SEL, 0, 0xe5, 0), 8);
    CODE_AT(g, CODE, 0x90, 0x66, 0xb8, 0x60, 0, 0x8e, 0xd0);     /* nop; mov ax, ABSENT; mov ss, ax: #SS */
    put(g, IDT + VEC_SS * 8, gate(TSS2_SEL, 0, 0xe5, 0), 8);
    put(g, CODE + 0x100, 0xf4, 1);
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 0x101);
    assert_int_equal(v->gpr[RSP], STACK_IST - 4);
    assert_int_equal(get(g, STACK_IST - 4, 4), ABSENT);
    assert_int_equal(get(g, TSS + 0x20, 4), CODE + 5);
    assert_true(get(g, TSS + 0x24, 4) & FL_RF);
}

static void task16(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    put(g, TSS16 + 0x0e, CODE + 0x100, 2);
    put(g, TSS16 + 0x10, FL_FIXED, 2);
    put(g, TSS16 + 0x12 + 2 * RCX, 0xcccc, 2);
    put(g, TSS16 + 0x12 + 2 * RSP, 0xb800, 2);
    put(g, TSS16 + 0x22, DS0, 2);
    put(g, TSS16 + 0x24, CS0, 2);
    put(g, TSS16 + 0x26, DS0, 2);
    put(g, TSS16 + 0x28, DS0, 2);
    put(g, CODE + 0x100, 0xf4, 1);
    CODE_AT(g, CODE, 0xea, 0, 0, 0, 0, TSS16_SEL, 0);
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 0x101);
    assert_int_equal(v->gpr[RCX], 0xcccc);
    assert_int_equal(v->gpr[RSP], 0xb800);
    assert_int_equal(get(g, GDT + TSS_SEL + 5, 1), 0x89);
    assert_true(v->seg[SEG_FS].ar & AR_UNUSABLE);
}

static void task_faults(void **state)
{
    struct guest *g = *state;
    /* Too short a TSS: #TS before the switch, in the old task. */
    put(g, GDT + TSS2_SEL, descriptor(TSS2, 0x66, 0x89), 8);
    CODE_AT(g, CODE, 0xea, 0, 0, 0, 0, TSS2_SEL, 0);
    expect_handler(g, VEC_TS);
    assert_int_equal(pushed(g, 0), TSS2_SEL);
    assert_int_equal(pushed(g, 1), CODE);
    assert_int_equal(g->v->seg[SEG_TR].sel, TSS_SEL);
    assert_int_equal(get(g, GDT + TSS_SEL + 5, 1), 0x8b);
}

static void task_fault_in_new_task(void **state)
{
    struct guest *g = *state;
    fill_task(g, TSS2, CODE + 0x100);
    put(g, TSS2 + 0x54, ABSENT, 4); /* DS */
    CODE_AT(g, CODE, 0xea, 0, 0, 0, 0, TSS2_SEL, 0);
    expect_handler(g, VEC_NP);
    assert_int_equal(pushed(g, 0), ABSENT);
    assert_int_equal(pushed(g, 1), CODE + 0x100); /* the new task's first instruction */
    assert_int_equal(g->v->seg[SEG_TR].sel, TSS2_SEL);
}

static void task_trap_bit(void **state)
{
    struct guest *g = *state;
    fill_task(g, TSS2, CODE + 0x100);
    put(g, TSS2 + 0x64, 1, 2);
    CODE_AT(g, CODE, 0xea, 0, 0, 0, 0, TSS2_SEL, 0);
    expect_handler(g, VEC_DB);
    assert_int_equal(pushed(g, 0), CODE + 0x100);
    assert_int_equal(g->v->dr6, DR6_FIXED | DR6_BT);
}

/* ---- control registers ---- */

static void cr0_rules(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    assert_int_equal(RAISES(g, cpu_write_cr0(v, CR0_PG)), VEC_GP);
    assert_int_equal(RAISES(g, cpu_write_cr0(v, CR0_PE | CR0_NW)), VEC_GP);
    assert_int_equal(RAISES(g, cpu_write_cr0(v, CR0_PE | BIT64(32))), VEC_GP);
    v->efer = EFER_LME;
    assert_int_equal(RAISES(g, cpu_write_cr0(v, CR0_PE | CR0_PG)), VEC_GP); /* LME without PAE */
    assert_false(v->efer & EFER_LMA);
    to_long(g);
    assert_int_equal(RAISES(g, cpu_write_cr0(v, CR0_PE)), VEC_GP);          /* PG in 64-bit mode */
    assert_int_equal(RAISES(g, cpu_write_cr4(v, 0)), VEC_GP);               /* PAE in long mode */
    assert_int_equal(RAISES(g, cpu_write_efer(v, v->efer & ~EFER_LME)), VEC_GP);
    assert_int_equal(RAISES(g, cpu_write_cr3(v, 1ull << 60)), VEC_GP);
    assert_int_equal(RAISES(g, cpu_write_cr3(v, 1ull << 63)), VEC_GP);      /* without PCIDE */
    assert_int_equal(RAISES(g, cpu_write_cr4(v, v->cr4 | BIT64(31))), VEC_GP);
    v->cr3 = PML4 | 1;
    assert_int_equal(RAISES(g, cpu_write_cr4(v, v->cr4 | CR4_PCIDE)), VEC_GP);
    v->cr3 = PML4;
}

static void long_mode_activation(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    put(g, PML4, (PML4 + 0x1000) | 7, 8);
    put(g, PML4 + 0x1000, (PML4 + 0x2000) | 7, 8);
    put(g, PML4 + 0x2000, 0x87, 8);
    assert_int_equal(RAISES(g, cpu_write_cr4(v, CR4_PAE)), -1);
    assert_int_equal(RAISES(g, cpu_write_cr3(v, PML4)), -1);
    assert_int_equal(RAISES(g, cpu_write_efer(v, EFER_LME)), -1);
    assert_int_equal(v->mode, MODE_PROT32);
    assert_int_equal(RAISES(g, cpu_write_cr0(v, v->cr0 | CR0_PG)), -1);
    assert_true(v->efer & EFER_LMA);
    assert_int_equal(v->mode, MODE_COMPAT32);
    CODE_AT(g, CODE, 0xea, 0, 0x81, 0, 0, CS0_64, 0);
    CODE_AT(g, CODE + 0x100, 0x48, 0xff, 0xc0, 0xf4); /* inc rax; hlt: dec eax; inc eax in compatibility mode */
    v->gpr[RAX] = 0xffffffff;
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->mode, MODE_LONG64);
    assert_int_equal(v->gpr[RAX], 0x100000000);
}

/* PAE: the PDPTEs are loaded as a whole or not at all. */
static void pae_pdptes(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    v->cr4 = CR4_PAE;
    cpu_mode_changed(v);
    put(g, PML4, (PML4 + 0x1000) | 1, 8);
    put(g, PML4 + 0x1000, 0x83, 8);
    v->cr3 = PML4;
    assert_int_equal(RAISES(g, cpu_write_cr0(v, v->cr0 | CR0_PG)), -1);
    assert_int_equal(v->pdpte[0], (PML4 + 0x1000) | 1);
    put(g, PML4 + 0x20, 0x3, 8); /* reserved bit 1 */
    assert_int_equal(RAISES(g, cpu_write_cr3(v, PML4 + 0x20)), VEC_GP);
    assert_int_equal(v->cr3, PML4);
    assert_int_equal(v->pdpte[0], (PML4 + 0x1000) | 1);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(segment_loads), T(accessed_bit), T(null_stack_in_64bit_mode), T(limits), T(call_gate_inner), T(call_gate_privilege),
        T(far_jump_checks), T(task_call_and_return), T(task_gate_with_error_code), T(task16), T(task_faults),
        T(task_fault_in_new_task), T(task_trap_bit), T(cr0_rules), T(long_mode_activation), T(pae_pdptes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
