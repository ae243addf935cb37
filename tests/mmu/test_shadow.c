/*
 * Shadow page tables: which writes end which translations. Every answer is compared with a walk as it is given
 * (MMU_CHECK); here we look at what was dropped, and that nothing else was.
 */
#include "shadow_world.h"

/* ---- the decision ---- */

static void cover(void **state)
{
    static const struct {
        u16 offset, len, entry, first, last;
        bool partial;
    } rows[] = {
        /* 8-byte entries */
        {0, 8, 8, 0, 0, false}, {8, 8, 8, 1, 1, false}, {0, 4, 8, 0, 0, true}, {4, 4, 8, 0, 0, true}, {4, 8, 8, 0, 1, true},
        {7, 1, 8, 0, 0, true}, {7, 2, 8, 0, 1, true}, {16, 16, 8, 2, 3, false}, {12, 16, 8, 1, 3, true}, {4088, 8, 8, 511, 511, false},
        {4092, 4, 8, 511, 511, true}, {0, 4096, 8, 0, 511, false}, {32, 64, 8, 4, 11, false},
        /* 4-byte entries */
        {0, 4, 4, 0, 0, false}, {4, 4, 4, 1, 1, false}, {0, 8, 4, 0, 1, false}, {4, 8, 4, 1, 2, false}, {2, 2, 4, 0, 0, true},
        {2, 4, 4, 0, 1, true}, {3, 1, 4, 0, 0, true}, {3, 2, 4, 0, 1, true}, {16, 16, 4, 4, 7, false}, {14, 8, 4, 3, 5, true},
        {4092, 4, 4, 1023, 1023, false}, {4088, 8, 4, 1022, 1023, false}, {0, 4096, 4, 0, 1023, false},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        struct shadow_cover c = shadow_cover(rows[i].offset, rows[i].len, rows[i].entry);
        if (c.first != rows[i].first || c.last != rows[i].last || c.partial != rows[i].partial)
            fail_msg("%u bytes at %u of %u-byte entries: %u..%u %s, expected %u..%u %s", rows[i].len, rows[i].offset, rows[i].entry,
                     c.first, c.last, c.partial ? "in part" : "whole", rows[i].first, rows[i].last, rows[i].partial ? "in part" : "whole");
    }
    /* Against the definition, byte by byte. */
    for (unsigned entry = 4; entry <= 8; entry += 4)
        for (unsigned offset = 0; offset < 24; offset++)
            for (unsigned len = 1; len <= 32; len++) {
                struct shadow_cover c = shadow_cover(offset, len, entry);
                unsigned touched[16] = {0};
                for (unsigned b = offset; b < offset + len; b++)
                    touched[b / entry]++;
                bool partial = false;
                for (unsigned k = 0; k < 16; k++) {
                    assert_int_equal(touched[k] != 0, k >= c.first && k <= c.last);
                    partial |= touched[k] && touched[k] != entry;
                }
                assert_int_equal(partial, c.partial);
            }
}

/* ---- the matrix ---- */

enum kind {
    K_1, K_1_LAST, K_2, K_2_STRADDLE, K_4, K_4_HIGH, K_8, K_8_STRADDLE, K_8_PAGE, K_16, K_32, K_64, K_XCHG_4, K_XCHG_8,
    K_CMPXCHG16B, K_STRING, K_DMA, K_DMA_PAGE, K_SILENT, K_OTHER_CPU, K_LAST,
};
static const char *const kind_names[K_LAST] = {
    "1 byte", "1 byte, last", "2 bytes", "2 bytes, straddling", "4 bytes", "4 bytes, upper half", "8 bytes", "8 bytes, straddling",
    "8 bytes across pages", "16 bytes", "32 bytes", "64 bytes", "XCHG 4", "XCHG 8", "CMPXCHG16B", "string", "DMA", "DMA of a page",
    "the same value", "another processor"};

struct region_written {
    pa_t pa;
    unsigned len;
};

/* Where a write of @kind at the entry of @size at @pa goes. */
static struct region_written place(enum kind kind, pa_t pa, unsigned size)
{
    switch (kind) {
    case K_1: return (struct region_written){pa, 1};
    case K_1_LAST: return (struct region_written){pa + size - 1, 1};
    case K_2: return (struct region_written){pa, 2};
    case K_2_STRADDLE: return (struct region_written){pa - 1, 2};
    case K_4: case K_XCHG_4: return (struct region_written){pa, 4};
    case K_4_HIGH: return (struct region_written){pa + size - 4, 4};
    case K_8: case K_XCHG_8: case K_SILENT: case K_OTHER_CPU: return (struct region_written){pa & ~7ull, 8};
    case K_8_STRADDLE: return (struct region_written){pa - size / 2, 8};
    case K_8_PAGE: return (struct region_written){(pa & PAGE_MASK) - 4, 8};
    case K_16: case K_CMPXCHG16B: return (struct region_written){pa & ~15ull, 16};
    case K_32: return (struct region_written){pa & ~31ull, 32};
    case K_64: return (struct region_written){pa & ~63ull, 64};
    case K_STRING: return (struct region_written){pa - 3, 21};
    case K_DMA: return (struct region_written){pa - 13, 100};
    default: return (struct region_written){pa & PAGE_MASK, 4096};
    }
}

