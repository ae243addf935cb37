/*
 * Debug registers and debug exceptions: SDM vol. 3 "Debug, Branch Profile, TSC, and Intel Resource Director
 * Technology", sections "Debug Registers" and "Debug Exceptions"; "Priority Among Concurrent Events".
 */
#include "protected_guest.h"
#include "cpu/block.h"
#include "devices/bus.h"

#define DATA 0x9400u

static u32 pushed(struct guest *g, unsigned n) { return (u32)get(g, g->v->gpr[RSP] + n * 4, 4); }

static void set_dr7(struct guest *g, u64 dr7)
{
    g->v->dr7 = dr7 | DR7_FIXED;
    mmu_watch_changed(g->v);
    cpu_rearm(g->v);
}

static void set_flags(struct guest *g, u64 flags)
{
    cpu_put_rflags(g->v, flags | FL_FIXED);
    cpu_flags_changed(g->v);
}

static void begin(struct guest *g)
{
    struct vcpu *v = g->v;
    CODE_AT(g, HANDLER(VEC_DB), 0xeb, 0xfe); /* the test is the handler */
    v->rip = CODE;
    v->gpr[RSP] = STACK;
    v->activity = ACTIVITY_ACTIVE;
    v->dr6 = DR6_FIXED;
    set_flags(g, 0);
}

/* Runs to the next #DB and returns from it; its saved RIP, or 0 when the code halted before. */
static u64 next_db(struct guest *g)
{
    struct vcpu *v = g->v;
    if (run(g, 200) == RUN_HALTED)
        return 0;
    assert_int_equal(v->rip, HANDLER(VEC_DB));
    u64 rip = pushed(g, 0);
    u32 flags = pushed(g, 2);
    v->gpr[RSP] += 12;
    v->rip = v->next_rip = rip;
    set_flags(g, flags);
    return rip;
}

/* ---- the registers ---- */

/* Writing what a register holds: no flush, no walk, no new block, nothing that asks for attention. */
static void same_value_is_free(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    for (unsigned on = 0; on < 2; on++) {
        begin(g);
        v->dr[1] = DATA;
        set_dr7(g, on ? 8 | 0xd00000 : 0); /* DR1: writes of 4 bytes */
        CODE_AT(g, CODE, 0x0f, 0x21, 0xc8, 0x0f, 0x21, 0xfb,           /* mov eax, dr1; mov ebx, dr7 */
                0xb9, 100, 0, 0, 0, 0x0f, 0x23, 0xc8, 0x0f, 0x23, 0xfb, /* mov ecx, 100; L: mov dr1, eax; mov dr7, ebx */
                0xe2, 0xf8, 0xf4);                                      /* loop L; hlt */
        run(g, 9); /* through the loop twice */
        struct mmu_stats m = *mmu_stats(v);
        struct interp_stats s = v->interp->stats;
        u32 attention = atomic_load(&v->attention);
        run(g, 240);
        assert_int_equal(atomic_load(&v->attention), attention);
        assert_memory_equal(mmu_stats(v), &m, sizeof(m));
        assert_memory_equal(&v->interp->stats, &s, sizeof(s));
        assert_int_equal(run(g, 100), RUN_HALTED);
    }
    set_dr7(g, 0);
}

