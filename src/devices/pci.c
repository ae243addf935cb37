#include "devices/pci_internal.h"
#include "base/log.h"

#include <stdlib.h>

#define DEVICES 256
/* The i440FX's number: drivers know that bridge and do nothing to it. */
#define DEFAULT_VENDOR 0x8086
#define DEFAULT_DEVICE 0x1237

enum { STATUS_CAP_LIST = BIT(4), STATUS_INTX = BIT(3) };
enum { CF9_SYS_RST = BIT(1), CF9_RST_CPU = BIT(2), CF9_FULL_RST = BIT(3) };

struct pci_bus {
    struct board *board;
    struct pci_bus_config cfg;
    struct pci_dev *dev[DEVICES];
    u32 address; /* CONFIG_ADDRESS */
    u8 cf9;
    unsigned wire[4]; /* how many devices hold INTA#..INTD# of the bus */
};

struct board *pci_board(struct pci_dev *d) { return d->bus->board; }
u8 *pci_config(struct pci_dev *d) { return d->config; }
u8 *pci_config_writable(struct pci_dev *d) { return d->writable; }

static u16 command(const struct pci_dev *d) { return load16(d->config + PCI_COMMAND); }
bool pci_bus_master(const struct pci_dev *d) { return command(d) & PCI_COMMAND_MASTER; }

/* ---- INTx ---- */

static void update_intx(struct pci_dev *d)
{
    struct pci_bus *bus = d->bus;
    if (!d->cfg.interrupt_pin)
        return;
    bool out = d->intx_pin && !(command(d) & PCI_COMMAND_INTX_OFF);
    /* Status bit 3 shows the pin before the disable bit (section "Device Status"). */
    d->config[PCI_STATUS] = (d->config[PCI_STATUS] & ~STATUS_INTX) | (d->intx_pin ? STATUS_INTX : 0);
    if (out == d->intx_out)
        return;
    d->intx_out = out;
    unsigned wire = ((d->devfn >> 3) + d->cfg.interrupt_pin - 1u) & 3;
    bus->wire[wire] += out ? 1 : -1u;
    struct irq_line line = bus->board->irq(bus->board, bus->cfg.intx_gsi[wire]);
    irq_set(&line, bus->wire[wire] != 0); /* the wire is shared: low when the last one lets go */
}

void pci_intx(struct pci_dev *d, bool level)
{
    d->intx_pin = level;
    update_intx(d);
}

/* ---- BARs ---- */

static u64 bar_value(const struct pci_dev *d, unsigned n)
{
    const struct pci_bar *bar = &d->bar[n];
    u64 v = load32(d->config + PCI_BAR0 + 4 * n);
    if (bar->kind == PCI_BAR_IO)
        return v & ~3ull;
    if (bar->kind == PCI_BAR_MEM64)
        v |= (u64)load32(d->config + PCI_BAR0 + 4 * (n + 1)) << 32;
    return v & ~15ull;
}

/* Where the BAR should be decoded now, or ~0. */
static u64 bar_target(const struct pci_dev *d, unsigned n)
{
    const struct pci_bar *bar = &d->bar[n];
    bool io = bar->kind == PCI_BAR_IO;
    u64 at = bar_value(d, n), last = at + bar->size - 1;
    if (!bar->size || !(command(d) & (io ? PCI_COMMAND_IO : PCI_COMMAND_MEM)))
        return ~0ull;
    /* Zero and all ones are what BARs hold before and while they are sized: no address. */
    if (!at || last < at || last > (io ? 0xffffull : 1ull << 52))
        return ~0ull;
    if (bar->kind == PCI_BAR_MEM32 && last >= 0xffffffffull)
        return ~0ull;
    return at;
}

static void unmap(struct pci_dev *d, struct pci_bar *bar)
{
    if (!bar->mapped)
        return;
    bar->mapped = false;
    if (bar->kind == PCI_BAR_IO)
        pio_bus_remove(d->bus->board->pio, (u16)bar->mapped_at);
    else
        physmap_remove_mmio(d->bus->board->pm, bar->mapped_at);
}

