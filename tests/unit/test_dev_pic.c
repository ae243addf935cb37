/* The 8259A pair, and the wiring that puts it beside the I/O APIC. */
#include "dev_test.h"

#include "devices/irq_router.h"

struct rig {
    struct fixture f;
    struct i8259 *pic;
    bool intr;
};

static void set_intr(void *o, unsigned n, bool level) { ((struct rig *)o)->intr = level; }

/* As firmware does: vectors 0x20 and 0x28, @icw4 for both, nothing masked. */
static void program(struct rig *r, u8 icw4)
{
    for (unsigned i = 0; i < 2; i++) {
        u16 port = i ? 0xa0 : 0x20;
        outb(&r->f, port, 0x11);
        outb(&r->f, port + 1, i ? 0x28 : 0x20);
        outb(&r->f, port + 1, i ? 2 : 4);
        outb(&r->f, port + 1, icw4);
        outb(&r->f, port + 1, 0);
    }
}

static void rig_init(struct rig *r)
{
    struct error err;
    memset(r, 0, sizeof(*r));
    fixture_init(&r->f);
    r->pic = i8259_new(&r->f.board, (struct irq_line){set_intr, r, 0}, &err);
    assert_non_null(r->pic);
    program(r, 1);
}

static void rig_free(struct rig *r)
{
    i8259_free(r->pic);
    fixture_free(&r->f);
}

static void edges_priorities_and_eoi(void **state)
{
    struct rig r;
    rig_init(&r);
    i8259_set(r.pic, 4, true);
    i8259_set(r.pic, 1, true);
    assert_true(r.intr);
    assert_int_equal(i8259_peek(r.pic), 0x21);
    assert_int_equal(i8259_ack(r.pic), 0x21);
    assert_false(r.intr); /* 4 is below 1 in service */
    outb(&r.f, 0x20, 0x20);
    assert_int_equal(i8259_ack(r.pic), 0x24);
    i8259_set(r.pic, 0, true); /* nests */
    assert_int_equal(i8259_ack(r.pic), 0x20);
    outb(&r.f, 0x20, 0x0b);
    assert_int_equal(inb(&r.f, 0x20), 0x11);
    outb(&r.f, 0x20, 0x64); /* specific EOI of 4 */
    assert_int_equal(inb(&r.f, 0x20), 0x01);
    outb(&r.f, 0x20, 0x20);
    i8259_set(r.pic, 1, true); /* still high: no edge */
    assert_false(r.intr);
    rig_free(&r);
}

static void mask_and_spurious(void **state)
{
    struct rig r;
    rig_init(&r);
    outb(&r.f, 0x21, 0x10);
    i8259_set(r.pic, 4, true);
    assert_false(r.intr);
    assert_int_equal(inb(&r.f, 0x20), 0x10); /* IRR shows it */
    outb(&r.f, 0x21, 0);
    assert_true(r.intr);
    outb(&r.f, 0x21, 0xff);
    assert_int_equal(i8259_peek(r.pic), -1);
    assert_int_equal(i8259_ack(r.pic), 0x27); /* spurious, and nothing in service */
    outb(&r.f, 0x20, 0x0b);
    assert_int_equal(inb(&r.f, 0x20), 0);
    rig_free(&r);
}

static void slave_cascade(void **state)
{
    struct rig r;
    rig_init(&r);
    i8259_set(r.pic, 12, true);
    assert_int_equal(i8259_ack(r.pic), 0x2c);
    i8259_set(r.pic, 8, true); /* a higher one of the slave waits for the master's EOI */
    assert_false(r.intr);
    outb(&r.f, 0x20, 0x20);
    assert_true(r.intr);
    assert_int_equal(i8259_ack(r.pic), 0x28);
    outb(&r.f, 0xa0, 0x20);
    outb(&r.f, 0x20, 0x20);
    outb(&r.f, 0xa0, 0x20);
    assert_false(r.intr);
    rig_free(&r);
}

