/* Making cases: what is run, encodings, and operands that lead somewhere. */
#include "native_diff.h"

#include <cpuid.h>

/* ---- what is run ---- */

bool is_string(const struct insn_row *row)
{
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].kind == OPND_STR_SRC || row->opnd[n].kind == OPND_STR_DST)
            return true;
    return false;
}

static const struct { const char *mnemonic, *why; } excluded[] = {
    { "UD", "no instruction" },
    { "SYSCALL", "enters the host's kernel" }, { "SYSENTER", "enters the host's kernel" },
    { "SYSRET", "privileged" }, { "SYSEXIT", "privileged" }, { "RSM", "outside SMM always #UD" },
    { "INT", "enters the host's kernel" }, { "INT3", "ends native cases" }, { "INTO", "ends native cases" }, { "INT1", "debug trap" },
    { "IRET", "segments" }, { "IRETD", "segments" }, { "IRETQ", "segments" }, { "IRETW", "segments" },
    { "RDTSC", "time differs" }, { "RDTSCP", "time differs" }, { "RDPMC", "counters differ" },
    { "RDRAND", "random" }, { "RDSEED", "random" }, { "CPUID", "the model's, not the host's" }, { "RDPID", "host's TSC_AUX" },
    { "RDPRU", "counters differ" },
    { "XGETBV", "the host's XCR0" }, { "RDPKRU", "the host's keys" }, { "WRPKRU", "the host's keys" },
    { "CALL_FAR", "segments" }, { "JMP_FAR", "segments" }, { "RET_FAR", "segments" }, { "RETF", "segments" },
    { "LAR", "the host's GDT" }, { "LSL", "the host's GDT" }, { "VERR", "the host's GDT" }, { "VERW", "the host's GDT" },
    { "LSS", "segments" }, { "LFS", "segments" }, { "LGS", "segments" }, { "LES", "segments" }, { "LDS", "segments" },
    { "SGDT", "UMIP" }, { "SIDT", "UMIP" }, { "SLDT", "UMIP" }, { "STR", "UMIP" }, { "SMSW", "UMIP" },
    { "RDFSBASE", "the host's thread pointer" }, { "WRFSBASE", "the host's thread pointer" },
    { "RDGSBASE", "the host's thread pointer" }, { "WRGSBASE", "the host's thread pointer" },
    { "UMONITOR", "waits" }, { "UMWAIT", "waits" }, { "TPAUSE", "waits" }, { "MONITORX", "waits" }, { "MWAITX", "waits" },
    { "VMCALL", "hypervisor" }, { "VMMCALL", "hypervisor" }, { "VMFUNC", "hypervisor" },
    { "SKINIT", "hypervisor" }, { "STGI", "hypervisor" }, { "CLGI", "hypervisor" },
    { "RDSSPD", "the host's shadow stack" }, { "RDSSPQ", "the host's shadow stack" },
    { "CLZERO", "line size at the host's mercy" },
};

const char *why_excluded(const struct insn_row *row)
{
    for (unsigned n = 0; n < ARRAY_SIZE(excluded); n++)
        if (strcmp(row->mnemonic, excluded[n].mnemonic) == 0)
            return excluded[n].why;
    if (strstr(row->encoding, sides.amd ? " intel" : " amd"))
        return "the other vendor's";
    if (row->checks & (CHK_VMXON | CHK_SVME))
        return "hypervisor";
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].kind == OPND_FARPTR ||
            ((row->opnd[n].kind == OPND_SEG_REG || row->opnd[n].kind == OPND_SEG_FIXED) && row->opnd[n].access & 2))
            return "segments";
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].size == OPSZ_P)
            return "segments";
    if ((row->feature && !sides.v->features[row->feature]) || (row->feature2 && !sides.v->features[row->feature2]))
        return "the host lacks it";
    return NULL;
}

