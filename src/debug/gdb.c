/*
 * gdb's remote serial protocol (gdb manual, "Remote Serial Protocol"): one client at a time on a Unix
 * or TCP socket, served from the run loop between slices. Threads are processors, numbered from 1.
 */
#include "debug/debugger.h"

#include "cpu/mem.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define PACKET_MAX 16384u

/* ---- the wire ---- */

static void hang_up(struct debugger *g)
{
    if (g->fd >= 0)
        close(g->fd);
    g->fd = -1;
    g->nin = 0;
    if (g->attached)
        debugger_detach(g);
    g->resumed = true;
}

static void send_all(struct debugger *g, const char *p, size_t n)
{
    while (n && g->fd >= 0) {
        ssize_t sent = send(g->fd, p, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0) {
            hang_up(g);
            return;
        }
        p += sent;
        n -= (size_t)sent;
    }
}

/* @n bytes, escaped where the protocol asks for it. */
static void send_packet_bytes(struct debugger *g, const char *data, size_t n)
{
    char *buf = malloc(2 * n + 8), *p = buf;
    u8 sum = 0;
    if (!buf)
        panic("out of memory for a packet of %zu bytes", n);
    *p++ = '$';
    for (size_t i = 0; i < n; i++) {
        char c = data[i];
        if (c == '$' || c == '#' || c == '}' || c == '*') {
            *p++ = '}';
            sum += '}';
            c ^= 0x20;
        }
        *p++ = c;
        sum += (u8)c;
    }
    p += sprintf(p, "#%02x", sum);
    send_all(g, buf, (size_t)(p - buf));
    free(buf);
}

static void reply(struct debugger *g, const char *text) { send_packet_bytes(g, text, strlen(text)); }

/* Text on gdb's console: allowed while the target runs, and inside a monitor command. */
static void console(struct debugger *g, const char *text, size_t n)
{
    for (size_t at = 0; at < n && g->fd >= 0;) {
        char hex[1 + 2 * 1024 + 1], *p = hex;
        *p++ = 'O';
        for (unsigned k = 0; k < 1024 && at < n; k++, at++)
            p += sprintf(p, "%02x", (u8)text[at]);
        reply(g, hex);
    }
}

/* ---- stops ---- */

static void report_stop(struct debugger *g)
{
    char text[128];
    unsigned thread = g->stop_cpu + 1;
    struct vcpu_debug *d = &g->cpu[g->stop_cpu].d;
    switch (g->stop) {
    case STOP_BREAK: snprintf(text, sizeof(text), "T05thread:%x;%s", thread, g->swbreak ? "swbreak:;" : ""); break;
    case STOP_HWBREAK: snprintf(text, sizeof(text), "T05thread:%x;%s", thread, g->swbreak ? "hwbreak:;" : ""); break;
    case STOP_WATCH:
        snprintf(text, sizeof(text), "T05thread:%x;%s:%" PRIx64 ";", thread,
                 d->hit_watch.kind == WATCH_WRITE ? "watch" : d->hit_watch.kind == WATCH_READ ? "rwatch" : "awatch", d->hit_la);
        break;
    case STOP_ASKED: snprintf(text, sizeof(text), "T02thread:%x;", thread); break;
    case STOP_ENDING: snprintf(text, sizeof(text), "T0bthread:%x;", thread); break;
    default: snprintf(text, sizeof(text), "T05thread:%x;", thread); break;
    }
    reply(g, text);
}

static struct vcpu *general_cpu(struct debugger *g) { return g->m->cpu[g->general < g->m->ncpus ? g->general : 0]; }

/* ---- packets ---- */

static u64 hex_number(char **p)
{
    u64 n = 0;
    for (; isxdigit((unsigned char)**p); ++*p)
        n = n << 4 | (u64)(isdigit((unsigned char)**p) ? **p - '0' : (**p | 0x20) - 'a' + 10);
    return n;
}

