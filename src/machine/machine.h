/*
 * A PC put together: processors, memory, devices, image, run loop. Owns everything it makes; two
 * machines in one process share nothing.
 */
#pragma once
#include "base/clock.h"
#include "base/log.h"
#include "cpu/cpu.h"
#include "cpu/engine.h"
#include "devices/bus.h"
#include "machine/boot.h"
#include "nestor/nestor.h"

#define MACHINE_MAX_CPUS 64

/* What a debugger hangs into the run loop (src/debug); nothing of it is called while there is none. */
struct machine_debugger {
    /* Between slices: may hold the machine as long as it likes. False: end the run. */
    bool (*between)(struct nestor *m);
    /* Runs @v in place of the engine; sets *stop when the other processors shall not have their turn. */
    enum run_result (*run)(struct nestor *m, struct vcpu *v, bool *stop);
    /* The run is about to end with @result: the last look at it. */
    void (*ending)(struct nestor *m, const struct nestor_result *result);
    void (*free)(struct nestor *m);
};

struct nestor {
    struct board board; /* first: devices hand it back */
    struct clock clock;
    struct physmap *pm;
    struct pio_bus *pio;
    struct machine_devices *devices;
    struct vcpu *cpu[MACHINE_MAX_CPUS];
    unsigned ncpus;
    struct hyperv *hyperv; /* NULL: not offered */
    struct vcpu *running; /* whose slice it is */
    const struct engine *engine;
    enum mmu_mode mmu;
    struct boot boot;
    struct nestor_config config;
    u64 ram;

    struct machine_threads *threads; /* --threads; NULL: one thread runs everything */

    const struct machine_debugger *debugger; /* NULL: none */
    void *debugger_state;

    /* requests of devices and of nestor_stop(), acted on between slices */
    _Atomic bool want_stop, want_reset, want_power_off, want_exit, triple_fault;
    _Atomic bool suspended; /* in S3, until an enabled event wakes the machine */
    int exit_status;

    u8 tx[256]; /* serial output not yet handed to the host */
    size_t ntx;
    u8 rx;        /* a byte of input the serial port had no room for */
    bool have_rx;
    u64 started_ns, ran_ns, idle_ns; /* host time */
    u64 slices;
};

/* machine.c */
int machine_reset(struct nestor *m, struct error *err);
/* The way back from S3 (ACPI specification 6.5, "Waking and Sleeping"): everything but RAM and the
 * wake logic is reset, then the first processor goes on at the operating system's waking vector. */
int machine_wake(struct nestor *m, struct error *err);
/* devices.c: makes the devices and wires them; reset puts them into their power-on state and does the
 * resource assignment of a firmware. */
int machine_add_devices(struct nestor *m, struct error *err);
void machine_reset_devices(struct nestor *m, bool power_on);
bool machine_wants_wake(const struct nestor *m);
/* Tells the guest that it has slept. */
void machine_woken(struct nestor *m);
void machine_free_devices(struct nestor *m);
/* Passes waiting input to the serial port. */
void machine_serial_input(struct nestor *m);
void machine_serial_flush(struct nestor *m);
/* threads.c: processors on threads of their own */
int machine_threads_new(struct nestor *m, struct error *err);
void machine_threads_free(struct nestor *m);
void machine_threads_stats(const struct nestor *m, FILE *out);
/* What physmap's subscriber does then. */
void machine_threads_code_written(struct nestor *m, pa_t pa, size_t len);
/* The thread of nestor_run() has something to do; async-signal-safe. */
void machine_threads_kick(struct nestor *m);
struct nestor_result machine_run_threads(struct nestor *m, u64 deadline);
/* stats.c: counts VM exits by reason, level and place from now on. */
void machine_profile_exits(struct nestor *m);
/* run.c */
bool machine_cpu_runnable(struct vcpu *v);
bool machine_halted_for_ever(const struct nestor *m);
bool machine_stop_requested(struct nestor *m, u64 deadline, struct nestor_result *r);
struct nestor_result machine_run(struct nestor *m, double timeout);
u64 host_time_ns(void);
