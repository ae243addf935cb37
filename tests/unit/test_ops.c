/*
 * Value bodies against known answers. Flags are written as the letters that must be set; flags that
 * a manual leaves undefined are masked out, so the expectations hold on every host.
 */
#include "cpu/ops.h"

#include <cpuid.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static struct vcpu *v;

static u32 letters(const char *s)
{
    u32 f = 0;
    for (; *s; s++)
        f |= *s == 'C' ? FL_CF : *s == 'P' ? FL_PF : *s == 'A' ? FL_AF : *s == 'Z' ? FL_ZF : *s == 'S' ? FL_SF : FL_OF;
    return f;
}

static int setup(void **state)
{
    v = aligned_alloc(_Alignof(struct vcpu), sizeof(*v));
    if (v)
        memset(v, 0, sizeof(*v));
    return v ? 0 : -1;
}
static int teardown(void **state)
{
    free(v);
    return 0;
}

/* Evaluates @call with the flags @before; expects @result, and of the @defined flags exactly @after. */
#define EXPECT(before, call, result, after, defined)                                                         \
    do {                                                                                                    \
        v->aflags = letters(before);                                                                         \
        assert_int_equal((u64)(call), (u64)(result));                                                        \
        assert_int_equal(v->aflags & letters(defined), letters(after));                                      \
        assert_int_equal(v->aflags & ~(u32)FL_ARITH, 0);                                                     \
    } while (0)
#define EXPECT_VOID(before, call, after, defined)                                                            \
    do {                                                                                                    \
        v->aflags = letters(before);                                                                         \
        call;                                                                                               \
        assert_int_equal(v->aflags & letters(defined), letters(after));                                      \
    } while (0)
#define ALL "CPAZSO"

static void test_add_sub(void **state)
{
    EXPECT(ALL, op_add8(v, 0x7f, 1), 0x80, "ASO", ALL);
    EXPECT("", op_add8(v, 0xff, 1), 0, "CPAZ", ALL);
    EXPECT("", op_add16(v, 0x8000, 0x8000), 0, "CPZO", ALL);
    EXPECT("", op_add32(v, 0xffffffff, 0xffffffff), 0xfffffffe, "CAS", ALL);
    EXPECT("", op_add64(v, 0x7fffffffffffffff, 1), 0x8000000000000000, "PASO", ALL);
    EXPECT("", op_sub8(v, 0, 1), 0xff, "CPAS", ALL);
    EXPECT("", op_sub64(v, 5, 5), 0, "PZ", ALL);
    EXPECT("", op_sub32(v, 0x80000000, 1), 0x7fffffff, "PAO", ALL);
    EXPECT_VOID(ALL, op_cmp16(v, 3, 4), "CPAS", ALL);
    EXPECT("C", op_adc8(v, 0xff, 0), 0, "CPAZ", ALL);
    EXPECT("", op_adc8(v, 0xff, 0), 0xff, "PS", ALL);
    EXPECT("C", op_adc64(v, 0x7fffffffffffffff, 0), 0x8000000000000000, "PASO", ALL);
    EXPECT("C", op_sbb32(v, 0, 0), 0xffffffff, "CPAS", ALL);
    EXPECT("SZO", op_sbb32(v, 7, 7), 0, "PZ", ALL);
    EXPECT("", op_neg8(v, 0x80), 0x80, "CSO", ALL);
    EXPECT("C", op_neg32(v, 0), 0, "PZ", ALL);
    EXPECT(ALL, op_not16(v, 0x00ff), 0xff00, ALL, ALL);
}

static void test_inc_dec_keep_carry(void **state)
{
    EXPECT("C", op_inc8(v, 0x7f), 0x80, "CASO", ALL);
    EXPECT("", op_inc32(v, 0xffffffff), 0, "PAZ", ALL);
    EXPECT("C", op_dec16(v, 0), 0xffff, "CPAS", ALL);
    EXPECT("", op_dec64(v, 1), 0, "PZ", ALL);
}

static void test_logic(void **state)
{
    EXPECT("CO", op_and8(v, 0xf0, 0x3c), 0x30, "P", "CPZSO");
    EXPECT("CO", op_or32(v, 0x80000000, 1), 0x80000001, "S", "CPZSO");
    EXPECT("CO", op_xor64(v, 9, 9), 0, "PZ", "CPZSO");
    EXPECT_VOID("CO", op_test16(v, 0x8000, 0xffff), "PS", "CPZSO");
}

