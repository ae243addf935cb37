/* Multiboot Specification 0.6.96: ELF images or raw ones with address fields, and modules. */
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

/* The modules in order: --initrd, then each --module. */
static const struct boot_file *module(const struct boot *b, unsigned n, const char **args)
{
    bool initrd = b->initrd.path != NULL;
    if (n >= b->nmodules + initrd)
        return NULL;
    if (initrd && n == 0) {
        *args = "";
        return &b->initrd;
    }
    *args = b->module[n - initrd].args;
    return &b->module[n - initrd].file;
}

static u64 page_up(u64 pa) { return (pa + PAGE_SIZE - 1) & PAGE_MASK; }

/* What follows the image: the modules, one behind the other from page to page. Their end. */
static u64 modules_end(const struct boot *b, const struct elf_layout *l)
{
    u64 at = page_up(l->high);
    const struct boot_file *f;
    const char *args;
    for (unsigned n = 0; (f = module(b, n, &args)); n++)
        at += page_up(f->size);
    return at;
}

/*
 * Where the information goes: low memory if the image leaves it alone (one linked at 0x8000 does not),
 * else behind the image and its modules.
 */
static u64 info_at(const struct boot *b, const struct elf_layout *l)
{
    static const u64 low[] = {0x9000, MAP_EBDA - 0xc00 - INFO_SIZE};
    for (unsigned n = 0; n < ARRAY_SIZE(low); n++)
        if (l->high <= low[n] || l->low >= low[n] + INFO_SIZE)
            return low[n];
    return modules_end(b, l);
}

/* Inside the information structure. */
enum { INFO_NAME = 0x70, INFO_MODULES = 0x80, INFO_MAP = 0x200, INFO_TEXT = 0x400 };
_Static_assert(INFO_MODULES + 16 * (BOOT_MODULES_MAX + 1) <= INFO_MAP && INFO_MAP + 24 * E820_MAX <= INFO_TEXT, "the parts do not overlap");

static const char *file_name(const struct boot_file *f)
{
    const char *base = strrchr(f->path, '/');
    return base ? base + 1 : f->path;
}

/* "NAME ARGS" at @info + @at, if it is to be written; the place behind it. */
static size_t text(u8 *info, size_t at, const struct boot_file *f, const char *args)
{
    const char *name = file_name(f);
    size_t n = strlen(name), m = strlen(args);
    if (info) {
        memcpy(info + at, name, n);
        if (m) {
            info[at + n] = ' ';
            memcpy(info + at + n + 1, args, m);
        }
    }
    return at + n + m + 2;
}

static int check(const struct boot *b, struct error *err)
{
    struct elf_layout layout;
    const struct boot_file *f;
    const char *args;
    u32 flags = load32(b->kernel.data + header_at(&b->kernel) + 4);
    if (flags & 0xffff & ~(FLAG_MODULES_ALIGNED | FLAG_MEMORY | FLAG_VIDEO))
        return error_set(err, "kernel %s: needs multiboot features %#x that are not known", b->kernel.path, flags & 0xffff);
    if (place(b, NULL, &layout, err))
        return -1;
    u64 at = page_up(layout.high), top = memmap_low_ram(b->ram);
    size_t end = text(NULL, INFO_TEXT, &b->kernel, b->append);
    for (unsigned n = 0; (f = module(b, n, &args)); n++) {
        if (at > top || f->size > top - at)
            return error_set(err, "%s %s: its %zu bytes do not fit behind the kernel", f == &b->initrd ? "initrd" : "module", f->path, f->size);
        at += page_up(f->size);
        end = text(NULL, end, f, args);
    }
    if (info_at(b, &layout) + INFO_SIZE > top)
        return error_set(err, "kernel %s: leaves no room for the multiboot information in %llu MiB", b->kernel.path,
                         (unsigned long long)(b->ram >> 20));
    if (end > INFO_SIZE)
        return error_set(err, "--append and --module: %zu characters long together, expected at most %u", end - INFO_TEXT, INFO_SIZE - INFO_TEXT);
    return 0;
}

static int load(const struct boot *b, struct physmap *pm, struct boot_entry *entry, struct error *err)
{
    struct elf_layout layout;
    const struct boot_file *f;
    const char *args;
    if (place(b, pm, &layout, err))
        return -1;
    u8 info[INFO_SIZE] = {0};
    u64 info_pa = info_at(b, &layout), at = page_up(layout.high);
    u32 flags = BIT(0) | BIT(2) | BIT(6) | BIT(9);
    size_t end = text(info, INFO_TEXT, &b->kernel, b->append);
    memcpy(info + INFO_NAME, "nestor", 7);

    struct e820_entry e820[E820_MAX];
    unsigned entries = memmap_e820(b->ram, e820), modules = 0;
    for (unsigned i = 0; i < entries; i++) {
        u8 *e = info + INFO_MAP + 24 * i;
        store32(e, 20);
        store64(e + 4, e820[i].base);
        store64(e + 12, e820[i].size);
        store32(e + 20, e820[i].type);
    }
    for (; (f = module(b, modules, &args)); modules++) {
        u8 *m = info + INFO_MODULES + 16 * modules;
        physmap_write(pm, at, f->data, f->size);
        store32(m, (u32)at);
        store32(m + 4, (u32)(at + f->size));
        store32(m + 8, (u32)(info_pa + end));
        end = text(info, end, f, args);
        at += page_up(f->size);
    }
    store32(info + 4, (u32)(MAP_EBDA >> 10));
    store32(info + 8, (u32)((memmap_low_ram(b->ram) - 0x100000) >> 10));
    store32(info + 16, (u32)info_pa + INFO_TEXT);
    if (modules) {
        flags |= BIT(3);
        store32(info + 20, modules);
        store32(info + 24, (u32)info_pa + INFO_MODULES);
    }
    store32(info + 44, 24 * entries);
    store32(info + 48, (u32)info_pa + INFO_MAP);
    store32(info + 64, (u32)info_pa + INFO_NAME);
    store32(info, flags);
    physmap_write(pm, info_pa, info, sizeof(info));
    entry->eip = (u32)layout.entry;
    entry->eax = LOADER_MAGIC;
    entry->ebx = (u32)info_pa;
    return 0;
}

const struct boot_loader boot_multiboot = {.name = "multiboot 1 image", .probe = probe, .check = check, .load = load};
