/*
 * The x87 FPU. Arithmetic is the host's: the guest's registers go into an FXSAVE image, the host
 * loads it, executes the instruction and saves it again. FXSAVE does not wait, so an unmasked
 * exception leaves its response (nothing stored, biased result, pending ES) in the image exactly as
 * the processor computed it, and FNINIT forgets it before anything could trap.
 *
 * Control instructions, which the manual lists apart (SDM vol. 1, 8.3.11 "x87 FPU Control
 * Instructions"), are plain C here, as are the pointers to the last instruction and operand, which
 * must name the guest's addresses (8.1.8 "x87 FPU Instruction and Data (Operand) Pointers").
 */
#include "cpu/bodies_simd.h"
#include "cpu/borrow.h"

#define FSW_TOP(fsw) ((fsw) >> 11 & 7u)
#define FSW_ES BIT(7)
#define FSW_B BIT(15)
#define FSW_EXCEPTIONS 0x3fu
#define FSW_C1 BIT(9)
#define FSW_C023 (BIT(8) | BIT(10) | BIT(14))
#define FCW_VALID 0x1f3fu /* the rest reads as 0, bit 6 as 1 */
#define FCW_ONE 0x40u
#define MISC_ENABLE_FOPCODE BIT64(2)

void x87_update_es(struct vcpu *v)
{
    struct x87 *f = &v->x87;
    f->fsw &= (u16) ~(FSW_ES | FSW_B);
    if (f->fsw & ~f->fcw & FSW_EXCEPTIONS)
        f->fsw |= FSW_ES | FSW_B;
    else
        v->ignne = false; /* FERR# goes away, and IGNNE# with it */
}

void x87_set_top(struct vcpu *v, unsigned top)
{
    struct x87 *f = &v->x87;
    unsigned old = FSW_TOP(f->fsw), turn = (top - old) & 7;
    if (turn) {
        u8 st[8][16];
        memcpy(st, f->st, sizeof(st));
        for (unsigned n = 0; n < 8; n++)
            memcpy(f->st[n], st[(n + turn) & 7], 16);
    }
    f->fsw = (u16)((f->fsw & ~0x3800u) | top << 11);
}

void x87_enter_mmx(struct vcpu *v)
{
    x87_set_top(v, 0);
    v->x87.ftw = 0xff;
}

void x87_init(struct vcpu *v)
{
    struct x87 *f = &v->x87;
    x87_set_top(v, 0);
    f->fcw = 0x37f;
    f->fsw = 0;
    v->ignne = false;
    f->ftw = 0;
    f->fop = 0;
    f->fip = f->fdp = 0;
    f->fcs = f->fds = 0;
}

u16 x87_full_tags(const struct x87 *f)
{
    unsigned top = FSW_TOP(f->fsw), tags = 0;
    for (unsigned phys = 0; phys < 8; phys++) {
        const u8 *st = f->st[(phys - top) & 7];
        unsigned exponent = load16(st + 8) & 0x7fff, tag;
        u64 mantissa = load64(st);
        if (!(f->ftw >> phys & 1))
            tag = 3; /* empty */
        else if (exponent == 0 && mantissa == 0)
            tag = 1; /* zero */
        else if (exponent == 0 || exponent == 0x7fff || !(mantissa >> 63))
            tag = 2; /* special */
        else
            tag = 0;
        tags |= tag << 2 * phys;
    }
    return (u16)tags;
}

static u8 abridged_tags(u16 full)
{
    unsigned tags = 0;
    for (unsigned n = 0; n < 8; n++)
        if ((full >> 2 * n & 3) != 3)
            tags |= BIT(n);
    return (u8)tags;
}

static u16 valid_fcw(u16 fcw) { return (u16)((fcw & FCW_VALID) | FCW_ONE); }

