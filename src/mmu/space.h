/*
 * The inside of a vCPU's MMU, for mmu.c, space.c and invalidate.c: the pool of software TLBs.
 *
 * An address space is what hardware tags its TLB entries with -- VPID or ASID, PCID, EPTP or nCR3 --
 * together with everything that changes what a walk answers (paging mode, WP, NXE, SMEP, keys ...).
 * The CR3 base is not part of the tag: without PCIDs a MOV to CR3 keeps global entries, so the next
 * process finds the kernel's. A base that changed without a flush drops the non-global entries, which
 * is earlier than the architecture asks.
 */
#pragma once
#include "mmu/mmu.h"
#include "mmu/physmap_view.h"
#include "mmu/shadow_look.h"

#include <stdlib.h>

#define SPACES          16
#define CONTEXTS        TLB_UNCACHED /* contexts that hold entries */
#define WORDS           (TLB_SIZE / 64)
#define BLOOM           4096u
#define VICTIMS         64u
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

static inline unsigned filter_class(unsigned lg2) { return lg2 == PAGE_SHIFT ? IN_PAGE : lg2 < 30 ? IN_LARGE : IN_HUGE; }

static inline unsigned filter_test(const struct filter *f, gva_t la)
{
    return (bit_test(f->page, page_hash(la)) ? IN_PAGE : 0) | (bit_test(f->large, large_hash(la)) ? IN_LARGE : 0) |
           (bit_test(f->huge, huge_hash(la)) ? IN_HUGE : 0);
}
static inline void filter_set(struct filter *f, gva_t la, unsigned lg2)
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
static inline void filter_clear(struct filter *f, gva_t la, unsigned classes)
{
    if (classes & IN_PAGE)
        bit_clear(f->page, page_hash(la));
    if (classes & IN_LARGE)
        bit_clear(f->large, large_hash(la));
    if (classes & IN_HUGE)
        bit_clear(f->huge, huge_hash(la));
}
/* The classes in which @a and @b share their bit. */
static inline unsigned filter_shared(gva_t a, gva_t b)
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
    /* Executable entries that gave way to others, by page: what was fetched through them may have left hints. */
    struct side victim[VICTIMS];
};
static inline struct side *victim_of(struct array *a, gva_t page) { return &a->victim[(page >> PAGE_SHIFT) & (VICTIMS - 1)]; }

struct space_key {
    u64 mode; /* paging mode and permission bits, SLAT properties */
    u64 tags; /* VPID/ASID, PCID */
    u64 slat; /* EPTP, nCR3 */
    u64 keys; /* PKRU, PKRS */
    u64 apic; /* APIC-access page: decides what may be granted */
};

/* What is known of where a RIP leads, and which runs of JUMP_RUN of the entries may hold any: a flush touches no others. */
#define JUMP_RUN 8u
struct jump_cache {
    struct jump_cache_entry e[JUMP_CACHE_SIZE];
    u64 used[JUMP_CACHE_SIZE / JUMP_RUN / 64];
    u64 local[JUMP_CACHE_SIZE / JUMP_RUN / 64]; /* of these, the runs with entries into pages that are not global */
};

/* A hint to what may be an instruction that goes on in the next page stands on that one too: no renewal keeps it. */
static inline bool at_edge(gva_t rip) { return ((rip + 14) ^ rip) & PAGE_MASK; }
#define EDGES 64u
struct edge {
    u16 n;   /* which entry, or the other way beside it, */
    u8 jump; /* of which cache */
};

/*
 * A flush with shadows is put off until the space is used again; then what the tables still say is kept (renew.c). Nothing
 * in it is used before. Which entries were flushed:
 */
enum renew { RENEW_NONE, RENEW_LOCAL /* not the global ones */, RENEW_ALL };

struct tlb {
    struct array ctx[CONTEXTS];
    struct space_key key;
    u32 vpid;
    u16 pcid;
    u8 slat_kind;
    u64 slat_tag;
    u64 used; /* stamp, for replacement */
    u64 base; /* CR3 base when last used */
    struct rights may[CONTEXTS];
    bool orphaned; /* hints may be left to a page of which there is neither entry nor victim, or another one */
    u8 turn;       /* of renewals */
    u8 nedges;     /* since the last one; when there are more, .orphaned is set */
    struct edge edge[EDGES];
    u8 renew; /* enum renew: flushed, and not used since */
    u64 pdpte[4];
    /* So that INVLPG need not look at everything. */
    struct filter fragments;          /* large pages of which there are entries */
    struct filter orphans;            /* pages whose executable entry is gone, while jump hints to them may be left */
    struct jump_cache *jump[JUMP_KINDS * 2]; /* enum jump_kind; supervisor, user; made on first use */
};

