/* A board without processors: an instruction-count clock, a port bus, physical memory, and wires that remember. */
#pragma once
#include "devices/bus.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* cmocka.h needs the four above it. */
#include <cmocka.h>

struct fixture {
    struct board board;
    struct clock clock;
    bool line[24];
    unsigned rises[24];
    struct irq_line route; /* when set, lines go on to there as (opaque, gsi, level) */
    unsigned resets, power_offs, exits, messages;
    int exit_status;
    u64 msi_addr;
    u32 msi_data;
};

static inline void fixture_line(void *opaque, unsigned n, bool level)
{
    struct fixture *f = opaque;
    f->rises[n] += level && !f->line[n];
    f->line[n] = level;
    if (f->route.set)
        f->route.set(f->route.opaque, n, level);
}

static inline struct irq_line fixture_irq(struct board *b, unsigned gsi)
{
    assert_true(gsi < 24);
    return (struct irq_line){fixture_line, container_of(b, struct fixture, board), gsi};
}

static inline void fixture_msi(void *opaque, u64 addr, u32 data)
{
    struct fixture *f = opaque;
    f->messages++;
    f->msi_addr = addr;
    f->msi_data = data;
}

static inline void fixture_reset(struct board *b) { container_of(b, struct fixture, board)->resets++; }
static inline void fixture_off(struct board *b) { container_of(b, struct fixture, board)->power_offs++; }

static inline void fixture_exit(struct board *b, int status)
{
    struct fixture *f = container_of(b, struct fixture, board);
    f->exits++;
    f->exit_status = status;
}

static inline void fixture_init(struct fixture *f)
{
    *f = (struct fixture){0};
    clock_init(&f->clock, CLOCK_ICOUNT);
    f->board = (struct board){
        .clock = &f->clock,
        .pio = pio_bus_new(),
        .pm = physmap_new(),
        .irq = fixture_irq,
        .msi = {fixture_msi, f},
        .request_reset = fixture_reset,
        .request_power_off = fixture_off,
        .request_exit = fixture_exit,
        .tsc_hz = 2000000000,
    };
    f->board.dma.pm = f->board.pm;
}

static inline void fixture_free(struct fixture *f)
{
    pio_bus_free(f->board.pio);
    physmap_free(f->board.pm);
}

/* Lets time pass, firing timers when they are due rather than all at the end. */
static inline void pass(struct fixture *f, u64 ns)
{
    u64 end = clock_now(&f->clock) + ns;
    while (clock_next(&f->clock) <= end) {
        u64 now = clock_now(&f->clock), next = clock_next(&f->clock);
        clock_advance(&f->clock, next > now ? next - now : 0);
        clock_run(&f->clock);
    }
    clock_advance(&f->clock, end - clock_now(&f->clock));
}

static inline u8 inb(struct fixture *f, u16 port) { return (u8)pio_read(f->board.pio, port, 1); }
static inline u16 inw(struct fixture *f, u16 port) { return (u16)pio_read(f->board.pio, port, 2); }
static inline u32 inl(struct fixture *f, u16 port) { return pio_read(f->board.pio, port, 4); }
static inline void outb(struct fixture *f, u16 port, u8 v) { pio_write(f->board.pio, port, v, 1); }
static inline void outw(struct fixture *f, u16 port, u16 v) { pio_write(f->board.pio, port, v, 2); }
static inline void outl(struct fixture *f, u16 port, u32 v) { pio_write(f->board.pio, port, v, 4); }
static inline u32 mem32(struct fixture *f, pa_t pa) { return (u32)physmap_load(f->board.pm, pa, 4); }
static inline void set32(struct fixture *f, pa_t pa, u32 v) { physmap_store(f->board.pm, pa, v, 4); }
