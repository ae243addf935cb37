/*
 * The client of the monitor: carries lines to it and text back, with line editing, history and completion
 * by libedit on a terminal. The same code serves --monitor stdio, on a thread, and `nestor monitor PATH`.
 */
#include "cli/cli.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#ifdef HAVE_LIBEDIT
#include <histedit.h>
#endif

#define PROMPT "(nestor) "

struct monitor_client {
    int fd;
    pthread_t thread;
    bool wanted;    /* the monitor wants a line */
    bool ended;
    char tail[sizeof(PROMPT)]; /* the last characters received */
    char *caught;   /* received text that completion asked for, not for the screen */
    size_t ncaught;
    bool catching;
};

/* What a signal handler needs; there is one standard input in a process. */
static volatile sig_atomic_t interrupt_fd = -1;

bool monitor_client_interrupt(void)
{
    if (interrupt_fd < 0)
        return false;
    return write(interrupt_fd, "\3", 1) == 1;
}

/* ---- the wire ---- */

static void note(struct monitor_client *c, const char *text, size_t n)
{
    size_t keep = sizeof(c->tail) - 1;
    for (size_t i = n > keep ? n - keep : 0; i < n; i++) {
        memmove(c->tail, c->tail + 1, keep);
        c->tail[keep - 1] = text[i];
    }
    c->wanted = !memcmp(c->tail, PROMPT, keep);
}

/* Takes what has come; the prompt itself is left to whoever shows it. False: the end. */
static bool take(struct monitor_client *c, bool show_prompt)
{
    char buf[4096];
    ssize_t n = read(c->fd, buf, sizeof(buf));
    if (n < 0 && errno == EINTR)
        return true;
    if (n <= 0) {
        c->ended = true;
        return false;
    }
    note(c, buf, (size_t)n);
    if (c->catching) {
        char *more = realloc(c->caught, c->ncaught + (size_t)n + 1);
        if (more) {
            c->caught = more;
            memcpy(c->caught + c->ncaught, buf, (size_t)n);
            c->ncaught += (size_t)n;
            c->caught[c->ncaught] = 0;
        }
        return true;
    }
    size_t shown = (size_t)n;
    if (c->wanted && !show_prompt)
        shown = shown > strlen(PROMPT) ? shown - strlen(PROMPT) : 0;
    fwrite(buf, 1, shown, stdout);
    fflush(stdout);
    return true;
}

static void put(struct monitor_client *c, const char *text, size_t n)
{
    while (n && !c->ended) {
        ssize_t sent = send(c->fd, text, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0) {
            c->ended = true;
            return;
        }
        text += sent;
        n -= (size_t)sent;
    }
}

/* ---- without a terminal: line by line, each when the monitor wants one ---- */

static void plain(struct monitor_client *c)
{
    char *line = NULL;
    size_t cap = 0;
    while (!c->ended) {
        while (!c->wanted && take(c, false))
            ;
        if (c->ended)
            break;
        ssize_t n = getline(&line, &cap, stdin);
        if (n <= 0) { /* no more commands: the machine goes on alone */
            shutdown(c->fd, SHUT_WR);
            while (take(c, false))
                ;
            break;
        }
        c->wanted = false;
        memset(c->tail, 0, sizeof(c->tail));
        put(c, line, (size_t)n);
    }
    free(line);
}

/* ---- on a terminal ---- */
#ifdef HAVE_LIBEDIT

static char *prompt_text(EditLine *el)
{
    (void)el;
    static char text[] = PROMPT;
    return text;
}

/* A character from the terminal; what the machine says meanwhile is shown above the line. */
static int get_char(EditLine *el, wchar_t *out)
{
    struct monitor_client *c;
    el_get(el, EL_CLIENTDATA, &c);
    for (;;) {
        struct pollfd p[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = c->fd, .events = POLLIN}};
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            return -1;
        if (p[1].revents) {
            fputs("\r\033[K", stdout);
            if (!take(c, false))
                return 0;
            el_set(el, EL_REFRESH);
        }
        if (p[0].revents) {
            unsigned char byte;
            ssize_t n = read(STDIN_FILENO, &byte, 1);
            if (n < 0 && (errno == EINTR || errno == EAGAIN))
                continue;
            *out = byte;
            return n == 1 ? 1 : 0;
        }
    }
}

