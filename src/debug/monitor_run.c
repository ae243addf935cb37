/* Commands that stop, run and step, and those about registers. */
#include "debug/debugger.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <stdlib.h>
#include <strings.h>

/* ---- breakpoints ---- */

static void list_stops(struct debugger *g, FILE *out)
{
    char level[8];
    bool any = false;
    for (unsigned n = 0; n < g->nbp; n++) {
        const struct breakpoint *b = &g->bp[n];
        if (b->kind != STOP_OWN)
            continue;
        any = true;
        fprintf(out, "%-3u break %s0x%" PRIx64 ", level %s, hit %" PRIu64 " times\n", b->number, b->physical ? "phys " : "", b->at,
                level_name(b->level, level), b->hits);
    }
    for (unsigned n = 0; n < g->nwatch; n++) {
        static const char *const kinds[] = {"", "write", "read", "access"};
        const struct debug_watch *w = &g->watch[n].w;
        if (!g->watch[n].number)
            continue;
        any = true;
        fprintf(out, "%-3u watch %s0x%" PRIx64 " %" PRIu64 " %s, level %s\n", g->watch[n].number, w->physical ? "phys " : "", w->at, w->len,
                kinds[w->kind & 3], level_name(w->level, level));
    }
    if (!any)
        fputs("no breakpoints\n", out);
}

/* "[phys] ADDRESS" */
static bool stop_address(struct debugger *g, struct vcpu *v, char **args, bool *physical, u64 *at)
{
    char *word = next_word(args);
    *physical = !strcmp(word, "phys");
    return parse_address(g, v, *physical ? next_word(args) : word, at);
}

void cmd_break(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    struct breakpoint b = {.kind = STOP_OWN, .level = LEVEL_ANY};
    if (!*args) {
        list_stops(g, out);
        return;
    }
    bool good = stop_address(g, v, &args, &b.physical, &b.at);
    char *level = next_word(&args);
    if (good && *level)
        good = level_parse(level, &b.level);
    if (!good || *next_word(&args)) {
        fputs("expected break [phys] ADDRESS [any|root|guest|L1|L2|L3]\n", out);
        return;
    }
    b.number = g->numbers + 1;
    if (!debugger_break(g, &b)) {
        fprintf(out, "there are %u breakpoints, which is the most there can be\n", BREAKPOINTS_MAX);
        return;
    }
    g->numbers++;
    char text[8];
    fprintf(out, "breakpoint %u at %s 0x%" PRIx64 ", level %s\n", b.number, b.physical ? "physical" : "linear", b.at, level_name(b.level, text));
}

void cmd_watch(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    struct debug_watch w = {.kind = WATCH_WRITE, .level = LEVEL_ANY, .len = 8};
    if (!*args) {
        list_stops(g, out);
        return;
    }
    bool good = stop_address(g, v, &args, &w.physical, &w.at);
    for (char *word; good && *(word = next_word(&args));) {
        if (!strcmp(word, "read"))
            w.kind = WATCH_READ;
        else if (!strcmp(word, "write"))
            w.kind = WATCH_WRITE;
        else if (!strcmp(word, "access"))
            w.kind = WATCH_READ | WATCH_WRITE;
        else
            good = (*word != 'L' && parse_number(word, &w.len)) || level_parse(word, &w.level);
    }
    if (!good || !debugger_watch(g, &w, g->numbers + 1)) {
        fprintf(out, "expected watch [phys] ADDRESS [BYTES] [read|write|access] [LEVEL]; at most %u ranges, linear ones of %u bytes\n", DEBUG_WATCHES,
                DEBUG_WATCH_MAX);
        return;
    }
    fprintf(out, "watchpoint %u at %s 0x%" PRIx64 ", %" PRIu64 " bytes\n", ++g->numbers, w.physical ? "physical" : "linear", w.at, w.len);
}

void cmd_delete(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    u64 n = 0;
    (void)v;
    if (*args && (!parse_number(args, &n) || !n || n > g->numbers))
        fputs("expected the number of a breakpoint (break lists them)\n", out);
    else if (debugger_delete(g, (unsigned)n))
        fputs("deleted\n", out);
    else
        fputs("there is none\n", out);
}

void cmd_level(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    char text[8];
    (void)v;
    if (*args && !level_parse(next_word(&args), &g->level)) {
        fputs("expected level any, root (the first hypervisor), guest (what runs in guest mode), L1, L2 or L3\n", out);
        return;
    }
    fprintf(out, "breakpoints count in: %s\n", level_name(g->level, text));
}

void cmd_until(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    (void)v;
    if (!strcmp(args, "entry") || !strcmp(args, "exit")) {
        g->until = args[1] == 'n' ? 'e' : 'x';
        fprintf(out, "continue stops %s\n", g->until == 'e' ? "before a guest's first instruction" : "behind the next VM exit");
    } else if (!strcmp(args, "off")) {
        g->until = 0;
    } else {
        fputs("expected until entry, until exit or until off\n", out);
    }
}

