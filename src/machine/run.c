/*
 * The run loop: slices of the processors in turn on one thread, timers and host input between them,
 * sleep while nobody has anything to do.
 */
#include "machine/machine.h"

#include <errno.h>
#include <poll.h>
#include <time.h>

/* Instructions a processor runs before the others, the timers and the host have their turn. Short
 * enough that a timer is late by a fraction of a millisecond, and that a spinning processor does not
 * keep the one it waits for from running. */
#define SLICE_ALONE 65536
#define SLICE_SHARED 16384
/* Under --clock icount one instruction takes one nanosecond. */
#define ICOUNT_SLICE 8192

u64 host_time_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (u64)ts.tv_sec * NSEC_PER_SEC + (u64)ts.tv_nsec;
}

bool machine_cpu_runnable(struct vcpu *v)
{
    if (v->activity == ACTIVITY_MWAIT && cpu_mwait_over(v))
        return true;
    /* ATT_VIRT: a VMX-preemption timer or a window may end the guest's wait. */
    return v->activity == ACTIVITY_ACTIVE || (atomic_load_explicit(&v->requests, memory_order_relaxed) & ~(u32)REQ_EXIT) ||
           (v->guest_mode && (atomic_load_explicit(&v->attention, memory_order_relaxed) & ATT_VIRT));
}

/* Can nothing but the host wake this machine any more? Interrupts cannot when they are disabled; no
 * device of this machine raises an NMI by itself. */
bool machine_halted_for_ever(const struct nestor *m)
{
    for (unsigned i = 0; i < m->ncpus; i++) {
        const struct vcpu *v = m->cpu[i];
        if (v->activity == ACTIVITY_ACTIVE || v->activity == ACTIVITY_MWAIT || v->guest_mode)
            return false;
        if (v->activity == ACTIVITY_HLT && (v->rflags & FL_IF))
            return false;
    }
    return true;
}

/* Waits for the next timer, host input or the deadline, whichever comes first. */
static void idle(struct nestor *m, u64 deadline)
{
    u64 next = clock_next(&m->clock);
    for (unsigned i = 0; i < m->ncpus; i++) /* with interrupts off nothing but the time ends this */
        if (m->cpu[i]->activity == ACTIVITY_MWAIT && !(m->cpu[i]->rflags & FL_IF) && m->cpu[i]->mwait_until < next)
            next = m->cpu[i]->mwait_until;
    if (m->clock.kind == CLOCK_ICOUNT) {
        /* Nothing happens until the next timer: time jumps there. */
        if (next != UINT64_MAX && next > clock_now(&m->clock))
            clock_advance(&m->clock, next - clock_now(&m->clock));
        if (next != UINT64_MAX)
            return;
    }
    u64 now = clock_now(&m->clock), host = host_time_ns();
    u64 wait = next == UINT64_MAX ? 100000000 : next > now ? next - now : 0;
    if (wait > 100000000)
        wait = 100000000; /* nestor_stop() from another thread is noticed within a tenth of a second */
    if (deadline && host + wait > deadline)
        wait = deadline > host ? deadline - host : 0;
    if (!wait)
        return;
    struct pollfd fd = {.fd = m->config.serial_wait_fd, .events = POLLIN};
    struct timespec ts = {.tv_sec = (time_t)(wait / NSEC_PER_SEC), .tv_nsec = (long)(wait % NSEC_PER_SEC)};
    if (ppoll(&fd, fd.fd >= 0, &ts, NULL) > 0 && !(fd.revents & POLLIN))
        m->config.serial_wait_fd = -1; /* closed: input has ended */
    m->idle_ns += host_time_ns() - host;
}

static u64 slice_length(const struct nestor *m)
{
    if (m->clock.kind == CLOCK_HOST)
        return m->ncpus > 1 ? SLICE_SHARED : SLICE_ALONE;
    u64 next = clock_next(&m->clock), now = clock_now(&m->clock);
    u64 room = next == UINT64_MAX ? ICOUNT_SLICE : next > now ? next - now : 1;
    return room < ICOUNT_SLICE ? room : ICOUNT_SLICE;
}

