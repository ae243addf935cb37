/*
 * The state of one logical processor: pure data. Segment access rights are in the VMX format (SDM
 * "Guest Register State", 25.4.1): bits 3:0 type, 4 S, 6:5 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G,
 * 16 unusable.
 */
#pragma once
#include "base/bits.h"
#include "cpu/features.h"
#include "cpu/isa/insn.h"

#include <setjmp.h>
#include <stdatomic.h>
#include <stdio.h>

/* RFLAGS */
#define FL_CF BIT64(0)
#define FL_FIXED BIT64(1)
#define FL_PF BIT64(2)
#define FL_AF BIT64(4)
#define FL_ZF BIT64(6)
#define FL_SF BIT64(7)
#define FL_TF BIT64(8)
#define FL_IF BIT64(9)
#define FL_DF BIT64(10)
#define FL_OF BIT64(11)
#define FL_IOPL (3ull << 12)
#define FL_NT BIT64(14)
#define FL_RF BIT64(16)
#define FL_VM BIT64(17)
#define FL_AC BIT64(18)
#define FL_VIF BIT64(19)
#define FL_VIP BIT64(20)
#define FL_ID BIT64(21)
#define FL_ARITH (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

#define CR0_PE BIT64(0)
#define CR0_MP BIT64(1)
#define CR0_EM BIT64(2)
#define CR0_TS BIT64(3)
#define CR0_ET BIT64(4)
#define CR0_NE BIT64(5)
#define CR0_WP BIT64(16)
#define CR0_AM BIT64(18)
#define CR0_NW BIT64(29)
#define CR0_CD BIT64(30)
#define CR0_PG BIT64(31)

#define CR4_VME BIT64(0)
#define CR4_PVI BIT64(1)
#define CR4_TSD BIT64(2)
#define CR4_DE BIT64(3)
#define CR4_PSE BIT64(4)
#define CR4_PAE BIT64(5)
#define CR4_MCE BIT64(6)
#define CR4_PGE BIT64(7)
#define CR4_PCE BIT64(8)
#define CR4_OSFXSR BIT64(9)
#define CR4_OSXMMEXCPT BIT64(10)
#define CR4_UMIP BIT64(11)
#define CR4_LA57 BIT64(12)
#define CR4_VMXE BIT64(13)
#define CR4_SMXE BIT64(14)
#define CR4_FSGSBASE BIT64(16)
#define CR4_PCIDE BIT64(17)
#define CR4_OSXSAVE BIT64(18)
#define CR4_SMEP BIT64(20)
#define CR4_SMAP BIT64(21)
#define CR4_PKE BIT64(22)
#define CR4_CET BIT64(23)
#define CR4_PKS BIT64(24)
#define CR4_LAM_SUP BIT64(28)

#define CR3_LAM_U57 BIT64(61) /* counts whatever LAM_U48 says */
#define CR3_LAM_U48 BIT64(62)

#define EFER_SCE BIT64(0)
#define EFER_LME BIT64(8)
#define EFER_LMA BIT64(10)
#define EFER_NXE BIT64(11)
#define EFER_SVME BIT64(12)
#define EFER_LMSLE BIT64(13)
#define EFER_FFXSR BIT64(14)
#define EFER_TCE BIT64(15)

#define XCR0_X87 BIT64(0)
#define XCR0_SSE BIT64(1)
#define XCR0_AVX BIT64(2)
#define XCR0_OPMASK BIT64(5)
#define XCR0_ZMM_HI256 BIT64(6)
#define XCR0_HI16_ZMM BIT64(7)
#define XCR0_PKRU BIT64(9)

#define DR6_B(n) BIT64(n)
#define DR6_BLD BIT64(11)
#define DR6_BD BIT64(13)
#define DR6_BS BIT64(14)
#define DR6_BT BIT64(15)
#define DR6_RTM BIT64(16)
#define DR6_FIXED 0xffff0ff0ull
#define DR7_FIXED BIT64(10)
#define DR7_LE BIT64(8)
#define DR7_GE BIT64(9)
#define DR7_GD BIT64(13)

