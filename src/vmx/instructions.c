/*
 * The VMX instructions (SDM volume 3, "VMX Instruction Reference"): bodies of the opcode table's
 * rows. In guest mode the rows' intercepts exit before a body runs, except where VMCS shadowing or
 * VM functions let it.
 */
#include "cpu/hyperv.h"
#include "cpu/mem.h"
#include "vmx/vmx.h"

insn_fn insn_vmxon, insn_vmxoff, insn_vmclear, insn_vmptrld, insn_vmptrst, insn_vmread, insn_vmwrite, insn_vmlaunch,
    insn_vmresume, insn_vmcall, insn_vmfunc, insn_invept, insn_invvpid;

#define FEATURE_CONTROL_LOCK BIT64(0)
#define FEATURE_CONTROL_VMX BIT64(2)

/* Errors by number: SDM "VM Instruction Error Numbers". */
enum {
    ERR_VMCALL_IN_ROOT = 1, ERR_VMCLEAR_ADDRESS = 2, ERR_VMCLEAR_VMXON_POINTER = 3, ERR_VMPTRLD_ADDRESS = 9,
    ERR_VMPTRLD_VMXON_POINTER = 10, ERR_VMPTRLD_REVISION = 11, ERR_UNSUPPORTED_COMPONENT = 12, ERR_READ_ONLY_COMPONENT = 13,
    ERR_VMXON_IN_ROOT = 15, ERR_INVALIDATE_OPERAND = 28,
};

/* #UD outside VMX operation, in real and virtual-8086 mode, and in compatibility mode. */
static void require_mode(struct vcpu *v)
{
    if (!v->vmx || !v->in_vmx_operation || !cpu_protected(v) || (cpu_lma(v) && !cpu_long64(v)))
        cpu_ud(v);
}
static void require_cpl0(struct vcpu *v)
{
    if (v->cpl)
        cpu_gp0(v);
}

static bool valid_pointer(const struct vcpu *v, u64 pa) { return !(pa & (PAGE_SIZE - 1)) && !(pa >> v->maxphyaddr); }
static u64 read_pointer(struct vcpu *v, const struct insn *i) { return mem_read64(v, i->seg, insn_ea(v, i)); }
static u64 register_operand(const struct vcpu *v, unsigned r) { return cpu_long64(v) ? v->gpr[r] : (u32)v->gpr[r]; }

void insn_vmxon(struct vcpu *v, const struct insn *i)
{
    struct vmx *x = v->vmx;
    if (!x || !(v->cr4 & CR4_VMXE) || !cpu_protected(v) || (cpu_lma(v) && !cpu_long64(v)))
        cpu_ud(v);
    if (v->in_vmx_operation) {
        require_cpl0(v);
        vmx_fail(v, ERR_VMXON_IN_ROOT);
        return;
    }
    u64 control = FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX;
    if (v->cpl || (v->cr0 & x->caps.cr0_fixed0) != x->caps.cr0_fixed0 || v->cr0 & ~x->caps.cr0_fixed1
        || (v->cr4 & x->caps.cr4_fixed0) != x->caps.cr4_fixed0 || v->cr4 & ~x->caps.cr4_fixed1
        || (v->feature_control & control) != control)
        cpu_gp0(v);
    u64 pa = read_pointer(v, i);
    u32 word;
    if (!valid_pointer(v, pa) || !vmcs_memory_revision(v, pa, &word) || word >> 31) {
        vmx_fail_invalid(v);
        return;
    }
    x->vmxon_region = pa;
    x->current = VMX_NO_VMCS;
    x->enlightened = false;
    v->in_vmx_operation = true;
    v->monitor_armed = false;
    vmx_succeed(v);
}

void insn_vmxoff(struct vcpu *v, const struct insn *i)
{
    require_mode(v);
    require_cpl0(v);
    vmcs_flush(v);
    v->vmx->current = VMX_NO_VMCS;
    v->vmx->enlightened = false;
    v->in_vmx_operation = false;
    v->monitor_armed = false;
    vmx_succeed(v);
    /* An INIT that VMX operation blocked may be waiting. */
    cpu_attention(v, ATT_REQUEST);
}

