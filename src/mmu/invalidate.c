/*
 * Invalidations, named after the instructions. They reach every address space whose VPID/ASID and PCID match, whatever its
 * mode bits (SDM vol. 3 "Invalidation of TLBs and Paging-Structure Caches", "VPIDs and EPT"). And withdrawing what
 * breakpoints must see.
 */
#include "mmu/space.h"

void mmu_invlpg(struct vcpu *v, gva_t la)
{
    struct mmu *m = v->mmu;
    u16 pcid = v->cr4 & CR4_PCIDE ? (u16)(v->cr3 & 0xfff) : 0;
    FOR_SPACES(m, t)
    if (t->vpid == m->vpid)
        space_drop_page(m, t, la, t->pcid == pcid ? DROP_ALL : DROP_GLOBAL);
    mmu_flushed(m, FLUSH_INVLPG);
}

void mmu_flush_cr3(struct vcpu *v, u16 pcid)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    if (t->vpid == m->vpid && t->pcid == pcid)
        space_flush(m, t, true);
    mmu_flushed(m, FLUSH_CR3);
}

void mmu_flush_global(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    if (t->vpid == m->vpid)
        space_flush(m, t, false);
    mmu_flushed(m, FLUSH_GLOBAL);
}

void mmu_flush_all(struct vcpu *v) { mmu_flush_everything(v->mmu, FLUSH_ALL); }

void mmu_invpcid(struct vcpu *v, enum invpcid_type type, u16 pcid, gva_t la)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    {
        if (t->vpid != m->vpid)
            continue;
        switch (type) {
        case INVPCID_ADDRESS:
            if (t->pcid == pcid)
                space_drop_page(m, t, la, DROP_LOCAL);
            break;
        case INVPCID_CONTEXT:
            if (t->pcid == pcid)
                space_flush(m, t, true);
            break;
        case INVPCID_ALL_GLOBAL:
            space_flush(m, t, false);
            break;
        case INVPCID_ALL:
            space_flush(m, t, true);
            break;
        }
    }
    mmu_flushed(m, FLUSH_INVPCID);
}

void mmu_invvpid(struct vcpu *v, bool all_vpids, u16 vpid, bool keep_global, bool one_address, gva_t la)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    {
        if (all_vpids ? t->vpid == 0 : t->vpid != vpid)
            continue;
        if (one_address)
            space_drop_page(m, t, la, keep_global ? DROP_LOCAL : DROP_ALL);
        else
            space_flush(m, t, keep_global);
    }
    mmu_flushed(m, FLUSH_INVVPID);
}

void mmu_invept(struct vcpu *v, bool all, u64 eptp)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t) /* tagged by bits 51:12 of the EPTP (SDM "EP4TA") */
    if (t->slat_kind == SLAT_EPT && (all || !((t->slat_tag ^ eptp) & PAGE_MASK & BITS64(51, 0))))
        space_flush(m, t, false);
    mmu_flushed(m, FLUSH_INVEPT);
}

void mmu_invlpga(struct vcpu *v, u32 asid, gva_t la)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    if (t->vpid == asid)
        space_drop_page(m, t, la, DROP_ALL);
    mmu_flushed(m, FLUSH_INVLPGA);
}

void mmu_flush_asid(struct vcpu *v, u32 asid, bool keep_global)
{
    struct mmu *m = v->mmu;
    FOR_SPACES(m, t)
    if (t->vpid == asid)
        space_flush(m, t, keep_global);
    mmu_flushed(m, FLUSH_ASID);
}

/* ---- data breakpoints ---- */

static void watch_collect(struct mmu *m, struct vcpu *v)
{
    m->nwatch = 0;
    for (unsigned n = 0; n < 4; n++) {
        bool enabled = v->dr7 >> (2 * n) & 3;
        unsigned kind = v->dr7 >> (16 + 4 * n) & 3; /* 0 code, 1 write, 2 I/O, 3 read and write */
        if (enabled && (kind & 1))
            m->watch[m->nwatch++] = (struct watched_pages){v->dr[n] & PAGE_MASK, v->dr[n] & PAGE_MASK, false};
    }
    for (unsigned n = 0; v->debug && n < v->debug->nwatch; n++) {
        const struct debug_watch *w = &v->debug->watch[n];
        m->watch[m->nwatch++] = (struct watched_pages){w->at & PAGE_MASK, (w->at + w->len - 1) & PAGE_MASK, w->physical};
    }
    v->watching = m->nwatch;
}

static void withdraw(struct array *a, unsigned slot)
{
    a->e[slot].tag_read = a->e[slot].tag_write = TLB_NONE;
    bit_clear(a->writable, slot);
}

void mmu_watch_changed(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    cells_forget(v);
    watch_collect(m, v);
    for (unsigned i = 0; i < m->nwatch; i++) {
        const struct watched_pages *w = &m->watch[i];
        if (w->physical)
            continue; /* no entry of such a page has been granted since mmu_watch_physical() */
        for (u64 page = w->first;; page += PAGE_SIZE) { /* at most two */
            unsigned slot = (page >> PAGE_SHIFT) & (TLB_SIZE - 1);
            FOR_SPACES(m, t)
            for (unsigned c = 0; c < CONTEXTS; c++)
                if (t->ctx[c].side[slot].page == page)
                    withdraw(&t->ctx[c], slot);
            if (page == w->last)
                break;
        }
    }
}

void mmu_watch_physical(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    watch_collect(m, v);
    FOR_SPACES(m, t)
    for (unsigned c = 0; c < CONTEXTS; c++)
        for (unsigned slot = 0; slot < TLB_SIZE; slot++)
            if (t->ctx[c].side[slot].page != TLB_NONE && watched(m, &t->ctx[c].side[slot]))
                withdraw(&t->ctx[c], slot);
}
