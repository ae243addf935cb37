/*
 * What a guest must not be able to do through translated code: the list in docs/jit.md, "Security". Which
 * instructions get code of their own, that the code holds nothing but what it may, and that no page of it can be
 * written. The code of random programs is checked by "jit_blocks ... check" (tests/fuzz).
 */
#include "../fuzz/check_code.h"
#include "../fuzz/random_insn.h"
#include "../fuzz/twins.h"
#include "faults.h"
#include "jit/tr.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <ctype.h>
#include <inttypes.h>

static struct twins twins;

static int setup(void **state)
{
    (void)state;
    twins_new(&twins, &engine_jit_eager);
    random_state = 0x123456789abcdef;
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    twins_free(&twins);
    return 0;
}

static const char *encoding(const struct insn_row *row)
{
    static char text[200];
    snprintf(text, sizeof(text), "%s %s (%s)", row->mnemonic, row->operands, row->encoding);
    return text;
}

/* Calls @f for many encodings of every row, in 64-bit and 32-bit code. */
static void every_row(void (*f)(struct vcpu *v, const struct insn *i, const u8 *bytes))
{
    struct vcpu *v = twins.b.v;
    for (unsigned mode = 0; mode < 2; mode++) {
        v->code_mode = mode ? CODE_32 : CODE_64;
        struct decode_ctx ctx = {.mode = v->code_mode, .features = v->features};
        for (unsigned r = 1; r < insn_row_count; r++)
            for (unsigned n = 0; n < 60; n++) {
                u8 out[RANDOM_INSN_MAX];
                struct insn i = {0};
                unsigned len = random_insn(&insn_rows[r], mode ? 32 : 64, out);
                if (len && insn_decode(&ctx, out, len > 15 ? 15 : len, &i) == DECODE_OK && i.row)
                    f(v, &i, out);
            }
    }
}

/* ---- 1, 3, 8: which rows are emitted ---- */

/* All rows of class `emit`, by the beginning of their encoding: a new one wants a review, and its line here. */
static const char *const emitted[] = {
    "F6 /4", "F7 /4", "F6 /5", "F7 /5", "F7 /6", "F7 /7", "86 /r", "87 /r", "90+r", "98 o", "99 o", "VEX.LZ.F2.0F38.WIG F6 /r",
    "0F B0 /r", "0F B1 /r", "0F C0 /r", "0F C1 /r", "50+r d64", "58+r d64", "68 d64", "6A d64", "FF /6 d64", "8F /0 d64", "C9 d64",
    "E8 f64", "FF /2 f64", "C2 f64", "C3 f64", "E9 f64", "EB f64", "FF /4 f64", "7? f64", "E2 f64", "0F 8? f64",
    "0F 0D /", "0F 18 /", "0F 19 /r", "0F 1A /r", "0F 1B /r", "0F 1C /r", "0F 1D /r", "0F 1E /r", "0F 1F /r", "NP 0F 1C /0", "F3 0F 1E F",
    /* emit_sys.c: what they look at and what they do is to be read there */
    "9C !o16", "9D !o16", "FA", "FB", "FC", "FD", "NP 0F 01 CA", "NP 0F 01 CB", "0F 01 F8", "NP 0F 01 EE", "F3 0F AE /0", "F3 0F AE /1", "8C /r", "0F 20 /r",
    "NP 0F AE /5 mod=3", "NP 0F AE /6 mod=3", "NP 0F AE /7 mod=3", "0F C7 /1 mod!=3 W1", "0F A3 /r mod!=3", "0F AB /r mod!=3", "0F B3 /r mod!=3",
    "0F BB /r mod!=3", "A4", "A5", "AA", "AB",
    "D9 /5 mod!=3", "D9 /7 mod!=3", "DD /7 mod!=3", "DF E0", "9B", "VEX.L0.NP.0F.WIG 77", "VEX.L1.NP.0F.WIG 77",
};
static unsigned of_list[ARRAY_SIZE(emitted)];
static u8 *taken;

