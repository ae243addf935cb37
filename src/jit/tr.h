/*
 * The translator's own header: what its files share while one block is translated.
 *
 *   translate.c  the block: liveness, one emitter per instruction, entry and end
 *   kind.c       which instructions have a translation of their own
 *   flags.c      guest flags in EFLAGS and in the frame
 *   memory.c     addresses, the TLB check, registers
 *   slow.c       calls of bodies, slow paths, exits
 *   emit_int.c, emit_vec.c, emit_sys.c, branch.c: native code by subject
 */
#pragma once
#include "cpu/isa/encode.h"
#include "jit/internal.h"

enum flag_state { FL_MEMORY, FL_HOST, FL_BOTH, FL_NOWHERE };

enum kind {
    K_CALL, K_NOP, K_COPY, K_ACCUMULATOR /* op AL/eAX/rAX, imm */, K_MOFFS, K_COUNT /* 40..4F */, K_LEA,
    K_PUSH_REG, K_PUSH_IMM, K_PUSH_RM, K_POP_REG, K_LEAVE,
    K_JCC, K_JMP, K_JMP_IND, K_CALL_REL, K_CALL_IND, K_RET, K_EXTEND /* 98, 99 */, K_XCHG, K_CMPXCHG, K_MULTIPLY, K_DIVIDE, K_MULX, K_VZERO, K_X87_CONTROL,
    K_SYSTEM, K_STRING /* emit_sys.c */,
};

/*
 * How the flags can be made again from registers that have not changed since: what a slow path does instead
 * of the code in front of it saving them.
 */
struct recipe {
    enum { AGAIN_NONE, AGAIN_CMP, AGAIN_TEST, AGAIN_ADD, AGAIN_SUB, AGAIN_NEG, AGAIN_ZERO } op; /* ADD, SUB, NEG: @a is the result */
    u8 size, a, b; /* guest registers; @b REG_NONE: @imm */
    s32 imm;
};

struct slow {
    u8 *from[8];     /* jumps to it */
    unsigned n;
    u8 *back;        /* where to go on; NULL: leave through the jump cache's slow way */
    bool load_flags; /* EFLAGS must hold the flags at @back */
    struct recipe recipe; /* unless AGAIN_NONE: the flags are not in memory */
    s32 off;
    u8 idx;
    bool fip_valid;
    s32 fip;
    bool spans;      /* there are accesses behind it that were checked in front of it */
    unsigned rcx;    /* tr.rcx at @back */
    u32 units;       /* that the host must hold at @back */
    bool repeats;    /* the body may leave the instruction unfinished */
    u32 leave;       /* what to leave translated code with, + 1, instead of going back */
};

struct ea {
    u8 base, index, scale; /* guest registers, REG_NONE, REG_RIP */
    u8 seg;
    u8 adsize;
    s64 disp; /* REG_RIP: relative to the start of the block */
};

/* A check of a cell that missed: asks the TLB, out of line. */
struct miss {
    u8 *from[2], *back;
    unsigned n;
    struct ea ea;
    struct slow *slow;   /* NULL: a span, for which the translation is left in front of instruction @idx: */
    struct recipe recipe;
    s32 off;
    u32 pages;
    u8 idx;
    bool fip_valid;
    s32 fip;
    u16 cell, size;
    bool write, place; /* @place: at @back RCX is the host's address, not the addend */
};

/* Accesses off one base register that are checked together (span.c), by distance from where it was loaded. */
struct span {
    u8 reg, first, last; /* instructions */
    bool write, checked;
    u16 count, cell;
    s32 lo, end;
};

/* A conditional branch leaves the path. */
struct side_exit {
    u8 *from;
    s64 delta;       /* to where, from the start */
    u8 idx;
    bool save_flags; /* they are in EFLAGS only */
    bool fip_valid;
    s32 fip;
    u32 pages;       /* tr.pages there */
};

/* A look-up in the jump cache that did not find its target in the first way. */
struct second {
    u8 *from, *back;
    struct slow *slow;
};

/* Something in another page follows. If that is not where it was, on another way: */
struct guard_site {
    u8 *from, *back;
    struct guard *guard;
    s32 off;         /* the instruction that follows, or the branch that leads there */
    unsigned idx;
    struct recipe recipe; /* unless AGAIN_NONE: the flags are not in memory */
    bool fip_valid;
    s32 fip;
    u32 link;        /* the branch's; 0: within the path */
    bool branch;     /* its body says where it leads; else the instruction at @off is not the path's */
    s64 delta;       /* where the link leads */
    u8 *unlinked;    /* jump to the exit for the link */
};

