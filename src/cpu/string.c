/*
 * MOVS, CMPS, STOS, LODS, SCAS, XLAT.
 *
 * A repeated string instruction is restartable: after every element RCX, RSI and RDI say how far it
 * got, so a fault in element k is reported with the registers at k, and an interrupt can be taken
 * between two elements. When v->attention asks for it, the body leaves with next_rip = rip; the
 * boundary then sees an instruction that has not finished. It sets RF, as the processor does in the
 * image pushed for an interrupt between iterations (SDM vol. 3 "Instruction-Breakpoint Exception
 * Condition"), so that a breakpoint on the instruction does not fire again when it goes on.
 *
 * CMPS and SCAS write flags once, at the end: a fault in a later iteration must show the flags from
 * before the instruction (SDM vol. 2 "REP/REPE/REPZ/REPNE/REPNZ").
 *
 * The fast path works on runs of elements that lie within one page on either side, through the host
 * pointers of the TLB. It needs DF = 0 and plain segments; a page that is not granted (not yet
 * looked up, tracked, device memory, watched) goes one element through the ordinary accessors.
 */
#include "cpu/bodies_int.h"
#include "cpu/operand.h"
#include "cpu/ops_arith.h"

static alwaysinline u64 index_get(const struct vcpu *v, unsigned r, const struct insn *i)
{
    return v->gpr[r] & size_mask(i->adsize);
}
static alwaysinline void index_add(struct vcpu *v, unsigned r, const struct insn *i, u64 delta)
{
    reg_set(v, r, v->gpr[r] + delta, i->adsize);
}
static alwaysinline u64 step(const struct vcpu *v, unsigned size)
{
    return v->rflags & FL_DF ? -(u64)size : size;
}
static alwaysinline bool repeated(const struct insn *i) { return i->flags & (INSN_REP | INSN_REPNE); }
/* A stale block can wait until the instruction has ended; when one is stale depends on the engine. */
static alwaysinline bool attention(struct vcpu *v)
{
    return unlikely(atomic_load_explicit(&v->attention, memory_order_relaxed) & ~(u32)ATT_BLOCK);
}
/*
 * After @n more elements: whether to leave. Also when nobody asks but many are done: RCX is the guest's choice,
 * and a slice, --timeout and the other processors wait for this instruction.
 */
#define REP_SLICE (1u << 16)
static alwaysinline bool leave_now(struct vcpu *v, u64 *done, u64 n)
{
    *done += n;
    if (unlikely(*done >= REP_SLICE))
        cpu_end_slice(v, 1);
    return attention(v) || *done >= REP_SLICE;
}
/* Leaves an unfinished instruction to be run again. */
static void leave_unfinished(struct vcpu *v)
{
    v->next_rip = v->rip;
    v->rflags |= FL_RF;
    v->unfinished++;
}

/*
 * Bytes from @offset on, in one page, that the segment and the TLB let the host touch directly
 * (0: none), and where they are. Never more than @wanted.
 */
static u64 span(struct vcpu *v, unsigned seg, u64 offset, u64 wanted, unsigned adsize, bool write, u8 **host)
{
    u64 room = size_mask(adsize) - offset; /* to the wrap of the index, less one byte */
    if (v->seg_check & BIT(seg)) {
        const struct segment *s = &v->seg[seg];
        /* Only writable expand-up data segments: anything else is for seg_linear_slow to judge. */
        if ((s->ar & (AR_UNUSABLE | AR_P | AR_S | 0xe)) != (AR_P | AR_S | 2) || offset > s->limit)
            return 0;
        if (s->limit - offset < room)
            room = s->limit - offset;
    }
    gva_t la = (v->seg_base[seg] + offset) & v->linear_mask;
    const struct tlb_entry *e = tlb_slot(v, la);
    if ((write ? e->tag_write : e->tag_read) != (la & PAGE_MASK))
        return 0;
    *host = (u8 *)(uintptr_t)(la + e->addend);
    u64 bytes = PAGE_SIZE - (la & ~PAGE_MASK);
    if (bytes - 1 > room)
        bytes = room + 1;
    return bytes < wanted ? bytes : wanted;
}

