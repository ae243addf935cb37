/*
 * The MMU of one vCPU: the walk context made from the control registers, the pool of software TLBs,
 * and the invalidations.
 *
 * An address space is what hardware tags its TLB entries with -- VPID or ASID, PCID, EPTP or nCR3 --
 * together with everything that changes what a walk answers (paging mode, WP, NXE, SMEP, keys ...).
 * The CR3 base is not part of the tag: without PCIDs a MOV to CR3 keeps global entries, so the next
 * process finds the kernel's. A base that changed without a flush drops the non-global entries, which
 * is earlier than the architecture asks.
 *
 * Invalidations reach every address space whose VPID/ASID and PCID match, whatever its mode bits
 * (SDM vol. 3 "Invalidation of TLBs and Paging-Structure Caches", "VPIDs and EPT").
 */
#include "mmu/mmu.h"
#include "mmu/physmap_view.h"
#include "mmu/shadow.h"

#include <stdlib.h>

#define SPACES          16
#define CONTEXTS        TLB_UNCACHED /* contexts that hold entries */
#define WORDS           (TLB_SIZE / 64)
#define BLOOM           4096u
#define JUMP_CACHE_SIZE (1u << JUMP_CACHE_BITS)

/* ---- bitmaps ---- */

static inline void bit_set(u64 *map, unsigned n) { map[n / 64] |= BIT64(n % 64); }
static inline void bit_clear(u64 *map, unsigned n) { map[n / 64] &= ~BIT64(n % 64); }
static inline bool bit_test(const u64 *map, unsigned n) { return map[n / 64] >> (n % 64) & 1; }
static inline unsigned page_hash(u64 addr) { return (unsigned)((addr >> PAGE_SHIFT) & (BLOOM - 1)); }
/* Multiplied, so that user addresses do not share bits with a kernel's map of all memory. */
static inline unsigned large_hash(gva_t la) { return (unsigned)((la >> 22) * 0x9e3779b97f4a7c15ull >> 52); }
static inline unsigned huge_hash(gva_t la) { return (unsigned)((la >> 30) * 0x9e3779b97f4a7c15ull >> 55); }

/* Where something about pages of a given size may be; bits are set when it comes, and cleared when a search finds none.
 */
struct filter {
    u64 page[BLOOM / 64];
    u64 large[BLOOM / 64]; /* 2 and 4 MiB, by 4 MiB region */
    u64 huge[8];           /* 1 GiB */
};
enum { IN_PAGE = 1, IN_LARGE = 2, IN_HUGE = 4 };

static unsigned filter_class(unsigned lg2) { return lg2 == PAGE_SHIFT ? IN_PAGE : lg2 < 30 ? IN_LARGE : IN_HUGE; }

static unsigned filter_test(const struct filter *f, gva_t la)
{
    return (bit_test(f->page, page_hash(la)) ? IN_PAGE : 0) | (bit_test(f->large, large_hash(la)) ? IN_LARGE : 0) |
           (bit_test(f->huge, huge_hash(la)) ? IN_HUGE : 0);
}
static void filter_set(struct filter *f, gva_t la, unsigned lg2)
{
    switch (filter_class(lg2)) {
    case IN_PAGE:
        bit_set(f->page, page_hash(la));
        break;
    case IN_LARGE:
        bit_set(f->large, large_hash(la));
        break;
    default:
        bit_set(f->huge, huge_hash(la));
    }
}
static void filter_clear(struct filter *f, gva_t la, unsigned classes)
{
    if (classes & IN_PAGE)
        bit_clear(f->page, page_hash(la));
    if (classes & IN_LARGE)
        bit_clear(f->large, large_hash(la));
    if (classes & IN_HUGE)
        bit_clear(f->huge, huge_hash(la));
}
/* The classes in which @a and @b share their bit. */
static unsigned filter_shared(gva_t a, gva_t b)
{
    return (page_hash(a) == page_hash(b) ? IN_PAGE : 0) | (large_hash(a) == large_hash(b) ? IN_LARGE : 0) |
           (huge_hash(a) == huge_hash(b) ? IN_HUGE : 0);
}

/* ---- the data ---- */

/* What a slot knows beyond its tags; kept apart so that the tags stay dense. Low bits of .pa: */
#define SIDE_PERMS  7u /* ACCESS_READ, _WRITE (dirty already), _EXEC */
#define SIDE_GLOBAL BIT(3)
#define SIDE_LG2(x) ((u64)(x) << 4) /* 6 bits: linear page size */
struct side {
    u64 page; /* linear page, TLB_NONE when the slot is empty */
    u64 pa;
};
static inline unsigned side_lg2(const struct side *s) { return (unsigned)bits_get(s->pa, 9, 4); }

/* The entries of one privilege context. */
struct array {
    struct tlb_entry e[TLB_SIZE];
    struct side side[TLB_SIZE];
    u64 valid[WORDS], global[WORDS], writable[WORDS], large[WORDS];
    u64 write_bloom[BLOOM / 64]; /* physical pages that may have a write grant here */
};

