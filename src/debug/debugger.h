/*
 * The debugger inside Nestor: breakpoints, steps and stops at VM entries and exits (debugger.c), driven
 * by gdb over its remote protocol (gdb.c, with registers by name, gdb_regs.c) and by the monitor's own
 * connection (monitor_line.c). Both understand the same commands (monitor.c).
 */
#pragma once
#include "cpu/exit_profile.h"
#include "debug/check.h"
#include "machine/machine.h"
#include "svm/svm.h"

enum stop_kind { STOP_NONE, STOP_STEP, STOP_BREAK, STOP_HWBREAK, STOP_OWN, STOP_WATCH, STOP_ENTRY, STOP_ASKED, STOP_ENDING };

/* Where a breakpoint counts: 1 is the first hypervisor, 2 its guest, 3 a guest of that. */
enum { LEVEL_ANY = 0, LEVEL_ROOT = 1, LEVEL_GUEST = 255 /* 2 and deeper */ };
bool level_parse(const char *word, u8 *level); /* any, root, guest, L1, L2, ... or a number */
const char *level_name(u8 level, char buf[8]);

struct breakpoint {
    u64 at;
    bool physical;
    u8 kind;         /* STOP_BREAK, STOP_HWBREAK: of gdb; STOP_OWN: of the monitor */
    u8 level;        /* LEVEL_* or a number; gdb's count where g->level says */
    unsigned number; /* of the monitor's */
    u64 hits;
};
#define BREAKPOINTS_MAX 256

struct own_watch {
    struct debug_watch w;
    unsigned number; /* 0: gdb's */
};

struct debug_cpu {
    struct vcpu_debug d;
    struct debugger *g;
    bool run;      /* goes on when the machine does; others are held */
    bool step;     /* stops before the instruction after next */
    bool first;    /* the next instruction is the one it was stopped at: it runs */
    u64 held_rip;  /* RIP when it stopped */
    bool held_at;  /* it stopped before the instruction at held_rip */
    u64 seen_entries, seen_exits; /* of the exit profile, when it last stopped */
};

/* Stepping through a VM entry: where "vmentry step" is. */
struct entry_walk {
    bool on;
    unsigned cpu;
    u64 rip, icount;
    unsigned next;  /* pseudo rows, rows of the table, then load phases */
    unsigned failed;
};

/* Which addresses memory commands and gdb's memory packets mean. */
enum space { SPACE_CURRENT, SPACE_ROOT, SPACE_GUEST, SPACE_GUEST_PHYSICAL, SPACE_PHYSICAL, SPACE_COUNT };

struct target_register;
struct target_description { /* as gdb sees the registers in one width of code */
    struct target_register *regs;
    unsigned nregs, ng; /* of which the first ng are in a g packet */
    char *xml;
    size_t xml_size;
};
enum { DESCRIBE_64, DESCRIBE_32, DESCRIBE_16, DESCRIPTIONS };

struct symbols;

struct monitor_line { /* the monitor's own connection */
    int listener, fd;
    char *path;
    FILE *out;
    char in[4096];
    size_t nin;
    bool overlong, waiting; /* waiting: commands wait for the next stop */
};

struct debugger {
    struct nestor *m;
    struct debug_cpu cpu[MACHINE_MAX_CPUS];
    struct breakpoint bp[BREAKPOINTS_MAX];
    unsigned nbp, nphysical;
    u64 bp_filter;       /* bit per value of the low bits of linear addresses */
    u64 physical_filter; /* bit per 64-byte granule of a page */
    u8 level;            /* where gdb's breakpoints count */
    struct own_watch watch[DEBUG_WATCHES];
    unsigned nwatch, numbers; /* numbers given out */

    /* VM entries to stop at, before they act */
    bool entry_all, entry_failing, entry_rows_any;
    u64 entry_rows[8];
    struct entry_walk walk;
    /* VM entries and exits to stop behind */
    bool entered_all, exit_all, exit_reasons_any;
    u64 exit_reasons[4]; /* bit per reason or slot */
    u8 until;            /* once: 'e' an entry, 'x' an exit */

    bool attached;
    enum stop_kind stop; /* the machine is held, or shall be */
    unsigned stop_cpu;
    u64 steps_left;      /* steps the monitor was asked for */
    char note[256];      /* what to tell with the stop */
    bool wait;           /* hold the machine until somebody connects */
    bool resumed, ended;
    unsigned general;    /* processor that g, p, m and monitor commands mean */
    enum space space;
    struct symbols *symbols;
    u64 *mark;           /* "vmcs mark": the fields of the VMCS or VMCB */
    u64 mark_control;    /* at this address */

    /* gdb.c */
    int listener, fd;
    char *path;          /* of a Unix socket, to be removed */
    bool no_ack, swbreak, follow;
    struct target_description target[DESCRIPTIONS];
    unsigned described;  /* which of them gdb has read */
    char in[32768];
    size_t nin;

    struct monitor_line line;
};

/* ---- debugger.c ---- */
void debugger_attach(struct debugger *g); /* a client has come */
void debugger_client_left(struct debugger *g, bool gdb);
bool debugger_break(struct debugger *g, const struct breakpoint *b);
bool debugger_unbreak(struct debugger *g, u64 at, u8 kind);
bool debugger_watch(struct debugger *g, const struct debug_watch *w, unsigned number);
bool debugger_unwatch(struct debugger *g, u64 at, u64 len, unsigned kind);
bool debugger_delete(struct debugger *g, unsigned number); /* of the monitor's; 0: all of them */
void debugger_resume(struct debugger *g); /* .run and .step of the processors are set */
void debugger_stop(struct debugger *g, unsigned cpu, enum stop_kind kind);
enum run_result debugger_run(struct nestor *m, struct vcpu *v, bool *stop);
struct vcpu *debugger_cpu(struct debugger *g); /* the one that commands mean */
/* "L2 (guest mode)": 1 + how many hypervisors are below; the deeper levels are inferred (exit_profile.h). */
const char *cpu_level_name(const struct vcpu *v, char buf[48]);

