/*
 * The slow paths of cpu/mem.h: everything that is not a granted page. Order of judgement (SDM vol. 3
 * "Priority Among Concurrent Events" leaves it open within one instruction): canonical form,
 * alignment, page. A store that crosses pages has both translated before either is written.
 */
#include "cpu/mem.h"

#include "devices/irq.h"

#define MAX_PIECES 5 /* 16 KiB: more than any operand */

/* ---- segmentation ---- */

static void __attribute__((noreturn)) raise_segment(struct vcpu *v, unsigned seg)
{
    cpu_raise_error(v, seg == SEG_SS ? VEC_SS : VEC_GP, 0);
}

/* ---- the checks before translation ---- */

/*
 * SDM vol. 1 "Linear-Address Pre-Processing": the bits of a 64-bit data address that linear-address masking
 * replaces by bit 63. CR3 says so for user pointers (bit 63 clear), CR4 for supervisor pointers.
 */
static gva_t lam_masked(const struct vcpu *v, gva_t la)
{
    const u64 lam48 = BITS64(62, 48), lam57 = BITS64(62, 57);
    if (la >> 63)
        return !(v->cr4 & CR4_LAM_SUP) ? la : la | (v->cr4 & CR4_LA57 ? lam57 : lam48);
    return v->cr3 & CR3_LAM_U57 ? la & ~lam57 : v->cr3 & CR3_LAM_U48 ? la & ~lam48 : la;
}

/* LAM48 under 5-level paging: bit 47 must agree with bit 63 too. */
static bool lam48_bad(const struct vcpu *v, gva_t la)
{
    return (v->cr3 & (CR3_LAM_U57 | CR3_LAM_U48)) == CR3_LAM_U48 && !(la >> 63) && (la >> 47 & 1);
}

/* The linear address that is translated: masked, and canonical. Comes here only when no TLB entry has the address. */
static gva_t pointer(struct vcpu *v, unsigned seg, gva_t la, unsigned size)
{
    if (!cpu_long64(v))
        return la;
    if (unlikely((v->cr4 & CR4_LAM_SUP) || v->cr3 >> 61)) {
        la = lam_masked(v, la);
        if (lam48_bad(v, la))
            raise_segment(v, seg);
    }
    if (unlikely(!cpu_canonical(v, la) || !cpu_canonical(v, la + size - 1)))
        raise_segment(v, seg);
    return la;
}

/*
 * SDM vol. 3 "Alignment Check Exception (#AC)": only CPL 3, by the operand's natural alignment. That of vectors,
 * where the manual leaves the check to the processor, is 16; of what consists of fields (an x87 environment, a
 * far pointer) that of the fields.
 */
static void check_alignment(struct vcpu *v, gva_t la, unsigned size)
{
    if (likely(!(v->rflags & FL_AC)) || !(v->cr0 & CR0_AM) || v->cpl != 3)
        return;
    unsigned field = size & -size, align = size == 10 ? 8 : field < 16 ? field : 16;
    if (la & (align - 1))
        cpu_raise_error(v, VEC_AC, 0);
}

void mem_check_alignment(struct vcpu *v, unsigned seg, u64 offset, unsigned size)
{
    check_alignment(v, (v->seg_base[seg] + offset) & v->linear_mask, size);
}

/* Data breakpoints are traps: noted now, taken at the instruction's end. */
static void watch_hit(struct vcpu *v, gva_t la, unsigned size, bool write)
{
    for (unsigned n = 0; n < 4; n++) {
        unsigned kind = v->dr7 >> (16 + 4 * n) & 3;
        if (!(v->dr7 >> (2 * n) & 3) || !(kind & 1) || (kind == 1 && !write))
            continue;
        static const u8 lengths[4] = {1, 2, 8, 4};
        u64 len = lengths[v->dr7 >> (18 + 4 * n) & 3], base = v->dr[n] & ~(len - 1);
        if (la - base < len || base - la < size) {
            v->pending_dbg |= DR6_B(n);
            cpu_attention(v, ATT_DEBUG);
        }
    }
}

