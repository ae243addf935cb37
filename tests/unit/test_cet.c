/*
 * Shadow stacks, indirect-branch tracking and linear-address masking: SDM vol. 1 "Control-flow Enforcement
 * Technology (CET)" and "Linear-Address Pre-Processing". Each expectation is the manual's own pseudocode.
 */
#define GUEST_CPU "max"
#include "cpu/cet.h"
#include "protected_guest.h"

#define PT 0x18000u
#define USHADOW 0x200000u  /* a user shadow-stack page */
#define SSHADOW 0x201000u  /* a supervisor one */
#define PLAIN 0x202000u
#define TOP(page) ((page) + 0x800u)
#define TAGGED 0x5a00000000000000ull

/* 64-bit mode with CR4.CET, and the second 2 MiB in 4-KiB pages. */
static struct guest *cet_guest(void **state)
{
    struct guest *g = *state;
    to_long(g);
    put(g, PML4 + 0x2008, PT | 7, 8);
    for (unsigned n = 0; n < 16; n++)
        put(g, PT + 8 * n, (0x200000 + n * 0x1000) | 0x67, 8);
    put(g, PT, USHADOW | 0x65, 8);
    put(g, PT + 8, SSHADOW | 0x61, 8);
    g->v->cr0 |= CR0_WP;
    cpu_mode_changed(g->v);
    assert_int_equal(RAISES(g, cpu_write_cr4(g->v, g->v->cr4 | CR4_CET | CR4_OSXSAVE)), -1);
    return g;
}

static void wrmsr(struct guest *g, u32 msr, u64 value) { assert_true(cpu_wrmsr(g->v, msr, value)); }

static void shadow_on(struct guest *g, u64 ssp)
{
    wrmsr(g, 0x6a2, CET_SH_STK_EN | CET_WR_SHSTK_EN);
    g->v->ssp = ssp;
}

static void start(struct guest *g, u64 rip)
{
    g->v->rip = rip;
    g->v->activity = ACTIVITY_ACTIVE;
}

/* In the handler of @vector, before its first instruction or behind that, which halts. */
static void at_handler(struct guest *g, unsigned vector) { assert_int_equal((g->v->rip - HANDLER(0)) / 16, vector); }

/* Runs until something faults: @vector with @error. */
static void run_faults(struct guest *g, unsigned vector, u32 error)
{
    assert_int_equal(run(g, 20), RUN_HALTED);
    at_handler(g, vector);
    assert_int_equal(get(g, g->v->gpr[RSP], 8), error);
}

static void near_calls(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    shadow_on(g, TOP(SSHADOW));
    CODE_AT(g, CODE, 0xe8, 0x03, 0, 0, 0, 0x90, 0xf4, 0x90, 0xc3); /* call +8; nop; hlt; nop; ret */
    assert_int_equal(run(g, 1), RUN_BUDGET);
    assert_int_equal(v->rip, CODE + 8);
    assert_int_equal(v->ssp, TOP(SSHADOW) - 8);
    assert_int_equal(get(g, v->ssp, 8), CODE + 5);
    assert_int_equal(get(g, v->gpr[RSP], 8), CODE + 5);
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 7);
    assert_int_equal(v->ssp, TOP(SSHADOW));

    /* CALL to the next instruction pushes nothing there. */
    CODE_AT(g, CODE, 0xe8, 0, 0, 0, 0, 0xf4);
    start(g, CODE);
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->ssp, TOP(SSHADOW));

    /* call [rip+..]; the callee changes its return address. */
    CODE_AT(g, CODE, 0xff, 0x15, 0x1a, 0, 0, 0, 0xf4); /* call [CODE + 0x20] */
    put(g, CODE + 0x20, CODE + 0x30, 8);
    CODE_AT(g, CODE + 0x30, 0x48, 0xff, 0x04, 0x24, 0xc2, 0x08, 0); /* inc qword [rsp]; ret 8 */
    start(g, CODE);
    v->gpr[RSP] = STACK;
    run_faults(g, VEC_CP, CP_NEAR_RET);
}

