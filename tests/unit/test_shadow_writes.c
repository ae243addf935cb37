/*
 * Every instruction that can write a page-table entry, at an entry that a shadow stands on: after it, and an
 * INVLPG, the guest sees the new translation. All answers of the shadow page tables are compared with walks.
 */
#include "protected_guest.h"

#include "mmu/mmu.h"

#define PD     (PML4 + 0x2000u)
#define PDE    (PD + 16u)
#define OLD_PT 0x30000u
#define NEW_PT 0x31000u
#define OLD    (OLD_PT | 0x27)
#define NEW    (NEW_PT | 0x27)
#define SOURCE 0x20000u

#define CODE_BYTES(...) (const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__})
static const struct {
    const char *name;
    const u8 *code;
    size_t size;
    u64 rax, rbx, rcx, rdx;
} rows[] = {
    {"MOV of 1 byte", CODE_BYTES(0x88, 0x47, 0x01), .rax = NEW >> 8 & 0xff},
    {"MOV of 2 bytes", CODE_BYTES(0x66, 0x89, 0x07), .rax = NEW & 0xffff},
    {"MOV of 2 bytes, misaligned", CODE_BYTES(0x66, 0x89, 0x47, 0x01), .rax = NEW >> 8 & 0xffff},
    {"MOV of 4 bytes", CODE_BYTES(0x89, 0x07), .rax = NEW},
    {"MOV of 8 bytes", CODE_BYTES(0x48, 0x89, 0x07), .rax = NEW},
    {"MOV of 8 bytes over two entries", CODE_BYTES(0x48, 0x89, 0x47, 0xfc), .rax = (u64)NEW << 32},
    {"MOVNTI", CODE_BYTES(0x48, 0x0f, 0xc3, 0x07), .rax = NEW},
    {"MOVQ from XMM", CODE_BYTES(0x66, 0x48, 0x0f, 0x6e, 0xc0, 0x66, 0x0f, 0xd6, 0x07), .rax = NEW},
    {"MOVUPS", CODE_BYTES(0x66, 0x48, 0x0f, 0x6e, 0xc0, 0x0f, 0x11, 0x07), .rax = NEW},
    {"VMOVDQU of 32 bytes", CODE_BYTES(0xc4, 0xe1, 0xf9, 0x6e, 0xc0, 0xc5, 0xfe, 0x7f, 0x07), .rax = NEW},
    {"XCHG", CODE_BYTES(0x48, 0x87, 0x07), .rax = NEW},
    {"XCHG of 4 bytes", CODE_BYTES(0x87, 0x07), .rax = NEW},
    {"LOCK CMPXCHG", CODE_BYTES(0xf0, 0x48, 0x0f, 0xb1, 0x1f), .rax = OLD, .rbx = NEW},
    {"LOCK CMPXCHG8B", CODE_BYTES(0xf0, 0x0f, 0xc7, 0x0f), .rax = OLD, .rbx = NEW},
    {"LOCK CMPXCHG16B", CODE_BYTES(0xf0, 0x48, 0x0f, 0xc7, 0x0f), .rax = OLD, .rbx = NEW},
    {"LOCK XADD", CODE_BYTES(0xf0, 0x48, 0x0f, 0xc1, 0x07), .rax = NEW - OLD},
    {"ADD", CODE_BYTES(0x48, 0x01, 0x07), .rax = NEW - OLD},
    {"LOCK OR of 4 bytes", CODE_BYTES(0xf0, 0x09, 0x07), .rax = NEW},
    {"LOCK BTS", CODE_BYTES(0xf0, 0x48, 0x0f, 0xba, 0x2f, 0x0c)},
    {"INC of a byte's part", CODE_BYTES(0x80, 0x47, 0x01, 0x10)},
    {"PUSH", CODE_BYTES(0x48, 0x89, 0xe1, 0x48, 0x8d, 0x67, 0x08, 0x50, 0x48, 0x89, 0xcc), .rax = NEW},
    {"POP", CODE_BYTES(0x50, 0x8f, 0x07), .rax = NEW},
    {"MOVSQ", CODE_BYTES(0x48, 0xa5)},
    {"REP MOVSB", CODE_BYTES(0xf3, 0xa4), .rcx = 8},
    {"REP STOSQ", CODE_BYTES(0xf3, 0x48, 0xab), .rax = NEW, .rcx = 1},
    {"STOSD", CODE_BYTES(0xab), .rax = NEW},
    {"FISTP", CODE_BYTES(0xdb, 0xe3, 0xdf, 0x2e, 0xdf, 0x3f)}, /* FNINIT; FILD qword [rsi]; FISTP qword [rdi] */
};

static void writes(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    to_long(g);
    v->cr4 |= CR4_OSFXSR | CR4_OSXSAVE;
    v->xcr0 = 7;
    put(g, OLD_PT, 0x200027, 8);
    put(g, NEW_PT, 0x201027, 8);
    put(g, 0x200000, 0x1111, 8);
    put(g, 0x201000, 0x2222, 8);
    put(g, SOURCE, NEW, 8);
    for (volatile unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        pa_t at = CODE;
        /* Learn the translation and answer from it: 3 times mov r8, [r14]; invlpg [r14] */
        for (unsigned k = 0; k < 3; k++, at += 7)
            CODE_AT(g, at, 0x4d, 0x8b, 0x06, 0x41, 0x0f, 0x01, 0x3e);
        poke(g, at, rows[n].code, rows[n].size);
        at += rows[n].size;
        /* invlpg [r14]; mov r9, [r14]; hlt */
        CODE_AT(g, at, 0x41, 0x0f, 0x01, 0x3e, 0x4d, 0x8b, 0x0e, 0xf4);
        put(g, PDE, OLD, 8);
        mmu_set_mode(v, MMU_WALK); /* forgets all, floods too */
        mmu_set_mode(v, MMU_CHECK);
        cpu_mode_changed(v);
        mmu_flush_all(v);
        v->rip = CODE;
        v->activity = ACTIVITY_ACTIVE;
        v->gpr[RAX] = rows[n].rax, v->gpr[RBX] = rows[n].rbx, v->gpr[RCX] = rows[n].rcx, v->gpr[RDX] = rows[n].rdx;
        v->gpr[RSI] = SOURCE, v->gpr[RDI] = PDE, v->gpr[RSP] = STACK;
        v->gpr[R14] = 0x400000;
        v->gpr[R8] = v->gpr[R9] = 0;
        struct shadow_stats before = *mmu_shadow_stats(v);
        enum run_result r = run(g, 1000);
        const struct shadow_stats *after = mmu_shadow_stats(v);
        u64 tracked = 0;
        for (unsigned k = 0; k < SHADOW_WRITES; k++)
            tracked += after->writes[k] - before.writes[k];
        if (r != RUN_HALTED || v->rip != at + 8 || v->gpr[R8] != 0x1111 || v->gpr[R9] != 0x2222 || !tracked || after->dropped == before.dropped)
            fail_msg("%s: result %d at %#llx, read %#llx and %#llx, entry %#llx, %llu tracked writes, %llu shadows dropped", rows[n].name, r,
                     (unsigned long long)v->rip, (unsigned long long)v->gpr[R8], (unsigned long long)v->gpr[R9],
                     (unsigned long long)get(g, PDE, 8), (unsigned long long)tracked, (unsigned long long)(after->dropped - before.dropped));
        put(g, PDE, OLD, 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(writes, setup, teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
