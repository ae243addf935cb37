/*
 * The rows of checks.def made into functions and a table. Compiled twice: as it is for the processor,
 * and by checks_tracked.c with CHECKS_TRACKED, where every field and fact a predicate looks at is noted.
 */
#include "vmx/vmx.h"

#define BLOCKING_STI 1u
#define BLOCKING_MOVSS 2u
#define BLOCKING_SMI 4u
#define BLOCKING_NMI 8u
#define BLOCKING_ENCLAVE 16u

/* ---- what the rows' expressions are made of ---- */
#ifdef CHECKS_TRACKED
static u64 tracked_field(const struct vmx_snapshot *s, unsigned slot)
{
    s->reads->fields[slot / 64] |= BIT64(slot % 64);
    return s->f[slot];
}
static void tracked_fact(const struct vmx_snapshot *s, enum vmx_fact fact) { s->reads->facts |= BIT(fact); }
#define FIELD(slot) tracked_field(s, slot)
#define FACT(name) (tracked_fact(s, VMX_FACT_##name), s->name)
#else
#define FIELD(slot) (s->f[slot])
#define FACT(name) (s->name)
#endif
#define F(name) FIELD(VMCS_##name)
#define CTL(field, bit) ((bool)(F(field) >> (bit) & 1))
#define PIN(name) CTL(PIN_BASED_VM_EXEC_CONTROL, PIN_##name)
#define PRI(name) CTL(CPU_BASED_VM_EXEC_CONTROL, PRI_##name)
/* Without "activate secondary controls" the processor works as if they were all 0. */
#define SEC(name) (PRI(SECONDARY_CONTROLS) && CTL(SECONDARY_VM_EXEC_CONTROL, SEC_##name))
#define TER(name) (PRI(TERTIARY_CONTROLS) && CTL(TERTIARY_VM_EXEC_CONTROL, TER_##name))
#define EXIT(name) CTL(VM_EXIT_CONTROLS, EXIT_##name)
#define ENTRY(name) CTL(VM_ENTRY_CONTROLS, ENTRY_##name)

typedef const struct vmx_snapshot snap;

static bool allowed(snap *s, enum vmx_word w, u64 value)
{
    return (value & s->caps->allowed0[w]) == s->caps->allowed0[w] && !(value & ~s->caps->allowed1[w]);
}

static unsigned address_width(snap *s) { return s->caps->basic & VMX_BASIC_32BIT ? 32 : s->maxphyaddr; }
static u64 beyond_width(snap *s) { return s->maxphyaddr < 64 ? ~0ull << s->maxphyaddr : 0; }
/* Of a CR3 field; with linear-address masking two bits beyond the width mean something. */
static u64 cr3_reserved(snap *s)
{
    return beyond_width(s) & ~(s->caps->cr4_fixed1 & CR4_LAM_SUP ? CR3_LAM_U57 | CR3_LAM_U48 : 0);
}

static bool aligned_address(snap *s, u64 a, u64 align)
{
    return !(a & (align - 1)) && !(a >> address_width(s));
}
static bool page_address(snap *s, u64 a) { return aligned_address(s, a, PAGE_SIZE); }

static bool msr_list(snap *s, u64 a, u64 count)
{
    u64 last = a + count * 16 - 1;
    return aligned_address(s, a, 16) && last >= a && !(last >> address_width(s));
}

static bool eptp_memtype_ok(const struct vmx_caps *c, u64 eptp)
{
    switch (eptp & 7) {
    case 0: return c->ept_vpid & VMX_EPT_UC;
    case 6: return c->ept_vpid & VMX_EPT_WB;
    default: return false;
    }
}

static bool eptp_walk_ok(const struct vmx_caps *c, u64 eptp)
{
    switch (eptp >> 3 & 7) {
    case 3: return c->ept_vpid & VMX_EPT_WALK_4;
    case 4: return c->ept_vpid & VMX_EPT_WALK_5;
    default: return false;
    }
}

#ifndef CHECKS_TRACKED
bool vmx_eptp_ok(const struct vmx_caps *c, unsigned maxphyaddr, u64 eptp)
{
    return eptp_memtype_ok(c, eptp) && eptp_walk_ok(c, eptp) && (!(eptp & BIT64(6)) || c->ept_vpid & VMX_EPT_AD)
        && (!(eptp & BIT64(7)) || c->ept_vpid & VMX_EPT_SSS) && !(eptp & (0xf00 | ~0ull << maxphyaddr));
}
#endif

