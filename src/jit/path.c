/*
 * Which blocks are translated together: from a hot block along the way that execution takes, through
 * direct branches, calls and their returns. Where it may go elsewhere, the translation
 * has an exit. Inside, nothing is paid for the joints: no check of budget or attention, no update of
 * RIP, flags and cells stay known.
 */
#include "jit/tr.h"

#define DEPTH 8 /* calls on the way */

/* How often it ran before it was translated. */
static unsigned heat_of(const struct jit *j, const struct block *b) { return b->code ? j->heat : b->heat; }

/* The page at @distance from the first, if the TLB knows it; NULL: no, or too many. */
static const struct path_page *page_at(struct vcpu *v, struct path *p, s64 distance)
{
    for (unsigned n = 0; n < p->npages; n++)
        if (p->page[n].distance == distance)
            return &p->page[n];
    gva_t la = ((v->rip & PAGE_MASK) + (u64)distance * PAGE_SIZE) & v->linear_mask;
    const struct tlb_entry *e = tlb_slot(v, la);
    if (p->npages == PATH_MAX_PAGES || e->tag_exec != la)
        return NULL;
    p->page[p->npages] = (struct path_page){distance, la + e->addend};
    return &p->page[p->npages++];
}

static struct block *block_at(struct vcpu *v, const struct block *head, struct path *p, s64 delta)
{
    s64 distance = page_distance(head->host, delta);
    const struct path_page *page = page_at(v, p, distance);
    if (!page)
        return NULL;
    u64 at = (head->host + (u64)delta) & ~PAGE_MASK, host = page->host + at;
    struct block *b = block_known(v->interp, host, head->mode);
    if (b || at <= PAGE_SIZE - 15)
        return b;
    const struct path_page *next = page_at(v, p, distance + 1);
    return next ? block_known_cross(v->interp, host, next->host, head->mode) : NULL;
}

/* The successor of a conditional branch that was seen more often; the way back on a tie. */
static s64 likely_way(struct vcpu *v, const struct block *head, struct path *p, s64 fall, s64 taken)
{
    const struct jit *j = v->jit;
    const struct block *f = block_at(v, head, p, fall), *t = block_at(v, head, p, taken);
    if (!f || !t)
        return t ? taken : fall;
    unsigned hf = heat_of(j, f), ht = heat_of(j, t);
    return ht > hf || (ht == hf && taken <= 0) ? taken : fall;
}

/* Whether all that @b says relative to itself can be said in 32 bits relative to the path's start, with some room. */
static bool reaches(const struct block *b, s64 at)
{
    s64 room = 1 << 17;
    for (unsigned n = 0; n < b->n; n++)
        if (b->insn[n].base == REG_RIP && (!fits32(at + b->insn[n].disp - room) || !fits32(at + b->insn[n].disp + room)))
            return false;
    return fits32(at - room) && fits32(at + room);
}

void path_find(struct vcpu *v, struct block *head, struct path *p)
{
    bool wide = v->code_mode == CODE_64;
    s64 returns[DEPTH], at = 0;
    unsigned depth = 0;
    struct block *b = head;
    p->n = p->nblocks = 0;
    p->page[0] = (struct path_page){0, head->host & PAGE_MASK};
    p->npages = 1;
    if (head->cross)
        p->page[p->npages++] = (struct path_page){1, block_crossing(head)->next};
    for (;;) {
        s64 off = at;
        for (unsigned n = 0; n < b->n; n++) {
            p->insn[p->n] = &b->insn[n];
            p->off[p->n++] = (s32)off;
            off += b->insn[n].len;
        }
        p->near = b->near;
        p->at[p->nblocks] = (s32)at;
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
            next = likely_way(v, head, p, off, off + (s64)last->imm);
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
        for (unsigned n = 0; n < p->nblocks; n++)
            if (p->at[n] == next)
                return;
        b = block_at(v, head, p, next);
        /* What has a translation is led to: one more for each way there is would cost more than a way in and out. */
        if (!b || b->code || p->n + b->n > PATH_MAX_INSNS || p->nblocks == PATH_MAX_BLOCKS || !reaches(b, next))
            return;
        at = next;
    }
}
