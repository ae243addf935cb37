/*
 * AVX-512 without a host that has it: the opmask instructions, gathers and scatters that fault half
 * way, who may execute any of it, and the state's XSAVE components. What the host executes is compared
 * with the host by tests/native.
 */
#define GUEST_CPU "max"
#include "protected_guest.h"
#include "cpu/xstate.h"

#include <string.h>

#define K_A 0xf1f2f3f4a5a6a7a8ull
#define K_B 0x0123456789abcd3full
#define MAPPED (4ull << 20) /* the end of what to_long() maps */

/* 64-bit mode, with AVX-512 whatever the host has: nothing here is borrowed. */
static struct guest *avx512(void **state)
{
    static const u16 features[] = {FEAT_XSAVE, FEAT_XSAVEC, FEAT_AVX, FEAT_AVX2, FEAT_AVX512F, FEAT_AVX512BW, FEAT_AVX512DQ, FEAT_AVX512VL};
    struct guest *g = *state;
    struct vcpu *v = g->v;
    to_long(g);
    for (unsigned n = 0; n < ARRAY_SIZE(features); n++)
        v->features[features[n]] = 1;
    v->cr4 |= CR4_OSXSAVE | CR4_OSFXSR;
    v->xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM;
    cpu_mode_changed(v);
    v->k[1] = ~0ull;
    v->k[2] = K_A;
    v->k[3] = K_B;
    v->gpr[RAX] = 0x1122334455667788;
    v->gpr[RBX] = 0x20000;
    return g;
}

static void code(struct guest *g, const u8 *bytes, unsigned len)
{
    poke(g, CODE, bytes, len);
    put(g, CODE + len, 0xf4, 1);
    g->v->rip = CODE;
    g->v->activity = ACTIVITY_ACTIVE;
}
#define RUN(g, ...)                                                                                          \
    do {                                                                                                    \
        static const u8 bytes[] = {__VA_ARGS__};                                                              \
        code(g, bytes, sizeof(bytes));                                                                        \
        assert_int_equal(run(g, 1000), RUN_HALTED);                                                           \
        assert_int_equal((g)->v->rip, CODE + sizeof(bytes) + 1);                                              \
    } while (0)

static void opmask_arithmetic(void **state)
{
    static const struct {
        u8 bytes[6], len;
        u64 result; /* of K1, from K2 and K3 */
    } cases[] = {
        {{0xc5, 0xed, 0x4a, 0xcb}, 4, (u8)(K_A + K_B)},                      /* kaddb */
        {{0xc4, 0xe1, 0xed, 0x41, 0xcb}, 5, (u32)(K_A & K_B)},               /* kandd */
        {{0xc5, 0xec, 0x42, 0xcb}, 4, (u16)(~K_A & K_B)},                    /* kandnw */
        {{0xc4, 0xe1, 0xec, 0x45, 0xcb}, 5, K_A | K_B},                      /* korq */
        {{0xc5, 0xed, 0x46, 0xcb}, 4, (u8)~(K_A ^ K_B)},                     /* kxnorb */
        {{0xc5, 0xec, 0x47, 0xcb}, 4, (u16)(K_A ^ K_B)},                     /* kxorw */
        {{0xc5, 0xec, 0x4b, 0xcb}, 4, (u64)(u16)K_A << 16 | (u16)K_B},       /* kunpckwd */
        {{0xc5, 0xf9, 0x44, 0xcb}, 4, (u8)~K_B},                             /* knotb */
        {{0xc4, 0xe3, 0xf9, 0x32, 0xcb, 3}, 6, (u16)(K_B << 3)},             /* kshiftlw 3 */
        {{0xc4, 0xe3, 0x79, 0x31, 0xcb, 8}, 6, (u32)K_B >> 8},               /* kshiftrd 8 */
        {{0xc4, 0xe3, 0x79, 0x32, 0xcb, 8}, 6, 0},                           /* kshiftlb 8: all gone */
        {{0xc5, 0xf8, 0x92, 0xc8}, 4, 0x7788},                               /* kmovw k1, eax */
        {{0xc4, 0xe1, 0xfb, 0x92, 0xc8}, 5, 0x1122334455667788},             /* kmovq k1, rax */
        {{0xc5, 0xf8, 0x90, 0x0b}, 4, 0xcafe},                               /* kmovw k1, [rbx] */
    };
    struct guest *g = avx512(state);
    put(g, 0x20000, 0xf00dcafe, 4);
    for (unsigned n = 0; n < ARRAY_SIZE(cases); n++) {
        g->v->k[1] = ~0ull;
        code(g, cases[n].bytes, cases[n].len);
        assert_int_equal(run(g, 1000), RUN_HALTED);
        if (g->v->k[1] != cases[n].result)
            fail_msg("case %u: %llx instead of %llx", n, (long long)g->v->k[1], (long long)cases[n].result);
    }
}

