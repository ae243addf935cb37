/* A dumped VMCB against the VMRUN check table; the VMCS counterpart is check.h. */
#pragma once
#include "base/error.h"

#include "debug/check.h"

#include <stdio.h>

/* Does the text hold KVM's dump of a VMCB? */
bool vmcb_check_mine(const char *text, size_t len);
/* Prints the report. The number of failing rows, or -1 with @err. */
int vmcb_check(const char *name, const char *text, size_t len, unsigned number, bool json, FILE *out, struct error *err);
/*
 * The VMCB at @vmcb as the processor would read it now (clean bits aside): the outcome of row @row, printed
 * to @out unless that is NULL, with what would satisfy it when it fails and @advise is set.
 */
enum check_result vmcb_live_row(struct vcpu *v, pa_t vmcb, unsigned row, FILE *out, bool advise);
/* Row number of a VMRUN check, or -1. */
int vmcb_find_row(const char *id);
/* 0, or -1: no VMRUN check is called @id. */
int vmcb_explain(const char *id, bool json, FILE *out);
