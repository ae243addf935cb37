/*
 * The MMU of one vCPU: the walk context made from the control registers, the address space they name, and
 * translation.
 */
#include "mmu/fill.h"

/* ---- life ---- */

static void map_changed(void *opaque) { mmu_flush_everything(opaque, FLUSH_MAP); }

/* Where processors have threads of their own, theirs must stand still first: the machine sees to it. */
static void page_tracked(void *opaque, pa_t page)
{
    struct mmu *m = opaque;
    if (!physmap_shared(m->pm))
        spaces_protect(m, page);
}

void mmu_protect_page(struct vcpu *v, pa_t page) { spaces_protect(v->mmu, page & PAGE_MASK); }

struct mmu *mmu_new(struct physmap *pm)
{
    struct mmu *m = calloc(1, sizeof(*m));
    if (!m)
        panic("out of memory for an MMU");
    m->pm = pm;
    m->shadow = shadow_open(pm);
    m->apic_page = ~0ull;
    m->stale = true;
    memset(m->uncached, 0xff, sizeof(m->uncached));
    physmap_on_protect(pm, page_tracked, m);
    physmap_on_change(pm, map_changed, m);
    return m;
}

void mmu_free(struct mmu *m)
{
    if (!m)
        return;
    physmap_on_protect(m->pm, NULL, m);
    physmap_on_change(m->pm, NULL, m);
    shadow_close(m->shadow);
    for (unsigned i = 0; i < SPACES; i++)
        if (m->space[i]) {
            for (unsigned k = 0; k < ARRAY_SIZE(m->space[i]->jump); k++)
                free(m->space[i]->jump[k]);
            free(m->space[i]);
        }
    free(m);
}

void mmu_set_mode(struct vcpu *v, enum mmu_mode mode)
{
    struct mmu *m = v->mmu;
    bool shadow = mode != MMU_WALK;
    m->check = mode == MMU_CHECK;
    if (shadow && !m->shadow)
        m->shadow = shadow_open(m->pm);
    if (!shadow && m->shadow) {
        shadow_close(m->shadow);
        m->shadow = NULL;
    }
    if (shadow)
        shadow_paranoid(m->shadow, m->check);
}

/* ---- the address space ---- */

static bool key_equal(const struct space_key *a, const struct space_key *b)
{
    return !((a->mode ^ b->mode) | (a->tags ^ b->tags) | (a->slat ^ b->slat) | (a->keys ^ b->keys) |
             (a->apic ^ b->apic));
}

static struct tlb *space_new(struct mmu *m)
{
    struct tlb *victim = NULL;
    for (unsigned i = 0; i < SPACES; i++) {
        struct tlb *t = m->space[i];
        if (!t) {
            t = m->space[i] = calloc(1, sizeof(*t));
            if (!t)
                panic("out of memory for a TLB");
            for (unsigned c = 0; c < CONTEXTS; c++) {
                memset(t->ctx[c].e, 0xff, sizeof(t->ctx[c].e));
                memset(t->ctx[c].side, 0xff, sizeof(t->ctx[c].side));
                memset(t->ctx[c].victim, 0xff, sizeof(t->ctx[c].victim));
            }
            return t;
        }
        if (t != m->now && (!victim || t->used < victim->used))
            victim = t;
    }
    space_empty(m, victim, false);
    return victim;
}

static struct tlb *space_find(struct mmu *m, const struct space_key *key)
{
    for (unsigned i = 0; i < SPACES; i++)
        if (m->space[i] && key_equal(&m->space[i]->key, key))
            return m->space[i];
    return NULL;
}

static void context_build(struct mmu *m, const struct vcpu *v)
{
    struct walk_context *c = &m->ctx;
    bool pae = v->cr4 & CR4_PAE;
    c->paging = !(v->cr0 & CR0_PG)   ? PAGING_NONE
                : v->efer & EFER_LMA ? (v->cr4 & CR4_LA57 ? PAGING_5LEVEL : PAGING_4LEVEL)
                : pae                ? PAGING_PAE
                                     : PAGING_32BIT;
    c->wp = v->cr0 & CR0_WP;
    c->nx = pae && (v->efer & EFER_NXE);
    c->smep = v->cr4 & CR4_SMEP;
    c->smap = v->cr4 & CR4_SMAP;
    c->pke = v->cr4 & CR4_PKE;
    c->pks = v->cr4 & CR4_PKS;
    c->cet = v->cr4 & CR4_CET;
    c->lam48 = c->paging == PAGING_5LEVEL && (v->cr3 & (CR3_LAM_U57 | CR3_LAM_U48)) == CR3_LAM_U48;
    c->pse = v->cr4 & CR4_PSE;
    c->pse36 = cpu_has(v, FEAT_PSE36);
    c->pdpe1gb = cpu_has(v, FEAT_PDPE1GB);
    c->amd = cpu_has(v, FEAT_SVM);
    c->maxphyaddr = v->maxphyaddr;
    c->cr3 = v->cr3;
    memcpy(c->pdpte, v->pdpte, sizeof(c->pdpte));
    c->pkru = v->pkru;
    c->pkrs = v->pkrs;
    c->slat = m->slat;
}

