/*
 * x87, MMX, SSE and XSAVE state: when the instructions may run (SDM vol. 3 "System Programming for Instruction
 * Set Extensions and Processor Extended States"; vol. 2 exception classes), what their images look like (vol. 1
 * "Managing State Using the XSAVE Feature Set"), and a few results. Results at large are the native test's.
 */
#include "protected_guest.h"
#include "cpu/xstate.h"

#define AREA 0x200000u
#define AREA2 0x201000u

static struct guest *fpu_guest(void **state)
{
    struct guest *g = *state;
    to_long(g);
    g->v->cr0 |= CR0_MP | CR0_NE;
    g->v->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    g->v->xcr0 = XCR0_X87 | XCR0_SSE | (xstate_supported(g->v) & XCR0_AVX);
    cpu_mode_changed(g->v);
    return g;
}

static void go(struct guest *g, const u8 *code, size_t n)
{
    poke(g, CODE, code, n);
    put(g, CODE + n, 0xf4, 1);
    g->v->rip = CODE;
    g->v->activity = ACTIVITY_ACTIVE;
    g->v->gpr[RSP] = STACK;
    assert_int_equal(run(g, 200), RUN_HALTED);
}
#define GO(g, ...) go(g, (const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__}))
/* Ran to the end. */
#define RUNS(g, ...)                                                                                         \
    do {                                                                                                     \
        GO(g, __VA_ARGS__);                                                                                  \
        if ((g)->v->rip < CODE)                                                                              \
            fail_msg("line %u: vector %u", __LINE__, (unsigned)(((g)->v->rip - HANDLER(0)) / 16));           \
    } while (0)
#define FAULTS(g, vector, ...)                                                                               \
    do {                                                                                                     \
        GO(g, __VA_ARGS__);                                                                                  \
        if ((g)->v->rip != HANDLER(vector) + 1)                                                              \
            fail_msg("line %u: ended at %llx", __LINE__, (unsigned long long)(g)->v->rip);                   \
    } while (0)

/* ---- when they may run ---- */

enum family { X87, FWAIT, MMX, SSE, AVX, FXSAVE, XSAVE };
static const struct { enum family f; u8 code[4]; } samples[] = {
    {X87, {0xd9, 0xe8, 0x90, 0x90}}, {FWAIT, {0x9b, 0x90, 0x90, 0x90}}, {MMX, {0x0f, 0xfc, 0xc1, 0x90}}, {SSE, {0x0f, 0x58, 0xc1, 0x90}},
    {AVX, {0xc5, 0xf0, 0x58, 0xc2}}, {FXSAVE, {0x0f, 0xae, 0x03, 0x90}}, {XSAVE, {0x0f, 0xae, 0x23, 0x90}},
};

static int expected(enum family f, bool em, bool ts, bool mp, bool osfxsr, bool osxsave)
{
    switch (f) {
    case X87: return em || ts ? VEC_NM : -1;
    case FWAIT: return mp && ts ? VEC_NM : -1;
    case MMX: return em ? VEC_UD : ts ? VEC_NM : -1;
    case SSE: return em || !osfxsr ? VEC_UD : ts ? VEC_NM : -1;
    case AVX: return !osxsave ? VEC_UD : ts ? VEC_NM : -1;
    case FXSAVE: return em || ts ? VEC_NM : -1;
    case XSAVE: return !osxsave ? VEC_UD : ts ? VEC_NM : -1;
    }
    return -1;
}

