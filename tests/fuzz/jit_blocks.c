/*
 * Random blocks on the interpreter and on the JIT: branches, calls, faults, self-modification, page-crossing code and
 * data, an alias of all memory whose code pages are mapped elsewhere now and then, mode switches, string instructions, TF, breakpoints and NMIs. A program is a set of
 * blocks at random places in 64 KiB; each begins by telling the exception handlers (handlers.S) where to go on
 * after a fault, so that one fault does not end a program.
 *
 *   jit_blocks [BLOCKS [SEED [ENGINE]]]      at least so many; SEED is hexadecimal; ENGINE jit-eager, lockstep, or check: the
 *                                            JIT, with a look at all code it makes (check_code.h)
 *
 * A difference prints the seed of its program; "jit_blocks 1 SEED" repeats it.
 */
#include "check_code.h"
#include "jit/jit.h"
#include "random_insn.h"
#include "twins.h"

#include <stdio.h>
#include <stdlib.h>

#define BLOCKS 24
#define SLOT 0x1f8u /* so that some lie across pages */
#define PASSES 10 /* runs of a program, each ended by its budget */

enum mode { M64, M64U, M32, M32U, M16, P32, P16, R16, MODES };
static const struct { u8 world; u8 bits; u16 cs; } mode_info[MODES] = {
    [M64] = {TWIN_LONG, 64, SEL_CODE64}, [M64U] = {TWIN_LONG, 64, SEL_USER_CODE64}, [M32] = {TWIN_LONG, 32, SEL_CODE32},
    [M32U] = {TWIN_LONG, 32, SEL_USER_CODE32}, [M16] = {TWIN_LONG, 16, SEL_CODE16}, [P32] = {TWIN_LEGACY, 32, SEL_CODE32},
    [P16] = {TWIN_LEGACY, 16, SEL_CODE16}, [R16] = {TWIN_REAL, 16, TWIN_CODE >> 4},
};

static u8 code[TWIN_CODE_SIZE];
static struct { u32 at, patch; enum mode mode; } block[BLOCKS]; /* offsets in the code; .patch: a byte that is an immediate */
static u32 pos;
static const u8 *features;

static void put(const void *bytes, unsigned n)
{
    memcpy(code + pos, bytes, n);
    pos += n;
}
#define PUT(...) put((const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__}))
static void put32(u32 x) { put(&x, 4); }
static void put16(unsigned x) { u16 y = (u16)x; put(&y, 2); }
static unsigned bits_of(unsigned b) { return mode_info[block[b].mode].bits; }
static bool real(unsigned b) { return block[b].mode == R16; }
/* What branches in @b's mode call the place. */
static u32 address(unsigned b, u32 at) { return bits_of(b) == 16 ? at : TWIN_CODE + at + (block[b].mode <= M32U && !below(8) ? TWIN_ALIAS : 0); }
static unsigned some_block(enum mode mode)
{
    unsigned b = below(BLOCKS);
    for (unsigned n = 0; n < BLOCKS && block[b].mode != mode; n++)
        b = (b + 1) % BLOCKS;
    return b;
}

/* ---- plain instructions: any row that computes, with operands that do not wander off ---- */

static bool wanted(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    if (!i->row || row->checks & (CHK_END | CHK_CPL0 | CHK_IOPL | CHK_AVX512 | CHK_VMXON | CHK_SVME | CHK_CPL0_UD | CHK_UMIP) || row->intercept)
        return false;
    if ((row->flags_read | row->flags_written) & ~(u32)(FL_ARITH | FL_DF))
        return false;
    if (!strncmp(row->mnemonic, "XRSTOR", 6) || !strncmp(row->mnemonic, "FXRSTOR", 7) || !strncmp(row->mnemonic, "WR", 2))
        return false;
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].kind == OPND_SEG_REG && row->opnd[n].access & 2)
            return false;
    if (below(64)) { /* now and then one that may go wrong */
        for (unsigned n = 0; n < row->nopnd; n++) {
            const struct operand *o = &row->opnd[n];
            bool write = o->access & 2, byte = o->size == 1;
            unsigned r = o->kind == OPND_GPR_REG ? (byte ? i->reg8 / 8u : i->reg)
                         : o->kind == OPND_GPR_OP || (o->kind == OPND_GPR_RM && !(i->flags & INSN_MEM)) ? (byte ? i->rm8 / 8u : i->rm)
                         : o->kind == OPND_GPR_VVVV ? i->vvvv : o->kind == OPND_GPR_FIXED ? o->fixed : REG_NONE;
            if (write && (r == RSP || r == RBP || r == R14))
                return false;
        }
        if (i->flags & INSN_MEM && ((i->base != RBP && i->base != R14) || i->index != REG_NONE || i->disp < -0x1800 || i->disp > 0x1800))
            return false;
    }
    return true;
}

