/*
 * The processor core: what the instruction bodies, the engines and the hypervisor extensions share.
 * Functions marked noreturn unwind to the engine's loop through v->unwind; everything before them in
 * an instruction must be undone or not yet done.
 */
#pragma once
#include "cpu/state.h"
#include "cpu/virt.h"
#include "mmu/mmu.h"

/* ---- life (cpu.c) ---- */
struct cpu_config {
    const struct cpu_model *model;
    const u8 *features;   /* FEAT_COUNT bytes: the model with +/- applied (models.c) */
    unsigned index;
    unsigned nr_cpus;     /* logical processors of the machine; 0 counts as 1 */
    unsigned maxphyaddr;  /* 0: the model's */
    u64 tsc_hz;
    struct physmap *pm;
    struct pio_bus *pio;
    struct clock *clock;
    struct nestor *machine;
};
struct vcpu *vcpu_new(const struct cpu_config *cfg, struct error *err);
void vcpu_free(struct vcpu *v);
void vcpu_attach_intc(struct vcpu *v, const struct intc_ops *ops, void *intc); /* also reads apic_page */
void cpu_reset(struct vcpu *v);             /* power-on or RESET: SDM table "processor state following..." */
/* Whether the store that MWAIT waits for has come, or the wait has been long enough: then it is over. */
bool cpu_mwait_over(struct vcpu *v);
void cpu_init_signal(struct vcpu *v);       /* INIT */
void cpu_firmware_defaults(struct vcpu *v); /* what PC firmware has set before it boots a system: FEATURE_CONTROL, MTRRs */
extern const struct cpu_pins vcpu_pins;     /* opaque is the struct vcpu */

/* ---- modes (mode.c): derived state, after the architectural registers were changed ---- */
void cpu_mode_changed(struct vcpu *v);      /* CR0, CR4, EFER, XCR0, CS, RFLAGS.VM: everything derived, MMU too */
void cpu_segments_changed(struct vcpu *v);  /* seg_base, seg_check, stack_size, code_mode, cpl */
void cpu_flags_changed(struct vcpu *v);     /* IF, TF, AC, RF after cpu_put_rflags */
void cpu_simd_changed(struct vcpu *v);      /* simd_ok */
void cpu_set_cpl(struct vcpu *v, unsigned cpl);
/* Control-register writes with every check and side effect; fault with #GP. Guest-mode masking is the caller's. */
void cpu_write_cr0(struct vcpu *v, u64 value);
void cpu_write_cr3(struct vcpu *v, u64 value);
void cpu_write_cr4(struct vcpu *v, u64 value);
void cpu_write_efer(struct vcpu *v, u64 value);
u64 cpu_cr0_reserved(const struct vcpu *v);
u64 cpu_cr4_reserved(const struct vcpu *v); /* bits that must be 0 given the features */
u64 cpu_efer_reserved(const struct vcpu *v);
static inline bool cpu_canonical(const struct vcpu *v, u64 a) { return is_canonical(a, v->cr4 & CR4_LA57 ? 57 : 48); }
/* As MSR writes, descriptor-table loads and VM entry judge it: by what the CPU supports. */
static inline bool cpu_canonical_any(const struct vcpu *v, u64 a) { return is_canonical(a, v->linear_width); }

/* ---- events (events.c) ---- */
bool has_error_code(unsigned vector);     /* as the SDM has it */
bool has_error_code_amd(unsigned vector); /* as the APM has it: #VC and #SX too */
void cpu_raise(struct vcpu *v, unsigned vector) __attribute__((noreturn));
void cpu_raise_error(struct vcpu *v, unsigned vector, u32 error) __attribute__((noreturn));
void cpu_raise_pf(struct vcpu *v, gva_t la, u32 error) __attribute__((noreturn));
void cpu_raise_db(struct vcpu *v, u64 dr6_bits) __attribute__((noreturn)); /* fault-type #DB */
static inline void __attribute__((noreturn)) cpu_gp0(struct vcpu *v) { cpu_raise_error(v, VEC_GP, 0); }
static inline void __attribute__((noreturn)) cpu_ud(struct vcpu *v) { cpu_raise(v, VEC_UD); }
/* A walk that failed becomes #PF or goes to the hypervisor. */
void cpu_raise_walk(struct vcpu *v, gva_t la, u32 access, const struct walk *w) __attribute__((noreturn));
/*
 * Delivers @ev through the IDT (or real-mode IVT, or to CPL 3 handlers...), with v->rip/rflags as they
 * must be pushed. Nested faults combine to #DF or shutdown by the manual's table. Does not consult
 * intercepts for @ev itself (injected events); faults met on the way are ordinary exceptions.
 */
