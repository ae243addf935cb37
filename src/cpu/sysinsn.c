/*
 * System instructions: control, debug and model-specific registers, descriptor tables, TLB
 * invalidation, time, waiting. Manuals: Intel SDM volume 2; for what a hypervisor sees first, SDM
 * volume 3, "Relative Priority of Faults and VM Exits", and APM volume 2, "Instruction Intercepts".
 * The rows' checks (privilege, UMIP, TSD, PCE, FSGSBASE) and intercepts have been done by the handler.
 */
#include "base/clock.h"
#include "base/log.h"
#include "cpu/bodies_sys.h"
#include "cpu/mem.h"
#include "cpu/models.h"
#include "cpu/msr.h"
#include "cpu/pmu.h"
#include "devices/irq.h"

#include <sched.h>

static bool in_guest(const struct vcpu *v) { return unlikely(v->guest_mode); }

/* A register operand of MOV CR/DR, RDFSBASE...: 32-bit writes clear the upper half. */
static u64 operand_get(const struct vcpu *v, unsigned r, unsigned size)
{
    return size == 8 ? v->gpr[r] : size == 4 ? (u32)v->gpr[r] : (u16)v->gpr[r];
}

static void operand_set(struct vcpu *v, unsigned r, u64 value, unsigned size)
{
    if (size == 2)
        reg16_set(v, r, (u16)value);
    else
        v->gpr[r] = size == 8 ? value : (u32)value;
}

static unsigned system_size(const struct vcpu *v) { return cpu_long64(v) ? 8 : 4; }

/* The linear address of the memory operand, unchecked (INVLPG, and what exits report). */
static gva_t operand_linear(const struct vcpu *v, const struct insn *i)
{
    return (v->seg_base[i->seg] + insn_ea(v, i)) & v->linear_mask;
}

/* Faults as a byte load at @offset would, but reads nothing: cache-line instructions must not touch devices. */
static pa_t touch(struct vcpu *v, unsigned seg, u64 offset)
{
    gva_t la = seg_linear(v, seg, offset, 1, ACCESS_READ);
    if (cpu_long64(v) && !cpu_canonical(v, la))
        cpu_raise_error(v, seg == SEG_SS ? VEC_SS : VEC_GP, 0);
    struct translation t;
    struct walk w;
    u32 access = ACCESS_READ | mmu_access_mode(v);
    if (!mmu_translate(v, la, access, &t, &w))
        cpu_raise_walk(v, la, access, &w);
    return t.pa;
}

/* ---- control registers: the decoder has seen to it that i->reg is 0, 2, 3, 4 or 8 ---- */

static u64 read_cr(struct vcpu *v, unsigned cr)
{
    switch (cr) {
    case 0: return v->cr0;
    case 2: return v->cr2;
    case 3: return v->cr3;
    case 4: return v->cr4;
    default: return v->intc_ops ? v->intc_ops->get_tpr(v->intc) >> 4 : 0;
    }
}

static void write_cr8(struct vcpu *v, u64 value)
{
    if (value & ~15ull)
        cpu_gp0(v);
    if (v->intc_ops)
        v->intc_ops->set_tpr(v->intc, (u8)(value << 4));
    cpu_attention(v, ATT_IRQ_WINDOW);
}

void insn_mov_from_cr(struct vcpu *v, const struct insn *i)
{
    unsigned cr = i->reg;
    u64 value;
    if (!in_guest(v) || !v->virt->cr_read(v, cr, i->rm, &value, i))
        value = read_cr(v, cr);
    operand_set(v, i->rm, value, system_size(v));
}

void insn_mov_to_cr(struct vcpu *v, const struct insn *i)
{
    unsigned cr = i->reg;
    u64 value = operand_get(v, i->rm, system_size(v));
    if (in_guest(v) && v->virt->cr_write(v, cr, i->rm, &value, i))
        return;
    log_at(cr, "cpu %u: rip %#llx: CR%u = %#llx", v->index, (unsigned long long)v->rip, cr, (unsigned long long)value);
    switch (cr) {
    case 0: cpu_write_cr0(v, value); break;
    case 2: v->cr2 = value; break;
    case 3: cpu_write_cr3(v, value); break;
    case 4: cpu_write_cr4(v, value); break;
    default: write_cr8(v, value);
    }
}

