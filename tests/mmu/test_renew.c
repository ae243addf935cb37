/* What the shadows give translated code at once, and what of the TLB and the jump hints outlives a flush. */
#include "vcpu_test.h"

#define RW 7
#define AD 0x60
#define G  0x100
#define XD BIT64(63)
#define OLD 0x400000ull
#define NEW 0x600000ull
#define KERNEL 0xffffffff80000000ull

struct place {
    struct physmap *pm;
    struct tables a, b;
    struct vcpu *v;
};

static struct place place_new(void)
{
    struct place p = {.pm = test_memory(64)};
    p.a = tables_new(p.pm, 0x100000);
    p.b = tables_new(p.pm, 0x200000);
    p.v = test_vcpu(p.pm, p.a.root);
    mmu_set_mode(p.v, MMU_SHADOW); /* with the check on, a refill enters nothing */
    mmu_update(p.v);
    return p;
}

static pa_t look(struct vcpu *v, gva_t la, u32 access)
{
    struct translation t;
    struct walk w;
    return mmu_translate(v, la, access | mmu_access_mode(v), &t, &w) ? t.pa : ~0ull;
}
static bool granted(struct vcpu *v, gva_t la, u32 access)
{
    const struct tlb_entry *e = tlb_slot(v, la);
    return (access == ACCESS_READ ? e->tag_read : access == ACCESS_WRITE ? e->tag_write : e->tag_exec) == (la & PAGE_MASK);
}
static bool refill(struct vcpu *v, gva_t la, u32 access)
{
    mmu_refill(v, la & PAGE_MASK, tlb_slot(v, la), access);
    return granted(v, la, access);
}

