/* nestor vmcs-check and nestor explain: the public functions and what they print. */
#include "debug/check.h"
#include "debug/vmcb_check.h"
#include "nestor/nestor.h"

#include <inttypes.h>

void print_json_string(FILE *out, const char *s)
{
    fputc('"', out);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            fputc('\\', out);
        if ((unsigned char)*s < ' ')
            fprintf(out, "\\u%04x", (unsigned char)*s);
        else
            fputc(*s, out);
    }
    fputc('"', out);
}

static const char *const fact_names[] = {
    [VMX_FACT_lma] = "whether the processor was in IA-32e mode",
    [VMX_FACT_vtpr] = "the VTPR in the virtual-APIC page",
    [VMX_FACT_link_word] = "the first word of the linked VMCS",
    [VMX_FACT_pdpte] = "the PDPTEs in memory at CR3",
    [VMX_FACT_current_vmcs] = "the address of the current VMCS",
    [VMX_FACT_msr_index] = "the MSR-load list in memory",
    [VMX_FACT_msr_reserved] = "the MSR-load list in memory",
    [VMX_FACT_msr_writable] = "the MSR-load list in memory",
};

/* Calls @put for everything in @missing, named. */
static void each_missing(const struct vmx_reads *missing, void (*put)(FILE *out, const char *name, bool first), FILE *out)
{
    bool first = true;
    for (unsigned slot = 0; slot < VMCS_SLOT_COUNT; slot++)
        if (missing->fields[slot / 64] >> (slot % 64) & 1) {
            put(out, vmcs_fields[slot].name, first);
            first = false;
        }
    const char *before = NULL;
    for (unsigned n = 0; n < ARRAY_SIZE(fact_names); n++)
        if (missing->facts >> n & 1 && fact_names[n] != before) {
            put(out, before = fact_names[n], first);
            first = false;
        }
}

static void put_text(FILE *out, const char *name, bool first) { fprintf(out, "%s%s", first ? " " : ", ", name); }
static void put_json(FILE *out, const char *name, bool first)
{
    if (!first)
        fputs(", ", out);
    print_json_string(out, name);
}

/* The fields that decided: a rule about all segments stops at the first that breaks it. */
static void print_values(FILE *out, const struct check_case *c, unsigned row)
{
    unsigned n, column = 4;
    const struct virt_check *check = &vmx_check_table(&n)[row];
    struct vmx_reads reads;
    vmx_check_tracked(row, &c->s, &reads);
    fputs("    ", out);
    for (unsigned i = 0; i < check->nfields; i++) {
        char text[96];
        int slot = vmcs_slot(check->fields[i]);
        if (slot < 0 || !(reads.fields[slot / 64] >> (slot % 64) & 1))
            continue;
        if (case_knows(c, (unsigned)slot))
            snprintf(text, sizeof(text), "%s = 0x%" PRIx64, vmcs_fields[slot].name, c->f[slot]);
        else
            snprintf(text, sizeof(text), "%s is unknown", vmcs_fields[slot].name);
        if (column > 4 && column + strlen(text) > 118) {
            fputs("\n    ", out);
            column = 4;
        }
        column += (unsigned)fprintf(out, "%s%s", column > 4 ? "   " : "", text);
    }
    fputc('\n', out);
}

void print_row(FILE *out, const struct check_case *c, unsigned row)
{
    unsigned n;
    const struct virt_check *check = &vmx_check_table(&n)[row];
    char effect[96];
    check_effect(check, effect, sizeof(effect));
    fprintf(out, "%s  (%s: %s)\n    SDM volume 3, %s \"%s\"\n    rule: %s\n", check->id, check_stage_name(check->stage), effect, check->section,
            check->title, check->rule);
    print_values(out, c, row);
}

static void print_repairs(FILE *out, const struct check_case *c, unsigned row)
{
    struct repairs r;
    check_repair(c, row, &r);
    for (unsigned i = 0; i < r.n; i++)
        fprintf(out, "%s%s\n", i ? "              or: " : "    satisfied by: ", r.text[i]);
}

static const char *exit_reason_name(u64 reason)
{
    unsigned basic = (unsigned)reason & 0xffff;
    return basic < VMX_EXIT_REASONS && vmx_exits[basic].name ? vmx_exits[basic].name : "unknown";
}

static unsigned count_known(const struct check_case *c)
{
    unsigned n = 0;
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++)
        n += case_knows(c, s);
    return n;
}

