/* Where things are in the physical address space of the PC, and what the guest is told of it. */
#pragma once
#include "base/types.h"

#define MAP_EBDA 0x9fc00ull          /* end of conventional memory */
#define MAP_VGA 0xa0000ull
#define MAP_ACPI 0xe0000ull          /* tables, in the BIOS area: the RSDP is searched from here */
#define MAP_ACPI_END 0x100000ull
#define MAP_LOW_RAM_MAX 0xb0000000ull /* RAM below 4 GiB ends here; the rest goes above 4 GiB */
#define MAP_ECAM 0xb0000000ull
#define MAP_ECAM_SIZE 0x10000000ull
#define MAP_PCI_MEM 0xc0000000ull
#define MAP_PCI_MEM_END 0xfec00000ull
#define MAP_IOAPIC 0xfec00000ull
#define MAP_HPET 0xfed00000ull
#define MAP_LAPIC 0xfee00000ull
#define MAP_HIGH_RAM 0x100000000ull
#define MAP_PCI_IO 0xc000
#define MAP_PCI_IO_END 0xffff

/* Types of the E820 map. */
enum { E820_RAM = 1, E820_RESERVED = 2, E820_ACPI = 3 };
struct e820_entry {
    u64 base, size;
    u32 type;
};
#define E820_MAX 16
/* Fills @map for @ram bytes of memory; returns the number of entries. */
unsigned memmap_e820(u64 ram, struct e820_entry map[E820_MAX]);
static inline u64 memmap_low_ram(u64 ram) { return ram < MAP_LOW_RAM_MAX ? ram : MAP_LOW_RAM_MAX; }
