/*
 * The native differential test: random encodings of every row that user mode can execute, with random
 * operands, run on the host CPU and on Nestor's decoder and handlers; everything architectural must
 * come out the same: registers, flags, vectors, MXCSR, x87, memory, and the exception if there is one.
 *
 *   native_diff [--seed S] [--cases N] [--time SECONDS] [--row NAME] [--match PATTERN] [--case N] [--bytes HEX] [--list]
 *               [--plain]
 *
 * --match takes a pattern for the encoding column ('EVEX*'). --plain is for a host that is an emulator itself: prefix bits that
 * the processor ignores are set as assemblers do, vector indices stay below 16, and the element that a
 * vector access faults on may differ.
 *
 * A difference prints the command that runs this one case again. Rows that are not run are listed in
 * `excluded` with the reason; a row that is neither run nor listed fails the test.
 */
#include "cpu/borrow.h"
#include "cpu/cpu.h"
#include "cpu/isa/encode.h"
#include "cpu/models.h"
#include "mmu/physmap.h"
#include "native_run.h"

#include <cpuid.h>
#include <errno.h>
#include <fnmatch.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* ---- the sandbox: the same addresses natively and in the guest ---- */

#define CODE_VA 0x20000000ull
#define CODE_AT (CODE_VA + 0x800)  /* the instruction; int3 all around, so that near branches land */
#define DATA_VA 0x20010000ull      /* two pages to read and write, one to read, then nothing */
#define DATA_SIZE 0x3000ull
#define RO_VA (DATA_VA + 0x2000)
#define GUEST_CODE_PA 0x100000ull
#define GUEST_DATA_PA 0x110000ull
#define GUEST_RAM 0x400000ull
#define POOL_SIZE 0x20000u

struct state {
    u64 gpr[16];
    u64 rip, rflags;
    union vec_reg vec[32];
    u64 k[8];
    u32 mxcsr;
    struct x87 x87;
    int vector; /* -1: none */
    u32 error;
    u64 cr2;
};

/* ---- native side ---- */

#define VECTORS (nat_mask & XCR0_HI16_ZMM ? 32u : 16u)
#define LANES (nat_mask & XCR0_ZMM_HI256 ? 8u : nat_mask & XCR0_AVX ? 4u : 2u) /* quadwords of a vector register */

/* Where a component is in the image, as this host says. */
static unsigned component_at(unsigned number)
{
    static unsigned at[8];
    unsigned a, c, d;
    if (!at[number])
        __cpuid_count(0xd, number, a, at[number], c, d);
    return at[number];
}

static void xsave_to_state(const u8 *x, struct state *s)
{
    u64 bv = load64(x + 512);
    bool x87 = bv & 1, sse = bv & 2, avx = bv & 4;
    memset(&s->x87, 0, sizeof(s->x87));
    s->x87.fcw = x87 ? load16(x) : 0x37f;
    if (x87) {
        s->x87.fsw = load16(x + 2);
        s->x87.ftw = x[4];
        s->x87.fop = load16(x + 6);
        s->x87.fip = load64(x + 8);
        s->x87.fdp = load64(x + 16);
        for (unsigned n = 0; n < 8; n++)
            memcpy(s->x87.st[n], x + 32 + 16 * n, 10);
    }
    s->mxcsr = load32(x + 24);
    memset(s->vec, 0, sizeof(s->vec));
    for (unsigned n = 0; n < 16; n++) {
        if (sse)
            memcpy(s->vec[n].b, x + 160 + 16 * n, 16);
        if (avx)
            memcpy(s->vec[n].b + 16, x + 576 + 16 * n, 16);
        if (bv & XCR0_ZMM_HI256)
            memcpy(s->vec[n].b + 32, x + component_at(6) + 32 * n, 32);
        if (bv & XCR0_HI16_ZMM)
            memcpy(s->vec[16 + n].b, x + component_at(7) + 64 * n, 64);
    }
    memset(s->k, 0, sizeof(s->k));
    if (bv & XCR0_OPMASK)
        memcpy(s->k, x + component_at(5), sizeof(s->k));
}

static void state_to_xsave(const struct state *s, u8 *x)
{
    memset(x, 0, NATIVE_XSAVE);
    store16(x, s->x87.fcw);
    store16(x + 2, s->x87.fsw);
    x[4] = s->x87.ftw;
    store32(x + 24, s->mxcsr);
    for (unsigned n = 0; n < 8; n++)
        memcpy(x + 32 + 16 * n, s->x87.st[n], 10);
    for (unsigned n = 0; n < 16; n++) {
        memcpy(x + 160 + 16 * n, s->vec[n].b, 16);
        memcpy(x + 576 + 16 * n, s->vec[n].b + 16, 16);
        if (nat_mask & XCR0_HI16_ZMM) {
            memcpy(x + component_at(6) + 32 * n, s->vec[n].b + 32, 32);
            memcpy(x + component_at(7) + 64 * n, s->vec[16 + n].b, 64);
        }
    }
    if (nat_mask & XCR0_OPMASK)
        memcpy(x + component_at(5), s->k, sizeof(s->k));
    store64(x + 512, nat_mask);
}

static void run_host(const struct state *in, struct state *out, const u8 *bytes, unsigned len, bool branch)
{
    static struct native_regs regs;
    u8 *code = (u8 *)CODE_AT;
    memcpy(code, bytes, len);
    if (branch) {
        memset((void *)CODE_VA, 0xcc, 0x1000);
        memcpy(code, bytes, len);
    } else {
        static const u8 jump[] = { 0xff, 0x25, 0, 0, 0, 0 }; /* jmp [rip] */
        memcpy(code + len, jump, 6);
        store64(code + len + 6, (u64)(uintptr_t)native_exit);
    }
    memcpy(regs.gpr, in->gpr, sizeof(regs.gpr));
    regs.rflags = in->rflags;
    regs.rip = CODE_AT;
    state_to_xsave(in, regs.xsave);
    native_run(&regs, CODE_AT + len);
    memset(code, 0xcc, len + 32);
    memset(out, 0, sizeof(*out));
    memcpy(out->gpr, regs.gpr, sizeof(out->gpr));
    out->rflags = regs.rflags;
    out->rip = regs.rip;
    out->vector = regs.vector;
    out->error = regs.error;
    out->cr2 = regs.cr2;
    xsave_to_state(regs.xsave, out);
}

/* ---- Nestor's side ---- */

static struct vcpu *vcpu;
static struct physmap *pm;
static u8 *guest_code, *guest_data;
static struct { int vector; u32 error; u64 cr2; } raised;

/* The test links with --wrap for these: an exception ends the case instead of being delivered. */
void __wrap_cpu_raise(struct vcpu *v, unsigned vector) __attribute__((noreturn));
void __wrap_cpu_raise_error(struct vcpu *v, unsigned vector, u32 error) __attribute__((noreturn));
void __wrap_cpu_raise_pf(struct vcpu *v, gva_t la, u32 error) __attribute__((noreturn));
void __wrap_cpu_raise_walk(struct vcpu *v, gva_t la, u32 access, const struct walk *w) __attribute__((noreturn));
void __wrap_cpu_raise_db(struct vcpu *v, u64 dr6) __attribute__((noreturn));

