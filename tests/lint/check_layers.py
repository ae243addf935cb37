#!/usr/bin/env python3
"""Reads every #include of src/ against the layers of docs/architecture.md.

    check_layers.py SOURCE-ROOT
"""
import os
import re
import sys

LAYERS = {"base": 0, "isa": 1, "state": 1, "mmu": 2, "devices": 3, "cpu": 4, "vmx": 5, "svm": 5, "jit": 5, "machine": 6, "debug": 7, "cli": 8}
# Pure data that every room above may see, and the two device interfaces the CPU may use.
STATE = {"cpu/state.h", "cpu/features.h", "cpu/features.def"}
INTERFACES = {"devices/irq.h", "devices/bus.h"}


def room(path):
    if path in STATE:
        return "state"
    parts = path.split("/")
    return "isa" if parts[:2] == ["cpu", "isa"] else parts[0]


def allowed(source, target):
    a, b = room(source), room(target)
    if a == "cli":
        return b == "cli"
    if b not in LAYERS:
        return True  # generated headers
    if a == "devices" and b in ("isa", "state", "cpu"):
        return False
    if a == "cpu" and b == "devices":
        return target in INTERFACES
    if LAYERS[a] == 5 and LAYERS[b] == 5:
        return a == b
    return LAYERS[b] <= LAYERS[a]


def main():
    root = os.path.join(sys.argv[1], "src")
    bad = checked = 0
    for folder, _, files in os.walk(root):
        for name in files:
            if not name.endswith((".c", ".h", ".def")):
                continue
            path = os.path.join(folder, name)
            source = os.path.relpath(path, root)
            for number, line in enumerate(open(path), 1):
                m = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
                if not m or "/" not in m.group(1):
                    continue
                checked += 1
                if not allowed(source, m.group(1)):
                    print(f"src/{source}:{number}: {room(source)} may not include {m.group(1)}")
                    bad += 1
    print(f"{checked} includes, {bad} against the layers")
    return 1 if bad or checked < 50 else 0


sys.exit(main())
