/*
 * Operands in memory where an instruction has more to do than one access: masks and vector indices, bit
 * strings, locked operations across cache lines, alignment checks, x87 environments, repeated strings at the
 * ends of segments. A fault leaves what the manual says has been done, and nothing else.
 */
#include "protected_guest.h"

#define DATA 0x9000u
#define ABSENT_PAGE 0x200000u /* in long mode; what lies below it is the last page that is there */
#define EDGE (ABSENT_PAGE - 0x1000u)
#define REG(r) (g->v->gpr[r])

/* Puts @code at CODE, a HLT behind it, and runs that. */
static void go(struct guest *g, const char *code, size_t n)
{
    poke(g, CODE, code, n);
    put(g, CODE + n, 0xf4, 1);
    g->v->rip = CODE;
    g->v->activity = ACTIVITY_ACTIVE;
    assert_int_equal(run(g, 20000), RUN_HALTED);
}
static void check_end(struct guest *g, u64 end, int line)
{
    if (g->v->rip != end)
        fail_msg("line %d: ended at %llx (vector %lld)", line, (unsigned long long)g->v->rip, ((long long)g->v->rip - HANDLER(0)) / 16);
}
#define RUNS(g, code) (REG(RSP) = STACK, go(g, code, sizeof(code) - 1), check_end(g, CODE + sizeof(code), __LINE__))
#define FAULTS(g, vector, code) (REG(RSP) = STACK, go(g, code, sizeof(code) - 1), check_end(g, HANDLER(vector) + 1, __LINE__))

/* 64-bit mode with SSE and AVX; ABSENT_PAGE is not there. */
static void with_vectors(struct guest *g)
{
    struct vcpu *v = g->v;
    to_long(g);
    put(g, PML4 + 0x2008, 0, 8);
    v->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    v->xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
    cpu_mode_changed(v);
    cpu_simd_changed(v);
}

static void fill(struct guest *g, pa_t at, u32 first)
{
    for (unsigned n = 0; n < 8; n++)
        put(g, at + 4 * n, first + n, 4);
}

static void masked_moves(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    with_vectors(g);
    if (!cpu_has(v, FEAT_AVX2))
        skip();
    /* Eight bytes, of which the mask names the first, the third and the last. */
    put(g, DATA, 0x8877665544332211, 8);
    put(g, DATA + 8, 0x8000000000800080, 8);
    put(g, DATA + 16, 0xeeeeeeeeeeeeeeee, 8);
    put(g, DATA + 24, 0xeeeeeeeeeeeeeeee, 8);
    RUNS(g, "\xbf\x10\x90\x00\x00\x0f\x6f\x04\x25\x00\x90\x00\x00\x0f\x6f\x0c\x25\x08\x90\x00\x00\x0f\xf7\xc1\x0f"
         "\x77" /* mov edi, 0x9010; movq mm0, [0x9000]; movq mm1, [0x9008]; maskmovq mm0, mm1; emms */);
    assert_int_equal(get(g, DATA + 16, 8), 0x88eeeeeeee33ee11);
    assert_int_equal(v->x87.ftw, 0);
    RUNS(g, "\xbf\x18\x90\x00\x00\xf3\x0f\x7e\x04\x25\x00\x90\x00\x00\xf3\x0f\x7e\x0c\x25\x08\x90\x00\x00\x66\x0f"
         "\xf7\xc1" /* mov edi, 0x9018; movq xmm0, [0x9000]; movq xmm1, [0x9008]; maskmovdqu xmm0, xmm1 */);
    assert_int_equal(get(g, DATA + 24, 8), 0x88eeeeeeee33ee11);

    /* VMASKMOV and VPMASKMOV: what the mask leaves out may lie where nothing is. */
    fill(g, EDGE + 0xff0, 100);
    fill(g, DATA + 64, 500);
    for (unsigned n = 0; n < 8; n++)
        put(g, DATA + 32 + 4 * n, n < 4 && n != 1 ? 0x80000000 : 0x7fffffff, 4);
    RUNS(g, "\xc5\xfc\x10\x0c\x25\x20\x90\x00\x00\xbe\xf0\xff\x1f\x00\xc4\xe2\x75\x2c\x16\xc4\xe2\x75\x8c\x1e\xc5"
         "\xfc\x10\x24\x25\x40\x90\x00\x00\xc4\xe2\x75\x8e\x26" /* vmovups ymm1, [0x9020]; mov esi, 0x1ffff0; vmaskmovps ymm2, ymm1, [rsi]; vpmaskmovd ymm3, ymm1, [rsi]; vmovups ymm4, [0x9040]; vpmaskmovd [rsi], ymm1, ymm4 */);
    static const u32 loaded[8] = {100, 0, 102, 103};
    assert_memory_equal(v->vec[2].b, loaded, 32);
    assert_memory_equal(v->vec[3].b, loaded, 32);
    assert_int_equal(get(g, EDGE + 0xff0, 8), 101ull << 32 | 500);
    assert_int_equal(get(g, EDGE + 0xff8, 8), 503ull << 32 | 502);
    /* One element too many: nothing is stored, nothing is loaded. */
    put(g, DATA + 32 + 16, 0x80000000, 4);
    FAULTS(g, VEC_PF, "\xc5\xfc\x10\x0c\x25\x20\x90\x00\x00\xbe\xf0\xff\x1f\x00\xc5\xfc\x10\x24\x25\x20\x90\x00\x00\xc4\xe2"
         "\x75\x2e\x26" /* vmovups ymm1, [0x9020]; mov esi, 0x1ffff0; vmovups ymm4, [0x9020]; vmaskmovps [rsi], ymm1, ymm4 */);
    assert_int_equal(v->cr2, ABSENT_PAGE);
    assert_int_equal(get(g, EDGE + 0xff0, 8), 101ull << 32 | 500);
    FAULTS(g, VEC_PF, "\xc5\xfc\x10\x14\x25\x40\x90\x00\x00\xc4\xe2\x75\x2c\x16" /* vmovups ymm2, [0x9040]; vmaskmovps ymm2, ymm1, [rsi] */);
    assert_int_equal(v->vec[2].d[0], 500);
    /* Quadwords. */
    RUNS(g, "\xc5\xfc\x10\x0c\x25\x20\x90\x00\x00\xbe\x40\x90\x00\x00\xc4\xe2\x75\x2d\x16\xc4\xe2\xf1\x8c\x1e\xc4"
         "\xe2\x75\x2f\x14\x25\x80\x90\x00\x00\xc4\xe2\xf5\x8e\x14\x25\xa0\x90\x00\x00\xc4\xe2\x71\x2e\x14\x25"
         "\xc0\x90\x00\x00" /* vmovups ymm1, [0x9020]; mov esi, 0x9040; vmaskmovpd ymm2, ymm1, [rsi]; vpmaskmovq xmm3, xmm1, [rsi]; vmaskmovpd [0x9080], ymm1, ymm2; vpmaskmovq [0x90a0], ymm1, ymm2; vmaskmovps [0x90c0], xmm1, xmm2 */);
    assert_int_equal(v->vec[2].q[0], 0);
    assert_int_equal(v->vec[2].q[1], 503ull << 32 | 502);
    assert_int_equal(v->vec[3].q[1], 503ull << 32 | 502);
    assert_int_equal(v->vec[3].q[2], 0);
    assert_int_equal(get(g, DATA + 0x88, 8), 503ull << 32 | 502);
    assert_int_equal(get(g, DATA + 0xa8, 8), 503ull << 32 | 502);
    assert_int_equal(get(g, DATA + 0xc8, 8), 503ull << 32 | 502);
}

