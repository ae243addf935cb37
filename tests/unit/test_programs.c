/*
 * Small programs for what user-mode code on the host cannot show: 16-bit code, real mode, segments and
 * descriptors, flags and privilege, system calls, system instructions. Expectations are the manuals' (SDM
 * vol. 2, the instruction's page). Run for both vendors' models.
 */
#include "protected_guest.h"

#define DATA 0x9000u
#define AMD (cpu_is_amd(g->v))

/* Puts @code at CODE, a HLT behind it, and runs that. */
static void go(struct guest *g, const char *code, size_t n)
{
    poke(g, CODE, code, n);
    put(g, CODE + n, 0xf4, 1);
    g->v->rip = CODE;
    g->v->activity = ACTIVITY_ACTIVE;
    g->v->gpr[RSP] = STACK;
    assert_int_equal(run(g, 2000), RUN_HALTED);
}
#define GO(g, code) go(g, code, sizeof(code) - 1)
static void check_end(struct guest *g, u64 end, int line)
{
    if (g->v->rip != end)
        fail_msg("line %d: ended at %llx (vector %lld)", line, (unsigned long long)g->v->rip, ((long long)g->v->rip - HANDLER(0)) / 16);
}
#define RUNS(g, code) (GO(g, code), check_end(g, CODE + sizeof(code), __LINE__))
#define FAULTS(g, vector, code) (GO(g, code), check_end(g, HANDLER(vector) + 1, __LINE__))
#define REG(r) (g->v->gpr[r])

static void real_mode(struct guest *g)
{
    struct vcpu *v = g->v;
    v->cr0 &= ~CR0_PE;
    cpu_mode_changed(v);
    for (unsigned s = SEG_ES; s <= SEG_GS; s++)
        v->seg[s] = (struct segment){.limit = 0xffff, .ar = AR_P | AR_S | (s == SEG_CS ? 0xb : 3)};
    v->idtr = (struct desc_table){0, 0x3ff};
    for (unsigned n = 0; n < 256; n++)
        put(g, n * 4, HANDLER(n), 4);
    cpu_mode_changed(v);
}

static void stack_instructions(void **state)
{
    struct guest *g = *state;
    REG(RAX) = 0x11111111, REG(RBX) = 0x22222222, REG(RBP) = 0x33333333;
    /* pusha; mov eax, 5; mov ebx, 6; popa; push eax; push bx; pop cx; pop edx */
    RUNS(g, "\x60\xb8\x05\x00\x00\x00\xbb\x06\x00\x00\x00\x61\x50\x66\x53\x66\x59\x5a");
    assert_int_equal(REG(RAX), 0x11111111);
    assert_int_equal(REG(RDX), 0x11111111);
    assert_int_equal((u16)REG(RCX), 0x2222);
    assert_int_equal(REG(RSP), STACK);
    /* mov ebp, 0x9100; enter 16, 0; mov esi, ebp; mov edi, esp; leave */
    RUNS(g, "\xbd\x00\x91\x00\x00\xc8\x10\x00\x00\x89\xee\x89\xe7\xc9");
    assert_int_equal(REG(RSI), STACK - 4);
    assert_int_equal(REG(RDI), STACK - 4 - 16);
    assert_int_equal(REG(RBP), 0x9100);
    put(g, 0x90fc, 0xaaaa, 4);
    put(g, 0x90f8, 0xbbbb, 4);
    /* mov ebp, 0x9100; enter 8, 3; mov edi, esp; mov ebp, edi */
    RUNS(g, "\xbd\x00\x91\x00\x00\xc8\x08\x00\x03\x89\xe7\x89\xfd");
    assert_int_equal(get(g, STACK - 8, 4), 0xaaaa);
    assert_int_equal(get(g, STACK - 12, 4), 0xbbbb);
    assert_int_equal(get(g, STACK - 16, 4), STACK - 4);
    assert_int_equal(REG(RDI), STACK - 16 - 8);
    /* push dword [0x9000]; pop dword [0x9004]; push 0x12345678; pop dword [esp]; pushaw; popaw */
    RUNS(g, "\xff\x35\x00\x90\x00\x00\x8f\x05\x04\x90\x00\x00\x68\x78\x56\x34\x12\x8f\x04\x24\x66\x60\x66\x61");
    /* push ds; pop es; push fs; pop gs; push word ss; pop ss; pushfd; pop eax; push eax; popfd; pushfw; popfw */
    RUNS(g, "\x1e\x07\x0f\xa0\x0f\xa9\x16\x17\x9c\x58\x50\x9d\x66\x9c\x66\x9d");
    REG(RAX) = 0x55;
    RUNS(g, "\xb4\xd7\x9e\x9f\xd6\xf5\xf9\xf8\xfd\xfc" /* mov ah, 0xd7; sahf; lahf; salc; cmc; stc; clc; std; cld */);
    assert_int_equal(REG(RAX) & 0xffff, 0xd7ff);
}

