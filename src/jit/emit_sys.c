/*
 * Native code of what kernels do often besides computing: flags and interrupts, user access, SWAPGS, bit strings,
 * repeated MOVS and STOS. Each looks itself at what its body would look at first (privilege, intercepts, what waits for
 * interrupts to be enabled) and leaves everything but the usual case to the body.
 */
#include "cpu/isa/rows.h"
#include "jit/tr.h"

static bool bit_string(const struct insn *i)
{
    return i->row == ROW_BT_Mv_Gv || i->row == ROW_BTS_Mv_Gv || i->row == ROW_BTR_Mv_Gv || i->row == ROW_BTC_Mv_Gv;
}

bool system_possible(bool wide, const struct insn *i)
{
    switch (i->row) {
    case ROW_CLD: case ROW_STD: case ROW_LFENCE: case ROW_MFENCE: case ROW_SFENCE:
        return true;
    case ROW_CLI: case ROW_STI: case ROW_CLAC: case ROW_STAC: case ROW_SWAPGS: case ROW_RDPKRU: case ROW_RDFSBASE_Ry: case ROW_RDGSBASE_Ry:
    case ROW_PUSHFQ: case ROW_POPFQ:
        return wide;
    case ROW_MOV_Ev_Sw:
        return wide && ((i->flags & INSN_MEM) ? ea_possible(wide, i) : i->opsize >= 4) && (i->reg & 7) <= SEG_GS;
    case ROW_MOV_Ry_Cy:
        return wide && (i->reg == 0 || (i->reg >= 2 && i->reg <= 4));
    case ROW_POP_Ev:
        return wide && (i->flags & INSN_MEM) && i->opsize != 2 && ea_possible(wide, i);
    case ROW_CMPXCHG16B_Mdq:
        return wide && ea_possible(wide, i);
    case ROW_BT_Mv_Gv: case ROW_BTS_Mv_Gv: case ROW_BTR_Mv_Gv: case ROW_BTC_Mv_Gv:
        return wide && i->opsize >= 4 && i->adsize == 8 && in_host(i->reg) && ea_possible(wide, i);
    }
    return false;
}

bool system_beyond(const struct insn *i)
{
    return i->row == ROW_STI || i->row == ROW_POPFQ || i->row == ROW_CLAC || i->row == ROW_STAC;
}

unsigned system_change(const struct tr *t, const struct insn *i, unsigned r, s64 *by)
{
    switch (i->row) {
    case ROW_CLAC:
        return 2;
    case ROW_PUSHFQ:
        *by = -8;
        return r == RSP;
    case ROW_POPFQ: case ROW_POP_Ev:
        *by = 8;
        return r == RSP;
    case ROW_RDPKRU: case ROW_CMPXCHG16B_Mdq:
        return r == RAX || r == RDX ? 2 : 0;
    default:
        (void)t;
        return gprs_written(i) & BIT(r) ? 2 : 0;
    }
}

bool system_ready(const struct vcpu *v, const struct insn *i)
{
    switch (i->row) {
    case ROW_CLI: case ROW_SWAPGS:
        return !v->cpl;
    case ROW_MOV_Ry_Cy:
        return !v->cpl && !v->guest_mode;
    case ROW_PUSHFQ:
        return !v->flags_intercepted;
    case ROW_RDFSBASE_Ry: case ROW_RDGSBASE_Ry:
        return v->cr4 & CR4_FSGSBASE;
    case ROW_RDPKRU:
        return (v->cr4 & CR4_PKE) && !(u32)v->gpr[RCX];
    default:
        return !string_possible(v->code_mode == CODE_64, i) || (!(v->rflags & FL_DF) && v->gpr[RCX]);
    }
}

/* [vcpu + at] op imm, of 64 bits; disturbs flags. */
static void put_state(struct tr *t, unsigned ext, s32 at, s32 imm) { put_alu_imm_mem(t->c, true, ext, H_RBP, at, imm); }
static void test_state(struct tr *t, s32 at, u32 bits)
{
    put_rm(t->c, false, 0xf7, 0, H_RBP, at);
    put4(t->c, bits);
}
static void slow_if_set(struct tr *t, s32 at)
{
    put_rm(t->c, false, 0x80, 7, H_RBP, at), put1(t->c, 0); /* cmp byte */
    slow_if(t, CC_NE);
}

/* ---- RFLAGS ---- */

