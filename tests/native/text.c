/*
 * A case as one line: the instructions' bytes in hexadecimal, then what differs from the plain state.
 *
 *   480fafc3 rax=7fffffffffffffff rbx=2 flags=202 x3=<64 or 128 digits> k1=ff mxcsr=1f80 st0=3fff:8000000000000000 @20010040=11223344
 *
 * The plain state: registers 0 but RSP (the middle of the data), interrupt flag on, MXCSR 1f80, x87 as
 * FNINIT leaves it with all registers empty and zero, data zero. "32:" in front: in a 32-bit code
 * segment. '#' begins a comment.
 */
#include "native_diff.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                       "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };
static const struct { const char *name; size_t offset; unsigned size; } fields[] = {
    { "flags", offsetof(struct state, rflags), 8 },    { "mxcsr", offsetof(struct state, mxcsr), 4 },
    { "fcw", offsetof(struct state, x87.fcw), 2 },     { "fsw", offsetof(struct state, x87.fsw), 2 },
    { "ftw", offsetof(struct state, x87.ftw), 1 },
};

static void plain(struct testcase *t)
{
    memset(&t->in, 0, sizeof(t->in));
    memset(t->data, 0, sizeof(t->data));
    t->in.gpr[RSP] = DATA_VA + 0x800;
    t->in.rflags = 0x202;
    t->in.mxcsr = 0x1f80;
    t->in.x87.fcw = 0x37f;
}

/* ---- writing ---- */

static void put_hex(FILE *f, const u8 *p, unsigned n)
{
    for (unsigned k = 0; k < n; k++)
        fprintf(f, "%02x", p[k]);
}

void case_print(FILE *f, const struct testcase *t)
{
    static struct testcase z;
    plain(&z);
    if (t->legacy)
        fprintf(f, "32:");
    put_hex(f, t->bytes, t->len);
    for (unsigned n = 0; n < 16; n++)
        if (t->in.gpr[n] != z.in.gpr[n])
            fprintf(f, " %s=%llx", names[n], (unsigned long long)t->in.gpr[n]);
    for (unsigned n = 0; n < ARRAY_SIZE(fields); n++) {
        const u8 *a = (const u8 *)&t->in + fields[n].offset, *b = (const u8 *)&z.in + fields[n].offset;
        if (memcmp(a, b, fields[n].size))
            fprintf(f, " %s=%llx", fields[n].name, (unsigned long long)load_le(a, fields[n].size));
    }
    for (unsigned n = 0; n < 32; n++)
        if (memcmp(t->in.vec[n].b, z.in.vec[n].b, 64)) {
            fprintf(f, " x%u=", n);
            put_hex(f, t->in.vec[n].b, t->in.vec[n].q[4] | t->in.vec[n].q[5] | t->in.vec[n].q[6] | t->in.vec[n].q[7] ? 64 : 32);
        }
    for (unsigned n = 0; n < 8; n++)
        if (t->in.k[n])
            fprintf(f, " k%u=%llx", n, (unsigned long long)t->in.k[n]);
    for (unsigned n = 0; n < 8; n++)
        if (memcmp(t->in.x87.st[n], z.in.x87.st[n], 10))
            fprintf(f, " st%u=%04x:%016llx", n, load16(t->in.x87.st[n] + 8), (unsigned long long)load64(t->in.x87.st[n]));
    for (unsigned at = 0; at < DATA_SIZE;) {
        if (!t->data[at]) {
            at++;
            continue;
        }
        unsigned end = at + 1; /* up to eight zeroes in a row are cheaper written than skipped */
        for (unsigned k = end; k < DATA_SIZE && k < end + 8; k++)
            if (t->data[k])
                end = k + 1;
        fprintf(f, " @%llx=", (unsigned long long)(DATA_VA + at));
        put_hex(f, t->data + at, end - at);
        at = end;
    }
}

/* ---- reading ---- */

static unsigned get_hex(const char *s, u8 *p, unsigned max)
{
    unsigned n = 0;
    for (; n < max && isxdigit((unsigned char)s[0]) && isxdigit((unsigned char)s[1]); s += 2) {
        const char pair[3] = { s[0], s[1], 0 };
        p[n++] = (u8)strtoul(pair, NULL, 16);
    }
    return n;
}

