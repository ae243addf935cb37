/*
 * The encodings that the decoder is compared on: every opcode of every map with every ModRM byte,
 * under the prefixes that change its meaning, in three modes; VEX over map, prefix, W, L, opcode and
 * ModRM; and random bytes with a fixed seed. Each is handed out as 16 bytes of which the tail is
 * filler.
 */
#pragma once
#include "cpu/isa/insn.h"

typedef void corpus_fn(void *opaque, enum code_mode mode, const u8 bytes[16]);
void corpus_each(corpus_fn *fn, void *opaque);