static void perform(struct world *w, enum kind kind, struct region_written r, const u8 *bytes)
{
    const struct dma dma = {.pm = w->pm};
    switch (kind) {
    case K_1: case K_1_LAST: case K_2: case K_4: case K_4_HIGH: case K_8: case K_SILENT:
        if (r.pa & (r.len - 1))
            physmap_write(w->pm, r.pa, bytes, r.len);
        else
            physmap_store(w->pm, r.pa, load_le(bytes, r.len), r.len);
        break;
    case K_XCHG_4: case K_XCHG_8:
        assert_true(physmap_cmpxchg(w->pm, r.pa, physmap_load(w->pm, r.pa, r.len), load_le(bytes, r.len), r.len));
        break;
    case K_STRING:
        for (unsigned i = 0; i < r.len; i++)
            physmap_store(w->pm, r.pa + i, bytes[i], 1);
        break;
    case K_DMA: case K_DMA_PAGE:
        assert_int_equal(dma_write(&dma, r.pa, bytes, r.len), r.len);
        break;
    case K_OTHER_CPU: { /* with a TLB of its own, filled before: the page must not be granted */
        struct vcpu *o = test_vcpu(w->pm, 0);
        struct translation t;
        struct walk walk;
        o->cr0 = CR0_PE;
        o->efer = 0;
        mmu_update(o);
        assert_true(mmu_translate(o, r.pa, ACCESS_WRITE, &t, &walk));
        if (physmap_page_flags(w->pm, r.pa) & PAGE_TABLE)
            assert_true(tlb_slot(o, r.pa)->tag_write == TLB_NONE && t.page_flags);
        physmap_write(w->pm, r.pa, bytes, r.len);
        mmu_free(o->mmu);
        free(o);
        break;
    }
    default:
        physmap_write(w->pm, r.pa, bytes, r.len);
    }
}

static unsigned long matrix_writes, matrix_drops;

/* One write to the entry at @pa: exactly what stands on changed entries is forgotten, and all answers are a walk's. */
static void one_write(struct world *w, pa_t pa, unsigned size, enum kind kind)
{
    static struct footing f[ARRAY_SIZE(w->la)];
    u8 before[4096], bytes[4096];
    struct region_written r = place(kind, pa, size);
    anew(w);
    warm(w);
    for (unsigned i = 0; i < w->n; i++) {
        footing(w, w->la[i], &f[i]);
        assert_int_equal(f[i].known, (w->p != P_NONE ? SHADOW_KNOWS_LINEAR : 0) | (w->s != S_NONE ? SHADOW_KNOWS_SLAT : 0));
    }
    physmap_read(w->pm, r.pa, before, r.len);
    memcpy(bytes, before, r.len);
    /* Every entry touched that is in use loses its presence, or has an upper bit changed. */
    for (unsigned i = 0; i < r.len && kind != K_SILENT; i++) {
        unsigned at = (unsigned)((r.pa + i) & (size - 1));
        if (at == 0)
            bytes[i] ^= 7; /* RWX of EPT, P, W, U */
        else if (at == size - 1)
            bytes[i] ^= 1;
    }
    perform(w, kind, r, bytes);
    matrix_writes++;
    for (unsigned i = 0; i < w->n; i++) {
        unsigned expect = f[i].known;
        for (unsigned k = 0; k < f[i].walk.nsteps; k++) {
            const struct walk_step *s = &f[i].walk.steps[k];
            unsigned bytes_of = step_is_slat(s) ? w->slat.entry : w->linear.entry;
            u64 now = physmap_load(w->pm, s->pa, bytes_of);
            if (f[i].ground[k] && now != s->entry)
                expect &= ~(f[i].of_slat[k] ? SHADOW_KNOWS_SLAT : SHADOW_KNOWS_LINEAR);
        }
        struct walk_context ctx = *mmu_context(w->v);
        struct shadow_view view;
        shadow_view(&view, &ctx);
        unsigned left = shadow_knows(w->pm->shadow, &view, &ctx, w->la[i], f[i].walk.gpa);
        matrix_drops += left != f[i].known;
        if (left != expect)
            fail_msg("%s under %s, entry at %#llx, %s: of %#llx the shadows %u are left, expected %u", paging_names[w->p],
                     slat_names[w->s], (unsigned long long)pa, kind_names[kind], (unsigned long long)w->la[i], left, expect);
    }
    for (unsigned i = 0; i < w->n; i++) {
        /* The answer itself: the TLB is empty, so it is what the tables now say; compared with a walk inside. */
        pa_t was = f[i].ok ? f[i].walk.pa : ~0ull, is;
        bool touched = false;
        for (unsigned k = 0; k < f[i].walk.nsteps; k++)
            touched |= physmap_load(w->pm, f[i].walk.steps[k].pa, step_is_slat(&f[i].walk.steps[k]) ? w->slat.entry : w->linear.entry) !=
                       f[i].walk.steps[k].entry;
        look(w->v, w->la[i], ACCESS_READ, &is);
        if (!touched)
            assert_int_equal(was, is);
    }
    physmap_write(w->pm, r.pa, before, r.len);
}

