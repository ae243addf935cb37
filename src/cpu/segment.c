/*
 * Segments: descriptors, selector loads with every check, limit checks, and the instructions that
 * read, write or examine selectors. Stack frames on stacks that are not current yet live here too.
 * Manual: Intel SDM 325462 (2023), vol. 3 "Protection", vol. 2 of each instruction.
 */
#include "cpu/operand.h"
#include "cpu/system.h"

/* ---- descriptors ---- */

void segment_unpack(struct segment *s, u16 sel, u64 desc)
{
    u32 limit = (u32)(desc & 0xffff) | ((u32)(desc >> 32) & 0xf0000);
    s->sel = sel;
    s->base = (desc >> 16 & 0xffffff) | (desc >> 56) << 24;
    s->ar = (u32)(desc >> 40) & 0xf0ff;
    s->limit = s->ar & AR_G ? limit << 12 | 0xfff : limit;
}

/* Linear address of @sel's descriptor if @bytes of it lie inside its table. */
static bool descriptor_address(const struct vcpu *v, u16 sel, unsigned bytes, gva_t *la)
{
    u64 base, limit;
    if (sel & 4) {
        const struct segment *ldt = &v->seg[SEG_LDTR];
        if (ldt->ar & AR_UNUSABLE)
            return false;
        base = ldt->base;
        limit = ldt->limit;
    } else {
        base = v->gdtr.base;
        limit = v->gdtr.limit;
    }
    if ((u64)(sel & ~7u) + bytes - 1 > limit)
        return false;
    *la = base + (sel & ~7u);
    return true;
}

bool cpu_read_descriptor(struct vcpu *v, u16 sel, u64 *desc)
{
    gva_t la;
    if (!descriptor_address(v, sel, 8, &la))
        return false;
    *desc = sys_read(v, la, 8);
    return true;
}

bool read_system_descriptor(struct vcpu *v, u16 sel, struct descriptor *d)
{
    gva_t la;
    bool wide = cpu_lma(v);
    if (!descriptor_address(v, sel, wide ? 16 : 8, &la))
        return false;
    d->lo = sys_read(v, la, 8);
    d->hi = wide ? sys_read(v, la + 8, 8) : 0;
    return true;
}

static void write_type_byte(struct vcpu *v, u16 sel, u64 desc, unsigned set)
{
    gva_t la;
    if (descriptor_address(v, sel, 8, &la))
        sys_write(v, la + 5, (desc >> 40 & 0xff) | set, 1);
}

void desc_set_accessed(struct vcpu *v, u16 sel, u64 desc)
{
    if (!(desc_type(desc) & TYPE_ACCESSED))
        write_type_byte(v, sel, desc, TYPE_ACCESSED);
}

/* ---- loading segment registers ---- */

void segment_set_null(struct vcpu *v, unsigned seg, u16 sel, unsigned dpl)
{
    struct segment *s = &v->seg[seg];
    s->sel = sel;
    /* AMD processors before CPUID.NullSelectorClearsBase keep base and limit. */
    if (!cpu_is_amd(v) || cpu_has(v, FEAT_NULL_SEG_CLEARS_BASE)) {
        s->base = 0;
        s->limit = 0;
    }
    s->ar = AR_UNUSABLE | (seg == SEG_SS ? AR_SET_DPL(dpl) | (cpu_long64(v) ? AR_DB : 0) : 0);
}

void segment_set_v86(struct vcpu *v, unsigned seg, u16 sel)
{
    v->seg[seg] = (struct segment){.sel = sel, .base = (u64)sel << 4, .limit = 0xffff, .ar = AR_V86};
}

void cpu_load_segment_real(struct vcpu *v, unsigned seg, u16 sel)
{
    struct segment *s = &v->seg[seg];
    if (v->mode == MODE_V86) {
        segment_set_v86(v, seg, sel);
    } else {
        /* The limit stays what protected mode left ("unreal mode"). */
        if (s->ar & AR_UNUSABLE)
            s->limit = 0xffff;
        s->sel = sel;
        s->base = (u64)sel << 4;
        s->ar = (s->ar & (AR_DB | AR_G | AR_AVL)) | AR_P | AR_S | 3;
    }
    cpu_segments_changed(v);
}

/* Brings the derived state up to date after data segment @seg was loaded. */
static void segment_loaded(struct vcpu *v, unsigned seg)
{
    if (v->mode == MODE_LONG64)
        v->seg_base[seg] = seg >= SEG_FS ? v->seg[seg].base : 0;
    else
        cpu_segments_changed(v);
}

