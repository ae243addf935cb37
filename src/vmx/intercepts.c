/*
 * Instructions that cause VM exits (SDM "VMX Non-Root Operation"): unconditionally, conditionally,
 * and the instructions whose behaviour non-root operation changes.
 */
#include "cpu/mem.h"
#include "vmx/vmx.h"

#define F(name) (x->f[VMCS_##name])

/* Which control makes an intercepted instruction exit. */
enum rule { NEVER, ALWAYS, BY_PRI, BY_SEC, SPECIAL };
static const struct insn_rule {
    u8 rule;
    u8 bit;      /* of the primary or secondary controls */
    u8 reason;
    u8 identity; /* in the instruction information */
    bool vmx;    /* #UD outside protected mode, in virtual-8086 mode and in compatibility mode */
    u8 enable;   /* secondary control without which the instruction is undefined; bit number + 1 */
} rules[INTERCEPT_COUNT] = {
    [INTERCEPT_CPUID] = { ALWAYS, .reason = EXIT_REASON_CPUID },
    [INTERCEPT_GETSEC] = { ALWAYS, .reason = EXIT_REASON_GETSEC },
    [INTERCEPT_INVD] = { ALWAYS, .reason = EXIT_REASON_INVD },
    [INTERCEPT_XSETBV] = { ALWAYS, .reason = EXIT_REASON_XSETBV },
    [INTERCEPT_VMCALL] = { SPECIAL, .reason = EXIT_REASON_VMCALL },
    [INTERCEPT_VMCLEAR] = { ALWAYS, .reason = EXIT_REASON_VMCLEAR, .vmx = true },
    [INTERCEPT_VMLAUNCH] = { ALWAYS, .reason = EXIT_REASON_VMLAUNCH, .vmx = true },
    [INTERCEPT_VMPTRLD] = { ALWAYS, .reason = EXIT_REASON_VMPTRLD, .vmx = true },
    [INTERCEPT_VMPTRST] = { ALWAYS, .reason = EXIT_REASON_VMPTRST, .vmx = true },
    [INTERCEPT_VMREAD] = { SPECIAL, .reason = EXIT_REASON_VMREAD, .vmx = true },
    [INTERCEPT_VMRESUME] = { ALWAYS, .reason = EXIT_REASON_VMRESUME, .vmx = true },
    [INTERCEPT_VMWRITE] = { SPECIAL, .reason = EXIT_REASON_VMWRITE, .vmx = true },
    [INTERCEPT_VMXOFF] = { ALWAYS, .reason = EXIT_REASON_VMXOFF, .vmx = true },
    [INTERCEPT_VMXON] = { ALWAYS, .reason = EXIT_REASON_VMXON, .vmx = true },
    [INTERCEPT_INVEPT] = { ALWAYS, .reason = EXIT_REASON_INVEPT, .vmx = true },
    [INTERCEPT_INVVPID] = { ALWAYS, .reason = EXIT_REASON_INVVPID, .vmx = true },
    [INTERCEPT_HLT] = { BY_PRI, PRI_HLT_EXITING, EXIT_REASON_HLT },
    [INTERCEPT_INVLPG] = { BY_PRI, PRI_INVLPG_EXITING, EXIT_REASON_INVLPG },
    [INTERCEPT_MWAIT] = { BY_PRI, PRI_MWAIT_EXITING, EXIT_REASON_MWAIT },
    [INTERCEPT_MONITOR] = { BY_PRI, PRI_MONITOR_EXITING, EXIT_REASON_MONITOR },
    [INTERCEPT_RDPMC] = { BY_PRI, PRI_RDPMC_EXITING, EXIT_REASON_RDPMC },
    [INTERCEPT_RDTSC] = { BY_PRI, PRI_RDTSC_EXITING, EXIT_REASON_RDTSC },
    [INTERCEPT_RDTSCP] = { BY_PRI, PRI_RDTSC_EXITING, EXIT_REASON_RDTSCP, .enable = SEC_RDTSCP + 1 },
    [INTERCEPT_UMWAIT] = { BY_PRI, PRI_RDTSC_EXITING, EXIT_REASON_UMWAIT, .enable = SEC_USER_WAIT_PAUSE + 1 },
    [INTERCEPT_TPAUSE] = { BY_PRI, PRI_RDTSC_EXITING, EXIT_REASON_TPAUSE, .enable = SEC_USER_WAIT_PAUSE + 1 },
    [INTERCEPT_INVPCID] = { BY_PRI, PRI_INVLPG_EXITING, EXIT_REASON_INVPCID, .enable = SEC_INVPCID + 1 },
    [INTERCEPT_RDPID] = { NEVER, .enable = SEC_RDTSCP + 1 },
    [INTERCEPT_PAUSE] = { SPECIAL, .reason = EXIT_REASON_PAUSE },
    [INTERCEPT_WBINVD] = { BY_SEC, SEC_WBINVD_EXITING, EXIT_REASON_WBINVD },
    [INTERCEPT_WBNOINVD] = { BY_SEC, SEC_WBINVD_EXITING, EXIT_REASON_WBINVD },
    [INTERCEPT_RDRAND] = { BY_SEC, SEC_RDRAND_EXITING, EXIT_REASON_RDRAND },
    [INTERCEPT_RDSEED] = { BY_SEC, SEC_RDSEED_EXITING, EXIT_REASON_RDSEED },
    [INTERCEPT_SGDT] = { BY_SEC, SEC_DESCRIPTOR_TABLE_EXITING, EXIT_REASON_GDTR_IDTR, .identity = 0 },
    [INTERCEPT_SIDT] = { BY_SEC, SEC_DESCRIPTOR_TABLE_EXITING, EXIT_REASON_GDTR_IDTR, .identity = 1 },
    [INTERCEPT_LGDT] = { BY_SEC, SEC_DESCRIPTOR_TABLE_EXITING, EXIT_REASON_GDTR_IDTR, .identity = 2 },
    [INTERCEPT_LIDT] = { BY_SEC, SEC_DESCRIPTOR_TABLE_EXITING, EXIT_REASON_GDTR_IDTR, .identity = 3 },
    [INTERCEPT_SLDT] = { BY_SEC, SEC_DESCRIPTOR_TABLE_EXITING, EXIT_REASON_LDTR_TR, .identity = 0 },
    [INTERCEPT_STR] = { BY_SEC, SEC_DESCRIPTOR_TABLE_EXITING, EXIT_REASON_LDTR_TR, .identity = 1 },
    [INTERCEPT_LLDT] = { BY_SEC, SEC_DESCRIPTOR_TABLE_EXITING, EXIT_REASON_LDTR_TR, .identity = 2 },
    [INTERCEPT_LTR] = { BY_SEC, SEC_DESCRIPTOR_TABLE_EXITING, EXIT_REASON_LDTR_TR, .identity = 3 },
    [INTERCEPT_XSAVES] = { SPECIAL, .reason = EXIT_REASON_XSAVES, .enable = SEC_XSAVES + 1 },
    [INTERCEPT_XRSTORS] = { SPECIAL, .reason = EXIT_REASON_XRSTORS, .enable = SEC_XSAVES + 1 },
    [INTERCEPT_VMFUNC] = { SPECIAL, .reason = EXIT_REASON_VMFUNC, .enable = SEC_VM_FUNCTIONS + 1 },
};