/* @count elements of @size bytes as bytes, without overflow: a page is all a span can give. */
static alwaysinline u64 run_bytes(u64 count, unsigned size)
{
    return count >= PAGE_SIZE ? PAGE_SIZE : count * size;
}

/* The copy an ascending MOVS loop makes, also where the areas overlap. */
static void copy_ascending(u8 *dst, const u8 *src, size_t bytes, unsigned size)
{
    uintptr_t dist = (uintptr_t)dst - (uintptr_t)src;
    if (dist >= bytes) { /* disjoint, or the destination is below */
        memmove(dst, src, bytes);
    } else if (dist >= size) {
        /* What has been copied repeats with period dist: each round can copy twice as much. */
        size_t done = 0;
        while (done < bytes) {
            size_t n = dist + done;
            if (n > bytes - done)
                n = bytes - done;
            memcpy(dst + done, src, n);
            done += n;
        }
    } else {
        for (size_t k = 0; k < bytes; k += size) {
            u64 x = load_le(src + k, size);
            store_le(dst + k, x, size);
        }
    }
}

void insn_movs(struct vcpu *v, const struct insn *i)
{
    unsigned size = row_size(i);
    u64 delta = step(v, size);
    if (!repeated(i)) {
        u64 x = mem_get(v, i->seg, index_get(v, RSI, i), size);
        mem_put(v, SEG_ES, index_get(v, RDI, i), x, size);
        index_add(v, RSI, i, delta);
        index_add(v, RDI, i, delta);
        return;
    }
    u64 count = index_get(v, RCX, i), done = 0;
    while (count) {
        u64 n = 0;
        u8 *src = NULL, *dst = NULL;
        if (count > 1 && !(v->rflags & FL_DF) && !attention(v)) {
            n = span(v, i->seg, index_get(v, RSI, i), run_bytes(count, size), i->adsize, false, &src);
            if (n)
                n = span(v, SEG_ES, index_get(v, RDI, i), n, i->adsize, true, &dst);
            n /= size;
        }
        if (n) {
            copy_ascending(dst, src, n * size, size);
        } else {
            u64 x = mem_get(v, i->seg, index_get(v, RSI, i), size);
            mem_put(v, SEG_ES, index_get(v, RDI, i), x, size);
            n = 1;
        }
        index_add(v, RSI, i, n * delta);
        index_add(v, RDI, i, n * delta);
        index_add(v, RCX, i, -n);
        count -= n;
        if (count && leave_now(v, &done, n))
            return leave_unfinished(v);
    }
}

void insn_stos(struct vcpu *v, const struct insn *i)
{
    unsigned size = row_size(i);
    u64 delta = step(v, size), x = v->gpr[RAX] & size_mask(size);
    if (!repeated(i)) {
        mem_put(v, SEG_ES, index_get(v, RDI, i), x, size);
        index_add(v, RDI, i, delta);
        return;
    }
    u64 count = index_get(v, RCX, i), done = 0;
    bool bytes_alike = x == ((x & 0xff) * 0x0101010101010101ull & size_mask(size));
    while (count) {
        u64 n = 0;
        u8 *dst = NULL;
        if (count > 1 && !(v->rflags & FL_DF) && !attention(v))
            n = span(v, SEG_ES, index_get(v, RDI, i), run_bytes(count, size), i->adsize, true, &dst) / size;
        if (!n) {
            mem_put(v, SEG_ES, index_get(v, RDI, i), x, size);
            n = 1;
        } else if (bytes_alike) {
            memset(dst, (u8)x, n * size);
        } else {
            for (u64 k = 0; k < n; k++)
                store_le(dst + k * size, x, size);
        }
        index_add(v, RDI, i, n * delta);
        index_add(v, RCX, i, -n);
        count -= n;
        if (count && leave_now(v, &done, n))
            return leave_unfinished(v);
    }
}

void insn_lods(struct vcpu *v, const struct insn *i)
{
    unsigned size = row_size(i);
    u64 delta = step(v, size), count = repeated(i) ? index_get(v, RCX, i) : 1, done = 0;
    while (count) {
        u64 x = mem_get(v, i->seg, index_get(v, RSI, i), size);
        reg_set(v, RAX, x, size); /* byte offset 0 of the register file is AL */
        index_add(v, RSI, i, delta);
        if (!repeated(i))
            return;
        index_add(v, RCX, i, -1);
        if (--count && leave_now(v, &done, 1))
            return leave_unfinished(v);
    }
}

