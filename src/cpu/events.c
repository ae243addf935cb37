/*
 * Exceptions and interrupts: raising, combining, delivering.
 * Manual: Intel SDM 325462 (2023), vol. 3 "Interrupt and Exception Handling" and vol. 2 "INT n/INTO/
 * INT3/INT1" (whose pseudocode has the order of the checks); AMD APM 24593 vol. 2 "Exceptions and
 * Interrupts".
 *
 * How a fault travels: cpu_raise*() notes the event in v->raised and jumps to the engine's loop,
 * which calls cpu_handle_unwind(). An event on its way through the IDT is v->delivering; a fault
 * raised while that is valid is a nested one. During a delivery v->rip stays at the instruction the
 * event belongs to, so that whatever happens (nested fault, VM exit) finds it there.
 */
#include "base/log.h"
#include "cpu/cet.h"
#include "cpu/msr.h"
#include "cpu/pmu.h"
#include "cpu/system.h"
#include "devices/irq.h"

/* ---- vectors ---- */

#define HAS_ERROR (BIT(VEC_DF) | BIT(VEC_TS) | BIT(VEC_NP) | BIT(VEC_SS) | BIT(VEC_GP) | BIT(VEC_PF) | BIT(VEC_AC) | BIT(VEC_CP))
#define HAS_ERROR_AMD (HAS_ERROR | BIT(VEC_VC) | BIT(VEC_SX))

bool has_error_code(unsigned vector) { return vector < 32 && (HAS_ERROR >> vector & 1); }
bool has_error_code_amd(unsigned vector) { return vector < 32 && (HAS_ERROR_AMD >> vector & 1); }

