/*
 * The checks column of the opcode table as code; the generated handlers call these before anything
 * else. What can be one test of a derived bit is inline; which exception it is, is decided in
 * checks.c.
 */
#pragma once
#include "cpu/mem.h"
#include "cpu/virt.h"

void check_simd_failed(struct vcpu *v, u32 checks);
void check_fwait_failed(struct vcpu *v);
void check_align_failed(struct vcpu *v, const struct insn *i) __attribute__((noreturn));

#define FSW_ES BIT(7) /* an unmasked x87 exception is pending */
#define MXCSR_MM BIT(17)

/* ---- #UD ---- */
static alwaysinline void check_enabled(struct vcpu *v, enum intercept what)
{
    if (unlikely(v->guest_mode) && v->virt->enabled && !v->virt->enabled(v, what))
        cpu_ud(v);
}
static alwaysinline void check_prot(struct vcpu *v)
{
    if (unlikely(v->mode < MODE_PROT16))
        cpu_ud(v);
}
static alwaysinline void check_not_v86(struct vcpu *v)
{
    if (unlikely(v->mode == MODE_V86))
        cpu_ud(v);
}
static alwaysinline void check_not_compat(struct vcpu *v)
{
    if (unlikely(v->mode == MODE_COMPAT16 || v->mode == MODE_COMPAT32))
        cpu_ud(v);
}
static alwaysinline void check_vmxon(struct vcpu *v)
{
    if (unlikely(!v->in_vmx_operation))
        cpu_ud(v);
}
static alwaysinline void check_svme(struct vcpu *v)
{
    if (unlikely(!(v->efer & EFER_SVME)))
        cpu_ud(v);
}
static alwaysinline void check_cr4_ud(struct vcpu *v, u64 bit)
{
    if (unlikely(!(v->cr4 & bit)))
        cpu_ud(v);
}
static alwaysinline void check_cpl0_ud(struct vcpu *v)
{
    if (unlikely(v->cpl))
        cpu_ud(v);
}

/* ---- SIMD and x87: #UD, #NM, #MF. @checks is a constant ---- */
static alwaysinline void check_simd(struct vcpu *v, u32 checks)
{
    u8 need = (u8)((checks & (CHK_X87 | CHK_X87_NOWAIT) ? BIT(0) : 0) | (checks & CHK_MMX ? BIT(1) : 0) |
                   (checks & CHK_SSE ? BIT(2) : 0) | (checks & CHK_AVX ? BIT(3) : 0) | (checks & CHK_AVX512 ? BIT(4) : 0));
    bool bad = (v->simd_ok & need) != need;
    if (checks & (CHK_X87 | CHK_MMX))
        bad |= (v->x87.fsw & FSW_ES) != 0;
    if (unlikely(bad))
        check_simd_failed(v, checks);
}
static alwaysinline void check_fwait(struct vcpu *v)
{
    if (unlikely((v->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS) || v->x87.fsw & FSW_ES))
        check_fwait_failed(v);
}
static alwaysinline void check_ts(struct vcpu *v)
{
    if (unlikely(v->cr0 & CR0_TS))
        cpu_raise(v, VEC_NM);
}

/* ---- #GP(0) ---- */
static alwaysinline void check_cpl0(struct vcpu *v)
{
    if (unlikely(v->cpl))
        cpu_gp0(v);
}
static alwaysinline void check_umip(struct vcpu *v)
{
    if (unlikely(v->cr4 & CR4_UMIP && v->cpl))
        cpu_gp0(v);
}
static alwaysinline void check_tsd(struct vcpu *v)
{
    if (unlikely(v->cr4 & CR4_TSD && v->cpl))
        cpu_gp0(v);
}
static alwaysinline void check_pce(struct vcpu *v)
{
    if (unlikely(!(v->cr4 & CR4_PCE) && v->cpl))
        cpu_gp0(v);
}
static alwaysinline void check_v86_iopl(struct vcpu *v)
{
    if (unlikely(v->mode == MODE_V86 && (v->rflags & FL_IOPL) != FL_IOPL))
        cpu_gp0(v);
}
/* A memory operand of a whole vector, 16 << vl bytes. */
static alwaysinline void check_aligned(struct vcpu *v, const struct insn *i)
{
    if (unlikely((v->seg_base[i->seg] + insn_ea(v, i)) & ((16u << i->vl) - 1)))
        check_align_failed(v, i);
}
/* APM vol. 1 "Misaligned SSE": MXCSR.MM turns the check off, except for explicitly aligned moves. */
static alwaysinline void check_aligned_mm(struct vcpu *v, const struct insn *i)
{
    if (unlikely((v->seg_base[i->seg] + insn_ea(v, i)) & ((16u << i->vl) - 1)) && !(v->mxcsr & MXCSR_MM))
        check_align_failed(v, i);
}

/* One step of a locked read-modify-write: false, with *@expected refreshed, when another processor came first. */
#define HOST_CAS(bits, suffix, reg)                                                                          \
    static alwaysinline bool host_cas##bits(void *host, u##bits *expected, u##bits desired)                     \
    {                                                                                                       \
        bool won;                                                                                           \
        __asm__ volatile("lock cmpxchg" suffix " %3, %1"                                                       \
                         : "=@ccz"(won), "+m"(*(u##bits(*)[1])host), "+a"(*expected)                            \
                         : reg(desired)                                                                      \
                         : "memory");                                                                        \
        return won;                                                                                         \
    }
HOST_CAS(8, "b", "q")
HOST_CAS(16, "w", "r")
HOST_CAS(32, "l", "r")
HOST_CAS(64, "q", "r")
#undef HOST_CAS
