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
static alwaysinline bool slat_use(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx,
                                  gpa_t gpa, u32 access, bool user, struct slat_result *out)
{
    const struct slat *t = &ctx->slat;
    struct node *n = node_find(s, gpa >> view->slat_region_lg2, view->slat_root, view->slat_role, 0);
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

/* As shadow_translate(), where the access is allowed and no flag is due; false: ask that. Writes nothing to guest memory. */
static alwaysinline bool shadow_look(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx,
                                     gva_t la, u32 access, struct leads *l)
{
    bool user = true;
    *l = (struct leads){.pa = la, .perms = ACCESS_RWX, .dirty = true, .lg2_linear = PAGE_SHIFT};
    if (likely(ctx->paging != PAGING_NONE)) {
        struct node *n = node_find(s, la >> view->region_lg2, view_root(view, ctx, la), view->role, view->slat_root);
        if (unlikely(!n))
            return false;
        struct traversal t = {0};
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
        t.leaf = e;
        leaf_rights(n, e, view->entry, &t);
        l->perms = judge(ctx, &t, view->levels >= 4, access).perms;
        if (unlikely(access & ACCESS_RWX & ~l->perms))
            return false;
        n->used = (u32)s->stamp & STAMP_BITS;
        n->hits++;
        user = t.user;
        l->dirty = e & PTE_D;
        l->global = e & PTE_G;
        l->pa = page_frame(e, view->entry, l->lg2_linear, ctx->pse36) | (la & BITS64(l->lg2_linear - 1, 0));
    }
    if (view->slat_role) {
        struct slat_result r;
        if (unlikely(!slat_use(s, view, ctx, l->pa, access, user, &r)))
            return false;
        l->perms &= slat_perms(ctx, user, &r);
        l->dirty &= r.dirty;
        l->pa = r.pa;
    }
    return true;
}
