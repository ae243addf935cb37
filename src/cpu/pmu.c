/*
 * Performance monitoring. Manuals: Intel SDM 325462, vol. 3 "Performance Monitoring": "Architectural
 * Performance Monitoring Version 1" to "Version 5", "Full-Width Writes to Performance Counter Registers";
 * AMD APM 24593 vol. 2 "Performance Monitoring Counters".
 *
 * A counter is a number as of the latest moment at which all were brought up to date (advance()), and what it
 * has counted since. Instructions come from the processor's own count, cycles from the clock. What is to happen at
 * an overflow is foreseen: an instruction count as an end of the slice (v->pmu_alarm), cycles as a timer; both
 * end in REQ_PMU, and in pmu_due() at the boundary in front of the next instruction.
 *
 * An instruction that enables a counter is counted by it, one that disables it is not: the register changes
 * before the instruction retires.
 */
#include "cpu/pmu.h"
#include "base/clock.h"
#include "base/log.h"
#include "cpu/cpu.h"
#include "cpu/models.h"
#include "cpu/msr.h"
#include "devices/irq.h"

#include <stdlib.h>

#define WIDTH       48u
#define COUNT_MASK  BITS64(WIDTH - 1, 0)
#define INTEL_GP    8u
#define INTEL_FIXED 3u
#define FIXED_BASE  32u /* bit of the first fixed counter in the global registers */
#define AMD_LEGACY  4u
#define AMD_CORE    6u

#define MSR_PMC0            0xc1u
#define MSR_PERFEVTSEL0     0x186u
#define MSR_FIXED_CTR0      0x309u
#define MSR_PERF_CAPABILITIES 0x345u
#define MSR_FIXED_CTR_CTRL  0x38du
#define MSR_GLOBAL_STATUS   0x38eu
#define MSR_GLOBAL_CTRL     0x38fu
#define MSR_STATUS_RESET    0x390u
#define MSR_STATUS_SET      0x391u
#define MSR_GLOBAL_INUSE    0x392u
#define MSR_A_PMC0          0x4c1u
#define MSR_AMD_EVT_SEL0    0xc0010000u
#define MSR_AMD_CTR0        0xc0010004u
#define MSR_AMD_CORE0       0xc0010200u /* CTL and CTR in turn */

/* IA32_PERFEVTSELx; AMD's PERF_CTL has the same, and two more */
#define SEL_USR      BIT64(16)
#define SEL_OS       BIT64(17)
#define SEL_EDGE     BIT64(18)
#define SEL_INT      BIT64(20)
#define SEL_ANY      BIT64(21)
#define SEL_EN       BIT64(22)
#define SEL_INV      BIT64(23)
#define SEL_CMASK(s) ((s) >> 24 & 0xff)
#define SEL_GUEST    BIT64(40)
#define SEL_HOST     BIT64(41)
#define AMD_SEL_BITS (BITS64(18, 0) | SEL_INT | BITS64(35, 22) | SEL_GUEST | SEL_HOST)

/* IA32_FIXED_CTR_CTRL, per counter */
#define FIX_OS  BIT(0)
#define FIX_USR BIT(1)
#define FIX_PMI BIT(3)

#define STATUS_LBR_FRZ BIT64(58)
#define STATUS_CTR_FRZ BIT64(59)
#define STATUS_UNCORE  BIT64(61)
#define STATUS_BUFFER  BIT64(62)
#define STATUS_CHANGED BIT64(63)

enum pmu_event { NOTHING, INSTRUCTIONS, CYCLES };

/* When a counter counts: one bit for each pair of privilege and mode. */
enum { IN_OS = BIT(0), IN_USR = BIT(1), IN_GUEST_OS = BIT(2), IN_GUEST_USR = BIT(3) };
#define ALL_OS  (IN_OS | IN_GUEST_OS)
#define ALL_USR (IN_USR | IN_GUEST_USR)
#define HOST    (IN_OS | IN_USR)
#define GUEST   (IN_GUEST_OS | IN_GUEST_USR)

struct counter {
    u64 value;  /* as of the latest advance() */
    u8 event;   /* enum pmu_event: what it counts while it is enabled by everything that can */
    u8 domains; /* when */
    bool pmi;
};