/* Everything but the CR3 base that decides what a walk answers or who invalidates it. */
static struct space_key key_build(const struct mmu *m, const struct vcpu *v)
{
    const struct walk_context *c = &m->ctx;
    const struct slat *s = &c->slat;
    struct space_key k = {0};
    /* CR4.PGE is not part of it: its changes flush everything, and toggling it is how systems ask for that. */
    if (c->paging == PAGING_NONE) { /* the bits below mean nothing there */
        k.mode = c->paging;
    } else {
        bool four = c->paging >= PAGING_4LEVEL;
        k.mode = c->paging | (u64)c->wp << 3 | (u64)c->nx << 4 | (u64)c->smep << 5 | (u64)c->smap << 6 |
                 (u64)(four && c->pke) << 7 | (u64)(four && c->pks) << 8 | (u64)c->cet << 9 | (u64)c->pse << 10 | (u64)c->lam48 << 11;
        k.keys = (four && c->pke ? c->pkru : 0) | (u64)(four && c->pks ? c->pkrs : 0) << 32;
    }
    k.mode |= (u64)s->kind << 16 | (u64)s->levels << 20 | (u64)s->host_mode << 24 | (u64)s->ad << 32 |
              (u64)s->mbec << 33 | (u64)s->exec_only << 34 | (u64)s->nx << 35 | (u64)s->pse << 36 | (u64)s->pml << 37;
    k.tags = (u64)m->vpid << 16 | (v->cr4 & CR4_PCIDE ? v->cr3 & 0xfff : 0);
    k.slat = s->kind != SLAT_NONE ? s->tag : 0;
    k.apic = v->virt_apic_page;
    return k;
}

static u64 context_base(const struct walk_context *c)
{
    return c->paging == PAGING_NONE ? 0 : c->cr3 & (c->paging == PAGING_PAE ? BITS64(31, 5) : BITS64(51, 12));
}

void mmu_update(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    m->v = v;
    context_build(m, v);
    if (likely(m->shadow != NULL))
        shadow_view(&m->view, &m->ctx);
    m->pge = v->cr4 & CR4_PGE;
    bool wide = m->ctx.paging >= PAGING_4LEVEL;
    m->plain_bits = wide ? (m->ctx.paging == PAGING_5LEVEL ? 57 : 48) : 32;
    m->plain_bias = wide ? BIT64(m->plain_bits - 1) : 0;
    m->refills = m->shadow && !m->ctx.lam48 && !map_shared(m->pm); /* where LAM may change an address, the slow path sees to it */
    if (unlikely(m->apic_page != v->apic_page)) {
        m->apic_page = v->apic_page;
        map_changed(m);
    }
    struct space_key key = key_build(m, v);
    if (!m->now || !key_equal(&m->now->key, &key)) {
        struct tlb *t = space_find(m, &key);
        if (!t) {
            t = space_new(m);
            m->stats.spaces_made++;
            t->key = key;
            t->vpid = m->vpid;
            t->pcid = (u16)(key.tags & 0xfff);
            t->slat_kind = m->slat.kind;
            t->slat_tag = m->slat.tag;
            t->base = context_base(&m->ctx);
            memcpy(t->pdpte, m->ctx.pdpte, sizeof(t->pdpte));
            for (unsigned c = 0; c < CONTEXTS; c++)
                t->may[c] = rights_of(&m->ctx, context_mode(c));
        }
        m->now = t;
        guards_forget(v);
        m->stats.space_switches++;
    }
    m->stale = false;
    struct tlb *t = m->now;
    t->used = ++m->stamp;
    bool pdptes = m->ctx.paging == PAGING_PAE && memcmp(t->pdpte, m->ctx.pdpte, sizeof(t->pdpte));
    bool rebased = t->base != context_base(&m->ctx) || pdptes;
    if (rebased) {
        if (m->shadow)
            t->renew = t->renew ? t->renew : RENEW_LOCAL;
        else
            space_empty(m, t, true);
        t->base = context_base(&m->ctx);
        memcpy(t->pdpte, m->ctx.pdpte, sizeof(t->pdpte));
    }
    if (unlikely(t->renew))
        space_renew(m, t, rebased);
    mmu_update_privilege(v);
}

