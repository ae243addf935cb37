/*
 * Hyper-V's interface from the guest's side: discovery, synthetic MSRs, hypercalls, synthetic interrupts
 * and timers, and VM entries with an enlightened VMCS.
 */
#include "protected_guest.h"

#include "cpu/hyperv.h"
#include "cpu/msr.h"
#include "vmx_guest.h"

#define EVMCS 0x100000u
#define ASSIST 0x101000u
#define HYPERCALL_PAGE 0x102000u
#define TSC_PAGE 0x103000u
#define MESSAGES 0x104000u
#define PARTITION_ASSIST 0x105000u
#define INPUT 0x106000u
#define ZERO_PAGE 0x107000u
#define VMCS_AT 0x108000u
enum { CLEAN_FIELDS = 0x338, ENLIGHTENMENTS = 0x344, ASSIST_POINTER = 0x358 };

struct sent {
    unsigned count;
    u64 addr;
    u32 data;
};
static void sent(void *opaque, u64 addr, u32 data)
{
    struct sent *s = opaque;
    s->count++;
    s->addr = addr;
    s->data = data;
}
static u32 sent_id(void *intc) { return 5; }

static struct sent interrupts;
static struct msi_sink sink = {.send = sent, .opaque = &interrupts};
static struct hyperv *partition;

static int setup_hyperv(void **state)
{
    if (setup(state))
        return -1;
    struct guest *g = *state;
    static struct intc_ops intc;
    intc = fake_intc;
    intc.id = sent_id;
    vcpu_attach_intc(g->v, &intc, g);
    interrupts = (struct sent){0};
    partition = hyperv_new(&g->clock, g->pm, &sink);
    g->v->features[FEAT_HYPERVISOR] = 1;
    return !partition || !vmx_new(g->v) || hyperv_attach(partition, g->v);
}
static int teardown_hyperv(void **state)
{
    struct guest *g = *state;
    hyperv_free(partition);
    vmx_free(g->v);
    return teardown(state);
}

static void wrmsr(struct guest *g, u32 msr, u64 value) { assert_true(cpu_wrmsr(g->v, msr, value)); }
static u64 rdmsr(struct guest *g, u32 msr)
{
    u64 value;
    assert_true(cpu_rdmsr(g->v, msr, &value));
    return value;
}

/* ---- discovery and MSRs ---- */
static void discovery(void **state)
{
    struct guest *g = *state;
    u32 r[4];
    cpu_cpuid(g->v, 0x40000000, 0, r);
    assert_int_equal(r[0], 0x4000000a);
    assert_memory_equal(r + 1, "Microsoft Hv", 12);
    cpu_cpuid(g->v, 0x40000001, 0, r);
    assert_memory_equal(r, "Hv#1", 4);
    cpu_cpuid(g->v, 0x40000003, 0, r);
    assert_int_equal(r[0], BIT(1) | BIT(2) | BIT(3) | BIT(5) | BIT(6) | BIT(9) | BIT(11));
    cpu_cpuid(g->v, 0x40000004, 0, r);
    assert_true(r[0] & BIT(14));
    cpu_cpuid(g->v, 0x4000000a, 0, r);
    assert_int_equal(r[0], 0x0101 | BIT(17) | BIT(18) | BIT(19) | BIT(21));
    assert_int_equal(r[1], BIT(0)); /* IA32_PERF_GLOBAL_CTRL in the enlightened VMCS */
    assert_true(cpu_rdmsr(g->v, 0x40000002, &(u64){0}));
    assert_false(cpu_rdmsr(g->v, 0x40000070, &(u64){0})); /* not offered: the APIC's MSRs */
    assert_false(cpu_wrmsr(g->v, 0x40000002, 1));

    /* Without the interface: Nestor's own leaves, and no such MSR. */
    struct hyperv_vp *vp = g->v->hyperv;
    g->v->hyperv = NULL;
    cpu_cpuid(g->v, 0x40000000, 0, r);
    assert_memory_equal(r + 1, "NestorNestor", 12);
    assert_false(cpu_rdmsr(g->v, 0x40000002, &(u64){0}));
    g->v->hyperv = vp;
}

