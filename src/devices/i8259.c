/*
 * Intel 8259A Programmable Interrupt Controller, twice, cascaded through IR2 as in a PC. Names after
 * the data sheet (order number 231468). The ELCR at 0x4D0/0x4D1 replaces ICW1.LTIM as in PCI chipsets.
 *
 * One deliberate difference: an edge-latched request stays until it is acknowledged even when the
 * input falls first. The data sheet would turn it into a spurious IR7; devices here pulse lines.
 */
#include "devices/i8259.h"
#include "base/log.h"

#include <stdlib.h>

struct pic {
    u8 irr, isr, imr;
    u8 lines;       /* current level of the inputs */
    u8 elcr;        /* 1: level-triggered */
    u8 elcr_mask;   /* which bits software may set */
    u8 icw2;        /* vector base, bits 7:3 */
    u8 icw3, icw4;
    u8 icw_step;    /* 0: initialised; 2..4: which ICW comes next */
    bool single, need_icw4;
    bool read_isr, poll, smm, rotate_aeoi;
    u8 lowest;      /* the input that has the lowest priority now */
};

struct i8259 {
    struct pic pic[2]; /* master, slave */
    struct irq_line intr;
    bool intr_level;
    struct board *board;
};

enum { ICW1_IC4 = BIT(0), ICW1_SNGL = BIT(1), ICW1 = BIT(4), OCW3 = BIT(3) };
enum { ICW4_AEOI = BIT(1), ICW4_SFNM = BIT(4) };

/* Position in the priority order: 0 is the highest. */
static unsigned rank(const struct pic *c, unsigned n) { return (n - c->lowest - 1) & 7; }

static int highest(const struct pic *c, u8 bits)
{
    for (unsigned i = 1; i <= 8; i++) {
        unsigned n = (c->lowest + i) & 7;
        if (bits & BIT(n))
            return (int)n;
    }
    return -1;
}

/* The input the chip would present, or -1 (data sheet, "Priority Resolver" and "Special Mask Mode"). */
static int request(const struct pic *c, bool master)
{
    int irq = highest(c, c->irr & ~c->imr);
    if (irq < 0)
        return -1;
    u8 blocking = c->isr;
    if (c->smm)
        blocking &= ~c->imr;
    /* Special fully nested: a slave in service does not lock out its own further requests. */
    if (master && (c->icw4 & ICW4_SFNM))
        blocking &= ~BIT(2);
    if (c->smm)
        return (blocking & BIT(irq)) ? -1 : irq;
    int serving = highest(c, blocking);
    return serving < 0 || rank(c, irq) < rank(c, serving) ? irq : -1;
}

static void set_input(struct pic *c, unsigned n, bool level)
{
    u8 bit = (u8)BIT(n);
    if (c->elcr & bit) {
        c->irr = level ? c->irr | bit : c->irr & ~bit;
    } else if (level && !(c->lines & bit)) {
        c->irr |= bit;
    }
    c->lines = level ? c->lines | bit : c->lines & ~bit;
}

static void update(struct i8259 *p)
{
    bool cascade = request(&p->pic[1], false) >= 0;
    struct pic *m = &p->pic[0];
    /* The slave's INT wire: while it is high the request stands, whatever was acknowledged before. */
    m->irr = cascade ? m->irr | BIT(2) : m->irr & ~BIT(2);
    bool level = request(m, true) >= 0;
    if (level != p->intr_level) {
        p->intr_level = level;
        log_at(irq, "8259: INT %d", level);
        irq_set(&p->intr, level);
    }
}

void i8259_set(struct i8259 *p, unsigned irq, bool level)
{
    if (irq > 15 || irq == 2)
        return;
    set_input(&p->pic[irq >> 3], irq & 7, level);
    update(p);
}

static void acknowledge(struct pic *c, unsigned n)
{
    if (!(c->elcr & BIT(n)))
        c->irr &= ~BIT(n);
    if (c->icw4 & ICW4_AEOI) {
        if (c->rotate_aeoi)
            c->lowest = (u8)n;
    } else {
        c->isr |= BIT(n);
    }
}

int i8259_peek(struct i8259 *p)
{
    int n = request(&p->pic[0], true);
    if (n < 0)
        return -1;
    if (n != 2)
        return p->pic[0].icw2 + n;
    int s = request(&p->pic[1], false);
    return p->pic[1].icw2 + (s < 0 ? 7 : s);
}

int i8259_ack(struct i8259 *p)
{
    int n = request(&p->pic[0], true);
    int vector;
    if (n < 0) {
        vector = p->pic[0].icw2 + 7;
    } else {
        acknowledge(&p->pic[0], (unsigned)n);
        vector = p->pic[0].icw2 + n;
        if (n == 2) {
            int s = request(&p->pic[1], false);
            if (s >= 0)
                acknowledge(&p->pic[1], (unsigned)s);
            vector = p->pic[1].icw2 + (s < 0 ? 7 : s);
        }
    }
    update(p);
    return vector;
}

