/*
 * The coprocessor error of the PC/AT: FERR# of the first processor is IRQ 13, and a write to port 0xF0 ends the
 * interrupt and asserts IGNNE#, so that its handler may use the FPU (SDM vol. 1 "Guidelines for Writing x87 FPU
 * Exception Handlers", MS-DOS compatibility).
 */
#pragma once
#include "devices/bus.h"

#define FERR_PORT 0xf0

struct ferr;

/* @ignne is called when IGNNE# is asserted. */
struct ferr *ferr_new(struct board *b, void (*ignne)(void *opaque), void *opaque, struct error *err);
void ferr_free(struct ferr *d);
void ferr_reset(struct ferr *d);
/* What the processor drives. */
const struct irq_line *ferr_line(const struct ferr *d);
