/* The nestor command: a client of the public header only. */
#pragma once
#include <nestor/nestor.h>

/* Exit statuses (nestor(1), "EXIT STATUS"). A guest's own status is odd: (value << 1) | 1. */
enum exit_status {
    EXIT_OK = 0,            /* power-off, or reset with --no-reboot */
    EXIT_USAGE = 2,         /* bad option, image or input */
    EXIT_TRIPLE_FAULT = 4,
    EXIT_HALTED = 6,        /* nothing can wake the guest any more */
    EXIT_INTERRUPTED = 8,   /* Ctrl-A X, SIGINT, SIGTERM */
    EXIT_INTERNAL = 70,     /* a defect of Nestor itself: please report it */
    EXIT_TIMEOUT = 124,
};

struct option_row {
    const char *name;  /* without the dashes */
    const char *value; /* NULL: a switch */
    const char *help;
    int (*set)(void *target, const char *value, struct nestor_error *err);
};

/* A command of `nestor`. */
struct command {
    const char *name, *args, *summary;
    const struct option_row *options; /* ended by a row without a name */
    int (*run)(int argc, char **argv);
};
extern const struct command command_run, command_demo, command_list, command_monitor, command_vmcs_check, command_explain;

/* options.c */
/*
 * Reads options of @c from argv[1..] into @target; what is not an option is left in positional[],
 * *count of them, at most @max. Returns 0, EXIT_USAGE (message printed), or -1 when help was printed.
 */
int options_parse(const struct command *c, int argc, char **argv, void *target, const char **positional, unsigned max,
                  unsigned *count);
void command_help(const struct command *c);
int usage_error(const struct command *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* monitor.c: a person or a program in front of the monitor. */
struct monitor_client;
/* For --monitor stdio: a client on a thread of its own; *fd is the machine's end. NULL: no memory or descriptors. */
struct monitor_client *monitor_client_start(int *fd);
/* Waits for the end of the conversation, which the machine's end has closed. */
void monitor_client_end(struct monitor_client *c);
/* SIGINT holds the machine instead of ending the run, while there is a client. Async-signal-safe. */
bool monitor_client_interrupt(void);

/* terminal.c: the console. The terminal is restored however the program ends. */
enum console_kind { CONSOLE_NONE, CONSOLE_STDIO, CONSOLE_OUTPUT /* standard output only */, CONSOLE_FILE };
struct console;
struct console *console_open(enum console_kind kind, const char *path, struct nestor_error *err);
void console_close(struct console *c);
void console_attach(struct console *c, struct nestor_config *config);
/* From here on the terminal is raw, and Ctrl-A X and termination signals stop @n. */
void console_start(struct console *c, struct nestor *n);
