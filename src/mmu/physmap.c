/* The physical map: regions, page flags, and plain access to both memory and devices. */
#include "mmu/physmap_view.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- memory of the map itself ---- */

static void *zalloc_lazy(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void *xrealloc(void *p, size_t size)
{
    p = realloc(p, size);
    if (!p)
        panic("out of memory for the physical map");
    return p;
}

struct physmap *physmap_new(void)
{
    struct physmap *pm = xrealloc(NULL, sizeof(*pm));
    memset(pm, 0, sizeof(*pm));
    pm->low = zalloc_lazy(LOW_PAGES * sizeof(*pm->low));
    if (!pm->low)
        panic("no address space for the physical map: %s", strerror(errno));
    return pm;
}

static void region_free(struct region *r)
{
    if (r->kind == REGION_RAM) {
        munmap(r->host, r->size);
        munmap(r->page_flags, r->size >> PAGE_SHIFT);
        for (unsigned n = 0; n < ARRAY_SIZE(r->users); n++)
            if (r->users[n])
                munmap(r->users[n], (r->size >> PAGE_SHIFT) * sizeof(u64));
    }
    free(r);
}

void physmap_free(struct physmap *pm)
{
    if (!pm)
        return;
    for (unsigned i = 0; i < pm->nregions; i++)
        region_free(pm->regions[i]);
    munmap(pm->low, LOW_PAGES * sizeof(*pm->low));
    free(pm->regions);
    free(pm->ranges);
    free(pm->subscribers);
    free(pm->listeners);
    free(pm);
}

/* ---- flattening ---- */

const struct range *range_search(const struct physmap *pm, pa_t pa)
{
    unsigned lo = 0, hi = pm->nranges;
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (pa > pm->ranges[mid].last)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < pm->nranges && pa >= pm->ranges[lo].start ? &pm->ranges[lo] : NULL;
}

static int compare_u64(const void *a, const void *b)
{
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? -1 : x > y;
}

/* Which region is seen at @pa: devices hide ROM, ROM hides RAM; among devices the last one added. */
static const struct region *region_on_top(const struct physmap *pm, pa_t pa)
{
    const struct region *top = NULL;
    for (unsigned i = 0; i < pm->nregions; i++) {
        const struct region *r = pm->regions[i];
        if (pa - r->base < r->size && (!top || r->kind >= top->kind))
            top = r;
    }
    return top;
}

static void low_fill(struct physmap *pm)
{
    memset(pm->low, 0, LOW_PAGES * sizeof(*pm->low));
    for (unsigned i = 0; i < pm->nranges; i++) {
        const struct range *r = &pm->ranges[i];
        if (r->start >> PAGE_SHIFT >= LOW_PAGES)
            break;
        u64 first = r->start >> PAGE_SHIFT, last = r->last >> PAGE_SHIFT;
        bool cut_first = r->start & ~PAGE_MASK, cut_last = (r->last + 1) & ~PAGE_MASK;
        for (u64 page = first; page <= last && page < LOW_PAGES; page++)
            pm->low[page] = (page == first && cut_first) || (page == last && cut_last) ? LOW_MIXED : (u16)(i + 1);
    }
}

const struct region *physmap_nth(const struct physmap *pm, unsigned n, pa_t *first, pa_t *last)
{
    if (n >= pm->nranges)
        return NULL;
    *first = pm->ranges[n].start;
    *last = pm->ranges[n].last;
    return pm->ranges[n].region;
}

static void choose_main(struct physmap *pm)
{
    pm->main_size = 0;
    for (unsigned i = 0; i < pm->nranges; i++) {
        const struct range *r = &pm->ranges[i];
        pa_t start = (r->start + PAGE_SIZE - 1) & PAGE_MASK, end = (r->last + 1) & PAGE_MASK;
        if (r->region->kind != REGION_RAM || end <= start || end - start <= pm->main_size)
            continue;
        pm->main = r;
        pm->main_start = start;
        pm->main_size = end - start;
    }
}

/* Makes the ranges anew from the regions. @regions is short (tens), changes are rare. */
static void flatten(struct physmap *pm)
{
    unsigned n = 0;
    physmap_stop_others(pm);
    u64 *cut = xrealloc(NULL, (2 * pm->nregions + 1) * sizeof(*cut));
    for (unsigned i = 0; i < pm->nregions; i++) {
        cut[n++] = pm->regions[i]->base;
        cut[n++] = pm->regions[i]->base + pm->regions[i]->size; /* 0 when it ends at 2^64: sorts first, harmless */
    }
    qsort(cut, n, sizeof(*cut), compare_u64);
    pm->ranges = xrealloc(pm->ranges, (n + 1) * sizeof(*pm->ranges));
    pm->nranges = 0;
    for (unsigned i = 0; i < n; i++) {
        u64 last = i + 1 < n ? cut[i + 1] - 1 : ~0ull;
        if (i + 1 < n && cut[i + 1] == cut[i])
            continue;
        const struct region *top = region_on_top(pm, cut[i]);
        if (!top)
            continue;
        struct range *prev = pm->nranges ? &pm->ranges[pm->nranges - 1] : NULL;
        if (prev && prev->region == top && prev->last + 1 == cut[i]) {
            prev->last = last;
            continue;
        }
        pm->ranges[pm->nranges++] = (struct range){
            .start = cut[i], .last = last, .region = top, .host = top->host ? top->host + (cut[i] - top->base) : NULL};
    }
    free(cut);
    low_fill(pm);
    choose_main(pm);
    pm->generation++;
    for (unsigned i = 0; i < pm->nlisteners; i++)
        if (pm->listeners[i].changed)
            pm->listeners[i].changed(pm->listeners[i].opaque);
    physmap_let_others(pm);
}

/* ---- adding and removing ---- */

static int region_check(const struct physmap *pm, const struct region *r, struct error *err)
{
    if (!r->size || r->base + r->size - 1 < r->base)
        return error_set(err, "%s: %#llx bytes at %#llx are no range of physical memory", r->name,
                         (unsigned long long)r->size, (unsigned long long)r->base);
    if (r->kind != REGION_MMIO && ((r->base | r->size) & ~PAGE_MASK))
        return error_set(err, "%s: base %#llx and size %#llx of memory must be multiples of %llu", r->name,
                         (unsigned long long)r->base, (unsigned long long)r->size, PAGE_SIZE);
    if (2 * pm->nregions + 4 >= LOW_MIXED)
        return error_set(err, "%s: too many regions of physical memory", r->name);
    for (unsigned i = 0; i < pm->nregions; i++) {
        const struct region *o = pm->regions[i];
        if (o->kind == r->kind && r->kind != REGION_MMIO && r->base <= o->base + o->size - 1 &&
            o->base <= r->base + r->size - 1)
            return error_set(err, "%s: %#llx bytes at %#llx overlap %s", r->name, (unsigned long long)r->size,
                             (unsigned long long)r->base, o->name);
    }
    return 0;
}

static void region_add(struct physmap *pm, const struct region *r)
{
    if (pm->nregions == pm->regions_cap) {
        pm->regions_cap = pm->regions_cap ? 2 * pm->regions_cap : 16;
        pm->regions = xrealloc(pm->regions, pm->regions_cap * sizeof(*pm->regions));
    }
    struct region *copy = xrealloc(NULL, sizeof(*copy));
    *copy = *r;
    pm->regions[pm->nregions++] = copy;
    flatten(pm);
}

/* A shared file in memory, so that the same bytes can be mapped a second time (another view, snapshots). */
static u8 *ram_map(u64 size, const char *name)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0)
        return NULL;
    u8 *host = MAP_FAILED;
    if (!ftruncate(fd, (off_t)size))
        host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    int saved = errno;
    close(fd); /* the mapping keeps it; /proc/self/map_files leads back to it */
    errno = saved;
    if (host == MAP_FAILED)
        return NULL;
    madvise(host, size, MADV_HUGEPAGE); /* advice: refusal costs speed only */
    return host;
}