static bool take_char(char **p, char c) { return **p == c ? ++*p, true : false; }

static void read_registers(struct debugger *g)
{
    char text[PACKET_MAX], *p = text;
    for (unsigned n = 0; n < g->ng; n++) {
        register_read(g, general_cpu(g), n, p);
        p += strlen(p);
    }
    reply(g, text);
}

static void write_registers(struct debugger *g, const char *hex)
{
    char old[130];
    bool ok = true;
    for (unsigned n = 0; n < g->ng; n++) {
        register_read(g, general_cpu(g), n, old);
        size_t len = strlen(old);
        if (strlen(hex) < len)
            break;
        if (strncasecmp(hex, old, len))
            ok &= register_write(g, general_cpu(g), n, hex);
        hex += len;
    }
    reply(g, ok ? "OK" : "E22");
}

/* Linear memory through the processor's current tables. */
static bool readable(struct vcpu *v, gva_t la) { return !cpu_long64(v) || cpu_canonical(v, la); }

static void read_memory(struct debugger *g, char *p)
{
    char text[PACKET_MAX];
    u8 page[PACKET_MAX / 2];
    struct vcpu *v = general_cpu(g);
    gva_t la = hex_number(&p);
    u64 len = take_char(&p, ',') ? hex_number(&p) : 0, got = 0;
    if (len > sizeof(page) - 1)
        len = sizeof(page) - 1;
    while (got < len) {
        u64 n = PAGE_SIZE - ((la + got) & ~PAGE_MASK);
        if (n > len - got)
            n = len - got;
        if (!readable(v, la + got) || !mem_peek(v, la + got, page + got, n))
            break;
        got += n;
    }
    if (!got && len) {
        reply(g, "E14");
        return;
    }
    text[0] = 0;
    for (u64 i = 0; i < got; i++)
        sprintf(text + 2 * i, "%02x", page[i]);
    reply(g, text);
}

static void write_memory(struct debugger *g, char *p, char *end, bool binary)
{
    u8 data[PACKET_MAX];
    struct vcpu *v = general_cpu(g);
    gva_t la = hex_number(&p);
    u64 len = take_char(&p, ',') ? hex_number(&p) : 0, n = 0;
    if (!take_char(&p, ':') || len > sizeof(data)) {
        reply(g, "E22");
        return;
    }
    for (; n < len && p < end; n++) {
        unsigned byte;
        if (binary) {
            data[n] = (u8)(*p == '}' && p + 1 < end ? *++p ^ 0x20 : *p);
            p++;
        } else {
            if (sscanf(p, "%2x", &byte) != 1 || p + 1 >= end)
                break;
            data[n] = (u8)byte;
            p += 2;
        }
    }
    reply(g, n == len && (!len || (readable(v, la) && mem_poke(v, la, data, len))) ? "OK" : "E14");
}

static void breakpoint_packet(struct debugger *g, char *p)
{
    bool set = *p++ == 'Z';
    char type = *p++;
    gva_t la = take_char(&p, ',') ? hex_number(&p) : 0;
    u64 kind = take_char(&p, ',') ? hex_number(&p) : 0;
    bool ok = false;
    switch (type) {
    case '0': case '1':
        ok = set ? debugger_break(g, la, type == '1') : debugger_unbreak(g, la, type == '1');
        break;
    case '2': case '3': case '4': {
        unsigned access = type == '2' ? WATCH_WRITE : type == '3' ? WATCH_READ : WATCH_READ | WATCH_WRITE;
        ok = set ? debugger_watch(g, la, kind, access) : debugger_unwatch(g, la, kind, access);
        break;
    }
    default:
        reply(g, "");
        return;
    }
    reply(g, ok ? "OK" : "E22");
}

static void resume(struct debugger *g)
{
    debugger_resume(g);
    g->resumed = true;
}

