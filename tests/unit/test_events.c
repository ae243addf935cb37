/* Exceptions and interrupts: error codes, delivery in every mode, combination, priority, shadows. */
#include "protected_guest.h"

static u32 pushed(struct guest *g, unsigned n) { return (u32)get(g, g->v->gpr[RSP] + n * 4, 4); }
static u64 pushed64(struct guest *g, unsigned n) { return get(g, g->v->gpr[RSP] + n * 8, 8); }

static void error_codes(void **state)
{
    for (unsigned n = 0; n < 256; n++) {
        bool sdm = n == 8 || (n >= 10 && n <= 14) || n == 17 || n == 21;
        assert_int_equal(has_error_code(n), sdm);
        assert_int_equal(has_error_code_amd(n), sdm || n == 29 || n == 30);
    }
}

/* ---- delivery ---- */

static void same_level(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0x90, 0x0f, 0x0b); /* nop; ud2 */
    cpu_put_rflags(g->v, FL_FIXED | FL_IF | FL_CF);
    expect_handler(g, VEC_UD);
    assert_int_equal(g->v->gpr[RSP], STACK - 12);
    assert_int_equal(pushed(g, 0), CODE + 1);
    assert_int_equal(pushed(g, 1), CS0);
    assert_int_equal(pushed(g, 2), FL_RF | FL_IF | FL_CF | FL_FIXED); /* a fault pushes RF */
    assert_int_equal(g->v->rflags & (FL_IF | FL_RF), 0);
}

static void inner_level(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0xcd, 0x80);
    to_ring3(g);
    expect_handler(g, 0x80);
    struct vcpu *v = g->v;
    assert_int_equal(v->gpr[RSP], STACK0 - 20);
    assert_int_equal(v->cpl, 0);
    assert_int_equal(v->seg[SEG_SS].sel, DS0);
    assert_int_equal(pushed(g, 0), CODE + 2);
    assert_int_equal(pushed(g, 1), CS3);
    assert_int_equal(pushed(g, 3), USER_STACK);
    assert_int_equal(pushed(g, 4), DS3);
}

static void gate_privilege(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0xcd, 0x80);
    put(g, IDT + 0x80 * 8, gate(CS0, HANDLER(0x80), 0x8e, 0), 8); /* DPL 0 */
    to_ring3(g);
    expect_handler(g, VEC_GP);
    assert_int_equal(pushed(g, 0), 0x80 * 8 + 2); /* IDT, not EXT */
    assert_int_equal(pushed(g, 1), CODE);         /* the INT itself */
}

/* INT1 is not subject to the gate's DPL, and counts as external. */
static void icebp(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0xf1);
    put(g, IDT + VEC_DB * 8, gate(CS0, HANDLER(VEC_DB), 0x8e, 0), 8);
    to_ring3(g);
    expect_handler(g, VEC_DB);
    assert_int_equal(pushed(g, 0), CODE + 1);
    assert_int_equal(g->v->dr6, DR6_FIXED);
}

static void real_mode(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    v->cr0 &= ~CR0_PE;
    for (unsigned s = 0; s < 6; s++)
        v->seg[s] = (struct segment){.limit = 0xffff, .ar = AR_P | AR_S | 3};
    v->idtr = (struct desc_table){0, 0x3ff};
    cpu_mode_changed(v);
    put(g, 0x21 * 4, 0x01000050, 4); /* 0100:0050 */
    put(g, 0x1050, 0xf4, 1);
    CODE_AT(g, CODE, 0xcd, 0x21);
    assert_int_equal(run(g, 100), RUN_HALTED);
    assert_int_equal(v->rip, 0x51);
    assert_int_equal(v->seg[SEG_CS].base, 0x1000);
    assert_int_equal(get(g, STACK - 6, 2), CODE + 2);
    assert_int_equal(get(g, STACK - 4, 2), 0);
    assert_int_equal(get(g, STACK - 2, 2), FL_FIXED);
}

static void long_mode(void **state)
{
    struct guest *g = *state;
    to_long(g);
    to_ring3(g);
    CODE_AT(g, CODE, 0xcd, 0x80);
    g->v->gpr[RSP] = USER_STACK + 3;
    expect_handler(g, 0x80);
    assert_int_equal(g->v->gpr[RSP], STACK0 - 40);
    assert_int_equal(g->v->seg[SEG_SS].sel, 0);
    assert_int_equal(pushed64(g, 0), CODE + 2);
    assert_int_equal(pushed64(g, 1), CS3_64);
    assert_int_equal(pushed64(g, 3), USER_STACK + 3);
    assert_int_equal(pushed64(g, 4), DS3);
}

