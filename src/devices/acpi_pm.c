/* ACPI specification 6.5, chapter "ACPI Hardware Specification", section "Fixed Hardware Features". */
#include "devices/acpi_pm.h"
#include "base/log.h"

#include <stdlib.h>

#define PM1_DEFINED                                                                                                    \
    (BIT(PM1_TMR) | BIT(PM1_BM) | BIT(PM1_GBL) | BIT(PM1_PWRBTN) | BIT(PM1_SLPBTN) | BIT(PM1_RTC) | BIT(PM1_WAK))
/* Enable bits exist for what can raise an SCI: not for BM_STS and WAK_STS. */
#define PM1_ENABLES (PM1_DEFINED & ~(BIT(PM1_BM) | BIT(PM1_WAK)))

enum { CNT_SCI_EN = BIT(0), CNT_BM_RLD = BIT(1), CNT_GBL_RLS = BIT(2), CNT_SLP_EN = BIT(13) };

struct acpi_pm {
    struct board *board;
    struct irq_line sci;
    u16 sts, en, cnt;
    u8 gpe[ACPI_GPE0_LEN]; /* status bytes, then enable bytes */
    u8 smi[2];             /* APM control and status ports */
    unsigned msb;          /* the PM timer bit whose change sets TMR_STS */
    u64 msb_seen;          /* count of such changes already reported */
    struct timer timer;
    void (*suspend)(void *opaque);
    void *suspend_opaque;
};

static u64 ticks(const struct acpi_pm *pm)
{
    return (u64)((u128)clock_now(pm->board->clock) * ACPI_PM_TMR_HZ / NSEC_PER_SEC);
}

static void update(struct acpi_pm *pm)
{
    bool level = pm->sts & pm->en & PM1_ENABLES;
    for (unsigned i = 0; i < ACPI_GPE0_LEN / 2; i++)
        level |= (pm->gpe[i] & pm->gpe[i + ACPI_GPE0_LEN / 2]) != 0;
    irq_set(&pm->sci, level && (pm->cnt & CNT_SCI_EN));
}

/* "Power Management Timer": TMR_STS is set whenever the timer's most significant bit changes. */
static void account_timer(struct acpi_pm *pm)
{
    u64 changes = ticks(pm) >> pm->msb;
    if (changes != pm->msb_seen) {
        pm->msb_seen = changes;
        pm->sts |= BIT(PM1_TMR);
    }
}

static void arm_timer(struct acpi_pm *pm)
{
    if (!(pm->en & BIT(PM1_TMR)) || (pm->sts & BIT(PM1_TMR))) {
        timer_cancel(&pm->timer);
        return;
    }
    u128 next = (u128)(pm->msb_seen + 1) << pm->msb;
    timer_arm(&pm->timer, (u64)((next * NSEC_PER_SEC + ACPI_PM_TMR_HZ - 1) / ACPI_PM_TMR_HZ));
}

static void refresh(struct acpi_pm *pm)
{
    account_timer(pm);
    update(pm);
    arm_timer(pm);
}

static void timer_fire(void *opaque) { refresh(opaque); }

void acpi_pm_event(struct acpi_pm *pm, enum acpi_pm1_event event)
{
    pm->sts |= BIT(event);
    refresh(pm);
}

bool acpi_pm_wants_wake(const struct acpi_pm *pm)
{
    if (pm->sts & pm->en & (BIT(PM1_RTC) | BIT(PM1_PWRBTN) | BIT(PM1_SLPBTN)))
        return true;
    for (unsigned i = 0; i < ACPI_GPE0_LEN / 2; i++)
        if (pm->gpe[i] & pm->gpe[i + ACPI_GPE0_LEN / 2])
            return true;
    return false;
}

void acpi_pm_gpe(struct acpi_pm *pm, unsigned n)
{
    if (n >= 8 * ACPI_GPE0_LEN / 2)
        return;
    pm->gpe[n / 8] |= BIT(n % 8);
    update(pm);
}

void acpi_pm_set_acpi_mode(struct acpi_pm *pm, bool on)
{
    pm->cnt = on ? pm->cnt | CNT_SCI_EN : pm->cnt & ~CNT_SCI_EN;
    update(pm);
}

void acpi_pm_on_s3(struct acpi_pm *pm, void (*suspend)(void *opaque), void *opaque)
{
    pm->suspend = suspend;
    pm->suspend_opaque = opaque;
}

static void sleep_now(struct acpi_pm *pm, unsigned slp_typ)
{
    log_at(device, "ACPI: SLP_EN with SLP_TYP %u", slp_typ);
    if (slp_typ == ACPI_SLP_TYP_S5) {
        pm->board->request_power_off(pm->board);
    } else if (slp_typ == ACPI_SLP_TYP_S3 && pm->suspend) {
        pm->suspend(pm->suspend_opaque);
    } else {
        log_at(unimplemented, "ACPI: sleep type %u", slp_typ);
        acpi_pm_event(pm, PM1_WAK);
    }
}

