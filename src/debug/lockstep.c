/*
 * The engine `lockstep`: the interpreter, and wherever the JIT has code of its own, that too, from the
 * same state. After each run of natively translated instructions registers, flags, RIP and the memory
 * that was written are compared; at a difference everything is printed and the program stops.
 *
 * What is hot runs as engine_jit runs it: paths of many blocks, with their spans and chains, as far as the
 * first instruction whose body has to be called. What is not yet hot is compared block by block, in
 * translations of each run of native instructions.
 *
 * Nothing may happen twice, so an instruction that might reach a device, fault or be noticed by write
 * tracking -- every memory access that the TLB does not grant -- is left to the interpreter alone. The
 * translation goes as far as that instruction's slow path: what the interpreter found in front of it,
 * flags included, is what a fault would show.
 */
#include "base/log.h"
#include "cpu/interp_loop.h"
#include "cpu/operand.h"
#include "jit/jit.h"

#include <capstone/capstone.h>

#define PLACES 256
#define PATH_INSNS 300 /* at a time */

struct place {
    u8 *host;
    u8 size;
    u8 before[64], interp[64], jit[64];
};

struct state {
    u64 gpr[16];
    u64 rip, rflags;
    u64 gs_base, kernel_gs_base;
    u32 aflags;
    union vec_reg vec[32];
    u64 k[8];
    u32 mxcsr;
    struct x87 x87;
};

struct recorder {
    struct place place[PLACES];
    unsigned n;
    bool granted;
    bool missed; /* not granted by the TLB, which the translation asks too */
    bool unsure; /* not granted, but perhaps for the translation */
};

static void state_take(const struct vcpu *v, struct state *s)
{
    memcpy(s->gpr, v->gpr, sizeof(s->gpr));
    s->rip = v->rip;
    s->rflags = v->rflags;
    s->gs_base = v->seg_base[SEG_GS];
    s->kernel_gs_base = v->kernel_gs_base;
    s->aflags = v->aflags;
    memcpy(s->vec, v->vec, sizeof(s->vec));
    memcpy(s->k, v->k, sizeof(s->k));
    s->mxcsr = v->mxcsr;
    s->x87 = v->x87;
}
static void state_put(struct vcpu *v, const struct state *s)
{
    memcpy(v->gpr, s->gpr, sizeof(s->gpr));
    v->rip = s->rip;
    v->rflags = s->rflags;
    v->seg[SEG_GS].base = v->seg_base[SEG_GS] = s->gs_base;
    v->kernel_gs_base = s->kernel_gs_base;
    v->aflags = s->aflags;
    memcpy(v->vec, s->vec, sizeof(s->vec));
    memcpy(v->k, s->k, sizeof(s->k));
    v->mxcsr = s->mxcsr;
    v->x87 = s->x87;
}

/* A place the next instruction may touch: granted, it is noted for the comparison. */
static void place_note(struct vcpu *v, struct recorder *r, unsigned seg, u64 offset, unsigned size, bool write)
{
    if (v->seg_check & BIT(seg) || size > 64) {
        r->granted = false;
        r->unsure = true;
        return;
    }
    gva_t la = (v->seg_base[seg] + offset) & v->linear_mask;
    const struct tlb_entry *e = tlb_slot(v, la);
    u64 page = (la + size - 1) & PAGE_MASK;
    if (e->tag_read != page || (write && e->tag_write != page)) {
        r->missed |= r->granted && (write ? e->tag_write : e->tag_read) != page;
        r->granted = false;
        return;
    }
    if (!write)
        return;
    if (r->n == PLACES) {
        r->granted = false;
        r->unsure = true;
        return;
    }
    struct place *p = &r->place[r->n++];
    p->host = (u8 *)(uintptr_t)(la + e->addend);
    p->size = (u8)size;
    memcpy(p->before, p->host, size);
}

