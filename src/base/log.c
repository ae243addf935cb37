#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Process-wide on purpose: a trace describes the process, whichever machine speaks. */
u32 log_mask;
static FILE *log_file;

static const struct {
    const char *name, *help;
} categories[] = {
#define LOG(name, help) {#name, help},
#include "base/log.def"
#undef LOG
};

void log_line(enum log_category c, const char *fmt, ...)
{
    FILE *f = log_file ? log_file : stderr;
    va_list ap;
    va_start(ap, fmt);
    flockfile(f); /* one line at a time, whichever thread speaks */
    fprintf(f, "%s: ", categories[c].name);
    vfprintf(f, fmt, ap);
    fputc('\n', f);
    funlockfile(f);
    va_end(ap);
}

int log_enable(const char *names, struct error *err)
{
    while (*names) {
        size_t n = strcspn(names, ",");
        bool found = n == 3 && !memcmp(names, "all", 3);
        if (found)
            log_mask = ~0u;
        for (unsigned i = 0; i < ARRAY_SIZE(categories); i++) {
            if (strlen(categories[i].name) == n && !memcmp(names, categories[i].name, n)) {
                log_mask |= 1u << i;
                found = true;
            }
        }
        if (!found)
            return error_set(err, "--trace: unknown event '%.*s' (nestor run --help lists them)", (int)n, names);
        names += n + (names[n] == ',');
    }
    return 0;
}

int log_open(const char *path, struct error *err)
{
    FILE *f = fopen(path, "w");
    if (!f)
        return error_set(err, "--log %s: cannot be written: %m", path);
    setvbuf(f, NULL, _IOLBF, 0);
    log_file = f;
    return 0;
}

void log_list(FILE *out)
{
    for (unsigned i = 0; i < ARRAY_SIZE(categories); i++)
        fprintf(out, "%-14s %s\n", categories[i].name, categories[i].help);
}

void log_list_enabled(FILE *out)
{
    fputs("traced:", out);
    for (unsigned i = 0; i < ARRAY_SIZE(categories); i++)
        if (log_mask >> i & 1)
            fprintf(out, " %s", categories[i].name);
    fputc('\n', out);
}

void log_complete(FILE *out, const char *before, const char *text)
{
    for (unsigned i = 0; i < ARRAY_SIZE(categories); i++)
        if (!strncmp(categories[i].name, text, strlen(text)))
            fprintf(out, "%s%s\n", before, categories[i].name);
}