static u8 read_byte(struct acpi_pm *pm, unsigned off)
{
    switch (off) {
    case 0: case 1:
        account_timer(pm);
        return (u8)(pm->sts >> 8 * off);
    case 2: case 3:
        return (u8)(pm->en >> 8 * (off - 2));
    case 4: case 5:
        return (u8)(pm->cnt >> 8 * (off - 4)); /* SLP_EN and GBL_RLS are never stored: they read as zero */
    case 8: case 9: case 10: case 11: {
        u64 t = ticks(pm) & (pm->msb == 31 ? 0xffffffffu : 0xffffffu);
        return (u8)(t >> 8 * (off - 8));
    }
    }
    if (off >= 0x20 && off < 0x20 + ACPI_GPE0_LEN)
        return pm->gpe[off - 0x20];
    return 0;
}

static void write_byte(struct acpi_pm *pm, unsigned off, u8 v)
{
    unsigned shift = 8 * (off & 1);
    u16 part = (u16)(v << shift), keep = (u16)~(0xff << shift);
    switch (off) {
    case 0: case 1:
        account_timer(pm);
        pm->sts &= ~part; /* write one to clear */
        break;
    case 2: case 3:
        account_timer(pm);
        pm->en = ((pm->en & keep) | part) & PM1_ENABLES;
        break;
    case 4: case 5:
        pm->cnt = ((pm->cnt & keep) | part) & (CNT_SCI_EN | CNT_BM_RLD | 7 << 10);
        if (off == 5 && (part & CNT_SLP_EN))
            sleep_now(pm, pm->cnt >> 10 & 7);
        break;
    default:
        if (off >= 0x20 && off < 0x20 + ACPI_GPE0_LEN / 2)
            pm->gpe[off - 0x20] &= ~v;
        else if (off >= 0x20 && off < 0x20 + ACPI_GPE0_LEN)
            pm->gpe[off - 0x20] = v;
    }
}

static u64 pm_read(void *opaque, u64 off, unsigned size)
{
    struct acpi_pm *pm = opaque;
    /* The PM timer must be read in one piece: bytes of different moments do not add up. */
    if (off == 8 && size == 4)
        return ticks(pm) & (pm->msb == 31 ? 0xffffffffu : 0xffffffu);
    u64 v = 0;
    for (unsigned i = 0; i < size; i++)
        v |= (u64)read_byte(pm, (unsigned)off + i) << 8 * i;
    return v;
}

static void pm_write(void *opaque, u64 off, u64 value, unsigned size)
{
    struct acpi_pm *pm = opaque;
    for (unsigned i = 0; i < size; i++)
        write_byte(pm, (unsigned)off + i, (u8)(value >> 8 * i));
    refresh(pm);
}

static u64 smi_read(void *opaque, u64 off, unsigned size)
{
    struct acpi_pm *pm = opaque;
    return pm->smi[off & 1];
}

/* There is no SMM firmware: the hand-over that an SMI handler would make happens here. */
static void smi_write(void *opaque, u64 off, u64 value, unsigned size)
{
    struct acpi_pm *pm = opaque;
    pm->smi[off & 1] = (u8)value;
    if (off == 0 && value == ACPI_ENABLE)
        acpi_pm_set_acpi_mode(pm, true);
    else if (off == 0 && value == ACPI_DISABLE)
        acpi_pm_set_acpi_mode(pm, false);
}

static const struct io_ops pm_ops = {pm_read, pm_write};
static const struct io_ops smi_ops = {smi_read, smi_write};

void acpi_pm_reset(struct acpi_pm *pm)
{
    pm->sts = pm->en = pm->cnt = 0;
    memset(pm->gpe, 0, sizeof(pm->gpe));
    pm->smi[0] = pm->smi[1] = 0;
    pm->msb_seen = ticks(pm) >> pm->msb;
    refresh(pm);
}

struct acpi_pm *acpi_pm_new(struct board *b, bool timer_32bit, struct error *err)
{
    struct acpi_pm *pm = device_alloc(sizeof(*pm));
    pm->board = b;
    pm->sci = b->irq(b, ACPI_SCI_GSI);
    pm->msb = timer_32bit ? 31 : 23;
    timer_init(&pm->timer, b->clock, timer_fire, pm);
    if (pio_bus_add(b->pio, ACPI_PM_BASE, 0x40, &pm_ops, pm, "ACPI PM", err) ||
        pio_bus_add8(b->pio, ACPI_SMI_CMD, 2, &smi_ops, pm, "SMI command", err)) {
        free(pm);
        return NULL;
    }
    acpi_pm_reset(pm);
    return pm;
}

void acpi_pm_free(struct acpi_pm *pm)
{
    if (!pm)
        return;
    timer_cancel(&pm->timer);
    pio_bus_remove(pm->board->pio, ACPI_PM_BASE);
    pio_bus_remove(pm->board->pio, ACPI_SMI_CMD);
    free(pm);
}