static void integer_instructions(void **state)
{
    struct guest *g = *state;
    put(g, DATA, 0x0000000500000003, 8);
    REG(RAX) = 3, REG(RDX) = 5, REG(RBX) = 7, REG(RCX) = 9;
    /* cmpxchg8b [0x9000]; setz byte [0x9010]; lock cmpxchg8b [0x9000] */
    RUNS(g, "\x0f\xc7\x0d\x00\x90\x00\x00\x0f\x94\x05\x10\x90\x00\x00\xf0\x0f\xc7\x0d\x00\x90\x00\x00");
    assert_int_equal(get(g, DATA, 8), 0x0000000900000007);
    assert_int_equal(get(g, DATA + 16, 1), 1);
    assert_int_equal(REG(RAX), 7);
    /* mov eax, 100; aam; mov bx, ax; aad; mov cx, ax; mov al, 0x9a; daa; mov dl, al; mov al, 0x11; sub al, 0x22; */
    /* das; aaa; aas */
    RUNS(g, "\xb8\x64\x00\x00\x00\xd4\x0a\x66\x89\xc3\xd5\x0a\x66\x89\xc1\xb0\x9a\x27\x88\xc2\xb0\x11\x2c\x22\x2f\x37"
        "\x3f");
    assert_int_equal(REG(RBX) & 0xffff, 0x0a00);
    assert_int_equal(REG(RCX) & 0xffff, 100);
    assert_int_equal(REG(RDX) & 0xff, 0);
    /* mov ebx, 0x9000; mov al, 4; xlatb; xchg eax, ecx; xadd [0x9000], ecx; lock xadd [0x9001], ecx; bswap eax; lock */
    /* inc dword [0x9003]; lock not dword [0x9fff] */
    RUNS(g, "\xbb\x00\x90\x00\x00\xb0\x04\xd7\x91\x0f\xc1\x0d\x00\x90\x00\x00\xf0\x0f\xc1\x0d\x01\x90\x00\x00\x0f\xc8"
        "\xf0\xff\x05\x03\x90\x00\x00\xf0\xf7\x15\xff\x9f\x00\x00");
    /* mov eax, 7; xor edx, edx; mov ecx, 2; div ecx; imul eax, edx, 5; mov al, 9; mov bl, 2; idiv bl; cbw; cwde; */
    /* cwd; cdq; mul bl; imul bx; imul ecx, [0x9000] */
    RUNS(g, "\xb8\x07\x00\x00\x00\x31\xd2\xb9\x02\x00\x00\x00\xf7\xf1\x6b\xc2\x05\xb0\x09\xb3\x02\xf6\xfb\x66\x98\x98"
        "\x66\x99\x99\xf6\xe3\x66\xf7\xeb\x0f\xaf\x0d\x00\x90\x00\x00");
    FAULTS(g, VEC_DE, "\x31\xc9\xf6\xf1" /* xor ecx, ecx; div cl */);
    FAULTS(g, VEC_DE, "\xd4\x00" /* aam 0 */);
    FAULTS(g, VEC_DE, "\xba\x05\x00\x00\x00\xb9\x05\x00\x00\x00\xf7\xf1" /* mov edx, 5; mov ecx, 5; div ecx */);
    /* mov eax, 0x80000000; cdq; mov ecx, -1; idiv ecx */
    FAULTS(g, VEC_DE, "\xb8\x00\x00\x00\x80\x99\xb9\xff\xff\xff\xff\xf7\xf9");
    put(g, DATA, 1, 4);
    put(g, DATA + 4, 9, 4);
    /* mov eax, 9; bound eax, [0x9000]; xor eax, eax; into */
    RUNS(g, "\xb8\x09\x00\x00\x00\x62\x05\x00\x90\x00\x00\x31\xc0\xce");
    FAULTS(g, VEC_BR, "\xb8\x0a\x00\x00\x00\x62\x05\x00\x90\x00\x00" /* mov eax, 10; bound eax, [0x9000] */);
    FAULTS(g, VEC_BR, "\x66\x31\xc0\x66\x48\x66\x62\x05\x00\x90\x00\x00" /* xor ax, ax; dec ax; bound ax, [0x9000] */);
    FAULTS(g, VEC_OF, "\xb0\x7f\xfe\xc0\xce" /* mov al, 0x7f; inc al; into */);
    /* mov ecx, 3; xor eax, eax; l: inc eax; loop l; mov ecx, 3; m: inc eax; test eax, eax; loopne m; mov cx, 2; n: */
    /* inc eax; cmp eax, eax; loope n; jecxz e; inc eax; e: jcxz f; inc eax; f: */
    RUNS(g, "\xb9\x03\x00\x00\x00\x31\xc0\x40\xe2\xfd\xb9\x03\x00\x00\x00\x40\x85\xc0\xe0\xfb\x66\xb9\x02\x00\x40\x39"
        "\xc0\xe1\xfb\xe3\x01\x40\x67\xe3\x01\x40");
    assert_int_equal(REG(RAX), 8);
    /* mov eax, 0x80; movbe [0x9000], eax; movbe ebx, [0x9000]; popcnt ecx, ebx; lzcnt edx, ebx; tzcnt esi, ebx; bsf */
    /* edi, ebx; bsr ebp, ebx; bt dword [0x9000], 31; bts [0x9000], ebx; btr dword [0x9000], 3; btc eax, ebx; shld */
    /* eax, ebx, 4; shrd [0x9000], eax, cl */
    RUNS(g, "\xb8\x80\x00\x00\x00\x0f\x38\xf1\x05\x00\x90\x00\x00\x0f\x38\xf0\x1d\x00\x90\x00\x00\xf3\x0f\xb8\xcb\xf3"
        "\x0f\xbd\xd3\xf3\x0f\xbc\xf3\x0f\xbc\xfb\x0f\xbd\xeb\x0f\xba\x25\x00\x90\x00\x00\x1f\x0f\xab\x1d\x00\x90"
        "\x00\x00\x0f\xba\x35\x00\x90\x00\x00\x03\x0f\xbb\xd8\x0f\xa4\xd8\x04\x0f\xad\x05\x00\x90\x00\x00");
    assert_int_equal(REG(RBX), 0x80);
    /* rdrand eax; jnc $; rdseed ebx; jnc $; rdrand cx */
    RUNS(g, "\x0f\xc7\xf0\x73\xfe\x0f\xc7\xfb\x73\xfe\x66\x0f\xc7\xf1");
}