/* Whether any byte of the access lies in the physical range; *pa becomes the first such. */
static bool physical_in(struct vcpu *v, gva_t la, unsigned size, const struct debug_watch *w, u64 *pa)
{
    for (unsigned n = 0; n < size; n++) {
        struct translation t;
        struct walk walk;
        if (!mmu_translate(v, (la + n) & v->linear_mask, ACCESS_READ | ACCESS_NO_AD, &t, &walk))
            return false;
        for (; n < size; n++, t.pa++) { /* to the end of the page */
            if (t.pa - w->at < w->len) {
                *pa = t.pa;
                return true;
            }
            if (!((t.pa + 1) & ~PAGE_MASK))
                break;
        }
    }
    return false;
}

/* A debugger's watched ranges: noted, for it to see before the next instruction. */
static void debug_watch_hit(struct vcpu *v, gva_t la, unsigned size, bool write)
{
    struct vcpu_debug *d = v->debug;
    for (unsigned n = 0; n < d->nwatch; n++) {
        const struct debug_watch *w = &d->watch[n];
        u64 at = la;
        if (!(w->kind & (write ? WATCH_WRITE : WATCH_READ)))
            continue;
        if (w->physical && !physical_in(v, la, size, w, &at))
            continue;
        if (w->physical || at - w->at < w->len || w->at - at < size) {
            d->hit = true;
            d->hit_watch = *w;
            d->hit_la = w->physical || at - w->at < w->len ? la : w->at;
            d->hit_pa = at;
            return;
        }
    }
}

static noinline void watch_hits(struct vcpu *v, gva_t la, unsigned size, bool write)
{
    watch_hit(v, la, size, write);
    if (v->debug)
        debug_watch_hit(v, la, size, write);
}

static inline void watch(struct vcpu *v, gva_t la, unsigned size, bool write)
{
    if (unlikely(v->watching))
        watch_hits(v, la, size, write);
}

/* ---- one translated run ---- */

enum special { SPECIAL_NONE, SPECIAL_APIC, SPECIAL_VIRT_APIC };

static enum special special_page(const struct vcpu *v, pa_t pa)
{
    pa_t page = pa & PAGE_MASK;
    if (page == v->virt_apic_page && v->guest_mode)
        return SPECIAL_VIRT_APIC;
    return page == v->apic_page && v->intc_ops ? SPECIAL_APIC : SPECIAL_NONE;
}

/* An aligned access of 1..8 bytes that is not plain memory. @value in and out. */
static void device_access(struct vcpu *v, gva_t la, pa_t pa, u64 *value, unsigned size, u32 access)
{
    bool write = access & ACCESS_WRITE;
    u32 offset = (u32)(pa & ~PAGE_MASK);
    switch (special_page(v, pa)) {
    case SPECIAL_VIRT_APIC:
        if (v->virt->apic_access(v, offset, write, size, value, access, la))
            return;
        break; /* not virtualised after all: the memory of the page itself */
    case SPECIAL_APIC:
        if (write)
            v->intc_ops->mmio_write(v->intc, offset, *value, size);
        else
            *value = v->intc_ops->mmio_read(v->intc, offset, size);
        return;
    case SPECIAL_NONE:
        break;
    }
    if (write)
        physmap_store(v->pm, pa, *value, size);
    else
        *value = physmap_load(v->pm, pa, size);
}

/* Any bytes within a page, devices in aligned pieces. */
static void run_read(struct vcpu *v, gva_t la, const struct translation *t, void *buf, unsigned len, u32 access)
{
    if (likely(t->host != NULL)) {
        memcpy(buf, t->host, len);
        return;
    }
    u8 *out = buf;
    for (unsigned done = 0; done < len;) {
        unsigned n = 8;
        while (n > len - done || ((t->pa + done) & (n - 1)))
            n /= 2;
        u64 value = 0;
        device_access(v, la + done, t->pa + done, &value, n, access);
        store_le(out + done, value, n);
        done += n;
    }
}

static void run_write(struct vcpu *v, gva_t la, const struct translation *t, const void *buf, unsigned len, u32 access)
{
    if (likely(t->host != NULL)) {
        memcpy(t->host, buf, len);
        if (t->page_flags)
            physmap_written(v->pm, t->pa, len);
        return;
    }
    const u8 *in = buf;
    for (unsigned done = 0; done < len;) {
        unsigned n = 8;
        while (n > len - done || ((t->pa + done) & (n - 1)))
            n /= 2;
        u64 value = load_le(in + done, n);
        device_access(v, la + done, t->pa + done, &value, n, access);
        done += n;
    }
}