static void emit_pushf(struct tr *t)
{
    struct code_buf *c = t->c;
    struct ea e = stack_ea(t, RSP, -8);
    struct mem m;
    flags_keep(t);
    mem_check(t, &e, 8, true, &m);
    flags_disturb(t);
    slow_if_set(t, V_AT(flags_intercepted));
    put_rm(c, false, 0x0fb6, H_RAX, H_RSP, F_AT(flags)); /* OF */
    put_rr(c, false, 0xc1, 4, H_RAX), put1(c, 11);
    put_rm(c, false, 0x8a, H_RAX, H_RSP, F_AT(flags) + 1);
    put_rm(c, true, 0x0b, H_RAX, H_RBP, V_AT(rflags));
    put_alu_imm(c, true, 4, H_RAX, ~(s32)(FL_VM | FL_RF));
    put_op_mem(t, true, 0x89, H_RAX, &m);
    stack_move(t, -8);
}

/* Only the arithmetic flags and IF change, and IF such that nobody waits for it. */
static void emit_popf(struct tr *t, unsigned cpl)
{
    struct code_buf *c = t->c;
    struct ea e = stack_ea(t, RSP, 0);
    struct mem m;
    mem_check(t, &e, 8, false, &m);
    flags_spare(t);
    slow_if_set(t, V_AT(flags_intercepted));
    put_op_mem(t, true, 0x8b, H_RAX, &m);
    put_mov_rr(c, H_RCX, H_RAX);
    put_rm(c, true, 0x33, H_RCX, H_RBP, V_AT(rflags));
    put_rr(c, false, 0xf7, 0, H_RCX); /* test */
    put4(c, (u32)(FL_TF | FL_DF | FL_NT | FL_AC | FL_ID | FL_IOPL | FL_RF | (cpl ? FL_IF : 0)));
    slow_if(t, CC_NE);
    put_alu_imm(c, false, 4, H_RCX, FL_IF);
    u8 *same = put_jcc(c, CC_E);
    put_alu_imm_mem(c, false, 7, H_RBP, V_AT(requests), 0);
    slow_if(t, CC_NE);
    slow_if_set(t, V_AT(guest_mode));
    put_rm(c, true, 0x31, H_RCX, H_RBP, V_AT(rflags));
    put_target(same, c->p);
    put_rr(c, false, 0x8b, H_RCX, H_RAX); /* as LAHF and SETO have it */
    put_rr(c, false, 0xc1, 5, H_RCX), put1(c, 11);
    put_alu_imm(c, false, 4, H_RCX, 1);
    put_alu_imm(c, false, 4, H_RAX, (s32)(FL_ARITH & 0xff));
    put_rr(c, false, 0xc1, 4, H_RAX), put1(c, 8);
    put_rr(c, false, 0x0b, H_RAX, H_RCX);
    put_rm(c, false, 0x89, H_RAX, H_RSP, F_AT(flags));
    t->flags = FL_MEMORY;
    t->recipe.op = AGAIN_NONE;
    stack_move(t, 8);
}

/* ---- interrupts ---- */

/*
 * When nobody waits for IF, the boundary behind STI has nothing to do and the one behind the next instruction only ends the
 * shadow, which nobody sees: outside guest mode that takes an interrupt. The path must go on behind the two, so that no
 * slice ends between them.
 */
static void emit_sti(struct tr *t)
{
    test_state(t, V_AT(rflags), FL_IF);
    if (t->q->region || t->idx + 2 >= t->q->first + t->q->count) {
        slow_if(t, CC_E);
        return;
    }
    u8 *on = put_jcc(t->c, CC_NE);
    put_alu_imm_mem(t->c, false, 7, H_RBP, V_AT(requests), 0);
    slow_if(t, CC_NE);
    slow_if_set(t, V_AT(guest_mode));
    put_state(t, 1, V_AT(rflags), FL_IF);
    put_target(on, t->c->p);
}

/* ---- user access ---- */

/* A grant without AC holds with it; not so the other way. */
static void emit_ac(struct tr *t, bool on)
{
    struct code_buf *c = t->c;
    u8 *off = NULL;
    if (!on) {
        test_state(t, V_AT(rflags), FL_AC);
        off = put_jcc(c, CC_E);
    }
    put_state(t, on ? 1 : 4, V_AT(rflags), on ? (s32)FL_AC : ~(s32)FL_AC);
    put_rm(c, true, 0x8b, H_RAX, H_RBP, V_AT(tlb_by_ac) + on * 8);
    put_rm(c, true, 0x89, H_RAX, H_RBP, V_AT(tlb_now));
    if (!on) {
        put_call_to(c, t->j->forget);
        put_target(off, c->p);
    }
}

