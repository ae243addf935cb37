/* Local APICs and the bus between them. */
#include "dev_test.h"

#include "devices/apic_bus.h"
#include "devices/ioapic.h"
#include "devices/lapic.h"

#define CPUS 4
#define BASE_MSR 0x1b
#define EN BIT64(11)
#define EXTD BIT64(10)

struct cpu {
    bool intr;
    unsigned nmi, smi, init, sipi;
    u8 vector;
};

struct rig {
    struct fixture f;
    struct apic_bus *bus;
    struct lapic *apic[CPUS];
    struct cpu cpu[CPUS];
    u8 eoi_vector;
    unsigned eois;
    int inta_vector;
};

static const struct intc_ops *ops = &lapic_intc_ops;

static void p_intr(void *c, bool on) { ((struct cpu *)c)->intr = on; }
static void p_nmi(void *c) { ((struct cpu *)c)->nmi++; }
static void p_smi(void *c) { ((struct cpu *)c)->smi++; }
static void p_init(void *c) { ((struct cpu *)c)->init++; }

static void p_sipi(void *c, u8 v)
{
    ((struct cpu *)c)->sipi++;
    ((struct cpu *)c)->vector = v;
}

static void on_eoi(void *o, u8 v)
{
    struct rig *r = o;
    r->eois++;
    r->eoi_vector = v;
}

static int inta(void *o) { return ((struct rig *)o)->inta_vector; }

static void rig_init(struct rig *r)
{
    memset(r, 0, sizeof(*r));
    fixture_init(&r->f);
    r->bus = apic_bus_new();
    apic_bus_on_eoi(r->bus, on_eoi, r);
    apic_bus_set_inta(r->bus, inta, inta, r);
    for (unsigned i = 0; i < CPUS; i++) {
        struct lapic_config c = {
            .id = i, .bsp = i == 0, .x2apic = true, .tsc_deadline = true, .directed_eoi = true, .phys_bits = 40,
            .pins = {p_intr, p_nmi, p_smi, p_init, p_sipi}, .cpu = &r->cpu[i],
        };
        struct error err;
        r->apic[i] = lapic_new(&r->f.board, r->bus, &c, &err);
        assert_non_null(r->apic[i]);
    }
}

static void rig_free(struct rig *r)
{
    for (unsigned i = 0; i < CPUS; i++)
        lapic_free(r->apic[i]);
    apic_bus_free(r->bus);
    fixture_free(&r->f);
}

static u32 rd(struct lapic *l, u32 off) { return (u32)ops->mmio_read(l, off, 4); }
static void wr(struct lapic *l, u32 off, u32 v) { ops->mmio_write(l, off, v, 4); }
static void icr(struct lapic *l, u32 dest, u32 low) { wr(l, 0x310, dest << 24); wr(l, 0x300, low); }

static u64 msr(struct lapic *l, u32 n)
{
    u64 v = 0;
    assert_int_equal(ops->rdmsr(l, n, &v), 0);
    return v;
}

static int wmsr(struct lapic *l, u32 n, u64 v) { return ops->wrmsr(l, n, v); }

static void enable_all(struct rig *r)
{
    for (unsigned i = 0; i < CPUS; i++)
        wr(r->apic[i], 0xf0, 0x1ff);
}

static void x2apic_all(struct rig *r)
{
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(wmsr(r->apic[i], BASE_MSR, msr(r->apic[i], BASE_MSR) | EXTD), 0);
}

/* Takes and completes whatever waits; the vector or -1. */
static int serve(struct lapic *l)
{
    int v = ops->ack(l);
    if (v >= 0)
        wr(l, 0xb0, 0);
    return v;
}

static void reset_values(void **state)
{
    struct rig r;
    rig_init(&r);
    struct lapic *l = r.apic[1];
    assert_int_equal(msr(l, BASE_MSR), 0xfee00800);
    assert_int_equal(msr(r.apic[0], BASE_MSR), 0xfee00900);
    assert_int_equal(rd(l, 0x20), 1u << 24);
    assert_int_equal(rd(l, 0x30), 0x01050014);
    assert_int_equal(rd(l, 0xd0), 0);
    assert_int_equal(rd(l, 0xe0), 0xffffffff);
    assert_int_equal(rd(l, 0xf0), 0xff);
    for (u32 off = 0x320; off <= 0x370; off += 0x10)
        assert_int_equal(rd(l, off), 0x10000);
    assert_int_equal(ops->page(l), 0xfee00000);
    assert_int_equal(ops->peek(l), -1);
    rig_free(&r);
}

