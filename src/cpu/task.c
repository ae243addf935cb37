/*
 * Hardware task switches, 16- and 32-bit.
 * Manual: Intel SDM 325462 (2023), vol. 3 "Task Management", section "Task Switching" for the order
 * of the steps and table "Exception Conditions Checked During a Task Switch" for the faults. Up to the
 * point of no return everything is checked and read; faults after it belong to the new task.
 */
#include "base/log.h"
#include "cpu/cet.h"
#include "cpu/system.h"

/* Where a TSS keeps what; the general registers lie in encoding order from @gpr on. */
struct tss_layout {
    u8 size;                            /* of a register slot: 2 or 4 */
    u8 min_limit;
    u8 eip, eflags, gpr, segments, ldt; /* selectors from @segments on in the order ES CS SS DS (FS GS) */
    u8 nsegs;
    u8 seg_step;
};
static const struct tss_layout tss16 = {2, 0x2b, 0x0e, 0x10, 0x12, 0x22, 0x2a, 4, 2};
static const struct tss_layout tss32 = {4, 0x67, 0x20, 0x24, 0x28, 0x48, 0x60, 6, 4};
#define TSS_CR3 0x1c  /* 32-bit only, like the next */
#define TSS_TRAP 0x64
#define TSS_SSP 0x68 /* with CR4.CET = 1 only, and then the limit must reach it */
#define TSS_SEGMENT_WORDS 2

static const struct tss_layout *layout_of(unsigned type) { return type & 8 ? &tss32 : &tss16; }

struct task_state {
    u64 cr3, eip, eflags, gpr[8];
    u16 sel[6], ldt;
    u32 ssp;
    bool trap;
};

static void __attribute__((noreturn)) fault_sel(struct vcpu *v, unsigned vector, u16 sel)
{
    cpu_raise_error(v, vector, sel_error(sel) | event_ext(v));
}

/* The new TSS's descriptor, checked for @source. */
static u64 read_tss_descriptor(struct vcpu *v, u16 sel, enum task_switch_source source)
{
    unsigned vector = source == TASK_IRET ? VEC_TS : VEC_GP;
    u64 desc;
    if ((sel & 4) || !cpu_read_descriptor(v, sel, &desc) || desc_s(desc))
        fault_sel(v, vector, sel);
    unsigned type = desc_type(desc);
    bool ok = source == TASK_IRET ? type == SYS_TSS16_BUSY || type == SYS_TSS32_BUSY : type == SYS_TSS16 || type == SYS_TSS32;
    if (!ok)
        fault_sel(v, vector, sel);
    if (!desc_present(desc))
        fault_sel(v, VEC_NP, sel);
    return desc;
}

static void set_busy(struct vcpu *v, u16 sel, bool busy)
{
    gva_t la = v->gdtr.base + (sel & ~7u) + 5;
    u8 byte = (u8)sys_read(v, la, 1);
    sys_write(v, la, busy ? byte | TYPE_BUSY : byte & ~TYPE_BUSY, 1);
}

static void save_old(struct vcpu *v, const struct tss_layout *l, u64 eflags)
{
    u64 base = v->seg[SEG_TR].base;
    sys_write(v, base + l->eip, v->next_rip & size_bits(l->size), l->size);
    sys_write(v, base + l->eflags, eflags & size_bits(l->size), l->size);
    for (unsigned r = 0; r < 8; r++)
        sys_write(v, base + l->gpr + r * l->size, v->gpr[r] & size_bits(l->size), l->size);
    for (unsigned s = 0; s < l->nsegs; s++)
        sys_write(v, base + l->segments + s * l->seg_step, v->seg[s].sel, TSS_SEGMENT_WORDS);
}

static void read_new(struct vcpu *v, const struct tss_layout *l, u64 base, struct task_state *t)
{
    memset(t, 0, sizeof(*t));
    if (l == &tss32) {
        t->cr3 = sys_read(v, base + TSS_CR3, 4);
        t->trap = sys_read(v, base + TSS_TRAP, 2) & 1;
    }
    t->eip = sys_read(v, base + l->eip, l->size);
    t->eflags = sys_read(v, base + l->eflags, l->size);
    for (unsigned r = 0; r < 8; r++)
        t->gpr[r] = sys_read(v, base + l->gpr + r * l->size, l->size);
    for (unsigned s = 0; s < l->nsegs; s++)
        t->sel[s] = (u16)sys_read(v, base + l->segments + s * l->seg_step, 2);
    t->ldt = (u16)sys_read(v, base + l->ldt, 2);
}

