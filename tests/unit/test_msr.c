/* The MSR table: order, who has what, reserved bits, canonical addresses, time. */
#include "fake_rooms.h"

static u64 value;

static void sorted(void **state)
{
    for (unsigned n = 0; n < msr_count; n++) {
        assert_true(msr_table[n].first <= msr_table[n].last);
        assert_non_null(msr_table[n].name);
        if (n && msr_table[n].first != msr_table[n - 1].first)
            assert_true(msr_table[n].first > msr_table[n - 1].last);
    }
}

static void unknown(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    static const u32 none[] = {0x2, 0x11, 0x4d564b00, 0x40000000, 0x410, 0x47f, 0x494, 0x900, 0xc0000085, 0xc0010114,
                               0xc0011029, 0xffffffff};
    for (unsigned n = 0; n < ARRAY_SIZE(none); n++) {
        assert_false(cpu_rdmsr(v, none[n], &value));
        assert_false(cpu_wrmsr(v, none[n], 0));
    }
    vcpu_free(v);
}

static void vendors(void **state)
{
    struct vcpu *v = fake_vcpu("intel"), *a;
    assert_true(cpu_rdmsr(v, 0x1a0, &value));
    assert_true(cpu_rdmsr(v, 0x480, &value));
    assert_int_equal(value, 0x1234);
    assert_false(cpu_rdmsr(v, 0x492, &value));
    assert_false(cpu_wrmsr(v, 0x480, 0));
    assert_false(cpu_rdmsr(v, 0xc0010015, &value));
    a = fake_vcpu("amd");
    assert_false(cpu_rdmsr(a, 0x1a0, &value));
    assert_false(cpu_rdmsr(a, 0x480, &value));
    assert_false(cpu_rdmsr(a, 0x10a, &value));
    assert_true(cpu_rdmsr(a, 0xc0010015, &value));
    assert_int_equal(value, HWCR_TSC_FREQ_SEL);
    assert_false(cpu_wrmsr(a, 0x8b, 0)); /* PATCH_LEVEL */
    assert_true(cpu_wrmsr(v, 0x8b, 0));
    /* TSC_AUX: Intel faults on reserved bits, AMD drops them. */
    assert_false(cpu_wrmsr(v, 0xc0000103, 1ull << 32));
    assert_true(cpu_wrmsr(a, 0xc0000103, 1ull << 32 | 7));
    assert_true(cpu_rdmsr(a, 0xc0000103, &value));
    assert_int_equal(value, 7);
    vcpu_free(v);
    vcpu_free(a);
}

static void features(void **state)
{
    struct vcpu *v = fake_vcpu("intel,-spec_ctrl,-arch_capabilities,-mtrr,-pat,-vmx,-rdtscp,-rdpid,-pks,-waitpkg,-pmu");
    static const u32 gone[] = {0x48, 0x49, 0x10a, 0xfe, 0x200, 0x277, 0x2ff, 0x480, 0x9b, 0xc0000103, 0x6e1, 0xe1, 0xc1, 0x38f};
    for (unsigned n = 0; n < ARRAY_SIZE(gone); n++)
        assert_false(cpu_rdmsr(v, gone[n], &value));
    vcpu_free(v);
}

static void canonical(void **state)
{
    static const u32 address[] = {0x175, 0x176, 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102};
    struct vcpu *wide = fake_vcpu("intel"), *narrow = fake_vcpu("intel,-la57");
    for (unsigned n = 0; n < ARRAY_SIZE(address); n++) {
        assert_true(cpu_wrmsr(narrow, address[n], 0xffff800000000000));
        assert_true(cpu_rdmsr(narrow, address[n], &value));
        assert_int_equal(value, 0xffff800000000000);
        assert_false(cpu_wrmsr(narrow, address[n], 0x0000800000000000));
        assert_true(cpu_wrmsr(wide, address[n], 0x0000800000000000)); /* by what the processor supports */
        assert_false(cpu_wrmsr(wide, address[n], 0xaaaaaaaaaaaaaaaa));
    }
    vcpu_free(wide);
    vcpu_free(narrow);
}

