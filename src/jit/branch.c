/* Control flow: links between translations, with a guard between pages, and the jump cache for what is known only now. */
#include "jit/tr.h"

/* frame.rip += delta; flags are disturbed. */
void rip_add(struct tr *t, s64 delta)
{
    if (delta)
        put_alu_imm_mem(t->c, t->wide, 0, H_RSP, F_AT(rip), (s32)delta);
}

/* Budget and attention. */
void put_entry(struct tr *t, u8 **from_budget, u8 **from_attention)
{
    put_alu_imm_mem(t->c, true, 5, H_RSP, F_AT(left), (s32)t->b->n);
    *from_budget = put_jcc(t->c, CC_S);
    put_alu_imm_mem(t->c, false, 7, H_RBP, V_AT(attention), 0);
    *from_attention = put_jcc(t->c, CC_NE);
}

/* RCX = the address @delta bytes from the block's start. */
static void rcx_move(struct tr *t, s64 delta)
{
    for (s64 part; delta; delta -= part) {
        part = delta > INT32_MAX ? INT32_MAX : delta < INT32_MIN ? INT32_MIN : delta;
        put_rm(t->c, t->wide, 0x8d, H_RCX, H_RCX, (s32)part);
    }
}
void rip_to_rcx(struct tr *t, s64 delta)
{
    put_rm(t->c, true, 0x8b, H_RCX, H_RSP, F_AT(rip));
    rcx_move(t, delta);
}

/* ---- links ---- */

/* Where the byte at @delta is in host memory, if that is known: @pages of the path are. Else 0. */
static u64 host_at(const struct tr *t, s64 delta, u32 pages)
{
    if (in_page(t->b, delta))
        return t->b->host + (u64)delta;
    const struct path *p = t->q->path;
    s64 distance = page_distance(t->b->host, delta);
    for (unsigned n = 0; p && n < p->npages; n++)
        if (p->page[n].distance == distance && pages & BIT(n))
            return p->page[n].host + ((t->b->host + (u64)delta) & ~PAGE_MASK);
    return 0;
}

/*
 * To @delta bytes from the block's start, where @host is: a link. A chain needs no other check than
 * the budget and attention at the entry of the next block: the page that holds both is mapped and
 * executable as it was when the first began, since every instruction that changes a mapping makes
 * attention non-zero and the code is left behind it.
 */
static void emit_link(struct tr *t, s64 delta, u64 host)
{
    if (delta == 0 && !t->q->region) {
        if (t->body && t->nagain + 2 <= ARRAY_SIZE(t->again)) {
            put_entry(t, &t->again[t->nagain], &t->again[t->nagain + 1]);
            t->nagain += 2;
            put_jmp_to(t->c, t->body);
        } else {
            put_jmp_to(t->c, t->entry);
        }
        return;
    }
    rip_add(t, delta);
    struct jit *j = t->j;
    u8 *at = put_jmp(t->c);
    u32 n = at ? link_take(j) : 0;
    if (!n) {
        t->c->full = true;
        return;
    }
    put_target(at, t->c->p); /* unlinked: what follows */
    j->link[n] = (struct link){.at = at, .unlinked = t->c->p, .host = host, .from = t->q->head, .next_out = t->links->out};
    t->links->out = n;
    emit_exit(t, JIT_EXIT_LINK | n << 4);
}

void emit_link_in_page(struct tr *t, s64 delta)
{
    if (t->q->region) {
        rip_add(t, delta);
        emit_exit(t, JIT_EXIT_STOP);
    } else {
        emit_link(t, delta, t->b->host + (u64)delta);
    }
}

/* ---- guards ---- */

/* op reg, [data]: what lies near the arena is reached from RIP. */
static void put_data(struct tr *t, unsigned op, unsigned reg, const void *data)
{
    struct code_buf *c = t->c;
    put_rex(c, true, reg, 0, 0);
    put_opcode(c, op);
    put1(c, (reg & 7) << 3 | 5);
    put4(c, (u32)((const u8 *)data - (t->j->rx + (c->p + 4 - t->j->rw))));
}

/* Is the page at @distance from the first where @host says? If not, jumps to a site, which is returned; NULL: no room. */
static struct guard_site *emit_guard(struct tr *t, s64 distance, u64 host, s32 off)
{
    struct code_buf *c = t->c;
    struct guard *g = t->nguard < ARRAY_SIZE(t->guard) ? guard_take(t->j) : NULL;
    if (!g) {
        c->full = true;
        return NULL;
    }
    u64 page = (u64)distance * PAGE_SIZE - (t->b->host & ~PAGE_MASK);
    *g = (struct guard){.rip = CODE_GUARD_NONE, .page = page, .host = host, .from = page - (u64)(s64)off};
    struct guard_site *s = &t->guard[t->nguard++];
    *s = (struct guard_site){.guard = g, .off = off, .idx = t->idx, .fip_valid = t->fip_valid, .fip = t->fip};
    put_rm(c, true, 0x8b, H_RCX, H_RSP, F_AT(rip));
    put_data(t, 0x3b, H_RCX, &g->rip);
    s->from = put_jcc(c, CC_NE);
    s->back = c->p;
    return s;
}