static void string_instructions(void **state)
{
    struct guest *g = *state;
    for (unsigned n = 0; n < 64; n++)
        put(g, DATA + n, n + 1, 1);
    /* mov esi, 0x9000; mov edi, 0x9100; mov ecx, 16; rep movsb; mov ecx, 4; rep movsd; movsw; lodsb; mov bl, al; */
    /* lodsw; lodsd; mov al, 0xee; stosb; mov ecx, 3; rep stosw; mov ecx, 2; rep stosd */
    RUNS(g, "\xbe\x00\x90\x00\x00\xbf\x00\x91\x00\x00\xb9\x10\x00\x00\x00\xf3\xa4\xb9\x04\x00\x00\x00\xf3\xa5\x66\xa5"
        "\xac\x88\xc3\x66\xad\xad\xb0\xee\xaa\xb9\x03\x00\x00\x00\xf3\x66\xab\xb9\x02\x00\x00\x00\xf3\xab");
    for (unsigned n = 0; n < 34; n++)
        assert_int_equal(get(g, DATA + 0x100 + n, 1), n + 1);
    assert_int_equal(get(g, DATA + 0x122, 1), 0xee);
    assert_int_equal((u8)REG(RBX), 35);
    /* mov esi, 0x9000; mov edi, 0x9100; mov ecx, 99; repe cmpsb; mov ebx, ecx; mov edi, 0x9000; mov al, 20; mov ecx, */
    /* 99; repne scasb; cmpsw; cmpsd; scasw; scasd */
    RUNS(g, "\xbe\x00\x90\x00\x00\xbf\x00\x91\x00\x00\xb9\x63\x00\x00\x00\xf3\xa6\x89\xcb\xbf\x00\x90\x00\x00\xb0\x14"
        "\xb9\x63\x00\x00\x00\xf2\xae\x66\xa7\xa7\x66\xaf\xaf");
    assert_int_equal(REG(RBX), 99 - 35);
    assert_int_equal(REG(RCX), 99 - 20);
    /* std; mov esi, 0x903f; mov edi, 0x923f; mov ecx, 64; rep movsb; mov edi, 0x9200; mov ecx, 1; rep stosd; cld; */
    /* mov cx, 5; mov si, 0x9000; mov di, 0x9300; a16 rep movsw; mov ecx, 0; rep movsb */
    RUNS(g, "\xfd\xbe\x3f\x90\x00\x00\xbf\x3f\x92\x00\x00\xb9\x40\x00\x00\x00\xf3\xa4\xbf\x00\x92\x00\x00\xb9\x01\x00"
        "\x00\x00\xf3\xab\xfc\x66\xb9\x05\x00\x66\xbe\x00\x90\x66\xbf\x00\x93\xf3\x66\x67\xa5\xb9\x00\x00\x00\x00"
        "\xf3\xa4");
    assert_int_equal(get(g, DATA + 0x23f, 1), 64);
    assert_int_equal(get(g, DATA + 0x300, 2), 0x0201);
}

static void real_mode_code(void **state)
{
    struct guest *g = *state;
    real_mode(g);
    /* mov ax, 0x900; mov ds, ax; mov word [0x10], 0x1234; mov es, ax; mov bx, [es:0x10]; push cs; pop ss; mov sp, */
    /* 0xa000; call 0:subr; jmp 0:onn; subr: inc bx; retf; onn: push word 0x202; push cs; push word done; iret; done: */
    /* inc bx */
    RUNS(g, "\xb8\x00\x09\x8e\xd8\xc7\x06\x10\x00\x34\x12\x8e\xc0\x26\x8b\x1e\x10\x00\x0e\x17\xbc\x00\xa0\x9a\x21\x80"
        "\x00\x00\xea\x23\x80\x00\x00\x43\xcb\x68\x02\x02\x0e\x68\x2b\x80\xcf\x43");
    assert_int_equal((u16)REG(RBX), 0x1236);
    /* push word 7; push word 0; push word there; retf 2; there: mov ax, [0x8000]; lds si, [0x8000]; les di, */
    /* [0x8000]; lss sp, [frame]; jmp over; frame: dw 0xa000, 0; over: xor ax, ax; mov ds, ax; mov es, ax */
    RUNS(g, "\x6a\x07\x6a\x00\x68\x0a\x80\xca\x02\x00\xa1\x00\x80\xc5\x36\x00\x80\xc4\x3e\x00\x80\x0f\xb2\x26\x1c\x80"
        "\xeb\x04\x00\xa0\x00\x00\x31\xc0\x8e\xd8\x8e\xc0");
    /* mov word [0x60 * 4], handler; int 0x60; jmp past; handler: mov cx, 77; iret; past: call far [ptr_]; jmp past2; */
    /* ptr_: dw target, 0; target: inc cx; retf; past2: jmp far [ptr2]; ptr2: dw end_, 0; end_: */
    RUNS(g, "\xc7\x06\x80\x01\x0a\x80\xcd\x60\xeb\x04\xb9\x4d\x00\xcf\xff\x1e\x14\x80\xeb\x06\x18\x80\x00\x00\x41\xcb"
        "\xff\x2e\x1e\x80\x22\x80\x00\x00");
    assert_int_equal((u16)REG(RCX), 78);
    /* o32 pushf; o32 popf; mov eax, cr0; smsw bx; sgdt [0x9000]; sidt [0x9008]; mov si, 0x9000; mov di, 0x9100; mov */
    /* cx, 4; rep movsw; mov cx, 3; loop $; xlatb; call dword 0:t; jmp u; t: o32 retf; u: pusha; popa; enter 4, 1; */
    /* leave */
    RUNS(g, "\x66\x9c\x66\x9d\x0f\x20\xc0\x0f\x01\xe3\x0f\x01\x06\x00\x90\x0f\x01\x0e\x08\x90\xbe\x00\x90\xbf\x00\x91"
        "\xb9\x04\x00\xf3\xa5\xb9\x03\x00\xe2\xfe\xd7\x66\x9a\x2f\x80\x00\x00\x00\x00\xeb\x02\x66\xcb\x60\x61\xc8"
        "\x04\x00\x01\xc9");
    FAULTS(g, VEC_UD, "\x63\xd8" /* arpl ax, bx */);
    FAULTS(g, VEC_UD, "\x0f\x02\xc3" /* lar ax, bx */);
    FAULTS(g, VEC_UD, "\x0f\x00\xc8" /* str ax */);
    FAULTS(g, VEC_GP, "\x66\xa1\xff\xff" /* mov eax, [0xffff] */);
    FAULTS(g, VEC_UD, "\xf0\x89\xd8" /* db 0xf0; mov ax, bx */);
    g->v->gpr[RAX] = 0xffff0;
    FAULTS(g, VEC_GP, "\x66\xff\xe0" /* o32 jmp eax */);
}

