/* EPT and NPT: rights matrix with exact qualifications, misconfigurations, A/D flags, PML, tables behind SLAT. */
#include "mmu_test.h"

enum { R = 1, W = 2, X = 4, XU = 1 << 10, EPTA = 1 << 8, EPTD = 1 << 9, WB = 6 << 3, BIG = 0x80, ALL = R | W | X | XU };

/* EPT tables at 0x10000 + level * 0x1000 for guest-physical 0..2 MiB-1, identity but for what a test changes. */
#define EPT_TABLE(level) (0x10000ull + (level)*0x1000)
#define NPT_TABLE(level) (0x20000ull + (level)*0x1000)
/* Guest tables at 0x30000 + level * 0x1000, mapping linear 0x1000 * n for one page. */
#define GUEST_TABLE(level) (0x30000ull + (level)*0x1000)
#define DATA               0x50000ull
#define LA                 0x7000ull

static struct walk_context ept_ctx(unsigned levels)
{
    return (struct walk_context){.paging = PAGING_4LEVEL,
                                 .maxphyaddr = 40,
                                 .wp = true,
                                 .nx = true,
                                 .pdpe1gb = true,
                                 .cr3 = GUEST_TABLE(4),
                                 .slat = {.kind = SLAT_EPT,
                                          .levels = (u8)levels,
                                          .exec_only = true,
                                          .huge_1g = true,
                                          .huge_2m = true,
                                          .root = EPT_TABLE(levels),
                                          .tag = EPT_TABLE(levels)}};
}

static void ept_identity(struct physmap *pm)
{
    for (unsigned l = 2; l <= 5; l++)
        put64(pm, EPT_TABLE(l), EPT_TABLE(l - 1) | ALL);
    for (u64 i = 0; i < 512; i++)
        put64(pm, EPT_TABLE(1) + 8 * i, i << 12 | ALL | WB);
}

static void guest_tables(struct physmap *pm, u64 leaf)
{
    for (unsigned l = 2; l <= 5; l++)
        put64(pm, GUEST_TABLE(l), GUEST_TABLE(l - 1) | 0x27);
    put64(pm, GUEST_TABLE(1) + 8 * (LA >> 12), leaf);
}

/* Every rights combination at every level, data access. */
static void ept_matrix(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk w;
    unsigned faults[4] = {0};
    for (unsigned levels = 4; levels <= 5; levels++)
        for (unsigned at = 1; at <= levels; at++)
            for (unsigned rights = 0; rights < 16; rights++)
                for (unsigned opt = 0; opt < 16; opt++)
                    for (u32 access = 1; access < 8; access++) {
                        bool mbec = opt & 1, exec_only = opt & 2, user = opt & 4, advanced = opt & 8;
                        bool fetch = access == ACCESS_EXEC;
                        if ((access & ACCESS_EXEC) && !fetch)
                            continue;
                        u64 bits = (rights & 7) | (rights & 8 ? XU : 0);
                        struct walk_context c = ept_ctx(levels);
                        c.slat.mbec = mbec;
                        c.slat.exec_only = exec_only;
                        c.slat.advanced_info = advanced;
                        ept_identity(pm);
                        guest_tables(pm, DATA | 0x63 | (user ? 4 : 0));
                        if (at == 1) {
                            put64(pm, EPT_TABLE(1) + 8 * (DATA >> 12), DATA | bits | WB);
                        } else {
                            /* Upper levels would hit the guest's tables first: translate with paging off. */
                            c.paging = PAGING_NONE;
                            put64(pm, EPT_TABLE(at), EPT_TABLE(at - 1) | bits);
                        }
                        bool user_page = at == 1 ? user : true;
                        u64 exec = X | (mbec ? XU : 0);
                        bool present = bits & (R | W | exec);
                        bool misconfig =
                            present && ((bits & (R | W)) == W || (!exec_only && !(bits & R) && (bits & exec)));
                        u64 need = (access & ACCESS_READ ? R : 0) | (access & ACCESS_WRITE ? W : 0) |
                                   (fetch ? (mbec && user_page ? XU : X) : 0);
                        bool ok = walk_linear(pm, &c, at == 1 ? LA + 0x123 : DATA + 0x123, access, &w);
                        u8 expect = misconfig                      ? WALK_EPT_MISCONFIG
                                    : need & ~(present ? bits : 0) ? WALK_EPT_VIOLATION
                                                                   : WALK_OK;
                        assert_int_equal(ok, expect == WALK_OK);
                        assert_int_equal(w.fault, expect);
                        faults[expect]++;
                        if (ok) {
                            assert_int_equal(w.pa, DATA + 0x123);
                            assert_int_equal(w.perms & ACCESS_READ, bits & R);
                            continue;
                        }
                        assert_int_equal(w.gpa, DATA + 0x123);
                        assert_false(w.gpa_is_table);
                        if (expect == WALK_EPT_VIOLATION) {
                            u64 q = access | (present ? (bits & 7) << 3 : 0) |
                                    (mbec && present && (bits & XU) ? 1 << 6 : 0) | 3 << 7;
                            if (advanced)
                                q |= (user_page ? 1 << 9 : 0) | 1 << 10;
                            assert_int_equal(w.qualification, q);
                        }
                    }
    assert_true(faults[WALK_OK] > 100 && faults[WALK_EPT_VIOLATION] > 100 && faults[WALK_EPT_MISCONFIG] > 100);
    physmap_free(pm);
}

