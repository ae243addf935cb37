/* Dropping what the software TLBs hold: entries, grants to write, hints where code lies. */
#include "mmu/space.h"

static unsigned array_flush(struct array *a, bool keep_global)
{
    unsigned n = 0;
    for (unsigned i = 0; i < WORDS; i++) {
        u64 drop = a->valid[i] & (keep_global ? ~a->global[i] : ~0ull);
        for (; drop; drop &= drop - 1, n++)
            slot_drop(a, i * 64 + (unsigned)__builtin_ctzll(drop));
    }
    if (!keep_global) {
        memset(a->write_bloom, 0, sizeof(a->write_bloom));
        memset(a->victim, 0xff, sizeof(a->victim));
    }
    return n;
}

static void jump_clear(struct tlb *t, bool keep_global)
{
    for (unsigned i = 0; i < ARRAY_SIZE(t->jump); i++) {
        struct jump_cache *j = t->jump[i];
        for (unsigned n = 0; j && n < ARRAY_SIZE(j->used); n++) {
            u64 drop = keep_global ? j->local[n] : j->used[n];
            for (u64 runs = drop; runs; runs &= runs - 1)
                jump_fill_empty(&j->e[(n * 64 + (unsigned)__builtin_ctzll(runs)) * JUMP_RUN], JUMP_RUN);
            j->used[n] &= ~drop;
            j->local[n] = 0;
        }
    }
}

/*
 * Forgets hints to the page of size @lg2 around @la. Returns the filter classes in which hints remain
 * that share a bit with @la.
 */
static unsigned jump_clear_range(struct tlb *t, gva_t la, unsigned lg2)
{
    unsigned others = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(t->jump); i++) {
        struct jump_cache *j = t->jump[i];
        for (unsigned n = 0; j && n < ARRAY_SIZE(j->used); n++)
            for (u64 runs = j->used[n]; runs; runs &= runs - 1) {
                struct jump_cache_entry *e = &j->e[(n * 64 + (unsigned)__builtin_ctzll(runs)) * JUMP_RUN];
                for (unsigned k = 0; k < JUMP_RUN; k++) {
                    if (!e[k].block)
                        continue;
                    /* The page of the last byte counts too, if it is an instruction that crosses. */
                    if (!((e[k].rip ^ la) >> lg2) || !(((e[k].rip + 14) ^ la) >> lg2))
                        e[k] = (struct jump_cache_entry){JUMP_EMPTY, NULL};
                    else
                        others |= filter_shared(e[k].rip, la) | filter_shared(e[k].rip + 14, la);
                }
            }
    }
    return others;
}

void space_empty(struct mmu *m, struct tlb *t, bool keep_global)
{
    cells_forget(m->v);
    guards_forget(m->v);
    for (unsigned c = 0; c < CONTEXTS; c++)
        m->stats.flushed += array_flush(&t->ctx[c], keep_global);
    if (!keep_global) {
        memset(&t->fragments, 0, sizeof(t->fragments));
        memset(&t->orphans, 0, sizeof(t->orphans));
    }
    jump_clear(t, keep_global);
    if (!keep_global) {
        t->renew = RENEW_NONE;
        t->orphaned = false;
        t->nedges = 0;
    }
}

void space_flush(struct mmu *m, struct tlb *t, bool keep_global)
{
    if (!m->shadow) {
        space_empty(m, t, keep_global);
        return;
    }
    u8 which = keep_global ? RENEW_LOCAL : RENEW_ALL;
    t->renew = which > t->renew ? which : t->renew;
    if (t == m->now && m->v) { /* not to be used as it is */
        m->stale = true;
        m->v->tlb_now = m->uncached;
    }
}

static inline bool drops(const struct array *a, unsigned slot, enum drop which)
{
    return which == DROP_ALL || bit_test(a->global, slot) == (which == DROP_GLOBAL);
}

