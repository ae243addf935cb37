#!/usr/bin/env python3
"""The monitor: every command, against the demo hypervisor on both vendors' processors and small images.

    test_monitor.py NESTOR DEMO-ELF ENGINE [TEST-NAME...]
"""
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest

from images import BASE, multiboot
from monitor_client import Monitor

NESTOR = DEMO = ENGINE = None


class Base(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.nestor = self.m = None

    def start(self, *args):
        path = os.path.join(self.folder, "monitor")
        self.nestor = subprocess.Popen([NESTOR, *args, "--engine", ENGINE, "--timeout", "60", "--monitor", "unix:" + path, "--monitor-wait"],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.end)
        self.m = Monitor(path)
        return self.m

    def end(self):
        self.m.close()
        if self.nestor.poll() is None:
            self.nestor.kill()
        self.nestor.communicate()

    def image(self, code, *args):
        path = os.path.join(self.folder, "image")
        with open(path, "wb") as f:
            f.write(multiboot(code))
        return self.start("run", path, "--debug-exit", *args)

    def ends_well(self):
        self.m.close()
        out, err = self.nestor.communicate(timeout=60)
        self.assertEqual(self.nestor.returncode, 0, out + err)
        self.assertIn("L3: hello from level 3", out)


class Demo(Base):
    """What is the same under VT-x and AMD-V; Amd below runs it again."""
    CPU, ENTRY, CONTROL, RIP = "intel", "VMLAUNCH", "VMCS", "GUEST_RIP"

    def demo(self):
        return self.start("demo", "--cpu", self.CPU, "--symbols", DEMO)

    def test_break_by_level(self):
        m = self.demo()
        self.assertIn("stopped", m.greeting)
        for level in ("L3", "L2"):
            self.assertRegex(m("break demo_main " + level), r"breakpoint \d at linear 0x[0-9a-f]+, level " + level)
        self.assertIn("breakpoint 2; processor 0, L2 (guest mode)", m.go())
        self.assertIn("L2 (guest mode)", m("info"))
        self.assertIn("<demo_main>", m("info"))
        stop = m.go()
        self.assertIn("breakpoint 1; processor 0, L3 (guest mode)", stop)
        self.assertRegex(m("break"), r"1 +break 0x[0-9a-f]+, level L3, hit 1 times")
        self.assertIn("3", m("registers level"))
        self.assertIn("deleted", m("delete 1"))
        self.assertIn("there is none", m("delete 1"))
        self.assertIn("deleted", m("delete"))
        self.assertIn("no breakpoints", m("break"))
        self.ends_well()

    def test_physical_breakpoint(self):
        m = self.demo()
        self.assertIn("physical", m("break phys demo_main guest"))
        self.assertIn("L2 (guest mode)", m.go())
        self.assertIn("<demo_main>", m("print $rip"))
        self.ends_well()

    def test_watch(self):
        m = self.demo()
        m("watch phys stack_top-4096 4096 write L1")
        self.assertIn("watchpoint 1: an access to physical", m.go())
        self.assertIn("watch phys", m("watch"))
        m("delete")
        m("watch stack_top-4096 4096 access")
        self.assertIn("watchpoint 2: an access to linear", m.go())
        m("delete")
        self.ends_well()

    def test_step(self):
        m = self.demo()
        m("break demo_main L1")
        m.go()
        before = int(re.search(r"(\d+) instructions", m("info")).group(1))
        self.assertIn("; step", m("step"))
        self.assertIn("; step", m("step 10"))
        self.assertEqual(int(re.search(r"(\d+) instructions", m("info")).group(1)), before + 11)
        self.assertIn("expected step", m("step x"))
        self.ends_well()

    def test_entries_and_exits(self):
        m = self.demo()
        self.assertIn("a guest's first instruction", m("until entry"))
        self.assertIn("before the guest's first instruction", m.go())
        self.assertIn("guest_entry>", m("info"))
        m("until exit")
        self.assertIn("VM exit on processor 0: CPUID", m.go())
        self.assertIn("L1", m("info"))
        self.assertIn("Stops behind VM exits", m("vmexit break io"))
        self.assertRegex(m.go(), r"VM exit on processor 0: IO")
        m("vmexit break off")
        m("vmentry entered")
        self.assertIn("VM entry on processor 0", m.go())
        m("vmentry entered off")
        m("vmexit break")
        self.assertIn("VM exit on", m.go())
        self.assertIn("No exit is called", m("vmexit break frob"))
        self.assertIn("CPUID", m("vmexit list"))
        m("vmexit break off")
        self.ends_well()

    def test_vmentry(self):
        m = self.demo()
        m("vmentry break")
        self.assertIn("before it acts", m.go())
        self.assertIn("pass", m("vmentry step 3"))
        self.assertIn("none failed", m("vmentry next-failure"))
        self.assertIn("pass", m("vmentry list"))
        phases = m("vmentry step 20")
        self.assertIn("what " + ("the entry" if self.CPU == "intel" else "VMRUN") + " loads", phases)
        self.assertIn("unless an event is injected", phases)
        m("vmentry break off")
        self.ends_well()

    def test_control_structure(self):
        m = self.demo()
        self.assertIn("there is no current VMCS" if self.CPU == "intel" else "there was no VMRUN yet", m("vmcs"))
        m("vmentry break")
        m.go()
        rip = re.search("\n" + self.RIP + r" +(0x[0-9a-f]+)", m("vmcs")).group(1)
        self.assertIn("guest_entry>", m("print " + rip))
        self.assertIn("remembered", m("vmcs mark"))
        self.assertIn("0 fields changed", m("vmcs diff"))
        self.assertIn(self.RIP + " = 0x1234", m(f"vmcs set {self.RIP} 0x1234"))
        self.assertIn(f"-> 0x1234", m("vmcs diff"))
        self.assertIn("1 field changed", m("vmcs diff"))
        self.assertIn(rip, m(f"vmcs set {self.RIP} {rip}"))
        register = f"${self.CONTROL.lower()}_{self.RIP.lower()}"
        self.assertIn(rip, m("print " + register))
        self.assertIn("0x99", m(f"set {register} 0x99"))
        self.assertIn("0x99", m(f"vmcs {self.RIP}"))
        m(f"set {register} {rip}")
        self.assertIn("no field is called", m("vmcs frob"))
        self.assertIn("no field is called", m("vmcs set frob 1"))
        m("vmentry break off")
        self.ends_well()

    def test_exits(self):
        m = self.demo()
        m("break demo_main L3")
        m.go()
        m("until exit")
        m.go()
        table = m("exits")
        self.assertRegex(table, r"L2 +IO")
        self.assertRegex(table, r"L3 +CPUID")
        by_rip = m("exits --cause CPUID")
        self.assertIn("<demo_main+", by_rip)
        self.assertNotRegex(by_rip, "IO")
        self.assertNotIn("L2", m("exits --level L3"))
        self.assertRegex(m("exits --by-rip"), r"0x[0-9a-f]+ <")
        self.assertIn("expected exits", m("exits frob"))
        self.assertIn("expected exits", m("exits --cause frob"))
        self.assertIn("from here on", m("exits --reset"))
        self.assertIn("no such exit", m("exits"))
        m("delete")
        self.ends_well()

    def test_spaces(self):
        m = self.demo()
        self.assertIn("memory cannot be read", m("space guest"))
        self.assertIn("current", m("space current"))
        m("break demo_main L2")
        m.go()
        want = m("x demo_main 8").split(":")[1]
        for space in ("root", "guest", "guest-physical", "physical"):
            self.assertIn(space, m("space " + space))
            self.assertEqual(m("x demo_main 8").split(":")[1], want, space)
        self.assertEqual(m("phys demo_main 8").split(":")[1], want)
        m("space current")
        for args, words in (("demo_main", "leads to physical"), ("demo_main guest", "guest-physical"), ("demo_main root write", "writable"),
                            ("0x4000000000 fetch", "stops: page fault"), ("0x9000000000 guest-physical", "stops:"), ("0x8000000000000000", "canonical")):
            self.assertIn(words, m("walk " + args))
        table = "EPT" if self.CPU == "intel" else "NPT"
        self.assertIn(table, m("walk demo_main"))
        self.assertNotIn(table, m("walk demo_main root"))
        self.assertIn("written", m("set 4@tss 0x12345678") if self.CPU == "intel" else m("set 4@hypervisors 0x12345678"))
        self.assertIn("expected space", m("space frob"))
        self.assertIn("RAM", m("map"))
        self.nestor.kill()

    def test_registers(self):
        m = self.demo()
        m("break demo_main L1")
        m.go()
        self.assertIn("0x1122334455667788", m("set $rbx 0x1122334455667788"))
        self.assertRegex(m("registers rbx"), r"rbx +0x1122334455667788")
        self.assertIn("cannot have that value", m("set $cr4 0x10000000000"))
        self.assertIn("cannot have that value", m("set $lstar 0x8000000000000000"))
        self.assertIn("0xffffffff81000000", m("set $lstar 0xffffffff81000000"))
        self.assertRegex(m("registers cs*"), r"cs_ar +0xa09b")
        self.assertIn("no register", m("registers frob"))
        self.assertIn("= 18", m("print 0x10+3-1"))
        self.assertIn("expected", m("print frob+"))
        m("set $rbx 0")
        self.ends_well()

    def test_trace(self):
        m = self.demo()
        self.assertIn("no event is traced", m("trace"))
        self.assertIn("traced: vmentry vmexit", m("trace on vmexit,vmentry"))
        self.assertIn("traced: vmexit", m("trace off vmentry"))
        self.assertIn("no event is called so", m("trace on frob"))
        self.assertIn("expected trace", m("trace maybe"))
        self.assertIn("vmexit", m("events"))
        m("until exit")
        m.go()
        self.assertIn("no event is traced", m("trace off"))
        self.m.close()
        _, err = self.nestor.communicate(timeout=60)
        self.assertRegex(err, "vmexit: cpu0 CPUID")

    def test_completion(self):
        m = self.demo()
        self.assertIn("vmentry\n", m("complete vm"))
        self.assertIn("vmentry next-failure\n", m("complete vmentry n"))
        self.assertIn("vmexit break CPUID\n", m("complete vmexit break cpu"))
        self.assertIn("set $rbx\n", m("complete set $rb"))
        self.assertIn(f"vmcs {self.RIP}\n", m("complete vmcs " + self.RIP[:-1].lower()))
        self.assertIn("trace on vmexit\n", m("complete trace on vmex"))
        self.assertEqual("", m("complete frob frob"))
        self.ends_well()

    def test_mode_cpu_and_help(self):
        m = self.demo()
        self.assertIn("32-bit code", m("mode"))
        m("break demo_main")
        m.go()
        self.assertIn("64-bit code", m("mode"))
        self.assertIn("processor 0", m("cpu"))
        self.assertIn("from 0 to 0", m("cpu 5"))
        self.assertIn("no such command: frob", m("frob"))
        help = m("help")
        for command in ("info", "continue", "walk", "exits", "trace", "vmentry", "space"):
            self.assertIn("\n" + command, "\n" + help)
        m("delete")
        self.ends_well()


class Amd(Demo):
    CPU, ENTRY, CONTROL, RIP = "amd", "VMRUN", "VMCB", "RIP"


class Images(Base):
    def test_stop_a_running_machine(self):
        m = self.image(b"\xff\xc0\xeb\xfc")  # inc eax for ever
        m("continue")
        self.assertIn("the machine runs", m("continue"))
        self.assertIn("asked for", m("stop"))
        a = m("print $rax")
        self.assertEqual(a, m("print $rax"))
        m("continue")
        m.socket.sendall(b"\3")
        self.assertIn("asked for", m.read())
        self.assertNotEqual(a, m("print $rax"))
        self.assertIn("ended: stopped", m("quit"))
        self.nestor.communicate(timeout=20)
        self.assertEqual(self.nestor.returncode, 8)

    def test_end(self):
        m = self.image(b"\xb8\x05\x00\x00\x00\xe7\xf4\xf4")
        self.assertIn("ended: the guest's exit port", m.go())

    def test_triple_fault(self):
        m = self.image(b"\x0f\x01\x1d" + struct.pack("<I", BASE + 0x40) + b"\x0f\x0b" + b"\0" * 64)
        self.assertIn("triple fault", m.go())
        self.assertIn("100027", m("print $rip"))
        self.assertIn("ended: triple fault", m.go())

    def test_disconnect(self):
        m = self.image(b"\xb9\x00\x00\x10\x00\xe2\xfe\xb8\x05\x00\x00\x00\xe7\xf4\xf4")
        m("break 0x100027")
        m.close()
        self.nestor.communicate(timeout=60)
        self.assertEqual(self.nestor.returncode, 11)

    def test_garbage(self):
        m = self.image(b"\xff\xc0\xeb\xfc")
        for data in (b"\xff\xfe\0\1\2", b"x" * 9000, b"break " + b"9" * 300, b"walk " + b"$" * 200, b"set $" + b"\x80" * 20, b"x 0xffffffffffffffff 4096",
                     b"watch 0xfffffffffffffff8 16", b"break $xmm0", b"print $vmcs_guest_rip", b"exits --level --cause", b"step -1", b"complete " + b" " * 3000,
                     b"registers [", b"vmcs [a-", b"phys 0 99999999999999999999", b"\t\r"):
            m.socket.sendall(data + b"\n")
            m.read()
            self.assertIsNone(self.nestor.poll(), data)
        self.assertIn("processor 0", m("info"))


class Stdio(Base):
    def setUp(self):
        pass

    def run_nestor(self, *args, text=""):
        return subprocess.run([NESTOR, "demo", "--engine", ENGINE, "--timeout", "60", *args], input=text, capture_output=True, text=True, timeout=60)

    def test_piped_commands(self):
        r = self.run_nestor("--monitor", "stdio", "--monitor-wait", "--symbols", DEMO, text="break demo_main L3\nrun\ninfo\ndelete\ncontinue\n")
        self.assertEqual(r.returncode, 0, r.stdout + r.stderr)
        self.assertIn("breakpoint 1; processor 0, L3 (guest mode)", r.stdout)
        self.assertIn("L3: hello from level 3", r.stdout)

    def test_usage(self):
        for args, words in ((["--monitor", "frob"], "expected stdio or unix:PATH"), (["--monitor-wait"], "expected --monitor too"),
                            (["--monitor", "unix:/nonexistent/x"], "No such file"), (["--symbols", "/nonexistent"], "cannot be opened"),
                            (["--symbols", "/etc/passwd"], "expected an ELF file")):
            r = self.run_nestor(*args)
            self.assertEqual(r.returncode, 2, r.stderr)
            self.assertIn(words, r.stderr)
            self.assertEqual(len(r.stderr.strip().splitlines()), 1)
        r = subprocess.run([NESTOR, "run", NESTOR, "--monitor", "stdio", "--serial", "stdio"], capture_output=True, text=True, timeout=30)
        self.assertEqual(r.returncode, 2)
        self.assertIn("expected --serial file:PATH or none", r.stderr)
        r = subprocess.run([NESTOR, "monitor", "/nonexistent/x"], capture_output=True, text=True, timeout=30)
        self.assertEqual((r.returncode, r.stderr.count("\n")), (2, 1))

    def test_terminal(self):
        """On a terminal: the prompt, completion with Tab, editing with Ctrl-A, and Ctrl-C."""
        try:
            pid, fd = pty.fork()
        except OSError as e:
            self.skipTest(f"the host gives no terminal: {e}")
        if not pid:
            os.environ["TERM"] = "vt100"
            os.execv(NESTOR, [NESTOR, "demo", "--engine", ENGINE, "--timeout", "60", "--monitor", "stdio", "--monitor-wait"])
        seen = b""

        def expect(what, send=b""):
            nonlocal seen
            seen = b""
            os.write(fd, send)
            end = time.time() + 20
            while what not in seen:
                if not select.select([fd], [], [], end - time.time())[0]:
                    os.kill(pid, 9)
                    self.fail((what, seen))
                try:
                    seen += os.read(fd, 4096)
                except OSError:
                    break
            self.assertIn(what, seen)

        expect(b"(nestor) ")
        expect(b"processor 0: L1", b"inf\t\n")
        expect(b"0x30 = 48", b"0x10+0x20\x01print \n")
        expect(b"vmexit", b"vm\t")
        expect(b"ended", b"\x15quit\n")
        os.waitpid(pid, 0)
        os.close(fd)


if __name__ == "__main__":
    NESTOR, DEMO, ENGINE = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
    NESTOR = os.path.abspath(NESTOR)
    unittest.main()