bool starts(const struct insn_row *row, const char *prefix) { return strncmp(row->mnemonic, prefix, strlen(prefix)) == 0; }

bool is_branch(const struct insn_row *row)
{
    return (row->map < 2 && !row->vex) && (starts(row, "J") || starts(row, "CALL") || starts(row, "RET") || starts(row, "LOOP"));
}

/* ---- one case ---- */

const struct decode_ctx *case_ctx(const struct testcase *t)
{
    static struct decode_ctx ctx;
    ctx = (struct decode_ctx){ .mode = t->legacy ? CODE_32 : CODE_64, .amd = sides.amd, .features = sides.v->features };
    return &ctx;
}

bool emulated_host;

/* An EVEX prefix of @row. The fields that choose the row are as the row has them, most of the time. */
static u8 *random_evex(const struct insn_row *row, u8 *p)
{
    const char *e = row->encoding;
    bool vvvv = false, rm_field = true; /* X extends a vector register in ModRM.rm, or is the index's */
    for (unsigned n = 0; n < row->nopnd; n++) {
        vvvv |= row->opnd[n].kind == OPND_VEC_VVVV;
        rm_field &= row->opnd[n].kind != OPND_GPR_RM && row->opnd[n].kind != OPND_MASK_RM;
    }
    bool high = vvvv || (strstr(e, "vsib") && !emulated_host);
    u8 w = strstr(e, ".W1") ? 0x80 : strstr(e, ".W0") || emulated_host ? 0 : (u8)rnd() & 0x80;
    u8 length = strstr(e, ".128.") ? 0 : strstr(e, ".256.") ? 0x20 : strstr(e, ".512.") ? 0x40 : (u8)(rnd_below(3) << 5);
    if (chance(15))
        length = (u8)rnd() & 0x60;
    *p++ = 0x62;
    *p++ = (u8)((rnd() & 0xf0) | (emulated_host && !rm_field ? 0x60 : 0) | row->map);
    *p++ = (u8)(w | (vvvv ? rnd() & 0x78 : 0x78) | 4 | row->pp);
    *p++ = (u8)(length | (high ? rnd() & 8 : 8) | (chance(25) ? 0x10 : 0) | (chance(60) ? rnd() & (chance(40) ? 0x87 : 7) : 0));
    return p;
}

static void random_encoding(const struct insn_row *row, u8 *p, bool legacy)
{
    static const u8 mandatory[] = { 0, 0x66, 0xf3, 0xf2 };
    const u8 *end = p + 32;
    bool string = is_string(row), branch = is_branch(row);
    if (!row->vex) {
        if (row->checks & CHK_LOCK && chance(30))
            *p++ = 0xf0;
        if (!branch && chance(20))
            *p++ = 0x66;
        if (string && chance(60))
            *p++ = chance(50) ? 0xf3 : 0xf2;
        if (chance(5))
            *p++ = 0x67;
        if (chance(5))
            *p++ = (u8[]){ 0x26, 0x2e, 0x36, 0x3e }[rnd_below(4)];
        if (row->pp)
            *p++ = mandatory[row->pp];
        if (!legacy && chance(60))
            *p++ = (u8)(0x40 | (rnd() & 15));
        if (row->map)
            *p++ = 0x0f;
        if (row->map == 2)
            *p++ = 0x38;
        else if (row->map == 3)
            *p++ = 0x3a;
    } else if (row->vex == 2) {
        if (chance(5))
            *p++ = 0x67;
        p = random_evex(row, p);
    } else {
        if (chance(5))
            *p++ = 0x67;
        u8 vvvv = chance(50) ? 15 : (u8)(rnd() & 15);
        if (row->map == 1 && chance(40)) {
            *p++ = 0xc5;
            *p++ = (u8)((rnd() & 0x84) | vvvv << 3 | row->pp | (legacy ? 0xc0 : 0));
        } else {
            *p++ = 0xc4;
            *p++ = (u8)((rnd() & 0xe0) | row->map | (legacy ? 0xc0 : 0)); /* else LES, LDS */
            *p++ = (u8)((rnd() & 0x84) | vvvv << 3 | row->pp);
        }
    }
    u8 opcode = row->opcode;
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].kind == OPND_GPR_OP)
            opcode = (u8)((opcode & ~7) | (rnd() & 7));
    *p++ = opcode;
    u8 modrm = (u8)rnd();
    if (strstr(row->encoding, "mod=3") || chance(40))
        modrm |= 0xc0;
    const char *digit = strstr(row->encoding, " /");
    if (row->vex == 2 && digit && digit[2] != 'r')
        modrm = (u8)((modrm & 0xc7) | (digit[2] - '0') << 3);
    *p++ = modrm;
    while (p < end)
        *p++ = chance(70) ? (u8)rnd() : (u8)(rnd_below(4) - 2);
}