static void test_shifts(void **state)
{
    EXPECT(ALL, op_shl32(v, 1, 0), 1, ALL, ALL);
    EXPECT("CZ", op_shl32(v, 1, 32), 1, "CZ", ALL);
    EXPECT("CZ", op_shr64(v, 1, 64), 1, "CZ", ALL);
    EXPECT("", op_shl8(v, 0x81, 1), 2, "CO", "CPZSO");
    EXPECT("", op_shl8(v, 0xff, 9), 0, "PZ", "PZS");
    EXPECT("", op_shr16(v, 0x8001, 1), 0x4000, "CPO", "CPZSO");
    EXPECT("", op_sar8(v, 0x81, 1), 0xc0, "CPS", "CPZSO");
    EXPECT("", op_sar64(v, 0x8000000000000000, 63), ~0ull, "PS", "CPZS");
    EXPECT("C", op_sar16(v, 0x8000, 31), 0xffff, "CPS", "PZSC");
    EXPECT("", op_shld32(v, 0x80000001, 0xc0000000, 2), 7, "", "CZS");
    EXPECT("", op_shrd64(v, 1, 1, 1), 0x8000000000000000, "CPSO", "CPZSO");
    EXPECT(ALL, op_shld16(v, 0x1234, 0x5678, 0), 0x1234, ALL, ALL);
    EXPECT("", op_shld16(v, 0x1234, 0x5678, 4), 0x2345, "C", "CPZS");
}

static void test_rotates(void **state)
{
    EXPECT("SZAP", op_rol8(v, 0x81, 1), 3, "CSZAPO", ALL);
    EXPECT("SZAP", op_ror8(v, 1, 1), 0x80, "CSZAPO", ALL);
    EXPECT("SZAPC", op_rol32(v, 0x12345678, 0), 0x12345678, "SZAPC", ALL);
    EXPECT("", op_rol8(v, 0x80, 8), 0x80, "", "CPAZS");
    EXPECT("", op_rol8(v, 0x81, 8), 0x81, "C", "CPAZS");
    EXPECT("C", op_rcl8(v, 0x80, 1), 1, "CO", ALL);
    EXPECT("C", op_rcl8(v, 0x80, 9), 0x80, "C", "CPAZS");
    EXPECT("C", op_rcr32(v, 2, 1), 0x80000001, "O", ALL);
    EXPECT("", op_rcr64(v, 1, 1), 0, "C", ALL);
    EXPECT("C", op_rcl16(v, 0, 17), 0, "C", "CPAZS");
    EXPECT("PS", op_ror64(v, 0x123456789abcdef0, 4), 0x0123456789abcdef, "PS", "CPAZS");
}

static void test_multiply(void **state)
{
    EXPECT("", op_imul216(v, 0x100, 0x100), 0, "CO", "CO");
    EXPECT("CO", op_imul232(v, (u32)-3, 5), (u32)-15, "", "CO");
    EXPECT("", op_imul364(v, 0x4000000000000000, 4), 0, "CO", "CO");
}

static void test_bits(void **state)
{
    EXPECT_VOID("ZSPAO", op_bt32(v, 2, 33), "CZ", "CZ");
    EXPECT("", op_bts16(v, 0, 15), 0x8000, "", "C");
    EXPECT("Z", op_btr64(v, ~0ull, 64), ~1ull, "CZ", "CZ");
    EXPECT("", op_btc32(v, 0, 31), 0x80000000, "", "C");
    EXPECT("", op_bsf32(v, 77, 0x10), 4, "", "Z");
    EXPECT("", op_bsf64(v, 0x1234567890, 0), 0x1234567890, "Z", "Z");
    EXPECT("Z", op_bsr16(v, 0, 0x8001), 15, "", "Z");
    EXPECT("CO", op_popcnt32(v, 0xff00ff), 16, "", ALL);
    EXPECT("SAPO", op_popcnt16(v, 0), 0, "Z", ALL);
    EXPECT("C", op_bswap32(v, 0x12345678), 0x78563412, "C", ALL);
    EXPECT("C", op_movbe16(v, 0x1234), 0x3412, "C", ALL);
    EXPECT("C", op_crc32_b32(v, 0, 0x80), 0x82f63b78, "C", ALL);
    assert_int_equal(op_crc32_q64(v, 0xffffffff00000000, 0x80), op_crc32_d64(v, op_crc32_d64(v, 0, 0x80), 0));
}

