/* The physical map: overlays, pieces, tracking, DMA. */
#include "mmu_test.h"

#include "mmu/dma.h"

struct fake_device {
    u64 last_offset, last_value;
    unsigned last_size, reads, writes;
};

static u64 fake_read(void *opaque, u64 offset, unsigned size)
{
    struct fake_device *d = opaque;
    d->last_offset = offset;
    d->last_size = size;
    d->reads++;
    return 0x1122334455667788ull + offset;
}
static void fake_write(void *opaque, u64 offset, u64 value, unsigned size)
{
    struct fake_device *d = opaque;
    d->last_offset = offset;
    d->last_value = value;
    d->last_size = size;
    d->writes++;
}
static const struct io_ops fake_ops = {fake_read, fake_write};

static void overlay(void **state)
{
    struct physmap *pm = test_memory(4);
    struct fake_device d = {0};
    struct error err;
    static u8 rom[8192];
    rom[0] = 0x5a;

    put64(pm, 0x10000, 0xabcd);
    u64 gen = physmap_generation(pm);
    assert_int_equal(physmap_add_mmio(pm, 0x10000, 0x2000, &fake_ops, &d, "dev", &err), 0);
    assert_true(physmap_generation(pm) > gen);
    assert_int_equal(get64(pm, 0x10000), 0x1122334455667788ull);
    assert_null(physmap_ram(pm, 0x10000));
    assert_null(physmap_ram(pm, 0x11fff));
    assert_non_null(physmap_ram(pm, 0x12000));
    assert_non_null(physmap_ram(pm, 0xffff));
    assert_string_equal(physmap_find(pm, 0x11fff)->name, "dev");
    assert_string_equal(physmap_find(pm, 0x12000)->name, "ram");
    /* A second device on top of part of the first: the last one added is seen, and the first keeps its offsets. */
    struct fake_device d2 = {0};
    assert_int_equal(physmap_add_mmio(pm, 0x11000, 0x800, &fake_ops, &d2, "dev2", &err), 0);
    physmap_load(pm, 0x11004, 4);
    assert_int_equal(d2.last_offset, 4);
    physmap_load(pm, 0x11900, 4);
    assert_int_equal(d.last_offset, 0x1900);
    physmap_remove_mmio(pm, 0x11000);
    physmap_load(pm, 0x11004, 4);
    assert_int_equal(d.last_offset, 0x1004);
    physmap_remove_mmio(pm, 0x10000);
    assert_int_equal(get64(pm, 0x10000), 0xabcd);
    /* ROM hides RAM, drops writes. */
    assert_int_equal(physmap_add_rom(pm, 0x20000, sizeof(rom), rom, "rom", &err), 0);
    assert_int_equal(physmap_load(pm, 0x20000, 1), 0x5a);
    physmap_store(pm, 0x20000, 0, 1);
    assert_int_equal(rom[0], 0x5a);
    u8 flags;
    assert_null(physmap_ram(pm, 0x20000));
    assert_ptr_equal(physmap_host(pm, 0x20001, true, &flags), rom + 1);
    assert_null(physmap_host(pm, 0x20001, false, &flags));
    /* Refusals. */
    assert_int_equal(physmap_add_ram(pm, 2 * MIB, MIB, "again", &err), -1);
    assert_int_equal(physmap_add_ram(pm, 64 * MIB, 100, "odd", &err), -1);
    assert_int_equal(physmap_add_mmio(pm, ~0ull - 10, 100, &fake_ops, &d, "wraps", &err), -1);
    physmap_free(pm);
}

static void small_regions(void **state)
{
    struct physmap *pm = test_memory(2);
    struct fake_device d = {0};
    struct error err;
    /* Smaller than a page, not even a power of two, over RAM and over nothing. */
    assert_int_equal(physmap_add_mmio(pm, 0x30010, 0x14, &fake_ops, &d, "small", &err), 0);
    assert_int_equal(physmap_add_mmio(pm, 0xfed00010, 0x10, &fake_ops, &d, "tpm", &err), 0);
    assert_null(physmap_ram(pm, 0x30000)); /* not wholly memory */
    put64(pm, 0x30000, 42);
    assert_int_equal(get64(pm, 0x30000), 42);
    physmap_load(pm, 0x30020, 4);
    assert_int_equal(d.last_offset, 0x10);
    /* 8 bytes over the end: the device's half and the RAM's. */
    put64(pm, 0x30028, 0);
    d.reads = 0;
    assert_int_equal(get64(pm, 0x30020), (u32)(0x55667788 + 0x10));
    assert_int_equal(d.reads, 1);
    assert_int_equal(physmap_load(pm, 0xfed00000, 4), 0xffffffffu);
    assert_int_equal(physmap_load(pm, 0xfed00020, 4), 0xffffffffu);
    assert_int_equal(physmap_load(pm, 0xfed00010, 4), 0x55667788u);
    assert_int_equal(physmap_load(pm, 0x7ffffffff000ull, 8), ~0ull);
    /* An unaligned run goes to a device in aligned pieces. */
    u8 buf[7];
    d.reads = 0;
    physmap_read(pm, 0x30011, buf, 7); /* 1 + 2 + 4 */
    assert_int_equal(d.reads, 3);
    physmap_free(pm);
}

