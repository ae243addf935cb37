/* Hyper-V's interface: discovery, synthetic MSRs, the reference TSC, hypercalls. See hyperv.h. */
#include "cpu/hyperv.h"
#include "base/log.h"
#include "cpu/cpu.h"
#include "cpu/models.h"
#include "mmu/mmu.h"
#include "mmu/physmap.h"

#include <stdlib.h>

enum { EAX, EBX, ECX, EDX };

enum hv_msr {
    HV_GUEST_OS_ID = 0x40000000, HV_HYPERCALL, HV_VP_INDEX, HV_TIME_REF_COUNT = 0x40000020, HV_REFERENCE_TSC,
    HV_TSC_FREQUENCY, HV_APIC_FREQUENCY, HV_VP_ASSIST_PAGE = 0x40000073,
};
#define HV_ENABLE BIT64(0)
#define HV_LOCKED BIT64(1) /* of HV_HYPERCALL */

struct hyperv {
    struct clock *clock;
    struct physmap *pm;
    const struct msi_sink *msi;
    struct hyperv_vp *vp[HV_MAX_VPS];
    unsigned nvps;
    u64 guest_os_id, hypercall, reference_tsc;
    u32 tsc_sequence;
};

struct hyperv *hyperv_new(struct clock *clock, struct physmap *pm, const struct msi_sink *msi)
{
    struct hyperv *hv = calloc(1, sizeof(*hv));
    if (hv)
        *hv = (struct hyperv){.clock = clock, .pm = pm, .msi = msi};
    return hv;
}

void hyperv_free(struct hyperv *hv)
{
    if (!hv)
        return;
    for (unsigned n = 0; n < hv->nvps; n++) {
        hv_synic_reset(hv->vp[n]);
        hv->vp[n]->v->hyperv = NULL;
        free(hv->vp[n]);
    }
    free(hv);
}

int hyperv_attach(struct hyperv *hv, struct vcpu *v)
{
    struct hyperv_vp *vp = hv->nvps < HV_MAX_VPS ? calloc(1, sizeof(*vp)) : NULL;
    if (!vp)
        return -1;
    vp->hv = hv;
    vp->v = v;
    hv->vp[hv->nvps++] = vp;
    v->hyperv = vp;
    hv_synic_init(vp, hv->clock);
    return 0;
}

void hyperv_reset(struct hyperv *hv)
{
    hv->guest_os_id = hv->hypercall = hv->reference_tsc = 0;
    for (unsigned n = 0; n < hv->nvps; n++) {
        hv->vp[n]->vp_assist = 0;
        hv_synic_reset(hv->vp[n]);
    }
}

u64 hyperv_reference_time(const struct hyperv *hv) { return clock_now(hv->clock) / 100; }

void hv_interrupt(struct hyperv_vp *vp, u8 vector)
{
    const struct msi_sink *msi = vp->hv->msi;
    const struct vcpu *v = vp->v;
    u32 id = v->intc_ops && v->intc_ops->id ? v->intc_ops->id(v->intc) : v->index;
    if (msi && msi->send)
        msi->send(msi->opaque, 0xfee00000 | (id & 0xff) << 12, vector);
}