static bool bitmap_bit(struct vcpu *v, pa_t bitmap, u32 bit)
{
    return physmap_load(v->pm, bitmap + bit / 8, 1) >> (bit % 8) & 1;
}

/* VMCS shadowing (SDM "VMREAD", "VMWRITE" under "Instructions That Cause VM Exits Conditionally"). */
static bool shadowed_access_exits(struct vcpu *v, const struct insn *i, bool write)
{
    struct vmx *x = v->vmx;
    if (!sec_ctl(x, SEC_VMCS_SHADOWING))
        return true;
    u64 encoding = v->gpr[i->reg];
    if (!cpu_long64(v))
        encoding = (u32)encoding;
    return encoding >> 15 || bitmap_bit(v, write ? F(VMWRITE_BITMAP) : F(VMREAD_BITMAP), (u32)encoding);
}

/* PAUSE-loop exiting: a loop is a run of PAUSEs at most PLE_GAP apart; it exits when it lasts PLE_WINDOW. */
static bool pause_exits(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    if (pri_ctl(x, PRI_PAUSE_EXITING))
        return true;
    if (!sec_ctl(x, SEC_PAUSE_LOOP_EXITING) || v->cpl)
        return false;
    u64 now = cpu_tsc(v);
    bool first = !x->ple_last || now - x->ple_last > F(PLE_GAP);
    x->ple_last = now;
    if (first)
        x->ple_first = now;
    return !first && now - x->ple_first > F(PLE_WINDOW);
}

