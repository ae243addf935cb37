/* The I/O port space, and how a device presents itself to the machine. */
#pragma once
#include "base/clock.h"
#include "base/error.h"
#include "base/io.h"
#include "devices/irq.h"
#include "mmu/dma.h"
#include "mmu/physmap.h"

struct pio_bus;

struct pio_bus *pio_bus_new(void);
void pio_bus_free(struct pio_bus *b);
/* Accesses take @lock (NULL: none); it outlives the bus. */
void pio_bus_set_lock(struct pio_bus *b, struct lock *lock);
/* Claims ports base..base+count-1; @ops and @opaque outlive the bus. Overlap is an error. */
int pio_bus_add(struct pio_bus *b, u16 base, u32 count, const struct io_ops *ops, void *opaque, const char *name,
                struct error *err);
/* The same for a device with an eight-bit data path: wider accesses reach it as single bytes. */
int pio_bus_add8(struct pio_bus *b, u16 base, u32 count, const struct io_ops *ops, void *opaque, const char *name,
                 struct error *err);
void pio_bus_remove(struct pio_bus *b, u16 base);
/* @size 1, 2 or 4. An access that spans ports of two devices, or that goes to an eight-bit device, is
 * split into bytes as an ISA bridge does. Undecoded ports read as ones. */
u32 pio_read(struct pio_bus *b, u16 port, unsigned size);
void pio_write(struct pio_bus *b, u16 port, u32 value, unsigned size);
/* Calls @each for every claimed range, in order. */
void pio_bus_list(struct pio_bus *b, void (*each)(u16 base, u32 count, const char *name, void *arg), void *arg);

/* What a device needs from its machine; filled once by the machine. */
struct board {
    struct clock *clock;
    struct pio_bus *pio;
    struct physmap *pm;
    struct dma dma;
    /* Inputs 0..23 of the I/O APIC (and 0..15 of the 8259 pair). */
    struct irq_line (*irq)(struct board *b, unsigned gsi);
    struct msi_sink msi;
    /* A device asks the machine to stop or restart; acted on before the next instruction slice. */
    void (*request_reset)(struct board *b);
    void (*request_power_off)(struct board *b);
    void (*request_exit)(struct board *b, int status);
    u64 tsc_hz;
};

/* Zeroed memory for a device's state; never NULL. */
void *device_alloc(size_t size);
