/*
 * The guest's vector registers, MXCSR and x87 state in the host's. While translated code runs,
 * frame.units says which of them the host holds (enum unit); the code loads them where it first
 * needs them, and every way back to C stores them, so that struct vcpu is right whenever C looks. A
 * unit is only ever loaded when the guest may use it as things are (CR0, CR4, XCR0 by way of
 * simd_ok) and when no exception that it can raise is unmasked or pending; none of that can change
 * but in C. So one test of frame.units is all the checking that translated code does.
 */
#include "jit/internal.h"
#include "cpu/borrow.h"

#define GENERAL_ONLY __attribute__((target("general-regs-only")))

#define FSW_ES BIT(7)
#define FCW_MASKS 0x3fu
#define MISC_ENABLE_FOPCODE BIT64(2)

/* The standard XSAVE format (SDM vol. 1, 13.4): legacy region and header; only x87 is ever in it. */
enum { IMAGE_FSW = 2, IMAGE_FTW = 4, IMAGE_MXCSR = 24, IMAGE_ST = 32, IMAGE_HEADER = 512 };

/* No #MF can come of what translated code does, and the pointers it keeps are all there is to keep. */
static GENERAL_ONLY bool x87_plain(const struct vcpu *v)
{
    return (v->x87.fcw & FCW_MASKS) == FCW_MASKS && !(v->x87.fsw & FSW_ES) && !(v->misc_enable & MISC_ENABLE_FOPCODE);
}

static GENERAL_ONLY void x87_load(const struct vcpu *v, u8 *image)
{
    u64 *p = (u64 *)(void *)image;
    const struct x87 *f = &v->x87;
    p[0] = f->fcw | (u64)f->fsw << 16 | (u64)f->ftw << 32;
    p[1] = p[2] = 0;
    p[3] = HOST_MXCSR;
    for (unsigned n = 0; n < 8; n++) {
        p[IMAGE_ST / 8 + 2 * n] = load64(f->st[n]);
        p[IMAGE_ST / 8 + 2 * n + 1] = load64(f->st[n] + 8);
    }
    for (unsigned n = 0; n < 8; n++)
        p[IMAGE_HEADER / 8 + n] = n == 0;
    __asm__ volatile("xrstor64 %0" : : "m"(*(const u8(*)[576])image), "a"(1), "d"(0));
}

static void x87_store(struct vcpu *v, u8 *image)
{
    struct x87 *f = &v->x87;
    __asm__ volatile("xsave64 %0; fninit" : "+m"(*(u8(*)[576])image) : "a"(1), "d"(0));
    f->fcw = load16(image);
    f->fsw = load16(image + IMAGE_FSW);
    f->ftw = image[IMAGE_FTW];
    memcpy(f->st, image + IMAGE_ST, sizeof(f->st));
}

GENERAL_ONLY u64 jit_units_enter(struct vcpu *v, struct frame *f, u32 need)
{
    u32 now = (u32)f->units;
    if (need & ~v->simd_ok & UNIT_OF_SIMD_OK)
        return 0;
    if ((need & UNIT_X87) && !(now & UNIT_X87)) {
        if (!x87_plain(v) || !f->jit->host_xsave)
            return 0;
        x87_load(v, f->jit->x87_image);
        now |= UNIT_X87 | (v->simd_ok & UNIT_MMX);
    }
    if (need & (UNIT_SSE | UNIT_AVX))
        now |= v->simd_ok & (UNIT_SSE | UNIT_AVX);
    bool ready = true;
    if ((need & UNIT_FP) && !(now & UNIT_FP)) {
        ready = borrow_mxcsr_plain(v->mxcsr);
        if (ready) {
            __asm__ volatile("ldmxcsr %0" : : "m"(v->mxcsr));
            now |= UNIT_FP;
        }
    }
    f->units = now;
    return ready;
}