static void descriptor_instructions(void **state)
{
    struct guest *g = *state;
    for (unsigned n = 0; n < 0x18; n += 8)
        put(g, 0x5000 + n, descriptor(0, 0xfffff, 0xc093), 8);
    /* mov ax, 0x88; lldt ax; sldt bx; sldt [0x9000]; str cx; str [0x9002]; mov ax, 0x0c; mov fs, ax; xor eax, eax; */
    /* lldt ax */
    RUNS(g, "\x66\xb8\x88\x00\x0f\x00\xd0\x66\x0f\x00\xc3\x0f\x00\x05\x00\x90\x00\x00\x66\x0f\x00\xc9\x0f\x00\x0d\x02"
        "\x90\x00\x00\x66\xb8\x0c\x00\x8e\xe0\x31\xc0\x0f\x00\xd0");
    assert_int_equal((u16)REG(RBX), LDT_SEL);
    assert_int_equal((u16)REG(RCX), TSS_SEL);
    assert_int_equal(get(g, DATA, 4), LDT_SEL | TSS_SEL << 16);
    /* mov ax, 0x10; lar ebx, eax; lsl ecx, eax; verr ax; setz dl; verw ax; setz dh; mov ax, 8; verw ax; setz */
    /* [0x9000]; mov ax, 0x78; verr ax; setz [0x9001]; xor eax, eax; lar esi, eax; setz [0x9002]; mov ax, 0xf8; lsl */
    /* esi, eax; setz [0x9003] */
    RUNS(g, "\x66\xb8\x10\x00\x0f\x02\xd8\x0f\x03\xc8\x0f\x00\xe0\x0f\x94\xc2\x0f\x00\xe8\x0f\x94\xc6\x66\xb8\x08\x00"
        "\x0f\x00\xe8\x0f\x94\x05\x00\x90\x00\x00\x66\xb8\x78\x00\x0f\x00\xe0\x0f\x94\x05\x01\x90\x00\x00\x31\xc0"
        "\x0f\x02\xf0\x0f\x94\x05\x02\x90\x00\x00\x66\xb8\xf8\x00\x0f\x03\xf0\x0f\x94\x05\x03\x90\x00\x00");
    assert_int_equal(REG(RBX), 0x00c09300);
    assert_int_equal(REG(RCX), 0xffffffff);
    assert_int_equal(REG(RDX) & 0xffff, 0x0101);
    assert_int_equal(get(g, DATA, 4), 0);
    /* mov ax, 0x28; lar ebx, eax; setz dl; lsl ecx, eax; mov ax, 0x50; lar esi, eax; setz dh; lsl edi, eax; setz */
    /* [0x9000] */
    RUNS(g, "\x66\xb8\x28\x00\x0f\x02\xd8\x0f\x94\xc2\x0f\x03\xc8\x66\xb8\x50\x00\x0f\x02\xf0\x0f\x94\xc6\x0f\x03\xf8"
        "\x0f\x94\x05\x00\x90\x00\x00");
    assert_int_equal(REG(RCX), 0xff);
    assert_int_equal(REG(RDX) & 0xffff, 0x0101);
    assert_int_equal(get(g, DATA, 1), 0); /* a call gate has no limit */
    /* mov ax, 0x10; mov bx, 3; arpl ax, bx; setz dl; arpl ax, bx; setz dh; mov [0x9000], word 8; mov cx, 1; arpl */
    /* [0x9000], cx; arpl [0x9000], cx */
    RUNS(g, "\x66\xb8\x10\x00\x66\xbb\x03\x00\x63\xd8\x0f\x94\xc2\x63\xd8\x0f\x94\xc6\x66\xc7\x05\x00\x90\x00\x00\x08"
        "\x00\x66\xb9\x01\x00\x63\x0d\x00\x90\x00\x00\x63\x0d\x00\x90\x00\x00");
    assert_int_equal((u16)REG(RAX), 0x13);
    assert_int_equal(REG(RDX) & 0xffff, 0x0001);
    assert_int_equal(get(g, DATA, 2), 9);
    put(g, DATA, 0x0010000000a0a0ull, 6);
    put(g, DATA, 0xa0a0, 4);
    put(g, DATA + 4, DS0, 2);
    /* lds eax, [0x9000]; les ebx, [0x9000]; lfs ecx, [0x9000]; lgs edx, [0x9000]; lss esp, [0x9000]; mov [0x9010], */
    /* ds; mov eax, fs; mov gs, [0x9010] */
    RUNS(g, "\xc5\x05\x00\x90\x00\x00\xc4\x1d\x00\x90\x00\x00\x0f\xb4\x0d\x00\x90\x00\x00\x0f\xb5\x15\x00\x90\x00\x00"
        "\x0f\xb2\x25\x00\x90\x00\x00\x8c\x1d\x10\x90\x00\x00\x8c\xe0\x8e\x2d\x10\x90\x00\x00");
    assert_int_equal(REG(RBX), 0xa0a0);
    FAULTS(g, VEC_GP, "\x66\xb8\x88\x00\x0f\x00\xd8" /* mov ax, 0x88; ltr ax */);
    FAULTS(g, VEC_GP, "\x31\xc0\x0f\x00\xd8" /* xor eax, eax; ltr ax */);
    FAULTS(g, VEC_GP, "\x66\xb8\x10\x00\x0f\x00\xd0" /* mov ax, 0x10; lldt ax */);
    FAULTS(g, VEC_UD, "\x8e\xc8" /* db 0x8e, 0xc8 */);
    /* mov ax, 0x30; ltr ax; str bx; sgdt [0x9000]; lgdt [0x9000]; sidt [0x9010]; lidt [0x9010]; smsw eax; lmsw ax; */
    /* clts; mov eax, cr2; mov cr2, eax; mov eax, cr3; mov cr3, eax; invlpg [0x9000]; wbinvd; invd */
    RUNS(g, "\x66\xb8\x30\x00\x0f\x00\xd8\x66\x0f\x00\xcb\x0f\x01\x05\x00\x90\x00\x00\x0f\x01\x15\x00\x90\x00\x00\x0f"
        "\x01\x0d\x10\x90\x00\x00\x0f\x01\x1d\x10\x90\x00\x00\x0f\x01\xe0\x0f\x01\xf0\x0f\x06\x0f\x20\xd0\x0f\x22"
        "\xd0\x0f\x20\xd8\x0f\x22\xd8\x0f\x01\x3d\x00\x90\x00\x00\x0f\x09\x0f\x08");
    assert_int_equal((u16)REG(RBX), TSS2_SEL);
}