void cpu_deliver(struct vcpu *v, const struct event *ev);
/* INT n, INT3, INTO, INT1 as instructions: v->next_rip is pushed; intercepts, DPL and VME rules apply. */
void cpu_software_interrupt(struct vcpu *v, unsigned vector, enum event_type type, const struct insn *i);
/*
 * At an instruction boundary with v->attention != 0: takes the highest-priority event, ages shadows.
 * Returns false when the engine must leave its loop (halted, budget, exit request).
 */
bool cpu_boundary(struct vcpu *v);
/* After an unwind: the pending exception that cpu_raise noted is delivered here, by the engine's loop. */
void cpu_handle_unwind(struct vcpu *v, int reason);
enum unwind_reason { UNWIND_EXCEPTION = 1, UNWIND_EXIT /* VM exit done: continue at v->rip */, UNWIND_RETRY /* run v->rip again */ };
void cpu_unwind(struct vcpu *v, enum unwind_reason reason) __attribute__((noreturn));
/*
 * Other code runs from here on (VM entry, VM exit, task switch): what the previous instruction left
 * for the boundary -- an armed single-step trap, a shadow's age -- is forgotten, what the new state
 * asks for is armed. UNWIND_EXIT does it by itself.
 */
void cpu_fresh_context(struct vcpu *v);
/* A debug trap of the previous instruction will be delivered at this boundary. */
static inline bool cpu_trap_pending(const struct vcpu *v) { return v->pending_dbg && !(v->shadow & SHADOW_MOVSS); }
/* Sets the attention bits that RFLAGS, the shadow, pending events and the mailbox ask for. */
void cpu_rearm(struct vcpu *v);
/* Set the STI / MOV SS shadow: holds for the next instruction only. */
void cpu_set_shadow(struct vcpu *v, u8 shadow);

/* ---- the count of instructions (interp.c) ---- */
/* Exact even while a body runs, unlike v->icount, which engines bring up to date at the end of a block. */
u64 cpu_retired(const struct vcpu *v);
/* The engine returns after @count more instructions (1: behind the one in hand), or sooner. */
void cpu_end_slice(struct vcpu *v, u64 count);

/* ---- segments and far transfers (segment.c, far.c, task.c) ---- */
struct descriptor { u64 lo, hi; };
void cpu_load_segment(struct vcpu *v, unsigned seg, u16 sel);      /* MOV Sreg, POP, LDS...: every check; real and v86 too */
void cpu_load_segment_real(struct vcpu *v, unsigned seg, u16 sel);
/* Unpacks an 8-byte descriptor into @s (base, limit with G applied, ar); sel as given. */
void segment_unpack(struct segment *s, u16 sel, u64 desc);
/* Reads GDT/LDT descriptor of @sel; false when outside the table. May fault (#PF). */
bool cpu_read_descriptor(struct vcpu *v, u16 sel, u64 *desc);
void cpu_far_jump(struct vcpu *v, u16 sel, u64 offset, const struct insn *i);
void cpu_far_call(struct vcpu *v, u16 sel, u64 offset, const struct insn *i);
void cpu_far_return(struct vcpu *v, unsigned pop_bytes, const struct insn *i);
void cpu_iret(struct vcpu *v, const struct insn *i);
enum task_switch_source { TASK_CALL = 0, TASK_IRET = 1, TASK_JMP = 2, TASK_GATE = 3 };
void cpu_task_switch(struct vcpu *v, u16 tss_sel, enum task_switch_source source, bool has_error, u32 error, const struct insn *i);

/* ---- MSRs, CPUID (msr.c, cpuid.c) ---- */
bool cpu_rdmsr(struct vcpu *v, u32 msr, u64 *value); /* false: #GP(0). Bare: no intercepts, no CPL check */
bool cpu_wrmsr(struct vcpu *v, u32 msr, u64 value);
void cpu_cpuid(struct vcpu *v, u32 leaf, u32 subleaf, u32 out[4]); /* eax ebx ecx edx */
u64 cpu_tsc(struct vcpu *v);      /* as RDTSC in root mode sees it (TSC_ADJUST included, no guest offset) */
u64 cpu_tsc_to_ns(struct vcpu *v, u64 tsc); /* the clock time at which cpu_tsc() reaches @tsc */

/* ---- XSAVE (xstate.c) ---- */
u64 xstate_supported(const struct vcpu *v);  /* XCR0 bits the model offers */
u32 xstate_size(const struct vcpu *v, u64 mask, bool compacted);