struct tr {
    struct code_buf *c;
    const struct translation_request *q;
    struct vcpu *v;
    struct jit *j;
    struct block *b;
    const struct insn *i;
    unsigned idx;      /* of the instruction in the block */
    s32 off;           /* from its start */
    bool wide;         /* 64-bit mode */
    bool segmented;    /* 16-bit code (segmented.c) */
    enum flag_state flags;
    struct recipe recipe; /* of the flags, wherever they are */
    u32 live;          /* flags that matter behind the instruction */
    u32 need;          /* flags it reads or passes through while it writes others */
    u8 kinds[PATH_MAX_INSNS]; /* enum kind of each */
    u8 live_after[PATH_MAX_INSNS]; /* packed FL_ARITH */
    struct slow slow[PATH_MAX_INSNS];
    unsigned nslow;
    struct slow *cur;  /* slow path of the instruction, made on first use */
    struct block_links *links;
    const u8 *entry;   /* where a loop goes on, */
    const u8 *body;    /* or here, when the units are known to be loaded; NULL: not so */
    u8 *again[16];     /* jumps there that do not, for budget or attention */
    unsigned nagain;
    struct span span[PATH_MAX_INSNS];
    unsigned nspans, next_span;
    bool quiet[PATH_MAX_INSNS]; /* it has no slow path: its accesses are checked in front of it */
    u8 span_now[16];   /* by base register: the number of the span, or 0 */
    s64 delta[16];     /* how far base registers have moved since they were loaded */
    u8 align;          /* the access in hand: these bits of its address must be 0, else the slow path is taken, */
    bool align_sure;   /* which then does not come back */
    u8 align_mask[16], align_at[16]; /* what is known so, by base register: bits, and the displacement without .delta */
    unsigned rcx;      /* RCX is the addend of this cell, less one; 0: it is not known */
    unsigned held, got; /* the same at the beginning of the instruction, and behind mem_check() */
    bool loops, calls; /* its last branch leads to its start; it has bodies in it */
    struct side_exit exit[PATH_MAX_BLOCKS];
    unsigned nexit;
    struct guard_site guard[GUARDS_ROOM / 2];
    unsigned nguard;
    struct second second[4];
    unsigned nsecond;
    u32 pages;         /* of the path, bit by number: known to be where they were */
    struct miss miss[2 * PATH_MAX_INSNS];
    unsigned nmiss;
    u32 units;         /* enum unit: known to be in the host's registers */
    bool fip_valid;    /* an x87 instruction at @fip has run, and x87.fip does not say so yet */
    s32 fip;
};

/* ---- flags.c ---- */

/* What the instruction does to the arithmetic flags: which it reads and which it replaces, whatever they were. */
void flag_effects(const struct insn *i, bool native, u32 *reads, u32 *writes);
void flags_save(struct tr *t); /* uses RAX */
void flags_load(struct tr *t); /* uses RAX */
/* EFLAGS are about to be overwritten by something that is not the instruction. */
void flags_disturb(struct tr *t);
/* The flags are in memory, for what is behind the translation. Uses RAX. */
void flags_keep(struct tr *t);
/* A test of our own comes: flags that only EFLAGS hold, and that cannot be made again, are saved. Uses RAX. */
void flags_guard(struct tr *t);
/* Likewise; and here it is. */
void flags_spare(struct tr *t);
/* The flags again, by @r; uses RAX. */
void flags_again(struct tr *t, const struct recipe *r);
/* Before and after an instruction that has written @writes: whether its flags, or those before it, can be made again. */
void flags_before(struct tr *t, const struct insn *i, enum kind k, u32 writes);
void flags_after(struct tr *t, const struct insn *i, enum kind k, u32 writes);
/* General registers that the instruction may change. */
u32 gprs_changed(const struct insn *i, enum kind k);
/* Before the instruction itself, when RAX is free: the flags it needs. */
void flags_want(struct tr *t);

/* ---- slow.c ---- */

/* Takes the slow path of the instruction on @cc. */
void slow_if(struct tr *t, unsigned cc);
void slow_from(struct tr *t, u8 *jump);
struct slow *slow_path(struct tr *t);
void slow_add(struct tr *t, struct slow *s, unsigned cc);
void slow_add_jump(struct tr *t, struct slow *s, u8 *jump);
/* The native sequence is complete: the slow path comes back here. */
void slow_back(struct tr *t);
void emit_body_call(struct tr *t, unsigned idx, s32 off);
/* The same for the last instruction of a block that is not near: goes on wherever it leads. */
void emit_body_far(struct tr *t, unsigned idx, s32 off);
void emit_exit(struct tr *t, u32 reason);
void emit_slow_paths(struct tr *t);
/* Before the translation is left behind instruction @idx: frame.left. Disturbs flags. */
void left_add(struct tr *t, unsigned idx);

