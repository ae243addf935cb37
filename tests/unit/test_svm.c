/* AMD-V from the instruction's side: a host runs VMRUN on a VMCB in memory, a guest of a few instructions exits. */
#define GUEST_CPU "amd"
#include "protected_guest.h"

#include "cpu/msr.h"
#include "devices/bus.h"
#include "svm/svm.h"

#define VMCB 0x100000u
#define MSRPM 0x102000u
#define IOPM 0x104000u
#define NPT 0x108000u
#define GUEST_CODE 0x20000u
#define GUEST_STACK 0x30000u

static void vmcb_put(struct guest *g, enum vmcb_index n, u64 value) { put(g, VMCB + vmcb_fields[n].offset, value, vmcb_fields[n].bytes); }
static u64 vmcb_get(struct guest *g, enum vmcb_index n) { return get(g, VMCB + vmcb_fields[n].offset, vmcb_fields[n].bytes); }
static void intercept(struct guest *g, unsigned code)
{
    u32 at = VMCB + code / 8;
    put(g, at, get(g, at, 1) | 1u << code % 8, 1);
}

static void put_segment(struct guest *g, enum vmcb_index selector, const struct segment *s)
{
    vmcb_put(g, selector, s->sel);
    vmcb_put(g, selector + 1, vmcb_attrib(s));
    vmcb_put(g, selector + 2, s->limit);
    vmcb_put(g, selector + 3, s->base);
}

/* A guest in the host's own mode: VMRUN; HLT in the host, VMMCALL ends the guest. */
static void make_guest(struct guest *g, bool long_mode)
{
    struct vcpu *v = g->v;
    if (!v->svm)
        assert_non_null(svm_new(v));
    if (long_mode)
        to_long(g);
    v->efer |= EFER_SVME;
    CODE_AT(g, CODE, 0x0f, 0x01, 0xd8, 0xf4);
    put_segment(g, VMCB_ES_SELECTOR, &v->seg[SEG_ES]);
    put_segment(g, VMCB_CS_SELECTOR, &v->seg[SEG_CS]);
    put_segment(g, VMCB_SS_SELECTOR, &v->seg[SEG_SS]);
    put_segment(g, VMCB_DS_SELECTOR, &v->seg[SEG_DS]);
    vmcb_put(g, VMCB_GDTR_BASE, v->gdtr.base);
    vmcb_put(g, VMCB_GDTR_LIMIT, v->gdtr.limit);
    vmcb_put(g, VMCB_IDTR_BASE, v->idtr.base);
    vmcb_put(g, VMCB_IDTR_LIMIT, v->idtr.limit);
    vmcb_put(g, VMCB_EFER, v->efer);
    vmcb_put(g, VMCB_CR0, v->cr0);
    vmcb_put(g, VMCB_CR3, v->cr3);
    vmcb_put(g, VMCB_CR4, v->cr4);
    vmcb_put(g, VMCB_DR6, DR6_FIXED);
    vmcb_put(g, VMCB_DR7, DR7_FIXED);
    vmcb_put(g, VMCB_RFLAGS, FL_FIXED);
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    vmcb_put(g, VMCB_RSP, GUEST_STACK);
    vmcb_put(g, VMCB_GUEST_ASID, 1);
    vmcb_put(g, VMCB_MSRPM_BASE_PA, MSRPM);
    vmcb_put(g, VMCB_IOPM_BASE_PA, IOPM);
    vmcb_put(g, VMCB_G_PAT, 0x0007040600070406ull);
    intercept(g, SVM_EXIT_VMRUN);
    intercept(g, SVM_EXIT_VMMCALL);
    intercept(g, SVM_EXIT_SHUTDOWN);
    CODE_AT(g, GUEST_CODE, 0x0f, 0x01, 0xd9);
    v->gpr[RAX] = VMCB;
}

/* Runs the host's VMRUN; the exit code. */
static u64 vmrun(struct guest *g)
{
    struct vcpu *v = g->v;
    v->rip = CODE;
    v->activity = ACTIVITY_ACTIVE;
    assert_int_equal(run(g, 10000), RUN_HALTED);
    assert_false(v->guest_mode);
    assert_false(v->gif);
    assert_int_equal(v->rip, CODE + 4);
    return vmcb_get(g, VMCB_EXITCODE);
}

static void registers(void **state)
{
    struct guest *g = *state;
    make_guest(g, true);
    struct vcpu *v = g->v;
    u64 rsp = v->gpr[RSP];
    for (unsigned r = 0; r < 16; r++)
        if (r != RAX && r != RSP)
            v->gpr[r] = 0x1111111111111111ull * r;
    vmcb_put(g, VMCB_RAX, 0xaaaa);
    /* add rax, rbx; inc of every other register; vmmcall */
    CODE_AT(g, GUEST_CODE, 0x48, 0x01, 0xd8, 0x48, 0xff, 0xc3, 0x48, 0xff, 0xc1, 0x48, 0xff, 0xc2, 0x48, 0xff, 0xc5, 0x48, 0xff,
            0xc6, 0x48, 0xff, 0xc7, 0x49, 0xff, 0xc0, 0x49, 0xff, 0xc1, 0x49, 0xff, 0xc2, 0x49, 0xff, 0xc3, 0x49, 0xff, 0xc4, 0x49,
            0xff, 0xc5, 0x49, 0xff, 0xc6, 0x49, 0xff, 0xc7, 0x50, 0x0f, 0x01, 0xd9);
    cpu_put_rflags(v, FL_FIXED | FL_DF);
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    for (unsigned r = 0; r < 16; r++)
        if (r != RAX && r != RSP)
            assert_true(v->gpr[r] == 0x1111111111111111ull * r + 1);
    assert_true(v->gpr[RAX] == VMCB && v->gpr[RSP] == rsp && v->rflags & FL_DF);
    assert_true(vmcb_get(g, VMCB_RAX) == 0xaaaa + 0x1111111111111111ull * RBX);
    assert_int_equal(vmcb_get(g, VMCB_RSP), GUEST_STACK - 8);
    assert_int_equal(vmcb_get(g, VMCB_RIP), GUEST_CODE + 46);
    assert_int_equal(vmcb_get(g, VMCB_NRIP), GUEST_CODE + 49);
}

