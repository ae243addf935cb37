/*
 * The native differential test: random encodings of every row that user mode can execute, with random
 * operands, run on the host CPU and on Nestor's decoder and handlers; everything architectural must
 * come out the same: registers, flags, vectors, MXCSR, x87, memory, and the exception if there is one.
 * Besides single instructions: forms with other prefixes and fields, most of them undefined, and short
 * sequences.
 *
 * A difference is made small and printed as the command that runs it again. Rows that are not run are
 * listed in `excluded` (cases.c) with the reason; a row that is neither run nor listed fails the test.
 */
#include "native_diff.h"

#include <fnmatch.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

static const char help[] =
    "usage: native_diff [OPTION...]\n\n"
    "  --time SECONDS     run that long (default 20)\n"
    "  --cases N          run that many cases instead; 1e8 is an hour's work or two\n"
    "  --seed S           other random numbers (default 1)\n"
    "  --row NAME         rows of that mnemonic only\n"
    "  --match PATTERN    rows only whose encoding column matches: 'EVEX*'\n"
    "  --kind NAME        single, form or sequence only\n"
    "  --case N           that case only\n"
    "  --run 'CASE'       a case as text, as a failure prints it\n"
    "  --corpus FILE      first the cases of FILE, one a line: past failures\n"
    "  --log FILE         append failures to FILE as lines for --corpus; with it the run goes on after many\n"
    "  --progress         a line every minute\n"
    "  --coverage         at the end, how often each row ran and faulted\n"
    "  --max-failures N   stop printing them after N (default 20)\n"
    "  --defined          do not compare flags that the manuals leave undefined\n"
    "  --emulated         the host is an emulator: leave alone what emulators are known to differ in\n"
    "  --list             which rows are run, and why others are not\n"
    "\nInterrupted with ^C it ends as if the time were over. Exit status 1 when anything differs.\n";

struct row_stats {
    u64 ran[CASE_KINDS], legacy, faulted;
    u32 missed, failed;
};

struct options {
    u64 seed, cases, only;
    double seconds;
    const char *row, *match, *corpus, *text, *log;
    int kind;
    unsigned max_failures;
    bool list, coverage, progress;
};

static struct testcase t;
static unsigned failures;

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void show_failure(const struct options *o, const char *how)
{
    case_minimise(&t);
    if (failures++ < o->max_failures) {
        const struct insn_row *row = insn_row(&t.insn);
        printf("%s %s (%s)%s\n%s", row->mnemonic, row->operands, row->encoding, t.count > 1 ? " and others" : "", report);
        printf("  again: native_diff --run '");
        case_print(stdout, &t);
        printf("'%s\n", how);
        fflush(stdout);
    }
    FILE *f = o->log ? fopen(o->log, "a") : NULL;
    if (f) {
        case_print(f, &t);
        fprintf(f, " # %s\n", insn_row(&t.insn)->mnemonic);
        fclose(f);
    }
}

static void run_text(const struct options *o, const char *line)
{
    if (!case_parse(&t, line)) {
        fprintf(stderr, "native_diff: not a case that this host can run: %s\n", line);
        exit(2);
    }
    if (!run_case(&t))
        show_failure(o, "");
}

static unsigned run_corpus(const struct options *o)
{
    char line[65536];
    unsigned count = 0;
    FILE *f = fopen(o->corpus, "r");
    if (!f)
        die("cannot read the corpus");
    while (fgets(line, sizeof(line), f)) {
        if (line[strspn(line, " \t\n")] == 0 || line[0] == '#')
            continue;
        if (!case_parse(&t, line)) { /* perhaps the host lacks the instruction */
            printf("left out: %s", line);
            continue;
        }
        count++;
        if (!run_case(&t))
            show_failure(o, " (of the corpus)");
    }
    fclose(f);
    return count;
}

static void print_coverage(const struct row_stats *st, const unsigned *rows, unsigned count)
{
    printf("%10s %8s %10s %8s %8s  row\n", "single", "form", "sequence", "32-bit", "faults");
    for (unsigned k = 0; k < count; k++) {
        const struct row_stats *s = &st[rows[k]];
        const struct insn_row *row = &insn_rows[rows[k]];
        printf("%10llu %8llu %10llu %8llu %8llu  %s %s (%s)\n", (long long)s->ran[CASE_ONE], (long long)s->ran[CASE_FORM],
               (long long)s->ran[CASE_SEQUENCE], (long long)s->legacy, (long long)s->faulted, row->mnemonic, row->operands, row->encoding);
    }
}

static u64 fault_count(void)
{
    u64 n = 0;
    for (unsigned k = 0; k < 32; k++)
        n += faults[k];
    return n;
}

