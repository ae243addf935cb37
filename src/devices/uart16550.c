/*
 * National PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs (data sheet SNLS378).
 * Bytes take no time: the transmitter is empty again as soon as it was written, and the receiver
 * refuses a byte rather than overrun, so that the host side can hold it back.
 */
#include "devices/uart16550.h"

#include <stdlib.h>

enum { RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR };

enum { IER_ERBFI = BIT(0), IER_ETBEI = BIT(1), IER_ELSI = BIT(2), IER_EDSSI = BIT(3) };
enum {
    IIR_NONE = 0x1,
    IIR_MSI = 0x0,
    IIR_THRE = 0x2,
    IIR_RDA = 0x4,
    IIR_TIMEOUT = 0xc,
    IIR_RLS = 0x6,
    IIR_FIFO = 0xc0
};
enum { FCR_ENABLE = BIT(0), FCR_CLEAR_RX = BIT(1), FCR_CLEAR_TX = BIT(2) };
enum { LCR_DLAB = BIT(7) };
enum { MCR_DTR = BIT(0), MCR_RTS = BIT(1), MCR_OUT1 = BIT(2), MCR_OUT2 = BIT(3), MCR_LOOP = BIT(4) };
enum { LSR_DR = BIT(0), LSR_OE = BIT(1), LSR_BI = BIT(4), LSR_THRE = BIT(5), LSR_TEMT = BIT(6), LSR_ERRORS = 0x1e };
enum { MSR_TERI = BIT(2), MSR_CTS = BIT(4), MSR_DSR = BIT(5), MSR_RI = BIT(6), MSR_DCD = BIT(7) };

#define FIFO 16

struct uart {
    struct board *board;
    struct uart_host host;
    struct irq_line irq;
    u16 base;
    u8 ier, fcr, lcr, mcr, lsr_errors, msr_delta, scr;
    u8 lines; /* MSR bits 7:4 */
    u16 divisor;
    u8 rx[FIFO];
    unsigned rx_head, rx_count;
    bool thre_pending; /* the THRE interrupt was raised and not yet answered */
    bool level;
};

static unsigned capacity(const struct uart *u) { return u->fcr & FCR_ENABLE ? FIFO : 1; }

static unsigned trigger(const struct uart *u)
{
    static const u8 levels[] = {1, 4, 8, 14};
    return u->fcr & FCR_ENABLE ? levels[u->fcr >> 6] : 1;
}

/* Table "Interrupt Control Functions": the source with the highest priority. */
static u8 iir(const struct uart *u)
{
    if ((u->ier & IER_ELSI) && u->lsr_errors)
        return IIR_RLS;
    if ((u->ier & IER_ERBFI) && u->rx_count)
        /* Below the trigger level the character timeout applies; four character times are no time here. */
        return u->rx_count >= trigger(u) ? IIR_RDA : IIR_TIMEOUT;
    if ((u->ier & IER_ETBEI) && u->thre_pending)
        return IIR_THRE;
    if ((u->ier & IER_EDSSI) && u->msr_delta)
        return IIR_MSI;
    return IIR_NONE;
}

static void update(struct uart *u)
{
    /* On a PC, OUT2 gates the interrupt pin onto the bus. */
    bool level = (u->mcr & MCR_OUT2) && iir(u) != IIR_NONE;
    if (level != u->level) {
        u->level = level;
        irq_set(&u->irq, level);
    }
}

static bool receive(struct uart *u, u8 byte)
{
    if (u->rx_count >= capacity(u))
        return false;
    u->rx[(u->rx_head + u->rx_count++) % FIFO] = byte;
    return true;
}

bool uart_rx(struct uart *u, u8 byte)
{
    if ((u->mcr & MCR_LOOP) || !receive(u, byte))
        return false; /* in loop-back the receiver is cut off from the line */
    update(u);
    return true;
}

void uart_break(struct uart *u)
{
    if (u->mcr & MCR_LOOP)
        return;
    if (receive(u, 0))
        u->lsr_errors |= LSR_BI;
    update(u);
}

static void transmit(struct uart *u, u8 byte)
{
    /* THR fills and empties at once: the request drops and comes back, an edge for the 8259. */
    u->thre_pending = false;
    update(u);
    if (u->mcr & MCR_LOOP) {
        if (!receive(u, byte))
            u->lsr_errors |= LSR_OE;
    } else if (u->host.tx) {
        u->host.tx(u->host.opaque, byte);
    }
    u->thre_pending = true;
    update(u);
}