static void special_fully_nested(void **state)
{
    struct rig r;
    rig_init(&r);
    program(&r, 0x11);
    i8259_set(r.pic, 12, true);
    assert_int_equal(i8259_ack(r.pic), 0x2c);
    i8259_set(r.pic, 8, true);
    assert_true(r.intr);
    assert_int_equal(i8259_ack(r.pic), 0x28);
    rig_free(&r);
}

static void level_triggered_by_elcr(void **state)
{
    struct rig r;
    rig_init(&r);
    outb(&r.f, 0x4d0, 0xff);
    outb(&r.f, 0x4d1, 0xff);
    assert_int_equal(inb(&r.f, 0x4d0), 0xf8);
    assert_int_equal(inb(&r.f, 0x4d1), 0xde);
    i8259_set(r.pic, 11, true);
    assert_int_equal(i8259_ack(r.pic), 0x2b);
    outb(&r.f, 0xa0, 0x20);
    outb(&r.f, 0x20, 0x20);
    assert_true(r.intr); /* held: asks again */
    i8259_set(r.pic, 11, false);
    assert_false(r.intr);
    rig_free(&r);
}

static void auto_eoi_rotation_and_special_mask(void **state)
{
    struct rig r;
    rig_init(&r);
    program(&r, 3);
    i8259_set(r.pic, 3, true);
    assert_int_equal(i8259_ack(r.pic), 0x23);
    outb(&r.f, 0x20, 0x0b);
    assert_int_equal(inb(&r.f, 0x20), 0);
    program(&r, 1);
    outb(&r.f, 0x20, 0xc3); /* 3 is the lowest: 4 the highest */
    i8259_set(r.pic, 0, false);
    i8259_set(r.pic, 0, true);
    i8259_set(r.pic, 5, true);
    assert_int_equal(i8259_ack(r.pic), 0x25);
    outb(&r.f, 0x20, 0xa0); /* rotate on non-specific EOI: now 5 is the lowest */
    i8259_set(r.pic, 5, false);
    i8259_set(r.pic, 5, true);
    assert_int_equal(i8259_ack(r.pic), 0x20);
    assert_false(r.intr);
    outb(&r.f, 0x20, 0x68); /* special mask mode, with 0 masked: 5 may nest */
    outb(&r.f, 0x21, 0x01);
    assert_true(r.intr);
    assert_int_equal(i8259_ack(r.pic), 0x25);
    rig_free(&r);
}

static void poll_command(void **state)
{
    struct rig r;
    rig_init(&r);
    outb(&r.f, 0x20, 0x0c);
    assert_int_equal(inb(&r.f, 0x20), 0);
    i8259_set(r.pic, 6, true);
    outb(&r.f, 0x20, 0x0c);
    assert_int_equal(inb(&r.f, 0x20), 0x86);
    outb(&r.f, 0x20, 0x0b);
    assert_int_equal(inb(&r.f, 0x20), 0x40);
    rig_free(&r);
}

static void router_feeds_both(void **state)
{
    struct rig r;
    struct error err;
    rig_init(&r);
    struct apic_bus *bus = apic_bus_new();
    struct irq_router router = {r.pic, ioapic_new(&r.f.board, bus, &err)};
    assert_non_null(router.ioapic);
    struct irq_line irq0 = irq_router_line(&router, 0), high = irq_router_line(&router, 20);
    irq_set(&irq0, true);
    irq_set(&high, true);
    assert_int_equal(i8259_ack(r.pic), 0x20);
    assert_int_equal(i8259_peek(r.pic), -1);
    ioapic_free(router.ioapic);
    apic_bus_free(bus);
    rig_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(edges_priorities_and_eoi),
        cmocka_unit_test(mask_and_spurious),
        cmocka_unit_test(slave_cascade),
        cmocka_unit_test(special_fully_nested),
        cmocka_unit_test(level_triggered_by_elcr),
        cmocka_unit_test(auto_eoi_rotation_and_special_mask),
        cmocka_unit_test(poll_command),
        cmocka_unit_test(router_feeds_both),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
