/*
 * --threads: every processor on a thread of its own; the thread that called nestor_run() keeps the
 * timers, the host's input and output, resets and the end of the run.
 *
 * What processors share beside memory -- devices, interrupt controllers, timers -- is behind one lock
 * (base/lock.h). Memory needs none: guest accesses are host accesses, whose order between processors is
 * that of the host, and LOCKed operations are host LOCKed operations.
 *
 * What a processor keeps for itself about memory (grants to write, decoded and translated code) may be
 * touched by another thread only while its own stands still. A thread "runs" from the start of a slice
 * to its end, except while it waits for the lock or for its turn to stop the others; stop_others() asks
 * for the ends of the slices and waits until nobody runs. Pages remember which processors it may matter
 * to (struct physmap_sharing), so that this is rare.
 */
#include "base/thread.h"
#include "machine/machine.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* A processor gives its thread's loop a turn after so many instructions. */
#define SLICE (1u << 24)
/* A processor in MWAIT looks at the line this often. */
#define MWAIT_SPINS 200
#define MWAIT_POLL_NS 50000
/* The longest the main thread sleeps: states that nobody announces are noticed then. */
#define MAIN_SLEEP_NS 100000000

struct thread {
    struct nestor *m;
    struct vcpu *v;
    pthread_t id;
};

struct machine_threads {
    struct lock lock;        /* of everything shared beside memory; first: wait() gets it back */
    pthread_mutex_t mutex;   /* of the rest of this struct */
    pthread_cond_t changed;
    unsigned running;        /* threads that may be looking at what others would change */
    unsigned inside;         /* threads within a slice, running or waiting */
    unsigned stops;          /* nested stop_others() of .stopper */
    pthread_t stopper;
    bool pause;              /* the main thread wants everybody outside of slices */
    bool quit;
    bool active;             /* there are threads */
    u64 stopped, stopped_ns; /* how often, and how long was waited for it */
    u64 for_code, for_grants;
    struct write_count {
        pa_t page;
        unsigned n;
    } writes[256]; /* of pages in which others hold code, by page number */
    int kick_fd;             /* eventfd: the main thread's sleep ends */
    struct lock_intc {
        struct lock *lock;
        const struct intc_ops *ops;
        void *intc;
    } intc[MACHINE_MAX_CPUS];
    struct thread thread[MACHINE_MAX_CPUS];
};

/* The processor whose thread this is; NULL: not a processor's. */
static _Thread_local struct vcpu *self;

static u64 self_bit(void) { return self ? BIT64(self->index) : 0; }

/* ---- standing still ---- */

static void wait_for_turn(struct machine_threads *t)
{
    while (t->stops && !pthread_equal(t->stopper, pthread_self()))
        pthread_cond_wait(&t->changed, &t->mutex);
}

static void pause_running(struct machine_threads *t)
{
    if (!self)
        return;
    pthread_mutex_lock(&t->mutex);
    t->running--;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->mutex);
}

static void resume_running(struct machine_threads *t)
{
    if (!self)
        return;
    pthread_mutex_lock(&t->mutex);
    wait_for_turn(t);
    t->running++;
    pthread_mutex_unlock(&t->mutex);
}

static void lock_wait(struct lock *l)
{
    struct machine_threads *t = container_of(l, struct machine_threads, lock);
    pause_running(t);
    pthread_mutex_lock(&l->mutex);
    resume_running(t);
}

static void stop_others(void *opaque)
{
    struct nestor *m = opaque;
    struct machine_threads *t = m->threads;
    if (!t->active)
        return;
    pthread_mutex_lock(&t->mutex);
    if (t->stops && pthread_equal(t->stopper, pthread_self())) {
        t->stops++;
        pthread_mutex_unlock(&t->mutex);
        return;
    }
    if (self) {
        t->running--;
        pthread_cond_broadcast(&t->changed);
    }
    u64 began = host_time_ns();
    wait_for_turn(t);
    t->stops = 1;
    t->stopper = pthread_self();
    for (unsigned i = 0; t->running && i < m->ncpus; i++)
        if (m->cpu[i] != self && !atomic_load(&m->cpu[i]->sleeping))
            vcpu_request(m->cpu[i], REQ_EXIT);
    while (t->running)
        pthread_cond_wait(&t->changed, &t->mutex);
    t->stopped++;
    t->stopped_ns += host_time_ns() - began;
    pthread_mutex_unlock(&t->mutex);
}