static inline u32 context_mode(enum tlb_context c)
{
    return c == TLB_USER ? ACCESS_USER : c == TLB_SUPERVISOR_AC ? ACCESS_AC : 0;
}

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
    bool refills;    /* mmu_refill() may answer, for addresses that */
    u8 plain_bits;   /* have no other bits, when */
    u64 plain_bias;  /* is added: half of what is canonical */
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
    struct refilled { /* with .check: what mmu_refill() would have entered last, until a translation confirms it */
        bool valid;
        enum tlb_context context;
        gva_t page;
        struct leads leads;
    } refilled;
    struct mmu_stats stats;
    struct tlb_entry uncached[TLB_SIZE];
};
/* No RIP is ever this: it is not canonical in any mode. */
#define JUMP_EMPTY BIT64(63)

static inline void jump_fill_empty(struct jump_cache_entry *e, unsigned n)
{
    for (unsigned k = 0; k < n; k++)
        e[k] = (struct jump_cache_entry){JUMP_EMPTY, NULL};
}

static inline void slot_drop(struct array *a, unsigned slot)
{
    a->e[slot].tag_read = a->e[slot].tag_write = a->e[slot].tag_exec = TLB_NONE;
    a->side[slot].page = TLB_NONE;
    bit_clear(a->valid, slot);
    bit_clear(a->global, slot);
    bit_clear(a->writable, slot);
    bit_clear(a->large, slot);
}

/* Translated code must ask the TLB again: something is granted no longer, or it is another TLB. */
static inline void cells_forget(struct vcpu *v)
{
    typedef u64 __attribute__((vector_size(16), may_alias)) pair;
    if (!v)
        return;
    pair *p = (pair *)v->cell_limit; /* stores, not REP STOS, which takes longer to begin: this is done at each change of CPL */
#pragma GCC unroll 18
    for (unsigned n = 0; n < CELLS / 2; n++)
        p[n] = (pair){0, 0};
}

/* What translated code was told about pages that it executes from may be true no longer. */
static inline void guards_forget(struct vcpu *v)
{
    struct code_guards *g = v ? v->guards : NULL;
    if (!g)
        return;
    for (u64 n = 0; n < g->n; n++)
        *g->told[n] = CODE_GUARD_NONE;
    g->n = 0;
}

/* Some watched range lies in the page. */
static inline bool watched(const struct mmu *m, const struct side *s)
{
    for (unsigned i = 0; i < m->nwatch; i++) {
        const struct watched_pages *w = &m->watch[i];
        u64 page = w->physical ? s->pa & PAGE_MASK : s->page;
        if (page >= w->first && page <= w->last)
            return true;
    }
    return false;
}

#define FOR_SPACES(m, t)                                                                                               \
    for (struct tlb **p_ = (m)->space, *t; p_ < (m)->space + SPACES; p_++)                                             \
        if ((t = *p_))

/* Every entry of one space, or all but the global ones, with the jump hints: at once, or put off. */
void space_empty(struct mmu *m, struct tlb *t, bool keep_global);
void space_flush(struct mmu *m, struct tlb *t, bool keep_global);
/* The current space was flushed and is used now; @rebased: with other tables. */
void space_renew(struct mmu *m, struct tlb *t, bool rebased);
/* One linear page of one space. */
enum drop { DROP_ALL, DROP_LOCAL /* not the global ones */, DROP_GLOBAL };
void space_drop_page(struct mmu *m, struct tlb *t, gva_t la, enum drop which);
/* No entry of any space grants writes to the physical page any more. */
void spaces_protect(struct mmu *m, pa_t page);
/* What mmu_refill() found for the page, if it was asked last, is what goes into the TLB now; or panics. */
void refill_check(struct mmu *m, gva_t la, enum tlb_context c, const struct leads *l);
/* Entries were dropped because of @cause: the code being run may be another. */
void mmu_flushed(struct mmu *m, enum flush_cause cause);
void mmu_flush_everything(struct mmu *m, enum flush_cause cause);
