/*
 * A miss of the TLB in translated code, answered from the shadows without leaving that code: no body is called, and the
 * guest's vector registers stay in the host's. So nothing here, or called from here, may use those: the
 * pragma sees to the first, and nothing is called.
 */
#pragma GCC target("general-regs-only")
#include "mmu/fill.h"

bool mmu_refills(const struct vcpu *v) { return v->mmu->shadow && !map_shared(v->mmu->pm); }

void mmu_refill(struct vcpu *v, gva_t page, struct tlb_entry *slot, u64 access)
{
    struct mmu *m = v->mmu;
    unsigned n = (page >> PAGE_SHIFT) & (TLB_SIZE - 1);
    if (unlikely(m->stale || !m->refills || slot != &v->tlb_now[n] || (page + m->plain_bias) >> m->plain_bits))
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
    if (!shadow_look(m->shadow, &m->view, &m->ctx, page, (u32)access | context_mode(c), &m->now->may[c], NULL, &l))
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
