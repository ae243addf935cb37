#!/usr/bin/env python3
"""Linux on several processors survives a storm of forks and execs.

    test_storm.py NESTOR GUEST-FOLDER [--rounds N] [--smp N] [-- NESTOR-OPTION...]

Sixteen loops of N rounds run at once (init-l1). Fails on a wrong result, on a processor that is missing, on
a complaint of the kernel, and when the guest does not switch the machine off.
"""
import argparse
import os
import re
import subprocess
import sys

COMPLAINTS = re.compile(r"BUG|Oops|WARNING|rcu.*stall|soft lockup|hard LOCKUP|general protection|segfault|NESTOR-FAILED|Call Trace")


def main():
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    p = argparse.ArgumentParser()
    p.add_argument("nestor")
    p.add_argument("guest")
    p.add_argument("--rounds", type=int, default=10)
    p.add_argument("--smp", type=int, default=4)
    p.add_argument("--timeout", default="600")
    o = p.parse_args(sys.argv[1:split])
    command = [o.nestor, "run", "--kernel", os.path.join(o.guest, "vmlinuz"), "--initrd", os.path.join(o.guest, "initrd"),
               "--append", f"console=ttyS0 panic=-1 no_timer_check quiet STORM={o.rounds}", "--memory", "512M", "--smp", str(o.smp),
               "--no-reboot", "--timeout", o.timeout] + sys.argv[split + 1:]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout.decode(errors="replace")
    end = re.search(r"NESTOR-STORM-END (\d+) processors, processes (\d+)", text)
    bad = [line for line in text.splitlines() if COMPLAINTS.search(line)]
    # Each round forks for $(), the pipe's two ends and the last command.
    if done.returncode == 0 and end and int(end[1]) == o.smp and int(end[2]) >= 16 * o.rounds * 3 and not bad:
        print(f"{end[1]} processors, {end[2]} processes")
        return 0
    print(text)
    print(f"exit status {done.returncode}; {end[0] if end else 'the storm did not end'}; complaints: {bad}")
    return 1


sys.exit(main())