static void opmask_moves_and_tests(void **state)
{
    struct guest *g = avx512(state);
    struct vcpu *v = g->v;
    RUN(g, 0xc5, 0xf9, 0x93, 0xc3); /* kmovb eax, k3 */
    assert_int_equal(v->gpr[RAX], (u8)K_B);
    put(g, 0x20000, ~0ull, 8);
    RUN(g, 0xc4, 0xe1, 0xf9, 0x91, 0x1b); /* kmovd [rbx], k3 */
    assert_true(get(g, 0x20000, 8) == ((u32)K_B | 0xffffffff00000000));
    /* KORTEST: ZF for all zero, CF for all one; nothing else. */
    static const struct { u64 a, b; u32 kortestb, ktestw; } flags[] = {
        {0, 0, FL_ZF, FL_ZF | FL_CF},
        {0xff00, 0x100, FL_ZF, FL_CF},
        {0xf0, 0x0f, FL_CF, FL_ZF},
        {0x10, 0x30, 0, 0},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(flags); n++) {
        v->k[2] = flags[n].a;
        v->k[3] = flags[n].b;
        v->aflags = FL_ARITH;
        RUN(g, 0xc5, 0xf9, 0x98, 0xd3);
        assert_int_equal(v->aflags, flags[n].kortestb);
        v->aflags = FL_ARITH;
        RUN(g, 0xc5, 0xf8, 0x99, 0xd3);
        assert_int_equal(v->aflags, flags[n].ktestw);
    }
}

static void who_may(void **state)
{
    static const u8 insns[][7] = {
        {0xc5, 0xf8, 0x92, 0xc8},                         /* kmovw k1, eax */
        {0x62, 0xf2, 0x7d, 0x49, 0x90, 0x0c, 0x93},       /* vpgatherdd zmm1 {k1}, [rbx + zmm2*4] */
        {0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2},             /* vaddps zmm0, zmm1, zmm2 */
    };
    static const struct { u64 xcr0, cr0, cr4; bool feature; int vector; } cases[] = {
        {0x07, 0, CR4_OSXSAVE, true, VEC_UD},  {0xe1, 0, CR4_OSXSAVE, true, VEC_UD}, {0xe7, 0, 0, true, VEC_UD},
        {0xe7, CR0_TS, CR4_OSXSAVE, true, VEC_NM}, {0xe7, 0, CR4_OSXSAVE, false, VEC_UD}, {0xc7, CR0_TS, CR4_OSXSAVE, true, VEC_UD},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(insns); n++)
        for (unsigned c = 0; c < ARRAY_SIZE(cases); c++) {
            struct guest *g = avx512(state);
            struct vcpu *v = g->v;
            v->xcr0 = cases[c].xcr0;
            v->cr0 = (v->cr0 & ~(u64)CR0_TS) | cases[c].cr0;
            v->cr4 = (v->cr4 & ~(u64)CR4_OSXSAVE) | cases[c].cr4;
            v->features[FEAT_AVX512F] = cases[c].feature;
            cpu_mode_changed(v);
            v->gpr[RSP] = STACK;
            /* Somewhere new each time: a decoded block keeps what CPUID offered. */
            pa_t at = CODE + 0x100 + 16 * (n * ARRAY_SIZE(cases) + c);
            poke(g, at, insns[n], sizeof(insns[n]));
            v->rip = at;
            v->activity = ACTIVITY_ACTIVE;
            expect_handler(g, (unsigned)cases[c].vector);
            set_segment(v, SEG_CS, CS0_64, get(g, GDT + CS0_64, 8));
        }
    /* A 256-bit form needs AVX512VL, which DECODE asks CPUID about. */
    struct guest *g = avx512(state);
    g->v->features[FEAT_AVX512VL] = 0;
    g->v->activity = ACTIVITY_ACTIVE;
    g->v->gpr[RSP] = STACK;
    CODE_AT(g, CODE + 0x800, 0x62, 0xf2, 0x7d, 0x29, 0x90, 0x0c, 0x93);
    g->v->rip = CODE + 0x800;
    expect_handler(g, VEC_UD);
}