static void hypercall_page(void **state)
{
    struct guest *g = *state;
    wrmsr(g, 0x40000001, HYPERCALL_PAGE | 1);
    assert_int_equal(rdmsr(g, 0x40000001), HYPERCALL_PAGE); /* anonymous guests get none */
    assert_int_equal(get(g, HYPERCALL_PAGE, 4), 0);
    wrmsr(g, 0x40000000, 0x8100);
    wrmsr(g, 0x40000001, HYPERCALL_PAGE | 1);
    assert_int_equal(get(g, HYPERCALL_PAGE, 4), 0xc3c1010f); /* vmcall; ret */
    assert_false(cpu_wrmsr(g->v, 0x40000001, BIT64(60)));
    wrmsr(g, 0x40000001, HYPERCALL_PAGE | 3);
    wrmsr(g, 0x40000001, 0);
    assert_int_equal(rdmsr(g, 0x40000001), HYPERCALL_PAGE | 3); /* locked */
    wrmsr(g, 0x40000000, 0);
    assert_int_equal(rdmsr(g, 0x40000001) & 1, 0);
}

static void reference_time(void **state)
{
    struct guest *g = *state;
    clock_advance(&g->clock, 123456700);
    assert_int_equal(rdmsr(g, 0x40000020), 1234567);
    wrmsr(g, 0x40000021, TSC_PAGE | 1);
    for (unsigned n = 0; n < 3; n++) {
        u64 from_page = (u64)((u128)cpu_tsc(g->v) * get(g, TSC_PAGE + 8, 8) >> 64) + get(g, TSC_PAGE + 16, 8);
        s64 off = (s64)(from_page - rdmsr(g, 0x40000020));
        assert_true(off >= -1 && off <= 1);
        assert_int_equal(get(g, TSC_PAGE, 4), 1 + n);
        clock_advance(&g->clock, 987654321);
        wrmsr(g, 0x10, 77777 * n); /* the TSC jumps: the page follows, with a new sequence */
    }
    assert_int_equal(rdmsr(g, 0x40000022), g->v->tsc_hz);
}

/* ---- synthetic interrupts and timers ---- */
static void synthetic_interrupts(void **state)
{
    struct guest *g = *state;
    assert_int_equal(rdmsr(g, 0x40000081), 1);
    assert_int_equal(rdmsr(g, 0x4000009f), BIT64(16));
    assert_false(cpu_wrmsr(g->v, 0x40000092, 15));
    wrmsr(g, 0x40000092, 0x60);
    wrmsr(g, 0x40000083, MESSAGES | 1);
    wrmsr(g, 0x40000080, 1);

    /* Timer 1 to source 2, at 100 us and no more. */
    wrmsr(g, 0x400000b2, 2 << 16 | 1);
    wrmsr(g, 0x400000b3, 1000);
    wrmsr(g, 0x400000b2, 2 << 16 | 1);
    clock_advance(&g->clock, 99999);
    clock_run(&g->clock);
    assert_int_equal(interrupts.count, 0);
    clock_advance(&g->clock, 1);
    clock_run(&g->clock);
    assert_int_equal(interrupts.count, 1);
    assert_int_equal(interrupts.addr, 0xfee05000);
    assert_int_equal(interrupts.data, 0x60);
    pa_t slot = MESSAGES + 2 * 256;
    assert_int_equal(get(g, slot, 4), 0x80000010);
    assert_int_equal(get(g, slot + 16, 4), 1);
    assert_int_equal(get(g, slot + 24, 8), 1000);
    assert_int_equal(rdmsr(g, 0x400000b2) & 1, 0); /* one shot */

    /* The slot is still taken: the next message waits for EOM. */
    wrmsr(g, 0x400000b3, rdmsr(g, 0x40000020) + 10);
    wrmsr(g, 0x400000b2, 2 << 16 | 1);
    clock_advance(&g->clock, 1000);
    clock_run(&g->clock);
    assert_int_equal(interrupts.count, 1);
    assert_int_equal(get(g, slot + 5, 1), 1);
    put(g, slot, 0, 4);
    wrmsr(g, 0x40000084, 0);
    assert_int_equal(interrupts.count, 2);

    /* Direct and periodic: no message, every 50 us, and a missed period is not made up for. */
    wrmsr(g, 0x400000b1, 500);
    wrmsr(g, 0x400000b0, BIT64(12) | 0x71 << 4 | 3);
    clock_advance(&g->clock, 50000);
    clock_run(&g->clock);
    assert_int_equal(interrupts.count, 3);
    assert_int_equal(interrupts.data, 0x71);
    clock_advance(&g->clock, 170000);
    clock_run(&g->clock);
    clock_run(&g->clock);
    assert_int_equal(interrupts.count, 4);
    wrmsr(g, 0x400000b0, 0);
    clock_advance(&g->clock, 500000);
    clock_run(&g->clock);
    assert_int_equal(interrupts.count, 4);
    assert_false(cpu_wrmsr(g->v, 0x400000b0, BIT64(40)));
}

