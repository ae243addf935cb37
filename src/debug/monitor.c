/* Commands of gdb's "monitor". */
#include "debug/debugger.h"

#include "cpu/mem.h"

#include <inttypes.h>
#include <stdlib.h>

static char *next_word(char **p)
{
    *p += strspn(*p, " \t");
    char *word = *p;
    *p += strcspn(*p, " \t");
    if (**p)
        *(*p)++ = 0;
    return word;
}

static bool number(const char *word, u64 *value)
{
    char *end;
    *value = strtoull(word, &end, 0);
    return *word && !*end;
}

static void info_command(struct debugger *g, FILE *out)
{
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        const struct vcpu *v = g->m->cpu[i];
        fprintf(out, "processor %u: %s, RIP 0x%" PRIx64 ", CPL %u, %" PRIu64 " instructions", i, cpu_level_name(v), v->rip, v->cpl, v->icount);
        if (v->vmx && v->vmx->current != VMX_NO_VMCS)
            fprintf(out, ", current VMCS 0x%" PRIx64 " (%s)", v->vmx->current, v->vmx->launched ? "launched" : "clear");
        fputc('\n', out);
    }
}

static void level_command(struct debugger *g, const char *word, FILE *out)
{
    static const char *const names[] = {"any", "root", "guest"};
    if (*word) {
        int level = LEVEL_ANY;
        while (level <= LEVEL_GUEST && strcmp(names[level + 1], word))
            level++;
        if (level > LEVEL_GUEST) {
            fputs("expected level any, root (the first hypervisor) or guest (what runs in guest mode)\n", out);
            return;
        }
        g->level = level;
    }
    fprintf(out, "breakpoints count in: %s\n", names[g->level + 1]);
}

/* ---- walks ---- */

static void print_walk(struct vcpu *v, gva_t la, FILE *out)
{
    static const char *const tables[] = {"32-bit", "PAE", "long", "EPT", "NPT"}, *const levels[] = {"", "PTE", "PDE", "PDPTE", "PML4E", "PML5E"};
    static const char *const faults[] = {"", "page fault", "EPT violation", "EPT misconfiguration", "nested page fault", "page-modification log full"};
    struct walk w;
    struct walk_context ctx = *mmu_context(v);
    if (cpu_long64(v) && !cpu_canonical(v, la)) {
        fprintf(out, "0x%" PRIx64 " is not canonical\n", la);
        return;
    }
    walk_linear(v->pm, &ctx, la, ACCESS_READ | ACCESS_NO_AD, &w);
    for (unsigned i = 0; i < w.nsteps; i++) {
        const struct walk_step *s = &w.steps[i];
        u64 e = s->entry;
        bool second = s->table == TABLE_EPT;
        fprintf(out, "%s%-6s %-5s at 0x%" PRIx64, s->table == TABLE_EPT || s->table == TABLE_NPT ? "    " : "", tables[s->table], levels[s->level], s->pa);
        if (s->gpa != s->pa && s->table != TABLE_EPT && s->table != TABLE_NPT)
            fprintf(out, " (guest-physical 0x%" PRIx64 ")", s->gpa);
        fprintf(out, " = 0x%016" PRIx64 "  ", e);
        if (second)
            fprintf(out, "%c%c%c%s%s%s", e & 1 ? 'R' : '-', e & 2 ? 'W' : '-', e & 4 ? 'X' : '-', e & 0x80 ? " page" : "", e & 0x100 ? " A" : "",
                    e & 0x200 ? " D" : "");
        else
            fprintf(out, "%s %s %s%s%s%s%s", e & 1 ? "P" : "not present", e & 2 ? "W" : "R", e & 4 ? "U" : "S", e & 0x20 ? " A" : "", e & 0x40 ? " D" : "",
                    e & 0x80 && s->level > 1 ? " page" : "", s->table != TABLE_32BIT && e >> 63 ? " NX" : "");
        fputc('\n', out);
    }
    switch (w.fault) {
    case WALK_OK:
        fprintf(out, "0x%" PRIx64 " leads to physical 0x%" PRIx64, la, w.pa);
        if (v->guest_mode && ctx.slat.kind != SLAT_NONE)
            fprintf(out, ", guest-physical 0x%" PRIx64, w.gpa);
        fprintf(out, "; page of %u KiB, %s, %s%s%s\n", 1u << (w.lg2_page - 10), w.user ? "user" : "supervisor", w.writable ? "writable" : "read-only",
                w.nx ? ", no execution" : "", w.global ? ", global" : "");
        break;
    case WALK_PAGE_FAULT: fprintf(out, "stops: page fault, error code 0x%x for a read\n", w.error_code); break;
    case WALK_EPT_VIOLATION:
        fprintf(out, "stops: EPT violation at guest-physical 0x%" PRIx64 ", qualification 0x%" PRIx64 "\n", w.gpa, w.qualification);
        break;
    default: fprintf(out, "stops: %s at guest-physical 0x%" PRIx64 "\n", faults[w.fault], w.gpa); break;
    }
}

