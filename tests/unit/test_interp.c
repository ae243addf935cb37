/*
 * The interpreter as a whole: small programs in real, protected and 64-bit mode, self-modifying code,
 * instructions that cross pages, and string instructions that fault on the way.
 */
#include "base/clock.h"
#include "cpu/bodies_int.h"
#include "cpu/cpu.h"
#include "cpu/interp.h"
#include "cpu/models.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define RAM (4u << 20)
#define CODE 0x8000
#define PT 0x4000 /* page table of the first 2 MiB; PML4, PDPT, PD are below */
#define PTE(page) (PT + (page) / PAGE_SIZE * 8)

struct guest {
    struct physmap *pm;
    struct clock clock;
    struct vcpu *v;
};

static void written(void *opaque, pa_t pa, size_t len)
{
    struct guest *g = opaque;
    engine_interp.code_written(g->v, pa, len);
}

static int setup(void **state)
{
    struct guest *g = calloc(1, sizeof(*g));
    const struct cpu_model *model;
    static u8 features[FEAT_COUNT];
    struct error err;
    g->pm = physmap_new();
    clock_init(&g->clock, CLOCK_ICOUNT);
    if (physmap_add_ram(g->pm, 0, RAM, "RAM", &err) || cpu_model_parse("", &model, features, NULL, &err))
        return -1;
    const struct cpu_config cfg = {
        .model = model, .features = features, .tsc_hz = 1000000000, .pm = g->pm, .clock = &g->clock,
    };
    g->v = vcpu_new(&cfg, &err);
    if (g->v)
        g->v->jit_options.heat = 1; /* lock-step: whole translations at once */
    if (!g->v || engine_interp.attach(g->v))
        return -1;
    physmap_subscribe(g->pm, PAGE_CODE, written, g);
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

static void put(struct guest *g, pa_t pa, u64 value, unsigned size) { physmap_write(g->pm, pa, &value, size); }
static u64 get(struct guest *g, pa_t pa, unsigned size)
{
    u64 value = 0;
    physmap_read(g->pm, pa, &value, size);
    return value;
}

static void start_real(struct guest *g)
{
    struct vcpu *v = g->v;
    for (unsigned s = 0; s < 6; s++)
        v->seg[s] = (struct segment){.limit = 0xffff, .ar = AR_P | AR_S | (s == SEG_CS ? 0xb : 3)};
    v->idtr.limit = 0;
    v->rip = CODE;
    v->gpr[RSP] = 0x7000;
    cpu_mode_changed(v);
}

static void start_protected(struct guest *g)
{
    struct vcpu *v = g->v;
    v->cr0 |= CR0_PE;
    for (unsigned s = 0; s < 6; s++)
        v->seg[s] = (struct segment){
            .limit = 0xffffffff, .ar = AR_P | AR_S | AR_DB | AR_G | (s == SEG_CS ? 0xb : 3), .sel = s == SEG_CS ? 8 : 16,
        };
    v->idtr.limit = 0;
    v->rip = CODE;
    v->gpr[RSP] = 0x7000;
    cpu_mode_changed(v);
}

static void start_long(struct guest *g)
{
    struct vcpu *v = g->v;
    put(g, 0x1000, 0x2003, 8);
    put(g, 0x2000, 0x3003, 8);
    put(g, 0x3000, PT | 3, 8);
    for (u64 page = 0; page < 2u << 20; page += PAGE_SIZE)
        put(g, PTE(page), page | 3, 8);
    v->cr4 |= CR4_PAE;
    v->cr3 = 0x1000;
    v->efer = EFER_LME | EFER_LMA;
    v->cr0 |= CR0_PG;
    start_protected(g);
    v->seg[SEG_CS].ar = AR_P | AR_S | AR_L | AR_G | 0xb;
    cpu_mode_changed(v);
}

/* From @rip to HLT or a fault; there is no IDT, so a fault shuts the processor down. */
static enum run_result go(struct guest *g, u64 rip)
{
    g->v->rip = rip;
    g->v->activity = ACTIVITY_ACTIVE;
    g->v->budget_end = g->v->icount + 100000;
    return engine_interp.run(g->v);
}

static enum run_result run(struct guest *g, const void *code, size_t len)
{
    physmap_write(g->pm, CODE, code, len);
    return go(g, CODE);
}
#define RUN(g, ...)                                                                                          \
    run(g, (const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__}))

