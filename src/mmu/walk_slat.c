/*
 * Second-level translation: EPT (SDM vol. 3 "The Extended Page Table Mechanism (EPT)") and nested
 * paging (APM vol. 2 "Nested Paging"). Nothing is raised: the fault is left in the struct walk.
 */
#include "mmu/walk_tables.h"

#define EPT_SUPPRESS_VE BIT64(63)

/* Exit qualification for EPT violations. */
#define EQ_READ         BIT64(0)
#define EQ_WRITE        BIT64(1)
#define EQ_FETCH        BIT64(2)
#define EQ_XU           BIT64(6)
#define EQ_LINEAR_VALID BIT64(7)
#define EQ_FINAL        BIT64(8)
#define EQ_USER         BIT64(9)
#define EQ_WRITABLE     BIT64(10)
#define EQ_NX           BIT64(11)
#define EQ_SHADOW       BIT64(13)

static void slat_fault(struct walk *w, enum walk_fault fault, gpa_t gpa, enum slat_purpose purpose)
{
    w->fault = fault;
    w->gpa = gpa;
    w->gpa_is_table = purpose == SLAT_TABLE;
}

/* Bits 3..11 of the qualification; @rights are the AND of the entries used, 0 when one was not present. */
static u64 ept_qualification(const struct slat *s, u64 rights, enum slat_purpose purpose, const struct walk *w)
{
    u64 q = (rights & (EPT_R | EPT_W | EPT_X)) << 3;
    if (s->mbec && (rights & EPT_XU))
        q |= EQ_XU;
    if (purpose == SLAT_BARE)
        return q;
    q |= EQ_LINEAR_VALID;
    if (purpose == SLAT_DATA) {
        q |= EQ_FINAL;
        if (s->advanced_info)
            q |= (w->user ? EQ_USER : 0) | (w->writable ? EQ_WRITABLE : 0) | (w->nx ? EQ_NX : 0);
    }
    return q;
}

void slat_table_write_violation(const struct walk_context *ctx, gpa_t gpa, u64 rights, struct walk *w)
{
    /* With EPT A/D flags, and under NPT, the read already counted as a write: only plain EPT comes here. */
    slat_fault(w, WALK_EPT_VIOLATION, gpa, SLAT_TABLE);
    w->qualification = EQ_READ | EQ_WRITE | ept_qualification(&ctx->slat, rights, SLAT_TABLE, w);
    w->suppress_ve = false;
    for (unsigned i = w->nsteps; i-- > 0;) /* the EPT leaf that mapped this table page */
        if (w->steps[i].table != TABLE_EPT && w->steps[i].gpa == gpa && i) {
            w->suppress_ve = w->steps[i - 1].entry & EPT_SUPPRESS_VE;
            break;
        }
}

/* SDM "EPT Misconfigurations": bits that must be 0 in a present entry, besides the address width. */
static alwaysinline u64 ept_reserved(const struct slat *s, unsigned level, u64 e)
{
    if (level >= 4)
        return BITS64(7, 3);
    if (level == 1)
        return 0;
    if (!(e & EPT_PAGE))
        return BITS64(6, 3);
    if (level == 3)
        return s->huge_1g ? BITS64(29, 12) : EPT_PAGE;
    return s->huge_2m ? BITS64(20, 12) : EPT_PAGE;
}

/* Sets EPT accessed and dirty flags on the steps from @first on; false: an entry changed, or the log is full. */
static bool ept_set_ad(struct physmap *pm, const struct slat *s, gpa_t gpa, bool write, enum slat_purpose purpose,
                       unsigned first, struct walk *w, bool *restart)
{
    *restart = false;
    for (unsigned i = first; i < w->nsteps; i++) {
        u64 e = w->steps[i].entry;
        bool sets_dirty = write && i == w->nsteps - 1u && !(e & EPT_D);
        if (likely((e & EPT_A) && !sets_dirty))
            continue;
        /* SDM "Page-Modification Logging": the log must have room before the flag is set. */
        if (sets_dirty && s->pml && s->pml_index && *s->pml_index > 511) {
            slat_fault(w, WALK_PML_FULL, gpa, purpose);
            return false;
        }
        enum cmpxchg_result r = physmap_try_cmpxchg(pm, w->steps[i].pa, e, e | EPT_A | (sets_dirty ? EPT_D : 0), 8);
        if (r == CMPXCHG_CHANGED) {
            *restart = true;
            return false;
        }
        if (sets_dirty && s->pml && s->pml_index) {
            physmap_store(pm, (s->pml_address & PAGE_MASK) + 8ull * *s->pml_index, gpa & PAGE_MASK, 8);
            --*s->pml_index;
        }
    }
    return true;
}

