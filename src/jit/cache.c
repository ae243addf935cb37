/*
 * The code cache: what translations are linked with, and which go when there is no room.
 *
 * The arena is used in segments, one after the other. Before a segment is used again, the translations in
 * it are dropped, which are an eighth of all: the oldest. Those that still run are translated again; their decoded
 * blocks stay.
 */
#include "jit/internal.h"

/* ---- links ---- */

u32 link_take(struct jit *j)
{
    u32 n = j->link_free;
    if (n) {
        j->link_free = j->link[n].next_out;
        j->links_free--;
        return n;
    }
    return j->links < LINK_MAX ? j->links++ : 0;
}

/* Out of the list of its target. */
static void link_unlist(struct jit *j, u32 n)
{
    struct link *l = &j->link[n];
    if (!l->to)
        return;
    if (l->prev_in)
        j->link[l->prev_in].next_in = l->next_in;
    else
        ((struct block_links *)l->to->links)->in = l->next_in;
    if (l->next_in)
        j->link[l->next_in].prev_in = l->prev_in;
    l->to = NULL;
}

struct guard *guard_take(struct jit *j) { return j->guards < j->guards_end ? &j->guard[j->guards++] : NULL; }

void links_release(struct jit *j, struct block_links *bl)
{
    for (u32 n = bl->out, next; n; n = next) {
        next = j->link[n].next_out;
        link_unlist(j, n);
        j->link[n] = (struct link){.next_out = j->link_free};
        j->link_free = n;
        j->links_free++;
    }
    bl->out = 0;
}

/* Nowhere yet, or nowhere any more. */
static void link_undo(struct link *l)
{
    put_target(l->at, l->unlinked);
    l->to = NULL;
    if (l->guard)
        *l->guard = (struct guard){.rip = CODE_GUARD_NONE, .page = l->guard->page, .from = l->guard->from};
}

void link_set(struct jit *j, u32 n, struct block *to)
{
    struct link *l = &j->link[n];
    struct block_links *bl = to->links;
    /* The boundary may have led elsewhere. If it led to another block in a page like this, the guard does not let it pass. */
    if (l->to == to || !l->from || !bl || (l->guard ? to->host & ~PAGE_MASK : to->host) != l->host || to->mode != l->from->mode)
        return;
    if (l->to) { /* the page is another one now */
        link_unlist(j, n);
        link_undo(l);
    }
    if (l->guard)
        l->guard->host = to->host & PAGE_MASK;
    put_target(l->at, j->rw + ((u8 *)to->code - j->rx));
    l->to = to;
    l->prev_in = 0;
    l->next_in = bl->in;
    if (bl->in)
        j->link[bl->in].prev_in = n;
    bl->in = n;
    j->patched = true;
    j->stats.links++;
}

/* ---- dropping ---- */

static void translation_drop(struct jit *j, struct block *b)
{
    struct block_links *bl = b->links;
    for (u32 n = bl->in, next; n; n = next) {
        struct link *l = &j->link[n];
        next = l->next_in;
        link_undo(l);
        j->stats.unlinks++;
    }
    bl->in = 0;
    links_release(j, bl);
    /* Jump caches may know it. The entry's first instruction is long enough. */
    struct code_buf entry = {j->rw + ((u8 *)b->code - j->rx), j->rw + j->size, false};
    put_jmp_to(&entry, j->gone);
    b->code = NULL;
    b->links = NULL;
    b->heat = 0;
    j->patched = true;
    j->pending = 0;
    j->stats.died++;
}

void cache_block_died(struct vcpu *v, struct block *b)
{
    struct jit *j = v->jit;
    if (b->code)
        translation_drop(j, b);
    for (const struct block_user *u = b->users; u; u = u->next)
        if (u->head->code && u->head->links == u->links)
            translation_drop(j, u->head);
    b->users = NULL;
    /* Translated code that is running might be on its way into this block. */
    cpu_attention(v, ATT_BLOCK);
}

/* ---- room ---- */

static void segment_begin(struct jit *j, unsigned s)
{
    size_t code = (j->middle - j->base) / SEGMENTS, cold = (j->size - j->middle) / SEGMENTS;
    if (j->parts) /* they lie between the translations */
        memset(j->parts, 0, PARTS * sizeof(*j->parts));
    j->segment = s;
    j->used = (j->base + s * code + 63) & ~(size_t)63;
    j->cold = (j->middle + s * cold + 63) & ~(size_t)63;
    j->guards = s * (GUARDS / SEGMENTS);
    j->guards_end = (s + 1) * (GUARDS / SEGMENTS);
    j->used_end = j->base + (s + 1) * code;
    j->cold_end = j->middle + (s + 1) * cold;
}

void cache_init(struct jit *j)
{
    segment_begin(j, 0);
    memset(j->in_segment, 0, sizeof(j->in_segment));
    j->links = 1;
    j->link_free = j->links_free = 0;
    j->pending = 0;
    j->patched = true;
}

void cache_empty(struct jit *j)
{
    cache_init(j);
    j->stats.flushes++;
}

void cache_blocks_flushed(struct vcpu *v) { cache_empty(v->jit); }

/* All translations go, the decoded blocks stay. */
static void cache_flush(struct vcpu *v)
{
    struct interp *ip = v->interp;
    for (unsigned n = 0; n < ARRAY_SIZE(ip->hash); n++)
        for (struct block *b = ip->hash[n]; b; b = b->hash_next) {
            b->code = NULL;
            b->links = NULL;
            b->users = NULL;
            b->heat = 0;
        }
    cache_empty(v->jit);
    mmu_jump_codes_forget(v);
}

static void segment_evict(struct vcpu *v, unsigned s)
{
    struct jit *j = v->jit;
    mmu_jump_codes_forget(v);
    for (struct block_links *bl = j->in_segment[s]; bl; bl = bl->next) {
        if (bl->head->links == bl && bl->head->code) {
            translation_drop(j, bl->head);
            j->stats.evicted++;
        }
        for (unsigned n = 0; n < bl->nusers; n++) {
            struct block_user **p = (struct block_user **)&bl->users[n].of->users;
            while (*p && *p != &bl->users[n])
                p = &(*p)->next;
            if (*p)
                *p = (*p)->next;
        }
    }
    j->in_segment[s] = NULL;
}

void cache_room(struct vcpu *v, size_t code, size_t cold)
{
    struct jit *j = v->jit;
    if (j->links_free + (LINK_MAX - j->links) < 2 * PATH_MAX_INSNS)
        cache_flush(v);
    if (j->used + code <= j->used_end && j->cold + cold <= j->cold_end && j->guards + GUARDS_ROOM <= j->guards_end)
        return;
    unsigned next = (j->segment + 1) % SEGMENTS;
    segment_evict(v, next);
    segment_begin(j, next);
}

void cache_add(struct jit *j, struct block_links *bl)
{
    bl->next = j->in_segment[j->segment];
    j->in_segment[j->segment] = bl;
}

size_t arena_take(struct jit *j, size_t size)
{
    size_t at = j->cold;
    j->cold = (at + size + 15) & ~(size_t)15;
    return at;
}
