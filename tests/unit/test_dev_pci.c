/* Configuration access, BARs, INTx, MSI and MSI-X; pci-testdev as kvm-unit-tests drives it. */
#include "dev_test.h"

#include "devices/pci.h"
#include "devices/pci_testdev.h"

#define ECAM 0xb0000000u

struct rig {
    struct fixture f;
    struct pci_bus *bus;
};

static void rig_init(struct rig *r)
{
    struct error err;
    memset(r, 0, sizeof(*r));
    fixture_init(&r->f);
    struct pci_bus_config c = {.ecam_base = ECAM, .ecam_buses = 256};
    r->bus = pci_bus_new(&r->f.board, &c, &err);
    assert_non_null(r->bus);
}

static void rig_free(struct rig *r)
{
    pci_bus_free(r->bus);
    fixture_free(&r->f);
}

static void at(struct rig *r, u8 devfn, u8 reg) { outl(&r->f, 0xcf8, 0x80000000u | devfn << 8 | (reg & 0xfc)); }

static u32 cfg(struct rig *r, u8 devfn, u8 reg)
{
    at(r, devfn, reg);
    return inl(&r->f, 0xcfc);
}

static void set_cfg(struct rig *r, u8 devfn, u8 reg, u32 v)
{
    at(r, devfn, reg);
    outl(&r->f, 0xcfc, v);
}

static u64 io_rd(void *o, u64 off, unsigned size) { return *(u64 *)o + off; }
static void io_wr(void *o, u64 off, u64 v, unsigned size) { *(u64 *)o = v; }
static const struct io_ops reg_ops = {io_rd, io_wr};

static void mechanism_1_and_ecam(void **state)
{
    struct rig r;
    rig_init(&r);
    assert_int_equal(cfg(&r, 0, 0), 0x12378086);
    assert_int_equal(inw(&r.f, 0xcfe), 0x1237);
    assert_int_equal(inb(&r.f, 0xcfd), 0x80);
    assert_int_equal(cfg(&r, 0, 8) >> 8, 0x060000);
    assert_int_equal(cfg(&r, 8, 0), 0xffffffff);
    assert_int_equal(inl(&r.f, 0xcf8), 0x80000800);
    outl(&r.f, 0xcf8, 0x80010000); /* bus 1 */
    assert_int_equal(inl(&r.f, 0xcfc), 0xffffffff);
    outl(&r.f, 0xcf8, 0);
    assert_int_equal(inl(&r.f, 0xcfc), 0xffffffff);
    set_cfg(&r, 0, 0, 0xdeadbeef); /* read-only */
    assert_int_equal(cfg(&r, 0, 0), 0x12378086);
    assert_int_equal(mem32(&r.f, ECAM), 0x12378086);
    assert_int_equal(physmap_load(r.f.board.pm, ECAM + 2, 2), 0x1237);
    assert_int_equal(mem32(&r.f, ECAM + 0x100), 0xffffffff);
    assert_int_equal(mem32(&r.f, ECAM + (1 << 20)), 0xffffffff);
    /* Port 0xCF9 lives among them. */
    outb(&r.f, 0xcf9, 2);
    assert_int_equal(r.f.resets, 0);
    outb(&r.f, 0xcf9, 6);
    assert_int_equal(r.f.resets, 1);
    rig_free(&r);
}

