/* The keyboard controller as probing drivers use it, A20 and the resets. */
#include "dev_test.h"

#include "devices/i8042.h"

struct rig {
    struct fixture f;
    struct i8042 *k;
    bool a20;
};

static void a20(void *o, bool on) { ((struct rig *)o)->a20 = on; }

static void rig_init(struct rig *r)
{
    struct error err;
    memset(r, 0, sizeof(*r));
    fixture_init(&r->f);
    r->k = i8042_new(&r->f.board, a20, r, &err);
    assert_non_null(r->k);
}

static void rig_free(struct rig *r)
{
    i8042_free(r->k);
    fixture_free(&r->f);
}

static void expect(struct rig *r, const u8 *bytes, unsigned n, bool aux)
{
    for (unsigned i = 0; i < n; i++) {
        u8 s = inb(&r->f, 0x64);
        assert_int_equal(s & 0x21, aux ? 0x21 : 0x01);
        assert_int_equal(inb(&r->f, 0x60), bytes[i]);
    }
    assert_int_equal(inb(&r->f, 0x64) & 1, 0);
}

static void controller_commands(void **state)
{
    struct rig r;
    rig_init(&r);
    outb(&r.f, 0x64, 0xaa);
    expect(&r, (u8[]){0x55}, 1, false);
    outb(&r.f, 0x64, 0xab);
    expect(&r, (u8[]){0}, 1, false);
    outb(&r.f, 0x64, 0xa9);
    expect(&r, (u8[]){0}, 1, false);
    outb(&r.f, 0x64, 0x60);
    outb(&r.f, 0x60, 0x30); /* both interfaces off */
    outb(&r.f, 0x64, 0xa8);
    outb(&r.f, 0x64, 0x20);
    expect(&r, (u8[]){0x10}, 1, false);
    outb(&r.f, 0x64, 0xd3); /* the loop a driver finds the mouse port with */
    outb(&r.f, 0x60, 0x5a);
    expect(&r, (u8[]){0x5a}, 1, true);
    rig_free(&r);
}

static void keyboard_and_mouse(void **state)
{
    struct rig r;
    rig_init(&r);
    outb(&r.f, 0x64, 0x60);
    outb(&r.f, 0x60, 0x03); /* both interrupts, no translation */
    outb(&r.f, 0x60, 0xff);
    assert_true(r.f.line[1]);
    expect(&r, (u8[]){0xfa, 0xaa}, 2, false);
    assert_int_equal(r.f.rises[1], 2);
    outb(&r.f, 0x60, 0xf2);
    expect(&r, (u8[]){0xfa, 0xab, 0x83}, 3, false);
    outb(&r.f, 0x60, 0xed);
    expect(&r, (u8[]){0xfa}, 1, false);
    outb(&r.f, 0x60, 0x02);
    expect(&r, (u8[]){0xfa}, 1, false);
    outb(&r.f, 0x60, 0x01);
    expect(&r, (u8[]){0xfe}, 1, false);
    outb(&r.f, 0x64, 0xd4);
    outb(&r.f, 0x60, 0xff);
    assert_true(r.f.line[12]);
    expect(&r, (u8[]){0xfa, 0xaa, 0x00}, 3, true);
    assert_true(i8042_key(r.k, (u8[]){0xf0, 0x1c}, 2));
    expect(&r, (u8[]){0xf0, 0x1c}, 2, false);
    outb(&r.f, 0x64, 0x60);
    outb(&r.f, 0x60, 0x43); /* translation */
    assert_true(i8042_key(r.k, (u8[]){0x1c, 0xf0, 0x1c}, 3));
    expect(&r, (u8[]){0x1e, 0x9e}, 2, false);
    for (unsigned i = 0; i < 100; i++) /* a guest that never reads */
        outb(&r.f, 0x60, 0xf2);
    rig_free(&r);
}

static void resets_and_a20(void **state)
{
    struct rig r;
    rig_init(&r);
    assert_true(r.a20);
    outb(&r.f, 0x64, 0xfe);
    assert_int_equal(r.f.resets, 1);
    outb(&r.f, 0x64, 0xd0);
    u8 out = inb(&r.f, 0x60);
    assert_int_equal(out & 3, 3);
    outb(&r.f, 0x64, 0xd1);
    outb(&r.f, 0x60, out & ~1);
    assert_int_equal(r.f.resets, 2);
    outb(&r.f, 0x92, 3);
    assert_int_equal(r.f.resets, 3);
    outb(&r.f, 0x92, 3); /* no edge */
    assert_int_equal(r.f.resets, 3);
    assert_int_equal(inb(&r.f, 0x92), 3);
    outb(&r.f, 0x92, 0);
    assert_true(r.a20); /* the 8042 still holds it open */
    outb(&r.f, 0x64, 0xdd);
    assert_false(r.a20);
    rig_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(controller_commands),
        cmocka_unit_test(keyboard_and_mouse),
        cmocka_unit_test(resets_and_a20),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
