/*
 * Motorola MC146818A Real-Time Clock plus RAM (data sheet), as the PC/AT wires it. The time registers
 * are computed when they are read; a one-second timer sets the update flag and compares the alarm.
 */
#include "devices/rtc.h"

#include <stdlib.h>
#include <time.h>

enum {
    SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, DAY_OF_WEEK, DAY, MONTH, YEAR,
    REG_A, REG_B, REG_C, REG_D, CENTURY = 0x32,
};

enum { A_UIP = 0x80, A_DV = 0x70, A_RS = 0x0f };
enum { B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_SQWE = 0x08, B_DM = 0x04, B_24 = 0x02 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10 };

/* Data sheet, "Update Cycle": UIP rises 244 us before the update begins. */
#define UIP_NS 244000ull
#define HZ     32768ull

struct rtc {
    struct board *board;
    struct irq_line irq;
    u8 cmos[128];
    u8 index;      /* last write to port 0x70 */
    s64 offset_ns; /* wall clock minus machine clock */
    bool stopped;  /* SET or a divider reset holds the time */
    s64 held;      /* the time while stopped, seconds */
    s64 last_second; /* newest second whose update was processed */
    struct timer second, periodic;
    u64 periodic_base; /* the machine clock when PF was last accounted for */
    bool irq_on;
    void (*alarm)(void *opaque);
    void *alarm_opaque;
};

static s64 wall_ns(const struct rtc *r) { return (s64)clock_now(r->board->clock) + r->offset_ns; }

static s64 floor_div(s64 a, s64 b) { return a / b - (a % b < 0); }

static s64 wall_seconds(const struct rtc *r)
{
    return r->stopped ? r->held : floor_div(wall_ns(r), (s64)NSEC_PER_SEC);
}

static u8 encode(const struct rtc *r, unsigned v)
{
    return (u8)(r->cmos[REG_B] & B_DM ? v : (v / 10) << 4 | v % 10);
}

static unsigned decode(const struct rtc *r, u8 v) { return r->cmos[REG_B] & B_DM ? v : (v >> 4) * 10u + (v & 15); }