static void plain(unsigned b)
{
    unsigned bits = bits_of(b);
    struct decode_ctx ctx = {.mode = bits == 64 ? CODE_64 : bits == 32 ? CODE_32 : CODE_16, .features = features, .real_or_v86 = real(b)};
    for (unsigned tries = 0; tries < 200; tries++) {
        u8 out[RANDOM_INSN_MAX];
        unsigned n = random_insn(&insn_rows[1 + below(insn_row_count - 1)], bits, out);
        struct insn i = {0};
        if (!n || insn_decode(&ctx, out, n > 15 ? 15 : n, &i) != DECODE_OK || !wanted(&i))
            continue;
        put(out, i.len);
        return;
    }
}

/* ---- what tests the seams ---- */

/* mov dword [address], value: not through any register */
static void store(unsigned b, u32 where, u32 value, bool byte)
{
    unsigned bits = bits_of(b);
    if (bits == 64)
        PUT(byte ? 0xc6 : 0xc7, 0x04, 0x25);
    else if (bits == 32)
        PUT(byte ? 0xc6 : 0xc7, 0x05);
    else if (real(b)) /* FS is flat from 0 on; addresses above 64 KiB are not reached */
        PUT(0x64, 0x66, byte ? 0xc6 : 0xc7, 0x06);
    else
        PUT(0x67, 0x66, byte ? 0xc6 : 0xc7, 0x05);
    if (real(b))
        put16(where);
    else
        put32(where);
    if (byte)
        PUT((u8)value);
    else
        put32(value);
}
static void load_register(unsigned b, unsigned r, u32 value) /* mov e?x, value */
{
    if (bits_of(b) == 16)
        PUT(0x66);
    PUT((u8)(0xb8 | r));
    put32(value);
}

/* What kernels do: interrupts, RFLAGS, user access, SWAPGS, bit strings, longer strings. In 64-bit mode, of any privilege. */
static void kernel(unsigned b)
{
    unsigned at = below(0x60), data = TWIN_DATA + below(2) * TWIN_ALIAS;
    switch (below(15)) {
    case 13: /* mov rax, cr0, cr2, cr3 or cr4; pop qword [rsp + at], and to [rbp + at]; mov [rbp + at], sreg */
        PUT(0x0f, 0x20, (u8)(0xc0 | ((const u8[]){0, 2, 3, 4})[below(4)] << 3));
        PUT(0x50, 0x8f, 0x44, 0x24, (u8)at, 0x50, 0x8f, 0x45, (u8)at, 0x8c, (u8)(0x45 | below(6) << 3), (u8)at);
        break;
    case 0: PUT(0xfa); break;
    case 1: /* sti, and something behind it */
        PUT(0xfb);
        switch (below(6)) {
        case 0: PUT(0x90); break;
        case 1: PUT(0x89, 0x45, (u8)at); break;
        case 2: PUT(0x50, 0x58); break;
        case 3: PUT(0xfb); break;
        case 4: PUT(0x9c, 0x58); break;
        default: plain(b);
        }
        break;
    case 2: PUT(0x9c), PUT(0x58 | below(2)); break;
    case 3: /* pushfq; xor dword [rsp], flags; popfq */
        PUT(0x9c, 0x81, 0x34, 0x24);
        put32((u32)rnd() & (below(4) ? 0xad5 : below(2) ? 0x200ad5 : 0x47fd5));
        PUT(0x9d);
        break;
    case 4: case 5: /* stac; [rbp + at]; clac */
        PUT(0x0f, 0x01, 0xcb, 0x8b, 0x45, (u8)at);
        if (below(2))
            PUT(0x01, 0x45, (u8)(at + 8));
        if (below(4))
            PUT(0x0f, 0x01, 0xca);
        if (below(3))
            PUT(0x8b, 0x45, (u8)at, 0x89, 0x45, (u8)at);
        break;
    case 6: /* swapgs; mov eax, gs:[rbp + at] */
        PUT(0x0f, 0x01, 0xf8, 0x65, 0x8b, 0x45, (u8)at);
        break;
    case 7: PUT(0x0f, 0xae, (u8)(0xe8 | below(3) << 3)); break;
    case 8: /* rdpkru; rd?sbase, 32 and 64 bits */
        if (below(4))
            PUT(0x31, 0xc9);
        PUT(0x0f, 0x01, 0xee);
        PUT(0xf3, (u8)(0x40 | below(2) << 3 | below(2)), 0x0f, 0xae, (u8)(0xc0 | below(2) << 3 | below(4)));
        break;
    case 9: PUT((u8)(0x40 | (rnd() & 9)), 0x8c, (u8)(0xc0 | below(6) << 3 | below(4))); break;
    case 10: /* bt, bts, btr, btc [rbp + at], eax or rax */
        load_register(b, RAX, below(2) ? below(0x2000) : -below(0x2000));
        if (below(2))
            PUT(0xf0);
        PUT((u8)(0x40 | below(2) << 3), 0x0f, (u8)(0xa3 | below(4) << 3), 0x45, (u8)(at & (below(4) ? ~7u : ~0u)));
        break;
    case 11: /* cmpxchg16b [rbp + at] */
        if (below(2))
            PUT(0x48, 0x8b, 0x45, (u8)at, 0x48, 0x8b, 0x55, (u8)(at + 8));
        if (below(2))
            PUT(0xf0);
        PUT(0x48, 0x0f, 0xc7, 0x4d, (u8)(at & (below(8) ? ~15u : ~0u)));
        break;
    case 12: /* rep movs, rep stos */
        load_register(b, RSI, data + below(0x3000));
        load_register(b, RDI, data + below(0x3000));
        load_register(b, RCX, below(4) ? below(600) : below(5000));
        if (!below(8))
            PUT(0xfd);
        PUT(below(4) ? 0xf3 : 0xf2);
        if (below(2))
            PUT(below(2) ? 0x66 : 0x48);
        PUT(((const u8[]){0xa4, 0xa5, 0xaa, 0xab})[below(4)]);
        PUT(0xfc);
        break;
    default: /* syscall; or sysretq with RCX and R11 loaded */
        if (!below(3)) {
            PUT(0x0f, 0x05);
            break;
        }
        load_register(b, RCX, address(b, block[some_block(M64U)].at));
        PUT(0x41, 0xbb);
        put32((u32)rnd() & 0x202ed5);
        PUT(0x48, 0x0f, 0x07);
    }
}