static unsigned report_text(FILE *out, const char *name, const struct vmcs_dump *d)
{
    const struct check_case *c = &d->c;
    unsigned rows, count[RESULT_COUNT] = {0};
    const struct virt_check *table = vmx_check_table(&rows);
    fprintf(out, "%s: %s, lines %u to %u", name, d->kind, d->first_line, d->last_line);
    if (d->count > 1)
        fprintf(out, ", dump %u of %u", d->number, d->count);
    fprintf(out, "; %u of %u VMCS fields\n", count_known(c), (unsigned)VMCS_SLOT_COUNT);
    if (d->cut)
        fputs("The file ends within a value; that value is not used.\n", out);
    if (d->has_hardware_error)
        fprintf(out, "KVM reported hardware error 0x%" PRIx64 "\n", d->hardware_error);
    if (case_knows(c, VMCS_VM_EXIT_REASON)) {
        u64 reason = c->f[VMCS_VM_EXIT_REASON];
        fprintf(out, "VM exit reason 0x%" PRIx64 ": %s%s", reason, exit_reason_name(reason), reason & EXIT_ENTRY_FAILURE ? ", the VM entry failed" : "");
        if (case_knows(c, VMCS_EXIT_QUALIFICATION))
            fprintf(out, "; qualification 0x%" PRIx64, c->f[VMCS_EXIT_QUALIFICATION]);
        fputc('\n', out);
    }
    fputc('\n', out);
    for (unsigned i = 0; i < rows; i++) {
        enum check_result r = case_run(c, i, NULL);
        count[r]++;
        if (r != RESULT_FAIL)
            continue;
        fputs("FAIL ", out);
        print_row(out, c, i);
        print_repairs(out, c, i);
        fputc('\n', out);
    }
    fprintf(out, "%u row%s fail%s, %u pass, %u do not apply, %u could not be evaluated%s\n", count[RESULT_FAIL], count[RESULT_FAIL] == 1 ? "" : "s",
            count[RESULT_FAIL] == 1 ? "s" : "", count[RESULT_PASS], count[RESULT_NOT_APPLICABLE], count[RESULT_UNKNOWN],
            count[RESULT_UNKNOWN] ? ", for want of:" : ".");
    for (unsigned i = 0; i < rows; i++) {
        struct vmx_reads missing;
        if (case_run(c, i, &missing) != RESULT_UNKNOWN)
            continue;
        fprintf(out, "    %-26s", table[i].id);
        each_missing(&missing, put_text, out);
        fputc('\n', out);
    }
    fprintf(out, "The processor is assumed to offer every control the manual names (physical addresses %u bits, linear %u bits);\n"
                 "JSON input may say otherwise (nestor vmcs-check --help).\n", c->s.maxphyaddr, c->s.linear_width);
    return count[RESULT_FAIL];
}

static void json_row(FILE *out, const struct check_case *c, unsigned row, enum check_result result, const struct vmx_reads *missing)
{
    unsigned n;
    const struct virt_check *k = &vmx_check_table(&n)[row];
    char effect[96];
    check_effect(k, effect, sizeof(effect));
    fprintf(out, "    {\"id\": \"%s\", \"outcome\": \"%s\", \"stage\": \"%s\", \"effect\": ", k->id, check_result_name(result), check_stage_name(k->stage));
    print_json_string(out, effect);
    fputs(", \"title\": ", out);
    print_json_string(out, k->title);
    fprintf(out, ", \"section\": \"%s\", \"rule\": ", k->section);
    print_json_string(out, k->rule);
    fputs(", \"fields\": {", out);
    for (unsigned i = 0; i < k->nfields; i++) {
        int slot = vmcs_slot(k->fields[i]);
        fprintf(out, "%s\"%s\": ", i ? ", " : "", vmcs_fields[slot].name);
        if (case_knows(c, (unsigned)slot))
            fprintf(out, "\"0x%" PRIx64 "\"", c->f[slot]);
        else
            fputs("null", out);
    }
    fputc('}', out);
    if (result == RESULT_UNKNOWN) {
        fputs(", \"missing\": [", out);
        each_missing(missing, put_json, out);
        fputc(']', out);
    }
    if (result == RESULT_FAIL) {
        struct repairs r;
        check_repair(c, row, &r);
        fputs(", \"satisfied_by\": [", out);
        for (unsigned i = 0; i < r.n; i++)
            put_json(out, r.text[i], !i);
        fputc(']', out);
    }
    fputc('}', out);
}

