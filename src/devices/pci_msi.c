/* PCI Local Bus Specification 3.0, section "Message Signaled Interrupts": MSI and MSI-X. */
#include "devices/pci_internal.h"

#include <stdlib.h>

/* MSI capability with 64-bit address and per-vector masking. */
enum { MSI_CONTROL = 2, MSI_ADDRESS = 4, MSI_DATA = 12, MSI_MASK = 16, MSI_PENDING = 20, MSI_SIZE = 24 };
enum { MSI_ENABLE = BIT(0), MSI_64BIT = BIT(7), MSI_MASKING = BIT(8) };

enum { MSIX_CONTROL = 2, MSIX_TABLE = 4, MSIX_PBA = 8, MSIX_SIZE = 12 };
enum { MSIX_ENTRY = 16, MSIX_ENABLE = BIT(15), MSIX_FUNCTION_MASK = BIT(14), MSIX_VECTOR_MASKED = BIT(0) };

#define CAP_MSI  0x05
#define CAP_MSIX 0x11

static u16 msi_control(const struct pci_dev *d) { return d->msi ? load16(d->config + d->msi + MSI_CONTROL) : 0; }
static u16 msix_control(const struct pci_dev *d) { return d->msix ? load16(d->config + d->msix + MSIX_CONTROL) : 0; }

bool pci_msi_enabled(const struct pci_dev *d)
{
    return (msi_control(d) & MSI_ENABLE) || (msix_control(d) & MSIX_ENABLE);
}

static void send(struct pci_dev *d, u64 address, u32 data)
{
    struct board *b = pci_board(d);
    /* A message is a memory write: without bus mastership it does not leave the device. */
    if (pci_bus_master(d) && b->msi.send)
        b->msi.send(b->msi.opaque, address, data);
}

static void send_msi(struct pci_dev *d, unsigned vector)
{
    u8 *cap = d->config + d->msi;
    unsigned enabled = 1u << (msi_control(d) >> 4 & 7); /* Multiple Message Enable */
    if (enabled > d->msi_vectors)
        enabled = d->msi_vectors;
    vector &= enabled - 1;
    if (load32(cap + MSI_MASK) & BIT(vector)) {
        store32(cap + MSI_PENDING, load32(cap + MSI_PENDING) | BIT(vector));
        return;
    }
    /* The function changes the low bits of the data to tell its messages apart. */
    send(d, load64(cap + MSI_ADDRESS) & ~3ull, (load16(cap + MSI_DATA) & ~(enabled - 1)) | vector);
}

static void send_msix(struct pci_dev *d, unsigned vector)
{
    if (vector >= d->msix_vectors)
        return;
    const u8 *entry = d->msix_table + vector * MSIX_ENTRY;
    if ((msix_control(d) & MSIX_FUNCTION_MASK) || (load32(entry + 12) & MSIX_VECTOR_MASKED)) {
        d->msix_pending[vector / 64] |= BIT64(vector % 64);
        return;
    }
    send(d, load64(entry) & ~3ull, load32(entry + 8));
}

bool pci_msi_send(struct pci_dev *d, unsigned vector)
{
    if (msix_control(d) & MSIX_ENABLE)
        send_msix(d, vector);
    else if (msi_control(d) & MSI_ENABLE)
        send_msi(d, vector);
    else
        return false;
    return true;
}

/* Sends what waited behind mask bits that are clear now. */
static void flush_msix(struct pci_dev *d)
{
    u16 control = msix_control(d);
    if (!(control & MSIX_ENABLE) || (control & MSIX_FUNCTION_MASK))
        return;
    for (unsigned i = 0; i < d->msix_vectors; i++) {
        if (!(d->msix_pending[i / 64] >> (i % 64) & 1) ||
            (load32(d->msix_table + i * MSIX_ENTRY + 12) & MSIX_VECTOR_MASKED))
            continue;
        d->msix_pending[i / 64] &= ~BIT64(i % 64);
        send_msix(d, i);
    }
}

void pci_msi_config_written(struct pci_dev *d)
{
    if (d->msi && (msi_control(d) & MSI_ENABLE)) {
        u8 *cap = d->config + d->msi;
        u32 ready = load32(cap + MSI_PENDING) & ~load32(cap + MSI_MASK);
        store32(cap + MSI_PENDING, load32(cap + MSI_PENDING) & ~ready);
        for (unsigned i = 0; i < d->msi_vectors; i++)
            if (ready & BIT(i))
                send_msi(d, i);
    }
    if (d->msix)
        flush_msix(d);
}