static enum tlb_context privilege_context(const struct vcpu *v)
{
    if (v->cpl == 3)
        return (v->rflags & FL_AC) && (v->cr0 & CR0_AM) ? TLB_UNCACHED : TLB_USER;
    return (v->rflags & FL_AC) && (v->cr4 & CR4_SMAP) ? TLB_SUPERVISOR_AC : TLB_SUPERVISOR;
}

void mmu_update_privilege(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    struct tlb_entry *before = v->tlb_now;
    if (unlikely(m->stale || !m->now)) {
        v->tlb_now = v->tlb_by_ac[0] = v->tlb_by_ac[1] = m->uncached;
    } else {
        enum tlb_context c = privilege_context(v);
        v->tlb_by_ac[0] = m->now->ctx[TLB_SUPERVISOR].e;
        v->tlb_by_ac[1] = m->now->ctx[v->cr4 & CR4_SMAP ? TLB_SUPERVISOR_AC : TLB_SUPERVISOR].e;
        v->tlb_now = c == TLB_UNCACHED ? m->uncached : m->now->ctx[c].e;
    }
    if (v->tlb_now != before)
        cells_forget(v);
}

void mmu_set_guest(struct vcpu *v, const struct slat *slat, u32 vpid)
{
    struct mmu *m = v->mmu;
    m->slat = slat ? *slat : (struct slat){0};
    m->ctx.slat = m->slat; /* PDPTE loads of the entry already go through it */
    m->vpid = vpid;
    m->stale = true;
    v->tlb_now = v->tlb_by_ac[0] = v->tlb_by_ac[1] = m->uncached;
    cells_forget(v);
}

const struct walk_context *mmu_context(const struct vcpu *v) { return &v->mmu->ctx; }
const struct mmu_stats *mmu_stats(const struct vcpu *v) { return &v->mmu->stats; }
const struct shadow_stats *mmu_shadow_stats(const struct vcpu *v)
{
    return v->mmu->shadow ? shadow_stats(v->mmu->shadow) : NULL;
}

const struct tlb_entry *mmu_entries(const struct vcpu *v, enum tlb_context context)
{
    const struct mmu *m = v->mmu;
    return m->stale || !m->now || context >= CONTEXTS ? m->uncached : m->now->ctx[context].e;
}

u32 mmu_access_mode(const struct vcpu *v)
{
    if (v->cpl == 3)
        return ACCESS_USER;
    return v->rflags & FL_AC ? ACCESS_AC : 0;
}

static struct jump_cache *jump_cache(struct vcpu *v, enum jump_kind kind)
{
    struct mmu *m = v->mmu;
    if (unlikely(m->stale || !m->now))
        mmu_update(v);
    struct jump_cache **j = &m->now->jump[kind * 2 + (v->cpl == 3)];
    if (unlikely(!*j)) {
        *j = calloc(1, sizeof(**j));
        if (!*j)
            panic("out of memory for a jump cache");
        /* Only here would an empty entry of zeros be found: for RIP 0. */
        jump_fill_empty((*j)->e, 2);
    }
    return *j;
}

struct jump_cache_entry *mmu_jump_cache(struct vcpu *v) { return jump_cache(v, JUMP_BLOCKS)->e; }
struct jump_cache_entry *mmu_jump_codes(struct vcpu *v, enum jump_kind kind) { return jump_cache(v, kind)->e; }

/* The hint's page has an entry through which it was fetched, or is noted as an orphan. Returns whether it is known to be
 * global: flushes that keep global entries keep hints to it. */
static bool rip_entry(const struct vcpu *v, gva_t rip)
{
    struct tlb *t = v->mmu->now;
    const struct side *s = &t->ctx[v->cpl == 3 ? TLB_USER : TLB_SUPERVISOR].side[(rip >> PAGE_SHIFT) & (TLB_SIZE - 1)];
    if (likely(s->page == (rip & PAGE_MASK) && (s->pa & ACCESS_EXEC)))
        return s->pa & SIDE_GLOBAL;
    filter_set(&t->orphans, rip, PAGE_SHIFT);
    t->orphaned = true;
    return false;
}

/* Entry @n of the cache of @kind is about to hold what @rip leads to. */
static void jump_note(const struct vcpu *v, struct jump_cache *j, enum jump_kind kind, unsigned n, gva_t rip)
{
    struct tlb *t = v->mmu->now;
    bit_set(j->used, n / JUMP_RUN);
    if (unlikely(at_edge(rip))) {
        bit_set(j->local, n / JUMP_RUN);
        if (t->nedges < EDGES)
            t->edge[t->nedges++] = (struct edge){(u16)n, (u8)(kind * 2 + (v->cpl == 3))};
        else
            t->orphaned = true;
    }
    if (!rip_entry(v, rip))
        bit_set(j->local, n / JUMP_RUN);
}