/* On a bus two devices at one address would both answer; here the one that came first does. */
static bool memory_taken(const struct pci_bus *bus, u64 at, u64 size)
{
    for (unsigned i = 0; i < DEVICES; i++) {
        for (unsigned n = 0; bus->dev[i] && n < PCI_BARS; n++) {
            const struct pci_bar *o = &bus->dev[i]->bar[n];
            if (o->mapped && o->kind != PCI_BAR_IO && at < o->mapped_at + o->size && o->mapped_at < at + size)
                return true;
        }
    }
    const struct region *r = physmap_find(bus->board->pm, at);
    return r && r->kind == REGION_MMIO;
}

static void map(struct pci_dev *d, unsigned n, u64 at)
{
    struct pci_bar *bar = &d->bar[n];
    struct board *b = d->bus->board;
    struct error err = {"the addresses belong to another device"};
    if (bar->kind != PCI_BAR_IO && memory_taken(d->bus, at, bar->size)) {
        log_at(device, "PCI %02x.%u BAR%u: %s", d->devfn >> 3, d->devfn & 7, n, err.text);
        return;
    }
    int rc = bar->kind == PCI_BAR_IO
                 ? pio_bus_add(b->pio, (u16)at, (u32)bar->size, bar->ops, bar->opaque, d->cfg.name, &err)
                 : physmap_add_mmio(b->pm, at, bar->size, bar->ops, bar->opaque, d->cfg.name, &err);
    if (rc) {
        log_at(device, "PCI %02x.%u BAR%u: %s", d->devfn >> 3, d->devfn & 7, n, err.text);
        return;
    }
    log_at(device, "PCI %02x.%u BAR%u at %#llx", d->devfn >> 3, d->devfn & 7, n, (unsigned long long)at);
    bar->mapped = true;
    bar->mapped_at = at;
}

/* Brings the decoded windows in line with the registers: all removals first, since BARs may swap. */
static void remap(struct pci_bus *bus)
{
    for (unsigned i = 0; i < DEVICES; i++)
        for (unsigned n = 0; bus->dev[i] && n < PCI_BARS; n++)
            if (bus->dev[i]->bar[n].mapped && bar_target(bus->dev[i], n) != bus->dev[i]->bar[n].mapped_at)
                unmap(bus->dev[i], &bus->dev[i]->bar[n]);
    for (unsigned i = 0; i < DEVICES; i++)
        for (unsigned n = 0; bus->dev[i] && n < PCI_BARS; n++)
            if (!bus->dev[i]->bar[n].mapped && bar_target(bus->dev[i], n) != ~0ull)
                map(bus->dev[i], n, bar_target(bus->dev[i], n));
}

int pci_add_bar(struct pci_dev *d, unsigned bar, enum pci_bar_kind kind, bool prefetchable, u64 size,
                const struct io_ops *ops, void *opaque, struct error *err)
{
    unsigned slots = kind == PCI_BAR_MEM64 ? 2 : 1;
    if (bar + slots > PCI_BARS || d->bar[bar].size || size < (kind == PCI_BAR_IO ? 4 : 16) || (size & (size - 1)) ||
        (kind == PCI_BAR_IO && size > 256) || (kind == PCI_BAR_MEM32 && size > 1u << 31))
        return error_set(err, "%s: BAR%u of %#llx bytes: expected a free BAR and a power of two", d->cfg.name, bar,
                         (unsigned long long)size);
    u8 *reg = d->config + PCI_BAR0 + 4 * bar, *mask = d->writable + PCI_BAR0 + 4 * bar;
    u32 type = kind == PCI_BAR_IO ? 1 : (kind == PCI_BAR_MEM64 ? 4 : 0) | (prefetchable ? 8 : 0);
    store32(reg, type);
    store32(mask, (u32)~(size - 1) & (kind == PCI_BAR_IO ? ~3u : ~15u));
    if (kind == PCI_BAR_MEM64)
        store32(mask + 4, (u32)(~(size - 1) >> 32));
    d->bar[bar] = (struct pci_bar){.size = size, .kind = kind, .ops = ops, .opaque = opaque};
    d->writable[PCI_COMMAND] |= kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEM;
    return 0;
}

