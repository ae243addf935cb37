/*
 * Life of a logical processor. Manual: Intel SDM volume 3, "Processor Management and Initialization",
 * table "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT".
 */
#include "cpu/cpu.h"
#include "cpu/borrow.h"
#include "cpu/models.h"
#include "cpu/msr.h"
#include "cpu/pmu.h"
#include "devices/irq.h"

#include <stdlib.h>

#define PAT_RESET   0x0007040600070406ull
#define MTRR_WB     6
#define APIC_BASE   0x1b
#define CR0_INIT_KEEPS (CR0_CD | CR0_NW)

struct vcpu *vcpu_new(const struct cpu_config *cfg, struct error *err)
{
    struct vcpu *v = aligned_alloc(64, (sizeof(*v) + 63) & ~63ull);
    if (!v) {
        error_set(err, "processor %u: out of memory", cfg->index);
        return NULL;
    }
    memset(v, 0, sizeof(*v));
    v->model = cfg->model;
    memcpy(v->features, cfg->features, FEAT_COUNT);
    v->index = (u8)cfg->index;
    v->svm_asids = cfg->svm_asids ? cfg->svm_asids : 0x8000;
    v->nr_cpus = (u16)(cfg->nr_cpus ? cfg->nr_cpus : 1);
    v->maxphyaddr = (u8)(cfg->maxphyaddr ? cfg->maxphyaddr : cfg->model->maxphyaddr);
    v->linear_width = cpu_has(v, FEAT_LA57) ? 57 : 48;
    v->tsc_hz = cfg->tsc_hz ? cfg->tsc_hz : CRYSTAL_HZ;
    v->pm = cfg->pm;
    v->pio = cfg->pio;
    v->clock = cfg->clock;
    v->machine = cfg->machine;
    v->mxcsr_mask = 0xffff;
    v->apic_page = v->virt_apic_page = ~0ull;
    v->mmu = mmu_new(cfg->pm);
    bool counters = cfg->model->vendor == VENDOR_AMD || cpu_has(v, FEAT_PMU);
    if (!v->mmu || (counters && !pmu_new(v))) {
        error_set(err, "processor %u: out of memory", cfg->index);
        vcpu_free(v);
        return NULL;
    }
    cpu_reset(v);
    return v;
}

void vcpu_free(struct vcpu *v)
{
    if (!v)
        return;
    borrow_free(v);
    free(v->exits);
    pmu_free(v);
    if (v->mmu)
        mmu_free(v->mmu);
    free(v);
}

void vcpu_attach_intc(struct vcpu *v, const struct intc_ops *ops, void *intc)
{
    v->intc_ops = ops;
    v->intc = intc;
    v->apic_page = ops && ops->page ? ops->page(intc) : ~0ull;
}

/* ---- RESET and INIT ---- */

static void reset_segments(struct vcpu *v)
{
    for (unsigned s = 0; s < SEG_COUNT; s++)
        v->seg[s] = (struct segment){.limit = 0xffff, .ar = AR_P | AR_S | 3};
    v->seg[SEG_CS] = (struct segment){.base = 0xffff0000, .limit = 0xffff, .ar = AR_P | AR_S | 0xb, .sel = 0xf000};
    v->seg[SEG_LDTR].ar = AR_P | 2;
    v->seg[SEG_TR].ar = AR_P | 0xb;
    v->gdtr = v->idtr = (struct desc_table){.base = 0, .limit = 0xffff};
}

/* CPUID.1:EAX, which RESET and INIT leave in EDX. */
static u32 signature(struct vcpu *v)
{
    u32 r[4];
    cpu_cpuid(v, 1, 0, r);
    return r[0];
}

/* What RESET and INIT have in common. */
static void reset_core(struct vcpu *v, u64 cr0)
{
    memset(v->gpr, 0, sizeof(v->gpr));
    v->zero = 0;
    v->rip = v->next_rip = 0xfff0;
    cpu_put_rflags(v, FL_FIXED);
    v->cr0 = cr0;
    v->cr2 = v->cr3 = v->cr4 = 0;
    v->efer = 0;
    memset(v->pdpte, 0, sizeof(v->pdpte));
    memset(v->dr, 0, sizeof(v->dr));
    v->dr6 = DR6_FIXED;
    v->dr7 = DR7_FIXED;
    v->debugctl = 0;
    v->spec_ctrl = 0;
    reset_segments(v);
    v->shadow = 0;
    v->nmi_blocked = v->nmi_pending = false;
    v->pending_dbg = 0;
    v->delivering = (struct event){0};
    v->fault_depth = 0;
    v->monitor_armed = false;
    v->guest_mode = false;
    v->virt = NULL;
    v->gif = true;
    v->gpr[RDX] = signature(v);
    mmu_set_guest(v, &(const struct slat){.kind = SLAT_NONE}, 0);
    cpu_set_cpl(v, 0);
    cpu_mode_changed(v);
    cpu_simd_changed(v);
    mmu_flush_all(v);
    mmu_watch_changed(v);
    cpu_flags_changed(v);
}

static bool is_bsp(struct vcpu *v)
{
    u64 base;
    if (v->intc_ops && v->intc_ops->rdmsr(v->intc, APIC_BASE, &base) == 0)
        return base & BIT64(8);
    return v->index == 0;
}

