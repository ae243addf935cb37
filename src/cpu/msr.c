/*
 * Model-specific registers. Manuals: Intel SDM volume 4, "Model-Specific Registers (MSRs)"; AMD APM
 * volume 2, appendix "MSR Cross-Reference". What is not in the table raises #GP(0).
 */
#include "cpu/msr.h"
#include "base/clock.h"
#include "base/log.h"
#include "cpu/cet.h"
#include "cpu/cpu.h"
#include "cpu/hyperv.h"
#include "cpu/models.h"
#include "cpu/pmu.h"
#include "cpu/xstate.h"
#include "devices/irq.h"

#define MSR_TSC          0x10
#define MSR_APIC_BASE    0x1b
#define MSR_TSC_DEADLINE 0x6e0

/* ---- time ---- */

/* ns * tsc_hz / 1e9, rounded down, without a division of 128 bits. */
static u64 raw_tsc(const struct vcpu *v, u64 ns)
{
    if (unlikely(v->tsc_hz > UINT64_MAX / NSEC_PER_SEC))
        return (u64)((u128)ns * v->tsc_hz / NSEC_PER_SEC);
    return ns / NSEC_PER_SEC * v->tsc_hz + ns % NSEC_PER_SEC * v->tsc_hz / NSEC_PER_SEC;
}

u64 cpu_tsc(struct vcpu *v) { return raw_tsc(v, clock_now(v->clock)) + v->tsc_base; }

u64 cpu_tsc_to_ns(struct vcpu *v, u64 tsc)
{
    u64 now = clock_now(v->clock), raw = raw_tsc(v, now), seen = raw + v->tsc_base;
    if (tsc <= seen)
        return now;
    /* Rounded up, so that the counter has reached @tsc at that time. */
    u128 ns = ((u128)raw + (tsc - seen)) * NSEC_PER_SEC;
    ns = (ns + v->tsc_hz - 1) / v->tsc_hz;
    return ns > UINT64_MAX ? UINT64_MAX : (u64)ns;
}

/* The counter jumped: the deadline in it now means another time. */
static void tsc_moved(struct vcpu *v)
{
    u64 deadline;
    if (v->hyperv)
        hyperv_tsc_moved(v);
    if (v->intc_ops && cpu_has(v, FEAT_TSC_DEADLINE) && !v->intc_ops->rdmsr(v->intc, MSR_TSC_DEADLINE, &deadline) &&
        deadline)
        v->intc_ops->wrmsr(v->intc, MSR_TSC_DEADLINE, deadline);
}

static bool tsc_read(struct vcpu *v, u32 msr, u64 *value)
{
    *value = cpu_tsc(v);
    return true;
}

/* "Writing IA32_TIME_STAMP_COUNTER adds what it adds to the counter to IA32_TSC_ADJUST, and vice versa." */
static void tsc_move(struct vcpu *v, u64 by)
{
    v->tsc_base += by;
    v->tsc_adjust += by;
    tsc_moved(v);
}

static bool tsc_write(struct vcpu *v, u32 msr, u64 value)
{
    tsc_move(v, value - cpu_tsc(v));
    return true;
}

static bool tsc_adjust_write(struct vcpu *v, u32 msr, u64 value)
{
    tsc_move(v, value - v->tsc_adjust);
    return true;
}

/* ---- the interrupt controller's registers ---- */

static bool intc_read(struct vcpu *v, u32 msr, u64 *value)
{
    return v->intc_ops && v->intc_ops->rdmsr(v->intc, msr, value) == 0;
}

static bool intc_write(struct vcpu *v, u32 msr, u64 value)
{
    if (!v->intc_ops || v->intc_ops->wrmsr(v->intc, msr, value))
        return false;
    if (msr == MSR_APIC_BASE) {
        u64 page = v->intc_ops->page(v->intc);
        if (page != v->apic_page) {
            v->apic_page = page;
            mmu_flush_all(v);
        }
    } else if (msr != MSR_TSC_DEADLINE) {
        cpu_attention(v, ATT_IRQ_WINDOW); /* TPR and EOI */
    }
    return true;
}

/* ---- control ---- */

