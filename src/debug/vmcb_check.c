/*
 * The VMCB of other people's systems: the lines KVM's dump_vmcb prints, and the rows of the VMRUN check
 * table that it fails. A row with a field the dump lacks is not evaluated.
 */
#include "debug/check.h"
#include "debug/vmcb_check.h"
#include "svm/svm.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <strings.h>

struct vmcb_case {
    struct svm_snapshot s;
    u64 f[VMCB_FIELD_COUNT];
    u8 features[FEAT_COUNT];
    bool known[VMCB_FIELD_COUNT];
    bool json;
    bool live; /* of a processor at hand: nothing is unknown */
    unsigned first_line, last_line, number, count;
};

static const char *const marks[2] = {"VMCB Control Area:", "VMCB State Save Area:"};

/* A key of the log, and the field (decimal for the few that KVM prints so). */
static const struct vmcb_key {
    const char *key;
    u16 field;
    bool decimal;
    u8 shift; /* where the value goes in the field */
} keys[] = {
    {"cr_read:", VMCB_INTERCEPT_CR_READ, 0, 0}, {"cr_write:", VMCB_INTERCEPT_CR_WRITE, 0, 0}, {"dr_read:", VMCB_INTERCEPT_DR_READ, 0, 0},
    {"dr_write:", VMCB_INTERCEPT_DR_WRITE, 0, 0}, {"exceptions:", VMCB_INTERCEPT_EXCEPTIONS, 0, 0}, {"intercepts:", VMCB_INTERCEPT_MISC1, 0, 0},
    {"pause filter count:", VMCB_PAUSE_FILTER_COUNT, 1, 0}, {"pause filter threshold:", VMCB_PAUSE_FILTER_THRESHOLD, 1, 0},
    {"iopm_base_pa:", VMCB_IOPM_BASE_PA, 0, 0}, {"msrpm_base_pa:", VMCB_MSRPM_BASE_PA, 0, 0}, {"tsc_offset:", VMCB_TSC_OFFSET, 0, 0},
    {"asid:", VMCB_GUEST_ASID, 1, 0}, {"tlb_ctl:", VMCB_TLB_CONTROL, 1, 0}, {"int_ctl:", VMCB_INT_CTL, 0, 0}, {"int_vector:", VMCB_INT_VECTOR, 0, 0},
    {"int_state:", VMCB_INTERRUPT_SHADOW, 0, 0}, {"exit_code:", VMCB_EXITCODE, 0, 0}, {"exit_info1:", VMCB_EXITINFO1, 0, 0},
    {"exit_info2:", VMCB_EXITINFO2, 0, 0}, {"exit_int_info:", VMCB_EXITINTINFO, 0, 0}, {"nested_ctl:", VMCB_NESTED_CTL, 1, 0},
    {"nested_cr3:", VMCB_N_CR3, 0, 0}, {"event_inj:", VMCB_EVENTINJ, 0, 0}, {"event_inj_err:", VMCB_EVENTINJ, 0, 32}, {"virt_ext:", VMCB_VIRT_EXT, 1, 0},
    {"next_rip:", VMCB_NRIP, 0, 0}, {"cpl:", VMCB_CPL, 1, 0}, {"efer:", VMCB_EFER, 0, 0}, {"cr0:", VMCB_CR0, 0, 0}, {"cr2:", VMCB_CR2, 0, 0},
    {"cr3:", VMCB_CR3, 0, 0}, {"cr4:", VMCB_CR4, 0, 0}, {"dr6:", VMCB_DR6, 0, 0}, {"dr7:", VMCB_DR7, 0, 0}, {"rip:", VMCB_RIP, 0, 0},
    {"rflags:", VMCB_RFLAGS, 0, 0}, {"rsp:", VMCB_RSP, 0, 0}, {"rax:", VMCB_RAX, 0, 0}, {"star:", VMCB_STAR, 0, 0}, {"lstar:", VMCB_LSTAR, 0, 0},
    {"cstar:", VMCB_CSTAR, 0, 0}, {"sfmask:", VMCB_SFMASK, 0, 0}, {"kernel_gs_base:", VMCB_KERNEL_GS_BASE, 0, 0},
    {"sysenter_cs:", VMCB_SYSENTER_CS, 0, 0}, {"sysenter_esp:", VMCB_SYSENTER_ESP, 0, 0}, {"sysenter_eip:", VMCB_SYSENTER_EIP, 0, 0},
    {"gpat:", VMCB_G_PAT, 0, 0},
};
static const struct {
    const char *name;
    u16 selector, limit, base;
} segments[] = {
    {"es:", VMCB_ES_SELECTOR, VMCB_ES_LIMIT, VMCB_ES_BASE}, {"cs:", VMCB_CS_SELECTOR, VMCB_CS_LIMIT, VMCB_CS_BASE},
    {"ss:", VMCB_SS_SELECTOR, VMCB_SS_LIMIT, VMCB_SS_BASE}, {"ds:", VMCB_DS_SELECTOR, VMCB_DS_LIMIT, VMCB_DS_BASE},
    {"fs:", VMCB_FS_SELECTOR, VMCB_FS_LIMIT, VMCB_FS_BASE}, {"gs:", VMCB_GS_SELECTOR, VMCB_GS_LIMIT, VMCB_GS_BASE},
    {"ldtr:", VMCB_LDTR_SELECTOR, VMCB_LDTR_LIMIT, VMCB_LDTR_BASE}, {"tr:", VMCB_TR_SELECTOR, VMCB_TR_LIMIT, VMCB_TR_BASE},
};

