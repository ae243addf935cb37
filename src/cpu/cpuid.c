/*
 * CPUID: every leaf from the feature table, the model and the machine's topology. Manuals: Intel SDM
 * volume 2, "CPUID -- CPU Identification"; AMD APM volume 3, appendix "Obtaining Processor Information
 * Via the CPUID Instruction".
 */
#include "cpu/mem.h"
#include "base/log.h"
#include "cpu/bodies_sys.h"
#include "cpu/hyperv.h"
#include "cpu/models.h"
#include "cpu/msr.h"
#include "cpu/pmu.h"
#include "cpu/xstate.h"
#include "devices/irq.h"

enum { EAX, EBX, ECX, EDX };

static bool intel(const struct vcpu *v) { return v->model->vendor == VENDOR_INTEL; }

static u32 apic_id(const struct vcpu *v) { return v->intc_ops ? v->intc_ops->id(v->intc) : v->index; }

/* Bits of an APIC ID that number the processors of the package. */
static unsigned id_bits(const struct vcpu *v)
{
    unsigned bits = 0;
    while (1u << bits < v->nr_cpus)
        bits++;
    return bits;
}

/* The bits of features.def that lie in one leaf. */
static void feature_bits(const struct vcpu *v, u32 leaf, u32 subleaf, u32 out[4])
{
    for (unsigned f = 1; f < FEAT_COUNT; f++) {
        const struct cpu_feature_info *info = &cpu_feature_info[f];
        if (v->features[f] && info->leaf == leaf && info->subleaf == subleaf)
            out[info->reg] |= BIT(info->bit);
    }
}

static bool any_feature(const struct vcpu *v, u32 leaf, u32 subleaf)
{
    u32 r[4] = {0};
    feature_bits(v, leaf, subleaf, r);
    return r[EAX] | r[EBX] | r[ECX] | r[EDX];
}

static u32 signature(const struct cpu_model *m)
{
    u32 family = m->family < 0xf ? m->family : 0xf, extended = m->family - family;
    return m->stepping | (m->model & 0xfu) << 4 | family << 8 | (u32)(m->model >> 4) << 16 | extended << 20;
}

/* ---- leaves, one function each ---- */

static void vendor_string(const struct vcpu *v, u32 out[4])
{
    const char *s = intel(v) ? "GenuineIntel" : "AuthenticAMD";
    out[EBX] = load32(s);
    out[EDX] = load32(s + 4);
    out[ECX] = load32(s + 8);
}

static void leaf_0(struct vcpu *v, u32 subleaf, u32 out[4])
{
    out[EAX] = intel(v) && (v->misc_enable & MISC_ENABLE_LIMIT_CPUID) ? 2 : v->model->max_leaf;
    vendor_string(v, out);
}

static bool apic_disabled(struct vcpu *v)
{
    u64 base;
    return v->intc_ops && v->intc_ops->rdmsr(v->intc, 0x1b, &base) == 0 && !(base & BIT64(11));
}

static void leaf_1(struct vcpu *v, u32 subleaf, u32 out[4])
{
    feature_bits(v, 1, 0, out);
    out[EAX] = signature(v->model);
    out[EBX] = apic_id(v) << 24 | (1u << id_bits(v) & 0xff) << 16 | (cpu_has(v, FEAT_CLFSH) ? 64 / 8 << 8 : 0);
    if (cpu_has(v, FEAT_XSAVE) && (v->cr4 & CR4_OSXSAVE))
        out[ECX] |= BIT(27);
    if (intel(v) && !(v->misc_enable & MISC_ENABLE_MONITOR))
        out[ECX] &= ~BIT(3);
    if (apic_disabled(v))
        out[EDX] &= ~BIT(9);
    if (v->nr_cpus == 1)
        out[EDX] &= ~BIT(28); /* HTT: EBX[23:16] means something */
}

/* Caches and TLBs as descriptors: "see leaf 4", "see leaf 18H", 64-byte prefetch. */
static void leaf_2(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (!intel(v))
        return;
    out[EAX] = 0x00feff01;
    out[EBX] = 0x000000f0;
}

