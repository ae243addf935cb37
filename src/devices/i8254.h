/* 8254 interval timer at ports 0x40-0x43, and the PC's port 0x61 (speaker gate, refresh toggle). */
#pragma once
#include "devices/bus.h"

#define I8254_HZ 1193182u

struct i8254;

/* Channel 0 drives GSI 0. */
struct i8254 *i8254_new(struct board *b, struct error *err);
void i8254_reset(struct i8254 *p);
void i8254_free(struct i8254 *p);
/* The HPET's legacy replacement takes over GSI 0 while @on is false. */
void i8254_irq_enable(struct i8254 *p, bool on);