struct pmu {
    unsigned gp, fixed; /* how many; counter[] has the general ones first */
    struct counter counter[INTEL_GP + INTEL_FIXED];
    u64 select[INTEL_GP], fixed_ctrl, global_ctrl, status;
    u32 counting; /* bits: enabled counters whose event exists */
    bool cycles;  /* some of them count cycles */
    bool halted;  /* no cycle passes until the processor runs again */
    u64 retired_at, cycle_at; /* of the latest advance() */
    struct timer timer;
};

static bool intel(const struct vcpu *v) { return v->model->vendor == VENDOR_INTEL; }

/* ---- what there is to count ---- */

/* A repeated string instruction that was interrupted has retired for the emulator, not for a counter. */
static u64 retired(const struct vcpu *v) { return cpu_retired(v) - v->unfinished; }

/* Cycles of the core are those of the TSC: it always runs at its nominal frequency. */
static u64 cycle(const struct vcpu *v) { return (u64)((u128)clock_now(v->clock) * v->tsc_hz / NSEC_PER_SEC); }

static u64 global_bit(const struct pmu *p, unsigned n) { return n < p->gp ? BIT64(n) : BIT64(FIXED_BASE + n - p->gp); }

static u64 global_ctrl_bits(const struct pmu *p)
{
    return ((1ull << p->gp) - 1) | ((1ull << p->fixed) - 1) << FIXED_BASE;
}

static unsigned domain(const struct vcpu *v) { return (v->cpl ? IN_USR : IN_OS) << (v->guest_mode ? 2 : 0); }

/* ---- counting ---- */

static void configure(struct vcpu *v);

/* At overflows: "Freeze_PerfMon_On_PMI", "Freeze_LBRs_On_PMI" (version 4's streamlined ones), and the interrupt. */
static void interrupt(struct vcpu *v)
{
    struct pmu *p = v->pmu;
    if (intel(v) && v->debugctl & DEBUGCTL_FREEZE_PERFMON) {
        p->status |= STATUS_CTR_FRZ;
        configure(v);
    }
    if (intel(v) && v->debugctl & DEBUGCTL_FREEZE_LBRS)
        p->status |= STATUS_LBR_FRZ;
    log_at(pmu, "cpu%u: overflow, status %llx", v->index, (unsigned long long)p->status);
    if (v->intc_ops && v->intc_ops->pmi)
        v->intc_ops->pmi(v->intc);
}

/* Brings all counters up to date. */
static void advance(struct vcpu *v)
{
    struct pmu *p = v->pmu;
    u64 past[] = {[INSTRUCTIONS] = 0, [CYCLES] = 0};
    u64 insns = retired(v), cycles = p->cycles && !p->halted ? cycle(v) : p->cycle_at;
    unsigned now = domain(v);
    bool pmi = false;
    /* Neither goes back but for a moment: in the body of an instruction that leaves unfinished, between two slices. */
    if (insns > p->retired_at) {
        past[INSTRUCTIONS] = insns - p->retired_at;
        p->retired_at = insns;
    }
    if (cycles > p->cycle_at) {
        past[CYCLES] = cycles - p->cycle_at;
        p->cycle_at = cycles;
    }
    for (u32 left = p->counting; left; left &= left - 1) {
        unsigned n = (unsigned)__builtin_ctz(left);
        struct counter *c = &p->counter[n];
        if (!(c->domains & now))
            continue;
        c->value += past[c->event];
        if (c->value <= COUNT_MASK)
            continue;
        c->value &= COUNT_MASK;
        p->status |= global_bit(p, n);
        pmi |= c->pmi;
    }
    if (pmi)
        interrupt(v);
}

/* When the next interrupt is due, as things are. */
static void rearm(struct vcpu *v)
{
    struct pmu *p = v->pmu;
    unsigned now = domain(v);
    u64 left[] = {[INSTRUCTIONS] = UINT64_MAX, [CYCLES] = UINT64_MAX};
    for (u32 bits = p->counting; bits; bits &= bits - 1) {
        const struct counter *c = &p->counter[__builtin_ctz(bits)];
        u64 n = COUNT_MASK + 1 - c->value;
        if (c->pmi && c->domains & now && n < left[c->event])
            left[c->event] = n;
    }
    v->pmu_alarm = UINT64_MAX;
    if (left[INSTRUCTIONS] != UINT64_MAX) {
        v->pmu_alarm = cpu_retired(v) + left[INSTRUCTIONS];
        cpu_end_slice(v, left[INSTRUCTIONS]);
    }
    if (left[CYCLES] != UINT64_MAX && !p->halted) {
        u64 hz = v->tsc_hz;
        timer_arm(&p->timer, (u64)(((u128)(p->cycle_at + left[CYCLES]) * NSEC_PER_SEC + hz - 1) / hz));
    } else {
        timer_cancel(&p->timer);
    }
}

