/* The borrowed ALU: instructions the host executes on the guest's register file. */
#pragma once
#include "cpu/mem.h"

/* insn_borrow() (bodies_simd.h) runs an instruction on the host; the row's checks (device available,
 * alignment, pending #MF) are done. */

struct borrow; /* one vCPU's thunks and the memory they live in */

/* Optional: makes the code memory now rather than at first use, so that a host which refuses it is
 * reported as an error instead of ending the run. */
int borrow_init(struct vcpu *v, struct error *err);
void borrow_free(struct vcpu *v);

struct borrow_stats { unsigned thunks, scratch; size_t code_bytes; };
struct borrow_stats borrow_stats(const struct vcpu *v);

#define HOST_MXCSR 0x1f80u  /* what the System V ABI starts a process with; C code here relies on it */
#define MXCSR_MASKS 0x1f80u
#define MXCSR_FLAGS 0x3fu
#define MXCSR_PLAIN_CONTROL 0xe040u /* RC, FZ, DAZ */
/* Whether a row reads or writes MXCSR: floating-point arithmetic, comparison and conversion. */
bool borrow_uses_mxcsr(const struct insn_row *row);
/* Every exception is masked, and no bit set that the host may lack: the host may run with this MXCSR. */
static inline bool borrow_mxcsr_plain(u32 mxcsr) { return (mxcsr & ~MXCSR_FLAGS & ~MXCSR_PLAIN_CONTROL) == MXCSR_MASKS; }

/* ---- x87.c ---- */
/*
 * Runs one x87 instruction through @run (fxrstor, instruction, fxsave, fninit on a 512-byte image), or
 * through @fast, which loads only the registers that the instruction uses and returns FSW; @plan says
 * which those are and what it does to the stack.
 */
struct x87_op {
    void (*run)(void *image, void *mem, u32 *aflags);
    u16 (*fast)(void *st0, void *mem, u32 *aflags, void *unused, void *sti);
    u16 plan; /* enum x87_plan; 0: @run only */
    u8 mem_size, mem_access; /* as struct operand */
};
enum x87_plan {
    X87_ST0 = BIT(0),   /* reads ST(0) */
    X87_STI = BIT(1),   /* reads ST(i) */
    X87_SET0 = BIT(2),  /* writes ST(0) */
    X87_SETI = BIT(3),  /* writes ST(i) */
    X87_POP = BIT(4),
    X87_POP2 = BIT(5),
    X87_PUSH = BIT(6),
    X87_CC = BIT(7),    /* sets C0, C2, C3 */
    X87_FLAGS = BIT(8), /* sets RFLAGS */
    X87_COPY = BIT(9),  /* ST(i) becomes ST(0): no host code */
    X87_KEEP_C1 = BIT(10),
};
/* The plan of an instruction, 0 when it is too seldom or too particular to have one. */
unsigned x87_plan(const struct insn *i);
void x87_borrow(struct vcpu *v, const struct insn *i, const struct x87_op *op);
/* TOP becomes @top; the physical registers stay, so the stack-ordered array turns. */
void x87_set_top(struct vcpu *v, unsigned top);
/* FSW.ES and B follow from the flags and the masks. */
void x87_update_es(struct vcpu *v);
/* What every MMX instruction does to the x87 state besides its result: TOP 0, all registers valid. */
void x87_enter_mmx(struct vcpu *v);
/* The 16-bit tag word that FNSTENV stores. */
u16 x87_full_tags(const struct x87 *f);
void x87_init(struct vcpu *v);
