/*
 * Random programs on both engines, from the same seed: registers, flags, memory and the count of
 * instructions must agree. A program is a loop of instructions that the opcode table offers, with
 * operands that keep it from wandering off: memory through RBP and R14, which nothing writes, with RSP
 * moved by the stack instructions only.
 */
#include "base/clock.h"
#include "cpu/cpu.h"
#include "cpu/engine.h"
#include "cpu/mem.h"
#include "cpu/models.h"
#include "jit/jit.h"
#include "../fuzz/random_insn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#define RAM (2u << 20)
#define PML4 0x1000u
#define PT 0x4000u
#define CODE 0x10000u
#define DATA 0x20000u /* 4 pages, addressed around the middle of each pair */
#define DATA_SIZE 0x4000u
#define STACK 0x38000u
#define STACK_SIZE 0x4000u /* on both sides of it */
#define COUNTER 0x30000u
#define PROGRAMS 1500
#define LENGTH 60
#define ROUNDS 3

struct guest {
    struct physmap *pm;
    struct clock clock;
    struct vcpu *v;
    const struct engine *engine;
};

static void written(void *opaque, pa_t pa, size_t len)
{
    struct guest *g = opaque;
    g->engine->code_written(g->v, pa, len);
}

static void put64(struct guest *g, pa_t pa, u64 x) { physmap_write(g->pm, pa, &x, 8); }

static void guest_new(struct guest *g, const struct engine *engine)
{
    const struct cpu_model *model;
    static u8 features[FEAT_COUNT];
    struct error err;
    g->engine = engine;
    g->pm = physmap_new();
    clock_init(&g->clock, CLOCK_ICOUNT);
    assert_int_equal(physmap_add_ram(g->pm, 0, RAM, "RAM", &err), 0);
    assert_int_equal(cpu_model_parse("", &model, features, NULL, &err), 0);
    const struct cpu_config cfg = {
        .model = model, .features = features, .tsc_hz = 1000000000, .pm = g->pm, .clock = &g->clock,
    };
    g->v = vcpu_new(&cfg, &err);
    if (g->v)
        g->v->jit_options.heat = 1; /* lock-step: whole translations at once */
    assert_non_null(g->v);
    assert_int_equal(engine->attach(g->v), 0);
    physmap_subscribe(g->pm, PAGE_CODE, written, g);
    put64(g, PML4, 0x2003);
    put64(g, 0x2000, 0x3003);
    put64(g, 0x3000, PT | 3);
    for (u64 page = 0; page < RAM; page += PAGE_SIZE)
        put64(g, PT + page / PAGE_SIZE * 8, page | 3);
}

static void guest_free(struct guest *g)
{
    g->engine->detach(g->v);
    vcpu_free(g->v);
    physmap_free(g->pm);
}

static void start(struct guest *g, bool wide)
{
    struct vcpu *v = g->v;
    cpu_reset(v);
    if (wide) {
        v->cr4 |= CR4_PAE;
        v->cr3 = PML4;
        v->efer = EFER_LME | EFER_LMA;
        v->cr0 |= CR0_PG;
    }
    v->cr0 |= CR0_PE | CR0_NE;
    v->cr0 &= ~(CR0_CD | CR0_NW);
    v->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    v->xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
    for (unsigned s = 0; s < 6; s++)
        v->seg[s] = (struct segment){
            .limit = 0xffffffff, .ar = AR_P | AR_S | AR_G | (s == SEG_CS ? (wide ? AR_L : AR_DB) | 0xb : AR_DB | 3),
            .sel = s == SEG_CS ? 8 : 16,
        };
    memset(&v->x87, 0, sizeof(v->x87));
    v->idtr.limit = 0;
    v->rip = CODE;
    cpu_put_rflags(v, FL_FIXED);
    cpu_mode_changed(v);
    v->activity = ACTIVITY_ACTIVE;
}

/* ---- programs ---- */

static u8 program[0x4000];
static unsigned length;

static bool pinned(unsigned r) { return r == RSP || r == RBP || r == R14; }

