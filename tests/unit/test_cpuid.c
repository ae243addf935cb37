/* CPUID: vendor behaviour, dynamic bits, and that leaves agree with the machine. */
#include "fake_rooms.h"

enum { EAX, EBX, ECX, EDX };
static u32 r[4];

static void vendors(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    cpu_cpuid(v, 0, 0, r);
    assert_memory_equal(&r[EBX], "Genu", 4);
    assert_int_equal(r[EAX], 0x1f);
    cpu_cpuid(v, 1, 0, r);
    assert_int_equal(r[EAX], 0x806f8);
    assert_int_equal(v->gpr[RDX], 0x806f8); /* RESET leaves it there */
    vcpu_free(v);
    v = fake_vcpu("amd");
    cpu_cpuid(v, 0x80000000, 0, r);
    assert_memory_equal(&r[EBX], "Auth", 4);
    cpu_cpuid(v, 1, 0, r);
    assert_int_equal(r[EAX], 0xa10f11);
    vcpu_free(v);
}

static void out_of_range(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    u32 top[4];
    cpu_cpuid(v, 0x1f, 1, top);
    static const u32 leaves[] = {0x20, 0x3fffffff, 0x40000000, 0x40000010, 0x80000009, 0x80000021, 0xffffffff};
    for (unsigned n = 0; n < ARRAY_SIZE(leaves); n++) {
        cpu_cpuid(v, leaves[n], 1, r);
        assert_memory_equal(r, top, sizeof(r));
    }
    cpu_cpuid(v, 0x9, 0, r); /* in range and not implemented: zeros */
    assert_int_equal(r[EAX] | r[EBX] | r[ECX] | r[EDX], 0);
    vcpu_free(v);
    v = fake_vcpu("amd");
    for (unsigned n = 0; n < ARRAY_SIZE(leaves); n++) {
        if (leaves[n] == 0x80000009 || leaves[n] == 0x80000021)
            continue;
        cpu_cpuid(v, leaves[n], 1, r);
        assert_int_equal(r[EAX] | r[EBX] | r[ECX] | r[EDX], 0);
    }
    vcpu_free(v);
}

static void hypervisor_leaves(void **state)
{
    struct vcpu *v = fake_vcpu("amd,+hypervisor");
    cpu_cpuid(v, 0x40000000, 0, r);
    assert_int_equal(r[EAX], 0x40000010);
    cpu_cpuid(v, 0x40000010, 0, r);
    assert_int_equal(r[EAX], 2400000);
    vcpu_free(v);
}

static void dynamic_bits(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    cpu_cpuid(v, 1, 0, r);
    assert_false(r[ECX] & BIT(27));
    v->cr4 |= CR4_OSXSAVE | CR4_PKE;
    cpu_cpuid(v, 1, 0, r);
    assert_true(r[ECX] & BIT(27));
    cpu_cpuid(v, 7, 0, r);
    assert_true(r[ECX] & BIT(4));
    assert_true(cpu_wrmsr(v, 0x1a0, v->misc_enable & ~MISC_ENABLE_MONITOR));
    cpu_cpuid(v, 1, 0, r);
    assert_false(r[ECX] & BIT(3));
    cpu_cpuid(v, 0x80000001, 0, r);
    assert_true(r[EDX] & BIT(11));
    assert_true(r[EDX] & BIT(20));
    v->mode = MODE_COMPAT32;
    cpu_cpuid(v, 0x80000001, 0, r);
    assert_false(r[EDX] & BIT(11));
    assert_true(cpu_wrmsr(v, 0x1a0, v->misc_enable | MISC_ENABLE_LIMIT_CPUID | MISC_ENABLE_XD_DISABLE));
    cpu_cpuid(v, 0, 0, r);
    assert_int_equal(r[EAX], 2);
    cpu_cpuid(v, 0x80000001, 0, r);
    assert_false(r[EDX] & BIT(20));
    vcpu_free(v);
}

