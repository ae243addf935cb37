/* Effective addresses, the TLB check, and guest registers wherever they live. */
#include "jit/tr.h"

/* ---- effective addresses ---- */

void ea_of(struct tr *t, const struct insn *i, struct ea *e)
{
    *e = (struct ea){.base = i->base, .index = i->index, .scale = i->scale, .seg = i->seg, .adsize = i->adsize, .disp = i->disp};
    if (e->base == REG_RIP)
        e->disp += (s64)(t->off + i->len);
}

bool ea_possible(bool wide, const struct insn *i)
{
    if ((i->flags & INSN_VSIB) || (!wide && i->base == REG_RIP))
        return false;
    s64 room = 1 << 16;
    return fits32(i->disp - room) && fits32(i->disp + room);
}

static bool ea_has_base(const struct tr *t, const struct ea *e) { return t->wide && (e->seg == SEG_FS || e->seg == SEG_GS); }

/* Components in host registers, one LEA. */
bool ea_simple(const struct tr *t, const struct ea *e)
{
    return (e->base == REG_NONE || in_host(e->base)) && (e->index == REG_NONE || in_host(e->index)) && !ea_has_base(t, e);
}

/* The linear address plus @extra in @dst, with no other register. Disturbs flags when !ea_simple(). */
void ea_lea(struct tr *t, unsigned dst, const struct ea *e, s64 extra)
{
    struct code_buf *c = t->c;
    bool wide = e->adsize == 8;
    s32 disp = (s32)(e->disp + extra);
    unsigned base = H_NONE, index = H_NONE, scale = e->scale;
    if (e->base == REG_RIP) {
        put_rm(c, true, 0x8b, dst, H_RSP, F_AT(rip));
        base = dst;
    } else if (e->base != REG_NONE) {
        base = host_of[e->base];
    }
    bool base_in_memory = e->base < 16 && base == H_NONE;
    if (e->index != REG_NONE) {
        index = host_of[e->index];
        if (index == H_NONE) {
            put_rm(c, true, 0x8b, dst, H_RBP, V_AT(gpr) + e->index * 8);
            index = dst;
        } else if (base_in_memory) {
            put_rm(c, true, 0x8b, dst, H_RBP, V_AT(gpr) + e->base * 8);
            base = dst;
            base_in_memory = false;
        }
    } else if (base_in_memory) {
        put_rm(c, true, 0x8b, dst, H_RBP, V_AT(gpr) + e->base * 8);
        base = dst;
        base_in_memory = false;
    }
    if (base == H_NONE && index == H_NONE) {
        put_mov_imm(c, dst, wide ? (u64)(s64)disp : (u32)disp);
    } else if (base_in_memory) {
        put_rmx(c, wide, 0x8d, dst, H_NONE, index, scale, disp);
        put_rm(c, wide, 0x03, dst, H_RBP, V_AT(gpr) + e->base * 8);
    } else if (index == H_NONE && disp == 0) {
        if (wide)
            put_mov_rr(c, dst, base);
        else
            put_rr(c, false, 0x8b, dst, base);
    } else if (base == H_NONE && scale == 0) {
        put_rm(c, wide, 0x8d, dst, index, disp);
    } else {
        put_rmx(c, wide, 0x8d, dst, base, index, scale, disp);
    }
    if (ea_has_base(t, e))
        put_rm(c, true, 0x03, dst, H_RBP, V_AT(seg_base) + e->seg * 8);
}

/* ---- memory ---- */

/*
 * What the TLB said last is kept in a cell for each place in translated code (struct cell): most go to the same
 * page for a long time. The cell is asked first; that takes fewer instructions than the TLB, and the host address
 * does not wait for them.
 */

u32 gprs_written(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    u32 set = 0;
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        if (!(o->access & 2))
            continue;
        if (o->kind == OPND_GPR_REG)
            set |= BIT(o->size == 1 ? i->reg8 / 8u : i->reg);
        else if (o->kind == OPND_GPR_OP || (o->kind == OPND_GPR_RM && !(i->flags & INSN_MEM)))
            set |= BIT(o->size == 1 ? i->rm8 / 8u : i->rm);
        else if (o->kind == OPND_GPR_VVVV)
            set |= BIT(i->vvvv);
        else if (o->kind == OPND_GPR_FIXED)
            set |= BIT(o->fixed);
    }
    return set;
}

/* Whether the last branch leads to the start. */
void loop_find(struct tr *t, unsigned end)
{
    const struct insn *last = &t->b->insn[end - 1];
    const s32 *off = t->q->off;
    s64 next = (off ? off[end - 1] : (s64)t->b->bytes - last->len) + last->len;
    enum kind k = t->kinds[end - 1];
    if (t->q->region || (k != K_JCC && k != K_JMP) || next + (s64)last->imm != 0)
        return;
    t->loops = true;
    for (unsigned n = 0; n < end; n++)
        t->calls |= t->kinds[n] == K_CALL;
}

#define CELL_AT(n, field) (V_AT(cell) + (s32)((n) * sizeof(struct cell) + offsetof(struct cell, field)))