static void let_others(void *opaque)
{
    struct nestor *m = opaque;
    struct machine_threads *t = m->threads;
    if (!t->active)
        return;
    pthread_mutex_lock(&t->mutex);
    if (!--t->stops) {
        if (self)
            t->running++;
        pthread_cond_broadcast(&t->changed);
    }
    pthread_mutex_unlock(&t->mutex);
}

/* ---- what others know about memory ---- */

/*
 * After so many writes to a page in which others hold code they forget all of it: most such pages hold
 * data by now, and each write stops everybody.
 */
#define WRITES_TOLERATED 16

/* While the others stand still. */
static bool written_too_often(struct machine_threads *t, pa_t pa)
{
    struct write_count *c = &t->writes[pa >> PAGE_SHIFT & (ARRAY_SIZE(t->writes) - 1)];
    if (c->page != (pa & PAGE_MASK))
        *c = (struct write_count){.page = pa & PAGE_MASK};
    if (++c->n < WRITES_TOLERATED)
        return false;
    c->n = 0;
    return true;
}

/* Within one page, while every processor of @cpus stands still or is the caller's. */
static void page_code_written(struct nestor *m, u64 cpus, pa_t pa, size_t len)
{
    for (; cpus; cpus &= cpus - 1)
        m->engine->code_written(m->cpu[__builtin_ctzll(cpus)], pa, len);
}

void machine_threads_code_written(struct nestor *m, pa_t pa, size_t len)
{
    while (len) {
        size_t n = PAGE_SIZE - (pa & ~PAGE_MASK);
        if (n > len)
            n = len;
        u64 holders = physmap_users(m->pm, pa, PAGE_HOLDERS), me = self_bit();
        page_code_written(m, holders & me, pa, n);
        /* Others' code, or none any more: writes to the page may be fast again, which must not race with decoding. */
        if ((holders & ~me) || !(holders & me) || !m->engine->holds_code(self, pa)) {
            stop_others(m);
            m->threads->for_code++;
            holders = physmap_users(m->pm, pa, PAGE_HOLDERS);
            if (written_too_often(m->threads, pa))
                page_code_written(m, holders & ~me, pa & PAGE_MASK, PAGE_SIZE);
            else
                page_code_written(m, holders & ~me, pa, n);
            u64 left = 0;
            for (u64 h = holders; h; h &= h - 1)
                if (m->engine->holds_code(m->cpu[__builtin_ctzll(h)], pa))
                    left |= h & -h;
            physmap_forget_users(m->pm, pa, PAGE_HOLDERS, ~left);
            if (!left)
                physmap_clear_page_flag(m->pm, pa, PAGE_CODE);
            let_others(m);
        }
        pa += n;
        len -= n;
    }
}

/* A page became tracked: nobody may write it without being noticed any more. */
static void protect(void *opaque, pa_t page)
{
    struct nestor *m = opaque;
    u64 writers = physmap_users(m->pm, page, PAGE_WRITERS);
    bool others = writers & ~self_bit();
    if (others) {
        stop_others(m);
        m->threads->for_grants++;
        writers = physmap_users(m->pm, page, PAGE_WRITERS);
    }
    physmap_forget_users(m->pm, page, PAGE_WRITERS, writers);
    for (; writers; writers &= writers - 1)
        mmu_protect_page(m->cpu[__builtin_ctzll(writers)], page);
    if (others)
        let_others(m);
}

/* ---- the interrupt controller, under the lock ---- */

#define LOCKED(result, call)                                                                       \
    struct lock_intc *l = intc;                                                                    \
    lock_take(l->lock);                                                                            \
    result l->ops->call;                                                                           \
    lock_give(l->lock)

