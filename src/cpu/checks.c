/*
 * The exceptions behind the checks column: which one, in the order of the manuals (SDM vol. 2 "SIMD
 * exception classes" and vol. 3 "Interactions of SIMD with FP", table of CR0.EM, MP, TS).
 */
#include "cpu/checks.h"
#include "devices/irq.h"

/*
 * A waiting x87 or MMX instruction met FSW.ES. With CR0.NE = 0 the PC's way is taken: FERR# is
 * IRQ 13, and the instruction waits until the interrupt has been served (SDM vol. 3 appendix "MS-DOS
 * compatibility sub-mode"), or IGNNE# has been asserted. A machine that did not wire FERR# behaves as with
 * IGNNE# asserted.
 */
static void pending_mf(struct vcpu *v)
{
    if (v->cr0 & CR0_NE)
        cpu_raise(v, VEC_MF);
    if (v->ferr && !v->ignne) {
        irq_set(v->ferr, true);
        cpu_unwind(v, UNWIND_RETRY);
    }
}

__attribute__((cold)) void check_simd_failed(struct vcpu *v, u32 checks)
{
    if (checks & (CHK_SSE | CHK_MMX) && v->cr0 & CR0_EM)
        cpu_ud(v);
    if (checks & CHK_SSE && !(v->cr4 & CR4_OSFXSR))
        cpu_ud(v);
    if (checks & (CHK_AVX | CHK_AVX512)) {
        u64 need = XCR0_SSE | XCR0_AVX;
        if (checks & CHK_AVX512)
            need |= XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM;
        if (!(v->cr4 & CR4_OSXSAVE) || (v->xcr0 & need) != need)
            cpu_ud(v);
    }
    if (checks & (CHK_X87 | CHK_X87_NOWAIT) && v->cr0 & CR0_EM)
        cpu_raise(v, VEC_NM);
    if (v->cr0 & CR0_TS)
        cpu_raise(v, VEC_NM);
    if (checks & (CHK_X87 | CHK_MMX) && v->x87.fsw & FSW_ES)
        pending_mf(v);
}

__attribute__((cold)) void check_fwait_failed(struct vcpu *v)
{
    if ((v->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
        cpu_raise(v, VEC_NM);
    pending_mf(v);
}

/*
 * The alignment #GP(0) has the same priority class as the segment checks, of which a stack segment's
 * is #SS(0): let those speak first.
 */
__attribute__((cold)) void check_align_failed(struct vcpu *v, const struct insn *i)
{
    gva_t la = seg_linear(v, i->seg, insn_ea(v, i), 16u << i->vl, ACCESS_READ);
    if (i->seg == SEG_SS && !cpu_canonical(v, la))
        cpu_raise_error(v, VEC_SS, 0);
    cpu_gp0(v);
}
