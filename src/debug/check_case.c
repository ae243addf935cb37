/* Rows of the VM-entry check table on states of which only a part may be known. */
#include "debug/check.h"

#include <strings.h>

void case_set(struct check_case *c, unsigned slot, u64 value)
{
    c->f[slot] = vmcs_put(0, vmcs_fields[slot].encoding, value);
    c->known.fields[slot / 64] |= BIT64(slot % 64);
}

void case_init_unknown(struct check_case *c)
{
    memset(c, 0, sizeof(*c));
    c->s.f = c->f;
    c->s.caps = &c->caps;
    c->assumed = true;
    c->s.maxphyaddr = 52;
    c->s.linear_width = 57;
    c->s.efer_reserved = ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE);
    /* As far as any processor's counters go: 32 general ones, 16 fixed, and the metrics. */
    c->s.pgc_reserved = ~(BITS64(31, 0) | BITS64(48, 32));
    c->s.rtm = c->s.bus_lock = c->s.sgx = true;

    struct vmx_caps *k = &c->caps;
    /* The default1 class (SDM A.2-A.5) with the bits that have become controls taken out. */
    k->allowed0[WORD_PIN] = BIT(1) | BIT(2) | BIT(4);
    k->allowed0[WORD_PRI] = BIT(1) | BITS64(6, 4) | BIT(8) | BITS64(14, 13) | BIT(26);
    k->allowed0[WORD_EXIT] = BITS64(8, 0) | BITS64(11, 10) | BITS64(14, 13) | BITS64(17, 16);
    k->allowed0[WORD_ENTRY] = BITS64(8, 0) | BIT(12);
    memcpy(k->allowed1, k->allowed0, sizeof(k->allowed1));
    for (unsigned n = 0; n < CTL_COUNT; n++) {
        k->allowed1[vmx_controls[n].word] |= BIT64(vmx_controls[n].bit);
        if (vmx_controls[n].true0)
            k->allowed0[vmx_controls[n].word] &= ~BIT64(vmx_controls[n].bit);
    }
    memcpy(k->default1, k->allowed0, sizeof(k->default1));
    k->misc = VMX_MISC_ACTIVITY_HLT | VMX_MISC_ACTIVITY_SHUTDOWN | VMX_MISC_ACTIVITY_WAIT_SIPI | 4ull << 16 | VMX_MISC_ZERO_LENGTH;
    k->cr0_fixed0 = CR0_PG | CR0_NE | CR0_PE;
    k->cr0_fixed1 = 0xffffffff;
    k->cr4_fixed0 = CR4_VMXE;
    k->cr4_fixed1 = BITS64(14, 0) | CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | BIT64(19) | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_CET
        | CR4_PKS | BIT64(25) /* UINTR */ | BIT64(27) /* LASS */ | CR4_LAM_SUP | BIT64(32) /* FRED */;
    k->ept_vpid = VMX_EPT_EXEC_ONLY | VMX_EPT_WALK_4 | VMX_EPT_WALK_5 | VMX_EPT_UC | VMX_EPT_WB | VMX_EPT_AD | VMX_EPT_SSS;
}

void case_from_vcpu(struct check_case *c, struct vcpu *v)
{
    memset(c, 0, sizeof(*c));
    vmx_take_snapshot(v, &c->s);
    memcpy(c->f, v->vmx->f, sizeof(c->f));
    c->caps = v->vmx->caps;
    c->s.f = c->f;
    c->s.caps = &c->caps;
    memset(c->known.fields, 0xff, sizeof(c->known.fields));
    c->known.facts = BIT(VMX_FACT_lma) | BIT(VMX_FACT_vtpr) | BIT(VMX_FACT_link_word) | BIT(VMX_FACT_pdpte) | BIT(VMX_FACT_current_vmcs);
}

enum check_result case_run(const struct check_case *c, unsigned row, struct vmx_reads *missing)
{
    struct vmx_reads reads;
    unsigned n;
    const struct virt_check *rows = vmx_check_table(&n);
    /* The MSR-load rows are judged once per entry of the list; an empty list has none. */
    if (rows[row].stage == STAGE_MSR_LOAD && case_knows(c, VMCS_VM_ENTRY_MSR_LOAD_COUNT) && !c->f[VMCS_VM_ENTRY_MSR_LOAD_COUNT]) {
        if (missing)
            memset(missing, 0, sizeof(*missing));
        return RESULT_NOT_APPLICABLE;
    }
    enum virt_outcome outcome = vmx_check_tracked(row, &c->s, &reads);
    bool unknown = reads.facts &= ~c->known.facts;
    for (unsigned i = 0; i < ARRAY_SIZE(reads.fields); i++)
        unknown |= (reads.fields[i] &= ~c->known.fields[i]) != 0;
    if (missing)
        *missing = reads;
    if (unknown)
        return RESULT_UNKNOWN;
    return outcome == CHECK_PASS ? RESULT_PASS : outcome == CHECK_FAIL ? RESULT_FAIL : RESULT_NOT_APPLICABLE;
}

const char *check_result_name(enum check_result r)
{
    static const char *const names[RESULT_COUNT] = {"pass", "fail", "not applicable", "not evaluated"};
    return names[r];
}

const char *check_stage_name(unsigned stage)
{
    static const char *const names[] = {"controls", "host state", "guest state", "MSR load"};
    return names[stage];
}

void check_effect(const struct virt_check *c, char *buf, size_t size)
{
    switch (c->stage) {
    case STAGE_CONTROLS: snprintf(buf, size, "VMfailValid, VM-instruction error 7"); break;
    case STAGE_HOST: snprintf(buf, size, "VMfailValid, VM-instruction error 8"); break;
    case STAGE_GUEST: snprintf(buf, size, "VM exit, reason 0x80000021 (33), qualification %u", c->qualification); break;
    default: snprintf(buf, size, "VM exit, reason 0x80000022 (34), qualification: number of the list's entry"); break;
    }
}

int check_find(const char *id)
{
    unsigned n;
    const struct virt_check *rows = vmx_check_table(&n);
    for (unsigned i = 0; i < n; i++)
        if (!strcasecmp(rows[i].id, id))
            return (int)i;
    return -1;
}
