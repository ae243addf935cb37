/*
 * From a decoded block to host code. Every instruction has a translation: the call of its body, with
 * all guest state in struct vcpu as the interpreter would have it. Rows of class `copy` are emitted
 * again with host registers and a checked address, rows of class `emit` have code of their own here.
 *
 * The slow path of every native instruction (access not granted by the TLB, target not in the jump
 * cache, split lock) is the call of its body as well. So nothing of the guest may have changed when a
 * native sequence branches to its slow path.
 *
 * Flags. Liveness within the block says which arithmetic flags matter behind each instruction; behind
 * the last all do. They stay in the host's EFLAGS while nothing disturbs them; a TLB check does, so
 * where some matter they are saved first (LAHF, SETO) and loaded again where an instruction needs them.
 * Where none matter, a fault shows the flags that were saved last: the design's one liberty.
 */
#include "jit/internal.h"
#include "cpu/borrow.h"
#include "cpu/isa/encode.h"

enum flag_state { FL_MEMORY, FL_HOST, FL_BOTH, FL_NOWHERE };

struct slow {
    u8 *from[8];     /* jumps to it */
    unsigned n;
    u8 *back;        /* where to go on; NULL: leave through the jump cache's slow way */
    bool load_flags; /* EFLAGS must hold the flags at @back */
    u16 off;
    u8 idx;
    u16 vec_store, vec_load; /* XMM registers that only the host holds at the branch; that it must hold at @back */
    u8 leave;        /* enum jit_exit + 1: leave translated code instead of going back */
};

struct tr {
    struct code_buf *c;
    const struct translation_request *q;
    struct vcpu *v;
    struct jit *j;
    struct block *b;
    const struct insn *i;
    unsigned idx, off; /* of the instruction in the block */
    bool wide;         /* 64-bit mode */
    enum flag_state flags;
    u32 live;          /* flags that matter behind the instruction */
    u32 need;          /* flags it reads or passes through while it writes others */
    u8 live_after[BLOCK_MAX]; /* packed FL_ARITH */
    struct slow slow[BLOCK_MAX];
    unsigned nslow;
    struct slow *cur;  /* slow path of the instruction, made on first use */
    struct block_links *links;
    u16 vec_valid, vec_dirty; /* XMM registers that the host holds; of which struct vcpu has not got the value */
    bool simd_checked, fp_checked;
};

/* ---- flags ---- */

static u8 pack(u32 fl) { return (u8)((fl & 0xd5) | (fl & FL_OF ? 2 : 0)); }
static u32 unpack(u8 x) { return (x & 0xd5u) | (x & 2 ? (u32)FL_OF : 0); }

/* What the instruction does to the arithmetic flags: which it reads and which it replaces, whatever they were. */
static void flag_effects(const struct insn *i, bool native, u32 *reads, u32 *writes)
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

static void flags_save(struct tr *t) /* RAX */
{
    struct code_buf *c = t->c;
    put1(c, 0x9f);                          /* lahf */
    put1(c, 0x0f), put1(c, 0x90), put1(c, 0xc0); /* seto al */
    put_rm(c, false, 0x89, H_RAX, H_RSP, F_AT(flags));
}
static void flags_load(struct tr *t) /* RAX */
{
    struct code_buf *c = t->c;
    put_rm(c, false, 0x8b, H_RAX, H_RSP, F_AT(flags));
    put1(c, 0x04), put1(c, 0x7f); /* add al, 0x7f: OF comes back */
    put1(c, 0x9e);                /* sahf */
}
/* EFLAGS are about to be overwritten by something that is not the instruction. */
static void flags_disturb(struct tr *t)
{
    if (t->flags == FL_HOST)
        t->flags = FL_NOWHERE;
    else if (t->flags == FL_BOTH)
        t->flags = FL_MEMORY;
}
static void flags_keep(struct tr *t)
{
    if (t->flags == FL_HOST) {
        flags_save(t);
        t->flags = FL_BOTH;
    }
}
/* Before the instruction itself, when RAX is free: the flags it needs. */
static void flags_want(struct tr *t)
{
    if (t->need && t->flags == FL_MEMORY) {
        flags_load(t);
        t->flags = FL_BOTH;
    }
}
/* The instruction has run and written @writes. */
static void flags_written(struct tr *t, u32 writes)
{
    if (writes)
        t->flags = FL_HOST;
}

/* ---- vector registers: in the host's of the same number from first use to the end of the block ---- */

static void vec_moves(struct tr *t, u16 set, bool load)
{
    for (unsigned n = 0; n < 16; n++)
        if (set & BIT(n)) /* movaps */
            put_rm(t->c, false, load ? 0x0f28 : 0x0f29, n, H_RBP, V_AT(vec) + (s32)(n * sizeof(union vec_reg)));
}
static void vec_read(struct tr *t, unsigned n)
{
    vec_moves(t, (u16)(BIT(n) & ~t->vec_valid), true);
    t->vec_valid |= (u16)BIT(n);
}
static void vec_written(struct tr *t, unsigned n)
{
    t->vec_valid |= (u16)BIT(n);
    t->vec_dirty |= (u16)BIT(n);
}
static void vec_flush(struct tr *t)
{
    vec_moves(t, t->vec_dirty, false);
    t->vec_dirty = 0;
}

/* ---- slow paths ---- */

static struct slow *slow_path(struct tr *t)
{
    if (!t->cur) {
        t->cur = &t->slow[t->nslow++];
        *t->cur = (struct slow){.off = (u16)t->off, .idx = (u8)t->idx, .vec_store = t->vec_dirty};
    }
    return t->cur;
}
static void slow_if(struct tr *t, unsigned cc)
{
    struct slow *s = slow_path(t);
    u8 *at = put_jcc(t->c, cc);
    if (s->n < ARRAY_SIZE(s->from))
        s->from[s->n++] = at;
    else
        t->c->full = true;
}
/* The native sequence is complete: the slow path comes back here. */
static void slow_back(struct tr *t)
{
    if (!t->cur)
        return;
    t->cur->back = t->c->p;
    t->cur->vec_load = t->vec_valid;
    t->cur->load_flags = t->flags == FL_HOST || t->flags == FL_BOTH;
    t->cur = NULL;
}

