/*
 * The rooms around cpu.c, cpuid.c, msr.c, models.c, sysinsn.c and port.c, as simple as a test can have
 * them: memory is a flat array, a raised exception jumps back to the test. Include once per test program.
 */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "cpu/bodies_sys.h"
#include "cpu/hyperv.h"
#include "cpu/cet.h"
#include "cpu/mem.h"
#include "cpu/models.h"
#include "cpu/msr.h"
#include "cpu/xstate.h"
#include "devices/bus.h"

#define FAKE_MEMORY 0x10000u

static struct fake {
    u8 memory[FAKE_MEMORY];
    struct tlb_entry tlb[TLB_SIZE];
    jmp_buf raised;
    int vector;
    u32 error;
    u64 db_bits;
    unsigned mode_changes, simd_changes, watch_changes, flushes, invlpgs, invpcids, ports_read, ports_written;
    u32 last_out;
    gva_t fault_above; /* accesses at or above fail with #PF */
} fake;

/* Runs @code; the vector it raised, or -1. */
#define VECTOR_OF(code)                                                                                      \
    __extension__({                                                                                         \
        fake.vector = -1;                                                                                   \
        if (setjmp(fake.raised) == 0) {                                                                     \
            code;                                                                                           \
        }                                                                                                   \
        fake.vector;                                                                                        \
    })

static void __attribute__((noreturn)) raised(int vector, u32 error)
{
    fake.vector = vector;
    fake.error = error;
    longjmp(fake.raised, 1);
}
void cpu_raise(struct vcpu *v, unsigned vector) { raised((int)vector, 0); }
void cpu_raise_error(struct vcpu *v, unsigned vector, u32 error) { raised((int)vector, error); }
void cpu_raise_db(struct vcpu *v, u64 bits) { fake.db_bits = bits, raised(VEC_DB, 0); }
void cpu_raise_walk(struct vcpu *v, gva_t la, u32 access, const struct walk *w) { raised(VEC_PF, 0); }

/* ---- hyperv.c: nobody offers it here ---- */
void hyperv_cpuid(struct vcpu *v, u32 leaf, u32 out[4]) {}
bool hyperv_rdmsr(struct vcpu *v, u32 msr, u64 *value) { return false; }
bool hyperv_wrmsr(struct vcpu *v, u32 msr, u64 value) { return false; }
void hyperv_tsc_moved(struct vcpu *v) {}
/* ---- cet.c ---- */
void cet_changed(struct vcpu *v) {}
bool cet_control_valid(const struct vcpu *v, u64 value) { return !(value & BITS64(9, 6)); }
/* ---- interp.c ---- */
u64 cpu_retired(const struct vcpu *v) { return v->icount; }
void cpu_end_slice(struct vcpu *v, u64 count) { v->budget_end = v->icount + count; }

/* ---- mode.c ---- */
void cpu_mode_changed(struct vcpu *v) { fake.mode_changes++; }
void cpu_segments_changed(struct vcpu *v) {}
void cpu_flags_changed(struct vcpu *v) {}
void cpu_simd_changed(struct vcpu *v) { fake.simd_changes++; }
void cpu_set_cpl(struct vcpu *v, unsigned cpl) { v->cpl = (u8)cpl; }
void cpu_write_cr0(struct vcpu *v, u64 value) { v->cr0 = value; }
void cpu_write_cr3(struct vcpu *v, u64 value) { v->cr3 = value; }
void cpu_write_cr4(struct vcpu *v, u64 value) { v->cr4 = value; }
void cpu_write_efer(struct vcpu *v, u64 value) { v->efer = value; }
u64 cpu_efer_reserved(const struct vcpu *v) { return ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE); }

/* ---- mmu ---- */
struct mmu *mmu_new(struct physmap *pm) { return (struct mmu *)&fake; }
void mmu_free(struct mmu *m) {}
void borrow_free(struct vcpu *v);
void borrow_free(struct vcpu *v) {}
void mmu_update(struct vcpu *v) {}
void mmu_set_guest(struct vcpu *v, const struct slat *slat, u32 vpid) {}
void mmu_flush_all(struct vcpu *v) { fake.flushes++; }
void mmu_watch_changed(struct vcpu *v) { fake.watch_changes++; }
void mmu_invlpg(struct vcpu *v, gva_t la) { fake.invlpgs++; }
void mmu_invpcid(struct vcpu *v, enum invpcid_type type, u16 pcid, gva_t la) { fake.invpcids++; }
u32 mmu_access_mode(const struct vcpu *v) { return 0; }
bool mmu_translate(struct vcpu *v, gva_t la, u32 access, struct translation *t, struct walk *w)
{
    *t = (struct translation){.pa = la};
    return la < FAKE_MEMORY;
}

