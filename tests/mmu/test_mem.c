/* Memory as instructions see it: faults change nothing, pieces go where they should. */
#include "vcpu_test.h"

#include "cpu/mem.h"
#include "devices/irq.h"

/* ---- what mem.c asks of the processor: a fault unwinds to the test ---- */

static struct {
    jmp_buf unwind;
    unsigned vector;
    u32 error;
    gva_t la;
    u32 access;
    struct walk walk;
} raised;

void cpu_raise_error(struct vcpu *v, unsigned vector, u32 error)
{
    raised.vector = vector;
    raised.error = error;
    longjmp(raised.unwind, 1);
}
void cpu_raise_walk(struct vcpu *v, gva_t la, u32 access, const struct walk *w)
{
    raised.vector = VEC_PF;
    raised.error = w->error_code;
    raised.la = la;
    raised.access = access;
    longjmp(raised.unwind, 1);
}
void cpu_unwind(struct vcpu *v, enum unwind_reason reason) { longjmp(raised.unwind, 2); }

#define FAULTS(vec, code, statement)                                                                                   \
    do {                                                                                                               \
        raised.vector = 0;                                                                                             \
        if (!setjmp(raised.unwind)) {                                                                                  \
            statement;                                                                                                 \
            fail_msg("no fault");                                                                                      \
        }                                                                                                              \
        assert_int_equal(raised.vector, vec);                                                                          \
        assert_int_equal(raised.error, code);                                                                          \
    } while (0)

#define RW   7
#define ROOT 0x100000
#define DATA 0x400000ull

static struct tables tables;
static struct vcpu *machine(void)
{
    struct physmap *pm = test_memory(16);
    tables = tables_new(pm, ROOT);
    struct vcpu *v = test_vcpu(pm, ROOT);
    for (gva_t la = 0x1000; la < 0x5000; la += 0x1000) /* 0x1000..0x4fff; 0x5000 is absent */
        tables_map(&tables, la, DATA + 4 * la, RW);
    return v;
}

static void values(void **state)
{
    struct vcpu *v = machine();
    static const unsigned offsets[] = {0x1000, 0x1ff8, 0x1ff9, 0x1fff, 0x2003};
    for (unsigned i = 0; i < ARRAY_SIZE(offsets); i++) {
        gva_t la = offsets[i];
        u64 x = 0x1122334455667788ull * (i + 1);
        lin_write64(v, SEG_DS, la, x);
        assert_int_equal(lin_read64(v, SEG_DS, la), x);
        assert_int_equal(mem_read32(v, SEG_DS, la), (u32)x);
        lin_write32(v, SEG_DS, la + 1, 0xabcdef01);
        assert_int_equal(mem_read16(v, SEG_DS, la + 2), 0xcdef);
        lin_write16(v, SEG_DS, la, 0x4242);
        assert_int_equal(lin_read8(v, SEG_DS, la + 1), 0x42);
        u64 y = x & ~0xffffffffffull;
        assert_int_equal(lin_read64(v, SEG_DS, la) >> 40, y >> 40);
        struct rmw m;
        u32 old = rmw_begin32(v, SEG_DS, la, &m);
        rmw_end32(v, &m, old + 5);
        assert_int_equal(lin_read32(v, SEG_DS, la), old + 5);
        sys_write(v, la, 0x778899, 3);
        assert_int_equal(sys_read(v, la, 3), 0x778899);
    }
    /* The halves of a crossing value lie where their pages do. */
    lin_write32(v, SEG_DS, 0x1ffe, 0xaabbccdd);
    assert_int_equal(physmap_load(v->pm, DATA + 0x4000 + 0xffe, 2), 0xccdd);
    assert_int_equal(physmap_load(v->pm, DATA + 0x8000, 2), 0xaabb);
    u8 buf[6000], back[6000];
    for (unsigned i = 0; i < sizeof(buf); i++)
        buf[i] = (u8)(i * 7);
    mem_write_bytes(v, SEG_DS, 0x1f00, buf, sizeof(buf));
    mem_read_bytes(v, SEG_DS, 0x1f00, back, sizeof(back));
    assert_memory_equal(buf, back, sizeof(buf));
    mem_read_bytes(v, SEG_DS, 0x2000, back, 64);
    assert_memory_equal(buf + 0x100, back, 64);
    test_vcpu_free(v);
}

