/* Native code of integer instructions: copies with other registers, and the rows with a shape of their own. */
#include "cpu/isa/encode.h"
#include "jit/tr.h"

/*
 * Rows whose register operand r/m may be a word of struct vcpu instead: those whose memory form does the same
 * as the register form (a bit string with an offset in a register does not, nor what would lock the bus).
 */
static bool rm_may_be_memory(const struct insn *i, const struct insn_row *row)
{
    unsigned op = row->opcode;
    if (row->vex == 1)
        return row->map == 2 && op >= 0xf2 && op <= 0xf7;
    if (row->vex)
        return false;
    if (row->map == 0)
        return op < 0x40 || op == 0x63 || op == 0x69 || op == 0x6b || (op >= 0x80 && op <= 0x8b && (op & 0xfe) != 0x86) ||
               (op & 0xfe) == 0xc0 || (op & 0xfc) == 0xd0 || op == 0xc7 || op == 0xf6 || op == 0xf7 || op >= 0xfe;
    if (row->map == 2)
        return op == 0xf6 && row->pp; /* ADCX, ADOX */
    return row->map == 1 && ((op & 0xf0) == 0x40 || op == 0xaf || op == 0xb6 || op == 0xb7 || op == 0xbe || op == 0xbf ||
                             (row->pp == 2 && op >= 0xb8 && op <= 0xbd)) &&
           !(i->flags & INSN_LOCK);
}

/* Whether an operand in a word of struct vcpu can be read, changed or written there: half a word must not be. */
static bool in_place(const struct insn *i, const struct operand *o)
{
    return o->access == 1 || (o->size == OPSZ_V && i->opsize == 8);
}

static void put_insn(struct tr *t, const struct insn *i, const struct encode_regs *e)
{
    u8 code[INSN_ENCODE_MAX];
    unsigned len = insn_encode(i, e, code);
    if (!len)
        panic("jit: %s %s (%s) cannot be re-encoded", insn_row(i)->mnemonic, insn_row(i)->operands, insn_row(i)->encoding);
    put_bytes(t->c, code, len);
}

static void word_operand(struct encode_regs *e, unsigned r)
{
    e->base = H_RBP;
    e->index = REG_NONE;
    e->disp = V_AT(gpr) + (s32)r * 8;
}

/*
 * The register form of an instruction with an operand in struct vcpu, when one instruction of the host
 * does it there.
 */
static bool copy_in_place(struct tr *t, const struct insn *i, const struct insn_row *row, const struct operand *reg,
                          const struct operand *rm, struct encode_regs *e)
{
    if (reg && rm && rm->kind == OPND_GPR_RM && i->reg == i->rm && !in_host(i->reg) && !row->map && !row->vex && i->opsize >= 4) {
        unsigned op = row->opcode & ~2u;
        if (op == 0x31 || op == 0x29) { /* XOR, SUB: 0 */
            put_rr(t->c, false, 0x33, H_RAX, H_RAX);
            reg_store(t, i->reg, H_RAX);
            return true;
        }
        if (row->opcode == 0x85) { /* TEST is a comparison with 0 */
            put_alu_imm_mem(t->c, i->opsize == 8, 7, H_RBP, V_AT(gpr) + (s32)i->reg * 8, 0);
            return true;
        }
    }
    if (reg && !in_host(i->reg)) {
        /* op reg, r/m with the two exchanged */
        bool alu = row->map == 0 && !row->vex && ((row->opcode < 0x40 && (row->opcode & 7) == 3) || row->opcode == 0x8b);
        if (!alu || !rm || rm->kind != OPND_GPR_RM || !in_host(i->rm) || i->opsize < 4 || !in_place(i, reg))
            return false;
        put_rm(t->c, i->opsize == 8, row->opcode & ~2u, host_of[i->rm], H_RBP, V_AT(gpr) + (s32)i->reg * 8);
        return true;
    }
    if (!rm || in_host(i->rm) || !in_place(i, rm))
        return false;
    if (rm->kind == OPND_GPR_OP && (row->opcode & 0xf8) == 0xb8 && !row->map && fits32((s64)i->imm)) {
        put_rm(t->c, true, 0xc7, 0, H_RBP, V_AT(gpr) + (s32)i->rm * 8);
        put4(t->c, (u32)i->imm);
        return true;
    }
    if (rm->kind != OPND_GPR_RM || !rm_may_be_memory(i, row))
        return false;
    struct insn m = *i;
    m.flags |= INSN_MEM;
    if (reg)
        e->reg = host_of[i->reg];
    word_operand(e, i->rm);
    put_insn(t, &m, e);
    return true;
}