static void test_real_mode(void **state)
{
    struct guest *g = *state;
    start_real(g);
    /* mov ax,0x1234; mov bx,ax; add bl,ah; push bx; pop cx; call F; hlt; F: inc dx; ret */
    enum run_result r = RUN(g, 0xb8, 0x34, 0x12, 0x89, 0xc3, 0x00, 0xe3, 0x53, 0x59, 0xe8, 0x01, 0x00, 0xf4, 0x42, 0xc3);
    assert_int_equal(r, RUN_HALTED);
    assert_int_equal(g->v->gpr[RBX] & 0xffff, 0x1246);
    assert_int_equal(g->v->gpr[RCX] & 0xffff, 0x1246);
    assert_int_equal(g->v->gpr[RSP], 0x7000);
    assert_int_equal(g->v->rip, CODE + 13);
    assert_int_equal(g->v->icount, 9);
    assert_int_equal(get(g, 0x6ffe, 2), CODE + 12); /* the return address of the call */
}

static void test_protected_mode(void **state)
{
    struct guest *g = *state;
    start_protected(g);
    /* mov ecx,100; xor eax,eax; L: add eax,ecx; dec ecx; jnz L; mov [0x9000],eax; hlt */
    enum run_result r = RUN(g, 0xb9, 100, 0, 0, 0, 0x31, 0xc0, 0x01, 0xc8, 0x49, 0x75, 0xfb, 0xa3, 0x00, 0x90, 0, 0, 0xf4);
    assert_int_equal(r, RUN_HALTED);
    assert_int_equal(get(g, 0x9000, 4), 5050);
    assert_int_equal(g->v->icount, 2 + 300 + 2);
}

static void test_long_mode(void **state)
{
    struct guest *g = *state;
    start_long(g);
    /* mov rax,1<<40; push rax; pop r9; lea r10,[rip+1]; hlt */
    enum run_result r = RUN(g, 0x48, 0xb8, 0, 0, 0, 0, 0, 1, 0, 0, 0x50, 0x41, 0x59, 0x4c, 0x8d, 0x15, 1, 0, 0, 0, 0xf4);
    assert_int_equal(r, RUN_HALTED);
    assert_int_equal(g->v->gpr[R9], 1ull << 40);
    assert_int_equal(g->v->gpr[R10], CODE + 21);
}

static void test_budget_is_exact(void **state)
{
    struct guest *g = *state;
    start_protected(g);
    const u8 code[] = {0x40, 0x40, 0x40, 0x40, 0x40, 0xeb, 0xf9}; /* inc eax x5; jmp back */
    physmap_write(g->pm, CODE, code, sizeof(code));
    for (unsigned n = 1; n < 50; n++) {
        g->v->budget_end = g->v->icount + 1;
        assert_int_equal(engine_interp.run(g->v), RUN_BUDGET);
        assert_int_equal(g->v->icount, n);
        assert_int_equal(g->v->gpr[RAX], n - n / 6);
    }
    g->v->budget_end += 1003;
    assert_int_equal(engine_interp.run(g->v), RUN_BUDGET);
    assert_int_equal(g->v->icount, 49 + 1003);
}

