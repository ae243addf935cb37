/*
 * Far control transfers: JMP, CALL and RET between segments, gates, IRET, and the INT instructions.
 * Manual: Intel SDM 325462 (2023), vol. 2 of each instruction, whose pseudocode has the order of the
 * checks; vol. 3 "Calling Procedures Using CALL and RET", "8086 Emulation". Nothing is stored in a
 * register before the last check of a path; bytes below the old stack pointer may be.
 */
#include "base/log.h"
#include "cpu/cet.h"
#include "cpu/system.h"

static u64 trunc_ip(u64 ip, unsigned size) { return ip & size_bits(size); }

/* ---- JMP and CALL ---- */

static void jump_real(struct vcpu *v, u16 sel, u64 offset)
{
    if (offset > v->seg[SEG_CS].limit)
        cpu_gp0(v);
    cpu_load_segment_real(v, SEG_CS, sel);
    v->next_rip = offset;
}

/* Checks of a code segment named by the instruction itself. */
static void check_direct_code(struct vcpu *v, u16 sel, u64 cs)
{
    if (desc_is_conforming(cs) ? desc_dpl(cs) > v->cpl : rpl_of(sel) > v->cpl || desc_dpl(cs) != v->cpl)
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (cpu_lma(v) && desc_l(cs) && desc_d(cs))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (!desc_present(cs))
        cpu_raise_error(v, VEC_NP, sel_error(sel));
}

/* A call gate's target, checked as far as JMP and CALL agree. *@offset gets its entry point. */
static u64 call_gate(struct vcpu *v, u16 gate_sel, const struct descriptor *gate, u16 *cs_sel, u64 *offset)
{
    u64 cs;
    if (desc_dpl(gate->lo) < v->cpl || rpl_of(gate_sel) > desc_dpl(gate->lo))
        cpu_raise_error(v, VEC_GP, sel_error(gate_sel));
    if (!desc_present(gate->lo))
        cpu_raise_error(v, VEC_NP, sel_error(gate_sel));
    u16 sel = gate_selector(gate->lo);
    if (is_null(sel))
        cpu_gp0(v);
    if (!cpu_read_descriptor(v, sel, &cs) || !desc_is_code(cs) || desc_dpl(cs) > v->cpl)
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (cpu_lma(v) && (!desc_l(cs) || desc_d(cs)))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    *cs_sel = sel;
    *offset = desc_type(gate->lo) == SYS_CALL16 ? gate->lo & 0xffff : gate_offset(gate->lo);
    if (cpu_lma(v))
        *offset |= gate->hi << 32;
    return cs;
}

/* The system descriptors a far JMP or CALL may name; returns the type. */
static unsigned system_target(struct vcpu *v, u16 sel, struct descriptor *d)
{
    if (!read_system_descriptor(v, sel, d))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    unsigned type = desc_type(d->lo);
    bool ok = type == SYS_CALL32;
    if (cpu_lma(v))
        ok = ok && !(d->hi & (0x1full << 40));
    else
        ok = ok || type == SYS_CALL16 || type == SYS_TASK_GATE || type == SYS_TSS16 || type == SYS_TSS32;
    if (!ok)
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    return type;
}

/* A TSS or task gate named by JMP or CALL; returns the TSS selector. */
static u16 task_target(struct vcpu *v, u16 sel, unsigned type, const struct descriptor *d)
{
    if (desc_dpl(d->lo) < v->cpl || desc_dpl(d->lo) < rpl_of(sel))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (type != SYS_TASK_GATE)
        return sel;
    if (!desc_present(d->lo))
        cpu_raise_error(v, VEC_NP, sel_error(sel));
    return gate_selector(d->lo);
}

