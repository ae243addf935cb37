#!/usr/bin/env python3
"""Runs every command of docs/debugging-a-vm-entry.md and compares what it prints with what the page shows.

    test_walkthrough.py NESTOR DEMO-ELF PAGE

Addresses of the demo's code differ between compilers and are not compared. NESTOR_UPDATE=1 in the environment
writes what was printed into the page.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from monitor_client import Monitor  # noqa: E402

NESTOR, DEMO, PAGE = (os.path.abspath(a) for a in sys.argv[1:4])
ROOT = os.path.dirname(os.path.dirname(PAGE))


def console(commands):
    out = []
    for c in commands:
        r = subprocess.run(["sh", "-c", "nestor() { " + NESTOR + ' "$@"; }; ' + c], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           text=True, timeout=60)
        out.append(r.stdout)
    return out


def gdb(commands):
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "gdb")
    nestor = subprocess.Popen([NESTOR, "demo", "--gdb", "unix:" + path, "--gdb-wait", "--timeout", "60"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not os.path.exists(path):
            if nestor.poll() is not None:
                sys.exit("nestor demo does not listen")
            time.sleep(0.05)
        args = ["-ex", "set pagination off", "-ex", "set width 0", "-ex", "file " + DEMO, "-ex", "target remote " + path]
        for c in commands:
            args += ["-ex", "echo @@@\\n", "-ex", c]
        r = subprocess.run(["gdb", "-nx", "-batch", *args, "-ex", "echo @@@\\n", "-ex", "kill"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, timeout=60)
        return r.stdout.split("@@@\n")[1:-1]
    finally:
        nestor.kill()
        nestor.wait()
        shutil.rmtree(folder)


def monitor(commands, cpu):
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "monitor")
    nestor = subprocess.Popen([NESTOR, "demo", "--cpu", cpu, "--symbols", DEMO, "--monitor", "unix:" + path, "--monitor-wait", "--timeout", "60"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        m = Monitor(path)
        return [m(c) for c in commands]
    finally:
        nestor.kill()
        nestor.wait()
        shutil.rmtree(folder)


PROMPTS = {"console": "$ ", "gdb": "(gdb) ", "monitor": "(nestor) ", "monitor-amd": "(nestor) "}


def block(kind, text):
    prompt = PROMPTS[kind]
    commands = [line[len(prompt):] for line in text.splitlines() if line.startswith(prompt)]
    printed = console(commands) if kind == "console" else gdb(commands) if kind == "gdb" else monitor(commands, "amd" if "amd" in kind else "intel")
    if len(printed) != len(commands):
        sys.exit(f"{len(commands)} commands, {len(printed)} answers: {printed}")
    lines = []
    for command, out in zip(commands, printed):
        lines.append(prompt + command)
        lines += [line.rstrip() for line in out.splitlines() if line.strip() or kind == "console"]
    return "\n".join(lines).rstrip() + "\n"


def comparable(text):
    return re.sub(r"0x[0-9a-f]{5,16}\b(?! ?\(33\))|\d+ instructions|\+0x[0-9a-f]+(?=>)", "N", text)


def main():
    if not shutil.which("gdb"):
        print("skipped: gdb is not installed (tools/setup installs it)")
        return 77
    page, bad = open(PAGE).read(), 0

    def run(match):
        nonlocal bad
        got = block(match.group(1), match.group(2))
        if comparable(got) != comparable(match.group(2)):
            bad += 1
            if not os.environ.get("NESTOR_UPDATE"):
                print(f"the page shows:\n{match.group(2)}\nprinted:\n{got}")
        return f"```{match.group(1)}\n{got}```"

    new = re.sub(r"```(console|gdb|monitor|monitor-amd)\n(.*?)```", run, page, flags=re.S)
    if os.environ.get("NESTOR_UPDATE"):
        open(PAGE, "w").write(new)
        return 0
    return 1 if bad else 0


sys.exit(main())
