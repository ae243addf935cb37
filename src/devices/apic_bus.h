/*
 * The interrupt messages of a machine: from ICRs, I/O APICs and MSIs to the local APICs they name.
 * Manual: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)".
 */
#pragma once
#include "devices/irq.h"

#define APIC_BUS_MAX 256

struct apic_bus;
struct lapic;

enum apic_delivery {
    APIC_FIXED,
    APIC_LOWEST,
    APIC_SMI,
    APIC_RESERVED,
    APIC_NMI,
    APIC_INIT,
    APIC_STARTUP,
    APIC_EXTINT,
};

struct apic_msg {
    u32 dest;
    bool wide_dest; /* a 32-bit destination from an x2APIC ICR: broadcast is all 32 ones */
    bool logical;
    bool level; /* trigger mode */
    u8 vector;
    enum apic_delivery mode;
};

struct apic_bus *apic_bus_new(void);
void apic_bus_free(struct apic_bus *bus);
/* Called by lapic_new() and lapic_free(); -1 when there are too many. */
int apic_bus_attach(struct apic_bus *bus, struct lapic *l);
void apic_bus_detach(struct apic_bus *bus, struct lapic *l);

/* Delivers to every APIC that the destination names; returns how many accepted. */
unsigned apic_bus_send(struct apic_bus *bus, const struct apic_msg *m);
/* The "all" shorthands; @except is NULL or the sender. */
unsigned apic_bus_send_all(struct apic_bus *bus, const struct apic_msg *m, const struct lapic *except);

/* Where devices' message-signalled interrupts go: struct board's msi. */
struct msi_sink apic_bus_msi(struct apic_bus *bus);
/* The 8259's INT wire: LINT0 of every processor. */
struct irq_line apic_bus_lint0(struct apic_bus *bus);
/* The NMI wire: LINT1 of every processor. */
struct irq_line apic_bus_lint1(struct apic_bus *bus);

/* Who answers the INTA cycles of an ExtINT: the 8259 pair. */
void apic_bus_set_inta(struct apic_bus *bus, int (*peek)(void *opaque), int (*ack)(void *opaque), void *opaque);
int apic_bus_inta_peek(struct apic_bus *bus);
int apic_bus_inta(struct apic_bus *bus);

/* Who hears EOI messages of level-triggered vectors: an I/O APIC. Up to eight. */
int apic_bus_on_eoi(struct apic_bus *bus, void (*eoi)(void *opaque, u8 vector), void *opaque);
void apic_bus_eoi(struct apic_bus *bus, u8 vector);