/* RAX, RCX, RDX and RSI hold PML4, 0xC0000081, 0x1234 and CR4.PAE; a row that needs others sets them itself. */
static const struct insn_exit { u8 len, code[8]; u16 exit; u64 info1; } insn_exits[] = {
    {3, {0x0f, 0x20, 0xc3}, SVM_EXIT_READ_CR0, BIT64(63) | RBX},
    {3, {0x0f, 0x20, 0xd3}, SVM_EXIT_READ_CR2, BIT64(63) | RBX},
    {3, {0x0f, 0x20, 0xdf}, SVM_EXIT_READ_CR3, BIT64(63) | RDI},
    {4, {0x41, 0x0f, 0x20, 0xe7}, SVM_EXIT_READ_CR4, BIT64(63) | R15},
    {4, {0x44, 0x0f, 0x20, 0xc0}, SVM_EXIT_READ_CR8, BIT64(63) | RAX},
    {3, {0x0f, 0x01, 0xe0}, SVM_EXIT_READ_CR0, 0}, /* SMSW */
    {3, {0x0f, 0x22, 0xc7}, SVM_EXIT_WRITE_CR0, BIT64(63) | RDI},
    {2, {0x0f, 0x06}, SVM_EXIT_WRITE_CR0, 0}, /* CLTS */
    {3, {0x0f, 0x01, 0xf0}, SVM_EXIT_WRITE_CR0, 0}, /* LMSW */
    {3, {0x0f, 0x22, 0xd0}, SVM_EXIT_WRITE_CR2, BIT64(63) | RAX},
    {3, {0x0f, 0x22, 0xd8}, SVM_EXIT_WRITE_CR3, BIT64(63) | RAX},
    {3, {0x0f, 0x22, 0xe6}, SVM_EXIT_WRITE_CR4, BIT64(63) | RSI},
    {4, {0x44, 0x0f, 0x22, 0xc5}, SVM_EXIT_WRITE_CR8, BIT64(63) | RBP},
    {3, {0x0f, 0x21, 0xc3}, SVM_EXIT_READ_DR0, RBX},
    {3, {0x0f, 0x21, 0xcb}, SVM_EXIT_READ_DR1, RBX},
    {3, {0x0f, 0x21, 0xd3}, SVM_EXIT_READ_DR2, RBX},
    {3, {0x0f, 0x21, 0xdb}, SVM_EXIT_READ_DR3, RBX},
    {3, {0x0f, 0x21, 0xe3}, SVM_EXIT_READ_DR4, RBX},
    {3, {0x0f, 0x21, 0xeb}, SVM_EXIT_READ_DR5, RBX},
    {3, {0x0f, 0x21, 0xf3}, SVM_EXIT_READ_DR6, RBX},
    {3, {0x0f, 0x21, 0xfb}, SVM_EXIT_READ_DR7, RBX},
    {3, {0x0f, 0x23, 0xc1}, SVM_EXIT_WRITE_DR0, RCX},
    {3, {0x0f, 0x23, 0xc9}, SVM_EXIT_WRITE_DR1, RCX},
    {3, {0x0f, 0x23, 0xd1}, SVM_EXIT_WRITE_DR2, RCX},
    {3, {0x0f, 0x23, 0xd9}, SVM_EXIT_WRITE_DR3, RCX},
    {3, {0x0f, 0x23, 0xe1}, SVM_EXIT_WRITE_DR4, RCX},
    {3, {0x0f, 0x23, 0xe9}, SVM_EXIT_WRITE_DR5, RCX},
    {3, {0x0f, 0x23, 0xf1}, SVM_EXIT_WRITE_DR6, RCX},
    {3, {0x0f, 0x23, 0xf9}, SVM_EXIT_WRITE_DR7, RCX},
    {3, {0x0f, 0x22, 0xc7}, SVM_EXIT_CR0_SEL_WRITE, BIT64(63) | RDI}, /* CR0.NE changes */
    {3, {0x0f, 0x01, 0x08}, SVM_EXIT_IDTR_READ, 0},
    {3, {0x0f, 0x01, 0x00}, SVM_EXIT_GDTR_READ, 0},
    {3, {0x0f, 0x00, 0xc3}, SVM_EXIT_LDTR_READ, 0},
    {3, {0x0f, 0x00, 0xcb}, SVM_EXIT_TR_READ, 0},
    {3, {0x0f, 0x01, 0x18}, SVM_EXIT_IDTR_WRITE, 0},
    {3, {0x0f, 0x01, 0x10}, SVM_EXIT_GDTR_WRITE, 0},
    {3, {0x0f, 0x00, 0xd3}, SVM_EXIT_LDTR_WRITE, 0},
    {3, {0x0f, 0x00, 0xdb}, SVM_EXIT_TR_WRITE, 0},
    {2, {0x0f, 0x31}, SVM_EXIT_RDTSC, 0},
    {2, {0x0f, 0x33}, SVM_EXIT_RDPMC, 0},
    {1, {0x9c}, SVM_EXIT_PUSHF, 0},
    {1, {0x9d}, SVM_EXIT_POPF, 0},
    {2, {0x0f, 0xa2}, SVM_EXIT_CPUID, 0},
    {2, {0x48, 0xcf}, SVM_EXIT_IRET, 0},
    {2, {0xcd, 0x80}, SVM_EXIT_SWINT, 0x80},
    {2, {0x0f, 0x08}, SVM_EXIT_INVD, 0},
    {2, {0xf3, 0x90}, SVM_EXIT_PAUSE, 0},
    {1, {0xf4}, SVM_EXIT_HLT, 0},
    {7, {0x0f, 0x01, 0x3d, 0x34, 0x12, 0x00, 0x00}, SVM_EXIT_INVLPG, GUEST_CODE + 7 + 0x1234},
    {3, {0x0f, 0x01, 0xdf}, SVM_EXIT_INVLPGA, 0},
    {2, {0xe4, 0x60}, SVM_EXIT_IOIO, 0x60u << 16 | BIT(9) | 1 << 4 | 1},
    {2, {0x66, 0xef}, SVM_EXIT_IOIO, 0x1234u << 16 | BIT(9) | 2 << 4},
    {1, {0x6e}, SVM_EXIT_IOIO, 0x1234u << 16 | SEG_DS << 10 | BIT(9) | 1 << 4 | BIT(2)}, /* OUTSB */
    {3, {0xf3, 0x67, 0x6c}, SVM_EXIT_IOIO, 0x1234u << 16 | BIT(8) | 1 << 4 | BIT(3) | BIT(2) | 1}, /* REP INSB, 32-bit addresses */
    {2, {0x0f, 0x32}, SVM_EXIT_MSR, 0},
    {2, {0x0f, 0x30}, SVM_EXIT_MSR, 1},
    {3, {0x0f, 0x01, 0xd8}, SVM_EXIT_VMRUN, 0},
    {3, {0x0f, 0x01, 0xd9}, SVM_EXIT_VMMCALL, 0},
    {3, {0x0f, 0x01, 0xda}, SVM_EXIT_VMLOAD, 0},
    {3, {0x0f, 0x01, 0xdb}, SVM_EXIT_VMSAVE, 0},
    {3, {0x0f, 0x01, 0xdc}, SVM_EXIT_STGI, 0},
    {3, {0x0f, 0x01, 0xdd}, SVM_EXIT_CLGI, 0},
    {3, {0x0f, 0x01, 0xf9}, SVM_EXIT_RDTSCP, 0},
    {1, {0xf1}, SVM_EXIT_ICEBP, 0},
    {2, {0x0f, 0x09}, SVM_EXIT_WBINVD, 0},
    {3, {0xf3, 0x0f, 0x09}, SVM_EXIT_WBINVD, 0}, /* WBNOINVD */
    {3, {0x0f, 0x01, 0xc8}, SVM_EXIT_MONITOR, 0},
    {3, {0x0f, 0x01, 0xc9}, SVM_EXIT_MWAIT, 0},
    {3, {0x0f, 0x01, 0xd1}, SVM_EXIT_XSETBV, 0},
    {3, {0x0f, 0x01, 0xfd}, SVM_EXIT_RDPRU, 0},
    {5, {0x66, 0x0f, 0x38, 0x82, 0x10}, SVM_EXIT_INVPCID, PML4},
};

