/*
 * Segments that are not flat: FS, GS and CS in 32-bit code, 16-bit addresses, and all of 16-bit code.
 *
 * Of 16-bit code no segment is taken for flat: every address is offset plus base, and an access must lie in
 * the room that the segment has for it (v->seg_room, which says 0 where more than the limit decides).
 * What does not fit takes the slow path. The stack pointer is SP; stacks of 32 bits are left to the
 * interpreter, and so are paths: a translation is one block.
 *
 * IP does not wrap within the page (jit_segmented_ok()), so that links within the page need no check of
 * the CS limit. Everything else goes to the dispatcher, as the jump cache knows linear addresses only.
 */
#include "jit/tr.h"

static unsigned operand_word(const struct insn *i) { return i->opsize == 4 ? 4 : 2; }

bool jit_segmented_ok(const struct vcpu *v)
{
    if (v->stack_size != 2)
        return false;
    u64 in_page = (v->seg_base[SEG_CS] + v->rip) & ~PAGE_MASK, last = v->rip + (PAGE_SIZE - 1 - in_page);
    return v->rip >= in_page && last <= 0xffff && last <= v->seg[SEG_CS].limit;
}

/* ---- which instructions ---- */

enum kind kind_segmented(const struct jit *j, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    unsigned op = row->opcode, ext = i->modrm >> 3 & 7;
    if (row->jit == JIT_CALL || row->intercept || row->vex || (row->checks & CHK_UNITS) || (i->flags & (INSN_OWN_FN | INSN_VSIB)))
        return K_CALL;
    if (row->map == 0 && row->pp == 0) {
        if (op >= 0x50 && op <= 0x57)
            return i->rm == RSP ? K_CALL : K_PUSH_REG;
        if (op >= 0x58 && op <= 0x5f)
            return i->rm == RSP ? K_CALL : K_POP_REG;
        if (op >= 0x70 && op <= 0x7f)
            return K_JCC;
        switch (op) {
        case 0x68: case 0x6a:
            return K_PUSH_IMM;
        case 0xc2: case 0xc3:
            return K_RET;
        case 0xc9:
            return K_CALL;
        case 0xe2: /* LOOP */
            return K_JCC;
        case 0xe8:
            return K_CALL_REL;
        case 0xe9: case 0xeb:
            return K_JMP;
        case 0xff:
            if (ext == 2 || ext == 4)
                return ext == 2 ? K_CALL_IND : K_JMP_IND;
            if (ext == 6)
                return K_CALL;
            break;
        }
    }
    if (row->map == 1 && row->pp == 0 && (op & 0xf0) == 0x80)
        return K_JCC;
    /* Addresses are made here, so those of any form will do. */
    struct insn flat = *i;
    flat.adsize = 4;
    flat.seg = SEG_DS;
    enum kind k = kind_of(j, false, &flat);
    switch (k) {
    case K_NOP: case K_COPY: case K_ACCUMULATOR: case K_MOFFS: case K_COUNT: case K_LEA: case K_EXTEND: case K_XCHG: case K_CMPXCHG:
    case K_MULTIPLY: case K_DIVIDE:
        return k;
    default:
        return K_CALL;
    }
}

/* ---- memory ---- */

/* The offset in @dst. */
static void offset_to(struct tr *t, unsigned dst, const struct ea *e)
{
    ea_lea(t, dst, e, 0);
    if (e->adsize == 2)
        put_rr(t->c, false, 0x0fb7, dst, dst);
}