/* An instruction modifies the next one in its own block, and a block that has run before. */
static void test_self_modifying_code(void **state)
{
    struct guest *g = *state;
    start_protected(g);
    /* mov byte [CODE+8],0x43 (inc ebx); nop; inc eax (becomes inc ebx); hlt */
    RUN(g, 0xc6, 0x05, 0x08, 0x80, 0, 0, 0x43, 0x90, 0x40, 0xf4);
    assert_int_equal(g->v->gpr[RAX], 0);
    assert_int_equal(g->v->gpr[RBX], 1);

    /* A data write in the page, not in the code, kills nothing; one in the code does. */
    struct interp_stats before, after;
    RUN(g, 0x40, 0xf4);
    interp_stats(g->v, &before);
    put(g, CODE + 0x800, 1, 8);
    interp_stats(g->v, &after);
    assert_int_equal(before.smc_blocks, after.smc_blocks);
    assert_true(engine_interp.holds_code(g->v, CODE));
    put(g, CODE, 0x43, 1);
    interp_stats(g->v, &after);
    assert_int_equal(before.smc_blocks + 1, after.smc_blocks);
    g->v->gpr[RBX] = 0;
    go(g, CODE);
    assert_int_equal(g->v->gpr[RBX], 1);
}

/* Data beside code that no longer runs: the page is given up, so that its writes can be fast. */
static void test_code_page_is_given_up(void **state)
{
    struct guest *g = *state;
    start_protected(g);
    RUN(g, 0xf4);
    assert_true(engine_interp.holds_code(g->v, CODE));
    for (unsigned n = 0; n < 10000; n++)
        put(g, CODE + 0x800, n, 4);
    assert_false(engine_interp.holds_code(g->v, CODE));
}

static void test_page_crossing(void **state)
{
    struct guest *g = *state;
    start_long(g);
    /* mov eax,0x11223344 with its last three bytes in the next page; hlt */
    const u8 code[] = {0xb8, 0x44, 0x33, 0x22, 0x11, 0xf4};
    physmap_write(g->pm, 0x9000 - 2, code, sizeof(code));
    for (unsigned n = 0; n < 3; n++) { /* decoded, known, changed */
        if (n == 2)
            put(g, 0x9000, 0x55, 1);
        assert_int_equal(go(g, 0x9000 - 2), RUN_HALTED);
        assert_int_equal(g->v->gpr[RAX], n == 2 ? 0x11225544 : 0x11223344);
    }
    /* The second page goes away: the fault names it, and the instruction is still the saved RIP. */
    put(g, PTE(0x9000), 0, 8);
    mmu_flush_all(g->v);
    assert_int_equal(go(g, 0x9000 - 2), RUN_SHUTDOWN);
    assert_int_equal(g->v->cr2, 0x9000);
    assert_int_equal(g->v->rip, 0x9000 - 2);
}

static void test_cs_limit(void **state)
{
    struct guest *g = *state;
    start_protected(g);
    g->v->seg[SEG_CS].limit = CODE + 2; /* the third byte is the last */
    cpu_mode_changed(g->v);
    assert_int_equal(RUN(g, 0x40, 0x40, 0x40, 0x40), RUN_SHUTDOWN);
    assert_int_equal(g->v->gpr[RAX], 3);
    assert_int_equal(g->v->rip, CODE + 3);
}

/* REP MOVSQ meets an unmapped page: the registers say how far it got. */
static void test_string_fault(void **state)
{
    struct guest *g = *state;
    start_long(g);
    struct vcpu *v = g->v;
    for (unsigned n = 0; n < 1024; n++)
        put(g, 0x10000 + 8 * n, n + 1, 8);
    put(g, PTE(0x22000), 0, 8);
    v->gpr[RSI] = 0x10000;
    v->gpr[RDI] = 0x21800;
    v->gpr[RCX] = 1000;
    assert_int_equal(RUN(g, 0xf3, 0x48, 0xa5, 0xf4), RUN_SHUTDOWN);
    assert_int_equal(v->cr2, 0x22000);
    assert_int_equal(v->rip, CODE);
    assert_int_equal(v->gpr[RDI], 0x22000);
    assert_int_equal(v->gpr[RSI], 0x10800);
    assert_int_equal(v->gpr[RCX], 1000 - 256);
    assert_int_equal(get(g, 0x21ff8, 8), 256);
}

