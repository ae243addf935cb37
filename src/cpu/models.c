#include "cpu/models.h"
#include "base/bits.h"

#include <cpuid.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { REG_EAX, REG_EBX, REG_ECX, REG_EDX };

const struct cpu_feature_info cpu_feature_info[FEAT_COUNT] = {
#define FEATURE(fname, l, s, r, b) [FEAT_##fname] = {#fname, l, s, REG_##r, b},
#include "cpu/features.def"
#undef FEATURE
};

/* ---- where a feature's implementation comes from ---- */

enum source {
    OWN,      /* written in C here */
    BORROWED, /* the host executes it: offered where the host's CPUID and XCR0 do */
    ABSENT,   /* named in features.def for completeness: Nestor does not implement it */
};

static const u8 feature_source[FEAT_COUNT] = {
    [FEAT_SSE3] = BORROWED,
    [FEAT_PCLMULQDQ] = BORROWED,
    [FEAT_SSSE3] = BORROWED,
    [FEAT_FMA] = BORROWED,
    [FEAT_SSE4_1] = BORROWED,
    [FEAT_SSE4_2] = BORROWED,
    [FEAT_AES] = BORROWED,
    [FEAT_AVX] = BORROWED,
    [FEAT_F16C] = BORROWED,
    [FEAT_AVX2] = BORROWED,
    [FEAT_AVX512F] = BORROWED,
    [FEAT_AVX512DQ] = BORROWED,
    [FEAT_AVX512_IFMA] = BORROWED,
    [FEAT_AVX512CD] = BORROWED,
    [FEAT_SHA_NI] = BORROWED,
    [FEAT_AVX512BW] = BORROWED,
    [FEAT_AVX512VL] = BORROWED,
    [FEAT_AVX512_VBMI] = BORROWED,
    [FEAT_AVX512_VBMI2] = BORROWED,
    [FEAT_GFNI] = BORROWED,
    [FEAT_VAES] = BORROWED,
    [FEAT_VPCLMULQDQ] = BORROWED,
    [FEAT_AVX512_VNNI] = BORROWED,
    [FEAT_AVX512_BITALG] = BORROWED,
    [FEAT_AVX512_VPOPCNTDQ] = BORROWED,
    [FEAT_AVX512_FP16] = BORROWED,
    [FEAT_AVX_VNNI] = BORROWED,
    [FEAT_AVX512_BF16] = BORROWED,
    [FEAT_SSE4A] = BORROWED,
    [FEAT_DTES64] = ABSENT,
    [FEAT_MISALIGNSSE] = ABSENT,
    [FEAT_SKINIT] = ABSENT,
};