static void refills(void **state)
{
    struct place p = place_new();
    struct vcpu *v = p.v;
    for (unsigned i = 1; i < 12; i++)
        tables_map(&p.a, i << 12, OLD + (i << 12), RW | AD);
    assert_true(mmu_refills(v));
    assert_false(refill(v, 0x1000, ACCESS_READ)); /* nothing is known of the tables yet */
    assert_int_equal(look(v, 0x1000, ACCESS_READ), OLD + 0x1000);
    assert_true(refill(v, 0x2000, ACCESS_READ));
    assert_int_equal(look(v, 0x2123, ACCESS_READ), OLD + 0x2123);
    assert_int_equal(*(u8 **)&(u64){0x2000 + tlb_slot(v, 0x2000)->addend}, physmap_ram(p.pm, OLD + 0x2000));
    assert_true(refill(v, 0x3000, ACCESS_WRITE));
    /* Not when a flag is due, and none is set. */
    tables_map(&p.a, 0x4000, OLD, RW | 0x40);
    tables_map(&p.a, 0x5000, OLD, RW | 0x20);
    assert_false(refill(v, 0x4000, ACCESS_READ));
    assert_false(refill(v, 0x5000, ACCESS_WRITE));
    assert_true(refill(v, 0x5000, ACCESS_READ));
    assert_false(granted(v, 0x5000, ACCESS_WRITE));
    assert_int_equal(get64(p.pm, tables_entry(&p.a, 0x4000, 1)) & AD, 0x40);
    assert_int_equal(get64(p.pm, tables_entry(&p.a, 0x5000, 1)) & AD, 0x20);
    /* Nor what is not allowed, not there, reserved, or watched. */
    tables_map(&p.a, 0x6000, OLD, (RW & ~2) | AD);
    tables_map(&p.a, 0x7000, OLD, (RW & ~1) | AD);
    tables_map(&p.a, 0x8000, OLD, RW | AD | BIT64(45));
    assert_false(refill(v, 0x6000, ACCESS_WRITE));
    assert_false(refill(v, 0x7000, ACCESS_READ));
    assert_false(refill(v, 0x8000, ACCESS_READ));
    v->dr[0] = 0x9000;
    v->dr7 = DR7_FIXED | 2 | 3u << 16;
    mmu_watch_changed(v);
    assert_false(refill(v, 0x9000, ACCESS_READ));
    v->dr7 = DR7_FIXED;
    mmu_watch_changed(v);
    /* A tracked page is read freely, and written under supervision. */
    physmap_set_page_flag(p.pm, OLD + 0xa000, PAGE_CODE);
    assert_false(refill(v, 0xa000, ACCESS_WRITE));
    assert_true(refill(v, 0xa000, ACCESS_READ));
    assert_false(refill(v, 0xa000, ACCESS_WRITE));
    /* An access across pages, and an address that is none. */
    mmu_refill(v, 0xb000, tlb_slot(v, 0xa000), ACCESS_READ);
    assert_false(granted(v, 0xb000, ACCESS_READ));
    assert_false(refill(v, 0xb000 | 1ull << 48, ACCESS_READ));
    assert_false(refill(v, 0xb000 | 1ull << 47, ACCESS_READ));
    /* User and supervisor apart; SMAP. */
    tables_map(&p.a, 0xb000, OLD, 3 | AD);
    v->cpl = 3;
    mmu_update_privilege(v);
    assert_false(refill(v, 0xb000, ACCESS_READ));
    assert_true(refill(v, 0x1000, ACCESS_READ));
    v->cpl = 0;
    v->cr4 |= CR4_SMAP;
    mmu_update(v);
    assert_false(refill(v, 0x1000, ACCESS_READ));
    assert_true(refill(v, 0xb000, ACCESS_READ));
    v->rflags |= FL_AC;
    mmu_update_privilege(v);
    assert_true(refill(v, 0x1000, ACCESS_READ));
    v->rflags &= ~FL_AC;
    /* Protection keys: the plain ones only. */
    v->cr4 = (v->cr4 & ~CR4_SMAP) | CR4_PKE;
    v->pkru = 2u << 2;
    mmu_update(v);
    tables_map(&p.a, 0x1000, OLD, RW | AD | 1ull << 59);
    assert_false(refill(v, 0x1000, ACCESS_WRITE));
    assert_true(refill(v, 0x2000, ACCESS_WRITE));
    assert_true(mmu_stats(v)->refills >= 8);
    /* Without shadows there is nothing to ask. */
    mmu_set_mode(v, MMU_WALK);
    mmu_update(v);
    assert_false(mmu_refills(v) || refill(v, 0x3000, ACCESS_READ));
    test_vcpu_free(v);
}

/* Entries that the tables still have outlive a flush; others do not. */
static void entries(void **state)
{
    struct place p = place_new();
    struct vcpu *v = p.v;
    for (unsigned i = 0; i < 8; i++)
        tables_map(&p.a, KERNEL + (i << 12), OLD + (i << 12), RW | AD | (i == 5 ? G : 0));
    for (unsigned i = 0; i < 8; i++)
        look(v, KERNEL + (i << 12), ACCESS_WRITE);
    tables_map(&p.a, KERNEL + 0x1000, NEW, RW | AD);              /* elsewhere */
    tables_map(&p.a, KERNEL + 0x2000, OLD + 0x2000, 5 | AD);      /* read only */
    tables_map(&p.a, KERNEL + 0x3000, OLD + 0x3000, RW | 0x20);   /* not dirty: no grant to write */
    tables_map(&p.a, KERNEL + 0x4000, OLD + 0x4000, RW | 0x40);   /* not accessed: nothing may be cached */
    tables_map(&p.a, KERNEL + 0x5000, OLD + 0x5000, RW | AD);     /* global no more */
    tables_map(&p.a, KERNEL + 0x6000, OLD + 0x6000, RW | AD | XD);
    mmu_flush_global(v);
    assert_false(granted(v, KERNEL, ACCESS_READ)); /* nothing is used as it is */
    mmu_update(v);
    for (unsigned i = 0; i < 8; i++)
        if (granted(v, KERNEL + (i << 12), ACCESS_WRITE) != (i == 0 || i == 7))
            fail_msg("page %u: %s", i, i == 0 || i == 7 ? "was lost" : "outlived the flush");
    assert_int_equal(mmu_stats(v)->renewed, 2);
    assert_int_equal(look(v, KERNEL + 0x1000, ACCESS_READ), NEW);
    assert_int_equal(look(v, KERNEL + 0x2000, ACCESS_WRITE), ~0ull);
    /* A MOV to CR3 that leads to other tables. */
    look(v, KERNEL, ACCESS_WRITE);
    look(v, 0x1000, ACCESS_READ);
    tables_map(&p.b, KERNEL, OLD, RW | AD);
    tables_map(&p.b, KERNEL + 0x7000, NEW, RW | AD);
    v->cr3 = p.b.root;
    mmu_flush_cr3(v, 0);
    mmu_update(v);
    assert_false(granted(v, KERNEL + 0x7000, ACCESS_READ));
    assert_int_equal(look(v, KERNEL + 0x7000, ACCESS_READ), NEW);
    assert_int_equal(look(v, KERNEL, ACCESS_WRITE), OLD);
    test_vcpu_free(v);
}

