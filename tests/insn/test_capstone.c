/*
 * The decoder against Capstone: length and mnemonic must agree over the whole corpus. Where they do
 * not, a row of known[] must say why; a row that nothing needs any more is an error too.
 *
 * With NESTOR_INSN_VERBOSE set, every unexplained class is listed with an example.
 */
#include "corpus.h"
#include "differences.h"

#include <capstone/capstone.h>
#include <ctype.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIN_COMPARED 1000000
#define MAX_CLASSES 4096

struct class {
    char ours[24], theirs[32];
    int length; /* -1, 0, 1: ours is shorter, same, longer */
    unsigned mode;
    u64 count;
    u8 example[16];
    unsigned ours_len, theirs_len;
};

struct run {
    csh handle[3];
    cs_insn *insn[3];
    u64 compared, agreed, both_undefined, explained, unexplained;
    struct class classes[MAX_CLASSES];
    unsigned class_count;
    bool classes_full;
};

static void lower(char *to, size_t size, const char *from)
{
    size_t n = 0;
    for (; from[n] && n + 1 < size; n++)
        to[n] = (char)tolower((unsigned char)from[n]);
    to[n] = 0;
}

/* Capstone puts LOCK and repeat prefixes into the mnemonic. */
static const char *without_prefix(const char *m)
{
    static const char *const prefixes[] = {"lock ", "rep ", "repe ", "repne ", "repnz ", "repz ", "xacquire ", "xrelease ", "bnd ", "notrack ", "data16 "};
    for (bool again = true; again;) {
        again = false;
        for (unsigned n = 0; n < ARRAY_SIZE(prefixes); n++)
            if (!strncmp(m, prefixes[n], strlen(prefixes[n]))) {
                m += strlen(prefixes[n]);
                again = true;
            }
    }
    return m;
}

static bool explained(const struct sample *s)
{
    for (unsigned n = 0; n < known_count; n++) {
        const struct difference *d = &known[n];
        if (!(d->modes >> s->mode & 1) || fnmatch(d->ours, s->ours, 0) || fnmatch(d->theirs, s->theirs, 0))
            continue;
        if (d->when && !d->when(s))
            continue;
        known_hits[n]++;
        return true;
    }
    return false;
}

static void note(struct run *run, const struct sample *s)
{
    int length = s->ours_len < s->theirs_len ? -1 : s->ours_len > s->theirs_len;
    run->unexplained++;
    for (unsigned n = 0; n < run->class_count; n++) {
        struct class *c = &run->classes[n];
        if (c->mode == s->mode && c->length == length && !strcmp(c->ours, s->ours) && !strcmp(c->theirs, s->theirs)) {
            c->count++;
            return;
        }
    }
    if (run->class_count == MAX_CLASSES)
        return;
    struct class *c = &run->classes[run->class_count++];
    snprintf(c->ours, sizeof(c->ours), "%s", s->ours);
    snprintf(c->theirs, sizeof(c->theirs), "%s", s->theirs);
    c->length = length;
    c->mode = s->mode;
    c->count = 1;
    c->ours_len = s->ours_len;
    c->theirs_len = s->theirs_len;
    memcpy(c->example, s->bytes, 16);
}

static void compare(void *opaque, enum code_mode mode, const u8 bytes[16])
{
    struct run *run = opaque;
    struct decode_ctx ctx = {.mode = mode};
    struct insn i;
    char ours[24];
    enum decode_status st = insn_decode(&ctx, bytes, 15, &i);
    const uint8_t *code = bytes;
    size_t size = 15;
    uint64_t address = 0x1000;
    bool valid = cs_disasm_iter(run->handle[mode], &code, &size, &address, run->insn[mode]);
    const char *theirs = valid ? without_prefix(run->insn[mode]->mnemonic) : "-";
    bool undefined = st != DECODE_OK || i.row == 0;

    run->compared++;
    if (undefined && !valid) {
        run->both_undefined++;
        return;
    }
    if (undefined)
        strcpy(ours, "-");
    else
        lower(ours, sizeof(ours), insn_rows[i.row].mnemonic);
    struct sample s = {.mode = mode, .bytes = bytes, .insn = &i, .ours = ours, .theirs = theirs, .ours_len = undefined ? 0 : i.len,
                       .theirs_len = valid ? run->insn[mode]->size : 0};
    if (!undefined && valid && s.ours_len == s.theirs_len && same_name(ours, theirs)) {
        run->agreed++;
        return;
    }
    if (explained(&s))
        run->explained++;
    else
        note(run, &s);
}

static int by_count(const void *a, const void *b)
{
    const struct class *x = a, *y = b;
    return x->count < y->count ? 1 : x->count > y->count ? -1 : 0;
}

int main(void)
{
    static const cs_mode modes[3] = {CS_MODE_16, CS_MODE_32, CS_MODE_64};
    static struct run run;
    int bad = 0;
    for (unsigned m = 0; m < 3; m++) {
        if (cs_open(CS_ARCH_X86, modes[m], &run.handle[m]) != CS_ERR_OK) {
            fprintf(stderr, "Capstone does not open\n");
            return 1;
        }
        run.insn[m] = cs_malloc(run.handle[m]);
    }
    corpus_each(compare, &run);
    for (unsigned m = 0; m < 3; m++) {
        cs_free(run.insn[m], 1);
        cs_close(&run.handle[m]);
    }
    printf("compared %llu encodings: %llu agree, %llu undefined to both, %llu explained by %u rows, %llu unexplained in %u classes\n",
           (unsigned long long)run.compared, (unsigned long long)run.agreed, (unsigned long long)run.both_undefined,
           (unsigned long long)run.explained, known_count, (unsigned long long)run.unexplained, run.class_count);
    if (run.compared < MIN_COMPARED) {
        printf("fewer than %d were compared\n", MIN_COMPARED);
        bad = 1;
    }
    if (run.unexplained) {
        unsigned show = getenv("NESTOR_INSN_VERBOSE") ? run.class_count : run.class_count < 20 ? run.class_count : 20;
        qsort(run.classes, run.class_count, sizeof(run.classes[0]), by_count);
        for (unsigned n = 0; n < show; n++) {
            const struct class *c = &run.classes[n];
            printf("%8llu  mode %u  ours %s/%u  Capstone %s/%u  e.g.", (unsigned long long)c->count, 16u << c->mode, c->ours, c->ours_len,
                   c->theirs, c->theirs_len);
            for (unsigned k = 0; k < 12; k++)
                printf(" %02x", c->example[k]);
            printf("\n");
        }
        bad = 1;
    }
    for (unsigned n = 0; n < known_count; n++)
        if (!known_hits[n]) {
            printf("row \"%s\" / \"%s\" (%s) explains nothing\n", known[n].ours, known[n].theirs, known[n].reason);
            bad = 1;
        }
    return bad;
}