struct space_key {
    u64 mode; /* paging mode and permission bits, SLAT properties */
    u64 tags; /* VPID/ASID, PCID */
    u64 slat; /* EPTP, nCR3 */
    u64 keys; /* PKRU, PKRS */
    u64 apic; /* APIC-access page: decides what may be granted */
};

/* Jump hints, and which runs of JUMP_RUN of them may hold any: a flush touches no others. */
#define JUMP_RUN 32u
struct jump_cache {
    struct jump_cache_entry e[JUMP_CACHE_SIZE];
    u64 used[JUMP_CACHE_SIZE / JUMP_RUN / 64];
    u64 local[JUMP_CACHE_SIZE / JUMP_RUN / 64]; /* of these, the runs with hints into pages that are not global */
};

struct tlb {
    struct array ctx[CONTEXTS];
    struct space_key key;
    u32 vpid;
    u16 pcid;
    u8 slat_kind;
    u64 slat_tag;
    u64 used; /* stamp, for replacement */
    u64 base; /* CR3 base when last used */
    u64 pdpte[4];
    /* So that INVLPG need not look at everything. */
    struct filter fragments;          /* large pages of which there are entries */
    struct filter orphans;            /* pages whose executable entry is gone, while jump hints to them may be left */
    struct jump_cache *jump[2];       /* supervisor, user; made on first use */
};

struct mmu {
    struct physmap *pm;
    struct shadow *shadow; /* NULL: every miss walks */
    bool check;            /* compare the shadow's answers with walks */
    struct shadow_view view;
    struct vcpu *v; /* whose; known from the first mmu_update */
    struct walk_context ctx;
    struct slat slat;
    u32 vpid;
    bool pge;
    bool stale; /* mmu_set_guest was called: choose the space again before the next access */
    struct tlb *now;
    struct tlb *space[SPACES];
    u64 stamp;
    u64 apic_page;
    struct watched_pages { /* first and last page */
        u64 first, last;
        bool physical;
    } watch[4 + DEBUG_WATCHES];
    unsigned nwatch;
    struct mmu_stats stats;
    struct tlb_entry uncached[TLB_SIZE];
};

/* ---- dropping entries ---- */

static void slot_drop(struct array *a, unsigned slot)
{
    a->e[slot].tag_read = a->e[slot].tag_write = a->e[slot].tag_exec = TLB_NONE;
    a->side[slot].page = TLB_NONE;
    bit_clear(a->valid, slot);
    bit_clear(a->global, slot);
    bit_clear(a->writable, slot);
    bit_clear(a->large, slot);
}

static unsigned array_flush(struct array *a, bool keep_global)
{
    unsigned n = 0;
    for (unsigned i = 0; i < WORDS; i++) {
        u64 drop = a->valid[i] & (keep_global ? ~a->global[i] : ~0ull);
        for (; drop; drop &= drop - 1, n++)
            slot_drop(a, i * 64 + (unsigned)__builtin_ctzll(drop));
    }
    if (!keep_global)
        memset(a->write_bloom, 0, sizeof(a->write_bloom));
    return n;
}

/* No RIP is ever this: it is not canonical in any mode. */
#define JUMP_EMPTY BIT64(63)

static void jump_fill_empty(struct jump_cache_entry *e, unsigned n)
{
    for (unsigned k = 0; k < n; k++)
        e[k] = (struct jump_cache_entry){JUMP_EMPTY, NULL};
}

static void jump_clear(struct tlb *t, bool keep_global)
{
    for (unsigned i = 0; i < 2; i++) {
        struct jump_cache *j = t->jump[i];
        for (unsigned n = 0; j && n < ARRAY_SIZE(j->used); n++) {
            u64 drop = keep_global ? j->local[n] : j->used[n];
            for (u64 runs = drop; runs; runs &= runs - 1)
                jump_fill_empty(&j->e[(n * 64 + (unsigned)__builtin_ctzll(runs)) * JUMP_RUN], JUMP_RUN);
            j->used[n] &= ~drop;
            j->local[n] = 0;
        }
    }
}

/*
 * Forgets hints to the page of size @lg2 around @la. Returns the filter classes in which hints remain
 * that share a bit with @la.
 */
static unsigned jump_clear_range(struct tlb *t, gva_t la, unsigned lg2)
{
    unsigned others = 0;
    for (unsigned i = 0; i < 2; i++) {
        struct jump_cache *j = t->jump[i];
        for (unsigned n = 0; j && n < ARRAY_SIZE(j->used); n++)
            for (u64 runs = j->used[n]; runs; runs &= runs - 1) {
                struct jump_cache_entry *e = &j->e[(n * 64 + (unsigned)__builtin_ctzll(runs)) * JUMP_RUN];
                for (unsigned k = 0; k < JUMP_RUN; k++) {
                    if (!e[k].block)
                        continue;
                    if (!((e[k].rip ^ la) >> lg2))
                        e[k] = (struct jump_cache_entry){JUMP_EMPTY, NULL};
                    else
                        others |= filter_shared(e[k].rip, la);
                }
            }
    }
    return others;
}

