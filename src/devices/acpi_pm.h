/*
 * The fixed ACPI hardware: PM1a event and control blocks, the PM timer, GPE0, and the SMI command
 * port. The FADT must announce these ports and values.
 */
#pragma once
#include "devices/bus.h"

#define ACPI_PM_BASE     0x600
#define ACPI_PM1_EVT     (ACPI_PM_BASE + 0x00) /* 4 bytes: status, enable */
#define ACPI_PM1_CNT     (ACPI_PM_BASE + 0x04) /* 2 bytes */
#define ACPI_PM_TMR      (ACPI_PM_BASE + 0x08) /* 4 bytes */
#define ACPI_GPE0        (ACPI_PM_BASE + 0x20) /* 2 status and 2 enable bytes */
#define ACPI_GPE0_LEN    4
#define ACPI_SMI_CMD     0xb2
#define ACPI_ENABLE      0xf1
#define ACPI_DISABLE     0xf0
#define ACPI_SCI_GSI     9
#define ACPI_PM_TMR_HZ   3579545u
/* SLP_TYP values for \_S5, \_S3. */
#define ACPI_SLP_TYP_S5 5
#define ACPI_SLP_TYP_S3 1

enum acpi_pm1_event {
    PM1_TMR = 0,
    PM1_BM = 4,
    PM1_GBL = 5,
    PM1_PWRBTN = 8,
    PM1_SLPBTN = 9,
    PM1_RTC = 10,
    PM1_WAK = 15
};

struct acpi_pm;

/* @timer_32bit: FADT flag TMR_VAL_EXT. */
struct acpi_pm *acpi_pm_new(struct board *b, bool timer_32bit, struct error *err);
void acpi_pm_reset(struct acpi_pm *pm);
void acpi_pm_free(struct acpi_pm *pm);
/* Whose job S3 is. Without it an S3 request is refused by resuming at once with WAK_STS set. */
void acpi_pm_on_s3(struct acpi_pm *pm, void (*suspend)(void *opaque), void *opaque);
/* Sets a PM1 status bit (power button, RTC alarm, wake) and raises the SCI where it is enabled. */
void acpi_pm_event(struct acpi_pm *pm, enum acpi_pm1_event event);
/* Has an event come that is enabled to wake the machine? */
bool acpi_pm_wants_wake(const struct acpi_pm *pm);
/* Sets a general-purpose event, 0..15. */
void acpi_pm_gpe(struct acpi_pm *pm, unsigned n);
/* Loaders that skip the firmware hand over with SCI_EN already set. */
void acpi_pm_set_acpi_mode(struct acpi_pm *pm, bool on);
