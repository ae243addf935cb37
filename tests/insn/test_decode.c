/* The fields of struct insn that the comparison with a disassembler does not see. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu/features.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/insn.h"

#include <string.h>

static struct insn decode_with(const struct decode_ctx *ctx, const char *hex, enum decode_status want)
{
    u8 bytes[15] = {0};
    unsigned n = 0;
    for (const char *p = hex; *p; p += p[2] ? 3 : 2) {
        static const char digits[] = "0123456789abcdef";
        bytes[n++] = (u8)((strchr(digits, p[0]) - digits) << 4 | (strchr(digits, p[1]) - digits));
    }
    struct insn i;
    assert_int_equal(insn_decode(ctx, bytes, n, &i), want);
    return i;
}

static struct insn decode(enum code_mode mode, const char *hex)
{
    struct decode_ctx ctx = {.mode = mode};
    struct insn i = decode_with(&ctx, hex, DECODE_OK);
    if (i.row != ROW_UD)
        assert_int_equal(i.len, (strlen(hex) + 1) / 3);
    return i;
}

static void assert_ea(const struct insn *i, unsigned seg, unsigned base, unsigned index, unsigned scale, s64 disp)
{
    assert_true(i->flags & INSN_MEM);
    assert_int_equal(i->seg, seg);
    assert_int_equal(i->base, base);
    assert_int_equal(i->index, index);
    assert_int_equal(i->scale, scale);
    assert_int_equal(i->disp, disp);
}

static void test_addressing_16(void **state)
{
    static const struct {
        const char *hex;
        u8 seg, base, index;
        s64 disp;
    } cases[] = {
        {"8b 00", SEG_DS, RBX, RSI, 0}, {"8b 01", SEG_DS, RBX, RDI, 0}, {"8b 02", SEG_SS, RBP, RSI, 0},
        {"8b 03", SEG_SS, RBP, RDI, 0}, {"8b 04", SEG_DS, RSI, REG_NONE, 0}, {"8b 05", SEG_DS, RDI, REG_NONE, 0},
        {"8b 06 34 92", SEG_DS, REG_NONE, REG_NONE, (s16)0x9234}, {"8b 07", SEG_DS, RBX, REG_NONE, 0},
        {"8b 46 fe", SEG_SS, RBP, REG_NONE, -2}, {"8b 82 00 10", SEG_SS, RBP, RSI, 0x1000},
        {"26 8b 46 fe", SEG_ES, RBP, REG_NONE, -2}, {"65 8b 07", SEG_GS, RBX, REG_NONE, 0},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(cases); n++) {
        struct insn i = decode(CODE_16, cases[n].hex);
        assert_int_equal(i.row, ROW_MOV_Gv_Ev);
        assert_int_equal(i.adsize, 2);
        assert_int_equal(i.opsize, 2);
        assert_ea(&i, cases[n].seg, cases[n].base, cases[n].index, 0, cases[n].disp);
    }
}

static void test_addressing_64(void **state)
{
    struct insn i = decode(CODE_64, "8b 05 78 56 34 f2");
    assert_ea(&i, SEG_DS, REG_RIP, REG_NONE, 0, (s32)0xf2345678);
    i = decode(CODE_64, "67 8b 05 78 56 34 12");
    assert_int_equal(i.adsize, 4);
    assert_ea(&i, SEG_DS, REG_RIP, REG_NONE, 0, 0x12345678);
    i = decode(CODE_64, "8b 04 25 00 00 00 80");
    assert_ea(&i, SEG_DS, REG_NONE, REG_NONE, 0, (s32)0x80000000);
    i = decode(CODE_64, "4b 8b 44 e5 08"); /* [r13 + r12*8 + 8]: R13 is no stack register */
    assert_ea(&i, SEG_DS, R13, R12, 3, 8);
    assert_int_equal(i.opsize, 8);
    i = decode(CODE_64, "8b 04 24");
    assert_ea(&i, SEG_SS, RSP, REG_NONE, 0, 0);
    i = decode(CODE_64, "41 8b 04 24");
    assert_ea(&i, SEG_DS, R12, REG_NONE, 0, 0);
    i = decode(CODE_64, "2e 8b 04 24"); /* CS override: ignored */
    assert_ea(&i, SEG_SS, RSP, REG_NONE, 0, 0);
    assert_false(i.flags & INSN_SEG);
    i = decode(CODE_64, "64 2e 8b 04 24");
    assert_ea(&i, SEG_FS, RSP, REG_NONE, 0, 0);
    i = decode(CODE_64, "48 a1 88 77 66 55 44 33 22 11");
    assert_ea(&i, SEG_DS, REG_NONE, REG_NONE, 0, 0x1122334455667788);
    i = decode(CODE_64, "67 a1 88 77 66 55");
    assert_ea(&i, SEG_DS, REG_NONE, REG_NONE, 0, 0x55667788);
    i = decode(CODE_32, "8b 05 78 56 34 12");
    assert_ea(&i, SEG_DS, REG_NONE, REG_NONE, 0, 0x12345678);
    i = decode(CODE_32, "8b 04 6d 01 00 00 00"); /* [ebp*2 + 1]: no base, DS */
    assert_ea(&i, SEG_DS, REG_NONE, RBP, 1, 1);
}

