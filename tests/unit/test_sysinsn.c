/* System and port instructions: fault order, nothing changed on a fault, restartable strings. */
#include "fake_rooms.h"

static struct insn reg_form(unsigned reg, unsigned rm)
{
    return (struct insn){.reg = (u8)reg, .rm = (u8)rm, .base = REG_NONE, .index = REG_NONE, .opsize = 8, .adsize = 8,
                         .seg = SEG_DS};
}

static struct insn mem_form(u64 address)
{
    struct insn i = reg_form(0, 0);
    i.flags = INSN_MEM;
    i.disp = (s64)address;
    return i;
}

static void reset(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    cpu_reset(v);
    assert_int_equal(v->cr0, 0x60000010);
    assert_int_equal(v->rip, 0xfff0);
    assert_int_equal(v->seg[SEG_CS].base, 0xffff0000);
    assert_int_equal(v->dr6, 0xffff0ff0);
    assert_int_equal(v->dr7, 0x400);
    assert_int_equal(v->x87.fcw, 0x40);
    assert_int_equal(v->mxcsr, 0x1f80);
    assert_int_equal(v->activity, ACTIVITY_ACTIVE);
    v->cr0 = 0x80050033;
    v->xcr0 = 7;
    v->mxcsr = 0x1fff;
    v->lstar = 0x1234;
    cpu_init_signal(v);
    assert_int_equal(v->cr0, 0x10);
    assert_int_equal(v->xcr0, 7);
    assert_int_equal(v->mxcsr, 0x1fff);
    assert_int_equal(v->lstar, 0x1234);
    vcpu_free(v);
}

static void pins(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    vcpu_pins.intr(v, true);
    vcpu_pins.sipi(v, 0x9a);
    assert_int_equal(v->requests & (REQ_INTR | REQ_SIPI), REQ_INTR | REQ_SIPI);
    assert_int_equal(v->sipi_vector, 0x9a);
    assert_true(v->attention & ATT_REQUEST);
    vcpu_pins.intr(v, false);
    assert_int_equal(v->requests & REQ_INTR, 0);
    vcpu_free(v);
}

static void debug_registers(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    struct insn i = reg_form(7, RAX);
    v->gpr[RAX] = 0xffffdfff;
    assert_int_equal(VECTOR_OF(insn_mov_to_dr(v, &i)), -1);
    assert_int_equal(v->dr7, 0xffff07ff);
    assert_true(v->attention & ATT_DEBUG || fake.watch_changes);
    unsigned before = fake.watch_changes;
    insn_mov_to_dr(v, &i); /* the same value costs nothing */
    assert_int_equal(fake.watch_changes, before);
    v->gpr[RAX] = 1ull << 32;
    assert_int_equal(VECTOR_OF(insn_mov_to_dr(v, &i)), VEC_GP);
    i = reg_form(6, RAX);
    assert_int_equal(VECTOR_OF(insn_mov_to_dr(v, &i)), VEC_GP);
    v->gpr[RAX] = 0xffffffff;
    insn_mov_to_dr(v, &i);
    assert_int_equal(v->dr6, 0xffffeeffull | 0xff0); /* 12 is zero, the fixed bits one */
    /* DR4 is DR6 without CR4.DE, undefined with it; undefined comes before the privilege check. */
    i = reg_form(4, RBX);
    insn_mov_from_dr(v, &i);
    assert_int_equal(v->gpr[RBX], v->dr6);
    v->cr4 |= CR4_DE;
    v->cpl = 3;
    assert_int_equal(VECTOR_OF(insn_mov_from_dr(v, &i)), VEC_UD);
    i = reg_form(0, RBX);
    v->dr7 |= DR7_GD;
    assert_int_equal(VECTOR_OF(insn_mov_from_dr(v, &i)), VEC_GP);
    v->cpl = 0;
    assert_int_equal(VECTOR_OF(insn_mov_from_dr(v, &i)), VEC_DB);
    assert_int_equal(fake.db_bits, DR6_BD);
    vcpu_free(v);
}

