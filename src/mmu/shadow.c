/* Answering a TLB miss from the shadows: shadow.h says what they are. */
#include "mmu/shadow_look.h"

/* ---- roles ---- */

static u64 slat_bits(const struct slat *s)
{
    if (s->kind == SLAT_NONE)
        return 0;
    return s->kind | (u64)s->levels << 2 | (u64)s->host_mode << 5 | (u64)s->ad << 8 |
           (u64)s->exec_only << 10 | (u64)s->huge_1g << 11 | (u64)s->huge_2m << 12 | (u64)s->nx << 13 |
           (u64)s->pse << 14;
}

static u64 capability_bits(const struct walk_context *c)
{
    return (u64)c->pse36 << 5 | (u64)c->pdpe1gb << 6 | (u64)c->amd << 7 | (u64)c->maxphyaddr << 8;
}

/* Reserved bits of a last-level entry, as tables_walk() and ept_walk() have them. */
static u64 leaf_reserved(unsigned entry, bool pae, bool nx, unsigned maxphyaddr)
{
    if (entry == 4)
        return 0;
    return (maxphyaddr < 52 ? BITS64(51, maxphyaddr) : 0) | (pae ? BITS64(62, 52) : 0) | (nx ? 0 : PTE_NX);
}

enum { ROLE_LINEAR = 1, ROLE_SLAT = 2 };

void shadow_view(struct shadow_view *view, const struct walk_context *c)
{
    const struct slat *s = &c->slat;
    *view = (struct shadow_view){0};
    u64 slat = slat_bits(s) << 32;
    if (s->kind == SLAT_EPT) {
        view->slat_role = ROLE_SLAT | capability_bits(c) | slat;
        view->slat_root = s->root & PTE_FRAME;
        view->slat_entry = 8;
        view->slat_region_lg2 = 21;
        view->slat_reserved = leaf_reserved(8, false, true, c->maxphyaddr);
    } else if (s->kind == SLAT_NPT) {
        bool narrow = s->host_mode == PAGING_32BIT, pae = s->host_mode == PAGING_PAE;
        view->slat_role = ROLE_SLAT | capability_bits(c) | slat;
        view->slat_entry = narrow ? 4 : 8;
        view->slat_root = s->root & (pae ? BITS64(51, 5) : narrow ? BITS64(31, 12) : PTE_FRAME);
        view->slat_region_lg2 = narrow ? 22 : 21;
        view->slat_reserved = leaf_reserved(view->slat_entry, pae, s->nx, c->maxphyaddr);
    }
    view->slat_mix = node_mix(view->slat_root, view->slat_role);
    if (c->paging == PAGING_NONE)
        return;
    bool narrow = c->paging == PAGING_32BIT, pae = c->paging == PAGING_PAE;
    view->role = ROLE_LINEAR | (u64)c->paging << 2 | capability_bits(c) | (u64)c->nx << 16 | (u64)c->pse << 17 | slat;
    view->entry = narrow ? 4 : 8;
    view->region_lg2 = narrow ? 22 : 21;
    view->levels = narrow ? 2 : pae ? (s->kind == SLAT_NPT ? 3 : 2) : c->paging == PAGING_5LEVEL ? 5 : 4;
    view->root = c->cr3 & (pae ? BITS64(31, 5) : narrow ? BITS64(31, 12) : PTE_FRAME);
    view->mix = node_mix(view->root, view->role);
    view->reserved = leaf_reserved(view->entry, pae, c->nx, c->maxphyaddr);
}

/* ---- the whole ---- */

/* Sets the flags that @access makes due in last-level entry @e; false: not ours to do, or it changed. */
static noinline bool leaf_set_ad(struct shadow *s, const struct node *n, gva_t la, unsigned entry, u64 e, u64 want)
{
    u64 page = la >> PAGE_SHIFT;
    if (!n->leaf || !n->table_writable)
        return false;
    pa_t pa = n->leaf_pa + (entry == 4 ? (page & 1023) * 4 : (page & 511) * 8);
    return physmap_try_cmpxchg(s->pm, pa, e, want, entry) == CMPXCHG_DONE;
}