/* Runs a row with only its own intercept on; the exit code. */
static u64 run_row(struct guest *g, const struct insn_exit *row)
{
    struct vcpu *v = g->v;
    for (unsigned n = 0; n < 0x18; n++)
        put(g, VMCB + n, 0, 1);
    vmcb_put(g, VMCB_INTERCEPT_EXCEPTIONS, 0xffffffff); /* what does not exit as it should is told by name */
    intercept(g, SVM_EXIT_HLT);
    intercept(g, SVM_EXIT_VMRUN);
    intercept(g, row->exit);
    poke(g, GUEST_CODE, row->code, row->len);
    put(g, GUEST_CODE + row->len, 0xf4, 1);
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    vmcb_put(g, VMCB_RAX, PML4);
    vmcb_put(g, VMCB_CR4, (v->cr4 | CR4_OSXSAVE) & ~CR4_DE);
    v->gpr[RCX] = row->exit == SVM_EXIT_XSETBV || row->exit == SVM_EXIT_RDPRU || row->exit == SVM_EXIT_MONITOR || row->exit == SVM_EXIT_MWAIT
                      ? 0
                      : 0xc0000081;
    v->gpr[RDX] = row->exit == SVM_EXIT_MONITOR ? 0 : 0x1234;
    v->gpr[RSI] = CR4_PAE;
    v->gpr[RDI] = CR0_PE | CR0_PG | CR0_ET;
    v->gpr[RBP] = 5;
    put(g, MSRPM + 0x800 + 0x81 / 4, 3u << 2 * (0x81 % 4), 1);
    put(g, IOPM + 0x60 / 8, 1, 1);
    put(g, IOPM + 0x1234 / 8, 3u << 0x1234 % 8, 1);
    return vmrun(g);
}

/* Each intercept of an instruction, with the next RIP and what decode assists tell. */
static void instruction_exits(void **state)
{
    struct guest *g = *state;
    make_guest(g, true);
    g->v->features[FEAT_RDPRU] = 1; /* the model leaves it to --cpu */
    for (unsigned n = 0; n < ARRAY_SIZE(insn_exits); n++) {
        const struct insn_exit *row = &insn_exits[n];
        u64 code = run_row(g, row);
        if (code != row->exit || vmcb_get(g, VMCB_EXITINFO1) != row->info1 || vmcb_get(g, VMCB_RIP) != GUEST_CODE ||
            vmcb_get(g, VMCB_NRIP) != GUEST_CODE + row->len)
            fail_msg("row %u, %s: exit %llx information %llx rip %llx next %llx", n, svm_exit_name(row->exit), (unsigned long long)code,
                     (unsigned long long)vmcb_get(g, VMCB_EXITINFO1), (unsigned long long)vmcb_get(g, VMCB_RIP),
                     (unsigned long long)vmcb_get(g, VMCB_NRIP));
    }
}

