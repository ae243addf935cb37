/*
 * A miss of the TLB in translated code, answered from the shadows without leaving that code: no body is called, and the
 * guest's vector registers stay in the host's. So nothing here, or called from here, may use those: the
 * pragma sees to the first, and nothing is called.
 */
#pragma GCC target("general-regs-only")
#include "mmu/fill.h"
#include "mmu/shadow_look.h"

bool mmu_refills(const struct vcpu *v) { return v->mmu->shadow && !map_shared(v->mmu->pm); }

/* A linear address as it must be. Where LAM may change one, the slow path sees to it. */
static inline bool plain(const struct mmu *m, const struct vcpu *v, gva_t la)
{
    if (m->ctx.paging <= PAGING_PAE)
        return !(la >> 32);
    unsigned width = m->ctx.paging == PAGING_5LEVEL ? 57 : 48;
    return !(la & ~v->linear_mask) && (u64)((s64)(la << (64 - width)) >> (64 - width)) == la && !m->ctx.lam48;
}

void mmu_refill(struct vcpu *v, gva_t page, struct tlb_entry *slot, u64 access)
{
    struct mmu *m = v->mmu;
    unsigned n = (page >> PAGE_SHIFT) & (TLB_SIZE - 1);
    if (unlikely(m->stale || !m->shadow || map_shared(m->pm) || slot != &v->tlb_now[n] || !plain(m, v, page)))
        return;
    enum tlb_context c = TLB_SUPERVISOR;
    while (c < CONTEXTS && v->tlb_now != m->now->ctx[c].e)
        c++;
    if (unlikely(c == CONTEXTS))
        return;
    const struct side *s = &m->now->ctx[c].side[n];
    if (s->page == page && !(access & ~s->pa))
        return; /* not granted for a reason */
    struct leads l;
    u32 mode = c == TLB_USER ? ACCESS_USER : c == TLB_SUPERVISOR_AC ? ACCESS_AC : 0;
    if (!shadow_look(m->shadow, &m->view, &m->ctx, page, (u32)access | mode, &l))
        return;
    if (unlikely(m->check)) {
        m->refilled = (struct refilled){.valid = true, .context = c, .page = page, .leads = l};
        return;
    }
    const struct range *r = map_page_quick(m->pm, l.pa);
    if (unlikely(!r || !r->host || r->region->kind != REGION_RAM || l.pa == v->apic_page || l.pa == v->virt_apic_page))
        return;
    struct translation t = {.pa = l.pa, .host = r->host + (l.pa - r->start), .page_flags = *range_flag(r, l.pa)};
    m->stats.refills++;
    slot_fill(m, page, c, &l, &t, true);
}

void refill_check(struct mmu *m, gva_t la, enum tlb_context c, const struct leads *l)
{
    const struct refilled *r = &m->refilled;
    m->refilled.valid = false;
    if (!r->valid || r->context != c || r->page != (la & PAGE_MASK))
        return;
    if (r->leads.pa != (l->pa & PAGE_MASK) || r->leads.perms != l->perms || r->leads.dirty != l->dirty ||
        r->leads.global != l->global || r->leads.lg2_linear != l->lg2_linear)
        panic("refill of %#llx: pa %#llx perms %u dirty %u global %u lg2 %u; but it is pa %#llx perms %u dirty %u global %u lg2 %u",
              (unsigned long long)la, (unsigned long long)r->leads.pa, r->leads.perms, r->leads.dirty, r->leads.global,
              r->leads.lg2_linear, (unsigned long long)l->pa, l->perms, l->dirty, l->global, l->lg2_linear);
}
