/* MC146818 real-time clock and CMOS memory at ports 0x70-0x71. */
#pragma once
#include "devices/bus.h"

struct rtc;

/* @epoch: seconds since 1970 (the guest's wall clock) at the machine clock's time 0. Drives GSI 8. */
struct rtc *rtc_new(struct board *b, s64 epoch, struct error *err);
/* RESET#: interrupts off; time and CMOS stay, as the battery keeps them. */
void rtc_reset(struct rtc *r);
void rtc_free(struct rtc *r);
/* What firmware leaves in CMOS about memory, bytes below and above 4 GiB. */
void rtc_set_memory(struct rtc *r, u64 below_4g, u64 above_4g);
u8 rtc_cmos(const struct rtc *r, u8 index);
void rtc_set_cmos(struct rtc *r, u8 index, u8 value);
/* Port 0x70 bit 7. */
bool rtc_nmi_masked(const struct rtc *r);
/* The HPET's legacy replacement takes over GSI 8 while @on is false. */
void rtc_irq_enable(struct rtc *r, bool on);
/* Called when an enabled alarm comes: the ACPI RTC wake event. */
void rtc_on_alarm(struct rtc *r, void (*alarm)(void *opaque), void *opaque);
