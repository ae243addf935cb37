/*
 * How a value body gets its flags: the host runs the guest's own instruction, LAHF and SETO take the
 * flags out of EFLAGS without the price of PUSHF. What a manual calls undefined is therefore what
 * this host does. Some instructions leave "undefined" flags as they were (rotates, BT, bit scans,
 * multiplications on AMD): those bodies load the guest's flags first (FLAGS_LOAD).
 */
#pragma once
#include "cpu/state.h"

/* After these, EAX holds SETO's result in AL and LAHF's in AH. */
#define FLAGS_SAVE "lahf\n\tseto %%al"
/* EAX in the same form becomes the host's flags: 127 + 1 overflows, 127 + 0 does not. EAX must be an
 * early-clobbered operand: an equal input would share the register otherwise. */
#define FLAGS_LOAD "addb $0x7f, %%al\n\tsahf\n\t"

/* EAX as FLAGS_SAVE left it, into the guest's flags. */
static alwaysinline void flags_put(struct vcpu *v, u32 eax)
{
    u32 ah = (u8)(eax >> 8), al = (u8)eax;
    v->aflags = (ah & 0xd5) | al << 11;
}

/* The guest's flags as FLAGS_LOAD wants them in EAX. */
static alwaysinline u32 flags_get(const struct vcpu *v)
{
    return (v->aflags & 0xff) << 8 | v->aflags >> 11;
}

/*
 * Whether condition @cc (the low four bits of Jcc, SETcc, CMOVcc) holds. SF != OF is moved to bit 12,
 * so that each pair of conditions is one mask, and the lowest bit of @cc negates.
 */
static alwaysinline bool cc_holds(const struct vcpu *v, unsigned cc)
{
    static const u16 masks[8] = {
        FL_OF, FL_CF, FL_ZF, FL_CF | FL_ZF, FL_SF, FL_PF, 1 << 12, 1 << 12 | FL_ZF,
    };
    u32 f = v->aflags;
    f |= ((f << 4 ^ f) & FL_OF) << 1;
    return ((f & masks[cc >> 1 & 7]) != 0) ^ (cc & 1);
}