void __wrap_cpu_raise_error(struct vcpu *v, unsigned vector, u32 error)
{
    raised.vector = (int)vector;
    raised.error = error;
    longjmp(v->unwind, 1);
}
void __wrap_cpu_raise(struct vcpu *v, unsigned vector) { __wrap_cpu_raise_error(v, vector, 0); }
void __wrap_cpu_raise_pf(struct vcpu *v, gva_t la, u32 error)
{
    raised.cr2 = la;
    __wrap_cpu_raise_error(v, VEC_PF, error);
}
void __wrap_cpu_raise_walk(struct vcpu *v, gva_t la, u32 access, const struct walk *w) { __wrap_cpu_raise_pf(v, la, w->error_code); }
void __wrap_cpu_raise_db(struct vcpu *v, u64 dr6) { __wrap_cpu_raise_error(v, VEC_DB, 0); }

static bool is_string(const struct insn_row *row)
{
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].kind == OPND_STR_SRC || row->opnd[n].kind == OPND_STR_DST)
            return true;
    return false;
}

static void run_guest(const struct state *in, struct state *out, const struct insn *decoded)
{
    struct vcpu *v = vcpu;
    static struct insn i;
    i = *decoded;
    memcpy(v->gpr, in->gpr, sizeof(v->gpr));
    cpu_put_rflags(v, in->rflags);
    memcpy(v->vec, in->vec, sizeof(in->vec));
    memcpy(v->k, in->k, sizeof(in->k));
    v->mxcsr = in->mxcsr;
    v->x87 = in->x87;
    v->insn = &i;
    raised.vector = -1;
    raised.error = 0;
    raised.cr2 = 0;
    v->rip = CODE_AT;
    insn_bind(&i);
    if (setjmp(v->unwind) == 0) {
        for (unsigned rounds = 0; rounds < 100000; rounds++) {
            v->next_rip = (CODE_AT + i.len) & v->linear_mask;
            i.fn(v, &i);
            v->rip = v->next_rip;
            /* A repeated string instruction may stop between iterations to look for events. */
            if (v->rip != CODE_AT || !is_string(insn_row(&i)) || !(i.flags & (INSN_REP | INSN_REPNE)))
                break;
        }
    } else {
        v->rip = CODE_AT;
    }
    memset(out, 0, sizeof(*out));
    memcpy(out->gpr, v->gpr, sizeof(out->gpr));
    out->rip = v->rip;
    out->rflags = cpu_rflags(v);
    memcpy(out->vec, v->vec, sizeof(out->vec));
    memcpy(out->k, v->k, sizeof(out->k));
    out->mxcsr = v->mxcsr;
    out->x87 = v->x87;
    out->vector = raised.vector;
    out->error = raised.error;
    out->cr2 = raised.cr2;
}

static void die(const char *what)
{
    fprintf(stderr, "native_diff: %s\n", what);
    exit(2);
}

/* Features: what this host has. Nestor's models offer less; the handlers are tested all the same. */
static void host_features(u8 *features)
{
    memset(features, 0, FEAT_COUNT);
    static const struct { u16 feature; u32 leaf, subleaf; u8 reg, bit; } table[] = {
#define EAX 0
#define EBX 1
#define ECX 2
#define EDX 3
#define FEATURE(name, leaf, subleaf, reg, bit) { FEAT_##name, leaf, subleaf, reg, bit },
#include "cpu/features.def"
#undef FEATURE
    };
    for (unsigned n = 0; n < ARRAY_SIZE(table); n++) {
        unsigned r[4] = { 0 };
        if (__get_cpuid_count(table[n].leaf, table[n].subleaf, &r[0], &r[1], &r[2], &r[3]))
            features[table[n].feature] = r[table[n].reg] >> table[n].bit & 1;
    }
}

static void setup_guest(void)
{
    struct error err;
    static u8 features[FEAT_COUNT];
    host_features(features);
    pm = physmap_new();
    if (!pm || physmap_add_ram(pm, 0, GUEST_RAM, "ram", &err) < 0)
        die("no guest memory");
    struct cpu_config cfg = { .model = cpu_models[0], .features = features, .pm = pm, .tsc_hz = 1000000000 };
    vcpu = vcpu_new(&cfg, &err);
    if (!vcpu)
        die(err.text);
    guest_code = physmap_ram(pm, GUEST_CODE_PA);
    guest_data = physmap_ram(pm, GUEST_DATA_PA);

    /* Four levels for the sandbox: PML4 at 1000, PDPT 2000, PD 3000, PT 4000 (2 MiB from CODE_VA). */
    store64(physmap_ram(pm, 0x1000), 0x2000 | 7);
    store64(physmap_ram(pm, 0x2000), 0x3000 | 7);
    store64(physmap_ram(pm, 0x3000) + 8 * (CODE_VA >> 21 & 511), 0x4000 | 7);
    u8 *pt = physmap_ram(pm, 0x4000);
    store64(pt + 8 * (CODE_VA >> 12 & 511), GUEST_CODE_PA | 0x67);
    for (unsigned n = 0; n < DATA_SIZE / PAGE_SIZE; n++)
        store64(pt + 8 * (((DATA_VA >> 12) & 511) + n), (GUEST_DATA_PA + n * PAGE_SIZE) | (DATA_VA + n * PAGE_SIZE < RO_VA ? 0x67 : 0x65));

    struct vcpu *v = vcpu;
    memcpy(v->features, features, sizeof(features));
    v->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    v->cr3 = 0x1000;
    v->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
    v->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    v->xcr0 = nat_mask;
    _Alignas(16) static u8 image[512];
    __asm__ volatile("fxsave64 %0" : "=m"(image));
    v->mxcsr_mask = load32(image + 28) ? load32(image + 28) : 0xffbf;
    for (unsigned s = 0; s < SEG_COUNT; s++)
        v->seg[s] = (struct segment){ .limit = 0xffffffff, .ar = 0xc0f3, .sel = 0x2b };
    v->seg[SEG_CS] = (struct segment){ .limit = 0xffffffff, .ar = 0xa0fb, .sel = 0x33 };
    v->seg[SEG_LDTR] = (struct segment){ .ar = AR_UNUSABLE };
    v->seg[SEG_TR] = (struct segment){ .limit = 0x67, .ar = 0x8b };
    v->cpl = 3;
    cpu_put_rflags(v, 0x202);
    cpu_mode_changed(v);
    cpu_set_cpl(v, 3);
    cpu_mode_changed(v);
    v->misc_enable |= BIT64(2); /* FOP of every instruction, to compare it where the host keeps one */
}