void mem_check_segmented(struct tr *t, const struct ea *e, unsigned size, bool write, struct mem *m)
{
    struct code_buf *c = t->c;
    flags_guard(t);
    flags_disturb(t);
    offset_to(t, H_RAX, e);
    put_rm(c, true, 0x8d, H_RCX, H_RAX, (s32)size);
    put_rm(c, true, 0x3b, H_RCX, H_RBP, V_AT(seg_room) + (s32)(write * SEG_LDTR + e->seg) * 8);
    slow_if(t, CC_A);
    put_rm(c, false, 0x03, H_RAX, H_RBP, V_AT(seg_base) + e->seg * 8); /* linear addresses wrap at 2^32 */
    put_rm(c, true, 0x89, H_RAX, H_RSP, F_AT(linear));
    tlb_ask(t, size, write);
    slow_if(t, CC_NE);
    put_rm(c, true, 0x8b, H_RCX, H_RAX, offsetof(struct tlb_entry, addend));
    put_rm(c, true, 0x03, H_RCX, H_RSP, F_AT(linear));
    *m = (struct mem){H_RCX, H_NONE, 0, 0};
}

void emit_lea_segmented(struct tr *t, const struct insn *i)
{
    struct ea e;
    ea_of(t, i, &e);
    if (!ea_simple(t, &e))
        flags_spare(t);
    offset_to(t, H_RCX, &e);
    if (i->opsize == 2)
        put1(t->c, 0x66);
    put_rr(t->c, false, 0x8b, host_of[i->reg], H_RCX);
}

/* ---- the stack ---- */

static void stack_check(struct tr *t, s64 disp, unsigned size, bool write, struct mem *m)
{
    struct ea e = {.base = RSP, .index = REG_NONE, .seg = SEG_SS, .adsize = 2, .disp = disp};
    mem_check_segmented(t, &e, size, write, m);
}
/* SP moves; the rest of ESP stays. */
static void sp_move(struct tr *t, s32 by)
{
    put1(t->c, 0x66);
    put_rm(t->c, false, 0x8d, host_of[RSP], host_of[RSP], by);
}
static void put_word_op(struct tr *t, unsigned size, unsigned op, unsigned reg, const struct mem *m)
{
    if (size == 2)
        put1(t->c, 0x66);
    put_op_mem(t, false, op, reg, m);
}

void emit_stack_segmented(struct tr *t, const struct insn *i, enum kind k)
{
    unsigned size = operand_word(i);
    struct mem m;
    if (k == K_POP_REG) {
        stack_check(t, 0, size, false, &m);
        put_word_op(t, size, 0x8b, host_of[i->rm], &m);
        sp_move(t, (s32)size);
        return;
    }
    stack_check(t, -(s64)size, size, true, &m);
    if (k == K_PUSH_IMM) {
        put_word_op(t, size, 0xc7, 0, &m);
        put1(t->c, (u8)i->imm), put1(t->c, (u8)(i->imm >> 8));
        if (size == 4)
            put1(t->c, (u8)(i->imm >> 16)), put1(t->c, (u8)(i->imm >> 24));
    } else {
        put_word_op(t, size, 0x89, host_of[i->rm], &m);
    }
    sp_move(t, -(s32)size);
}

/* ---- branches ---- */

