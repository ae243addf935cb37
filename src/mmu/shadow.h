/*
 * Shadow page tables: what a TLB miss asks before it walks.
 *
 * A *shadow* stands for the upper levels of one guest table tree over the region that one last-level
 * table maps: 2 MiB, or 4 MiB where entries have 4 bytes. It holds what those levels come to -- where
 * the last-level table lies in host memory and which rights are left, or the large page -- so a miss
 * costs one lookup and one load per dimension (linear, second-level) instead of up to 35 loads.
 *
 *   linear -> [linear shadow] -> entry of the guest's page table -> [SLAT shadow] -> entry of the EPT or NPT -> memory
 *
 * Shadows are always true. Every entry behind one is on a *tracked* page: its physical page carries
 * PAGE_TABLE, no TLB grants writes to it, and a write drops exactly the shadows that stand on the
 * entries it touched and changed. So no invalidation concerns them, and they outlive MOV to CR3, VM entries
 * and exits, whatever the tags. Last-level tables are not tracked: their entries are read at each fill of the TLB,
 * never earlier, so what may be stale is the TLB alone, until the flush that ends it.
 *
 * Anything but a plain success or a plain page fault is left to the walker (walk.h), the reference.
 *
 * One per physical map, shared by all vCPUs, used by one thread at a time.
 */
#pragma once
#include "mmu/walk.h"

struct shadow;

/* The shadow of @pm: made by the first user, freed with the last. */
struct shadow *shadow_open(struct physmap *pm);
void shadow_close(struct shadow *s);

/*
 * The role of the tables that a walk context leads to, and their roots. A role is all that decides what entries
 * mean: kind and depth of the tables (hence the size of their entries -- never CR4.PAE: EPT's and NPT's are
 * a matter of their own), NX, PSE, address width, SLAT and its A/D flags. What judges entries only when they are used
 * (WP, SMEP, SMAP, protection keys, privilege) is no part of it, so shadows are shared across those.
 */
struct shadow_view {
    u64 role, slat_role;
    u64 root, slat_root;     /* PAE without NPT: the root is a PDPTE, and depends on the address */
    u64 mix, slat_mix;       /* of role and root, for looking up */
    u64 reserved;            /* bits that must be 0 in last-level entries */
    u64 slat_reserved;
    u8 region_lg2, slat_region_lg2; /* what one last-level table maps */
    u8 entry, slat_entry;           /* bytes */
    u8 levels;
};
void shadow_view(struct shadow_view *view, const struct walk_context *ctx);

enum shadow_answer {
    SHADOW_UNKNOWN, /* walk */
    SHADOW_OK,
    SHADOW_FAULT, /* a page fault, complete in *w */
};
/* As walk_linear(), but notes no steps. */
enum shadow_answer shadow_translate(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx,
                                    gva_t la, u32 access, struct walk *w);
/* Learns from the walk @w of @la, which succeeded and set its A/D flags. */
void shadow_fill(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx, gva_t la,
                 const struct walk *w);
/* As shadow_translate(), each answer compared with a walk; panics with both when they differ. */
enum shadow_answer shadow_translate_checked(struct shadow *s, const struct shadow_view *view,
                                            const struct walk_context *ctx, gva_t la, u32 access, struct walk *w);
/* After every tracked write, compare all that stands on the page with memory (tests, --mmu check). */
void shadow_paranoid(struct shadow *s, bool on);

/* Which entries of @entry bytes a write of @len bytes at @offset of its page touches, and whether any in part. */
struct shadow_cover {
    u16 first, last;
    bool partial;
};
static inline struct shadow_cover shadow_cover(unsigned offset, size_t len, unsigned entry)
{
    return (struct shadow_cover){.first = (u16)(offset / entry),
                                 .last = (u16)((offset + len - 1) / entry),
                                 .partial = (offset | len) & (entry - 1)};
}

enum shadow_write {
    SHADOW_WRITE_NARROW, /* 1 or 2 bytes */
    SHADOW_WRITE_4,
    SHADOW_WRITE_8,
    SHADOW_WRITE_WIDE, /* more */
    SHADOW_WRITE_ODD,  /* misaligned, or no power of two */
    SHADOW_WRITES,
};
struct shadow_stats {
    u64 fills;                 /* shadows made */
    u64 refused;               /* not made: a table outside RAM, or flooded lately */
    u64 evicted;               /* to make room */
    u64 tracked;               /* pages that became tracked */
    u64 writes[SHADOW_WRITES]; /* into tracked pages: aligned 4 and 8 bytes, less, more, and misaligned */
    u64 silent;                /* of these: changed no entry that a shadow stands on */
    u64 dropped;               /* shadows dropped by writes */
    u64 floods;                /* pages that were written too often to be tracked */
    u32 live, tables;          /* shadows and tracked pages at this moment */
};
const struct shadow_stats *shadow_stats(const struct shadow *s);
/* Which shadows there are for @la, and for guest-physical @gpa of the data (tests). */
enum { SHADOW_KNOWS_LINEAR = 1, SHADOW_KNOWS_SLAT = 2 };
unsigned shadow_knows(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx, gva_t la, gpa_t gpa);