/* ---- after the switch: the new task's segments, checked in its context ---- */

static void load_task_ldt(struct vcpu *v, u16 sel)
{
    u64 desc;
    if (is_null(sel))
        return;
    if ((sel & 4) || !cpu_read_descriptor(v, sel, &desc) || desc_s(desc) || desc_type(desc) != SYS_LDT || !desc_present(desc))
        fault_sel(v, VEC_TS, sel);
    segment_unpack(&v->seg[SEG_LDTR], sel, desc);
}

static void load_task_cs(struct vcpu *v, u16 sel)
{
    u64 cs;
    if (is_null(sel) || !cpu_read_descriptor(v, sel, &cs) || !desc_is_code(cs))
        fault_sel(v, VEC_TS, sel);
    if (desc_is_conforming(cs) ? desc_dpl(cs) > rpl_of(sel) : desc_dpl(cs) != rpl_of(sel))
        fault_sel(v, VEC_TS, sel);
    if (!desc_present(cs))
        fault_sel(v, VEC_NP, sel);
    load_cs(v, sel, cs, rpl_of(sel));
    cpu_segments_changed(v);
}

static void load_task_ss(struct vcpu *v, u16 sel, unsigned cpl)
{
    u64 ss;
    if (is_null(sel) || !cpu_read_descriptor(v, sel, &ss) || rpl_of(sel) != cpl || desc_dpl(ss) != cpl ||
        !desc_is_writable_data(ss))
        fault_sel(v, VEC_TS, sel);
    if (!desc_present(ss))
        fault_sel(v, VEC_SS, sel);
    load_ss(v, sel, ss, cpl);
    cpu_segments_changed(v);
}

static void load_task_data(struct vcpu *v, unsigned seg, u16 sel, unsigned cpl)
{
    u64 d;
    if (is_null(sel))
        return;
    if (!cpu_read_descriptor(v, sel, &d) || !desc_s(d) || (desc_type(d) & (TYPE_CODE | TYPE_RW)) == TYPE_CODE)
        fault_sel(v, VEC_TS, sel);
    if (!(desc_is_code(d) && desc_is_conforming(d)) && (rpl_of(sel) > desc_dpl(d) || cpl > desc_dpl(d)))
        fault_sel(v, VEC_TS, sel);
    if (!desc_present(d))
        fault_sel(v, VEC_NP, sel);
    desc_set_accessed(v, sel, d);
    segment_unpack(&v->seg[seg], sel, d | (u64)TYPE_ACCESSED << 40);
}

/* Stores the new task's registers; its segments have selectors but no descriptors yet. */
static void commit(struct vcpu *v, const struct tss_layout *l, const struct task_state *t, u64 eflags)
{
    bool v86 = eflags & FL_VM;
    unsigned cpl = v86 ? 3 : rpl_of(t->sel[SEG_CS]);
    for (unsigned r = 0; r < 8; r++)
        v->gpr[r] = l->size == 4 ? t->gpr[r] : (v->gpr[r] & 0xffff0000u) | t->gpr[r];
    cpu_put_rflags(v, eflags & (FL_ARITH | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_RF | FL_VM | FL_AC | FL_VIF | FL_VIP | FL_ID));
    v->rip = v->next_rip = t->eip;
    for (unsigned s = SEG_ES; s <= SEG_GS; s++) {
        if (v86)
            segment_set_v86(v, s, t->sel[s]);
        else
            v->seg[s] = (struct segment){.sel = t->sel[s], .ar = AR_UNUSABLE | (s == SEG_SS ? AR_SET_DPL(cpl) : 0)};
    }
    v->seg[SEG_LDTR] = (struct segment){.sel = t->ldt, .ar = AR_UNUSABLE};
    v->cr0 |= CR0_TS;
    v->dr7 &= ~(u64)(0x55 | DR7_LE); /* local breakpoints belong to the old task */
    v->shadow = 0;
    cpu_mode_changed(v);
    mmu_watch_changed(v);
    cpu_fresh_context(v);
}

