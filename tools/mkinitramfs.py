#!/usr/bin/env python3
"""Writes an initramfs (cpio, "newc") without needing root.

    mkinitramfs.py OUTPUT PATH=SOURCE... [@FILE]

Each SOURCE file becomes PATH with its permission bits, an empty SOURCE a folder; @FILE has more of them,
one a line. Folders on the way are made. /dev/console,
/dev/null and the usual mount points are always there. Format: Linux
Documentation/driver-api/early-userspace/buffer-format.rst.
"""
import os
import stat
import sys

FOLDERS = ["bin", "dev", "proc", "sys", "tmp", "root"]
NODES = [("dev/console", 5, 1), ("dev/null", 1, 3)]


class Archive:
    def __init__(self):
        self.data = bytearray()
        self.inode = 0
        self.folders = set()

    def entry(self, name, mode, body=b"", rdev=(0, 0)):
        self.inode += 1
        fields = [self.inode, mode, 0, 0, 1, 0, len(body), 0, 0, rdev[0], rdev[1], len(name) + 1, 0]
        self.data += b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
        self.pad()
        self.data += body
        self.pad()

    def pad(self):
        self.data += b"\0" * (-len(self.data) % 4)

    def folder(self, name):
        if not name or name in self.folders:
            return
        self.folder(os.path.dirname(name))
        self.folders.add(name)
        self.entry(name, stat.S_IFDIR | 0o755)

    def file(self, name, source):
        with open(source, "rb") as f:
            body = f.read()
        self.folder(os.path.dirname(name))
        self.entry(name, stat.S_IFREG | stat.S_IMODE(os.stat(source).st_mode), body)


def main():
    if len(sys.argv) < 3:
        sys.exit("usage: mkinitramfs.py OUTPUT PATH=SOURCE...")
    archive = Archive()
    for name in FOLDERS:
        archive.folder(name)
    for name, major, minor in NODES:
        archive.entry(name, stat.S_IFCHR | 0o600, rdev=(major, minor))
    items = []
    for item in sys.argv[2:]:
        if item.startswith("@"):
            with open(item[1:]) as f:
                items += f.read().splitlines()
        else:
            items.append(item)
    for item in items:
        name, _, source = item.partition("=")
        if not source:
            archive.folder(name)
            continue
        try:
            archive.file(name, source)
        except OSError as error:
            sys.exit(f"mkinitramfs.py: {source}: {error.strerror}")
    archive.entry("TRAILER!!!", 0)
    with open(sys.argv[1], "wb") as f:
        f.write(archive.data)


main()
