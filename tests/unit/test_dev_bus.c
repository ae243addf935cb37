/* The port bus: claiming, overlap, splitting, and ports nobody decodes. */
#include "dev_test.h"

struct log_device {
    unsigned accesses;
    u64 last_off, last_value;
    unsigned last_size;
};

static u64 rd(void *o, u64 off, unsigned size)
{
    struct log_device *d = o;
    d->accesses++;
    d->last_size = size;
    return 0x1111111111111111ull * (off + 1);
}

static void wr(void *o, u64 off, u64 v, unsigned size)
{
    struct log_device *d = o;
    d->accesses++;
    d->last_off = off;
    d->last_value = v;
    d->last_size = size;
}

static const struct io_ops ops = {rd, wr};

static void wide_and_byte_devices(void **state)
{
    struct fixture f;
    fixture_init(&f);
    struct log_device wide = {0}, narrow = {0};
    struct error err;
    assert_int_equal(pio_bus_add(f.board.pio, 0x100, 4, &ops, &wide, "wide", &err), 0);
    assert_int_equal(pio_bus_add8(f.board.pio, 0x104, 4, &ops, &narrow, "narrow", &err), 0);
    assert_int_equal(inl(&f, 0x100), 0x11111111);
    assert_int_equal(wide.last_size, 4);
    assert_int_equal(inl(&f, 0x104), 0x44332211);
    assert_int_equal(narrow.accesses, 4);
    assert_int_equal(narrow.last_size, 1);
    /* Across both, and across the end of the second. */
    assert_int_equal(inw(&f, 0x103), 0x1144);
    assert_int_equal(inl(&f, 0x107), 0xffffff44);
    outw(&f, 0x107, 0xabcd);
    assert_int_equal(narrow.last_value, 0xcd);
    fixture_free(&f);
}

static void undecoded_ports_read_ones(void **state)
{
    struct fixture f;
    fixture_init(&f);
    assert_int_equal(inb(&f, 0x300), 0xff);
    assert_int_equal(inl(&f, 0xffff), 0xffffffff);
    outl(&f, 0xffff, 0);
    fixture_free(&f);
}

static void overlap_is_refused_and_removal_frees(void **state)
{
    struct fixture f;
    fixture_init(&f);
    struct log_device d = {0};
    struct error err;
    assert_int_equal(pio_bus_add(f.board.pio, 0x100, 8, &ops, &d, "first", &err), 0);
    assert_int_equal(pio_bus_add(f.board.pio, 0x107, 2, &ops, &d, "second", &err), -1);
    assert_non_null(strstr(err.text, "first"));
    assert_int_equal(pio_bus_add(f.board.pio, 0xfff0, 0x11, &ops, &d, "beyond", &err), -1);
    assert_int_equal(pio_bus_add(f.board.pio, 0x200, 0, &ops, &d, "empty", &err), -1);
    pio_bus_remove(f.board.pio, 0x101); /* not where it starts: nothing happens */
    assert_int_equal(inb(&f, 0x100), 0x11);
    pio_bus_remove(f.board.pio, 0x100);
    assert_int_equal(inb(&f, 0x100), 0xff);
    assert_int_equal(pio_bus_add(f.board.pio, 0x107, 2, &ops, &d, "second", &err), 0);
    fixture_free(&f);
}

static void count_range(u16 base, u32 count, const char *name, void *arg) { *(unsigned *)arg += count; }

static void list_walks_in_order(void **state)
{
    struct fixture f;
    fixture_init(&f);
    struct log_device d = {0};
    struct error err;
    unsigned total = 0;
    pio_bus_add(f.board.pio, 0xfffc, 4, &ops, &d, "top", &err);
    pio_bus_add(f.board.pio, 0, 2, &ops, &d, "bottom", &err);
    pio_bus_list(f.board.pio, count_range, &total);
    assert_int_equal(total, 6);
    fixture_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wide_and_byte_devices),
        cmocka_unit_test(undecoded_ports_read_ones),
        cmocka_unit_test(overlap_is_refused_and_removal_frees),
        cmocka_unit_test(list_walks_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
