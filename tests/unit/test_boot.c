/* The loaders: what they accept, what they refuse and in which words, and where things end up. */
#include "machine/boot.h"
#include "machine/boot_kinds.h"
#include "machine/memmap.h"

#include <elf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define RAM (64ull << 20)

struct file {
    char path[64];
};

static void write_file(struct file *f, const void *data, size_t size)
{
    strcpy(f->path, "/tmp/nestor-test-XXXXXX");
    int fd = mkstemp(f->path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size), size);
    close(fd);
}

static void expect_refusal(const void *data, size_t size, const char *append, u64 ram, const char *words)
{
    struct file f;
    struct boot b;
    struct error err = {""};
    write_file(&f, data, size);
    int r = boot_open(&b, f.path, NULL, append, NULL, 0, ram, &err);
    unlink(f.path);
    assert_int_equal(r, -1);
    if (!strstr(err.text, words))
        fail_msg("expected '%s' in: %s", words, err.text);
    assert_null(strchr(err.text, '\n'));
    assert_non_null(strstr(err.text, append && strstr(words, "append") ? "--append" : f.path));
}

/* A bzImage with one setup sector and @payload bytes of protected-mode code. */
static size_t make_bzimage(u8 *k, size_t payload)
{
    memset(k, 0, 1024 + payload);
    k[0x1f1] = 1;
    store32(k + 0x1f4, (u32)(payload / 16));
    store16(k + 0x1fe, 0xaa55);
    k[0x201] = 0x66;
    memcpy(k + 0x202, "HdrS", 4);
    store16(k + 0x206, 0x20f);
    k[0x211] = 1;
    store32(k + 0x22c, 0x7fffffff);
    store32(k + 0x238, 255);
    store64(k + 0x258, 0x1000000);
    store32(k + 0x260, 0x200000);
    memset(k + 1024, 0x5a, payload);
    return 1024 + payload;
}

static void linux_is_loaded(void **state)
{
    (void)state;
    static u8 k[1024 + 8192];
    struct file kernel, initrd;
    struct boot b;
    struct boot_entry entry;
    struct error err = {""};
    u8 zp[4096], line[32], byte, disk[5000];
    struct physmap *pm = physmap_new();
    memset(disk, 0x77, sizeof(disk));
    write_file(&kernel, k, make_bzimage(k, 8192));
    write_file(&initrd, disk, sizeof(disk));
    assert_int_equal(physmap_add_ram(pm, 0, RAM, "ram", &err), 0);
    assert_int_equal(boot_open(&b, kernel.path, initrd.path, "console=ttyS0", NULL, 0, RAM, &err), 0);
    assert_int_equal(b.kind, BOOT_LINUX);
    assert_int_equal(boot_load(&b, pm, &entry, &err), 0);
    assert_int_equal(entry.eip, 0x100000);
    physmap_read(pm, entry.esi, zp, sizeof(zp));
    physmap_read(pm, load32(zp + 0x228), line, sizeof(line));
    assert_string_equal((char *)line, "console=ttyS0");
    physmap_read(pm, 0x100000 + 8191, &byte, 1);
    assert_int_equal(byte, 0x5a);
    u32 at = load32(zp + 0x218), size = load32(zp + 0x21c);
    assert_int_equal(size, sizeof(disk));
    assert_true(at % 4096 == 0 && at + size <= RAM && at >= 0x1200000);
    physmap_read(pm, at + size - 1, &byte, 1);
    assert_int_equal(byte, 0x77);
    /* The map ends where memory ends, and the BIOS area is not memory. */
    unsigned entries = zp[0x1e8];
    u64 ram = 0;
    for (unsigned i = 0; i < entries; i++) {
        u64 base = load64(zp + 0x2d0 + 20 * i), n = load64(zp + 0x2d8 + 20 * i);
        if (load32(zp + 0x2e0 + 20 * i) == E820_RAM) {
            ram += n;
            assert_true(base + n <= MAP_EBDA || base >= 0x100000);
        }
    }
    assert_int_equal(ram, RAM - 0x100000 + MAP_EBDA);
    /* At a reset the files are read again, and may be others by then. */
    boot_drop(&b);
    assert_null(b.initrd.data);
    byte = 0;
    physmap_write(pm, at + size - 1, &byte, 1);
    assert_int_equal(boot_load(&b, pm, &entry, &err), 0);
    physmap_read(pm, at + size - 1, &byte, 1);
    assert_int_equal(byte, 0x77);
    boot_drop(&b);
    assert_int_equal(truncate(initrd.path, 100), 0);
    assert_int_equal(boot_load(&b, pm, &entry, &err), -1);
    assert_non_null(strstr(err.text, "100 bytes long at this reset, expected 5000"));
    boot_drop(&b);
    unlink(initrd.path);
    assert_int_equal(boot_load(&b, pm, &entry, &err), -1);
    assert_non_null(strstr(err.text, "cannot be opened"));
    boot_close(&b);
    physmap_free(pm);
    unlink(kernel.path);
}

