/* Performance counters: what they count, when they overflow, and their registers. Compiled for both vendors. */
#include "protected_guest.h"

#include "cpu/msr.h"
#include "cpu/pmu.h"

#include <string.h>

#define AMD (!strcmp(GUEST_CPU, "amd"))
#define WIDTH BIT64(48)
#define MSR_SELECT(n) (AMD ? 0xc0010200u + 2 * (n) : 0x186u + (n))
#define MSR_COUNTER(n) (AMD ? 0xc0010201u + 2 * (n) : 0x4c1u + (n))
#define COUNTERS (AMD ? 6u : 8u)
#define USR BIT64(16)
#define OS BIT64(17)
#define INT BIT64(20)
#define EN BIT64(22)
#define INSTRUCTIONS 0xc0u
#define CYCLES (AMD ? 0x76u : 0x3cu)
#define GLOBAL_STATUS 0x38eu
#define GLOBAL_CTRL 0x38fu
#define STATUS_RESET 0x390u
#define STATUS_SET 0x391u

static unsigned interrupts; /* of counters */

static void count_interrupt(void *intc)
{
    interrupts++;
    vcpu_request(((struct guest *)intc)->v, REQ_NMI);
}

static struct intc_ops with_pmi;

static int setup_pmu(void **state)
{
    if (setup(state))
        return -1;
    struct guest *g = *state;
    with_pmi = fake_intc;
    with_pmi.pmi = count_interrupt;
    vcpu_attach_intc(g->v, &with_pmi, g);
    to_long(g);
    interrupts = 0;
    return 0;
}

static u64 rd(struct guest *g, u32 msr)
{
    u64 value;
    if (!cpu_rdmsr(g->v, msr, &value))
        fail_msg("RDMSR %x", msr);
    return value;
}

static void wr(struct guest *g, u32 msr, u64 value)
{
    if (!cpu_wrmsr(g->v, msr, value))
        fail_msg("WRMSR %x = %llx", msr, (unsigned long long)value);
}

static void start(struct guest *g, unsigned n, u64 select, u64 value)
{
    wr(g, MSR_COUNTER(n), value);
    wr(g, MSR_SELECT(n), select | EN);
}

static void expect(struct guest *g, unsigned n, u64 count, const char *what)
{
    u64 value = rd(g, MSR_COUNTER(n));
    if (value != count)
        fail_msg("%s: counter %u is %llx, expected %llx", what, n, (unsigned long long)value, (unsigned long long)count);
}

/* To the next HLT, in slices of @slice instructions. */
static void to_halt(struct guest *g, u64 slice)
{
    for (unsigned n = 0; n < 100000; n++)
        if (run(g, slice) == RUN_HALTED)
            return;
    fail_msg("never halted");
}

static void at(struct guest *g, const u8 *code, unsigned n)
{
    poke(g, CODE, code, n);
    g->v->rip = CODE;
    g->v->activity = ACTIVITY_ACTIVE;
    g->v->nmi_blocked = false;
}
#define AT(g, ...) at(g, (const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__}))

/* Exactly, whatever ends a slice: a repeated string instruction is one, however often it is interrupted. */
static void instructions(void **state)
{
    struct guest *g = *state;
    static const u64 slices[] = {1, 3, 10, 100000};
    for (unsigned s = 0; s < ARRAY_SIZE(slices); s++) {
        /* mov edi, 100000H; mov ecx, 200000; rep stosb; mov ecx, 500; 1: nop; dec ecx; jnz 1b; hlt */
        AT(g, 0xbf, 0, 0, 0x10, 0, 0xb9, 0x40, 0x0d, 0x03, 0, 0xf3, 0xaa, 0xb9, 0xf4, 1, 0, 0, 0x90, 0xff, 0xc9, 0x75, 0xfb, 0xf4);
        for (unsigned n = 0; n < COUNTERS; n++)
            start(g, n, INSTRUCTIONS | OS | USR, n);
        to_halt(g, slices[s]);
        for (unsigned n = 0; n < COUNTERS; n++)
            expect(g, n, 4 + 3 * 500 + 1 + n, "a loop");
    }
    /* A fault retires nothing; what leads to the handler's HLT is counted, and the HLT. */
    AT(g, 0x90, 0x0f, 0x0b);
    start(g, 0, INSTRUCTIONS | OS, 0);
    to_halt(g, 1000);
    expect(g, 0, 2, "UD2");
}

