/* The JIT's own face, beside engine.h: statistics, and what lock-step needs. */
#pragma once
#include "cpu/block.h"
#include "cpu/engine.h"
#include "mmu/mmu.h"

#define JIT_CACHE_DEFAULT (64u << 20)

/* Why translated code came back to the dispatcher. */
enum jit_exit {
    JIT_EXIT_ENTRY,     /* attention or budget, noticed at a block's entry */
    JIT_EXIT_LINK,      /* a direct branch that leads to no translation yet */
    JIT_EXIT_LOOKUP,    /* the jump cache does not know the target */
    JIT_EXIT_FAR,       /* the block ended with something that changes modes or mappings */
    JIT_EXIT_ATTENTION, /* after an instruction that asked for it */
    JIT_EXIT_STOP,      /* the end of a region (lock-step) */
    JIT_EXIT_GUARD,     /* a page of the path is not known to be mapped as it was */
    JIT_EXIT_COUNT,
};

struct jit_stats {
    u64 translated, insns, called;  /* blocks, instructions in them, of which are calls of bodies */
    u64 bytes;                      /* code made */
    u64 entries;                    /* from the dispatcher */
    u64 exits[JIT_EXIT_COUNT];
    u64 links, unlinks;
    u64 died;                       /* translations lost with their blocks */
    u64 evicted;                    /* of which to make room */
    u64 flushes;
    u64 calls;                      /* of bodies */
    u64 slow;                       /* of which by native instructions whose memory access was not granted, or the like */
    u64 stepped_paths, stepped_parts; /* lock-step: instructions run */
    u64 *row_calls;                 /* by row, insn_row_count of them */
    u64 *row_slow;
};
/* NULL when another engine runs @v. */
const struct jit_stats *jit_stats(const struct vcpu *v);

/* The JIT without patience: translates what it is to run for the first time. For tests. */
extern const struct engine engine_jit_eager;

/* ---- lock-step ---- */
/* Whether the translation of @i is code of its own, not a call of the body. */
bool jit_native(const struct vcpu *v, const struct insn *i);
/* Whether it can run as things are: the units it needs are the guest's to use, and none of their exceptions unmasked. */
bool jit_ready(const struct vcpu *v, const struct insn *i);
/* As engine_jit's, but translations stop in front of every call of a body. */
int jit_attach_lockstep(struct vcpu *v);
/* Whether @b, which is about to run, has a translation (a whole path, as engine_jit makes it) that can run as things are. */
bool jit_path_ready(struct vcpu *v, struct block *b);
/* Runs it, and others that it leads to, as far as the first body, at most @budget instructions; how many. v->icount stays. */
u64 jit_run_path(struct vcpu *v, const struct block *b, u64 budget);
/*
 * Executes @count instructions of @b from the @first on, all jit_native, the first of them at v->rip.
 * False when that cannot be translated. @stop: the last one is to stop in front of itself, on its slow path.
 */
bool jit_run_region(struct vcpu *v, struct block *b, unsigned first, unsigned count, bool stop);
/* Host code of the last region, for a report. */
const u8 *jit_region_code(const struct vcpu *v, size_t *size);
