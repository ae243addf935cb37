/*
 * One decoded instruction, and the row of the opcode table it came from.
 *
 * src/cpu/isa/opcodes.tbl is the only place where an encoding is written down. tools/gen_opcodes.py
 * makes from it: the decoder's maps, the row descriptors below, and one small handler per row,
 * operand size and register-or-memory form that fetches operands, calls the body, and writes back.
 */
#pragma once
#include "base/types.h"

struct vcpu;
struct insn;
struct thunk;

/* Executes one instruction. v->rip is its address, v->next_rip the one behind it; a branch stores
 * v->next_rip. A fault leaves through a longjmp with nothing changed. */
typedef void insn_fn(struct vcpu *v, const struct insn *i);

enum gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
/* Two more slots of the register file that an effective address may name (state.h). */
enum { REG_NONE = 16, REG_RIP = 17 };
enum seg_reg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, SEG_COUNT };

enum insn_flag {
    INSN_MEM = 1 << 0,    /* the r/m (or moffs) operand is memory */
    INSN_LOCK = 1 << 1,
    INSN_REP = 1 << 2,    /* F3, where it is a repeat prefix or ignored (not part of the opcode) */
    INSN_REPNE = 1 << 3,  /* F2, likewise */
    INSN_REX = 1 << 4,    /* a REX prefix was there: byte registers 4..7 are SPL..DIL */
    INSN_VEX = 1 << 5,
    INSN_EVEX = 1 << 6,
    INSN_BCST = 1 << 7,   /* EVEX.b with a memory operand: broadcast; with registers: rounding or SAE */
    INSN_ZERO = 1 << 8,   /* EVEX.z */
    INSN_OSZ = 1 << 9,    /* a 66 prefix was there, as a prefix */
    INSN_ASZ = 1 << 10,   /* a 67 prefix was there */
    INSN_SEG = 1 << 11,   /* a segment override was there (and counts in this mode) */
    INSN_VSIB = 1 << 12,  /* index is a vector register */
    INSN_RND = 1 << 13,   /* EVEX register form with embedded rounding/SAE; vl holds RC */
    INSN_NOTRACK = 1 << 14, /* 3E is the last segment prefix: NOTRACK on an indirect near branch */
    INSN_OWN_FN = 1 << 15,  /* set after insn_bind(): fn is not the row's, an engine must call it */
};

struct insn {
    insn_fn *fn;   /* set by insn_bind(), not by the decoder: tools decode without any body linked in */
    u64 imm;       /* immediate or branch displacement, sign-extended as the row says; moffs is in disp */
    s64 disp;      /* displacement, sign-extended */
    const struct thunk *thunk; /* cached by the borrowed-ALU bodies; NULL until first run */
    u16 row;       /* enum row_id */
    u16 flags;     /* enum insn_flag */
    u16 imm2;      /* far pointer selector; ENTER's level; second immediate byte */
    u8 len;        /* bytes, 1..15 */
    u8 opsize;     /* effective operand size: 2, 4, 8 bytes (1 only in rows whose operands are all bytes) */
    u8 adsize;     /* effective address size: 2, 4, 8 bytes */
    u8 seg;        /* effective segment of the memory operand: default or override */
    u8 base;       /* 0..15, REG_NONE, REG_RIP */
    u8 index;      /* 0..15 or REG_NONE; with INSN_VSIB 0..31 */
    u8 scale;      /* shift 0..3 */
    u8 reg;        /* ModRM.reg with its extension bits: 0..31; also the register in opcode bits 2:0 (as rm) */
    u8 rm;         /* ModRM.rm with its extension bits, when a register; opcode+r register */
    u8 vvvv;       /* VEX/EVEX vvvv: 0..31 */
    u8 reg8, rm8;  /* byte offsets in the register file of Gb and Eb when registers (AH..BH resolved) */
    u8 vl;         /* vector length: 0 = 128, 1 = 256, 2 = 512 */
    u8 mask;       /* EVEX.aaa */
    u8 modrm;      /* as encoded */
    u8 opcode;     /* the opcode byte itself */
};

/* What the decoder needs to know of the mode. */
enum code_mode { CODE_16, CODE_32, CODE_64 };