static void matrix(void **state)
{
    struct walk_step e[400];
    matrix_writes = matrix_drops = 0;
    for (unsigned p = 0; p < P_KINDS; p++)
        for (unsigned s = 0; s < S_KINDS; s++) {
            struct world *w = world_new((enum paging_kind)p, (enum slat_choice)s);
            anew(w);
            if (p != P_NONE || s != S_NONE)
                warm(w);
            unsigned n = entries_of(w, e, ARRAY_SIZE(e));
            /* All kinds at some entry of each table and level; one kind after the other at the rest. */
            unsigned turn = p + s, seen[2][6] = {{0}};
            for (unsigned i = 0; i < n; i++) {
                bool slat = step_is_slat(&e[i]);
                bool all = seen[slat][e[i].level]++ < 2;
                unsigned size = slat ? w->slat.entry : w->linear.entry;
                for (unsigned k = 0; k < K_LAST; k++)
                    if (all || k == turn % K_LAST)
                        one_write(w, e[i].pa, size, (enum kind)k);
                turn++;
            }
            world_free(w);
        }
    print_message("%lu writes, %lu shadows lost\n", matrix_writes, matrix_drops);
    assert_true(matrix_writes > 5000 && matrix_drops > matrix_writes / 2);
}

/*
 * A guest without CR4.PAE under EPT: 4-byte entries in its tables, 8-byte entries in EPT's. An 8-byte write to an
 * EPT entry is one whole entry there, whatever CR4.PAE is; the entries beside it stay.
 */
static void non_pae_guest_under_ept(void **state)
{
    struct world *w = world_new(P_32, S_EPT4);
    assert_false(w->v->cr4 & CR4_PAE);
    anew(w);
    warm(w);
    struct walk_context ctx = *mmu_context(w->v);
    struct shadow_view view;
    shadow_view(&view, &ctx);
    assert_int_equal(view.entry, 4);
    assert_int_equal(view.slat_entry, 8);
    /* Data in two neighbouring 2 MiB regions: two 8-byte entries side by side in one EPT page directory. */
    gpa_t a = DATA_AT, b = DATA_AT + 2 * MIB;
    pa_t ea = tree_entry(w, &w->slat, a, 2), eb = tree_entry(w, &w->slat, b, 2);
    assert_int_equal(eb, ea + 8);
    tree_map(w, &w->linear, 0x400000, a | 7, 1);
    tree_map(w, &w->linear, 0x401000, b | 7, 1);
    pa_t pa;
    assert_true(look(w->v, 0x400000, ACCESS_WRITE, &pa) && look(w->v, 0x401000, ACCESS_WRITE, &pa));
#define KNOWN(gpa) (!!(shadow_knows(w->pm->shadow, &view, &ctx, 0x400000, gpa) & SHADOW_KNOWS_SLAT))
    assert_true(KNOWN(a) && KNOWN(b));
    assert_true(physmap_page_flags(w->pm, ea) & PAGE_TABLE);
    u64 old = get64(w->pm, ea), dropped = mmu_shadow_stats(w->v)->dropped, eights = mmu_shadow_stats(w->v)->writes[SHADOW_WRITE_8];
    /* The whole entry in one 8-byte write: one shadow goes, its neighbour stays. */
    pa_t other = world_table(w);
    for (unsigned i = 0; i < 512; i++)
        put64(w->pm, other + 8 * i, (0x900000 + i * 0x1000) | 7 | 6 << 3);
    put64(w->pm, ea, other | 7);
    assert_int_equal(mmu_shadow_stats(w->v)->dropped, dropped + 1);
    assert_int_equal(mmu_shadow_stats(w->v)->writes[SHADOW_WRITE_8], eights + 1);
    assert_false(KNOWN(a));
    assert_true(KNOWN(b));
    assert_true(look(w->v, 0x400123, ACCESS_READ, &pa));
    assert_int_equal(pa, 0x900123);
    assert_true(look(w->v, 0x401123, ACCESS_READ, &pa));
    assert_int_equal(pa, (b ^ SWAP) | 0x123);
    /* Its upper half alone is a part of the same entry; and over the border both go. */
    put32(w->pm, ea + 4, 0x00100000);
    assert_false(KNOWN(a));
    assert_true(KNOWN(b));
    put64(w->pm, ea, old);
    assert_true(look(w->v, 0x400000, ACCESS_READ, &pa));
    assert_true(KNOWN(a) && KNOWN(b));
    u8 none[8] = {0};
    physmap_write(w->pm, ea + 4, none, 8);
    assert_true(KNOWN(a)); /* that half was 0 before */
    assert_false(KNOWN(b));
    /* An 8-byte write to the guest's own page directory covers two of its entries. */
    pa_t pde = tree_entry(w, &w->linear, 0x400000, 2);
    put64(w->pm, eb, get64(w->pm, tree_entry(w, &w->slat, b, 2)));
    tree_map(w, &w->slat, b, old, 2);
    for (gva_t la = 0x800000; la >= 0x400000; la -= 0x400000)
        assert_true(look(w->v, la, ACCESS_READ, &pa));
    u64 both = get64(w->pm, pde);
    assert_int_equal((pde & 7), 4); /* PDE 1; PDE 2 is the lower half of the next pair */
    physmap_write(w->pm, pde, none, 8);
    for (gva_t la = 0x400000; la <= 0x800000; la += 0x400000) {
        assert_false(shadow_knows(w->pm->shadow, &view, &ctx, la, a) & SHADOW_KNOWS_LINEAR);
        assert_false(look(w->v, la, ACCESS_READ, &pa));
    }
    physmap_write(w->pm, pde, &both, 8);
    world_free(w);
}