/* The instruction that enables is counted, the one that disables is not. */
static void precise(void **state)
{
    struct guest *g = *state;
    u32 msr = AMD ? MSR_SELECT(0) : GLOBAL_CTRL, on = AMD ? INSTRUCTIONS | OS | EN : 1;
    wr(g, msr, 0);
    if (!AMD)
        start(g, 0, INSTRUCTIONS | OS, 0);
    else
        wr(g, MSR_COUNTER(0), 0);
    /* mov ecx, msr; mov eax, on; xor edx, edx; wrmsr; nop; nop; xor eax, eax; wrmsr; nop; hlt */
    AT(g, 0xb9, (u8)msr, (u8)(msr >> 8), (u8)(msr >> 16), (u8)(msr >> 24), 0xb8, (u8)on, (u8)(on >> 8), (u8)(on >> 16), (u8)(on >> 24), 0x31,
       0xd2, 0x0f, 0x30, 0x90, 0x90, 0x31, 0xc0, 0x0f, 0x30, 0x90, 0xf4);
    to_halt(g, 1000);
    expect(g, 0, 4, "between two WRMSR");
    wr(g, msr, 0);
}

static void rings(void **state)
{
    struct guest *g = *state;
    static const struct { u64 bits; u64 expected; } rows[] = {{USR, 5}, {OS, 2}, {USR | OS, 7}, {0, 0}};
    to_ring3(g);
    AT(g, 0x90, 0x90, 0x90, 0x90, 0x90, 0xcd, 0x80); /* ... int 80h, whose handler halts */
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++)
        start(g, n, INSTRUCTIONS | rows[n].bits, 0);
    to_halt(g, 1000);
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++)
        expect(g, n, rows[n].expected, "by privilege level");
}

/* The interrupt comes behind the very instruction that overflows the counter, also in the middle of translated code. */
static void overflow(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    static const u64 rows[] = {1, 2, 3, 100, 1000, 1234, 2999};
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        /* mov ecx, 1000; 1: nop; dec ecx; jnz 1b; hlt */
        AT(g, 0xb9, 0xe8, 3, 0, 0, 0x90, 0xff, 0xc9, 0x75, 0xfb, 0xf4);
        unsigned before = interrupts;
        if (!AMD)
            wr(g, STATUS_RESET, rd(g, GLOBAL_STATUS));
        start(g, 1, INSTRUCTIONS | OS | INT, WIDTH - rows[n]);
        to_halt(g, 100000);
        assert_int_equal(v->rip, HANDLER(VEC_NMI) + 1);
        assert_int_equal(interrupts, before + 1);
        static const u32 place[] = {CODE + 10, CODE + 5, CODE + 6, CODE + 8};
        u64 done = rows[n] - 1, rip = done == 0 ? CODE + 5 : place[done % 3 ? done % 3 + 1 : 1], rcx = 1000 - (done + 1) / 3;
        u64 pushed = get(g, v->gpr[RSP], 8);
        if (pushed != rip || v->gpr[RCX] != rcx)
            fail_msg("after %llu instructions at %llx with RCX %llu, expected %llx and %llu", (unsigned long long)rows[n],
                     (unsigned long long)pushed, (unsigned long long)v->gpr[RCX], (unsigned long long)rip, (unsigned long long)rcx);
        expect(g, 1, 1, "the handler's HLT");
        if (!AMD)
            assert_int_equal(rd(g, GLOBAL_STATUS), BIT(1));
    }
    /* Without INT the counter goes on, and only the status tells. */
    AT(g, 0x90, 0x90, 0x90, 0xf4);
    unsigned before = interrupts;
    start(g, 1, INSTRUCTIONS | OS, WIDTH - 2);
    to_halt(g, 1000);
    assert_int_equal(interrupts, before);
    expect(g, 1, 2, "past the overflow");
}