static alwaysinline bool ept_walk(struct physmap *pm, const struct walk_context *ctx, unsigned levels, gpa_t gpa,
                                  u32 access, enum slat_purpose purpose, struct walk *w, struct slat_result *out)
{
    const struct slat *s = &ctx->slat;
    const u64 high = ctx->maxphyaddr < 52 ? BITS64(51, ctx->maxphyaddr) : 0;
    const u64 exec = s->mbec ? EPT_X | EPT_XU : EPT_X;
    const unsigned first = w->nsteps;
    u64 need = 0, how = 0;

    if (access & ACCESS_READ)
        need |= EPT_R, how |= EQ_READ;
    if (access & ACCESS_WRITE)
        need |= EPT_W, how |= EQ_WRITE;
    if (access & ACCESS_EXEC) {
        /* Mode-based execute control goes by the linear address, not by CPL. */
        need |= s->mbec && w->user ? EPT_XU : EPT_X;
        how |= EQ_FETCH;
    }
    if (unlikely(access & ACCESS_SHADOW_STACK) && purpose == SLAT_DATA)
        how |= EQ_SHADOW;
    if (purpose == SLAT_TABLE && s->ad) /* SDM "Accessed and Dirty Flags for EPT": table accesses are writes */
        need |= EPT_W, how |= EQ_WRITE;
    bool write = need & EPT_W;

again:
    w->nsteps = (u8)first;
    u64 rights = EPT_R | EPT_W | EPT_X | EPT_XU;
    u64 table = s->root & PTE_FRAME, e = 0, accessed = EPT_A;
    unsigned step = first;
    unsigned shift = 0;
    if (levels == 4 && (gpa >> 48)) { /* wider than the tables: no translation */
        rights = 0;
        goto violation;
    }
    for (unsigned level = levels;; level--) {
        shift = PAGE_SHIFT + 9 * (level - 1);
        pa_t pa = table + ((gpa >> shift) & 0x1ff) * 8;
        e = table_load(pm, pa, 8);
        w->steps[step++] = (struct walk_step){.table = TABLE_EPT, .level = (u8)level, .pa = pa, .gpa = gpa, .entry = e};
        w->nsteps = (u8)step;
        accessed &= e;
        if (!(e & (EPT_R | EPT_W | exec))) {
            rights = 0;
            goto violation;
        }
        bool leaf = level == 1 || (level <= 3 && (e & EPT_PAGE));
        u64 type = bits_get(e, 5, 3);
        if (unlikely((e & (EPT_R | EPT_W)) == EPT_W || (!(e & EPT_R) && (e & exec) && !s->exec_only) ||
                     (e & (high | ept_reserved(s, level, e))) || (leaf && (type == 2 || type == 3 || type == 7)))) {
            slat_fault(w, WALK_EPT_MISCONFIG, gpa, purpose);
            return false;
        }
        rights &= e;
        if (leaf)
            break;
        table = e & PTE_FRAME;
    }
    if (unlikely(need & ~rights))
        goto violation;
    out->dirty = true;
    if (s->ad) {
        bool restart;
        bool due = !accessed || (write && !(e & EPT_D));
        if (unlikely(due) && !(access & ACCESS_NO_AD) && !ept_set_ad(pm, s, gpa, write, purpose, first, w, &restart)) {
            if (restart)
                goto again;
            return false;
        }
        out->dirty = (e & EPT_D) || (write && !(access & ACCESS_NO_AD));
    }
    u64 offset = BITS64(shift - 1, 0);
    out->pa = (e & PTE_FRAME & ~offset) | (gpa & offset);
    out->rights = rights;
    out->lg2 = (u8)shift;
    out->memtype = (u8)bits_get(e, 5, 3);
    return true;

violation:
    slat_fault(w, WALK_EPT_VIOLATION, gpa, purpose);
    w->qualification = how | ept_qualification(s, rights, purpose, w);
    w->suppress_ve = e & EPT_SUPPRESS_VE;
    return false;
}

