/*
 * The SVM instructions. No model offers SVM yet, EFER.SVME cannot be set, and so the opcode table's
 * checks raise #UD before any of these bodies is reached (APM vol. 2, 15.4 "Enabling SVM"); VMMCALL,
 * which has no such check, raises it here.
 */
#include "cpu/cpu.h"
#include "handlers.h"

#define UNDEFINED(name)                                                                            \
    void insn_##name(struct vcpu *v, const struct insn *i)                                         \
    {                                                                                              \
        (void)i;                                                                                   \
        cpu_ud(v);                                                                                 \
    }
UNDEFINED(vmrun)
UNDEFINED(vmload)
UNDEFINED(vmsave)
UNDEFINED(vmmcall)
UNDEFINED(stgi)
UNDEFINED(clgi)
UNDEFINED(skinit)
UNDEFINED(invlpga)
