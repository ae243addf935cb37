/*
 * The debugger's clients, gdb and the monitor: sockets, the machine held for them, and what the run loop
 * calls. Served from the machine's own thread, between slices.
 */
#include "debug/debugger.h"

#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- holding the machine ---- */

static bool stopping(const struct nestor *m) { return atomic_load_explicit(&m->want_stop, memory_order_relaxed); }

/* Waits for anything from anybody. */
static void wait_input(struct debugger *g, int timeout)
{
    struct pollfd p[4] = {{.fd = g->fd, .events = POLLIN}, {.fd = g->line.fd, .events = POLLIN}, {.fd = g->fd < 0 ? g->listener : -1, .events = POLLIN},
                          {.fd = g->line.fd < 0 ? g->line.listener : -1, .events = POLLIN}};
    poll(p, 4, timeout);
}

static bool accept_one(int listener, int *fd)
{
    struct pollfd p = {.fd = listener, .events = POLLIN};
    if (listener < 0 || *fd >= 0 || poll(&p, 1, 0) <= 0)
        return false;
    *fd = accept(listener, NULL, NULL);
    return *fd >= 0;
}

static void accept_clients(struct debugger *g)
{
    int line = -1;
    if (accept_one(g->listener, &g->fd)) {
        int on = 1;
        setsockopt(g->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* fails on Unix sockets, which do not delay */
        g->nin = 0;
        g->no_ack = g->swbreak = g->follow = g->wait = false;
        g->described = DESCRIBE_64;
        g->general = 0;
        debugger_attach(g);
        if (g->stop == STOP_NONE)
            debugger_stop(g, 0, STOP_ASKED);
    }
    if (g->line.fd < 0 && accept_one(g->line.listener, &line)) {
        debugger_attach(g);
        if (g->wait && g->stop == STOP_NONE)
            debugger_stop(g, 0, STOP_ASKED);
        g->wait = false;
        line_open(g, line);
    }
}

/* The machine is held: serves the clients until one lets it go. */
static void serve(struct debugger *g)
{
    u64 stopped = clock_stop(&g->m->clock);
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        g->cpu[i].held_at = g->cpu[i].d.held;
        g->cpu[i].held_rip = g->m->cpu[i]->rip;
    }
    machine_serial_flush(g->m);
    g->resumed = false;
    for (bool first = true; !g->resumed && (g->fd >= 0 || g->line.fd >= 0) && !stopping(g->m); first = false) {
        if (!first)
            wait_input(g, 100);
        accept_clients(g);
        gdb_receive(g);
        gdb_handle_input(g);
        if (!g->resumed)
            line_receive(g);
        if (!g->resumed)
            line_handle(g);
    }
    clock_continue(&g->m->clock, stopped);
}

static void report(struct debugger *g)
{
    if (g->fd >= 0) {
        if (g->note[0])
            gdb_console(g, g->note, strlen(g->note));
        gdb_report_stop(g);
    }
    line_report_stop(g);
}

static bool between(struct nestor *m)
{
    struct debugger *g = m->debugger_state;
    bool had_gdb = g->fd >= 0;
    accept_clients(g);
    while (g->wait && !stopping(m)) {
        wait_input(g, 100);
        accept_clients(g);
    }
    if (!had_gdb && g->fd >= 0) { /* it asks for the reason itself */
        line_report_stop(g);
        serve(g);
        return true;
    }
    if (g->stop == STOP_NONE && gdb_receive(g)) {
        /* Only an interrupt makes sense now. */
        bool asked = memchr(g->in, 3, g->nin) != NULL;
        g->nin = 0;
        if (asked)
            debugger_stop(g, g->general < m->ncpus ? g->general : 0, STOP_ASKED);
    }
    line_receive(g);
    if (g->stop == STOP_NONE && g->line.nin) /* a stop is reported before anything else is done */
        line_handle(g);
    if (g->stop != STOP_NONE && (g->fd >= 0 || g->line.fd >= 0)) {
        report(g);
        serve(g);
    }
    return true;
}

static void ending(struct nestor *m, const struct nestor_result *result)
{
    struct debugger *g = m->debugger_state;
    const char *why = result->reason == NESTOR_TRIPLE_FAULT ? "The guest ended in a triple fault; this is the state it left.\n"
        : result->reason == NESTOR_HALTED                   ? "Every processor is halted for ever; this is the state.\n" : NULL;
    if (why && (g->fd >= 0 || g->line.fd >= 0)) {
        debugger_stop(g, 0, STOP_ENDING);
        snprintf(g->note, sizeof(g->note), "%s", why);
        report(g);
        serve(g);
    }
    if (g->fd >= 0)
        gdb_ended(g, result->reason == NESTOR_GUEST_EXIT ? result->status : 0);
    static const char *const ends[] = {"power-off", "the guest's exit port", "reset", "triple fault", "halted for ever", "time-out", "stopped"};
    line_ended(g, ends[result->reason]);
}

/* ---- life ---- */

