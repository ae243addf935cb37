#include "corpus.h"
#include <string.h>

#define CORPUS_RANDOM 700000

static u64 random_state = 0x9e3779b97f4a7c15ull;

/* splitmix64: the corpus is the same on every machine. */
static u64 random64(void)
{
    u64 z = random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* A tail that is never a plausible instruction boundary by accident: distinct bytes, a plain SIB. */
static void fill(u8 *p, unsigned n)
{
    static const u8 tail[16] = {0x51, 0x12, 0x23, 0x34, 0x45, 0x56, 0x67, 0x78, 0x19, 0x2a, 0x3b, 0x4c, 0x5d, 0x6e, 0x7f, 0x11};
    memcpy(p + n, tail, 16 - n);
}

static void legacy(corpus_fn *fn, void *opaque)
{
    static const struct {
        u8 n, bytes[3], modes; /* bit m: in enum code_mode m */
        u8 step; /* take every nth ModRM byte */
    } prefixes[] = {
        {0, {0}, 7, 1}, {1, {0x66}, 7, 1}, {1, {0xf3}, 7, 1}, {1, {0xf2}, 7, 1}, {1, {0x48}, 4, 1}, {2, {0x66, 0x48}, 4, 3},
        {1, {0x67}, 7, 3}, {2, {0x66, 0xf2}, 7, 5}, {2, {0x66, 0xf3}, 7, 5}, {2, {0xf3, 0x48}, 4, 3}, {2, {0xf2, 0x48}, 4, 3},
        {1, {0x41}, 4, 3}, {1, {0x44}, 4, 3}, {1, {0xf0}, 7, 3}, {1, {0x2e}, 7, 7}, {1, {0x64}, 7, 7}, {2, {0x65, 0x4f}, 4, 7},
    };
    static const u8 maps[4][2] = {{0}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
    for (unsigned mode = 0; mode < 3; mode++)
        for (unsigned p = 0; p < ARRAY_SIZE(prefixes); p++)
            for (unsigned map = 0; map < 4; map++)
                for (unsigned op = 0; op < 256; op++)
                    for (unsigned modrm = 0; modrm < 256; modrm += prefixes[p].step) {
                        u8 b[16];
                        unsigned n = prefixes[p].n;
                        if (!(prefixes[p].modes >> mode & 1) || (map == 1 && (op == 0x38 || op == 0x3a)))
                            continue;
                        memcpy(b, prefixes[p].bytes, n);
                        for (unsigned k = 0; k < map && k < 2; k++)
                            b[n++] = map == 3 && k == 1 ? 0x3a : maps[map][k];
                        b[n++] = (u8)op;
                        b[n++] = (u8)modrm;
                        fill(b, n);
                        fn(opaque, (enum code_mode)mode, b);
                    }
}

static void vex(corpus_fn *fn, void *opaque)
{
    for (unsigned mode = 1; mode < 3; mode++)
        for (unsigned map = 1; map < 4; map++)
            for (unsigned last = 0; last < 16; last++) /* W, L, pp */
                for (unsigned op = 0; op < 256; op++)
                    for (unsigned modrm = 0; modrm < 256; modrm += modrm % 8 == 5 || modrm % 8 == 0 ? 4 : 1) {
                        u8 b[16] = {0xc4, (u8)(0xe0 | map), (u8)((last & 8) << 4 | (modrm & 1 ? 0x78 : 0x60) | (last & 7)),
                                    (u8)op, (u8)modrm};
                        fill(b, 5);
                        fn(opaque, (enum code_mode)mode, b);
                        if (map == 1 && !(last & 8)) {
                            u8 c[16] = {0xc5, (u8)(0xf8 | (last & 7)), (u8)op, (u8)modrm};
                            fill(c, 4);
                            fn(opaque, (enum code_mode)mode, c);
                        }
                    }
}

/* EVEX: every opcode and form under the payload bits that change its meaning. */
static void evex(corpus_fn *fn, void *opaque)
{
    static const u8 p2[] = {0x08, 0x28, 0x48, 0x18, 0x58, 0x68, 0x78, 0x09, 0x49, 0xcb, 0x8b, 0x5a, 0x00, 0x42}; /* z L'L b V' aaa */
    static const u8 maps[] = {1, 2, 3, 5, 6};
    for (unsigned mode = 1; mode < 3; mode++)
        for (unsigned m = 0; m < ARRAY_SIZE(maps); m++)
            for (unsigned wpp = 0; wpp < 8; wpp++)
                for (unsigned op = 0; op < 256; op++)
                    for (unsigned n = 0; n < ARRAY_SIZE(p2); n++)
                        for (unsigned form = 0; form < (n < 3 ? 24 : 3); form++) { /* register, memory, disp8 */
                            static const u8 mod_rm[3] = {0xc1, 0x03, 0x44};
                            u8 modrm = (u8)(mod_rm[form % 3] | (form / 3) << 3);
                            u8 vvvv = n & 1 ? 0x78 : 0x50, p0 = n % 3 == 2 && mode == 2 ? 0xa0 : 0xf0;
                            u8 b[16] = {0x62, (u8)(p0 | maps[m]), (u8)((wpp & 4) << 5 | vvvv | 4 | (wpp & 3)), p2[n], (u8)op, modrm};
                            fill(b, 6);
                            fn(opaque, (enum code_mode)mode, b);
                        }
}

static void random_bytes(corpus_fn *fn, void *opaque)
{
    for (unsigned n = 0; n < CORPUS_RANDOM; n++) {
        u8 b[16];
        u64 x = random64(), y = random64();
        memcpy(b, &x, 8);
        memcpy(b + 8, &y, 8);
        b[15] = 0x11;
        if (n & 1) /* bias towards the larger maps */
            b[0] = n & 2 ? 0x0f : n & 4 ? 0xc5 : 0x66;
        fn(opaque, (enum code_mode)(n % 3), b);
    }
}

void corpus_each(corpus_fn *fn, void *opaque)
{
    random_state = 0x9e3779b97f4a7c15ull;
    legacy(fn, opaque);
    vex(fn, opaque);
    evex(fn, opaque);
    random_bytes(fn, opaque);
}
