/*
 * The VMCS: the table of fields, and the region in guest memory. The layout of the region beyond its
 * first 8 bytes is ours (SDM "Format of the VMCS Region"): launch state, then 8 bytes per slot.
 */
#include "vmx/vmx.h"

enum { REGION_ABORT = 4, REGION_LAUNCHED = 8, REGION_DATA = 16 };
_Static_assert(REGION_DATA + 8 * VMCS_SLOT_COUNT <= 4096, "the VMCS region is one page");

const struct vmcs_field vmcs_fields[VMCS_SLOT_COUNT] = {
#define VMCS_FIELD(enc, fname, ctl, eoffset, egroup)                                                         \
    { .name = #fname, .encoding = enc, .control = CTL_##ctl, .evmcs_offset = eoffset, .evmcs_group = EVMCS_##egroup },
#include "vmx/vmcs_fields.def"
#undef VMCS_FIELD
};

/* From an encoding to its slot + 1. Index: width, kind, and the low six bits of the field's number. */
#define SLOT_INDEX(enc) (((enc) >> 13 & 3) << 8 | ((enc) >> 10 & 3) << 6 | ((enc) >> 1 & 63))
static const u8 slots[1024] = {
#define VMCS_FIELD(enc, fname, ctl, eoffset, egroup) [SLOT_INDEX(enc)] = VMCS_##fname + 1,
#include "vmx/vmcs_fields.def"
#undef VMCS_FIELD
};
_Static_assert(VMCS_SLOT_COUNT < 255, "a slot fits a byte");

unsigned vmcs_field_count(void) { return VMCS_SLOT_COUNT; }
const struct vmcs_field *vmcs_field_info(unsigned n) { return n < VMCS_SLOT_COUNT ? &vmcs_fields[n] : NULL; }

int vmcs_slot(u32 encoding)
{
    /* Bits 31:15 and 12 are reserved; field numbers beyond 63 do not exist; bit 0 (the high half) is
     * for 64-bit fields. */
    if (encoding & 0xffff9380 || (encoding & 1 && vmcs_width(encoding) != VMCS_64))
        return -1;
    return (int)slots[SLOT_INDEX(encoding)] - 1;
}

u64 vmcs_get(u64 stored, u32 encoding) { return encoding & 1 ? stored >> 32 : stored; }

u64 vmcs_put(u64 stored, u32 encoding, u64 value)
{
    switch (vmcs_width(encoding)) {
    case VMCS_16: return (u16)value;
    case VMCS_32: return (u32)value;
    case VMCS_64:
        if (encoding & 1)
            return (u32)stored | value << 32;
        return value;
    default: return value;
    }
}

/* ---- the region in memory ---- */
bool vmcs_memory_revision(struct vcpu *v, pa_t pa, u32 *word)
{
    physmap_read(v->pm, pa, word, sizeof(*word));
    return (*word & 0x7fffffff) == VMX_REVISION;
}

u64 vmcs_memory_read(struct vcpu *v, pa_t pa, unsigned slot)
{
    u64 value;
    physmap_read(v->pm, pa + REGION_DATA + 8 * slot, &value, sizeof(value));
    return value;
}

void vmcs_memory_write(struct vcpu *v, pa_t pa, unsigned slot, u64 value)
{
    physmap_write(v->pm, pa + REGION_DATA + 8 * slot, &value, sizeof(value));
}

void vmcs_load(struct vcpu *v, pa_t pa, bool shadow)
{
    struct vmx *x = v->vmx;
    u32 launched;
    if (x->current != VMX_NO_VMCS)
        vmcs_flush(v);
    physmap_read(v->pm, pa + REGION_LAUNCHED, &launched, sizeof(launched));
    physmap_read(v->pm, pa + REGION_DATA, x->f, sizeof(x->f));
    /* The image is memory anyone may have scribbled on: narrow fields stay narrow. */
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++)
        x->f[s] = vmcs_put(0, vmcs_fields[s].encoding, x->f[s]);
    x->launched = launched == 1;
    x->current = pa;
    x->current_is_shadow = shadow;
    x->enlightened = false;
}

void vmcs_flush(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    if (x->current == VMX_NO_VMCS || x->enlightened)
        return; /* an enlightened VMCS is stored at each VM exit */
    u32 launched = x->launched;
    physmap_write(v->pm, x->current + REGION_LAUNCHED, &launched, sizeof(launched));
    physmap_write(v->pm, x->current + REGION_DATA, x->f, sizeof(x->f));
}

void vmcs_clear_memory(struct vcpu *v, pa_t pa)
{
    u32 launched = 0;
    physmap_write(v->pm, pa + REGION_LAUNCHED, &launched, sizeof(launched));
}

void vmcs_set_abort(struct vcpu *v, u32 code)
{
    physmap_write(v->pm, v->vmx->current + REGION_ABORT, &code, sizeof(code));
}
