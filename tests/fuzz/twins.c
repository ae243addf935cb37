#include "twins.h"
#include "cpu/mem.h"
#include "cpu/models.h"
#include "mmu/mmu.h"

#include <stdio.h>
#include <stdlib.h>

#define PML4 0x1000u
#define PT TWIN_PT
#define GDT 0x5000u
#define TSS 0x5800u
#define IDT 0x6000u
#define HANDLERS 0x7100u
#define HANDLER_STACK 0xa000u

extern const u8 twin_long_stubs[], twin_long_end[], twin_legacy_stubs[], twin_legacy_end[], twin_real_handler[], twin_real_end[];

static void written(void *opaque, pa_t pa, size_t len)
{
    struct twin *g = opaque;
    if (g->engine->holds_code(g->v, pa))
        g->engine->code_written(g->v, pa, len);
    else if ((pa & ~PAGE_MASK) + len <= PAGE_SIZE) /* as machine.c does */
        physmap_clear_page_flag(g->pm, pa, PAGE_CODE);
    else
        g->engine->code_written(g->v, pa, len);
}

static u64 count(void *opaque) { return cpu_retired(opaque); }
static void due(void *opaque, u64 ns) { cpu_end_slice(opaque, ns ? ns : 1); }
static const struct clock_source source = {count, due};

static void twin_new(struct twin *g, const struct engine *engine)
{
    static u8 features[FEAT_COUNT];
    const struct cpu_model *model;
    struct error err;
    *g = (struct twin){.engine = engine, .pm = physmap_new(), .pio = pio_bus_new()};
    clock_init(&g->clock, CLOCK_ICOUNT);
    if (physmap_add_ram(g->pm, 0, TWIN_RAM, "RAM", &err) || cpu_model_parse("", &model, features, NULL, &err))
        panic("%s", err.text);
    struct cpu_config cfg = {.model = model, .features = features, .tsc_hz = 1000000000, .pm = g->pm, .pio = g->pio, .clock = &g->clock,
                             .nr_cpus = 1};
    g->v = vcpu_new(&cfg, &err);
    if (g->v)
        g->v->jit_options = (struct jit_options){.cache = 4 << 20, .heat = 1}; /* so that room has to be made, and what runs once is translated */
    if (!g->v || engine->attach(g->v))
        panic("twins: no processor");
    physmap_subscribe(g->pm, PAGE_CODE, written, g);
    g->ram = physmap_ram(g->pm, 0);
    clock_follow(&g->clock, &source, g->v);
}

void twins_new(struct twins *t, const struct engine *b)
{
    twin_new(&t->a, &engine_interp);
    twin_new(&t->b, b);
}

static void twin_free(struct twin *g)
{
    g->engine->detach(g->v);
    vcpu_free(g->v);
    physmap_free(g->pm);
    pio_bus_free(g->pio);
}

void twins_free(struct twins *t)
{
    twin_free(&t->a);
    twin_free(&t->b);
}

void twins_remap(struct twins *t, unsigned page, unsigned to)
{
    gva_t la = TWIN_ALIAS + TWIN_CODE + page * PAGE_SIZE;
    u8 entry[8];
    store64(entry, (TWIN_CODE + to * PAGE_SIZE) | 7);
    for (unsigned n = 0; n < 2; n++) {
        struct twin *g = n ? &t->b : &t->a;
        physmap_write(g->pm, PT + la / PAGE_SIZE * 8, entry, sizeof(entry));
        mmu_invlpg(g->v, la);
    }
}

/* ---- contents ---- */

static u64 descriptor(u32 ar) { return 0x0000ffffull | (u64)(ar & 0xff) << 40 | 0xfull << 48 | (u64)(ar >> 12 & 0xf) << 52; }

static bool is_long(enum twin_world world) { return world == TWIN_LONG || world == TWIN_SMAP; }

