/* The ACPI tables of the PC: RSDP, XSDT, RSDT, FADT, FACS, MADT, HPET, MCFG, DSDT. */
#pragma once
#include "base/error.h"
#include "mmu/physmap.h"

/* Writes the tables for @cpus processors (APIC IDs 0..cpus-1) into memory at MAP_ACPI. */
int acpi_write_tables(struct physmap *pm, unsigned cpus, struct error *err);
/* FACS: where the operating system wants to go on after S3, a real-mode address; 0: nowhere. */
u32 acpi_waking_vector(struct physmap *pm);
