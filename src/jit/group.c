/*
 * One check for all accesses off one base register. At the start of a path it is asked, for each base
 * register that the path uses more than once before loading it, whether the lowest and the highest of those
 * accesses lie in the page of the register's cell. Then all do, and none of them is checked again. If not,
 * the path's other version runs, in which every access is checked by itself.
 *
 * A slow path calls C, which may take a grant back: behind it the cells of the groups are looked at again.
 */
#include "jit/tr.h"

#define REACH 1024

/* How the instruction changes @r: 0 not, 1 by @by, 2 in another way. */
static unsigned change_of(const struct tr *t, const struct insn *i, enum kind k, unsigned r, s64 *by)
{
    const struct insn_row *row = insn_row(i);
    s64 size = word(t);
    *by = 0;
    switch (k) {
    case K_PUSH_REG: case K_PUSH_IMM: case K_PUSH_RM: case K_CALL_REL: case K_CALL_IND:
        *by = -size;
        return r == RSP;
    case K_POP_REG:
        *by = size;
        return r == i->rm ? 2 : r == RSP;
    case K_RET:
        *by = size + (i->opcode == 0xc2 ? (u16)i->imm : 0);
        return r == RSP;
    case K_LEAVE:
        return r == RSP || r == RBP ? 2 : 0;
    case K_XCHG:
        return r == RAX || r == i->rm ? 2 : 0;
    case K_EXTEND:
        return r == RAX || r == RDX ? 2 : 0;
    case K_ACCUMULATOR: case K_MOFFS:
        return r == RAX ? 2 : 0;
    case K_CALL:
        return 2;
    case K_SYSTEM:
        return system_change(t, i, r, by);
    case K_STRING:
        return r == RCX || r == RSI || r == RDI ? 2 : 0;
    default:
        break;
    }
    if (!(gprs_written(i) & BIT(r)))
        return k == K_MULTIPLY || k == K_DIVIDE || k == K_CMPXCHG ? (r == RAX || r == RDX ? 2 : 0) : 0;
    if (i->opsize != 8 || row->vex || row->map)
        return 2;
    if (k == K_LEA && i->base == r && i->index == REG_NONE && i->adsize == 8) {
        *by = i->disp;
        return 1;
    }
    unsigned ext = i->modrm >> 3 & 7;
    if ((row->opcode == 0x81 || row->opcode == 0x83) && (ext == 0 || ext == 5)) {
        *by = ext ? -(s64)(s32)i->imm : (s64)(s32)i->imm;
        return 1;
    }
    if (row->opcode == 0xff && ext < 2) {
        *by = ext ? -1 : 1;
        return 1;
    }
    return 2;
}

void groups_step(struct tr *t, struct groups *g, const struct insn *i, enum kind k)
{
    u32 may = g->valid & (k == K_COPY || k == K_LEA ? gprs_written(i) : k == K_JCC || k == K_JMP || k == K_NOP ? 0 : 0xffff);
    for (; may; may &= may - 1) {
        unsigned r = (unsigned)__builtin_ctz(may);
        s64 by;
        unsigned change = change_of(t, i, k, r, &by);
        if (change == 1)
            g->delta[r] += by;
        else if (change == 2)
            g->valid &= ~BIT(r);
    }
}

static void note(struct groups *g, unsigned r, s64 disp, bool write)
{
    if (!in_host(r) || !(g->valid & BIT(r)))
        return;
    s64 at = disp + g->delta[r];
    if (at < -REACH || at > REACH)
        return;
    struct group *p = &g->group[r];
    if (!p->count) {
        p->lo = p->hi = (s32)at;
    } else {
        p->lo = at < p->lo ? (s32)at : p->lo;
        p->hi = at > p->hi ? (s32)at : p->hi;
    }
    p->count++;
    p->write |= write;
}

/* The accesses of an instruction that mem_check() will be asked for. */
static void note_accesses(struct tr *t, struct groups *g, const struct insn *i, enum kind k)
{
    const struct insn_row *row = insn_row(i);
    s64 size = word(t);
    bool memory = (i->flags & INSN_MEM) && k != K_LEA && k != K_NOP && k != K_CALL;
    if (memory && i->index == REG_NONE && i->adsize == 8 && i->seg != SEG_FS && i->seg != SEG_GS) {
        bool write = k == K_CMPXCHG;
        for (unsigned n = 0; n < row->nopnd; n++) {
            unsigned kind = row->opnd[n].kind;
            if (kind == OPND_GPR_RM || kind == OPND_MEM || kind == OPND_VEC_RM || kind == OPND_MMX_RM)
                write |= row->opnd[n].access & 2;
        }
        note(g, i->base, i->disp, write);
    }
    if (k == K_PUSH_REG || k == K_PUSH_IMM || k == K_PUSH_RM || k == K_CALL_REL || k == K_CALL_IND)
        note(g, RSP, -size, true);
    else if (k == K_POP_REG || k == K_RET)
        note(g, RSP, 0, false);
    else if (k == K_LEAVE)
        note(g, RBP, 0, false);
}

