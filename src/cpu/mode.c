/*
 * Operating modes: what follows from the control registers, and writing those with every check.
 * Manual: Intel SDM 325462 (2023), vol. 3 "Control Registers", "Initializing IA-32e Mode",
 * "Operations that Invalidate TLBs and Paging-Structure Caches"; AMD APM 24593.
 */
#include "base/log.h"
#include "cpu/cet.h"
#include "cpu/models.h"
#include "cpu/pmu.h"
#include "cpu/system.h"

bool cpu_is_amd(const struct vcpu *v) { return v->model && v->model->vendor == VENDOR_AMD; }

/* ---- derived state ---- */

static enum cpu_mode mode_now(const struct vcpu *v)
{
    u32 cs = v->seg[SEG_CS].ar;
    if (!(v->cr0 & CR0_PE))
        return MODE_REAL;
    if (v->rflags & FL_VM)
        return MODE_V86;
    if (v->efer & EFER_LMA)
        return cs & AR_L ? MODE_LONG64 : cs & AR_DB ? MODE_COMPAT32 : MODE_COMPAT16;
    return cs & AR_DB ? MODE_PROT32 : MODE_PROT16;
}

static enum code_mode code_mode_now(const struct vcpu *v)
{
    switch (v->mode) {
    case MODE_LONG64:
        return CODE_64;
    case MODE_PROT32:
    case MODE_COMPAT32:
        return CODE_32;
    case MODE_REAL: /* CS.D survives the way back from protected mode until CS is loaded there */
        return v->seg[SEG_CS].ar & AR_DB ? CODE_32 : CODE_16;
    default:
        return CODE_16;
    }
}

/* Whether accesses through @s need neither limit nor type checks. */
static bool segment_is_flat(const struct vcpu *v, unsigned seg)
{
    const struct segment *s = &v->seg[seg];
    if (s->limit != 0xffffffff)
        return false;
    if (v->mode == MODE_REAL)
        return true;
    /* A writable expand-up data segment; code segments refuse writes, so they are never flat. */
    return (s->ar & (AR_UNUSABLE | AR_P | AR_S | TYPE_CODE | TYPE_EXPAND_DOWN | TYPE_RW)) == (AR_P | AR_S | TYPE_RW);
}

/* How many bytes from offset 0 on may be accessed with no other check; 0: the type decides, or the segment grows down. */
static u64 segment_room(const struct vcpu *v, unsigned seg, bool write)
{
    const struct segment *s = &v->seg[seg];
    bool code = s->ar & TYPE_CODE, rw = s->ar & TYPE_RW;
    if (v->mode == MODE_REAL || v->mode == MODE_V86)
        return !code && s->ar & TYPE_EXPAND_DOWN ? 0 : s->limit + 1ull;
    if ((s->ar & (AR_UNUSABLE | AR_P | AR_S)) != (AR_P | AR_S) || (code ? write || !rw : (s->ar & TYPE_EXPAND_DOWN) || (write && !rw)))
        return 0;
    return s->limit + 1ull;
}

static void set_mode(struct vcpu *v)
{
    enum cpu_mode mode = mode_now(v);
    u8 old_mode = v->mode, old_code = v->code_mode;
    v->mode = (u8)mode;
    v->code_mode = (u8)code_mode_now(v);
    v->linear_mask = mode == MODE_LONG64 ? ~0ull : 0xffffffffull;
    if (v->mode != old_mode || v->code_mode != old_code)
        cpu_attention(v, ATT_BLOCK);
    if (unlikely(v->cet || (v->cr4 & CR4_CET)))
        cet_changed(v);
}

