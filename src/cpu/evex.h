/* Memory operands under a mask: one bit of @mask per element of @size bytes, the lowest first. */
#pragma once
#include "cpu/mem.h"

/* Reads the selected elements into their places in @buf; the others are not accessed and keep what is there. */
void masked_load(struct vcpu *v, unsigned seg, u64 ea, u8 *buf, unsigned size, u64 mask);
/* Writes the selected elements; all of them are checked before the first is written. */
void masked_store(struct vcpu *v, unsigned seg, u64 ea, const u8 *buf, unsigned size, u64 mask);
/* The check alone. */
void masked_probe_write(struct vcpu *v, unsigned seg, u64 ea, unsigned size, u64 mask);
