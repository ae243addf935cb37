/*
 * One traversal of tables in the linear formats (32-bit, PAE, 4- and 5-level), written once and
 * compiled per format: the format is a constant, and everything here is inlined into the callers in
 * walk.c (guest tables, each access of which may itself need translation) and walk_slat.c (NPT).
 *
 * Intel SDM vol. 3 "Paging"; AMD APM vol. 2 "Page Translation and Protection".
 */
#pragma once
#include "mmu/physmap_view.h"
#include "mmu/walk.h"

#define ACCESS_RWX (ACCESS_READ | ACCESS_WRITE | ACCESS_EXEC)

#define PTE_P     BIT64(0)
#define PTE_W     BIT64(1)
#define PTE_U     BIT64(2)
#define PTE_A     BIT64(5)
#define PTE_D     BIT64(6)
#define PTE_PS    BIT64(7)
#define PTE_G     BIT64(8)
#define PTE_NX    BIT64(63)
#define PTE_FRAME BITS64(51, 12)

/* Page-fault error code (SDM "Page-Fault Exceptions"); NPT's EXITINFO1 has the same low bits. */
#define PF_P    BIT(0)
#define PF_W    BIT(1)
#define PF_U    BIT(2)
#define PF_RSVD BIT(3)
#define PF_I    BIT(4)
#define PF_PK   BIT(5)
#define PF_SS   BIT(6)

/* EPT rights as bits of an entry; NPT reports its own in the same form. */
#define EPT_R  BIT64(0)
#define EPT_W  BIT64(1)
#define EPT_X  BIT64(2)
#define EPT_XU BIT64(10)
#define EPT_PAGE BIT64(7)
#define EPT_A BIT64(8)
#define EPT_D BIT64(9)

struct table_format {
    u8 levels;
    u8 entry; /* bytes */
    u8 index_bits;
    bool pae; /* level 3 entries are PDPTEs of PAE paging; bits 62:52 reserved */
};
static const struct table_format format_32bit = {2, 4, 10, false};
static const struct table_format format_pae = {2, 8, 9, true};        /* below the PDPTE registers */
static const struct table_format format_pae_memory = {3, 8, 9, true}; /* PDPTEs read at each walk (NPT) */
static const struct table_format format_4level = {4, 8, 9, false};
static const struct table_format format_5level = {5, 8, 9, false};

/* What of the processor's configuration decides the meaning of entries. */
struct table_rules {
    u8 maxphyaddr;
    bool nx, pse, pse36, pdpe1gb, amd;
};

/* What the SLAT says of one guest-physical address. */
struct slat_result {
    pa_t pa;
    u64 rights; /* EPT_R, EPT_W, EPT_X, EPT_XU: AND of all entries used */
    bool dirty; /* the dirty flag is set, or there is none */
    u8 lg2;
    u8 memtype;
};
enum slat_purpose {
    SLAT_DATA,  /* the translation of a linear address */
    SLAT_TABLE, /* an entry of the guest's paging structures */
    SLAT_BARE,  /* no linear address involved */
};
/* Translates @gpa through EPT or NPT; false: the fault is in @w. SLAT_DATA: w->user, writable, nx are the linear
 * rights. */
bool slat_translate(struct physmap *pm, const struct walk_context *ctx, gpa_t gpa, u32 access,
                    enum slat_purpose purpose, struct walk *w, struct slat_result *out);
/* EPT: the A/D update of a guest entry at @gpa that @rights forbid. */
void slat_table_write_violation(const struct walk_context *ctx, gpa_t gpa, u64 rights, struct walk *w);

/* The outcome of a traversal. */
enum table_result { TABLES_OK, TABLES_NOT_PRESENT, TABLES_RESERVED, TABLES_SLAT };
struct traversal {
    u8 n;   /* entries used */
    u8 lg2; /* size of the page */
    bool user, writable, nx;
    bool upper_writable; /* all entries but the last: shadow-stack pages */
    bool accessed;       /* all accessed flags were set */
    u64 leaf;
    u64 frame; /* address of the page */
    struct {
        pa_t pa;
        gpa_t gpa;
        u64 entry;
        u64 slat_rights;
    } e[5];
};

static alwaysinline u64 table_load(struct physmap *pm, pa_t pa, unsigned size)
{
    const u8 *p = map_memory(pm, pa);
    if (unlikely(!p))
        return physmap_load(pm, pa, size);
    return size == 4 ? __atomic_load_n((const u32 *)p, __ATOMIC_RELAXED)
                     : __atomic_load_n((const u64 *)p, __ATOMIC_RELAXED);
}

static alwaysinline void walk_note(struct walk *w, u8 table, unsigned level, pa_t pa, gpa_t gpa, u64 entry)
{
    if (likely(w->nsteps < WALK_MAX_STEPS))
        w->steps[w->nsteps++] =
            (struct walk_step){.table = table, .level = (u8)level, .pa = pa, .gpa = gpa, .entry = entry};
}

