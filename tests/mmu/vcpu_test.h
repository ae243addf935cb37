/* A processor with nothing but registers, and page tables it can be pointed at. */
#pragma once
#include "mmu_test.h"

#include "mmu/mmu.h"

/* 4-level tables at @root (five pages), built page by page; tables are taken from @next upwards. */
struct tables {
    struct physmap *pm;
    pa_t root, next;
};

static inline struct tables tables_new(struct physmap *pm, pa_t root)
{
    return (struct tables){.pm = pm, .root = root, .next = root + 0x1000};
}

/* The entry of @la at @level (1 = PTE), with all tables above it. */
static noinline pa_t tables_entry(struct tables *t, gva_t la, unsigned level)
{
    pa_t table = t->root;
    for (unsigned l = 4;; l--) {
        pa_t e = table + ((la >> (12 + 9 * (l - 1))) & 511) * 8;
        if (l == level)
            return e;
        if (!(get64(t->pm, e) & 1)) {
            put64(t->pm, e, t->next | 0x27);
            t->next += 0x1000;
        }
        table = get64(t->pm, e) & BITS64(51, 12);
    }
}
static noinline __attribute__((unused)) void tables_map(struct tables *t, gva_t la, pa_t pa, u64 flags)
{
    put64(t->pm, tables_entry(t, la, 1), pa | flags);
}

static inline struct vcpu *test_vcpu(struct physmap *pm, u64 cr3)
{
    struct vcpu *v = aligned_alloc(64, (sizeof(*v) + 63) & ~63ull);
    memset(v, 0, sizeof(*v));
    v->pm = pm;
    v->cr0 = CR0_PE | CR0_PG | CR0_WP;
    v->cr4 = CR4_PAE | CR4_PGE;
    v->efer = EFER_LME | EFER_LMA | EFER_NXE;
    v->cr3 = cr3;
    v->mode = MODE_LONG64;
    v->linear_mask = ~0ull;
    v->linear_width = 48;
    v->maxphyaddr = 40;
    v->apic_page = v->virt_apic_page = ~0ull;
    v->features[FEAT_PDPE1GB] = 1;
    v->mmu = mmu_new(pm);
    mmu_set_mode(v, MMU_CHECK);
    mmu_update(v);
    return v;
}

static inline void test_vcpu_free(struct vcpu *v)
{
    struct physmap *pm = v->pm;
    mmu_free(v->mmu);
    free(v);
    physmap_free(pm);
}