static void emit_body_call(struct tr *t, unsigned idx, unsigned off)
{
    put_mov_imm32(t->c, H_RAX, INFO(off, idx, t->b->n));
    put_mov_imm(t->c, H_RCX, (u64)(uintptr_t)&t->b->insn[idx]);
    put_call_to(t->c, t->j->call);
}

static void emit_exit(struct tr *t, u32 reason)
{
    put_mov_imm32(t->c, H_RAX, reason);
    put_jmp_to(t->c, t->j->exit);
}

static void emit_slow_paths(struct tr *t)
{
    for (unsigned n = 0; n < t->nslow; n++) {
        struct slow *s = &t->slow[n];
        for (unsigned k = 0; k < s->n; k++)
            put_target(s->from[k], t->c->p);
        vec_moves(t, s->vec_store, false);
        emit_body_call(t, s->idx, s->off);
        if (s->leave) { /* a branch: its body has set next_rip */
            put_rm(t->c, true, 0x8b, H_RCX, H_RBP, V_AT(next_rip));
            put_rm(t->c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
            emit_exit(t, s->leave - 1u);
            continue;
        }
        vec_moves(t, s->vec_load, true);
        if (s->load_flags)
            flags_load(t);
        put_jmp_to(t->c, s->back);
    }
}

/* ---- effective addresses ---- */

struct ea {
    u8 base, index, scale; /* guest registers, REG_NONE, REG_RIP */
    u8 seg;
    u8 adsize;
    s64 disp; /* REG_RIP: relative to the start of the block */
};

static bool ea_of(struct tr *t, const struct insn *i, struct ea *e)
{
    *e = (struct ea){.base = i->base, .index = i->index, .scale = i->scale, .seg = i->seg, .adsize = i->adsize, .disp = i->disp};
    if (e->base == REG_RIP)
        e->disp += (s64)(t->off + i->len);
    return true;
}

static bool fits32(s64 x) { return x == (s32)x; }

/* Whether ea_lea() can do it: everything but 16-bit addresses and, outside 64-bit mode, segments with a base. */
static bool ea_possible(bool wide, const struct insn *i)
{
    if (i->adsize == 2 || (i->flags & INSN_VSIB))
        return false;
    if (!wide && (i->seg == SEG_CS || i->seg == SEG_FS || i->seg == SEG_GS || i->base == REG_RIP))
        return false;
    s64 room = 1 << 16;
    return fits32(i->disp - room) && fits32(i->disp + room);
}

static bool ea_has_base(const struct tr *t, const struct ea *e) { return t->wide && (e->seg == SEG_FS || e->seg == SEG_GS); }
static bool in_host(unsigned r) { return r < 16 && host_of[r] != H_NONE; }

/* Components in host registers, one LEA. */
static bool ea_simple(const struct tr *t, const struct ea *e)
{
    return (e->base == REG_NONE || in_host(e->base)) && (e->index == REG_NONE || in_host(e->index)) && !ea_has_base(t, e);
}

/* The linear address plus @extra in @dst, with no other register. Disturbs flags when !ea_simple(). */
static void ea_lea(struct tr *t, unsigned dst, const struct ea *e, s64 extra)
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

struct mem {
    u8 base, index; /* host registers: [base + index + disp] */
    s32 disp;
};

/*
 * The TLB check: the place is granted for the access, or the slow path is taken. RAX and RCX are used;
 * afterwards RAX is free again and RCX is part of the address in @m.
 */
static void mem_check(struct tr *t, const struct ea *e, unsigned size, bool write, struct mem *m)
{
    struct code_buf *c = t->c;
    s32 tag = write ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read);
    if (t->live | t->need)
        flags_keep(t);
    bool simple = ea_simple(t, e);
    if (simple) {
        ea_lea(t, H_RAX, e, 0);
    } else {
        ea_lea(t, H_RCX, e, 0);
        put_rr(c, false, 0x8b, H_RAX, H_RCX);
    }
    put_rr(c, false, 0xc1, 5, H_RAX), put1(c, PAGE_SHIFT - 5); /* shr eax, 7 */
    put_alu_imm(c, false, 4, H_RAX, (TLB_SIZE - 1) << 5);
    put_rm(c, true, 0x03, H_RAX, H_RBP, V_AT(tlb_now));
    if (simple)
        ea_lea(t, H_RCX, e, size - 1);
    else if (size > 1)
        put_rm(c, true, 0x8d, H_RCX, H_RCX, (s32)size - 1);
    put_alu_imm(c, true, 4, H_RCX, -(s32)PAGE_SIZE);
    put_rm(c, true, 0x3b, H_RCX, H_RAX, tag);
    flags_disturb(t);
    slow_if(t, CC_NE);
    s32 addend = offsetof(struct tlb_entry, addend);
    if (simple && e->adsize == 8 && e->base != REG_NONE && e->index == REG_NONE) {
        put_rm(c, true, 0x8b, H_RCX, H_RAX, addend);
        *m = (struct mem){host_of[e->base], H_RCX, (s32)e->disp};
        return;
    }
    ea_lea(t, H_RCX, e, 0);
    put_rm(c, true, 0x03, H_RCX, H_RAX, addend);
    *m = (struct mem){H_RCX, H_NONE, 0};
}
_Static_assert(sizeof(struct tlb_entry) == 32, "mem_check() scales by it");

/* op reg, [m] */
static void put_op_mem(struct tr *t, bool w, unsigned op, unsigned reg, const struct mem *m)
{
    put_rmx(t->c, w, op, reg, m->base, m->index, 0, m->disp);
}
/* The address itself in RCX: for operands that RCX may take part in no other way. */
static void mem_to_rcx(struct tr *t, struct mem *m)
{
    if (m->index == H_NONE && m->base == H_RCX && m->disp == 0)
        return;
    put_rmx(t->c, true, 0x8d, H_RCX, m->base, m->index, 0, m->disp);
    *m = (struct mem){H_RCX, H_NONE, 0};
}

