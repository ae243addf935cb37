/*
 * How a shadow is used: its last-level entry is read in the guest's memory and judged. Shared by the answer to a miss in C
 * (shadow.c) and the one that translated code asks for (refill.c).
 */
#pragma once
#include "mmu/shadow_nodes.h"

static alwaysinline u64 leaf_load(const struct node *n, u64 addr, unsigned entry)
{
    u64 page = addr >> PAGE_SHIFT;
    return entry == 4 ? __atomic_load_n((const u32 *)(const void *)n->leaf + (page & 1023), __ATOMIC_RELAXED)
                      : __atomic_load_n((const u64 *)(const void *)n->leaf + (page & 511), __ATOMIC_RELAXED);
}

static alwaysinline u64 page_frame(u64 e, unsigned entry, unsigned lg2, bool pse36)
{
    if (entry == 8)
        return e & PTE_FRAME & ~BITS64(lg2 - 1, 0);
    if (lg2 == PAGE_SHIFT)
        return e & BITS64(31, 12);
    return (e & BITS64(31, 22)) | (pse36 ? bits_get(e, 20, 13) << 32 : 0);
}

static alwaysinline void leaf_rights(const struct node *n, u64 e, unsigned entry, struct traversal *t)
{
    t->user = (e & PTE_U) && (n->rights & NODE_U);
    t->writable = (e & PTE_W) && (n->rights & NODE_W);
    t->nx = entry == 8 && ((e & PTE_NX) || (n->rights & NODE_NX));
}

/* The second level. True when the access is allowed and no flag is due; everything else is the walker's. */
static alwaysinline bool slat_use(struct shadow *s, struct node *n, const struct shadow_view *view, const struct walk_context *ctx,
                                  gpa_t gpa, u32 access, bool user, struct slat_result *out)
{
    const struct slat *t = &ctx->slat;
    if (unlikely(!n))
        return false;
    n->used = (u32)s->stamp & STAMP_BITS;
    n->hits++;
    u64 e;
    unsigned lg2 = PAGE_SHIFT;
    if (n->leaf) {
        e = leaf_load(n, gpa, view->slat_entry);
        if (unlikely(e & view->slat_reserved))
            return false;
    } else {
        e = n->large;
        lg2 = n->lg2;
    }
    bool write = access & ACCESS_WRITE;
    if (t->kind == SLAT_EPT) {
        u64 exec = t->mbec ? EPT_X | EPT_XU : EPT_X;
        u64 need = (access & ACCESS_READ ? EPT_R : 0) | (write ? EPT_W : 0) |
                   (access & ACCESS_EXEC ? (t->mbec && user ? EPT_XU : EPT_X) : 0);
        u64 type = bits_get(e, 5, 3);
        if (unlikely((e & (EPT_R | EPT_W)) == EPT_W || (!(e & EPT_R) && (e & exec) && !t->exec_only) || type == 2 ||
                     type == 3 || type == 7))
            return false;
        out->rights = e & n->rights;
        if (unlikely(need & ~out->rights))
            return false;
        if (t->ad && unlikely(!(e & EPT_A) || (write && !(e & EPT_D))))
            return false;
        out->dirty = !t->ad || (e & EPT_D);
        out->memtype = (u8)type;
    } else {
        if (unlikely((e & (PTE_P | PTE_U | PTE_A)) != (PTE_P | PTE_U | PTE_A) || !(n->rights & NODE_U)))
            return false;
        bool writable = (e & PTE_W) && (n->rights & NODE_W);
        bool nx = view->slat_entry == 8 && ((e & PTE_NX) || (n->rights & NODE_NX));
        if (unlikely((write && (!writable || !(e & PTE_D))) || ((access & ACCESS_EXEC) && nx)))
            return false;
        out->rights = EPT_R | (writable ? EPT_W : 0) | (nx ? 0 : EPT_X | EPT_XU);
        out->dirty = e & PTE_D;
        out->memtype = 6;
    }
    out->lg2 = (u8)lg2;
    out->pa = page_frame(e, view->slat_entry, lg2, ctx->pse36) | (gpa & BITS64(lg2 - 1, 0));
    return true;
}

