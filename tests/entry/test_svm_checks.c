/*
 * One witness per row of the VMRUN checks: a valid snapshot, one change, and exactly that row
 * fails. A row without a witness fails the test. Also: the VMCB's tables.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "svm/svm.h"

/* ---- neighbours that the tables do not need ---- */
u32 log_mask;
void physmap_read(struct physmap *pm, pa_t pa, void *buf, size_t len) { memset(buf, 0, len); }
void physmap_write(struct physmap *pm, pa_t pa, const void *buf, size_t len) {}
u64 physmap_load(struct physmap *pm, pa_t pa, unsigned size) { return 0; }
void physmap_store(struct physmap *pm, pa_t pa, u64 value, unsigned size) {}
void cpu_segments_changed(struct vcpu *v) {}

static u64 f[VMCB_FIELD_COUNT];
static u8 features[FEAT_COUNT];
static struct svm_snapshot s;

#define F(name) f[VMCB_##name]

/* A 64-bit guest, nothing optional in use. */
static void valid_snapshot(void)
{
    memset(f, 0, sizeof(f));
    memset(features, 1, sizeof(features));
    s = (struct svm_snapshot){.f = f, .features = features, .maxphyaddr = 40, .cr4_reserved = ~(0x370fffull | CR4_CET),
                              .efer_reserved = ~0xd01ull & ~EFER_SVME, .host_paging = true};
    F(EFER) = EFER_SVME | EFER_LME | EFER_LMA;
    F(CR0) = CR0_PE | CR0_PG | CR0_ET;
    F(CR4) = CR4_PAE;
    F(CR3) = 0x1000;
    F(DR6) = DR6_FIXED;
    F(DR7) = DR7_FIXED;
    F(CS_ATTRIB) = 0xa9b;
    F(INTERCEPT_MISC2) = 1;
    F(GUEST_ASID) = 1;
    F(G_PAT) = 0x0007040600070406ull;
}
static void make_pae(void)
{
    F(EFER) = EFER_SVME;
    F(CS_ATTRIB) = 0xc9b;
    s.pdpte[3] = 0x5001;
}
static void make_nested(void) { F(NESTED_CTL) = NESTED_CTL_NP; }
static void make_real_mode(void)
{
    F(EFER) = EFER_SVME;
    F(CR0) = CR0_ET;
    F(CR4) = 0;
}
/* "Paged real mode" is a legal state. */
static void make_paged_real(void)
{
    make_real_mode();
    F(CR0) |= CR0_PG;
}
static void inject(unsigned type, unsigned vector) { F(EVENTINJ) = EVENT_VALID | type << 8 | vector; }
static void make_injection(void) { inject(EVENT_SOFT_INT, 0x80); }
static void make_vnmi(void)
{
    F(INT_CTL) = V_NMI_ENABLE;
    F(INTERCEPT_MISC1) = 2;
}
static void make_last_maps(void)
{
    F(INTERCEPT_MISC1) = BIT(27) | BIT(28);
    F(IOPM_BASE_PA) = BIT64(40) - 3 * PAGE_SIZE;
    F(MSRPM_BASE_PA) = BIT64(40) - 3 * PAGE_SIZE + 0xfff;
}

#define WITNESSES(W)                                                                                          \
    W(SVM_EFER_SVME, F(EFER) &= ~EFER_SVME)                                                                   \
    W(SVM_CR0_CD_NW, F(CR0) |= CR0_NW)                                                                        \
    W(SVM_CR0_HI, F(CR0) |= BIT64(40))                                                                        \
    W(SVM_CR3_MBZ, F(CR3) |= BIT64(40))                                                                       \
    W(SVM_CR4_MBZ, F(CR4) |= CR4_VMXE)                                                                        \
    W(SVM_DR6_HI, F(DR6) |= BIT64(32))                                                                        \
    W(SVM_DR7_HI, F(DR7) |= BIT64(63))                                                                        \
    W(SVM_EFER_MBZ, F(EFER) |= BIT64(9))                                                                      \
    W(SVM_LM_UNSUPPORTED, features[FEAT_LM] = 0)                                                              \
    W(SVM_LME_PG_NOPAE, F(CR4) &= ~CR4_PAE)                                                                   \
    W(SVM_LME_PG_NOPE, F(CR0) &= ~CR0_PE)                                                                     \
    W(SVM_LME_PG_PAE_L_D, F(CS_ATTRIB) |= BIT(10))                                                            \
    W(SVM_VMRUN_INTERCEPT, F(INTERCEPT_MISC2) = 0)                                                            \
    W(SVM_MSRPM, make_last_maps(), F(MSRPM_BASE_PA) += PAGE_SIZE)                                             \
    W(SVM_IOPM, make_last_maps(), F(IOPM_BASE_PA) += PAGE_SIZE)                                               \
    W(SVM_CET_WP, F(CR4) |= CR4_CET)                                                                          \
    W(SVM_CET_V86, (F(CR4) |= CR4_CET, F(CR0) |= CR0_WP, F(RFLAGS) |= FL_VM, s.u_cet = 1))                    \
    W(SVM_S_CET_MBZ, (F(CR4) |= CR4_CET, F(CR0) |= CR0_WP, F(S_CET) = BIT64(6)))                              \
    W(SVM_ASID0, F(GUEST_ASID) = 0)                                                                           \
    W(SVM_INJ_TYPE, inject(1, 0x20))                                                                          \
    W(SVM_INJ_VEC, inject(EVENT_EXCEPTION, VEC_NMI))                                                          \
    W(SVM_INJ_MODE, inject(EVENT_EXCEPTION, VEC_OF))                                                          \
    W(SVM_NP_HOST_PG, make_nested(), s.host_paging = false)                                                   \
    W(SVM_NP_GPAT, make_nested(), F(G_PAT) = 2)                                                               \
    W(SVM_NCR3, make_nested(), F(N_CR3) = BIT64(40))                                                          \
    W(SVM_PAE_PDPE, make_pae(), s.pdpte[3] |= BIT64(52))                                                      \
    W(SVM_VNMI_NO_INTERCEPT, make_vnmi(), F(INTERCEPT_MISC1) = 0)