static void test_byte_registers(void **state)
{
    struct insn i = decode(CODE_64, "88 e5"); /* mov ch, ah */
    assert_int_equal(i.reg8, RAX * 8 + 1);
    assert_int_equal(i.rm8, RCX * 8 + 1);
    assert_int_equal(i.opsize, 1);
    i = decode(CODE_64, "40 88 e5"); /* mov bpl, spl */
    assert_int_equal(i.reg8, RSP * 8);
    assert_int_equal(i.rm8, RBP * 8);
    i = decode(CODE_64, "45 88 e5");
    assert_int_equal(i.reg8, R12 * 8);
    assert_int_equal(i.rm8, R13 * 8);
    i = decode(CODE_64, "b7 01"); /* mov bh, 1 */
    assert_int_equal(i.rm8, RBX * 8 + 1);
    i = decode(CODE_64, "41 b7 01");
    assert_int_equal(i.rm8, R15 * 8);
}

static void test_prefixes(void **state)
{
    struct insn i = decode(CODE_64, "48 66 01 d8"); /* a prefix behind REX cancels it */
    assert_int_equal(i.opsize, 2);
    assert_false(i.flags & INSN_REX);
    i = decode(CODE_64, "66 48 01 d8");
    assert_int_equal(i.opsize, 8);
    i = decode(CODE_64, "f3 a4");
    assert_int_equal(i.row, ROW_MOVSB_Yb_Xb);
    assert_true(i.flags & INSN_REP);
    i = decode(CODE_64, "f3 0f 10 c1"); /* here F3 is part of the opcode */
    assert_false(i.flags & (INSN_REP | INSN_REPNE));
    i = decode(CODE_64, "66 0f 6f c1");
    assert_false(i.flags & INSN_OSZ);
    i = decode(CODE_64, "66 f2 0f 38 f1 c1"); /* CRC32 r32, r16 */
    assert_int_equal(i.row, ROW_CRC32_Gd_Ew);
    i = decode(CODE_64, "f2 f3 0f bc c1"); /* the last of F2 and F3 counts */
    assert_int_equal(i.row, ROW_TZCNT_Gv_Ev);
    i = decode(CODE_64, "f0 01 03");
    assert_true(i.flags & INSN_LOCK);
    assert_int_equal(decode(CODE_64, "f0 01 c3").row, ROW_UD);
    assert_int_equal(decode(CODE_64, "f0 03 03").row, ROW_UD);
    assert_int_equal(decode(CODE_64, "90").row, ROW_NOP);
    assert_int_equal(decode(CODE_64, "f3 90").row, ROW_PAUSE);
    i = decode(CODE_64, "f3 41 90");
    assert_int_equal(i.row, ROW_XCHG_Zv_rAX);
    assert_int_equal(i.rm, R8);
}