static void fixed_ipi_priorities_and_eoi(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct lapic *l = r.apic[1];
    icr(r.apic[0], 1, 0x4055);
    icr(r.apic[0], 1, 0x4031);
    assert_true(r.cpu[1].intr);
    assert_int_equal(rd(l, 0x220), 1u << 0x15); /* IRR bit 0x55 */
    assert_int_equal(ops->peek(l), 0x55);
    assert_int_equal(ops->ack(l), 0x55);
    assert_false(r.cpu[1].intr); /* 0x31 waits below class 5 */
    assert_int_equal(rd(l, 0xa0), 0x50);
    assert_int_equal(ops->ack(l), -1);
    icr(r.apic[0], 1, 0x405f); /* the same class does not nest */
    assert_false(r.cpu[1].intr);
    icr(r.apic[0], 1, 0x4061);
    assert_int_equal(ops->ack(l), 0x61);
    wr(l, 0xb0, 0);
    wr(l, 0xb0, 0);
    assert_int_equal(serve(l), 0x5f);
    ops->set_tpr(l, 0x3f);
    assert_false(r.cpu[1].intr);
    assert_int_equal(rd(l, 0x80), 0x3f);
    wr(l, 0x80, 0x2f);
    assert_int_equal(serve(l), 0x31);
    assert_int_equal(r.eois, 0); /* edges are not broadcast */
    rig_free(&r);
}

static void software_disable_masks_and_refuses(void **state)
{
    struct rig r;
    rig_init(&r);
    struct lapic *l = r.apic[0];
    wr(l, 0x350, 0x40);
    assert_int_equal(rd(l, 0x350), 0x10040); /* the mask cannot be cleared while disabled */
    icr(r.apic[1], 0, 0x4055);
    assert_int_equal(ops->peek(l), -1);
    icr(r.apic[1], 0, 0x4400);
    assert_int_equal(r.cpu[0].nmi, 1); /* NMIs still pass */
    enable_all(&r);
    wr(l, 0x350, 0x40);
    assert_int_equal(rd(l, 0x350), 0x40);
    icr(r.apic[1], 0, 0x4055);
    wr(l, 0xf0, 0xff);
    assert_int_equal(rd(l, 0x350), 0x10040);
    assert_int_equal(ops->peek(l), 0x55); /* what was pending stays */
    rig_free(&r);
}

static void illegal_vectors_and_registers(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct lapic *l = r.apic[0];
    wr(l, 0x370, 0xfe);
    icr(l, 1, 0x4005);
    assert_int_equal(rd(l, 0x280), 0); /* not before it is written */
    wr(l, 0x280, 0);
    assert_int_equal(rd(l, 0x280), 0x20);
    assert_int_equal(serve(l), 0xfe);
    rd(l, 0x3d0);
    wr(l, 0x280, 0);
    assert_int_equal(rd(l, 0x280), 0x80);
    wr(l, 0x280, 0);
    assert_int_equal(rd(l, 0x280), 0);
    /* MSI with a vector below 16: the receiver notes it. */
    apic_bus_msi(r.bus).send(r.bus, 0xfee00000, 0x0f);
    wr(l, 0x280, 0);
    assert_int_equal(rd(l, 0x280), 0x40);
    rig_free(&r);
}

