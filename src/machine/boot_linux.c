/*
 * Linux's 32-bit boot protocol (Linux Documentation/arch/x86/boot.rst): the protected-mode part of
 * the bzImage at 1 MiB, the zero page, the command line and the initrd.
 */
#include "machine/boot_kinds.h"
#include "machine/memmap.h"

/* Offsets in the setup header. */
#define HDR_SETUP_SECTS 0x1f1
#define HDR_SYSSIZE 0x1f4
#define HDR_BOOT_FLAG 0x1fe
#define HDR_MAGIC 0x202
#define HDR_VERSION 0x206
#define HDR_TYPE_OF_LOADER 0x210
#define HDR_LOADFLAGS 0x211
#define HDR_RAMDISK_IMAGE 0x218
#define HDR_RAMDISK_SIZE 0x21c
#define HDR_CMD_LINE_PTR 0x228
#define HDR_INITRD_ADDR_MAX 0x22c
#define HDR_CMDLINE_SIZE 0x238
#define HDR_PREF_ADDRESS 0x258
#define HDR_INIT_SIZE 0x260
#define HDR_END 0x290
/* Offsets in the zero page. */
#define ZP_E820_ENTRIES 0x1e8
#define ZP_HDR 0x1f1
#define ZP_E820_TABLE 0x2d0
#define ZP_ACPI_RSDP 0x070

#define LOAD_AT 0x100000u

static size_t setup_size(const u8 *k)
{
    unsigned sects = k[HDR_SETUP_SECTS];
    return ((sects ? sects : 4) + 1) * 512u;
}

static bool probe(const struct boot_file *f)
{
    return f->size > HDR_END && load16(f->data + HDR_BOOT_FLAG) == 0xaa55 && !memcmp(f->data + HDR_MAGIC, "HdrS", 4);
}

static u64 initrd_address(const struct boot *b)
{
    u64 limit = (u64)load32(b->kernel.data + HDR_INITRD_ADDR_MAX) + 1;
    u64 low = memmap_low_ram(b->ram);
    if (limit > low)
        limit = low;
    return b->initrd.size > limit ? 0 : (limit - b->initrd.size) & PAGE_MASK;
}

static int check(const struct boot *b, struct error *err)
{
    const u8 *k = b->kernel.data;
    const char *path = b->kernel.path;
    unsigned version = load16(k + HDR_VERSION);
    if (version < 0x20a)
        return error_set(err, "kernel %s: boot protocol %u.%02u, expected 2.10 or later", path, version >> 8, version & 255);
    if (!(k[HDR_LOADFLAGS] & 1))
        return error_set(err, "kernel %s: a zImage (not loaded high), expected a bzImage", path);
    /* The size is rounded up to paragraphs of 16 bytes; the file need not be. */
    size_t syssize = load32(k + HDR_SYSSIZE), need = setup_size(k) + (syssize ? syssize * 16 - 15 : 0);
    if (b->kernel.size < need)
        return error_set(err, "kernel %s: truncated: its header speaks of %zu bytes, the file has %zu", path, need,
                         b->kernel.size);
    u64 end = load64(k + HDR_PREF_ADDRESS) + load32(k + HDR_INIT_SIZE);
    u64 loaded = LOAD_AT + (u64)load32(k + HDR_SYSSIZE) * 16;
    if (end < loaded)
        end = loaded;
    u64 low = memmap_low_ram(b->ram);
    if (end > low)
        return error_set(err, "kernel %s: needs %llu MiB of memory to unpack itself, --memory gives %llu MiB", path,
                         (unsigned long long)(end >> 20) + 1, (unsigned long long)(b->ram >> 20));
    size_t max = load32(k + HDR_CMDLINE_SIZE);
    if (max >= BOOT_CMDLINE_MAX)
        max = BOOT_CMDLINE_MAX - 1;
    if (strlen(b->append) > max)
        return error_set(err, "--append: %zu characters long, this kernel takes at most %zu", strlen(b->append), max);
    if (b->initrd.path && (b->initrd.size > low || initrd_address(b) < end))
        return error_set(err, "initrd %s: its %zu bytes do not fit beside the kernel in %llu MiB of memory",
                         b->initrd.path, b->initrd.size, (unsigned long long)(b->ram >> 20));
    return 0;
}

static int load(const struct boot *b, struct physmap *pm, struct boot_entry *entry, struct error *err)
{
    (void)err;
    const u8 *k = b->kernel.data;
    size_t setup = setup_size(k);
    u8 zp[4096] = {0};

    /* The header from the image, up to the end its jump instruction tells (boot.rst, "The Real-Mode Kernel Header"). */
    size_t end = 0x202 + k[0x201];
    if (end > ZP_E820_TABLE)
        end = ZP_E820_TABLE;
    memcpy(zp + ZP_HDR, k + ZP_HDR, end - ZP_HDR);

    struct e820_entry map[E820_MAX];
    unsigned n = memmap_e820(b->ram, map);
    zp[ZP_E820_ENTRIES] = (u8)n;
    for (unsigned i = 0; i < n; i++) {
        u8 *e = zp + ZP_E820_TABLE + 20 * i;
        store64(e, map[i].base);
        store64(e + 8, map[i].size);
        store32(e + 16, map[i].type);
    }
    zp[HDR_TYPE_OF_LOADER] = 0xff; /* unassigned loader */
    store32(zp + HDR_CMD_LINE_PTR, BOOT_CMDLINE_AT);
    if (b->initrd.path) {
        u64 at = initrd_address(b);
        store32(zp + HDR_RAMDISK_IMAGE, (u32)at);
        store32(zp + HDR_RAMDISK_SIZE, (u32)b->initrd.size);
        physmap_write(pm, at, b->initrd.data, b->initrd.size);
    }
    physmap_write(pm, BOOT_PARAMS_AT, zp, sizeof(zp));
    physmap_write(pm, BOOT_CMDLINE_AT, b->append, strlen(b->append) + 1);
    physmap_write(pm, LOAD_AT, k + setup, b->kernel.size - setup);
    entry->eip = LOAD_AT;
    entry->esi = BOOT_PARAMS_AT;
    return 0;
}

const struct boot_loader boot_linux = {.name = "Linux bzImage", .probe = probe, .check = check, .load = load};
