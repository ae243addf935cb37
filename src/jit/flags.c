/*
 * The guest's arithmetic flags in translated code. Liveness within the block says which matter behind
 * each instruction; behind the last all do. They stay in the host's EFLAGS while nothing disturbs them. A TLB
 * check does. Mostly the flags in front of it are only shown if the access faults, and most can be made again from
 * what the instruction left in registers (struct recipe): then nothing is done but in the slow path. The others are saved
 * (LAHF, SETO), and loaded again where an instruction needs them.
 */
#include "jit/tr.h"

/* What the instruction does to the arithmetic flags: which it reads and which it replaces, whatever they were. */
void flag_effects(const struct insn *i, bool native, u32 *reads, u32 *writes)
{
    const struct insn_row *row = insn_row(i);
    if (!native) { /* the body finds and leaves all of them in struct vcpu */
        *reads = (u32)FL_ARITH;
        *writes = 0;
        return;
    }
    u32 r = row->flags_read & FL_ARITH, w = row->flags_written & FL_ARITH, u = row->flags_undefined & FL_ARITH;
    bool plain = !row->vex && row->map == 0;
    bool shift = plain && ((row->opcode & 0xfe) == 0xc0 || (row->opcode & 0xfc) == 0xd0);
    unsigned ext = i->modrm >> 3 & 7;
    if (shift && (row->opcode & 0xfe) == 0xc0) {
        unsigned count = (unsigned)i->imm & (i->opsize == 8 ? 63 : 31);
        if (!count)
            r = w = u = 0;
        else if (ext != 2 && ext != 3)
            r = 0;
    }
    /* Undefined flags are what the host makes of them, which may be what they were. Not so in the plain
     * logical operations and shifts, which the interpreter runs without loading the flags either. */
    bool logic = plain && (row->opcode < 0x40 || row->opcode == 0x80 || row->opcode == 0x81 || row->opcode == 0x82 ||
                           row->opcode == 0x83 || row->opcode == 0x84 || row->opcode == 0x85 || row->opcode == 0xa8 ||
                           row->opcode == 0xa9 || (row->opcode >= 0xf6 && row->opcode <= 0xf7 && ext < 4));
    if (!logic && !(shift && ext >= 4))
        r |= u;
    *reads = r;
    *writes = w | u;
}

void flags_save(struct tr *t) /* RAX */
{
    struct code_buf *c = t->c;
    put1(c, 0x9f);                          /* lahf */
    put1(c, 0x0f), put1(c, 0x90), put1(c, 0xc0); /* seto al */
    put_rm(c, false, 0x89, H_RAX, H_RSP, F_AT(flags));
}
void flags_load(struct tr *t) /* RAX */
{
    struct code_buf *c = t->c;
    put_rm(c, false, 0x8b, H_RAX, H_RSP, F_AT(flags));
    put1(c, 0x04), put1(c, 0x7f); /* add al, 0x7f: OF comes back */
    put1(c, 0x9e);                /* sahf */
}
/* EFLAGS are about to be overwritten by something that is not the instruction. */
void flags_disturb(struct tr *t)
{
    if (t->flags == FL_HOST)
        t->flags = FL_NOWHERE;
    else if (t->flags == FL_BOTH)
        t->flags = FL_MEMORY;
}

/* ---- flags that are made again ---- */

