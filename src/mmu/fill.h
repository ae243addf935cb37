/* An entry of the software TLB is made: for mmu.c and refill.c. */
#pragma once
#include "mmu/space.h"

/* Where @pa leads: the host address if the CPU may reach it directly. Returns whether that is RAM. */
static inline bool target(const struct mmu *m, const struct vcpu *v, pa_t pa, bool write, struct translation *t)
{
    pa_t page = pa & PAGE_MASK;
    t->pa = pa;
    t->page_flags = 0;
    t->host = NULL;
    if (unlikely(page == v->apic_page || page == v->virt_apic_page))
        return false;
    const struct range *r = map_page(m->pm, pa);
    if (!r || !r->host)
        return false;
    bool ram = r->region->kind == REGION_RAM;
    if (ram && write)
        range_note_user(r, pa, PAGE_WRITERS, v->index);
    if (ram)
        t->page_flags = __atomic_load_n(range_flag(r, pa), __ATOMIC_SEQ_CST);
    if (ram || !write)
        t->host = r->host + (pa - r->start);
    return ram;
}

/* Sets the slot's tags to what may go straight to host memory now. */
static inline void slot_grant(struct mmu *m, struct array *a, unsigned slot, const struct translation *t, bool ram)
{
    struct tlb_entry *e = &a->e[slot];
    const struct side *s = &a->side[slot];
    bool watch = unlikely(m->nwatch) && watched(m, s);
    bool write = (s->pa & ACCESS_WRITE) && ram && !t->page_flags && !watch;
    if (write && unlikely(map_shared(m->pm))) {
        physmap_note_user(m->pm, s->pa & PAGE_MASK, PAGE_WRITERS, m->v->index);
        write = !physmap_page_flags(m->pm, s->pa & PAGE_MASK);
    }
    e->tag_read = (s->pa & ACCESS_READ) && t->host && !watch ? s->page : TLB_NONE;
    e->tag_exec = (s->pa & ACCESS_EXEC) && t->host ? s->page : TLB_NONE;
    e->tag_write = write ? s->page : TLB_NONE;
    e->addend = t->host ? (u64)(uintptr_t)t->host - (s->page | (t->pa & ~PAGE_MASK)) : 0;
    if (write) {
        bit_set(a->writable, slot);
        bit_set(a->write_bloom, page_hash(s->pa));
    } else {
        bit_clear(a->writable, slot);
    }
}

/* What side.pa is for a translation to the page @pa. */
static inline u64 side_value(const struct mmu *m, gva_t la, const struct leads *w, pa_t pa)
{
    u8 perms = w->perms & SIDE_PERMS;
    if (!w->dirty)
        perms &= (u8)~ACCESS_WRITE; /* the first write must walk, to set the dirty flag */
    if (unlikely(m->ctx.lam48) && !(la >> 63) && la >> 47)
        perms &= ACCESS_EXEC;
    bool global = w->global && m->pge && m->ctx.paging != PAGING_NONE;
    return (pa & PAGE_MASK) | perms | (global ? SIDE_GLOBAL : 0) | SIDE_LG2(w->lg2_linear);
}

static inline void slot_fill(struct mmu *m, gva_t la, enum tlb_context c, const struct leads *w, const struct translation *t,
                             bool ram)
{
    struct tlb *tlb = m->now;
    struct array *a = &tlb->ctx[c];
    unsigned slot = (la >> PAGE_SHIFT) & (TLB_SIZE - 1);
    u64 value = side_value(m, la, w, t->pa);
    bool global = value & SIDE_GLOBAL;
    const struct side *old = &a->side[slot];
    const u64 other = ~(u64)(SIDE_GLOBAL | ACCESS_READ | ACCESS_WRITE); /* what hints stand on */
    /* Jump hints outlive the entry through which the code was fetched. */
    if (old->page != TLB_NONE && (old->pa & ACCESS_EXEC) &&
        (old->page != (la & PAGE_MASK) || ((old->pa ^ value) & other) || ((old->pa & SIDE_GLOBAL) && !global))) {
        struct side *victim = victim_of(a, old->page);
        filter_set(&tlb->orphans, old->page, side_lg2(old));
        tlb->orphaned |= old->page == (la & PAGE_MASK) || (victim->page != TLB_NONE && victim->page != old->page);
        *victim = *old;
    }
    if (value & ACCESS_EXEC) {
        struct side *victim = victim_of(a, la);
        if (unlikely(victim->page == (la & PAGE_MASK) && ((victim->pa ^ value) & other))) {
            victim->page = TLB_NONE;
            tlb->orphaned = true;
        }
    }
    a->side[slot].page = la & PAGE_MASK;
    a->side[slot].pa = value;
    bit_set(a->valid, slot);
    if (global)
        bit_set(a->global, slot);
    else
        bit_clear(a->global, slot);
    if (unlikely(w->lg2_linear > PAGE_SHIFT)) {
        bit_set(a->large, slot);
        filter_set(&tlb->fragments, la, w->lg2_linear);
    } else {
        bit_clear(a->large, slot);
    }
    slot_grant(m, a, slot, t, ram);
}