void insn_clts(struct vcpu *v, const struct insn *i)
{
    if (in_guest(v) && v->virt->clts(v, i))
        return;
    if (v->cr0 & CR0_TS) {
        v->cr0 &= ~CR0_TS;
        cpu_simd_changed(v);
    }
}

void insn_lmsw(struct vcpu *v, const struct insn *i)
{
    bool mem = i->flags & INSN_MEM;
    u16 source = mem ? mem_read16(v, i->seg, insn_ea(v, i)) : reg16_get(v, i->rm);
    if (in_guest(v) && v->virt->lmsw(v, &source, mem, mem ? operand_linear(v, i) : 0, i))
        return;
    /* PE can be set, not cleared. */
    cpu_write_cr0(v, (v->cr0 & ~(CR0_MP | CR0_EM | CR0_TS)) | (source & (CR0_PE | CR0_MP | CR0_EM | CR0_TS)));
}

void insn_smsw(struct vcpu *v, const struct insn *i)
{
    u64 value = in_guest(v) ? v->virt->smsw(v, v->cr0, i) : v->cr0;
    if (i->flags & INSN_MEM)
        mem_write16(v, i->seg, insn_ea(v, i), (u16)value);
    else
        operand_set(v, i->rm, value, i->opsize);
}

/* ---- debug registers ---- */

#define DR6_WRITABLE 0xe00full
#define DR7_WRITABLE 0xffff23ffull /* without RTM (bit 11); bits 12, 14 and 15 are zero */

/*
 * Which register, after every fault and exit. VMX exits come before the #UD of DR4 and DR5 and the
 * #GP of the privilege check (SDM "Instructions That Cause VM Exits Conditionally", MOV DR); SVM
 * intercepts after both; general detect is last.
 */
static unsigned dr_access(struct vcpu *v, const struct insn *i, bool write)
{
    unsigned dr = i->reg;
    bool vmx = v->in_vmx_operation;
    if (dr > 7)
        cpu_ud(v);
    if (in_guest(v) && vmx)
        v->virt->dr(v, dr, i->rm, write, i);
    if ((dr == 4 || dr == 5) && (v->cr4 & CR4_DE))
        cpu_ud(v);
    if (v->cpl)
        cpu_gp0(v);
    if (in_guest(v) && !vmx)
        v->virt->dr(v, dr, i->rm, write, i);
    if (v->dr7 & DR7_GD)
        cpu_raise_db(v, DR6_BD);
    return dr == 4 || dr == 5 ? dr + 2 : dr;
}

void insn_mov_from_dr(struct vcpu *v, const struct insn *i)
{
    unsigned dr = dr_access(v, i, false);
    operand_set(v, i->rm, dr < 4 ? v->dr[dr] : dr == 6 ? v->dr6 : v->dr7, system_size(v));
}

/* Breakpoint @n is enabled, with R/W field @kind. */
static bool breakpoint_on(const struct vcpu *v, unsigned n, unsigned kind)
{
    return (v->dr7 >> n * 2 & 3) && (v->dr7 >> (16 + n * 4) & 3) == kind;
}

static void breakpoints_changed(struct vcpu *v)
{
    mmu_watch_changed(v);
    for (unsigned n = 0; n < 4; n++)
        if (breakpoint_on(v, n, 0))
            cpu_attention(v, ATT_DEBUG);
}

