/* What the TLB may grant, and how far each invalidation reaches. */
#include "vcpu_test.h"

#define RW  (1 | 2 | 4)
#define G   0x100
#define BIG 0x80

static pa_t look(struct vcpu *v, gva_t la, u32 access)
{
    struct translation t;
    struct walk w;
    return mmu_translate(v, la, access, &t, &w) ? t.pa : ~0ull;
}
static pa_t where(struct vcpu *v, gva_t la) { return look(v, la, ACCESS_READ); }

static bool granted(struct vcpu *v, gva_t la, u32 access)
{
    const struct tlb_entry *e = tlb_slot(v, la);
    u64 tag = access == ACCESS_READ ? e->tag_read : access == ACCESS_WRITE ? e->tag_write : e->tag_exec;
    return tag == (la & PAGE_MASK);
}

static void grants(void **state)
{
    struct physmap *pm = test_memory(16);
    struct tables t = tables_new(pm, 0x100000);
    struct vcpu *v = test_vcpu(pm, t.root);
    tables_map(&t, 0x5000, 0x300000, RW);
    assert_int_equal(where(v, 0x5123), 0x300123);
    assert_true(granted(v, 0x5123, ACCESS_READ));
    assert_true(granted(v, 0x5123, ACCESS_EXEC));
    assert_false(granted(v, 0x5123, ACCESS_WRITE)); /* not dirty yet */
    assert_int_equal(look(v, 0x5123, ACCESS_WRITE), 0x300123);
    assert_true(granted(v, 0x5123, ACCESS_WRITE));
    assert_int_equal(get64(pm, tables_entry(&t, 0x5000, 1)) & 0x60, 0x60);
    const struct tlb_entry *e = tlb_slot(v, 0x5123);
    put64(pm, 0x300120, 0x77);
    assert_int_equal(*(u64 *)(uintptr_t)(0x5120 + e->addend), 0x77);
    /* A tracked page loses its write grant at once, everywhere, and gets it back by a later write. */
    physmap_set_page_flag(pm, 0x300000, PAGE_CODE);
    assert_false(granted(v, 0x5000, ACCESS_WRITE));
    assert_true(granted(v, 0x5000, ACCESS_READ));
    assert_int_equal(look(v, 0x5000, ACCESS_WRITE), 0x300000);
    assert_false(granted(v, 0x5000, ACCESS_WRITE));
    physmap_clear_page_flag(pm, 0x300000, PAGE_CODE);
    u64 walks = mmu_stats(v)->walks;
    assert_int_equal(look(v, 0x5000, ACCESS_WRITE), 0x300000);
    assert_true(granted(v, 0x5000, ACCESS_WRITE));
    assert_int_equal(mmu_stats(v)->walks, walks);
    /* Look-only accesses fill nothing. */
    tables_map(&t, 0x6000, 0x301000, RW);
    look(v, 0x6000, ACCESS_READ | ACCESS_NO_AD);
    assert_false(granted(v, 0x6000, ACCESS_READ));
    /* Privileges have arrays of their own. */
    tables_map(&t, 0x7000, 0x302000, 3);
    assert_int_equal(where(v, 0x7000), 0x302000);
    v->cpl = 3;
    mmu_update_privilege(v);
    assert_false(granted(v, 0x7000, ACCESS_READ));
    assert_int_equal(look(v, 0x7000, ACCESS_READ | ACCESS_USER), ~0ull);
    assert_int_equal(look(v, 0x5000, ACCESS_READ | ACCESS_USER), 0x300000);
    assert_true(granted(v, 0x5000, ACCESS_READ));
    v->rflags |= FL_AC;
    v->cr0 |= CR0_AM;
    mmu_update_privilege(v);
    assert_false(granted(v, 0x5000, ACCESS_READ)); /* alignment checking: all slow */
    test_vcpu_free(v);
}

static u64 zero_read(void *opaque, u64 offset, unsigned size) { return 0; }
static void no_write(void *opaque, u64 offset, u64 value, unsigned size) {}
static const struct io_ops ops = {zero_read, no_write};