static void map_native(u64 va, u64 size, int prot)
{
    if (mmap((void *)va, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (void *)va)
        die("cannot map the sandbox");
}

static void setup_native(void)
{
    unsigned a, b, c, d;
    __cpuid(1, a, b, c, d);
    if (!(c & BIT(27)))
        die("the host has no XSAVE");
    u32 lo, hi;
    __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    nat_mask = lo & (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM);
    map_native(CODE_VA, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC);
    memset((void *)CODE_VA, 0xcc, 0x1000);
    map_native(DATA_VA, DATA_SIZE, PROT_READ | PROT_WRITE);

    native_init();
}

/* ---- random ---- */

static u64 rng_state;
static u64 rnd(void)
{
    u64 z = (rng_state += 0x9e3779b97f4a7c15ull); /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
static u64 rnd_below(u64 n) { return rnd() % n; }
static bool chance(unsigned percent) { return rnd_below(100) < percent; }

static u64 rnd_double(void)
{
    static const u64 special[] = {
        0, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000, 0xfff0000000000000,
        0x7ff8000000000000, 0xfff8000000000000, 0x7ff4000000000000, 0x7fefffffffffffff, 0x0010000000000000,
        0x000fffffffffffff, 1, 0x8000000000000001, 0x43e0000000000000, 0xc3e0000000000000, 0x41dfffffffc00000,
        0x3fe0000000000000, 0x4008000000000000, 0x400921fb54442d18,
    };
    if (chance(40))
        return special[rnd_below(ARRAY_SIZE(special))];
    if (chance(30)) /* near the ends of the exponent range: overflow, underflow, denormals */
        return (rnd() & 0x800fffffffffffff) | (chance(50) ? rnd_below(60) : 0x7fe - rnd_below(60)) << 52;
    return (rnd() & 0x800fffffffffffff) | (0x3ff - 20 + rnd_below(40)) << 52;
}

static u32 rnd_float(void)
{
    static const u32 special[] = { 0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000,
                                   0x7fa00000, 0x7f7fffff, 0x00800000, 0x007fffff, 1, 0x80000001, 0x4f000000, 0xcf000000,
                                   0x3f000000, 0x40400000, 0x5f000000 };
    if (chance(40))
        return special[rnd_below(ARRAY_SIZE(special))];
    if (chance(30))
        return (u32)((rnd() & 0x807fffff) | (chance(50) ? rnd_below(30) : 0xfe - rnd_below(30)) << 23);
    return (u32)((rnd() & 0x807fffff) | (0x7f - 12 + rnd_below(24)) << 23);
}

static u64 rnd_int(void)
{
    static const u64 special[] = { 0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x10000,
                                   0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000,
                                   ~0ull, ~1ull, 0x5555555555555555, 0xaaaaaaaaaaaaaaaa };
    switch (rnd_below(6)) {
    case 0: return special[rnd_below(ARRAY_SIZE(special))];
    case 1: return rnd() >> rnd_below(64);
    case 2: return (u64)-(s64)(rnd() >> rnd_below(64));
    case 3: return rnd_below(256);
    }
    return rnd();
}

static u64 rnd_lane(void)
{
    switch (rnd_below(4)) {
    case 0: return rnd_int();
    case 1: return rnd_double();
    case 2: return rnd_float() | (u64)rnd_float() << 32;
    }
    return rnd();
}

static void rnd_x87_reg(u8 *st)
{
    u64 m = rnd() | BIT64(63);
    u16 se = (u16)(0x3fff - 40 + rnd_below(80));
    switch (rnd_below(10)) {
    case 0: m = 0; se = 0; break;
    case 1: m = BIT64(63); break;
    case 2: m = BIT64(63); se = 0x7fff; break;                        /* infinity */
    case 3: m = BIT64(63) | rnd(); se = 0x7fff; break;                /* NaN, quiet or signalling */
    case 4: m = rnd() >> 1; se = 0; break;                            /* denormal */
    case 5: m = rnd(); se = (u16)(rnd() & 0x7fff); break;             /* anything, unsupported formats too */
    case 6: se = (u16)(chance(50) ? rnd_below(80) : 0x7ffe - rnd_below(80)); break;
    case 7: m = (rnd() >> rnd_below(63)) << 1 | BIT64(63); break;
    }
    if (chance(40))
        se |= 0x8000;
    memset(st, 0, 16);
    store64(st, m);
    store16(st + 8, se);
}

static u8 pool[POOL_SIZE];

static void fill_pool(void)
{
    rng_state = 0x1234567;
    for (unsigned n = 0; n < POOL_SIZE; n += 8)
        store64(pool + n, rnd_lane());
}

static void rnd_state(struct state *s)
{
    memset(s, 0, sizeof(*s));
    for (unsigned n = 0; n < 16; n++)
        s->gpr[n] = rnd_int();
    for (unsigned n = 0; n < VECTORS; n++) {
        bool one_type = chance(30); /* lanes of one type make interesting vector operations */
        for (unsigned k = 0; k < LANES; k++)
            s->vec[n].q[k] = !one_type ? rnd_lane() : n & 1 ? rnd_double() : rnd_float() | (u64)rnd_float() << 32;
    }
    if (nat_mask & XCR0_OPMASK)
        for (unsigned n = 0; n < 8; n++)
            s->k[n] = chance(20) ? ~0ull : chance(10) ? 0 : chance(40) ? rnd() & rnd() & rnd() : rnd();
    s->rflags = 0x202 | (rnd() & FL_ARITH) | (chance(30) ? FL_DF : 0);
    s->mxcsr = 0x1f80;
    if (chance(50))
        s->mxcsr |= (u32)rnd() & 0xe07f;
    if (chance(25))
        s->mxcsr = (u32)rnd() & 0xffff;
    struct x87 *f = &s->x87;
    f->fcw = (u16)(0x37f & ~(chance(30) ? rnd() & 0x3f : 0));
    if (chance(50))
        f->fcw = (u16)((f->fcw & ~0xf00) | (rnd() & 0xf00));
    f->fsw = (u16)(rnd() & 0x7f7f);
    if (!chance(5)) /* usually nothing is pending */
        f->fsw &= (u16)(~0x3f | f->fcw);
    if (f->fsw & ~f->fcw & 0x3f)
        f->fsw |= 0x8080;
    f->ftw = (u8)(chance(70) ? 0xff : rnd());
    for (unsigned n = 0; n < 8; n++) {
        rnd_x87_reg(f->st[n]);
        if (chance(10)) {
            store64(f->st[n], rnd_lane()); /* as MMX leaves it */
            store16(f->st[n] + 8, 0xffff);
        }
    }
}

/* ---- what is run ---- */

static const struct { const char *mnemonic, *why; } excluded[] = {
    { "UD", "no instruction" },
    { "SYSCALL", "enters the host's kernel" }, { "SYSENTER", "enters the host's kernel" },
    { "SYSRET", "privileged" }, { "SYSEXIT", "privileged" }, { "RSM", "outside SMM always #UD" },
    { "INT", "enters the host's kernel" }, { "INT3", "ends native cases" }, { "INTO", "ends native cases" }, { "INT1", "debug trap" },
    { "IRET", "segments" }, { "IRETD", "segments" }, { "IRETQ", "segments" }, { "IRETW", "segments" },
    { "RDTSC", "time differs" }, { "RDTSCP", "time differs" }, { "RDPMC", "counters differ" },
    { "RDRAND", "random" }, { "RDSEED", "random" }, { "CPUID", "the model's, not the host's" }, { "RDPID", "host's TSC_AUX" },
    { "RDPRU", "counters differ" },
    { "XGETBV", "the host's XCR0" }, { "RDPKRU", "the host's keys" }, { "WRPKRU", "the host's keys" },
    { "IN", "ports" }, { "OUT", "ports" }, { "INS", "ports" }, { "OUTS", "ports" }, { "INSB", "ports" }, { "INSD", "ports" },
    { "INSW", "ports" }, { "OUTSB", "ports" }, { "OUTSW", "ports" }, { "OUTSD", "ports" },
    { "CLI", "IOPL" }, { "STI", "IOPL" }, { "POPF", "host's system flags" }, { "POPFQ", "host's system flags" },
    { "POPFD", "host's system flags" }, { "PUSHF", "host's system flags" }, { "PUSHFQ", "host's system flags" },
    { "PUSHFD", "host's system flags" },
    { "CALL_FAR", "segments" }, { "JMP_FAR", "segments" }, { "RET_FAR", "segments" }, { "RETF", "segments" },
    { "LAR", "the host's GDT" }, { "LSL", "the host's GDT" }, { "VERR", "the host's GDT" }, { "VERW", "the host's GDT" },
    { "LSS", "segments" }, { "LFS", "segments" }, { "LGS", "segments" }, { "LES", "segments" }, { "LDS", "segments" },
    { "SGDT", "UMIP" }, { "SIDT", "UMIP" }, { "SLDT", "UMIP" }, { "STR", "UMIP" }, { "SMSW", "UMIP" },
    { "RDFSBASE", "the host's thread pointer" }, { "WRFSBASE", "the host's thread pointer" },
    { "RDGSBASE", "the host's thread pointer" }, { "WRGSBASE", "the host's thread pointer" },
    { "UMONITOR", "waits" }, { "UMWAIT", "waits" }, { "TPAUSE", "waits" }, { "MONITORX", "waits" }, { "MWAITX", "waits" },
    { "VMCALL", "hypervisor" }, { "VMMCALL", "hypervisor" }, { "VMFUNC", "hypervisor" },
    { "SKINIT", "hypervisor" }, { "STGI", "hypervisor" }, { "CLGI", "hypervisor" },
    { "CLZERO", "line size at the host's mercy" },
};

static bool amd_host(void)
{
    unsigned a, b, c, d;
    __cpuid(0, a, b, c, d);
    return b == 0x68747541; /* "Auth" */
}

static const char *why_excluded(const struct insn_row *row)
{
    for (unsigned n = 0; n < ARRAY_SIZE(excluded); n++)
        if (strcmp(row->mnemonic, excluded[n].mnemonic) == 0)
            return excluded[n].why;
    if (row->map == 1 && row->opcode == 0x0d && strstr(row->encoding, "mod=3") && amd_host())
        return "#UD on AMD processors, reserved NOP on Intel's";
    if (row->checks & CHK_CPL0)
        return "privileged";
    if (row->checks & (CHK_VMXON | CHK_SVME))
        return "hypervisor";
    if ((row->checks & CHK_NO64) || strstr(row->encoding, " a16"))
        return "not in 64-bit mode";
    for (unsigned n = 0; n < row->nopnd; n++)
        switch (row->opnd[n].kind) {
        case OPND_SEG_REG: case OPND_SEG_FIXED: return "segments";
        case OPND_CR: case OPND_DR: return "privileged";
        case OPND_FARPTR: return "segments";
        }
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].size == OPSZ_P)
            return "segments";
    if ((row->feature && !vcpu->features[row->feature]) || (row->feature2 && !vcpu->features[row->feature2]))
        return "the host lacks it";
    return NULL;
}

