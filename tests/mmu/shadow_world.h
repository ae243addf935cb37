/*
 * Guest tables of any format, under a SLAT of any format, for the tests of the shadow page tables. Guest-physical
 * addresses are physical ones with bit 24 flipped, so that mistaking one for the other shows.
 */
#pragma once
#include "vcpu_test.h"

#include "mmu/dma.h"
#include "mmu/physmap_view.h"
#include "mmu/shadow.h"

#define WORLD_MIB  32u
#define SWAP       0x1000000ull
#define TABLES_AT  0x100000ull /* physical; upwards */
#define TABLES_END 0x700000ull
#define DATA_AT    0x800000ull /* guest-physical, 8 MiB of it */

enum paging_kind { P_NONE, P_32, P_PSE, P_PAE, P_4, P_5, P_KINDS };
enum slat_choice { S_NONE, S_EPT4, S_EPT5, S_EPT4_AD, S_EPT5_AD, S_NPT32, S_NPT_PAE, S_NPT4, S_NPT5, S_KINDS };
static const char *const paging_names[P_KINDS] = {"no paging", "2-level", "PSE", "PAE", "4-level", "5-level"};
static const char *const slat_names[S_KINDS] = {"no SLAT",  "EPT4",    "EPT5", "EPT4 A/D", "EPT5 A/D",
                                                "NPT 32-bit", "NPT PAE", "NPT4", "NPT5"};

struct tree {
    u8 levels, entry, index_bits;
    bool pae, ept;
    pa_t root;
};

struct world {
    enum paging_kind p;
    enum slat_choice s;
    struct physmap *pm;
    struct vcpu *v;
    struct tree linear, slat;
    struct slat config;
    pa_t next;
    gva_t la[12];
    unsigned n;
};

static inline pa_t world_table(struct world *w)
{
    pa_t t = w->next;
    w->next += PAGE_SIZE;
    if (w->next > TABLES_END)
        fail_msg("out of table pages");
    return t;
}

static inline unsigned tree_shift(const struct tree *t, unsigned level) { return 12 + t->index_bits * (level - 1u); }
static inline u64 entry_get(struct world *w, pa_t pa, unsigned size) { return physmap_load(w->pm, pa, size); }
static inline void entry_put(struct world *w, pa_t pa, u64 value, unsigned size) { physmap_store(w->pm, pa, value, size); }

/* The physical address of the entry of @addr at @level, tables above it made as needed. */
static noinline pa_t tree_entry(struct world *w, const struct tree *t, u64 addr, unsigned level)
{
    bool guest = t == &w->linear && w->s != S_NONE;
    pa_t table = t->root;
    for (unsigned l = t->levels;; l--) {
        u64 index = addr >> tree_shift(t, l) & (t->pae && l == 3 ? 3 : BITS64(t->index_bits - 1, 0));
        pa_t e = table + index * t->entry;
        if (l == level)
            return e;
        u64 value = entry_get(w, e, t->entry);
        if (!(value & 7)) {
            pa_t below = world_table(w);
            value = (guest ? below ^ SWAP : below) | (t->pae && l == 3 ? 1 : 7);
            entry_put(w, e, value, t->entry);
        }
        table = value & (t->entry == 4 ? BITS64(31, 12) : BITS64(51, 12));
        if (guest)
            table ^= SWAP;
    }
}

static inline void tree_map(struct world *w, const struct tree *t, u64 addr, u64 value, unsigned level)
{
    entry_put(w, tree_entry(w, t, addr, level), value, t->entry);
}

static inline struct tree tree_of(unsigned levels, unsigned entry, bool pae, bool ept)
{
    return (struct tree){.levels = (u8)levels, .entry = (u8)entry, .index_bits = entry == 4 ? 10 : 9, .pae = pae, .ept = ept};
}

/* Linear addresses that part ways at every level, two pages in each last-level table, and a large page. */
static void world_map_linear(struct world *w)
{
    static const gva_t places[] = {0x400000, 0x401000, 0x800000, 0x801000, 0x40000000, 0xc0003000,
                                   0x8000000000ull, 0x8000001000ull, 0xffff900000000000ull, 0xff10000000000000ull};
    unsigned width = w->linear.entry == 4 || w->linear.pae ? 32 : w->linear.levels == 4 ? 48 : 57;
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        if (width == 32 ? places[i] >> 32 : !is_canonical(places[i], width))
            continue;
        w->la[w->n++] = places[i];
        tree_map(w, &w->linear, places[i], (DATA_AT + i * 0x240000ull % 0x800000) | 7, 1);
    }
    if (w->p == P_32)
        return;
    /* A large page: 4 MiB of data at 4 MiB alignment, or 2 MiB. */
    w->la[w->n++] = 0x12345000;
    tree_map(w, &w->linear, 0x12345000, DATA_AT | 7 | 0x80, 2);
}

static inline void world_modes(struct world *w)
{
    struct vcpu *v = w->v;
    static const u64 cr4[P_KINDS] = {0, 0, CR4_PSE, CR4_PAE, CR4_PAE, CR4_PAE | CR4_LA57};
    v->cr0 = w->p == P_NONE ? CR0_PE : CR0_PE | CR0_PG | CR0_WP;
    v->cr4 = cr4[w->p];
    v->efer = w->p >= P_4 ? EFER_LME | EFER_LMA | EFER_NXE : w->p == P_PAE ? EFER_NXE : 0;
    v->mode = w->p >= P_4 ? MODE_LONG64 : MODE_PROT32;
    v->linear_mask = w->p >= P_4 ? ~0ull : 0xffffffff;
    v->linear_width = w->p == P_5 ? 57 : 48;
    v->cr3 = w->s == S_NONE ? w->linear.root : w->linear.root ^ SWAP;
    v->features[FEAT_PSE36] = 1;
}