/* @f makes no sense without @needs. */
static const struct dependency {
    u16 f, needs;
} dependencies[] = {
    {FEAT_MMXEXT, FEAT_MMX},
    {FEAT_SSE, FEAT_FXSR},
    {FEAT_SSE2, FEAT_SSE},
    {FEAT_SSE3, FEAT_SSE2},
    {FEAT_SSSE3, FEAT_SSE3},
    {FEAT_SSE4_1, FEAT_SSSE3},
    {FEAT_SSE4_2, FEAT_SSE4_1},
    {FEAT_SSE4A, FEAT_SSE3},
    {FEAT_AES, FEAT_SSE2},
    {FEAT_PCLMULQDQ, FEAT_SSE2},
    {FEAT_SHA_NI, FEAT_SSE2},
    {FEAT_GFNI, FEAT_SSE2},
    {FEAT_FXSR_OPT, FEAT_FXSR},
    {FEAT_XSAVE, FEAT_FXSR},
    {FEAT_XSAVEOPT, FEAT_XSAVE},
    {FEAT_XSAVEC, FEAT_XSAVE},
    {FEAT_XGETBV1, FEAT_XSAVE},
    {FEAT_XSAVES, FEAT_XSAVEC},
    {FEAT_AVX, FEAT_XSAVE},
    {FEAT_AVX, FEAT_SSE4_2},
    {FEAT_FMA, FEAT_AVX},
    {FEAT_F16C, FEAT_AVX},
    {FEAT_AVX2, FEAT_AVX},
    {FEAT_VAES, FEAT_AVX},
    {FEAT_VAES, FEAT_AES},
    {FEAT_VPCLMULQDQ, FEAT_AVX},
    {FEAT_VPCLMULQDQ, FEAT_PCLMULQDQ},
    {FEAT_AVX_VNNI, FEAT_AVX2},
    {FEAT_AVX512F, FEAT_AVX2},
    {FEAT_AVX512DQ, FEAT_AVX512F},
    {FEAT_AVX512_IFMA, FEAT_AVX512F},
    {FEAT_AVX512CD, FEAT_AVX512F},
    {FEAT_AVX512BW, FEAT_AVX512F},
    {FEAT_AVX512VL, FEAT_AVX512F},
    {FEAT_AVX512_VBMI, FEAT_AVX512BW},
    {FEAT_AVX512_VBMI2, FEAT_AVX512BW},
    {FEAT_AVX512_VNNI, FEAT_AVX512F},
    {FEAT_AVX512_BITALG, FEAT_AVX512BW},
    {FEAT_AVX512_VPOPCNTDQ, FEAT_AVX512F},
    {FEAT_AVX512_BF16, FEAT_AVX512BW},
    {FEAT_AVX512_FP16, FEAT_AVX512BW},
    {FEAT_CX16, FEAT_CX8},
    {FEAT_LM, FEAT_PAE},
    {FEAT_LM, FEAT_NX},
    {FEAT_LM, FEAT_SYSCALL},
    {FEAT_LM, FEAT_SSE2},
    {FEAT_LM, FEAT_PGE},
    {FEAT_LM, FEAT_CMOV},
    {FEAT_LAHF_LM, FEAT_LM},
    {FEAT_PDPE1GB, FEAT_LM},
    {FEAT_LA57, FEAT_LM},
    {FEAT_PCID, FEAT_LM},
    {FEAT_PCID, FEAT_PGE},
    {FEAT_FSGSBASE, FEAT_LM},
    {FEAT_PKU, FEAT_LM},
    {FEAT_PKU, FEAT_XSAVE},
    {FEAT_PKS, FEAT_LM},
    {FEAT_CET_SS, FEAT_XSAVES}, /* how systems switch its state */
    {FEAT_CET_IBT, FEAT_CET_SS},
    {FEAT_LAM, FEAT_LM},
    {FEAT_PSE36, FEAT_PSE},
    {FEAT_NX, FEAT_PAE},
    {FEAT_X2APIC, FEAT_APIC},
    {FEAT_TSC_DEADLINE, FEAT_APIC},
    {FEAT_TSC_DEADLINE, FEAT_TSC},
    {FEAT_ARAT, FEAT_APIC},
    {FEAT_TSC_ADJUST, FEAT_TSC},
    {FEAT_RDTSCP, FEAT_TSC},
    {FEAT_RDPRU, FEAT_TSC},
    {FEAT_CONSTANT_TSC, FEAT_TSC},
    {FEAT_MCA, FEAT_MCE},
    {FEAT_TSC, FEAT_MSR},
    {FEAT_SEP, FEAT_MSR},
    {FEAT_VMX, FEAT_MSR},
    {FEAT_VMX, FEAT_LM},
    {FEAT_VMX_TPR_SHADOW, FEAT_VMX},
    {FEAT_VMX_APIC_ACCESS, FEAT_VMX},
    {FEAT_VMX_X2APIC, FEAT_VMX_TPR_SHADOW},
    {FEAT_VMX_APICV, FEAT_VMX_TPR_SHADOW},
    {FEAT_VMX_POSTED_INTR, FEAT_VMX_APICV},
    {FEAT_VMX_IPIV, FEAT_VMX_POSTED_INTR},
    {FEAT_VMX_PREEMPTION_TIMER, FEAT_VMX},
    {FEAT_VMX_MTF, FEAT_VMX},
    {FEAT_VMX_DESC_TABLE, FEAT_VMX},
    {FEAT_VMX_EPT, FEAT_VMX},
    {FEAT_VMX_EPT_1G, FEAT_VMX_EPT},
    {FEAT_VMX_EPT_5LEVEL, FEAT_VMX_EPT},
    {FEAT_VMX_EPT_AD, FEAT_VMX_EPT},
    {FEAT_VMX_EPT_EXEC_ONLY, FEAT_VMX_EPT},
    {FEAT_VMX_EPT_INFO, FEAT_VMX_EPT},
    {FEAT_VMX_UNRESTRICTED_GUEST, FEAT_VMX_EPT},
    {FEAT_VMX_VPID, FEAT_VMX},
    {FEAT_VMX_PLE, FEAT_VMX},
    {FEAT_VMX_VMFUNC, FEAT_VMX_EPT},
    {FEAT_VMX_SHADOW_VMCS, FEAT_VMX},
    {FEAT_VMX_PML, FEAT_VMX_EPT_AD},
    {FEAT_VMX_VE, FEAT_VMX_EPT},
    {FEAT_VMX_TSC_SCALING, FEAT_VMX},
    {FEAT_VMX_MBEC, FEAT_VMX_EPT},
    {FEAT_PMU, FEAT_MSR},
    {FEAT_PDCM, FEAT_PMU},
    {FEAT_STIBP, FEAT_SPEC_CTRL},
    {FEAT_SSBD, FEAT_SPEC_CTRL},
    {FEAT_SKINIT, FEAT_SVM},
    {FEAT_NPT, FEAT_SVM},
    {FEAT_LBRV, FEAT_SVM},
    {FEAT_SVM_LOCK, FEAT_SVM},
    {FEAT_NRIPS, FEAT_SVM},
    {FEAT_TSCRATEMSR, FEAT_SVM},
    {FEAT_VMCBCLEAN, FEAT_SVM},
    {FEAT_FLUSHBYASID, FEAT_SVM},
    {FEAT_DECODEASSISTS, FEAT_SVM},
    {FEAT_PAUSEFILTER, FEAT_SVM},
    {FEAT_PFTHRESHOLD, FEAT_PAUSEFILTER},
    {FEAT_VVMLOAD, FEAT_SVM},
    {FEAT_VGIF, FEAT_SVM},
    {FEAT_V_SPEC_CTRL, FEAT_SVM},
    {FEAT_V_SPEC_CTRL, FEAT_AMD_IBRS},
    {FEAT_VNMI, FEAT_VGIF},
    {FEAT_SVME_ADDR_CHK, FEAT_SVM},
};

