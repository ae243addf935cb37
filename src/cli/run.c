/* nestor run, nestor demo */
#include "cli/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MODULES_MAX 16

struct run_options {
    struct nestor_config config;
    enum console_kind console;
    bool console_given;
    const char *console_path;
    double timeout;
    const char *gdb, *monitor;
    bool gdb_wait, monitor_wait;
    const char *symbols[8];
    unsigned nsymbols;
    char vmx_cap[2000];
    bool stats;
    const char *modules[MODULES_MAX];
};

static int fail(struct nestor_error *err, const char *expected)
{
    snprintf(err->text, sizeof(err->text), "expected %s", expected);
    return -1;
}

#define OPTIONS(target) ((struct run_options *)(target))

#define STRING_OPTION(name, member)                                                                \
    static int set_##name(void *target, const char *value, struct nestor_error *err)               \
    {                                                                                              \
        (void)err;                                                                                 \
        OPTIONS(target)->config.member = value;                                                    \
        return 0;                                                                                  \
    }
STRING_OPTION(cpu, cpu)
STRING_OPTION(kernel, kernel)
STRING_OPTION(initrd, initrd)
STRING_OPTION(append, append)
STRING_OPTION(engine, engine)
STRING_OPTION(svm_cap, svm_cap)
STRING_OPTION(mmu, mmu)

/* May be given several times: the texts are one list. */
static int set_vmx_cap(void *target, const char *value, struct nestor_error *err)
{
    struct run_options *o = OPTIONS(target);
    size_t used = strlen(o->vmx_cap), more = strlen(value);
    if (used + more + 2 > sizeof(o->vmx_cap))
        return fail(err, "at most 2000 characters");
    if (used)
        o->vmx_cap[used++] = ',';
    strcpy(o->vmx_cap + used, value);
    o->config.vmx_cap = o->vmx_cap;
    return 0;
}


/* A size in bytes; a bare number is MiB. 0: not one of @min..@max. */
static uint64_t parse_size(const char *value, unsigned long long min, unsigned long long max)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    unsigned shift = 20;
    if (*end && strchr("kKmMgG", *end)) {
        shift = *end == 'k' || *end == 'K' ? 10 : *end == 'm' || *end == 'M' ? 20 : 30;
        end++;
    }
    if (end == value || *end || errno || value[0] == '-' || n > max >> shift || n << shift < min)
        return 0;
    return (n << shift) & ~0xfffull;
}

static int set_memory(void *target, const char *value, struct nestor_error *err)
{
    uint64_t n = parse_size(value, 1 << 20, 1ull << 40);
    OPTIONS(target)->config.memory = n;
    return n ? 0 : fail(err, "a size from 1M to 1024G (a bare number is MiB)");
}

static int set_jit_cache(void *target, const char *value, struct nestor_error *err)
{
    uint64_t n = parse_size(value, 4 << 20, 1 << 30);
    OPTIONS(target)->config.jit_cache = n;
    return n ? 0 : fail(err, "a size from 4M to 1G (a bare number is MiB)");
}
STRING_OPTION(jit_dump, jit_dump)

static int set_perf_map(void *target, const char *value, struct nestor_error *err)
{
    (void)value, (void)err;
    OPTIONS(target)->config.perf_map = true;
    return 0;
}

static int set_smp(void *target, const char *value, struct nestor_error *err)
{
    char *end;
    unsigned long n = strtoul(value, &end, 10);
    if (end == value || *end || n < 1 || n > 64)
        return fail(err, "a number of processors from 1 to 64");
    OPTIONS(target)->config.smp = (unsigned)n;
    return 0;
}

static int set_serial(void *target, const char *value, struct nestor_error *err)
{
    struct run_options *o = OPTIONS(target);
    o->console_given = true;
    if (!strcmp(value, "stdio"))
        o->console = CONSOLE_STDIO;
    else if (!strcmp(value, "none"))
        o->console = CONSOLE_NONE;
    else if (!strncmp(value, "file:", 5) && value[5]) {
        o->console = CONSOLE_FILE;
        o->console_path = value + 5;
    } else
        return fail(err, "stdio, none or file:PATH");
    return 0;
}

