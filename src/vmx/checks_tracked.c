/* The predicates of the VM-entry checks once more, noting what they read. */
#define CHECKS_TRACKED
#include "vmx/checks.c"
