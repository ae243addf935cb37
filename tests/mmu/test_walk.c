/*
 * The walker against a second, short statement of the paging rules: every combination of present,
 * writable, user, no-execute and reserved at every level, under every combination of CR0.WP, SMEP,
 * SMAP and NXE, for every kind of access. After each walk the tables must hold exactly the accessed
 * and dirty flags that the access earned.
 */
#include "mmu_test.h"

#define RSVD BIT(8) /* in a state: some reserved bit of that level */
enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80, NX = BIT(9) };

/* States of one entry: absent (all else set), reserved bit, and all rights. */
static const u16 states[] = {W | U | NX, P | W | U | RSVD, P,          P | W,      P | U,
                             P | W | U,  P | NX,           P | W | NX, P | U | NX, P | W | U | NX};
/* Enough for the upper levels of the deepest tables: each right missing alone. */
#define FEW_STATES 6
static const u16 few_states[FEW_STATES] = {0, P | W | U | RSVD, P | W, P | U, P | W | U, P | W | U | NX};

struct shape {
    const char *name;
    enum paging_mode mode;
    unsigned levels, entry, leaf_level;
    pa_t pa[6]; /* of the entry at each level */
    u64 rsvd[6];
    unsigned lg2;
};

static const gva_t la = 0x0000004040804123ull & 0x7fffffffffffull; /* distinct indices at all levels */
static const pa_t target = 0x40000000;                             /* aligned for every page size */

static u64 entry_value(const struct shape *s, unsigned level, unsigned state)
{
    u64 next = level == s->leaf_level ? target : (u64)level * 0x1000 + 0x10000 - 0x1000;
    u64 e = next | (state & (P | W | U));
    if (state & NX && s->entry == 8)
        e |= BIT64(63);
    if (level == s->leaf_level && level > 1)
        e |= PS;
    if (state & RSVD)
        e |= s->rsvd[level];
    return e;
}

static u64 get(struct physmap *pm, const struct shape *s, unsigned level)
{
    return s->entry == 8 ? get64(pm, s->pa[level]) : get32(pm, s->pa[level]);
}

/* The second statement. Returns the error code, or -1 when the access succeeds. */
static int model(const struct shape *s, const u16 *state, const struct walk_context *c, u32 access)
{
    int code = (access & ACCESS_WRITE ? 2 : 0) | (access & ACCESS_USER ? 4 : 0);
    bool fetch = access & ACCESS_EXEC, sup = !(access & ACCESS_USER);
    if (fetch && (c->nx || c->smep))
        code |= 16;
    bool w = true, u = true, x = true;
    for (unsigned l = s->levels; l >= s->leaf_level; l--) {
        if (!(state[l] & P))
            return code;
        if (((state[l] & RSVD) && s->rsvd[l]) || ((state[l] & NX) && s->entry == 8 && !c->nx))
            return code | 9;
        w = w && (state[l] & W);
        u = u && (state[l] & U);
        x = x && !((state[l] & NX) && s->entry == 8);
    }
    bool ok;
    if (sup && fetch)
        ok = x && !(u && c->smep);
    else if (sup && u && c->smap && !(access & ACCESS_AC))
        ok = false;
    else if (sup)
        ok = !(access & ACCESS_WRITE) || w || !c->wp;
    else
        ok = u && (!fetch || x) && (!(access & ACCESS_WRITE) || w);
    return ok ? -1 : code | 1;
}

