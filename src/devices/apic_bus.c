/* Routes interrupt messages: SDM volume 3, "Issuing Interprocessor Interrupts" and "Message Signalled Interrupts". */
#include "devices/apic_bus.h"
#include "base/bits.h"
#include "base/log.h"
#include "devices/bus.h"
#include "devices/lapic.h"

#include <stdlib.h>

#define EOI_LISTENERS 8

struct apic_bus {
    unsigned count;
    struct lapic *lapic[APIC_BUS_MAX];
    unsigned last_lowest; /* rotates the choice among equals */
    int (*inta_peek)(void *opaque);
    int (*inta_ack)(void *opaque);
    void *inta_opaque;
    struct {
        void (*eoi)(void *opaque, u8 vector);
        void *opaque;
    } listener[EOI_LISTENERS];
    unsigned listeners;
};

struct apic_bus *apic_bus_new(void) { return device_alloc(sizeof(struct apic_bus)); }
void apic_bus_free(struct apic_bus *bus) { free(bus); }

int apic_bus_attach(struct apic_bus *bus, struct lapic *l)
{
    if (bus->count == APIC_BUS_MAX)
        return -1;
    bus->lapic[bus->count++] = l;
    return 0;
}

void apic_bus_detach(struct apic_bus *bus, struct lapic *l)
{
    for (unsigned i = 0; i < bus->count; i++) {
        if (bus->lapic[i] == l) {
            bus->lapic[i] = bus->lapic[--bus->count];
            return;
        }
    }
}

unsigned apic_bus_send(struct apic_bus *bus, const struct apic_msg *m)
{
    log_at(irq, "message: dest %#x %s mode %d vector %#x %s", m->dest, m->logical ? "logical" : "physical", m->mode,
           m->vector, m->level ? "level" : "edge");
    unsigned accepted = 0;
    if (m->mode != APIC_LOWEST) {
        for (unsigned i = 0; i < bus->count; i++)
            if (lapic_matches(bus->lapic[i], m))
                accepted += lapic_deliver(bus->lapic[i], m->mode, m->vector, m->level);
        return accepted;
    }
    /* Lowest priority: the candidate with the smallest processor priority, the next in turn among equals. */
    struct lapic *best = NULL;
    unsigned best_index = 0, best_priority = ~0u;
    for (unsigned i = 1; i <= bus->count; i++) {
        unsigned n = (bus->last_lowest + i) % bus->count;
        if (!lapic_matches(bus->lapic[n], m) || !lapic_takes_fixed(bus->lapic[n]))
            continue;
        unsigned priority = lapic_priority(bus->lapic[n]);
        if (priority < best_priority) {
            best = bus->lapic[n];
            best_index = n;
            best_priority = priority;
        }
    }
    if (!best)
        return 0;
    bus->last_lowest = best_index;
    return lapic_deliver(best, APIC_FIXED, m->vector, m->level);
}

unsigned apic_bus_send_all(struct apic_bus *bus, const struct apic_msg *m, const struct lapic *except)
{
    unsigned accepted = 0;
    enum apic_delivery mode = m->mode == APIC_LOWEST ? APIC_FIXED : m->mode;
    for (unsigned i = 0; i < bus->count; i++)
        if (bus->lapic[i] != except && lapic_enabled(bus->lapic[i]))
            accepted += lapic_deliver(bus->lapic[i], mode, m->vector, m->level);
    return accepted;
}

/* SDM "Message Address Register Format" and "Message Data Register Format". */
static void msi_send(void *opaque, u64 addr, u32 data)
{
    if (addr >> 20 != 0xfee)
        return;
    bool redirection_hint = addr & BIT(3);
    struct apic_msg m = {
        .dest = (u32)bits_get(addr, 19, 12),
        .logical = redirection_hint && (addr & BIT(2)),
        .level = data & BIT(15),
        .vector = (u8)data,
        .mode = (enum apic_delivery)bits_get(data, 10, 8),
    };
    /* Without the hint the destination mode bit is ignored by the text, but processors and chipsets
     * honour it, and software that uses logical mode without the hint exists. */
    if (addr & BIT(2))
        m.logical = true;
    if (redirection_hint && m.mode == APIC_FIXED)
        m.mode = APIC_LOWEST;
    if (m.level && !(data & BIT(14)))
        return; /* de-assert messages mean nothing to a local APIC */
    apic_bus_send(opaque, &m);
}

struct msi_sink apic_bus_msi(struct apic_bus *bus) { return (struct msi_sink){msi_send, bus}; }

static void lint_set(void *opaque, unsigned n, bool level)
{
    struct apic_bus *bus = opaque;
    for (unsigned i = 0; i < bus->count; i++)
        lapic_set_lint(bus->lapic[i], n, level);
}

struct irq_line apic_bus_lint0(struct apic_bus *bus) { return (struct irq_line){lint_set, bus, 0}; }
struct irq_line apic_bus_lint1(struct apic_bus *bus) { return (struct irq_line){lint_set, bus, 1}; }

void apic_bus_set_inta(struct apic_bus *bus, int (*peek)(void *opaque), int (*ack)(void *opaque), void *opaque)
{
    bus->inta_peek = peek;
    bus->inta_ack = ack;
    bus->inta_opaque = opaque;
}

int apic_bus_inta_peek(struct apic_bus *bus) { return bus->inta_peek ? bus->inta_peek(bus->inta_opaque) : -1; }
int apic_bus_inta(struct apic_bus *bus) { return bus->inta_ack ? bus->inta_ack(bus->inta_opaque) : -1; }

int apic_bus_on_eoi(struct apic_bus *bus, void (*eoi)(void *opaque, u8 vector), void *opaque)
{
    if (bus->listeners == EOI_LISTENERS)
        return -1;
    bus->listener[bus->listeners].eoi = eoi;
    bus->listener[bus->listeners++].opaque = opaque;
    return 0;
}

void apic_bus_eoi(struct apic_bus *bus, u8 vector)
{
    for (unsigned i = 0; i < bus->listeners; i++)
        bus->listener[i].eoi(bus->listener[i].opaque, vector);
}
