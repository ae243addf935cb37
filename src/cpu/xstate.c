/*
 * FXSAVE and the XSAVE feature set (SDM vol. 1, chapter 13 "Managing State Using the XSAVE Feature
 * Set"; vol. 2, the instructions' pages). An area is built in a buffer as a list of pieces; every
 * piece is checked before the first is written, and read completely before any register changes.
 *
 * Of the optimisations, the init one is done where the manual demands it (XSAVEC, XSAVES) and where
 * it may be (XSAVEOPT); the modified one, which a processor may always skip, is not.
 */
#include "cpu/xstate.h"
#include "cpu/bodies_simd.h"
#include "cpu/borrow.h"
#include "cpu/cet.h"

#define LEGACY_SIZE 512u
#define HEADER 512u       /* XSTATE_BV, XCOMP_BV, 48 reserved bytes */
#define EXTENDED 576u
#define AREA_MAX 4096u
#define XCOMP_COMPACTED BIT64(63)
#define MXCSR_INIT 0x1f80u

static const struct xstate_component components[] = {
    { XSTATE_AVX, false, 256, 576 },        { XSTATE_OPMASK, false, 64, 1088 }, { XSTATE_ZMM_HI256, false, 512, 1152 },
    { XSTATE_HI16_ZMM, false, 1024, 1664 }, { XSTATE_PKRU, false, 8, 2688 },    { XSTATE_CET_U, true, 16, 0 },
    { XSTATE_CET_S, true, 24, 0 },
};

u64 xstate_supported(const struct vcpu *v)
{
    if (!cpu_has(v, FEAT_XSAVE))
        return 0;
    u64 mask = XCR0_X87 | XCR0_SSE;
    if (cpu_has(v, FEAT_AVX))
        mask |= XCR0_AVX;
    if (cpu_has(v, FEAT_AVX512F))
        mask |= XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM;
    if (cpu_has(v, FEAT_PKU))
        mask |= XCR0_PKRU;
    return mask;
}

u64 xstate_supervisor(const struct vcpu *v)
{
    if (!cpu_has(v, FEAT_XSAVES))
        return 0;
    return cpu_has(v, FEAT_CET_SS) || cpu_has(v, FEAT_CET_IBT) ? BIT64(XSTATE_CET_U) | BIT64(XSTATE_CET_S) : 0;
}

const struct xstate_component *xstate_component(const struct vcpu *v, unsigned number)
{
    for (unsigned n = 0; n < ARRAY_SIZE(components); n++)
        if (components[n].number == number && ((xstate_supported(v) | xstate_supervisor(v)) >> number & 1))
            return &components[n];
    return NULL;
}

/* Where a component is: standard format by the table, compacted packed in order of @xcomp. */
static u32 component_offset(const struct xstate_component *c, u64 xcomp, bool compacted)
{
    if (!compacted)
        return c->offset;
    u32 at = EXTENDED;
    for (unsigned n = 0; components[n].number != c->number; n++)
        if (xcomp >> components[n].number & 1)
            at += components[n].size;
    return at;
}

u32 xstate_size(const struct vcpu *v, u64 mask, bool compacted)
{
    u32 size = EXTENDED;
    for (unsigned n = 0; n < ARRAY_SIZE(components); n++) {
        const struct xstate_component *c = &components[n];
        if (!(mask >> c->number & 1) || (c->supervisor && !compacted))
            continue;
        u32 end = component_offset(c, mask, compacted) + c->size;
        if (end > size)
            size = end;
    }
    return size;
}

bool xstate_xcr0_valid(const struct vcpu *v, u64 value)
{
    const u64 avx512 = XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM;
    if ((value & ~xstate_supported(v)) || !(value & XCR0_X87))
        return false;
    if ((value & XCR0_AVX) && !(value & XCR0_SSE))
        return false;
    return !(value & avx512) || ((value & avx512) == avx512 && (value & XCR0_AVX));
}