/* Leaf 4 and its AMD twin 0x8000001D. */
static void cache_leaf(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (subleaf >= ARRAY_SIZE(v->model->cache) || !v->model->cache[subleaf].type)
        return;
    const struct cpu_cache *c = &v->model->cache[subleaf];
    u32 sharing = c->shared ? (1u << id_bits(v)) - 1 : 0;
    out[EAX] = c->type | (u32)c->level << 5 | BIT(8) /* self-initialising */ | (sharing & 0xfff) << 14;
    out[EBX] = (64 - 1) | (u32)(c->ways - 1) << 22;
    out[ECX] = c->sets - 1;
}

static void leaf_4(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (!intel(v))
        return;
    cache_leaf(v, subleaf, out);
    if (out[EAX]) {
        u32 cores = (1u << id_bits(v)) - 1;
        out[EAX] |= (cores < 63 ? cores : 63) << 26;
    }
}

static void leaf_5(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (!cpu_has(v, FEAT_MONITOR))
        return;
    out[EAX] = out[EBX] = 64; /* the monitored line */
    /* Extensions are enumerated: interrupts break MWAIT even if masked. No C-state is: HLT waits better. */
    out[ECX] = BIT(0) | BIT(1);
}

static void leaf_6(struct vcpu *v, u32 subleaf, u32 out[4]) { feature_bits(v, 6, 0, out); }

static void leaf_7(struct vcpu *v, u32 subleaf, u32 out[4])
{
    feature_bits(v, 7, subleaf, out);
    if (subleaf == 0) {
        out[EAX] = any_feature(v, 7, 1) ? 1 : 0;
        if (cpu_has(v, FEAT_PKU) && (v->cr4 & CR4_PKE))
            out[ECX] |= BIT(4);
    }
}

static void leaf_a(struct vcpu *v, u32 subleaf, u32 out[4]) { pmu_cpuid(v, out); }

/* Extended topology: one thread a core, all cores in one package. */
static void leaf_b(struct vcpu *v, u32 subleaf, u32 out[4])
{
    out[ECX] = subleaf & 0xff;
    out[EDX] = apic_id(v);
    if (subleaf == 0) {
        out[EAX] = 0;
        out[EBX] = 1;
        out[ECX] |= 1 << 8; /* SMT */
    } else if (subleaf == 1) {
        out[EAX] = id_bits(v);
        out[EBX] = v->nr_cpus;
        out[ECX] |= 2 << 8; /* core */
    }
}

static void leaf_d(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (!cpu_has(v, FEAT_XSAVE))
        return;
    u64 supported = xstate_supported(v), supervisor = xstate_supervisor(v);
    if (subleaf == 0) {
        out[EAX] = (u32)supported;
        out[EBX] = xstate_size(v, v->xcr0, false);
        out[ECX] = xstate_size(v, supported, false);
        out[EDX] = (u32)(supported >> 32);
    } else if (subleaf == 1) {
        feature_bits(v, 0xd, 1, out);
        if (cpu_has(v, FEAT_XSAVEC) || cpu_has(v, FEAT_XSAVES))
            out[EBX] = xstate_size(v, v->xcr0 | v->xss, true);
        out[ECX] = (u32)supervisor;
        out[EDX] = (u32)(supervisor >> 32);
    } else if (subleaf < 63) {
        const struct xstate_component *c = xstate_component(v, subleaf);
        if (!c)
            return;
        out[EAX] = c->size;
        out[EBX] = c->offset;
        out[ECX] = c->supervisor ? 1 : 0;
    }
}