static void ept_advanced(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk_context c = ept_ctx(4);
    struct walk w;
    c.slat.advanced_info = true;
    c.wp = false;
    ept_identity(pm);
    put64(pm, EPT_TABLE(1) + 8 * (DATA >> 12), 0);
    for (unsigned k = 0; k < 8; k++) {
        guest_tables(pm, DATA | 0x61 | (k & 1 ? 4 : 0) | (k & 2 ? 2 : 0) | (k & 4 ? BIT64(63) : 0));
        assert_false(walk_linear(pm, &c, LA, ACCESS_READ, &w));
        assert_int_equal(w.qualification, 1 | 3 << 7 | k << 9);
    }
    /* Without a linear address bit 7 is clear too. */
    assert_false(walk_gpa(pm, &c, DATA, ACCESS_WRITE, &w));
    assert_int_equal(w.qualification, 2);
    physmap_free(pm);
}

static void ept_misconfig(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk w;
    for (unsigned level = 1; level <= 5; level++)
        for (unsigned big = 0; big < 2; big++) {
            struct walk_context c = ept_ctx(5);
            if (big && (level == 1 || level > 3))
                continue;
            unsigned shift = 12 + 9 * (level - 1);
            for (unsigned bit = 3; bit < 64; bit++) {
                bool leaf = level == 1 || big;
                u64 base = leaf ? ALL | WB | (big ? BIG : 0) : EPT_TABLE(level - 1) | ALL;
                if (leaf && bit < 6) /* memory types, below */
                    continue;
                ept_identity(pm);
                put64(pm, EPT_TABLE(level), base | BIT64(bit));
                bool bad = bit >= 40 && bit < 52;
                if (!leaf)
                    bad |= bit <= 7 && (level >= 4 || bit < 7);
                if (big)
                    bad |= bit >= 12 && bit < shift;
                if (!leaf && bit >= 12 && bit < 40)
                    continue; /* another table */
                if (!leaf && bit == 7 && level <= 3)
                    continue; /* a large page */
                bool ok = walk_gpa(pm, &c, 0x321, ACCESS_READ, &w);
                if (ok == bad)
                    fail_msg("level %u %s: bit %u", level, big ? "large" : "", bit);
                if (!ok)
                    assert_int_equal(w.fault, WALK_EPT_MISCONFIG);
            }
            if (level == 1 || big)
                for (u64 type = 0; type < 8; type++) {
                    put64(pm, EPT_TABLE(level), ALL | type << 3 | (big ? BIG : 0));
                    assert_int_equal(walk_gpa(pm, &c, 0, ACCESS_READ, &w), type != 2 && type != 3 && type != 7);
                    if (w.fault == WALK_OK)
                        assert_int_equal(w.memtype, type);
                }
            if (big) { /* size not supported */
                put64(pm, EPT_TABLE(level), ALL | WB | BIG);
                assert_true(walk_gpa(pm, &c, 0x1234, ACCESS_READ, &w));
                assert_int_equal(w.lg2_page, shift);
                assert_int_equal(w.pa, 0x1234);
                c.slat.huge_1g = c.slat.huge_2m = false;
                assert_false(walk_gpa(pm, &c, 0, ACCESS_READ, &w));
                assert_int_equal(w.fault, WALK_EPT_MISCONFIG);
            }
            ept_identity(pm);
        }
    /* Bits of an entry that is not present are ignored. */
    struct walk_context c = ept_ctx(4);
    put64(pm, EPT_TABLE(1), BITS64(62, 3) & ~(u64)XU);
    assert_false(walk_gpa(pm, &c, 0, ACCESS_READ, &w));
    assert_int_equal(w.fault, WALK_EPT_VIOLATION);
    assert_false(w.suppress_ve);
    put64(pm, EPT_TABLE(1), BIT64(63));
    assert_false(walk_gpa(pm, &c, 0, ACCESS_READ, &w));
    assert_true(w.suppress_ve);
    /* Addresses wider than four levels translate. */
    assert_false(walk_gpa(pm, &c, BIT64(48), ACCESS_READ, &w));
    assert_int_equal(w.fault, WALK_EPT_VIOLATION);
    assert_int_equal(w.qualification, 1);
    physmap_free(pm);
}