/* Translated code must ask the TLB again: something is granted no longer, or it is another TLB. */
static void cells_forget(struct vcpu *v)
{
    typedef u64 __attribute__((vector_size(16), may_alias)) pair;
    if (!v)
        return;
    pair *p = (pair *)v->cell_limit; /* stores, not REP STOS, which takes longer to begin: this is done at each change of CPL */
#pragma GCC unroll 18
    for (unsigned n = 0; n < CELLS / 2; n++)
        p[n] = (pair){0, 0};
}

static void space_flush(struct mmu *m, struct tlb *t, bool keep_global)
{
    cells_forget(m->v);
    for (unsigned c = 0; c < CONTEXTS; c++)
        m->stats.flushed += array_flush(&t->ctx[c], keep_global);
    if (!keep_global) {
        memset(&t->fragments, 0, sizeof(t->fragments));
        memset(&t->orphans, 0, sizeof(t->orphans));
    }
    jump_clear(t, keep_global);
}

enum drop { DROP_ALL, DROP_LOCAL /* not the global ones */, DROP_GLOBAL };

static inline bool drops(const struct array *a, unsigned slot, enum drop which)
{
    return which == DROP_ALL || bit_test(a->global, slot) == (which == DROP_GLOBAL);
}

/* Drops the fragments of large pages around @la. Returns the size, log2, of the largest executable one, or 0. */
static unsigned drop_fragments(struct mmu *m, struct tlb *t, gva_t la, enum drop which)
{
    unsigned exec = 0, kept = 0;
    for (unsigned c = 0; c < CONTEXTS; c++) {
        struct array *a = &t->ctx[c];
        for (unsigned i = 0; i < WORDS; i++)
            for (u64 large = a->large[i]; large; large &= large - 1) {
                unsigned slot = i * 64 + (unsigned)__builtin_ctzll(large);
                const struct side *s = &a->side[slot];
                unsigned lg2 = side_lg2(s);
                if ((s->page ^ la) >> lg2 || !drops(a, slot, which)) {
                    kept |= filter_class(lg2) & filter_shared(s->page, la);
                    continue;
                }
                if ((s->pa & ACCESS_EXEC) && lg2 > exec)
                    exec = lg2;
                slot_drop(a, slot);
                m->stats.flushed++;
            }
    }
    filter_clear(&t->fragments, la, ~kept);
    return exec;
}

/* One linear page of one space. */
static void space_drop_page(struct mmu *m, struct tlb *t, gva_t la, enum drop which)
{
    unsigned slot = (la >> PAGE_SHIFT) & (TLB_SIZE - 1);
    unsigned reach = 0; /* log2 of the page whose jump hints must go */
    for (unsigned c = 0; c < CONTEXTS; c++) {
        struct array *a = &t->ctx[c];
        const struct side *s = &a->side[slot];
        if (s->page != (la & PAGE_MASK) || side_lg2(s) != PAGE_SHIFT)
            continue;
        if (s->pa & ACCESS_EXEC)
            reach = PAGE_SHIFT;
        if (drops(a, slot, which)) {
            slot_drop(a, slot);
            m->stats.flushed++;
        }
    }
    if (unlikely(filter_test(&t->fragments, la))) {
        unsigned exec = drop_fragments(m, t, la, which);
        reach = exec > reach ? exec : reach;
    }
    unsigned orphans = filter_test(&t->orphans, la);
    if (unlikely(orphans)) {
        unsigned size = orphans & IN_HUGE ? 30 : orphans & IN_LARGE ? 22 : PAGE_SHIFT;
        reach = size > reach ? size : reach;
    }
    if (reach) {
        unsigned others = jump_clear_range(t, la, reach);
        filter_clear(&t->orphans, la, ~others);
    }
}

static void flushed(struct mmu *m, enum flush_cause cause)
{
    m->stats.flushes[cause]++;
    cells_forget(m->v);
    if (m->v)
        cpu_attention(m->v, ATT_BLOCK);
}

/* ---- life ---- */

static void flush_everything(struct mmu *m, enum flush_cause cause)
{
    for (unsigned i = 0; i < SPACES; i++)
        if (m->space[i])
            space_flush(m, m->space[i], false);
    flushed(m, cause);
}

static void map_changed(void *opaque) { flush_everything(opaque, FLUSH_MAP); }

static void array_protect(struct array *a, pa_t page)
{
    unsigned h = page_hash(page);
    bool others = false; /* pages with the same hash */
    if (!bit_test(a->write_bloom, h))
        return;
    for (unsigned i = 0; i < WORDS; i++)
        for (u64 w = a->writable[i]; w; w &= w - 1) {
            unsigned slot = i * 64 + (unsigned)__builtin_ctzll(w);
            if ((a->side[slot].pa & PAGE_MASK) == page) {
                a->e[slot].tag_write = TLB_NONE;
                bit_clear(a->writable, slot);
            } else if (page_hash(a->side[slot].pa) == h) {
                others = true;
            }
        }
    if (!others)
        bit_clear(a->write_bloom, h);
}