static void availability(void **state)
{
    struct guest *g = fpu_guest(state);
    struct vcpu *v = g->v;
    u64 cr0 = v->cr0, cr4 = v->cr4;
    for (unsigned n = 0; n < ARRAY_SIZE(samples); n++)
        for (unsigned k = 0; k < 32; k++) {
            if (samples[n].f == AVX && !(v->xcr0 & XCR0_AVX))
                continue;
            bool em = k & 1, ts = k & 2, mp = k & 4, osfxsr = k & 8, osxsave = k & 16;
            v->cr0 = (cr0 & ~(CR0_EM | CR0_TS | CR0_MP)) | (em ? CR0_EM : 0) | (ts ? CR0_TS : 0) | (mp ? CR0_MP : 0);
            v->cr4 = (cr4 & ~(CR4_OSFXSR | CR4_OSXSAVE)) | (osfxsr ? CR4_OSFXSR : 0) | (osxsave ? CR4_OSXSAVE : 0);
            cpu_mode_changed(v);
            v->gpr[RBX] = AREA;
            v->x87 = (struct x87){.fcw = 0x37f};
            go(g, samples[n].code, 4);
            int want = expected(samples[n].f, em, ts, mp, osfxsr, osxsave);
            int got = v->rip >= CODE ? -1 : (int)((v->rip - HANDLER(0)) / 16);
            if (got != want)
                fail_msg("sample %u, EM %u TS %u MP %u OSFXSR %u OSXSAVE %u: vector %d, expected %d", n, em, ts, mp, osfxsr, osxsave,
                         got, want);
        }
}

/* A pending error stops the next waiting instruction, and FWAIT; not FN-instructions. */
static void pending_errors(void **state)
{
    struct guest *g = fpu_guest(state);
    g->v->gpr[RBX] = AREA;
#define PENDING 0xdb, 0xe3, 0xd9, 0x2b, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9 /* fninit; fldcw [rbx]; 1 / 0 */
    put(g, AREA, 0x37b, 2);
    RUNS(g, PENDING, 0xdf, 0xe0);                   /* fnstsw ax */
    assert_int_equal(g->v->gpr[RAX] & 0x80ff, 0x8084);
    FAULTS(g, VEC_MF, PENDING, 0x9b);               /* fwait */
    FAULTS(g, VEC_MF, PENDING, 0xd9, 0xe8);
    FAULTS(g, VEC_MF, PENDING, 0x0f, 0x77);         /* emms */
    FAULTS(g, VEC_MF, PENDING, 0x0f, 0xfc, 0xc1);   /* paddb mm0, mm1 */
    RUNS(g, PENDING, 0xdb, 0xe2, 0x9b);             /* fnclex; fwait */
    RUNS(g, PENDING, 0xdb, 0xe3, 0xd9, 0xe8);       /* fninit; fld1 */
    RUNS(g, PENDING, 0x0f, 0xae, 0x03);             /* fxsave does not wait */
    FAULTS(g, VEC_MF, 0xdb, 0xe3, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0xd9, 0x2b, 0x9b); /* unmasked only afterwards */
}

static void simd_errors(void **state)
{
    struct guest *g = fpu_guest(state);
    struct vcpu *v = g->v;
    v->gpr[RBX] = AREA;
    put(g, AREA, 0x1f80 & ~0x200, 4); /* division by zero unmasked */
    v->vec[0].q[0] = v->vec[0].q[1] = 0x3f8000003f800000;
    memset(&v->vec[1], 0, sizeof(v->vec[1]));
#define DIVPS 0x0f, 0xae, 0x13, 0x0f, 0x5e, 0xc1 /* ldmxcsr [rbx]; divps xmm0, xmm1 */
    FAULTS(g, VEC_XM, DIVPS);
    assert_int_equal(v->mxcsr & 0x3f, 4);
    assert_int_equal(v->vec[0].q[0], 0x3f8000003f800000);
    v->cr4 &= ~CR4_OSXMMEXCPT; /* then it is an undefined opcode */
    cpu_mode_changed(v);
    FAULTS(g, VEC_UD, DIVPS);
    put(g, AREA, 0x1f80, 4);
    RUNS(g, DIVPS);
    assert_int_equal(v->vec[0].d[0], 0x7f800000);
    put(g, AREA, 0x11f80, 4); /* reserved bit */
    FAULTS(g, VEC_GP, 0x0f, 0xae, 0x13);
    v->gpr[RBX] = AREA + 8;
    FAULTS(g, VEC_GP, 0x0f, 0x28, 0x03); /* movaps, not aligned */
    RUNS(g, 0x0f, 0x10, 0x03);
    RUNS(g, 0x0f, 0xae, 0x1b);           /* stmxcsr */
    assert_int_equal(get(g, AREA + 8, 4), v->mxcsr);
}