void cpu_far_jump(struct vcpu *v, u16 sel, u64 offset, const struct insn *i)
{
    u64 cs;
    if (!cpu_protected(v)) {
        jump_real(v, sel, offset);
        return;
    }
    if (is_null(sel))
        cpu_gp0(v);
    if (!cpu_read_descriptor(v, sel, &cs))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (!desc_s(cs)) {
        struct descriptor d;
        unsigned type = system_target(v, sel, &d);
        if (type != SYS_CALL16 && type != SYS_CALL32) {
            cpu_task_switch(v, task_target(v, sel, type, &d), TASK_JMP, false, 0, i);
            return;
        }
        u16 target;
        cs = call_gate(v, sel, &d, &target, &offset);
        if (!desc_is_conforming(cs) && desc_dpl(cs) != v->cpl)
            cpu_raise_error(v, VEC_GP, sel_error(target));
        if (!desc_present(cs))
            cpu_raise_error(v, VEC_NP, sel_error(target));
        sel = target;
    } else {
        if (!desc_is_code(cs))
            cpu_raise_error(v, VEC_GP, sel_error(sel));
        check_direct_code(v, sel, cs);
    }
    check_target(v, cs, offset, 0);
    if (cet_on(v)) {
        desc_set_accessed(v, sel, cs);
        cet_jump(v, cpu_lma(v) && desc_l(cs));
    }
    load_cs(v, sel, cs, v->cpl);
    v->next_rip = offset;
    cs_ss_changed(v, v->cpl);
}

/* CALL through a gate to an inner level: a new stack, with the caller's parameters. */
static void call_inner(struct vcpu *v, u64 gate, u16 cs_sel, u64 cs, u64 offset, unsigned size)
{
    unsigned cpl = desc_dpl(cs);
    struct frame f = {.mask = ~0ull, .flat64 = true, .switched = true};
    u16 ss_sel = (u16)cpl;
    u64 ss = 0, values[36];
    unsigned n = 0, count = 0;
    if (size == 8) {
        f.sp = tss_stack64(v, cpl, 0, 0);
        if (!cpu_canonical(v, f.sp))
            cpu_raise_error(v, VEC_SS, 0);
    } else {
        tss_stack(v, cpl, 0, &f, &ss_sel, &ss);
        count = (unsigned)(gate >> 32) & 31;
    }
    values[n++] = v->seg[SEG_SS].sel;
    values[n++] = v->gpr[RSP];
    for (unsigned k = count; k-- > 0;) {
        u64 at = (v->gpr[RSP] + (u64)k * size) & stack_mask(v);
        values[n++] = size == 4 ? mem_read32(v, SEG_SS, at) : mem_read16(v, SEG_SS, at);
    }
    values[n++] = v->seg[SEG_CS].sel;
    values[n++] = v->next_rip;
    check_target(v, cs, offset, 0);
    frame_write(v, &f, values, n, size);
    if (size != 8)
        desc_set_accessed(v, ss_sel, ss);
    if (cet_on(v)) {
        desc_set_accessed(v, cs_sel, cs);
        cet_enter(v, &(struct cet_entry){.cpl = (u8)cpl, .wide = size == 8, .push = v->cpl != 3, .switched = true,
                                         .ssp = v->pl_ssp[cpl]}, v->next_rip);
    }
    load_cs(v, cs_sel, cs, cpl);
    if (size == 8)
        v->seg[SEG_SS] = (struct segment){.sel = ss_sel, .ar = AR_UNUSABLE | AR_DB | AR_SET_DPL(cpl)};
    else
        load_ss(v, ss_sel, ss, cpl);
    frame_commit_sp(v, &f);
    v->next_rip = offset;
    cs_ss_changed(v, cpl);
}

/* CALL at the same level; @size of the pushed CS and instruction pointer. */
static void call_same(struct vcpu *v, u16 sel, u64 cs, u64 offset, unsigned size)
{
    struct frame f;
    const u64 values[] = {v->seg[SEG_CS].sel, v->next_rip};
    frame_current(v, &f, 0);
    check_target(v, cs, offset, 0);
    frame_write(v, &f, values, 2, size);
    if (cet_on(v)) {
        desc_set_accessed(v, sel, cs);
        cet_enter(v, &(struct cet_entry){.cpl = v->cpl, .wide = cpu_lma(v) && desc_l(cs), .push = true}, v->next_rip);
    }
    load_cs(v, sel, cs, v->cpl);
    frame_commit_sp(v, &f);
    v->next_rip = offset;
    cs_ss_changed(v, v->cpl);
}