void insn_mov_to_dr(struct vcpu *v, const struct insn *i)
{
    unsigned dr = dr_access(v, i, true);
    u64 value = operand_get(v, i->rm, system_size(v));
    if (dr >= 6 && value >> 32)
        cpu_gp0(v);
    if (dr == 6) {
        v->dr6 = (value & DR6_WRITABLE) | DR6_FIXED;
        return;
    }
    if (dr == 7)
        value = (value & DR7_WRITABLE) | DR7_FIXED;
    u64 *reg = dr == 7 ? &v->dr7 : &v->dr[dr];
    if (*reg == value)
        return; /* costs nothing: no flush, no new watch on any page */
    u64 enabled = v->dr7 & 0xff;
    *reg = value;
    if (enabled || (v->dr7 & 0xff))
        breakpoints_changed(v);
}

/* ---- descriptor tables ---- */

static void store_table(struct vcpu *v, const struct insn *i, const struct desc_table *t)
{
    /* All 32 bits of the base are stored whatever the operand size. */
    u8 buf[10];
    store16(buf, t->limit);
    store64(buf + 2, t->base);
    mem_write_bytes(v, i->seg, insn_ea(v, i), buf, cpu_long64(v) ? 10 : 6);
}

static void load_table(struct vcpu *v, const struct insn *i, struct desc_table *t)
{
    u8 buf[10] = {0};
    mem_read_bytes(v, i->seg, insn_ea(v, i), buf, cpu_long64(v) ? 10 : 6);
    u64 base = load64(buf + 2);
    if (cpu_long64(v)) {
        if (!cpu_canonical_any(v, base))
            cpu_gp0(v);
    } else if (i->opsize == 2) {
        base &= 0xffffff;
    }
    t->limit = load16(buf);
    t->base = base;
}

void insn_sgdt(struct vcpu *v, const struct insn *i) { store_table(v, i, &v->gdtr); }
void insn_sidt(struct vcpu *v, const struct insn *i) { store_table(v, i, &v->idtr); }
void insn_lgdt(struct vcpu *v, const struct insn *i) { load_table(v, i, &v->gdtr); }
void insn_lidt(struct vcpu *v, const struct insn *i) { load_table(v, i, &v->idtr); }

/* ---- TLB and caches ---- */

void insn_invlpg(struct vcpu *v, const struct insn *i)
{
    gva_t la = operand_linear(v, i);
    /* "In 64-bit mode, if the memory address is in non-canonical form, INVLPG is the same as a NOP." */
    if (!cpu_long64(v) || cpu_canonical(v, la))
        mmu_invlpg(v, la);
}

void insn_invpcid(struct vcpu *v, const struct insn *i)
{
    u64 type = operand_get(v, i->reg, system_size(v));
    u8 desc[16];
    mem_read_bytes(v, i->seg, insn_ea(v, i), desc, sizeof(desc));
    u64 pcid = load64(desc), la = load64(desc + 8);
    if (type > INVPCID_ALL || pcid >> 12)
        cpu_gp0(v);
    if (type <= INVPCID_CONTEXT && pcid && !(v->cr4 & CR4_PCIDE))
        cpu_gp0(v);
    /* As for base registers, what counts is the widest address the processor knows, not CR4.LA57. */
    if (type == INVPCID_ADDRESS && !cpu_canonical_any(v, la))
        cpu_gp0(v);
    mmu_invpcid(v, (enum invpcid_type)type, (u16)pcid, la);
}

/* Memory is always coherent here: there is nothing to write back, and nothing INVD could lose. */
void insn_invd(struct vcpu *v, const struct insn *i) {}
void insn_wbinvd(struct vcpu *v, const struct insn *i) {}
void insn_wbnoinvd(struct vcpu *v, const struct insn *i) {}

void insn_clflush(struct vcpu *v, const struct insn *i) { touch(v, i->seg, insn_ea(v, i)); }
void insn_clflushopt(struct vcpu *v, const struct insn *i) { touch(v, i->seg, insn_ea(v, i)); }
void insn_clwb(struct vcpu *v, const struct insn *i) { touch(v, i->seg, insn_ea(v, i)); }

static u64 address_mask(const struct insn *i) { return i->adsize == 8 ? ~0ull : i->adsize == 4 ? 0xffffffff : 0xffff; }
static unsigned implicit_segment(const struct insn *i) { return i->flags & INSN_SEG ? i->seg : SEG_DS; }