/* ---- what the architecture promises ---- */

static void upgrades_without_flush(void **state)
{
    struct world *w = world_new(P_4, S_EPT4_AD);
    struct translation t;
    struct walk walk;
    gva_t la = w->la[0];
    anew(w);
    warm(w);
    mmu_flush_all(w->v);
    /* Read-only at each level in turn: refused; allowed again without any flush. */
    for (unsigned level = 1; level <= 4; level++) {
        pa_t e = tree_entry(w, &w->linear, la, level);
        put64(w->pm, e, get64(w->pm, e) & ~2ull);
        mmu_flush_all(w->v);
        assert_true(mmu_translate(w->v, la, ACCESS_READ, &t, &walk));
        assert_false(mmu_translate(w->v, la, ACCESS_WRITE, &t, &walk));
        put64(w->pm, e, get64(w->pm, e) | 2);
        assert_true(mmu_translate(w->v, la, ACCESS_WRITE, &t, &walk));
        e = tree_entry(w, &w->slat, walk.gpa, level);
        put64(w->pm, e, get64(w->pm, e) & ~2ull);
        mmu_flush_all(w->v);
        assert_true(level > 1 || mmu_translate(w->v, la, ACCESS_READ, &t, &walk));
        assert_false(mmu_translate(w->v, la, ACCESS_WRITE, &t, &walk));
        put64(w->pm, e, get64(w->pm, e) | 2);
        assert_true(mmu_translate(w->v, la, ACCESS_WRITE, &t, &walk));
    }
    /* Stale until the flush that ends it, and no longer. */
    pa_t e = tree_entry(w, &w->linear, la, 1), before = t.pa;
    put64(w->pm, e, (DATA_AT + 0x700000) | 0x67);
    assert_true(mmu_translate(w->v, la, ACCESS_READ, &t, &walk) && t.pa == before);
    mmu_invlpg(w->v, la);
    assert_true(mmu_translate(w->v, la, ACCESS_READ, &t, &walk) && t.pa == ((DATA_AT + 0x700000) ^ SWAP));
    world_free(w);
}

