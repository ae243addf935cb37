/* 8254, HPET, RTC and the ACPI PM block under an instruction-count clock. */
#include "dev_test.h"

#include "devices/acpi_pm.h"
#include "devices/hpet.h"
#include "devices/i8254.h"
#include "devices/rtc.h"

#define TICK 838.0959 /* ns of an 8254 clock */

static u64 pit_ns(double ticks) { return (u64)(ticks * TICK + 1); }

static u16 pit_count(struct fixture *f, unsigned ch)
{
    outb(f, 0x43, (u8)(ch << 6));
    u8 low = inb(f, (u16)(0x40 + ch));
    return (u16)(low | inb(f, (u16)(0x40 + ch)) << 8);
}

static void pit_rate_generator(void **state)
{
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct i8254 *p = i8254_new(&f.board, &err);
    outb(&f, 0x43, 0x34);
    outb(&f, 0x40, 0xe8);
    outb(&f, 0x40, 0x03); /* 1000 */
    f.rises[0] = 0;
    pass(&f, pit_ns(10000));
    assert_int_equal(f.rises[0], 10);
    u16 a = pit_count(&f, 0);
    assert_in_range(a, 1, 1000);
    pass(&f, pit_ns(100));
    assert_in_range((a + 1000 - pit_count(&f, 0)) % 1000, 99, 101);
    /* A new count waits for the end of the period. */
    outb(&f, 0x40, 0x10);
    outb(&f, 0x40, 0x27); /* 10000 */
    outb(&f, 0x43, 0xe2); /* read back status of channel 0 */
    assert_int_equal(inb(&f, 0x40), 0xf4); /* OUT high, null count, both bytes, mode 2 */
    f.rises[0] = 0;
    pass(&f, pit_ns(11000));
    assert_int_equal(f.rises[0], 2);
    i8254_irq_enable(p, false);
    f.rises[0] = 0;
    pass(&f, pit_ns(30000));
    assert_int_equal(f.rises[0], 0);
    i8254_free(p);
    fixture_free(&f);
}

static void pit_one_shots(void **state)
{
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct i8254 *p = i8254_new(&f.board, &err);
    for (unsigned mode = 0; mode <= 4; mode += 4) {
        outb(&f, 0x43, (u8)(0x30 | mode << 1));
        assert_int_equal(f.line[0], mode != 0);
        f.rises[0] = 0;
        outb(&f, 0x40, 100);
        outb(&f, 0x40, 0);
        pass(&f, pit_ns(99));
        assert_int_equal(f.rises[0], 0);
        pass(&f, pit_ns(3));
        assert_int_equal(f.rises[0], 1);
        pass(&f, pit_ns(200000)); /* the counter wraps; OUT does not come again */
        assert_int_equal(f.rises[0], 1);
    }
    i8254_free(p);
    fixture_free(&f);
}

static void pit_gate_and_port61(void **state)
{
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct i8254 *p = i8254_new(&f.board, &err);
    /* What TSC calibration does: gate on, mode 0, wait for OUT2. */
    outb(&f, 0x61, (u8)((inb(&f, 0x61) & ~2) | 1));
    outb(&f, 0x43, 0xb0);
    outb(&f, 0x42, 0x9c);
    outb(&f, 0x42, 0x2e); /* 11932: 10 ms */
    assert_int_equal(inb(&f, 0x61) & 0x20, 0);
    pass(&f, 9900000);
    assert_int_equal(inb(&f, 0x61) & 0x20, 0);
    outb(&f, 0x61, 0); /* the gate holds the count */
    u16 held = pit_count(&f, 2);
    pass(&f, 5000000);
    assert_int_equal(pit_count(&f, 2), held);
    outb(&f, 0x61, 1);
    pass(&f, 200000);
    assert_int_equal(inb(&f, 0x61) & 0x20, 0x20);
    /* Mode 1: a gate edge starts it. */
    outb(&f, 0x61, 0);
    outb(&f, 0x43, 0xb2);
    outb(&f, 0x42, 100);
    outb(&f, 0x42, 0);
    pass(&f, pit_ns(300));
    assert_int_equal(inb(&f, 0x61) & 0x20, 0x20);
    outb(&f, 0x61, 1);
    assert_int_equal(inb(&f, 0x61) & 0x20, 0);
    pass(&f, pit_ns(101));
    assert_int_equal(inb(&f, 0x61) & 0x20, 0x20);
    unsigned toggles = 0;
    for (unsigned i = 0, last = inb(&f, 0x61) & 0x10; i < 100; i++) {
        pass(&f, 1509);
        toggles += (inb(&f, 0x61) & 0x10) != last;
        last = inb(&f, 0x61) & 0x10;
    }
    assert_in_range(toggles, 9, 11);
    i8254_free(p);
    fixture_free(&f);
}