/* What is intercepted but no instruction of its own, or never happens (conformance.md). */
static bool not_an_instruction(unsigned code)
{
    static const u16 codes[] = {SVM_EXIT_RSM, SVM_EXIT_TASK_SWITCH, SVM_EXIT_FERR_FREEZE, SVM_EXIT_SHUTDOWN, SVM_EXIT_SKINIT, SVM_EXIT_MWAIT_COND};
    for (unsigned n = 0; n < ARRAY_SIZE(codes); n++)
        if (codes[n] == code)
            return true;
    unsigned cr = code & 0xf;
    return (code >= SVM_EXIT_EXCP0 && code <= SVM_EXIT_VINTR) || (code >= SVM_EXIT_EFER_WRITE_TRAP && code <= SVM_EXIT_CR15_WRITE_TRAP) ||
           (code < SVM_EXIT_READ_DR0 && cr != 0 && cr != 2 && cr != 3 && cr != 4 && cr != 8) ||
           (code >= SVM_EXIT_READ_DR0 && code < SVM_EXIT_EXCP0 && cr > 7);
}

static void every_instruction_intercept_is_tested(void **state)
{
    (void)state;
    for (unsigned code = 0; code < SVM_SLOT_NPF; code++) {
        bool found = not_an_instruction(code) || !svm_exit_name(code);
        for (unsigned n = 0; n < ARRAY_SIZE(insn_exits); n++)
            found |= insn_exits[n].exit == code;
        if (!found)
            fail_msg("no row makes the exit %s", svm_exit_name(code));
    }
}

/* Write traps come behind the instruction, with the new value; a write that faults has none. */
static void write_traps(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    static const struct { u8 len, code[12]; u16 exit; u64 info1; } rows[] = {
        {3, {0x0f, 0x22, 0xd8}, SVM_EXIT_CR3_WRITE_TRAP, PML4},                          /* mov cr3, rax */
        {2, {0x0f, 0x06}, SVM_EXIT_CR0_WRITE_TRAP, CR0_PE | CR0_ET | CR0_NE | CR0_PG},     /* clts */
        {3, {0x0f, 0x22, 0xe1}, SVM_EXIT_CR4_WRITE_TRAP, CR4_PAE | CR4_PGE},               /* mov cr4, rcx */
        {4, {0x44, 0x0f, 0x22, 0xc2}, SVM_EXIT_CR8_WRITE_TRAP, 7},                         /* mov cr8, rdx */
        {12, {0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0c, 0x01, 0x90, 0x0f, 0x30}, SVM_EXIT_EFER_WRITE_TRAP,
         EFER_SCE | EFER_LME | EFER_LMA | EFER_SVME},                                       /* read EFER, write it */
    };
    make_guest(g, true);
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        intercept(g, rows[n].exit);
        poke(g, GUEST_CODE, rows[n].code, rows[n].len);
        vmcb_put(g, VMCB_RIP, GUEST_CODE);
        vmcb_put(g, VMCB_RAX, PML4);
        vmcb_put(g, VMCB_CR0, v->cr0 | CR0_TS);
        v->gpr[RCX] = CR4_PAE | CR4_PGE;
        v->gpr[RDX] = 7;
        u64 code = vmrun(g);
        if (code != rows[n].exit || vmcb_get(g, VMCB_EXITINFO1) != rows[n].info1 || vmcb_get(g, VMCB_RIP) != GUEST_CODE + rows[n].len)
            fail_msg("row %u: exit %llx information %llx rip %llx", n, (unsigned long long)code,
                     (unsigned long long)vmcb_get(g, VMCB_EXITINFO1), (unsigned long long)vmcb_get(g, VMCB_RIP));
        v->gpr[RDX] = 0;
    }
    assert_true(vmcb_get(g, VMCB_CR4) == (CR4_PAE | CR4_PGE));
    /* CR4.PAE cannot be cleared in long mode. */
    intercept(g, SVM_EXIT_EXCP0 + VEC_GP);
    poke(g, GUEST_CODE, rows[2].code, rows[2].len);
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    v->gpr[RCX] = CR4_PGE;
    assert_int_equal(vmrun(g), SVM_EXIT_EXCP0 + VEC_GP);
    assert_int_equal(vmcb_get(g, VMCB_RIP), GUEST_CODE);
}

static u64 next_random(u64 *state) { return *state = *state * 6364136223846793005u + 1442695040888963407u, *state ^ *state >> 29; }

/*
 * VMCBs with anything in them, from a good one with a few fields changed to noise: VMRUN refuses them or runs
 * something, and the host lives. What the guest is makes no difference here; the sanitizers watch.
 */