#define DEBUGCTL_LBR BIT64(0)
#define DEBUGCTL_BTF BIT64(1)
#define DEBUGCTL_FREEZE_LBRS BIT64(11)
#define DEBUGCTL_FREEZE_PERFMON BIT64(12)
#define DEBUGCTL_FREEZE_SMM BIT64(14)

enum vector {
    VEC_DE, VEC_DB, VEC_NMI, VEC_BP, VEC_OF, VEC_BR, VEC_UD, VEC_NM, VEC_DF, VEC_CSO, VEC_TS, VEC_NP,
    VEC_SS, VEC_GP, VEC_PF, VEC_MF = 16, VEC_AC, VEC_MC, VEC_XM, VEC_VE, VEC_CP, VEC_HV = 28, VEC_VC,
    VEC_SX,
};

/* Event types: VMX interruption type (SDM 25.8.3), which SVM's EVENTINJ types are a subset of. */
enum event_type { EV_EXTINT = 0, EV_NMI = 2, EV_HARD_EXC = 3, EV_SOFT_INT = 4, EV_PRIV_SOFT_EXC = 5, EV_SOFT_EXC = 6, EV_OTHER = 7 };

struct segment {
    u64 base;
    u32 limit; /* in bytes, granularity applied */
    u32 ar;
    u16 sel;
};
#define AR_TYPE 0xfu
#define AR_S BIT(4)
#define AR_DPL(ar) (((ar) >> 5) & 3u)
#define AR_P BIT(7)
#define AR_AVL BIT(12)
#define AR_L BIT(13)
#define AR_DB BIT(14)
#define AR_G BIT(15)
#define AR_UNUSABLE BIT(16)

struct desc_table {
    u64 base;
    u16 limit;
};

union vec_reg {
    u8 b[64];
    u16 w[32];
    u32 d[16];
    u64 q[8];
    float f[16];
    double g[8];
};

/* x87 and MMX. Registers are in stack order ST0.. as FXSAVE stores them (TOP is in fsw). */
struct x87 {
    u16 fcw, fsw;
    u8 ftw; /* abridged: bit n set = physical register n not empty */
    u16 fop;
    u64 fip, fdp;
    u16 fcs, fds;
    u8 st[8][16]; /* ST(0)..ST(7), 10 bytes each, rest zero */
};

enum activity { ACTIVITY_ACTIVE, ACTIVITY_HLT, ACTIVITY_SHUTDOWN, ACTIVITY_WAIT_SIPI, ACTIVITY_MWAIT };

/* Operating modes, recomputed from CR0, EFER, RFLAGS.VM and CS. */
enum cpu_mode { MODE_REAL, MODE_V86, MODE_PROT16, MODE_PROT32, MODE_COMPAT16, MODE_COMPAT32, MODE_LONG64 };

/* The mailbox: requests from outside (devices, other vCPUs). Set from any thread. */
enum vcpu_request {
    REQ_INTR = BIT(0),      /* level: the interrupt controller has something (see intc_ops.peek) */
    REQ_NMI = BIT(1),
    REQ_SMI = BIT(2),
    REQ_INIT = BIT(3),
    REQ_SIPI = BIT(4),      /* vector in sipi_vector */
    REQ_EXIT = BIT(5),      /* the run loop wants control back (slice over, stop, reset) */
    REQ_FLUSH = BIT(6),     /* drop every translation */
    REQ_NMI_AGAIN = BIT(8),  /* with REQ_NMI: a second one came after it, and waits behind it */
    REQ_PROTECT = BIT(7),   /* some page became tracked: drop write permission (see mmu) */
    REQ_PMU = BIT(9),       /* a performance counter was expected to overflow by now */
};

