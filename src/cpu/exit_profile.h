/*
 * Where VM exits come from, and how deep the guest is that runs: kept while somebody wants to know
 * (v->exits). A processor knows only root and guest; that a guest is itself a hypervisor's guest shows
 * when the guest before asked for a VM entry with its latest exit.
 */
#pragma once
#include "cpu/state.h"

#define EXIT_SITES 4096u /* a power of two */
#define EXIT_GUESTS 64u

struct exit_site {
    u64 rip, linear; /* where the guest was; linear: with the CS base */
    u64 control;     /* its VMCS or VMCB */
    u64 count;
    u16 reason;      /* VMX: the basic exit reason; SVM: the slot of the exit code (svm.h) */
    u8 level;        /* 2: a guest of the first hypervisor; 3: a guest of such a guest */
};

struct exit_profile {
    struct exit_site site[EXIT_SITES]; /* a hash table; count 0: free */
    u64 sites, lost;                   /* lost: exits for which there was no room */
    struct {
        u64 control;
        u8 level;
    } guest[EXIT_GUESTS];
    unsigned nguests;
    u64 control;  /* VMCS or VMCB of the guest that runs, or ran last */
    u8 level;     /* its level; 0 before the first entry */
    u8 asked;     /* level of the guest whose latest exit was a request for a VM entry; 0: it was not */
    u64 asker;    /* the VMCS or VMCB of that guest */
    u64 entries, exits;
    u16 last_reason;
    bool last_failed; /* the latest exit was a refused entry */
};

struct exit_profile *exit_profile_new(void); /* NULL: no memory */
/* The processor enters the guest of @control. */
void exit_profile_entry(struct vcpu *v, u64 control);
/* It leaves it (or refuses it: @failed), before anything of its state is lost. @asks: for a VM entry of its own. */
void exit_profile_exit(struct vcpu *v, unsigned reason, u64 control, bool asks, bool failed);
/* 1 outside guest mode; 2, 3, ... in it; 0 when unknown. */
static inline unsigned cpu_level(const struct vcpu *v, const struct exit_profile *p)
{
    return !v->guest_mode ? 1 : p ? p->level : 0;
}