static void reserved_bits(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    static const struct { u8 dr; u32 value, reads; } t[] = {
        {6, 0, 0xffff0ff0}, {6, 0xffffffff, 0xffffefff}, {6, 0x10000, 0xffff0ff0}, /* RTM and BLD: absent, read as 1 */
        {7, 0, 0x400}, {7, 0xffff0000, 0xffff0400}, {7, 0xffffd800, 0xffff0400}, {7, 0x3ff, 0x7ff},
        {0, 0xffffffff, 0xffffffff}, {3, 0x12345678, 0x12345678},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(t); n++) {
        begin(g);
        set_dr7(g, 0);
        CODE_AT(g, CODE, 0x0f, 0x23, 0xc0 | t[n].dr << 3, 0x0f, 0x21, 0xc3 | t[n].dr << 3, 0xf4);
        v->gpr[RAX] = t[n].value;
        for (unsigned k = 0; k < 4; k++)
            v->dr[k] = 0xfffff000; /* DR7 enables them in one of the rows */
        assert_int_equal(run(g, 9), RUN_HALTED);
        if (v->gpr[RBX] != t[n].reads)
            fail_msg("DR%u: %x reads as %llx", t[n].dr, t[n].value, (unsigned long long)v->gpr[RBX]);
    }
    set_dr7(g, 0);
    /* 64-bit mode: bits 63:32 of DR6 and DR7 must be zero. */
    to_long(g);
    for (unsigned dr = 6; dr <= 7; dr++) {
        begin(g);
        CODE_AT(g, CODE, 0x0f, 0x23, 0xc0 | dr << 3, 0xf4);
        v->gpr[RAX] = BIT64(32);
        expect_handler(g, VEC_GP);
    }
}

static void aliases(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    for (unsigned de = 0; de < 2; de++)
        for (unsigned dr = 4; dr <= 5; dr++) {
            begin(g);
            v->dr6 = DR6_FIXED | 5;
            set_dr7(g, 0x30000);
            cpu_write_cr4(v, de ? CR4_DE : 0);
            CODE_AT(g, CODE, 0x0f, 0x21, 0xc0 | dr << 3, 0xf4); /* mov eax, dr */
            if (de) {
                expect_handler(g, VEC_UD);
                continue;
            }
            assert_int_equal(run(g, 9), RUN_HALTED);
            assert_int_equal(v->gpr[RAX], dr == 4 ? (u32)(DR6_FIXED | 5) : 0x30400);
        }
}

static void general_detect(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    for (unsigned write = 0; write < 2; write++) {
        begin(g);
        set_dr7(g, DR7_GD);
        CODE_AT(g, CODE, 0x90, 0x0f, write ? 0x23 : 0x21, 0xd0, 0xf4); /* mov dr2 */
        v->gpr[RAX] = 0x77;
        assert_int_equal(next_db(g), CODE + 1); /* a fault: before the access */
        assert_int_equal(v->dr6, DR6_FIXED | DR6_BD);
        assert_false(v->dr7 & DR7_GD);
        assert_int_equal(next_db(g), 0); /* and then it goes through */
    }
    /* DR4 with CR4.DE is undefined first; CPL 3 comes before too. */
    begin(g);
    set_dr7(g, DR7_GD);
    cpu_write_cr4(v, CR4_DE);
    CODE_AT(g, CODE, 0x0f, 0x21, 0xe0);
    expect_handler(g, VEC_UD);
    begin(g);
    CODE_AT(g, CODE, 0x0f, 0x21, 0xc0);
    to_ring3(g);
    expect_handler(g, VEC_GP);
}

/* ---- single-stepping ---- */

#define STEPS(g, ...) steps(g, (const u64[]){__VA_ARGS__, 0})
static void steps(struct guest *g, const u64 *at)
{
    for (; *at; at++) {
        u64 rip = next_db(g);
        if (rip != *at)
            fail_msg("a trap at %llx, expected %llx", (unsigned long long)rip, (unsigned long long)*at);
        assert_int_equal(g->v->dr6, DR6_FIXED | DR6_BS);
        g->v->dr6 = DR6_FIXED;
    }
}

