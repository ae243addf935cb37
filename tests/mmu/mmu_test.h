/* What the tests of the memory room share: cmocka, a small machine memory, table building. */
#pragma once
#include "mmu/walk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define MIB (1ull << 20)

static inline struct physmap *test_memory(u64 mib)
{
    struct error err = {""};
    struct physmap *pm = physmap_new();
    if (physmap_add_ram(pm, 0, mib * MIB, "ram", &err))
        fail_msg("%s", err.text);
    return pm;
}

static inline void put64(struct physmap *pm, pa_t pa, u64 value) { physmap_store(pm, pa, value, 8); }
static inline void put32(struct physmap *pm, pa_t pa, u32 value) { physmap_store(pm, pa, value, 4); }
static inline u64 get64(struct physmap *pm, pa_t pa) { return physmap_load(pm, pa, 8); }
static inline u32 get32(struct physmap *pm, pa_t pa) { return (u32)physmap_load(pm, pa, 4); }