static void special_pages(void **state)
{
    struct physmap *pm = test_memory(16);
    struct tables t = tables_new(pm, 0x100000);
    struct vcpu *v = test_vcpu(pm, t.root);
    struct error err;
    static u8 rom[4096];
    assert_int_equal(physmap_add_mmio(pm, 0x400000, 0x1000, &ops, NULL, "dev", &err), 0);
    assert_int_equal(physmap_add_rom(pm, 0x401000, 0x1000, rom, "rom", &err), 0);
    for (unsigned i = 0; i < 8; i++)
        tables_map(&t, 0x10000 + i * 0x1000, 0x400000 + i * 0x1000, RW);
    assert_int_equal(look(v, 0x10000, ACCESS_WRITE), 0x400000);
    assert_false(granted(v, 0x10000, ACCESS_READ) || granted(v, 0x10000, ACCESS_WRITE) ||
                 granted(v, 0x10000, ACCESS_EXEC));
    look(v, 0x11000, ACCESS_WRITE);
    assert_int_equal(where(v, 0x11000), 0x401000);
    assert_true(granted(v, 0x11000, ACCESS_READ));
    assert_false(granted(v, 0x11000, ACCESS_WRITE));
    /* The APIC's page. */
    assert_int_equal(look(v, 0x12000, ACCESS_WRITE), 0x402000);
    assert_true(granted(v, 0x12000, ACCESS_WRITE));
    v->apic_page = 0x402000;
    mmu_update(v);
    assert_false(granted(v, 0x12000, ACCESS_WRITE));
    look(v, 0x12000, ACCESS_WRITE);
    assert_false(granted(v, 0x12000, ACCESS_WRITE));
    v->virt_apic_page = 0x403000;
    mmu_update(v);
    look(v, 0x13000, ACCESS_WRITE);
    assert_false(granted(v, 0x13000, ACCESS_READ));
    v->virt_apic_page = ~0ull;
    mmu_update(v);
    look(v, 0x13000, ACCESS_WRITE);
    assert_true(granted(v, 0x13000, ACCESS_READ));
    /* Breakpoints. */
    look(v, 0x14000, ACCESS_WRITE);
    v->dr[2] = 0x14ff8;
    v->dr7 = DR7_FIXED | 0x30 | 3u << 24 | 2u << 26;
    mmu_watch_changed(v);
    assert_false(granted(v, 0x14000, ACCESS_READ));
    look(v, 0x14000, ACCESS_WRITE);
    assert_false(granted(v, 0x14000, ACCESS_WRITE));
    v->dr7 = DR7_FIXED;
    mmu_watch_changed(v);
    look(v, 0x14000, ACCESS_WRITE);
    assert_true(granted(v, 0x14000, ACCESS_WRITE));
    /* The map changes under a granted page. */
    assert_int_equal(physmap_add_mmio(pm, 0x404000, 0x1000, &ops, NULL, "bar", &err), 0);
    assert_false(granted(v, 0x14000, ACCESS_READ));
    physmap_remove_mmio(pm, 0x404000);
    test_vcpu_free(v);
}

/* Changes the mapping behind the TLB's back, so that a stale answer shows that an entry survived. */
struct reach {
    struct physmap *pm;
    struct vcpu *v;
    struct tables a, b;
};

static struct reach reach_new(void)
{
    struct reach r = {.pm = test_memory(64)};
    r.a = tables_new(r.pm, 0x100000);
    r.b = tables_new(r.pm, 0x200000);
    r.v = test_vcpu(r.pm, r.a.root);
    return r;
}
#define OLD 0x400000ull
#define NEW 0x600000ull
static void remap(struct tables *t, gva_t la, u64 flags) { tables_map(t, la, NEW | (la & 0xff000), flags); }
static bool survived(struct vcpu *v, gva_t la) { return (where(v, la) & ~0xfffffull) != NEW; }