static void single_steps(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    begin(g);
    set_flags(g, FL_TF);
    CODE_AT(g, CODE, 0x90,                    /* 0 nop */
            0xeb, 0x00,                       /* 1 jmp */
            0xb9, 3, 0, 0, 0,                 /* 3 mov ecx, 3 */
            0xf3, 0xa4,                       /* 8 rep movsb: a trap after each */
            0x8c, 0xd0, 0x8e, 0xd0,           /* a mov eax, ss; c mov ss, eax: its trap waits */
            0x90,                             /* e nop */
            0x9c, 0x59, 0x80, 0xe5, 0xfe,     /* f pushf; 10 pop ecx; 11 and ch, ~1 */
            0x51, 0x9d, 0x90, 0xf4);          /* 14 push ecx; 15 popf clears TF: one more trap; nop; hlt */
    v->gpr[RSI] = v->gpr[RDI] = DATA;
    STEPS(g, CODE + 1, CODE + 3, CODE + 8, CODE + 8, CODE + 8, CODE + 0xa, CODE + 0xc, CODE + 0xf, CODE + 0x10, CODE + 0x11,
          CODE + 0x14, CODE + 0x15, CODE + 0x16);
    assert_int_equal(next_db(g), 0);
    assert_int_equal(v->rip, CODE + 0x18);
}

/* A fault, and an INT, are not followed by a trap of their own; the handler's IRET brings TF back. */
static void steps_over_events(void **state)
{
    struct guest *g = *state;
    begin(g);
    set_flags(g, FL_TF);
    CODE_AT(g, CODE, 0xcd, 0x80, 0x0f, 0x0b, 0x90, 0xf4);
    CODE_AT(g, HANDLER(0x80), 0x90, 0xcf);
    CODE_AT(g, HANDLER(VEC_UD), 0x83, 0x04, 0x24, 0x02, 0xcf); /* add dword [esp], 2; iret */
    /* The IRET itself runs with TF clear; the instruction it returns to is the first that traps. */
    assert_int_equal(next_db(g), CODE + 5);
}

static void branch_steps(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    begin(g);
    v->debugctl = DEBUGCTL_BTF;
    CODE_AT(g, CODE, 0x90,                            /* 0 nop */
            0x31, 0xc0,                               /* 1 xor eax, eax */
            0x75, 0x02,                               /* 3 jnz: not taken, no trap */
            0x74, 0x01,                               /* 5 jz +1: taken */
            0xf4, 0x90,                               /* 7 hlt; 8 nop */
            0xe8, 0x03, 0, 0, 0,                      /* 9 call 11 */
            0x90, 0xf4, 0x90,                         /* e nop; f hlt */
            0xb9, 2, 0, 0, 0,                         /* 11 mov ecx, 2 */
            0x90, 0xe2, 0xfd,                         /* 16 nop; 17 loop 16: taken once */
            0xeb, 0x00,                               /* 19 jmp to what is next anyway: a taken branch all the same */
            0x90, 0xc3);                              /* 1b nop; 1c ret */
    set_flags(g, FL_TF);
    static const u64 at[] = {CODE + 8, CODE + 0x11, CODE + 0x16, CODE + 0xe};
    for (unsigned n = 0; n < ARRAY_SIZE(at); n++) {
        u64 rip = next_db(g);
        if (rip == CODE + 0x1b) { /* a jump of length 0 may count as a branch */
            v->debugctl = DEBUGCTL_BTF;
            rip = next_db(g);
        }
        assert_int_equal(rip, at[n]);
        assert_int_equal(v->debugctl, 0); /* the exception clears BTF: a debugger sets it again */
        assert_true(v->dr6 & DR6_BS);
        v->debugctl = DEBUGCTL_BTF;
    }
    assert_int_equal(next_db(g), 0);
    v->debugctl = 0;
}

/* ---- breakpoints ---- */

static const u8 lengths[4] = {1, 2, 8, 4};

