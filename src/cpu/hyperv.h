/*
 * The interface of a Hyper-V hypervisor, which a machine can offer its guest (--hyperv): CPUID leaves
 * 40000000H on, synthetic MSRs, hypercalls, the synthetic interrupt controller and its timers. Source:
 * Hypervisor Top Level Functional Specification (TLFS), 6.0b and its pages on nested virtualization.
 *
 * The pages a guest asks for are written into its memory where it names them, not laid over it.
 */
#pragma once
#include "base/clock.h"
#include "cpu/state.h"
#include "devices/irq.h"

#define HV_MAX_VPS 64
#define HV_SINTS 16
#define HV_TIMERS 4

struct hyperv; /* the partition: all processors of one machine */

struct hv_timer {
    struct timer timer;
    struct hyperv_vp *vp;
    u64 config, count, expires; /* in 100 ns */
    bool message_waits; /* expired, its message slot is taken */
};

/* One virtual processor's part. */
struct hyperv_vp {
    struct hyperv *hv;
    struct vcpu *v;
    u64 vp_assist;
    u64 scontrol, siefp, simp, sint[HV_SINTS];
    struct hv_timer timer[HV_TIMERS];
    u64 hypercalls, flushes;
};

/* @msi: where synthetic interrupts go; it may be filled in later. NULL without memory. */
struct hyperv *hyperv_new(struct clock *clock, struct physmap *pm, const struct msi_sink *msi);
void hyperv_free(struct hyperv *hv);
/* Gives @v the interface (sets v->hyperv); returns -1 without memory or beyond HV_MAX_VPS. */
int hyperv_attach(struct hyperv *hv, struct vcpu *v);
void hyperv_reset(struct hyperv *hv);

/* ---- the processor's side; only with v->hyperv ---- */
#define HV_MAX_LEAF 0x4000000au
void hyperv_cpuid(struct vcpu *v, u32 leaf, u32 out[4]);
bool hyperv_rdmsr(struct vcpu *v, u32 msr, u64 *value); /* false: #GP(0) */
bool hyperv_wrmsr(struct vcpu *v, u32 msr, u64 value);
/* The TSC jumped: the reference TSC page must tell. */
void hyperv_tsc_moved(struct vcpu *v);
/* Are hypercalls open to the code that runs (page enabled, protected mode, CPL 0)? */
bool hyperv_hypercall_allowed(const struct vcpu *v);
void hyperv_hypercall(struct vcpu *v);

/* Time of the partition, in units of 100 ns. */
u64 hyperv_reference_time(const struct hyperv *hv);

/* ---- nested virtualization ---- */
/* The VP assist page's fields for a nested hypervisor. */
struct hv_nested {
    bool enlightened_entry; /* VM entries use @current */
    bool direct_hypercall;
    u64 current;
};
/* False: no VP assist page. */
bool hyperv_nested(const struct vcpu *v, struct hv_nested *n);
/* Are the registers those of a hypercall that flushes TLBs? */
bool hyperv_is_flush(const struct vcpu *v);
/* Performs it for a guest's guest: every translation of every processor goes. */
void hyperv_flush_for_guest(struct vcpu *v);

/* ---- hv_synic.c ---- */
bool hv_synic_rdmsr(struct hyperv_vp *vp, u32 msr, u64 *value);
bool hv_synic_wrmsr(struct hyperv_vp *vp, u32 msr, u64 value);
void hv_synic_init(struct hyperv_vp *vp, struct clock *clock);
void hv_synic_reset(struct hyperv_vp *vp);
/* Delivers @vector to @vp's own local APIC. */
void hv_interrupt(struct hyperv_vp *vp, u8 vector);
