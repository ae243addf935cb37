/* What translated code may consist of: docs/jit.md, "Security". */
#pragma once
#include "jit/internal.h"

#include <capstone/capstone.h>

/* What is wrong with the instruction, decoded with details, as part of a translation; NULL: nothing. */
const char *code_complaint(csh h, const cs_insn *i);
/*
 * Follows the code of every translated block of @v through all direct branches, and aborts with the instruction that
 * should not be there. Instructions looked at. @note, if not NULL, is told of each.
 */
unsigned long code_check(const struct vcpu *v, void (*note)(csh h, const cs_insn *i));