/* A fault of the shadow stack leaves the stack as it was. */
static void call_fault_changes_nothing(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    shadow_on(g, TOP(PLAIN));
    CODE_AT(g, CODE, 0xe8, 3, 0, 0, 0);
    v->gpr[RSP] = STACK;
    assert_int_equal(RAISES(g, mem_shadow_write(v, TOP(PLAIN), 1, 8, false)), VEC_PF);
    assert_int_equal(v->raised.error, 0x43); /* shadow stack, write, present */
    assert_int_equal(RAISES(g, mem_shadow_read(v, TOP(USHADOW), 8, false)), VEC_PF);
    assert_int_equal(v->raised.error, 0x41);
    assert_int_equal(RAISES(g, mem_shadow_read(v, TOP(SSHADOW), 8, true)), VEC_PF);
    assert_int_equal(v->raised.error, 0x45);
    assert_int_equal(RAISES(g, mem_shadow_write(v, TOP(USHADOW), 7, 8, true)), -1);
    assert_int_equal(get(g, TOP(USHADOW), 8), 7);
    /* A page that is not dirty is none; nor one below a read-only directory entry. */
    put(g, PT, USHADOW | 0x25, 8);
    assert_int_equal(RAISES(g, mem_shadow_read(v, TOP(USHADOW), 8, true)), VEC_PF);
    put(g, PT, USHADOW | 0x65, 8);
    put(g, PML4 + 0x2008, PT | 5, 8);
    assert_int_equal(RAISES(g, mem_shadow_read(v, TOP(USHADOW), 8, true)), VEC_PF);
    put(g, PML4 + 0x2008, PT | 7, 8);
    run(g, 1); /* the CALL: #PF, delivered with the shadow stack on, whose fault in turn is a double fault */
    assert_true(v->activity == ACTIVITY_SHUTDOWN || v->rip == HANDLER(VEC_DF) || v->gpr[RSP] == STACK);
    /* Stores of other instructions fail on shadow-stack pages even for the supervisor. */
    wrmsr(g, 0x6a2, 0);
    assert_int_equal(RAISES(g, mem_write64(v, SEG_DS, TOP(SSHADOW), 1)), VEC_PF);
    assert_int_equal(v->raised.error, 3);
}

static void shadow_instructions(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    /* Off: RDSSP is a NOP, the others undefined. */
    CODE_AT(g, CODE, 0xf3, 0x48, 0x0f, 0x1e, 0xc8, 0xf4); /* rdsspq rax */
    v->gpr[RAX] = 5;
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->gpr[RAX], 5);
    CODE_AT(g, CODE, 0xf3, 0x48, 0x0f, 0xae, 0xe8); /* incsspq rax */
    start(g, CODE);
    expect_handler(g, VEC_UD);

    shadow_on(g, TOP(SSHADOW));
    CODE_AT(g, CODE, 0xf3, 0x48, 0x0f, 0x1e, 0xc8,      /* rdsspq rax */
            0x48, 0x0f, 0x38, 0xf6, 0x08,               /* wrssq [rax], rcx */
            0x0f, 0x38, 0xf6, 0x50, 0x08,               /* wrssd [rax + 8], edx */
            0xf3, 0x48, 0x0f, 0xae, 0xeb, 0xf4);        /* incsspq rbx */
    start(g, CODE);
    v->gpr[RCX] = 0x1122334455667788;
    v->gpr[RDX] = 0x99aabbccddeeff00;
    v->gpr[RBX] = 0x102; /* the low byte counts */
    assert_int_equal(run(g, 10), RUN_HALTED);
    assert_int_equal(v->gpr[RAX], TOP(SSHADOW));
    assert_int_equal(get(g, TOP(SSHADOW), 8), 0x1122334455667788);
    assert_int_equal(get(g, TOP(SSHADOW) + 8, 8), 0xddeeff00);
    assert_int_equal(v->ssp, TOP(SSHADOW) + 16);

    /* WRSS wants its own enable bit and natural alignment; WRUSS writes the user's pages. */
    CODE_AT(g, CODE, 0x48, 0x0f, 0x38, 0xf6, 0x08);
    start(g, CODE);
    v->gpr[RAX] = TOP(SSHADOW) + 4;
    wrmsr(g, 0x6a2, CET_SH_STK_EN);
    v->ssp = TOP(SSHADOW);
    run(g, 1);
    at_handler(g, VEC_UD);
    wrmsr(g, 0x6a2, CET_SH_STK_EN | CET_WR_SHSTK_EN);
    start(g, CODE);
    run_faults(g, VEC_GP, 0);
    CODE_AT(g, CODE, 0x66, 0x48, 0x0f, 0x38, 0xf5, 0x08, 0xf4); /* wrussq [rax], rcx */
    start(g, CODE);
    v->gpr[RAX] = TOP(USHADOW);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(get(g, TOP(USHADOW), 8), 0x1122334455667788);
    v->gpr[RAX] = TOP(SSHADOW);
    start(g, CODE);
    run_faults(g, VEC_PF, 0x47);
}