/* ---- the host ---- */

static u64 host_xcr0(void)
{
    u32 eax, edx;
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return (u64)edx << 32 | eax;
}

static bool host_has(const struct cpu_feature_info *info)
{
    u32 r[4];
    if (info->leaf > __get_cpuid_max(info->leaf & 0x80000000u, NULL))
        return false;
    __cpuid_count(info->leaf, info->subleaf, r[0], r[1], r[2], r[3]);
    if (!(r[info->reg] >> info->bit & 1))
        return false;
    enum cpu_feature f = (enum cpu_feature)(info - cpu_feature_info);
    bool zmm = f == FEAT_AVX512F, ymm = f == FEAT_AVX;
    if (!zmm && !ymm)
        return true; /* the others follow from these two through the dependencies */
    __cpuid(1, r[0], r[1], r[2], r[3]);
    if (!(r[2] & BIT(27))) /* OSXSAVE: without it XGETBV is undefined and the kernel saves no YMM */
        return false;
    if (zmm) { /* the borrowed ALU moves 64-bit masks whatever the instruction: AVX512BW */
        __cpuid_count(7, 0, r[0], r[1], r[2], r[3]);
        if (!(r[1] & BIT(30)))
            return false;
    }
    u64 need = zmm ? 0xe6 : 0x6;
    return (host_xcr0() & need) == need;
}

bool cpu_feature_available(enum cpu_feature f, const char **why)
{
    const char *reason = NULL;
    if (feature_source[f] == ABSENT)
        reason = "Nestor does not implement it";
    else if (feature_source[f] == BORROWED && !host_has(&cpu_feature_info[f]))
        reason = "the host's CPU lacks it";
    if (reason && why)
        *why = reason;
    return !reason;
}

/* ---- the models ---- */

