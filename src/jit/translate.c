/*
 * From a decoded block to host code. Every instruction has a translation: the call of its body, with
 * all guest state in struct vcpu as the interpreter would have it. Rows of class `copy` are emitted
 * again with host registers and a checked address, rows of class `emit` have code of their own.
 *
 * The slow path of every native instruction (access not granted by the TLB, target not in the jump
 * cache, split lock) is the call of its body as well. So nothing of the guest may have changed when a
 * native sequence branches to its slow path.
 */
#include "jit/tr.h"

static u8 pack(u32 fl) { return (u8)((fl & 0xd5) | (fl & FL_OF ? 2 : 0)); }
static u32 unpack(u8 x) { return (x & 0xd5u) | (x & 2 ? (u32)FL_OF : 0); }

/* The instruction has run and written @writes. */
static void flags_written(struct tr *t, u32 writes)
{
    if (writes)
        t->flags = FL_HOST;
}

/* A 32-bit translation takes all segments but FS and GS for flat, a 16-bit one takes for granted the size of the stack: what loads one must leave it. */
static bool loads_segment(const struct tr *t, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        bool named = (o->kind == OPND_SEG_REG || o->kind == OPND_SEG_FIXED) && (o->access & 2);
        unsigned seg = o->kind == OPND_SEG_REG ? i->reg : o->fixed;
        if (named && (t->segmented ? seg != SEG_SS : seg >= SEG_FS))
            continue;
        if (named || o->size == OPSZ_P)
            return true;
    }
    return false;
}

