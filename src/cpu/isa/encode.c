/*
 * The encoder. Prefix order is the one every processor accepts (SDM vol. 2, "Instruction Prefixes"
 * and "REX Prefixes"): legacy prefixes, mandatory prefix, REX, escape bytes, opcode.
 */
#include "cpu/isa/encode.h"
#include "base/bits.h"

enum { ROW_LEGACY, ROW_VEX, ROW_EVEX };

/* Opcodes with a ModRM byte, for the two maps that have others (SDM vol. 2, Appendix A.3). */
static bool has_modrm(const struct insn_row *row)
{
    unsigned op = row->opcode;
    if (row->vex)
        return !(row->map == 1 && op == 0x77); /* VZEROUPPER, VZEROALL */
    if (row->map >= 2)
        return true;
    if (row->map == 1)
        return !((op >= 0x04 && op <= 0x0c) || op == 0x0e || (op >= 0x30 && op <= 0x37) || op == 0x77 ||
                 (op >= 0x80 && op <= 0x8f) || (op >= 0xa0 && op <= 0xa2) || (op >= 0xa8 && op <= 0xaa) ||
                 (op >= 0xc8 && op <= 0xcf));
    if (op < 0x40)
        return (op & 7) < 4;
    return op == 0x62 || op == 0x63 || op == 0x69 || op == 0x6b || (op >= 0x80 && op <= 0x8f) ||
           op == 0xc0 || op == 0xc1 || (op >= 0xc4 && op <= 0xc7) || (op >= 0xd0 && op <= 0xd3) ||
           (op >= 0xd8 && op <= 0xdf) || op == 0xf6 || op == 0xf7 || op >= 0xfe;
}

static bool is_reg_kind(u8 kind)
{
    return kind == OPND_GPR_REG || kind == OPND_MMX_REG || kind == OPND_VEC_REG || kind == OPND_MASK_REG;
}

static bool is_rm_kind(u8 kind)
{
    return kind == OPND_GPR_RM || kind == OPND_MMX_RM || kind == OPND_VEC_RM || kind == OPND_MASK_RM ||
           kind == OPND_MEM || kind == OPND_VSIB;
}

bool insn_reg_is_operand(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    for (unsigned n = 0; n < row->nopnd; n++)
        if (is_reg_kind(row->opnd[n].kind))
            return true;
    return false;
}

bool insn_rm_is_operand(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    for (unsigned n = 0; n < row->nopnd; n++)
        if (is_rm_kind(row->opnd[n].kind))
            return true;
    return false;
}

bool insn_wide(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    /* "W1" as a token of the table's own text: .W1 of VEX, " W1" of a legacy row that needs REX.W. */
    if (strstr(row->encoding, ".W1") || strstr(row->encoding, " W1"))
        return !(row->checks & CHK_NO64); /* a row for what W1 means outside 64-bit mode: the same as W0 */
    if (row->vex) {
        if (row->map == 3 && (row->opcode == 0x60 || row->opcode == 0x61)) /* VPCMPESTRx: W sizes the implicit lengths */
            return i->opsize == 8;
        for (unsigned n = 0; n < row->nopnd; n++) /* .WIG rows whose general-purpose operand W still sizes */
            if (row->opnd[n].size == OPSZ_Y)
                return i->opsize == 8;
        return false;
    }
    return i->opsize == 8;
}

/* Whether the operand size (prefix 66) is part of what the row means. */
static bool opsize_matters(const struct insn_row *row)
{
    if (strstr(row->encoding, " o16"))
        return true;
    if (row->nopnd == 0)
        return !(row->checks & (CHK_X87 | CHK_MMX | CHK_SSE));
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        if ((o->size == OPSZ_V || o->size == OPSZ_Z) && o->kind != OPND_IMM_FIXED && o->kind <= OPND_IMM)
            return true;
    }
    return false;
}

struct emit {
    u8 *p;
    const u8 *start;
};

static void put8(struct emit *e, unsigned byte) { *e->p++ = (u8)byte; }

static void put_imm(struct emit *e, u64 value, unsigned size)
{
    store_le(e->p, value, size);
    e->p += size;
}

/* ModRM, SIB and displacement. @no_disp8: EVEX scales a disp8, so only a zero one may be used. */
static void put_modrm(struct emit *e, const struct insn *i, const struct encode_regs *r, unsigned reg, unsigned rm, bool mem,
                      bool no_disp8)
{
    if (!mem) {
        put8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
        return;
    }
    unsigned mod = 0;
    if (r->disp || (r->base & 7) == 5)
        mod = r->disp == 0 || (!no_disp8 && r->disp == (s8)r->disp) ? 1 : 2;
    if (r->index != REG_NONE || (r->base & 7) == 4) {
        unsigned index = r->index == REG_NONE ? 4 : r->index & 7;
        put8(e, mod << 6 | (reg & 7) << 3 | 4);
        put8(e, (unsigned)(r->index == REG_NONE ? 0 : r->scale) << 6 | index << 3 | (r->base & 7));
    } else {
        put8(e, mod << 6 | (reg & 7) << 3 | (r->base & 7));
    }
    if (mod)
        put_imm(e, (u64)(s64)r->disp, mod == 1 ? 1 : 4);
}