/* Operands that processors differ in, where the manual's row does not: */
static u64 host_target(const struct insn *i, u64 target)
{
    const struct insn_row *row = insn_row(i);
    if (starts(row, "SHA")) /* AMD's take any alignment */
        return target & ~15ull;
    if (starts(row, "MOVSXD") && i->opsize == 2) /* AMD's read four bytes */
        return target & ~3ull;
    return target;
}

static u64 pick_target(unsigned align_hint)
{
    u64 at;
    switch (rnd_below(24)) {
    case 0: at = DATA_VA + 0x1000 - rnd_below(70); break;        /* across two pages */
    case 1: at = RO_VA - rnd_below(70); break;                   /* into the read-only page */
    case 2: at = RO_VA + rnd_below(0x1000); break;
    case 3: at = DATA_VA + DATA_SIZE - rnd_below(70); break;     /* off the end */
    case 4: at = DATA_VA - rnd_below(70); break;                 /* before the start */
    case 5: at = DATA_VA + DATA_SIZE + 64 * rnd_below(40); break; /* nothing there */
    default: at = DATA_VA + 0x400 + rnd_below(0x1800); break;
    }
    if (chance(70))
        at &= ~(u64)(align_hint - 1);
    return at;
}

/* Makes the memory operand's address @target by choosing registers or patching the displacement. */
static bool aim(struct testcase *t, u64 target)
{
    struct insn *i = &t->insn;
    const struct insn_row *row = insn_row(i);
    u64 *g = t->in.gpr;
    for (unsigned n = 0; n < row->nopnd; n++)
        if (row->opnd[n].kind == OPND_MOFFS) {
            unsigned size = i->adsize;
            store_le(t->bytes + i->len - size, target, size);
            return true;
        }
    if (i->adsize == 2) /* below 64 KiB, where nothing is: the address is in the #PF */
        return true;
    bool vsib = i->flags & INSN_VSIB;
    u64 index = 0;
    if (!vsib && i->index != REG_NONE) {
        if (i->index == i->base)
            return false;
        g[i->index] = chance(80) ? rnd_below(256) : rnd_int();
        index = g[i->index] << i->scale;
    }
    if (i->base < 16) {
        g[i->base] = target - index - (u64)i->disp;
        if (i->adsize == 4)
            g[i->base] = (u32)g[i->base] | (t->legacy ? 0 : rnd() << 32);
        return true;
    }
    /* No base: the 4-byte displacement is the last thing before the immediate. */
    unsigned at = 0;
    for (unsigned n = 1; n + 4 <= i->len; n++)
        if ((s64)(s32)load32(t->bytes + n) == i->disp)
            at = n;
    if (!at)
        return false;
    u64 disp = i->base == REG_RIP ? target - (CODE_AT + i->len) : target - index;
    if (!vsib && i->index != REG_NONE && (s64)(s32)disp != (s64)disp) {
        g[i->index] = 0;
        disp = target;
    }
    store32(t->bytes + at, (u32)disp);
    return true;
}

