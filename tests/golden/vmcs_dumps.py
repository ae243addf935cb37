"""VMCS dumps as KVM prints them, made from a dictionary of fields; a valid state to begin with."""

SEGMENTS = ("CS", "DS", "SS", "ES", "FS", "GS", "LDTR", "TR")


def valid():
    """A 64-bit Linux guest under a 64-bit Linux host, EPT and unrestricted guest on."""
    f = {
        "PIN_BASED_VM_EXEC_CONTROL": 0x7F, "CPU_BASED_VM_EXEC_CONTROL": 0xB5A06DFA, "SECONDARY_VM_EXEC_CONTROL": 0x000010EA,
        "TERTIARY_VM_EXEC_CONTROL": 0, "VM_ENTRY_CONTROLS": 0xD3FF, "VM_EXIT_CONTROLS": 0x2BEFFF,
        "EXCEPTION_BITMAP": 0x60042, "PAGE_FAULT_ERROR_CODE_MASK": 0, "PAGE_FAULT_ERROR_CODE_MATCH": 0,
        "VM_ENTRY_INTR_INFO_FIELD": 0, "VM_ENTRY_EXCEPTION_ERROR_CODE": 0, "VM_ENTRY_INSTRUCTION_LEN": 0,
        "VM_EXIT_INTR_INFO": 0, "VM_EXIT_INTR_ERROR_CODE": 0, "VM_EXIT_INSTRUCTION_LEN": 0,
        "VM_EXIT_REASON": 0x80000021, "EXIT_QUALIFICATION": 0, "IDT_VECTORING_INFO_FIELD": 0, "IDT_VECTORING_ERROR_CODE": 0,
        "TSC_OFFSET": 0xFFFFFFF012345678, "TPR_THRESHOLD": 0, "APIC_ACCESS_ADDR": 0, "VIRTUAL_APIC_PAGE_ADDR": 0x10B3A7000,
        "EPT_POINTER": 0x10A2C905E, "PLE_GAP": 0x80, "PLE_WINDOW": 0x1000, "VIRTUAL_PROCESSOR_ID": 1,
        "GUEST_CR0": 0x80050033, "CR0_READ_SHADOW": 0x80050033, "CR0_GUEST_HOST_MASK": 0xFFFFFFFFFFFFFFF7,
        "GUEST_CR4": 0x3726F0, "CR4_READ_SHADOW": 0x3706F0, "CR4_GUEST_HOST_MASK": 0xFFFFFFFFFFFEF871,
        "GUEST_CR3": 0x2C0A000, "GUEST_RSP": 0xFFFFC90000013E50, "GUEST_RIP": 0xFFFFFFFF81A0B2C4, "GUEST_RFLAGS": 0x246,
        "GUEST_DR7": 0x400, "GUEST_SYSENTER_ESP": 0xFFFFFE0000003000, "GUEST_SYSENTER_CS": 0x10, "GUEST_SYSENTER_EIP": 0xFFFFFFFF81E01770,
        "GUEST_GDTR_LIMIT": 0x7F, "GUEST_GDTR_BASE": 0xFFFFFE0000001000, "GUEST_IDTR_LIMIT": 0xFFF, "GUEST_IDTR_BASE": 0xFFFFFE0000000000,
        "GUEST_IA32_EFER": 0xD01, "GUEST_IA32_PAT": 0x0407050600070106, "GUEST_IA32_DEBUGCTL": 0, "GUEST_PENDING_DBG_EXCEPTIONS": 0,
        "GUEST_INTERRUPTIBILITY_INFO": 0, "GUEST_ACTIVITY_STATE": 0,
        "HOST_RIP": 0xFFFFFFFFC0B1D2E0, "HOST_RSP": 0xFFFFC90001A3BC40, "HOST_CS_SELECTOR": 0x10, "HOST_SS_SELECTOR": 0x18,
        "HOST_DS_SELECTOR": 0, "HOST_ES_SELECTOR": 0, "HOST_FS_SELECTOR": 0, "HOST_GS_SELECTOR": 0, "HOST_TR_SELECTOR": 0x40,
        "HOST_FS_BASE": 0x7F2A11B3C640, "HOST_GS_BASE": 0xFFFF88846F000000, "HOST_TR_BASE": 0xFFFFFE1A2B3C4000,
        "HOST_GDTR_BASE": 0xFFFFFE1A2B3C2000, "HOST_IDTR_BASE": 0xFFFFFE0000000000, "HOST_CR0": 0x80050033, "HOST_CR3": 0x10CD2E004,
        "HOST_CR4": 0x3726F0, "HOST_IA32_SYSENTER_ESP": 0xFFFFFE1A2B3C3200, "HOST_IA32_SYSENTER_CS": 0x10,
        "HOST_IA32_SYSENTER_EIP": 0xFFFFFFFF82001820, "HOST_IA32_EFER": 0xD01, "HOST_IA32_PAT": 0x0407050600070106,
    }
    for s in SEGMENTS:
        f[f"GUEST_{s}_SELECTOR"] = {"CS": 0x10, "SS": 0x18, "TR": 0x40}.get(s, 0)
        f[f"GUEST_{s}_AR_BYTES"] = {"CS": 0xA09B, "SS": 0xC093, "TR": 0x8B}.get(s, 0x1C000 if s != "LDTR" else 0x10000)
        f[f"GUEST_{s}_LIMIT"] = {"LDTR": 0, "TR": 0x4087}.get(s, 0xFFFFFFFF)
        f[f"GUEST_{s}_BASE"] = {"GS": 0xFFFF88807DC00000, "TR": 0xFFFFFE0000003000}.get(s, 0)
    return f