static void pit_square_wave_bcd_and_latches(void **state)
{
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct i8254 *p = i8254_new(&f.board, &err);
    outb(&f, 0x61, 1);
    outb(&f, 0x43, 0xb6);
    outb(&f, 0x42, 5);
    outb(&f, 0x42, 0);
    unsigned high = 0;
    for (unsigned i = 0; i < 50; i++) {
        pass(&f, i == 0 ? 419 : 838);
        high += !!(inb(&f, 0x61) & 0x20);
    }
    assert_int_equal(high, 30); /* three of five clocks */
    outb(&f, 0x43, 0xb1); /* mode 0, BCD */
    outb(&f, 0x42, 0x00);
    outb(&f, 0x42, 0x10); /* 1000 */
    pass(&f, pit_ns(1));
    assert_in_range(pit_count(&f, 2), 0x998, 0x1000);
    /* Count and status latched together: status comes first, and the count does not move. */
    outb(&f, 0x43, 0xc8);
    pass(&f, pit_ns(50));
    assert_int_equal(inb(&f, 0x42) & 0x3f, 0x31);
    u8 low = inb(&f, 0x42);
    assert_in_range(low | inb(&f, 0x42) << 8, 0x998, 0x1000);
    /* Any control word and any count survive. */
    for (unsigned v = 0; v < 256; v++) {
        outb(&f, 0x43, (u8)v);
        for (unsigned ch = 0; ch < 3; ch++) {
            outb(&f, (u16)(0x40 + ch), (u8)v);
            outb(&f, (u16)(0x40 + ch), 0);
            inb(&f, (u16)(0x40 + ch));
        }
        outb(&f, 0x61, (u8)v);
        pass(&f, 5000);
    }
    i8254_free(p);
    fixture_free(&f);
}

static void legacy(void *o, bool on) { *(bool *)o = on; }

