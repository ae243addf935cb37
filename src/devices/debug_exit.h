/* isa-debug-exit: an OUT of V ends the run with status (V << 1) | 1. */
#pragma once
#include "devices/bus.h"

#define DEBUG_EXIT_PORT 0xf4

struct debug_exit;

struct debug_exit *debug_exit_new(struct board *b, u16 port, struct error *err);
void debug_exit_free(struct debug_exit *d);