def kvm_lines(f, layout):
    """The lines of dump_vmcs. layout 5: 5.4 to 5.11; layout 6: 6.x."""
    def v(name, width):
        return f"{f[name]:0{width}x}"

    def seg(s):
        return (f"{s + ':':6}sel=0x{v(f'GUEST_{s}_SELECTOR', 4)}, attr=0x{v(f'GUEST_{s}_AR_BYTES', 5)}, "
                f"limit=0x{v(f'GUEST_{s}_LIMIT', 8)}, base=0x{v(f'GUEST_{s}_BASE', 16)}")

    def table(s):
        return f"{s + ':':6}" + " " * 26 + f"limit=0x{v(f'GUEST_{s}_LIMIT', 8)}, base=0x{v(f'GUEST_{s}_BASE', 16)}"

    secondary = f["SECONDARY_VM_EXEC_CONTROL"] if f["CPU_BASED_VM_EXEC_CONTROL"] >> 31 & 1 else 0
    out = []
    if layout == 6:
        out.append("VMCS 00000000a1b2c3d4, last attempted VM-entry on CPU 3")
    out.append("*** Guest State ***")
    for cr in ("CR0", "CR4"):
        out.append(f"{cr}: actual=0x{v('GUEST_' + cr, 16)}, shadow=0x{v(cr + '_READ_SHADOW', 16)}, gh_mask={v(cr + '_GUEST_HOST_MASK', 16)}")
    out.append(f"CR3 = 0x{v('GUEST_CR3', 16)}")
    if "GUEST_PDPTE0" in f:
        out.append(f"PDPTR0 = 0x{v('GUEST_PDPTE0', 16)}  PDPTR1 = 0x{v('GUEST_PDPTE1', 16)}")
        out.append(f"PDPTR2 = 0x{v('GUEST_PDPTE2', 16)}  PDPTR3 = 0x{v('GUEST_PDPTE3', 16)}")
    out.append(f"RSP = 0x{v('GUEST_RSP', 16)}  RIP = 0x{v('GUEST_RIP', 16)}")
    out.append(f"RFLAGS=0x{v('GUEST_RFLAGS', 8)}         DR7 = 0x{v('GUEST_DR7', 16)}")
    out.append(f"Sysenter RSP={v('GUEST_SYSENTER_ESP', 16)} CS:RIP={v('GUEST_SYSENTER_CS', 4)}:{v('GUEST_SYSENTER_EIP', 16)}")
    out += [seg(s) for s in ("CS", "DS", "SS", "ES", "FS", "GS")] + [table("GDTR"), seg("LDTR"), table("IDTR"), seg("TR")]
    if layout == 5:
        out.append(f"EFER =     0x{v('GUEST_IA32_EFER', 16)}  PAT = 0x{v('GUEST_IA32_PAT', 16)}")
    else:
        loaded = f["VM_ENTRY_CONTROLS"] >> 15 & 1
        out.append(f"EFER= 0x{v('GUEST_IA32_EFER', 16)}" + ("" if loaded else " (effective)"))
        out.append(f"PAT = 0x{v('GUEST_IA32_PAT', 16)}")
    out.append(f"DebugCtl = 0x{v('GUEST_IA32_DEBUGCTL', 16)}  DebugExceptions = 0x{v('GUEST_PENDING_DBG_EXCEPTIONS', 16)}")
    out.append(f"Interruptibility = {v('GUEST_INTERRUPTIBILITY_INFO', 8)}  ActivityState = {v('GUEST_ACTIVITY_STATE', 8)}")
    if secondary >> 9 & 1:
        out.append("InterruptStatus = 0000")
    out.append("*** Host State ***")
    out.append(f"RIP = 0x{v('HOST_RIP', 16)}  RSP = 0x{v('HOST_RSP', 16)}")
    out.append(" ".join(f"{s}={v(f'HOST_{s}_SELECTOR', 4)}" for s in ("CS", "SS", "DS", "ES", "FS", "GS", "TR")))
    out.append(f"FSBase={v('HOST_FS_BASE', 16)} GSBase={v('HOST_GS_BASE', 16)} TRBase={v('HOST_TR_BASE', 16)}")
    out.append(f"GDTBase={v('HOST_GDTR_BASE', 16)} IDTBase={v('HOST_IDTR_BASE', 16)}")
    out.append(f"CR0={v('HOST_CR0', 16)} CR3={v('HOST_CR3', 16)} CR4={v('HOST_CR4', 16)}")
    out.append(f"Sysenter RSP={v('HOST_IA32_SYSENTER_ESP', 16)} CS:RIP={v('HOST_IA32_SYSENTER_CS', 4)}:{v('HOST_IA32_SYSENTER_EIP', 16)}")
    if layout == 5:
        out.append(f"EFER = 0x{v('HOST_IA32_EFER', 16)}  PAT = 0x{v('HOST_IA32_PAT', 16)}")
    else:
        out += [f"EFER= 0x{v('HOST_IA32_EFER', 16)}", f"PAT = 0x{v('HOST_IA32_PAT', 16)}"]
    out.append("*** Control State ***")
    if layout == 5:
        out.append(f"PinBased={v('PIN_BASED_VM_EXEC_CONTROL', 8)} CPUBased={v('CPU_BASED_VM_EXEC_CONTROL', 8)} SecondaryExec={secondary:08x}")
        out.append(f"EntryControls={v('VM_ENTRY_CONTROLS', 8)} ExitControls={v('VM_EXIT_CONTROLS', 8)}")
    else:
        out.append(f"CPUBased=0x{v('CPU_BASED_VM_EXEC_CONTROL', 8)} SecondaryExec=0x{secondary:08x} TertiaryExec=0x{v('TERTIARY_VM_EXEC_CONTROL', 16)}")
        out.append(f"PinBased=0x{v('PIN_BASED_VM_EXEC_CONTROL', 8)} EntryControls={v('VM_ENTRY_CONTROLS', 8)} ExitControls={v('VM_EXIT_CONTROLS', 8)}")
    out.append(f"ExceptionBitmap={v('EXCEPTION_BITMAP', 8)} PFECmask={v('PAGE_FAULT_ERROR_CODE_MASK', 8)} PFECmatch={v('PAGE_FAULT_ERROR_CODE_MATCH', 8)}")
    out.append(f"VMEntry: intr_info={v('VM_ENTRY_INTR_INFO_FIELD', 8)} errcode={v('VM_ENTRY_EXCEPTION_ERROR_CODE', 8)} ilen={v('VM_ENTRY_INSTRUCTION_LEN', 8)}")
    out.append(f"VMExit: intr_info={v('VM_EXIT_INTR_INFO', 8)} errcode={v('VM_EXIT_INTR_ERROR_CODE', 8)} ilen={v('VM_EXIT_INSTRUCTION_LEN', 8)}")
    out.append(f"        reason={v('VM_EXIT_REASON', 8)} qualification={v('EXIT_QUALIFICATION', 16)}")
    out.append(f"IDTVectoring: info={v('IDT_VECTORING_INFO_FIELD', 8)} errcode={v('IDT_VECTORING_ERROR_CODE', 8)}")
    out.append(f"TSC Offset = 0x{v('TSC_OFFSET', 16)}")
    if f["CPU_BASED_VM_EXEC_CONTROL"] >> 21 & 1:
        if layout == 5:
            out.append(f"TPR Threshold = 0x{f['TPR_THRESHOLD']:02x}")
            out.append(f"virt-APIC addr = 0x{v('VIRTUAL_APIC_PAGE_ADDR', 16)}")
        else:
            out.append(f"SVI|RVI = 00|00 TPR Threshold = 0x{f['TPR_THRESHOLD']:02x}")
            out.append(f"APIC-access addr = 0x{v('APIC_ACCESS_ADDR', 16)} virt-APIC addr = 0x{v('VIRTUAL_APIC_PAGE_ADDR', 16)}")
    if secondary & 2:
        out.append(f"EPT pointer = 0x{v('EPT_POINTER', 16)}")
    out.append(f"PLE Gap={v('PLE_GAP', 8)} Window={v('PLE_WINDOW', 8)}")
    if secondary >> 5 & 1:
        out.append(f"Virtual processor ID = 0x{v('VIRTUAL_PROCESSOR_ID', 4)}")
    return out