/* Ring 3: what is refused there, and what IOPL, UMIP, TSD and PCE decide. */
static void privileges(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    static const struct { u8 code[4]; u8 vector; } refused[] = {
        {{0xf4}, VEC_GP}, {{0xfa}, VEC_GP}, {{0xfb}, VEC_GP}, {{0x0f, 0x06}, VEC_GP}, {{0x0f, 0x08}, VEC_GP}, {{0x0f, 0x09}, VEC_GP},
        {{0x0f, 0x20, 0xc0}, VEC_GP}, {{0x0f, 0x22, 0xc0}, VEC_GP}, {{0x0f, 0x30}, VEC_GP}, {{0x0f, 0x32}, VEC_GP}, {{0x0f, 0x01, 0x38}, VEC_GP},
        {{0x0f, 0x01, 0x10}, VEC_GP}, {{0x0f, 0x01, 0xf0}, VEC_GP}, {{0x0f, 0x00, 0xd0}, VEC_GP}, {{0x0f, 0x00, 0xd8}, VEC_GP}, {{0xe4, 0x60}, VEC_GP},
        {{0xee}, VEC_GP}, {{0x6c}, VEC_GP}, {{0x0f, 0x35}, VEC_GP}, {{0x0f, 0xaa}, VEC_UD}, {{0x0f, 0x0b}, VEC_UD}, {{0x0f, 0x33}, VEC_GP},
        {{0x0f, 0x01, 0xc8}, VEC_UD}, {{0x0f, 0x01, 0xca}, VEC_UD}, {{0xf1}, VEC_DB},
    };
    put(g, TSS + 102, 0xffff, 2); /* no I/O map */
    for (unsigned n = 0; n < ARRAY_SIZE(refused); n++) {
        to_ring3(g);
        set_segment(v, SEG_SS, DS3, get(g, GDT + (DS3 & ~7), 8));
        cpu_mode_changed(v);
        v->gpr[RAX] = DATA;
        v->sysenter_cs = CS0;
        go(g, (const char *)refused[n].code, 4);
        if (v->rip != HANDLER(refused[n].vector) + 1)
            fail_msg("%02x %02x %02x at CPL 3: ended at %llx", refused[n].code[0], refused[n].code[1], refused[n].code[2], (unsigned long long)v->rip);
    }
    to_ring3(g);
    v->cr4 = CR4_UMIP | CR4_TSD;
    cpu_mode_changed(v);
    GO(g, "\x0f\x01\xe0" /* smsw eax */);
    check_end(g, HANDLER(VEC_GP) + 1, __LINE__);
    to_ring3(g);
    GO(g, "\x0f\x31" /* rdtsc */);
    check_end(g, HANDLER(VEC_GP) + 1, __LINE__);
    v->cr4 = 0;
    /* IOPL 3: CLI, STI and ports are open; POPF changes IF but not IOPL. */
    to_ring3(g);
    cpu_put_rflags(v, FL_FIXED | FL_IOPL);
    /* cli; sti; nop; pushfd; pop eax; push dword 0; popfd; pushfd; pop ebx; int3 */
    GO(g, "\xfa\xfb\x90\x9c\x58\x6a\x00\x9d\x9c\x5b\xcc");
    check_end(g, HANDLER(VEC_BP) + 1, __LINE__);
    assert_int_equal(REG(RAX) & (FL_IF | FL_IOPL), FL_IF | FL_IOPL);
    assert_int_equal(REG(RBX) & (FL_IF | FL_IOPL), FL_IOPL);
    to_ring3(g);
    cpu_put_rflags(v, FL_FIXED | FL_IF);
    GO(g, "\x68\x02\x32\x00\x00\x9d\x9c\x5b\xcc" /* push dword 0x3202; popfd; pushfd; pop ebx; int3 */);
    check_end(g, HANDLER(VEC_BP) + 1, __LINE__);
    assert_int_equal(REG(RBX) & (FL_IF | FL_IOPL), FL_IF);
}

static void fast_calls(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    put(g, GDT + 0x20, descriptor(0, 0xfffff, 0xc0f3), 8);
    v->sysenter_cs = CS0;
    v->sysenter_esp = STACK0;
    v->sysenter_eip = CODE + 0x100;
    CODE_AT(g, CODE + 0x100, 0x0f, 0x35); /* sysexit */
    to_ring3(g);
    put(g, HANDLER(VEC_BP), 0xf4, 1);
    GO(g, "\x89\xe1\xba\x0a\x80\x00\x00\x0f\x34\xf4\xcc" /* mov ecx, esp; mov edx, back; sysenter; hlt; back: int3 */);
    check_end(g, HANDLER(VEC_BP) + 1, __LINE__);
    assert_int_equal(REG(RCX), STACK);
    v->sysenter_cs = 0;
    to_ring3(g);
    GO(g, "\x0f\x34" /* sysenter */);
    check_end(g, HANDLER(VEC_GP) + 1, __LINE__);
    /* SYSCALL outside long mode is AMD's alone. */
    to_ring3(g);
    assert_true(cpu_wrmsr(v, 0xc0000080, EFER_SCE));
    assert_true(cpu_wrmsr(v, 0xc0000081, (u64)0x10 << 48 | (u64)CS0 << 32 | (CODE + 0x100)));
    CODE_AT(g, CODE + 0x100, 0x0f, 0x07); /* sysret */
    GO(g, "\x0f\x05\xcc" /* syscall; int3 */);
    check_end(g, HANDLER(AMD ? VEC_BP : VEC_UD) + 1, __LINE__);
    /* 64-bit mode: SYSENTER is Intel's alone. */
    assert_true(cpu_wrmsr(v, 0xc0000080, 0));
    to_long(g);
    v->sysenter_cs = CS0;
    v->sysenter_eip = CODE + 0x100;
    CODE_AT(g, CODE + 0x100, 0x48, 0x0f, 0x35);
    if (AMD)
        FAULTS(g, VEC_UD, "\x0f\x34" /* sysenter */);
    else
        /* mov rdx, 0x1234567890123456; mov rcx, rsp; sysenter */
        FAULTS(g, VEC_GP, "\x48\xba\x56\x34\x12\x90\x78\x56\x34\x12\x48\x89\xe1\x0f\x34");
    /* mov rax, 0x123456789; mov rbx, rax; swapgs; swapgs; mov ecx, 0xc0000100; xor edx, edx; mov eax, 0x9000; wrmsr; */
    /* mov rax, [fs:0]; rdmsr */
    RUNS(g, "\x48\xb8\x89\x67\x45\x23\x01\x00\x00\x00\x48\x89\xc3\x0f\x01\xf8\x0f\x01\xf8\xb9\x00\x01\x00\xc0\x31\xd2"
        "\xb8\x00\x90\x00\x00\x0f\x30\x64\x48\x8b\x04\x25\x00\x00\x00\x00\x0f\x32");
}

