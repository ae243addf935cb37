/*
 * Physical memory: a sorted map of regions (RAM, ROM, device memory) and, per RAM page, what must
 * be told when the page is written. Everything that writes memory -- the CPU's slow path, DMA, A/D
 * updates, VMCS and VMCB saves -- goes through here or checks page_flags itself.
 */
#pragma once
#include "base/bits.h"
#include "base/error.h"
#include "base/io.h"
#include "base/lock.h"
#include "base/types.h"

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ull
#define PAGE_MASK (~(PAGE_SIZE - 1))

enum region_kind { REGION_RAM, REGION_ROM, REGION_MMIO };

/* Why a write to a page must be noticed; bits of page_flags. */
enum page_flag {
    PAGE_CODE = BIT(0),  /* decoded blocks lie in it */
    PAGE_TABLE = BIT(1), /* a shadowed translation table */
    PAGE_DIRTY_LOG = BIT(2),
};

struct region {
    pa_t base;
    u64 size;
    enum region_kind kind;
    u8 *host;       /* RAM, ROM: backing bytes */
    u8 *page_flags; /* RAM: one byte a page, enum page_flag */
    u64 *users[2];  /* RAM, with physmap_share(): one word a page for each enum page_user */
    const struct io_ops *ops; /* MMIO */
    void *opaque;
    const char *name;
};

struct physmap;

struct physmap *physmap_new(void);
void physmap_free(struct physmap *pm); /* also unmaps the RAM it allocated */

/* Allocates @size bytes of zeroed host memory (page multiple) and maps it at @base. */
int physmap_add_ram(struct physmap *pm, pa_t base, u64 size, const char *name, struct error *err);
/* Maps @host (owned by the caller, outliving @pm) read-only; guest writes are dropped. */
int physmap_add_rom(struct physmap *pm, pa_t base, u64 size, u8 *host, const char *name, struct error *err);
/* A device region; it hides RAM or ROM below it. @ops and @opaque outlive the region. */
int physmap_add_mmio(struct physmap *pm, pa_t base, u64 size, const struct io_ops *ops, void *opaque,
                     const char *name, struct error *err);
/* RAM or ROM and device regions may overlap; so may device regions (a BAR being sized): the last one added is seen. */
/* Removes the device region that starts at @base (a BAR that moves); what it hid reappears. */
void physmap_remove_mmio(struct physmap *pm, pa_t base);

/* The region that decodes @pa, or NULL (open bus: reads as ones). Valid until the map changes. */
const struct region *physmap_find(const struct physmap *pm, pa_t pa);
/* Grows whenever regions change: caches of regions or host addresses made before are void. */
u64 physmap_generation(const struct physmap *pm);
/* Host address of RAM at @pa good up to the end of its page, or NULL. Reading only needs no more;
 * a writer must call physmap_written() after. */
u8 *physmap_ram(const struct physmap *pm, pa_t pa);

/* Any length and alignment, across regions; device memory in aligned pieces of up to 8 bytes. */
void physmap_read(struct physmap *pm, pa_t pa, void *buf, size_t len);
void physmap_write(struct physmap *pm, pa_t pa, const void *buf, size_t len);
/* Aligned loads and stores of 1, 2, 4 or 8 bytes; single-copy atomic in RAM. */
u64 physmap_load(struct physmap *pm, pa_t pa, unsigned size);
void physmap_store(struct physmap *pm, pa_t pa, u64 value, unsigned size);
/* Atomic compare-and-swap in RAM (page-table A/D bits); false when @pa is not RAM or changed. Tells the trackers. */
bool physmap_cmpxchg(struct physmap *pm, pa_t pa, u64 expected, u64 desired, unsigned size);

/* As physmap_ram(), for TLB fills: ROM too when @rom; @flags receives the page's flags (0 for ROM). NULL when the page
 * is not wholly memory. The address is good for the whole page. */
u8 *physmap_host(const struct physmap *pm, pa_t pa, bool rom, u8 *flags);

/* Who wants to hear of writes to pages that carry @flag. One subscriber per flag and @opaque; @written NULL ends it. */
void physmap_subscribe(struct physmap *pm, enum page_flag flag, void (*written)(void *opaque, pa_t pa, size_t len),
                       void *opaque);
u8 physmap_page_flags(const struct physmap *pm, pa_t pa);
/* Setting a flag makes write-mapped TLB entries of the page stale: the listener set here flushes them. */
void physmap_set_page_flag(struct physmap *pm, pa_t pa, enum page_flag flag);
void physmap_clear_page_flag(struct physmap *pm, pa_t pa, enum page_flag flag);
void physmap_on_protect(struct physmap *pm, void (*protect)(void *opaque, pa_t page), void *opaque);
/* The map itself changed: every host address taken from it before is void. NULL ends it, here and above. */
void physmap_on_change(struct physmap *pm, void (*changed)(void *opaque), void *opaque);
/* Bytes of RAM at @pa were written by somebody: tells the subscribers of its flags. Cheap when no flag is set. */
void physmap_written(struct physmap *pm, pa_t pa, size_t len);
/*
 * Several processors on threads of their own. @lock is taken around accesses to devices; @stop and @go
 * surround a change of the map: in between no other thread looks at it. From then on the map keeps, for
 * each page of RAM, one bit per processor (at most 64) for each of enum page_user.
 *
 * Who wants to write without looking at the page's flags each time first notes itself as a writer, then
 * reads the flags; who sets a flag looks at the writers afterwards. So one of the two sees the other.
 */
struct physmap_sharing {
    struct lock *lock;
    void (*stop)(void *opaque);
    void (*go)(void *opaque);
    void *opaque;
};
enum page_user {
    PAGE_WRITERS, /* may hold a grant to write */
    PAGE_HOLDERS, /* may hold code decoded from it */
};
int physmap_share(struct physmap *pm, const struct physmap_sharing *sharing, struct error *err);
bool physmap_shared(const struct physmap *pm);
/* Nothing but the caller's thread runs guest code or reaches guest memory in between. They nest. */
void physmap_stop_others(struct physmap *pm);
void physmap_let_others(struct physmap *pm);
/* Nothing happens, and nobody is told, without physmap_share() or outside RAM. */
void physmap_note_user(struct physmap *pm, pa_t pa, enum page_user kind, unsigned cpu);
void physmap_forget_users(struct physmap *pm, pa_t pa, enum page_user kind, u64 cpus);
u64 physmap_users(const struct physmap *pm, pa_t pa, enum page_user kind);
/* The @n-th run of addresses with one region behind it, in ascending order; NULL: there are no more. */
const struct region *physmap_nth(const struct physmap *pm, unsigned n, pa_t *first, pa_t *last);
/* Total RAM, bytes. */
u64 physmap_ram_size(const struct physmap *pm);
