/*
 * Control-flow enforcement: shadow stacks and indirect-branch tracking.
 * Manual: Intel SDM 325462 (2023), vol. 1 "Control-flow Enforcement Technology (CET)".
 *
 * What is on at the current privilege level is kept in v->cet, and is part of a block's key: while it is
 * zero no instruction knows that CET exists. Elsewhere cet_bind() replaces the bodies of near branches,
 * and of the one instruction behind a tracked branch.
 */
#pragma once
#include "cpu/cpu.h"

/* IA32_U_CET and IA32_S_CET */
#define CET_SH_STK_EN BIT64(0)
#define CET_WR_SHSTK_EN BIT64(1)
#define CET_ENDBR_EN BIT64(2)
#define CET_LEG_IW_EN BIT64(3)
#define CET_NO_TRACK_EN BIT64(4)
#define CET_SUPPRESS_DIS BIT64(5)
#define CET_SUPPRESS BIT64(10)
#define CET_TRACKER BIT64(11)

enum cet_state {
    CET_SHSTK = BIT(0), /* shadow stack */
    CET_IBT = BIT(1),   /* indirect-branch tracking */
    CET_WAIT = BIT(2),  /* the tracker waits for an ENDBRANCH */
};

/* Error codes of #CP. */
enum cp_error { CP_NEAR_RET = 1, CP_FAR_RET_IRET, CP_ENDBRANCH, CP_RSTORSSP, CP_SETSSBSY };

/* Recomputes v->cet: CR4.CET, the mode, the CPL, IA32_U_CET or IA32_S_CET changed. */
void cet_changed(struct vcpu *v);
bool cet_control_valid(const struct vcpu *v, u64 value);

/* Whether CET does anything in far transfers; the functions below may be called only then. */
static inline bool cet_on(const struct vcpu *v) { return unlikely(v->cr4 & CR4_CET); }

/* Gives @i the body that @state asks for. True: the block ends behind it. */
bool cet_bind(struct insn *i, u32 state, enum code_mode mode);
/* #CP(ENDBRANCH), unless the page is one of legacy code: then the instruction is tried again, untracked. */
void cet_missing_endbranch(struct vcpu *v, const struct insn *i) __attribute__((noreturn));

/*
 * Far transfers. Each is called after every other check and before any register is stored: it may fault,
 * and stores SSP and the tracker itself when nothing can fault any more.
 */
struct cet_entry {
    u8 cpl;         /* of the code entered */
    bool wide;      /* that is 64-bit code */
    bool push;      /* the return address goes to the shadow stack */
    bool switched;  /* to a shadow stack of its own: @ssp, whose token becomes busy */
    u64 ssp;
};
/* CALL, interrupts and exceptions: return to CS:RIP @rip of the current code segment. */
void cet_enter(struct vcpu *v, const struct cet_entry *e, u64 rip);
/* The shadow stack of entry @ist of the interrupt SSP table, which IDT gates with an IST use. */
u64 cet_interrupt_ssp(struct vcpu *v, unsigned ist);
/* JMP to code segment @wide. */
void cet_jump(struct vcpu *v, bool wide);
/* RET and IRET to @cs (selector @sel) at @rip. */
void cet_return(struct vcpu *v, u16 sel, u64 cs, u64 rip, bool iret);
void cet_iret_to_v86(struct vcpu *v);
/* SYSCALL and SYSENTER before, SYSRET and SYSEXIT after the CPL changes. */
void cet_fast_entry(struct vcpu *v);
void cet_fast_exit(struct vcpu *v);

/* Task switches, in two steps: in the old task's context before anything is stored, and in the new one's. */
struct cet_task {
    bool push, verify; /* a return address to push, to compare */
    bool restore;      /* IRET: @ssp is the shadow stack to go back to */
    u64 cs, lip, ssp, old_ssp;
};
void cet_task_leave(struct vcpu *v, struct cet_task *t, unsigned new_cpl, bool call, bool iret);
void cet_task_enter(struct vcpu *v, const struct cet_task *t, u32 new_ssp, bool iret);