/* Guest paging structures behind EPT: the table's page has @rights, its entry the flags @ad. */
static void ept_tables(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk w;
    static const u32 accesses[] = {ACCESS_READ, ACCESS_WRITE, ACCESS_EXEC};
    for (unsigned ept_ad = 0; ept_ad < 2; ept_ad++)
        for (u64 rights = 0; rights < 8; rights++)
            for (u64 ad = 0; ad < 0x80; ad += 0x20)
                for (unsigned a = 0; a < 3; a++) {
                    if (rights == W || rights == (W | X))
                        continue;
                    struct walk_context c = ept_ctx(4);
                    c.slat.ad = ept_ad;
                    ept_identity(pm);
                    guest_tables(pm, DATA | 7 | ad);
                    put64(pm, EPT_TABLE(1) + 8 * (GUEST_TABLE(1) >> 12), GUEST_TABLE(1) | rights | WB);
                    bool ok = walk_linear(pm, &c, LA, accesses[a], &w);
                    bool update = !(ad & 0x20) || (accesses[a] == ACCESS_WRITE && !(ad & 0x40));
                    u64 q = 0;
                    if (ept_ad ? (rights & 3) != 3 : !(rights & R))
                        q = ept_ad ? 3 : 1;
                    else if (update && !(rights & W))
                        q = 3;
                    assert_int_equal(ok, q == 0);
                    if (ok)
                        continue;
                    assert_int_equal(w.fault, WALK_EPT_VIOLATION);
                    assert_true(w.gpa_is_table);
                    assert_int_equal(w.gpa, GUEST_TABLE(1) + 8 * (LA >> 12));
                    assert_int_equal(w.qualification, q | rights << 3 | 1 << 7);
                    assert_int_equal(get64(pm, w.gpa), DATA | 7 | ad);
                }
    physmap_free(pm);
}

