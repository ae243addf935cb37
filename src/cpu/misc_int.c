/* Integer instructions that need no file of their own: flags, bounds, fences, random numbers, UD. */
#include "cpu/bodies_int.h"
#include "cpu/operand.h"
#include "cpu/ops_flags.h"

#include <sys/random.h>

void insn_lahf(struct vcpu *v, const struct insn *i)
{
    reg8_set(v, 1, (u8)(v->aflags | FL_FIXED)); /* byte 1 of the register file is AH */
}
void insn_sahf(struct vcpu *v, const struct insn *i)
{
    v->aflags = (v->aflags & FL_OF) | (u32)(v->gpr[RAX] >> 8 & FL_ARITH & 0xff);
}
void insn_clc(struct vcpu *v, const struct insn *i) { v->aflags &= ~(u32)FL_CF; }
void insn_stc(struct vcpu *v, const struct insn *i) { v->aflags |= FL_CF; }
void insn_cmc(struct vcpu *v, const struct insn *i) { v->aflags ^= FL_CF; }
void insn_cld(struct vcpu *v, const struct insn *i) { v->rflags &= ~FL_DF; }
void insn_std(struct vcpu *v, const struct insn *i) { v->rflags |= FL_DF; }
void insn_salc(struct vcpu *v, const struct insn *i) { reg8_set(v, 0, v->aflags & FL_CF ? 0xff : 0); }

void insn_bound(struct vcpu *v, const struct insn *i)
{
    unsigned size = i->opsize, bits = 8 * size;
    u64 ea = insn_ea(v, i);
    s64 x = sign_extend(v->gpr[i->reg], bits);
    s64 lower = sign_extend(mem_get(v, i->seg, ea, size), bits);
    s64 upper = sign_extend(mem_get(v, i->seg, (ea + size) & size_mask(i->adsize), size), bits);
    if (x < lower || x > upper)
        cpu_raise(v, VEC_BR);
}

void insn_nop(struct vcpu *v, const struct insn *i) {}
void insn_prefetch(struct vcpu *v, const struct insn *i) {}
/* LFENCE, MFENCE, SFENCE: guest accesses are the host's in program order, so the host's fence is what is wanted. */
void insn_mfence(struct vcpu *v, const struct insn *i) { __asm__ volatile("mfence" ::: "memory"); }
void insn_ud(struct vcpu *v, const struct insn *i) { cpu_ud(v); }

u64 cpu_random(struct vcpu *v)
{
    if (!v->random_state && getrandom(&v->random_state, sizeof(v->random_state), GRND_NONBLOCK) < 0)
        v->random_state = (u64)(uintptr_t)v; /* no entropy yet: any state will do for a guest that early */
    /* SplitMix64 (Steele, Lea, Flood 2014): a counter through a bijective mixer. */
    u64 z = v->random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* CF = 1: a number was there; the other arithmetic flags are cleared. */
void insn_rdrand(struct vcpu *v, const struct insn *i)
{
    reg_set(v, i->rm, cpu_random(v), i->opsize);
    v->aflags = FL_CF;
}
void insn_rdseed(struct vcpu *v, const struct insn *i) { insn_rdrand(v, i); }

/* 64 bytes from memory to ES:reg, which must be aligned; reads before it writes. */
void insn_movdir64b(struct vcpu *v, const struct insn *i)
{
    u8 line[64];
    u64 to = v->gpr[i->reg] & size_mask(i->adsize);
    if (seg_linear(v, SEG_ES, to, 64, ACCESS_WRITE) & 63)
        cpu_gp0(v);
    mem_read_bytes(v, i->seg, insn_ea(v, i), line, 64);
    mem_write_bytes(v, SEG_ES, to, line, 64);
}
