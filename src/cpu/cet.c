/*
 * Shadow stacks and indirect-branch tracking (cet.h): state, near branches, far transfers, instructions.
 * Manual: Intel SDM 325462 (2023), vol. 1 "Control-flow Enforcement Technology (CET)", vol. 2 of each
 * instruction, vol. 3 "Task Management".
 */
#include "cpu/cet.h"
#include "cpu/bodies_sys.h"
#include "cpu/operand.h"
#include "cpu/system.h"

/* ---- state ---- */

static u64 *control(struct vcpu *v, unsigned cpl) { return cpl == 3 ? &v->u_cet : &v->s_cet; }

/* CR4.CET = 1 and protected mode, not virtual-8086: what the manual's ShadowStackEnabled() begins with. */
static bool usable(const struct vcpu *v) { return (v->cr4 & CR4_CET) && (v->cr0 & CR0_PE) && !(v->rflags & FL_VM); }

/* As code at @cpl will find it: RFLAGS.VM, which the transfer clears, does not count. */
static bool enabled_at(struct vcpu *v, unsigned cpl, u64 what)
{
    return (v->cr4 & CR4_CET) && (v->cr0 & CR0_PE) && (*control(v, cpl) & what) == what;
}

void cet_changed(struct vcpu *v)
{
    u8 state = 0;
    if (usable(v)) {
        u64 c = *control(v, v->cpl);
        if (c & CET_SH_STK_EN)
            state |= CET_SHSTK;
        if (c & CET_ENDBR_EN)
            state |= (u8)(CET_IBT | (c & CET_TRACKER ? CET_WAIT : 0));
    }
    if (state == v->cet)
        return;
    v->cet = state;
    cpu_attention(v, ATT_BLOCK);
}

bool cet_control_valid(const struct vcpu *v, u64 value)
{
    u64 reserved = BITS64(9, 6);
    if (!cpu_has(v, FEAT_CET_IBT))
        reserved = ~(CET_SH_STK_EN | CET_WR_SHSTK_EN);
    return !(value & reserved) && (value & (CET_SUPPRESS | CET_TRACKER)) != (CET_SUPPRESS | CET_TRACKER) &&
           cpu_canonical_any(v, value & ~0xfffull);
}

static void __attribute__((noreturn)) raise_cp(struct vcpu *v, enum cp_error error) { cpu_raise_error(v, VEC_CP, error); }

/* ---- indirect-branch tracking ---- */

/* A far transfer's target must be an ENDBRANCH, suppressed or not. */
static void track(struct vcpu *v, unsigned cpl)
{
    if (enabled_at(v, cpl, CET_ENDBR_EN))
        *control(v, cpl) = (*control(v, cpl) | CET_TRACKER) & ~CET_SUPPRESS;
    cet_changed(v);
}

/*
 * The code at @target is an ENDBRANCH that will be fetched without a fault: then the tracker is idle again
 * behind it, and between the two instructions nothing looks (no attention).
 */
static bool lands_on_endbranch(struct vcpu *v, u64 target)
{
    gva_t la = (v->seg_base[SEG_CS] + target) & v->linear_mask;
    const struct tlb_entry *e = tlb_slot(v, la);
    u32 bytes;
    if (e->tag_exec != ((la + 3) & PAGE_MASK) || atomic_load_explicit(&v->attention, memory_order_relaxed))
        return false;
    memcpy(&bytes, (const void *)(uintptr_t)(la + e->addend), sizeof(bytes));
    return bytes == (v->code_mode == CODE_64 ? 0xfa1e0ff3u : 0xfb1e0ff3u);
}

static void track_near(struct vcpu *v, const struct insn *i, u64 target)
{
    u64 *c = control(v, v->cpl);
    if (!(v->cet & CET_IBT) || (*c & CET_SUPPRESS) || ((i->flags & INSN_NOTRACK) && (*c & CET_NO_TRACK_EN)))
        return;
    if (likely(lands_on_endbranch(v, target)))
        return;
    *c |= CET_TRACKER;
    cet_changed(v);
}

/* ENDBR64 in 64-bit mode, ENDBR32 elsewhere; the other one is a NOP. */
static void cet_endbranch(struct vcpu *v, const struct insn *i)
{
    (void)i;
    *control(v, v->cpl) &= ~(CET_TRACKER | CET_SUPPRESS);
    cet_changed(v);
}