/* Elements done before the fault are done, their mask bits gone; the rest is as it was. */
static void gather_faults(void **state)
{
    struct guest *g = avx512(state);
    struct vcpu *v = g->v;
    v->k[1] = 0xfffd; /* element 1 is not asked for */
    v->gpr[RBX] = MAPPED - 64;
    memset(v->vec[1].b, 0xee, 64);
    for (unsigned n = 0; n < 16; n++) {
        v->vec[2].d[n] = n == 1 ? 0x7fffffff : n < 5 ? n : n + 11; /* from element 5 on behind the end of what is mapped */
        put(g, MAPPED - 64 + 4 * n, 100 + n, 4);
    }
    CODE_AT(g, CODE, 0x62, 0xf2, 0x7d, 0x49, 0x90, 0x0c, 0x93);
    v->rip = CODE;
    expect_handler(g, VEC_PF);
    assert_int_equal(v->cr2, MAPPED);
    assert_int_equal(v->k[1], 0xffe0);
    for (unsigned n = 0; n < 16; n++)
        assert_int_equal(v->vec[1].d[n], n != 1 && n < 5 ? 100 + n : 0xeeeeeeee);
    /* The handler mends it: only what is left is read. */
    for (unsigned n = 0; n < 16; n++)
        v->vec[2].d[n] = n < 5 ? 0x7fffffff : 0;
    set_segment(v, SEG_CS, CS0_64, get(g, GDT + CS0_64, 8));
    RUN(g, 0x62, 0xf2, 0x7d, 0x49, 0x90, 0x0c, 0x93);
    assert_int_equal(v->k[1], 0);
    assert_int_equal(v->vec[1].d[2], 102);
    assert_int_equal(v->vec[1].d[5], 100);
    /* 512-bit quadwords by registers above 15; a 32-byte index vector would do for doublewords. */
    v->k[2] = 0x81;
    memset(v->vec[18].b, 0, 64);
    v->vec[18].q[7] = 8;
    memset(v->vec[17].b, 0, 64);
    v->gpr[RBX] = MAPPED - 64;
    RUN(g, 0x62, 0xe2, 0xfd, 0x42, 0x91, 0x0c, 0x13);
    assert_true(v->vec[17].q[0] == (100 | 101ull << 32) && v->vec[17].q[7] == (102 | 103ull << 32) && v->vec[17].q[3] == 0);
}

static void scatter_faults(void **state)
{
    struct guest *g = avx512(state);
    struct vcpu *v = g->v;
    v->k[1] = 0xff;
    v->gpr[RBX] = MAPPED - 64;
    for (unsigned n = 0; n < 8; n++) {
        v->vec[2].d[n] = n < 3 ? n : 8;
        v->vec[1].q[n] = 1000 + n;
    }
    CODE_AT(g, CODE, 0x62, 0xf2, 0xfd, 0x49, 0xa0, 0x0c, 0xd3);
    v->rip = CODE;
    expect_handler(g, VEC_PF);
    assert_int_equal(v->k[1], 0xf8);
    assert_int_equal(get(g, MAPPED - 64 + 16, 8), 1002);
    /* Where indices meet, the highest element stays. */
    memset(v->vec[2].b, 0, 64);
    v->k[1] = 0xf8;
    set_segment(v, SEG_CS, CS0_64, get(g, GDT + CS0_64, 8));
    RUN(g, 0x62, 0xf2, 0xfd, 0x49, 0xa0, 0x0c, 0xd3);
    assert_int_equal(get(g, MAPPED - 64, 8), 1007);
    assert_int_equal(v->k[1], 0);
}