#define W(id, ...) static void witness_##id(void) { __VA_ARGS__; }
WITNESSES(W)
#undef W
static const struct { const char *id; void (*change)(void); } witnesses[] = {
#define W(wid, ...) {#wid, witness_##wid},
    WITNESSES(W)
#undef W
};

static void test_valid(void **state)
{
    static const struct { const char *name; void (*make)(void); } states[] = {
        {"a PAE guest", make_pae}, {"nested paging", make_nested}, {"a real-mode guest", make_real_mode},
        {"paged real mode", make_paged_real}, {"an injection", make_injection}, {"virtual NMIs", make_vnmi},
        {"maps at the end of the address space", make_last_maps},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(states); i++) {
        valid_snapshot();
        assert_null(svm_check_first_failure(&s));
        states[i].make();
        const struct virt_check *c = svm_check_first_failure(&s);
        if (c)
            fail_msg("%s: %s fails", states[i].name, c->id);
    }
}

static void test_witnesses(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(witnesses); i++) {
        valid_snapshot();
        witnesses[i].change();
        const struct virt_check *c = svm_check_first_failure(&s);
        if (!c || strcmp(c->id, witnesses[i].id))
            fail_msg("witness of %s: first failure is %s", witnesses[i].id, c ? c->id : "none");
        unsigned n;
        const struct virt_check *rows = svm_check_table(&n);
        for (unsigned k = 0; k < n; k++)
            if (&rows[k] != c && virt_check_run(&rows[k], &s) == CHECK_FAIL)
                fail_msg("witness of %s: %s fails too", witnesses[i].id, rows[k].id);
    }
}

static void test_every_row_has_a_witness(void **state)
{
    unsigned n;
    const struct virt_check *rows = svm_check_table(&n);
    for (unsigned i = 0; i < n; i++) {
        unsigned found = 0;
        for (unsigned w = 0; w < ARRAY_SIZE(witnesses); w++)
            found += !strcmp(witnesses[w].id, rows[i].id);
        if (found != 1)
            fail_msg("%s has %u witnesses", rows[i].id, found);
        assert_true(rows[i].nfields > 0 && rows[i].rule && rows[i].title && rows[i].section);
        for (unsigned k = 0; k < rows[i].nfields; k++)
            assert_true(vmcb_find(rows[i].fields[k]) >= 0);
    }
}

static const char *failure_of(unsigned type, unsigned vector)
{
    valid_snapshot();
    inject(type, vector);
    const struct virt_check *c = svm_check_first_failure(&s);
    return c ? c->id : "none";
}

/* Every type with every vector. */
static void test_injection(void **state)
{
    for (unsigned type = 0; type < 8; type++) {
        for (unsigned vector = 0; vector < 256; vector++) {
            const u32 exceptions = 0x402f7dfbu; /* 0, 1, 3 to 8, 10 to 14, 16 to 19, 21, 30 */
            const char *expected = type == 1 || type > 4                                   ? "SVM_INJ_TYPE"
                                   : type != EVENT_EXCEPTION                               ? "none"
                                   : vector > 31 || !(exceptions >> vector & 1)            ? "SVM_INJ_VEC"
                                   : vector == VEC_OF || vector == VEC_BR                  ? "SVM_INJ_MODE"
                                                                                           : "none";
            if (strcmp(failure_of(type, vector), expected))
                fail_msg("type %u vector %u: %s, not %s", type, vector, failure_of(type, vector), expected);
        }
    }
    /* #OF and #BR exist in compatibility mode. */
    valid_snapshot();
    F(CS_ATTRIB) = 0xc9b;
    inject(EVENT_EXCEPTION, VEC_OF);
    assert_null(svm_check_first_failure(&s));
    /* Nothing is looked at without V. */
    F(EVENTINJ) = ~EVENT_VALID;
    assert_null(svm_check_first_failure(&s));
}