/* By privilege level: the place of the overflow is foreseen again whenever the level changes. */
static void overflow_in_ring3(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    put(g, HANDLER(0x80), 0xcf4890909090ull, 6); /* four NOPs, IRETQ */
    to_ring3(g);
    AT(g, 0x90, 0xcd, 0x80, 0x90, 0x90, 0x90, 0x90, 0xeb, 0xfe); /* nop; int 80h; nops; jmp $ */
    start(g, 0, INSTRUCTIONS | USR | INT, WIDTH - 4);
    to_halt(g, 1000);
    assert_int_equal(v->rip, HANDLER(VEC_NMI) + 1);
    /* In ring 3: the first NOP, IRETQ's return there, two NOPs more. */
    assert_int_equal(get(g, v->gpr[RSP], 8), CODE + 5);
    expect(g, 0, 0, "in ring 0 nothing is added");
}

static void cycles(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    AT(g, 0x90, 0x90, 0x90, 0xf4, 0x90, 0xf4);
    start(g, 0, CYCLES | OS, 0);
    run(g, 1);
    clock_advance(&g->clock, 100);
    expect(g, 0, 100, "running");
    clock_advance(&g->clock, 50);
    to_halt(g, 10);
    expect(g, 0, 150, "to the HLT");
    clock_advance(&g->clock, 1000);
    expect(g, 0, 150, "halted");
    v->activity = ACTIVITY_ACTIVE;
    run(g, 1);
    clock_advance(&g->clock, 7);
    expect(g, 0, 157, "awake again");

    /* An overflow is a timer, which waits while the processor is halted. */
    AT(g, 0x90, 0x90, 0x90, 0x90, 0xf4);
    start(g, 0, CYCLES | OS | INT, WIDTH - 1000);
    run(g, 1);
    clock_advance(&g->clock, 999);
    assert_int_equal(clock_run(&g->clock), 0);
    run(g, 1);
    assert_int_equal(interrupts, 0);
    clock_advance(&g->clock, 1);
    assert_int_equal(clock_run(&g->clock), 1);
    to_halt(g, 10);
    assert_int_equal(interrupts, 1);
    assert_int_equal(v->rip, HANDLER(VEC_NMI) + 1);
    assert_int_equal(get(g, v->gpr[RSP], 8), CODE + 2);
    start(g, 0, CYCLES | OS | INT, WIDTH - 1000);
    AT(g, 0x90, 0xf4, 0xf4);
    to_halt(g, 10);
    clock_advance(&g->clock, 5000);
    assert_int_equal(clock_run(&g->clock), 0);
}

static void thresholds(void **state)
{
    struct guest *g = *state;
    static const struct { u64 bits; u64 expected; } rows[] = {
        {1ull << 24, 100}, {1ull << 24 | BIT64(23), 0}, {2ull << 24, 0}, {2ull << 24 | BIT64(23), 100}, {BIT64(18), 0}, {0, 1}};
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        AT(g, 0x90, 0x90, 0xf4);
        start(g, 0, INSTRUCTIONS | OS | rows[n].bits, 0);
        run(g, 1);
        clock_advance(&g->clock, 100);
        expect(g, 0, rows[n].expected, "CMASK, INV, EDGE");
        wr(g, MSR_SELECT(0), 0);
    }
    start(g, 0, 0x1234 | OS, 5); /* an event that does not exist */
    AT(g, 0x90, 0x90, 0xf4);
    to_halt(g, 10);
    expect(g, 0, 5, "an unknown event");
}