static bool eptp_switching(snap *s) { return SEC(VM_FUNCTIONS) && F(VM_FUNCTION_CONTROL) & BIT64(VMFUNC_EPTP_SWITCHING); }

/* Event injection */
static bool injecting(snap *s) { return F(VM_ENTRY_INTR_INFO_FIELD) >> 31 & 1; }
static unsigned inj_type(snap *s) { return F(VM_ENTRY_INTR_INFO_FIELD) >> 8 & 7; }
static unsigned inj_vector(snap *s) { return F(VM_ENTRY_INTR_INFO_FIELD) & 0xff; }
static bool inj_error(snap *s) { return F(VM_ENTRY_INTR_INFO_FIELD) >> 11 & 1; }
static bool inj_real_mode(snap *s) { return SEC(UNRESTRICTED_GUEST) && !(F(GUEST_CR0) & CR0_PE); }
static bool inj_vector_has_error(snap *s)
{
    u32 vectors = BIT(VEC_DF) | BIT(VEC_TS) | BIT(VEC_NP) | BIT(VEC_SS) | BIT(VEC_GP) | BIT(VEC_PF) | BIT(VEC_AC);
    /* #CP exists on processors with CET only. */
    if (s->caps->cr4_fixed1 & CR4_CET)
        vectors |= BIT(VEC_CP);
    return inj_vector(s) < 32 && vectors >> inj_vector(s) & 1;
}

/* Registers */
static bool fixed_ok(u64 value, u64 fixed0, u64 fixed1) { return (value & fixed0) == fixed0 && !(value & ~fixed1); }
static bool canonical(snap *s, u64 a) { return is_canonical(a, s->linear_width); }
static bool upper_identical(snap *s, u64 a)
{
    u64 upper = a >> s->linear_width;
    return upper == 0 || upper == ~0ull >> s->linear_width;
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
    return canonical(s, x) && !(x & BITS64(9, 6)) && (x & BITS64(11, 10)) != BITS64(11, 10);
}

static u64 debugctl_reserved(snap *s)
{
    return BITS64(5, 3) | BIT64(13) | BITS64(63, 16) | (s->bus_lock ? 0 : BIT64(2)) | (s->rtm ? 0 : BIT64(15));
}

/* Segments. The VMCS and enum seg_reg have the same order. */
_Static_assert(VMCS_GUEST_TR_AR_BYTES - VMCS_GUEST_ES_AR_BYTES == SEG_TR && VMCS_GUEST_CS_BASE - VMCS_GUEST_ES_BASE == SEG_CS,
               "guest segment fields are indexed by enum seg_reg");
#define SEG_DATA (BIT(SEG_DS) | BIT(SEG_ES) | BIT(SEG_FS) | BIT(SEG_GS))
#define SEG_CODE_AND_DATA (BIT(SEG_CS) | BIT(SEG_SS) | SEG_DATA)

static u32 ar(snap *s, unsigned n) { return (u32)FIELD(VMCS_GUEST_ES_AR_BYTES + n); }
static u32 seg_limit(snap *s, unsigned n) { return (u32)FIELD(VMCS_GUEST_ES_LIMIT + n); }
static u64 seg_base(snap *s, unsigned n) { return FIELD(VMCS_GUEST_ES_BASE + n); }
static u64 seg_sel(snap *s, unsigned n) { return FIELD(VMCS_GUEST_ES_SELECTOR + n); }
static unsigned type(snap *s, unsigned n) { return ar(s, n) & AR_TYPE; }
static unsigned dpl(snap *s, unsigned n) { return AR_DPL(ar(s, n)); }
static bool usable(snap *s, unsigned n) { return !(ar(s, n) & AR_UNUSABLE); }
static bool v86(snap *s) { return F(GUEST_RFLAGS) & FL_VM; }
static bool long64(snap *s) { return ENTRY(IA32E_GUEST) && ar(s, SEG_CS) & AR_L; }

