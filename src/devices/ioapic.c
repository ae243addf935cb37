/*
 * Intel 82093AA I/O APIC (data sheet 290566), plus the EOI register of version 0x20.
 *
 * Polarity: a device's irq_line says "asserted" or not, so the wire already has the polarity that the
 * firmware tables announce. The INTPOL bit is kept and read back, and changes nothing; a guest that
 * programs what the tables say sees exactly the hardware's behaviour.
 */
#include "devices/ioapic.h"
#include "base/log.h"

#include <stdlib.h>

#define REDIR_DELIVS     BIT64(12)
#define REDIR_REMOTE_IRR BIT64(14)
#define REDIR_LEVEL      BIT64(15)
#define REDIR_MASKED     BIT64(16)
#define REDIR_WRITABLE   (0xff00000000000000ull | 0x1ffffull)

enum { IOREGSEL = 0x00, IOWIN = 0x10, IOEOI = 0x40 };
enum { IOAPICID = 0x00, IOAPICVER = 0x01, IOAPICARB = 0x02, IOREDTBL = 0x10 };

struct ioapic {
    struct board *board;
    struct apic_bus *bus;
    u8 regsel;
    u32 id;
    u64 redir[IOAPIC_INPUTS];
    u32 lines; /* asserted inputs */
};

/* Sends input @n's message; whether some APIC took it. */
static bool send(struct ioapic *io, unsigned n)
{
    u64 r = io->redir[n];
    struct apic_msg m = {
        .dest = (u32)(r >> 56),
        .logical = r & BIT(11),
        .vector = (u8)r,
        .mode = (enum apic_delivery)bits_get(r, 10, 8),
    };
    /* Data sheet, IOREDTBL "Delivery Mode": SMI, NMI and INIT are edges whatever bit 15 says. */
    m.level = (r & REDIR_LEVEL) && (m.mode == APIC_FIXED || m.mode == APIC_LOWEST);
    log_at(irq, "IOAPIC input %u", n);
    unsigned accepted = apic_bus_send(io->bus, &m);
    return accepted && m.level;
}

/* A level-triggered input asks again as long as it is asserted and nobody serves it. */
static void try_level(struct ioapic *io, unsigned n)
{
    u64 r = io->redir[n];
    if (!(r & REDIR_LEVEL) || (r & (REDIR_MASKED | REDIR_REMOTE_IRR)) || !(io->lines & BIT(n)))
        return;
    if (send(io, n))
        io->redir[n] |= REDIR_REMOTE_IRR;
}

void ioapic_set(struct ioapic *io, unsigned input, bool level)
{
    if (input >= IOAPIC_INPUTS)
        return;
    bool rising = level && !(io->lines & BIT(input));
    io->lines = level ? io->lines | BIT(input) : io->lines & ~BIT(input);
    if (io->redir[input] & REDIR_LEVEL)
        try_level(io, input);
    else if (rising && !(io->redir[input] & REDIR_MASKED))
        send(io, input); /* an edge on a masked input is lost (data sheet, "Interrupt Mask") */
}

static void eoi(void *opaque, u8 vector)
{
    struct ioapic *io = opaque;
    for (unsigned n = 0; n < IOAPIC_INPUTS; n++) {
        if ((io->redir[n] & REDIR_REMOTE_IRR) && (u8)io->redir[n] == vector) {
            io->redir[n] &= ~REDIR_REMOTE_IRR;
            try_level(io, n);
        }
    }
}

static u32 window_read(const struct ioapic *io)
{
    unsigned reg = io->regsel;
    switch (reg) {
    case IOAPICID:
    case IOAPICARB: /* loaded from the ID, and only arbitration on a serial bus changes it */
        return io->id;
    case IOAPICVER:
        return 0x20 | (IOAPIC_INPUTS - 1) << 16;
    }
    if (reg >= IOREDTBL && reg < IOREDTBL + 2 * IOAPIC_INPUTS)
        return (u32)(io->redir[(reg - IOREDTBL) / 2] >> (reg & 1 ? 32 : 0));
    return 0;
}

static void window_write(struct ioapic *io, u32 v)
{
    unsigned reg = io->regsel;
    if (reg == IOAPICID)
        io->id = v & 0x0f000000;
    if (reg < IOREDTBL || reg >= IOREDTBL + 2 * IOAPIC_INPUTS)
        return;
    unsigned n = (reg - IOREDTBL) / 2;
    u64 old = io->redir[n], mask = reg & 1 ? 0xffffffff00000000ull : 0xffffffffull;
    u64 value = reg & 1 ? (u64)v << 32 : v;
    u64 r = (old & ~mask) | (value & mask);
    r = (r & REDIR_WRITABLE & ~(REDIR_DELIVS | REDIR_REMOTE_IRR)) | (old & REDIR_REMOTE_IRR);
    if (!(r & REDIR_LEVEL))
        r &= ~REDIR_REMOTE_IRR; /* the flip-flop belongs to level mode: older drivers flush it this way */
    io->redir[n] = r;
    try_level(io, n);
}

static u64 mmio_read(void *opaque, u64 offset, unsigned size)
{
    struct ioapic *io = opaque;
    u32 v = 0;
    if ((offset & ~3ull) == IOREGSEL)
        v = io->regsel;
    else if ((offset & ~3ull) == IOWIN)
        v = window_read(io);
    return bits_get((u64)v >> (8 * (offset & 3)), 8 * size - 1, 0);
}

static void mmio_write(void *opaque, u64 offset, u64 value, unsigned size)
{
    struct ioapic *io = opaque;
    switch (offset) {
    case IOREGSEL:
        io->regsel = (u8)value;
        break;
    case IOWIN:
        if (size >= 4)
            window_write(io, (u32)value);
        break;
    case IOEOI:
        eoi(io, (u8)value);
        break;
    }
}

static const struct io_ops mmio_ops = {mmio_read, mmio_write};

void ioapic_reset(struct ioapic *io)
{
    io->regsel = 0;
    io->id = 0;
    for (unsigned n = 0; n < IOAPIC_INPUTS; n++)
        io->redir[n] = REDIR_MASKED;
}

struct ioapic *ioapic_new(struct board *b, struct apic_bus *bus, struct error *err)
{
    struct ioapic *io = device_alloc(sizeof(*io));
    io->board = b;
    io->bus = bus;
    ioapic_reset(io);
    if (apic_bus_on_eoi(bus, eoi, io)) {
        error_set(err, "I/O APIC: too many listeners on the APIC bus");
        free(io);
        return NULL;
    }
    if (physmap_add_mmio(b->pm, IOAPIC_BASE, PAGE_SIZE, &mmio_ops, io, "I/O APIC", err)) {
        free(io);
        return NULL;
    }
    return io;
}

void ioapic_free(struct ioapic *io)
{
    if (!io)
        return;
    physmap_remove_mmio(io->board->pm, IOAPIC_BASE);
    free(io);
}