/* All memory the instruction touches; false: not all of it is granted. */
static bool insn_places(struct vcpu *v, const struct insn *i, struct recorder *r)
{
    const struct insn_row *row = insn_row(i);
    unsigned word = v->stack_size;
    u64 mask = stack_mask(v), sp = v->gpr[RSP];
    r->granted = true;
    if (!strcmp(row->mnemonic, "FLDCW")) { /* what it loads decides whether the translation goes on */
        r->unsure = true;
        return r->granted = false;
    }
    r->missed = !jit_ready(v, i);
    if (r->missed)
        return r->granted = false;
    bool hint = row->map == 1 && (row->opcode == 0x0d || (row->opcode >= 0x18 && row->opcode <= 0x1f)) && row->jit == JIT_EMIT;
    if ((i->flags & INSN_MEM) && !(row->map == 0 && row->opcode == 0x8d) && !hint) {
        unsigned size = 0, access = 0;
        for (unsigned n = 0; n < row->nopnd; n++) {
            const struct operand *o = &row->opnd[n];
            if (o->kind == OPND_GPR_RM || o->kind == OPND_MEM || o->kind == OPND_MOFFS || o->kind == OPND_VEC_RM ||
                o->kind == OPND_MMX_RM || o->kind == OPND_MASK_RM || o->kind == OPND_VSIB) {
                size = operand_bytes(i, n);
                access = o->access;
            }
        }
        if (!size || (i->flags & INSN_VSIB)) {
            r->unsure = true;
            return false;
        }
        u64 at = insn_ea(v, i);
        if (!row->vex && row->map == 1 && (row->opcode & 0xe7) == 0xa3) /* BT and its relatives: a bit string */
            at += size == 8 ? (u64)((s64)v->gpr[i->reg] >> 6) << 3 : (u64)((s64)(s32)v->gpr[i->reg] >> 5) << 2;
        if (!row->vex && row->map == 0 && row->opcode == 0x8c)
            size = 2;
        if (!row->vex && row->map == 0 && row->opcode == 0x8f && i->base == RSP)
            at += word;
        place_note(v, r, i->seg, at, size, access & 2);
    }
    if (!row->vex && row->map == 0) {
        unsigned op = row->opcode, ext = i->modrm >> 3 & 7;
        bool repeated = i->flags & (INSN_REP | INSN_REPNE);
        u64 count = repeated && op >= 0xa4 && op <= 0xaf ? v->gpr[RCX] & size_mask(i->adsize) : 1;
        if (count > 64 / row_size(i) && count != 1) { /* more than is compared */
            r->unsure = true;
            return r->granted = false;
        }
        if ((op & 0xf8) == 0x50 || op == 0x9c || op == 0x68 || op == 0x6a || op == 0xe8 || (op == 0xff && (ext == 2 || ext == 6)))
            place_note(v, r, SEG_SS, (sp - word) & mask, word, true);
        if ((op & 0xf8) == 0x58 || op == 0x8f || op == 0x9d || op == 0xc2 || op == 0xc3)
            place_note(v, r, SEG_SS, sp & mask, word, false);
        if (op == 0xc9)
            place_note(v, r, SEG_SS, v->gpr[RBP] & mask, word, false);
        if ((op >= 0xa4 && op <= 0xa7) || (op >= 0xac && op <= 0xad))
            place_note(v, r, i->seg, v->gpr[RSI] & size_mask(i->adsize), (unsigned)count * row_size(i), false);
        if ((op >= 0xa4 && op <= 0xa7) || op == 0xaa || op == 0xab || op == 0xae || op == 0xaf)
            place_note(v, r, SEG_ES, v->gpr[RDI] & size_mask(i->adsize), (unsigned)count * row_size(i), true);
    }
    return r->granted;
}

/* ---- the report ---- */

static void disassemble(const char *title, const u8 *code, size_t size, u64 address, bool wide, unsigned count)
{
    csh h;
    cs_insn *insn;
    fprintf(stderr, "%s\n", title);
    if (cs_open(CS_ARCH_X86, wide ? CS_MODE_64 : CS_MODE_32, &h))
        return;
    size_t n = cs_disasm(h, code, size, address, count, &insn);
    for (size_t k = 0; k < n; k++)
        fprintf(stderr, "  %14" PRIx64 "  %-8s %s\n", insn[k].address, insn[k].mnemonic, insn[k].op_str);
    if (n)
        cs_free(insn, n);
    cs_close(&h);
}

