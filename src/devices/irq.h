/*
 * The wires between devices, interrupt controllers and processors. Devices know this file and not
 * the CPU; the CPU knows this file and no device.
 */
#pragma once
#include "base/types.h"

/* One input of an interrupt controller, as a device sees it. */
struct irq_line {
    void (*set)(void *opaque, unsigned n, bool level);
    void *opaque;
    unsigned n;
};

static inline void irq_set(const struct irq_line *line, bool level)
{
    if (line->set)
        line->set(line->opaque, line->n, level);
}

static inline void irq_pulse(const struct irq_line *line)
{
    irq_set(line, true);
    irq_set(line, false);
}

/* A message-signalled interrupt: a write of @data to @addr (0xFEExxxxx). */
struct msi_sink {
    void (*send)(void *opaque, u64 addr, u32 data);
    void *opaque;
};

/*
 * What a local APIC (or the 8259 through LINT0) tells its processor. The callee only notes the
 * request in the processor's mailbox; it may be called from any thread.
 */
struct cpu_pins {
    void (*intr)(void *cpu, bool asserted); /* a maskable interrupt is (no longer) waiting */
    void (*nmi)(void *cpu);
    void (*smi)(void *cpu);
    void (*init)(void *cpu);
    void (*sipi)(void *cpu, u8 vector);
};

/*
 * What a processor asks of its interrupt controller (local APIC, in front of the 8259). All calls
 * come from the processor's own thread.
 */
struct intc_ops {
    /* The vector INTA would return now, or -1. Does not change state. */
    int (*peek)(void *intc);
    /* INTA: takes the highest waiting interrupt (IRR -> ISR, or 8259 acknowledge); -1 if none. */
    int (*ack)(void *intc);
    /* Task priority, 0..255 (CR8 is bits 7:4). */
    u8 (*get_tpr)(void *intc);
    void (*set_tpr)(void *intc, u8 tpr);
    /* x2APIC MSRs 0x800..0x8FF, IA32_APIC_BASE (0x1B) and IA32_TSC_DEADLINE (0x6E0): 0, or -1 for #GP(0). */
    int (*rdmsr)(void *intc, u32 msr, u64 *value);
    int (*wrmsr)(void *intc, u32 msr, u64 value);
    /* INIT as the processor sees it: the APIC goes to its INIT state (not RESET). */
    void (*init)(void *intc);
    /* APIC ID as CPUID reports it. */
    u32 (*id)(void *intc);
    /* Physical address of the xAPIC register page while it is enabled in xAPIC mode, else ~0. */
    u64 (*page)(void *intc);
    /* Register page accesses; @offset 0..0xFFF. */
    u64 (*mmio_read)(void *intc, u32 offset, unsigned size);
    void (*mmio_write)(void *intc, u32 offset, u64 value, unsigned size);
    /* A fixed interrupt to one APIC, as a posted-interrupt descriptor names it (NDST); not through the ICR. May be NULL. */
    void (*ipi)(void *intc, u32 ndst, u8 vector);
    /* The processor's performance counters ask for their interrupt; may be NULL. */
    void (*pmi)(void *intc);
};