static void run_shape(struct physmap *pm, struct shape *s, struct walk_context *c, bool few)
{
    static const u32 accesses[] = {ACCESS_READ, ACCESS_WRITE, ACCESS_EXEC, ACCESS_READ | ACCESS_WRITE};
    static const u32 whos[] = {ACCESS_USER, 0, ACCESS_AC};
    const unsigned nstates = few ? FEW_STATES : ARRAY_SIZE(states);
    unsigned n = s->levels - s->leaf_level + 1, total = 1;
    for (unsigned i = 0; i < n; i++)
        total *= nstates;
    struct walk w;
    for (unsigned combo = 0; combo < total; combo++) {
        u16 state[6];
        u64 value[6];
        unsigned rest = combo;
        for (unsigned l = s->leaf_level; l <= s->levels; l++, rest /= nstates) {
            state[l] = (few ? few_states : states)[rest % nstates];
            value[l] = entry_value(s, l, state[l]);
        }
        for (unsigned mode = 0; mode < (s->entry == 8 ? 16 : 8); mode++) {
            c->wp = mode & 1;
            c->smep = mode & 2;
            c->smap = mode & 4;
            c->nx = mode & 8;
            for (unsigned a = 0; a < ARRAY_SIZE(accesses) * ARRAY_SIZE(whos); a++) {
                u32 access = accesses[a % 4] | whos[a / 4];
                for (unsigned l = s->leaf_level; l <= s->levels; l++) {
                    if (s->entry == 8)
                        put64(pm, s->pa[l], value[l]);
                    else
                        put32(pm, s->pa[l], (u32)value[l]);
                }
                int expect = model(s, state, c, access);
                bool ok = walk_linear(pm, c, la, access, &w);
                if (ok != (expect < 0) || (!ok && (w.fault != WALK_PAGE_FAULT || (int)w.error_code != expect)))
                    fail_msg("%s: combination %u, mode %u, access %#x: %s %#x, expected %#x", s->name, combo, mode,
                             access, ok ? "success" : "error", w.error_code, (unsigned)expect);
                for (unsigned l = s->leaf_level; l <= s->levels; l++) {
                    u64 want = value[l];
                    if (ok)
                        want |= A | (l == s->leaf_level && (access & ACCESS_WRITE) ? D : 0);
                    if (get(pm, s, l) != want)
                        fail_msg("%s: combination %u, access %#x: level %u is %#llx, expected %#llx", s->name, combo,
                                 access, l, (unsigned long long)get(pm, s, l), (unsigned long long)want);
                }
                if (ok) {
                    assert_int_equal(w.pa, target | (la & ((1ull << s->lg2) - 1)));
                    assert_int_equal(w.lg2_page, s->lg2);
                    assert_int_equal(w.dirty, !!(access & ACCESS_WRITE));
                    /* perms must predict what each access of this privilege would get. */
                    for (unsigned k = 0; k < 3; k++)
                        assert_int_equal(!!(w.perms & BIT(k)), model(s, state, c, BIT(k) | whos[a / 4]) < 0);
                }
            }
        }
    }
}

static void shape_run(const char *name, enum paging_mode mode, unsigned levels, unsigned entry, unsigned leaf,
                      unsigned lg2, const u64 rsvd[6], bool few)
{
    struct physmap *pm = test_memory(4);
    struct walk_context c = {.paging = mode,
                             .maxphyaddr = 40,
                             .pse = true,
                             .pse36 = true,
                             .pdpe1gb = true,
                             .cr3 = levels * 0x1000 + 0x10000};
    struct shape s = {.name = name, .mode = mode, .levels = levels, .entry = entry, .leaf_level = leaf, .lg2 = lg2};
    unsigned bits = entry == 8 ? 9 : 10;
    for (unsigned l = 1; l <= levels; l++) {
        s.pa[l] = 0x10000 + l * 0x1000 + ((la >> (12 + bits * (l - 1))) & ((1u << bits) - 1)) * entry;
        s.rsvd[l] = rsvd[l];
    }
    if (mode == PAGING_PAE) {
        c.cr3 = 0;
        c.pdpte[(la >> 30) & 3] = 0x12000 | P;
    }
    run_shape(pm, &s, &c, few);
    physmap_free(pm);
}