static int intc_peek(void *intc) { LOCKED(int r =, peek(l->intc)); return r; }
static int intc_ack(void *intc) { LOCKED(int r =, ack(l->intc)); return r; }
static u8 intc_get_tpr(void *intc) { LOCKED(u8 r =, get_tpr(l->intc)); return r; }
static void intc_set_tpr(void *intc, u8 tpr) { LOCKED(, set_tpr(l->intc, tpr)); }
static int intc_rdmsr(void *intc, u32 msr, u64 *value) { LOCKED(int r =, rdmsr(l->intc, msr, value)); return r; }
static int intc_wrmsr(void *intc, u32 msr, u64 value) { LOCKED(int r =, wrmsr(l->intc, msr, value)); return r; }
static void intc_init(void *intc) { LOCKED(, init(l->intc)); }
static u32 intc_id(void *intc) { LOCKED(u32 r =, id(l->intc)); return r; }
static u64 intc_page(void *intc) { LOCKED(u64 r =, page(l->intc)); return r; }
static u64 intc_mmio_read(void *intc, u32 offset, unsigned size)
{
    LOCKED(u64 r =, mmio_read(l->intc, offset, size));
    return r;
}
static void intc_mmio_write(void *intc, u32 offset, u64 value, unsigned size)
{
    LOCKED(, mmio_write(l->intc, offset, value, size));
}
#undef LOCKED

static const struct intc_ops locked_intc_ops = {
    .peek = intc_peek, .ack = intc_ack, .get_tpr = intc_get_tpr, .set_tpr = intc_set_tpr, .rdmsr = intc_rdmsr,
    .wrmsr = intc_wrmsr, .init = intc_init, .id = intc_id, .page = intc_page, .mmio_read = intc_mmio_read,
    .mmio_write = intc_mmio_write,
};

/* ---- sleep ---- */

static void futex_wait(_Atomic u32 *word, u32 value, u64 ns)
{
    struct timespec ts = {.tv_sec = (time_t)(ns / NSEC_PER_SEC), .tv_nsec = (long)(ns % NSEC_PER_SEC)};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, ns == UINT64_MAX ? NULL : &ts, NULL, 0);
}