/* Accessed flags cleared behind a shadow's back come again at the next miss; dirty flags with the first write only. */
static void accessed_and_dirty(void **state)
{
    for (unsigned s = 0; s < S_KINDS; s++)
        for (unsigned p = P_32; p < P_KINDS; p++) {
            struct world *w = world_new((enum paging_kind)p, (enum slat_choice)s);
            anew(w);
            warm(w);
            for (unsigned i = 0; i < w->n; i++) {
                struct footing f;
                footing(w, w->la[i], &f);
                for (unsigned k = 0; k < f.walk.nsteps; k++) {
                    const struct walk_step *st = &f.walk.steps[k];
                    bool slat = step_is_slat(st), ept = st->table == TABLE_EPT;
                    unsigned size = slat ? w->slat.entry : w->linear.entry;
                    if ((ept && !w->config.ad) || (st->table != TABLE_EPT && size == 8 && st->level == 3 && (slat ? w->slat.pae : w->linear.pae)))
                        continue;
                    u64 flags = ept ? 0x300 : 0x60, a = ept ? 0x100 : 0x20, d = ept ? 0x200 : 0x40;
                    pa_t pa;
                    for (unsigned write = 0; write < 2; write++) {
                        u64 clear = st->entry & ~flags, want;
                        entry_put(w, st->pa, clear, size);
                        assert_true(look(w->v, w->la[i], write ? ACCESS_WRITE : ACCESS_READ, &pa));
                        u64 now = entry_get(w, st->pa, size);
                        /* What a walk would do, on the same memory. */
                        struct walk r;
                        struct walk_context ctx = *mmu_context(w->v);
                        entry_put(w, st->pa, clear, size);
                        assert_true(walk_linear(w->pm, &ctx, w->la[i], write ? ACCESS_WRITE : ACCESS_READ, &r));
                        want = entry_get(w, st->pa, size);
                        if (now != want || !(now & a) || (!write && !slat && (now & d)))
                            fail_msg("%s under %s: entry %#llx after a %s is %#llx, a walk makes it %#llx", paging_names[p], slat_names[s],
                                     (unsigned long long)clear, write ? "write" : "read", (unsigned long long)now, (unsigned long long)want);
                        /* Asked again from what was learned: nothing more to set. */
                        assert_true(look(w->v, w->la[i], write ? ACCESS_WRITE : ACCESS_READ, &pa));
                        assert_int_equal(entry_get(w, st->pa, size), want);
                    }
                    entry_put(w, st->pa, st->entry, size);
                    warm(w);
                }
            }
            world_free(w);
        }
}

/* L0's own writes into a page that is also a table: a walk's A/D update, and a save as VMCS and VMCB saves are made. */
static void own_writes(void **state)
{
    /* A table that maps itself: the walk's own updates hit what its shadows stand on. */
    struct world *w = world_new(P_4, S_NONE);
    pa_t pa;
    gva_t self = 0xffff000000000000ull | 0x1ffull << 39 | 0x1ffull << 30 | 0x1ffull << 21 | 0x1ffull << 12;
    put64(w->pm, w->linear.root + 511 * 8, w->linear.root | 3);
    anew(w);
    for (unsigned i = 0; i < 4; i++) {
        assert_true(look(w->v, self, i & 1 ? ACCESS_WRITE : ACCESS_READ, &pa));
        assert_int_equal(pa, w->linear.root);
        assert_true(look(w->v, self + 8, i & 1 ? ACCESS_READ : ACCESS_WRITE, &pa));
        put64(w->pm, w->linear.root + 511 * 8, w->linear.root | 3 | (i & 2 ? 0x20 : 0));
    }
    put64(w->pm, w->linear.root + 511 * 8, 0);
    assert_false(look(w->v, self, ACCESS_READ, &pa));
    warm(w);
    u64 dropped = mmu_shadow_stats(w->v)->dropped;
    physmap_store(w->pm, tree_entry(w, &w->linear, w->la[0], 3), 0, 8); /* what saves use */
    assert_true(mmu_shadow_stats(w->v)->dropped > dropped);
    assert_false(look(w->v, w->la[0], ACCESS_READ, &pa));
    world_free(w);
}

static void large_page_splits(void **state)
{
    struct world *w = world_new(P_4, S_NONE);
    gva_t la = 0x12345000;
    pa_t e = tree_entry(w, &w->linear, la, 2), pa;
    anew(w);
    assert_true(look(w->v, la + 0x123, ACCESS_READ, &pa));
    assert_int_equal(pa, DATA_AT + 0x145123);
    /* Its dirty flag comes: the shadow stays. */
    u64 dropped = mmu_shadow_stats(w->v)->dropped, walks = mmu_stats(w->v)->walks;
    assert_true(look(w->v, la, ACCESS_WRITE, &pa));
    assert_int_equal(get64(w->pm, e) & 0x60, 0x60);
    assert_int_equal(mmu_shadow_stats(w->v)->dropped, dropped);
    assert_true(look(w->v, la, ACCESS_WRITE, &pa));
    assert_int_equal(mmu_stats(w->v)->walks, walks + 1);
    /* Split into pages, some of which lead elsewhere. */
    pa_t table = world_table(w);
    for (unsigned i = 0; i < 512; i++)
        put64(w->pm, table + 8 * i, (i & 1 ? 0xa00000 : 0xc00000) + i * 0x1000 + 0x67);
    put64(w->pm, e, table | 0x67);
    assert_true(look(w->v, la, ACCESS_READ, &pa));
    assert_int_equal(pa, 0xa00000 + 0x145000);
    assert_true(look(w->v, la + 0x1000, ACCESS_WRITE, &pa));
    assert_int_equal(pa, 0xc00000 + 0x146000);
    put64(w->pm, e, DATA_AT | 0xe7); /* and one again */
    assert_true(look(w->v, la + 0x1000, ACCESS_READ, &pa));
    assert_int_equal(pa, DATA_AT + 0x146000);
    world_free(w);
}

