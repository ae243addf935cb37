/*
 * The borrowed ALU (design: "Borrow the host's ALU").
 *
 * An instruction of an `=borrow` row is re-encoded once with canonical registers (register operand 1,
 * r/m operand 2, vvvv 3, is4 4; memory through a pointer) and wrapped in a thunk that loads those
 * from pointers, executes it, and stores what it writes. All instructions that differ only in their
 * registers and addresses share one thunk; it is found by its canonical encoding and remembered in
 * insn.thunk.
 *
 * - Legacy SSE thunks move 16 bytes, so upper halves stay as they are; VEX destinations are
 *   stored to the full width of the guest's registers, so what the host zeroed is zero in the guest.
 * - EVEX thunks move 64 bytes and take the opmask in K1, from where the last pointer says. What a mask
 *   leaves out of a memory operand must not fault: where the operand is not wholly in one page that the
 *   guest may access, the selected elements go through a buffer.
 * - Rows that read or write MXCSR run with the guest's. While every exception is masked the host's
 *   sticky flags are the guest's. With an unmasked exception the thunk runs masked with clear flags
 *   and the flags decide (SDM vol. 1, 11.5.3 "Handling SIMD Floating-Point Exceptions in Software":
 *   pre-computation exceptions first, for all elements; only without an unmasked one of those the
 *   post-computation exceptions). The host never sees SIGFPE.
 * - Code memory is W^X: one memfd, mapped writable at one address and executable at another. It
 *   belongs to one vCPU, so vCPUs on threads of their own need no locks here.
 */
#include "cpu/borrow.h"
#include "cpu/bodies_simd.h"
#include "cpu/evex.h"
#include "cpu/isa/encode.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xmmintrin.h>
#include <cpuid.h>

#define ARENA_SIZE (16u << 20)
#define THUNK_MAX 256u      /* bytes of code one thunk may take */
#define HASH_SIZE 4096u
#define MXCSR_CONTROL 0xffc0u

typedef void simd_thunk(struct vcpu *v, void *reg, void *rm, void *vvvv, void *is4);

/* Where a register operand lives in struct vcpu: offset + (number << shift). */
struct place {
    u16 offset;
    u8 shift;
    u8 limit; /* mask of the register number */
};

struct thunk {
    union {
        simd_thunk *simd;
        void (*x87)(void *image, void *mem, u32 *aflags);
        const void *code;
    };
    struct place reg, rm, vvvv, is4;
    struct x87_op x87op;
    u8 narrowing; /* elements CVTSD2SS or CVTPD2PS converts (a broadcast: 1); else 0 */
    u8 halving;   /* elements VCVTPS2PH converts; else 0 */
    bool is_x87, mmx, mxcsr, byte_reg, byte_rm;
    u8 mmx_written;  /* bit 0: reg, bit 1: rm is an MMX destination */
    u8 mem_access;   /* 1 read, 2 written; 0: no memory operand */
    u8 mem_size;
    u8 align;        /* the host faults unless the pointer is aligned to this */
    bool masked;     /* a mask selects elements of the memory operand */
    bool masked_reg; /* a mask is there at all: the last pointer is to it */
    bool no_exceptions; /* embedded rounding or SAE */
    bool packed, no_suppression;
    u8 elem, mask_bits; /* masked: bytes of an element in memory, mask bits that count */
    /* identity */
    struct thunk *next;
    u8 key_len;
    u8 key[INSN_ENCODE_MAX]; /* the canonical encoding */
};

struct borrow {
    u8 *rw, *rx;      /* the same memory, writable and executable */
    size_t used;
    bool wide;        /* the guest's registers are 64 bytes: results must zero the upper half too */
    struct thunk *hash[HASH_SIZE];
    struct thunk scratch; /* when the arena is full: rebuilt for each execution */
    unsigned count, scratched;
};

/* ---- code memory ---- */

int borrow_init(struct vcpu *v, struct error *err)
{
    if (v->borrow)
        return 0;
    struct borrow *b = calloc(1, sizeof(*b));
    if (!b)
        return error_set(err, "borrow: out of memory");
    int fd = memfd_create("nestor-borrow", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, ARENA_SIZE) < 0) {
        if (fd >= 0)
            close(fd);
        free(b);
        return error_set(err, "borrow: no memory file for host code: %m");
    }
    b->rw = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    b->rx = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    close(fd);
    if (b->rw == MAP_FAILED || b->rx == MAP_FAILED) {
        if (b->rw != MAP_FAILED)
            munmap(b->rw, ARENA_SIZE);
        if (b->rx != MAP_FAILED)
            munmap(b->rx, ARENA_SIZE);
        free(b);
        return error_set(err, "borrow: cannot map executable memory: %m");
    }
    b->used = THUNK_MAX; /* the first slot is the scratch thunk's */
    b->wide = cpu_has(v, FEAT_AVX512F);
    v->borrow = b;
    return 0;
}

void borrow_free(struct vcpu *v)
{
    struct borrow *b = v->borrow;
    if (!b)
        return;
    for (unsigned n = 0; n < HASH_SIZE; n++)
        for (struct thunk *t = b->hash[n], *next; t; t = next) {
            next = t->next;
            free(t);
        }
    munmap(b->rw, ARENA_SIZE);
    munmap(b->rx, ARENA_SIZE);
    free(b);
    v->borrow = NULL;
}

