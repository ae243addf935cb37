/* "Instruction Intercepts", "IOIO Intercepts", "MSR Intercepts", and what guest mode virtualises. */
#include "cpu/msr.h"
#include "cpu/mem.h"
#include "svm/svm.h"

#define F(name) (x->f[VMCB_##name])

/* The intercept of each instruction; its number is the exit code. 0: none. */
static const u8 codes[INTERCEPT_COUNT] = {
    [INTERCEPT_SIDT] = SVM_EXIT_IDTR_READ,   [INTERCEPT_SGDT] = SVM_EXIT_GDTR_READ,   [INTERCEPT_SLDT] = SVM_EXIT_LDTR_READ,
    [INTERCEPT_STR] = SVM_EXIT_TR_READ,      [INTERCEPT_LIDT] = SVM_EXIT_IDTR_WRITE,  [INTERCEPT_LGDT] = SVM_EXIT_GDTR_WRITE,
    [INTERCEPT_LLDT] = SVM_EXIT_LDTR_WRITE,  [INTERCEPT_LTR] = SVM_EXIT_TR_WRITE,     [INTERCEPT_RDTSC] = SVM_EXIT_RDTSC,
    [INTERCEPT_RDPMC] = SVM_EXIT_RDPMC,      [INTERCEPT_PUSHF] = SVM_EXIT_PUSHF,      [INTERCEPT_POPF] = SVM_EXIT_POPF,
    [INTERCEPT_CPUID] = SVM_EXIT_CPUID,      [INTERCEPT_RSM] = SVM_EXIT_RSM,          [INTERCEPT_IRET] = SVM_EXIT_IRET,
    [INTERCEPT_INTN] = SVM_EXIT_SWINT,       [INTERCEPT_INVD] = SVM_EXIT_INVD,        [INTERCEPT_PAUSE] = SVM_EXIT_PAUSE,
    [INTERCEPT_HLT] = SVM_EXIT_HLT,          [INTERCEPT_INVLPG] = SVM_EXIT_INVLPG,    [INTERCEPT_INVLPGA] = SVM_EXIT_INVLPGA,
    [INTERCEPT_VMRUN] = SVM_EXIT_VMRUN,      [INTERCEPT_VMMCALL] = SVM_EXIT_VMMCALL,  [INTERCEPT_VMLOAD] = SVM_EXIT_VMLOAD,
    [INTERCEPT_VMSAVE] = SVM_EXIT_VMSAVE,    [INTERCEPT_STGI] = SVM_EXIT_STGI,        [INTERCEPT_CLGI] = SVM_EXIT_CLGI,
    [INTERCEPT_SKINIT] = SVM_EXIT_SKINIT,    [INTERCEPT_RDTSCP] = SVM_EXIT_RDTSCP,    [INTERCEPT_ICEBP] = SVM_EXIT_ICEBP,
    [INTERCEPT_WBINVD] = SVM_EXIT_WBINVD,    [INTERCEPT_WBNOINVD] = SVM_EXIT_WBINVD,  [INTERCEPT_MONITOR] = SVM_EXIT_MONITOR,
    [INTERCEPT_MWAIT] = SVM_EXIT_MWAIT,      [INTERCEPT_XSETBV] = SVM_EXIT_XSETBV,    [INTERCEPT_RDPRU] = SVM_EXIT_RDPRU,
    [INTERCEPT_INVPCID] = SVM_EXIT_INVPCID,
};

/*
 * "Pause Intercept Filtering", with its threshold: PAUSEs further apart start the count again. The
 * threshold is in processor cycles; an instruction is taken to last one, however long the host takes.
 */
static bool pause_exits(struct vcpu *v)
{
    struct svm *x = v->svm;
    if (!cpu_has(v, FEAT_PAUSEFILTER))
        return true;
    if (cpu_has(v, FEAT_PFTHRESHOLD) && F(PAUSE_FILTER_THRESHOLD)) {
        u64 now = cpu_retired(v);
        if (now - x->pause_last > F(PAUSE_FILTER_THRESHOLD))
            x->pause_count = (u16)F(PAUSE_FILTER_COUNT);
        x->pause_last = now;
    }
    if (!x->pause_count)
        return true;
    x->pause_count--;
    return false;
}

static gva_t operand_linear(const struct vcpu *v, const struct insn *i) { return (v->seg_base[i->seg] + insn_ea(v, i)) & v->linear_mask; }