static void test_bmi(void **state)
{
    if (!__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2"))
        skip();
    EXPECT("", op_lzcnt16(v, 0x00ff), 8, "", "CZ");
    EXPECT("", op_lzcnt32(v, 0), 32, "C", "CZ");
    EXPECT("", op_tzcnt64(v, 1), 0, "Z", "CZ");
    EXPECT("CO", op_andn32(v, 0xff, 0xfff), 0xf00, "", "CZSO");
    EXPECT("", op_bextr32(v, 0x12345678, 0x0804), 0x67, "", "CZO");
    EXPECT("", op_bzhi64(v, ~0ull, 12), 0xfff, "", "CZSO");
    EXPECT("", op_bzhi32(v, 0x80000000, 32), 0x80000000, "CS", "CZSO");
    EXPECT("", op_blsi32(v, 0x18), 8, "C", "CZSO");
    EXPECT("", op_blsi32(v, 0), 0, "Z", "CZSO");
    EXPECT("", op_blsr64(v, 0), 0, "CZ", "CZSO");
    EXPECT("", op_blsmsk32(v, 0x18), 0xf, "", "CZSO");
    EXPECT(ALL, op_pdep32(v, 5, 0xf0), 0x50, ALL, ALL);
    EXPECT(ALL, op_pext64(v, 0xab00, 0xff00), 0xab, ALL, ALL);
    EXPECT(ALL, op_rorx32(v, 1, 0), 1, ALL, ALL);
    EXPECT(ALL, op_rorx64(v, 1, 65), 0x8000000000000000, ALL, ALL);
    EXPECT(ALL, op_sarx32(v, 0x80000000, 31), 0xffffffff, ALL, ALL);
    EXPECT(ALL, op_shlx64(v, 1, 64), 1, ALL, ALL);
}

static void test_adx(void **state)
{
    unsigned a, b = 0, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & BIT(19)))
        skip();
    EXPECT("CZO", op_adcx32(v, 0xffffffff, 0), 0, "CZO", ALL);
    EXPECT("ZSO", op_adcx32(v, 1, 2), 3, "ZSO", ALL);
    EXPECT("OS", op_adox64(v, ~0ull, 0), 0, "OS", ALL);
    EXPECT("C", op_adox64(v, ~0ull, 0), ~0ull, "C", ALL);
}

static void test_moves(void **state)
{
    assert_int_equal(op_movsx_b16(v, 0x80), 0xff80);
    assert_int_equal(op_movsx_w64(v, 0x8000), 0xffffffffffff8000);
    assert_int_equal(op_movsxd64(v, 0x80000000), 0xffffffff80000000);
    assert_int_equal(op_movzx_b64(v, 0x80), 0x80);
    assert_int_equal(op_lea16(v, 0x12345), 0x2345);
}

/* Every condition against its definition, for all 64 states of the flags. */
static void test_conditions(void **state)
{
    for (unsigned n = 0; n < 64; n++) {
        bool c = n & 1, p = n & 2, a = n & 4, z = n & 8, s = n & 16, o = n & 32;
        v->aflags = (c ? FL_CF : 0) | (p ? FL_PF : 0) | (a ? FL_AF : 0) | (z ? FL_ZF : 0) | (s ? FL_SF : 0) | (o ? FL_OF : 0);
        const bool want[8] = {o, c, z, c || z, s, p, s != o, z || s != o};
        for (unsigned cc = 0; cc < 16; cc++)
            assert_int_equal(cc_holds(v, cc), want[cc / 2] ^ (cc & 1));
    }
}

/* FLAGS_LOAD and FLAGS_SAVE are inverse. */
static void test_flag_transfer(void **state)
{
    for (unsigned n = 0; n < 64; n++) {
        u32 f = (n & 1 ? FL_CF : 0) | (n & 2 ? FL_PF : 0) | (n & 4 ? FL_AF : 0) | (n & 8 ? FL_ZF : 0) |
                (n & 16 ? FL_SF : 0) | (n & 32 ? FL_OF : 0);
        v->aflags = f;
        op_rol64(v, 1, 0);
        assert_int_equal(v->aflags, f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_sub), cmocka_unit_test(test_inc_dec_keep_carry), cmocka_unit_test(test_logic),
        cmocka_unit_test(test_shifts), cmocka_unit_test(test_rotates), cmocka_unit_test(test_multiply),
        cmocka_unit_test(test_bits), cmocka_unit_test(test_bmi), cmocka_unit_test(test_adx),
        cmocka_unit_test(test_moves), cmocka_unit_test(test_conditions), cmocka_unit_test(test_flag_transfer),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