static void timer_fire(void *opaque) { vcpu_request(opaque, REQ_PMU); }

/*
 * What CMASK, INV and EDGE leave of an event: cycles in which it happens so often, or less often. How
 * often that is in one cycle is the implementation's business; here it is once in each cycle that the
 * processor is not halted, so that a threshold of 1 is always reached, a higher one never, and nothing ever rises.
 */
static u8 selected(u64 select, u8 event)
{
    u64 threshold = SEL_CMASK(select);
    if (select & SEL_EDGE)
        return NOTHING;
    if (!threshold)
        return event;
    return (threshold == 1) != !!(select & SEL_INV) ? CYCLES : NOTHING;
}

static u8 event_of(const struct vcpu *v, u64 select)
{
    if (intel(v))
        switch (select & 0xffff) {
        case 0x003c: case 0x013c: return selected(select, CYCLES); /* of the core; of the reference clock */
        case 0x00c0: return selected(select, INSTRUCTIONS);
        default: return NOTHING;
        }
    if (select & BITS64(35, 32))
        return NOTHING;
    switch (select & 0xff) {
    case 0x76: return selected(select, CYCLES); /* Cycles not in Halt */
    case 0xc0: return selected(select, INSTRUCTIONS);
    default: return NOTHING;
    }
}

/* AMD: "Host Only" and "Guest Only" mean something while SVM is enabled; both or none of them mean everywhere. */
static u8 modes_of(const struct vcpu *v, u64 select)
{
    bool host = select & SEL_HOST, guest = select & SEL_GUEST;
    if (intel(v) || host == guest || !(v->efer & EFER_SVME))
        return HOST | GUEST;
    return host ? HOST : GUEST;
}

/* After advance(), when registers have changed: what counts now. */
static void configure(struct vcpu *v)
{
    struct pmu *p = v->pmu;
    bool had_cycles = p->cycles;
    p->counting = 0;
    p->cycles = false;
    v->pmu_split = false;
    for (unsigned n = 0; n < p->gp + p->fixed; n++) {
        struct counter *c = &p->counter[n];
        bool enabled;
        if (n < p->gp) {
            u64 s = p->select[n];
            enabled = s & SEL_EN;
            c->event = event_of(v, s);
            c->domains = (u8)(((s & SEL_OS ? ALL_OS : 0) | (s & SEL_USR ? ALL_USR : 0)) & modes_of(v, s));
            c->pmi = s & SEL_INT;
        } else {
            u32 ctl = (u32)(p->fixed_ctrl >> (n - p->gp) * 4) & 0xf;
            enabled = true;
            c->event = n == p->gp ? INSTRUCTIONS : CYCLES;
            c->domains = (u8)((ctl & FIX_OS ? ALL_OS : 0) | (ctl & FIX_USR ? ALL_USR : 0));
            c->pmi = ctl & FIX_PMI;
        }
        if (!enabled || !c->domains || c->event == NOTHING)
            continue;
        if (intel(v) && (!(p->global_ctrl & global_bit(p, n)) || p->status & STATUS_CTR_FRZ))
            continue;
        p->counting |= BIT(n);
        p->cycles |= c->event == CYCLES;
        v->pmu_split |= c->domains != (HOST | GUEST);
    }
    v->pmu_on = p->counting;
    p->retired_at = retired(v);
    if (p->cycles && !had_cycles) {
        p->halted = false;
        p->cycle_at = cycle(v);
    }
    rearm(v);
}

static void changed(struct vcpu *v, u64 *reg, u64 value)
{
    advance(v);
    *reg = value;
    configure(v);
}

void pmu_due(struct vcpu *v)
{
    if (!v->pmu)
        return;
    advance(v);
    rearm(v);
}

