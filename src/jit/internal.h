/*
 * Between the translator (translate*.c) and the engine (jit.c).
 *
 * Translated code runs with guest registers in host registers (host_of[]), RBP pointing into struct
 * vcpu, RSP at a struct frame, and RAX and RCX free. Guest flags are in the host's where the
 * translation needs them, else in frame.flags.
 */
#pragma once
#include "cpu/cpu.h"
#include "jit/emit.h"
#include "jit/jit.h"

/* RBP points this far into struct vcpu, so that all that is hot is reached by a one-byte displacement. */
#define V_BIAS 112
#define V_AT(field) ((s32)offsetof(struct vcpu, field) - V_BIAS)

/* Where guest registers live; H_NONE: in v->gpr. R8..R11 are what compilers use least in the kernel
 * and where one that is used costs least, since RAX, RCX (scratch: shift counts, LAHF, byte
 * registers without REX), RSP and RBP of the host are taken. */
static const u8 host_of[16] = {
    [RAX] = H_R9, [RCX] = H_R10, [RDX] = H_RDX, [RBX] = H_RBX, [RSP] = H_R11, [RBP] = H_R8, [RSI] = H_RSI, [RDI] = H_RDI,
    [R8] = H_NONE, [R9] = H_NONE, [R10] = H_NONE, [R11] = H_NONE, [R12] = H_R12, [R13] = H_R13, [R14] = H_R14, [R15] = H_R15,
};

/* On the host's stack while translated code runs. */
struct frame {
    s64 left;  /* instructions of the budget behind the running block */
    u64 rip;   /* guest address at which the running block begins */
    u64 flags; /* AL = OF, AH = as LAHF says: valid where the translation says so */
    struct jump_cache_entry *codes; /* mmu_jump_codes() */
    u64 end;   /* v->budget_end that .left counts from */
    u64 temp, temp2;
    struct jit *jit;
    u64 units; /* enum unit: what the host holds of the guest's */
    u64 linear; /* address, of an access in 16-bit code; what make_ask_stub()'s code was told */
};
#define F_AT(field) ((s32)offsetof(struct frame, field))
_Static_assert(sizeof(struct frame) % 16 == 0, "RSP stays aligned");

/* What the host can hold of the guest's SIMD state; the first four as in simd_ok. */
enum unit {
    UNIT_X87 = BIT(0),  /* the registers, control and status */
    UNIT_MMX = BIT(1),  /* which may be used as MMX registers */
    UNIT_SSE = BIT(2), UNIT_AVX = BIT(3), /* the vector registers, all of them with either */
    UNIT_FP = BIT(4),   /* MXCSR */
};
#define UNIT_OF_SIMD_OK 0xfu

/* What a call of a body is told besides the instruction: its distance from the start of the translation
 * (signed), its number, and how many instructions the entry counted; packed in one register. */
#define INFO(off, idx, n) ((u64)(s64)(off) << 16 | (u64)(idx) << 8 | (n))
#define INFO_OFF(x) ((s64)(x) >> 16)
#define INFO_IDX(x) ((x) >> 8 & 0xff)
#define INFO_N(x) ((x) & 0xff)

/* In hand when translated code is left: the reason in bits 3:0, the number of the link or guard above. */
#define EXIT_REASON(x) ((x) & 15)
#define EXIT_NUMBER(x) ((x) >> 4)

/*
 * That a page other than the one in which a translation begins is mapped executable where it was: what .rip is
 * equal to frame.rip says, until the MMU overwrites it (struct code_guards). Else the TLB is asked.
 */
struct guard {
    u64 rip;
    u64 page; /* its linear address, from frame.rip on; */
    u64 host; /* 0: nowhere yet */
    u64 from; /* likewise .page, from the instruction on that needs it */
};