static void bars(void **state)
{
    struct rig r;
    struct error err;
    rig_init(&r);
    u64 mem = 0x1000, mem64 = 0x2000, io = 0x3000;
    struct pci_dev_config c = {.vendor = 0x1234, .device = 1, .name = "device", .class_code = 0x020000};
    struct pci_dev *d = pci_add(r.bus, 0x18, &c, &err);
    assert_int_equal(pci_add_bar(d, 0, PCI_BAR_MEM32, false, 0x2000, &reg_ops, &mem, &err), 0);
    assert_int_equal(pci_add_bar(d, 1, PCI_BAR_IO, false, 32, &reg_ops, &io, &err), 0);
    assert_int_equal(pci_add_bar(d, 2, PCI_BAR_MEM64, true, 1ull << 33, &reg_ops, &mem64, &err), 0);
    assert_int_equal(pci_add_bar(d, 0, PCI_BAR_IO, false, 32, &reg_ops, &io, &err), -1);
    assert_int_equal(pci_add_bar(d, 5, PCI_BAR_MEM64, false, 32, &reg_ops, &io, &err), -1);
    assert_int_equal(pci_add_bar(d, 4, PCI_BAR_MEM32, false, 24, &reg_ops, &io, &err), -1);
    assert_null(pci_add(r.bus, 0x18, &c, &err));
    /* Sizing. */
    for (u8 reg = 0x10; reg <= 0x1c; reg += 4)
        set_cfg(&r, 0x18, reg, 0xffffffff);
    assert_int_equal(cfg(&r, 0x18, 0x10), 0xffffe000);
    assert_int_equal(cfg(&r, 0x18, 0x14), 0xffffffe1);
    assert_int_equal(cfg(&r, 0x18, 0x18), 0x0000000c);
    assert_int_equal(cfg(&r, 0x18, 0x1c), 0xfffffffe);
    assert_int_equal(cfg(&r, 0x18, 0x20), 0);
    set_cfg(&r, 0x18, 0x10, 0xe0000000);
    set_cfg(&r, 0x18, 0x14, 0xc001);
    set_cfg(&r, 0x18, 0x18, 0);
    set_cfg(&r, 0x18, 0x1c, 0x8);
    assert_int_equal(mem32(&r.f, 0xe0000000), 0xffffffff); /* decoding is off */
    set_cfg(&r, 0x18, 4, 3);
    assert_int_equal(mem32(&r.f, 0xe0000004), 0x1004);
    assert_int_equal(mem32(&r.f, 0x800000000ull + 0x10), 0x2010);
    assert_int_equal(inl(&r.f, 0xc008), 0x3008);
    /* Move, and size while decoding, as some guests do. */
    set_cfg(&r, 0x18, 0x10, 0xe0100000);
    assert_int_equal(mem32(&r.f, 0xe0000004), 0xffffffff);
    assert_int_equal(mem32(&r.f, 0xe0100004), 0x1004);
    set_cfg(&r, 0x18, 0x10, 0xffffffff);
    set_cfg(&r, 0x18, 0x14, 0xffffffff);
    set_cfg(&r, 0x18, 0x10, 0xe0000000);
    set_cfg(&r, 0x18, 0x14, 0xc101);
    assert_int_equal(mem32(&r.f, 0xe0000004), 0x1004);
    assert_int_equal(inl(&r.f, 0xc108), 0x3008);
    assert_int_equal(inl(&r.f, 0xc008), 0xffffffff);
    /* Over the bridge's ports and over ECAM: refused, and it recovers. */
    set_cfg(&r, 0x18, 0x14, 0xcf1);
    set_cfg(&r, 0x18, 0x10, ECAM);
    assert_int_equal(mem32(&r.f, ECAM), 0x12378086);
    set_cfg(&r, 0x18, 0x10, 0xe0000000);
    assert_int_equal(mem32(&r.f, 0xe0000004), 0x1004);
    pci_bus_reset(r.bus);
    assert_int_equal(mem32(&r.f, 0xe0000004), 0xffffffff);
    assert_int_equal(cfg(&r, 0x18, 0x10), 0);
    pci_assign(r.bus, 0xc0000000, 0xfec00000, 0xc000);
    assert_int_equal(mem32(&r.f, 0xc0000004), 0x1004);
    assert_int_equal(inl(&r.f, 0xc000), 0x3000);
    rig_free(&r);
}

static void two_bars_at_one_address(void **state)
{
    struct rig r;
    struct error err;
    rig_init(&r);
    u64 a = 0x1000, b = 0x2000;
    struct pci_dev_config c = {.vendor = 0x1234, .device = 1, .name = "device"};
    struct pci_dev *da = pci_add(r.bus, 0x18, &c, &err), *db = pci_add(r.bus, 0x20, &c, &err);
    pci_add_bar(da, 0, PCI_BAR_MEM32, false, 0x1000, &reg_ops, &a, &err);
    pci_add_bar(db, 0, PCI_BAR_MEM32, false, 0x1000, &reg_ops, &b, &err);
    set_cfg(&r, 0x18, 4, 2);
    set_cfg(&r, 0x20, 4, 2);
    set_cfg(&r, 0x18, 0x10, 0xe0000000);
    set_cfg(&r, 0x20, 0x10, 0xe0000000);
    assert_int_equal(mem32(&r.f, 0xe0000000), 0x1000);
    set_cfg(&r, 0x18, 0x10, 0xe0002000); /* the first moves away: the second is decoded */
    assert_int_equal(mem32(&r.f, 0xe0000000), 0x2000);
    assert_int_equal(mem32(&r.f, 0xe0002000), 0x1000);
    pci_remove(da);
    assert_int_equal(mem32(&r.f, 0xe0002000), 0xffffffff);
    assert_int_equal(mem32(&r.f, 0xe0000000), 0x2000);
    rig_free(&r);
}