static void print_state(const char *title, const struct state *s, const struct state *before)
{
    static const char names[16][4] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                      "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
    fprintf(stderr, "%s: rip %" PRIx64 ", flags %03x, rflags %" PRIx64 ", mxcsr %x, gs %" PRIx64 " %" PRIx64, title, s->rip, s->aflags,
            s->rflags, s->mxcsr, s->gs_base, s->kernel_gs_base);
    for (unsigned r = 0; r < 16; r++)
        if (!before || s->gpr[r] != before->gpr[r])
            fprintf(stderr, "%s %s=%" PRIx64, r % 8 == 0 ? "\n   " : "", names[r], s->gpr[r]);
    for (unsigned r = 0; r < 32; r++)
        if (before && memcmp(&s->vec[r], &before->vec[r], sizeof(s->vec[r])))
            fprintf(stderr, "\n    vec%u %016" PRIx64 "_%016" PRIx64 "_%016" PRIx64 "_%016" PRIx64, r, s->vec[r].q[3], s->vec[r].q[2],
                    s->vec[r].q[1], s->vec[r].q[0]);
    fputc('\n', stderr);
}

static void __attribute__((noreturn)) report(struct vcpu *v, const struct block *b, unsigned first, unsigned count,
                                             const struct state *before, const struct state *interp,
                                             const struct state *jit, const struct recorder *r, const u8 *bytes, size_t len)
{
    fprintf(stderr, "\nlockstep: the engines disagree after %" PRIu64 " instructions, in %u instructions of a block\n", v->icount, count);
    print_state("before", before, NULL);
    print_state("interpreter changed", interp, before);
    print_state("translation changed", jit, before);
    for (unsigned n = 0; n < r->n; n++)
        if (memcmp(r->place[n].interp, r->place[n].host, r->place[n].size)) {
            fprintf(stderr, "memory written at host %p, %u bytes: interpreter", (void *)r->place[n].host, r->place[n].size);
            for (unsigned k = 0; k < r->place[n].size; k++)
                fprintf(stderr, " %02x", r->place[n].interp[k]);
            fprintf(stderr, ", translation");
            for (unsigned k = 0; k < r->place[n].size; k++)
                fprintf(stderr, " %02x", r->place[n].host[k]);
            fputc('\n', stderr);
        }
    for (unsigned n = first; n < first + count; n++)
        fprintf(stderr, "  %s %s (%s)\n", insn_row(&b->insn[n])->mnemonic, insn_row(&b->insn[n])->operands,
                insn_row(&b->insn[n])->encoding);
    disassemble("guest code:", bytes, len, before->rip, v->code_mode == CODE_64, 0);
    size_t size;
    const u8 *code = jit_region_code(v, &size);
    disassemble("host code:", code, size, (u64)(uintptr_t)code, true, 0);
    panic("lockstep: stopped");
}

/* ---- running ---- */

static bool places_differ(const struct recorder *r)
{
    for (unsigned n = 0; n < r->n; n++)
        if (memcmp(r->place[n].interp, r->place[n].host, r->place[n].size))
            return true;
    return false;
}

static bool states_differ(const struct state *a, const struct state *b)
{
    return memcmp(a->gpr, b->gpr, sizeof(a->gpr)) || a->rip != b->rip || a->rflags != b->rflags ||
           a->gs_base != b->gs_base || a->kernel_gs_base != b->kernel_gs_base || a->aflags != b->aflags || a->mxcsr != b->mxcsr ||
           memcmp(a->vec, b->vec, sizeof(a->vec)) || memcmp(a->k, b->k, sizeof(a->k)) || memcmp(&a->x87, &b->x87, sizeof(a->x87));
}