/* ---- TLFS "Feature and Interface Discovery" ---- */
/* Leaf 40000003H. What is not here is absent: APIC MSRs, VP run time, guest idle, crash MSRs, debugging. */
#define ACCESS_TIME_REF_COUNT BIT(1)
#define ACCESS_SYNIC BIT(2)
#define ACCESS_TIMERS BIT(3)
#define ACCESS_HYPERCALL BIT(5)
#define ACCESS_VP_INDEX BIT(6)
#define ACCESS_REFERENCE_TSC BIT(9)
#define ACCESS_FREQUENCIES BIT(11)
#define FEATURE_XMM_INPUT BIT(4)
#define FEATURE_FREQUENCIES BIT(8)
#define FEATURE_DIRECT_TIMERS BIT(19)
/* Leaf 40000004H: recommendations. */
#define HINT_REMOTE_FLUSH BIT(2)
#define HINT_RELAXED_TIMING BIT(5)
#define HINT_NO_AUTO_EOI BIT(9)
#define HINT_EX_MASKS BIT(11)
#define HINT_ENLIGHTENED_VMCS BIT(14)
/* Leaf 4000000AH, and the only revision of the enlightened VMCS twice: lowest and highest. */
#define NESTED_EVMCS_VERSIONS 0x0101u
#define NESTED_DIRECT_FLUSH BIT(17)
#define NESTED_GPA_FLUSH BIT(18)
#define NESTED_MSR_BITMAP BIT(19)
#define NESTED_DEBUGCTL BIT(21)
#define NESTED_PERF_GLOBAL_CTRL BIT(0) /* EBX */

void hyperv_cpuid(struct vcpu *v, u32 leaf, u32 out[4])
{
    switch (leaf) {
    case 0x40000000:
        out[EAX] = HV_MAX_LEAF;
        out[EBX] = load32("Micr");
        out[ECX] = load32("osof");
        out[EDX] = load32("t Hv");
        break;
    case 0x40000001: out[EAX] = load32("Hv#1"); break;
    case 0x40000002:
        out[EAX] = 17763; /* the build whose nested interface this is */
        out[EBX] = 10u << 16;
        break;
    case 0x40000003:
        out[EAX] = ACCESS_TIME_REF_COUNT | ACCESS_SYNIC | ACCESS_TIMERS | ACCESS_HYPERCALL | ACCESS_VP_INDEX | ACCESS_REFERENCE_TSC
            | ACCESS_FREQUENCIES;
        out[EDX] = FEATURE_XMM_INPUT | FEATURE_FREQUENCIES | FEATURE_DIRECT_TIMERS;
        break;
    case 0x40000004:
        out[EAX] = HINT_REMOTE_FLUSH | HINT_RELAXED_TIMING | HINT_NO_AUTO_EOI | HINT_EX_MASKS
            | (cpu_has(v, FEAT_VMX) ? HINT_ENLIGHTENED_VMCS : 0);
        out[EBX] = ~0u; /* a spinning processor need not tell */
        break;
    case 0x40000005:
        out[EAX] = out[EBX] = HV_MAX_VPS;
        break;
    case 0x4000000a:
        if (cpu_has(v, FEAT_VMX)) {
            out[EAX] = NESTED_EVMCS_VERSIONS | NESTED_DIRECT_FLUSH | NESTED_GPA_FLUSH | NESTED_MSR_BITMAP | NESTED_DEBUGCTL;
            out[EBX] = cpu_has(v, FEAT_PMU) ? NESTED_PERF_GLOBAL_CTRL : 0;
        }
        break;
    }
}

/* ---- the reference TSC: TLFS "Partition Reference Time Enlightenment" ---- */
static void write_reference_tsc(struct hyperv *hv, struct vcpu *v)
{
    if (!(hv->reference_tsc & HV_ENABLE))
        return;
    /* time = (TSC * scale >> 64) + offset, in 100 ns */
    u64 scale = (u64)(((u128)10000000 << 64) / v->tsc_hz);
    u64 offset = hyperv_reference_time(hv) - (u64)((u128)cpu_tsc(v) * scale >> 64);
    if (++hv->tsc_sequence == 0 || hv->tsc_sequence == ~0u)
        hv->tsc_sequence = 1; /* 0 means: use the MSR */
    u8 page[24] = {0};
    store32(page, hv->tsc_sequence);
    store64(page + 8, scale);
    store64(page + 16, offset);
    physmap_write(hv->pm, hv->reference_tsc & PAGE_MASK, page, sizeof(page));
}

void hyperv_tsc_moved(struct vcpu *v)
{
    if (v->index == 0)
        write_reference_tsc(v->hyperv->hv, v);
}

