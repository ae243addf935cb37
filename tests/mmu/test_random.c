/*
 * Random mutation of page tables by several processors that read them by different rules: every answer of the shadows is
 * compared with a walk, what a refill would enter with what a translation finds, and what outlives a flush with a walk.
 *
 *     test_mmu_random                the default
 *     test_mmu_random COUNT [SEED]   COUNT operations
 */
#include "shadow_world.h"

static u64 rng;
static u64 dice(void)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng * 0x2545f4914f6cdd1dull;
}

#define CPUS 4
struct crowd {
    struct world *w;
    struct vcpu *v[CPUS];
    struct walk_step e[400];
    u64 original[400];
    unsigned n;
};

/* An entry becomes: what it was, or with some bits turned, or another entry of the same size. */
static void mutate(struct crowd *c)
{
    struct world *w = c->w;
    unsigned i = (unsigned)(dice() >> 33) % c->n;
    bool slat = step_is_slat(&c->e[i]);
    unsigned size = slat ? w->slat.entry : w->linear.entry;
    u64 value = c->original[i], r = dice();
    switch (r >> 56) {
    case 0: value = 0; break;
    case 1: value ^= BIT64(r & (size == 4 ? 31 : 63)); break;
    case 2: value ^= 2; break;
    case 3: value ^= 4; break;
    case 4: value &= ~(slat && w->slat.ept ? 0x300ull : 0x60ull); break;
    case 5: value ^= 1; break;
    case 6: {
        unsigned k = (unsigned)(r >> 20) % c->n;
        if (step_is_slat(&c->e[k]) == slat && c->e[k].level == c->e[i].level)
            value = c->original[k];
        break;
    }
    default: break; /* as it was: most tables should work */
    }
    pa_t pa = c->e[i].pa;
    switch (r >> 53 & 7) {
    case 0: physmap_store(w->pm, pa, value & 0xff, 1); break;
    case 1: physmap_store(w->pm, pa, value & 0xffff, 2); break;
    case 2: physmap_store(w->pm, pa, value & 0xffffffff, 4); break;
    case 3: {
        u64 both[2];
        physmap_read(w->pm, pa & ~15ull, both, 16);
        memcpy((u8 *)both + (pa & 15), &value, size);
        physmap_write(w->pm, pa & ~15ull, both, 16);
        break;
    }
    case 4: physmap_cmpxchg(w->pm, pa, physmap_load(w->pm, pa, size), value, size); break;
    default: physmap_store(w->pm, pa, value, size);
    }
}

/* A fresh translation: checked against a walk inside mmu_translate(); here, that its A/D flags are those due. */
static unsigned probe(struct crowd *c)
{
    struct world *w = c->w;
    u64 r = dice();
    struct vcpu *v = c->v[r & 3];
    gva_t la = w->la[(r >> 8) % w->n] + ((r >> 24 & 7) ? 0 : (r >> 28 & 7) << 12);
    u32 access = (const u32[]){ACCESS_READ, ACCESS_WRITE, ACCESS_EXEC, ACCESS_READ | ACCESS_WRITE}[r >> 16 & 3] | (r >> 18 & 1 ? ACCESS_USER : 0);
    struct walk_context ctx = *mmu_context(v);
    struct walk before, walk;
    struct translation t;
    bool would = walk_linear(w->pm, &ctx, la, access | ACCESS_NO_AD, &before);
    mmu_invlpg(v, la);
    v->cpl = access & ACCESS_USER ? 3 : 0;
    mmu_update_privilege(v);
    if (!(access & ACCESS_EXEC)) /* with the check on it enters nothing: the translation compares */
        mmu_refill(v, la & PAGE_MASK, tlb_slot(v, la), access & ACCESS_WRITE ? ACCESS_WRITE : ACCESS_READ);
    bool ok = mmu_translate(v, la, access, &t, &walk);
    if (ok && (access & ACCESS_EXEC))
        mmu_jump_hint(v, la, (void *)(uintptr_t)t.pa);
    /* Setting a flag may itself fail (EPT) or need what a look does not. */
    if (ok && (!would || t.pa != before.pa))
        fail_msg("%s under %s: %#llx leads to %#llx, a walk says %#llx", paging_names[w->p], slat_names[w->s], (unsigned long long)la,
                 (unsigned long long)t.pa, (unsigned long long)before.pa);
    for (unsigned i = 0; i < before.nsteps; i++) {
        const struct walk_step *s = &before.steps[i];
        bool slat = step_is_slat(s), pdpte = s->level == 3 && (slat ? w->slat.pae : w->linear.pae);
        u64 now = entry_get(w, s->pa, slat ? w->slat.entry : w->linear.entry);
        /* A changed entry can make a table of one tree serve in the other: then either's flags may come. */
        u64 flags = w->slat.ept ? 0x360 : 0x60;
        bool kept = (now ^ s->entry) & ~flags || (s->entry & ~now);
        bool due = ok && !slat && !pdpte && !(now & 0x20);
        bool fault_touched = w->s == S_NONE && !ok && walk.fault == WALK_PAGE_FAULT && !slat && now != s->entry;
        if (kept || due || fault_touched)
            fail_msg("%s under %s: entry %#llx became %#llx at an access %#x of %#llx", paging_names[w->p], slat_names[w->s],
                     (unsigned long long)s->entry, (unsigned long long)now, access, (unsigned long long)la);
    }
    return ok;
}