/* An interrupt of a source with automatic EOI ends when it is taken; others wait for the guest's EOI. */
static unsigned eois;
static int acked_vector(void *intc) { return 0x60; }
static void count_eoi(void *intc, u32 offset, u64 value, unsigned size) { eois += offset == 0xb0; }
static u64 apic_base;
static int base_msr(void *intc, u32 msr, u64 *value) { return *value = msr == 0x1b ? apic_base : 0, 0; }
static int count_eoi_msr(void *intc, u32 msr, u64 value) { return eois += msr == 0x80b, 0; }
static unsigned pmis;
static void count_pmi(void *intc) { pmis++; }
static void automatic_eoi(void **state)
{
    struct guest *g = *state;
    static struct intc_ops intc;
    intc = fake_intc;
    intc.id = sent_id;
    intc.ack = acked_vector;
    intc.mmio_write = count_eoi;
    intc.rdmsr = base_msr;
    intc.wrmsr = count_eoi_msr;
    intc.pmi = count_pmi;
    vcpu_attach_intc(g->v, &intc, g);
    hyperv_wrap_intc(g->v);
    static const struct { u64 sint; bool ends; } rows[] = {
        {BIT64(17) | 0x60, true}, {0x60, false}, {BIT64(17) | BIT64(16) | 0x60, false}, {BIT64(17) | 0x61, false},
    };
    for (unsigned n = 0; n < 2 * ARRAY_SIZE(rows); n++) {
        apic_base = 0xfee00800 | (n & 1 ? BIT64(10) : 0); /* xAPIC, x2APIC */
        wrmsr(g, 0x40000093, rows[n / 2].sint);
        eois = 0;
        assert_int_equal(g->v->intc_ops->ack(g->v->intc), 0x60);
        assert_int_equal(eois, rows[n / 2].ends);
    }
    /* What has nothing to do with it reaches the controller. */
    g->v->intc_ops->pmi(g->v->intc);
    assert_int_equal(pmis, 1);
}

/* ---- hypercalls ---- */
static void enable_hypercalls(struct guest *g)
{
    wrmsr(g, 0x40000000, 0x8100);
    wrmsr(g, 0x40000001, HYPERCALL_PAGE | 1);
}

/* VMCALL; HLT. The result. */
static u64 hypercall(struct guest *g, u64 input, u64 in, u64 out)
{
    struct vcpu *v = g->v;
    CODE_AT(g, CODE, 0x0f, 0x01, 0xc1, 0xf4);
    v->rip = CODE;
    v->activity = ACTIVITY_ACTIVE;
    v->gpr[RCX] = input;
    v->gpr[RDX] = in;
    v->gpr[8] = out;
    assert_int_equal(run(g, 100), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 4);
    return v->gpr[RAX];
}