static void ept_flags(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk_context c = ept_ctx(4);
    struct walk w;
    c.slat.ad = true;
    ept_identity(pm);
    guest_tables(pm, DATA | 7);
    pa_t data = EPT_TABLE(1) + 8 * (DATA >> 12);
    assert_true(walk_linear(pm, &c, LA, ACCESS_READ | ACCESS_NO_AD, &w));
    assert_int_equal(get64(pm, data) & (EPTA | EPTD), 0);
    assert_int_equal(get64(pm, EPT_TABLE(4)) & EPTA, 0);
    assert_true(walk_linear(pm, &c, LA, ACCESS_READ, &w));
    assert_false(w.dirty);
    assert_int_equal(get64(pm, data) & (EPTA | EPTD), EPTA);
    for (unsigned l = 2; l <= 4; l++)
        assert_int_equal(get64(pm, EPT_TABLE(l)) & (EPTA | EPTD), EPTA);
    for (unsigned l = 1; l <= 4; l++) /* table accesses count as writes */
        assert_int_equal(get64(pm, EPT_TABLE(1) + 8 * (GUEST_TABLE(l) >> 12)) & (EPTA | EPTD), EPTA | EPTD);
    assert_true(walk_linear(pm, &c, LA, ACCESS_WRITE, &w));
    assert_true(w.dirty);
    assert_int_equal(get64(pm, data) & (EPTA | EPTD), EPTA | EPTD);
    /* Loading PDPTEs only reads. */
    u64 pdpte[4];
    put64(pm, EPT_TABLE(1) + 8 * 8, 0x8000 | R | WB);
    assert_int_equal(walk_load_pdptes(pm, &c, 0x8000, pdpte, &w), WALK_OK);
    assert_int_equal(get64(pm, EPT_TABLE(1) + 8 * 8) & (EPTA | EPTD), EPTA);
    put64(pm, EPT_TABLE(1) + 8 * 8, 0x8000 | X | WB);
    assert_int_equal(walk_load_pdptes(pm, &c, 0x8000, pdpte, &w), WALK_EPT_VIOLATION);
    assert_int_equal(w.qualification, 1 | X << 3);
    /* The linear rights fault before the data's EPT is asked. */
    guest_tables(pm, DATA | 1);
    put64(pm, data, 0);
    assert_false(walk_linear(pm, &c, LA, ACCESS_READ | ACCESS_USER, &w));
    assert_int_equal(w.fault, WALK_PAGE_FAULT);
    physmap_free(pm);
}

static void ept_pml(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk_context c = ept_ctx(4);
    struct walk w;
    u16 index = 1;
    c.slat.ad = c.slat.pml = true;
    c.slat.pml_index = &index;
    c.slat.pml_address = 0x60000;
    c.paging = PAGING_NONE;
    ept_identity(pm);
    assert_true(walk_linear(pm, &c, DATA + 0x123, ACCESS_READ, &w));
    assert_int_equal(index, 1);
    assert_true(walk_linear(pm, &c, DATA + 0x123, ACCESS_WRITE, &w));
    assert_int_equal(index, 0);
    assert_int_equal(get64(pm, 0x60008), DATA);
    assert_true(walk_linear(pm, &c, DATA + 0x123, ACCESS_WRITE, &w)); /* dirty already */
    assert_int_equal(index, 0);
    assert_true(walk_linear(pm, &c, DATA + 0x1000, ACCESS_WRITE, &w));
    assert_int_equal(index, 0xffff);
    assert_false(walk_linear(pm, &c, DATA + 0x2000, ACCESS_WRITE, &w));
    assert_int_equal(w.fault, WALK_PML_FULL);
    assert_int_equal(w.gpa, DATA + 0x2000);
    assert_int_equal(get64(pm, EPT_TABLE(1) + 8 * ((DATA + 0x2000) >> 12)) & EPTD, 0);
    physmap_free(pm);
}

/* ---- NPT ---- */

static struct walk_context npt_ctx(enum paging_mode host)
{
    unsigned levels = host == PAGING_5LEVEL ? 5 : host == PAGING_4LEVEL ? 4 : host == PAGING_PAE ? 3 : 2;
    return (struct walk_context){
        .paging = PAGING_4LEVEL,
        .maxphyaddr = 40,
        .wp = true,
        .nx = true,
        .pdpe1gb = true,
        .amd = true,
        .cr3 = GUEST_TABLE(4),
        .slat = {
            .kind = SLAT_NPT, .host_mode = (u8)host, .nx = true, .pse = true, .root = NPT_TABLE(levels), .tag = 1}};
}

