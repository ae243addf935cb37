/*
 * The debugger inside Nestor: breakpoints, steps and stops at VM entries (debugger.c), driven by gdb over
 * its remote protocol (gdb.c) with registers by name (gdb_regs.c) and commands (monitor.c, vmentry.c).
 */
#pragma once
#include "debug/check.h"
#include "machine/machine.h"

enum stop_kind { STOP_NONE, STOP_STEP, STOP_BREAK, STOP_HWBREAK, STOP_WATCH, STOP_ENTRY, STOP_ASKED, STOP_ENDING };

struct breakpoint {
    gva_t la;
    bool hardware;
};
#define BREAKPOINTS_MAX 256

struct debug_cpu {
    struct vcpu_debug d;
    struct debugger *g;
    bool run;      /* goes on when the machine does; others are held */
    bool step;     /* stops before the instruction after next */
    bool first;    /* the next instruction is the one it was stopped at: it runs */
    u64 held_rip;  /* RIP when it stopped */
    bool held_at;  /* it stopped before the instruction at held_rip */
};

/* Stepping through a VM entry: where "vmentry step" is. */
struct entry_walk {
    bool on;
    unsigned cpu;
    u64 rip, icount;
    unsigned next;  /* pseudo rows, rows of the table, then load phases */
    unsigned failed;
};

enum { LEVEL_ANY = -1, LEVEL_ROOT, LEVEL_GUEST };

struct target_register;
struct debugger {
    struct nestor *m;
    struct debug_cpu cpu[MACHINE_MAX_CPUS];
    struct breakpoint bp[BREAKPOINTS_MAX];
    unsigned nbp;
    u64 bp_filter;  /* bit per value of the low bits of the addresses */
    int level;      /* where breakpoints count */
    struct debug_watch watch[DEBUG_WATCHES];
    unsigned nwatch;

    /* VM entries to stop at */
    bool entry_all, entry_failing, entry_rows_any;
    u64 entry_rows[8];
    struct entry_walk walk;

    bool attached;
    enum stop_kind stop; /* the machine is held, or shall be */
    unsigned stop_cpu;
    char note[256];      /* what to tell with the stop */

    /* gdb.c */
    int listener, fd;
    char *path;          /* of a Unix socket, to be removed */
    bool wait;           /* hold the machine until somebody connects */
    bool no_ack, swbreak, resumed, ended;
    unsigned general;    /* processor that g, p, m and monitor commands mean */
    struct target_register *regs;
    unsigned nregs, ng;  /* of which the first ng are in a g packet */
    char *xml;
    size_t xml_size;
    char in[32768];
    size_t nin;
};

/* ---- debugger.c ---- */
void debugger_attach(struct debugger *g);
void debugger_detach(struct debugger *g); /* forgets breakpoints and lets everything run */
bool debugger_break(struct debugger *g, gva_t la, bool hardware);
bool debugger_unbreak(struct debugger *g, gva_t la, bool hardware);
bool debugger_watch(struct debugger *g, gva_t la, u64 len, unsigned kind);
bool debugger_unwatch(struct debugger *g, gva_t la, u64 len, unsigned kind);
void debugger_resume(struct debugger *g); /* .run and .step of the processors are set */
void debugger_stop(struct debugger *g, unsigned cpu, enum stop_kind kind);
enum run_result debugger_run(struct nestor *m, struct vcpu *v, bool *stop);

/* ---- gdb_regs.c ---- */
void registers_make(struct debugger *g); /* the registers and the target description */
/* Hexadecimal digits of register @n into @out (room for 129); false: no such register. */
bool register_read(struct debugger *g, struct vcpu *v, unsigned n, char *out);
/* false: no such register, or a value that it cannot have. */
bool register_write(struct debugger *g, struct vcpu *v, unsigned n, const char *hex);
const char *cpu_level_name(const struct vcpu *v);

/* ---- monitor.c ---- */
void monitor_command(struct debugger *g, char *line, FILE *out);

/* ---- vmentry.c ---- */
/* The instruction about to run on @v is VMLAUNCH or VMRESUME and would act as such. */
bool entry_at(struct vcpu *v, bool *launch);
/* Whether a "vmentry break" wants a stop at this entry; fills g->note. */
bool entry_wanted(struct debugger *g, struct vcpu *v);
void entry_command(struct debugger *g, struct vcpu *v, char *args, FILE *out);