struct borrow_stats borrow_stats(const struct vcpu *v)
{
    const struct borrow *b = v->borrow;
    return b ? (struct borrow_stats){ b->count, b->scratched, b->used } : (struct borrow_stats){ 0 };
}

/* ---- thunk code ---- */

struct code {
    u8 *p;
};

static void put(struct code *c, const u8 *bytes, unsigned n)
{
    memcpy(c->p, bytes, n);
    c->p += n;
}
#define PUT(c, ...) put(c, (const u8[]){ __VA_ARGS__ }, sizeof((u8[]){ __VA_ARGS__ }))

/* ModRM for [base + disp32], base not RSP or R12. */
static void put_mem(struct code *c, unsigned reg, unsigned base, u32 disp)
{
    PUT(c, (u8)(0x80 | (reg & 7) << 3 | (base & 7)));
    put(c, (const u8 *)&disp, 4);
}

/* [prefix] REX 0F op reg, [base]: legacy SSE and MMX moves. */
static void put_sse(struct code *c, u8 prefix, u8 op, unsigned reg, unsigned base, u32 disp)
{
    if (prefix)
        PUT(c, prefix);
    if (reg > 7 || base > 7)
        PUT(c, (u8)(0x40 | (reg >> 3) << 2 | base >> 3));
    PUT(c, 0x0f, op);
    put_mem(c, reg, base, disp);
}

static void put_vex(struct code *c, u8 op, unsigned vl, unsigned reg, unsigned base, u32 disp)
{
    PUT(c, 0xc4, (u8)((~reg >> 3 & 1) << 7 | 0x40 | (~base >> 3 & 1) << 5 | 1), (u8)(0x78 | vl << 2 | 2), op);
    put_mem(c, reg, base, disp);
}

/* VMOVDQU64 of ZMM @reg (0..7): 6F loads, 7F stores. */
static void put_zmm(struct code *c, u8 op, unsigned reg, unsigned base, u32 disp)
{
    PUT(c, 0x62, (u8)(0xd1 | (~base >> 3 & 1) << 5), 0xfe, 0x48, op);
    put_mem(c, reg, base, disp);
}

/* KMOVQ of @reg and memory: 90 loads, 91 stores. */
static void put_kmov(struct code *c, u8 op, unsigned reg, unsigned base, u32 disp)
{
    PUT(c, 0xc4, (u8)(0xc1 | (~base >> 3 & 1) << 5), 0xf8, op);
    put_mem(c, reg, base, disp);
}

/* 64-bit (or byte) general-purpose register moves: op 8B load, 89 store, 8A/88 bytes. */
static void put_gpr(struct code *c, u8 op, unsigned reg, unsigned base, u32 disp)
{
    PUT(c, (u8)((op & 1 ? 0x48 : 0x40) | (reg >> 3) << 2 | base >> 3), op);
    put_mem(c, reg, base, disp);
}

enum { KIND_NONE, KIND_VEC, KIND_MMX, KIND_GPR, KIND_GPR8, KIND_MASK };

static unsigned kind_of(const struct operand *o)
{
    switch (o->kind) {
    case OPND_VEC_REG: case OPND_VEC_RM: case OPND_VEC_VVVV: case OPND_VEC_IS4:
        return KIND_VEC;
    case OPND_MMX_REG: case OPND_MMX_RM:
        return KIND_MMX;
    case OPND_GPR_REG: case OPND_GPR_RM: case OPND_GPR_VVVV: case OPND_GPR_OP:
        return o->size == 1 ? KIND_GPR8 : KIND_GPR;
    case OPND_MASK_REG: case OPND_MASK_RM:
        return KIND_MASK;
    }
    return KIND_NONE;
}

enum slot { SLOT_REG, SLOT_RM, SLOT_VVVV, SLOT_IS4, SLOT_COUNT };

static int slot_of(const struct operand *o)
{
    switch (o->kind) {
    case OPND_VEC_REG: case OPND_MMX_REG: case OPND_GPR_REG: case OPND_MASK_REG:
        return SLOT_REG;
    case OPND_VEC_RM: case OPND_MMX_RM: case OPND_GPR_RM: case OPND_GPR_OP: case OPND_MASK_RM:
        return SLOT_RM;
    case OPND_VEC_VVVV: case OPND_GPR_VVVV:
        return SLOT_VVVV;
    case OPND_VEC_IS4:
        return SLOT_IS4;
    }
    return -1;
}

/* Canonical host registers. General-purpose ones avoid the pointers (RDI RSI RDX RCX R8). */
static const u8 canonical_gpr[SLOT_COUNT] = { RAX, R9, R11, 0 };
#define CANONICAL_VEC(slot) ((slot) + 1u)
#define CANONICAL_MASK(slot) ((slot) + 2u) /* K1 is the instruction's own */

/* RCP and RSQRT approximations, logic, moves and shuffles do not (SDM vol. 1, 11.5.2 "SIMD Floating-Point
 * Exception Conditions": the instructions each exception names). */
bool borrow_uses_mxcsr(const struct insn_row *row)
{
    unsigned op = row->opcode;
    if (row->vex == 2)
        return row->evex & EVEX_MXCSR;
    switch (row->map) {
    case 1:
        if (op == 0x52 || op == 0x53)
            return false;
        return (op >= 0x2a && op <= 0x2f && op != 0x2b) || op == 0x51 || (op >= 0x58 && op <= 0x5f) ||
               op == 0x7c || op == 0x7d || op == 0xc2 || op == 0xd0 || op == 0xe6;
    case 2:
        return row->vex && (op == 0x13 || (op >= 0x96 && op <= 0x9f) || (op >= 0xa6 && op <= 0xaf) || (op >= 0xb6 && op <= 0xbf));
    case 3:
        return (op >= 0x08 && op <= 0x0b) || op == 0x40 || op == 0x41 || (row->vex && op == 0x1d);
    }
    return false;
}

