/*
 * AVX-512 instructions that the host does not execute for the guest: those on opmask registers alone
 * (which need nothing of the host), gathers and scatters, whose elements may each fault, and memory
 * under a mask, of which only the selected elements may be touched.
 */
#include "cpu/evex.h"
#include "cpu/bodies_simd.h"

/* ---- opmask registers (SDM vol. 2, "KADDW/KADDB/KADDQ/KADDD" and their neighbours) ---- */

/* Bits of the row's opmask operands. */
static unsigned kbits(const struct insn *i)
{
    const struct insn_row *row = insn_row(i);
    unsigned n = row->opnd[0].kind == OPND_MASK_REG ? 0 : 1;
    return row->opnd[n].size * 8u;
}

static u64 kmask(unsigned bits) { return bits == 64 ? ~0ull : (1ull << bits) - 1; }
static void kset(struct vcpu *v, const struct insn *i, u64 value) { v->k[i->reg & 7] = value & kmask(kbits(i)); }
static u64 ka(const struct vcpu *v, const struct insn *i) { return v->k[i->vvvv & 7]; }
static u64 kb(const struct vcpu *v, const struct insn *i) { return v->k[i->rm & 7]; }

void insn_kand(struct vcpu *v, const struct insn *i) { kset(v, i, ka(v, i) & kb(v, i)); }
void insn_kandn(struct vcpu *v, const struct insn *i) { kset(v, i, ~ka(v, i) & kb(v, i)); }
void insn_kor(struct vcpu *v, const struct insn *i) { kset(v, i, ka(v, i) | kb(v, i)); }
void insn_kxor(struct vcpu *v, const struct insn *i) { kset(v, i, ka(v, i) ^ kb(v, i)); }
void insn_kxnor(struct vcpu *v, const struct insn *i) { kset(v, i, ~(ka(v, i) ^ kb(v, i))); }
void insn_kadd(struct vcpu *v, const struct insn *i) { kset(v, i, ka(v, i) + kb(v, i)); }
void insn_knot(struct vcpu *v, const struct insn *i) { kset(v, i, ~kb(v, i)); }

void insn_kunpck(struct vcpu *v, const struct insn *i)
{
    unsigned half = kbits(i) / 2;
    kset(v, i, ka(v, i) << half | (kb(v, i) & kmask(half)));
}

void insn_kshiftl(struct vcpu *v, const struct insn *i)
{
    unsigned count = (u8)i->imm;
    kset(v, i, count < kbits(i) ? kb(v, i) << count : 0);
}

void insn_kshiftr(struct vcpu *v, const struct insn *i)
{
    unsigned count = (u8)i->imm;
    kset(v, i, count < kbits(i) ? (kb(v, i) & kmask(kbits(i))) >> count : 0);
}

static void kflags(struct vcpu *v, bool zf, bool cf) { v->aflags = (zf ? (u32)FL_ZF : 0) | (cf ? (u32)FL_CF : 0); }

void insn_kortest(struct vcpu *v, const struct insn *i)
{
    u64 mask = kmask(kbits(i)), value = (v->k[i->reg & 7] | kb(v, i)) & mask;
    kflags(v, value == 0, value == mask);
}

void insn_ktest(struct vcpu *v, const struct insn *i)
{
    u64 mask = kmask(kbits(i)), a = v->k[i->reg & 7], b = kb(v, i);
    kflags(v, (a & b & mask) == 0, (~a & b & mask) == 0);
}

void insn_kmov_load(struct vcpu *v, const struct insn *i)
{
    u64 value = kb(v, i);
    if (i->flags & INSN_MEM) {
        u64 ea = insn_ea(v, i);
        switch (kbits(i)) {
        case 8: value = mem_read8(v, i->seg, ea); break;
        case 16: value = mem_read16(v, i->seg, ea); break;
        case 32: value = mem_read32(v, i->seg, ea); break;
        default: value = mem_read64(v, i->seg, ea); break;
        }
    }
    kset(v, i, value);
}

void insn_kmov_store(struct vcpu *v, const struct insn *i)
{
    u64 ea = insn_ea(v, i), value = v->k[i->reg & 7];
    switch (kbits(i)) {
    case 8: mem_write8(v, i->seg, ea, (u8)value); break;
    case 16: mem_write16(v, i->seg, ea, (u16)value); break;
    case 32: mem_write32(v, i->seg, ea, (u32)value); break;
    default: mem_write64(v, i->seg, ea, value); break;
    }
}

