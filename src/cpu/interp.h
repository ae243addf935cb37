/* The interpreter's own face, beside engine.h. */
#pragma once
#include "cpu/block.h"
#include "cpu/engine.h"

void interp_stats(const struct vcpu *v, struct interp_stats *stats);
/*
 * Whether decoded code lies in the page of @pa. When no vCPU of a machine holds any, PAGE_CODE may be
 * cleared, and writes to the page are fast again.
 */
bool interp_holds_code(struct vcpu *v, pa_t pa);