void cell_addend(struct tr *t, unsigned cell) { put_rm(t->c, true, 0x8b, H_RCX, H_RBP, CELL_AT(cell, addend)); }

/* A cell for a place; @set of the privilege. */
static unsigned cell_for(struct tr *t, const struct ea *e, bool write, bool stack)
{
    unsigned set = t->b->mode >> 4 & 1, first = set * CELLS;
    if (stack)
        return first + (write ? CELL_STACK_WRITE : CELL_STACK);
    if (ea_has_base(t, e))
        return first + (write ? CELL_SEGMENT_WRITE : CELL_SEGMENT);
    u32 *next = &t->j->next_cell[set];
    if (*next < CELL_FIRST || *next >= CELLS)
        *next = CELL_FIRST;
    return first + (*next)++;
}

void tlb_ask(struct tr *t, unsigned size, bool write)
{
    struct code_buf *c = t->c;
    put_rm(c, true, 0x8d, H_RCX, H_RAX, (s32)size - 1); /* the last byte: if it is in the page of the tag, so is the first */
    put_rr(c, false, 0xc1, 5, H_RAX), put1(c, PAGE_SHIFT - 5);
    put_alu_imm(c, false, 4, H_RAX, (TLB_SIZE - 1) << 5);
    put_rm(c, true, 0x03, H_RAX, H_RBP, V_AT(tlb_now));
    put_alu_imm(c, true, 4, H_RCX, -(s32)PAGE_SIZE);
    put_rm(c, true, 0x3b, H_RCX, H_RAX, write ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read));
}

static struct miss *miss_new(struct tr *t)
{
    if (t->nmiss == ARRAY_SIZE(t->miss)) {
        t->c->full = true;
        return &t->miss[0];
    }
    return &t->miss[t->nmiss++];
}

/* RCX is an address: on, if the cell grants the access of @size bytes there. RCX is the addend then, or the host's address. */
static void ask_cell(struct tr *t, struct miss *m, unsigned cell, unsigned size, bool place)
{
    struct code_buf *c = t->c;
    s32 limit = size > 32 && size <= CELL_REACH ? CELL_AT(cell, near) : CELL_AT(cell, limit);
    put_rm(c, true, 0x2b, H_RCX, H_RBP, CELL_AT(cell, page));
    put_rm(c, true, 0x3b, H_RCX, H_RBP, limit);
    m->from[m->n++] = put_jcc(c, CC_AE);
    if (size > CELL_REACH) {
        put_alu_imm(c, true, 0, H_RCX, (s32)size - 32);
        put_rm(c, true, 0x3b, H_RCX, H_RBP, limit);
        m->from[m->n++] = put_jcc(c, CC_AE);
    }
    flags_disturb(t);
    if (place)
        put_rm(c, true, 0x03, H_RCX, H_RBP, CELL_AT(cell, host));
    else
        cell_addend(t, cell);
    m->back = c->p;
}

/* ---- alignment ---- */

static u8 align_of(const struct ea *e, const struct tr *t) { return (u8)((e->disp + t->delta[e->base]) & 63); }

static bool align_known(const struct tr *t, const struct ea *e)
{
    return t->align <= t->align_mask[e->base] && !((align_of(e, t) ^ t->align_at[e->base]) & t->align);
}

/* test r8, imm8; to the slow path */
static void test_low(struct tr *t, unsigned host)
{
    struct code_buf *c = t->c;
    if (host == H_RAX) {
        put1(c, 0xa8);
    } else {
        if (host >= 4)
            put1(c, 0x40 | host >> 3);
        put1(c, 0xf6);
        put1(c, 0xc0 | (host & 7));
    }
    put1(c, t->align);
    flags_disturb(t);
    slow_if(t, CC_NE);
}

/* The access off a base register is aligned as tr.align asks, or the slow path is taken. RAX is used. */
static void ask_aligned(struct tr *t, const struct ea *e)
{
    if (!t->align || align_known(t, e))
        return;
    flags_guard(t);
    unsigned low = host_of[e->base];
    if ((e->disp & t->align) || low == H_NONE) {
        ea_lea(t, H_RAX, e, 0);
        low = H_RAX;
    }
    test_low(t, low);
    if (t->align_sure) {
        t->align_mask[e->base] = t->align;
        t->align_at[e->base] = align_of(e, t);
    }
}

/*
 * The place is granted for the access, or the slow path is taken. RAX and RCX are used; afterwards RAX is
 * free again and RCX is part of the address in @m.
 */
