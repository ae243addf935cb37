"""gdb commands for Nestor's stub: VM entries, the VMCS or VMCB, walks, exits; and the width of the code.

    (gdb) source tools/nestor-gdb.py
    (gdb) target remote /tmp/nestor.gdb

Each command is one of the stub's ("monitor help") with completion; `vmentry into` and `vmexit out` also run.
When the code changes between 16, 32 and 64 bits, the target description is read again at the next stop, so that
disassembly, registers and the program counter are right.
"""
import gdb


def monitor(text):
    return gdb.execute("monitor " + text, to_string=True)


def connected():
    try:
        return gdb.selected_inferior().pid != 0
    except gdb.error:
        return False


class Stub(gdb.Command):
    """A command of the stub under its own name."""

    def __init__(self, name, doc):
        self.name = name
        self.__doc__ = doc
        super().__init__(name, gdb.COMMAND_RUNNING)

    def invoke(self, argument, from_tty):
        gdb.write(monitor(f"{self.name} {argument}"))

    def complete(self, text, word):
        if not connected():
            return gdb.COMPLETE_NONE
        lines = monitor(f"complete {self.name} {text}").splitlines()
        # gdb wants what replaces the last word.
        return [line.split(" ")[-1] for line in lines if line]


class VmEntry(Stub):
    def invoke(self, argument, from_tty):
        if argument == "into":
            monitor("until entry")
            gdb.execute("continue")
        else:
            super().invoke(argument, from_tty)


class VmExit(Stub):
    def invoke(self, argument, from_tty):
        if argument == "out":
            monitor("until exit")
            gdb.execute("continue")
        else:
            super().invoke(argument, from_tty)


class Walk(Stub):
    def invoke(self, argument, from_tty):
        # The address may be any expression of gdb's.
        words = argument.split()
        try:
            words[0] = hex(int(gdb.parse_and_eval(words[0]).cast(gdb.lookup_type("long"))) & (1 << 64) - 1)
        except (gdb.error, IndexError):
            pass  # a name that only the stub knows (--symbols), or nothing
        super().invoke(" ".join(words), from_tty)


VmEntry("vmentry", "vmentry break [fail|ID|off] | entered [off] | step [N] | next-failure | why | list [GROUP] | into\n"
                   "Stop at VM entries and step through their checks; into: run to a guest's first instruction.")
VmExit("vmexit", "vmexit break [REASON|off] | list | out\nStop behind VM exits; out: run to the next one.")
Stub("vmcs", "vmcs [PATTERN] | mark | diff | json | set FIELD VALUE\nFields of the current VMCS or VMCB, and how they changed.")
Walk("walk", "walk ADDRESS [root|guest|guest-physical] [read|write|fetch] [user]\nA page walk, guest tables and EPT or NPT together.")
Stub("exits", "exits [--cause REASON] [--by-rip] [--level L] [--reset]\nVM exits by reason, level and place.")
Stub("space", "space [current|root|guest|guest-physical|physical]\nWhich addresses memory commands mean.")
Stub("level", "level [any|root|guest|L1|L2|L3]\nWhere breakpoints count.")

# ---- following the width of the code ----
state = {"width": None}


def width():
    text = monitor("mode")
    return text.split("-")[0] if "-bit code" in text else None


def follow(event=None):
    if not connected():
        return
    try:
        now = width()
        if now is None or now == state["width"]:
            return
        if state["width"] is None:
            monitor("mode follow")
        state["width"] = now
        # Reads the target description again: the stub answers with that of the code.
        gdb.execute("unset tdesc filename", to_string=True)
    except gdb.error:
        state["width"] = None


def forget(event=None):
    state["width"] = None


class Follow(gdb.Parameter):
    """Whether gdb follows the width of the code at stops."""
    set_doc = "Set whether gdb follows the width of the code."
    show_doc = "Show whether gdb follows the width of the code."

    def __init__(self):
        super().__init__("nestor-follow", gdb.COMMAND_RUNNING, gdb.PARAM_BOOLEAN)
        self.value = True

    def get_set_string(self):
        if not self.value and connected():
            monitor("mode fixed")
            gdb.execute("unset tdesc filename", to_string=True)
        forget()
        return ""


parameter = Follow()
gdb.events.stop.connect(lambda event: follow(event) if parameter.value else None)
gdb.events.exited.connect(forget)
