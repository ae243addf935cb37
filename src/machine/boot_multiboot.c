/* Multiboot Specification 0.6.96: ELF images or raw ones with address fields, one optional module. */
#include "machine/boot_kinds.h"
#include "machine/memmap.h"

#define MAGIC 0x1badb002u
#define LOADER_MAGIC 0x2badb002u
#define FLAG_MODULES_ALIGNED BIT(0)
#define FLAG_MEMORY BIT(1)
#define FLAG_VIDEO BIT(2)
#define FLAG_ADDRESSES BIT(16)

#define INFO_SIZE 0x7000u /* the information structure and everything it points to */

static long header_at(const struct boot_file *f)
{
    for (size_t at = 0; at + 12 <= f->size && at + 12 <= 8192; at += 4) {
        u32 magic = load32(f->data + at), flags = load32(f->data + at + 4), sum = load32(f->data + at + 8);
        if (magic == MAGIC && magic + flags + sum == 0)
            return (long)at;
    }
    return -1;
}

static bool probe(const struct boot_file *f) { return header_at(f) >= 0; }

/* Loads (or with @pm NULL checks) the image itself. */
static int place(const struct boot *b, struct physmap *pm, struct elf_layout *layout, struct error *err)
{
    const struct boot_file *f = &b->kernel;
    size_t at = (size_t)header_at(f);
    u32 flags = load32(f->data + at + 4);
    if (!(flags & FLAG_ADDRESSES)) {
        if (!elf_probe(f))
            return error_set(err, "kernel %s: multiboot without address fields, and not an ELF file", f->path);
        return elf_load(f, b->ram, pm, layout, err);
    }
    if (f->size < at + 32)
        return error_set(err, "kernel %s: truncated: the multiboot header's address fields are missing", f->path);
    u32 header = load32(f->data + at + 12), load = load32(f->data + at + 16), end = load32(f->data + at + 20),
        bss = load32(f->data + at + 24), entry = load32(f->data + at + 28);
    u64 offset = at - (u64)(header - load);
    u64 size = end ? (u64)end - load : f->size - offset;
    if (header < load || header - load > at || size > f->size - offset)
        return error_set(err, "kernel %s: truncated: multiboot loads %#llx bytes from %#llx, the file has %#zx", f->path,
                         (unsigned long long)size, (unsigned long long)offset, f->size);
    u64 top = (u64)load + size;
    if (bss > top)
        top = bss;
    if (top > memmap_low_ram(b->ram))
        return error_set(err, "kernel %s: ends at %#llx, the memory at %#llx", f->path, (unsigned long long)top,
                         (unsigned long long)memmap_low_ram(b->ram));
    *layout = (struct elf_layout){.entry = entry, .low = load, .high = top};
    if (pm)
        physmap_write(pm, load, f->data + offset, size);
    return 0;
}

static u64 module_at(const struct elf_layout *l) { return (l->high + PAGE_SIZE - 1) & PAGE_MASK; }

/*
 * Where the information goes: low memory if the image leaves it alone (one linked at 0x8000 does not),
 * else behind the image and its module.
 */
static u64 info_at(const struct boot *b, const struct elf_layout *l)
{
    static const u64 low[] = {0x9000, MAP_EBDA - 0xc00 - INFO_SIZE};
    for (unsigned n = 0; n < ARRAY_SIZE(low); n++)
        if (l->high <= low[n] || l->low >= low[n] + INFO_SIZE)
            return low[n];
    return module_at(l) + ((b->initrd.size + PAGE_SIZE - 1) & PAGE_MASK);
}

static int check(const struct boot *b, struct error *err)
{
    struct elf_layout layout;
    u32 flags = load32(b->kernel.data + header_at(&b->kernel) + 4);
    if (flags & 0xffff & ~(FLAG_MODULES_ALIGNED | FLAG_MEMORY | FLAG_VIDEO))
        return error_set(err, "kernel %s: needs multiboot features %#x that are not known", b->kernel.path, flags & 0xffff);
    if (place(b, NULL, &layout, err))
        return -1;
    u64 module = module_at(&layout), top = memmap_low_ram(b->ram);
    if (b->initrd.path && (module > top || b->initrd.size > top - module))
        return error_set(err, "initrd %s: its %zu bytes do not fit behind the kernel", b->initrd.path, b->initrd.size);
    if (info_at(b, &layout) + INFO_SIZE > top)
        return error_set(err, "kernel %s: leaves no room for the multiboot information in %llu MiB", b->kernel.path,
                         (unsigned long long)(b->ram >> 20));
    if (strlen(b->append) + strlen(b->kernel.path) > 0x4000)
        return error_set(err, "--append: %zu characters long, expected at most 16 KiB", strlen(b->append));
    return 0;
}

static int load(const struct boot *b, struct physmap *pm, struct boot_entry *entry, struct error *err)
{
    struct elf_layout layout;
    if (place(b, pm, &layout, err))
        return -1;
    u8 info[INFO_SIZE] = {0};
    u64 info_pa = info_at(b, &layout);
    u32 cmdline = 0x400, map = 0x100, module = 0x80, name = 0xc0;
    u32 flags = BIT(0) | BIT(2) | BIT(6) | BIT(9);
    const char *base = strrchr(b->kernel.path, '/');
    size_t n = strlen(base ? base + 1 : b->kernel.path);
    memcpy(info + cmdline, base ? base + 1 : b->kernel.path, n);
    if (*b->append) {
        info[cmdline + n] = ' ';
        memcpy(info + cmdline + n + 1, b->append, strlen(b->append));
    }
    memcpy(info + name, "nestor", 7);

    struct e820_entry e820[E820_MAX];
    unsigned entries = memmap_e820(b->ram, e820);
    for (unsigned i = 0; i < entries; i++) {
        u8 *e = info + map + 24 * i;
        store32(e, 20);
        store64(e + 4, e820[i].base);
        store64(e + 12, e820[i].size);
        store32(e + 20, e820[i].type);
    }
    store32(info + 4, (u32)(MAP_EBDA >> 10));
    store32(info + 8, (u32)((memmap_low_ram(b->ram) - 0x100000) >> 10));
    store32(info + 16, (u32)info_pa + cmdline);
    if (b->initrd.path) {
        u64 at = module_at(&layout);
        flags |= BIT(3);
        physmap_write(pm, at, b->initrd.data, b->initrd.size);
        store32(info + 20, 1);
        store32(info + 24, (u32)info_pa + module);
        store32(info + module, (u32)at);
        store32(info + module + 4, (u32)(at + b->initrd.size));
        store32(info + module + 8, (u32)info_pa + name);
    }
    store32(info + 44, 24 * entries);
    store32(info + 48, (u32)info_pa + map);
    store32(info + 64, (u32)info_pa + name);
    store32(info, flags);
    physmap_write(pm, info_pa, info, sizeof(info));
    entry->eip = (u32)layout.entry;
    entry->eax = LOADER_MAGIC;
    entry->ebx = (u32)info_pa;
    return 0;
}

const struct boot_loader boot_multiboot = {.name = "multiboot 1 image", .probe = probe, .check = check, .load = load};
