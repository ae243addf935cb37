/* CPUID features as run-time bits. */
#pragma once
#include "base/types.h"

enum cpu_feature {
    FEAT_NONE,
#define FEATURE(name, leaf, subleaf, reg, bit) FEAT_##name,
#include "cpu/features.def"
#undef FEATURE
    FEAT_COUNT
};
