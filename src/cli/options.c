#include "cli/cli.h"

#include <stdarg.h>
#include <string.h>

int usage_error(const struct command *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("nestor", stderr);
    if (c)
        fprintf(stderr, " %s", c->name);
    fputs(": ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return EXIT_USAGE;
}

void command_help(const struct command *c)
{
    printf("usage: nestor %s %s\n\n%s\n\n", c->name, c->args, c->summary);
    for (const struct option_row *o = c->options; o->name; o++) {
        char left[64];
        snprintf(left, sizeof(left), "--%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
        printf("  %-34s %s\n", left, o->help);
    }
}

int options_parse(const struct command *c, int argc, char **argv, void *target, const char **positional, unsigned max,
                  unsigned *count)
{
    *count = 0;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
            command_help(c);
            return -1;
        }
        if (strncmp(arg, "--", 2)) {
            if (*count == max)
                return usage_error(c, "unexpected argument '%s' (nestor %s --help)", arg, c->name);
            positional[(*count)++] = arg;
            continue;
        }
        size_t n = strcspn(arg + 2, "=");
        const char *value = arg[2 + n] ? arg + 3 + n : NULL;
        const struct option_row *o = c->options;
        while (o->name && (strlen(o->name) != n || memcmp(o->name, arg + 2, n)))
            o++;
        if (!o->name)
            return usage_error(c, "unknown option '%s' (nestor %s --help lists them)", arg, c->name);
        if (!o->value && value)
            return usage_error(c, "--%s takes no value", o->name);
        if (o->value && !value) {
            if (i + 1 == argc)
                return usage_error(c, "--%s: a value is missing, expected %s", o->name, o->value);
            value = argv[++i];
        }
        struct nestor_error err;
        if (o->set(target, value, &err))
            return usage_error(c, "--%s %s: %s", o->name, value ? value : "", err.text);
    }
    return 0;
}