/* Memory forms that the host executes at any alignment. */
static unsigned host_alignment(const struct insn_row *row, unsigned size)
{
    unsigned op = row->opcode;
    if (size < 16)
        return 1;
    if (row->vex == 2)
        return row->checks & CHK_ALIGN16 ? size : 1;
    if (row->vex) { /* only the moves that say so need alignment (SDM vol. 1, 14.9 "Memory Alignment") */
        bool aligned = (row->map == 1 && (op == 0x28 || op == 0x29 || op == 0x2b || op == 0xe7 ||
                                          ((op == 0x6f || op == 0x7f) && row->pp == 1))) ||
                       (row->map == 2 && op == 0x2a);
        return aligned ? size : 1;
    }
    if (row->map == 1 && (op == 0x10 || op == 0x11 || ((op == 0x6f || op == 0x7f) && row->pp == 2) || op == 0xf0))
        return 1;
    if (row->map == 3 && op >= 0x60 && op <= 0x63) /* PCMPxSTRx */
        return 1;
    return 16;
}

/* Operands that no ModRM byte names, whether or not the row lists them. */
struct implicit {
    bool xmm0_read, xmm0_written, lengths, rcx_written;
};

static struct implicit implicit_of(const struct insn_row *row)
{
    struct implicit m = { 0 };
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].kind == OPND_VEC_FIXED) {
            m.xmm0_read = true;
            m.xmm0_written |= row->opnd[n].access & 2;
        }
    if (row->map == 2 && !row->vex && (row->opcode == 0x10 || row->opcode == 0x14 || row->opcode == 0x15 || row->opcode == 0xcb))
        m.xmm0_read = true; /* PBLENDVB, BLENDVPS, BLENDVPD, SHA256RNDS2 */
    if (row->map == 3 && row->opcode >= 0x60 && row->opcode <= 0x63 && row->vex < 2) {
        m.lengths = !(row->opcode & 2);      /* PCMPESTRM, PCMPESTRI: RAX, RDX */
        m.rcx_written = row->opcode & 1;     /* ...STRI */
        m.xmm0_written = !(row->opcode & 1); /* ...STRM */
    }
    return m;
}

static struct place place_of(unsigned kind)
{
    switch (kind) {
    case KIND_VEC: return (struct place){ offsetof(struct vcpu, vec), 6, 31 };
    case KIND_MMX: return (struct place){ offsetof(struct vcpu, x87.st), 4, 7 };
    case KIND_GPR: return (struct place){ offsetof(struct vcpu, gpr), 3, 15 };
    case KIND_GPR8: return (struct place){ offsetof(struct vcpu, gpr), 0, 127 };
    case KIND_MASK: return (struct place){ offsetof(struct vcpu, k), 3, 7 };
    }
    return (struct place){ 0, 0, 0 };
}

static void put_flags_load(struct code *c, unsigned base, u32 disp)
{
    PUT(c, (u8)(0x8b));
    put_mem(c, RAX, base, disp);
    PUT(c, 0x50, 0x9d); /* push rax; popfq */
}

static void put_flags_store(struct code *c, unsigned base, u32 disp)
{
    PUT(c, 0x9c, 0x58);                           /* pushfq; pop rax */
    PUT(c, 0x25, (u8)FL_ARITH, (u8)(FL_ARITH >> 8), 0, 0); /* and eax, FL_ARITH */
    PUT(c, 0x89);
    put_mem(c, RAX, base, disp);
}

/* A VEX destination: the host zeroed YMM above the result, and nothing is left above YMM. */
static void put_vex_result(const struct borrow *b, struct code *c, unsigned reg, unsigned base, u32 disp)
{
    put_vex(c, 0x7f, 1, reg, base, disp);
    if (b->wide) {
        PUT(c, 0xc4, 0x41, 0x01, 0xef, 0xff); /* vpxor xmm15, xmm15, xmm15 */
        put_vex(c, 0x7f, 1, 15, base, disp + 32);
    }
}

/* What an EVEX instruction's opmask means for its memory operand. */
static void plan_mask(struct thunk *t, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    t->masked_reg = i->mask;
    t->no_exceptions = i->flags & INSN_RND;
    t->masked = i->mask && t->mem_access;
    if (!t->masked)
        return;
    t->elem = row->elem;
    t->packed = row->evex & EVEX_PACKED;
    t->no_suppression = row->evex & EVEX_NF;
    unsigned vector = 16u << i->vl, bytes = t->mem_size;
    if (row->evex & EVEX_REPEATED && !(t->mem_access & 2))
        bytes = vector;
    else if (i->flags & INSN_BCST) /* as many elements as without the broadcast */
        for (unsigned n = 0; n < row->nopnd; n++)
            if (row->opnd[n].kind == OPND_VEC_RM)
                bytes = row->opnd[n].size < OPSZ_X ? row->opnd[n].size : vector >> (row->opnd[n].size - OPSZ_X);
    t->mask_bits = (u8)(bytes / t->elem);
}

