/*
 * Stopping at VM entries and walking through their checks, one row at a time: "monitor vmentry ...".
 * Everything here looks at a copy of the current VMCS; the entry itself is the processor's, when gdb
 * steps over the instruction.
 */
#include "debug/debugger.h"

#include "cpu/mem.h"
#include "debug/vmcb_check.h"
#include "svm/svm.h"

#include <inttypes.h>
#include <stdlib.h>
#include <strings.h>

bool entry_at(struct vcpu *v, bool *launch)
{
    u8 b[3];
    gva_t la = (v->seg_base[SEG_CS] + v->rip) & v->linear_mask;
    if (!v->vmx || !v->in_vmx_operation || v->guest_mode || !mem_peek(v, la, b, sizeof(b)) || b[0] != 0x0f || b[1] != 0x01)
        return false;
    *launch = b[2] == 0xc2;
    return b[2] == 0xc2 || b[2] == 0xc3;
}

/* ---- SDM "Basic VM-Entry Checks": before the rows of the table ---- */
static const struct {
    const char *id, *rule, *effect;
} basics[] = {
    {"BASIC_CPL", "CPL is 0", "#GP(0)"},
    {"BASIC_CURRENT_VMCS", "there is a current VMCS and it is not a shadow VMCS", "VMfailInvalid"},
    {"BASIC_MOVSS", "no blocking by MOV SS", "VMfailValid, VM-instruction error 26"},
    {"BASIC_LAUNCH_STATE", "VMLAUNCH: the launch state is clear; VMRESUME: it is launched", "VMfailValid, VM-instruction error 4 or 5"},
};
#define BASICS ((unsigned)ARRAY_SIZE(basics))

static bool basic_ok(const struct vcpu *v, unsigned n, bool launch)
{
    const struct vmx *x = v->vmx;
    switch (n) {
    case 0: return v->cpl == 0;
    case 1: return x->current != VMX_NO_VMCS && !x->current_is_shadow;
    case 2: return !(v->shadow & SHADOW_MOVSS);
    default: return launch != x->launched;
    }
}

static void print_basic(const struct vcpu *v, unsigned n, bool launch, bool ok, FILE *out)
{
    fprintf(out, "%s: %s\n    SDM volume 3, 27.1 \"Basic VM-Entry Checks\"\n    rule: %s\n", basics[n].id, ok ? "pass" : "FAIL", basics[n].rule);
    switch (n) {
    case 0: fprintf(out, "    CPL = %u\n", v->cpl); break;
    case 1: fprintf(out, "    current-VMCS pointer = 0x%" PRIx64 "%s\n", v->vmx->current, v->vmx->current_is_shadow ? ", a shadow VMCS" : ""); break;
    case 2: fprintf(out, "    shadow = %u\n", v->shadow); break;
    default: fprintf(out, "    %s; launch state = %s\n", launch ? "VMLAUNCH" : "VMRESUME", v->vmx->launched ? "launched" : "clear"); break;
    }
    if (!ok)
        fprintf(out, "    the instruction ends here: %s\n", basics[n].effect);
}