static void emit_call_of_body(struct tr *t, const struct insn *i, bool last)
{
    struct code_buf *c = t->c;
    bool leave = !t->wide && loads_segment(t, i), far = last && !leave && !t->b->near;
    flags_keep(t);
    if (far)
        emit_body_far(t, t->idx, t->off);
    else
        emit_body_call(t, t->idx, t->off);
    t->flags = FL_MEMORY;
    t->recipe.op = AGAIN_NONE;
    t->units = 0;
    t->cells = 0;
    t->j->stats.called++;
    if (far || (!last && !leave))
        return;
    put_rm(c, true, 0x8b, H_RCX, H_RBP, V_AT(next_rip));
    if (leave) {
        put_rm(c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
        if (!last) /* fewer instructions than the entry counted */
            put_alu_imm_mem(c, true, 0, H_RSP, F_AT(left), (s32)(t->b->n - t->idx - 1));
        emit_exit(t, JIT_EXIT_FAR);
        return;
    }
    if (insn_row(i)->checks & CHK_END || i->flags & (INSN_REP | INSN_REPNE)) {
        /* A near branch, or a repeated string instruction that may not have finished. */
        emit_goto(t);
    }
}

/* True: the block ends here and control has been passed on. */
static bool emit_insn(struct tr *t, bool last)
{
    const struct insn *i = t->i;
    enum kind k = t->kinds[t->idx];
    u32 reads, writes;
    flag_effects(i, k != K_CALL, &reads, &writes);
    t->live = unpack(t->live_after[t->idx]);
    t->need = reads | (writes ? t->live & ~writes : 0);
    t->live &= ~writes; /* what a check before the write must not lose */
    t->cur = NULL;
    t->j->stats.insns++;
    bool branch = k >= K_JCC && k <= K_RET;
    emit_page_guards(t, i);
    if (t->idx == 0 && t->loops && !t->calls && !branch) {
        units_hoist(t);
        t->body = t->c->p;
    }
    if (t->idx == 0 && t->groups)
        groups_check(t, t->groups);
    flags_before(t, i, k, writes);
    if (t->segmented && branch) {
        emit_branch_segmented(t, i, k);
        return true;
    }
    if (branch && t->q->off && t->idx + 1 < t->q->count) {
        emit_along(t, i, k);
        flags_after(t, i, k, writes);
        if (t->groups)
            groups_step(t, t->groups, i, k);
        return false;
    }
    if (k == K_CALL || branch) {
        fip_flush(t, t->fip_valid, t->fip);
        t->fip_valid = false;
    }
    switch (k) {
    case K_CALL:
        emit_call_of_body(t, i, last);
        return (last && (!t->b->near || insn_row(i)->checks & CHK_END || i->flags & (INSN_REP | INSN_REPNE))) ||
               (!t->wide && loads_segment(t, i));
    case K_NOP: break;
    case K_COPY: emit_copy(t, i); break;
    case K_ACCUMULATOR: emit_accumulator(t, i); break;
    case K_MOFFS: emit_moffs(t, i); break;
    case K_COUNT: emit_count(t, i); break;
    case K_LEA: t->segmented ? emit_lea_segmented(t, i) : emit_lea(t, i); break;
    case K_EXTEND: emit_extend(t, i); break;
    case K_PUSH_REG: t->segmented ? emit_stack_segmented(t, i, k) : emit_push_reg(t, i); break;
    case K_PUSH_IMM: t->segmented ? emit_stack_segmented(t, i, k) : emit_push_imm(t, i); break;
    case K_PUSH_RM: emit_push_rm(t, i); break;
    case K_POP_REG: t->segmented ? emit_stack_segmented(t, i, k) : emit_pop_reg(t, i); break;
    case K_LEAVE: emit_leave(t); break;
    case K_JCC: emit_jcc(t, i); return true;
    case K_JMP: {
        flags_keep(t);
        emit_jump(t, t->off + i->len + (s64)i->imm, true);
        slow_leaves(t, JIT_EXIT_LOOKUP);
        return true;
    }
    case K_JMP_IND: emit_jmp_ind(t, i); return true;
    case K_CALL_REL: emit_call_rel(t, i); return true;
    case K_CALL_IND: emit_call_ind(t, i); return true;
    case K_RET: emit_ret(t, i); return true;
    case K_XCHG: emit_xchg(t, i); break;
    case K_MULTIPLY: emit_in_rax(t, i, i->opcode & 1 ? i->opsize : 1, false); break;
    case K_DIVIDE: emit_divide(t, i); break;
    case K_MULX: emit_mulx(t, i); break;
    case K_VZERO: emit_vzero(t, i); break;
    case K_X87_CONTROL: emit_x87_control(t, i); break;
    case K_CMPXCHG: emit_in_rax(t, i, i->opcode & 1 ? i->opsize : 1, true); break;
    case K_SYSTEM:
        if (!emit_system(t, i))
            writes = 0;
        break;
    case K_STRING: emit_string(t, i); break;
    }
    flags_written(t, writes);
    flags_after(t, i, k, writes);
    slow_back(t);
    cells_after(t, i, k);
    if (t->groups)
        groups_step(t, t->groups, i, k);
    return false;
}

/* Whether a native instruction has a slow path: what it may raise there shows every flag. */
static bool may_stop(const struct insn *i, enum kind k)
{
    return ((i->flags & INSN_MEM) && k != K_LEA && k != K_NOP) || (k >= K_PUSH_REG && k <= K_LEAVE) || k == K_MOFFS ||
           k == K_JCC || k == K_CALL_REL || k == K_RET || /* inside a path */
           k == K_DIVIDE || k == K_SYSTEM || k == K_STRING || jit_units_of(insn_row(i));
}

/* Whether a guard of its page may stand in front of instruction @n: where that leads elsewhere, every flag is shown. */
static bool guarded(const struct tr *t, unsigned n)
{
    const s32 *off = t->q->off;
    u64 host = t->b->host;
    return off && n && (page_distance(host, off[n]) != page_distance(host, off[n - 1]) ||
                        page_distance(host, off[n] + t->b->insn[n].len - 1) != page_distance(host, off[n]));
}

static void liveness(struct tr *t, unsigned end)
{
    u32 live = (u32)FL_ARITH;
    for (unsigned n = end; n-- > t->q->first;) {
        const struct insn *i = &t->b->insn[n];
        u32 reads, writes;
        t->live_after[n] = pack(live);
        enum kind k = t->kinds[n];
        flag_effects(i, k != K_CALL, &reads, &writes);
        live = may_stop(i, k) || guarded(t, n) ? (u32)FL_ARITH : (live & ~writes) | reads;
    }
}

/* The instructions, from t->c on; what seldom runs to @cold, if that is not NULL. */
static void emit_path(struct tr *t, struct code_buf *cold)
{
    const struct translation_request *q = t->q;
    unsigned end = q->first + q->count;
    bool ended = false;
    for (t->idx = q->first; t->idx < end && !ended; t->idx++) {
        t->i = &t->b->insn[t->idx];
        if (q->off)
            t->off = q->off[t->idx];
        ended = emit_insn(t, t->idx == end - 1 && !q->region);
        t->off += t->i->len;
    }
    if (!ended) { /* on to what follows */
        flags_keep(t);
        fip_flush(t, t->fip_valid, t->fip);
        t->cur = NULL;
        t->idx = end - 1;
        if (q->region) {
            rip_add(t, t->off);
            emit_exit(t, JIT_EXIT_STOP);
        } else if (t->segmented && !in_page(t->b, t->off)) {
            rip_to_rcx(t, t->off);
            emit_goto(t);
        } else {
            emit_jump(t, t->off, false);
        }
    }
    if (cold)
        t->c = cold;
    if (t->groups)
        groups_misses(t, t->groups);
    emit_side_exits(t);
    emit_guard_sites(t);
    emit_seconds(t);
    emit_misses(t);
    emit_refills(t);
    emit_slow_paths(t);
}

bool translate(const struct translation_request *q, struct code_buf *hot, struct code_buf *cold, struct block_links *links)
{
    struct block *b = q->b;
    struct tr t = {.c = hot, .q = q, .v = q->v, .j = q->j, .b = b, .links = links, .flags = FL_MEMORY, .pages = 1};
    struct groups groups;
    u8 *from_budget = NULL, *from_attention = NULL;
    t.entry = hot->p;
    t.wide = q->v->code_mode == CODE_64;
    if (!q->region)
        put_entry(&t, &from_budget, &from_attention);
    for (unsigned n = 0; n < q->first; n++)
        t.off += b->insn[n].len;
    t.segmented = q->v->code_mode == CODE_16;
    for (unsigned n = q->first; n < q->first + q->count; n++)
        t.kinds[n] = (u8)(t.segmented ? kind_segmented(t.j, &b->insn[n]) : kind_of(t.j, t.wide, &b->insn[n]));
    liveness(&t, q->first + q->count);
    struct tr other = t; /* the version without groups */
    if (!q->region && !t.segmented)
        cells_of_loop(&t, q->first + q->count);
    if (cold && !t.segmented && groups_find(&t, &groups))
        t.groups = &groups;
    emit_path(&t, cold);
    struct code_buf *c = t.c;
    if (!q->region) {
        put_target(from_budget, c->p);
        put_target(from_attention, c->p);
        for (unsigned n = 0; n < t.nagain; n++)
            put_target(t.again[n], c->p);
        put_alu_imm_mem(c, true, 0, H_RSP, F_AT(left), (s32)b->n);
        emit_exit(&t, JIT_EXIT_ENTRY);
    }
    if (t.groups) {
        other.c = cold;
        for (unsigned n = 0; n < groups.nother; n++)
            put_target(groups.other[n], cold->p);
        emit_path(&other, NULL);
    }
    return !c->full && !hot->full;
}
