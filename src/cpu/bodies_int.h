/* Raw bodies of the integer instructions (docs/adding-an-instruction.md), by file. */
#pragma once
#include "cpu/state.h"

#define BODY(name) void insn_##name(struct vcpu *v, const struct insn *i);

/* stack.c (segment registers: segment.c) */
BODY(push_rm) BODY(push_reg) BODY(push_imm) BODY(pop_rm) BODY(pop_reg)
BODY(pusha) BODY(popa) BODY(enter) BODY(leave)
/* branch.c */
BODY(jmp_rel) BODY(jmp_ind) BODY(jcc) BODY(call_rel) BODY(call_ind) BODY(ret)
BODY(loop) BODY(loope) BODY(loopne) BODY(jrcxz)
/* string.c */
BODY(movs) BODY(cmps) BODY(stos) BODY(lods) BODY(scas) BODY(xlat)
/* muldiv.c */
BODY(mul) BODY(imul_rm) BODY(div) BODY(idiv) BODY(cwd) BODY(cbw) BODY(mulx) BODY(aam) BODY(aad)
BODY(daa) BODY(das) BODY(aaa) BODY(aas)
/* exchange.c */
BODY(xchg) BODY(xadd) BODY(cmpxchg) BODY(cmpxchg8b) BODY(cmpxchg16b)
BODY(bt_mem) BODY(bts_mem) BODY(btr_mem) BODY(btc_mem)
/* misc_int.c */
BODY(lahf) BODY(sahf) BODY(clc) BODY(stc) BODY(cmc) BODY(cld) BODY(std) BODY(salc)
BODY(bound) BODY(nop) BODY(prefetch) BODY(mfence) BODY(ud)
BODY(rdrand) BODY(rdseed) BODY(movdir64b)

#undef BODY

/*
 * The generator behind RDRAND and RDSEED. It is a pure function of v->random_state, so that a run
 * whose machine sets a seed can be repeated; a state of 0 is seeded by the host first.
 */
u64 cpu_random(struct vcpu *v);