/* ---- guest registers ---- */

static void reg_load(struct tr *t, unsigned host, unsigned r)
{
    if (in_host(r))
        put_mov_rr(t->c, host, host_of[r]);
    else
        put_rm(t->c, true, 0x8b, host, H_RBP, V_AT(gpr) + (s32)r * 8);
}
static void reg_store(struct tr *t, unsigned r, unsigned host)
{
    if (in_host(r))
        put_mov_rr(t->c, host_of[r], host);
    else
        put_rm(t->c, true, 0x89, host, H_RBP, V_AT(gpr) + (s32)r * 8);
}

/* ---- what has a translation of its own ---- */

enum kind {
    K_CALL, K_NOP, K_COPY, K_ACCUMULATOR /* op AL/eAX/rAX, imm */, K_MOFFS, K_COUNT /* 40..4F */, K_LEA,
    K_PUSH_REG, K_PUSH_IMM, K_PUSH_RM, K_POP_REG, K_LEAVE,
    K_JCC, K_JMP, K_JMP_IND, K_CALL_REL, K_CALL_IND, K_RET, K_EXTEND /* 98, 99 */, K_XCHG, K_CMPXCHG, K_MULTIPLY,
};

/* Operands of a row that K_COPY can place. */
static bool vector_possible(bool wide, const struct insn *i, const struct insn_row *row)
{
    if (row->vex || row->checks & ~(u32)(CHK_SSE | CHK_ALIGN16 | CHK_ALIGN_MM | CHK_ONLY64) || (i->flags & INSN_LOCK) ||
        (row->map == 3 && row->opcode >= 0x60 && row->opcode <= 0x63)) /* implicit registers */
        return false;
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        switch (o->kind) {
        case OPND_VEC_REG: case OPND_VEC_RM: case OPND_VEC_FIXED: case OPND_GPR_REG: case OPND_GPR_RM: case OPND_MEM: case OPND_IMM:
            break;
        default:
            return false;
        }
        if (o->kind == OPND_GPR_RM && o->size == 1 && !(i->flags & INSN_MEM) && (i->rm8 & 7))
            return false;
    }
    return !(i->flags & INSN_MEM) || ea_possible(wide, i);
}

static bool copy_possible(bool wide, const struct insn *i, const struct insn_row *row)
{
    if (row->checks & CHK_SSE)
        return !row->intercept && vector_possible(wide, i, row);
    if (row->checks & ~(u32)(CHK_LOCK | CHK_ONLY64 | CHK_NO64) || row->intercept)
        return false;
    if (row->checks & CHK_NO64)
        return false; /* encodings that mean something else on the host */
    bool shift = !row->vex && ((row->map == 0 && (row->opcode & 0xfc) == 0xd0) || (row->map == 1 && (row->opcode & 0xf6) == 0xa4));
    unsigned vvvv = 0, regs = 0, high = 0, bytes = 0;
    bool memory = false, cl = false;
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        switch (o->kind) {
        case OPND_GPR_REG:
            regs++;
            if (o->size == 1)
                high += i->reg8 & 7, bytes++;
            break;
        case OPND_GPR_RM:
        case OPND_GPR_OP:
        case OPND_MEM:
            if (o->kind != OPND_GPR_OP && (i->flags & INSN_MEM))
                memory = true;
            else if (o->size == 1)
                high += i->rm8 & 7, bytes++;
            break;
        case OPND_GPR_VVVV:
            vvvv++;
            break;
        case OPND_GPR_FIXED:
            if (!shift || o->fixed != RCX || o->size != 1 || o->access != 1)
                return false;
            cl = true;
            break;
        case OPND_IMM:
        case OPND_IMM_FIXED:
            break;
        default:
            return false;
        }
    }
    if (memory && !ea_possible(wide, i))
        return false;
    if (vvvv && !in_host(i->vvvv))
        return false;
    if (cl && regs && !in_host(i->reg))
        return false;
    if (cl && high) /* RCX is taken by the count */
        return false;
    if (high && vvvv)
        return false;
    return i->opsize != 2 || row->vex == 0;
}

/* One-operand MUL and IMUL, and CMPXCHG, work in the host's RAX: their other operands must be elsewhere. */
static bool rm_placed(bool wide, const struct insn *i, bool byte)
{
    if (i->flags & INSN_MEM)
        return ea_possible(wide, i);
    return byte ? !(i->rm8 & 7) && in_host(i->rm8 / 8u) : in_host(i->rm);
}
static bool multiply_possible(bool wide, const struct insn *i) { return rm_placed(wide, i, !(i->opcode & 1)); }
static bool cmpxchg_possible(bool wide, const struct insn *i)
{
    bool byte = !(i->opcode & 1);
    return rm_placed(wide, i, byte) && (byte ? !(i->reg8 & 7) && in_host(i->reg8 / 8u) : in_host(i->reg));
}