static void protect(struct mmu *m, pa_t page)
{
    m->stats.protects++;
    cells_forget(m->v);
    for (unsigned i = 0; i < SPACES; i++)
        for (unsigned c = 0; m->space[i] && c < CONTEXTS; c++)
            array_protect(&m->space[i]->ctx[c], page);
}

/* Where processors have threads of their own, theirs must stand still first: the machine sees to it. */
static void page_tracked(void *opaque, pa_t page)
{
    struct mmu *m = opaque;
    if (!physmap_shared(m->pm))
        protect(m, page);
}

void mmu_protect_page(struct vcpu *v, pa_t page) { protect(v->mmu, page & PAGE_MASK); }

struct mmu *mmu_new(struct physmap *pm)
{
    struct mmu *m = calloc(1, sizeof(*m));
    if (!m)
        panic("out of memory for an MMU");
    m->pm = pm;
    m->shadow = shadow_open(pm);
    m->apic_page = ~0ull;
    m->stale = true;
    memset(m->uncached, 0xff, sizeof(m->uncached));
    physmap_on_protect(pm, page_tracked, m);
    physmap_on_change(pm, map_changed, m);
    return m;
}

void mmu_free(struct mmu *m)
{
    if (!m)
        return;
    physmap_on_protect(m->pm, NULL, m);
    physmap_on_change(m->pm, NULL, m);
    shadow_close(m->shadow);
    for (unsigned i = 0; i < SPACES; i++)
        if (m->space[i]) {
            free(m->space[i]->jump[0]);
            free(m->space[i]->jump[1]);
            free(m->space[i]);
        }
    free(m);
}

void mmu_set_mode(struct vcpu *v, enum mmu_mode mode)
{
    struct mmu *m = v->mmu;
    bool shadow = mode != MMU_WALK;
    m->check = mode == MMU_CHECK;
    if (shadow && !m->shadow)
        m->shadow = shadow_open(m->pm);
    if (!shadow && m->shadow) {
        shadow_close(m->shadow);
        m->shadow = NULL;
    }
    if (shadow)
        shadow_paranoid(m->shadow, m->check);
}

/* ---- the address space ---- */

static bool key_equal(const struct space_key *a, const struct space_key *b)
{
    return !((a->mode ^ b->mode) | (a->tags ^ b->tags) | (a->slat ^ b->slat) | (a->keys ^ b->keys) |
             (a->apic ^ b->apic));
}

static struct tlb *space_new(struct mmu *m)
{
    struct tlb *victim = NULL;
    for (unsigned i = 0; i < SPACES; i++) {
        struct tlb *t = m->space[i];
        if (!t) {
            t = m->space[i] = calloc(1, sizeof(*t));
            if (!t)
                panic("out of memory for a TLB");
            for (unsigned c = 0; c < CONTEXTS; c++) {
                memset(t->ctx[c].e, 0xff, sizeof(t->ctx[c].e));
                memset(t->ctx[c].side, 0xff, sizeof(t->ctx[c].side));
            }
            return t;
        }
        if (t != m->now && (!victim || t->used < victim->used))
            victim = t;
    }
    space_flush(m, victim, false);
    return victim;
}

static struct tlb *space_find(struct mmu *m, const struct space_key *key)
{
    for (unsigned i = 0; i < SPACES; i++)
        if (m->space[i] && key_equal(&m->space[i]->key, key))
            return m->space[i];
    return NULL;
}

static void context_build(struct mmu *m, const struct vcpu *v)
{
    struct walk_context *c = &m->ctx;
    bool pae = v->cr4 & CR4_PAE;
    c->paging = !(v->cr0 & CR0_PG)   ? PAGING_NONE
                : v->efer & EFER_LMA ? (v->cr4 & CR4_LA57 ? PAGING_5LEVEL : PAGING_4LEVEL)
                : pae                ? PAGING_PAE
                                     : PAGING_32BIT;
    c->wp = v->cr0 & CR0_WP;
    c->nx = pae && (v->efer & EFER_NXE);
    c->smep = v->cr4 & CR4_SMEP;
    c->smap = v->cr4 & CR4_SMAP;
    c->pke = v->cr4 & CR4_PKE;
    c->pks = v->cr4 & CR4_PKS;
    c->cet = v->cr4 & CR4_CET;
    c->lam48 = c->paging == PAGING_5LEVEL && (v->cr3 & (CR3_LAM_U57 | CR3_LAM_U48)) == CR3_LAM_U48;
    c->pse = v->cr4 & CR4_PSE;
    c->pse36 = cpu_has(v, FEAT_PSE36);
    c->pdpe1gb = cpu_has(v, FEAT_PDPE1GB);
    c->amd = cpu_has(v, FEAT_SVM);
    c->maxphyaddr = v->maxphyaddr;
    c->cr3 = v->cr3;
    memcpy(c->pdpte, v->pdpte, sizeof(c->pdpte));
    c->pkru = v->pkru;
    c->pkrs = v->pkrs;
    c->slat = m->slat;
}