/* ---- memory ---- */

static void emit_cmpxchg16b(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    struct ea e;
    struct mem m;
    ea_of(t, i, &e);
    flags_keep(t);
    t->recipe.op = AGAIN_NONE; /* its registers may not be where they were */
    mem_check(t, &e, 16, true, &m);
    mem_to_rcx(t, &m);
    flags_spare(t);
    put1(c, 0xf6), put1(c, 0xc1), put1(c, 15); /* test cl, 15: #GP */
    slow_if(t, CC_NE);
    flags_want(t);
    put_call_to(c, t->j->cmpxchg16b[i->flags & INSN_LOCK ? 1 : 0]);
}

/* At the address in RCX. */
static void cmpxchg16b_stub(struct code_buf *c, bool locked)
{
    put_rm(c, true, 0x89, H_RSI, H_RSP, F_AT(temp) + 8);
    put_mov_rr(c, H_RSI, H_RCX);
    put_mov_rr(c, H_RAX, host_of[RAX]);
    put_mov_rr(c, H_RCX, host_of[RCX]);
    if (locked)
        put1(c, 0xf0);
    put_rm(c, true, 0x0fc7, 1, H_RSI, 0);
    put_mov_rr(c, host_of[RAX], H_RAX);
    put_rm(c, true, 0x8b, H_RSI, H_RSP, F_AT(temp) + 8);
    put1(c, 0xc3);
}

static void emit_pop_memory(struct tr *t, const struct insn *i)
{
    struct ea from = stack_ea(t, RSP, 0), to;
    struct mem m;
    ea_of(t, i, &to);
    if (to.base == RSP) /* as it is behind the POP */
        to.disp += 8;
    mem_check(t, &from, 8, false, &m);
    put_op_mem(t, true, 0x8b, H_RAX, &m);
    put_rm(t->c, true, 0x89, H_RAX, H_RSP, F_AT(temp));
    mem_check(t, &to, 8, true, &m);
    put_rm(t->c, true, 0x8b, H_RAX, H_RSP, F_AT(temp));
    put_op_mem(t, true, 0x89, H_RAX, &m);
    stack_move(t, 8);
}

static void emit_store_selector(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    struct ea e;
    struct mem m;
    ea_of(t, i, &e);
    mem_check(t, &e, 2, true, &m);
    put_rm(c, false, 0x0fb7, H_RAX, H_RBP, V_AT(seg) + (s32)((i->reg & 7) * sizeof(struct segment) + offsetof(struct segment, sel)));
    put1(c, 0x66);
    put_op_mem(t, false, 0x89, H_RAX, &m);
}

/* BT and its relatives with a bit string in memory: the register says where from the address, by bits. */
static void emit_bit_string(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    bool w = i->opsize == 8, write = i->row != ROW_BT_Mv_Gv, locked = i->flags & INSN_LOCK;
    unsigned reg = host_of[i->reg];
    struct ea e;
    ea_of(t, i, &e);
    flags_spare(t);
    ea_lea(t, H_RAX, &e, 0);
    put_rr(c, true, w ? 0x8b : 0x63, H_RCX, reg); /* mov, or movsxd */
    put_rr(c, true, 0xc1, 7, H_RCX), put1(c, w ? 6 : 5);
    put_rmx(c, true, 0x8d, H_RAX, H_RAX, H_RCX, w ? 3 : 2, 0);
    put_rm(c, true, 0x89, H_RAX, H_RSP, F_AT(temp));
    tlb_ask(t, i->opsize, write);
    refill_or_slow(t, write);
    put_rm(c, true, 0x8b, H_RCX, H_RSP, F_AT(temp));
    put_rm(c, true, 0x03, H_RCX, H_RAX, offsetof(struct tlb_entry, addend));
    if (locked) {
        put1(c, 0xf6), put1(c, 0xc1), put1(c, i->opsize - 1u); /* no split locks on the host */
        slow_if(t, CC_NE);
        put_rr(c, false, 0x8b, H_RAX, reg);
        put_alu_imm(c, false, 4, H_RAX, w ? 63 : 31);
        put_rm(c, true, 0x89, H_RAX, H_RSP, F_AT(temp));
        flags_want(t);
        put_rm(c, true, 0x8b, H_RAX, H_RSP, F_AT(temp));
        put1(c, 0xf0);
        put_rm(c, w, 0x0f00 | i->opcode, H_RAX, H_RCX, 0);
        return;
    }
    flags_want(t);
    put_rm(c, w, 0x8b, H_RAX, H_RCX, 0);
    put_rr(c, w, 0x0f00 | i->opcode, reg, H_RAX); /* modulo the operand size */
    if (write)
        put_rm(c, w, 0x89, H_RAX, H_RCX, 0);
}