static void test_immediates(void **state)
{
    assert_int_equal(decode(CODE_64, "48 83 c0 ff").imm, ~0ull);
    assert_int_equal(decode(CODE_64, "48 c1 e0 ff").imm, 0xff);
    assert_int_equal(decode(CODE_64, "48 05 00 00 00 80").imm, 0xffffffff80000000);
    assert_int_equal(decode(CODE_64, "48 b8 01 02 03 04 05 06 07 88").imm, 0x8807060504030201);
    assert_int_equal(decode(CODE_32, "66 b8 01 82").imm, 0xffffffffffff8201);
    assert_int_equal(decode(CODE_64, "6a 80").imm, (u64)-128);
    assert_int_equal(decode(CODE_64, "c2 00 80").imm, 0x8000);
    assert_int_equal(decode(CODE_64, "e4 80").imm, 0x80);
    assert_int_equal(decode(CODE_64, "eb fe").imm, (u64)-2);
    assert_int_equal(decode(CODE_16, "e9 00 80").imm, (u64)-32768);
    struct insn i = decode(CODE_16, "ea 34 12 78 56");
    assert_int_equal(i.imm, 0x1234);
    assert_int_equal(i.imm2, 0x5678);
    i = decode(CODE_32, "9a 04 03 02 f1 78 56");
    assert_int_equal(i.imm, 0xf1020304);
    assert_int_equal(i.imm2, 0x5678);
    i = decode(CODE_64, "c8 10 80 03");
    assert_int_equal(i.imm, 0x8010);
    assert_int_equal(i.imm2, 3);
    assert_int_equal(i.opsize, 8);
}

static void test_operand_sizes(void **state)
{
    assert_int_equal(decode(CODE_64, "50").opsize, 8);
    assert_int_equal(decode(CODE_64, "66 50").opsize, 2);
    assert_int_equal(decode(CODE_64, "66 e8 00 00 00 00").opsize, 8);
    struct decode_ctx amd = {.mode = CODE_64, .amd = true};
    struct insn i = decode_with(&amd, "66 e8 00 10", DECODE_OK);
    assert_int_equal(i.opsize, 2);
    assert_int_equal(i.len, 4);
    assert_int_equal(decode(CODE_64, "0f 20 c0").opsize, 8);
    assert_int_equal(decode(CODE_32, "0f 20 c0").opsize, 4);
    assert_int_equal(decode(CODE_64, "ed").opsize, 4);
    assert_int_equal(decode(CODE_64, "48 ed").opsize, 4);
    assert_int_equal(decode(CODE_64, "66 ed").opsize, 2);
    assert_int_equal(decode(CODE_64, "ec").opsize, 1);
    assert_int_equal(decode(CODE_64, "66 0f 6e c0").opsize, 4);
    assert_int_equal(decode(CODE_64, "66 48 0f 6e c0").opsize, 8);
    assert_int_equal(decode(CODE_64, "0f 01 10").opsize, 8); /* LGDT */
    assert_int_equal(decode(CODE_32, "66 0f 01 10").opsize, 2);
    assert_int_equal(decode(CODE_64, "f6 e1").opsize, 1);
    assert_int_equal(decode(CODE_64, "cb").opsize, 4);
    assert_int_equal(decode(CODE_64, "66 98").opsize, 2); /* CBW */
    assert_int_equal(decode(CODE_32, "99").opsize, 4);
    assert_int_equal(decode(CODE_64, "48 99").opsize, 8);
    assert_int_equal(decode(CODE_64, "e2 00").opsize, 8);
    i = decode(CODE_64, "48 0f 01 08"); /* SIDT: 10 bytes */
    assert_int_equal(operand_bytes(&i, 0), 10);
    i = decode(CODE_64, "48 ff 18"); /* CALL m16:64 */
    assert_int_equal(operand_bytes(&i, 0), 10);
}