static void load_segment(unsigned b, unsigned segment, unsigned selector) /* through AX */
{
    if (bits_of(b) != 16)
        PUT(0x66);
    PUT(0xb8), put16(selector);
    PUT(0x8e, (u8)(0xc0 | segment << 3));
}

static void special(unsigned b)
{
    unsigned bits = bits_of(b);
    static const u32 places[] = {TWIN_READ_ONLY, TWIN_ABSENT, TWIN_SUPERVISOR, 0x3ffff000, TWIN_DATA + 0xffe, TWIN_DATA + 0x1ffd, TWIN_READ_ONLY - 3};
    if (bits == 64 && !below(3)) {
        kernel(b);
        return;
    }
    switch (below(12)) {
    case 11: /* another page at an alias of code */
        if (block[b].mode == M64 || block[b].mode == M32) {
            u32 la = TWIN_ALIAS + TWIN_CODE + below(16) * PAGE_SIZE;
            store(b, TWIN_PT + la / PAGE_SIZE * 8, (TWIN_CODE + below(16) * PAGE_SIZE) | (below(8) ? 7 : 6), false);
            PUT(0x0f, 0x01);
            if (bits == 64)
                PUT(0x3c, 0x25);
            else
                PUT(0x3d);
            put32(la);
        }
        break;
    case 0: /* change an immediate, of this block too; sometimes any byte */
        if (!real(b)) {
            unsigned t = below(4) ? below(BLOCKS) : b;
            u32 at = below(16) ? block[t].patch : block[t].at + below(64);
            if (at)
                store(b, TWIN_CODE + at + (block[b].mode <= M32U && !below(4) ? TWIN_ALIAS : 0), (u32)rnd(), true);
        } else { /* mov byte cs:[at], x: a #GP in protected mode, but this is real mode */
            PUT(0x2e, 0xc6, 0x06);
            put16(block[below(BLOCKS)].patch);
            PUT((u8)rnd());
        }
        break;
    case 1: /* an access somewhere else */
        load_register(b, RBX, places[below(ARRAY_SIZE(places))] + below(4));
        if (bits == 16)
            PUT(0x67);
        if (below(3) == 0)
            PUT(0x66);
        PUT(((const u8[]){0x01, 0x03, 0x89, 0x8b, 0x39, 0x31, 0x11, 0x87, 0x33, 0x8a, 0x88, 0xd1}[below(12)]), (u8)(below(4) << 3 | 3));
        break;
    case 2: { /* strings: short, across pages, now and then into code */
        load_register(b, RSI, (real(b) ? 0 : TWIN_DATA) + 0xff0 + below(16));
        load_register(b, RDI, !below(6) && !real(b) ? TWIN_CODE + block[below(BLOCKS)].at : (real(b) ? 0 : TWIN_DATA) + 0x1ff0 + below(16));
        load_register(b, RCX, below(40));
        if (!below(8))
            PUT(0xfd);
        if (below(3))
            PUT(below(2) ? 0xf3 : 0xf2);
        if (!below(3))
            PUT(0x66);
        PUT(((const u8[]){0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf})[below(10)]);
        PUT(0xfc);
        break;
    }
    case 3: /* flags, TF and AC among them */
        if (!below(6)) {
            if (bits == 16) {
                PUT(0x68), put16((unsigned)rnd() & 0x0dd5);
            } else {
                PUT(0x68), put32((u32)rnd() & 0x40dd5);
            }
            PUT(0x9d);
        } else {
            PUT(((const u8[]){0xf5, 0xf8, 0xf9, 0x9e, 0x9f, 0x9c, 0x90, 0x50, 0x58})[below(9)]);
        }
        break;
    case 4: /* exceptions and software interrupts */
        switch (below(6)) {
        case 0: PUT(0x0f, 0x0b); break;
        case 1: PUT(0xcc); break;
        case 2: PUT(0xcd, (u8)(3 + below(2))); break;
        case 3: PUT(0xf6, 0xf1); break; /* div cl */
        case 4: PUT(0x31, 0xc9, 0xf7, 0xf1); break; /* division by zero */
        default: PUT(0xf4);
        }
        break;
    case 5: /* call the next instruction, return to a pushed address */
        PUT(0xe8);
        if (bits == 16)
            put16(0);
        else
            put32(0);
        PUT(0x58);
        break;
    case 6: /* a segment load */
        if (!real(b)) { /* now and then one with a base; SS seldom */
            u16 sel = !below(3) ? SEL_BASED : block[b].mode == M32U || block[b].mode == M64U ? SEL_USER_DATA : SEL_DATA;
            load_segment(b, ((const u8[]){SEG_ES, SEG_DS, SEG_FS, SEG_GS, SEG_FS, SEG_GS, SEG_FS, SEG_SS})[below(below(8) ? 7 : 8)], sel);
        }
        break;
    case 8: /* what the rights to registers and pages hang on: CR0.TS, EM, MP, AM, WP; CR4.TSD, OSFXSR, OSXSAVE...; CR3 */
        if (real(b))
            break;
        switch (below(4)) {
        case 0:
            PUT(0x0f, 0x06); /* clts */
            break;
        case 1:
            PUT(0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8); /* mov rax, cr3; mov cr3, rax */
            break;
        default: { /* mov rax, crN; btc eax, bit; mov crN, rax */
            bool cr4 = below(2);
            if (bits == 16) {
                PUT(0x0f, 0x20, cr4 ? 0xe0 : 0xc0, 0x66, 0x0f, 0xba, 0xf8);
            } else {
                PUT(0x0f, 0x20, cr4 ? 0xe0 : 0xc0, 0x0f, 0xba, 0xf8);
            }
            PUT(cr4 ? ((const u8[]){9, 10, 18, 2, 7})[below(5)] : ((const u8[]){1, 2, 3, 3, 18, 16, 16})[below(7)]);
            PUT(0x0f, 0x22, cr4 ? 0xe0 : 0xc0);
        }
        }
        break;
    case 9: /* the rights to a page of data: a bit of its entry changes, INVLPG */
        if (block[b].mode == M64 || block[b].mode == M32) {
            u32 page = TWIN_DATA + below(8) * PAGE_SIZE;
            for (unsigned n = 0; n < 2; n++) {
                PUT(0x0f, 0x01); /* invlpg first, too: nothing comes of it at CPL 3 */
                if (bits == 64)
                    PUT(0x3c, 0x25);
                else
                    PUT(0x3d);
                put32(page);
                if (n)
                    break;
                PUT(0x0f, 0xba); /* btc dword [entry], bit */
                if (bits == 64)
                    PUT(0x3c, 0x25);
                else
                    PUT(0x3d);
                put32(TWIN_PT + page / PAGE_SIZE * 8);
                PUT((u8)below(3));
            }
        }
        break;
    case 7: /* a short loop */
        load_register(b, RCX, 1 + below(30));
        PUT(0x40 | (bits == 64 ? 0 : below(8)), 0x90, 0xe2, 0xfc);
        break;
    default: /* over one instruction, on a condition */
        PUT((u8)(0x70 | below(16)), 0);
        {
            u32 at = pos;
            plain(b);
            code[at - 1] = (u8)(pos - at);
        }
    }
}

