#!/usr/bin/env python3
"""Boots Linux as L1 under nestor, lets its KVM boot a Linux L2, and reports what ran when.

    nested-boot.py NESTOR GUEST-FOLDER [--kvm-args "ept=0"] [--kvm intel|amd] [--l2-args ...] [--l2-cpus N]
                   [--l2-32] [--l3] [--timeout S] [--quiet] [-- NESTOR-OPTION...]

--l2-32 (a 32-bit Linux without PAE as L2) and --l3 (an L3 in it) need what "tools/mkguest --all" makes.
Exit status 0 when the innermost guest reached its shell, on as many processors as it was given, and L1
switched the machine off; 1 otherwise.
"""
import argparse
import os
import subprocess
import sys
import time

def marks(deepest):
    """What is printed on the way, in order."""
    result = [("NESTOR-L1-USER-SPACE", "L1 reached user space")]
    for level in range(2, deepest + 1):
        result += [(f"NESTOR-L{level}-START", f"L{level - 1} started its guest"),
                   (f"NESTOR-L{level}-USER-SPACE", f"L{level} reached user space")]
    result += [(f"NESTOR-L{deepest}-SHELL", f"L{deepest}'s shell ran")]
    return result + [(f"NESTOR-L{level}-END", f"L{level} ended") for level in range(deepest, 1, -1)]


def main():
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    p = argparse.ArgumentParser()
    p.add_argument("nestor")
    p.add_argument("guest")
    p.add_argument("--kvm", default="intel")
    p.add_argument("--kvm-args", default="")
    p.add_argument("--l2-args", default="")
    p.add_argument("--l2-cpus", type=int, default=1)
    p.add_argument("--l2-32", action="store_true")
    p.add_argument("--l3", action="store_true")
    p.add_argument("--timeout", default="600")
    p.add_argument("--quiet", action="store_true", help="only markers and the report, no console")
    o = p.parse_args(sys.argv[1:split])

    append = f"console=ttyS0 panic=-1 no_timer_check KVM={o.kvm}"
    if o.quiet:
        append += " quiet"
    if o.kvm_args:
        append += " KVM_ARGS=" + o.kvm_args.replace(" ", ",")
    l2_args = ("quiet," if o.quiet else "") + o.l2_args.replace(" ", ",")
    if l2_args:
        append += " L2_ARGS=" + l2_args.strip(",")
    if o.l2_cpus != 1:
        append += f" L2_CPUS={o.l2_cpus}"
    if o.l3:
        append += " L2_MEMORY=768"
    initrd = os.path.join(o.guest, "initrd-l3" if o.l3 else "initrd-32" if o.l2_32 else "initrd")
    machine = f"NESTOR-L2-MACHINE {'i686' if o.l2_32 else 'x86_64'} cpus {o.l2_cpus}"
    deepest = 3 if o.l3 else 2
    expected = marks(deepest)
    command = [o.nestor, "run", "--kernel", os.path.join(o.guest, "vmlinuz"), "--initrd", initrd,
               "--append", append, "--memory", "2G" if o.l3 else "1G", "--cpu", o.kvm, "--no-reboot", "--stats", "--timeout", o.timeout]
    command += sys.argv[split + 1:]
    print("nested-boot: starting L1 (Debian's kernel) on an emulated", "Intel" if o.kvm == "intel" else "AMD",
          "CPU; its first line comes in a moment", flush=True)
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    times, failed, tail = {}, [], []
    first, told = None, None
    for raw in child.stdout:
        now = time.monotonic() - began
        first = first or now
        line = raw.decode(errors="replace").rstrip("\r\n")
        tail = (tail + [line])[-40:]
        shown = False
        if "NESTOR-L2-MACHINE" in line:
            told = line
        for mark, _ in expected:
            if mark in line and mark not in times:
                times[mark] = now
                shown = True
        if "NESTOR-FAILED" in line:
            failed.append(line)
        if not o.quiet or shown or failed or line.startswith(("nestor", "l2run")) or expected[-1][0] in times:
            print(line, flush=True)
    status = child.wait()
    total = time.monotonic() - began

    missing = [mark for mark, _ in expected if mark not in times]
    if not o.l3 and (told is None or machine not in told):
        failed.append(f"expected {machine}, but L2 says: {told}")
    good = status == 0 and not missing and not failed
    if not good and o.quiet:
        print("\n".join(tail))
    print("\n== what ran")
    print(f"  L0  nestor, {total:.1f} s from start to end, exit status {status}")
    if first is not None:
        print(f"  L1  first line after {first:.1f} s")
    previous = 0.0
    for mark, text in expected:
        if mark in times:
            print(f"  {text[:2]}  {text}: {times[mark]:.1f} s after the start (+{times[mark] - previous:.1f} s)")
            previous = times[mark]
        else:
            print(f"  --  never: {text}")
    for line in failed:
        print("  failed:", line)
    return 0 if good else 1


sys.exit(main())