struct decode_ctx {
    enum code_mode mode;
    bool real_or_v86;      /* VEX prefixes are not recognised */
    bool amd;              /* where the vendors differ, as AMD: 66 makes near branches 16-bit, SYSENTER... */
    const u8 *features;    /* one byte per enum cpu_feature, non-zero when CPUID offers it; NULL: all */
};

enum decode_status {
    DECODE_OK,
    DECODE_SHORT,    /* more than @avail bytes are needed; 15 at most will do */
    DECODE_TOO_LONG, /* longer than 15 bytes: #GP(0) */
};

/*
 * Decodes the instruction in @bytes, of which @avail (1..15) may be read. An undefined encoding is
 * DECODE_OK with the row UD (whose body raises #UD) and its length so far.
 */
enum decode_status insn_decode(const struct decode_ctx *ctx, const u8 *bytes, unsigned avail, struct insn *out);

/* Chooses the handler for the decoded row, operand size and form (generated; links every body). */
void insn_bind(struct insn *i);

/* JIT classes (architecture.md): how an engine other than the interpreter may run the row. */
enum jit_class { JIT_CALL, JIT_COPY, JIT_EMIT };

/* Conditions a row's checks column may name, tested in this order before the body runs. */
enum insn_check {
    CHK_LOCK = 1 << 0,      /* LOCK is allowed with a memory destination (else #UD; tested by the decoder) */
    CHK_NO64 = 1 << 1,      /* #UD in 64-bit mode (decoder) */
    CHK_ONLY64 = 1 << 2,    /* #UD outside 64-bit mode (decoder) */
    CHK_PROT = 1 << 3,      /* #UD in real and virtual-8086 mode */
    CHK_CPL0 = 1 << 4,      /* #GP(0) unless CPL = 0 */
    CHK_IOPL = 1 << 5,      /* virtual-8086: #GP(0) unless IOPL = 3 (or VME rules in the body) */
    CHK_X87 = 1 << 6,       /* #NM if CR0.EM or CR0.TS; pending #MF */
    CHK_MMX = 1 << 7,       /* #UD if CR0.EM; #NM if TS; pending #MF */
    CHK_SSE = 1 << 8,       /* #UD if CR0.EM or !CR4.OSFXSR; #NM if TS */
    CHK_AVX = 1 << 9,       /* #UD if !CR4.OSXSAVE or XCR0[2:1] != 3; #NM if TS */
    CHK_AVX512 = 1 << 10,   /* likewise with XCR0[7:5] */
    CHK_UMIP = 1 << 11,     /* #GP(0) if CR4.UMIP and CPL > 0 */
    CHK_ALIGN16 = 1 << 12,  /* memory operand aligned to its size, else #GP(0) */
    CHK_VMXON = 1 << 13,    /* #UD unless in VMX operation */
    CHK_SVME = 1 << 14,     /* #UD unless EFER.SVME */
    CHK_NOREP = 1 << 15,
    CHK_V86_UD = 1 << 16,   /* #UD in virtual-8086 mode */
    CHK_END = 1 << 17,      /* ends a block: control transfer, mode change, or state the decoder depends on */
    CHK_FWAIT = 1 << 18,    /* FWAIT: #NM if CR0.MP and CR0.TS; pending #MF */
    CHK_ALIGN_MM = 1 << 19, /* CHK_ALIGN16 is waived while MXCSR.MM is set (not an explicitly aligned move) */
    CHK_X87_NOWAIT = 1 << 20, /* as CHK_X87 without the pending #MF (FNxxx, FXSAVE) */
    CHK_TSD = 1 << 21,      /* #GP(0) if CR4.TSD and CPL > 0 */
    CHK_PCE = 1 << 22,      /* #GP(0) if !CR4.PCE and CPL > 0 */
    CHK_CPL0_UD = 1 << 23,  /* #UD unless CPL = 0 */
    CHK_OSXSAVE = 1 << 24,  /* #UD unless CR4.OSXSAVE */
    CHK_TS = 1 << 25,       /* #NM if CR0.TS */
    CHK_NOCOMPAT = 1 << 26, /* #UD in compatibility mode */
    CHK_FSGSBASE = 1 << 27, /* #UD unless CR4.FSGSBASE */
};

