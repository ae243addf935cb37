/*
 * ACPI tables, written by the machine since there is no firmware to do it. Layouts: ACPI
 * Specification 6.4, chapter 5 "ACPI Software Programming Model"; MCFG: PCI Firmware
 * Specification 3.2, 4.1.2; HPET: IA-PC HPET Specification 1.0a, 3.2.4.
 */
#include "machine/acpi.h"

#include "base/bits.h"
#include "devices/acpi_pm.h"
#include "machine/aml.h"
#include "machine/memmap.h"

#include <stdlib.h>

#define AREA_SIZE (MAP_ACPI_END - MAP_ACPI)
#define RSDP_AT 0x10000 /* offset in the area: 0xF0000, where every scanner looks */

struct builder {
    u8 *area;
    size_t used; /* tables are laid out from offset 0 up to RSDP_AT */
    size_t start;
    u32 tables[8];
    unsigned ntables;
    bool overflow;
};

static void put(struct builder *b, const void *data, size_t n)
{
    if (b->used + n > RSDP_AT) {
        b->overflow = true;
        return;
    }
    memcpy(b->area + b->used, data, n);
    b->used += n;
}
static void put8(struct builder *b, u8 v) { put(b, &v, 1); }
static void put16(struct builder *b, u16 v) { put(b, &v, 2); }
static void put32(struct builder *b, u32 v) { put(b, &v, 4); }
static void put64(struct builder *b, u64 v) { put(b, &v, 8); }

static u8 checksum(const u8 *p, size_t n)
{
    u8 sum = 0;
    while (n--)
        sum = (u8)(sum + *p++);
    return (u8)-sum;
}

static void begin(struct builder *b, const char *signature, u8 revision)
{
    b->used = (b->used + 63) & ~(size_t)63;
    b->start = b->used;
    put(b, signature, 4);
    put32(b, 0); /* length, by finish() */
    put8(b, revision);
    put8(b, 0); /* checksum, by finish() */
    put(b, "NESTOR", 6);
    put(b, "NESTORPC", 8);
    put32(b, 1);
    put(b, "NSTR", 4);
    put32(b, 1);
}

/* Returns the physical address of the finished table. */
static u32 finish(struct builder *b)
{
    if (b->overflow)
        return 0;
    u8 *t = b->area + b->start;
    store32(t + 4, (u32)(b->used - b->start));
    t[9] = checksum(t, b->used - b->start);
    return (u32)(MAP_ACPI + b->start);
}

static void list(struct builder *b, u32 table) { b->tables[b->ntables++] = table; }

static void gas_io(struct builder *b, u8 bits, u16 port)
{
    u8 access = bits == 8 ? 1 : bits == 16 ? 2 : 3;
    u8 d[4] = {1 /* system I/O */, bits, 0, access};
    put(b, d, 4);
    put64(b, port);
}

static void isa_device(struct aml *a, const char *name, const char *hid, unsigned uid, u16 port, u8 len, unsigned irq)
{
    struct resources r = {.len = 0};
    aml_device(a, name);
    aml_name_eisaid(a, "_HID", hid);
    aml_name_int(a, "_UID", uid);
    aml_name_int(a, "_STA", 0xf);
    res_io(&r, port, len);
    if (irq)
        res_irq(&r, irq);
    res_end(&r);
    aml_name_buffer(a, "_CRS", r.buf, r.len);
    aml_end(a);
}

/* Slot s, pin p of bus 0 reaches I/O APIC input 16 + (s + p) % 4. */
static void pci_routing(struct aml *a)
{
    aml_name_package_begin(a, "_PRT", 32 * 4);
    for (unsigned slot = 0; slot < 32; slot++) {
        for (unsigned pin = 0; pin < 4; pin++) {
            aml_package_begin(a, 4);
            aml_int(a, (u64)slot << 16 | 0xffff);
            aml_int(a, pin);
            aml_int(a, 0);
            aml_int(a, 16 + (slot + pin) % 4);
            aml_end(a);
        }
    }
    aml_end(a);
}

