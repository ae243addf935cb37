/* Vector, MMX and x87 instructions: the host's registers of the same numbers hold the guest's (units.c). */
#include "cpu/isa/encode.h"
#include "jit/tr.h"

u32 units_ahead(const struct tr *t, unsigned idx)
{
    u32 need = 0;
    for (const struct insn *i = &t->b->insn[idx]; idx < t->q->first + t->q->count; idx++, i++) {
        if (t->kinds[idx] == K_CALL)
            break;
        need |= jit_units_of(insn_row(i));
    }
    return need;
}

/* NULL: known already; else a jump to be set, for when they are not to be had. */
static u8 *units_check(struct tr *t, u32 need)
{
    struct code_buf *c = t->c;
    if (!(need & ~t->units))
        return NULL;
    flags_spare(t);
    put_rm(c, false, 0x8b, H_RAX, H_RSP, F_AT(units));
    put_alu_imm(c, false, 4, H_RAX, (s32)need);
    put_alu_imm(c, false, 7, H_RAX, (s32)need);
    u8 *loaded = put_jcc(c, CC_E);
    put_mov_imm32(c, H_RAX, need);
    put_call_to(c, t->j->units_load);
    u8 *none = put_jcc(c, CC_E);
    t->held = 0;
    put_target(loaded, c->p);
    t->units |= need;
    return none;
}

void units_want(struct tr *t, u32 need)
{
    if (need & ~t->units && !t->q->region) /* one check for all that follow */
        need |= units_ahead(t, t->idx);
    u8 *none = units_check(t, need);
    if (none)
        slow_from(t, none);
}

void units_hoist(struct tr *t)
{
    u8 *none = units_check(t, units_ahead(t, 0));
    if (none)
        slow_from(t, none);
}

void vector_begin(struct tr *t, const struct insn *i, struct encode_regs *e)
{
    const struct insn_row *row = insn_row(i);
    units_want(t, jit_units_of(row));
    for (unsigned n = 0; n < row->nopnd; n++) {
        switch (row->opnd[n].kind) {
        case OPND_VEC_REG:
            e->reg = i->reg & 15;
            break;
        case OPND_VEC_RM:
            e->rm = i->rm & 15;
            break;
        case OPND_VEC_VVVV:
            e->vvvv = i->vvvv & 15;
            break;
        case OPND_VEC_IS4:
            e->is4 = (u8)(i->imm >> 4) & 15;
            break;
        case OPND_MMX_REG:
            e->reg = i->reg & 7;
            break;
        case OPND_MMX_RM:
            e->rm = i->rm & 7;
            break;
        }
    }
}

/* VEX results clear the register up to its full width, of which the host's part holds the lower half only. */
static void clear_upper(struct tr *t, unsigned n)
{
    for (s32 at = 32; at < 64; at += 8) {
        put_rm(t->c, true, 0xc7, 0, H_RBP, V_AT(vec) + (s32)(n * sizeof(union vec_reg)) + at);
        put4(t->c, 0);
    }
}

void vector_end(struct tr *t, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    for (unsigned n = 0; row->vex && t->j->zmm && n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        if (!(o->access & 2))
            continue;
        if (o->kind == OPND_VEC_REG)
            clear_upper(t, i->reg & 15);
        else if (o->kind == OPND_VEC_VVVV)
            clear_upper(t, i->vvvv & 15);
        else if (o->kind == OPND_VEC_RM && !(i->flags & INSN_MEM))
            clear_upper(t, i->rm & 15);
    }
    if (row->checks & CHK_X87)
        x87_note(t, i);
}

void emit_vzero(struct tr *t, const struct insn *i)
{
    units_want(t, UNIT_SSE | UNIT_AVX);
    put1(t->c, 0xc5), put1(t->c, i->vl ? 0xfc : 0xf8), put1(t->c, 0x77);
}

/* ---- x87: the pointers to the last instruction and operand, which the host must not make ---- */

static void store_selector(struct tr *t, unsigned seg, s32 to)
{
    if (cpu_has(t->v, FEAT_ZERO_FCS_FDS))
        put_mov_imm32(t->c, H_RAX, 0);
    else /* movzx */
        put_rm(t->c, false, 0x0fb7, H_RAX, H_RBP, V_AT(seg) + (s32)(seg * sizeof(struct segment) + offsetof(struct segment, sel)));
    put1(t->c, 0x66);
    put_rm(t->c, false, 0x89, H_RAX, H_RBP, to);
}

void x87_note(struct tr *t, const struct insn *i)
{
    t->fip = t->off;
    t->fip_valid = true;
    if (!(i->flags & INSN_MEM) || cpu_has(t->v, FEAT_FDP_EXCPTN_ONLY))
        return;
    struct ea e;
    ea_of(t, i, &e);
    e.seg = SEG_DS; /* the offset, not the linear address */
    if (!ea_simple(t, &e)) {
        flags_spare(t);
    }
    ea_lea(t, H_RAX, &e, 0);
    put_rm(t->c, true, 0x89, H_RAX, H_RBP, V_AT(x87.fdp));
    store_selector(t, i->seg, V_AT(x87.fds));
}

void fip_flush(struct tr *t, bool valid, s32 off)
{
    if (!valid)
        return;
    put_rm(t->c, true, 0x8b, H_RAX, H_RSP, F_AT(rip));
    if (off)
        put_rm(t->c, t->wide, 0x8d, H_RAX, H_RAX, off);
    put_rm(t->c, true, 0x89, H_RAX, H_RBP, V_AT(x87.fip));
    store_selector(t, SEG_CS, V_AT(x87.fcs));
}

/* Control instructions, which leave the pointers alone. */
void emit_x87_control(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    struct ea ea;
    struct mem m;
    units_want(t, UNIT_X87);
    if (i->opcode == 0x9b) /* FWAIT: nothing is pending */
        return;
    if (!(i->flags & INSN_MEM)) { /* FNSTSW AX */
        put1(c, 0xdf), put1(c, 0xe0);
        put1(c, 0x66);
        put_rr(c, false, 0x89, H_RAX, host_of[RAX]);
        return;
    }
    unsigned ext = i->modrm >> 3 & 7;
    ea_of(t, i, &ea);
    mem_check(t, &ea, 2, ext == 7, &m);
    if (ext == 5) { /* FLDCW: with exceptions unmasked it is not for the host */
        flags_spare(t);
        put_rmx(c, false, 0x0fb7, H_RAX, m.base, m.index, m.scale, m.disp);
        put_rr(c, false, 0xf7, 2, H_RAX);   /* not eax */
        put1(c, 0xa8), put1(c, 0x3f); /* test al, 0x3f */
        slow_if(t, CC_NE);
    }
    put_op_mem(t, false, i->opcode, ext, &m);
}
