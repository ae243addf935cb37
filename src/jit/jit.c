/*
 * The engine `jit`: the interpreter's loop (interp_loop.h) with a hook that translates blocks which
 * run often (translate.c) and runs the translations.
 *
 * A translation belongs to a decoded block (block.h) and dies with it: blocks are found by host address
 * and mode, so a translation holds nothing that depends on where its page is mapped. Translations of
 * one page are chained by patched jumps; everything else goes through the jump cache of the address
 * space, which every invalidation clears.
 */
#include "jit/internal.h"
#include "base/log.h"
#include "cpu/borrow.h"
#include "cpu/interp_loop.h"
#include "cpu/models.h"
#include "cpu/ops_flags.h"

#include <cpuid.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define HEAT 16
#define BLOCK_CODE_MAX 32768u /* more than any block can make */

extern void jit_serialise(void);

/*
 * IRETQ serialises (SDM vol. 3 "Serializing Instructions") and, unlike CPUID, needs no exit where the
 * host itself is a virtual machine. Needed before code runs that was changed through the other mapping
 * after it had run (SDM vol. 3 "Handling Self- and Cross-Modifying Code").
 */
__asm__(".text\n"
        ".p2align 4\n"
        ".globl jit_serialise\n"
        ".hidden jit_serialise\n"
        ".type jit_serialise, @function\n"
        "jit_serialise:\n"
        "    endbr64\n"
        "    mov %rsp, %rax\n"
        "    mov %ss, %ecx\n"
        "    push %rcx\n"
        "    push %rax\n"
        "    pushfq\n"
        "    mov %cs, %ecx\n"
        "    push %rcx\n"
        "    lea 1f(%rip), %rcx\n"
        "    push %rcx\n"
        "    iretq\n"
        "1:  ret\n"
        ".size jit_serialise, . - jit_serialise\n");

static const u8 saved[6] = {H_RBX, H_RBP, H_R12, H_R13, H_R14, H_R15};

/* ---- stubs ---- */

static void put_registers(struct code_buf *c, bool load)
{
    for (unsigned r = 0; r < 16; r++)
        if (host_of[r] != H_NONE)
            put_rm(c, true, load ? 0x8b : 0x89, host_of[r], H_RBP, V_AT(gpr) + (s32)r * 8);
}
static void put_c_call(struct code_buf *c, const void *f)
{
    put_mov_imm(c, H_RAX, (u64)(uintptr_t)f);
    put1(c, 0xff), put1(c, 0xd0); /* call rax */
}
static void put_return(struct code_buf *c)
{
    put_alu_imm(c, true, 0, H_RSP, (s32)sizeof(struct frame) + 8);
    for (unsigned n = ARRAY_SIZE(saved); n-- > 0;)
        put_pop(c, saved[n]);
    put1(c, 0xc3);
}

/* The vector registers to struct vcpu if the host holds them; @deep: bytes on the stack above the frame. */
static void put_vec_store(const struct jit *j, struct code_buf *c, s32 deep)
{
    put_rm(c, false, 0xf6, 0, H_RSP, F_AT(units) + deep), put1(c, UNIT_SSE | UNIT_AVX); /* test byte */
    u8 *none = put_jcc(c, CC_E);
    put_call_to(c, j->vec_store);
    put_target(none, c->p);
}

static u64 stop_at_body(struct vcpu *v, const struct insn *i, u64 info, struct frame *f);
static u64 stop_at_far(struct vcpu *v, const struct insn *i, u64 info, struct frame *f);