#define COMMON_FEATURES                                                                                      \
    FEAT_FPU, FEAT_VME, FEAT_DE, FEAT_PSE, FEAT_TSC, FEAT_MSR, FEAT_PAE, FEAT_MCE, FEAT_CX8, FEAT_APIC, FEAT_SEP, \
        FEAT_MTRR, FEAT_PGE, FEAT_MCA, FEAT_CMOV, FEAT_PAT, FEAT_PSE36, FEAT_CLFSH, FEAT_MMX, FEAT_FXSR, FEAT_SSE, \
        FEAT_SSE2, FEAT_HTT, FEAT_SSE3, FEAT_PCLMULQDQ, FEAT_MONITOR, FEAT_SSSE3, FEAT_FMA, FEAT_CX16, FEAT_PCID, \
        FEAT_SSE4_1, FEAT_SSE4_2, FEAT_X2APIC, FEAT_MOVBE, FEAT_POPCNT, FEAT_AES, FEAT_XSAVE, FEAT_AVX, FEAT_F16C, \
        FEAT_RDRAND, FEAT_ARAT, FEAT_FSGSBASE, FEAT_BMI1, FEAT_AVX2, FEAT_SMEP, FEAT_BMI2, FEAT_ERMS,            \
        FEAT_INVPCID, FEAT_RDSEED, FEAT_ADX, FEAT_SMAP, FEAT_CLFLUSHOPT, FEAT_CLWB, FEAT_SHA_NI, FEAT_UMIP,      \
        FEAT_PKU, FEAT_VAES, FEAT_VPCLMULQDQ, FEAT_RDPID, FEAT_FSRM, FEAT_XSAVEOPT, FEAT_XSAVEC, FEAT_XGETBV1,   \
        FEAT_XSAVES, FEAT_SYSCALL, FEAT_NX, FEAT_PDPE1GB, FEAT_RDTSCP, FEAT_LM, FEAT_LAHF_LM, FEAT_ABM,          \
        FEAT_PREFETCHW, FEAT_CONSTANT_TSC, FEAT_WBNOINVD

#define AVX512_FEATURES                                                                                      \
    FEAT_AVX512F, FEAT_AVX512DQ, FEAT_AVX512_IFMA, FEAT_AVX512CD, FEAT_AVX512BW, FEAT_AVX512VL, FEAT_AVX512_VBMI,  \
        FEAT_AVX512_VBMI2, FEAT_AVX512_VNNI, FEAT_AVX512_BITALG, FEAT_AVX512_VPOPCNTDQ, FEAT_AVX512_BF16

#define VMX_FEATURES                                                                                        \
    FEAT_VMX_TPR_SHADOW, FEAT_VMX_APIC_ACCESS, FEAT_VMX_X2APIC, FEAT_VMX_APICV, FEAT_VMX_POSTED_INTR, \
        FEAT_VMX_PREEMPTION_TIMER, FEAT_VMX_MTF, FEAT_VMX_DESC_TABLE, FEAT_VMX_EPT, FEAT_VMX_EPT_1G, \
        FEAT_VMX_EPT_AD, FEAT_VMX_EPT_EXEC_ONLY, FEAT_VMX_EPT_INFO, FEAT_VMX_UNRESTRICTED_GUEST, \
        FEAT_VMX_VPID, FEAT_VMX_PLE, FEAT_VMX_VMFUNC, FEAT_VMX_SHADOW_VMCS, FEAT_VMX_PML, FEAT_VMX_VE, \
        FEAT_VMX_TSC_SCALING, FEAT_VMX_MBEC, FEAT_VMX_EPT_5LEVEL, \
        FEAT_VMX_IPIV

#define INTEL_FEATURES                                                                                       \
    COMMON_FEATURES, FEAT_SS, FEAT_VMX, VMX_FEATURES, FEAT_TSC_DEADLINE, FEAT_TSC_ADJUST, FEAT_FDP_EXCPTN_ONLY,              \
        FEAT_ZERO_FCS_FDS, AVX512_FEATURES, FEAT_AVX512_FP16, FEAT_AVX_VNNI, FEAT_GFNI, FEAT_LA57, FEAT_SERIALIZE, \
        FEAT_MOVDIRI, FEAT_MOVDIR64B, FEAT_SPEC_CTRL, FEAT_STIBP, FEAT_ARCH_CAPABILITIES, FEAT_SSBD, \
        FEAT_PMU, FEAT_PDCM, FEAT_PKS, FEAT_WAITPKG

static const u16 intel_features[] = {INTEL_FEATURES, FEAT_NONE};
static const u16 max_features[] = {INTEL_FEATURES, FEAT_CET_SS, FEAT_CET_IBT, FEAT_LAM, FEAT_NONE};
static const u16 amd_features[] = {
    COMMON_FEATURES, FEAT_MMXEXT, FEAT_FXSR_OPT, FEAT_CMP_LEGACY, FEAT_CR8_LEGACY, FEAT_SSE4A, FEAT_OSVW,
    FEAT_TOPOEXT, FEAT_PERFCTR_CORE, FEAT_CLZERO, FEAT_XSAVEERPTR, FEAT_AMD_IBPB, FEAT_AMD_IBRS, FEAT_AMD_STIBP, FEAT_AMD_SSB_NO, FEAT_BTC_NO, FEAT_LFENCE_RDTSC,
    FEAT_NULL_SEG_CLEARS_BASE, FEAT_SRSO_NO, FEAT_LA57, FEAT_GFNI, AVX512_FEATURES, FEAT_TSA_SQ_NO, FEAT_TSA_L1_NO,
    FEAT_SVM, FEAT_NPT, FEAT_LBRV, FEAT_SVM_LOCK, FEAT_NRIPS, FEAT_TSCRATEMSR, FEAT_VMCBCLEAN, FEAT_FLUSHBYASID, FEAT_DECODEASSISTS,
    FEAT_PAUSEFILTER, FEAT_PFTHRESHOLD, FEAT_VVMLOAD, FEAT_VGIF, FEAT_V_SPEC_CTRL, FEAT_VNMI, FEAT_SVME_ADDR_CHK, FEAT_NONE,
};

