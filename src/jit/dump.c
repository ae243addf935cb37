/* --jit-dump: each translation as text, the guest's code and the host's. --perf-map: where each is, for perf(1). */
#include "jit/internal.h"

#include <capstone/capstone.h>
#include <inttypes.h>

static void listing(FILE *out, const char *title, const u8 *code, size_t size, u64 address, cs_mode mode)
{
    csh h;
    cs_insn *insn;
    fprintf(out, "  %s\n", title);
    if (cs_open(CS_ARCH_X86, mode, &h))
        return;
    size_t n = cs_disasm(h, code, size, address, 0, &insn);
    for (size_t k = 0; k < n; k++)
        fprintf(out, "    %12" PRIx64 "  %-8s %s\n", insn[k].address, insn[k].mnemonic, insn[k].op_str);
    if (n)
        cs_free(insn, n);
    cs_close(&h);
}

void jit_dump(const struct vcpu *v, const struct path *p, const u8 *code, size_t size, const u8 *cold, size_t rest)
{
    FILE *out = v->jit_options.dump, *map = v->jit_options.map;
    if (map) {
        const char *function = v->jit_options.function ? v->jit_options.function(v->jit_options.symbols, v->rip) : NULL;
        char address[24];
        snprintf(address, sizeof(address), "%" PRIx64, v->rip);
        fprintf(map, "%" PRIxPTR " %zx guest:%s\n", (uintptr_t)code, size, function ? function : address);
        if (rest)
            fprintf(map, "%" PRIxPTR " %zx guest:%s:cold\n", (uintptr_t)cold, rest, function ? function : address);
        fflush(map); /* perf reads it while we run, and a crash is when it is wanted most */
    }
    if (!out)
        return;
    fprintf(out, "translation of %" PRIx64 ": %u instructions in %u blocks, %zu bytes of code and %zu of slow paths\n", v->rip, p->n,
            p->nblocks, size, rest);
    u8 bytes[15 * BLOCK_MAX];
    for (unsigned n = 0; n < p->nblocks; n++) {
        block_bytes(p->block[n], 0, bytes, p->block[n]->bytes);
        listing(out, n ? "guest, next block" : "guest", bytes, p->block[n]->bytes,
                v->rip + (u64)(s64)p->at[n], v->code_mode == CODE_64 ? CS_MODE_64 : CS_MODE_32);
    }
    listing(out, "host", code, size, (u64)(uintptr_t)code, CS_MODE_64);
    listing(out, "host, slow paths", cold, rest, (u64)(uintptr_t)cold, CS_MODE_64);
}
