/* What must come out the same on both sides, and the encoder. */
#include "native_diff.h"

#include <stdarg.h>
#include <string.h>

/* ---- comparing ---- */

char report[4096];
int failure[2];
static void note(const char *fmt, ...) printf_like(1, 2);
static void note(const char *fmt, ...)
{
    size_t used = strlen(report);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(report + used, sizeof(report) - used, fmt, ap);
    va_end(ap);
}

bool exact_undefined = true;
u64 faults[32];

static bool all_above_zero(const union vec_reg *r) { return !(r->q[4] | r->q[5] | r->q[6] | r->q[7]); }

/* The row of the instruction at @rip: where a sequence ended with a fault; else the first. */
static const struct insn_row *stopped_at(const struct testcase *t, u64 rip)
{
    u64 at = CODE_AT;
    for (unsigned n = 0; n < t->count; at += case_insn(t, n++)->len)
        if (at == rip)
            return insn_row(case_insn(t, n));
    return insn_row(&t->insn);
}

static bool compare(const struct testcase *t, const struct state *nat, const struct state *got, const u8 *native_data)
{
    static const char *const names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                           "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };
    const struct insn_row *row = stopped_at(t, nat->rip);
    u64 flags = FL_ARITH | FL_DF;
    if (!exact_undefined || row->checks & CHK_NO64) /* AAA and its kin: the host does not execute them for Nestor */
        flags &= ~(u64)row->flags_undefined;
    bool big = false; /* areas of hundreds of bytes: which of their bytes faults first is the processor's own choice */
    for (unsigned n = 0; n < row->nopnd; n++)
        big |= row->opnd[n].size == OPSZ_BIG;
    /* Misaligned and not canonical at once: either fault may win. */
    bool either = (row->checks & CHK_ALIGN16) && nat->vector == VEC_GP && got->vector == VEC_SS;
    /* A branch that went to a place without code: the fault is the next instruction's. */
    bool landed = t->branch && nat->vector >= 0 && got->vector < 0 && nat->rip == got->rip;
    /* CALL to an address that is not canonical with a stack that faults: Intel's manual has the #GP first, AMD's processors the push. */
    either |= starts(row, "CALL") && nat->vector >= 0 && got->vector >= 0;
    either |= big && nat->vector >= 0 && got->vector >= 0;
    /* PE with an unmasked underflow or overflow: see run_unmasked() in borrow.c. */
    u32 mxcsr_ignored = 0;
    if (nat->vector == VEC_XM && nat->mxcsr & ~(nat->mxcsr >> 7) & 0x18)
        mxcsr_ignored = 0x20;
    if (nat->vector == VEC_XM && row->map == 3 && (row->opcode == 0x40 || row->opcode == 0x41))
        mxcsr_ignored = 0x3f; /* DPPS, DPPD: each of the steps stops with its own exceptions */
    /* Addresses in the upper half are the host kernel's: whether something is mapped there is its secret. */
    u32 error_ignored = nat->cr2 >> 63;
    either |= starts(row, "CMPS") && nat->vector >= 0 && got->vector >= 0;
    bool restarts = starts(row, "POPA") && nat->vector >= 0; /* AMD's have loaded some by then */
    bool order = starts(row, "CMPS"); /* two reads in the processor's own order */
    report[0] = 0;
    if (big && nat->vector == VEC_PF && got->vector < 0 && starts(row, "XSAVE"))
        return true; /* the host touches parts of the area that nothing is stored to */
    if (either || landed)
        ;
    else if (nat->vector != got->vector)
        note("  exception: native %d, nestor %d\n", nat->vector, got->vector);
    else if (nat->vector >= 0) {
        if (!big && !order && (nat->vector == VEC_PF || nat->vector == VEC_GP) && (nat->error ^ got->error) & ~error_ignored)
            note("  error code: native %x, nestor %x\n", nat->error, got->error);
        /* Which of several selected elements faults first is the processor's own choice. */
        bool elements = row->vex == 2 && (case_insn(t, 0)->mask || emulated_host) && (nat->cr2 ^ got->cr2) < 2 * PAGE_SIZE;
        /* An element of VMASKMOVPS beyond 64 KiB with 16-bit addresses: AMD's wrap around. */
        bool wraps = t->insn.adsize == 2 && (nat->cr2 ^ got->cr2) == 0x10000;
        if (!big && !order && !elements && nat->vector == VEC_PF && nat->cr2 != got->cr2 && !wraps)
            note("  cr2: native %llx, nestor %llx\n", (long long)nat->cr2, (long long)got->cr2);
    }
    /* What 32-bit code leaves in the upper halves is undefined. */
    for (unsigned n = 0; n < 16; n++)
        if (restarts && n != RSP)
            continue;
        else if (t->legacy && n < 8 ? (u32)nat->gpr[n] != (u32)got->gpr[n] : nat->gpr[n] != got->gpr[n])
            note("  %s: native %016llx, nestor %016llx (before %016llx)\n", names[n], (long long)nat->gpr[n], (long long)got->gpr[n],
                 (long long)t->in.gpr[n]);
    if (nat->rip != got->rip)
        note("  rip: native %llx, nestor %llx\n", (long long)nat->rip, (long long)got->rip);
    if ((nat->rflags ^ got->rflags) & flags)
        note("  flags: native %llx, nestor %llx (before %llx)\n", (long long)(nat->rflags & flags), (long long)(got->rflags & flags),
             (long long)(t->in.rflags & flags));
    for (unsigned n = 0; n < 32; n++)
        if (memcmp(&nat->vec[n], &got->vec[n], 64)) {
            int top = LANES > 4 || !all_above_zero(&got->vec[n]) ? 7 : 3;
            note("  %s%u: native", top == 7 ? "zmm" : "ymm", n);
            for (int k = top; k >= 0; k--)
                note(" %016llx", (long long)nat->vec[n].q[k]);
            note("\n        nestor");
            for (int k = top; k >= 0; k--)
                note(" %016llx", (long long)got->vec[n].q[k]);
            note("\n");
        }
    for (unsigned n = 0; n < 8; n++)
        if (nat->k[n] != got->k[n])
            note("  k%u: native %016llx, nestor %016llx (before %016llx)\n", n, (long long)nat->k[n], (long long)got->k[n],
                 (long long)t->in.k[n]);
    if ((nat->mxcsr ^ got->mxcsr) & ~mxcsr_ignored)
        note("  mxcsr: native %x, nestor %x (before %x)\n", nat->mxcsr, got->mxcsr, t->in.mxcsr);
    if (nat->x87.fcw != got->x87.fcw || nat->x87.fsw != got->x87.fsw || nat->x87.ftw != got->x87.ftw)
        note("  x87 fcw fsw ftw: native %04x %04x %02x, nestor %04x %04x %02x (before %04x %04x %02x)\n", nat->x87.fcw, nat->x87.fsw,
             nat->x87.ftw, got->x87.fcw, got->x87.fsw, got->x87.ftw, t->in.x87.fcw, t->in.x87.fsw, t->in.x87.ftw);
    for (unsigned n = 0; n < 8; n++)
        if (memcmp(nat->x87.st[n], got->x87.st[n], 10))
            note("  st%u: native %04x:%016llx, nestor %04x:%016llx\n", n, load16(nat->x87.st[n] + 8), (long long)load64(nat->x87.st[n]),
                 load16(got->x87.st[n] + 8), (long long)load64(got->x87.st[n]));
    /* The host keeps the pointers only while an exception is pending; what it keeps must agree. */
    if ((row->checks & CHK_X87) && nat->vector < 0 && (nat->x87.fsw & 0x80) && !(t->in.x87.fsw & 0x80) && nat->x87.fip) {
        if (nat->x87.fip != got->x87.fip)
            note("  fip: native %llx, nestor %llx\n", (long long)nat->x87.fip, (long long)got->x87.fip);
        if (nat->x87.fop != got->x87.fop)
            note("  fop: native %x, nestor %x\n", nat->x87.fop, got->x87.fop);
        if ((t->insn.flags & INSN_MEM) && nat->x87.fdp != got->x87.fdp)
            note("  fdp: native %llx, nestor %llx\n", (long long)nat->x87.fdp, (long long)got->x87.fdp);
    }
    const u8 *guest_data = sides.guest_data;
    for (unsigned n = 0; memcmp(native_data, guest_data, DATA_SIZE) && n < DATA_SIZE; n++)
        if (native_data[n] != guest_data[n]) {
            unsigned from = n & ~7u;
            note("  memory %llx: native %016llx, nestor %016llx\n", (long long)(DATA_VA + from), (long long)load64(native_data + from),
                 (long long)load64(guest_data + from));
            n = from + 7;
        }
    return report[0] == 0;
}

