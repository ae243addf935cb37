#include "devices/debug_exit.h"

#include <stdlib.h>

struct debug_exit {
    struct board *board;
    u16 port;
};

static u64 read(void *opaque, u64 off, unsigned size) { return 0; }

static void write(void *opaque, u64 off, u64 value, unsigned size)
{
    struct debug_exit *d = opaque;
    d->board->request_exit(d->board, (int)((u32)value << 1 | 1));
}

static const struct io_ops ops = {read, write};

struct debug_exit *debug_exit_new(struct board *b, u16 port, struct error *err)
{
    struct debug_exit *d = device_alloc(sizeof(*d));
    d->board = b;
    d->port = port;
    if (pio_bus_add(b->pio, port, 4, &ops, d, "debug exit", err)) {
        free(d);
        return NULL;
    }
    return d;
}

void debug_exit_free(struct debug_exit *d)
{
    if (!d)
        return;
    pio_bus_remove(d->board->pio, d->port);
    free(d);
}