/* Switching shadow stacks: RSTORSSP to another, SAVEPREVSSP leaves a token on the first. */
static void switch_shadow_stacks(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    u64 other = SSHADOW + 0x400;
    shadow_on(g, TOP(SSHADOW));
    put(g, other, (other + 8) | 1, 8); /* restore token of 64-bit mode */
    CODE_AT(g, CODE, 0xf3, 0x0f, 0x01, 0x28, 0xf3, 0x0f, 0x01, 0xea, 0xf4); /* rstorssp [rax]; saveprevssp; hlt */
    v->gpr[RAX] = other;
    v->aflags = FL_CF | FL_ZF;
    assert_int_equal(run(g, 1), RUN_BUDGET);
    assert_int_equal(v->ssp, other);
    assert_int_equal(get(g, other, 8), TOP(SSHADOW) | 3);
    assert_int_equal(v->aflags, 0);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->ssp, other + 8);
    assert_int_equal(get(g, TOP(SSHADOW) - 8, 8), TOP(SSHADOW) | 1);
    /* And back. */
    CODE_AT(g, CODE, 0xf3, 0x0f, 0x01, 0x28, 0xf4);
    start(g, CODE);
    v->gpr[RAX] = TOP(SSHADOW) - 8;
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->ssp, TOP(SSHADOW) - 8);
    /* No token: #CP(RSTORSSP). */
    start(g, CODE);
    v->gpr[RAX] = TOP(SSHADOW) - 0x40;
    put(g, TOP(SSHADOW) - 0x40, 0x1234, 8);
    run_faults(g, VEC_CP, CP_RSTORSSP);
    /* SAVEPREVSSP without a previous-SSP token. */
    CODE_AT(g, CODE, 0xf3, 0x0f, 0x01, 0xea);
    start(g, CODE);
    v->ssp = TOP(SSHADOW) - 0x40;
    v->aflags = 0;
    run_faults(g, VEC_GP, 0);
}

static void busy_tokens(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    u64 token = TOP(SSHADOW) + 0x18;
    shadow_on(g, 0);
    wrmsr(g, 0x6a4, token);
    put(g, token, token, 8);
    CODE_AT(g, CODE, 0xf3, 0x0f, 0x01, 0xe8, 0xf4); /* setssbsy */
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->ssp, token);
    assert_int_equal(get(g, token, 8), token | 1);
    start(g, CODE);
    v->ssp = TOP(SSHADOW) - 0x100; /* for the delivery */
    run_faults(g, VEC_CP, CP_SETSSBSY); /* busy already */
    CODE_AT(g, CODE, 0xf3, 0x0f, 0xae, 0x30, 0xf4); /* clrssbsy [rax] */
    start(g, CODE);
    v->gpr[RAX] = token;
    v->aflags = FL_ARITH;
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->ssp, 0);
    assert_int_equal(v->aflags, 0);
    assert_int_equal(get(g, token, 8), token);
    start(g, CODE);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->aflags, FL_CF); /* was free */
}

/* An interrupt from ring 3 uses the shadow stack of PL0_SSP, and IRET frees it. */
static void interrupt_and_iret(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    u64 token = TOP(SSHADOW) + 0x18;
    wrmsr(g, 0x6a0, CET_SH_STK_EN);
    wrmsr(g, 0x6a2, CET_SH_STK_EN);
    wrmsr(g, 0x6a4, token);
    put(g, token, token, 8);
    to_ring3(g);
    v->ssp = TOP(USHADOW);
    CODE_AT(g, CODE, 0xcd, 0x60, 0x90, 0x90);          /* int 0x60 */
    CODE_AT(g, HANDLER(0x60), 0xcd, 0x61, 0x48, 0xcf); /* int 0x61; iretq */
    CODE_AT(g, HANDLER(0x61), 0x48, 0xcf);
    run(g, 1);
    at_handler(g, 0x60);
    assert_int_equal(v->pl_ssp[3], TOP(USHADOW));
    assert_int_equal(v->ssp, token); /* nothing is pushed for ring 3 */
    assert_int_equal(get(g, token, 8), token | 1);
    run(g, 1); /* the same level: CS, linear address, SSP */
    at_handler(g, 0x61);
    assert_int_equal(v->ssp, token - 24);
    assert_int_equal(get(g, token - 8, 8), CS0_64);
    assert_int_equal(get(g, token - 16, 8), HANDLER(0x60) + 2);
    assert_int_equal(get(g, token - 24, 8), token);
    run(g, 2);
    assert_int_equal(v->rip, CODE + 2);
    assert_int_equal(v->cpl, 3);
    assert_int_equal(v->ssp, TOP(USHADOW));
    assert_int_equal(get(g, token, 8), token);

    /* A token that is busy, or a frame that would leave its 32 bytes, is #GP; so is that one's delivery. */
    put(g, token, token | 1, 8);
    start(g, CODE);
    run(g, 1);
    assert_int_equal(v->activity, ACTIVITY_SHUTDOWN);
}