/* XMM8..15 and their extensions are state only in 64-bit mode (SDM vol. 1, 13.6 and 13.7). */
static unsigned xmm_count(const struct vcpu *v) { return cpu_long64(v) ? 16 : 8; }

static bool all_zero(const void *p, size_t n)
{
    const u8 *b = p;
    for (size_t k = 0; k < n; k++)
        if (b[k])
            return false;
    return true;
}

static bool vec_zero(const struct vcpu *v, unsigned first, unsigned end, unsigned from, unsigned len)
{
    for (unsigned n = first; n < end; n++)
        if (!all_zero(v->vec[n].b + from, len))
            return false;
    return true;
}

u64 xstate_in_use(const struct vcpu *v, u64 mask)
{
    const struct x87 *f = &v->x87;
    u64 use = 0;
    if ((mask & XCR0_X87) && (f->fcw != 0x37f || f->fsw || f->ftw || f->fop || f->fip || f->fdp || f->fcs || f->fds ||
                              !all_zero(f->st, sizeof(f->st))))
        use |= XCR0_X87;
    /* MXCSR counts: the processor may report SSE in use while only MXCSR differs (SDM vol. 1, 13.6). */
    if ((mask & XCR0_SSE) && (v->mxcsr != MXCSR_INIT || !vec_zero(v, 0, xmm_count(v), 0, 16)))
        use |= XCR0_SSE;
    if ((mask & XCR0_AVX) && !vec_zero(v, 0, xmm_count(v), 16, 16))
        use |= XCR0_AVX;
    if ((mask & XCR0_OPMASK) && !all_zero(v->k, sizeof(v->k)))
        use |= XCR0_OPMASK;
    if ((mask & XCR0_ZMM_HI256) && !vec_zero(v, 0, xmm_count(v), 32, 32))
        use |= XCR0_ZMM_HI256;
    if ((mask & XCR0_HI16_ZMM) && cpu_long64(v) && !vec_zero(v, 16, 32, 0, 64))
        use |= XCR0_HI16_ZMM;
    if ((mask & XCR0_PKRU) && v->pkru)
        use |= XCR0_PKRU;
    if ((mask & BIT64(XSTATE_CET_U)) && (v->u_cet || v->pl_ssp[3]))
        use |= BIT64(XSTATE_CET_U);
    if ((mask & BIT64(XSTATE_CET_S)) && (v->pl_ssp[0] || v->pl_ssp[1] || v->pl_ssp[2]))
        use |= BIT64(XSTATE_CET_S);
    return use;
}

/* ---- the area under construction ---- */

struct area {
    u8 bytes[AREA_MAX];
    struct { u16 at, len; } piece[16];
    unsigned pieces;
};

static void add_piece(struct area *a, unsigned at, unsigned len)
{
    if (a->pieces && a->piece[a->pieces - 1].at + a->piece[a->pieces - 1].len == at) {
        a->piece[a->pieces - 1].len = (u16)(a->piece[a->pieces - 1].len + len);
        return;
    }
    a->piece[a->pieces].at = (u16)at;
    a->piece[a->pieces].len = (u16)len;
    a->pieces++;
}

static void write_area(struct vcpu *v, const struct insn *i, const struct area *a, u64 ea)
{
    for (unsigned n = 0; n < a->pieces; n++)
        mem_probe_write(v, i->seg, ea + a->piece[n].at, a->piece[n].len);
    for (unsigned n = 0; n < a->pieces; n++)
        mem_write_bytes(v, i->seg, ea + a->piece[n].at, a->bytes + a->piece[n].at, a->piece[n].len);
}