static bool special_exits(struct vcpu *v, enum intercept what, const struct insn *i)
{
    struct vmx *x = v->vmx;
    switch (what) {
    case INTERCEPT_VMCALL: return !evmcs_takes_hypercall(v);
    case INTERCEPT_VMREAD: return shadowed_access_exits(v, i, false);
    case INTERCEPT_VMWRITE: return shadowed_access_exits(v, i, true);
    case INTERCEPT_PAUSE: return pause_exits(v);
    case INTERCEPT_XSAVES: case INTERCEPT_XRSTORS:
        return ((u64)(u32)v->gpr[RDX] << 32 | (u32)v->gpr[RAX]) & v->xss & F(XSS_EXIT_BITMAP);
    default: return false;
    }
}

static u64 qualification(struct vcpu *v, u8 reason, const struct insn *i)
{
    switch (vmx_exits[reason].qualification) {
    case QUAL_DISPLACEMENT: return vmx_displacement(v, i);
    case QUAL_LINEAR_ADDRESS: return (v->seg_base[i->seg] + insn_ea(v, i)) & v->linear_mask;
    case QUAL_MWAIT: return v->monitor_armed;
    default: return 0;
    }
}

void vmx_hook_insn(struct vcpu *v, enum intercept what, const struct insn *i)
{
    struct vmx *x = v->vmx;
    const struct insn_rule *r = &rules[what];
    bool exits = false;
    if (r->enable && !sec_ctl(x, r->enable - 1u))
        cpu_ud(v);
    if (r->vmx && (!cpu_protected(v) || (cpu_lma(v) && !cpu_long64(v))))
        cpu_ud(v);
    switch (r->rule) {
    case ALWAYS: exits = true; break;
    case BY_PRI: exits = pri_ctl(x, r->bit); break;
    case BY_SEC: exits = sec_ctl(x, r->bit); break;
    case SPECIAL: exits = special_exits(v, what, i); break;
    default: break;
    }
    if (!exits)
        return;
    struct vmx_exit e = { .reason = r->reason, .qualification = qualification(v, r->reason, i), .insn_len = i->len,
                          .insn_info = vmx_instruction_info(i, vmx_exits[r->reason].info, r->identity) };
    vmx_exit(v, &e);
}

void vmx_hook_io(struct vcpu *v, const struct io_access *io, const struct insn *i)
{
    struct vmx *x = v->vmx;
    bool exits = false;
    if (pri_ctl(x, PRI_IO_BITMAPS)) {
        for (unsigned n = 0; n < io->size && !exits; n++) {
            u32 port = io->port + n;
            /* An access that wraps around the port space exits. */
            exits = port > 0xffff || bitmap_bit(v, port & 0x8000 ? F(IO_BITMAP_B) : F(IO_BITMAP_A), port & 0x7fff);
        }
    } else {
        exits = pri_ctl(x, PRI_UNCONDITIONAL_IO_EXITING);
    }
    if (!exits)
        return;
    struct vmx_exit e = { .reason = EXIT_REASON_IO_INSTRUCTION, .insn_len = i->len };
    e.qualification = (io->size - 1u) | (u64)io->in << 3 | (u64)io->string << 4 | (u64)io->rep << 5 | (u64)io->imm << 6
        | (u64)io->port << 16;
    if (io->string) {
        e.insn_info = (io->adsize == 8 ? 2u : io->adsize == 4 ? 1u : 0u) << 7 | (io->in ? 0 : (u32)io->seg << 15);
        e.linear = io->linear;
        e.has_linear = true;
        e.keeps_rf = true;
    }
    vmx_exit(v, &e);
}