static void make_stubs(struct jit *j)
{
    struct code_buf c = {j->rw, j->rw + 8192, false};

    /* u64 enter(v, const struct frame *, code): the return value is what emit_exit() put in EAX. */
    units_make_stubs(j, &c, put_registers);
    j->enter = c.p;
    for (unsigned n = 0; n < ARRAY_SIZE(saved); n++)
        put_push(&c, saved[n]);
    put_alu_imm(&c, true, 5, H_RSP, (s32)sizeof(struct frame) + 8); /* 7 words and the frame: RSP is a multiple of 16 */
    put_rm(&c, true, 0x8d, H_RBP, H_RDI, V_BIAS);
    for (s32 n = 0; n < (s32)sizeof(struct frame); n += 8) {
        put_rm(&c, true, 0x8b, H_RAX, H_RSI, n);
        put_rm(&c, true, 0x89, H_RAX, H_RSP, n);
    }
    put_mov_rr(&c, H_RCX, H_RDX);
    put_registers(&c, true);
    put1(&c, 0xff), put1(&c, 0xe1); /* jmp rcx */

    /* Leaves with EAX. */
    j->exit = c.p;
    put_registers(&c, false);
    put_rm(&c, true, 0x89, H_RAX, H_RSP, F_AT(temp));
    put_vec_store(j, &c, 0);
    put_rm(&c, true, 0x8d, H_RDI, H_RBP, -V_BIAS);
    put_mov_rr(&c, H_RSI, H_RSP);
    put_c_call(&c, (const void *)(uintptr_t)jit_leave);
    put_rm(&c, true, 0x8b, H_RAX, H_RSP, F_AT(temp));
    put_return(&c);

    /* The body of the instruction at RCX, INFO in RAX. */
    j->call = c.p;
    put_registers(&c, false);
    put_vec_store(j, &c, 8);
    put_rm(&c, true, 0x8d, H_RDI, H_RBP, -V_BIAS);
    put_mov_rr(&c, H_RSI, H_RCX);
    put_mov_rr(&c, H_RDX, H_RAX);
    put_rm(&c, true, 0x8d, H_RCX, H_RSP, 8);
    put_alu_imm(&c, true, 5, H_RSP, 8);
    put_c_call(&c, j->lockstep ? (const void *)(uintptr_t)stop_at_body : (const void *)(uintptr_t)jit_call_body);
    put_alu_imm(&c, true, 0, H_RSP, 8);
    put_rr(&c, false, 0x85, H_RAX, H_RAX);
    u8 *leave = put_jcc(&c, CC_NE);
    put_registers(&c, true);
    put1(&c, 0xc3);
    put_target(leave, c.p);
    put_alu_imm(&c, true, 0, H_RSP, 8);
    put_mov_imm32(&c, H_RAX, JIT_EXIT_ATTENTION);
    put_return(&c);

    /* The body of the instruction at RCX, INFO in EAX, which ends its block and more. Not called. */
    j->far = c.p;
    put_registers(&c, false);
    put_vec_store(j, &c, 0);
    put_rm(&c, true, 0x8d, H_RDI, H_RBP, -V_BIAS);
    put_mov_rr(&c, H_RSI, H_RCX);
    put_mov_rr(&c, H_RDX, H_RAX);
    put_mov_rr(&c, H_RCX, H_RSP);
    put_c_call(&c, j->lockstep ? (const void *)(uintptr_t)stop_at_far : (const void *)(uintptr_t)jit_call_far);
    put_alu_imm(&c, true, 7, H_RAX, JIT_EXIT_COUNT);
    leave = put_jcc(&c, CC_B);
    put_registers(&c, true);
    put1(&c, 0xff), put1(&c, 0xe0); /* jmp rax */
    put_target(leave, c.p);
    put_return(&c);

    system_make_stubs(j, &c);
    refill_make_stubs(j, &c);

    /* Is the page of the guard at RAX mapped where that says? Z: yes. RCX is lost. */
    j->guard_ask = c.p;
    put_push(&c, H_RDX);
    put_rm(&c, true, 0x8b, H_RCX, H_RSP, F_AT(rip) + 16);
    put_rm(&c, true, 0x03, H_RCX, H_RAX, offsetof(struct guard, page));
    put_rm(&c, true, 0x23, H_RCX, H_RBP, V_AT(linear_mask));
    put_rr(&c, false, 0x8b, H_RDX, H_RCX);
    put_rr(&c, false, 0xc1, 5, H_RDX), put1(&c, PAGE_SHIFT - 5);
    put_alu_imm(&c, false, 4, H_RDX, (TLB_SIZE - 1) << 5);
    put_rm(&c, true, 0x03, H_RDX, H_RBP, V_AT(tlb_now));
    put_rm(&c, true, 0x3b, H_RCX, H_RDX, offsetof(struct tlb_entry, tag_exec));
    u8 *unknown = put_jcc(&c, CC_NE);
    put_rm(&c, true, 0x03, H_RCX, H_RDX, offsetof(struct tlb_entry, addend));
    put_rm(&c, true, 0x3b, H_RCX, H_RAX, offsetof(struct guard, host));
    u8 *elsewhere = put_jcc(&c, CC_NE);
    put_mov_imm(&c, H_RDX, (u64)(uintptr_t)&j->told); /* so that the MMU knows */
    put_rm(&c, true, 0x8b, H_RCX, H_RDX, offsetof(struct code_guards, n));
    put_alu_imm(&c, true, 7, H_RCX, CODE_GUARDS_TOLD);
    u8 *full = put_jcc(&c, CC_AE);
    put_rmx(&c, true, 0x89, H_RAX, H_RDX, H_RCX, 3, offsetof(struct code_guards, told));
    put_alu_imm_mem(&c, true, 0, H_RDX, offsetof(struct code_guards, n), 1);
    put_rm(&c, true, 0x8b, H_RCX, H_RSP, F_AT(rip) + 16);
    put_rm(&c, true, 0x89, H_RCX, H_RAX, offsetof(struct guard, rip));
    put_target(full, c.p);
    put_rr(&c, false, 0x31, H_RDX, H_RDX); /* xor edx, edx: Z */
    put_target(unknown, c.p);
    put_target(elsewhere, c.p);
    put_pop(&c, H_RDX);
    put1(&c, 0xc3);

    /* What was translated here is no longer; frame.rip is its address. */
    j->gone = c.p;
    put_mov_imm32(&c, H_RAX, JIT_EXIT_LOOKUP);
    put_jmp_to(&c, j->exit);

    if (c.full)
        panic("jit: no room for the stubs");
    j->base = ((size_t)(c.p - j->rw) + 63) & ~(size_t)63;
    j->middle = j->size / 8 * 3;
    cache_init(j);
}