int physmap_add_ram(struct physmap *pm, pa_t base, u64 size, const char *name, struct error *err)
{
    struct region r = {.base = base, .size = size, .kind = REGION_RAM, .name = name};
    if (region_check(pm, &r, err))
        return -1;
    r.host = ram_map(size, name);
    if (!r.host)
        return error_set(err, "%s: the host gives no %llu MiB of memory: %s", name, (unsigned long long)(size >> 20),
                         strerror(errno));
    r.page_flags = zalloc_lazy(size >> PAGE_SHIFT);
    if (!r.page_flags) {
        munmap(r.host, size);
        return error_set(err, "%s: no memory for page flags: %s", name, strerror(errno));
    }
    pm->ram_size += size;
    region_add(pm, &r);
    return 0;
}

int physmap_add_rom(struct physmap *pm, pa_t base, u64 size, u8 *host, const char *name, struct error *err)
{
    struct region r = {.base = base, .size = size, .kind = REGION_ROM, .host = host, .name = name};
    if (region_check(pm, &r, err))
        return -1;
    region_add(pm, &r);
    return 0;
}

int physmap_add_mmio(struct physmap *pm, pa_t base, u64 size, const struct io_ops *ops, void *opaque, const char *name,
                     struct error *err)
{
    struct region r = {.base = base, .size = size, .kind = REGION_MMIO, .ops = ops, .opaque = opaque, .name = name};
    if (region_check(pm, &r, err))
        return -1;
    region_add(pm, &r);
    return 0;
}