void vmx_hook_msr(struct vcpu *v, u32 msr, bool write, u64 value, const struct insn *i)
{
    struct vmx *x = v->vmx;
    bool exits = true;
    if (pri_ctl(x, PRI_MSR_BITMAPS) && (msr <= 0x1fff || (msr >= 0xc0000000 && msr <= 0xc0001fff)))
        exits = bitmap_bit(v, F(MSR_BITMAP) + (write ? 2048 : 0) + (msr >> 31 ? 1024 : 0), msr & 0x1fff);
    if (exits)
        vmx_exit_insn(v, write ? EXIT_REASON_WRMSR : EXIT_REASON_RDMSR, 0, i);
}

/* ---- control registers ---- */
enum { CR_MOV_TO, CR_MOV_FROM, CR_CLTS, CR_LMSW };

static void __attribute__((noreturn)) cr_exit(struct vcpu *v, unsigned cr, unsigned kind, unsigned gpr, const struct insn *i)
{
    vmx_exit_insn(v, EXIT_REASON_CR_ACCESS, cr | kind << 4 | gpr << 8, i);
}

bool vmx_hook_cr_read(struct vcpu *v, unsigned cr, unsigned gpr, u64 *value, const struct insn *i)
{
    struct vmx *x = v->vmx;
    switch (cr) {
    case 0:
        *value = (v->cr0 & ~F(CR0_GUEST_HOST_MASK)) | (F(CR0_READ_SHADOW) & F(CR0_GUEST_HOST_MASK));
        return true;
    case 3:
        if (pri_ctl(x, PRI_CR3_STORE_EXITING))
            cr_exit(v, 3, CR_MOV_FROM, gpr, i);
        return false;
    case 4:
        *value = (v->cr4 & ~F(CR4_GUEST_HOST_MASK)) | (F(CR4_READ_SHADOW) & F(CR4_GUEST_HOST_MASK));
        return true;
    case 8:
        if (pri_ctl(x, PRI_CR8_STORE_EXITING))
            cr_exit(v, 8, CR_MOV_FROM, gpr, i);
        if (!pri_ctl(x, PRI_TPR_SHADOW))
            return false;
        *value = vapic_read(v, 0x80) >> 4 & 0xf;
        return true;
    default:
        return false;
    }
}

static bool cr3_is_target(const struct vmx *x, u64 value)
{
    for (unsigned n = 0; n < x->f[VMCS_CR3_TARGET_COUNT]; n++)
        if (x->f[VMCS_CR3_TARGET_VALUE0 + n] == value)
            return true;
    return false;
}

bool vmx_hook_cr_write(struct vcpu *v, unsigned cr, unsigned gpr, u64 *value, const struct insn *i)
{
    struct vmx *x = v->vmx;
    switch (cr) {
    case 0:
        if ((*value ^ F(CR0_READ_SHADOW)) & F(CR0_GUEST_HOST_MASK))
            cr_exit(v, 0, CR_MOV_TO, gpr, i);
        *value = (*value & ~F(CR0_GUEST_HOST_MASK)) | (v->cr0 & F(CR0_GUEST_HOST_MASK));
        return false;
    case 3:
        if (pri_ctl(x, PRI_CR3_LOAD_EXITING) && !cr3_is_target(x, *value))
            cr_exit(v, 3, CR_MOV_TO, gpr, i);
        return false;
    case 4:
        if ((*value ^ F(CR4_READ_SHADOW)) & F(CR4_GUEST_HOST_MASK))
            cr_exit(v, 4, CR_MOV_TO, gpr, i);
        *value = (*value & ~F(CR4_GUEST_HOST_MASK)) | (v->cr4 & F(CR4_GUEST_HOST_MASK));
        return false;
    case 8:
        if (pri_ctl(x, PRI_CR8_LOAD_EXITING))
            cr_exit(v, 8, CR_MOV_TO, gpr, i);
        if (!pri_ctl(x, PRI_TPR_SHADOW))
            return false;
        if (*value & ~0xfull)
            cpu_gp0(v);
        physmap_store(v->pm, F(VIRTUAL_APIC_PAGE_ADDR) + 0x80, *value << 4, 4);
        vapic_tpr_written(v);
        return true;
    default:
        return false;
    }
}