static void rdpmc(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    start(g, 2, INSTRUCTIONS | OS, 0x123456789abcull);
    wr(g, MSR_SELECT(2), 0);
    AT(g, 0x0f, 0x33, 0xf4);
    v->gpr[RCX] = 2;
    to_halt(g, 10);
    assert_int_equal(v->gpr[RAX], 0x56789abc);
    assert_int_equal(v->gpr[RDX], 0x1234);
    static const u32 bad[] = {16, 64, 0x80000000, 0x80000002, 0x40000003, 0x20000000, 0x40010000, 0xffffffff};
    for (unsigned n = 0; n < ARRAY_SIZE(bad); n++) {
        AT(g, 0x0f, 0x33, 0xf4);
        v->gpr[RCX] = bad[n];
        expect_handler(g, VEC_GP);
    }
    AT(g, 0x0f, 0x33, 0xf4);
    v->gpr[RCX] = COUNTERS;
    expect_handler(g, VEC_GP);
    /* CR4.PCE */
    to_ring3(g);
    AT(g, 0x0f, 0x33, 0xcd, 0x80);
    v->gpr[RCX] = 2;
    expect_handler(g, VEC_GP);
    v->cr4 |= CR4_PCE;
    to_ring3(g);
    AT(g, 0x0f, 0x33, 0xcd, 0x80);
    expect_handler(g, 0x80);
    assert_int_equal(v->gpr[RDX], 0x1234);
}

/* ---- Intel ---- */

static void identity(void **state)
{
    struct guest *g = *state;
    u32 r[4];
    cpu_cpuid(g->v, 0xa, 0, r);
    if (AMD) {
        assert_int_equal(r[0] | r[1] | r[2] | r[3], 0);
        return;
    }
    assert_int_equal(r[0], 0x07300805);
    assert_int_equal(r[1], 0x78);
    assert_int_equal(r[2], 7);
    assert_int_equal(r[3], BIT(15) | 48 << 5 | 3);
    cpu_cpuid(g->v, 1, 0, r);
    assert_true(r[2] & BIT(15));
    assert_true(rd(g, 0x1a0) & BIT64(7));
    assert_int_equal(rd(g, GLOBAL_CTRL), 0xff); /* after RESET */
    wr(g, GLOBAL_CTRL, 0x700000001ull);
    cpu_init_signal(g->v);
    assert_int_equal(rd(g, GLOBAL_CTRL), 0x700000001ull);
    cpu_reset(g->v);
    assert_int_equal(rd(g, GLOBAL_CTRL), 0xff);
}

static void fixed(void **state)
{
    struct guest *g = *state;
    wr(g, GLOBAL_CTRL, 7ull << 32);
    wr(g, 0x38d, 0x111);
    AT(g, 0x90, 0x90, 0x90, 0xf4);
    run(g, 3);
    clock_advance(&g->clock, 40);
    assert_int_equal(rd(g, 0x309), 3);
    assert_int_equal(rd(g, 0x30a), 40);
    assert_int_equal(rd(g, 0x30b), 40);
    wr(g, 0x38d, 0x222); /* ring 3 only */
    clock_advance(&g->clock, 40);
    assert_int_equal(rd(g, 0x30a), 40);
    wr(g, 0x309, WIDTH - 1);
    wr(g, 0x38d, 0xb);
    AT(g, 0x90, 0x90, 0xf4);
    to_halt(g, 100);
    assert_int_equal(interrupts, 1);
    assert_int_equal(rd(g, GLOBAL_STATUS), BIT64(32));
    assert_int_equal(get(g, g->v->gpr[RSP], 8), CODE + 1);
}