/* Everything but the CR3 base that decides what a walk answers or who invalidates it. */
static struct space_key key_build(const struct mmu *m, const struct vcpu *v)
{
    const struct walk_context *c = &m->ctx;
    const struct slat *s = &c->slat;
    struct space_key k = {0};
    /* CR4.PGE is not part of it: its changes flush everything, and toggling it is how systems ask for that. */
    if (c->paging == PAGING_NONE) { /* the bits below mean nothing there */
        k.mode = c->paging;
    } else {
        bool four = c->paging >= PAGING_4LEVEL;
        k.mode = c->paging | (u64)c->wp << 3 | (u64)c->nx << 4 | (u64)c->smep << 5 | (u64)c->smap << 6 |
                 (u64)(four && c->pke) << 7 | (u64)(four && c->pks) << 8 | (u64)c->cet << 9 | (u64)c->pse << 10 | (u64)c->lam48 << 11;
        k.keys = (four && c->pke ? c->pkru : 0) | (u64)(four && c->pks ? c->pkrs : 0) << 32;
    }
    k.mode |= (u64)s->kind << 16 | (u64)s->levels << 20 | (u64)s->host_mode << 24 | (u64)s->ad << 32 |
              (u64)s->mbec << 33 | (u64)s->exec_only << 34 | (u64)s->nx << 35 | (u64)s->pse << 36 | (u64)s->pml << 37;
    k.tags = (u64)m->vpid << 16 | (v->cr4 & CR4_PCIDE ? v->cr3 & 0xfff : 0);
    k.slat = s->kind != SLAT_NONE ? s->tag : 0;
    k.apic = v->virt_apic_page;
    return k;
}

static u64 context_base(const struct walk_context *c)
{
    return c->paging == PAGING_NONE ? 0 : c->cr3 & (c->paging == PAGING_PAE ? BITS64(31, 5) : BITS64(51, 12));
}

void mmu_update(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    m->v = v;
    m->stale = false;
    context_build(m, v);
    if (likely(m->shadow != NULL))
        shadow_view(&m->view, &m->ctx);
    m->pge = v->cr4 & CR4_PGE;
    if (unlikely(m->apic_page != v->apic_page)) {
        m->apic_page = v->apic_page;
        map_changed(m);
    }
    struct space_key key = key_build(m, v);
    if (!m->now || !key_equal(&m->now->key, &key)) {
        struct tlb *t = space_find(m, &key);
        if (!t) {
            t = space_new(m);
            m->stats.spaces_made++;
            t->key = key;
            t->vpid = m->vpid;
            t->pcid = (u16)(key.tags & 0xfff);
            t->slat_kind = m->slat.kind;
            t->slat_tag = m->slat.tag;
            t->base = context_base(&m->ctx);
            memcpy(t->pdpte, m->ctx.pdpte, sizeof(t->pdpte));
        }
        m->now = t;
        m->stats.space_switches++;
    }
    struct tlb *t = m->now;
    t->used = ++m->stamp;
    bool pdptes = m->ctx.paging == PAGING_PAE && memcmp(t->pdpte, m->ctx.pdpte, sizeof(t->pdpte));
    if (t->base != context_base(&m->ctx) || pdptes) {
        space_flush(m, t, true);
        t->base = context_base(&m->ctx);
        memcpy(t->pdpte, m->ctx.pdpte, sizeof(t->pdpte));
    }
    mmu_update_privilege(v);
}

static enum tlb_context privilege_context(const struct vcpu *v)
{
    if (v->cpl == 3)
        return (v->rflags & FL_AC) && (v->cr0 & CR0_AM) ? TLB_UNCACHED : TLB_USER;
    return (v->rflags & FL_AC) && (v->cr4 & CR4_SMAP) ? TLB_SUPERVISOR_AC : TLB_SUPERVISOR;
}

void mmu_update_privilege(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    struct tlb_entry *before = v->tlb_now;
    if (unlikely(m->stale || !m->now)) {
        v->tlb_now = v->tlb_by_ac[0] = v->tlb_by_ac[1] = m->uncached;
    } else {
        enum tlb_context c = privilege_context(v);
        v->tlb_by_ac[0] = m->now->ctx[TLB_SUPERVISOR].e;
        v->tlb_by_ac[1] = m->now->ctx[v->cr4 & CR4_SMAP ? TLB_SUPERVISOR_AC : TLB_SUPERVISOR].e;
        v->tlb_now = c == TLB_UNCACHED ? m->uncached : m->now->ctx[c].e;
    }
    if (v->tlb_now != before)
        cells_forget(v);
}

void mmu_set_guest(struct vcpu *v, const struct slat *slat, u32 vpid)
{
    struct mmu *m = v->mmu;
    m->slat = slat ? *slat : (struct slat){0};
    m->ctx.slat = m->slat; /* PDPTE loads of the entry already go through it */
    m->vpid = vpid;
    m->stale = true;
    v->tlb_now = v->tlb_by_ac[0] = v->tlb_by_ac[1] = m->uncached;
    cells_forget(v);
}