static bool decode(struct testcase *t)
{
    memset(&t->insn, 0, sizeof(t->insn));
    t->too_long = false;
    t->count = 1;
    enum decode_status status = insn_decode(case_ctx(t), t->bytes, 15, &t->insn);
    t->len = t->insn.len;
    return status == DECODE_OK;
}

bool case_decode(struct testcase *t)
{
    unsigned at = 0;
    t->count = 0;
    t->branch = t->too_long = false;
    while (at < t->len && t->count < SEQUENCE_MAX) {
        struct insn *i = t->count ? &t->more[t->count - 1] : &t->insn;
        memset(i, 0, sizeof(*i));
        enum decode_status status = insn_decode(case_ctx(t), t->bytes + at, 15, i);
        if (status == DECODE_TOO_LONG && at == 0) {
            t->too_long = true;
            t->count = 1;
            t->insn.len = (u8)t->len;
            return true;
        }
        if (status != DECODE_OK || (why_excluded(insn_row(i)) && insn_row(i)->mnemonic[0] != 'U'))
            return false;
        t->branch |= is_branch(insn_row(i));
        at += i->len;
        t->count++;
        if (!strcmp(insn_row(i)->mnemonic, "UD"))
            return true; /* an undefined opcode has no length of its own */
    }
    return t->count && at == t->len;
}

static u64 landing(void) { return CODE_VA + 0x40 + rnd_below(0x700); }