static enum kind kind_of(const struct jit *j, bool wide, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    if (row->jit == JIT_CALL || row->intercept || row->vex == 2 || (i->flags & INSN_OWN_FN))
        return K_CALL;
    /* Some bodies need nothing of the host, so the guest may have what the host lacks. */
    if (!j->host_has[row->feature] || !j->host_has[row->feature2])
        return K_CALL;
    unsigned op = row->opcode, ext = i->modrm >> 3 & 7, stack = wide ? 8 : 4;
    bool memory = i->flags & INSN_MEM;
    unsigned size = wide && i->opsize == 4 ? 8 : i->opsize; /* of stack operands */
    if (row->vex == 0 && row->map == 0 && row->pp == 0) {
        if (op < 0x40 && (op & 7) >= 4 && (op & 7) <= 5)
            return K_ACCUMULATOR;
        if (op >= 0x70 && op <= 0x7f)
            return i->opsize == stack ? K_JCC : K_CALL;
        switch (op) {
        case 0xa8: case 0xa9:
            return K_ACCUMULATOR;
        case 0xa0: case 0xa1: case 0xa2: case 0xa3:
            return !wide && (i->seg == SEG_CS || i->seg == SEG_FS || i->seg == SEG_GS) ? K_CALL : i->adsize == 2 ? K_CALL : K_MOFFS;
        case 0x8d:
            return i->adsize == 2 || !fits32(i->disp - 65536) || !fits32(i->disp + 65536) ? K_CALL : K_LEA;
        case 0x90:
            return row->nopnd ? K_XCHG : K_NOP;
        case 0x86: case 0x87:
            return copy_possible(wide, i, row) ? K_COPY : K_CALL;
        case 0xf6: case 0xf7:
            if (ext == 4 || ext == 5) /* DIV and IDIV may fault on the host */
                return multiply_possible(wide, i) ? K_MULTIPLY : K_CALL;
            break;
        case 0x68: case 0x6a:
            return size == stack ? K_PUSH_IMM : K_CALL;
        case 0xe8:
            return i->opsize == stack ? K_CALL_REL : K_CALL;
        case 0xe9: case 0xeb:
            return i->opsize == stack ? K_JMP : K_CALL;
        case 0xc2: case 0xc3:
            return i->opsize == stack ? K_RET : K_CALL;
        case 0xc9:
            return size == stack ? K_LEAVE : K_CALL;
        case 0x98: case 0x99:
            return K_EXTEND;
        case 0xff:
            if (ext == 2 || ext == 4)
                return i->opsize != stack || (memory && !ea_possible(wide, i)) ? K_CALL : ext == 2 ? K_CALL_IND : K_JMP_IND;
            if (ext == 6)
                return size != stack || (memory && !ea_possible(wide, i)) ? K_CALL : K_PUSH_RM;
            break;
        }
        if (op >= 0x40 && op <= 0x4f)
            return wide ? K_CALL : K_COUNT;
        if (op >= 0x50 && op <= 0x57)
            return size == stack ? K_PUSH_REG : K_CALL;
        if (op >= 0x58 && op <= 0x5f)
            return size == stack ? K_POP_REG : K_CALL;
    }
    if (row->vex == 0 && row->map == 1) {
        if (op == 0x0d || (op >= 0x18 && op <= 0x1f))
            return row->jit == JIT_EMIT ? K_NOP : K_CALL; /* hints */
        if (row->pp == 0 && (op & 0xf0) == 0x80)
            return i->opsize == stack ? K_JCC : K_CALL;
        if (op == 0xb0 || op == 0xb1)
            return cmpxchg_possible(wide, i) ? K_CMPXCHG : K_CALL;
        if (op == 0xc0 || op == 0xc1)
            return copy_possible(wide, i, row) ? K_COPY : K_CALL;
    }
    if (row->jit != JIT_COPY)
        return K_CALL;
    return copy_possible(wide, i, row) ? K_COPY : K_CALL;
}

/* ---- copies ---- */

/* Legacy SSE: may it run, with the guest's MXCSR where that matters, and its registers in the host's. */
static void vector_begin(struct tr *t, const struct insn *i, struct encode_regs *e)
{
    struct code_buf *c = t->c;
    const struct insn_row *row = insn_row(i);
    bool fp = borrow_uses_mxcsr(row);
    if (!t->simd_checked || (fp && !t->fp_checked)) {
        if (t->live | t->need)
            flags_keep(t);
        flags_disturb(t);
    }
    if (!t->simd_checked) {
        put_rm(c, false, 0xf6, 0, H_RBP, V_AT(simd_ok)), put1(c, BIT(2)); /* test byte [simd_ok], SSE */
        slow_if(t, CC_E);
        t->simd_checked = true;
    }
    if (fp && !t->fp_checked) {
        put_alu_imm_mem(c, false, 7, H_RSP, F_AT(fp), 0);
        u8 *loaded = put_jcc(c, CC_NE);
        put_call_to(c, t->j->fp);
        slow_if(t, CC_E);
        put_target(loaded, c->p);
        /* Not known for good: the slow path comes back with exceptions still unmasked. */
        t->fp_checked = false;
    }
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        bool whole = o->access == 2 && o->size == 16;
        switch (o->kind) {
        case OPND_VEC_REG:
            e->reg = i->reg & 15;
            if (!whole)
                vec_read(t, e->reg);
            break;
        case OPND_VEC_RM:
            if (i->flags & INSN_MEM)
                break;
            e->rm = i->rm & 15;
            if (!whole)
                vec_read(t, e->rm);
            break;
        case OPND_VEC_FIXED:
            vec_read(t, 0);
            break;
        }
    }
    if (row->map == 2 && (row->opcode == 0x10 || row->opcode == 0x14 || row->opcode == 0x15 || row->opcode == 0xcb))
        vec_read(t, 0); /* XMM0, whether or not the row lists it */
}

static void vector_end(struct tr *t, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        if (!(o->access & 2))
            continue;
        if (o->kind == OPND_VEC_REG)
            vec_written(t, i->reg & 15);
        else if (o->kind == OPND_VEC_RM && !(i->flags & INSN_MEM))
            vec_written(t, i->rm & 15);
        else if (o->kind == OPND_VEC_FIXED)
            vec_written(t, 0);
    }
}

/*
 * Byte operands AH..BH, and operands that live in memory, are placed in RAX (ModRM.reg) or RCX
 * (ModRM.rm), where every byte can be named without REX.
 */
