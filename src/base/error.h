/*
 * Errors a user can cause. A function that can fail returns 0 or -1 and fills a struct error with
 * one line: what, where, what was expected. The command prints it and exits with status 2.
 */
#pragma once
#include "base/types.h"

struct error {
    char text[512];
};

/* Stores the formatted line in @err (which may be NULL) and returns -1. */
int error_set(struct error *err, const char *fmt, ...) printf_like(2, 3);

/*
 * An internal impossibility: prints the line, runs the hook (which prints the vCPU state and the
 * last events), and aborts. Never for anything a guest or a user can cause.
 */
void panic(const char *fmt, ...) printf_like(1, 2) __attribute__((noreturn));
void panic_set_hook(void (*hook)(void));