/* A direct branch between two blocks: a JMP whose target is set when both are translated. */
struct link {
    u8 *at;          /* its rel32, in the writable mapping */
    const u8 *unlinked;
    u64 host;        /* where the block that it leads to begins; in another page: where in that page */
    struct guard *guard; /* into another page: what stands in front of it; else NULL */
    struct block *from, *to;   /* .to NULL: not linked */
    u32 next_in, prev_in; /* links into .to, while that is not NULL */
    u32 next_out;    /* next link out of .from */
};

/* block.links: heads of the two lists, numbers of links; 0 ends. */
struct block_links {
    u32 in, out;
    u32 n; /* instructions that the translation's entry counts */
    struct block *head;         /* whose translation it is, or was */
    struct block_links *next;   /* in the segment */
    struct block_user *users;   /* of which the translation's other blocks have lists */
    u32 nusers;
};

#define LINK_MAX (1u << 18)
#define SEGMENTS 8u
#define GUARDS (1u << 17)
#define GUARDS_ROOM (4 * PATH_MAX_BLOCKS + 8) /* that a translation may want, twice */

/* What is translated together (path.c): blocks, by offset from the first. */
#define PATH_MAX_INSNS 160u
#define PATH_MAX_BLOCKS 24u
#define PATH_MAX_PAGES 8u
struct path {
    unsigned n, nblocks, npages;
    const struct insn *insn[PATH_MAX_INSNS];
    s32 off[PATH_MAX_INSNS];
    struct block *block[PATH_MAX_BLOCKS];
    s32 at[PATH_MAX_BLOCKS];
    /* The pages that they are in: distance in pages from the first, and host address. */
    struct path_page { s64 distance; u64 host; } page[PATH_MAX_PAGES];
    bool near; /* of the last block */
};
/* The page of the byte at @delta: so many pages from the first. */
static inline s64 page_distance(u64 host, s64 delta)
{
    s64 at = (s64)(host & ~PAGE_MASK) + delta;
    return (at - (at & (s64)~PAGE_MASK)) / (s64)PAGE_SIZE;
}
void path_find(struct vcpu *v, struct block *head, struct path *p);
static inline bool in_page(const struct block *b, s64 delta)
{
    s64 at = (s64)(b->host & ~PAGE_MASK) + delta;
    return at >= 0 && at < (s64)PAGE_SIZE;
}

/* block.users: a translation of @head, made of this block too, if it is still the one that has @links. */
struct block_user {
    struct block *head;
    const struct block_links *links;
    struct block *of;
    struct block_user *next;
};

/* Part of a block, for lock-step. */
#define PARTS (1u << 16)
struct part {
    const struct block *b;
    u16 first, count;
    bool stop;
    u32 size;
    u8 *code;
};

struct jit {
    u8 *rw, *rx;        /* the two mappings of the code arena */
    size_t size;
    size_t used, base;   /* of code; base: behind the stubs */
    size_t cold, middle; /* of what seldom runs, and tables; from the middle on */
    size_t used_end, cold_end; /* of the segment in use */
    unsigned segment;
    struct block_links *in_segment[SEGMENTS];
    u8 *enter, *call, *far, *exit, *vec_store, *units_load, *forget, *refill[2], *string[8], *cmpxchg16b[2], *guard_ask, *gone; /* stubs, addresses in the writable mapping */
    u8 *ask[2][2];      /* without and with refill[]; for reads, for writes */
    void (*serialise)(void);
    bool patched;       /* code that may have run was written: serialise before it runs again */
    bool moved;         /* since it was entered, translated code has gone on in another context (jit_call_far()) */
    bool lockstep;      /* translations go no further than the TLB grants, and call no bodies */
    u32 next_cell[2];   /* to be given to a place in translated code */
    u32 heat;           /* executions before a block is translated */
    struct link *link;
    u32 links;           /* numbers below were used, */
    u32 link_free, links_free; /* of which these are free again: a list through .next_out */
    u32 pending;        /* the link that left translated code last */
    bool interpret;     /* the next block: translated code could not go on there */
    struct guard *guard; /* GUARDS of them, behind the executable mapping of the arena */
    u32 guards, guards_end; /* used, of the segment */
    struct code_guards told;
    bool host_has[FEAT_COUNT]; /* by the host's CPUID; FEAT_NONE: true */
    bool host_xsave;    /* and its operating system has XSAVE on */
    bool zmm;           /* the guest's vector registers are wider than 256 bits */
    _Alignas(64) u8 x87_image[576];
    struct part *parts; /* lock-step: translations of parts of blocks, PARTS of them, made on first use */
    const struct part *part; /* that ran last */
    struct jit_stats stats;
};

