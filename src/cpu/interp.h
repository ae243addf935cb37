/* The interpreter's own face, beside engine.h. */
#pragma once
#include "cpu/block.h"
#include "cpu/engine.h"

void interp_stats(const struct vcpu *v, struct interp_stats *stats);