/* ---- what compilers make: loops and calls, with several accesses off registers that move a little ---- */

static unsigned some_base(bool wide)
{
    static const u8 bases[] = {RBX, RBP, RSI, RDI, RDX, RSP, R12, R13, R15, R8, R9};
    return bases[below(wide ? 11 : 6)];
}
static unsigned some_data(bool wide)
{
    static const u8 data[] = {RAX, RDX, R10, R11, R15, R9};
    return data[below(wide ? 6 : 2)];
}
/* @prefix and @op (with 0x0f.. in bits 15:8) with @reg and [@base + disp]. */
static void access(bool wide, unsigned prefix, bool w, unsigned op, unsigned reg, unsigned base)
{
    s32 disp = base == RSP ? (s32)below(40) * 8 : below(8) ? (s32)below(64) * 4 - 128 : (s32)below(0x1000) - 0x800;
    bool small = disp == (s8)disp && below(4);
    if (!below(12))
        PUT(((const u8[]){0x64, 0x65, 0x64, 0x65, 0x26, 0x2e, 0x36, 0x3e})[below(8)]);
    if (wide && !below(24))
        PUT(0x67);
    if (prefix)
        PUT((u8)prefix);
    bool relative = wide && !below(16), index = !below(8); /* [rip + disp]; RCX is a small number, mostly */
    u8 rex = (u8)(0x40 | (w ? 8 : 0) | (reg >> 3 & 1) << 2 | (base >> 3 & 1));
    if (wide && (rex != 0x40 || !below(8)))
        PUT(rex);
    if (op >> 8)
        PUT((u8)(op >> 8));
    if (relative) {
        PUT((u8)op, (u8)((reg & 7) << 3 | 5));
        put32(TWIN_DATA + 0x1000 + (u32)disp - (TWIN_CODE + pos + 4));
        return;
    }
    PUT((u8)op, (u8)((small ? 0x40 : 0x80) | (reg & 7) << 3 | (index ? 4 : base & 7)));
    if (index)
        PUT((u8)(below(4) << 6 | RCX << 3 | (base & 7)));
    else if ((base & 7) == RSP)
        PUT(0x24);
    if (small)
        PUT((u8)disp);
    else
        put32((u32)disp);
}
static void on_register(bool wide, bool w, unsigned op, unsigned reg, unsigned rm)
{
    u8 rex = (u8)(0x40 | (w ? 8 : 0) | (reg >> 3 & 1) << 2 | (rm >> 3 & 1));
    if (wide && rex != 0x40)
        PUT(rex);
    if (op >> 8)
        PUT((u8)(op >> 8));
    PUT((u8)op, (u8)(0xc0 | (reg & 7) << 3 | (rm & 7)));
}

