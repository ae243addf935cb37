/* What Capstone sees differently, and why. */
#pragma once
#include "cpu/isa/insn.h"

struct sample {
    enum code_mode mode;
    const u8 *bytes;
    const struct insn *insn;
    const char *ours, *theirs; /* lower case; "-" when undefined */
    unsigned ours_len, theirs_len;
};

bool same_name(const char *ours, const char *theirs);

enum { IN16 = 1, IN32 = 2, IN64 = 4, IN_ALL = 7 };
struct difference {
    u8 modes;
    const char *ours, *theirs;           /* fnmatch patterns */
    bool (*when)(const struct sample *); /* NULL: always */
    const char *reason;
};
extern const struct difference known[];
extern const unsigned known_count;
extern u64 known_hits[];