static void crossing_faults(void **state)
{
    struct vcpu *v = machine();
    u8 bytes[32] = {0xff, 0xff, 0xff, 0xff};
    pa_t last = tables_entry(&tables, 0x4000, 1);
    put64(v->pm, DATA + 0x10000 + 0xff8, 0x5555555555555555ull);
    for (unsigned warm = 0; warm < 2; warm++) {
        FAULTS(VEC_PF, 2, lin_write64(v, SEG_DS, 0x4ffc, ~0ull));
        assert_int_equal(raised.la, 0x5000); /* CR2 is in the page that faults */
        FAULTS(VEC_PF, 2, mem_write_bytes(v, SEG_DS, 0x4ff8, bytes, 32));
        FAULTS(VEC_PF, 2, mem_probe_write(v, SEG_DS, 0x4ff8, 32));
        FAULTS(VEC_PF, 2, sys_write(v, 0x4ffe, ~0ull, 4));
        FAULTS(VEC_PF, 2, sys_probe_write(v, 0x4ffe, 4));
        struct rmw m;
        FAULTS(VEC_PF, 2, rmw_begin32(v, SEG_DS, 0x4ffe, &m));
        FAULTS(VEC_PF, 0, lin_read64(v, SEG_DS, 0x4ffc));
        assert_int_equal(get64(v->pm, DATA + 0x10000 + 0xff8), 0x5555555555555555ull);
        if (!warm) {
            assert_int_equal(get64(v->pm, last) & 0x40, 0); /* not even a dirty flag */
            lin_read8(v, SEG_DS, 0x4000);
        }
    }
    /* Read-only second page, and the first page faulting first. */
    tables_map(&tables, 0x5000, DATA, 5);
    FAULTS(VEC_PF, 3, lin_write64(v, SEG_DS, 0x4ffc, ~0ull));
    assert_int_equal(get64(v->pm, DATA + 0x10000 + 0xff8), 0x5555555555555555ull);
    FAULTS(VEC_PF, 2, lin_write64(v, SEG_DS, 0x0ffc, ~0ull));
    assert_int_equal(raised.la, 0xffc);
    /* The user bit of ordinary and of system accesses. */
    v->cpl = 3;
    mmu_update_privilege(v);
    FAULTS(VEC_PF, 6, lin_write8(v, SEG_DS, 0x6000, 1));
    FAULTS(VEC_PF, 0, sys_read(v, 0x6000, 2));
    test_vcpu_free(v);
}

static void canonical(void **state)
{
    struct vcpu *v = machine();
    FAULTS(VEC_GP, 0, lin_read8(v, SEG_DS, BIT64(47)));
    FAULTS(VEC_SS, 0, lin_write8(v, SEG_SS, BIT64(47), 1));
    FAULTS(VEC_GP, 0, lin_read64(v, SEG_DS, BIT64(47) - 4));
    FAULTS(VEC_SS, 0, lin_read64(v, SEG_SS, BIT64(47) - 4));
    FAULTS(VEC_GP, 0, lin_read64(v, SEG_COUNT, ~BITS64(46, 0) - 4));
    FAULTS(VEC_GP, 0, sys_read(v, BIT64(60), 8));
    FAULTS(VEC_PF, 0, lin_read8(v, SEG_DS, ~0ull));
    /* 32-bit addresses wrap. */
    v->mode = MODE_COMPAT32;
    v->linear_mask = 0xffffffff;
    tables_map(&tables, 0xfffff000, DATA, RW);
    tables_map(&tables, 0, DATA + 0x1000, RW);
    lin_write32(v, SEG_DS, 0xfffffffe, 0x12345678);
    assert_int_equal(physmap_load(v->pm, DATA + 0x1000, 2), 0x1234);
    test_vcpu_free(v);
}