/* Drops the fragments of large pages around @la. Returns the size, log2, of the largest executable one, or 0. */
static unsigned drop_fragments(struct mmu *m, struct tlb *t, gva_t la, enum drop which)
{
    unsigned exec = 0, kept = 0;
    for (unsigned c = 0; c < CONTEXTS; c++) {
        struct array *a = &t->ctx[c];
        for (unsigned i = 0; i < WORDS; i++)
            for (u64 large = a->large[i]; large; large &= large - 1) {
                unsigned slot = i * 64 + (unsigned)__builtin_ctzll(large);
                const struct side *s = &a->side[slot];
                unsigned lg2 = side_lg2(s);
                if ((s->page ^ la) >> lg2 || !drops(a, slot, which)) {
                    kept |= filter_class(lg2) & filter_shared(s->page, la);
                    continue;
                }
                if ((s->pa & ACCESS_EXEC) && lg2 > exec)
                    exec = lg2;
                slot_drop(a, slot);
                m->stats.flushed++;
            }
    }
    filter_clear(&t->fragments, la, ~kept);
    return exec;
}

void space_drop_page(struct mmu *m, struct tlb *t, gva_t la, enum drop which)
{
    unsigned slot = (la >> PAGE_SHIFT) & (TLB_SIZE - 1);
    unsigned reach = 0; /* log2 of the page whose jump hints must go */
    for (unsigned c = 0; c < CONTEXTS; c++) {
        struct array *a = &t->ctx[c];
        const struct side *s = &a->side[slot];
        if (s->page != (la & PAGE_MASK) || side_lg2(s) != PAGE_SHIFT)
            continue;
        if (s->pa & ACCESS_EXEC)
            reach = PAGE_SHIFT;
        if (drops(a, slot, which)) {
            slot_drop(a, slot);
            m->stats.flushed++;
        }
    }
    if (unlikely(filter_test(&t->fragments, la))) {
        unsigned exec = drop_fragments(m, t, la, which);
        reach = exec > reach ? exec : reach;
    }
    unsigned orphans = filter_test(&t->orphans, la);
    if (unlikely(orphans)) {
        unsigned size = orphans & IN_HUGE ? 30 : orphans & IN_LARGE ? 22 : PAGE_SHIFT;
        reach = size > reach ? size : reach;
    }
    if (reach) {
        unsigned others = jump_clear_range(t, la, reach);
        filter_clear(&t->orphans, la, ~others);
    }
}

void mmu_flushed(struct mmu *m, enum flush_cause cause)
{
    m->stats.flushes[cause]++;
    cells_forget(m->v);
    guards_forget(m->v);
    if (m->v)
        cpu_attention(m->v, ATT_BLOCK);
}

void mmu_flush_everything(struct mmu *m, enum flush_cause cause)
{
    for (unsigned i = 0; i < SPACES; i++)
        if (m->space[i])
            space_empty(m, m->space[i], false);
    mmu_flushed(m, cause);
}

static void array_protect(struct array *a, pa_t page)
{
    unsigned h = page_hash(page);
    bool others = false; /* pages with the same hash */
    if (!bit_test(a->write_bloom, h))
        return;
    for (unsigned i = 0; i < WORDS; i++)
        for (u64 w = a->writable[i]; w; w &= w - 1) {
            unsigned slot = i * 64 + (unsigned)__builtin_ctzll(w);
            if ((a->side[slot].pa & PAGE_MASK) == page) {
                a->e[slot].tag_write = TLB_NONE;
                bit_clear(a->writable, slot);
            } else if (page_hash(a->side[slot].pa) == h) {
                others = true;
            }
        }
    if (!others)
        bit_clear(a->write_bloom, h);
}

void spaces_protect(struct mmu *m, pa_t page)
{
    m->stats.protects++;
    cells_forget(m->v);
    for (unsigned i = 0; i < SPACES; i++)
        for (unsigned c = 0; m->space[i] && c < CONTEXTS; c++)
            array_protect(&m->space[i]->ctx[c], page);
}