void cpu_far_call(struct vcpu *v, u16 sel, u64 offset, const struct insn *i)
{
    u64 cs;
    if (!cpu_protected(v)) {
        struct frame f;
        const u64 values[] = {v->seg[SEG_CS].sel, v->next_rip};
        frame_current(v, &f, 0);
        if (offset > v->seg[SEG_CS].limit)
            cpu_gp0(v);
        frame_write(v, &f, values, 2, i->opsize);
        frame_commit_sp(v, &f);
        jump_real(v, sel, offset);
        return;
    }
    if (is_null(sel))
        cpu_gp0(v);
    if (!cpu_read_descriptor(v, sel, &cs))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (desc_s(cs)) {
        if (!desc_is_code(cs))
            cpu_raise_error(v, VEC_GP, sel_error(sel));
        check_direct_code(v, sel, cs);
        call_same(v, sel, cs, offset, i->opsize);
        return;
    }
    struct descriptor d;
    unsigned type = system_target(v, sel, &d);
    if (type != SYS_CALL16 && type != SYS_CALL32) {
        cpu_task_switch(v, task_target(v, sel, type, &d), TASK_CALL, false, 0, i);
        return;
    }
    u16 target;
    cs = call_gate(v, sel, &d, &target, &offset);
    if (!desc_present(cs))
        cpu_raise_error(v, VEC_NP, sel_error(target));
    unsigned size = cpu_lma(v) ? 8 : type == SYS_CALL32 ? 4 : 2;
    if (!desc_is_conforming(cs) && desc_dpl(cs) < v->cpl)
        call_inner(v, d.lo, target, cs, offset, size);
    else
        call_same(v, target, cs, offset, size);
}

/* ---- returning ---- */

/* The code segment that a far RET or IRET names. */
static u64 return_code(struct vcpu *v, u16 sel)
{
    u64 cs;
    if (is_null(sel))
        cpu_gp0(v);
    if (!cpu_read_descriptor(v, sel, &cs) || !desc_is_code(cs) || rpl_of(sel) < v->cpl)
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (desc_is_conforming(cs) ? desc_dpl(cs) > rpl_of(sel) : desc_dpl(cs) != rpl_of(sel))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (cpu_lma(v) && desc_l(cs) && desc_d(cs))
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (!desc_present(cs))
        cpu_raise_error(v, VEC_NP, sel_error(sel));
    return cs;
}

/* The stack segment popped with it; @cs_sel's RPL is the new CPL. Returns the descriptor, 0 for null. */
static u64 return_stack(struct vcpu *v, u16 sel, u16 cs_sel, u64 cs)
{
    u64 ss;
    unsigned cpl = rpl_of(cs_sel);
    if (is_null(sel)) {
        /* The null selector is a stack only for 64-bit code outside ring 3. */
        if (!cpu_lma(v) || !desc_l(cs) || cpl == 3)
            cpu_gp0(v);
        if (rpl_of(sel) != cpl)
            cpu_raise_error(v, VEC_GP, sel_error(sel));
        return 0;
    }
    if (!cpu_read_descriptor(v, sel, &ss) || rpl_of(sel) != cpl || !desc_is_writable_data(ss) || desc_dpl(ss) != cpl)
        cpu_raise_error(v, VEC_GP, sel_error(sel));
    if (!desc_present(ss))
        cpu_raise_error(v, VEC_SS, sel_error(sel));
    return ss;
}

