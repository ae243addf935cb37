#include "random_insn.h"

#include <string.h>

u64 random_state = 1;

u64 rnd(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1dull;
}
unsigned below(unsigned n) { return (unsigned)(rnd() >> 33) % n; }

static unsigned prefixes(const struct insn_row *row, unsigned bits, bool *address32, u8 *out)
{
    static const u8 mandatory[] = {0, 0x66, 0xf3, 0xf2};
    bool wide = bits == 64;
    unsigned n = 0;
    if (row->vex) {
        out[n++] = 0xc4;
        out[n++] = (u8)((wide ? rnd() & 0xa0 : 0x80) | 0x40 | (row->map & 31) | (wide ? 0 : 0x20));
        out[n++] = (u8)((rnd() & (wide ? 0x80 : 0)) | (rnd() & 0x7c) | row->pp | (wide ? 0 : 0x40));
        return n;
    }
    if (!below(24))
        out[n++] = 0xf0;
    if (!below(24))
        out[n++] = ((const u8[]){0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65})[below(6)];
    if (bits == 16 && below(4) == 0)
        out[n++] = 0x67, *address32 = true;
    if (row->pp != 1 && !below(bits == 16 ? 2 : 6))
        out[n++] = 0x66;
    if (row->pp)
        out[n++] = mandatory[row->pp];
    if (wide && below(3))
        out[n++] = (u8)(0x40 | (rnd() & 15));
    if (row->map)
        out[n++] = 0x0f;
    if (row->map > 1)
        out[n++] = row->map == 2 ? 0x38 : 0x3a;
    return n;
}

unsigned random_insn(const struct insn_row *row, unsigned bits, u8 *out)
{
    bool address32 = bits != 16;
    if (row->vex == 2)
        return 0;
    unsigned n = prefixes(row, bits, &address32, out);
    out[n++] = (u8)(row->opcode | (strstr(row->encoding, "+r") ? rnd() & 7 : 0));
    const char *ext = strchr(row->encoding, '/');
    u8 modrm = (u8)rnd();
    if (below(2)) /* REX.B makes R14 of the 6 */
        modrm = (u8)(0x80 | (modrm & 0x38) | (address32 ? (below(2) && bits == 64 ? 6 : 5) : 6));
    if (ext && ext[1] >= '0' && ext[1] <= '7')
        modrm = (u8)((modrm & 0xc7) | (ext[1] - '0') << 3);
    if (ext)
        out[n++] = modrm;
    if (ext && modrm >> 6 == 2) {
        s32 disp = (s32)below(0x2800) - 0x1400;
        if (row->checks & CHK_ALIGN16)
            disp &= ~63;
        memcpy(out + n, &disp, 4);
        n += address32 ? 4 : 2;
    }
    for (unsigned k = 0; k < 8; k++)
        out[n++] = (u8)(below(4) ? rnd() : 0);
    return n;
}
