#!/usr/bin/env python3
"""Broken VMCSs and VMCBs, each made by a guest program: "vmentry why" names exactly the broken rows, and so does
vmcs-check on the same state as JSON and in the layouts of Linux 5.x and 6.x.

    test_gallery.py NESTOR GALLERY-ELF ENGINE [TEST-NAME...]
"""
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../golden")]
import vmcs_dumps as dumps  # noqa: E402
from monitor_client import Monitor  # noqa: E402
from vmcs_gallery import GALLERY  # noqa: E402

NESTOR = ELF = ENGINE = None
LASTS = 1

# Where the processor at hand knows more than a dump tells: it is in IA-32e mode; it does not offer the control.
LIVE = {"host EFER without LMA": {"HOST_EFER_LMA_LME"}, "entry to SMM": {"ENTRY_SMM", "INT_SMI", "ENTRY_ALLOWED"}}
JSON = {"entry to SMM": LIVE["entry to SMM"]}

VMCB_GALLERY = {
    "EFER without SVME": ({"EFER": 0xD00}, {"SVM_EFER_SVME"}),
    "EFER reserved bit": ({"EFER": 0x1D00 | 1 << 30}, {"SVM_EFER_MBZ"}),
    "CR0.NW without CD": ({"CR0": 0xA0050033}, {"SVM_CR0_CD_NW"}),
    "CR0 high half": ({"CR0": 0x180050033}, {"SVM_CR0_HI"}),
    "CR3 beyond the width": ({"CR3": 1 << 55}, {"SVM_CR3_MBZ"}),
    "CR4 reserved bit": ({"CR4": 0x6A0 | 1 << 15}, {"SVM_CR4_MBZ"}),
    "CR4 high half": ({"CR4": 0x6A0 | 1 << 40}, {"SVM_CR4_MBZ"}),
    "DR6 high half": ({"DR6": 0x1FFFF0FF0}, {"SVM_DR6_HI"}),
    "DR7 high half": ({"DR7": 0x100000400}, {"SVM_DR7_HI"}),
    "long mode without PAE": ({"CR4": 0x680}, {"SVM_LME_PG_NOPAE"}),
    "long mode without PE": ({"CR0": 0x80050032}, {"SVM_LME_PG_NOPE"}),
    "CS with L and D": ({"CS_ATTRIB": 0xE9B}, {"SVM_LME_PG_PAE_L_D"}),
    "no VMRUN intercept": ({"INTERCEPT_MISC2": 2}, {"SVM_VMRUN_INTERCEPT"}),
    "MSR map beyond memory": ({"MSRPM_BASE_PA": 0xFFFFFFFFFF000}, {"SVM_MSRPM"}),
    "I/O map beyond memory": ({"IOPM_BASE_PA": 0xFFFFFFFFFF000}, {"SVM_IOPM"}),
    "ASID 0": ({"GUEST_ASID": 0}, {"SVM_ASID0"}),
    "injection type 1": ({"EVENTINJ": 0x80000120}, {"SVM_INJ_TYPE"}),
    "injection type 5": ({"EVENTINJ": 0x80000502}, {"SVM_INJ_TYPE"}),
    "exception of vector 2": ({"EVENTINJ": 0x80000302}, {"SVM_INJ_VEC"}),
    "exception of vector 32": ({"EVENTINJ": 0x80000320}, {"SVM_INJ_VEC"}),
    "#OF in 64-bit mode": ({"EVENTINJ": 0x80000304}, {"SVM_INJ_MODE"}),
    "G_PAT with type 2": ({"G_PAT": 0x0207}, {"SVM_NP_GPAT"}),
    "nested CR3 beyond the width": ({"N_CR3": 1 << 60}, {"SVM_NCR3"}),
    "two at once": ({"GUEST_ASID": 0, "DR7": 1 << 33}, {"SVM_ASID0", "SVM_DR7_HI"}),
}
VALID_VMCB = {
    "INTERCEPT_MISC1": 0x18000000, "INTERCEPT_MISC2": 3, "GUEST_ASID": 1, "NESTED_CTL": 1, "N_CR3": 0x200000, "EFER": 0x1D00, "CR0": 0x80050033,
    "CR3": 0x103000, "CR4": 0x6A0, "DR6": 0xFFFF0FF0, "DR7": 0x400, "G_PAT": 0x0007040600070406, "RFLAGS": 2, "RIP": 0x100000, "RSP": 0x100000,
    "CS_SELECTOR": 8, "CS_ATTRIB": 0xA9B, "CS_LIMIT": 0xFFFFFFFF, "SS_SELECTOR": 16, "SS_ATTRIB": 0xC93, "SS_LIMIT": 0xFFFFFFFF,
}


def fields(what):
    out = {}
    for line in subprocess.check_output([NESTOR, "list", what], text=True).splitlines():
        words = line.split()
        out[words[1] if what == "vmcs-fields" else words[2]] = words
    return out