#define R(...) ((const u64[6]){__VA_ARGS__})
static void perms_32bit(void **state) { shape_run("32-bit 4K", PAGING_32BIT, 2, 4, 1, 12, R(0), false); }
static void perms_32bit_4m(void **state)
{
    shape_run("32-bit 4M", PAGING_32BIT, 2, 4, 2, 22, R(0, 0, BIT64(21)), false);
}
static void perms_pae(void **state) { shape_run("PAE 4K", PAGING_PAE, 2, 8, 1, 12, R(0, BIT64(52), BIT64(40)), false); }
static void perms_pae_2m(void **state) { shape_run("PAE 2M", PAGING_PAE, 2, 8, 2, 21, R(0, 0, BIT64(13)), false); }
static void perms_4level(void **state)
{
    shape_run("4-level 4K", PAGING_4LEVEL, 4, 8, 1, 12, R(0, BIT64(51), BIT64(40), BIT64(45), PS), false);
}
static void perms_4level_2m(void **state)
{
    shape_run("4-level 2M", PAGING_4LEVEL, 4, 8, 2, 21, R(0, 0, BIT64(20), BIT64(45), PS), false);
}
static void perms_4level_1g(void **state)
{
    shape_run("4-level 1G", PAGING_4LEVEL, 4, 8, 3, 30, R(0, 0, 0, BIT64(29), BIT64(40)), false);
}
static void perms_5level(void **state)
{
    shape_run("5-level 4K", PAGING_5LEVEL, 5, 8, 1, 12, R(0, BIT64(41), BIT64(42), BIT64(43), PS, PS), true);
}

/* ---- single rules ---- */

static struct walk_context ctx4(void)
{
    return (struct walk_context){
        .paging = PAGING_4LEVEL, .maxphyaddr = 40, .nx = true, .wp = true, .pdpe1gb = true, .cr3 = 0x14000};
}

/* 4-level tables for la as in run_shape, all rights, leaf @leaf. */
static void map4(struct physmap *pm, u64 leaf)
{
    for (unsigned l = 1; l <= 4; l++)
        put64(pm, 0x10000 + l * 0x1000 + ((la >> (12 + 9 * (l - 1))) & 511) * 8,
              l == 1 ? leaf : (0x10000 + (l - 1) * 0x1000) | 7);
}

static void reserved_bits(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk w;
    for (unsigned m = 36; m <= 52; m += 4) {
        struct walk_context c = ctx4();
        c.maxphyaddr = (u8)m;
        for (unsigned bit = 12; bit < 63; bit++) {
            if (bit >= 52) { /* ignored, keys */
                map4(pm, 0x5000 | 7 | BIT64(bit));
                assert_true(walk_linear(pm, &c, la, ACCESS_READ, &w));
                continue;
            }
            map4(pm, 7 | BIT64(bit));
            bool ok = walk_linear(pm, &c, la, ACCESS_READ, &w);
            assert_int_equal(ok, bit < m);
            if (!ok)
                assert_int_equal(w.error_code, 9);
        }
    }
    /* 1 GiB pages need the feature; bit 7 is reserved without. */
    struct walk_context c = ctx4();
    pa_t pdpte = 0x13000 + ((la >> 30) & 511) * 8;
    map4(pm, 7);
    put64(pm, pdpte, 0x40000000 | 7 | PS);
    assert_true(walk_linear(pm, &c, la, ACCESS_READ, &w));
    c.pdpe1gb = false;
    assert_false(walk_linear(pm, &c, la, ACCESS_READ, &w));
    assert_int_equal(w.error_code, 9);
    /* Bit 8 of a PML4 entry: reserved on AMD only. */
    c = ctx4();
    map4(pm, 7);
    put64(pm, 0x14000 + ((la >> 39) & 511) * 8, 0x13000 | 7 | BIT64(8));
    assert_true(walk_linear(pm, &c, la, ACCESS_READ, &w));
    c.amd = true;
    assert_false(walk_linear(pm, &c, la, ACCESS_READ, &w));
    physmap_free(pm);
}

