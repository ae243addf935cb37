/*
 * Runs code natively (trampoline.S) and turns the signals that faults become back into exceptions.
 * Apart from native_diff.c because <ucontext.h> and the decoder both name registers.
 */
#include "native_run.h"

#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

extern void native_enter(void), native_enter_legacy(void);
extern void native_signal(int sig, siginfo_t *info, void *context);
void native_on_signal(int sig, siginfo_t *info, void *context);
extern u64 nat_in_gpr[16], nat_out_gpr[16], nat_in_flags, nat_out_flags, nat_host_rsp;
extern void *nat_entry;
extern struct far_pointer { u32 offset; u16 selector; } nat_far;
extern u8 nat_in_xsave[4096], nat_out_xsave[4096];

u64 nat_in_gpr[16], nat_out_gpr[16], nat_in_flags, nat_out_flags, nat_host_rsp;
void *nat_entry;
_Alignas(8) struct far_pointer nat_far;
u32 nat_mask;
_Alignas(64) u8 nat_in_xsave[4096], nat_out_xsave[4096];

static sigjmp_buf native_return;
static struct native_regs *result;
static volatile sig_atomic_t running;

void native_on_signal(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    const greg_t *g = uc->uc_mcontext.gregs;
    static const int order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };
    if (!running) {
        static const char text[] = "native_diff: signal outside native code\n";
        if (write(2, text, sizeof(text) - 1) < 0)
            _exit(3);
        signal(sig, SIG_DFL);
        return;
    }
    struct native_regs *r = result;
    for (unsigned n = 0; n < 16; n++)
        r->gpr[n] = (u64)g[order[n]];
    r->rip = (u64)g[REG_RIP];
    r->rflags = (u64)g[REG_EFL];
    r->vector = (int)g[REG_TRAPNO];
    r->error = (u32)g[REG_ERR];
    r->cr2 = (u64)g[REG_CR2];
    if (sig == SIGTRAP) { /* the int3 it landed on */
        r->vector = -1;
        r->rip--;
    }
    memcpy(r->xsave, uc->uc_mcontext.fpregs, nat_mask & ~7u ? sizeof(r->xsave) : 832); /* what the kernel put there */
    siglongjmp(native_return, 1);
}

static volatile sig_atomic_t interrupted;
static void on_interrupt(int sig) { interrupted = sig; }
bool native_interrupted(void) { return interrupted; }

void native_init(void)
{
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    __asm__ volatile("mov %0, %%ds; mov %0, %%es" ::"r"(0x2b)); /* Linux' flat data segment; 64-bit programs have none */
    static u8 stack[65536];
    stack_t ss = { .ss_sp = stack, .ss_size = sizeof(stack) };
    sigaltstack(&ss, NULL);
    struct sigaction sa = { .sa_sigaction = native_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
    static const int sigs[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP };
    for (unsigned n = 0; n < sizeof(sigs) / sizeof(sigs[0]); n++)
        sigaction(sigs[n], &sa, NULL);
}

void native_run(struct native_regs *r, u64 end)
{
    memcpy(nat_in_gpr, r->gpr, sizeof(nat_in_gpr));
    nat_in_flags = r->rflags;
    memcpy(nat_in_xsave, r->xsave, sizeof(r->xsave));
    memset(nat_out_xsave + 512, 0, 64);
    nat_entry = r->legacy ? (void *)native_enter_legacy : (void *)r->rip;
    nat_far = (struct far_pointer){ (u32)r->rip, 0x23 }; /* Linux' 32-bit code segment */
    result = r;
    if (sigsetjmp(native_return, 0) == 0) {
        running = 1;
        native_enter();
        running = 0;
        memcpy(r->gpr, nat_out_gpr, sizeof(r->gpr));
        r->rflags = nat_out_flags;
        r->rip = end;
        r->vector = -1;
        r->error = 0;
        r->cr2 = 0;
        memcpy(r->xsave, nat_out_xsave, sizeof(r->xsave));
    } else {
        running = 0;
        u32 mxcsr = 0x1f80;
        __asm__ volatile("fninit; cld; ldmxcsr %0" ::"m"(mxcsr) : "memory");
    }
}
