#!/usr/bin/env python3
"""Writes a file as a C array: embed.py INPUT OUTPUT.c NAME."""
import sys

source, output, name = sys.argv[1:]
data = open(source, "rb").read()
with open(output, "w") as f:
    f.write("#include <stddef.h>\n")
    f.write(f"extern const unsigned char {name}[];\nextern const size_t {name}_size;\n")
    f.write(f"const unsigned char {name}[] = {{\n")
    for i in range(0, len(data), 24):
        f.write(",".join(str(b) for b in data[i : i + 24]) + ",\n")
    f.write(f"}};\nconst size_t {name}_size = sizeof({name});\n")