void insn_kmov_from_gpr(struct vcpu *v, const struct insn *i) { kset(v, i, v->gpr[i->rm & 15]); }
void insn_kmov_to_gpr(struct vcpu *v, const struct insn *i) { v->gpr[i->reg & 15] = kb(v, i) & kmask(kbits(i)); }

/* ---- memory under a mask ---- */

/* Takes the lowest run of set bits off @mask: its first bit and its length. */
static unsigned next_run(u64 *mask, unsigned *length)
{
    unsigned first = (unsigned)__builtin_ctzll(*mask);
    u64 rest = *mask >> first;
    *length = ~rest ? (unsigned)__builtin_ctzll(~rest) : 64;
    *mask &= ~(kmask(*length) << first);
    return first;
}

void masked_load(struct vcpu *v, unsigned seg, u64 ea, u8 *buf, unsigned size, u64 mask)
{
    while (mask) {
        unsigned n, first = next_run(&mask, &n);
        mem_read_elements(v, seg, ea + first * size, buf + first * size, n * size);
    }
}

void masked_probe_write(struct vcpu *v, unsigned seg, u64 ea, unsigned size, u64 mask)
{
    while (mask) {
        unsigned n, first = next_run(&mask, &n);
        mem_probe_elements(v, seg, ea + first * size, n * size);
    }
}

void masked_store(struct vcpu *v, unsigned seg, u64 ea, const u8 *buf, unsigned size, u64 mask)
{
    masked_probe_write(v, seg, ea, size, mask);
    while (mask) {
        unsigned n, first = next_run(&mask, &n);
        mem_write_elements(v, seg, ea + first * size, buf + first * size, n * size);
    }
}

/* ---- gathers and scatters ---- */

/* Elements, from the lowest up, until one faults; the mask says what is left to do when the instruction is restarted. */
struct vsib {
    u64 base;
    unsigned data, count; /* bytes of a data element; elements */
    bool wide;            /* indices are quadwords */
    bool address32;
};

static struct vsib vsib_of(const struct vcpu *v, const struct insn *i, unsigned index_operand)
{
    const struct insn_row *row = insn_row(i);
    struct vsib s = { .base = v->gpr[i->base] + (u64)i->disp, .data = row->elem, .wide = row->opnd[index_operand].size == 8,
                      .address32 = i->adsize == 4 };
    unsigned index = s.wide ? 8 : 4;
    s.count = (16u << i->vl) / (s.data > index ? s.data : index);
    return s;
}

static u64 vsib_ea(const struct vsib *s, const union vec_reg *index, unsigned n, unsigned scale)
{
    u64 ea = s->base + ((u64)(s->wide ? (s64)index->q[n] : (s64)(s32)index->d[n]) << scale);
    return s->address32 ? (u32)ea : ea;
}

void insn_evex_gather(struct vcpu *v, const struct insn *i)
{
    struct vsib s = vsib_of(v, i, 1);
    union vec_reg *dst = &v->vec[i->reg];
    u64 *mask = &v->k[i->mask];
    for (unsigned n = 0; n < s.count; n++) {
        if (!(*mask >> n & 1))
            continue;
        u64 ea = vsib_ea(&s, &v->vec[i->index], n, i->scale);
        if (s.data == 4)
            dst->d[n] = mem_read32(v, i->seg, ea);
        else
            dst->q[n] = mem_read64(v, i->seg, ea);
        *mask &= ~(1ull << n);
    }
    *mask = 0;
    memset(&dst->b[s.count * s.data], 0, sizeof(*dst) - s.count * s.data);
}

void insn_evex_scatter(struct vcpu *v, const struct insn *i)
{
    struct vsib s = vsib_of(v, i, 0);
    const union vec_reg *src = &v->vec[i->reg];
    u64 *mask = &v->k[i->mask];
    for (unsigned n = 0; n < s.count; n++) {
        if (!(*mask >> n & 1))
            continue;
        u64 ea = vsib_ea(&s, &v->vec[i->index], n, i->scale);
        if (s.data == 4)
            mem_write32(v, i->seg, ea, src->d[n]);
        else
            mem_write64(v, i->seg, ea, src->q[n]);
        *mask &= ~(1ull << n);
    }
    *mask = 0;
}