void insn_clzero(struct vcpu *v, const struct insn *i)
{
    static const u8 zero[64];
    mem_write_bytes(v, implicit_segment(i), v->gpr[RAX] & address_mask(i) & ~63ull, zero, sizeof(zero));
}

/* ---- time and counters ---- */

static u64 guest_tsc(struct vcpu *v)
{
    u64 tsc = cpu_tsc(v);
    return in_guest(v) ? v->virt->tsc(v, tsc) : tsc;
}

static void edx_eax(struct vcpu *v, u64 value)
{
    reg32_set(v, RAX, (u32)value);
    reg32_set(v, RDX, (u32)(value >> 32));
}

void insn_rdtsc(struct vcpu *v, const struct insn *i) { edx_eax(v, guest_tsc(v)); }

void insn_rdtscp(struct vcpu *v, const struct insn *i)
{
    edx_eax(v, guest_tsc(v));
    reg32_set(v, RCX, (u32)v->tsc_aux);
}

void insn_rdpid(struct vcpu *v, const struct insn *i) { v->gpr[i->rm] = (u32)v->tsc_aux; }

void insn_rdpmc(struct vcpu *v, const struct insn *i)
{
    u64 value;
    if (!pmu_rdpmc(v, reg32_get(v, RCX), &value))
        cpu_gp0(v);
    edx_eax(v, value);
}

void insn_rdpru(struct vcpu *v, const struct insn *i)
{
    u32 n = reg32_get(v, RCX);
    if (v->cpl && (v->cr4 & CR4_TSD))
        cpu_ud(v);
    /* MPERF and APERF count alike: the processor always runs at its nominal frequency. */
    edx_eax(v, n <= 1 ? cpu_tsc(v) : 0);
    v->aflags = n <= 1 ? FL_CF : 0;
}

/* ---- model-specific registers ---- */

void insn_rdmsr(struct vcpu *v, const struct insn *i)
{
    u32 msr = reg32_get(v, RCX);
    u64 value = 0;
    if (in_guest(v))
        v->virt->msr(v, msr, false, 0, i);
    if (!(in_guest(v) && v->virt->rdmsr(v, msr, &value)) && !cpu_rdmsr(v, msr, &value)) {
        log_at(unimplemented, "cpu %u: rip %#llx: RDMSR %#x: no such register", v->index,
               (unsigned long long)v->rip, msr);
        cpu_gp0(v);
    }
    log_at(msr, "cpu %u: rip %#llx: RDMSR %#x = %#llx", v->index, (unsigned long long)v->rip, msr,
           (unsigned long long)value);
    edx_eax(v, value);
}

void insn_wrmsr(struct vcpu *v, const struct insn *i)
{
    u32 msr = reg32_get(v, RCX);
    u64 value = (u64)reg32_get(v, RDX) << 32 | reg32_get(v, RAX);
    if (in_guest(v))
        v->virt->msr(v, msr, true, value, i);
    log_at(msr, "cpu %u: rip %#llx: WRMSR %#x = %#llx", v->index, (unsigned long long)v->rip, msr,
           (unsigned long long)value);
    if (!(in_guest(v) && v->virt->wrmsr(v, msr, value)) && !cpu_wrmsr(v, msr, value)) {
        log_at(unimplemented, "cpu %u: rip %#llx: WRMSR %#x = %#llx: refused", v->index,
               (unsigned long long)v->rip, msr, (unsigned long long)value);
        cpu_gp0(v);
    }
}

/* ---- FS and GS bases ---- */

static void write_base(struct vcpu *v, unsigned seg, const struct insn *i)
{
    u64 base = operand_get(v, i->rm, i->opsize);
    if (!cpu_canonical_any(v, base))
        cpu_gp0(v);
    v->seg[seg].base = v->seg_base[seg] = base;
}

