/*
 * Fuzzing of decoder, interpreter and translator: any bytes as a program, in any mode, on both engines, which must
 * agree. With libFuzzer (meson setup -Dfuzz=true) or as a plain program:
 *
 *   fuzz_jit [libFuzzer arguments...] [CORPUS...]
 *   fuzz_jit RUNS [SEED]       without libFuzzer: random bytes
 *
 * Input: one byte for the mode, eight for the registers, then code.
 */
#include "jit/jit.h"
#include "twins.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    static struct twins t;
    static const struct { u8 world; u16 cs; } starts[] = {
        {TWIN_LONG, SEL_CODE64}, {TWIN_LONG, SEL_USER_CODE64}, {TWIN_LONG, SEL_CODE32}, {TWIN_LONG, SEL_USER_CODE32},
        {TWIN_LONG, SEL_CODE16}, {TWIN_LEGACY, SEL_CODE32}, {TWIN_LEGACY, SEL_CODE16}, {TWIN_REAL, 0},
    };
    if (size < 10)
        return 0;
    if (!t.a.v)
        twins_new(&t, &engine_jit_eager);
    unsigned k = data[0] & 7;
    /* Near the end of a page, so that long programs cross it. */
    u8 code[4096 + 64] = {0};
    size -= 9;
    if (size > 4096)
        size = 4096;
    unsigned at = data[0] >> 3 & 1 ? 4096 - (unsigned)(size < 4096 ? size / 2 : 2048) : 0;
    if (at + size > sizeof(code))
        size = sizeof(code) - at;
    memcpy(code + at, data + 9, size);
    twins_load(&t, (enum twin_world)starts[k].world, starts[k].cs, code, sizeof(code), (starts[k].world == TWIN_REAL || starts[k].cs == SEL_CODE16 ? 0 : TWIN_CODE) + at,
               load64(data + 1));
    if (twins_run(&t, 300) == RUN_BUDGET)
        twins_run(&t, 101);
    return 0;
}

#ifndef FUZZER
int main(int argc, char **argv)
{
    unsigned long runs = argc > 1 ? strtoul(argv[1], NULL, 0) : 2000;
    u64 x = argc > 2 ? strtoull(argv[2], NULL, 16) : 0x9e3779b97f4a7c15ull;
    for (unsigned long n = 0; n < runs; n++) {
        u8 data[200];
        for (unsigned k = 0; k < sizeof(data); k++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            data[k] = (u8)(x * 0x2545f4914f6cdd1dull >> 56);
        }
        LLVMFuzzerTestOneInput(data, sizeof(data));
    }
    printf("%lu random programs\n", runs);
    return 0;
}
#endif