static bool starts(const struct insn_row *row, const char *prefix) { return strncmp(row->mnemonic, prefix, strlen(prefix)) == 0; }

static bool is_branch(const struct insn_row *row)
{
    return (row->map < 2 && !row->vex) && (starts(row, "J") || starts(row, "CALL") || starts(row, "RET") || starts(row, "LOOP"));
}

/* ---- one case ---- */

struct testcase {
    u8 bytes[32];
    struct insn insn;
    struct state in;
    u64 target;   /* address of the memory operand */
    bool branch;
};

static const struct decode_ctx *ctx64(void)
{
    static struct decode_ctx ctx;
    ctx = (struct decode_ctx){ .mode = CODE_64, .features = vcpu->features };
    return &ctx;
}

static bool plain;

static void random_encoding(const struct insn_row *row, u8 *p)
{
    static const u8 mandatory[] = { 0, 0x66, 0xf3, 0xf2 };
    const u8 *end = p + 32;
    bool string = is_string(row), branch = is_branch(row);
    if (!row->vex) {
        if (row->checks & CHK_LOCK && chance(30))
            *p++ = 0xf0;
        if (!branch && chance(20))
            *p++ = 0x66;
        if (string && chance(60))
            *p++ = chance(50) ? 0xf3 : 0xf2;
        if (chance(5))
            *p++ = 0x67;
        if (chance(5))
            *p++ = (u8[]){ 0x26, 0x2e, 0x36, 0x3e }[rnd_below(4)];
        if (row->pp)
            *p++ = mandatory[row->pp];
        if (chance(60))
            *p++ = (u8)(0x40 | (rnd() & 15));
        if (row->map)
            *p++ = 0x0f;
        if (row->map == 2)
            *p++ = 0x38;
        else if (row->map == 3)
            *p++ = 0x3a;
    } else if (row->vex == 2) {
        if (chance(5))
            *p++ = 0x67;
        const char *e = row->encoding;
        bool vvvv = false;
        for (unsigned n = 0; n < row->nopnd; n++)
            vvvv |= row->opnd[n].kind == OPND_VEC_VVVV;
        vvvv &= !chance(2);
        u8 w = strstr(e, ".W1") ? 0x80 : strstr(e, ".W0") ? 0 : (u8)rnd() & 0x80;
        u8 length = strstr(e, ".128.") ? 0 : strstr(e, ".256.") ? 0x20 : strstr(e, ".512.") ? 0x40 : (u8)(rnd_below(3) << 5);
        if (chance(15))
            length = (u8)rnd() & 0x60;
        if (plain && strstr(e, ".WIG"))
            w = 0;
        bool rm_field = true; /* EVEX.X extends ModRM.rm or is the index's */
        for (unsigned n = 0; n < row->nopnd; n++)
            rm_field &= row->opnd[n].kind != OPND_GPR_RM && row->opnd[n].kind != OPND_MASK_RM;
        *p++ = 0x62;
        *p++ = (u8)((rnd() & 0xf0) | (plain && !rm_field ? 0x60 : 0) | row->map);
        *p++ = (u8)(w | (vvvv ? rnd() & 0x78 : 0x78) | 4 | row->pp);
        *p++ = (u8)(length | (vvvv || (strstr(e, "vsib") && !plain) ? rnd() & 8 : 8) | (chance(25) ? 0x10 : 0) |
                    (chance(60) ? rnd() & (chance(40) ? 0x87 : 7) : 0));
    } else {
        if (chance(5))
            *p++ = 0x67;
        u8 vvvv = chance(50) ? 15 : (u8)(rnd() & 15);
        if (row->map == 1 && chance(40)) {
            *p++ = 0xc5;
            *p++ = (u8)((rnd() & 0x84) | vvvv << 3 | row->pp);
        } else {
            *p++ = 0xc4;
            *p++ = (u8)((rnd() & 0xe0) | row->map);
            *p++ = (u8)((rnd() & 0x84) | vvvv << 3 | row->pp);
        }
    }
    u8 opcode = row->opcode;
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].kind == OPND_GPR_OP)
            opcode = (u8)((opcode & ~7) | (rnd() & 7));
    *p++ = opcode;
    u8 modrm = (u8)rnd();
    if (strstr(row->encoding, "mod=3") || chance(40))
        modrm |= 0xc0;
    const char *digit = strstr(row->encoding, " /");
    if (row->vex == 2 && digit && digit[2] != 'r')
        modrm = (u8)((modrm & 0xc7) | (digit[2] - '0') << 3);
    *p++ = modrm;
    while (p < end)
        *p++ = chance(70) ? (u8)rnd() : (u8)(rnd_below(4) - 2);
}