void emit_page_guards(struct tr *t, const struct insn *i)
{
    const struct path *p = t->q->path;
    for (s32 off = t->off; p && off < t->off + i->len; off += i->len - 1) {
        s64 distance = page_distance(t->b->host, off);
        unsigned n = 0;
        while (n < p->npages && p->page[n].distance != distance)
            n++;
        if (n == p->npages) {
            t->c->full = true;
            return;
        }
        if (!(t->pages & BIT(n))) {
            flags_spare(t);
            struct guard_site *s = emit_guard(t, distance, p->page[n].host, t->off);
            if (!s)
                return;
            s->recipe = t->flags == FL_MEMORY ? (struct recipe){.op = AGAIN_NONE} : t->recipe;
            t->pages |= BIT(n);
        }
        if (i->len == 1)
            return;
    }
}

/* To a page that is not known: the guard first, so that nothing has happened if the branch at @off has to be left to its body. */
static struct guard_site *far_begin(struct tr *t, s64 delta, unsigned idx, s32 off, bool branch)
{
    struct jit *j = t->j;
    u32 n = link_take(j);
    struct guard_site *s = n ? emit_guard(t, page_distance(t->b->host, delta), 0, off) : NULL;
    if (!s) {
        t->c->full = true;
        return NULL;
    }
    s->link = n;
    s->idx = idx;
    s->branch = branch;
    s->delta = delta;
    s->fip_valid = false;
    j->link[n] = (struct link){.host = (t->b->host + (u64)delta) & ~PAGE_MASK, .guard = s->guard, .from = t->q->head, .next_out = t->links->out};
    t->links->out = n;
    return s;
}

