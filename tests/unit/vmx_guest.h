/*
 * A VMX guest that is a copy of its 64-bit host, whichever VMCS holds it, and the entry into it. Include
 * once per test program, after protected_guest.h.
 */
#pragma once
#include "vmx/vmx.h"

#define GUEST_CODE 0x20000u
#define GUEST_STACK 0x30000u

static inline void enter_vmx_operation(struct guest *g)
{
    g->v->cr4 |= CR4_VMXE;
    g->v->in_vmx_operation = true;
}

/* Stores into a VMCS with @set: starts at GUEST_CODE with HLT exiting; the host goes on at CODE + 100H. */
static inline void fill_guest(struct guest *g, const struct vmx_caps *k, void (*set)(struct guest *, enum vmcs_slot, u64))
{
    struct vcpu *v = g->v;
    set(g, VMCS_PIN_BASED_VM_EXEC_CONTROL, k->allowed0[WORD_PIN]);
    set(g, VMCS_CPU_BASED_VM_EXEC_CONTROL, k->allowed0[WORD_PRI] | BIT(PRI_HLT_EXITING));
    set(g, VMCS_VM_EXIT_CONTROLS, k->allowed0[WORD_EXIT] | BIT(EXIT_HOST_ADDRESS_SPACE_SIZE));
    set(g, VMCS_VM_ENTRY_CONTROLS, k->allowed0[WORD_ENTRY] | BIT(ENTRY_IA32E_GUEST));
    set(g, VMCS_VMCS_LINK_POINTER, ~0ull);
    for (unsigned n = 0; n < SEG_COUNT; n++) {
        set(g, VMCS_GUEST_ES_SELECTOR + n, v->seg[n].sel);
        set(g, VMCS_GUEST_ES_BASE + n, v->seg[n].base);
        set(g, VMCS_GUEST_ES_LIMIT + n, v->seg[n].limit);
        set(g, VMCS_GUEST_ES_AR_BYTES + n, v->seg[n].ar);
    }
    static const enum vmcs_slot host[] = {VMCS_HOST_ES_SELECTOR, VMCS_HOST_SS_SELECTOR, VMCS_HOST_DS_SELECTOR, VMCS_HOST_FS_SELECTOR,
                                          VMCS_HOST_GS_SELECTOR};
    for (unsigned n = 0; n < ARRAY_SIZE(host); n++)
        set(g, host[n], DS0);
    set(g, VMCS_HOST_CS_SELECTOR, CS0_64);
    set(g, VMCS_HOST_TR_SELECTOR, TSS64_SEL);
    set(g, VMCS_HOST_TR_BASE, TSS);
    static const struct { enum vmcs_slot guest, host; } pairs[] = {
        {VMCS_GUEST_CR0, VMCS_HOST_CR0}, {VMCS_GUEST_CR3, VMCS_HOST_CR3}, {VMCS_GUEST_CR4, VMCS_HOST_CR4},
        {VMCS_GUEST_GDTR_BASE, VMCS_HOST_GDTR_BASE}, {VMCS_GUEST_IDTR_BASE, VMCS_HOST_IDTR_BASE}};
    const u64 values[] = {v->cr0, v->cr3, v->cr4, v->gdtr.base, v->idtr.base};
    for (unsigned n = 0; n < ARRAY_SIZE(pairs); n++) {
        set(g, pairs[n].guest, values[n]);
        set(g, pairs[n].host, values[n]);
    }
    set(g, VMCS_GUEST_GDTR_LIMIT, v->gdtr.limit);
    set(g, VMCS_GUEST_IDTR_LIMIT, v->idtr.limit);
    set(g, VMCS_GUEST_DR7, DR7_FIXED);
    set(g, VMCS_GUEST_RFLAGS, FL_FIXED);
    set(g, VMCS_GUEST_RIP, GUEST_CODE);
    set(g, VMCS_GUEST_RSP, GUEST_STACK);
    set(g, VMCS_HOST_RIP, CODE + 0x100);
    set(g, VMCS_HOST_RSP, STACK);
    CODE_AT(g, CODE + 0x100, 0xf4);
    CODE_AT(g, GUEST_CODE, 0xf4);
}

/* VMLAUNCH, or VMRESUME; after a VMfail the HLT behind it runs, after a VM exit the one at the host's RIP. */
static inline bool enter(struct guest *g, bool launch)
{
    struct vcpu *v = g->v;
    CODE_AT(g, CODE, 0x0f, 0x01, launch ? 0xc2 : 0xc3, 0xf4);
    v->rip = CODE;
    v->activity = ACTIVITY_ACTIVE;
    assert_int_equal(run(g, 1000), RUN_HALTED);
    assert_false(v->guest_mode);
    if (v->rip == CODE + 0x101)
        return true;
    assert_int_equal(v->rip, CODE + 4);
    return false;
}
