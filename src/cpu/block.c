/* The cache of decoded blocks: see block.h. */
#include "cpu/block.h"
#include "cpu/cet.h"
#include "cpu/cpu.h"
#include "cpu/models.h"
#include "base/log.h"

#include <stdlib.h>
#include <sys/mman.h>

#define PATIENCE 256

static unsigned hash64(u64 x, unsigned bits) { return (unsigned)(x * 0x9e3779b97f4a7c15ull >> (64 - bits)); }

static struct block **bucket(struct interp *ip, u64 host, u32 mode)
{
    return &ip->hash[hash64(host ^ (u64)mode << 48, BLOCK_HASH_BITS)];
}

struct interp *interp_new(void)
{
    struct interp *ip = calloc(1, sizeof(*ip));
    if (!ip)
        return NULL;
    ip->arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ip->arena == MAP_FAILED) {
        free(ip);
        return NULL;
    }
    return ip;
}

void interp_free(struct interp *ip)
{
    if (!ip)
        return;
    for (unsigned n = 0; n < ARRAY_SIZE(ip->cross); n++)
        free(ip->cross[n].block);
    munmap(ip->arena, ARENA_SIZE);
    free(ip);
}

/* ---- memory ---- */

static void arena_flush(struct vcpu *v)
{
    struct interp *ip = v->interp;
    ip->used = 0;
    ip->current = NULL;
    memset(ip->hash, 0, sizeof(ip->hash));
    memset(ip->pages, 0, sizeof(ip->pages));
    ip->stats.arena_flushes++;
    if (ip->blocks_flushed)
        ip->blocks_flushed(v);
    mmu_flush_all(v); /* for the jump caches of all address spaces, which point into the arena */
}

/* Never NULL: the caller has seen to the room. */
static void *arena_take(struct interp *ip, size_t size)
{
    void *p = ip->arena + ip->used;
    ip->used += (size + 63) & ~(size_t)63;
    return p;
}

static struct code_page *page_find(struct interp *ip, u64 host)
{
    struct code_page *p = ip->pages[hash64(host >> PAGE_SHIFT, CODE_PAGE_HASH_BITS)];
    while (p && p->host != (host & PAGE_MASK))
        p = p->next;
    return p;
}

static struct code_page *page_get(struct interp *ip, u64 host)
{
    struct code_page *p = page_find(ip, host);
    if (p)
        return p;
    struct code_page **head = &ip->pages[hash64(host >> PAGE_SHIFT, CODE_PAGE_HASH_BITS)];
    p = arena_take(ip, sizeof(*p));
    *p = (struct code_page){.host = host & PAGE_MASK, .next = *head, .patience = PATIENCE};
    *head = p;
    return p;
}

/* The 64-byte granules of its page that bytes @host..@host+@len-1 touch. */
static u64 granules(u64 host, size_t len)
{
    unsigned first = (unsigned)(host & ~PAGE_MASK) / 64, last = (unsigned)((host + len - 1) & ~PAGE_MASK) / 64;
    return BITS64(last, first);
}

/* ---- fetching ---- */

struct fetch {
    gva_t la;
    pa_t pa;
    u8 *host; /* NULL: device memory or nothing there */
};

/* Translates for execution; raises #GP(0) for a non-canonical address, or what the walk says. */
static void fetch_translate(struct vcpu *v, gva_t la, struct fetch *f)
{
    struct translation t;
    struct walk w;
    u32 access = ACCESS_EXEC | mmu_access_mode(v);
    if (v->code_mode == CODE_64 && !cpu_canonical(v, la))
        cpu_gp0(v);
    if (!mmu_translate(v, la, access, &t, &w))
        cpu_raise_walk(v, la, access, &w);
    *f = (struct fetch){.la = la, .pa = t.pa, .host = t.host};
}

/* Likewise, but .pa is left out when the TLB knows where the bytes are. */
static void fetch_locate(struct vcpu *v, gva_t la, struct fetch *f)
{
    const struct tlb_entry *e = tlb_slot(v, la);
    if (likely(e->tag_exec == (la & PAGE_MASK)))
        *f = (struct fetch){.la = la, .host = (u8 *)(uintptr_t)(la + e->addend)};
    else
        fetch_translate(v, la, f);
}

