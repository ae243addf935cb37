/* The pair of 8259A interrupt controllers of a PC, with the ELCR (edge/level control) ports. */
#pragma once
#include "devices/bus.h"

struct i8259;

/* @intr is the master's INT output: LINT0 of the local APICs. */
struct i8259 *i8259_new(struct board *b, struct irq_line intr, struct error *err);
void i8259_reset(struct i8259 *p);
void i8259_free(struct i8259 *p);
/* Inputs 0..15; 2 is the cascade and ignored. */
void i8259_set(struct i8259 *p, unsigned irq, bool level);
/* The vector an INTA cycle would return now; -1 when INT is low. */
int i8259_peek(struct i8259 *p);
/* The INTA cycles. Without a request the answer is the spurious vector (IR7). */
int i8259_ack(struct i8259 *p);