static void cr3_without_pcid(void **state)
{
    struct reach r = reach_new();
    struct vcpu *v = r.v;
    for (int i = 0; i < 2; i++) {
        struct tables *t = i ? &r.b : &r.a;
        tables_map(t, 0x1000, OLD, RW);
        tables_map(t, 0x2000, OLD, RW | G);
    }
    where(v, 0x1000);
    where(v, 0x2000);
    for (int i = 0; i < 2; i++)
        for (gva_t la = 0x1000; la <= 0x2000; la += 0x1000)
            remap(i ? &r.b : &r.a, la, RW | (la == 0x2000 ? G : 0));
    assert_true(survived(v, 0x1000));
    v->cr3 = r.b.root;
    mmu_flush_cr3(v, 0);
    mmu_update(v);
    assert_false(survived(v, 0x1000));
    assert_true(survived(v, 0x2000)); /* global */
    /* A base that changed without a flush: never stale. */
    tables_map(&r.a, 0x1000, OLD, RW);
    v->cr3 = r.a.root;
    mmu_update(v);
    assert_true(survived(v, 0x1000)); /* that is: read anew from a's tables */
    mmu_flush_global(v);
    assert_false(survived(v, 0x2000));
    /* Without CR4.PGE the G bit means nothing. */
    v->cr4 &= ~CR4_PGE;
    mmu_update(v);
    tables_map(&r.a, 0x3000, OLD, RW | G);
    where(v, 0x3000);
    remap(&r.a, 0x3000, RW | G);
    mmu_flush_cr3(v, 0);
    assert_false(survived(v, 0x3000));
    test_vcpu_free(v);
}

static void pcids(void **state)
{
    struct reach r = reach_new();
    struct vcpu *v = r.v;
    v->cr4 |= CR4_PCIDE;
    tables_map(&r.a, 0x1000, OLD, RW);
    tables_map(&r.a, 0x2000, OLD, RW | G);
    tables_map(&r.b, 0x1000, OLD, RW);
    tables_map(&r.b, 0x2000, OLD, RW | G);
#define GO(table, pcid) (v->cr3 = (table).root | (pcid), mmu_update(v))
#define WARM()                                                                                                         \
    do {                                                                                                               \
        mmu_flush_all(v);                                                                                              \
        for (int k_ = 0; k_ < 2; k_++) {                                                                               \
            struct tables *t_ = k_ ? &r.b : &r.a;                                                                      \
            GO(*t_, 1 + k_);                                                                                           \
            for (gva_t la_ = 0x1000; la_ <= 0x2000; la_ += 0x1000) {                                                   \
                u64 f_ = RW | (la_ == 0x2000 ? G : 0);                                                                 \
                tables_map(t_, la_, OLD, f_);                                                                          \
                where(v, la_);                                                                                         \
                remap(t_, la_, f_);                                                                                    \
            }                                                                                                          \
        }                                                                                                              \
        GO(r.a, 1);                                                                                                    \
    } while (0)
#define EXPECT(local1, global1, local2, global2)                                                                       \
    do {                                                                                                               \
        GO(r.a, 1);                                                                                                    \
        assert_int_equal(survived(v, 0x1000), local1);                                                                 \
        assert_int_equal(survived(v, 0x2000), global1);                                                                \
        GO(r.b, 2);                                                                                                    \
        assert_int_equal(survived(v, 0x1000), local2);                                                                 \
        assert_int_equal(survived(v, 0x2000), global2);                                                                \
    } while (0)
    WARM();
    EXPECT(1, 1, 1, 1); /* switches flush nothing */
    WARM();
    mmu_invlpg(v, 0x1000);
    EXPECT(0, 1, 1, 1);
    WARM();
    mmu_invlpg(v, 0x2fff); /* a global page: in every PCID */
    EXPECT(1, 0, 1, 0);
    WARM();
    mmu_flush_cr3(v, 2);
    EXPECT(1, 1, 0, 1);
    WARM();
    mmu_invpcid(v, INVPCID_ADDRESS, 2, 0x1000);
    EXPECT(1, 1, 0, 1);
    WARM();
    mmu_invpcid(v, INVPCID_ADDRESS, 2, 0x2000);
    EXPECT(1, 1, 1, 1); /* globals may stay */
    WARM();
    mmu_invpcid(v, INVPCID_CONTEXT, 1, 0);
    EXPECT(0, 1, 1, 1);
    WARM();
    mmu_invpcid(v, INVPCID_ALL, 0, 0);
    EXPECT(0, 1, 0, 1);
    WARM();
    mmu_invpcid(v, INVPCID_ALL_GLOBAL, 0, 0);
    EXPECT(0, 0, 0, 0);
    WARM();
    mmu_flush_global(v);
    EXPECT(0, 0, 0, 0);
    test_vcpu_free(v);
}