/* ---- called by translated code ---- */

/* Whether blocks may be translated and run as things are: 64-bit mode, or 32-bit with flat segments. */
static bool mode_ok(const struct vcpu *v)
{
    if (v->cet) /* near branches do more than they say */
        return false;
    if (v->code_mode == CODE_64)
        return true;
    if (v->code_mode == CODE_16)
        return jit_segmented_ok(v);
    u64 bases = v->seg_base[SEG_ES] | v->seg_base[SEG_CS] | v->seg_base[SEG_SS] | v->seg_base[SEG_DS];
    return v->code_mode == CODE_32 && v->stack_size == 4 && !bases &&
           !(v->seg_check & (BIT(SEG_ES) | BIT(SEG_SS) | BIT(SEG_DS))) && v->seg[SEG_CS].limit == 0xffffffff;
}

/* The body of @i runs, with everything in @v as the interpreter has it; icount at the start of the block is returned. */
static alwaysinline u64 run_body(struct vcpu *v, const struct insn *i, u64 info, struct frame *f)
{
    struct interp *ip = v->interp;
    struct jit *j = f->jit;
    if (f->units)
        jit_units_leave(v, f);
    j->stats.calls++;
    j->stats.row_calls[i->row]++;
    v->rip = (f->rip + (u64)INFO_OFF(info)) & v->linear_mask;
    v->next_rip = v->rip + i->len;
    v->insn = i;
    ip->start = i - INFO_IDX(info);
    ip->current = (struct block *)(uintptr_t)container_of(ip->start, struct block, insn[0]);
    u64 start = f->end - (u64)f->left - INFO_N(info); /* what the interpreter shows until the block's end */
    v->icount = start;
    flags_put(v, (u32)f->flags);
    i->fn(v, i);
    if (unlikely(v->budget_end != f->end)) {
        f->left += (s64)(v->budget_end - f->end);
        f->end = v->budget_end;
    }
    return start;
}

u64 jit_call_body(struct vcpu *v, const struct insn *i, u64 info, struct frame *f)
{
    struct jit *j = f->jit;
    if (insn_row(i)->jit != JIT_CALL) {
        j->stats.slow++;
        j->stats.row_slow[i->row]++;
    }
    u64 start = run_body(v, i, info, f);
    if (unlikely(attention(v))) {
        v->rip = v->next_rip;
        v->icount = start + INFO_IDX(info) + 1;
        v->interp->current = NULL;
        return 1;
    }
    f->flags = flags_get(v);
    return 0;
}

