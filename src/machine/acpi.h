/* The ACPI tables of the PC: RSDP, XSDT, RSDT, FADT, FACS, MADT, HPET, MCFG, DSDT. */
#pragma once
#include "base/error.h"
#include "mmu/physmap.h"

/* Writes the tables for @cpus processors (APIC IDs 0..cpus-1) into memory at MAP_ACPI. */
int acpi_write_tables(struct physmap *pm, unsigned cpus, struct error *err);