static void ist(void **state)
{
    struct guest *g = *state;
    to_long(g);
    CODE_AT(g, CODE, 0xcd, 0x40);
    g->v->gpr[RSP] = STACK - 5; /* the frame is aligned */
    expect_handler(g, 0x40);
    assert_int_equal(g->v->gpr[RSP], STACK_IST - 40);
    assert_int_equal(pushed64(g, 3), STACK - 5);
    assert_int_equal(g->v->seg[SEG_SS].sel, DS0); /* same level: SS stays */
}

static void iretq_to_non_canonical(void **state)
{
    struct guest *g = *state;
    to_long(g);
    CODE_AT(g, CODE, 0x48, 0xcf);
    put(g, STACK, 0x800000000000, 8);
    put(g, STACK + 8, CS3_64, 8);
    put(g, STACK + 16, 2, 8);
    put(g, STACK + 24, USER_STACK, 8);
    put(g, STACK + 32, DS3, 8);
    expect_handler(g, VEC_GP);
    assert_int_equal(pushed64(g, 1), CODE); /* at the IRET, in the kernel */
    assert_int_equal(pushed64(g, 2), CS0_64);
}

static void iretq_to_compat(void **state)
{
    struct guest *g = *state;
    to_long(g);
    CODE_AT(g, CODE, 0x48, 0xcf);
    CODE_AT(g, CODE + 0x100, 0xcd, 0x80);
    put(g, STACK, CODE + 0x100, 8);
    put(g, STACK + 8, CS3, 8);
    put(g, STACK + 16, 2 | FL_IF, 8);
    put(g, STACK + 24, 0x1234500000000 + USER_STACK, 8);
    put(g, STACK + 32, DS3, 8);
    expect_handler(g, 0x80);
    assert_int_equal(pushed64(g, 0), CODE + 0x102);
    assert_int_equal(pushed64(g, 1), CS3);
    assert_int_equal(pushed64(g, 2), FL_FIXED | FL_IF);
    assert_int_equal(pushed64(g, 3), USER_STACK);
}

static void syscall_round_trip(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    to_long(g);
    to_ring3(g);
    v->star = (u64)CS0_64 << 32 | (u64)(CS3 & ~3) << 48;
    v->lstar = CODE + 0x100;
    v->sfmask = FL_IF | FL_TF;
    cpu_put_rflags(v, FL_FIXED | FL_IF | FL_CF);
    CODE_AT(g, CODE, 0x0f, 0x05);
    CODE_AT(g, CODE + 0x100, 0x48, 0x0f, 0x07);
    run(g, 1);
    assert_int_equal(v->cpl, 0);
    assert_int_equal(v->rip, CODE + 0x100);
    assert_int_equal(v->gpr[RCX], CODE + 2);
    assert_int_equal(v->gpr[R11], FL_FIXED | FL_IF | FL_CF);
    assert_int_equal(cpu_rflags(v), FL_FIXED | FL_CF);
    assert_int_equal(v->seg[SEG_SS].sel, CS0_64 + 8);
    run(g, 1);
    assert_int_equal(v->cpl, 3);
    assert_int_equal(v->rip, CODE + 2);
    assert_int_equal(v->seg[SEG_CS].sel, (CS3 & ~3) + 16 + 3);
    assert_int_equal(v->seg[SEG_SS].sel, (CS3 & ~3) + 8 + 3);
    assert_int_equal(cpu_rflags(v), FL_FIXED | FL_IF | FL_CF);
}

/* ---- faults while delivering ---- */

static void double_fault(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0xf7, 0xf1);                    /* div ecx */
    put(g, IDT + VEC_DE * 8, 0, 8);                  /* #DE -> #GP: both contributory */
    expect_handler(g, VEC_DF);
    assert_int_equal(pushed(g, 0), 0);
    assert_int_equal(pushed(g, 1), CODE);
}

static void benign_then_contributory(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0x0f, 0x0b);
    put(g, IDT + VEC_UD * 8, gate(CS0, HANDLER(6), 0x0e, 0), 8); /* #UD -> #NP: handled in turn */
    expect_handler(g, VEC_NP);
    assert_int_equal(pushed(g, 0), VEC_UD * 8 + 2 + 1);         /* IDT and EXT */
    assert_int_equal(pushed(g, 1), CODE);
}

static void triple_fault(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0x0f, 0x0b);
    g->v->idtr.limit = 0;
    assert_int_equal(run(g, 10), RUN_SHUTDOWN);
    assert_int_equal(g->v->rip, CODE);
    /* An NMI ends the shutdown. */
    g->v->idtr.limit = 0x7ff;
    vcpu_request(g->v, REQ_NMI);
    expect_handler(g, VEC_NMI);
}