static void destinations_xapic(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct lapic *l = r.apic[0];
    icr(l, 0xff, 0x4050);
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(serve(r.apic[i]), 0x50);
    static const struct { u32 shorthand; bool to[2]; } cases[] = {
        {1, {true, false}}, {2, {true, true}}, {3, {false, true}},
    };
    for (unsigned c = 0; c < ARRAY_SIZE(cases); c++) {
        icr(l, 0, cases[c].shorthand << 18 | 0x4051);
        assert_int_equal(serve(r.apic[0]), cases[c].to[0] ? 0x51 : -1);
        assert_int_equal(serve(r.apic[3]), cases[c].to[1] ? 0x51 : -1);
        serve(r.apic[1]);
        serve(r.apic[2]);
    }
    /* Flat: one bit an APIC. */
    for (unsigned i = 0; i < CPUS; i++)
        wr(r.apic[i], 0xd0, 1u << (24 + i));
    icr(l, 0x0a, 0x4852);
    assert_int_equal(serve(r.apic[0]), -1);
    assert_int_equal(serve(r.apic[1]), 0x52);
    assert_int_equal(serve(r.apic[2]), -1);
    assert_int_equal(serve(r.apic[3]), 0x52);
    /* Cluster: 0x31 is member 1 of cluster 3. */
    wr(r.apic[2], 0xe0, 0x0fffffff);
    wr(r.apic[2], 0xd0, 0x31u << 24);
    icr(l, 0x33, 0x4853);
    assert_int_equal(serve(r.apic[2]), 0x53);
    icr(l, 0x23, 0x4853);
    assert_int_equal(serve(r.apic[2]), -1);
    icr(l, 0x32, 0x4853);
    assert_int_equal(serve(r.apic[2]), -1);
    rig_free(&r);
}

static void lowest_priority_picks_and_rotates(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    for (unsigned i = 0; i < CPUS; i++) {
        wr(r.apic[i], 0xd0, 1u << (24 + i));
        ops->set_tpr(r.apic[i], i == 2 ? 0x00 : 0x20);
    }
    struct msi_sink msi = apic_bus_msi(r.bus);
    msi.send(msi.opaque, 0xfee0f000 | BIT(2), 0x0100 | 0x77);
    assert_int_equal(serve(r.apic[2]), 0x77);
    ops->set_tpr(r.apic[2], 0x20);
    unsigned hit[CPUS] = {0};
    for (unsigned n = 0; n < 8; n++) {
        msi.send(msi.opaque, 0xfee0f000 | BIT(2), 0x0100 | 0x78);
        for (unsigned i = 0; i < CPUS; i++)
            hit[i] += serve(r.apic[i]) == 0x78;
    }
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(hit[i], 2);
    rig_free(&r);
}

static void init_sipi_nmi_smi(void **state)
{
    struct rig r;
    rig_init(&r);
    struct lapic *l = r.apic[0];
    icr(l, 0, 0xc4500);
    assert_int_equal(r.cpu[0].init, 0);
    assert_int_equal(r.cpu[1].init, 1);
    icr(l, 0, 0xc8500); /* level de-assert: nothing */
    assert_int_equal(r.cpu[1].init, 1);
    icr(l, 0, 0xc4609);
    assert_int_equal(r.cpu[3].sipi, 1);
    assert_int_equal(r.cpu[3].vector, 9);
    icr(l, 2, 0x4200);
    assert_int_equal(r.cpu[2].smi, 1);
    assert_int_equal(rd(l, 0x300) & BIT(12), 0); /* never busy */
    rig_free(&r);
}

static void init_keeps_id_and_base(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct lapic *l = r.apic[1];
    wr(l, 0x20, 7u << 24);
    assert_int_equal(wmsr(l, BASE_MSR, 0xfed40000 | EN), 0);
    assert_int_equal(ops->page(l), 0xfed40000);
    icr(r.apic[0], 7, 0x4055);
    ops->init(l);
    assert_int_equal(rd(l, 0x20), 7u << 24);
    assert_int_equal(ops->page(l), 0xfed40000);
    assert_int_equal(rd(l, 0xf0), 0xff);
    assert_false(r.cpu[1].intr);
    rig_free(&r);
}

