#!/usr/bin/env python3
"""Boots Linux as L1 under nestor, lets its KVM boot a Linux L2, and reports what ran when.

    nested-boot.py NESTOR GUEST-FOLDER [--kvm-args "ept=0"] [--kvm intel|amd] [--l2-args ...] [--l2-cpus N] [--l2-hyperv]
                   [--initrd initrd|initrd-l3|initrd-i686] [--timeout S] [--quiet] [--xen] [--expect TEXT]... [-- NESTOR-OPTION...]

--expect: a line of the output, statistics included, must contain TEXT.
--xen: L1 is Xen with a Linux dom0 (tools/mkguest --xen), which boots a PVH guest.
Exit status 0 when L2 reached its shell and L1 switched the machine off, 1 otherwise.
"""
import argparse
import os
import re
import subprocess
import sys
import time

MARKS = [
    ("NESTOR-L1-USER-SPACE", "L1 reached user space"),
    ("NESTOR-L2-START", "L1 started its guest"),
    ("NESTOR-L2-USER-SPACE", "L2 reached user space"),
    ("NESTOR-L2-SHELL", "L2's shell ran"),
    ("NESTOR-L2-END", "L2 ended"),
]
L3_MARKS = [
    ("NESTOR-L3-START", "L2 started its guest"),
    ("NESTOR-L3-USER-SPACE", "L3 reached user space"),
    ("NESTOR-L3-SHELL", "L3's shell ran"),
]


def main():
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    p = argparse.ArgumentParser()
    p.add_argument("nestor")
    p.add_argument("guest")
    p.add_argument("--kvm", default="intel")
    p.add_argument("--kvm-args", default="")
    p.add_argument("--l2-args", default="")
    p.add_argument("--l2-cpus", default="1")
    p.add_argument("--l2-hyperv", action="store_true", help="L1's KVM offers its guest Hyper-V's interface")
    p.add_argument("--initrd", default="initrd", help="which of the guest folder's L1s to boot")
    p.add_argument("--timeout", default="600")
    p.add_argument("--quiet", action="store_true", help="only markers and the report, no console")
    p.add_argument("--xen", action="store_true")
    p.add_argument("--expect", action="append", default=[])
    o = p.parse_args(sys.argv[1:split])

    l3 = o.initrd == "initrd-l3"
    marks = MARKS[:-1] + (L3_MARKS if l3 else []) + MARKS[-1:]
    if o.l2_cpus != "1":
        o.expect.append(f"NESTOR-L2-CPUS {o.l2_cpus}")
    append = f"console=ttyS0 panic=-1 no_timer_check KVM={o.kvm} L2_CPUS={o.l2_cpus}"
    if o.l2_hyperv:
        append += " L2_OPTIONS=-H"
    if l3:
        append += " L2_MEMORY=384"
    if o.quiet:
        append += " quiet"
    if o.kvm_args:
        append += " KVM_ARGS=" + o.kvm_args.replace(" ", ",")
    l2_args = ("quiet," if o.quiet else "") + o.l2_args.replace(" ", ",")
    if l2_args:
        append += " L2_ARGS=" + l2_args.strip(",")
    if o.xen:
        o.expect.append("NESTOR-DOM0-SHELL")
        boot = ["--kernel", os.path.join(o.guest, "xen"), "--module",
                os.path.join(o.guest, "vmlinuz-dom0") + " console=hvc0" + (" quiet" if o.quiet else ""),
                "--module", os.path.join(o.guest, "initrd-dom0"), "--append", "com1=115200,8n1 console=com1 dom0_mem=512M"]
    else:
        boot = ["--kernel", os.path.join(o.guest, "vmlinuz"), "--initrd", os.path.join(o.guest, o.initrd), "--append", append]
    command = [o.nestor, "run", *boot, "--memory", "1G", "--cpu", o.kvm, "--no-reboot", "--stats", "--timeout", o.timeout]
    command += sys.argv[split + 1:]
    print(f"nested-boot: starting L1 ({'Xen' if o.xen else 'Debian' + chr(39) + 's kernel'}) on an emulated", "Intel" if o.kvm == "intel" else "AMD",
          "CPU; its first line comes in a moment", flush=True)
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    times, failed, tail, dr_exits = {}, [], [], 0
    expected = set(o.expect)
    first = None
    for raw in child.stdout:
        now = time.monotonic() - began
        first = first or now
        line = raw.decode(errors="replace").rstrip("\r\n")
        tail = (tail + [line])[-40:]
        shown = False
        for mark, _ in marks:
            if mark in line and mark not in times:
                times[mark] = now
                shown = True
        expected -= {text for text in expected if text in line}
        dr = re.match(r"\s+(?:DR_ACCESS|(?:READ|WRITE)_DR\d)\s+(\d+)\s", line)
        dr_exits += int(dr[1]) if dr else 0
        if "NESTOR-FAILED" in line:
            failed.append(line)
        if not o.quiet or shown or failed or line.startswith(("nestor", "l2run")) or "NESTOR-L2-END" in times:
            print(line, flush=True)
    status = child.wait()
    total = time.monotonic() - began

    failed += [f"no line says '{text}'" for text in sorted(expected)]
    # Nobody uses debug registers, but a starting Linux clears those of its processor; then KVM stops intercepting them.
    # With an L3 L2's KVM does that too, and moves the registers themselves, which L1 intercepts one by one.
    if dr_exits > (16 if l3 else int(o.l2_cpus)):
        failed.append(f"{dr_exits} VM exits for debug registers")
    missing = [mark for mark, _ in marks if mark not in times]
    good = status == 0 and not missing and not failed
    if not good and o.quiet:
        print("\n".join(tail))
    print("\n== what ran")
    print(f"  L0  nestor, {total:.1f} s from start to end, exit status {status}")
    if first is not None:
        print(f"  L1  first line after {first:.1f} s")
    previous = 0.0
    for mark, text in marks:
        if mark in times:
            level = text[:2]
            print(f"  {level}  {text}: {times[mark]:.1f} s after the start (+{times[mark] - previous:.1f} s)")
            previous = times[mark]
        else:
            print(f"  --  never: {text}")
    for line in failed:
        print("  failed:", line)
    return 0 if good else 1


sys.exit(main())