/* What of the entries outlives a flush is compared with walks inside; hints must lead where their addresses do. */
static unsigned long renewed;
static void flush(struct crowd *c)
{
    struct world *w = c->w;
    u64 r = dice();
    struct vcpu *v = c->v[r & 3];
    u64 before = mmu_stats(v)->renewed;
    if (r & 4)
        mmu_flush_cr3(v, 0);
    else
        mmu_flush_global(v);
    for (unsigned user = 0; user < 2; user++) {
        v->cpl = user ? 3 : 0;
        mmu_update(v);
        struct jump_cache_entry *j = mmu_jump_cache(v);
        struct walk_context ctx = *mmu_context(v);
        for (unsigned i = 0; i < 1u << JUMP_CACHE_BITS; i++) {
            struct walk walk;
            bool ok = j[i].block && walk_linear(w->pm, &ctx, j[i].rip, ACCESS_EXEC | ACCESS_NO_AD | (user ? ACCESS_USER : 0), &walk);
            if (j[i].block && (!ok || walk.pa != (pa_t)(uintptr_t)j[i].block))
                fail_msg("%s under %s: after a flush a hint leads from %#llx to %#llx, which is %s %#llx", paging_names[w->p],
                         slat_names[w->s], (unsigned long long)j[i].rip, (unsigned long long)(uintptr_t)j[i].block,
                         ok ? "at" : "not executable:", (unsigned long long)walk.pa);
        }
    }
    renewed += mmu_stats(v)->renewed - before;
}

static void random_operations(u64 count, u64 seed)
{
    rng = seed * 0x9e3779b97f4a7c15ull | 1;
    unsigned combos = P_KINDS * S_KINDS;
    u64 each = count / combos + 1, good = 0, bad = 0, walks = 0, known = 0;
    for (unsigned k = 0; k < combos; k++) {
        struct crowd c = {.w = world_new((enum paging_kind)(k / S_KINDS), (enum slat_choice)(k % S_KINDS))};
        struct world *w = c.w;
        anew(w);
        warm(w);
        c.n = entries_of(w, c.e, ARRAY_SIZE(c.e));
        for (unsigned i = 0; i < c.n; i++)
            c.original[i] = entry_get(w, c.e[i].pa, step_is_slat(&c.e[i]) ? w->slat.entry : w->linear.entry);
        for (unsigned i = 0; i < CPUS; i++) { /* same tables, other rules */
            c.v[i] = i ? test_vcpu(w->pm, 0) : w->v;
            struct vcpu *own = w->v;
            w->v = c.v[i];
            world_modes(w);
            w->v = own;
            if (i == 1 && w->p != P_NONE)
                c.v[i]->cr0 &= ~CR0_WP;
            if (i == 2 && w->p >= P_PAE)
                c.v[i]->cr4 |= CR4_SMEP | CR4_SMAP;
            if (i == 3)
                c.v[i]->efer &= ~EFER_NXE;
            world_enter(w, c.v[i]);
        }
        for (u64 n = 0; n < each; n++)
            if (!(n & 255))
                flush(&c);
            else if (!c.n || (dice() >> 61) > 1)
                *(probe(&c) ? &good : &bad) += 1;
            else
                mutate(&c);
        for (unsigned i = 0; i < CPUS; i++) {
            walks += mmu_stats(c.v[i])->walks;
            known += mmu_stats(c.v[i])->shadow_hits + mmu_stats(c.v[i])->shadow_faults;
            if (i)
                mmu_free(c.v[i]->mmu), free(c.v[i]);
        }
        world_free(w);
    }
    print_message("%llu operations: %llu translations, %llu faults; %llu answered from shadows, %llu walks\n", (unsigned long long)(each * combos),
                  (unsigned long long)good, (unsigned long long)bad, (unsigned long long)known, (unsigned long long)walks);
    print_message("%lu entries outlived flushes\n", renewed);
    assert_true(renewed > count / 4096);
    assert_true(good > count / 8 && bad > count / 50 && known > count / 8);
}

static void random_mutation(void **state) { random_operations(400000, 1); }

int main(int argc, char **argv)
{
    if (argc >= 2) {
        random_operations(strtoull(argv[1], NULL, 0), argc > 2 ? strtoull(argv[2], NULL, 0) : 1);
        return 0;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_mutation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