void mem_check(struct tr *t, const struct ea *e, unsigned size, bool write, struct mem *m)
{
    bool flat = t->wide || (e->adsize == 4 && e->seg != SEG_CS && e->seg != SEG_FS && e->seg != SEG_GS);
    if (t->segmented || !flat) {
        t->held = t->got = 0;
        mem_check_segmented(t, e, size, write, m);
        if (t->align)
            test_low(t, H_RCX);
        return;
    }
    struct code_buf *c = t->c;
    bool wide = e->adsize == 8 && !ea_has_base(t, e), add = wide && e->base < 16 && e->index == REG_NONE, simple = wide && ea_simple(t, e);
    unsigned held = t->held;
    struct span *s = add ? span_of(t, e, size, write) : NULL;
    t->held = t->got = 0;
    if (s && s->checked && simple) {
        if (held != s->cell + 1u)
            cell_addend(t, s->cell);
        t->got = s->cell + 1u;
        *m = (struct mem){host_of[e->base], H_RCX, 0, (s32)e->disp};
        ask_aligned(t, e);
        return;
    }
    flags_guard(t);
    if (s && s->checked) {
        ask_aligned(t, e);
        reg_load(t, H_RCX, e->base);
        put_rm(c, true, 0x03, H_RCX, H_RBP, CELL_AT(s->cell, addend));
        flags_disturb(t);
        *m = (struct mem){H_RCX, H_NONE, 0, (s32)e->disp};
        return;
    }
    struct miss *x = miss_new(t);
    *x = (struct miss){.ea = *e, .size = (u16)size, .write = write};
    const struct span *other = e->base == RSP ? span_now(t, RSP) : NULL;
    bool stack = e->base == RSP && e->index == REG_NONE && !(other && other->cell % CELLS == (write ? CELL_STACK_WRITE : CELL_STACK));
    if (s) {
        x->write = s->write;
        x->ea.disp = s->lo - t->delta[e->base];
        x->size = (u16)(s->end - s->lo);
        span_exit(t, x);
        s->cell = (u16)cell_for(t, e, s->write, stack);
        s->checked = true;
        x->cell = s->cell;
    } else {
        x->cell = (u16)cell_for(t, e, write, stack);
        x->slow = slow_path(t);
    }
    ea_lea(t, H_RCX, &x->ea, 0);
    if (!add && t->align)
        test_low(t, H_RCX);
    if (simple && add) {
        t->got = s ? s->cell + 1u : 0;
        ask_cell(t, x, x->cell, x->size, false);
        *m = (struct mem){host_of[e->base], H_RCX, 0, (s32)e->disp};
        ask_aligned(t, e);
    } else if (simple && e->base < 16) { /* RCX becomes the base */
        ask_cell(t, x, x->cell, size, false);
        put_rr(c, true, 0x03, H_RCX, host_of[e->base]);
        *m = (struct mem){H_RCX, host_of[e->index], e->scale, (s32)e->disp};
    } else {
        x->place = true;
        ask_cell(t, x, x->cell, x->size, x->size <= CELL_REACH);
        if (x->size > CELL_REACH) { /* RCX has moved on */
            ea_lea(t, H_RCX, &x->ea, 0);
            put_rm(c, true, 0x03, H_RCX, H_RBP, CELL_AT(x->cell, addend));
            x->place = false;
        }
        *m = (struct mem){H_RCX, H_NONE, 0, (s32)(e->disp - x->ea.disp)};
        if (add)
            ask_aligned(t, e);
    }
}

void emit_misses(struct tr *t)
{
    struct code_buf *c = t->c;
    for (unsigned n = 0; n < t->nmiss; n++) {
        const struct miss *m = &t->miss[n];
        for (unsigned k = 0; k < m->n; k++)
            put_target(m->from[k], c->p);
        ea_lea(t, H_RAX, &m->ea, 0);
        put_mov_imm32(c, H_RCX, m->cell | (m->size - 1u) << 16);
        put_call_to(c, t->j->ask[may_refill(t)][m->write]);
        u8 *none = put_jcc(c, CC_NE);
        if (m->place) {
            ea_lea(t, H_RAX, &m->ea, 0);
            put_rr(c, true, 0x03, H_RCX, H_RAX);
        }
        put_jmp_to(c, m->back);
        if (m->slow) {
            slow_add_jump(t, m->slow, none);
        } else {
            put_target(none, c->p);
            span_leave(t, m);
        }
    }
}

/* op reg, [m] */
void put_op_mem(struct tr *t, bool w, unsigned op, unsigned reg, const struct mem *m)
{
    put_rmx(t->c, w, op, reg, m->base, m->index, m->scale, m->disp);
}
/* The address itself in RCX: for operands that RCX may take part in no other way. */
void mem_to_rcx(struct tr *t, struct mem *m)
{
    if (m->index == H_NONE && m->base == H_RCX && m->disp == 0)
        return;
    put_rmx(t->c, true, 0x8d, H_RCX, m->base, m->index, m->scale, m->disp);
    *m = (struct mem){H_RCX, H_NONE, 0, 0};
}

/* ---- guest registers ---- */

void reg_load(struct tr *t, unsigned host, unsigned r)
{
    if (in_host(r))
        put_mov_rr(t->c, host, host_of[r]);
    else
        put_rm(t->c, true, 0x8b, host, H_RBP, V_AT(gpr) + (s32)r * 8);
}
void reg_store(struct tr *t, unsigned r, unsigned host)
{
    if (in_host(r))
        put_mov_rr(t->c, host_of[r], host);
    else
        put_rm(t->c, true, 0x89, host, H_RBP, V_AT(gpr) + (s32)r * 8);
}