/*
 * Why the engine must look up between two instructions; bits of v->attention. Zero means: go on.
 * The first group mirrors v->requests; the second is set by the processor itself.
 */
enum attention {
    ATT_REQUEST = BIT(0),    /* v->requests is not zero */
    ATT_SHADOW = BIT(1),     /* an interrupt shadow or other one-instruction state must be aged */
    ATT_TF = BIT(2),         /* RFLAGS.TF was set when the instruction began */
    ATT_DEBUG = BIT(3),      /* pending debug exceptions or enabled code breakpoints */
    ATT_BLOCK = BIT(4),      /* the running block is stale (SMC, mode or mapping change): leave it */
    ATT_VIRT = BIT(5),       /* guest mode: window, timer, MTF or virtual interrupt to look at (virt.h) */
    ATT_STOP = BIT(6),       /* debugger, budget */
    ATT_IRQ_WINDOW = BIT(7), /* IF, TPR or shadow changed: an interrupt may be deliverable now */
};

/* An event on its way through the IDT, kept for IDT-vectoring information. */
struct event {
    bool valid;
    u8 type; /* enum event_type */
    u8 vector;
    bool has_error;
    u32 error;
    u8 insn_len;  /* software events */
    u64 payload;  /* #PF: CR2; #DB: DR6 bits */
};

/*
 * What a debugger asks of the core. v->debug is NULL unless one is attached; only then does anything
 * here cost time, and only interp_run_debug() (debug.h) calls before().
 */
enum watch_kind { WATCH_WRITE = 1, WATCH_READ = 2 };

#define DEBUG_WATCHES 16
#define DEBUG_WATCH_MAX 4096u /* bytes: a watched linear range covers at most two pages; physical ones may be longer */

struct debug_watch {
    u64 at;   /* linear address, or */
    bool physical;
    u8 kind;  /* enum watch_kind, both for any access */
    u8 level; /* for the debugger: where it counts */
    u64 len;
};

struct vcpu;
struct vcpu_debug {
    /*
     * Before each instruction, when the boundary in front of it has been dealt with (interrupts taken,
     * traps delivered). True: stop here; v->rip is the instruction's, which has not run.
     */
    bool (*before)(struct vcpu *v, const struct insn *i);
    void *opaque;
    bool held; /* stopped by before(): what follows a boundary already taken comes next */
    struct debug_watch watch[DEBUG_WATCHES]; /* mmu_watch_changed() after a change; mmu_watch_physical() too if one is physical */
    unsigned nwatch;
    /* The latest access to a watched range; the debugger clears it. */
    bool hit;
    struct debug_watch hit_watch;
    gva_t hit_la;
    u64 hit_pa; /* of a physical range */
};

/*
 * What an engine has found out about the pages that it executes from, in words of its own: the MMU makes each of them
 * CODE_GUARD_NONE whenever a page may be mapped or executable no longer, or the address space changes.
 */
#define CODE_GUARD_NONE BIT64(63) /* never a RIP */
#define CODE_GUARDS_TOLD 8192
struct code_guards {
    u64 n;
    u64 *told[CODE_GUARDS_TOLD];
};

struct virt_ops;
struct intc_ops;
struct irq_line;
struct vmx;
struct hyperv_vp;
struct svm;
struct pmu;
struct mmu;
struct tlb;
struct tlb_entry;
struct interp;
struct borrow;
struct physmap;
struct pio_bus;
struct clock;
struct cpu_model;
struct trace;
struct exit_profile;

/*
 * What translated code found in the TLB for a page: an access that begins less than .limit behind .page is
 * granted (.near: one of up to CELL_REACH bytes), at its address plus .addend; .host is where the page is. 0: nothing is known. Each place in translated
 * code has its cell, as far as there are enough; stack and segments have theirs (cell numbers below). Code
 * of CPL 3 and other code have cells of their own, so that going to and fro forgets nothing.
 */