/* IRET compares what the interrupt pushed. */
static void iret_mismatch(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    shadow_on(g, TOP(SSHADOW));
    CODE_AT(g, CODE, 0xcd, 0x60);
    CODE_AT(g, HANDLER(0x60), 0x48, 0xff, 0x04, 0x24, 0x48, 0xcf); /* inc qword [rsp]; iretq */
    run(g, 2);
    run_faults(g, VEC_CP, CP_FAR_RET_IRET);
    /* An unaligned SSP is a mismatch too, as far as returns go. */
    CODE_AT(g, HANDLER(0x60), 0x48, 0xcf);
    start(g, CODE);
    v->ssp = TOP(SSHADOW);
    v->gpr[RSP] = STACK;
    run(g, 1);
    v->ssp += 4;
    run_faults(g, VEC_CP, CP_FAR_RET_IRET);
}

static void interrupt_stack_table(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    u64 token = TOP(SSHADOW) + 0x18, table = 0x204000;
    shadow_on(g, TOP(SSHADOW) - 0x200);
    wrmsr(g, 0x6a8, table);
    put(g, table + 8, token, 8);
    put(g, token, token, 8);
    CODE_AT(g, CODE, 0xcd, 0x40, 0xf4); /* its gate uses IST1 */
    CODE_AT(g, HANDLER(0x40), 0x48, 0xcf);
    run(g, 1);
    assert_int_equal(v->ssp, token - 24);
    assert_int_equal(get(g, token - 24, 8), TOP(SSHADOW) - 0x200);
    assert_int_equal(get(g, token, 8), token | 1);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->ssp, TOP(SSHADOW) - 0x200);
    assert_int_equal(get(g, token, 8), token);
}

static void far_calls(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    shadow_on(g, TOP(SSHADOW) + 4); /* not aligned: a hole of zeroes */
    put(g, TOP(SSHADOW), ~0ull, 8);
    put(g, CODE + 0x40, CODE + 0x20, 8);
    put(g, CODE + 0x48, CS0_64, 2);
    CODE_AT(g, CODE, 0x48, 0xff, 0x1c, 0x25, 0x40, (CODE >> 8) & 255, 0, 0, 0xf4); /* call far [CODE + 0x40] */
    CODE_AT(g, CODE + 0x20, 0x48, 0xcb);
    run(g, 1);
    assert_int_equal(v->rip, CODE + 0x20);
    assert_int_equal(get(g, TOP(SSHADOW), 4), 0);
    assert_int_equal(get(g, TOP(SSHADOW) - 8, 8), CS0_64);
    assert_int_equal(get(g, TOP(SSHADOW) - 16, 8), CODE + 8);
    assert_int_equal(get(g, TOP(SSHADOW) - 24, 8), TOP(SSHADOW) + 4);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 9);
    assert_int_equal(v->ssp, TOP(SSHADOW) + 4);
    CODE_AT(g, CODE + 0x20, 0x48, 0xff, 0x04, 0x24, 0x48, 0xcb);
    start(g, CODE);
    run(g, 2);
    run_faults(g, VEC_CP, CP_FAR_RET_IRET);
}

