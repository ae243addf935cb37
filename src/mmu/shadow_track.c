/*
 * The other half of the shadows: what they stand on. A dependency ties a shadow to one entry of one
 * tracked table, in a list per entry (the reverse map), so a write finds exactly the shadows that it
 * concerns.
 *
 * A page that is written again and again while its shadows are not used is a table no more, most likely: they go, and it is
 * written freely again. If the writes cost a shadow every other time it is *flooded*: for a while no shadow may stand on it.
 */
#include "mmu/shadow_nodes.h"

#include <stdlib.h>
#include <sys/mman.h>

#define WINDOW     64  /* writes after which a page is judged */
#define IDLE       4   /* writes in a row while no shadow stands on it: freed, most likely, and used otherwise */
#define FLOOD      32  /* shadows dropped among them that make a flood, unless */
#define WORTH      4   /* each had spared so many walks: what making and dropping one costs */
#define LEFT_ALONE 512 /* stamps */

static void node_drop(struct shadow *s, struct node *n);

/* ---- tables ---- */

static unsigned table_bucket(pa_t page) { return (unsigned)((page >> PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 52); }
_Static_assert(TABLE_HASH == 4096, "table_bucket() makes 12 bits");

static unsigned slots_of(const struct table *t) { return (unsigned)(PAGE_SIZE / t->entry); }

/* The page is tracked while any of its readings is. */
static void untrack(struct shadow *s, struct table *t)
{
    if (!t->tracked)
        return;
    t->tracked = false;
    s->stats.tables--;
    for (u16 i = s->table_hash[table_bucket(t->page)]; i; i = s->table[i]->hash_next)
        if (s->table[i]->page == t->page && s->table[i]->tracked)
            return;
    physmap_clear_page_flag(s->pm, t->page, PAGE_TABLE);
}

static void slot_drop(struct shadow *s, struct table *t, unsigned slot)
{
    while (t->head[slot])
        node_drop(s, &s->node[s->dep[t->head[slot]].node]);
}

static void table_empty(struct shadow *s, struct table *t)
{
    for (unsigned i = 0; t->live && i < slots_of(t); i++)
        slot_drop(s, t, i);
}

static void table_free(struct shadow *s, u16 index)
{
    struct table *t = s->table[index];
    u16 *p = &s->table_hash[table_bucket(t->page)];
    table_empty(s, t);
    untrack(s, t);
    while (*p != index)
        p = &s->table[*p]->hash_next;
    *p = t->hash_next;
    free(t);
    s->table[index] = NULL;
    s->table_next_free[index] = s->free_table;
    s->free_table = index;
}

static bool table_evict(struct shadow *s)
{
    u16 victim = 0;
    for (u16 i = 1; i <= s->tables; i++)
        if (s->table[i] && s->table[i]->used != s->stamp && (!victim || s->table[i]->used < s->table[victim]->used))
            victim = i;
    if (!victim)
        return false;
    s->stats.evicted += s->table[victim]->live;
    table_free(s, victim);
    return true;
}

/* The tracked table at @page, made so if need be; 0 when that cannot be. */
static u16 table_get(struct shadow *s, pa_t page, unsigned entry)
{
    unsigned b = table_bucket(page);
    u16 i = s->table_hash[b];
    while (i && (s->table[i]->page != page || s->table[i]->entry != entry))
        i = s->table[i]->hash_next;
    if (!i) {
        const struct range *r = map_page(s->pm, page);
        if (!r || !range_flag(r, page))
            return 0; /* ROM, a device: no write would be noticed */
        if (!s->free_table && s->tables == TABLES - 1 && !table_evict(s))
            return 0;
        struct table *t = calloc(1, sizeof(*t) + PAGE_SIZE / entry * sizeof(t->head[0]));
        if (!t)
            return 0;
        i = s->free_table;
        if (i)
            s->free_table = s->table_next_free[i];
        else
            i = ++s->tables;
        t->page = page;
        t->entry = (u8)entry;
        t->hash_next = s->table_hash[b];
        s->table_hash[b] = i;
        s->table[i] = t;
    }
    struct table *t = s->table[i];
    if (unlikely(t->left_alone > s->stamp))
        return 0;
    t->used = s->stamp;
    if (!t->tracked) {
        t->tracked = true;
        s->stats.tracked++;
        s->stats.tables++;
        physmap_set_page_flag(s->pm, page, PAGE_TABLE);
    }
    return i;
}

/* ---- nodes and what they stand on ---- */

/* One entry that a new node will stand on. */
struct ground {
    pa_t pa;
    u64 entry;   /* as it must still be, A/D flags aside */
    u64 need;    /* flags that must be set */
    u64 ignore;  /* flags that may have come since */
    u8 size;
    u8 dirty;    /* as in struct dep */
};

static void node_drop(struct shadow *s, struct node *n)
{
    for (u32 i = n->deps, next; i; i = next) {
        struct dep *d = &s->dep[i];
        struct table *t = s->table[d->table];
        next = d->next_of_node;
        if (d->prev)
            s->dep[d->prev].next = d->next;
        else
            t->head[d->slot] = d->next;
        if (d->next)
            s->dep[d->next].prev = d->prev;
        t->live--;
        d->next = s->free_dep;
        s->free_dep = i;
        s->deps_live--;
    }
    n->deps = 0;
    n->role = 0;
    s->stats.live--;
}

/* There is room: deps_reserve(). */
static void dep_add(struct shadow *s, struct node *n, u16 table, const struct ground *g)
{
    struct table *t = s->table[table];
    unsigned slot = (unsigned)(g->pa & ~PAGE_MASK) / g->size;
    u32 i = s->free_dep;
    if (i)
        s->free_dep = s->dep[i].next;
    else
        i = ++s->deps;
    s->dep[i] = (struct dep){.entry = g->entry, .node = (u32)(n - s->node), .next_of_node = n->deps, .next = t->head[slot],
                             .slot = (u16)slot, .table = table, .dirty = g->dirty};
    if (t->head[slot])
        s->dep[t->head[slot]].prev = i;
    t->head[slot] = i;
    t->live++;
    s->deps_live++;
    n->deps = i;
}

static void deps_reserve(struct shadow *s, unsigned n)
{
    while (s->deps_live + n >= DEPS) {
        struct node *victim = &s->node[s->hand++ % NODES];
        if (!victim->role)
            continue;
        s->stats.evicted++;
        node_drop(s, victim);
    }
}

/* The place for a new node: a free one, or the one least recently used of its set. */
static struct node *node_place(struct shadow *s, unsigned set)
{
    struct node *best = &s->node[set];
    u32 age = 0;
    for (unsigned i = 0; i < WAYS; i++) {
        struct node *n = &s->node[set + i];
        if (!n->role)
            return n;
        u32 a = ((u32)s->stamp - n->used) & STAMP_BITS;
        if (a > age) {
            age = a;
            best = n;
        }
    }
    s->stats.evicted++;
    node_drop(s, best);
    return best;
}

/* ---- learning ---- */

static u64 entry_now(const struct shadow *s, const struct ground *g) { return table_load(s->pm, g->pa, g->size); }

enum { PTE_D_BIT = 6, EPT_D_BIT = 9 };

static void ground_linear(struct ground *g, const struct walk_step *st, unsigned size, bool large)
{
    bool pdpte = st->table == TABLE_PAE && st->level == 3;
    *g = (struct ground){.pa = st->pa, .entry = st->entry, .size = (u8)size, .dirty = large ? PTE_D_BIT : 0};
    if (!pdpte) {
        g->need = PTE_A;
        g->ignore = PTE_A | PTE_D;
    }
}

/* @table: the translation of a table's address, of which A/D flags make a write. */
static void ground_slat(struct ground *g, const struct walk_step *st, const struct walk_context *ctx, unsigned size,
                        bool last, bool table, bool large)
{
    *g = (struct ground){.pa = st->pa, .entry = st->entry, .size = (u8)size};
    if (large)
        g->dirty = st->table == TABLE_EPT ? EPT_D_BIT : PTE_D_BIT;
    if (st->table == TABLE_EPT) {
        if (ctx->slat.ad) {
            g->need = EPT_A | (last && table ? EPT_D : 0);
            g->ignore = EPT_A | EPT_D;
        }
    } else if (!(ctx->slat.host_mode == PAGING_PAE && st->level == 3)) {
        g->need = PTE_A | (last && table ? PTE_D : 0);
        g->ignore = PTE_A | PTE_D;
    }
}

/* Makes @draft a node that stands on @g[0..@n-1]; they are read again once nothing can change them unnoticed. */
static void node_make(struct shadow *s, const struct node *draft, struct ground *g, unsigned n)
{
    u16 table[WALK_MAX_STEPS];
    for (unsigned i = 0; i < n; i++) {
        table[i] = table_get(s, g[i].pa & PAGE_MASK, g[i].size);
        if (!table[i]) {
            s->stats.refused++;
            return;
        }
    }
    struct node made = *draft;
    for (unsigned i = 0; i < n; i++) {
        u64 e = entry_now(s, &g[i]);
        if (((e ^ g[i].entry) & ~g[i].ignore) || (g[i].need & ~e)) {
            s->stats.refused++;
            return;
        }
        g[i].entry = e;
        if (g[i].dirty)
            made.large = e;
    }
    deps_reserve(s, n);
    struct node *at = node_place(s, node_set(made.region, node_mix(made.root, made.role)));
    made.used = (u32)s->stamp & STAMP_BITS;
    made.deps = made.hits = 0;
    *at = made;
    s->stats.live++;
    for (unsigned i = 0; i < n; i++)
        dep_add(s, at, table[i], &g[i]);
    s->stats.fills++;
}

static bool is_slat(const struct walk_step *st) { return st->table == TABLE_EPT || st->table == TABLE_NPT; }

/* Where the last-level entry @pa lies; false when not in memory. */
static bool leaf_table(const struct shadow *s, struct node *n, pa_t pa)
{
    n->leaf = map_memory(s->pm, pa & PAGE_MASK);
    n->leaf_pa = pa & PAGE_MASK;
    return n->leaf;
}

/* The linear levels, and the SLAT under their tables: steps 0 to @end - 1 of the walk. */
static void fill_linear(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx, gva_t la,
                        const struct walk *w, unsigned end)
{
    struct ground g[WALK_MAX_STEPS];
    unsigned n = 0;
    const struct walk_step *leaf = &w->steps[end - 1];
    bool large = leaf->level > 1, nx = false;
    u64 all = PTE_W | PTE_U, slat_rights = EPT_W;
    struct node node = {.region = la >> view->region_lg2, .root = view_root(view, ctx, la), .role = view->role,
                        .slat = view->slat_root, .lg2 = w->lg2_linear & 63};
    for (unsigned i = 0; i < end; i++) {
        const struct walk_step *st = &w->steps[i];
        if (is_slat(st)) {
            bool last = !is_slat(st + 1); /* the last step is never SLAT's */
            slat_rights = (i && is_slat(st - 1) ? slat_rights : EPT_W) & (st->table == TABLE_EPT ? st->entry : EPT_W);
            ground_slat(&g[n++], st, ctx, view->slat_entry, last, true, false);
            continue;
        }
        if (st == leaf && !large)
            break;
        ground_linear(&g[n++], st, view->entry, st == leaf);
        if (st != leaf && !(st->table == TABLE_PAE && st->level == 3)) {
            all &= st->entry;
            nx |= view->entry == 8 && (st->entry & PTE_NX);
        }
    }
    node.table_writable = !view->slat_role || (slat_rights & EPT_W);
    node.rights = (all & PTE_W ? NODE_W : 0) | (all & PTE_U ? NODE_U : 0) | (nx ? NODE_NX : 0);
    if (!large && !leaf_table(s, &node, leaf->pa))
        return;
    node_make(s, &node, g, n);
}

/* The SLAT of the data: steps @first to the end. */
static void fill_slat(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx,
                      const struct walk *w, unsigned first)
{
    struct ground g[WALK_MAX_STEPS];
    unsigned n = 0, end = w->nsteps;
    const struct walk_step *leaf = &w->steps[end - 1];
    bool large = leaf->level > 1, nx = false, ept = ctx->slat.kind == SLAT_EPT;
    u64 all = ~0ull;
    struct node node = {.region = w->gpa >> view->slat_region_lg2, .root = view->slat_root, .role = view->slat_role};
    unsigned index_bits = view->slat_entry == 4 ? 10 : 9;
    node.lg2 = (PAGE_SHIFT + index_bits * (leaf->level - 1u)) & 63;
    for (unsigned i = first; i < end; i++) {
        const struct walk_step *st = &w->steps[i];
        bool last = st == leaf;
        if (last && !large)
            break;
        ground_slat(&g[n++], st, ctx, view->slat_entry, last, false, last);
        if (!last && (ept || !(ctx->slat.host_mode == PAGING_PAE && st->level == 3))) {
            all &= st->entry;
            nx |= view->slat_entry == 8 && (st->entry & PTE_NX);
        }
    }
    node.rights = ept ? (u32)(all & (EPT_R | EPT_W | EPT_X | EPT_XU))
                      : (all & PTE_W ? NODE_W : 0) | (all & PTE_U ? NODE_U : 0) | (nx ? NODE_NX : 0);
    if (!large && !leaf_table(s, &node, leaf->pa))
        return;
    node_make(s, &node, g, n);
}

void shadow_fill(struct shadow *s, const struct shadow_view *view, const struct walk_context *ctx, gva_t la,
                 const struct walk *w)
{
    unsigned end = w->nsteps; /* of the linear steps */
    while (end && is_slat(&w->steps[end - 1]))
        end--;
    s->stamp++;
    if (ctx->paging != PAGING_NONE && end) {
        if (ctx->paging <= PAGING_PAE)
            la &= 0xffffffffu;
        if (!linear_find(s, view, ctx, la))
            fill_linear(s, view, ctx, la, w, end);
    }
    if (view->slat_role && end < w->nsteps &&
        !slat_find(s, view, w->gpa))
        fill_slat(s, view, ctx, w, end);
}

/* ---- writes ---- */

/* Drops what stands on @slot unless its entry is what it was. Returns how many shadows went. */
static unsigned slot_written(struct shadow *s, struct table *t, unsigned slot)
{
    u64 e = table_load(s->pm, t->page + slot * t->entry, t->entry);
    unsigned dropped = 0;
    for (u32 i = t->head[slot]; i;) {
        struct dep *d = &s->dep[i];
        struct node *n = &s->node[d->node];
        if (d->dirty && e == (d->entry | BIT64(d->dirty)))
            d->entry = n->large = e;
        if (e == d->entry) {
            i = d->next;
            continue;
        }
        t->spared += n->hits < UINT16_MAX ? n->hits : UINT16_MAX;
        node_drop(s, n);
        dropped++;
        i = t->head[slot]; /* anew: a table that maps itself lets a node stand on one entry more than once */
    }
    return dropped;
}

/* In the paranoid mode: everything that stands on the page is what memory says. */
static void table_verify(const struct shadow *s, const struct table *t)
{
    for (unsigned slot = 0; slot < slots_of(t); slot++)
        for (u32 i = t->head[slot]; i; i = s->dep[i].next) {
            u64 e = table_load(s->pm, t->page + slot * t->entry, t->entry);
            if (e != s->dep[i].entry)
                panic("shadow stands on %#llx at %#llx, which is %#llx", (unsigned long long)s->dep[i].entry,
                      (unsigned long long)(t->page + slot * t->entry), (unsigned long long)e);
        }
}

static enum shadow_write write_kind(unsigned offset, size_t len)
{
    if (offset & (len - 1) || (len & (len - 1)))
        return SHADOW_WRITE_ODD;
    return len < 4 ? SHADOW_WRITE_NARROW : len == 4 ? SHADOW_WRITE_4 : len == 8 ? SHADOW_WRITE_8 : SHADOW_WRITE_WIDE;
}

/* Some shadow on @t answered since its window began. */
static bool in_use(const struct shadow *s, const struct table *t)
{
    for (unsigned slot = 0; slot < slots_of(t); slot++)
        for (u32 i = t->head[slot]; i; i = s->dep[i].next)
            if (((s->node[s->dep[i].node].used - t->window) & STAMP_BITS) <= (((u32)s->stamp - t->window) & STAMP_BITS))
                return true;
    return false;
}

static void window_end(struct shadow *s, struct table *t)
{
    bool thrashed = t->drops >= FLOOD && t->spared < (u32)t->drops * WORTH;
    if (!thrashed && ((t->live && in_use(s, t)) || t->spared >= WINDOW * WORTH)) {
        t->writes = t->drops = 0;
        t->spared = 0;
        t->window = (u32)s->stamp;
        return;
    }
    if (thrashed) {
        s->stats.floods++;
        t->left_alone = s->stamp + LEFT_ALONE;
    }
    table_empty(s, t);
    untrack(s, t);
}

/* Within one page. */
static void page_written(struct shadow *s, pa_t pa, size_t len)
{
    pa_t page = pa & PAGE_MASK;
    unsigned offset = (unsigned)(pa & ~PAGE_MASK), dropped = 0;
    s->stamp++;
    s->stats.writes[write_kind(offset, len)]++;
    for (u16 i = s->table_hash[table_bucket(page)], next; i; i = next) {
        struct table *t = s->table[i];
        next = t->hash_next;
        if (t->page != page || !t->tracked)
            continue;
        struct shadow_cover c = shadow_cover(offset, len, t->entry);
        t->idle = t->live ? 0 : (u8)(t->idle + 1);
        for (unsigned slot = c.first; slot <= c.last; slot++)
            if (t->head[slot])
                dropped += slot_written(s, t, slot);
        if (unlikely(s->paranoid))
            table_verify(s, t);
        t->drops += (u16)(dropped > UINT16_MAX / WINDOW ? UINT16_MAX / WINDOW : dropped);
        if (unlikely(++t->writes >= WINDOW || t->idle >= IDLE))
            window_end(s, t);
    }
    s->stats.dropped += dropped;
    s->stats.silent += !dropped;
}

static void written(void *opaque, pa_t pa, size_t len)
{
    while (len) {
        size_t n = PAGE_SIZE - (pa & ~PAGE_MASK);
        if (n > len)
            n = len;
        page_written(opaque, pa, n);
        pa += n;
        len -= n;
    }
}

/* ---- life ---- */

static void forget(struct shadow *s)
{
    for (u16 i = 1; i <= s->tables; i++)
        if (s->table[i])
            table_free(s, i);
}

static void map_changed(void *opaque) { forget(opaque); }

struct shadow *shadow_open(struct physmap *pm)
{
    if (pm->shadow) {
        pm->shadow->users++;
        return pm->shadow;
    }
    /* Touched as it is used. */
    struct shadow *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s == MAP_FAILED)
        panic("out of memory for shadow page tables");
    s->pm = pm;
    s->users = 1;
    s->stamp = 1;
    physmap_subscribe(pm, PAGE_TABLE, written, s);
    physmap_on_change(pm, map_changed, s);
    pm->shadow = s;
    return s;
}

void shadow_close(struct shadow *s)
{
    if (!s || --s->users)
        return;
    forget(s);
    physmap_subscribe(s->pm, PAGE_TABLE, NULL, s);
    physmap_on_change(s->pm, NULL, s);
    s->pm->shadow = NULL;
    munmap(s, sizeof(*s));
}

void shadow_paranoid(struct shadow *s, bool on) { s->paranoid = on; }
const struct shadow_stats *shadow_stats(const struct shadow *s) { return &s->stats; }
