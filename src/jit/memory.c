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
 * Most accesses off one base register stay in one page for a long time. What the TLB said about that
 * page is kept in a cell of struct vcpu for each base register, once for reads and once for writes, and
 * is asked first: that takes fewer instructions, and the host address does not wait for them. A base
 * register that was just loaded -- a pointer that is being followed -- is likely to have changed its page, so
 * the TLB is asked at once, in line, and the cell filled for the accesses to come.
 */
#define STABLE (BIT(RSP) | BIT(RBP) | BIT(RBX) | BIT(R12) | BIT(R13) | BIT(R14) | BIT(R15) | BIT(CELL_SEGMENT) | BIT(CELL_RIP))

static unsigned cell_of(const struct tr *t, const struct ea *e)
{
    if (ea_has_base(t, e))
        return CELL_SEGMENT;
    return e->base == REG_RIP || e->base == REG_NONE ? (e->base == REG_NONE && e->index != REG_NONE ? e->index : CELL_RIP) : e->base;
}

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

/* A register that moves on by a little stays in its page, usually. */
static bool steps(const struct insn *i, enum kind k)
{
    const struct insn_row *row = insn_row(i);
    if (row->vex || row->map)
        return false;
    if (k == K_LEA)
        return i->base == i->reg && i->index == REG_NONE;
    unsigned ext = i->modrm >> 3 & 7;
    return k == K_COUNT || ((row->opcode == 0x81 || row->opcode == 0x83) && (ext == 0 || ext == 5)) ||
           (row->opcode == 0xff && ext < 2) || row->opcode == 0x01 || row->opcode == 0x03;
}

/* Loops: the base registers that keep their pages from one round to the next. */
void cells_of_loop(struct tr *t, unsigned end)
{
    const struct insn *last = &t->b->insn[end - 1];
    const s32 *off = t->q->off;
    s64 next = (off ? off[end - 1] : (s64)t->b->bytes - last->len) + last->len;
    enum kind k = t->kinds[end - 1];
    if (t->q->region || (k != K_JCC && k != K_JMP) || next + (s64)last->imm != 0)
        return;
    t->loops = true;
    t->steady = 0xffff;
    for (unsigned n = 0; n < end; n++) {
        const struct insn *i = &t->b->insn[n];
        enum kind way = t->kinds[n];
        t->calls |= way == K_CALL;
        if (!steps(i, way))
            t->steady &= ~gprs_written(i);
    }
}

void cells_after(struct tr *t, const struct insn *i, enum kind k)
{
    if (k == K_CALL)
        t->cells = 0;
    else if (!steps(i, k))
        t->cells &= ~gprs_written(i);
}

/* Whether the next accesses off @base, before it is loaded anew, are of the same kind. */
static bool used_again(const struct tr *t, unsigned base, bool write)
{
    const struct insn *i = t->i;
    for (unsigned n = t->idx; n < t->q->first + t->q->count; n++, i++) {
        const struct insn_row *row = insn_row(i);
        enum kind k = t->kinds[n];
        if (n > t->idx && (i->flags & INSN_MEM) && i->base == base && k != K_LEA && k != K_NOP) {
            for (unsigned o = 0; o < row->nopnd; o++) {
                unsigned kind = row->opnd[o].kind;
                if ((kind == OPND_GPR_RM || kind == OPND_MEM || kind == OPND_VEC_RM || kind == OPND_MMX_RM) &&
                    !(row->opnd[o].access & 2) == !write)
                    return true;
            }
        }
        if (k == K_CALL || (!steps(i, k) && gprs_written(i) & BIT(base)))
            return false;
    }
    return false;
}

void tlb_ask(struct tr *t, unsigned size, bool write)
{
    struct code_buf *c = t->c;
    put_rm(c, true, 0x8d, H_RCX, H_RAX, (s32)size - 1);
    put_rr(c, false, 0xc1, 5, H_RAX), put1(c, PAGE_SHIFT - 5); /* shr eax, 7 */
    put_alu_imm(c, false, 4, H_RAX, (TLB_SIZE - 1) << 5);
    put_rm(c, true, 0x03, H_RAX, H_RBP, V_AT(tlb_now));
    put_alu_imm(c, true, 4, H_RCX, -(s32)PAGE_SIZE);
    put_rm(c, true, 0x3b, H_RCX, H_RAX, write ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read));
}
void cell_fill(struct tr *t, unsigned cell)
{
    struct code_buf *c = t->c;
    put_rm(c, true, 0x89, H_RCX, H_RBP, V_AT(cell_page) + (s32)cell * 8);
    put_rm(c, true, 0x8b, H_RCX, H_RAX, offsetof(struct tlb_entry, addend));
    put_rm(c, true, 0x89, H_RCX, H_RBP, V_AT(cell_addend) + (s32)cell * 8);
    put_rm(c, true, 0xc7, 0, H_RBP, V_AT(cell_limit) + (s32)cell * 8);
    put4(c, CELL_LIMIT);
}