/* op RAX, second operand: opcodes of the form reg, r/m. */
static void put_second(struct tr *t, unsigned op, unsigned ext, const struct recipe *r)
{
    struct code_buf *c = t->c;
    bool w = r->size == 8, byte = r->size == 1, test = op == 0x85;
    if (r->size == 2)
        put1(c, 0x66);
    if (r->b == REG_NONE) {
        unsigned group = test ? 0xf7 : r->size != 1 && r->imm == (s8)r->imm ? 0x83 : 0x81;
        put_rr(c, w, group - byte, ext, H_RAX);
        if (byte || group == 0x83)
            put1(c, (u8)r->imm);
        else if (r->size == 2)
            put1(c, (u8)r->imm), put1(c, (u8)(r->imm >> 8));
        else
            put4(c, (u32)r->imm);
    } else if (!in_host(r->b)) {
        put_rm(c, w, op - byte, H_RAX, H_RBP, V_AT(gpr) + r->b * 8);
    } else {
        if (byte && host_of[r->b] < 8) /* SIL, DIL */
            put1(c, 0x40);
        put_rr(c, w, op - byte, H_RAX, host_of[r->b]);
    }
}

void flags_again(struct tr *t, const struct recipe *r)
{
    struct code_buf *c = t->c;
    bool w = r->size == 8;
    if (r->op == AGAIN_ZERO) {
        put_rr(c, false, 0x33, H_RAX, H_RAX);
        return;
    }
    if (r->op == AGAIN_TEST && r->a == r->b && in_host(r->a) && r->size >= 4) {
        put_rr(c, w, 0x85, host_of[r->a], host_of[r->a]);
        return;
    }
    reg_load(t, H_RAX, r->a);
    switch (r->op) {
    case AGAIN_CMP:
        put_second(t, 0x3b, 7, r);
        break;
    case AGAIN_TEST:
        put_second(t, 0x85, 0, r);
        break;
    case AGAIN_ADD:
        put_second(t, 0x2b, 5, r);
        put_second(t, 0x03, 0, r);
        break;
    case AGAIN_SUB:
        put_second(t, 0x03, 0, r);
        put_second(t, 0x2b, 5, r);
        break;
    default: /* NEG */
        put_rr(c, w, 0xf7, 3, H_RAX);
        put_rr(c, w, 0xf7, 3, H_RAX);
        break;
    }
}

static bool only_again(const struct tr *t) { return t->flags == FL_NOWHERE && t->recipe.op != AGAIN_NONE; }

void flags_keep(struct tr *t)
{
    if (only_again(t)) {
        flags_again(t, &t->recipe);
        t->flags = FL_HOST;
    }
    if (t->flags == FL_HOST) {
        flags_save(t);
        t->flags = FL_BOTH;
    }
}
void flags_guard(struct tr *t)
{
    if (t->recipe.op == AGAIN_NONE)
        flags_keep(t);
}
/* Before the instruction itself, when RAX is free: the flags it needs. */
void flags_want(struct tr *t)
{
    if (!t->need || t->flags == FL_HOST || t->flags == FL_BOTH)
        return;
    if (t->recipe.op != AGAIN_NONE) {
        flags_again(t, &t->recipe);
        t->flags = t->flags == FL_MEMORY ? FL_BOTH : FL_HOST;
    } else if (t->flags == FL_MEMORY) {
        flags_load(t);
        t->flags = FL_BOTH;
    }
}
void flags_spare(struct tr *t)
{
    flags_guard(t);
    flags_disturb(t);
}

u32 gprs_changed(const struct insn *i, enum kind k)
{
    u32 written = gprs_written(i);
    switch (k) {
    case K_NOP: case K_JCC: case K_JMP: case K_JMP_IND:
        return 0;
    case K_COPY: case K_LEA: case K_MULX: case K_COUNT: case K_VZERO:
        return written;
    case K_ACCUMULATOR: case K_MOFFS: case K_X87_CONTROL:
        return i->flags & INSN_MEM ? written : written | BIT(RAX);
    case K_PUSH_REG: case K_PUSH_IMM: case K_PUSH_RM: case K_CALL_REL: case K_CALL_IND: case K_RET:
        return BIT(RSP);
    case K_POP_REG:
        return BIT(RSP) | BIT(i->rm & 15);
    case K_LEAVE:
        return BIT(RSP) | BIT(RBP);
    case K_EXTEND:
        return BIT(RAX) | BIT(RDX);
    case K_XCHG:
        return BIT(RAX) | BIT(i->rm & 15);
    case K_CMPXCHG: case K_MULTIPLY: case K_DIVIDE:
        return written | BIT(RAX) | BIT(RDX);
    default:
        return 0xffff;
    }
}