/* ---- MSRs ---- */
static bool page_msr_ok(const struct vcpu *v, u64 value) { return !(value >> v->maxphyaddr); }

/* TLFS "Establishing the Hypercall Interface": the page has the instruction that calls, then RET. */
static void write_hypercall_page(struct hyperv *hv)
{
    static const u8 code[] = {0x0f, 0x01, 0xc1, 0xc3};
    if (hv->hypercall & HV_ENABLE)
        physmap_write(hv->pm, hv->hypercall & PAGE_MASK, code, sizeof(code));
}

bool hyperv_rdmsr(struct vcpu *v, u32 msr, u64 *value)
{
    struct hyperv_vp *vp = v->hyperv;
    if (!vp)
        return false;
    struct hyperv *hv = vp->hv;
    switch (msr) {
    case HV_GUEST_OS_ID: *value = hv->guest_os_id; return true;
    case HV_HYPERCALL: *value = hv->hypercall; return true;
    case HV_VP_INDEX: *value = v->index; return true;
    case HV_TIME_REF_COUNT: *value = hyperv_reference_time(hv); return true;
    case HV_REFERENCE_TSC: *value = hv->reference_tsc; return true;
    case HV_TSC_FREQUENCY: *value = v->tsc_hz; return true;
    case HV_APIC_FREQUENCY: *value = CRYSTAL_HZ; return true;
    case HV_VP_ASSIST_PAGE: *value = vp->vp_assist; return true;
    default: return hv_synic_rdmsr(vp, msr, value);
    }
}

bool hyperv_wrmsr(struct vcpu *v, u32 msr, u64 value)
{
    struct hyperv_vp *vp = v->hyperv;
    if (!vp)
        return false;
    struct hyperv *hv = vp->hv;
    switch (msr) {
    case HV_GUEST_OS_ID:
        hv->guest_os_id = value;
        if (!value)
            hv->hypercall &= ~HV_ENABLE; /* an anonymous guest has no hypercalls */
        return true;
    case HV_HYPERCALL:
        if (!page_msr_ok(v, value))
            return false;
        if (hv->hypercall & HV_LOCKED)
            return true;
        hv->hypercall = value & (PAGE_MASK | HV_LOCKED | (hv->guest_os_id ? HV_ENABLE : 0));
        write_hypercall_page(hv);
        return true;
    case HV_REFERENCE_TSC:
        if (!page_msr_ok(v, value))
            return false;
        hv->reference_tsc = value & (PAGE_MASK | HV_ENABLE);
        write_reference_tsc(hv, v);
        return true;
    case HV_VP_ASSIST_PAGE:
        if (!page_msr_ok(v, value))
            return false;
        vp->vp_assist = value & (PAGE_MASK | HV_ENABLE);
        if (value & HV_ENABLE)
            physmap_store(hv->pm, value & PAGE_MASK, 0, 4); /* no EOI assist is waiting */
        return true;
    default:
        return hv_synic_wrmsr(vp, msr, value);
    }
}

/* ---- the VP assist page: TLFS "HV_VP_ASSIST_PAGE" ---- */
enum { ASSIST_NESTED_FEATURES = 0x20, ASSIST_ENLIGHTEN_VMENTRY = 0x28, ASSIST_CURRENT_VMCS = 0x30 };

bool hyperv_nested(const struct vcpu *v, struct hv_nested *n)
{
    const struct hyperv_vp *vp = v->hyperv;
    if (!vp || !(vp->vp_assist & HV_ENABLE))
        return false;
    u64 page = vp->vp_assist & PAGE_MASK;
    n->enlightened_entry = physmap_load(vp->hv->pm, page + ASSIST_ENLIGHTEN_VMENTRY, 1) & 1;
    n->direct_hypercall = physmap_load(vp->hv->pm, page + ASSIST_NESTED_FEATURES, 4) & 1;
    n->current = physmap_load(vp->hv->pm, page + ASSIST_CURRENT_VMCS, 8);
    return true;
}

