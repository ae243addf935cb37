/* What pci.c and pci_msi.c share; nobody else includes it. */
#pragma once
#include "devices/pci.h"

struct pci_bar {
    u64 size; /* 0: not implemented */
    enum pci_bar_kind kind;
    const struct io_ops *ops;
    void *opaque;
    bool mapped;
    u64 mapped_at;
};

#define PCI_MSIX_MAX 2048

struct pci_dev {
    struct pci_bus *bus;
    u8 devfn;
    struct pci_dev_config cfg;
    u8 config[PCI_CONFIG_SIZE];
    u8 writable[PCI_CONFIG_SIZE];
    u8 clear_on_one[PCI_CONFIG_SIZE];
    unsigned next_capability;    /* first free byte */
    struct pci_bar bar[PCI_BARS];
    bool intx_pin; /* what the device drives */
    bool intx_out; /* what reaches the wire, after COMMAND's interrupt disable */

    u8 msi; /* offset of the MSI capability, 0 none */
    unsigned msi_vectors;
    u8 msix; /* offset of the MSI-X capability */
    unsigned msix_vectors;
    u8 *msix_table; /* 16 bytes a vector */
    u64 msix_pending[PCI_MSIX_MAX / 64];
};

struct board *pci_board(struct pci_dev *d);
/* Called after every configuration write and at reset. */
void pci_msi_config_written(struct pci_dev *d);
void pci_msi_reset(struct pci_dev *d);