static void random_vmcbs(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    u64 seed = 1, ran = 0, refusals = 0;
    make_guest(g, true);
    u8 good[4096], ram[0x1000];
    physmap_read(g->pm, VMCB, good, sizeof(good));
    physmap_read(g->pm, CODE, ram, sizeof(ram));
    v->pio = pio_bus_new();
    const struct vcpu before = *v;
    for (unsigned turn = 0; turn < 3000; turn++) {
        physmap_write(g->pm, VMCB, good, sizeof(good));
        physmap_write(g->pm, CODE, ram, sizeof(ram));
        for (unsigned n = next_random(&seed) % 12; n--;) {
            unsigned field = (unsigned)(next_random(&seed) % VMCB_FIELD_COUNT);
            if (vmcb_fields[field].bytes > 8)
                continue;
            u64 value = next_random(&seed), old = vmcb_get(g, field);
            static const u64 masks[] = {~0ull, 0xffff, 0xff, 0x80000fffull};
            vmcb_put(g, field, next_random(&seed) % 3 ? old ^ BIT64(value % (vmcb_fields[field].bytes * 8u)) : value & masks[value >> 62]);
        }
        for (unsigned n = 0; n < 32; n++)
            put(g, GUEST_CODE + n, next_random(&seed) >> 8, 1);
        v->cr0 = before.cr0, v->cr3 = before.cr3, v->cr4 = before.cr4, v->efer = before.efer;
        memcpy(v->seg, before.seg, sizeof(v->seg));
        v->gdtr = before.gdtr, v->idtr = before.idtr;
        v->gpr[RAX] = VMCB;
        v->gpr[RSP] = STACK;
        v->rip = CODE;
        v->activity = ACTIVITY_ACTIVE;
        v->gif = true;
        cpu_put_rflags(v, FL_FIXED);
        cpu_mode_changed(v);
        write_tables(g);
        to_long(g);
        u64 entries = v->svm->stats.entries, failures = v->svm->stats.entry_failures;
        run(g, 60);
        ran += v->svm->stats.entries - entries;
        refusals += v->svm->stats.entry_failures - failures;
        if (v->guest_mode) { /* as if by an exit that is always due: the next turn begins in the host */
            v->guest_mode = false;
            v->virt = NULL;
            mmu_set_guest(v, &(const struct slat){.kind = SLAT_NONE}, 0);
        }
        atomic_store(&v->requests, 0);
        v->delivering.valid = false;
        v->shadow = 0;
        v->pending_dbg = 0;
    }
    pio_bus_free(v->pio);
    if (ran < 500 || refusals < 200)
        fail_msg("%llu ran, %llu were refused", (unsigned long long)ran, (unsigned long long)refusals);
}

static void refused(void **state)
{
    struct guest *g = *state;
    make_guest(g, false);
    g->v->gpr[RAX] = VMCB + 8;
    expect_handler(g, VEC_GP);
    make_guest(g, false);
    g->v->rip = CODE;
    g->v->activity = ACTIVITY_ACTIVE;
    g->v->gpr[RSP] = STACK;
    g->v->efer &= ~EFER_SVME;
    expect_handler(g, VEC_UD);
    make_guest(g, false);
    vmcb_put(g, VMCB_GUEST_ASID, 0);
    assert_true(vmrun(g) == SVM_EXIT_INVALID);
    assert_int_equal(g->v->svm->stats.entry_failures, 1);
    assert_string_equal(g->v->svm->last_failure->id, "SVM_ASID0");
}

/* What a refused VMRUN leaves behind, by rows of each kind: the host as it was, GIF clear, only the exit code written. */
static void refused_by_rows(void **state)
{
    static const struct { const char *id; enum vmcb_index field; u64 value; } rows[] = {
        {"SVM_EFER_SVME", VMCB_EFER, EFER_LME | EFER_LMA},
        {"SVM_CR0_HI", VMCB_CR0, CR0_PE | CR0_PG | BIT64(32)},
        {"SVM_CR3_MBZ", VMCB_CR3, BIT64(48)},
        {"SVM_CR4_MBZ", VMCB_CR4, CR4_PAE | CR4_VMXE},
        {"SVM_DR6_HI", VMCB_DR6, BIT64(32)},
        {"SVM_DR7_HI", VMCB_DR7, BIT64(63)},
        {"SVM_EFER_MBZ", VMCB_EFER, EFER_SVME | EFER_LME | BIT64(1)},
        {"SVM_LME_PG_NOPAE", VMCB_CR4, 0},
        {"SVM_VMRUN_INTERCEPT", VMCB_INTERCEPT_MISC2, 2},
        {"SVM_INJ_TYPE", VMCB_EVENTINJ, EVENT_VALID | 5 << 8},
        {"SVM_INJ_VEC", VMCB_EVENTINJ, EVENT_VALID | EVENT_EXCEPTION << 8 | 15},
        {"SVM_NCR3", VMCB_N_CR3, BIT64(48)},
    };
    struct guest *g = *state;
    struct vcpu *v = g->v;
    make_guest(g, true);
    vmcb_put(g, VMCB_NESTED_CTL, NESTED_CTL_NP);
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        u64 old = vmcb_get(g, rows[n].field);
        vmcb_put(g, rows[n].field, rows[n].value);
        vmcb_put(g, VMCB_EXITINFO1, 0x77);
        vmcb_put(g, VMCB_NRIP, 0x77);
        v->gif = true;
        v->dr7 = DR7_FIXED | 3;
        cpu_put_rflags(v, FL_FIXED | FL_CF);
        u64 code = vmrun(g);
        const struct virt_check *failed = v->svm->last_failure;
        if (code != SVM_EXIT_INVALID || !failed || strcmp(failed->id, rows[n].id))
            fail_msg("%s: exit %llx, failed %s", rows[n].id, (unsigned long long)code, failed ? failed->id : "none");
        assert_int_equal(vmcb_get(g, VMCB_EXITINFO1), 0);
        assert_int_equal(vmcb_get(g, VMCB_NRIP), 0x77);
        assert_true(v->cr0 & CR0_PG && v->cr3 == PML4 && v->gpr[RAX] == VMCB && v->dr7 == DR7_FIXED && v->aflags & FL_CF);
        vmcb_put(g, rows[n].field, old);
    }
}