/* x87 in the legacy region; 64-bit pointers with REX.W (SDM vol. 1, table 10-2 and 13.5.1). */
static void put_x87(const struct vcpu *v, const struct insn *i, u8 *p)
{
    const struct x87 *f = &v->x87;
    store16(p, f->fcw);
    store16(p + 2, f->fsw);
    p[4] = f->ftw;
    p[5] = 0;
    store16(p + 6, f->fop);
    if (i->opsize == 8) {
        store64(p + 8, f->fip);
        store64(p + 16, f->fdp);
    } else {
        store32(p + 8, (u32)f->fip);
        store32(p + 12, f->fcs);
        store32(p + 16, (u32)f->fdp);
        store32(p + 20, f->fds);
    }
    memcpy(p + 32, f->st, sizeof(f->st));
}

static void get_x87(struct vcpu *v, const struct insn *i, const u8 *p)
{
    struct x87 *f = &v->x87;
    f->fcw = (u16)((load16(p) & 0x1f3f) | 0x40);
    f->fsw = load16(p + 2);
    f->ftw = p[4];
    f->fop = load16(p + 6) & 0x7ff;
    if (i->opsize == 8) {
        f->fip = load64(p + 8);
        f->fdp = load64(p + 16);
        f->fcs = f->fds = 0;
    } else {
        bool no_sel = cpu_has(v, FEAT_ZERO_FCS_FDS);
        f->fip = load32(p + 8);
        f->fcs = no_sel ? 0 : load16(p + 12);
        f->fdp = load32(p + 16);
        f->fds = no_sel ? 0 : load16(p + 20);
    }
    memset(f->st, 0, sizeof(f->st));
    for (unsigned n = 0; n < 8; n++)
        memcpy(f->st[n], p + 32 + 16 * n, 10);
    x87_update_es(v);
}

static void init_x87(struct vcpu *v)
{
    x87_init(v);
    memset(v->x87.st, 0, sizeof(v->x87.st));
}

/* XMM8..15 are left out where they are no state. */
static void put_xmm(const struct vcpu *v, u8 *p)
{
    for (unsigned n = 0; n < xmm_count(v); n++)
        memcpy(p + 160 + 16 * n, v->vec[n].b, 16);
}

static void get_xmm(struct vcpu *v, const u8 *p)
{
    for (unsigned n = 0; n < xmm_count(v); n++)
        if (p)
            memcpy(v->vec[n].b, p + 160 + 16 * n, 16);
        else
            memset(v->vec[n].b, 0, 16);
}

/* Copies a slice of vector registers first..end-1 to or from the area; NULL source: zeroes. */
static void put_slice(const struct vcpu *v, u8 *p, unsigned first, unsigned end, unsigned from, unsigned len)
{
    for (unsigned n = first; n < end; n++)
        memcpy(p + (n - first) * len, v->vec[n].b + from, len);
}

static void get_slice(struct vcpu *v, const u8 *p, unsigned first, unsigned end, unsigned from, unsigned len)
{
    for (unsigned n = first; n < end; n++)
        if (p)
            memcpy(v->vec[n].b + from, p + (n - first) * len, len);
        else
            memset(v->vec[n].b + from, 0, len);
}

/* Returns how many bytes of the component this mode saves. */
static unsigned put_component(const struct vcpu *v, unsigned number, u8 *p)
{
    unsigned regs = xmm_count(v);
    switch (number) {
    case XSTATE_AVX:
        put_slice(v, p, 0, regs, 16, 16);
        return regs * 16;
    case XSTATE_OPMASK:
        memcpy(p, v->k, 64);
        return 64;
    case XSTATE_ZMM_HI256:
        put_slice(v, p, 0, regs, 32, 32);
        return regs * 32;
    case XSTATE_HI16_ZMM:
        if (regs < 16)
            return 0;
        put_slice(v, p, 16, 32, 0, 64);
        return 1024;
    case XSTATE_PKRU:
        store64(p, v->pkru);
        return 8;
    case XSTATE_CET_U:
        store64(p, v->u_cet);
        store64(p + 8, v->pl_ssp[3]);
        return 16;
    case XSTATE_CET_S:
        for (unsigned n = 0; n < 3; n++)
            store64(p + 8 * n, v->pl_ssp[n]);
        return 24;
    }
    return 0;
}

