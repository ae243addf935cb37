/* 82093AA I/O APIC with 24 inputs, version 0x20 (with an EOI register). */
#pragma once
#include "devices/apic_bus.h"
#include "devices/bus.h"

#define IOAPIC_BASE   0xfec00000u
#define IOAPIC_INPUTS 24

struct ioapic;

struct ioapic *ioapic_new(struct board *b, struct apic_bus *bus, struct error *err);
void ioapic_reset(struct ioapic *io);
void ioapic_free(struct ioapic *io);
/* Input 0..23; @level true means asserted, whatever the wire's polarity. */
void ioapic_set(struct ioapic *io, unsigned input, bool level);