static u64 flushes_asked_for(const struct vcpu *v)
{
    u64 n = 0;
    for (unsigned i = 0; i < FLUSH_CAUSES; i++)
        n += mmu_stats(v)->flushes[i];
    return n;
}

static void hypercalls(void **state)
{
    struct guest *g = *state;
    to_long(g);
    enable_hypercalls(g);
    put(g, INPUT + 8, 1, 8); /* flags: all processors */
    u64 flushes = flushes_asked_for(g->v);
    static const struct { u64 input, in, out, result; } rows[] = {
        {2, INPUT, 0, 0},                           /* HvFlushVirtualAddressSpace */
        {3 | 5ull << 32, INPUT, 0, 5ull << 32},     /* List: a rep call says how many it has done */
        {0x13, INPUT, 0, 0},
        {0x14 | 2ull << 32, INPUT, 0, 2ull << 32},
        {2 | BIT64(16), 0, 1, 0},                   /* fast */
        {0xaf | BIT64(16), EVMCS, 0, 0},            /* HvFlushGuestPhysicalAddressSpace */
        {0xb0 | 3ull << 32, INPUT, 0, 3ull << 32},
        {8 | BIT64(16), 1, 0, 0},                   /* HvNotifyLongSpinWait */
        {3, INPUT, 0, 3},                           /* a rep call without reps */
        {2 | 1ull << 32, INPUT, 0, 3},              /* and the reverse */
        {3 | 2ull << 32 | 2ull << 48, INPUT, 0, 3}, /* starts behind its end */
        {2, INPUT + 4, 0, 4},
        {2, BIT64(60), 0, 5},
        {2 | BIT64(16), 0, BIT64(9), 5},            /* unknown flags */
        {0x5d | BIT64(16), 1, 0, 0x12},             /* HvSignalEvent: no such connection */
        {0x777, INPUT, 0, 2},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        u64 result = hypercall(g, rows[n].input, rows[n].in, rows[n].out);
        if (result != rows[n].result)
            fail_msg("row %u: result %#llx, expected %#llx", n, (unsigned long long)result, (unsigned long long)rows[n].result);
    }
    assert_true(flushes_asked_for(g->v) >= flushes + 7);

    /* Outside VMX operation and below it; not without the page, and not for applications. */
    wrmsr(g, 0x40000001, 0);
    g->v->rip = CODE;
    g->v->activity = ACTIVITY_ACTIVE;
    expect_handler(g, VEC_UD);
    wrmsr(g, 0x40000001, HYPERCALL_PAGE | 1);
    to_ring3(g);
    g->v->rip = CODE;
    g->v->activity = ACTIVITY_ACTIVE;
    expect_handler(g, VEC_UD);
}

/* 32-bit guests pass pairs of registers. */
static void hypercall_32(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    enable_hypercalls(g);
    put(g, INPUT + 8, 1, 8);
    CODE_AT(g, CODE, 0x0f, 0x01, 0xc1, 0xf4);
    v->gpr[RDX] = 7;
    v->gpr[RAX] = 3;
    v->gpr[RBX] = 0;
    v->gpr[RCX] = INPUT;
    assert_int_equal(run(g, 100), RUN_HALTED);
    assert_int_equal(v->gpr[RAX], 0);
    assert_int_equal(v->gpr[RDX], 7);
}