/* @p NULL: the initial configuration. */
static void get_component(struct vcpu *v, unsigned number, const u8 *p)
{
    unsigned regs = xmm_count(v);
    switch (number) {
    case XSTATE_AVX:
        get_slice(v, p, 0, regs, 16, 16);
        break;
    case XSTATE_OPMASK:
        if (p)
            memcpy(v->k, p, 64);
        else
            memset(v->k, 0, 64);
        break;
    case XSTATE_ZMM_HI256:
        get_slice(v, p, 0, regs, 32, 32);
        break;
    case XSTATE_HI16_ZMM:
        if (regs == 16)
            get_slice(v, p, 16, 32, 0, 64);
        break;
    case XSTATE_PKRU:
        v->pkru = p ? load32(p) : 0;
        mmu_update(v);
        break;
    case XSTATE_CET_U:
        v->u_cet = p ? load64(p) : 0;
        v->pl_ssp[3] = p ? load64(p + 8) : 0;
        cet_changed(v);
        break;
    case XSTATE_CET_S:
        for (unsigned n = 0; n < 3; n++)
            v->pl_ssp[n] = p ? load64(p + 8 * n) : 0;
        break;
    }
}

/* What WRMSR would refuse to load into these components' MSRs (SDM vol. 1, 13.12 "Operation of XRSTORS"). */
static bool component_valid(struct vcpu *v, unsigned number, const u8 *p)
{
    if (number == XSTATE_CET_U) {
        u64 ssp = load64(p + 8);
        return cet_control_valid(v, load64(p)) && !(ssp & 3) && cpu_canonical_any(v, ssp);
    }
    if (number == XSTATE_CET_S)
        for (unsigned n = 0; n < 3; n++)
            if ((load64(p + 8 * n) & 3) || !cpu_canonical_any(v, load64(p + 8 * n)))
                return false;
    return true;
}

static u64 effective_address(struct vcpu *v, const struct insn *i, unsigned align)
{
    u64 ea = insn_ea(v, i);
    if ((v->seg_base[i->seg] + ea) & (align - 1))
        cpu_gp0(v);
    return ea;
}

static u64 edx_eax(const struct vcpu *v) { return v->gpr[RDX] << 32 | (u32)v->gpr[RAX]; }

/* ---- FXSAVE, FXRSTOR ---- */

/* AMD: EFER.FFXSR leaves the XMM registers out in 64-bit mode at CPL 0 (APM vol. 2, 11.4.4). */
static bool fast_fxsr(const struct vcpu *v) { return (v->efer & EFER_FFXSR) && cpu_long64(v) && v->cpl == 0; }

void insn_fxsave(struct vcpu *v, const struct insn *i)
{
    struct area a;
    u64 ea = effective_address(v, i, 16);
    a.pieces = 0;
    memset(a.bytes, 0, 160);
    put_x87(v, i, a.bytes);
    store32(a.bytes + 24, v->mxcsr);
    store32(a.bytes + 28, v->mxcsr_mask);
    put_xmm(v, a.bytes);
    add_piece(&a, 0, fast_fxsr(v) ? 160 : 160 + 16 * xmm_count(v));
    write_area(v, i, &a, ea);
}

void insn_fxrstor(struct vcpu *v, const struct insn *i)
{
    u8 area[LEGACY_SIZE];
    u64 ea = effective_address(v, i, 16);
    mem_read_bytes(v, i->seg, ea, area, sizeof(area));
    if (load32(area + 24) & ~v->mxcsr_mask)
        cpu_gp0(v);
    get_x87(v, i, area);
    v->mxcsr = load32(area + 24);
    if (!fast_fxsr(v))
        get_xmm(v, area);
}

/* ---- saving ---- */

