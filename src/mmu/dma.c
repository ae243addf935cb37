/* Memory as devices reach it: RAM, and ROM for reading; never another device. */
#include "mmu/dma.h"
#include "mmu/physmap_view.h"

/* The longest run at @iova within one range of memory; 0 when it is none or may not be written. */
static size_t dma_run(const struct dma *dma, u64 iova, size_t len, bool write, u8 **host)
{
    const struct range *r = map_range(dma->pm, iova);
    if (!r || !r->host || (write && r->region->kind != REGION_RAM))
        return 0;
    u64 room = r->last - iova; /* bytes after the first */
    *host = r->host + (iova - r->start);
    return room < len - 1 ? (size_t)(room + 1) : len;
}

size_t dma_read(const struct dma *dma, u64 iova, void *buf, size_t len)
{
    size_t done = 0;
    while (done < len && iova + done >= iova) {
        u8 *host;
        size_t n = dma_run(dma, iova + done, len - done, false, &host);
        if (!n)
            break;
        memcpy((u8 *)buf + done, host, n);
        done += n;
    }
    return done;
}

size_t dma_write(const struct dma *dma, u64 iova, const void *buf, size_t len)
{
    size_t done = 0;
    while (done < len && iova + done >= iova) {
        u8 *host;
        size_t n = dma_run(dma, iova + done, len - done, true, &host);
        if (!n)
            break;
        memcpy(host, (const u8 *)buf + done, n);
        physmap_written(dma->pm, iova + done, n);
        done += n;
    }
    return done;
}