static void fast_calls(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    wrmsr(g, 0x6a0, CET_SH_STK_EN);
    wrmsr(g, 0x6a2, CET_SH_STK_EN | CET_ENDBR_EN);
    wrmsr(g, 0xc0000081, (u64)CS0_64 << 32 | (u64)DS3 << 48);
    wrmsr(g, 0xc0000082, CODE + 0x100);
    to_ring3(g);
    v->ssp = TOP(USHADOW);
    CODE_AT(g, CODE, 0x0f, 0x05);
    CODE_AT(g, CODE + 0x100, 0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x0f, 0x07); /* endbr64; sysretq */
    run(g, 1);
    assert_int_equal(v->cpl, 0);
    assert_int_equal(v->pl_ssp[3], TOP(USHADOW));
    assert_int_equal(v->ssp, 0);
    assert_true(v->s_cet & CET_TRACKER);
    run(g, 1);
    assert_false(v->s_cet & CET_TRACKER);
    wrmsr(g, 0x6a7, TOP(USHADOW) - 8);
    run(g, 1);
    assert_int_equal(v->cpl, 3);
    assert_int_equal(v->ssp, TOP(USHADOW) - 8);
}

/* ---- indirect-branch tracking ---- */

static void tracking(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    wrmsr(g, 0x6a2, CET_ENDBR_EN | CET_NO_TRACK_EN);
    CODE_AT(g, CODE, 0xff, 0xe0);                                            /* jmp rax */
    CODE_AT(g, CODE + 0x10, 0xf3, 0x0f, 0x1e, 0xfa, 0xf4);                   /* endbr64; hlt */
    CODE_AT(g, CODE + 0x20, 0xf3, 0x0f, 0x1e, 0xfb, 0xf4);                   /* endbr32 does not count */
    CODE_AT(g, CODE + 0x30, 0x0f, 0x0b);                                     /* nor does an undefined opcode get that far */
    CODE_AT(g, CODE + 0x40, 0xcc);                                           /* int3 does */
    v->gpr[RAX] = CODE + 0x10;
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 0x15);
    assert_false(v->s_cet & CET_TRACKER);
    for (unsigned at = 0x20; at <= 0x30; at += 0x10) {
        v->gpr[RAX] = CODE + at;
        start(g, CODE);
        run(g, 1);
        assert_int_equal(v->rip, CODE + at);
        assert_true(v->s_cet & CET_TRACKER);
        assert_true(v->cet & CET_WAIT);
        /* The handler of #CP is no ENDBR64 either; its own #CP is what a test can see. */
        CODE_AT(g, HANDLER(VEC_CP), 0xf3, 0x0f, 0x1e, 0xfa, 0xf4);
        assert_int_equal(run(g, 9), RUN_HALTED);
        assert_int_equal(v->rip, HANDLER(VEC_CP) + 5);
        assert_int_equal(get(g, v->gpr[RSP], 8), CP_ENDBRANCH);
        assert_int_equal(get(g, v->gpr[RSP] + 8, 8), CODE + at);
    }
    CODE_AT(g, HANDLER(VEC_BP), 0xf3, 0x0f, 0x1e, 0xfa, 0xf4);
    v->gpr[RAX] = CODE + 0x40;
    start(g, CODE);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->rip, HANDLER(VEC_BP) + 5);
    /* NOTRACK, when it is enabled and the last segment prefix. */
    v->gpr[RAX] = CODE + 0x50;
    CODE_AT(g, CODE + 0x50, 0xf4);
    CODE_AT(g, CODE, 0x3e, 0xff, 0xe0);
    start(g, CODE);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 0x51);
    CODE_AT(g, CODE, 0x3e, 0x64, 0xff, 0xe0);
    start(g, CODE);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->rip, HANDLER(VEC_CP) + 5);
    wrmsr(g, 0x6a2, CET_ENDBR_EN);
    CODE_AT(g, CODE, 0x3e, 0xff, 0xd0);
    start(g, CODE);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->rip, HANDLER(VEC_CP) + 5);
    /* Suppressed: nothing is tracked. */
    wrmsr(g, 0x6a2, CET_ENDBR_EN | CET_SUPPRESS);
    CODE_AT(g, CODE, 0xff, 0xe0);
    start(g, CODE);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 0x51);
}

/* A page that the legacy bitmap names needs no ENDBRANCH, and tracking rests until the next one. */
static void legacy_bitmap(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    wrmsr(g, 0x6a2, PLAIN | CET_ENDBR_EN | CET_LEG_IW_EN);
    put(g, PLAIN + (CODE >> 15), 1u << (CODE >> 12 & 7), 1);
    CODE_AT(g, CODE, 0xff, 0xe0);
    CODE_AT(g, CODE + 0x50, 0xf4, 0xf3, 0x0f, 0x1e, 0xfa, 0xf4);
    v->gpr[RAX] = CODE + 0x50;
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 0x51);
    assert_int_equal(v->s_cet & (CET_SUPPRESS | CET_TRACKER), CET_SUPPRESS);
    v->activity = ACTIVITY_ACTIVE;
    assert_int_equal(run(g, 9), RUN_HALTED); /* an ENDBR64 ends the suppression */
    assert_int_equal(v->s_cet & (CET_SUPPRESS | CET_TRACKER), 0);
    wrmsr(g, 0x6a2, PLAIN | CET_ENDBR_EN | CET_LEG_IW_EN | CET_SUPPRESS_DIS);
    start(g, CODE);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->s_cet & (CET_SUPPRESS | CET_TRACKER), 0);
}