/* Values: one host load or store, so that aligned ones are seen whole by other threads. */
static u64 value_read(struct vcpu *v, gva_t la, const struct translation *t, unsigned size, u32 access)
{
    u64 value = 0;
    if (likely(t->host != NULL))
        switch (size) {
        case 1:
            return *t->host;
        case 2:
            return load16(t->host);
        case 4:
            return load32(t->host);
        case 8:
            return load64(t->host);
        }
    run_read(v, la, t, &value, size, access);
    return value;
}

static void value_write(struct vcpu *v, gva_t la, const struct translation *t, u64 value, unsigned size, u32 access)
{
    if (likely(t->host != NULL)) {
        switch (size) {
        case 1:
            *t->host = (u8)value;
            break;
        case 2:
            store16(t->host, (u16)value);
            break;
        case 4:
            store32(t->host, (u32)value);
            break;
        case 8:
            store64(t->host, value);
            break;
        default:
            memcpy(t->host, &value, size);
        }
        if (t->page_flags)
            physmap_written(v->pm, t->pa, size);
        return;
    }
    run_write(v, la, t, &value, size, access);
}

/* ---- translation, raising ---- */

static inline void translate(struct vcpu *v, gva_t la, u32 access, struct translation *t)
{
    struct walk w;
    if (unlikely(!mmu_translate(v, la, access, t, &w)))
        cpu_raise_walk(v, la, access & ~ACCESS_NO_AD, &w);
}

static inline bool one_page(gva_t la, unsigned size) { return (la & ~PAGE_MASK) + size <= PAGE_SIZE; }

struct piece {
    gva_t la;
    unsigned len;
    struct translation t;
};

/*
 * Cuts la..la+size-1 at page boundaries and translates every piece, in order of address; a write sets
 * dirty flags only once all of it is known to succeed. Raises the first fault.
 */
static unsigned translate_pieces(struct vcpu *v, gva_t la, unsigned size, u32 access, u64 mask,
                                 struct piece p[MAX_PIECES])
{
    unsigned n = 0;
    for (; size && n < MAX_PIECES; n++) {
        unsigned room = (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK));
        p[n].la = la;
        p[n].len = size < room ? size : room;
        la = (la + p[n].len) & mask;
        size -= p[n].len;
    }
    if (size)
        panic("memory operand of more than %u pages", MAX_PIECES);
    bool look_first = n > 1 && (access & ACCESS_WRITE);
    for (unsigned i = 0; i < n; i++)
        translate(v, p[i].la, access | (look_first ? ACCESS_NO_AD : 0), &p[i].t);
    if (look_first && !(access & ACCESS_NO_AD))
        for (unsigned i = 0; i < n; i++)
            translate(v, p[i].la, access, &p[i].t);
    return n;
}

static void pieces_read(struct vcpu *v, gva_t la, void *buf, unsigned size, u32 access, u64 mask)
{
    struct piece p[MAX_PIECES];
    unsigned n = translate_pieces(v, la, size, access, mask, p);
    u8 *out = buf;
    for (unsigned i = 0; i < n; out += p[i].len, i++)
        run_read(v, p[i].la, &p[i].t, out, p[i].len, access);
}

static void pieces_write(struct vcpu *v, gva_t la, const void *buf, unsigned size, u32 access, u64 mask)
{
    struct piece p[MAX_PIECES];
    unsigned n = translate_pieces(v, la, size, access, mask, p);
    const u8 *in = buf;
    for (unsigned i = 0; i < n; in += p[i].len, i++) {
        /* Translating a later piece may have made an earlier one's page a tracked table. */
        p[i].t.page_flags |= n > 1 ? physmap_page_flags(v->pm, p[i].t.pa) : 0;
        run_write(v, p[i].la, &p[i].t, in, p[i].len, access);
    }
}

/* ---- values ---- */

static u64 load_value(struct vcpu *v, gva_t la, unsigned size, u32 access, u64 mask)
{
    if (likely(one_page(la, size))) {
        struct translation t;
        translate(v, la, access, &t);
        return value_read(v, la, &t, size, access);
    }
    u64 value = 0;
    pieces_read(v, la, &value, size, access, mask);
    return value;
}