def valid_vmcb():
    return {"intercepts": (0xBC4C8027, 0x2E7F), "asid": 1, "nested_ctl": 1, "event_inj": 0, "efer": 0x1D01, "cr0": 0x80050033, "cr3": 0x2C0A000,
            "cr4": 0x3506F0, "dr6": 0xFFFF0FF0, "dr7": 0x400, "gpat": 0x0007040600070406, "nested_cr3": 0x10A2C9000, "cs_attrib": 0xA9B}


def kvm_vmcb_lines(f):
    """The lines of dump_vmcb, 6.x."""
    def c(key, text):
        return f"{key + ':':20}{text}"
    out = ["SVM: VMCB 00000000deadbeef, last attempted VMRUN on CPU 5", "VMCB Control Area:", c("cr_read", "0010"), c("cr_write", "0110"),
           c("dr_read", "00ff"), c("dr_write", "00ff"), c("exceptions", "00060042"), c("intercepts", "%08x %08x" % f["intercepts"]),
           c("pause filter count", "3000"), c("pause filter threshold", "128"), c("iopm_base_pa", "000000010b2c4000"), c("msrpm_base_pa", "000000010c1d2000"),
           c("tsc_offset", "fffffff012345678"), c("asid", f["asid"]), c("tlb_ctl", "0"), c("int_ctl", "03000200"), c("int_vector", "00000000"),
           c("int_state", "00000000"), c("exit_code", "ffffffff"), c("exit_info1", "0" * 16), c("exit_info2", "0" * 16), c("exit_int_info", "00000000"),
           c("exit_int_info_err", "00000000"), c("nested_ctl", f["nested_ctl"]), c("nested_cr3", f"{f['nested_cr3']:016x}"), c("avic_vapic_bar", "0" * 16),
           c("ghcb", "0" * 16), c("event_inj", f"{f['event_inj']:08x}"), c("event_inj_err", "00000000"), c("virt_ext", "2"), c("next_rip", "0" * 16),
           c("avic_backing_page", "0" * 16), c("avic_logical_id", "0" * 16), c("avic_physical_id", "0" * 16), c("vmsa_pa", "0" * 16),
           "VMCB State Save Area:"]
    for s in ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr"):
        attrib = {"cs": f["cs_attrib"], "tr": 0x8B, "gdtr": 0, "idtr": 0, "ldtr": 0}.get(s, 0xC93)
        out.append(f"{s + ':':5} s: {0x10 if s == 'cs' else 0:04x} a: {attrib:04x} l: ffffffff b: {0:016x}")
    out.append(f"vmpl: 0   cpl:  0               efer:          {f['efer']:016x}")

    def pair(a, b, values=f):
        return f"{a + ':':15} {values.get(a, 0):016x} {b + ':':13} {values.get(b, 0):016x}"
    out += [pair("cr0", "cr2"), pair("cr3", "cr4"), pair("dr6", "dr7"), pair("rip", "rflags"), pair("rsp", "rax"), pair("star", "lstar"),
            pair("cstar", "sfmask"), pair("kernel_gs_base", "sysenter_cs"), pair("sysenter_esp", "sysenter_eip"), pair("gpat", "dbgctl"),
            pair("br_from", "br_to"), pair("excp_from", "excp_to")]
    return out