/* ---- between instructions ---- */

static void interrupt_waits_for_if_and_shadow(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0x90, 0xfb, 0x90, 0x90); /* nop; sti; nop; nop */
    interrupt(g, 0x70);
    run(g, 1);
    assert_int_equal(g->v->rip, CODE + 1);
    assert_int_equal(g->v->attention, 0); /* a masked request does not keep the engine busy */
    expect_handler(g, 0x70);
    assert_int_equal(pushed(g, 0), CODE + 3); /* one instruction after STI */
}

static void sti_hlt(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0xfb, 0xf4);
    assert_int_equal(run(g, 100), RUN_HALTED);
    assert_int_equal(g->v->rip, CODE + 2);
    interrupt(g, 0x70);
    expect_handler(g, 0x70);
    assert_int_equal(pushed(g, 0), CODE + 2);
}

static void nmi_blocks_until_iret(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0x90, 0x90, 0x90);
    CODE_AT(g, HANDLER(VEC_NMI), 0x90, 0xcf); /* nop; iret */
    vcpu_request(g->v, REQ_NMI);
    run(g, 1);
    assert_int_equal(g->v->rip, HANDLER(VEC_NMI) + 1);
    vcpu_request(g->v, REQ_NMI);
    run(g, 1); /* iret */
    assert_false(g->v->nmi_blocked);
    assert_int_equal(g->v->rip, CODE);
    run(g, 1); /* the second one comes now */
    assert_int_equal(g->v->rip, HANDLER(VEC_NMI) + 1);
    assert_true(g->v->nmi_blocked);
}

/* A trap, an NMI and an interrupt at one boundary: the trap is delivered first, so its frame is lowest. */
static void priority(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0x90, 0x90);
    put(g, IDT + VEC_DB * 8, gate(CS0, HANDLER(VEC_DB), 0x8f, 0), 8); /* trap gates leave IF alone */
    put(g, IDT + VEC_NMI * 8, gate(CS0, HANDLER(VEC_NMI), 0x8f, 0), 8);
    cpu_put_rflags(g->v, FL_FIXED | FL_IF | FL_TF);
    cpu_flags_changed(g->v);
    run(g, 1);
    vcpu_request(g->v, REQ_NMI);
    interrupt(g, 0x70);
    expect_handler(g, 0x70);
    assert_int_equal(g->v->gpr[RSP], STACK - 36);
    assert_int_equal(pushed(g, 0), HANDLER(VEC_NMI)); /* the interrupt came over the NMI's handler */
    assert_int_equal(pushed(g, 3), HANDLER(VEC_DB));
    assert_int_equal(pushed(g, 6), CODE + 1);
    assert_int_equal(g->v->dr6, DR6_FIXED | DR6_BS);
}

static void single_step_starts_after_popf(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0x68, 0x02, 0x01, 0, 0, 0x9d, 0x90, 0x90); /* push 0x102; popf; nop; nop */
    expect_handler(g, VEC_DB);
    assert_int_equal(pushed(g, 0), CODE + 7);
    assert_int_equal(pushed(g, 2), FL_FIXED | FL_TF);
}

static void code_breakpoint(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0x90, 0x90, 0x90, 0xf4);
    CODE_AT(g, HANDLER(VEC_DB), 0x80, 0x4c, 0x24, 0x0a, 0x01, 0xcf); /* or byte [esp+10], 1 (RF); iret */
    g->v->dr[2] = CODE + 1;
    g->v->dr7 = DR7_FIXED | BIT(4);
    cpu_rearm(g->v);
    assert_int_equal(run(g, 100), RUN_HALTED);
    assert_int_equal(g->v->rip, CODE + 4); /* hit once, then RF let it pass */
    assert_int_equal(g->v->dr6, DR6_FIXED | DR6_B(2));
    assert_int_equal(g->v->icount, 6);
    assert_int_equal(g->v->rflags & FL_RF, 0);
}

static void data_breakpoint_waits_for_mov_ss(void **state)
{
    struct guest *g = *state;
    put(g, 0x9000, DS0, 4);
    g->v->dr[0] = 0x9000;
    g->v->dr7 = DR7_FIXED | 2 | 0xf0000;
    mmu_watch_changed(g->v);
    CODE_AT(g, CODE, 0x8e, 0x15, 0x00, 0x90, 0, 0, 0x90, 0x90); /* mov ss, [0x9000]; nop; nop */
    expect_handler(g, VEC_DB);
    assert_int_equal(pushed(g, 0), CODE + 7);
    assert_int_equal(g->v->dr6, DR6_FIXED | DR6_B(0));
}