u64 jit_call_far(struct vcpu *v, const struct insn *i, u64 info, struct frame *f)
{
    struct jit *j = f->jit;
    u64 start = run_body(v, i, info, f);
    v->rip = v->next_rip;
    v->icount = start + INFO_IDX(info) + 1;
    v->insn = NULL;
    v->interp->current = NULL;
    if (unlikely(attention(v)))
        return JIT_EXIT_ATTENTION;
    struct context c;
    context_load(v, &c);
    gva_t la = (c.cs_base + v->rip) & v->linear_mask;
    const struct jump_cache_entry *hint = &c.hints[la & ((1u << JUMP_CACHE_BITS) - 1)];
    const struct block *b = hint->block;
    if (hint->rip != la || b->mode != c.mode || !b->code || v->rip + b->bytes - 1 > c.rip_max || j->patched || !mode_ok(v))
        return JIT_EXIT_FAR;
    f->codes = mmu_jump_codes(v, v->code_mode == CODE_64 ? JUMP_CODE64 : JUMP_CODE32);
    f->rip = v->rip;
    f->flags = flags_get(v);
    j->moved = true;
    return (u64)(uintptr_t)b->code;
}

void jit_leave(struct vcpu *v, struct frame *f)
{
    if (f->units)
        jit_units_leave(v, f);
    v->rip = f->rip;
    v->icount = f->end - (u64)f->left;
    flags_put(v, (u32)f->flags);
}

/* ---- translation ---- */

/* The instructions of @p one behind the other, as a block that is found by nobody. */
static struct block *path_block(struct jit *j, const struct block *head, const struct path *p)
{
    struct block *b = (struct block *)(void *)(j->rw + arena_take(j, sizeof(*b) + p->n * sizeof(struct insn)));
    *b = (struct block){.host = head->host, .mode = head->mode, .n = (u16)p->n, .near = p->near};
    for (unsigned n = 0; n < p->n; n++)
        b->insn[n] = *p->insn[n];
    return b;
}

#define PATH_BYTES (sizeof(struct block) + PATH_MAX_INSNS * (sizeof(struct insn) + 4) + PATH_MAX_BLOCKS * 64 + 256)

static u8 *translate_block(struct vcpu *v, struct block *b, struct block_links **links)
{
    struct jit *j = v->jit;
    cache_room(v, BLOCK_CODE_MAX, 2 * BLOCK_CODE_MAX + PATH_BYTES);
    size_t before = j->cold;
    u32 guards = j->guards;
    struct path p;
    path_find(v, b, &p);
    for (;;) {
        *links = (struct block_links *)(void *)(j->rw + arena_take(j, sizeof(**links)));
        **links = (struct block_links){.n = p.n, .head = b};
        struct translation_request q = {.v = v, .j = j, .b = b, .head = b, .first = 0, .count = p.n, .path = &p};
        if (p.nblocks > 1) {
            q.b = path_block(j, b, &p);
            s32 *off = (s32 *)(void *)(j->rw + arena_take(j, p.n * sizeof(*off)));
            memcpy(off, p.off, p.n * sizeof(*off));
            q.off = off;
        }
        struct code_buf c = {j->rw + j->used, j->rw + j->used + BLOCK_CODE_MAX, false};
        struct code_buf cold = {j->rw + j->cold, j->rw + j->cold + 2 * BLOCK_CODE_MAX, false};
        u8 *code = j->rx + j->used;
        if (translate(&q, &c, &cold, *links)) {
            size_t size = (size_t)(c.p - (j->rw + j->used)), rest = (size_t)(cold.p - (j->rw + j->cold));
            j->used = (j->used + size + 31) & ~(size_t)31;
            arena_take(j, rest);
            j->stats.translated++;
            j->stats.bytes += size + rest;
            struct block_user *u = (struct block_user *)(void *)(j->rw + arena_take(j, (p.nblocks - 1) * sizeof(*u)));
            (*links)->users = u;
            (*links)->nusers = p.nblocks - 1;
            for (unsigned n = 1; n < p.nblocks; n++, u++) {
                *u = (struct block_user){b, *links, p.block[n], p.block[n]->users};
                p.block[n]->users = u;
            }
            cache_add(j, *links);
            if (v->jit_options.dump || v->jit_options.map)
                jit_dump(v, &p, code, size, j->rx + (cold.p - j->rw - (s64)rest), rest);
            return code;
        }
        j->cold = before;
        j->guards = guards;
        links_release(j, *links);
        if (p.nblocks == 1)
            return NULL;
        p.n = b->n; /* too much: the block alone */
        p.nblocks = 1;
    }
}