static void long_mode_code(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    to_long(g);
    v->cr4 |= CR4_FSGSBASE;
    cpu_mode_changed(v);
    REG(RBX) = 0x9000;
    /* wrfsbase rbx; rdfsbase rax; wrgsbase ebx; rdgsbase ecx; mov rdx, [fs:0]; mov [gs:8], rdx; movsxd rsi, ecx; */
    /* push qword [rbx]; pop qword [rbx + 8]; pushfq; popfq; enter 32, 0; leave; cdqe; cqo; movbe [rbx], rax; lea */
    /* rdi, [rel $] */
    RUNS(g, "\xf3\x48\x0f\xae\xd3\xf3\x48\x0f\xae\xc0\xf3\x0f\xae\xdb\xf3\x0f\xae\xc9\x64\x48\x8b\x14\x25\x00\x00\x00"
        "\x00\x65\x48\x89\x14\x25\x08\x00\x00\x00\x48\x63\xf1\xff\x33\x8f\x43\x08\x9c\x9d\xc8\x20\x00\x00\xc9\x48"
        "\x98\x48\x99\x48\x0f\x38\xf1\x03\x48\x8d\x3d\xf9\xff\xff\xff");
    assert_int_equal(REG(RAX), 0x9000);
    assert_int_equal(REG(RDI) & 0xff00, CODE);
    put(g, DATA, 1, 8);
    put(g, DATA + 8, 2, 8);
    REG(RAX) = 1, REG(RDX) = 2, REG(RCX) = 4;
    REG(RBX) = 3, REG(RDI) = DATA;
    RUNS(g, "\x48\x0f\xc7\x0f\x41\x0f\x94\xc0\xf0\x48\x0f\xc7\x0f" /* cmpxchg16b [rdi]; setz r8b; lock cmpxchg16b [rdi] */);
    assert_int_equal(get(g, DATA, 8), 3);
    assert_int_equal(get(g, DATA + 8, 8), 4);
    assert_int_equal(REG(R8) & 0xff, 1);
    assert_int_equal(REG(RDX), 4);
    FAULTS(g, VEC_GP, "\xbf\x08\x90\x00\x00\x48\x0f\xc7\x0f" /* mov edi, 0x9008; cmpxchg16b [rdi] */);
    FAULTS(g, VEC_GP, "\x48\xb8\x00\x00\x00\x00\x00\x80\x00\x00\x8a\x00" /* mov rax, 0x800000000000; mov al, [rax] */);
    FAULTS(g, VEC_SS, "\x48\xbd\x10\x00\x00\x00\x00\x80\x00\x00\x8a\x45\x00" /* mov rbp, 0x800000000010; mov al, [rbp] */);
    /* mov ecx, 3; mov esi, 0x9000; mov edi, 0x9100; rep movsq; mov ecx, 2; rep stosq; lodsq; scasq; cmpsq; xor ecx, */
    /* ecx; jrcxz e; hlt; e: loop f; f: */
    RUNS(g, "\xb9\x03\x00\x00\x00\xbe\x00\x90\x00\x00\xbf\x00\x91\x00\x00\xf3\x48\xa5\xb9\x02\x00\x00\x00\xf3\x48\xab"
        "\x48\xad\x48\xaf\x48\xa7\x31\xc9\xe3\x01\xf4\xe2\x00");
    /* mov eax, 7; xor ecx, ecx; cpuid; rdtsc; rdtscp; lfence; mfence; sfence; pause; clflush [rsp]; prefetcht0 */
    /* [rsp]; prefetchw [rsp]; rdpid rax; nop dword [rax]; wbinvd */
    RUNS(g, "\xb8\x07\x00\x00\x00\x31\xc9\x0f\xa2\x0f\x31\x0f\x01\xf9\x0f\xae\xe8\x0f\xae\xf0\x0f\xae\xf8\xf3\x90\x0f"
        "\xae\x3c\x24\x0f\x18\x0c\x24\x0f\x0d\x0c\x24\xf3\x0f\xc7\xf8\x0f\x1f\x00\x0f\x09");
    FAULTS(g, VEC_GP, "\xb9\x77\x00\x00\x00\x0f\x33" /* mov ecx, 0x77; rdpmc */);
    FAULTS(g, VEC_GP, "\xb9\x78\x56\x34\x12\x0f\x32" /* mov ecx, 0x12345678; rdmsr */);
    FAULTS(g, VEC_GP, "\xb9\x78\x56\x34\x12\x0f\x30" /* mov ecx, 0x12345678; wrmsr */);
    FAULTS(g, VEC_UD, "\x0f\x20\xc8" /* mov rax, cr1 */);
    FAULTS(g, VEC_UD, "\x06" /* db 0x06 */);
    /* Far transfers between code segments of both sizes. */
    put(g, DATA, CODE + 0x80, 4);
    put(g, DATA + 4, CS0, 2);
    CODE_AT(g, CODE + 0x80, 0x40, 0xea, 0, 0x82, 0, 0, CS0_64, 0); /* inc eax; jmp far CS0_64:8200 */
    CODE_AT(g, CODE + 0x200, 0x48, 0xff, 0xc0, 0xf4);
    REG(RAX) = 0xffffffff;
    GO(g, "\xff\x2c\x25\x00\x90\x00\x00" /* jmp far dword [abs 0x9000] */);
    check_end(g, CODE + 0x204, __LINE__);
    assert_int_equal(REG(RAX), 1);
}