static void control_registers(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    struct insn i = reg_form(8, RAX);
    v->gpr[RAX] = 16;
    assert_int_equal(VECTOR_OF(insn_mov_to_cr(v, &i)), VEC_GP);
    /* LMSW sets PE and never clears it. */
    i = reg_form(0, RAX);
    v->gpr[RAX] = 0xfff0 | CR0_TS;
    v->cr0 = CR0_PE | CR0_MP | CR0_PG;
    insn_lmsw(v, &i);
    assert_int_equal(v->cr0, CR0_PE | CR0_TS | CR0_PG);
    insn_clts(v, &i);
    assert_int_equal(v->cr0, CR0_PE | CR0_PG);
    assert_int_equal(fake.simd_changes, 1);
    insn_clts(v, &i);
    assert_int_equal(fake.simd_changes, 1);
    /* SMSW: operand size for registers, 16 bits for memory. */
    i.opsize = 2;
    v->gpr[RAX] = ~0ull;
    insn_smsw(v, &i);
    assert_int_equal(v->gpr[RAX], 0xffffffffffff0001);
    i = mem_form(0x100);
    memset(fake.memory + 0x100, 0xaa, 4);
    insn_smsw(v, &i);
    assert_int_equal(load32(fake.memory + 0x100), 0xaaaa0001);
    vcpu_free(v);
}

static void descriptor_tables(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    struct insn i = mem_form(0x200);
    store16(fake.memory + 0x200, 0x1234);
    store64(fake.memory + 0x202, 0xffffffff81000000);
    insn_lidt(v, &i);
    assert_int_equal(v->idtr.limit, 0x1234);
    assert_int_equal(v->idtr.base, 0xffffffff81000000);
    store64(fake.memory + 0x202, 0x8000ffff81000000);
    assert_int_equal(VECTOR_OF(insn_lidt(v, &i)), VEC_GP);
    assert_int_equal(v->idtr.base, 0xffffffff81000000);
    i.disp = FAKE_MEMORY - 9; /* the tenth byte faults: nothing is stored */
    u8 before = fake.memory[FAKE_MEMORY - 9];
    assert_int_equal(VECTOR_OF(insn_sidt(v, &i)), VEC_PF);
    assert_int_equal(fake.memory[FAKE_MEMORY - 9], before);
    v->mode = MODE_PROT16;
    i = mem_form(0x200);
    i.opsize = 2;
    insn_lgdt(v, &i);
    assert_int_equal(v->gdtr.base, 0); /* 24 bits of 0x81000000 */
    i.opsize = 2;
    v->gdtr.base = 0x81223344;
    memset(fake.memory + 0x200, 0xee, 10);
    insn_sgdt(v, &i);
    assert_int_equal(load32(fake.memory + 0x202), 0x81223344);
    assert_int_equal(fake.memory[0x206], 0xee);
    vcpu_free(v);
}

static void invalidation(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    struct insn i = mem_form(0x8000000000000000);
    insn_invlpg(v, &i); /* non-canonical: nothing */
    assert_int_equal(fake.invlpgs, 0);
    i = mem_form(0x300);
    insn_invlpg(v, &i);
    assert_int_equal(fake.invlpgs, 1);
    i.reg = RCX;
    static const struct {
        u64 type, pcid, la;
        bool pcide, ok;
    } cases[] = {
        {0, 0, 0x1000, false, true},  {0, 1, 0x1000, false, false}, {0, 1, 0x1000, true, true},
        {0, 0x1000, 0, true, false},  {0, 0, 1ull << 63, true, false}, {1, 0, 1ull << 63, true, true},
        {1, 5, 0, false, false},      {2, 5, 0, false, true},       {3, 0, 0, false, true},
        {3, 0x1000, 0, false, false}, {4, 0, 0, true, false},       {1ull << 32, 0, 0, true, false},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(cases); n++) {
        v->gpr[RCX] = cases[n].type;
        v->cr4 = cases[n].pcide ? CR4_PAE | CR4_PCIDE : CR4_PAE;
        store64(fake.memory + 0x300, cases[n].pcid);
        store64(fake.memory + 0x308, cases[n].la);
        assert_int_equal(VECTOR_OF(insn_invpcid(v, &i)), cases[n].ok ? -1 : VEC_GP);
    }
    vcpu_free(v);
}