static void gathers(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    with_vectors(g);
    if (!cpu_has(v, FEAT_AVX2))
        skip();
    for (unsigned n = 0; n < 64; n++)
        put(g, DATA + 0x100 + 4 * n, 1000 + n, 4);
    for (unsigned n = 0; n < 8; n++) {
        put(g, DATA + 4 * n, n * n, 4);             /* indices */
        put(g, DATA + 32 + 4 * n, 0xffffffff, 4);   /* masks */
    }
    put(g, DATA + 32 + 4 * 5, 0, 4);
    RUNS(g, "\xbb\x00\x91\x00\x00\xc5\xfc\x10\x04\x25\x00\x90\x00\x00\xc5\xfc\x10\x0c\x25\x20\x90\x00\x00\xc5\xed"
         "\xef\xd2\xc4\xe2\x75\x90\x14\x83\xc5\xfc\x10\x0c\x25\x20\x90\x00\x00\xc5\xe5\xef\xdb\xc4\xe2\x75\x92"
         "\x1c\x83" /* mov ebx, 0x9100; vmovups ymm0, [0x9000]; vmovups ymm1, [0x9020]; vpxor ymm2, ymm2, ymm2; vpgatherdd ymm2, [rbx+ymm0*4], ymm1; vmovups ymm1, [0x9020]; vpxor ymm3, ymm3, ymm3; vgatherdps ymm3, [rbx+ymm0*4], ymm1 */);
    for (unsigned n = 0; n < 8; n++)
        assert_int_equal(v->vec[2].d[n], n == 5 ? 0 : 1000 + n * n);
    assert_memory_equal(&v->vec[2], &v->vec[3], 32);
    assert_int_equal(v->vec[1].q[0] | v->vec[1].q[1] | v->vec[1].q[2] | v->vec[1].q[3], 0);
    RUNS(g, "\xbb\x00\x91\x00\x00\xc5\xfc\x10\x04\x25\x00\x90\x00\x00\xc5\xf5\x76\xc9\xc4\xe2\xf5\x90\x14\x83\xc5"
         "\xf5\x76\xc9\xc4\xe2\xf5\x92\x1c\x83" /* mov ebx, 0x9100; vmovups ymm0, [0x9000]; vpcmpeqd ymm1, ymm1, ymm1; vpgatherdq ymm2, [rbx+xmm0*4], ymm1; vpcmpeqd ymm1, ymm1, ymm1; vgatherdpd ymm3, [rbx+xmm0*4], ymm1 */);
    assert_int_equal(v->vec[2].q[3], 1010ull << 32 | 1009);
    assert_memory_equal(&v->vec[2], &v->vec[3], 32);
    put(g, DATA, 3, 8), put(g, DATA + 8, (u64)-1, 8), put(g, DATA + 16, 7, 8), put(g, DATA + 24, 0, 8);
    RUNS(g, "\xbb\x04\x91\x00\x00\xc5\xfc\x10\x04\x25\x00\x90\x00\x00\xc5\xf5\x76\xc9\xc4\xe2\xf5\x91\x14\x83\xc5"
         "\xf5\x76\xc9\x67\xc4\xe2\xf5\x93\x1c\x83\xc5\xf5\x76\xc9\xc4\xe2\x75\x91\x24\x83\xc5\xf5\x76\xc9\xc4"
         "\xe2\x75\x93\x2c\x83" /* mov ebx, 0x9104; vmovups ymm0, [0x9000]; vpcmpeqd ymm1, ymm1, ymm1; vpgatherqq ymm2, [rbx+ymm0*4], ymm1; vpcmpeqd ymm1, ymm1, ymm1; vgatherqpd ymm3, [ebx+ymm0*4], ymm1; vpcmpeqd ymm1, ymm1, ymm1; vpgatherqd xmm4, [rbx+ymm0*4], xmm1; vpcmpeqd ymm1, ymm1, ymm1; vgatherqps xmm5, [rbx+ymm0*4], xmm1 */);
    assert_int_equal(v->vec[2].q[0], 1005ull << 32 | 1004);
    assert_int_equal(v->vec[2].q[1], 1001ull << 32 | 1000);
    assert_memory_equal(&v->vec[2], &v->vec[3], 32);
    assert_int_equal(v->vec[4].d[2], 1008);
    assert_int_equal(v->vec[4].d[3], 1001);
    assert_int_equal(v->vec[4].q[2] | v->vec[4].q[3], 0);
    assert_memory_equal(&v->vec[4], &v->vec[5], 32);
    /* A fault at the third element: two are done and their masks are clear, so that a restart goes on there. */
    put(g, DATA, 0, 4), put(g, DATA + 4, 1, 4), put(g, DATA + 8, 4, 4), put(g, DATA + 12, 2, 4);
    fill(g, EDGE + 0xff0, 100);
    FAULTS(g, VEC_PF, "\xbb\xf0\xff\x1f\x00\xc5\xf8\x10\x04\x25\x00\x90\x00\x00\xc5\xf1\x76\xc9\xc5\xe9\xef\xd2\xc4\xe2\x71"
         "\x90\x14\x83" /* mov ebx, 0x1ffff0; vmovups xmm0, [0x9000]; vpcmpeqd xmm1, xmm1, xmm1; vpxor xmm2, xmm2, xmm2; vpgatherdd xmm2, [rbx+xmm0*4], xmm1 */);
    assert_int_equal(v->cr2, ABSENT_PAGE);
    assert_int_equal(v->vec[2].q[0], 101ull << 32 | 100);
    assert_int_equal(v->vec[2].q[1], 0);
    assert_int_equal(v->vec[1].q[0], 0);
    assert_int_equal(v->vec[1].q[1], ~0ull);
    FAULTS(g, VEC_UD, "\xc4\xe2\x71\x90\x14\x93" /* vpgatherdd xmm2, [rbx+xmm2*4], xmm1 */);
}