void insn_vmclear(struct vcpu *v, const struct insn *i)
{
    struct vmx *x = v->vmx;
    require_mode(v);
    require_cpl0(v);
    u64 pa = read_pointer(v, i);
    if (!valid_pointer(v, pa)) {
        vmx_fail(v, ERR_VMCLEAR_ADDRESS);
    } else if (pa == x->vmxon_region) {
        vmx_fail(v, ERR_VMCLEAR_VMXON_POINTER);
    } else {
        if (pa == x->current) {
            x->launched = false;
            vmcs_flush(v);
            x->current = VMX_NO_VMCS;
            x->enlightened = false;
        } else if (!evmcs_page(v, pa)) {
            vmcs_clear_memory(v, pa);
        }
        vmx_succeed(v);
    }
}

void insn_vmptrld(struct vcpu *v, const struct insn *i)
{
    struct vmx *x = v->vmx;
    u32 word;
    require_mode(v);
    require_cpl0(v);
    u64 pa = read_pointer(v, i);
    if (!valid_pointer(v, pa)) {
        vmx_fail(v, ERR_VMPTRLD_ADDRESS);
    } else if (pa == x->vmxon_region) {
        vmx_fail(v, ERR_VMPTRLD_VMXON_POINTER);
    } else if (!vmcs_memory_revision(v, pa, &word) || (word >> 31 && !vmx_offers(&x->caps, CTL_SEC_VMCS_SHADOWING))) {
        vmx_fail(v, ERR_VMPTRLD_REVISION);
    } else {
        if (pa != x->current)
            vmcs_load(v, pa, word >> 31);
        x->current_is_shadow = word >> 31;
        vmx_succeed(v);
    }
}

void insn_vmptrst(struct vcpu *v, const struct insn *i)
{
    require_mode(v);
    require_cpl0(v);
    mem_write64(v, i->seg, insn_ea(v, i), v->vmx->current);
    vmx_succeed(v);
}

/* The VMCS that VMREAD and VMWRITE work on: the current one, or under VMCS shadowing the linked one. */
static bool accessed_vmcs(struct vcpu *v, pa_t *shadow)
{
    struct vmx *x = v->vmx;
    *shadow = VMX_NO_VMCS;
    if (!v->guest_mode)
        return x->current != VMX_NO_VMCS;
    *shadow = x->shadow_vmcs;
    return *shadow != VMX_NO_VMCS;
}

/* The slot @encoding names, if the field exists on this processor. */
static int existing_slot(const struct vcpu *v, u64 encoding)
{
    int slot = encoding >> 32 ? -1 : vmcs_slot((u32)encoding);
    return slot >= 0 && vmcs_exists(vmx_caps_now(v->vmx), (unsigned)slot) ? slot : -1;
}

void insn_vmread(struct vcpu *v, const struct insn *i)
{
    struct vmx *x = v->vmx;
    pa_t shadow;
    require_mode(v);
    require_cpl0(v);
    if (!accessed_vmcs(v, &shadow)) {
        vmx_fail_invalid(v);
        return;
    }
    u64 encoding = register_operand(v, i->reg);
    int slot = existing_slot(v, encoding);
    if (slot < 0) {
        log_at(unimplemented, "cpu%u VMREAD of unsupported field 0x%llx", v->index, (unsigned long long)encoding);
        vmx_fail_valid(v, ERR_UNSUPPORTED_COMPONENT);
        return;
    }
    u64 value = vmcs_get(shadow == VMX_NO_VMCS ? x->f[slot] : vmcs_memory_read(v, shadow, (unsigned)slot), (u32)encoding);
    if (!(i->flags & INSN_MEM)) {
        if (cpu_long64(v))
            v->gpr[i->rm] = value;
        else
            reg32_set(v, i->rm, (u32)value);
    } else if (cpu_long64(v)) {
        mem_write64(v, i->seg, insn_ea(v, i), value);
    } else {
        mem_write32(v, i->seg, insn_ea(v, i), (u32)value);
    }
    vmx_succeed(v);
}