static void walk_command(struct vcpu *v, const char *word, FILE *out)
{
    u64 la;
    if (number(word, &la))
        print_walk(v, la, out);
    else
        fputs("expected walk ADDRESS, a linear address\n", out);
}

static void phys_command(struct vcpu *v, char *args, FILE *out)
{
    u64 pa, len = 64;
    char *a = next_word(&args), *n = next_word(&args);
    if (!number(a, &pa) || (*n && !number(n, &len)) || len > 4096) {
        fputs("expected phys ADDRESS [BYTES], at most 4096\n", out);
        return;
    }
    for (u64 at = 0; at < len; at++) {
        u8 flags;
        const u8 *host = physmap_host(v->pm, pa + at, true, &flags);
        if (at % 16 == 0)
            fprintf(out, "%s0x%" PRIx64 ":", at ? "\n" : "", pa + at);
        if (host)
            fprintf(out, " %02x", *host);
        else
            fputs(" ..", out);
    }
    fputc('\n', out);
}

/* ---- exits, tracing ---- */

static void exits_command(struct debugger *g, FILE *out)
{
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        const struct vcpu *v = g->m->cpu[i];
        if (!v->vmx)
            continue;
        const struct vmx_stats *s = vmx_stats(v);
        fprintf(out, "processor %u: %" PRIu64 " VM entries, %" PRIu64 " refused, %" PRIu64 " VMfails\n", i, s->entries, s->entry_failures, s->vmfails);
        for (unsigned n = 0; n < VMX_EXIT_REASONS; n++)
            if (s->exits[n])
                fprintf(out, "  %-24s %" PRIu64 "\n", vmx_exits[n].name ? vmx_exits[n].name : "?", s->exits[n]);
    }
}

static void trace_command(char *args, FILE *out)
{
    struct error err;
    char *word = next_word(&args);
    if (!strcmp(word, "off")) {
        log_mask = 0;
        fputs("no event is traced\n", out);
    } else if (!strcmp(word, "on") && *(word = next_word(&args)) && !log_enable(word, &err)) {
        fputs("tracing\n", out);
    } else {
        fputs("expected trace on EVENT[,EVENT] (nestor list events) or trace off\n", out);
    }
}

void monitor_command(struct debugger *g, char *line, FILE *out)
{
    struct vcpu *v = g->m->cpu[g->general < g->m->ncpus ? g->general : 0];
    char *command = next_word(&line);
    if (!strcmp(command, "vmentry"))
        entry_command(g, v, line + strspn(line, " "), out);
    else if (!strcmp(command, "walk"))
        walk_command(v, next_word(&line), out);
    else if (!strcmp(command, "phys"))
        phys_command(v, line, out);
    else if (!strcmp(command, "exits"))
        exits_command(g, out);
    else if (!strcmp(command, "info"))
        info_command(g, out);
    else if (!strcmp(command, "level"))
        level_command(g, next_word(&line), out);
    else if (!strcmp(command, "trace"))
        trace_command(line, out);
    else
        fprintf(out, "%s%s%sinfo                     processors: level, RIP, current VMCS\n"
                     "level [any|root|guest]   where breakpoints count\n"
                     "vmentry COMMAND          stop at VM entries and step through their checks\n"
                     "walk ADDRESS             a page walk, guest tables and EPT together\n"
                     "phys ADDRESS [BYTES]     physical memory\n"
                     "exits                    VM exits by reason\n"
                     "trace on EVENTS|off      the event log (nestor run --log)\n",
                strcmp(command, "help") && *command ? "no such command: " : "", strcmp(command, "help") ? command : "",
                strcmp(command, "help") && *command ? "\n" : "");
}
