/*
 * One check for many accesses: a span is what a path accesses off one base register between two loads of it. Where
 * it begins, one cell is asked for all of it; then none of the others is checked. If it does not lie in one page,
 * or is not granted, the translation is left for the one that begins with that instruction, which is checked by itself
 * there: no span begins with a translation.
 *
 * A slow path calls C, which may take a grant back: if it did, the translation is left behind it.
 */
#include "jit/tr.h"

#define REACH 1024
#define FAR (1 << 20)

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

static void step(struct tr *t, const struct insn *i, enum kind k, void (*lost)(struct tr *t, unsigned r))
{
    for (u32 may = gprs_changed(i, k); may; may &= may - 1) {
        unsigned r = (unsigned)__builtin_ctz(may);
        s64 by;
        unsigned change = change_of(t, i, k, r, &by);
        if (change == 1) {
            t->delta[r] += by;
        } else if (change == 2) {
            t->delta[r] = 0;
            lost(t, r);
        }
    }
    if (k == K_CALL)
        for (unsigned r = 0; r < 16; r++)
            lost(t, r);
}

static void forget(struct tr *t, unsigned r)
{
    t->span_now[r] = 0;
    t->align_mask[r] = 0;
}

void spans_step(struct tr *t, const struct insn *i, enum kind k) { step(t, i, k, forget); }

/* ---- where they are ---- */

/* Returns the number of the span that the access belongs to, or 0. */
static unsigned note(struct tr *t, unsigned n, unsigned r, s64 disp, unsigned size, bool write, unsigned straight)
{
    if (!size || n == 0)
        return 0;
    s64 at = disp + t->delta[r], end = at + size;
    if (at < -FAR || end > FAR)
        return 0;
    struct span *s = t->span_now[r] ? &t->span[t->span_now[r] - 1] : NULL;
    if (s && (at < s->end - REACH || end > s->lo + REACH))
        return 0;
    /* What is written for sure is asked for at once; else a write begins another span. */
    if (s && write && !s->write) {
        if (s->first >= straight)
            s->write = true;
        else
            s = NULL;
    }
    if (!s) {
        if (t->nspans == ARRAY_SIZE(t->span))
            return 0;
        s = &t->span[t->nspans++];
        *s = (struct span){.reg = (u8)r, .first = (u8)n, .lo = (s32)at, .end = (s32)end, .write = write};
        t->span_now[r] = (u8)t->nspans;
    }
    s->lo = at < s->lo ? (s32)at : s->lo;
    s->end = end > s->end ? (s32)end : s->end;
    s->last = (u8)n;
    s->count++;
    return t->span_now[r];
}

/* The accesses of an instruction that mem_check() will be asked for; the numbers of their spans to @in. Returns how many there are. */
static unsigned note_accesses(struct tr *t, unsigned n, const struct insn *i, enum kind k, unsigned straight, u8 in[2])
{
    unsigned count = 0;
    const struct insn_row *row = insn_row(i);
    unsigned size = word(t);
    bool memory = (i->flags & INSN_MEM) && k != K_LEA && k != K_NOP && k != K_CALL && k != K_SYSTEM && k != K_STRING;
    if (memory)
        in[count++] = 0;
    if (memory && i->base < 16 && i->index == REG_NONE && i->adsize == 8 && i->seg != SEG_FS && i->seg != SEG_GS) {
        bool write = k == K_CMPXCHG;
        unsigned bytes = size;
        for (unsigned o = 0; o < row->nopnd; o++) {
            unsigned kind = row->opnd[o].kind;
            if (kind == OPND_GPR_RM || kind == OPND_MEM || kind == OPND_VEC_RM || kind == OPND_MMX_RM) {
                write |= row->opnd[o].access & 2;
                bytes = operand_bytes(i, o);
            }
        }
        in[0] = (u8)note(t, n, i->base, i->disp, bytes, write, straight);
    }
    if (k == K_PUSH_REG || k == K_PUSH_IMM || k == K_PUSH_RM || k == K_CALL_REL || k == K_CALL_IND)
        in[count++] = (u8)note(t, n, RSP, -(s64)size, size, true, straight);
    else if (k == K_POP_REG || k == K_RET)
        in[count++] = (u8)note(t, n, RSP, 0, size, false, straight);
    else if (k == K_LEAVE)
        in[count++] = (u8)note(t, n, RBP, 0, size, false, straight);
    return count;
}