static bool feature_control_write(struct vcpu *v, u32 msr, u64 value)
{
    u64 allowed = FEATURE_CONTROL_LOCK | (cpu_has(v, FEAT_VMX) ? FEATURE_CONTROL_VMX_OUTSIDE : 0);
    if ((v->feature_control & FEATURE_CONTROL_LOCK) || (value & ~allowed))
        return false;
    v->feature_control = value;
    return true;
}

static bool misc_enable_write(struct vcpu *v, u32 msr, u64 value)
{
    u64 writable = MISC_ENABLE_FAST_STRING | MISC_ENABLE_TCC | MISC_ENABLE_EIST | MISC_ENABLE_LIMIT_CPUID |
                   MISC_ENABLE_XTPR_DISABLE | (cpu_has(v, FEAT_MONITOR) ? MISC_ENABLE_MONITOR : 0) |
                   (cpu_has(v, FEAT_NX) ? MISC_ENABLE_XD_DISABLE : 0);
    u64 read_only = MISC_ENABLE_PERFMON | MISC_ENABLE_BTS_UNAVAILABLE | MISC_ENABLE_PEBS_UNAVAILABLE;
    if (value & ~(writable | read_only))
        return false;
    v->misc_enable = (v->misc_enable & read_only) | (value & writable);
    return true;
}

u64 cpu_spec_ctrl_allowed(const struct vcpu *v)
{
    u64 allowed = BIT64(0); /* IBRS */
    if (cpu_has(v, FEAT_STIBP) || cpu_has(v, FEAT_AMD_STIBP))
        allowed |= BIT64(1);
    if (cpu_has(v, FEAT_SSBD) || cpu_has(v, FEAT_AMD_SSBD))
        allowed |= BIT64(2);
    return allowed;
}

static bool spec_ctrl_write(struct vcpu *v, u32 msr, u64 value)
{
    if (value & ~cpu_spec_ctrl_allowed(v))
        return false;
    v->spec_ctrl = value;
    return true;
}

/* Commands: nothing is remembered, nothing speculates here. */
static bool write_only(struct vcpu *v, u32 msr, u64 *value) { return false; }
static bool pred_cmd_write(struct vcpu *v, u32 msr, u64 value) { return !(value & ~BIT64(0)); /* IBPB */ }
static bool microcode_write(struct vcpu *v, u32 msr, u64 value) { return true; /* an update that is not taken */ }

static bool arch_capabilities_read(struct vcpu *v, u32 msr, u64 *value)
{
    /* A processor without speculation has none of its leaks. IBRS_ALL keeps kernels from retpolines. */
    *value = BIT64(0)    /* RDCL_NO */
             | BIT64(1)  /* IBRS_ALL */
             | BIT64(3)  /* SKIP_L1DFL_VMENTRY */
             | BIT64(4)  /* SSB_NO */
             | BIT64(5)  /* MDS_NO */
             | BIT64(6)  /* IF_PSCHANGE_MC_NO */
             | BIT64(8)  /* TAA_NO */
             | BIT64(13) /* SBDR_SSDP_NO */
             | BIT64(14) /* FBSDP_NO */
             | BIT64(15) /* PSDP_NO */
             | BIT64(20) /* BHI_NO */
             | BIT64(24) /* PBRSB_NO */
             | BIT64(26) /* GDS_NO */
             | BIT64(27) /* RFDS_NO */
             | BIT64(62) /* ITS_NO */;
    return true;
}

static bool bios_sign_id_write(struct vcpu *v, u32 msr, u64 value)
{
    v->bios_sign_id = value; /* until the next CPUID leaf 1 */
    return true;
}

static bool efer_write(struct vcpu *v, u32 msr, u64 value)
{
    value = (value & ~EFER_LMA) | (v->efer & EFER_LMA); /* LMA is the processor's */
    if (value & cpu_efer_reserved(v))
        return false;
    if (((value ^ v->efer) & EFER_LME) && (v->cr0 & CR0_PG))
        return false;
    if ((value & ~v->efer & EFER_NXE) && (v->misc_enable & MISC_ENABLE_XD_DISABLE))
        return false;
    if ((value & EFER_SVME) && (v->misc_msr[SLOT_VM_CR] & VM_CR_SVMDIS))
        return false;
    /* Without SVM nothing could set the global interrupt flag again. */
    if (v->efer & ~value & EFER_SVME)
        v->gif = true;
    bool svme = (value ^ v->efer) & EFER_SVME; /* with it "Host Only" counters begin to mean something */
    if (svme && v->pmu_on)
        pmu_domain_ends(v);
    if (value != v->efer)
        cpu_write_efer(v, value);
    if (svme && v->pmu_on)
        pmu_domain_begins(v);
    return true;
}