bool emit_system(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    unsigned cpl = block_cpl(t->b->mode);
    bool cpl0 = i->row == ROW_CLI || i->row == ROW_STI || i->row == ROW_CLAC || i->row == ROW_STAC || i->row == ROW_SWAPGS ||
                i->row == ROW_MOV_Ry_Cy;
    if (i->row == ROW_LFENCE) /* loads are in order */
        return false;
    if (i->row == ROW_MFENCE || i->row == ROW_SFENCE) {
        put1(c, 0x0f), put1(c, 0xae), put1(c, i->row == ROW_MFENCE ? 0xf0 : 0xf8);
        return true; /* where they were */
    }
    if (bit_string(i)) {
        emit_bit_string(t, i);
        return true;
    }
    if (i->row == ROW_CMPXCHG16B_Mdq) {
        emit_cmpxchg16b(t, i);
        return true;
    }
    if (i->row == ROW_POP_Ev) {
        emit_pop_memory(t, i);
        return true; /* where they were */
    }
    if (i->row == ROW_MOV_Ev_Sw && (i->flags & INSN_MEM)) {
        emit_store_selector(t, i);
        return true;
    }
    if (i->row == ROW_PUSHFQ) {
        emit_pushf(t);
        return false;
    }
    if (i->row == ROW_POPFQ) {
        emit_popf(t, cpl);
        return false;
    }
    flags_spare(t);
    if (cpl && cpl0) { /* a fault, or not, as IOPL says */
        slow_from(t, put_jmp(c));
        return false;
    }
    switch (i->row) {
    case ROW_CLI: put_state(t, 4, V_AT(rflags), ~(s32)FL_IF); break;
    case ROW_STI: emit_sti(t); break;
    case ROW_CLD: put_state(t, 4, V_AT(rflags), ~(s32)FL_DF); break;
    case ROW_STD: put_state(t, 1, V_AT(rflags), FL_DF); break;
    case ROW_CLAC: emit_ac(t, false); break;
    case ROW_STAC: emit_ac(t, true); break;
    case ROW_SWAPGS:
        put_rm(c, true, 0x8b, H_RAX, H_RBP, V_AT(kernel_gs_base));
        put_rm(c, true, 0x8b, H_RCX, H_RBP, V_AT(seg[SEG_GS].base));
        put_rm(c, true, 0x89, H_RAX, H_RBP, V_AT(seg[SEG_GS].base));
        put_rm(c, true, 0x89, H_RAX, H_RBP, V_AT(seg_base[SEG_GS]));
        put_rm(c, true, 0x89, H_RCX, H_RBP, V_AT(kernel_gs_base));
        break;
    case ROW_RDFSBASE_Ry: case ROW_RDGSBASE_Ry: {
        unsigned seg = i->row == ROW_RDFSBASE_Ry ? SEG_FS : SEG_GS;
        test_state(t, V_AT(cr4), CR4_FSGSBASE);
        slow_if(t, CC_E);
        put_rm(c, i->opsize == 8, 0x8b, H_RAX, H_RBP, V_AT(seg) + (s32)(seg * sizeof(struct segment)));
        reg_store(t, i->rm, H_RAX);
        break;
    }
    case ROW_MOV_Ry_Cy:
        slow_if_set(t, V_AT(guest_mode));
        put_rm(c, true, 0x8b, H_RAX, H_RBP, i->reg == 0 ? V_AT(cr0) : i->reg == 2 ? V_AT(cr2) : i->reg == 3 ? V_AT(cr3) : V_AT(cr4));
        reg_store(t, i->rm, H_RAX);
        break;
    case ROW_MOV_Ev_Sw: /* movzx */
        put_rm(c, false, 0x0fb7, H_RAX, H_RBP, V_AT(seg) + (s32)((i->reg & 7) * sizeof(struct segment) + offsetof(struct segment, sel)));
        reg_store(t, i->rm, H_RAX);
        break;
    case ROW_RDPKRU:
        test_state(t, V_AT(cr4), CR4_PKE);
        slow_if(t, CC_E);
        put_rr(c, false, 0x85, host_of[RCX], host_of[RCX]);
        slow_if(t, CC_NE);
        put_rm(c, false, 0x8b, host_of[RAX], H_RBP, V_AT(pkru));
        put_mov_imm32(c, host_of[RDX], 0);
        break;
    }
    return false;
}
_Static_assert(offsetof(struct segment, base) == 0, "RDFSBASE reads it there");

