/* Random numbers, and operands that are interesting more often than random ones. */
#include "native_diff.h"

#define POOL_SIZE 0x20000u

static u64 rng_state;
void rnd_seed(u64 seed) { rng_state = seed; }
u64 rnd(void)
{
    u64 z = (rng_state += 0x9e3779b97f4a7c15ull); /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
u64 rnd_below(u64 n) { return (u64)((unsigned __int128)rnd() * n >> 64); }
bool chance(unsigned percent) { return rnd_below(100) < percent; }

static u64 rnd_double(void)
{
    static const u64 special[] = {
        0, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000, 0xfff0000000000000,
        0x7ff8000000000000, 0xfff8000000000000, 0x7ff4000000000000, 0x7fefffffffffffff, 0x0010000000000000,
        0x000fffffffffffff, 1, 0x8000000000000001, 0x43e0000000000000, 0xc3e0000000000000, 0x41dfffffffc00000,
        0x3fe0000000000000, 0x4008000000000000, 0x400921fb54442d18,
    };
    if (chance(40))
        return special[rnd_below(ARRAY_SIZE(special))];
    if (chance(30)) /* near the ends of the exponent range: overflow, underflow, denormals */
        return (rnd() & 0x800fffffffffffff) | (chance(50) ? rnd_below(60) : 0x7fe - rnd_below(60)) << 52;
    return (rnd() & 0x800fffffffffffff) | (0x3ff - 20 + rnd_below(40)) << 52;
}

static u32 rnd_float(void)
{
    static const u32 special[] = { 0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000,
                                   0x7fa00000, 0x7f7fffff, 0x00800000, 0x007fffff, 1, 0x80000001, 0x4f000000, 0xcf000000,
                                   0x3f000000, 0x40400000, 0x5f000000,
                                   0x477fe000, 0x477ff000, 0x38800000, 0x38000000, 0xb3800000, 0x33000000 };
    if (chance(40))
        return special[rnd_below(ARRAY_SIZE(special))];
    if (chance(30))
        return (u32)((rnd() & 0x807fffff) | (chance(50) ? rnd_below(30) : 0xfe - rnd_below(30)) << 23);
    return (u32)((rnd() & 0x807fffff) | (0x7f - 12 + rnd_below(24)) << 23);
}

u64 rnd_int(void)
{
    static const u64 special[] = { 0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x10000,
                                   0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000,
                                   ~0ull, ~1ull, 0x5555555555555555, 0xaaaaaaaaaaaaaaaa };
    switch (rnd_below(6)) {
    case 0: return special[rnd_below(ARRAY_SIZE(special))];
    case 1: return rnd() >> rnd_below(64);
    case 2: return (u64)-(s64)(rnd() >> rnd_below(64));
    case 3: return rnd_below(256);
    }
    return rnd();
}

static u64 rnd_lane(void)
{
    switch (rnd_below(4)) {
    case 0: return rnd_int();
    case 1: return rnd_double();
    case 2: return rnd_float() | (u64)rnd_float() << 32;
    }
    return rnd();
}

static void rnd_x87_reg(u8 *st)
{
    u64 m = rnd() | BIT64(63);
    u16 se = (u16)(0x3fff - 40 + rnd_below(80));
    switch (rnd_below(10)) {
    case 0: m = 0; se = 0; break;
    case 1: m = BIT64(63); break;
    case 2: m = BIT64(63); se = 0x7fff; break;                        /* infinity */
    case 3: m = BIT64(63) | rnd(); se = 0x7fff; break;                /* NaN, quiet or signalling */
    case 4: m = rnd() >> 1; se = 0; break;                            /* denormal */
    case 5: m = rnd(); se = (u16)(rnd() & 0x7fff); break;             /* anything, unsupported formats too */
    case 6: se = (u16)(chance(50) ? rnd_below(80) : 0x7ffe - rnd_below(80)); break;
    case 7: m = (rnd() >> rnd_below(63)) << 1 | BIT64(63); break;
    }
    if (chance(40))
        se |= 0x8000;
    memset(st, 0, 16);
    store64(st, m);
    store16(st + 8, se);
}

/* Lanes of any type, of doubles, of floats: making them anew would be most of a case's time. */
static u8 pool[3][POOL_SIZE];

void rnd_init(void)
{
    rnd_seed(0x1234567);
    for (unsigned n = 0; n < POOL_SIZE; n += 8)
        store64(pool[0] + n, rnd_lane());
    for (unsigned n = 0; n < POOL_SIZE; n += 8) {
        store64(pool[1] + n, rnd_double());
        store64(pool[2] + n, rnd_float() | (u64)rnd_float() << 32);
    }
}

void rnd_state(struct testcase *t)
{
    struct state *s = &t->in;
    memset(s, 0, sizeof(*s));
    for (unsigned n = 0; n < 16; n++)
        s->gpr[n] = t->legacy && n < 8 ? (u32)rnd_int() : rnd_int();
    for (unsigned n = 0; n < VECTORS; n++) {
        u64 r = rnd(); /* lanes of one type make interesting vector operations */
        const u8 *from = pool[r >> 32 & 3 ? 0 : 1 + (n & 1)] + 8 * (r % (POOL_SIZE / 8 - LANES));
        memcpy(s->vec[n].q, from, 8 * LANES);
    }
    if (nat_mask & XCR0_OPMASK)
        for (unsigned n = 0; n < 8; n++)
            s->k[n] = chance(20) ? ~0ull : chance(10) ? 0 : chance(40) ? rnd() & rnd() & rnd() : rnd();
    s->rflags = 0x202 | (rnd() & FL_ARITH) | (chance(30) ? FL_DF : 0) | (chance(3) ? FL_AC : 0);
    s->mxcsr = 0x1f80;
    if (chance(50))
        s->mxcsr |= (u32)rnd() & 0xe07f;
    if (chance(25))
        s->mxcsr = (u32)rnd() & 0xffff;
    struct x87 *f = &s->x87;
    f->fcw = (u16)(0x37f & ~(chance(30) ? rnd() & 0x3f : 0));
    if (chance(50))
        f->fcw = (u16)((f->fcw & ~0xf00) | (rnd() & 0xf00));
    f->fsw = (u16)(rnd() & 0x7f7f);
    if (!chance(5)) /* usually nothing is pending */
        f->fsw &= (u16)(~0x3f | f->fcw);
    if (f->fsw & ~f->fcw & 0x3f)
        f->fsw |= 0x8080;
    f->ftw = (u8)(chance(70) ? 0xff : rnd());
    for (unsigned n = 0; n < 8; n++) {
        rnd_x87_reg(f->st[n]);
        if (chance(10)) {
            store64(f->st[n], rnd_lane()); /* as MMX leaves it */
            store16(f->st[n] + 8, 0xffff);
        }
    }
}

void rnd_data(struct testcase *t) { memcpy(t->data, pool[0] + 8 * rnd_below((POOL_SIZE - DATA_SIZE) / 8), DATA_SIZE); }