/* A guest table that EPT lets be read only: an accessed flag that is due is a violation, and is not set. */
static void table_not_writable(void **state)
{
    struct world *w = world_new(P_4, S_EPT4);
    pa_t pte = tree_entry(w, &w->linear, w->la[0], 1), pa;
    pa_t ept = tree_entry(w, &w->slat, pte ^ SWAP, 1);
    anew(w);
    warm(w);
    put64(w->pm, ept, get64(w->pm, ept) & ~2ull);
    for (unsigned i = 0; i < 3; i++)
        assert_true(look(w->v, w->la[0], ACCESS_WRITE, &pa));
    u64 value = get64(w->pm, pte);
    put64(w->pm, pte, value & ~0x20ull);
    assert_false(look(w->v, w->la[0], ACCESS_READ, &pa));
    assert_int_equal(get64(w->pm, pte), value & ~0x20ull);
    put64(w->pm, ept, get64(w->pm, ept) | 2);
    assert_true(look(w->v, w->la[0], ACCESS_READ, &pa));
    assert_int_equal(get64(w->pm, pte), value);
    world_free(w);
}

/* A processor that may write a page when it becomes a table's may not any more. */
static void grants_withdrawn(void **state)
{
    struct world *w = world_new(P_4, S_NONE);
    struct vcpu *o = test_vcpu(w->pm, 0);
    struct translation t;
    struct walk walk;
    pa_t page = tree_entry(w, &w->linear, w->la[0], 2) & PAGE_MASK, pa;
    o->cr0 = CR0_PE;
    o->efer = 0;
    mmu_update(o);
    anew(w);
    assert_true(mmu_translate(o, page, ACCESS_WRITE, &t, &walk));
    assert_int_equal(tlb_slot(o, page)->tag_write, page);
    assert_true(look(w->v, w->la[0], ACCESS_READ, &pa));
    assert_true(physmap_page_flags(w->pm, page) & PAGE_TABLE);
    assert_int_equal(tlb_slot(o, page)->tag_write, TLB_NONE);
    assert_int_equal(tlb_slot(o, page)->tag_read, page);
    mmu_free(o->mmu);
    free(o);
    world_free(w);
}

/* PAE: the PDPTE registers are roots; loading others leads elsewhere, and back. */
static void pdpte_registers(void **state)
{
    struct world *w = world_new(P_PAE, S_NONE);
    gva_t la = 0xc0003000;
    pa_t pa, was, pd = world_table(w), pt = world_table(w);
    anew(w);
    assert_true(look(w->v, la, ACCESS_READ, &was) && look(w->v, la, ACCESS_READ, &was));
    u64 old = w->v->pdpte[3];
    put64(w->pm, pt + 3 * 8, (DATA_AT + 0x7ff000) | 7);
    put64(w->pm, pd, pt | 7);
    for (unsigned i = 0; i < 4; i++) {
        w->v->pdpte[3] = i & 1 ? old : pd | 1;
        mmu_update(w->v);
        assert_true(look(w->v, la, ACCESS_READ, &pa));
        assert_int_equal(pa, i & 1 ? was : DATA_AT + 0x7ff000);
    }
    w->v->pdpte[3] = 0;
    mmu_update(w->v);
    assert_false(look(w->v, la, ACCESS_READ, &pa));
    world_free(w);
}

static void floods(void **state)
{
    struct world *w = world_new(P_4, S_NONE);
    pa_t e = tree_entry(w, &w->linear, w->la[0], 2), pa;
    anew(w);
    /* Each write ends a shadow that is made again: after a while the page is let go, and answers stay right. */
    for (unsigned i = 0; i < 200; i++) {
        put64(w->pm, e, get64(w->pm, e) ^ BIT64(52));
        assert_true(look(w->v, w->la[0], ACCESS_WRITE, &pa));
    }
    assert_true(mmu_shadow_stats(w->v)->floods > 0);
    assert_true(mmu_shadow_stats(w->v)->dropped < 100);
    assert_false(physmap_page_flags(w->pm, e) & PAGE_TABLE);
    assert_true(look(w->v, w->la[0], ACCESS_WRITE, &pa));
    /* A page that is a table no more, and written as data: it costs a few slow writes. */
    struct shadow_stats before = *mmu_shadow_stats(w->v);
    assert_true(look(w->v, w->la[4], ACCESS_WRITE, &pa));
    pa_t page = tree_entry(w, &w->linear, w->la[4], 2) & PAGE_MASK;
    put64(w->pm, tree_entry(w, &w->linear, w->la[4], 4), 0);
    for (unsigned i = 0; i < 512; i++)
        put64(w->pm, page + 8 * i, i);
    assert_false(physmap_page_flags(w->pm, page) & PAGE_TABLE);
    assert_true(mmu_shadow_stats(w->v)->writes[SHADOW_WRITE_8] - before.writes[SHADOW_WRITE_8] < 150);
    world_free(w);
}