void cpu_segments_changed(struct vcpu *v)
{
    set_mode(v);
    v->seg_base[SEG_FS] = v->seg[SEG_FS].base;
    v->seg_base[SEG_GS] = v->seg[SEG_GS].base;
    v->seg_base[SEG_LDTR] = v->seg[SEG_LDTR].base;
    v->seg_base[SEG_TR] = v->seg[SEG_TR].base;
    if (v->mode == MODE_LONG64) {
        v->seg_base[SEG_ES] = v->seg_base[SEG_CS] = v->seg_base[SEG_SS] = v->seg_base[SEG_DS] = 0;
        v->seg_check = 0;
        v->stack_size = 8;
    } else {
        u32 check = 0;
        for (unsigned s = SEG_ES; s <= SEG_GS; s++) {
            v->seg_base[s] = v->seg[s].base;
            if (!segment_is_flat(v, s))
                check |= BIT(s);
            v->seg_room[s] = segment_room(v, s, false);
            v->seg_room[SEG_LDTR + s] = segment_room(v, s, true);
        }
        v->seg_check = check;
        v->stack_size = v->seg[SEG_SS].ar & AR_DB ? 4 : 2;
    }
    unsigned cpl = v->mode == MODE_REAL ? 0 : v->mode == MODE_V86 ? 3 : AR_DPL(v->seg[SEG_SS].ar);
    if (cpl != v->cpl)
        cpu_set_cpl(v, cpl);
}

void cs_ss_changed(struct vcpu *v, unsigned cpl)
{
    if (v->mode == MODE_LONG64 && mode_now(v) == MODE_LONG64) {
        if (v->cpl != cpl)
            cpu_set_cpl(v, cpl);
        return;
    }
    cpu_segments_changed(v);
}

void cpu_set_cpl(struct vcpu *v, unsigned cpl)
{
    if (unlikely(v->pmu_split))
        pmu_domain_ends(v);
    v->cpl = (u8)cpl;
    mmu_update_privilege(v);
    if (unlikely(v->pmu_split))
        pmu_domain_begins(v);
    if (unlikely(v->cr4 & CR4_CET))
        cet_changed(v);
}

void cpu_simd_changed(struct vcpu *v)
{
    bool em = v->cr0 & CR0_EM, ts = v->cr0 & CR0_TS;
    u64 avx = XCR0_SSE | XCR0_AVX, avx512 = XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM;
    u8 ok = 0;
    if (!em && !ts) {
        ok = BIT(0) | BIT(1);
        if (v->cr4 & CR4_OSFXSR)
            ok |= BIT(2);
    }
    /* VEX-encoded instructions do not look at CR0.EM or CR4.OSFXSR. */
    if (!ts && (v->cr4 & CR4_OSXSAVE) && (v->xcr0 & avx) == avx) {
        ok |= BIT(3);
        if ((v->xcr0 & avx512) == avx512)
            ok |= BIT(4);
    }
    v->simd_ok = ok;
}

void cpu_mode_changed(struct vcpu *v)
{
    cpu_segments_changed(v);
    cpu_simd_changed(v);
    mmu_update(v);
    cpu_rearm(v);
}

void cpu_flags_changed(struct vcpu *v)
{
    /* RFLAGS.AC means something to the MMU only with SMAP or alignment checking. */
    if ((v->cr4 & CR4_SMAP) || (v->cr0 & CR0_AM))
        mmu_update_privilege(v);
    cpu_rearm(v);
}

/* ---- reserved bits ---- */

u64 cpu_cr0_reserved(const struct vcpu *v)
{
    (void)v;
    return ~0xffffffffull; /* the reserved bits of the low half ignore writes */
}
#define CR0_WRITABLE (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)

static const struct { u16 feature; u64 bits; } cr4_bits[] = {
    {FEAT_VME, CR4_VME | CR4_PVI},
    {FEAT_TSC, CR4_TSD},
    {FEAT_DE, CR4_DE},
    {FEAT_PSE, CR4_PSE},
    {FEAT_PAE, CR4_PAE},
    {FEAT_MCE, CR4_MCE},
    {FEAT_PGE, CR4_PGE},
    {FEAT_FXSR, CR4_OSFXSR},
    {FEAT_SSE, CR4_OSXMMEXCPT},
    {FEAT_UMIP, CR4_UMIP},
    {FEAT_LA57, CR4_LA57},
    {FEAT_VMX, CR4_VMXE},
    {FEAT_FSGSBASE, CR4_FSGSBASE},
    {FEAT_PCID, CR4_PCIDE},
    {FEAT_XSAVE, CR4_OSXSAVE},
    {FEAT_SMEP, CR4_SMEP},
    {FEAT_SMAP, CR4_SMAP},
    {FEAT_PKU, CR4_PKE},
    {FEAT_CET_SS, CR4_CET},
    {FEAT_CET_IBT, CR4_CET},
    {FEAT_PKS, CR4_PKS},
    {FEAT_LAM, CR4_LAM_SUP},
};