static bool segment_base_read(struct vcpu *v, u32 msr, u64 *value)
{
    *value = v->seg[msr == 0xc0000100 ? SEG_FS : SEG_GS].base;
    return true;
}

static bool segment_base_write(struct vcpu *v, u32 msr, u64 value)
{
    unsigned s = msr == 0xc0000100 ? SEG_FS : SEG_GS;
    if (!cpu_canonical_any(v, value))
        return false;
    v->seg[s].base = value;
    if (cpu_long64(v))
        v->seg_base[s] = value;
    else
        cpu_segments_changed(v);
    return true;
}

static bool tsc_aux_write(struct vcpu *v, u32 msr, u64 value)
{
    /* Bits 63:32 are reserved: Intel faults, AMD ignores them. */
    if (v->model->vendor == VENDOR_INTEL && value >> 32)
        return false;
    v->tsc_aux = (u32)value;
    return true;
}

static bool xss_write(struct vcpu *v, u32 msr, u64 value)
{
    if (value & ~xstate_supervisor(v))
        return false;
    v->xss = value;
    return true;
}

static bool pkrs_read(struct vcpu *v, u32 msr, u64 *value)
{
    *value = v->pkrs;
    return true;
}

static bool pkrs_write(struct vcpu *v, u32 msr, u64 value)
{
    if (value >> 32)
        return false;
    if (v->pkrs != (u32)value) {
        v->pkrs = (u32)value;
        mmu_update(v);
    }
    return true;
}

/* ---- control-flow enforcement ---- */

static bool cet_control_write(struct vcpu *v, u32 msr, u64 value)
{
    if (!cet_control_valid(v, value))
        return false;
    *(msr == 0x6a0 ? &v->u_cet : &v->s_cet) = value;
    cet_changed(v);
    return true;
}

static bool pl_ssp_write(struct vcpu *v, u32 msr, u64 value)
{
    if ((value & 3) || !cpu_canonical_any(v, value))
        return false;
    v->pl_ssp[msr - 0x6a4] = value;
    return true;
}

/* ---- memory types ---- */

static bool mtrr_type_valid(u8 type) { return type == 0 || type == 1 || type == 4 || type == 5 || type == 6; }

bool pat_valid(u64 pat)
{
    for (unsigned n = 0; n < 8; n++) {
        u8 type = (u8)(pat >> n * 8);
        if (!mtrr_type_valid(type) && type != 7)
            return false;
    }
    return true;
}

static bool pat_write(struct vcpu *v, u32 msr, u64 value)
{
    if (!pat_valid(value))
        return false;
    v->pat = value;
    return true;
}

static bool mtrr_variable_read(struct vcpu *v, u32 msr, u64 *value)
{
    unsigned n = (msr - 0x200) / 2;
    *value = msr & 1 ? v->mtrr_mask[n] : v->mtrr_base[n];
    return true;
}

static bool mtrr_variable_write(struct vcpu *v, u32 msr, u64 value)
{
    unsigned n = (msr - 0x200) / 2;
    u64 address = BITS64(v->maxphyaddr - 1, 12);
    if (msr & 1) {
        if (value & ~(address | BIT64(11)))
            return false;
        v->mtrr_mask[n] = value;
    } else {
        if ((value & ~(address | 0xff)) || !mtrr_type_valid((u8)value))
            return false;
        v->mtrr_base[n] = value;
    }
    return true;
}

static unsigned mtrr_fixed_index(u32 msr)
{
    return msr == 0x250 ? 0 : msr < 0x268 ? msr - 0x258 + 1 : msr - 0x268 + 3;
}

static bool mtrr_fixed_read(struct vcpu *v, u32 msr, u64 *value)
{
    *value = v->mtrr_fixed[mtrr_fixed_index(msr)];
    return true;
}