/* A map ends below the highest physical address; bits 11:0 of its own do not count. */
static void test_maps(void **state)
{
    static const struct { u64 msr, io; bool msr_ok, io_ok; } rows[] = {
        {0, 0, true, true},
        {BIT64(40) - 2 * PAGE_SIZE, BIT64(40) - 3 * PAGE_SIZE, false, true},
        {BIT64(40) - 3 * PAGE_SIZE, BIT64(40) - 2 * PAGE_SIZE, true, false},
        {BIT64(40) - 1, BIT64(40) - 1, false, false},
        {BIT64(40), BIT64(40), false, false},
        {~0ull, ~0ull, false, false},
        {0xfff, 0xfff, true, true},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        for (unsigned on = 0; on < 4; on++) {
            valid_snapshot();
            F(INTERCEPT_MISC1) = (on & 1 ? BIT(28) : 0) | (on & 2 ? BIT(27) : 0);
            F(MSRPM_BASE_PA) = rows[i].msr;
            F(IOPM_BASE_PA) = rows[i].io;
            const struct virt_check *c = svm_check_first_failure(&s);
            const char *expected = on & 1 && !rows[i].msr_ok ? "SVM_MSRPM" : on & 2 && !rows[i].io_ok ? "SVM_IOPM" : "none";
            if (strcmp(c ? c->id : "none", expected))
                fail_msg("row %u, intercepts %u: %s, not %s", i, on, c ? c->id : "none", expected);
        }
    }
}

/* Each of the upper 32 bits of DR6, DR7 and CR0. */
static void test_upper_halves(void **state)
{
    for (unsigned bit = 0; bit < 64; bit++) {
        static const struct { const char *id; unsigned field; } rows[] = {
            {"SVM_DR6_HI", VMCB_DR6}, {"SVM_DR7_HI", VMCB_DR7}, {"SVM_CR0_HI", VMCB_CR0}};
        for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
            if (bit < 32 && rows[i].field == VMCB_CR0)
                continue;
            valid_snapshot();
            f[rows[i].field] ^= BIT64(bit);
            const struct virt_check *c = svm_check_first_failure(&s);
            if (bit < 32 ? c != NULL : !c || strcmp(c->id, rows[i].id))
                fail_msg("%s, bit %u: %s", rows[i].id, bit, c ? c->id : "none");
        }
    }
}

/* What an absent feature's bits say does not matter. */
static void test_absent_features(void **state)
{
    valid_snapshot();
    features[FEAT_NPT] = features[FEAT_VNMI] = 0;
    F(NESTED_CTL) = NESTED_CTL_NP;
    F(N_CR3) = ~0ull;
    F(INT_CTL) = V_NMI_ENABLE;
    assert_null(svm_check_first_failure(&s));
}

/* The fields lie one behind the other, and none over another. */
static void test_fields(void **state)
{
    for (unsigned n = 1; n < VMCB_FIELD_COUNT; n++)
        assert_true(vmcb_fields[n].offset >= vmcb_fields[n - 1].offset + vmcb_fields[n - 1].bytes);
    assert_int_equal(vmcb_fields[VMCB_FIELD_COUNT - 1].offset + vmcb_fields[VMCB_FIELD_COUNT - 1].bytes, VMCB_BYTES);
    for (unsigned n = VMCB_ES_SELECTOR; n <= VMCB_GS_SELECTOR; n += 4)
        assert_int_equal(vmcb_fields[n + 3].offset, vmcb_fields[n].offset + 8);
    assert_int_equal(vmcb_find(0x578), VMCB_RIP);
    assert_int_equal(vmcb_find(0x579), -1);
}

static void test_segments(void **state)
{
    struct segment cs = vmcb_segment(8, 0xa9b, 0xffffffff, 0), null = vmcb_segment(0, 0, 0, 0);
    assert_int_equal(cs.ar, AR_G | AR_L | AR_P | AR_S | 0xb);
    assert_int_equal(vmcb_attrib(&cs), 0xa9b);
    assert_true(null.ar & AR_UNUSABLE);
    null.ar |= AR_P; /* as a null selector loaded over something */
    assert_int_equal(vmcb_attrib(&null) & 0x80, 0);
}

static void test_exit_names(void **state)
{
    assert_string_equal(svm_exit_name(0x400), "NPF");
    assert_string_equal(svm_exit_name(0x7b), "IOIO");
    assert_string_equal(svm_exit_name(SVM_EXIT_INVALID), "INVALID");
    assert_string_equal(svm_exit_name(0x4e), "EXCP14");
    assert_null(svm_exit_name(0xbf));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid), cmocka_unit_test(test_witnesses), cmocka_unit_test(test_every_row_has_a_witness),
        cmocka_unit_test(test_injection),
        cmocka_unit_test(test_maps), cmocka_unit_test(test_upper_halves), cmocka_unit_test(test_absent_features), cmocka_unit_test(test_fields), cmocka_unit_test(test_segments),
        cmocka_unit_test(test_exit_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
