/* The XSAVE feature set's layout: what CPUID leaf 0xD reports and xstate.c reads and writes. */
#pragma once
#include "cpu/cpu.h"

enum xstate_number {
    XSTATE_X87 = 0, XSTATE_SSE = 1, XSTATE_AVX = 2, XSTATE_OPMASK = 5, XSTATE_ZMM_HI256 = 6, XSTATE_HI16_ZMM = 7,
    XSTATE_PKRU = 9, XSTATE_CET_U = 11, XSTATE_CET_S = 12,
};

struct xstate_component {
    u8 number;
    bool supervisor;  /* managed by IA32_XSS: compacted format only, no standard offset */
    u16 size, offset; /* bytes; offset in the standard format, 0 without one */
};

/* The component, or NULL when the model does not offer it (or it is x87 or SSE, which live in the legacy region). */
const struct xstate_component *xstate_component(const struct vcpu *v, unsigned number);
/* IA32_XSS bits the model offers. */
u64 xstate_supervisor(const struct vcpu *v);
/* XINUSE: the components of @mask that are not in their initial configuration. */
u64 xstate_in_use(const struct vcpu *v, u64 mask);
/* Whether XSETBV may load @value into XCR0. */
bool xstate_xcr0_valid(const struct vcpu *v, u64 value);