static bool mtrr_fixed_write(struct vcpu *v, u32 msr, u64 value)
{
    /* AMD: RdMem and WrMem, bits 4:3 of each type, are visible while SYSCFG.MtrrFixDramModEn is set. */
    u8 extra = v->misc_msr[SLOT_SYSCFG] & BIT64(19) ? 0x18 : 0;
    for (unsigned n = 0; n < 8; n++)
        if (!mtrr_type_valid((u8)(value >> n * 8) & ~extra))
            return false;
    v->mtrr_fixed[mtrr_fixed_index(msr)] = value;
    return true;
}

static bool mtrr_def_type_write(struct vcpu *v, u32 msr, u64 value)
{
    if ((value & ~(BIT64(11) | BIT64(10) | 0xff)) || !mtrr_type_valid((u8)value))
        return false;
    v->mtrr_def_type = value;
    return true;
}

/* ---- machine checks: banks that never report anything ---- */

static bool mc_bank_write(struct vcpu *v, u32 msr, u64 value)
{
    enum { CTL, STATUS };
    unsigned n = msr - 0x400;
    /* CTL takes none or all, STATUS can only be cleared; ADDR and MISC hold what they are given. */
    if ((n % 4 == CTL && value != 0 && value != ~0ull) || (n % 4 == STATUS && value != 0))
        return false;
    v->misc_msr[SLOT_MC_BANK + n] = value;
    return true;
}

static bool debugctl_write(struct vcpu *v, u32 msr, u64 value)
{
    u64 allowed = DEBUGCTL_LBR | DEBUGCTL_BTF | (cpu_has(v, FEAT_PMU) ? DEBUGCTL_FREEZE_LBRS | DEBUGCTL_FREEZE_PERFMON : 0) |
                  (cpu_has(v, FEAT_PDCM) ? DEBUGCTL_FREEZE_SMM : 0);
    if (value & ~allowed)
        return false;
    /* Intel models have no legacy last-branch stack: as with architectural LBRs, bit 0 may be written and reads as zero. */
    if (v->model->vendor == VENDOR_INTEL)
        value &= ~DEBUGCTL_LBR;
    v->debugctl = value;
    cpu_attention(v, ATT_SHADOW); /* recording begins with the next instruction */
    return true;
}

/* ---- Hyper-V ---- */

static bool synthetic_read(struct vcpu *v, u32 msr, u64 *value) { return v->hyperv && hyperv_rdmsr(v, msr, value); }
static bool synthetic_write(struct vcpu *v, u32 msr, u64 value) { return v->hyperv && hyperv_wrmsr(v, msr, value); }

/* ---- VMX ---- */

static bool vmx_read(struct vcpu *v, u32 msr, u64 *value) { return vmx_capability_msr(v, msr, value); }

/* ---- AMD ---- */

static bool hwcr_write(struct vcpu *v, u32 msr, u64 value)
{
    const u64 writable = BIT64(3) | BIT64(4) | BIT64(6) | BIT64(8) | BIT64(17) | BIT64(25) | BIT64(26) | BIT64(27);
    if (value & ~(writable | HWCR_TSC_FREQ_SEL))
        return false;
    v->misc_msr[SLOT_HWCR] = (value & writable) | HWCR_TSC_FREQ_SEL;
    return true;
}

static bool vm_cr_write(struct vcpu *v, u32 msr, u64 value)
{
    u64 old = v->misc_msr[SLOT_VM_CR];
    if (value & ~BITS64(4, 0))
        return false;
    if (old & VM_CR_LOCK) /* LOCK and SVMDIS are read-only then */
        value = (value & ~(VM_CR_LOCK | VM_CR_SVMDIS)) | (old & (VM_CR_LOCK | VM_CR_SVMDIS));
    if ((value & VM_CR_SVMDIS) && (v->efer & EFER_SVME))
        return false;
    v->misc_msr[SLOT_VM_CR] = value;
    return true;
}

/* "SVM_KEY MSR": write-only. Without LOCK it takes the key, with LOCK the right key (not 0) unlocks. */
static bool svm_key_read(struct vcpu *v, u32 msr, u64 *value)
{
    *value = 0;
    return true;
}