static void alignment(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    with_vectors(g);
    put(g, TSS + 4, STACK0, 8);
    set_segment(v, SEG_TR, TSS64_SEL, get(g, GDT + TSS64_SEL, 8));
    v->cr0 |= CR0_AM;
    static const struct { const char *what; u8 n, code[12]; bool faults; } rows[] = {
        {"mov eax, [rbx+4]", 3, {0x8b, 0x43, 0x04}, false},
        {"mov eax, [rbx+2]", 3, {0x8b, 0x43, 0x02}, true},
        {"mov rax, [rbx+4]", 4, {0x48, 0x8b, 0x43, 0x04}, true},
        {"add word [rbx+1], 1", 5, {0x66, 0x83, 0x43, 0x01, 0x01}, true},
        {"movups xmm0, [rbx+16]", 4, {0x0f, 0x10, 0x43, 0x10}, false},
        {"movups xmm0, [rbx+8]", 4, {0x0f, 0x10, 0x43, 0x08}, true},
        {"movups [rbx+8], xmm0", 4, {0x0f, 0x11, 0x43, 0x08}, true},
        {"vmovups ymm0, [rbx+16]", 5, {0xc5, 0xfc, 0x10, 0x43, 0x10}, false},
        {"vmovups ymm0, [rbx+8]", 5, {0xc5, 0xfc, 0x10, 0x43, 0x08}, true},
        {"movaps xmm0, [rbx+16]", 4, {0x0f, 0x28, 0x43, 0x10}, false},
        {"fld tword [rbx+8]", 3, {0xdb, 0x6b, 0x08}, false},
        {"fld tword [rbx+4]", 3, {0xdb, 0x6b, 0x04}, true},
        {"fnstenv [rbx+4]", 3, {0xd9, 0x73, 0x04}, false},
        {"fnstenv [rbx+2]", 3, {0xd9, 0x73, 0x02}, true},
        {"o16 fnstenv [rbx+2]", 4, {0x66, 0xd9, 0x73, 0x02}, false},
        {"vmaskmovps xmm2, xmm1, [rbx+1]", 6, {0xc4, 0xe2, 0x71, 0x2c, 0x53, 0x01}, false},
        {"push rax", 1, {0x50}, false},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        to_ring3(g);
        REG(RBX) = DATA;
        REG(RSP) = USER_STACK;
        cpu_put_rflags(v, FL_FIXED | FL_AC);
        cpu_flags_changed(v);
        poke(g, CODE, rows[n].code, rows[n].n);
        CODE_AT(g, CODE + rows[n].n, 0x0f, 0x0b);
        v->rip = CODE;
        v->activity = ACTIVITY_ACTIVE;
        v->x87.ftw = 0;
        assert_int_equal(run(g, 100), RUN_HALTED);
        unsigned vector = (unsigned)((v->rip - HANDLER(0)) / 16);
        if (vector != (rows[n].faults ? VEC_AC : VEC_UD))
            fail_msg("%s: vector %u", rows[n].what, vector);
        if (rows[n].faults)
            assert_int_equal(get(g, REG(RSP), 8), 0); /* the error code */
    }
}

