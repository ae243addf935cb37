/* The rows of checks.def made into functions and a table. */
#include "svm/svm.h"

/* ---- what the rows' expressions are made of ---- */
#define F(name) (s->f[VMCB_##name])
#define ATTRIB_L BIT64(9)
#define ATTRIB_D BIT64(10)

typedef const struct svm_snapshot snap;

static bool within_width(snap *s, u64 a) { return !(a >> s->maxphyaddr); }
/* The low 12 bits of a map's address are ignored. */
static bool map_fits(snap *s, u64 a, u64 bytes)
{
    return within_width(s, a) && (a & PAGE_MASK) + bytes < BIT64(s->maxphyaddr);
}
static bool lme_pg(snap *s) { return F(EFER) & EFER_LME && F(CR0) & CR0_PG; }
static bool nested(snap *s) { return s->features[FEAT_NPT] && F(NESTED_CTL) & NESTED_CTL_NP; }
static bool pae_guest(snap *s) { return F(CR0) & CR0_PG && F(CR4) & CR4_PAE && !(F(EFER) & EFER_LME); }

static bool injecting(snap *s) { return F(EVENTINJ) & EVENT_VALID; }
static unsigned inj_type(snap *s) { return F(EVENTINJ) >> 8 & 7; }
static unsigned inj_vector(snap *s) { return F(EVENTINJ) & 0xff; }

/* "Vectors" of the chapter "Exceptions and Interrupts"; #HV and #VC exist in encrypted guests only. */
static bool is_exception(snap *s, unsigned vector)
{
    u32 vectors = BIT(VEC_DE) | BIT(VEC_DB) | BIT(VEC_BP) | BIT(VEC_OF) | BIT(VEC_BR) | BIT(VEC_UD) | BIT(VEC_NM) | BIT(VEC_DF) |
                  BIT(VEC_TS) | BIT(VEC_NP) | BIT(VEC_SS) | BIT(VEC_GP) | BIT(VEC_PF) | BIT(VEC_MF) | BIT(VEC_AC) | BIT(VEC_MC) |
                  BIT(VEC_XM) | BIT(VEC_SX) | (s->features[FEAT_CET_SS] ? BIT(VEC_CP) : 0);
    return vector < 32 && vectors >> vector & 1;
}

static bool pat_ok(u64 pat)
{
    for (unsigned i = 0; i < 8; i++, pat >>= 8)
        if ((pat & 0xff) > 7 || (pat & 0xff) == 2 || (pat & 0xff) == 3)
            return false;
    return true;
}

static bool s_cet_ok(snap *s, u64 x)
{
    return s->features[FEAT_CET_IBT] ? !(x & BITS64(9, 6)) && (x & BITS64(11, 10)) != BITS64(11, 10) : !(x >> 2);
}

static bool pdpes_ok(snap *s)
{
    for (unsigned i = 0; i < 4; i++)
        if (s->pdpte[i] & 1 && s->pdpte[i] & (BITS64(2, 1) | BITS64(8, 5) | BITS64(63, 52) | ~0ull << s->maxphyaddr))
            return false;
    return true;
}

/* ---- the rows ---- */
#define CHECK(id, section, text, reads, when, check)                                                          \
    static bool applies_##id(const void *snapshot)                                                            \
    {                                                                                                         \
        snap *s = snapshot;                                                                                   \
        (void)s;                                                                                              \
        return when;                                                                                          \
    }                                                                                                         \
    static bool ok_##id(const void *snapshot)                                                                 \
    {                                                                                                         \
        snap *s = snapshot;                                                                                   \
        return check;                                                                                         \
    }
#include "svm/checks.def"
#undef CHECK

#define SECTION_CONSISTENCY "Basic Operation: Canonicalization and Consistency Checks", "15.5.1"
#define SECTION_INJECTION "Event Injection", "15.20"
#define SECTION_NESTED "Enabling Nested Paging", "15.25.3"
#define SECTION_LEGACY_PAE "Legacy PAE Mode", "15.25.10"
#define SECTION_VNMI "NMI Virtualization", "15.21.10"

/* The names in a row's list of fields become offsets. */
#define OFF1(a) OFFSET_##a
#define OFF2(a, ...) OFFSET_##a, OFF1(__VA_ARGS__)
#define OFF3(a, ...) OFFSET_##a, OFF2(__VA_ARGS__)
#define OFF4(a, ...) OFFSET_##a, OFF3(__VA_ARGS__)
#define OFF5(a, ...) OFFSET_##a, OFF4(__VA_ARGS__)
#define NARGS_(a, b, c, d, e, n, ...) n
#define NARGS(...) NARGS_(__VA_ARGS__, 5, 4, 3, 2, 1, 0)
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define OFFSETS(...) PASTE(OFF, NARGS(__VA_ARGS__))(__VA_ARGS__)
#define ROW(id_, title_, section_, text, reads, n)                                                            \
    {.id = #id_, .stage = STAGE_CONTROLS, .title = title_, .section = section_, .rule = text,                 \
     .fields = {OFFSETS reads}, .nfields = n, .applies = applies_##id_, .ok = ok_##id_},
#define ROW_EXPAND(...) ROW(__VA_ARGS__)
#define CHECK(id, section, text, reads, when, check) ROW_EXPAND(id, SECTION_##section, text, reads, NARGS reads)
static const struct virt_check rows[] = {
#include "svm/checks.def"
};
#undef CHECK

const struct virt_check *svm_check_table(unsigned *n)
{
    *n = ARRAY_SIZE(rows);
    return rows;
}

const struct virt_check *svm_check_first_failure(const struct svm_snapshot *s)
{
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        if (virt_check_run(&rows[i], s) == CHECK_FAIL)
            return &rows[i];
    return NULL;
}