/* The user's tracker waits through an interrupt. */
static void tracker_survives_interrupt(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    wrmsr(g, 0x6a0, CET_ENDBR_EN);
    CODE_AT(g, HANDLER(0x70), 0x48, 0xcf);
    to_ring3(g);
    cpu_put_rflags(v, FL_FIXED | FL_IF);
    cpu_flags_changed(v);
    CODE_AT(g, CODE, 0xff, 0xe0);
    CODE_AT(g, CODE + 0x50, 0x90);
    v->gpr[RAX] = CODE + 0x50;
    run(g, 1);
    assert_true(v->u_cet & CET_TRACKER);
    interrupt(g, 0x70);
    run(g, 1);
    assert_int_equal(v->rip, CODE + 0x50);
    assert_true(v->u_cet & CET_TRACKER);
    run(g, 1);
    at_handler(g, VEC_CP);
    assert_int_equal(get(g, v->gpr[RSP], 8), CP_ENDBRANCH);
}

/* ---- 32-bit: slots of four bytes, task switches, virtual-8086 mode ---- */

static struct guest *cet_guest32(void **state)
{
    struct guest *g = *state;
    g->v->cr0 |= CR0_WP;
    cpu_mode_changed(g->v);
    assert_int_equal(RAISES(g, cpu_write_cr4(g->v, CR4_CET)), -1);
    return g;
}

static void near_calls32(void **state)
{
    struct guest *g = cet_guest32(state);
    struct vcpu *v = g->v;
    shadow_on(g, TOP(SSHADOW)); /* no paging: any memory will do */
    CODE_AT(g, CODE, 0xe8, 1, 0, 0, 0, 0xf4, 0xc3);
    run(g, 1);
    assert_int_equal(v->ssp, TOP(SSHADOW) - 4);
    assert_int_equal(get(g, v->ssp, 4), CODE + 5);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->ssp, TOP(SSHADOW));
}

static void task_switches(void **state)
{
    struct guest *g = cet_guest32(state);
    struct vcpu *v = g->v;
    u64 token = TOP(SSHADOW) + 0x18;
    shadow_on(g, TOP(SSHADOW) - 0x200);
    put(g, GDT + TSS2_SEL, descriptor(TSS2, 0x6b, 0x89), 8);
    for (unsigned at = 0; at < 0x6c; at += 4)
        put(g, TSS2 + at, 0, 4);
    put(g, TSS2 + 0x20, CODE + 0x100, 4);
    put(g, TSS2 + 0x24, 2, 4);
    put(g, TSS2 + 0x38, STACK0, 4);
    put(g, TSS2 + 0x4c, CS0, 4);
    for (unsigned at = 0x48; at <= 0x5c; at += 4)
        if (at != 0x4c)
            put(g, TSS2 + at, DS0, 4);
    put(g, TSS2 + 0x68, (u32)token, 4);
    put(g, token, token, 8);
    CODE_AT(g, CODE, 0x9a, 0, 0, 0, 0, TSS2_SEL, 0, 0xf4); /* call TSS2 */
    CODE_AT(g, CODE + 0x100, 0xcf);
    run(g, 1);
    assert_int_equal(v->rip, CODE + 0x100);
    assert_int_equal(v->ssp, token - 24);
    assert_int_equal(get(g, token, 8), token | 1);
    assert_int_equal(get(g, token - 8, 8), CS0);
    assert_int_equal(get(g, token - 16, 8), CODE + 7);
    assert_int_equal(get(g, token - 24, 8), TOP(SSHADOW) - 0x200);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 8);
    assert_int_equal(v->ssp, TOP(SSHADOW) - 0x200);
    assert_int_equal(get(g, token, 8), token);

    /* A busy token, an SSP that is not aligned: #TS of the new task. A TSS without SSP: #TS before. */
    put(g, GDT + TSS2_SEL, descriptor(TSS2, 0x67, 0x89), 8);
    assert_int_equal(RAISES(g, cpu_task_switch(v, TSS2_SEL, TASK_JMP, false, 0, NULL)), VEC_TS);
    assert_int_equal(v->raised.error, TSS2_SEL);
    assert_int_equal(RAISES(g, cpu_task_switch(v, TSS16_SEL, TASK_JMP, false, 0, NULL)), VEC_TS);
    assert_int_equal(v->raised.error, TSS16_SEL);
    assert_int_equal(v->seg[SEG_TR].sel, TSS_SEL);
    put(g, GDT + TSS2_SEL, descriptor(TSS2, 0x6b, 0x89), 8);
    put(g, token, token | 1, 8);
    assert_int_equal(RAISES(g, cpu_task_switch(v, TSS2_SEL, TASK_JMP, false, 0, NULL)), VEC_TS);
    assert_int_equal(v->seg[SEG_TR].sel, TSS2_SEL);
}