static void load_stack_segment(struct vcpu *v, u16 sel)
{
    u64 desc;
    if (is_null(sel)) {
        /* Only 64-bit code outside ring 3 may run on a null SS. */
        if (v->mode != MODE_LONG64 || v->cpl == 3 || rpl_of(sel) != v->cpl)
            cpu_gp0(v);
        segment_set_null(v, SEG_SS, sel, v->cpl);
        segment_loaded(v, SEG_SS);
        return;
    }
    if (!cpu_read_descriptor(v, sel, &desc))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (rpl_of(sel) != v->cpl || !desc_is_writable_data(desc) || desc_dpl(desc) != v->cpl)
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (!desc_present(desc))
        cpu_raise_error(v, VEC_SS, sel_error(sel));
    desc_set_accessed(v, sel, desc);
    segment_unpack(&v->seg[SEG_SS], sel, desc | (u64)TYPE_ACCESSED << 40);
    segment_loaded(v, SEG_SS);
}

void cpu_load_segment(struct vcpu *v, unsigned seg, u16 sel)
{
    u64 desc;
    if (!cpu_protected(v)) {
        cpu_load_segment_real(v, seg, sel);
        return;
    }
    if (seg == SEG_SS) {
        load_stack_segment(v, sel);
        return;
    }
    if (is_null(sel)) {
        segment_set_null(v, seg, sel, 0);
        segment_loaded(v, seg);
        return;
    }
    if (!cpu_read_descriptor(v, sel, &desc))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    unsigned type = desc_type(desc);
    if (!desc_s(desc) || (type & (TYPE_CODE | TYPE_RW)) == TYPE_CODE)
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if ((type & (TYPE_CODE | TYPE_CONFORMING)) != (TYPE_CODE | TYPE_CONFORMING) &&
        (rpl_of(sel) > desc_dpl(desc) || v->cpl > desc_dpl(desc)))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (!desc_present(desc))
        cpu_raise_error(v, VEC_NP, sel_error(sel));
    desc_set_accessed(v, sel, desc);
    segment_unpack(&v->seg[seg], sel, desc | (u64)TYPE_ACCESSED << 40);
    segment_loaded(v, seg);
}

void load_cs(struct vcpu *v, u16 sel, u64 desc, unsigned cpl)
{
    desc_set_accessed(v, sel, desc);
    segment_unpack(&v->seg[SEG_CS], (u16)((sel & ~3u) | cpl), desc | (u64)TYPE_ACCESSED << 40);
}

void load_ss(struct vcpu *v, u16 sel, u64 desc, unsigned cpl)
{
    if (is_null(sel)) {
        segment_set_null(v, SEG_SS, sel, cpl);
        return;
    }
    desc_set_accessed(v, sel, desc);
    segment_unpack(&v->seg[SEG_SS], sel, desc | (u64)TYPE_ACCESSED << 40);
}

void segments_drop_privileged(struct vcpu *v, unsigned cpl)
{
    static const u8 segs[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned n = 0; n < ARRAY_SIZE(segs); n++) {
        struct segment *s = &v->seg[segs[n]];
        if ((s->ar & AR_UNUSABLE) || AR_DPL(s->ar) >= cpl)
            continue;
        if ((s->ar & (TYPE_CODE | TYPE_CONFORMING)) == (TYPE_CODE | TYPE_CONFORMING))
            continue;
        /* The selector becomes null; the base stays, and 64-bit code goes on using that of FS and GS. */
        s->sel = 0;
        s->ar = AR_UNUSABLE;
    }
}

void check_target(struct vcpu *v, u64 desc, u64 rip, u32 ext)
{
    if (cpu_lma(v) && desc_l(desc)) {
        if (!cpu_canonical(v, rip))
            cpu_raise_error(v, VEC_GP, ext);
        return;
    }
    struct segment s;
    segment_unpack(&s, 0, desc);
    if (rip > s.limit)
        cpu_raise_error(v, VEC_GP, ext);
}

/* ---- limit and type checks ---- */

static bool inside_limit(const struct segment *s, u64 offset, unsigned size)
{
    u64 last = offset + size - 1;
    if ((s->ar & (AR_S | TYPE_CODE | TYPE_EXPAND_DOWN)) == (AR_S | TYPE_EXPAND_DOWN))
        return offset > s->limit && last <= (s->ar & AR_DB ? 0xffffffffu : 0xffffu);
    return last <= s->limit;
}