/* RCX is the target of @i: of its operand size, and within the limit. */
static void target_check(struct tr *t, const struct insn *i)
{
    if (i->opsize == 2)
        put_rr(t->c, false, 0x0fb7, H_RCX, H_RCX);
    put_rm(t->c, false, 0x3b, H_RCX, H_RBP, V_AT(seg) + (s32)(SEG_CS * sizeof(struct segment) + offsetof(struct segment, limit)));
    slow_if(t, CC_A);
}
/* To the address in RCX. */
static void leave_to_rcx(struct tr *t)
{
    put_rm(t->c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
    emit_exit(t, t->q->region ? JIT_EXIT_STOP : JIT_EXIT_LOOKUP);
}
/* The way to what is @delta from the start; of a branch: its target has been checked, if not @check. */
static void go(struct tr *t, const struct insn *i, s64 delta, bool check)
{
    if (in_page(t->b, delta)) {
        emit_link_in_page(t, delta);
        return;
    }
    rip_to_rcx(t, delta);
    if (check)
        target_check(t, i);
    else if (i->opsize == 2)
        put_rr(t->c, false, 0x0fb7, H_RCX, H_RCX);
    leave_to_rcx(t);
}

/* Behind a branch: that IP leaves the segment is the next fetch's business. */
static void fall_through(struct tr *t, s64 delta)
{
    if (in_page(t->b, delta)) {
        emit_link_in_page(t, delta);
        return;
    }
    rip_to_rcx(t, delta);
    leave_to_rcx(t);
}

static void push_return(struct tr *t, const struct insn *i)
{
    unsigned size = operand_word(i);
    struct mem m;
    stack_check(t, -(s64)size, size, true, &m);
    put_rm(t->c, true, 0x8b, H_RAX, H_RSP, F_AT(rip));
    put_rm(t->c, false, 0x8d, H_RAX, H_RAX, (s32)(t->off + i->len));
    put_word_op(t, size, 0x89, H_RAX, &m);
    sp_move(t, -(s32)size);
}

/* The operand of JMP and CALL in RCX. */
static void indirect_target(struct tr *t, const struct insn *i)
{
    if (i->flags & INSN_MEM) {
        struct ea e;
        struct mem m;
        ea_of(t, i, &e);
        mem_check_segmented(t, &e, operand_word(i), false, &m);
        put_op_mem(t, false, i->opsize == 2 ? 0x0fb7 : 0x8b, H_RCX, &m);
    } else {
        put_rr(t->c, false, 0x8b, H_RCX, host_of[i->rm]);
    }
    target_check(t, i);
}

void emit_branch_segmented(struct tr *t, const struct insn *i, enum kind k)
{
    struct code_buf *c = t->c;
    s64 next = t->off + i->len, target = next + (s64)i->imm;
    bool loop = k == K_JCC && i->opcode == 0xe2;
    unsigned size = operand_word(i);
    struct mem m;
    u8 *at;
    if (k == K_JCC && !loop)
        flags_want(t);
    flags_keep(t);
    switch (k) {
    case K_JCC:
        if (loop) {
            flags_disturb(t);
            if (!in_page(t->b, target)) { /* a fault there must leave the count */
                rip_to_rcx(t, target);
                target_check(t, i);
            }
            put_rm(c, false, 0x8d, H_RCX, host_of[RCX], -1);
            if (i->adsize == 2)
                put1(c, 0x66);
            put_rr(c, false, 0x8b, host_of[RCX], H_RCX);
            if (i->adsize == 2)
                put1(c, 0x66);
            put_rr(c, false, 0x85, H_RCX, H_RCX);
            at = put_jcc(c, CC_NE);
        } else {
            at = put_jcc(c, i->opcode & 15);
            flags_disturb(t);
        }
        fall_through(t, next);
        put_target(at, c->p);
        go(t, i, target, !loop);
        break;
    case K_JMP:
        flags_disturb(t);
        go(t, i, target, true);
        break;
    case K_CALL_REL:
        flags_disturb(t);
        if (!in_page(t->b, target)) {
            rip_to_rcx(t, target);
            target_check(t, i);
        }
        push_return(t, i);
        go(t, i, target, false);
        break;
    case K_CALL_IND:
        flags_disturb(t);
        indirect_target(t, i);
        put_rm(c, true, 0x89, H_RCX, H_RSP, F_AT(temp));
        push_return(t, i);
        put_rm(c, true, 0x8b, H_RCX, H_RSP, F_AT(temp));
        leave_to_rcx(t);
        break;
    case K_JMP_IND:
        flags_disturb(t);
        indirect_target(t, i);
        leave_to_rcx(t);
        break;
    default: /* RET */
        flags_disturb(t);
        stack_check(t, 0, size, false, &m);
        put_op_mem(t, false, size == 2 ? 0x0fb7 : 0x8b, H_RCX, &m);
        target_check(t, i);
        sp_move(t, (s32)(size + (i->opcode == 0xc2 ? (u16)i->imm : 0)));
        leave_to_rcx(t);
        break;
    }
    slow_leaves(t, JIT_EXIT_LOOKUP);
}