static void no_shadow_stack_in_v86(void **state)
{
    struct guest *g = cet_guest32(state);
    struct vcpu *v = g->v;
    static const u32 frame[] = {0, 0x100, FL_FIXED | FL_VM, 0x1000, 0, 0, 0, 0, 0};
    for (unsigned n = 0; n < ARRAY_SIZE(frame); n++)
        put(g, STACK - 0x100 + 4 * n, frame[n], 4);
    wrmsr(g, 0x6a0, CET_SH_STK_EN);
    CODE_AT(g, CODE, 0xcf);
    v->gpr[RSP] = STACK - 0x100;
    run(g, 1);
    at_handler(g, VEC_GP);
    wrmsr(g, 0x6a0, 0);
    start(g, CODE);
    v->gpr[RSP] = STACK - 0x100;
    run(g, 1);
    assert_int_equal(v->mode, MODE_V86);
}

/* ---- registers ---- */

static void registers(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    u64 value;
    assert_false(cpu_wrmsr(v, 0x6a0, BIT64(6)));
    assert_false(cpu_wrmsr(v, 0x6a2, CET_SUPPRESS | CET_TRACKER));
    assert_false(cpu_wrmsr(v, 0x6a2, BIT64(62)));
    assert_true(cpu_wrmsr(v, 0x6a2, 0x7fff000 | CET_TRACKER));
    assert_true(cpu_wrmsr(v, 0x6a2, 0));
    for (u32 msr = 0x6a4; msr <= 0x6a7; msr++) {
        assert_false(cpu_wrmsr(v, msr, 2));
        assert_false(cpu_wrmsr(v, msr, BIT64(62)));
        assert_true(cpu_wrmsr(v, msr, 0x1000 * msr));
        assert_true(cpu_rdmsr(v, msr, &value) && value == 0x1000 * msr);
    }
    assert_false(cpu_wrmsr(v, 0x6a8, BIT64(62)));
    assert_int_equal(RAISES(g, cpu_write_cr0(v, v->cr0 & ~CR0_WP)), VEC_GP);
    cpu_write_cr4(v, v->cr4 & ~CR4_CET);
    assert_int_equal(RAISES(g, cpu_write_cr0(v, v->cr0 & ~CR0_WP)), -1);
    assert_int_equal(RAISES(g, cpu_write_cr4(v, v->cr4 | CR4_CET)), VEC_GP);
}

/* XSAVES writes components 11 and 12 compacted; XRSTORS judges them as WRMSR would. */
static void saved_state(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    wrmsr(g, 0xda0, 3u << 11);
    wrmsr(g, 0x6a0, CET_ENDBR_EN);
    for (unsigned n = 0; n < 4; n++)
        wrmsr(g, 0x6a4 + n, 0x1000 * (n + 1));
    CODE_AT(g, CODE, 0x48, 0x0f, 0xc7, 0x2f, 0xf4); /* xsaves64 [rdi] */
    CODE_AT(g, CODE + 0x10, 0x48, 0x0f, 0xc7, 0x1f, 0xf4);
    v->gpr[RDI] = PLAIN;
    v->gpr[RAX] = 3u << 11;
    v->gpr[RDX] = 0;
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(get(g, PLAIN + 512, 8), 3u << 11);
    assert_int_equal(get(g, PLAIN + 520, 8), 3u << 11 | BIT64(63));
    assert_int_equal(get(g, PLAIN + 576, 8), CET_ENDBR_EN);
    assert_int_equal(get(g, PLAIN + 584, 8), 0x4000);
    assert_int_equal(get(g, PLAIN + 592, 8), 0x1000);
    assert_int_equal(get(g, PLAIN + 608, 8), 0x3000);
    wrmsr(g, 0x6a0, 0);
    wrmsr(g, 0x6a6, 0);
    start(g, CODE + 0x10);
    assert_int_equal(run(g, 9), RUN_HALTED);
    assert_int_equal(v->u_cet, CET_ENDBR_EN);
    assert_int_equal(v->pl_ssp[2], 0x3000);
    put(g, PLAIN + 576, BIT64(6), 8);
    start(g, CODE + 0x10);
    run_faults(g, VEC_GP, 0);
}