/* vCont;ACTION[:THREAD]...: the first action that names a thread, or none, is the thread's. */
static void vcont(struct debugger *g, char *p)
{
    bool given[MACHINE_MAX_CPUS] = {false};
    for (unsigned i = 0; i < g->m->ncpus; i++)
        g->cpu[i].run = g->cpu[i].step = false;
    while (take_char(&p, ';')) {
        char action = *p ? *p++ : 0;
        if (action == 'C' || action == 'S')
            hex_number(&p); /* a signal: there are none */
        s64 thread = -1;
        if (take_char(&p, ':'))
            thread = take_char(&p, '-') ? (hex_number(&p), -1) : (s64)hex_number(&p);
        for (unsigned i = 0; i < g->m->ncpus; i++) {
            if (given[i] || (thread > 0 && thread != i + 1))
                continue;
            given[i] = true;
            g->cpu[i].run = action != 't';
            g->cpu[i].step = action == 's' || action == 'S';
        }
    }
    resume(g);
}

static void simple_resume(struct debugger *g, char *p, bool step)
{
    struct vcpu *v = general_cpu(g);
    if (*p)
        v->rip = v->next_rip = hex_number(&p);
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        g->cpu[i].run = true;
        g->cpu[i].step = step && i == v->index;
    }
    resume(g);
}

static void thread_list(struct debugger *g)
{
    char text[8 * MACHINE_MAX_CPUS], *p = text;
    for (unsigned i = 0; i < g->m->ncpus; i++)
        p += sprintf(p, "%c%x", i ? ',' : 'm', i + 1);
    reply(g, text);
}

static void thread_info(struct debugger *g, char *p)
{
    static const char *const modes[] = {"real mode", "virtual-8086 mode", "16-bit protected mode", "32-bit protected mode",
                                        "16-bit compatibility mode", "32-bit compatibility mode", "64-bit mode"};
    static const char *const activities[] = {"", ", halted", ", shut down", ", waits for SIPI", ", in MWAIT"};
    char text[128], hex[2 * sizeof(text) + 1];
    u64 thread = hex_number(&p);
    if (!thread || thread > g->m->ncpus) {
        reply(g, "E22");
        return;
    }
    const struct vcpu *v = g->m->cpu[thread - 1];
    snprintf(text, sizeof(text), "processor %u, %s, %s, CPL %u%s", v->index, cpu_level_name(v), modes[v->mode], v->cpl, activities[v->activity]);
    for (unsigned i = 0; !i || text[i - 1]; i++)
        sprintf(hex + 2 * i, "%02x", (u8)text[i]);
    hex[2 * strlen(text)] = 0;
    reply(g, hex);
}

static void monitor_packet(struct debugger *g, const char *hex)
{
    char line[1024], *out = NULL;
    size_t n = 0, size = 0;
    for (; n + 1 < sizeof(line) && isxdigit((unsigned char)hex[0]) && isxdigit((unsigned char)hex[1]); hex += 2) {
        unsigned byte;
        if (sscanf(hex, "%2x", &byte) != 1)
            break;
        line[n++] = (char)byte;
    }
    line[n] = 0;
    FILE *f = open_memstream(&out, &size);
    if (!f)
        panic("out of memory for a monitor command");
    monitor_command(g, line, f);
    fclose(f);
    console(g, out, size);
    free(out);
    if (g->fd >= 0)
        reply(g, "OK");
}

/* qXfer:features:read:target.xml:OFFSET,LENGTH */
static void send_xml(struct debugger *g, char *p)
{
    u64 offset = hex_number(&p), len = take_char(&p, ',') ? hex_number(&p) : 0;
    if (len > PACKET_MAX / 2)
        len = PACKET_MAX / 2;
    if (offset > g->xml_size)
        offset = g->xml_size;
    bool more = g->xml_size - offset > len;
    if (!more)
        len = g->xml_size - offset;
    char text[PACKET_MAX];
    text[0] = more ? 'm' : 'l';
    memcpy(text + 1, g->xml + offset, len);
    send_packet_bytes(g, text, len + 1);
}

