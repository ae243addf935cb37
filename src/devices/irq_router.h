/*
 * A PC's interrupt wiring: each global system interrupt goes to the I/O APIC and, below 16, to the
 * 8259 pair. ISA IRQ 0 is I/O APIC input 2, as the MADT's interrupt source override must say.
 */
#pragma once
#include "devices/i8259.h"
#include "devices/ioapic.h"

struct irq_router {
    struct i8259 *pic;
    struct ioapic *ioapic;
};

/* The wire @gsi (0..23); what struct board's irq() returns. @r outlives the wire. */
struct irq_line irq_router_line(struct irq_router *r, unsigned gsi);