void physmap_remove_mmio(struct physmap *pm, pa_t base)
{
    for (unsigned i = pm->nregions; i-- > 0;) {
        struct region *r = pm->regions[i];
        if (r->kind != REGION_MMIO || r->base != base)
            continue;
        memmove(&pm->regions[i], &pm->regions[i + 1], (pm->nregions - i - 1) * sizeof(*pm->regions));
        pm->nregions--;
        flatten(pm);
        free(r);
        return;
    }
}

/* ---- lookup ---- */

const struct region *physmap_find(const struct physmap *pm, pa_t pa)
{
    const struct range *r = map_range(pm, pa);
    return r ? r->region : NULL;
}

u64 physmap_generation(const struct physmap *pm) { return pm->generation; }
u64 physmap_ram_size(const struct physmap *pm) { return pm->ram_size; }

u8 *physmap_ram(const struct physmap *pm, pa_t pa)
{
    const struct range *r = map_page(pm, pa);
    return r && r->region->kind == REGION_RAM ? r->host + (pa - r->start) : NULL;
}

u8 *physmap_host(const struct physmap *pm, pa_t pa, bool rom, u8 *flags)
{
    const struct range *r = map_page(pm, pa);
    *flags = 0;
    if (!r || !r->host || (r->region->kind == REGION_ROM && !rom))
        return NULL;
    const u8 *f = range_flag(r, pa);
    if (f)
        *flags = __atomic_load_n(f, __ATOMIC_RELAXED);
    return r->host + (pa - r->start);
}

/* ---- single values. x86 hosts load and store aligned values of up to 8 bytes in one piece ---- */

static u64 host_load(const u8 *p, unsigned size)
{
    switch (size) {
    case 1:
        return __atomic_load_n(p, __ATOMIC_RELAXED);
    case 2:
        return __atomic_load_n((const u16 *)p, __ATOMIC_RELAXED);
    case 4:
        return __atomic_load_n((const u32 *)p, __ATOMIC_RELAXED);
    default:
        return __atomic_load_n((const u64 *)p, __ATOMIC_RELAXED);
    }
}

static void host_store(u8 *p, u64 value, unsigned size)
{
    switch (size) {
    case 1:
        __atomic_store_n(p, (u8)value, __ATOMIC_RELAXED);
        break;
    case 2:
        __atomic_store_n((u16 *)p, (u16)value, __ATOMIC_RELAXED);
        break;
    case 4:
        __atomic_store_n((u32 *)p, (u32)value, __ATOMIC_RELAXED);
        break;
    default:
        __atomic_store_n((u64 *)p, value, __ATOMIC_RELAXED);
    }
}

/* ---- device memory ---- */

static u64 device_load(struct physmap *pm, const struct region *g, pa_t pa, unsigned size)
{
    lock_take(pm->sharing.lock);
    u64 value = g->ops->read(g->opaque, pa - g->base, size);
    lock_give(pm->sharing.lock);
    return value;
}

static void device_store(struct physmap *pm, const struct region *g, pa_t pa, u64 value, unsigned size)
{
    lock_take(pm->sharing.lock);
    g->ops->write(g->opaque, pa - g->base, value, size);
    lock_give(pm->sharing.lock);
}

static u64 ones(unsigned size) { return ~0ull >> (64 - 8 * size); }

static void written_in_page(struct physmap *pm, const struct range *r, pa_t pa, size_t len)
{
    const u8 *f = range_flag(r, pa);
    if (unlikely(pm->sharing.lock != NULL)) /* the bytes are there before the flags are read: who has set one since sees them */
        atomic_thread_fence(memory_order_seq_cst);
    u8 flags = f ? __atomic_load_n(f, __ATOMIC_RELAXED) : 0;
    if (likely(!flags))
        return;
    for (unsigned i = 0; i < pm->nsubscribers; i++)
        if (pm->subscribers[i].flag & flags)
            pm->subscribers[i].written(pm->subscribers[i].opaque, pa, len);
}

u64 physmap_load(struct physmap *pm, pa_t pa, unsigned size)
{
    const struct range *r = map_range(pm, pa);
    if (unlikely(!r))
        return ones(size);
    if (unlikely(r->last - pa < size - 1)) { /* a region that ends inside the value */
        u64 value = 0;
        physmap_read(pm, pa, &value, size);
        return value;
    }
    if (likely(r->host != NULL))
        return host_load(r->host + (pa - r->start), size);
    return device_load(pm, r->region, pa, size) & ones(size);
}