static bool prefix(char **p, const char *word)
{
    size_t n = strlen(word);
    if (strncmp(*p, word, n))
        return false;
    *p += n;
    return true;
}

static void query(struct debugger *g, char *p)
{
    char text[160];
    if (prefix(&p, "qSupported")) {
        g->swbreak = strstr(p, "swbreak+") != NULL;
        snprintf(text, sizeof(text), "PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;hwbreak+", PACKET_MAX - 64);
        reply(g, text);
    } else if (prefix(&p, "QStartNoAckMode")) {
        reply(g, "OK");
        g->no_ack = true;
    } else if (prefix(&p, "qXfer:features:read:target.xml:")) {
        send_xml(g, p);
    } else if (prefix(&p, "qXfer:features:read:")) {
        reply(g, "E00");
    } else if (prefix(&p, "qfThreadInfo")) {
        thread_list(g);
    } else if (prefix(&p, "qsThreadInfo")) {
        reply(g, "l");
    } else if (prefix(&p, "qThreadExtraInfo,")) {
        thread_info(g, p);
    } else if (prefix(&p, "qC")) {
        snprintf(text, sizeof(text), "QC%x", g->stop_cpu + 1);
        reply(g, text);
    } else if (prefix(&p, "qAttached")) {
        reply(g, "1");
    } else if (prefix(&p, "qRcmd,")) {
        monitor_packet(g, p);
    } else {
        reply(g, "");
    }
}

static void set_thread(struct debugger *g, char *p)
{
    char operation = *p++;
    if (*p == '-') {
        reply(g, "OK");
        return;
    }
    u64 thread = hex_number(&p);
    if (thread > g->m->ncpus) {
        reply(g, "E22");
        return;
    }
    if (thread && (operation == 'g' || operation == 'c'))
        g->general = (unsigned)thread - 1;
    reply(g, "OK");
}

static void kill_machine(struct debugger *g)
{
    nestor_stop(g->m);
    g->ended = true;
    hang_up(g);
}

static void packet(struct debugger *g, char *p, size_t n)
{
    char *end = p + n, text[130];
    *end = 0;
    switch (*p) {
    case '?': report_stop(g); break;
    case 'g': read_registers(g); break;
    case 'G': write_registers(g, p + 1); break;
    case 'p':
        p++;
        reply(g, register_read(g, general_cpu(g), (unsigned)hex_number(&p), text) ? text : "E22");
        break;
    case 'P': {
        p++;
        unsigned reg = (unsigned)hex_number(&p);
        reply(g, take_char(&p, '=') && register_write(g, general_cpu(g), reg, p) ? "OK" : "E22");
        break;
    }
    case 'm': read_memory(g, p + 1); break;
    case 'M': write_memory(g, p + 1, end, false); break;
    case 'X': write_memory(g, p + 1, end, true); break;
    case 'c': simple_resume(g, p + 1, false); break;
    case 's': simple_resume(g, p + 1, true); break;
    case 'C': case 'S': {
        bool step = *p++ == 'S';
        hex_number(&p);
        simple_resume(g, take_char(&p, ';') ? p : end, step);
        break;
    }
    case 'H': set_thread(g, p + 1); break;
    case 'T': {
        p++;
        u64 thread = hex_number(&p);
        reply(g, thread && thread <= g->m->ncpus ? "OK" : "E22");
        break;
    }
    case 'Z': case 'z': breakpoint_packet(g, p); break;
    case 'q': case 'Q': query(g, p); break;
    case 'D':
        reply(g, "OK");
        hang_up(g);
        break;
    case 'k': kill_machine(g); break;
    case 'v':
        if (prefix(&p, "vCont?"))
            reply(g, "vCont;c;C;s;S;t");
        else if (prefix(&p, "vCont"))
            vcont(g, p);
        else if (prefix(&p, "vKill")) {
            reply(g, "OK");
            kill_machine(g);
        } else
            reply(g, "");
        break;
    default: reply(g, ""); break;
    }
}