static void bit_strings(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    memset(v->gpr, 0, sizeof(v->gpr));
    put(g, DATA, 0, 8);
    /* The register reaches beyond the operand, forwards and backwards. */
    RUNS(g, "\xb8\x23\x00\x00\x00\x0f\xab\x05\x00\x90\x00\x00\x0f\x92\xc3\x0f\xab\x05\x00\x90\x00\x00\x0f\x92\xc7"
         "\xb9\xe3\xff\xff\xff\xf0\x0f\xbb\x0d\x08\x90\x00\x00\x0f\x92\xc2\x0f\xa3\x05\x00\x90\x00\x00\x0f\x92"
         "\xc6" /* mov eax, 35; bts [0x9000], eax; setc bl; bts [0x9000], eax; setc bh; mov ecx, -29; lock btc [0x9008], ecx; setc dl; bt [0x9000], eax; setc dh */);
    assert_int_equal(get(g, DATA, 8), 0);
    assert_int_equal(REG(RBX), 0x100);
    assert_int_equal(REG(RDX), 0x0001);
    RUNS(g, "\xb8\x03\x00\x00\x00\xf0\x0f\xab\x05\x00\x90\x00\x00\xf0\x0f\xb3\x05\x00\x90\x00\x00\x0f\x92\xc3\xf0"
         "\x66\x0f\xba\x2d\x00\x90\x00\x00\x14\x66\xb9\xff\xff\xf0\x66\x0f\xbb\x0d\x02\x90\x00\x00\x66\x0f\xb3"
         "\x0d\x02\x90\x00\x00\x0f\x92\xc7\x66\x0f\xa3\x05\x00\x90\x00\x00\x0f\x92\xc2" /* mov eax, 3; lock bts [0x9000], eax; lock btr [0x9000], eax; setc bl; lock bts word [0x9000], 20; mov cx, -1; lock btc [0x9002], cx; btr [0x9002], cx; setc bh; bt [0x9000], ax; setc dl */);
    assert_int_equal(REG(RBX), 0x101);
    assert_int_equal(get(g, DATA, 4), 0x10);
    assert_int_equal(REG(RDX) & 0xff, 0);
    /* Across a cache line, and across a page: locked all the same. */
    put(g, DATA + 0x3d, 0xffffffff, 8);
    put(g, DATA + 0xffd, 0x00ffffff, 8);
    RUNS(g, "\xf0\xff\x05\x3d\x90\x00\x00\xb8\x01\x00\x00\x00\xf0\x0f\xc1\x05\xfd\x9f\x00\x00\xf0\x0f\xba\x3d\xfd"
         "\x9f\x00\x00\x1f\xb9\x05\x00\x00\x00\x87\x0d\x3e\x90\x00\x00\xf0\x0f\xb1\x15\xff\x9f\x00\x00" /* lock inc dword [0x903d]; mov eax, 1; lock xadd [0x9ffd], eax; lock btc dword [0x9ffd], 31; mov ecx, 5; xchg [0x903e], ecx; lock cmpxchg [0x9fff], edx */);
    assert_int_equal(get(g, DATA + 0x3d, 8), 0x0000000000000500);
    assert_int_equal(get(g, DATA + 0xffd, 4), 0x81000000);
    assert_int_equal(REG(RCX), 0);
    /* No LOCK on BT, nor on registers. */
    FAULTS(g, VEC_UD, "\xf0\x0f\xa3\x05\x00\x90\x00\x00" /* db 0xf0; bt [0x9000], eax */);
    FAULTS(g, VEC_UD, "\xf0\x0f\xab\xc1" /* db 0xf0; bts ecx, eax */);
    FAULTS(g, VEC_UD, "\xf0\xa3\x00\x90\x00\x00" /* db 0xf0; mov [0x9000], eax */);
}