/* Pointers after a non-control instruction; @unmasked: it raised an unmasked exception. */
static void note_instruction(struct vcpu *v, const struct insn *i, bool unmasked)
{
    struct x87 *f = &v->x87;
    bool no_sel = cpu_has(v, FEAT_ZERO_FCS_FDS);
    f->fip = v->rip;
    f->fcs = no_sel ? 0 : v->seg[SEG_CS].sel;
    /* SDM vol. 1, 8.1.9.1: outside the compatibility mode the opcode is that of the last unmasked exception. */
    if (unmasked || (v->misc_enable & MISC_ENABLE_FOPCODE))
        f->fop = (u16)((i->opcode & 7) << 8 | i->modrm);
    if ((i->flags & INSN_MEM) && (unmasked || !cpu_has(v, FEAT_FDP_EXCPTN_ONLY))) {
        f->fdp = insn_ea(v, i);
        f->fds = no_sel ? 0 : v->seg[i->seg].sel;
    }
}

/* ---- the short way: only the registers that take part ---- */

static unsigned plan_memory(unsigned op, unsigned r)
{
    const unsigned load = X87_PUSH, store = X87_ST0, pop = X87_ST0 | X87_POP, none = 0;
    switch (op) {
    case 0xd8: case 0xda: case 0xdc: case 0xde:
        return r == 2 ? X87_ST0 | X87_CC : r == 3 ? X87_ST0 | X87_CC | X87_POP : X87_ST0 | X87_SET0;
    case 0xd9: return (const unsigned[8]){load, none, store, pop}[r];
    case 0xdb: return (const unsigned[8]){load, pop, store, pop, none, load, none, pop}[r];
    case 0xdd: return (const unsigned[8]){load, pop, store, pop}[r];
    default: return (const unsigned[8]){load, pop, store, pop, none, load, none, pop}[r];
    }
}

/* FCOMI and its kin clear C1 by the book (SDM vol. 2); there are processors that leave it. The guest gets the host's way. */
static unsigned fcomi_plan(void)
{
    u16 fsw;
    __asm__ volatile("fld1; fchs; fxam; fcomi %%st(0), %%st; fnstsw %0; fstp %%st(0)" : "=a"(fsw) : : "cc");
    return X87_ST0 | X87_STI | X87_FLAGS | (fsw & FSW_C1 ? X87_KEEP_C1 : 0);
}

unsigned x87_plan(const struct insn *i)
{
    unsigned op = i->opcode, r = i->modrm >> 3 & 7, n = i->modrm & 7, two = X87_ST0 | X87_STI;
    bool compare = r == 2 || r == 3;
    if (i->flags & INSN_MEM)
        return plan_memory(op, r);
    switch (op) {
    case 0xd8:
        return two | (r == 2 ? X87_CC : r == 3 ? X87_CC | X87_POP : X87_SET0);
    case 0xd9:
        if (r == 0)
            return X87_STI | X87_PUSH;
        if (r == 1 && n)
            return two | X87_SET0 | X87_SETI;
        switch (i->modrm) {
        case 0xe0: case 0xe1: case 0xfa: case 0xfc: /* FCHS, FABS, FSQRT, FRNDINT */
            return X87_ST0 | X87_SET0;
        case 0xe4: /* FTST */
            return X87_ST0 | X87_CC;
        }
        return i->modrm >= 0xe8 && i->modrm <= 0xee ? X87_PUSH : 0; /* constants */
    case 0xda: /* FUCOMPP */
        return i->modrm == 0xe9 ? two | X87_CC | X87_POP2 : 0;
    case 0xdb: /* FUCOMI, FCOMI */
        return r == 5 || r == 6 ? fcomi_plan() : 0;
    case 0xdc:
        return n && !compare ? two | X87_SETI : 0;
    case 0xdd:
        return r == 2 ? X87_COPY : r == 3 ? X87_COPY | X87_POP : r == 4 ? two | X87_CC : r == 5 ? two | X87_CC | X87_POP : 0;
    case 0xde:
        if (i->modrm == 0xd9) /* FCOMPP */
            return two | X87_CC | X87_POP2;
        return n && !compare ? two | X87_SETI | X87_POP : 0;
    default: /* DF: FUCOMIP, FCOMIP */
        return r == 5 || r == 6 ? fcomi_plan() | X87_POP : 0;
    }
}

