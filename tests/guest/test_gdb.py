#!/usr/bin/env python3
"""The gdb stub, with Debian's gdb in batch mode, against the demo hypervisor and small images.

    test_gdb.py NESTOR DEMO-ELF ENGINE [TEST-NAME...]
"""
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

from images import BASE, multiboot

NESTOR = DEMO = ENGINE = None


class Gdb(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.socket = os.path.join(self.folder, "gdb")
        self.nestor = None

    def start(self, *args):
        self.nestor = subprocess.Popen([NESTOR, *args, "--engine", ENGINE, "--timeout", "60", "--gdb", "unix:" + self.socket, "--gdb-wait"],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.end)
        for _ in range(200):
            if os.path.exists(self.socket):
                return
            time.sleep(0.05)
        self.fail("nestor does not listen: " + self.nestor.communicate()[1])

    def end(self):
        if self.nestor.poll() is None:
            self.nestor.kill()
        self.nestor.communicate()

    def image(self, code, *args):
        path = os.path.join(self.folder, "image")
        with open(path, "wb") as f:
            f.write(multiboot(code))
        self.start("run", path, "--debug-exit", *args)

    def gdb(self, *commands, symbols=None):
        """What gdb prints after each command, as a list."""
        script = ["set pagination off", "set confirm off", "set width 0", "set architecture i386:x86-64"]
        script += [f"file {symbols}"] if symbols else []
        script.append("target remote " + self.socket)
        for n, c in enumerate(commands):
            script += [f"echo \\n@@{n}\\n", c]
        args = [x for c in script for x in ("-ex", c)]
        r = subprocess.run(["gdb", "-nx", "-batch", *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           timeout=90)
        self.log = r.stdout
        parts = re.split(r"^@@(\d+)\n", r.stdout, flags=re.M)
        out = {int(parts[i]): parts[i + 1] for i in range(1, len(parts) - 1, 2)}
        self.assertEqual(len(out), len(commands), self.log)
        return [out[n] for n in range(len(commands))]

    def value(self, text):
        m = re.search(r"= (0x[0-9a-f]+|\d+)", text)
        self.assertTrue(m, text + "\n" + self.log)
        return int(m.group(1), 0)

    # ---- the demo hypervisor ----

    def demo(self, *commands):
        self.start("demo")
        return self.gdb(*commands, symbols=DEMO)

    def demo_ends_well(self):
        out, err = self.nestor.communicate(timeout=60)
        self.assertEqual(self.nestor.returncode, 0, out + err)
        self.assertIn("L3: hello from level 3", out)

    def test_break_and_step(self):
        o = self.demo("p/x $rip", "tbreak demo_main", "continue", "p/x $rip", "p $rdi", "stepi", "stepi", "p/x $rip", "info threads", "detach")
        self.assertEqual(self.value(o[0]), 0x10000C)
        self.assertIn("demo_main", o[2])
        self.assertEqual(self.value(o[4]), 1)
        self.assertEqual(self.value(o[7]), self.value(o[3]) + 4)
        self.assertIn("processor 0, L1, 64-bit mode, CPL 0", o[8])
        self.demo_ends_well()

    def test_break_at_every_level(self):
        o = self.demo("break demo_main", "continue", "p $rdi", "continue", "p $rdi", "monitor info", "continue", "p $rdi", "monitor info", "detach")
        self.assertEqual([self.value(o[n]) for n in (2, 4, 7)], [1, 2, 3])
        self.assertIn("L2 (guest mode)", o[5])
        self.demo_ends_well()

    def test_level(self):
        o = self.demo("monitor level guest", "hbreak demo_main", "continue", "p $rdi", "monitor exits", "monitor walk 0x100000", "detach")
        self.assertEqual(self.value(o[3]), 2)
        self.assertIn("VM entries", o[4])
        self.assertRegex(o[5], r"EPT +PDE")
        self.assertIn("leads to physical 0x100000", o[5])
        self.demo_ends_well()

    def test_watchpoint(self):
        o = self.demo("watch *(unsigned int *)&hypervisors", "continue", "p/x *(unsigned int *)&hypervisors", "p $rip > (long)&run_guest", "delete",
                      "detach")
        self.assertIn("New value = 1314062337", o[1])
        self.assertEqual(self.value(o[2]), 0x4E530001)
        self.assertEqual(self.value(o[3]), 1)
        self.demo_ends_well()

    def test_read_watchpoint(self):
        o = self.demo("tbreak run_guest", "continue", "rwatch *(unsigned short *)&guest_fields", "tbreak fail", "continue", "p $rip", "detach")
        self.assertIn("Value =", o[4])
        self.demo_ends_well()

    def test_registers(self):
        o = self.demo("tbreak demo_main", "continue", "set $rbx = 0x1122334455667788", "p/x $rbx", "set $xmm3.uint128 = 5", "p/x $xmm3.uint128", "p/x $cr0",
                      "p/x $efer", "p/x $cs", "info registers eflags", "p $dr7", "set $fs_base = 0x1000", "p/x $fs_base", "set $eflags = $eflags | 1",
                      "p $eflags & 1", "p/x $gdtr_base == &demo_gdt", "p/x $st0", "p $mxcsr", "set $rbx = 0", "set $fs_base = 0", "set $cr4 = 0x10000000000", "detach")
        self.assertEqual(self.value(o[3]), 0x1122334455667788)
        self.assertEqual(self.value(o[5]), 5)
        self.assertEqual(self.value(o[6]) & 0x80000001, 0x80000001)
        self.assertEqual(self.value(o[7]) & 0x500, 0x500)
        self.assertEqual(self.value(o[8]), 8)
        self.assertEqual(self.value(o[10]), 0x400)
        self.assertEqual(self.value(o[12]), 0x1000)
        self.assertEqual(self.value(o[14]), 1)
        self.assertEqual(self.value(o[15]), 1)
        self.assertIn("Could not write register", self.log)
        self.demo_ends_well()

    def test_memory(self):
        o = self.demo("tbreak demo_main", "continue", "x/2bx demo_main", "set {unsigned long} &tss = 0x1234567890", "p/x {unsigned long} &tss",
                      "set {unsigned long} &tss = 0", "x/bx 0x7fff00000000", "monitor phys 0x100000 16", "x/i demo_main", "detach")
        self.assertIn("0x41", o[2])
        self.assertEqual(self.value(o[4]), 0x1234567890)
        self.assertIn("Cannot access memory", self.log)
        self.assertIn("02 b0 ad 1b", o[7])
        self.demo_ends_well()

    # ---- VM entries ----

    def test_vmcs_registers(self):
        o = self.demo("p $vmcs_guest_rip", "monitor vmentry break", "continue", "p/x $vmcs_guest_rip", "p/x $vmcs_guest_cs_selector", "p/x $vmcs_guest_rflags",
                      "info registers vmcs_host_rip", "detach")
        self.assertIn("unavailable", o[0])
        self.assertIn("VMLAUNCH on processor 0, before it acts", o[2])
        names = [line.split() for line in subprocess.check_output(["nm", DEMO], text=True).splitlines()]
        self.assertIn([f"{self.value(o[3]):016x}", "t", "guest_entry"], names)
        self.assertEqual(self.value(o[4]), 8)
        self.assertEqual(self.value(o[5]), 2)
        self.assertIn("vmx_exit_entry", [n[2] for n in names if n[0].lstrip("0") in o[6]])
        self.demo_ends_well()

    def test_vmentry_step(self):
        o = self.demo("monitor vmentry break", "continue", "monitor vmentry step", "monitor vmentry step 4", "monitor vmentry next-failure",
                      "monitor vmentry step", "monitor vmentry break off", "stepi", "info symbol $rip", "monitor info", "monitor vmentry why", "detach")
        self.assertIn("BASIC_CPL: pass", o[2])
        self.assertIn("BASIC_LAUNCH_STATE: pass", o[3])
        self.assertIn("pass: EXEC_PIN_ALLOWED", o[3])
        self.assertIn("PIN_BASED_VM_EXEC_CONTROL = 0x16", o[3])
        self.assertIn("none failed", o[4])
        self.assertIn("what the entry loads", o[5])
        self.assertIn("Loading Guest Control Registers", o[5])
        self.assertIn("guest_entry in section", o[8])
        self.assertIn("L2 (guest mode)", o[9])
        self.assertIn("its latest VM entry succeeded", o[10])
        self.demo_ends_well()

    def test_broken_guest_state(self):
        o = self.demo("monitor vmentry break", "continue", "set $vmcs_guest_tr_ar_bytes = 0x89", "set $vmcs_guest_rflags = 0",
                      "monitor vmentry next-failure", "monitor vmentry next-failure", "monitor vmentry next-failure", "monitor vmentry why",
                      "monitor vmentry list SEG_TR", "stepi", "p/x $rip == &vmx_exit_entry", "p/x $vmcs_vm_exit_reason", "monitor vmentry why", "detach")
        self.assertIn("FAIL: SEG_TR_TYPE", o[4])
        self.assertIn("the entry ends here: VM exit, reason 0x80000021", o[4])
        self.assertIn("FAIL: RFLAGS_RSVD", o[5])
        self.assertIn("2 failed", o[6])
        self.assertIn("satisfied by: set GUEST_TR_AR_BYTES bit 1", o[7])
        self.assertIn("2 of", o[7])
        self.assertRegex(o[8], r"SEG_TR_TYPE +fail")
        self.assertEqual(self.value(o[10]), 1)
        self.assertEqual(self.value(o[11]), 0x80000021)
        self.assertIn("was refused by SEG_TR_TYPE", o[12])
        out, _ = self.nestor.communicate(timeout=60)
        self.assertEqual(self.nestor.returncode, 3)
        self.assertIn("exit reason 0x80000021", out)

    def test_broken_controls(self):
        o = self.demo("monitor vmentry break EXEC_PIN_ALLOWED", "monitor vmentry break FROB", "tbreak vmx_enter", "continue",
                      "set $vmcs_pin_based_vm_exec_control = 0", "continue", "monitor vmentry why", "stepi", "p $eflags & 0x40",
                      "p $vmcs_vm_instruction_error", "set $vmcs_pin_based_vm_exec_control = 0x16", "set $rip = $rip - 3", "stepi", "info symbol $rip", "detach")
        self.assertIn("no check is called", o[1].lower())
        self.assertIn("EXEC_PIN_ALLOWED would fail", o[5])
        self.assertIn("satisfied by: PIN_BASED_VM_EXEC_CONTROL = 0x16", o[6])
        self.assertEqual(self.value(o[8]), 0x40)
        self.assertEqual(self.value(o[9]), 7)
        self.assertIn("guest_entry in section", o[13])
        self.demo_ends_well()

    def test_vmentry_away_from_an_entry(self):
        o = self.demo("monitor vmentry step", "monitor vmentry why", "monitor vmentry list controls", "monitor vmentry", "monitor frob", "monitor help",
                      "monitor vmentry list frob", "monitor walk x", "monitor trace frob", "detach")
        self.assertIn("is not at a VMLAUNCH or VMRESUME", o[0])
        self.assertIn("no current VMCS", o[1])
        self.assertIn("no VMCS", o[2])
        self.assertIn("next-failure", o[3])
        self.assertIn("no such command: frob", o[4])
        self.assertIn("vmentry COMMAND", o[5])
        self.assertIn("No group", o[6])
        self.assertIn("expected", o[7])
        self.assertIn("expected", o[8])
        self.demo_ends_well()

    def test_vmrun(self):
        self.start("demo", "--cpu", "amd")
        o = self.gdb("monitor vmentry why", "monitor vmentry break", "continue", "monitor vmentry step 2", "monitor vmentry next-failure", "x/i $pc",
                     "set {unsigned int} ($rax + 0x58) = 0", "monitor vmentry why", "monitor vmentry list SVM_ASID", "set {unsigned int} ($rax + 0x58) = 1",
                     "monitor vmentry break off", "monitor vmentry break SVM_ASID0", "stepi", "monitor info", "monitor walk 0x100000", "detach", symbols=DEMO)
        self.assertIn("has run no VMRUN yet", o[0])
        self.assertIn("VMRUN on processor 0, before it acts", o[2])
        self.assertIn("pass: SVM_EFER_SVME", o[3])
        self.assertIn("none failed", o[4])
        self.assertIn("vmrun", o[5])
        self.assertIn("FAIL: SVM_ASID0", o[7])
        self.assertIn("satisfied by: set GUEST_ASID bit 0", o[7])
        self.assertRegex(o[8], "SVM_ASID0 +fail")
        self.assertIn("L2 (guest mode)", o[13])
        self.demo_ends_well()

    # ---- the Python extension ----

    def extension(self, *commands):
        tool = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/nestor-gdb.py")
        return self.gdb("source " + tool, *commands, symbols=DEMO)[1:]

    def demo_extension(self, cpu):
        self.start("demo", "--cpu", cpu, "--symbols", DEMO)
        o = self.extension("vmentry break", "continue", "vmentry step", "vmcs mark", "vmcs diff", "vmentry into", "vmexit out", "walk &tss" if cpu == "intel"
                           else "walk demo_gdt", "walk $pc guest", "exits", "vmexit list", "vmentry next-failure", "vmentry break off", "level L3", "space physical",
                           "x/4bx 0x100000", "space current", "vmcs GUEST_RIP" if cpu == "intel" else "vmcs RIP", "tbreak demo_main", "continue", "p $level",
                           "complete vmentry ne", "complete exits --cause CPU", "complete walk $pc gu", "detach")
        self.assertIn("before it acts", o[1])
        self.assertIn("pass", o[2])
        self.assertIn("0 fields changed", o[4])
        self.assertIn("first instruction", o[5])
        self.assertIn("guest_entry", o[5])
        self.assertIn("VM exit on processor 0: CPUID", o[6])
        self.assertIn("leads to physical", o[7])
        self.assertIn("leads to physical", o[8])
        self.assertRegex(o[9], r"L2 +CPUID")
        self.assertIn("CPUID", o[10])
        self.assertIn("0x02\t0xb0\t0xad\t0x1b", o[15])
        self.assertEqual(self.value(o[20]), 3)
        self.assertIn("vmentry next-failure", o[21])
        self.assertIn("exits --cause CPUID", o[22])
        self.assertIn("walk $pc guest", o[23])
        self.demo_ends_well()

    def test_extension(self):
        self.demo_extension("intel")

    def test_extension_amd(self):
        self.demo_extension("amd")

    def test_following_the_width(self):
        """From 32-bit code into 64-bit code in the demo: gdb's architecture follows; and 16-bit code."""
        self.start("demo")
        tool = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/nestor-gdb.py")
        args = ["-ex", "set pagination off", "-ex", "source " + tool, "-ex", "target remote " + self.socket]
        for c in ("show architecture", "p $eip", "x/3i $pc", "stepi", "p/x $esp", "tbreak *" + self.symbol("demo_main"), "continue",
                  "show architecture", "p $rip", "x/i $pc", "p $r15", "detach"):
            args += ["-ex", "echo @@\\n", "-ex", c]
        r = subprocess.run(["gdb", "-nx", "-batch", *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        o = r.stdout.split("@@\n")[1:]
        self.assertIn('"i386"', o[0], r.stdout)
        self.assertIn("cli", o[2])
        self.assertIn("mov    $0x", o[2])
        self.assertIn('"i386:x86-64"', o[7], r.stdout)
        self.assertIn("push", o[9])
        self.demo_ends_well()

    def test_sixteen_bits(self):
        # To a 16-bit code segment whose base is 0x100000, then nops: the program counter is linear.
        gdt = struct.pack("<QQQ", 0, 0x00009A100000FFFF, 0)
        code = b"\x0f\x01\x15" + struct.pack("<I", BASE + 0x60) + b"\xea" + struct.pack("<IH", 0x40, 8)
        image = code.ljust(0x20, b"\x90") + b"\xb8\x34\x12\x90\xf4".ljust(0x20, b"\0") + struct.pack("<HI", 23, BASE + 0x68) + b"\0\0" + gdt
        self.image(image)
        tool = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/nestor-gdb.py")
        args = ["-ex", "set pagination off", "-ex", "source " + tool, "-ex", "target remote " + self.socket]
        for c in ("stepi", "stepi", "show architecture", "p/x $pc", "x/2i $pc", "tbreak *0x100043", "continue", "p/x $eax & 0xffff", "p/x $cs_base", "kill"):
            args += ["-ex", "echo @@\\n", "-ex", c]
        r = subprocess.run(["gdb", "-nx", "-batch", *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        o = r.stdout.split("@@\n")[1:]
        self.assertIn('"i8086"', o[2], r.stdout)
        self.assertEqual(self.number(o[3]), 0x100040)
        self.assertIn("mov    $0x1234,%ax", o[4])
        self.assertEqual(self.number(o[7]), 0x1234, r.stdout)
        self.assertEqual(self.number(o[8]), 0x100000)

    def number(self, text):
        return int(re.search(r"= (0x[0-9a-f]+|\d+)", text).group(1), 0)

    def symbol(self, name):
        return "0x" + next(line.split()[0] for line in subprocess.check_output(["nm", DEMO], text=True).splitlines() if line.split()[-1] == name)

    def test_vmcb_registers(self):
        self.start("demo", "--cpu", "amd")
        o = self.gdb("p $vmcb_rip", "monitor vmentry break", "continue", "p/x $vmcb_rip", "p/x $vmcb_guest_asid", "p $vmcb_rip == &guest_entry",
                     "set $vmcb_guest_asid = 0", "monitor vmentry why", "set $vmcb_guest_asid = 1", "set $vmcb_tlb_control = 1000", "p $vmcb_rip = $vmcb_rip",
                     "monitor vmentry break off", "detach", symbols=DEMO)
        self.assertIn("unavailable", o[0])
        self.assertEqual(self.value(o[4]), 1)
        self.assertEqual(self.value(o[5]), 1)
        self.assertIn("FAIL: SVM_ASID0", o[7])
        self.demo_ends_well()

    def test_memory_map_and_threads(self):
        o = self.demo("info mem", "info threads", "tbreak demo_main if $level == 2", "continue", "info threads", "maint print target-stack", "detach")
        self.assertIn("0x8000000000000000", o[0])
        self.assertRegex(o[4], r'"L2".*L2 \(guest mode\)')
        self.demo_ends_well()

    def test_own_breakpoints_in_gdb(self):
        o = self.demo("monitor break phys 0x100670", "monitor break demo_main", "monitor watch phys 0x1000", "monitor delete 99", "monitor continue",
                      "monitor until exit", "continue", "info symbol $pc", "detach")
        self.assertIn("gdb runs and stops the machine", o[4])
        self.assertRegex(o[6], "breakpoint|VM exit")
        self.demo_ends_well()

    def test_other_registers(self):
        o = self.demo("tbreak demo_main", "continue", "p/x $cs_ar", "p/x $ss_limit", "set $sysenter_esp = 0xffff800000000000", "p/x $sysenter_esp", "set $star = 5",
                      "p $star", "set $pat = 2", "set $cr2 = 0x1234", "p/x $cr2", "p $pkru", "set $tsc_aux = 7", "p $tsc_aux", "set $dr0 = 0x5000", "p/x $dr0", "p $k_gs_base",
                      "set $dr0 = 0", "p $ymm0.v8_int32[7]", "set $ymm0.v8_int32[7] = 9", "p $ymm0.v8_int32[7]", "detach")
        self.assertEqual(self.value(o[2]), 0xA09B)
        self.assertEqual(self.value(o[5]), 0xFFFF800000000000)
        self.assertEqual(self.value(o[7]), 5)
        self.assertIn("Could not write register", self.log)
        self.assertEqual(self.value(o[10]), 0x1234)
        self.assertEqual(self.value(o[13]), 7)
        self.assertEqual(self.value(o[15]), 0x5000)
        if "ymm" not in o[18] or "=" in o[18]:
            self.assertEqual(self.value(o[20]), 9)
        self.demo_ends_well()

    # ---- small images ----

    def test_the_guest_does_not_see_steps(self):
        # pushf; pop eax; nop; xor ebx, ebx ... the pushed flags have no TF, memory has no INT3
        self.image(b"\xbc\x00\x80\x10\x00" + b"\x9c\x58\x90" + b"\x8a\x1d" + struct.pack("<I", BASE + 0x20 + 5 + 3 + 6) + b"\x90\xf4\xeb\xfd")
        o = self.gdb("stepi", "stepi", "stepi", "p $rax & 0x100", "break *0x10002e", "continue", "p/x $rip", "p/x $rbx & 0xff", "kill")
        self.assertEqual(self.value(o[3]), 0)
        self.assertEqual(self.value(o[6]), 0x10002E)
        self.assertEqual(self.value(o[7]), 0x90)

    def test_exact_stops_in_a_loop(self):
        # mov ecx, 100; l: inc eax; loop l; hlt
        self.image(b"\x31\xc0\xb9\x64\x00\x00\x00" + b"\x40\xe2\xfd" + b"\xfa\xf4")
        o = self.gdb("break *0x100027 if $rcx == 40", "continue", "p $rax", "delete", "break *0x10002a", "continue", "p $rax", "kill")
        self.assertEqual(self.value(o[2]), 60)
        self.assertEqual(self.value(o[6]), 100)

    def test_detach_and_attach_again(self):
        self.image(b"\xff\xc0\xeb\xfc")  # inc eax for ever
        a = self.gdb("p $rax", "break *0x100022", "continue", "p $rax", "detach")
        time.sleep(0.3)
        b = self.gdb("p $rax", "p/x $rip", "stepi", "kill")
        self.assertEqual(self.value(a[3]), 0x2BADB003)  # the loader leaves multiboot's magic number
        self.assertNotIn(self.value(b[0]), (0x2BADB002, 0x2BADB003))
        self.assertIn(self.value(b[1]), (0x100020, 0x100022))
        self.nestor.communicate(timeout=20)
        self.assertEqual(self.nestor.returncode, 8)

    def test_processors(self):
        self.image(b"\xff\xc0\xeb\xfc", "--smp", "3")
        o = self.gdb("info threads", "stepi", "thread 2", "p/x $cs", "thread 1", "stepi", "p $rax", "kill")
        self.assertEqual(len(re.findall(r"processor \d", o[0])), 3)
        self.assertIn("waits for SIPI", o[0])
        self.assertEqual(self.value(o[6]), 0x2BADB003)

    def test_triple_fault(self):
        self.image(b"\x0f\x01\x1d" + struct.pack("<I", BASE + 0x40) + b"\x0f\x0b" + b"\0" * 64)
        o = self.gdb("continue", "p/x $rip", "continue")
        self.assertIn("triple fault", o[0])
        self.assertIn("SIGSEGV", o[0])
        self.assertEqual(self.value(o[1]), 0x100027)
        self.nestor.communicate(timeout=20)
        self.assertEqual(self.nestor.returncode, 4)

    def test_exit_status(self):
        self.image(b"\xb8\x05\x00\x00\x00\xe7\xf4\xf4")
        o = self.gdb("continue")
        self.assertIn("exited with code 013", o[0])

    def test_garbage(self):
        """Bytes that are no packets, cut packets, wrong check sums: the stub answers or hangs up, and goes on."""
        self.image(b"\xff\xc0\xeb\xfc")
        for data in (b"\0" * 1000, b"$g#00$g#67", b"$Z0,#xx", b"$vCont;#" + b"a" * 40000, b"$m0,ffffffffffffffff#0e", b"$X0,10:}#aa", b"$P9999=00#00",
                     b"$qXfer:features:read:target.xml:ffffffff,ffff#00", b"+$qRcmd,zz#00", b"$" + b"G" * 3000 + b"#00"):
            s = socket.socket(socket.AF_UNIX)
            s.connect(self.socket)
            s.settimeout(0.2)
            s.sendall(b"$QStartNoAckMode#b0")
            s.sendall(data)
            try:
                s.recv(100)
            except TimeoutError:
                pass
            s.close()
            time.sleep(0.05)
            self.assertIsNone(self.nestor.poll(), data)
        o = self.gdb("p $rax > 0", "kill")
        self.assertEqual(self.value(o[0]), 1)


class Usage(unittest.TestCase):
    def test_usage(self):
        for args, words in ((["--gdb", "frob"], "expected unix:PATH or [HOST:]PORT"), (["--gdb", "70000"], "1 to 65535"),
                            (["--gdb", "unix:/nonexistent/x"], "No such file"), (["--gdb-wait"], "expected --gdb too")):
            r = subprocess.run([NESTOR, "demo", *args], capture_output=True, text=True, timeout=30)
            self.assertEqual(r.returncode, 2, r.stderr)
            self.assertIn(words, r.stderr)
            self.assertEqual(len(r.stderr.strip().splitlines()), 1)


if __name__ == "__main__":
    NESTOR, DEMO, ENGINE = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
    if not shutil.which("gdb"):
        print("skipped: gdb is not installed (tools/setup installs it)")
        sys.exit(77)
    unittest.main()
