/* pci-testdev (1b36:0005): counts writes to a BAR. */
#pragma once
#include "devices/pci.h"

struct pci_testdev;

struct pci_testdev *pci_testdev_new(struct pci_bus *bus, u8 devfn, struct error *err);
void pci_testdev_free(struct pci_testdev *t);