u64 cpu_cr4_reserved(const struct vcpu *v)
{
    u64 allowed = CR4_PCE;
    for (unsigned n = 0; n < ARRAY_SIZE(cr4_bits); n++)
        if (v->features[cr4_bits[n].feature])
            allowed |= cr4_bits[n].bits;
    return ~allowed;
}

static const struct { u16 feature; u64 bits; } efer_bits[] = {
    {FEAT_SYSCALL, EFER_SCE},
    {FEAT_LM, EFER_LME | EFER_LMA},
    {FEAT_NX, EFER_NXE},
    {FEAT_SVM, EFER_SVME},
    {FEAT_FXSR_OPT, EFER_FFXSR},
};

u64 cpu_efer_reserved(const struct vcpu *v)
{
    u64 allowed = 0;
    for (unsigned n = 0; n < ARRAY_SIZE(efer_bits); n++)
        if (v->features[efer_bits[n].feature])
            allowed |= efer_bits[n].bits;
    return ~allowed;
}

/* ---- control-register writes ---- */

/*
 * SDM vol. 3 "PDPTE Registers": loaded as a whole, or #GP(0) and nothing. The walk uses the current
 * second-level translation, which a control-register write does not change.
 */
static void load_pdptes(struct vcpu *v, u64 cr3, u64 pdpte[4])
{
    struct walk w;
    switch (walk_load_pdptes(v->pm, mmu_context(v), cr3, pdpte, &w)) {
    case WALK_OK:
        return;
    case WALK_PAGE_FAULT:
        cpu_gp0(v);
    default:
        cpu_raise_walk(v, cr3 & 0xffffffe0u, ACCESS_READ, &w);
    }
}

static bool pae_paging(u64 cr0, u64 cr4, u64 efer)
{
    return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LMA);
}

/* SDM vol. 3 "Restrictions on VMX Operation": bits fixed by IA32_VMX_CR0_FIXED0 and FIXED1. */
static bool cr0_fixed_wrong(const struct vcpu *v, u64 value)
{
    if (!v->in_vmx_operation)
        return false;
    u64 must = v->guest_mode ? (v->vmx_cr0_fixed0 & ~(CR0_PE | CR0_PG)) | v->guest_cr0_fixed : v->vmx_cr0_fixed0;
    return (value & must) != must || value & ~v->vmx_cr0_fixed1;
}

static bool cr4_fixed_wrong(const struct vcpu *v, u64 value)
{
    return v->in_vmx_operation && ((value & v->vmx_cr4_fixed0) != v->vmx_cr4_fixed0 || value & ~v->vmx_cr4_fixed1);
}

void cpu_write_cr0(struct vcpu *v, u64 value)
{
    if (value & cpu_cr0_reserved(v))
        cpu_gp0(v);
    value = (value & CR0_WRITABLE) | CR0_ET;
    u64 old = v->cr0, changed = old ^ value;

    if (((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)))
        cpu_gp0(v);
    if (!(value & CR0_WP) && (v->cr4 & CR4_CET))
        cpu_gp0(v);
    if (cr0_fixed_wrong(v, value))
        cpu_gp0(v);

    u64 efer = v->efer;
    if (changed & CR0_PG) {
        if (value & CR0_PG) {
            if (efer & EFER_LME) {
                u32 tr = v->seg[SEG_TR].ar;
                if (!(v->cr4 & CR4_PAE) || (v->seg[SEG_CS].ar & AR_L) ||
                    (!(tr & AR_UNUSABLE) && (tr & AR_TYPE) == SYS_TSS16_BUSY && !is_null(v->seg[SEG_TR].sel)))
                    cpu_gp0(v);
                efer |= EFER_LMA;
            }
        } else {
            if (v->mode == MODE_LONG64 || (v->cr4 & CR4_PCIDE))
                cpu_gp0(v);
            efer &= ~EFER_LMA;
        }
    }
    u64 pdpte[4];
    bool load = pae_paging(value, v->cr4, efer) && (changed & (CR0_PG | CR0_CD | CR0_NW));
    if (load)
        load_pdptes(v, v->cr3, pdpte);

    log_at(cr, "CR0 %08llx -> %08llx", (unsigned long long)old, (unsigned long long)value);
    v->cr0 = value;
    if (!(changed & ~(CR0_MP | CR0_EM | CR0_TS | CR0_NE))) {
        cpu_simd_changed(v);
        return;
    }
    v->efer = efer;
    if (load)
        memcpy(v->pdpte, pdpte, sizeof(v->pdpte));
    cpu_mode_changed(v);
    if (changed & (CR0_PG | CR0_PE))
        mmu_flush_global(v);
    if (changed & CR0_AM)
        mmu_update_privilege(v);
}