bool vmx_hook_clts(struct vcpu *v, const struct insn *i)
{
    struct vmx *x = v->vmx;
    if (!(F(CR0_GUEST_HOST_MASK) & CR0_TS))
        return false;
    if (F(CR0_READ_SHADOW) & CR0_TS)
        cr_exit(v, 0, CR_CLTS, 0, i);
    return true; /* TS is the hypervisor's: it stays */
}

bool vmx_hook_lmsw(struct vcpu *v, u16 *source, bool mem, gva_t la, const struct insn *i)
{
    struct vmx *x = v->vmx;
    u64 mask = F(CR0_GUEST_HOST_MASK), shadow = F(CR0_READ_SHADOW);
    u64 differs = (*source ^ shadow) & mask & (CR0_MP | CR0_EM | CR0_TS);
    /* LMSW can set PE and not clear it. */
    if (mask & CR0_PE && *source & CR0_PE && !(shadow & CR0_PE))
        differs |= CR0_PE;
    if (differs) {
        struct vmx_exit e = { .reason = EXIT_REASON_CR_ACCESS, .insn_len = i->len, .has_linear = mem, .linear = la };
        e.qualification = CR_LMSW << 4 | (mem ? BIT64(6) : 0) | (u64)*source << 16;
        vmx_exit(v, &e);
    }
    *source = (u16)((*source & ~mask) | (v->cr0 & mask));
    return false;
}

u64 vmx_hook_smsw(struct vcpu *v, u64 cr0, const struct insn *i)
{
    struct vmx *x = v->vmx;
    return (cr0 & ~F(CR0_GUEST_HOST_MASK)) | (F(CR0_READ_SHADOW) & F(CR0_GUEST_HOST_MASK));
}

void vmx_hook_dr(struct vcpu *v, unsigned dr, unsigned gpr, bool write, const struct insn *i)
{
    if (pri_ctl(v->vmx, PRI_MOV_DR_EXITING))
        vmx_exit_insn(v, EXIT_REASON_DR_ACCESS, dr | (write ? 0 : BIT64(4)) | (u64)gpr << 8, i);
}

/* ---- time ---- */
u64 vmx_hook_tsc(struct vcpu *v, u64 tsc)
{
    struct vmx *x = v->vmx;
    /* A guest that has read a time past the VMX-preemption timer's end does not retire another instruction. */
    if (pin_ctl(x, PIN_PREEMPTION_TIMER) && tsc >> VMX_MISC_TIMER_SHIFT >= x->timer_end)
        cpu_attention(v, ATT_VIRT);
    if (!pri_ctl(x, PRI_TSC_OFFSETTING))
        return tsc;
    if (sec_ctl(x, SEC_TSC_SCALING))
        tsc = (u64)((u128)tsc * F(TSC_MULTIPLIER) >> 48);
    return tsc + F(TSC_OFFSET);
}

/* ---- VM functions ---- */
/* SDM "EPTP Switching" */
static bool switch_eptp(struct vcpu *v)
{
    struct vmx *x = v->vmx;
    u32 index = (u32)v->gpr[RCX];
    if (index >= 512)
        return false;
    u64 eptp = physmap_load(v->pm, F(EPTP_LIST_ADDRESS) + 8ull * index, 8);
    if (!vmx_eptp_ok(&x->caps, v->maxphyaddr, eptp))
        return false;
    F(EPT_POINTER) = eptp;
    if (sec_ctl(x, SEC_EPT_VIOLATION_VE))
        F(EPTP_INDEX) = index;
    vmx_apply_slat(v);
    mmu_update(v);
    cpu_attention(v, ATT_BLOCK);
    return true;
}

void vmx_vmfunc(struct vcpu *v, const struct insn *i)
{
    struct vmx *x = v->vmx;
    u32 function = (u32)v->gpr[RAX];
    if (function > 63 || !(F(VM_FUNCTION_CONTROL) >> function & 1) || function != VMFUNC_EPTP_SWITCHING || !switch_eptp(v))
        vmx_exit_insn(v, EXIT_REASON_VMFUNC, 0, i);
}
