/* After QEMU's interface description, docs/specs/fw_cfg. */
#include "devices/fw_cfg.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

#define FILES      32
#define ITEMS      (FW_CFG_FILE_FIRST + FILES)
#define NAME_SIZE  56
#define ENTRY_SIZE 64 /* size, key, reserved, name: all big-endian */

#define ID_TRADITIONAL BIT(0)
#define ID_DMA         BIT(1)
/* "QEMU CFG", what the DMA address register reads as. */
#define DMA_SIGNATURE 0x51454d5520434647ull

enum { DMA_ERROR = BIT(0), DMA_READ = BIT(1), DMA_SKIP = BIT(2), DMA_SELECT = BIT(3), DMA_WRITE = BIT(4) };

struct fw_cfg {
    struct board *board;
    struct {
        u8 *data;
        u32 size;
    } item[ITEMS];
    char name[FILES][NAME_SIZE];
    unsigned files;
    u16 selector;
    u32 offset;
    u64 dma_address;
};

static u32 be32(u32 v) { return __builtin_bswap32(v); }

int fw_cfg_add(struct fw_cfg *f, u16 key, const void *data, size_t size, struct error *err)
{
    if (key >= ITEMS || size > UINT32_MAX)
        return error_set(err, "fw_cfg: item %#x of %zu bytes: expected a key below %#x and less than 4 GiB", key, size,
                         ITEMS);
    u8 *copy = device_alloc(size ? size : 1);
    memcpy(copy, data, size);
    free(f->item[key].data);
    f->item[key].data = copy;
    f->item[key].size = (u32)size;
    return 0;
}

static int make_directory(struct fw_cfg *f, struct error *err)
{
    size_t size = 4 + f->files * ENTRY_SIZE;
    u8 *dir = device_alloc(size);
    store32(dir, be32(f->files));
    for (unsigned i = 0; i < f->files; i++) {
        u8 *e = dir + 4 + i * ENTRY_SIZE;
        store32(e, be32(f->item[FW_CFG_FILE_FIRST + i].size));
        store16(e + 4, __builtin_bswap16((u16)(FW_CFG_FILE_FIRST + i)));
        memcpy(e + 8, f->name[i], NAME_SIZE);
    }
    int rc = fw_cfg_add(f, FW_CFG_FILE_DIR, dir, size, err);
    free(dir);
    return rc;
}

int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, size_t size, struct error *err)
{
    if (f->files == FILES)
        return error_set(err, "fw_cfg: file %s: expected at most %d files", name, FILES);
    if (strlen(name) >= NAME_SIZE)
        return error_set(err, "fw_cfg: file name %s: expected at most %d characters", name, NAME_SIZE - 1);
    if (fw_cfg_add(f, (u16)(FW_CFG_FILE_FIRST + f->files), data, size, err))
        return -1;
    strcpy(f->name[f->files++], name);
    return make_directory(f, err);
}

static void select_item(struct fw_cfg *f, u16 key)
{
    f->selector = key;
    f->offset = 0;
    log_at(device, "fw_cfg: item %#x", key);
}

static u8 next_byte(struct fw_cfg *f)
{
    /* Absent items, and what lies past an item's end, read as zero. */
    u16 key = f->selector;
    if (key >= ITEMS || f->offset >= f->item[key].size)
        return 0;
    return f->item[key].data[f->offset++];
}

static u64 port_read(void *opaque, u64 off, unsigned size)
{
    return off == 1 && size == 1 ? next_byte(opaque) : off == 0 && size == 2 ? 0 : ~0ull;
}

static void port_write(void *opaque, u64 off, u64 v, unsigned size)
{
    if (off == 0 && size == 2)
        select_item(opaque, (u16)v);
    /* Writing data by port was removed from the interface long ago. */
}

/* Carries out one DMA command; the control word is the only thing a failure touches. */
static void dma(struct fw_cfg *f)
{
    struct { u32 control, length; u64 address; } cmd;
    u64 at = f->dma_address;
    f->dma_address = 0;
    const struct dma *bus = &f->board->dma;
    if (dma_read(bus, at, &cmd, sizeof(cmd)) != sizeof(cmd))
        return;
    u32 control = be32(cmd.control), length = be32(cmd.length), result = 0;
    u64 address = __builtin_bswap64(cmd.address);
    if (control & DMA_SELECT)
        select_item(f, (u16)(control >> 16));
    u32 available = f->selector < ITEMS ? f->item[f->selector].size - f->offset : 0;
    if (control & DMA_READ) {
        u32 from_item = length < available ? length : available;
        if (from_item && dma_write(bus, address, f->item[f->selector].data + f->offset, from_item) != from_item)
            result = DMA_ERROR;
        static const u8 zeros[4096];
        u64 done = from_item;
        while (!result && done < length) {
            size_t n = length - done < sizeof(zeros) ? length - done : sizeof(zeros);
            if (dma_write(bus, address + done, zeros, n) != n)
                result = DMA_ERROR;
            done += n;
        }
        if (!result)
            f->offset += from_item;
    } else if (control & DMA_WRITE) {
        result = DMA_ERROR; /* no item is writable */
    } else if (control & DMA_SKIP) {
        f->offset += length < available ? length : available;
    }
    u32 word = be32(result);
    dma_write(bus, at, &word, sizeof(word));
}

static u64 dma_port_read(void *opaque, u64 off, unsigned size)
{
    return __builtin_bswap64(DMA_SIGNATURE) >> 8 * off;
}

static void dma_port_write(void *opaque, u64 off, u64 v, unsigned size)
{
    struct fw_cfg *f = opaque;
    if (size != 4)
        return;
    if (off == 0) {
        f->dma_address = (u64)be32((u32)v) << 32;
    } else if (off == 4) {
        f->dma_address |= be32((u32)v);
        dma(f);
    }
}

static const struct io_ops port_ops = {port_read, port_write};
static const struct io_ops dma_ops = {dma_port_read, dma_port_write};

void fw_cfg_reset(struct fw_cfg *f)
{
    select_item(f, 0);
    f->dma_address = 0;
}

struct fw_cfg *fw_cfg_new(struct board *b, u16 cpus, u64 ram_size, struct error *err)
{
    struct fw_cfg *f = device_alloc(sizeof(*f));
    u32 id = ID_TRADITIONAL | ID_DMA;
    f->board = b;
    if (pio_bus_add(b->pio, 0x510, 2, &port_ops, f, "fw_cfg", err) ||
        pio_bus_add(b->pio, 0x514, 8, &dma_ops, f, "fw_cfg DMA", err) ||
        fw_cfg_add(f, FW_CFG_SIGNATURE, "QEMU", 4, err) || fw_cfg_add(f, FW_CFG_ID, &id, sizeof(id), err) ||
        fw_cfg_add(f, FW_CFG_RAM_SIZE, &ram_size, sizeof(ram_size), err) ||
        fw_cfg_add(f, FW_CFG_NB_CPUS, &cpus, sizeof(cpus), err) ||
        fw_cfg_add(f, FW_CFG_MAX_CPUS, &cpus, sizeof(cpus), err) || make_directory(f, err)) {
        for (unsigned i = 0; i < ITEMS; i++)
            free(f->item[i].data);
        free(f);
        return NULL;
    }
    return f;
}

void fw_cfg_free(struct fw_cfg *f)
{
    if (!f)
        return;
    pio_bus_remove(f->board->pio, 0x510);
    pio_bus_remove(f->board->pio, 0x514);
    for (unsigned i = 0; i < ITEMS; i++)
        free(f->item[i].data);
    free(f);
}