static u64 instructions_retired(void *cpu) { return cpu_retired(cpu); }
/* The instruction in hand ends first. */
static void timer_due(void *cpu, u64 ns) { cpu_end_slice(cpu, ns ? ns : 1); }
static const struct clock_source instructions = {instructions_retired, timer_due};

bool machine_stop_requested(struct nestor *m, u64 deadline, struct nestor_result *r)
{
    if (m->want_exit)
        *r = (struct nestor_result){NESTOR_GUEST_EXIT, m->exit_status};
    else if (m->want_power_off)
        *r = (struct nestor_result){NESTOR_POWER_OFF, 0};
    else if (m->triple_fault)
        *r = (struct nestor_result){NESTOR_TRIPLE_FAULT, 0};
    else if (m->want_reset && m->config.no_reboot)
        *r = (struct nestor_result){NESTOR_RESET, 0};
    else if (atomic_load_explicit(&m->want_stop, memory_order_relaxed))
        *r = (struct nestor_result){NESTOR_STOPPED, 0};
    else if (deadline && host_time_ns() >= deadline)
        *r = (struct nestor_result){NESTOR_TIMEOUT, 0};
    else
        return false;
    return true;
}

struct nestor_result machine_run(struct nestor *m, double timeout)
{
    struct nestor_result result = {NESTOR_STOPPED, 0};
    u64 began = host_time_ns();
    u64 deadline = timeout > 0 ? began + (u64)(timeout * 1e9) : 0;
    unsigned turn = 0;

    if (m->threads) {
        result = machine_run_threads(m, deadline);
        m->ran_ns += host_time_ns() - began;
        return result;
    }
    while (!machine_stop_requested(m, deadline, &result)) {
        if (m->want_reset) {
            struct error err;
            if (machine_reset(m, &err))
                panic("the image cannot be loaded again: %s", err.text);
        }
        clock_run(&m->clock);
        if (unlikely(m->debugger != NULL) && !m->debugger->between(m))
            break;
        if (m->suspended) {
            struct error err;
            if (!machine_wants_wake(m))
                idle(m, deadline);
            else if (machine_wake(m, &err))
                panic("the image cannot be loaded again: %s", err.text);
            continue;
        }
        if ((turn++ & 7) == 0) {
            machine_serial_input(m);
            machine_serial_flush(m);
        }
        bool any = false, stop = false;
        u64 length = slice_length(m), longest = 0;
        for (unsigned i = 0; i < m->ncpus; i++) {
            struct vcpu *v = m->cpu[i];
            if (!machine_cpu_runnable(v))
                continue;
            u64 start = v->icount;
            v->budget_end = start + length;
            if (m->clock.kind == CLOCK_ICOUNT)
                clock_follow(&m->clock, &instructions, v);
            m->running = v;
            enum run_result r = likely(!m->debugger) ? m->engine->run(v) : m->debugger->run(m, v, &stop);
            m->running = NULL;
            if (m->clock.kind == CLOCK_ICOUNT)
                clock_follow(&m->clock, NULL, NULL);
            if (v->icount - start > longest)
                longest = v->icount - start;
            if (m->clock.kind == CLOCK_ICOUNT && slice_length(m) < length) /* it has armed a timer */
                length = slice_length(m);
            any |= v->icount != start || r != RUN_HALTED || stop;
            if (r == RUN_SHUTDOWN)
                m->triple_fault = true;
            if (m->want_exit || m->want_power_off || m->want_reset || m->suspended || stop)
                break;
        }
        m->slices++;
        if (m->clock.kind == CLOCK_ICOUNT)
            clock_advance(&m->clock, longest);
        if (any)
            continue;
        machine_serial_flush(m);
        if (machine_halted_for_ever(m) && !machine_stop_requested(m, deadline, &result)) {
            result = (struct nestor_result){NESTOR_HALTED, 0};
            break;
        }
        idle(m, deadline);
        turn = 0;
    }
    machine_serial_flush(m);
    if (m->debugger)
        m->debugger->ending(m, &result);
    m->ran_ns += host_time_ns() - began;
    return result;
}
