#!/usr/bin/env python3
"""--vmx-cap and --svm-cap: what a guest reads, what hypervisors do with it, and what is refused.

    test_caps.py NESTOR [TEST-NAME...]
"""
import re
import struct
import subprocess
import sys
import tempfile
import unittest

NESTOR = None
BASE = 0x100000
DEFAULTS = {}


def listed():
    text = subprocess.check_output([NESTOR, "list", "vmx-caps"], text=True)
    return dict(line.split() for line in text.splitlines())


def multiboot(code):
    flags = 1 << 16
    return struct.pack("<8I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, BASE, BASE, 0, 0, BASE + 32) + code


# RDMSR for ECX at BASE + 0x400, EDX:EAX printed as eight bytes on the serial port; exit port 0. #GP: exit port 1.
READER = multiboot(b"\x0f\x01\x1d" + struct.pack("<I", BASE + 0x300) + b"\xb9MSR_" + b"\x0f\x32" + b"\x89\xd3\x66\xba\xf8\x03" +
                   b"\xbe\x04\0\0\0" + b"\xee\xc1\xe8\x08\x4e\x75\xf9" + b"\x89\xd8\xbe\x04\0\0\0" + b"\xee\xc1\xe8\x08\x4e\x75\xf9" +
                   b"\xb8\0\0\0\0\xe7\xf4\xf4")
GP_HANDLER = BASE + 0x200


def reader(msr):
    image = READER.replace(b"MSR_", struct.pack("<I", msr))
    image = image.ljust(0x200, b"\0") + b"\xb8\x01\0\0\0\xe7\xf4\xf4"
    image = image.ljust(0x280, b"\0") + struct.pack("<HHBBH", GP_HANDLER & 0xFFFF, 0x10, 0, 0x8E, GP_HANDLER >> 16)
    image = image.ljust(0x300, b"\0") + struct.pack("<HI", 14 * 8 - 1, BASE + 0x280 - 13 * 8)
    return image.ljust(0x800, b"\0")


class Caps(unittest.TestCase):
    def run_nestor(self, *args):
        return subprocess.run([NESTOR, *args], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)

    def rdmsr(self, msr, *caps):
        with tempfile.NamedTemporaryFile(suffix=".bin") as f:
            f.write(reader(msr))
            f.flush()
            args = [x for c in caps for x in ("--vmx-cap", c)]
            r = self.run_nestor("run", f.name, "--debug-exit", "--timeout", "30", *args)
        self.assertIn(r.returncode, (1, 3), r.stderr)
        return None if r.returncode == 3 else struct.unpack("<Q", r.stdout)[0]

    def refused(self, words, *caps):
        args = [x for c in caps for x in ("--vmx-cap", c)]
        r = self.run_nestor("demo", *args)
        self.assertEqual((r.returncode, r.stdout, r.stderr.count(b"\n")), (2, b"", 1), (caps, r.stderr))
        self.assertIn(words.encode(), r.stderr)

    def test_control(self):
        unrestricted = 1 << (32 + 7)
        self.assertTrue(self.rdmsr(0x48B) & unrestricted)
        self.assertFalse(self.rdmsr(0x48B, "secondary.unrestricted_guest=0") & unrestricted)
        self.assertFalse(self.rdmsr(0x48B, "0x48b.39=0") & unrestricted)
        must = self.rdmsr(0x48B, "secondary.ept=must")
        self.assertEqual(must >> 1 & 0x100000001, 0x100000001)

    def test_default1_class(self):
        self.assertEqual((self.rdmsr(0x482) >> 15 & 1, self.rdmsr(0x48E) >> 15 & 1), (1, 0))
        self.assertEqual(self.rdmsr(0x48E, "primary.cr3_load_exiting=must") >> 15 & 1, 1)
        for msr in (0x48D, 0x48E, 0x48F, 0x490):
            self.assertIsNone(self.rdmsr(msr, "basic.true_controls=0"))

    def test_need_follows(self):
        value = self.rdmsr(0x48B, "secondary.ept=0") >> 32
        for bit in (1, 7, 17, 18, 22): # EPT, unrestricted guest, PML, #VE, mode-based execute
            self.assertFalse(value >> bit & 1, bit)
        self.assertEqual(self.rdmsr(0x48C, "secondary.ept=0") & 0xFFFFFFFF, 0)
        self.assertIsNone(self.rdmsr(0x48C, "secondary.ept=0,secondary.vpid=0"))
        self.assertIsNone(self.rdmsr(0x48B, "primary.secondary_controls=0"))
        self.assertIsNone(self.rdmsr(0x491, "secondary.vm_functions=0"))

    def test_other_msrs(self):
        self.assertEqual(self.rdmsr(0x485, "misc.cr3_targets=2") >> 16 & 0x1FF, 2)
        self.assertEqual(self.rdmsr(0x485, "misc.activity_hlt=0") >> 6 & 1, 0)
        self.assertEqual(self.rdmsr(0x486, "cr0_fixed0.16=1") >> 16 & 1, 1)
        self.assertEqual(self.rdmsr(0x489, "cr4_fixed1.20=0") >> 20 & 1, 0)
        self.assertEqual(self.rdmsr(0x48C, "ept_vpid.1g=0") >> 17 & 1, 0)
        self.assertEqual(self.rdmsr(0x48A, "vmcs_enum.highest_index=100") >> 1 & 0x1FF, 100)
        self.assertEqual(self.rdmsr(0x480, "basic.memory_type=0") >> 50 & 15, 0)
        whole = self.rdmsr(0x48C) & ~(1 << 16)
        self.assertEqual(self.rdmsr(0x48C, hex(0x48C) + "=" + hex(whole)), whole)

    def test_every_name(self):
        """Each control forced each way gives a processor, or one line."""
        good = 0
        for name, value in DEFAULTS.items():
            for force in ("0", "1", "must"):
                r = self.run_nestor("run", "/nonexistent", "--vmx-cap", f"{name}={force}")
                self.assertEqual((r.returncode, r.stderr.count(b"\n")), (2, 1), name)
        for name in [n for n, v in DEFAULTS.items() if v in ("1", "must") and n.split(".")[0] in ("pin", "primary", "secondary", "exit", "entry")]:
            word, control = name.split(".")
            r = self.run_nestor("demo", "--timeout", "30", "--vmx-cap", name + "=1")
            self.assertEqual(r.returncode, 0, (name, r.stdout, r.stderr))
            good += 1
        self.assertGreater(good, 40)

    def test_hypervisor_sees_it(self):
        """The demo's I/O exiting cannot be had: its guest's port accesses do not reach it."""
        r = self.run_nestor("demo", "--timeout", "30", "--vmx-cap", "primary.unconditional_io_exiting=0")
        self.assertEqual(r.returncode, 0)
        self.assertNotIn(b"I/O", r.stdout)
        r = self.run_nestor("demo", "--timeout", "30", "--vmx-cap", "primary.hlt_exiting=must", "--vmx-cap", "pin.nmi_exiting=must")
        self.assertEqual(r.returncode, 0, r.stdout)

    def test_refused(self):
        for words, *caps in (("secondary.ept, which is not offered", "secondary.ept=0,secondary.unrestricted_guest=1"),
                             ("secondary.ept, which is not offered", "secondary.unrestricted_guest=must", "secondary.ept=0"),
                             ("is not implemented", "secondary.encls_exiting=1"), ("is not implemented", "tertiary.hlat=1"),
                             ("must be 1 on every processor", "0x48d.1=0"), ("default1 class", "0x48e.47=0"),
                             ("no such control", "secondary.frob=0"), ("no such capability", "frob=0"), ("expected NAME=VALUE", "secondary.ept"),
                             ("expected 0 (may not be 1)", "secondary.ept=2"), ("would not behave so", "misc.0=0"), ("0 (UC) or 6", "basic.memory_type=3"),
                             ("would not behave so", "0x486=0x20"), ("VMXE", "cr4_fixed0.13=0"), ("fixed to 1 and to 0", "cr0_fixed0.16=1,cr0_fixed1.16=0"),
                             ("CR4", "cr4_fixed0.40=1"), ("page walks of length 4", "ept_vpid.walk_4=0"), ("memory type", "ept_vpid.uc=0,ept_vpid.wb=0"),
                             ("INVEPT", "ept_vpid.invept=0"), ("INVVPID", "ept_vpid.invvpid=0"), ("highest_index", "vmcs_enum.highest_index=1"),
                             ("no such capability MSR", "0x493.1=1"), ("bit from 0 to 63", "0x485.64=0"), ("0 or 1", "0x485.6=7")):
            with self.subTest(caps):
                self.refused(words, *caps)
        r = self.run_nestor("demo", "--cpu", "amd", "--vmx-cap", "secondary.ept=0")
        self.assertEqual((r.returncode, b"has no VMX" in r.stderr), (2, True))

    def test_svm(self):
        r = self.run_nestor("demo", "--cpu", "amd", "--timeout", "30", "--svm-cap", "vgif=0,pausefilter=0,vmcbclean=0")
        self.assertEqual(r.returncode, 0, r.stderr)
        r = self.run_nestor("demo", "--timeout", "30", "--svm-cap", "flushbyasid=0")
        self.assertIn(b"AuthenticAMD", r.stdout)
        for words, cap in ((b"no bit of CPUID", "avx=0"), (b"expected NAME=0", "npt"), (b"no bit of CPUID", "frob=1")):
            r = self.run_nestor("demo", "--cpu", "amd", "--svm-cap", cap)
            self.assertEqual((r.returncode, r.stderr.count(b"\n")), (2, 1))
            self.assertIn(words, r.stderr)


if __name__ == "__main__":
    NESTOR = sys.argv.pop(1)
    DEFAULTS = listed()
    unittest.main()
