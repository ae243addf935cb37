/*
 * The I/O port space. A table with one cell per port finds the claimed range in one load: port
 * accesses are the commonest way out of the processor, and 128 KiB a machine is cheap.
 */
#include "devices/bus.h"
#include "base/log.h"

#include <stdlib.h>

#define PORTS 0x10000u
#define MAX_RANGES 512

struct pio_range {
    u32 base, count; /* count 0: a free slot */
    bool bytes_only;
    const struct io_ops *ops;
    void *opaque;
    const char *name;
};

struct pio_bus {
    u16 slot[PORTS]; /* 0 nobody, else index + 1 into ranges */
    struct pio_range ranges[MAX_RANGES];
    struct lock *lock;
};

void *device_alloc(size_t size)
{
    void *p = calloc(1, size);
    if (!p)
        panic("out of memory: %zu bytes for a device", size);
    return p;
}

struct pio_bus *pio_bus_new(void) { return device_alloc(sizeof(struct pio_bus)); }

void pio_bus_free(struct pio_bus *b) { free(b); }

static int add(struct pio_bus *b, u16 base, u32 count, bool bytes_only, const struct io_ops *ops, void *opaque,
               const char *name, struct error *err)
{
    if (!count || base + count > PORTS)
        return error_set(err, "%s: ports %#x+%#x: expected a range within 0..0xffff", name, base, count);
    for (u32 p = base; p < base + count; p++)
        if (b->slot[p])
            return error_set(err, "%s: port %#x already belongs to %s", name, p, b->ranges[b->slot[p] - 1].name);
    unsigned i = 0;
    while (i < MAX_RANGES && b->ranges[i].count)
        i++;
    if (i == MAX_RANGES)
        return error_set(err, "%s: more than %d port ranges", name, MAX_RANGES);
    b->ranges[i] = (struct pio_range){base, count, bytes_only, ops, opaque, name};
    for (u32 p = base; p < base + count; p++)
        b->slot[p] = (u16)(i + 1);
    return 0;
}

int pio_bus_add(struct pio_bus *b, u16 base, u32 count, const struct io_ops *ops, void *opaque, const char *name,
                struct error *err)
{
    return add(b, base, count, false, ops, opaque, name, err);
}

int pio_bus_add8(struct pio_bus *b, u16 base, u32 count, const struct io_ops *ops, void *opaque, const char *name,
                 struct error *err)
{
    return add(b, base, count, true, ops, opaque, name, err);
}

void pio_bus_remove(struct pio_bus *b, u16 base)
{
    unsigned i = b->slot[base];
    if (!i || b->ranges[i - 1].base != base)
        return;
    struct pio_range *r = &b->ranges[i - 1];
    for (u32 p = r->base; p < r->base + r->count; p++)
        b->slot[p] = 0;
    *r = (struct pio_range){0};
}

/* The range that decodes the whole access, or NULL. */
static const struct pio_range *find(const struct pio_bus *b, u32 port, unsigned size)
{
    if (port >= PORTS || !b->slot[port])
        return NULL;
    const struct pio_range *r = &b->ranges[b->slot[port] - 1];
    if (size > 1 && (r->bytes_only || port + size > r->base + r->count))
        return NULL;
    return r;
}

static u32 ones(unsigned size) { return size >= 4 ? ~0u : BIT(8 * size) - 1; }

static u32 read_whole(struct pio_bus *b, u32 port, unsigned size)
{
    const struct pio_range *r = find(b, port, size);
    if (r && r->ops->read)
        return (u32)r->ops->read(r->opaque, port - r->base, size) & ones(size);
    if (size == 1 || r)
        return ones(size);
    u32 v = 0;
    for (unsigned i = 0; i < size; i++)
        v |= read_whole(b, port + i, 1) << (8 * i);
    return v;
}

static void write_whole(struct pio_bus *b, u32 port, u32 value, unsigned size)
{
    const struct pio_range *r = find(b, port, size);
    if (r) {
        if (r->ops->write)
            r->ops->write(r->opaque, port - r->base, value & ones(size), size);
        return;
    }
    for (unsigned i = 0; size > 1 && i < size; i++)
        write_whole(b, port + i, (value >> (8 * i)) & 0xff, 1);
}

u32 pio_read(struct pio_bus *b, u16 port, unsigned size)
{
    lock_take(b->lock);
    u32 v = read_whole(b, port, size);
    lock_give(b->lock);
    log_at(pio, "in  %#06x/%u -> %#x", port, size, v);
    return v;
}

void pio_write(struct pio_bus *b, u16 port, u32 value, unsigned size)
{
    log_at(pio, "out %#06x/%u <- %#x", port, size, value);
    lock_take(b->lock);
    write_whole(b, port, value, size);
    lock_give(b->lock);
}

void pio_bus_set_lock(struct pio_bus *b, struct lock *lock) { b->lock = lock; }

void pio_bus_list(struct pio_bus *b, void (*each)(u16 base, u32 count, const char *name, void *arg), void *arg)
{
    for (u32 p = 0; p < PORTS;) {
        if (!b->slot[p]) {
            p++;
            continue;
        }
        const struct pio_range *r = &b->ranges[b->slot[p] - 1];
        each((u16)r->base, r->count, r->name, arg);
        p = r->base + r->count;
    }
}