static void hpet_registers_and_timers(void **state)
{
    struct fixture f;
    struct error err;
    bool legacy_on = false;
    fixture_init(&f);
    struct hpet *h = hpet_new(&f.board, legacy, &legacy_on, &err);
    assert_non_null(h);
    assert_int_equal(physmap_load(f.board.pm, HPET_BASE, 8), 0x009896808086a201ull);
    assert_int_equal(mem32(&f, HPET_BASE + 4), 10000000);
    assert_int_equal(mem32(&f, HPET_BASE + 0xf0), 0);
    pass(&f, 1000);
    assert_int_equal(mem32(&f, HPET_BASE + 0xf0), 0); /* halted */
    set32(&f, HPET_BASE + 0x10, 1);
    pass(&f, 1000);
    assert_int_equal(mem32(&f, HPET_BASE + 0xf0), 100);
    /* Timer 2, one-shot, edge, input 21. */
    set32(&f, HPET_BASE + 0x140, 21 << 9 | 4);
    physmap_store(f.board.pm, HPET_BASE + 0x148, 150, 8); /* it starts as all ones */
    pass(&f, 490);
    assert_int_equal(f.rises[21], 0);
    pass(&f, 10);
    assert_int_equal(f.rises[21], 1);
    pass(&f, 100000);
    assert_int_equal(f.rises[21], 1);
    /* Level: status bit until it is written one. */
    set32(&f, HPET_BASE + 0x140, 21 << 9 | 6);
    set32(&f, HPET_BASE + 0x148, mem32(&f, HPET_BASE + 0xf0) + 10);
    pass(&f, 100);
    assert_true(f.line[21]);
    assert_int_equal(mem32(&f, HPET_BASE + 0x20), 4);
    set32(&f, HPET_BASE + 0x20, 3);
    assert_true(f.line[21]);
    set32(&f, HPET_BASE + 0x20, 4);
    assert_false(f.line[21]);
    /* Timer 0 periodic under legacy replacement, as Linux sets it up. */
    set32(&f, HPET_BASE + 0x10, 3);
    assert_true(legacy_on);
    set32(&f, HPET_BASE + 0x100, 0x4c | 0x100);
    set32(&f, HPET_BASE + 0x108, mem32(&f, HPET_BASE + 0xf0) + 1000);
    set32(&f, HPET_BASE + 0x108, 1000);
    pass(&f, 50000);
    assert_int_equal(f.rises[0], 5);
    /* Halting keeps the count; reset lets go of everything. */
    set32(&f, HPET_BASE + 0x10, 2);
    u32 now = mem32(&f, HPET_BASE + 0xf0);
    pass(&f, 50000);
    assert_int_equal(mem32(&f, HPET_BASE + 0xf0), now);
    assert_int_equal(f.rises[0], 5);
    hpet_reset(h);
    assert_false(legacy_on);
    hpet_free(h);
    fixture_free(&f);
}

static u8 cmos(struct fixture *f, u8 reg)
{
    outb(f, 0x70, reg);
    return inb(f, 0x71);
}

static void set_cmos(struct fixture *f, u8 reg, u8 v)
{
    outb(f, 0x70, reg);
    outb(f, 0x71, v);
}

#define EPOCH 1704067195ll /* 2023-12-31 23:59:55 UTC, a Sunday */

static void rtc_time(void **state)
{
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct rtc *r = rtc_new(&f.board, EPOCH, &err);
    assert_int_equal(cmos(&f, 0), 0x55);
    assert_int_equal(cmos(&f, 2), 0x59);
    assert_int_equal(cmos(&f, 4), 0x23);
    assert_int_equal(cmos(&f, 6), 1);
    assert_int_equal(cmos(&f, 7), 0x31);
    assert_int_equal(cmos(&f, 8), 0x12);
    assert_int_equal(cmos(&f, 9), 0x23);
    assert_int_equal(cmos(&f, 0x32), 0x20);
    assert_int_equal(cmos(&f, 0xd), 0x80);
    pass(&f, 4999000000);
    assert_int_equal(cmos(&f, 0xa), 0x26);
    pass(&f, 800000);
    assert_int_equal(cmos(&f, 0xa), 0xa6); /* UIP */
    pass(&f, 200000);
    assert_int_equal(cmos(&f, 0xa), 0x26);
    assert_int_equal(cmos(&f, 9), 0x24);
    assert_int_equal(cmos(&f, 7), 0x01);
    assert_int_equal(cmos(&f, 4), 0x00);
    /* Binary, 12-hour, and setting the time under SET. */
    set_cmos(&f, 0xb, 0x84);
    set_cmos(&f, 4, 0x80 | 12);
    set_cmos(&f, 2, 30);
    pass(&f, 10000000000);
    assert_int_equal(cmos(&f, 2), 30); /* held */
    set_cmos(&f, 0xb, 0x04);
    assert_int_equal(cmos(&f, 4), 0x80 | 12);
    pass(&f, 1800ull * NSEC_PER_SEC);
    assert_int_equal(cmos(&f, 4), 0x80 | 1);
    set_cmos(&f, 0xb, 0x06);
    assert_int_equal(cmos(&f, 4), 13);
    /* Nonsense everywhere neither traps nor hangs. */
    for (unsigned v = 0; v < 256; v += 17) {
        for (u8 reg = 0; reg < 0x40; reg++)
            set_cmos(&f, reg, (u8)v);
        pass(&f, 3000000000);
        for (u8 reg = 0; reg < 0x40; reg++)
            cmos(&f, reg);
    }
    rtc_free(r);
    fixture_free(&f);
}

