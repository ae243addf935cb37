/* The VMCB in memory: its table of fields, loading, storing, and VMLOAD and VMSAVE. */
#include "svm/svm.h"

const struct vmcb_field vmcb_fields[VMCB_FIELD_COUNT] = {
#define VMCB_FIELD(foffset, fbytes, fname, fclean, fuse)                                                      \
    [VMCB_##fname] = {.name = #fname, .offset = foffset, .bytes = fbytes, .clean = CLEAN_##fclean, .use = USE_##fuse},
#include "svm/vmcb_fields.def"
#undef VMCB_FIELD
};

int vmcb_find(unsigned offset)
{
    for (unsigned n = 0; n < VMCB_FIELD_COUNT; n++)
        if (vmcb_fields[n].offset == offset)
            return (int)n;
    return -1;
}

static const char *const exit_names[SVM_EXIT_SLOTS] = {
#define SVM_EXIT(code, name) [(code) == 0x400 ? SVM_SLOT_NPF : (code)] = #name,
#include "svm/exits.def"
#undef SVM_EXIT
    [SVM_SLOT_INVALID] = "INVALID",
};

const char *svm_exit_slot_name(unsigned slot) { return slot < SVM_EXIT_SLOTS ? exit_names[slot] : NULL; }

u64 vmcb_read(struct vcpu *v, pa_t vmcb, enum vmcb_index n)
{
    return physmap_load(v->pm, vmcb + vmcb_fields[n].offset, vmcb_fields[n].bytes);
}

void vmcb_write(struct vcpu *v, pa_t vmcb, enum vmcb_index n, u64 value)
{
    physmap_store(v->pm, vmcb + vmcb_fields[n].offset, value, vmcb_fields[n].bytes);
}

void vmcb_load(struct vcpu *v, pa_t vmcb)
{
    struct svm *x = v->svm;
    u8 raw[VMCB_BYTES];
    physmap_read(v->pm, vmcb, raw, sizeof(raw));
    /* "VMCB Clean Bits": they speak of the copy of this very VMCB, if it is still the one in the processor. */
    u32 clean = 0;
    if (cpu_has(v, FEAT_VMCBCLEAN) && x->cached && x->vmcb == vmcb)
        clean = load32(raw + OFFSET_CLEAN);
    clean &= ~BIT(CLEAN_NONE);
    for (unsigned n = 0; n < VMCB_FIELD_COUNT; n++) {
        const struct vmcb_field *d = &vmcb_fields[n];
        if (d->bytes <= 8 && !(clean >> d->clean & 1))
            x->f[n] = load_le(raw + d->offset, d->bytes);
    }
    x->vmcb = vmcb;
    x->cached = false;
    u64 *f = x->f;
    x->intercepts[0] = (u32)(f[VMCB_INTERCEPT_CR_READ] | f[VMCB_INTERCEPT_CR_WRITE] << 16);
    x->intercepts[1] = (u32)(f[VMCB_INTERCEPT_DR_READ] | f[VMCB_INTERCEPT_DR_WRITE] << 16);
    x->intercepts[2] = (u32)f[VMCB_INTERCEPT_EXCEPTIONS];
    x->intercepts[3] = (u32)f[VMCB_INTERCEPT_MISC1];
    x->intercepts[4] = (u32)f[VMCB_INTERCEPT_MISC2];
    x->intercepts[5] = (u32)f[VMCB_INTERCEPT_MISC3];
}

void vmcb_store(struct vcpu *v)
{
    struct svm *x = v->svm;
    for (unsigned n = 0; n < VMCB_FIELD_COUNT; n++) {
        const struct vmcb_field *d = &vmcb_fields[n];
        bool out = d->use == USE_OUT || d->use == USE_BOTH || (d->use == USE_NPT && x->nested_paging) ||
                   (d->use == USE_LBR && x->virtual_lbr) || (d->use == USE_SPEC && cpu_has(v, FEAT_V_SPEC_CTRL)) ||
                   (d->use == USE_CET && cpu_has(v, FEAT_CET_SS));
        if (out && d->bytes <= 8)
            physmap_store(v->pm, x->vmcb + d->offset, x->f[n], d->bytes);
    }
    if (x->f[VMCB_INSN_LEN])
        physmap_write(v->pm, x->vmcb + OFFSET_INSN_BYTES, x->insn_bytes, sizeof(x->insn_bytes));
    x->cached = true;
}

/* ---- segments: attributes are bits 55:52 and 47:40 of a descriptor, side by side; a null segment is not present ---- */
struct segment vmcb_segment(u64 sel, u64 attrib, u64 limit, u64 base)
{
    u32 ar = (u32)(attrib & 0xff) | (u32)(attrib & 0xf00) << 4;
    return (struct segment){.sel = (u16)sel, .base = base, .limit = (u32)limit, .ar = ar & AR_P ? ar : ar | AR_UNUSABLE};
}

u64 vmcb_attrib(const struct segment *s)
{
    u64 attrib = (s->ar & 0xff) | (s->ar >> 4 & 0xf00);
    return s->ar & AR_UNUSABLE ? attrib & ~(u64)AR_P : attrib;
}

/* ---- VMLOAD and VMSAVE (APM vol. 3) ---- */
static const struct {
    u8 seg;
    u8 field; /* the selector; attributes, limit and base follow */
} more_segments[] = {
    {SEG_FS, VMCB_FS_SELECTOR}, {SEG_GS, VMCB_GS_SELECTOR}, {SEG_LDTR, VMCB_LDTR_SELECTOR}, {SEG_TR, VMCB_TR_SELECTOR},
};

/* Non-canonical bases are made canonical, not refused ("Canonicalization and Consistency Checks"). */
static u64 canonicalized(const struct vcpu *v, u64 a) { return (u64)sign_extend(a, v->linear_width); }

void vmcb_load_more(struct vcpu *v, pa_t vmcb)
{
    u64 f[VMCB_FIELD_COUNT];
    for (unsigned n = 0; n < VMCB_FIELD_COUNT; n++)
        if (vmcb_fields[n].use == USE_LOAD)
            f[n] = vmcb_read(v, vmcb, n);
    for (unsigned n = 0; n < ARRAY_SIZE(more_segments); n++) {
        const u64 *s = f + more_segments[n].field;
        v->seg[more_segments[n].seg] = vmcb_segment(s[0], s[1], s[2], canonicalized(v, s[3]));
    }
    v->seg[SEG_TR].ar &= ~AR_UNUSABLE;
    v->kernel_gs_base = canonicalized(v, f[VMCB_KERNEL_GS_BASE]);
    v->star = f[VMCB_STAR];
    v->lstar = canonicalized(v, f[VMCB_LSTAR]);
    v->cstar = canonicalized(v, f[VMCB_CSTAR]);
    v->sfmask = (u32)f[VMCB_SFMASK];
    v->sysenter_cs = (u32)f[VMCB_SYSENTER_CS];
    v->sysenter_esp = canonicalized(v, f[VMCB_SYSENTER_ESP]);
    v->sysenter_eip = canonicalized(v, f[VMCB_SYSENTER_EIP]);
    cpu_segments_changed(v);
}

void vmcb_save_more(struct vcpu *v, pa_t vmcb)
{
    for (unsigned n = 0; n < ARRAY_SIZE(more_segments); n++) {
        const struct segment *s = &v->seg[more_segments[n].seg];
        unsigned field = more_segments[n].field;
        vmcb_write(v, vmcb, field, s->sel);
        vmcb_write(v, vmcb, field + 1, vmcb_attrib(s));
        vmcb_write(v, vmcb, field + 2, s->limit);
        vmcb_write(v, vmcb, field + 3, s->base);
    }
    vmcb_write(v, vmcb, VMCB_KERNEL_GS_BASE, v->kernel_gs_base);
    vmcb_write(v, vmcb, VMCB_STAR, v->star);
    vmcb_write(v, vmcb, VMCB_LSTAR, v->lstar);
    vmcb_write(v, vmcb, VMCB_CSTAR, v->cstar);
    vmcb_write(v, vmcb, VMCB_SFMASK, v->sfmask);
    vmcb_write(v, vmcb, VMCB_SYSENTER_CS, v->sysenter_cs);
    vmcb_write(v, vmcb, VMCB_SYSENTER_ESP, v->sysenter_esp);
    vmcb_write(v, vmcb, VMCB_SYSENTER_EIP, v->sysenter_eip);
}