static void pse(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk w;
    struct walk_context c = {.paging = PAGING_32BIT, .maxphyaddr = 40, .pse = true, .pse36 = true, .cr3 = 0x12000};
    gva_t a = 0x00c01234;
    /* PSE-36: bits 20:13 are address bits 39:32. */
    put32(pm, 0x12000 + 3 * 4, 0x80000000u | PS | 7 | (0xabu << 13));
    assert_true(walk_linear(pm, &c, a, ACCESS_READ, &w));
    assert_int_equal(w.pa, 0xab80001234ull);
    assert_int_equal(w.lg2_page, 22);
    c.maxphyaddr = 36; /* bits 16:13 only */
    assert_false(walk_linear(pm, &c, a, ACCESS_READ, &w));
    put32(pm, 0x12000 + 3 * 4, 0x80000000u | PS | 7 | (0xbu << 13));
    assert_true(walk_linear(pm, &c, a, ACCESS_READ, &w));
    assert_int_equal(w.pa, 0xb80001234ull);
    c.pse36 = false;
    assert_false(walk_linear(pm, &c, a, ACCESS_READ, &w));
    assert_int_equal(w.error_code, 9);
    /* Without CR4.PSE the bit is ignored: a table. */
    c.pse = false;
    put32(pm, 0x12000 + 3 * 4, 0x11000 | PS | 7);
    put32(pm, 0x11000 + 1 * 4, 0x5000 | 7);
    assert_true(walk_linear(pm, &c, a, ACCESS_READ, &w));
    assert_int_equal(w.pa, 0x5234);
    /* No fetch bit in the error code without NX and SMEP. */
    put32(pm, 0x11000 + 1 * 4, 0);
    assert_false(walk_linear(pm, &c, a, ACCESS_EXEC | ACCESS_USER, &w));
    assert_int_equal(w.error_code, 4);
    c.smep = true;
    assert_false(walk_linear(pm, &c, a, ACCESS_EXEC | ACCESS_USER, &w));
    assert_int_equal(w.error_code, 0x14);
    physmap_free(pm);
}

static void protection_keys(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk w;
    for (unsigned bits = 0; bits < 1u << 8; bits++) {
        bool user_page = bits & 1, writable = bits & 2, wp = bits & 4, user = bits & 8, ad = bits & 16, wd = bits & 32;
        bool pke = bits & 64, pks = bits & 128;
        for (unsigned key = 0; key < 16; key += 5)
            for (u32 access = ACCESS_READ; access <= ACCESS_EXEC; access <<= 1) {
                struct walk_context c = ctx4();
                u32 rights = ~(3u << (2 * key)) | ((u32)(ad | wd << 1) << (2 * key)); /* all other keys deny */
                c.wp = wp;
                c.pke = pke;
                c.pks = pks;
                c.pkru = c.pkrs = rights;
                map4(pm, 0x5000 | P | (writable ? W : 0) | (user_page ? U : 0) | (u64)key << 59);
                bool plain = (user ? user_page : true) && (access != ACCESS_WRITE || writable || (!user && !wp));
                bool pk = (user_page ? pke : pks) && access != ACCESS_EXEC &&
                          (ad || (wd && access == ACCESS_WRITE && (user || wp)));
                bool ok = walk_linear(pm, &c, la, access | (user ? ACCESS_USER : 0), &w);
                assert_int_equal(ok, plain && !pk);
                if (!ok)
                    assert_int_equal(w.error_code, 1 | (access == ACCESS_WRITE ? 2 : 0) | (user ? 4 : 0) |
                                                       (access == ACCESS_EXEC ? 16 : 0) | (pk ? 32 : 0));
                assert_int_equal(w.pkey, key);
            }
    }
    physmap_free(pm);
}