gva_t seg_linear_slow(struct vcpu *v, unsigned seg, u64 offset, unsigned size, u32 access)
{
    if (v->mode == MODE_LONG64)
        return v->seg_base[seg] + offset;
    const struct segment *s = &v->seg[seg];
    bool ok = inside_limit(s, offset, size ? size : 1);
    if (cpu_protected(v)) {
        unsigned type = s->ar & AR_TYPE;
        if ((s->ar & AR_UNUSABLE) || !(s->ar & AR_P))
            ok = false;
        else if (type & TYPE_CODE)
            ok = ok && !(access & ACCESS_WRITE) && ((type & TYPE_RW) || !(access & ACCESS_READ));
        else if (access & ACCESS_WRITE)
            ok = ok && (type & TYPE_RW);
    }
    if (!ok)
        cpu_raise_error(v, seg == SEG_SS ? VEC_SS : VEC_GP, 0);
    return (v->seg_base[seg] + offset) & v->linear_mask;
}

/* ---- frames on a stack ---- */

void frame_current(const struct vcpu *v, struct frame *f, u32 error)
{
    f->ss = v->seg[SEG_SS];
    f->sp = v->gpr[RSP];
    f->mask = stack_mask(v);
    f->switched = false;
    f->flat64 = v->mode == MODE_LONG64;
    f->error = error;
}

static void store_linear(struct vcpu *v, gva_t la, u64 value, unsigned size)
{
    if (size == 8)
        lin_write64(v, SEG_SS, la, value);
    else if (size == 4)
        lin_write32(v, SEG_SS, la, (u32)value);
    else
        lin_write16(v, SEG_SS, la, (u16)value);
}

void frame_write(struct vcpu *v, struct frame *f, const u64 *values, unsigned count, unsigned size)
{
    u64 total = (u64)count * size;
    if (f->flat64) {
        if (!cpu_canonical(v, f->sp - total) || !cpu_canonical(v, f->sp - 1))
            cpu_raise_error(v, VEC_SS, f->error);
    } else {
        for (unsigned n = 1; n <= count; n++)
            if (!inside_limit(&f->ss, (f->sp - (u64)n * size) & f->mask, size))
                cpu_raise_error(v, VEC_SS, f->error);
    }
    for (unsigned n = count; n-- > 0;) {
        u64 offset = (f->sp - (u64)(n + 1) * size) & f->mask;
        gva_t la = f->flat64 ? offset : (f->ss.base + offset) & 0xffffffffu;
        if (f->switched)
            sys_write(v, la, values[n] & size_bits(size), size);
        else
            store_linear(v, la, values[n], size);
    }
    f->sp = (f->sp & ~f->mask) | ((f->sp - total) & f->mask);
}

void frame_commit_sp(struct vcpu *v, const struct frame *f)
{
    v->gpr[RSP] = f->mask == 0xffffffffull ? f->sp & f->mask : f->sp;
}

/* ---- stacks of inner privilege levels ---- */

void tss_stack(struct vcpu *v, unsigned cpl, u32 ext, struct frame *f, u16 *ss_sel, u64 *ss_desc)
{
    const struct segment *tr = &v->seg[SEG_TR];
    u64 esp, desc;
    u16 sel;
    if ((tr->ar & AR_TYPE) == SYS_TSS32_BUSY || (tr->ar & AR_TYPE) == SYS_TSS32) {
        u32 at = 4 + cpl * 8;
        if (at + 5 > tr->limit)
            cpu_raise_error(v, VEC_TS, sel_error(tr->sel) | ext);
        esp = sys_read(v, tr->base + at, 4);
        sel = (u16)sys_read(v, tr->base + at + 4, 2);
    } else {
        u32 at = 2 + cpl * 4;
        if (at + 3 > tr->limit)
            cpu_raise_error(v, VEC_TS, sel_error(tr->sel) | ext);
        esp = sys_read(v, tr->base + at, 2);
        sel = (u16)sys_read(v, tr->base + at + 2, 2);
    }
    if (is_null(sel))
        cpu_raise_error(v, VEC_TS, ext);
    if (!cpu_read_descriptor(v, sel, &desc) || rpl_of(sel) != cpl || desc_dpl(desc) != cpl || !desc_is_writable_data(desc))
        cpu_raise_error(v, VEC_TS, sel_error(sel) | ext);
    if (!desc_present(desc))
        cpu_raise_error(v, VEC_SS, sel_error(sel) | ext);
    segment_unpack(&f->ss, sel, desc);
    f->sp = esp;
    f->mask = f->ss.ar & AR_DB ? 0xffffffffull : 0xffffull;
    f->switched = true;
    f->flat64 = false;
    f->error = sel_error(sel) | ext;
    *ss_sel = sel;
    *ss_desc = desc;
}

