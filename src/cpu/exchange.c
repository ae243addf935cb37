/*
 * XCHG, XADD, CMPXCHG*, and the bit tests whose register bit number reaches beyond the operand. With
 * LOCK (XCHG: always) the host's atomic instruction works on the place itself when it is RAM within a
 * cache line; elsewhere nobody else reaches the bytes meanwhile (rmw_alone()).
 */
#include "cpu/bodies_int.h"
#include "cpu/operand.h"
#include "cpu/ops_arith.h"

#define BY_SIZE(size, op)                                                                                    \
    switch (size) {                                                                                         \
    case 1: op(8)                                                                                           \
    case 2: op(16)                                                                                          \
    case 4: op(32)                                                                                          \
    default: op(64)                                                                                         \
    }

static u64 atomic_exchange_sized(void *p, u64 x, unsigned size)
{
#define EXCHANGE(bits) return __atomic_exchange_n((u##bits *)p, (u##bits)x, __ATOMIC_SEQ_CST);
    BY_SIZE(size, EXCHANGE)
#undef EXCHANGE
}

static u64 atomic_add_sized(void *p, u64 x, unsigned size)
{
#define ADD(bits) return __atomic_fetch_add((u##bits *)p, (u##bits)x, __ATOMIC_SEQ_CST);
    BY_SIZE(size, ADD)
#undef ADD
}