static void vpids(void **state)
{
    struct reach r = reach_new();
    struct vcpu *v = r.v;
#define VPID(n) (mmu_set_guest(v, NULL, n), mmu_update(v))
#define WARM_VPIDS()                                                                                                   \
    do {                                                                                                               \
        mmu_flush_all(v);                                                                                              \
        tables_map(&r.a, 0x1000, OLD, RW);                                                                             \
        tables_map(&r.a, 0x2000, OLD, RW | G);                                                                         \
        for (u32 n_ = 0; n_ < 3; n_++) {                                                                               \
            VPID(n_);                                                                                                  \
            where(v, 0x1000);                                                                                          \
            where(v, 0x2000);                                                                                          \
        }                                                                                                              \
        remap(&r.a, 0x1000, RW);                                                                                       \
        remap(&r.a, 0x2000, RW | G);                                                                                   \
    } while (0)
#define EXPECT_VPIDS(...)                                                                                              \
    do {                                                                                                               \
        static const bool want_[3][2] = {__VA_ARGS__};                                                                 \
        for (u32 n_ = 0; n_ < 3; n_++) {                                                                               \
            VPID(n_);                                                                                                  \
            assert_int_equal(survived(v, 0x1000), want_[n_][0]);                                                       \
            assert_int_equal(survived(v, 0x2000), want_[n_][1]);                                                       \
        }                                                                                                              \
    } while (0)
    WARM_VPIDS();
    EXPECT_VPIDS({1, 1}, {1, 1}, {1, 1});
    WARM_VPIDS();
    VPID(1);
    mmu_invlpg(v, 0x2000);
    EXPECT_VPIDS({1, 1}, {1, 0}, {1, 1});
    WARM_VPIDS();
    VPID(1);
    mmu_flush_global(v);
    EXPECT_VPIDS({1, 1}, {0, 0}, {1, 1});
    WARM_VPIDS();
    VPID(0);
    mmu_invvpid(v, false, 2, false, true, 0x1000);
    EXPECT_VPIDS({1, 1}, {1, 1}, {0, 1});
    WARM_VPIDS();
    mmu_invvpid(v, false, 2, true, false, 0);
    EXPECT_VPIDS({1, 1}, {1, 1}, {0, 1});
    WARM_VPIDS();
    mmu_invvpid(v, false, 1, false, false, 0);
    EXPECT_VPIDS({1, 1}, {0, 0}, {1, 1});
    WARM_VPIDS();
    mmu_invvpid(v, true, 0, false, false, 0); /* all but VPID 0 */
    EXPECT_VPIDS({1, 1}, {0, 0}, {0, 0});
    WARM_VPIDS();
    mmu_invlpga(v, 1, 0x1000);
    EXPECT_VPIDS({1, 1}, {0, 1}, {1, 1});
    WARM_VPIDS();
    mmu_flush_asid(v, 2, true);
    EXPECT_VPIDS({1, 1}, {1, 1}, {0, 1});
    WARM_VPIDS();
    mmu_flush_all(v);
    EXPECT_VPIDS({0, 0}, {0, 0}, {0, 0});
    test_vcpu_free(v);
}