/* "Decode Assists" */
static void assist(const struct vcpu *v, u64 code, const struct insn *i, struct svm_exit *e)
{
    if (!cpu_has(v, FEAT_DECODEASSISTS))
        return;
    switch (code) {
    case SVM_EXIT_SWINT: e->info1 = (u8)i->imm; break;
    case SVM_EXIT_INVLPG: e->info1 = operand_linear(v, i); break;
    case SVM_EXIT_INVPCID:
        e->info1 = operand_linear(v, i);
        e->info2 = cpu_long64(v) ? v->gpr[i->reg] : (u32)v->gpr[i->reg];
        break;
    default: break;
    }
}

void svm_hook_insn(struct vcpu *v, enum intercept what, const struct insn *i)
{
    struct svm *x = v->svm;
    u64 code = codes[what];
    if (!code)
        return;
    bool exits = svm_intercepts(x, (unsigned)code);
    if (what == INTERCEPT_PAUSE && exits)
        exits = pause_exits(v);
    if (what == INTERCEPT_MWAIT && !exits && v->monitor_armed && svm_intercepts(x, SVM_EXIT_MWAIT_COND)) {
        code = SVM_EXIT_MWAIT_COND;
        exits = true;
    }
    /* Virtual VMLOAD and VMSAVE exist in 64-bit mode under nested paging; elsewhere they are always intercepted. */
    if ((what == INTERCEPT_VMLOAD || what == INTERCEPT_VMSAVE) && x->virtual_vmload)
        exits |= !cpu_long64(v) || !x->nested_paging;
    if (!exits)
        return;
    struct svm_exit e = {.code = code, .next_rip = true};
    assist(v, code, i, &e);
    svm_exit(v, &e);
}

void svm_hook_io(struct vcpu *v, const struct io_access *io, const struct insn *i)
{
    struct svm *x = v->svm;
    if (!svm_intercepts(x, SVM_EXIT_IOIO))
        return;
    bool exits = false;
    for (unsigned n = 0; n < io->size && !exits; n++) {
        u32 port = io->port + n; /* the map has bits for ports 0x10000 to 0x10002 too */
        exits = physmap_load(v->pm, (F(IOPM_BASE_PA) & PAGE_MASK) + port / 8, 1) >> (port % 8) & 1;
    }
    if (!exits)
        return;
    u64 info = (u64)io->in | (u64)io->string << 2 | (u64)io->rep << 3 | (u64)io->size << 4
        | (u64)(i->adsize == 8 ? BIT(9) : i->adsize == 4 ? BIT(8) : BIT(7)) | (u64)io->port << 16;
    if (io->string && cpu_has(v, FEAT_DECODEASSISTS))
        info |= (u64)(io->seg & 7) << 10;
    svm_exit_insn(v, SVM_EXIT_IOIO, info, (v->rip + i->len) & v->linear_mask);
}

void svm_hook_msr(struct vcpu *v, u32 msr, bool write, u64 value, const struct insn *i)
{
    struct svm *x = v->svm;
    if (!svm_intercepts(x, SVM_EXIT_MSR))
        return;
    bool exits = true; /* outside the three ranges of the map */
    u32 range = msr >> 13 == 0 ? 0 : msr >> 13 == 0xc0000000u >> 13 ? 1 : msr >> 13 == 0xc0010000u >> 13 ? 2 : 3;
    if (range < 3) {
        u32 bit = 2 * (msr & 0x1fff) + write;
        exits = physmap_load(v->pm, (F(MSRPM_BASE_PA) & PAGE_MASK) + 0x800 * range + bit / 8, 1) >> (bit % 8) & 1;
    }
    if (exits)
        svm_exit_insn(v, SVM_EXIT_MSR, write, 0);
}

/* ---- control registers ---- */
static void __attribute__((noreturn)) cr_exit(struct vcpu *v, unsigned code, unsigned gpr)
{
    svm_exit_insn(v, code, cpu_has(v, FEAT_DECODEASSISTS) ? BIT64(63) | gpr : 0, 0);
}