static u32 write_dsdt(struct builder *b)
{
    static const u64 s3[4] = {ACPI_SLP_TYP_S3, ACPI_SLP_TYP_S3, 0, 0};
    static const u64 s5[4] = {ACPI_SLP_TYP_S5, ACPI_SLP_TYP_S5, 0, 0};
    u8 code[8192];
    struct aml a;
    aml_init(&a, code, sizeof(code));
    aml_name_package(&a, "_S3_", s3, 4);
    aml_name_package(&a, "_S5_", s5, 4);
    aml_scope(&a, "\\_SB_");

    aml_device(&a, "PCI0");
    aml_name_eisaid(&a, "_HID", "PNP0A08");
    aml_name_eisaid(&a, "_CID", "PNP0A03");
    aml_name_int(&a, "_UID", 0);
    aml_name_int(&a, "_SEG", 0);
    aml_name_int(&a, "_BBN", 0);
    struct resources r = {.len = 0};
    res_word_bus(&r, 0, 255);
    res_io(&r, 0xcf8, 8);
    res_word_io(&r, 0x0000, 0x0cf7);
    res_word_io(&r, 0x0d00, 0xffff);
    res_dword_memory(&r, (u32)MAP_PCI_MEM, (u32)(MAP_PCI_MEM_END - 1), false);
    res_end(&r);
    aml_name_buffer(&a, "_CRS", r.buf, r.len);
    pci_routing(&a);
    isa_device(&a, "COM1", "PNP0501", 1, 0x3f8, 8, 4);
    isa_device(&a, "RTC_", "PNP0B00", 0, 0x70, 2, 8);
    isa_device(&a, "KBD_", "PNP0303", 0, 0x60, 1, 1);
    aml_end(&a); /* PCI0 */

    aml_device(&a, "MCRS"); /* what the PCI hole contains besides PCI */
    aml_name_eisaid(&a, "_HID", "PNP0C02");
    aml_name_int(&a, "_UID", 1);
    struct resources m = {.len = 0};
    res_memory32_fixed(&m, (u32)MAP_ECAM, (u32)MAP_ECAM_SIZE);
    res_end(&m);
    aml_name_buffer(&a, "_CRS", m.buf, m.len);
    aml_end(&a);

    aml_device(&a, "PWRB");
    aml_name_eisaid(&a, "_HID", "PNP0C0C");
    aml_end(&a);
    aml_end(&a); /* _SB */
    begin(b, "DSDT", 2);
    put(b, code, a.len);
    b->overflow |= a.overflow;
    return finish(b);
}

u32 acpi_waking_vector(struct physmap *pm) { return (u32)physmap_load(pm, MAP_ACPI + 12, 4); }

/* The first table in the area: acpi_waking_vector() relies on it. */
static u32 write_facs(struct builder *b)
{
    b->used = (b->used + 63) & ~(size_t)63;
    size_t at = b->used;
    u8 facs[64] = {'F', 'A', 'C', 'S', 64};
    facs[32] = 0; /* version: without X_Firmware_Waking_Vector, so that waking is always into real mode */
    put(b, facs, sizeof(facs));
    return (u32)(MAP_ACPI + at);
}

static u32 write_fadt(struct builder *b, u32 facs, u32 dsdt)
{
    begin(b, "FACP", 4);
    put32(b, facs);
    put32(b, dsdt);
    put8(b, 0);
    put8(b, 4); /* preferred profile: enterprise server */
    put16(b, ACPI_SCI_GSI);
    put32(b, ACPI_SMI_CMD);
    put8(b, ACPI_ENABLE);
    put8(b, ACPI_DISABLE);
    put8(b, 0);
    put8(b, 0);
    put32(b, ACPI_PM1_EVT);     /* PM1a_EVT_BLK */
    put32(b, 0);
    put32(b, ACPI_PM1_CNT); /* PM1a_CNT_BLK */
    put32(b, 0);
    put32(b, 0);
    put32(b, ACPI_PM_TMR); /* PM_TMR_BLK */
    put32(b, ACPI_GPE0);
    put32(b, 0);
    put8(b, 4); /* lengths: PM1_EVT, PM1_CNT, PM2_CNT, PM_TMR, GPE0, GPE1 */
    put8(b, 2);
    put8(b, 0);
    put8(b, 4);
    put8(b, ACPI_GPE0_LEN);
    put8(b, 0);
    put8(b, 0);
    put8(b, 0);
    put16(b, 0xfff); /* no C2 */
    put16(b, 0xfff); /* no C3 */
    put16(b, 0);
    put16(b, 0);
    put8(b, 0);
    put8(b, 0);
    put8(b, 0);    /* DAY_ALRM */
    put8(b, 0);    /* MON_ALRM */
    put8(b, 0x32); /* CENTURY */
    put16(b, 0x3); /* legacy devices, 8042; VGA may be absent is bit 2 */
    put8(b, 0);
    /* WBINVD, PROC_C1, no fixed sleep button, TMR_VAL_EXT (32-bit timer), RESET_REG_SUP */
    put32(b, BIT(0) | BIT(2) | BIT(5) | BIT(8) | BIT(10));
    gas_io(b, 8, 0xcf9); /* RESET_REG */
    put8(b, 6);          /* RESET_VALUE */
    put16(b, 0);
    put8(b, 0);
    put64(b, facs);
    put64(b, dsdt);
    gas_io(b, 32, ACPI_PM1_EVT);
    put64(b, 0);
    put32(b, 0);
    gas_io(b, 16, ACPI_PM1_CNT);
    put64(b, 0);
    put32(b, 0);
    put64(b, 0);
    put32(b, 0);
    gas_io(b, 32, ACPI_PM_TMR);
    gas_io(b, ACPI_GPE0_LEN * 8, ACPI_GPE0);
    put64(b, 0);
    put32(b, 0);
    return finish(b);
}