void physmap_store(struct physmap *pm, pa_t pa, u64 value, unsigned size)
{
    const struct range *r = map_range(pm, pa);
    if (unlikely(!r))
        return;
    if (unlikely(r->last - pa < size - 1)) {
        physmap_write(pm, pa, &value, size);
        return;
    }
    const struct region *g = r->region;
    if (likely(g->kind == REGION_RAM)) {
        host_store(r->host + (pa - r->start), value, size);
        written_in_page(pm, r, pa, size);
    } else if (g->kind == REGION_MMIO) {
        device_store(pm, g, pa, value & ones(size), size);
    }
}

enum cmpxchg_result physmap_try_cmpxchg(struct physmap *pm, pa_t pa, u64 expected, u64 desired, unsigned size)
{
    const struct range *r = map_range(pm, pa);
    if (!r || r->region->kind != REGION_RAM || r->last - pa < size - 1)
        return CMPXCHG_NOT_RAM;
    u8 *p = r->host + (pa - r->start);
    bool done = false;
    switch (size) {
#define CASE(bytes, type)                                                                                              \
    case bytes: {                                                                                                      \
        type old = (type)expected;                                                                                     \
        done = __atomic_compare_exchange_n((type *)p, &old, (type)desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
        break;                                                                                                         \
    }
        CASE(1, u8)
        CASE(2, u16)
        CASE(4, u32)
        CASE(8, u64)
#undef CASE
    }
    if (!done)
        return CMPXCHG_CHANGED;
    written_in_page(pm, r, pa, size);
    return CMPXCHG_DONE;
}

bool physmap_cmpxchg(struct physmap *pm, pa_t pa, u64 expected, u64 desired, unsigned size)
{
    return physmap_try_cmpxchg(pm, pa, expected, desired, size) == CMPXCHG_DONE;
}

/* ---- runs of bytes ---- */

/* Bytes from @pa on that @r decodes (or, when NULL, that nothing does), <= @len, not past the page. */
static size_t run_length(const struct range *r, pa_t pa, size_t len)
{
    u64 n = PAGE_SIZE - (pa & ~PAGE_MASK);
    if (r && r->last - pa < n)
        n = r->last - pa + 1;
    return n < len ? (size_t)n : len;
}

/* The largest aligned power of two at @pa, at most 8 and @len. */
static unsigned piece(pa_t pa, size_t len)
{
    unsigned n = 8;
    while (n > len || (pa & (n - 1)))
        n /= 2;
    return n;
}

void physmap_read(struct physmap *pm, pa_t pa, void *buf, size_t len)
{
    u8 *out = buf;
    while (len) {
        const struct range *r = map_range(pm, pa);
        size_t n = r ? run_length(r, pa, len) : 1;
        if (!r) {
            *out = 0xff;
        } else if (r->host) {
            memcpy(out, r->host + (pa - r->start), n);
        } else {
            n = piece(pa, n);
            store_le(out, device_load(pm, r->region, pa, (unsigned)n), (unsigned)n);
        }
        out += n;
        pa += n;
        len -= n;
    }
}

void physmap_write(struct physmap *pm, pa_t pa, const void *buf, size_t len)
{
    const u8 *in = buf;
    while (len) {
        const struct range *r = map_range(pm, pa);
        size_t n = r ? run_length(r, pa, len) : 1;
        if (r && r->region->kind == REGION_RAM) {
            memcpy(r->host + (pa - r->start), in, n);
            written_in_page(pm, r, pa, n);
        } else if (r && r->region->kind == REGION_MMIO) {
            n = piece(pa, n);
            device_store(pm, r->region, pa, load_le(in, (unsigned)n), (unsigned)n);
        }
        in += n;
        pa += n;
        len -= n;
    }
}

/* ---- tracking ---- */

void physmap_subscribe(struct physmap *pm, enum page_flag flag, void (*written)(void *opaque, pa_t pa, size_t len),
                       void *opaque)
{
    for (unsigned i = 0; i < pm->nsubscribers; i++) {
        struct subscriber *s = &pm->subscribers[i];
        if (s->flag != flag || s->opaque != opaque)
            continue;
        if (written)
            s->written = written;
        else
            *s = pm->subscribers[--pm->nsubscribers];
        return;
    }
    if (!written)
        return;
    pm->subscribers = xrealloc(pm->subscribers, (pm->nsubscribers + 1) * sizeof(*pm->subscribers));
    pm->subscribers[pm->nsubscribers++] = (struct subscriber){(u8)flag, written, opaque};
}

static struct listener *listener_of(struct physmap *pm, void *opaque)
{
    for (unsigned i = 0; i < pm->nlisteners; i++)
        if (pm->listeners[i].opaque == opaque)
            return &pm->listeners[i];
    pm->listeners = xrealloc(pm->listeners, (pm->nlisteners + 1) * sizeof(*pm->listeners));
    struct listener *l = &pm->listeners[pm->nlisteners++];
    *l = (struct listener){.opaque = opaque};
    return l;
}

static void listener_drop_empty(struct physmap *pm, struct listener *l)
{
    if (!l->protect && !l->changed)
        *l = pm->listeners[--pm->nlisteners];
}

void physmap_on_protect(struct physmap *pm, void (*protect)(void *opaque, pa_t page), void *opaque)
{
    struct listener *l = listener_of(pm, opaque);
    l->protect = protect;
    listener_drop_empty(pm, l);
}

void physmap_on_change(struct physmap *pm, void (*changed)(void *opaque), void *opaque)
{
    struct listener *l = listener_of(pm, opaque);
    l->changed = changed;
    listener_drop_empty(pm, l);
}

static u8 *flag_at(const struct physmap *pm, pa_t pa)
{
    const struct range *r = map_range(pm, pa);
    return r ? range_flag(r, pa) : NULL;
}

u8 physmap_page_flags(const struct physmap *pm, pa_t pa)
{
    const u8 *f = flag_at(pm, pa);
    return f ? __atomic_load_n(f, __ATOMIC_RELAXED) : 0;
}

void physmap_set_page_flag(struct physmap *pm, pa_t pa, enum page_flag flag)
{
    u8 *f = flag_at(pm, pa);
    /* Pages with any flag were never granted for writing: only the first flag takes something away. */
    if (!f || __atomic_fetch_or(f, (u8)flag, __ATOMIC_SEQ_CST))
        return;
    for (unsigned i = 0; i < pm->nlisteners; i++)
        if (pm->listeners[i].protect)
            pm->listeners[i].protect(pm->listeners[i].opaque, pa & PAGE_MASK);
}

void physmap_clear_page_flag(struct physmap *pm, pa_t pa, enum page_flag flag)
{
    u8 *f = flag_at(pm, pa);
    if (f)
        __atomic_fetch_and(f, (u8)~flag, __ATOMIC_SEQ_CST);
}

void physmap_written(struct physmap *pm, pa_t pa, size_t len)
{
    while (len) {
        const struct range *r = map_range(pm, pa);
        size_t n = r ? run_length(r, pa, len) : 1;
        if (r)
            written_in_page(pm, r, pa, n);
        pa += n;
        len -= n;
    }
}

/* ---- several threads ---- */

int physmap_share(struct physmap *pm, const struct physmap_sharing *sharing, struct error *err)
{
    for (unsigned i = 0; i < pm->nregions; i++) {
        struct region *r = pm->regions[i];
        for (unsigned n = 0; r->kind == REGION_RAM && n < ARRAY_SIZE(r->users); n++) {
            if (!r->users[n] && !(r->users[n] = zalloc_lazy((r->size >> PAGE_SHIFT) * sizeof(u64))))
                return error_set(err, "%s: no memory for the users of its pages: %s", r->name, strerror(errno));
        }
    }
    pm->sharing = *sharing;
    return 0;
}

bool physmap_shared(const struct physmap *pm) { return pm->sharing.lock; }

void physmap_note_user(struct physmap *pm, pa_t pa, enum page_user kind, unsigned cpu)
{
    const struct range *r = map_range(pm, pa);
    if (r)
        range_note_user(r, pa, kind, cpu);
}

void physmap_forget_users(struct physmap *pm, pa_t pa, enum page_user kind, u64 cpus)
{
    const struct range *r = map_range(pm, pa);
    u64 *users = r ? range_user(r, pa, kind) : NULL;
    if (users)
        __atomic_fetch_and(users, ~cpus, __ATOMIC_SEQ_CST);
}

u64 physmap_users(const struct physmap *pm, pa_t pa, enum page_user kind)
{
    const struct range *r = map_range(pm, pa);
    const u64 *users = r ? range_user(r, pa, kind) : NULL;
    return users ? __atomic_load_n(users, __ATOMIC_SEQ_CST) : 0;
}

void physmap_stop_others(struct physmap *pm)
{
    if (pm->sharing.stop)
        pm->sharing.stop(pm->sharing.opaque);
}

void physmap_let_others(struct physmap *pm)
{
    if (pm->sharing.go)
        pm->sharing.go(pm->sharing.opaque);
}
