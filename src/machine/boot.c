#include "machine/boot.h"

#include "machine/boot_kinds.h"
#include "machine/memmap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct boot_loader *const loaders[] = {
    [BOOT_LINUX] = &boot_linux,
    [BOOT_MULTIBOOT] = &boot_multiboot,
    [BOOT_PVH] = &boot_pvh,
};
/* An ELF file can carry both a multiboot header and a PVH note: multiboot is the older promise. */
static const enum boot_kind probe_order[] = {BOOT_LINUX, BOOT_MULTIBOOT, BOOT_PVH};

const char *boot_kind_name(enum boot_kind kind) { return loaders[kind]->name; }

static int read_file(struct boot_file *f, const char *path, const char *what, struct error *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, "%s %s: cannot be opened: %s", what, path, strerror(errno));
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return error_set(err, "%s %s: not a regular file", what, path);
    }
    if (st.st_size == 0 || st.st_size > (off_t)1 << 32) {
        close(fd);
        return error_set(err, "%s %s: %lld bytes long, expected 1 byte to 4 GiB", what, path, (long long)st.st_size);
    }
    f->size = (size_t)st.st_size;
    f->data = malloc(f->size);
    f->path = strdup(path);
    size_t got = 0;
    while (f->data && got < f->size) {
        ssize_t n = read(fd, f->data + got, f->size - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    close(fd);
    if (got != f->size)
        return error_set(err, "%s %s: only %zu of %zu bytes could be read", what, path, got, f->size);
    return 0;
}

static int identify(struct boot *b, struct error *err)
{
    for (unsigned i = 0; i < ARRAY_SIZE(probe_order); i++) {
        enum boot_kind kind = probe_order[i];
        if (loaders[kind]->probe(&b->kernel)) {
            b->kind = kind;
            if (b->nmodules && kind != BOOT_MULTIBOOT)
                return error_set(err, "--module %s: %s is a %s, only multiboot images take modules", b->module[0].file.path,
                                 b->kernel.path, loaders[kind]->name);
            return loaders[kind]->check(b, err);
        }
    }
    return error_set(err, "kernel %s: not a bootable image; expected a Linux bzImage, a multiboot 1 image or an ELF "
                          "file with a PVH note", b->kernel.path);
}

/* "FILE[ ARGUMENTS]" */
static int read_module(struct boot *b, const char *text, struct error *err)
{
    if (b->nmodules == BOOT_MODULES_MAX)
        return error_set(err, "--module %s: at most %u modules", text, BOOT_MODULES_MAX);
    struct boot_module *m = &b->module[b->nmodules++];
    size_t n = strcspn(text, " ");
    char *path = strndup(text, n);
    m->args = strdup(text + n + (text[n] == ' '));
    int r = path && m->args ? read_file(&m->file, path, "module", err) : error_set(err, "--module %s: out of memory", text);
    free(path);
    return r;
}

static int read_modules(struct boot *b, const char *const *modules, unsigned n, struct error *err)
{
    for (unsigned i = 0; i < n; i++)
        if (read_module(b, modules[i], err))
            return -1;
    return 0;
}

int boot_open(struct boot *b, const char *kernel, const char *initrd, const char *append, const char *const *modules, unsigned nmodules,
              u64 ram, struct error *err)
{
    *b = (struct boot){.ram = ram};
    b->append = strdup(append ? append : "");
    if (read_file(&b->kernel, kernel, "kernel", err) || (initrd && read_file(&b->initrd, initrd, "initrd", err)) ||
        read_modules(b, modules, nmodules, err) || identify(b, err)) {
        boot_close(b);
        return -1;
    }
    return 0;
}

int boot_open_memory(struct boot *b, const char *name, const u8 *data, size_t size, const char *append, u64 ram,
                     struct error *err)
{
    *b = (struct boot){.ram = ram};
    b->append = strdup(append ? append : "");
    b->built_in = true;
    b->kernel.path = strdup(name);
    b->kernel.data = malloc(size);
    b->kernel.size = size;
    if (b->kernel.data)
        memcpy(b->kernel.data, data, size);
    if (!b->kernel.data || identify(b, err)) {
        boot_close(b);
        return -1;
    }
    return 0;
}

void boot_close(struct boot *b)
{
    free(b->kernel.path);
    free(b->kernel.data);
    free(b->initrd.path);
    free(b->initrd.data);
    for (unsigned n = 0; n < b->nmodules; n++) {
        free(b->module[n].file.path);
        free(b->module[n].file.data);
        free(b->module[n].args);
    }
    free(b->append);
    *b = (struct boot){0};
}

/* Reads @f again, of which boot_drop() has kept only the name and the size. */
static int read_again(struct boot_file *f, const char *what, struct error *err)
{
    if (!f->path || f->data)
        return 0;
    struct boot_file again = {0};
    int r = read_file(&again, f->path, what, err);
    if (!r && again.size != f->size)
        r = error_set(err, "%s %s: %zu bytes long at this reset, expected %zu as before", what, f->path, again.size, f->size);
    free(again.path);
    if (r)
        free(again.data);
    else
        f->data = again.data;
    return r;
}

static int read_all_again(struct boot *b, struct error *err)
{
    bool dropped = !b->kernel.data;
    if (read_again(&b->kernel, "kernel", err) || read_again(&b->initrd, "initrd", err))
        return -1;
    for (unsigned n = 0; n < b->nmodules; n++)
        if (read_again(&b->module[n].file, "module", err))
            return -1;
    return dropped ? identify(b, err) : 0;
}

static void drop(struct boot_file *f)
{
    free(f->data);
    f->data = NULL;
}

void boot_drop(struct boot *b)
{
    if (b->built_in)
        return;
    drop(&b->kernel);
    drop(&b->initrd);
    for (unsigned n = 0; n < b->nmodules; n++)
        drop(&b->module[n].file);
}

int boot_load(struct boot *b, struct physmap *pm, struct boot_entry *entry, struct error *err)
{
    if (read_all_again(b, err))
        return -1;
    /* Linux's 32-bit boot protocol wants __BOOT_CS = 0x10 and __BOOT_DS = 0x18; nobody minds them. */
    static const u64 gdt[4] = {0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
    /* What firmware leaves to real-mode code: every vector leads to an IRET where PC BIOSes have one. */
    static const u8 iret = 0xcf;
    for (unsigned n = 0; n < 256; n++)
        physmap_store(pm, n * 4, 0xf000ff53, 4);
    physmap_write(pm, 0xfff53, &iret, 1);
    /* The BIOS data area: COM1's port, the extended data area's segment, KiB of conventional memory. */
    physmap_store(pm, 0x400, 0x3f8, 2);
    physmap_store(pm, 0x40e, MAP_EBDA >> 4, 2);
    physmap_store(pm, 0x413, (MAP_EBDA >> 10) & 0xff, 1);
    physmap_store(pm, 0x414, MAP_EBDA >> 18, 1);
    physmap_store(pm, MAP_EBDA, 1, 1); /* its own KiB */
    *entry = (struct boot_entry){.gdt = BOOT_GDT_AT, .gdt_limit = sizeof(gdt) - 1};
    physmap_write(pm, BOOT_GDT_AT, gdt, sizeof(gdt));
    return loaders[b->kind]->load(b, pm, entry, err);
}