static void npt_identity(struct physmap *pm, enum paging_mode host)
{
    if (host == PAGING_32BIT) {
        put32(pm, NPT_TABLE(2), NPT_TABLE(1) | 7);
        for (u32 i = 0; i < 1024; i++)
            put32(pm, NPT_TABLE(1) + 4 * i, i << 12 | 7);
        return;
    }
    for (unsigned l = 2; l <= 5; l++)
        put64(pm, NPT_TABLE(l), NPT_TABLE(l - 1) | (host == PAGING_PAE && l == 3 ? 1 : 7));
    for (u64 i = 0; i < 512; i++)
        put64(pm, NPT_TABLE(1) + 8 * i, i << 12 | 7);
}

static void npt_put(struct physmap *pm, enum paging_mode host, gpa_t gpa, u64 e)
{
    if (host == PAGING_32BIT)
        put32(pm, NPT_TABLE(1) + 4 * (gpa >> 12), (u32)e);
    else
        put64(pm, NPT_TABLE(1) + 8 * (gpa >> 12), e);
}

/* Shadow-stack accesses: every combination of the bits that matter, bare, under EPT and under nested paging. */
static void shadow_stacks(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk w;
    for (unsigned k = 0; k < 64; k++)
        for (unsigned a = 0; a < 4; a++) {
            bool cet = k & 32, ok = cet && !(k & 1) && (k & 4) && (k & 8) && !!(k & 2) == !!(a & 1) && (k & 16);
            u32 access = ACCESS_SHADOW_STACK | (a & 1 ? ACCESS_USER : 0) | (a & 2 ? ACCESS_WRITE : ACCESS_READ);
            u32 error = 0x40 | (k & 16 ? 1 : 0) | (a & 2 ? 2 : 0) | (a & 1 ? 4 : 0);
            guest_tables(pm, DATA | 0x20 | (k & 16 ? 1 : 0) | (k & 1 ? 2 : 0) | (k & 2 ? 4 : 0) | (k & 4 ? 0x40 : 0));
            if (!(k & 8))
                put64(pm, GUEST_TABLE(2), GUEST_TABLE(1) | 0x25);
            for (unsigned slat = 0; slat < 3; slat++) {
                struct walk_context c = slat == 2 ? npt_ctx(PAGING_4LEVEL) : ept_ctx(4);
                c.cet = cet;
                if (!slat)
                    c.slat.kind = SLAT_NONE;
                ept_identity(pm);
                npt_identity(pm, PAGING_4LEVEL);
                assert_int_equal(walk_linear(pm, &c, LA, access, &w), ok);
                if (!ok) {
                    assert_int_equal(w.fault, WALK_PAGE_FAULT);
                    assert_int_equal(w.error_code, error);
                } else if (slat) {
                    put64(pm, EPT_TABLE(1) + 8 * (DATA >> 12), 0);
                    npt_put(pm, PAGING_4LEVEL, DATA, 0);
                    assert_false(walk_linear(pm, &c, LA, access, &w));
                    if (slat == 1)
                        assert_int_equal(w.qualification, (a & 2 ? 2 : 1) | 3 << 7 | 1 << 13);
                    else
                        assert_int_equal(w.error_code, 0x44 | (a & 2 ? 2 : 0));
                }
            }
        }
    physmap_free(pm);
}

