#include "devices/debugcon.h"
#include "base/log.h"

#include <stdlib.h>

struct debugcon {
    struct board *board;
    void (*tx)(void *opaque, u8 byte);
    void *opaque;
    u8 post;
};

/* Reading its own number is how the port says it exists. */
static u64 console_read(void *opaque, u64 off, unsigned size) { return 0xe9; }

static void console_write(void *opaque, u64 off, u64 v, unsigned size)
{
    struct debugcon *d = opaque;
    if (d->tx)
        d->tx(d->opaque, (u8)v);
}

static u64 post_read(void *opaque, u64 off, unsigned size) { return ((struct debugcon *)opaque)->post; }

/* Also the port whose access time old drivers use as a delay: no line in the log for a repeated value. */
static void post_write(void *opaque, u64 off, u64 v, unsigned size)
{
    struct debugcon *d = opaque;
    if (d->post != (u8)v)
        log_at(device, "POST code %#04x", (unsigned)v);
    d->post = (u8)v;
}

static const struct io_ops console_ops = {console_read, console_write};
static const struct io_ops post_ops = {post_read, post_write};

u8 debugcon_post_code(const struct debugcon *d) { return d->post; }

struct debugcon *debugcon_new(struct board *b, void (*tx)(void *opaque, u8 byte), void *opaque, struct error *err)
{
    struct debugcon *d = device_alloc(sizeof(*d));
    d->board = b;
    d->tx = tx;
    d->opaque = opaque;
    if (pio_bus_add8(b->pio, 0xe9, 1, &console_ops, d, "debug console", err) ||
        pio_bus_add8(b->pio, 0x80, 1, &post_ops, d, "POST code", err)) {
        free(d);
        return NULL;
    }
    return d;
}

void debugcon_free(struct debugcon *d)
{
    if (!d)
        return;
    pio_bus_remove(d->board->pio, 0xe9);
    pio_bus_remove(d->board->pio, 0x80);
    free(d);
}