/* Operands that name addresses, counts or targets without a memory operand of their own. */
static void set_the_stage(struct testcase *t)
{
    const struct insn_row *row = insn_row(&t->insn);
    const struct insn *i = &t->insn;
    u64 *g = t->in.gpr;
    bool mem = i->flags & INSN_MEM;

    if (i->base != RSP && !(mem && i->index == RSP))
        g[RSP] = chance(90) ? DATA_VA + 0x800 + 8 * rnd_below(0x80) : pick_target(8);
    if (is_string(row)) {
        u64 rsi = pick_target(8), rdi = pick_target(8);
        if (chance(70)) {
            rsi = DATA_VA + 0x400 + rnd_below(0x800);
            rdi = DATA_VA + 0xc00 + rnd_below(0x800);
        }
        g[RSI] = rsi;
        g[RDI] = rdi;
        g[RCX] = rnd_below(40) + (row->opcode >= 0x6c && row->opcode <= 0x6f); /* AMD's INS and OUTS fault even when they do nothing */
        if (i->adsize == 4 && !t->legacy && chance(50)) {
            g[RSI] |= rnd() << 32;
            g[RDI] |= rnd() << 32;
            g[RCX] |= rnd() << 32;
        }
        memcpy(t->data, t->data + 0x800, 0x100);
    }
    if (starts(row, "POPF")) { /* flags that a program keeps to itself */
        const u64 own = FL_TF | FL_NT | FL_AC | FL_RF | FL_VM | FL_VIF | FL_VIP;
        for (unsigned n = 0; n < 8; n++)
            if (g[RSP] + n - DATA_VA < DATA_SIZE)
                t->data[g[RSP] + n - DATA_VA] &= (u8)~(own >> 8 * n);
    }
    if (starts(row, "XLAT")) {
        g[RBX] = pick_target(1) - (g[RAX] & 0xff);
    }
    if (starts(row, "MASKMOV") || starts(row, "VMASKMOVDQU"))
        g[RDI] = DATA_VA + 0x400 + rnd_below(0x1800); /* which masked-out bytes may fault is the processor's own choice */
    if (starts(row, "LEAVE") || starts(row, "ENTER"))
        g[RBP] = DATA_VA + 0x800 + 8 * rnd_below(0x100);
    if (row->map == 0 && (row->opcode == 0xe2 || row->opcode == 0xe1 || row->opcode == 0xe0) && chance(50))
        g[RCX] = rnd_below(3);
    if ((i->flags & INSN_VSIB) != 0) {
        union vec_reg *x = &t->in.vec[i->index];
        bool qword = row->opcode & 1;
        for (unsigned n = 0; n < 2 * LANES; n++)
            x->d[n] = qword && (n & 1) ? 0 : (u32)rnd_below(200);
    }
    /* BT m, r: the register reaches beyond the operand. */
    if (mem && starts(row, "BT") && insn_reg_is_operand(i) && i->reg != i->base && i->reg != i->index)
        g[i->reg] = (u64)((s64)rnd_below(4096) - 2048);
    if (starts(row, "DIV") || starts(row, "IDIV")) { /* half of them fit */
        if (chance(60) && i->base != RDX && i->index != RDX)
            g[RDX] = chance(50) ? 0 : rnd_below(8);
        if (chance(30) && i->base != RAX && i->index != RAX)
            g[RAX] &= 0xfff;
    }
    if (t->branch && !starts(row, "J") && !starts(row, "LOOP")) {
        if (starts(row, "RET"))
            for (unsigned n = 0; n < 8; n++)
                if (g[RSP] >= DATA_VA && g[RSP] + 8 <= DATA_VA + DATA_SIZE)
                    store64(t->data + (g[RSP] - DATA_VA), landing());
    }
    if (t->branch && row->opcode == 0xff) {
        if (!mem)
            g[i->rm] = landing();
        else if (t->target >= DATA_VA && t->target + 8 <= DATA_VA + DATA_SIZE)
            store64(t->data + (t->target - DATA_VA), landing());
    }
    /* XRSTOR and FXRSTOR: mostly acceptable images; PKRU and supervisor state stay out of it. */
    if (starts(row, "X") && (starts(row, "XSAVE") || starts(row, "XRSTOR"))) {
        g[RAX] &= ~(u64)XCR0_PKRU;
        g[RDX] = rnd_below(2);
    }
    if ((starts(row, "XRSTOR") || starts(row, "FXRSTOR")) && t->target >= DATA_VA && t->target + 1024 <= DATA_VA + DATA_SIZE) {
        u8 *x = t->data + (t->target - DATA_VA);
        if (chance(90))
            store32(x + 24, (u32)rnd() & 0xffff);
        memset(x + 6, 0, 18);
        x[1] &= 0x1f;
        store16(x + 2, (u16)(load16(x + 2) & 0x7f00));
        if (starts(row, "XRSTOR")) {
            memset(x + 512, 0, 64);
            store64(x + 512, rnd() & nat_mask);
            if (chance(40)) {
                store64(x + 520, BIT64(63) | load64(x + 512) | (rnd() & nat_mask));
                if (chance(20))
                    x[528 + rnd_below(48)] = 1;
            } else if (chance(10)) {
                x[520 + rnd_below(56)] = 1;
            }
        }
    }
    /* CVTPI2PS and CVTPI2PD from memory: processors differ in whether a pending #MF comes first. */
    if (starts(row, "CVTPI2P") && mem)
        t->in.x87.fsw &= (u16)~0x80bf;
    if (starts(row, "LDMXCSR") || starts(row, "VLDMXCSR"))
        if (t->target >= DATA_VA && t->target + 4 <= DATA_VA + DATA_SIZE && chance(80))
            store32(t->data + (t->target - DATA_VA), (u32)rnd() & 0xffff);
}

static unsigned memory_align(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    if (starts(row, "XSAVE") || starts(row, "XRSTOR"))
        return 64;
    if (starts(row, "FXSAVE") || starts(row, "FXRSTOR"))
        return 16;
    for (unsigned n = 0; n < row->nopnd; n++)
        if (operand_bytes(i, n) >= 32)
            return operand_bytes(i, n);
    return 16;
}