static void io_permission(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    struct insn in = reg_form(0, 0);
    in.opcode = 0xed;
    in.opsize = 4;
    v->cpl = 3;
    v->gpr[RDX] = 0x3f8;
    v->rflags |= FL_IOPL;
    assert_int_equal(VECTOR_OF(insn_in_dx(v, &in)), -1);
    assert_int_equal(v->gpr[RAX], 0x112236f8);
    v->rflags &= ~FL_IOPL;
    v->seg[SEG_TR] = (struct segment){.base = 0x1000, .limit = 103 + 0x80 + 1, .ar = AR_P | 0xb};
    store16(fake.memory + 0x1000 + 102, 104);
    assert_int_equal(VECTOR_OF(insn_in_dx(v, &in)), -1);
    fake.memory[0x1000 + 104 + 0x7f] = 0x08; /* port 0x3fb */
    assert_int_equal(VECTOR_OF(insn_in_dx(v, &in)), VEC_GP);
    in.opsize = 2;
    assert_int_equal(VECTOR_OF(insn_in_dx(v, &in)), -1);
    v->seg[SEG_TR].limit = 103 + 0x80; /* the second byte of the pair lies outside */
    assert_int_equal(VECTOR_OF(insn_in_dx(v, &in)), VEC_GP);
    v->seg[SEG_TR].limit = 0xffff;
    v->seg[SEG_TR].ar = AR_P | 3; /* a 16-bit TSS has no map */
    assert_int_equal(VECTOR_OF(insn_in_dx(v, &in)), VEC_GP);
    v->cpl = 3;
    v->mode = MODE_V86;
    v->rflags |= FL_IOPL; /* IOPL does not count in virtual-8086 mode */
    assert_int_equal(VECTOR_OF(insn_in_dx(v, &in)), VEC_GP);
    vcpu_free(v);
}

static void string_ports(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    struct insn ins = reg_form(0, 0);
    ins.opcode = 0x6d;
    ins.opsize = 4;
    ins.flags = INSN_REP;
    v->attention = 0;
    v->rip = 0x100;
    v->next_rip = 0x102;
    v->gpr[RDX] = 1;
    v->gpr[RCX] = 3;
    v->gpr[RDI] = 0x400;
    insn_ins(v, &ins);
    assert_int_equal(v->gpr[RCX], 0);
    assert_int_equal(v->gpr[RDI], 0x40c);
    assert_int_equal(v->next_rip, 0x102);
    assert_int_equal(fake.ports_read, 3);
    /* Nothing to do: no port access. */
    insn_ins(v, &ins);
    assert_int_equal(fake.ports_read, 3);
    /* A fault in the third element: registers stand there, and the port was not read for it. */
    fake.fault_above = 0x408;
    v->gpr[RCX] = 5;
    v->gpr[RDI] = 0x400;
    assert_int_equal(VECTOR_OF(insn_ins(v, &ins)), VEC_PF);
    assert_int_equal(v->gpr[RCX], 3);
    assert_int_equal(v->gpr[RDI], 0x408);
    assert_int_equal(fake.ports_read, 5);
    fake.fault_above = 0;
    /* Attention: one element, then look up, to come back. */
    v->attention = ATT_REQUEST;
    ins.opcode = 0x6e;
    v->gpr[RCX] = 5;
    v->gpr[RSI] = 0x400;
    v->rflags |= FL_DF;
    insn_outs(v, &ins);
    assert_int_equal(v->gpr[RCX], 4);
    assert_int_equal(v->gpr[RSI], 0x3ff);
    assert_int_equal(v->next_rip, v->rip);
    assert_true(v->rflags & FL_RF);
    /* A huge count cannot hold the machine. */
    v->attention = 0;
    v->rflags &= ~FL_DF;
    v->gpr[RCX] = ~0ull;
    ins.adsize = 4;
    v->gpr[RSI] = 0xffffffff00000400;
    insn_outs(v, &ins);
    assert_int_equal(v->next_rip, v->rip);
    assert_int_equal(v->gpr[RCX] >> 32, 0);
    assert_int_equal(v->gpr[RSI] >> 32, 0);
    vcpu_free(v);
}

static void port_breakpoint(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    struct insn out = reg_form(0, 0);
    out.opcode = 0xee;
    v->gpr[RDX] = 0x3fa;
    v->dr[1] = 0x3f8;
    v->dr7 = DR7_FIXED | 1 << 2 | 0xeull << 20; /* L1, I/O, four bytes */
    insn_out_dx(v, &out);
    assert_int_equal(v->pending_dbg, 0); /* CR4.DE is clear */
    v->cr4 |= CR4_DE;
    insn_out_dx(v, &out);
    assert_int_equal(v->pending_dbg, DR6_B(1));
    assert_true(v->attention & ATT_DEBUG);
    v->pending_dbg = 0;
    v->gpr[RDX] = 0x3fc;
    insn_out_dx(v, &out);
    assert_int_equal(v->pending_dbg, 0);
    vcpu_free(v);
}