/* One operand as the row describes it; kind letters are the SDM's (vol. 2 Appendix A.2). */
enum operand_kind {
    OPND_NONE,
    OPND_GPR_REG,  /* G: ModRM.reg */
    OPND_GPR_RM,   /* E/R: ModRM.rm, register or memory */
    OPND_GPR_VVVV, /* B */
    OPND_GPR_OP,   /* Z: opcode bits 2:0 */
    OPND_GPR_FIXED,/* an implicit register; number in .fixed */
    OPND_MEM,      /* M: memory only */
    OPND_MOFFS,    /* O */
    OPND_IMM,      /* I */
    OPND_IMM_FIXED,/* the constant in .fixed (shift by 1, INT3's vector) */
    OPND_REL,      /* J */
    OPND_FARPTR,   /* A */
    OPND_SEG_REG,  /* S: ModRM.reg */
    OPND_SEG_FIXED,
    OPND_CR, OPND_DR,
    OPND_MMX_REG, OPND_MMX_RM,           /* P, Q */
    OPND_VEC_REG, OPND_VEC_VVVV, OPND_VEC_RM, OPND_VEC_IS4, /* V, H, W/U, L */
    OPND_VEC_FIXED,                      /* implicit XMM0 */
    OPND_MASK_REG, OPND_MASK_VVVV, OPND_MASK_RM,
    OPND_X87_ST, OPND_X87_STI,
    OPND_STR_SRC, OPND_STR_DST,          /* X, Y: DS:rSI, ES:rDI */
    OPND_VSIB,
};

struct operand {
    u8 kind;   /* enum operand_kind */
    u8 size;   /* bytes; 0: the effective operand size; OPSZ_* below for the rest */
    u8 fixed;
    u8 access; /* 1 read, 2 written, 3 both */
};
enum { /* operand.size when it is not a byte count */
    OPSZ_V = 0,     /* 2, 4 or 8: effective operand size */
    OPSZ_Z = 0x81,  /* 2, or 4 */
    OPSZ_Y = 0x82,  /* 4, or 8 with REX.W / VEX.W */
    OPSZ_X = 0x83,  /* the vector length */
    OPSZ_XH = 0x84, OPSZ_XQ = 0x85, OPSZ_XE = 0x86, /* half, quarter, eighth of it */
    OPSZ_P = 0x87,  /* far pointer of the operand size */
    OPSZ_S = 0x88,  /* pseudo-descriptor 6 or 10 */
    OPSZ_STACK = 0x89, /* 2, 4, 8: stack operand (64-bit default) */
    OPSZ_BIG = 0x8a, /* x87 environment, FXSAVE, XSAVE area...: the body knows */
};

#define INSN_MAX_OPERANDS 6

struct insn_row {
    const char *mnemonic; /* upper case, as the SDM spells it */
    const char *encoding; /* the table's own text */
    const char *operands; /* likewise */
    struct operand opnd[INSN_MAX_OPERANDS];
    u8 nopnd;
    u8 jit;        /* enum jit_class */
    u8 intercept;  /* enum intercept, virt.h; 0 for none */
    u16 feature;   /* enum cpu_feature; 0 for none */
    u16 feature2;  /* a second feature that must be there too */
    u32 checks;    /* enum insn_check */
    u32 flags_written, flags_undefined, flags_read; /* EFLAGS bit masks */
    u8 map;        /* 0 one-byte, 1 0F, 2 0F38, 3 0F3A */
    u8 pp;         /* 0 none, 1 66, 2 F3, 3 F2: mandatory prefix */
    u8 opcode;
    u8 vex;        /* 0 legacy, 1 VEX, 2 EVEX */
};

extern const struct insn_row insn_rows[];
extern const unsigned insn_row_count;
static inline const struct insn_row *insn_row(const struct insn *i) { return &insn_rows[i->row]; }

/* Bytes of operand @n of @i (0 when the body alone knows). */
unsigned operand_bytes(const struct insn *i, unsigned n);
