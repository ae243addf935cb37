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
from vmcs_gallery import GALLERY  # noqa: E402

NESTOR = None
HERE = os.path.dirname(os.path.abspath(__file__))
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