/* Loads CS and SS for a return to @cpl with stack pointer @rsp, and drops what @cpl may not see. */
static void commit_outer(struct vcpu *v, u16 cs_sel, u64 cs, u16 ss_sel, u64 ss, u64 rsp)
{
    unsigned cpl = rpl_of(cs_sel), old = v->cpl;
    if (!is_null(ss_sel))
        desc_set_accessed(v, ss_sel, ss);
    load_cs(v, cs_sel, cs, cpl);
    if (is_null(ss_sel))
        v->seg[SEG_SS] = (struct segment){.sel = ss_sel, .ar = AR_UNUSABLE | AR_DB | AR_SET_DPL(cpl)};
    else
        load_ss(v, ss_sel, ss, cpl);
    if (cpu_lma(v) && desc_l(cs))
        v->gpr[RSP] = rsp;
    else
        gpr_set(v, RSP, rsp, v->seg[SEG_SS].ar & AR_DB ? 4 : 2);
    if (cpl > old)
        segments_drop_privileged(v, cpl);
    cs_ss_changed(v, cpl);
}

/* The shadow stack's part of a return, behind every other check. */
static void return_shadow(struct vcpu *v, u16 sel, u64 cs, u64 rip, bool iret)
{
    if (cet_on(v)) {
        desc_set_accessed(v, sel, cs);
        cet_return(v, sel, cs, rip, iret);
    }
}

static void return_real(struct vcpu *v, unsigned pop_bytes, unsigned size)
{
    u64 rsp = v->gpr[RSP];
    u64 ip = stack_peek(v, &rsp, size);
    u16 sel = (u16)stack_peek(v, &rsp, size);
    if (ip > v->seg[SEG_CS].limit)
        cpu_gp0(v);
    stack_set_pointer(v, rsp + pop_bytes);
    cpu_load_segment_real(v, SEG_CS, sel);
    v->next_rip = ip;
}

void cpu_far_return(struct vcpu *v, unsigned pop_bytes, const struct insn *i)
{
    unsigned size = i->opsize;
    if (!cpu_protected(v)) {
        return_real(v, pop_bytes, size);
        return;
    }
    u64 rsp = v->gpr[RSP];
    u64 rip = stack_peek(v, &rsp, size);
    u16 cs_sel = (u16)stack_peek(v, &rsp, size);
    u64 cs = return_code(v, cs_sel);
    if (rpl_of(cs_sel) == v->cpl) {
        check_target(v, cs, rip, 0);
        return_shadow(v, cs_sel, cs, rip, false);
        unsigned width = v->stack_size;
        load_cs(v, cs_sel, cs, v->cpl);
        gpr_set(v, RSP, rsp + pop_bytes, width);
        v->next_rip = rip;
        cs_ss_changed(v, v->cpl);
        return;
    }
    rsp += pop_bytes;
    if (v->stack_size != 8)
        rsp = (rsp & stack_mask(v)) | (v->gpr[RSP] & ~stack_mask(v));
    u64 new_rsp = stack_peek(v, &rsp, size);
    u16 ss_sel = (u16)stack_peek(v, &rsp, size);
    u64 ss = return_stack(v, ss_sel, cs_sel, cs);
    check_target(v, cs, rip, 0);
    return_shadow(v, cs_sel, cs, rip, false);
    v->next_rip = rip;
    commit_outer(v, cs_sel, cs, ss_sel, ss, new_rsp + pop_bytes);
}

/* ---- IRET ---- */

/* Flags that IRET and POPF load with operand size @size. */
#define FLAGS_16 (FL_ARITH | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT)
#define FLAGS_IRET_32 (FLAGS_16 | FL_RF | FL_AC | FL_ID)

static void iret_flags(struct vcpu *v, u64 popped, u64 mask)
{
    cpu_put_rflags(v, (cpu_rflags(v) & ~mask) | (popped & mask));
    v->aging = v->aging & (u8)(SHADOW_STI | SHADOW_MOVSS); /* RF is new: it holds for the next instruction */
    cpu_flags_changed(v);
}

