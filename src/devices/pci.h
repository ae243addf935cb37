/*
 * PCI: one host bridge with configuration mechanism #1 and ECAM, its bus 0, and what devices on it
 * share: BARs, INTx, MSI and MSI-X. Also port 0xCF9, the reset control register, which sits among
 * the bridge's ports.
 * PCI Local Bus Specification 3.0; PCI Express Base Specification for ECAM.
 */
#pragma once
#include "devices/bus.h"

#define PCI_CONFIG_SIZE 256
#define PCI_BARS        6
#define PCI_DEVFN(slot, fn) ((u8)((slot) << 3 | (fn)))

/* Configuration space offsets that devices use. */
enum {
    PCI_VENDOR_ID = 0x00, PCI_DEVICE_ID = 0x02, PCI_COMMAND = 0x04, PCI_STATUS = 0x06, PCI_REVISION = 0x08,
    PCI_CLASS = 0x09, PCI_CACHE_LINE = 0x0c, PCI_LATENCY = 0x0d, PCI_HEADER_TYPE = 0x0e, PCI_BAR0 = 0x10,
    PCI_SUBSYSTEM_VENDOR = 0x2c, PCI_SUBSYSTEM = 0x2e, PCI_CAPABILITIES = 0x34, PCI_INTERRUPT_LINE = 0x3c,
    PCI_INTERRUPT_PIN = 0x3d,
};
enum { PCI_COMMAND_IO = BIT(0), PCI_COMMAND_MEM = BIT(1), PCI_COMMAND_MASTER = BIT(2), PCI_COMMAND_INTX_OFF = BIT(10) };

enum pci_bar_kind { PCI_BAR_MEM32, PCI_BAR_MEM64, PCI_BAR_IO };

struct pci_bus;
struct pci_dev;

struct pci_bus_config {
    pa_t ecam_base; /* 0: no ECAM; 1 MiB a bus */
    unsigned ecam_buses; /* 1..256 */
    u16 vendor, device; /* of the host bridge at 00:00.0; 0: Nestor's defaults (an i440FX's) */
    unsigned intx_gsi[4]; /* where INTA#-INTD# of slot 0 go; slot n is rotated by n. All 0: 16..19 */
};

struct pci_dev_config {
    u16 vendor, device, subsystem_vendor, subsystem;
    u32 class_code; /* base class << 16 | subclass << 8 | programming interface */
    u8 revision;
    u8 interrupt_pin; /* 0 none, 1..4: INTA#..INTD# */
    const char *name;
    void (*reset)(void *opaque);
    /* After the guest wrote configuration bytes offset..offset+size-1; may be NULL. */
    void (*config_written)(void *opaque, unsigned offset, unsigned size);
    void *opaque;
};

struct pci_bus *pci_bus_new(struct board *b, const struct pci_bus_config *config, struct error *err);
/* RST#: every device's command register, BARs and capabilities go back, then its own reset(). */
void pci_bus_reset(struct pci_bus *bus);
void pci_bus_free(struct pci_bus *bus); /* and its devices' pci_dev */

struct pci_dev *pci_add(struct pci_bus *bus, u8 devfn, const struct pci_dev_config *config, struct error *err);
void pci_remove(struct pci_dev *d);
/* @size is a power of two, at least 16 (memory) or 4 (I/O). PCI_BAR_MEM64 takes @bar and @bar + 1. */
int pci_add_bar(struct pci_dev *d, unsigned bar, enum pci_bar_kind kind, bool prefetchable, u64 size,
                const struct io_ops *ops, void *opaque, struct error *err);
/* Firmware's part, for loaders without one: gives every BAR an address and turns decoding on. */
void pci_assign(struct pci_bus *bus, pa_t mem_base, pa_t mem_end, u16 io_base);
/* Reserves @size bytes of configuration space for a capability and links it; its offset, 0 when full. */
u8 pci_add_capability(struct pci_dev *d, u8 id, u8 size);
/* The device's configuration bytes, and which bits the guest may write. */
u8 *pci_config(struct pci_dev *d);
u8 *pci_config_writable(struct pci_dev *d);
bool pci_bus_master(const struct pci_dev *d);

/* Level of the device's INTx pin. */
void pci_intx(struct pci_dev *d, bool level);
/* 1, 2, 4, .. 32 messages, 64-bit addresses, per-vector masking. */
int pci_add_msi(struct pci_dev *d, unsigned vectors, struct error *err);
/* 1..2048 vectors; table and pending bits get a memory BAR of their own. */
int pci_add_msix(struct pci_dev *d, unsigned bar, unsigned vectors, struct error *err);
/* Whether the guest turned messages on: INTx must then stay quiet. */
bool pci_msi_enabled(const struct pci_dev *d);
/* Sends message @vector by MSI-X or MSI (or keeps it pending while masked); false when neither is on. */
bool pci_msi_send(struct pci_dev *d, unsigned vector);

/* For the debugger: each device on the bus. */
void pci_list(struct pci_bus *bus, void (*each)(u8 devfn, u16 vendor, u16 device, const char *name, void *arg),
              void *arg);