/* "Freeze_PerfMon_On_PMI" and "Freeze_LBRs_On_PMI" as version 4 has them. */
static void freeze(void **state)
{
    struct guest *g = *state;
    wr(g, 0x1d9, DEBUGCTL_FREEZE_PERFMON | DEBUGCTL_FREEZE_LBRS);
    start(g, 0, INSTRUCTIONS | OS | INT, WIDTH - 2);
    start(g, 1, INSTRUCTIONS | OS, 0);
    AT(g, 0x90, 0x90, 0x90, 0x90, 0xf4);
    to_halt(g, 100);
    expect(g, 0, 0, "frozen");
    expect(g, 1, 2, "frozen too");
    assert_int_equal(rd(g, GLOBAL_STATUS), BIT64(59) | BIT64(58) | 1);
    assert_int_equal(rd(g, GLOBAL_CTRL), 0xff);
    wr(g, STATUS_RESET, BIT64(59));
    AT(g, 0x90, 0xf4);
    to_halt(g, 100);
    expect(g, 1, 4, "thawed");
    /* Software can freeze, too: the bit is a control. */
    wr(g, STATUS_SET, BIT64(59));
    AT(g, 0x90, 0xf4);
    to_halt(g, 100);
    expect(g, 1, 4, "frozen by STATUS_SET");
    wr(g, 0x1d9, 0);
}

/* Which bits each register has; a write of any other is refused and changes nothing. */
static void reserved_bits(void **state)
{
    struct guest *g = *state;
    static const struct { u32 msr; u64 bits; bool command; } rows[] = {
        {GLOBAL_CTRL, 0x7000000ffull, false}, {0x38d, 0xbbb, false}, {0x186, 0xffdfffffull, false}, {0x18d, 0xffdfffffull, false},
        {0x309, WIDTH - 1, false}, {0x30b, WIDTH - 1, false}, {0x4c1, WIDTH - 1, false}, {0x4c8, WIDTH - 1, false},
        {STATUS_RESET, 0xec000007000000ffull, true}, {STATUS_SET, 0x6c000007000000ffull, true},
        {GLOBAL_STATUS, 0, true}, {0x392, 0, true}, {0x345, 0, true},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++)
        for (unsigned bit = 0; bit < 64; bit++) {
            if (!rows[n].command)
                wr(g, rows[n].msr, 0);
            bool ok = cpu_wrmsr(g->v, rows[n].msr, BIT64(bit));
            if (ok != (rows[n].bits >> bit & 1))
                fail_msg("WRMSR %x, bit %u: %s", rows[n].msr, bit, ok ? "accepted" : "refused");
            if (!rows[n].command && rd(g, rows[n].msr) != (ok ? BIT64(bit) : 0))
                fail_msg("WRMSR %x, bit %u: reads as %llx", rows[n].msr, bit, (unsigned long long)rd(g, rows[n].msr));
        }
    static const u32 absent[] = {0xc9, 0x18e, 0x30c, 0x3f1, 0x4c9, 0x329};
    u64 value;
    for (unsigned n = 0; n < ARRAY_SIZE(absent); n++)
        assert_false(cpu_rdmsr(g->v, absent[n], &value));
}

static void status(void **state)
{
    struct guest *g = *state;
    wr(g, STATUS_SET, 0x300000005ull | BIT64(61));
    assert_int_equal(rd(g, GLOBAL_STATUS), 0x300000005ull | BIT64(61));
    assert_int_equal(rd(g, STATUS_SET), 0);
    wr(g, STATUS_RESET, 0x100000001ull);
    assert_int_equal(rd(g, GLOBAL_STATUS), 0x200000004ull | BIT64(61));
    assert_int_equal(rd(g, 0x392), 0);
    wr(g, 0x188, INSTRUCTIONS);
    wr(g, 0x38d, 0x020);
    assert_int_equal(rd(g, 0x392), BIT(2) | BIT64(33));
    wr(g, 0x38d, 0x820);
    assert_int_equal(rd(g, 0x392), BIT(2) | BIT64(33) | BIT64(63));
    /* The old names of the counters take 32 bits, and extend the highest. */
    wr(g, 0xc3, 0xff0180000001ull);
    assert_int_equal(rd(g, 0xc3), 0xffff80000001ull);
    assert_int_equal(rd(g, 0x4c3), 0xffff80000001ull);
    wr(g, 0xc3, 0xff0170000001ull);
    assert_int_equal(rd(g, 0x4c3), 0x70000001);
}

