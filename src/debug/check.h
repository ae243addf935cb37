/*
 * The VM-entry check table for people: every row evaluated on a processor's current VMCS or on a dump
 * from somebody else's system, where part of the fields and facts is unknown.
 */
#pragma once
#include "base/error.h"
#include "vmx/vmx.h"

#include <stdio.h>

enum check_result { RESULT_PASS, RESULT_FAIL, RESULT_NOT_APPLICABLE, RESULT_UNKNOWN, RESULT_COUNT };

struct check_case {
    struct vmx_snapshot s; /* .f and .caps point to what follows */
    struct vmx_caps caps;
    u64 f[VMCS_SLOT_COUNT];
    struct vmx_reads known; /* fields and facts that have a value */
    bool assumed;           /* the capabilities are assumptions, not a processor's */
};
static inline bool case_knows(const struct check_case *c, unsigned slot) { return c->known.fields[slot / 64] >> (slot % 64) & 1; }
void case_set(struct check_case *c, unsigned slot, u64 value);

/* Nothing known; a processor that has every control and feature the tables name. */
void case_init_unknown(struct check_case *c);
/* The current VMCS of @v, which must have one; all is known but the MSR-load list. */
void case_from_vcpu(struct check_case *c, struct vcpu *v);
/* @missing (may be NULL): what the outcome would rest on and is unknown. */
enum check_result case_run(const struct check_case *c, unsigned row, struct vmx_reads *missing);
const char *check_result_name(enum check_result r);
/* "controls": what a failure of a row of @c does. */
const char *check_stage_name(unsigned stage);
void check_effect(const struct virt_check *c, char *buf, size_t size);
/* Row number of @id in any case of letters, or -1. */
int check_find(const char *id);

/* ---- repair.c: what would satisfy a failing row ---- */
#define REPAIRS_MAX 4
struct repairs {
    unsigned n;
    char text[REPAIRS_MAX][192];
};
/* Finds small changes of the row's fields under which the row passes or no longer applies. */
void check_repair(const struct check_case *c, unsigned row, struct repairs *out);
/* The name of bit @bit of a field ("PG"), or NULL. */
const char *vmcs_bit_name(unsigned slot, unsigned bit);

/* ---- json.c ---- */
struct json {
    const char *p, *end;
    unsigned line, depth, first_line; /* line: the last one, in the end */
    struct error *err;
    int (*set)(struct json *j, const char *name, u64 value); /* 0, or -1 with *err filled */
    void *target;
};
int json_read(struct json *j);
int json_error(struct json *j, const char *what);

/* ---- vmcs_dump.c ---- */
struct vmcs_dump {
    struct check_case c;
    const char *kind;              /* "Linux kernel log", "JSON" */
    unsigned number, count;        /* which of how many dumps in the file */
    unsigned first_line, last_line;
    bool has_hardware_error;
    u64 hardware_error;            /* "hardware error 0x..." of the log's KVM lines */
    bool cut;                      /* the file ends within a value, which is not used */
};
/* Dump @number of the text, counted from 1 (0: the last one). The text may hold anything. */
int vmcs_dump_read(struct vmcs_dump *d, const char *text, size_t len, unsigned number, struct error *err);

/* ---- check_report.c ---- */
void print_json_string(FILE *out, const char *s);
void print_row(FILE *out, const struct check_case *c, unsigned row); /* heading, rule, values */
