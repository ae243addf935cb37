/* ELF images (System V ABI, chapter 4 "Object Files"), 32 and 64 bits, little-endian x86. */
#include "machine/boot_kinds.h"
#include "machine/memmap.h"

#include <elf.h>

bool elf_probe(const struct boot_file *f)
{
    return f->size >= sizeof(Elf32_Ehdr) && !memcmp(f->data, ELFMAG, SELFMAG) && f->data[EI_DATA] == ELFDATA2LSB &&
           (f->data[EI_CLASS] == ELFCLASS32 || (f->data[EI_CLASS] == ELFCLASS64 && f->size >= sizeof(Elf64_Ehdr)));
}

struct phdr {
    u32 type;
    u64 offset, paddr, filesz, memsz;
};

struct phdr_table {
    const struct boot_file *f;
    bool is64;
    u64 at;
    unsigned count, entsize;
};

static void phdr_table(const struct boot_file *f, struct phdr_table *t)
{
    t->f = f;
    t->is64 = f->data[EI_CLASS] == ELFCLASS64;
    if (t->is64) {
        Elf64_Ehdr h;
        memcpy(&h, f->data, sizeof(h));
        t->at = h.e_phoff, t->count = h.e_phnum, t->entsize = h.e_phentsize;
    } else {
        Elf32_Ehdr h;
        memcpy(&h, f->data, sizeof(h));
        t->at = h.e_phoff, t->count = h.e_phnum, t->entsize = h.e_phentsize;
    }
}

/* Program header @n; false when it does not lie in the file. */
static bool phdr_get(const struct phdr_table *t, unsigned n, struct phdr *p)
{
    size_t want = t->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
    u64 at = t->at + (u64)n * t->entsize;
    if (t->entsize < want || at > t->f->size || t->f->size - at < want)
        return false;
    if (t->is64) {
        Elf64_Phdr h;
        memcpy(&h, t->f->data + at, sizeof(h));
        *p = (struct phdr){h.p_type, h.p_offset, h.p_paddr, h.p_filesz, h.p_memsz};
    } else {
        Elf32_Phdr h;
        memcpy(&h, t->f->data + at, sizeof(h));
        *p = (struct phdr){h.p_type, h.p_offset, h.p_paddr, h.p_filesz, h.p_memsz};
    }
    return true;
}

int elf_load(const struct boot_file *f, u64 ram, struct physmap *pm, struct elf_layout *out, struct error *err)
{
    static const u8 zero[4096];
    struct phdr_table t;
    phdr_table(f, &t);
    Elf64_Ehdr h64;
    Elf32_Ehdr h32;
    memcpy(&h32, f->data, sizeof(h32));
    if (t.is64)
        memcpy(&h64, f->data, sizeof(h64));
    unsigned machine = t.is64 ? h64.e_machine : h32.e_machine;
    if (machine != EM_386 && machine != EM_X86_64)
        return error_set(err, "kernel %s: an ELF file for machine %u, expected x86", f->path, machine);
    *out = (struct elf_layout){.is64 = t.is64, .entry = t.is64 ? h64.e_entry : h32.e_entry, .low = ~0ull};
    for (unsigned i = 0; i < t.count; i++) {
        struct phdr p;
        if (!phdr_get(&t, i, &p))
            return error_set(err, "kernel %s: truncated: program header %u lies outside the file", f->path, i);
        if (p.type != PT_LOAD || p.memsz == 0)
            continue;
        if (p.offset > f->size || f->size - p.offset < p.filesz || p.filesz > p.memsz)
            return error_set(err, "kernel %s: truncated: segment %u needs bytes %#llx..%#llx, the file has %#zx", f->path,
                             i, (unsigned long long)p.offset, (unsigned long long)(p.offset + p.filesz), f->size);
        if (p.paddr > memmap_low_ram(ram) || memmap_low_ram(ram) - p.paddr < p.memsz)
            return error_set(err, "kernel %s: segment %u at %#llx..%#llx lies outside the memory of %llu MiB", f->path, i,
                             (unsigned long long)p.paddr, (unsigned long long)(p.paddr + p.memsz),
                             (unsigned long long)(ram >> 20));
        if (p.paddr < out->low)
            out->low = p.paddr;
        if (p.paddr + p.memsz > out->high)
            out->high = p.paddr + p.memsz;
        if (!pm)
            continue;
        physmap_write(pm, p.paddr, f->data + p.offset, p.filesz);
        for (u64 at = p.filesz; at < p.memsz; at += sizeof(zero))
            physmap_write(pm, p.paddr + at, zero, p.memsz - at < sizeof(zero) ? p.memsz - at : sizeof(zero));
    }
    if (!out->high)
        return error_set(err, "kernel %s: an ELF file with nothing to load", f->path);
    return 0;
}

const u8 *elf_note(const struct boot_file *f, const char *name, u32 type, u32 *len)
{
    struct phdr_table t;
    struct phdr p;
    phdr_table(f, &t);
    for (unsigned i = 0; i < t.count && phdr_get(&t, i, &p); i++) {
        if (p.type != PT_NOTE || p.offset > f->size || f->size - p.offset < p.filesz)
            continue;
        const u8 *at = f->data + p.offset, *end = at + p.filesz;
        while ((size_t)(end - at) >= 12) {
            u64 namesz = load32(at), descsz = load32(at + 4);
            u64 total = 12 + ((namesz + 3) & ~3ull) + ((descsz + 3) & ~3ull);
            if (total > (u64)(end - at))
                break;
            if (load32(at + 8) == type && namesz == strlen(name) + 1 && !memcmp(at + 12, name, namesz)) {
                *len = (u32)descsz;
                return at + 12 + ((namesz + 3) & ~3ull);
            }
            at += total;
        }
    }
    return NULL;
}