u8 *physmap_ram(const struct physmap *pm, pa_t pa) { return pa < FAKE_MEMORY ? fake.memory + pa : NULL; }

/* ---- mem.c ---- */
static void fake_check(gva_t la, unsigned size)
{
    if (la + size > FAKE_MEMORY || (fake.fault_above && la + size > fake.fault_above))
        raised(VEC_PF, 0);
}
u64 mem_load_slow(struct vcpu *v, unsigned seg, gva_t la, unsigned size)
{
    fake_check(la, size);
    u64 x = 0;
    memcpy(&x, fake.memory + la, size);
    return x;
}
void mem_store_slow(struct vcpu *v, unsigned seg, gva_t la, u64 value, unsigned size)
{
    fake_check(la, size);
    memcpy(fake.memory + la, &value, size);
}
gva_t seg_linear_slow(struct vcpu *v, unsigned seg, u64 offset, unsigned size, u32 access) { return offset; }
void mem_read_bytes(struct vcpu *v, unsigned seg, u64 offset, void *buf, unsigned size)
{
    fake_check(v->seg_base[seg] + offset, size);
    memcpy(buf, fake.memory + v->seg_base[seg] + offset, size);
}
void mem_write_bytes(struct vcpu *v, unsigned seg, u64 offset, const void *buf, unsigned size)
{
    fake_check(v->seg_base[seg] + offset, size);
    memcpy(fake.memory + v->seg_base[seg] + offset, buf, size);
}
void mem_probe_write(struct vcpu *v, unsigned seg, u64 offset, unsigned size)
{
    fake_check(v->seg_base[seg] + offset, size);
}
u64 sys_read(struct vcpu *v, gva_t la, unsigned size) { return mem_load_slow(v, SEG_COUNT, la, size); }

/* ---- devices, borrow, vmx ---- */
u32 pio_read(struct pio_bus *b, u16 port, unsigned size)
{
    fake.ports_read++;
    return 0x11223300u + port;
}
void pio_write(struct pio_bus *b, u16 port, u32 value, unsigned size)
{
    fake.ports_written++;
    fake.last_out = value;
}
u64 xstate_supported(const struct vcpu *v) { return 3 | (cpu_has(v, FEAT_AVX) ? XCR0_AVX : 0) | XCR0_PKRU; }
u32 xstate_size(const struct vcpu *v, u64 mask, bool compacted)
{
    u32 size = 576;
    if (mask & XCR0_AVX)
        size += 256;
    if (mask & XCR0_PKRU)
        size = compacted ? size + 8 : 2688 + 8;
    return size;
}
u64 xstate_supervisor(const struct vcpu *v) { return 0; }
const struct xstate_component *xstate_component(const struct vcpu *v, unsigned number)
{
    static const struct xstate_component pkru = {9, false, 8, 2688};
    return number == 9 ? &pkru : NULL;
}
bool vmx_capability_msr(const struct vcpu *v, u32 msr, u64 *value)
{
    *value = 0x1234;
    return msr != 0x492;
}

/* A vCPU as @spec says, in 64-bit mode at CPL 0. */
static struct vcpu *fake_vcpu(const char *spec)
{
    static struct clock clock;
    struct error err;
    u8 features[FEAT_COUNT];
    struct cpu_options options;
    memset(&fake, 0, sizeof(fake));
    for (unsigned n = 0; n < TLB_SIZE; n++)
        fake.tlb[n] = (struct tlb_entry){TLB_NONE, TLB_NONE, TLB_NONE, 0};
    clock_init(&clock, CLOCK_ICOUNT);
    struct cpu_config cfg = {.features = features, .tsc_hz = 2400000000u, .clock = &clock};
    if (cpu_model_parse(spec, &cfg.model, features, &options, &err))
        fail_msg("%s", err.text);
    cfg.maxphyaddr = options.maxphyaddr;
    struct vcpu *v = vcpu_new(&cfg, &err);
    assert_non_null(v);
    v->tlb_now = fake.tlb;
    v->mode = MODE_LONG64;
    v->linear_mask = ~0ull;
    v->cr0 |= CR0_PE | CR0_PG;
    v->cr4 |= CR4_PAE;
    v->efer = EFER_LME | EFER_LMA;
    memset(v->seg_base, 0, sizeof(v->seg_base));
    memset(&fake.mode_changes, 0, offsetof(struct fake, last_out) - offsetof(struct fake, mode_changes));
    return v;
}
