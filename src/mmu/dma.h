/*
 * Memory as devices reach it. There is no IOMMU yet: iova is the physical address. Transfers stop
 * at the first byte that is not memory and report how far they got; nothing wraps around.
 */
#pragma once
#include "mmu/physmap.h"

struct dma {
    struct physmap *pm;
};

/* Bytes transferred, <= len; less means the byte after them is not RAM (or ROM, for reads). */
size_t dma_read(const struct dma *dma, u64 iova, void *buf, size_t len);
size_t dma_write(const struct dma *dma, u64 iova, const void *buf, size_t len);