static void exceptions(void **state)
{
    struct guest *g = *state;
    make_guest(g, true);
    intercept(g, SVM_EXIT_EXCP0 + VEC_PF);
    /* mov al, [0x600000]: not mapped */
    CODE_AT(g, GUEST_CODE, 0x8a, 0x04, 0x25, 0x00, 0x00, 0x60, 0x00);
    g->v->cr2 = 0x77;
    vmcb_put(g, VMCB_CR2, 0x55);
    assert_int_equal(vmrun(g), SVM_EXIT_EXCP0 + VEC_PF);
    assert_int_equal(vmcb_get(g, VMCB_EXITINFO1), 0);
    assert_int_equal(vmcb_get(g, VMCB_EXITINFO2), 0x600000);
    assert_int_equal(vmcb_get(g, VMCB_CR2), 0x55);
    assert_int_equal(vmcb_get(g, VMCB_INSN_LEN), 15);
    assert_int_equal(get(g, VMCB + 0xd1, 4), 0x0025048a);
    assert_int_equal(vmcb_get(g, VMCB_NRIP), 0);
    /* The same while an interrupt is being delivered: its gate lies there. */
    vmcb_put(g, VMCB_IDTR_BASE, 0x600000);
    vmcb_put(g, VMCB_EVENTINJ, EVENT_VALID | 0x33);
    assert_int_equal(vmrun(g), SVM_EXIT_EXCP0 + VEC_PF);
    assert_int_equal(vmcb_get(g, VMCB_EXITINFO2), 0x600330);
    assert_int_equal(vmcb_get(g, VMCB_EXITINTINFO), EVENT_VALID | 0x33);
    assert_int_equal(vmcb_get(g, VMCB_EVENTINJ), 0);
    /* An injected #GP with an error code: the handler's first instruction is HLT. */
    vmcb_put(g, VMCB_IDTR_BASE, 0x14000);
    vmcb_put(g, VMCB_EVENTINJ, EVENT_VALID | EVENT_ERROR_VALID | EVENT_EXCEPTION << 8 | VEC_GP | 0x1234ull << 32);
    intercept(g, SVM_EXIT_HLT);
    assert_int_equal(vmrun(g), SVM_EXIT_HLT);
    assert_int_equal(vmcb_get(g, VMCB_RIP), HANDLER(VEC_GP));
    assert_int_equal(get(g, GUEST_STACK - 48, 8), 0x1234);
    assert_int_equal(get(g, GUEST_STACK - 40, 8), GUEST_CODE);
    /* A software interrupt returns to NRIP. */
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    vmcb_put(g, VMCB_RSP, GUEST_STACK);
    vmcb_put(g, VMCB_EVENTINJ, EVENT_VALID | EVENT_SOFT_INT << 8 | 0x80);
    vmcb_put(g, VMCB_NRIP, GUEST_CODE + 2);
    assert_int_equal(vmrun(g), SVM_EXIT_HLT);
    assert_int_equal(vmcb_get(g, VMCB_RIP), HANDLER(0x80));
    assert_int_equal(get(g, GUEST_STACK - 40, 8), GUEST_CODE + 2);
}

static void virtual_interrupts(void **state)
{
    struct guest *g = *state;
    make_guest(g, true);
    intercept(g, SVM_EXIT_HLT);
    /* cli; nop; sti; nop; vmmcall */
    CODE_AT(g, GUEST_CODE, 0xfa, 0x90, 0xfb, 0x90, 0x0f, 0x01, 0xd9);
    vmcb_put(g, VMCB_INT_CTL, V_INTR_MASKING | V_IRQ | 5 << 16 | 4);
    vmcb_put(g, VMCB_INT_VECTOR, 0x66);
    assert_int_equal(vmrun(g), SVM_EXIT_HLT);
    assert_int_equal(vmcb_get(g, VMCB_RIP), HANDLER(0x66));
    assert_int_equal(vmcb_get(g, VMCB_INT_CTL) & V_IRQ, 0);
    assert_int_equal(get(g, GUEST_STACK - 40, 8), GUEST_CODE + 4); /* behind the STI's shadow */
    /* Not above V_TPR: nothing. Then intercepted. */
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    vmcb_put(g, VMCB_RSP, GUEST_STACK);
    vmcb_put(g, VMCB_INT_CTL, V_INTR_MASKING | V_IRQ | 4 << 16 | 4);
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    assert_true(vmcb_get(g, VMCB_INT_CTL) & V_IRQ);
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    vmcb_put(g, VMCB_RFLAGS, FL_FIXED);
    vmcb_put(g, VMCB_INT_CTL, V_INTR_MASKING | V_IRQ | V_IGN_TPR);
    intercept(g, SVM_EXIT_VINTR);
    assert_int_equal(vmrun(g), SVM_EXIT_VINTR);
    assert_true(vmcb_get(g, VMCB_INT_CTL) & V_IRQ);
    assert_int_equal(vmcb_get(g, VMCB_RIP), GUEST_CODE + 4);
    /* A guest whose virtual GIF is clear has no virtual interrupts until it sets it. */
    CODE_AT(g, GUEST_CODE, 0xfb, 0x90, 0x90, 0x0f, 0x01, 0xdc, 0x90);
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    vmcb_put(g, VMCB_RFLAGS, FL_FIXED);
    vmcb_put(g, VMCB_INT_CTL, V_INTR_MASKING | V_IRQ | V_IGN_TPR | V_GIF_ENABLE);
    assert_int_equal(vmrun(g), SVM_EXIT_VINTR);
    assert_int_equal(vmcb_get(g, VMCB_RIP), GUEST_CODE + 6);
    assert_true(vmcb_get(g, VMCB_INT_CTL) & V_GIF);
}

/* With V_INTR_MASKING the host's IF decides about physical interrupts, without it the guest's. */
static void physical_interrupts(void **state)
{
    struct guest *g = *state;
    make_guest(g, true);
    intercept(g, SVM_EXIT_INTR);
    CODE_AT(g, GUEST_CODE, 0x90, 0xfb, 0x90, 0x90, 0x0f, 0x01, 0xd9); /* nop; sti; nop; nop; vmmcall */
    interrupt(g, 0x44);
    assert_int_equal(vmrun(g), SVM_EXIT_INTR);
    assert_int_equal(vmcb_get(g, VMCB_RIP), GUEST_CODE + 2); /* an exit does not wait for the shadow */
    assert_int_equal(g->irq, 0x44);
    vmcb_put(g, VMCB_INTERRUPT_SHADOW, 0);
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    vmcb_put(g, VMCB_INT_CTL, V_INTR_MASKING);
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    vmcb_put(g, VMCB_RFLAGS, FL_FIXED);
    cpu_put_rflags(g->v, FL_FIXED | FL_IF);
    assert_int_equal(vmrun(g), SVM_EXIT_INTR);
    assert_int_equal(vmcb_get(g, VMCB_RIP), GUEST_CODE);
}

