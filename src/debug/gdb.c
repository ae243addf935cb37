/*
 * gdb's remote serial protocol (gdb manual, "Remote Serial Protocol"). Threads are processors, numbered from
 * 1. The program counter that gdb sees is linear: CS base and RIP, which differ in 16-bit code only.
 */
#include "debug/debugger.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define PACKET_MAX 16384u

/* ---- the wire ---- */

void gdb_hang_up(struct debugger *g)
{
    if (g->fd < 0)
        return;
    close(g->fd);
    g->fd = -1;
    g->nin = 0;
    debugger_client_left(g, true);
}

static void send_all(struct debugger *g, const char *p, size_t n)
{
    while (n && g->fd >= 0) {
        ssize_t sent = send(g->fd, p, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0) {
            gdb_hang_up(g);
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
void gdb_console(struct debugger *g, const char *text, size_t n)
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

void gdb_report_stop(struct debugger *g)
{
    char text[128];
    unsigned thread = g->stop_cpu + 1;
    struct vcpu_debug *d = &g->cpu[g->stop_cpu].d;
    switch (g->stop) {
    case STOP_BREAK: snprintf(text, sizeof(text), "T05thread:%x;%s", thread, g->swbreak ? "swbreak:;" : ""); break;
    case STOP_HWBREAK: snprintf(text, sizeof(text), "T05thread:%x;%s", thread, g->swbreak ? "hwbreak:;" : ""); break;
    case STOP_WATCH:
        if (d->hit_watch.physical || g->note[0]) { /* not one that gdb has set */
            snprintf(text, sizeof(text), "T05thread:%x;", thread);
            break;
        }
        snprintf(text, sizeof(text), "T05thread:%x;%s:%" PRIx64 ";", thread,
                 d->hit_watch.kind == WATCH_WRITE ? "watch" : d->hit_watch.kind == WATCH_READ ? "rwatch" : "awatch", d->hit_la);
        break;
    case STOP_ASKED: snprintf(text, sizeof(text), "T02thread:%x;", thread); break;
    case STOP_ENDING: snprintf(text, sizeof(text), "T0bthread:%x;", thread); break;
    default: snprintf(text, sizeof(text), "T05thread:%x;", thread); break;
    }
    reply(g, text);
}

static const struct target_description *description(const struct debugger *g) { return &g->target[g->described]; }

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
    for (unsigned n = 0; n < description(g)->ng; n++) {
        register_read(description(g), debugger_cpu(g), n, p);
        p += strlen(p);
    }
    reply(g, text);
}

static void write_registers(struct debugger *g, const char *hex)
{
    char old[130];
    bool ok = true;
    for (unsigned n = 0; n < description(g)->ng; n++) {
        register_read(description(g), debugger_cpu(g), n, old);
        size_t len = strlen(old);
        if (strlen(hex) < len)
            break;
        if (strncasecmp(hex, old, len))
            ok &= register_write(description(g), debugger_cpu(g), n, hex);
        hex += len;
    }
    reply(g, ok ? "OK" : "E22");
}

/* Memory of the space chosen by "monitor space": by default linear, through the current tables. */
static void read_memory(struct debugger *g, char *p)
{
    char text[PACKET_MAX];
    u8 page[PACKET_MAX / 2];
    u64 at = hex_number(&p), len = take_char(&p, ',') ? hex_number(&p) : 0;
    if (len > sizeof(page) - 1)
        len = sizeof(page) - 1;
    size_t got = space_read(debugger_cpu(g), g->space, at, page, len);
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
    u64 at = hex_number(&p), len = take_char(&p, ',') ? hex_number(&p) : 0, n = 0;
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
    reply(g, n == len && (!len || space_write(debugger_cpu(g), g->space, at, data, len)) ? "OK" : "E14");
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
    {
        u8 stop = type == '1' ? STOP_HWBREAK : STOP_BREAK;
        ok = set ? debugger_break(g, &(struct breakpoint){.at = la, .kind = stop}) : debugger_unbreak(g, la, stop);
        break;
    }
    case '2': case '3': case '4': {
        unsigned access = type == '2' ? WATCH_WRITE : type == '3' ? WATCH_READ : WATCH_READ | WATCH_WRITE;
        ok = set ? debugger_watch(g, &(struct debug_watch){.at = la, .len = kind, .kind = (u8)access}, 0) : debugger_unwatch(g, la, kind, access);
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
    const struct vcpu *v = debugger_cpu(g);
    if (*p)
        cpu_set_pc(debugger_cpu(g), hex_number(&p));
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

struct thread_text {
    char text[160];
};
static struct thread_text thread_text(const struct vcpu *v)
{
    static const char *const modes[] = {"real mode", "virtual-8086 mode", "16-bit protected mode", "32-bit protected mode",
                                        "16-bit compatibility mode", "32-bit compatibility mode", "64-bit mode"};
    static const char *const activities[] = {"", ", halted", ", shut down", ", waits for SIPI", ", in MWAIT"};
    struct thread_text t;
    char level[48];
    snprintf(t.text, sizeof(t.text), "processor %u, %s, %s, CPL %u%s", v->index, cpu_level_name(v, level), modes[v->mode], v->cpl,
             activities[v->activity]);
    return t;
}

static void thread_info(struct debugger *g, char *p)
{
    char hex[2 * sizeof(struct thread_text) + 1];
    u64 thread = hex_number(&p);
    if (!thread || thread > g->m->ncpus) {
        reply(g, "E22");
        return;
    }
    struct thread_text t = thread_text(g->m->cpu[thread - 1]);
    for (unsigned i = 0; t.text[i]; i++)
        sprintf(hex + 2 * i, "%02x", (u8)t.text[i]);
    hex[2 * strlen(t.text)] = 0;
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
    monitor_command(g, line, f, true);
    fclose(f);
    gdb_console(g, out, size);
    free(out);
    if (g->fd >= 0)
        reply(g, "OK");
}

/* A part of @data, as qXfer wants it: "OFFSET,LENGTH". */
static void send_part(struct debugger *g, char *p, const char *data, size_t size)
{
    u64 offset = hex_number(&p), len = take_char(&p, ',') ? hex_number(&p) : 0;
    if (len > PACKET_MAX / 2)
        len = PACKET_MAX / 2;
    if (offset > size)
        offset = size;
    bool more = size - offset > len;
    if (!more)
        len = size - offset;
    char text[PACKET_MAX];
    text[0] = more ? 'm' : 'l';
    memcpy(text + 1, data + offset, len);
    send_packet_bytes(g, text, len + 1);
}

static void send_description(struct debugger *g, char *p)
{
    /* A description is read from its beginning: then it may become that of the code that runs now. */
    if (*p == '0' && p[1] == ',')
        g->described = g->follow ? description_for(debugger_cpu(g)) : DESCRIBE_64;
    send_part(g, p, description(g)->xml, description(g)->xml_size);
}

/* Every linear address may be memory, and gdb asks for the map but once: what is not there says so when it is read. */
static void send_memory_map(struct debugger *g, char *p)
{
    static const char map[] =
        "<?xml version=\"1.0\"?>\n<!DOCTYPE memory-map PUBLIC \"+//IDN gnu.org//DTD GDB Memory Map V1.0//EN\" "
        "\"http://sourceware.org/gdb/gdb-memory-map.dtd\">\n<memory-map>"
        "<memory type=\"ram\" start=\"0x0\" length=\"0x8000000000000000\"/>"
        "<memory type=\"ram\" start=\"0x8000000000000000\" length=\"0x8000000000000000\"/></memory-map>\n";
    send_part(g, p, map, sizeof(map) - 1);
}

static void send_threads(struct debugger *g, char *p)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        panic("out of memory for the list of threads");
    fputs("<?xml version=\"1.0\"?>\n<threads>\n", f);
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        char level[48];
        cpu_level_name(g->m->cpu[i], level);
        fprintf(f, "<thread id=\"%x\" core=\"%u\" name=\"%.2s\">%s</thread>\n", i + 1, i, cpu_level_name(g->m->cpu[i], level),
                thread_text(g->m->cpu[i]).text);
    }
    fputs("</threads>\n", f);
    fclose(f);
    send_part(g, p, text, size);
    free(text);
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
        snprintf(text, sizeof(text), "PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;qXfer:memory-map:read+;"
                 "qXfer:threads:read+;vContSupported+;swbreak+;hwbreak+", PACKET_MAX - 64);
        reply(g, text);
    } else if (prefix(&p, "QStartNoAckMode")) {
        reply(g, "OK");
        g->no_ack = true;
    } else if (prefix(&p, "qXfer:features:read:target.xml:")) {
        send_description(g, p);
    } else if (prefix(&p, "qXfer:memory-map:read::")) {
        send_memory_map(g, p);
    } else if (prefix(&p, "qXfer:threads:read::")) {
        send_threads(g, p);
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
    gdb_hang_up(g);
}

static void packet(struct debugger *g, char *p, size_t n)
{
    char *end = p + n, text[130];
    *end = 0;
    switch (*p) {
    case '?': gdb_report_stop(g); break;
    case 'g': read_registers(g); break;
    case 'G': write_registers(g, p + 1); break;
    case 'p':
        p++;
        reply(g, register_read(description(g), debugger_cpu(g), (unsigned)hex_number(&p), text) ? text : "E22");
        break;
    case 'P': {
        p++;
        unsigned reg = (unsigned)hex_number(&p);
        reply(g, take_char(&p, '=') && register_write(description(g), debugger_cpu(g), reg, p) ? "OK" : "E22");
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
        gdb_hang_up(g);
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

bool gdb_receive(struct debugger *g)
{
    struct pollfd p = {.fd = g->fd, .events = POLLIN};
    if (g->fd < 0 || poll(&p, 1, 0) <= 0)
        return false;
    if (g->nin == sizeof(g->in))
        g->nin = 0; /* longer than any packet we have offered to take */
    ssize_t n = recv(g->fd, g->in + g->nin, sizeof(g->in) - g->nin, 0);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return false;
    if (n <= 0) {
        gdb_hang_up(g);
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
void gdb_handle_input(struct debugger *g)
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

void gdb_ended(struct debugger *g, int status)
{
    char text[64];
    snprintf(text, sizeof(text), "W%02x", status & 0xff);
    reply(g, text);
}
