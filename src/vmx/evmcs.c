/*
 * The enlightened VMCS (TLFS "Nested Virtualization", HV_VMX_ENLIGHTENED_VMCS): a VMCS in memory whose
 * layout is known (vmcs_fields.def), so that a hypervisor needs no VMREAD, VMWRITE and VMPTRLD. While it
 * is active x->f caches it: a VM entry reads the groups that the clean fields do not vouch for.
 */
#include "cpu/hyperv.h"
#include "vmx/vmx.h"

#define EVMCS_SIZE 0x400u
#define EVMCS_REVISION 1u
/* Fields that are not the processor's. */
enum { CLEAN_FIELDS = 0x338, ENLIGHTENMENTS_CONTROL = 0x344, PARTITION_ASSIST_PAGE = 0x358 };
#define CLEAN_ALL BITS64(15, 0)
#define ENLIGHTENMENT_NESTED_FLUSH BIT(0)

static u64 get(const u8 *page, const struct vmcs_field *f)
{
    const u8 *p = page + f->evmcs_offset;
    switch (vmcs_bytes(f->encoding)) {
    case 2: return load16(p);
    case 4: return load32(p);
    default: return load64(p);
    }
}

static void put(u8 *page, const struct vmcs_field *f, u64 value)
{
    u8 *p = page + f->evmcs_offset;
    switch (vmcs_bytes(f->encoding)) {
    case 2: store16(p, (u16)value); break;
    case 4: store32(p, (u32)value); break;
    default: store64(p, value); break;
    }
}

bool evmcs_in_use(const struct vcpu *v, u64 *pointer)
{
    struct hv_nested n;
    if (likely(!v->hyperv) || !hyperv_nested(v, &n) || !n.enlightened_entry)
        return false;
    *pointer = n.current;
    return true;
}

/*
 * Controls that an enlightened VMCS cannot express are hidden once the guest has enabled the VP assist
 * page, which is how it enables enlightenments: a hypervisor chooses its controls before its first VM
 * entry tells that the enlightened VMCS is what it wants. An ordinary VMCS may use them all the same.
 */
bool vmx_capability_msr(const struct vcpu *v, u32 msr, u64 *value)
{
    struct hv_nested n;
    return v->vmx && vmx_caps_msr(v->hyperv && hyperv_nested(v, &n) ? &v->vmx->evmcs_caps : &v->vmx->caps, msr, value);
}

bool evmcs_page(struct vcpu *v, pa_t pa) { return v->hyperv && (u32)physmap_load(v->pm, pa, 4) == EVMCS_REVISION; }

bool evmcs_load(struct vcpu *v, pa_t pa)
{
    struct vmx *x = v->vmx;
    u8 page[EVMCS_SIZE];
    if (pa & (PAGE_SIZE - 1) || pa >> v->maxphyaddr)
        return false;
    physmap_read(v->pm, pa, page, sizeof(page));
    if (load32(page) != EVMCS_REVISION)
        return false;
    u32 clean = load32(page + CLEAN_FIELDS);
    if (!x->enlightened || x->current != pa) {
        vmcs_flush(v);
        memset(x->f, 0, sizeof(x->f)); /* fields it has no place for */
        x->current = pa;
        x->current_is_shadow = x->launched = false;
        x->enlightened = true;
        clean = 0;
    }
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++) {
        const struct vmcs_field *f = &vmcs_fields[s];
        if (f->evmcs_offset >= 0 && f->evmcs_group != EVMCS_OUTPUT && (f->evmcs_group >= EVMCS_ALWAYS_DIRTY || !(clean >> f->evmcs_group & 1)))
            x->f[s] = get(page, f);
    }
    if (!(clean >> EVMCS_ENLIGHTENMENTSCONTROL & 1)) {
        x->enlightenments = load32(page + ENLIGHTENMENTS_CONTROL);
        x->assist_page = load64(page + PARTITION_ASSIST_PAGE);
    }
    x->stats.evmcs_clean_groups += (unsigned)__builtin_popcount(clean & CLEAN_ALL);
    return true;
}

void evmcs_store(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    u8 page[EVMCS_SIZE];
    physmap_read(v->pm, x->current, page, sizeof(page));
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++) {
        const struct vmcs_field *f = &vmcs_fields[s];
        enum vmcs_kind kind = vmcs_kind(f->encoding);
        bool written = kind == VMCS_GUEST || kind == VMCS_READ_ONLY || s == VMCS_VM_ENTRY_CONTROLS || s == VMCS_VM_ENTRY_INTR_INFO_FIELD;
        if (written && f->evmcs_offset >= 0 && vmcs_exists(&x->evmcs_caps, s))
            put(page, f, x->f[s]);
    }
    store32(page + CLEAN_FIELDS, CLEAN_ALL);
    physmap_write(v->pm, x->current, page, sizeof(page));
}

void evmcs_store_error(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    physmap_store(v->pm, x->current + (unsigned)vmcs_fields[VMCS_VM_INSTRUCTION_ERROR].evmcs_offset, x->f[VMCS_VM_INSTRUCTION_ERROR], 4);
}

/* ---- TLFS "Direct Virtual Flush" ---- */
bool evmcs_takes_hypercall(const struct vcpu *v)
{
    const struct vmx *x = v->vmx;
    struct hv_nested n;
    return x->enlightened && x->enlightenments & ENLIGHTENMENT_NESTED_FLUSH && v->cpl == 0 && cpu_protected(v) && hyperv_nested(v, &n)
        && n.direct_hypercall && hyperv_is_flush(v);
}

void evmcs_hypercall(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    hyperv_flush_for_guest(v);
    x->stats.direct_flushes++;
    /* The hypervisor holds translations of its own and wants to hear of it. */
    if (!(x->assist_page & (PAGE_SIZE - 1)) && !(x->assist_page >> v->maxphyaddr) && physmap_load(v->pm, x->assist_page, 4)) {
        x->pending_flush_trap = true;
        cpu_attention(v, ATT_VIRT);
    }
}
