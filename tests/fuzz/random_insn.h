/* Random numbers and random encodings, for what runs random programs. */
#pragma once
#include "cpu/isa/insn.h"

extern u64 random_state; /* never 0 */
u64 rnd(void);
unsigned below(unsigned n);

#define RANDOM_INSN_MAX 40
/*
 * An encoding of @row for code of @bits bits around random operands, with random prefixes: half of the memory operands are
 * [rBP + disp] or, in 64-bit code, [R14 + disp] with displacements below 0x1400 either way. At most RANDOM_INSN_MAX
 * bytes, longer than the instruction; 0: not a row for this (EVEX).
 */
unsigned random_insn(const struct insn_row *row, unsigned bits, u8 *out);