/* ---- images ---- */

static void fill_state(struct vcpu *v)
{
    v->x87 = (struct x87){.fcw = 0x27f, .fsw = 0x3800, .ftw = 0x81, .fop = 0x123, .fip = 0x1122334455, .fdp = 0x5544332211};
    for (unsigned n = 0; n < 8; n++)
        for (unsigned k = 0; k < 10; k++)
            v->x87.st[n][k] = (u8)(n * 16 + k + 1);
    for (unsigned n = 0; n < 16; n++)
        for (unsigned k = 0; k < 32; k++)
            v->vec[n].b[k] = (u8)(n * 7 + k * 3 + 1);
    v->mxcsr = 0x1fa0;
}

static void clear_state(struct vcpu *v)
{
    v->x87 = (struct x87){.fcw = 0x37f};
    memset(v->vec, 0, sizeof(v->vec));
    v->mxcsr = 0x1f80;
}

/* The same state but what @bv left out, which has its initial value or @kept. */
static void expect_state(struct vcpu *v, u64 mask)
{
    struct vcpu *want = aligned_alloc(64, (sizeof(*want) + 63) & ~63ull);
    fill_state(want);
    if (mask & XCR0_X87) {
        assert_int_equal(v->x87.fcw, want->x87.fcw);
        assert_int_equal(v->x87.fsw, want->x87.fsw);
        assert_int_equal(v->x87.ftw, want->x87.ftw);
        assert_int_equal(v->x87.fop, want->x87.fop);
        for (unsigned n = 0; n < 8; n++)
            assert_memory_equal(v->x87.st[n], want->x87.st[n], 10);
    } else {
        assert_int_equal(v->x87.ftw, 0);
    }
    for (unsigned n = 0; n < 16; n++) {
        assert_int_equal(v->vec[n].q[0], mask & XCR0_SSE ? want->vec[n].q[0] : 0);
        assert_int_equal(v->vec[n].q[3], mask & XCR0_AVX ? want->vec[n].q[3] : 0);
    }
    free(want);
}

static void fxsave_images(void **state)
{
    struct guest *g = fpu_guest(state);
    struct vcpu *v = g->v;
    for (unsigned wide = 0; wide < 2; wide++) {
        fill_state(v);
        v->gpr[RBX] = AREA;
        if (wide)
            RUNS(g, 0x48, 0x0f, 0xae, 0x03); /* fxsave64 */
        else
            RUNS(g, 0x0f, 0xae, 0x03);
        assert_int_equal(get(g, AREA, 2), 0x27f);
        assert_int_equal(get(g, AREA + 4, 1), 0x81);
        assert_int_equal(get(g, AREA + 8, wide ? 8 : 4), wide ? 0x1122334455 : 0x22334455);
        assert_int_equal(get(g, AREA + 24, 4), 0x1fa0);
        assert_int_equal(get(g, AREA + 28, 4), v->mxcsr_mask);
        assert_int_equal(get(g, AREA + 160, 8), v->vec[0].q[0]);
        clear_state(v);
        if (wide)
            RUNS(g, 0x48, 0x0f, 0xae, 0x0b);
        else
            RUNS(g, 0x0f, 0xae, 0x0b);
        expect_state(v, XCR0_X87 | XCR0_SSE);
        assert_int_equal(v->x87.fip, wide ? 0x1122334455 : 0x22334455);
    }
    put(g, AREA + 24, ~0u, 4);
    FAULTS(g, VEC_GP, 0x0f, 0xae, 0x0b);
    v->gpr[RBX] = AREA + 8;
    FAULTS(g, VEC_GP, 0x0f, 0xae, 0x03);
}