static unsigned report_json(FILE *out, const char *name, const struct vmcs_dump *d)
{
    const struct check_case *c = &d->c;
    unsigned rows, count[RESULT_COUNT] = {0};
    vmx_check_table(&rows);
    fputs("{\n  \"file\": ", out);
    print_json_string(out, name);
    fprintf(out, ",\n  \"kind\": \"%s\", \"dump\": %u, \"dumps\": %u, \"first_line\": %u, \"last_line\": %u, \"fields\": %u, \"cut\": %s,\n", d->kind,
            d->number, d->count, d->first_line, d->last_line, count_known(c), d->cut ? "true" : "false");
    if (case_knows(c, VMCS_VM_EXIT_REASON))
        fprintf(out, "  \"exit_reason\": \"0x%" PRIx64 "\",\n", c->f[VMCS_VM_EXIT_REASON]);
    if (d->has_hardware_error)
        fprintf(out, "  \"hardware_error\": \"0x%" PRIx64 "\",\n", d->hardware_error);
    fputs("  \"rows\": [\n", out);
    for (unsigned i = 0; i < rows; i++) {
        struct vmx_reads missing;
        enum check_result r = case_run(c, i, &missing);
        count[r]++;
        json_row(out, c, i, r, &missing);
        fputs(i + 1 < rows ? ",\n" : "\n", out);
    }
    fprintf(out, "  ],\n  \"failed\": %u, \"passed\": %u, \"not_applicable\": %u, \"not_evaluated\": %u\n}\n", count[RESULT_FAIL], count[RESULT_PASS],
            count[RESULT_NOT_APPLICABLE], count[RESULT_UNKNOWN]);
    return count[RESULT_FAIL];
}

int nestor_vmcs_check(const char *name, const char *text, size_t len, unsigned number, bool json, FILE *out, struct nestor_error *nerr)
{
    struct vmcs_dump d;
    struct error err;
    if (vmcb_check_mine(text, len)) {
        int failed = vmcb_check(name, text, len, number, json, out, &err);
        if (failed < 0 && nerr)
            snprintf(nerr->text, sizeof(nerr->text), "%.100s: %.400s", name, err.text);
        return failed;
    }
    if (vmcs_dump_read(&d, text, len, number, &err)) {
        if (nerr)
            snprintf(nerr->text, sizeof(nerr->text), "%.100s: %.400s", name, err.text);
        return -1;
    }
    return (int)(json ? report_json(out, name, &d) : report_text(out, name, &d));
}

int nestor_explain(const char *id, bool json, FILE *out, struct nestor_error *nerr)
{
    static const char *const widths[] = {"16 bits", "64 bits", "32 bits", "natural width"};
    unsigned n;
    int row = check_find(id);
    if (row < 0 && !vmcb_explain(id, json, out))
        return 0;
    if (row < 0) {
        if (nerr)
            snprintf(nerr->text, sizeof(nerr->text), "no check is called '%.64s' (nestor list vmentry-checks)", id);
        return -1;
    }
    const struct virt_check *k = &vmx_check_table(&n)[row];
    char effect[96];
    check_effect(k, effect, sizeof(effect));
    if (json) {
        fprintf(out, "{\"id\": \"%s\", \"stage\": \"%s\", \"effect\": ", k->id, check_stage_name(k->stage));
        print_json_string(out, effect);
        fputs(", \"title\": ", out);
        print_json_string(out, k->title);
        fprintf(out, ", \"section\": \"%s\", \"rule\": ", k->section);
        print_json_string(out, k->rule);
        fputs(", \"fields\": [", out);
        for (unsigned i = 0; i < k->nfields; i++)
            put_json(out, vmcs_fields[vmcs_slot(k->fields[i])].name, !i);
        fputs("], \"applies\": ", out);
        print_json_string(out, k->when_text);
        fputs(", \"predicate\": ", out);
        print_json_string(out, k->ok_text);
        fputs("}\n", out);
        return 0;
    }
    fprintf(out, "%s\n\n  rule       %s\n  section    SDM volume 3 (325462, edition of 2023), %s \"%s\"\n  stage      %s, row %d of %u in the manual's order\n"
                 "  failure    %s\n  fields\n", k->id, k->rule, k->section, k->title, check_stage_name(k->stage), row + 1, n, effect);
    for (unsigned i = 0; i < k->nfields; i++)
        fprintf(out, "             %-32s %#06x, %s\n", vmcs_fields[vmcs_slot(k->fields[i])].name, k->fields[i], widths[vmcs_width(k->fields[i])]);
    fprintf(out, "  applies    %s\n  predicate  %s\n", !strcmp(k->when_text, "true") ? "always" : k->when_text, k->ok_text);
    return 0;
}