static void store_value(struct vcpu *v, gva_t la, u64 value, unsigned size, u32 access, u64 mask)
{
    if (likely(one_page(la, size))) {
        struct translation t;
        translate(v, la, access, &t);
        value_write(v, la, &t, value, size, access);
        return;
    }
    pieces_write(v, la, &value, size, access, mask);
}

u64 mem_load_slow(struct vcpu *v, unsigned seg, gva_t la, unsigned size)
{
    la = pointer(v, seg, la, size);
    check_alignment(v, la, size);
    u64 value = load_value(v, la, size, ACCESS_READ | mmu_access_mode(v), v->linear_mask);
    watch(v, la, size, false);
    return value;
}

void mem_store_slow(struct vcpu *v, unsigned seg, gva_t la, u64 value, unsigned size)
{
    la = pointer(v, seg, la, size);
    check_alignment(v, la, size);
    store_value(v, la, value, size, ACCESS_WRITE | mmu_access_mode(v), v->linear_mask);
    watch(v, la, size, true);
}

/* ---- runs of bytes ---- */

static alwaysinline void read_run(struct vcpu *v, unsigned seg, u64 offset, void *buf, unsigned size, bool checked)
{
    if (!size)
        return;
    gva_t la = seg_linear(v, seg, offset, size, ACCESS_READ);
    const struct tlb_entry *e = tlb_slot(v, la);
    if (likely(e->tag_read == ((la + (size - 1)) & PAGE_MASK))) {
        memcpy(buf, (const void *)(uintptr_t)(la + e->addend), size);
        return;
    }
    la = pointer(v, seg, la, size);
    if (checked)
        check_alignment(v, la, size);
    pieces_read(v, la, buf, size, ACCESS_READ | mmu_access_mode(v), v->linear_mask);
    watch(v, la, size, false);
}

static alwaysinline void write_run(struct vcpu *v, unsigned seg, u64 offset, const void *buf, unsigned size, bool checked)
{
    if (!size)
        return;
    gva_t la = seg_linear(v, seg, offset, size, ACCESS_WRITE);
    const struct tlb_entry *e = tlb_slot(v, la);
    if (likely(e->tag_write == ((la + (size - 1)) & PAGE_MASK))) {
        memcpy((void *)(uintptr_t)(la + e->addend), buf, size);
        return;
    }
    la = pointer(v, seg, la, size);
    if (checked)
        check_alignment(v, la, size);
    pieces_write(v, la, buf, size, ACCESS_WRITE | mmu_access_mode(v), v->linear_mask);
    watch(v, la, size, true);
}

static alwaysinline void probe_run(struct vcpu *v, unsigned seg, u64 offset, unsigned size, bool checked)
{
    if (!size)
        return;
    gva_t la = seg_linear(v, seg, offset, size, ACCESS_WRITE);
    const struct tlb_entry *e = tlb_slot(v, la);
    if (likely(e->tag_write == ((la + (size - 1)) & PAGE_MASK)))
        return;
    struct piece p[MAX_PIECES];
    la = pointer(v, seg, la, size);
    if (checked)
        check_alignment(v, la, size);
    translate_pieces(v, la, size, ACCESS_WRITE | ACCESS_NO_AD | mmu_access_mode(v), v->linear_mask, p);
}

void mem_read_bytes(struct vcpu *v, unsigned seg, u64 offset, void *buf, unsigned size)
{
    read_run(v, seg, offset, buf, size, true);
}

void mem_write_bytes(struct vcpu *v, unsigned seg, u64 offset, const void *buf, unsigned size)
{
    write_run(v, seg, offset, buf, size, true);
}

void mem_probe_write(struct vcpu *v, unsigned seg, u64 offset, unsigned size) { probe_run(v, seg, offset, size, true); }

void mem_read_elements(struct vcpu *v, unsigned seg, u64 offset, void *buf, unsigned size)
{
    read_run(v, seg, offset, buf, size, false);
}

void mem_write_elements(struct vcpu *v, unsigned seg, u64 offset, const void *buf, unsigned size)
{
    write_run(v, seg, offset, buf, size, false);
}

