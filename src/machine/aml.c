#include "machine/aml.h"

#include "base/bits.h"

#include <string.h>

static void put(struct aml *a, const void *data, size_t n)
{
    if (a->len + n > a->cap) {
        a->overflow = true;
        return;
    }
    memcpy(a->buf + a->len, data, n);
    a->len += n;
}

static void put8(struct aml *a, u8 b) { put(a, &b, 1); }

void aml_init(struct aml *a, u8 *buf, size_t cap) { *a = (struct aml){.buf = buf, .cap = cap}; }

/* NameSeg: padded with underscores to four characters. */
static void put_nameseg(struct aml *a, const char *name)
{
    char seg[4] = {'_', '_', '_', '_'};
    for (unsigned i = 0; i < 4 && name[i]; i++)
        seg[i] = name[i];
    put(a, seg, 4);
}

/* Opens a PkgLength of the fixed three-byte form (20.2.4), filled by aml_end(). */
static void open_package(struct aml *a)
{
    if (a->depth == AML_MAX_DEPTH) {
        a->overflow = true;
        return;
    }
    a->open[a->depth++] = a->len;
    put(a, "\0\0\0", 3);
}

void aml_end(struct aml *a)
{
    if (a->overflow || !a->depth)
        return;
    size_t at = a->open[--a->depth];
    size_t n = a->len - at; /* the length includes its own bytes */
    a->buf[at] = (u8)(0x80 | (n & 15));
    a->buf[at + 1] = (u8)(n >> 4);
    a->buf[at + 2] = (u8)(n >> 12);
}

void aml_scope(struct aml *a, const char *path)
{
    put8(a, 0x10);
    open_package(a);
    if (*path == '\\') {
        put8(a, '\\');
        path++;
    }
    put_nameseg(a, path);
}

void aml_device(struct aml *a, const char *name)
{
    put(a, "\x5b\x82", 2);
    open_package(a);
    put_nameseg(a, name);
}

void aml_method(struct aml *a, const char *name, unsigned args)
{
    put8(a, 0x14);
    open_package(a);
    put_nameseg(a, name);
    put8(a, (u8)(args & 7));
}

void aml_int(struct aml *a, u64 value)
{
    if (value <= 1) {
        put8(a, (u8)value);
    } else if (value <= 0xff) {
        put8(a, 0x0a);
        put(a, &value, 1);
    } else if (value <= 0xffff) {
        put8(a, 0x0b);
        put(a, &value, 2);
    } else if (value <= 0xffffffff) {
        put8(a, 0x0c);
        put(a, &value, 4);
    } else {
        put8(a, 0x0e);
        put(a, &value, 8);
    }
}

static void begin_name(struct aml *a, const char *name)
{
    put8(a, 0x08);
    put_nameseg(a, name);
}

void aml_name_int(struct aml *a, const char *name, u64 value)
{
    begin_name(a, name);
    aml_int(a, value);
}

void aml_name_string(struct aml *a, const char *name, const char *value)
{
    begin_name(a, name);
    put8(a, 0x0d);
    put(a, value, strlen(value) + 1);
}

static unsigned hex_digit(char c) { return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A' + 10); }

void aml_name_eisaid(struct aml *a, const char *name, const char *id)
{
    /* Compressed EISA ID: three 5-bit letters and four hex digits, big-endian. */
    u32 v = (u32)(id[0] - '@') << 26 | (u32)(id[1] - '@') << 21 | (u32)(id[2] - '@') << 16;
    for (unsigned i = 0; i < 4; i++)
        v |= hex_digit(id[3 + i]) << (12 - 4 * i);
    v = __builtin_bswap32(v);
    begin_name(a, name);
    put8(a, 0x0c);
    put(a, &v, 4);
}

void aml_name_buffer(struct aml *a, const char *name, const u8 *data, size_t len)
{
    begin_name(a, name);
    put8(a, 0x11);
    open_package(a);
    aml_int(a, len);
    put(a, data, len);
    aml_end(a);
}

void aml_package_begin(struct aml *a, unsigned n)
{
    put8(a, 0x12);
    open_package(a);
    put8(a, (u8)n);
}

void aml_name_package_begin(struct aml *a, const char *name, unsigned n)
{
    begin_name(a, name);
    aml_package_begin(a, n);
}

void aml_name_package(struct aml *a, const char *name, const u64 *values, unsigned n)
{
    aml_name_package_begin(a, name, n);
    for (unsigned i = 0; i < n; i++)
        aml_int(a, values[i]);
    aml_end(a);
}

static void res_put(struct resources *r, const void *data, size_t n)
{
    if (r->len + n <= sizeof(r->buf)) {
        memcpy(r->buf + r->len, data, n);
        r->len += n;
    }
}

void res_io(struct resources *r, u16 base, u8 len)
{
    u8 d[8] = {0x47, 1, (u8)base, (u8)(base >> 8), (u8)base, (u8)(base >> 8), 1, len};
    res_put(r, d, sizeof(d));
}

void res_irq(struct resources *r, unsigned irq)
{
    u8 d[3] = {0x22, (u8)BIT(irq), (u8)(BIT(irq) >> 8)};
    res_put(r, d, sizeof(d));
}

/* Address space descriptors: word, dword and qword forms differ only in the width of five fields. */
static void res_address(struct resources *r, u8 tag, u8 type, u8 specific, unsigned width, u64 first, u64 last)
{
    u64 fields[5] = {0, first, last, 0, last - first + 1};
    u8 head[6] = {tag, (u8)(3 + 5 * width), 0, type, 0x0c /* min and max fixed */, specific};
    res_put(r, head, sizeof(head));
    for (unsigned i = 0; i < 5; i++)
        res_put(r, &fields[i], width);
}

void res_word_bus(struct resources *r, u16 first, u16 last) { res_address(r, 0x88, 2, 0, 2, first, last); }
void res_word_io(struct resources *r, u16 first, u16 last) { res_address(r, 0x88, 1, 3, 2, first, last); }
void res_dword_memory(struct resources *r, u32 first, u32 last, bool cacheable)
{
    res_address(r, 0x87, 0, cacheable ? 3 : 1, 4, first, last);
}
void res_qword_memory(struct resources *r, u64 first, u64 last) { res_address(r, 0x8a, 0, 1, 8, first, last); }

void res_memory32_fixed(struct resources *r, u32 base, u32 len)
{
    u8 d[12] = {0x86, 9, 0, 1};
    store32(d + 4, base);
    store32(d + 8, len);
    res_put(r, d, sizeof(d));
}

void res_end(struct resources *r)
{
    u8 d[2] = {0x79, 0};
    res_put(r, d, sizeof(d));
}