struct translation_request {
    struct vcpu *v;
    struct jit *j;
    struct block *b;    /* the instructions, perhaps of several blocks (path.c), */
    struct block *head; /* of which this is the first */
    const s32 *off;     /* where each instruction is; NULL: one block */
    const struct path *path; /* NULL: in no path */
    unsigned first, count;
    bool region; /* for jit_run_region: no links, no lookups, ends in JIT_EXIT_STOP */
    bool stop;   /* the slow path of the last instruction is JIT_EXIT_STOP in front of it */
};
/* Translates into @c, and what seldom runs into @cold (both of the writable mapping; @cold NULL: into @c too). False: buffer full. */
bool translate(const struct translation_request *q, struct code_buf *c, struct code_buf *cold, struct block_links *links);

/* ---- segmented.c ---- */
/* Whether 16-bit code may be translated, and its translation run, as things are. */
bool jit_segmented_ok(const struct vcpu *v);

/* ---- cache.c ---- */
u32 link_take(struct jit *j); /* 0: none left */
struct guard *guard_take(struct jit *j); /* NULL: none left */
void links_release(struct jit *j, struct block_links *bl);
void link_set(struct jit *j, u32 n, struct block *to);
void cache_init(struct jit *j);
void cache_empty(struct jit *j);
/* Sees to so many bytes of code and of the cold part; translations may go. */
void cache_room(struct vcpu *v, size_t code, size_t cold);
/* A translation is complete. */
void cache_add(struct jit *j, struct block_links *bl);
void cache_block_died(struct vcpu *v, struct block *b);
void cache_blocks_flushed(struct vcpu *v);
/* Room in the cold part of the arena: its offset. Code lies closer together without what seldom runs. */
size_t arena_take(struct jit *j, size_t size);

/* ---- dump.c ---- */
void jit_dump(const struct vcpu *v, const struct path *p, const u8 *code, size_t size, const u8 *cold, size_t rest);

/* ---- refill.c ---- */
/* refill[0] for reads, [1] for writes: RAX, RCX and the flags are as tlb_ask() leaves them, asked again. */
void refill_make_stubs(struct jit *j, struct code_buf *c);

/* ---- units.c ---- */
/* The units an instruction needs to run natively. */
u32 jit_units_of(const struct insn_row *row);
/* Whether a system or string instruction would be run natively, were its memory granted. For lock-step. */
bool system_ready(const struct vcpu *v, const struct insn *i);
/* Called by translated code: makes the host hold the units @need; 0: they are not to be had now. */
u64 jit_units_enter(struct vcpu *v, struct frame *f, u32 need);
/* The vector registers are stored: the rest goes back to struct vcpu, and the host has its own again. */
void jit_units_leave(struct vcpu *v, struct frame *f);
void units_make_stubs(struct jit *j, struct code_buf *c, void (*put_registers)(struct code_buf *c, bool load));

/* ---- emit_sys.c ---- */
void system_make_stubs(struct jit *j, struct code_buf *c);

/* Called by translated code: runs the body of @i. Non-zero: leave translated code (v is up to date). */
u64 jit_call_body(struct vcpu *v, const struct insn *i, u64 info, struct frame *f);
/* Likewise for an instruction that modes and mappings may change with: the code to go on with, or why to leave. */
u64 jit_call_far(struct vcpu *v, const struct insn *i, u64 info, struct frame *f);
/* Registers are in v: the rest of the frame follows. */
void jit_leave(struct vcpu *v, struct frame *f);