static void emit_copy(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    const struct insn_row *row = insn_row(i);
    const struct operand *reg = NULL, *rm = NULL;
    struct encode_regs e = {.index = REG_NONE, .reg = 0, .rm = 0};
    unsigned mem_size = 0, mem_access = 0, r_reg = 0, r_rm = 0;
    bool cl = false, high = false;
    bool locked = (i->flags & INSN_LOCK) || (!row->vex && row->map == 0 && (row->opcode & 0xfe) == 0x86); /* XCHG */
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        switch (o->kind) {
        case OPND_GPR_REG:
            reg = o;
            r_reg = o->size == 1 ? i->reg8 / 8u : i->reg;
            e.high_reg = o->size == 1 && (i->reg8 & 7);
            break;
        case OPND_GPR_RM: case OPND_MEM: case OPND_GPR_OP: case OPND_VEC_RM:
            if (o->kind != OPND_GPR_OP && (i->flags & INSN_MEM)) {
                mem_size = operand_bytes(i, n);
                mem_access = o->access;
                break;
            }
            if (o->kind == OPND_VEC_RM)
                break;
            rm = o;
            r_rm = o->size == 1 ? i->rm8 / 8u : i->rm;
            e.high_rm = o->size == 1 && (i->rm8 & 7);
            break;
        case OPND_GPR_VVVV:
            e.vvvv = host_of[i->vvvv];
            break;
        case OPND_GPR_FIXED:
            cl = true;
            break;
        }
    }
    high = e.high_reg || e.high_rm;
    if (row->checks & CHK_SSE)
        vector_begin(t, i, &e);
    struct mem m;
    if (mem_access) {
        struct ea ea;
        ea_of(t, i, &ea);
        mem_check(t, &ea, mem_size, mem_access & 2, &m);
        if (cl) { /* RCX is for the count */
            put_rmx(c, true, 0x8d, H_RAX, m.base, m.index, 0, m.disp);
            m = (struct mem){H_RAX, H_NONE, 0};
        } else if (high || locked || row->checks & CHK_ALIGN16) {
            mem_to_rcx(t, &m);
        }
        if (row->checks & CHK_ALIGN16) {
            put1(c, 0xf6), put1(c, 0xc1), put1(c, 15); /* test cl, 15 */
            slow_if(t, CC_NE);
        }
        if (locked && mem_size > 1) { /* no split locks on the host */
            put1(c, 0xf6), put1(c, 0xc1), put1(c, mem_size - 1); /* test cl, size - 1 */
            slow_if(t, CC_NE);
        }
        if (cl && t->need && t->flags == FL_MEMORY) { /* RAX holds the address */
            put_rm(c, true, 0x89, H_RAX, H_RSP, F_AT(temp));
            flags_load(t);
            t->flags = FL_BOTH;
            put_rm(c, true, 0x8b, H_RAX, H_RSP, F_AT(temp));
        } else {
            flags_want(t);
        }
        e.base = m.base;
        e.index = m.index == H_NONE ? REG_NONE : m.index;
        e.disp = m.disp;
    } else {
        flags_want(t);
    }
    bool reg_scratch = reg && (high || !in_host(r_reg)), rm_scratch = rm && (high || !in_host(r_rm));
    /* Two bytes of one register must not become two copies of it. */
    bool one = high && reg && rm && r_reg == r_rm;
    unsigned rm_in = cl || one ? H_RAX : H_RCX;
    if (reg) {
        e.reg = reg_scratch ? H_RAX : host_of[r_reg];
        if (reg_scratch)
            reg_load(t, H_RAX, r_reg);
    }
    if (one) {
        e.rm = H_RAX;
    } else if (rm) {
        e.rm = (u8)(rm_scratch ? rm_in : host_of[r_rm]);
        if (rm_scratch)
            reg_load(t, rm_in, r_rm);
    }
    if (cl)
        reg_load(t, H_RCX, RCX);
    u8 code[INSN_ENCODE_MAX];
    unsigned len = insn_encode(i, &e, code);
    if (!len)
        panic("jit: %s %s (%s) cannot be re-encoded", row->mnemonic, row->operands, row->encoding);
    put_bytes(c, code, len);
    if (row->checks & CHK_SSE)
        vector_end(t, i);
    if (reg_scratch && ((reg->access | (one ? rm->access : 0)) & 2))
        reg_store(t, r_reg, H_RAX);
    if (rm_scratch && !one && (rm->access & 2))
        reg_store(t, r_rm, rm_in);
}

/*
 * The operands of emit_multiply() and emit_cmpxchg(): RAX of the host is the guest's for the time of
 * the instruction. A locked access that the host would split takes the slow path.
 */
static void emit_in_rax(struct tr *t, const struct insn *i, unsigned size, bool write)
{
    struct code_buf *c = t->c;
    struct encode_regs e = {.index = REG_NONE, .reg = host_of[(size == 1 ? i->reg8 / 8u : i->reg) & 15]};
    struct mem m;
    if (i->flags & INSN_MEM) {
        struct ea ea;
        ea_of(t, i, &ea);
        mem_check(t, &ea, size, write, &m);
        if (write && size > 1 && (i->flags & INSN_LOCK)) {
            mem_to_rcx(t, &m);
            put1(c, 0xf6), put1(c, 0xc1), put1(c, size - 1);
            slow_if(t, CC_NE);
        }
        e.base = m.base;
        e.index = m.index == H_NONE ? REG_NONE : m.index;
        e.disp = m.disp;
    } else {
        e.rm = host_of[size == 1 ? i->rm8 / 8u : i->rm];
    }
    flags_want(t);
    /* CMPXCHG with the accumulator itself as destination */
    if (write && !(i->flags & INSN_MEM) && e.rm == host_of[RAX])
        e.rm = H_RAX;
    reg_load(t, H_RAX, RAX);
    u8 code[INSN_ENCODE_MAX];
    unsigned len = insn_encode(i, &e, code);
    if (!len)
        panic("jit: %s cannot be re-encoded", insn_row(i)->encoding);
    put_bytes(c, code, len);
    reg_store(t, RAX, H_RAX);
}

