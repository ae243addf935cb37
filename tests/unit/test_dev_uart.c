/* The 16550: interrupt sources and their order, FIFO, loop-back, modem status. */
#include "dev_test.h"

#include "devices/uart16550.h"

#define COM 0x3f8

struct rig {
    struct fixture f;
    struct uart *u;
    u8 sent[64];
    unsigned count, ready;
};

static void tx(void *o, u8 v)
{
    struct rig *r = o;
    r->sent[r->count++ % 64] = v;
}

static void ready(void *o) { ((struct rig *)o)->ready++; }

static void rig_init(struct rig *r)
{
    struct error err;
    memset(r, 0, sizeof(*r));
    fixture_init(&r->f);
    struct uart_host host = {tx, ready, r};
    r->u = uart_new(&r->f.board, COM, 4, &host, &err);
    assert_non_null(r->u);
}

static void rig_free(struct rig *r)
{
    uart_free(r->u);
    fixture_free(&r->f);
}

static void polled_output_and_registers(void **state)
{
    struct rig r;
    rig_init(&r);
    assert_int_equal(inb(&r.f, COM + 5), 0x60);
    assert_int_equal(inb(&r.f, COM + 2), 0x01);
    assert_int_equal(inb(&r.f, COM + 6), 0xb0);
    outb(&r.f, COM + 3, 0x80);
    outb(&r.f, COM, 0x01);
    outb(&r.f, COM + 1, 0x02);
    assert_int_equal(inb(&r.f, COM), 0x01);
    assert_int_equal(inb(&r.f, COM + 1), 0x02);
    outb(&r.f, COM + 3, 0x03);
    assert_int_equal(r.count, 0);
    outb(&r.f, COM, 'x');
    assert_int_equal(r.count, 1);
    assert_int_equal(r.sent[0], 'x');
    assert_int_equal(inb(&r.f, COM + 5), 0x60);
    outb(&r.f, COM + 7, 0xa5);
    assert_int_equal(inb(&r.f, COM + 7), 0xa5);
    outb(&r.f, COM + 1, 0xff);
    assert_int_equal(inb(&r.f, COM + 1), 0x0f); /* bits 7:4 are always zero */
    outb(&r.f, COM + 2, 0x01);
    assert_int_equal(inb(&r.f, COM + 2) & 0xc0, 0xc0);
    rig_free(&r);
}

static void thre_interrupt(void **state)
{
    struct rig r;
    rig_init(&r);
    outb(&r.f, COM + 4, 0x08);
    outb(&r.f, COM + 1, 0x02); /* enabling it on an empty register raises it */
    assert_true(r.f.line[4]);
    assert_int_equal(inb(&r.f, COM + 2), 0x02);
    assert_false(r.f.line[4]); /* reading IIR answered it */
    assert_int_equal(inb(&r.f, COM + 2), 0x01);
    unsigned before = r.f.rises[4];
    outb(&r.f, COM, 'a');
    assert_true(r.f.line[4]);
    outb(&r.f, COM, 'b'); /* each byte is an edge of its own */
    assert_int_equal(r.f.rises[4], before + 2);
    outb(&r.f, COM + 1, 0);
    assert_false(r.f.line[4]);
    inb(&r.f, COM + 2);
    outb(&r.f, COM + 1, 0x02);
    assert_int_equal(inb(&r.f, COM + 2), 0x02);
    rig_free(&r);
}

static void receive_fifo_and_trigger(void **state)
{
    struct rig r;
    rig_init(&r);
    assert_true(uart_rx(r.u, 1));
    assert_false(uart_rx(r.u, 2)); /* without FIFOs one byte is all */
    assert_int_equal(inb(&r.f, COM), 1);
    assert_int_equal(r.ready, 1);
    outb(&r.f, COM + 2, 0xc1); /* FIFOs, trigger 14 */
    outb(&r.f, COM + 4, 0x08);
    outb(&r.f, COM + 1, 0x01);
    assert_true(uart_rx(r.u, 0x10));
    assert_true(r.f.line[4]);
    assert_int_equal(inb(&r.f, COM + 2), 0xcc); /* character timeout */
    for (unsigned i = 1; i < 16; i++)
        assert_true(uart_rx(r.u, (u8)(0x10 + i)));
    assert_false(uart_rx(r.u, 0xff));
    assert_int_equal(inb(&r.f, COM + 2), 0xc4); /* data available */
    for (unsigned i = 0; i < 16; i++) {
        assert_int_equal(inb(&r.f, COM + 5) & 1, 1);
        assert_int_equal(inb(&r.f, COM), 0x10 + i);
    }
    assert_int_equal(inb(&r.f, COM + 5) & 1, 0);
    assert_false(r.f.line[4]);
    uart_rx(r.u, 9);
    outb(&r.f, COM + 2, 0x03); /* clear the receiver */
    assert_int_equal(inb(&r.f, COM + 5) & 1, 0);
    rig_free(&r);
}

static void out2_gates_the_line(void **state)
{
    struct rig r;
    rig_init(&r);
    outb(&r.f, COM + 1, 0x01);
    uart_rx(r.u, 1);
    assert_false(r.f.line[4]);
    outb(&r.f, COM + 4, 0x08);
    assert_true(r.f.line[4]);
    rig_free(&r);
}

static void line_status_has_priority(void **state)
{
    struct rig r;
    rig_init(&r);
    outb(&r.f, COM + 1, 0x05);
    uart_break(r.u);
    assert_int_equal(inb(&r.f, COM + 2), 0x06);
    assert_int_equal(inb(&r.f, COM + 5), 0x71);
    assert_int_equal(inb(&r.f, COM + 5), 0x61); /* reading cleared BI */
    assert_int_equal(inb(&r.f, COM + 2), 0x04);
    rig_free(&r);
}

static void loopback(void **state)
{
    struct rig r;
    rig_init(&r);
    outb(&r.f, COM + 4, 0x1f);
    assert_int_equal(inb(&r.f, COM + 6) & 0xf0, 0xf0);
    outb(&r.f, COM + 4, 0x1a); /* RTS and OUT2: CTS and DCD; RI fell */
    u8 msr = inb(&r.f, COM + 6);
    assert_int_equal(msr & 0xf0, 0x90);
    assert_int_equal(msr & 0x0f, 0x06);
    assert_int_equal(inb(&r.f, COM + 6) & 0x0f, 0);
    outb(&r.f, COM, 0x5a);
    assert_int_equal(r.count, 0);
    assert_int_equal(inb(&r.f, COM + 5) & 1, 1);
    assert_false(uart_rx(r.u, 1));
    assert_int_equal(inb(&r.f, COM), 0x5a);
    rig_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(polled_output_and_registers), cmocka_unit_test(thre_interrupt),
        cmocka_unit_test(receive_fifo_and_trigger),    cmocka_unit_test(out2_gates_the_line),
        cmocka_unit_test(line_status_has_priority),    cmocka_unit_test(loopback),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
