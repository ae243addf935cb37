/* Which instructions have a translation of their own: the allow-list that docs/jit.md asks to review. */
#include "cpu/isa/encode.h"
#include "jit/tr.h"

/* Of x87 instructions the offset is kept too, which ea_lea() cuts to 32 bits at least. */
static bool offset_possible(bool wide, const struct insn *i) { return i->adsize != 2 && ea_possible(wide, i); }

/* Rows with SIMD or x87 operands that K_COPY can place. */
static bool vector_possible(bool wide, const struct insn *i, const struct insn_row *row)
{
    const u32 known = CHK_UNITS | CHK_ALIGN16 | CHK_ALIGN_MM | CHK_ONLY64 | CHK_NO64;
    if (row->checks & ~known || row->vex == 2 || (i->flags & (INSN_LOCK | INSN_VSIB)) ||
        (row->map == 3 && row->opcode >= 0x60 && row->opcode <= 0x63)) /* implicit registers */
        return false;
    if (row->checks & CHK_NO64 && !(row->vex && wide == false && !insn_wide(i)))
        return false;
    bool vector = row->checks & (CHK_SSE | CHK_AVX), x87 = row->checks & CHK_X87;
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        switch (o->kind) {
        case OPND_VEC_REG: case OPND_VEC_RM: case OPND_VEC_FIXED: case OPND_VEC_VVVV: case OPND_VEC_IS4:
            if (!vector)
                return false;
            break;
        case OPND_GPR_REG: case OPND_GPR_RM: case OPND_MEM: case OPND_IMM:
            break;
        case OPND_MMX_REG: case OPND_MMX_RM:
            return false;
        case OPND_X87_ST: case OPND_X87_STI:
            if (!x87)
                return false;
            break;
        default:
            return false;
        }
        if (o->kind == OPND_GPR_RM && o->size == 1 && !(i->flags & INSN_MEM) && (i->rm8 & 7))
            return false;
        if ((i->flags & INSN_MEM) && (o->kind == OPND_MEM || o->kind == OPND_GPR_RM || o->kind == OPND_VEC_RM) && !operand_bytes(i, n))
            return false;
    }
    if (row->checks & CHK_MMX)
        return false;
    return !(i->flags & INSN_MEM) || offset_possible(wide, i);
}

static bool copy_possible(bool wide, const struct insn *i, const struct insn_row *row)
{
    if (row->checks & CHK_UNITS)
        return !row->intercept && vector_possible(wide, i, row);
    if (row->checks & ~(u32)(CHK_LOCK | CHK_ONLY64 | CHK_NO64) || row->intercept)
        return false;
    if (row->checks & CHK_NO64)
        return false; /* encodings that mean something else on the host */
    bool shift = !row->vex && ((row->map == 0 && (row->opcode & 0xfc) == 0xd0) || (row->map == 1 && (row->opcode & 0xf6) == 0xa4));
    unsigned vvvv = 0, regs = 0, high = 0, bytes = 0;
    bool memory = false, cl = false;
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        switch (o->kind) {
        case OPND_GPR_REG:
            regs++;
            if (o->size == 1)
                high += i->reg8 & 7, bytes++;
            break;
        case OPND_GPR_RM:
        case OPND_GPR_OP:
        case OPND_MEM:
            if (o->kind != OPND_GPR_OP && (i->flags & INSN_MEM))
                memory = true;
            else if (o->size == 1)
                high += i->rm8 & 7, bytes++;
            break;
        case OPND_GPR_VVVV:
            vvvv++;
            break;
        case OPND_GPR_FIXED:
            if (!shift || o->fixed != RCX || o->size != 1 || o->access != 1)
                return false;
            cl = true;
            break;
        case OPND_IMM:
        case OPND_IMM_FIXED:
            break;
        default:
            return false;
        }
    }
    if (memory && !ea_possible(wide, i))
        return false;
    if (cl && regs && !in_host(i->reg))
        return false;
    if (cl && high) /* RCX is taken by the count */
        return false;
    if (high && vvvv)
        return false;
    return i->opsize != 2 || row->vex == 0;
}

/* One-operand MUL and IMUL, and CMPXCHG, work in the host's RAX: their other operands must be elsewhere. */
static bool rm_placed(bool wide, const struct insn *i, bool byte)
{
    if (i->flags & INSN_MEM)
        return ea_possible(wide, i);
    return byte ? !(i->rm8 & 7) && in_host(i->rm8 / 8u) : in_host(i->rm);
}
static bool multiply_possible(bool wide, const struct insn *i)
{
    return ((i->opcode & 1) && !(i->flags & INSN_MEM)) || rm_placed(wide, i, !(i->opcode & 1));
}
/* Operands of 32 and 64 bits that are not where the dividend is. */
static bool divide_possible(bool wide, const struct insn *i)
{
    return (i->opcode & 1) && i->opsize >= 4 &&
           ((i->flags & INSN_MEM) ? ea_possible(wide, i) : i->rm != RAX && i->rm != RDX);
}
static bool cmpxchg_possible(bool wide, const struct insn *i)
{
    bool byte = !(i->opcode & 1);
    return rm_placed(wide, i, byte) && (byte ? !(i->reg8 & 7) && in_host(i->reg8 / 8u) : in_host(i->reg));
}