static void waiting(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    struct insn i = reg_form(0, 0);
    v->gpr[RCX] = 1;
    assert_int_equal(VECTOR_OF(insn_monitor(v, &i)), VEC_GP);
    v->gpr[RCX] = 0;
    v->misc_enable &= ~MISC_ENABLE_MONITOR;
    assert_int_equal(VECTOR_OF(insn_monitor(v, &i)), VEC_UD);
    v->misc_enable |= MISC_ENABLE_MONITOR;
    v->gpr[RAX] = FAKE_MEMORY;
    assert_int_equal(VECTOR_OF(insn_monitor(v, &i)), VEC_PF);
    assert_false(v->monitor_armed);
    v->gpr[RAX] = 1ull << 63;
    assert_int_equal(VECTOR_OF(insn_monitor(v, &i)), VEC_GP);
    v->gpr[RAX] = 0x1238;
    insn_monitor(v, &i);
    assert_int_equal(v->monitor_addr, 0x1200);
    v->gpr[RCX] = 2;
    assert_int_equal(VECTOR_OF(insn_mwait(v, &i)), VEC_GP);
    v->gpr[RCX] = 0;
    insn_mwait(v, &i); /* interrupts are off: must not sleep */
    assert_int_equal(v->activity, ACTIVITY_ACTIVE);
    insn_monitor(v, &i);
    v->rflags |= FL_IF;
    insn_mwait(v, &i);
    assert_int_equal(v->activity, ACTIVITY_MWAIT);
    assert_false(cpu_mwait_over(v)); /* one processor: only an interrupt ends it */
    fake.memory[0x123f] ^= 1;
    assert_true(cpu_mwait_over(v));
    v->activity = ACTIVITY_ACTIVE;
    insn_mwait(v, &i); /* no longer armed */
    assert_int_equal(v->activity, ACTIVITY_ACTIVE);

    insn_monitor(v, &i);
    fake.memory[0x1200] ^= 1; /* a store between the two ends the wait at once */
    insn_mwait(v, &i);
    assert_true(cpu_mwait_over(v));
    v->activity = ACTIVITY_ACTIVE;

    v->nr_cpus = 2;
    v->rflags &= ~FL_IF;
    insn_monitor(v, &i);
    insn_mwait(v, &i); /* somebody else may store, even what is there already: the wait is bounded */
    assert_int_equal(v->activity, ACTIVITY_MWAIT);
    assert_in_range(v->mwait_until, 1, UINT64_MAX - 1);
    v->mwait_until = 0;
    assert_true(cpu_mwait_over(v));
    vcpu_free(v);
}

static int wait_vector(struct vcpu *v, void (*wait)(struct vcpu *, const struct insn *), const struct insn *i) { return VECTOR_OF(wait(v, i)); }

/* UMWAIT and TPAUSE end at once; what UMONITOR names is none of MWAIT's business. */
static void user_waits(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    struct insn i = reg_form(0, RBX);
    v->rflags |= FL_IF;
    v->gpr[RAX] = v->gpr[RBX] = 0x1238;
    insn_monitor(v, &i);
    insn_umonitor(v, &i);
    insn_mwait(v, &i);
    assert_int_equal(v->activity, ACTIVITY_ACTIVE);
    v->gpr[RBX] = FAKE_MEMORY;
    assert_int_equal(VECTOR_OF(insn_umonitor(v, &i)), VEC_PF);
    static void (*const waits[])(struct vcpu *, const struct insn *) = {insn_umwait, insn_tpause};
    for (unsigned n = 0; n < ARRAY_SIZE(waits); n++)
        for (unsigned bit = 0; bit < 32; bit++) {
            v->gpr[RBX] = BIT64(bit) | ~0ull << 32;
            v->aflags = FL_ARITH;
            assert_int_equal(wait_vector(v, waits[n], &i), bit ? VEC_GP : -1);
            assert_int_equal(v->aflags, bit ? FL_ARITH : 0);
            assert_int_equal(v->activity, ACTIVITY_ACTIVE);
        }
    vcpu_free(v);
}

static void msr_instructions(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    struct insn i = reg_form(0, 0);
    v->gpr[RCX] = 0xffffffff00000000 | 0xc0000102;
    v->gpr[RAX] = 0xffffffff81234567;
    v->gpr[RDX] = 0xffffffff;
    insn_wrmsr(v, &i);
    assert_int_equal(v->kernel_gs_base, 0xffffffff81234567);
    insn_rdmsr(v, &i);
    assert_int_equal(v->gpr[RAX], 0x81234567);
    v->gpr[RCX] = 0x12345;
    assert_int_equal(VECTOR_OF(insn_rdmsr(v, &i)), VEC_GP);
    assert_int_equal(v->gpr[RAX], 0x81234567);
    i.opsize = 4;
    v->gpr[RAX] = ~0ull;
    insn_wrfsbase(v, &i);
    assert_int_equal(v->seg_base[SEG_FS], 0xffffffff);
    vcpu_free(v);
}

