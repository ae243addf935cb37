/*
 * Programs in which the engines once differed, written down: each runs on the interpreter and on another engine, which
 * must agree on everything. All are 64-bit code at CPL 0; exceptions end a program unless it sets RECOVER.
 */
#include "jit/jit.h"
#include "twins.h"

#include <stdio.h>
#include <stdlib.h>

#define CODE(...) (const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__})

static const struct { const char *what; const u8 *code; size_t size; } cases[] = {
    {"flags that #MF shows at FWAIT, behind an instruction that replaces only some of them", CODE(
        0xdb, 0xe3,                                     /* fninit */
        0x6a, 0x40, 0xd9, 0x2c, 0x24,                   /* push 0x40; fldcw [rsp]: nothing is masked */
        0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9,             /* fld1; fldz; fdivp: a division by zero is pending */
        0x83, 0xc8, 0xff,                               /* or eax, -1: SF, PF */
        0xeb, 0x00,                                     /* a new block: flags are in memory */
        0xd0, 0xc0, 0x9b,                               /* rol al, 1; fwait */
        0x04, 0x01, 0xf4)},                             /* add al, 1: nobody reads what was; hlt */
    {"an access through GS among a group of others off the same register", CODE(
        0xb8, 0x5b, 0, 0, 0, 0x8e, 0xe8,                /* mov eax, SEL_BASED; mov gs, eax */
        0xbb, 0, 0x10, 0x02, 0, 0xbe, 5, 0, 0, 0,       /* mov ebx, 0x21000; mov esi, 5 */
        0x48, 0x8b, 0x03, 0x48, 0x8b, 0x4b, 0x08,       /* L: mov rax, [rbx]; mov rcx, [rbx + 8] */
        0x48, 0x8b, 0x53, 0x10, 0x4c, 0x8b, 0x63, 0x18, /* mov rdx, [rbx + 16]; mov r12, [rbx + 24] */
        0x65, 0x4c, 0x8b, 0x6b, 0x08,                   /* mov r13, gs:[rbx + 8] */
        0xff, 0xce, 0x75, 0xe8, 0xf4)},                 /* dec esi; jnz L; hlt */
};

/* A page of code that becomes data is written without anybody's notice again. */
static void code_becomes_data(struct twins *t)
{
    static u8 code[0x1100];
    static const u8 start[] = {
        0xe8, 0xfb, 0x0f, 0, 0,                       /* call the next page */
        0xc6, 0x04, 0x25, 0, 0x10, 1, 0, 0xc3,        /* mov byte [there], 0xc3: the same byte, but the block is gone */
        0xe8, 0xee, 0x0f, 0, 0,                       /* call it again */
        0xc6, 0x04, 0x25, 0, 0x10, 1, 0, 0x90,        /* mov byte [there], 0x90 */
        0xc6, 0x04, 0x25, 8, 0x10, 1, 0, 0x90,        /* mov byte [there + 8], 0x90: nothing is left to be noticed */
        0xf4,
    };
    memcpy(code, start, sizeof(start));
    code[0x1000] = 0xc3;
    twins_load(t, TWIN_LONG, SEL_CODE64, code, sizeof(code), TWIN_CODE, 3);
    t->a.v->dr7 = t->b.v->dr7 = 0;
    twins_run(t, 5);
    bool tracked = physmap_page_flags(t->b.pm, TWIN_CODE + 0x1000) & PAGE_CODE;
    twins_run(t, 100);
    if (!tracked || physmap_page_flags(t->b.pm, TWIN_CODE + 0x1000) & PAGE_CODE || t->b.v->activity != ACTIVITY_HLT) {
        fprintf(stderr, "tracked while it holds code: %d; afterwards: %d; activity %d\n", tracked,
                physmap_page_flags(t->b.pm, TWIN_CODE + 0x1000) & PAGE_CODE, t->b.v->activity);
        abort();
    }
}

int main(void)
{
    static const struct engine *const engines[] = {&engine_jit_eager, &engine_lockstep};
    for (unsigned e = 0; e < ARRAY_SIZE(engines); e++) {
        struct twins t;
        twins_new(&t, engines[e]);
        for (unsigned n = 0; n < ARRAY_SIZE(cases); n++) {
            twins_load(&t, TWIN_LONG, SEL_CODE64, cases[n].code, cases[n].size, TWIN_CODE, n + 1);
            printf("%s: %s\n", engines[e]->name, cases[n].what);
            fflush(stdout);
            twins_run(&t, 1000);
        }
        code_becomes_data(&t);
        twins_free(&t);
    }
    return 0;
}