def check(text, *args):
    r = subprocess.run([NESTOR, "vmcs-check", "-", "--json", *args], input=text.encode(), capture_output=True, timeout=60)
    if r.returncode not in (0, 1):
        raise AssertionError(r.stderr.decode())
    rows = json.loads(r.stdout)["rows"]
    return tuple({x["id"] for x in rows if x["outcome"] == outcome} for outcome in ("fail", "not evaluated"))


class Gallery(unittest.TestCase):
    maxDiff = None

    def begin(self, cases, *args):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        table = struct.pack("<II", len(cases), 0)
        for flags, changes in cases:
            table += struct.pack("<II", len(changes), flags)
            for field, size, value in changes:
                table += struct.pack("<IIQ", field, size, value)
        module, path = os.path.join(folder.name, "table"), os.path.join(folder.name, "monitor")
        with open(module, "wb") as f:
            f.write(table)
        self.nestor = subprocess.Popen([NESTOR, "run", ELF, "--initrd", module, "--debug-exit", "--engine", ENGINE, "--timeout", "100", "--memory", "64M",
                                        "--symbols", ELF, "--monitor", "unix:" + path, "--monitor-wait", *args],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.addCleanup(self.end)
        self.m = Monitor(path)
        for place in ("gallery_valid", "gallery_refused", "gallery_entered"):
            self.m("break " + place)

    def end(self):
        self.m.close()
        if self.nestor.poll() is None:
            self.nestor.kill()
        self.nestor.communicate()

    def why(self):
        text = self.m("vmentry why")
        failed = set(re.findall(r"^FAIL: (\w+)", text, re.M))
        self.assertIn(f"{len(failed)} of ", text)
        return failed, text

    def finish(self):
        self.m("delete")
        end = self.m.go()
        self.assertIn("ended: the guest's exit port", end)
        self.assertEqual(self.nestor.wait(30), 1)

    def state(self):
        return {k: int(v, 16) for k, v in re.findall(r"^(\w+) +(0x[0-9a-f]+)$", self.m("vmcs"), re.M)}

    def test_vmcs(self):
        encodings = {name: int(words[0], 16) for name, words in fields("vmcs-fields").items()}
        valid = dumps.valid()
        known = {k: v for k, v in valid.items() if not k.startswith(("HOST_", "VM_EXIT_INTR", "VM_EXIT_INSTR", "VM_EXIT_REASON", "EXIT_QUAL", "IDT_"))}
        cases = [(LASTS, [(encodings[k], 0, v) for k, v in known.items() if k in encodings and k not in ("TERTIARY_VM_EXEC_CONTROL", "PLE_GAP", "PLE_WINDOW")])]
        used = []
        for name, (change, expected) in GALLERY.items():
            f = dict(valid)
            change(f)
            changed = {k: v for k, v in f.items() if valid.get(k) != v}
            if all(k in encodings for k in changed):
                used.append((name, expected))
                cases.append((0, [(encodings[k], 0, v) for k, v in changed.items()]))
        self.assertGreaterEqual(len(used), 60)
        self.begin(cases)
        self.assertIn("<gallery_valid", self.m.go())
        self.assertEqual(self.why()[0], set())
        dumped = 0
        for name, expected in used:
            with self.subTest(name):
                stop = self.m.go()
                self.assertIn("<gallery_refused", stop)
                failed, text = self.why()
                self.assertEqual(failed, LIVE.get(name, expected), text)
                self.assertIn("satisfied by", text)
                # The same from a dump.
                self.assertEqual(check(self.m("vmcs json"))[0], JSON.get(name, expected))
                state = self.state()
                for layout in (5, 6):
                    got, unknown = check(dumps.dmesg(dumps.kvm_lines({**valid, **state}, layout)))
                    self.assertEqual(got, expected - unknown)
                    dumped += got == expected
        self.assertGreater(dumped, 2 * 60)
        self.finish()

    def test_vmcb(self):
        places = {name: (int(words[0], 16), int(words[1])) for name, words in fields("vmcb-fields").items()}
        self.assertGreaterEqual(len(VMCB_GALLERY), 20)

        def changes(f):
            return [(*places[k], v) for k, v in f.items()]
        cases = [(LASTS, changes(VALID_VMCB))] + [(0, changes(f)) for f, _ in VMCB_GALLERY.values()]
        self.begin(cases, "--cpu", "amd")
        self.m.go()
        for name, (_, expected) in VMCB_GALLERY.items():
            with self.subTest(name):
                self.assertIn("<gallery_refused", self.m.go())
                failed, text = self.why()
                self.assertEqual(failed, expected, text)
                self.assertIn("satisfied by", text)
                self.assertEqual(check(self.m("vmcb json"))[0], expected)
                state = self.state()
                for layout in (5, 6):
                    got, unknown = check(dumps.dmesg(dumps.kvm_vmcb_of(state, layout)))
                    self.assertEqual(got, expected - unknown)
        self.finish()


if __name__ == "__main__":
    NESTOR, ELF, ENGINE = os.path.abspath(sys.argv.pop(1)), sys.argv.pop(1), sys.argv.pop(1)
    unittest.main()