/* ---- linear-address masking ---- */

static void masked_pointers(void **state)
{
    struct guest *g = cet_guest(state);
    struct vcpu *v = g->v;
    put(g, PLAIN, 0x1234, 8);
    assert_int_equal(RAISES(g, mem_read64(v, SEG_DS, PLAIN | TAGGED)), VEC_GP);
    assert_int_equal(RAISES(g, mem_read64(v, SEG_SS, PLAIN | TAGGED)), VEC_SS);
    assert_int_equal(RAISES(g, cpu_write_cr3(v, PML4 | CR3_LAM_U57)), -1);
    volatile u64 value = 0;
    assert_int_equal(RAISES(g, value = mem_read64(v, SEG_DS, PLAIN | TAGGED)), -1);
    assert_int_equal(value, 0x1234);
    assert_int_equal(RAISES(g, mem_write32(v, SEG_DS, (PLAIN + 0xffe) | TAGGED, 0x55667788)), -1); /* two pages */
    assert_int_equal(get(g, PLAIN + 0xffe, 4), 0x55667788);
    struct rmw m;
    assert_int_equal(RAISES(g, rmw_end64(v, &m, rmw_begin64(v, SEG_DS, PLAIN | TAGGED, &m) + 1)), -1);
    assert_int_equal(get(g, PLAIN, 8), 0x1235);
    assert_int_equal(RAISES(g, mem_read64(v, SEG_DS, PLAIN | BIT64(50))), VEC_GP); /* below bit 57, 4-level paging */
    assert_int_equal(RAISES(g, mem_read64(v, SEG_DS, PLAIN | BIT64(63))), VEC_GP); /* a supervisor pointer */
    assert_int_equal(RAISES(g, cpu_write_cr3(v, PML4 | CR3_LAM_U48)), -1);
    assert_int_equal(RAISES(g, mem_read64(v, SEG_DS, PLAIN | BIT64(50) | TAGGED)), -1);
    assert_int_equal(RAISES(g, mem_read64(v, SEG_DS, PLAIN | BIT64(47))), VEC_GP);
    /* The address of a fault has no tag. */
    put(g, PT + 0x78, 0, 8);
    assert_int_equal(RAISES(g, mem_read64(v, SEG_DS, 0x20f008 | TAGGED)), VEC_PF);
    assert_int_equal(v->raised.payload, 0x20f008);
    /* Branches and supervisor pointers without CR4.LAM_SUP are not masked. */
    CODE_AT(g, CODE, 0xff, 0xe0);
    v->gpr[RAX] = (CODE + 0x10) | TAGGED;
    run(g, 1);
    at_handler(g, VEC_GP);
    put(g, PML4 + 0xff8, (PML4 + 0x1000) | 7, 8); /* ffffff80_00000000 on */
    u64 high = 0xffffff8000000000ull | PLAIN, tagged = high & ~(u64)TAGGED;
    assert_int_equal(RAISES(g, mem_read64(v, SEG_DS, tagged)), VEC_GP);
    assert_int_equal(RAISES(g, cpu_write_cr4(v, v->cr4 | CR4_LAM_SUP)), -1);
    assert_int_equal(RAISES(g, value = mem_read64(v, SEG_DS, tagged)), -1);
    assert_int_equal(value, 0x1235);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(near_calls), T(call_fault_changes_nothing), T(shadow_instructions), T(switch_shadow_stacks), T(busy_tokens),
        T(interrupt_and_iret), T(iret_mismatch), T(interrupt_stack_table), T(far_calls), T(fast_calls), T(tracking),
        T(legacy_bitmap), T(tracker_survives_interrupt), T(near_calls32), T(task_switches), T(no_shadow_stack_in_v86),
        T(registers), T(saved_state), T(masked_pointers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
