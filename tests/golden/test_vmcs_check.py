#!/usr/bin/env python3
"""nestor vmcs-check and explain: dumps in the layouts of Linux 5.x and 6.x and as JSON; exactly the broken rows fail.

    test_vmcs_check.py NESTOR [TEST-NAME...]

NESTOR_UPDATE=1 in the environment rewrites the golden files in vmcs/.
"""
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import vmcs_dumps as dumps  # noqa: E402

NESTOR = None
HERE = os.path.dirname(os.path.abspath(__file__))
UNRESTRICTED = 1 << 7


def run(*args, data=None):
    return subprocess.run([NESTOR, *args], input=data, capture_output=True, timeout=60)


def check(text, *args):
    data = text if isinstance(text, bytes) else text.encode()
    r = run("vmcs-check", "-", "--json", *args, data=data)
    if r.returncode not in (0, 1):
        raise AssertionError(r.stderr.decode())
    result = json.loads(r.stdout)
    assert (result["failed"] != 0) == (r.returncode == 1)
    return result


def rows(result, outcome):
    return {row["id"] for row in result["rows"] if row["outcome"] == outcome}


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


# What is done to a valid state, and the rows that must fail: those and no others.
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


class VmcsCheck(unittest.TestCase):
    maxDiff = None

    def test_valid(self):
        for layout in (5, 6):
            for wrap in (dumps.dmesg, dumps.journal, dumps.mailed):
                r = check(wrap(dumps.kvm_lines(dumps.valid(), layout)))
                self.assertEqual(rows(r, "fail"), set(), (layout, wrap))
                self.assertEqual(r["exit_reason"], "0x80000021")
                unknown = rows(r, "not evaluated")
                # What dump_vmcs does not print, and what only memory or the processor knows.
                self.assertEqual({i for i in unknown if not i.startswith(("MSRL_", "LINK_"))},
                                 {"EXEC_CR3_TARGET_COUNT", "EXEC_MSR_BITMAP", "EXEC_TPR_THRESHOLD_VTPR", "EXIT_MSR_STORE_ADDR",
                                  "EXIT_MSR_LOAD_ADDR", "ENTRY_MSR_LOAD_ADDR"})

    def test_gallery(self):
        for name, (change, expected) in GALLERY.items():
            f = dumps.valid()
            change(f)
            for layout in (5, 6):
                with self.subTest(name, layout=layout):
                    r = check(dumps.dmesg(dumps.kvm_lines(f, layout)))
                    self.assertEqual(rows(r, "fail"), expected)
            with self.subTest(name, layout="json"):
                r = check(json.dumps({k: hex(v) for k, v in f.items()}))
                self.assertEqual(rows(r, "fail"), expected)
                for row in r["rows"]:
                    if row["outcome"] == "fail":
                        self.assertTrue(row["satisfied_by"], row["id"])

    def test_repairs_satisfy(self):
        """Advice of one bit or value, followed, makes the row pass or not apply."""
        for name, (change, expected) in GALLERY.items():
            f = dumps.valid()
            change(f)
            for row in check(json.dumps({k: hex(v) for k, v in f.items()}))["rows"]:
                for advice in row.get("satisfied_by", []):
                    g = dict(f)
                    for part in advice.split(" and "):
                        words = part.split()
                        if words[1] == "=":
                            g[words[0]] = int(words[2], 16)
                        else:
                            g[words[1]] = g.get(words[1], 0) & ~(1 << int(words[3])) | (words[0] == "set") << int(words[3])
                    with self.subTest(name, advice=advice):
                        self.assertNotIn(row["id"], rows(check(json.dumps({k: hex(v) for k, v in g.items()})), "fail"))

    def test_several_dumps(self):
        good, bad = dumps.valid(), dumps.valid()
        bad["GUEST_TR_AR_BYTES"] = 0x89
        text = dumps.dmesg(dumps.kvm_lines(bad, 6)) + "noise\n" + dumps.dmesg(dumps.kvm_lines(good, 5))
        self.assertEqual(rows(check(text), "fail"), set())
        self.assertEqual(rows(check(text, "--dump", "1"), "fail"), {"SEG_TR_TYPE"})
        self.assertEqual(check(text)["dumps"], 2)

    def test_parts_in_another_order(self):
        f = dumps.valid()
        f["GUEST_TR_AR_BYTES"] = 0x89
        lines = dumps.kvm_lines(f, 6)
        host, control = lines.index("*** Host State ***"), lines.index("*** Control State ***")
        r = check(dumps.dmesg(lines[control:] + lines[host:control] + lines[:host]))
        self.assertEqual((rows(r, "fail"), r["dumps"]), ({"SEG_TR_TYPE"}, 1))

    def test_a_lost_line_is_reported(self):
        lines = [s for s in dumps.kvm_lines(dumps.valid(), 6) if not s.startswith("RFLAGS")]
        r = check(dumps.dmesg(lines))
        self.assertIn("RFLAGS_RSVD", rows(r, "not evaluated"))
        row = next(x for x in r["rows"] if x["id"] == "RFLAGS_RSVD")
        self.assertEqual((row["missing"], row["fields"]), (["GUEST_RFLAGS"], {"GUEST_RFLAGS": None}))

    def test_cut_value(self):
        text = dumps.dmesg(dumps.kvm_lines(dumps.valid(), 6))
        cut = text[:text.index("ExitControls=") + len("ExitControls=002f")]
        r = check(cut)
        self.assertTrue(r["cut"])
        self.assertIn("EXIT_ALLOWED", rows(r, "not evaluated"))
        self.assertEqual(rows(r, "fail"), set())

    def test_capabilities_in_json(self):
        f = {k: hex(v) for k, v in dumps.valid().items()}
        f["capabilities"] = {"IA32_VMX_PROCBASED_CTLS2": hex(0x7F << 32), "MAXPHYADDR": 32}
        self.assertEqual(rows(check(json.dumps(f)), "fail"), {"EXEC_SEC_ALLOWED", "EXEC_VAPIC_ADDR", "EXEC_EPTP_RSVD", "HOST_CR3_WIDTH"})

    def bad_input(self, words, data):
        r = run("vmcs-check", "-", data=data)
        self.assertEqual((r.returncode, r.stdout), (2, b""), r.stderr)
        self.assertEqual(r.stderr.count(b"\n"), 1)
        self.assertIn(words.encode(), r.stderr)

    def test_bad_input(self):
        self.bad_input("no VMCS dump in it", b"")
        self.bad_input("no VMCS dump in it", b"hello\n")
        self.bad_input("is not text", b"*** Guest State ***\0")
        self.bad_input("no field with a value", b"*** Guest State ***\n")
        self.bad_input("no field with a value", b"{}")
        self.bad_input("expected a string", b"{1: 2}")
        self.bad_input("is no VMCS field", b'{"GUEST_FROB": "0x1"}')
        self.bad_input("does not fit", b'{"GUEST_CS_SELECTOR": "0x10000"}')
        self.bad_input("no number", b'{"GUEST_CR0": "frob"}')
        self.bad_input("line 3", b'{"GUEST_CR0": "0x1",\n\n"GUEST_CR0" 1}')
        self.bad_input("something follows", b'{"GUEST_CR0": "0x1"} x')
        self.bad_input("nested", b'{"a":' * 20)
        self.bad_input("does not fit", b"*** Guest State ***\nCS:   sel=0x12345, attr=0x0a09b\n")
        self.bad_input("no VMCS dump", b"\xff\xfe\xfd")
        for args, words in ((["vmcs-check"], b"a file is missing"), (["vmcs-check", "/nonexistent"], b"cannot be opened"), (["vmcs-check", "/"], b"cannot be"),
                            (["explain"], b"is missing"), (["explain", "FROB"], b"no check is called"), (["vmcs-check", "x", "--dump", "0"], b"counted from 1")):
            r = run(*args)
            self.assertEqual(r.returncode, 2)
            self.assertIn(words, r.stderr)

    def test_damaged_files(self):
        """Truncated, shuffled, flipped: an answer or a line, never a crash."""
        rng = random.Random(1)
        text = dumps.journal(dumps.kvm_lines(dumps.valid(), 6)).encode()
        source = json.dumps({k: hex(v) for k, v in dumps.valid().items()}).encode()
        for n in range(150):
            data = bytearray(text if n & 1 else source)
            kind = n % 3
            if kind == 0:
                data = data[:rng.randrange(len(data))]
            elif kind == 1:
                for _ in range(rng.randrange(1, 40)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
            else:
                lines = bytes(data).splitlines(True)
                rng.shuffle(lines)
                data = b"".join(lines)
            self.assertIn(run("vmcs-check", "-", data=bytes(data)).returncode, (0, 1, 2))

    def test_vmcb(self):
        for wrap in (dumps.dmesg, dumps.journal, dumps.mailed):
            r = check(wrap(dumps.kvm_vmcb_lines(dumps.valid_vmcb())))
            # KVM's dump does not show S_CET.
            self.assertEqual((rows(r, "fail"), rows(r, "not evaluated")), (set(), {"SVM_S_CET_MBZ"}))
        for change, expected in (({"asid": 0}, {"SVM_ASID0"}), ({"efer": 0xD01}, {"SVM_EFER_SVME"}), ({"cr0": 0xA0050033}, {"SVM_CR0_CD_NW"}),
                                 ({"intercepts": (0x3FC4, 0x0E)}, {"SVM_VMRUN_INTERCEPT"}), ({"event_inj": 0x80000502}, {"SVM_INJ_TYPE"}),
                                 ({"event_inj": 0x80000302}, {"SVM_INJ_VEC"}), ({"cr4": 0x3506D0}, {"SVM_LME_PG_NOPAE"}),
                                 ({"dr7": 0x100000400}, {"SVM_DR7_HI"}), ({"gpat": 0x0207}, {"SVM_NP_GPAT"}),
                                 ({"nested_cr3": 1 << 60}, {"SVM_NCR3"}), ({"cs_attrib": 0xE9B}, {"SVM_LME_PG_PAE_L_D"})):
            f = dumps.valid_vmcb()
            f.update(change)
            with self.subTest(change):
                r = check(dumps.dmesg(dumps.kvm_vmcb_lines(f)))
                self.assertEqual(rows(r, "fail"), expected)
        lines = [s for s in dumps.kvm_vmcb_lines(dumps.valid_vmcb()) if not s.startswith("asid")]
        self.assertEqual(rows(check(dumps.dmesg(lines)), "not evaluated"), {"SVM_ASID0", "SVM_S_CET_MBZ"})
        self.assertIn(b"VMEXIT_INVALID", run("explain", "svm_asid0").stdout)
        self.bad_input("no field with a value", b"VMCB Control Area:\n")
        self.bad_input("not text", b"VMCB Control Area:\n\0")

    def test_golden(self):
        for name in ("oops-5", "oops-6", "explain"):
            if name == "explain":
                got = run("explain", "pdbg_bs").stdout.decode()
            else:
                r = subprocess.run([NESTOR, "vmcs-check", name + ".log"], cwd=os.path.join(HERE, "vmcs"), capture_output=True)
                got = r.stdout.decode()
            path = os.path.join(HERE, "vmcs", name + ".txt")
            if os.environ.get("NESTOR_UPDATE"):
                open(path, "w").write(got)
            with open(path) as f:
                self.assertEqual(got, f.read(), name)

    def test_explain_every_row(self):
        listed = [line.split()[0] for line in run("list", "vmentry-checks").stdout.decode().splitlines() if not line.startswith(" ")]
        for i in listed:
            r = run("explain", i, "--json")
            self.assertEqual(r.returncode, 0, i)
            self.assertEqual(json.loads(r.stdout)["id"], i)


def write_logs():
    """The two logs of the golden test."""
    f = dumps.valid()
    f.update(VM_ENTRY_INTR_INFO_FIELD=0x80000030, GUEST_RFLAGS=0x46, GUEST_TR_AR_BYTES=0x89)
    open(os.path.join(HERE, "vmcs/oops-5.log"), "w").write(dumps.journal(dumps.kvm_lines(f, 5)))
    f = dumps.valid()
    f.update(GUEST_RFLAGS=0x346, GUEST_INTERRUPTIBILITY_INFO=1, GUEST_CR4=0x3706F0, VM_EXIT_REASON=0x80000021)
    open(os.path.join(HERE, "vmcs/oops-6.log"), "w").write(dumps.dmesg(["kvm: entry failed, hardware error 0x80000021"] + dumps.kvm_lines(f, 6)))


if __name__ == "__main__":
    NESTOR = os.path.abspath(sys.argv.pop(1))
    if os.environ.get("NESTOR_UPDATE"):
        write_logs()
    unittest.main()