/* ---- repeated MOVS and STOS ---- */

bool string_possible(bool wide, const struct insn *i)
{
    unsigned op = i->opcode;
    return wide && !insn_row(i)->map && (op == 0xa4 || op == 0xa5 || op == 0xaa || op == 0xab) && (i->flags & (INSN_REP | INSN_REPNE)) &&
           i->adsize == 8 && i->seg != SEG_FS && i->seg != SEG_GS;
}

/* All of @count - 1 = RCX elements and one from the host's @reg on lie in one granted page; its addend to frame + @to. */
static void string_check(struct tr *t, unsigned reg, unsigned lg2, bool write, s32 to)
{
    struct code_buf *c = t->c;
    put_rmx(c, true, 0x8d, H_RAX, reg, H_RCX, lg2, (1 << lg2) - 1);
    put_rr(c, true, 0x33, H_RAX, reg);
    put_alu_imm(c, true, 7, H_RAX, PAGE_SIZE);
    slow_if(t, CC_AE);
    put_mov_rr(c, H_RAX, reg);
    tlb_ask(t, 1, write);
    refill_or_slow(t, write);
    put_rm(c, true, 0x8b, H_RAX, H_RAX, offsetof(struct tlb_entry, addend));
    put_rm(c, true, 0x89, H_RAX, H_RSP, to);
}

/* The host's own, when it stays within a page. */
void emit_string(struct tr *t, const struct insn *i)
{
    struct code_buf *c = t->c;
    bool move = i->opcode <= 0xa5;
    unsigned size = i->opcode & 1 ? i->opsize : 1, lg2 = (unsigned)__builtin_ctz(size);
    flags_spare(t);
    test_state(t, V_AT(rflags), FL_DF);
    slow_if(t, CC_NE);
    put_rm(c, true, 0x8d, H_RCX, host_of[RCX], -1);
    put_alu_imm(c, true, 7, H_RCX, (s32)(PAGE_SIZE >> lg2));
    slow_if(t, CC_AE);
    string_check(t, host_of[RDI], lg2, true, F_AT(temp));
    if (move) {
        put_rm(c, true, 0x8d, H_RCX, host_of[RCX], -1);
        string_check(t, host_of[RSI], lg2, false, F_AT(temp2));
    }
    put_call_to(c, t->j->string[lg2 + (move ? 4 : 0)]);
}

/* The addends are in the frame. */
static void string_stub(struct code_buf *c, unsigned lg2, bool move)
{
    put_rm(c, true, 0x03, H_RDI, H_RSP, F_AT(temp) + 8);
    if (move)
        put_rm(c, true, 0x03, H_RSI, H_RSP, F_AT(temp2) + 8);
    else
        put_mov_rr(c, H_RAX, host_of[RAX]);
    put_mov_rr(c, H_RCX, host_of[RCX]);
    if (lg2 == 1)
        put1(c, 0x66);
    put1(c, 0xf3);
    put_rex(c, lg2 == 3, 0, 0, 0);
    put1(c, (move ? 0xa4 : 0xaa) + (lg2 > 0));
    put_mov_rr(c, host_of[RCX], H_RCX);
    put_rm(c, true, 0x2b, H_RDI, H_RSP, F_AT(temp) + 8);
    if (move)
        put_rm(c, true, 0x2b, H_RSI, H_RSP, F_AT(temp2) + 8);
    put1(c, 0xc3);
}

/* ---- stubs: code that names registers implicitly is not in translations ---- */

void system_make_stubs(struct jit *j, struct code_buf *c)
{
    /* What cells_forget() of the MMU does. Changes no register and no flag. */
    j->forget = c->p;
    for (s32 n = 0; n < CELLS; n++) {
        put_rm(c, true, 0xc7, 0, H_RBP, V_AT(cell_limit) + n * 8);
        put4(c, 0);
    }
    put1(c, 0xc3);
    for (unsigned n = 0; n < 8; n++) {
        j->string[n] = c->p;
        string_stub(c, n & 3, n >= 4);
    }
    for (unsigned n = 0; n < 2; n++) {
        j->cmpxchg16b[n] = c->p;
        cmpxchg16b_stub(c, n);
    }
}
