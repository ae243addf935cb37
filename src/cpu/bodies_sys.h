/* Raw bodies of the system and port instructions (docs/adding-an-instruction.md), by file. */
#pragma once
#include "cpu/state.h"

#define BODY(name) void insn_##name(struct vcpu *v, const struct insn *i);

/* cpuid.c */
BODY(cpuid)
/* sysinsn.c */
BODY(mov_from_cr) BODY(mov_to_cr) BODY(mov_from_dr) BODY(mov_to_dr) BODY(clts) BODY(lmsw) BODY(smsw)
BODY(lgdt) BODY(lidt) BODY(sgdt) BODY(sidt) BODY(invlpg) BODY(invpcid) BODY(invd) BODY(wbinvd) BODY(wbnoinvd)
BODY(rdtsc) BODY(rdtscp) BODY(rdpmc) BODY(rdmsr) BODY(wrmsr) BODY(rdpid) BODY(hlt) BODY(pause)
BODY(monitor) BODY(mwait) BODY(umonitor) BODY(umwait) BODY(tpause)
BODY(rdssp) BODY(incssp) BODY(saveprevssp) BODY(rstorssp) BODY(wrss) BODY(wruss) BODY(setssbsy) BODY(clrssbsy)
BODY(rdfsbase) BODY(rdgsbase) BODY(wrfsbase) BODY(wrgsbase) BODY(serialize) BODY(rdpru) BODY(clzero)
BODY(clflush) BODY(clflushopt) BODY(clwb)
/* port.c */
BODY(in_imm) BODY(in_dx) BODY(out_imm) BODY(out_dx) BODY(ins) BODY(outs)

#undef BODY