static unsigned in_list(const char *text)
{
    for (unsigned n = 0; n < ARRAY_SIZE(emitted); n++) {
        const char *p = emitted[n], *t = text;
        while (*p && (*p == *t || (*p == '?' && isxdigit((unsigned char)*t))))
            p++, t++;
        if (!*p)
            return n;
    }
    return ARRAY_SIZE(emitted);
}

static void look_at_row(struct vcpu *v, const struct insn *i, const u8 *bytes)
{
    const struct insn_row *row = insn_row(i);
    (void)bytes;
    if (!jit_native(v, i))
        return;
    taken[i->row] = 1;
    enum kind kind = kind_of(v->jit, v->code_mode == CODE_64, i);
    if (kind == K_SYSTEM || kind == K_STRING) {
        if (row->jit != JIT_EMIT || row->checks & CHK_END || (i->flags & INSN_OWN_FN))
            fail_msg("%s is not called", encoding(row));
        return;
    }
    const u32 known = CHK_LOCK | CHK_ONLY64 | CHK_NO64 | CHK_X87 | CHK_X87_NOWAIT | CHK_FWAIT | CHK_SSE | CHK_AVX | CHK_ALIGN16 | CHK_ALIGN_MM;
    bool branch = row->jit == JIT_EMIT && strstr(row->encoding, " f64");
    if (row->jit == JIT_CALL || row->intercept || row->vex == 2 || row->checks & ~(known | (branch ? (u32)CHK_END : 0)) ||
        (row->flags_written | row->flags_read | row->flags_undefined) & ~(u32)FL_ARITH || (i->flags & (INSN_VSIB | INSN_OWN_FN)))
        fail_msg("%s is not called", encoding(row));
    if (v->code_mode != CODE_64 && row->checks & CHK_NO64 && !row->vex && !(row->map == 0 && (row->opcode & 0xf0) == 0x40))
        fail_msg("%s means something else on the host, and is not called", encoding(row));
    if (row->map == 1 && !row->vex && (row->opcode == 0xa3 || row->opcode == 0xab || row->opcode == 0xb3 || row->opcode == 0xbb) && i->flags & INSN_MEM)
        fail_msg("%s reaches memory at a distance, and is not called", encoding(row));
    unsigned places = 0;
    for (unsigned n = 0; n < row->nopnd; n++) {
        unsigned k = row->opnd[n].kind;
        if (row->jit == JIT_COPY && (k == OPND_SEG_REG || k == OPND_SEG_FIXED || k == OPND_CR || k == OPND_DR || k == OPND_FARPTR || k == OPND_STR_SRC ||
                                     k == OPND_STR_DST || k == OPND_VSIB || k == OPND_MASK_REG || k == OPND_MASK_RM || k == OPND_MASK_VVVV || k == OPND_REL))
            fail_msg("%s has an operand that copies must not have", encoding(row));
        bool memory = (i->flags & INSN_MEM) && (k == OPND_MEM || k == OPND_GPR_RM || k == OPND_VEC_RM || k == OPND_MMX_RM);
        places += memory;
        if (memory && row->opcode != 0x8d && kind_of(v->jit, v->code_mode == CODE_64, i) == K_COPY && (!operand_bytes(i, n) || operand_bytes(i, n) > 32))
            fail_msg("%s accesses %u bytes", encoding(row), operand_bytes(i, n));
    }
    if (places > 1)
        fail_msg("%s has more than one operand in memory", encoding(row));
}