static inline bool valid(const struct x87 *f, unsigned n) { return f->ftw >> ((FSW_TOP(f->fsw) + n) & 7) & 1; }

static void pop(struct x87 *f)
{
    unsigned top = FSW_TOP(f->fsw);
    u8 old[16];
    memcpy(old, f->st[0], 16);
    memmove(f->st[0], f->st[1], 7 * 16);
    memcpy(f->st[7], old, 16);
    f->ftw &= (u8)~BIT(top);
    f->fsw = (u16)((f->fsw & ~0x3800u) | ((top + 1) & 7) << 11);
}

static void push(struct x87 *f, const u8 value[16])
{
    unsigned top = (FSW_TOP(f->fsw) - 1) & 7;
    memmove(f->st[1], f->st[0], 7 * 16);
    memcpy(f->st[0], value, 16);
    f->ftw |= (u8)BIT(top);
    f->fsw = (u16)((f->fsw & ~0x3800u) | top << 11);
}

/* With every exception masked, and no stack fault in sight. False: nothing was done. */
static bool run_fast(struct vcpu *v, const struct insn *i, const struct x87_op *op)
{
    struct x87 *f = &v->x87;
    unsigned plan = op->plan, n = i->modrm & 7;
    u8 *st0 = f->st[0], *sti = f->st[n];
    _Alignas(16) u8 mem[16] = {0}, value[16] = {0};
    static const u16 host_fcw = 0x37f;
    u64 ea = 0;

    if ((f->fcw & FSW_EXCEPTIONS) != FSW_EXCEPTIONS || ((plan & (X87_ST0 | X87_COPY)) && !valid(f, 0)) ||
        ((plan & X87_STI) && !valid(f, n)) || ((plan & X87_PUSH) && valid(f, 7)))
        return false;
    if (plan & X87_COPY) {
        memcpy(sti, st0, 16);
        f->ftw |= (u8)BIT((FSW_TOP(f->fsw) + n) & 7);
        f->fsw &= (u16)~FSW_C1;
        if (plan & X87_POP)
            pop(f);
        note_instruction(v, i, false);
        return true;
    }
    if (op->mem_access) {
        ea = insn_ea(v, i);
        if (op->mem_access & 2) {
            mem_probe_write(v, i->seg, ea, op->mem_size);
        } else {
            switch (op->mem_size) {
            case 4: store32(mem, mem_read32(v, i->seg, ea)); break;
            case 8: store64(mem, mem_read64(v, i->seg, ea)); break;
            default: mem_read_bytes(v, i->seg, ea, mem, op->mem_size);
            }
        }
    }
    u16 fsw;
    __asm__ volatile("fnstsw %0" : "=a"(fsw));
    if (fsw & FSW_EXCEPTIONS & ~f->fsw) /* left by others; those that the guest has too do not matter */
        __asm__ volatile("fnclex");
    if (f->fcw != host_fcw)
        __asm__ volatile("fldcw %0" : : "m"(f->fcw));
    fsw = op->fast(plan & X87_PUSH ? value : st0, mem, &v->aflags, NULL, sti);
    if (f->fcw != host_fcw)
        __asm__ volatile("fldcw %0" : : "m"(host_fcw));

    if (op->mem_access & 2)
        mem_write_bytes(v, i->seg, ea, mem, op->mem_size);
    unsigned replaced = (plan & X87_KEEP_C1 ? 0 : FSW_C1) | (plan & X87_CC ? FSW_C023 : 0);
    f->fsw = (u16)((f->fsw & ~replaced) | (fsw & (replaced | FSW_EXCEPTIONS)));
    if (plan & X87_PUSH) {
        push(f, value);
    } else if (plan & (X87_POP | X87_POP2)) {
        pop(f);
        if (plan & X87_POP2)
            pop(f);
    }
    note_instruction(v, i, false);
    return true;
}