/* Reads what has come; false: nothing within @timeout ms. */
static bool receive(struct debugger *g, int timeout)
{
    struct pollfd p = {.fd = g->fd, .events = POLLIN};
    if (g->fd < 0 || poll(&p, 1, timeout) <= 0)
        return false;
    if (g->nin == sizeof(g->in))
        g->nin = 0; /* longer than any packet we have offered to take */
    ssize_t n = recv(g->fd, g->in + g->nin, sizeof(g->in) - g->nin, 0);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return false;
    if (n <= 0) {
        hang_up(g);
        return false;
    }
    g->nin += (size_t)n;
    return true;
}

static void drop(struct debugger *g, size_t n)
{
    memmove(g->in, g->in + n, g->nin - n);
    g->nin -= n;
}

/* Handles the packets that are complete, until one lets the machine run. */
static void handle_input(struct debugger *g)
{
    while (g->nin && !g->resumed && g->fd >= 0) {
        if (g->in[0] != '$') { /* acknowledgements, a late interrupt */
            drop(g, 1);
            continue;
        }
        char *hash = memchr(g->in, '#', g->nin);
        if (!hash || (size_t)(hash - g->in) + 3 > g->nin)
            return;
        size_t n = (size_t)(hash - g->in) - 1, whole = n + 4;
        u8 sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += (u8)g->in[1 + i];
        char sent[3] = {hash[1], hash[2], 0}, *copy;
        bool good = g->no_ack || strtoul(sent, NULL, 16) == sum;
        if (!g->no_ack)
            send_all(g, good ? "+" : "-", 1);
        if (good && g->fd >= 0 && (copy = malloc(n + 1))) {
            memcpy(copy, g->in + 1, n);
            drop(g, whole);
            packet(g, copy, n);
            free(copy);
        } else if (g->nin >= whole) {
            drop(g, whole);
        }
    }
}

/* The machine is held: serves the client until it lets go. */
static void serve(struct debugger *g)
{
    u64 stopped = clock_stop(&g->m->clock);
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        g->cpu[i].held_at = g->cpu[i].d.held;
        g->cpu[i].held_rip = g->m->cpu[i]->rip;
    }
    machine_serial_flush(g->m);
    g->resumed = false;
    handle_input(g);
    while (!g->resumed && g->fd >= 0 && !atomic_load_explicit(&g->m->want_stop, memory_order_relaxed))
        if (receive(g, 100))
            handle_input(g);
    clock_continue(&g->m->clock, stopped);
}