/* SDM vol. 3 table "Interrupt and Exception Classes" and "Conditions for Generating a Double Fault". */
enum fault_class { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum fault_class class_of(const struct event *ev)
{
    if (ev->type != EV_HARD_EXC)
        return BENIGN;
    switch (ev->vector) {
    case VEC_DE: case VEC_TS: case VEC_NP: case VEC_SS: case VEC_GP: case VEC_CP: case VEC_VC:
        return CONTRIBUTORY;
    case VEC_PF: case VEC_VE:
        return PAGE_FAULT;
    case VEC_DF:
        return DOUBLE_FAULT;
    default:
        return BENIGN;
    }
}

static bool is_software(const struct event *ev)
{
    return ev->type == EV_SOFT_INT || ev->type == EV_SOFT_EXC || ev->type == EV_PRIV_SOFT_EXC;
}

u32 event_ext(const struct vcpu *v)
{
    const struct event *ev = &v->delivering;
    return ev->valid && ev->type != EV_SOFT_INT && ev->type != EV_SOFT_EXC;
}

/* ---- raising ---- */

void cpu_unwind(struct vcpu *v, enum unwind_reason reason) { longjmp(v->unwind, reason); }

static void __attribute__((noreturn)) raise_event(struct vcpu *v, unsigned vector, bool has_error, u32 error, u64 payload)
{
    v->raised = (struct event){
        .valid = true,
        .type = EV_HARD_EXC,
        .vector = (u8)vector,
        .has_error = has_error && (v->cr0 & CR0_PE),
        .error = error,
        .payload = payload,
    };
    cpu_unwind(v, UNWIND_EXCEPTION);
}

void cpu_raise(struct vcpu *v, unsigned vector) { raise_event(v, vector, false, 0, 0); }
void cpu_raise_error(struct vcpu *v, unsigned vector, u32 error) { raise_event(v, vector, true, error, 0); }
void cpu_raise_pf(struct vcpu *v, gva_t la, u32 error) { raise_event(v, VEC_PF, true, error, la); }
void cpu_raise_db(struct vcpu *v, u64 dr6_bits) { raise_event(v, VEC_DB, false, 0, dr6_bits); }

void cpu_raise_walk(struct vcpu *v, gva_t la, u32 access, const struct walk *w)
{
    if (w->fault == WALK_PAGE_FAULT || !v->guest_mode)
        cpu_raise_pf(v, la, w->error_code);
    v->virt->slat_fault(v, la, access, w);
}

/* ---- combining and delivering what was raised ---- */

static void enter_shutdown(struct vcpu *v)
{
    v->delivering.valid = false;
    if (v->guest_mode)
        v->virt->triple_fault(v);
    log_at(exception, "cpu%u: triple fault at %04x:%016llx: shutdown", v->index, v->seg[SEG_CS].sel,
           (unsigned long long)v->rip);
    v->activity = ACTIVITY_SHUTDOWN;
    cpu_attention(v, ATT_IRQ_WINDOW);
}

/* Side effects of an exception that is really delivered: CR2, DR6, DR7, DEBUGCTL. */
static void commit_payload(struct vcpu *v, const struct event *ev)
{
    if (ev->vector == VEC_PF && ev->type == EV_HARD_EXC) {
        v->cr2 = ev->payload;
    } else if (ev->vector == VEC_DB && (ev->type == EV_HARD_EXC || ev->type == EV_PRIV_SOFT_EXC)) {
        /* B0-B3 tell of this exception only; BD, BS and BT stay until software clears them. */
        v->dr6 = (v->dr6 & ~0xfull) | DR6_FIXED | (ev->payload & (0xf | DR6_BD | DR6_BS | DR6_BT));
        v->dr7 &= ~DR7_GD;
        v->debugctl &= ~(DEBUGCTL_LBR | DEBUGCTL_BTF);
    }
}

/* An exception with its priority resolved: the hypervisor first, then the IDT. */
static void take_exception(struct vcpu *v, const struct event *ev)
{
    if (v->guest_mode)
        v->virt->exception(v, ev);
    commit_payload(v, ev);
    cpu_deliver(v, ev);
}

static void handle_exception(struct vcpu *v)
{
    struct event ev = v->raised;
    struct event first = v->delivering;

    /* SDM vol. 3 "Instruction-Breakpoint Exception Condition": faults push RF = 1, #DB as it is. */
    if (ev.vector != VEC_DB)
        v->rflags |= FL_RF;
    if (!first.valid) {
        take_exception(v, &ev);
        return;
    }
    /* The second exception's own intercept comes before it is combined; v->delivering is still the first. */
    if (v->guest_mode)
        v->virt->exception(v, &ev);
    commit_payload(v, &ev);
    v->delivering.valid = false;

    enum fault_class a = class_of(&first), b = class_of(&ev);
    if (a == DOUBLE_FAULT && b != BENIGN) {
        enter_shutdown(v);
        return;
    }
    if ((a == CONTRIBUTORY && b == CONTRIBUTORY) || (a == PAGE_FAULT && (b == CONTRIBUTORY || b == PAGE_FAULT))) {
        log_at(exception, "cpu%u: vector %u while delivering %u: #DF", v->index, ev.vector, first.vector);
        if (v->guest_mode)
            v->virt->double_fault(v, &first);
        ev = (struct event){.valid = true, .type = EV_HARD_EXC, .vector = VEC_DF, .has_error = v->cr0 & CR0_PE};
    }
    cpu_deliver(v, &ev);
}

void cpu_handle_unwind(struct vcpu *v, int reason)
{
    mem_together(v);
    if (reason == UNWIND_EXCEPTION)
        handle_exception(v);
    else if (reason == UNWIND_EXIT)
        cpu_fresh_context(v);
}

/* ---- delivery ---- */

#define GATE_ERROR(vector, ext) ((u32)(vector) * 8 + 2 + (ext)) /* IDT bit set */

/* What every path has in common once the handler's CS is known. */
static void clear_flags(struct vcpu *v, bool interrupt_gate)
{
    v->rflags &= ~(FL_TF | FL_NT | FL_RF | FL_VM);
    if (interrupt_gate)
        v->rflags &= ~FL_IF;
}

static void deliver_real(struct vcpu *v, const struct event *ev, u64 ret)
{
    u32 at = ev->vector * 4u;
    if (at + 3 > v->idtr.limit)
        cpu_raise(v, VEC_GP);
    u32 entry = (u32)sys_read(v, v->idtr.base + at, 4);
    struct frame f;
    frame_current(v, &f, 0);
    const u64 values[] = {cpu_rflags(v), v->seg[SEG_CS].sel, ret};
    frame_write(v, &f, values, 3, 2);
    frame_commit_sp(v, &f);
    v->rflags &= ~(FL_IF | FL_TF | FL_AC | FL_RF);
    v->rip = entry & 0xffff;
    cpu_load_segment_real(v, SEG_CS, (u16)(entry >> 16));
}

/* Checks common to the 8- and 16-byte gates; returns the target code segment's descriptor. */
static u64 gate_target(struct vcpu *v, u16 sel, u32 ext)
{
    u64 cs;
    if (is_null(sel))
        cpu_raise_error(v, VEC_GP, ext);
    if (!cpu_read_descriptor(v, sel, &cs) || !desc_is_code(cs) || desc_dpl(cs) > v->cpl)
        cpu_raise_error(v, VEC_GP, sel_error(sel) | ext);
    return cs;
}

static void deliver_protected(struct vcpu *v, const struct event *ev, u64 ret)
{
    u32 ext = event_ext(v), error = GATE_ERROR(ev->vector, ext);
    bool from_v86 = v->mode == MODE_V86;
    if (ev->vector * 8u + 7 > v->idtr.limit)
        cpu_raise_error(v, VEC_GP, error);
    u64 gate = sys_read(v, v->idtr.base + ev->vector * 8u, 8);
    unsigned type = desc_type(gate);
    if (desc_s(gate) || (type != SYS_TASK_GATE && type != SYS_INT16 && type != SYS_TRAP16 && type != SYS_INT32 && type != SYS_TRAP32))
        cpu_raise_error(v, VEC_GP, error);
    if (!ext && desc_dpl(gate) < v->cpl)
        cpu_raise_error(v, VEC_GP, error);
    if (!desc_present(gate))
        cpu_raise_error(v, VEC_NP, error);
    if (type == SYS_TASK_GATE) {
        v->next_rip = ret; /* what the outgoing task saves */
        cpu_task_switch(v, gate_selector(gate), TASK_GATE, ev->has_error, ev->error, NULL);
        return;
    }

    unsigned size = type >= SYS_TSS32 ? 4 : 2;
    u16 sel = gate_selector(gate);
    u64 eip = size == 4 ? gate_offset(gate) : gate & 0xffff;
    u64 cs = gate_target(v, sel, ext);
    if (!desc_present(cs))
        cpu_raise_error(v, VEC_NP, sel_error(sel) | ext);

    u64 values[10];
    unsigned n = 0;
    bool inner = !desc_is_conforming(cs) && desc_dpl(cs) < v->cpl;
    unsigned cpl = inner ? desc_dpl(cs) : v->cpl;
    struct frame f;
    u16 ss_sel = 0;
    u64 ss = 0;
    if (from_v86 && (!inner || cpl != 0))
        cpu_raise_error(v, VEC_GP, sel_error(sel) | ext);
    if (inner) {
        tss_stack(v, cpl, ext, &f, &ss_sel, &ss);
        if (from_v86) {
            values[n++] = v->seg[SEG_GS].sel;
            values[n++] = v->seg[SEG_FS].sel;
            values[n++] = v->seg[SEG_DS].sel;
            values[n++] = v->seg[SEG_ES].sel;
        }
        values[n++] = v->seg[SEG_SS].sel;
        values[n++] = v->gpr[RSP];
    } else {
        frame_current(v, &f, ext);
    }
    values[n++] = cpu_rflags(v);
    values[n++] = v->seg[SEG_CS].sel;
    values[n++] = ret;
    if (ev->has_error)
        values[n++] = ev->error;
    check_target(v, cs, eip, ext);
    frame_write(v, &f, values, n, size);
    if (inner)
        desc_set_accessed(v, ss_sel, ss);
    if (cet_on(v)) {
        desc_set_accessed(v, sel, cs);
        cet_enter(v, &(struct cet_entry){.cpl = (u8)cpl, .push = !inner || v->cpl != 3, .switched = inner,
                                         .ssp = v->pl_ssp[cpl]}, ret);
    }
    load_cs(v, sel, cs, cpl);
    if (inner)
        load_ss(v, ss_sel, ss, cpl);
    frame_commit_sp(v, &f);
    clear_flags(v, type == SYS_INT16 || type == SYS_INT32);
    if (from_v86) {
        segment_set_null(v, SEG_GS, 0, 0);
        segment_set_null(v, SEG_FS, 0, 0);
        segment_set_null(v, SEG_DS, 0, 0);
        segment_set_null(v, SEG_ES, 0, 0);
    }
    v->rip = eip;
    cs_ss_changed(v, cpl);
}

static void deliver_long(struct vcpu *v, const struct event *ev, u64 ret)
{
    u32 ext = event_ext(v), error = GATE_ERROR(ev->vector, ext);
    if (ev->vector * 16u + 15 > v->idtr.limit)
        cpu_raise_error(v, VEC_GP, error);
    gva_t at = v->idtr.base + ev->vector * 16u;
    u64 gate = sys_read(v, at, 8), high = sys_read(v, at + 8, 8);
    unsigned type = desc_type(gate);
    if (desc_s(gate) || (type != SYS_INT32 && type != SYS_TRAP32) || (high & (0x1full << 40)))
        cpu_raise_error(v, VEC_GP, error);
    if (!ext && desc_dpl(gate) < v->cpl)
        cpu_raise_error(v, VEC_GP, error);
    if (!desc_present(gate))
        cpu_raise_error(v, VEC_NP, error);

    u16 sel = gate_selector(gate);
    u64 rip = gate_offset(gate) | high << 32;
    unsigned ist = (unsigned)(gate >> 32) & 7;
    u64 cs = gate_target(v, sel, ext);
    if (!desc_l(cs) || desc_d(cs))
        cpu_raise_error(v, VEC_GP, sel_error(sel) | ext);
    if (!desc_present(cs))
        cpu_raise_error(v, VEC_NP, sel_error(sel) | ext);

    bool inner = !desc_is_conforming(cs) && desc_dpl(cs) < v->cpl;
    unsigned cpl = inner ? desc_dpl(cs) : v->cpl;
    struct frame f = {.mask = ~0ull, .flat64 = true, .switched = inner, .error = ext};
    f.sp = inner || ist ? tss_stack64(v, cpl, ist, ext) : v->gpr[RSP];
    if ((inner || ist) && !cpu_canonical(v, f.sp))
        cpu_raise_error(v, VEC_SS, ext);
    f.sp &= ~15ull;
    u64 values[6] = {v->seg[SEG_SS].sel, v->gpr[RSP], cpu_rflags(v), v->seg[SEG_CS].sel, ret, ev->error};
    if (!cpu_canonical(v, rip))
        cpu_raise_error(v, VEC_GP, ext);
    frame_write(v, &f, values, ev->has_error ? 6 : 5, 8);
    if (cet_on(v)) {
        desc_set_accessed(v, sel, cs);
        cet_enter(v, &(struct cet_entry){.cpl = (u8)cpl, .wide = true, .push = !inner || v->cpl != 3, .switched = inner || ist,
                                         .ssp = ist ? cet_interrupt_ssp(v, ist) : v->pl_ssp[cpl]}, ret);
    }
    load_cs(v, sel, cs, cpl);
    if (inner)
        v->seg[SEG_SS] = (struct segment){.sel = (u16)cpl, .ar = AR_UNUSABLE | AR_DB | AR_SET_DPL(cpl)};
    v->gpr[RSP] = f.sp;
    clear_flags(v, type == SYS_INT32);
    v->rip = rip;
    cs_ss_changed(v, cpl);
}

void cpu_deliver(struct vcpu *v, const struct event *event)
{
    struct event ev = *event;
    u64 ret = v->rip;
    ev.valid = true;
    /* Software events push the address behind the instruction, but belong to the instruction. */
    if (is_software(&ev))
        v->rip = (v->rip - ev.insn_len) & (v->code_mode == CODE_64   ? ~0ull
                                           : v->code_mode == CODE_32 ? 0xffffffffull
                                                                     : 0xffffull);
    v->delivering = ev;
    u64 from = v->rip;
    log_at(exception, "cpu%u: vector %u type %u error %x at %04x:%016llx cpl %u payload %llx", v->index, ev.vector, ev.type,
           ev.error, v->seg[SEG_CS].sel, (unsigned long long)v->rip, v->cpl, (unsigned long long)ev.payload);
    if (!(v->cr0 & CR0_PE))
        deliver_real(v, &ev, ret);
    else if (v->efer & EFER_LMA)
        deliver_long(v, &ev, ret);
    else
        deliver_protected(v, &ev, ret);
    if (unlikely(v->debugctl & DEBUGCTL_LBR))
        branch_record_event(v, from);
    v->next_rip = v->rip;
    v->delivering.valid = false;
    if (v->activity != ACTIVITY_ACTIVE)
        v->activity = ACTIVITY_ACTIVE;
    /* No single-step trap for an instruction that ended in a handler; no shadow over the handler. */
    v->pending_dbg &= ~DR6_BS;
    v->shadow = 0;
    v->aging = 0;
    atomic_fetch_and_explicit(&v->attention, ~(u32)ATT_TF, memory_order_relaxed);
    cpu_flags_changed(v);
}

/* ---- software interrupts ---- */

/*
 * CR4.VME: INT n in virtual-8086 mode goes to the 8086 program's own handler when its bit in the TSS's
 * redirection bitmap, the 32 bytes below the I/O map, is clear (SDM vol. 3 "Class 3 Software
 * Interrupt Handling").
 */
static bool vme_redirected(struct vcpu *v, unsigned vector)
{
    const struct segment *tr = &v->seg[SEG_TR];
    if ((tr->ar & AR_UNUSABLE) || ((tr->ar & AR_TYPE) | TYPE_BUSY) != SYS_TSS32_BUSY || tr->limit < 103)
        cpu_gp0(v);
    u32 at = (u32)sys_read(v, tr->base + 102, 2) - 32 + vector / 8;
    if (at > tr->limit)
        cpu_gp0(v);
    return !(sys_read(v, tr->base + at, 1) >> (vector & 7) & 1);
}

static void deliver_vme(struct vcpu *v, unsigned vector)
{
    u32 entry = lin_read16(v, SEG_COUNT, vector * 4) | (u32)lin_read16(v, SEG_COUNT, vector * 4 + 2) << 16;
    bool virtual_if = (v->rflags & FL_IOPL) != FL_IOPL;
    u64 flags = cpu_rflags(v);
    if (virtual_if) {
        flags = (flags & ~FL_IF) | FL_IOPL;
        if (v->rflags & FL_VIF)
            flags |= FL_IF;
    }
    struct frame f;
    frame_current(v, &f, 0);
    const u64 values[] = {flags, v->seg[SEG_CS].sel, v->next_rip};
    frame_write(v, &f, values, 3, 2);
    frame_commit_sp(v, &f);
    v->rflags &= ~(FL_TF | FL_RF | FL_NT | (virtual_if ? FL_VIF : FL_IF));
    cpu_load_segment_real(v, SEG_CS, (u16)(entry >> 16));
    v->next_rip = entry & 0xffff;
    atomic_fetch_and_explicit(&v->attention, ~(u32)ATT_TF, memory_order_relaxed);
    cpu_flags_changed(v);
}

void cpu_software_interrupt(struct vcpu *v, unsigned vector, enum event_type type, const struct insn *i)
{
    struct event ev = {.valid = true, .type = (u8)type, .vector = (u8)vector, .insn_len = i->len};
    if (type == EV_SOFT_INT && v->mode == MODE_V86) {
        if ((v->cr4 & CR4_VME) && vme_redirected(v, vector)) {
            deliver_vme(v, vector);
            return;
        }
        if ((v->rflags & FL_IOPL) != FL_IOPL)
            cpu_gp0(v);
    }
    if (type != EV_SOFT_INT && v->guest_mode)
        v->virt->exception(v, &ev);
    if (type == EV_PRIV_SOFT_EXC) {
        /* One #DB tells of the instruction and of breakpoints that MOV SS held until now. */
        ev.payload = v->pending_dbg & 0xf;
        v->pending_dbg = 0;
        commit_payload(v, &ev);
    }
    v->rip = v->next_rip;
    cpu_deliver(v, &ev);
}

/* ---- between two instructions ---- */

#define AGE_SHADOW (SHADOW_STI | SHADOW_MOVSS)
#define AGE_RF BIT(7)
#define AGE_RECORD BIT(6) /* branches are recorded */

/* DR7 enables an instruction breakpoint: R/W and LEN 0, L or G set. */
static bool code_breakpoints(const struct vcpu *v)
{
    for (unsigned n = 0; n < 4; n++)
        if ((v->dr7 >> (n * 2) & 3) && !(v->dr7 >> (16 + n * 4) & 3))
            return true;
    return false;
}

static u64 code_breakpoint_hits(const struct vcpu *v)
{
    gva_t la = (v->seg_base[SEG_CS] + v->rip) & v->linear_mask;
    u64 hits = 0;
    for (unsigned n = 0; n < 4; n++)
        if ((v->dr7 >> (n * 2) & 3) && !(v->dr7 >> (16 + n * 4) & 3) && v->dr[n] == la)
            hits |= DR6_B(n);
    return hits;
}

void cpu_rearm(struct vcpu *v)
{
    u32 bits = 0;
    if (unlikely(v->rflags & (FL_TF | FL_RF)) || v->shadow)
        bits |= ATT_SHADOW;
    if (v->pending_dbg || unlikely((v->dr7 & 0xff) && code_breakpoints(v)))
        bits |= ATT_DEBUG;
    u32 req = atomic_load_explicit(&v->requests, memory_order_acquire);
    if (req & REQ_INTR ? (v->rflags & FL_IF) || v->guest_mode || (req & ~(u32)REQ_INTR) : req)
        bits |= ATT_IRQ_WINDOW;
    if (v->activity != ACTIVITY_ACTIVE || v->nmi_pending)
        bits |= ATT_IRQ_WINDOW;
    if (v->guest_mode && (v->rflags & FL_IF))
        bits |= ATT_VIRT; /* windows and virtual interrupts wait for IF without watching */
    if (bits)
        cpu_attention(v, bits);
}

void cpu_fresh_context(struct vcpu *v)
{
    v->aging = 0;
    atomic_fetch_and_explicit(&v->attention, ~(u32)ATT_TF, memory_order_relaxed);
    cpu_attention(v, ATT_IRQ_WINDOW); /* what was blocked before may be open now */
    cpu_rearm(v);
}

void cpu_set_shadow(struct vcpu *v, u8 shadow)
{
    /* Of consecutive instructions that make a shadow only the first does (SDM vol. 3 "Masking
     * Exceptions and Interrupts When Switching Stacks"). */
    if (v->shadow & shadow)
        return;
    v->shadow |= shadow;
    /* STI: a window of guest mode opens when the shadow has passed. */
    cpu_attention(v, ATT_SHADOW | (v->guest_mode ? ATT_VIRT : 0));
}

void nmi_unblock(struct vcpu *v)
{
    if (v->guest_mode)
        v->virt->iret(v);
    else
        v->nmi_blocked = false;
    if (v->nmi_pending || atomic_load_explicit(&v->requests, memory_order_relaxed))
        cpu_attention(v, ATT_IRQ_WINDOW);
}

/* An instruction that has not finished: a repeated string instruction that left between elements. */
static bool unfinished(const struct vcpu *v)
{
    return v->rip == v->boundary_rip && (v->rflags & FL_RF);
}

/* What the instruction that has just run consumed. */
static void age(struct vcpu *v, u32 att)
{
    bool finished = !unfinished(v);
    if (v->aging) {
        v->shadow &= (u8)~(v->aging & AGE_SHADOW);
        if ((v->aging & AGE_RF) && finished)
            v->rflags &= ~FL_RF;
        if (v->aging & AGE_RECORD)
            branch_record_instruction(v);
        v->aging = 0;
    }
    if (!(att & ATT_TF))
        return;
    if (v->debugctl & DEBUGCTL_BTF) {
        /* Single-step on branches (SDM vol. 3 "Single-Stepping on Branches"). */
        u64 passed = v->rip - v->boundary_rip;
        if (!finished || (v->insn ? passed == v->insn->len : passed - 1 < 15))
            return; /* without the instruction at hand a jump over less than 15 bytes counts as none */
    }
    v->pending_dbg |= DR6_BS;
}

static void deliver_between(struct vcpu *v, unsigned type, unsigned vector)
{
    struct event ev = {.valid = true, .type = (u8)type, .vector = (u8)vector};
    cpu_attention(v, ATT_IRQ_WINDOW); /* a fault on the way leaves by longjmp: look again */
    cpu_deliver(v, &ev);
}

static u32 take_request(struct vcpu *v, u32 bit)
{
    return atomic_fetch_and_explicit(&v->requests, ~bit, memory_order_acquire) & bit;
}

static void take_sipi(struct vcpu *v)
{
    u8 vector = atomic_load_explicit(&v->sipi_vector, memory_order_acquire);
    if (v->guest_mode) {
        v->virt->sipi(v, vector);
        return;
    }
    v->activity = ACTIVITY_ACTIVE;
    v->seg[SEG_CS].sel = (u16)(vector << 8);
    v->seg[SEG_CS].base = (u64)vector << 12;
    v->rip = v->next_rip = 0;
    cpu_segments_changed(v);
    cpu_attention(v, ATT_BLOCK);
}

/* INIT, SIPI, SMI: the events above everything that instructions cause. And what may make an interrupt out of nothing. */
static void take_signals(struct vcpu *v, u32 req)
{
    if (req & REQ_PMU) {
        take_request(v, REQ_PMU);
        pmu_due(v);
    }
    if (req & (REQ_FLUSH | REQ_PROTECT)) {
        take_request(v, REQ_FLUSH | REQ_PROTECT);
        mmu_flush_all(v);
    }
    if (!(req & (REQ_SMI | REQ_INIT | REQ_SIPI)))
        return;
    bool waiting = v->activity == ACTIVITY_WAIT_SIPI;
    if ((req & REQ_SMI) && v->gif && !waiting) {
        take_request(v, REQ_SMI);
        if (v->guest_mode)
            v->virt->smi(v);
        log_at(unimplemented, "cpu%u: SMI dropped: system-management mode is absent", v->index);
    }
    /* VMX root operation blocks INIT, it stays pending; waiting for SIPI it has been done already. */
    if ((req & REQ_INIT) && v->gif && (v->guest_mode || !v->in_vmx_operation)) {
        take_request(v, REQ_INIT);
        if (!waiting) {
            if (v->guest_mode)
                v->virt->init(v);
            /* APM vol. 2 "VM_CR MSR": R_INIT turns INIT into #SX(1). */
            if (v->misc_msr[SLOT_VM_CR] & VM_CR_R_INIT) {
                cpu_attention(v, ATT_IRQ_WINDOW);
                cpu_raise_error(v, VEC_SX, 1);
            }
            cpu_init_signal(v);
            v->aging = 0;
            waiting = v->activity == ACTIVITY_WAIT_SIPI;
        }
    }
    if ((req & REQ_SIPI) && take_request(v, REQ_SIPI) && waiting)
        take_sipi(v);
}

static bool nmi_wanted(struct vcpu *v, u32 req)
{
    if (!(req & REQ_NMI) && !v->nmi_pending)
        return false;
    /* STI may hold NMIs for one instruction like MOV SS (SDM vol. 2 "STI"); here as on most processors it does. */
    if (!v->gif || v->shadow)
        return false;
    return v->guest_mode ? v->virt->nmi_enabled(v) : !v->nmi_blocked;
}

static bool interrupt_wanted(struct vcpu *v, u32 req)
{
    if (!(req & REQ_INTR) || !v->gif || !v->intc_ops || v->intc_ops->peek(v->intc) < 0)
        return false;
    if (v->guest_mode)
        return v->virt->interrupt_enabled(v, v->shadow != 0);
    return (v->rflags & FL_IF) && !v->shadow;
}

static void take_nmi(struct vcpu *v)
{
    u32 old = atomic_load(&v->requests); /* the second becomes the first */
    while (!atomic_compare_exchange_weak(&v->requests, &old, old & ~(u32)(old & REQ_NMI_AGAIN ? REQ_NMI_AGAIN : REQ_NMI)))
        ;
    v->nmi_pending = false;
    if (v->guest_mode)
        v->virt->nmi(v);
    v->nmi_blocked = true;
    if (v->guest_mode)
        v->virt->nmi_delivered(v);
    deliver_between(v, EV_NMI, VEC_NMI);
}

static void take_interrupt(struct vcpu *v)
{
    if (v->guest_mode)
        v->virt->external_interrupt(v);
    int vector = v->intc_ops->ack(v->intc);
    if (vector >= 0)
        deliver_between(v, EV_EXTINT, (unsigned)vector);
}

/* Whether a processor that is not running goes on. */
static bool wakes(struct vcpu *v, u32 req)
{
    switch (v->activity) {
    case ACTIVITY_HLT:
        return nmi_wanted(v, req) || interrupt_wanted(v, req) || v->pending_dbg;
    case ACTIVITY_MWAIT: /* any interrupt request may end the wait (SDM vol. 2 "MWAIT") */
        return !v->monitor_armed || nmi_wanted(v, req) || (req & REQ_INTR) || v->pending_dbg;
    case ACTIVITY_SHUTDOWN:
        return nmi_wanted(v, req);
    default:
        return false;
    }
}

/*
 * SDM vol. 3 "Priority Among Concurrent Events". Attention bits that a step may lose by leaving with
 * a longjmp are set again before it (deliver_between, cpu_fresh_context), or belong to conditions
 * that cpu_rearm() finds.
 */
bool cpu_boundary(struct vcpu *v)
{
    if (atomic_load_explicit(&v->attention, memory_order_relaxed) & ATT_STOP) {
        atomic_fetch_and_explicit(&v->attention, ~(u32)ATT_STOP, memory_order_relaxed);
        return false;
    }
    if (atomic_load_explicit(&v->requests, memory_order_relaxed) & REQ_EXIT) {
        take_request(v, REQ_EXIT);
        return false;
    }
    u32 looked_at = ATT_REQUEST | ATT_SHADOW | ATT_TF | ATT_DEBUG | ATT_IRQ_WINDOW;
    if (!v->guest_mode)
        looked_at |= ATT_VIRT; /* left over from guest mode: the next entry sets it again */
    u32 att = atomic_fetch_and_explicit(&v->attention, ~looked_at, memory_order_acquire);
    u32 req = atomic_load_explicit(&v->requests, memory_order_acquire);

    age(v, att);
    if (unlikely(req & (REQ_FLUSH | REQ_PROTECT | REQ_SMI | REQ_INIT | REQ_SIPI | REQ_PMU))) {
        take_signals(v, req);
        req = atomic_load_explicit(&v->requests, memory_order_acquire);
    }

    if (unlikely(v->activity != ACTIVITY_ACTIVE)) {
        if ((att & ATT_VIRT) && v->guest_mode)
            v->virt->boundary(v); /* a timer or a virtual interrupt may end the wait: it exits, delivers or returns */
        if (v->activity != ACTIVITY_ACTIVE && !wakes(v, req)) {
            cpu_attention(v, ATT_IRQ_WINDOW);
            return false;
        }
        v->monitor_armed = false;
        if (v->activity != ACTIVITY_SHUTDOWN)
            v->activity = ACTIVITY_ACTIVE;
    } else if ((att & ATT_VIRT) && v->guest_mode) {
        v->virt->boundary(v);
    }

    u64 before = v->rip;
    /* Traps on the previous instruction; MOV SS holds them. */
    if (unlikely(cpu_trap_pending(v))) {
        struct event ev = {.valid = true, .type = EV_HARD_EXC, .vector = VEC_DB, .payload = v->pending_dbg};
        v->pending_dbg = 0;
        cpu_attention(v, ATT_IRQ_WINDOW);
        take_exception(v, &ev);
        if ((att & ATT_VIRT) && v->guest_mode)
            v->virt->boundary(v); /* what the trap went before */
    }
    if (unlikely(nmi_wanted(v, req)))
        take_nmi(v);
    if (interrupt_wanted(v, req))
        take_interrupt(v);
    /* What guest mode watches (monitor trap flag, preemption timer) comes before a handler's first instruction. */
    if (unlikely(v->guest_mode && v->rip != before) && (atomic_load_explicit(&v->attention, memory_order_relaxed) & ATT_VIRT))
        v->virt->boundary(v);

    if (unlikely(v->activity != ACTIVITY_ACTIVE)) {
        cpu_attention(v, ATT_IRQ_WINDOW);
        return false;
    }

    /* Instruction breakpoints are faults of the next instruction. */
    if (unlikely(v->dr7 & 0xff) && !(v->rflags & FL_RF) && !(v->shadow & SHADOW_MOVSS)) {
        u64 hits = code_breakpoint_hits(v);
        if (hits) {
            struct event ev = {.valid = true, .type = EV_HARD_EXC, .vector = VEC_DB, .payload = hits};
            cpu_attention(v, ATT_IRQ_WINDOW);
            take_exception(v, &ev);
        }
    }

    /* What the next boundary must know of the instruction that runs now. */
    u32 next = 0;
    v->aging = v->shadow & AGE_SHADOW;
    if (unlikely(v->rflags & FL_RF)) {
        if ((v->dr7 & 0xff) && code_breakpoints(v))
            v->aging |= AGE_RF;
        else
            v->rflags &= ~FL_RF; /* nobody left to see it: faults push 1 anyway */
    }
    if (unlikely(v->debugctl & DEBUGCTL_LBR) && branch_recording(v))
        v->aging |= AGE_RECORD;
    if (v->aging)
        next |= ATT_SHADOW;
    if (v->rflags & FL_TF)
        next |= ATT_TF;
    if (v->pending_dbg || unlikely((v->dr7 & 0xff) && code_breakpoints(v)))
        next |= ATT_DEBUG;
    v->boundary_rip = v->rip;
    if (next)
        cpu_attention(v, next);
    return true;
}