enum shadow_answer shadow_translate(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx,
                                    gva_t la, u32 access, struct walk *w)
{
    memset(w, 0, offsetof(struct walk, steps));
    w->lg2_page = w->lg2_linear = PAGE_SHIFT;
    if (unlikely(access & ACCESS_SHADOW_STACK))
        return SHADOW_UNKNOWN;
    if (unlikely(ctx->paging == PAGING_NONE)) {
        w->user = w->writable = w->dirty = true;
        w->perms = ACCESS_RWX;
        w->gpa = w->pa = la;
    } else {
        if (ctx->paging <= PAGING_PAE)
            la &= 0xffffffffu;
        struct node *n = linear_find(s, view, ctx, la);
        if (unlikely(!n))
            return SHADOW_UNKNOWN;
        n->used = (u32)s->stamp & STAMP_BITS;
        n->hits++;
        struct traversal t = {.lg2 = PAGE_SHIFT};
        u64 e;
        if (likely(n->leaf != NULL)) {
            e = leaf_load(n, la, view->entry);
            if (!(e & PTE_P)) {
                page_fault(ctx, access, 0, w);
                return SHADOW_FAULT;
            }
            if (unlikely(e & view->reserved)) {
                page_fault(ctx, access, PF_P | PF_RSVD, w);
                return SHADOW_FAULT;
            }
        } else {
            e = n->large;
            t.lg2 = n->lg2;
        }
        t.leaf = e;
        leaf_rights(n, e, view->entry, &t);
        bool keys = view->levels >= 4;
        struct judgement j = judge(ctx, &t, keys, access);
        const u32 need = access & ACCESS_RWX;
        w->user = t.user;
        w->writable = t.writable;
        w->nx = t.nx;
        w->perms = j.perms;
        w->pkey = keys ? (u8)bits_get(e, 62, 59) : 0;
        w->global = e & PTE_G;
        w->lg2_page = w->lg2_linear = t.lg2;
        if (unlikely(need & ~j.perms)) {
            page_fault(ctx, access, PF_P | (need & j.pk ? PF_PK : 0), w);
            return SHADOW_FAULT;
        }
        u64 want = e | PTE_A | (access & ACCESS_WRITE ? PTE_D : 0);
        if (unlikely(want != e) && !(access & ACCESS_NO_AD)) {
            if (!leaf_set_ad(s, n, la, view->entry, e, want))
                return SHADOW_UNKNOWN;
            e = want;
        }
        w->dirty = e & PTE_D;
        w->gpa = w->pa = page_frame(e, view->entry, t.lg2, ctx->pse36) | (la & BITS64(t.lg2 - 1, 0));
    }
    if (view->slat_role) {
        struct slat_result r;
        if (unlikely(!slat_use(s, slat_find(s, view, w->gpa), view, ctx, w->gpa, access, w->user, &r)))
            return SHADOW_UNKNOWN;
        slat_restrict(ctx, w, &r);
    }
    return SHADOW_OK;
}

/* ---- the check ---- */

enum shadow_answer shadow_translate_checked(struct shadow *s, const struct shadow_view *view,
                                            const struct walk_context *ctx, gva_t la, u32 access, struct walk *w)
{
    struct walk r; /* first: setting A/D flags can change what a walk says, where a table maps itself */
    bool ok = walk_linear(s->pm, ctx, la, access | ACCESS_NO_AD, &r);
    enum shadow_answer answer = shadow_translate(s, view, ctx, la, access, w);
    if (answer == SHADOW_UNKNOWN)
        return answer;
    bool same = ok == (answer == SHADOW_OK) && r.fault == w->fault;
    bool dirty = r.dirty || ((access & ACCESS_WRITE) && !(access & ACCESS_NO_AD));
    if (same && ok)
        same = r.pa == w->pa && r.gpa == w->gpa && r.perms == w->perms && dirty == w->dirty && r.user == w->user &&
               r.writable == w->writable && r.nx == w->nx && r.global == w->global && r.pkey == w->pkey &&
               r.lg2_page == w->lg2_page && r.lg2_linear == w->lg2_linear && r.memtype == w->memtype;
    else if (same)
        same = r.error_code == w->error_code;
    if (!same)
        panic("shadow of %#llx for access %#x: fault %u error %#x pa %#llx perms %u dirty %u lg2 %u/%u; "
              "the walk: fault %u error %#x pa %#llx perms %u dirty %u lg2 %u/%u",
              (unsigned long long)la, access, w->fault, w->error_code, (unsigned long long)w->pa, w->perms, w->dirty,
              w->lg2_page, w->lg2_linear, r.fault, r.error_code, (unsigned long long)r.pa, r.perms, r.dirty,
              r.lg2_page, r.lg2_linear);
    return answer;
}

unsigned shadow_knows(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx, gva_t la, gpa_t gpa)
{
    unsigned known = 0;
    if (ctx->paging <= PAGING_PAE)
        la &= 0xffffffffu;
    if (view->role && linear_find(s, view, ctx, la))
        known |= SHADOW_KNOWS_LINEAR;
    if (view->slat_role && slat_find(s, view, gpa))
        known |= SHADOW_KNOWS_SLAT;
    return known;
}