static void test_rows(void **state)
{
    (void)state;
    unsigned copies = 0, own = 0, known = 0;
    taken = calloc(insn_row_count, 1);
    every_row(look_at_row);
    for (unsigned r = 1; r < insn_row_count; r++) {
        copies += taken[r] && insn_rows[r].jit == JIT_COPY;
        own += taken[r] && insn_rows[r].jit == JIT_EMIT;
        if (insn_rows[r].jit != JIT_EMIT)
            continue;
        unsigned n = in_list(insn_rows[r].encoding);
        if (n == ARRAY_SIZE(emitted))
            fail_msg("%s is of class emit, and not in this test's list", encoding(&insn_rows[r]));
        of_list[n]++;
    }
    for (unsigned n = 0; n < ARRAY_SIZE(emitted); n++) {
        known += of_list[n];
        if (!of_list[n])
            fail_msg("no row of class emit is %s", emitted[n]);
    }
    print_message("%u rows; copied are %u, %u of the %u of class emit have code of their own here\n", insn_row_count - 1, copies, own, known);
    assert_true(copies > 400 && own > 60);
    free(taken);
}

/* ---- 2: the host must have the instruction ---- */

static unsigned feature;
static unsigned lost;

static void look_without(struct vcpu *v, const struct insn *i, const u8 *bytes)
{
    const struct insn_row *row = insn_row(i);
    (void)bytes;
    if (row->feature != feature && row->feature2 != feature)
        return;
    lost++;
    if (jit_native(v, i))
        fail_msg("%s is not called although the host lacks its feature", encoding(row));
}

static void test_host_features(void **state)
{
    (void)state;
    struct jit *j = twins.b.v->jit;
    unsigned features = 0;
    for (unsigned f = 0; f < FEAT_COUNT; f++) {
        bool rows = false;
        for (unsigned r = 1; r < insn_row_count; r++)
            rows |= f != FEAT_NONE && (insn_rows[r].feature == f || insn_rows[r].feature2 == f) && insn_rows[r].vex != 2;
        if (!rows)
            continue;
        bool had = j->host_has[f];
        j->host_has[f] = false;
        feature = f;
        every_row(look_without);
        j->host_has[f] = had;
        features++;
    }
    print_message("%u features, %u encodings\n", features, lost);
    assert_true(features > 20 && lost > 10000);
}

/* ---- 4, 5, 6: what the check of emitted code refuses ---- */