static void begin(struct tr *t)
{
    memset(t->delta, 0, sizeof(t->delta));
    memset(t->span_now, 0, sizeof(t->span_now));
}

/* Whether an instruction whose accesses are all checked already has no other slow path. */
static bool quiet_kind(const struct insn *i, enum kind k)
{
    switch (k) {
    case K_COPY: case K_MULTIPLY: case K_MULX:
        return !(i->flags & INSN_LOCK) && !(insn_row(i)->checks & CHK_ALIGN16) && (insn_row(i)->opcode & 0xfe) != 0x86;
    case K_PUSH_REG: case K_PUSH_IMM: case K_PUSH_RM: case K_POP_REG: case K_LEAVE: case K_CALL_REL:
        return true;
    default:
        return false;
    }
}

void spans_find(struct tr *t)
{
    unsigned straight = 0; /* nothing leaves the path between this instruction and the one in hand */
    u32 units = 0;         /* known to be loaded there */
    u8 in[PATH_MAX_INSNS][2], accesses[PATH_MAX_INSNS];
    if (t->q->region || !t->wide)
        return;
    for (unsigned n = 0; n < t->q->count; n++) {
        const struct insn *i = &t->b->insn[n];
        enum kind k = t->kinds[n];
        accesses[n] = (u8)note_accesses(t, n, i, k, straight, in[n]);
        t->quiet[n] = n && n + 1 < t->q->count && quiet_kind(i, k);
        u32 need = k == K_CALL ? 0 : jit_units_of(insn_row(i));
        if (need & ~units) {
            t->quiet[n] = false;
            units |= units_ahead(t, n);
        }
        if (k == K_CALL)
            units = 0;
        if (k == K_JCC || k == K_RET)
            straight = n + 1;
        step(t, i, k, forget);
    }
    for (unsigned n = 0; n < t->q->count; n++)
        for (unsigned a = 0; a < accesses[n]; a++) {
            const struct span *s = in[n][a] ? &t->span[in[n][a] - 1] : NULL;
            t->quiet[n] &= s && s->count > 1 && s->first < n;
        }
    begin(t);
}

/* ---- the code ---- */

static bool covers(const struct tr *t, const struct span *s, const struct ea *e, unsigned size, bool write)
{
    s64 at = e->disp + t->delta[e->base];
    return at >= s->lo && at + size <= s->end && (s->write || !write);
}

struct span *span_now(struct tr *t, unsigned r) { return t->span_now[r] ? &t->span[t->span_now[r] - 1] : NULL; }

struct span *span_of(struct tr *t, const struct ea *e, unsigned size, bool write)
{
    if (e->seg == SEG_FS || e->seg == SEG_GS)
        return NULL;
    struct span *s = span_now(t, e->base);
    if (s && covers(t, s, e, size, write))
        return s;
    for (unsigned n = t->next_span; n < t->nspans && t->span[n].first <= t->idx; n++) {
        s = &t->span[n];
        if (s->first < t->idx) {
            t->next_span = n + 1;
        } else if (s->reg == e->base && s->count > 1 && !s->checked && covers(t, s, e, size, write)) {
            t->span_now[s->reg] = (u8)(n + 1);
            return s;
        }
    }
    return NULL;
}

bool spans_ahead(const struct tr *t)
{
    for (unsigned r = 0; r < 16; r++)
        if (t->span_now[r] && t->span[t->span_now[r] - 1].last > t->idx)
            return true;
    return false;
}

void span_exit(struct tr *t, struct miss *m)
{
    bool saved = t->flags == FL_MEMORY || t->flags == FL_BOTH;
    m->recipe = saved ? (struct recipe){.op = AGAIN_NONE} : t->recipe;
    m->off = t->off;
    m->pages = t->pages;
    m->idx = (u8)t->idx;
    m->fip_valid = t->fip_valid;
    m->fip = t->fip;
}

void span_leave(struct tr *t, const struct miss *m)
{
    if (m->recipe.op != AGAIN_NONE) {
        flags_again(t, &m->recipe);
        flags_save(t);
    }
    fip_flush(t, m->fip_valid, m->fip);
    left_add(t, m->idx - 1u);
    emit_link_along(t, m->off, m->pages);
}
