/*
 * What processor a vCPU claims to be, and `--cpu MODEL,+name,-name,key=value`.
 *
 * A model lists the features its namesake has and Nestor implements. Features of borrowed
 * instructions exist only where the host has them: a model drops those the host lacks, an explicit
 * +name of one is an error.
 */
#pragma once
#include "base/error.h"
#include "cpu/features.h"

enum cpu_vendor { VENDOR_INTEL, VENDOR_AMD };

/* CPUID leaf 4 and 0x8000001D: one cache. */
struct cpu_cache {
    u8 type;    /* 1 data, 2 instruction, 3 unified */
    u8 level;
    u16 ways;
    u32 sets;   /* lines are 64 bytes */
    bool shared; /* by all processors of the package; else private */
};

struct cpu_model {
    const char *name, *help;
    enum cpu_vendor vendor;
    u16 family, model, stepping; /* display family and model */
    const char *brand;           /* at most 47 characters */
    const u16 *features;         /* enum cpu_feature, ended by FEAT_NONE */
    u8 maxphyaddr;
    u32 max_leaf, max_ext_leaf;
    u64 microcode;               /* IA32_BIOS_SIGN_ID or PATCH_LEVEL as RDMSR returns it */
    struct cpu_cache cache[4];
};

/* The core crystal clock of CPUID leaf 0x15, which also feeds the local APIC's timer (LAPIC_TIMER_HZ). */
#define CRYSTAL_HZ 1000000000u

extern const struct cpu_model *const cpu_models[];
extern const unsigned cpu_model_count;

/* A feature bit's place in CPUID. */
struct cpu_feature_info {
    const char *name;
    u32 leaf;
    u8 subleaf, reg, bit; /* reg: 0..3 = EAX EBX ECX EDX */
};
extern const struct cpu_feature_info cpu_feature_info[FEAT_COUNT];

/* Whether this build on this host can offer @f; if not and @why is not NULL, *why says in words. */
bool cpu_feature_available(enum cpu_feature f, const char **why);
enum cpu_feature cpu_feature_find(const char *name); /* case and -_. do not matter; FEAT_NONE: no such name */

/* Numbers that a --cpu text may set; 0: the model's own. */
struct cpu_options {
    unsigned maxphyaddr;
};

/*
 * Parses MODEL[,+name|,-name|,key=value]...; an empty text is the first model. Fills @features
 * (FEAT_COUNT bytes, 0 or 1) and @options (may be NULL). Returns 0, or -1 with @err filled.
 */
int cpu_model_parse(const char *text, const struct cpu_model **model, u8 features[FEAT_COUNT],
                    struct cpu_options *options, struct error *err);
/* The model's own features on this host. */
void cpu_model_features(const struct cpu_model *model, u8 features[FEAT_COUNT]);