struct cell {
    u64 page, limit, near, addend, host;
};
#define CELLS_LG2 11
#define CELLS (1u << CELLS_LG2) /* of each set */
#define CELL_LIMIT (4096u - 31) /* no access of up to 32 bytes leaves the page */
#define CELL_REACH 160u
#define CELL_NEAR (4096u - CELL_REACH + 1)
enum { CELL_STACK, CELL_STACK_WRITE, CELL_SEGMENT, CELL_SEGMENT_WRITE, CELL_FIRST };

struct vcpu {
    /* ---- hot: registers. The first 18 words are one array for effective addresses (REG_*). ---- */
    u64 gpr[16];
    u64 zero;      /* slot REG_NONE: always 0 */
    u64 next_rip;  /* slot REG_RIP: address of the next instruction while one executes */
    u64 rip;       /* of the instruction that executes, or will next */
    u32 aflags;    /* CF PF AF ZF SF OF in their RFLAGS places */
    _Atomic u32 attention; /* enum attention */
    u64 rflags;    /* all other flags; bit 1 is set; arithmetic bits are zero here: use cpu_rflags() */

    struct tlb_entry *tlb_now; /* the entries for the current address space and privilege (mmu/tlb.h) */
    u64 seg_base[SEG_COUNT];   /* effective base: 0 for CS DS ES SS in 64-bit mode */
    u32 seg_check;             /* bit s: segment s needs limit, type or wrap checks (not flat) */
    u8 cpl;
    u8 mode;      /* enum cpu_mode */
    u8 code_mode; /* enum code_mode */
    u8 stack_size;/* 2, 4, 8: stack pointer width */
    u8 simd_ok;   /* bits: 0 x87, 1 MMX, 2 SSE, 3 AVX, 4 AVX-512 may run now (CR0, CR4, XCR0) */
    u8 cet;       /* enum cet_state: what of CET is on at this CPL (cet.h) */
    u8 index;     /* number of this vCPU */
    bool guest_mode; /* VMX non-root operation or SVM guest mode */
    bool flags_intercepted; /* guest mode: PUSHF or POPF may be intercepted (SVM); means nothing outside */
    bool watching;   /* there are data breakpoints, the guest's or a debugger's (mmu_watch_changed()) */
    bool pmu_on;     /* a performance counter counts (pmu.h) */
    bool pmu_split;  /* ... at some privilege levels, or in some modes, only */
    u64 icount;   /* instructions retired */
    u64 budget_end; /* engine returns when icount reaches it */
    u64 linear_mask; /* ~0 in 64-bit mode, 0xffffffff elsewhere */

    struct tlb_entry *tlb_by_ac[2]; /* while CPL < 3: what STAC and CLAC make tlb_now, by RFLAGS.AC (mmu_update_privilege()) */

    /* ---- SIMD and x87 ---- */
    _Alignas(64) union vec_reg vec[32];
    u64 k[8];
    u32 mxcsr, mxcsr_mask;
    struct x87 x87;
    u64 xcr0, xss;
    u32 pkru, pkrs;