static void nested_paging(void **state)
{
    struct guest *g = *state;
    make_guest(g, true);
    put(g, NPT, (NPT + 0x1000) | 7, 8);
    put(g, NPT + 0x1000, (NPT + 0x2000) | 7, 8);
    put(g, NPT + 0x2000, 0x87, 8);
    put(g, NPT + 0x2008, 0x200085, 8); /* read-only */
    vmcb_put(g, VMCB_NESTED_CTL, NESTED_CTL_NP);
    vmcb_put(g, VMCB_N_CR3, NPT);
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    /* mov [0x200010], al */
    CODE_AT(g, GUEST_CODE, 0x88, 0x04, 0x25, 0x10, 0x00, 0x20, 0x00);
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    assert_int_equal(vmrun(g), SVM_EXIT_NPF);
    assert_true(vmcb_get(g, VMCB_EXITINFO1) == 0x100000007ull);
    assert_int_equal(vmcb_get(g, VMCB_EXITINFO2), 0x200010);
    assert_int_equal(vmcb_get(g, VMCB_INSN_LEN), 15);
    /* The guest's PAT is its own. */
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    CODE_AT(g, GUEST_CODE, 0xb9, 0x77, 0x02, 0x00, 0x00, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0x0f, 0x01, 0xd9);
    u64 pat = g->v->pat;
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    assert_true(g->v->pat == pat && vmcb_get(g, VMCB_G_PAT) == 0);
}

/* A field whose clean bit is set may be the processor's copy of the latest exit from the same VMCB. */
static void clean_bits(void **state)
{
    struct guest *g = *state;
    make_guest(g, true);
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    vmcb_put(g, VMCB_CLEAN, BIT(CLEAN_CR2) | BIT(CLEAN_ASID));
    vmcb_put(g, VMCB_GUEST_ASID, 0);
    vmcb_put(g, VMCB_CR2, 0x1234);
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    assert_int_equal(vmcb_get(g, VMCB_CR2), 0);
    vmcb_put(g, VMCB_CLEAN, 0);
    assert_true(vmrun(g) == SVM_EXIT_INVALID);
}

static void more_state(void **state)
{
    struct guest *g = *state;
    make_guest(g, true);
    struct vcpu *v = g->v;
    CODE_AT(g, CODE, 0x0f, 0x01, 0xda, 0x0f, 0x01, 0xdb, 0xf4); /* vmload; vmsave; hlt */
    vmcb_put(g, VMCB_FS_BASE, 0x0190000000000000ull); /* not canonical in the 57 bits of the processor */
    vmcb_put(g, VMCB_GS_SELECTOR, 0x23);
    vmcb_put(g, VMCB_GS_ATTRIB, 0xcf3);
    vmcb_put(g, VMCB_TR_ATTRIB, 0x8b);
    vmcb_put(g, VMCB_STAR, 0x1234567890abcdefull);
    vmcb_put(g, VMCB_KERNEL_GS_BASE, 0xffff888000000000ull);
    v->rip = CODE;
    assert_int_equal(run(g, 100), RUN_HALTED);
    assert_true(v->seg[SEG_FS].base == 0xff90000000000000ull && vmcb_get(g, VMCB_FS_BASE) == 0xff90000000000000ull);
    assert_int_equal(v->seg[SEG_GS].sel, 0x23);
    assert_int_equal(v->seg[SEG_GS].ar, AR_G | AR_DB | 0xf3);
    assert_true(v->star == 0x1234567890abcdefull && v->kernel_gs_base == 0xffff888000000000ull);
    assert_int_equal(vmcb_get(g, VMCB_GS_ATTRIB), 0xcf3);
}

/* A host that single-steps VMRUN traps behind it, when the guest has exited. */
static void single_step(void **state)
{
    struct guest *g = *state;
    make_guest(g, true);
    g->v->rip = CODE;
    cpu_put_rflags(g->v, FL_FIXED | FL_TF);
    assert_int_equal(run(g, 1000), RUN_HALTED);
    assert_int_equal(g->v->rip, HANDLER(VEC_DB) + 1);
    assert_int_equal(get(g, STACK - 40, 8), CODE + 3);
    assert_int_equal(vmcb_get(g, VMCB_EXITCODE), SVM_EXIT_VMMCALL);
}

/* SPEC_CTRL: host and guest have one each, and the guest's WRMSR reaches its own. */
static void spec_ctrl(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    make_guest(g, true);
    assert_true(cpu_has(v, FEAT_V_SPEC_CTRL));
    /* mov ecx, 48h; rdmsr; xor eax, 3; wrmsr; vmmcall */
    CODE_AT(g, GUEST_CODE, 0xb9, 0x48, 0, 0, 0, 0x0f, 0x32, 0x83, 0xf0, 0x03, 0x0f, 0x30, 0x0f, 0x01, 0xd9);
    v->spec_ctrl = 2;
    vmcb_put(g, VMCB_SPEC_CTRL, ~1ull << 4 | 1); /* bits that do not exist are not taken over */
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    assert_int_equal(v->spec_ctrl, 2);
    assert_int_equal(vmcb_get(g, VMCB_SPEC_CTRL), 2);
    /* A processor without the feature: they share it. */
    v->features[FEAT_V_SPEC_CTRL] = 0;
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    assert_int_equal(v->spec_ctrl, 1);
    assert_int_equal(vmcb_get(g, VMCB_SPEC_CTRL), 2);
}