static void reserved(void **state)
{
    struct vcpu *v = fake_vcpu("intel,maxphyaddr=40");
    assert_true(cpu_wrmsr(v, 0x277, 0x0007040600070406));
    assert_false(cpu_wrmsr(v, 0x277, 2));           /* type 2 is reserved */
    assert_false(cpu_wrmsr(v, 0x277, 0x0800));
    assert_true(cpu_wrmsr(v, 0x200, 0xc0000000));
    assert_false(cpu_wrmsr(v, 0x200, 7));           /* UC- is a PAT type only */
    assert_false(cpu_wrmsr(v, 0x200, 0x100));
    assert_false(cpu_wrmsr(v, 0x200, 1ull << 40));
    assert_true(cpu_wrmsr(v, 0x20f, 0xffc0000800));
    assert_false(cpu_wrmsr(v, 0x20f, 1));
    assert_false(cpu_wrmsr(v, 0x2ff, 0x406 | 0x200));
    assert_true(cpu_wrmsr(v, 0x2ff, 0xc06));
    assert_true(cpu_wrmsr(v, 0x26f, 0x0505050505050505));
    assert_false(cpu_wrmsr(v, 0x26f, 0x02));
    assert_true(cpu_rdmsr(v, 0x26f, &value));
    assert_int_equal(value, 0x0505050505050505);
    assert_false(cpu_wrmsr(v, 0x48, 8));
    assert_true(cpu_wrmsr(v, 0x48, 7));
    assert_false(cpu_rdmsr(v, 0x49, &value));
    assert_true(cpu_wrmsr(v, 0x49, 1));
    assert_false(cpu_wrmsr(v, 0x49, 2));
    assert_false(cpu_wrmsr(v, 0xda0, 0x100));
    assert_false(cpu_wrmsr(v, 0x17a, 8));
    for (unsigned bit = 0; bit < 64; bit++) /* UMWAIT_CONTROL */
        assert_int_equal(cpu_wrmsr(v, 0xe1, BIT64(bit)), bit != 1 && bit < 32);
    assert_false(cpu_wrmsr(v, 0x401, 1));
    assert_true(cpu_wrmsr(v, 0x400, ~0ull));
    assert_false(cpu_wrmsr(v, 0x400, 0xaaaaaaaaaaaaaaaa));
    assert_true(cpu_wrmsr(v, 0x402, 0xaaaaaaaaaaaaaaaa));
    assert_false(cpu_wrmsr(v, 0x1d9, 0x40));
    vcpu_free(v);
}

static void feature_control(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    assert_true(cpu_rdmsr(v, 0x3a, &value));
    assert_int_equal(value, 0);
    assert_false(cpu_wrmsr(v, 0x3a, 2)); /* no SMX */
    cpu_firmware_defaults(v);
    assert_true(cpu_rdmsr(v, 0x3a, &value));
    assert_int_equal(value, 5);
    assert_false(cpu_wrmsr(v, 0x3a, 5)); /* locked */
    cpu_init_signal(v);
    assert_true(cpu_rdmsr(v, 0x3a, &value));
    assert_int_equal(value, 5);
    cpu_reset(v);
    assert_true(cpu_rdmsr(v, 0x3a, &value));
    assert_int_equal(value, 0);
    vcpu_free(v);
}

static void efer(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    assert_true(cpu_wrmsr(v, 0xc0000080, EFER_LME | EFER_NXE)); /* LMA is the processor's */
    assert_int_equal(v->efer, EFER_LME | EFER_LMA | EFER_NXE);
    assert_false(cpu_wrmsr(v, 0xc0000080, EFER_NXE)); /* LME while paging */
    assert_false(cpu_wrmsr(v, 0xc0000080, EFER_LME | EFER_SVME));
    vcpu_free(v);
}

static void tsc(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    clock_advance(v->clock, 1000000);
    u64 now = cpu_tsc(v);
    assert_int_equal(now, 2400000);
    assert_true(cpu_wrmsr(v, 0x10, 100));
    assert_int_equal(cpu_tsc(v), 100);
    assert_true(cpu_rdmsr(v, 0x3b, &value));
    assert_int_equal(value, 100 - now);
    assert_true(cpu_wrmsr(v, 0x3b, 0));
    assert_int_equal(cpu_tsc(v), now);
    /* The time at which a value is reached is the first at which it has been. */
    for (u64 ahead = 1; ahead < 100; ahead++) {
        u64 ns = cpu_tsc_to_ns(v, now + ahead), old = v->clock->icount_ns;
        v->clock->icount_ns = ns;
        assert_true(cpu_tsc(v) >= now + ahead);
        v->clock->icount_ns = ns - 1;
        assert_true(cpu_tsc(v) < now + ahead);
        v->clock->icount_ns = old;
    }
    assert_int_equal(cpu_tsc_to_ns(v, now), 1000000);
    assert_int_equal(cpu_tsc_to_ns(v, 0), 1000000);
    assert_true(cpu_tsc_to_ns(v, ~0ull) > 1ull << 62);
    vcpu_free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sorted),   cmocka_unit_test(unknown),  cmocka_unit_test(vendors),
        cmocka_unit_test(features), cmocka_unit_test(canonical), cmocka_unit_test(reserved),
        cmocka_unit_test(feature_control), cmocka_unit_test(efer), cmocka_unit_test(tsc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
