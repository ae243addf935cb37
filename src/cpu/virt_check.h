/*
 * One check of a VM entry or VMRUN: a row of src/vmx/checks.def or its SVM sibling. Predicates are
 * pure functions of a snapshot (the controls, both state areas, and the few processor and memory
 * facts the manual's rule names), so the debugger, the log checker and the tests call the same rows
 * as the processor does.
 */
#pragma once
#include "base/types.h"

/* What a failure does. Decided here and nowhere else. */
enum virt_stage {
    STAGE_CONTROLS, /* VMX: VMfailValid(7).   SVM: #VMEXIT(INVALID) */
    STAGE_HOST,     /* VMX: VMfailValid(8) */
    STAGE_GUEST,    /* VMX: exit 33 with the row's qualification */
    STAGE_MSR_LOAD, /* VMX: exit 34 with the number of the entry; judged once per entry of the list */
};

#define VIRT_CHECK_FIELDS 15

struct virt_check {
    const char *id;      /* stable name: EXEC_VPID_NONZERO */
    u8 stage;            /* enum virt_stage */
    u8 qualification;    /* STAGE_GUEST */
    const char *title;   /* of the manual's section */
    const char *section; /* its number in the edition the table names */
    const char *rule;    /* in words */
    u16 fields[VIRT_CHECK_FIELDS]; /* what it reads: VMCS encodings or VMCB offsets */
    u8 nfields;
    bool (*applies)(const void *snapshot); /* false: not applicable */
    bool (*ok)(const void *snapshot);
    const char *when_text, *ok_text; /* the two predicates as the table writes them; may be NULL */
};

enum virt_outcome { CHECK_PASS, CHECK_FAIL, CHECK_NOT_APPLICABLE };

static inline enum virt_outcome virt_check_run(const struct virt_check *c, const void *snapshot)
{
    if (!c->applies(snapshot))
        return CHECK_NOT_APPLICABLE;
    return c->ok(snapshot) ? CHECK_PASS : CHECK_FAIL;
}