/* RCX is frame.rip. */
static void far_end(struct tr *t, struct guard_site *s)
{
    if (!s)
        return;
    left_add(t, s->idx);
    rcx_move(t, s->delta);
    put_rm(t->c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
    s->unlinked = t->j->link[s->link].at = put_jmp(t->c);
}

void emit_guard_sites(struct tr *t)
{
    struct code_buf *c = t->c;
    for (unsigned n = 0; n < t->nguard; n++) {
        const struct guard_site *s = &t->guard[n];
        put_target(s->from, c->p);
        put_data(t, 0x8d, H_RAX, s->guard);
        put_call_to(c, t->j->guard_ask);
        u8 *elsewhere = put_jcc(c, CC_NE);
        if (s->link)
            put_rm(c, true, 0x8b, H_RCX, H_RSP, F_AT(rip));
        put_jmp_to(c, s->back);
        put_target(elsewhere, c->p);
        if (!s->link) {
            if (s->recipe.op != AGAIN_NONE) {
                flags_again(t, &s->recipe);
                flags_save(t);
            }
            fip_flush(t, s->fip_valid, s->fip);
            left_add(t, s->idx - 1);
            rip_add(t, s->off);
            emit_exit(t, JIT_EXIT_GUARD | (u32)(s->guard - t->j->guard) << 4);
            continue;
        }
        if (s->branch) {
            emit_body_call(t, s->idx, s->off);
            put_rm(c, true, 0x8b, H_RCX, H_RBP, V_AT(next_rip));
        } else {
            rip_to_rcx(t, s->delta);
        }
        put_rm(c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
        left_add(t, s->idx);
        put_target(s->unlinked, c->p);
        t->j->link[s->link].unlinked = c->p;
        emit_exit(t, JIT_EXIT_LINK | s->link << 4);
    }
}

/* ---- the jump cache ---- */

/* The entry of the jump cache for the linear address in RCX, in RAX; else the slow path. RCX stays. */
static void emit_lookup(struct tr *t)
{
    struct code_buf *c = t->c;
    if (t->q->region)
        return;
    put_rr(c, false, 0x69, H_RAX, H_RCX), put4(c, JUMP_CODE_FACTOR); /* imul eax, ecx, x */
    put_rr(c, false, 0xc1, 5, H_RAX), put1(c, JUMP_CODE_SHIFT);
    put_rr(c, false, 0xc1, 4, H_RAX), put1(c, 5);
    put_rm(c, true, 0x03, H_RAX, H_RSP, F_AT(codes));
    put_rm(c, true, 0x3b, H_RCX, H_RAX, offsetof(struct jump_cache_entry, rip));
    u8 *from = put_jcc(c, CC_NE);
    if (t->nsecond == ARRAY_SIZE(t->second)) {
        c->full = true;
        return;
    }
    t->second[t->nsecond++] = (struct second){from, c->p, slow_path(t)};
}
_Static_assert(sizeof(struct jump_cache_entry) == 16, "emit_lookup() scales by it");

/* The first way of the jump cache has something else. */
void emit_seconds(struct tr *t)
{
    struct code_buf *c = t->c;
    for (unsigned n = 0; n < t->nsecond; n++) {
        const struct second *s = &t->second[n];
        put_target(s->from, c->p);
        put_alu_imm(c, true, 0, H_RAX, sizeof(struct jump_cache_entry));
        put_rm(c, true, 0x3b, H_RCX, H_RAX, offsetof(struct jump_cache_entry, rip));
        slow_add(t, s->slow, CC_NE);
        put_jmp_to(c, s->back);
    }
}

/* To the code of the entry in RAX, for the address in RCX. */
static void emit_enter(struct tr *t)
{
    put_rm(t->c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
    if (t->q->region)
        emit_exit(t, JIT_EXIT_STOP);
    else
        put_rm(t->c, false, 0xff, 4, H_RAX, offsetof(struct jump_cache_entry, block)); /* jmp [rax + 8] */
}

/* A branch whose slow path leaves translated code with what the body said. */
void slow_leaves(struct tr *t, enum jit_exit reason)
{
    if (t->cur)
        t->cur->leave = reason + 1u;
    t->cur = NULL;
}

void emit_jump(struct tr *t, s64 delta, bool branch)
{
    if (t->q->region) {
        rip_to_rcx(t, delta);
        emit_enter(t);
        return;
    }
    u64 host = host_at(t, delta, t->pages);
    if (host)
        emit_link(t, delta, host);
    else
        far_end(t, far_begin(t, delta, t->idx, t->off, branch));
}

void emit_jcc(struct tr *t, const struct insn *i)
{
    s64 next = t->off + i->len, taken = next + (s64)i->imm;
    flags_want(t);
    flags_keep(t);
    u8 *at = put_jcc(t->c, i->opcode & 15);
    emit_jump(t, next, true);
    put_target(at, t->c->p);
    emit_jump(t, taken, true);
    slow_leaves(t, JIT_EXIT_LOOKUP);
}

/* Pushes the return address; the code to go to is in frame.temp, its address in frame.temp2. */
static void emit_call_end(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    struct ea e = stack_ea(t, RSP, -(s64)word(t));
    struct mem m;
    mem_check(t, &e, word(t), true, &m);
    put_rm(c, true, 0x8b, H_RAX, H_RSP, F_AT(rip));
    put_rm(c, t->wide, 0x8d, H_RAX, H_RAX, (s32)(t->off + i->len));
    put_op_mem(t, t->wide, 0x89, H_RAX, &m);
    stack_move(t, -(s32)word(t));
}

void emit_call_rel(struct tr *t, const struct insn *i)
{
    s64 target = t->off + i->len + (s64)i->imm;
    flags_keep(t);
    if (t->q->region || host_at(t, target, t->pages)) {
        emit_call_end(t, i);
        emit_jump(t, target, true);
    } else {
        struct guard_site *s = far_begin(t, target, t->idx, t->off, true);
        flags_disturb(t);
        emit_call_end(t, i);
        put_rm(t->c, true, 0x8b, H_RCX, H_RSP, F_AT(rip));
        far_end(t, s);
    }
    slow_leaves(t, JIT_EXIT_LOOKUP);
}

/* The target of JMP or CALL r/m in RCX. */
static void emit_indirect_target(struct tr *t, const struct insn *i)
{
    flags_keep(t);
    if (i->flags & INSN_MEM) {
        struct ea e;
        struct mem m;
        ea_of(t, i, &e);
        mem_check(t, &e, word(t), false, &m);
        put_op_mem(t, t->wide, 0x8b, H_RCX, &m);
    } else if (t->wide) {
        reg_load(t, H_RCX, i->rm);
    } else {
        put_rr(t->c, false, 0x8b, H_RCX, host_of[i->rm]);
    }
}

void emit_jmp_ind(struct tr *t, const struct insn *i)
{
    emit_indirect_target(t, i);
    emit_lookup(t);
    emit_enter(t);
    slow_leaves(t, JIT_EXIT_LOOKUP);
}

void emit_call_ind(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    emit_indirect_target(t, i);
    emit_lookup(t);
    flags_disturb(t);
    put_rm(c, true, 0x89, H_RCX, H_RSP, F_AT(temp2));
    if (!t->q->region) {
        put_rm(c, true, 0x8b, H_RAX, H_RAX, offsetof(struct jump_cache_entry, block));
        put_rm(c, true, 0x89, H_RAX, H_RSP, F_AT(temp));
    }
    emit_call_end(t, i);
    put_rm(c, true, 0x8b, H_RCX, H_RSP, F_AT(temp2));
    put_rm(c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
    if (t->q->region)
        emit_exit(t, JIT_EXIT_STOP);
    else
        put_rm(c, false, 0xff, 4, H_RSP, F_AT(temp)); /* jmp [rsp + temp] */
    slow_leaves(t, JIT_EXIT_LOOKUP);
}

void emit_ret(struct tr *t, const struct insn *i)
{
    struct ea e = stack_ea(t, RSP, 0);
    struct mem m;
    flags_keep(t);
    mem_check(t, &e, word(t), false, &m);
    put_op_mem(t, t->wide, 0x8b, H_RCX, &m);
    emit_lookup(t);
    stack_move(t, (s32)(word(t) + (i->opcode == 0xc2 ? (u16)i->imm : 0)));
    emit_enter(t);
    slow_leaves(t, JIT_EXIT_LOOKUP);
}

/* To the address in RCX when everything of the block has run: what is not known is left to the dispatcher. */
void emit_goto(struct tr *t)
{
    struct code_buf *c = t->c;
    put_rm(c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
    if (!t->q->region && !t->segmented) {
        struct slow misses = {0}, *cur = t->cur;
        t->cur = &misses;
        emit_lookup(t);
        put_rm(c, false, 0xff, 4, H_RAX, offsetof(struct jump_cache_entry, block));
        t->cur = cur;
        const struct second *s = &t->second[--t->nsecond];
        put_target(s->from, c->p);
        put_alu_imm(c, true, 0, H_RAX, sizeof(struct jump_cache_entry));
        put_rm(c, true, 0x3b, H_RCX, H_RAX, offsetof(struct jump_cache_entry, rip));
        put_target(put_jcc(c, CC_E), s->back);
    }
    emit_exit(t, t->q->region ? JIT_EXIT_STOP : JIT_EXIT_LOOKUP);
}

/* ---- inside a path ---- */

static void emit_jcc_along(struct tr *t, const struct insn *i)
{
    s64 fall = t->off + i->len, taken = fall + (s64)i->imm, next = t->q->off[t->idx + 1];
    if (fall == taken)
        return;
    flags_want(t);
    unsigned cc = i->opcode & 15;
    u8 *from = put_jcc(t->c, next == taken ? cc ^ 1 : cc);
    t->exit[t->nexit++] = (struct side_exit){.from = from, .delta = next == taken ? fall : taken, .idx = (u8)t->idx,
                                             .save_flags = t->flags == FL_HOST, .fip_valid = t->fip_valid, .fip = t->fip, .pages = t->pages};
}

/* To where the call on the path came from, if that is what is on the stack. */
static void emit_ret_along(struct tr *t, const struct insn *i)
{
    struct ea e = stack_ea(t, RSP, 0);
    struct mem m;
    flags_guard(t);
    mem_check(t, &e, word(t), false, &m);
    put_rm(t->c, true, 0x8b, H_RAX, H_RSP, F_AT(rip));
    put_rm(t->c, t->wide, 0x8d, H_RAX, H_RAX, t->q->off[t->idx + 1]);
    flags_disturb(t);
    put_op_mem(t, t->wide, 0x3b, H_RAX, &m);
    slow_if(t, CC_NE);
    stack_move(t, (s32)(word(t) + (i->opcode == 0xc2 ? (u16)i->imm : 0)));
    slow_leaves(t, JIT_EXIT_LOOKUP);
}

void emit_along(struct tr *t, const struct insn *i, enum kind k)
{
    switch (k) {
    case K_JCC:
        emit_jcc_along(t, i);
        break;
    case K_CALL_REL:
        flags_guard(t);
        emit_call_end(t, i);
        slow_leaves(t, JIT_EXIT_LOOKUP);
        break;
    case K_RET:
        emit_ret_along(t, i);
        break;
    default: /* JMP */
        break;
    }
}

void emit_side_exits(struct tr *t)
{
    for (unsigned n = 0; n < t->nexit; n++) {
        const struct side_exit *x = &t->exit[n];
        put_target(x->from, t->c->p);
        if (x->save_flags)
            flags_save(t);
        fip_flush(t, x->fip_valid, x->fip);
        u64 host = host_at(t, x->delta, x->pages);
        if (host) {
            left_add(t, x->idx);
            emit_link(t, x->delta, host);
        } else {
            far_end(t, far_begin(t, x->delta, x->idx, t->q->off[x->idx], true));
        }
    }
}