static u64 pick_target(unsigned align_hint)
{
    u64 at;
    switch (rnd_below(24)) {
    case 0: at = DATA_VA + 0x1000 - rnd_below(70); break;        /* across two pages */
    case 1: at = RO_VA - rnd_below(70); break;                   /* into the read-only page */
    case 2: at = RO_VA + rnd_below(0x1000); break;
    case 3: at = DATA_VA + DATA_SIZE - rnd_below(70); break;     /* off the end */
    case 4: at = DATA_VA - rnd_below(70); break;                 /* before the start */
    case 5: at = DATA_VA + DATA_SIZE + 64 * rnd_below(40); break; /* nothing there */
    default: at = DATA_VA + 0x400 + rnd_below(0x1800); break;
    }
    if (chance(70))
        at &= ~(u64)(align_hint - 1);
    return at;
}

/* Makes the memory operand's address @target by choosing registers or patching the displacement. */
static bool aim(struct testcase *t, u64 target)
{
    struct insn *i = &t->insn;
    const struct insn_row *row = insn_row(i);
    u64 *g = t->in.gpr;
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].kind == OPND_MOFFS) {
            unsigned size = i->adsize;
            store_le(t->bytes + i->len - size, target, size);
            return true;
        }
    bool vsib = i->flags & INSN_VSIB;
    u64 index = 0;
    if (!vsib && i->index != REG_NONE) {
        if (i->index == i->base)
            return false;
        g[i->index] = chance(80) ? rnd_below(256) : rnd_int();
        index = g[i->index] << i->scale;
    }
    if (i->base < 16) {
        g[i->base] = target - index - (u64)i->disp;
        if (i->adsize == 4)
            g[i->base] = (u32)g[i->base] | (rnd() << 32);
        return true;
    }
    /* No base: the 4-byte displacement is the last thing before the immediate. */
    unsigned at = 0;
    for (unsigned n = 1; n + 4 <= i->len; n++)
        if ((s64)(s32)load32(t->bytes + n) == i->disp)
            at = n;
    if (!at)
        return false;
    u64 disp = i->base == REG_RIP ? target - (CODE_AT + i->len) : target - index;
    if (!vsib && i->index != REG_NONE && (s64)(s32)disp != (s64)disp) {
        g[i->index] = 0;
        disp = target;
    }
    store32(t->bytes + at, (u32)disp);
    return true;
}

static bool decode(struct testcase *t)
{
    memset(&t->insn, 0, sizeof(t->insn));
    return insn_decode(ctx64(), t->bytes, 15, &t->insn) == DECODE_OK;
}

static u64 landing(void) { return CODE_VA + 0x40 + rnd_below(0x700); }

/* Operands that name addresses, counts or targets without a memory operand of their own. */
static void set_the_stage(struct testcase *t)
{
    const struct insn_row *row = insn_row(&t->insn);
    const struct insn *i = &t->insn;
    u64 *g = t->in.gpr;
    bool mem = i->flags & INSN_MEM;

    if (i->base != RSP && !(mem && i->index == RSP))
        g[RSP] = chance(90) ? DATA_VA + 0x800 + 8 * rnd_below(0x80) : pick_target(8);
    if (is_string(row)) {
        u64 rsi = pick_target(8), rdi = pick_target(8);
        if (chance(70)) {
            rsi = DATA_VA + 0x400 + rnd_below(0x800);
            rdi = DATA_VA + 0xc00 + rnd_below(0x800);
        }
        g[RSI] = rsi;
        g[RDI] = rdi;
        g[RCX] = rnd_below(40);
        if (i->adsize == 4 && chance(50)) {
            g[RSI] |= rnd() << 32;
            g[RDI] |= rnd() << 32;
            g[RCX] |= rnd() << 32;
        }
        memcpy((void *)DATA_VA, (void *)(DATA_VA + 0x800), 0x100);
    }
    if (starts(row, "XLAT")) {
        g[RBX] = pick_target(1) - (g[RAX] & 0xff);
    }
    if (starts(row, "MASKMOV") || starts(row, "VMASKMOVDQU"))
        g[RDI] = DATA_VA + 0x400 + rnd_below(0x1800); /* which masked-out bytes may fault is the processor's own choice */
    if (starts(row, "LEAVE") || starts(row, "ENTER"))
        g[RBP] = DATA_VA + 0x800 + 8 * rnd_below(0x100);
    if (row->map == 0 && (row->opcode == 0xe2 || row->opcode == 0xe1 || row->opcode == 0xe0) && chance(50))
        g[RCX] = rnd_below(3);
    if ((i->flags & INSN_VSIB) != 0) {
        union vec_reg *x = &t->in.vec[i->index];
        bool qword = row->opcode & 1;
        for (unsigned n = 0; n < 2 * LANES; n++)
            x->d[n] = qword && (n & 1) ? 0 : (u32)rnd_below(200);
    }
    /* BT m, r: the register reaches beyond the operand. */
    if (mem && starts(row, "BT") && insn_reg_is_operand(i) && i->reg != i->base && i->reg != i->index)
        g[i->reg] = (u64)((s64)rnd_below(4096) - 2048);
    if (starts(row, "DIV") || starts(row, "IDIV")) { /* half of them fit */
        if (chance(60) && i->base != RDX && i->index != RDX)
            g[RDX] = chance(50) ? 0 : rnd_below(8);
        if (chance(30) && i->base != RAX && i->index != RAX)
            g[RAX] &= 0xfff;
    }
    if (t->branch && !starts(row, "J") && !starts(row, "LOOP")) {
        if (starts(row, "RET"))
            for (unsigned n = 0; n < 8; n++)
                if (g[RSP] >= DATA_VA && g[RSP] + 8 <= DATA_VA + DATA_SIZE)
                    store64((void *)g[RSP], landing());
    }
    if (t->branch && row->opcode == 0xff) {
        if (!mem)
            g[i->rm] = landing();
        else if (t->target >= DATA_VA && t->target + 8 <= DATA_VA + DATA_SIZE)
            store64((void *)t->target, landing());
    }
    /* XRSTOR and FXRSTOR: mostly acceptable images; PKRU and supervisor state stay out of it. */
    if (starts(row, "X") && (starts(row, "XSAVE") || starts(row, "XRSTOR"))) {
        g[RAX] &= ~(u64)XCR0_PKRU;
        g[RDX] = rnd_below(2);
    }
    if ((starts(row, "XRSTOR") || starts(row, "FXRSTOR")) && t->target >= DATA_VA && t->target + 1024 <= DATA_VA + DATA_SIZE) {
        u8 *x = (u8 *)t->target;
        if (chance(90))
            store32(x + 24, (u32)rnd() & 0xffff);
        memset(x + 6, 0, 18);
        x[1] &= 0x1f;
        store16(x + 2, (u16)(load16(x + 2) & 0x7f00));
        if (starts(row, "XRSTOR")) {
            memset(x + 512, 0, 64);
            store64(x + 512, rnd() & nat_mask);
            if (chance(40)) {
                store64(x + 520, BIT64(63) | load64(x + 512) | (rnd() & nat_mask));
                if (chance(20))
                    x[528 + rnd_below(48)] = 1;
            } else if (chance(10)) {
                x[520 + rnd_below(56)] = 1;
            }
        }
    }
    /* CVTPI2PS and CVTPI2PD from memory: processors differ in whether a pending #MF comes first. */
    if (starts(row, "CVTPI2P") && mem)
        t->in.x87.fsw &= (u16)~0x80bf;
    if (starts(row, "LDMXCSR") || starts(row, "VLDMXCSR"))
        if (t->target >= DATA_VA && t->target + 4 <= DATA_VA + DATA_SIZE && chance(80))
            store32((void *)t->target, (u32)rnd() & 0xffff);
}