static bool each(snap *s, bool (*ok)(snap *, unsigned), u32 segments)
{
    for (unsigned n = 0; n < SEG_COUNT; n++)
        if (segments >> n & 1 && !ok(s, n))
            return false;
    return true;
}
static bool each_usable(snap *s, bool (*ok)(snap *, unsigned), u32 segments)
{
    for (unsigned n = 0; n < SEG_COUNT; n++)
        if (segments >> n & 1 && usable(s, n) && !ok(s, n))
            return false;
    return true;
}

static bool v86_base_ok(snap *s, unsigned n) { return seg_base(s, n) == seg_sel(s, n) << 4; }
static bool v86_limit_ok(snap *s, unsigned n) { return seg_limit(s, n) == 0xffff; }
static bool v86_ar_ok(snap *s, unsigned n) { return ar(s, n) == 0xf3; }
static bool base_hi_ok(snap *s, unsigned n) { return !(seg_base(s, n) >> 32); }
static bool data_type_ok(snap *s, unsigned n) { return type(s, n) & 1 && (!(type(s, n) & 8) || type(s, n) & 2); }
static bool s_bit_ok(snap *s, unsigned n) { return ar(s, n) & AR_S; }
static bool p_bit_ok(snap *s, unsigned n) { return ar(s, n) & AR_P; }
static bool data_dpl_ok(snap *s, unsigned n) { return type(s, n) > 11 || dpl(s, n) >= (seg_sel(s, n) & 3); }
static bool ar_reserved_ok(snap *s, unsigned n) { return !(ar(s, n) & (u32)(BITS64(11, 8) | BITS64(31, 17))); }
static bool granularity_ok(snap *s, unsigned n)
{
    u32 limit = seg_limit(s, n);
    bool g = ar(s, n) & AR_G;
    return !((limit & 0xfff) != 0xfff && g) && !(limit >> 20 && !g);
}
static bool cs_dpl_ok(snap *s)
{
    switch (type(s, SEG_CS)) {
    case 3: return dpl(s, SEG_CS) == 0;
    case 9: case 11: return dpl(s, SEG_CS) == dpl(s, SEG_SS);
    case 13: case 15: return dpl(s, SEG_CS) <= dpl(s, SEG_SS);
    default: return true; /* SEG_CS_TYPE has refused it */
    }
}

/* Non-register state */
static bool activity_supported(snap *s)
{
    u64 a = F(GUEST_ACTIVITY_STATE);
    return a == ACTIVITY_ACTIVE || (a <= ACTIVITY_WAIT_SIPI && s->caps->misc >> (5 + a) & 1);
}
static bool linked(snap *s) { return F(VMCS_LINK_POINTER) != ~0ull; }

static bool pae_paging(snap *s) { return F(GUEST_CR0) & CR0_PG && F(GUEST_CR4) & CR4_PAE && !ENTRY(IA32E_GUEST); }
static bool pdptes_ok(snap *s)
{
    for (unsigned i = 0; i < 4; i++) {
        u64 e = SEC(EPT) ? FIELD(VMCS_GUEST_PDPTE0 + i) : FACT(pdpte)[i];
        if (e & 1 && e & (BITS64(2, 1) | BITS64(8, 5) | beyond_width(s)))
            return false;
    }
    return true;
}

/* ---- the rows ---- */


#define CHECK(id, section, qual, text, reads, when, check)                                                    \
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
#include "vmx/checks.def"
#undef CHECK

#ifdef CHECKS_TRACKED
enum virt_outcome vmx_check_tracked(unsigned row, const struct vmx_snapshot *snapshot, struct vmx_reads *reads)
{
    static const struct {
        bool (*applies)(const void *snapshot);
        bool (*ok)(const void *snapshot);
    } tracked[] = {
#define CHECK(id, section, qual, text, reads, when, check) { applies_##id, ok_##id },
#include "vmx/checks.def"
#undef CHECK
    };
    struct vmx_snapshot s = *snapshot;
    s.reads = reads;
    memset(reads, 0, sizeof(*reads));
    if (!tracked[row].applies(&s))
        return CHECK_NOT_APPLICABLE;
    return tracked[row].ok(&s) ? CHECK_PASS : CHECK_FAIL;
}
#else

