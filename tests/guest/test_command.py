#!/usr/bin/env python3
"""The nestor command: exit statuses, the one line of an error, help and lists, and the demo.

    test_command.py NESTOR DEMO-ELF [TEST-NAME...]
"""
import os
import re
import struct
import subprocess
import sys
import tempfile
import unittest

from images import multiboot

NESTOR = DEMO = None
ENGINES = ("interp", "jit")


def run(*args, timeout=60):
    return subprocess.run([NESTOR, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)


class Command(unittest.TestCase):
    def image(self, code):
        f = tempfile.NamedTemporaryFile(suffix=".flat", delete=False)
        f.write(multiboot(code))
        f.close()
        self.addCleanup(os.unlink, f.name)
        return f.name

    def usage_error(self, words, *args):
        r = run(*args)
        self.assertEqual(r.returncode, 2, r.stderr)
        self.assertEqual(len(r.stderr.strip().splitlines()), 1, r.stderr)
        self.assertIn(words, r.stderr)

    def test_usage_errors(self):
        self.usage_error("unknown command 'frob'", "frob")
        self.usage_error("nothing to boot", "run")
        self.usage_error("unknown option '--frob'", "run", "--frob")
        self.usage_error("a value is missing", "run", "--memory")
        self.usage_error("a size from", "run", "--memory", "lots")
        self.usage_error("a size from", "run", "--memory", "99999999999G")
        self.usage_error("1 to 64", "run", "--smp", "65")
        self.usage_error("4M to 1G", "run", "--jit-cache", "1M")
        self.usage_error("/nonexistent/x: cannot be written", "run", "--jit-dump", "/nonexistent/x", self.image(b"\xf4"))
        self.usage_error("stdio, none or file:PATH", "run", "--serial", "tcp")
        self.usage_error("host or icount", "run", "--clock", "sundial")
        self.usage_error("seconds", "run", "--timeout", "-1")
        self.usage_error("unknown event 'frob'", "run", "--trace", "frob")
        self.usage_error("cannot be opened", "run", "/nonexistent")
        self.usage_error("not a bootable image", "run", __file__)
        self.usage_error("/nonexistent/x: cannot be written", "run", "--serial", "file:/nonexistent/x", __file__)
        image = self.image(b"\xf4")
        self.usage_error("frob", "run", image, "--cpu", "frob")
        self.usage_error("expected --clock host", "run", image, "--threads", "--clock", "icount")
        self.usage_error("expected --engine jit or interp", "run", image, "--threads", "--engine", "lockstep")
        self.usage_error("expected no --threads", "run", image, "--threads", "--gdb", "12345")
        self.usage_error("frob", "run", image, "--cpu", "intel,+frob")
        self.usage_error("--engine frob", "run", image, "--engine", "frob")
        self.usage_error("both IMAGE", "run", image, "--kernel", image)

    def test_exit_port(self):
        for value in (0, 1, 38, 63):
            r = run("run", self.image(b"\xb8" + struct.pack("<I", value) + b"\xe7\xf4\xf4"), "--debug-exit")
            self.assertEqual(r.returncode, (value << 1 | 1) & 0xFF, r.stderr)

    def test_halted_for_ever(self):
        r = run("run", self.image(b"\xfa\xf4"))
        self.assertEqual(r.returncode, 6, r.stderr)

    def test_triple_fault(self):
        # IDT of limit 0, then UD2
        r = run("run", self.image(b"\x0f\x01\x1d" + struct.pack("<I", 0x100040) + b"\x0f\x0b" + b"\0" * 64))
        self.assertEqual(r.returncode, 4, r.stderr)
        self.assertIn("triple fault", r.stderr)
        self.assertIn("RIP", r.stderr)

    def test_timeout(self):
        r = run("run", self.image(b"\xeb\xfe"), "--timeout", "0.3")
        self.assertEqual(r.returncode, 124, r.stderr)

    def test_timeout_in_a_string_instruction(self):
        # mov edi, 0x20000000; mov ecx, -1; rep stosb; jmp $: four thousand million bytes where there is no memory
        image = self.image(b"\xbf\0\0\0\x20\xb9\xff\xff\xff\xff\xf3\xaa\xeb\xfe")
        for engine in ENGINES:
            r = run("run", image, "--memory", "64M", "--timeout", "0.5", "--engine", engine)
            self.assertEqual(r.returncode, 124, r.stderr)

    def test_power_off(self):
        # OUT 0x604, SLP_TYP 5 and SLP_EN
        r = run("run", self.image(b"\xfa\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xf4"))
        self.assertEqual(r.returncode, 0, r.stderr)

    def test_serial(self):
        code = b"\x66\xba\xf8\x03\xb0H\xee\xb0i\xee\xb0\n\xee\xb0\0\xe6\xf4\xf4"
        r = run("run", self.image(code), "--debug-exit")
        self.assertEqual((r.returncode, r.stdout), (1, "Hi\n"))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "out")
            r = run("run", self.image(code), "--debug-exit", "--serial", "file:" + path)
            self.assertEqual((r.returncode, r.stdout, open(path).read()), (1, "", "Hi\n"))
        r = run("run", self.image(code), "--debug-exit", "--serial", "none")
        self.assertEqual((r.returncode, r.stdout), (1, ""))

    def test_deterministic(self):
        # RDTSC; its low byte to the exit port: equal under --clock icount, however often it runs
        image = self.image(b"\xb9\x00\x00\x01\x00\xe2\xfe\x0f\x31\x25\x7f\x00\x00\x00\xe7\xf4\xf4")
        statuses = {run("run", image, "--debug-exit", "--clock", "icount", "--engine", e).returncode for e in ENGINES * 2}
        self.assertEqual(len(statuses), 1)

    def test_jit_options(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "dump")
            r = run("run", DEMO, "--debug-exit", "--clock", "icount", "--stats", "--jit-cache", "4M", "--jit-dump", path)
            with open(path) as f:
                text = f.read()
            translated = re.search(r"translated (\d+) blocks", r.stderr)
            self.assertTrue(translated, r.stderr)
            self.assertEqual(text.count("translation of "), int(translated[1]))
            self.assertIn("host, slow paths", text)

    def test_perf_map(self):
        for symbols, name in ((), r"guest:[0-9a-f]+"), (("--symbols", DEMO), r"guest:reflect"):
            p = subprocess.Popen([NESTOR, "run", DEMO, "--debug-exit", "--perf-map", "--stats", *symbols], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True)
            err = p.communicate(timeout=100)[1]
            path = f"/tmp/perf-{p.pid}.map"
            with open(path) as f:
                lines = f.read().splitlines()
            os.unlink(path)
            self.assertTrue(any(re.fullmatch(r"[0-9a-f]+ [0-9a-f]+ " + name, line) for line in lines), lines[:5])
            self.assertTrue(any(re.fullmatch(r"[0-9a-f]+ [0-9a-f]+ " + name + ":cold", line) for line in lines), lines[:5])
            translated = int(re.search(r"translated (\d+) blocks", err)[1])
            self.assertEqual(sum(not line.endswith(":cold") for line in lines), translated)
            self.assertRegex(err, r"TLB misses \d+; page walks")

    def test_engines_count_alike(self):
        # Three levels, timers, VM exits: what was printed, and how many instructions that took
        for cpu in ("intel", "amd"):
            seen = {}
            for engine in (*ENGINES, "lockstep"):
                r = run("run", DEMO, "--cpu", cpu, "--debug-exit", "--clock", "icount", "--stats", "--engine", engine)
                count = re.search(r"; (\d+) instructions", r.stderr)
                self.assertTrue(count, r.stderr)
                seen[engine] = (r.returncode, r.stdout, count[1])
            self.assertEqual(seen["interp"], seen["jit"])
            self.assertEqual(seen["interp"], seen["lockstep"])

    def test_help_and_lists(self):
        for args in (["--help"], ["run", "--help"], ["demo", "--help"], ["list", "--help"], ["monitor", "--help"], ["vmcs-check", "--help"], ["explain", "--help"], ["--version"]):
            r = run(*args)
            self.assertEqual((r.returncode, r.stderr), (0, ""))
            self.assertIn("nestor", r.stdout)
        for what, words in {"cpus": "intel", "instructions": "VMLAUNCH", "vmcs-fields": "GUEST_RIP", "vmcb-fields": "EXITINTINFO",
                            "vmentry-checks": "EXEC_VPID_NONZERO", "vmx-caps": "secondary.unrestricted_guest", "devices": "lapic", "events": "vmexit"}.items():
            r = run("list", what)
            self.assertEqual(r.returncode, 0)
            self.assertIn(words, r.stdout)
        self.usage_error("unknown list 'frob'", "list", "frob")

    def test_manual_page_names_every_option(self):
        page = open(os.path.join(os.path.dirname(__file__), "../../docs/nestor.1")).read().replace("\\-", "-")
        for command in ("run", "demo", "vmcs-check", "explain"):
            for option in re.findall(r"^  (--[a-z-]+)", run(command, "--help").stdout, re.M):
                self.assertIn(option, page)