static unsigned memory_align(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    if (starts(row, "XSAVE") || starts(row, "XRSTOR"))
        return 64;
    if (starts(row, "FXSAVE") || starts(row, "FXRSTOR"))
        return 16;
    for (unsigned n = 0; n < row->nopnd; n++)
        if (operand_bytes(i, n) >= 32)
            return operand_bytes(i, n);
    return 16;
}

/* Builds case number @n for @row; false when no encoding of it was found. */
static bool make_case(struct testcase *t, unsigned row_index, u64 seed, u64 n)
{
    const struct insn_row *row = &insn_rows[row_index];
    rng_state = seed * 0x9e3779b97f4a7c15ull ^ (n + 1) * 0xd1342543de82ef95ull;
    for (unsigned tries = 0; tries < 20000; tries++) {
        random_encoding(row, t->bytes);
        if (!decode(t) || t->insn.row != row_index)
            continue;
        rnd_state(&t->in);
        memcpy((void *)DATA_VA, pool + 8 * rnd_below((POOL_SIZE - DATA_SIZE) / 8), DATA_SIZE);
        t->branch = is_branch(row);
        t->target = pick_target(memory_align(&t->insn));
        if (chance(2))
            t->target ^= BIT64(47 + rnd_below(16)); /* not canonical, or nowhere */
        if (starts(row, "SHA")) /* AMD's SHA instructions take any alignment, the manual's row does not */
            t->target &= ~15ull;
        /* EDX:EAX choose the components, and must not choose PKRU, which is the host's own. */
        if ((starts(row, "XSAVE") || starts(row, "XRSTOR")) &&
            (t->insn.base == RAX || t->insn.index == RAX || t->insn.base == RDX || t->insn.index == RDX))
            continue;
        struct insn before = t->insn;
        if (t->insn.flags & INSN_MEM) {
            if (!aim(t, t->target) || !decode(t) || t->insn.row != row_index || t->insn.len != before.len)
                continue;
        }
        if (t->branch && row->nopnd && row->opnd[0].kind == OPND_REL) {
            s64 to = (s64)(t->insn.imm);
            if (to < -1500 || to > 1500) { /* the displacement is the last bytes of the instruction */
                store32(t->bytes + t->insn.len - 4, (u32)((s32)rnd_below(2800) - 1400));
                if (!decode(t) || t->insn.row != row_index)
                    continue;
                to = (s64)t->insn.imm;
                if (to < -1500 || to > 1500)
                    continue;
            }
            if (to >= -16 && to <= 40) /* not into itself */
                continue;
        }
        set_the_stage(t);
        return true;
    }
    return false;
}

/* ---- comparing ---- */

static char report[4096];
static void note(const char *fmt, ...) printf_like(1, 2);
static void note(const char *fmt, ...)
{
    size_t used = strlen(report);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(report + used, sizeof(report) - used, fmt, ap);
    va_end(ap);
}

static bool exact_undefined = true;

static bool all_above_zero(const union vec_reg *r) { return !(r->q[4] | r->q[5] | r->q[6] | r->q[7]); }

static bool compare(const struct testcase *t, const struct state *nat, const struct state *got, const u8 *native_data)
{
    static const char *const names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                           "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };
    const struct insn_row *row = insn_row(&t->insn);
    u64 flags = FL_ARITH | FL_DF;
    if (!exact_undefined)
        flags &= ~(u64)row->flags_undefined;
    bool big = false; /* areas of hundreds of bytes: which of their bytes faults first is the processor's own choice */
    for (unsigned n = 0; n < row->nopnd; n++)
        big |= row->opnd[n].size == OPSZ_BIG;
    /* Misaligned and not canonical at once: either fault may win. */
    bool either = (row->checks & CHK_ALIGN16) && nat->vector == VEC_GP && got->vector == VEC_SS;
    /* A branch that went to a place without code: the fault is the next instruction's. */
    bool landed = t->branch && nat->vector >= 0 && got->vector < 0 && nat->rip == got->rip;
    either |= big && nat->vector >= 0 && got->vector >= 0;
    /* PE with an unmasked underflow or overflow: see run_unmasked() in borrow.c. */
    u32 mxcsr_ignored = 0;
    if (nat->vector == VEC_XM && nat->mxcsr & ~(nat->mxcsr >> 7) & 0x18)
        mxcsr_ignored = 0x20;
    if (nat->vector == VEC_XM && row->map == 3 && (row->opcode == 0x40 || row->opcode == 0x41))
        mxcsr_ignored = 0x3f; /* DPPS, DPPD: each of the steps stops with its own exceptions */
    /* Addresses in the upper half are the host kernel's: whether something is mapped there is its secret. */
    u32 error_ignored = nat->cr2 >> 63;
    bool order = starts(row, "CMPS"); /* two reads in the processor's own order */
    report[0] = 0;
    if (big && nat->vector == VEC_PF && got->vector < 0 && starts(row, "XSAVE"))
        return true; /* the host touches parts of the area that nothing is stored to */
    if (either || landed)
        ;
    else if (nat->vector != got->vector)
        note("  exception: native %d, nestor %d\n", nat->vector, got->vector);
    else if (nat->vector >= 0) {
        if (!big && !order && (nat->vector == VEC_PF || nat->vector == VEC_GP) && (nat->error ^ got->error) & ~error_ignored)
            note("  error code: native %x, nestor %x\n", nat->error, got->error);
        /* Which of several selected elements faults first is the processor's own choice. */
        bool masked = row->vex == 2 && (t->insn.mask || plain) && (nat->cr2 ^ got->cr2) < 2 * PAGE_SIZE;
        if (!big && !order && !masked && nat->vector == VEC_PF && nat->cr2 != got->cr2)
            note("  cr2: native %llx, nestor %llx\n", (long long)nat->cr2, (long long)got->cr2);
    }
    for (unsigned n = 0; n < 16; n++)
        if (nat->gpr[n] != got->gpr[n])
            note("  %s: native %016llx, nestor %016llx (before %016llx)\n", names[n], (long long)nat->gpr[n], (long long)got->gpr[n],
                 (long long)t->in.gpr[n]);
    if (nat->rip != got->rip)
        note("  rip: native %llx, nestor %llx\n", (long long)nat->rip, (long long)got->rip);
    if ((nat->rflags ^ got->rflags) & flags)
        note("  flags: native %llx, nestor %llx (before %llx)\n", (long long)(nat->rflags & flags), (long long)(got->rflags & flags),
             (long long)(t->in.rflags & flags));
    for (unsigned n = 0; n < 32; n++)
        if (memcmp(&nat->vec[n], &got->vec[n], 64)) {
            int top = LANES > 4 || !all_above_zero(&got->vec[n]) ? 7 : 3;
            note("  %s%u: native", top == 7 ? "zmm" : "ymm", n);
            for (int k = top; k >= 0; k--)
                note(" %016llx", (long long)nat->vec[n].q[k]);
            note("\n        nestor");
            for (int k = top; k >= 0; k--)
                note(" %016llx", (long long)got->vec[n].q[k]);
            note("\n");
        }
    for (unsigned n = 0; n < 8; n++)
        if (nat->k[n] != got->k[n])
            note("  k%u: native %016llx, nestor %016llx (before %016llx)\n", n, (long long)nat->k[n], (long long)got->k[n],
                 (long long)t->in.k[n]);
    if ((nat->mxcsr ^ got->mxcsr) & ~mxcsr_ignored)
        note("  mxcsr: native %x, nestor %x (before %x)\n", nat->mxcsr, got->mxcsr, t->in.mxcsr);
    if (nat->x87.fcw != got->x87.fcw || nat->x87.fsw != got->x87.fsw || nat->x87.ftw != got->x87.ftw)
        note("  x87 fcw fsw ftw: native %04x %04x %02x, nestor %04x %04x %02x (before %04x %04x %02x)\n", nat->x87.fcw, nat->x87.fsw,
             nat->x87.ftw, got->x87.fcw, got->x87.fsw, got->x87.ftw, t->in.x87.fcw, t->in.x87.fsw, t->in.x87.ftw);
    for (unsigned n = 0; n < 8; n++)
        if (memcmp(nat->x87.st[n], got->x87.st[n], 10))
            note("  st%u: native %04x:%016llx, nestor %04x:%016llx\n", n, load16(nat->x87.st[n] + 8), (long long)load64(nat->x87.st[n]),
                 load16(got->x87.st[n] + 8), (long long)load64(got->x87.st[n]));
    /* The host keeps the pointers only while an exception is pending; what it keeps must agree. */
    if ((row->checks & CHK_X87) && nat->vector < 0 && (nat->x87.fsw & 0x80) && !(t->in.x87.fsw & 0x80) && nat->x87.fip) {
        if (nat->x87.fip != got->x87.fip)
            note("  fip: native %llx, nestor %llx\n", (long long)nat->x87.fip, (long long)got->x87.fip);
        if (nat->x87.fop != got->x87.fop)
            note("  fop: native %x, nestor %x\n", nat->x87.fop, got->x87.fop);
        if ((t->insn.flags & INSN_MEM) && nat->x87.fdp != got->x87.fdp)
            note("  fdp: native %llx, nestor %llx\n", (long long)nat->x87.fdp, (long long)got->x87.fdp);
    }
    for (unsigned n = 0; n < DATA_SIZE; n++)
        if (native_data[n] != guest_data[n]) {
            unsigned from = n & ~7u;
            note("  memory %llx: native %016llx, nestor %016llx\n", (long long)(DATA_VA + from), (long long)load64(native_data + from),
                 (long long)load64(guest_data + from));
            n = from + 7;
        }
    return report[0] == 0;
}