static void base_transitions(void **state)
{
    struct rig r;
    rig_init(&r);
    struct lapic *l = r.apic[1];
    u64 base = 0xfee00000;
    assert_int_equal(wmsr(l, BASE_MSR, base | EN | 1), -1);
    assert_int_equal(wmsr(l, BASE_MSR, base | EN | BIT64(40)), -1);
    assert_int_equal(wmsr(l, BASE_MSR, base | EXTD), -1);
    wr(l, 0x20, 9u << 24);
    assert_int_equal(wmsr(l, BASE_MSR, base | EN | EXTD), 0);
    assert_int_equal(msr(l, 0x802), 1); /* the initial ID, whatever was written */
    assert_int_equal(msr(l, 0x80d), 2);
    assert_int_equal(ops->page(l), ~0ull);
    assert_int_equal(wmsr(l, BASE_MSR, base | EN), -1);
    assert_int_equal(wmsr(l, BASE_MSR, base | EXTD), -1);
    assert_int_equal(wmsr(l, BASE_MSR, base), 0);
    assert_false(lapic_enabled(l));
    assert_int_equal(ops->page(l), ~0ull);
    assert_int_equal(wmsr(l, BASE_MSR, base | EN | EXTD), -1);
    ops->set_tpr(l, 0x30); /* CR8 works without an APIC */
    assert_int_equal(ops->get_tpr(l), 0x30);
    ops->set_tpr(l, 0);
    icr(r.apic[0], 1, 0x4500);
    assert_int_equal(r.cpu[1].init, 0); /* and messages do not reach it */
    assert_int_equal(wmsr(l, BASE_MSR, base | EN), 0);
    assert_int_equal(rd(l, 0x20), 1u << 24);
    assert_int_equal(rd(l, 0xf0), 0xff);
    rig_free(&r);
}

static void x2apic_msr_faults(void **state)
{
    struct rig r;
    rig_init(&r);
    struct lapic *l = r.apic[0];
    u64 v;
    assert_int_equal(ops->rdmsr(l, 0x802, &v), -1); /* xAPIC mode */
    x2apic_all(&r);
    /* For every register: readable, writable, and the bits that may be set. */
    for (u32 reg = 0; reg < 0x40; reg++) {
        bool rd_ok = reg == 2 || reg == 3 || reg == 8 || reg == 0xa || reg == 0xd || reg == 0xf ||
                     (reg >= 0x10 && reg <= 0x28) || reg == 0x30 || (reg >= 0x32 && reg <= 0x39) || reg == 0x3e;
        bool wr_ok = reg == 8 || reg == 0xb || reg == 0xf || reg == 0x28 || reg == 0x30 ||
                     (reg >= 0x32 && reg <= 0x38) || reg == 0x3e || reg == 0x3f;
        assert_int_equal(ops->rdmsr(l, 0x800 + reg, &v), rd_ok ? 0 : -1);
        if (reg != 0x30 && reg != 0x3f)
            assert_int_equal(wmsr(l, 0x800 + reg, 0), wr_ok ? 0 : -1);
        if (reg != 0x30)
            assert_int_equal(wmsr(l, 0x800 + reg, BIT64(32)), -1);
    }
    assert_int_equal(wmsr(l, 0x808, 0x100), -1);
    assert_int_equal(wmsr(l, 0x80b, 1), -1);
    assert_int_equal(wmsr(l, 0x828, 1), -1);
    assert_int_equal(wmsr(l, 0x832, 0x80000), -1);
    assert_int_equal(wmsr(l, 0x837, 0x400), -1);
    assert_int_equal(wmsr(l, 0x83e, 4), -1);
    assert_int_equal(wmsr(l, 0x830, 1 << 13), -1);
    assert_int_equal(wmsr(l, 0x830, 1 << 20), -1);
    assert_int_equal(wmsr(l, 0x840, 0), -1);
    rig_free(&r);
}

static void x2apic_destinations(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    x2apic_all(&r);
    struct lapic *l = r.apic[0];
    assert_int_equal(wmsr(l, 0x830, 0xffffffff00000060ull), 0);
    for (unsigned i = 0; i < CPUS; i++) {
        assert_int_equal(ops->ack(r.apic[i]), 0x60);
        assert_int_equal(wmsr(r.apic[i], 0x80b, 0), 0);
    }
    assert_int_equal(wmsr(l, 0x830, 0x0000000600000861ull), 0);
    assert_int_equal(ops->peek(r.apic[0]), -1);
    assert_int_equal(ops->peek(r.apic[1]), 0x61);
    assert_int_equal(ops->peek(r.apic[2]), 0x61);
    assert_int_equal(ops->peek(r.apic[3]), -1);
    assert_int_equal(wmsr(l, 0x830, 0x0001000800000861ull), 0); /* another cluster */
    assert_int_equal(ops->peek(r.apic[3]), -1);
    assert_int_equal(wmsr(l, 0x83f, 0x99), 0);
    assert_int_equal(ops->peek(l), 0x99);
    assert_int_equal(msr(l, 0x830), 0x0001000800000861ull);
    rig_free(&r);
}