/*
 * Byte operands AH..BH, and operands that live in memory, are placed in RAX (ModRM.reg) or RCX
 * (ModRM.rm), where every byte can be named without REX.
 */
void emit_copy(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    const struct insn_row *row = insn_row(i);
    const struct operand *reg = NULL, *rm = NULL, *vvvv = NULL;
    struct encode_regs e = {.index = REG_NONE, .reg = 0, .rm = 0};
    struct insn placed = *i;
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
        case OPND_GPR_RM: case OPND_MEM: case OPND_GPR_OP: case OPND_VEC_RM: case OPND_MMX_RM:
            if (o->kind != OPND_GPR_OP && (i->flags & INSN_MEM)) {
                mem_size = operand_bytes(i, n);
                mem_access = o->access;
                break;
            }
            if (o->kind == OPND_VEC_RM || o->kind == OPND_MMX_RM)
                break;
            rm = o;
            r_rm = o->size == 1 ? i->rm8 / 8u : i->rm;
            e.high_rm = o->size == 1 && (i->rm8 & 7);
            break;
        case OPND_GPR_VVVV:
            vvvv = o;
            e.vvvv = in_host(i->vvvv) ? host_of[i->vvvv] : H_RAX; /* what is written beside it is only written */
            break;
        case OPND_GPR_FIXED:
            cl = true;
            break;
        }
    }
    high = e.high_reg || e.high_rm;
    if (row->checks & CHK_UNITS)
        vector_begin(t, i, &e);
    struct mem m;
    if (mem_access) {
        struct ea ea;
        ea_of(t, i, &ea);
        t->align = (row->checks & CHK_ALIGN16) || (locked && mem_size > 1) ? (u8)(mem_size - 1) : 0; /* no split locks on the host */
        t->align_sure = !locked && !(row->checks & CHK_ALIGN_MM && cpu_has(t->v, FEAT_MISALIGNSSE));
        mem_check(t, &ea, mem_size, mem_access & 2, &m);
        t->align = 0;
        if (cl) { /* RCX is for the count */
            put_rmx(c, true, 0x8d, H_RAX, m.base, m.index, m.scale, m.disp);
            m = (struct mem){H_RAX, H_NONE, 0, 0};
        } else if (high) {
            mem_to_rcx(t, &m);
        }
        if (cl && t->need && (t->flags == FL_MEMORY || t->flags == FL_NOWHERE)) { /* RAX holds the address */
            put_rm(c, true, 0x89, H_RAX, H_RSP, F_AT(temp));
            flags_want(t);
            put_rm(c, true, 0x8b, H_RAX, H_RSP, F_AT(temp));
        } else {
            flags_want(t);
        }
        e.base = m.base;
        e.index = m.index == H_NONE ? REG_NONE : m.index;
        e.scale = m.scale;
        e.disp = m.disp;
    } else {
        flags_want(t);
    }
    bool vvvv_scratch = vvvv && !in_host(i->vvvv);
    if (!mem_access && !high && !cl && !vvvv_scratch && !(reg && reg->size == 1) && !(rm && rm->size == 1) &&
        copy_in_place(t, i, row, reg, rm, &e)) {
        t->rcx = t->held;
        if (row->checks & CHK_UNITS)
            vector_end(t, i);
        return;
    }
    bool reg_scratch = reg && (high || !in_host(r_reg)), rm_scratch = rm && (high || !in_host(r_rm));
    /* Two bytes of one register must not become two copies of it. */
    bool one = high && reg && rm && r_reg == r_rm;
    unsigned rm_in = cl || one ? H_RAX : H_RCX;
    if (reg) {
        e.reg = reg_scratch ? H_RAX : host_of[r_reg];
        if (reg_scratch && (one || reg->access != 2 || reg->size == 1 || i->opsize < 4))
            reg_load(t, H_RAX, r_reg);
    }
    if (vvvv_scratch && vvvv->access != 2)
        reg_load(t, H_RAX, i->vvvv);
    if (one) {
        e.rm = H_RAX;
    } else if (rm_scratch && !high && !cl && rm->kind == OPND_GPR_RM && rm->size != 1 && rm->access == 1 && rm_may_be_memory(i, row)) {
        word_operand(&e, r_rm);
        placed.flags |= INSN_MEM;
    } else if (rm) {
        e.rm = (u8)(rm_scratch ? rm_in : host_of[r_rm]);
        if (rm_scratch && (rm->access != 2 || rm->size == 1 || i->opsize < 4 || (row->checks & CHK_UNITS)))
            reg_load(t, rm_in, r_rm);
    }
    if (cl)
        reg_load(t, H_RCX, RCX);
    put_insn(t, &placed, &e);
    if (mem_access)
        t->rcx = cl || m.index != H_RCX ? 0 : t->got;
    else
        t->rcx = cl || (rm_scratch && e.rm == H_RCX && !(placed.flags & INSN_MEM)) ? 0 : t->held;
    if (vvvv_scratch && vvvv->access & 2)
        reg_store(t, i->vvvv, H_RAX);
    if (reg_scratch && ((reg->access | (one ? rm->access : 0)) & 2))
        reg_store(t, r_reg, H_RAX);
    if (rm_scratch && !one && (rm->access & 2))
        reg_store(t, r_rm, rm_in);
    if (row->checks & CHK_UNITS)
        vector_end(t, i);
}

