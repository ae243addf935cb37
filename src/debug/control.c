/* The structure that controls a guest, VMCS or VMCB, as a whole: its fields, and how they changed. */
#include "debug/debugger.h"

#include "cpu/mem.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <stdlib.h>
#include <strings.h>

/* ---- AMD-V ---- */

bool control_vmcb(struct vcpu *v, pa_t *vmcb)
{
    if (!v->svm)
        return false;
    *vmcb = !v->guest_mode && vmrun_at(v) ? v->gpr[RAX] : v->svm->vmcb;
    return v->guest_mode || *vmcb == v->gpr[RAX] || v->svm->stats.entries || v->svm->stats.entry_failures;
}

bool control_vmcb_write(struct vcpu *v, enum vmcb_index n, u64 value)
{
    pa_t vmcb;
    const struct vmcb_field *f = &vmcb_fields[n];
    if (!control_vmcb(v, &vmcb) || f->bytes > 8 || (f->bytes < 8 && value >> (8 * f->bytes)))
        return false;
    vmcb_write(v, vmcb, n, value);
    /* The next VMRUN reads it whatever the clean bits say: the hypervisor did not write it and cannot know. */
    if (v->svm->vmcb == vmcb)
        v->svm->cached = false;
    return true;
}

/* ---- both ---- */

static unsigned field_count(const struct vcpu *v) { return v->vmx ? VMCS_SLOT_COUNT : VMCB_FIELD_COUNT; }
static const char *field_name(const struct vcpu *v, unsigned n) { return v->vmx ? vmcs_fields[n].name : vmcb_fields[n].name; }

static bool field_exists(const struct vcpu *v, unsigned n)
{
    return v->vmx ? vmcs_exists(&v->vmx->caps, n) : vmcb_fields[n].bytes <= 8;
}

/* Where the fields are that the processor would use now; false: nowhere. */
static bool control_now(struct vcpu *v, u64 *control)
{
    if (v->vmx) {
        *control = v->vmx->current;
        return v->vmx->current != VMX_NO_VMCS;
    }
    return control_vmcb(v, control);
}

static u64 field_get(struct vcpu *v, u64 control, unsigned n)
{
    return v->vmx ? v->vmx->f[n] : vmcb_read(v, control, (enum vmcb_index)n);
}

static bool field_set(struct vcpu *v, unsigned n, u64 value)
{
    if (!v->vmx)
        return control_vmcb_write(v, (enum vmcb_index)n, value);
    unsigned bits = vmcs_bytes(vmcs_fields[n].encoding) * 8;
    if (bits < 64 && value >> bits)
        return false;
    v->vmx->f[n] = vmcs_put(0, vmcs_fields[n].encoding, value);
    return true;
}

static void mark(struct debugger *g, struct vcpu *v, u64 control)
{
    if (!g->mark[0])
        g->mark[0] = calloc(field_count(v), sizeof(u64));
    if (!g->mark[0])
        panic("out of memory for a mark");
    for (unsigned n = 0; n < field_count(v); n++)
        g->mark[0][n] = field_exists(v, n) ? field_get(v, control, n) : 0;
    g->mark_control = control;
}

static void diff(struct debugger *g, struct vcpu *v, u64 control, FILE *out)
{
    unsigned changed = 0;
    if (!g->mark[0]) {
        fputs("nothing to compare with: vmcs mark remembers the fields\n", out);
        return;
    }
    if (g->mark_control != control)
        fprintf(out, "the mark is of 0x%" PRIx64 ", this is 0x%" PRIx64 "\n", g->mark_control, control);
    for (unsigned n = 0; n < field_count(v); n++) {
        u64 now = field_exists(v, n) ? field_get(v, control, n) : 0;
        if (!field_exists(v, n) || now == g->mark[0][n])
            continue;
        changed++;
        fprintf(out, "%-34s 0x%" PRIx64 " -> 0x%" PRIx64 "\n", field_name(v, n), g->mark[0][n], now);
    }
    fprintf(out, "%u field%s changed since the mark\n", changed, changed == 1 ? "" : "s");
}