static void look_only(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk_context c = ctx4();
    struct walk w;
    map4(pm, 0x5000 | 7);
    assert_true(walk_linear(pm, &c, la, ACCESS_WRITE | ACCESS_NO_AD, &w));
    assert_int_equal(get64(pm, w.steps[3].pa), 0x5000 | 7);
    assert_false(w.dirty);
    assert_int_equal(w.nsteps, 4);
    assert_int_equal(w.steps[0].level, 4);
    assert_int_equal(w.steps[0].pa, 0x14000 + ((la >> 39) & 511) * 8);
    assert_true(walk_linear(pm, &c, la, ACCESS_WRITE, &w));
    assert_int_equal(get64(pm, w.steps[3].pa), 0x5000 | 7 | A | D);
    assert_true(w.dirty);
    /* A dirty page stays writable for a read's translation. */
    assert_true(walk_linear(pm, &c, la, ACCESS_READ, &w));
    assert_true(w.dirty);
    physmap_free(pm);
}

static void recursive_tables(void **state)
{
    /* A table that maps itself: one entry is read at several levels and its flag set once. */
    struct physmap *pm = test_memory(4);
    struct walk_context c = ctx4();
    struct walk w;
    put64(pm, 0x14000, 0x14000 | 7);
    assert_true(walk_linear(pm, &c, 0x123, ACCESS_WRITE, &w));
    assert_int_equal(w.pa, 0x14123);
    assert_int_equal(get64(pm, 0x14000), 0x14000 | 7 | A | D);
    physmap_free(pm);
}

static void tables_elsewhere(void **state)
{
    /* Tables where no memory is read as ones: reserved bits. In ROM: flags cannot be set, the walk succeeds. */
    struct physmap *pm = test_memory(4);
    struct error err;
    static u64 rom[512];
    struct walk_context c = ctx4();
    struct walk w;
    c.cr3 = 0x7f000000;
    assert_false(walk_linear(pm, &c, 0, ACCESS_READ, &w));
    assert_int_equal(w.error_code, 9);
    rom[0] = 0x14000 | 7;
    assert_int_equal(physmap_add_rom(pm, 0x8000000, 4096, (u8 *)rom, "rom", &err), 0);
    put64(pm, 0x14000, 0x40000000 | 7 | PS);
    c.cr3 = 0x8000000;
    assert_true(walk_linear(pm, &c, 0x55, ACCESS_WRITE, &w));
    assert_int_equal(w.pa, 0x40000055);
    assert_int_equal(rom[0], 0x14000 | 7);
    physmap_free(pm);
}

static void pdptes(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk_context c = {.paging = PAGING_PAE, .maxphyaddr = 40};
    struct walk w;
    u64 pdpte[4] = {9, 9, 9, 9};
    put64(pm, 0x5020, 0x6000 | 1);
    put64(pm, 0x5028, ~1ull); /* absent: everything else is ignored */
    put64(pm, 0x5030, 0x7000 | 0x19 | BIT64(9));
    put64(pm, 0x5038, 0);
    assert_int_equal(walk_load_pdptes(pm, &c, 0x503f, pdpte, &w), WALK_OK);
    assert_int_equal(pdpte[0], 0x6001);
    assert_int_equal(pdpte[2], 0x7000 | 0x19 | BIT64(9));
    static const unsigned bad[] = {1, 2, 5, 6, 7, 8, 40, 51, 52, 62, 63};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        put64(pm, 0x5038, 1 | BIT64(bad[i]));
        pdpte[0] = 77;
        assert_int_equal(walk_load_pdptes(pm, &c, 0x5020, pdpte, &w), WALK_PAGE_FAULT);
        assert_int_equal(pdpte[0], 77);
    }
    physmap_free(pm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(perms_32bit),      cmocka_unit_test(perms_32bit_4m),
        cmocka_unit_test(perms_pae),        cmocka_unit_test(perms_pae_2m),
        cmocka_unit_test(perms_4level),     cmocka_unit_test(perms_4level_2m),
        cmocka_unit_test(perms_4level_1g),  cmocka_unit_test(perms_5level),
        cmocka_unit_test(reserved_bits),    cmocka_unit_test(pse),
        cmocka_unit_test(protection_keys),  cmocka_unit_test(look_only),
        cmocka_unit_test(recursive_tables), cmocka_unit_test(tables_elsewhere),
        cmocka_unit_test(pdptes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