static void wake(struct vcpu *v)
{
    if (atomic_exchange(&v->sleeping, 0))
        syscall(SYS_futex, &v->sleeping, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Until there is something to do. What is put into @v after .sleeping was set is followed by wake(). */
static void cpu_sleep(struct vcpu *v)
{
    if (v->activity == ACTIVITY_MWAIT)
        for (unsigned n = 0; n < MWAIT_SPINS; n++) {
            if (machine_cpu_runnable(v))
                return;
            __builtin_ia32_pause();
        }
    atomic_store(&v->sleeping, 1);
    while (atomic_load(&v->sleeping) && !machine_cpu_runnable(v) && !(atomic_load(&v->requests) & REQ_EXIT))
        futex_wait(&v->sleeping, 1, v->activity == ACTIVITY_MWAIT ? MWAIT_POLL_NS : UINT64_MAX);
    atomic_store(&v->sleeping, 0);
}

/* ---- a processor's thread ---- */

static bool main_has_to_act(const struct nestor *m)
{
    return m->want_exit || m->want_power_off || m->want_reset || m->triple_fault || m->suspended || m->want_stop;
}

/* False: the run is over. */
static bool slice_begin(struct nestor *m)
{
    struct machine_threads *t = m->threads;
    pthread_mutex_lock(&t->mutex);
    while (!t->quit && (t->pause || main_has_to_act(m) || t->stops))
        pthread_cond_wait(&t->changed, &t->mutex);
    bool go = !t->quit;
    if (go) {
        t->running++;
        t->inside++;
    }
    pthread_mutex_unlock(&t->mutex);
    return go;
}

static void slice_end(struct nestor *m)
{
    struct machine_threads *t = m->threads;
    pthread_mutex_lock(&t->mutex);
    t->running--;
    t->inside--;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->mutex);
}

static void *cpu_thread(void *arg)
{
    struct thread *th = arg;
    struct nestor *m = th->m;
    struct vcpu *v = self = th->v;
    while (slice_begin(m)) {
        v->budget_end = v->icount + SLICE;
        enum run_result r = machine_cpu_runnable(v) ? m->engine->run(v) : RUN_HALTED;
        if (r == RUN_SHUTDOWN)
            m->triple_fault = true;
        slice_end(m);
        if (r == RUN_SHUTDOWN)
            machine_threads_kick(m);
        if (v->activity != ACTIVITY_ACTIVE)
            cpu_sleep(v);
    }
    return NULL;
}

/* ---- the main thread ---- */

void machine_threads_kick(struct nestor *m)
{
    const u64 one = 1;
    /* It can only fail when the counter is at its end: then the sleep has ended already. */
    if (m->threads && write(m->threads->kick_fd, &one, sizeof(one)) < 0)
        return;
}

static void timer_sooner(void *opaque) { machine_threads_kick(opaque); }

/* Everybody outside of slices, so that the processors' state itself may be changed. */
static void pause_all(struct nestor *m)
{
    struct machine_threads *t = m->threads;
    pthread_mutex_lock(&t->mutex);
    t->pause = true;
    for (unsigned i = 0; i < m->ncpus; i++)
        vcpu_request(m->cpu[i], REQ_EXIT);
    while (t->inside)
        pthread_cond_wait(&t->changed, &t->mutex);
    pthread_mutex_unlock(&t->mutex);
}

static void resume_all(struct nestor *m)
{
    struct machine_threads *t = m->threads;
    pthread_mutex_lock(&t->mutex);
    t->pause = false;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->mutex);
    for (unsigned i = 0; i < m->ncpus; i++)
        vcpu_kick(m->cpu[i]);
}

static bool all_asleep(struct nestor *m)
{
    struct machine_threads *t = m->threads;
    pthread_mutex_lock(&t->mutex);
    bool asleep = !t->inside && !t->pause;
    pthread_mutex_unlock(&t->mutex);
    for (unsigned i = 0; asleep && i < m->ncpus; i++)
        asleep = atomic_load(&m->cpu[i]->sleeping);
    return asleep;
}

static void main_sleep(struct nestor *m, u64 next, u64 deadline)
{
    u64 now = clock_now(&m->clock), host = host_time_ns();
    u64 wait = next <= now ? 0 : next - now < MAIN_SLEEP_NS ? next - now : MAIN_SLEEP_NS;
    if (deadline && host + wait > deadline)
        wait = deadline > host ? deadline - host : 0;
    struct pollfd fd[2] = {{.fd = m->threads->kick_fd, .events = POLLIN}, {.fd = m->config.serial_wait_fd, .events = POLLIN}};
    struct timespec ts = {.tv_sec = (time_t)(wait / NSEC_PER_SEC), .tv_nsec = (long)(wait % NSEC_PER_SEC)};
    if (m->have_rx)
        fd[1].fd = -1; /* the port has no room now */
    if (ppoll(fd, 2, &ts, NULL) <= 0)
        return;
    u64 count;
    if (fd[0].revents && read(m->threads->kick_fd, &count, sizeof(count)) < 0)
        return;
    if (fd[1].revents && !(fd[1].revents & POLLIN))
        m->config.serial_wait_fd = -1; /* closed: input has ended */
}

static void machine_state_changes(struct nestor *m)
{
    struct error err;
    if (!m->want_reset && !(m->suspended && machine_wants_wake(m)))
        return;
    pause_all(m);
    if (m->want_reset ? machine_reset(m, &err) : machine_wake(m, &err))
        panic("the image cannot be loaded again: %s", err.text);
    resume_all(m);
}

