#include "machine/memmap.h"

unsigned memmap_e820(u64 ram, struct e820_entry map[E820_MAX])
{
    u64 low = memmap_low_ram(ram);
    unsigned n = 0;
    map[n++] = (struct e820_entry){0, MAP_EBDA, E820_RAM};
    map[n++] = (struct e820_entry){MAP_EBDA, MAP_VGA - MAP_EBDA, E820_RESERVED};
    map[n++] = (struct e820_entry){MAP_ACPI, MAP_ACPI_END - MAP_ACPI, E820_RESERVED};
    map[n++] = (struct e820_entry){0x100000, low - 0x100000, E820_RAM};
    map[n++] = (struct e820_entry){MAP_ECAM, MAP_ECAM_SIZE, E820_RESERVED};
    map[n++] = (struct e820_entry){MAP_IOAPIC, MAP_HIGH_RAM - MAP_IOAPIC, E820_RESERVED};
    if (ram > low)
        map[n++] = (struct e820_entry){MAP_HIGH_RAM, ram - low, E820_RAM};
    return n;
}
