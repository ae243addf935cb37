/*
 * The loop of an engine: finds decoded blocks (block.h) and runs them, one call per instruction; an
 * engine that knows a faster way for some blocks says so with a hook. Written once and inlined into
 * each engine, so that the boundary between two instructions means the same in all of them.
 *
 * Between two instructions v->attention says whether anything has to be looked at; cpu_boundary() is
 * called exactly once for each boundary at which it is not zero, before the next instruction, and at
 * the start and after every unwind. The budget is exact: a block is cut where it would pass it.
 *
 * Faults leave bodies through v->unwind. icount is brought up to date at the end of a block, at a
 * boundary and at an unwind, from how far v->insn had come.
 */
#pragma once
#include "base/log.h"
#include "cpu/cpu.h"
#include "cpu/interp.h"
#include "cpu/pmu.h"

#include <inttypes.h>
#include <stdio.h>

#define UNWINDS_MAX 65536

/* What lookups depend on besides RIP; refreshed whenever it may have changed. */
struct context {
    struct jump_cache_entry *hints;
    u64 cs_base;
    u64 rip_max; /* the CS limit; ~0 in 64-bit mode */
    u32 mode;
};

static alwaysinline void context_load(struct vcpu *v, struct context *c)
{
    c->hints = mmu_jump_cache(v);
    c->cs_base = v->seg_base[SEG_CS];
    c->rip_max = v->code_mode == CODE_64 ? ~0ull : v->seg[SEG_CS].limit;
    c->mode = block_mode(v);
}

static alwaysinline u32 attention(struct vcpu *v)
{
    return atomic_load_explicit(&v->attention, memory_order_relaxed);
}

static noinline struct block *find_slow(struct vcpu *v, const struct context *c)
{
    v->insn = NULL;
    v->interp->current = NULL;
    v->rip &= v->linear_mask;
    if (v->rip > c->rip_max)
        cpu_gp0(v);
    struct block *b = block_find(v, (c->cs_base + v->rip) & v->linear_mask, c->mode);
    return v->rip + b->bytes - 1 > c->rip_max ? block_single(v) : b;
}

static alwaysinline struct block *find(struct vcpu *v, const struct context *c)
{
    gva_t la = (c->cs_base + v->rip) & v->linear_mask;
    const struct jump_cache_entry *hint = &c->hints[la & ((1u << JUMP_CACHE_BITS) - 1)];
    if (likely(hint->rip == la)) {
        struct block *b = hint->block;
        if (likely(b->mode == c->mode && v->rip + b->bytes - 1 <= c->rip_max))
            return b;
    }
    return find_slow(v, c);
}

/* Why the loop is left although there is budget. */
static enum run_result leave_reason(const struct vcpu *v, u32 requests)
{
    if (v->activity == ACTIVITY_SHUTDOWN && !v->guest_mode)
        return RUN_SHUTDOWN;
    if (requests & REQ_EXIT)
        return RUN_REQUEST;
    if (v->icount >= v->budget_end)
        return RUN_BUDGET;
    return v->activity != ACTIVITY_ACTIVE ? RUN_HALTED : RUN_REQUEST;
}

/* The boundary between two instructions; false: leave with *result. */
static noinline bool boundary(struct vcpu *v, enum run_result *result)
{
    v->rip &= v->linear_mask;
    u32 requests = atomic_load_explicit(&v->requests, memory_order_acquire);
    atomic_fetch_and_explicit(&v->attention, ~(u32)ATT_BLOCK, memory_order_relaxed);
    if (!attention(v) && v->activity == ACTIVITY_ACTIVE)
        return true;
    v->interp->current = NULL; /* a fault from here on is not v->insn's: that has retired */
    if (cpu_boundary(v))
        return true;
    *result = leave_reason(v, requests);
    return false;
}

/* ---- --trace insn ---- */

static noinline void trace_before(struct vcpu *v) { memcpy(v->interp->traced, v->gpr, sizeof(v->interp->traced)); }

static noinline void trace_after(struct vcpu *v, const struct insn *i, u64 rip)
{
    static const char names[16][4] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                      "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
    char line[16 * 24 + 32];
    int at = 0;
    line[0] = 0;
    for (unsigned r = 0; r < 16; r++)
        if (v->gpr[r] != v->interp->traced[r])
            at += snprintf(line + at, sizeof(line) - (size_t)at, " %s=%" PRIx64, names[r], v->gpr[r]);
    log_line(LOG_insn, "cpu%u %04x:%" PRIx64 " %s%s fl=%" PRIx64, v->index, v->seg[SEG_CS].sel, rip,
             insn_row(i)->mnemonic, line, cpu_rflags(v));
}

