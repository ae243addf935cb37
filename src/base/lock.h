/*
 * The lock around what all processors share beside memory: devices, interrupt controllers, timers. It
 * exists only while processors run on threads of their own (--threads); otherwise its users hold NULL,
 * and taking it costs one comparison. It may be taken again by the thread that holds it.
 */
#pragma once
#include <pthread.h>
#include <stddef.h>

struct lock {
    pthread_mutex_t mutex; /* recursive */
    void (*wait)(struct lock *l); /* takes the mutex when another thread holds it */
};

static inline void lock_take(struct lock *l)
{
    if (l && pthread_mutex_trylock(&l->mutex))
        l->wait(l);
}
static inline void lock_give(struct lock *l)
{
    if (l)
        pthread_mutex_unlock(&l->mutex);
}