static bool svm_key_write(struct vcpu *v, u32 msr, u64 value)
{
    if (!(v->misc_msr[SLOT_VM_CR] & VM_CR_LOCK))
        v->misc_msr[SLOT_SVM_KEY] = value;
    else if (value && value == v->misc_msr[SLOT_SVM_KEY])
        v->misc_msr[SLOT_VM_CR] &= ~VM_CR_LOCK;
    return true;
}

static bool vm_hsave_pa_write(struct vcpu *v, u32 msr, u64 value)
{
    if (value & ~BITS64(v->maxphyaddr - 1, 12))
        return false;
    v->misc_msr[SLOT_VM_HSAVE_PA] = value;
    return true;
}

/* ---- the table ---- */

#define FIELD(f) .offset = offsetof(struct vcpu, f)
#define SLOT(s)  .offset = offsetof(struct vcpu, misc_msr) + SLOT_##s * sizeof(u64)
#define ONE(n)   .first = n, .last = n

const struct msr_desc msr_table[] = {
    {ONE(0x0), .name = "P5_MC_ADDR", .rule = MSR_IGNORED, .feature = FEAT_MCE},
    {ONE(0x1), .name = "P5_MC_TYPE", .rule = MSR_IGNORED, .feature = FEAT_MCE},
    {ONE(MSR_TSC), .name = "TIME_STAMP_COUNTER", .feature = FEAT_TSC, .read = tsc_read, .write = tsc_write},
    {ONE(0x17), .name = "PLATFORM_ID", .who = MSR_INTEL, .rule = MSR_READ_ONLY},
    {ONE(MSR_APIC_BASE), .name = "APIC_BASE", .feature = FEAT_APIC, .read = intc_read, .write = intc_write},
    {ONE(0x3a), .name = "FEATURE_CONTROL", .who = MSR_INTEL, FIELD(feature_control), .write = feature_control_write},
    {ONE(0x3b), .name = "TSC_ADJUST", .feature = FEAT_TSC_ADJUST, FIELD(tsc_adjust), .write = tsc_adjust_write},
    {ONE(0x48), .name = "SPEC_CTRL", .feature = FEAT_SPEC_CTRL, .feature2 = FEAT_AMD_IBRS, FIELD(spec_ctrl),
     .write = spec_ctrl_write},
    {ONE(0x49), .name = "PRED_CMD", .feature = FEAT_SPEC_CTRL, .feature2 = FEAT_AMD_IBPB, .read = write_only,
     .write = pred_cmd_write},
    {ONE(0x79), .name = "BIOS_UPDT_TRIG", .who = MSR_INTEL, .read = write_only, .write = microcode_write},
    {ONE(0x8b), .name = "BIOS_SIGN_ID", .who = MSR_INTEL, FIELD(bios_sign_id), .write = bios_sign_id_write},
    {ONE(0x8b), .name = "PATCH_LEVEL", .who = MSR_AMD, .rule = MSR_READ_ONLY, FIELD(bios_sign_id)},
    {ONE(0x9b), .name = "SMM_MONITOR_CTL", .feature = FEAT_VMX, .rule = MSR_READ_ONLY},
    {.first = 0xc1, .last = 0xc8, .name = "PMC", .feature = FEAT_PMU, .read = pmu_rdmsr, .write = pmu_wrmsr},
    {ONE(0xe1), .name = "UMWAIT_CONTROL", .feature = FEAT_WAITPKG, .allowed = 0xfffffffd, SLOT(UMWAIT_CONTROL)},
    {ONE(0xfe), .name = "MTRRCAP", .feature = FEAT_MTRR, .rule = MSR_READ_ONLY, .value = 8 | BIT64(8) | BIT64(10)},
    {ONE(0x10a), .name = "ARCH_CAPABILITIES", .feature = FEAT_ARCH_CAPABILITIES, .rule = MSR_READ_ONLY,
     .read = arch_capabilities_read},
    {ONE(0x174), .name = "SYSENTER_CS", .feature = FEAT_SEP, .rule = MSR_MASKED, .allowed = 0xffffffff,
     FIELD(sysenter_cs)},
    {ONE(0x175), .name = "SYSENTER_ESP", .feature = FEAT_SEP, .rule = MSR_CANONICAL, FIELD(sysenter_esp)},
    {ONE(0x176), .name = "SYSENTER_EIP", .feature = FEAT_SEP, .rule = MSR_CANONICAL, FIELD(sysenter_eip)},
    {ONE(0x179), .name = "MCG_CAP", .feature = FEAT_MCA, .rule = MSR_READ_ONLY, FIELD(mcg_cap)},
    {ONE(0x17a), .name = "MCG_STATUS", .feature = FEAT_MCA, .allowed = 7, FIELD(mcg_status)},
    {.first = 0x186, .last = 0x18d, .name = "PERFEVTSEL", .feature = FEAT_PMU, .read = pmu_rdmsr, .write = pmu_wrmsr},
    {ONE(0x1a0), .name = "MISC_ENABLE", .who = MSR_INTEL, FIELD(misc_enable), .write = misc_enable_write},
    {ONE(0x1d9), .name = "DEBUGCTL", FIELD(debugctl), .write = debugctl_write},
    {.first = 0x1db, .last = 0x1de, .name = "LAST_BRANCH", .who = MSR_AMD, .rule = MSR_READ_ONLY, SLOT(LAST_BRANCH)},
    {.first = 0x200, .last = 0x20f, .name = "MTRR_PHYSBASE/MASK", .feature = FEAT_MTRR, .read = mtrr_variable_read,
     .write = mtrr_variable_write},
    {ONE(0x250), .name = "MTRR_FIX64K", .feature = FEAT_MTRR, .read = mtrr_fixed_read, .write = mtrr_fixed_write},
    {.first = 0x258, .last = 0x259, .name = "MTRR_FIX16K", .feature = FEAT_MTRR, .read = mtrr_fixed_read,
     .write = mtrr_fixed_write},
    {.first = 0x268, .last = 0x26f, .name = "MTRR_FIX4K", .feature = FEAT_MTRR, .read = mtrr_fixed_read,
     .write = mtrr_fixed_write},
    {ONE(0x277), .name = "PAT", .feature = FEAT_PAT, FIELD(pat), .write = pat_write},
    {ONE(0x2ff), .name = "MTRR_DEF_TYPE", .feature = FEAT_MTRR, FIELD(mtrr_def_type), .write = mtrr_def_type_write},
    {.first = 0x309, .last = 0x30b, .name = "FIXED_CTR", .feature = FEAT_PMU, .read = pmu_rdmsr, .write = pmu_wrmsr},
    {ONE(0x345), .name = "PERF_CAPABILITIES", .feature = FEAT_PDCM, .rule = MSR_READ_ONLY, .read = pmu_rdmsr},
    {ONE(0x38d), .name = "FIXED_CTR_CTRL", .feature = FEAT_PMU, .read = pmu_rdmsr, .write = pmu_wrmsr},
    {ONE(0x38e), .name = "PERF_GLOBAL_STATUS", .feature = FEAT_PMU, .rule = MSR_READ_ONLY, .read = pmu_rdmsr},
    {ONE(0x38f), .name = "PERF_GLOBAL_CTRL", .feature = FEAT_PMU, .read = pmu_rdmsr, .write = pmu_wrmsr},
    {ONE(0x390), .name = "PERF_GLOBAL_STATUS_RESET", .feature = FEAT_PMU, .read = pmu_rdmsr, .write = pmu_wrmsr},
    {ONE(0x391), .name = "PERF_GLOBAL_STATUS_SET", .feature = FEAT_PMU, .read = pmu_rdmsr, .write = pmu_wrmsr},
    {ONE(0x392), .name = "PERF_GLOBAL_INUSE", .feature = FEAT_PMU, .rule = MSR_READ_ONLY, .read = pmu_rdmsr},
    {.first = 0x400, .last = 0x400 + 4 * MC_BANKS - 1, .name = "MC_BANK", .feature = FEAT_MCA, SLOT(MC_BANK),
     .write = mc_bank_write},
    {.first = 0x480, .last = 0x493, .name = "VMX_CAPABILITY", .feature = FEAT_VMX, .rule = MSR_READ_ONLY,
     .read = vmx_read},
    {.first = 0x4c1, .last = 0x4c8, .name = "A_PMC", .feature = FEAT_PDCM, .read = pmu_rdmsr, .write = pmu_wrmsr},
    {ONE(0x6a0), .name = "U_CET", .feature = FEAT_CET_SS, .feature2 = FEAT_CET_IBT, FIELD(u_cet),
     .write = cet_control_write},
    {ONE(0x6a2), .name = "S_CET", .feature = FEAT_CET_SS, .feature2 = FEAT_CET_IBT, FIELD(s_cet),
     .write = cet_control_write},
    {.first = 0x6a4, .last = 0x6a7, .name = "PL_SSP", .feature = FEAT_CET_SS, FIELD(pl_ssp), .write = pl_ssp_write},
    {ONE(0x6a8), .name = "INTERRUPT_SSP_TABLE_ADDR", .feature = FEAT_CET_SS, .rule = MSR_CANONICAL, FIELD(int_ssp_table)},
    {ONE(MSR_TSC_DEADLINE), .name = "TSC_DEADLINE", .feature = FEAT_TSC_DEADLINE, .read = intc_read,
     .write = intc_write},
    {ONE(0x6e1), .name = "PKRS", .feature = FEAT_PKS, .read = pkrs_read, .write = pkrs_write},
    {.first = 0x800, .last = 0x8ff, .name = "X2APIC", .feature = FEAT_X2APIC, .read = intc_read, .write = intc_write},
    {ONE(0xda0), .name = "XSS", .feature = FEAT_XSAVES, FIELD(xss), .write = xss_write},
    {.first = 0x40000000, .last = 0x400000ff, .name = "HYPERV", .feature = FEAT_HYPERVISOR, .read = synthetic_read, .write = synthetic_write},
    {ONE(0xc0000080), .name = "EFER", .feature = FEAT_SYSCALL, .feature2 = FEAT_NX, FIELD(efer), .write = efer_write},
    {ONE(0xc0000081), .name = "STAR", .feature = FEAT_SYSCALL, .allowed = ~0ull, FIELD(star)},
    {ONE(0xc0000082), .name = "LSTAR", .feature = FEAT_LM, .rule = MSR_CANONICAL, FIELD(lstar)},
    {ONE(0xc0000083), .name = "CSTAR", .feature = FEAT_LM, .rule = MSR_CANONICAL, FIELD(cstar)},
    {ONE(0xc0000084), .name = "SFMASK", .feature = FEAT_LM, .rule = MSR_MASKED, .allowed = 0xffffffff, FIELD(sfmask)},
    {ONE(0xc0000100), .name = "FS_BASE", .feature = FEAT_LM, .read = segment_base_read, .write = segment_base_write},
    {ONE(0xc0000101), .name = "GS_BASE", .feature = FEAT_LM, .read = segment_base_read, .write = segment_base_write},
    {ONE(0xc0000102), .name = "KERNEL_GS_BASE", .feature = FEAT_LM, .rule = MSR_CANONICAL, FIELD(kernel_gs_base)},
    {ONE(0xc0000103), .name = "TSC_AUX", .feature = FEAT_RDTSCP, .feature2 = FEAT_RDPID, FIELD(tsc_aux),
     .write = tsc_aux_write},
    {ONE(0xc0000104), .name = "TSC_RATIO", .feature = FEAT_TSCRATEMSR, .allowed = BITS64(39, 0), SLOT(TSC_RATIO)},
    {.first = 0xc0010000, .last = 0xc0010003, .name = "PERF_EVT_SEL", .who = MSR_AMD, .read = pmu_rdmsr, .write = pmu_wrmsr},
    {.first = 0xc0010004, .last = 0xc0010007, .name = "PERF_CTR", .who = MSR_AMD, .read = pmu_rdmsr, .write = pmu_wrmsr},
    {ONE(0xc0010010), .name = "SYSCFG", .who = MSR_AMD, .allowed = BITS64(22, 18), SLOT(SYSCFG)},
    {ONE(0xc0010015), .name = "HWCR", .who = MSR_AMD, SLOT(HWCR), .write = hwcr_write},
    {ONE(0xc001001a), .name = "TOP_MEM", .who = MSR_AMD, .allowed = BITS64(51, 23), SLOT(TOP_MEM)},
    {ONE(0xc001001d), .name = "TOP_MEM2", .who = MSR_AMD, .allowed = BITS64(51, 23), SLOT(TOP_MEM2)},
    {ONE(0xc001001f), .name = "NB_CFG", .who = MSR_AMD, .allowed = ~0ull, SLOT(NB_CFG)},
    {ONE(0xc0010020), .name = "PATCH_LOADER", .who = MSR_AMD, .read = write_only, .write = microcode_write},
    {ONE(0xc0010055), .name = "INT_PENDING_MSG", .who = MSR_AMD, .rule = MSR_IGNORED},
    {ONE(0xc0010058), .name = "MMIO_CFG_BASE", .who = MSR_AMD, .rule = MSR_IGNORED},
    {ONE(0xc0010112), .name = "SMM_ADDR", .who = MSR_AMD, .rule = MSR_IGNORED},
    {ONE(0xc0010113), .name = "SMM_MASK", .who = MSR_AMD, .rule = MSR_IGNORED},
    {ONE(0xc0010114), .name = "VM_CR", .feature = FEAT_SVM, SLOT(VM_CR), .write = vm_cr_write},
    {ONE(0xc0010117), .name = "VM_HSAVE_PA", .feature = FEAT_SVM, SLOT(VM_HSAVE_PA), .write = vm_hsave_pa_write},
    {ONE(0xc0010118), .name = "SVM_KEY", .feature = FEAT_SVM_LOCK, .read = svm_key_read, .write = svm_key_write},
    {ONE(0xc0010140), .name = "OSVW_ID_LENGTH", .feature = FEAT_OSVW, .rule = MSR_IGNORED, .value = 5},
    {ONE(0xc0010141), .name = "OSVW_STATUS", .feature = FEAT_OSVW, .allowed = ~0ull, SLOT(OSVW_STATUS)},
    {.first = 0xc0010200, .last = 0xc001020b, .name = "PERF_CTL/CTR", .feature = FEAT_PERFCTR_CORE, .read = pmu_rdmsr,
     .write = pmu_wrmsr},
    {ONE(0xc0011029), .name = "DE_CFG", .who = MSR_AMD, .allowed = ~0ull, SLOT(DE_CFG)},
};
const unsigned msr_count = ARRAY_SIZE(msr_table);