void pci_assign(struct pci_bus *bus, pa_t mem_base, pa_t mem_end, u16 io_base)
{
    u64 io = io_base;
    for (unsigned i = 0; i < DEVICES; i++) {
        struct pci_dev *d = bus->dev[i];
        for (unsigned n = 0; d && n < PCI_BARS; n++) {
            struct pci_bar *bar = &d->bar[n];
            if (!bar->size)
                continue;
            bool is_io = bar->kind == PCI_BAR_IO;
            u64 *next = is_io ? &io : &mem_base, end = is_io ? 0x10000 : mem_end;
            /* Page-sized windows at least, so that a guest can give one to a nested guest. */
            u64 size = !is_io && bar->size < PAGE_SIZE ? PAGE_SIZE : bar->size;
            u64 at = (*next + size - 1) & ~(size - 1);
            if (at + size > end || at + size < at)
                continue;
            *next = at + size;
            u8 *reg = d->config + PCI_BAR0 + 4 * n;
            store32(reg, (u32)at | (load32(reg) & (is_io ? 3 : 15)));
            if (bar->kind == PCI_BAR_MEM64)
                store32(reg + 4, (u32)(at >> 32));
            d->config[PCI_COMMAND] |= is_io ? PCI_COMMAND_IO : PCI_COMMAND_MEM;
        }
        if (d && d->cfg.interrupt_pin)
            d->config[PCI_INTERRUPT_LINE] = (u8)bus->cfg.intx_gsi[((i >> 3) + d->cfg.interrupt_pin - 1u) & 3];
    }
    remap(bus);
}

/* ---- capabilities ---- */

u8 pci_add_capability(struct pci_dev *d, u8 id, u8 size)
{
    unsigned at = (d->next_capability + 3) & ~3u;
    if (size < 2 || at + size > PCI_CONFIG_SIZE)
        return 0;
    d->config[at] = id;
    d->config[at + 1] = d->config[PCI_CAPABILITIES];
    d->config[PCI_CAPABILITIES] = (u8)at;
    d->config[PCI_STATUS] |= STATUS_CAP_LIST;
    d->next_capability = at + size;
    return (u8)at;
}

/* ---- configuration space ---- */

static u32 config_read(struct pci_bus *bus, unsigned busno, unsigned devfn, unsigned reg, unsigned size)
{
    struct pci_dev *d = busno ? NULL : bus->dev[devfn];
    if (!d || reg + size > PCI_CONFIG_SIZE)
        return ~0u; /* master abort; beyond 256 bytes only PCI Express has registers */
    return (u32)load_le(d->config + reg, size);
}

static void config_write(struct pci_bus *bus, unsigned busno, unsigned devfn, unsigned reg, u32 value, unsigned size)
{
    struct pci_dev *d = busno ? NULL : bus->dev[devfn];
    if (!d || reg + size > PCI_CONFIG_SIZE)
        return;
    for (unsigned i = 0; i < size; i++) {
        u8 v = (u8)(value >> 8 * i), mask = d->writable[reg + i];
        u8 *p = &d->config[reg + i];
        *p = (*p & ~mask & ~(v & d->clear_on_one[reg + i])) | (v & mask);
    }
    bool decoding = reg < PCI_BAR0 + 4 * PCI_BARS && reg + size > PCI_COMMAND;
    if (decoding)
        remap(bus);
    update_intx(d);
    pci_msi_config_written(d);
    if (d->cfg.config_written)
        d->cfg.config_written(d->cfg.opaque, reg, size);
}