/* More regions and tables than there is room for: correct, if slower, and bounded. */
static void bounded(void **state)
{
    struct physmap *pm = test_memory(64);
    struct tables t = tables_new(pm, 0x100000);
    struct vcpu *v = test_vcpu(pm, t.root);
    struct translation tr;
    struct walk walk;
    /* 5000 last-level tables behind 5000 page directories would be 40 MiB: they share a few last-level tables. */
    pa_t leaf = 0x80000;
    for (unsigned i = 0; i < 512; i++)
        put64(pm, leaf + 8 * i, (i << 12) | 0x67);
    for (unsigned i = 0; i < 9; i++) {
        put64(pm, t.root + 8 * i, (0x200000 + i * 0x1000) | 0x27);
        for (unsigned k = 0; k < 512; k++) {
            pa_t pd = 0x300000 + (i * 512ull + k) * 0x1000;
            put64(pm, 0x200000 + i * 0x1000 + 8 * k, pd | 0x27);
            for (unsigned j = 0; j < 4; j++)
                put64(pm, pd + 8 * j, leaf | 0x27);
        }
    }
    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 0; i < 9 * 512; i++)
            for (unsigned j = 0; j < 4; j++) {
                gva_t la = (gva_t)i << 30 | j << 21 | (i & 511) << 12;
                assert_true(mmu_translate(v, la, ACCESS_READ, &tr, &walk));
                assert_int_equal(tr.pa, (i & 511) << 12);
            }
    const struct shadow_stats *s = mmu_shadow_stats(v);
    assert_true(s->evicted > 1000 && s->live <= 8192 && s->tables < 4096);
    test_vcpu_free(v);
}

/* Processors that read the same tables by other rules do not share what depends on them. */
static void roles(void **state)
{
    unsigned long differ = 0;
    for (unsigned p = P_32; p < P_KINDS; p++)
        for (unsigned s = 0; s < S_KINDS; s++) {
            struct world *w = world_new((enum paging_kind)p, (enum slat_choice)s);
            struct vcpu *v = w->v;
            if (w->linear.entry == 8) /* an upper entry that is good only with EFER.NXE */
                put64(w->pm, tree_entry(w, &w->linear, w->la[0], 2), get64(w->pm, tree_entry(w, &w->linear, w->la[0], 2)) | BIT64(63));
            if (s >= S_NPT_PAE)
                put64(w->pm, tree_entry(w, &w->slat, DATA_AT, 2), get64(w->pm, tree_entry(w, &w->slat, DATA_AT, 2)) | BIT64(63));
            if (s >= S_EPT4 && s <= S_EPT5_AD) /* executable for user pages only, with mode-based control */
                put64(w->pm, tree_entry(w, &w->slat, DATA_AT, 2), (get64(w->pm, tree_entry(w, &w->slat, DATA_AT, 2)) & ~4ull) | BIT64(10));
            anew(w);
            for (unsigned what = 0; what < 6; what++)
                for (unsigned turn = 0; turn < 6; turn++) {
                    if (what == 0)
                        v->cr4 ^= CR4_PSE;
                    else if (what == 1)
                        v->efer ^= EFER_NXE;
                    else if (what == 2)
                        w->config.ad = !w->config.ad && w->config.kind == SLAT_EPT;
                    else if (what == 3)
                        w->config.mbec = !w->config.mbec && w->config.kind == SLAT_EPT;
                    else if (what == 4)
                        w->config.nx = !w->config.nx;
                    else
                        v->cr0 ^= CR0_WP;
                    world_enter(w, v);
                    for (unsigned i = 0; i < w->n; i++)
                        for (unsigned a = ACCESS_READ; a <= ACCESS_EXEC; a <<= 1) {
                            pa_t once, twice;
                            look(v, w->la[i], a, &once);
                            look(v, w->la[i], a, &twice);
                            assert_int_equal(once, twice);
                            differ += once == ~0ull;
                        }
                }
            world_free(w);
        }
    assert_true(differ > 100);
}