/* What vmcs-check reads: the fields, and what is known of the processor. */
static void print_json(struct vcpu *v, u64 control, FILE *out)
{
    static const struct {
        const char *name;
        u16 msr;
    } caps[] = {{"IA32_VMX_BASIC", 0x480}, {"IA32_VMX_MISC", 0x485}, {"IA32_VMX_CR0_FIXED0", 0x486}, {"IA32_VMX_CR0_FIXED1", 0x487},
                {"IA32_VMX_CR4_FIXED0", 0x488}, {"IA32_VMX_CR4_FIXED1", 0x489}, {"IA32_VMX_PROCBASED_CTLS2", 0x48b}, {"IA32_VMX_EPT_VPID_CAP", 0x48c},
                {"IA32_VMX_TRUE_PINBASED_CTLS", 0x48d}, {"IA32_VMX_TRUE_PROCBASED_CTLS", 0x48e}, {"IA32_VMX_TRUE_EXIT_CTLS", 0x48f},
                {"IA32_VMX_TRUE_ENTRY_CTLS", 0x490}, {"IA32_VMX_VMFUNC", 0x491}};
    u64 value;
    fputs("{\n", out);
    for (unsigned n = 0; n < field_count(v); n++)
        if (field_exists(v, n))
            fprintf(out, "  \"%s\": \"0x%" PRIx64 "\",\n", field_name(v, n), field_get(v, control, n));
    for (unsigned n = 0; v->vmx && n < ARRAY_SIZE(caps); n++)
        if (vmx_caps_msr(&v->vmx->caps, caps[n].msr, &value))
            fprintf(out, "  \"%s\": \"0x%" PRIx64 "\",\n", caps[n].name, value);
    if (v->vmx)
        fprintf(out, "  \"LINEAR_WIDTH\": %u,\n", v->linear_width);
    fprintf(out, "  \"MAXPHYADDR\": %u\n}\n", v->maxphyaddr);
}

void cmd_vmcs(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    u64 control, value;
    char *word = next_word(&args);
    if (!v->vmx && !v->svm) {
        fputs("this processor model has neither VMX nor SVM\n", out);
        return;
    }
    if (!control_now(v, &control)) {
        fputs(v->vmx ? "there is no current VMCS\n" : "there was no VMRUN yet\n", out);
        return;
    }
    if (!strcmp(word, "mark")) {
        mark(g, v, control);
        fprintf(out, "the fields of 0x%" PRIx64 " are remembered\n", control);
    } else if (!strcmp(word, "json")) {
        print_json(v, control, out);
    } else if (!strcmp(word, "diff")) {
        diff(g, v, control, out);
    } else if (!strcmp(word, "set")) {
        char *name = next_word(&args), *text = next_word(&args);
        for (unsigned n = 0; n < field_count(v); n++)
            if (field_exists(v, n) && !strcasecmp(field_name(v, n), name)) {
                if (parse_address(g, v, text, &value) && field_set(v, n, value))
                    fprintf(out, "%s = 0x%" PRIx64 "\n", field_name(v, n), field_get(v, control, n));
                else
                    fprintf(out, "expected a value that %s can hold\n", field_name(v, n));
                return;
            }
        fprintf(out, "no field is called '%s'\n", name);
    } else {
        bool any = false;
        if (!*word)
            fprintf(out, "%s 0x%" PRIx64 "\n", v->vmx ? "VMCS" : "VMCB", control);
        for (unsigned n = 0; n < field_count(v); n++)
            if (field_exists(v, n) && (!*word || !fnmatch(word, field_name(v, n), FNM_CASEFOLD))) {
                any = true;
                fprintf(out, "%-34s 0x%" PRIx64 "\n", field_name(v, n), field_get(v, control, n));
            }
        if (!any)
            fprintf(out, "no field is called '%s'; * and ? stand for parts of a name\n", word);
    }
}