static void strings(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    for (unsigned n = 0; n < 64; n++)
        put(g, DATA + n, n + 1, 1);
    /* Overlapping by less than an element, and by more. */
    RUNS(g, "\xbe\x00\x90\x00\x00\xbf\x02\x90\x00\x00\xb9\x04\x00\x00\x00\xf3\xa5" /* mov esi, 0x9000; mov edi, 0x9002; mov ecx, 4; rep movsd */);
    static const u8 over[] = {1, 2, 1, 2, 3, 4, 3, 4, 7, 8, 7, 8, 11, 12, 11, 12, 15, 16, 19};
    for (unsigned n = 0; n < ARRAY_SIZE(over); n++)
        if (get(g, DATA + n, 1) != over[n])
            fail_msg("byte %u is %u, expected %u", n, (unsigned)get(g, DATA + n, 1), over[n]);
    RUNS(g, "\xbe\x00\x90\x00\x00\xbf\x03\x90\x00\x00\xb9\x14\x00\x00\x00\xf3\xa4" /* mov esi, 0x9000; mov edi, 0x9003; mov ecx, 20; rep movsb */);
    for (unsigned n = 0; n < 23; n++)
        assert_int_equal(get(g, DATA + n, 1), over[n % 3]);
    /* SCAS and CMPS of each size: where they stop, and the flags. */
    put(g, DATA + 0x100, 0x1111111111111111, 8), put(g, DATA + 0x108, 0x1111111111111111, 8);
    put(g, DATA + 0x110, 0x2222222222221111, 8), put(g, DATA + 0x200, 0x1111111111111111, 8);
    put(g, DATA + 0x208, 0x1111111111111111, 8), put(g, DATA + 0x210, 0x2222222233331111, 8);
    RUNS(g, "\xbf\x00\x91\x00\x00\xb8\x11\x11\x11\x11\xb9\x64\x00\x00\x00\xf3\x66\xaf\x89\xfb\xbf\x00\x91\x00\x00"
         "\xb9\x64\x00\x00\x00\xf3\xaf\x89\xfa\xbe\x00\x91\x00\x00\xbf\x00\x92\x00\x00\xb9\x64\x00\x00\x00\xf3"
         "\x66\xa7\x0f\x92\xc0\x89\xfd" /* mov edi, 0x9100; mov eax, 0x11111111; mov ecx, 100; repe scasw; mov ebx, edi; mov edi, 0x9100; mov ecx, 100; repe scasd; mov edx, edi; mov esi, 0x9100; mov edi, 0x9200; mov ecx, 100; repe cmpsw; setb al; mov ebp, edi */);
    assert_int_equal(REG(RBX), DATA + 0x114);
    assert_int_equal(REG(RDX), DATA + 0x114);
    assert_int_equal(REG(RBP), DATA + 0x214);
    assert_int_equal(REG(RAX) & 0xff, 1);
    RUNS(g, "\xbf\x00\x91\x00\x00\xb8\x22\x22\x22\x22\xb9\x64\x00\x00\x00\xf2\xaf\x89\xcb\xbe\x00\x91\x00\x00\xbf"
         "\x00\x92\x00\x00\xb9\x64\x00\x00\x00\xf3\xa7\x89\xca\xfd\xbe\x10\x91\x00\x00\xbf\x10\x92\x00\x00\xb9"
         "\x03\x00\x00\x00\xf2\xa7\xfc" /* mov edi, 0x9100; mov eax, 0x22222222; mov ecx, 100; repne scasd; mov ebx, ecx; mov esi, 0x9100; mov edi, 0x9200; mov ecx, 100; repe cmpsd; mov edx, ecx; std; mov esi, 0x9110; mov edi, 0x9210; mov ecx, 3; repne cmpsd; cld */);
    assert_int_equal(REG(RBX), 94);
    assert_int_equal(REG(RDX), 95);
    assert_int_equal(REG(RCX), 1);
    assert_int_equal(REG(RSI), DATA + 0x108);
    /* To the end of a segment: what fits is copied, the rest faults, and the registers say how far it got. */
    set_segment(v, SEG_ES, 8, descriptor(DATA + 0x400, 0x1d, 0x4093));
    cpu_segments_changed(v);
    put(g, DATA + 0x418, 0, 8);
    FAULTS(g, VEC_GP, "\xbe\x00\x90\x00\x00\x31\xff\xb9\x10\x00\x00\x00\xf3\xa5" /* mov esi, 0x9000; xor edi, edi; mov ecx, 16; rep movsd */);
    assert_int_equal(REG(RDI), 0x1c);
    assert_int_equal(REG(RCX), 9);
    assert_int_equal(REG(RSI), DATA + 0x1c);
    assert_int_equal(get(g, DATA + 0x41c, 4), 0);
    FAULTS(g, VEC_GP, "\xbf\x1e\x00\x00\x00\xb9\x01\x00\x00\x00\xf3\xaa" /* mov edi, 0x1e; mov ecx, 1; rep stosb */);
    assert_int_equal(REG(RCX), 1);
    /* An expand-down segment goes element by element. */
    set_segment(v, SEG_ES, 8, descriptor(0, 0x93ff, 0x4097));
    cpu_segments_changed(v);
    RUNS(g, "\xbf\x00\x94\x00\x00\xb8\x77\x00\x00\x00\xb9\x03\x00\x00\x00\xf3\xab" /* mov edi, 0x9400; mov eax, 0x77; mov ecx, 3; rep stosd */);
    assert_int_equal(get(g, DATA + 0x408, 4), 0x77);
    FAULTS(g, VEC_GP, "\xbf\xfc\x93\x00\x00\xb9\x03\x00\x00\x00\xf3\xab" /* mov edi, 0x93fc; mov ecx, 3; rep stosd */);
    assert_int_equal(REG(RCX), 3);
}