static bool set(struct testcase *t, const char *name, const char *value)
{
    char *end;
    u64 x = strtoull(value, &end, 16);
    if (name[0] == '@') {
        u64 at = strtoull(name + 1, NULL, 16) - DATA_VA;
        return at < DATA_SIZE && get_hex(value, t->data + at, (unsigned)(DATA_SIZE - at));
    }
    if (name[0] == 'x' && isdigit((unsigned char)name[1]))
        return atoi(name + 1) < 32 && get_hex(value, t->in.vec[atoi(name + 1)].b, 64);
    if (name[0] == 'k' && isdigit((unsigned char)name[1]) && atoi(name + 1) < 8)
        return t->in.k[atoi(name + 1)] = x, true;
    if (!strncmp(name, "st", 2) && *end == ':' && atoi(name + 2) < 8) {
        u8 *st = t->in.x87.st[atoi(name + 2)];
        store64(st, strtoull(end + 1, NULL, 16));
        store16(st + 8, (u16)x);
        return true;
    }
    for (unsigned n = 0; n < 16; n++)
        if (!strcmp(name, names[n]))
            return t->in.gpr[n] = x, true;
    for (unsigned n = 0; n < ARRAY_SIZE(fields); n++)
        if (!strcmp(name, fields[n].name))
            return store_le((u8 *)&t->in + fields[n].offset, x, fields[n].size), true;
    return false;
}

bool case_parse(struct testcase *t, const char *line)
{
    char *copy = strdup(line), *save = NULL;
    bool ok = copy != NULL, first = true;
    plain(t);
    t->legacy = false;
    memset(t->bytes, 0xcc, sizeof(t->bytes));
    for (char *word = ok ? strtok_r(copy, " \t\n", &save) : NULL; word && ok && *word != '#'; word = strtok_r(NULL, " \t\n", &save)) {
        char *eq = strchr(word, '=');
        if (first) {
            t->legacy = !strncmp(word, "32:", 3);
            word += t->legacy ? 3 : 0;
            t->len = get_hex(word, t->bytes, sizeof(t->bytes) - 32);
            ok = t->len && case_decode(t);
            first = false;
        } else if (eq) {
            *eq = 0;
            ok = set(t, word, eq + 1);
        } else {
            ok = false;
        }
    }
    free(copy);
    return ok && !first;
}

/* ---- making a failure small ---- */

/* Keeps @candidate if it fails too, with the same exceptions: another failure is another case. */
static bool try(struct testcase *t, struct testcase *candidate)
{
    int native = failure[0], nestor = failure[1];
    if (!case_decode(candidate) || run_case(candidate) || failure[0] != native || failure[1] != nestor) {
        failure[0] = native;
        failure[1] = nestor;
        *candidate = *t;
        return false;
    }
    *t = *candidate;
    return true;
}

void case_minimise(struct testcase *t)
{
    static struct testcase c, z;
    plain(&z);
    c = *t;
    /* Fewer instructions: from either end. */
    while (t->count > 1) {
        unsigned last = case_insn(t, t->count - 1)->len, first = t->insn.len;
        c.len -= last;
        if (try(t, &c))
            continue;
        memmove(c.bytes, c.bytes + first, sizeof(c.bytes) - first);
        c.len -= first;
        if (!try(t, &c))
            break;
    }
    for (unsigned n = 0; n < 16; n++) {
        c.in.gpr[n] = z.in.gpr[n];
        try(t, &c);
        c.in.vec[n] = z.in.vec[n];
        try(t, &c);
        c.in.vec[16 + n] = z.in.vec[16 + n];
        try(t, &c);
        c.in.k[n & 7] = 0;
        try(t, &c);
    }
    c.in.mxcsr = z.in.mxcsr;
    try(t, &c);
    c.in.rflags = z.in.rflags;
    try(t, &c);
    c.in.x87 = z.in.x87;
    if (!try(t, &c))
        for (unsigned n = 0; n < 8; n++) {
            memset(c.in.x87.st[n], 0, sizeof(c.in.x87.st[n]));
            try(t, &c);
        }
    for (unsigned size = DATA_SIZE; size >= 8; size /= 2)
        for (unsigned at = 0; at + size <= DATA_SIZE; at += size) {
            bool zero = true;
            for (unsigned k = at; k < at + size && zero; k++)
                zero = !c.data[k];
            if (zero)
                continue;
            memset(c.data + at, 0, size);
            try(t, &c);
        }
    run_case(t); /* the report is of what is left */
}