enum kind kind_of(const struct jit *j, bool wide, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    if (row->jit == JIT_CALL || row->vex == 2 || (i->flags & INSN_OWN_FN))
        return K_CALL;
    /* Some bodies need nothing of the host, so the guest may have what the host lacks. */
    if (!j->host_has[row->feature] || !j->host_has[row->feature2])
        return K_CALL;
    if (row->jit == JIT_EMIT && system_possible(wide, i)) /* they look at intercepts themselves */
        return j->lockstep && system_beyond(i) ? K_CALL : K_SYSTEM;
    if (row->jit == JIT_EMIT && string_possible(wide, i))
        return K_STRING;
    if (row->intercept)
        return K_CALL;
    unsigned op = row->opcode, ext = i->modrm >> 3 & 7, stack = wide ? 8 : 4;
    bool memory = i->flags & INSN_MEM;
    unsigned size = wide && i->opsize == 4 ? 8 : i->opsize; /* of stack operands */
    if (row->vex == 0 && row->map == 0 && row->pp == 0) {
        if (op < 0x40 && (op & 7) >= 4 && (op & 7) <= 5)
            return K_ACCUMULATOR;
        if (op >= 0x70 && op <= 0x7f)
            return i->opsize == stack ? K_JCC : K_CALL;
        switch (op) {
        case 0xa8: case 0xa9:
            return K_ACCUMULATOR;
        case 0xa0: case 0xa1: case 0xa2: case 0xa3:
            return K_MOFFS;
        case 0x8d:
            return i->adsize == 2 || !fits32(i->disp - 65536) || !fits32(i->disp + 65536) ? K_CALL : K_LEA;
        case 0x90:
            return row->nopnd ? K_XCHG : K_NOP;
        case 0x86: case 0x87:
            return copy_possible(wide, i, row) ? K_COPY : K_CALL;
        case 0xf6: case 0xf7:
            if (ext == 4 || ext == 5)
                return multiply_possible(wide, i) ? K_MULTIPLY : K_CALL;
            if (ext >= 6)
                return divide_possible(wide, i) ? K_DIVIDE : K_CALL;
            break;
        case 0x9b:
            return K_X87_CONTROL;
        case 0xd9: case 0xdd: case 0xdf:
            if (row->jit == JIT_EMIT)
                return memory && !offset_possible(wide, i) ? K_CALL : K_X87_CONTROL;
            break;
        case 0x68: case 0x6a:
            return size == stack ? K_PUSH_IMM : K_CALL;
        case 0xe8:
            return i->opsize == stack ? K_CALL_REL : K_CALL;
        case 0xe9: case 0xeb:
            return i->opsize == stack ? K_JMP : K_CALL;
        case 0xc2: case 0xc3:
            return i->opsize == stack ? K_RET : K_CALL;
        case 0xc9:
            return size == stack ? K_LEAVE : K_CALL;
        case 0x98: case 0x99:
            return K_EXTEND;
        case 0xff:
            if (ext == 2 || ext == 4)
                return i->opsize != stack || (memory && !ea_possible(wide, i)) ? K_CALL : ext == 2 ? K_CALL_IND : K_JMP_IND;
            if (ext == 6)
                return size != stack || (memory && !ea_possible(wide, i)) ? K_CALL : K_PUSH_RM;
            break;
        }
        if (op >= 0x40 && op <= 0x4f)
            return wide ? K_CALL : K_COUNT;
        if (op >= 0x50 && op <= 0x57)
            return size == stack ? K_PUSH_REG : K_CALL;
        if (op >= 0x58 && op <= 0x5f)
            return size == stack ? K_POP_REG : K_CALL;
    }
    if (row->vex == 0 && row->map == 1) {
        if (op == 0x0d || (op >= 0x18 && op <= 0x1f))
            return row->jit == JIT_EMIT ? K_NOP : K_CALL; /* hints */
        if (row->pp == 0 && (op & 0xf0) == 0x80)
            return i->opsize == stack ? K_JCC : K_CALL;
        if (op == 0xb0 || op == 0xb1)
            return cmpxchg_possible(wide, i) ? K_CMPXCHG : K_CALL;
        if (op == 0xc0 || op == 0xc1)
            return copy_possible(wide, i, row) ? K_COPY : K_CALL;
    }
    if (row->vex == 1 && row->map == 2 && op == 0xf6)
        return memory && !ea_possible(wide, i) ? K_CALL : K_MULX;
    if (row->vex == 1 && row->map == 1 && op == 0x77)
        return wide && !j->zmm ? K_VZERO : K_CALL;
    if (row->jit != JIT_COPY)
        return K_CALL;
    return copy_possible(wide, i, row) ? K_COPY : K_CALL;
}

bool jit_native(const struct vcpu *v, const struct insn *i)
{
    if (v->code_mode == CODE_16)
        return kind_segmented(v->jit, i) != K_CALL;
    return kind_of(v->jit, v->code_mode == CODE_64, i) != K_CALL;
}