/* The legacy code page bitmap: one bit for each page of linear addresses. */
static bool legacy_page(struct vcpu *v)
{
    u64 c = *control(v, v->cpl);
    if (!(c & CET_LEG_IW_EN))
        return false;
    u64 la = (v->seg_base[SEG_CS] + v->rip) & v->linear_mask & BITS64(v->cr4 & CR4_LA57 ? 56 : 47, 0);
    u64 at = ((c & ~0xfffull) + (la >> 15)) & (cpu_lma(v) ? ~0ull : 0xffffffffull);
    return lin_read8(v, SEG_COUNT, at) >> (la >> 12 & 7) & 1;
}

void cet_missing_endbranch(struct vcpu *v, const struct insn *i)
{
    (void)i;
    if (!legacy_page(v))
        raise_cp(v, CP_ENDBRANCH);
    u64 *c = control(v, v->cpl);
    *c = (*c & ~CET_TRACKER) | (*c & CET_SUPPRESS_DIS ? 0 : CET_SUPPRESS);
    cet_changed(v);
    cpu_unwind(v, UNWIND_RETRY);
}

static void missing_endbranch(struct vcpu *v, const struct insn *i) { cet_missing_endbranch(v, i); }

/* ---- near branches ---- */

static unsigned slot_size(const struct insn *i) { return i->opsize == 8 ? 8 : 4; }

static u64 near_target(struct vcpu *v, const struct insn *i, u64 target)
{
    if (i->opsize == 8) {
        if (!cpu_canonical(v, target))
            cpu_gp0(v);
        return target;
    }
    target &= size_mask(i->opsize);
    if (target > v->seg[SEG_CS].limit && v->code_mode != CODE_64)
        cpu_gp0(v);
    return target;
}

/* Stack and shadow stack both, or neither. */
static void call(struct vcpu *v, const struct insn *i, u64 target, bool shadow)
{
    unsigned size = i->opsize, slot = slot_size(i);
    u64 sp = (v->gpr[RSP] - size) & stack_mask(v);
    mem_put(v, SEG_SS, sp, v->next_rip, size);
    if ((v->cet & CET_SHSTK) && shadow) {
        mem_shadow_write(v, v->ssp - slot, v->next_rip & size_mask(size), slot, v->cpl == 3);
        v->ssp -= slot;
    }
    stack_set_pointer(v, sp);
    v->next_rip = target;
}

/* A CALL to the instruction behind it, which is how code learns where it is, leaves the shadow stack alone. */
static void cet_call_rel(struct vcpu *v, const struct insn *i)
{
    call(v, i, near_target(v, i, v->next_rip + i->imm), i->imm != 0);
}

static void cet_call_ind(struct vcpu *v, const struct insn *i)
{
    u64 target = near_target(v, i, rm_get(v, i, i->opsize));
    call(v, i, target, true);
    track_near(v, i, target);
}

static void cet_jmp_ind(struct vcpu *v, const struct insn *i)
{
    u64 target = near_target(v, i, rm_get(v, i, i->opsize));
    v->next_rip = target;
    track_near(v, i, target);
}

static void cet_ret(struct vcpu *v, const struct insn *i)
{
    u64 rsp = v->gpr[RSP];
    u64 target = near_target(v, i, peek_inline(v, &rsp, i->opsize));
    if (v->cet & CET_SHSTK) {
        unsigned slot = slot_size(i);
        if (mem_shadow_read(v, v->ssp, slot, v->cpl == 3) != target)
            raise_cp(v, CP_NEAR_RET);
        v->ssp += slot;
    }
    if (i->opcode == 0xc2)
        rsp += (u16)i->imm;
    stack_set_pointer(v, rsp);
    v->next_rip = target;
}

static insn_fn *near_branch_body(const struct insn *i, const struct insn_row *row, u32 state)
{
    if (row->vex || row->map)
        return NULL;
    switch (row->opcode) {
    case 0xe8:
        return state & CET_SHSTK ? cet_call_rel : NULL;
    case 0xc2: case 0xc3:
        return state & CET_SHSTK ? cet_ret : NULL;
    case 0xff:
        if ((i->modrm >> 3 & 7) == 2)
            return cet_call_ind;
        return (i->modrm >> 3 & 7) == 4 && (state & CET_IBT) ? cet_jmp_ind : NULL;
    }
    return NULL;
}

/* ENDBR64 in 64-bit mode, ENDBR32 elsewhere. */
static bool is_endbranch(const struct insn *i, const struct insn_row *row, enum code_mode mode)
{
    return !row->vex && row->map == 1 && row->pp == 2 && row->opcode == 0x1e && i->modrm == (mode == CODE_64 ? 0xfa : 0xfb);
}