/* The interpreter has run @count instructions from @first on, from the state @before: the JIT's turn. */
static void compare(struct vcpu *v, struct block *b, unsigned first, unsigned count, const struct state *before,
                    struct recorder *r, const u8 *bytes, size_t len, bool stop)
{
    struct state interp, jit;
    u64 next_rip = v->next_rip, icount = v->icount;
    v->rip = next_rip;
    state_take(v, &interp);
    for (unsigned n = 0; n < r->n; n++)
        memcpy(r->place[n].interp, r->place[n].host, r->place[n].size);
    for (unsigned n = r->n; n-- > 0;)
        memcpy(r->place[n].host, r->place[n].before, r->place[n].size);
    state_put(v, before);
    if (jit_run_region(v, b, first, count + stop, stop)) {
        state_take(v, &jit);
        /* Two writes to one place: only the last image is what both left. */
        if (states_differ(&interp, &jit) || places_differ(r))
            report(v, b, first, count, before, &interp, &jit, r, bytes, len);
    } else {
        for (unsigned n = 0; n < r->n; n++)
            memcpy(r->place[n].host, r->place[n].interp, r->place[n].size);
    }
    state_put(v, &interp);
    v->next_rip = next_rip;
    v->icount = icount;
}

static enum hot_result both(struct vcpu *v, struct block *b, const struct context *c)
{
    if (v->budget_end - v->icount < b->n || attention(v))
        return HOT_COLD;
    struct interp *ip = v->interp;
    struct recorder record, *r = &record;
    u8 bytes[15 * BLOCK_MAX];
    unsigned n = 0, total = b->n;
    enum hot_result result = HOT_DONE;
    u64 start = v->rip, rip = start;
    ip->current = b;
    ip->start = b->insn;
    while (n < total && result == HOT_DONE) {
        unsigned first = n;
        struct state before;
        size_t len = 0;
        bool stop = false;
        unsigned from = (unsigned)(rip - start);
        v->rip = rip;
        state_take(v, &before);
        r->n = 0;
        while (n < total) {
            const struct insn *i = &b->insn[n];
            v->insn = i;
            v->rip = rip;
            v->next_rip = rip + i->len;
            r->missed = false;
            bool native = b->host && jit_native(v, i) && insn_places(v, i, r);
            if (!native && n != first) {
                stop = r->missed;
                block_bytes(b, from + (unsigned)len, bytes + len, i->len);
                break;
            }
            if (native) {
                block_bytes(b, from + (unsigned)len, bytes + len, i->len);
                len += i->len;
            }
            i->fn(v, i);
            n++;
            rip += i->len;
            if (unlikely(attention(v))) {
                result = HOT_LEAVE;
                break;
            }
            if (!native) {
                first = n;
                break;
            }
        }
        u64 after = v->next_rip;
        v->insn = NULL;
        if (n > first && len) {
            ip->current = NULL;
            v->next_rip = n < total && result == HOT_DONE ? rip : after;
            compare(v, b, first, n - first, &before, r, bytes, len + (stop ? b->insn[n].len : 0), stop);
            ip->current = b;
        }
        v->rip = rip;
        v->next_rip = after;
    }
    ip->current = NULL;
    v->rip = v->next_rip;
    v->icount += n;
    (void)c;
    return !b->near && result == HOT_DONE ? HOT_LEAVE : result;
}

/* ---- what is hot: whole translations ---- */

/* What the interpreter did on the way of a translation. */
struct way {
    struct recorder record;
    unsigned n;
    unsigned places; /* before the last instruction, which may not have ended */
    const char *why; /* it stopped, */
    const struct insn *at; /* and where, if that is known */
    bool exact; /* the translation could go on where this stopped */
    const struct insn *insn[PATH_INSNS];
    u64 rip[PATH_INSNS];
};

/* Where the page of @la is, if the TLB lets code run there; else 0. */
static u64 code_page_at(struct vcpu *v, gva_t la)
{
    const struct tlb_entry *e = tlb_slot(v, la);
    return e->tag_exec == (la & PAGE_MASK) ? (la & PAGE_MASK) + e->addend : 0;
}