/* Every save form into every restore form, with every subset of the components. */
static void xsave_images(void **state)
{
    struct guest *g = fpu_guest(state);
    struct vcpu *v = g->v;
    static const struct { u8 code[4]; bool compacted, optimised; } saves[] = {
        {{0x48, 0x0f, 0xae, 0x27}, false, false}, /* xsave64 [rdi] */
        {{0x48, 0x0f, 0xae, 0x37}, false, true},  /* xsaveopt64 */
        {{0x48, 0x0f, 0xc7, 0x27}, true, true},   /* xsavec64 */
        {{0x48, 0x0f, 0xc7, 0x2f}, true, true},   /* xsaves64 */
    };
    u64 all = v->xcr0;
    for (unsigned s = 0; s < ARRAY_SIZE(saves); s++)
        for (u64 rfbm = 0; rfbm < 8; rfbm++)
            for (unsigned in_use = 0; in_use < 2; in_use++) {
                u64 mask = rfbm & all;
                for (unsigned k = 0; k < 1024; k += 8)
                    put(g, AREA + k, k >= 512 && k < 576 ? 0 : ~0ull, 8);
                if (in_use)
                    fill_state(v);
                else
                    clear_state(v);
                v->gpr[RDI] = AREA;
                v->gpr[RAX] = rfbm;
                v->gpr[RDX] = 0;
                go(g, saves[s].code, 4);
                assert_true(v->rip >= CODE);
                u64 bv = get(g, AREA + 512, 8), comp = get(g, AREA + 520, 8);
                assert_int_equal(comp, saves[s].compacted ? mask | BIT64(63) : 0);
                assert_int_equal(bv, in_use ? mask : 0);
                if (!(mask & XCR0_X87))
                    assert_int_equal(get(g, AREA + 32, 8), ~0ull); /* not touched */
                /* Restored over something else. */
                fill_state(v);
                RUNS(g, 0x48, 0x0f, 0xae, 0x2f); /* xrstor64 [rdi] */
                expect_state(v, in_use ? all : all & ~mask);
                clear_state(v);
                if (saves[s].compacted) {
                    RUNS(g, 0x48, 0x0f, 0xc7, 0x1f); /* xrstors64 */
                    expect_state(v, in_use ? mask : 0);
                }
            }
}

static void xrstor_refusals(void **state)
{
    struct guest *g = fpu_guest(state);
    struct vcpu *v = g->v;
    v->gpr[RDI] = AREA;
    v->gpr[RAX] = 3;
    v->gpr[RDX] = 0;
    static const struct { unsigned at; u64 value; } bad[] = {
        {512, BIT64(62)}, {520, 1}, {528, 1}, {520, BIT64(63) | BIT64(40)}, {512, BIT64(3)},
    };
    RUNS(g, 0x48, 0x0f, 0xae, 0x27);
    for (unsigned n = 0; n < ARRAY_SIZE(bad); n++) {
        u64 old = get(g, AREA + bad[n].at, 8);
        put(g, AREA + bad[n].at, bad[n].value, 8);
        FAULTS(g, VEC_GP, 0x48, 0x0f, 0xae, 0x2f);
        put(g, AREA + bad[n].at, old, 8);
    }
    FAULTS(g, VEC_GP, 0x48, 0x0f, 0xc7, 0x1f); /* xrstors of the standard format */
    put(g, AREA + 24, ~0u, 4);
    FAULTS(g, VEC_GP, 0x48, 0x0f, 0xae, 0x2f);
    v->gpr[RDI] = AREA + 16;
    FAULTS(g, VEC_GP, 0x48, 0x0f, 0xae, 0x27);
    /* XSETBV and XGETBV */
    v->gpr[RCX] = 0;
    v->gpr[RAX] = 4; /* AVX without SSE and x87 */
    FAULTS(g, VEC_GP, 0x0f, 0x01, 0xd1);
    v->gpr[RAX] = 3;
    RUNS(g, 0x0f, 0x01, 0xd1, 0x31, 0xc0, 0x0f, 0x01, 0xd0);
    assert_int_equal(v->gpr[RAX], 3);
    v->gpr[RCX] = 1;
    RUNS(g, 0x0f, 0x01, 0xd0);
    v->gpr[RCX] = 2;
    FAULTS(g, VEC_GP, 0x0f, 0x01, 0xd0);
    FAULTS(g, VEC_GP, 0x0f, 0x01, 0xd1);
}

