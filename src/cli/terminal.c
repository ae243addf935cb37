#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

/* Ctrl-A is the escape: X ends the run, a second Ctrl-A sends one, anything else is dropped. */
#define ESCAPE 1

struct console {
    enum console_kind kind;
    FILE *out;
    bool escaped, input;
};

/* What signal handlers and atexit need; there is one terminal in a process. */
static struct termios saved_termios;
static volatile sig_atomic_t terminal_is_raw;
static struct nestor *volatile stop_machine;

static void restore_terminal(void)
{
    if (terminal_is_raw) {
        terminal_is_raw = 0;
        tcsetattr(STDIN_FILENO, TCSANOW, &saved_termios);
    }
}

static void on_terminate(int signo)
{
    if (signo == SIGINT && monitor_client_interrupt())
        return;
    if (stop_machine)
        nestor_stop(stop_machine);
}

/* panic() and crashes: give the terminal back, then end as documented or die as before. */
static void on_crash(int signo)
{
    restore_terminal();
    if (signo == SIGABRT)
        _exit(EXIT_INTERNAL); /* panic() has said what it found */
    signal(signo, SIG_DFL);
    raise(signo);
}

static void raw_terminal(void)
{
    struct termios t;
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &saved_termios))
        return;
    t = saved_termios;
    cfmakeraw(&t);
    t.c_oflag |= OPOST; /* Nestor's own lines still end where they should */
    terminal_is_raw = 1;
    atexit(restore_terminal);
    tcsetattr(STDIN_FILENO, TCSANOW, &t);
}

struct console *console_open(enum console_kind kind, const char *path, struct nestor_error *err)
{
    struct console *c = calloc(1, sizeof(*c));
    c->kind = kind;
    if (kind == CONSOLE_FILE) {
        c->out = fopen(path, "w");
        if (!c->out) {
            snprintf(err->text, sizeof(err->text), "%s: cannot be written: %s", path, strerror(errno));
            free(c);
            return NULL;
        }
    } else if (kind == CONSOLE_STDIO || kind == CONSOLE_OUTPUT) {
        c->out = stdout;
        c->input = kind == CONSOLE_STDIO;
    }
    return c;
}

void console_start(struct console *c, struct nestor *n)
{
    stop_machine = n;
    if (c->input)
        raw_terminal();
    static const int terminations[] = {SIGINT, SIGTERM, SIGHUP}, crashes[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    for (unsigned i = 0; i < sizeof(terminations) / sizeof(int); i++)
        signal(terminations[i], on_terminate);
    for (unsigned i = 0; i < sizeof(crashes) / sizeof(int); i++)
        signal(crashes[i], on_crash);
}

void console_close(struct console *c)
{
    restore_terminal();
    stop_machine = NULL;
    if (c->kind == CONSOLE_FILE)
        fclose(c->out);
    free(c);
}

static void tx(void *arg, const uint8_t *data, size_t n)
{
    struct console *c = arg;
    fwrite(data, 1, n, c->out);
    fflush(c->out);
}

static size_t rx(void *arg, uint8_t *data, size_t n)
{
    struct console *c = arg;
    uint8_t raw[64];
    if (!c->input)
        return 0;
    if (n > sizeof(raw))
        n = sizeof(raw);
    int flags = fcntl(STDIN_FILENO, F_GETFL);
    fcntl(STDIN_FILENO, F_SETFL, flags | O_NONBLOCK);
    ssize_t got = read(STDIN_FILENO, raw, n);
    int error = errno;
    fcntl(STDIN_FILENO, F_SETFL, flags);
    if (got == 0 || (got < 0 && error != EAGAIN && error != EINTR))
        c->input = false;
    size_t out = 0;
    for (ssize_t i = 0; i < got; i++) {
        if (!terminal_is_raw) {
            data[out++] = raw[i];
        } else if (c->escaped) {
            c->escaped = false;
            if ((raw[i] | 0x20) == 'x' && stop_machine)
                nestor_stop(stop_machine);
            else if (raw[i] == ESCAPE)
                data[out++] = ESCAPE;
        } else if (raw[i] == ESCAPE) {
            c->escaped = true;
        } else {
            data[out++] = raw[i];
        }
    }
    return out;
}

void console_attach(struct console *c, struct nestor_config *config)
{
    config->serial_wait_fd = c->input ? STDIN_FILENO : -1;
    config->serial_arg = c;
    if (c->out)
        config->serial_tx = tx;
    if (c->input)
        config->serial_rx = rx;
}
