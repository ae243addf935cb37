#!/usr/bin/env python3
"""Linux on four processors, all of them forking and executing at once.

    test_storm.py NESTOR GUEST-FOLDER [NESTOR-OPTION...]
"""
import os
import re
import subprocess
import sys

LOOPS = 3


def main():
    nestor, guest, options = sys.argv[1], sys.argv[2], sys.argv[3:]
    p = subprocess.run([nestor, "run", "--kernel", os.path.join(guest, "vmlinuz"), "--initrd",
                        os.path.join(guest, "initrd-storm"), "--append",
                        f"console=ttyS0 panic=-1 no_timer_check quiet STORM={LOOPS}", "--smp", "4", "--memory", "512M",
                        "--no-reboot", "--timeout", "150"] + options,
                       stdin=subprocess.DEVNULL, capture_output=True)
    text = p.stdout.decode(errors="replace")
    problems = [line for line in text.splitlines() if re.search("NESTOR-FAILED|BUG:|WARNING:|Oops|rcu.*stall|panic", line)]
    if p.returncode or problems or "NESTOR-STORM-START processors 4" not in text or \
            f"NESTOR-STORM-END loops {8 * LOOPS} of {8 * LOOPS}" not in text:
        sys.exit(f"exit status {p.returncode}, expected 0 and all {8 * LOOPS} loops:\n{text}{p.stderr.decode(errors='replace')}")


main()