/* A flush reaches the processors that the mask names, and no others. */
static void flush_targets(void **state)
{
    struct guest *g = *state;
    static struct vcpu other, third; /* the partition outlives this function */
    other = (struct vcpu){.index = 1};
    third = (struct vcpu){.index = 2};
    assert_int_equal(hyperv_attach(partition, &other) | hyperv_attach(partition, &third), 0);
    to_long(g);
    enable_hypercalls(g);
    put(g, INPUT + 16, BIT64(2), 8); /* HV_PROCESSOR_MASK */
    assert_int_equal(hypercall(g, 2, INPUT, 0), 0);
    assert_int_equal(other.requests & REQ_FLUSH, 0);
    assert_int_equal(third.requests & REQ_FLUSH, REQ_FLUSH);
    put(g, INPUT + 16, 0, 8); /* HV_VP_SET: banks, the first has processor 1 */
    put(g, INPUT + 24, 1, 8);
    put(g, INPUT + 32, BIT64(1), 8);
    assert_int_equal(hypercall(g, 0x13, INPUT, 0), 0);
    assert_int_equal(other.requests & REQ_FLUSH, REQ_FLUSH);
    /* The same with the set in XMM registers. */
    other.requests = third.requests = 0;
    g->v->vec[0].q[0] = 0;
    g->v->vec[0].q[1] = 1;
    g->v->vec[1].q[0] = BIT64(2);
    assert_int_equal(hypercall(g, 0x13 | BIT64(16), 0, 0), 0);
    assert_int_equal(other.requests & REQ_FLUSH, 0);
    assert_int_equal(third.requests & REQ_FLUSH, REQ_FLUSH);
}

/* ---- the enlightened VMCS ---- */
static void ev_put(struct guest *g, enum vmcs_slot s, u64 value)
{
    assert_true(vmcs_fields[s].evmcs_offset >= 0);
    put(g, EVMCS + (unsigned)vmcs_fields[s].evmcs_offset, value, vmcs_bytes(vmcs_fields[s].encoding));
}
static u64 ev_get(struct guest *g, enum vmcs_slot s)
{
    return get(g, EVMCS + (unsigned)vmcs_fields[s].evmcs_offset, vmcs_bytes(vmcs_fields[s].encoding));
}
static void ev_dirty(struct guest *g) { put(g, EVMCS + CLEAN_FIELDS, 0, 4); }
static bool ev_load(struct guest *g) { return evmcs_load(g->v, EVMCS); }

static void enable_assist(struct guest *g)
{
    wrmsr(g, 0x40000073, ASSIST | 1);
    put(g, ASSIST + 0x28, 1, 1);
    put(g, ASSIST + 0x30, EVMCS, 8);
}

/* An enlightened VMCS whose guest is a copy of its 64-bit host and starts at GUEST_CODE. */
static void make_evmcs(struct guest *g)
{
    struct vcpu *v = g->v;
    to_long(g);
    enter_vmx_operation(g);
    enable_assist(g);
    put(g, EVMCS, 1, 4);
    fill_guest(g, &v->vmx->evmcs_caps, ev_put);
}

static void entry_and_exit(void **state)
{
    struct guest *g = *state;
    make_evmcs(g);
    CODE_AT(g, GUEST_CODE, 0x48, 0x83, 0xc4, 0x10, 0xf4); /* add rsp, 16; hlt */
    ev_put(g, VMCS_VM_ENTRY_INTR_INFO_FIELD, BIT(31) | EV_HARD_EXC << 8 | VEC_DB);
    CODE_AT(g, HANDLER(VEC_DB), 0x48, 0xcf); /* iretq */
    assert_true(enter(g, true));
    assert_int_equal(ev_get(g, VMCS_VM_EXIT_REASON), EXIT_REASON_HLT);
    assert_int_equal(ev_get(g, VMCS_VM_EXIT_INSTRUCTION_LEN), 1);
    assert_int_equal(ev_get(g, VMCS_GUEST_RIP), GUEST_CODE + 4);
    assert_int_equal(ev_get(g, VMCS_GUEST_RSP), GUEST_STACK + 16);
    assert_int_equal(ev_get(g, VMCS_VM_ENTRY_INTR_INFO_FIELD) >> 31, 0);
    assert_int_equal(get(g, EVMCS + CLEAN_FIELDS, 4), 0xffff);
    assert_int_equal(g->v->vmx->current, EVMCS);
    /* There is no launch state: either instruction enters. RIP has no clean group. */
    ev_put(g, VMCS_GUEST_RIP, GUEST_CODE + 4);
    assert_true(enter(g, true));
    assert_true(enter(g, false));
    assert_int_equal(g->v->vmx->stats.evmcs_entries, 3);

    /* A guest state that is refused, and a control: what the hypervisor reads about it. */
    ev_put(g, VMCS_GUEST_RFLAGS, 0);
    ev_dirty(g);
    assert_true(enter(g, false));
    assert_int_equal(ev_get(g, VMCS_VM_EXIT_REASON), BIT(31) | EXIT_REASON_INVALID_GUEST_STATE);
    ev_put(g, VMCS_PIN_BASED_VM_EXEC_CONTROL, 0);
    ev_dirty(g);
    assert_false(enter(g, false));
    assert_int_equal(g->v->aflags, FL_ZF);
    assert_int_equal(ev_get(g, VMCS_VM_INSTRUCTION_ERROR), 7);
}