static int set_clock(void *target, const char *value, struct nestor_error *err)
{
    if (!strcmp(value, "host"))
        OPTIONS(target)->config.clock = NESTOR_CLOCK_HOST;
    else if (!strcmp(value, "icount"))
        OPTIONS(target)->config.clock = NESTOR_CLOCK_ICOUNT;
    else
        return fail(err, "host or icount");
    return 0;
}

static int set_threads(void *target, const char *value, struct nestor_error *err)
{
    (void)value, (void)err;
    OPTIONS(target)->config.threads = true;
    return 0;
}

static int set_timeout(void *target, const char *value, struct nestor_error *err)
{
    char *end;
    double t = strtod(value, &end);
    if (end == value || *end || !(t > 0) || t > 1e9)
        return fail(err, "a number of seconds above 0");
    OPTIONS(target)->timeout = t;
    return 0;
}

static int set_trace(void *target, const char *value, struct nestor_error *err)
{
    (void)target;
    return nestor_trace(value, err);
}

static int set_log(void *target, const char *value, struct nestor_error *err)
{
    (void)target;
    return nestor_log(value, err);
}

static int set_debug_exit(void *target, const char *value, struct nestor_error *err)
{
    (void)value, (void)err;
    OPTIONS(target)->config.debug_exit = true;
    return 0;
}

static int set_no_reboot(void *target, const char *value, struct nestor_error *err)
{
    (void)value, (void)err;
    OPTIONS(target)->config.no_reboot = true;
    return 0;
}

static int set_gdb(void *target, const char *value, struct nestor_error *err)
{
    (void)err;
    OPTIONS(target)->gdb = value;
    return 0;
}

static int set_gdb_wait(void *target, const char *value, struct nestor_error *err)
{
    (void)value, (void)err;
    OPTIONS(target)->gdb_wait = true;
    return 0;
}

static int add_module(void *target, const char *value, struct nestor_error *err)
{
    struct run_options *o = target;
    if (o->config.nmodules == MODULES_MAX)
        return fail(err, "at most 16 modules");
    o->modules[o->config.nmodules++] = value;
    o->config.modules = o->modules;
    return 0;
}

static int set_hyperv(void *target, const char *value, struct nestor_error *err)
{
    (void)value, (void)err;
    OPTIONS(target)->config.hyperv = true;
    return 0;
}

static int set_monitor(void *target, const char *value, struct nestor_error *err)
{
    (void)err;
    OPTIONS(target)->monitor = value;
    return 0;
}

static int set_monitor_wait(void *target, const char *value, struct nestor_error *err)
{
    (void)value, (void)err;
    OPTIONS(target)->monitor_wait = true;
    return 0;
}

static int set_symbols(void *target, const char *value, struct nestor_error *err)
{
    struct run_options *o = OPTIONS(target);
    if (o->nsymbols == sizeof(o->symbols) / sizeof(o->symbols[0]))
        return fail(err, "at most 8 files");
    o->symbols[o->nsymbols++] = value;
    return 0;
}

static int set_stats(void *target, const char *value, struct nestor_error *err)
{
    (void)value, (void)err;
    OPTIONS(target)->stats = true;
    return 0;
}

#define CPU_OPTION {"cpu", "MODEL[,+NAME][,-NAME]", "processor model and features (default intel; nestor list cpus)", set_cpu}
#define JIT_OPTIONS                                                                                             \
    {"jit-cache", "SIZE", "translated code to keep, 4M to 1G for each processor (default 64M)", set_jit_cache},   \
    {"jit-dump", "FILE", "list every translation there: guest's code and host's", set_jit_dump},                  \
    {"perf-map", NULL, "write /tmp/perf-PID.map, by which perf names translated code (by guest function: --symbols)", set_perf_map}
#define CAP_OPTIONS                                                                                             \
    {"vmx-cap", "NAME=0|1|must[,...]", "capabilities as another CPU has them (nestor list vmx-caps)", set_vmx_cap}, \
    {"svm-cap", "NAME=0|1[,...]", "likewise the bits of CPUID 0x8000000A, and asids=N", set_svm_cap}