static void invept(void **state)
{
    struct reach r = reach_new();
    struct vcpu *v = r.v;
    /* Two EPTs of one 1 GiB page each; the guest has paging off. */
    struct slat s[2];
    for (unsigned i = 0; i < 2; i++) {
        pa_t root = 0x300000 + i * 0x2000;
        put64(r.pm, root, (root + 0x1000) | 7);
        put64(r.pm, root + 0x1000, 0x80 | 6 << 3 | 7);
        s[i] = (struct slat){
            .kind = SLAT_EPT, .levels = 4, .huge_1g = true, .huge_2m = true, .root = root, .tag = root | 0x1e};
    }
    v->cr0 &= ~CR0_PG;
    v->efer = 0;
    for (int all = 0; all < 2; all++) {
        for (unsigned i = 0; i < 2; i++) {
            put64(r.pm, s[i].root + 0x1000, 0x80 | 6 << 3 | 7);
            mmu_set_guest(v, &s[i], 1);
            mmu_update(v);
            mmu_flush_global(v);
            assert_int_equal(where(v, 0x1000), 0x1000);
            put64(r.pm, s[i].root + 0x1000, 0);
        }
        mmu_invept(v, all, s[0].tag ^ 0x40); /* the low bits are no part of the tag */
        for (unsigned i = 0; i < 2; i++) {
            mmu_set_guest(v, &s[i], 1);
            assert_int_equal(where(v, 0x1000), i == 0 || all ? ~0ull : 0x1000);
        }
        mmu_flush_all(v);
    }
    test_vcpu_free(v);
}

static void large_pages(void **state)
{
    for (unsigned size = 0; size < 2; size++)
        for (unsigned probe = 0; probe < 2; probe++) {
            struct reach r = reach_new();
            struct vcpu *v = r.v;
            unsigned level = size ? 3 : 2;
            gva_t base = 0x80000000;
            tables_map(&r.a, 0x40000000, OLD, RW);
            pa_t e = tables_entry(&r.a, base, level);
            put64(r.pm, e, 0x0 | RW | BIG);
            for (unsigned i = 0; i < 40; i++)
                assert_int_equal(where(v, base + i * 0x3000), i * 0x3000);
            assert_int_equal(where(v, 0x40000000), OLD);
            put64(r.pm, e, 0);
            /* INVLPG elsewhere leaves them; anywhere inside drops all fragments. */
            mmu_invlpg(v, base + (size ? 1ull << 30 : 2 * MIB));
            mmu_invlpg(v, base - 1);
            assert_int_equal(where(v, base + 0x3000), 0x3000);
            mmu_invlpg(v, base + (probe ? (size ? (1ull << 30) - 1 : 2 * MIB - 1) : 0x1000));
            for (unsigned i = 0; i < 40; i++)
                assert_int_equal(where(v, base + i * 0x3000), ~0ull);
            put64(r.pm, tables_entry(&r.a, 0x40000000, 1), 0);
            assert_int_equal(where(v, 0x40000000), OLD);
            test_vcpu_free(v);
        }
    /* 4 MiB pages: the other half of the page counts as inside. */
    struct reach r = reach_new();
    struct vcpu *v = r.v;
    v->efer = 0;
    v->cr4 = CR4_PSE;
    v->mode = MODE_PROT32;
    v->linear_mask = 0xffffffff;
    mmu_update(v);
    put32(r.pm, r.a.root + 4 * 4, RW | BIG);
    assert_int_equal(where(v, 0x1000000 + 0x5000), 0x5000);
    put32(r.pm, r.a.root + 4 * 4, 0);
    assert_int_equal(where(v, 0x1000000 + 0x5000), 0x5000);
    mmu_invlpg(v, 0x1000000 + 0x3ff000);
    assert_int_equal(where(v, 0x1000000 + 0x5000), ~0ull);
    test_vcpu_free(v);
}