/* The block behind one of @b, when translated code could find it, too. */
static struct block *next_block(struct vcpu *v, const struct block *b, u64 start, const struct context *c)
{
    gva_t from = (c->cs_base + start) & v->linear_mask, la = (c->cs_base + v->rip) & v->linear_mask;
    u64 page = (from ^ la) <= ~PAGE_MASK ? b->host & PAGE_MASK : code_page_at(v, la), at = la & ~PAGE_MASK;
    struct block *next = page ? block_known(v->interp, page + at, b->mode) : NULL;
    if (page && !next && at > PAGE_SIZE - 15) {
        u64 rest = code_page_at(v, (la + 15) & v->linear_mask);
        next = rest ? block_known_cross(v->interp, page + at, rest, b->mode) : NULL;
    }
    if (!next) {
        const struct jump_cache_entry *hint = &c->hints[la & ((1u << JUMP_CACHE_BITS) - 1)];
        next = hint->rip == la ? hint->block : NULL;
    }
    return next && next->mode == b->mode && v->rip + next->bytes - 1 <= c->rip_max ? next : NULL;
}

/*
 * From the beginning of @b at most @limit native instructions whose memory is granted, as far as one that is not.
 * A fault stops in front of its instruction, which then is run by the interpreter alone.
 */
static void walk_on(struct vcpu *v, const struct block *b, const struct context *c, unsigned limit, struct way *w)
{
    struct recorder *r = &w->record;
    u64 start = v->rip;
    w->exact = true;
    w->why = "it is far enough";
    for (unsigned k = 0; w->n < limit && !attention(v);) {
        const struct insn *i = &b->insn[k];
        w->at = i;
        v->insn = i;
        v->next_rip = v->rip + i->len;
        r->unsure = false;
        w->places = r->n;
        if (!jit_native(v, i) || !insn_places(v, i, r)) {
            r->n = w->places;
            w->exact = r->unsure;
            w->why = !jit_native(v, i) ? "a body is to be called" : r->missed ? "the TLB or a unit does not grant it" : "it is not looked through";
            return;
        }
        w->insn[w->n] = i;
        w->rip[w->n] = v->rip;
        i->fn(v, i);
        v->rip = v->next_rip;
        w->n++;
        if (++k < b->n)
            continue;
        b = b->near ? next_block(v, b, start, c) : NULL;
        if (!b) {
            w->exact = true; /* what follows may be known to the translation, by a link to another page */
            w->why = "it is not known what follows";
            w->at = NULL;
            return;
        }
        start = v->rip;
        k = 0;
    }
}

static void walk(struct vcpu *v, const struct block *b, const struct context *c, unsigned limit, struct way *w)
{
    jmp_buf outer;
    memcpy(&outer, &v->unwind, sizeof(outer));
    w->record.n = 0;
    w->n = 0;
    if (!setjmp(v->unwind)) {
        walk_on(v, b, c, limit, w);
    } else { /* the translation takes a slow path there */
        v->rip = w->rip[w->n];
        w->record.n = w->places;
        w->exact = false;
        w->why = "it faults";
    }
    v->insn = NULL;
    memcpy(&v->unwind, &outer, sizeof(outer));
}

static void undo(struct vcpu *v, const struct recorder *r, const struct state *before)
{
    for (unsigned n = r->n; n-- > 0;)
        memcpy(r->place[n].host, r->place[n].before, r->place[n].size);
    state_put(v, before);
}

static void __attribute__((noreturn)) report_path(struct vcpu *v, const struct block *head, const struct way *w, u64 count, const struct state *before,
                                                  const struct state *interp, const struct state *jit)
{
    fprintf(stderr, "\nlockstep: the engines disagree after %" PRIu64 " instructions, in a translation that ran %" PRIu64 " of them; the interpreter ran %u\n",
            v->icount, count, w->n);
    print_state("before", before, NULL);
    print_state("interpreter changed", interp, before);
    print_state("translation changed", jit, before);
    for (unsigned n = 0; n < w->record.n; n++) {
        const struct place *p = &w->record.place[n];
        if (!memcmp(p->interp, p->jit, p->size))
            continue;
        fprintf(stderr, "memory at host %p, %u bytes: interpreter", (void *)p->host, p->size);
        for (unsigned k = 0; k < p->size; k++)
            fprintf(stderr, " %02x", p->interp[k]);
        fprintf(stderr, ", translation");
        for (unsigned k = 0; k < p->size; k++)
            fprintf(stderr, " %02x", p->jit[k]);
        fputc('\n', stderr);
    }
    for (unsigned n = 0; n < w->n; n++)
        fprintf(stderr, "  %14" PRIx64 "  %s %s (%s)\n", w->rip[n], insn_row(w->insn[n])->mnemonic, insn_row(w->insn[n])->operands,
                insn_row(w->insn[n])->encoding);
    fprintf(stderr, "the interpreter stopped since %s: %s\n", w->why, w->at ? insn_row(w->at)->mnemonic : "");
    u8 bytes[15 * BLOCK_MAX];
    block_bytes(head, 0, bytes, head->bytes);
    disassemble("first block:", bytes, head->bytes, before->rip, v->code_mode == CODE_64, 0);
    disassemble("host code (its beginning; --jit-dump has all of it):", head->code, 2048, (u64)(uintptr_t)head->code, true, 80);
    panic("lockstep: stopped");
}

