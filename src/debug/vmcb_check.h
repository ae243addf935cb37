/* A dumped VMCB against the VMRUN check table; the VMCS counterpart is check.h. */
#pragma once
#include "base/error.h"

#include <stdio.h>

/* Does the text hold KVM's dump of a VMCB? */
bool vmcb_check_mine(const char *text, size_t len);
/* Prints the report. The number of failing rows, or -1 with @err. */
int vmcb_check(const char *name, const char *text, size_t len, unsigned number, bool json, FILE *out, struct error *err);
/* 0, or -1: no VMRUN check is called @id. */
int vmcb_explain(const char *id, bool json, FILE *out);