bool svm_hook_cr_read(struct vcpu *v, unsigned cr, unsigned gpr, u64 *value, const struct insn *i)
{
    struct svm *x = v->svm;
    if (svm_intercepts(x, SVM_EXIT_READ_CR0 + cr))
        cr_exit(v, SVM_EXIT_READ_CR0 + cr, gpr);
    if (cr != 8 || !(F(INT_CTL) & V_INTR_MASKING))
        return false;
    *value = F(INT_CTL) & V_TPR;
    return true;
}

/* Exceptions that come before the intercept: illegal bits and combinations. */
static bool cr_illegal(const struct vcpu *v, unsigned cr, u64 value)
{
    switch (cr) {
    case 0: return value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD));
    case 4: return value & cpu_cr4_reserved(v);
    case 8: return value & ~0xfull;
    default: return false;
    }
}

/* The selective intercept: bits other than TS and MP change. */
static bool selective_cr0(const struct vcpu *v, u64 value) { return (value ^ v->cr0) & ~(CR0_TS | CR0_MP | CR0_ET); }

bool svm_hook_cr_write(struct vcpu *v, unsigned cr, unsigned gpr, u64 *value, const struct insn *i)
{
    struct svm *x = v->svm;
    if (cr_illegal(v, cr, *value))
        cpu_gp0(v);
    if (svm_intercepts(x, SVM_EXIT_WRITE_CR0 + cr))
        cr_exit(v, SVM_EXIT_WRITE_CR0 + cr, gpr);
    if (cr == 0 && svm_intercepts(x, SVM_EXIT_CR0_SEL_WRITE) && selective_cr0(v, *value))
        cr_exit(v, SVM_EXIT_CR0_SEL_WRITE, gpr);
    if (cr != 8)
        return false;
    /* "Interrupt Masking in EFLAGS.IF and TPR": V_TPR follows; without V_INTR_MASKING the physical TPR does too. */
    F(INT_CTL) = (F(INT_CTL) & ~V_TPR) | *value;
    cpu_attention(v, ATT_VIRT);
    return F(INT_CTL) & V_INTR_MASKING;
}

bool svm_hook_clts(struct vcpu *v, const struct insn *i)
{
    if (svm_intercepts(v->svm, SVM_EXIT_WRITE_CR0))
        svm_exit_insn(v, SVM_EXIT_WRITE_CR0, 0, 0);
    return false; /* CR0_SEL_WRITE does not regard it: only TS changes */
}

bool svm_hook_lmsw(struct vcpu *v, u16 *source, bool mem, gva_t la, const struct insn *i)
{
    if (svm_intercepts(v->svm, SVM_EXIT_WRITE_CR0))
        svm_exit_insn(v, SVM_EXIT_WRITE_CR0, 0, 0);
    if (svm_intercepts(v->svm, SVM_EXIT_CR0_SEL_WRITE)) /* whatever it writes */
        svm_exit_insn(v, SVM_EXIT_CR0_SEL_WRITE, 0, 0);
    return false;
}

u64 svm_hook_smsw(struct vcpu *v, u64 cr0, const struct insn *i)
{
    if (svm_intercepts(v->svm, SVM_EXIT_READ_CR0))
        svm_exit_insn(v, SVM_EXIT_READ_CR0, 0, 0);
    return cr0;
}

void svm_hook_dr(struct vcpu *v, unsigned dr, unsigned gpr, bool write, const struct insn *i)
{
    unsigned code = (write ? SVM_EXIT_WRITE_DR0 : SVM_EXIT_READ_DR0) + dr;
    if (svm_intercepts(v->svm, code))
        svm_exit_insn(v, code, cpu_has(v, FEAT_DECODEASSISTS) ? gpr : 0, 0);
}

/* ---- what the guest sees of MSRs and time ---- */
#define MSR_TSC 0x10

u64 svm_hook_tsc(struct vcpu *v, u64 tsc)
{
    struct svm *x = v->svm;
    if (cpu_has(v, FEAT_TSCRATEMSR)) /* "TSC Ratio MSR": 8.32 fixed point */
        tsc = (u64)((u128)tsc * v->misc_msr[SLOT_TSC_RATIO] >> 32);
    return tsc + F(TSC_OFFSET);
}

bool svm_hook_rdmsr(struct vcpu *v, u32 msr, u64 *value)
{
    if (msr != MSR_TSC)
        return false;
    *value = svm_hook_tsc(v, cpu_tsc(v));
    return true;
}

bool svm_hook_wrmsr(struct vcpu *v, u32 msr, u64 value) { return false; }
