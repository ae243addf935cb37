#include "check_code.h"
#include "cpu/features.h"

#include <stdio.h>
#include <stdlib.h>

/* Never in a translation although the table has rows of theirs that are translated; and what those without may be used for. */
static const char *const never[] = {
    "push", "pop", "leave", "enter", "ret", "xlatb", "maskmovdqu", "maskmovq", "ldmxcsr", "stmxcsr", "movsb", "movsw", "movsd ", "movsq",
    "stosb", "stosw", "stosd", "stosq", "lodsb", "lodsw", "lodsd", "lodsq", "scasb", "scasw", "scasd", "scasq", "cmpsb", "cmpsw", "cmpsq",
    "cmpxchg16b", "std", "cld", "pushfq", "popfq", "clac", "stac", "rdpkru", "rdfsbase", "rdgsbase", "lfence",
};
static const char *const ours[] = {"lahf", "sahf", "jrcxz"};
/* RDX of the host is the guest's: what names it implicitly may do so. */
static const char *const with_dx[] = {"mul", "imul", "div", "idiv", "mulx", "cwd", "cdq", "cqo"};
static const char *const with_cl[] = {"rol", "ror", "rcl", "rcr", "shl", "shr", "sal", "sar", "shld", "shrd"};

static bool listed(const char *const *list, size_t n, const char *name)
{
    for (size_t k = 0; k < n; k++)
        if (!strcmp(list[k], name))
            return true;
    return false;
}

/* Whether no row of the name is anything but a call of its body. */
static bool called_row(const char *name)
{
    bool any = false;
    for (unsigned n = 1; n < insn_row_count; n++)
        if (!strcasecmp(insn_rows[n].mnemonic, name)) {
            if (insn_rows[n].jit != JIT_CALL)
                return false;
            any = true;
        }
    return any;
}

static bool only_called(unsigned id, const char *name) /* @id: Capstone's */
{
    static u8 known[X86_INS_ENDING];
    if (!known[id])
        known[id] = 1 + called_row(name);
    return known[id] - 1;
}

/* The 64-bit register that @r is a part of: 'a', 'c' for those that are free, 's', 'b', 'i' for RSP, RBP, RIP; 0: another */
static char part_of(unsigned r)
{
    switch (r) {
    case X86_REG_RAX: case X86_REG_EAX: case X86_REG_AX: case X86_REG_AL: case X86_REG_AH: return 'a';
    case X86_REG_RCX: case X86_REG_ECX: case X86_REG_CX: case X86_REG_CL: case X86_REG_CH: return 'c';
    case X86_REG_RSP: case X86_REG_ESP: case X86_REG_SP: case X86_REG_SPL: return 's';
    case X86_REG_RBP: case X86_REG_EBP: case X86_REG_BP: case X86_REG_BPL: return 'b';
    case X86_REG_RIP: case X86_REG_EIP: case X86_REG_IP: return 'i';
    default: return 0;
    }
}

static const char *memory_complaint(const x86_op_mem *m, bool accessed)
{
    char base = part_of(m->base), index = part_of(m->index);
    if (m->segment != X86_REG_INVALID)
        return "a segment register";
    if (base == 'i') /* a guard: code_check() looks which */
        return m->index != X86_REG_INVALID ? "an index with RIP" : NULL;
    if (index == 's' || index == 'b')
        return "RSP or RBP as an index";
    if (base == 's')
        return m->index != X86_REG_INVALID || m->disp < 0 || m->disp >= (s64)sizeof(struct frame) ? "an address outside the frame" : NULL;
    if (base == 'b')
        return m->index != X86_REG_INVALID || m->disp + V_BIAS < 0 || m->disp + V_BIAS >= (s64)sizeof(struct vcpu)
                   ? "an address outside struct vcpu" : NULL;
    /* Registers of the guest alone are no address of ours: the TLB's addend is in RCX, or the address in RAX or RCX. */
    return accessed && base != 'a' && base != 'c' && index != 'a' && index != 'c' ? "an address that nobody checked" : NULL;
}