static void compiled_insn(unsigned b, bool wide, const u8 *base)
{
    unsigned r = base[below(3)], moved = r == RSP ? base[0] : r, d = some_data(wide);
    bool w = wide && below(2);
    switch (below(18)) {
    case 0: case 1: access(wide, 0, w, 0x8b, d, r); break;
    case 2: case 3: access(wide, 0, w, 0x89, d, r); break;
    case 4: access(wide, below(3) ? 0 : 0x66, w, ((const u16[]){0x8a, 0x88, 0x03, 0x01, 0x3b, 0x39, 0x11, 0x33, 0x85, 0x0fb6, 0x0fbf, 0x0faf, 0x0f44, 0x2b})[below(14)], d & 3, r); break;
    case 5: access(wide, 0xf0, w, below(2) ? 0x01 : 0x0fc1, d, r); break;
    case 6: access(wide, ((const u8[]){0, 0x66, 0xf3, 0xf2})[below(4)], false, below(2) ? 0x0f10 : 0x0f11, below(8), r); break;
    case 7: if (below(3)) PUT(0xdb, 0xe3); /* fninit */
        access(wide, 0, false, below(2) ? 0xd9 : 0xdd, below(2) ? 0 : 3, r); break; /* fld, fstp */
    case 8: case 9: /* the base moves */
        switch (moved == RSP ? 7 : below(7)) {
        case 0: on_register(wide, wide && below(8), 0x83, 0, moved), PUT((u8)below(256)); break;
        case 1: on_register(wide, wide && below(8), 0x83, 5, moved), PUT((u8)below(256)); break;
        case 2: on_register(wide, wide && below(8), 0x81, 0, moved), put32(below(0x1000)); break;
        case 3: on_register(wide, wide, 0xff, below(2), moved); break;
        case 4: on_register(wide, wide, 0x8b, moved, base[below(3)]); break;
        case 5: access(wide, 0, wide && below(8), 0x8d, moved, below(3) ? moved : base[below(3)]); break;
        case 6: on_register(wide, wide, 0x01, RCX, moved); break;
        default: on_register(wide, wide, 0x83, below(2) * 5, RSP), PUT((u8)(below(6) * 8)); break;
        }
        break;
    case 10: /* push, pop, frames */
        if (!below(3)) {
            if (below(2))
                PUT(0x55), on_register(wide, wide, 0x89, RSP, RBP);
            else
                PUT(0xc9);
            break;
        }
        if (wide && d > 7)
            PUT(0x41);
        PUT((u8)((below(2) ? 0x50 : 0x58) | (d & 7)));
        break;
    case 11: { /* over one, on a condition */
        PUT((u8)(0x70 | below(16)), 0);
        u32 at = pos;
        access(wide, 0, w, 0x89, d, r);
        code[at - 1] = (u8)(pos - at);
        break;
    }
    case 12: { /* a call of what follows, and over it; what is called may return a byte further on */
        PUT(0xe8, 3, 0, 0, 0, 0x90, 0xeb, 0);
        u32 at = pos;
        access(wide, 0, w, below(2) ? 0x8b : 0x89, d, r);
        if (below(2)) {
            PUT((u8)(0x70 | below(16)), 3);
            PUT(0xff, 0x04, 0x24); /* inc dword [rsp] */
        }
        PUT(0xc3);
        code[at - 1] = (u8)(pos - at);
        break;
    }
    case 13: on_register(wide, w, ((const u16[]){0x01, 0x29, 0x11, 0x19, 0x31, 0x85, 0x39, 0x0faf})[below(8)], d, some_data(wide)); break;
    case 16: plain(b); break;
    case 17: /* shifts by CL and by a number, of a register and of memory */
        if (below(2))
            on_register(wide, w, below(2) ? 0xd3 : 0xd1, ((const u8[]){0, 1, 4, 5, 7, 2})[below(6)], d);
        else
            access(wide, 0, w, below(2) ? 0xd3 : 0xd1, ((const u8[]){0, 1, 4, 5, 7, 3})[below(6)], r);
        break;
    case 14: PUT(0x0f, (u8)((below(2) ? 0x90 : 0x40) | below(16)), (u8)(0xc0 | below(2) * 2)); break; /* setcc, cmovcc */
    default: access(wide, 0, w, 0xff, below(2), r); break; /* inc, dec */
    }
}