#define SECTION_EXEC STAGE_CONTROLS, "VM-Execution Control Fields", "27.2.1.1"
#define SECTION_EXITC STAGE_CONTROLS, "VM-Exit Control Fields", "27.2.1.2"
#define SECTION_ENTRYC STAGE_CONTROLS, "VM-Entry Control Fields", "27.2.1.3"
#define SECTION_HOSTREG STAGE_HOST, "Checks on Host Control Registers, MSRs, and SSP", "27.2.2"
#define SECTION_HOSTSEG STAGE_HOST, "Checks on Host Segment and Descriptor-Table Registers", "27.2.3"
#define SECTION_HOSTASIZE STAGE_HOST, "Checks Related to Address-Space Size", "27.2.4"
#define SECTION_GREG STAGE_GUEST, "Checks on Guest Control Registers, Debug Registers, and MSRs", "27.3.1.1"
#define SECTION_GSEG STAGE_GUEST, "Checks on Guest Segment Registers", "27.3.1.2"
#define SECTION_GDESC STAGE_GUEST, "Checks on Guest Descriptor-Table Registers", "27.3.1.3"
#define SECTION_GRIP STAGE_GUEST, "Checks on Guest RIP, RFLAGS, and SSP", "27.3.1.4"
#define SECTION_GNREG STAGE_GUEST, "Checks on Guest Non-Register State", "27.3.1.5"
#define SECTION_GPDPTE STAGE_GUEST, "Checks on Guest Page-Directory-Pointer-Table Entries", "27.3.1.6"
#define SECTION_MSRLOAD STAGE_MSR_LOAD, "Loading MSRs", "27.4"

/* The names in a row's list of fields become encodings. */
#define ENC1(a) ENC_##a
#define ENC2(a, ...) ENC_##a, ENC1(__VA_ARGS__)
#define ENC3(a, ...) ENC_##a, ENC2(__VA_ARGS__)
#define ENC4(a, ...) ENC_##a, ENC3(__VA_ARGS__)
#define ENC5(a, ...) ENC_##a, ENC4(__VA_ARGS__)
#define ENC6(a, ...) ENC_##a, ENC5(__VA_ARGS__)
#define ENC7(a, ...) ENC_##a, ENC6(__VA_ARGS__)
#define ENC8(a, ...) ENC_##a, ENC7(__VA_ARGS__)
#define ENC9(a, ...) ENC_##a, ENC8(__VA_ARGS__)
#define ENC10(a, ...) ENC_##a, ENC9(__VA_ARGS__)
#define ENC11(a, ...) ENC_##a, ENC10(__VA_ARGS__)
#define ENC12(a, ...) ENC_##a, ENC11(__VA_ARGS__)
#define ENC13(a, ...) ENC_##a, ENC12(__VA_ARGS__)
#define ENC14(a, ...) ENC_##a, ENC13(__VA_ARGS__)
#define ENC15(a, ...) ENC_##a, ENC14(__VA_ARGS__)
#define NARGS_(a, b, c, d, e, f, g, h, i, j, k, l, m, o, p, n, ...) n
#define NARGS(...) NARGS_(__VA_ARGS__, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define ENCODINGS(...) PASTE(ENC, NARGS(__VA_ARGS__))(__VA_ARGS__)
#define ROW(id_, qual, stage_, title_, section_, text, reads, n, when_, check_)                                \
    { .id = #id_, .stage = stage_, .qualification = qual, .title = title_, .section = section_, .rule = text,   \
      .fields = { ENCODINGS reads }, .nfields = n, .applies = applies_##id_, .ok = ok_##id_,                    \
      .when_text = when_, .ok_text = check_ },
#define ROW_EXPAND(...) ROW(__VA_ARGS__)
#define CHECK(id, section, qual, text, reads, when, check)                                                    \
    ROW_EXPAND(id, qual, SECTION_##section, text, reads, NARGS reads, #when, #check)
static const struct virt_check rows[] = {
#include "vmx/checks.def"
};
#undef CHECK
_Static_assert(ARRAY_SIZE(rows) <= 64 * VMX_AGAIN_WORDS, "a bit for each row");

const struct virt_check *vmx_check_table(unsigned *n)
{
    *n = ARRAY_SIZE(rows);
    return rows;
}

const struct virt_check *vmx_check_first_failure(const struct vmx_snapshot *s, enum virt_stage first, enum virt_stage last)
{
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        if (rows[i].stage >= first && rows[i].stage <= last && virt_check_run(&rows[i], s) == CHECK_FAIL)
            return &rows[i];
    return NULL;
}
#endif
