/*
 * pc-testdev:
 *   0xe0-0xe3      reads back what was written, at any width
 *   0xe4           OUT dword: the page at this physical address is to leave every cache
 *   0x2000+n       OUT byte: level of interrupt line n, 0..23
 *   0xff000000     64 KiB that behave like memory but are reached as a device
 */
#include "devices/testdev.h"

#include <stdlib.h>

#define LINES 24

struct testdev {
    struct board *board;
    struct irq_line line[LINES];
    u8 latch[4];
    u8 memory[TESTDEV_MMIO_SIZE];
    void (*flush)(void *opaque, pa_t pa);
    void *flush_opaque;
};

static u64 latch_read(void *opaque, u64 off, unsigned size)
{
    struct testdev *t = opaque;
    return off + size <= sizeof(t->latch) ? load_le(t->latch + off, size) : ~0ull;
}

static void latch_write(void *opaque, u64 off, u64 v, unsigned size)
{
    struct testdev *t = opaque;
    if (off + size <= sizeof(t->latch))
        store_le(t->latch + off, v, size);
}

static u64 flush_read(void *opaque, u64 off, unsigned size) { return ~0ull; }

static void flush_write(void *opaque, u64 off, u64 v, unsigned size)
{
    struct testdev *t = opaque;
    if (t->flush)
        t->flush(t->flush_opaque, v & PAGE_MASK);
}

static u64 lines_read(void *opaque, u64 off, unsigned size) { return ~0ull; }

static void lines_write(void *opaque, u64 off, u64 v, unsigned size)
{
    struct testdev *t = opaque;
    if (off < LINES)
        irq_set(&t->line[off], v != 0);
}

static u64 memory_read(void *opaque, u64 off, unsigned size)
{
    struct testdev *t = opaque;
    return off + size <= TESTDEV_MMIO_SIZE ? load_le(t->memory + off, size) : ~0ull;
}

static void memory_write(void *opaque, u64 off, u64 v, unsigned size)
{
    struct testdev *t = opaque;
    if (off + size <= TESTDEV_MMIO_SIZE)
        store_le(t->memory + off, v, size);
}

static const struct io_ops latch_ops = {latch_read, latch_write};
static const struct io_ops flush_ops = {flush_read, flush_write};
static const struct io_ops lines_ops = {lines_read, lines_write};
static const struct io_ops memory_ops = {memory_read, memory_write};

void testdev_reset(struct testdev *t)
{
    memset(t->latch, 0, sizeof(t->latch));
    memset(t->memory, 0, sizeof(t->memory));
    for (unsigned i = 0; i < LINES; i++)
        irq_set(&t->line[i], false);
}

struct testdev *testdev_new(struct board *b, void (*flush)(void *opaque, pa_t pa), void *opaque, struct error *err)
{
    struct testdev *t = device_alloc(sizeof(*t));
    t->board = b;
    t->flush = flush;
    t->flush_opaque = opaque;
    for (unsigned i = 0; i < LINES; i++)
        t->line[i] = b->irq(b, i);
    if (pio_bus_add(b->pio, 0xe0, 4, &latch_ops, t, "testdev latch", err) ||
        pio_bus_add(b->pio, 0xe4, 4, &flush_ops, t, "testdev flush", err) ||
        pio_bus_add8(b->pio, 0x2000, LINES, &lines_ops, t, "testdev lines", err) ||
        physmap_add_mmio(b->pm, TESTDEV_MMIO, TESTDEV_MMIO_SIZE, &memory_ops, t, "testdev memory", err)) {
        free(t);
        return NULL;
    }
    return t;
}

void testdev_free(struct testdev *t)
{
    if (!t)
        return;
    pio_bus_remove(t->board->pio, 0xe0);
    pio_bus_remove(t->board->pio, 0xe4);
    pio_bus_remove(t->board->pio, 0x2000);
    physmap_remove_mmio(t->board->pm, TESTDEV_MMIO);
    free(t);
}