/* Every length at every place in 16 bytes, against accesses of 1, 2, 4 bytes at every place, both kinds, L and G. */
static void data_breakpoints(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    for (unsigned len = 0; len < 4; len++)
        for (unsigned at = 0; at < 16; at++)
            for (unsigned kind = 1; kind <= 3; kind += 2)
                for (unsigned size = 1; size <= 4; size *= 2)
                    for (unsigned where = 0; where < 16; where++)
                        for (unsigned write = 0; write < 2; write++) {
                            unsigned n = (at + where) & 3, base = at & ~(lengths[len] - 1u);
                            bool hit = (kind == 3 || write) && where < base + lengths[len] && base < where + size;
                            begin(g);
                            v->dr[n] = DATA + at;
                            set_dr7(g, BIT64(2 * n + (at & 1)) | (u64)kind << (16 + 4 * n) | (u64)len << (18 + 4 * n));
                            /* mov [ebx], al / ax / eax, or the other way */
                            if (size == 1)
                                CODE_AT(g, CODE, write ? 0x88 : 0x8a, 0x03, 0x90, 0xf4);
                            else if (size == 2)
                                CODE_AT(g, CODE, 0x66, write ? 0x89 : 0x8b, 0x03, 0x90, 0xf4);
                            else
                                CODE_AT(g, CODE, write ? 0x89 : 0x8b, 0x03, 0x90, 0xf4);
                            v->gpr[RBX] = DATA + where;
                            u64 rip = next_db(g);
                            if (rip != (hit ? CODE + (size == 2 ? 3 : 2) : 0))
                                fail_msg("LEN %u at +%u, R/W %u: %s of %u bytes at +%u traps at %llx", len, at, kind,
                                         write ? "write" : "read", size, where, (unsigned long long)rip);
                            if (hit)
                                assert_int_equal(v->dr6, DR6_FIXED | DR6_B(n));
                        }
    set_dr7(g, 0);
}

static void io_breakpoints(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    struct pio_bus *bus = pio_bus_new();
    assert_non_null(bus);
    v->pio = bus; /* with nothing on it */
    for (unsigned de = 0; de < 2; de++)
        for (unsigned len = 0; len < 4; len++)
            for (unsigned at = 0; at < 8; at++)
                for (unsigned size = 1; size <= 4; size *= 2)
                    for (unsigned where = 0; where < 8; where++)
                        for (unsigned out = 0; out < 2; out++) {
                            unsigned n = (at + where) & 3, base = at & ~(lengths[len] - 1u);
                            bool hit = de && len != 2 && where < base + lengths[len] && base < where + size;
                            if (len == 2)
                                continue; /* 8 bytes of I/O: undefined */
                            begin(g);
                            cpu_write_cr4(v, de ? CR4_DE : 0);
                            v->dr[n] = 0x300 + at;
                            set_dr7(g, BIT64(2 * n) | 2ull << (16 + 4 * n) | (u64)len << (18 + 4 * n));
                            u8 op = (u8)((out ? 0xee : 0xec) | (size > 1));
                            if (size == 2)
                                CODE_AT(g, CODE, 0x66, op, 0x90, 0xf4);
                            else
                                CODE_AT(g, CODE, op, 0x90, 0xf4);
                            v->gpr[RDX] = 0x300 + where;
                            u64 rip = next_db(g);
                            if (rip != (hit ? CODE + (size == 2 ? 2 : 1) : 0))
                                fail_msg("DE %u, LEN %u at +%u: %u bytes at +%u trap at %llx", de, len, at, size, where,
                                         (unsigned long long)rip);
                            if (hit)
                                assert_int_equal(v->dr6, DR6_FIXED | DR6_B(n));
                        }
    set_dr7(g, 0);
    v->pio = NULL;
    pio_bus_free(bus);
}

/* RF lets one instruction pass; GE and LE mean nothing; all four at once. */
static void code_breakpoints(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    CODE_AT(g, CODE, 0x90, 0x90, 0x90, 0xeb, 0xfb, 0xf4);
    for (unsigned ge = 0; ge < 4; ge++) {
        begin(g);
        for (unsigned n = 0; n < 4; n++)
            v->dr[n] = CODE + n % 3;
        set_dr7(g, (ge & 1 ? DR7_GE : 0) | (ge & 2 ? DR7_LE : 0) | 0x55);
        for (unsigned n = 0; n < 8; n++) {
            assert_int_equal(next_db(g), CODE + n % 3);
            assert_int_equal(v->dr6, DR6_FIXED | (n % 3 == 0 ? 9 : DR6_B(n % 3)));
            v->rflags |= FL_RF;
            cpu_flags_changed(v);
        }
    }
    set_dr7(g, 0);
}