bool cet_bind(struct insn *i, u32 state, enum code_mode mode)
{
    const struct insn_row *row = insn_row(i);
    insn_fn *fn = near_branch_body(i, row, state);
    if ((state & CET_IBT) && is_endbranch(i, row, mode))
        fn = cet_endbranch;
    /* INT3 may stand where a debugger has put it over the ENDBRANCH. */
    else if ((state & CET_WAIT) && (row->map || row->vex || row->opcode != 0xcc))
        fn = missing_endbranch;
    if (fn) {
        i->fn = fn;
        i->flags |= INSN_OWN_FN;
    }
    return state & CET_WAIT;
}

/* ---- shadow stacks in far transfers ---- */

static void shadow_push8(struct vcpu *v, u64 *ssp, u64 value, bool user)
{
    mem_shadow_write(v, *ssp - 8, value, 8, user);
    *ssp -= 8;
}

/* The return address and the old SSP, on an 8-byte boundary; what lies between is zeroed. */
static u64 push_frame(struct vcpu *v, u64 ssp, u64 cs, u64 lip, u64 old_ssp, bool user)
{
    if (ssp & 7)
        mem_shadow_write(v, ssp - 4, 0, 4, user);
    ssp &= ~7ull;
    shadow_push8(v, &ssp, cs, user);
    shadow_push8(v, &ssp, lip, user);
    shadow_push8(v, &ssp, old_ssp, user);
    return ssp;
}

/* The token of the supervisor shadow stack at @ssp becomes busy. */
static void acquire(struct vcpu *v, u64 ssp, bool wide)
{
    /* Token and frame must lie in one 32-byte region, so that nothing can fault between them. */
    if ((ssp & 7) || ((ssp ^ (ssp - 24)) & ~0x1full) || (!wide && ssp >> 32))
        cpu_gp0(v);
    if (!mem_shadow_cmpxchg(v, ssp, ssp, ssp | 1, false))
        cpu_gp0(v);
}

static void release(struct vcpu *v, u64 ssp, bool user) { mem_shadow_cmpxchg(v, ssp, ssp | 1, ssp, user); }

static u64 code_linear(const struct vcpu *v, u64 rip) { return (v->seg_base[SEG_CS] + rip) & v->linear_mask; }

void cet_enter(struct vcpu *v, const struct cet_entry *e, u64 rip)
{
    bool from_user = v->cpl == 3 && e->cpl != 3, old_on = v->cet & CET_SHSTK;
    u64 old_ssp = v->ssp, ssp = old_ssp;
    if (enabled_at(v, e->cpl, CET_SH_STK_EN)) {
        if (e->switched) {
            acquire(v, e->ssp, e->wide);
            ssp = e->ssp;
        } else if (!e->wide && ssp >> 32) {
            cpu_gp0(v);
        }
        if (e->push)
            ssp = push_frame(v, ssp, v->seg[SEG_CS].sel, code_linear(v, rip), old_ssp, e->cpl == 3);
    }
    if (from_user && old_on)
        v->pl_ssp[3] = old_ssp;
    v->ssp = ssp;
    track(v, e->cpl);
}

u64 cet_interrupt_ssp(struct vcpu *v, unsigned ist)
{
    return enabled_at(v, 0, CET_SH_STK_EN) ? sys_read(v, v->int_ssp_table + 8 * ist, 8) : 0;
}

void cet_jump(struct vcpu *v, bool wide)
{
    if ((v->cet & CET_SHSTK) && !wide && v->ssp >> 32)
        cpu_gp0(v);
    track(v, v->cpl);
}

void cet_return(struct vcpu *v, u16 sel, u64 cs, u64 rip, bool iret)
{
    unsigned cpl = rpl_of(sel), old = v->cpl;
    bool old_on = v->cet & CET_SHSTK, user = old == 3, wide = cpu_lma(v) && desc_l(cs);
    u64 ssp = v->ssp, back = v->pl_ssp[3];
    if (old_on) {
        if (ssp & 7)
            raise_cp(v, CP_FAR_RET_IRET);
        if (cpl == old || cpl != 3) {
            struct segment s;
            segment_unpack(&s, sel, cs);
            u64 lip = wide ? rip : (u32)(rip + s.base);
            back = mem_shadow_read(v, ssp, 8, user);
            u64 shadow_lip = mem_shadow_read(v, ssp + 8, 8, user), shadow_cs = mem_shadow_read(v, ssp + 16, 8, user);
            if (shadow_cs != sel || shadow_lip != lip || (back & 3))
                raise_cp(v, CP_FAR_RET_IRET);
            if (!wide && back >> 32)
                cpu_gp0(v);
            ssp += 24;
        }
    }
    if (cpl == old) {
        /* An interrupt of the same level may have brought a shadow stack of its own. */
        if (old_on && iret && cpu_lma(v) && ssp != back)
            release(v, ssp, user);
        if (old_on)
            v->ssp = back;
        return;
    }
    bool new_on = enabled_at(v, cpl, CET_SH_STK_EN);
    if (new_on && !wide && back >> 32)
        cpu_gp0(v);
    if (old_on)
        release(v, ssp, user);
    if (new_on)
        v->ssp = back;
}