const struct walk_context *mmu_context(const struct vcpu *v) { return &v->mmu->ctx; }
const struct mmu_stats *mmu_stats(const struct vcpu *v) { return &v->mmu->stats; }
const struct shadow_stats *mmu_shadow_stats(const struct vcpu *v)
{
    return v->mmu->shadow ? shadow_stats(v->mmu->shadow) : NULL;
}

const struct tlb_entry *mmu_entries(const struct vcpu *v, enum tlb_context context)
{
    const struct mmu *m = v->mmu;
    return m->stale || !m->now || context >= CONTEXTS ? m->uncached : m->now->ctx[context].e;
}

u32 mmu_access_mode(const struct vcpu *v)
{
    if (v->cpl == 3)
        return ACCESS_USER;
    return v->rflags & FL_AC ? ACCESS_AC : 0;
}

static struct jump_cache *jump_cache(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    if (unlikely(m->stale || !m->now))
        mmu_update(v);
    struct jump_cache **j = &m->now->jump[v->cpl == 3];
    if (unlikely(!*j)) {
        *j = calloc(1, sizeof(**j));
        if (!*j)
            panic("out of memory for a jump cache");
        jump_fill_empty((*j)->e, JUMP_CACHE_SIZE);
    }
    return *j;
}

struct jump_cache_entry *mmu_jump_cache(struct vcpu *v) { return jump_cache(v)->e; }

/* The page of @rip is known to be global: flushes that keep global entries keep hints to it. */
static bool rip_is_global(const struct vcpu *v, gva_t rip)
{
    const struct mmu *m = v->mmu;
    enum tlb_context c = privilege_context(v);
    if (c == TLB_UNCACHED)
        return false;
    const struct side *s = &m->now->ctx[c].side[(rip >> PAGE_SHIFT) & (TLB_SIZE - 1)];
    return s->page == (rip & PAGE_MASK) && (s->pa & SIDE_GLOBAL) && (s->pa & ACCESS_EXEC);
}

void mmu_jump_hint(struct vcpu *v, gva_t rip, void *block)
{
    struct jump_cache *j = jump_cache(v);
    unsigned n = rip & (JUMP_CACHE_SIZE - 1);
    bit_set(j->used, n / JUMP_RUN);
    if (!rip_is_global(v, rip))
        bit_set(j->local, n / JUMP_RUN);
    j->e[n] = (struct jump_cache_entry){rip, block};
}

/* ---- translation ---- */

static bool watched(const struct mmu *m, const struct side *s)
{
    for (unsigned i = 0; i < m->nwatch; i++) {
        const struct watched_pages *w = &m->watch[i];
        u64 page = w->physical ? s->pa & PAGE_MASK : s->page;
        if (page >= w->first && page <= w->last)
            return true;
    }
    return false;
}

/* Where @pa leads: the host address if the CPU may reach it directly. Returns whether that is RAM. */
static bool target(const struct mmu *m, const struct vcpu *v, pa_t pa, bool write, struct translation *t)
{
    pa_t page = pa & PAGE_MASK;
    t->pa = pa;
    t->page_flags = 0;
    t->host = NULL;
    if (unlikely(page == v->apic_page || page == v->virt_apic_page))
        return false;
    const struct range *r = map_page(m->pm, pa);
    if (!r || !r->host)
        return false;
    bool ram = r->region->kind == REGION_RAM;
    if (ram && write)
        range_note_user(r, pa, PAGE_WRITERS, v->index);
    if (ram)
        t->page_flags = __atomic_load_n(range_flag(r, pa), __ATOMIC_SEQ_CST);
    if (ram || !write)
        t->host = r->host + (pa - r->start);
    return ram;
}

/* Sets the slot's tags to what may go straight to host memory now. */
static void slot_grant(struct mmu *m, struct array *a, unsigned slot, const struct translation *t, bool ram)
{
    struct tlb_entry *e = &a->e[slot];
    const struct side *s = &a->side[slot];
    bool watch = unlikely(m->nwatch) && watched(m, s);
    bool write = (s->pa & ACCESS_WRITE) && ram && !t->page_flags && !watch;
    if (write && unlikely(physmap_shared(m->pm))) {
        physmap_note_user(m->pm, s->pa & PAGE_MASK, PAGE_WRITERS, m->v->index);
        write = !physmap_page_flags(m->pm, s->pa & PAGE_MASK);
    }
    e->tag_read = (s->pa & ACCESS_READ) && t->host && !watch ? s->page : TLB_NONE;
    e->tag_exec = (s->pa & ACCESS_EXEC) && t->host ? s->page : TLB_NONE;
    e->tag_write = write ? s->page : TLB_NONE;
    e->addend = t->host ? (u64)(uintptr_t)t->host - (s->page | (t->pa & ~PAGE_MASK)) : 0;
    if (write) {
        bit_set(a->writable, slot);
        bit_set(a->write_bloom, page_hash(s->pa));
    } else {
        bit_clear(a->writable, slot);
    }
}