static void test_vex(void **state)
{
    struct insn i = decode(CODE_64, "c4 41 25 58 cd"); /* vaddpd ymm9, ymm11, ymm13 */
    assert_int_equal(i.row, ROW_VADDPD_Vx_Hx_Wx);
    assert_int_equal(i.reg, 9);
    assert_int_equal(i.vvvv, 11);
    assert_int_equal(i.rm, 13);
    assert_int_equal(i.vl, 1);
    assert_int_equal(operand_bytes(&i, 2), 32);
    i = decode(CODE_64, "c5 ff 58 c1"); /* VADDSD ignores L */
    assert_int_equal(i.vl, 0);
    assert_int_equal(operand_bytes(&i, 2), 8);
    i = decode(CODE_32, "c4 e2 f8 f2 c1"); /* ANDN: W is ignored outside 64-bit mode */
    assert_int_equal(i.opsize, 4);
    i = decode(CODE_64, "c4 e2 f8 f2 c1");
    assert_int_equal(i.opsize, 8);
    i = decode(CODE_32, "c5 00"); /* LDS */
    assert_string_equal(insn_rows[i.row].mnemonic, "LDS");
    assert_string_equal(insn_rows[decode(CODE_64, "c5 f8 77").row].mnemonic, "VZEROUPPER");
    assert_int_equal(decode(CODE_64, "c5 b8 77").row, ROW_UD); /* vvvv must be 1111b */
    assert_int_equal(decode(CODE_64, "66 c5 f8 58 c1").row, ROW_UD);
    assert_int_equal(decode(CODE_64, "48 c5 f8 58 c1").row, ROW_UD);
    struct decode_ctx real = {.mode = CODE_16, .real_or_v86 = true};
    assert_int_equal(decode_with(&real, "c5 f8 77", DECODE_OK).row, ROW_UD);
    i = decode(CODE_64, "c4 e2 69 90 04 25 00 00 00 00"); /* vpgatherdd xmm0, [xmm4 + 0], xmm2 */
    assert_true(i.flags & INSN_VSIB);
    assert_int_equal(i.index, 4);
    assert_int_equal(decode(CODE_64, "c4 e2 69 90 04 05 00 00 00 00").row, ROW_UD); /* index = destination */
    assert_int_equal(decode(CODE_64, "c4 e2 69 90 00").row, ROW_UD);                /* no SIB */
    assert_int_equal(decode(CODE_64, "8f e8 78 c0 c1 05").row, ROW_UD);             /* XOP */
}

static void test_features(void **state)
{
    u8 features[FEAT_COUNT] = {0};
    struct decode_ctx ctx = {.mode = CODE_64, .features = features};
    assert_int_equal(decode_with(&ctx, "f3 0f bc c1", DECODE_OK).row, ROW_BSF_Gq_Ed);
    assert_int_equal(decode_with(&ctx, "f3 0f b8 c1", DECODE_OK).row, ROW_UD);
    assert_int_equal(decode_with(&ctx, "9f", DECODE_OK).row, ROW_UD);
    assert_int_equal(decode_with(&ctx, "f3 0f 1e fa", DECODE_OK).row, ROW_ENDBR64);
    features[FEAT_BMI1] = features[FEAT_POPCNT] = features[FEAT_LAHF_LM] = 1;
    assert_int_equal(decode_with(&ctx, "f3 0f bc c1", DECODE_OK).row, ROW_TZCNT_Gv_Ev);
    assert_int_equal(decode_with(&ctx, "f3 0f b8 c1", DECODE_OK).row, ROW_POPCNT_Gv_Ev);
    assert_string_equal(insn_rows[decode_with(&ctx, "9f", DECODE_OK).row].mnemonic, "LAHF");
    features[FEAT_VAES] = 1; /* needs AVX too */
    assert_int_equal(decode_with(&ctx, "c4 e2 75 dc c1", DECODE_OK).row, ROW_UD);
    features[FEAT_AVX] = 1;
    assert_string_equal(insn_rows[decode_with(&ctx, "c4 e2 75 dc c1", DECODE_OK).row].mnemonic, "VAESENC");
}

static void test_system_registers(void **state)
{
    assert_int_equal(decode(CODE_64, "44 0f 20 c0").reg, 8);
    assert_int_equal(decode(CODE_64, "0f 20 c8").row, ROW_UD);    /* CR1 */
    assert_int_equal(decode(CODE_64, "44 0f 20 c8").row, ROW_UD); /* CR9 */
    assert_int_equal(decode(CODE_64, "44 0f 21 c0").row, ROW_UD); /* DR8 */
    struct insn i = decode(CODE_64, "0f 20 00"); /* mod is ignored */
    assert_false(i.flags & INSN_MEM);
    assert_int_equal(decode(CODE_64, "8e c8").row, ROW_UD); /* MOV CS */
    assert_int_equal(decode(CODE_64, "8c f0").row, ROW_UD);
    u8 features[FEAT_COUNT];
    memset(features, 1, sizeof(features));
    struct decode_ctx amd = {.mode = CODE_32, .amd = true, .features = features};
    assert_int_equal(decode_with(&amd, "f0 0f 20 c0", DECODE_OK).reg, 8); /* LOCK MOV CR0 is MOV CR8 */
    assert_int_equal(decode(CODE_32, "f0 0f 20 c0").row, ROW_UD);
}

