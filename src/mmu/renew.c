/*
 * After a flush: of what was in the TLB, keeps what the tables say now, as the shadows know them. That is as if
 * the processor had fetched those translations again at once, on speculation, as it may while it runs in that address
 * space (SDM vol. 3 "Caching Translation Information": only with accessed flags set). So it is done when the
 * space is used again and not before: until then the tables may be changed with no further flush.
 *
 * Worth most are the hints where code lies: each that is lost costs a way through the dispatcher.
 */
#include "mmu/fill.h"

#define RENEWED_MOST 1024 /* more entries than that, and only those of code are asked for */

/* In check mode: a walk must say the same. */
static void verify(struct mmu *m, const struct side *s, u32 mode, const struct leads *l)
{
    struct walk w;
    u32 access = l->perms & ACCESS_READ ? ACCESS_READ : ACCESS_EXEC;
    if (!walk_linear(m->pm, &m->ctx, s->page, access | mode | ACCESS_NO_AD, &w) || w.pa != l->pa || w.perms != l->perms ||
        w.dirty != l->dirty || w.global != l->global || w.lg2_linear != l->lg2_linear)
        panic("renewed %#llx: pa %#llx perms %u; the walk: fault %u pa %#llx perms %u", (unsigned long long)s->page,
              (unsigned long long)l->pa, l->perms, w.fault, (unsigned long long)w.pa, w.perms);
}

static alwaysinline bool still(struct mmu *m, enum tlb_context c, const struct side *s, struct near *near)
{
    struct leads l;
    u32 mode = context_mode(c);
    if (!shadow_look(m->shadow, &m->view, &m->ctx, s->page, mode, &m->now->may[c], near, &l) || side_value(m, s->page, &l, l.pa) != s->pa)
        return false;
    if (unlikely(m->check) && (l.perms & (ACCESS_READ | ACCESS_EXEC)))
        verify(m, s, mode, &l);
    return true;
}

/* Other tables have other user pages, mostly. */
static bool lower_half(const struct mmu *m, gva_t page)
{
    return !(page >> (m->ctx.paging >= PAGING_4LEVEL ? 63 : 31));
}

/* What of an array's word @i was flushed. */
static u64 asked(const struct array *a, unsigned i, bool all) { return a->valid[i] & (all ? ~0ull : ~a->global[i]); }

/*
 * Data that nobody asks for any more should not be looked up for ever: of each eighth of the slots, another one each time,
 * only code is kept. Returns whether an executable entry went.
 */
static bool entries_renew(struct mmu *m, struct tlb *t, enum tlb_context c, bool all, bool rebased)
{
    struct array *a = &t->ctx[c];
    struct near near = {0};
    bool lost = false;
    unsigned n = 0;
    for (unsigned i = 0; i < WORDS; i++)
        n += (unsigned)__builtin_popcountll(asked(a, i, all));
    if (all)
        memset(a->write_bloom, 0, sizeof(a->write_bloom));
    for (unsigned i = 0; n && i < WORDS; i++) {
        bool code_only = n > RENEWED_MOST || !((i ^ t->turn) & 7);
        for (u64 ask = asked(a, i, all); ask; ask &= ask - 1) {
            unsigned slot = i * 64 + (unsigned)__builtin_ctzll(ask);
            const struct side *s = &a->side[slot];
            bool code = s->pa & ACCESS_EXEC;
            if ((code_only && !code) || (rebased && lower_half(m, s->page)) || !still(m, c, s, &near)) {
                lost |= code;
                slot_drop(a, slot);
                m->stats.flushed++;
                continue;
            }
            m->stats.renewed++;
            if (bit_test(a->large, slot))
                filter_set(&t->fragments, s->page, side_lg2(s));
            if (bit_test(a->writable, slot))
                bit_set(a->write_bloom, page_hash(s->pa));
        }
    }
    for (unsigned k = 0; k < VICTIMS; k++) {
        struct side *s = &a->victim[k];
        if (s->page == TLB_NONE || (!all && (s->pa & SIDE_GLOBAL)))
            continue;
        if ((rebased && lower_half(m, s->page)) || !still(m, c, s, &near)) {
            s->page = TLB_NONE;
            lost = true;
        }
    }
    return lost;
}