static void build_simd(const struct borrow *b, struct thunk *t, struct code *c, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    struct implicit m = implicit_of(row);
    bool mem = i->flags & INSN_MEM, ymm = false;
    u8 pointer[SLOT_COUNT] = { RSI, RDX, RCX, R8 };
    struct place *places[SLOT_COUNT] = { &t->reg, &t->rm, &t->vvvv, &t->is4 };
    u8 kinds[SLOT_COUNT] = { 0 }, access[SLOT_COUNT] = { 0 };

    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        int slot = slot_of(o);
        bool is_mem = mem && (slot == SLOT_RM || o->kind == OPND_MEM) && o->kind != OPND_GPR_OP;
        if (is_mem) {
            t->mem_size = (u8)operand_bytes(i, n);
            t->mem_access |= o->access;
        } else if (slot >= 0) {
            kinds[slot] = (u8)kind_of(o);
            access[slot] |= o->access;
        }
    }
    for (unsigned s = 0; s < SLOT_COUNT; s++) {
        *places[s] = place_of(kinds[s]);
        t->mmx |= kinds[s] == KIND_MMX;
    }
    t->byte_reg = kinds[SLOT_REG] == KIND_GPR8;
    t->byte_rm = kinds[SLOT_RM] == KIND_GPR8;
    t->mmx_written = (u8)((kinds[SLOT_REG] == KIND_MMX && (access[SLOT_REG] & 2) ? 1 : 0) |
                          (kinds[SLOT_RM] == KIND_MMX && (access[SLOT_RM] & 2) ? 2 : 0));
    t->mxcsr = borrow_uses_mxcsr(row);
    if (row->map == 1 && row->opcode == 0x5a && row->pp & 1) /* 66: packed, F2: scalar */
        t->narrowing = row->pp == 3 || i->flags & INSN_BCST ? 1 : (u8)(2 << i->vl);
    if (row->vex && row->map == 3 && row->opcode == 0x1d)
        t->halving = (u8)(4 << i->vl);
    if (row->vex == 2)
        plan_mask(t, i);
    if (t->mem_access)
        t->align = (u8)host_alignment(row, t->mem_size);

    struct encode_regs regs = { .reg = CANONICAL_VEC(SLOT_REG), .rm = CANONICAL_VEC(SLOT_RM), .vvvv = CANONICAL_VEC(SLOT_VVVV),
                                .is4 = CANONICAL_VEC(SLOT_IS4), .mask = 1, .index = REG_NONE };
    if (kinds[SLOT_REG] == KIND_GPR || kinds[SLOT_REG] == KIND_GPR8)
        regs.reg = canonical_gpr[SLOT_REG];
    if (kinds[SLOT_RM] == KIND_GPR || kinds[SLOT_RM] == KIND_GPR8)
        regs.rm = canonical_gpr[SLOT_RM];
    if (kinds[SLOT_VVVV] == KIND_GPR)
        regs.vvvv = canonical_gpr[SLOT_VVVV];
    if (kinds[SLOT_REG] == KIND_MASK)
        regs.reg = CANONICAL_MASK(SLOT_REG);
    if (kinds[SLOT_RM] == KIND_MASK)
        regs.rm = CANONICAL_MASK(SLOT_RM);

    PUT(c, 0xf3, 0x0f, 0x1e, 0xfa); /* endbr64 */
    u32 flags = row->flags_written | row->flags_undefined;
    if (row->flags_read || (flags && (flags & FL_ARITH) != FL_ARITH))
        put_flags_load(c, RDI, offsetof(struct vcpu, aflags));
    if (t->mxcsr) { /* ldmxcsr */
        PUT(c, 0x0f, 0xae);
        put_mem(c, 2, RDI, offsetof(struct vcpu, mxcsr));
    }
    if (m.lengths || m.rcx_written) {
        PUT(c, 0x49, 0x89, 0xd2, 0x49, 0x89, 0xcb); /* mov r10, rdx; mov r11, rcx */
        pointer[SLOT_RM] = R10;
        pointer[SLOT_VVVV] = R11;
        put_gpr(c, 0x8b, RAX, RDI, offsetof(struct vcpu, gpr[RAX]));
        put_gpr(c, 0x8b, RDX, RDI, offsetof(struct vcpu, gpr[RDX]));
    }
    regs.base = pointer[SLOT_RM];

    for (unsigned s = 0; s < SLOT_COUNT; s++) {
        unsigned n = CANONICAL_VEC(s);
        switch (kinds[s]) {
        case KIND_VEC:
            if (!row->vex) {
                put_sse(c, 0xf3, 0x6f, n, pointer[s], 0);
            } else if (row->vex == 2) {
                if (access[s] & 1 || (i->mask && !(i->flags & INSN_ZERO)))
                    put_zmm(c, 0x6f, n, pointer[s], 0);
            } else if (access[s] & 1) {
                put_vex(c, 0x6f, i->vl ? 1 : 0, n, pointer[s], 0);
                ymm |= i->vl;
            }
            break;
        case KIND_MMX:
            put_sse(c, 0, 0x6f, n, pointer[s], 0);
            break;
        case KIND_GPR:
            put_gpr(c, 0x8b, canonical_gpr[s], pointer[s], 0);
            break;
        case KIND_GPR8:
            put_gpr(c, 0x8a, canonical_gpr[s], pointer[s], 0);
            break;
        case KIND_MASK:
            if (access[s] & 1)
                put_kmov(c, 0x90, CANONICAL_MASK(s), pointer[s], 0);
            break;
        }
    }
    if (t->masked_reg)
        put_kmov(c, 0x90, 1, pointer[SLOT_IS4], 0);
    if (m.xmm0_read)
        put_sse(c, 0xf3, 0x6f, 0, RDI, offsetof(struct vcpu, vec[0]));

    u8 encoded[INSN_ENCODE_MAX];
    unsigned len = insn_encode(i, &regs, encoded);
    put(c, encoded, len);

    for (unsigned s = 0; s < SLOT_COUNT; s++) {
        unsigned n = CANONICAL_VEC(s);
        if (!(access[s] & 2))
            continue;
        switch (kinds[s]) {
        case KIND_VEC:
            if (!row->vex)
                put_sse(c, 0xf3, 0x7f, n, pointer[s], 0);
            else if (row->vex == 2)
                put_zmm(c, 0x7f, n, pointer[s], 0);
            else
                put_vex_result(b, c, n, pointer[s], 0);
            ymm |= row->vex;
            break;
        case KIND_MMX:
            put_sse(c, 0, 0x7f, n, pointer[s], 0);
            break;
        case KIND_GPR:
            put_gpr(c, 0x89, canonical_gpr[s], pointer[s], 0);
            break;
        case KIND_GPR8:
            put_gpr(c, 0x88, canonical_gpr[s], pointer[s], 0);
            break;
        case KIND_MASK:
            put_kmov(c, 0x91, CANONICAL_MASK(s), pointer[s], 0);
            break;
        }
    }
    ymm |= row->vex == 2;
    if (m.rcx_written)
        put_gpr(c, 0x89, RCX, RDI, offsetof(struct vcpu, gpr[RCX]));
    if (m.xmm0_written) {
        if (row->vex) { /* VPCMPxSTRM zeroes the rest of YMM0 */
            put_vex_result(b, c, 0, RDI, offsetof(struct vcpu, vec[0]));
            ymm = true;
        } else {
            put_sse(c, 0xf3, 0x7f, 0, RDI, offsetof(struct vcpu, vec[0]));
        }
    }
    if (t->mxcsr) { /* stmxcsr */
        PUT(c, 0x0f, 0xae);
        put_mem(c, 3, RDI, offsetof(struct vcpu, mxcsr));
    }
    if (flags)
        put_flags_store(c, RDI, offsetof(struct vcpu, aflags));
    if (ymm)
        PUT(c, 0xc5, 0xf8, 0x77); /* vzeroupper: the C code around is legacy SSE */
    if (t->mmx)
        PUT(c, 0x0f, 0x77); /* emms: and may use x87 */
    PUT(c, 0xc3);
}

