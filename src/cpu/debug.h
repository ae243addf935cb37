/* The core under a debugger: v->debug (state.h). */
#pragma once
#include "cpu/engine.h"

/* The interpreter with before() called at each instruction; for every engine that keeps its code in interp.h's blocks. */
enum run_result interp_run_debug(struct vcpu *v);