/* ---- several at once ---- */

static void together(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    /* A data breakpoint and TF on one instruction, a code breakpoint on the next: two exceptions. */
    begin(g);
    CODE_AT(g, CODE, 0x89, 0x03, 0x90, 0x90, 0xf4); /* mov [ebx], eax; nop; nop; hlt */
    v->gpr[RBX] = DATA;
    v->dr[0] = DATA;
    v->dr[1] = CODE + 2;
    set_dr7(g, 1 | 4 | 0x10000);
    set_flags(g, FL_TF);
    assert_int_equal(next_db(g), CODE + 2);
    assert_int_equal(v->dr6, DR6_FIXED | DR6_BS | DR6_B(0));
    v->dr6 = DR6_FIXED;
    set_flags(g, 0);
    assert_int_equal(next_db(g), CODE + 2);
    assert_int_equal(v->dr6, DR6_FIXED | DR6_B(1));
    set_dr7(g, 0);

    /* A code breakpoint comes before the fault of the instruction it is on. */
    begin(g);
    CODE_AT(g, CODE, 0x0f, 0x0b);
    v->dr[2] = CODE;
    set_dr7(g, 0x10);
    assert_int_equal(next_db(g), CODE);
    assert_int_equal(v->dr6, DR6_FIXED | DR6_B(2));
    v->rflags |= FL_RF;
    cpu_flags_changed(v);
    expect_handler(g, VEC_UD);
    assert_int_equal(pushed(g, 0), CODE);
    assert_true(pushed(g, 2) & FL_RF);
    set_dr7(g, 0);

    /* B0 to B3 speak of the newest exception, BS and BD stay until software clears them. */
    begin(g);
    CODE_AT(g, CODE, 0x90, 0x89, 0x03, 0xf4);
    v->dr6 = DR6_FIXED | DR6_B(3) | DR6_BD;
    v->gpr[RBX] = DATA;
    v->dr[0] = DATA;
    set_dr7(g, 1 | 0x10000);
    assert_int_equal(next_db(g), CODE + 3);
    assert_int_equal(v->dr6, DR6_FIXED | DR6_B(0) | DR6_BD);
    set_dr7(g, 0);
}

/* INT3, INTO and INT n leave DR6 alone; so does INT1, whose vector is that of #DB. */
static void not_debug_exceptions(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    begin(g);
    CODE_AT(g, CODE, 0xcc);
    expect_handler(g, VEC_BP);
    assert_int_equal(v->dr6, DR6_FIXED);
    begin(g);
    CODE_AT(g, CODE, 0xf1);
    assert_int_equal(next_db(g), CODE + 1);
    assert_int_equal(v->dr6, DR6_FIXED);
    begin(g);
    CODE_AT(g, CODE, 0xcd, 0x01);
    assert_int_equal(next_db(g), CODE + 2);
    assert_int_equal(v->dr6, DR6_FIXED);
}

/* DEBUGCTL: BTF and the freezes are kept, LBR may be written and reads as zero, the rest is refused. */
static void debugctl(void **state)
{
    struct guest *g = *state;
    u64 value;
    for (unsigned bit = 0; bit < 64; bit++) {
        bool ok = bit <= 1 || bit == 11 || bit == 12 || bit == 14;
        assert_int_equal(cpu_wrmsr(g->v, 0x1d9, BIT64(bit)), ok);
        assert_true(cpu_rdmsr(g->v, 0x1d9, &value));
        if (ok)
            assert_int_equal(value, bit ? BIT64(bit) : 0);
    }
    g->v->debugctl = 0;
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(same_value_is_free), T(reserved_bits), T(aliases), T(general_detect), T(single_steps), T(steps_over_events), T(branch_steps),
        T(data_breakpoints), T(io_breakpoints), T(code_breakpoints), T(together), T(not_debug_exceptions), T(debugctl),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
