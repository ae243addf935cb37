/* The last-branch registers of the AMD model: what is recorded, and what is not. */
#define GUEST_CPU "amd"
#include "protected_guest.h"

#include "cpu/msr.h"

#define LAST(n) (g->v->misc_msr[SLOT_LAST_BRANCH + (n)])
#define BEFORE 0x1111u /* what is there before anything is recorded */

/* Runs @code at CODE with recording on, to the HLT that ends it. */
static void record(struct guest *g, const u8 *code, unsigned n)
{
    struct vcpu *v = g->v;
    for (unsigned k = 0; k < 4; k++)
        LAST(k) = BEFORE;
    put(g, CODE - 2, 0xf4f4, 2);
    poke(g, CODE, code, n);
    put(g, CODE + n, 0xf4f4f4f4f4f4f4f4ull, 8);
    v->rip = CODE;
    v->activity = ACTIVITY_ACTIVE;
    v->gpr[RSP] = STACK;
    assert_true(cpu_wrmsr(v, 0x1d9, DEBUGCTL_LBR));
    assert_int_equal(run(g, 1000), RUN_HALTED);
}

static void branches(void **state)
{
    struct guest *g = *state;
    static const struct { const char *name; u8 n, code[12]; u32 from, to; } rows[] = {
        {"nop", 1, {0x90}, BEFORE, BEFORE},
        {"jmp", 2, {0xeb, 0x02}, CODE, CODE + 4},
        {"jmp to the next", 2, {0xeb, 0x00}, CODE, CODE + 2},
        {"jmp back", 2, {0xeb, 0xfc}, CODE, CODE - 2},
        {"call of the next", 5, {0xe8, 0, 0, 0, 0}, CODE, CODE + 5},
        {"jz, taken", 5, {0x31, 0xc0, 0x74, 0x01, 0x90}, CODE + 2, CODE + 5},
        {"jz to the next, taken", 4, {0x31, 0xc0, 0x74, 0x00}, CODE + 2, CODE + 4},
        {"jnz, not taken", 5, {0x31, 0xc0, 0x75, 0x01, 0x90}, BEFORE, BEFORE},
        {"jnz to the next, not taken", 4, {0x31, 0xc0, 0x75, 0x00}, BEFORE, BEFORE},
        {"long jz to the next, taken", 8, {0x31, 0xc0, 0x0f, 0x84, 0, 0, 0, 0}, CODE + 2, CODE + 8},
        {"loop to the next, taken", 4, {0xb1, 0x02, 0xe2, 0x00}, CODE + 2, CODE + 4},
        {"loop to the next, not taken", 7, {0xb9, 1, 0, 0, 0, 0xe2, 0x00}, BEFORE, BEFORE},
        {"jecxz to the next, taken", 4, {0x31, 0xc9, 0xe3, 0x00}, CODE + 2, CODE + 4},
        {"jmp eax", 7, {0xb8, 0x10, 0x80, 0, 0, 0xff, 0xe0}, CODE + 5, CODE + 0x10},
        {"call far", 7, {0x9a, 0x07, 0x80, 0, 0, 0x08, 0}, CODE, CODE + 7},
        {"call, ret", 10, {0xe8, 4, 0, 0, 0, 0xf4, 0x90, 0x90, 0x90, 0xc3}, CODE + 9, CODE + 5},
        {"rep stosb", 12, {0xbf, 0x00, 0x90, 0, 0, 0xb9, 4, 0, 0, 0, 0xf3, 0xaa}, BEFORE, BEFORE},
        {"wrmsr", 11, {0x31, 0xc0, 0x31, 0xd2, 0xb9, 0x77, 0x02, 0, 0, 0x0f, 0x30}, BEFORE, BEFORE},
    };
    put(g, CODE + 0x10, 0xf4, 1);
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        record(g, rows[n].code, rows[n].n);
        if (LAST(0) != rows[n].from || LAST(1) != rows[n].to || LAST(2) != BEFORE || LAST(3) != BEFORE)
            fail_msg("%s: from %llx to %llx, exception %llx %llx", rows[n].name, (unsigned long long)LAST(0), (unsigned long long)LAST(1),
                     (unsigned long long)LAST(2), (unsigned long long)LAST(3));
    }
}

/* An event records itself as the last branch, and the branch before it as that of the last exception. */
static void events(void **state)
{
    struct guest *g = *state;
    static const struct { const char *name; u8 n, code[6]; u8 vector; u32 from; } rows[] = {
        {"ud2", 4, {0xeb, 0x00, 0x0f, 0x0b}, VEC_UD, CODE + 2},
        {"int 80h", 4, {0xeb, 0x00, 0xcd, 0x80}, 0x80, CODE + 2},
        {"int3", 3, {0xeb, 0x00, 0xcc}, VEC_BP, CODE + 2},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        record(g, rows[n].code, rows[n].n);
        if (LAST(0) != rows[n].from || LAST(1) != HANDLER(rows[n].vector) || LAST(2) != CODE || LAST(3) != CODE + 2)
            fail_msg("%s: from %llx to %llx, exception %llx %llx", rows[n].name, (unsigned long long)LAST(0), (unsigned long long)LAST(1),
                     (unsigned long long)LAST(2), (unsigned long long)LAST(3));
    }
    /* An interrupt belongs to the instruction it comes before. */
    cpu_put_rflags(g->v, FL_FIXED | FL_IF);
    interrupt(g, 0x55);
    record(g, (const u8[]){0x90}, 1);
    assert_true(LAST(0) == CODE && LAST(1) == HANDLER(0x55) && LAST(2) == BEFORE);
}

/* A debug exception ends recording and is not recorded. */
static void debug_exception(void **state)
{
    struct guest *g = *state;
    cpu_put_rflags(g->v, FL_FIXED);
    record(g, (const u8[]){0xeb, 0x00, 0xf1}, 3); /* jmp; int1 */
    assert_int_equal(g->v->rip, HANDLER(VEC_DB) + 1);
    assert_true(LAST(0) == CODE && LAST(1) == CODE + 2 && LAST(2) == BEFORE);
    assert_int_equal(g->v->debugctl, 0);
}

/* From the program's side: the MSRs. Recording begins behind the WRMSR and ends with it. */
static void registers(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    u64 value;
    /* mov ecx, 1d9h; xor edx, edx; mov eax, 1; wrmsr; jmp +0; xor eax, eax; wrmsr; jmp +0; mov ecx, 1dbh; rdmsr; hlt */
    CODE_AT(g, CODE, 0xb9, 0xd9, 0x01, 0, 0, 0x31, 0xd2, 0xb8, 1, 0, 0, 0, 0x0f, 0x30, 0xeb, 0x00, 0x31, 0xc0, 0x0f, 0x30, 0xeb, 0x00,
            0xb9, 0xdb, 0x01, 0, 0, 0x0f, 0x32, 0xf4);
    assert_int_equal(run(g, 100), RUN_HALTED);
    assert_int_equal(v->gpr[RAX], CODE + 14);
    assert_true(cpu_rdmsr(v, 0x1dc, &value) && value == CODE + 16);
    assert_true(cpu_rdmsr(v, 0x1de, &value) && value == 0);
    assert_false(cpu_wrmsr(v, 0x1db, 0));
    assert_false(cpu_wrmsr(v, 0x1d9, 0x40));
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {T(branches), T(events), T(debug_exception), T(registers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