static void frequencies(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    cpu_cpuid(v, 0x15, 0, r);
    assert_int_equal((u64)r[ECX] * r[EBX] / r[EAX], v->tsc_hz);
    /* Linux multiplies kHz and numerator in 32 bits. */
    assert_true((u64)(r[ECX] / 1000) * r[EBX] <= UINT32_MAX);
    cpu_cpuid(v, 0x16, 0, r);
    assert_int_equal(r[EAX], 2400);
    vcpu_free(v);
}

static void topology(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    cpu_cpuid(v, 1, 0, r);
    assert_false(r[EDX] & BIT(28));
    v->nr_cpus = 6;
    v->index = 5;
    cpu_cpuid(v, 1, 0, r);
    assert_true(r[EDX] & BIT(28));
    assert_int_equal(r[EBX] >> 16, 5 << 8 | 8);
    cpu_cpuid(v, 0xb, 0, r);
    assert_int_equal(r[EAX], 0);
    assert_int_equal(r[ECX], 0x100);
    cpu_cpuid(v, 0xb, 1, r);
    assert_int_equal(r[EAX], 3);
    assert_int_equal(r[EBX], 6);
    assert_int_equal(r[ECX], 0x201);
    assert_int_equal(r[EDX], 5);
    cpu_cpuid(v, 0xb, 2, r);
    assert_int_equal(r[ECX], 2);
    assert_int_equal(r[EBX], 0);
    cpu_cpuid(v, 4, 3, r);
    assert_int_equal(r[EAX] >> 14 & 0xfff, 7);
    cpu_cpuid(v, 4, 4, r);
    assert_int_equal(r[EAX], 0);
    vcpu_free(v);
    v = fake_vcpu("amd");
    v->nr_cpus = 6;
    cpu_cpuid(v, 0x80000008, 0, r);
    assert_int_equal(r[ECX], 5 | 3 << 12);
    vcpu_free(v);
}

static void xsave(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    cpu_cpuid(v, 0xd, 9, r);
    assert_int_equal(r[EAX], 8);
    assert_int_equal(r[EBX], 2688);
    cpu_cpuid(v, 0xd, 3, r);
    assert_int_equal(r[EAX] | r[EBX], 0);
    cpu_cpuid(v, 0xd, 63, r);
    cpu_cpuid(v, 0xd, 0xffffffff, r);
    assert_int_equal(r[EAX] | r[EBX], 0);
    vcpu_free(v);
    v = fake_vcpu("intel,-xsave");
    cpu_cpuid(v, 0xd, 0, r);
    assert_int_equal(r[EAX] | r[EBX] | r[ECX], 0);
    vcpu_free(v);
}

static void widths(void **state)
{
    struct vcpu *v = fake_vcpu("intel,maxphyaddr=40,-la57");
    cpu_cpuid(v, 0x80000008, 0, r);
    assert_int_equal(r[EAX], 40 | 48 << 8);
    vcpu_free(v);
    v = fake_vcpu("intel");
    cpu_cpuid(v, 0x80000008, 0, r);
    assert_int_equal(r[EAX], 46 | 57 << 8);
    vcpu_free(v);
}

static void instruction(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    /* How Linux reads the microcode revision. */
    assert_true(cpu_wrmsr(v, 0x8b, 0));
    memset(v->gpr, 0xff, sizeof(v->gpr));
    v->gpr[RAX] = 0xffffffff00000001;
    insn_cpuid(v, &(struct insn){0});
    assert_int_equal(v->gpr[RAX], 0x806f8);
    u64 revision;
    assert_true(cpu_rdmsr(v, 0x8b, &revision));
    assert_int_not_equal(revision >> 32, 0);
    vcpu_free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vendors),      cmocka_unit_test(out_of_range), cmocka_unit_test(hypervisor_leaves),
        cmocka_unit_test(dynamic_bits), cmocka_unit_test(frequencies),  cmocka_unit_test(topology),
        cmocka_unit_test(xsave),        cmocka_unit_test(widths),       cmocka_unit_test(instruction),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