static void test_length(void **state)
{
    struct decode_ctx ctx = {.mode = CODE_64};
    decode_with(&ctx, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", DECODE_OK);
    decode_with(&ctx, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66", DECODE_TOO_LONG);
    decode_with(&ctx, "66 66 66 66 66 66 66 66 66 66 66 66 66 01 05", DECODE_TOO_LONG);
    /* Every proper prefix of an instruction is too short. */
    static const u8 code[] = {0x64, 0x66, 0x41, 0x81, 0x84, 0x85, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60};
    struct insn i;
    for (unsigned n = 1; n < sizeof(code); n++)
        assert_int_equal(insn_decode(&ctx, code, n, &i), DECODE_SHORT);
    assert_int_equal(insn_decode(&ctx, code, sizeof(code), &i), DECODE_OK);
    assert_int_equal(i.len, sizeof(code));
}

static void test_evex(void **state)
{
    struct insn i = decode(CODE_64, "62 21 9d c7 58 84 c8 00 01 00 00"); /* vaddpd zmm24 {k7}{z}, zmm28, [rax + r9*8 + 256] */
    assert_int_equal(i.row, ROW_VADDPD_Vx_Hx_Wx_EVEX);
    assert_int_equal(i.reg, 24);
    assert_int_equal(i.vvvv, 28);
    assert_int_equal(i.mask, 7);
    assert_true(i.flags & INSN_ZERO);
    assert_int_equal(i.vl, 2);
    assert_int_equal(operand_bytes(&i, 2), 64);
    assert_ea(&i, SEG_DS, RAX, R9, 3, 256);
    assert_int_equal(decode(CODE_64, "62 01 95 40 58 c7").rm, 31);

    /* The scale of an 8-bit displacement, and how much memory that is. */
    static const struct { const char *hex; s64 disp; unsigned operand, bytes; } tuples[] = {
        {"62 f1 74 48 58 40 01", 64, 2, 64},         /* vaddps zmm: FULL */
        {"62 f1 74 28 58 40 01", 32, 2, 32},         /* ymm */
        {"62 f1 74 58 58 40 ff", -4, 2, 4},          /* broadcast of 32 bits */
        {"62 f1 f5 38 58 40 02", 16, 2, 8},          /* of 64 */
        {"62 f1 7c 48 5a 40 01", 32, 1, 32},         /* vcvtps2pd zmm: HALF */
        {"62 f1 7c 58 5a 40 01", 4, 1, 4},
        {"62 f2 7e 48 22 40 01", 8, 0, 8},           /* vpmovsqb m64, zmm: EIGHTHMEM */
        {"62 f1 76 08 58 40 03", 12, 2, 4},          /* vaddss: T1S */
        {"62 f2 fd 48 1b 40 01", 32, 1, 32},         /* vbroadcastf64x4: T4 */
        {"62 f1 75 48 f2 40 01", 16, 2, 16},         /* vpslld zmm, zmm, xmm/m128: M128 */
        {"62 f1 ff 08 12 40 01", 8, 1, 8},           /* vmovddup xmm: DUP */
        {"62 f1 ff 48 12 40 01", 64, 1, 64},
        {"62 f3 75 38 43 40 01 00", 4, 2, 4},        /* vshufi32x4 ymm, broadcast, in a row of one length */
        {"62 f2 7d 48 8a 40 01", 4, 0, 64},          /* vcompressps: one element is the unit, a vector at most */
        {"62 f1 f6 08 2a 40 01", 8, 2, 8},           /* vcvtsi2ss r/m64 */
        {"62 f3 75 08 20 40 05 00", 5, 2, 1},        /* vpinsrb */
    };
    for (unsigned n = 0; n < ARRAY_SIZE(tuples); n++) {
        i = decode(CODE_64, tuples[n].hex);
        if (i.row == ROW_UD || i.disp != tuples[n].disp || operand_bytes(&i, tuples[n].operand) != tuples[n].bytes)
            fail_msg("%s: %s, displacement %lld, %u bytes", tuples[n].hex, insn_rows[i.row].mnemonic, (long long)i.disp,
                     operand_bytes(&i, tuples[n].operand));
    }

    i = decode(CODE_64, "62 f1 74 78 58 c2"); /* vaddps zmm0, zmm1, zmm2, {rz-sae}: L'L is the rounding mode */
    assert_true(i.flags & INSN_RND);
    assert_int_equal(i.vl, 3);
    assert_int_equal(operand_bytes(&i, 2), 64);
    /* What is ignored: X with a general-purpose register in rm, X and B with a mask register. */
    assert_int_equal(decode(CODE_64, "62 b1 7d 08 6e c0").rm, 0);
    assert_int_equal(decode(CODE_64, "62 92 fe 08 28 c1").rm, 1);
    /* In 32-bit code vectors have three bits. */
    i = decode(CODE_32, "62 f1 34 48 58 c2");
    assert_int_equal(i.vvvv, 1);

    static const char *const undefined[] = {
        "62 f1 74 68 58 c2",       /* L'L = 3 without rounding */
        "62 f1 76 68 58 c2",       /* also for a scalar */
        "62 f1 74 c8 58 c2",       /* z without a mask */
        "62 f1 7c c9 11 00",       /* z with a memory destination */
        "62 f1 74 c9 c2 c2 00",    /* z with a mask destination */
        "62 71 74 48 c2 c2 00",    /* R with a mask destination */
        "62 e1 74 48 c2 c2 00",    /* R' with one */
        "62 e1 7e 08 2d c0",       /* R' with a general-purpose destination */
        "62 f1 74 40 5b c2",       /* V' without a register in vvvv: vcvtdq2ps */
        "62 f1 74 18 c6 c2 00",    /* b of registers without rounding or SAE: vshufps */
        "62 f1 75 58 fc 00",       /* broadcast of bytes: vpaddb */
        "62 f9 74 48 58 c2",       /* a reserved bit of P0 */
        "62 f1 70 48 58 c2",       /* a fixed bit of P1 */
        "66 62 f1 74 48 58 c2",    /* a prefix before it */
        "62 f2 7d 48 90 04 10",    /* a gather without a mask */
        "62 f2 7d 49 90 04 00",    /* into its own index */
        "62 f6 6e 48 d6 d3",       /* vfmulcph zmm2, zmm2, zmm3 */
        "62 f1 74 09 77 c0",       /* VZEROUPPER has no such form */
    };
    for (unsigned n = 0; n < ARRAY_SIZE(undefined); n++)
        if (decode(CODE_64, undefined[n]).row != ROW_UD)
            fail_msg("%s is not undefined", undefined[n]);
    assert_int_equal(decode(CODE_32, "62 f1 74 40 58 c2").row, ROW_UD); /* V' outside 64-bit mode */
    assert_string_equal(insn_rows[decode(CODE_32, "62 00").row].mnemonic, "BOUND");
    assert_int_equal(decode(CODE_64, "c5 6c 41 cb").row, ROW_UD); /* kandw k9 */
    assert_int_equal(decode(CODE_64, "c5 bc 41 cb").row, ROW_UD); /* kandw from k8 */

    /* Lengths below 512 bits want AVX512VL, save with rounding and for scalars. */
    u8 features[FEAT_COUNT];
    memset(features, 1, sizeof(features));
    features[FEAT_AVX512VL] = 0;
    struct decode_ctx no_vl = {.mode = CODE_64, .features = features};
    assert_int_equal(decode_with(&no_vl, "62 f1 74 28 58 c2", DECODE_OK).row, ROW_UD);
    assert_int_equal(decode_with(&no_vl, "62 f3 75 28 43 c2 00", DECODE_OK).row, ROW_UD); /* a row of one length */
    assert_int_equal(decode_with(&no_vl, "62 f1 74 48 58 c2", DECODE_OK).row, ROW_VADDPS_Vx_Hx_Wx_EVEX);
    assert_int_equal(decode_with(&no_vl, "62 f1 74 18 58 c2", DECODE_OK).row, ROW_VADDPS_Vx_Hx_Wx_EVEX);
    assert_int_not_equal(decode_with(&no_vl, "62 f1 76 08 58 c2", DECODE_OK).row, ROW_UD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addressing_16), cmocka_unit_test(test_addressing_64), cmocka_unit_test(test_byte_registers),
        cmocka_unit_test(test_prefixes), cmocka_unit_test(test_immediates), cmocka_unit_test(test_operand_sizes),
        cmocka_unit_test(test_vex), cmocka_unit_test(test_evex), cmocka_unit_test(test_features), cmocka_unit_test(test_system_registers),
        cmocka_unit_test(test_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
