/*
 * The performance-monitoring unit: Intel's architectural one, version 5, and AMD's core counters. Counts what
 * the emulator knows anyway: instructions retired, and cycles as the TSC has them while the processor is not
 * halted. Nothing counts anything while the guest runs: a counter is brought up to date when somebody
 * looks, or when what it counts changes (privilege, guest mode, halt), which is asked for by v->pmu_on and
 * v->pmu_split alone.
 */
#pragma once
#include "cpu/state.h"

struct pmu *pmu_new(struct vcpu *v); /* sets v->pmu; NULL without memory, or when the model has no counters */
void pmu_free(struct vcpu *v);
void pmu_reset(struct vcpu *v); /* RESET; INIT changes nothing */

/* The registers of the rows in msr.c. */
bool pmu_rdmsr(struct vcpu *v, u32 msr, u64 *value);
bool pmu_wrmsr(struct vcpu *v, u32 msr, u64 value);
/* RDPMC of counter @n; false: there is none. */
bool pmu_rdpmc(struct vcpu *v, u32 n, u64 *value);
void pmu_cpuid(const struct vcpu *v, u32 out[4]); /* leaf 0AH */

/* IA32_PERF_GLOBAL_CTRL for VM entry and VM exit; 0 and nothing when it does not exist. */
u64 pmu_global_ctrl(const struct vcpu *v);
void pmu_set_global_ctrl(struct vcpu *v, u64 value);
u64 pmu_global_ctrl_reserved(const struct vcpu *v);

/* REQ_PMU: a counter was expected to overflow by now. */
void pmu_due(struct vcpu *v);

/*
 * v->pmu_split: some counter counts at some privilege levels only, or in guest mode only. Call one before such
 * a change and the other after it.
 */
void pmu_domain_ends(struct vcpu *v);
void pmu_domain_begins(struct vcpu *v);

/* v->pmu_on: something counts. The engine begins to run @v, and returns; between them a halt may begin or end. */
void pmu_run_begins(struct vcpu *v);
void pmu_run_ends(struct vcpu *v);