/* Bits of a present entry that must be zero, besides those above the physical-address width. */
static alwaysinline u64 entry_reserved(const struct table_format f, const struct table_rules *rules, unsigned level,
                                       u64 e)
{
    if (f.entry == 4) {
        if (level != 2 || !(e & PTE_PS) || !rules->pse)
            return 0;
        unsigned m = rules->maxphyaddr < 40 ? rules->maxphyaddr : 40; /* PSE-36: address bits 39:32 in 20:13 */
        return rules->pse36 && m > 32 ? BITS64(21, m - 19) : BITS64(21, 13);
    }
    if (level >= 4)
        return PTE_PS | (rules->amd ? BIT64(8) : 0);
    if (level == 3)
        return !(e & PTE_PS) ? 0 : rules->pdpe1gb ? BITS64(29, 13) : PTE_PS;
    return level == 2 && (e & PTE_PS) ? BITS64(20, 13) : 0;
}

/*
 * Reads the tables under @root for @addr. @nested: table addresses are guest-physical. @kind is how
 * the steps are labelled. Rights are collected, not judged.
 */
static alwaysinline enum table_result tables_walk(struct physmap *pm, const struct walk_context *ctx,
                                                  const struct table_format f, const struct table_rules *rules,
                                                  u64 root, u64 addr, bool nested, u8 kind, u32 access, struct walk *w,
                                                  struct traversal *t)
{
    u64 high = rules->maxphyaddr < 52 ? BITS64(51, rules->maxphyaddr) : 0;
    if (f.entry == 4)
        high = 0;
    else if (f.pae)
        high |= BITS64(62, 52);
    if (f.entry == 8 && !rules->nx)
        high |= PTE_NX;
    u64 table = root, all = PTE_W | PTE_U | PTE_A, any = 0;
    unsigned step = w->nsteps; /* kept in a register: nothing else adds steps unless nested */
    t->n = 0;
    t->upper_writable = true;
    /* At most 5 + 5 * 5 + 5 steps are noted in all (WALK_MAX_STEPS); a walk that restarts takes its own back. */
#pragma GCC unroll 5
    for (unsigned level = f.levels; level >= 1; level--) {
        unsigned shift = PAGE_SHIFT + f.index_bits * (level - 1);
        bool pdpte = f.pae && level == 3;
        u64 index = (addr >> shift) & (pdpte ? 3 : BITS64(f.index_bits - 1, 0));
        u64 gpa = table + index * f.entry;
        struct slat_result s = {.pa = gpa, .rights = EPT_R | EPT_W};
        if (nested) {
            if (!slat_translate(pm, ctx, gpa, ACCESS_READ | (access & ACCESS_NO_AD), SLAT_TABLE, w, &s))
                return TABLES_SLAT;
        }
        u64 e = table_load(pm, s.pa, f.entry);
        if (nested)
            step = w->nsteps;
        w->steps[step++] = (struct walk_step){.table = kind, .level = (u8)level, .pa = s.pa, .gpa = gpa, .entry = e};
        w->nsteps = (u8)step;
        t->e[t->n].pa = s.pa;
        t->e[t->n].gpa = gpa;
        t->e[t->n].entry = e;
        t->e[t->n].slat_rights = s.rights;
        t->n++;
        if (!(e & PTE_P))
            return TABLES_NOT_PRESENT;
        if (pdpte) { /* SDM "PDPTE registers": no rights, other reserved bits */
            if (e & (high | PTE_NX | BITS64(8, 5) | BITS64(2, 1)))
                return TABLES_RESERVED;
            table = e & PTE_FRAME;
            continue;
        }
        if (unlikely(e & (high | entry_reserved(f, rules, level, e))))
            return TABLES_RESERVED;
        bool leaf = level == 1 || (level <= 3 && (e & PTE_PS) && (f.entry == 8 || rules->pse));
        any |= e;
        if (leaf) {
            t->upper_writable = all & PTE_W;
            all &= e;
            t->lg2 = (u8)shift;
            t->leaf = e;
            if (f.entry == 4) {
                t->frame = level == 2 ? (e & BITS64(31, 22)) | (bits_get(e, 20, 13) << 32) : e & BITS64(31, 12);
                if (level == 2 && !rules->pse36)
                    t->frame &= BITS64(31, 22);
            } else {
                t->frame = e & PTE_FRAME & ~BITS64(shift - 1, 0);
            }
            break;
        }
        all &= e;
        table = f.entry == 4 ? e & BITS64(31, 12) : e & PTE_FRAME;
    }
    t->user = all & PTE_U;
    t->writable = all & PTE_W;
    t->accessed = all & PTE_A;
    t->nx = f.entry == 8 && (any & PTE_NX);
    return TABLES_OK;
}