/* The enlightened VMCS has a place for IA32_PERF_GLOBAL_CTRL, of the guest and of the host. */
static void perf_global_ctrl(void **state)
{
    struct guest *g = *state;
    make_evmcs(g);
    ev_put(g, VMCS_VM_ENTRY_CONTROLS, ev_get(g, VMCS_VM_ENTRY_CONTROLS) | BIT64(ENTRY_LOAD_PERF_GLOBAL_CTRL));
    ev_put(g, VMCS_VM_EXIT_CONTROLS, ev_get(g, VMCS_VM_EXIT_CONTROLS) | BIT64(EXIT_LOAD_PERF_GLOBAL_CTRL));
    ev_put(g, VMCS_GUEST_IA32_PERF_GLOBAL_CTRL, 0x5);
    ev_put(g, VMCS_HOST_IA32_PERF_GLOBAL_CTRL, 0x300000000ull);
    ev_put(g, VMCS_CPU_BASED_VM_EXEC_CONTROL, ev_get(g, VMCS_CPU_BASED_VM_EXEC_CONTROL) | BIT(PRI_MSR_BITMAPS));
    ev_put(g, VMCS_MSR_BITMAP, 0x60000); /* zeros */
    CODE_AT(g, GUEST_CODE, 0xb9, 0x8f, 3, 0, 0, 0x0f, 0x32, 0xf4); /* mov ecx, 38fh; rdmsr; hlt */
    assert_true(enter(g, true));
    assert_int_equal(ev_get(g, VMCS_VM_EXIT_REASON), EXIT_REASON_HLT);
    assert_int_equal(g->v->gpr[RAX], 0x5);
    assert_int_equal(rdmsr(g, 0x38f), 0x300000000ull);
    ev_put(g, VMCS_HOST_IA32_PERF_GLOBAL_CTRL, BIT64(63));
    ev_dirty(g);
    assert_false(enter(g, true));
    assert_int_equal(ev_get(g, VMCS_VM_INSTRUCTION_ERROR), 8);
}

/* A clean group is not read again; a dirty one is, and so are fields without a group. */
static void clean_fields(void **state)
{
    struct guest *g = *state;
    u64 *f = g->v->vmx->f;
    put(g, EVMCS, 1, 4);
    put(g, EVMCS + CLEAN_FIELDS, 0xffff, 4);
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++)
        if (vmcs_fields[s].evmcs_offset >= 0)
            ev_put(g, s, s + 1);
    assert_true(ev_load(g)); /* the first time everything is read */
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++)
        assert_int_equal(f[s], vmcs_fields[s].evmcs_offset >= 0 && vmcs_fields[s].evmcs_group != EVMCS_OUTPUT ? s + 1 : 0);
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++)
        if (vmcs_fields[s].evmcs_offset >= 0)
            ev_put(g, s, s + 2);
    for (unsigned group = 0; group < 17; group++) {
        put(g, EVMCS + CLEAN_FIELDS, 0xffff & ~(1u << group), 4);
        assert_true(ev_load(g));
        for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++) {
            const struct vmcs_field *i = &vmcs_fields[s];
            if (i->evmcs_offset < 0 || i->evmcs_group == EVMCS_OUTPUT)
                continue;
            bool read = i->evmcs_group >= EVMCS_ALWAYS_DIRTY || i->evmcs_group <= group;
            if (f[s] != s + 1 + read)
                fail_msg("group %u dirty: %s is %s", group, i->name, read ? "stale" : "read");
        }
    }
    /* After VMCLEAR, and for another page, nothing is vouched for. */
    ev_put(g, VMCS_TSC_OFFSET, 0x1234);
    put(g, EVMCS + CLEAN_FIELDS, 0xffff, 4);
    g->v->vmx->current = VMX_NO_VMCS;
    g->v->vmx->enlightened = false;
    assert_true(ev_load(g));
    assert_int_equal(f[VMCS_TSC_OFFSET], 0x1234);
}