static void debugger_free(struct nestor *m)
{
    struct debugger *g = m->debugger_state;
    for (unsigned i = 0; i < m->ncpus; i++)
        m->cpu[i]->debug = NULL;
    if (g->fd >= 0)
        close(g->fd);
    line_close(g);
    const int listeners[] = {g->listener, g->line.listener};
    char *const paths[] = {g->path, g->line.path};
    for (unsigned n = 0; n < 2; n++) {
        if (listeners[n] >= 0)
            close(listeners[n]);
        if (paths[n])
            unlink(paths[n]);
        free(paths[n]);
    }
    for (unsigned n = 0; n < DESCRIPTIONS; n++) {
        free(g->target[n].regs);
        free(g->target[n].xml);
    }
    free(g->mark);
    symbols_free(g->symbols);
    free(g);
    m->debugger = NULL;
    m->debugger_state = NULL;
}

static const struct machine_debugger debugger = {.between = between, .run = debugger_run, .ending = ending, .free = debugger_free};

static struct debugger *debugger_of(struct nestor *m)
{
    if (m->debugger)
        return m->debugger_state;
    struct debugger *g = calloc(1, sizeof(*g));
    if (!g || !(g->symbols = symbols_new()))
        panic("out of memory for the debugger");
    g->m = m;
    g->fd = g->listener = g->line.fd = g->line.listener = -1;
    m->debugger_state = g;
    m->debugger = &debugger;
    registers_make(g);
    for (unsigned i = 0; i < m->ncpus; i++)
        g->cpu[i].run = true;
    machine_profile_exits(m);
    return g;
}

/* ---- listening ---- */

static int listen_unix(const char *option, const char *path, char **kept, struct error *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct stat st;
    if (!*path || strlen(path) >= sizeof(a.sun_path))
        return error_set(err, "%s unix:%s: expected a path of 1 to %zu bytes", option, path, sizeof(a.sun_path) - 1);
    strcpy(a.sun_path, path);
    if (!lstat(path, &st) && S_ISSOCK(st.st_mode))
        unlink(path); /* of a run before */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 1)) {
        error_set(err, "%s unix:%s: %s", option, path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    *kept = strdup(path);
    return fd;
}

static int listen_tcp(const char *option, const char *address, struct error *err)
{
    char host[256] = "127.0.0.1";
    const char *colon = strrchr(address, ':'), *port = colon ? colon + 1 : address;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *list;
    if (colon && colon != address) {
        size_t n = (size_t)(colon - address);
        bool brackets = address[0] == '[' && address[n - 1] == ']';
        if (n >= sizeof(host))
            n = sizeof(host) - 1;
        snprintf(host, sizeof(host), "%.*s", (int)(brackets ? n - 2 : n), address + brackets);
    }
    char *end;
    unsigned long number = strtoul(port, &end, 10);
    if (!isdigit((unsigned char)*port) || *end || number < 1 || number > 65535)
        return error_set(err, "%s %s: expected unix:PATH or [HOST:]PORT, a port from 1 to 65535", option, address);
    int bad = getaddrinfo(host, port, &hints, &list);
    if (bad)
        return error_set(err, "%s %s: %s", option, address, gai_strerror(bad));
    int on = 1, fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (fd < 0 || bind(fd, list->ai_addr, list->ai_addrlen) || listen(fd, 1)) {
        error_set(err, "%s %s: %s", option, address, strerror(errno));
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    return fd;
}

int debugger_listen(const char *option, const char *address, char **path, struct error *err)
{
    return strncmp(address, "unix:", 5) ? listen_tcp(option, address, err) : listen_unix(option, address + 5, path, err);
}

static int failed(const struct error *err, struct nestor_error *nerr)
{
    if (nerr)
        snprintf(nerr->text, sizeof(nerr->text), "%s", err->text);
    return -1;
}

int nestor_gdb(struct nestor *m, const char *address, bool wait, struct nestor_error *nerr)
{
    struct error err = {""};
    struct debugger *g = debugger_of(m);
    g->listener = debugger_listen("--gdb", address, &g->path, &err);
    g->wait |= wait;
    return g->listener < 0 ? failed(&err, nerr) : 0;
}

int nestor_monitor(struct nestor *m, const char *address, bool wait, struct nestor_error *nerr)
{
    struct error err = {""};
    struct debugger *g = debugger_of(m);
    if (strncmp(address, "unix:", 5)) {
        error_set(&err, "--monitor %s: expected stdio or unix:PATH", address);
        return failed(&err, nerr);
    }
    g->line.listener = debugger_listen("--monitor", address, &g->line.path, &err);
    g->wait |= wait;
    return g->line.listener < 0 ? failed(&err, nerr) : 0;
}

void nestor_monitor_fd(struct nestor *m, int fd, bool wait)
{
    struct debugger *g = debugger_of(m);
    debugger_attach(g);
    if (wait)
        debugger_stop(g, 0, STOP_ASKED);
    line_open(g, fd);
}

static const char *function_at(const void *symbols, u64 at) { return symbols_function(symbols, at); }

int nestor_symbols(struct nestor *m, const char *path, struct nestor_error *nerr)
{
    struct error err = {""};
    struct symbols *s = debugger_of(m)->symbols;
    if (symbols_load(s, path, &err))
        return failed(&err, nerr);
    for (unsigned i = 0; i < m->ncpus; i++) { /* --perf-map names functions */
        m->cpu[i]->jit_options.function = function_at;
        m->cpu[i]->jit_options.symbols = s;
    }
    return 0;
}