static const char *find_word(const char *line, const char *key)
{
    for (const char *p = line; (p = strstr(p, key)); p++)
        if (p == line || !(isalnum((unsigned char)p[-1]) || p[-1] == '_'))
            return p + strlen(key);
    return NULL;
}

/* The number behind @p; a longer line of digits is none. */
static const char *read_number(const char *p, bool decimal, u64 *value)
{
    p += strspn(p, " \t");
    size_t n = strspn(p, decimal ? "0123456789" : "0123456789abcdefABCDEF");
    if (!n || n > (decimal ? 19u : 16u))
        return NULL;
    *value = strtoull(p, NULL, decimal ? 10 : 16);
    p += n;
    return isalnum((unsigned char)*p) || *p == '_' ? NULL : p;
}

static int store(struct vmcb_case *c, unsigned field, u64 value, unsigned shift, unsigned line, struct error *err)
{
    unsigned bits = vmcb_fields[field].bytes * 8u;
    if (bits < 64 && value >> bits)
        return error_set(err, "line %u: %s = 0x%" PRIx64 " does not fit the field's %u bits", line, vmcb_fields[field].name, value, bits);
    c->f[field] = shift ? (c->f[field] & BITS64(shift - 1, 0)) | value << shift : value;
    c->known[field] = true;
    c->last_line = line;
    return 0;
}

/* ---- JSON ---- */

static int field_by_name(const char *name)
{
    for (unsigned n = 0; n < VMCB_FIELD_COUNT; n++)
        if (!strcasecmp(vmcb_fields[n].name, name))
            return (int)n;
    return -1;
}

struct probe {
    unsigned vmcb, other;
};

static int probe_name(struct json *j, const char *name, u64 value)
{
    struct probe *p = j->target;
    (void)value;
    if (field_by_name(name) >= 0)
        p->vmcb++;
    else if (strcasecmp(name, "MAXPHYADDR"))
        p->other++;
    return 0;
}

static size_t skip_blank(const char *text, size_t len)
{
    size_t i = 0;
    while (i < len && isspace((unsigned char)text[i]))
        i++;
    return i;
}

static bool is_json(const char *text, size_t len)
{
    size_t i = skip_blank(text, len);
    return i < len && text[i] == '{';
}

static int set_named(struct json *j, const char *name, u64 value)
{
    struct vmcb_case *c = j->target;
    int n = field_by_name(name);
    if (n >= 0)
        return store(c, (unsigned)n, value, 0, j->line, j->err);
    if (!strcasecmp(name, "MAXPHYADDR") && value >= 32 && value <= 52) {
        c->s.maxphyaddr = (u8)value;
        return 0;
    }
    return error_set(j->err, "line %u: \"%.64s\" is no VMCB field (nestor list vmcb-fields) and not MAXPHYADDR (32 to 52)", j->line, name);
}

