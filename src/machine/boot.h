/*
 * Guest images: what a boot loader would do. Every kind ends in 32-bit protected mode with flat
 * segments and paging off; the registers differ.
 */
#pragma once
#include "base/error.h"
#include "mmu/physmap.h"

enum boot_kind { BOOT_LINUX, BOOT_MULTIBOOT, BOOT_PVH };

struct boot_file {
    char *path;
    u8 *data;
    size_t size;
};

#define BOOT_MODULES_MAX 16

/* A multiboot module: a file, and the text that goes with it. */
struct boot_module {
    struct boot_file file;
    char *args;
};

struct boot {
    enum boot_kind kind;
    struct boot_file kernel, initrd; /* initrd.path NULL: none; with multiboot the first module */
    struct boot_module module[BOOT_MODULES_MAX];
    unsigned nmodules;
    char *append;
    u64 ram;
    bool built_in; /* there is no file to read again */
};

/* The processor's state at the image's first instruction. */
struct boot_entry {
    u32 eip, eax, ebx, esi;
    u32 gdt;      /* physical address of a GDT with flat code at 0x10 and data at 0x18 */
    u16 gdt_limit;
};

/*
 * Reads the files and checks that the image is one of the kinds known and fits into @ram bytes of
 * memory. @initrd and @append may be NULL. Each of @modules is "FILE[ ARGUMENTS]". An image built into the program is given as @data.
 */
int boot_open(struct boot *b, const char *kernel, const char *initrd, const char *append, const char *const *modules,
              unsigned nmodules, u64 ram, struct error *err);
int boot_open_memory(struct boot *b, const char *name, const u8 *data, size_t size, const char *append, u64 ram,
                     struct error *err);
void boot_close(struct boot *b);
/* Frees what the files held: once loaded, they would double the memory that a large initrd takes. */
void boot_drop(struct boot *b);
const char *boot_kind_name(enum boot_kind kind);
/*
 * Places everything into memory (again at each reset) and tells where to start. What boot_drop() has dropped is read again: an
 * error if a file is gone or of another size by then.
 */
int boot_load(struct boot *b, struct physmap *pm, struct boot_entry *entry, struct error *err);