static void xsave_components(void **state)
{
    struct guest *g = avx512(state);
    struct vcpu *v = g->v;
    const u64 all = 0xe7;
    assert_int_equal(xstate_size(v, all, false), 2688);
    assert_int_equal(xstate_size(v, all, true), 576 + 256 + 64 + 512 + 1024);
    /* XCR0: opmask and both halves of ZMM together, and not without AVX (SDM vol. 1, 13.3). */
    static const struct { u64 xcr0; bool valid; } xcr0[] = {
        {0xe7, true}, {0x07, true}, {0x27, false}, {0xc7, false}, {0x67, false}, {0xe3, false}, {0xe5, false},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(xcr0); n++)
        assert_int_equal(xstate_xcr0_valid(v, xcr0[n].xcr0), xcr0[n].valid);

    memset(v->vec, 0, sizeof(v->vec));
    memset(v->k, 0, sizeof(v->k));
    v->k[5] = K_A;
    v->vec[3].q[4] = 0x3333;
    v->vec[29].q[0] = 0x2929;
    assert_int_equal(xstate_in_use(v, all) & 0xe6, XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM);
    v->gpr[RAX] = all;
    v->gpr[RDX] = 0;
    RUN(g, 0x48, 0x0f, 0xae, 0x23); /* xsave64 [rbx] */
    assert_true(get(g, 0x20000 + 1088 + 40, 8) == K_A);
    assert_int_equal(get(g, 0x20000 + 1152 + 3 * 32, 8), 0x3333);
    assert_int_equal(get(g, 0x20000 + 1664 + 13 * 64, 8), 0x2929);
    v->gpr[RBX] = 0x22000;
    v->vec[3].q[4] = 0; /* ZMM_Hi256 goes out of use: no room changes, nothing is written there */
    put(g, 0x22000 + 576 + 256 + 64 + 3 * 32, 0x5555, 8);
    RUN(g, 0x48, 0x0f, 0xc7, 0x23); /* xsavec64 [rbx] */
    assert_true(get(g, 0x22000 + 512, 8) == (XCR0_OPMASK | XCR0_HI16_ZMM | (xstate_in_use(v, 7) & 7)));
    assert_true(get(g, 0x22000 + 520, 8) == (all | 1ull << 63));
    assert_true(get(g, 0x22000 + 576 + 256 + 40, 8) == K_A);
    assert_int_equal(get(g, 0x22000 + 576 + 256 + 64 + 3 * 32, 8), 0x5555);
    assert_int_equal(get(g, 0x22000 + 576 + 256 + 64 + 512 + 13 * 64, 8), 0x2929);
    /* The compacted image initialises what it does not hold. */
    memset(v->vec, 0x11, sizeof(v->vec));
    memset(v->k, 0x11, sizeof(v->k));
    RUN(g, 0x48, 0x0f, 0xae, 0x2b); /* xrstor64 [rbx] */
    assert_true(v->k[5] == K_A && v->k[4] == 0);
    assert_true(v->vec[3].q[4] == 0 && v->vec[29].q[0] == 0x2929 && v->vec[28].q[0] == 0);
    v->gpr[RBX] = 0x20000;
    RUN(g, 0x48, 0x0f, 0xae, 0x2b);
    assert_int_equal(v->vec[3].q[4], 0x3333);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(opmask_arithmetic), T(opmask_moves_and_tests), T(who_may), T(gather_faults), T(scatter_faults), T(xsave_components),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