bool vmcb_check_mine(const char *text, size_t len)
{
    if (is_json(text, len)) {
        struct probe p = {0};
        struct error ignored;
        struct json j = {.p = text, .end = text + len, .line = 1, .err = &ignored, .set = probe_name, .target = &p};
        json_read(&j);
        return p.vmcb > p.other;
    }
    return memmem(text, len, marks[0], strlen(marks[0])) || memmem(text, len, marks[1], strlen(marks[1]));
}

static int read_segment(struct vmcb_case *c, const char *line, unsigned number, struct error *err)
{
    for (unsigned i = 0; i < ARRAY_SIZE(segments); i++) {
        u64 sel, attrib, limit, base;
        const char *p = find_word(line, segments[i].name);
        if (!p || !(p = find_word(p, "s:")) || !(p = read_number(p, false, &sel)) || !(p = find_word(p, "a:")) || !(p = read_number(p, false, &attrib)) ||
            !(p = find_word(p, "l:")) || !(p = read_number(p, false, &limit)) || !(p = find_word(p, "b:")) || !read_number(p, false, &base))
            continue;
        unsigned s = segments[i].selector;
        if (store(c, s, sel, 0, number, err) || store(c, s + 1, attrib, 0, number, err) || store(c, segments[i].limit, limit, 0, number, err) ||
            store(c, segments[i].base, base, 0, number, err))
            return -1;
    }
    return 0;
}

static int read_line(struct vmcb_case *c, const char *line, unsigned number, struct error *err)
{
    for (unsigned i = 0; i < ARRAY_SIZE(keys); i++) {
        u64 value, second;
        const char *p = find_word(line, keys[i].key);
        const char *digits = p ? p + strspn(p, " \t") : NULL;
        if (!p || !(p = read_number(p, keys[i].decimal, &value)))
            continue;
        /* Up to Linux 5.7 both words of intercepts are one number of 16 digits. */
        if (keys[i].field == VMCB_INTERCEPT_MISC1 && p - digits == 16) {
            if (store(c, VMCB_INTERCEPT_MISC2, value >> 32, 0, number, err))
                return -1;
            value = (u32)value;
        }
        if (store(c, keys[i].field, value, keys[i].shift, number, err))
            return -1;
        if (keys[i].field == VMCB_INTERCEPT_MISC1 && read_number(p, false, &second) && store(c, VMCB_INTERCEPT_MISC2, second, 0, number, err))
            return -1;
    }
    return read_segment(c, line, number, err);
}

static void case_init(struct vmcb_case *c)
{
    memset(c, 0, sizeof(*c));
    memset(c->features, 1, sizeof(c->features));
    c->s = (struct svm_snapshot){.f = c->f, .features = c->features, .maxphyaddr = 52, .host_paging = true};
    c->s.cr4_reserved = ~(BITS64(12, 0) | CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_CET);
    c->s.efer_reserved = ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | EFER_SVME | EFER_LMSLE | EFER_FFXSR | EFER_TCE | BIT64(17) | BIT64(18)
                           | BIT64(20) | BIT64(21));
}