static noinline struct world *world_new(enum paging_kind p, enum slat_choice s)
{
    struct world *w = calloc(1, sizeof(*w));
    *w = (struct world){.p = p, .s = s, .pm = test_memory(WORLD_MIB), .next = TABLES_AT};
    static const u8 levels[P_KINDS] = {0, 2, 2, 3, 4, 5};
    w->linear = tree_of(levels[p], p == P_32 || p == P_PSE ? 4 : 8, p == P_PAE, false);
    w->linear.root = world_table(w);
    if (s != S_NONE) {
        static const u8 slat_levels[S_KINDS] = {0, 4, 5, 4, 5, 2, 3, 4, 5};
        bool ept = s <= S_EPT5_AD;
        w->slat = tree_of(slat_levels[s], s == S_NPT32 ? 4 : 8, s == S_NPT_PAE, ept);
        w->slat.root = world_table(w);
        for (gpa_t gpa = 0; gpa < WORLD_MIB * MIB; gpa += PAGE_SIZE)
            tree_map(w, &w->slat, gpa, (gpa ^ SWAP) | 7 | (ept ? 6 << 3 : 0), 1);
        w->config = (struct slat){.kind = ept ? SLAT_EPT : SLAT_NPT, .levels = slat_levels[s], .ad = s == S_EPT4_AD || s == S_EPT5_AD,
                                  .huge_1g = true, .huge_2m = true, .nx = true, .root = w->slat.root, .tag = w->slat.root};
        static const u8 modes[S_KINDS] = {[S_NPT32] = PAGING_32BIT, [S_NPT_PAE] = PAGING_PAE, [S_NPT4] = PAGING_4LEVEL,
                                          [S_NPT5] = PAGING_5LEVEL};
        w->config.host_mode = modes[s];
    }
    if (p == P_NONE)
        for (unsigned i = 0; i < 6; i++)
            w->la[w->n++] = DATA_AT + i * 0x150000 % 0x800000;
    else
        world_map_linear(w);
    w->v = test_vcpu(w->pm, 0);
    world_modes(w);
    return w;
}

/* Makes @v one of the world's processors: loads the PDPTE registers too. */
static inline void world_enter(struct world *w, struct vcpu *v)
{
    mmu_set_guest(v, w->s == S_NONE ? NULL : &w->config, w->s != S_NONE);
    mmu_update(v);
    if (w->p == P_PAE) {
        struct walk walk;
        struct walk_context ctx = *mmu_context(v);
        assert_int_equal(walk_load_pdptes(w->pm, &ctx, v->cr3, v->pdpte, &walk), WALK_OK);
        mmu_update(v);
    }
}

static inline void world_free(struct world *w)
{
    test_vcpu_free(w->v);
    free(w);
}

/* ---- looking ---- */

/* A fresh machine's worth of shadows: those of before are forgotten. */
static noinline __attribute__((unused)) void anew(struct world *w)
{
    mmu_set_mode(w->v, MMU_WALK);
    mmu_set_mode(w->v, MMU_CHECK);
    world_enter(w, w->v);
}

static noinline __attribute__((unused)) bool look(struct vcpu *v, gva_t la, u32 access, pa_t *pa)
{
    struct translation t;
    struct walk walk;
    mmu_flush_all(v);
    bool ok = mmu_translate(v, la, access, &t, &walk);
    *pa = ok ? t.pa : ~0ull;
    return ok;
}

static noinline __attribute__((unused)) void warm(struct world *w)
{
    pa_t pa;
    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 0; i < w->n; i++)
            if (!look(w->v, w->la[i], ACCESS_WRITE, &pa))
                fail_msg("%s under %s: %#llx is not mapped", paging_names[w->p], slat_names[w->s], (unsigned long long)w->la[i]);
}

/* What a translation stands on, from a walk: the entries that only a tracked write can change. */
struct footing {
    struct walk walk;
    bool ok;
    bool ground[WALK_MAX_STEPS];
    bool of_slat[WALK_MAX_STEPS]; /* the data's */
    u8 known;
};

static noinline __attribute__((unused)) bool step_is_slat(const struct walk_step *s) { return s->table == TABLE_EPT || s->table == TABLE_NPT; }

static noinline __attribute__((unused)) void footing(struct world *w, gva_t la, struct footing *f)
{
    struct walk_context ctx = *mmu_context(w->v);
    f->ok = walk_linear(w->pm, &ctx, la, ACCESS_READ | ACCESS_NO_AD, &f->walk);
    unsigned end = f->walk.nsteps;
    while (end && step_is_slat(&f->walk.steps[end - 1]))
        end--;
    for (unsigned i = 0; i < f->walk.nsteps; i++) {
        bool last = i + 1 == f->walk.nsteps, linear_last = i + 1 == end;
        f->of_slat[i] = i >= end;
        /* Last-level entries are read at each miss, but those that map tables. */
        f->ground[i] = f->walk.steps[i].level > 1 || (!last && !linear_last);
    }
    struct shadow_view view;
    shadow_view(&view, &ctx);
    f->known = (u8)shadow_knows(w->pm->shadow, &view, &ctx, la, f->walk.gpa);
}

/* The entries behind all probes, each once. */
static noinline __attribute__((unused)) unsigned entries_of(struct world *w, struct walk_step *out, unsigned max)
{
    unsigned n = 0;
    for (unsigned i = 0; i < w->n; i++) {
        struct footing f;
        footing(w, w->la[i], &f);
        for (unsigned k = 0; k < f.walk.nsteps; k++) {
            unsigned j = 0;
            while (j < n && out[j].pa != f.walk.steps[k].pa)
                j++;
            if (j == n && n < max)
                out[n++] = f.walk.steps[k];
        }
    }
    return n;
}
