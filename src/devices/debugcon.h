/* The debug console at port 0xE9 and the POST code port 0x80. */
#pragma once
#include "devices/bus.h"

struct debugcon;

struct debugcon *debugcon_new(struct board *b, void (*tx)(void *opaque, u8 byte), void *opaque, struct error *err);
void debugcon_free(struct debugcon *d);
/* The last byte written to port 0x80. */
u8 debugcon_post_code(const struct debugcon *d);