/* ---- guest mode: what comes before the exit, and what the exit comes before ---- */

#define EXITED 1000
static void hook_io(struct vcpu *v, const struct io_access *io, const struct insn *i) { raised(EXITED, io->port); }
static void hook_msr(struct vcpu *v, u32 msr, bool write, u64 x, const struct insn *i) { raised(EXITED, msr); }
static void hook_dr(struct vcpu *v, unsigned dr, unsigned gpr, bool write, const struct insn *i) { raised(EXITED, dr); }
static bool hook_cr_write(struct vcpu *v, unsigned cr, unsigned gpr, u64 *x, const struct insn *i)
{
    raised(EXITED, cr);
}
static bool hook_lmsw(struct vcpu *v, u16 *source, bool mem, gva_t la, const struct insn *i)
{
    raised(EXITED, (u32)la);
}
static const struct virt_ops hooks = {
    .name = "test", .io = hook_io, .msr = hook_msr, .dr = hook_dr, .cr_write = hook_cr_write, .lmsw = hook_lmsw,
};

static void guest_mode(void **state)
{
    struct vcpu *v = fake_vcpu("intel");
    v->guest_mode = true;
    v->virt = &hooks;
    v->in_vmx_operation = true;
    struct insn i = reg_form(0, 0);
    v->gpr[RCX] = 0x12345; /* no such register: the exit comes first */
    assert_int_equal(VECTOR_OF(insn_rdmsr(v, &i)), EXITED);
    assert_int_equal(fake.error, 0x12345);
    assert_int_equal(VECTOR_OF(insn_wrmsr(v, &i)), EXITED);
    i = reg_form(8, RAX);
    v->gpr[RAX] = 0x100; /* reserved bits of CR8, too */
    assert_int_equal(VECTOR_OF(insn_mov_to_cr(v, &i)), EXITED);
    /* LMSW's source is part of the exit qualification: its fault comes first. */
    i = mem_form(FAKE_MEMORY);
    assert_int_equal(VECTOR_OF(insn_lmsw(v, &i)), VEC_PF);
    i = mem_form(0x40);
    assert_int_equal(VECTOR_OF(insn_lmsw(v, &i)), EXITED);
    assert_int_equal(fake.error, 0x40);
    /* MOV DR: VMX exits before everything, SVM after #UD and #GP and before general detect. */
    i = reg_form(4, RAX);
    v->cr4 |= CR4_DE;
    v->cpl = 3;
    assert_int_equal(VECTOR_OF(insn_mov_from_dr(v, &i)), EXITED);
    v->in_vmx_operation = false;
    assert_int_equal(VECTOR_OF(insn_mov_from_dr(v, &i)), VEC_UD);
    i.reg = 3;
    assert_int_equal(VECTOR_OF(insn_mov_from_dr(v, &i)), VEC_GP);
    v->cpl = 0;
    v->dr7 |= DR7_GD;
    assert_int_equal(VECTOR_OF(insn_mov_from_dr(v, &i)), EXITED);
    /* Ports: the permission map, then the exit, then the memory operand. */
    i = reg_form(0, 0);
    i.opcode = 0x6e;
    i.flags = INSN_REP;
    v->gpr[RSI] = FAKE_MEMORY;
    v->gpr[RCX] = 1;
    v->gpr[RDX] = 0x80;
    assert_int_equal(VECTOR_OF(insn_outs(v, &i)), EXITED);
    v->cpl = 3;
    v->seg[SEG_TR].limit = 0;
    assert_int_equal(VECTOR_OF(insn_outs(v, &i)), VEC_GP);
    v->gpr[RCX] = 0; /* nothing is accessed */
    assert_int_equal(VECTOR_OF(insn_outs(v, &i)), -1);
    vcpu_free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reset),        cmocka_unit_test(pins),
        cmocka_unit_test(debug_registers), cmocka_unit_test(control_registers),
        cmocka_unit_test(descriptor_tables), cmocka_unit_test(invalidation),
        cmocka_unit_test(io_permission), cmocka_unit_test(string_ports),
        cmocka_unit_test(port_breakpoint), cmocka_unit_test(waiting), cmocka_unit_test(user_waits),
        cmocka_unit_test(msr_instructions), cmocka_unit_test(guest_mode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