u64 tss_stack64(struct vcpu *v, unsigned cpl, unsigned ist, u32 ext)
{
    const struct segment *tr = &v->seg[SEG_TR];
    u32 at = ist ? 36 + (ist - 1) * 8 : 4 + cpl * 8;
    if (at + 7 > tr->limit)
        cpu_raise_error(v, VEC_TS, sel_error(tr->sel) | ext);
    return sys_read(v, tr->base + at, 8);
}

/* ---- MOV, PUSH, POP of segment registers; LDS and relatives ---- */

void insn_mov_sreg_load(struct vcpu *v, const struct insn *i)
{
    unsigned seg = i->reg & 7;
    if (seg == SEG_CS || seg > SEG_GS)
        cpu_ud(v);
    cpu_load_segment(v, seg, operand_rm16(v, i));
    if (seg == SEG_SS)
        cpu_set_shadow(v, SHADOW_MOVSS);
}

void insn_mov_sreg_store(struct vcpu *v, const struct insn *i)
{
    unsigned seg = i->reg & 7;
    if (seg > SEG_GS)
        cpu_ud(v);
    u16 sel = v->seg[seg].sel;
    if (i->flags & INSN_MEM)
        mem_write16(v, i->seg, insn_ea(v, i), sel);
    else
        gpr_set(v, i->rm, sel, i->opsize);
}

/* 06 0E 16 1E (and 07 17 1F) name ES CS SS DS; 0F A0/A1 FS, 0F A8/A9 GS. */
static unsigned opcode_segment(const struct insn *i) { return i->opcode >> 3 & 7; }

void insn_push_sreg(struct vcpu *v, const struct insn *i)
{
    stack_push(v, v->seg[opcode_segment(i)].sel, i->opsize);
}

void insn_pop_sreg(struct vcpu *v, const struct insn *i)
{
    unsigned seg = opcode_segment(i);
    unsigned width = v->stack_size; /* POP SS may change it: RSP moves on the old stack */
    u64 rsp = v->gpr[RSP];
    u16 sel = (u16)stack_peek(v, &rsp, i->opsize);
    cpu_load_segment(v, seg, sel);
    gpr_set(v, RSP, rsp, width);
    if (seg == SEG_SS)
        cpu_set_shadow(v, SHADOW_MOVSS);
}

void insn_load_far_pointer(struct vcpu *v, const struct insn *i)
{
    unsigned seg;
    switch (i->opcode) {
    case 0xc4: seg = SEG_ES; break;
    case 0xc5: seg = SEG_DS; break;
    case 0xb2: seg = SEG_SS; break;
    case 0xb4: seg = SEG_FS; break;
    default: seg = SEG_GS; break;
    }
    u64 ea = insn_ea(v, i);
    u64 offset = i->opsize == 8 ? mem_read64(v, i->seg, ea)
                 : i->opsize == 4 ? mem_read32(v, i->seg, ea)
                                  : mem_read16(v, i->seg, ea);
    u64 next = ea + i->opsize;
    if (i->adsize != 8)
        next &= size_bits(i->adsize);
    u16 sel = mem_read16(v, i->seg, next);
    cpu_load_segment(v, seg, sel);
    gpr_set(v, i->reg, offset, i->opsize);
}

/* ---- LLDT, LTR, SLDT, STR ---- */

/* The base of a 16-byte system descriptor, whose upper half has a type field that must be 0. */
static u64 wide_base(struct vcpu *v, u16 sel, const struct descriptor *d, u64 low)
{
    if (!cpu_lma(v))
        return low;
    if (d->hi & (0x1full << 40))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    u64 base = low | d->hi << 32;
    if (!cpu_canonical_any(v, base))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    return base;
}

void insn_lldt(struct vcpu *v, const struct insn *i)
{
    u16 sel = operand_rm16(v, i);
    struct descriptor d;
    struct segment s;
    if (is_null(sel)) {
        v->seg[SEG_LDTR].sel = sel;
        v->seg[SEG_LDTR].ar = AR_UNUSABLE;
        return;
    }
    if ((sel & 4) || !read_system_descriptor(v, sel, &d) || desc_s(d.lo) || desc_type(d.lo) != SYS_LDT)
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (!desc_present(d.lo))
        cpu_raise_error(v, VEC_NP, sel_error(sel));
    segment_unpack(&s, sel, d.lo);
    s.base = wide_base(v, sel, &d, s.base);
    v->seg[SEG_LDTR] = s;
    v->seg_base[SEG_LDTR] = s.base;
}