/* The page at @rip is about to be executed: so that the TLB answers the next guard. */
static void know_page(struct vcpu *v, u64 rip)
{
    struct translation t;
    struct walk w;
    gva_t la = (v->seg_base[SEG_CS] + rip) & v->linear_mask;
    if (tlb_slot(v, la)->tag_exec != (la & PAGE_MASK) && cpu_canonical(v, la))
        mmu_translate(v, la, ACCESS_EXEC | mmu_access_mode(v), &t, &w);
}

/* Whether @b has a translation that may run as things are; it is counted, and perhaps translated now. */
static bool translated(struct vcpu *v, struct block *b)
{
    struct jit *j = v->jit;
    if (!b->code) {
        if (j->pending) /* translated code leads here: it is no beginner */
            b->heat += j->heat / 4;
        j->pending = 0;
        if (++b->heat < j->heat || !b->host || !mode_ok(v) || (b->cross && v->code_mode == CODE_16))
            return false;
        struct block_links *links;
        u8 *code = translate_block(v, b, &links);
        if (!code) {
            b->heat = 0;
            return false;
        }
        b->links = links;
        b->code = code;
    } else if (unlikely(!mode_ok(v))) {
        return false;
    }
    if (j->pending) {
        link_set(j, j->pending, b);
        if (j->link[j->pending].guard)
            know_page(v, v->rip);
        j->pending = 0;
    }
    return true;
}

/* Runs the translation of @b for at most @budget instructions; why it came back. */
static u64 run_translation(struct vcpu *v, const struct block *b, u64 budget)
{
    struct jit *j = v->jit;
    if (j->patched) {
        j->serialise();
        j->patched = false;
    }
    /* Of 16-bit code nothing is looked up: its RIP is no linear address. */
    enum jump_kind kind = v->code_mode == CODE_64 ? JUMP_CODE64 : JUMP_CODE32;
    struct frame f = {.left = (s64)budget, .rip = v->rip, .flags = flags_get(v), .codes = mmu_jump_codes(v, kind), .end = v->icount + budget, .jit = j};
    const struct jump_cache_entry *e = &f.codes[jump_code_way(v->rip)];
    if (v->code_mode != CODE_16 && (e->rip != v->rip || e->block != b->code))
        mmu_jump_code(v, kind, v->rip, b->code);
    v->insn = NULL;
    v->interp->current = NULL;
    j->moved = false;
    j->stats.entries++;
    u64 (*code)(struct vcpu *, const struct frame *, const void *) =
        (u64(*)(struct vcpu *, const struct frame *, const void *))(uintptr_t)(j->rx + (j->enter - j->rw));
    u64 why = code(v, &f, b->code);
    v->interp->current = NULL;
    j->stats.exits[EXIT_REASON(why)]++;
    if (EXIT_REASON(why) == JIT_EXIT_LINK) {
        j->pending = (u32)EXIT_NUMBER(why);
    } else if (EXIT_REASON(why) == JIT_EXIT_GUARD) { /* the instruction that comes next needs that page */
        know_page(v, v->rip + j->guard[EXIT_NUMBER(why)].from);
        j->interpret = true;
    }
    return EXIT_REASON(why);
}

static enum hot_result hot(struct vcpu *v, struct block *b, const struct context *c)
{
    struct jit *j = v->jit;
    (void)c;
    /* While something keeps asking for attention, the interpreter goes on by single instructions. */
    if (unlikely(attention(v)))
        return HOT_COLD;
    if (unlikely(j->interpret)) {
        j->interpret = false;
        return HOT_COLD;
    }
    if (!translated(v, b) || v->budget_end - v->icount < ((const struct block_links *)b->links)->n)
        return HOT_COLD;
    u64 why = run_translation(v, b, v->budget_end - v->icount);
    return (why == JIT_EXIT_LINK || why == JIT_EXIT_LOOKUP || why == JIT_EXIT_GUARD) && !j->moved ? HOT_DONE : HOT_LEAVE;
}

static noinline enum run_result run_plain(struct vcpu *v) { return run_loop(v, false, hot); }
static noinline enum run_result run_traced(struct vcpu *v) { return run_loop(v, true, NULL); }

static enum run_result run(struct vcpu *v)
{
    struct jit *j = v->jit;
    int reason = setjmp(v->unwind);
    j->pending = 0;
    if (run_unwound(v, reason))
        return RUN_REQUEST;
    return run_ended(v, log_on(LOG_insn) ? run_traced(v) : run_plain(v));
}

