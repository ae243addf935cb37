/*
 * Runs a fuzz target without libFuzzer: fuzz_run ROUNDS FILE... mutates each file ROUNDS times, the same way
 * every time: bytes flipped, runs cut out, doubled and moved, numbers made extreme, two files spliced.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LARGEST (1u << 20)

static uint64_t state = 0x9e3779b97f4a7c15ull;
static unsigned below(unsigned n)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return n ? (unsigned)(state >> 11) % n : 0;
}

struct sample {
    uint8_t *data;
    size_t size;
};

static struct sample load(const char *path)
{
    struct sample s = {malloc(LARGEST), 0};
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        exit(2);
    }
    s.size = fread(s.data, 1, LARGEST, f);
    fclose(f);
    return s;
}

static size_t mutate(uint8_t *p, size_t n, const struct sample *other)
{
    static const char *const extremes[] = {"ffffffffffffffff", "0", "99999999999999999999", "{", "\"", "0x", "\n", "=", "-1"};
    unsigned at = below((unsigned)n), len = below(64) + 1;
    if (!n)
        return 0;
    if (at + len > n)
        len = (unsigned)n - at;
    switch (below(7)) {
    case 0: p[at] ^= (uint8_t)(1u << below(8)); return n;
    case 1: p[at] = (uint8_t)below(256); return n;
    case 2: memmove(p + at, p + at + len, n - at - len); return n - len;
    case 3:
        if (n + len > LARGEST)
            return n;
        memmove(p + at + len, p + at, n - at);
        return n + len;
    case 4: {
        const char *e = extremes[below(sizeof(extremes) / sizeof(*extremes))];
        size_t m = strlen(e) < n - at ? strlen(e) : n - at;
        memcpy(p + at, e, m);
        return n;
    }
    case 5: {
        size_t from = below((unsigned)other->size), m = other->size - from < n - at ? other->size - from : n - at;
        memcpy(p + at, other->data + from, m);
        return n;
    }
    default: return at; /* cut off */
    }
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 2 ? (unsigned)strtoul(argv[1], NULL, 10) : 0, count = (unsigned)argc - 2;
    if (!rounds) {
        fputs("usage: fuzz_run ROUNDS FILE...\n", stderr);
        return 2;
    }
    struct sample *s = calloc(count, sizeof(*s));
    uint8_t *work = malloc(LARGEST + 1);
    for (unsigned i = 0; i < count; i++)
        s[i] = load(argv[2 + i]);
    for (unsigned i = 0; i < count; i++)
        for (unsigned r = 0; r < rounds; r++) {
            size_t n = s[i].size;
            memcpy(work + 1, s[i].data, n);
            for (unsigned m = below(6); m--;)
                n = mutate(work + 1, n, &s[below(count)]);
            /* The kind of input a file is, or any. */
            work[0] = (uint8_t)below(256);
            if (below(4))
                work[0] = (uint8_t)((work[0] & ~3u) | (n > 4 && !memcmp(work + 1, "\177ELF", 4) ? 2 : work[0] & 1));
            LLVMFuzzerTestOneInput(work, n + 1);
        }
    printf("%u files, %u rounds each\n", count, rounds);
    for (unsigned i = 0; i < count; i++)
        free(s[i].data);
    free(s);
    free(work);
    return 0;
}