/* ---- hypercalls: TLFS "Hypercall Interface" ---- */
enum hv_call {
    CALL_FLUSH_SPACE = 2, CALL_FLUSH_LIST = 3, CALL_LONG_SPIN_WAIT = 8, CALL_FLUSH_SPACE_EX = 0x13, CALL_FLUSH_LIST_EX = 0x14,
    CALL_POST_MESSAGE = 0x5c, CALL_SIGNAL_EVENT = 0x5d, CALL_FLUSH_GPA_SPACE = 0xaf, CALL_FLUSH_GPA_LIST = 0xb0,
};
enum hv_status {
    STATUS_SUCCESS = 0, STATUS_INVALID_CODE = 2, STATUS_INVALID_INPUT = 3, STATUS_INVALID_ALIGNMENT = 4, STATUS_INVALID_PARAMETER = 5,
    STATUS_INVALID_CONNECTION = 0x12,
};
#define FAST BIT64(16)
#define FLUSH_ALL_PROCESSORS BIT64(0)
#define FLUSH_FLAGS BITS64(3, 0)

/* What the registers say. */
struct call {
    u64 input, in, out; /* fast: two words of input; else physical addresses */
    u16 code;
    bool fast;
    u16 header, reps, start; /* variable header in 8 bytes */
};

static struct call decode(const struct vcpu *v)
{
    struct call c;
    if (cpu_long64(v))
        c = (struct call){.input = v->gpr[RCX], .in = v->gpr[RDX], .out = v->gpr[8]};
    else
        c = (struct call){.input = v->gpr[RDX] << 32 | (u32)v->gpr[RAX], .in = v->gpr[RBX] << 32 | (u32)v->gpr[RCX],
                          .out = v->gpr[RDI] << 32 | (u32)v->gpr[RSI]};
    c.code = (u16)c.input;
    c.fast = c.input & FAST;
    c.header = (u16)bits_get(c.input, 26, 17);
    c.reps = (u16)bits_get(c.input, 43, 32);
    c.start = (u16)bits_get(c.input, 59, 48);
    return c;
}

static void finish(struct vcpu *v, enum hv_status status, u16 done)
{
    u64 result = (u64)status | (u64)done << 32;
    if (cpu_long64(v)) {
        v->gpr[RAX] = result;
    } else {
        v->gpr[RAX] = (u32)result;
        v->gpr[RDX] = (u32)(result >> 32);
    }
}

/* Word @n of the input: in memory, or RDX, R8 and XMM0..5. */
static bool word(const struct vcpu *v, const struct call *c, unsigned n, u64 *value)
{
    if (!c->fast)
        *value = physmap_load(v->pm, c->in + 8ull * n, 8);
    else if (n < 2)
        *value = n ? c->out : c->in;
    else if (n < 14)
        *value = v->vec[(n - 2) / 2].q[(n - 2) % 2];
    else
        return false;
    return true;
}

/*
 * Flushing more than was asked is always right; so processors are told apart, and address spaces and
 * addresses are not.
 */
static void flush(struct vcpu *v, u64 vps)
{
    struct hyperv *hv = v->hyperv->hv;
    v->hyperv->flushes++;
    for (unsigned n = 0; n < hv->nvps; n++) {
        if (!(vps >> n & 1))
            continue;
        if (hv->vp[n]->v == v)
            mmu_flush_all(v);
        else
            vcpu_request(hv->vp[n]->v, REQ_FLUSH);
    }
}

/* TLFS "HV_VP_SET": format 0 is banks of 64 processors, format 1 all. We have one bank. */
static bool vp_set(const struct vcpu *v, const struct call *c, u64 *vps)
{
    u64 format, banks;
    *vps = 0;
    if (!word(v, c, 2, &format) || !word(v, c, 3, &banks) || format > 1)
        return false;
    if (format == 1)
        *vps = ~0ull;
    else if (banks & 1)
        return word(v, c, 4, vps);
    return true;
}

