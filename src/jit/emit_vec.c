/* Vector registers: in the host's of the same number from their first use to the end of the block. */
#include "cpu/borrow.h"
#include "cpu/isa/encode.h"
#include "jit/tr.h"

void vec_moves(struct tr *t, u16 set, bool load)
{
    for (unsigned n = 0; n < 16; n++)
        if (set & BIT(n)) /* movaps */
            put_rm(t->c, false, load ? 0x0f28 : 0x0f29, n, H_RBP, V_AT(vec) + (s32)(n * sizeof(union vec_reg)));
}
void vec_read(struct tr *t, unsigned n)
{
    vec_moves(t, (u16)(BIT(n) & ~t->vec_valid), true);
    t->vec_valid |= (u16)BIT(n);
}
void vec_written(struct tr *t, unsigned n)
{
    t->vec_valid |= (u16)BIT(n);
    t->vec_dirty |= (u16)BIT(n);
}
void vec_flush(struct tr *t)
{
    vec_moves(t, t->vec_dirty, false);
    t->vec_dirty = 0;
}

/* Legacy SSE: may it run, with the guest's MXCSR where that matters, and its registers in the host's. */
void vector_begin(struct tr *t, const struct insn *i, struct encode_regs *e)
{
    struct code_buf *c = t->c;
    const struct insn_row *row = insn_row(i);
    bool fp = borrow_uses_mxcsr(row);
    if (!t->simd_checked || (fp && !t->fp_checked)) {
        flags_keep(t);
        flags_disturb(t);
    }
    if (!t->simd_checked) {
        put_rm(c, false, 0xf6, 0, H_RBP, V_AT(simd_ok)), put1(c, BIT(2)); /* test byte [simd_ok], SSE */
        slow_if(t, CC_E);
        t->simd_checked = true;
    }
    if (fp && !t->fp_checked) {
        put_alu_imm_mem(c, false, 7, H_RSP, F_AT(fp), 0);
        u8 *loaded = put_jcc(c, CC_NE);
        put_call_to(c, t->j->fp);
        slow_if(t, CC_E);
        put_target(loaded, c->p);
        /* Not known for good: the slow path comes back with exceptions still unmasked. */
        t->fp_checked = false;
    }
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        bool whole = o->access == 2 && o->size == 16;
        switch (o->kind) {
        case OPND_VEC_REG:
            e->reg = i->reg & 15;
            if (!whole)
                vec_read(t, e->reg);
            break;
        case OPND_VEC_RM:
            if (i->flags & INSN_MEM)
                break;
            e->rm = i->rm & 15;
            if (!whole)
                vec_read(t, e->rm);
            break;
        case OPND_VEC_FIXED:
            vec_read(t, 0);
            break;
        }
    }
    if (row->map == 2 && (row->opcode == 0x10 || row->opcode == 0x14 || row->opcode == 0x15 || row->opcode == 0xcb))
        vec_read(t, 0); /* XMM0, whether or not the row lists it */
}

void vector_end(struct tr *t, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        if (!(o->access & 2))
            continue;
        if (o->kind == OPND_VEC_REG)
            vec_written(t, i->reg & 15);
        else if (o->kind == OPND_VEC_RM && !(i->flags & INSN_MEM))
            vec_written(t, i->rm & 15);
        else if (o->kind == OPND_VEC_FIXED)
            vec_written(t, 0);
    }
}