static void iret_real(struct vcpu *v, unsigned size)
{
    u64 rsp = v->gpr[RSP];
    u64 ip = stack_peek(v, &rsp, size);
    u16 sel = (u16)stack_peek(v, &rsp, size);
    u64 flags = stack_peek(v, &rsp, size);
    if (ip > v->seg[SEG_CS].limit)
        cpu_gp0(v);
    stack_set_pointer(v, rsp);
    cpu_load_segment_real(v, SEG_CS, sel);
    v->next_rip = ip;
    iret_flags(v, flags, size == 2 ? FLAGS_16 : FLAGS_IRET_32);
}

static void iret_v86(struct vcpu *v, unsigned size)
{
    bool iopl3 = (v->rflags & FL_IOPL) == FL_IOPL;
    if (!iopl3 && (!(v->cr4 & CR4_VME) || size != 2))
        cpu_gp0(v);
    u64 rsp = v->gpr[RSP];
    u64 ip = stack_peek(v, &rsp, size);
    u16 sel = (u16)stack_peek(v, &rsp, size);
    u64 flags = stack_peek(v, &rsp, size);
    if (ip > 0xffff)
        cpu_gp0(v);
    u64 mask = (size == 2 ? FLAGS_16 : FLAGS_IRET_32) & ~FL_IOPL;
    if (!iopl3) {
        if ((flags & FL_TF) || ((flags & FL_IF) && (v->rflags & FL_VIP)))
            cpu_gp0(v);
        mask = (mask & ~FL_IF) | FL_VIF;
        flags = (flags & ~FL_VIF) | (flags & FL_IF ? FL_VIF : 0);
    }
    stack_set_pointer(v, rsp);
    cpu_load_segment_real(v, SEG_CS, sel);
    v->next_rip = ip;
    iret_flags(v, flags, mask);
}

/* SDM vol. 2 "IRET": RETURN-TO-VIRTUAL-8086-MODE; CPL is 0. */
static void iret_to_v86(struct vcpu *v, u64 rsp, u64 eip, u16 cs, u64 flags)
{
    u64 esp = stack_peek(v, &rsp, 4);
    u16 sel[6];
    static const u8 order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned n = 0; n < ARRAY_SIZE(order); n++)
        sel[order[n]] = (u16)stack_peek(v, &rsp, 4);
    sel[SEG_CS] = cs;
    if ((eip & 0xffffffff) > 0xffff)
        cpu_gp0(v);
    if (cet_on(v))
        cet_iret_to_v86(v);
    for (unsigned s = SEG_ES; s <= SEG_GS; s++)
        segment_set_v86(v, s, sel[s]);
    v->gpr[RSP] = esp & 0xffffffff;
    v->next_rip = eip & 0xffff;
    cpu_put_rflags(v, flags & (FLAGS_IRET_32 | FL_VM | FL_VIF | FL_VIP));
    v->aging = 0;
    cpu_mode_changed(v);
    cpu_flags_changed(v);
}