/*
 * The operands of emit_multiply() and emit_cmpxchg(): RAX of the host is the guest's for the time of
 * the instruction. A locked access that the host would split takes the slow path.
 */
void emit_in_rax(struct tr *t, const struct insn *i, unsigned size, bool write)
{
    struct encode_regs e = {.index = REG_NONE, .reg = host_of[(size == 1 ? i->reg8 / 8u : i->reg) & 15]};
    struct insn placed = *i;
    struct mem m;
    if (i->flags & INSN_MEM) {
        struct ea ea;
        ea_of(t, i, &ea);
        t->align = write && size > 1 && (i->flags & INSN_LOCK) ? (u8)(size - 1) : 0;
        t->align_sure = false;
        mem_check(t, &ea, size, write, &m);
        t->align = 0;
        e.base = m.base;
        e.index = m.index == H_NONE ? REG_NONE : m.index;
        e.scale = m.scale;
        e.disp = m.disp;
    } else if (size > 1 && !in_host(i->rm)) { /* MUL only */
        word_operand(&e, i->rm);
        placed.flags |= INSN_MEM;
    } else {
        e.rm = host_of[size == 1 ? i->rm8 / 8u : i->rm];
    }
    flags_want(t);
    /* CMPXCHG with the accumulator itself as destination */
    if (write && !(i->flags & INSN_MEM) && e.rm == host_of[RAX])
        e.rm = H_RAX;
    reg_load(t, H_RAX, RAX);
    put_insn(t, &placed, &e);
    reg_store(t, RAX, H_RAX);
}

/* XCHG with the accumulator. */
void emit_xchg(struct tr *t, const struct insn *i)
{
    t->rcx = t->held;
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
void emit_accumulator(struct tr *t, const struct insn *i)
{
    t->rcx = t->held;
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

void emit_moffs(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    unsigned size = i->opcode & 1 ? i->opsize : 1;
    bool store = i->opcode & 2;
    if (!t->wide) {
        struct ea e = {.base = REG_NONE, .index = REG_NONE, .seg = i->seg, .adsize = i->adsize, .disp = i->disp};
        struct mem m;
        mem_check(t, &e, size, store, &m);
        if (size == 2)
            put1(c, 0x66);
        put_op_mem(t, false, (store ? 0x88 : 0x8a) + (size > 1), host_of[RAX], &m);
        return;
    }
    u64 address = i->adsize == 8 ? (u64)i->disp : (u32)i->disp;
    flags_guard(t);
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
void emit_count(struct tr *t, const struct insn *i)
{
    t->rcx = t->held;
    flags_want(t);
    if (i->opsize == 2)
        put1(t->c, 0x66);
    put_rr(t->c, false, 0xff, i->opcode >> 3 & 1, host_of[i->rm]);
}

/* LEA changes no flags, so neither may its parts. */
void emit_lea(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    struct ea e;
    ea_of(t, i, &e);
    e.seg = SEG_DS;
    bool both = e.base < 16 && e.index < 16 && !in_host(e.base) && !in_host(e.index);
    if (i->opsize >= 4 && in_host(i->reg) && ea_simple(t, &e) && (e.base < 16 || (e.base == REG_NONE && e.index < 16))) {
        t->rcx = t->held;
        /* One instruction; the smaller of the two sizes zero-extends as both would. */
        bool w = i->opsize == 8 && e.adsize == 8;
        if (e.index == REG_NONE)
            put_rm(c, w, 0x8d, host_of[i->reg], host_of[e.base], (s32)e.disp);
        else
            put_rmx(c, w, 0x8d, host_of[i->reg], e.base < 16 ? host_of[e.base] : H_NONE, host_of[e.index], e.scale, (s32)e.disp);
        return;
    }
    if (i->opsize == 4)
        e.adsize = 4; /* the sum modulo 2^32, whatever the address size */
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
    reg_store(t, i->reg, H_RCX);
}

/* CBW..CDQE, CWD..CQO: through RAX, where the host's own forms work. */
void emit_extend(struct tr *t, const struct insn *i)
{
    t->rcx = t->held;
    struct code_buf *c = t->c;
    if (i->opcode == 0x98) { /* MOVSX, MOVSXD */
        if (i->opsize == 2)
            put1(c, 0x66);
        put_rr(c, i->opsize == 8, i->opsize == 8 ? 0x63 : i->opsize == 4 ? 0x0fbf : 0x0fbe, host_of[RAX], host_of[RAX]);
        return;
    }
    reg_load(t, H_RAX, RAX);
    if (i->opsize == 2)
        put1(c, 0x66);
    put_rex(c, i->opsize == 8, 0, 0, 0);
    put1(c, 0x99); /* guest RDX is the host's */
}

/* ---- the stack ---- */

void emit_push_reg(struct tr *t, const struct insn *i)
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
    t->rcx = t->got;
}

void emit_push_imm(struct tr *t, const struct insn *i)
{
    struct ea e = stack_ea(t, RSP, -(s64)word(t));
    struct mem m;
    mem_check(t, &e, word(t), true, &m);
    put_op_mem(t, t->wide, 0xc7, 0, &m);
    put4(t->c, (u32)i->imm);
    stack_move(t, -(s32)word(t));
    t->rcx = t->got;
}

void emit_push_rm(struct tr *t, const struct insn *i)
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
    t->rcx = t->got;
}

void emit_pop_reg(struct tr *t, const struct insn *i)
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
    t->rcx = t->got;
}

