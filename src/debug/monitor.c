/* The commands of gdb's "monitor" and of the monitor's own connection: one table. */
#include "debug/debugger.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <strings.h>

char *next_word(char **p)
{
    *p += strspn(*p, " \t");
    char *word = *p;
    *p += strcspn(*p, " \t");
    if (**p)
        *(*p)++ = 0;
    return word;
}

bool parse_number(const char *word, u64 *value)
{
    char *end;
    *value = strtoull(word, &end, 0);
    return isdigit((unsigned char)*word) && !*end;
}

static bool parse_term(struct debugger *g, struct vcpu *v, const char *word, u64 *value)
{
    const struct target_description *t = &g->target[DESCRIBE_64];
    if (*word == '$') {
        int n = register_find(t, !strcasecmp(word + 1, "pc") ? "rip" : !strcasecmp(word + 1, "sp") ? "rsp" : word + 1);
        return n >= 0 && register_value(t, v, (unsigned)n, value);
    }
    return parse_number(word, value) || (g->symbols && symbols_find(g->symbols, word, value));
}

bool parse_address(struct debugger *g, struct vcpu *v, const char *word, u64 *value)
{
    char term[128];
    *value = 0;
    if (!*word)
        return false;
    for (bool minus = false;;) {
        size_t n = strcspn(word, "+-");
        u64 part;
        if (!n || n >= sizeof(term))
            return false;
        memcpy(term, word, n);
        term[n] = 0;
        if (!parse_term(g, v, term, &part))
            return false;
        *value += minus ? 0 - part : part;
        if (!word[n])
            return true;
        minus = word[n] == '-';
        word += n + 1;
    }
}

/* ---- small commands ---- */

static void cmd_info(struct debugger *g, struct vcpu *current, char *args, FILE *out)
{
    char level[48];
    (void)current, (void)args;
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        const struct vcpu *v = g->m->cpu[i];
        char symbol[160];
        fprintf(out, "processor %u: %s, RIP 0x%" PRIx64 "%s, CPL %u, %" PRIu64 " instructions", i, cpu_level_name(v, level), v->rip,
                symbols_name(g->symbols, (v->seg_base[SEG_CS] + v->rip) & v->linear_mask, symbol, sizeof(symbol)), v->cpl, v->icount);
        if (v->vmx && v->vmx->current != VMX_NO_VMCS)
            fprintf(out, ", current VMCS 0x%" PRIx64 " (%s)", v->vmx->current, v->vmx->launched ? "launched" : "clear");
        fputc('\n', out);
    }
}

static void cmd_trace(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    struct error err;
    char *word = next_word(&args), *names = next_word(&args);
    bool on = !strcmp(word, "on"), off = !strcmp(word, "off");
    (void)g, (void)v;
    if ((!on && !off && *word) || (on && !*names) || *next_word(&args)) {
        fputs("expected trace on EVENT[,EVENT], trace off [EVENT[,EVENT]], or trace\n", out);
        return;
    }
    u32 before = log_mask;
    if (*names) {
        log_mask = 0;
        if (log_enable(names, &err)) {
            log_mask = before;
            fprintf(out, "no event is called so: %s (events lists them)\n", names);
            return;
        }
        log_mask = on ? before | log_mask : before & ~log_mask;
    } else if (off) {
        log_mask = 0;
    }
    if (!log_mask)
        fputs("no event is traced\n", out);
    else
        log_list_enabled(out);
}

static void cmd_events(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    (void)g, (void)v, (void)args;
    log_list(out);
}

static void cmd_mode(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    static const char *const widths[DESCRIPTIONS] = {"64", "32", "16"};
    const char *word = next_word(&args);
    if (!strcmp(word, "follow"))
        g->follow = true;
    else if (!strcmp(word, "fixed"))
        g->follow = false;
    else if (*word) {
        fputs("expected mode, mode follow (the target description follows the width of the code) or mode fixed (64-bit)\n", out);
        return;
    }
    fprintf(out, "%s-bit code; gdb is told %s\n", widths[description_for(v)], g->follow ? "the width of the code" : "64-bit");
}

