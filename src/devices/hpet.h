/* High Precision Event Timers at 0xFED00000: 64-bit counter at 100 MHz, three timers. */
#pragma once
#include "devices/bus.h"

#define HPET_BASE      0xfed00000u
#define HPET_PERIOD_FS 10000000u

struct hpet;

/* @legacy is told when legacy replacement starts and ends: GSI 0 and 8 are then the HPET's and the
 * 8254 and the RTC must let go of them. It may be NULL. */
struct hpet *hpet_new(struct board *b, void (*legacy)(void *opaque, bool on), void *opaque, struct error *err);
void hpet_reset(struct hpet *h);
void hpet_free(struct hpet *h);