static void test_strings(void **state)
{
    struct guest *g = *state;
    start_long(g);
    struct vcpu *v = g->v;
    /* Overlapping MOVSB is a pattern fill. */
    put(g, 0x10000, 0x030201, 3);
    v->gpr[RSI] = 0x10000;
    v->gpr[RDI] = 0x10003;
    v->gpr[RCX] = 6000;
    RUN(g, 0xf3, 0xa4, 0xf4);
    for (unsigned n = 0; n < 6003; n++)
        assert_int_equal(get(g, 0x10000 + n, 1), n % 3 + 1);
    /* STOSD across pages, then REPNE SCASB for a byte that only the last element has. */
    v->gpr[RAX] = 0x01020304;
    v->gpr[RDI] = 0x20004;
    v->gpr[RCX] = 3000;
    RUN(g, 0xf3, 0xab, 0xf4);
    assert_int_equal(get(g, 0x20004 + 4 * 2999, 4), 0x01020304);
    assert_int_equal(get(g, 0x20004 + 4 * 3000, 4), 0);
    put(g, 0x21234, 0x77, 1);
    v->gpr[RAX] = 0x77;
    v->gpr[RDI] = 0x20004;
    v->gpr[RCX] = 100000;
    RUN(g, 0xf2, 0xae, 0xf4);
    assert_int_equal(v->gpr[RDI], 0x21235);
    assert_int_equal(v->gpr[RCX], 100000 - 0x1231);
    assert_int_equal(v->aflags & FL_ZF, FL_ZF);
    /* REPE CMPSB backwards; CX runs out with everything equal. */
    v->gpr[RSI] = 0x10000 + 2000;
    v->gpr[RDI] = 0x10000 + 2300 - 300 + 3;
    v->gpr[RCX] = 1000;
    v->rflags |= FL_DF;
    RUN(g, 0xf3, 0xa6, 0xf4);
    assert_int_equal(v->gpr[RCX], 0);
    assert_int_equal(v->gpr[RSI], 0x10000 + 1000);
    assert_int_equal(v->aflags & FL_ZF, FL_ZF);
}

static void test_division(void **state)
{
    struct guest *g = *state;
    start_long(g);
    struct vcpu *v = g->v;
    /* idiv rcx: -2^63 * 2^0 / 1 fits, / -1 does not. */
    v->gpr[RAX] = 1ull << 63;
    v->gpr[RDX] = ~0ull;
    v->gpr[RCX] = 1;
    assert_int_equal(RUN(g, 0x48, 0xf7, 0xf9, 0xf4), RUN_HALTED);
    assert_int_equal(v->gpr[RAX], 1ull << 63);
    assert_int_equal(v->gpr[RDX], 0);
    /* mul; div back */
    v->gpr[RAX] = 0x123456789abcdef0;
    v->gpr[RCX] = 0xfedcba9876543210;
    assert_int_equal(RUN(g, 0x48, 0xf7, 0xe1, 0x48, 0xf7, 0xf1, 0xf4), RUN_HALTED);
    assert_int_equal(v->gpr[RAX], 0x123456789abcdef0);
    assert_int_equal(v->gpr[RDX], 0);
    v->gpr[RAX] = 1ull << 63;
    v->gpr[RDX] = ~0ull;
    v->gpr[RCX] = ~0ull;
    assert_int_equal(RUN(g, 0x48, 0xf7, 0xf9, 0xf4), RUN_SHUTDOWN); /* #DE */
    assert_int_equal(v->gpr[RAX], 1ull << 63);
}