class Demo(unittest.TestCase):
    def test_demo(self):
        for engine in ((), *(("--engine", e) for e in ENGINES)):
            r = run("demo", "--timeout", "100", *engine, timeout=120)
            self.assertEqual(r.returncode, 0, r.stdout + r.stderr)
            for level in (1, 2, 3):
                self.assertIn(f"L{level}: hello from level {level}", r.stdout)
            self.assertRegex(r.stdout, r"L2 handled exits of its guest: .*VMCALL 1")
            self.assertRegex(r.stdout, r"L1 passed on exits of its guest's guest: .*VMCALL 1")
            self.assertIn("VM exits", r.stderr)
            self.assertNotRegex(r.stderr, r"DR_ACCESS")  # nobody uses debug registers

    def test_demo_amd(self):
        for engine in ENGINES:
            r = run("demo", "--cpu", "amd", "--timeout", "100", "--engine", engine, timeout=120)
            self.assertEqual(r.returncode, 0, r.stdout + r.stderr)
            for level in (1, 2, 3):
                self.assertIn(f"L{level}: hello from level {level}", r.stdout)
            self.assertRegex(r.stdout, r"L2 handled exits of its guest: .*VMMCALL 1")
            self.assertRegex(r.stdout, r"L1 handled exits of its guest: .*VMRUN \d+")
            self.assertRegex(r.stdout, r"L1 passed on exits of its guest's guest: .*VMMCALL 1")
            self.assertIn("VMRUNs", r.stderr)
            self.assertNotRegex(r.stderr, r"(READ|WRITE)_DR")


if __name__ == "__main__":
    NESTOR, DEMO = sys.argv.pop(1), sys.argv.pop(1)
    unittest.main()
