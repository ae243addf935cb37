/* What executes blocks. The choice of engine never changes what a guest sees. */
#pragma once
#include "cpu/state.h"

enum run_result {
    RUN_BUDGET,   /* budget_end reached */
    RUN_HALTED,   /* activity is not ACTIVE and nothing is pending: wait for an event */
    RUN_REQUEST,  /* REQ_EXIT was set */
    RUN_SHUTDOWN, /* triple fault: activity SHUTDOWN outside guest mode */
};

struct engine {
    const char *name;
    int (*attach)(struct vcpu *v); /* once per vCPU */
    void (*detach)(struct vcpu *v);
    /* Runs @v until its icount reaches v->budget_end or something needs the run loop. */
    enum run_result (*run)(struct vcpu *v);
    /* Physical memory pa..pa+len-1 was written although it holds decoded code. */
    void (*code_written)(struct vcpu *v, pa_t pa, size_t len);
    /* Whether code decoded from the page of @pa is kept. When no vCPU's engine says so after a write,
     * PAGE_CODE may be cleared, and writes to the page are fast again. */
    bool (*holds_code)(struct vcpu *v, pa_t pa);
};

extern const struct engine engine_interp;
extern const struct engine engine_jit;
extern const struct engine engine_lockstep; /* both, compared */
