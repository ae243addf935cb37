#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int error_set(struct error *err, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->text, sizeof(err->text), fmt, ap);
        va_end(ap);
    }
    return -1;
}

static void (*panic_hook)(void);

void panic_set_hook(void (*hook)(void)) { panic_hook = hook; }

void panic(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("nestor: internal error: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    void (*hook)(void) = panic_hook;
    panic_hook = NULL;
    if (hook)
        hook();
    abort();
}
