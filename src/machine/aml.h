/*
 * A writer for the few kinds of ACPI Machine Language a PC's DSDT needs (ACPI specification 6.4,
 * chapter 20 "ACPI Machine Language (AML) Specification").
 */
#pragma once
#include "base/types.h"

#define AML_MAX_DEPTH 8

struct aml {
    u8 *buf;
    size_t len, cap;
    size_t open[AML_MAX_DEPTH]; /* offsets of the PkgLength fields still to be filled */
    unsigned depth;
    bool overflow; /* the buffer was too small: the result must not be used */
};

void aml_init(struct aml *a, u8 *buf, size_t cap);
/* Objects with a body: everything until the matching aml_end() is inside. @name: up to 4 characters. */
void aml_scope(struct aml *a, const char *path); /* "\\_SB" or a single name */
void aml_device(struct aml *a, const char *name);
void aml_method(struct aml *a, const char *name, unsigned args);
void aml_end(struct aml *a);
/* Name(NAME, value) */
void aml_name_int(struct aml *a, const char *name, u64 value);
void aml_name_string(struct aml *a, const char *name, const char *value);
void aml_name_eisaid(struct aml *a, const char *name, const char *id); /* "PNP0A08" */
void aml_name_buffer(struct aml *a, const char *name, const u8 *data, size_t len);
/* Name(NAME, Package{...}) of integers, closed by itself. */
void aml_name_package(struct aml *a, const char *name, const u64 *values, unsigned n);
/* Name(NAME, Package(n){ ... }) whose elements are written by aml_package()/aml_int() until aml_end(). */
void aml_name_package_begin(struct aml *a, const char *name, unsigned n);
void aml_package_begin(struct aml *a, unsigned n);
void aml_int(struct aml *a, u64 value);

/* Resource descriptors (ACPI 6.4, "Resource Data Types for ACPI") collected in a separate buffer. */
struct resources {
    u8 buf[512];
    size_t len;
};
void res_io(struct resources *r, u16 base, u8 len);
void res_irq(struct resources *r, unsigned irq); /* edge, active high, exclusive */
void res_word_bus(struct resources *r, u16 first, u16 last);
void res_word_io(struct resources *r, u16 first, u16 last);
void res_dword_memory(struct resources *r, u32 first, u32 last, bool cacheable);
void res_qword_memory(struct resources *r, u64 first, u64 last);
void res_memory32_fixed(struct resources *r, u32 base, u32 len);
void res_end(struct resources *r);