static void intx(void **state)
{
    struct rig r;
    struct error err;
    rig_init(&r);
    struct pci_dev_config c = {.vendor = 0x1234, .device = 1, .interrupt_pin = 1, .name = "device"};
    struct pci_dev *a = pci_add(r.bus, PCI_DEVFN(1, 0), &c, &err), *b = pci_add(r.bus, PCI_DEVFN(5, 0), &c, &err);
    pci_intx(a, true);
    assert_true(r.f.line[17]);
    pci_intx(b, true); /* slots 1 and 5 share a wire */
    pci_intx(a, false);
    assert_true(r.f.line[17]);
    assert_int_equal(cfg(&r, PCI_DEVFN(5, 0), 4) >> 16 & 8, 8);
    set_cfg(&r, PCI_DEVFN(5, 0), 4, 0x400); /* interrupt disable */
    assert_false(r.f.line[17]);
    assert_int_equal(cfg(&r, PCI_DEVFN(5, 0), 4) >> 16 & 8, 8);
    set_cfg(&r, PCI_DEVFN(5, 0), 4, 0);
    assert_true(r.f.line[17]);
    pci_bus_reset(r.bus);
    assert_false(r.f.line[17]);
    /* Function 1 appears: function 0 says so. */
    assert_int_equal(cfg(&r, PCI_DEVFN(1, 0), 0xc) >> 16 & 0x80, 0);
    assert_non_null(pci_add(r.bus, PCI_DEVFN(1, 1), &c, &err));
    assert_int_equal(cfg(&r, PCI_DEVFN(1, 0), 0xc) >> 16 & 0x80, 0x80);
    rig_free(&r);
}

static void msi(void **state)
{
    struct rig r;
    struct error err;
    rig_init(&r);
    struct pci_dev_config c = {.vendor = 0x1234, .device = 1, .name = "device"};
    struct pci_dev *d = pci_add(r.bus, 0x18, &c, &err);
    assert_int_equal(pci_add_msi(d, 3, &err), -1);
    assert_int_equal(pci_add_msi(d, 4, &err), 0);
    u8 cap = (u8)cfg(&r, 0x18, 0x34);
    assert_int_equal(cfg(&r, 0x18, cap), 0x01840005);
    assert_int_equal(cfg(&r, 0x18, 4) >> 16 & 0x10, 0x10);
    assert_false(pci_msi_send(d, 0));
    set_cfg(&r, 0x18, (u8)(cap + 4), 0xfee01000);
    set_cfg(&r, 0x18, (u8)(cap + 12), 0x4041);
    set_cfg(&r, 0x18, cap, 0x00110000); /* enable, two messages */
    assert_true(pci_msi_enabled(d));
    assert_true(pci_msi_send(d, 1));
    assert_int_equal(r.f.messages, 0); /* no bus master, no writes */
    set_cfg(&r, 0x18, 4, 4);
    pci_msi_send(d, 1);
    assert_int_equal(r.f.messages, 1);
    assert_int_equal(r.f.msi_addr, 0xfee01000);
    assert_int_equal(r.f.msi_data, 0x4041);
    pci_msi_send(d, 2); /* only two were granted: wraps to the first */
    assert_int_equal(r.f.msi_data, 0x4040);
    set_cfg(&r, 0x18, (u8)(cap + 16), 2);
    pci_msi_send(d, 1);
    assert_int_equal(r.f.messages, 2);
    assert_int_equal(cfg(&r, 0x18, (u8)(cap + 20)), 2);
    set_cfg(&r, 0x18, (u8)(cap + 16), 0);
    assert_int_equal(r.f.messages, 3);
    assert_int_equal(cfg(&r, 0x18, (u8)(cap + 20)), 0);
    rig_free(&r);
}