enum ad_result { AD_DONE, AD_RESTART, AD_SLAT };

/*
 * Sets the accessed flags of all entries used, and the dirty flag of the last one for a write, only
 * where they are clear. An entry that changed since it was read: the walk must start again.
 */
static alwaysinline enum ad_result tables_set_ad(struct physmap *pm, const struct walk_context *ctx,
                                                 const struct table_format f, bool nested, bool write, struct walk *w,
                                                 struct traversal *t)
{
    if (likely(t->accessed && (!write || (t->leaf & PTE_D))))
        return AD_DONE;
    for (unsigned i = f.pae && f.levels == 3 ? 1 : 0; i < t->n; i++) {
        u64 e = t->e[i].entry;
        u64 want = e | PTE_A | (write && i == t->n - 1u ? PTE_D : 0);
        if (likely(want == e))
            continue;
        if (nested && !(t->e[i].slat_rights & EPT_W)) {
            slat_table_write_violation(ctx, t->e[i].gpa, t->e[i].slat_rights, w);
            return AD_SLAT;
        }
        /* Tables in ROM: the write is lost, as on the bus. */
        if (physmap_try_cmpxchg(pm, t->e[i].pa, e, want, f.entry) == CMPXCHG_CHANGED)
            return AD_RESTART;
        if (i == t->n - 1u)
            t->leaf = want;
    }
    return AD_DONE;
}

/* ---- rights ---- */

struct judgement {
    u8 perms; /* ACCESS_READ, _WRITE, _EXEC */
    u8 pk;    /* accesses among them that a protection key denies */
};

/* What an access of this privilege may do with the page; SDM "Determination of Access Rights". */
static alwaysinline struct judgement judge(const struct walk_context *ctx, const struct traversal *t, bool keys,
                                           u32 access)
{
    struct judgement j = {0, 0};
    bool user_access = access & ACCESS_USER;

    if (unlikely(access & ACCESS_SHADOW_STACK)) {
        /* A shadow-stack page is dirty and read-only in its last entry, writable in all others. */
        bool shadow = ctx->cet && !(t->leaf & PTE_W) && (t->leaf & PTE_D) && t->upper_writable;
        if (shadow && t->user == user_access)
            j.perms = ACCESS_READ | ACCESS_WRITE;
    } else if (user_access) {
        if (t->user)
            j.perms = (u8)(ACCESS_READ | (t->writable ? ACCESS_WRITE : 0) | (t->nx ? 0 : ACCESS_EXEC));
    } else {
        if (!(t->user && ctx->smap && !(access & ACCESS_AC)))
            j.perms = (u8)(ACCESS_READ | (t->writable || !ctx->wp ? ACCESS_WRITE : 0));
        if (!t->nx && !(t->user && ctx->smep))
            j.perms |= ACCESS_EXEC;
    }
    if (keys && (t->user ? ctx->pke : ctx->pks)) {
        u32 key = (t->user ? ctx->pkru : ctx->pkrs) >> (2 * bits_get(t->leaf, 62, 59));
        if (key & 1)
            j.pk = ACCESS_READ | ACCESS_WRITE;
        else if ((key & 2) && (user_access || ctx->wp))
            j.pk = ACCESS_WRITE;
    }
    j.perms &= (u8)~j.pk;
    return j;
}

static inline bool page_fault(const struct walk_context *ctx, u32 access, u32 error, struct walk *w)
{
    if (access & ACCESS_WRITE)
        error |= PF_W;
    if (access & ACCESS_USER)
        error |= PF_U;
    if ((access & ACCESS_EXEC) && (ctx->smep || ctx->nx))
        error |= PF_I;
    if (access & ACCESS_SHADOW_STACK)
        error |= PF_SS;
    w->fault = WALK_PAGE_FAULT;
    w->error_code = error;
    return false;
}

/* The rights that the SLAT's answer grants. */
static alwaysinline u8 slat_perms(const struct walk_context *ctx, bool user, const struct slat_result *s)
{
    u64 exec = ctx->slat.mbec && user ? s->rights >> 10 & 1 : s->rights >> 2 & 1;
    return (u8)((s->rights & (EPT_R | EPT_W)) | exec << 2);
}
_Static_assert(EPT_R == ACCESS_READ && EPT_W == ACCESS_WRITE && EPT_X == ACCESS_EXEC && EPT_XU == BIT64(10), "the same bits");

/* What the SLAT's answer for the data leaves of the rights in @w. */
static alwaysinline void slat_restrict(const struct walk_context *ctx, struct walk *w, const struct slat_result *s)
{
    w->perms &= slat_perms(ctx, w->user, s);
    w->dirty &= s->dirty;
    w->memtype = s->memtype;
    if (s->lg2 < w->lg2_page)
        w->lg2_page = s->lg2;
    w->pa = s->pa;
}