static void compiled(unsigned b)
{
    bool wide = bits_of(b) == 64;
    u8 base[3];
    bool other = block[b].mode == M32 || block[b].mode == P32 ? below(2) : false;
    if (other) /* FS: offsets of 16 bits, a limit */
        load_segment(b, SEG_FS, SEL_DATA16);
    for (unsigned n = 0; n < 3; n++) {
        base[n] = n && below(4) ? base[0] : (u8)some_base(wide);
        u32 at = TWIN_DATA + (below(3) ? 0xa00 + below(0xc00) : 0xf80 + below(0x100)) + (below(4) ? below(3) : 3 + below(5)) * PAGE_SIZE;
        if (!below(12)) /* a page that the MMU wants to know writes to */
            at = TWIN_PT + 0xc00 + below(0x300);
        if (base[n] == RSP || (n && base[n] == base[0]) || !below(8))
            continue;
        if (base[n] > 7)
            PUT(0x41);
        PUT((u8)(0xb8 | (base[n] & 7)));
        put32(at);
    }
    bool loop = below(4);
    if (loop)
        load_register(b, RCX, 1 + below(8));
    u32 head = pos;
    for (unsigned n = 4 + below(16); n--;)
        if (other && !below(6)) { /* mov, add through FS with a 16-bit address */
            PUT(0x64, 0x67, ((const u8[]){0x8b, 0x89, 0x03, 0x01})[below(4)], (u8)(0x80 | below(2) * 2 << 3 | below(8)));
            put16(below(0x10000));
        } else {
            compiled_insn(b, wide, base);
        }
    if (!loop)
        return;
    PUT(0xff, 0xc9); /* dec ecx */
    s32 back = (s32)(head - (pos + 2));
    if (back >= -128) {
        PUT((u8)0x75, (u8)back);
    } else {
        PUT(0x0f, 0x85);
        put32(head - (pos + 4));
    }
}

/* The like in 16-bit code, with 16-bit addresses: ES and SS are segments of 64 KiB. */
static void access_16(unsigned b, unsigned op, unsigned reg)
{
    static const u8 forms[] = {0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7};
    unsigned rm = forms[below(12)];
    s32 disp = (s32)below(0x400) - 0x200;
    bool small = disp == (s8)disp;
    if (!real(b) && rm != 2 && rm != 3 && rm != 6)
        PUT(0x26);
    if (!below(4))
        PUT(0x66);
    if (op >> 8)
        PUT((u8)(op >> 8));
    PUT((u8)op, (u8)((small ? 0x40 : 0x80) | reg << 3 | rm));
    if (small)
        PUT((u8)disp);
    else
        put16((unsigned)disp);
}