/* An encoding of @row that can be run. */
static bool pick_encoding(struct testcase *t, unsigned row_index)
{
    static u8 hopeless[1u << 14][2]; /* rows without one in this mode */
    const struct insn_row *row = &insn_rows[row_index];
    if (hopeless[row_index % ARRAY_SIZE(hopeless)][t->legacy])
        return false;
    for (unsigned tries = 0; tries < 20000; tries++) {
        random_encoding(row, t->bytes, t->legacy);
        if (!decode(t) || t->insn.row != row_index)
            continue;
        /* EDX:EAX choose the components, and must not choose PKRU, which is the host's own. */
        if ((starts(row, "XSAVE") || starts(row, "XRSTOR")) &&
            (t->insn.base == RAX || t->insn.index == RAX || t->insn.base == RDX || t->insn.index == RDX))
            continue;
        if (t->insn.flags & INSN_MEM && !(t->insn.flags & INSN_VSIB) && t->insn.index != REG_NONE && t->insn.index == t->insn.base)
            continue;
        if (is_branch(row) && row->nopnd && row->opnd[0].kind == OPND_REL) {
            s64 to = (s64)(t->insn.imm);
            if (to < -1500 || to > 1500) { /* the displacement is the last bytes of the instruction */
                store32(t->bytes + t->insn.len - 4, (u32)((s32)rnd_below(2800) - 1400));
                if (!decode(t) || t->insn.row != row_index)
                    continue;
                to = (s64)t->insn.imm;
                if (to < -1500 || to > 1500)
                    continue;
            }
            if (to >= -16 && to <= 40) /* not into itself */
                continue;
        }
        return true;
    }
    hopeless[row_index % ARRAY_SIZE(hopeless)][t->legacy] = 1;
    return false;
}

/* Registers and memory for the encoding in t->bytes. */
static bool pick_state(struct testcase *t)
{
    if (!decode(t))
        return false;
    const struct insn_row *row = insn_row(&t->insn);
    unsigned len = t->insn.len, index = t->insn.row;
    /* See host_target() and set_the_stage(): addresses below 64 KiB cannot be chosen that well. */
    bool masked = starts(row, "MASKMOV") || starts(row, "VMASKMOVDQU");
    if (t->insn.adsize == 2 && ((starts(row, "SHA") && t->insn.flags & INSN_MEM) || masked))
        return false;
    if (masked && t->insn.seg == SEG_CS && t->legacy) /* not writable, which a mask of zero may hide */
        return false;
    rnd_state(t);
    rnd_data(t);
    t->branch = is_branch(row);
    t->target = pick_target(memory_align(&t->insn));
    if (chance(2)) /* not canonical, or nowhere */
        t->target ^= t->legacy ? BIT64(24 + rnd_below(8)) : BIT64(47 + rnd_below(16));
    t->target = host_target(&t->insn, t->target);
    if ((t->insn.flags & INSN_MEM) && (!aim(t, t->target) || !decode(t) || t->insn.row != index || t->insn.len != len))
        return false;
    set_the_stage(t);
    for (unsigned n = 0; t->legacy && n < 8; n++)
        t->in.gpr[n] = (u32)t->in.gpr[n];
    return true;
}

/* ---- illegal and unusual forms of an encoding ---- */

/* Prefixes in front, other VEX fields, more than 15 bytes. FS and GS have a base on the host. */
static void mutate(struct testcase *t)
{
    static const u8 prefixes[] = { 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e };
    u8 *b = t->bytes;
    bool vex = t->insn.flags & INSN_VEX;
    unsigned add = 1 + (unsigned)rnd_below(3);
    if (chance(10))
        add = 16 - (t->len < 16 ? t->len : 15) + (unsigned)rnd_below(2);
    if (vex && chance(60)) {
        unsigned at = b[0] == 0x67 ? 1 : 0;
        u8 *last = b + at + (b[at] == 0xc5 ? 1 : 2);
        switch (rnd_below(4)) {
        case 0: *last ^= (u8)(1 + rnd_below(3)); break;      /* pp */
        case 1: *last ^= 4; break;                           /* L */
        case 2: *last ^= (u8)((1 + rnd_below(15)) << 3); break; /* vvvv */
        default: *last ^= 0x80; break;                       /* W, or R */
        }
        return;
    }
    if (t->insn.flags & INSN_EVEX && !emulated_host && chance(70)) {
        b[(b[0] == 0x67 ? 1u : 0u) + 1 + rnd_below(3)] ^= (u8)(1u << rnd_below(8));
        return;
    }
    memmove(b + add, b, 32);
    for (unsigned n = 0; n < add; n++)
        b[n] = prefixes[rnd_below(ARRAY_SIZE(prefixes))];
}