void cpu_write_cr3(struct vcpu *v, u64 value)
{
    bool keep = false;
    if (v->cr4 & CR4_PCIDE) {
        keep = value >> 63;
        value &= ~BIT64(63);
    }
    if (v->efer & EFER_LMA) {
        u64 reserved = v->maxphyaddr < 64 ? ~0ull << v->maxphyaddr : 0;
        if (cpu_has(v, FEAT_LAM))
            reserved &= ~(CR3_LAM_U57 | CR3_LAM_U48);
        if (value & reserved)
            cpu_gp0(v);
    } else if (pae_paging(v->cr0, v->cr4, v->efer)) {
        u64 pdpte[4];
        load_pdptes(v, value, pdpte);
        memcpy(v->pdpte, pdpte, sizeof(v->pdpte));
    }
    v->cr3 = value;
    if (!keep)
        mmu_flush_cr3(v, v->cr4 & CR4_PCIDE ? (u16)(value & 0xfff) : 0);
    mmu_update(v);
}

void cpu_write_cr4(struct vcpu *v, u64 value)
{
    u64 old = v->cr4, changed = old ^ value;
    if (value & cpu_cr4_reserved(v))
        cpu_gp0(v);
    if (v->efer & EFER_LMA) {
        if (!(value & CR4_PAE) || (changed & CR4_LA57))
            cpu_gp0(v);
    } else if ((value & CR4_PCIDE)) {
        cpu_gp0(v);
    }
    if ((changed & value & CR4_PCIDE) && (v->cr3 & 0xfff))
        cpu_gp0(v);
    if ((value & CR4_CET) && !(v->cr0 & CR0_WP))
        cpu_gp0(v);
    if (cr4_fixed_wrong(v, value))
        cpu_gp0(v);
    u64 pdpte[4];
    bool load = pae_paging(v->cr0, value, v->efer) && (changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP));
    if (load)
        load_pdptes(v, v->cr3, pdpte);

    log_at(cr, "CR4 %08llx -> %08llx", (unsigned long long)old, (unsigned long long)value);
    v->cr4 = value;
    if (load)
        memcpy(v->pdpte, pdpte, sizeof(v->pdpte));
    u64 flush = CR4_PSE | CR4_PAE | CR4_PGE | CR4_LA57 | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_PKS | CR4_CET;
    if (changed & flush) {
        mmu_update(v);
        mmu_flush_global(v);
    }
    if (changed & CR4_DE)
        mmu_watch_changed(v);
    if (changed & CR4_CET)
        cet_changed(v);
    cpu_simd_changed(v);
    cpu_rearm(v);
}

void cpu_write_efer(struct vcpu *v, u64 value)
{
    u64 old = v->efer;
    if (value & cpu_efer_reserved(v))
        cpu_gp0(v);
    if (((old ^ value) & EFER_LME) && (v->cr0 & CR0_PG))
        cpu_gp0(v);
    value = (value & ~EFER_LMA) | (old & EFER_LMA); /* LMA is read-only: writes are ignored */
    log_at(cr, "EFER %llx -> %llx", (unsigned long long)old, (unsigned long long)value);
    v->efer = value;
    if ((old ^ value) & EFER_NXE) {
        mmu_update(v);
        mmu_flush_global(v);
    }
}