static void compiled_16(unsigned b)
{
    static const u8 bases[] = {RBX, RSI, RDI, RBP};
    if (!real(b))
        load_segment(b, SEG_SS, SEL_DATA16);
    PUT(0x66, 0xbc), put32(0xbc00 + below(0x80) * 8); /* mov esp, imm32 */
    for (unsigned n = 0; n < 4; n++)
        PUT((u8)(0xb8 | bases[n])), put16((n & 1 ? below(0x400) : !below(6) ? 0xff80 + below(0x80) : 0x1800 + below(0xc00)) + (below(8) ? 0 : below(0x10000)));
    bool loop = below(4);
    if (loop)
        PUT(0xb9), put16(1 + below(8));
    u32 head = pos;
    for (unsigned n = 4 + below(14); n--;) {
        unsigned d = below(3) ? RAX : RDX, r = bases[below(4)];
        switch (below(12)) {
        case 0: case 1: case 2: access_16(b, ((const u16[]){0x8b, 0x89, 0x8a, 0x88, 0x03, 0x01, 0x3b, 0x39, 0x11, 0x33, 0x85, 0x0fb6, 0x0faf, 0x2b})[below(14)], d); break;
        case 3: access_16(b, below(2) ? 0x89 : 0x8b, d); break;
        case 4: access_16(b, 0xff, below(2)); break;
        case 5: PUT(0x83, (u8)(0xc0 | below(2) * 5 << 3 | r), (u8)below(256)); break;
        case 6: PUT(0x8d, (u8)(0x40 | r << 3 | below(8)), (u8)below(256)); break;
        case 7: /* push, pop; both sizes */
            if (!below(4))
                PUT(0x66);
            PUT((u8)((below(2) ? 0x50 : 0x58) | d));
            break;
        case 8: {
            PUT((u8)(0x70 | below(16)), 0);
            u32 at = pos;
            access_16(b, 0x89, d);
            code[at - 1] = (u8)(pos - at);
            break;
        }
        case 9: {
            PUT(0xe8, 3, 0, 0x90, 0xeb, 0);
            u32 at = pos;
            access_16(b, 0x8b, d);
            PUT(0xc3);
            code[at - 1] = (u8)(pos - at);
            break;
        }
        case 10: PUT(((const u8[]){0x01, 0x29, 0x11, 0x19, 0x31, 0x85, 0x39, 0x87})[below(8)], (u8)(0xc0 | d << 3 | below(3))); break;
        default: PUT(0x0f, (u8)((below(2) ? 0x90 : 0x40) | below(16)), (u8)(0xc0 | below(2) * 2)); break;
        }
    }
    if (!loop)
        return;
    s32 back = (s32)(head - (pos + 3));
    if (back >= -126 && below(2)) {
        PUT(0xe2, (u8)(back + 1));
    } else {
        PUT(0x49, 0x0f, 0x85);
        put16((unsigned)(back - 2));
    }
}

static void near_branch(unsigned b, unsigned to)
{
    unsigned bits = bits_of(b), length = bits == 16 ? 2 : 4;
    s32 disp = (s32)(block[to].at - (pos + length));
    if (bits == 16)
        put16((unsigned)disp);
    else
        put32((u32)disp);
}

static void end(unsigned b)
{
    unsigned bits = bits_of(b), to = some_block(block[b].mode), other = below(BLOCKS);
    if (below(2)) {
        PUT(0x0f, (u8)(0x80 | below(16)));
        near_branch(b, some_block(block[b].mode));
    }
    switch (below(6)) {
    case 0:
        PUT(0xe8);
        near_branch(b, to + 0);
        PUT(0x90);
        break;
    case 1: /* through a register */
        load_register(b, RAX, address(to, block[to].at));
        PUT(0xff, below(2) ? 0xe0 : 0xd0);
        break;
    case 2: /* push, ret */
        PUT(0x68);
        if (bits == 16)
            put16(address(to, block[to].at));
        else
            put32(address(to, block[to].at));
        PUT(0xc3);
        break;
    case 3: /* another mode */
        if (mode_info[block[other].mode].world == mode_info[block[b].mode].world && block[b].mode != R16) {
            if (bits == 64) {
                PUT(0x6a, (u8)mode_info[block[other].mode].cs, 0x68);
                put32((bits_of(other) == 16 ? 0 : TWIN_CODE) + block[other].at);
                PUT(0x48, 0x87, 0x04, 0x24, 0x48, 0x87, 0x44, 0x24, 0x08, 0x48, 0x87, 0x04, 0x24, 0x48, 0xcb); /* swap the two; retfq */
            } else {
                if (bits == 16)
                    PUT(0x66);
                PUT(0xea);
                put32((bits_of(other) == 16 ? 0 : TWIN_CODE) + block[other].at);
                put16(mode_info[block[other].mode].cs);
            }
            break;
        }
        /* fallthrough */
    default:
        PUT(0xe9);
        near_branch(b, to);
    }
    PUT(0xe9);
    near_branch(b, some_block(block[b].mode));
}

static bool smap; /* of the program: the world is TWIN_SMAP */

static enum mode make_program(void)
{
    unsigned world = below(8) < 5 ? TWIN_LONG : below(3) < 2 ? TWIN_LEGACY : TWIN_REAL;
    bool crossing = below(2);
    smap = world == TWIN_LONG && !below(4);
    memset(code, 0xf4, sizeof(code));
    for (unsigned b = 0; b < BLOCKS; b++) {
        do
            block[b].mode = (enum mode)below(MODES);
        while (mode_info[block[b].mode].world != world || (smap && (block[b].mode == M64U || block[b].mode == M32U)) || (b && below(2) && block[b].mode != block[0].mode));
        block[b].at = (below(10) * (BLOCKS - 1) % 8 * BLOCKS + b) % 120 * SLOT;
        if (crossing && b < 14) /* so that it crosses into the next page; often the byte to be patched is that page's first */
            block[b].at = (b + 1) * (u32)PAGE_SIZE - (below(2) ? mode_info[block[b].mode].bits == 64 ? 12 : 11 : 8 + below(64));
        block[b].patch = 0;
    }
    unsigned seams = below(3) ? 11 : 3; /* the rest is what compilers make */
    for (unsigned b = 0; b < BLOCKS; b++) {
        pos = block[b].at;
        if (bits_of(b) == 16 && !real(b)) /* DS may be anything; ES:DI should be among the data */
            load_segment(b, SEG_DS, SEL_DATA), load_segment(b, SEG_ES, SEL_DATA16);
        store(b, TWIN_RECOVER, address(b, block[some_block(block[b].mode)].at), false);
        PUT(0xb0, (u8)rnd()); /* mov al, imm8: to be patched */
        block[b].patch = pos - 1;
        if (seams < 6 && bits_of(b) != 16) { /* mov esp, a stack: nothing else sets it right again */
            if (bits_of(b) == 32 && below(2))
                load_segment(b, SEG_SS, block[b].mode == M32U ? SEL_USER_DATA : SEL_DATA);
            PUT(0xbc);
            put32(TWIN_STACK - 0x400 + below(0x80) * 8);
        }
        for (unsigned n = below(10); n-- && pos < block[b].at + SLOT - 310;)
            if (below(12) >= seams)
                bits_of(b) == 16 ? compiled_16(b) : compiled(b);
            else if (below(4))
                plain(b);
            else
                special(b);
        end(b);
    }
    return block[0].mode;
}