int pci_add_msi(struct pci_dev *d, unsigned vectors, struct error *err)
{
    unsigned log2 = (unsigned)__builtin_ctz(vectors ? vectors : 1);
    if (!vectors || vectors > 32 || (vectors & (vectors - 1)) || d->msi)
        return error_set(err, "%s: %u MSI vectors: expected 1, 2, 4, 8, 16 or 32, once", d->cfg.name, vectors);
    u8 at = pci_add_capability(d, CAP_MSI, MSI_SIZE);
    if (!at)
        return error_set(err, "%s: no room for an MSI capability", d->cfg.name);
    d->msi = at;
    d->msi_vectors = vectors;
    store16(d->config + at + MSI_CONTROL, (u16)(MSI_64BIT | MSI_MASKING | log2 << 1));
    store16(d->writable + at + MSI_CONTROL, MSI_ENABLE | 7 << 4);
    store64(d->writable + at + MSI_ADDRESS, ~3ull);
    store16(d->writable + at + MSI_DATA, 0xffff);
    store32(d->writable + at + MSI_MASK, vectors == 32 ? ~0u : BIT(vectors) - 1);
    return 0;
}

/* ---- the MSI-X table and pending bit array, a BAR of their own: table first, then the PBA ---- */

static u64 pba_offset(const struct pci_dev *d) { return (d->msix_vectors * MSIX_ENTRY + 7) & ~7ull; }

static u64 msix_read(void *opaque, u64 off, unsigned size)
{
    const struct pci_dev *d = opaque;
    u64 table = d->msix_vectors * MSIX_ENTRY, pba = pba_offset(d);
    if (off + size <= table)
        return load_le(d->msix_table + off, size);
    if (off >= pba && off + size <= pba + (d->msix_vectors + 63) / 64 * 8)
        return load_le((const u8 *)d->msix_pending + (off - pba), size);
    return 0;
}

static void msix_write(void *opaque, u64 off, u64 value, unsigned size)
{
    struct pci_dev *d = opaque;
    /* Aligned dwords and qwords only; the PBA is read-only. */
    if (size < 4 || (off & (size - 1)) || off + size > d->msix_vectors * MSIX_ENTRY)
        return;
    store_le(d->msix_table + off, value, size);
    u8 *control = d->msix_table + off / MSIX_ENTRY * MSIX_ENTRY + 12;
    store32(control, load32(control) & MSIX_VECTOR_MASKED);
    flush_msix(d);
}

static const struct io_ops msix_ops = {msix_read, msix_write};

void pci_msi_reset(struct pci_dev *d)
{
    memset(d->msix_pending, 0, sizeof(d->msix_pending));
    if (d->msi)
        store32(d->config + d->msi + MSI_PENDING, 0);
    if (!d->msix)
        return;
    memset(d->msix_table, 0, d->msix_vectors * MSIX_ENTRY);
    for (unsigned i = 0; i < d->msix_vectors; i++)
        store32(d->msix_table + i * MSIX_ENTRY + 12, MSIX_VECTOR_MASKED);
}

int pci_add_msix(struct pci_dev *d, unsigned bar, unsigned vectors, struct error *err)
{
    if (!vectors || vectors > PCI_MSIX_MAX || d->msix)
        return error_set(err, "%s: %u MSI-X vectors: expected 1 to %d, once", d->cfg.name, vectors, PCI_MSIX_MAX);
    d->msix_vectors = vectors;
    u64 bytes = pba_offset(d) + (vectors + 63) / 64 * 8, size = PAGE_SIZE;
    while (size < bytes)
        size *= 2;
    if (pci_add_bar(d, bar, PCI_BAR_MEM32, false, size, &msix_ops, d, err))
        return -1;
    u8 at = pci_add_capability(d, CAP_MSIX, MSIX_SIZE);
    if (!at)
        return error_set(err, "%s: no room for an MSI-X capability", d->cfg.name);
    d->msix = at;
    d->msix_table = device_alloc(vectors * MSIX_ENTRY);
    store16(d->config + at + MSIX_CONTROL, (u16)(vectors - 1));
    store16(d->writable + at + MSIX_CONTROL, MSIX_ENABLE | MSIX_FUNCTION_MASK);
    store32(d->config + at + MSIX_TABLE, bar);
    store32(d->config + at + MSIX_PBA, (u32)pba_offset(d) | bar);
    pci_msi_reset(d);
    return 0;
}