static int read_dump(struct vmcb_case *c, const char *text, size_t len, unsigned wanted, struct error *err)
{
    case_init(c);
    if (is_json(text, len)) {
        struct json j = {.p = text, .end = text + len, .line = 1, .err = err, .set = set_named, .target = c};
        if (wanted > 1)
            return error_set(err, "dump %u is asked for, JSON has one", wanted);
        if (json_read(&j))
            return -1;
        c->json = true;
        c->number = c->count = 1;
        c->first_line = j.first_line;
        c->last_line = j.line;
        return 0;
    }
    for (const char *p = text; (p = memmem(p, len - (size_t)(p - text), marks[0], strlen(marks[0]))); p++)
        c->count++;
    if (!c->count)
        c->count = 1;
    c->number = wanted ? wanted : c->count;
    if (c->number > c->count)
        return error_set(err, "dump %u is asked for, there %s %u", wanted, c->count == 1 ? "is" : "are", c->count);
    unsigned number = 0, dump = 0;
    bool tagged = false;
    for (const char *p = text, *end = text + len; p < end; number++) {
        char line[512];
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        snprintf(line, sizeof(line), "%.*s", (int)((nl ? nl : end) - p < 511 ? (nl ? nl : end) - p : 511), p);
        p = nl ? nl + 1 : end;
        bool control = strstr(line, marks[0]) != NULL;
        if (control || strstr(line, marks[1])) {
            if (control || !dump)
                dump++;
            tagged = strstr(line, "kernel:") != NULL;
            if (dump == c->number && !c->first_line)
                c->first_line = number + 1;
            continue;
        }
        /* A last line without its end may be cut within a value. */
        if (dump != c->number || (tagged && !strstr(line, "kernel:")) || !nl)
            continue;
        if (read_line(c, line, number + 1, err))
            return -1;
    }
    for (unsigned n = 0; n < VMCB_FIELD_COUNT; n++)
        if (c->known[n])
            return 0;
    return error_set(err, "the dump has no field with a value");
}

static enum check_result run_row(const struct vmcb_case *c, const struct virt_check *k)
{
    for (unsigned i = 0; i < k->nfields; i++)
        if (!c->known[vmcb_find(k->fields[i])])
            return RESULT_UNKNOWN;
    if (!k->applies(&c->s))
        return RESULT_NOT_APPLICABLE;
    if (!c->live && !strcmp(k->id, "SVM_PAE_PDPE"))
        return RESULT_UNKNOWN; /* rests on memory */
    return k->ok(&c->s) ? RESULT_PASS : RESULT_FAIL;
}

/* Whether @c satisfies the row and breaks no other that held on @given. */
static bool content(const struct vmcb_case *given, const struct vmcb_case *c, const struct virt_check *k, bool must_apply)
{
    unsigned rows;
    const struct virt_check *table = svm_check_table(&rows);
    enum check_result r = run_row(c, k);
    bool good = r == RESULT_PASS || (!must_apply && r == RESULT_NOT_APPLICABLE);
    for (unsigned n = 0; good && n < rows; n++)
        good = run_row(c, &table[n]) != RESULT_FAIL || run_row(given, &table[n]) == RESULT_FAIL;
    return good;
}

/* What would satisfy the row: single bits; else one that makes it not apply, or an address within the width. */
static unsigned repairs(const struct vmcb_case *given, const struct virt_check *k, char text[][96], unsigned max)
{
    struct vmcb_case c = *given;
    unsigned n = 0;
    c.s.f = c.f;
    c.s.features = c.features;
    for (unsigned pass = 0; pass < 2 && !n; pass++)
        for (unsigned i = 0; i < k->nfields; i++) {
            unsigned field = (unsigned)vmcb_find(k->fields[i]);
            u64 old = c.f[field], within = old & BITS64(c.s.maxphyaddr - 2u, 0);
            for (unsigned bit = 0; bit < vmcb_fields[field].bytes * 8u && n < max; bit++) {
                c.f[field] = old ^ BIT64(bit);
                if (content(given, &c, k, !pass))
                    snprintf(text[n++], 96, "%s %s bit %u", c.f[field] >> bit & 1 ? "set" : "clear", vmcb_fields[field].name, bit);
            }
            c.f[field] = within;
            if (pass && within != old && n < max && content(given, &c, k, true))
                snprintf(text[n++], 96, "%s = 0x%" PRIx64, vmcb_fields[field].name, within);
            c.f[field] = old;
        }
    return n;
}

