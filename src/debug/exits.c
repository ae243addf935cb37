/* VM exits: histograms by reason, level and place, and stops behind them. */
#include "debug/debugger.h"

#include <inttypes.h>
#include <stdlib.h>
#include <strings.h>

const char *exit_reason_name(const struct vcpu *v, unsigned reason)
{
    if (v->vmx)
        return reason < VMX_EXIT_REASONS ? vmx_exits[reason].name : NULL;
    return svm_exit_slot_name(reason);
}

/* What people call an exit besides the manual's name in exits.def. */
static const struct {
    const char *name, *vmx, *svm;
} aliases[] = {
    {"MOV_CR", "CR_ACCESS", "*_CR*"},
    {"MOV_DR", "DR_ACCESS", "*_DR*"},
    {"IO", "IO_INSTRUCTION", "IOIO"},
    {"NPF", "EPT_VIOLATION", "NPF"},
    {"EPT_VIOLATION", "EPT_VIOLATION", "NPF"},
    {"VMCALL", "VMCALL", "VMMCALL"},
    {"EXCEPTION", "EXCEPTION_NMI", "EXCP*"},
    {"INTERRUPT", "EXTERNAL_INTERRUPT", "INTR"},
};

/* "READ_DR7" and "*_DR*": one star stands for anything, twice at most. */
static bool matches(const char *pattern, const char *name)
{
    for (; *pattern; pattern++, name++) {
        if (*pattern == '*') {
            for (const char *rest = name;; rest++) {
                if (matches(pattern + 1, rest))
                    return true;
                if (!*rest)
                    return false;
            }
        }
        if ((*pattern | 0x20) != (*name | 0x20))
            return false;
    }
    return !*name;
}

static const char *pattern_of(const struct vcpu *v, const char *name)
{
    for (unsigned i = 0; i < ARRAY_SIZE(aliases); i++)
        if (!strcasecmp(aliases[i].name, name))
            return v->vmx ? aliases[i].vmx : aliases[i].svm;
    return name;
}

/* Sets a bit per reason that @name means; false: none. */
static bool reasons(const struct vcpu *v, const char *name, u64 set[4])
{
    bool any = false;
    const char *pattern = pattern_of(v, name);
    for (unsigned n = 0; n < SVM_EXIT_SLOTS; n++) {
        const char *known = exit_reason_name(v, n);
        if (known && strlen(pattern) < 32 && matches(pattern, known)) {
            set[n / 64] |= BIT64(n % 64);
            any = true;
        }
    }
    return any;
}
_Static_assert(SVM_EXIT_SLOTS <= 256 && (unsigned)VMX_EXIT_REASONS <= (unsigned)SVM_EXIT_SLOTS, "sets of reasons have 256 bits");

/* ---- the histogram ---- */

struct row {
    const struct exit_site *s;
    u64 count;
};

static int by_count(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    if (x->count != y->count)
        return x->count < y->count ? 1 : -1;
    if (x->s->level != y->s->level)
        return x->s->level - y->s->level;
    return x->s->linear < y->s->linear ? -1 : x->s->linear > y->s->linear;
}

struct query {
    u64 set[4];
    bool some;    /* only these reasons */
    u8 level;     /* 0: any */
    bool by_rip;
};

static unsigned collect(const struct exit_profile *p, const struct query *q, struct row *rows)
{
    unsigned n = 0;
    for (unsigned i = 0; i < EXIT_SITES; i++) {
        const struct exit_site *s = &p->site[i];
        if (!s->count || (q->some && !(q->set[s->reason / 64] >> (s->reason % 64) & 1)) || (q->level && q->level != s->level))
            continue;
        unsigned k = q->by_rip ? n : 0;
        while (k < n && (rows[k].s->reason != s->reason || rows[k].s->level != s->level))
            k++;
        if (k == n)
            rows[n++] = (struct row){s, 0};
        rows[k].count += s->count;
    }
    qsort(rows, n, sizeof(*rows), by_count);
    return n;
}

#define ROWS_SHOWN 40