#define INTEL_CACHES {{1, 1, 12, 64, false}, {2, 1, 8, 64, false}, {3, 2, 16, 2048, false}, {3, 3, 16, 32768, true}}

static const struct cpu_model model_intel = {
    .name = "intel",
    .help = "Intel server processor with VT-x (Sapphire Rapids' identity)",
    .vendor = VENDOR_INTEL,
    .family = 6, .model = 143, .stepping = 8,
    .brand = "Intel(R) Xeon(R) Processor (Nestor)",
    .features = intel_features,
    .maxphyaddr = 46,
    .max_leaf = 0x1f, .max_ext_leaf = 0x80000008,
    .microcode = 0x2b000603ull << 32,
    .cache = INTEL_CACHES,
};

static const struct cpu_model model_amd = {
    .name = "amd",
    .help = "AMD EPYC processor (Genoa's identity)",
    .vendor = VENDOR_AMD,
    .family = 0x19, .model = 0x11, .stepping = 1,
    .brand = "AMD EPYC Processor (Nestor)",
    .features = amd_features,
    .maxphyaddr = 48,
    .max_leaf = 0xd, .max_ext_leaf = 0x80000021,
    .microcode = 0x0a101154,
    .cache = {{1, 1, 8, 64, false}, {2, 1, 8, 64, false}, {3, 2, 8, 1024, false}, {3, 3, 16, 32768, true}},
};

static const struct cpu_model model_max = {
    .name = "max",
    .help = "everything Nestor implements on this host, with Intel's identity",
    .vendor = VENDOR_INTEL,
    .family = 6, .model = 143, .stepping = 8,
    .brand = "Intel(R) Xeon(R) Processor (Nestor)",
    .features = max_features,
    .maxphyaddr = 52,
    .max_leaf = 0x1f, .max_ext_leaf = 0x80000008,
    .microcode = 0x2b000603ull << 32,
    .cache = INTEL_CACHES,
};

const struct cpu_model *const cpu_models[] = {&model_intel, &model_amd, &model_max};
const unsigned cpu_model_count = ARRAY_SIZE(cpu_models);

/* ---- parsing ---- */

/* Letters without case; '-', '_' and '.' are one: sse4.1 is SSE4_1. */
static char fold(char c)
{
    if (c >= 'a' && c <= 'z')
        return (char)(c - 'a' + 'A');
    return c == '-' || c == '.' ? '_' : c;
}

static bool same_name(const char *a, const char *b)
{
    while (*a && fold(*a) == fold(*b))
        a++, b++;
    return *a == *b;
}

enum cpu_feature cpu_feature_find(const char *name)
{
    for (unsigned f = 1; f < FEAT_COUNT; f++)
        if (same_name(cpu_feature_info[f].name, name))
            return (enum cpu_feature)f;
    return FEAT_NONE;
}

