#include "devices/irq_router.h"
#include "base/log.h"

static void set(void *opaque, unsigned gsi, bool level)
{
    struct irq_router *r = opaque;
    log_at(irq, "GSI %u %s", gsi, level ? "high" : "low");
    if (r->pic && gsi < 16)
        i8259_set(r->pic, gsi, level);
    if (r->ioapic)
        ioapic_set(r->ioapic, gsi == 0 ? 2 : gsi, level);
}

struct irq_line irq_router_line(struct irq_router *r, unsigned gsi) { return (struct irq_line){set, r, gsi}; }