static void print_bytes(FILE *f, const u8 *p, unsigned len)
{
    for (unsigned n = 0; n < len; n++)
        fprintf(f, "%02x", p[n]);
}

/*
 * The encoder, for every row that may be re-emitted: other registers and another address in, and the
 * decoder must read the same instruction with just those.
 */
static bool check_encoder(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    if (row->jit != JIT_COPY || (i->flags & INSN_VSIB))
        return true;
    bool byte_reg = false, byte_rm = false, vec_reg = false;
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        byte_reg |= o->kind == OPND_GPR_REG && o->size == 1;
        byte_rm |= (o->kind == OPND_GPR_RM || o->kind == OPND_GPR_OP) && o->size == 1;
        vec_reg |= o->kind == OPND_MMX_REG || o->kind == OPND_MMX_RM;
    }
    struct encode_regs r = { .reg = (u8)rnd_below(vec_reg ? 8 : 16), .rm = (u8)rnd_below(vec_reg ? 8 : 16), .vvvv = (u8)rnd_below(16),
                             .is4 = (u8)rnd_below(16), .base = (u8)rnd_below(16), .index = REG_NONE };
    if (chance(30)) {
        r.index = (u8)rnd_below(16);
        r.scale = (u8)rnd_below(4);
        if (r.index == RSP)
            r.index = REG_NONE;
    }
    if (chance(70))
        r.disp = chance(50) ? (s8)rnd() : (s32)rnd();
    if (chance(20)) { /* high byte registers, with nothing that needs REX */
        r.high_reg = byte_reg;
        r.high_rm = byte_rm && !(i->flags & INSN_MEM);
        if (r.high_reg || r.high_rm)
            r = (struct encode_regs){ .reg = (u8)rnd_below(4), .rm = (u8)rnd_below(4), .base = (u8)rnd_below(8), .index = REG_NONE,
                                      .disp = r.disp, .high_reg = r.high_reg, .high_rm = r.high_rm };
    }
    u8 out[32] = { 0 };
    struct insn d = { 0 };
    unsigned len = insn_encode(i, &r, out);
    if (len == 0) {
        bool hopeless = r.high_reg || r.high_rm;
        for (unsigned n = 0; n < row->nopnd; n++)
            hopeless |= row->opnd[n].kind == OPND_MOFFS || row->opnd[n].kind == OPND_REL;
        if (!hopeless)
            note("  not encodable\n");
        return hopeless;
    }
    if (len > INSN_ENCODE_MAX - 1 || insn_decode(ctx64(), out, 15, &d) != DECODE_OK || d.row != i->row || d.len != len) {
        note("  re-encoded as ");
        for (unsigned n = 0; n < len; n++)
            note("%02x", out[n]);
        note(", which is %s (%u bytes)\n", insn_row(&d)->encoding, d.len);
        return false;
    }
    bool is4 = false;
    for (unsigned n = 0; n < row->nopnd; n++)
        is4 |= row->opnd[n].kind == OPND_VEC_IS4;
    bool ok = (is4 ? (d.imm >> 4 & 15) == r.is4 : d.imm == i->imm) && d.imm2 == i->imm2 && (d.opsize == i->opsize || insn_wide(&d) == insn_wide(i)) && d.vl == i->vl &&
              ((d.flags ^ i->flags) & (INSN_MEM | INSN_LOCK)) == 0;
    for (unsigned n = 0; n < row->nopnd; n++)
        switch (row->opnd[n].kind) {
        case OPND_GPR_REG:
            ok &= row->opnd[n].size == 1 ? d.reg8 == r.reg * 8 + r.high_reg : d.reg == r.reg;
            break;
        case OPND_GPR_RM: case OPND_GPR_OP:
            if (!(d.flags & INSN_MEM))
                ok &= row->opnd[n].size == 1 ? d.rm8 == r.rm * 8 + r.high_rm : d.rm == r.rm;
            break;
        case OPND_VEC_REG: case OPND_MMX_REG:
            ok &= d.reg == r.reg;
            break;
        case OPND_VEC_RM: case OPND_MMX_RM:
            if (!(d.flags & INSN_MEM))
                ok &= d.rm == r.rm;
            break;
        case OPND_VEC_VVVV: case OPND_GPR_VVVV:
            ok &= d.vvvv == r.vvvv;
            break;
        }
    if (d.flags & INSN_MEM)
        ok &= d.base == r.base && d.index == r.index && (r.index == REG_NONE || d.scale == r.scale) && d.disp == r.disp;
    if (!ok) {
        note("  re-encoded with other operands: ");
        for (unsigned n = 0; n < len; n++)
            note("%02x", out[n]);
        note("\n");
    }
    return ok;
}