/* How the flags of @i are made again behind it. */
static struct recipe recipe_of(const struct insn *i, enum kind k, u32 writes)
{
    const struct recipe none = {.op = AGAIN_NONE};
    const struct insn_row *row = insn_row(i);
    unsigned op = row->opcode, ext = i->modrm >> 3 & 7, what;
    struct recipe r = {.size = op & 1 ? i->opsize : 1, .a = i->rm, .b = REG_NONE, .imm = (s32)i->imm};
    bool memory = i->flags & INSN_MEM;
    if (writes != (u32)FL_ARITH || row->vex || row->map || row->pp || (k != K_COPY && k != K_ACCUMULATOR))
        return none;
    if (k == K_ACCUMULATOR) {
        what = op >= 0xa8 ? 8 : op >> 3;
        r.a = RAX;
    } else if (op < 0x40 || op == 0x84 || op == 0x85) {
        what = op < 0x40 ? op >> 3 : 8;
        bool to_reg = op < 0x40 && (op & 2);
        u8 reg = r.size == 1 ? i->reg8 : i->reg, rm = r.size == 1 ? i->rm8 : i->rm;
        if (r.size == 1) {
            if ((reg & 7) || (!memory && (rm & 7)))
                return none;
            reg /= 8, rm /= 8;
        }
        r.a = to_reg ? reg : rm;
        r.b = to_reg ? rm : reg;
        if (memory) { /* the result may do */
            if (!to_reg || (what != 1 && what != 4 && what != 6))
                return none;
            r.b = REG_NONE;
        }
    } else if (op == 0x80 || op == 0x81 || op == 0x83 || op == 0xf6 || op == 0xf7) {
        if (memory)
            return none;
        if (r.size == 1) {
            if (i->rm8 & 7)
                return none;
            r.a = i->rm8 / 8;
        }
        what = op < 0xf6 ? ext : ext < 2 ? 8 : ext == 3 ? 9 : 10;
    } else {
        return none;
    }
    switch (what) {
    case 1: case 4: case 6:
        if (what == 6 && r.a == r.b) {
            r.op = AGAIN_ZERO;
            r.a = r.b = REG_NONE;
            return r;
        }
        r.op = AGAIN_TEST;
        r.b = r.a;
        return r;
    case 7: case 8:
        r.op = what == 7 ? AGAIN_CMP : AGAIN_TEST;
        return r;
    case 0: case 5:
        if (r.size < 4 || (what == 0 && r.a == r.b))
            return none;
        r.op = what ? AGAIN_SUB : AGAIN_ADD;
        if (r.a == r.b) {
            r.op = AGAIN_ZERO;
            r.a = r.b = REG_NONE;
        }
        return r;
    case 9:
        if (r.size < 4)
            return none;
        r.op = AGAIN_NEG;
        return r;
    default:
        return none;
    }
}

static bool uses(const struct recipe *r, u32 regs)
{
    return (r->a < 16 && regs & BIT(r->a)) || (r->b < 16 && regs & BIT(r->b));
}

void flags_before(struct tr *t, const struct insn *i, enum kind k, u32 writes)
{
    if (writes || !uses(&t->recipe, gprs_changed(i, k)) || !t->live_after[t->idx])
        return;
    if (only_again(t))
        flags_keep(t);
    t->recipe.op = AGAIN_NONE;
}

void flags_after(struct tr *t, const struct insn *i, enum kind k, u32 writes)
{
    if (writes)
        t->recipe = recipe_of(i, k, writes);
    else if (uses(&t->recipe, gprs_changed(i, k)))
        t->recipe.op = AGAIN_NONE;
}