/* XCHG with the accumulator. */
static void emit_xchg(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    unsigned other = host_of[i->rm];
    if (!in_host(i->rm)) {
        reg_load(t, H_RAX, i->rm);
        other = H_RAX;
    }
    if (i->opsize == 2)
        put1(c, 0x66);
    put_rr(c, i->opsize == 8, 0x87, other, host_of[RAX]);
    if (!in_host(i->rm))
        reg_store(t, i->rm, H_RAX);
}

/* op accumulator, immediate: the short forms name the host's, so the long ones are used. */
static void emit_accumulator(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    unsigned op = i->opcode, size = op & 1 ? i->opsize : 1;
    bool test = op >= 0xa8;
    flags_want(t);
    if (size == 2)
        put1(c, 0x66);
    put_rr(c, size == 8, test ? (op & 1 ? 0xf7 : 0xf6) : (op & 1 ? 0x81 : 0x80), test ? 0 : op >> 3 & 7, host_of[RAX]);
    if (size == 1)
        put1(c, (u8)i->imm);
    else if (size == 2)
        put1(c, (u8)i->imm), put1(c, (u8)(i->imm >> 8));
    else
        put4(c, (u32)i->imm);
}

static void emit_moffs(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    unsigned size = i->opcode & 1 ? i->opsize : 1;
    bool store = i->opcode & 2;
    u64 address = i->adsize == 8 ? (u64)i->disp : (u32)i->disp;
    if (t->live)
        flags_keep(t);
    put_mov_imm(c, H_RCX, address);
    if (t->wide && (i->seg == SEG_FS || i->seg == SEG_GS))
        put_rm(c, true, 0x03, H_RCX, H_RBP, V_AT(seg_base) + i->seg * 8);
    /* As mem_check(), with the address kept in the frame. */
    put_rm(c, true, 0x89, H_RCX, H_RSP, F_AT(temp));
    put_rr(c, false, 0x8b, H_RAX, H_RCX);
    put_rr(c, false, 0xc1, 5, H_RAX), put1(c, PAGE_SHIFT - 5);
    put_alu_imm(c, false, 4, H_RAX, (TLB_SIZE - 1) << 5);
    put_rm(c, true, 0x03, H_RAX, H_RBP, V_AT(tlb_now));
    if (size > 1)
        put_rm(c, true, 0x8d, H_RCX, H_RCX, (s32)size - 1);
    put_alu_imm(c, true, 4, H_RCX, -(s32)PAGE_SIZE);
    put_rm(c, true, 0x3b, H_RCX, H_RAX, store ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read));
    flags_disturb(t);
    slow_if(t, CC_NE);
    put_rm(c, true, 0x8b, H_RCX, H_RSP, F_AT(temp));
    put_rm(c, true, 0x03, H_RCX, H_RAX, offsetof(struct tlb_entry, addend));
    if (size == 2)
        put1(c, 0x66);
    put_rm(c, size == 8, (store ? 0x88 : 0x8a) + (size > 1), host_of[RAX], H_RCX, 0);
}

/* INC and DEC of 40..4F, which are REX prefixes on the host. */
static void emit_count(struct tr *t, const struct insn *i)
{
    flags_want(t);
    if (i->opsize == 2)
        put1(t->c, 0x66);
    put_rr(t->c, false, 0xff, i->opcode >> 3 & 1, host_of[i->rm]);
}

/* LEA changes no flags, so neither may its parts. */
static void emit_lea(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    struct ea e;
    ea_of(t, i, &e);
    e.seg = SEG_DS;
    bool both = e.base < 16 && e.index < 16 && !in_host(e.base) && !in_host(e.index);
    if (i->opsize >= 4 && in_host(i->reg) && ea_simple(t, &e) && e.base != REG_NONE) {
        /* One instruction; the smaller of the two sizes zero-extends as both would. */
        bool w = i->opsize == 8 && e.adsize == 8;
        if (e.index == REG_NONE)
            put_rm(c, w, 0x8d, host_of[i->reg], host_of[e.base], (s32)e.disp);
        else
            put_rmx(c, w, 0x8d, host_of[i->reg], host_of[e.base], host_of[e.index], e.scale, (s32)e.disp);
        return;
    }
    if (both) {
        reg_load(t, H_RCX, e.base);
        reg_load(t, H_RAX, e.index);
        put_rmx(c, e.adsize == 8, 0x8d, H_RCX, H_RCX, H_RAX, e.scale, (s32)e.disp);
    } else {
        ea_lea(t, H_RCX, &e, 0);
    }
    if (i->opsize == 2) {
        reg_load(t, H_RAX, i->reg);
        put1(c, 0x66);
        put_rr(c, false, 0x8b, H_RAX, H_RCX);
        reg_store(t, i->reg, H_RAX);
        return;
    }
    if (i->opsize == 4)
        put_rr(c, false, 0x8b, H_RCX, H_RCX);
    reg_store(t, i->reg, H_RCX);
}

/* CBW..CDQE, CWD..CQO: through RAX, where the host's own forms work. */
static void emit_extend(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    reg_load(t, H_RAX, RAX);
    if (i->opcode == 0x98) {
        if (i->opsize == 2)
            put1(c, 0x66);
        put_rex(c, i->opsize == 8, 0, 0, 0);
        put1(c, 0x98);
        reg_store(t, RAX, H_RAX);
        return;
    }
    if (i->opsize == 2)
        put1(c, 0x66);
    put_rex(c, i->opsize == 8, 0, 0, 0);
    put1(c, 0x99); /* guest RDX is the host's */
}

/* ---- the stack ---- */

static struct ea stack_ea(const struct tr *t, unsigned base, s64 disp)
{
    return (struct ea){.base = (u8)base, .index = REG_NONE, .seg = SEG_SS, .adsize = t->wide ? 8 : 4, .disp = disp};
}
static void stack_move(struct tr *t, s32 by)
{
    put_rm(t->c, t->wide, 0x8d, host_of[RSP], host_of[RSP], by);
}
static unsigned word(const struct tr *t) { return t->wide ? 8 : 4; }