/* INVPCID, MONITOR and MWAIT, CLZERO, RDPRU, SERIALIZE, as far as the model has them. */
static void optional_instructions(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    to_long(g);
    REG(RAX) = 0, REG(RDI) = DATA;
    put(g, DATA, 0, 8);
    put(g, DATA + 8, DATA, 8);
    /* invpcid rax, [rdi]; inc eax; invpcid rax, [rdi]; inc eax; invpcid rax, [rdi]; inc eax; invpcid rax, [rdi] */
    RUNS(g, "\x66\x48\x0f\x38\x82\x07\xff\xc0\x66\x48\x0f\x38\x82\x07\xff\xc0\x66\x48\x0f\x38\x82\x07\xff\xc0\x66\x48"
        "\x0f\x38\x82\x07");
    FAULTS(g, VEC_GP, "\xb8\x04\x00\x00\x00\x66\x48\x0f\x38\x82\x07" /* mov eax, 4; invpcid rax, [rdi] */);
    put(g, DATA, BIT64(40), 8);
    FAULTS(g, VEC_GP, "\x31\xc0\x66\x48\x0f\x38\x82\x07" /* xor eax, eax; invpcid rax, [rdi] */);
    /* mov eax, 0x9000; xor ecx, ecx; xor edx, edx; monitor; mov [0x9000], eax */
    RUNS(g, "\xb8\x00\x90\x00\x00\x31\xc9\x31\xd2\x0f\x01\xc8\x89\x04\x25\x00\x90\x00\x00");
    FAULTS(g, VEC_GP, "\xb9\x01\x00\x00\x00\x0f\x01\xc8" /* mov ecx, 1; monitor */);
    FAULTS(g, VEC_GP, "\xb9\x02\x00\x00\x00\x0f\x01\xc9" /* mov ecx, 2; mwait */);
    if (cpu_has(v, FEAT_CLZERO)) {
        RUNS(g, "\xb8\x07\x90\x00\x00\x0f\x01\xfc" /* mov eax, 0x9007; db 0x0f, 0x01, 0xfc */);
        assert_int_equal(get(g, DATA + 8, 8), 0);
    } else {
        FAULTS(g, VEC_UD, "\xb8\x07\x90\x00\x00\x0f\x01\xfc" /* mov eax, 0x9007; db 0x0f, 0x01, 0xfc */);
    }
    if (cpu_has(v, FEAT_SERIALIZE))
        /* serialize; mov edi, 0x9000; movdir64b rdi, [0x9100]; movdiri [rdi], rax */
        RUNS(g, "\x0f\x01\xe8\xbf\x00\x90\x00\x00\x66\x0f\x38\xf8\x3c\x25\x00\x91\x00\x00\x48\x0f\x38\xf9\x07");
    else
        FAULTS(g, VEC_UD, "\x0f\x01\xe8" /* serialize */);
    /* wbnoinvd; clflushopt [rdi]; clwb [rdi]; stac; clac; rdrand rax; rdseed rbx */
    RUNS(g, "\xf3\x0f\x09\x66\x0f\xae\x3f\x66\x0f\xae\x37\x0f\x01\xcb\x0f\x01\xca\x48\x0f\xc7\xf0\x48\x0f\xc7\xfb");
}

/* Every CPUID leaf up to the largest, and every MSR that reads: reading again gives the same, writing it back works or is refused. */
static void leaves_and_registers(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    u32 a[4], b[4];
    cpu_cpuid(v, 0, 0, a);
    u32 basic = a[0];
    cpu_cpuid(v, 0x80000000, 0, a);
    u32 extended = a[0];
    assert_true(basic >= 0xd && extended >= 0x80000008);
    for (u32 leaf = 0; leaf <= extended; leaf = leaf == basic ? 0x80000000 : leaf + 1)
        for (u32 sub = 0; sub < 32; sub++) {
            cpu_cpuid(v, leaf, sub, a);
            cpu_cpuid(v, leaf, sub, b);
            assert_memory_equal(a, b, sizeof(a));
        }
    /* Beyond the largest: the vendor's rule. */
    cpu_cpuid(v, basic + 1, 0, a);
    cpu_cpuid(v, AMD ? 0x7fffffff : basic, 0, b);
    if (AMD)
        assert_int_equal(a[0] | a[1] | a[2] | a[3], 0);
    unsigned readable = 0;
    for (u32 n = 0; n < 0x4000; n++) {
        u32 msr = n < 0x2000 ? n : n < 0x3000 ? 0xc0000000 + n - 0x2000 : 0xc0010000 + n - 0x3000;
        u64 x, y;
        if (!cpu_rdmsr(v, msr, &x))
            continue;
        readable++;
        if (msr == 0x10 || msr == 0x1b || msr == 0x38 || msr == 0x3b || msr == 0x6e0 || msr >> 8 == 8 || msr == 0xc0000080)
            continue; /* time, the interrupt controller, modes */
        bool written = cpu_wrmsr(v, msr, x);
        assert_true(cpu_rdmsr(v, msr, &y));
        if (written && x != y)
            fail_msg("MSR %x: %llx written back reads as %llx", msr, (unsigned long long)x, (unsigned long long)y);
        cpu_wrmsr(v, msr, ~0ull);
        cpu_wrmsr(v, msr, BIT64(63));
        cpu_wrmsr(v, msr, x);
    }
    assert_true(readable > 60);
}

static void v86_code(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    for (unsigned vme = 0; vme < 2; vme++)
        for (unsigned iopl = 0; iopl < 2; iopl++) {
            v->cr4 = vme ? CR4_VME : 0;
            static const u32 frame[] = {0x100, 0x800, 0, 0xfff0, 0x700, 0, 0, 0, 0};
            for (unsigned n = 0; n < ARRAY_SIZE(frame); n++)
                put(g, STACK - 0x40 + 4 * n, frame[n], 4);
            put(g, STACK - 0x38, FL_FIXED | FL_VM | FL_IF | (iopl ? FL_IOPL : 0), 4);
            /* cli; pushf; pop ax; sti; nop; pushf; popf; push word 0x3202; push cs; push word 0x110 + 1; db 0x90; iret; */
            /* int3; int3 */
            static const char code[] = "\xfa\x9c\x58\xfb\x90\x9c\x9d\x68\x02\x32\x0e\x68\x11\x01\x90\xcf\xcc\xcc";
            poke(g, 0x8100, code, sizeof(code) - 1);
            CODE_AT(g, CODE, 0xcf);
            set_segment(v, SEG_CS, CS0, get(g, GDT + CS0, 8));
            set_segment(v, SEG_SS, DS0, get(g, GDT + DS0, 8));
            cpu_put_rflags(v, FL_FIXED);
            cpu_mode_changed(v);
            v->rip = CODE;
            v->gpr[RSP] = STACK - 0x40;
            v->activity = ACTIVITY_ACTIVE;
            assert_int_equal(run(g, 100), RUN_HALTED);
            assert_int_equal(v->rip, HANDLER(vme || iopl ? VEC_BP : VEC_GP) + 1);
            if (vme || iopl)
                assert_int_equal(REG(RAX) & FL_IF, 0);
        }
    v->cr4 = 0;
}