/*
 * The place is granted for the access, or the slow path is taken. RAX and RCX are used; afterwards RAX is
 * free again and RCX is part of the address in @m.
 */
void mem_check(struct tr *t, const struct ea *e, unsigned size, bool write, struct mem *m)
{
    bool flat = t->wide || (e->adsize == 4 && e->seg != SEG_CS && e->seg != SEG_FS && e->seg != SEG_GS);
    if (t->segmented || !flat) {
        mem_check_segmented(t, e, size, write, m);
        return;
    }
    struct code_buf *c = t->c;
    unsigned base = cell_of(t, e), cell = base + (write ? CELL_WRITE : 0);
    bool add = ea_simple(t, e) && e->adsize == 8 && e->base < 16 && e->index == REG_NONE;
    if (groups_cover(t, e, write, &cell)) {
        put_rm(c, true, 0x8b, H_RCX, H_RBP, V_AT(cell_addend) + (s32)cell * 8);
        *m = (struct mem){host_of[e->base], H_RCX, (s32)e->disp};
        return;
    }
    bool taken = t->groups && base < 16 && (t->groups->valid & BIT(base)); /* the cell is a group's: not to be filled */
    cell = base + (write ? CELL_WRITE : 0);
    flags_guard(t);
    if (!taken && (STABLE | t->cells | t->steady) & BIT(base)) {
        if (!add) {
            ea_lea(t, H_RAX, e, 0);
            put_mov_rr(c, H_RCX, H_RAX);
        } else {
            ea_lea(t, H_RCX, e, 0);
        }
        put_rm(c, true, 0x2b, H_RCX, H_RBP, V_AT(cell_page) + (s32)cell * 8);
        put_rm(c, true, 0x3b, H_RCX, H_RBP, V_AT(cell_limit) + (s32)cell * 8);
        flags_disturb(t);
        u8 *from = put_jcc(c, CC_AE);
        if (t->nmiss == ARRAY_SIZE(t->miss)) {
            c->full = true;
            return;
        }
        t->miss[t->nmiss++] = (struct miss){.from = from, .back = c->p, .ea = *e, .slow = slow_path(t), .cell = (u8)cell,
                                            .size = (u8)size, .write = write, .address = !add};
        put_rm(c, true, 0x8b, H_RCX, H_RBP, V_AT(cell_addend) + (s32)cell * 8);
        if (!add)
            put_rr(c, true, 0x03, H_RCX, H_RAX);
    } else {
        ea_lea(t, H_RAX, e, 0);
        tlb_ask(t, size, write);
        flags_disturb(t);
        refill_or_slow(t, write);
        if (!taken && used_again(t, base, write)) {
            cell_fill(t, cell);
            t->cells |= BIT(base);
        } else {
            put_rm(c, true, 0x8b, H_RCX, H_RAX, offsetof(struct tlb_entry, addend));
        }
        if (!add) {
            ea_lea(t, H_RAX, e, 0);
            put_rr(c, true, 0x03, H_RCX, H_RAX);
        }
    }
    *m = add ? (struct mem){host_of[e->base], H_RCX, (s32)e->disp} : (struct mem){H_RCX, H_NONE, 0};
}

void emit_misses(struct tr *t)
{
    for (unsigned n = 0; n < t->nmiss; n++) {
        const struct miss *m = &t->miss[n];
        put_target(m->from, t->c->p);
        if (!m->address)
            ea_lea(t, H_RAX, &m->ea, 0);
        tlb_ask(t, m->size, m->write);
        refill_here(t, m->write);
        slow_add(t, m->slow, CC_NE);
        cell_fill(t, m->cell);
        if (m->address)
            ea_lea(t, H_RAX, &m->ea, 0);
        put_jmp_to(t->c, m->back);
    }
}
_Static_assert(sizeof(struct tlb_entry) == 32, "mem_check() scales by it");

/* op reg, [m] */
void put_op_mem(struct tr *t, bool w, unsigned op, unsigned reg, const struct mem *m)
{
    put_rmx(t->c, w, op, reg, m->base, m->index, 0, m->disp);
}
/* The address itself in RCX: for operands that RCX may take part in no other way. */
void mem_to_rcx(struct tr *t, struct mem *m)
{
    if (m->index == H_NONE && m->base == H_RCX && m->disp == 0)
        return;
    put_rmx(t->c, true, 0x8d, H_RCX, m->base, m->index, 0, m->disp);
    *m = (struct mem){H_RCX, H_NONE, 0};
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