def kvm_vmcb_of(state, layout):
    """The lines of dump_vmcb for all fields of a VMCB. layout 5: 5.4 to 5.10, without the 6.x head and vmpl."""
    g = state.get

    def c(key, text):
        return f"{key + ':':20}{text}"
    out = [] if layout == 5 else ["SVM: VMCB 00000000deadbeef, last attempted VMRUN on CPU 1"]
    out += ["VMCB Control Area:", c("cr_read", f"{g('INTERCEPT_CR_READ'):04x}"), c("cr_write", f"{g('INTERCEPT_CR_WRITE'):04x}"),
            c("dr_read", f"{g('INTERCEPT_DR_READ'):04x}"), c("dr_write", f"{g('INTERCEPT_DR_WRITE'):04x}"),
            c("exceptions", f"{g('INTERCEPT_EXCEPTIONS'):08x}")]
    if layout == 5:
        out.append(c("intercepts", f"{g('INTERCEPT_MISC2') << 32 | g('INTERCEPT_MISC1'):016x}"))
    else:
        out.append(c("intercepts", f"{g('INTERCEPT_MISC1'):08x} {g('INTERCEPT_MISC2'):08x}"))
    out += [c("iopm_base_pa", f"{g('IOPM_BASE_PA'):016x}"), c("msrpm_base_pa", f"{g('MSRPM_BASE_PA'):016x}"), c("tsc_offset", f"{g('TSC_OFFSET'):016x}"),
            c("asid", g("GUEST_ASID")), c("tlb_ctl", g("TLB_CONTROL")), c("int_ctl", f"{g('INT_CTL'):08x}"), c("int_vector", f"{g('INT_VECTOR'):08x}"),
            c("int_state", f"{g('INTERRUPT_SHADOW'):08x}"), c("exit_code", f"{g('EXITCODE') & 0xffffffff:08x}"), c("exit_info1", f"{g('EXITINFO1'):016x}"),
            c("exit_info2", f"{g('EXITINFO2'):016x}"), c("exit_int_info", f"{g('EXITINTINFO') & 0xffffffff:08x}"),
            c("nested_ctl", g("NESTED_CTL")), c("nested_cr3", f"{g('N_CR3'):016x}"), c("event_inj", f"{g('EVENTINJ') & 0xffffffff:08x}"),
            c("event_inj_err", f"{g('EVENTINJ') >> 32:08x}"), c("virt_ext" if layout == 6 else "lbr_ctl", g("VIRT_EXT")), c("next_rip", f"{g('NRIP'):016x}"),
            "VMCB State Save Area:"]
    for s in ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"):
        out.append(f"{s.lower() + ':':5} s: {g(s + '_SELECTOR'):04x} a: {g(s + '_ATTRIB'):04x} l: {g(s + '_LIMIT'):08x} b: {g(s + '_BASE'):016x}")
    cpl = f"cpl:            {g('CPL')}                efer:         {g('EFER'):016x}" if layout == 5 else \
        f"vmpl: 0   cpl:  {g('CPL')}               efer:          {g('EFER'):016x}"
    out.append(cpl)
    for a, b in (("cr0", "cr2"), ("cr3", "cr4"), ("dr6", "dr7"), ("rip", "rflags"), ("rsp", "rax"), ("star", "lstar"), ("cstar", "sfmask"),
                 ("kernel_gs_base", "sysenter_cs"), ("sysenter_esp", "sysenter_eip")):
        out.append(f"{a + ':':15} {g(a.upper()):016x} {b + ':':13} {g(b.upper()):016x}")
    out.append(f"{'gpat:':15} {g('G_PAT'):016x} dbgctl:       {0:016x}")
    return out


def dmesg(lines):
    return "".join(f"[{1234.5 + i / 1000:12.6f}] {line}\n" for i, line in enumerate(lines))


def journal(lines):
    """As journalctl prints it, with lines of other programs in between."""
    out = ["Nov 21 09:14:01 vmhost systemd[1]: Started Session 12 of User carol.\n"]
    for i, line in enumerate(lines):
        out.append(f"Nov 21 09:14:02 vmhost kernel: kvm_intel: {line}\n")
        if i % 7 == 3:
            out.append("Nov 21 09:14:02 vmhost qemu-system-x86[4711]: RIP=0000000000001000 CS =0000 reason=none\n")
    return "".join(out)


def mailed(lines):
    return "On Friday somebody wrote:\r\n" + "".join(f"> <3>[  77.{i:06}]    {line}\r\n" for i, line in enumerate(lines)) + "Any idea?\r\n"
