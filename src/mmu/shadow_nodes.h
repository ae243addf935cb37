/* The inside of shadow.c and shadow_track.c: shadows as nodes, and the tables they stand on. */
#pragma once
#include "mmu/shadow.h"
#include "mmu/walk_tables.h"

#define SETS_LG2   11
#define WAYS       4
#define NODES      (WAYS << SETS_LG2) /* 16 GiB in pieces of 2 MiB */
#define TABLES     4096               /* tracked pages */
#define TABLE_HASH 4096
#define DEPS       (NODES * 12)

/* One shadow: one cache line. */
struct node {
    _Alignas(64) u64 region; /* these four are its name; role 0: none */
    u64 root, role, slat;
    const u8 *leaf;               /* the last-level table, NULL for a large page */
    union {
        pa_t leaf_pa;
        u64 large; /* the entry that maps the large page */
    };
    u32 rights;   /* NODE_*; of EPT, the AND of its rights */
    u32 used : 25, lg2 : 6, table_writable : 1;
    u32 deps;  /* its first dependency */
    u32 hits;  /* walks it has spared */
};
_Static_assert(sizeof(struct node) == 64, "one cache line");
#define STAMP_BITS BITS64(24, 0) /* of a stamp, in .used */
#define NODE_W  BIT(1)
#define NODE_U  BIT(2)
#define NODE_NX BIT(3) /* some entry has it */

/* One entry of a tracked table on which one node stands. 0 ends all lists. */
struct dep {
    u64 entry; /* its value */
    u32 node;
    u32 next_of_node;
    u32 next, prev; /* in the list of the slot */
    u16 slot;
    u16 table;
    u8 dirty; /* not 0: the entry maps the node's large page, and this bit of it, the dirty flag, may come */
};

/* A tracked page in one reading: 512 entries of 8 bytes, or 1024 of 4. */
struct table {
    pa_t page;
    u8 entry;
    bool tracked;    /* PAGE_TABLE is ours; not while it is left alone after a flood */
    u16 hash_next;
    u32 live;        /* dependencies */
    u8 idle;         /* writes in a row that found no dependency */
    u16 writes;      /* in this window, */
    u16 drops;       /* how many shadows they dropped, */
    u32 spared;      /* and how many walks those had spared */
    u32 window;      /* stamp of its begin */
    u64 used;        /* stamp */
    u64 left_alone;  /* until this stamp */
    u32 head[];      /* by slot */
};

struct shadow {
    struct physmap *pm;
    unsigned users;
    bool paranoid;
    u64 stamp;          /* counts fills and tracked writes */
    u32 free_dep, deps; /* freed ones, and how many were ever used */
    u32 deps_live;
    u32 hand;           /* of the clock that makes room for dependencies */
    u16 free_table;
    struct table *table[TABLES]; /* 0 is not used */
    u16 table_hash[TABLE_HASH];
    u16 table_next_free[TABLES];
    u16 tables;
    struct shadow_stats stats;
    struct node node[NODES];
    struct dep dep[DEPS];
};

/* What of a node's place the region does not decide. */
static alwaysinline u64 node_mix(u64 root, u64 role)
{
    return (root >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull ^ role * 0xd6e8feb86659fd93ull;
}
static alwaysinline unsigned node_set(u64 region, u64 mix)
{
    return (unsigned)((region ^ mix) * 0x9e3779b97f4a7c15ull >> (64 - SETS_LG2)) * WAYS;
}

/* @mix: node_mix(@root, @role) */
static alwaysinline struct node *node_find(struct shadow *s, u64 region, u64 root, u64 role, u64 slat, u64 mix)
{
    struct node *n = &s->node[node_set(region, mix)];
    for (unsigned i = 0; i < WAYS; i++, n++)
        if (likely(n->region == region && n->role == role && n->root == root && n->slat == slat))
            return n;
    return NULL;
}

/* PAE without NPT starts at the PDPTE registers; 0: that one is not present. */
static alwaysinline u64 view_root(const struct shadow_view *view, const struct walk_context *ctx, gva_t la)
{
    if (likely(view->levels != 2 || view->entry != 8))
        return view->root;
    u64 e = ctx->pdpte[la >> 30 & 3];
    return e & PTE_P ? (e & PTE_FRAME) | 1 : 0; /* | 1: never 0 */
}

static alwaysinline struct node *linear_find(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx, gva_t la)
{
    u64 root = view_root(view, ctx, la);
    return node_find(s, la >> view->region_lg2, root, view->role, view->slat_root,
                     likely(root == view->root) ? view->mix : node_mix(root, view->role));
}
static alwaysinline struct node *slat_find(struct shadow *s, const struct shadow_view *view, gpa_t gpa)
{
    return node_find(s, gpa >> view->slat_region_lg2, view->slat_root, view->slat_role, 0, view->slat_mix);
}