/* A 64-bit call gate from ring 3 and the far return through it; IRETQ with a null SS. */
static void long_gates(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    to_long(g);
    put(g, GDT + GATE, gate(CS0_64, CODE + 0x100, 0xec, 0), 8);
    put(g, GDT + GATE + 8, 0, 8);
    put(g, DATA, 0, 4);
    put(g, DATA + 4, GATE | 3, 2);
    /* mov rax, rsp; mov rcx, [rsp]; mov rdx, [rsp + 8]; mov rsi, [rsp + 24]; retfq */
    static const char callee[] = "\x48\x89\xe0\x48\x8b\x0c\x24\x48\x8b\x54\x24\x08\x48\x8b\x74\x24\x18\x48\xcb";
    poke(g, CODE + 0x100, callee, sizeof(callee));
    to_ring3(g);
    GO(g, "\xff\x1c\x25\x00\x90\x00\x00\x48\x89\xe3\xcc" /* call far dword [abs 0x9000]; mov rbx, rsp; int3 */);
    check_end(g, HANDLER(VEC_BP) + 1, __LINE__);
    assert_int_equal(REG(RAX), STACK0 - 32);
    assert_int_equal(REG(RBX), STACK);
    assert_int_equal(REG(RCX), CODE + 7);
    assert_int_equal(REG(RDX), CS3_64);
    assert_int_equal(REG(RSI), DS3);
    put(g, GDT + GATE, gate(CS0_64, CODE + 0x100, 0x6c, 0), 8); /* not present */
    to_ring3(g);
    GO(g, "\xff\x1c\x25\x00\x90\x00\x00" /* call far dword [abs 0x9000] */);
    check_end(g, HANDLER(VEC_NP) + 1, __LINE__);
    put(g, GDT + GATE, gate(CS0_64, CODE + 0x100, 0xec, 0), 8);
    put(g, GDT + GATE + 8, 1ull << 40, 8); /* a type in the upper half */
    to_ring3(g);
    GO(g, "\xff\x2c\x25\x00\x90\x00\x00" /* jmp far dword [abs 0x9000] */);
    check_end(g, HANDLER(VEC_GP) + 1, __LINE__);
    put(g, GDT + GATE + 8, 0, 8);
    v->seg[SEG_CS].sel = 0;
    set_segment(v, SEG_CS, CS0_64, get(g, GDT + CS0_64, 8));
    set_segment(v, SEG_SS, DS0, get(g, GDT + DS0, 8));
    cpu_mode_changed(v);
    CODE_AT(g, CODE + 0x100, 0xf4);
    GO(g, "\xff\x2c\x25\x00\x90\x00\x00" /* jmp far dword [abs 0x9000] */); /* the same level through the gate */
    check_end(g, CODE + 0x101, __LINE__);
    /* mov rcx, rsp; push 0; push rcx; pushfq; push 0x40; lea rax, [rel on]; push rax; iretq; on: mov bx, ss */
    RUNS(g, "\x48\x89\xe1\x6a\x00\x51\x9c\x6a\x40\x48\x8d\x05\x03\x00\x00\x00\x50\x48\xcf\x66\x8c\xd3");
    assert_int_equal((u16)REG(RBX), 0);
    /* push 3; push rsp; pushfq; push 0x4b; push rax; push 0x43; push rax; iretq */
    FAULTS(g, VEC_GP, "\x6a\x03\x54\x9c\x6a\x4b\x50\x6a\x43\x50\x48\xcf");
}

/* What a debugger does with memory: no rights, no flags, page by page, and it tells who caches code. */
static void peek_and_poke(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    to_long(g);
    put(g, PML4 + 0x2008, 0x18000 | 7, 8);
    put(g, 0x18000, 0x200000 | 1, 8); /* supervisor, read-only; the next page is absent */
    u8 buf[16], out[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    assert_true(mem_poke(v, 0x200ff0, out, 16));
    assert_true(mem_peek(v, 0x200ff0, buf, 16));
    assert_memory_equal(buf, out, 16);
    assert_int_equal(get(g, 0x18000, 8), 0x200001); /* not even accessed */
    assert_false(mem_peek(v, 0x200ff8, buf, 16));
    assert_false(mem_poke(v, 0x200ff8, out, 16));
    assert_true(mem_peek(v, 0x1ffff8, buf, 16)); /* across two pages */
    RUNS(g, "\xb8\x01\x00\x00\x00\x90\x90" /* mov eax, 1; nop; nop */);
    assert_true(mem_poke(v, CODE + 1, out + 6, 1)); /* mov eax, 7 */
    v->rip = CODE;
    v->activity = ACTIVITY_ACTIVE;
    assert_int_equal(run(g, 100), RUN_HALTED);
    assert_int_equal(REG(RAX), 7);
}

/* RDPRU, and waiting instructions that the models may have. */
static void rare_instructions(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    v->features[FEAT_RDPRU] = 1;
    to_long(g);
    /* xor ecx, ecx; db 0x0f, 0x01, 0xfd; inc ecx; db 0x0f, 0x01, 0xfd; setc bl; mov ecx, 2; db 0x0f, 0x01, 0xfd; */
    /* setc bh */
    RUNS(g, "\x31\xc9\x0f\x01\xfd\xff\xc1\x0f\x01\xfd\x0f\x92\xc3\xb9\x02\x00\x00\x00\x0f\x01\xfd\x0f\x92\xc7");
    assert_int_equal(REG(RAX) | REG(RDX), 0);
    v->cr4 |= CR4_TSD;
    to_ring3(g);
    GO(g, "\x31\xc9\x0f\x01\xfd" /* xor ecx, ecx; db 0x0f, 0x01, 0xfd */);
    check_end(g, HANDLER(VEC_UD) + 1, __LINE__);
    v->features[FEAT_WAITPKG] = 1;
    to_long(g);
    cpu_mode_changed(v);
    set_segment(v, SEG_SS, DS0, get(g, GDT + DS0, 8));
    cpu_mode_changed(v);
    v->cr4 &= ~CR4_TSD;
    /* mov rax, 0x9000; db 0xf3, 0x0f, 0xae, 0xf0; xor eax, eax; xor edx, edx; xor ecx, ecx; db 0x66, 0x0f, 0xae, */
    /* 0xf1 */
    RUNS(g, "\xb8\x00\x90\x00\x00\xf3\x0f\xae\xf0\x31\xc0\x31\xd2\x31\xc9\x66\x0f\xae\xf1");
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(stack_instructions), T(integer_instructions), T(string_instructions), T(real_mode_code), T(descriptor_instructions),
        T(privileges), T(fast_calls), T(long_mode_code), T(optional_instructions), T(leaves_and_registers), T(v86_code),
        T(long_gates), T(peek_and_poke), T(rare_instructions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