/*
 * The same with only the registers that matter on the host's stack: ST(0) on top, ST(i) below it. The
 * caller has seen to the control word, to clear flags, and that nothing is empty that should not be.
 */
static void build_x87_fast(const struct borrow *b, struct thunk *t, struct code *c, const struct insn *i, const u8 *insn,
                           unsigned len)
{
    unsigned plan = x87_plan(i);
    t->x87op.plan = (u16)plan;
    if (!plan || plan & X87_COPY)
        return;
    c->p += -(uintptr_t)c->p & 15;
    t->x87op.fast = (u16 (*)(void *, void *, u32 *, void *, void *))(uintptr_t)(b->rx + (c->p - b->rw));
    PUT(c, 0xf3, 0x0f, 0x1e, 0xfa);
    if (plan & X87_STI)
        PUT(c, 0x41, 0xdb, 0x28); /* fld tbyte [r8] */
    if (plan & X87_ST0)
        PUT(c, 0xdb, 0x2f); /* fld tbyte [rdi] */
    put(c, insn, len);
    if (plan & X87_STI) /* it is ST(1) here, or alone */
        c->p[-1] = (u8)((c->p[-1] & 0xf8) | (plan & X87_ST0 ? 1 : 0));
    if (plan & X87_FLAGS)
        put_flags_store(c, RDX, 0);
    PUT(c, 0xdf, 0xe0); /* fnstsw ax */
    if (plan & X87_PUSH || (plan & X87_ST0 && !(plan & (X87_POP | X87_POP2)))) {
        if (plan & (X87_SET0 | X87_PUSH))
            PUT(c, 0xdb, 0x3f); /* fstp tbyte [rdi] */
        else
            PUT(c, 0xdd, 0xd8); /* fstp st(0) */
    }
    if (plan & X87_STI && !(plan & X87_POP2)) {
        if (plan & X87_SETI)
            PUT(c, 0x41, 0xdb, 0x38); /* fstp tbyte [r8] */
        else
            PUT(c, 0xdd, 0xd8);
    }
    PUT(c, 0xc3);
}

static void build_x87(const struct borrow *b, struct thunk *t, struct code *c, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    for (unsigned n = 0; n < row->nopnd; n++)
        if ((i->flags & INSN_MEM) && (row->opnd[n].kind == OPND_MEM || row->opnd[n].kind == OPND_GPR_RM)) {
            t->x87op.mem_size = (u8)operand_bytes(i, n);
            t->x87op.mem_access |= row->opnd[n].access;
        }
    struct encode_regs regs = { .base = RSI, .index = REG_NONE };
    PUT(c, 0xf3, 0x0f, 0x1e, 0xfa);
    unsigned op = row->opcode, modrm = i->modrm;
    /* FCMOVcc, FCOMI and their kin: DA C0..DF, DB C0..DF and E8..F7, DF E8..F7. */
    bool reads = (op == 0xda || op == 0xdb) && modrm >= 0xc0 && modrm <= 0xdf;
    bool writes = (op == 0xdb || op == 0xdf) && modrm >= 0xe8 && modrm <= 0xf7;
    if (reads || writes)
        put_flags_load(c, RDX, 0);
    PUT(c, 0x48, 0x0f, 0xae, 0x0f); /* fxrstor64 [rdi] */
    u8 encoded[INSN_ENCODE_MAX];
    unsigned len = insn_encode(i, &regs, encoded);
    put(c, encoded, len);
    if (writes)
        put_flags_store(c, RDX, 0);
    PUT(c, 0x48, 0x0f, 0xae, 0x07); /* fxsave64 [rdi]: does not wait, so an unmasked exception stays pending */
    PUT(c, 0xdb, 0xe3);             /* fninit: forgets it */
    PUT(c, 0xc3);
    t->is_x87 = true;
    build_x87_fast(b, t, c, i, encoded, len);
}

