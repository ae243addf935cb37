/*
 * The local APIC of one processor, xAPIC and x2APIC.
 * Manual: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)".
 *
 * Threads: one lock per APIC guards its registers. intc_ops calls come from the processor's own
 * thread; lapic_deliver() and lapic_set_lint() from any. No call leaves an APIC (to another APIC, an
 * I/O APIC or the 8259) while its lock is held; only cpu_pins are driven under it, so that the
 * level of the interrupt wire cannot be reported out of order. Timers obey clock.h.
 */
#pragma once
#include "devices/apic_bus.h"
#include "devices/bus.h"

/* The APIC timer's input clock: the "core crystal clock" that CPUID leaf 0x15 must then report. */
#define LAPIC_TIMER_HZ 1000000000u

struct lapic;

struct lapic_config {
    u32 id; /* initial APIC ID; the xAPIC ID is its low byte */
    bool bsp;
    bool x2apic;       /* CPUID.1:ECX.x2APIC */
    bool tsc_deadline; /* CPUID.1:ECX.TSC_Deadline */
    bool directed_eoi; /* version register bit 24: EOI-broadcast suppression */
    bool cmci;         /* a seventh LVT entry, as IA32_MCG_CAP.MCG_CMCI_P promises */
    unsigned phys_bits; /* MAXPHYADDR */
    struct cpu_pins pins;
    void *cpu; /* first argument of the pins and of the two functions below */
    /* Guest TSC now, and the clock time (ns, rounded up) at which it reaches a value. Both NULL: the
     * TSC counts board->tsc_hz from clock time 0. */
    u64 (*tsc)(void *cpu);
    u64 (*tsc_to_ns)(void *cpu, u64 tsc);
};

extern const struct intc_ops lapic_intc_ops;

struct lapic *lapic_new(struct board *b, struct apic_bus *bus, const struct lapic_config *config, struct error *err);
void lapic_free(struct lapic *l);
/* RESET (power-up). */
void lapic_reset(struct lapic *l);
/* What PC firmware leaves behind: software-enabled, LINT0 = ExtINT (BSP), LINT1 = NMI. */
void lapic_virtual_wire(struct lapic *l);
/* The guest's TSC jumped (IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST): rearms the deadline. */
void lapic_tsc_changed(struct lapic *l);
/* The thermal sensor, performance counters, or corrected machine-check errors ask for their LVT entry. */
enum lapic_local { LAPIC_THERMAL, LAPIC_PERF, LAPIC_CMCI };
void lapic_local_event(struct lapic *l, enum lapic_local what);
/* IA32_APIC_BASE.EN: CPUID.1:EDX.APIC follows it. */
bool lapic_enabled(struct lapic *l);

/* For apic_bus.c. */
bool lapic_matches(struct lapic *l, const struct apic_msg *m);
bool lapic_takes_fixed(struct lapic *l);
unsigned lapic_priority(struct lapic *l);
bool lapic_deliver(struct lapic *l, enum apic_delivery mode, u8 vector, bool level);
void lapic_set_lint(struct lapic *l, unsigned n, bool level);