/* Breakpoints of the guest stop it and not its host; #DB's intercept sees DR6 and DR7 as the handler would. */
static void debug_registers(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    make_guest(g, true);
    intercept(g, SVM_EXIT_EXCP0 + VEC_DB);
    CODE_AT(g, GUEST_CODE, 0x88, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0x90, 0x0f, 0x01, 0xd9); /* mov [9000h], al; nop; vmmcall */
    v->dr[1] = 0x9000;
    const u64 watch = DR7_FIXED | 1u << 2 | 1u << 20; /* L1, a byte written */
    vmcb_put(g, VMCB_DR7, watch | DR7_GD);
    vmcb_put(g, VMCB_DR6, DR6_FIXED | DR6_BS);
    assert_int_equal(vmrun(g), SVM_EXIT_EXCP0 + VEC_DB);
    assert_int_equal(vmcb_get(g, VMCB_RIP), GUEST_CODE + 7);
    assert_int_equal(vmcb_get(g, VMCB_DR6), DR6_FIXED | DR6_BS | 2);
    assert_int_equal(vmcb_get(g, VMCB_DR7), watch); /* GD is cleared as on the way to a handler */
    assert_int_equal(v->dr7, DR7_FIXED);
    assert_int_equal(v->dr6, DR6_FIXED | DR6_BS | 2); /* not switched back: the guest's */
    /* Without breakpoints of its own it runs through, though DR1 still holds the address. */
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    vmcb_put(g, VMCB_DR7, DR7_FIXED);
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    /* The host's breakpoint does not hold in the guest, and is gone after it. */
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    v->dr7 = watch;
    mmu_watch_changed(v);
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    assert_int_equal(v->dr7, DR7_FIXED);
}

/* Under LBR virtualization each side has its last-branch registers and DEBUGCTL, without it they share them. */
static void last_branches(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    u64 *last = v->misc_msr + SLOT_LAST_BRANCH;
    make_guest(g, true);
    CODE_AT(g, GUEST_CODE, 0xeb, 0x02, 0x90, 0x90, 0x0f, 0x01, 0xd9); /* jmp +2; vmmcall */
    for (unsigned virtualized = 0; virtualized < 2; virtualized++) {
        vmcb_put(g, VMCB_RIP, GUEST_CODE);
        vmcb_put(g, VMCB_VIRT_EXT, virtualized);
        vmcb_put(g, VMCB_DBGCTL, DEBUGCTL_LBR | DEBUGCTL_BTF | 0xff00);
        vmcb_put(g, VMCB_LASTEXCPFROM, 0x333);
        vmcb_put(g, VMCB_BR_FROM, 0);
        v->debugctl = 0;
        for (unsigned n = 0; n < 4; n++)
            last[n] = 0x1000 + n;
        assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
        assert_int_equal(v->debugctl, 0);
        for (unsigned n = 0; n < 4; n++)
            assert_int_equal(last[n], 0x1000 + n);
        assert_int_equal(vmcb_get(g, VMCB_BR_FROM), virtualized ? GUEST_CODE : 0);
        assert_int_equal(vmcb_get(g, VMCB_BR_TO), virtualized ? GUEST_CODE + 4 : 0);
        assert_int_equal(vmcb_get(g, VMCB_DBGCTL), virtualized ? DEBUGCTL_LBR | DEBUGCTL_BTF : DEBUGCTL_LBR | DEBUGCTL_BTF | 0xff00);
        assert_int_equal(vmcb_get(g, VMCB_LASTEXCPFROM), 0x333);
    }
    vmcb_put(g, VMCB_RIP, GUEST_CODE);
    vmcb_put(g, VMCB_VIRT_EXT, 0);
    v->debugctl = DEBUGCTL_LBR;
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    assert_int_equal(v->debugctl, DEBUGCTL_LBR);
    assert_true(last[0] == GUEST_CODE && last[1] == GUEST_CODE + 4);
}

/* Counters of "Host Only" and "Guest Only": VMRUN and the host's HLT here, three instructions there; one of each privilege level. */
static void counters(void **state)
{
    struct guest *g = *state;
    static const struct { u64 select; u64 expected; } rows[] = {
        {BIT64(41) | BIT64(17), 2}, {BIT64(40) | BIT64(17), 3}, {BIT64(17), 5}, {BIT64(41) | BIT64(40) | BIT64(17), 5}, {BIT64(40) | BIT64(16), 0}};
    make_guest(g, true);
    CODE_AT(g, GUEST_CODE, 0x90, 0x90, 0x90, 0x0f, 0x01, 0xd9);
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++)
        assert_true(cpu_wrmsr(g->v, 0xc0010200 + 2 * n, rows[n].select | BIT64(22) | 0xc0));
    assert_int_equal(vmrun(g), SVM_EXIT_VMMCALL);
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        u64 value;
        assert_true(cpu_rdmsr(g->v, 0xc0010201 + 2 * n, &value));
        if (value != rows[n].expected)
            fail_msg("counter %u has %llu, expected %llu", n, (unsigned long long)value, (unsigned long long)rows[n].expected);
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, free_svm)
static int free_svm(void **state)
{
    svm_free(((struct guest *)*state)->v);
    return teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(registers), T(instruction_exits), T(every_instruction_intercept_is_tested), T(write_traps), T(random_vmcbs), T(refused), T(refused_by_rows), T(exceptions), T(virtual_interrupts), T(physical_interrupts),
        T(nested_paging), T(clean_bits), T(more_state), T(single_step), T(last_branches), T(spec_ctrl), T(counters), T(debug_registers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