/* ---- refill.c ---- */

/* Whether what the TLB does not grant is to be asked of the MMU. */
bool may_refill(const struct tr *t);
/* Behind tlb_ask(): what it does not grant is asked of the MMU, or takes the slow path. */
void refill_or_slow(struct tr *t, bool write);

/* ---- memory.c ---- */

struct mem {
    u8 base, index, scale; /* host registers: [base + index << scale + disp] */
    s32 disp;
};

static inline bool fits32(s64 x) { return x == (s32)x; }
static inline bool in_host(unsigned r) { return r < 16 && host_of[r] != H_NONE; }
/* Whether the components are in host registers: one LEA. */
bool ea_simple(const struct tr *t, const struct ea *e);
void ea_of(struct tr *t, const struct insn *i, struct ea *e);
/* Whether mem_check() can do it. */
bool ea_possible(bool wide, const struct insn *i);
/* The linear address plus @extra in @dst, with no other register. Disturbs flags when !ea_simple(). */
void ea_lea(struct tr *t, unsigned dst, const struct ea *e, s64 extra);
/*
 * The place is granted for the access, or the slow path is taken. RAX and RCX are used; afterwards RAX is
 * free again and RCX is part of the address in @m.
 */
void mem_check(struct tr *t, const struct ea *e, unsigned size, bool write, struct mem *m);
void emit_misses(struct tr *t);
/* Whether the TLB grants the access at the address in RAX; RAX is its entry, RCX the page. */
void tlb_ask(struct tr *t, unsigned size, bool write);
/* RCX = the addend of the cell. */
void cell_addend(struct tr *t, unsigned cell);
/* General registers that are operands and written. */
u32 gprs_written(const struct insn *i);
void loop_find(struct tr *t, unsigned end);
/* op reg, [m] */
void put_op_mem(struct tr *t, bool w, unsigned op, unsigned reg, const struct mem *m);
/* The address itself in RCX. */
void mem_to_rcx(struct tr *t, struct mem *m);
/* Guest register @r in host register @host, and back. */
void reg_load(struct tr *t, unsigned host, unsigned r);
void reg_store(struct tr *t, unsigned r, unsigned host);

/* In branch.c: to an instruction of the path, where @pages of it are known. */
void emit_link_along(struct tr *t, s64 delta, u32 pages);
/* To @delta bytes from the start of the block, in the same page. */
void emit_link_in_page(struct tr *t, s64 delta);

/* ---- segmented.c: 16-bit code, and segments that are not flat ---- */

enum kind kind_segmented(const struct jit *j, const struct insn *i);
void mem_check_segmented(struct tr *t, const struct ea *e, unsigned size, bool write, struct mem *m);
void emit_lea_segmented(struct tr *t, const struct insn *i);
void emit_stack_segmented(struct tr *t, const struct insn *i, enum kind k);
void emit_branch_segmented(struct tr *t, const struct insn *i, enum kind k);

/* ---- span.c ---- */

void spans_find(struct tr *t);
/* The span that the access belongs to, checked or beginning here; or NULL. */
struct span *span_of(struct tr *t, const struct ea *e, unsigned size, bool write);
/* That is in force for a base register. */
struct span *span_now(struct tr *t, unsigned r);
/* After each instruction. */
void spans_step(struct tr *t, const struct insn *i, enum kind k);
/* Whether there are accesses behind the instruction that were checked in front of it. */
bool spans_ahead(const struct tr *t);
/* The translation may be left in front of the instruction in hand; and there. */
void span_exit(struct tr *t, struct miss *m);
void span_leave(struct tr *t, const struct miss *m);

/* ---- kind.c: what has a translation of its own ---- */

/* Rows that use a unit. */
#define CHK_UNITS (CHK_X87 | CHK_X87_NOWAIT | CHK_MMX | CHK_SSE | CHK_AVX)
enum kind kind_of(const struct jit *j, bool wide, const struct insn *i);

/* ---- emit_vec.c ---- */