static void refused_pages(void **state)
{
    struct guest *g = *state;
    make_evmcs(g);
    put(g, EVMCS, 2, 4);
    assert_false(enter(g, true));
    assert_int_equal(g->v->aflags, FL_CF);
    put(g, EVMCS, 1, 4);
    static const u64 bad[] = {EVMCS + 8, BIT64(60), ~0ull, 0};
    for (unsigned n = 0; n < ARRAY_SIZE(bad); n++) {
        put(g, ASSIST + 0x30, bad[n], 8);
        assert_false(enter(g, true));
        assert_int_equal(g->v->aflags, FL_CF);
    }
    put(g, ASSIST + 0x30, EVMCS, 8);
    assert_true(enter(g, true));
    /* Switched off again: the ordinary current VMCS counts, and there is none. */
    put(g, ASSIST + 0x28, 0, 1);
    g->v->vmx->current = VMX_NO_VMCS;
    g->v->vmx->enlightened = false;
    assert_false(enter(g, true));
    assert_int_equal(g->v->aflags, FL_CF);
}

/* Every control that is offered and cannot be expressed: refused in an enlightened VMCS, by its own row. */
static void sanitized_controls(void **state)
{
    struct guest *g = *state;
    static const struct { enum vmcs_slot slot; const char *row; u32 msr; } words[WORD_COUNT] = {
        [WORD_PIN] = {VMCS_PIN_BASED_VM_EXEC_CONTROL, "EXEC_PIN_ALLOWED", 0x48d},
        [WORD_PRI] = {VMCS_CPU_BASED_VM_EXEC_CONTROL, "EXEC_PRI_ALLOWED", 0x48e},
        [WORD_SEC] = {VMCS_SECONDARY_VM_EXEC_CONTROL, "EXEC_SEC_ALLOWED", 0x48b},
        [WORD_EXIT] = {VMCS_VM_EXIT_CONTROLS, "EXIT_ALLOWED", 0x48f},
        [WORD_ENTRY] = {VMCS_VM_ENTRY_CONTROLS, "ENTRY_ALLOWED", 0x490},
    };
    struct vmx *x = g->v->vmx;
    unsigned tested = 0;
    make_evmcs(g);
    ev_put(g, VMCS_CPU_BASED_VM_EXEC_CONTROL, ev_get(g, VMCS_CPU_BASED_VM_EXEC_CONTROL) | BIT(PRI_SECONDARY_CONTROLS));
    assert_true(enter(g, true));
    for (unsigned n = 0; n < CTL_COUNT; n++) {
        const struct vmx_control *c = &vmx_controls[n];
        if (!vmx_offers(&x->caps, n) || !words[c->word].slot)
            continue;
        bool hidden = !(rdmsr(g, words[c->word].msr) >> 32 >> c->bit & 1);
        if (hidden == c->evmcs)
            fail_msg("%s: the capability MSR %s it", c->name, hidden ? "hides" : "shows");
        u64 was = ev_get(g, words[c->word].slot);
        if (!c->evmcs) {
            ev_put(g, words[c->word].slot, was | BIT64(c->bit));
            ev_dirty(g);
            if (enter(g, true) || g->v->aflags != FL_ZF || ev_get(g, VMCS_VM_INSTRUCTION_ERROR) != 7)
                fail_msg("%s: not refused", c->name);
            assert_string_equal(x->last_failure->id, words[c->word].row);
            tested++;
        }
        ev_put(g, words[c->word].slot, was);
    }
    assert_true(tested >= 12);
    ev_dirty(g);
    assert_true(enter(g, true));

    /* A guest that has not enabled the VP assist page sees and may use everything. */
    wrmsr(g, 0x40000073, 0);
    for (unsigned n = 0; n < CTL_COUNT; n++)
        if (vmx_offers(&x->caps, n) && words[vmx_controls[n].word].slot)
            assert_true(rdmsr(g, words[vmx_controls[n].word].msr) >> 32 >> vmx_controls[n].bit & 1);
    /* Nor is an ordinary VMCS judged by what an enlightened one could say. */
    vmcs_load(g->v, VMCS_AT, false);
    struct vmx_snapshot s;
    vmx_take_snapshot(g->v, &s);
    assert_ptr_equal(s.caps, &x->caps);
}