static void decode_context(const struct vcpu *v, struct decode_ctx *ctx)
{
    *ctx = (struct decode_ctx){
        .mode = v->code_mode,
        .real_or_v86 = v->mode == MODE_REAL || v->mode == MODE_V86,
        .amd = v->model && v->model->vendor == VENDOR_AMD,
        .features = v->features,
    };
}

/* ---- blocks ---- */

static bool repeated_string(const struct insn *i, const struct insn_row *row)
{
    if (!(i->flags & (INSN_REP | INSN_REPNE)) || row->map)
        return false;
    return (i->opcode >= 0x6c && i->opcode <= 0x6f) || (i->opcode >= 0xa4 && i->opcode <= 0xaf);
}

/* Near branches: they end a block but change nothing that the next lookup depends on. */
static bool near_branch(const struct insn *i, const struct insn_row *row)
{
    if (row->vex)
        return false;
    if (row->map == 1)
        return (i->opcode & 0xf0) == 0x80;
    if (row->map)
        return false;
    switch (i->opcode) {
    case 0xe0: case 0xe1: case 0xe2: case 0xe3: case 0xe8: case 0xe9: case 0xeb: case 0xc2: case 0xc3:
        return true;
    case 0xff:
        return (i->modrm >> 3 & 7) == 2 || (i->modrm >> 3 & 7) == 4;
    }
    return (i->opcode & 0xf0) == 0x70;
}

/* Decodes from @host to the end of the page; NULL when not even one instruction lies within the page. */
static struct block *block_build(struct vcpu *v, const struct fetch *f, u32 mode)
{
    struct interp *ip = v->interp;
    if (ip->used + sizeof(struct block) + BLOCK_MAX * sizeof(struct insn) + 3 * 64 + sizeof(struct code_page) > ARENA_SIZE)
        arena_flush(v);

    u64 host = (u64)(uintptr_t)f->host;
    struct code_page *page = page_get(ip, host);
    const struct region *region = physmap_find(v->pm, f->pa);
    /* Tracked before it is read: a write by somebody else from now on is noticed. */
    if (!page->blocks && region && region->kind == REGION_RAM) {
        physmap_note_user(v->pm, f->pa, PAGE_HOLDERS, v->index);
        physmap_set_page_flag(v->pm, f->pa & PAGE_MASK, PAGE_CODE);
    }

    struct decode_ctx ctx;
    decode_context(v, &ctx);
    struct block *b = (struct block *)(ip->arena + ip->used);
    unsigned room = (unsigned)(PAGE_SIZE - (host & ~PAGE_MASK)), at = 0, n = 0;
    bool near = true;
    while (n < BLOCK_MAX && at < room) {
        struct insn *i = &b->insn[n];
        unsigned avail = room - at < 15 ? room - at : 15;
        memset(i, 0, sizeof(*i));
        if (insn_decode(&ctx, f->host + at, avail, i) != DECODE_OK)
            break; /* crosses the page, or too long: block_single() knows which */
        insn_bind(i);
        at += i->len;
        n++;
        const struct insn_row *row = insn_row(i);
        if (unlikely(mode >> BLOCK_CET_SHIFT) && cet_bind(i, mode >> BLOCK_CET_SHIFT, ctx.mode)) {
            near = false;
            break;
        }
        if (row->checks & CHK_END) {
            near = near_branch(i, row);
            break;
        }
        if (repeated_string(i, row))
            break;
    }
    if (!n)
        return NULL;

    struct block **head = bucket(ip, host, mode);
    b->host = host;
    b->mode = mode;
    b->n = (u16)n;
    b->bytes = (u16)at;
    b->near = near;
    b->heat = 0;
    b->code = NULL;
    b->links = NULL;
    b->users = NULL;
    b->hash_next = *head;
    b->page_next = page->blocks;
    *head = b;
    page->blocks = b;
    page->granules |= granules(host, at);
    page->misses = 0;
    arena_take(ip, sizeof(*b) + n * sizeof(struct insn));
    ip->stats.blocks++;
    ip->stats.insns += n;
    log_at(block, "block %llx at pa %llx: %u instructions, %u bytes", (unsigned long long)f->la,
           (unsigned long long)f->pa, n, at);
    return b;
}