void mmu_jump_hint(struct vcpu *v, gva_t rip, void *block)
{
    struct jump_cache *j = jump_cache(v, JUMP_BLOCKS);
    unsigned n = rip & (JUMP_CACHE_SIZE - 1);
    jump_note(v, j, JUMP_BLOCKS, n, rip);
    j->e[n] = (struct jump_cache_entry){rip, block};
}

void mmu_jump_code(struct vcpu *v, enum jump_kind kind, gva_t rip, void *code)
{
    struct jump_cache *j = jump_cache(v, kind);
    unsigned n = jump_code_way(rip);
    struct jump_cache_entry *e = &j->e[n];
    jump_note(v, j, kind, n, rip);
    if (e[0].rip != rip) /* the first way is what was asked for last */
        e[1] = e[0];
    e[0] = (struct jump_cache_entry){rip, code};
}

void mmu_jump_codes_forget(struct vcpu *v)
{
    struct mmu *m = v->mmu;
    for (unsigned s = 0; s < SPACES; s++)
        for (unsigned k = JUMP_CODE64 * 2; m->space[s] && k < JUMP_KINDS * 2; k++) {
            struct jump_cache *j = m->space[s]->jump[k];
            for (unsigned n = 0; j && n < ARRAY_SIZE(j->used); n++) {
                for (u64 runs = j->used[n]; runs; runs &= runs - 1)
                    jump_fill_empty(&j->e[(n * 64 + (unsigned)__builtin_ctzll(runs)) * JUMP_RUN], JUMP_RUN);
                j->used[n] = j->local[n] = 0;
            }
        }
}

/* ---- translation ---- */

static void entry_fill(struct mmu *m, gva_t la, enum tlb_context c, const struct walk *w, const struct translation *t, bool ram)
{
    struct leads l = walk_leads(w);
    if (unlikely(m->check))
        refill_check(m, la, c, &l);
    slot_fill(m, la, c, &l, t, ram);
}

bool mmu_translate(struct vcpu *v, gva_t la, u32 access, struct translation *t, struct walk *w)
{
    struct mmu *m = v->mmu;
    if (unlikely(m->stale))
        mmu_update(v);
    bool fill = !(access & (ACCESS_NO_AD | ACCESS_SHADOW_STACK));
    bool write = access & ACCESS_WRITE;
    enum tlb_context c = access & ACCESS_USER                  ? TLB_USER
                         : (access & ACCESS_AC) && m->ctx.smap ? TLB_SUPERVISOR_AC
                                                               : TLB_SUPERVISOR;
    if (likely(!(access & ACCESS_SHADOW_STACK))) {
        /* Known, but not granted: device memory, tracked and watched pages, alignment checking. */
        struct array *a = &m->now->ctx[c];
        unsigned slot = (la >> PAGE_SHIFT) & (TLB_SIZE - 1);
        const struct side *s = &a->side[slot];
        u32 need = access & SIDE_PERMS;
        if (s->page == (la & PAGE_MASK) && !(need & ~(u32)s->pa)) {
            m->stats.cached++;
            bool ram = target(m, v, (s->pa & PAGE_MASK) | (la & ~PAGE_MASK), write, t);
            if (t->host && fill) /* a page no longer tracked or watched is granted now */
                slot_grant(m, a, slot, t, ram);
            w->fault = WALK_OK;
            w->pa = t->pa;
            return true;
        }
    }
    if (likely(m->shadow != NULL)) {
        enum shadow_answer known =
            (unlikely(m->check) ? shadow_translate_checked : shadow_translate)(m->shadow, &m->view, &m->ctx, la, access, w);
        if (known == SHADOW_FAULT) {
            m->stats.shadow_faults++;
            return false;
        }
        if (likely(known == SHADOW_OK)) {
            m->stats.shadow_hits++;
            bool ram = target(m, v, w->pa, write, t);
            if (likely(fill))
                entry_fill(m, la, c, w, t, ram);
            return true;
        }
    }
    m->stats.walks++;
    bool ok = walk_linear(m->pm, &m->ctx, la, access, w);
    m->stats.walk_steps += w->nsteps;
    if (unlikely(!ok)) {
        m->stats.walk_faults++;
        return false;
    }
    if (likely(fill) && m->shadow)
        shadow_fill(m->shadow, &m->view, &m->ctx, la, w); /* before the grant: it may track the page itself */
    bool ram = target(m, v, w->pa, write, t);
    if (likely(fill))
        entry_fill(m, la, c, w, t, ram);
    return true;
}
