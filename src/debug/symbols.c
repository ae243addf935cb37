/*
 * Names for guest addresses: the symbol tables of ELF files (System V ABI, "Object Files"), 32 and 64
 * bits. A file is anybody's: every offset in it is checked before it is followed.
 */
#include "debug/debugger.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define SYMBOLS_FILE_MAX (1ull << 30)
#define SYMBOLS_MAX (8u << 20)

struct symbol {
    u64 at, size;
    char *name; /* in one of the blocks */
    bool function;
};
struct symbols {
    struct symbol *s; /* sorted by address */
    size_t n, cap;
    char **blocks;    /* string tables */
    size_t nblocks;
};

struct symbols *symbols_new(void) { return calloc(1, sizeof(struct symbols)); }

void symbols_free(struct symbols *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->nblocks; i++)
        free(s->blocks[i]);
    free(s->blocks);
    free(s->s);
    free(s);
}

static int compare(const void *a, const void *b)
{
    const struct symbol *x = a, *y = b;
    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    return (int)x->function - (int)y->function; /* the better name last */
}

struct elf {
    const u8 *image;
    size_t len;
    bool wide;
};
struct section {
    u32 type, link;
    u64 offset, size, entry;
};

static bool within(const struct elf *e, u64 offset, u64 size) { return offset <= e->len && size <= e->len - offset; }

static bool section(const struct elf *e, unsigned n, struct section *out)
{
    if (e->wide) {
        Elf64_Ehdr h;
        Elf64_Shdr s;
        memcpy(&h, e->image, sizeof(h));
        u64 at = (u64)n * h.e_shentsize;
        if (n >= h.e_shnum || h.e_shentsize < sizeof(s) || h.e_shoff > e->len || !within(e, h.e_shoff + at, sizeof(s)))
            return false;
        memcpy(&s, e->image + h.e_shoff + at, sizeof(s));
        *out = (struct section){s.sh_type, s.sh_link, s.sh_offset, s.sh_size, s.sh_entsize};
    } else {
        Elf32_Ehdr h;
        Elf32_Shdr s;
        memcpy(&h, e->image, sizeof(h));
        u64 at = (u64)n * h.e_shentsize;
        if (n >= h.e_shnum || h.e_shentsize < sizeof(s) || h.e_shoff > e->len || !within(e, h.e_shoff + at, sizeof(s)))
            return false;
        memcpy(&s, e->image + h.e_shoff + at, sizeof(s));
        *out = (struct section){s.sh_type, s.sh_link, s.sh_offset, s.sh_size, s.sh_entsize};
    }
    return true;
}

static bool add(struct symbols *s, const struct symbol *one)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 1024;
        struct symbol *more = cap > SYMBOLS_MAX ? NULL : realloc(s->s, cap * sizeof(*more));
        if (!more)
            return false;
        s->s = more;
        s->cap = cap;
    }
    s->s[s->n++] = *one;
    return true;
}

static int read_table(struct symbols *s, const struct elf *e, const struct section *table, const struct section *strings, struct error *err)
{
    size_t least = e->wide ? sizeof(Elf64_Sym) : sizeof(Elf32_Sym);
    if (!within(e, table->offset, table->size) || !within(e, strings->offset, strings->size) || table->entry < least || !strings->size)
        return error_set(err, "a symbol table lies outside the file");
    char **blocks = realloc(s->blocks, (s->nblocks + 1) * sizeof(*blocks));
    if (blocks)
        s->blocks = blocks;
    char *text = blocks ? malloc(strings->size + 1) : NULL;
    if (!text)
        return error_set(err, "out of memory for symbols");
    s->blocks[s->nblocks++] = text;
    memcpy(text, e->image + strings->offset, strings->size);
    text[strings->size] = 0;
    for (u64 at = 0; table->size - at >= table->entry; at += table->entry) {
        const u8 *p = e->image + table->offset + at;
        u64 value, size, name;
        unsigned type, index;
        if (e->wide) {
            Elf64_Sym y;
            memcpy(&y, p, sizeof(y));
            value = y.st_value, size = y.st_size, name = y.st_name, type = ELF64_ST_TYPE(y.st_info), index = y.st_shndx;
        } else {
            Elf32_Sym y;
            memcpy(&y, p, sizeof(y));
            value = y.st_value, size = y.st_size, name = y.st_name, type = ELF32_ST_TYPE(y.st_info), index = y.st_shndx;
        }
        if (type > STT_FUNC || index == SHN_UNDEF || index == SHN_ABS || name >= strings->size || !text[name])
            continue;
        if (!add(s, &(struct symbol){value, size, text + name, type == STT_FUNC}))
            return error_set(err, "too many symbols");
    }
    return 0;
}