/* The interrupt of performance counters, which masks its entry; the one that a posted-interrupt descriptor asks for. */
static void counters_and_notifications(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct lapic *l = r.apic[1];
    ops->pmi(l); /* masked */
    assert_int_equal(ops->peek(l), -1);
    wr(l, 0x340, 0x71);
    ops->pmi(l);
    assert_int_equal(serve(l), 0x71);
    assert_int_equal(rd(l, 0x340), 0x10071);
    wr(l, 0x340, 0x400);
    ops->pmi(l);
    ops->pmi(l);
    assert_int_equal(r.cpu[1].nmi, 1);

    wr(l, 0x300, 0);
    ops->ipi(l, 2 << 8, 0xf2); /* the destination is in bits 15:8 */
    assert_int_equal(serve(r.apic[2]), 0xf2);
    assert_int_equal(rd(l, 0x300), 0); /* not through the ICR */
    x2apic_all(&r);
    ops->ipi(l, 3, 0xf3);
    ops->ipi(l, 3 << 8, 0xf4); /* nobody's ID */
    for (unsigned i = 0; i < CPUS; i++)
        assert_int_equal(ops->ack(r.apic[i]), i == 3 ? 0xf3 : -1);
    rig_free(&r);
}

static void timer_one_shot_and_periodic(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct lapic *l = r.apic[0];
    wr(l, 0x3e0, 0xb); /* divide by 1 */
    wr(l, 0x320, 0xee);
    wr(l, 0x380, 1000);
    pass(&r.f, 400);
    assert_int_equal(rd(l, 0x390), 600);
    pass(&r.f, 599);
    assert_int_equal(ops->peek(l), -1);
    pass(&r.f, 1);
    assert_int_equal(serve(l), 0xee);
    assert_int_equal(rd(l, 0x390), 0);
    pass(&r.f, 5000);
    assert_int_equal(serve(l), -1);
    /* Periodic after the count ended: nothing until TMICT is written again. */
    wr(l, 0x320, 0x200ee);
    pass(&r.f, 5000);
    assert_int_equal(rd(l, 0x390), 0);
    assert_int_equal(serve(l), -1);
    wr(l, 0x380, 1000);
    for (unsigned i = 0; i < 5; i++) {
        pass(&r.f, 1000);
        assert_int_equal(serve(l), 0xee);
    }
    /* Time that jumps over periods is one interrupt, and the phase stays. */
    clock_advance(&r.f.clock, 2500);
    clock_run(&r.f.clock);
    assert_int_equal(serve(l), 0xee);
    assert_int_equal(serve(l), -1);
    assert_int_equal(rd(l, 0x390), 500);
    /* To one-shot in mid-count: it goes on and ends. */
    wr(l, 0x320, 0xee);
    assert_int_equal(rd(l, 0x390), 500);
    pass(&r.f, 3000);
    assert_int_equal(serve(l), 0xee);
    assert_int_equal(serve(l), -1);
    /* A new divider changes the speed and not the count. */
    wr(l, 0x380, 1000);
    pass(&r.f, 500);
    wr(l, 0x3e0, 0x0);
    assert_int_equal(rd(l, 0x390), 500);
    pass(&r.f, 999);
    assert_int_equal(serve(l), -1);
    pass(&r.f, 1);
    assert_int_equal(serve(l), 0xee);
    /* Masked: it counts, and the end is lost. */
    wr(l, 0x320, 0x100ee);
    wr(l, 0x380, 10);
    pass(&r.f, 100);
    wr(l, 0x320, 0xee);
    assert_int_equal(serve(l), -1);
    rig_free(&r);
}

