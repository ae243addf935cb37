/*
 * The checks of VM entry, once more and cheaper: a hypervisor changes little between two entries, and a row whose predicates
 * have looked at nothing that has changed says what it said. Which fields a row looks at is noted while it runs
 * (checks_tracked.c); what it looked at when it last passed is among them. What has changed is found by comparing values, so
 * that nobody who writes a field has to tell. Anything else of a snapshot that has changed makes all rows run.
 */
#include "vmx/vmx.h"

static void field_changed(struct vmx_again *a, const struct vmx_snapshot *s, unsigned n)
{
    u64 changed = a->f[n] ^ s->f[n];
    a->f[n] = s->f[n];
    if (n == VMCS_GUEST_RFLAGS)
        changed &= ~FL_ARITH; /* which are not looked at, and change all the time */
    for (unsigned w = 0; changed && w < VMX_AGAIN_WORDS; w++)
        a->todo[w] |= a->rows_of[n][w];
}

/* Begins a VM entry: the rows that must run. */
void vmx_again_begin(struct vmx_again *a, const struct vmx_snapshot *s)
{
    struct vmx_snapshot facts;
    memcpy(&facts, s, sizeof(facts)); /* padding too */
    facts.f = NULL;
    facts.caps = NULL;
    facts.reads = NULL;
    bool same = a->passed && !memcmp(&facts, &a->facts, sizeof(facts)) && !memcmp(s->caps, &a->caps, sizeof(a->caps));
    a->passed = false;
    memset(a->todo, 0, sizeof(a->todo));
    if (same) {
        for (unsigned n = 0; n < VMCS_SLOT_COUNT; n += 8) {
            u64 changed = 0;
            unsigned end = n + 8 < VMCS_SLOT_COUNT ? n + 8 : VMCS_SLOT_COUNT;
            if (end == n + 8) {
#pragma GCC unroll 8
                for (unsigned k = 0; k < 8; k++)
                    changed |= a->f[n + k] ^ s->f[n + k];
            } else {
                changed = 1;
            }
            for (unsigned k = n; changed && k < end; k++)
                field_changed(a, s, k);
        }
        return;
    }
    unsigned rows;
    const struct virt_check *row = vmx_check_table(&rows);
    memcpy(&a->facts, &facts, sizeof(facts));
    a->caps = *s->caps;
    memcpy(a->f, s->f, sizeof(a->f));
    memset(a->rows_of, 0, sizeof(a->rows_of));
    for (unsigned n = 0; n < rows; n++)
        if (row[n].stage < STAGE_MSR_LOAD)
            a->todo[n / 64] |= BIT64(n % 64);
}

const struct virt_check *vmx_again_first_failure(struct vmx_again *a, const struct vmx_snapshot *s, enum virt_stage first, enum virt_stage last)
{
    unsigned rows;
    const struct virt_check *row = vmx_check_table(&rows);
    for (unsigned w = 0; w < VMX_AGAIN_WORDS; w++) {
        for (u64 todo = a->todo[w]; todo; todo &= todo - 1) {
            unsigned n = w * 64 + (unsigned)__builtin_ctzll(todo);
            if (row[n].stage < first || row[n].stage > last)
                continue;
            struct vmx_reads reads;
            enum virt_outcome outcome = vmx_check_tracked(n, s, &reads);
            for (unsigned k = 0; k < ARRAY_SIZE(reads.fields); k++)
                for (u64 bits = reads.fields[k]; bits; bits &= bits - 1)
                    a->rows_of[k * 64 + (unsigned)__builtin_ctzll(bits)][w] |= BIT64(n % 64);
            if (outcome == CHECK_FAIL)
                return &row[n];
        }
    }
    a->passed = last == STAGE_GUEST;
    return NULL;
}