static void cmd_quit(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    (void)v, (void)args, (void)out;
    nestor_stop(g->m);
    g->resumed = g->line.waiting = true;
}

static void cmd_wait(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    (void)v, (void)args, (void)out;
    g->line.waiting = g->stop == STOP_NONE;
}

static void cmd_help(struct debugger *g, struct vcpu *v, char *args, FILE *out);
static void cmd_complete(struct debugger *g, struct vcpu *v, char *args, FILE *out);

#define LEVEL_WORDS "any root guest L1 L2 L3"
static const struct monitor_command commands[] = {
    {"help", "", "this list", cmd_help, "", false},
    {"info", "", "processors: level, RIP, current VMCS", cmd_info, "", false},
    {"continue", "", "let the machine run", cmd_continue, "", true},
    {"run", "", "the same, and no further command is read before the next stop", cmd_run, "", true},
    {"step", "[N]", "one instruction (N) of the processor", cmd_step, "", true},
    {"stop", "", "hold the machine", cmd_stop, "", true},
    {"wait", "", "hold back the commands that follow until the machine has stopped", cmd_wait, "", true},
    {"cpu", "[N]", "which processor commands mean", cmd_cpu, "", false},
    {"break", "[phys] ADDRESS [LEVEL]", "stop there, at any or one level; without an address: a list", cmd_break, "phys " LEVEL_WORDS, false},
    {"watch", "[phys] ADDRESS [BYTES] [read|write|access] [LEVEL]", "stop behind an access", cmd_watch, "phys read write access " LEVEL_WORDS, false},
    {"delete", "[N]", "a breakpoint or watchpoint of break and watch, or all", cmd_delete, "", false},
    {"level", "[any|root|guest|L1|L2|L3]", "where gdb's own breakpoints count", cmd_level, LEVEL_WORDS, false},
    {"until", "entry|exit", "once: stop at a guest's first instruction, or behind a VM exit", cmd_until, "entry exit off", false},
    {"vmentry", "COMMAND", "stop at VM entries and step through their checks", cmd_vmentry, "break step next-failure why list entered", false},
    {"vmexit", "break [REASON]|list", "stop behind VM exits", cmd_vmexit, "break list off", false},
    {"vmcs", "[PATTERN|mark|diff|json|set FIELD VALUE]", "fields of the VMCS or VMCB", cmd_vmcs, "mark diff json set", false},
    {"exits", "[--cause REASON] [--by-rip] [--level L] [--reset]", "VM exits by reason, level and place", cmd_exits,
     "--cause --by-rip --level --reset", false},
    {"space", "[current|root|guest|guest-physical|physical]", "which addresses x, set and gdb's memory packets mean", cmd_space,
     "current root guest guest-physical physical", false},
    {"walk", "ADDRESS [root|guest|guest-physical] [read|write|fetch] [user]", "a page walk, guest tables and EPT or NPT together", cmd_walk,
     "root guest guest-physical read write fetch user", false},
    {"x", "ADDRESS [BYTES]", "memory of the space", cmd_x, "", false},
    {"phys", "ADDRESS [BYTES]", "physical memory", cmd_phys, "", false},
    {"map", "", "the physical address map", cmd_map, "", false},
    {"registers", "[PATTERN]", "registers of the processor", cmd_registers, "", false},
    {"print", "ADDRESS", "a number, $REGISTER or symbol, with +N and -N", cmd_print, "", false},
    {"set", "$REGISTER|BYTES@ADDRESS VALUE", "change a register, or memory of the space", cmd_set, "", false},
    {"mode", "[follow|fixed]", "width of the code, and what gdb is told of it", cmd_mode, "follow fixed", false},
    {"trace", "on EVENTS|off [EVENTS]", "the event log (nestor run --log)", cmd_trace, "on off", false},
    {"events", "", "the events there are", cmd_events, "", false},
    {"complete", "TEXT", "what may follow", cmd_complete, "", false},
    {"quit", "", "end the run", cmd_quit, "", true},
};