static void ocw2(struct pic *c, u8 v)
{
    unsigned level = v & 7;
    int n;
    switch (v >> 5) {
    case 0: /* rotate in automatic EOI mode: clear */
    case 4: /* and set */
        c->rotate_aeoi = v >> 5 == 4;
        break;
    case 1: /* non-specific EOI */
    case 5: /* with rotation */
        n = highest(c, c->smm ? c->isr & ~c->imr : c->isr);
        if (n >= 0) {
            c->isr &= ~BIT(n);
            if (v >> 5 == 5)
                c->lowest = (u8)n;
        }
        break;
    case 3: /* specific EOI */
        c->isr &= ~BIT(level);
        break;
    case 7: /* with rotation */
        c->isr &= ~BIT(level);
        c->lowest = (u8)level;
        break;
    case 6: /* set priority */
        c->lowest = (u8)level;
        break;
    }
}

static void icw1(struct pic *c, u8 v)
{
    /* Data sheet, "Initialization Command Words": what ICW1 resets. */
    c->imr = c->isr = 0;
    c->irr &= c->elcr; /* the edge sense circuits are reset; level inputs still ask */
    c->lowest = 7;
    c->smm = c->read_isr = c->poll = c->rotate_aeoi = false;
    c->icw4 = 0;
    c->single = v & ICW1_SNGL;
    c->need_icw4 = v & ICW1_IC4;
    c->icw_step = 2;
}

static void command(struct pic *c, u8 v)
{
    if (v & ICW1) {
        icw1(c, v);
    } else if (v & OCW3) {
        if (v & BIT(2))
            c->poll = true;
        if (v & BIT(1))
            c->read_isr = v & BIT(0);
        if (v & BIT(6))
            c->smm = v & BIT(5);
    } else {
        ocw2(c, v);
    }
}

static void data(struct pic *c, u8 v)
{
    switch (c->icw_step) {
    case 2:
        c->icw2 = v & 0xf8;
        c->icw_step = c->single ? (c->need_icw4 ? 4 : 0) : 3;
        break;
    case 3:
        c->icw3 = v;
        c->icw_step = c->need_icw4 ? 4 : 0;
        break;
    case 4:
        c->icw4 = v & 0x1f;
        c->icw_step = 0;
        break;
    default:
        c->imr = v;
    }
}

static void pic_write(struct i8259 *p, unsigned chip, u64 port, u8 v)
{
    if (port & 1)
        data(&p->pic[chip], v);
    else
        command(&p->pic[chip], v);
    update(p);
}

static u8 pic_read(struct i8259 *p, unsigned chip, u64 port)
{
    struct pic *c = &p->pic[chip];
    if (c->poll) {
        /* The read after a poll command acts as INTA (data sheet, "Poll Command"). */
        c->poll = false;
        int n = request(c, chip == 0);
        if (n < 0)
            return 0;
        acknowledge(c, (unsigned)n);
        update(p);
        return (u8)(0x80 | n);
    }
    if (port & 1)
        return c->imr;
    return c->read_isr ? c->isr : c->irr;
}

static u64 master_read(void *opaque, u64 off, unsigned size) { return pic_read(opaque, 0, off); }
static u64 slave_read(void *opaque, u64 off, unsigned size) { return pic_read(opaque, 1, off); }
static void master_write(void *opaque, u64 off, u64 v, unsigned size) { pic_write(opaque, 0, off, (u8)v); }
static void slave_write(void *opaque, u64 off, u64 v, unsigned size) { pic_write(opaque, 1, off, (u8)v); }

static u64 elcr_read(void *opaque, u64 off, unsigned size)
{
    struct i8259 *p = opaque;
    return p->pic[off & 1].elcr;
}

static void elcr_write(void *opaque, u64 off, u64 v, unsigned size)
{
    struct i8259 *p = opaque;
    struct pic *c = &p->pic[off & 1];
    c->elcr = (u8)v & c->elcr_mask;
    c->irr = (c->irr & ~c->elcr) | (c->lines & c->elcr);
    update(p);
}

static const struct io_ops master_ops = {master_read, master_write};
static const struct io_ops slave_ops = {slave_read, slave_write};
static const struct io_ops elcr_ops = {elcr_read, elcr_write};

void i8259_reset(struct i8259 *p)
{
    for (unsigned i = 0; i < 2; i++) {
        struct pic *c = &p->pic[i];
        *c = (struct pic){.lines = c->lines, .lowest = 7};
        /* IRQ 0, 1, 2, 8 and 13 are edge-triggered for ever. */
        c->elcr_mask = i ? 0xde : 0xf8;
    }
    update(p);
}

struct i8259 *i8259_new(struct board *b, struct irq_line intr, struct error *err)
{
    struct i8259 *p = device_alloc(sizeof(*p));
    p->board = b;
    p->intr = intr;
    if (pio_bus_add8(b->pio, 0x20, 2, &master_ops, p, "8259 master", err) ||
        pio_bus_add8(b->pio, 0xa0, 2, &slave_ops, p, "8259 slave", err) ||
        pio_bus_add8(b->pio, 0x4d0, 2, &elcr_ops, p, "ELCR", err)) {
        free(p);
        return NULL;
    }
    i8259_reset(p);
    return p;
}

void i8259_free(struct i8259 *p)
{
    if (!p)
        return;
    pio_bus_remove(p->board->pio, 0x20);
    pio_bus_remove(p->board->pio, 0xa0);
    pio_bus_remove(p->board->pio, 0x4d0);
    free(p);
}