/* ---- what follows the checks, in the manual's order ---- */
static const struct {
    const char *title, *section;
    u16 slots[12];
    u8 n;
} phases[] = {
    {"Loading Guest Control Registers, Debug Registers, and MSRs", "27.3.2.1",
     {VMCS_GUEST_CR0, VMCS_GUEST_CR3, VMCS_GUEST_CR4, VMCS_GUEST_DR7, VMCS_GUEST_IA32_DEBUGCTL, VMCS_GUEST_IA32_EFER, VMCS_GUEST_IA32_PAT,
      VMCS_GUEST_IA32_PERF_GLOBAL_CTRL, VMCS_GUEST_SYSENTER_CS, VMCS_GUEST_SYSENTER_ESP, VMCS_GUEST_SYSENTER_EIP}, 11},
    {"Loading Guest Segment Registers and Descriptor-Table Registers", "27.3.2.2",
     {VMCS_GUEST_CS_SELECTOR, VMCS_GUEST_CS_BASE, VMCS_GUEST_CS_AR_BYTES, VMCS_GUEST_SS_SELECTOR, VMCS_GUEST_SS_AR_BYTES, VMCS_GUEST_TR_SELECTOR,
      VMCS_GUEST_TR_BASE, VMCS_GUEST_GDTR_BASE, VMCS_GUEST_GDTR_LIMIT, VMCS_GUEST_IDTR_BASE, VMCS_GUEST_IDTR_LIMIT}, 11},
    {"Loading Guest RIP, RSP, RFLAGS, and SSP", "27.3.2.3", {VMCS_GUEST_RIP, VMCS_GUEST_RSP, VMCS_GUEST_RFLAGS}, 3},
    {"Loading Page-Directory-Pointer-Table Entries", "27.3.2.4", {VMCS_GUEST_PDPTE0, VMCS_GUEST_PDPTE1, VMCS_GUEST_PDPTE2, VMCS_GUEST_PDPTE3}, 4},
    {"Loading Guest Non-Register State", "27.3.2.6",
     {VMCS_GUEST_ACTIVITY_STATE, VMCS_GUEST_INTERRUPTIBILITY_INFO, VMCS_GUEST_PENDING_DBG_EXCEPTIONS}, 3},
    {"Loading MSRs", "27.4", {VMCS_VM_ENTRY_MSR_LOAD_COUNT, VMCS_VM_ENTRY_MSR_LOAD_ADDR}, 2},
    {"Event Injection", "27.6", {VMCS_VM_ENTRY_INTR_INFO_FIELD, VMCS_VM_ENTRY_EXCEPTION_ERROR_CODE, VMCS_VM_ENTRY_INSTRUCTION_LEN}, 3},
};

/* Whether the entry loads this field at all. */
static bool loaded(const struct vmx *x, unsigned slot)
{
    u64 controls = x->f[VMCS_VM_ENTRY_CONTROLS];
    unsigned control = vmcs_fields[slot].control;
    if (slot == VMCS_GUEST_DR7 || slot == VMCS_GUEST_IA32_DEBUGCTL)
        return controls & BIT64(ENTRY_LOAD_DEBUG);
    if (control < CTL_COUNT && vmx_controls[control].word == WORD_ENTRY)
        return controls >> vmx_controls[control].bit & 1;
    return vmcs_exists(&x->caps, slot);
}

static void print_phase(const struct vcpu *v, unsigned n, FILE *out)
{
    const struct vmx *x = v->vmx;
    fprintf(out, "load: \"%s\" (SDM volume 3, %s)\n", phases[n].title, phases[n].section);
    for (unsigned i = 0; i < phases[n].n; i++) {
        unsigned slot = phases[n].slots[i];
        if (loaded(x, slot))
            fprintf(out, "    %s = 0x%" PRIx64 "\n", vmcs_fields[slot].name, x->f[slot]);
    }
}

/* ---- AMD-V: VMRUN of the VMCB in RAX ---- */

bool vmrun_at(struct vcpu *v)
{
    u8 b[3];
    gva_t la = (v->seg_base[SEG_CS] + v->rip) & v->linear_mask;
    return v->svm && v->efer & EFER_SVME && !v->guest_mode && mem_peek(v, la, b, sizeof(b)) && b[0] == 0x0f && b[1] == 0x01 && b[2] == 0xd8;
}

static unsigned vmrun_rows(void)
{
    unsigned n;
    svm_check_table(&n);
    return n;
}

static bool vmrun_wanted(struct debugger *g, struct vcpu *v)
{
    unsigned rows;
    const struct virt_check *table = svm_check_table(&rows);
    if (v->cpl || !vmrun_at(v))
        return false;
    if (g->entry_all) {
        snprintf(g->note, sizeof(g->note), "VMRUN on processor %u, before it acts (VMCB 0x%" PRIx64 ")\n", v->index, v->gpr[RAX]);
        return true;
    }
    for (unsigned n = 0; n < rows; n++)
        if ((g->entry_failing || g->entry_rows[n / 64] >> (n % 64) & 1) && vmcb_live_row(v, v->gpr[RAX], n, NULL, false) == RESULT_FAIL) {
            snprintf(g->note, sizeof(g->note), "VMRUN on processor %u, before it acts: %s would fail\n", v->index, table[n].id);
            return true;
        }
    return false;
}