static void slot_fill(struct mmu *m, gva_t la, enum tlb_context c, const struct walk *w, const struct translation *t,
                      bool ram)
{
    struct tlb *tlb = m->now;
    struct array *a = &tlb->ctx[c];
    unsigned slot = (la >> PAGE_SHIFT) & (TLB_SIZE - 1);
    u8 perms = w->perms & SIDE_PERMS;
    if (!w->dirty)
        perms &= (u8)~ACCESS_WRITE; /* the first write must walk, to set the dirty flag */
    if (unlikely(m->ctx.lam48) && !(la >> 63) && la >> 47)
        perms &= ACCESS_EXEC;
    bool global = w->global && m->pge && m->ctx.paging != PAGING_NONE;
    const struct side *old = &a->side[slot];
    /* Jump hints outlive the entry through which the code was fetched. */
    if (old->page != TLB_NONE && (old->pa & ACCESS_EXEC) &&
        (old->page != (la & PAGE_MASK) || !(perms & ACCESS_EXEC) || side_lg2(old) != w->lg2_linear ||
         ((old->pa & SIDE_GLOBAL) && !global)))
        filter_set(&tlb->orphans, old->page, side_lg2(old));
    a->side[slot].page = la & PAGE_MASK;
    a->side[slot].pa = (t->pa & PAGE_MASK) | perms | (global ? SIDE_GLOBAL : 0) | SIDE_LG2(w->lg2_linear);
    bit_set(a->valid, slot);
    if (global)
        bit_set(a->global, slot);
    else
        bit_clear(a->global, slot);
    if (unlikely(w->lg2_linear > PAGE_SHIFT)) {
        bit_set(a->large, slot);
        filter_set(&tlb->fragments, la, w->lg2_linear);
    } else {
        bit_clear(a->large, slot);
    }
    slot_grant(m, a, slot, t, ram);
}

bool mmu_translate(struct vcpu *v, gva_t la, u32 access, struct translation *t, struct walk *w)
{
    struct mmu *m = v->mmu;
    if (unlikely(m->stale))
        mmu_update(v);
    bool fill = !(access & (ACCESS_NO_AD | ACCESS_SHADOW_STACK));
    bool write = access & ACCESS_WRITE;
    enum tlb_context c = access & ACCESS_USER                  ? TLB_USER
                         : (access & ACCESS_AC) && m->ctx.smap ? TLB_SUPERVISOR_AC
                                                               : TLB_SUPERVISOR;
    if (likely(!(access & ACCESS_SHADOW_STACK))) {
        /* Known, but not granted: device memory, tracked and watched pages, alignment checking. */
        struct array *a = &m->now->ctx[c];
        unsigned slot = (la >> PAGE_SHIFT) & (TLB_SIZE - 1);
        const struct side *s = &a->side[slot];
        u32 need = access & SIDE_PERMS;
        if (s->page == (la & PAGE_MASK) && !(need & ~(u32)s->pa)) {
            m->stats.cached++;
            bool ram = target(m, v, (s->pa & PAGE_MASK) | (la & ~PAGE_MASK), write, t);
            if (t->host && fill) /* a page no longer tracked or watched is granted now */
                slot_grant(m, a, slot, t, ram);
            w->fault = WALK_OK;
            w->pa = t->pa;
            return true;
        }
    }
    if (likely(m->shadow != NULL)) {
        enum shadow_answer known =
            (unlikely(m->check) ? shadow_translate_checked : shadow_translate)(m->shadow, &m->view, &m->ctx, la, access, w);
        if (known == SHADOW_FAULT) {
            m->stats.shadow_faults++;
            return false;
        }
        if (likely(known == SHADOW_OK)) {
            m->stats.shadow_hits++;
            bool ram = target(m, v, w->pa, write, t);
            if (likely(fill))
                slot_fill(m, la, c, w, t, ram);
            return true;
        }
    }
    m->stats.walks++;
    bool ok = walk_linear(m->pm, &m->ctx, la, access, w);
    m->stats.walk_steps += w->nsteps;
    if (unlikely(!ok)) {
        m->stats.walk_faults++;
        return false;
    }
    if (likely(fill) && m->shadow)
        shadow_fill(m->shadow, &m->view, &m->ctx, la, w); /* before the grant: it may track the page itself */
    bool ram = target(m, v, w->pa, write, t);
    if (likely(fill))
        slot_fill(m, la, c, w, t, ram);
    return true;
}

/* ---- invalidation ---- */

#define FOR_SPACES(m, t)                                                                                               \
    for (struct tlb **p_ = (m)->space, *t; p_ < (m)->space + SPACES; p_++)                                             \
        if ((t = *p_))

void mmu_invlpg(struct vcpu *v, gva_t la)
{
    struct mmu *m = v->mmu;
    u16 pcid = v->cr4 & CR4_PCIDE ? (u16)(v->cr3 & 0xfff) : 0;
    FOR_SPACES(m, t)
    if (t->vpid == m->vpid)
        space_drop_page(m, t, la, t->pcid == pcid ? DROP_ALL : DROP_GLOBAL);
    flushed(m, FLUSH_INVLPG);
}

