#include "cli/cli.h"

#include <string.h>

static int list_command(int argc, char **argv)
{
    const char *what = NULL;
    unsigned count;
    int r = options_parse(&command_list, argc, argv, NULL, &what, 1, &count);
    if (r)
        return r < 0 ? 0 : r;
    if (!what || !nestor_list(what, stdout))
        return usage_error(&command_list, "%s%s%s, expected cpus, instructions, vmcs-fields, vmcb-fields, vmentry-checks, vmx-caps, devices or events",
                           what ? "unknown list '" : "a list is missing", what ? what : "", what ? "'" : "");
    return 0;
}

static const struct option_row no_options[] = {{0}};
const struct command command_list = {
    .name = "list", .args = "cpus|instructions|vmcs-fields|vmcb-fields|vmentry-checks|vmx-caps|devices|events", .options = no_options,
    .run = list_command, .summary = "Prints a table of what Nestor knows.",
};

static const struct command *const commands[] = {&command_run, &command_demo, &command_list, &command_monitor, &command_vmcs_check, &command_explain};

static void help(void)
{
    puts("nestor " NESTOR_VERSION ": a PC in software, with VT-x, that needs neither VT-x nor root\n\n"
         "usage: nestor COMMAND [OPTION...]\n");
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++) {
        const char *end = strchr(commands[i]->summary, '.');
        printf("  %-10s %.*s\n", commands[i]->name, (int)(end - commands[i]->summary), commands[i]->summary);
    }
    puts("\nnestor COMMAND --help tells more; nestor --version prints the version.");
}

int main(int argc, char **argv)
{
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        help();
        return argc < 2 ? EXIT_USAGE : EXIT_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        puts("nestor " NESTOR_VERSION);
        return EXIT_OK;
    }
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++) {
        if (!strcmp(argv[1], commands[i]->name))
            return commands[i]->run(argc - 1, argv + 1);
    }
    return usage_error(NULL, "unknown command '%s' (nestor --help)", argv[1]);
}
