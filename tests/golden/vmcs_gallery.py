"""Broken VMCSs: what is done to the valid state of vmcs_dumps, and the rows that must fail -- those and no others."""

UNRESTRICTED = 1 << 7


def no_unrestricted(f):
    f["SECONDARY_VM_EXEC_CONTROL"] &= ~UNRESTRICTED


def outside_ia32e(f):
    """A 32-bit protected-mode guest without paging of its own."""
    f.update(VM_ENTRY_CONTROLS=f["VM_ENTRY_CONTROLS"] & ~0x200, GUEST_IA32_EFER=0, GUEST_RIP=0x100000, GUEST_CS_AR_BYTES=0xC09B,
             GUEST_CR4=0x2000, GUEST_CR0=0x33)


def broken(**fields):
    return lambda f: f.update(fields)


def chain(*changes):
    def change(f):
        for c in changes:
            c(f)
    return change


GALLERY = {
    "external interrupt with IF=0": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80000030, GUEST_RFLAGS=0x46), {"RFLAGS_IF_EXTINT"}),
    "external interrupt in STI shadow": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80000030, GUEST_INTERRUPTIBILITY_INFO=1), {"INT_EXTINT_BLOCK"}),
    "single-step, STI shadow, no BS": (broken(GUEST_RFLAGS=0x346, GUEST_INTERRUPTIBILITY_INFO=1), {"PDBG_BS"}),
    "MOV SS shadow with BS but no TF": (broken(GUEST_PENDING_DBG_EXCEPTIONS=0x4000, GUEST_INTERRUPTIBILITY_INFO=2), {"PDBG_BS"}),
    "TR not busy": (broken(GUEST_TR_AR_BYTES=0x89), {"SEG_TR_TYPE"}),
    "TR unusable": (broken(GUEST_TR_AR_BYTES=0x1008B), {"SEG_TR_USABLE"}),
    "TR limit and granularity": (broken(GUEST_TR_AR_BYTES=0x808B), {"SEG_TR_G"}),
    "guest CR4 without VMXE": (broken(GUEST_CR4=0x3706F0), {"GUEST_CR4_FIXED"}),
    "host CR4 without VMXE": (broken(HOST_CR4=0x3706F0), {"HOST_CR4_FIXED"}),
    "guest CR0 without NE": (broken(GUEST_CR0=0x80050013), {"GUEST_CR0_FIXED"}),
    "paging without protection": (broken(GUEST_CR0=0x80050032), {"GUEST_PG_NEEDS_PE", "SEG_SS_DPL_ZERO"} - {"SEG_SS_DPL_ZERO"}),
    "EFER.LMA unlike the entry control": (broken(GUEST_IA32_EFER=0x901), {"GUEST_EFER_LMA", "GUEST_EFER_LME"}),
    "EFER reserved bit": (broken(GUEST_IA32_EFER=0x1D01), {"GUEST_EFER_RSVD"}),
    "PAT with type 2": (broken(GUEST_IA32_PAT=0x0407050600070206), {"GUEST_PAT"}),
    "DebugCtl reserved bit": (broken(GUEST_IA32_DEBUGCTL=0x2000), {"GUEST_DEBUGCTL"}),
    "DR7 high half": (broken(GUEST_DR7=0x100000400), {"GUEST_DR7_HI"}),
    "RIP not canonical": (broken(GUEST_RIP=0x0F00000000000000), {"RIP_64"}),
    "RIP above 4 GiB outside 64-bit mode": (chain(outside_ia32e, broken(GUEST_RIP=0x100000000)), {"RIP_32"}),
    "RFLAGS bit 1 clear": (broken(GUEST_RFLAGS=0x244), {"RFLAGS_RSVD"}),
    "virtual-8086 flag in IA-32e mode": (broken(GUEST_RFLAGS=0x20246),
                                         {"RFLAGS_VM", "SEG_V86_BASE", "SEG_V86_LIMIT", "SEG_V86_AR"}),
    "CS in IA-32e mode with L and D": (broken(GUEST_CS_AR_BYTES=0xE09B), {"SEG_CS_DB"}),
    "CS type of data": (broken(GUEST_CS_AR_BYTES=0xA095), {"SEG_CS_TYPE"}),
    "CS not present": (broken(GUEST_CS_AR_BYTES=0xA01B), {"SEG_P"}),
    "CS granularity": (broken(GUEST_CS_AR_BYTES=0x209B), {"SEG_G"}),
    "SS and CS privilege, not unrestricted": (chain(no_unrestricted, broken(GUEST_SS_SELECTOR=0x1B)), {"SEG_SS_RPL_CS", "SEG_SS_DPL_RPL"}),
    "SS DPL unlike CS DPL": (broken(GUEST_SS_AR_BYTES=0xC0F3), {"SEG_CS_DPL"}),
    "DS not accessed": (broken(GUEST_DS_AR_BYTES=0xC092), {"SEG_DATA_TYPE"}),
    "ES system segment": (broken(GUEST_ES_AR_BYTES=0xC083), {"SEG_S"}),
    "FS reserved access rights": (broken(GUEST_FS_AR_BYTES=0xC193), {"SEG_AR_RSVD"}),
    "GS base not canonical": (broken(GUEST_GS_BASE=0x0100000000000000), {"SEG_BASE_CANON"}),
    "DS base above 4 GiB": (broken(GUEST_DS_AR_BYTES=0xC093, GUEST_DS_BASE=0x100000000), {"SEG_BASE_HI"}),
    "LDTR usable with a wrong type": (broken(GUEST_LDTR_AR_BYTES=0x8B), {"SEG_LDTR_TYPE"}),
    "LDTR in the LDT": (broken(GUEST_LDTR_AR_BYTES=0x82, GUEST_LDTR_SELECTOR=0x4), {"SEG_LDTR_TI"}),
    "GDTR base": (broken(GUEST_GDTR_BASE=0x0100000000000000), {"GDTR_BASE"}),
    "IDTR limit": (broken(GUEST_IDTR_LIMIT=0x10FFF), {"IDTR_LIMIT"}),
    "activity state 7": (broken(GUEST_ACTIVITY_STATE=7), {"ACT_SUPPORTED"}),
    "HLT with STI blocking": (broken(GUEST_ACTIVITY_STATE=1, GUEST_INTERRUPTIBILITY_INFO=1), {"ACT_BLOCKING"}),
    "HLT with #GP injected": (broken(GUEST_ACTIVITY_STATE=1, VM_ENTRY_INTR_INFO_FIELD=0x80000B0D), {"ACT_INJ_HLT"}),
    "STI blocking with IF=0": (broken(GUEST_INTERRUPTIBILITY_INFO=1, GUEST_RFLAGS=0x46), {"INT_STI_IF"}),
    "STI and MOV SS blocking": (broken(GUEST_INTERRUPTIBILITY_INFO=3), {"INT_STI_MOVSS"}),
    "NMI injected in MOV SS shadow": (broken(GUEST_INTERRUPTIBILITY_INFO=2, VM_ENTRY_INTR_INFO_FIELD=0x80000202), {"INT_NMI_MOVSS"}),
    "NMI injected while NMIs are blocked": (broken(GUEST_INTERRUPTIBILITY_INFO=8, VM_ENTRY_INTR_INFO_FIELD=0x80000202), {"INT_VNMI"}),
    "interruptibility reserved bit": (broken(GUEST_INTERRUPTIBILITY_INFO=0x20), {"INT_RSVD"}),
    "pending debug reserved bit": (broken(GUEST_PENDING_DBG_EXCEPTIONS=0x20), {"PDBG_RSVD"}),
    "#DF without an error code": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80000308), {"INJ_EC_REQUIRED"}),
    "#UD with an error code": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80000B06), {"INJ_EC_REQUIRED"}),
    "interrupt with an error code": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80000830), {"INJ_EC_TYPE"}),
    "NMI with another vector": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80000203), {"INJ_VEC_NMI"}),
    "hardware exception 32": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80000320), {"INJ_VEC_HWEXC"}),
    "injection type 1": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80000130), {"INJ_TYPE_RSVD"}),
    "injection reserved bits": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80001030), {"INJ_RSVD"}),
    "error code above 16 bits": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80000B0E, VM_ENTRY_EXCEPTION_ERROR_CODE=0x10002), {"INJ_EC_HI"}),
    "INT n of length 16": (broken(VM_ENTRY_INTR_INFO_FIELD=0x80000480, VM_ENTRY_INSTRUCTION_LEN=16), {"INJ_ILEN"}),
    "pin-based default1 bit clear": (broken(PIN_BASED_VM_EXEC_CONTROL=0x7D), {"EXEC_PIN_ALLOWED"}),
    "virtual NMIs without NMI exiting": (broken(PIN_BASED_VM_EXEC_CONTROL=0x77), {"EXEC_VNMI_NEEDS_NMI_EXIT"}),
    "VPID 0": (broken(VIRTUAL_PROCESSOR_ID=0), {"EXEC_VPID_NONZERO"}),
    "EPTP walk length": (broken(EPT_POINTER=0x10A2C9056), {"EXEC_EPTP_WALK"}),
    "EPTP memory type": (broken(EPT_POINTER=0x10A2C905D), {"EXEC_EPTP_MEMTYPE"}),
    "EPTP reserved bits": (broken(EPT_POINTER=0x10A2C985E), {"EXEC_EPTP_RSVD"}),
    "unrestricted guest without EPT": (chain(lambda f: f.update(SECONDARY_VM_EXEC_CONTROL=f["SECONDARY_VM_EXEC_CONTROL"] & ~2)), {"EXEC_URG_NEEDS_EPT"}),
    "virtual-APIC page unaligned": (broken(VIRTUAL_APIC_PAGE_ADDR=0x10B3A7800), {"EXEC_VAPIC_ADDR"}),
    "TPR threshold above 15": (broken(TPR_THRESHOLD=0x10), {"EXEC_TPR_THRESHOLD_RSVD"}),
    "host CS null": (broken(HOST_CS_SELECTOR=0), {"HOST_CS_NULL"}),
    "host selector with RPL": (broken(HOST_SS_SELECTOR=0x1B), {"HOST_SEL_RPL_TI"}),
    "host TR null": (broken(HOST_TR_SELECTOR=0), {"HOST_TR_NULL"}),
    "host GDTR base": (broken(HOST_GDTR_BASE=0x0100000000000000), {"HOST_BASE_CANON"}),
    "host EFER without LMA": (broken(HOST_IA32_EFER=0x901), {"HOST_EFER_LMA_LME", "HASZ_NOT_LMA"}),
    "host PAT": (broken(HOST_IA32_PAT=0x0203050600070106), {"HOST_PAT"}),
    "host CR4 without PAE": (broken(HOST_CR4=0x3726D0), {"HASZ_64"}),
    "entry to SMM": (lambda f: f.update(VM_ENTRY_CONTROLS=f["VM_ENTRY_CONTROLS"] | 0x400), {"ENTRY_SMM", "INT_SMI"}),
    "PCID outside IA-32e mode": (chain(outside_ia32e, broken(GUEST_CR4=0x22000)), {"GUEST_NOT_IA32E_PCIDE"}),
    "IA-32e mode without PAE": (broken(GUEST_CR4=0x3726D0), {"GUEST_IA32E_PG_PAE"}),
    "PAE with a reserved PDPTE bit": (chain(outside_ia32e, broken(GUEST_CR0=0x80000033, GUEST_CR4=0x2020, GUEST_PDPTE0=0x1001, GUEST_PDPTE1=0x2003,
                                                                  GUEST_PDPTE2=0, GUEST_PDPTE3=0)), {"PDPTE_RSVD"}),
}