static void count(void *o) { ++*(unsigned *)o; }

static void rtc_alarm_update_periodic(void **state)
{
    struct fixture f;
    struct error err;
    unsigned alarms = 0;
    fixture_init(&f);
    struct rtc *r = rtc_new(&f.board, EPOCH, &err);
    rtc_on_alarm(r, count, &alarms);
    set_cmos(&f, 1, 0xc0);
    set_cmos(&f, 3, 0xc0);
    set_cmos(&f, 5, 0xc0);
    cmos(&f, 0xc);
    set_cmos(&f, 0xb, 0x22);
    pass(&f, NSEC_PER_SEC);
    assert_true(f.line[8]);
    assert_int_equal(cmos(&f, 0xc) & 0xb0, 0xb0); /* IRQF, AF, UF */
    assert_int_equal(alarms, 1);
    assert_false(f.line[8]);
    assert_int_equal(cmos(&f, 0xc) & 0xb0, 0);
    set_cmos(&f, 1, 0x58);
    pass(&f, NSEC_PER_SEC); /* 57 */
    assert_false(f.line[8]);
    pass(&f, NSEC_PER_SEC); /* 58 */
    assert_true(f.line[8]);
    cmos(&f, 0xc);
    set_cmos(&f, 0xb, 0x12);
    f.rises[8] = 0;
    for (unsigned i = 0; i < 3; i++) {
        pass(&f, NSEC_PER_SEC);
        cmos(&f, 0xc);
    }
    assert_int_equal(f.rises[8], 3);
    set_cmos(&f, 0xa, 0x26);
    set_cmos(&f, 0xb, 0x42); /* 1024 Hz */
    f.rises[8] = 0;
    for (unsigned i = 0; i < 1000; i++) {
        pass(&f, 1000000);
        if (f.line[8])
            assert_int_equal(cmos(&f, 0xc) & 0xc0, 0xc0);
    }
    assert_in_range(f.rises[8], 995, 1001);
    rtc_reset(r);
    assert_int_equal(cmos(&f, 0xb), 0x02);
    rtc_free(r);
    fixture_free(&f);
}

static void cmos_memory_and_nmi(void **state)
{
    struct fixture f;
    struct error err;
    fixture_init(&f);
    struct rtc *r = rtc_new(&f.board, 0, &err);
    rtc_set_memory(r, 0xb0000000, 0x50000000);
    assert_int_equal(cmos(&f, 0x15) | cmos(&f, 0x16) << 8, 640);
    assert_int_equal(cmos(&f, 0x17) | cmos(&f, 0x18) << 8, 0xffff);
    assert_int_equal(cmos(&f, 0x34) | cmos(&f, 0x35) << 8, (0xb0000000 - 0x1000000) >> 16);
    assert_int_equal(cmos(&f, 0x5b) | cmos(&f, 0x5c) << 8, 0x5000);
    outb(&f, 0x70, 0x8f);
    assert_true(rtc_nmi_masked(r));
    outb(&f, 0x71, 0x0a);
    assert_int_equal(rtc_cmos(r, 0x0f), 0x0a);
    outb(&f, 0x70, 0x0f);
    assert_false(rtc_nmi_masked(r));
    rtc_free(r);
    fixture_free(&f);
}