static void timer_divisors(void **state)
{
    static const u8 code[] = {0xb, 0x0, 0x1, 0x2, 0x3, 0x8, 0x9, 0xa};
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct lapic *l = r.apic[0];
    wr(l, 0x320, 0x40);
    for (unsigned i = 0; i < 8; i++) {
        wr(l, 0x3e0, code[i]);
        wr(l, 0x380, 10);
        pass(&r.f, (10ull << i) - 1);
        assert_int_equal(serve(l), -1);
        pass(&r.f, 1);
        assert_int_equal(serve(l), 0x40);
    }
    rig_free(&r);
}

static void tsc_deadline(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct lapic *l = r.apic[0];
    assert_int_equal(wmsr(l, 0x6e0, 100), 0); /* another mode: ignored */
    assert_int_equal(msr(l, 0x6e0), 0);
    wr(l, 0x320, 0x400ef);
    assert_int_equal(wmsr(l, 0x6e0, 2001), 0); /* 2 GHz: 1000.5 ns */
    assert_int_equal(msr(l, 0x6e0), 2001);
    wr(l, 0x380, 5); /* the count register is dead in this mode */
    assert_int_equal(rd(l, 0x380), 0);
    pass(&r.f, 1000);
    assert_int_equal(serve(l), -1);
    pass(&r.f, 1);
    assert_int_equal(msr(l, 0x6e0), 0);
    assert_int_equal(serve(l), 0xef);
    /* In the past: at once. */
    assert_int_equal(wmsr(l, 0x6e0, 1), 0);
    assert_int_equal(serve(l), 0xef);
    assert_int_equal(msr(l, 0x6e0), 0);
    /* Zero and a mode change disarm; the far future does not overflow. */
    wmsr(l, 0x6e0, 4000);
    wmsr(l, 0x6e0, 0);
    wmsr(l, 0x6e0, ~0ull);
    wr(l, 0x320, 0xef);
    pass(&r.f, 100000);
    assert_int_equal(serve(l), -1);
    assert_int_equal(clock_next(&r.f.clock), UINT64_MAX);
    rig_free(&r);
}

static void lint_extint_nmi_and_level(void **state)
{
    struct rig r;
    rig_init(&r);
    struct lapic *l = r.apic[0];
    struct irq_line lint0 = apic_bus_lint0(r.bus), lint1 = apic_bus_lint1(r.bus);
    lapic_virtual_wire(l);
    lapic_virtual_wire(r.apic[1]);
    r.inta_vector = 0x08;
    irq_set(&lint0, true);
    assert_true(r.cpu[0].intr);
    assert_false(r.cpu[1].intr); /* the 8259 reaches the BSP only */
    assert_int_equal(ops->peek(l), 0x08);
    assert_int_equal(ops->ack(l), 0x08);
    assert_int_equal(rd(l, 0x100), 0); /* ExtINT leaves no trace in ISR */
    irq_set(&lint0, false);
    assert_false(r.cpu[0].intr);
    irq_pulse(&lint1);
    assert_int_equal(r.cpu[0].nmi, 1);
    assert_int_equal(r.cpu[1].nmi, 1);
    /* Fixed and level-triggered: remote IRR until EOI, and again while it is held. */
    wr(l, 0x350, 0x8044);
    irq_set(&lint0, true);
    assert_int_equal(rd(l, 0x350), 0xc044);
    assert_int_equal(ops->ack(l), 0x44);
    assert_int_equal(rd(l, 0x1a0), 1u << 4); /* TMR */
    wr(l, 0xb0, 0);
    assert_int_equal(ops->ack(l), 0x44);
    irq_set(&lint0, false);
    wr(l, 0xb0, 0);
    assert_int_equal(rd(l, 0x350), 0x8044);
    assert_int_equal(ops->ack(l), -1);
    /* With the APIC off LINT0 is INTR and LINT1 is NMI. */
    assert_int_equal(wmsr(l, BASE_MSR, 0xfee00000), 0);
    irq_set(&lint0, true);
    assert_true(r.cpu[0].intr);
    assert_int_equal(ops->ack(l), 0x08);
    irq_pulse(&lint1);
    assert_int_equal(r.cpu[0].nmi, 2);
    rig_free(&r);
}