enum save_form { FORM_XSAVE, FORM_XSAVEOPT, FORM_XSAVEC, FORM_XSAVES };

static void save(struct vcpu *v, const struct insn *i, enum save_form form)
{
    struct area a;
    u64 ea = effective_address(v, i, 64);
    bool compacted = form >= FORM_XSAVEC;
    u64 rfbm = edx_eax(v) & (form == FORM_XSAVES ? v->xcr0 | v->xss : v->xcr0);
    u64 in_use = xstate_in_use(v, rfbm);
    /* Which components are written: XSAVE all that were asked for, the others those in use. */
    u64 written = form == FORM_XSAVE ? rfbm : in_use;
    bool mxcsr = compacted ? (in_use & XCR0_SSE) : (rfbm & (XCR0_SSE | XCR0_AVX));

    a.pieces = 0;
    if (written & XCR0_X87) {
        memset(a.bytes, 0, 160);
        put_x87(v, i, a.bytes);
        add_piece(&a, 0, 24);
    }
    if (mxcsr) {
        store32(a.bytes + 24, v->mxcsr);
        store32(a.bytes + 28, v->mxcsr_mask);
        add_piece(&a, 24, 8);
    }
    if (written & XCR0_X87)
        add_piece(&a, 32, 128);
    if (written & XCR0_SSE) {
        put_xmm(v, a.bytes);
        add_piece(&a, 160, 16 * xmm_count(v));
    }
    if (compacted) {
        store64(a.bytes + HEADER, in_use);
        store64(a.bytes + HEADER + 8, rfbm | XCOMP_COMPACTED);
        add_piece(&a, HEADER, 16);
    } else {
        u64 old;
        mem_read_bytes(v, i->seg, ea + HEADER, &old, 8);
        store64(a.bytes + HEADER, (old & ~rfbm) | in_use);
        add_piece(&a, HEADER, 8);
    }
    for (unsigned n = 0; n < ARRAY_SIZE(components); n++) {
        const struct xstate_component *c = &components[n];
        if (!(written >> c->number & 1))
            continue;
        unsigned at = component_offset(c, rfbm, compacted);
        unsigned len = put_component(v, c->number, a.bytes + at);
        if (len)
            add_piece(&a, at, len);
    }
    write_area(v, i, &a, ea);
}

void insn_xsave(struct vcpu *v, const struct insn *i) { save(v, i, FORM_XSAVE); }
void insn_xsaveopt(struct vcpu *v, const struct insn *i) { save(v, i, FORM_XSAVEOPT); }
void insn_xsavec(struct vcpu *v, const struct insn *i) { save(v, i, FORM_XSAVEC); }
void insn_xsaves(struct vcpu *v, const struct insn *i) { save(v, i, FORM_XSAVES); }

/* ---- restoring ---- */