/* FNSTENV, FLDENV, FNSAVE, FRSTOR in both operand sizes. */
static void environments(void **state)
{
    struct guest *g = fpu_guest(state);
    struct vcpu *v = g->v;
    for (unsigned small = 0; small < 2; small++)
        for (unsigned whole = 0; whole < 2; whole++) {
            fill_state(v);
            v->gpr[RBX] = AREA;
            u8 prefix = small ? 0x66 : 0x90;
            if (whole)
                RUNS(g, prefix, 0xdd, 0x33); /* fnsave [rbx] */
            else
                RUNS(g, prefix, 0xd9, 0x33); /* fnstenv */
            unsigned step = small ? 2 : 4;
            assert_int_equal(get(g, AREA, 2), 0x27f);
            assert_int_equal(get(g, AREA + step, 2), 0x3800);
            /* TOP is 7; registers 0 and 7 are in use, and hold unnormal numbers: special, 10b */
            assert_int_equal(get(g, AREA + 2 * step, 2), 0xbffe);
            if (whole) {
                assert_int_equal(get(g, AREA + 7 * step, 1), 1);
                assert_int_equal(v->x87.fcw, 0x37f); /* FNSAVE initialises */
            } else {
                assert_int_equal(v->x87.fcw & 0x3f, 0x3f); /* FNSTENV masks all */
            }
            clear_state(v);
            if (whole)
                RUNS(g, prefix, 0xdd, 0x23); /* frstor */
            else
                RUNS(g, prefix, 0xd9, 0x23); /* fldenv */
            assert_int_equal(v->x87.fcw, 0x27f);
            assert_int_equal(v->x87.fsw, 0x3800);
            assert_int_equal(v->x87.ftw, 0x81);
            if (whole)
                assert_int_equal(v->x87.st[3][2], 3 * 16 + 2 + 1);
        }
}

static void x87_results(void **state)
{
    struct guest *g = fpu_guest(state);
    struct vcpu *v = g->v;
    v->gpr[RBX] = AREA;
    put(g, AREA, 3, 4);
    RUNS(g, 0xdb, 0xe3, 0xdb, 0x03, 0xd9, 0xe8, 0xde, 0xc1, 0xdd, 0x53, 0x08); /* fninit; fild; fld1; faddp; fst qword */
    assert_int_equal(get(g, AREA + 8, 8), 0x4010000000000000);
    RUNS(g, 0xdb, 0x7b, 0x10);                 /* fstp tword */
    assert_int_equal(get(g, AREA + 24, 2), 0x4001);
    RUNS(g, 0xdb, 0x6b, 0x10, 0xdf, 0x73, 0x20, 0xdf, 0x63, 0x20, 0xdd, 0x7b, 0x30); /* fld tword; fbstp; fbld; fnstsw m */
    assert_int_equal(get(g, AREA + 32, 8), 4);
    assert_int_equal(get(g, AREA + 48, 2) >> 11 & 7, 7);
    RUNS(g, 0xd9, 0xf6, 0xd9, 0xf7, 0xdd, 0xc0, 0xd9, 0xee, 0xdf, 0xf1, 0xd9, 0xc9); /* fdecstp; fincstp; ffree; fldz; fcomip; fxch */
    RUNS(g, 0xdb, 0xe3, 0xd9, 0xeb, 0xd9, 0xfe, 0xd9, 0xe0, 0xd9, 0xe1, 0xd9, 0xfa, 0xd9, 0xe5); /* fldpi; fsin; fchs; fabs; fsqrt; fxam */
    RUNS(g, 0xd9, 0x7b, 0x40, 0xd9, 0x6b, 0x40); /* fnstcw; fldcw */
    RUNS(g, 0xdb, 0xe3, 0xd9, 0xe8, 0xda, 0xc1, 0xdb, 0xc9, 0xda, 0xe9); /* fcmovb; fcmovne; fucompp */
    /* The stack runs over: IE, SF and C1. */
    RUNS(g, 0xdb, 0xe3, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8, 0xd9, 0xe8);
    assert_int_equal(v->x87.fsw & 0x241, 0x241);
    /* MMX empties TOP and fills the tags; EMMS empties all. */
    RUNS(g, 0xdb, 0xe3, 0xd9, 0xe8, 0x0f, 0xef, 0xc0, 0x0f, 0x6e, 0xcb, 0x0f, 0x7e, 0xc9); /* pxor mm0; movd mm1, ebx; movd ecx, mm1 */
    assert_int_equal(v->gpr[RCX], AREA);
    assert_int_equal(v->x87.ftw, 0xff);
    RUNS(g, 0x0f, 0x77);
    assert_int_equal(v->x87.ftw, 0);
}