static inline bool vouches(const struct side *s, gva_t rip) { return s->page == (rip & PAGE_MASK) && (s->pa & ACCESS_EXEC); }

/* Keeps hints into pages of which an executable entry was kept, and no other has been since they were made. */
static void hints_renew(struct tlb *t, unsigned jump, bool all)
{
    struct jump_cache *j = t->jump[jump];
    struct array *a = &t->ctx[jump & 1 ? TLB_USER : TLB_SUPERVISOR];
    for (unsigned n = 0; j && n < ARRAY_SIZE(j->used); n++)
        for (u64 runs = all ? j->used[n] : j->local[n]; runs; runs &= runs - 1) {
            unsigned bit = (unsigned)__builtin_ctzll(runs);
            struct jump_cache_entry *e = &j->e[(n * 64 + bit) * JUMP_RUN];
            bool left = false;
            for (unsigned k = 0; k < JUMP_RUN; k++) {
                if (!e[k].block)
                    continue;
                gva_t rip = e[k].rip;
                bool known = vouches(&a->side[(rip >> PAGE_SHIFT) & (TLB_SIZE - 1)], rip) || vouches(victim_of(a, rip), rip);
                if (known && !at_edge(rip) && !(t->orphaned && filter_test(&t->orphans, rip)))
                    left = true;
                else
                    e[k] = (struct jump_cache_entry){JUMP_EMPTY, NULL};
            }
            if (!left) {
                j->used[n] &= ~BIT64(bit);
                j->local[n] &= ~BIT64(bit);
            }
        }
}

static void edges_drop(struct tlb *t)
{
    for (unsigned i = 0; i < t->nedges; i++) {
        struct jump_cache_entry *e = t->jump[t->edge[i].jump]->e;
        for (unsigned way = 0; way < 2; way++) {
            struct jump_cache_entry *x = &e[(t->edge[i].n & ~1u) + way];
            if (x->block && at_edge(x->rip))
                *x = (struct jump_cache_entry){JUMP_EMPTY, NULL};
        }
    }
    t->nedges = 0;
}

void space_renew(struct mmu *m, struct tlb *t, bool rebased)
{
    bool all = t->renew == RENEW_ALL;
    t->renew = RENEW_NONE;
    if (unlikely(m->ctx.lam48)) { /* not worth a rule of its own */
        space_empty(m, t, !all);
        return;
    }
    cells_forget(m->v);
    guards_forget(m->v);
    t->turn++;
    if (all)
        memset(&t->fragments, 0, sizeof(t->fragments));
    bool supervisor = entries_renew(m, t, TLB_SUPERVISOR, all, rebased);
    bool user = entries_renew(m, t, TLB_USER, all, rebased);
    entries_renew(m, t, TLB_SUPERVISOR_AC, all, rebased);
    /* Every hint has an executable entry or a victim, but for orphans. */
    for (unsigned k = 0; k < ARRAY_SIZE(t->jump); k++)
        if ((k & 1 ? user : supervisor) || t->orphaned)
            hints_renew(t, k, all);
    edges_drop(t);
    if (all && t->orphaned) { /* those are gone; of victims, INVLPG must still know */
        t->orphaned = false;
        memset(&t->orphans, 0, sizeof(t->orphans));
        for (unsigned c = 0; c < CONTEXTS; c++)
            for (unsigned k = 0; k < VICTIMS; k++) {
                const struct side *s = &t->ctx[c].victim[k];
                if (s->page != TLB_NONE)
                    filter_set(&t->orphans, s->page, side_lg2(s));
            }
    }
}