/* The units of the instructions from @idx on, as far as the next body. */
u32 units_ahead(const struct tr *t, unsigned idx);
/* The units @need (enum unit) are in the host's registers from here on; or the slow path is taken. */
void units_want(struct tr *t, u32 need);
/* At the start of a loop: all that it needs. */
void units_hoist(struct tr *t);
/* FIP and FDP of an instruction that has run: FDP at once, FIP when fip_flush() says. */
void x87_note(struct tr *t, const struct insn *i);
/* x87.fip names the instruction @off from the start, if @valid. Uses RAX, keeps flags. */
void fip_flush(struct tr *t, bool valid, s32 off);
void emit_vzero(struct tr *t, const struct insn *i);
void emit_x87_control(struct tr *t, const struct insn *i);
void vector_begin(struct tr *t, const struct insn *i, struct encode_regs *e);
void vector_end(struct tr *t, const struct insn *i);

/* ---- emit_sys.c ---- */

/* Whether emit_system() or emit_string() can do it, if the row's class is `emit`. */
bool system_possible(bool wide, const struct insn *i);
bool string_possible(bool wide, const struct insn *i);
/* True: its flags are in EFLAGS. */
bool emit_system(struct tr *t, const struct insn *i);
void emit_string(struct tr *t, const struct insn *i);
/* How it changes @r: 0 not, 1 by @by, 2 in another way, or the grants of the MMU with it. */
unsigned system_change(const struct tr *t, const struct insn *i, unsigned r, s64 *by);
/* What lock-step cannot compare: the instruction does more than change registers, memory and flags. */
bool system_beyond(const struct insn *i);

/* ---- emit_int.c ---- */

void emit_copy(struct tr *t, const struct insn *i);
void emit_in_rax(struct tr *t, const struct insn *i, unsigned size, bool write);
void emit_mulx(struct tr *t, const struct insn *i);
void emit_divide(struct tr *t, const struct insn *i);
void emit_xchg(struct tr *t, const struct insn *i);
void emit_accumulator(struct tr *t, const struct insn *i);
void emit_moffs(struct tr *t, const struct insn *i);
void emit_count(struct tr *t, const struct insn *i);
void emit_lea(struct tr *t, const struct insn *i);
void emit_extend(struct tr *t, const struct insn *i);
void emit_push_reg(struct tr *t, const struct insn *i);
void emit_push_imm(struct tr *t, const struct insn *i);
void emit_push_rm(struct tr *t, const struct insn *i);
void emit_pop_reg(struct tr *t, const struct insn *i);
void emit_leave(struct tr *t);
/* Size of stack slots. */
static inline unsigned word(const struct tr *t) { return t->wide ? 8 : 4; }
static inline struct ea stack_ea(const struct tr *t, unsigned base, s64 disp)
{
    return (struct ea){.base = (u8)base, .index = REG_NONE, .seg = SEG_SS, .adsize = t->wide ? 8 : 4, .disp = disp};
}
static inline void stack_move(struct tr *t, s32 by)
{
    put_rm(t->c, t->wide, 0x8d, host_of[RSP], host_of[RSP], by);
}

/* ---- branch.c ---- */

/* Budget and attention at the entry: jumps to where the translation is left. */
void put_entry(struct tr *t, u8 **from_budget, u8 **from_attention);
/* frame.rip += delta; flags are disturbed. */
void rip_add(struct tr *t, s64 delta);
/* A branch inside a path, to the instruction that follows there. */
void emit_along(struct tr *t, const struct insn *i, enum kind k);
void emit_side_exits(struct tr *t);
/* RCX = the address @delta bytes from the start of the block. */
void rip_to_rcx(struct tr *t, s64 delta);
/* A branch whose slow path leaves translated code with what the body said. */
void slow_leaves(struct tr *t, enum jit_exit reason);
/* Before each instruction: its pages are where they were when the path was found. */
void emit_page_guards(struct tr *t, const struct insn *i);
void emit_guard_sites(struct tr *t);
/* Out of line, before the slow paths. */
void emit_seconds(struct tr *t);
/* To @delta bytes from the start, behind the instruction at hand or by it, if it is a @branch. */
void emit_jump(struct tr *t, s64 delta, bool branch);
void emit_jcc(struct tr *t, const struct insn *i);
void emit_call_rel(struct tr *t, const struct insn *i);
void emit_jmp_ind(struct tr *t, const struct insn *i);
void emit_call_ind(struct tr *t, const struct insn *i);
void emit_ret(struct tr *t, const struct insn *i);
/* To the address in RCX when everything of the block has run. */
void emit_goto(struct tr *t);