/* A flush of an address space that is not in use: the tables may be changed until it is. */
static void late(void **state)
{
    struct place p = place_new();
    struct vcpu *v = p.v;
    v->cr4 |= CR4_PCIDE;
    v->cr3 = p.a.root | 1;
    mmu_update(v);
    for (unsigned i = 0; i < 2; i++)
        tables_map(&p.a, KERNEL + (i << 12), OLD + (i << 12), RW | AD);
    look(v, KERNEL, ACCESS_WRITE);
    look(v, KERNEL + 0x1000, ACCESS_WRITE);
    v->cr3 = p.b.root | 2;
    mmu_update(v);
    mmu_invpcid(v, INVPCID_CONTEXT, 1, 0);
    tables_map(&p.a, KERNEL, NEW, RW | AD);
    v->cr3 = p.a.root | 1;
    mmu_update(v);
    assert_false(granted(v, KERNEL, ACCESS_READ));
    assert_true(granted(v, KERNEL + 0x1000, ACCESS_READ));
    assert_int_equal(look(v, KERNEL, ACCESS_READ), NEW);
    test_vcpu_free(v);
}

static void *hint(struct vcpu *v, gva_t rip)
{
    const struct jump_cache_entry *j = &mmu_jump_cache(v)[rip & ((1u << JUMP_CACHE_BITS) - 1)];
    return j->rip == rip ? j->block : NULL;
}