int vmcb_check(const char *name, const char *text, size_t len, unsigned number, bool json, FILE *out, struct error *err)
{
    struct vmcb_case c;
    unsigned rows, count[RESULT_COUNT] = {0}, known = 0;
    const struct virt_check *table = svm_check_table(&rows);
    if (memchr(text, 0, len))
        return error_set(err, "is not text: it has bytes of value 0");
    if (read_dump(&c, text, len, number, err))
        return -1;
    for (unsigned n = 0; n < VMCB_FIELD_COUNT; n++)
        known += c.known[n];
    if (json) {
        fputs("{\n  \"file\": ", out);
        print_json_string(out, name);
        fprintf(out, ",\n  \"kind\": \"VMCB\", \"dump\": %u, \"dumps\": %u, \"first_line\": %u, \"last_line\": %u, \"fields\": %u,\n  \"rows\": [\n", c.number,
                c.count, c.first_line, c.last_line, known);
    } else {
        fprintf(out, "%s: %s, lines %u to %u", name, c.json ? "JSON" : "Linux kernel log", c.first_line, c.last_line);
        if (c.count > 1)
            fprintf(out, ", dump %u of %u", c.number, c.count);
        fprintf(out, "; %u of %u VMCB fields\n", known, (unsigned)VMCB_FIELD_COUNT);
        if (c.known[VMCB_EXITCODE])
            fprintf(out, "exit code 0x%" PRIx64 "%s\n", c.f[VMCB_EXITCODE], (u32)c.f[VMCB_EXITCODE] == 0xffffffff ? ": VMEXIT_INVALID, VMRUN failed" : "");
        fputc('\n', out);
    }
    for (unsigned i = 0; i < rows; i++) {
        const struct virt_check *k = &table[i];
        char text_of[4][96];
        enum check_result r = run_row(&c, k);
        unsigned n = r == RESULT_FAIL ? repairs(&c, k, text_of, 4) : 0;
        count[r]++;
        if (json) {
            fprintf(out, "    {\"id\": \"%s\", \"outcome\": \"%s\", \"title\": ", k->id, check_result_name(r));
            print_json_string(out, k->title);
            fprintf(out, ", \"section\": \"%s\", \"rule\": ", k->section);
            print_json_string(out, k->rule);
            fputs(", \"satisfied_by\": [", out);
            for (unsigned j = 0; j < n; j++)
                fprintf(out, "%s\"%s\"", j ? ", " : "", text_of[j]);
            fprintf(out, "]}%s\n", i + 1 < rows ? "," : "");
        } else if (r == RESULT_FAIL) {
            fprintf(out, "FAIL %s  (#VMEXIT with VMEXIT_INVALID)\n    APM volume 2, %s \"%s\"\n    rule: %s\n   ", k->id, k->section, k->title, k->rule);
            for (unsigned j = 0; j < k->nfields; j++)
                fprintf(out, " %s = 0x%" PRIx64 " ", vmcb_fields[vmcb_find(k->fields[j])].name, c.f[vmcb_find(k->fields[j])]);
            fputc('\n', out);
            for (unsigned j = 0; j < n; j++)
                fprintf(out, "%s%s\n", j ? "              or: " : "    satisfied by: ", text_of[j]);
            fputc('\n', out);
        }
    }
    if (json) {
        fprintf(out, "  ],\n  \"failed\": %u, \"passed\": %u, \"not_applicable\": %u, \"not_evaluated\": %u\n}\n", count[RESULT_FAIL], count[RESULT_PASS],
                count[RESULT_NOT_APPLICABLE], count[RESULT_UNKNOWN]);
        return (int)count[RESULT_FAIL];
    }
    fprintf(out, "%u row%s fail%s, %u pass, %u do not apply, %u could not be evaluated.\n", count[RESULT_FAIL], count[RESULT_FAIL] == 1 ? "" : "s",
            count[RESULT_FAIL] == 1 ? "s" : "", count[RESULT_PASS], count[RESULT_NOT_APPLICABLE], count[RESULT_UNKNOWN]);
    for (unsigned i = 0; i < rows; i++) {
        if (run_row(&c, &table[i]) != RESULT_UNKNOWN)
            continue;
        fprintf(out, "    %-22s wants", table[i].id);
        for (unsigned j = 0; j < table[i].nfields; j++)
            if (!c.known[vmcb_find(table[i].fields[j])])
                fprintf(out, " %s", vmcb_fields[vmcb_find(table[i].fields[j])].name);
        fputs(!strcmp(table[i].id, "SVM_PAE_PDPE") ? " memory at CR3\n" : "\n", out);
    }
    fputs("The processor is assumed to have every feature the manual names (physical addresses 52 bits).\n", out);
    return (int)count[RESULT_FAIL];
}