void insn_vmwrite(struct vcpu *v, const struct insn *i)
{
    struct vmx *x = v->vmx;
    pa_t shadow;
    u64 value;
    require_mode(v);
    require_cpl0(v);
    if (!accessed_vmcs(v, &shadow)) {
        vmx_fail_invalid(v);
        return;
    }
    if (!(i->flags & INSN_MEM))
        value = register_operand(v, i->rm);
    else if (cpu_long64(v))
        value = mem_read64(v, i->seg, insn_ea(v, i));
    else
        value = mem_read32(v, i->seg, insn_ea(v, i));
    u64 encoding = register_operand(v, i->reg);
    int slot = existing_slot(v, encoding);
    if (slot < 0) {
        log_at(unimplemented, "cpu%u VMWRITE of unsupported field 0x%llx", v->index, (unsigned long long)encoding);
        vmx_fail_valid(v, ERR_UNSUPPORTED_COMPONENT);
    } else if (vmcs_kind((u32)encoding) == VMCS_READ_ONLY && !(x->caps.misc & VMX_MISC_VMWRITE_ALL)) {
        vmx_fail_valid(v, ERR_READ_ONLY_COMPONENT);
    } else {
        if (shadow == VMX_NO_VMCS)
            x->f[slot] = vmcs_put(x->f[slot], (u32)encoding, value);
        else
            vmcs_memory_write(v, shadow, (unsigned)slot,
                              vmcs_put(vmcs_memory_read(v, shadow, (unsigned)slot), (u32)encoding, value));
        vmx_succeed(v);
    }
}

static void enter(struct vcpu *v, bool launch)
{
    require_mode(v);
    require_cpl0(v);
    vmx_enter(v, launch);
}
void insn_vmlaunch(struct vcpu *v, const struct insn *i) { enter(v, true); }
void insn_vmresume(struct vcpu *v, const struct insn *i) { enter(v, false); }

void insn_vmcall(struct vcpu *v, const struct insn *i)
{
    if (v->guest_mode) { /* the intercept let it pass: direct virtual flush */
        evmcs_hypercall(v);
        return;
    }
    if (hyperv_hypercall_allowed(v)) {
        hyperv_hypercall(v);
        return;
    }
    require_mode(v);
    require_cpl0(v);
    /* There is no dual-monitor treatment of SMM for it to call. */
    vmx_fail(v, ERR_VMCALL_IN_ROOT);
}

void insn_vmfunc(struct vcpu *v, const struct insn *i)
{
    if (!v->vmx || !v->in_vmx_operation || !v->guest_mode)
        cpu_ud(v);
    vmx_vmfunc(v, i);
}

void insn_invept(struct vcpu *v, const struct insn *i)
{
    u8 descriptor[16];
    require_mode(v);
    if (!(v->vmx->caps.ept_vpid & VMX_EPT_INVEPT) || !vmx_offers(&v->vmx->caps, CTL_SEC_EPT))
        cpu_ud(v);
    require_cpl0(v);
    u64 type = register_operand(v, i->reg);
    mem_read_bytes(v, i->seg, insn_ea(v, i), descriptor, sizeof(descriptor));
    u64 eptp = load64(descriptor), cap = v->vmx->caps.ept_vpid;
    bool offered = (type == 1 && cap & VMX_EPT_INVEPT_SINGLE) || (type == 2 && cap & VMX_EPT_INVEPT_ALL);
    if (!offered || load64(descriptor + 8)
        || (type == 1 && !vmx_eptp_ok(&v->vmx->caps, v->maxphyaddr, eptp))) {
        vmx_fail(v, ERR_INVALIDATE_OPERAND);
        return;
    }
    mmu_invept(v, type == 2, eptp);
    vmx_succeed(v);
}

void insn_invvpid(struct vcpu *v, const struct insn *i)
{
    enum { ADDRESS, SINGLE, ALL, SINGLE_NONGLOBAL };
    u8 descriptor[16];
    require_mode(v);
    if (!(v->vmx->caps.ept_vpid & VMX_EPT_INVVPID) || !vmx_offers(&v->vmx->caps, CTL_SEC_VPID))
        cpu_ud(v);
    require_cpl0(v);
    u64 type = register_operand(v, i->reg);
    mem_read_bytes(v, i->seg, insn_ea(v, i), descriptor, sizeof(descriptor));
    u64 vpid = load64(descriptor), la = load64(descriptor + 8);
    if (type > SINGLE_NONGLOBAL || !(v->vmx->caps.ept_vpid >> (40 + type) & 1) || vpid >> 16 || (type != ALL && vpid == 0) || (type == ADDRESS && !cpu_canonical(v, la))) {
        vmx_fail(v, ERR_INVALIDATE_OPERAND);
        return;
    }
    mmu_invvpid(v, type == ALL, (u16)vpid, type == SINGLE_NONGLOBAL, type == ADDRESS, la);
    vmx_succeed(v);
}