/* APM "Nested Paging": the linear format, all guest accesses are user accesses, table accesses are writes. */
static alwaysinline bool npt_walk(struct physmap *pm, const struct walk_context *ctx, const struct table_format f,
                                  gpa_t gpa, u32 access, enum slat_purpose purpose, struct walk *w,
                                  struct slat_result *out)
{
    const struct slat *s = &ctx->slat;
    const struct table_rules rules = {.maxphyaddr = ctx->maxphyaddr,
                                      .nx = s->nx && f.entry == 8,
                                      .pse = s->pse,
                                      .pse36 = ctx->pse36,
                                      .pdpe1gb = ctx->pdpe1gb,
                                      .amd = true};
    const unsigned first = w->nsteps;
    const unsigned width = f.levels == 5 ? 57 : f.levels == 4 ? 48 : 32;
    bool write = (access & ACCESS_WRITE) || purpose == SLAT_TABLE;
    u64 root = s->root & (f.pae ? BITS64(51, 5) : f.entry == 4 ? BITS64(31, 12) : PTE_FRAME);
    struct traversal t;
    u32 error = 0;

again:
    w->nsteps = (u8)first;
    if (gpa >> width) { /* beyond what the host's mode can address */
        error = 0;
        goto fault;
    }
    switch (tables_walk(pm, ctx, f, &rules, root, gpa, false, TABLE_NPT, access, w, &t)) {
    case TABLES_OK:
        break;
    case TABLES_RESERVED:
        error = PF_P | PF_RSVD;
        goto fault;
    default:
        error = 0;
        goto fault;
    }
    if (!t.user || (write && !t.writable) || ((access & ACCESS_EXEC) && t.nx)) {
        error = PF_P;
        goto fault;
    }
    if (!(access & ACCESS_NO_AD) && tables_set_ad(pm, ctx, f, false, write, w, &t) == AD_RESTART)
        goto again;
    u64 offset = BITS64(t.lg2 - 1, 0);
    out->pa = t.frame | (gpa & offset);
    out->rights = EPT_R | (t.writable ? EPT_W : 0) | (t.nx ? 0 : EPT_X | EPT_XU);
    out->dirty = t.leaf & PTE_D;
    out->lg2 = t.lg2;
    out->memtype = 6;
    return true;

fault:
    slat_fault(w, WALK_NPF, gpa, purpose);
    w->error_code = error | PF_U | (write ? PF_W : 0);
    if ((access & ACCESS_EXEC) && (rules.nx || s->smep))
        w->error_code |= PF_I;
    if ((access & ACCESS_SHADOW_STACK) && purpose == SLAT_DATA)
        w->error_code |= PF_SS;
    w->error_hi = purpose == SLAT_TABLE ? BIT64(1) : BIT64(0); /* EXITINFO1 bits 33 and 32 */
    return false;
}

/* The instantiations. Not inlined: each is a whole loop over its tables. */
#define EPT_WALK(levels)                                                                                               \
    static noinline bool ept_walk##levels(struct physmap *pm, const struct walk_context *ctx, gpa_t gpa, u32 access,   \
                                          enum slat_purpose purpose, struct walk *w, struct slat_result *out)          \
    {                                                                                                                  \
        return ept_walk(pm, ctx, levels, gpa, access, purpose, w, out);                                                \
    }
EPT_WALK(4)
EPT_WALK(5)

#define NPT_WALK(name)                                                                                                 \
    static noinline bool npt_walk_##name(struct physmap *pm, const struct walk_context *ctx, gpa_t gpa, u32 access,    \
                                         enum slat_purpose purpose, struct walk *w, struct slat_result *out)           \
    {                                                                                                                  \
        return npt_walk(pm, ctx, format_##name, gpa, access, purpose, w, out);                                         \
    }
NPT_WALK(32bit)
NPT_WALK(pae_memory)
NPT_WALK(4level)
NPT_WALK(5level)

bool slat_translate(struct physmap *pm, const struct walk_context *ctx, gpa_t gpa, u32 access,
                    enum slat_purpose purpose, struct walk *w, struct slat_result *out)
{
    const struct slat *s = &ctx->slat;
    if (s->kind == SLAT_EPT)
        return (s->levels == 5 ? ept_walk5 : ept_walk4)(pm, ctx, gpa, access, purpose, w, out);
    switch (s->host_mode) {
    case PAGING_32BIT:
        return npt_walk_32bit(pm, ctx, gpa, access, purpose, w, out);
    case PAGING_PAE:
        return npt_walk_pae_memory(pm, ctx, gpa, access, purpose, w, out);
    case PAGING_5LEVEL:
        return npt_walk_5level(pm, ctx, gpa, access, purpose, w, out);
    default:
        return npt_walk_4level(pm, ctx, gpa, access, purpose, w, out);
    }
}
