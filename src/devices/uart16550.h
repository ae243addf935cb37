/* 16550A serial port, not paced by its baud rate. */
#pragma once
#include "devices/bus.h"

struct uart;

struct uart_host {
    void (*tx)(void *opaque, u8 byte);    /* the guest sent a byte */
    void (*rx_ready)(void *opaque);       /* the receiver has room again; may be NULL */
    void *opaque;
};

/* COM1 is @base 0x3f8, @gsi 4. */
struct uart *uart_new(struct board *b, u16 base, unsigned gsi, const struct uart_host *host, struct error *err);
void uart_reset(struct uart *u);
void uart_free(struct uart *u);
/* Whether the byte was accepted: false while the receiver is full. */
bool uart_rx(struct uart *u, u8 byte);
/* A break condition on the line. */
void uart_break(struct uart *u);