struct block *block_known(struct interp *ip, u64 host, u32 mode)
{
    struct block *b = *bucket(ip, host, mode);
    while (b && (b->host != host || b->mode != mode))
        b = b->hash_next;
    return b;
}

/* Few bytes, mostly: a call costs more than the comparison. */
static inline bool same_bytes(const u8 *a, const u8 *b, unsigned n)
{
    while (n && *a == *b)
        a++, b++, n--;
    return !n;
}

/* The instruction at @la if it crosses into the next page, is known, and the TLB says that its bytes are what they were. */
static struct block *cross_find(struct vcpu *v, gva_t la, u32 mode)
{
    const struct cross *c = &v->interp->cross[hash64(la, CROSS_BITS)];
    unsigned first = (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK));
    if (c->la != la || !c->block || c->block->mode != mode || c->block->bytes <= first || v->code_mode != CODE_64)
        return NULL;
    const struct tlb_entry *e = tlb_slot(v, la), *next = tlb_slot(v, la + first);
    if (e->tag_exec != (la & PAGE_MASK) || next->tag_exec != la + first ||
        !same_bytes(c->bytes, (const u8 *)(uintptr_t)(la + e->addend), first) ||
        !same_bytes(c->bytes + first, (const u8 *)(uintptr_t)(la + first + next->addend), c->block->bytes - first))
        return NULL;
    return c->block;
}

struct block *block_find(struct vcpu *v, gva_t la, u32 mode)
{
    struct interp *ip = v->interp;
    struct fetch f = {.la = la};
    bool translated = false;
    ip->stats.lookups++;
    if ((la & ~PAGE_MASK) > PAGE_SIZE - 15) {
        struct block *b = cross_find(v, la, mode);
        if (b)
            return b;
    }
    const struct tlb_entry *e = tlb_slot(v, la);
    if (e->tag_exec == (la & PAGE_MASK)) {
        f.host = (u8 *)(uintptr_t)(la + e->addend);
    } else {
        fetch_translate(v, la, &f);
        translated = true;
        if (!f.host)
            return block_single(v);
    }
    u64 host = (u64)(uintptr_t)f.host;
    struct block *b = block_known(ip, host, mode);
    if (!b) {
        if (!translated) /* the TLB does not know the physical address */
            fetch_translate(v, la, &f);
        b = f.host ? block_build(v, &f, mode) : NULL;
        if (!b)
            return block_single(v);
    }
    mmu_jump_hint(v, la, b);
    return b;
}

/* @n bytes at @f, within its page. */
static void fetch_bytes(struct vcpu *v, const struct fetch *f, u8 *buf, unsigned n)
{
    if (f->host)
        memcpy(buf, f->host, n);
    else
        physmap_read(v->pm, f->pa, buf, n);
}

