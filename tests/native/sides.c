/* The two sides of a case: the host CPU, and Nestor's decoder and handlers. */
#include "native_diff.h"

#include <cpuid.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUEST_CODE_PA 0x100000ull
#define GUEST_DATA_PA 0x110000ull
#define GUEST_RAM 0x400000ull

struct sides sides;

/* ---- native side ---- */

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

/* A jump to native_exit; its pointer is aligned, whatever EFLAGS.AC says. */
static void put_exit(u8 *p)
{
    unsigned pad = (unsigned)-(uintptr_t)(p + 6) & 7;
    store16(p, 0x25ff); /* jmp [rip + pad] */
    store32(p + 2, pad);
    store64(p + 6 + pad, (u64)(uintptr_t)native_exit);
}

void run_host(const struct testcase *t, struct state *out)
{
    static struct native_regs regs;
    const struct state *in = &t->in;
    u8 *code = (u8 *)CODE_AT;
    unsigned len = t->len;
    memcpy(sides.native_data, t->data, DATA_SIZE);
    memcpy(code, t->bytes, len);
    if (t->branch) {
        memset((void *)CODE_VA, 0xcc, 0x1000);
        memcpy(code, t->bytes, len);
    } else if (t->legacy) {
        static const u8 jump[] = { 0xea, (u8)EXIT_VA, (u8)(EXIT_VA >> 8), (u8)(EXIT_VA >> 16), (u8)(EXIT_VA >> 24), 0x33, 0 };
        memcpy(code + len, jump, sizeof(jump));
    } else {
        put_exit(code + len);
    }
    memcpy(regs.gpr, in->gpr, sizeof(regs.gpr));
    regs.rflags = in->rflags;
    regs.rip = CODE_AT;
    regs.legacy = t->legacy;
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

/* One instruction; a repeated string instruction may stop between iterations to look for events. */
static void step(struct vcpu *v, struct insn *i)
{
    u64 rip = v->rip;
    bool repeats = is_string(insn_row(i)) && (i->flags & (INSN_REP | INSN_REPNE));
    v->insn = i;
    for (unsigned rounds = 0; rounds < 100000; rounds++) {
        v->next_rip = (rip + i->len) & v->linear_mask;
        i->fn(v, i);
        if (v->next_rip != rip || !repeats)
            break;
    }
    v->rip = v->next_rip;
}

/* Linux' code segments. */
static void guest_mode(struct vcpu *v, bool legacy)
{
    if ((v->seg[SEG_CS].sel == 0x23) == legacy)
        return;
    v->seg[SEG_CS] = (struct segment){ .limit = 0xffffffff, .ar = legacy ? 0xc0fb : 0xa0fb, .sel = legacy ? 0x23 : 0x33 };
    cpu_mode_changed(v);
}

void run_guest(const struct testcase *t, struct state *out)
{
    struct vcpu *v = sides.v;
    static struct insn code[SEQUENCE_MAX];
    const struct state *in = &t->in;
    memcpy(sides.guest_data, t->data, DATA_SIZE);
    memcpy(sides.guest_code + (CODE_AT - CODE_VA), t->bytes, t->len);
    for (unsigned n = 0; n < t->count; n++) {
        code[n] = *case_insn(t, n);
        insn_bind(&code[n]);
    }
    guest_mode(v, t->legacy);
    memcpy(v->gpr, in->gpr, sizeof(v->gpr));
    bool ac = (v->rflags ^ in->rflags) & FL_AC;
    cpu_put_rflags(v, in->rflags);
    if (ac)
        cpu_flags_changed(v);
    memcpy(v->vec, in->vec, sizeof(in->vec));
    memcpy(v->k, in->k, sizeof(in->k));
    v->mxcsr = in->mxcsr;
    v->x87 = in->x87;
    raised.vector = -1;
    raised.error = 0;
    raised.cr2 = 0;
    v->rip = CODE_AT;
    if (setjmp(v->unwind) == 0) {
        if (t->too_long)
            __wrap_cpu_raise_error(v, VEC_GP, 0);
        for (unsigned n = 0; n < t->count; n++)
            step(v, &code[n]);
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

void die(const char *what)
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
    unsigned a, b, c, d;
    __cpuid(0, a, b, c, d);
    sides.amd = b == 0x68747541; /* "Auth" */
    struct error err;
    static u8 features[FEAT_COUNT];
    host_features(features);
    struct physmap *pm = physmap_new();
    if (!pm || physmap_add_ram(pm, 0, GUEST_RAM, "ram", &err) < 0)
        die("no guest memory");
    unsigned model = 0;
    while (model + 1 < cpu_model_count && (cpu_models[model]->vendor == VENDOR_AMD) != sides.amd)
        model++;
    struct cpu_config cfg = { .model = cpu_models[model], .features = features, .pm = pm, .tsc_hz = 1000000000 };
    sides.v = vcpu_new(&cfg, &err);
    if (!sides.v)
        die(err.text);
    sides.guest_code = physmap_ram(pm, GUEST_CODE_PA);
    sides.guest_data = physmap_ram(pm, GUEST_DATA_PA);
    memset(sides.guest_code, 0xcc, 0x1000);

    /* Four levels for the sandbox: PML4 at 1000, PDPT 2000, PD 3000, PT 4000 (2 MiB from CODE_VA). */
    store64(physmap_ram(pm, 0x1000), 0x2000 | 7);
    store64(physmap_ram(pm, 0x2000), 0x3000 | 7);
    store64(physmap_ram(pm, 0x3000) + 8 * (CODE_VA >> 21 & 511), 0x4000 | 7);
    u8 *pt = physmap_ram(pm, 0x4000);
    store64(pt + 8 * (CODE_VA >> 12 & 511), GUEST_CODE_PA | 0x67);
    for (unsigned n = 0; n < DATA_SIZE / PAGE_SIZE; n++)
        store64(pt + 8 * (((DATA_VA >> 12) & 511) + n), (GUEST_DATA_PA + n * PAGE_SIZE) | (DATA_VA + n * PAGE_SIZE < RO_VA ? 0x67 : 0x65));

    struct vcpu *v = sides.v;
    memcpy(v->features, features, sizeof(features));
    v->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    v->cr3 = 0x1000;
    v->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
    v->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    v->xcr0 = nat_mask;
    _Alignas(16) static u8 image[512];
    __asm__ volatile("fxsave64 %0" : "=m"(image));
    v->mxcsr_mask = load32(image + 28) ? load32(image + 28) : 0xffbf;
    for (unsigned s = 0; s < SEG_COUNT; s++)
        v->seg[s] = (struct segment){ .limit = 0xffffffff, .ar = 0xc0f3, .sel = s == SEG_FS || s == SEG_GS ? 0 : 0x2b };
    v->seg[SEG_CS] = (struct segment){ .limit = 0xffffffff, .ar = 0xa0fb, .sel = 0x33 };
    v->seg[SEG_LDTR] = (struct segment){ .ar = AR_UNUSABLE };
    v->seg[SEG_TR] = (struct segment){ .limit = 0x65, .ar = 0x8b }; /* no I/O permission bitmap */
    v->cpl = 3;
    cpu_put_rflags(v, 0x202);
    cpu_mode_changed(v);
    cpu_set_cpl(v, 3);
    cpu_mode_changed(v);
    v->misc_enable |= BIT64(2); /* FOP of every instruction, to compare it where the host keeps one */
}

/* Maps @size bytes of @fd at @va, or anywhere when that is 0. */
static void *map_native(u64 va, u64 size, int prot, int fd, u64 offset)
{
    int flags = (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | (va ? MAP_FIXED_NOREPLACE : 0) | MAP_POPULATE;
    void *p = mmap((void *)va, size, prot, flags, fd, (off_t)offset);
    if (p == MAP_FAILED || (va && p != (void *)va))
        die("cannot map the sandbox");
    return p;
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
    map_native(CODE_VA, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC, -1, 0);
    memset((void *)CODE_VA, 0xcc, 0x1000);
    put_exit(map_native(EXIT_VA, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC, -1, 0));
    int fd = memfd_create("data", 0);
    if (fd < 0 || ftruncate(fd, DATA_SIZE))
        die("cannot make the sandbox's memory");
    map_native(DATA_VA, RO_VA - DATA_VA, PROT_READ | PROT_WRITE, fd, 0);
    map_native(RO_VA, DATA_VA + DATA_SIZE - RO_VA, PROT_READ, fd, RO_VA - DATA_VA);
    sides.native_data = map_native(0, DATA_SIZE, PROT_READ | PROT_WRITE, fd, 0);
    close(fd);
    native_init();
}

void sides_init(void)
{
    setup_native();
    setup_guest();
}

