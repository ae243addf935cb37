/*
 * Translation of linear addresses: SDM vol. 3 "Paging" (hierarchical structures, "Determination of
 * Access Rights", "Page-Fault Exceptions", "Accessed and Dirty Flags"), under EPT or NPT when on.
 *
 * Order of judgement: at each level first the SLAT of the entry's own address, then presence, then
 * reserved bits; after the last level the access rights; then the accessed and dirty flags; last the
 * SLAT of the data. Flags are set only for an access that the linear rights allow.
 */
#include "mmu/walk_tables.h"

/* The last step: w->gpa is known; SLAT, if any, gives the physical address and may take rights away. */
static alwaysinline bool walk_finish(struct physmap *pm, const struct walk_context *ctx, bool nested, u32 access,
                                     struct walk *w)
{
    if (!nested) {
        w->pa = w->gpa;
        return true;
    }
    struct slat_result s;
    if (!slat_translate(pm, ctx, w->gpa, access, SLAT_DATA, w, &s))
        return false;
    slat_restrict(ctx, w, &s);
    return true;
}

static alwaysinline bool walk_format(struct physmap *pm, const struct walk_context *ctx, const struct table_format f,
                                     u8 kind, bool nested, u64 root, gva_t la, u32 access, struct walk *w)
{
    const struct table_rules rules = {.maxphyaddr = ctx->maxphyaddr,
                                      .nx = ctx->nx,
                                      .pse = ctx->pse,
                                      .pse36 = ctx->pse36,
                                      .pdpe1gb = ctx->pdpe1gb,
                                      .amd = ctx->amd};
    const u32 need = access & ACCESS_RWX;
    struct traversal t;
again:
    w->nsteps = 0;
    switch (tables_walk(pm, ctx, f, &rules, root, la, nested, kind, access, w, &t)) {
    case TABLES_OK:
        break;
    case TABLES_NOT_PRESENT:
        return page_fault(ctx, access, 0, w);
    case TABLES_RESERVED:
        return page_fault(ctx, access, PF_P | PF_RSVD, w);
    case TABLES_SLAT:
        return false;
    }
    bool keys = f.levels >= 4;
    struct judgement j = judge(ctx, &t, keys, access);
    w->user = t.user;
    w->writable = t.writable;
    w->nx = t.nx;
    w->perms = j.perms;
    w->pkey = keys ? (u8)bits_get(t.leaf, 62, 59) : 0;
    w->global = t.leaf & PTE_G;
    w->lg2_page = w->lg2_linear = t.lg2;
    if (unlikely(need & ~j.perms))
        return page_fault(ctx, access, PF_P | (need & j.pk ? PF_PK : 0), w);
    if (likely(!(access & ACCESS_NO_AD))) {
        switch (tables_set_ad(pm, ctx, f, nested, access & ACCESS_WRITE, w, &t)) {
        case AD_DONE:
            break;
        case AD_RESTART:
            goto again;
        case AD_SLAT:
            return false;
        }
    }
    w->dirty = t.leaf & PTE_D;
    w->gpa = t.frame | (la & BITS64(t.lg2 - 1, 0));
    w->gpa_is_table = false;
    return walk_finish(pm, ctx, nested, access, w);
}

/* ---- the instantiations: per format, with and without SLAT ---- */

#define WALK_ONE(name, format, kind, root, nested)                                                                     \
    static noinline bool walk_##name(struct physmap *pm, const struct walk_context *ctx, gva_t la, u32 access,         \
                                     struct walk *w)                                                                   \
    {                                                                                                                  \
        return walk_format(pm, ctx, format, kind, nested, root, la, access, w);                                        \
    }