/* Whether @i may be part of a program. */
static bool wanted(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    if (i->row == 0 || row->checks & (CHK_END | CHK_CPL0 | CHK_IOPL | CHK_AVX512) || row->intercept)
        return false;
    if (row->flags_read & ~FL_ARITH || row->flags_written & ~FL_ARITH)
        return false;
    if (!strcmp(row->mnemonic, "ENTER") || !strcmp(row->mnemonic, "LEAVE") || !strncmp(row->mnemonic, "POPA", 4) ||
        !strncmp(row->mnemonic, "PUSHA", 5) || !strcmp(row->mnemonic, "BOUND") || !strcmp(row->mnemonic, "XLAT"))
        return false;
    if (i->flags & (INSN_SEG | INSN_ASZ | INSN_VSIB | INSN_REP | INSN_REPNE))
        return false;
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        bool byte = o->size == 1, write = o->access & 2;
        switch (o->kind) {
        case OPND_GPR_REG:
            if (write && pinned(byte ? i->reg8 / 8u : i->reg))
                return false;
            break;
        case OPND_GPR_RM: case OPND_GPR_OP:
            if (!(i->flags & INSN_MEM) && write && pinned(byte ? i->rm8 / 8u : i->rm))
                return false;
            break;
        case OPND_GPR_VVVV:
            if (write && pinned(i->vvvv))
                return false;
            break;
        case OPND_GPR_FIXED:
            if (write && pinned(o->fixed))
                return false;
            break;
        case OPND_MEM: case OPND_IMM: case OPND_IMM_FIXED: case OPND_VEC_REG: case OPND_VEC_VVVV: case OPND_VEC_RM: case OPND_VEC_IS4:
        case OPND_VEC_FIXED: case OPND_X87_ST: case OPND_X87_STI: case OPND_MMX_REG: case OPND_MMX_RM:
            break;
        default:
            return false;
        }
    }
    if (i->flags & INSN_MEM) {
        if (row->checks & CHK_ALIGN16 && (i->base != RBP || i->disp & 63))
            return false;
        if (!(i->base == RBP || i->base == R14) || i->index != REG_NONE || i->disp < -0x1800 || i->disp > 0x1800)
            return false;
        if (!row->vex && row->map == 1 && (row->opcode == 0xa3 || row->opcode == 0xab || row->opcode == 0xb3 || row->opcode == 0xbb))
            return false; /* bit strings reach anywhere */
        for (unsigned n = 0; n < row->nopnd; n++)
            if (row->opnd[n].size == OPSZ_BIG)
                return false;
    }
    return row->jit != JIT_CALL;
}

static void put_insn(const u8 *bytes, unsigned n)
{
    memcpy(program + length, bytes, n);
    length += n;
}
#define PUT(...) put_insn((const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__}))

static void make_program(struct vcpu *v, bool wide)
{
    struct decode_ctx ctx = {.mode = wide ? CODE_64 : CODE_32, .features = v->features};
    length = 0;
    for (unsigned made = 0; made < LENGTH;) {
        u8 bytes[RANDOM_INSN_MAX];
        struct insn i = {0};
        unsigned n = random_insn(&insn_rows[1 + below(insn_row_count - 1)], wide ? 64 : 32, bytes);
        if (!n || insn_decode(&ctx, bytes, n > 15 ? 15 : n, &i) != DECODE_OK || !wanted(&i))
            continue;
        if (!below(8)) /* over the next one, on some condition */
            PUT((u8)(0x70 | below(16)), (u8)i.len);
        put_insn(bytes, i.len);
        made++;
        if (!below(24)) /* CALL next; then drop the return address */
            PUT(0xe8, 0, 0, 0, 0, 0x58);
        if (!below(30)) { /* RET to a pushed address: lea rax, [rip + 2]; push; ret */
            if (wide)
                PUT(0x48, 0x8d, 0x05, 2, 0, 0, 0, 0x50, 0xc3);
        }
        if (!below(16)) /* a body between translations */
            PUT(((const u8[]){0xf5, 0xf8, 0xf9, 0x9e, 0x9f})[below(5)]);
    }
    /* dec dword [COUNTER]; jnz start; hlt */
    if (wide)
        PUT(0xff, 0x0c, 0x25, 0, 0, COUNTER >> 16, 0);
    else
        PUT(0xff, 0x0d, 0, 0, COUNTER >> 16, 0);
    s32 back = -(s32)(length + 6);
    PUT(0x0f, 0x85);
    put_insn((const u8 *)&back, 4);
    PUT(0xf4);
}