static void alignment(void **state)
{
    struct vcpu *v = machine();
    lin_read32(v, SEG_DS, 0x1002);
    v->cr0 |= CR0_AM;
    v->rflags |= FL_AC;
    mmu_update(v);
    lin_read32(v, SEG_DS, 0x1002); /* CPL 0 */
    v->cpl = 3;
    mmu_update(v);
    lin_read32(v, SEG_DS, 0x1004);
    FAULTS(VEC_AC, 0, lin_read32(v, SEG_DS, 0x1002));
    FAULTS(VEC_AC, 0, lin_write16(v, SEG_DS, 0x1001, 1));
    struct rmw m;
    FAULTS(VEC_AC, 0, rmw_begin64(v, SEG_DS, 0x1004, &m));
    lin_read8(v, SEG_DS, 0x1001);
    sys_read(v, 0x1001, 4);
    test_vcpu_free(v);
}

static void segments(void **state)
{
    struct vcpu *v = machine();
    v->mode = MODE_PROT32;
    v->linear_mask = 0xffffffff;
    v->seg_check = 0xff;
    struct segment *s = &v->seg[SEG_DS];
    v->seg_base[SEG_DS] = 0x1000;
    *s = (struct segment){.limit = 0xfff, .ar = 0xc093};
    assert_int_equal(seg_linear(v, SEG_DS, 0xffc, 4, ACCESS_READ), 0x1ffc);
    FAULTS(VEC_GP, 0, seg_linear(v, SEG_DS, 0xffd, 4, ACCESS_READ));
    FAULTS(VEC_GP, 0, seg_linear(v, SEG_DS, 0xffffffff, 4, ACCESS_READ));
    s->ar = 0xc091; /* read-only */
    FAULTS(VEC_GP, 0, seg_linear(v, SEG_DS, 0, 4, ACCESS_WRITE));
    seg_linear(v, SEG_DS, 0, 4, ACCESS_READ);
    s->ar = 0xc09b; /* code, readable */
    FAULTS(VEC_GP, 0, seg_linear(v, SEG_DS, 0, 4, ACCESS_WRITE));
    seg_linear(v, SEG_DS, 0, 4, ACCESS_READ);
    s->ar = 0xc099;
    FAULTS(VEC_GP, 0, seg_linear(v, SEG_DS, 0, 4, ACCESS_READ));
    s->ar = 0xc097; /* expand-down, 32-bit */
    FAULTS(VEC_GP, 0, seg_linear(v, SEG_DS, 0xfff, 1, ACCESS_READ));
    seg_linear(v, SEG_DS, 0x1000, 1, ACCESS_READ);
    seg_linear(v, SEG_DS, 0xfffffffc, 4, ACCESS_READ);
    FAULTS(VEC_GP, 0, seg_linear(v, SEG_DS, 0xfffffffd, 4, ACCESS_READ));
    s->ar = 0x8097; /* 16-bit */
    FAULTS(VEC_GP, 0, seg_linear(v, SEG_DS, 0x10000, 1, ACCESS_READ));
    s->ar = AR_UNUSABLE;
    FAULTS(VEC_GP, 0, seg_linear(v, SEG_DS, 0, 1, ACCESS_READ));
    v->seg[SEG_SS] = (struct segment){.limit = 0xfff, .ar = 0xc093};
    FAULTS(VEC_SS, 0, seg_linear(v, SEG_SS, 0xffd, 4, ACCESS_READ));
    v->mode = MODE_REAL;
    v->seg[SEG_SS] = (struct segment){.limit = 0xffff, .ar = 0x93};
    FAULTS(VEC_SS, 0, seg_linear(v, SEG_SS, 0xffff, 2, ACCESS_READ));
    test_vcpu_free(v);
}

