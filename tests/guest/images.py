"""Images that tests make themselves."""
import struct

BASE = 0x100000


def multiboot(code):
    """A raw multiboot 1 image at 1 MiB whose entry is @code (32-bit), at 0x100020."""
    flags = 1 << 16
    return struct.pack("<8I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, BASE, BASE, 0, 0, BASE + 32) + code