void mem_probe_elements(struct vcpu *v, unsigned seg, u64 offset, unsigned size) { probe_run(v, seg, offset, size, false); }

/* ---- read-modify-write ---- */

u64 rmw_begin_slow(struct vcpu *v, struct rmw *m, unsigned size)
{
    u32 access = ACCESS_READ | ACCESS_WRITE | mmu_access_mode(v);
    m->host = m->tracked = NULL;
    m->la = pointer(v, m->seg, m->la, size);
    check_alignment(v, m->la, size);
    if (likely(one_page(m->la, size))) {
        struct translation t;
        translate(v, m->la, access, &t);
        if (likely(t.host && !t.page_flags && !v->watching))
            m->host = t.host;
        m->tracked = t.host;
        m->pa = t.pa;
        /* The read half of a device access must not look like a write to it. */
        return value_read(v, m->la, &t, size, access & ~ACCESS_WRITE);
    }
    struct piece p[MAX_PIECES];
    unsigned n = translate_pieces(v, m->la, size, access, v->linear_mask, p);
    u64 value = 0;
    u8 *out = (u8 *)&value;
    for (unsigned i = 0; i < n; out += p[i].len, i++)
        run_read(v, p[i].la, &p[i].t, out, p[i].len, access & ~ACCESS_WRITE);
    return value;
}

void rmw_end_slow(struct vcpu *v, struct rmw *m, u64 value, unsigned size)
{
    store_value(v, m->la, value, size, ACCESS_WRITE | mmu_access_mode(v), v->linear_mask);
    watch(v, m->la, size, true);
}

void rmw_told_slow(struct vcpu *v, const struct rmw *m, unsigned size)
{
    physmap_written(v->pm, m->pa, size);
    watch(v, m->la, size, true);
}

/* An exception in between ends it too (cpu_handle_unwind). */
void mem_alone(struct vcpu *v)
{
    if (!v->alone && physmap_shared(v->pm)) {
        physmap_stop_others(v->pm);
        v->alone = true;
    }
}

void mem_together(struct vcpu *v)
{
    if (unlikely(v->alone)) {
        v->alone = false;
        physmap_let_others(v->pm);
    }
}

u64 rmw_alone(struct vcpu *v, struct rmw *m, u64 read, unsigned size)
{
    if (!physmap_shared(v->pm))
        return read;
    mem_alone(v);
    return rmw_begin_slow(v, m, size);
}

/* ---- system structures ---- */

/* Descriptor-table and TSS bases are 64 bits wide in all of IA-32e mode, compatibility mode included. */
static u64 sys_mask(const struct vcpu *v) { return cpu_lma(v) ? ~0ull : 0xffffffffull; }

static void sys_check(struct vcpu *v, gva_t la, unsigned size)
{
    if (cpu_lma(v) && unlikely(!cpu_canonical(v, la) || !cpu_canonical(v, la + size - 1)))
        cpu_gp0(v);
}

u64 sys_read(struct vcpu *v, gva_t la, unsigned size)
{
    u64 mask = sys_mask(v), value = 0;
    la &= mask;
    const struct tlb_entry *e = &mmu_entries(v, TLB_SUPERVISOR)[(la >> PAGE_SHIFT) & (TLB_SIZE - 1)];
    if (likely(e->tag_read == ((la + (size - 1)) & PAGE_MASK))) {
        memcpy(&value, (const void *)(uintptr_t)(la + e->addend), size);
        return value;
    }
    sys_check(v, la, size);
    value = load_value(v, la, size, ACCESS_READ, mask);
    if (unlikely(v->watching) && v->debug)
        debug_watch_hit(v, la, size, false);
    return value;
}

void sys_write(struct vcpu *v, gva_t la, u64 value, unsigned size)
{
    u64 mask = sys_mask(v);
    la &= mask;
    const struct tlb_entry *e = &mmu_entries(v, TLB_SUPERVISOR)[(la >> PAGE_SHIFT) & (TLB_SIZE - 1)];
    if (likely(e->tag_write == ((la + (size - 1)) & PAGE_MASK))) {
        struct translation t = {.host = (u8 *)(uintptr_t)(la + e->addend)};
        value_write(v, la, &t, value, size, ACCESS_WRITE);
        return;
    }
    sys_check(v, la, size);
    store_value(v, la, value, size, ACCESS_WRITE, mask);
    if (unlikely(v->watching) && v->debug)
        debug_watch_hit(v, la, size, true);
}