static bool pick_form(struct testcase *t, unsigned row_index)
{
    /* Of near branches 66 makes others on the two vendors' processors, and only Intel's UD0 has a ModRM byte. */
    if (is_branch(&insn_rows[row_index]) || starts(&insn_rows[row_index], "UD"))
        return false;
    for (unsigned tries = 0; tries < 50; tries++) {
        if (!pick_encoding(t, row_index))
            return false;
        mutate(t);
        memset(&t->insn, 0, sizeof(t->insn));
        enum decode_status status = insn_decode(case_ctx(t), t->bytes, 15, &t->insn);
        if (status == DECODE_TOO_LONG)
            return true;
        if (status != DECODE_OK)
            continue;
        const struct insn_row *row = insn_row(&t->insn);
        const char *why = why_excluded(row);
        /* AMD processors ignore VEX.W of VPERMQ and VPERMPD, which the manuals want to be 1. */
        if (insn_rows[row_index].map == 3 && insn_rows[row_index].vex && insn_rows[row_index].opcode <= 1)
            return false;
        if (why && strcmp(row->mnemonic, "UD"))
            continue;
        /* Branches elsewhere, and components of state that are not ours to choose. */
        if (is_branch(row) || starts(row, "XSAVE") || starts(row, "XRSTOR"))
            continue;
        return true;
    }
    return false;
}

static bool form_state(struct testcase *t)
{
    memset(&t->insn, 0, sizeof(t->insn));
    enum decode_status status = insn_decode(case_ctx(t), t->bytes, 15, &t->insn);
    if (status == DECODE_OK && strcmp(insn_row(&t->insn)->mnemonic, "UD"))
        return pick_state(t);
    rnd_state(t);
    rnd_data(t);
    t->in.gpr[RSP] = DATA_VA + 0x800;
    t->too_long = status == DECODE_TOO_LONG;
    t->count = 1;
    t->len = t->too_long ? 20 : t->insn.len < 16 ? 16 : t->insn.len;
    t->branch = false;
    return true;
}

/* ---- sequences: a row's instruction among others that work on registers, or memory at a fixed address ---- */

static bool fits_sequence(const struct testcase *t, const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    if (row->jit != JIT_COPY || is_branch(row) || is_string(row) || why_excluded(row) || (i->flags & INSN_VSIB))
        return false;
    if (!(i->flags & INSN_MEM))
        return true;
    /* CVTPI2PS and CVTPI2PD: as in set_the_stage(), but here an instruction before them may leave a #MF pending. */
    return i->base == (t->legacy ? REG_NONE : REG_RIP) && i->index == REG_NONE && !(i->flags & INSN_ASZ) && !starts(row, "CVTPI2P");
}