/* Out of a cycle of exceptions: on at another block of the mode that is on, with registers that lead to memory. */
static void go_elsewhere(struct twins *t)
{
    const struct vcpu *a = t->a.v;
    unsigned b = below(BLOCKS);
    const u8 bits = a->code_mode == CODE_64 ? 64 : a->code_mode == CODE_32 ? 32 : 16;
    if (a->activity != ACTIVITY_ACTIVE || mode_info[block[b].mode].bits != bits || a->mode == MODE_REAL ||
        (mode_info[block[b].mode].cs & 3) != a->cpl)
        return;
    u64 rip = address(b, block[b].at), sp = (bits == 16 ? TWIN_STACK & 0xffff : TWIN_STACK) - below(0x40) * 8;
    for (unsigned n = 0; n < 2; n++) {
        struct vcpu *v = n ? t->b.v : t->a.v;
        v->rip = rip;
        v->gpr[RSP] = sp;
        v->gpr[RBP] = TWIN_DATA + 0x1f80;
    }
}

int main(int argc, char **argv)
{
    unsigned long wanted_blocks = argc > 1 ? strtoul(argv[1], NULL, 0) : 40000, made = 0, faults = 0, shutdowns = 0;
    u64 seed = argc > 2 ? strtoull(argv[2], NULL, 16) : 0x2545f4914f6cdd1dull, first = seed, insns = 0;
    const struct engine *engine = argc > 3 && !strcmp(argv[3], "lockstep") ? &engine_lockstep : &engine_jit_eager;
    bool check = argc > 3 && !strcmp(argv[3], "check");
    unsigned long checked = 0;
    struct twins t;
    twins_new(&t, engine);
    features = t.a.v->features;
    while (made < wanted_blocks) {
        random_state = seed;
        enum mode mode = make_program();
        ((struct jit *)t.b.v->jit)->heat = (const u8[]){1, 2, 3, 5}[below(4)]; /* late, paths are longer */
        twins_load(&t, smap ? TWIN_SMAP : (enum twin_world)mode_info[mode].world, mode_info[mode].cs, code, sizeof(code),
                   (mode_info[mode].bits == 16 ? 0 : TWIN_CODE) + block[0].at, seed);
        for (unsigned pass = 0; pass < PASSES; pass++) {
            enum run_result r = twins_run(&t, 20 + below(500));
            if (r == RUN_SHUTDOWN) {
                shutdowns++;
                break;
            }
            if (below(3))
                go_elsewhere(&t);
            for (unsigned n = below(4); mode_info[mode].world == TWIN_LONG && n; n--)
                twins_remap(&t, below(16), below(16));
            if (!below(4)) {
                vcpu_request(t.a.v, REQ_NMI);
                vcpu_request(t.b.v, REQ_NMI);
            }
        }
        if (check)
            checked += code_check(t.b.v, NULL);
        made += BLOCKS;
        insns += t.a.v->icount;
        u32 count = load32(t.a.ram + TWIN_RECOVER + 16); /* unless the program wrote there */
        faults += count < t.a.v->icount ? count : 0;
        seed = seed * 0x5851f42d4c957f2dull + 0x14057b7ef767814full;
        if (!seed)
            seed = 1;
    }
    const struct jit_stats *js = jit_stats(t.b.v);
    printf("%lu blocks from seed %llx on, no difference: %llu instructions, %lu exceptions, %lu shutdowns; %llu translations (%llu evicted), %llu calls of bodies\n",
           made, (unsigned long long)first, (unsigned long long)insns, faults, shutdowns, (unsigned long long)js->translated, (unsigned long long)js->evicted,
           (unsigned long long)js->calls);
    if (check)
        printf("%lu instructions of the host, none that should not be there\n", checked);
    twins_free(&t);
    return 0;
}