static void emit_push_reg(struct tr *t, const struct insn *i)
{
    struct ea e = stack_ea(t, RSP, -(s64)word(t));
    struct mem m;
    mem_check(t, &e, word(t), true, &m);
    unsigned src = host_of[i->rm];
    if (!in_host(i->rm)) {
        reg_load(t, H_RAX, i->rm);
        src = H_RAX;
    }
    put_op_mem(t, t->wide, 0x89, src, &m);
    stack_move(t, -(s32)word(t));
}

static void emit_push_imm(struct tr *t, const struct insn *i)
{
    struct ea e = stack_ea(t, RSP, -(s64)word(t));
    struct mem m;
    mem_check(t, &e, word(t), true, &m);
    put_op_mem(t, t->wide, 0xc7, 0, &m);
    put4(t->c, (u32)i->imm);
    stack_move(t, -(s32)word(t));
}

static void emit_push_rm(struct tr *t, const struct insn *i)
{
    struct mem m;
    if (!(i->flags & INSN_MEM)) {
        emit_push_reg(t, i);
        return;
    }
    struct ea from, to = stack_ea(t, RSP, -(s64)word(t));
    ea_of(t, i, &from);
    mem_check(t, &from, word(t), false, &m);
    put_op_mem(t, t->wide, 0x8b, H_RAX, &m);
    put_rm(t->c, true, 0x89, H_RAX, H_RSP, F_AT(temp));
    mem_check(t, &to, word(t), true, &m);
    put_rm(t->c, true, 0x8b, H_RAX, H_RSP, F_AT(temp));
    put_op_mem(t, t->wide, 0x89, H_RAX, &m);
    stack_move(t, -(s32)word(t));
}

static void emit_pop_reg(struct tr *t, const struct insn *i)
{
    struct ea e = stack_ea(t, RSP, 0);
    struct mem m;
    mem_check(t, &e, word(t), false, &m);
    if (in_host(i->rm)) {
        put_op_mem(t, t->wide, 0x8b, host_of[i->rm], &m);
    } else {
        put_op_mem(t, t->wide, 0x8b, H_RAX, &m);
        reg_store(t, i->rm, H_RAX);
    }
    if (i->rm != RSP)
        stack_move(t, (s32)word(t));
}

static void emit_leave(struct tr *t)
{
    struct ea e = stack_ea(t, RBP, 0);
    struct mem m;
    mem_check(t, &e, word(t), false, &m);
    put_op_mem(t, t->wide, 0x8b, H_RAX, &m);
    put_rm(t->c, t->wide, 0x8d, host_of[RSP], host_of[RBP], (s32)word(t));
    put_rr(t->c, t->wide, 0x8b, host_of[RBP], H_RAX);
}

/* ---- control flow ---- */

/* frame.rip += delta; flags are disturbed. */
static void rip_add(struct tr *t, s64 delta)
{
    if (delta)
        put_alu_imm_mem(t->c, t->wide, 0, H_RSP, F_AT(rip), (s32)delta);
}

/*
 * To @delta bytes from the block's start, in the same page: a link. A chain needs no other check than
 * the budget and attention at the entry of the next block: the page that holds both is mapped and
 * executable as it was when the first began, since every instruction that changes a mapping makes
 * attention non-zero and the code is left behind it.
 */