static void test_refused(void **state)
{
    (void)state;
    static const struct { const char *what; u8 code[12]; } bad[] = {
        {"syscall", {0x0f, 0x05}}, {"sysenter", {0x0f, 0x34}}, {"int 0x80", {0xcd, 0x80}}, {"int3", {0xcc}}, {"hlt", {0xf4}}, {"cli", {0xfa}},
        {"std", {0xfd}}, {"in al, dx", {0xec}}, {"out dx, al", {0xee}}, {"wrmsr", {0x0f, 0x30}}, {"rdmsr", {0x0f, 0x32}}, {"cpuid", {0x0f, 0xa2}},
        {"rdtsc", {0x0f, 0x31}}, {"mov cr3, rax", {0x0f, 0x22, 0xd8}}, {"mov dr7, rax", {0x0f, 0x23, 0xf8}}, {"mov fs, eax", {0x8e, 0xe0}},
        {"mov eax, fs", {0x8c, 0xe0}}, {"lgdt [rax]", {0x0f, 0x01, 0x10}}, {"xsave [rcx]", {0x0f, 0xae, 0x21}}, {"xrstor [rcx]", {0x0f, 0xae, 0x29}},
        {"fxsave [rcx]", {0x0f, 0xae, 0x01}}, {"ldmxcsr [rcx]", {0x0f, 0xae, 0x11}}, {"wrfsbase rax", {0xf3, 0x48, 0x0f, 0xae, 0xd0}},
        {"rdgsbase rax", {0xf3, 0x48, 0x0f, 0xae, 0xc8}}, {"xsetbv", {0x0f, 0x01, 0xd1}}, {"wrpkru", {0x0f, 0x01, 0xef}}, {"swapgs", {0x0f, 0x01, 0xf8}},
        {"vmcall", {0x0f, 0x01, 0xc1}}, {"iretq", {0x48, 0xcf}}, {"ret", {0xc3}}, {"push rax", {0x50}}, {"pop rax", {0x58}}, {"leave", {0xc9}},
        {"pushfq", {0x9c}}, {"popfq", {0x9d}}, {"rep movsb", {0xf3, 0xa4}}, {"stosq", {0x48, 0xab}}, {"ud2", {0x0f, 0x0b}},
        {"mov rsp, rax", {0x48, 0x89, 0xc4}}, {"add rbp, rax", {0x48, 0x01, 0xc5}}, {"mov spl, al", {0x40, 0x88, 0xc4}},
        {"lea rsp, [rax]", {0x48, 0x8d, 0x20}}, {"mov eax, fs:[rcx]", {0x64, 0x8b, 0x01}}, {"mov eax, [ecx]", {0x67, 0x8b, 0x01}},
        {"mov eax, [rip + 0]", {0x8b, 0x05}}, {"mov rax, [rdx]", {0x48, 0x8b, 0x02}}, {"mov [r9 + r10], rax", {0x4b, 0x89, 0x04, 0x11}},
        {"mov eax, [rsp + 0x7fff]", {0x8b, 0x84, 0x24, 0xff, 0x7f}}, {"mov eax, [rsp + rcx]", {0x8b, 0x04, 0x0c}}, {"mov eax, [rsp - 8]", {0x8b, 0x44, 0x24, 0xf8}},
        {"mov eax, [rbp + rcx]", {0x8b, 0x44, 0x0d}}, {"mov eax, [rbp + 0x7fffffff]", {0x8b, 0x85, 0xff, 0xff, 0xff, 0x7f}},
        {"mov eax, [rcx + rbp]", {0x8b, 0x04, 0x29}}, {"jmp rdx", {0xff, 0xe2}}, {"jmp [rcx]", {0xff, 0x21}}, {"jmp [rsp + 8]", {0xff, 0x64, 0x24, 0x08}}, {"jmp [rax + 16]", {0xff, 0x60, 0x10}}, {"jmp [rax]", {0xff, 0x20}}, {"mov [rip + 0], rcx", {0x48, 0x89, 0x0d}}, {"call rdx", {0xff, 0xd2}},
        {"maskmovdqu xmm0, xmm1", {0x66, 0x0f, 0xf7, 0xc1}}, {"cmpxchg16b [rcx]", {0x48, 0x0f, 0xc7, 0x09}}, {"xlatb", {0xd7}}, {"clflush [rcx]", {0x0f, 0xae, 0x39}},
        {"rdrand eax", {0x0f, 0xc7, 0xf0}}, {"pcmpestri xmm0, xmm1, 0", {0x66, 0x0f, 0x3a, 0x61, 0xc1, 0}},
    }, good[] = {
        {"mov rax, [r9 + rcx + 8]", {0x49, 0x8b, 0x44, 0x09, 0x08}}, {"mov [rcx], r12", {0x4c, 0x89, 0x21}}, {"lea rcx, [r9 + r10]", {0x4b, 0x8d, 0x0c, 0x11}},
        {"cmp dword [rbp], 0", {0x83, 0x7d, 0, 0}}, {"sub qword [rsp], 4", {0x48, 0x83, 0x2c, 0x24, 4}}, {"lahf", {0x9f}}, {"jmp rax", {0xff, 0xe0}}, {"jmp [rax + 8]", {0xff, 0x60, 8}}, {"cmp rcx, [rip + 0]", {0x48, 0x3b, 0x0d}},
        {"lock add [rcx], edx", {0xf0, 0x01, 0x11}}, {"vmovups ymm1, [r9 + rcx]", {0xc4, 0xc1, 0x7c, 0x10, 0x0c, 0x09}}, {"mul rdx", {0x48, 0xf7, 0xe2}},
        {"movsd xmm0, [rcx]", {0xf2, 0x0f, 0x10, 0x01}}, {"cmpsd xmm0, [rcx], 0", {0xf2, 0x0f, 0xc2, 0x01, 0}}, {"fadd dword [rcx]", {0xd8, 0x01}},
    };
    csh h;
    assert_int_equal(cs_open(CS_ARCH_X86, CS_MODE_64, &h), 0);
    cs_option(h, CS_OPT_DETAIL, CS_OPT_ON);
    for (unsigned n = 0; n < ARRAY_SIZE(bad) + ARRAY_SIZE(good); n++) {
        bool right = n >= ARRAY_SIZE(bad);
        const char *text = right ? good[n - ARRAY_SIZE(bad)].what : bad[n].what;
        cs_insn *i;
        if (cs_disasm(h, right ? good[n - ARRAY_SIZE(bad)].code : bad[n].code, 12, 0x1000, 1, &i) != 1) {
            assert_false(right); /* an older Capstone: unknown is refused, too */
            continue;
        }
        const char *what = code_complaint(h, i);
        if (right ? !!what : !what)
            fail_msg("%s (%s %s): %s", text, i->mnemonic, i->op_str, what ? what : "nobody minds");
        cs_free(i, 1);
    }
    cs_close(&h);
}

