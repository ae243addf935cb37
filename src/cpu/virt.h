/*
 * What a hypervisor extension implements. The core knows only "guest mode": it asks through these
 * hooks whether an event is intercepted; a hook that finds it is performs the VM exit and does not
 * return (it unwinds to the engine's loop), one that finds it is not returns.
 */
#pragma once
#include "cpu/state.h"
#include "mmu/walk.h"

/* Names for the opcode table's intercept column: instructions a hypervisor can intercept as such. */
#define INTERCEPTS(X)                                                                                       \
    X(CPUID) X(HLT) X(INVD) X(INVLPG) X(RDPMC) X(RDTSC) X(RDTSCP) X(RSM) X(WBINVD) X(WBNOINVD) X(MONITOR)     \
    X(MWAIT) X(PAUSE) X(RDRAND) X(RDSEED) X(INVPCID) X(XSETBV) X(XSAVES) X(XRSTORS) X(GETSEC) X(ENCLS)      \
    X(SGDT) X(SIDT) X(SLDT) X(STR) X(LGDT) X(LIDT) X(LLDT) X(LTR) X(INTN) X(INT3) X(INTO) X(ICEBP) X(IRET)   \
    X(PUSHF) X(POPF) X(CLTS) X(LMSW) X(SMSW) X(VMCALL) X(VMMCALL) X(VMCLEAR) X(VMLAUNCH) X(VMPTRLD)         \
    X(VMPTRST) X(VMREAD) X(VMRESUME) X(VMWRITE) X(VMXOFF) X(VMXON) X(INVEPT) X(INVVPID) X(VMFUNC) X(VMRUN)   \
    X(VMLOAD) X(VMSAVE) X(STGI) X(CLGI) X(SKINIT) X(INVLPGA) X(RDPRU) X(RDPID) X(UMWAIT) X(TPAUSE) X(SMI)
enum intercept {
    INTERCEPT_NONE,
#define X(name) INTERCEPT_##name,
    INTERCEPTS(X)
#undef X
    INTERCEPT_COUNT
};

struct io_access {
    u16 port;
    u8 size;      /* 1, 2, 4 */
    bool in, string, rep, imm; /* imm: port in the instruction */
    u8 seg;       /* OUTS: effective segment */
    u8 adsize;
    gva_t linear; /* INS/OUTS: linear address of the memory operand */
};

struct virt_ops {
    const char *name; /* "VMX" or "SVM" */

    /* ---- instructions. Called after the checks whose faults have priority over the exit (SDM 26.1.1) ---- */
    /* Instructions that do not exist for the guest unless its hypervisor says so (CHK_ENABLED); may be NULL: all do. */
    bool (*enabled)(const struct vcpu *v, enum intercept what);
    /* A row with an intercept column. May rewrite nothing; exits or returns. */
    void (*insn)(struct vcpu *v, enum intercept what, const struct insn *i);
    void (*io)(struct vcpu *v, const struct io_access *io, const struct insn *i);
    void (*msr)(struct vcpu *v, u32 msr, bool write, u64 value, const struct insn *i);
    /* MOV to/from CR0, CR2?, CR3, CR4, CR8. Returning true means the value was dealt with (masked
     * write, virtual TPR): for reads *value holds what the guest sees. */
    bool (*cr_read)(struct vcpu *v, unsigned cr, unsigned gpr, u64 *value, const struct insn *i);
    /* *value may be replaced by what is really to be loaded (guest/host masks merged). True: done, do not load. */
    bool (*cr_write)(struct vcpu *v, unsigned cr, unsigned gpr, u64 *value, const struct insn *i);
    bool (*clts)(struct vcpu *v, const struct insn *i);                  /* true: handled */
    bool (*lmsw)(struct vcpu *v, u16 *source, bool mem, gva_t la, const struct insn *i);
    u64 (*smsw)(struct vcpu *v, u64 cr0, const struct insn *i);          /* the CR0 the guest sees */
    void (*dr)(struct vcpu *v, unsigned dr, unsigned gpr, bool write, const struct insn *i);
    /* WRMSR/RDMSR of MSRs that guest mode virtualises (x2APIC, TSC): true when done. */
    bool (*rdmsr)(struct vcpu *v, u32 msr, u64 *value);
    bool (*wrmsr)(struct vcpu *v, u32 msr, u64 value);
    u64 (*tsc)(struct vcpu *v, u64 tsc);                                 /* offset and scaling */

    /* ---- events ---- */
    /* An exception is about to be delivered (@ev complete, priority resolved; nothing of CR2/DR6 written yet).
     * Exits if intercepted. @ev->payload has CR2 or DR6 bits. */
    void (*exception)(struct vcpu *v, const struct event *ev);
    void (*double_fault)(struct vcpu *v, const struct event *first);     /* #DF from contributory faults */
    void (*triple_fault)(struct vcpu *v);                                /* exits, or returns: shutdown */
    /* Between instructions, in priority order of SDM 7.9 (priority among concurrent events). Each
     * exits, or returns whether the event is blocked/handled by the hypervisor's controls. */
    void (*init)(struct vcpu *v);
    void (*sipi)(struct vcpu *v, u8 vector);
    void (*nmi)(struct vcpu *v);                                         /* exits, or returns: deliver */
    void (*smi)(struct vcpu *v);
    void (*external_interrupt)(struct vcpu *v);                          /* exits, or returns: deliver if IF */
    /* Can a physical interrupt be taken now? RFLAGS.IF is not all that decides (VMX external-interrupt exiting; SVM V_INTR_MASKING). */
    bool (*interrupt_enabled)(struct vcpu *v, bool shadow);
    bool (*nmi_enabled)(struct vcpu *v);
    void (*nmi_delivered)(struct vcpu *v);                               /* virtual NMI blocking */
    void (*iret)(struct vcpu *v);                                        /* IRET lifts blocking */
    /* ATT_VIRT: MTF, preemption timer, TPR threshold, windows, virtual interrupts. Exits, injects
     * (through cpu_deliver) or returns; clears ATT_VIRT when nothing is left to watch. While
     * cpu_trap_pending(), only what is above debug traps (MTF and up) is due: it is called again
     * after the trap for the rest. */
    void (*boundary)(struct vcpu *v);
    void (*task_switch)(struct vcpu *v, u16 selector, unsigned source, const struct insn *i);
    /* A fault of the second-level translation (WALK_EPT_*, WALK_NPF). Does not return. */
    void (*slat_fault)(struct vcpu *v, gva_t la, u32 access, const struct walk *w) __attribute__((noreturn));
    /* An access that reached the APIC-access page (VMX). True when done (virtualised); exits otherwise. */
    bool (*apic_access)(struct vcpu *v, u32 offset, bool write, unsigned size, u64 *value, u32 access, gva_t la);
};

/* Runs the intercept of a row, if any and in guest mode. */
static inline void virt_insn(struct vcpu *v, enum intercept what, const struct insn *i)
{
    if (unlikely(v->guest_mode))
        v->virt->insn(v, what, i);
}