static void linux_is_refused(void **state)
{
    (void)state;
    static u8 k[1024 + 8192];
    char line[400];
    size_t n = make_bzimage(k, 8192);
    expect_refusal(k, n - 16, NULL, RAM, "truncated");
    expect_refusal(k, n, NULL, 16 << 20, "needs 19 MiB");
    memset(line, 'x', sizeof(line) - 1);
    line[sizeof(line) - 1] = 0;
    expect_refusal(k, n, line, RAM, "--append");
    k[0x211] = 0;
    expect_refusal(k, n, NULL, RAM, "zImage");
    k[0x211] = 1;
    store16(k + 0x206, 0x202);
    expect_refusal(k, n, NULL, RAM, "boot protocol 2.02");
}

static void foreign_files_are_refused(void **state)
{
    (void)state;
    struct boot b;
    struct error err;
    expect_refusal("#!/bin/sh\n", 10, NULL, RAM, "not a bootable image");
    assert_int_equal(boot_open(&b, "/nonexistent/vmlinuz", NULL, NULL, NULL, 0, RAM, &err), -1);
    assert_non_null(strstr(err.text, "/nonexistent/vmlinuz: cannot be opened"));
    assert_int_equal(boot_open(&b, "/tmp", NULL, NULL, NULL, 0, RAM, &err), -1);
    assert_non_null(strstr(err.text, "not a regular file"));
}

/* An ELF32 image with a multiboot header, one segment at @at with @memsz bytes. */
static size_t make_multiboot_at(u8 *k, u32 at, u32 memsz, u16 machine)
{
    Elf32_Ehdr h = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS32, ELFDATA2LSB, 1}, .e_type = ET_EXEC, .e_machine = machine,
                    .e_entry = at + 16, .e_phoff = sizeof(h), .e_phentsize = sizeof(Elf32_Phdr), .e_phnum = 1};
    Elf32_Phdr p = {.p_type = PT_LOAD, .p_offset = 256, .p_paddr = at, .p_filesz = 64, .p_memsz = memsz};
    memset(k, 0, 320);
    memcpy(k, &h, sizeof(h));
    memcpy(k + sizeof(h), &p, sizeof(p));
    store32(k + 256, 0x1badb002);
    store32(k + 264, -0x1badb002u);
    memset(k + 272, 0xcc, 48);
    return 320;
}

static size_t make_multiboot(u8 *k, u32 memsz, u16 machine) { return make_multiboot_at(k, 0x400000, memsz, machine); }

/* The information never overwrites the image, wherever that was linked. */
static void multiboot_information_avoids_the_image(void **state)
{
    (void)state;
    static const struct { u32 at, size; } images[] = {{0x8000, 0x5a30}, {0xf000, 0x1000}, {0x8000, 0x93000}, {0x600, 0x9f600}};
    static u8 k[320];
    for (unsigned n = 0; n < ARRAY_SIZE(images); n++) {
        struct file f;
        struct boot b;
        struct boot_entry entry;
        struct error err = {""};
        u8 byte = 0, info[20];
        struct physmap *pm = physmap_new();
        assert_int_equal(physmap_add_ram(pm, 0, RAM, "ram", &err), 0);
        write_file(&f, k, make_multiboot_at(k, images[n].at, images[n].size, EM_386));
        assert_int_equal(boot_open(&b, f.path, f.path, "x", NULL, 0, RAM, &err), 0);
        assert_int_equal(boot_load(&b, pm, &entry, &err), 0);
        assert_true(entry.ebx >= images[n].at + images[n].size || entry.ebx + 0x7000 <= images[n].at);
        physmap_read(pm, entry.ebx, info, sizeof(info));
        assert_int_equal(load32(info) & 4, 4);
        physmap_read(pm, images[n].at + 63, &byte, 1);
        assert_int_equal(byte, 0xcc);
        boot_close(&b);
        physmap_free(pm);
        unlink(f.path);
    }
}