/* Ports 0xCF8-0xCFF: CONFIG_ADDRESS answers dwords only; CONFIG_DATA any aligned width. */
static u64 port_read(void *opaque, u64 off, unsigned size)
{
    struct pci_bus *bus = opaque;
    if (off == 0 && size == 4)
        return bus->address;
    if (off == 1 && size == 1)
        return bus->cf9;
    if (off < 4 || !(bus->address & BIT(31)))
        return ~0ull;
    unsigned reg = (bus->address & 0xfc) + (unsigned)(off & 3);
    return config_read(bus, bus->address >> 16 & 0xff, bus->address >> 8 & 0xff, reg, size);
}

static void port_write(void *opaque, u64 off, u64 value, unsigned size)
{
    struct pci_bus *bus = opaque;
    if (off == 0 && size == 4) {
        bus->address = (u32)value & 0x80fffffc;
        return;
    }
    if (off == 1 && size == 1) {
        /* Reset control register: the reset happens when RST_CPU goes from 0 to 1. */
        bool rising = (value & CF9_RST_CPU) && !(bus->cf9 & CF9_RST_CPU);
        bus->cf9 = value & (CF9_SYS_RST | CF9_RST_CPU | CF9_FULL_RST);
        if (rising)
            bus->board->request_reset(bus->board);
        return;
    }
    if (off < 4 || !(bus->address & BIT(31)))
        return;
    unsigned reg = (bus->address & 0xfc) + (unsigned)(off & 3);
    config_write(bus, bus->address >> 16 & 0xff, bus->address >> 8 & 0xff, reg, (u32)value, size);
}

/* PCI Express, "PCI Express Enhanced Configuration Access Mechanism": bus 27:20, devfn 19:12. */
static u64 ecam_read(void *opaque, u64 off, unsigned size)
{
    if (size > 4)
        return ecam_read(opaque, off, 4) | ecam_read(opaque, off + 4, 4) << 32;
    return config_read(opaque, (unsigned)(off >> 20), off >> 12 & 0xff, off & 0xfff, size);
}

static void ecam_write(void *opaque, u64 off, u64 value, unsigned size)
{
    if (size > 4) {
        ecam_write(opaque, off, (u32)value, 4);
        ecam_write(opaque, off + 4, value >> 32, 4);
        return;
    }
    config_write(opaque, (unsigned)(off >> 20), off >> 12 & 0xff, off & 0xfff, (u32)value, size);
}

static const struct io_ops port_ops = {port_read, port_write};
static const struct io_ops ecam_ops = {ecam_read, ecam_write};

/* ---- devices ---- */

struct pci_dev *pci_add(struct pci_bus *bus, u8 devfn, const struct pci_dev_config *config, struct error *err)
{
    if (bus->dev[devfn]) {
        error_set(err, "%s: PCI slot %02x.%u already belongs to %s", config->name, devfn >> 3, devfn & 7,
                  bus->dev[devfn]->cfg.name);
        return NULL;
    }
    struct pci_dev *d = device_alloc(sizeof(*d));
    d->bus = bus;
    d->devfn = devfn;
    d->cfg = *config;
    d->next_capability = 0x40;
    u8 *c = d->config;
    store16(c + PCI_VENDOR_ID, config->vendor);
    store16(c + PCI_DEVICE_ID, config->device);
    c[PCI_REVISION] = config->revision;
    c[PCI_CLASS] = (u8)config->class_code;
    store16(c + PCI_CLASS + 1, (u16)(config->class_code >> 8));
    store16(c + PCI_SUBSYSTEM_VENDOR, config->subsystem_vendor);
    store16(c + PCI_SUBSYSTEM, config->subsystem);
    c[PCI_INTERRUPT_PIN] = config->interrupt_pin <= 4 ? config->interrupt_pin : 0;
    d->cfg.interrupt_pin = c[PCI_INTERRUPT_PIN];
    /* Parity and SERR# enables can be set and mean nothing: nothing here has parity. */
    store16(d->writable + PCI_COMMAND,
            PCI_COMMAND_MASTER | BIT(6) | BIT(8) | (d->cfg.interrupt_pin ? PCI_COMMAND_INTX_OFF : 0));
    store16(d->clear_on_one + PCI_STATUS, 0xf900);
    d->writable[PCI_CACHE_LINE] = d->writable[PCI_INTERRUPT_LINE] = 0xff;
    d->writable[PCI_LATENCY] = 0xff;
    bus->dev[devfn] = d;
    /* Functions above 0 are looked for only when function 0 says there are more. */
    struct pci_dev *first = bus->dev[devfn & ~7];
    for (unsigned fn = 1; first && fn < 8; fn++)
        if (bus->dev[(devfn & ~7) + fn])
            first->config[PCI_HEADER_TYPE] |= 0x80;
    return d;
}