const char *code_complaint(csh h, const cs_insn *i)
{
    const cs_detail *d = i->detail;
    const cs_x86 *x = &d->x86;
    bool call = cs_insn_group(h, i, CS_GRP_CALL), jump = cs_insn_group(h, i, CS_GRP_JUMP);
    if (cs_insn_group(h, i, CS_GRP_PRIVILEGE) || cs_insn_group(h, i, CS_GRP_INT) || cs_insn_group(h, i, CS_GRP_IRET) || cs_insn_group(h, i, X86_GRP_VM))
        return "a system instruction";
    /* MOVQ xmm, xmm with a REX.W, which changes nothing, is for Capstone one that moves an MMX register to a general one. */
    if (i->size == 5 && i->bytes[0] == 0xf3 && (i->bytes[1] & 0xf8) == 0x48 && i->bytes[2] == 0x0f && i->bytes[3] == 0x7e && i->bytes[4] >= 0xc0)
        return NULL;
    const char *name = strncmp(i->mnemonic, "lock ", 5) ? i->mnemonic : i->mnemonic + 5;
    if (!strncmp(name, "rep", 3) || (listed(never, ARRAY_SIZE(never), name) && !(d->groups_count && cs_insn_group(h, i, X86_GRP_SSE2))))
        return "an instruction that is not for the host";
    if (only_called(i->id, name) && !listed(ours, ARRAY_SIZE(ours), name))
        return "an instruction that is to be called";
    if (x->prefix[1] || x->prefix[3])
        return "a segment or address-size prefix";
    for (unsigned n = 0; n < x->op_count; n++) {
        const cs_x86_op *o = &x->operands[n];
        if (o->type == X86_OP_REG) {
            char r = part_of(o->reg);
            if (r == 's' || r == 'b')
                return "RSP or RBP as an operand";
            if ((o->reg >= X86_REG_CR0 && o->reg <= X86_REG_CR15) || (o->reg >= X86_REG_DR0 && o->reg <= X86_REG_DR15) || o->reg == X86_REG_CS ||
                o->reg == X86_REG_DS || o->reg == X86_REG_ES || o->reg == X86_REG_FS || o->reg == X86_REG_GS || o->reg == X86_REG_SS)
                return "a system register";
            if ((jump || call) && o->reg != X86_REG_RAX)
                return "a jump through a register of the guest";
        } else if (o->type == X86_OP_MEM) {
            /* Through an entry of the jump cache, which RAX was made to point to, or to what it was seen to say. */
            bool entry = o->mem.base == X86_REG_RAX && o->mem.disp == (s64)offsetof(struct jump_cache_entry, block);
            bool kept = o->mem.base == X86_REG_RSP && o->mem.disp == F_AT(temp);
            if ((jump || call) && (call || (!entry && !kept) || o->mem.index != X86_REG_INVALID))
                return "a jump through memory";
            if (part_of(o->mem.base) == 'i' && (n == 0 || o->size != 8))
                return "no look at a guard, relative to RIP";
            const char *what = memory_complaint(&o->mem, i->id != X86_INS_LEA);
            if (what)
                return what;
        }
    }
    bool vzero = i->id == X86_INS_VZEROUPPER || i->id == X86_INS_VZEROALL;
    for (unsigned n = 0; n < d->regs_read_count + d->regs_write_count && !call && !jump && !vzero; n++) {
        unsigned r = n < d->regs_read_count ? d->regs_read[n] : d->regs_write[n - d->regs_read_count];
        bool dx = r == X86_REG_RDX || r == X86_REG_EDX || r == X86_REG_DX;
        if (r == X86_REG_EFLAGS || r == X86_REG_FPSW || part_of(r) == 'a' || (r >= X86_REG_ST0 && r <= X86_REG_ST7) ||
            (r >= X86_REG_FP0 && r <= X86_REG_FP7) || (r >= X86_REG_XMM0 && r <= X86_REG_YMM31) || (dx && listed(with_dx, ARRAY_SIZE(with_dx), name)) ||
            (r == X86_REG_CL && listed(with_cl, ARRAY_SIZE(with_cl), name)))
            continue;
        return "a register that is not named";
    }
    return NULL;
}

static void __attribute__((noreturn)) stop(const struct vcpu *v, const struct block *b, const char *what, const cs_insn *i)
{
    fprintf(stderr, "the translation of the block at host %llx has %s: %llx  %s %s:", (unsigned long long)b->host, what,
            (unsigned long long)(i ? i->address - (u64)(uintptr_t)((const struct jit *)v->jit)->rx : 0), i ? i->mnemonic : "", i ? i->op_str : "");
    for (unsigned n = 0; i && n < i->size; n++)
        fprintf(stderr, " %02x", i->bytes[n]);
    fputc('\n', stderr);
    abort();
}

/* Not code, or not of this Capstone's time. */
static void __attribute__((noreturn)) stop_at(const struct jit *j, u32 at)
{
    fprintf(stderr, "no code at %x:", at);
    for (u32 n = at; n < at + 16 && n < j->size; n++)
        fprintf(stderr, " %02x", j->rw[n]);
    fputc('\n', stderr);
    abort();
}

