/*
 * Everything that reads other people's files: dumps of VMCS and VMCB, JSON, ELF symbol tables. With libFuzzer
 * (clang, -Dfuzz=true) it explores; the driver in fuzz_run.c mutates samples deterministically for the suite.
 */
#include "debug/debugger.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    struct nestor_error nerr;
    struct error err;
    char *text = malloc(size); /* no byte behind it: reading past the end shows */
    memcpy(text, data + 1, size - 1);
    switch (data[0] & 3) {
    case 0: case 1: {
        char *out = NULL;
        size_t len;
        FILE *f = open_memstream(&out, &len);
        nestor_vmcs_check("fuzz", text, size - 1, data[0] >> 3 & 3, data[0] >> 2 & 1, f, &nerr);
        fclose(f);
        free(out);
        break;
    }
    case 2: {
        struct symbols *s = symbols_new();
        char name[160];
        u64 at;
        if (!symbols_parse(s, (const u8 *)text, size - 1, &err)) {
            symbols_name(s, 0x100000, name, sizeof(name));
            symbols_find(s, "main", &at);
        }
        symbols_free(s);
        break;
    }
    default: {
        /* A capability text: it is a C string. */
        static struct vcpu *v;
        struct vmx_caps caps;
        char *copy = malloc(size);
        if (!v)
            v = calloc(1, sizeof(*v));
        memcpy(copy, data + 1, size - 1);
        copy[size - 1] = 0;
        vmx_caps_init(&caps, v);
        vmx_caps_force(&caps, copy, &err);
        free(copy);
        break;
    }
    }
    free(text);
    return 0;
}