void x87_borrow(struct vcpu *v, const struct insn *i, const struct x87_op *op)
{
    if (likely(op->plan) && likely(run_fast(v, i, op)))
        return;
    /* 512 bytes as FXSAVE lays them out (SDM vol. 1, 10.5.1); the XMM part is loaded and saved too, but nobody's. */
    _Alignas(16) u8 image[512];
    _Alignas(16) u8 mem[16] = { 0 };
    struct x87 *f = &v->x87;
    u64 ea = 0;

    if (op->mem_access) {
        ea = insn_ea(v, i);
        if (op->mem_access & 1)
            mem_read_bytes(v, i->seg, ea, mem, op->mem_size);
        else
            mem_probe_write(v, i->seg, ea, op->mem_size);
    }
    /* A pending exception reaches this point only where it is ignored (IGNNE#): keep it from the host. */
    unsigned pending = f->fsw & ~f->fcw & FSW_EXCEPTIONS;
    store16(image, f->fcw);
    store16(image + 2, (u16)(f->fsw & ~(pending | FSW_ES | FSW_B)));
    store16(image + 4, f->ftw);
    memset(image + 6, 0, 18);
    store32(image + 24, 0x1f80);
    store32(image + 28, 0);
    memcpy(image + 32, f->st, 128);
    u32 aflags = v->aflags;
    op->run(image, mem, &aflags);

    u16 fsw = load16(image + 2);
    unsigned unmasked = fsw & ~f->fcw & FSW_EXCEPTIONS;
    /* An unmasked exception other than precision leaves a memory destination alone (SDM vol. 1, 8.5). */
    if ((op->mem_access & 2) && !(unmasked & ~BIT(5)))
        mem_write_bytes(v, i->seg, ea, mem, op->mem_size);
    f->fsw = (u16)(fsw | pending);
    f->ftw = image[4];
    memcpy(f->st, image + 32, 128);
    v->aflags = aflags;
    if (pending)
        x87_update_es(v);
    note_instruction(v, i, unmasked);
}

/* ---- control instructions ---- */

void insn_fninit(struct vcpu *v, const struct insn *i) { x87_init(v); }

void insn_fnclex(struct vcpu *v, const struct insn *i)
{
    v->x87.fsw &= 0x7f00;
    v->ignne = false;
}

void insn_fwait(struct vcpu *v, const struct insn *i) { /* the row's check raised what was pending */ }

void insn_fldcw(struct vcpu *v, const struct insn *i)
{
    v->x87.fcw = valid_fcw(mem_read16(v, i->seg, insn_ea(v, i)));
    x87_update_es(v);
}

void insn_fnstcw(struct vcpu *v, const struct insn *i) { mem_write16(v, i->seg, insn_ea(v, i), v->x87.fcw); }

void insn_fnstsw(struct vcpu *v, const struct insn *i)
{
    if (i->flags & INSN_MEM)
        mem_write16(v, i->seg, insn_ea(v, i), v->x87.fsw);
    else
        reg16_set(v, RAX, v->x87.fsw);
}

/* The environment in its four formats (SDM vol. 1, 8.1.10 figures 8-9 to 8-12); returns its size. */
static unsigned put_environment(const struct vcpu *v, const struct insn *i, u8 *p)
{
    const struct x87 *f = &v->x87;
    u32 ip = (u32)f->fip, dp = (u32)f->fdp;
    u16 fop = f->fop & 0x7ff;
    bool prot = cpu_protected(v);
    if (!prot) { /* pointers are linear addresses of 20 bits or more */
        ip += (u32)f->fcs << 4;
        dp += (u32)f->fds << 4;
    }
    if (i->opsize == 2) {
        store16(p, f->fcw);
        store16(p + 2, f->fsw);
        store16(p + 4, x87_full_tags(f));
        store16(p + 6, (u16)ip);
        store16(p + 8, prot ? f->fcs : (u16)((ip >> 4 & 0xf000) | fop));
        store16(p + 10, (u16)dp);
        store16(p + 12, prot ? f->fds : (u16)(dp >> 4 & 0xf000));
        return 14;
    }
    store32(p, 0xffff0000u | f->fcw);
    store32(p + 4, 0xffff0000u | f->fsw);
    store32(p + 8, 0xffff0000u | x87_full_tags(f));
    if (prot) {
        store32(p + 12, ip);
        store32(p + 16, (u32)fop << 16 | f->fcs);
        store32(p + 20, dp);
        store32(p + 24, 0xffff0000u | f->fds);
    } else {
        store32(p + 12, 0xffff0000u | (ip & 0xffff));
        store32(p + 16, (ip >> 4 & 0x0ffff000) | fop);
        store32(p + 20, 0xffff0000u | (dp & 0xffff));
        store32(p + 24, dp >> 4 & 0x0ffff000);
    }
    return 28;
}