static void modes_and_keys(void **state)
{
    /* A change of permission bits is felt without any flush; INVLPG reaches the spaces of all modes. */
    struct reach r = reach_new();
    struct vcpu *v = r.v;
    tables_map(&r.a, 0x1000, OLD, 1 | 4);
    assert_int_equal(look(v, 0x1000, ACCESS_WRITE), ~0ull);
    v->cr0 &= ~CR0_WP;
    mmu_update(v);
    assert_int_equal(look(v, 0x1000, ACCESS_WRITE), OLD);
    assert_true(granted(v, 0x1000, ACCESS_WRITE));
    v->cr0 |= CR0_WP;
    mmu_update(v);
    assert_false(granted(v, 0x1000, ACCESS_WRITE));
    where(v, 0x1000);
    remap(&r.a, 0x1000, RW);
    mmu_invlpg(v, 0x1000);
    v->cr0 &= ~CR0_WP;
    mmu_update(v);
    assert_false(survived(v, 0x1000));
    /* PKRU. */
    v->cr4 |= CR4_PKE;
    tables_map(&r.a, 0x2000, OLD, RW | 3ull << 59);
    mmu_update(v);
    assert_int_equal(where(v, 0x2000), OLD);
    v->pkru = 1u << 6;
    mmu_update(v);
    assert_false(granted(v, 0x2000, ACCESS_READ));
    assert_int_equal(where(v, 0x2000), ~0ull);
    /* SMAP: AC has an array of its own. */
    v->cr4 = CR4_PAE | CR4_SMAP;
    mmu_update(v);
    v->rflags |= FL_AC;
    mmu_update_privilege(v);
    assert_int_equal(look(v, 0x1000, ACCESS_READ | mmu_access_mode(v)), NEW | 0x1000);
    assert_true(granted(v, 0x1000, ACCESS_READ));
    v->rflags &= ~FL_AC;
    mmu_update_privilege(v);
    assert_false(granted(v, 0x1000, ACCESS_READ));
    assert_int_equal(look(v, 0x1000, ACCESS_READ | mmu_access_mode(v)), ~0ull);
    test_vcpu_free(v);
}

#define JUMP_HINT(v, rip) (mmu_jump_cache(v)[(rip) & ((1u << JUMP_CACHE_BITS) - 1)].block)