/* ---- lock-step ---- */

static struct part *part_of(struct vcpu *v, struct block *b, unsigned first, unsigned count, bool stop)
{
    struct jit *j = v->jit;
    if (!j->parts && !(j->parts = calloc(PARTS, sizeof(*j->parts))))
        panic("out of memory");
    u64 hash = ((u64)(uintptr_t)b + first * 128 + count * 2 + stop) * 0x9e3779b97f4a7c15ull;
    struct part *r = &j->parts[hash >> 48 & (PARTS - 1)];
    if (r->b == b && r->first == first && r->count == count && r->stop == stop && b->host)
        return r;
    cache_room(v, BLOCK_CODE_MAX, 0);
    struct block_links links = {0};
    size_t start = j->used;
    struct code_buf c = {j->rw + start, j->rw + start + BLOCK_CODE_MAX, false};
    struct translation_request q = {.v = v, .j = j, .b = b, .head = b, .first = first, .count = count, .region = true, .stop = stop};
    if (!translate(&q, &c, NULL, &links))
        return NULL;
    size_t end = (size_t)(c.p - j->rw);
    j->used = (end + 63) & ~(size_t)63;
    *r = (struct part){b, (u16)first, (u16)count, stop, (u32)(end - start), j->rx + start};
    return r;
}

bool jit_run_region(struct vcpu *v, struct block *b, unsigned first, unsigned count, bool stop)
{
    struct jit *j = v->jit;
    if (!mode_ok(v))
        return false;
    const struct part *r = part_of(v, b, first, count, stop);
    if (!r)
        return false;
    j->part = r;
    if (j->patched) {
        j->serialise();
        j->patched = false;
    }
    unsigned off = 0;
    for (unsigned n = 0; n < first; n++)
        off += b->insn[n].len;
    struct frame f = {.left = 0, .rip = v->rip - off, .flags = flags_get(v), .end = v->budget_end, .jit = j};
    u64 icount = v->icount;
    j->stats.stepped_parts += count - stop;
    /* What the TLB has forgotten in favour of another page, the caller takes for not granted. */
    memset(v->cell_limit, 0, sizeof(v->cell_limit));
    u64 (*enter)(struct vcpu *, const struct frame *, const void *) =
        (u64(*)(struct vcpu *, const struct frame *, const void *))(uintptr_t)(j->rx + (j->enter - j->rw));
    enter(v, &f, r->code);
    v->icount = icount;
    return true;
}

/* In place of jit_call_body(): a path is left in front of the instruction. */
static u64 stop_at_body(struct vcpu *v, const struct insn *i, u64 info, struct frame *f)
{
    if (!f->codes) /* a region */
        return jit_call_body(v, i, info, f);
    if (f->units)
        jit_units_leave(v, f);
    v->rip = (f->rip + (u64)INFO_OFF(info)) & v->linear_mask;
    v->icount = f->end - (u64)f->left - INFO_N(info) + INFO_IDX(info);
    flags_put(v, (u32)f->flags);
    return 1;
}

static u64 stop_at_far(struct vcpu *v, const struct insn *i, u64 info, struct frame *f)
{
    stop_at_body(v, i, info, f);
    return JIT_EXIT_ATTENTION;
}

bool jit_path_ready(struct vcpu *v, struct block *b) { return translated(v, b); }

u64 jit_run_path(struct vcpu *v, const struct block *b, u64 budget)
{
    u64 start = v->icount;
    if (budget < ((const struct block_links *)b->links)->n)
        return 0;
    memset(v->cell_limit, 0, sizeof(v->cell_limit)); /* as for regions */
    for (u64 n = 0; n < v->guards->n; n++)
        *v->guards->told[n] = CODE_GUARD_NONE;
    v->guards->n = 0;
    run_translation(v, b, budget);
    ((struct jit *)v->jit)->interpret = false;
    u64 count = v->icount - start;
    v->icount = start;
    ((struct jit *)v->jit)->stats.stepped_paths += count;
    return count;
}

const u8 *jit_region_code(const struct vcpu *v, size_t *size)
{
    const struct jit *j = v->jit;
    *size = j->part->size;
    return j->part->code;
}

/* ---- life ---- */