static void long_strings(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    with_vectors(g);
    for (unsigned n = 0; n < 32; n++)
        put(g, EDGE + 0xf00 + 8 * n, 0x1234567812345678, 8);
    FAULTS(g, VEC_PF, "\xbf\x00\xff\x1f\x00\x48\xb8\x78\x56\x34\x12\x78\x56\x34\x12\xb9\xe8\x03\x00\x00\xf3\x48\xaf" /* mov edi, 0x1fff00; mov rax, 0x1234567812345678; mov ecx, 1000; repe scasq */);
    assert_int_equal(v->cr2, ABSENT_PAGE);
    assert_int_equal(REG(RDI), ABSENT_PAGE);
    assert_int_equal(REG(RCX), 1000 - 32);
    FAULTS(g, VEC_PF, "\xbe\x80\xff\x1f\x00\xbf\x00\xff\x1f\x00\xb9\xe8\x03\x00\x00\xf3\x48\xa7" /* mov esi, 0x1fff80; mov edi, 0x1fff00; mov ecx, 1000; repe cmpsq */);
    assert_int_equal(REG(RSI), ABSENT_PAGE);
    assert_int_equal(REG(RCX), 1000 - 16);
    FAULTS(g, VEC_PF, "\xbe\xc0\xff\x1f\x00\xb9\x64\x00\x00\x00\xf3\x48\xad" /* mov esi, 0x1fffc0; mov ecx, 100; rep lodsq */);
    assert_int_equal(REG(RCX), 92);
    assert_int_equal(REG(RAX), 0x1234567812345678);
    RUNS(g, "\xbf\x00\x90\x00\x00\xb9\x02\x00\x00\x00\x48\xb8\x88\x77\x66\x55\x44\x33\x22\x11\xf3\x48\xab\xbe\x00"
         "\x90\x00\x00\x67\x48\xad\xbf\x09\x90\x00\x00\xb9\x01\x00\x00\x00\xf2\x48\xaf" /* mov edi, 0x9000; mov ecx, 2; mov rax, 0x1122334455667788; rep stosq; mov esi, 0x9000; a32 lodsq; mov edi, 0x9009; mov ecx, 1; repne scasq */);
    assert_int_equal(get(g, DATA + 8, 8), 0x1122334455667788);
    assert_int_equal(REG(RCX), 0);
}

/* PUSHA: the first push that does not fit says the address; nothing is stored before all fit. */
static void pusha_faults(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    put(g, 0x20000, 0x21000 | 7, 4);
    for (unsigned n = 0; n < 1024; n++)
        put(g, 0x21000 + n * 4, n << 12 | 7, 4);
    put(g, 0x21000 + 0x30 * 4, 0, 4); /* absent */
    v->cr3 = 0x20000;
    v->cr0 |= CR0_PG | CR0_WP;
    cpu_mode_changed(v);
    put(g, 0x31000, 0xeeeeeeee, 4);
    v->gpr[RSP] = 0x31008;
    struct insn i = {.opsize = 4, .len = 1};
    insn_fn insn_pusha;
    assert_int_equal(RAISES(g, insn_pusha(v, &i)), VEC_PF);
    assert_int_equal(v->raised.payload, 0x30ffc);
    assert_int_equal(v->gpr[RSP], 0x31008);
    assert_int_equal(get(g, 0x31000, 4), 0xeeeeeeee);
    i.opsize = 2;
    assert_int_equal(RAISES(g, insn_pusha(v, &i)), VEC_PF);
    assert_int_equal(v->raised.payload, 0x30ffe);
    /* A 16-bit stack wraps around. */
    v->cr0 &= ~CR0_PG;
    set_segment(v, SEG_SS, 8, descriptor(0x10000, 0xffff, 0x0093));
    cpu_mode_changed(v);
    for (unsigned r = 0; r < 8; r++)
        v->gpr[r] = 0x100 + r;
    v->gpr[RSP] = 0x0008;
    assert_int_equal(RAISES(g, insn_pusha(v, &i)), -1);
    assert_int_equal(v->gpr[RSP], 0xfff8);
    assert_int_equal(get(g, 0x10006, 2), 0x100);
    assert_int_equal(get(g, 0x1fffe, 2), 8); /* SP as it was */
    assert_int_equal(get(g, 0x1fff8, 2), 0x107);
}

