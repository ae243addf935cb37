/*
 * The interpreter's cache of decoded code. A block is a run of instructions within one page, ended by
 * a row with CHK_END, a repeated string instruction, the page, or BLOCK_MAX. Blocks are found by the
 * host address of their first byte (one per physical byte, and what the TLB yields) and the decoding
 * mode; the MMU's jump caches map linear addresses to them and forget with every flush.
 *
 * Memory comes from an arena that is emptied as a whole when it is full. A block killed by a write to
 * its bytes is unlinked and marked; its memory stays readable until then, so that the instruction
 * that modified its own block can finish.
 */
#pragma once
#include "cpu/state.h"

#define BLOCK_MAX 48
#define BLOCK_HASH_BITS 18 /* booting Linux decodes 150 000 blocks */
#define CODE_PAGE_HASH_BITS 13
#define ARENA_SIZE (64u << 20)

struct block {
    u64 host;       /* host address of the first byte */
    u32 mode;       /* block_mode(); 0 once the block is dead */
    u16 n;          /* instructions */
    u16 bytes;
    bool near;      /* ends without changing mode or mappings: the next lookup may use the same context */
    u8 cross;       /* enum block_cross */
    u32 heat;       /* for a second engine: executions so far, and */
    void *code;     /* its translation; NULL: none */
    void *links;    /* what the translation is linked with */
    void *users;    /* translations that begin elsewhere and contain this block */
    struct block *hash_next;
    struct block *page_next;
    struct insn insn[];
};

/*
 * An instruction that begins in one page and ends in the next is a block of its own, which is right only where the
 * next page is the one it was decoded from. In that page's list is a mark that stands for its rest.
 */
enum block_cross { CROSS_NONE, CROSS_INSN, CROSS_MARK };
struct crossing { /* behind the instruction */
    u64 next;              /* host address of the second page */
    struct block *partner; /* the mark, or whose mark it is */
};
static inline struct crossing *block_crossing(const struct block *b)
{
    return (struct crossing *)(uintptr_t)&b->insn[b->n];
}

/* A page with decoded code, by host address. */
struct code_page {
    u64 host;
    u64 granules;   /* bit n: bytes 64n.. of the page are code */
    struct block *blocks;
    struct code_page *next;
    u32 misses;     /* writes to the page that hit no code since its last block */
    u32 patience;   /* misses after which the page's code is dropped to make writes cheap again */
};

struct interp_stats {
    u64 blocks, insns;  /* decoded */
    u64 lookups;        /* that the jump cache did not answer */
    u64 singles;        /* instructions executed without a block */
    u64 smc_writes, smc_blocks; /* writes that hit code, and the blocks they killed */
    u64 arena_flushes;
};

struct interp {
    struct block *current;      /* the running block */
    const struct insn *start;   /* what icount is counted from */
    u8 *arena;
    size_t used;
    struct block *hash[1 << BLOCK_HASH_BITS];
    struct code_page *pages[1 << CODE_PAGE_HASH_BITS];
    struct block *single;       /* of block_single() */
    u32 unwinds;                /* since the engine was entered */
    u64 traced[16];             /* registers before the instruction being traced */
    struct interp_stats stats;
    /* A second engine's: @b, which has code or users, is dead; all blocks are gone. */
    void (*block_died)(struct vcpu *v, struct block *b);
    void (*blocks_flushed)(struct vcpu *v);
};

#define BLOCK_CPL_SHIFT 4
#define BLOCK_CET_SHIFT 6 /* enum cet_state: near branches are others, and the tracker may want an ENDBRANCH */

/* Everything besides the bytes that decoding and the right to execute depend on; never 0. */
static inline u32 block_mode(const struct vcpu *v)
{
    bool real_or_v86 = v->mode == MODE_REAL || v->mode == MODE_V86;
    return 1 | (u32)v->code_mode << 1 | (u32)real_or_v86 << 3 | (u32)v->cpl << BLOCK_CPL_SHIFT | (u32)v->cet << BLOCK_CET_SHIFT;
}
static inline unsigned block_cpl(u32 mode) { return mode >> BLOCK_CPL_SHIFT & 3; }
struct interp *interp_new(void);
void interp_free(struct interp *ip);
/* The block at v->rip, whose linear address is @la; raises the fault that fetching meets. */
struct block *block_find(struct vcpu *v, gva_t la, u32 mode);
/* The block of @mode at host address @host if it has been decoded, else NULL. */
struct block *block_known(struct interp *ip, u64 host, u32 mode);
/* Likewise the instruction there that goes on in the page @next. */
struct block *block_known_cross(struct interp *ip, u64 host, u64 next, u32 mode);
/* One instruction at v->rip, fetched with every check: for what cannot be a cached block (code in device memory, at the CS
 * limit). Valid until the next call. */
struct block *block_single(struct vcpu *v);
/* Physical bytes were written: kills the blocks that contain any of them. */
void block_written(struct vcpu *v, pa_t pa, size_t len);
/* @len bytes of @b's code from its byte @at on. */
void block_bytes(const struct block *b, unsigned at, u8 *to, unsigned len);
bool block_page_holds_code(struct vcpu *v, pa_t pa);