void jit_units_leave(struct vcpu *v, struct frame *f)
{
    if (f->units & UNIT_FP) {
        u32 mxcsr = HOST_MXCSR;
        __asm__ volatile("stmxcsr %0; ldmxcsr %1" : "=m"(v->mxcsr) : "m"(mxcsr));
    }
    if (f->units & UNIT_X87)
        x87_store(v, f->jit->x87_image);
    f->units = 0;
}

u32 jit_units_of(const struct insn_row *row)
{
    u32 c = row->checks, need = 0;
    if (c & (CHK_X87 | CHK_X87_NOWAIT | CHK_FWAIT))
        need |= UNIT_X87;
    if (c & CHK_MMX)
        need |= UNIT_X87 | UNIT_MMX;
    if (c & CHK_SSE)
        need |= UNIT_SSE;
    if (c & CHK_AVX)
        need |= UNIT_SSE | UNIT_AVX;
    if ((c & (CHK_SSE | CHK_AVX)) && borrow_uses_mxcsr(row))
        need |= UNIT_FP;
    return need;
}

bool jit_ready(const struct vcpu *v, const struct insn *i)
{
    const struct jit *j = v->jit;
    u32 need = jit_units_of(insn_row(i));
    if (!system_ready(v, i))
        return false;
    return !(need & ~v->simd_ok & UNIT_OF_SIMD_OK) && (!(need & UNIT_X87) || (x87_plain(v) && j->host_xsave)) &&
           (!(need & UNIT_FP) || borrow_mxcsr_plain(v->mxcsr));
}

/* ---- stubs ---- */

/* All 16 registers between the host and struct vcpu. */
static void put_vectors(const struct jit *j, struct code_buf *c, bool load)
{
    for (unsigned n = 0; n < 16; n++) {
        s32 at = V_AT(vec) + (s32)(n * sizeof(union vec_reg));
        if (j->host_has[FEAT_AVX]) { /* vmovdqa ymm */
            put1(c, 0xc5);
            put1(c, (n >= 8 ? 0x7d : 0xfd));
            put1(c, load ? 0x6f : 0x7f);
            put_address(c, n, H_RBP, H_NONE, 0, at);
        } else { /* movaps */
            put_rm(c, false, load ? 0x0f28 : 0x0f29, n, H_RBP, at);
        }
    }
}

void units_make_stubs(struct jit *j, struct code_buf *c, void (*put_registers)(struct code_buf *c, bool load))
{
    /* Stores the vector registers; changes nothing else but flags. */
    j->vec_store = c->p;
    put_vectors(j, c, false);
    if (j->host_has[FEAT_AVX])
        put1(c, 0xc5), put1(c, 0xf8), put1(c, 0x77); /* vzeroupper: C code is legacy SSE */
    put1(c, 0xc3);

    /* Loads the units in EAX; ZF: they are not to be had. */
    j->units_load = c->p;
    put_rm(c, false, 0xf6, 0, H_RSP, F_AT(units) + 8), put1(c, UNIT_SSE | UNIT_AVX); /* test byte */
    u8 *none = put_jcc(c, CC_E);
    put_call_to(c, j->vec_store);
    put_target(none, c->p);
    put_registers(c, false);
    put_rm(c, true, 0x8d, H_RDI, H_RBP, -V_BIAS);
    put_rm(c, true, 0x8d, H_RSI, H_RSP, 8);
    put_rr(c, false, 0x8b, H_RDX, H_RAX);
    put_alu_imm(c, true, 5, H_RSP, 8);
    put_mov_imm(c, H_RAX, (u64)(uintptr_t)jit_units_enter);
    put1(c, 0xff), put1(c, 0xd0); /* call rax */
    put_alu_imm(c, true, 0, H_RSP, 8);
    put_registers(c, true);
    put_rm(c, false, 0xf6, 0, H_RSP, F_AT(units) + 8), put1(c, UNIT_SSE | UNIT_AVX);
    none = put_jcc(c, CC_E);
    put_vectors(j, c, true);
    put_target(none, c->p);
    put_rr(c, true, 0x85, H_RAX, H_RAX);
    put1(c, 0xc3);
}
