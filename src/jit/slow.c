/*
 * Ways out of a translation: the call of an instruction's body, the exit to the dispatcher, and slow
 * paths, which are the call of the body of a native instruction that could not go on.
 */
#include "jit/tr.h"

struct slow *slow_path(struct tr *t)
{
    if (!t->cur) {
        if (t->quiet[t->idx]) /* liveness has counted on there being none: this must not be a translation */
            t->c->full = true;
        t->cur = &t->slow[t->nslow++];
        bool saved = t->flags == FL_MEMORY || t->flags == FL_BOTH;
        *t->cur = (struct slow){.recipe = saved ? (struct recipe){.op = AGAIN_NONE} : t->recipe, .off = t->off, .idx = (u8)t->idx, .fip_valid = t->fip_valid, .fip = t->fip,
                               .repeats = t->kinds[t->idx] == K_STRING};
    }
    return t->cur;
}
void slow_if(struct tr *t, unsigned cc) { slow_add(t, slow_path(t), cc); }
static void add(struct tr *t, struct slow *s, u8 *at)
{
    if (s->n < ARRAY_SIZE(s->from))
        s->from[s->n++] = at;
    else
        t->c->full = true;
}
void slow_add_jump(struct tr *t, struct slow *s, u8 *jump) { add(t, s, jump); }
void slow_from(struct tr *t, u8 *jump) { add(t, slow_path(t), jump); }
void slow_add(struct tr *t, struct slow *s, unsigned cc) { add(t, s, put_jcc(t->c, cc)); }
/* The native sequence is complete: the slow path comes back here. */
void slow_back(struct tr *t)
{
    if (!t->cur)
        return;
    t->cur->back = t->c->p;
    t->cur->units = t->units;
    t->cur->rcx = t->rcx;
    t->cur->spans = spans_ahead(t);
    t->cur->load_flags = t->flags == FL_HOST || t->flags == FL_BOTH;
    t->cur = NULL;
}

void emit_body_call(struct tr *t, unsigned idx, s32 off)
{
    put_mov_imm(t->c, H_RAX, INFO(off, idx, t->b->n));
    put_mov_imm(t->c, H_RCX, (u64)(uintptr_t)&t->b->insn[idx]);
    put_call_to(t->c, t->j->call);
}

void emit_body_far(struct tr *t, unsigned idx, s32 off)
{
    put_mov_imm(t->c, H_RAX, INFO(off, idx, t->b->n));
    put_mov_imm(t->c, H_RCX, (u64)(uintptr_t)&t->b->insn[idx]);
    put_jmp_to(t->c, t->j->far);
}

void emit_exit(struct tr *t, u32 reason)
{
    put_mov_imm32(t->c, H_RAX, reason);
    put_jmp_to(t->c, t->j->exit);
}

/* The translation is left behind instruction @idx: the entry counted all of them. */
void left_add(struct tr *t, unsigned idx)
{
    if (t->b->n > idx + 1)
        put_alu_imm_mem(t->c, true, 0, H_RSP, F_AT(left), (s32)(t->b->n - idx - 1));
}

void emit_slow_paths(struct tr *t)
{
    for (unsigned n = 0; n < t->nslow; n++) {
        struct slow *s = &t->slow[n];
        for (unsigned k = 0; k < s->n; k++)
            put_target(s->from[k], t->c->p);
        if (s->recipe.op != AGAIN_NONE) {
            flags_again(t, &s->recipe);
            flags_save(t);
        }
        fip_flush(t, s->fip_valid, s->fip);
        if (t->q->stop && s->idx == t->q->first + t->q->count - 1) {
            rip_add(t, s->off);
            emit_exit(t, JIT_EXIT_STOP);
            continue;
        }
        if (s->spans) {
            put_rm(t->c, true, 0x8b, H_RCX, H_RBP, V_AT(cells_forgotten));
            put_rm(t->c, true, 0x89, H_RCX, H_RSP, F_AT(temp));
        }
        emit_body_call(t, s->idx, s->off);
        if (s->repeats) { /* still this instruction? */
            put_rm(t->c, true, 0x8b, H_RCX, H_RBP, V_AT(next_rip));
            put_rm(t->c, true, 0x8b, H_RAX, H_RSP, F_AT(rip));
            put_rm(t->c, true, 0x8d, H_RAX, H_RAX, s->off);
            put_rr(t->c, true, 0x3b, H_RAX, H_RCX);
            u8 *finished = put_jcc(t->c, CC_NE);
            put_rm(t->c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
            left_add(t, s->idx);
            emit_exit(t, JIT_EXIT_LOOKUP);
            put_target(finished, t->c->p);
        }
        if (s->leave) { /* a branch: its body has set next_rip */
            put_rm(t->c, true, 0x8b, H_RCX, H_RBP, V_AT(next_rip));
            put_rm(t->c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
            left_add(t, s->idx);
            emit_exit(t, s->leave - 1u);
            continue;
        }
        if (s->units) { /* as the code at @back takes for granted */
            put_mov_imm32(t->c, H_RAX, s->units);
            put_call_to(t->c, t->j->units_load);
            u8 *loaded = put_jcc(t->c, CC_NE);
            put_rm(t->c, true, 0x8b, H_RCX, H_RBP, V_AT(next_rip));
            put_rm(t->c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
            left_add(t, s->idx);
            emit_exit(t, JIT_EXIT_FAR);
            put_target(loaded, t->c->p);
        }
        if (s->spans) {
            put_rm(t->c, true, 0x8b, H_RCX, H_RBP, V_AT(cells_forgotten));
            put_rm(t->c, true, 0x3b, H_RCX, H_RSP, F_AT(temp));
            u8 *granted = put_jcc(t->c, CC_E);
            put_rm(t->c, true, 0x8b, H_RCX, H_RBP, V_AT(next_rip));
            put_rm(t->c, true, 0x89, H_RCX, H_RSP, F_AT(rip));
            left_add(t, s->idx);
            emit_exit(t, JIT_EXIT_FAR);
            put_target(granted, t->c->p);
        }
        if (s->load_flags)
            flags_load(t);
        if (s->rcx)
            cell_addend(t, s->rcx - 1);
        put_jmp_to(t->c, s->back);
    }
}