static void emit_link(struct tr *t, s64 delta)
{
    rip_add(t, delta);
    if (t->q->region) {
        emit_exit(t, JIT_EXIT_STOP);
        return;
    }
    struct jit *j = t->j;
    if (j->links >= LINK_MAX) {
        t->c->full = true;
        return;
    }
    u32 n = j->links++;
    u8 *at = put_jmp(t->c);
    if (!at)
        return;
    put_target(at, t->c->p); /* unlinked: what follows */
    j->link[n] = (struct link){.at = at, .unlinked = t->c->p, .host = t->b->host + (u64)delta, .from = t->b, .next_out = t->links->out};
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

static bool same_page(const struct tr *t, s64 delta)
{
    u64 at = t->b->host & ~PAGE_MASK;
    return (s64)at + delta >= 0 && (s64)at + delta < (s64)PAGE_SIZE;
}

/* RCX = the address @delta bytes from the block's start. */
static void rip_to_rcx(struct tr *t, s64 delta)
{
    put_rm(t->c, true, 0x8b, H_RCX, H_RSP, F_AT(rip));
    put_rm(t->c, t->wide, 0x8d, H_RCX, H_RCX, (s32)delta);
}

/* A branch whose slow path leaves translated code with what the body said. */
static void slow_leaves(struct tr *t, enum jit_exit reason)
{
    if (t->cur)
        t->cur->leave = (u8)(reason + 1);
    t->cur = NULL;
}

static void emit_jump(struct tr *t, s64 delta)
{
    if (same_page(t, delta)) {
        emit_link(t, delta);
        return;
    }
    rip_to_rcx(t, delta);
    emit_lookup(t);
    emit_enter(t);
}

static void emit_jcc(struct tr *t, const struct insn *i)
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

static void emit_call_rel(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    s64 target = t->off + i->len + (s64)i->imm;
    flags_keep(t);
    if (same_page(t, target)) {
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

static void emit_jmp_ind(struct tr *t, const struct insn *i)
{
    emit_indirect_target(t, i);
    emit_lookup(t);
    emit_enter(t);
    slow_leaves(t, JIT_EXIT_LOOKUP);
}

static void emit_call_ind(struct tr *t, const struct insn *i)
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

static void emit_ret(struct tr *t, const struct insn *i)
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

/* ---- blocks ---- */

/* Outside 64-bit mode a translation takes flat segments for granted: what loads one must leave it. */
static bool loads_segment(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        if (((o->kind == OPND_SEG_REG || o->kind == OPND_SEG_FIXED) && (o->access & 2)) || o->size == OPSZ_P)
            return true;
    }
    return false;
}

/* To the address in RCX when everything of the block has run: what is not known is left to the dispatcher. */
static void emit_goto(struct tr *t)
{
    struct code_buf *c = t->c;
    struct slow misses = {0}, *cur = t->cur;
    put_rm(c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
    if (!t->q->region) {
        t->cur = &misses;
        emit_lookup(t);
        put1(c, 0xff), put1(c, 0xe0); /* jmp rax */
        t->cur = cur;
        for (unsigned n = 0; n < misses.n; n++)
            put_target(misses.from[n], c->p);
    }
    emit_exit(t, t->q->region ? JIT_EXIT_STOP : JIT_EXIT_LOOKUP);
}

static void emit_call_of_body(struct tr *t, const struct insn *i, bool last)
{
    struct code_buf *c = t->c;
    flags_keep(t);
    emit_body_call(t, t->idx, t->off);
    t->flags = FL_MEMORY;
    t->vec_valid = 0;
    t->simd_checked = t->fp_checked = false;
    t->j->stats.called++;
    bool leave = !t->wide && loads_segment(i);
    if (!last && !leave)
        return;
    put_rm(c, true, 0x8b, H_RCX, H_RBP, V_AT(next_rip));
    if (leave || !t->b->near) {
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
    enum kind k = kind_of(t->j, t->wide, i);
    u32 reads, writes;
    flag_effects(i, k != K_CALL, &reads, &writes);
    t->live = unpack(t->live_after[t->idx]);
    t->need = reads | (writes ? t->live & ~writes : 0);
    t->live &= ~writes; /* what a check before the write must not lose */
    t->cur = NULL;
    t->j->stats.insns++;
    if (k == K_CALL || (k >= K_JCC && k <= K_RET))
        vec_flush(t);
    switch (k) {
    case K_CALL:
        emit_call_of_body(t, i, last);
        return (last && (!t->b->near || insn_row(i)->checks & CHK_END || i->flags & (INSN_REP | INSN_REPNE))) ||
               (!t->wide && loads_segment(i));
    case K_NOP: break;
    case K_COPY: emit_copy(t, i); break;
    case K_ACCUMULATOR: emit_accumulator(t, i); break;
    case K_MOFFS: emit_moffs(t, i); break;
    case K_COUNT: emit_count(t, i); break;
    case K_LEA: emit_lea(t, i); break;
    case K_EXTEND: emit_extend(t, i); break;
    case K_PUSH_REG: emit_push_reg(t, i); break;
    case K_PUSH_IMM: emit_push_imm(t, i); break;
    case K_PUSH_RM: emit_push_rm(t, i); break;
    case K_POP_REG: emit_pop_reg(t, i); break;
    case K_LEAVE: emit_leave(t); break;
    case K_JCC: emit_jcc(t, i); return true;
    case K_JMP: {
        flags_keep(t);
        emit_jump(t, t->off + i->len + (s64)i->imm);
        slow_leaves(t, JIT_EXIT_LOOKUP);
        return true;
    }
    case K_JMP_IND: emit_jmp_ind(t, i); return true;
    case K_CALL_REL: emit_call_rel(t, i); return true;
    case K_CALL_IND: emit_call_ind(t, i); return true;
    case K_RET: emit_ret(t, i); return true;
    case K_XCHG: emit_xchg(t, i); break;
    case K_MULTIPLY: emit_in_rax(t, i, i->opcode & 1 ? i->opsize : 1, false); break;
    case K_CMPXCHG: emit_in_rax(t, i, i->opcode & 1 ? i->opsize : 1, true); break;
    }
    flags_written(t, writes);
    slow_back(t);
    return false;
}

static void liveness(struct tr *t, unsigned end)
{
    u32 live = (u32)FL_ARITH;
    for (unsigned n = end; n-- > t->q->first;) {
        const struct insn *i = &t->b->insn[n];
        u32 reads, writes;
        t->live_after[n] = pack(live);
        flag_effects(i, kind_of(t->j, t->wide, i) != K_CALL, &reads, &writes);
        live = (live & ~writes) | reads;
    }
}

bool translate(const struct translation_request *q, struct code_buf *c, struct block_links *links)
{
    struct block *b = q->b;
    struct tr t = {.c = c, .q = q, .v = q->v, .j = q->j, .b = b, .links = links, .flags = FL_MEMORY};
    t.wide = q->v->code_mode == CODE_64;
    unsigned end = q->first + q->count;
    u8 *from_budget = NULL, *from_attention = NULL;
    if (!q->region) {
        put_alu_imm_mem(c, true, 5, H_RSP, F_AT(left), (s32)b->n);
        from_budget = put_jcc(c, CC_S);
        put_alu_imm_mem(c, false, 7, H_RBP, V_AT(attention), 0);
        from_attention = put_jcc(c, CC_NE);
    }
    for (unsigned n = 0; n < q->first; n++)
        t.off += b->insn[n].len;
    liveness(&t, end);
    bool ended = false;
    for (t.idx = q->first; t.idx < end && !ended; t.idx++) {
        t.i = &b->insn[t.idx];
        ended = emit_insn(&t, t.idx == end - 1 && !q->region);
        t.off += t.i->len;
    }
    if (!ended) { /* on to what follows */
        flags_keep(&t);
        vec_flush(&t);
        t.cur = NULL;
        t.idx = end - 1;
        if (q->region) {
            rip_add(&t, t.off);
            emit_exit(&t, JIT_EXIT_STOP);
        } else if (same_page(&t, t.off)) {
            emit_link(&t, t.off);
        } else {
            rip_to_rcx(&t, t.off);
            emit_goto(&t);
        }
    }
    emit_slow_paths(&t);
    if (!q->region) {
        put_target(from_budget, c->p);
        put_target(from_attention, c->p);
        put_alu_imm_mem(c, true, 0, H_RSP, F_AT(left), (s32)b->n);
        emit_exit(&t, JIT_EXIT_ENTRY);
    }
    return !c->full;
}

bool jit_native(const struct vcpu *v, const struct insn *i) { return kind_of(v->jit, v->code_mode == CODE_64, i) != K_CALL; }