void emit_leave(struct tr *t)
{
    struct ea e = stack_ea(t, RBP, 0);
    struct mem m;
    mem_check(t, &e, word(t), false, &m);
    put_op_mem(t, t->wide, 0x8b, H_RAX, &m);
    put_rm(t->c, t->wide, 0x8d, host_of[RSP], host_of[RBP], (s32)word(t));
    put_rr(t->c, t->wide, 0x8b, host_of[RBP], H_RAX);
    t->rcx = t->got;
}

/*
 * DIV and IDIV of 32 and 64 bits, where the quotient is sure to fit: otherwise the body decides. For IDIV
 * that is the usual case only, a dividend that was sign-extended, by neither 0 nor -1.
 */
void emit_divide(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    bool w = i->opsize == 8, idiv = (i->modrm >> 3 & 7) == 7;
    struct mem m;
    flags_keep(t);
    if (i->flags & INSN_MEM) {
        struct ea ea;
        ea_of(t, i, &ea);
        mem_check(t, &ea, i->opsize, false, &m);
        put_op_mem(t, w, 0x8b, H_RCX, &m);
    } else {
        reg_load(t, H_RCX, i->rm);
    }
    flags_disturb(t);
    if (idiv) {
        put_rr(c, w, 0x8b, H_RAX, host_of[RAX]);
        put_rr(c, w, 0xc1, 7, H_RAX), put1(c, w ? 63 : 31); /* sar */
        put_rr(c, w, 0x3b, H_RAX, H_RDX);
        slow_if(t, CC_NE);
        put_rm(c, w, 0x8d, H_RAX, H_RCX, 1);
        put_alu_imm(c, w, 7, H_RAX, 1);
        slow_if(t, CC_BE);
    } else {
        put_rr(c, w, 0x3b, H_RDX, H_RCX);
        slow_if(t, CC_AE);
    }
    flags_load(t);
    put_rr(c, w, 0x8b, H_RAX, host_of[RAX]);
    put_rr(c, w, 0xf7, idiv ? 7 : 6, H_RCX);
    put_rr(c, w, 0x8b, host_of[RAX], H_RAX);
}

/* MULX: the implicit RDX is the host's; results that have no host register go by way of RAX and RCX. */
void emit_mulx(struct tr *t, const struct insn *i)
{
    struct encode_regs e = {.index = REG_NONE, .reg = in_host(i->reg) ? host_of[i->reg] : H_RAX,
                            .vvvv = in_host(i->vvvv) ? host_of[i->vvvv] : H_RCX};
    if (i->flags & INSN_MEM) {
        struct ea ea;
        struct mem m;
        ea_of(t, i, &ea);
        mem_check(t, &ea, i->opsize, false, &m);
        e.base = m.base;
        e.index = m.index == H_NONE ? REG_NONE : m.index;
        e.scale = m.scale;
        e.disp = m.disp;
    } else {
        e.rm = in_host(i->rm) ? host_of[i->rm] : H_RCX;
        if (!in_host(i->rm))
            reg_load(t, H_RCX, i->rm);
    }
    put_insn(t, i, &e);
    if (!in_host(i->vvvv))
        reg_store(t, i->vvvv, H_RCX);
    if (!in_host(i->reg))
        reg_store(t, i->reg, H_RAX);
}