static bool applies(const struct vcpu *v, const struct msr_desc *d)
{
    if (d->who != MSR_ANY && (d->who == MSR_INTEL) != (v->model->vendor == VENDOR_INTEL))
        return false;
    return (!d->feature && !d->feature2) || (d->feature && cpu_has(v, d->feature)) ||
           (d->feature2 && cpu_has(v, d->feature2));
}

const struct msr_desc *msr_find(const struct vcpu *v, u32 msr)
{
    unsigned low = 0, high = msr_count; /* the first row whose range does not end before @msr */
    while (low < high) {
        unsigned mid = (low + high) / 2;
        if (msr_table[mid].last < msr)
            low = mid + 1;
        else
            high = mid;
    }
    for (; low < msr_count && msr_table[low].first <= msr; low++)
        if (applies(v, &msr_table[low]))
            return &msr_table[low];
    return NULL;
}

static u64 *storage(struct vcpu *v, const struct msr_desc *d, u32 msr)
{
    if (!d->offset)
        return NULL;
    return (u64 *)((u8 *)v + d->offset) + (msr - d->first);
}

bool cpu_rdmsr(struct vcpu *v, u32 msr, u64 *value)
{
    const struct msr_desc *d = msr_find(v, msr);
    if (!d)
        return false;
    if (d->read)
        return d->read(v, msr, value);
    const u64 *field = storage(v, d, msr);
    *value = field ? *field : d->value;
    return true;
}

bool cpu_wrmsr(struct vcpu *v, u32 msr, u64 value)
{
    const struct msr_desc *d = msr_find(v, msr);
    if (!d)
        return false;
    if (d->write)
        return d->write(v, msr, value);
    u64 *field = storage(v, d, msr);
    switch ((enum msr_rule)d->rule) {
    case MSR_READ_ONLY: return false;
    case MSR_IGNORED: return true;
    case MSR_CANONICAL:
        if (!cpu_canonical_any(v, value))
            return false;
        break;
    case MSR_PLAIN:
        if (value & ~d->allowed)
            return false;
        break;
    case MSR_MASKED: value &= d->allowed; break;
    }
    if (field)
        *field = value;
    return true;
}