static void high_memory(void **state)
{
    struct physmap *pm = test_memory(1);
    struct fake_device d = {0};
    struct error err;
    assert_int_equal(physmap_add_ram(pm, 1ull << 32, 4 * MIB, "high", &err), 0);
    assert_int_equal(physmap_add_mmio(pm, (1ull << 32) + 0x5800, 0x100, &fake_ops, &d, "dev", &err), 0);
    put64(pm, (1ull << 32) + 8, 7);
    assert_int_equal(get64(pm, (1ull << 32) + 8), 7);
    assert_null(physmap_ram(pm, (1ull << 32) + 0x5000));
    assert_non_null(physmap_ram(pm, (1ull << 32) + 0x6000));
    assert_null(physmap_ram(pm, (1ull << 32) + 4 * MIB));
    assert_int_equal(physmap_ram_size(pm), 5 * MIB);
    physmap_free(pm);
}

static struct {
    pa_t pa;
    size_t len;
    unsigned calls;
} heard;
static void hear(void *opaque, pa_t pa, size_t len)
{
    heard.pa = pa;
    heard.len = len;
    heard.calls++;
}
static pa_t protected_page;
static unsigned protects;
static void on_protect(void *opaque, pa_t page)
{
    protected_page = page;
    protects++;
}

static void tracking(void **state)
{
    struct physmap *pm = test_memory(2);
    int code, table;
    physmap_subscribe(pm, PAGE_CODE, hear, &code);
    physmap_on_protect(pm, on_protect, &code);
    put64(pm, 0x5000, 1);
    assert_int_equal(heard.calls, 0);
    physmap_set_page_flag(pm, 0x5123, PAGE_CODE);
    assert_int_equal(protects, 1);
    assert_int_equal(protected_page, 0x5000);
    physmap_set_page_flag(pm, 0x5123, PAGE_TABLE); /* already without write grants */
    assert_int_equal(protects, 1);
    put64(pm, 0x5008, 1);
    assert_int_equal(heard.calls, 1);
    assert_int_equal(heard.pa, 0x5008);
    assert_int_equal(heard.len, 8);
    u8 buf[0x1010] = {0};
    physmap_write(pm, 0x4ff8, buf, sizeof(buf)); /* three pages, one tracked */
    assert_int_equal(heard.calls, 2);
    assert_int_equal(heard.pa, 0x5000);
    assert_int_equal(heard.len, 0x1000);
    assert_false(physmap_cmpxchg(pm, 0x5000, 99, 1, 8));
    assert_int_equal(heard.calls, 2);
    assert_true(physmap_cmpxchg(pm, 0x5000, 0, 1, 8));
    assert_int_equal(heard.calls, 3);
    assert_false(physmap_cmpxchg(pm, 0x10000000, 0, 1, 8));
    struct dma dma = {pm};
    assert_int_equal(dma_write(&dma, 0x5ffc, buf, 8), 8);
    assert_int_equal(heard.calls, 4);
    assert_int_equal(heard.len, 4);
    physmap_subscribe(pm, PAGE_TABLE, hear, &table);
    put64(pm, 0x5008, 1);
    assert_int_equal(heard.calls, 6);
    physmap_clear_page_flag(pm, 0x5000, PAGE_CODE);
    assert_int_equal(physmap_page_flags(pm, 0x5fff), PAGE_TABLE);
    physmap_subscribe(pm, PAGE_TABLE, NULL, &table);
    put64(pm, 0x5008, 1);
    assert_int_equal(heard.calls, 6);
    physmap_free(pm);
}

static void dma_stops(void **state)
{
    struct physmap *pm = test_memory(1);
    struct fake_device d = {0};
    struct error err;
    struct dma dma = {pm};
    static u8 rom[4096], buf[0x3000];
    assert_int_equal(physmap_add_rom(pm, 1 * MIB, sizeof(rom), rom, "rom", &err), 0);
    assert_int_equal(physmap_add_mmio(pm, 0x8000, 0x1000, &fake_ops, &d, "dev", &err), 0);
    assert_int_equal(dma_read(&dma, 0x7000, buf, 0x3000), 0x1000);
    assert_int_equal(dma_write(&dma, 0x7000, buf, 0x3000), 0x1000);
    assert_int_equal(dma_read(&dma, MIB - 16, buf, 0x3000), 16 + 4096);
    assert_int_equal(dma_write(&dma, MIB - 16, buf, 0x3000), 16);
    assert_int_equal(dma_read(&dma, ~0ull - 3, buf, 16), 0);
    assert_int_equal(dma_read(&dma, 0, buf, 0), 0);
    assert_int_equal(d.reads + d.writes, 0);
    physmap_free(pm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overlay),  cmocka_unit_test(small_regions), cmocka_unit_test(high_memory),
        cmocka_unit_test(tracking), cmocka_unit_test(dma_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