static void sipi_starts_the_processor(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    v->activity = ACTIVITY_WAIT_SIPI;
    v->cr0 = CR0_ET;
    for (unsigned s = 0; s < 6; s++)
        v->seg[s] = (struct segment){.limit = 0xffff, .ar = AR_P | AR_S | 3};
    cpu_mode_changed(v);
    cpu_rearm(v);
    put(g, 0x9000, 0xf4, 1);
    vcpu_request(v, REQ_NMI);
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->activity, ACTIVITY_WAIT_SIPI);
    atomic_fetch_and(&v->requests, ~(u32)REQ_NMI);
    atomic_store(&v->sipi_vector, 9);
    vcpu_request(v, REQ_SIPI);
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->activity, ACTIVITY_HLT);
    assert_int_equal(v->seg[SEG_CS].sel, 0x900);
    assert_int_equal(v->rip, 1);
}

static void exit_request_ends_the_slice_once(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0xeb, 0xfe);
    vcpu_request(g->v, REQ_EXIT);
    assert_int_equal(run(g, 10), RUN_REQUEST);
    assert_int_equal(run(g, 10), RUN_BUDGET);
}

/* ---- virtual-8086 mode ---- */

static void enter_v86(struct guest *g, u64 flags)
{
    CODE_AT(g, CODE - 0x10, 0xcf);
    u32 frame[9] = {0x40, (CODE - 0x40) >> 4, (u32)flags | FL_VM | 2, 0x700, 0x900, 0x901, 0x902, 0x903, 0x904};
    physmap_write(g->pm, STACK, frame, sizeof(frame));
    g->v->rip = CODE - 0x10;
    run(g, 1);
}

static void v86_and_back(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    CODE_AT(g, CODE, 0xcd, 0x80);
    enter_v86(g, FL_IOPL);
    assert_int_equal(v->mode, MODE_V86);
    assert_int_equal(v->cpl, 3);
    assert_int_equal(v->seg[SEG_DS].base, 0x9020);
    expect_handler(g, 0x80);
    assert_int_equal(v->gpr[RSP], STACK0 - 36);
    assert_int_equal(pushed(g, 0), 0x42);
    assert_int_equal(pushed(g, 2), FL_VM | FL_IOPL | 2);
    assert_int_equal(pushed(g, 4), 0x900);
    assert_int_equal(pushed(g, 5), 0x901); /* ES DS FS GS */
    assert_int_equal(pushed(g, 8), 0x904);
    assert_true(v->seg[SEG_DS].ar & AR_UNUSABLE);
    assert_int_equal(v->mode, MODE_PROT32);
}

static void v86_iopl(void **state)
{
    struct guest *g = *state;
    CODE_AT(g, CODE, 0xcd, 0x80);
    enter_v86(g, 0);
    expect_handler(g, VEC_GP);
    assert_int_equal(pushed(g, 0), 0);
    assert_int_equal(pushed(g, 1), 0x40);
}

static void vme_redirects(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    v->cr4 |= CR4_VME;
    CODE_AT(g, CODE, 0xcd, 0x21);
    put(g, 0x21 * 4, 0x07000005, 4);
    enter_v86(g, FL_VIF);
    run(g, 1);
    assert_int_equal(v->mode, MODE_V86);
    assert_int_equal(v->seg[SEG_CS].sel, 0x700);
    assert_int_equal(v->rip, 5);
    assert_int_equal(v->gpr[RSP], 0x6fa);
    assert_int_equal(get(g, 0x9000 + 0x6fe, 2), FL_IF | FL_IOPL | 2); /* IF shows VIF */
    assert_int_equal(v->rflags & FL_VIF, 0);
    /* With its bit set the interrupt belongs to the monitor: #GP at IOPL < 3. */
    put(g, TSS + 0x68 + 4, 1 << 1, 1);
    v->rip = 0x40;
    v->seg[SEG_CS].sel = (CODE - 0x40) >> 4;
    v->seg[SEG_CS].base = CODE - 0x40;
    cpu_segments_changed(v);
    expect_handler(g, VEC_GP);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_codes), T(same_level), T(inner_level), T(gate_privilege), T(icebp), T(real_mode), T(long_mode),
        T(ist), T(iretq_to_non_canonical), T(iretq_to_compat), T(syscall_round_trip), T(double_fault),
        T(benign_then_contributory), T(triple_fault), T(interrupt_waits_for_if_and_shadow), T(sti_hlt),
        T(nmi_blocks_until_iret), T(priority), T(single_step_starts_after_popf), T(code_breakpoint),
        T(data_breakpoint_waits_for_mov_ss), T(sipi_starts_the_processor), T(exit_request_ends_the_slice_once), T(v86_and_back),
        T(v86_iopl), T(vme_redirects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
