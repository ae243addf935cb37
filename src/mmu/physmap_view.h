/*
 * The inside of the physical map, for the files of this directory whose speed depends on it: the
 * regions flattened into disjoint ranges, and an index by page for the first 4 GiB.
 *
 * The map is changed only while no other thread uses it (see struct physmap_sharing); page flags may be
 * changed at any time.
 */
#pragma once
#include "mmu/physmap.h"

struct range {
    pa_t start, last; /* last byte, inclusive */
    const struct region *region;
    u8 *host; /* of start; NULL for device memory */
};

#define LOW_PAGES (1u << 20) /* pages below 4 GiB */
#define LOW_MIXED 0xffffu    /* several ranges, or holes, share the page: search */

struct subscriber {
    u8 flag;
    void (*written)(void *opaque, pa_t pa, size_t len);
    void *opaque;
};
struct listener {
    void (*protect)(void *opaque, pa_t page);
    void (*changed)(void *opaque);
    void *opaque;
};

struct physmap {
    struct range *ranges; /* sorted, disjoint */
    unsigned nranges;
    /* The largest range of RAM, whole pages of it: most of what is asked for, and no memory touched to find it. */
    const struct range *main;
    pa_t main_start;
    u64 main_size;
    u16 *low; /* page -> index into ranges + 1; 0: nothing there */
    u64 generation;
    struct region **regions; /* as added; the map owns the structs */
    unsigned nregions, regions_cap;
    struct subscriber *subscribers;
    unsigned nsubscribers;
    struct listener *listeners;
    unsigned nlisteners;
    u64 ram_size;
    struct physmap_sharing sharing; /* all NULL while one thread runs everything */
    struct shadow *shadow; /* of the page tables in it (shadow.h), while somebody uses it */
};

const struct range *range_search(const struct physmap *pm, pa_t pa);

/* The range that decodes @pa, or NULL. */
static inline const struct range *map_range(const struct physmap *pm, pa_t pa)
{
    if (likely(pa - pm->main_start < pm->main_size))
        return pm->main;
    if (likely(pa < (u64)LOW_PAGES << PAGE_SHIFT)) {
        unsigned i = pm->low[pa >> PAGE_SHIFT];
        if (likely(i != LOW_MIXED))
            return i ? &pm->ranges[i - 1] : NULL;
    }
    return range_search(pm, pa);
}

/* Likewise, when it decodes all of the page that @pa lies in. */
static inline const struct range *map_page(const struct physmap *pm, pa_t pa)
{
    if (likely(pa - pm->main_start < pm->main_size))
        return pm->main;
    if (likely(pa < (u64)LOW_PAGES << PAGE_SHIFT)) {
        unsigned i = pm->low[pa >> PAGE_SHIFT];
        return i && i != LOW_MIXED ? &pm->ranges[i - 1] : NULL;
    }
    const struct range *r = range_search(pm, pa);
    return r && r->start <= (pa & PAGE_MASK) && r->last >= (pa | ~PAGE_MASK) ? r : NULL;
}

/* Likewise, without a search: NULL where that would need one. */
static inline const struct range *map_page_quick(const struct physmap *pm, pa_t pa)
{
    if (likely(pa - pm->main_start < pm->main_size))
        return pm->main;
    unsigned i = pa < (u64)LOW_PAGES << PAGE_SHIFT ? pm->low[pa >> PAGE_SHIFT] : 0;
    return i && i != LOW_MIXED ? &pm->ranges[i - 1] : NULL;
}

static inline bool map_shared(const struct physmap *pm) { return pm->sharing.lock; }

/* Host address of RAM or ROM at @pa, good to the end of the page; NULL elsewhere. */
static inline u8 *map_memory(const struct physmap *pm, pa_t pa)
{
    const struct range *r = map_page(pm, pa);
    return likely(r && r->host) ? r->host + (pa - r->start) : NULL;
}

static inline u8 *range_flag(const struct range *r, pa_t pa)
{
    const struct region *g = r->region;
    return g->page_flags ? &g->page_flags[(pa - g->base) >> PAGE_SHIFT] : NULL;
}

static inline u64 *range_user(const struct range *r, pa_t pa, enum page_user kind)
{
    const struct region *g = r->region;
    return g->users[kind] ? &g->users[kind][(pa - g->base) >> PAGE_SHIFT] : NULL;
}

/* Sequentially consistent, so that the flags read after it are not older (struct physmap_sharing). */
static inline void range_note_user(const struct range *r, pa_t pa, enum page_user kind, unsigned cpu)
{
    u64 *users = range_user(r, pa, kind);
    if (users && !(__atomic_load_n(users, __ATOMIC_SEQ_CST) & BIT64(cpu)))
        __atomic_fetch_or(users, BIT64(cpu), __ATOMIC_SEQ_CST);
}

enum cmpxchg_result { CMPXCHG_DONE, CMPXCHG_CHANGED, CMPXCHG_NOT_RAM };
enum cmpxchg_result physmap_try_cmpxchg(struct physmap *pm, pa_t pa, u64 expected, u64 desired, unsigned size);