static void breakpoints(void **state)
{
    struct vcpu *v = machine();
    v->dr[1] = 0x1008;
    v->dr7 = DR7_FIXED | 1u << 3 | 1u << 20 | 2u << 22; /* 8 bytes, writes */
    v->dr[3] = 0x2004;
    v->dr7 |= 1u << 6 | 3u << 28 | 3u << 30; /* 4 bytes, reads and writes */
    mmu_watch_changed(v);
    lin_read64(v, SEG_DS, 0x1008);
    lin_write32(v, SEG_DS, 0x1004, 1);
    lin_write8(v, SEG_DS, 0x1010, 1);
    assert_int_equal(v->pending_dbg, 0);
    lin_write16(v, SEG_DS, 0x100f, 1);
    assert_int_equal(v->pending_dbg, DR6_B(1));
    assert_true(v->attention & ATT_DEBUG);
    v->pending_dbg = 0;
    lin_write32(v, SEG_DS, 0x1005, 1);
    assert_int_equal(v->pending_dbg, DR6_B(1));
    v->pending_dbg = 0;
    lin_read8(v, SEG_DS, 0x2007);
    assert_int_equal(v->pending_dbg, DR6_B(3));
    v->pending_dbg = 0;
    struct rmw m;
    rmw_end8(v, &m, rmw_begin8(v, SEG_DS, 0x2004, &m));
    assert_int_equal(v->pending_dbg, DR6_B(3));
    v->pending_dbg = 0;
    FAULTS(VEC_PF, 2, lin_write64(v, SEG_DS, 0x5000, 1));
    assert_int_equal(v->pending_dbg, 0);
    test_vcpu_free(v);
}

static struct {
    u64 offset[16], value[16];
    unsigned size[16], n;
} io;
static u64 dev_read(void *opaque, u64 offset, unsigned size)
{
    io.offset[io.n] = offset;
    io.size[io.n++] = size;
    return 0x8877665544332211ull >> (8 * (offset & 7));
}
static void dev_write(void *opaque, u64 offset, u64 value, unsigned size)
{
    io.offset[io.n] = offset;
    io.value[io.n] = value;
    io.size[io.n++] = size;
}
static const struct io_ops dev_ops = {dev_read, dev_write};

static u64 apic_read(void *intc, u32 offset, unsigned size) { return 0xa000 + offset; }
static u32 apic_written;
static void apic_write(void *intc, u32 offset, u64 value, unsigned size) { apic_written = offset + (u32)value; }
static const struct intc_ops apic_ops = {.mmio_read = apic_read, .mmio_write = apic_write};

static bool virtual_apic(struct vcpu *v, u32 offset, bool write, unsigned size, u64 *value, u32 access, gva_t la)
{
    *value = 0xbb00 + offset;
    return true;
}
static const struct virt_ops virt = {.name = "test", .apic_access = virtual_apic};