static void detach(struct vcpu *v)
{
    struct jit *j = v->jit;
    if (j) {
        if (j->rw)
            munmap(j->rw, j->size);
        if (j->rx)
            munmap(j->rx, j->size + GUARDS * sizeof(struct guard));
        v->guards = NULL;
        free(j->link);
        free(j->parts);
        free(j->stats.row_calls);
        free(j->stats.row_slow);
        free(j);
    }
    interp_free(v->interp);
    v->interp = NULL;
    v->jit = NULL;
}

/* Code is written through one mapping and executed through another: no page is ever both. What translated code
 * itself reads and writes lies behind the executable one, where nothing can be executed. */
static bool map_arena(struct jit *j, size_t size)
{
    int fd = memfd_create("nestor-jit", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    if (!ftruncate(fd, (off_t)size)) {
        void *rw = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        void *room = mmap(NULL, size + GUARDS * sizeof(struct guard), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        j->rw = rw == MAP_FAILED ? NULL : rw;
        j->size = size;
        if (room != MAP_FAILED) {
            j->rx = room;
            j->guard = (struct guard *)(void *)(j->rx + size);
            if (mmap(room, size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
                munmap(room, size + GUARDS * sizeof(struct guard));
                j->rx = NULL;
            }
        }
    }
    close(fd);
    return j->rw && j->rx;
}

static void ask_host(struct jit *j)
{
    for (unsigned f = 0; f < FEAT_COUNT; f++) {
        const struct cpu_feature_info *info = &cpu_feature_info[f];
        u32 r[4];
        if (f == FEAT_NONE) {
            j->host_has[f] = true;
        } else if (info->leaf <= __get_cpuid_max(info->leaf & 0x80000000u, NULL)) {
            __cpuid_count(info->leaf, info->subleaf, r[0], r[1], r[2], r[3]);
            j->host_has[f] = r[info->reg] >> info->bit & 1;
        }
    }
    unsigned a, b, c, d; /* CPUID.1:ECX.OSXSAVE */
    j->host_xsave = __get_cpuid(1, &a, &b, &c, &d) && (c & BIT(27));
}

static int attach_with(struct vcpu *v, u32 heat, bool lockstep)
{
    struct jit *j = aligned_alloc(64, sizeof(*j));
    if (j)
        memset(j, 0, sizeof(*j));
    v->jit = j;
    v->interp = interp_new();
    if (j && v->interp) {
        j->heat = heat;
        j->lockstep = lockstep;
        ask_host(j);
        j->zmm = cpu_has(v, FEAT_AVX512F);
        j->serialise = jit_serialise;
        j->link = calloc(LINK_MAX, sizeof(*j->link));
        j->stats.row_calls = calloc(insn_row_count, sizeof(u64));
        j->stats.row_slow = calloc(insn_row_count, sizeof(u64));
        if (j->link && j->stats.row_calls && j->stats.row_slow && map_arena(j, v->jit_options.cache ? v->jit_options.cache : JIT_CACHE_DEFAULT)) {
            make_stubs(j);
            v->guards = &j->told;
            v->interp->block_died = cache_block_died;
            v->interp->blocks_flushed = cache_blocks_flushed;
            return 0;
        }
    }
    detach(v);
    return -1;
}

static int attach(struct vcpu *v) { return attach_with(v, v->jit_options.heat ? v->jit_options.heat : HEAT, false); }
static int attach_eager(struct vcpu *v) { return attach_with(v, 1, false); }
int jit_attach_lockstep(struct vcpu *v) { return attach_with(v, v->jit_options.heat ? v->jit_options.heat : HEAT, true); }

static void code_written(struct vcpu *v, pa_t pa, size_t len)
{
    if (v->interp)
        block_written(v, pa, len);
}

static bool holds_code(struct vcpu *v, pa_t pa) { return v->interp && block_page_holds_code(v, pa); }

const struct engine engine_jit = {
    .name = "jit",
    .attach = attach,
    .detach = detach,
    .run = run,
    .code_written = code_written,
    .holds_code = holds_code,
};

const struct engine engine_jit_eager = {
    .name = "jit-eager",
    .attach = attach_eager,
    .detach = detach,
    .run = run,
    .code_written = code_written,
    .holds_code = holds_code,
};

const struct jit_stats *jit_stats(const struct vcpu *v)
{
    const struct jit *j = v->jit;
    return j ? &j->stats : NULL;
}
