/*
 * Nestor's embedding API: a PC in software whose CPU has VT-x and AMD-V.
 *
 * Everything is reached through an opaque `struct nestor`; several may live in one process. All
 * functions but nestor_stop() must be called from one thread at a time per machine. Strings given in
 * a configuration are copied.
 */
#ifndef NESTOR_H
#define NESTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when the meaning or layout of anything here changes. */
#define NESTOR_API_VERSION 2

struct nestor;

/* One line for the user: what, where, what was expected. */
struct nestor_error {
    char text[512];
};

enum nestor_clock { NESTOR_CLOCK_HOST, NESTOR_CLOCK_ICOUNT };

/* Zero means the default of every member. */
struct nestor_config {
    unsigned api_version; /* NESTOR_API_VERSION */
    const char *cpu;      /* "MODEL,+feature,-feature"; default "intel" */
    const char *vmx_cap;  /* "NAME=VALUE,...": capability MSRs as another processor has them (nestor list vmx-caps) */
    const char *svm_cap;  /* "NAME=0|1,...": likewise the bits of CPUID 0x8000000A */
    const char *engine;   /* "jit" (default), "interp", "lockstep" */
    uint64_t jit_cache;   /* bytes of translated code each processor keeps; default 64 MiB */
    const char *jit_dump; /* file that every translation is listed in; NULL: none */
    bool perf_map;        /* write /tmp/perf-PID.map, by which perf(1) names translated code */
    const char *mmu;      /* "shadow"; "walk", "check" */
    uint64_t memory;      /* bytes; default 2 GiB */
    unsigned smp;         /* processors; default 1 */
    bool threads;         /* every processor on a thread of its own; with the host's clock and no debugger */
    enum nestor_clock clock;
    const char *kernel;   /* image file; NULL: .demo must be set */
    const char *initrd;
    const char *append;   /* the guest's command line */
    const char *const *modules; /* multiboot modules, each "FILE[ ARGUMENTS]" */
    unsigned nmodules;
    bool demo;            /* boot the demo hypervisor built into the library */
    bool hyperv;          /* offer Hyper-V's interface, with the enlightened VMCS; needs VT-x */
    bool debug_exit;      /* port 0xF4 ends the run; also adds the rest of the test device */
    bool no_reboot;       /* a guest's reset ends the run */
    int64_t rtc_epoch;    /* Unix time the RTC starts with; 0: the host's (under icount: 2000-01-01) */

    /* First serial port. tx is called with what the guest sends; rx asks for up to @n bytes, and returns
     * how many it has (0 for none now). wait_fd, if not negative, becomes readable when rx has more. */
    void (*serial_tx)(void *arg, const uint8_t *data, size_t n);
    size_t (*serial_rx)(void *arg, uint8_t *data, size_t n);
    void *serial_arg;
    int serial_wait_fd; /* -1 for none */
    /* Port 0xE9: the debug console. NULL: absent. */
    void (*debugcon)(void *arg, uint8_t byte);
    void *debugcon_arg;
};

enum nestor_stop_reason {
    NESTOR_POWER_OFF,     /* the guest switched itself off */
    NESTOR_GUEST_EXIT,    /* exit port; the status is (value << 1) | 1 */
    NESTOR_RESET,         /* the guest reset the machine, with no_reboot */
    NESTOR_TRIPLE_FAULT,
    NESTOR_HALTED,        /* every processor halted with nothing left that could wake it */
    NESTOR_TIMEOUT,
    NESTOR_STOPPED,       /* nestor_stop() */
};

struct nestor_result {
    enum nestor_stop_reason reason;
    int status; /* NESTOR_GUEST_EXIT: the exit status */
};

/* Builds the machine and loads its image. On failure returns NULL and fills *err. */
struct nestor *nestor_new(const struct nestor_config *config, struct nestor_error *err);
void nestor_free(struct nestor *n);

/*
 * Lets gdb connect, to "unix:PATH" or "[HOST:]PORT" (host 127.0.0.1 when none is given), while
 * nestor_run() runs; @wait: nothing runs before it has. Returns 0, or -1 and fills *err.
 */
int nestor_gdb(struct nestor *n, const char *address, bool wait, struct nestor_error *err);

/*
 * The monitor: commands like those of gdb's "monitor", and more, on a Unix socket "unix:PATH"; @wait: nothing
 * runs before somebody has connected. Or on @fd, a connected stream socket that becomes the machine's.
 */
int nestor_monitor(struct nestor *n, const char *address, bool wait, struct nestor_error *err);
void nestor_monitor_fd(struct nestor *n, int fd, bool wait);
/* Names for guest addresses, from the symbol table of an ELF file; may be called for several. */
int nestor_symbols(struct nestor *n, const char *path, struct nestor_error *err);

/* Runs until something of enum nestor_stop_reason happens; @timeout in seconds, 0 for none. */
struct nestor_result nestor_run(struct nestor *n, double timeout);
/* Makes nestor_run() return soon. May be called from another thread or a signal handler. */
void nestor_stop(struct nestor *n);

/* What ran, at which level, how long, and why hypervisors were left. */
void nestor_print_stats(struct nestor *n, FILE *out);
/* The registers of every processor, for a report. */
void nestor_print_registers(struct nestor *n, FILE *out);

/* "cpus", "instructions", "vmcs-fields", "vmcb-fields", "vmentry-checks", "vmx-caps", "devices", "events". False: no such list. */
bool nestor_list(const char *what, FILE *out);

/*
 * Judges a VMCS from another system by every row of the VM-entry check table and prints the rows that
 * fail, with what would satisfy them, and those that cannot be evaluated. @text holds the lines of KVM's
 * dump_vmcs or dump_vmcb (then the rows of VMRUN judge) in a Linux kernel log, or a JSON object of field names; @number picks one of several dumps
 * (0: the last). @name is for messages. Returns the number of failing rows, or -1 and fills *err.
 */
int nestor_vmcs_check(const char *name, const char *text, size_t len, unsigned number, bool json, FILE *out, struct nestor_error *err);
/* Prints one check in full. Returns 0, or -1 and fills *err. */
int nestor_explain(const char *id, bool json, FILE *out, struct nestor_error *err);

/* --trace and --log: process-wide. Return 0, or -1 and fill *err. */
int nestor_trace(const char *events, struct nestor_error *err);
int nestor_log(const char *path, struct nestor_error *err);

#ifdef __cplusplus
}
#endif
#endif