void cpu_iret(struct vcpu *v, const struct insn *i)
{
    unsigned size = i->opsize;
    if (v->mode == MODE_V86 && (v->rflags & FL_IOPL) != FL_IOPL && !(v->cr4 & CR4_VME))
        cpu_gp0(v);
    nmi_unblock(v);
    if (v->mode == MODE_REAL) {
        iret_real(v, size);
        return;
    }
    if (v->mode == MODE_V86) {
        iret_v86(v, size);
        return;
    }
    if (v->rflags & FL_NT) {
        if (cpu_lma(v))
            cpu_gp0(v);
        const struct segment *tr = &v->seg[SEG_TR];
        if (tr->limit < 1)
            cpu_raise_error(v, VEC_TS, sel_error(tr->sel));
        cpu_task_switch(v, (u16)sys_read(v, tr->base, 2), TASK_IRET, false, 0, i);
        return;
    }
    u64 rsp = v->gpr[RSP];
    u64 rip = stack_peek(v, &rsp, size);
    u16 cs_sel = (u16)stack_peek(v, &rsp, size);
    u64 flags = stack_peek(v, &rsp, size);
    if (size == 4 && (flags & FL_VM) && v->cpl == 0 && !cpu_lma(v)) {
        iret_to_v86(v, rsp, rip, cs_sel, flags);
        return;
    }
    u64 mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
    if (size != 2)
        mask |= FL_RF | FL_AC | FL_ID;
    if (v->cpl <= (v->rflags & FL_IOPL) >> 12)
        mask |= FL_IF;
    if (v->cpl == 0)
        mask |= FL_IOPL | (size != 2 ? FL_VIF | FL_VIP : 0);

    u64 cs = return_code(v, cs_sel);
    if (v->mode == MODE_LONG64 || rpl_of(cs_sel) != v->cpl) {
        u64 new_rsp = stack_peek(v, &rsp, size);
        u16 ss_sel = (u16)stack_peek(v, &rsp, size);
        u64 ss = return_stack(v, ss_sel, cs_sel, cs);
        check_target(v, cs, rip, 0);
        return_shadow(v, cs_sel, cs, rip, true);
        commit_outer(v, cs_sel, cs, ss_sel, ss, new_rsp);
    } else {
        check_target(v, cs, rip, 0);
        return_shadow(v, cs_sel, cs, rip, true);
        unsigned width = v->stack_size;
        load_cs(v, cs_sel, cs, v->cpl);
        gpr_set(v, RSP, rsp, width);
        cs_ss_changed(v, v->cpl);
    }
    v->next_rip = rip;
    iret_flags(v, flags, mask);
}

/* ---- bodies ---- */

/* A far pointer in memory: offset of the operand size, then the selector. */
static u64 read_far_pointer(struct vcpu *v, const struct insn *i, u16 *sel)
{
    u64 ea = insn_ea(v, i);
    u64 offset = i->opsize == 8 ? mem_read64(v, i->seg, ea)
                 : i->opsize == 4 ? mem_read32(v, i->seg, ea)
                                  : mem_read16(v, i->seg, ea);
    u64 next = ea + i->opsize;
    if (i->adsize != 8)
        next &= size_bits(i->adsize);
    *sel = mem_read16(v, i->seg, next);
    return offset;
}

void insn_jmp_far(struct vcpu *v, const struct insn *i) { cpu_far_jump(v, i->imm2, trunc_ip(i->imm, i->opsize), i); }
void insn_call_far(struct vcpu *v, const struct insn *i) { cpu_far_call(v, i->imm2, trunc_ip(i->imm, i->opsize), i); }

void insn_jmp_far_ind(struct vcpu *v, const struct insn *i)
{
    u16 sel;
    u64 offset = read_far_pointer(v, i, &sel);
    cpu_far_jump(v, sel, offset, i);
}

void insn_call_far_ind(struct vcpu *v, const struct insn *i)
{
    u16 sel;
    u64 offset = read_far_pointer(v, i, &sel);
    cpu_far_call(v, sel, offset, i);
}

/* CA iw pops parameters, CB does not. */
void insn_ret_far(struct vcpu *v, const struct insn *i) { cpu_far_return(v, i->opcode == 0xca ? (u16)i->imm : 0, i); }
void insn_iret(struct vcpu *v, const struct insn *i) { cpu_iret(v, i); }

void insn_int_n(struct vcpu *v, const struct insn *i) { cpu_software_interrupt(v, (u8)i->imm, EV_SOFT_INT, i); }
void insn_int3(struct vcpu *v, const struct insn *i) { cpu_software_interrupt(v, VEC_BP, EV_SOFT_EXC, i); }
void insn_int1(struct vcpu *v, const struct insn *i) { cpu_software_interrupt(v, VEC_DB, EV_PRIV_SOFT_EXC, i); }
void insn_into(struct vcpu *v, const struct insn *i)
{
    if (v->aflags & FL_OF)
        cpu_software_interrupt(v, VEC_OF, EV_SOFT_EXC, i);
}

/* System-management mode is absent; outside it RSM is undefined. */
void insn_rsm(struct vcpu *v, const struct insn *i)
{
    (void)i;
    cpu_ud(v);
}