#define ENGINE_OPTION {"engine", "NAME", "jit, interp, or lockstep: both, compared (default jit)", set_engine}
#define MMU_OPTION {"mmu", "shadow|walk|check", "what answers a TLB miss: shadow page tables, walks, or both, compared (default shadow)", set_mmu}
#define TIMEOUT_OPTION {"timeout", "SECONDS", "give up after this much host time, exit status 124", set_timeout}
#define GDB_OPTIONS                                                                                             \
    {"gdb", "unix:PATH|[HOST:]PORT", "let gdb connect there (HOST: 127.0.0.1 unless given)", set_gdb},            \
    {"gdb-wait", NULL, "with --gdb: run nothing before gdb has connected", set_gdb_wait},                       \
    {"monitor", "stdio|unix:PATH", "the built-in debugger, here or on a socket (nestor monitor PATH)", set_monitor},  \
    {"monitor-wait", NULL, "with --monitor: run nothing before it says continue", set_monitor_wait},              \
    {"symbols", "ELF", "names for guest addresses; may be given several times", set_symbols}
#define TRACE_OPTIONS                                                                                           \
    {"trace", "EVENT[,EVENT]", "log these events (nestor list events), or all", set_trace},                       \
    {"log", "FILE", "write the log there instead of standard error", set_log}

static const struct option_row run_rows[] = {
    {"kernel", "FILE", "image to boot: bzImage, multiboot 1 or ELF with PVH note (same as IMAGE)", set_kernel},
    {"initrd", "FILE", "initial RAM disk, or multiboot module", set_initrd},
    {"module", "FILE[ TEXT]", "another multiboot module, with its command line; may be repeated", add_module},
    {"append", "TEXT", "the guest's command line", set_append},
    CPU_OPTION,
    CAP_OPTIONS,
    {"memory", "SIZE", "RAM, e.g. 512M, 4G; a bare number is MiB (default 2G)", set_memory},
    {"smp", "N", "processors, 1 to 64 (default 1)", set_smp},
    {"threads", NULL, "every processor on a host thread of its own", set_threads},
    {"hyperv", NULL, "offer Hyper-V's interface: enlightened VMCS, hypercalls, reference time", set_hyperv},
    {"serial", "stdio|file:PATH|none", "the first serial port (default stdio; Ctrl-A X ends the run)", set_serial},
    {"debug-exit", NULL, "port 0xf4 ends the run with status (value << 1) | 1; adds the test devices", set_debug_exit},
    {"no-reboot", NULL, "a guest's reset ends the run", set_no_reboot},
    {"clock", "host|icount", "time follows the host, or the instruction count (default host)", set_clock},
    TIMEOUT_OPTION,
    ENGINE_OPTION,
    JIT_OPTIONS,
    MMU_OPTION,
    {"stats", NULL, "print at the end what ran, and the VM exits by reason", set_stats},
    GDB_OPTIONS,
    TRACE_OPTIONS,
    {0},
};

static const struct option_row demo_rows[] = {
    CPU_OPTION,
    CAP_OPTIONS,
    ENGINE_OPTION,
    MMU_OPTION,
    TIMEOUT_OPTION,
    GDB_OPTIONS,
    TRACE_OPTIONS,
    {0},
};

static int finish(const struct command *c, struct nestor *n, struct nestor_result r, double timeout)
{
    switch (r.reason) {
    case NESTOR_POWER_OFF:
    case NESTOR_RESET:
        return EXIT_OK;
    case NESTOR_GUEST_EXIT:
        return r.status;
    case NESTOR_TRIPLE_FAULT:
        fprintf(stderr, "nestor %s: the guest ended in a triple fault\n", c->name);
        nestor_print_registers(n, stderr);
        return EXIT_TRIPLE_FAULT;
    case NESTOR_HALTED:
        fprintf(stderr, "nestor %s: every processor is halted with interrupts off\n", c->name);
        return EXIT_HALTED;
    case NESTOR_TIMEOUT:
        fprintf(stderr, "nestor %s: no end after %g seconds (--timeout)\n", c->name, timeout);
        nestor_print_registers(n, stderr);
        return EXIT_TIMEOUT;
    case NESTOR_STOPPED:
        return EXIT_INTERRUPTED;
    }
    return EXIT_INTERNAL;
}