/* What VMRUN loads, in the order of the APM's list (vol. 2, 15.5.1 "Basic Operation: Loading Guest State"). */
static const struct {
    const char *title;
    u16 fields[12];
    u8 n;
} vmrun_phases[] = {
    {"segments", {VMCB_CS_SELECTOR, VMCB_CS_ATTRIB, VMCB_CS_BASE, VMCB_SS_SELECTOR, VMCB_SS_ATTRIB, VMCB_DS_SELECTOR, VMCB_ES_SELECTOR,
                  VMCB_GDTR_BASE, VMCB_GDTR_LIMIT, VMCB_IDTR_BASE, VMCB_IDTR_LIMIT}, 11},
    {"control registers and EFER", {VMCB_EFER, VMCB_CR0, VMCB_CR2, VMCB_CR3, VMCB_CR4}, 5},
    {"RFLAGS, RIP, RSP, RAX, CPL and debug registers", {VMCB_RFLAGS, VMCB_RIP, VMCB_RSP, VMCB_RAX, VMCB_CPL, VMCB_DR6, VMCB_DR7}, 7},
    {"interrupt state", {VMCB_INTERRUPT_SHADOW, VMCB_INT_CTL, VMCB_INT_VECTOR}, 3},
    {"nested paging and TLB control", {VMCB_NESTED_CTL, VMCB_N_CR3, VMCB_G_PAT, VMCB_GUEST_ASID, VMCB_TLB_CONTROL}, 5},
    {"event injection", {VMCB_EVENTINJ, VMCB_NRIP}, 2},
};

static void print_vmrun_phase(struct vcpu *v, unsigned n, FILE *out)
{
    fprintf(out, "load: %s\n", vmrun_phases[n].title);
    for (unsigned i = 0; i < vmrun_phases[n].n; i++) {
        enum vmcb_index field = (enum vmcb_index)vmrun_phases[n].fields[i];
        fprintf(out, "    %s = 0x%" PRIx64 "\n", vmcb_fields[field].name, vmcb_read(v, v->gpr[RAX], field));
    }
}

/* @until_failure: silent up to the next row that fails. */
static void vmrun_step(struct debugger *g, struct vcpu *v, unsigned long count, bool until_failure, FILE *out)
{
    struct entry_walk *w = &g->walk;
    if (!vmrun_at(v)) {
        fprintf(out, "Processor %u is not at a VMRUN outside guest mode; \"monitor vmentry break\" stops there.\n", v->index);
        return;
    }
    if (!w->on || w->cpu != v->index || w->rip != v->rip || w->icount != v->icount)
        *w = (struct entry_walk){.on = true, .cpu = v->index, .rip = v->rip, .icount = v->icount};
    for (; count; count--) {
        unsigned rows = vmrun_rows();
        if (w->next >= rows && (w->failed || until_failure)) {
            fprintf(out, w->failed ? "No row is left; %u failed. stepi lets the processor act.\n" : "No row is left and none failed; stepi enters the guest.\n",
                    w->failed);
            return;
        }
        if (w->next >= rows + ARRAY_SIZE(vmrun_phases)) {
            fprintf(out, "stepi enters the guest, at 0x%" PRIx64 " unless an event is injected.\n", vmcb_read(v, v->gpr[RAX], VMCB_RIP));
            return;
        }
        if (w->next >= rows) {
            if (w->next == rows)
                fprintf(out, "all %u rows pass or do not apply; what VMRUN loads:\n", rows);
            print_vmrun_phase(v, w->next++ - rows, out);
            continue;
        }
        bool failed = vmcb_live_row(v, v->gpr[RAX], w->next, NULL, false) == RESULT_FAIL;
        if (failed || !until_failure)
            vmcb_live_row(v, v->gpr[RAX], w->next, out, false);
        w->next++;
        w->failed += failed;
        if (failed && until_failure)
            return;
    }
}

