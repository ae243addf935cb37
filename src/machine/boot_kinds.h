/* The loaders behind boot.h, one file each: does the image look like mine; is it sound; load it. */
#pragma once
#include "machine/boot.h"

/* Low memory that the loaders share. */
#define BOOT_GDT_AT 0x800
#define BOOT_INFO_AT 0x9000    /* PVH information and what it points to, up to 0x10000 */
#define BOOT_PARAMS_AT 0x10000 /* Linux's zero page */
#define BOOT_CMDLINE_AT 0x11000 /* up to 0x20000 */
#define BOOT_CMDLINE_MAX (0x20000 - BOOT_CMDLINE_AT)

struct boot_loader {
    const char *name;
    bool (*probe)(const struct boot_file *f);
    int (*check)(const struct boot *b, struct error *err);
    int (*load)(const struct boot *b, struct physmap *pm, struct boot_entry *entry, struct error *err);
};

extern const struct boot_loader boot_linux, boot_multiboot, boot_pvh;

/* ELF images: loads the PT_LOAD segments at their physical addresses. */
struct elf_layout {
    bool is64;
    u64 entry;
    u64 low, high; /* physical extent of the loadable segments */
};
bool elf_probe(const struct boot_file *f);
/* @pm NULL: only checks that every segment lies in the file and in @ram. */
int elf_load(const struct boot_file *f, u64 ram, struct physmap *pm, struct elf_layout *out, struct error *err);
/* Finds note @type of @name; returns its descriptor and length, or NULL. */
const u8 *elf_note(const struct boot_file *f, const char *name, u32 type, u32 *len);
