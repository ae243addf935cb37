/* nestor vmcs-check, nestor explain: other people's VM entries, and the rows that judge them */
#include "cli/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Exit status of vmcs-check when a row fails. */
#define EXIT_CHECK_FAILED 1
/* More is no log a person would hand on. */
#define FILE_MAX (256u << 20)

struct check_options {
    bool json;
    unsigned number;
};

static int set_json(void *target, const char *value, struct nestor_error *err)
{
    (void)value, (void)err;
    ((struct check_options *)target)->json = true;
    return 0;
}

static int set_dump(void *target, const char *value, struct nestor_error *err)
{
    char *end;
    unsigned long n = strtoul(value, &end, 10);
    if (end == value || *end || n < 1 || n > 1000000) {
        snprintf(err->text, sizeof(err->text), "expected the number of a dump in the file, counted from 1");
        return -1;
    }
    ((struct check_options *)target)->number = (unsigned)n;
    return 0;
}

static char *read_file(const char *path, size_t *len, struct nestor_error *err)
{
    FILE *f = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    size_t cap = 0;
    char *text = NULL;
    *len = 0;
    if (!f) {
        snprintf(err->text, sizeof(err->text), "%s: cannot be opened: %s", path, strerror(errno));
        return NULL;
    }
    for (;;) {
        if (*len == cap) {
            cap = cap ? cap * 2 : 65536;
            char *more = cap > FILE_MAX ? NULL : realloc(text, cap);
            if (!more) {
                snprintf(err->text, sizeof(err->text), "%s: too large for a log, at most %u MiB are read", path, FILE_MAX >> 20);
                break;
            }
            text = more;
        }
        size_t n = fread(text + *len, 1, cap - *len, f);
        *len += n;
        if (n)
            continue;
        if (ferror(f)) {
            snprintf(err->text, sizeof(err->text), "%s: cannot be read: %s", path, strerror(errno));
            break;
        }
        if (f != stdin)
            fclose(f);
        return text;
    }
    if (f != stdin)
        fclose(f);
    free(text);
    return NULL;
}

static int vmcs_check_command(int argc, char **argv)
{
    struct check_options o = {0};
    struct nestor_error err;
    const char *path = NULL;
    unsigned count;
    int r = options_parse(&command_vmcs_check, argc, argv, &o, &path, 1, &count);
    if (r)
        return r < 0 ? 0 : r;
    if (!path)
        return usage_error(&command_vmcs_check, "a file is missing, expected a kernel log or JSON (- for standard input)");
    size_t len;
    char *text = read_file(path, &len, &err);
    if (!text)
        return usage_error(&command_vmcs_check, "%s", err.text);
    r = nestor_vmcs_check(path, text, len, o.number, o.json, stdout, &err);
    free(text);
    if (r < 0)
        return usage_error(&command_vmcs_check, "%s", err.text);
    return r ? EXIT_CHECK_FAILED : EXIT_OK;
}

static int explain_command(int argc, char **argv)
{
    struct check_options o = {0};
    struct nestor_error err;
    const char *id = NULL;
    unsigned count;
    int r = options_parse(&command_explain, argc, argv, &o, &id, 1, &count);
    if (r)
        return r < 0 ? 0 : r;
    if (!id)
        return usage_error(&command_explain, "the name of a check is missing (nestor list vmentry-checks)");
    if (nestor_explain(id, o.json, stdout, &err))
        return usage_error(&command_explain, "%s", err.text);
    return EXIT_OK;
}

static const struct option_row vmcs_check_rows[] = {
    {"dump", "NUMBER", "which dump of the file, counted from 1 (default: the last)", set_dump},
    {"json", NULL, "print every row, as JSON", set_json},
    {0},
};
static const struct option_row explain_rows[] = {{"json", NULL, "print JSON", set_json}, {0}};

const struct command command_vmcs_check = {
    .name = "vmcs-check", .args = "FILE [OPTION...]", .options = vmcs_check_rows, .run = vmcs_check_command,
    .summary = "Finds the VM-entry checks that a dumped VMCS fails. FILE (- for standard input) is a Linux kernel log\n"
               "with the lines of KVM's dump_vmcs (or of dump_vmcb: AMD-V) in it, or JSON: {\"GUEST_CR0\": \"0x33\", ...},\n"
               "fields of a VMCS or of a VMCB; the monitor's \"vmcs json\" prints such an object.\n"
               "JSON may also describe the processor: capability MSRs (\"IA32_VMX_TRUE_PINBASED_CTLS\"...), \"MAXPHYADDR\",\n"
               "\"LINEAR_WIDTH\"; without that, a processor with every control the manual names is assumed. Exit status:\n"
               "0 no row fails; 1 rows fail; 2 no dump could be read.",
};
const struct command command_explain = {
    .name = "explain", .args = "ID [OPTION...]", .options = explain_rows, .run = explain_command,
    .summary = "Prints one VM-entry check in full. ID is a name that nestor list vmentry-checks prints.",
};