static void cmd_help(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    (void)g, (void)v, (void)args;
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        char left[80];
        snprintf(left, sizeof(left), "%s%s%s", commands[i].name, *commands[i].args ? " " : "", commands[i].args);
        fprintf(out, strlen(left) > 38 ? "%s\n%-39s%s\n" : "%-38s %.0s%s\n", left, "", commands[i].help);
    }
}

/* ---- completion ---- */

static void offer(FILE *out, const char *before, const char *text, size_t len, const char *candidate)
{
    if (!strncasecmp(candidate, text, len))
        fprintf(out, "%s%s\n", before, candidate);
}

static void offer_words(FILE *out, const char *before, const char *text, size_t len, const char *words)
{
    char word[32];
    while (sscanf(words, " %31s", word) == 1) {
        words = strstr(words, word) + strlen(word);
        offer(out, before, text, len, word);
    }
}

static void offer_checks(const struct vcpu *v, FILE *out, const char *before, const char *text, size_t len)
{
    unsigned n;
    const struct virt_check *c = v->svm ? svm_check_table(&n) : vmx_check_table(&n);
    for (unsigned i = 0; i < n; i++)
        offer(out, before, text, len, c[i].id);
}

static void offer_reasons(const struct vcpu *v, FILE *out, const char *before, const char *text, size_t len)
{
    for (unsigned i = 0; i < SVM_EXIT_SLOTS; i++)
        if (exit_reason_name(v, i))
            offer(out, before, text, len, exit_reason_name(v, i));
}

static void offer_fields(const struct vcpu *v, FILE *out, const char *before, const char *text, size_t len)
{
    for (unsigned i = 0; v->vmx && i < VMCS_SLOT_COUNT; i++)
        offer(out, before, text, len, vmcs_fields[i].name);
    for (unsigned i = 0; v->svm && i < VMCB_FIELD_COUNT; i++)
        offer(out, before, text, len, vmcb_fields[i].name);
}

/* Lines that @args could become: the last word is the one to complete. */
static void cmd_complete(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    char first[32] = "", before[256];
    args += strspn(args, " \t");
    size_t len = strlen(args), at = len;
    while (at && args[at - 1] != ' ')
        at--;
    if (at >= sizeof(before))
        return;
    memcpy(before, args, at);
    before[at] = 0;
    const char *text = args + at;
    len -= at;
    if (!at) {
        for (unsigned i = 0; i < ARRAY_SIZE(commands); i++)
            offer(out, "", text, len, commands[i].name);
        return;
    }
    sscanf(before, "%31s", first);
    if (*text == '$') {
        const struct target_description *t = &g->target[DESCRIBE_64];
        for (unsigned n = 0; n < t->nregs; n++)
            if (!strncasecmp(register_name(t, n), text + 1, len - 1))
                fprintf(out, "%s$%s\n", before, register_name(t, n));
        return;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++)
        if (!strcmp(commands[i].name, first))
            offer_words(out, before, text, len, commands[i].words);
    if (!strcmp(first, "vmentry"))
        offer_checks(v, out, before, text, len);
    if (!strcmp(first, "vmexit") || strstr(before, "--cause"))
        offer_reasons(v, out, before, text, len);
    if (!strcmp(first, "vmcs"))
        offer_fields(v, out, before, text, len);
    if (!strcmp(first, "trace"))
        log_complete(out, before, text);
}

void monitor_command(struct debugger *g, char *line, FILE *out, bool from_gdb)
{
    char *name = next_word(&line);
    if (!*name)
        name = (char *)"help";
    if (!strcmp(name, "vmcb"))
        name = (char *)"vmcs";
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        const struct monitor_command *c = &commands[i];
        if (strcmp(c->name, name))
            continue;
        if (c->control && (from_gdb || g->fd >= 0) && c->run != cmd_quit)
            fputs(from_gdb ? "gdb runs and stops the machine with its own commands\n" : "gdb is connected: it runs and stops the machine\n", out);
        else
            c->run(g, debugger_cpu(g), line + strspn(line, " \t"), out);
        return;
    }
    fprintf(out, "no such command: %s\n", name);
    cmd_help(g, NULL, line, out);
}