void insn_ltr(struct vcpu *v, const struct insn *i)
{
    u16 sel = operand_rm16(v, i);
    struct descriptor d;
    struct segment s;
    if (is_null(sel))
        cpu_gp0(v);
    if ((sel & 4) || !read_system_descriptor(v, sel, &d) || desc_s(d.lo))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    unsigned type = desc_type(d.lo);
    if (type != SYS_TSS32 && (type != SYS_TSS16 || cpu_lma(v)))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (!desc_present(d.lo))
        cpu_raise_error(v, VEC_NP, sel_error(sel));
    segment_unpack(&s, sel, d.lo | (u64)TYPE_BUSY << 40);
    s.base = wide_base(v, sel, &d, s.base);
    write_type_byte(v, sel, d.lo, TYPE_BUSY);
    v->seg[SEG_TR] = s;
    v->seg_base[SEG_TR] = s.base;
}

static void store_selector(struct vcpu *v, const struct insn *i, u16 sel)
{
    if (i->flags & INSN_MEM)
        mem_write16(v, i->seg, insn_ea(v, i), sel);
    else
        gpr_set(v, i->rm, sel, i->opsize);
}

void insn_sldt(struct vcpu *v, const struct insn *i) { store_selector(v, i, v->seg[SEG_LDTR].sel); }
void insn_str(struct vcpu *v, const struct insn *i) { store_selector(v, i, v->seg[SEG_TR].sel); }

/* ---- LAR, LSL, VERR, VERW, ARPL ---- */

static void set_zf(struct vcpu *v, bool on) { v->aflags = on ? v->aflags | (u32)FL_ZF : v->aflags & ~(u32)FL_ZF; }

/* System types each instruction accepts: bit masks over the type field. */
#define LAR_TYPES (BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(9) | BIT(11) | BIT(12))
#define LSL_TYPES (BIT(1) | BIT(2) | BIT(3) | BIT(9) | BIT(11))
#define LAR_TYPES_LMA (BIT(2) | BIT(9) | BIT(11) | BIT(12))
#define LSL_TYPES_LMA (BIT(2) | BIT(9) | BIT(11))

/* Whether @sel names a descriptor that the instruction accepts and the privilege rules let it see. */
static bool visible(struct vcpu *v, u16 sel, u32 system_types, u64 *desc)
{
    if (is_null(sel) || !cpu_read_descriptor(v, sel, desc))
        return false;
    if (desc_s(*desc)) {
        if (desc_is_code(*desc) && desc_is_conforming(*desc))
            return true;
    } else if (!(system_types & BIT(desc_type(*desc)))) {
        return false;
    }
    return v->cpl <= desc_dpl(*desc) && rpl_of(sel) <= desc_dpl(*desc);
}

void insn_lar(struct vcpu *v, const struct insn *i)
{
    u16 sel = operand_rm16(v, i);
    u64 desc;
    bool ok = visible(v, sel, cpu_lma(v) ? LAR_TYPES_LMA : LAR_TYPES, &desc);
    if (ok)
        gpr_set(v, i->reg, desc >> 32 & 0x00f0ff00, i->opsize);
    set_zf(v, ok);
}

void insn_lsl(struct vcpu *v, const struct insn *i)
{
    u16 sel = operand_rm16(v, i);
    u64 desc;
    bool ok = visible(v, sel, cpu_lma(v) ? LSL_TYPES_LMA : LSL_TYPES, &desc);
    if (ok) {
        struct segment s;
        segment_unpack(&s, sel, desc);
        gpr_set(v, i->reg, s.limit, i->opsize);
    }
    set_zf(v, ok);
}

void insn_verr(struct vcpu *v, const struct insn *i)
{
    u64 desc;
    set_zf(v, visible(v, operand_rm16(v, i), 0, &desc) && (!desc_is_code(desc) || (desc_type(desc) & TYPE_RW)));
}

void insn_verw(struct vcpu *v, const struct insn *i)
{
    u64 desc;
    set_zf(v, visible(v, operand_rm16(v, i), 0, &desc) && desc_is_writable_data(desc));
}

void insn_arpl(struct vcpu *v, const struct insn *i)
{
    u16 src = (u16)v->gpr[i->reg];
    if (i->flags & INSN_MEM) { /* written only when it changes, as processors do: SDM vol. 2 "ARPL", Operation */
        u64 ea = insn_ea(v, i);
        u16 dst = (u16)mem_get(v, i->seg, ea, 2);
        bool raise = (dst & 3) < (src & 3);
        if (raise)
            mem_put(v, i->seg, ea, (u16)((dst & ~3u) | (src & 3u)), 2);
        set_zf(v, raise);
        return;
    }
    u16 dst = (u16)v->gpr[i->rm];
    bool raise = (dst & 3) < (src & 3);
    if (raise)
        reg16_set(v, i->rm, (u16)((dst & ~3u) | (src & 3u)));
    set_zf(v, raise);
}