void insn_rdfsbase(struct vcpu *v, const struct insn *i) { operand_set(v, i->rm, v->seg[SEG_FS].base, i->opsize); }
void insn_rdgsbase(struct vcpu *v, const struct insn *i) { operand_set(v, i->rm, v->seg[SEG_GS].base, i->opsize); }
void insn_wrfsbase(struct vcpu *v, const struct insn *i) { write_base(v, SEG_FS, i); }
void insn_wrgsbase(struct vcpu *v, const struct insn *i) { write_base(v, SEG_GS, i); }

/* ---- waiting ---- */

void insn_hlt(struct vcpu *v, const struct insn *i)
{
    v->activity = ACTIVITY_HLT;
    cpu_attention(v, ATT_IRQ_WINDOW);
}

/* Software spins: with threads, whoever it waits for may have none of the host's processors. */
void insn_pause(struct vcpu *v, const struct insn *i)
{
    if (v->wake)
        sched_yield();
}
void insn_serialize(struct vcpu *v, const struct insn *i) {}

static void arm_monitor(struct vcpu *v, unsigned seg, u64 offset)
{
    v->monitor_addr = touch(v, seg, offset) & ~63ull;
    v->monitor_armed = true;
    const u8 *line = physmap_ram(v->pm, v->monitor_addr);
    if (line)
        memcpy(v->monitor_line, line, sizeof(v->monitor_line));
}

/*
 * A store to the line is noticed by what it has changed. One that wrote what was there already is not:
 * MWAIT may end for reasons of its own, and software must look again, so that the wait is never longer
 * than this while anybody else can store.
 */
#define MWAIT_LONGEST_NS 1000000

bool cpu_mwait_over(struct vcpu *v)
{
    const u8 *line = physmap_ram(v->pm, v->monitor_addr);
    if (v->monitor_armed && !(line && memcmp(v->monitor_line, line, sizeof(v->monitor_line))) && clock_now(v->clock) < v->mwait_until)
        return false;
    v->monitor_armed = false;
    return true;
}

/* IA32_MISC_ENABLE bit 18, "ENABLE MONITOR FSM": clear, the two instructions do not exist. */
static void check_monitor_enabled(struct vcpu *v)
{
    if (v->model->vendor == VENDOR_INTEL && !(v->misc_enable & MISC_ENABLE_MONITOR))
        cpu_ud(v);
}

void insn_monitor(struct vcpu *v, const struct insn *i)
{
    check_monitor_enabled(v);
    if (reg32_get(v, RCX)) /* no extensions are defined */
        cpu_gp0(v);
    arm_monitor(v, implicit_segment(i), v->gpr[RAX] & address_mask(i));
}

void insn_mwait(struct vcpu *v, const struct insn *i)
{
    check_monitor_enabled(v);
    if (reg32_get(v, RCX) & ~1u)
        cpu_gp0(v);
    if (!v->monitor_armed)
        return;
    if (v->nr_cpus == 1 && !(v->rflags & FL_IF)) { /* nobody would ever end the wait */
        v->monitor_armed = false;
        return;
    }
    v->mwait_until = v->nr_cpus > 1 ? clock_now(v->clock) + MWAIT_LONGEST_NS : UINT64_MAX;
    v->activity = ACTIVITY_MWAIT;
    cpu_attention(v, ATT_IRQ_WINDOW);
}

/*
 * User waits: all of them may end early, and these end at once, so that there is nothing to monitor; MWAIT does not wait
 * for what UMONITOR names. CF would say that the operating system's limit ended the wait.
 */
void insn_umonitor(struct vcpu *v, const struct insn *i)
{
    touch(v, implicit_segment(i), v->gpr[i->rm] & address_mask(i));
    v->monitor_armed = false;
}

static void user_wait(struct vcpu *v, const struct insn *i)
{
    if (reg32_get(v, i->rm) & ~1u)
        cpu_gp0(v);
    v->aflags = 0;
    insn_pause(v, i);
}

void insn_umwait(struct vcpu *v, const struct insn *i)
{
    user_wait(v, i);
    v->monitor_armed = false;
}

void insn_tpause(struct vcpu *v, const struct insn *i) { user_wait(v, i); }