/* What the monitor offers for the line up to the cursor; the common beginning goes into the line. */
static unsigned char complete(EditLine *el, int ch)
{
    struct monitor_client *c;
    const LineInfo *li = el_line(el);
    char command[600];
    (void)ch;
    el_get(el, EL_CLIENTDATA, &c);
    int len = (int)(li->cursor - li->buffer);
    if (!c->wanted || len > 500)
        return CC_ERROR;
    c->catching = true;
    c->ncaught = 0;
    c->wanted = false;
    put(c, command, (size_t)snprintf(command, sizeof(command), "complete %.*s\n", len, li->buffer));
    while (!c->wanted && take(c, false))
        ;
    c->catching = false;
    if (c->ended || c->ncaught <= strlen(PROMPT))
        return CC_ERROR;
    c->caught[c->ncaught - strlen(PROMPT)] = 0;
    size_t common = strcspn(c->caught, "\n");
    unsigned lines = 0;
    for (const char *p = c->caught; *p; p += strcspn(p, "\n") + 1, lines++) {
        size_t same = 0;
        while (same < common && (p[same] | 0x20) == (c->caught[same] | 0x20) && p[same] != '\n')
            same++;
        common = same;
    }
    if (!lines)
        return CC_ERROR;
    if (common >= (size_t)len) {
        char text[256];
        el_deletestr(el, len);
        snprintf(text, sizeof(text), "%.*s%s", (int)common, c->caught, lines == 1 ? " " : "");
        el_insertstr(el, text);
    }
    if (lines > 1 && common <= (size_t)len) {
        fputc('\n', stdout);
        for (char *p = c->caught; *p; p += strcspn(p, "\n") + 1) {
            size_t n = strcspn(p, "\n");
            size_t word = n;
            while (word && p[word - 1] != ' ')
                word--;
            printf("%.*s  ", (int)(n - word), p + word);
        }
        fputc('\n', stdout);
        return CC_REDISPLAY;
    }
    return CC_REFRESH;
}

static void editing(struct monitor_client *c)
{
    EditLine *el = el_init("nestor", stdin, stdout, stderr);
    History *h = history_init();
    HistEvent ev;
    if (!el || !h) {
        plain(c);
        return;
    }
    history(h, &ev, H_SETSIZE, 500);
    el_set(el, EL_CLIENTDATA, c);
    el_set(el, EL_PROMPT, prompt_text);
    el_set(el, EL_EDITOR, "emacs");
    el_set(el, EL_HIST, history, h);
    el_set(el, EL_GETCFN, get_char);
    el_set(el, EL_ADDFN, "nestor-complete", "complete the command", complete);
    el_set(el, EL_BIND, "^I", "nestor-complete", NULL);
    el_source(el, NULL);
    while (!c->wanted && take(c, false))
        ;
    while (!c->ended) {
        int n;
        const char *line = el_gets(el, &n);
        if (c->ended)
            break;
        if (!line || n <= 0) { /* Ctrl-D: the machine goes on alone */
            shutdown(c->fd, SHUT_WR);
            break;
        }
        if (n > 1)
            history(h, &ev, H_ENTER, line);
        c->wanted = false;
        put(c, line, (size_t)n);
        /* An answer comes at once, unless the machine runs: then there is a line to edit all the same. */
        struct pollfd p = {.fd = c->fd, .events = POLLIN};
        while (!c->wanted && !c->ended && poll(&p, 1, 300) > 0)
            take(c, false);
    }
    history_end(h);
    el_end(el);
}
#endif

static void converse(struct monitor_client *c)
{
    interrupt_fd = c->fd;
#ifdef HAVE_LIBEDIT
    if (isatty(STDIN_FILENO) && isatty(STDOUT_FILENO))
        editing(c);
    else
#endif
        plain(c);
    interrupt_fd = -1;
}

/* ---- --monitor stdio ---- */

static void *on_thread(void *arg)
{
    sigset_t all;
    sigfillset(&all); /* signals are the machine's thread's */
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    converse(arg);
    return NULL;
}

struct monitor_client *monitor_client_start(int *fd)
{
    int pair[2];
    struct monitor_client *c = calloc(1, sizeof(*c));
    if (!c || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        free(c);
        return NULL;
    }
    c->fd = pair[0];
    *fd = pair[1];
    if (pthread_create(&c->thread, NULL, on_thread, c)) {
        close(pair[0]);
        close(pair[1]);
        free(c);
        return NULL;
    }
    return c;
}

void monitor_client_end(struct monitor_client *c)
{
    pthread_join(c->thread, NULL);
    close(c->fd);
    free(c->caught);
    free(c);
}

/* ---- nestor monitor PATH ---- */

static void on_interrupt(int signo)
{
    (void)signo;
    monitor_client_interrupt();
}

static int monitor_main(int argc, char **argv)
{
    const char *path = NULL;
    unsigned count;
    int r = options_parse(&command_monitor, argc, argv, NULL, &path, 1, &count);
    if (r)
        return r < 0 ? 0 : r;
    if (!path)
        return usage_error(&command_monitor, "the socket is missing, expected the path given with --monitor unix:PATH");
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const char *name = strncmp(path, "unix:", 5) ? path : path + 5;
    if (strlen(name) >= sizeof(a.sun_path))
        return usage_error(&command_monitor, "%s: expected a path of 1 to %zu bytes", name, sizeof(a.sun_path) - 1);
    strcpy(a.sun_path, name);
    struct monitor_client c = {.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (c.fd < 0 || connect(c.fd, (struct sockaddr *)&a, sizeof(a)))
        return usage_error(&command_monitor, "%s: %s", name, strerror(errno));
    signal(SIGINT, on_interrupt);
    converse(&c);
    close(c.fd);
    free(c.caught);
    return EXIT_OK;
}

static const struct option_row no_options[] = {{0}};
const struct command command_monitor = {
    .name = "monitor", .args = "PATH", .options = no_options, .run = monitor_main,
    .summary = "Talks to the monitor of a running nestor (--monitor unix:PATH). On a terminal lines can be edited,\n"
               "Tab completes, and Ctrl-C holds the machine; otherwise commands come from standard input, line by line.",
};