static void compare(struct vcpu *v, u64 a, u64 b, unsigned size)
{
    switch (size) {
    case 1: op_cmp8(v, (u8)a, (u8)b); break;
    case 2: op_cmp16(v, (u16)a, (u16)b); break;
    case 4: op_cmp32(v, (u32)a, (u32)b); break;
    default: op_cmp64(v, a, b);
    }
}

/* Elements from @a and @b on that compare as @equal says, up to @n. @stride_a is 0 for SCAS. */
static u64 matching(const u8 *a, unsigned stride_a, const u8 *b, u64 n, unsigned size, bool equal)
{
    u64 k = 0;
#define SCAN(bits)                                                                                           \
    for (; k < n; k++) {                                                                                    \
        u##bits x, y;                                                                                       \
        memcpy(&x, a + k * stride_a, sizeof(x));                                                              \
        memcpy(&y, b + k * sizeof(y), sizeof(y));                                                             \
        if ((x == y) != equal)                                                                              \
            break;                                                                                          \
    }                                                                                                       \
    return k;
    switch (size) {
    case 1: SCAN(8)
    case 2: SCAN(16)
    case 4: SCAN(32)
    default: SCAN(64)
    }
#undef SCAN
}

/* CMPS and SCAS: they differ in where the first operand comes from. */
static alwaysinline void compare_string(struct vcpu *v, const struct insn *i, bool scan)
{
    unsigned size = row_size(i);
    u64 delta = step(v, size), a, b;
    if (!repeated(i)) {
        a = scan ? v->gpr[RAX] : mem_get(v, i->seg, index_get(v, RSI, i), size);
        b = mem_get(v, SEG_ES, index_get(v, RDI, i), size);
        if (!scan)
            index_add(v, RSI, i, delta);
        index_add(v, RDI, i, delta);
        compare(v, a, b, size);
        return;
    }
    /* With both prefixes the decoder reports the last one; F3 here means REPE, F2 REPNE. */
    bool while_equal = i->flags & INSN_REP;
    u64 count = index_get(v, RCX, i), mask = size_mask(size), done = 0;
    while (count) {
        u64 skipped = 0;
        if (count > 1 && !(v->rflags & FL_DF) && !attention(v)) {
            u8 *pa = (u8 *)v->gpr, *pb = NULL;
            u64 bytes = run_bytes(count - 1, size); /* the last one is for the flags, below */
            if (!scan)
                bytes = span(v, i->seg, index_get(v, RSI, i), bytes, i->adsize, false, &pa);
            if (bytes)
                bytes = span(v, SEG_ES, index_get(v, RDI, i), bytes, i->adsize, false, &pb);
            if (bytes >= size) {
                u64 n = matching(pa, scan ? 0 : size, pb, bytes / size, size, while_equal);
                if (!scan)
                    index_add(v, RSI, i, n * delta);
                index_add(v, RDI, i, n * delta);
                index_add(v, RCX, i, -n);
                count -= n;
                skipped = n;
            }
        }
        a = (scan ? v->gpr[RAX] : mem_get(v, i->seg, index_get(v, RSI, i), size)) & mask;
        b = mem_get(v, SEG_ES, index_get(v, RDI, i), size);
        if (!scan)
            index_add(v, RSI, i, delta);
        index_add(v, RDI, i, delta);
        index_add(v, RCX, i, -1);
        count--;
        if (!count || (a == b) != while_equal)
            return compare(v, a, b, size);
        if (leave_now(v, &done, skipped + 1)) {
            compare(v, a, b, size);
            return leave_unfinished(v);
        }
    }
}

void insn_cmps(struct vcpu *v, const struct insn *i) { compare_string(v, i, false); }
void insn_scas(struct vcpu *v, const struct insn *i) { compare_string(v, i, true); }

void insn_xlat(struct vcpu *v, const struct insn *i)
{
    u64 offset = (v->gpr[RBX] + (u8)v->gpr[RAX]) & size_mask(i->adsize);
    reg8_set(v, 0, mem_read8(v, i->seg, offset));
}