static void tables(u8 *m, enum twin_world world, u16 cs)
{
    static const struct { u16 sel; u16 ar; } segments[] = {
        {SEL_CODE64, 0xa09b}, {SEL_DATA, 0xc093}, {SEL_CODE32, 0xc09b}, {SEL_CODE16, 0x809b},
        {SEL_USER_CODE64, 0xa0fb}, {SEL_USER_CODE32, 0xc0fb}, {SEL_USER_DATA, 0xc0f3}, {SEL_USER_CODE16, 0x80fb},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(segments); n++)
        store64(m + GDT + (segments[n].sel & ~7u), descriptor(segments[n].ar));
    store64(m + GDT + SEL_CODE16, (descriptor(0x009b) & ~0xf00000000ffffull) | 0xd7ff | (u64)TWIN_CODE << 16); /* the limit is within a page */
    store64(m + GDT + SEL_DATA16, 0x0000ffffull | (u64)(TWIN_DATA + 0x40) << 16 | 0x93ull << 40); /* its end is within a page */
    store64(m + GDT + (SEL_BASED & ~7u), descriptor(0xc0f3) | 0x80ull << 16);
    store64(m + GDT + SEL_TSS, 0x67ull | (u64)TSS << 16 | 0x8bull << 40);
    store64(m + TSS + 4, HANDLER_STACK); /* RSP0, or ESP0 */
    if (!is_long(world))
        store32(m + TSS + 8, SEL_DATA);
    store64(m + PML4, 0x2007);
    store64(m + 0x2000, 0x3007);
    store64(m + 0x3000, PT | 7);
    for (unsigned page = 0; page < TWIN_RAM; page += PAGE_SIZE) {
        u64 flags = page == TWIN_READ_ONLY ? 5 : page == TWIN_ABSENT ? 6 : page == TWIN_SUPERVISOR ? 3 : 7;
        if (world == TWIN_SMAP && (page <= TWIN_DATA || page > TWIN_DATA + 0x3000))
            flags &= ~4ull;
        store64(m + PT + page / PAGE_SIZE * 8, page | flags);
        store64(m + PT + (page + TWIN_ALIAS) / PAGE_SIZE * 8, page | flags);
    }
    for (unsigned n = 0; n < 32; n++) {
        u32 at = HANDLERS + n * 16;
        u64 gate = (at & 0xffff) | (u64)(is_long(world) ? SEL_CODE64 : SEL_CODE32) << 16 | 0x8eull << 40 | (n == 3 || n == 4 ? 0x60ull << 40 : 0);
        if (is_long(world))
            store64(m + IDT + n * 16, gate);
        else if (world == TWIN_LEGACY)
            store64(m + IDT + n * 8, gate);
        else
            store32(m + n * 4, HANDLERS);
    }
    const u8 *from = is_long(world) ? twin_long_stubs : world == TWIN_LEGACY ? twin_legacy_stubs : twin_real_handler;
    const u8 *to = is_long(world) ? twin_long_end : world == TWIN_LEGACY ? twin_legacy_end : twin_real_end;
    memcpy(m + HANDLERS, from, (size_t)(to - from));
    store32(m + TWIN_RECOVER, (world == TWIN_REAL || cs == SEL_CODE16 ? 0 : TWIN_CODE) + TWIN_CODE_SIZE - 16);
}

static u64 state;
static u64 rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1dull;
}