static void jump_cache(void **state)
{
    struct reach r = reach_new();
    struct vcpu *v = r.v;
    mmu_set_mode(v, MMU_WALK); /* flushes drop what they reach: with shadows, what is still true is kept (renewal) */
    mmu_update(v);
    tables_map(&r.a, 0x1000, OLD, RW);
    tables_map(&r.a, 0x2000, OLD, RW);
    look(v, 0x1000, ACCESS_EXEC);
    look(v, 0x2000, ACCESS_EXEC);
    struct jump_cache_entry *j = mmu_jump_cache(v);
    for (unsigned i = 0; i < 1u << JUMP_CACHE_BITS; i++)
        assert_true(!j[i].block && (!is_canonical(j[i].rip, 57) || (j[i].rip & ((1u << JUMP_CACHE_BITS) - 1)) != i));
    int block;
    mmu_jump_hint(v, 0x1234, &block);
    mmu_jump_hint(v, 0x2234, &block);
    mmu_invlpg(v, 0x1000);
    assert_null(JUMP_HINT(v, 0x1234));
    assert_non_null(JUMP_HINT(v, 0x2234));
    /* A hint is found even when its page has left the TLB, or is mapped anew without the right to execute. */
    tables_map(&r.a, 0x2000 + TLB_SIZE * PAGE_SIZE, OLD, RW | BIT64(63));
    where(v, 0x2000 + TLB_SIZE * PAGE_SIZE);
    mmu_invlpg(v, 0x1000);
    mmu_invlpg(v, 0x3000);
    assert_non_null(JUMP_HINT(v, 0x2234));
    mmu_invlpg(v, 0x2000);
    assert_null(JUMP_HINT(v, 0x2234));
    look(v, 0x1000, ACCESS_EXEC);
    mmu_jump_hint(v, 0x1234, &block);
    tables_map(&r.a, 0x1000, OLD, RW | BIT64(63));
    look(v, 0x1000, ACCESS_WRITE); /* not dirty yet: walks, and finds the new rights */
    assert_non_null(JUMP_HINT(v, 0x1234));
    mmu_invlpg(v, 0x1000);
    assert_null(JUMP_HINT(v, 0x1234));
    mmu_jump_hint(v, 0x2234, &block);
    mmu_flush_cr3(v, 0);
    assert_null(JUMP_HINT(v, 0x2234));
    assert_true(v->attention & ATT_BLOCK);
    /* Likewise for large pages: INVLPG anywhere inside reaches hints whose fragments are gone. */
    put64(r.pm, tables_entry(&r.a, 0x80000000, 2), RW | BIG);
    look(v, 0x80003000, ACCESS_EXEC);
    mmu_jump_hint(v, 0x80003010, &block);
    where(v, 0x2000 + TLB_SIZE * PAGE_SIZE); /* another slot */
    tables_map(&r.a, 0x3000, OLD, RW | BIT64(63));
    where(v, 0x3000); /* the same slot */
    mmu_invlpg(v, 0x80400000);
    assert_non_null(JUMP_HINT(v, 0x80003010));
    mmu_invlpg(v, 0x801ff000);
    assert_null(JUMP_HINT(v, 0x80003010));
    /* Hints into global pages outlive what global pages outlive, and nothing more. */
    mmu_flush_global(v);
    tables_map(&r.a, 0x1000, OLD, RW | G);
    tables_map(&r.a, 0x2000, OLD, RW);
#define HINT_BOTH()                                                                                                    \
    do {                                                                                                               \
        look(v, 0x1000, ACCESS_EXEC);                                                                                  \
        look(v, 0x2000, ACCESS_EXEC);                                                                                  \
        mmu_jump_hint(v, 0x1234, &block);                                                                              \
        mmu_jump_hint(v, 0x2234, &block);                                                                              \
    } while (0)
    HINT_BOTH();
    mmu_flush_cr3(v, 0);
    assert_non_null(JUMP_HINT(v, 0x1234));
    assert_null(JUMP_HINT(v, 0x2234));
    HINT_BOTH();
    mmu_flush_global(v);
    assert_null(JUMP_HINT(v, 0x1234));
    assert_null(JUMP_HINT(v, 0x2234));
    HINT_BOTH();
    mmu_flush_cr3(v, 0);
    mmu_invlpg(v, 0x1000);
    assert_null(JUMP_HINT(v, 0x1234));
    /* Global when it was entered, not any more when the flush came. */
    HINT_BOTH();
    tables_map(&r.a, 0x1000, OLD, RW);
    look(v, 0x1000, ACCESS_WRITE); /* not dirty yet: filled anew */
    mmu_flush_cr3(v, 0);
    mmu_invlpg(v, 0x1000);
    assert_null(JUMP_HINT(v, 0x1234));
    v->cpl = 3;
    assert_ptr_not_equal(mmu_jump_cache(v), j);
    test_vcpu_free(v);
}

static void replacement(void **state)
{
    /* More address spaces than the pool holds: correct, if slower. */
    struct reach r = reach_new();
    struct vcpu *v = r.v;
    v->cr4 |= CR4_PCIDE;
    for (unsigned round = 0; round < 3; round++)
        for (unsigned pcid = 0; pcid < 40; pcid++) {
            tables_map(&r.a, 0x1000, OLD + pcid * 0x1000, RW);
            v->cr3 = r.a.root | pcid;
            mmu_update(v);
            mmu_flush_cr3(v, (u16)pcid);
            assert_int_equal(where(v, 0x1000), OLD + pcid * 0x1000);
        }
    test_vcpu_free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grants),      cmocka_unit_test(special_pages),  cmocka_unit_test(cr3_without_pcid),
        cmocka_unit_test(pcids),       cmocka_unit_test(vpids),          cmocka_unit_test(invept),
        cmocka_unit_test(large_pages), cmocka_unit_test(modes_and_keys), cmocka_unit_test(jump_cache),
        cmocka_unit_test(replacement),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
