/* Counting VM exits by place. */
#include "cpu/exit_profile.h"

#include <stdlib.h>

struct exit_profile *exit_profile_new(void) { return calloc(1, sizeof(struct exit_profile)); }

static u8 *level_of(struct exit_profile *p, u64 control)
{
    for (unsigned i = 0; i < p->nguests; i++)
        if (p->guest[i].control == control)
            return &p->guest[i].level;
    /* A hypervisor with more guests than places: the oldest is forgotten, and learnt again. */
    unsigned n = p->nguests < EXIT_GUESTS ? p->nguests++ : (unsigned)(p->entries % EXIT_GUESTS);
    p->guest[n].control = control;
    p->guest[n].level = 2;
    return &p->guest[n].level;
}

void exit_profile_entry(struct vcpu *v, u64 control)
{
    struct exit_profile *p = v->exits;
    u8 *level = level_of(p, control);
    if (p->asked && control != p->asker)
        *level = p->asked < 250 ? (u8)(p->asked + 1) : 250;
    p->asked = 0;
    p->control = control;
    p->level = *level;
    p->entries++;
}

static void count(struct exit_profile *p, const struct exit_site *s)
{
    u64 h = (s->rip * 0x9e3779b97f4a7c15ull) ^ (s->control * 0xff51afd7ed558ccdull) ^ s->reason;
    h ^= h >> 29;
    for (unsigned k = 0; k < 16; k++) {
        struct exit_site *e = &p->site[(h + k) & (EXIT_SITES - 1)];
        if (!e->count) {
            *e = *s;
            e->count = 1;
            p->sites++;
            return;
        }
        if (e->rip == s->rip && e->control == s->control && e->reason == s->reason) {
            e->count++;
            return;
        }
    }
    p->lost++;
}

void exit_profile_exit(struct vcpu *v, unsigned reason, u64 control, bool asks, bool failed)
{
    struct exit_profile *p = v->exits;
    u8 level = failed && p->asked && control != p->asker ? (u8)(p->asked + 1) : *level_of(p, control);
    struct exit_site s = {.rip = v->rip, .linear = (v->seg_base[SEG_CS] + v->rip) & v->linear_mask, .control = control,
                          .reason = (u16)reason, .level = level};
    count(p, &s);
    p->asked = asks && !failed ? level : 0;
    p->asker = control;
    p->exits++;
    p->last_reason = (u16)reason;
    p->last_failed = failed;
}