void sys_probe_write(struct vcpu *v, gva_t la, unsigned size)
{
    struct piece p[MAX_PIECES];
    u64 mask = sys_mask(v);
    sys_check(v, la & mask, size);
    translate_pieces(v, la & mask, size, ACCESS_WRITE | ACCESS_NO_AD, mask, p);
}

/* ---- shadow stacks ---- */

static u32 shadow_access(bool user) { return ACCESS_SHADOW_STACK | (user ? ACCESS_USER : 0); }

u64 mem_shadow_read(struct vcpu *v, gva_t la, unsigned size, bool user)
{
    la &= sys_mask(v);
    sys_check(v, la, size);
    u64 value = load_value(v, la, size, ACCESS_READ | shadow_access(user), sys_mask(v));
    watch(v, la, size, false);
    return value;
}

void mem_shadow_write(struct vcpu *v, gva_t la, u64 value, unsigned size, bool user)
{
    la &= sys_mask(v);
    sys_check(v, la, size);
    store_value(v, la, value, size, ACCESS_WRITE | shadow_access(user), sys_mask(v));
    watch(v, la, size, true);
}

bool mem_shadow_cmpxchg(struct vcpu *v, gva_t la, u64 expected, u64 value, bool user)
{
    u32 access = ACCESS_READ | ACCESS_WRITE | shadow_access(user);
    struct translation t;
    la &= sys_mask(v);
    sys_check(v, la, 8);
    if (!one_page(la, 8)) { /* only a token that is not aligned, which is no token */
        struct piece p[MAX_PIECES];
        translate_pieces(v, la, 8, access, sys_mask(v), p);
        return false;
    }
    translate(v, la, access, &t);
    bool same;
    if (likely(t.host && !((uintptr_t)t.host & 7))) {
        u64 old = expected;
        same = __atomic_compare_exchange_n((u64 *)(void *)t.host, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        if (same && t.page_flags)
            physmap_written(v->pm, t.pa, 8);
    } else {
        same = value_read(v, la, &t, 8, access & ~ACCESS_WRITE) == expected;
        if (same)
            value_write(v, la, &t, value, 8, access);
    }
    watch(v, la, 8, true);
    return same;
}

/* ---- the debugger ---- */

/* Where @la leads whatever its rights say; host memory only. */
static u8 *peek(struct vcpu *v, gva_t la, pa_t *pa)
{
    struct walk_context ctx = *mmu_context(v);
    struct walk w;
    ctx.wp = ctx.smep = ctx.smap = ctx.pke = ctx.pks = false;
    if (!walk_linear(v->pm, &ctx, la, ACCESS_READ | ACCESS_NO_AD, &w) &&
        !walk_linear(v->pm, &ctx, la, ACCESS_EXEC | ACCESS_NO_AD, &w)) /* execute-only EPT pages */
        return NULL;
    u8 flags;
    *pa = w.pa;
    return physmap_host(v->pm, w.pa, true, &flags);
}

bool mem_peek(struct vcpu *v, gva_t la, void *buf, size_t len)
{
    for (u8 *out = buf; len;) {
        pa_t pa;
        size_t n = PAGE_SIZE - (la & ~PAGE_MASK);
        if (n > len)
            n = len;
        const u8 *host = peek(v, la, &pa);
        if (!host)
            return false;
        memcpy(out, host, n);
        out += n;
        la = (la + n) & sys_mask(v);
        len -= n;
    }
    return true;
}

bool mem_poke(struct vcpu *v, gva_t la, const void *buf, size_t len)
{
    for (const u8 *in = buf; len;) {
        pa_t pa;
        size_t n = PAGE_SIZE - (la & ~PAGE_MASK);
        if (n > len)
            n = len;
        if (!peek(v, la, &pa) || !physmap_ram(v->pm, pa))
            return false;
        physmap_write(v->pm, pa, in, n); /* tells the trackers: breakpoints are patched this way */
        in += n;
        la = (la + n) & sys_mask(v);
        len -= n;
    }
    return true;
}
