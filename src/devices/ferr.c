#include "devices/ferr.h"

#include <stdlib.h>

struct ferr {
    struct board *board;
    struct irq_line irq;
    void (*ignne)(void *opaque);
    void *opaque;
};

static u64 read(void *opaque, u64 off, unsigned size) { return ~0ull; }

static void write(void *opaque, u64 off, u64 value, unsigned size)
{
    struct ferr *d = opaque;
    irq_set(&d->irq, false);
    d->ignne(d->opaque);
}

static const struct io_ops ops = {read, write};

struct ferr *ferr_new(struct board *b, void (*ignne)(void *opaque), void *opaque, struct error *err)
{
    struct ferr *d = device_alloc(sizeof(*d));
    d->board = b;
    d->irq = b->irq(b, 13);
    d->ignne = ignne;
    d->opaque = opaque;
    if (pio_bus_add(b->pio, FERR_PORT, 1, &ops, d, "coprocessor error", err)) {
        free(d);
        return NULL;
    }
    return d;
}

void ferr_free(struct ferr *d)
{
    pio_bus_remove(d->board->pio, FERR_PORT);
    free(d);
}

void ferr_reset(struct ferr *d) { irq_set(&d->irq, false); }

const struct irq_line *ferr_line(const struct ferr *d) { return &d->irq; }