static void vmrun_why(struct vcpu *v, FILE *out)
{
    unsigned failed = 0;
    if (v->guest_mode) {
        fputs("The processor is in guest mode: its latest VMRUN succeeded.\n", out);
        return;
    }
    if (!vmrun_at(v) && !v->svm->stats.entries && !v->svm->stats.entry_failures) {
        fprintf(out, "Processor %u has run no VMRUN yet and is not at one.\n", v->index);
        return;
    }
    u64 vmcb = vmrun_at(v) ? v->gpr[RAX] : v->svm->vmcb;
    for (unsigned n = 0; n < vmrun_rows(); n++)
        if (vmcb_live_row(v, vmcb, n, NULL, false) == RESULT_FAIL) {
            vmcb_live_row(v, vmcb, n, out, true);
            failed++;
        }
    if (v->svm->last_failure)
        fprintf(out, "The latest refused VMRUN was refused by %s.\n", v->svm->last_failure->id);
    fprintf(out, "%u of %u rows fail on the VMCB at 0x%" PRIx64 ".\n", failed, vmrun_rows(), vmcb);
}

static void vmrun_list(struct vcpu *v, const char *group, FILE *out)
{
    unsigned rows;
    const struct virt_check *table = svm_check_table(&rows);
    u64 vmcb = vmrun_at(v) ? v->gpr[RAX] : v->svm->vmcb;
    for (unsigned n = 0; n < rows; n++)
        if (!*group || !strncasecmp(table[n].id, group, strlen(group)))
            fprintf(out, "%-26s %-14s %s\n", table[n].id, check_result_name(vmcb_live_row(v, vmcb, n, NULL, false)), table[n].rule);
}

/* ---- stopping ---- */

bool entry_wanted(struct debugger *g, struct vcpu *v)
{
    bool launch;
    unsigned rows;
    if (v->svm)
        return vmrun_wanted(g, v);
    /* The bytes are looked at only where the processor could enter at all. */
    if (!v->in_vmx_operation || v->guest_mode || v->cpl || !entry_at(v, &launch))
        return false;
    const char *what = launch ? "VMLAUNCH" : "VMRESUME";
    if (g->entry_all) {
        snprintf(g->note, sizeof(g->note), "%s on processor %u, before it acts (VMCS 0x%" PRIx64 ")\n", what, v->index, v->vmx->current);
        return true;
    }
    if (v->vmx->current == VMX_NO_VMCS)
        return false;
    struct check_case c;
    case_from_vcpu(&c, v);
    const struct virt_check *table = vmx_check_table(&rows);
    for (unsigned n = 0; n < rows; n++)
        if ((g->entry_failing || g->entry_rows[n / 64] >> (n % 64) & 1) && case_run(&c, n, NULL) == RESULT_FAIL) {
            snprintf(g->note, sizeof(g->note), "%s on processor %u, before it acts: %s would fail\n", what, v->index, table[n].id);
            return true;
        }
    return false;
}

/* ---- commands ---- */

static unsigned row_count(void)
{
    unsigned n;
    vmx_check_table(&n);
    return n;
}

/* Rows before the MSR-load rows: those are judged entry by entry while the list is loaded. */
static unsigned state_rows(void)
{
    unsigned n, rows = 0;
    const struct virt_check *table = vmx_check_table(&n);
    while (rows < n && table[rows].stage != STAGE_MSR_LOAD)
        rows++;
    return rows;
}

static bool need_entry(struct debugger *g, struct vcpu *v, bool *launch, FILE *out)
{
    if (!entry_at(v, launch)) {
        fprintf(out, "Processor %u is not at a VMLAUNCH or VMRESUME in VMX root operation; \"monitor vmentry break\" stops there.\n", v->index);
        return false;
    }
    struct entry_walk *w = &g->walk;
    if (!w->on || w->cpu != v->index || w->rip != v->rip || w->icount != v->icount)
        *w = (struct entry_walk){.on = true, .cpu = v->index, .rip = v->rip, .icount = v->icount};
    return true;
}

static bool need_vmcs(struct vcpu *v, FILE *out)
{
    if (v->vmx && v->vmx->current != VMX_NO_VMCS)
        return true;
    fprintf(out, "Processor %u has no current VMCS.\n", v->index);
    return false;
}