/* A model without counters: not a register, no control, no event. */
static void without(void **state)
{
    struct guest *g = *state;
    const struct cpu_model *model;
    u8 features[FEAT_COUNT];
    struct error err;
    u64 value;
    u32 r[4];
    assert_int_equal(cpu_model_parse("intel,-pmu", &model, features, NULL, &err), 0);
    const struct cpu_config cfg = {.model = model, .features = features, .pm = g->pm, .clock = &g->clock};
    struct vcpu *v = vcpu_new(&cfg, &err);
    static const u32 msrs[] = {0xc1, 0x186, 0x309, 0x345, 0x38d, 0x38e, 0x38f, 0x390, 0x391, 0x392, 0x4c1};
    for (unsigned n = 0; n < ARRAY_SIZE(msrs); n++) {
        assert_false(cpu_rdmsr(v, msrs[n], &value));
        assert_false(cpu_wrmsr(v, msrs[n], 0));
    }
    cpu_cpuid(v, 0xa, 0, r);
    assert_int_equal(r[0] | r[1] | r[2] | r[3], 0);
    cpu_cpuid(v, 1, 0, r);
    assert_false(r[2] & BIT(15));
    assert_true(cpu_rdmsr(v, 0x1a0, &value) && !(value & BIT64(7)));
    assert_false(cpu_wrmsr(v, 0x1d9, DEBUGCTL_FREEZE_PERFMON));
    assert_false(pmu_rdpmc(v, 0, &value));
    vcpu_free(v);
}

/* ---- AMD ---- */

static void legacy_names(void **state)
{
    struct guest *g = *state;
    for (unsigned n = 0; n < 4; n++) {
        wr(g, 0xc0010000 + n, INSTRUCTIONS | n << 8);
        wr(g, 0xc0010004 + n, 0xabcd00000000ull + n);
        assert_int_equal(rd(g, MSR_SELECT(n)), INSTRUCTIONS | n << 8);
        assert_int_equal(rd(g, MSR_COUNTER(n)), 0xabcd00000000ull + n);
    }
    /* The bits that do not exist read as zero. */
    wr(g, MSR_SELECT(5), ~0ull);
    assert_int_equal(rd(g, MSR_SELECT(5)), 0x30fffd7ffffull);
    wr(g, MSR_SELECT(5), 0);
    wr(g, MSR_COUNTER(5), ~0ull);
    assert_int_equal(rd(g, MSR_COUNTER(5)), WIDTH - 1);
}

/* "Host Only" and "Guest Only" count for something once SVM is enabled; here is no guest. */
static void host_only(void **state)
{
    struct guest *g = *state;
    static const struct { u64 bits; u64 expected[2]; } rows[] = {
        {0, {3, 3}}, {BIT64(40), {3, 0}}, {BIT64(41), {3, 3}}, {BIT64(40) | BIT64(41), {3, 3}}};
    for (unsigned svm = 0; svm < 2; svm++) {
        wr(g, 0xc0000080, svm ? g->v->efer | EFER_SVME : g->v->efer & ~EFER_SVME);
        for (unsigned n = 0; n < ARRAY_SIZE(rows); n++)
            start(g, n, INSTRUCTIONS | OS | rows[n].bits, 0);
        AT(g, 0x90, 0x90, 0xf4);
        to_halt(g, 10);
        for (unsigned n = 0; n < ARRAY_SIZE(rows); n++)
            expect(g, n, rows[n].expected[svm], "host only, guest only");
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup_pmu, teardown)
int main(void)
{
    const struct CMUnitTest both[] = {
        T(instructions), T(precise), T(rings), T(overflow), T(overflow_in_ring3), T(cycles), T(thresholds), T(rdpmc), T(identity),
    };
    const struct CMUnitTest intel[] = {T(fixed), T(freeze), T(reserved_bits), T(status), T(without)};
    const struct CMUnitTest amd[] = {T(legacy_names), T(host_only)};
    return cmocka_run_group_tests(both, NULL, NULL) +
           (AMD ? cmocka_run_group_tests(amd, NULL, NULL) : cmocka_run_group_tests(intel, NULL, NULL));
}