/* ARPL writes only what it changes: a page that may not be written is no obstacle. */
static void arpl(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    put(g, DATA, 0x1232, 2);
    set_segment(v, SEG_ES, 8, descriptor(0, 0xfffff, 0xc091)); /* read-only */
    cpu_segments_changed(v);
    REG(RAX) = 2;
    RUNS(g, "\x26\x63\x05\x00\x90\x00\x00\x0f\x94\xc3" /* arpl [es:0x9000], ax; setz bl */);
    assert_int_equal(REG(RBX) & 0xff, 0);
    REG(RAX) = 3;
    FAULTS(g, VEC_GP, "\x26\x63\x05\x00\x90\x00\x00" /* arpl [es:0x9000], ax */);
    RUNS(g, "\x63\x05\x00\x90\x00\x00\x0f\x94\xc3\x66\xb9\x10\x00\x63\xc1" /* arpl [0x9000], ax; setz bl; mov cx, 0x10; arpl cx, ax */);
    assert_int_equal(REG(RBX) & 0xff, 1);
    assert_int_equal(get(g, DATA, 2), 0x1233);
    assert_int_equal(REG(RCX) & 0xffff, 0x13);
}

static void protection_keys(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    with_vectors(g);
    v->features[FEAT_PKU] = 1;
    FAULTS(g, VEC_UD, "\x31\xc9\x0f\x01\xee" /* xor ecx, ecx; rdpkru */);
    FAULTS(g, VEC_UD, "\x31\xc9\x31\xd2\x0f\x01\xef" /* xor ecx, ecx; xor edx, edx; wrpkru */);
    v->cr4 |= CR4_PKE;
    cpu_mode_changed(v);
    RUNS(g, "\x31\xc9\x31\xd2\xb8\x0c\x00\x00\x00\x0f\x01\xef\x31\xc0\xba\x05\x00\x00\x00\x0f\x01\xee\x89\xd3" /* xor ecx, ecx; xor edx, edx; mov eax, 0xc; wrpkru; xor eax, eax; mov edx, 5; rdpkru; mov ebx, edx */);
    assert_int_equal(REG(RAX), 0xc);
    assert_int_equal(REG(RBX), 0);
    assert_int_equal(v->pkru, 0xc);
    FAULTS(g, VEC_GP, "\xb9\x01\x00\x00\x00\x0f\x01\xee" /* mov ecx, 1; rdpkru */);
    FAULTS(g, VEC_GP, "\xb9\x01\x00\x00\x00\x31\xd2\x0f\x01\xef" /* mov ecx, 1; xor edx, edx; wrpkru */);
    FAULTS(g, VEC_GP, "\x31\xc9\xba\x01\x00\x00\x00\x0f\x01\xef" /* xor ecx, ecx; mov edx, 1; wrpkru */);
    assert_int_equal(v->pkru, 0xc);
    /* A component of XSAVE: saved, and zero when the image does not have it. */
    v->xcr0 |= XCR0_PKRU;
    cpu_simd_changed(v);
    RUNS(g, "\xbf\x00\x90\x00\x00\xb8\x00\x02\x00\x00\x31\xd2\x0f\xae\x27\x31\xc9\xb8\x30\x00\x00\x00\x0f\x01\xef"
         "\xb8\x00\x02\x00\x00\x0f\xae\x2f" /* mov edi, 0x9000; mov eax, 0x200; xor edx, edx; xsave [rdi]; xor ecx, ecx; mov eax, 0x30; wrpkru; mov eax, 0x200; xrstor [rdi] */);
    assert_int_equal(v->pkru, 0xc);
    assert_int_equal(get(g, DATA + 512, 8), 0x200);
    RUNS(g, "\xbf\x00\x90\x00\x00\x48\xc7\x87\x00\x02\x00\x00\x00\x00\x00\x00\xb8\x00\x02\x00\x00\x31\xd2\x0f\xae"
         "\x2f" /* mov edi, 0x9000; mov qword [rdi + 512], 0; mov eax, 0x200; xor edx, edx; xrstor [rdi] */);
    assert_int_equal(v->pkru, 0);
    /* XSAVEC packs it behind the header. */
    RUNS(g, "\x31\xc9\x31\xd2\xb8\x30\x00\x00\x00\x0f\x01\xef\xbf\x00\x90\x00\x00\xb8\x00\x02\x00\x00\x0f\xc7\x27" /* xor ecx, ecx; xor edx, edx; mov eax, 0x30; wrpkru; mov edi, 0x9000; mov eax, 0x200; xsavec [rdi] */);
    assert_int_equal(get(g, DATA + 576, 4), 0x30);
    assert_int_equal(get(g, DATA + 520, 8), BIT64(63) | 0x200);
}