/* ---- 7: no page is writable and executable ---- */

static void write_to(void *p) { *(volatile u8 *)p = 0xc3; }
static void run_at(void *p) { ((void (*)(void))(uintptr_t)p)(); }

static void test_pages(void **state)
{
    (void)state;
    struct jit *j = twins.b.v->jit;
    FILE *f = fopen("/proc/self/maps", "r");
    char line[512];
    unsigned arena = 0;
    assert_non_null(f);
    while (fgets(line, sizeof(line), f)) {
        char *rights = strchr(line, ' ') + 1;
        if (rights[1] == 'w' && rights[2] == 'x')
            fail_msg("writable and executable: %s", line);
        u64 from = strtoull(line, NULL, 16), to = strtoull(strchr(line, '-') + 1, NULL, 16);
        for (unsigned n = 0; n < 2; n++) {
            u64 at = (u64)(uintptr_t)(n ? j->rx : j->rw);
            if (at + j->size <= from || at >= to)
                continue;
            arena++;
            assert_int_equal(rights[1], n ? '-' : 'w');
            assert_int_equal(rights[2], n ? 'x' : '-');
        }
    }
    fclose(f);
    assert_true(arena >= 2);

    /* And that the rights are what the kernel says. */
    u8 *free_room = j->rw + j->size - 64;
    assert_true(faults(write_to, j->rx));
    assert_false(faults(write_to, free_room));
    assert_true(faults(run_at, free_room));
    assert_false(faults(run_at, j->rx + (free_room - j->rw)));
}

/* ---- 8: encodings that mean something else on the host ---- */

static void test_encodings_32(void **state)
{
    (void)state;
    static const u8 code[] = {
        0x40, 0x41, 0x42, 0x43, 0x45, 0x46, 0x47, 0x48, 0x4a, 0x4b, 0x4d, 0x4e, 0x4f, /* INC, DEC: prefixes in 64-bit code */
        0x66, 0x40, 0x66, 0x4f,
        0x82, 0xc0, 0x11, 0x82, 0xca, 0x12, 0x82, 0xd3, 0x13, 0x82, 0xdc, 0x14, 0x82, 0xe5, 0xf5, 0x82, 0xee, 0x16, 0x82, 0xf7, 0x17, 0x82, 0xf8, 0x18,
        0x37, 0x3f, 0x27, 0x2f, 0xd4, 0x0a, 0xd5, 0x0a, /* AAA, AAS, DAA, DAS, AAM, AAD */
        0x60, 0x61, 0x63, 0xc0,                         /* PUSHA, POPA, ARPL */
        0x06, 0x07, 0x1e, 0x1f, 0xc4, 0x1d, 0x00, 0x00, 0x02, 0x00, /* PUSH ES, POP ES..., LES (a null selector or a fault) */
        0x8d, 0x04, 0x25, 0x78, 0x56, 0x34, 0x12,       /* LEA with SIB and no base */
        0xa0, 0x00, 0x00, 0x02, 0x00, 0xa3, 0x10, 0x00, 0x02, 0x00, /* MOFFS of 32 bits */
        0xf4,
    };
    for (unsigned world = 0; world < 2; world++)
        for (u64 seed = 1; seed < 30; seed++) {
            twins_load(&twins, world ? TWIN_LEGACY : TWIN_LONG, SEL_CODE32, code, sizeof(code), TWIN_CODE, seed);
            for (unsigned n = 0; n < 8; n++)
                twins_run(&twins, 12);
            assert_true(code_check(twins.b.v, NULL) > 50);
        }
}