static void hints(void **state)
{
    struct place p = place_new();
    struct vcpu *v = p.v;
    int block;
    const gva_t far = (gva_t)TLB_SIZE << 12; /* to the next page of the same slot */
#define CODE(k)   (KERNEL + ((gva_t)(k) << 12))
#define HINT(k)   (CODE(k) + (k) * 8)
#define KNOWN(k)  (hint(v, HINT(k)) != NULL)
#define ENTER(k)  (look(v, CODE(k), ACCESS_EXEC), mmu_jump_hint(v, HINT(k), &block))
    for (unsigned k = 0; k < 8; k++) {
        tables_map(&p.a, CODE(k), OLD + (k << 12), RW | AD);
        tables_map(&p.a, CODE(k) + far, OLD, RW | AD | XD);
        ENTER(k);
    }
    mmu_flush_global(v);
    for (unsigned k = 0; k < 8; k++)
        assert_true(KNOWN(k));
    tables_map(&p.a, CODE(1), NEW, RW | AD);
    tables_map(&p.a, CODE(2), OLD + 0x2000, RW | AD | XD);
    mmu_flush_global(v);
    for (unsigned k = 0; k < 8; k++)
        if (KNOWN(k) != (k != 1 && k != 2))
            fail_msg("the hint to page %u %s", k, KNOWN(k) ? "is left" : "is lost");
    /* Behind the back of the TLB: pages whose entries gave way to others. */
    look(v, CODE(3) + far, ACCESS_READ);
    look(v, CODE(4) + far, ACCESS_READ);
    assert_true(KNOWN(3) && KNOWN(4));
    tables_map(&p.a, CODE(4), NEW, RW | AD);
    mmu_flush_global(v);
    assert_true(KNOWN(3) && KNOWN(5));
    assert_false(KNOWN(4));
    /* Filled anew with another page, without a flush: the hint is stale as long as there is none, and not after. */
    tables_map(&p.a, CODE(5), NEW, RW | 0x20);
    look(v, CODE(5) + far, ACCESS_READ);
    look(v, CODE(5), ACCESS_EXEC);
    mmu_flush_global(v);
    assert_false(KNOWN(5));
    assert_true(KNOWN(6));
    /* And back again, so that tables and victim agree while the hint is another's. */
    ENTER(6);
    look(v, CODE(6) + far, ACCESS_READ);
    tables_map(&p.a, CODE(6), NEW, RW | AD);
    ENTER(6);
    tables_map(&p.a, CODE(6), OLD + 0x6000, RW | AD);
    mmu_flush_global(v);
    assert_false(KNOWN(6));
    /* An instruction may go on in the next page: looked up again, however many there are. */
    mmu_jump_hint(v, CODE(7) + 0xff2, &block);
    mmu_jump_code(v, JUMP_CODE64, CODE(7) + 0xff3, &block);
    mmu_jump_code(v, JUMP_CODE64, CODE(0) + 0x10, &block);
    mmu_flush_global(v);
    assert_null(hint(v, CODE(7) + 0xff2));
#define CODE64(at) (mmu_jump_codes(v, JUMP_CODE64)[jump_code_way(at)].rip == (at))
    assert_false(CODE64(CODE(7) + 0xff3));
    assert_true(CODE64(CODE(0) + 0x10));
    for (unsigned k = 0; k < 100; k++)
        mmu_jump_hint(v, CODE(7) + 0xff2 + k % 14 + (k / 14 & 1) * 0x1000, &block);
    mmu_jump_hint(v, CODE(7) + 0xff1, &block);
    assert_non_null(hint(v, CODE(7) + 0xffd));
    mmu_flush_global(v);
    for (unsigned k = 0; k < 14; k++)
        assert_null(hint(v, CODE(7) + 0xff2 + k));
    /* Two that gave way, and of which only one can be remembered. */
    for (unsigned k = 16; k <= 80; k += 64) {
        tables_map(&p.a, CODE(k), OLD + (k << 12), RW | AD);
        tables_map(&p.a, CODE(k) + far, OLD, RW | AD | XD);
        ENTER(k);
        look(v, CODE(k) + far, ACCESS_READ);
    }
    assert_true(KNOWN(16) && KNOWN(80));
    tables_map(&p.a, CODE(16), NEW, RW | AD);
    mmu_flush_global(v);
    assert_false(KNOWN(16));
    /* INVLPG reaches what is a victim only. */
    ENTER(7);
    look(v, CODE(7) + far, ACCESS_READ);
    mmu_flush_global(v);
    assert_true(KNOWN(7));
    mmu_invlpg(v, CODE(7));
    assert_false(KNOWN(7));
    /* The arena of blocks is emptied: nothing may be left, whatever the tables say. */
    ENTER(7);
    mmu_flush_all(v);
    assert_false(KNOWN(7));
    /* User code of another process. */
    tables_map(&p.a, 0x1000, OLD, RW | AD);
    tables_map(&p.b, 0x1000, NEW, RW | AD);
    v->cpl = 3;
    mmu_update(v);
    look(v, 0x1000, ACCESS_EXEC);
    mmu_jump_hint(v, 0x1010, &block);
    mmu_flush_cr3(v, 0);
    mmu_update(v);
    assert_non_null(hint(v, 0x1010));
    v->cr3 = p.b.root;
    mmu_flush_cr3(v, 0);
    mmu_update(v);
    assert_null(hint(v, 0x1010));
    test_vcpu_free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refills),
        cmocka_unit_test(entries),
        cmocka_unit_test(late),
        cmocka_unit_test(hints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