void mmu_flush_cr3(struct vcpu *v, u16 pcid)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    if (t->vpid == m->vpid && t->pcid == pcid)
        space_flush(m, t, true);
    flushed(m, FLUSH_CR3);
}

void mmu_flush_global(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    if (t->vpid == m->vpid)
        space_flush(m, t, false);
    flushed(m, FLUSH_GLOBAL);
}

void mmu_flush_all(struct vcpu *v) { flush_everything(v->mmu, FLUSH_ALL); }

void mmu_invpcid(struct vcpu *v, enum invpcid_type type, u16 pcid, gva_t la)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    {
        if (t->vpid != m->vpid)
            continue;
        switch (type) {
        case INVPCID_ADDRESS:
            if (t->pcid == pcid)
                space_drop_page(m, t, la, DROP_LOCAL);
            break;
        case INVPCID_CONTEXT:
            if (t->pcid == pcid)
                space_flush(m, t, true);
            break;
        case INVPCID_ALL_GLOBAL:
            space_flush(m, t, false);
            break;
        case INVPCID_ALL:
            space_flush(m, t, true);
            break;
        }
    }
    flushed(m, FLUSH_INVPCID);
}

void mmu_invvpid(struct vcpu *v, bool all_vpids, u16 vpid, bool keep_global, bool one_address, gva_t la)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    {
        if (all_vpids ? t->vpid == 0 : t->vpid != vpid)
            continue;
        if (one_address)
            space_drop_page(m, t, la, keep_global ? DROP_LOCAL : DROP_ALL);
        else
            space_flush(m, t, keep_global);
    }
    flushed(m, FLUSH_INVVPID);
}

void mmu_invept(struct vcpu *v, bool all, u64 eptp)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t) /* tagged by bits 51:12 of the EPTP (SDM "EP4TA") */
    if (t->slat_kind == SLAT_EPT && (all || !((t->slat_tag ^ eptp) & PAGE_MASK & BITS64(51, 0))))
        space_flush(m, t, false);
    flushed(m, FLUSH_INVEPT);
}

void mmu_invlpga(struct vcpu *v, u32 asid, gva_t la)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    if (t->vpid == asid)
        space_drop_page(m, t, la, DROP_ALL);
    flushed(m, FLUSH_INVLPGA);
}

void mmu_flush_asid(struct vcpu *v, u32 asid, bool keep_global)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    if (t->vpid == asid)
        space_flush(m, t, keep_global);
    flushed(m, FLUSH_ASID);
}

/* ---- data breakpoints ---- */

static void watch_collect(struct mmu *m, struct vcpu *v)
{
    m->nwatch = 0;
    for (unsigned n = 0; n < 4; n++) {
        bool enabled = v->dr7 >> (2 * n) & 3;
        unsigned kind = v->dr7 >> (16 + 4 * n) & 3; /* 0 code, 1 write, 2 I/O, 3 read and write */
        if (enabled && (kind & 1))
            m->watch[m->nwatch++] = (struct watched_pages){v->dr[n] & PAGE_MASK, v->dr[n] & PAGE_MASK, false};
    }
    for (unsigned n = 0; v->debug && n < v->debug->nwatch; n++) {
        const struct debug_watch *w = &v->debug->watch[n];
        m->watch[m->nwatch++] = (struct watched_pages){w->at & PAGE_MASK, (w->at + w->len - 1) & PAGE_MASK, w->physical};
    }
    v->watching = m->nwatch;
}

static void withdraw(struct array *a, unsigned slot)
{
    a->e[slot].tag_read = a->e[slot].tag_write = TLB_NONE;
    bit_clear(a->writable, slot);
}

void mmu_watch_changed(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    cells_forget(v);
    watch_collect(m, v);
    for (unsigned i = 0; i < m->nwatch; i++) {
        const struct watched_pages *w = &m->watch[i];
        if (w->physical)
            continue; /* no entry of such a page has been granted since mmu_watch_physical() */
        for (u64 page = w->first;; page += PAGE_SIZE) { /* at most two */
            unsigned slot = (page >> PAGE_SHIFT) & (TLB_SIZE - 1);
            FOR_SPACES(m, t)
            for (unsigned c = 0; c < CONTEXTS; c++)
                if (t->ctx[c].side[slot].page == page)
                    withdraw(&t->ctx[c], slot);
            if (page == w->last)
                break;
        }
    }
}

void mmu_watch_physical(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    watch_collect(m, v);
    FOR_SPACES(m, t)
    for (unsigned c = 0; c < CONTEXTS; c++)
        for (unsigned slot = 0; slot < TLB_SIZE; slot++)
            if (t->ctx[c].side[slot].page != TLB_NONE && watched(m, &t->ctx[c].side[slot]))
                withdraw(&t->ctx[c], slot);
}
