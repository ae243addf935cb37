#pragma once
#include <stdbool.h>

/* Whether @f raises SIGSEGV. (Here since <signal.h> and the decoder's header both have a REG_RIP.) */
bool faults(void (*f)(void *arg), void *arg);
