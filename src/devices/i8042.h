/* 8042 keyboard controller at 0x60/0x64 with a PS/2 keyboard and mouse, and port 0x92. */
#pragma once
#include "devices/bus.h"

struct i8042;

/* Drives GSI 1 (keyboard) and 12 (mouse). @a20, which may be NULL, hears changes of the A20 gate. */
struct i8042 *i8042_new(struct board *b, void (*a20)(void *opaque, bool on), void *opaque, struct error *err);
void i8042_reset(struct i8042 *k);
void i8042_free(struct i8042 *k);
/* Queues scan codes (set 2 as a keyboard sends them); false when they do not fit. */
bool i8042_key(struct i8042 *k, const u8 *codes, unsigned count);
