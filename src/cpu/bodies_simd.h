/* The raw bodies of the x87, SIMD-state, masked-memory and XSAVE rows (x87.c, simd.c, evex.c, xstate.c). */
#pragma once
#include "cpu/isa/insn.h"

/* x87.c */
insn_fn insn_fninit, insn_fnclex, insn_fldcw, insn_fnstcw, insn_fnstsw, insn_fldenv, insn_fnstenv,
    insn_frstor, insn_fnsave, insn_fwait;
/* simd.c */
insn_fn insn_emms, insn_vzeroupper, insn_vzeroall, insn_ldmxcsr, insn_stmxcsr, insn_maskmovq,
    insn_maskmovdqu, insn_vmaskmovps, insn_vmaskmovpd, insn_vpmaskmovd, insn_vpmaskmovq, insn_vpgatherdd,
    insn_vpgatherdq, insn_vpgatherqd, insn_vpgatherqq, insn_vgatherdps, insn_vgatherdpd, insn_vgatherqps,
    insn_vgatherqpd;
/* evex.c */
insn_fn insn_kand, insn_kandn, insn_kor, insn_kxor, insn_kxnor, insn_kadd, insn_knot, insn_kunpck, insn_kshiftl,
    insn_kshiftr, insn_kortest, insn_ktest, insn_kmov_load, insn_kmov_store, insn_kmov_from_gpr, insn_kmov_to_gpr,
    insn_evex_gather, insn_evex_scatter;
/* xstate.c */
insn_fn insn_fxsave, insn_fxrstor, insn_xsave, insn_xsavec, insn_xsaveopt, insn_xsaves, insn_xrstor,
    insn_xrstors, insn_xgetbv, insn_xsetbv, insn_rdpkru, insn_wrpkru;
/* borrow.c: every =borrow row */
insn_fn insn_borrow;