void pmu_domain_ends(struct vcpu *v) { advance(v); }
void pmu_domain_begins(struct vcpu *v) { configure(v); }

void pmu_run_begins(struct vcpu *v)
{
    struct pmu *p = v->pmu;
    if (p->halted) {
        p->halted = false;
        p->cycle_at = cycle(v);
        rearm(v);
    }
    if (v->pmu_alarm < v->budget_end && v->pmu_alarm > v->icount)
        v->budget_end = v->pmu_alarm;
}

void pmu_run_ends(struct vcpu *v)
{
    struct pmu *p = v->pmu;
    if (v->icount >= v->pmu_alarm) {
        v->pmu_alarm = UINT64_MAX;
        vcpu_request(v, REQ_PMU);
    }
    if (v->activity != ACTIVITY_ACTIVE && p->cycles && !p->halted) {
        advance(v);
        p->halted = true;
        timer_cancel(&p->timer);
    }
}

/* ---- registers ---- */

u64 pmu_global_ctrl(const struct vcpu *v) { return v->pmu ? v->pmu->global_ctrl : 0; }
u64 pmu_global_ctrl_reserved(const struct vcpu *v) { return v->pmu && intel(v) ? ~global_ctrl_bits(v->pmu) : ~0ull; }

void pmu_set_global_ctrl(struct vcpu *v, u64 value)
{
    if (v->pmu && value != v->pmu->global_ctrl)
        changed(v, &v->pmu->global_ctrl, value);
}

/* SDM "IA32_PERF_GLOBAL_INUSE MSR" */
static u64 in_use(const struct pmu *p)
{
    u64 bits = 0;
    for (unsigned n = 0; n < p->gp; n++) {
        if (p->select[n] & 0xff)
            bits |= BIT64(n);
        if (p->select[n] & SEL_INT)
            bits |= BIT64(63);
    }
    for (unsigned n = 0; n < p->fixed; n++) {
        u32 ctl = (u32)(p->fixed_ctrl >> n * 4);
        if (ctl & (FIX_OS | FIX_USR))
            bits |= BIT64(FIXED_BASE + n);
        if (ctl & FIX_PMI)
            bits |= BIT64(63);
    }
    return bits;
}

enum kind { SELECT, COUNTER, FULL_WIDTH };
/* The register @msr of a counter, as an index into counter[] or select[]. */
static unsigned numbered(const struct pmu *p, u32 msr, enum kind *kind)
{
    if (msr >= MSR_AMD_CORE0) {
        *kind = msr & 1 ? COUNTER : SELECT;
        return (msr - MSR_AMD_CORE0) / 2;
    }
    if (msr >= MSR_AMD_EVT_SEL0) {
        *kind = msr >= MSR_AMD_CTR0 ? COUNTER : SELECT;
        return msr & 3;
    }
    if (msr >= MSR_A_PMC0) {
        *kind = FULL_WIDTH;
        return msr - MSR_A_PMC0;
    }
    if (msr >= MSR_FIXED_CTR0) {
        *kind = FULL_WIDTH;
        return p->gp + msr - MSR_FIXED_CTR0;
    }
    *kind = msr >= MSR_PERFEVTSEL0 ? SELECT : COUNTER;
    return msr - (*kind == SELECT ? MSR_PERFEVTSEL0 : MSR_PMC0);
}

bool pmu_rdmsr(struct vcpu *v, u32 msr, u64 *value)
{
    struct pmu *p = v->pmu;
    if (!p)
        return false;
    advance(v);
    switch (msr) {
    case MSR_PERF_CAPABILITIES: *value = BIT64(12) /* SMM freeze */ | BIT64(13); /* full-width writes */ return true;
    case MSR_FIXED_CTR_CTRL: *value = p->fixed_ctrl; return true;
    case MSR_GLOBAL_STATUS: *value = p->status; return true;
    case MSR_GLOBAL_CTRL: *value = p->global_ctrl; return true;
    case MSR_STATUS_RESET: case MSR_STATUS_SET: *value = 0; return true;
    case MSR_GLOBAL_INUSE: *value = in_use(p); return true;
    default: break;
    }
    enum kind kind;
    unsigned n = numbered(p, msr, &kind);
    *value = kind == SELECT ? p->select[n] : p->counter[n].value;
    return true;
}