void pci_remove(struct pci_dev *d)
{
    if (!d)
        return;
    d->intx_pin = false;
    update_intx(d);
    for (unsigned n = 0; n < PCI_BARS; n++)
        unmap(d, &d->bar[n]);
    d->bus->dev[d->devfn] = NULL;
    free(d->msix_table);
    free(d);
}

void pci_bus_reset(struct pci_bus *bus)
{
    bus->address = 0;
    bus->cf9 = 0;
    for (unsigned i = 0; i < DEVICES; i++) {
        struct pci_dev *d = bus->dev[i];
        if (!d)
            continue;
        /* Whatever a guest can write, it wrote after reset: all such bits are zero then. */
        for (unsigned n = 0; n < PCI_CONFIG_SIZE; n++)
            d->config[n] = d->config[n] & ~(d->writable[n] | d->clear_on_one[n]);
        pci_msi_reset(d);
        d->intx_pin = false;
        update_intx(d);
        if (d->cfg.reset)
            d->cfg.reset(d->cfg.opaque);
    }
    remap(bus);
}

void pci_list(struct pci_bus *bus, void (*each)(u8 devfn, u16 vendor, u16 device, const char *name, void *arg),
              void *arg)
{
    for (unsigned i = 0; i < DEVICES; i++)
        if (bus->dev[i])
            each((u8)i, bus->dev[i]->cfg.vendor, bus->dev[i]->cfg.device, bus->dev[i]->cfg.name, arg);
}

struct pci_bus *pci_bus_new(struct board *b, const struct pci_bus_config *config, struct error *err)
{
    struct pci_bus *bus = device_alloc(sizeof(*bus));
    bus->board = b;
    bus->cfg = *config;
    if (!config->intx_gsi[0] && !config->intx_gsi[1] && !config->intx_gsi[2] && !config->intx_gsi[3])
        for (unsigned i = 0; i < 4; i++)
            bus->cfg.intx_gsi[i] = 16 + i;
    struct pci_dev_config bridge = {
        .vendor = config->vendor ? config->vendor : DEFAULT_VENDOR,
        .device = config->vendor ? config->device : DEFAULT_DEVICE,
        .class_code = 0x060000,
        .revision = 2,
        .name = "PCI host bridge",
    };
    if (pio_bus_add(b->pio, 0xcf8, 8, &port_ops, bus, "PCI configuration", err)) {
        free(bus);
        return NULL;
    }
    if (config->ecam_base && (config->ecam_buses < 1 || config->ecam_buses > 256)) {
        error_set(err, "PCI: ECAM for %u buses: expected 1 to 256", config->ecam_buses);
        pci_bus_free(bus);
        return NULL;
    }
    if (config->ecam_base && physmap_add_mmio(b->pm, config->ecam_base, (u64)config->ecam_buses << 20, &ecam_ops, bus,
                                              "PCI ECAM", err)) {
        bus->cfg.ecam_base = 0;
        pci_bus_free(bus);
        return NULL;
    }
    if (!pci_add(bus, 0, &bridge, err)) {
        pci_bus_free(bus);
        return NULL;
    }
    return bus;
}

void pci_bus_free(struct pci_bus *bus)
{
    if (!bus)
        return;
    for (unsigned i = 0; i < DEVICES; i++)
        pci_remove(bus->dev[i]);
    pio_bus_remove(bus->board->pio, 0xcf8);
    if (bus->cfg.ecam_base)
        physmap_remove_mmio(bus->board->pm, bus->cfg.ecam_base);
    free(bus);
}