static void main_loop(struct nestor *m, u64 deadline, struct nestor_result *result)
{
    struct lock *lock = &m->threads->lock;
    for (;;) {
        lock_take(lock);
        clock_run(&m->clock);
        machine_serial_input(m);
        machine_serial_flush(m);
        u64 next = clock_next(&m->clock);
        bool stop = machine_stop_requested(m, deadline, result);
        lock_give(lock);
        if (stop)
            return;
        machine_state_changes(m);
        if (all_asleep(m) && machine_halted_for_ever(m) && all_asleep(m)) {
            *result = (struct nestor_result){NESTOR_HALTED, 0};
            return;
        }
        main_sleep(m, next, deadline);
    }
}

struct nestor_result machine_run_threads(struct nestor *m, u64 deadline)
{
    struct machine_threads *t = m->threads;
    struct nestor_result result = {NESTOR_STOPPED, 0};
    unsigned started = 0;
    t->quit = t->pause = false;
    t->active = true;
    for (; started < m->ncpus; started++)
        if (thread_start(&t->thread[started].id, cpu_thread, &t->thread[started]))
            panic("the host gives no thread for processor %u", started);
    main_loop(m, deadline, &result);

    pthread_mutex_lock(&t->mutex);
    t->quit = true;
    for (unsigned i = 0; i < m->ncpus; i++)
        vcpu_request(m->cpu[i], REQ_EXIT);
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->mutex);
    for (unsigned i = 0; i < started; i++)
        pthread_join(t->thread[i].id, NULL);
    t->active = false;
    machine_serial_flush(m);
    return result;
}

/* ---- life ---- */

int machine_threads_new(struct nestor *m, struct error *err)
{
    if (m->clock.kind != CLOCK_HOST)
        return error_set(err, "--threads: expected --clock host; instructions of several threads have no one order");
    if (m->engine == &engine_lockstep)
        return error_set(err, "--threads: expected --engine jit or interp; lockstep compares on one thread");
    if (m->mmu != MMU_WALK)
        return error_set(err, "--threads: expected --mmu walk; shadow page tables serve one thread");
    struct machine_threads *t = m->threads = calloc(1, sizeof(*t));
    if (!t)
        return error_set(err, "out of memory for the threads");
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&t->lock.mutex, &recursive);
    pthread_mutexattr_destroy(&recursive);
    t->lock.wait = lock_wait;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->changed, NULL);
    t->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (t->kick_fd < 0)
        return error_set(err, "--threads: the host gives no event descriptor: %s", strerror(errno));
    for (unsigned i = 0; i < m->ncpus; i++) {
        struct vcpu *v = m->cpu[i];
        t->thread[i] = (struct thread){.m = m, .v = v};
        t->intc[i] = (struct lock_intc){.lock = &t->lock, .ops = v->intc_ops, .intc = v->intc};
        v->intc_ops = &locked_intc_ops;
        v->intc = &t->intc[i];
        v->wake = wake;
    }
    pio_bus_set_lock(m->pio, &t->lock);
    m->clock.lock = &t->lock;
    m->clock.sooner = timer_sooner;
    m->clock.sooner_opaque = m;
    struct physmap_sharing sharing = {.lock = &t->lock, .stop = stop_others, .go = let_others, .opaque = m};
    physmap_on_protect(m->pm, protect, m);
    return physmap_share(m->pm, &sharing, err);
}

void machine_threads_stats(const struct nestor *m, FILE *out)
{
    const struct machine_threads *t = m->threads;
    if (t)
        fprintf(out, "threads stopped each other %" PRIu64 " times, %.1f microseconds each: %" PRIu64
                " for writes to code, %" PRIu64 " for write grants to code\n", t->stopped,
                t->stopped ? (double)t->stopped_ns / 1000.0 / (double)t->stopped : 0.0, t->for_code, t->for_grants);
}

void machine_threads_free(struct nestor *m)
{
    struct machine_threads *t = m->threads;
    if (!t)
        return;
    if (t->kick_fd >= 0)
        close(t->kick_fd);
    pthread_mutex_destroy(&t->lock.mutex);
    pthread_mutex_destroy(&t->mutex);
    pthread_cond_destroy(&t->changed);
    free(t);
    m->threads = NULL;
}