void cet_iret_to_v86(struct vcpu *v)
{
    if (v->u_cet & (CET_SH_STK_EN | CET_ENDBR_EN))
        cpu_gp0(v);
    if (!(v->cet & CET_SHSTK))
        return;
    if (v->ssp & 7)
        raise_cp(v, CP_FAR_RET_IRET);
    release(v, v->ssp, false);
}

void cet_fast_entry(struct vcpu *v)
{
    if (v->cet & CET_SHSTK)
        v->pl_ssp[3] = v->ssp;
    if (enabled_at(v, 0, CET_SH_STK_EN))
        v->ssp = 0;
    track(v, 0);
}

void cet_fast_exit(struct vcpu *v)
{
    if (enabled_at(v, 3, CET_SH_STK_EN))
        v->ssp = v->pl_ssp[3];
}

/* ---- task switches ---- */

void cet_task_leave(struct vcpu *v, struct cet_task *t, unsigned new_cpl, bool call, bool iret)
{
    *t = (struct cet_task){.old_ssp = v->ssp};
    if (!(v->cet & CET_SHSTK))
        return;
    bool user = v->cpl == 3;
    if (call && !(new_cpl < v->cpl && user)) {
        t->push = true;
        t->cs = v->seg[SEG_CS].sel;
        t->lip = code_linear(v, v->next_rip);
    }
    if (!iret)
        return;
    t->restore = true;
    t->ssp = v->pl_ssp[3];
    u64 ssp = v->ssp;
    if (new_cpl == v->cpl || new_cpl < 3) {
        t->verify = true;
        t->ssp = mem_shadow_read(v, ssp, 8, user);
        t->lip = mem_shadow_read(v, ssp + 8, 8, user);
        t->cs = mem_shadow_read(v, ssp + 16, 8, user);
        ssp += 24;
    }
    release(v, ssp, user);
}

void cet_task_enter(struct vcpu *v, const struct cet_task *t, u32 new_ssp, bool iret)
{
    u16 tss = sel_error(v->seg[SEG_TR].sel);
    u64 c = *control(v, v->cpl);
    if ((v->rflags & FL_VM) && (c & (CET_SH_STK_EN | CET_ENDBR_EN)))
        cpu_raise_error(v, VEC_TS, tss | event_ext(v));
    bool on = v->cet & CET_SHSTK, user = v->cpl == 3;
    if (iret) {
        if (t->verify && (t->cs != v->seg[SEG_CS].sel || t->lip != code_linear(v, v->rip)))
            raise_cp(v, CP_FAR_RET_IRET);
        if (on && ((t->ssp & 3) || t->ssp >> 32))
            raise_cp(v, CP_FAR_RET_IRET);
        if (on)
            v->ssp = t->ssp;
        return;
    }
    if (on) {
        u64 ssp = new_ssp;
        if (ssp & 7)
            cpu_raise_error(v, VEC_TS, tss | event_ext(v));
        if (!mem_shadow_cmpxchg(v, ssp, ssp, ssp | 1, user))
            cpu_raise_error(v, VEC_TS, tss | event_ext(v));
        v->ssp = t->push ? push_frame(v, ssp, t->cs, t->lip, t->old_ssp, user) : ssp;
    }
    track(v, v->cpl);
}

/* ---- instructions ---- */

static void need_shadow_stack(struct vcpu *v)
{
    if (!(v->cet & CET_SHSTK))
        cpu_ud(v);
}

/* A NOP where shadow stacks are off. */
void insn_rdssp(struct vcpu *v, const struct insn *i)
{
    if (v->cet & CET_SHSTK)
        gpr_set(v, i->rm, v->ssp, i->opsize == 8 ? 8 : 4);
}