/* ---- server.c: clients, and the machine held for them ---- */
int debugger_listen(const char *option, const char *address, char **path, struct error *err); /* a socket, or -1 */

/* ---- gdb.c ---- */
void gdb_report_stop(struct debugger *g);
void gdb_console(struct debugger *g, const char *text, size_t n);
bool gdb_receive(struct debugger *g); /* reads what has come; false: nothing, or it hung up */
void gdb_handle_input(struct debugger *g);
void gdb_ended(struct debugger *g, int status);
void gdb_hang_up(struct debugger *g);

/* ---- gdb_regs.c ---- */
void registers_make(struct debugger *g); /* the registers and the target descriptions */
/* Hexadecimal digits of register @n into @out (room for 129); false: no such register. */
bool register_read(const struct target_description *t, struct vcpu *v, unsigned n, char *out);
/* false: no such register, or a value that it cannot have. */
bool register_write(const struct target_description *t, struct vcpu *v, unsigned n, const char *hex);
int register_find(const struct target_description *t, const char *name); /* -1: none */
const char *register_name(const struct target_description *t, unsigned n);
unsigned register_bits(const struct target_description *t, unsigned n);
/* Up to 64 bits; false: no such register, no value now, or wider. */
bool register_value(const struct target_description *t, struct vcpu *v, unsigned n, u64 *value);
bool register_set(const struct target_description *t, struct vcpu *v, unsigned n, u64 value);
unsigned description_for(const struct vcpu *v); /* DESCRIBE_* of the code that runs */
void cpu_set_pc(struct vcpu *v, gva_t la);

/* ---- monitor.c ---- */
struct monitor_command {
    const char *name, *args, *help;
    void (*run)(struct debugger *g, struct vcpu *v, char *args, FILE *out);
    /* Words that may follow, for completion; separated by blanks. */
    const char *words;
    bool control; /* runs or stops the machine: gdb does that itself */
};
void monitor_command(struct debugger *g, char *line, FILE *out, bool from_gdb);
char *next_word(char **p);
bool parse_number(const char *word, u64 *value);
/* A number, $REGISTER or symbol, and +N or -N behind it. */
bool parse_address(struct debugger *g, struct vcpu *v, const char *word, u64 *value);

/* ---- monitor_run.c: breakpoints, steps, registers, memory ---- */
void cmd_break(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_watch(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_delete(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_level(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_until(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_continue(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_run(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_step(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_stop(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_cpu(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_registers(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_print(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_set(struct debugger *g, struct vcpu *v, char *args, FILE *out);

/* ---- space.c ---- */
extern const char *const space_names[SPACE_COUNT];
/* The tables of @s; NULL and *why when there are none now. Not for the physical spaces. */
bool space_context(struct vcpu *v, enum space s, struct walk_context *ctx, const char **why);
/* The debugger's view of memory: no rights, no A/D bits, no devices. Returns how many bytes it got. */
size_t space_read(struct vcpu *v, enum space s, u64 at, void *buf, size_t len);
bool space_write(struct vcpu *v, enum space s, u64 at, const void *buf, size_t len);
void cmd_space(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_walk(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_x(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_phys(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_map(struct debugger *g, struct vcpu *v, char *args, FILE *out);

/* ---- control.c: the VMCS and the VMCB as a whole ---- */
/* The VMCB that the VMCB registers show: the guest's, VMRUN's at RIP, or the latest; false: none yet. */
bool control_vmcb(struct vcpu *v, pa_t *vmcb);
bool control_vmcb_write(struct vcpu *v, enum vmcb_index n, u64 value);
void cmd_vmcs(struct debugger *g, struct vcpu *v, char *args, FILE *out);

/* ---- exits.c ---- */
void cmd_exits(struct debugger *g, struct vcpu *v, char *args, FILE *out);
void cmd_vmexit(struct debugger *g, struct vcpu *v, char *args, FILE *out);
const char *exit_reason_name(const struct vcpu *v, unsigned reason);
int exit_reason_find(const struct vcpu *v, const char *name);

/* ---- vmentry.c ---- */
/* The instruction about to run on @v is VMLAUNCH or VMRESUME and would act as such. */
bool entry_at(struct vcpu *v, bool *launch);
bool vmrun_at(struct vcpu *v);
/* Whether a "vmentry break" wants a stop at this entry; fills g->note. */
bool entry_wanted(struct debugger *g, struct vcpu *v);
void cmd_vmentry(struct debugger *g, struct vcpu *v, char *args, FILE *out);

/* ---- monitor_line.c ---- */
void line_open(struct debugger *g, int fd);
void line_close(struct debugger *g);
void line_handle(struct debugger *g); /* commands that have come, until one lets the machine run */
bool line_receive(struct debugger *g);
void line_report_stop(struct debugger *g);
void line_ended(struct debugger *g, const char *how);

/* ---- symbols.c ---- */
struct symbols *symbols_new(void);
void symbols_free(struct symbols *s);
int symbols_load(struct symbols *s, const char *path, struct error *err);
/* The same from memory: any bytes. */
int symbols_parse(struct symbols *s, const u8 *image, size_t len, struct error *err);
/* The function, without an offset; NULL: none that is known. */
const char *symbols_function(const struct symbols *s, u64 at);
/* " <name+0x12>" or "". */
const char *symbols_name(const struct symbols *s, u64 at, char *buf, size_t size);
bool symbols_find(const struct symbols *s, const char *name, u64 *at);