static void eoi_suppression(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct lapic *l = r.apic[0];
    struct msi_sink msi = apic_bus_msi(r.bus);
    msi.send(msi.opaque, 0xfee00000, 0xc000 | 0x70); /* level, assert */
    assert_int_equal(serve(l), 0x70);
    assert_int_equal(r.eois, 1);
    assert_int_equal(r.eoi_vector, 0x70);
    wr(l, 0xf0, 0x11ff);
    msi.send(msi.opaque, 0xfee00000, 0xc000 | 0x70);
    assert_int_equal(serve(l), 0x70);
    assert_int_equal(r.eois, 1);
    msi.send(msi.opaque, 0xfee00000, 0x8000 | 0x70); /* de-assert */
    msi.send(msi.opaque, 0xfed00000, 0x70);          /* not an interrupt address */
    assert_int_equal(serve(l), -1);
    rig_free(&r);
}

static void odd_accesses_do_nothing(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct lapic *l = r.apic[0];
    for (u32 off = 0; off < 0x1000; off++) {
        for (unsigned size = 1; size <= 8; size *= 2) {
            ops->mmio_read(l, off, size);
            if (off & 15)
                ops->mmio_write(l, off, ~0ull, size);
        }
    }
    ops->mmio_write(l, 0x80, 0xff, 1);
    assert_int_equal(rd(l, 0x80), 0);
    assert_int_equal(ops->mmio_read(l, 0x30, 1), 0x14);
    assert_int_equal(ops->mmio_read(l, 0x32, 2), 0x0105);
    rig_free(&r);
}

static void two_machines(void **state)
{
    struct rig a, b;
    rig_init(&a);
    rig_init(&b);
    enable_all(&a);
    enable_all(&b);
    icr(a.apic[0], 0xff, 0x4050);
    assert_true(a.cpu[3].intr);
    for (unsigned i = 0; i < CPUS; i++)
        assert_false(b.cpu[i].intr);
    rig_free(&a);
    rig_free(&b);
}

/* ---- with an I/O APIC ---- */

static u32 io_rd(struct rig *r, u32 reg)
{
    set32(&r->f, IOAPIC_BASE, reg);
    return mem32(&r->f, IOAPIC_BASE + 0x10);
}

static void io_wr(struct rig *r, u32 reg, u32 v)
{
    set32(&r->f, IOAPIC_BASE, reg);
    set32(&r->f, IOAPIC_BASE + 0x10, v);
}

static void ioapic_registers(void **state)
{
    struct rig r;
    rig_init(&r);
    struct error err;
    struct ioapic *io = ioapic_new(&r.f.board, r.bus, &err);
    assert_non_null(io);
    assert_int_equal(io_rd(&r, 1), 0x170020);
    io_wr(&r, 1, ~0u);
    assert_int_equal(io_rd(&r, 1), 0x170020);
    io_wr(&r, 0, ~0u);
    assert_int_equal(io_rd(&r, 0), 0x0f000000);
    assert_int_equal(io_rd(&r, 2), 0x0f000000);
    io_wr(&r, 2, 0);
    assert_int_equal(io_rd(&r, 2), 0x0f000000);
    for (unsigned n = 0; n < 24; n++)
        assert_int_equal(io_rd(&r, 0x10 + 2 * n), 0x10000);
    io_wr(&r, 0x10, ~0u);
    assert_int_equal(io_rd(&r, 0x10), 0x1afff); /* without delivery status and remote IRR */
    io_wr(&r, 0x11, ~0u);
    assert_int_equal(io_rd(&r, 0x11), 0xff000000);
    io_wr(&r, 0x40, ~0u); /* beyond the table */
    assert_int_equal(io_rd(&r, 0x40), 0);
    ioapic_free(io);
    rig_free(&r);
}