static void histogram(struct debugger *g, struct vcpu *v, const struct query *q, FILE *out)
{
    const struct exit_profile *p = v->exits;
    struct row *rows = calloc(EXIT_SITES, sizeof(*rows));
    u64 total = 0;
    if (!rows)
        panic("out of memory for a histogram");
    unsigned n = collect(p, q, rows);
    for (unsigned i = 0; i < n; i++)
        total += rows[i].count;
    for (unsigned i = 0; i < n && i < ROWS_SHOWN; i++) {
        const struct exit_site *s = rows[i].s;
        const char *name = exit_reason_name(v, s->reason);
        char symbol[160];
        fprintf(out, "  %10" PRIu64 "  %5.1f %%  L%u  %-24s", rows[i].count, 100.0 * (double)rows[i].count / (double)total, s->level, name ? name : "?");
        if (q->by_rip)
            fprintf(out, " 0x%" PRIx64 "%s", s->linear, symbols_name(g->symbols, s->linear, symbol, sizeof(symbol)));
        fputc('\n', out);
    }
    if (n > ROWS_SHOWN)
        fprintf(out, "  and %u more\n", n - ROWS_SHOWN);
    if (!n)
        fputs("  no such exit\n", out);
    if (p->lost)
        fprintf(out, "  %" PRIu64 " exits came from more places than are kept\n", p->lost);
    free(rows);
}

void cmd_exits(struct debugger *g, struct vcpu *current, char *args, FILE *out)
{
    struct query q = {0};
    bool good = true, reset = false;
    for (char *word; good && *(word = next_word(&args));) {
        if (!strcmp(word, "--by-rip"))
            q.by_rip = true;
        else if (!strcmp(word, "--reset"))
            reset = true;
        else if (!strcmp(word, "--level"))
            good = level_parse(next_word(&args), &q.level) && q.level != LEVEL_GUEST;
        else if (!strcmp(word, "--cause"))
            good = q.some = q.by_rip = reasons(current, next_word(&args), q.set);
        else
            good = false;
    }
    if (!good) {
        fputs("expected exits [--cause REASON] [--by-rip] [--level L2|L3] [--reset]; reasons: vmexit list\n", out);
        return;
    }
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        struct vcpu *v = g->m->cpu[i];
        if (!v->exits)
            continue;
        if (reset) {
            memset(v->exits->site, 0, sizeof(v->exits->site));
            v->exits->sites = v->exits->lost = 0;
            continue;
        }
        if (v->vmx)
            fprintf(out, "processor %u: %" PRIu64 " VM entries, %" PRIu64 " refused, %" PRIu64 " VMfails\n", i, v->vmx->stats.entries,
                    v->vmx->stats.entry_failures, v->vmx->stats.vmfails);
        else
            fprintf(out, "processor %u: %" PRIu64 " VMRUNs, %" PRIu64 " refused\n", i, v->svm->stats.entries, v->svm->stats.entry_failures);
        histogram(g, v, &q, out);
    }
    if (reset)
        fputs("counted from here on\n", out);
    else if (!current->exits)
        fputs("this processor model has neither VMX nor SVM\n", out);
}

/* ---- stops ---- */

static void list_reasons(const struct vcpu *v, FILE *out)
{
    unsigned column = 0;
    for (unsigned n = 0; n < SVM_EXIT_SLOTS; n++) {
        const char *name = exit_reason_name(v, n);
        if (!name)
            continue;
        if (column + strlen(name) > 110) {
            fputc('\n', out);
            column = 0;
        }
        column += (unsigned)fprintf(out, "%s%s", column ? " " : "", name);
    }
    fputc('\n', out);
}

void cmd_vmexit(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    char *verb = next_word(&args), *what = next_word(&args);
    if (!v->exits) {
        fputs("this processor model has neither VMX nor SVM\n", out);
    } else if (!strcmp(verb, "list")) {
        list_reasons(v, out);
    } else if (strcmp(verb, "break")) {
        fputs("expected vmexit break [REASON|off] or vmexit list\n", out);
    } else if (!*what) {
        g->exit_all = true;
        fputs("Stops behind every VM exit, before the hypervisor's first instruction.\n", out);
    } else if (!strcmp(what, "off")) {
        g->exit_all = g->exit_reasons_any = false;
        memset(g->exit_reasons, 0, sizeof(g->exit_reasons));
        fputs("Stops at no VM exit.\n", out);
    } else if (reasons(v, what, g->exit_reasons)) {
        g->exit_reasons_any = true;
        fprintf(out, "Stops behind VM exits for %s.\n", pattern_of(v, what));
    } else {
        fprintf(out, "No exit is called '%s' (vmexit list).\n", what);
    }
}