    /* ---- system registers ---- */
    u64 cr0, cr2, cr3, cr4;
    u64 dr[4], dr6, dr7;
    u64 efer;
    struct segment seg[SEG_COUNT];
    struct desc_table gdtr, idtr;
    u64 star, lstar, cstar, sfmask, kernel_gs_base;
    u64 sysenter_cs, sysenter_esp, sysenter_eip;
    u64 pat, tsc_aux, debugctl, misc_enable, spec_ctrl;
    u64 tsc_adjust, tsc_base; /* guest TSC = host-clock TSC + tsc_base (tsc_adjust is part of it) */
    u64 feature_control, mcg_cap, mcg_status, mtrr_def_type, mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];
    u64 s_cet, u_cet, ssp, pl_ssp[4], int_ssp_table;
    u64 smbase, bios_sign_id, misc_msr[32]; /* misc_msr: enum msr_slot, msr.h */
    u64 pdpte[4]; /* PAE: the PDPTE registers */

    /* ---- events ---- */
    u8 shadow;          /* enum below */
    bool nmi_blocked;   /* blocking by NMI (until IRET) */
    bool nmi_pending;
    u8 activity;        /* enum activity */
    u64 pending_dbg;    /* DR6-format bits of debug exceptions that wait for the instruction boundary */
    struct event delivering; /* valid from the start of a delivery to its end */
    struct event raised;     /* noted by cpu_raise* for cpu_handle_unwind */
    u8 aging;                /* events.c: one-instruction states in force for the instruction that has just run */
    u64 boundary_rip;        /* events.c: where that instruction is, while TF or code breakpoints are watched */
    u32 fault_depth;    /* exceptions raised while delivering, for #DF and shutdown */
    _Atomic u32 requests; /* enum vcpu_request */
    _Atomic u8 sipi_vector;
    u64 monitor_addr;   /* MONITOR: physical line, when monitor_armed */
    u64 monitor_line[8]; /* what it held */
    bool monitor_armed;
    u64 mwait_until;    /* MWAIT: when to look whatever the line holds, ns of the clock */
    u64 random_state;   /* of cpu_random() (bodies_int.h); set it for runs that repeat */

    /* ---- guest mode ---- */
    const struct virt_ops *virt; /* vendor hooks; set with guest_mode, NULL outside */
    struct vmx *vmx;    /* VMX operation state; NULL when the model has no VMX */
    struct svm *svm;
    struct hyperv_vp *hyperv; /* Hyper-V's interface (hyperv.h); NULL unless the machine offers it */
    bool in_vmx_operation;
    u64 guest_cr0_fixed; /* guest mode: CR0 bits that must stay 1 (VMX: PE and PG unless unrestricted guest) */
    bool gif;           /* SVM global interrupt flag; true without SVM */

    /* ---- rooms ---- */
    struct mmu *mmu;    /* walker context, TLBs (mmu/mmu.h) */
    struct interp *interp; /* block cache */
    void *jit;
    struct jit_options {
        u64 cache;        /* bytes; 0: default */
        FILE *dump, *map; /* listings; NULL: none */
        u32 heat;         /* executions before a block is translated; 0: default */
        /* For .map: the function at a guest address, NULL if it is not known. */
        const char *(*function)(const void *symbols, u64 at);
        const void *symbols;
    } jit_options;
    struct vcpu_debug *debug; /* a debugger is attached (cpu/debug.h) */
    struct borrow *borrow; /* thunks of the borrowed ALU (borrow.h) */
    struct physmap *pm;
    struct pio_bus *pio;
    struct clock *clock;
    const struct intc_ops *intc_ops;
    void *intc;
    bool ignne;         /* IGNNE# is asserted: until FSW.ES is clear x87 errors are ignored while CR0.NE = 0 */
    const struct irq_line *ferr; /* FERR#, the 8259's IRQ 13: x87 errors while CR0.NE = 0; NULL: not wired */
    u64 apic_page;      /* physical page of the xAPIC registers, ~0 when none */
    u64 virt_apic_page; /* physical page of the VMX APIC-access page while it is virtualised, ~0 when none */
    const struct cpu_model *model;
    u8 features[FEAT_COUNT];
    u8 maxphyaddr, linear_width; /* linear_width: 48 or 57, what the CPU supports (not CR4.LA57) */
    u64 tsc_hz;
    u16 nr_cpus;        /* logical processors of the machine: what CPUID's topology leaves tell */
    struct nestor *machine; /* who built this processor (nestor.h) */
    u64 *counters;      /* base/counters: this vCPU's statistics */
    _Atomic u32 sleeping; /* its thread waits for vcpu_kick(); 0 without threads */
    void (*wake)(struct vcpu *v); /* ends that; async-signal-safe */
    const struct insn *insn; /* the one that executes */
    bool alone;         /* the processors on other threads stand still for a locked operation (mem_alone()) */

    /* ---- seldom looked at: behind what the engines use ---- */
    u64 seg_room[2 * SEG_LDTR]; /* outside 64-bit mode, for reads, then for writes: bytes from offset 0 that need no other check */
    struct exit_profile *exits; /* where VM exits come from (cpu/exit_profile.h); NULL: nobody wants to know */
    u64 vmx_cr0_fixed0, vmx_cr0_fixed1, vmx_cr4_fixed0, vmx_cr4_fixed1; /* in VMX operation: bits that must, and may, be 1 */
    u32 svm_asids; /* CPUID 0x8000000A: how many ASIDs there are */
    struct pmu *pmu;    /* performance counters (pmu.h); NULL: the model has none */
    u64 pmu_alarm;      /* the icount at which one of them overflows with an interrupt; ~0: none */
    u64 unfinished;     /* instructions in icount that were interrupted between two elements, and begin again */
    struct code_guards *guards; /* NULL: the engine has none */
    jmp_buf unwind;     /* where a fault goes: back to the engine's loop */

    /* ---- cells: [0] CPL 0 to 2, [1] CPL 3 ---- */
    const struct tlb_entry *cell_owner[2]; /* the TLB that they speak of */
    u64 cells_forgotten;     /* how often */
    u32 cells_filled[2];     /* numbers of those whose limit is not 0 */
    u16 cell_filled[2][CELLS];
    _Alignas(64) struct cell cell[2 * CELLS];
};