/* One step; returns whether it was a failing check, -1 when nothing is left. @quiet: print failures only. */
static int step(struct debugger *g, struct vcpu *v, bool launch, bool quiet, FILE *out)
{
    struct entry_walk *w = &g->walk;
    unsigned rows = state_rows(), n = w->next;
    if (n < BASICS) {
        bool ok = basic_ok(v, n, launch);
        w->next++;
        if (!quiet || !ok)
            print_basic(v, n, launch, ok, out);
        w->failed += !ok;
        if (!ok && n == 1)
            w->next = BASICS + rows + ARRAY_SIZE(phases); /* there is nothing to check */
        return !ok;
    }
    if (n < BASICS + rows) {
        struct check_case c;
        case_from_vcpu(&c, v);
        enum check_result r = case_run(&c, n - BASICS, NULL);
        w->next++;
        if (quiet && r != RESULT_FAIL)
            return 0;
        fprintf(out, "%s: ", r == RESULT_FAIL ? "FAIL" : check_result_name(r));
        print_row(out, &c, n - BASICS);
        if (r == RESULT_FAIL) {
            char effect[96];
            check_effect(&vmx_check_table(&rows)[n - BASICS], effect, sizeof(effect));
            if (!w->failed)
                fprintf(out, "    the entry ends here: %s\n", effect);
            w->failed++;
        }
        return r == RESULT_FAIL;
    }
    if (w->failed || quiet) {
        fprintf(out, w->failed ? "No row is left; %u failed. stepi lets the processor act: see the effect of the first.\n"
                               : "No row is left and none failed; stepi enters the guest.\n", w->failed);
        return -1;
    }
    n -= BASICS + rows;
    if (n < ARRAY_SIZE(phases)) {
        if (!n)
            fprintf(out, "all %u rows pass or do not apply; what the entry loads:\n", rows);
        print_phase(v, n, out);
        w->next++;
        return 0;
    }
    fprintf(out, "stepi enters the guest, at 0x%" PRIx64 " unless an event is injected.\n", v->vmx->f[VMCS_GUEST_RIP]);
    return -1;
}

static void step_command(struct debugger *g, struct vcpu *v, const char *args, FILE *out)
{
    bool launch;
    unsigned long n = *args ? strtoul(args, NULL, 0) : 1;
    if (!need_entry(g, v, &launch, out))
        return;
    while (n-- && step(g, v, launch, false, out) >= 0)
        ;
}

static void next_failure_command(struct debugger *g, struct vcpu *v, FILE *out)
{
    bool launch;
    if (!need_entry(g, v, &launch, out))
        return;
    while (step(g, v, launch, true, out) == 0)
        ;
}

static void why_command(struct vcpu *v, FILE *out)
{
    bool launch;
    unsigned failed = 0;
    if (!need_vmcs(v, out))
        return;
    if (v->guest_mode) {
        fputs("The processor is in guest mode: its latest VM entry succeeded.\n", out);
        return;
    }
    if (entry_at(v, &launch))
        for (unsigned n = 0; n < BASICS; n++)
            if (!basic_ok(v, n, launch)) {
                print_basic(v, n, launch, false, out);
                failed++;
            }
    struct check_case c;
    case_from_vcpu(&c, v);
    for (unsigned n = 0; n < row_count(); n++) {
        if (case_run(&c, n, NULL) != RESULT_FAIL)
            continue;
        struct repairs r;
        failed++;
        fputs("FAIL: ", out);
        print_row(out, &c, n);
        check_repair(&c, n, &r);
        for (unsigned i = 0; i < r.n; i++)
            fprintf(out, "%s%s\n", i ? "              or: " : "    satisfied by: ", r.text[i]);
    }
    if (v->vmx->last_failure)
        fprintf(out, "The latest refused entry was refused by %s; VM-instruction error %u, exit reason 0x%x.\n", v->vmx->last_failure->id,
                (unsigned)v->vmx->f[VMCS_VM_INSTRUCTION_ERROR], (unsigned)v->vmx->f[VMCS_VM_EXIT_REASON]);
    fprintf(out, "%u of %u rows fail on the current VMCS (0x%" PRIx64 ").\n", failed, BASICS + row_count(), v->vmx->current);
}