#define WALK(name, format, kind, root)                                                                                 \
    WALK_ONE(name, format, kind, root, false)                                                                          \
    WALK_ONE(name##_nested, format, kind, root, true)

#define PDPTE(ctx, la) ((ctx)->pdpte[((la) >> 30) & 3])
WALK(32bit, format_32bit, TABLE_32BIT, ctx->cr3 &BITS64(31, 12))
WALK(pae, format_pae, TABLE_PAE, PDPTE(ctx, la) & PTE_FRAME)
WALK_ONE(pae_memory_nested, format_pae_memory, TABLE_PAE, ctx->cr3 &BITS64(31, 5), true)
WALK(4level, format_4level, TABLE_LONG, ctx->cr3 &PTE_FRAME)
WALK(5level, format_5level, TABLE_LONG, ctx->cr3 &PTE_FRAME)

static void walk_begin(struct walk *w)
{
    /* All but the steps, of which nsteps says how many are valid. */
    memset(w, 0, offsetof(struct walk, steps));
    w->lg2_page = w->lg2_linear = PAGE_SHIFT;
}

bool walk_linear(struct physmap *pm, const struct walk_context *ctx, gva_t la, u32 access, struct walk *w)
{
    bool nested = ctx->slat.kind != SLAT_NONE;
    walk_begin(w);
    switch (ctx->paging) {
    case PAGING_4LEVEL:
        return (nested ? walk_4level_nested : walk_4level)(pm, ctx, la, access, w);
    case PAGING_5LEVEL:
        return (nested ? walk_5level_nested : walk_5level)(pm, ctx, la, access, w);
    case PAGING_32BIT:
        return (nested ? walk_32bit_nested : walk_32bit)(pm, ctx, la & 0xffffffffu, access, w);
    case PAGING_PAE:
        la &= 0xffffffffu;
        /* APM "Legacy PAE Mode" of nested paging: the PDPTEs are read at each walk, not at MOV to CR3. */
        if (ctx->slat.kind == SLAT_NPT)
            return walk_pae_memory_nested(pm, ctx, la, access, w);
        if (!(PDPTE(ctx, la) & PTE_P))
            return page_fault(ctx, access, 0, w);
        return (nested ? walk_pae_nested : walk_pae)(pm, ctx, la, access, w);
    default:
        /* Every linear address is a user-mode, writable, executable one (SDM, exit qualification bits 9-11). */
        w->user = w->writable = w->dirty = true;
        w->perms = ACCESS_RWX;
        w->gpa = la;
        return walk_finish(pm, ctx, nested, access, w);
    }
}

bool walk_gpa(struct physmap *pm, const struct walk_context *ctx, gpa_t gpa, u32 access, struct walk *w)
{
    walk_begin(w);
    w->gpa = w->pa = gpa;
    w->user = w->writable = w->dirty = true;
    w->perms = ACCESS_RWX;
    if (ctx->slat.kind == SLAT_NONE)
        return true;
    struct slat_result s;
    if (!slat_translate(pm, ctx, gpa, access, SLAT_BARE, w, &s))
        return false;
    w->perms = (u8)((s.rights & EPT_R ? ACCESS_READ : 0) | (s.rights & EPT_W ? ACCESS_WRITE : 0) |
                    (s.rights & EPT_X ? ACCESS_EXEC : 0));
    w->dirty = s.dirty;
    w->memtype = s.memtype;
    w->lg2_page = s.lg2;
    w->pa = s.pa;
    return true;
}

enum walk_fault walk_load_pdptes(struct physmap *pm, const struct walk_context *ctx, u64 cr3, u64 pdpte[4],
                                 struct walk *w)
{
    walk_begin(w);
    if (ctx->slat.kind == SLAT_NPT) {
        memset(pdpte, 0, 4 * sizeof(*pdpte));
        return WALK_OK;
    }
    gpa_t gpa = cr3 & BITS64(31, 5);
    pa_t pa = gpa;
    if (ctx->slat.kind != SLAT_NONE) {
        /* These loads are reads even with EPT A/D flags (SDM "Accessed and Dirty Flags for EPT"). */
        struct slat_result s;
        if (!slat_translate(pm, ctx, gpa, ACCESS_READ, SLAT_BARE, w, &s))
            return w->fault;
        pa = s.pa;
    }
    u64 reserved =
        BITS64(63, 52) | (ctx->maxphyaddr < 52 ? BITS64(51, ctx->maxphyaddr) : 0) | BITS64(8, 5) | BITS64(2, 1);
    u64 loaded[4];
    for (unsigned i = 0; i < 4; i++) {
        loaded[i] = table_load(pm, pa + 8 * i, 8);
        walk_note(w, TABLE_PAE, 3, pa + 8 * i, gpa + 8 * i, loaded[i]);
        if ((loaded[i] & PTE_P) && (loaded[i] & reserved)) {
            w->fault = WALK_PAGE_FAULT;
            w->error_code = PF_P | PF_RSVD;
            return WALK_PAGE_FAULT;
        }
    }
    memcpy(pdpte, loaded, sizeof(loaded));
    return WALK_OK;
}