static void reset_msrs(struct vcpu *v)
{
    v->star = v->lstar = v->cstar = v->sfmask = v->kernel_gs_base = 0;
    v->sysenter_cs = v->sysenter_esp = v->sysenter_eip = 0;
    v->pat = PAT_RESET;
    v->tsc_aux = 0;
    v->tsc_adjust = 0;
    v->tsc_base = 0; /* counts from power-on: all processors of a machine agree, whenever each is reset */
    v->misc_enable = MISC_ENABLE_FAST_STRING | MISC_ENABLE_BTS_UNAVAILABLE | MISC_ENABLE_PEBS_UNAVAILABLE |
                     (cpu_has(v, FEAT_MONITOR) ? MISC_ENABLE_MONITOR : 0) | (cpu_has(v, FEAT_PMU) ? MISC_ENABLE_PERFMON : 0);
    v->feature_control = 0;
    v->mcg_cap = cpu_has(v, FEAT_MCA) ? MC_BANKS : 0;
    v->mcg_status = 0;
    v->mtrr_def_type = 0;
    memset(v->mtrr_fixed, 0, sizeof(v->mtrr_fixed));
    memset(v->mtrr_base, 0, sizeof(v->mtrr_base));
    memset(v->mtrr_mask, 0, sizeof(v->mtrr_mask));
    v->s_cet = v->u_cet = v->ssp = v->int_ssp_table = 0;
    memset(v->pl_ssp, 0, sizeof(v->pl_ssp));
    v->smbase = 0x30000;
    v->bios_sign_id = v->model->microcode;
    memset(v->misc_msr, 0, sizeof(v->misc_msr));
    /* Linux calls it a firmware bug when an AMD processor's TSC does not count at the P0 frequency. */
    v->misc_msr[SLOT_HWCR] = HWCR_TSC_FREQ_SEL;
    v->misc_msr[SLOT_TSC_RATIO] = BIT64(32); /* 1.0 */
}

void cpu_reset(struct vcpu *v)
{
    memset(v->vec, 0, sizeof(v->vec));
    memset(v->k, 0, sizeof(v->k));
    v->mxcsr = 0x1f80;
    v->x87 = (struct x87){.fcw = 0x40, .ftw = 0xff};
    v->xcr0 = XCR0_X87;
    v->xss = 0;
    v->pkru = v->pkrs = 0;
    reset_msrs(v);
    pmu_reset(v);
    v->in_vmx_operation = false;
    atomic_fetch_and(&v->requests, REQ_EXIT | REQ_FLUSH | REQ_PROTECT);
    reset_core(v, CR0_CD | CR0_NW | CR0_ET);
    v->activity = is_bsp(v) ? ACTIVITY_ACTIVE : ACTIVITY_WAIT_SIPI;
    cpu_attention(v, ATT_BLOCK | ATT_IRQ_WINDOW);
}

void cpu_init_signal(struct vcpu *v)
{
    /* x87, SSE, XCR0, the TSC, MTRRs and most MSRs keep their values; so do the cache bits of CR0. */
    reset_core(v, (v->cr0 & CR0_INIT_KEEPS) | CR0_ET);
    if (v->intc_ops && v->intc_ops->init)
        v->intc_ops->init(v->intc);
    v->activity = is_bsp(v) ? ACTIVITY_ACTIVE : ACTIVITY_WAIT_SIPI;
    cpu_attention(v, ATT_BLOCK | ATT_IRQ_WINDOW);
}

void cpu_firmware_defaults(struct vcpu *v)
{
    if (v->model->vendor == VENDOR_INTEL)
        v->feature_control = FEATURE_CONTROL_LOCK | (cpu_has(v, FEAT_VMX) ? FEATURE_CONTROL_VMX_OUTSIDE : 0);
    v->x87 = (struct x87){.fcw = 0x37f}; /* as after FNINIT */
    if (!cpu_has(v, FEAT_MTRR))
        return;
    /* Write-back everywhere but the legacy video and ROM hole; the PCI hole is the machine's to know. */
    for (unsigned n = 0; n < ARRAY_SIZE(v->mtrr_fixed); n++)
        v->mtrr_fixed[n] = n == 2 ? 0 : 0x0606060606060606ull; /* FIX16K_A0000 */
    v->mtrr_def_type = BIT64(11) | BIT64(10) | MTRR_WB;
}

/* ---- pins: other threads' side, mailbox only ---- */

static void pin_intr(void *cpu, bool asserted)
{
    struct vcpu *v = cpu;
    if (asserted)
        vcpu_request(v, REQ_INTR);
    else
        atomic_fetch_and_explicit(&v->requests, ~(u32)REQ_INTR, memory_order_release);
}

/*
 * A processor takes an NMI within an instruction or so, and holds one more that comes from then on until
 * IRET (SDM vol. 3 "Handling Multiple NMIs"). This one may notice later, and has not lost what came after.
 */
static void pin_nmi(void *cpu)
{
    struct vcpu *v = cpu;
    u32 old = atomic_load(&v->requests);
    while (!atomic_compare_exchange_weak(&v->requests, &old, old | (old & REQ_NMI && !v->nmi_blocked ? REQ_NMI_AGAIN : REQ_NMI)))
        ;
    vcpu_request(v, 0);
}
static void pin_smi(void *cpu) { vcpu_request(cpu, REQ_SMI); }
static void pin_init(void *cpu) { vcpu_request(cpu, REQ_INIT); }

static void pin_sipi(void *cpu, u8 vector)
{
    struct vcpu *v = cpu;
    atomic_store_explicit(&v->sipi_vector, vector, memory_order_release);
    vcpu_request(v, REQ_SIPI);
}

const struct cpu_pins vcpu_pins = {
    .intr = pin_intr,
    .nmi = pin_nmi,
    .smi = pin_smi,
    .init = pin_init,
    .sipi = pin_sipi,
};
