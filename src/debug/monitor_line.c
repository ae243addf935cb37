/*
 * The monitor's own connection: lines in, text out, "(nestor) " when it wants a line. A byte of value 3 holds
 * the machine at once; what follows "wait" is read when the machine has stopped.
 */
#include "debug/debugger.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define PROMPT "(nestor) "

static void prompt(struct debugger *g)
{
    if (g->line.fd < 0)
        return;
    fputs(PROMPT, g->line.out);
    fflush(g->line.out);
}

static ssize_t put(void *cookie, const char *text, size_t n)
{
    struct debugger *g = cookie;
    for (size_t done = 0; done < n;) {
        ssize_t sent = send(g->line.fd, text + done, n - done, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return -1;
        done += (size_t)sent;
    }
    return (ssize_t)n;
}

void line_open(struct debugger *g, int fd)
{
    struct monitor_line *l = &g->line;
    l->fd = fd;
    l->nin = 0;
    l->overlong = l->waiting = false;
    /* A stream of our own: a client that has gone must not raise SIGPIPE. */
    l->out = fopencookie(g, "w", (cookie_io_functions_t){.write = put});
    if (!l->out)
        panic("out of memory for the monitor");
    fprintf(l->out, "nestor " NESTOR_VERSION ", engine %s; help lists the commands\n", g->m->engine->name);
    if (g->stop == STOP_NONE)
        prompt(g);
}

void line_close(struct debugger *g)
{
    struct monitor_line *l = &g->line;
    if (l->fd < 0)
        return;
    fclose(l->out);
    close(l->fd);
    l->fd = -1;
    l->out = NULL;
}

static void hang_up(struct debugger *g)
{
    line_close(g);
    debugger_client_left(g, false);
}

/* Reads what has come; a byte 3 acts at once. False: nothing. */
bool line_receive(struct debugger *g)
{
    struct monitor_line *l = &g->line;
    struct pollfd p = {.fd = l->fd, .events = POLLIN};
    if (l->fd < 0 || l->nin == sizeof(l->in) || poll(&p, 1, 0) <= 0)
        return false;
    ssize_t n = recv(l->fd, l->in + l->nin, sizeof(l->in) - l->nin, MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return false;
    if (n <= 0) {
        hang_up(g);
        return false;
    }
    size_t kept = l->nin;
    for (size_t i = l->nin; i < l->nin + (size_t)n; i++) {
        if (l->in[i] != 3)
            l->in[kept++] = l->in[i];
        else if (g->stop == STOP_NONE && g->fd < 0)
            debugger_stop(g, debugger_cpu(g)->index, STOP_ASKED);
    }
    l->nin = kept;
    return true;
}

static bool one_line(struct monitor_line *l, char *line)
{
    char *end = memchr(l->in, '\n', l->nin);
    if (!end) {
        if (l->nin == sizeof(l->in)) { /* nobody's command is that long */
            l->overlong = true;
            l->nin = 0;
        }
        return false;
    }
    size_t n = (size_t)(end - l->in);
    memcpy(line, l->in, n);
    line[n && line[n - 1] == '\r' ? n - 1 : n] = 0;
    l->nin -= n + 1;
    memmove(l->in, end + 1, l->nin);
    return true;
}

void line_handle(struct debugger *g)
{
    struct monitor_line *l = &g->line;
    char line[sizeof(l->in) + 1];
    while (l->fd >= 0 && !l->waiting && one_line(l, line)) {
        enum stop_kind before = g->stop;
        if (l->overlong)
            fputs("that line is too long\n", l->out);
        else if (line[strspn(line, " \t")])
            monitor_command(g, line, l->out, false);
        l->overlong = false;
        if (fflush(l->out) || ferror(l->out)) {
            hang_up(g);
            return;
        }
        if (!l->waiting && !(before == STOP_NONE && g->stop != STOP_NONE))
            prompt(g);
        if (before != STOP_NONE && g->stop == STOP_NONE)
            return; /* the machine runs: what follows comes between its slices */
        if (before == STOP_NONE && g->stop != STOP_NONE)
            return; /* and is held: what follows comes behind the report */
    }
}

void line_report_stop(struct debugger *g)
{
    static const char *const kinds[] = {"", "step", "gdb's breakpoint", "gdb's breakpoint", "", "watchpoint", "", "asked for", "the end"};
    struct monitor_line *l = &g->line;
    if (l->fd < 0)
        return;
    const struct vcpu *v = g->m->cpu[g->stop_cpu];
    gva_t la = (v->seg_base[SEG_CS] + v->rip) & v->linear_mask;
    char symbol[160], level[48];
    g->note[strcspn(g->note, "\n")] = 0;
    fprintf(l->out, "stopped: %s%sprocessor %u, %s, RIP 0x%" PRIx64 "%s%s%s\n", g->note, g->note[0] ? "; " : "", v->index, cpu_level_name(v, level), v->rip,
            symbols_name(g->symbols, la, symbol, sizeof(symbol)), *kinds[g->stop] && !g->note[0] ? "; " : "", g->note[0] ? "" : kinds[g->stop]);
    l->waiting = false;
    prompt(g);
}

void line_ended(struct debugger *g, const char *how)
{
    if (g->line.fd < 0)
        return;
    fprintf(g->line.out, "ended: %s\n", how);
    line_close(g);
}