static void msix(void **state)
{
    struct rig r;
    struct error err;
    rig_init(&r);
    struct pci_dev_config c = {.vendor = 0x1234, .device = 1, .name = "device"};
    struct pci_dev *d = pci_add(r.bus, 0x18, &c, &err);
    assert_int_equal(pci_add_msix(d, 4, 2049, &err), -1);
    assert_int_equal(pci_add_msix(d, 4, 3, &err), 0);
    u8 cap = (u8)cfg(&r, 0x18, 0x34);
    assert_int_equal(cfg(&r, 0x18, cap), 0x00020011);
    assert_int_equal(cfg(&r, 0x18, (u8)(cap + 4)), 4);
    assert_int_equal(cfg(&r, 0x18, (u8)(cap + 8)), 0x30 | 4);
    pa_t table = 0xe0000000;
    set_cfg(&r, 0x18, 0x20, (u32)table);
    set_cfg(&r, 0x18, 4, 6);
    set_cfg(&r, 0x18, cap, 0x80000000);
    assert_int_equal(mem32(&r.f, table + 0x1c), 1); /* masked after reset */
    set32(&r.f, table + 0x10, 0xfee02000);
    set32(&r.f, table + 0x18, 0x4055);
    pci_msi_send(d, 1);
    assert_int_equal(r.f.messages, 0);
    assert_int_equal(mem32(&r.f, table + 0x30), 2);
    set32(&r.f, table + 0x1c, 0xfffffffe);
    assert_int_equal(r.f.messages, 1);
    assert_int_equal(r.f.msi_addr, 0xfee02000);
    assert_int_equal(r.f.msi_data, 0x4055);
    assert_int_equal(mem32(&r.f, table + 0x30), 0);
    assert_int_equal(mem32(&r.f, table + 0x1c), 0);
    set_cfg(&r, 0x18, cap, 0xc0000000); /* function mask */
    pci_msi_send(d, 1);
    assert_int_equal(r.f.messages, 1);
    set_cfg(&r, 0x18, cap, 0x80000000);
    assert_int_equal(r.f.messages, 2);
    pci_msi_send(d, 3); /* beyond the table */
    assert_int_equal(r.f.messages, 2);
    for (u32 off = 0; off < 0x1000; off += 4) {
        set32(&r.f, table + off, 0xffffffff);
        mem32(&r.f, table + off);
    }
    rig_free(&r);
}

static void hostile_configuration_writes(void **state)
{
    struct rig r;
    struct error err;
    rig_init(&r);
    struct pci_testdev *t = pci_testdev_new(r.bus, 0x20, &err);
    u32 v = 12345;
    for (unsigned i = 0; i < 20000; i++) {
        v = v * 1664525 + 1013904223;
        at(&r, (v >> 8 & 1) ? 0x20 : 0, (u8)(v >> 16));
        pio_write(r.f.board.pio, (u16)(0xcfc + (v >> 24 & 3)), v, 1u << (v >> 26) % 3);
    }
    pci_testdev_free(t);
    rig_free(&r);
}

static void testdev(void **state)
{
    struct rig r;
    struct error err;
    rig_init(&r);
    struct pci_testdev *t = pci_testdev_new(r.bus, 0x20, &err);
    assert_non_null(t);
    pci_assign(r.bus, 0xc0000000, 0xfec00000, 0xc000);
    assert_int_equal(cfg(&r, 0x20, 0), 0x00051b36);
    u32 mem = cfg(&r, 0x20, 0x10), io = cfg(&r, 0x20, 0x14);
    assert_int_equal(mem & 0xf, 0);
    assert_int_equal(io & 3, 1);
    io &= ~3u;
    for (u8 n = 0; n < 3; n++) {
        physmap_store(r.f.board.pm, mem, n, 1);
        outb(&r.f, (u16)io, n);
        assert_int_equal(mem32(&r.f, mem + 12), 0);
        assert_int_equal(physmap_load(r.f.board.pm, mem + 1, 1), 1);
        assert_int_equal(inb(&r.f, (u16)(io + 1)), 1);
        u32 off = mem32(&r.f, mem + 4), io_off = inl(&r.f, (u16)(io + 4));
        for (unsigned i = 0; i < 16; i++) {
            physmap_store(r.f.board.pm, mem + off, mem32(&r.f, mem + 8), 1);
            outb(&r.f, (u16)(io + io_off), (u8)inl(&r.f, (u16)(io + 8)));
        }
        assert_int_equal(mem32(&r.f, mem + 12), 16);
        assert_int_equal(inl(&r.f, (u16)(io + 12)), 16);
        assert_int_equal(inb(&r.f, (u16)(io + 16)), 'p');
    }
    physmap_store(r.f.board.pm, mem, 3, 1);
    assert_int_equal(physmap_load(r.f.board.pm, mem + 1, 1), 0);
    pci_testdev_free(t);
    rig_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mechanism_1_and_ecam), cmocka_unit_test(bars),
        cmocka_unit_test(two_bars_at_one_address), cmocka_unit_test(intx),
        cmocka_unit_test(msi),                  cmocka_unit_test(msix),
        cmocka_unit_test(hostile_configuration_writes), cmocka_unit_test(testdev),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
