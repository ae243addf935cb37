/* What lapic.c (state, delivery, timer) and lapic_regs.c (registers and MSRs) share; nobody else includes it. */
#pragma once
#include "devices/lapic.h"

#include <pthread.h>

/* Register numbers: xAPIC offset / 16 = x2APIC MSR - 0x800. */
enum {
    R_ID = 0x02, R_LVR = 0x03, R_TPR = 0x08, R_APR = 0x09, R_PPR = 0x0a, R_EOI = 0x0b, R_RRD = 0x0c,
    R_LDR = 0x0d, R_DFR = 0x0e, R_SVR = 0x0f, R_ISR = 0x10, R_TMR = 0x18, R_IRR = 0x20, R_ESR = 0x28,
    R_CMCI = 0x2f, R_ICR = 0x30, R_ICR2 = 0x31, R_TIMER = 0x32, R_THERMAL = 0x33, R_PERF = 0x34,
    R_LINT0 = 0x35, R_LINT1 = 0x36, R_ERROR = 0x37, R_TMICT = 0x38, R_TMCCT = 0x39, R_TDCR = 0x3e,
    R_SELF_IPI = 0x3f,
};

enum { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_CMCI, LVT_COUNT };

#define LVT_REMOTE_IRR BIT(14)
#define LVT_LEVEL      BIT(15)
#define LVT_MASKED     BIT(16)
#define LVT_PERIODIC   BIT(17)
#define LVT_DEADLINE   BIT(18)
#define LVT_STATUS     BIT(12)

#define SVR_ENABLE       BIT(8)
#define SVR_FOCUS        BIT(9)
#define SVR_EOI_SUPPRESS BIT(12)

#define BASE_BSP  BIT64(8)
#define BASE_EXTD BIT64(10)
#define BASE_EN   BIT64(11)

#define ESR_SEND_ILLEGAL    BIT(5)
#define ESR_RECEIVE_ILLEGAL BIT(6)
#define ESR_ILLEGAL_REG     BIT(7)

#define MSR_APIC_BASE    0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC       0x800

struct lapic {
    pthread_mutex_t lock;
    struct apic_bus *bus;
    struct lapic_config cfg;
    struct clock *clock;
    u64 tsc_hz;
    u64 base; /* IA32_APIC_BASE */
    u32 id;   /* xAPIC ID, 8 bits */
    u32 tpr, ldr, dfr, svr, esr, esr_pending;
    u64 icr;
    u32 lvt[LVT_COUNT];
    u32 irr[8], isr[8], tmr[8];
    u32 tmict, tdcr;
    struct timer timer;
    bool counting;    /* one-shot or periodic, between a write of TMICT and its end */
    u64 count_start;  /* clock time of the last (re)load */
    u64 tsc_deadline; /* IA32_TSC_DEADLINE, 0: disarmed */
    bool lint[2];
    bool extint_msg; /* an ExtINT message arrived and was not acknowledged yet */
    bool intr;       /* what pins.intr was told last */
};

static inline void bit_set(u32 *map, u8 v) { map[v >> 5] |= BIT(v & 31); }
static inline void bit_clear(u32 *map, u8 v) { map[v >> 5] &= ~BIT(v & 31); }
static inline bool bit_test(const u32 *map, u8 v) { return map[v >> 5] & BIT(v & 31); }

/* The highest bit set, or -1. */
static inline int bit_highest(const u32 *map)
{
    for (int i = 7; i >= 0; i--)
        if (map[i])
            return i * 32 + 31 - __builtin_clz(map[i]);
    return -1;
}

static inline bool hw_enabled(const struct lapic *l) { return l->base & BASE_EN; }
static inline bool x2apic(const struct lapic *l) { return l->base & BASE_EXTD; }
static inline bool sw_enabled(const struct lapic *l) { return l->svr & SVR_ENABLE; }
static inline u32 lvt_mode(u32 lvt) { return (lvt >> 8) & 7; }
static inline u32 x2apic_ldr(const struct lapic *l) { return (l->cfg.id >> 4) << 16 | BIT(l->cfg.id & 15); }

/* All below: with the lock held. */
void lapic_update(struct lapic *l); /* tells the processor when its interrupt wire changed */
u8 lapic_ppr(const struct lapic *l);
bool lapic_accept_fixed(struct lapic *l, u8 vector, bool level);
void lapic_set_error(struct lapic *l, u32 bit);
void lapic_local_deliver(struct lapic *l, unsigned lvt);
void lapic_reset_registers(struct lapic *l);
u32 lapic_current_count(const struct lapic *l);
void lapic_count_expire(struct lapic *l);
void lapic_set_count(struct lapic *l, u32 count);
void lapic_set_divide(struct lapic *l, u32 tdcr);
void lapic_timer_update(struct lapic *l);
void lapic_timer_stop(struct lapic *l);

/* Without it: parts of lapic_intc_ops. */
u64 lapic_mmio_read(void *intc, u32 offset, unsigned size);
void lapic_mmio_write(void *intc, u32 offset, u64 value, unsigned size);
int lapic_rdmsr(void *intc, u32 msr, u64 *value);
int lapic_wrmsr(void *intc, u32 msr, u64 value);