static void test_exchange(void **state)
{
    struct guest *g = *state;
    start_long(g);
    struct vcpu *v = g->v;
    put(g, 0x10000, 5, 8);
    v->gpr[RBX] = 0x10000;
    v->gpr[RAX] = 5;
    v->gpr[RCX] = 9;
    /* lock cmpxchg [rbx],rcx; lock xadd [rbx],rcx; xchg [rbx+8],rcx; hlt */
    RUN(g, 0xf0, 0x48, 0x0f, 0xb1, 0x0b, 0xf0, 0x48, 0x0f, 0xc1, 0x0b, 0x48, 0x87, 0x4b, 0x08, 0xf4);
    assert_int_equal(get(g, 0x10000, 8), 18);
    assert_int_equal(get(g, 0x10008, 8), 9);
    assert_int_equal(v->gpr[RCX], 0);
    /* cmpxchg16b [rbx] that fails loads rdx:rax; bts [rbx],rsi with a negative bit number. */
    v->gpr[RAX] = 0;
    v->gpr[RSI] = (u64)-64;
    put(g, 0x10000 - 8, 0, 8);
    RUN(g, 0x48, 0x0f, 0xc7, 0x0b, 0x48, 0x0f, 0xab, 0x33, 0xf4);
    assert_int_equal(v->gpr[RAX], 18);
    assert_int_equal(v->gpr[RDX], 9);
    assert_int_equal(get(g, 0x10000 - 8, 8), 1);
}

static void test_decimal(void **state)
{
    struct guest *g = *state;
    start_protected(g);
    struct vcpu *v = g->v;
    v->gpr[RAX] = 0x79;
    RUN(g, 0x04, 0x35, 0x27, 0xf4); /* SDM's example: add al,0x35; daa */
    assert_int_equal(v->gpr[RAX] & 0xff, 0x14);
    assert_int_equal(v->aflags & (FL_CF | FL_AF | FL_ZF | FL_SF | FL_PF), FL_CF | FL_AF | FL_PF);
    v->gpr[RAX] = 0x35;
    v->gpr[RBX] = 0x47;
    RUN(g, 0x28, 0xd8, 0x2f, 0xf4); /* sub al,bl; das */
    assert_int_equal(v->gpr[RAX] & 0xff, 0x88);
    assert_int_equal(v->aflags & (FL_CF | FL_AF), FL_CF | FL_AF);
    v->gpr[RAX] = 0x3f;
    RUN(g, 0xd4, 0x0a, 0xf4); /* aam */
    assert_int_equal(v->gpr[RAX] & 0xffff, 0x0603);
    RUN(g, 0xd5, 0x0a, 0xf4); /* aad */
    assert_int_equal(v->gpr[RAX] & 0xffff, 0x3f);
}

/* A push that faults leaves RSP; PUSHA over the stack's edge writes nothing. */
static void test_stack_faults(void **state)
{
    struct guest *g = *state;
    start_protected(g);
    struct vcpu *v = g->v;
    v->seg[SEG_SS].ar |= 4; /* expand-down: offsets above the limit are valid */
    v->seg[SEG_SS].limit = 0x6fef;
    cpu_mode_changed(v);
    v->gpr[RAX] = 0x5555;
    assert_int_equal(RUN(g, 0x60, 0xf4), RUN_SHUTDOWN);
    assert_int_equal(v->gpr[RSP], 0x7000);
    assert_int_equal(get(g, 0x6ffc, 4), 0);
}

static void test_random_repeats(void **state)
{
    struct guest *g = *state;
    g->v->random_state = 42;
    u64 first = cpu_random(g->v), second = cpu_random(g->v);
    assert_int_not_equal(first, second);
    g->v->random_state = 42;
    assert_int_equal(cpu_random(g->v), first);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_real_mode), TEST(test_protected_mode), TEST(test_long_mode), TEST(test_budget_is_exact),
        TEST(test_self_modifying_code), TEST(test_code_page_is_given_up), TEST(test_page_crossing), TEST(test_cs_limit),
        TEST(test_string_fault), TEST(test_strings), TEST(test_division), TEST(test_exchange), TEST(test_decimal),
        TEST(test_stack_faults), TEST(test_random_repeats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