static void build(struct borrow *b, struct thunk *t, u8 *at, const struct insn *i)
{
    struct code c = { at };
    if (insn_row(i)->map == 0 && insn_row(i)->opcode >= 0xd8 && insn_row(i)->opcode <= 0xdf && !insn_row(i)->vex)
        build_x87(b, t, &c, i);
    else
        build_simd(b, t, &c, i);
    size_t len = (size_t)(c.p - at);
    if (len > THUNK_MAX)
        panic("borrow: thunk of %s is %zu bytes", insn_row(i)->encoding, len);
    t->code = b->rx + (at - b->rw);
    if (t->is_x87)
        t->x87op.run = t->x87;
    if (at != b->rw) {
        b->used = (b->used + len + 15) & ~(size_t)15;
        b->count++;
    }
}

static u32 hash_key(const u8 *key, unsigned len)
{
    u32 h = 2166136261u; /* FNV-1a */
    for (unsigned n = 0; n < len; n++)
        h = (h ^ key[n]) * 16777619u;
    return (h ^ h >> 15) & (HASH_SIZE - 1);
}

static noinline const struct thunk *find_thunk(struct vcpu *v, const struct insn *i)
{
    struct error err;
    if (!v->borrow && borrow_init(v, &err))
        panic("%s", err.text);
    struct borrow *b = v->borrow;
    const struct insn_row *row = insn_row(i);

    /* The key: the instruction with register operands 1..4 (so that byte registers need no REX). */
    struct encode_regs regs = { .reg = 1, .rm = 2, .vvvv = 3, .is4 = 4, .mask = 1, .base = RSI, .index = REG_NONE };
    u8 key[INSN_ENCODE_MAX] = { 0 };
    unsigned len = insn_encode(i, &regs, key);
    if (len == 0)
        panic("borrow: %s %s (%s) cannot be re-encoded", row->mnemonic, row->operands, row->encoding);
    struct thunk **head = &b->hash[hash_key(key, len)];
    for (struct thunk *t = *head; t; t = t->next)
        if (t->key_len == len && memcmp(t->key, key, len) == 0) {
            ((struct insn *)(uintptr_t)i)->thunk = t; /* the cached pointer is not part of what was decoded */
            return t;
        }
    if (b->used + THUNK_MAX > ARENA_SIZE) {
        /* The guest has run more forms than the arena holds. Code at this address has run before, and
         * was changed through another mapping: serialise before it runs (SDM vol. 3, 8.1.3). */
        unsigned eax, ebx, ecx, edx;
        memset(&b->scratch, 0, sizeof(b->scratch));
        build(b, &b->scratch, b->rw, i);
        __cpuid(0, eax, ebx, ecx, edx);
        b->scratched++;
        return &b->scratch;
    }
    struct thunk *t = calloc(1, sizeof(*t));
    if (!t)
        panic("borrow: out of memory");
    memcpy(t->key, key, len);
    t->key_len = (u8)len;
    build(b, t, b->rw + b->used, i);
    t->next = *head;
    *head = t;
    ((struct insn *)(uintptr_t)i)->thunk = t;
    return t;
}

/* ---- execution ---- */

static alwaysinline void *place_at(struct vcpu *v, const struct place *p, unsigned number)
{
    return (char *)v + p->offset + ((number & p->limit) << p->shift);
}

/* The guest's memory itself when @la may be reached directly and the host instruction can take it there. */
static alwaysinline void *direct(struct vcpu *v, const struct thunk *t, gva_t la)
{
    const struct tlb_entry *e = tlb_slot(v, la);
    u64 page = (la + (t->mem_size - 1u)) & PAGE_MASK;
    if ((t->mem_access & 1 && e->tag_read != page) || (t->mem_access & 2 && e->tag_write != page))
        return NULL;
    u64 host = la + e->addend;
    return host & (t->align - 1u) ? NULL : (void *)(uintptr_t)host;
}

struct operands {
    void *reg, *rm, *vvvv, *is4;
};

/*
 * Whether converting the double @bits to single precision with unbounded exponent range would be
 * inexact: an unmasked underflow or overflow reports that, not the loss that its masked response adds.
 */
static bool narrowing_inexact(u64 bits, bool daz)
{
    u64 fraction = bits & BITS64(51, 0), exponent = bits >> 52 & 0x7ff;
    if (exponent == 0x7ff || (exponent == 0 && (fraction == 0 || daz)))
        return false;
    if (exponent)
        fraction |= BIT64(52);
    return 63 - __builtin_clzll(fraction) - __builtin_ctzll(fraction) >= 24;
}