/* SIMD and the like that is not borrowed whole: masks, shuffles through memory, AES, CRC. */
static void simd_results(void **state)
{
    struct guest *g = fpu_guest(state);
    struct vcpu *v = g->v;
    v->gpr[RDI] = AREA;
    v->gpr[RBX] = AREA2;
    for (unsigned n = 0; n < 4; n++)
        put(g, AREA2 + 8 * n, 0x0102030405060708ull * (n + 1), 8);
    RUNS(g, 0x0f, 0x10, 0x03, 0x0f, 0x10, 0x4b, 0x10,   /* movups xmm0, [rbx]; xmm1, [rbx + 16] */
         0x66, 0x0f, 0xef, 0xd2, 0x66, 0x0f, 0xfa, 0xd0, /* pxor xmm2; psubd xmm2, xmm0 */
         0x66, 0x0f, 0xf7, 0xca,                         /* maskmovdqu xmm1, xmm2 */
         0x66, 0x0f, 0xd7, 0xc2,                         /* pmovmskb eax, xmm2 */
         0xf2, 0x0f, 0x38, 0xf1, 0x03,                   /* crc32 eax, dword [rbx] */
         0x66, 0x0f, 0x38, 0xdc, 0xc1,                   /* aesenc */
         0x66, 0x0f, 0x3a, 0x63, 0xc1, 0x00,             /* pcmpistri */
         0x66, 0x0f, 0x3a, 0x16, 0x03, 0x01);            /* pextrd [rbx], xmm0, 1 */
    for (unsigned n = 0; n < 16; n++)
        if (v->vec[2].b[n] & 0x80)
            assert_int_equal(get(g, AREA + n, 1), v->vec[1].b[n]);
    if (!(v->xcr0 & XCR0_AVX))
        return;
    RUNS(g, 0xc5, 0xfc, 0x10, 0x03,                      /* vmovups ymm0, [rbx] */
         0xc4, 0xe2, 0x7d, 0x2e, 0x07,                   /* vmaskmovps [rdi], ymm0, ymm0 */
         0xc4, 0xe2, 0x7d, 0x2c, 0x1f,                   /* vmaskmovps ymm3, ymm0, [rdi] */
         0xc5, 0xfc, 0x77);                              /* vzeroall */
    assert_int_equal(v->vec[0].q[3], 0);
    RUNS(g, 0xc5, 0xfc, 0x10, 0x03, 0xc5, 0xf8, 0x77);   /* vzeroupper */
    assert_true(v->vec[0].q[0] && !v->vec[0].q[2]);
    v->gpr[RCX] = 0;
    memset(&v->vec[5], 0, 16);
    memset(&v->vec[6], 0xff, 16);
    RUNS(g, 0xc4, 0xe2, 0x49, 0x90, 0x24, 0xab);         /* vpgatherdd xmm4, [rbx + xmm5 * 4], xmm6 */
    assert_int_equal(v->vec[4].d[0], get(g, AREA2, 4));
    assert_int_equal(v->vec[6].q[0], 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(availability), T(pending_errors), T(simd_errors), T(fxsave_images), T(xsave_images), T(xrstor_refusals), T(environments),
        T(x87_results), T(simd_results),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