static int run_random(const struct options *o)
{
    unsigned *rows = calloc(insn_row_count, sizeof(*rows)), count = 0, left_out = 0, copies = 0;
    struct row_stats *st = calloc(insn_row_count, sizeof(*st));
    for (unsigned r = 0; r < insn_row_count; r++) {
        const char *why = why_excluded(&insn_rows[r]);
        if (o->match && fnmatch(o->match, insn_rows[r].encoding, 0))
            continue;
        if (why)
            left_out++;
        else
            rows[count++] = r;
        copies += !why && insn_rows[r].jit == JIT_COPY;
        if (o->list)
            printf("%-40s %-32s %s\n", insn_rows[r].operands, insn_rows[r].encoding, why ? why : "run");
    }
    if (o->list)
        return 0;
    if (!count) {
        printf("no row is run: %u left out with a reason\n", left_out);
        free(rows);
        free(st);
        return 0;
    }

    u64 tried = 0, done[CASE_KINDS] = { 0 };
    double start = now(), told = start;
    for (u64 n = o->only != ~0ull ? o->only : 0; tried < o->cases && !native_interrupted(); n++) {
        unsigned r = rows[n / STATES % count];
        enum case_kind kind = case_kind(n, count);
        if (o->only != ~0ull && n != o->only)
            break;
        if ((n & 63) == 0) {
            double at = now();
            if (at - start > o->seconds)
                break;
            if (o->progress && at - told > 60) {
                told = at;
                printf("%.0f s: %llu cases, %u differ\n", at - start, (long long)tried, failures);
                fflush(stdout);
            }
        }
        if (o->row && strcasecmp(insn_rows[r].mnemonic, o->row) != 0) {
            if (n > 2ull * count * STATES && tried == 0)
                die("no row of that name is run");
            continue;
        }
        if (o->kind >= 0 && (int)kind != o->kind)
            continue;
        if (st[r].failed >= 2)
            continue;
        t.legacy = case_legacy(n, count, &insn_rows[r]);
        if (!make_case(&t, r, o->seed, n, kind)) {
            st[r].missed++;
            continue;
        }
        tried++;
        done[kind]++;
        st[r].ran[kind]++;
        st[r].legacy += t.legacy;
        u64 before = fault_count();
        bool same = run_case(&t);
        st[r].faulted += fault_count() - before;
        if (same)
            continue;
        st[r].failed++;
        show_failure(o, "");
    }
    unsigned covered = 0, not_covered = 0, copies_run = 0;
    for (unsigned k = 0; k < count; k++) {
        const struct row_stats *s = &st[rows[k]];
        if (s->ran[CASE_ONE]) {
            covered++;
            copies_run += insn_rows[rows[k]].jit == JIT_COPY;
        } else if (!o->row && o->only == ~0ull && o->kind < 0) {
            not_covered++;
            printf("never run: %s %s (%s)%s\n", insn_rows[rows[k]].mnemonic, insn_rows[rows[k]].operands, insn_rows[rows[k]].encoding,
                   s->missed ? ": no encoding found" : "");
        }
    }
    if (o->coverage)
        print_coverage(st, rows, count);
    struct borrow_stats bs = borrow_stats(sides.v);
    printf("%u rows run (%u of %u of class copy), %u not run, %u left out with a reason; cases:", covered, copies_run, copies, not_covered,
           left_out);
    for (unsigned k = 0; k < CASE_KINDS; k++)
        printf(" %llu %s", (long long)done[k], case_kind_names[k]);
    printf("; %u differ; faults:", failures);
    for (unsigned k = 0; k < 32; k++)
        if (faults[k])
            printf(" #%u:%llu", k, (long long)faults[k]);
    printf("; %u thunks, %zu bytes\n", bs.thunks, bs.code_bytes);
    free(rows);
    free(st);
    return not_covered != 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = { { "seed", 1, 0, 's' }, { "cases", 1, 0, 'n' }, { "time", 1, 0, 't' }, { "row", 1, 0, 'r' },
                                             { "case", 1, 0, 'c' }, { "run", 1, 0, 'x' }, { "corpus", 1, 0, 'f' }, { "log", 1, 0, 'o' },
                                             { "kind", 1, 0, 'k' }, { "list", 0, 0, 'l' }, { "coverage", 0, 0, 'v' },
                                             { "progress", 0, 0, 'p' }, { "max-failures", 1, 0, 'm' }, { "defined", 0, 0, 'd' },
                                             { "match", 1, 0, 'M' }, { "emulated", 0, 0, 'e' }, { "help", 0, 0, 'h' }, { 0 } };
    struct options o = { .seed = 1, .cases = ~0ull, .only = ~0ull, .seconds = 20, .kind = -1, .max_failures = 20 };
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (c) {
        case 's': o.seed = strtoull(optarg, NULL, 0); break;
        case 'n': o.cases = (u64)atof(optarg); o.seconds = 1e9; break;
        case 't': o.seconds = atof(optarg); break;
        case 'r': o.row = optarg; break;
        case 'c': o.only = strtoull(optarg, NULL, 0); break;
        case 'x': o.text = optarg; break;
        case 'f': o.corpus = optarg; break;
        case 'o': o.log = optarg; break;
        case 'k':
            for (o.kind = 0; o.kind < CASE_KINDS && strcmp(optarg, case_kind_names[o.kind]); o.kind++)
                ;
            if (o.kind == CASE_KINDS) {
                fprintf(stderr, "native_diff: --kind %s: expected single, form or sequence\n", optarg);
                return 2;
            }
            break;
        case 'l': o.list = true; break;
        case 'v': o.coverage = true; break;
        case 'p': o.progress = true; break;
        case 'm': o.max_failures = (unsigned)atoi(optarg); break;
        case 'd': exact_undefined = false; break;
        case 'M': o.match = optarg; break;
        case 'e': emulated_host = true; break;
        case 'h': fputs(help, stdout); return 0;
        default: return 2;
        }
    if (optind < argc) {
        fprintf(stderr, "native_diff: unexpected argument '%s'\n", argv[optind]);
        return 2;
    }
    sides_init();
    rnd_init();
    if (o.text) {
        run_text(&o, o.text);
        printf("%s\n", failures ? "differs" : "the same on both sides");
        return failures != 0;
    }
    if (o.corpus && !o.list)
        printf("%u cases of the corpus\n", run_corpus(&o));
    int missing = run_random(&o);
    return failures || missing;
}