/* Whether a single becomes a half that is denormal and exact: tiny, which no masked flag tells. */
static bool becomes_denormal_half(u32 bits)
{
    u32 fraction = (bits & (BIT(23) - 1)) | BIT(23), exponent = bits >> 23 & 0xff;
    return exponent >= 103 && exponent < 113 && !(fraction & (BIT(126 - exponent) - 1));
}

/* The elements of the memory operand that the mask selects. */
static u64 selected_elements(const struct thunk *t, u64 mask)
{
    unsigned n = t->mem_size / t->elem;
    if (t->mask_bits < 64)
        mask &= (1ull << t->mask_bits) - 1;
    if (t->packed)
        n = (unsigned)__builtin_popcountll(mask), mask = ~0ull;
    for (unsigned bits = n; bits < t->mask_bits && !t->packed; bits += n) /* an element that several bits stand for */
        mask |= mask >> bits;
    return n < 64 ? mask & ((1ull << n) - 1) : mask;
}

/*
 * Some exception is unmasked (or MXCSR has bits the host lacks): run masked on copies, then decide.
 * One flag is not the hardware's to the letter: with an unmasked underflow or overflow of a
 * multiplication, division or FMA, PE says whether the masked response is inexact, where a processor
 * looks at the result with unbounded exponent. Narrowing conversions, where the two often differ, are exact.
 */
static noinline void run_unmasked(struct vcpu *v, const struct thunk *t, const struct operands *o)
{
    struct saved { u8 b[64]; } saved[2];
    void *at[2] = { o->reg, t->mem_access ? NULL : o->rm };
    unsigned size[2] = { 1u << t->reg.shift, 1u << t->rm.shift };
    u32 aflags = v->aflags, guest = v->mxcsr;
    u32 unmasked = ~(guest >> 7) & MXCSR_FLAGS;

    for (unsigned n = 0; n < 2; n++)
        if (at[n] && size[n] > 1)
            memcpy(saved[n].b, at[n], size[n]);
    u8 n_source[64]; /* the destination may be the source */
    memcpy(n_source, o->rm, t->narrowing * 8u);
    u8 h_source[64];
    memcpy(h_source, o->reg, t->halving * 4u);
    u64 selected = t->masked_reg ? load64(o->is4) : ~0ull;
    if (t->masked)
        selected = selected_elements(t, selected);
    if (t->no_exceptions) { /* flags stay; flush-to-zero counts only where the guest masks underflow (SDM vol. 1, 10.2.3.3) */
        v->mxcsr = (guest & MXCSR_PLAIN_CONTROL) | MXCSR_MASKS;
        if (unmasked & BIT(4))
            v->mxcsr &= ~BIT(15);
        t->simd(v, o->reg, o->rm, o->vvvv, o->is4);
        _mm_setcsr(HOST_MXCSR);
        v->mxcsr = guest;
        return;
    }
    u32 run = (guest & 0xffc0u & ~MXCSR_FLAGS) | MXCSR_MASKS;
    u32 raised = 0;
    if (unmasked & BIT(4)) {
        /* Unmasked underflow is tininess alone, exact or not, and flush-to-zero does not apply then
         * (SDM vol. 1, 4.9.1.5 and 10.2.3.3). Flush-to-zero makes the host report just that. */
        run &= ~BIT(15);
        v->mxcsr = run | BIT(15);
        t->simd(v, o->reg, o->rm, o->vvvv, o->is4);
        raised |= v->mxcsr & BIT(4);
        for (unsigned n = 0; n < t->halving; n++) /* VCVTPS2PH knows no flush-to-zero */
            if (selected >> n & 1 && becomes_denormal_half(load32(h_source + 4 * n)))
                raised |= BIT(4);
        for (unsigned n = 0; n < 2; n++)
            if (at[n] && size[n] > 1)
                memcpy(at[n], saved[n].b, size[n]);
        v->aflags = aflags;
    }
    v->mxcsr = run;
    t->simd(v, o->reg, o->rm, o->vvvv, o->is4);
    raised |= v->mxcsr & MXCSR_FLAGS;
    _mm_setcsr(HOST_MXCSR);
    if (t->narrowing && (raised & unmasked & (BIT(3) | BIT(4)))) {
        raised &= ~BIT(5);
        for (unsigned n = 0; n < t->narrowing; n++)
            if (selected >> n & 1 && narrowing_inexact(load64(n_source + 8 * n), guest & BIT(6)))
                raised |= BIT(5);
        if (raised & ~unmasked & BIT(3))
            raised |= BIT(5);
    }
    u32 before = raised & (BIT(0) | BIT(1) | BIT(2)); /* invalid, denormal, divide by zero */
    if (!(raised & unmasked)) {
        v->mxcsr = guest | raised;
        return;
    }
    v->mxcsr = guest | (before & unmasked ? before : raised);
    v->aflags = aflags;
    for (unsigned n = 0; n < 2; n++)
        if (at[n] && size[n] > 1)
            memcpy(at[n], saved[n].b, size[n]);
    cpu_raise(v, v->cr4 & CR4_OSXMMEXCPT ? VEC_XM : VEC_UD);
}

static alwaysinline void run_simd(struct vcpu *v, const struct thunk *t, const struct operands *o)
{
    if (!t->mxcsr) {
        t->simd(v, o->reg, o->rm, o->vvvv, o->is4);
        return;
    }
    if (unlikely(!borrow_mxcsr_plain(v->mxcsr))) {
        run_unmasked(v, t, o);
        return;
    }
    t->simd(v, o->reg, o->rm, o->vvvv, o->is4);
    if (unlikely((v->mxcsr & MXCSR_CONTROL) != HOST_MXCSR))
        _mm_setcsr(HOST_MXCSR);
}