static u64 gcd(u64 a, u64 b)
{
    while (b) {
        u64 r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* TSC = crystal * EBX / EAX. */
static void leaf_15(struct vcpu *v, u32 subleaf, u32 out[4])
{
    u64 g = gcd(v->tsc_hz, CRYSTAL_HZ), numerator = v->tsc_hz / g;
    if (!intel(v) || !cpu_has(v, FEAT_TSC) || numerator > UINT32_MAX)
        return;
    out[EAX] = (u32)(CRYSTAL_HZ / g);
    out[EBX] = (u32)numerator;
    out[ECX] = CRYSTAL_HZ;
}

static void leaf_16(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (!intel(v))
        return;
    u32 mhz = (u32)((v->tsc_hz + 500000) / 1000000) & 0xffff;
    out[EAX] = out[EBX] = mhz;
    out[ECX] = 100;
}

/* The hypervisor range, when HYPERVISOR announces it: a signature, and the TSC's frequency in kHz. */
static void leaf_40000000(struct vcpu *v, u32 subleaf, u32 out[4])
{
    out[EAX] = 0x40000010;
    out[EBX] = load32("Nest");
    out[ECX] = load32("orNe");
    out[EDX] = load32("stor");
}

static void leaf_40000010(struct vcpu *v, u32 subleaf, u32 out[4])
{
    out[EAX] = (u32)(v->tsc_hz / 1000);
    out[EBX] = CRYSTAL_HZ / 1000;
}

static void leaf_80000000(struct vcpu *v, u32 subleaf, u32 out[4])
{
    out[EAX] = v->model->max_ext_leaf;
    if (!intel(v))
        vendor_string(v, out);
}

/* Bits of leaf 1's EDX that AMD repeats in 0x80000001. */
#define AMD_REPEATED 0x0183f3ffu

static void leaf_80000001(struct vcpu *v, u32 subleaf, u32 out[4])
{
    feature_bits(v, 0x80000001, 0, out);
    if (intel(v)) {
        if (v->misc_enable & MISC_ENABLE_XD_DISABLE)
            out[EDX] &= ~BIT(20);
        /* "SYSCALL and SYSRET are available in 64-bit mode": elsewhere the bit reads as zero. */
        if (!cpu_long64(v))
            out[EDX] &= ~BIT(11);
        return;
    }
    u32 one[4] = {0};
    leaf_1(v, 0, one);
    out[EAX] = one[EAX];
    out[EBX] = 4u << 28; /* package type: SP3 */
    out[EDX] |= one[EDX] & AMD_REPEATED;
    if (v->nr_cpus == 1)
        out[ECX] &= ~BIT(1); /* CMP_LEGACY */
}

static void brand_leaf(const struct vcpu *v, unsigned part, u32 out[4])
{
    char brand[48] = {0};
    strncpy(brand, v->model->brand, sizeof(brand) - 1);
    for (unsigned r = 0; r < 4; r++)
        out[r] = load32(brand + part * 16 + r * 4);
}

static void leaf_80000002(struct vcpu *v, u32 subleaf, u32 out[4]) { brand_leaf(v, 0, out); }
static void leaf_80000003(struct vcpu *v, u32 subleaf, u32 out[4]) { brand_leaf(v, 1, out); }
static void leaf_80000004(struct vcpu *v, u32 subleaf, u32 out[4]) { brand_leaf(v, 2, out); }

static u32 cache_kib(const struct cpu_cache *c) { return (u32)((u64)c->ways * c->sets * 64 / 1024); }

/* AMD's level-1 TLBs and caches. */
static void leaf_80000005(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (intel(v))
        return;
    const struct cpu_cache *c = v->model->cache;
    out[EAX] = out[EBX] = 0xff40ff40; /* 64 entries, fully associative */
    out[ECX] = cache_kib(&c[0]) << 24 | (u32)c[0].ways << 16 | 1 << 8 | 64;
    out[EDX] = cache_kib(&c[1]) << 24 | (u32)c[1].ways << 16 | 1 << 8 | 64;
}

/* Level 2 and 3. Associativity codes: 6 = 8 ways, 8 = 16 ways, 9 = see 0x8000001D. */
static void leaf_80000006(struct vcpu *v, u32 subleaf, u32 out[4])
{
    const struct cpu_cache *c = v->model->cache;
    u32 ways = c[2].ways == 8 ? 6 : 8;
    out[ECX] = cache_kib(&c[2]) << 16 | ways << 12 | 64;
    if (intel(v))
        return;
    out[EAX] = 0x48002200;
    out[EBX] = 0x68004200;
    out[ECX] |= 1 << 8;
    out[EDX] = cache_kib(&c[3]) / 512 << 18 | 9 << 12 | 1 << 8 | 64;
}

static void leaf_80000007(struct vcpu *v, u32 subleaf, u32 out[4]) { feature_bits(v, 0x80000007, 0, out); }

static void leaf_80000008(struct vcpu *v, u32 subleaf, u32 out[4])
{
    feature_bits(v, 0x80000008, 0, out);
    out[EAX] = v->maxphyaddr | (u32)v->linear_width << 8;
    if (intel(v))
        return;
    out[ECX] = (u32)(v->nr_cpus - 1) | id_bits(v) << 12;
    if (cpu_has(v, FEAT_RDPRU))
        out[EDX] = 1 << 16; /* highest register RDPRU reads: APERF */
}

static void leaf_8000000a(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (!cpu_has(v, FEAT_SVM))
        return;
    feature_bits(v, 0x8000000a, 0, out);
    out[EAX] = 1;
    out[EBX] = v->svm_asids;
}

/* AMD's TLBs for 1-GByte pages. */
static void leaf_80000019(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (!intel(v) && cpu_has(v, FEAT_PDPE1GB))
        out[EAX] = 0xf040f040;
}

static void leaf_8000001d(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (!intel(v) && cpu_has(v, FEAT_TOPOEXT))
        cache_leaf(v, subleaf, out);
}

static void leaf_8000001e(struct vcpu *v, u32 subleaf, u32 out[4])
{
    if (intel(v) || !cpu_has(v, FEAT_TOPOEXT))
        return;
    out[EAX] = apic_id(v);
    out[EBX] = apic_id(v) & 0xff; /* core; one thread each */
}

static void leaf_80000021(struct vcpu *v, u32 subleaf, u32 out[4]) { feature_bits(v, 0x80000021, 0, out); }

static const struct {
    u32 leaf;
    void (*fill)(struct vcpu *v, u32 subleaf, u32 out[4]);
} leaves[] = {
    {0x0, leaf_0},
    {0x1, leaf_1},
    {0x2, leaf_2},
    {0x4, leaf_4},
    {0x5, leaf_5},
    {0x6, leaf_6},
    {0x7, leaf_7},
    {0xa, leaf_a},
    {0xb, leaf_b},
    {0xd, leaf_d},
    {0x15, leaf_15},
    {0x16, leaf_16},
    {0x1f, leaf_b},
    {0x40000000, leaf_40000000},
    {0x40000010, leaf_40000010},
    {0x80000000, leaf_80000000},
    {0x80000001, leaf_80000001},
    {0x80000002, leaf_80000002},
    {0x80000003, leaf_80000003},
    {0x80000004, leaf_80000004},
    {0x80000005, leaf_80000005},
    {0x80000006, leaf_80000006},
    {0x80000007, leaf_80000007},
    {0x80000008, leaf_80000008},
    {0x8000000a, leaf_8000000a},
    {0x80000019, leaf_80000019},
    {0x8000001d, leaf_8000001d},
    {0x8000001e, leaf_8000001e},
    {0x80000021, leaf_80000021},
};

/* Leaves the processor knows at all; some of them are all zero. */
static bool in_range(struct vcpu *v, u32 leaf)
{
    if (leaf >= 0x80000000)
        return leaf <= v->model->max_ext_leaf;
    if (leaf >= 0x40000000)
        return cpu_has(v, FEAT_HYPERVISOR) && leaf <= (v->hyperv ? HV_MAX_LEAF : 0x40000010);
    u32 max[4] = {0};
    leaf_0(v, 0, max);
    return leaf <= max[EAX];
}

void cpu_cpuid(struct vcpu *v, u32 leaf, u32 subleaf, u32 out[4])
{
    memset(out, 0, 4 * sizeof(out[0]));
    if (!in_range(v, leaf)) {
        if (!intel(v))
            return;
        /* "If a value entered for CPUID.EAX is higher than the maximum ..., the data for the highest
         * basic information leaf is returned." */
        u32 max[4] = {0};
        leaf_0(v, 0, max);
        leaf = max[EAX];
    }
    if (v->hyperv && leaf >= 0x40000000 && leaf <= HV_MAX_LEAF) {
        hyperv_cpuid(v, leaf, out);
        return;
    }
    for (unsigned n = 0; n < ARRAY_SIZE(leaves); n++)
        if (leaves[n].leaf == leaf) {
            leaves[n].fill(v, subleaf, out);
            return;
        }
}

void insn_cpuid(struct vcpu *v, const struct insn *i)
{
    u32 leaf = reg32_get(v, RAX), subleaf = reg32_get(v, RCX), out[4];
    cpu_cpuid(v, leaf, subleaf, out);
    log_at(cpuid, "cpu %u: CPUID %08x.%x: %08x %08x %08x %08x", v->index, leaf, subleaf, out[EAX], out[EBX], out[ECX],
           out[EDX]);
    /* Leaf 1 loads the microcode revision: software clears IA32_BIOS_SIGN_ID, executes CPUID, reads it back. */
    if (leaf == 1 && intel(v))
        v->bios_sign_id = v->model->microcode;
    reg32_set(v, RAX, out[EAX]);
    reg32_set(v, RBX, out[EBX]);
    reg32_set(v, RCX, out[ECX]);
    reg32_set(v, RDX, out[EDX]);
}
