/*
 * What the TLB does not grant, the MMU may grant at once (mmu_refill()). It needs no vector or x87
 * registers, reads nothing that only the host's registers hold, and raises nothing: so only those that C may
 * change are kept, and nothing has to be in struct vcpu. That is a tenth of what the call of a body costs.
 */
#include "jit/tr.h"
#include "mmu/mmu.h"

/* Of those that hold something (host_of[], tlb_ask()), what a C function may change. */
static const u8 kept[] = {H_RAX, H_RCX, H_RDX, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11};

void refill_make_stubs(struct jit *j, struct code_buf *c)
{
    for (unsigned write = 0; write < 2; write++) {
        j->refill[write] = c->p;
        /* With the return address an even number of words: RSP stays a multiple of 16. */
        for (unsigned n = 0; n < ARRAY_SIZE(kept); n++)
            put_push(c, kept[n]);
        put_rm(c, true, 0x8d, H_RDI, H_RBP, -V_BIAS);
        put_mov_rr(c, H_RSI, H_RCX);
        put_mov_rr(c, H_RDX, H_RAX);
        put_mov_imm32(c, H_RCX, write ? ACCESS_WRITE : ACCESS_READ);
        put_mov_imm(c, H_RAX, (u64)(uintptr_t)mmu_refill);
        put1(c, 0xff), put1(c, 0xd0); /* call rax */
        for (unsigned n = ARRAY_SIZE(kept); n-- > 0;)
            put_pop(c, kept[n]);
        put_rm(c, true, 0x3b, H_RCX, H_RAX, write ? offsetof(struct tlb_entry, tag_write) : offsetof(struct tlb_entry, tag_read));
        put1(c, 0xc3);
    }
}
_Static_assert((ARRAY_SIZE(kept) + 1) % 2 == 0, "RSP stays aligned");

/* Lock-step runs the interpreter first, and compares as far as the TLB grants. */
bool may_refill(const struct tr *t) { return !t->j->lockstep && mmu_refills(t->v); }

void refill_or_slow(struct tr *t, bool write)
{
    if (may_refill(t)) {
        u8 *granted = put_jcc(t->c, CC_E);
        put_call_to(t->c, t->j->refill[write]);
        put_target(granted, t->c->p);
    }
    slow_if(t, CC_NE);
}