/* Encodings that are other rows in 32-bit mode: opcode 82 for 80, VEX.W1 where it is ignored. */
static bool same_row(unsigned a, unsigned b)
{
    const struct insn_row *x = &insn_rows[a], *y = &insn_rows[b];
    return a == b || (x->checks & CHK_NO64 && !strcmp(x->mnemonic, y->mnemonic) && !strcmp(x->operands, y->operands));
}

/*
 * The encoder, for every row that may be re-emitted: other registers and another address in, and the
 * decoder must read the same instruction with just those.
 */
static bool check_encoder(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    if (row->jit != JIT_COPY || (i->flags & INSN_VSIB))
        return true;
    bool byte_reg = false, byte_rm = false, vec_reg = false;
    for (unsigned n = 0; n < row->nopnd; n++) {
        const struct operand *o = &row->opnd[n];
        byte_reg |= o->kind == OPND_GPR_REG && o->size == 1;
        byte_rm |= (o->kind == OPND_GPR_RM || o->kind == OPND_GPR_OP) && o->size == 1;
        vec_reg |= o->kind == OPND_MMX_REG || o->kind == OPND_MMX_RM;
    }
    struct encode_regs r = { .reg = (u8)rnd_below(vec_reg ? 8 : 16), .rm = (u8)rnd_below(vec_reg ? 8 : 16), .vvvv = (u8)rnd_below(16),
                             .is4 = (u8)rnd_below(16), .base = (u8)rnd_below(16), .index = REG_NONE };
    if (chance(30)) {
        r.index = (u8)rnd_below(16);
        r.scale = (u8)rnd_below(4);
        if (r.index == RSP)
            r.index = REG_NONE;
    }
    if (chance(70))
        r.disp = chance(50) ? (s8)rnd() : (s32)rnd();
    if (chance(20)) { /* high byte registers, with nothing that needs REX */
        r.high_reg = byte_reg;
        r.high_rm = byte_rm && !(i->flags & INSN_MEM);
        if (r.high_reg || r.high_rm)
            r = (struct encode_regs){ .reg = (u8)rnd_below(4), .rm = (u8)rnd_below(4), .base = (u8)rnd_below(8), .index = REG_NONE,
                                      .disp = r.disp, .high_reg = r.high_reg, .high_rm = r.high_rm };
    }
    u8 out[32] = { 0 };
    struct insn d = { 0 };
    unsigned len = insn_encode(i, &r, out);
    if (len == 0) {
        bool hopeless = r.high_reg || r.high_rm;
        for (unsigned n = 0; n < row->nopnd; n++)
            hopeless |= row->opnd[n].kind == OPND_MOFFS || row->opnd[n].kind == OPND_REL ||
                        (row->opnd[n].kind == OPND_GPR_OP && row->checks & CHK_NO64);
        if (!hopeless)
            note("  not encodable\n");
        return hopeless;
    }
    const struct decode_ctx ctx = { .mode = CODE_64, .features = sides.v->features };
    if (len > INSN_ENCODE_MAX - 1 || insn_decode(&ctx, out, 15, &d) != DECODE_OK || !same_row(i->row, d.row) || d.len != len) {
        note("  re-encoded as ");
        for (unsigned n = 0; n < len; n++)
            note("%02x", out[n]);
        note(", which is %s (%u bytes)\n", insn_row(&d)->encoding, d.len);
        return false;
    }
    bool is4 = false;
    for (unsigned n = 0; n < row->nopnd; n++)
        is4 |= row->opnd[n].kind == OPND_VEC_IS4;
    bool ok = (is4 ? (d.imm >> 4 & 15) == r.is4 : d.imm == i->imm) && d.imm2 == i->imm2 && (d.opsize == i->opsize || insn_wide(&d) == insn_wide(i)) && d.vl == i->vl &&
              ((d.flags ^ i->flags) & (INSN_MEM | INSN_LOCK)) == 0;
    for (unsigned n = 0; n < row->nopnd; n++)
        switch (row->opnd[n].kind) {
        case OPND_GPR_REG:
            ok &= row->opnd[n].size == 1 ? d.reg8 == r.reg * 8 + r.high_reg : d.reg == r.reg;
            break;
        case OPND_GPR_RM: case OPND_GPR_OP:
            if (!(d.flags & INSN_MEM))
                ok &= row->opnd[n].size == 1 ? d.rm8 == r.rm * 8 + r.high_rm : d.rm == r.rm;
            break;
        case OPND_VEC_REG: case OPND_MMX_REG:
            ok &= d.reg == r.reg;
            break;
        case OPND_VEC_RM: case OPND_MMX_RM:
            if (!(d.flags & INSN_MEM))
                ok &= d.rm == r.rm;
            break;
        case OPND_VEC_VVVV: case OPND_GPR_VVVV:
            ok &= d.vvvv == r.vvvv;
            break;
        }
    if (d.flags & INSN_MEM)
        ok &= d.base == r.base && d.index == r.index && (r.index == REG_NONE || d.scale == r.scale) && d.disp == r.disp;
    if (!ok) {
        note("  re-encoded with other operands: ");
        for (unsigned n = 0; n < len; n++)
            note("%02x", out[n]);
        note("\n");
    }
    return ok;
}

bool run_case(const struct testcase *t)
{
    static struct state nat, got;
    /* The guest first: a crash of the native side then shows a state that made sense. */
    run_guest(t, &got);
    run_host(t, &nat);
    failure[0] = nat.vector;
    failure[1] = got.vector;
    if (nat.vector >= 0)
        faults[nat.vector & 31]++;
    /* A store that went to the code page must not be seen by the next case. */
    static u8 plain_code[PAGE_SIZE];
    u8 *code = sides.guest_code;
    memset(plain_code, 0xcc, plain_code[0] ? 0 : sizeof(plain_code));
    memset(code + (CODE_AT - CODE_VA), 0xcc, t->len);
    if (memcmp(code, plain_code, PAGE_SIZE)) {
        memcpy(code, plain_code, PAGE_SIZE);
        memcpy((void *)CODE_VA, plain_code, PAGE_SIZE);
    }
    return compare(t, &nat, &got, sides.native_data) && (t->count != 1 || t->too_long || check_encoder(&t->insn));
}