/* ---- 9: bounds: blocks that make more code than a buffer holds ---- */

static void test_large_code(void **state)
{
    (void)state;
    static u8 code[TWIN_CODE_SIZE];
    struct { const char *what; u8 bytes[12]; unsigned n; } large[] = {
        {"fadd through GS, every one with another base", {0x65, 0x42, 0xdc, 0x84, 0x95, 0, 0x10, 0, 0}, 9}, /* fadd qword gs:[rbp + r10 * 4 + 0x1000] */
        {"a locked add", {0xf0, 0x4e, 0x01, 0x94, 0x95, 0, 0x10, 0, 0}, 9},
        {"idiv", {0x4a, 0xf7, 0xbc, 0x95, 0, 0x10, 0, 0}, 8},
        {"push of memory", {0x42, 0xff, 0xb4, 0x95, 0, 0x10, 0, 0}, 8},
    };
    for (unsigned k = 0; k < ARRAY_SIZE(large); k++) {
        unsigned at = 0;
        memcpy(code, (const u8[]){0x45, 0x31, 0xd2}, 3); /* xor r10d, r10d */
        for (at = 3; at + large[k].n < 4096 - 16; at += large[k].n)
            memcpy(code + at, large[k].bytes, large[k].n);
        code[at] = 0xf4;
        twins_load(&twins, TWIN_LONG, SEL_CODE64, code, sizeof(code), TWIN_CODE, 77 + k);
        for (unsigned n = 0; n < 12; n++)
            twins_run(&twins, 100);
        code_check(twins.b.v, NULL);
    }
    struct jit *j = twins.b.v->jit;
    print_message("%llu translations, %llu bytes\n", (unsigned long long)j->stats.translated, (unsigned long long)j->stats.bytes);
    assert_true(j->stats.translated > 20);

    /* A buffer of any size: what does not fit is not written, and said. */
    struct vcpu *v = twins.b.v;
    static u8 hot[65536], cold[65536];
    struct block *b = NULL;
    for (unsigned n = 0; n < 1u << BLOCK_HASH_BITS && !b; n++)
        for (b = v->interp->hash[n]; b && (!b->code || b->n < 20); b = b->hash_next)
            ;
    assert_non_null(b);
    v->code_mode = CODE_64;
    unsigned full = 0, fits = 0;
    for (unsigned size = 0; size < 40000; size += 1 + size / 16) {
        struct block_links links = {.n = b->n, .head = b};
        struct translation_request q = {.v = v, .j = j, .b = b, .head = b, .count = b->n};
        struct code_buf h = {hot, hot + size, false}, c = {cold, cold + size, false};
        memset(hot, 0x5a, sizeof(hot));
        memset(cold, 0x5a, sizeof(cold));
        *(translate(&q, &h, &c, &links) ? &fits : &full) += 1;
        for (unsigned at = size; at < sizeof(hot); at++)
            if (hot[at] != 0x5a || cold[at] != 0x5a)
                fail_msg("with room for %u bytes, the one at %u was written", size, at);
        links_release(j, &links);
    }
    print_message("%u buffers were too small, %u large enough\n", full, fits);
    assert_true(full > 20 && fits > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rows, setup, teardown),
        cmocka_unit_test_setup_teardown(test_host_features, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pages, setup, teardown),
        cmocka_unit_test_setup_teardown(test_encodings_32, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_code, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