static void interrupt_override(struct builder *b, u8 irq, u32 gsi, u16 flags)
{
    put8(b, 2);
    put8(b, 10);
    put8(b, 0);
    put8(b, irq);
    put32(b, gsi);
    put16(b, flags);
}

static u32 write_madt(struct builder *b, unsigned cpus)
{
    begin(b, "APIC", 4);
    put32(b, (u32)MAP_LAPIC);
    put32(b, 1); /* PCAT_COMPAT: an 8259 pair is there */
    for (unsigned i = 0; i < cpus; i++) {
        u8 d[4] = {0, 8, (u8)i, (u8)i};
        put(b, d, 4);
        put32(b, 1);
    }
    u8 ioapic[4] = {1, 12, (u8)cpus, 0};
    put(b, ioapic, 4);
    put32(b, (u32)MAP_IOAPIC);
    put32(b, 0);
    interrupt_override(b, 0, 2, 0);
    interrupt_override(b, ACPI_SCI_GSI, ACPI_SCI_GSI, 0xd); /* level, active high */
    u8 nmi[6] = {4, 6, 0xff, 0, 0, 1};            /* every processor, LINT1 */
    put(b, nmi, 6);
    return finish(b);
}

static u32 write_hpet(struct builder *b)
{
    begin(b, "HPET", 1);
    put32(b, 0x8086a201);
    u8 gas[4] = {0, 64, 0, 0};
    put(b, gas, 4);
    put64(b, MAP_HPET);
    put8(b, 0);
    put16(b, 100);
    put8(b, 0);
    return finish(b);
}

static u32 write_mcfg(struct builder *b)
{
    begin(b, "MCFG", 1);
    put64(b, 0);
    put64(b, MAP_ECAM);
    put16(b, 0);
    put8(b, 0);
    put8(b, 255);
    put32(b, 0);
    return finish(b);
}

int acpi_write_tables(struct physmap *pm, unsigned cpus, struct error *err)
{
    struct builder b = {.area = calloc(1, AREA_SIZE)};
    if (!b.area)
        return error_set(err, "out of memory for the ACPI tables");
    u32 facs = write_facs(&b);
    u32 dsdt = write_dsdt(&b);
    list(&b, write_fadt(&b, facs, dsdt));
    list(&b, write_madt(&b, cpus));
    list(&b, write_hpet(&b));
    list(&b, write_mcfg(&b));
    begin(&b, "RSDT", 1);
    for (unsigned i = 0; i < b.ntables; i++)
        put32(&b, b.tables[i]);
    u32 rsdt = finish(&b);
    begin(&b, "XSDT", 1);
    for (unsigned i = 0; i < b.ntables; i++)
        put64(&b, b.tables[i]);
    u32 xsdt = finish(&b);
    int result = 0;
    if (b.overflow) {
        result = error_set(err, "the ACPI tables for %u processors do not fit their area", cpus);
    } else {
        u8 *p = b.area + RSDP_AT;
        memcpy(p, "RSD PTR ", 8);
        memcpy(p + 9, "NESTOR", 6);
        p[15] = 2;
        store32(p + 16, rsdt);
        store32(p + 20, 36);
        store64(p + 24, xsdt);
        p[8] = checksum(p, 20);
        p[32] = checksum(p, 36);
        physmap_write(pm, MAP_ACPI, b.area, AREA_SIZE);
    }
    free(b.area);
    return result;
}
