/*
 * The last-branch registers of AMD processors (APM 24593 vol. 2 "Control-Transfer Recording MSRs",
 * "Control-Transfer Recording"): while DEBUGCTL.LBR is set, the latest branch, interrupt or exception, and
 * the one before the latest interrupt or exception. All addresses are offsets in the code segment.
 *
 * Recording is asked for at every boundary between two instructions (events.c), so no engine knows of it: what
 * ran is found here from where it stood, where it led, and its row.
 */
#include "cpu/models.h"
#include "cpu/msr.h"
#include "cpu/ops_flags.h"
#include "cpu/system.h"

enum { BR_FROM, BR_TO, EXCP_FROM, EXCP_TO };

bool branch_recording(const struct vcpu *v) { return v->debugctl & DEBUGCTL_LBR && v->model->vendor == VENDOR_AMD; }

/* What RIP does not tell of a branch to itself or to the instruction behind it; conditions still stand as they were. */
static bool taken(const struct vcpu *v, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    if (row->vex || row->map > 1 || (row->map == 1 && (i->opcode & 0xf0) != 0x80))
        return false;
    if (row->map == 1 || (i->opcode & 0xf0) == 0x70)
        return cc_holds(v, i->opcode);
    u64 count = v->gpr[RCX] & (i->adsize == 8 ? ~0ull : i->adsize == 4 ? 0xffffffffull : 0xffffull);
    switch (i->opcode) {
    case 0xe0: return count && !(v->aflags & FL_ZF);
    case 0xe1: return count && v->aflags & FL_ZF;
    case 0xe2: return count;
    case 0xe3: return !count;
    case 0xe8: case 0xe9: case 0xeb: case 0xc2: case 0xc3: return true;
    case 0x9a: case 0xea: case 0xca: case 0xcb: case 0xcf: return true;
    case 0xff: return (i->modrm >> 3 & 7) >= 2 && (i->modrm >> 3 & 7) <= 5;
    default: return false;
    }
}

void branch_record_instruction(struct vcpu *v)
{
    const struct insn *i = v->insn;
    u64 *last = v->misc_msr + SLOT_LAST_BRANCH;
    if (!i || !(insn_row(i)->checks & CHK_END))
        return;
    bool elsewhere = v->rip != v->boundary_rip && v->rip != ((v->boundary_rip + i->len) & v->linear_mask);
    if (!elsewhere && !taken(v, i))
        return;
    last[BR_FROM] = v->boundary_rip;
    last[BR_TO] = v->rip;
}

void branch_record_event(struct vcpu *v, u64 from)
{
    u64 *last = v->misc_msr + SLOT_LAST_BRANCH;
    if (!branch_recording(v))
        return;
    last[EXCP_FROM] = last[BR_FROM];
    last[EXCP_TO] = last[BR_TO];
    last[BR_FROM] = from;
    last[BR_TO] = v->rip;
}