static void twin_start(struct twin *g, enum twin_world world, u16 cs, u64 rip)
{
    struct vcpu *v = g->v;
    bool user = (cs & 3) == 3 && world != TWIN_REAL;
    cpu_reset(v);
    v->cr0 &= ~(CR0_CD | CR0_NW);
    v->cr0 |= CR0_NE;
    v->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    v->xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
    if (world != TWIN_REAL)
        v->cr0 |= CR0_PE | (rnd() & 1 ? CR0_AM : 0);
    if (is_long(world)) {
        v->cr4 |= CR4_PAE;
        v->cr3 = PML4;
        v->efer = EFER_LME | EFER_LMA | EFER_SCE;
        v->star = (u64)SEL_CODE64 << 32 | (u64)(SEL_DATA + 8) << 48;
        v->lstar = rip;
        v->sfmask = rnd() & 1 ? 0x47700 : 0;
        v->kernel_gs_base = TWIN_ALIAS;
        v->cr4 |= (rnd() & 7 ? CR4_FSGSBASE | CR4_PKE : 0) | (world == TWIN_SMAP ? CR4_SMAP : 0);
        v->cr0 |= CR0_PG | (rnd() & 1 ? CR0_WP : 0);
    }
    for (unsigned s = 0; s < 6; s++) {
        u32 ar = AR_P | AR_S | 3 | (user ? 0x60 : 0) | AR_G | AR_DB;
        v->seg[s] = (struct segment){.limit = 0xffffffff, .ar = ar, .sel = user ? SEL_USER_DATA : SEL_DATA};
        u32 limit = s <= SEG_DS && s != SEG_SS && rnd() & 1 ? 0x1fe8 + (rnd() & 31) : 0xffff;
        if (world == TWIN_REAL) /* CS, stack and sometimes data: 64 KiB each; FS for the handler */
            v->seg[s] = (struct segment){.limit = limit, .ar = AR_P | AR_S | 3, .sel = s == SEG_FS ? 0 : TWIN_DATA >> 4,
                                         .base = s == SEG_FS ? 0 : TWIN_DATA};
    }
    if (world != TWIN_REAL && rnd() & 1)
        for (unsigned s = SEG_FS; s <= SEG_GS; s++) {
            v->seg[s].base = rnd() & 0xff0;
            if (world == TWIN_LEGACY)
                v->seg[s].limit = TWIN_DATA + 0x2000 + (rnd() & 0xfff);
        }
    struct segment *c = &v->seg[SEG_CS];
    if (world == TWIN_REAL) {
        *c = (struct segment){.limit = 0xffff, .ar = AR_P | AR_S | 0xb, .sel = TWIN_CODE >> 4, .base = TWIN_CODE};
    } else {
        u64 d = load64(g->ram + GDT + (cs & ~7u));
        segment_unpack(c, cs, d);
    }
    v->gdtr = (struct desc_table){.base = GDT, .limit = 0x67};
    v->idtr = (struct desc_table){.base = world == TWIN_REAL ? 0 : IDT, .limit = is_long(world) ? 32 * 16 - 1 : world == TWIN_REAL ? 0x3ff : 32 * 8 - 1};
    v->seg[SEG_TR] = (struct segment){.base = TSS, .limit = 0x67, .ar = AR_P | 0xb, .sel = SEL_TSS};
    v->seg[SEG_LDTR].ar = AR_UNUSABLE;
    for (unsigned r = 0; r < 16; r++)
        v->gpr[r] = rnd() & 3 ? rnd() : rnd() & 1 ? rnd() & 0xff : ~0ull;
    if (!is_long(world))
        for (unsigned r = 0; r < 16; r++)
            v->gpr[r] = (u32)v->gpr[r];
    for (unsigned r = 0; r < 16; r++)
        for (unsigned q = 0; q < 4; q++)
            v->vec[r].q[q] = rnd();
    v->mxcsr = rnd() & 1 ? 0x1f80 : (u32)rnd() & 0xffff;
    v->gpr[RSP] = world == TWIN_REAL ? 0xc000 : TWIN_STACK;
    v->gpr[RBP] = world == TWIN_REAL ? 0x2000 : TWIN_DATA + 0x2000;
    v->gpr[R14] = TWIN_DATA + 0x2001;
    v->rip = rip;
    cpu_put_rflags(v, FL_FIXED | (rnd() & FL_ARITH));
    v->random_state = 1;
    v->tsc_base = 0;
    v->fault_depth = 0;
    v->pending_dbg = 0;
    atomic_store(&v->requests, 0);
    v->activity = ACTIVITY_ACTIVE;
    v->icount = v->budget_end = 0;
    if (!(rnd() & 15)) { /* a breakpoint on code, or a watchpoint */
        u64 r = rnd();
        v->dr[0] = r & 1 ? TWIN_CODE + (r >> 8) % TWIN_CODE_SIZE / 4 : TWIN_DATA + 0x2000 + (r >> 8 & 0xf8);
        v->dr7 |= r & 1 ? 0x2 : 0x2 | (r & 2 ? 3u << 16 : 1u << 16) | (u32)(r >> 4 & 3) << 18;
    }
    cpu_mode_changed(v);
    mmu_watch_changed(v);
    mmu_flush_all(v);
    cpu_flags_changed(v);
    cpu_rearm(v);
    g->clock.icount_ns = 0;
    clock_follow(&g->clock, &source, v);
}