static void npt_matrix(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk w;
    for (enum paging_mode host = PAGING_32BIT; host <= PAGING_5LEVEL; host++)
        for (unsigned bits = 0; bits < 64; bits++)
            for (unsigned table = 0; table < 2; table++)
                for (u32 access = 1; access < 8; access <<= 1) {
                    struct walk_context c = npt_ctx(host);
                    bool p = bits & 1, rw = bits & 2, us = bits & 4, nx = bits & 8, smep = bits & 32;
                    c.slat.nx = bits & 16;
                    c.slat.smep = smep;
                    if (nx && host == PAGING_32BIT)
                        continue;
                    gpa_t gpa = table ? GUEST_TABLE(1) : DATA;
                    npt_identity(pm, host);
                    guest_tables(pm, DATA | 7);
                    npt_put(pm, host, gpa, gpa | (bits & 7) | (nx ? BIT64(63) : 0));
                    bool write = table || access == ACCESS_WRITE, fetch = !table && access == ACCESS_EXEC;
                    bool rsvd = p && nx && !c.slat.nx;
                    bool bad = !p || rsvd || !us || (write && !rw) || (fetch && nx);
                    bool ok = walk_linear(pm, &c, LA, access, &w);
                    assert_int_equal(ok, !bad);
                    if (ok) {
                        assert_int_equal(w.pa, DATA);
                        u64 e = host == PAGING_32BIT ? get32(pm, NPT_TABLE(1) + 4 * (gpa >> 12))
                                                     : get64(pm, NPT_TABLE(1) + 8 * (gpa >> 12));
                        assert_int_equal(e & 0x60, write ? 0x60 : 0x20);
                        continue;
                    }
                    assert_int_equal(w.fault, WALK_NPF);
                    assert_int_equal(w.error_code,
                                     (p ? 1 : 0) | (write ? 2 : 0) | 4 | (rsvd ? 8 : 0) |
                                         (fetch && ((c.slat.nx && host != PAGING_32BIT) || smep) ? 16 : 0));
                    assert_int_equal(w.error_hi, table ? 2 : 1);
                    assert_int_equal(w.gpa, table ? GUEST_TABLE(1) + 8 * (LA >> 12) : DATA);
                }
    /* Guest-physical addresses beyond the host's mode do not translate. */
    struct walk_context c = npt_ctx(PAGING_32BIT);
    assert_false(walk_gpa(pm, &c, 1ull << 32, ACCESS_READ, &w));
    assert_int_equal(w.fault, WALK_NPF);
    assert_int_equal(w.error_code, 4);
    physmap_free(pm);
}

static void npt_guest_pae(void **state)
{
    /* PDPTEs are read at each walk: a bad one is a page fault of the guest. */
    struct physmap *pm = test_memory(4);
    struct walk_context c = npt_ctx(PAGING_4LEVEL);
    struct walk w;
    c.paging = PAGING_PAE;
    c.cr3 = 0x8020;
    npt_identity(pm, PAGING_4LEVEL);
    guest_tables(pm, DATA | 7);
    put64(pm, 0x8020, GUEST_TABLE(2) | 1);
    assert_true(walk_linear(pm, &c, LA, ACCESS_WRITE, &w));
    assert_int_equal(w.pa, DATA);
    assert_int_equal(get64(pm, 0x8020), GUEST_TABLE(2) | 1); /* no accessed flag there */
    put64(pm, 0x8020, GUEST_TABLE(2) | 3);
    assert_false(walk_linear(pm, &c, LA, ACCESS_WRITE, &w));
    assert_int_equal(w.fault, WALK_PAGE_FAULT);
    assert_int_equal(w.error_code, 1 | 2 | 8);
    u64 pdpte[4];
    assert_int_equal(walk_load_pdptes(pm, &c, 0x8020, pdpte, &w), WALK_OK);
    /* The table of the PDPTEs itself not mapped. */
    npt_put(pm, PAGING_4LEVEL, 0x8000, 0);
    assert_false(walk_linear(pm, &c, LA, ACCESS_READ, &w));
    assert_int_equal(w.fault, WALK_NPF);
    assert_int_equal(w.error_hi, 2);
    assert_int_equal(w.gpa, 0x8020);
    physmap_free(pm);
}

static void deepest(void **state)
{
    struct physmap *pm = test_memory(4);
    struct walk_context c = ept_ctx(5);
    struct walk w;
    c.paging = PAGING_5LEVEL;
    c.cr3 = GUEST_TABLE(5);
    ept_identity(pm);
    guest_tables(pm, DATA | 7);
    assert_true(walk_linear(pm, &c, LA, ACCESS_WRITE, &w));
    assert_int_equal(w.nsteps, 35);
    assert_int_equal(w.nsteps, WALK_MAX_STEPS - 1);
    physmap_free(pm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ept_matrix), cmocka_unit_test(ept_advanced),  cmocka_unit_test(ept_misconfig),
        cmocka_unit_test(ept_tables), cmocka_unit_test(ept_flags),     cmocka_unit_test(ept_pml),
        cmocka_unit_test(npt_matrix), cmocka_unit_test(npt_guest_pae), cmocka_unit_test(deepest),
        cmocka_unit_test(shadow_stacks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