enum check_result vmcb_live_row(struct vcpu *v, pa_t vmcb, unsigned row, FILE *out, bool advise)
{
    struct vmcb_case c;
    unsigned rows;
    const struct virt_check *k = &svm_check_table(&rows)[row];
    case_init(&c);
    c.live = true;
    for (unsigned n = 0; n < VMCB_FIELD_COUNT; n++) {
        c.known[n] = true;
        if (vmcb_fields[n].bytes <= 8)
            c.f[n] = vmcb_read(v, vmcb, (enum vmcb_index)n);
    }
    memcpy(c.features, v->features, sizeof(c.features));
    c.s.maxphyaddr = v->maxphyaddr;
    c.s.cr4_reserved = cpu_cr4_reserved(v);
    c.s.efer_reserved = cpu_efer_reserved(v);
    c.s.host_paging = v->cr0 & CR0_PG;
    if (!(c.f[VMCB_CR3] >> v->maxphyaddr))
        physmap_read(v->pm, c.f[VMCB_CR3] & 0xffffffe0, c.s.pdpte, sizeof(c.s.pdpte));
    enum check_result r = run_row(&c, k);
    if (!out)
        return r;
    fprintf(out, "%s: %s  (#VMEXIT with VMEXIT_INVALID)\n    APM volume 2, %s \"%s\"\n    rule: %s\n   ", r == RESULT_FAIL ? "FAIL" : check_result_name(r), k->id,
            k->section, k->title, k->rule);
    for (unsigned j = 0; j < k->nfields; j++)
        fprintf(out, " %s = 0x%" PRIx64 " ", vmcb_fields[vmcb_find(k->fields[j])].name, c.f[vmcb_find(k->fields[j])]);
    fputc('\n', out);
    char text[4][96];
    unsigned n = advise && r == RESULT_FAIL ? repairs(&c, k, text, 4) : 0;
    for (unsigned j = 0; j < n; j++)
        fprintf(out, "%s%s\n", j ? "              or: " : "    satisfied by: ", text[j]);
    return r;
}

int vmcb_find_row(const char *id)
{
    unsigned rows;
    const struct virt_check *table = svm_check_table(&rows);
    for (unsigned i = 0; i < rows; i++)
        if (!strcasecmp(table[i].id, id))
            return (int)i;
    return -1;
}

int vmcb_explain(const char *id, bool json, FILE *out)
{
    unsigned rows;
    const struct virt_check *table = svm_check_table(&rows);
    for (unsigned i = 0; i < rows; i++) {
        const struct virt_check *k = &table[i];
        if (strcasecmp(k->id, id))
            continue;
        if (json) {
            fprintf(out, "{\"id\": \"%s\", \"effect\": \"#VMEXIT, VMEXIT_INVALID\", \"title\": ", k->id);
            print_json_string(out, k->title);
            fprintf(out, ", \"section\": \"%s\", \"rule\": ", k->section);
            print_json_string(out, k->rule);
            fputs(", \"fields\": [", out);
        } else {
            fprintf(out, "%s\n\n  rule       %s\n  section    APM volume 2 (24593), %s \"%s\"\n  stage      row %u of %u of VMRUN\n"
                         "  failure    #VMEXIT, exit code VMEXIT_INVALID\n  fields\n", k->id, k->rule, k->section, k->title, i + 1, rows);
        }
        for (unsigned j = 0; j < k->nfields; j++)
            if (json)
                fprintf(out, "%s\"%s\"", j ? ", " : "", vmcb_fields[vmcb_find(k->fields[j])].name);
            else
                fprintf(out, "             %-24s offset 0x%03x\n", vmcb_fields[vmcb_find(k->fields[j])].name, k->fields[j]);
        if (json)
            fputs("]}\n", out);
        return 0;
    }
    return -1;
}