static int run_machine(const struct command *c, struct run_options *o)
{
    struct nestor_error err;
    o->config.api_version = NESTOR_API_VERSION;
    o->config.serial_wait_fd = -1;
    bool on_stdio = o->monitor && !strcmp(o->monitor, "stdio");
    if (o->gdb_wait && !o->gdb)
        return usage_error(c, "--gdb-wait: expected --gdb too");
    if ((o->gdb || o->monitor) && o->config.threads)
        return usage_error(c, "--%s: expected no --threads; a debugger stops all processors between two instructions",
                           o->gdb ? "gdb" : "monitor");
    if (o->monitor_wait && !o->monitor)
        return usage_error(c, "--monitor-wait: expected --monitor too");
    if (on_stdio && o->console == CONSOLE_STDIO) {
        if (o->console_given)
            return usage_error(c, "--monitor stdio: standard input is the serial port's, expected --serial file:PATH or none");
        o->console = CONSOLE_OUTPUT;
    }
    struct console *console = console_open(o->console, o->console_path, &err);
    if (!console)
        return usage_error(c, "--serial file:%s", err.text);
    console_attach(console, &o->config);
    struct nestor *n = nestor_new(&o->config, &err);
    if (!n) {
        console_close(console);
        return usage_error(c, "%s", err.text);
    }
    int bad = (o->gdb && nestor_gdb(n, o->gdb, o->gdb_wait, &err)) ||
              (o->monitor && !on_stdio && nestor_monitor(n, o->monitor, o->monitor_wait, &err));
    for (unsigned i = 0; i < o->nsymbols && !bad; i++)
        bad = nestor_symbols(n, o->symbols[i], &err);
    if (bad) {
        nestor_free(n);
        console_close(console);
        return usage_error(c, "%s", err.text);
    }
    struct monitor_client *client = NULL;
    int fd;
    if (on_stdio && !(client = monitor_client_start(&fd)))
        return usage_error(c, "--monitor stdio: cannot be started");
    if (client)
        nestor_monitor_fd(n, fd, o->monitor_wait);
    console_start(console, n);
    struct nestor_result r = nestor_run(n, o->timeout);
    if (client)
        monitor_client_end(client);
    console_close(console);
    int status = finish(c, n, r, o->timeout);
    if (o->stats)
        nestor_print_stats(n, o->console == CONSOLE_STDIO ? stderr : stdout);
    nestor_free(n);
    return status;
}

static int run_command(int argc, char **argv)
{
    struct run_options o = {.console = CONSOLE_STDIO};
    const char *image = NULL;
    unsigned count;
    int r = options_parse(&command_run, argc, argv, &o, &image, 1, &count);
    if (r)
        return r < 0 ? 0 : r;
    if (image && o.config.kernel)
        return usage_error(&command_run, "both IMAGE '%s' and --kernel '%s' are given, expected one", image, o.config.kernel);
    if (image)
        o.config.kernel = image;
    if (!o.config.kernel)
        return usage_error(&command_run, "nothing to boot: give an IMAGE or --kernel FILE (nestor run --help)");
    return run_machine(&command_run, &o);
}

static int demo_command(int argc, char **argv)
{
    struct run_options o = {.console = CONSOLE_STDIO, .stats = true};
    const char *none;
    unsigned count;
    int r = options_parse(&command_demo, argc, argv, &o, &none, 0, &count);
    if (r)
        return r < 0 ? 0 : r;
    o.config.demo = true;
    o.config.debug_exit = true;
    o.config.memory = 64 << 20;
    return run_machine(&command_demo, &o);
}

const struct command command_run = {
    .name = "run", .args = "[IMAGE] [OPTION...]", .options = run_rows, .run = run_command,
    .summary = "Boots a guest. Exit status: 0 power-off; (value << 1) | 1 from the exit port (--debug-exit);\n"
               "2 bad option or image; 4 triple fault; 6 halted for ever; 8 interrupted; 124 time-out;\n"
               "70 internal error.",
};
const struct command command_demo = {
    .name = "demo", .args = "[OPTION...]", .options = demo_rows, .run = demo_command,
    .summary = "Runs the hypervisor built into this program: L1 starts L2, which starts L3. Needs no file.",
};
