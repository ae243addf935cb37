/*
 * Trace categories, chosen at run time. A category nobody asked for costs one predictable branch.
 */
#pragma once
#include "base/error.h"
#include "base/types.h"

#include <stdio.h>

enum log_category {
#define LOG(name, help) LOG_##name,
#include "base/log.def"
#undef LOG
    LOG_CATEGORY_COUNT
};

extern u32 log_mask;

static inline bool log_on(enum log_category c) { return unlikely(log_mask & (1u << c)); }

void log_line(enum log_category c, const char *fmt, ...) printf_like(2, 3) __attribute__((nonnull(2)));

/* Formats only when the category is on. */
#define log_at(cat, ...)                                                                           \
    do {                                                                                           \
        if (log_on(LOG_##cat))                                                                     \
            log_line(LOG_##cat, __VA_ARGS__);                                                      \
    } while (0)

/* Parses "a,b" or "all"; unknown names fill @err. */
int log_enable(const char *names, struct error *err);
/* Sends the log to a file instead of standard error. */
int log_open(const char *path, struct error *err);
/* A line for each category. */
void log_list(FILE *out);
/* The names of those that are on. */
void log_list_enabled(FILE *out);
/* For completion: @before and each name that begins with @text, a line each. */
void log_complete(FILE *out, const char *before, const char *text);