static u8 modem_lines(const struct uart *u)
{
    if (!(u->mcr & MCR_LOOP))
        return u->lines;
    return (u8)((u->mcr & MCR_RTS ? MSR_CTS : 0) | (u->mcr & MCR_DTR ? MSR_DSR : 0) | (u->mcr & MCR_OUT1 ? MSR_RI : 0) |
                (u->mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static void write_mcr(struct uart *u, u8 v)
{
    u8 before = modem_lines(u);
    u->mcr = v & 0x1f;
    u8 now = modem_lines(u), changed = before ^ now;
    /* DCTS, DDSR and DDCD note any change; TERI only the trailing edge of RI. */
    u->msr_delta |= (u8)((changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4);
    if ((before & MSR_RI) && !(now & MSR_RI))
        u->msr_delta |= MSR_TERI;
    update(u);
}

static void write_fcr(struct uart *u, u8 v)
{
    bool clear = ((v ^ u->fcr) & FCR_ENABLE) || (v & FCR_CLEAR_RX);
    /* Clearing the transmitter leaves it empty, as it already was. */
    u->fcr = v & FCR_ENABLE ? v & (0xc0 | FCR_ENABLE | BIT(3)) : 0;
    if (clear)
        u->rx_head = u->rx_count = 0;
    update(u);
    if (clear && u->host.rx_ready)
        u->host.rx_ready(u->host.opaque);
}

static void write_ier(struct uart *u, u8 v)
{
    bool rising = (v & IER_ETBEI) && !(u->ier & IER_ETBEI);
    u->ier = v & 0xf;
    if (rising)
        u->thre_pending = true; /* the holding register is empty, and that is news to whoever just asked */
    update(u);
}

static u8 read_rbr(struct uart *u)
{
    if (!u->rx_count)
        return 0;
    u8 v = u->rx[u->rx_head];
    u->rx_head = (u->rx_head + 1) % FIFO;
    u->rx_count--;
    update(u);
    if (u->host.rx_ready)
        u->host.rx_ready(u->host.opaque);
    return v;
}

static u64 read(void *opaque, u64 off, unsigned size)
{
    struct uart *u = opaque;
    bool dlab = u->lcr & LCR_DLAB;
    u8 v;
    switch (off) {
    case RBR_THR:
        return dlab ? u->divisor & 0xff : read_rbr(u);
    case IER:
        return dlab ? u->divisor >> 8 : u->ier;
    case IIR_FCR:
        v = iir(u);
        if (v == IIR_THRE) {
            u->thre_pending = false;
            update(u);
        }
        return v | (u->fcr & FCR_ENABLE ? IIR_FIFO : 0);
    case LCR:
        return u->lcr;
    case MCR:
        return u->mcr;
    case LSR:
        v = LSR_THRE | LSR_TEMT | u->lsr_errors | (u->rx_count ? LSR_DR : 0);
        u->lsr_errors = 0;
        update(u);
        return v;
    case MSR:
        v = modem_lines(u) | u->msr_delta;
        u->msr_delta = 0;
        update(u);
        return v;
    default:
        return u->scr;
    }
}

static void write(void *opaque, u64 off, u64 value, unsigned size)
{
    struct uart *u = opaque;
    bool dlab = u->lcr & LCR_DLAB;
    u8 v = (u8)value;
    switch (off) {
    case RBR_THR:
        if (dlab)
            u->divisor = (u->divisor & 0xff00) | v;
        else
            transmit(u, v);
        break;
    case IER:
        if (dlab)
            u->divisor = (u16)(v << 8 | (u->divisor & 0xff));
        else
            write_ier(u, v);
        break;
    case IIR_FCR:
        write_fcr(u, v);
        break;
    case LCR:
        u->lcr = v;
        break;
    case MCR:
        write_mcr(u, v);
        break;
    case SCR:
        u->scr = v;
        break;
    }
}

static const struct io_ops ops = {read, write};

void uart_reset(struct uart *u)
{
    u->ier = u->fcr = u->lcr = u->mcr = u->lsr_errors = u->msr_delta = u->scr = 0;
    u->lines = MSR_DCD | MSR_DSR | MSR_CTS; /* somebody is always at the other end */
    u->divisor = 12;                        /* 9600 baud; the data sheet leaves it undefined */
    u->rx_head = u->rx_count = 0;
    u->thre_pending = false;
    update(u);
}

struct uart *uart_new(struct board *b, u16 base, unsigned gsi, const struct uart_host *host, struct error *err)
{
    struct uart *u = device_alloc(sizeof(*u));
    u->board = b;
    u->base = base;
    u->irq = b->irq(b, gsi);
    if (host)
        u->host = *host;
    if (pio_bus_add8(b->pio, base, 8, &ops, u, "16550", err)) {
        free(u);
        return NULL;
    }
    uart_reset(u);
    return u;
}

void uart_free(struct uart *u)
{
    if (!u)
        return;
    pio_bus_remove(u->board->pio, u->base);
    free(u);
}
