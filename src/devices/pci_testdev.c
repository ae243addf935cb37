/*
 * After QEMU's interface description, docs/specs/pci-testdev: each BAR starts with a header (test,
 * width, offset, data, count, name). Writing a test number prepares it; writes of the announced
 * width and data at the announced offset are then counted.
 */
#include "devices/pci_testdev.h"

#include <stdlib.h>

#define VENDOR 0x1b36
#define DEVICE 0x0005
#define TESTS  3
#define NAME   16   /* offset of the name */
#define TARGET 0x80 /* where the first test's writes go: behind the longest name */

enum { H_TEST = 0, H_WIDTH = 1, H_OFFSET = 4, H_DATA = 8, H_COUNT = 12 };

struct window {
    u8 header[TARGET];
    u32 count;
    int test; /* -1: none chosen */
};

struct pci_testdev {
    struct pci_dev *dev;
    struct window mem, io;
};

/* Every write is counted whatever carries it: the three differ only in what a host kernel could do. */
static const char *const names[2][TESTS] = {
    {"mmio-no-eventfd", "mmio-wildcard-eventfd", "mmio-datamatch-eventfd"},
    {"portio-no-eventfd", "portio-wildcard-eventfd", "portio-datamatch-eventfd"},
};
static const u8 data[TESTS] = {0xfa, 0xfa, 0xfa};

static void choose(struct window *w, bool io, unsigned test)
{
    memset(w->header, 0, sizeof(w->header));
    w->count = 0;
    w->test = -1;
    if (test >= TESTS)
        return; /* a width of zero says "no such test" */
    w->test = (int)test;
    w->header[H_WIDTH] = 1;
    store32(w->header + H_OFFSET, TARGET + test);
    store32(w->header + H_DATA, data[test]);
    strcpy((char *)w->header + NAME, names[io][test]);
}

static u64 window_read(struct window *w, u64 off, unsigned size)
{
    store32(w->header + H_COUNT, w->count);
    return off + size <= TARGET ? load_le(w->header + off, size) : 0;
}

static void window_write(struct window *w, bool io, u64 off, u64 v, unsigned size)
{
    if (off == H_TEST)
        choose(w, io, (u8)v);
    else if (w->test >= 0 && off == TARGET + (unsigned)w->test && size == 1 && v == data[w->test])
        w->count++;
}

static u64 mem_read(void *t, u64 off, unsigned size) { return window_read(&((struct pci_testdev *)t)->mem, off, size); }
static u64 io_read(void *t, u64 off, unsigned size) { return window_read(&((struct pci_testdev *)t)->io, off, size); }

static void mem_write(void *t, u64 off, u64 v, unsigned size)
{
    window_write(&((struct pci_testdev *)t)->mem, false, off, v, size);
}

static void io_write(void *t, u64 off, u64 v, unsigned size)
{
    window_write(&((struct pci_testdev *)t)->io, true, off, v, size);
}

static const struct io_ops mem_ops = {mem_read, mem_write};
static const struct io_ops io_ops = {io_read, io_write};

static void reset(void *opaque)
{
    struct pci_testdev *t = opaque;
    choose(&t->mem, false, TESTS);
    choose(&t->io, true, TESTS);
}

struct pci_testdev *pci_testdev_new(struct pci_bus *bus, u8 devfn, struct error *err)
{
    struct pci_testdev *t = device_alloc(sizeof(*t));
    struct pci_dev_config config = {
        .vendor = VENDOR, .device = DEVICE, .subsystem_vendor = 0x1af4, .subsystem = 0x1100, .class_code = 0x00ff00,
        .name = "pci-testdev", .reset = reset, .opaque = t,
    };
    t->dev = pci_add(bus, devfn, &config, err);
    if (!t->dev || pci_add_bar(t->dev, 0, PCI_BAR_MEM32, false, PAGE_SIZE, &mem_ops, t, err) ||
        pci_add_bar(t->dev, 1, PCI_BAR_IO, false, 256, &io_ops, t, err)) {
        pci_testdev_free(t);
        return NULL;
    }
    reset(t);
    return t;
}

void pci_testdev_free(struct pci_testdev *t)
{
    if (!t)
        return;
    pci_remove(t->dev);
    free(t);
}
