/*
 * Memory as instructions see it: segment, linear address, TLB, host memory. The fast path is here;
 * everything else (faults, devices, page-crossing, tracked pages, alignment checks, watchpoints) is
 * in mem.c. A failing access raises and does not return; a store that crosses pages checks both
 * before it writes either.
 */
#pragma once
#include "cpu/cpu.h"
#include "mmu/tlb.h"

/* ---- slow paths (mem.c). @seg chooses #SS or #GP for non-canonical addresses; SEG_COUNT: #GP ---- */
u64 mem_load_slow(struct vcpu *v, unsigned seg, gva_t la, unsigned size);
void mem_store_slow(struct vcpu *v, unsigned seg, gva_t la, u64 value, unsigned size);
/* Segmentation for segments marked in v->seg_check: limit, type and wrap-around; returns the linear address. */
gva_t seg_linear_slow(struct vcpu *v, unsigned seg, u64 offset, unsigned size, u32 access);

static alwaysinline gva_t seg_linear(struct vcpu *v, unsigned seg, u64 offset, unsigned size, u32 access)
{
    if (unlikely(v->seg_check & BIT(seg)))
        return seg_linear_slow(v, seg, offset, size, access);
    return (v->seg_base[seg] + offset) & v->linear_mask;
}

#define MEM_ACCESSORS(bits)                                                                                  \
    static alwaysinline u##bits lin_read##bits(struct vcpu *v, unsigned seg, gva_t la)                         \
    {                                                                                                       \
        const struct tlb_entry *e = tlb_slot(v, la);                                                          \
        if (likely(e->tag_read == ((la + (bits / 8 - 1)) & PAGE_MASK))) {                                       \
            u##bits value;                                                                                  \
            memcpy(&value, (const void *)(uintptr_t)(la + e->addend), sizeof(value));                         \
            return value;                                                                                   \
        }                                                                                                   \
        return (u##bits)mem_load_slow(v, seg, la, bits / 8);                                                  \
    }                                                                                                       \
    static alwaysinline void lin_write##bits(struct vcpu *v, unsigned seg, gva_t la, u##bits value)             \
    {                                                                                                       \
        const struct tlb_entry *e = tlb_slot(v, la);                                                          \
        if (likely(e->tag_write == ((la + (bits / 8 - 1)) & PAGE_MASK))) {                                      \
            memcpy((void *)(uintptr_t)(la + e->addend), &value, sizeof(value));                               \
            return;                                                                                         \
        }                                                                                                   \
        mem_store_slow(v, seg, la, value, bits / 8);                                                          \
    }                                                                                                       \
    static alwaysinline u##bits mem_read##bits(struct vcpu *v, unsigned seg, u64 offset)                        \
    {                                                                                                       \
        return lin_read##bits(v, seg, seg_linear(v, seg, offset, bits / 8, ACCESS_READ));                       \
    }                                                                                                       \
    static alwaysinline void mem_write##bits(struct vcpu *v, unsigned seg, u64 offset, u##bits value)           \
    {                                                                                                       \
        lin_write##bits(v, seg, seg_linear(v, seg, offset, bits / 8, ACCESS_WRITE), value);                     \
    }
MEM_ACCESSORS(8)
MEM_ACCESSORS(16)
MEM_ACCESSORS(32)
MEM_ACCESSORS(64)
#undef MEM_ACCESSORS

/* Any size (16, 32, 64 bytes, x87 images, XSAVE areas). All of it is checked before any of it is read or written. */
void mem_read_bytes(struct vcpu *v, unsigned seg, u64 offset, void *buf, unsigned size);
void mem_write_bytes(struct vcpu *v, unsigned seg, u64 offset, const void *buf, unsigned size);
/* Faults as a write of @size bytes there would (probe), writing nothing. */
void mem_probe_write(struct vcpu *v, unsigned seg, u64 offset, unsigned size);
/* Likewise for masked accesses, gathers and scatters, which check no alignment (SDM vol. 2 "VMASKMOV", "VPGATHERDD"). */
void mem_read_elements(struct vcpu *v, unsigned seg, u64 offset, void *buf, unsigned size);
void mem_write_elements(struct vcpu *v, unsigned seg, u64 offset, const void *buf, unsigned size);
void mem_probe_elements(struct vcpu *v, unsigned seg, u64 offset, unsigned size);
/* The alignment check alone. */
void mem_check_alignment(struct vcpu *v, unsigned seg, u64 offset, unsigned size);

/*
 * Read-modify-write: begin checks that the place is writable (a write fault comes before anything)
 * and reads; end writes.
 */
struct rmw {
    void *host;    /* the place, when nobody needs to hear of the write */
    void *tracked; /* otherwise, when it is RAM within one page */
    gva_t la;
    pa_t pa;       /* of .tracked */
    u8 seg;
};
/*
 * With LOCK the host's own atomic instruction works on rmw_place(), and rmw_told() follows. Where that is
 * NULL (devices, operands that cross a cache line, which some hosts refuse to lock), rmw_alone() stops
 * the processors on other threads and returns what is there now, and rmw_end() follows.
 */
static alwaysinline void *rmw_place(const struct rmw *m, unsigned size)
{
    void *p = m->host ? m->host : m->tracked;
    return p && ((uintptr_t)p & 63) + size <= 64 ? p : NULL;
}
void rmw_told_slow(struct vcpu *v, const struct rmw *m, unsigned size);
static alwaysinline void rmw_told(struct vcpu *v, const struct rmw *m, unsigned size)
{
    if (unlikely(!m->host))
        rmw_told_slow(v, m, size);
}
u64 rmw_alone(struct vcpu *v, struct rmw *m, u64 read, unsigned size);
/* For operands that no struct rmw describes. */
void mem_alone(struct vcpu *v);
void mem_together(struct vcpu *v);
u64 rmw_begin_slow(struct vcpu *v, struct rmw *m, unsigned size);
void rmw_end_slow(struct vcpu *v, struct rmw *m, u64 value, unsigned size);

#define RMW_ACCESSORS(bits)                                                                                  \
    static alwaysinline u##bits rmw_begin##bits(struct vcpu *v, unsigned seg, u64 offset, struct rmw *m)        \
    {                                                                                                       \
        gva_t la = seg_linear(v, seg, offset, bits / 8, ACCESS_READ | ACCESS_WRITE);                           \
        const struct tlb_entry *e = tlb_slot(v, la);                                                          \
        m->la = la;                                                                                         \
        m->seg = (u8)seg;                                                                                   \
        u64 page = (la + (bits / 8 - 1)) & PAGE_MASK;                                                         \
        if (likely(e->tag_write == page && e->tag_read == page)) {                                            \
            u##bits value;                                                                                  \
            m->host = (void *)(uintptr_t)(la + e->addend);                                                    \
            memcpy(&value, m->host, sizeof(value));                                                           \
            return value;                                                                                   \
        }                                                                                                   \
        m->host = NULL;                                                                                     \
        return (u##bits)rmw_begin_slow(v, m, bits / 8);                                                       \
    }                                                                                                       \
    static alwaysinline void rmw_end##bits(struct vcpu *v, struct rmw *m, u##bits value)                        \
    {                                                                                                       \
        if (likely(m->host != NULL))                                                                         \
            memcpy(m->host, &value, sizeof(value));                                                           \
        else                                                                                                \
            rmw_end_slow(v, m, value, bits / 8);                                                              \
    }
RMW_ACCESSORS(8)
RMW_ACCESSORS(16)
RMW_ACCESSORS(32)
RMW_ACCESSORS(64)
#undef RMW_ACCESSORS

/* ---- system structures: implicit supervisor accesses (descriptor tables, TSS), linear addresses ---- */
u64 sys_read(struct vcpu *v, gva_t la, unsigned size);  /* 1..8 bytes, may cross pages */
void sys_write(struct vcpu *v, gva_t la, u64 value, unsigned size);
void sys_probe_write(struct vcpu *v, gva_t la, unsigned size);

/*
 * ---- shadow stacks: 4 or 8 bytes at a linear address, as the user or as the system; #GP(0) unless canonical ----
 * No TLB serves them: their pages are writable to nothing else.
 */
u64 mem_shadow_read(struct vcpu *v, gva_t la, unsigned size, bool user);
void mem_shadow_write(struct vcpu *v, gva_t la, u64 value, unsigned size, bool user);
/* Locked: stores @value if the 8 bytes there are @expected; false if not. A write access either way. */
bool mem_shadow_cmpxchg(struct vcpu *v, gva_t la, u64 expected, u64 value, bool user);

/* ---- the debugger's view: linear memory whatever its rights; no A/D bits, no devices, no faults ---- */
bool mem_peek(struct vcpu *v, gva_t la, void *buf, size_t len);
bool mem_poke(struct vcpu *v, gva_t la, const void *buf, size_t len);

/* ---- operands ---- */
/* The offset of the memory operand: base + index << scale + displacement in the address size. */
static alwaysinline u64 insn_ea(const struct vcpu *v, const struct insn *i)
{
    const u64 *r = v->gpr; /* slots 16 and 17 follow (state.h) */
    u64 ea = r[i->base] + (r[i->index] << i->scale) + (u64)i->disp;
    if (unlikely(i->adsize != 8))
        ea &= i->adsize == 4 ? 0xffffffffu : 0xffffu;
    return ea;
}
static alwaysinline u8 reg8_get(const struct vcpu *v, unsigned byte_offset) { return ((const u8 *)v->gpr)[byte_offset]; }
static alwaysinline void reg8_set(struct vcpu *v, unsigned byte_offset, u8 x) { ((u8 *)v->gpr)[byte_offset] = x; }
static alwaysinline u16 reg16_get(const struct vcpu *v, unsigned r) { return (u16)v->gpr[r]; }
static alwaysinline void reg16_set(struct vcpu *v, unsigned r, u16 x) { memcpy(&v->gpr[r], &x, 2); }
static alwaysinline u32 reg32_get(const struct vcpu *v, unsigned r) { return (u32)v->gpr[r]; }
static alwaysinline void reg32_set(struct vcpu *v, unsigned r, u32 x) { v->gpr[r] = x; }
static alwaysinline u64 reg64_get(const struct vcpu *v, unsigned r) { return v->gpr[r]; }
static alwaysinline void reg64_set(struct vcpu *v, unsigned r, u64 x) { v->gpr[r] = x; }

/* ---- the stack ---- */
static alwaysinline u64 stack_mask(const struct vcpu *v)
{
    return v->stack_size == 8 ? ~0ull : v->stack_size == 4 ? 0xffffffffull : 0xffffull;
}
static alwaysinline void stack_set_pointer(struct vcpu *v, u64 rsp)
{
    if (likely(v->stack_size == 8))
        v->gpr[RSP] = rsp;
    else if (v->stack_size == 4)
        v->gpr[RSP] = (u32)rsp;
    else
        reg16_set(v, RSP, (u16)rsp);
}
/* Pushes @value of @size 2, 4, 8 bytes; RSP changes only after the store succeeded. */
void stack_push(struct vcpu *v, u64 value, unsigned size);
/* Reads the top without popping; *@rsp starts as RSP and is advanced: commit with stack_set_pointer. */
u64 stack_peek(struct vcpu *v, u64 *rsp, unsigned size);