/* ---- the loop ---- */

/* What the hook did with a block that is about to run. */
enum hot_result {
    HOT_COLD,  /* nothing: interpret it */
    HOT_DONE,  /* it ran, and perhaps others behind it: v->rip and v->icount are those of a boundary, find the next */
    HOT_LEAVE, /* it ran, and what lookups depend on may have changed */
};
typedef enum hot_result hot_fn(struct vcpu *v, struct block *b, const struct context *c);

static alwaysinline enum run_result run_loop(struct vcpu *v, bool trace, hot_fn *hot)
{
    struct interp *ip = v->interp;
    struct context c;
    enum run_result result;

    for (;;) {
        if (v->icount >= v->budget_end)
            return RUN_BUDGET;
        if (unlikely(attention(v) || v->activity != ACTIVITY_ACTIVE) && !boundary(v, &result))
            return result;
        context_load(v, &c);

        for (;;) { /* near branches lead from block to block here */
            const struct block *b = find(v, &c);
            if (hot) {
                enum hot_result h = hot(v, (struct block *)b, &c);
                if (h != HOT_COLD) {
                    if (unlikely(h == HOT_LEAVE || attention(v) || v->icount >= v->budget_end))
                        break;
                    continue;
                }
            }
            const struct insn *i = b->insn, *end = i + b->n;
            if (unlikely(b->n > v->budget_end - v->icount))
                end = i + (v->budget_end - v->icount);
        again:;
            u64 rip = v->rip;
            ip->current = (struct block *)b;
            ip->start = i;
            for (;;) {
                v->rip = rip;
                rip += i->len;
                v->next_rip = rip;
                v->insn = i;
                if (trace)
                    trace_before(v);
                i->fn(v, i);
                if (trace)
                    trace_after(v, i, rip - i->len);
                i++;
                if (unlikely(attention(v)))
                    goto attend;
                if (i == end)
                    break;
            }
            v->rip = v->next_rip;
            /* The difference of pointers is a division, which the usual case does without. */
            v->icount += likely(ip->start == b->insn && i == b->insn + b->n) ? b->n : (u64)(i - ip->start);
            if (unlikely(!b->near || v->icount >= v->budget_end))
                break;
            continue;

        attend:
            v->rip = v->next_rip;
            v->icount += (u64)(i - ip->start);
            if (v->icount >= v->budget_end || (attention(v) & ATT_BLOCK))
                break;
            /*
             * While something keeps asking for attention (TF, breakpoints), staying in the block spares
             * a block for every address.
             */
            if (!boundary(v, &result))
                return result;
            end = b->insn + b->n;
            if (unlikely((u64)(end - i) > v->budget_end - v->icount))
                end = i + (v->budget_end - v->icount);
            struct context now;
            context_load(v, &now);
            if (i < end && v->rip == rip && b->mode == now.mode && now.hints == c.hints && now.cs_base == c.cs_base &&
                now.rip_max == c.rip_max && !(attention(v) & ATT_BLOCK) &&
                v->icount < v->budget_end && v->activity == ACTIVITY_ACTIVE)
                goto again;
            c = now;
            if (v->icount >= v->budget_end)
                return RUN_BUDGET;
        }
    }
}

/* The engine returns: v->icount counts everything, nothing is under way. */
static inline enum run_result run_ended(struct vcpu *v, enum run_result result)
{
    v->interp->current = NULL;
    if (unlikely(v->pmu_on))
        pmu_run_ends(v);
    return result;
}

/*
 * After setjmp(v->unwind) returned @reason: counts what had been done, and delivers. True: the run loop
 * must be given its turn. A guest whose exception handlers fault at once retires nothing, so that the
 * budget alone would never end.
 */
static inline bool run_unwound(struct vcpu *v, int reason)
{
    struct interp *ip = v->interp;
    if (!reason) {
        ip->unwinds = 0;
        if (unlikely(v->pmu_on))
            pmu_run_begins(v);
        return false;
    }
    if (ip->current && v->insn) { /* instructions before the one that unwound */
        v->icount += (u64)(v->insn - ip->start);
        log_at(insn, "cpu%u %04x:%" PRIx64 " %s unwinds (%d)", v->index, v->seg[SEG_CS].sel, v->rip,
               insn_row(v->insn)->mnemonic, reason);
    }
    ip->current = NULL;
    cpu_handle_unwind(v, reason);
    return ++ip->unwinds >= UNWINDS_MAX;
}
