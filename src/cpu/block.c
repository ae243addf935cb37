/* The cache of decoded blocks: see block.h. */
#include "cpu/block.h"
#include "cpu/cet.h"
#include "cpu/cpu.h"
#include "cpu/models.h"
#include "cpu/virt.h"
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
    ip->single = calloc(1, sizeof(struct block) + sizeof(struct insn));
    if (ip->arena == MAP_FAILED || !ip->single) {
        free(ip->single);
        free(ip);
        return NULL;
    }
    return ip;
}

void interp_free(struct interp *ip)
{
    if (!ip)
        return;
    free(ip->single);
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

/* The 64-byte granules of its page that bytes @host..@host+@len-1 touch; what is in the next page does not count. */
static u64 granules(u64 host, size_t len)
{
    size_t from = host & ~PAGE_MASK, to = from + len - 1;
    return BITS64(to < PAGE_SIZE ? (unsigned)to / 64 : 63, (unsigned)from / 64);
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
    if (unlikely(v->guest_mode && (t.pa & PAGE_MASK) == v->virt_apic_page)) {
        u64 value; /* VMX: a fetch from the APIC-access page is an access of its own kind; it exits */
        v->virt->apic_access(v, (u32)(t.pa & ~PAGE_MASK), false, 1, &value, access, la);
    }
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

/* What a block takes from the arena at most; more than a crossing and its mark do. */
#define BLOCK_SPACE (sizeof(struct block) + BLOCK_MAX * sizeof(struct insn) + 5 * 64 + 2 * sizeof(struct code_page))

static void see_to_room(struct vcpu *v)
{
    if (v->interp->used + BLOCK_SPACE > ARENA_SIZE)
        arena_flush(v);
}

/* The page of @f, whose code is about to be read: a write by somebody else from now on is noticed. */
static struct code_page *page_track(struct vcpu *v, const struct fetch *f)
{
    struct code_page *page = page_get(v->interp, (u64)(uintptr_t)f->host);
    const struct region *region = physmap_find(v->pm, f->pa);
    if (!page->blocks && region && region->kind == REGION_RAM) {
        physmap_note_user(v->pm, f->pa, PAGE_HOLDERS, v->index);
        physmap_set_page_flag(v->pm, f->pa & PAGE_MASK, PAGE_CODE);
    }
    return page;
}

/* Into the list of @page. */
static void page_add(struct code_page *page, struct block *b)
{
    b->page_next = page->blocks;
    page->blocks = b;
    page->granules |= granules(b->host, b->bytes);
    page->misses = 0;
}

/* A new block is found from now on; its instructions and all that tells about them are there. */
static void block_add(struct vcpu *v, struct code_page *page, struct block *b, const struct fetch *f)
{
    struct interp *ip = v->interp;
    struct block **head = bucket(ip, b->host, b->mode);
    b->heat = 0;
    b->code = NULL;
    b->links = NULL;
    b->users = NULL;
    b->hash_next = *head;
    *head = b;
    page_add(page, b);
    ip->stats.blocks++;
    ip->stats.insns += b->n;
    log_at(block, "block %llx at pa %llx: %u instructions, %u bytes", (unsigned long long)f->la,
           (unsigned long long)f->pa, b->n, b->bytes);
}

/* Decodes from @host to the end of the page; NULL when not even one instruction lies within the page. */
static struct block *block_build(struct vcpu *v, const struct fetch *f, u32 mode)
{
    struct interp *ip = v->interp;
    see_to_room(v);

    u64 host = (u64)(uintptr_t)f->host;
    struct code_page *page = page_track(v, f);
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
            break; /* crosses the page, or too long: block_cross() knows which */
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

    b->host = host;
    b->mode = mode;
    b->n = (u16)n;
    b->bytes = (u16)at;
    b->near = near;
    b->cross = CROSS_NONE;
    block_add(v, page, b, f);
    arena_take(ip, sizeof(*b) + n * sizeof(struct insn));
    return b;
}

struct block *block_known(struct interp *ip, u64 host, u32 mode)
{
    struct block *b = *bucket(ip, host, mode);
    while (b && (b->host != host || b->mode != mode || b->cross))
        b = b->hash_next;
    return b;
}

struct block *block_known_cross(struct interp *ip, u64 host, u64 next, u32 mode)
{
    struct block *b = *bucket(ip, host, mode);
    while (b && (b->host != host || b->mode != mode || !b->cross || block_crossing(b)->next != next))
        b = b->hash_next;
    return b;
}

void block_bytes(const struct block *b, unsigned at, u8 *to, unsigned len)
{
    for (unsigned n = 0; n < len; n++) {
        u64 host = b->host + at + n;
        if (b->cross && (host ^ b->host) & PAGE_MASK)
            host = block_crossing(b)->next + (host & ~PAGE_MASK);
        to[n] = *(const u8 *)(uintptr_t)host;
    }
}

/* Whether the instruction at @host is known to cross, wherever to. */
static bool crosses(struct interp *ip, u64 host, u32 mode)
{
    const struct block *b = *bucket(ip, host, mode);
    while (b && (b->host != host || b->mode != mode || !b->cross))
        b = b->hash_next;
    return b;
}

/* The instruction at @f if it goes on in the next page, and both are memory; raises the fault of fetching that. Else NULL. */
static struct block *block_cross(struct vcpu *v, struct fetch *f, bool translated, u32 mode)
{
    struct interp *ip = v->interp;
    u64 host = (u64)(uintptr_t)f->host;
    unsigned first = (unsigned)(PAGE_SIZE - (host & ~PAGE_MASK));
    if (first >= 15 || (v->code_mode != CODE_64 && f->la >= 0xfffff000u))
        return NULL;
    struct decode_ctx ctx;
    struct insn i = {0};
    decode_context(v, &ctx);
    /* Only an instruction that needs the next page may look at it. */
    if (!crosses(ip, host, mode) && insn_decode(&ctx, f->host, first, &i) != DECODE_SHORT)
        return NULL;
    struct fetch rest;
    fetch_locate(v, f->la + first, &rest);
    if (!rest.host)
        return NULL;
    struct block *b = block_known_cross(ip, host, (u64)(uintptr_t)rest.host, mode);
    if (b)
        return b;
    if (!translated)
        fetch_translate(v, f->la, f);
    fetch_translate(v, f->la + first, &rest); /* for the physical address */
    if (!f->host || !rest.host)
        return NULL;
    see_to_room(v);
    struct code_page *page = page_track(v, f), *next = page_track(v, &rest);
    u8 bytes[15];
    memcpy(bytes, f->host, first);
    memcpy(bytes + first, rest.host, sizeof(bytes) - first);
    memset(&i, 0, sizeof(i));
    if (insn_decode(&ctx, bytes, sizeof(bytes), &i) != DECODE_OK || i.len <= first)
        return NULL;
    insn_bind(&i);
    bool special = unlikely(mode >> BLOCK_CET_SHIFT) && cet_bind(&i, mode >> BLOCK_CET_SHIFT, ctx.mode);
    const struct insn_row *row = insn_row(&i);
    b = arena_take(ip, sizeof(*b) + sizeof(i) + sizeof(struct crossing));
    struct block *mark = arena_take(ip, sizeof(*mark) + sizeof(struct crossing));
    *b = (struct block){.host = (u64)(uintptr_t)f->host, .mode = mode, .n = 1, .bytes = i.len, .cross = CROSS_INSN,
                        .near = !special && (!(row->checks & CHK_END) || near_branch(&i, row))};
    b->insn[0] = i;
    *mark = (struct block){.host = (u64)(uintptr_t)rest.host, .bytes = (u16)(i.len - first), .cross = CROSS_MARK};
    *block_crossing(b) = (struct crossing){mark->host, mark};
    *block_crossing(mark) = (struct crossing){b->host, b};
    block_add(v, page, b, f);
    page_add(next, mark);
    return b;
}

struct block *block_find(struct vcpu *v, gva_t la, u32 mode)
{
    struct interp *ip = v->interp;
    struct fetch f = {.la = la};
    bool translated = false;
    ip->stats.lookups++;
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
        b = block_cross(v, &f, translated, mode);
        if (!b) {
            if (!translated) /* the TLB does not know the physical address */
                fetch_translate(v, la, &f);
            b = f.host ? block_build(v, &f, mode) : NULL;
        }
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
    unsigned have = first;
    decode_context(v, &ctx);
    enum decode_status status = insn_decode(&ctx, bytes, first, &i);
    /* Only an instruction that needs the next page may look at it. */
    if (status == DECODE_SHORT && first < avail) {
        fetch_locate(v, (la + first) & v->linear_mask, &f);
        fetch_bytes(v, &f, bytes + first, avail - first);
        have = avail;
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
    const struct insn_row *row = insn_row(&i);
    bool near = !(row->checks & CHK_END) || near_branch(&i, row);
    *ip->single = (struct block){.mode = mode, .n = 1, .bytes = i.len, .near = near};
    ip->single->insn[0] = i;
    return ip->single;
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
    if (b == ip->current)
        cpu_attention(v, ATT_BLOCK);
}

static void page_remove(struct code_page *page, const struct block *b)
{
    struct block **p = &page->blocks;
    while (*p && *p != b)
        p = &(*p)->page_next;
    if (*p)
        *p = b->page_next;
}

/* Kills the blocks of @page that touch bytes @from..@to-1 of it. */
static unsigned page_kill(struct vcpu *v, struct code_page *page, u64 from, u64 to)
{
    unsigned killed = 0;
    page->granules = 0;
    for (struct block **p = &page->blocks; *p;) {
        struct block *b = *p;
        if (b->host >= to || b->host + b->bytes <= from) {
            page->granules |= granules(b->host, b->bytes);
            p = &b->page_next;
            continue;
        }
        *p = b->page_next;
        killed++;
        if (!b->cross) {
            block_unlink(v, b);
            continue;
        }
        /* Both halves go. They may be in one list: from its start again. */
        struct block *other = block_crossing(b)->partner;
        page_remove(page_find(v->interp, other->host), other);
        block_unlink(v, b->cross == CROSS_MARK ? other : b);
        page->granules = 0;
        p = &page->blocks;
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