bool groups_find(struct tr *t, struct groups *g)
{
    int gain = 0;
    *g = (struct groups){.valid = 0xffff};
    if (t->q->region || !t->wide)
        return false;
    for (unsigned n = 0; n < t->q->count; n++) {
        const struct insn *i = &t->b->insn[n];
        enum kind k = t->kinds[n];
        if (k == K_CALL && n + 1 < t->q->count)
            return false;
        note_accesses(t, g, i, k);
        groups_step(t, g, i, k);
    }
    g->valid = 0;
    for (unsigned r = 0; r < 16; r++) {
        struct group *p = &g->group[r];
        int saved = (int)p->count - (p->lo == p->hi ? 1 : 2);
        if (p->count < 2 || saved < 1) {
            p->count = 0;
            continue;
        }
        g->valid |= BIT(r);
        g->delta[r] = 0;
        gain += saved;
    }
    return gain >= 2;
}

static s32 limit_at(unsigned cell) { return V_AT(cell_limit) + (s32)cell * 8; }

void groups_check(struct tr *t, struct groups *g)
{
    struct code_buf *c = t->c;
    for (unsigned r = 0; r < 16; r++) {
        struct group *p = &g->group[r];
        if (!p->count)
            continue;
        p->cell = r + (p->write ? CELL_WRITE : 0);
        put_rm(c, true, 0x8d, H_RCX, host_of[r], p->lo);
        put_rm(c, true, 0x2b, H_RCX, H_RBP, V_AT(cell_page) + (s32)p->cell * 8);
        put_rm(c, true, 0x3b, H_RCX, H_RBP, limit_at(p->cell));
        p->miss = put_jcc(c, CC_AE);
        p->back = c->p;
        if (p->hi != p->lo) {
            put_alu_imm(c, true, 0, H_RCX, p->hi - p->lo);
            put_rm(c, true, 0x3b, H_RCX, H_RBP, limit_at(p->cell));
            g->other[g->nother++] = put_jcc(c, CC_AE);
        }
    }
}

void groups_misses(struct tr *t, struct groups *g)
{
    struct code_buf *c = t->c;
    for (unsigned r = 0; r < 16; r++) {
        const struct group *p = &g->group[r];
        if (!p->count)
            continue;
        put_target(p->miss, c->p);
        put_rm(c, true, 0x8d, H_RAX, host_of[r], p->lo);
        tlb_ask(t, 1, p->write);
        refill_here(t, p->write);
        g->other[g->nother++] = put_jcc(c, CC_NE);
        cell_fill(t, p->cell);
        put_rm(c, true, 0x8d, H_RCX, host_of[r], p->lo);
        put_rm(c, true, 0x2b, H_RCX, H_RBP, V_AT(cell_page) + (s32)p->cell * 8);
        put_rm(c, true, 0x3b, H_RCX, H_RBP, limit_at(p->cell));
        g->other[g->nother++] = put_jcc(c, CC_AE);
        put_jmp_to(c, p->back);
    }
}

bool groups_cover(const struct tr *t, const struct ea *e, bool write, unsigned *cell)
{
    const struct groups *g = t->groups;
    if (!g || e->base >= 16 || e->index != REG_NONE || !(g->valid & BIT(e->base)) || e->adsize != 8 || e->seg == SEG_FS || e->seg == SEG_GS)
        return false;
    const struct group *p = &g->group[e->base];
    s64 at = e->disp + g->delta[e->base];
    *cell = p->cell;
    return at >= p->lo && at <= p->hi && (p->write || !write);
}

/* Behind a body: jumps, to be set, of a cell that was forgotten. */
unsigned groups_still(struct tr *t, u32 valid, u8 **from)
{
    unsigned n = 0;
    for (unsigned r = 0; r < 16; r++) {
        if (!(valid & BIT(r)))
            continue;
        put_alu_imm_mem(t->c, true, 7, H_RBP, limit_at(t->groups->group[r].cell), 0);
        from[n++] = put_jcc(t->c, CC_E);
    }
    return n;
}