static enum hv_status flush_virtual(struct vcpu *v, const struct call *c, bool ex)
{
    u64 flags, vps;
    if (!word(v, c, 1, &flags) || flags & ~FLUSH_FLAGS)
        return STATUS_INVALID_PARAMETER;
    if (!(ex ? vp_set(v, c, &vps) : word(v, c, 2, &vps)))
        return STATUS_INVALID_INPUT;
    flush(v, flags & FLUSH_ALL_PROCESSORS ? ~0ull : vps);
    return STATUS_SUCCESS;
}

static const struct call_row {
    u16 code;
    bool rep;
} calls[] = {
    {CALL_FLUSH_SPACE, false}, {CALL_FLUSH_LIST, true}, {CALL_LONG_SPIN_WAIT, false}, {CALL_FLUSH_SPACE_EX, false},
    {CALL_FLUSH_LIST_EX, true}, {CALL_POST_MESSAGE, false}, {CALL_SIGNAL_EVENT, false}, {CALL_FLUSH_GPA_SPACE, false},
    {CALL_FLUSH_GPA_LIST, true},
};

/* What holds of every call: known, repeated exactly when it is a rep call, the input aligned within a page. */
static enum hv_status check_call(const struct vcpu *v, const struct call *c)
{
    for (unsigned n = 0; n < ARRAY_SIZE(calls); n++) {
        if (calls[n].code != c->code)
            continue;
        if (calls[n].rep ? !c->reps || c->start >= c->reps : c->reps || c->start)
            return STATUS_INVALID_INPUT;
        if (!c->fast && c->in & 7)
            return STATUS_INVALID_ALIGNMENT;
        if (!c->fast && c->in >> v->maxphyaddr)
            return STATUS_INVALID_PARAMETER;
        return STATUS_SUCCESS;
    }
    return STATUS_INVALID_CODE;
}

bool hyperv_hypercall_allowed(const struct vcpu *v)
{
    return v->hyperv && v->hyperv->hv->hypercall & HV_ENABLE && cpu_protected(v) && v->cpl == 0
        && (cpu_long64(v) || !cpu_lma(v));
}

void hyperv_hypercall(struct vcpu *v)
{
    struct call c = decode(v);
    enum hv_status status = check_call(v, &c);
    v->hyperv->hypercalls++;
    if (status == STATUS_SUCCESS) {
        switch (c.code) {
        case CALL_FLUSH_SPACE: case CALL_FLUSH_LIST: status = flush_virtual(v, &c, false); break;
        case CALL_FLUSH_SPACE_EX: case CALL_FLUSH_LIST_EX: status = flush_virtual(v, &c, true); break;
        case CALL_FLUSH_GPA_SPACE: case CALL_FLUSH_GPA_LIST: flush(v, ~0ull); break;
        case CALL_POST_MESSAGE: case CALL_SIGNAL_EVENT: status = STATUS_INVALID_CONNECTION; break; /* nobody to talk to */
        default: break;
        }
    } else if (status == STATUS_INVALID_CODE) {
        log_at(unimplemented, "cpu%u hypercall 0x%x", v->index, c.code);
    }
    finish(v, status, status == STATUS_SUCCESS ? c.reps : 0);
}

/* ---- for a guest's guest: TLFS "Direct Virtual Flush" ---- */
bool hyperv_is_flush(const struct vcpu *v)
{
    u16 code = decode(v).code;
    return code == CALL_FLUSH_SPACE || code == CALL_FLUSH_LIST || code == CALL_FLUSH_SPACE_EX || code == CALL_FLUSH_LIST_EX;
}

void hyperv_flush_for_guest(struct vcpu *v)
{
    struct call c = decode(v);
    v->hyperv->hypercalls++;
    flush(v, ~0ull);
    finish(v, STATUS_SUCCESS, c.reps);
}