static void acpi_sleep_and_events(void **state)
{
    struct fixture f;
    struct error err;
    unsigned suspends = 0;
    fixture_init(&f);
    struct acpi_pm *pm = acpi_pm_new(&f.board, true, &err);
    outb(&f, ACPI_SMI_CMD, ACPI_ENABLE);
    assert_int_equal(inw(&f, ACPI_PM1_CNT), 1);
    acpi_pm_event(pm, PM1_PWRBTN);
    assert_false(f.line[9]);
    outw(&f, ACPI_PM1_EVT + 2, 0x8100 | 0x400); /* WAK_EN does not exist */
    assert_int_equal(inw(&f, ACPI_PM1_EVT + 2), 0x500);
    assert_true(f.line[9]);
    assert_int_equal(inw(&f, ACPI_PM1_EVT), 0x100);
    outw(&f, ACPI_PM1_EVT, 0x100);
    assert_false(f.line[9]);
    acpi_pm_gpe(pm, 3);
    outb(&f, ACPI_GPE0 + 2, 0x08);
    assert_true(f.line[9]);
    outb(&f, ACPI_GPE0, 0x08);
    assert_false(f.line[9]);
    outw(&f, ACPI_PM1_CNT, ACPI_SLP_TYP_S3 << 10 | 0x2001); /* nobody does S3: awake at once */
    assert_int_equal(inw(&f, ACPI_PM1_EVT), 0x8000);
    acpi_pm_on_s3(pm, count, &suspends);
    outw(&f, ACPI_PM1_CNT, ACPI_SLP_TYP_S3 << 10 | 0x2001);
    assert_int_equal(suspends, 1);
    assert_false(acpi_pm_wants_wake(pm));
    outw(&f, ACPI_PM1_EVT + 2, 0);
    acpi_pm_event(pm, PM1_RTC); /* not enabled: no reason to wake */
    assert_false(acpi_pm_wants_wake(pm));
    outw(&f, ACPI_PM1_EVT + 2, BIT(PM1_RTC));
    assert_true(acpi_pm_wants_wake(pm));
    outw(&f, ACPI_PM1_EVT, BIT(PM1_RTC));
    assert_false(acpi_pm_wants_wake(pm));
    assert_int_equal(f.power_offs, 0);
    outw(&f, ACPI_PM1_CNT, ACPI_SLP_TYP_S5 << 10 | 0x2001);
    assert_int_equal(f.power_offs, 1);
    assert_int_equal(inw(&f, ACPI_PM1_CNT) & 0x2000, 0); /* SLP_EN reads as zero */
    acpi_pm_free(pm);
    fixture_free(&f);
}

static void pm_timer(void **state)
{
    for (unsigned wide = 0; wide < 2; wide++) {
        struct fixture f;
        struct error err;
        fixture_init(&f);
        struct acpi_pm *pm = acpi_pm_new(&f.board, wide, &err);
        assert_int_equal(inl(&f, ACPI_PM_TMR), 0);
        pass(&f, NSEC_PER_SEC);
        assert_int_equal(inl(&f, ACPI_PM_TMR), 3579545);
        acpi_pm_set_acpi_mode(pm, true);
        outw(&f, ACPI_PM1_EVT + 2, 1);
        u64 half = (wide ? 1ull << 31 : 1ull << 23) * NSEC_PER_SEC / ACPI_PM_TMR_HZ;
        pass(&f, half - NSEC_PER_SEC - 1000);
        assert_false(f.line[9]);
        pass(&f, 2000);
        assert_true(f.line[9]);
        outw(&f, ACPI_PM1_EVT, 1);
        assert_false(f.line[9]);
        pass(&f, half);
        assert_true(f.line[9]);
        assert_true(inl(&f, ACPI_PM_TMR) < 20);
        acpi_pm_free(pm);
        fixture_free(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pit_rate_generator),
        cmocka_unit_test(pit_one_shots),
        cmocka_unit_test(pit_gate_and_port61),
        cmocka_unit_test(pit_square_wave_bcd_and_latches),
        cmocka_unit_test(hpet_registers_and_timers),
        cmocka_unit_test(rtc_time),
        cmocka_unit_test(rtc_alarm_update_periodic),
        cmocka_unit_test(cmos_memory_and_nmi),
        cmocka_unit_test(acpi_sleep_and_events),
        cmocka_unit_test(pm_timer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