unsigned insn_encode(const struct insn *i, const struct encode_regs *r, u8 *out)
{
    const struct insn_row *row = insn_row(i);
    struct emit e = { out, out };
    bool modrm = has_modrm(row), mem = (i->flags & INSN_MEM) && modrm;
    bool reg_opnd = false, rm_opnd = false, opcode_reg = false, is4 = false, byte_rex = false;
    unsigned imm_size[2] = { 0, 0 }, imms = 0;
    bool wide = insn_wide(i);

    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        switch (o->kind) {
        case OPND_REL: case OPND_FARPTR: case OPND_MOFFS: case OPND_STR_SRC: case OPND_STR_DST:
        case OPND_SEG_REG: case OPND_SEG_FIXED: case OPND_CR: case OPND_DR:
            return 0;
        case OPND_GPR_REG:
            byte_rex |= o->size == 1 && !r->high_reg && r->reg >= 4 && r->reg < 8;
            break;
        case OPND_GPR_RM:
            byte_rex |= o->size == 1 && !mem && !r->high_rm && r->rm >= 4 && r->rm < 8;
            break;
        case OPND_GPR_OP:
            opcode_reg = true;
            byte_rex |= o->size == 1 && !r->high_rm && r->rm >= 4 && r->rm < 8;
            break;
        case OPND_IMM:
            if (imms < 2)
                imm_size[imms++] = o->size == OPSZ_V ? i->opsize : o->size == OPSZ_Z ? (i->opsize == 2 ? 2u : 4u) : o->size;
            break;
        case OPND_VEC_IS4:
            is4 = true;
            break;
        }
        reg_opnd |= is_reg_kind(o->kind);
        rm_opnd |= is_rm_kind(o->kind);
    }

    unsigned reg = reg_opnd ? r->reg : (i->modrm >> 3) & 7u;
    unsigned rm = rm_opnd || opcode_reg ? r->rm : i->modrm & 7u;
    if (reg_opnd && r->high_reg)
        reg = r->reg + 4u;
    if ((rm_opnd || opcode_reg) && !mem && r->high_rm)
        rm = r->rm + 4u;
    unsigned index = mem && r->index != REG_NONE ? r->index : 0;
    unsigned base = mem ? r->base : rm;
    unsigned R = reg >> 3 & 1, X = index >> 3 & 1, B = base >> 3 & 1;
    unsigned opcode = row->opcode;
    if (row->checks & CHK_NO64 && row->vex == ROW_LEGACY) {
        if (opcode_reg) /* a REX prefix in the host's mode */
            return 0;
        if (opcode == 0x82)
            opcode = 0x80; /* the same, and defined there */
    }
    if (opcode_reg)
        opcode = (opcode & ~7u) | (rm & 7);

    if (row->vex == ROW_LEGACY) {
        static const u8 mandatory[] = { 0, 0x66, 0xf3, 0xf2 };
        if (i->flags & INSN_LOCK)
            put8(&e, 0xf0);
        if (row->pp != 1 && i->opsize == 2 && opsize_matters(row))
            put8(&e, 0x66);
        if (row->pp)
            put8(&e, mandatory[row->pp]);
        unsigned rex = (wide ? 8u : 0) | R << 2 | X << 1 | B;
        if (rex || byte_rex) {
            if ((r->high_reg && reg_opnd) || (r->high_rm && !mem && (rm_opnd || opcode_reg)))
                return 0;
            put8(&e, 0x40 | rex);
        }
        if (row->map)
            put8(&e, 0x0f);
        if (row->map == 2)
            put8(&e, 0x38);
        else if (row->map == 3)
            put8(&e, 0x3a);
    } else if (row->vex == ROW_VEX) {
        unsigned L = i->vl & 1;
        put8(&e, 0xc4);
        put8(&e, (R ^ 1) << 7 | (X ^ 1) << 6 | (B ^ 1) << 5 | row->map);
        put8(&e, (wide ? 0x80u : 0) | L << 2 | row->pp);
        bool has_vvvv = false;
        for (unsigned n = 0; n < row->nopnd; n++)
            has_vvvv |= row->opnd[n].kind == OPND_VEC_VVVV || row->opnd[n].kind == OPND_GPR_VVVV || row->opnd[n].kind == OPND_MASK_VVVV;
        e.p[-1] |= (u8)((~(has_vvvv ? r->vvvv : 0u) & 15) << 3);
    } else {
        bool has_vvvv = false;
        for (unsigned n = 0; n < row->nopnd; n++)
            has_vvvv |= row->opnd[n].kind == OPND_VEC_VVVV || row->opnd[n].kind == OPND_MASK_VVVV;
        unsigned vvvv = has_vvvv ? r->vvvv : 0;
        unsigned R4 = reg >> 4 & 1;
        unsigned V4 = (i->flags & INSN_VSIB) ? index >> 4 & 1 : vvvv >> 4 & 1;
        if (!mem)
            X = rm >> 4 & 1; /* a vector register's bit 4 (SDM vol. 2, "Register Specifier Encoding and EVEX") */
        put8(&e, 0x62);
        put8(&e, (R ^ 1) << 7 | (X ^ 1) << 6 | (B ^ 1) << 5 | (R4 ^ 1) << 4 | row->map);
        put8(&e, (wide ? 0x80u : 0) | (~vvvv & 15) << 3 | 4 | row->pp);
        put8(&e, (i->flags & INSN_ZERO ? 0x80u : 0) | (i->vl & 3u) << 5 | (i->flags & (INSN_BCST | INSN_RND) ? 0x10u : 0) |
                     (V4 ^ 1) << 3 | (i->mask ? r->mask & 7u : 0));
    }
    put8(&e, opcode);
    if (modrm)
        put_modrm(&e, i, r, reg, rm, mem, row->vex == ROW_EVEX);
    if (is4)
        put8(&e, (unsigned)r->is4 << 4 | (i->imm & 15));
    if (imms > 0)
        put_imm(&e, i->imm, imm_size[0]);
    if (imms > 1)
        put_imm(&e, i->imm2, imm_size[1]);
    return (unsigned)(e.p - e.start);
}