/* Each bit of the role by itself: a shadow that was made by one rule does not answer by another. */
static void role_bits(void **state)
{
    pa_t pa;
    /* EPT's accessed flags: a shadow made without them stands on entries in which they are clear. */
    struct world *w = world_new(P_4, S_EPT4);
    pa_t upper = tree_entry(w, &w->slat, DATA_AT, 2);
    anew(w);
    warm(w);
    assert_false(get64(w->pm, upper) & 0x100);
    pa_t last = tree_entry(w, &w->slat, DATA_AT, 1);
    put64(w->pm, last, get64(w->pm, last) | 0x300); /* there nothing is due */
    w->config.ad = true;
    world_enter(w, w->v);
    assert_true(look(w->v, w->la[0], ACCESS_READ, &pa));
    assert_true(get64(w->pm, upper) & 0x100);
    w->config.ad = false;
    /* Execute-only pages, large pages. */
    u64 old = get64(w->pm, upper);
    for (unsigned what = 0; what < 2; what++) {
        put64(w->pm, upper, what ? (DATA_AT ^ SWAP) | 7 | 6 << 3 | 0x80 : old & ~3ull);
        for (unsigned turn = 0; turn < 4; turn++) {
            *(what ? &w->config.huge_2m : &w->config.exec_only) = !(turn & 1);
            world_enter(w, w->v);
            for (unsigned again = 0; again < 2; again++)
                if (look(w->v, w->la[0], ACCESS_EXEC, &pa) != !(turn & 1))
                    fail_msg("%s: turn %u is %s", what ? "large page" : "execute-only", turn, turn & 1 ? "allowed" : "denied");
        }
    }
    put64(w->pm, upper, old);
    w->config.huge_2m = true;
    for (unsigned turn = 0; turn < 4; turn++) { /* the same root, one level more: each answer is compared with a walk */
        w->config.levels = turn & 1 ? 5 : 4;
        world_enter(w, w->v);
        for (unsigned i = 0; i < 2 * w->n; i++)
            look(w->v, w->la[i % w->n], ACCESS_READ, &pa);
    }
    world_free(w);
    w = world_new(P_NONE, S_EPT4);
    anew(w);
    put64(w->pm, tree_entry(w, &w->slat, 0, 3), 7 | 6 << 3 | 0x80);
    for (unsigned turn = 0; turn < 8; turn++) {
        w->config.huge_1g = !(turn & 2);
        world_enter(w, w->v);
        assert_int_equal(look(w->v, w->la[0], ACCESS_READ, &pa), !(turn & 2));
    }
    world_free(w);
    w = world_new(P_4, S_NPT4);
    anew(w);
    for (unsigned turn = 0; turn < 4; turn++) { /* as EPT's levels */
        w->config.host_mode = turn & 1 ? PAGING_5LEVEL : PAGING_4LEVEL;
        world_enter(w, w->v);
        for (unsigned i = 0; i < 2 * w->n; i++)
            look(w->v, w->la[i % w->n], ACCESS_READ, &pa);
    }
    world_free(w);
    /* Linear tables: what is reserved depends on the processor. */
    w = world_new(P_4, S_NONE);
    anew(w);
    for (unsigned what = 0; what < 3; what++) {
        gva_t la = w->la[0];
        pa_t e = tree_entry(w, &w->linear, la, what == 0 ? 2 : what == 1 ? 4 : 3);
        u64 was = get64(w->pm, e);
        put64(w->pm, e, what == 0 ? BIT64(38) | 0xe7 : what == 1 ? was | 0x100 : 0xe7);
        for (unsigned turn = 0; turn < 4; turn++) {
            bool good = !(turn & 1);
            w->v->maxphyaddr = what == 0 && !good ? 36 : 40;
            w->v->features[FEAT_SVM] = what == 1 && !good;
            w->v->features[FEAT_PDPE1GB] = what != 2 || good;
            world_enter(w, w->v);
            for (unsigned again = 0; again < 2; again++)
                if (look(w->v, la, ACCESS_READ, &pa) != good)
                    fail_msg("%s: %s", what == 0 ? "address width" : what == 1 ? "AMD's reserved bit" : "1 GiB pages", good ? "denied" : "allowed");
        }
        put64(w->pm, e, was);
    }
    world_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cover),
        cmocka_unit_test(matrix),
        cmocka_unit_test(non_pae_guest_under_ept),
        cmocka_unit_test(upgrades_without_flush),
        cmocka_unit_test(accessed_and_dirty),
        cmocka_unit_test(own_writes),
        cmocka_unit_test(large_page_splits),
        cmocka_unit_test(table_not_writable),
        cmocka_unit_test(grants_withdrawn),
        cmocka_unit_test(pdpte_registers),
        cmocka_unit_test(floods),
        cmocka_unit_test(bounded),
        cmocka_unit_test(roles),
        cmocka_unit_test(role_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