static noinline void run_memory_slow(struct vcpu *v, const struct insn *i, const struct thunk *t, struct operands *o, u64 ea)
{
    _Alignas(64) u8 buf[64] = { 0 };
    if (t->mem_access & 1)
        mem_read_bytes(v, i->seg, ea, buf, t->mem_size);
    if ((t->mem_access & 2) && t->mxcsr)
        mem_probe_write(v, i->seg, ea, t->mem_size); /* a fault leaves MXCSR as it was */
    o->rm = buf;
    run_simd(v, t, o);
    if (t->mem_access & 2)
        mem_write_bytes(v, i->seg, ea, buf, t->mem_size);
}

/* A memory operand under a mask that cannot be accessed as a whole. */
static noinline void run_masked_slow(struct vcpu *v, const struct insn *i, const struct thunk *t, struct operands *o, u64 ea)
{
    _Alignas(64) u8 buf[64] = { 0 };
    u64 selected = selected_elements(t, v->k[i->mask]);
    if (t->mem_access & 1) {
        if (t->no_suppression)
            mem_read_bytes(v, i->seg, ea, buf, t->mem_size);
        else
            masked_load(v, i->seg, ea, buf, t->elem, selected);
    }
    if (t->mem_access & 2) { /* a fault leaves MXCSR as it was */
        if (t->no_suppression)
            mem_probe_write(v, i->seg, ea, t->mem_size);
        masked_probe_write(v, i->seg, ea, t->elem, selected);
    }
    o->rm = buf;
    run_simd(v, t, o);
    if (t->mem_access & 2)
        masked_store(v, i->seg, ea, buf, t->elem, selected);
}

static noinline void run_masked(struct vcpu *v, const struct insn *i, const struct thunk *t, struct operands *o)
{
    u64 ea = insn_ea(v, i);
    void *host = v->seg_check & BIT(i->seg) ? NULL : direct(v, t, (v->seg_base[i->seg] + ea) & v->linear_mask);
    if (host && !(t->mxcsr && (t->mem_access & 2))) {
        o->rm = host;
        run_simd(v, t, o);
    } else {
        run_masked_slow(v, i, t, o, ea);
    }
}

static void mark_mmx(struct vcpu *v, const struct insn *i, const struct thunk *t)
{
    if (t->mmx_written & 1)
        memset(&v->x87.st[i->reg & 7][8], 0xff, 2);
    if (t->mmx_written & 2 && !t->mem_access)
        memset(&v->x87.st[i->rm & 7][8], 0xff, 2);
}

/*
 * MMX: the registers are the mantissas of the physical x87 registers, and whatever the instruction
 * does TOP becomes 0 and every register valid (SDM vol. 1, 9.5 "Compatibility with x87 FPU
 * Architecture"). Accesses are checked first: one that faults changes neither.
 */
static void run_mmx(struct vcpu *v, const struct insn *i, const struct thunk *t)
{
    struct operands o;
    _Alignas(16) u8 buf[16] = { 0 };
    u64 ea = 0;
    if (t->mem_access) {
        ea = insn_ea(v, i);
        if (t->mem_access & 1)
            mem_read_bytes(v, i->seg, ea, buf, t->mem_size);
        if (t->mem_access & 2)
            mem_probe_write(v, i->seg, ea, t->mem_size);
    }
    x87_enter_mmx(v); /* so that st[n] is MMn */
    o = (struct operands){ place_at(v, &t->reg, i->reg), t->mem_access ? buf : place_at(v, &t->rm, i->rm), NULL, NULL };
    run_simd(v, t, &o); /* CVTPS2PI and its kin: #XM comes after the change to MMX state */
    if (t->mem_access & 2)
        mem_write_bytes(v, i->seg, ea, buf, t->mem_size);
    mark_mmx(v, i, t);
}

void insn_borrow(struct vcpu *v, const struct insn *i)
{
    const struct thunk *t = i->thunk;
    if (unlikely(!t))
        t = find_thunk(v, i);
    if (unlikely(t->is_x87)) {
        x87_borrow(v, i, &t->x87op);
        return;
    }
    if (unlikely(t->mmx)) {
        run_mmx(v, i, t);
        return;
    }
    struct operands o = {
        place_at(v, &t->reg, t->byte_reg ? i->reg8 : i->reg),
        place_at(v, &t->rm, t->byte_rm ? i->rm8 : i->rm),
        place_at(v, &t->vvvv, i->vvvv),
        place_at(v, &t->is4, (unsigned)i->imm >> 4),
    };
    if (unlikely(t->masked_reg)) {
        o.is4 = &v->k[i->mask];
        if (t->masked) {
            run_masked(v, i, t, &o);
            return;
        }
    }
    if (t->mem_access) {
        u64 ea = insn_ea(v, i);
        gva_t la = seg_linear(v, i->seg, ea, t->mem_size, t->mem_access & 2 ? ACCESS_WRITE : ACCESS_READ);
        void *host = direct(v, t, la);
        if (likely(host && !(t->mxcsr && (t->mem_access & 2)))) {
            o.rm = host;
            run_simd(v, t, &o);
            return;
        }
        run_memory_slow(v, i, t, &o, ea);
        return;
    }
    run_simd(v, t, &o);
}