static void devices(void **state)
{
    struct vcpu *v = machine();
    struct error err;
    assert_int_equal(physmap_add_mmio(v->pm, 0xd0000000, 0x1000, &dev_ops, NULL, "dev", &err), 0);
    tables_map(&tables, 0x10000, 0xd0000000, RW);
    tables_map(&tables, 0x11000, 0xe0000000, RW); /* nothing there */
    tables_map(&tables, 0x12000, 0xfee00000, RW);
    assert_int_equal(lin_read32(v, SEG_DS, 0x10004), 0x88776655);
    assert_int_equal(io.n, 1);
    assert_int_equal(io.offset[0], 4);
    assert_int_equal(io.size[0], 4);
    io.n = 0;
    assert_int_equal(lin_read32(v, SEG_DS, 0x10001), 0x55443322); /* 1 + 2 + 1 */
    assert_int_equal(io.n, 3);
    io.n = 0;
    lin_write64(v, SEG_DS, 0x10010, 0x123);
    assert_int_equal(io.n, 1);
    assert_int_equal(io.value[0], 0x123);
    io.n = 0;
    struct rmw m;
    u32 old = rmw_begin32(v, SEG_DS, 0x10004, &m);
    assert_int_equal(io.n, 1);
    rmw_end32(v, &m, old | 1);
    assert_int_equal(io.n, 2);
    assert_int_equal(io.value[1], 0x88776655);
    /* Open bus, and a value half on the device and half on nothing. */
    assert_int_equal(lin_read64(v, SEG_DS, 0x11000), ~0ull);
    lin_write64(v, SEG_DS, 0x11000, 1);
    io.n = 0;
    assert_int_equal(lin_read32(v, SEG_DS, 0x10ffe), 0xffff8877);
    /* The local APIC's page comes before the map; the hypervisor's before it. */
    v->intc_ops = &apic_ops;
    v->apic_page = 0xfee00000;
    mmu_update(v);
    assert_int_equal(lin_read32(v, SEG_DS, 0x12020), 0xa020);
    lin_write32(v, SEG_DS, 0x120b0, 1);
    assert_int_equal(apic_written, 0xb1);
    v->guest_mode = true;
    v->virt = &virt;
    v->virt_apic_page = 0xfee00000;
    mmu_update(v);
    assert_int_equal(lin_read32(v, SEG_DS, 0x12080), 0xbb80);
    v->guest_mode = false;
    v->virt_apic_page = ~0ull;
    mmu_update(v);
    assert_int_equal(lin_read32(v, SEG_DS, 0x12020), 0xa020);
    test_vcpu_free(v);
}

static unsigned written;
static void on_write(void *opaque, pa_t pa, size_t len) { written += (unsigned)len; }

static void tracked(void **state)
{
    struct vcpu *v = machine();
    physmap_subscribe(v->pm, PAGE_CODE, on_write, v);
    lin_write64(v, SEG_DS, 0x2000, 1);
    physmap_set_page_flag(v->pm, DATA + 0x8000, PAGE_CODE);
    lin_write64(v, SEG_DS, 0x2000, 2);
    assert_int_equal(written, 8);
    assert_int_equal(lin_read64(v, SEG_DS, 0x2000), 2);
    struct rmw m;
    u16 old = rmw_begin16(v, SEG_DS, 0x2000, &m);
    assert_null(m.host);
    rmw_end16(v, &m, old + 1);
    assert_int_equal(written, 10);
    lin_write32(v, SEG_DS, 0x1ffe, 0); /* two of four bytes */
    assert_int_equal(written, 12);
    sys_write(v, 0x2000, 0, 4);
    assert_int_equal(written, 16);
    assert_true(mem_poke(v, 0x2ff0, "0123456789abcdefghi", 19));
    assert_int_equal(written, 32);
    test_vcpu_free(v);
}

static void peek(void **state)
{
    struct vcpu *v = machine();
    u8 buf[16];
    /* Peeking ignores rights and leaves no trace. */
    tables_map(&tables, 0x8000, DATA + 0x20000, 1);
    v->cr4 |= CR4_SMAP;
    v->cpl = 3;
    mmu_update(v);
    assert_true(mem_poke(v, 0x8010, "hello", 5));
    assert_true(mem_peek(v, 0x8010, buf, 5));
    assert_memory_equal(buf, "hello", 5);
    assert_int_equal(get64(v->pm, tables_entry(&tables, 0x8000, 1)) & 0x60, 0);
    assert_false(mem_peek(v, 0x7ff8, buf, 16));
    test_vcpu_free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),    cmocka_unit_test(crossing_faults), cmocka_unit_test(canonical),
        cmocka_unit_test(alignment), cmocka_unit_test(segments),        cmocka_unit_test(breakpoints),
        cmocka_unit_test(devices),   cmocka_unit_test(tracked),         cmocka_unit_test(peek),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