static void vmclear(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    make_evmcs(g);
    assert_true(enter(g, true));
    u8 before[0x400], after[0x400];
    physmap_read(g->pm, EVMCS, before, sizeof(before));
    put(g, INPUT, EVMCS, 8);
    for (unsigned n = 0; n < 2; n++) { /* while it is active, and when it is not */
        CODE_AT(g, CODE, 0x66, 0x0f, 0xc7, 0x30, 0xf4); /* vmclear [rax]; hlt */
        v->gpr[RAX] = INPUT;
        v->rip = CODE;
        v->activity = ACTIVITY_ACTIVE;
        assert_int_equal(run(g, 100), RUN_HALTED);
        assert_int_equal(v->aflags, 0);
        assert_true(v->vmx->current == VMX_NO_VMCS && !v->vmx->enlightened);
        physmap_read(g->pm, EVMCS, after, sizeof(after));
        assert_memory_equal(before, after, sizeof(before));
    }
    assert_true(enter(g, true));
}

static void direct_flush(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    make_evmcs(g);
    CODE_AT(g, GUEST_CODE, 0x0f, 0x01, 0xc1, 0xf4); /* vmcall; hlt */
    for (unsigned n = 0; n < 16; n++) {
        bool wanted = n & 1, allowed = n & 2, locked = n & 4, other_call = n & 8;
        put(g, EVMCS + ENLIGHTENMENTS, wanted, 4);
        put(g, EVMCS + ASSIST_POINTER, PARTITION_ASSIST, 8);
        put(g, PARTITION_ASSIST, locked, 4);
        put(g, ASSIST + 0x20, allowed, 4);
        ev_put(g, VMCS_GUEST_RIP, GUEST_CODE);
        ev_dirty(g);
        v->gpr[RCX] = other_call ? 8 : 3 | 4ull << 32;
        v->gpr[RAX] = 99;
        assert_true(enter(g, true));
        bool direct = wanted && allowed && !other_call;
        assert_int_equal(ev_get(g, VMCS_VM_EXIT_REASON), !direct ? EXIT_REASON_VMCALL : locked ? EXIT_REASON_TRAP_AFTER_FLUSH : EXIT_REASON_HLT);
        assert_int_equal(ev_get(g, VMCS_GUEST_RIP), GUEST_CODE + (direct ? 3 : 0));
        assert_int_equal(v->gpr[RAX], direct ? 4ull << 32 : 99);
    }
    assert_int_equal(v->vmx->stats.direct_flushes, 2);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup_hyperv, teardown_hyperv)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(discovery), T(hypercall_page), T(reference_time), T(synthetic_interrupts), T(automatic_eoi), T(hypercalls), T(hypercall_32), T(flush_targets),
        T(entry_and_exit), T(perf_global_ctrl), T(clean_fields), T(refused_pages), T(sanitized_controls), T(vmclear), T(direct_flush),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