static void multiboot_is_loaded(void **state)
{
    (void)state;
    static u8 k[320];
    struct file f;
    struct boot b;
    struct boot_entry entry;
    struct error err = {""};
    u8 info[128], line[64], byte = 1;
    struct physmap *pm = physmap_new();
    write_file(&f, k, make_multiboot(k, 8192, EM_386));
    assert_int_equal(physmap_add_ram(pm, 0, RAM, "ram", &err), 0);
    physmap_store(pm, 0x400000 + 8191, 0xff, 1); /* must be cleared: the segment is larger in memory */
    assert_int_equal(boot_open(&b, f.path, f.path, "one two", NULL, 0, RAM, &err), 0);
    assert_int_equal(b.kind, BOOT_MULTIBOOT);
    assert_int_equal(boot_load(&b, pm, &entry, &err), 0);
    assert_int_equal(entry.eax, 0x2badb002);
    assert_int_equal(entry.eip, 0x400010);
    physmap_read(pm, 0x400000 + 8191, &byte, 1);
    assert_int_equal(byte, 0);
    physmap_read(pm, entry.ebx, info, sizeof(info));
    u32 flags = load32(info);
    assert_int_equal(flags & (1 | 4 | 8 | 64), 1 | 4 | 8 | 64);
    physmap_read(pm, load32(info + 16), line, sizeof(line));
    assert_non_null(strstr((char *)line, " one two"));
    assert_int_equal(load32(info + 20), 1);
    assert_int_equal(physmap_load(pm, load32(info + 24), 4), 0x402000); /* the module, behind the BSS */
    boot_close(&b);
    physmap_free(pm);
    unlink(f.path);
}

/* --initrd is the first module; each has the file's name and its arguments as text, and starts on a page. */
static void multiboot_modules(void **state)
{
    (void)state;
    static u8 k[320];
    struct file f;
    struct boot b;
    struct boot_entry entry;
    struct error err = {""};
    char one[300], two[300];
    struct physmap *pm = physmap_new();
    write_file(&f, k, make_multiboot(k, 8192, EM_386));
    assert_int_equal(physmap_add_ram(pm, 0, RAM, "ram", &err), 0);
    snprintf(one, sizeof(one), "%s console=hvc0 quiet", f.path);
    snprintf(two, sizeof(two), "%s", f.path);
    const char *modules[BOOT_MODULES_MAX + 1];
    modules[0] = one;
    for (unsigned n = 1; n < ARRAY_SIZE(modules); n++)
        modules[n] = two;
    for (unsigned initrd = 0; initrd < 2; initrd++) {
        u8 info[128];
        assert_int_equal(boot_open(&b, f.path, initrd ? f.path : NULL, "", modules, BOOT_MODULES_MAX, RAM, &err), 0);
        assert_int_equal(boot_load(&b, pm, &entry, &err), 0);
        physmap_read(pm, entry.ebx, info, sizeof(info));
        unsigned count = load32(info + 20);
        assert_int_equal(count, BOOT_MODULES_MAX + initrd);
        u32 at = 0x402000;
        for (unsigned n = 0; n < count; n++, at += 4096) {
            u8 m[16], bytes[320];
            char text[300] = "";
            physmap_read(pm, load32(info + 24) + 16 * n, m, sizeof(m));
            assert_int_equal(load32(m), at);
            assert_int_equal(load32(m + 4), at + 320);
            physmap_read(pm, at, bytes, sizeof(bytes));
            assert_memory_equal(bytes, k, sizeof(bytes));
            physmap_read(pm, load32(m + 8), text, sizeof(text) - 1);
            assert_int_equal(!strcmp(strchr(text, ' ') ? strchr(text, ' ') : "", " console=hvc0 quiet"), n == initrd);
            assert_memory_equal(text, strrchr(f.path, '/') + 1, 4);
        }
        boot_close(&b);
    }
    assert_int_equal(boot_open(&b, f.path, NULL, "", modules, BOOT_MODULES_MAX + 1, RAM, &err), -1);
    assert_non_null(strstr(err.text, "at most 16 modules"));
    modules[0] = "/nonexistent/module x";
    assert_int_equal(boot_open(&b, f.path, NULL, "", modules, 1, RAM, &err), -1);
    assert_non_null(strstr(err.text, "module /nonexistent/module: cannot be opened"));
    modules[0] = two;
    assert_int_equal(boot_open(&b, f.path, NULL, "", modules, 1, 0x402000, &err), -1);
    physmap_free(pm);
    unlink(f.path);
}

static void multiboot_is_refused(void **state)
{
    (void)state;
    static u8 k[320];
    size_t n = make_multiboot(k, 8192, EM_386);
    expect_refusal(k, n - 1, NULL, RAM, "truncated");
    make_multiboot(k, 1u << 30, EM_386);
    expect_refusal(k, n, NULL, RAM, "outside the memory");
    make_multiboot(k, 8192, EM_ARM);
    expect_refusal(k, n, NULL, RAM, "machine 40");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linux_is_loaded),     cmocka_unit_test(linux_is_refused),     cmocka_unit_test(foreign_files_are_refused),
        cmocka_unit_test(multiboot_is_loaded), cmocka_unit_test(multiboot_is_refused), cmocka_unit_test(multiboot_modules),
        cmocka_unit_test(multiboot_information_avoids_the_image),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