/* The nodes that were used last, where many pages are looked up one behind the other and nothing is written. */
struct near {
    u64 region, slat_region; /* + 1; 0: none */
    struct node *linear, *slat;
};
static alwaysinline struct node *near_linear(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx,
                                             gva_t la, struct near *near)
{
    if (!near)
        return linear_find(s, view, ctx, la);
    u64 region = (la >> view->region_lg2) + 1;
    if (near->region != region) {
        near->region = region;
        near->linear = linear_find(s, view, ctx, la);
    }
    return near->linear;
}
static alwaysinline struct node *near_slat(struct shadow *s, const struct shadow_view *view, gpa_t gpa, struct near *near)
{
    if (!near)
        return slat_find(s, view, gpa);
    u64 region = (gpa >> view->slat_region_lg2) + 1;
    if (near->slat_region != region) {
        near->slat_region = region;
        near->slat = slat_find(s, view, gpa);
    }
    return near->slat;
}

/* What an access may do, protection keys aside: judge() for each of U/S (4), R/W (2), XD (1). */
struct rights {
    u8 perms[8];
};
static inline struct rights rights_of(const struct walk_context *ctx, u32 mode)
{
    struct rights r;
    for (unsigned n = 0; n < 8; n++) {
        struct traversal t = {.user = n & 4, .writable = n & 2, .nx = n & 1};
        r.perms[n] = judge(ctx, &t, false, mode).perms;
    }
    return r;
}

/*
 * As shadow_translate(), where the access is allowed and no flag is due; false: ask that. Writes nothing to guest memory.
 * @may: rights_of() @ctx and the mode in @access.
 */
static alwaysinline bool shadow_look(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx, gva_t la,
                                     u32 access, const struct rights *may, struct near *near, struct leads *l)
{
    bool user = true;
    l->pa = la;
    l->perms = ACCESS_RWX;
    l->dirty = true;
    l->global = false;
    l->lg2_linear = PAGE_SHIFT;
    if (likely(ctx->paging != PAGING_NONE)) {
        struct node *n = near_linear(s, view, ctx, la, near);
        if (unlikely(!n))
            return false;
        u64 e;
        if (likely(n->leaf != NULL)) {
            e = leaf_load(n, la, view->entry);
            if (unlikely(e & view->reserved))
                return false;
        } else {
            e = n->large;
            l->lg2_linear = (u8)n->lg2;
        }
        u64 flags = PTE_P | PTE_A | (access & ACCESS_WRITE ? PTE_D : 0);
        if (unlikely(flags & ~e))
            return false;
        /* P, R/W and U/S are bits 0 to 2 of an entry and of the node's rights; XD is bit 63, and bit 3 there. */
        unsigned index = (unsigned)(e & n->rights & (PTE_U | PTE_W)) | (unsigned)(view->entry == 8 && ((e >> 60 | n->rights) & NODE_NX));
        user = index & PTE_U;
        l->perms = may->perms[index];
        if (view->levels >= 4 && (user ? ctx->pke : ctx->pks) &&
            unlikely((user ? ctx->pkru : ctx->pkrs) >> (2 * bits_get(e, 62, 59)) & 3))
            return false;
        if (unlikely(access & ACCESS_RWX & ~l->perms))
            return false;
        n->used = (u32)s->stamp & STAMP_BITS;
        n->hits++;
        l->dirty = e & PTE_D;
        l->global = e & PTE_G;
        l->pa = page_frame(e, view->entry, l->lg2_linear, ctx->pse36) | (la & BITS64(l->lg2_linear - 1, 0));
    }
    if (view->slat_role) {
        struct slat_result r;
        if (unlikely(!slat_use(s, near_slat(s, view, l->pa, near), view, ctx, l->pa, access, user, &r)))
            return false;
        l->perms &= slat_perms(ctx, user, &r);
        l->dirty &= r.dirty;
        l->pa = r.pa;
    }
    return true;
}
_Static_assert(PTE_W == 2 && PTE_U == 4 && NODE_W == PTE_W && NODE_U == PTE_U && NODE_NX == PTE_NX >> 60, "one index");