static void load(struct guest *g, bool wide, u64 s)
{
    struct vcpu *v = g->v;
    start(g, wide);
    random_state = s;
    u8 block[DATA_SIZE];
    for (unsigned k = 0; k < sizeof(block); k += 8)
        store64(block + k, rnd());
    physmap_write(g->pm, DATA, block, sizeof(block));
    memset(block, 0, sizeof(block));
    physmap_write(g->pm, STACK - STACK_SIZE, block, sizeof(block));
    physmap_write(g->pm, STACK, block, sizeof(block));
    put64(g, COUNTER, ROUNDS);
    physmap_write(g->pm, CODE, program, sizeof(program));
    for (unsigned r = 0; r < 16; r++)
        v->gpr[r] = below(4) ? rnd() : below(2) ? rnd() & 0xff : ~0ull;
    if (!wide)
        for (unsigned r = 0; r < 16; r++)
            v->gpr[r] = (u32)v->gpr[r];
    for (unsigned r = 0; r < 16; r++)
        for (unsigned q = 0; q < 4; q++)
            v->vec[r].q[q] = rnd();
    for (unsigned r = 0; r < 8; r++) { /* mostly numbers of ordinary size */
        u64 mantissa = rnd() | (below(8) ? BIT64(63) : 0), exponent = below(8) ? 0x3ff0 + below(32) : rnd() & 0xffff;
        store64(v->x87.st[r], mantissa);
        store64(v->x87.st[r] + 8, exponent);
    }
    v->x87.fcw = (u16)(below(8) ? 0x37f : 0x340 | (rnd() & 0xc3f));
    v->x87.fsw = (u16)(below(8) << 11);
    v->x87.ftw = below(4) ? (u8)rnd() : 0xff;
    v->mxcsr = below(2) ? 0x1f80 : below(8) ? 0x1f80 | ((u32)rnd() & 0xe07f) : (u32)rnd() & 0xffff;
    v->gpr[RSP] = STACK;
    v->gpr[RBP] = DATA + DATA_SIZE / 2;
    v->gpr[R14] = DATA + DATA_SIZE / 2 + 1;
    v->aflags = (u32)rnd() & FL_ARITH;
    v->icount = 0;
    v->budget_end = getenv("JIT_BUDGET") ? strtoull(getenv("JIT_BUDGET"), NULL, 10) : 100000;
}

static void fail_program(struct guest *a, struct guest *b, u64 s, const char *what)
{
    fprintf(stderr, "seed %llx: %s differs; rip %llx and %llx, flags %x and %x, icount %llu and %llu\n", (unsigned long long)s, what,
            (unsigned long long)a->v->rip, (unsigned long long)b->v->rip, a->v->aflags, b->v->aflags,
            (unsigned long long)a->v->icount, (unsigned long long)b->v->icount);
    for (unsigned r = 0; r < 16; r++)
        if (a->v->gpr[r] != b->v->gpr[r])
            fprintf(stderr, "  gpr %u: %llx and %llx\n", r, (unsigned long long)a->v->gpr[r], (unsigned long long)b->v->gpr[r]);
    FILE *f = fopen("jit-random-failed.bin", "wb");
    if (f) {
        fwrite(program, 1, length, f);
        fclose(f);
    }
    fail();
}

static void run_both(struct guest *a, struct guest *b, bool wide, u64 s)
{
    static u8 x[0x40000], y[0x40000];
    load(a, wide, s);
    load(b, wide, s);
    enum run_result ra = a->engine->run(a->v), rb = b->engine->run(b->v);
    if (ra != rb)
        fail_program(a, b, s, "result");
    if (memcmp(a->v->gpr, b->v->gpr, sizeof(a->v->gpr)))
        fail_program(a, b, s, "register");
    if (a->v->rip != b->v->rip || a->v->aflags != b->v->aflags || a->v->rflags != b->v->rflags || a->v->icount != b->v->icount)
        fail_program(a, b, s, "end");
    if (memcmp(a->v->vec, b->v->vec, sizeof(a->v->vec)) || a->v->mxcsr != b->v->mxcsr)
        fail_program(a, b, s, "vector");
    if (memcmp(&a->v->x87, &b->v->x87, sizeof(a->v->x87)))
        fail_program(a, b, s, "x87");
    physmap_read(a->pm, CODE, x, sizeof(x) - CODE);
    physmap_read(b->pm, CODE, y, sizeof(y) - CODE);
    if (memcmp(x, y, sizeof(x) - CODE))
        fail_program(a, b, s, "memory");
}

static void run_random(bool wide)
{
    struct guest a, b;
    guest_new(&a, &engine_interp);
    guest_new(&b, getenv("JIT_LOCKSTEP") ? &engine_lockstep : &engine_jit_eager);
    const char *fixed = getenv("JIT_SEED"), *many = getenv("JIT_PROGRAMS");
    unsigned programs = many ? (unsigned)atoi(many) : PROGRAMS, halted = 0;
    for (unsigned k = 0; k < programs; k++) {
        u64 s = fixed ? strtoull(fixed, NULL, 16) : 0x9e3779b97f4a7c15ull * (k + 1) + wide + (getenv("JIT_BASE") ? strtoull(getenv("JIT_BASE"), NULL, 16) : 0);
        random_state = s;
        make_program(a.v, wide);
        run_both(&a, &b, wide, s);
        halted += a.v->activity == ACTIVITY_HLT;
    }
    const struct jit_stats *js = jit_stats(b.v);
    print_message("%u programs, %u to their end; %llu instructions translated, %llu calls of bodies\n", programs, halted,
                  (unsigned long long)js->insns, (unsigned long long)js->calls);
    if (!fixed)
        assert_true(halted > programs / 2);
    guest_free(&a);
    guest_free(&b);
}

static void test_random_64(void **state) { run_random(true); }
static void test_random_32(void **state) { run_random(false); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_64),
        cmocka_unit_test(test_random_32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