void twins_load(struct twins *t, enum twin_world world, u16 cs, const u8 *code, size_t size, u64 rip, u64 seed)
{
    static u8 memory[TWIN_RAM];
    t->seed = seed;
    memset(memory, 0, sizeof(memory));
    state = seed | 1;
    for (unsigned k = 0; k < 0x8000; k += 8)
        store64(memory + TWIN_DATA + k, rnd());
    tables(memory, world, cs);
    memory[TWIN_CODE + TWIN_CODE_SIZE - 16] = 0xf4;
    memcpy(memory + TWIN_CODE, code, size < TWIN_CODE_SIZE ? size : TWIN_CODE_SIZE);
    u64 s = state;
    for (unsigned n = 0; n < 2; n++) {
        struct twin *g = n ? &t->b : &t->a;
        for (unsigned page = 0; page < TWIN_RAM; page += PAGE_SIZE) /* what has not changed keeps its code */
            if (memcmp(g->ram + page, memory + page, PAGE_SIZE))
                physmap_write(g->pm, page, memory + page, PAGE_SIZE);
        state = s;
        twin_start(g, world, cs, rip);
    }
}

/* ---- comparing ---- */

static bool different(const char *what, u64 a, u64 b)
{
    if (a == b)
        return false;
    fprintf(stderr, "  %s: %llx and %llx\n", what, (unsigned long long)a, (unsigned long long)b);
    return true;
}

static bool compare(const struct twins *t)
{
    static const char names[16][4] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
    const struct vcpu *a = t->a.v, *b = t->b.v;
    bool bad = false;
    for (unsigned r = 0; r < 16; r++)
        bad |= different(names[r], a->gpr[r], b->gpr[r]);
#define FIELD(f) bad |= different(#f, (u64)a->f, (u64)b->f)
    FIELD(rip), FIELD(aflags), FIELD(rflags), FIELD(icount), FIELD(activity), FIELD(cpl), FIELD(mode), FIELD(code_mode);
    FIELD(mxcsr), FIELD(cr0), FIELD(cr2), FIELD(cr3), FIELD(cr4), FIELD(efer), FIELD(dr6), FIELD(dr7), FIELD(shadow), FIELD(pending_dbg);
    FIELD(nmi_blocked), FIELD(xcr0), FIELD(tsc_base), FIELD(kernel_gs_base), FIELD(aging);
#undef FIELD
    for (unsigned s = 0; s < SEG_COUNT; s++) {
        bad |= different("selector", a->seg[s].sel, b->seg[s].sel);
        bad |= different("segment base", a->seg[s].base, b->seg[s].base);
        bad |= different("segment limit", a->seg[s].limit, b->seg[s].limit);
        bad |= different("access rights", a->seg[s].ar, b->seg[s].ar);
    }
    for (unsigned r = 0; r < 32; r++)
        for (unsigned q = 0; q < 8; q++)
            bad |= different("vector register", a->vec[r].q[q], b->vec[r].q[q]);
    if (memcmp(&a->x87, &b->x87, sizeof(a->x87)) || memcmp(a->k, b->k, sizeof(a->k)))
        bad |= different("x87 or mask registers", 0, 1);
    for (unsigned at = 0; at < TWIN_RAM && memcmp(t->a.ram, t->b.ram, TWIN_RAM); at += 8)
        if (load64(t->a.ram + at) != load64(t->b.ram + at)) {
            fprintf(stderr, "  memory at %x: %llx and %llx\n", at, (unsigned long long)load64(t->a.ram + at), (unsigned long long)load64(t->b.ram + at));
            bad = true;
        }
    return !bad;
}

enum run_result twins_run(struct twins *t, u64 budget)
{
    t->a.v->budget_end = t->a.v->icount + budget;
    t->b.v->budget_end = t->b.v->icount + budget;
    enum run_result a = t->a.engine->run(t->a.v), b = t->b.engine->run(t->b.v);
    if (!compare(t) || different("result", a, b)) {
        fprintf(stderr, "seed %llx: the engines differ after %llu instructions, at RIP %llx\n", (unsigned long long)t->seed,
                (unsigned long long)t->a.v->icount, (unsigned long long)t->a.v->rip);
        abort();
    }
    return a;
}