enum interrupt_shadow { SHADOW_STI = BIT(0), SHADOW_MOVSS = BIT(1) };

_Static_assert(offsetof(struct vcpu, zero) == 16 * 8 && offsetof(struct vcpu, next_rip) == 17 * 8,
               "effective addresses index the register file: REG_NONE, REG_RIP");

/* Translated code must ask the TLB again. */
static inline void cells_forget_set(struct vcpu *v, unsigned set)
{
    for (u32 n = 0; n < v->cells_filled[set]; n++) {
        struct cell *c = &v->cell[v->cell_filled[set][n]];
        c->limit = c->near = 0;
    }
    v->cells_filled[set] = 0;
    v->cells_forgotten++;
}
static inline void cells_forget(struct vcpu *v)
{
    cells_forget_set(v, 0);
    cells_forget_set(v, 1);
}

static inline bool cpu_has(const struct vcpu *v, enum cpu_feature f) { return v->features[f]; }
static inline u64 cpu_rflags(const struct vcpu *v) { return v->rflags | v->aflags; }
/* Stores all of RFLAGS as given; cpu_flags_changed() (cpu.h) must follow if IF, TF, VM or AC may have changed. */
static inline void cpu_put_rflags(struct vcpu *v, u64 fl)
{
    v->aflags = (u32)(fl & FL_ARITH);
    v->rflags = (fl & ~FL_ARITH) | FL_FIXED;
}
static inline void cpu_attention(struct vcpu *v, u32 bits)
{
    atomic_fetch_or_explicit(&v->attention, bits, memory_order_relaxed);
}
/* After something that may end its wait was put into @v: its thread looks again. */
static inline void vcpu_kick(struct vcpu *v)
{
    if (unlikely(atomic_load_explicit(&v->sleeping, memory_order_seq_cst)))
        v->wake(v);
}
static inline void vcpu_request(struct vcpu *v, u32 bits)
{
    atomic_fetch_or_explicit(&v->requests, bits, memory_order_release);
    atomic_fetch_or_explicit(&v->attention, ATT_REQUEST, memory_order_seq_cst);
    vcpu_kick(v);
}
static inline bool cpu_long64(const struct vcpu *v) { return v->mode == MODE_LONG64; }
static inline bool cpu_protected(const struct vcpu *v) { return v->mode >= MODE_PROT16; }
static inline bool cpu_lma(const struct vcpu *v) { return v->efer & EFER_LMA; }
