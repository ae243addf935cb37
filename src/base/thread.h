/* Threads that leave the host's signals to the one that started them. */
#pragma once
#include <pthread.h>

/* Returns 0, or an errno value. */
int thread_start(pthread_t *id, void *(*run)(void *arg), void *arg);