static u8 encode_hour(const struct rtc *r, unsigned hour)
{
    if (r->cmos[REG_B] & B_24)
        return encode(r, hour);
    return encode(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static unsigned decode_hour(const struct rtc *r, u8 v)
{
    if (r->cmos[REG_B] & B_24)
        return decode(r, v);
    return decode(r, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

/* Copies the wall clock into the time registers. */
static void time_to_registers(struct rtc *r)
{
    time_t t = (time_t)wall_seconds(r);
    struct tm tm;
    if (!gmtime_r(&t, &tm))
        return;
    unsigned year = (unsigned)(tm.tm_year + 1900);
    r->cmos[SECONDS] = encode(r, (unsigned)tm.tm_sec);
    r->cmos[MINUTES] = encode(r, (unsigned)tm.tm_min);
    r->cmos[HOURS] = encode_hour(r, (unsigned)tm.tm_hour);
    r->cmos[DAY_OF_WEEK] = encode(r, (unsigned)tm.tm_wday + 1);
    r->cmos[DAY] = encode(r, (unsigned)tm.tm_mday);
    r->cmos[MONTH] = encode(r, (unsigned)tm.tm_mon + 1);
    r->cmos[YEAR] = encode(r, year % 100);
    r->cmos[CENTURY] = encode(r, year / 100 % 100);
}

/* Keeps seconds times 10^9 within 64 bits whatever a guest writes: years 1688 to 2251. */
static s64 clamp_time(s64 t)
{
    const s64 limit = 8900000000ll;
    return t > limit ? limit : t < -limit ? -limit : t;
}

/* The wall clock that the registers spell; nonsense values normalise as a calendar would. */
static s64 registers_to_time(const struct rtc *r)
{
    struct tm tm = {
        .tm_sec = (int)decode(r, r->cmos[SECONDS]),
        .tm_min = (int)decode(r, r->cmos[MINUTES]),
        .tm_hour = (int)decode_hour(r, r->cmos[HOURS]),
        .tm_mday = (int)decode(r, r->cmos[DAY]),
        .tm_mon = (int)decode(r, r->cmos[MONTH]) - 1,
        .tm_year = (int)(decode(r, r->cmos[YEAR]) + decode(r, r->cmos[CENTURY]) * 100) - 1900,
    };
    return clamp_time(timegm(&tm));
}

static void update_irq(struct rtc *r)
{
    u8 c = r->cmos[REG_C] & (C_PF | C_AF | C_UF);
    bool level = c & r->cmos[REG_B];
    r->cmos[REG_C] = c | (level ? C_IRQF : 0);
    if (r->irq_on)
        irq_set(&r->irq, level);
}

static void flag(struct rtc *r, u8 bit)
{
    r->cmos[REG_C] |= bit;
    update_irq(r);
}

/* ---- once a second ---- */

static bool alarm_matches(const struct rtc *r, s64 t)
{
    s64 s = ((t % 86400) + 86400) % 86400;
    u8 sec = r->cmos[SECONDS_ALARM], min = r->cmos[MINUTES_ALARM], hour = r->cmos[HOURS_ALARM];
    /* Bits 7:6 both set: "don't care". */
    return (sec >= 0xc0 || sec == encode(r, (unsigned)(s % 60))) &&
           (min >= 0xc0 || min == encode(r, (unsigned)(s / 60 % 60))) &&
           (hour >= 0xc0 || hour == encode_hour(r, (unsigned)(s / 3600)));
}

static void arm_second(struct rtc *r)
{
    if (r->stopped) {
        timer_cancel(&r->second);
        return;
    }
    s64 next_ns = (r->last_second + 1) * (s64)NSEC_PER_SEC - r->offset_ns;
    timer_arm(&r->second, next_ns > 0 ? (u64)next_ns : 0);
}

/* How far the present second has come, ns. */
static s64 in_second(const struct rtc *r)
{
    s64 ns = wall_ns(r);
    return ns - floor_div(ns, (s64)NSEC_PER_SEC) * (s64)NSEC_PER_SEC;
}

/* From now on the time is @t seconds and @phase ns. */
static void set_time(struct rtc *r, s64 t, s64 phase)
{
    r->offset_ns = t * (s64)NSEC_PER_SEC + phase - (s64)clock_now(r->board->clock);
    r->last_second = t;
    arm_second(r);
}

/* Accounts for the updates since the last look, so that a late timer misses no alarm. */
static void catch_up(struct rtc *r)
{
    s64 now = wall_seconds(r);
    if (r->stopped || now <= r->last_second)
        return;
    s64 from = now - r->last_second > 86400 ? now - 86400 : r->last_second;
    bool alarm = false;
    for (s64 t = from + 1; t <= now && !alarm; t++)
        alarm = alarm_matches(r, t);
    r->last_second = now;
    r->cmos[REG_C] |= C_UF | (alarm ? C_AF : 0);
    update_irq(r);
    if (alarm && (r->cmos[REG_B] & B_AIE) && r->alarm)
        r->alarm(r->alarm_opaque);
    arm_second(r);
}

static void second_fire(void *opaque)
{
    struct rtc *r = opaque;
    catch_up(r);
    arm_second(r);
}

/* ---- the periodic interrupt ---- */

/* Data sheet, table "Periodic Interrupt Rate": 0 is off; 1 and 2 are the slow 8 and 9. */
static u64 period_ns(const struct rtc *r)
{
    unsigned rs = r->cmos[REG_A] & A_RS;
    if (!rs || (r->cmos[REG_A] & A_DV) != 0x20)
        return 0;
    if (rs < 3)
        rs += 7;
    return (1ull << (rs - 1)) * NSEC_PER_SEC / HZ;
}

/* Sets PF when a period has ended; works without a host timer while nobody wants the interrupt. */
static void account_periodic(struct rtc *r)
{
    u64 period = period_ns(r), now = clock_now(r->board->clock);
    if (!period) {
        r->periodic_base = now;
        return;
    }
    u64 n = (now - r->periodic_base) / period;
    if (n) {
        r->periodic_base += n * period;
        flag(r, C_PF);
    }
}

static void arm_periodic(struct rtc *r)
{
    u64 period = period_ns(r);
    if (period && (r->cmos[REG_B] & B_PIE))
        timer_arm(&r->periodic, r->periodic_base + period);
    else
        timer_cancel(&r->periodic);
}

static void periodic_fire(void *opaque)
{
    struct rtc *r = opaque;
    account_periodic(r);
    arm_periodic(r);
}

/* ---- registers ---- */

/* Stops or starts the time as REG_A's divider and REG_B.SET say. */
static void set_running(struct rtc *r, bool divider_was_reset)
{
    /* Divider bits 11x hold the chain in reset. */
    bool stop = (r->cmos[REG_B] & B_SET) || (r->cmos[REG_A] & 0x60) == 0x60;
    if (stop == r->stopped)
        return;
    if (stop) {
        time_to_registers(r);
        r->held = wall_seconds(r);
        r->stopped = true;
        timer_cancel(&r->second);
        return;
    }
    /* "Divider Control": the first update comes 500 ms after the reset is released. After SET alone
     * the divider has run on, so the phase of the second stays. */
    s64 t = registers_to_time(r);
    s64 phase = divider_was_reset ? (s64)NSEC_PER_SEC / 2 : in_second(r);
    r->stopped = false;
    set_time(r, t, phase);
}

static bool is_time(u8 i) { return i <= YEAR && i != SECONDS_ALARM && i != MINUTES_ALARM && i != HOURS_ALARM; }

static u8 read_register(struct rtc *r, u8 i)
{
    catch_up(r);
    if ((is_time(i) || i == CENTURY) && !r->stopped)
        time_to_registers(r);
    switch (i) {
    case REG_A: {
        bool uip = !r->stopped && in_second(r) >= (s64)(NSEC_PER_SEC - UIP_NS);
        return (r->cmos[REG_A] & 0x7f) | (uip ? A_UIP : 0);
    }
    case REG_C: {
        account_periodic(r);
        u8 v = r->cmos[REG_C];
        r->cmos[REG_C] = 0;
        update_irq(r);
        arm_periodic(r);
        return v;
    }
    case REG_D:
        return 0x80; /* VRT: the battery is good */
    }
    return r->cmos[i];
}

static void write_register(struct rtc *r, u8 i, u8 v)
{
    catch_up(r);
    switch (i) {
    case REG_A: {
        bool was_reset = (r->cmos[REG_A] & 0x60) == 0x60;
        account_periodic(r);
        r->cmos[REG_A] = v & 0x7f;
        r->periodic_base = clock_now(r->board->clock);
        set_running(r, was_reset);
        arm_periodic(r);
        return;
    }
    case REG_B: {
        account_periodic(r);
        /* The data mode and 24/12 bits change how the registers are spelt, not the time: rewrite them
         * unless the guest holds them to set them itself. */
        u8 b = v & B_SET ? v & ~B_UIE : v; /* "SET": also clears UIE */
        r->cmos[REG_B] = r->stopped ? b : (b & ~B_SET) | (r->cmos[REG_B] & B_SET);
        if (!r->stopped)
            time_to_registers(r);
        r->cmos[REG_B] = b;
        set_running(r, false);
        update_irq(r);
        arm_periodic(r);
        return;
    }
    case REG_C:
    case REG_D:
        return; /* read-only */
    }
    if (!is_time(i) && i != CENTURY) {
        r->cmos[i] = v;
        return;
    }
    if (!r->stopped)
        time_to_registers(r);
    r->cmos[i] = v;
    if (r->stopped) {
        r->held = registers_to_time(r);
    } else {
        set_time(r, registers_to_time(r), in_second(r));
    }
}

static u64 port_read(void *opaque, u64 off, unsigned size)
{
    struct rtc *r = opaque;
    return off == 0 ? 0xff : read_register(r, r->index & 0x7f);
}

static void port_write(void *opaque, u64 off, u64 v, unsigned size)
{
    struct rtc *r = opaque;
    if (off == 0)
        r->index = (u8)v;
    else
        write_register(r, r->index & 0x7f, (u8)v);
}

static const struct io_ops ops = {port_read, port_write};

/* ---- for the machine ---- */

u8 rtc_cmos(const struct rtc *r, u8 index) { return r->cmos[index & 0x7f]; }

void rtc_set_cmos(struct rtc *r, u8 index, u8 value)
{
    index &= 0x7f;
    if (index > REG_D && index != CENTURY)
        r->cmos[index] = value;
}

void rtc_set_memory(struct rtc *r, u64 below_4g, u64 above_4g)
{
    const u64 mib = 1 << 20;
    u64 extended = below_4g > mib ? (below_4g - mib) >> 10 : 0; /* KiB above 1 MiB */
    u64 above_16m = below_4g > 16 * mib ? (below_4g - 16 * mib) >> 16 : 0; /* 64 KiB units */
    u64 high = above_4g >> 16;
    if (extended > 0xffff)
        extended = 0xffff;
    if (above_16m > 0xffff)
        above_16m = 0xffff;
    if (high > 0xffffff)
        high = 0xffffff;
    store16(&r->cmos[0x15], 640);
    store16(&r->cmos[0x17], (u16)extended);
    store16(&r->cmos[0x30], (u16)extended);
    store16(&r->cmos[0x34], (u16)above_16m);
    r->cmos[0x5b] = (u8)high;
    store16(&r->cmos[0x5c], (u16)(high >> 8));
}

bool rtc_nmi_masked(const struct rtc *r) { return r->index & 0x80; }

void rtc_irq_enable(struct rtc *r, bool on)
{
    if (!on)
        irq_set(&r->irq, false);
    r->irq_on = on;
    if (on)
        update_irq(r);
}

void rtc_on_alarm(struct rtc *r, void (*alarm)(void *opaque), void *opaque)
{
    r->alarm = alarm;
    r->alarm_opaque = opaque;
}

void rtc_reset(struct rtc *r)
{
    /* Data sheet, "RESET": PIE, AIE, UIE, SQWE and the flags are cleared; all else is kept. */
    catch_up(r);
    r->cmos[REG_B] &= ~(B_PIE | B_AIE | B_UIE | B_SQWE);
    r->cmos[REG_C] = 0;
    r->index = 0;
    r->irq_on = true;
    update_irq(r);
    arm_periodic(r);
}

struct rtc *rtc_new(struct board *b, s64 epoch, struct error *err)
{
    struct rtc *r = device_alloc(sizeof(*r));
    r->board = b;
    r->irq = b->irq(b, 8);
    r->irq_on = true;
    r->cmos[REG_A] = 0x26; /* 32.768 kHz time base, 1024 Hz */
    r->cmos[REG_B] = B_24;
    timer_init(&r->second, b->clock, second_fire, r);
    timer_init(&r->periodic, b->clock, periodic_fire, r);
    if (pio_bus_add8(b->pio, 0x70, 2, &ops, r, "RTC", err)) {
        free(r);
        return NULL;
    }
    epoch = clamp_time(epoch);
    r->offset_ns = epoch * (s64)NSEC_PER_SEC;
    r->last_second = wall_seconds(r);
    r->periodic_base = clock_now(b->clock);
    time_to_registers(r);
    arm_second(r);
    return r;
}

void rtc_free(struct rtc *r)
{
    if (!r)
        return;
    timer_cancel(&r->second);
    timer_cancel(&r->periodic);
    pio_bus_remove(r->board->pio, 0x70);
    free(r);
}
