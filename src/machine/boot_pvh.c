/*
 * ELF images with a PVH entry note (Xen's x86/HVM direct boot ABI): 32-bit protected mode, EBX points
 * to struct hvm_start_info.
 */
#include "machine/boot_kinds.h"
#include "machine/memmap.h"

#define XEN_ELFNOTE_PHYS32_ENTRY 18
#define START_INFO_MAGIC 0x336ec578u

static bool probe(const struct boot_file *f)
{
    u32 len;
    return elf_probe(f) && elf_note(f, "Xen", XEN_ELFNOTE_PHYS32_ENTRY, &len) && len >= 4;
}

static int check(const struct boot *b, struct error *err)
{
    struct elf_layout layout;
    if (elf_load(&b->kernel, b->ram, NULL, &layout, err))
        return -1;
    u64 module = (layout.high + PAGE_SIZE - 1) & PAGE_MASK;
    if (b->initrd.path && b->initrd.size > memmap_low_ram(b->ram) - module)
        return error_set(err, "initrd %s: its %zu bytes do not fit behind the kernel", b->initrd.path, b->initrd.size);
    if (strlen(b->append) >= BOOT_CMDLINE_MAX)
        return error_set(err, "--append: %zu characters long, expected at most %u", strlen(b->append), BOOT_CMDLINE_MAX - 1);
    return 0;
}

static int load(const struct boot *b, struct physmap *pm, struct boot_entry *entry, struct error *err)
{
    struct elf_layout layout;
    u32 len;
    if (elf_load(&b->kernel, b->ram, pm, &layout, err))
        return -1;
    u8 info[0x800] = {0};
    u32 module = 0x40, map = 0x80;
    struct e820_entry e820[E820_MAX];
    unsigned entries = memmap_e820(b->ram, e820);
    store32(info, START_INFO_MAGIC);
    store32(info + 4, 1); /* version: has the memory map */
    if (b->initrd.path) {
        u64 at = (layout.high + PAGE_SIZE - 1) & PAGE_MASK;
        physmap_write(pm, at, b->initrd.data, b->initrd.size);
        store32(info + 12, 1);
        store64(info + 16, BOOT_INFO_AT + module);
        store64(info + module, at);
        store64(info + module + 8, b->initrd.size);
    }
    store64(info + 24, BOOT_CMDLINE_AT);
    store64(info + 32, 0xf0000); /* RSDP */
    store64(info + 40, BOOT_INFO_AT + map);
    store32(info + 48, entries);
    for (unsigned i = 0; i < entries; i++) {
        u8 *e = info + map + 24 * i;
        store64(e, e820[i].base);
        store64(e + 8, e820[i].size);
        store32(e + 16, e820[i].type);
    }
    physmap_write(pm, BOOT_INFO_AT, info, sizeof(info));
    physmap_write(pm, BOOT_CMDLINE_AT, b->append, strlen(b->append) + 1);
    entry->eip = load32(elf_note(&b->kernel, "Xen", XEN_ELFNOTE_PHYS32_ENTRY, &len));
    entry->ebx = BOOT_INFO_AT;
    return 0;
}

const struct boot_loader boot_pvh = {.name = "ELF image with PVH entry", .probe = probe, .check = check, .load = load};