static void ioapic_edge(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct error err;
    struct ioapic *io = ioapic_new(&r.f.board, r.bus, &err);
    io_wr(&r, 0x10 + 2 * 14, 0x76);
    ioapic_set(io, 14, true);
    ioapic_set(io, 14, true);
    assert_int_equal(serve(r.apic[0]), 0x76);
    assert_int_equal(serve(r.apic[0]), -1);
    ioapic_set(io, 14, false);
    /* An edge under the mask is lost. */
    io_wr(&r, 0x10 + 2 * 14, 0x10076);
    ioapic_set(io, 14, true);
    ioapic_set(io, 14, false);
    io_wr(&r, 0x10 + 2 * 14, 0x76);
    assert_int_equal(serve(r.apic[0]), -1);
    /* NMI and a destination of its own. */
    io_wr(&r, 0x11 + 2 * 14, 2u << 24);
    io_wr(&r, 0x10 + 2 * 14, 0x400);
    ioapic_set(io, 14, true);
    assert_int_equal(r.cpu[2].nmi, 1);
    ioapic_set(io, 24, true);
    ioapic_free(io);
    rig_free(&r);
}

static void ioapic_level(void **state)
{
    struct rig r;
    rig_init(&r);
    enable_all(&r);
    struct error err;
    struct ioapic *io = ioapic_new(&r.f.board, r.bus, &err);
    io_wr(&r, 0x10 + 2 * 14, 0x18077);
    ioapic_set(io, 14, true);
    assert_int_equal(ops->peek(r.apic[0]), -1);
    io_wr(&r, 0x10 + 2 * 14, 0x8077); /* a level waits behind the mask */
    assert_int_equal(ops->ack(r.apic[0]), 0x77);
    assert_int_equal(io_rd(&r, 0x10 + 2 * 14), 0xc077);
    ioapic_set(io, 14, false);
    ioapic_set(io, 14, true);
    assert_int_equal(ops->peek(r.apic[0]), -1); /* remote IRR holds it back */
    wr(r.apic[0], 0xb0, 0);
    assert_int_equal(ops->ack(r.apic[0]), 0x77); /* and EOI lets it go again */
    ioapic_set(io, 14, false);
    wr(r.apic[0], 0xb0, 0);
    assert_int_equal(io_rd(&r, 0x10 + 2 * 14), 0x8077);
    assert_int_equal(ops->ack(r.apic[0]), -1);
    /* Directed EOI through the register; and edge mode drops remote IRR. */
    wr(r.apic[0], 0xf0, 0x11ff);
    ioapic_set(io, 14, true);
    assert_int_equal(serve(r.apic[0]), 0x77);
    assert_int_equal(io_rd(&r, 0x10 + 2 * 14), 0xc077);
    ioapic_set(io, 14, false);
    set32(&r.f, IOAPIC_BASE + 0x40, 0x77);
    assert_int_equal(io_rd(&r, 0x10 + 2 * 14), 0x8077);
    ioapic_set(io, 14, true);
    io_wr(&r, 0x10 + 2 * 14, 0x77);
    assert_int_equal(io_rd(&r, 0x10 + 2 * 14), 0x77);
    /* Nobody there: not accepted, so not in service. */
    io_wr(&r, 0x11 + 2 * 14, 9u << 24);
    io_wr(&r, 0x10 + 2 * 14, 0x8077);
    assert_int_equal(io_rd(&r, 0x10 + 2 * 14), 0x8077);
    ioapic_free(io);
    rig_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reset_values),
        cmocka_unit_test(fixed_ipi_priorities_and_eoi),
        cmocka_unit_test(software_disable_masks_and_refuses),
        cmocka_unit_test(illegal_vectors_and_registers),
        cmocka_unit_test(destinations_xapic),
        cmocka_unit_test(lowest_priority_picks_and_rotates),
        cmocka_unit_test(init_sipi_nmi_smi),
        cmocka_unit_test(init_keeps_id_and_base),
        cmocka_unit_test(base_transitions),
        cmocka_unit_test(counters_and_notifications),
        cmocka_unit_test(x2apic_msr_faults),
        cmocka_unit_test(x2apic_destinations),
        cmocka_unit_test(timer_one_shot_and_periodic),
        cmocka_unit_test(timer_divisors),
        cmocka_unit_test(tsc_deadline),
        cmocka_unit_test(lint_extint_nmi_and_level),
        cmocka_unit_test(eoi_suppression),
        cmocka_unit_test(odd_accesses_do_nothing),
        cmocka_unit_test(two_machines),
        cmocka_unit_test(ioapic_registers),
        cmocka_unit_test(ioapic_edge),
        cmocka_unit_test(ioapic_level),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