/* Bits of the status registers that exist: no trace, no enclaves. */
static bool write_status(struct vcpu *v, u64 value, bool set)
{
    struct pmu *p = v->pmu;
    u64 bits = global_ctrl_bits(p) | STATUS_LBR_FRZ | STATUS_CTR_FRZ | STATUS_UNCORE | STATUS_BUFFER | (set ? 0 : STATUS_CHANGED);
    if (value & ~bits)
        return false;
    advance(v);
    p->status = set ? p->status | value : p->status & ~value;
    configure(v);
    return true;
}

static bool write_counter(struct vcpu *v, unsigned n, enum kind kind, u64 value)
{
    if (kind == FULL_WIDTH && value & ~COUNT_MASK)
        return false;
    if (kind == COUNTER && intel(v)) /* bit 31 is extended */
        value = (u64)(s64)(s32)value;
    changed(v, &v->pmu->counter[n].value, value & COUNT_MASK);
    return true;
}

bool pmu_wrmsr(struct vcpu *v, u32 msr, u64 value)
{
    struct pmu *p = v->pmu;
    if (!p)
        return false;
    switch (msr) {
    case MSR_FIXED_CTR_CTRL:
        for (unsigned n = 0; n < p->fixed; n++)
            if (value >> n * 4 & BIT(2)) /* AnyThread is not there */
                return false;
        if (value >> p->fixed * 4)
            return false;
        changed(v, &p->fixed_ctrl, value);
        return true;
    case MSR_GLOBAL_CTRL:
        if (value & ~global_ctrl_bits(p))
            return false;
        changed(v, &p->global_ctrl, value);
        return true;
    case MSR_STATUS_RESET: return write_status(v, value, false);
    case MSR_STATUS_SET: return write_status(v, value, true);
    default: break;
    }
    enum kind kind;
    unsigned n = numbered(p, msr, &kind);
    if (kind != SELECT)
        return write_counter(v, n, kind, value);
    if (intel(v) && (value >> 32 || value & SEL_ANY))
        return false;
    changed(v, &p->select[n], intel(v) ? value : value & AMD_SEL_BITS);
    return true;
}

bool pmu_rdpmc(struct vcpu *v, u32 n, u64 *value)
{
    struct pmu *p = v->pmu;
    if (!p)
        return false;
    if (n >> 16 == 0x4000 && (n & 0xffff) < p->fixed)
        n = p->gp + (n & 0xffff);
    else if (n >= p->gp)
        return false;
    advance(v);
    *value = p->counter[n].value;
    return true;
}

void pmu_cpuid(const struct vcpu *v, u32 out[4])
{
    if (!v->pmu || !intel(v))
        return;
    out[0] = 5 | INTEL_GP << 8 | WIDTH << 16 | 7u << 24;
    out[1] = 0x78; /* absent: last-level cache references and misses, branches, mispredicted branches */
    out[2] = (1u << INTEL_FIXED) - 1;
    out[3] = INTEL_FIXED | WIDTH << 5 | BIT(15); /* AnyThread is deprecated */
}

/* ---- life ---- */

struct pmu *pmu_new(struct vcpu *v)
{
    if (intel(v) && !cpu_has(v, FEAT_PMU))
        return NULL;
    struct pmu *p = v->pmu = calloc(1, sizeof(*p));
    if (!p)
        return NULL;
    p->gp = intel(v) ? INTEL_GP : cpu_has(v, FEAT_PERFCTR_CORE) ? AMD_CORE : AMD_LEGACY;
    p->fixed = intel(v) ? INTEL_FIXED : 0;
    timer_init(&p->timer, v->clock, timer_fire, v);
    return p;
}

void pmu_free(struct vcpu *v)
{
    if (v->pmu)
        timer_cancel(&v->pmu->timer);
    free(v->pmu);
    v->pmu = NULL;
}

/* SDM "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT": the general counters are enabled globally. */
void pmu_reset(struct vcpu *v)
{
    struct pmu *p = v->pmu;
    v->pmu_alarm = UINT64_MAX;
    if (!p)
        return;
    memset(p->counter, 0, sizeof(p->counter));
    memset(p->select, 0, sizeof(p->select));
    p->fixed_ctrl = p->status = 0;
    p->global_ctrl = intel(v) ? (1ull << p->gp) - 1 : 0;
    configure(v);
}
