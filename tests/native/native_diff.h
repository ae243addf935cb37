/*
 * The native differential test (native_diff.c): what its parts share.
 *
 *   sides.c    one case on the host CPU and on Nestor's decoder and handlers
 *   cases.c    making cases: encodings of every row, illegal forms, sequences, addresses
 *   operands.c random numbers and operands
 *   compare.c  what must be equal; the re-encoder
 *   text.c     a case as one line of text, and making it small
 */
#pragma once
#include "cpu/borrow.h"
#include "cpu/cpu.h"
#include "cpu/isa/encode.h"
#include "cpu/models.h"
#include "mmu/physmap.h"
#include "native_run.h"

#include <stdio.h>

/* ---- the sandbox: the same addresses natively and in the guest ---- */

#define EXIT_VA 0x1fff0000ull      /* from 32-bit code back to the program */
#define CODE_VA 0x20000000ull
#define CODE_AT (CODE_VA + 0x800)  /* the instructions; int3 all around, so that near branches land */
#define DATA_VA 0x20010000ull      /* two pages to read and write, one to read, then nothing */
#define DATA_SIZE 0x3000ull
#define RO_VA (DATA_VA + 0x2000)

#define SEQUENCE_MAX 6u

/* What the host has of the vector registers: how many, and quadwords of one. */
#define VECTORS (nat_mask & XCR0_HI16_ZMM ? 32u : 16u)
#define LANES (nat_mask & XCR0_ZMM_HI256 ? 8u : nat_mask & XCR0_AVX ? 4u : 2u)

struct state {
    u64 gpr[16];
    u64 rip, rflags;
    union vec_reg vec[32];
    u64 k[8];
    u32 mxcsr;
    struct x87 x87;
    int vector; /* -1: none */
    u32 error;
    u64 cr2;
};

struct testcase {
    u8 bytes[SEQUENCE_MAX * 16 + 32];
    unsigned len;          /* of all instructions */
    unsigned count;        /* instructions */
    struct insn insn;      /* the first */
    struct insn more[SEQUENCE_MAX - 1];
    struct state in;
    u8 data[DATA_SIZE];
    u64 target;            /* address of the memory operand */
    bool branch;
    bool too_long;         /* more than 15 bytes: #GP(0) */
    bool legacy;           /* in a 32-bit code segment */
};

static inline const struct insn *case_insn(const struct testcase *t, unsigned n) { return n ? &t->more[n - 1] : &t->insn; }

/* ---- sides.c ---- */
struct sides {
    struct vcpu *v;
    bool amd; /* the host's vendor, whose rules the decoder follows */
    u8 *guest_code, *guest_data;
    u8 *native_data; /* all of it, to read and write: what lies at DATA_VA */
};
extern struct sides sides;
void sides_init(void);
void run_host(const struct testcase *t, struct state *out);
void run_guest(const struct testcase *t, struct state *out);
void die(const char *what) __attribute__((noreturn));

/* ---- operands.c ---- */
void rnd_init(void);
void rnd_seed(u64 seed);
u64 rnd(void);
u64 rnd_below(u64 n);
bool chance(unsigned percent);
u64 rnd_int(void);
void rnd_state(struct testcase *t); /* t->in, for t->legacy */
void rnd_data(struct testcase *t);

/* ---- cases.c ---- */
enum case_kind { CASE_ONE, CASE_FORM, CASE_SEQUENCE, CASE_KINDS };
#define STATES 8u /* consecutive cases share an encoding */
extern const char *const case_kind_names[CASE_KINDS];
const char *why_excluded(const struct insn_row *row); /* NULL: it is run */
bool is_string(const struct insn_row *row);
bool is_branch(const struct insn_row *row);
bool starts(const struct insn_row *row, const char *prefix);
enum case_kind case_kind(u64 n, unsigned rows);
/* Whether case number @n of @row is made for a 32-bit code segment. */
bool case_legacy(u64 n, unsigned rows, const struct insn_row *row);
/* Builds case number @n for @row; false when no encoding of it was found. t->legacy has been set. */
bool make_case(struct testcase *t, unsigned row, u64 seed, u64 n, enum case_kind kind);
/* Decodes what is in t->bytes (t->len of them). */
bool case_decode(struct testcase *t);
const struct decode_ctx *case_ctx(const struct testcase *t);
/*
 * The host is an emulator itself: EVEX prefix bits that the processor ignores are set as assemblers do,
 * vector indices stay below 16, and the element that a vector access faults on may differ.
 */
extern bool emulated_host;

/* ---- compare.c ---- */
extern char report[4096];
extern int failure[2]; /* the exceptions of the two sides in the last case */
extern bool exact_undefined; /* compare undefined flags too */
/* Runs a made case on both sides; false: they differ, and report says how. */
bool run_case(const struct testcase *t);
extern u64 faults[32]; /* by vector, of the native side */

/* ---- text.c ---- */
/* Makes @t, which fails, as small as it stays failing. */
void case_minimise(struct testcase *t);
void case_print(FILE *f, const struct testcase *t);
bool case_parse(struct testcase *t, const char *line); /* false: not a case */