static bool connected(struct debugger *g, int timeout)
{
    struct pollfd p = {.fd = g->listener, .events = POLLIN};
    if (poll(&p, 1, timeout) <= 0)
        return false;
    g->fd = accept(g->listener, NULL, NULL);
    if (g->fd < 0)
        return false;
    int on = 1;
    setsockopt(g->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* fails on Unix sockets, which do not delay */
    g->nin = 0;
    g->no_ack = g->swbreak = false;
    g->general = 0;
    debugger_attach(g);
    debugger_stop(g, 0, STOP_ASKED);
    return true;
}

static bool between(struct nestor *m)
{
    struct debugger *g = m->debugger_state;
    if (g->fd < 0) {
        while (!connected(g, g->wait ? 100 : 0)) {
            if (!g->wait)
                return true;
            if (atomic_load_explicit(&m->want_stop, memory_order_relaxed))
                return true;
        }
        g->wait = false;
        serve(g);
        return true;
    }
    if (g->stop == STOP_NONE && receive(g, 0)) {
        /* Only an interrupt makes sense now. */
        bool asked = memchr(g->in, 3, g->nin) != NULL;
        g->nin = 0;
        if (asked)
            debugger_stop(g, g->general < m->ncpus ? g->general : 0, STOP_ASKED);
    }
    if (g->stop != STOP_NONE && g->fd >= 0) {
        if (g->note[0])
            console(g, g->note, strlen(g->note));
        report_stop(g);
        serve(g);
    }
    return true;
}

static void ending(struct nestor *m, const struct nestor_result *result)
{
    struct debugger *g = m->debugger_state;
    char text[64];
    if (g->fd < 0)
        return;
    const char *why = result->reason == NESTOR_TRIPLE_FAULT ? "The guest ended in a triple fault; this is the state it left.\n"
        : result->reason == NESTOR_HALTED                   ? "Every processor is halted for ever; this is the state.\n" : NULL;
    if (why) {
        debugger_stop(g, 0, STOP_ENDING);
        console(g, why, strlen(why));
        report_stop(g);
        serve(g);
    }
    if (g->fd >= 0) {
        snprintf(text, sizeof(text), "W%02x", result->reason == NESTOR_GUEST_EXIT ? result->status & 0xff : 0);
        reply(g, text);
    }
}

static void debugger_free(struct nestor *m)
{
    struct debugger *g = m->debugger_state;
    for (unsigned i = 0; i < m->ncpus; i++)
        m->cpu[i]->debug = NULL;
    if (g->fd >= 0)
        close(g->fd);
    if (g->listener >= 0)
        close(g->listener);
    if (g->path)
        unlink(g->path);
    free(g->path);
    free(g->regs);
    free(g->xml);
    free(g);
    m->debugger = NULL;
}

static const struct machine_debugger gdb_debugger = {.between = between, .run = debugger_run, .ending = ending, .free = debugger_free};

/* ---- listening ---- */

static int listen_unix(struct debugger *g, const char *path, struct error *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct stat st;
    if (!*path || strlen(path) >= sizeof(a.sun_path))
        return error_set(err, "--gdb unix:%s: expected a path of 1 to %zu bytes", path, sizeof(a.sun_path) - 1);
    strcpy(a.sun_path, path);
    if (!lstat(path, &st) && S_ISSOCK(st.st_mode))
        unlink(path); /* of a run before */
    g->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (g->listener < 0 || bind(g->listener, (struct sockaddr *)&a, sizeof(a)) || listen(g->listener, 1))
        return error_set(err, "--gdb unix:%s: %s", path, strerror(errno));
    g->path = strdup(path);
    return 0;
}

static int listen_tcp(struct debugger *g, const char *address, struct error *err)
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
        return error_set(err, "--gdb %s: expected unix:PATH or [HOST:]PORT, a port from 1 to 65535", address);
    int bad = getaddrinfo(host, port, &hints, &list);
    if (bad)
        return error_set(err, "--gdb %s: %s", address, gai_strerror(bad));
    int on = 1, r = 0;
    g->listener = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (g->listener >= 0)
        setsockopt(g->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (g->listener < 0 || bind(g->listener, list->ai_addr, list->ai_addrlen) || listen(g->listener, 1))
        r = error_set(err, "--gdb %s: %s", address, strerror(errno));
    freeaddrinfo(list);
    return r;
}

int nestor_gdb(struct nestor *m, const char *address, bool wait, struct nestor_error *nerr)
{
    struct error err = {""};
    struct debugger *g = calloc(1, sizeof(*g));
    if (!g)
        panic("out of memory for the debugger");
    g->m = m;
    g->fd = g->listener = -1;
    g->level = LEVEL_ANY;
    g->wait = wait;
    m->debugger_state = g;
    m->debugger = &gdb_debugger;
    registers_make(g);
    for (unsigned i = 0; i < m->ncpus; i++)
        g->cpu[i].run = true;
    if (strncmp(address, "unix:", 5) ? listen_tcp(g, address, &err) : listen_unix(g, address + 5, &err)) {
        debugger_free(m);
        if (nerr)
            snprintf(nerr->text, sizeof(nerr->text), "%s", err.text);
        return -1;
    }
    return 0;
}