static bool jits_differ(const struct recorder *r)
{
    for (unsigned n = 0; n < r->n; n++)
        if (memcmp(r->place[n].interp, r->place[n].jit, r->place[n].size))
            return true;
    return false;
}

/* Both engines, as far as the translation of @b goes by itself; false: not at all, and nothing has happened. */
static bool both_paths(struct vcpu *v, struct block *b, const struct context *c)
{
    struct way w;
    struct recorder *r = &w.record;
    struct state before, interp, jit;
    u64 budget = v->budget_end - v->icount;
    unsigned limit = budget < PATH_INSNS ? (unsigned)budget : PATH_INSNS;
    v->interp->current = NULL;
    state_take(v, &before);
    walk(v, b, c, limit, &w);
    if (attention(v)) { /* somebody else asks: the translation would not begin */
        v->icount += w.n;
        return true;
    }
    if (!w.n)
        return false;
    state_take(v, &interp);
    for (unsigned n = 0; n < r->n; n++)
        memcpy(r->place[n].interp, r->place[n].host, r->place[n].size);
    undo(v, r, &before);
    u64 count = jit_run_path(v, b, w.exact || budget < PATH_INSNS ? w.n : w.n + PATH_INSNS);
    state_take(v, &jit);
    for (unsigned n = 0; n < r->n; n++)
        memcpy(r->place[n].jit, r->place[n].host, r->place[n].size);
    undo(v, r, &before);
    if (count == w.n) {
        for (unsigned n = 0; n < r->n; n++)
            memcpy(r->place[n].host, r->place[n].interp, r->place[n].size);
        state_put(v, &interp);
    } else if (count < w.n) { /* as far, by the interpreter */
        unsigned places = r->n;
        walk(v, b, c, (unsigned)count, &w);
        state_take(v, &interp);
        r->n = places;
        for (unsigned n = 0; n < places; n++)
            memcpy(r->place[n].interp, r->place[n].host, r->place[n].size);
    }
    if (w.n != count || states_differ(&interp, &jit) || jits_differ(r))
        report_path(v, b, &w, count, &before, &interp, &jit);
    v->icount += count;
    return count;
}

static enum hot_result both_hot(struct vcpu *v, struct block *b, const struct context *c)
{
    if (!attention(v) && jit_path_ready(v, b) && both_paths(v, b, c))
        return HOT_DONE;
    return both(v, b, c);
}

static noinline enum run_result run_plain(struct vcpu *v) { return run_loop(v, false, both_hot); }

static enum run_result run(struct vcpu *v)
{
    int reason = setjmp(v->unwind);
    if (run_unwound(v, reason))
        return RUN_REQUEST;
    return run_ended(v, run_plain(v));
}

static int attach(struct vcpu *v) { return jit_attach_lockstep(v); }
static void detach(struct vcpu *v) { engine_jit.detach(v); }
static void code_written(struct vcpu *v, pa_t pa, size_t len) { engine_jit.code_written(v, pa, len); }
static bool holds_code(struct vcpu *v, pa_t pa) { return engine_jit.holds_code(v, pa); }

const struct engine engine_lockstep = {
    .name = "lockstep",
    .attach = attach,
    .detach = detach,
    .run = run,
    .code_written = code_written,
    .holds_code = holds_code,
};