int symbols_parse(struct symbols *s, const u8 *image, size_t len, struct error *err)
{
    struct elf e = {image, len, len > EI_CLASS && image[EI_CLASS] == ELFCLASS64};
    size_t header = e.wide ? sizeof(Elf64_Ehdr) : sizeof(Elf32_Ehdr);
    if (len < header || memcmp(image, ELFMAG, SELFMAG) || image[EI_DATA] != ELFDATA2LSB || (!e.wide && image[EI_CLASS] != ELFCLASS32))
        return error_set(err, "is no little-endian ELF file");
    struct section table, strings;
    size_t before = s->n;
    unsigned tables = 0;
    for (unsigned n = 0; section(&e, n, &table); n++) {
        if (table.type != SHT_SYMTAB)
            continue;
        if (++tables > 4)
            return error_set(err, "has more symbol tables than any linker writes");
        if (!section(&e, table.link, &strings))
            return error_set(err, "a symbol table without names");
        if (read_table(s, &e, &table, &strings, err))
            return -1;
    }
    if (s->n == before)
        return error_set(err, "has no symbols");
    qsort(s->s, s->n, sizeof(*s->s), compare);
    return 0;
}

int symbols_load(struct symbols *s, const char *path, struct error *err)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return error_set(err, "--symbols %s: cannot be opened: %s", path, strerror(errno));
    u8 *image = NULL;
    size_t len = 0, cap = 0, got = 1;
    while (got && len < SYMBOLS_FILE_MAX) {
        if (len == cap) {
            u8 *more = realloc(image, cap = cap ? 2 * cap : 1 << 16);
            if (!more)
                panic("out of memory for a file of symbols");
            image = more;
        }
        len += got = fread(image + len, 1, cap - len, f);
    }
    fclose(f);
    struct error inner;
    int r = symbols_parse(s, image, len, &inner);
    free(image);
    return r ? error_set(err, "--symbols %s: %s, expected an ELF file with a symbol table", path, inner.text) : 0;
}

/* The last symbol at or before @at whose extent, if it has one, holds @at. */
static const struct symbol *find(const struct symbols *s, u64 at)
{
    size_t lo = 0, hi = s ? s->n : 0;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (s->s[mid].at <= at)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (size_t back = 0; lo && back < 8; lo--, back++) {
        const struct symbol *y = &s->s[lo - 1];
        if (y->size ? at - y->at < y->size : at - y->at < 1 << 16)
            return y;
    }
    return NULL;
}

const char *symbols_name(const struct symbols *s, u64 at, char *buf, size_t size)
{
    const struct symbol *y = find(s, at);
    if (!y)
        snprintf(buf, size, "%s", "");
    else if (y->at == at)
        snprintf(buf, size, " <%.100s>", y->name);
    else
        snprintf(buf, size, " <%.100s+0x%" PRIx64 ">", y->name, at - y->at);
    return buf;
}

const char *symbols_function(const struct symbols *s, u64 at)
{
    const struct symbol *y = find(s, at);
    return y ? y->name : NULL;
}

bool symbols_find(const struct symbols *s, const char *name, u64 *at)
{
    for (size_t i = 0; i < s->n; i++)
        if (!strcmp(s->s[i].name, name)) {
            *at = s->s[i].at;
            return true;
        }
    return false;
}