void insn_incssp(struct vcpu *v, const struct insn *i)
{
    need_shadow_stack(v);
    unsigned slot = i->opsize == 8 ? 8 : 4, count = v->gpr[i->rm] & 0xff;
    bool user = v->cpl == 3;
    mem_shadow_read(v, v->ssp, slot, user);
    if (count > 1)
        mem_shadow_read(v, v->ssp + (u64)(count - 1) * slot, slot, user);
    v->ssp = (v->ssp + (u64)count * slot) & v->linear_mask;
}

void insn_saveprevssp(struct vcpu *v, const struct insn *i)
{
    (void)i;
    need_shadow_stack(v);
    bool user = v->cpl == 3, wide = v->mode == MODE_LONG64;
    u64 ssp = v->ssp;
    if (ssp & 7)
        cpu_gp0(v);
    u64 token = mem_shadow_read(v, ssp, 8, user);
    ssp += 8;
    if (v->aflags & FL_CF) { /* RSTORSSP found an alignment hole, which can be one of 32-bit code only */
        if (wide || mem_shadow_read(v, ssp, 4, user))
            cpu_gp0(v);
        ssp += 4;
    }
    if (!(token & 2) || (!wide && token >> 32))
        cpu_gp0(v);
    u64 old = token & ~3ull;
    mem_shadow_write(v, old - 4, 0, 4, user);
    mem_shadow_write(v, (old & ~7ull) - 8, old | wide, 8, user);
    v->ssp = ssp;
}

/* The operand's linear address, aligned to @align; as a data access of the instruction it may fault. */
static gva_t operand_linear(struct vcpu *v, const struct insn *i, unsigned size, u32 access)
{
    gva_t la = seg_linear(v, i->seg, insn_ea(v, i), size, access);
    if (la & (size - 1))
        cpu_gp0(v);
    if (v->mode == MODE_LONG64 && !cpu_canonical(v, la))
        cpu_raise_error(v, i->seg == SEG_SS ? VEC_SS : VEC_GP, 0);
    return la;
}

void insn_rstorssp(struct vcpu *v, const struct insn *i)
{
    need_shadow_stack(v);
    bool user = v->cpl == 3, wide = v->mode == MODE_LONG64;
    gva_t la = operand_linear(v, i, 8, ACCESS_READ);
    u64 token = mem_shadow_read(v, la, 8, user);
    bool ok = (token & 3) == wide && (wide || !(token >> 32)) && (((token & ~1ull) - 8) & ~7ull) == la;
    /* The access is a write whatever it finds. */
    if (!mem_shadow_cmpxchg(v, la, token, ok ? v->ssp | wide | 2 : token, user) || !ok)
        raise_cp(v, CP_RSTORSSP);
    v->ssp = la;
    v->aflags = token & 4 ? FL_CF : 0;
}

void insn_wrss(struct vcpu *v, const struct insn *i)
{
    unsigned size = i->opsize == 8 ? 8 : 4;
    if (!usable(v) || !enabled_at(v, v->cpl, CET_SH_STK_EN | CET_WR_SHSTK_EN))
        cpu_ud(v);
    gva_t la = operand_linear(v, i, size, ACCESS_WRITE);
    mem_shadow_write(v, la, v->gpr[i->reg] & size_bits(size), size, v->cpl == 3);
}

void insn_wruss(struct vcpu *v, const struct insn *i)
{
    unsigned size = i->opsize == 8 ? 8 : 4;
    if (!usable(v))
        cpu_ud(v);
    if (v->cpl != 0)
        cpu_gp0(v);
    gva_t la = operand_linear(v, i, size, ACCESS_WRITE);
    mem_shadow_write(v, la, v->gpr[i->reg] & size_bits(size), size, true);
}

static void need_supervisor_stack(struct vcpu *v)
{
    if (!usable(v) || !enabled_at(v, 0, CET_SH_STK_EN))
        cpu_ud(v);
    if (v->cpl != 0)
        cpu_gp0(v);
}

void insn_setssbsy(struct vcpu *v, const struct insn *i)
{
    (void)i;
    need_supervisor_stack(v);
    u64 ssp = v->pl_ssp[0];
    if (ssp & 7)
        cpu_gp0(v);
    if (!mem_shadow_cmpxchg(v, ssp, ssp, ssp | 1, false))
        raise_cp(v, CP_SETSSBSY);
    v->ssp = ssp;
}

void insn_clrssbsy(struct vcpu *v, const struct insn *i)
{
    need_supervisor_stack(v);
    gva_t la = operand_linear(v, i, 8, ACCESS_READ);
    bool cleared = mem_shadow_cmpxchg(v, la, la | 1, la, false);
    v->aflags = cleared ? 0 : FL_CF;
    v->ssp = 0;
}