/* Loads FCW, FSW, tags and pointers; the registers stay where they are physically. */
static void get_environment(struct vcpu *v, const struct insn *i, const u8 *p)
{
    struct x87 *f = &v->x87;
    bool prot = cpu_protected(v), wide = i->opsize != 2;
    unsigned step = wide ? 4 : 2;
    u16 fsw = load16(p + step), second, fourth;
    u32 ip, dp;

    x87_set_top(v, FSW_TOP(fsw));
    f->fcw = valid_fcw(load16(p));
    f->fsw = fsw;
    f->ftw = abridged_tags(load16(p + 2 * step));
    if (wide) {
        ip = load32(p + 12);
        second = load16(p + 16);
        dp = load32(p + 20);
        fourth = load16(p + 24);
        if (prot) {
            f->fop = load16(p + 18) & 0x7ff;
        } else {
            f->fop = second & 0x7ff;
            ip = (ip & 0xffff) | (load32(p + 16) & 0x0ffff000) << 4;
            dp = (dp & 0xffff) | (load32(p + 24) & 0x0ffff000) << 4;
        }
    } else {
        ip = load16(p + 6);
        second = load16(p + 8);
        dp = load16(p + 10);
        fourth = load16(p + 12);
        if (prot) {
            f->fop = 0; /* not part of this format */
        } else {
            f->fop = second & 0x7ff;
            ip |= (u32)(second & 0xf000) << 4;
            dp |= (u32)(fourth & 0xf000) << 4;
        }
    }
    f->fip = ip;
    f->fdp = dp;
    f->fcs = prot && !cpu_has(v, FEAT_ZERO_FCS_FDS) ? second : 0;
    f->fds = prot && !cpu_has(v, FEAT_ZERO_FCS_FDS) ? fourth : 0;
    x87_update_es(v);
}

void insn_fnstenv(struct vcpu *v, const struct insn *i)
{
    u8 env[28];
    unsigned size = put_environment(v, i, env);
    mem_write_bytes(v, i->seg, insn_ea(v, i), env, size);
    v->x87.fcw |= 0x3f; /* masks every exception after saving (SDM vol. 2, FSTENV) */
    x87_update_es(v);
}

void insn_fldenv(struct vcpu *v, const struct insn *i)
{
    u8 env[28];
    mem_read_bytes(v, i->seg, insn_ea(v, i), env, i->opsize == 2 ? 14 : 28);
    get_environment(v, i, env);
}

void insn_fnsave(struct vcpu *v, const struct insn *i)
{
    u8 area[108];
    unsigned size = put_environment(v, i, area);
    for (unsigned n = 0; n < 8; n++)
        memcpy(area + size + 10 * n, v->x87.st[n], 10);
    mem_write_bytes(v, i->seg, insn_ea(v, i), area, size + 80);
    x87_init(v);
}

void insn_frstor(struct vcpu *v, const struct insn *i)
{
    u8 area[108];
    unsigned size = i->opsize == 2 ? 14 : 28;
    mem_read_bytes(v, i->seg, insn_ea(v, i), area, size + 80);
    get_environment(v, i, area);
    for (unsigned n = 0; n < 8; n++) {
        memset(v->x87.st[n], 0, 16);
        memcpy(v->x87.st[n], area + size + 10 * n, 10);
    }
}