/* Edit distance of two short names, for "did you mean". */
static unsigned distance(const char *a, const char *b)
{
    enum { MAX = 32 };
    unsigned row[MAX + 1], m = (unsigned)strnlen(b, MAX);
    for (unsigned j = 0; j <= m; j++)
        row[j] = j;
    for (unsigned i = 1; a[i - 1]; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= m; j++) {
            unsigned best = diagonal + (fold(a[i - 1]) != fold(b[j - 1]));
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[m];
}

static int unknown_feature(const char *name, struct error *err)
{
    const char *best = NULL;
    unsigned best_distance = 3;
    for (unsigned f = 1; f < FEAT_COUNT; f++) {
        unsigned d = distance(name, cpu_feature_info[f].name);
        if (d < best_distance)
            best_distance = d, best = cpu_feature_info[f].name;
    }
    if (best)
        return error_set(err, "--cpu: unknown feature '%s'; did you mean %s?", name, best);
    return error_set(err, "--cpu: unknown feature '%s'; 'nestor list cpus' names them", name);
}

static int unknown_model(const char *name, struct error *err)
{
    char names[256] = "";
    for (unsigned n = 0; n < cpu_model_count; n++) {
        if (n)
            strncat(names, ", ", sizeof(names) - strlen(names) - 1);
        strncat(names, cpu_models[n]->name, sizeof(names) - strlen(names) - 1);
    }
    return error_set(err, "--cpu: unknown model '%s'; expected one of %s", name, names);
}

/*
 * Takes away what lacks something it needs, until nothing changes; returns the first dependency that
 * would take away a feature of @keep (may be NULL), or NULL.
 */
static const struct dependency *drop_dependents(u8 features[FEAT_COUNT], const u8 *keep)
{
    for (bool again = true; again;) {
        again = false;
        for (unsigned n = 0; n < ARRAY_SIZE(dependencies); n++) {
            const struct dependency *d = &dependencies[n];
            if (!features[d->f] || features[d->needs])
                continue;
            if (keep && keep[d->f])
                return d;
            features[d->f] = 0;
            again = true;
        }
    }
    return NULL;
}

void cpu_model_features(const struct cpu_model *model, u8 features[FEAT_COUNT])
{
    memset(features, 0, FEAT_COUNT);
    for (const u16 *f = model->features; *f; f++)
        features[*f] = cpu_feature_available((enum cpu_feature)*f, NULL);
    drop_dependents(features, NULL);
}

static int parse_number(const char *key, const char *value, unsigned low, unsigned high, unsigned *out,
                        struct error *err)
{
    char *end;
    unsigned long n = strtoul(value, &end, 0);
    if (*value < '0' || *value > '9' || *end || n < low || n > high)
        return error_set(err, "--cpu: %s=%s: expected a number from %u to %u", key, value, low, high);
    *out = (unsigned)n;
    return 0;
}

static int parse_item(const char *item, u8 features[FEAT_COUNT], u8 asked[FEAT_COUNT], struct cpu_options *options,
                      struct error *err)
{
    const char *equals = strchr(item, '=');
    if (equals) {
        size_t len = (size_t)(equals - item);
        if (len == strlen("maxphyaddr") && !strncasecmp(item, "maxphyaddr", len))
            return parse_number("maxphyaddr", equals + 1, 36, 52, &options->maxphyaddr, err);
        return error_set(err, "--cpu: unknown option '%.*s'; expected maxphyaddr=N", (int)len, item);
    }
    if (*item != '+' && *item != '-')
        return error_set(err, "--cpu: '%s': expected +FEATURE, -FEATURE or maxphyaddr=N after the model", item);
    enum cpu_feature f = cpu_feature_find(item + 1);
    if (f == FEAT_NONE)
        return unknown_feature(item + 1, err);
    const char *why;
    if (*item == '+' && !cpu_feature_available(f, &why))
        return error_set(err, "--cpu: +%s: %s", cpu_feature_info[f].name, why);
    features[f] = asked[f] = *item == '+';
    return 0;
}

int cpu_model_parse(const char *text, const struct cpu_model **model, u8 features[FEAT_COUNT],
                    struct cpu_options *options, struct error *err)
{
    struct cpu_options local = {0}, *opts = options ? options : &local;
    u8 asked[FEAT_COUNT] = {0};
    char item[64];
    *opts = (struct cpu_options){0};
    *model = NULL;
    for (bool first = true;; first = false) {
        size_t len = strcspn(text, ",");
        if (len >= sizeof(item))
            return error_set(err, "--cpu: '%.40s...' is too long for a name", text);
        memcpy(item, text, len);
        item[len] = 0;
        if (first) {
            for (unsigned n = 0; n < cpu_model_count; n++)
                if (same_name(cpu_models[n]->name, *item ? item : cpu_models[0]->name))
                    *model = cpu_models[n];
            if (!*model)
                return unknown_model(item, err);
            cpu_model_features(*model, features);
        } else if (parse_item(item, features, asked, opts, err)) {
            return -1;
        }
        if (!text[len])
            break;
        text += len + 1;
    }
    const struct dependency *broken = drop_dependents(features, asked);
    if (broken)
        return error_set(err, "--cpu: %s needs %s", cpu_feature_info[broken->f].name,
                         cpu_feature_info[broken->needs].name);
    return 0;
}