static void restore(struct vcpu *v, const struct insn *i, bool supervisor)
{
    u8 area[AREA_MAX];
    u64 ea = effective_address(v, i, 64);
    u64 allowed = supervisor ? v->xcr0 | v->xss : v->xcr0;
    u64 rfbm = edx_eax(v) & allowed;

    mem_read_bytes(v, i->seg, ea + HEADER, area + HEADER, 64);
    u64 xstate_bv = load64(area + HEADER), xcomp_bv = load64(area + HEADER + 8);
    bool compacted = xcomp_bv & XCOMP_COMPACTED;
    if (compacted) {
        if (!cpu_has(v, FEAT_XSAVEC) && !supervisor)
            cpu_gp0(v);
        if ((xcomp_bv & ~XCOMP_COMPACTED & ~allowed) || (xstate_bv & ~xcomp_bv) || (xstate_bv & XCOMP_COMPACTED) ||
            !all_zero(area + HEADER + 16, 48))
            cpu_gp0(v);
    } else {
        /* Bytes 23:8 of the header must be zero (SDM vol. 1, 13.8 "Operation of XRSTOR"). */
        if (supervisor || (xstate_bv & ~v->xcr0) || !all_zero(area + HEADER + 8, 16))
            cpu_gp0(v);
    }
    u64 load = rfbm & xstate_bv, init = rfbm & ~xstate_bv;
    bool mxcsr = compacted ? (load & XCR0_SSE) : (rfbm & (XCR0_SSE | XCR0_AVX));

    if (load & XCR0_X87) {
        mem_read_bytes(v, i->seg, ea, area, 24);
        mem_read_bytes(v, i->seg, ea + 32, area + 32, 128);
    }
    if (mxcsr)
        mem_read_bytes(v, i->seg, ea + 24, area + 24, 8);
    if (load & XCR0_SSE)
        mem_read_bytes(v, i->seg, ea + 160, area + 160, 16 * xmm_count(v));
    for (unsigned n = 0; n < ARRAY_SIZE(components); n++) {
        const struct xstate_component *c = &components[n];
        if (!(load >> c->number & 1))
            continue;
        unsigned at = component_offset(c, xcomp_bv, compacted);
        mem_read_bytes(v, i->seg, ea + at, area + at, c->size);
        if (!component_valid(v, c->number, area + at))
            cpu_gp0(v);
    }
    if (mxcsr && (load32(area + 24) & ~v->mxcsr_mask))
        cpu_gp0(v);

    if (load & XCR0_X87)
        get_x87(v, i, area);
    else if (init & XCR0_X87)
        init_x87(v);
    if (load & XCR0_SSE)
        get_xmm(v, area);
    else if (init & XCR0_SSE)
        get_xmm(v, NULL);
    if (mxcsr)
        v->mxcsr = load32(area + 24);
    else if (compacted && (init & XCR0_SSE))
        v->mxcsr = MXCSR_INIT;
    for (unsigned n = 0; n < ARRAY_SIZE(components); n++) {
        const struct xstate_component *c = &components[n];
        if (load >> c->number & 1)
            get_component(v, c->number, area + component_offset(c, xcomp_bv, compacted));
        else if (init >> c->number & 1)
            get_component(v, c->number, NULL);
    }
}

void insn_xrstor(struct vcpu *v, const struct insn *i) { restore(v, i, false); }
void insn_xrstors(struct vcpu *v, const struct insn *i) { restore(v, i, true); }

/* ---- XCR0 and PKRU ---- */

void insn_xgetbv(struct vcpu *v, const struct insn *i)
{
    u64 value = v->xcr0;
    u32 which = (u32)v->gpr[RCX];
    if (which == 1 && cpu_has(v, FEAT_XGETBV1))
        value &= xstate_in_use(v, v->xcr0);
    else if (which != 0)
        cpu_gp0(v);
    v->gpr[RAX] = (u32)value;
    v->gpr[RDX] = value >> 32;
}

void insn_xsetbv(struct vcpu *v, const struct insn *i)
{
    u64 value = edx_eax(v);
    if ((u32)v->gpr[RCX] != 0 || !xstate_xcr0_valid(v, value))
        cpu_gp0(v);
    v->xcr0 = value;
    cpu_mode_changed(v);
}

void insn_rdpkru(struct vcpu *v, const struct insn *i)
{
    if (!(v->cr4 & CR4_PKE))
        cpu_ud(v);
    if ((u32)v->gpr[RCX] != 0)
        cpu_gp0(v);
    v->gpr[RAX] = v->pkru;
    v->gpr[RDX] = 0;
}

void insn_wrpkru(struct vcpu *v, const struct insn *i)
{
    if (!(v->cr4 & CR4_PKE))
        cpu_ud(v);
    if ((u32)v->gpr[RCX] != 0 || (u32)v->gpr[RDX] != 0)
        cpu_gp0(v);
    v->pkru = (u32)v->gpr[RAX];
    mmu_update(v);
}