/* ---- running ---- */

static void go(struct debugger *g, struct vcpu *step, u64 count)
{
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        g->cpu[i].run = !step || g->m->cpu[i] == step;
        g->cpu[i].step = g->m->cpu[i] == step;
    }
    debugger_resume(g);
    g->steps_left = count;
    g->resumed = true;
}

void cmd_continue(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    (void)v, (void)args;
    if (g->stop == STOP_NONE)
        fputs("the machine runs\n", out);
    else
        go(g, NULL, 0);
}

void cmd_run(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    bool held = g->stop != STOP_NONE;
    cmd_continue(g, v, args, out);
    g->line.waiting = held;
}

void cmd_step(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    u64 n = 1;
    if (*args && (!parse_number(args, &n) || !n))
        fputs("expected step [N]\n", out);
    else if (g->stop == STOP_NONE)
        fputs("the machine runs: stop holds it\n", out);
    else {
        go(g, v, n);
        g->line.waiting = true;
    }
}

void cmd_stop(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    (void)args, (void)out;
    if (g->stop == STOP_NONE)
        debugger_stop(g, v->index, STOP_ASKED);
}

void cmd_cpu(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    u64 n;
    if (*args && (!parse_number(args, &n) || n >= g->m->ncpus)) {
        fprintf(out, "expected a processor from 0 to %u\n", g->m->ncpus - 1);
        return;
    }
    g->general = *args ? (unsigned)n : v->index;
    fprintf(out, "processor %u\n", g->general);
}

/* ---- registers ---- */

/* The bytes of a register as one hexadecimal number. */
static void print_register(FILE *out, const struct target_description *t, struct vcpu *v, unsigned n)
{
    char hex[132];
    if (!register_read(t, v, n, hex))
        return;
    fprintf(out, "%-34s ", register_name(t, n));
    size_t len = strlen(hex);
    if (hex[0] == 'x') {
        fputs("no value now\n", out);
        return;
    }
    fputs("0x", out);
    bool digits = false;
    for (size_t at = len; at; at -= 2) /* the last byte is the most significant */
        for (unsigned k = 2; k; k--) {
            char c = hex[at - k];
            digits |= c != '0' || (at == 2 && k == 1);
            if (digits)
                fputc(c, out);
        }
    fputc('\n', out);
}

void cmd_registers(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    const struct target_description *t = &g->target[DESCRIBE_64];
    char *pattern = next_word(&args);
    bool any = false;
    for (unsigned n = 0; n < t->nregs; n++) {
        const char *name = register_name(t, n);
        bool shown = *pattern ? !fnmatch(pattern, name, FNM_CASEFOLD)
                              : n < 24 || !strncmp(name, "cr", 2) || !strcmp(name, "efer") || strstr(name, "_base");
        if (!shown)
            continue;
        any = true;
        print_register(out, t, v, n);
    }
    if (!any)
        fprintf(out, "no register is called %s\n", pattern);
}

void cmd_print(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    u64 value;
    char symbol[160];
    const char *word = next_word(&args);
    const struct target_description *t = &g->target[DESCRIBE_64];
    if (parse_address(g, v, word, &value)) {
        fprintf(out, "0x%" PRIx64 " = %" PRIu64 "%s\n", value, value, symbols_name(g->symbols, value, symbol, sizeof(symbol)));
        return;
    }
    int n = *word == '$' ? register_find(t, word + 1) : -1;
    if (n >= 0)
        print_register(out, t, v, (unsigned)n);
    else
        fputs("expected a number, $REGISTER or symbol, with +N and -N\n", out);
}

void cmd_set(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    const struct target_description *t = &g->target[DESCRIBE_64];
    char *what = next_word(&args), *text = next_word(&args), *at = strchr(what, '@');
    u64 value, size, address;
    if (!parse_address(g, v, text, &value)) {
        fputs("expected set $REGISTER VALUE or set BYTES@ADDRESS VALUE\n", out);
    } else if (*what == '$') {
        int n = register_find(t, what + 1);
        if (n < 0)
            fprintf(out, "no register is called %s\n", what + 1);
        else if (!register_set(t, v, (unsigned)n, value))
            fprintf(out, "%s cannot have that value\n", what + 1);
        else
            print_register(out, t, v, (unsigned)n);
    } else {
        u8 bytes[8];
        if (at)
            *at++ = 0;
        if (!at || !parse_number(what, &size) || (size != 1 && size != 2 && size != 4 && size != 8) || !parse_address(g, v, at, &address)) {
            fputs("expected set BYTES@ADDRESS VALUE, BYTES being 1, 2, 4 or 8\n", out);
            return;
        }
        store_le(bytes, value, (unsigned)size);
        if (space_write(v, g->space, address, bytes, size))
            fputs("written\n", out);
        else
            fprintf(out, "there is no memory at 0x%" PRIx64 "\n", address);
    }
}