/* x87 environments outside protected mode hold linear addresses in pieces. */
static void real_environments(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    v->cr0 &= ~CR0_PE;
    for (unsigned s = SEG_ES; s <= SEG_GS; s++)
        v->seg[s] = (struct segment){.limit = 0xffff, .ar = AR_P | AR_S | (s == SEG_CS ? 0xb : 3)};
    cpu_mode_changed(v);
    v->x87.fop = 0x123, v->x87.fip = 0xa5678, v->x87.fdp = 0xb4321, v->x87.fcs = v->x87.fds = 0;
    RUNS(g, "\xd9\x36\x00\x90\x66\xd9\x36\x20\x90\x66\xd9\x26\x20\x90" /* fnstenv [0x9000]; o32 fnstenv [0x9020]; o32 fldenv [0x9020] */);
    assert_int_equal(get(g, DATA + 6, 2), 0x5678);
    assert_int_equal(get(g, DATA + 8, 2), 0xa123);
    assert_int_equal(get(g, DATA + 10, 2), 0x4321);
    assert_int_equal(get(g, DATA + 12, 2), 0xb000);
    assert_int_equal(get(g, DATA + 0x20 + 12, 4), 0xffff5678);
    assert_int_equal(get(g, DATA + 0x20 + 16, 4), 0x0000a123);
    assert_int_equal(get(g, DATA + 0x20 + 20, 4), 0xffff4321);
    assert_int_equal(get(g, DATA + 0x20 + 24, 4), 0x0000b000);
    assert_int_equal(v->x87.fip, 0xa5678);
    assert_int_equal(v->x87.fdp, 0xb4321);
    assert_int_equal(v->x87.fop, 0x123);
    v->x87.fip = v->x87.fdp = v->x87.fop = 0;
    RUNS(g, "\xd9\x26\x00\x90" /* fldenv [0x9000] */);
    assert_int_equal(v->x87.fip, 0xa5678);
    assert_int_equal(v->x87.fdp, 0xb4321);
    assert_int_equal(v->x87.fop, 0x123);
}

/* The pins: INIT and SIPI, an SMI that nothing answers, a second NMI behind the first. */
static void pins(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    CODE_AT(g, CODE, 0x90, 0x90, 0xeb, 0xfc); /* l: nop; nop; jmp l */
    CODE_AT(g, HANDLER(VEC_NMI), 0x43, 0xcf);       /* inc ebx; iret */
    v->gpr[RBX] = 0;
    vcpu_pins.smi(v);
    run(g, 20);
    assert_int_equal(v->gpr[RBX], 0);
    assert_true(v->rip >= CODE && v->rip < CODE + 4);
    vcpu_pins.nmi(v);
    vcpu_pins.nmi(v); /* held until the first one's IRET */
    vcpu_pins.nmi(v); /* and no more than that */
    run(g, 50);
    assert_int_equal(v->gpr[RBX], 2);
    v->nmi_blocked = true;
    vcpu_pins.nmi(v);
    run(g, 20);
    assert_int_equal(v->gpr[RBX], 2);
    v->nmi_blocked = false;
    cpu_attention(v, ATT_REQUEST | ATT_IRQ_WINDOW);
    run(g, 20);
    assert_int_equal(v->gpr[RBX], 3);

    /* INIT: what it resets and what it leaves (SDM vol. 3 table "IA-32 and Intel 64 Processor States"). */
    v->gpr[RSI] = 77;
    v->cr2 = 0x1234;
    v->x87.fcw = 0x123;
    v->mxcsr = 0x1fc0;
    v->xcr0 = 7;
    vcpu_pins.init(v);
    run(g, 20);
    assert_int_equal(v->cr0 & (CR0_PE | CR0_PG), 0);
    assert_int_equal(v->gpr[RSI], 0);
    assert_int_equal(v->cr2, 0);
    assert_int_equal(v->x87.fcw, 0x123);
    assert_int_equal(v->mxcsr, 0x1fc0);
    assert_int_equal(v->xcr0, 7);
    v->activity = ACTIVITY_WAIT_SIPI;
    put(g, 0x8000, 0xf4, 1);
    vcpu_pins.sipi(v, 8);
    assert_int_equal(run(g, 20), RUN_HALTED);
    assert_int_equal(v->seg[SEG_CS].sel, 0x800);
    assert_int_equal(v->rip, 1);
    /* A SIPI that nobody waits for is lost; an SMI too. */
    v->activity = ACTIVITY_ACTIVE;
    v->rip = 0;
    vcpu_pins.sipi(v, 9);
    vcpu_request(v, REQ_FLUSH);
    assert_int_equal(run(g, 20), RUN_HALTED);
    assert_int_equal(v->seg[SEG_CS].sel, 0x800);
    assert_int_equal(atomic_load(&v->requests), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(masked_moves), T(gathers), T(alignment), T(bit_strings), T(strings), T(long_strings), T(pusha_faults), T(arpl),
        T(protection_keys), T(real_environments), T(pins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