static u64 faults[32];

/* Runs a made case on both sides. */
static bool run_case(struct testcase *t)
{
    static struct state nat, got;
    static u8 native_data[DATA_SIZE];
    memcpy(guest_data, (void *)DATA_VA, DATA_SIZE);
    memset(guest_code, 0xcc, 0x1000);
    memcpy(guest_code + (CODE_AT - CODE_VA), t->bytes, t->insn.len);
    /* The guest first: a crash of the native side then shows a state that made sense. */
    run_guest(&t->in, &got, &t->insn);
    if (mprotect((void *)RO_VA, 0x1000, PROT_READ))
        die("mprotect");
    run_host(&t->in, &nat, t->bytes, t->insn.len, t->branch);
    if (mprotect((void *)RO_VA, 0x1000, PROT_READ | PROT_WRITE))
        die("mprotect");
    memcpy(native_data, (void *)DATA_VA, DATA_SIZE);
    if (nat.vector >= 0)
        faults[nat.vector & 31]++;
    return compare(t, &nat, &got, native_data) && check_encoder(&t->insn);
}

int main(int argc, char **argv)
{
    static const struct option options[] = { { "seed", 1, 0, 's' }, { "cases", 1, 0, 'n' }, { "time", 1, 0, 't' }, { "row", 1, 0, 'r' },
                                             { "case", 1, 0, 'c' }, { "bytes", 1, 0, 'b' }, { "list", 0, 0, 'l' },
                                             { "max-failures", 1, 0, 'm' }, { "defined", 0, 0, 'd' },
                                             { "match", 1, 0, 'M' }, { "plain", 0, 0, 'p' }, { 0 } };
    u64 seed = 1, cases = ~0ull, only = ~0ull;
    double seconds = 20;
    const char *name = NULL, *hex = NULL, *match = NULL;
    unsigned max_failures = 20;
    bool list = false;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (o) {
        case 's': seed = strtoull(optarg, NULL, 0); break;
        case 'n': cases = strtoull(optarg, NULL, 0); seconds = 1e9; break;
        case 't': seconds = atof(optarg); break;
        case 'r': name = optarg; break;
        case 'c': only = strtoull(optarg, NULL, 0); break;
        case 'b': hex = optarg; break;
        case 'l': list = true; break;
        case 'm': max_failures = (unsigned)atoi(optarg); break;
        case 'd': exact_undefined = false; break;
        case 'M': match = optarg; break;
        case 'p': plain = true; break;
        default: return 2;
        }
    setup_native();
    setup_guest();
    fill_pool();

    unsigned *rows = calloc(insn_row_count, sizeof(*rows)), count = 0, left_out = 0;
    u32 *ran = calloc(insn_row_count, sizeof(*ran)), *missed = calloc(insn_row_count, sizeof(*missed)),
        *failed = calloc(insn_row_count, sizeof(*failed));
    for (unsigned r = 0; r < insn_row_count; r++) {
        const char *why = why_excluded(&insn_rows[r]);
        if (match && fnmatch(match, insn_rows[r].encoding, 0))
            continue;
        if (why)
            left_out++;
        else
            rows[count++] = r;
        if (list)
            printf("%-40s %-32s %s\n", insn_rows[r].operands, insn_rows[r].encoding, why ? why : "run");
    }
    if (list)
        return 0;
    if (!count) {
        printf("no row is run: %u left out with a reason\n", left_out);
        return 0;
    }

    static struct testcase t;
    unsigned failures = 0;
    u64 done = 0, encodings = 0;
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);

    if (hex) {
        for (u64 n = 0; n < (cases == ~0ull ? 1000 : cases) && failures < max_failures; n++) {
            memset(t.bytes, 0, sizeof(t.bytes));
            for (unsigned k = 0; k < 15 && hex[2 * k] && hex[2 * k + 1]; k++) {
                char pair[3] = { hex[2 * k], hex[2 * k + 1], 0 };
                t.bytes[k] = (u8)strtoul(pair, NULL, 16);
            }
            rng_state = seed * 977 + n;
            if (!decode(&t) || why_excluded(insn_row(&t.insn)))
                die("these bytes are not an instruction this test runs");
            rnd_state(&t.in);
            memcpy((void *)DATA_VA, pool + 8 * rnd_below((POOL_SIZE - DATA_SIZE) / 8), DATA_SIZE);
            t.branch = is_branch(insn_row(&t.insn));
            t.target = pick_target(memory_align(&t.insn));
            if ((t.insn.flags & INSN_MEM) && !aim(&t, t.target))
                continue;
            if (!decode(&t))
                continue;
            set_the_stage(&t);
            done++;
            if (!run_case(&t)) {
                failures++;
                printf("%s, state %llu:\n%s", insn_row(&t.insn)->mnemonic, (long long)n, report);
            }
        }
        printf("%llu states of %s, %u differ\n", (long long)done, insn_row(&t.insn)->mnemonic, failures);
        return failures != 0;
    }

    for (u64 n = only != ~0ull ? only : 0; done < cases; n++) {
        unsigned r = rows[n % count];
        if (only != ~0ull && n != only)
            break;
        if ((n & 63) == 0) {
            clock_gettime(CLOCK_MONOTONIC, &now);
            if (now.tv_sec - start.tv_sec + (now.tv_nsec - start.tv_nsec) / 1e9 > seconds)
                break;
        }
        if (name && strcasecmp(insn_rows[r].mnemonic, name) != 0) {
            if (n > 2ull * count && done == 0)
                die("no row of that name is run");
            continue;
        }
        if (failed[r] >= 2)
            continue;
        done++;
        if (!make_case(&t, r, seed, n)) {
            missed[r]++;
            continue;
        }
        encodings++;
        ran[r]++;
        if (run_case(&t))
            continue;
        failed[r]++;
        if (failures++ < max_failures) {
            printf("%s %s (%s): ", insn_rows[r].mnemonic, insn_rows[r].operands, insn_rows[r].encoding);
            print_bytes(stdout, t.bytes, t.insn.len);
            printf("\n  operand at %llx\n%s  again: native_diff --seed %llu --case %llu\n", (long long)t.target, report, (long long)seed, (long long)n);
            fflush(stdout);
        }
    }
    unsigned covered = 0, not_covered = 0;
    for (unsigned k = 0; k < count; k++) {
        if (ran[rows[k]]) {
            covered++;
        } else if (!name && only == ~0ull) {
            not_covered++;
            printf("never run: %s %s (%s)%s\n", insn_rows[rows[k]].mnemonic, insn_rows[rows[k]].operands, insn_rows[rows[k]].encoding,
                   missed[rows[k]] ? ": no encoding found" : "");
        }
    }
    struct borrow_stats bs = borrow_stats(vcpu);
    printf("%u rows run, %u not run, %u left out with a reason; %llu encodings with random operands; %u differ; faults:", covered,
           not_covered, left_out, (long long)encodings, failures);
    for (unsigned k = 0; k < 32; k++)
        if (faults[k])
            printf(" #%u:%llu", k, (long long)faults[k]);
    printf("; %u thunks, %zu bytes\n", bs.thunks, bs.code_bytes);
    return failures || not_covered;
}