static bool pick_sequence(struct testcase *t, unsigned row_index)
{
    u8 bytes[sizeof(t->bytes)];
    unsigned at = 0, count = 2 + (unsigned)rnd_below(SEQUENCE_MAX - 1), copies = 0;
    for (unsigned n = 0; n < count; n++) {
        unsigned r = n == count / 2 ? row_index : (unsigned)rnd_below(insn_row_count), tries = 0;
        bool found = false;
        if (n != count / 2)
            while ((insn_rows[r].jit != JIT_COPY || why_excluded(&insn_rows[r])) && ++copies < 10000)
                r = (unsigned)rnd_below(insn_row_count);
        for (; tries < 200 && !found; tries++) {
            random_encoding(&insn_rows[r], t->bytes, t->legacy);
            found = decode(t) && t->insn.row == r && fits_sequence(t, &t->insn);
        }
        if (!found) {
            if (n == count / 2)
                return false;
            continue;
        }
        memcpy(bytes + at, t->bytes, t->insn.len);
        at += t->insn.len;
    }
    memset(t->bytes, 0xcc, sizeof(t->bytes));
    memcpy(t->bytes, bytes, at);
    t->len = at;
    return at && case_decode(t);
}

static bool sequence_state(struct testcase *t)
{
    rnd_state(t);
    t->in.gpr[RSP] = DATA_VA + 0x800;
    rnd_data(t);
    if (!case_decode(t))
        return false;
    /* Operands at a fixed address: the displacement is made to lead into the data. */
    unsigned at = 0;
    for (unsigned n = 0; n < t->count; n++) {
        const struct insn *i = case_insn(t, n);
        if (i->flags & INSN_MEM) {
            u64 target = host_target(i, pick_target(memory_align(i)));
            u64 to = t->legacy ? target : target - (CODE_AT + at + i->len);
            unsigned disp = 0;
            for (unsigned k = 1; k + 4 <= i->len; k++)
                if ((s64)(s32)load32(t->bytes + at + k) == i->disp)
                    disp = k;
            if (!disp)
                return false;
            store32(t->bytes + at + disp, (u32)to);
        }
        at += i->len;
    }
    return case_decode(t);
}

/* ---- cases by number ---- */

const char *const case_kind_names[CASE_KINDS] = { "single", "form", "sequence" };

enum case_kind case_kind(u64 n, unsigned rows)
{
    /* Every row has its turn in every kind: of sixteen rounds over the rows one is of forms, three of sequences. */
    u64 round = n / STATES / rows % 16;
    return round == 3 ? CASE_FORM : round % 5 == 4 ? CASE_SEQUENCE : CASE_ONE;
}

bool case_legacy(u64 n, unsigned rows, const struct insn_row *row)
{
    if (row->checks & (CHK_NO64 | CHK_ONLY64) || strstr(row->encoding, " a16"))
        return !(row->checks & CHK_ONLY64);
    u64 round = n / STATES / rows % 32;
    return round % 4 == 1 || round == 19;
}

bool make_case(struct testcase *t, unsigned row, u64 seed, u64 n, enum case_kind kind)
{
    static struct { u64 seed, n; enum case_kind kind; bool ok; u8 bytes[sizeof(t->bytes)]; unsigned len; } last = { .n = ~0ull };
    u64 encoding = n / STATES;
    if (last.n != encoding || last.seed != seed || last.kind != kind) {
        rnd_seed(seed * 0x9e3779b97f4a7c15ull ^ (encoding + 1) * 0xd1342543de82ef95ull);
        last.ok = kind == CASE_FORM ? pick_form(t, row) : kind == CASE_SEQUENCE ? pick_sequence(t, row) : pick_encoding(t, row);
        last.seed = seed;
        last.n = encoding;
        last.kind = kind;
        last.len = t->len;
        memcpy(last.bytes, t->bytes, sizeof(last.bytes));
    }
    if (!last.ok)
        return false;
    rnd_seed(seed * 0xbf58476d1ce4e5b9ull ^ (n + 1) * 0x94d049bb133111ebull);
    for (unsigned tries = 0; tries < 20; tries++) {
        memcpy(t->bytes, last.bytes, sizeof(t->bytes));
        t->len = last.len;
        if (kind == CASE_FORM ? form_state(t) : kind == CASE_SEQUENCE ? sequence_state(t) : pick_state(t))
            return true;
    }
    return false;
}
