/*
 * SIMD instructions the host must not execute as they are: those whose memory accesses depend on a
 * mask or on vector indices (each element may fault), and those about the SIMD state itself.
 */
#include "cpu/bodies_simd.h"
#include "cpu/borrow.h"
#include "cpu/evex.h"
#include "cpu/isa/encode.h"

void insn_emms(struct vcpu *v, const struct insn *i)
{
    x87_set_top(v, 0);
    v->x87.ftw = 0;
}

/* Registers 16..31 exist only for EVEX and are not touched (SDM vol. 2, VZEROUPPER). */
static unsigned vex_registers(const struct vcpu *v) { return cpu_long64(v) ? 16 : 8; }

void insn_vzeroupper(struct vcpu *v, const struct insn *i)
{
    for (unsigned n = 0; n < vex_registers(v); n++)
        memset(&v->vec[n].b[16], 0, 48);
}

void insn_vzeroall(struct vcpu *v, const struct insn *i) { memset(v->vec, 0, sizeof(v->vec[0]) * vex_registers(v)); }

void insn_ldmxcsr(struct vcpu *v, const struct insn *i)
{
    u32 value = mem_read32(v, i->seg, insn_ea(v, i));
    if (value & ~v->mxcsr_mask)
        cpu_gp0(v);
    v->mxcsr = value;
}

void insn_stmxcsr(struct vcpu *v, const struct insn *i) { mem_write32(v, i->seg, insn_ea(v, i), v->mxcsr); }

/* The sign bits of @count elements of @size bytes. */
static u32 sign_mask(const u8 *p, unsigned size, unsigned count)
{
    u32 mask = 0;
    for (unsigned n = 0; n < count; n++)
        mask |= (u32)(p[n * size + size - 1] >> 7) << n;
    return mask;
}

static u64 string_destination(const struct vcpu *v, const struct insn *i)
{
    return i->adsize == 8 ? v->gpr[RDI] : i->adsize == 4 ? (u32)v->gpr[RDI] : (u16)v->gpr[RDI];
}

void insn_maskmovq(struct vcpu *v, const struct insn *i)
{
    unsigned top = v->x87.fsw >> 11 & 7;
    u8 data[8];
    memcpy(data, v->x87.st[(i->reg - top) & 7], 8);
    u32 mask = sign_mask(v->x87.st[(i->rm - top) & 7], 1, 8);
    x87_enter_mmx(v); /* processors do so even when the store then faults */
    u64 ea = string_destination(v, i);
    mem_check_alignment(v, i->seg, ea, 8);
    masked_store(v, i->seg, ea, data, 1, mask);
}

void insn_maskmovdqu(struct vcpu *v, const struct insn *i)
{
    u64 ea = string_destination(v, i);
    mem_check_alignment(v, i->seg, ea, 8);
    masked_store(v, i->seg, ea, v->vec[i->reg].b, 1, sign_mask(v->vec[i->rm].b, 1, 16));
}

/* VMASKMOV and VPMASKMOV: the mask in vvvv, loads into reg (0F38 2C 2D 8C), stores from it (2E 2F 8E). */
static void vmaskmov(struct vcpu *v, const struct insn *i, unsigned size)
{
    unsigned bytes = 16u << i->vl;
    u32 mask = sign_mask(v->vec[i->vvvv].b, size, bytes / size);
    u64 ea = insn_ea(v, i);
    if (i->opcode & 2) {
        masked_store(v, i->seg, ea, v->vec[i->reg].b, size, mask);
        return;
    }
    union vec_reg value = { 0 };
    masked_load(v, i->seg, ea, value.b, size, mask);
    v->vec[i->reg] = value;
}

void insn_vmaskmovps(struct vcpu *v, const struct insn *i) { vmaskmov(v, i, 4); }
void insn_vmaskmovpd(struct vcpu *v, const struct insn *i) { vmaskmov(v, i, 8); }
void insn_vpmaskmovd(struct vcpu *v, const struct insn *i) { vmaskmov(v, i, 4); }
void insn_vpmaskmovq(struct vcpu *v, const struct insn *i) { vmaskmov(v, i, 8); }

/*
 * Gathers. Elements are done from the lowest up; each clears its mask element, so a fault in the
 * middle leaves what is done and a restart continues there (SDM vol. 2, VGATHERDPS/VGATHERDPD).
 */
static void gather(struct vcpu *v, const struct insn *i, unsigned data, unsigned index)
{
    if (i->reg == i->index || i->reg == i->vvvv || i->index == i->vvvv)
        cpu_ud(v);
    unsigned bytes = 16u << i->vl, count = bytes / (data > index ? data : index);
    union vec_reg *dst = &v->vec[i->reg], *mask = &v->vec[i->vvvv];
    const union vec_reg *idx = &v->vec[i->index];
    u64 base = v->gpr[i->base] + (u64)i->disp;

    for (unsigned n = 0; n < count; n++) {
        if (!(mask->b[n * data + data - 1] & 0x80)) {
            memset(&mask->b[n * data], 0, data);
            continue;
        }
        u64 ea = base + ((u64)(index == 4 ? (s64)(s32)idx->d[n] : (s64)idx->q[n]) << i->scale);
        if (i->adsize == 4)
            ea = (u32)ea;
        if (unlikely(v->rflags & FL_AC))
            mem_read_elements(v, i->seg, ea, &dst->b[n * data], data);
        else if (data == 4)
            dst->d[n] = mem_read32(v, i->seg, ea);
        else
            dst->q[n] = mem_read64(v, i->seg, ea);
        memset(&mask->b[n * data], 0, data);
    }
    memset(mask, 0, sizeof(*mask));
    memset(&dst->b[count * data], 0, sizeof(*dst) - count * data);
}

void insn_vpgatherdd(struct vcpu *v, const struct insn *i) { gather(v, i, 4, 4); }
void insn_vpgatherdq(struct vcpu *v, const struct insn *i) { gather(v, i, 8, 4); }
void insn_vpgatherqd(struct vcpu *v, const struct insn *i) { gather(v, i, 4, 8); }
void insn_vpgatherqq(struct vcpu *v, const struct insn *i) { gather(v, i, 8, 8); }
void insn_vgatherdps(struct vcpu *v, const struct insn *i) { gather(v, i, 4, 4); }
void insn_vgatherdpd(struct vcpu *v, const struct insn *i) { gather(v, i, 8, 4); }
void insn_vgatherqps(struct vcpu *v, const struct insn *i) { gather(v, i, 4, 8); }
void insn_vgatherqpd(struct vcpu *v, const struct insn *i) { gather(v, i, 8, 8); }