/* The length of a VEX instruction that this Capstone does not know, if it is one that may be here, by our own decoder. */
static unsigned newer(const u8 *p)
{
    static u8 features[FEAT_COUNT];
    memset(features, 1, sizeof(features));
    struct decode_ctx ctx = {.mode = CODE_64, .features = features};
    struct insn i;
    if ((p[0] != 0xc4 && p[0] != 0xc5) || insn_decode(&ctx, p, 15, &i) != DECODE_OK || !i.row || insn_row(&i)->jit != JIT_COPY || insn_row(&i)->vex != 1)
        return 0;
    return !(i.flags & INSN_MEM) || (!(i.flags & (INSN_VSIB | INSN_SEG | INSN_ASZ)) && (i.base == RCX || i.base == RAX || i.index == RCX)) ? i.len : 0;
}

static bool is_stub(const struct jit *j, u64 at)
{
    const u8 *p = j->rw + at;
    return p == j->guard_ask || p == j->gone || p == j->call || p == j->far || p == j->exit || p == j->units_load || p == j->forget || p == j->refill[0] || p == j->refill[1] ||
           (p >= j->string[0] && p <= j->string[7]) || p == j->cmpxchg16b[0] || p == j->cmpxchg16b[1];
}

unsigned long code_check(const struct vcpu *v, void (*note)(csh h, const cs_insn *i))
{
    static csh h;
    static cs_insn *i;
    static u8 *seen;
    static u32 *todo;
    static size_t size;
    const struct jit *j = v->jit;
    unsigned long looked = 0;
    if (!h && (cs_open(CS_ARCH_X86, CS_MODE_64, &h) || cs_option(h, CS_OPT_DETAIL, CS_OPT_ON) || !(i = cs_malloc(h))))
        abort();
    if (size < j->size) {
        size = j->size;
        free(seen), free(todo);
        seen = malloc(size), todo = malloc(size * sizeof(*todo));
        if (!seen || !todo)
            abort();
    }
    memset(seen, 0, j->size);
    for (unsigned n = 0; n < 1u << BLOCK_HASH_BITS; n++)
        for (const struct block *b = v->interp->hash[n]; b; b = b->hash_next) {
            size_t waiting = 0;
            if (b->code)
                todo[waiting++] = (u32)((const u8 *)b->code - j->rx);
            while (waiting) {
                u32 at = todo[--waiting];
                while (!seen[at]) {
                    const u8 *p = j->rw + at;
                    size_t left = 16;
                    u64 address = (u64)(uintptr_t)j->rx + at;
                    unsigned len;
                    if (at < j->base || at + 16 > j->size)
                        stop(v, b, "a way out of the code", NULL);
                    if (!cs_disasm_iter(h, &p, &left, &address, i)) {
                        if (!(len = newer(p)))
                            stop_at(j, at);
                        seen[at] = 1;
                        at += len;
                        looked++;
                        continue;
                    }
                    const char *what = code_complaint(h, i);
                    if (what)
                        stop(v, b, what, i);
                    for (unsigned k = 0; k < i->detail->x86.op_count; k++) {
                        const cs_x86_op *o = &i->detail->x86.operands[k];
                        u64 to = i->address + i->size + (u64)o->mem.disp - (u64)(uintptr_t)j->guard;
                        if (o->type == X86_OP_MEM && o->mem.base == X86_REG_RIP && (to >= GUARDS * sizeof(struct guard) || to % sizeof(struct guard)))
                            stop(v, b, "an address relative to RIP that is no guard", i);
                    }
                    if (note)
                        note(h, i);
                    looked++;
                    seen[at] = 1;
                    at += i->size;
                    bool call = cs_insn_group(h, i, CS_GRP_CALL);
                    if (!call && !cs_insn_group(h, i, CS_GRP_JUMP))
                        continue;
                    if (i->detail->x86.operands[0].type != X86_OP_IMM) {
                        if (call)
                            stop(v, b, "a call through a register", i);
                        break;
                    }
                    u64 to = (u64)i->detail->x86.operands[0].imm - (u64)(uintptr_t)j->rx;
                    if (to >= j->size || (call && !is_stub(j, to)))
                        stop(v, b, "a branch to elsewhere", i);
                    if (!is_stub(j, to))
                        todo[waiting++] = (u32)to;
                    if (i->id == X86_INS_JMP)
                        break;
                }
            }
        }
    return looked;
}
