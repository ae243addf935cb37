/* fw_cfg, debug exit, pc-testdev, debug console. */
#include "dev_test.h"

#include "devices/debug_exit.h"
#include "devices/debugcon.h"
#include "devices/fw_cfg.h"
#include "devices/testdev.h"

static void select_item(struct fixture *f, u16 key) { outw(f, 0x510, key); }

static void fw_cfg_by_port(void **state)
{
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct fw_cfg *fw = fw_cfg_new(&f.board, 4, 2ull << 30, &err);
    assert_int_equal(fw_cfg_add_file(fw, "opt/test", "hello", 5, &err), 0);
    select_item(&f, 0);
    assert_int_equal(inb(&f, 0x511), 'Q');
    assert_int_equal(inb(&f, 0x511), 'E');
    select_item(&f, FW_CFG_NB_CPUS);
    assert_int_equal(inb(&f, 0x511), 4);
    assert_int_equal(inb(&f, 0x511), 0);
    assert_int_equal(inb(&f, 0x511), 0); /* past the end */
    select_item(&f, FW_CFG_RAM_SIZE);
    u64 size = 0;
    for (unsigned i = 0; i < 8; i++)
        size |= (u64)inb(&f, 0x511) << 8 * i;
    assert_int_equal(size, 2ull << 30);
    select_item(&f, 0x11); /* absent */
    assert_int_equal(inb(&f, 0x511), 0);
    select_item(&f, 0xffff);
    assert_int_equal(inb(&f, 0x511), 0);
    select_item(&f, FW_CFG_FILE_DIR);
    u8 dir[68];
    for (unsigned i = 0; i < sizeof(dir); i++)
        dir[i] = inb(&f, 0x511);
    assert_memory_equal(dir, ((u8[]){0, 0, 0, 1, 0, 0, 0, 5, 0, 0x20, 0, 0}), 12);
    assert_string_equal((char *)dir + 12, "opt/test");
    select_item(&f, 0x20);
    assert_int_equal(inb(&f, 0x511), 'h');
    assert_int_equal(fw_cfg_add_file(fw, "a name of more than fifty-five characters is one too long", "", 0, &err), -1);
    fw_cfg_free(fw);
    fixture_free(&f);
}

static void fw_cfg_by_dma(void **state)
{
    struct fixture f;
    struct error err;
    fixture_init(&f);
    assert_int_equal(physmap_add_ram(f.board.pm, 0, 0x10000, "ram", &err), 0);
    struct fw_cfg *fw = fw_cfg_new(&f.board, 1, 0x10000, &err);
    fw_cfg_add_file(fw, "opt/test", "hello", 5, &err);
    assert_int_equal(inl(&f, 0x514), __builtin_bswap32(0x51454d55));
    struct { u32 control, length; u64 address; } cmd = {
        __builtin_bswap32(0x20u << 16 | 8 | 2), __builtin_bswap32(8), __builtin_bswap64(0x2000)};
    physmap_write(f.board.pm, 0x1000, &cmd, sizeof(cmd));
    physmap_write(f.board.pm, 0x2000, "xxxxxxxxx", 9);
    outl(&f, 0x514, 0);
    outl(&f, 0x518, __builtin_bswap32(0x1000));
    char got[9];
    physmap_read(f.board.pm, 0x2000, got, 9);
    assert_memory_equal(got, "hello\0\0\0x", 9);
    assert_int_equal(mem32(&f, 0x1000), 0);
    /* Out of memory: the error bit; writes: the error bit; a wild command address: nothing. */
    cmd.address = __builtin_bswap64(0xfffe);
    physmap_write(f.board.pm, 0x1000, &cmd, sizeof(cmd));
    outl(&f, 0x518, __builtin_bswap32(0x1000));
    assert_int_equal(mem32(&f, 0x1000), __builtin_bswap32(1));
    cmd.control = __builtin_bswap32(16);
    physmap_write(f.board.pm, 0x1000, &cmd, sizeof(cmd));
    outl(&f, 0x518, __builtin_bswap32(0x1000));
    assert_int_equal(mem32(&f, 0x1000), __builtin_bswap32(1));
    outl(&f, 0x514, 0xffffffff);
    outl(&f, 0x518, 0xffffffff);
    fw_cfg_free(fw);
    fixture_free(&f);
}

static void exit_status(void **state)
{
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct debug_exit *d = debug_exit_new(&f.board, DEBUG_EXIT_PORT, &err);
    outl(&f, 0xf4, 0);
    assert_int_equal(f.exit_status, 1);
    outw(&f, 0xf4, 38);
    assert_int_equal(f.exit_status, 77);
    outb(&f, 0xf4, 1);
    assert_int_equal(f.exit_status, 3);
    assert_int_equal(f.exits, 3);
    debug_exit_free(d);
    fixture_free(&f);
}

static void flush(void *o, pa_t pa) { *(pa_t *)o = pa; }

static void test_device(void **state)
{
    struct fixture f;
    struct error err;
    pa_t flushed = 0;
    fixture_init(&f);
    struct testdev *t = testdev_new(&f.board, flush, &flushed, &err);
    outl(&f, 0xe0, 0x12345678);
    assert_int_equal(inb(&f, 0xe0), 0x78);
    assert_int_equal(inw(&f, 0xe1), 0x3456);
    outw(&f, 0xe2, 0xabcd);
    assert_int_equal(inl(&f, 0xe0), 0xabcd5678);
    outl(&f, 0xe4, 0x5123);
    assert_int_equal(flushed, 0x5000);
    outb(&f, 0x200e, 1);
    assert_true(f.line[14]);
    outb(&f, 0x200e, 0);
    assert_false(f.line[14]);
    physmap_store(f.board.pm, TESTDEV_MMIO + 0xfff8, 0x1122334455667788, 8);
    assert_int_equal(physmap_load(f.board.pm, TESTDEV_MMIO + 0xfffc, 4), 0x11223344);
    assert_int_equal(physmap_load(f.board.pm, TESTDEV_MMIO + 0xffff, 1), 0x11);
    testdev_free(t);
    fixture_free(&f);
}

static void put(void *o, u8 v) { *(u8 *)o = v; }

static void debug_console(void **state)
{
    struct fixture f;
    struct error err;
    u8 got = 0;
    fixture_init(&f);
    struct debugcon *d = debugcon_new(&f.board, put, &got, &err);
    assert_int_equal(inb(&f, 0xe9), 0xe9);
    outb(&f, 0xe9, 'k');
    assert_int_equal(got, 'k');
    outb(&f, 0x80, 0x42);
    assert_int_equal(debugcon_post_code(d), 0x42);
    debugcon_free(d);
    fixture_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fw_cfg_by_port), cmocka_unit_test(fw_cfg_by_dma), cmocka_unit_test(exit_status),
        cmocka_unit_test(test_device),    cmocka_unit_test(debug_console),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
