/*
 * What VMX offers, as the capability MSRs say it (SDM Appendix A "VMX Capability Reporting
 * Facility"): computed from the table of controls and the processor's features.
 */
#include "vmx/vmx.h"

enum { FEAT_YES = 0, FEAT_NO = 0 };
/* The `offered` column names a feature, YES or NO: one list of names in two readings. */
enum offered_column {
    COLUMN_YES, COLUMN_NO,
#define FEATURE(name, leaf, subleaf, reg, bit) COLUMN_##name,
#include "cpu/features.def"
#undef FEATURE
};

const struct vmx_control vmx_controls[CTL_COUNT] = {
#define VMX_CONTROL(w, cname, b, t0, column, enlightened)                                                    \
    { .name = #w "_" #cname, .word = WORD_##w, .bit = b, .true0 = t0, .feature = FEAT_##column,                 \
      .offered = COLUMN_##column != COLUMN_NO, .evmcs = COLUMN_##enlightened != COLUMN_NO },
#include "vmx/controls.def"
#undef VMX_CONTROL
};

/* Reserved bits that read and must be written as 1 (SDM A.2-A.5, "default1 class"). Bits of it that
 * have become controls since are rows with true0 set. */
static const u64 default1_class[WORD_COUNT] = {
    [WORD_PIN] = BIT(1) | BIT(2) | BIT(4),
    [WORD_PRI] = BIT(1) | BITS64(6, 4) | BIT(8) | BITS64(16, 13) | BIT(26),
    [WORD_EXIT] = BITS64(8, 0) | BITS64(11, 10) | BITS64(14, 13) | BITS64(17, 16),
    [WORD_ENTRY] = BITS64(8, 0) | BIT(12),
};

/* IA32_VMX_VMCS_ENUM: the highest index of any field's encoding. */
static u64 vmx_highest_index(const struct vmx_caps *caps)
{
    unsigned highest = 0;
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++) {
        unsigned number = vmcs_fields[s].encoding >> 1 & 0x1ff;
        if (vmcs_exists(caps, s) && number > highest)
            highest = number;
    }
    return highest;
}

void vmx_caps_init(struct vmx_caps *caps, const struct vcpu *v)
{
    memset(caps, 0, sizeof(*caps));
    for (unsigned w = 0; w < WORD_COUNT; w++)
        caps->default1[w] = caps->allowed0[w] = caps->allowed1[w] = default1_class[w];
    for (unsigned n = 0; n < CTL_COUNT; n++) {
        const struct vmx_control *c = &vmx_controls[n];
        if (!c->offered || (c->feature != FEAT_NONE && !cpu_has(v, c->feature)))
            continue;
        caps->allowed1[c->word] |= BIT64(c->bit);
        if (c->true0)
            caps->allowed0[c->word] &= ~BIT64(c->bit);
    }

    /* Write-back VMCS, 4 KiB regions, INS/OUTS information, TRUE MSRs. */
    caps->basic = VMX_REVISION | 4096ull << 32 | 6ull << 50 | BIT64(54) | BIT64(55);
    caps->misc = VMX_MISC_TIMER_SHIFT | BIT64(5) /* stores EFER.LMA at exits */ | VMX_MISC_ACTIVITY_HLT
        | VMX_MISC_ACTIVITY_SHUTDOWN | VMX_MISC_ACTIVITY_WAIT_SIPI | 4ull << 16 /* CR3 targets */ | VMX_MISC_VMWRITE_ALL
        | VMX_MISC_ZERO_LENGTH;
    caps->cr0_fixed0 = CR0_PG | CR0_NE | CR0_PE;
    caps->cr0_fixed1 = 0xffffffff;
    caps->cr4_fixed0 = CR4_VMXE;
    caps->cr4_fixed1 = ~cpu_cr4_reserved(v) | CR4_VMXE;
    static const struct { u16 feature; u64 bits; } ept_vpid[] = {
        { FEAT_VMX_EPT, VMX_EPT_WALK_4 | VMX_EPT_UC | VMX_EPT_WB | VMX_EPT_2M | VMX_EPT_INVEPT | VMX_EPT_INVEPT_SINGLE | VMX_EPT_INVEPT_ALL },
        { FEAT_VMX_EPT_5LEVEL, VMX_EPT_WALK_5 }, { FEAT_VMX_EPT_1G, VMX_EPT_1G }, { FEAT_VMX_EPT_AD, VMX_EPT_AD }, { FEAT_VMX_EPT_EXEC_ONLY, VMX_EPT_EXEC_ONLY },
        { FEAT_VMX_EPT_INFO, VMX_EPT_ADVANCED_INFO },
        { FEAT_VMX_VPID, VMX_EPT_INVVPID | VMX_EPT_INVVPID_ADDRESS | VMX_EPT_INVVPID_SINGLE | VMX_EPT_INVVPID_ALL
          | VMX_EPT_INVVPID_SINGLE_NONGLOBAL },
    };
    for (unsigned n = 0; n < ARRAY_SIZE(ept_vpid); n++)
        if (cpu_has(v, ept_vpid[n].feature))
            caps->ept_vpid |= ept_vpid[n].bits;
    vmx_caps_fields(caps);
    caps->vmcs_enum = vmx_highest_index(caps) << 1;
}

