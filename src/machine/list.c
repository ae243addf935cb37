/* The tables `nestor list` prints. */
#include "cpu/isa/insn.h"
#include "cpu/models.h"
#include "base/log.h"
#include "machine/machine.h"
#include "svm/svm.h"
#include "vmx/vmx.h"

#include <stdlib.h>

static void list_cpus(FILE *out)
{
    for (unsigned i = 0; i < cpu_model_count; i++) {
        u8 features[FEAT_COUNT];
        const struct cpu_model *m = cpu_models[i];
        cpu_model_features(m, features);
        fprintf(out, "%s: %s\n ", m->name, m->help);
        unsigned column = 1;
        for (unsigned f = 1; f < FEAT_COUNT; f++) {
            if (!features[f])
                continue;
            unsigned n = (unsigned)strlen(cpu_feature_info[f].name) + 1;
            if (column + n > 118) {
                fputs("\n ", out);
                column = 1;
            }
            fprintf(out, " %s", cpu_feature_info[f].name);
            column += n;
        }
        fputc('\n', out);
    }
}

static void list_instructions(FILE *out)
{
    static const char *const jit[] = {[JIT_CALL] = "call", [JIT_COPY] = "copy", [JIT_EMIT] = "emit"};
    for (unsigned i = 0; i < insn_row_count; i++) {
        const struct insn_row *r = &insn_rows[i];
        fprintf(out, "%-16s %-24s %-32s %-16s %s\n", r->mnemonic, r->operands, r->encoding,
                r->feature ? cpu_feature_info[r->feature].name : "-", jit[r->jit]);
    }
}

static void list_vmcs_fields(FILE *out)
{
    static const char *const widths[] = {"16", "64", "32", "natural"}, *const kinds[] = {"control", "read-only", "guest", "host"};
    for (unsigned i = 0; i < vmcs_field_count(); i++) {
        const struct vmcs_field *f = vmcs_field_info(i);
        fprintf(out, "%#06x  %-34s %-8s %s\n", f->encoding, f->name, widths[vmcs_width(f->encoding)],
                kinds[vmcs_kind(f->encoding)]);
    }
}

static void list_vmcb_fields(FILE *out)
{
    static const char *const clean[] = {"intercepts", "permission-maps", "asid", "interrupts", "nested-paging", "cr", "dr", "dt",
                                        "segments", "cr2", "lbr", "avic", "cet", "-"};
    static const char *const use[] = {"not offered", "VMRUN", "#VMEXIT", "VMRUN, #VMEXIT", "VMRUN, #VMEXIT", "VMLOAD, VMSAVE"};
    for (unsigned i = 0; i < VMCB_FIELD_COUNT; i++) {
        const struct vmcb_field *f = &vmcb_fields[i];
        fprintf(out, "0x%03x  %2u  %-24s %-16s %s\n", f->offset, f->bytes, f->name, clean[f->clean], use[f->use]);
    }
}

static void list_vmentry_checks(FILE *out)
{
    static const char *const stages[] = {"controls", "host state", "guest state", "MSR load"};
    unsigned n;
    const struct virt_check *c = vmx_check_table(&n);
    for (unsigned i = 0; i < n; i++)
        fprintf(out, "%-26s %-12s %s \"%s\"\n    %s\n", c[i].id, stages[c[i].stage], c[i].section, c[i].title, c[i].rule);
    c = svm_check_table(&n);
    for (unsigned i = 0; i < n; i++)
        fprintf(out, "%-26s %-12s %s \"%s\"\n    %s\n", c[i].id, "VMRUN", c[i].section, c[i].title, c[i].rule);
}

static const struct {
    const char *name, *help;
} devices[] = {
#define DEVICE(name, help) {#name, help},
#include "devices/devices.def"
#undef DEVICE
};

static void list_devices(FILE *out)
{
    for (unsigned i = 0; i < ARRAY_SIZE(devices); i++)
        fprintf(out, "%-14s %s\n", devices[i].name, devices[i].help);
}

static void list_vmx_caps(FILE *out)
{
    struct vcpu *v = calloc(1, sizeof(*v));
    struct vmx_caps caps;
    if (!v)
        panic("out of memory for a processor");
    cpu_model_features(cpu_models[0], v->features);
    vmx_caps_init(&caps, v);
    vmx_caps_list(&caps, out);
    free(v);
}

static void list_events(FILE *out) { log_list(out); }

static const struct {
    const char *name;
    void (*print)(FILE *out);
} lists[] = {
    {"cpus", list_cpus},
    {"instructions", list_instructions},
    {"vmcs-fields", list_vmcs_fields},
    {"vmcb-fields", list_vmcb_fields},
    {"vmentry-checks", list_vmentry_checks},
    {"vmx-caps", list_vmx_caps},
    {"devices", list_devices},
    {"events", list_events},
};

bool nestor_list(const char *what, FILE *out)
{
    for (unsigned i = 0; i < ARRAY_SIZE(lists); i++) {
        if (!strcmp(lists[i].name, what)) {
            lists[i].print(out);
            return true;
        }
    }
    return false;
}