static void list_command(struct vcpu *v, const char *group, FILE *out)
{
    unsigned n;
    const struct virt_check *table = vmx_check_table(&n);
    bool current = v->vmx && v->vmx->current != VMX_NO_VMCS, any = false;
    struct check_case c;
    if (current)
        case_from_vcpu(&c, v);
    for (unsigned i = 0; i < n; i++) {
        if (*group && strncasecmp(check_stage_name(table[i].stage), group, strlen(group)) && strncasecmp(table[i].id, group, strlen(group)))
            continue;
        any = true;
        fprintf(out, "%-26s %-14s %s\n", table[i].id, current ? check_result_name(case_run(&c, i, NULL)) : "no VMCS", table[i].rule);
    }
    if (!any)
        fprintf(out, "No group or row begins with '%s'; groups: controls, host, guest, msr.\n", group);
}

static void break_command(struct debugger *g, const char *what, FILE *out)
{
    int row;
    if (!*what) {
        g->entry_all = true;
        fputs(g->m->cpu[0]->svm ? "Stops at every VMRUN outside guest mode, before it acts.\n"
                                : "Stops at every VMLAUNCH and VMRESUME in VMX root operation, before it acts.\n", out);
    } else if (!strcasecmp(what, "fail")) {
        g->entry_failing = true;
        fputs("Stops before a VM entry that any row refuses.\n", out);
    } else if (!strcasecmp(what, "off")) {
        g->entry_all = g->entry_failing = g->entry_rows_any = false;
        memset(g->entry_rows, 0, sizeof(g->entry_rows));
        fputs("Stops at no VM entry.\n", out);
    } else if ((row = g->m->cpu[0]->svm ? vmcb_find_row(what) : check_find(what)) >= 0) {
        g->entry_rows[row / 64] |= BIT64(row % 64);
        g->entry_rows_any = true;
        fprintf(out, "Stops before a VM entry that %s refuses.\n", what);
    } else {
        fprintf(out, "No check is called '%s' (monitor vmentry list); also: fail, off.\n", what);
    }
}

static void entered_command(struct debugger *g, const char *what, FILE *out)
{
    g->entered_all = strcmp(what, "off") != 0;
    fputs(g->entered_all ? "Stops behind every VM entry, before the guest's first instruction.\n" : "Stops behind no VM entry.\n", out);
}

void cmd_vmentry(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    char *rest = args + strcspn(args, " ");
    if (*rest)
        *rest++ = 0;
    rest += strspn(rest, " ");
    if (!v->vmx && !v->svm)
        fputs("This processor model has neither VMX nor SVM.\n", out);
    else if (!strcmp(args, "break"))
        break_command(g, rest, out);
    else if (!strcmp(args, "entered"))
        entered_command(g, rest, out);
    else if (v->svm && !strcmp(args, "step"))
        vmrun_step(g, v, *rest ? strtoul(rest, NULL, 0) : 1, false, out);
    else if (v->svm && !strcmp(args, "next-failure"))
        vmrun_step(g, v, ~0ul, true, out);
    else if (v->svm && !strcmp(args, "why"))
        vmrun_why(v, out);
    else if (v->svm && !strcmp(args, "list"))
        vmrun_list(v, rest, out);
    else if (!strcmp(args, "step"))
        step_command(g, v, rest, out);
    else if (!strcmp(args, "next-failure"))
        next_failure_command(g, v, out);
    else if (!strcmp(args, "why"))
        why_command(v, out);
    else if (!strcmp(args, "list"))
        list_command(v, rest, out);
    else
        fputs("vmentry break [fail|ID|off]   stop at VM entries: all, those that would fail, those that row ID refuses\n"
              "vmentry entered [off]         stop behind VM entries, before the guest's first instruction\n"
              "vmentry step [N]              evaluate the next check row (N of them), then what the entry loads\n"
              "vmentry next-failure          evaluate up to the next row that fails\n"
              "vmentry why                   every failing row of the current VMCS, and what would satisfy it\n"
              "vmentry list [GROUP]          outcome of every row; GROUP: controls, host, guest, msr, or how IDs begin\n", out);
}