void cpu_task_switch(struct vcpu *v, u16 sel, enum task_switch_source source, bool has_error, u32 error, const struct insn *i)
{
    if (v->guest_mode && source == TASK_IRET)
        v->virt->task_switch(v, sel, source, i);
    u64 desc = read_tss_descriptor(v, sel, source);
    if (v->guest_mode && source != TASK_IRET)
        v->virt->task_switch(v, sel, source, i);

    const struct tss_layout *l = layout_of(desc_type(desc)), *old = layout_of(v->seg[SEG_TR].ar & AR_TYPE);
    struct segment tr;
    segment_unpack(&tr, sel, desc | (u64)TYPE_BUSY << 40);
    bool cet = cet_on(v);
    /* SDM vol. 3 "Task-State Segment (TSS)": a 16-bit TSS has no place for SSP. */
    if (cet && (l == &tss16 || tr.limit < TSS_SSP + 3))
        fault_sel(v, VEC_TS, sel);
    if (tr.limit < l->min_limit || v->seg[SEG_TR].limit < old->min_limit)
        fault_sel(v, VEC_TS, tr.limit < l->min_limit ? sel : v->seg[SEG_TR].sel);

    /* Everything that can fault by paging, before anything is written. */
    struct task_state t;
    u16 old_sel = v->seg[SEG_TR].sel;
    sys_probe_write(v, v->seg[SEG_TR].base + old->eip, old->min_limit - old->eip + 1u);
    read_new(v, l, tr.base, &t);
    sys_probe_write(v, tr.base, 2);
    sys_probe_write(v, v->gdtr.base + (sel & ~7u) + 5, 1);
    sys_probe_write(v, v->gdtr.base + (old_sel & ~7u) + 5, 1);

    struct cet_task shadow = {0};
    if (cet) {
        if (source != TASK_IRET)
            t.ssp = (u32)sys_read(v, tr.base + TSS_SSP, 4);
        unsigned new_cpl = t.eflags & FL_VM ? 3 : rpl_of(t.sel[SEG_CS]);
        cet_task_leave(v, &shadow, new_cpl, source == TASK_CALL || source == TASK_GATE, source == TASK_IRET);
    }

    log_at(exception, "cpu%u: task switch %04x -> %04x (source %u)", v->index, old_sel, sel, source);
    u64 flags = cpu_rflags(v);
    if (source == TASK_IRET)
        flags &= ~FL_NT;
    if (source == TASK_JMP || source == TASK_IRET)
        set_busy(v, old_sel, false);
    save_old(v, old, flags);
    /* The new TSS may be the old one: what was just saved is what it holds now. */
    if (tr.base == v->seg[SEG_TR].base) {
        u32 ssp = t.ssp;
        read_new(v, l, tr.base, &t);
        t.ssp = ssp;
    }
    u64 eflags = t.eflags;
    if (source == TASK_CALL || source == TASK_GATE) {
        sys_write(v, tr.base, old_sel, 2);
        eflags |= FL_NT;
    }
    if (source != TASK_IRET)
        set_busy(v, sel, true);
    v->seg[SEG_TR] = tr;
    v->seg_base[SEG_TR] = tr.base;
    if (l == &tss32 && (v->cr0 & CR0_PG) && t.cr3 != v->cr3)
        cpu_write_cr3(v, t.cr3);
    commit(v, l, &t, eflags);

    load_task_ldt(v, t.ldt);
    v->seg_base[SEG_LDTR] = v->seg[SEG_LDTR].base;
    if (!(eflags & FL_VM)) {
        unsigned cpl = rpl_of(t.sel[SEG_CS]);
        load_task_cs(v, t.sel[SEG_CS]);
        load_task_ss(v, t.sel[SEG_SS], cpl);
        load_task_data(v, SEG_DS, t.sel[SEG_DS], cpl);
        load_task_data(v, SEG_ES, t.sel[SEG_ES], cpl);
        load_task_data(v, SEG_FS, t.sel[SEG_FS], cpl);
        load_task_data(v, SEG_GS, t.sel[SEG_GS], cpl);
        cpu_segments_changed(v);
    }
    if (cet)
        cet_task_enter(v, &shadow, t.ssp, source == TASK_IRET);
    if (t.trap)
        v->pending_dbg |= DR6_BT;
    if (has_error) {
        struct frame f;
        u64 value = error;
        frame_current(v, &f, event_ext(v));
        frame_write(v, &f, &value, 1, l->size);
        frame_commit_sp(v, &f);
    }
    if (t.eip > v->seg[SEG_CS].limit)
        cpu_raise_error(v, VEC_GP, event_ext(v));
    cpu_flags_changed(v);
}