/* The fields that the controls on offer bring. */
void vmx_caps_fields(struct vmx_caps *caps)
{
    memset(caps->fields, 0, sizeof(caps->fields));
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++)
        if (vmx_offers(caps, vmcs_fields[s].control))
            caps->fields[s / 64] |= BIT64(s % 64);
}

void vmx_caps_evmcs(struct vmx_caps *caps, const struct vmx_caps *all)
{
    *caps = *all;
    for (unsigned n = 0; n < CTL_COUNT; n++)
        if (!vmx_controls[n].evmcs)
            caps->allowed1[vmx_controls[n].word] &= ~BIT64(vmx_controls[n].bit);
    vmx_caps_fields(caps);
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++)
        if (vmcs_fields[s].evmcs_offset < 0)
            caps->fields[s / 64] &= ~BIT64(s % 64);
}

void vmx_caps_apply(struct vcpu *v, const struct vmx_caps *caps)
{
    v->vmx_cr0_fixed0 = caps->cr0_fixed0;
    v->vmx_cr0_fixed1 = caps->cr0_fixed1;
    v->vmx_cr4_fixed0 = caps->cr4_fixed0;
    v->vmx_cr4_fixed1 = caps->cr4_fixed1;
}

static u64 control_msr(const struct vmx_caps *c, enum vmx_word w, bool true_msr)
{
    u64 must = true_msr ? c->allowed0[w] : c->default1[w];
    return (u32)must | c->allowed1[w] << 32;
}

bool vmx_caps_msr(const struct vmx_caps *c, u32 msr, u64 *value)
{
    switch (msr) {
    case 0x480: *value = c->basic; return true;
    case 0x481: *value = control_msr(c, WORD_PIN, false); return true;
    case 0x482: *value = control_msr(c, WORD_PRI, false); return true;
    case 0x483: *value = control_msr(c, WORD_EXIT, false); return true;
    case 0x484: *value = control_msr(c, WORD_ENTRY, false); return true;
    case 0x485: *value = c->misc; return true;
    case 0x486: *value = c->cr0_fixed0; return true;
    case 0x487: *value = c->cr0_fixed1; return true;
    case 0x488: *value = c->cr4_fixed0; return true;
    case 0x489: *value = c->cr4_fixed1; return true;
    case 0x48a: *value = c->vmcs_enum; return true;
    case 0x48b: *value = control_msr(c, WORD_SEC, true); return vmx_offers(c, CTL_PRI_SECONDARY_CONTROLS);
    case 0x48c: *value = c->ept_vpid; return vmx_offers(c, CTL_SEC_EPT) || vmx_offers(c, CTL_SEC_VPID);
    case 0x48d: *value = control_msr(c, WORD_PIN, true); return c->basic & VMX_BASIC_TRUE_CONTROLS;
    case 0x48e: *value = control_msr(c, WORD_PRI, true); return c->basic & VMX_BASIC_TRUE_CONTROLS;
    case 0x48f: *value = control_msr(c, WORD_EXIT, true); return c->basic & VMX_BASIC_TRUE_CONTROLS;
    case 0x490: *value = control_msr(c, WORD_ENTRY, true); return c->basic & VMX_BASIC_TRUE_CONTROLS;
    case 0x491: *value = c->allowed1[WORD_VMFUNC]; return vmx_offers(c, CTL_SEC_VM_FUNCTIONS);
    case 0x492: *value = c->allowed1[WORD_TER]; return vmx_offers(c, CTL_PRI_TERTIARY_CONTROLS);
    default: return false;
    }
}