struct block *block_single(struct vcpu *v)
{
    struct interp *ip = v->interp;
    u32 mode = block_mode(v);
    unsigned avail = 15;
    u8 bytes[16] = {0};
    struct fetch f;
    ip->stats.singles++;
    if (v->code_mode != CODE_64) {
        u32 limit = v->seg[SEG_CS].limit;
        if (v->rip > limit)
            cpu_gp0(v);
        if (limit - v->rip < avail - 1)
            avail = (unsigned)(limit - v->rip) + 1;
    }
    gva_t la = (v->seg_base[SEG_CS] + v->rip) & v->linear_mask;
    fetch_locate(v, la, &f);
    unsigned first = (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK));
    if (first > avail)
        first = avail;
    fetch_bytes(v, &f, bytes, first);

    struct decode_ctx ctx;
    struct insn i = {0};
    struct cross *c = &ip->cross[hash64(la, CROSS_BITS)];
    unsigned have = first;
    bool known = c->block && c->la == la && c->block->mode == mode;
    /* Only an instruction that needs the next page may look at it. */
    if (known && c->block->insn[0].len <= first && !memcmp(c->bytes, bytes, c->block->insn[0].len))
        return c->block;
    decode_context(v, &ctx);
    enum decode_status status = known && !memcmp(c->bytes, bytes, first) && c->block->insn[0].len > first ?
                                    DECODE_SHORT : insn_decode(&ctx, bytes, first, &i);
    if (status == DECODE_SHORT && first < avail) {
        fetch_locate(v, (la + first) & v->linear_mask, &f);
        fetch_bytes(v, &f, bytes + first, avail - first);
        have = avail;
        if (known && c->block->insn[0].len <= have && !memcmp(c->bytes, bytes, c->block->insn[0].len))
            return c->block;
        memset(&i, 0, sizeof(i));
        status = insn_decode(&ctx, bytes, have, &i);
    }
    /* Longer than 15 bytes, or past the CS limit. */
    if (status != DECODE_OK) {
        if (unlikely(v->cet & CET_WAIT))
            cet_missing_endbranch(v, &i);
        cpu_gp0(v);
    }
    insn_bind(&i);
    if (unlikely(v->cet))
        cet_bind(&i, v->cet, ctx.mode);
    if (!c->block) {
        c->block = calloc(1, sizeof(struct block) + sizeof(struct insn));
        if (!c->block)
            panic("no memory for a decoded instruction");
    }
    c->la = la;
    memcpy(c->bytes, bytes, sizeof(bytes));
    const struct insn_row *row = insn_row(&i);
    bool near = !(row->checks & CHK_END) || near_branch(&i, row);
    *c->block = (struct block){.mode = mode, .n = 1, .bytes = i.len, .near = near};
    c->block->insn[0] = i;
    return c->block;
}

/* ---- self-modifying code ---- */

static void block_unlink(struct vcpu *v, struct block *b)
{
    struct interp *ip = v->interp;
    struct block **p = bucket(ip, b->host, b->mode);
    while (*p && *p != b)
        p = &(*p)->hash_next;
    if (*p)
        *p = b->hash_next;
    b->mode = 0;
    if (b->code || b->users)
        ip->block_died(v, b);
}

/* Kills the blocks of @page that touch bytes @from..@to-1 of it. */
static unsigned page_kill(struct vcpu *v, struct code_page *page, u64 from, u64 to)
{
    struct interp *ip = v->interp;
    unsigned killed = 0;
    page->granules = 0;
    for (struct block **p = &page->blocks; *p;) {
        struct block *b = *p;
        if (b->host < to && b->host + b->bytes > from) {
            *p = b->page_next;
            block_unlink(v, b);
            if (b == ip->current)
                cpu_attention(v, ATT_BLOCK);
            killed++;
        } else {
            page->granules |= granules(b->host, b->bytes);
            p = &b->page_next;
        }
    }
    return killed;
}

void block_written(struct vcpu *v, pa_t pa, size_t len)
{
    struct interp *ip = v->interp;
    while (len) {
        size_t n = PAGE_SIZE - (pa & ~PAGE_MASK);
        if (n > len)
            n = len;
        u64 host = (u64)(uintptr_t)physmap_ram(v->pm, pa);
        struct code_page *page = host ? page_find(ip, host) : NULL;
        if (page && page->blocks) {
            unsigned killed = 0;
            if (page->granules & granules(host, n))
                killed = page_kill(v, page, host, host + n);
            if (killed) {
                ip->stats.smc_writes++;
                ip->stats.smc_blocks += killed;
            } else if (++page->misses >= page->patience) {
                /* Data beside code that may not run again. If it does, wait longer the next time. */
                page->misses = 0;
                if (page->patience < 1u << 20)
                    page->patience *= 2;
                page_kill(v, page, page->host, page->host + PAGE_SIZE);
            }
        }
        pa += n;
        len -= n;
    }
}

bool block_page_holds_code(struct vcpu *v, pa_t pa)
{
    u64 host = (u64)(uintptr_t)physmap_ram(v->pm, pa);
    struct code_page *page = host ? page_find(v->interp, host) : NULL;
    return page && page->blocks;
}