/* Returns what was there; the exchange happened when that is @expected. */
static u64 atomic_cmpxchg_sized(void *p, u64 expected, u64 x, unsigned size)
{
#define CMPXCHG(bits)                                                                                        \
    {                                                                                                       \
        u##bits e = (u##bits)expected;                                                                        \
        __atomic_compare_exchange_n((u##bits *)p, &e, (u##bits)x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
        return e;                                                                                           \
    }
    BY_SIZE(size, CMPXCHG)
#undef CMPXCHG
}

void insn_xchg(struct vcpu *v, const struct insn *i)
{
    if ((i->opcode & 0xf8) == 0x90) { /* with the accumulator */
        u64 x = reg_get(v, RAX, i->opsize), y = reg_get(v, i->rm, i->opsize);
        reg_set(v, RAX, y, i->opsize);
        reg_set(v, i->rm, x, i->opsize);
        return;
    }
    unsigned size = row_size(i), reg = size == 1 ? i->reg8 : i->reg;
    u64 x = reg_get(v, reg, size), old;
    if (i->flags & INSN_MEM) {
        struct rmw m;
        old = rmw_begin(v, i->seg, insn_ea(v, i), &m, size);
        void *at = rmw_place(&m, size);
        if (likely(at != NULL)) {
            old = atomic_exchange_sized(at, x, size);
            rmw_told(v, &m, size);
        } else {
            old = rmw_alone(v, &m, old, size);
            rmw_end(v, &m, x, size);
            mem_together(v);
        }
    } else {
        unsigned rm = size == 1 ? i->rm8 : i->rm;
        old = reg_get(v, rm, size);
        reg_set(v, rm, x, size);
    }
    reg_set(v, reg, old, size);
}

static void flags_add(struct vcpu *v, u64 a, u64 b, unsigned size)
{
    switch (size) {
    case 1: op_add8(v, (u8)a, (u8)b); break;
    case 2: op_add16(v, (u16)a, (u16)b); break;
    case 4: op_add32(v, (u32)a, (u32)b); break;
    default: op_add64(v, a, b);
    }
}

static void flags_cmp(struct vcpu *v, u64 a, u64 b, unsigned size)
{
    switch (size) {
    case 1: op_cmp8(v, (u8)a, (u8)b); break;
    case 2: op_cmp16(v, (u16)a, (u16)b); break;
    case 4: op_cmp32(v, (u32)a, (u32)b); break;
    default: op_cmp64(v, a, b);
    }
}

void insn_xadd(struct vcpu *v, const struct insn *i)
{
    unsigned size = row_size(i), reg = size == 1 ? i->reg8 : i->reg;
    u64 x = reg_get(v, reg, size), old;
    if (i->flags & INSN_MEM) {
        struct rmw m;
        old = rmw_begin(v, i->seg, insn_ea(v, i), &m, size);
        void *at = i->flags & INSN_LOCK ? rmw_place(&m, size) : NULL;
        if (likely(at != NULL)) {
            old = atomic_add_sized(at, x, size);
            rmw_told(v, &m, size);
        } else {
            if (i->flags & INSN_LOCK)
                old = rmw_alone(v, &m, old, size);
            rmw_end(v, &m, old + x, size);
            mem_together(v);
        }
        reg_set(v, reg, old, size);
    } else {
        unsigned rm = size == 1 ? i->rm8 : i->rm;
        old = reg_get(v, rm, size);
        reg_set(v, reg, old, size);
        reg_set(v, rm, old + x, size); /* the sum wins when both are one register */
    }
    flags_add(v, old, x, size);
}

/* In memory, where begin has read @old; returns what was there. */
static u64 compare_exchange(struct vcpu *v, const struct insn *i, struct rmw *m, u64 old, u64 expected, u64 x, unsigned size)
{
    void *at = i->flags & INSN_LOCK ? rmw_place(m, size) : NULL;
    if (likely(at != NULL)) {
        old = atomic_cmpxchg_sized(at, expected, x, size);
        rmw_told(v, m, size);
        return old;
    }
    if (i->flags & INSN_LOCK)
        old = rmw_alone(v, m, old, size);
    rmw_end(v, m, old == expected ? x : old, size); /* written either way (SDM vol. 2 "CMPXCHG") */
    mem_together(v);
    return old;
}

void insn_cmpxchg(struct vcpu *v, const struct insn *i)
{
    unsigned size = row_size(i);
    u64 x = reg_get(v, size == 1 ? i->reg8 : i->reg, size), acc = reg_get(v, RAX, size), old;
    if (i->flags & INSN_MEM) {
        struct rmw m;
        old = rmw_begin(v, i->seg, insn_ea(v, i), &m, size);
        old = compare_exchange(v, i, &m, old, acc, x, size);
    } else {
        unsigned rm = size == 1 ? i->rm8 : i->rm;
        old = reg_get(v, rm, size);
        if (old == acc)
            reg_set(v, rm, x, size);
    }
    flags_cmp(v, acc, old, size);
    if (old != acc)
        reg_set(v, RAX, old, size);
}

static void put_zf(struct vcpu *v, bool zf) { v->aflags = (v->aflags & ~(u32)FL_ZF) | (zf ? FL_ZF : 0); }

void insn_cmpxchg8b(struct vcpu *v, const struct insn *i)
{
    struct rmw m;
    u64 expected = v->gpr[RDX] << 32 | (u32)v->gpr[RAX], x = v->gpr[RCX] << 32 | (u32)v->gpr[RBX];
    u64 old = rmw_begin64(v, i->seg, insn_ea(v, i), &m);
    old = compare_exchange(v, i, &m, old, expected, x, 8);
    put_zf(v, old == expected);
    if (old != expected) {
        v->gpr[RAX] = (u32)old;
        v->gpr[RDX] = old >> 32;
    }
}

void insn_cmpxchg16b(struct vcpu *v, const struct insn *i)
{
    u64 ea = insn_ea(v, i), old[2] = {v->gpr[RAX], v->gpr[RDX]};
    gva_t la = seg_linear(v, i->seg, ea, 16, ACCESS_READ | ACCESS_WRITE);
    if (la & 15)
        cpu_gp0(v);
    const struct tlb_entry *e = tlb_slot(v, la);
    bool equal;
    if (likely(e->tag_write == (la & PAGE_MASK) && e->tag_read == (la & PAGE_MASK))) {
        u64 *host = (u64 *)(uintptr_t)(la + e->addend);
        __asm__ volatile("lock cmpxchg16b %1"
                         : "=@ccz"(equal), "+m"(*(u128 *)host), "+a"(old[0]), "+d"(old[1])
                         : "b"(v->gpr[RBX]), "c"(v->gpr[RCX])
                         : "memory");
    } else {
        u64 now[2], next[2] = {v->gpr[RBX], v->gpr[RCX]};
        mem_probe_write(v, i->seg, ea, 16);
        if (i->flags & INSN_LOCK)
            mem_alone(v);
        mem_read_bytes(v, i->seg, ea, now, 16);
        equal = now[0] == old[0] && now[1] == old[1];
        mem_write_bytes(v, i->seg, ea, equal ? next : now, 16);
        mem_together(v);
        old[0] = now[0];
        old[1] = now[1];
    }
    put_zf(v, equal);
    if (!equal) {
        v->gpr[RAX] = old[0];
        v->gpr[RDX] = old[1];
    }
}

/* ---- BT, BTS, BTR, BTC with a memory operand and a register bit number ---- */
enum bit_change { BIT_TEST, BIT_SET, BIT_RESET, BIT_COMPLEMENT };

static alwaysinline void bit_string(struct vcpu *v, const struct insn *i, enum bit_change change)
{
    unsigned size = i->opsize;
    s64 number = sign_extend(reg_get(v, i->reg, size), 8 * size);
    /* The bit number is signed and selects an element of the operand size first (SDM vol. 2 "BT"). */
    s64 element = number >> (size == 8 ? 6 : size == 4 ? 5 : 4);
    u64 ea = (insn_ea(v, i) + (u64)element * size) & size_mask(i->adsize);
    u64 bit = 1ull << (number & (8 * size - 1)), old;
    if (change == BIT_TEST) {
        old = mem_get(v, i->seg, ea, size);
    } else {
        struct rmw m;
        old = rmw_begin(v, i->seg, ea, &m, size);
        void *at = i->flags & INSN_LOCK ? rmw_place(&m, size) : NULL;
        if ((i->flags & INSN_LOCK) && !at)
            old = rmw_alone(v, &m, old, size);
        for (;;) {
            u64 x = change == BIT_SET ? old | bit : change == BIT_RESET ? old & ~bit : old ^ bit;
            if (!at) {
                rmw_end(v, &m, x, size);
                mem_together(v);
                break;
            }
            u64 now = atomic_cmpxchg_sized(at, old, x, size);
            if (now == old) {
                rmw_told(v, &m, size);
                break;
            }
            old = now;
        }
    }
    v->aflags = (v->aflags & ~(u32)FL_CF) | (old & bit ? FL_CF : 0);
}

void insn_bt_mem(struct vcpu *v, const struct insn *i) { bit_string(v, i, BIT_TEST); }
void insn_bts_mem(struct vcpu *v, const struct insn *i) { bit_string(v, i, BIT_SET); }
void insn_btr_mem(struct vcpu *v, const struct insn *i) { bit_string(v, i, BIT_RESET); }
void insn_btc_mem(struct vcpu *v, const struct insn *i) { bit_string(v, i, BIT_COMPLEMENT); }
