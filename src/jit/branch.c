/* Control flow: links within the page, the jump cache for everything else. */
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

/*
 * To @delta bytes from the block's start, in the same page: a link. A chain needs no other check than
 * the budget and attention at the entry of the next block: the page that holds both is mapped and
 * executable as it was when the first began, since every instruction that changes a mapping makes
 * attention non-zero and the code is left behind it.
 */
void emit_link(struct tr *t, s64 delta)
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
    if (t->q->region) {
        emit_exit(t, JIT_EXIT_STOP);
        return;
    }
    struct jit *j = t->j;
    u8 *at = put_jmp(t->c);
    u32 n = at ? link_take(j) : 0;
    if (!n) {
        t->c->full = true;
        return;
    }
    put_target(at, t->c->p); /* unlinked: what follows */
    j->link[n] = (struct link){.at = at, .unlinked = t->c->p, .host = t->b->host + (u64)delta, .from = t->q->head, .next_out = t->links->out};
    t->links->out = n;
    emit_exit(t, JIT_EXIT_LINK | n << 4);
}

/* The code of the block at the linear address in RCX, in RAX; else the slow path. RCX stays. */
static void emit_lookup(struct tr *t)
{
    struct code_buf *c = t->c;
    if (t->q->region) {
        put_mov_imm(c, H_RAX, 0);
        return;
    }
    put_rr(c, false, 0x8b, H_RAX, H_RCX);
    put_alu_imm(c, false, 4, H_RAX, (1 << JUMP_CACHE_BITS) - 1);
    put_rr(c, false, 0xc1, 4, H_RAX), put1(c, 4);
    put_rm(c, true, 0x03, H_RAX, H_RSP, F_AT(hints));
    put_rm(c, true, 0x39, H_RCX, H_RAX, offsetof(struct jump_cache_entry, rip));
    slow_if(t, CC_NE);
    put_rm(c, true, 0x8b, H_RAX, H_RAX, offsetof(struct jump_cache_entry, block));
    put_rm(c, false, 0x81, 7, H_RAX, offsetof(struct block, mode));
    put4(c, t->b->mode);
    slow_if(t, CC_NE);
    put_rm(c, true, 0x8b, H_RAX, H_RAX, offsetof(struct block, code));
    put_rr(c, true, 0x85, H_RAX, H_RAX);
    slow_if(t, CC_E);
}
_Static_assert(sizeof(struct jump_cache_entry) == 16, "emit_lookup() scales by it");

/* To the code in RAX, for the address in RCX. */
static void emit_enter(struct tr *t)
{
    put_rm(t->c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
    if (t->q->region)
        emit_exit(t, JIT_EXIT_STOP);
    else
        put1(t->c, 0xff), put1(t->c, 0xe0); /* jmp rax */
}

/* RCX = the address @delta bytes from the block's start. */
void rip_to_rcx(struct tr *t, s64 delta)
{
    put_rm(t->c, true, 0x8b, H_RCX, H_RSP, F_AT(rip));
    put_rm(t->c, t->wide, 0x8d, H_RCX, H_RCX, (s32)delta);
}

/* A branch whose slow path leaves translated code with what the body said. */
void slow_leaves(struct tr *t, enum jit_exit reason)
{
    if (t->cur)
        t->cur->leave = (u8)(reason + 1);
    t->cur = NULL;
}

void emit_jump(struct tr *t, s64 delta)
{
    if (in_page(t->b, delta)) {
        emit_link(t, delta);
        return;
    }
    rip_to_rcx(t, delta);
    emit_lookup(t);
    emit_enter(t);
}

void emit_jcc(struct tr *t, const struct insn *i)
{
    s64 next = t->off + i->len, taken = next + (s64)i->imm;
    flags_want(t);
    flags_keep(t);
    u8 *at = put_jcc(t->c, i->opcode & 15);
    emit_jump(t, next);
    put_target(at, t->c->p);
    emit_jump(t, taken);
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
    struct code_buf *c = t->c;
    s64 target = t->off + i->len + (s64)i->imm;
    flags_keep(t);
    if (in_page(t->b, target)) {
        emit_call_end(t, i);
        emit_link(t, target);
        slow_leaves(t, JIT_EXIT_LOOKUP);
        return;
    }
    rip_to_rcx(t, target);
    emit_lookup(t);
    flags_disturb(t);
    put_rm(c, true, 0x89, H_RAX, H_RSP, F_AT(temp));
    emit_call_end(t, i);
    rip_to_rcx(t, target);
    put_rm(c, true, 0x8b, H_RAX, H_RSP, F_AT(temp));
    emit_enter(t);
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
    put_rm(c, true, 0x89, H_RAX, H_RSP, F_AT(temp));
    put_rm(c, true, 0x89, H_RCX, H_RSP, F_AT(temp2));
    emit_call_end(t, i);
    put_rm(c, true, 0x8b, H_RCX, H_RSP, F_AT(temp2));
    put_rm(c, true, 0x8b, H_RAX, H_RSP, F_AT(temp));
    emit_enter(t);
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
    struct slow misses = {0}, *cur = t->cur;
    put_rm(c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
    if (!t->q->region && !t->segmented) {
        t->cur = &misses;
        emit_lookup(t);
        put1(c, 0xff), put1(c, 0xe0); /* jmp rax */
        t->cur = cur;
        for (unsigned n = 0; n < misses.n; n++)
            put_target(misses.from[n], c->p);
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
                                             .save_flags = t->flags == FL_HOST, .fip_valid = t->fip_valid, .fip = t->fip};
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
        left_add(t, x->idx);
        if (in_page(t->b, x->delta)) {
            emit_link(t, x->delta);
        } else {
            rip_to_rcx(t, x->delta);
            emit_goto(t);
        }
    }
}
