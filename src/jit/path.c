/*
 * Which blocks are translated together: from a hot block along the way that execution takes, through
 * direct branches, calls and their returns within the page. Where it may go elsewhere, the translation
 * has an exit. Inside, nothing is paid for the joints: no check of budget or attention, no update of
 * RIP, flags and cells stay known.
 */
#include "jit/tr.h"

#define DEPTH 8 /* calls on the way */

/* How often it ran before it was translated. */
static unsigned heat_of(const struct jit *j, const struct block *b) { return b->code ? j->heat : b->heat; }

/* The successor of a conditional branch that was seen more often; the way back on a tie. */
static s64 likely_way(struct vcpu *v, const struct block *head, s64 fall, s64 taken)
{
    const struct jit *j = v->jit;
    const struct block *f = in_page(head, fall) ? block_known(v->interp, head->host + (u64)fall, head->mode) : NULL;
    const struct block *t = in_page(head, taken) ? block_known(v->interp, head->host + (u64)taken, head->mode) : NULL;
    if (!f || !t)
        return t ? taken : fall;
    unsigned hf = heat_of(j, f), ht = heat_of(j, t);
    return ht > hf || (ht == hf && taken <= 0) ? taken : fall;
}

void path_find(struct vcpu *v, struct block *head, struct path *p)
{
    bool wide = v->code_mode == CODE_64;
    s64 returns[DEPTH], at = 0;
    unsigned depth = 0;
    struct block *b = head;
    p->n = p->nblocks = 0;
    for (;;) {
        s64 off = at;
        for (unsigned n = 0; n < b->n; n++) {
            p->insn[p->n] = &b->insn[n];
            p->off[p->n++] = (s16)off;
            off += b->insn[n].len;
        }
        p->near = b->near;
        p->at[p->nblocks] = (s16)at;
        p->block[p->nblocks++] = b;
        const struct insn *last = &b->insn[b->n - 1];
        if (!b->near || v->code_mode == CODE_16)
            return;
        s64 next = off;
        switch (kind_of(v->jit, wide, last)) {
        case K_CALL:
            if (insn_row(last)->checks & CHK_END || last->flags & (INSN_REP | INSN_REPNE))
                return;
            break;
        case K_JMP:
            next = off + (s64)last->imm;
            break;
        case K_JCC:
            next = likely_way(v, head, off, off + (s64)last->imm);
            break;
        case K_CALL_REL:
            if (depth == DEPTH)
                return;
            returns[depth++] = off;
            next = off + (s64)last->imm;
            break;
        case K_RET:
            if (!depth)
                return;
            next = returns[--depth];
            break;
        case K_JMP_IND: case K_CALL_IND:
            return;
        default:
            break;
        }
        if (!in_page(head, next))
            return;
        for (unsigned n = 0; n < p->nblocks; n++)
            if (p->at[n] == next)
                return;
        b = block_known(v->interp, head->host + (u64)next, head->mode);
        if (!b || p->n + b->n > PATH_MAX_INSNS || p->nblocks == PATH_MAX_BLOCKS)
            return;
        at = next;
    }
}
