/*
 * The demo: one program that is a hypervisor at every level. demo_main(1) is started by the loader;
 * each level prints its line and, below the deepest, runs the next level as its guest. The guest's
 * console is port 0x3F8, which every hypervisor intercepts and passes on: a character printed at L3
 * travels through L2 and L1. hypervisor.c runs the guests, vmx.c and svm.c are its two back ends.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DEEPEST_LEVEL 3
#define CONSOLE_PORT 0x3f8

/* What a guest asks of the hypervisor below it (VMCALL, VMMCALL), in RAX. */
enum hypercall { CALL_DONE = 1 };

/* In the order of the x86 register numbers; boot.S knows the offsets. RSP's place is unused. */
struct registers {
    uint64_t rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
};

#define MAX_REASONS 0xc0
struct exit_counts {
    unsigned handled[MAX_REASONS];   /* of our guest, by exit reason */
    unsigned reflected[MAX_REASONS]; /* of our guest's guest, handed on to our guest */
};

/* An exit of our guest, or of its guest. */
enum exit_kind {
    EXIT_OTHER,   /* for the extension alone */
    EXIT_OF_CPUID,
    EXIT_OF_OUT,  /* OUT of one byte to @port */
    EXIT_OF_CALL, /* a hypercall */
};
struct exit {
    unsigned reason;     /* below MAX_REASONS */
    enum exit_kind kind;
    uint64_t port;
    uint64_t information[2]; /* printed with an exit that nobody expected */
    bool inner;          /* of our guest's guest: for our guest to handle */
};

/* A hypervisor extension as the demo uses it: what differs between VT-x and AMD-V, and nothing else. */
struct hypervisor;
struct extension {
    const char *name;
    bool (*available)(void);
    const char *(*reason_name)(unsigned reason);
    /* The hypervisor that runs a guest of @level: identity-mapped second-level tables if @nested_paging. The guest
     * begins at @entry with @level as its argument. */
    struct hypervisor *(*begin)(unsigned level, void (*entry)(unsigned level), bool nested_paging);
    void (*end)(struct hypervisor *h);
    struct registers *(*registers)(struct hypervisor *h); /* of whoever runs; all of them between two entries */
    void (*enter)(struct hypervisor *h, struct exit *e);
    void (*skip)(struct hypervisor *h); /* RIP goes past the instruction that exited */
    /* An exit of kind EXIT_OTHER: an instruction of the extension itself. False: unexpected. */
    bool (*handle)(struct hypervisor *h, const struct exit *e);
    void (*reflect)(struct hypervisor *h); /* makes an inner exit one that our guest sees */
    void (*call)(enum hypercall what);     /* what a guest asks with */
};
extern const struct extension extension_vmx, extension_svm;
/* What this processor has; NULL: neither. */
const struct extension *find_extension(void);

/* hypervisor.c: runs demo_main(@level) as a guest until it makes CALL_DONE. */
void run_guest(const struct extension *ext, unsigned level, struct exit_counts *counts);

void demo_main(unsigned level);

/* lib.c */
void print(const char *s);
void print_number(uint64_t n);
void print_hex(uint64_t n);
void fail(const char *what) __attribute__((noreturn));
void *demo_memset(void *p, int c, size_t n);

static inline void outb(uint16_t port, uint8_t v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline void outl(uint16_t port, uint32_t v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port)); }
static inline void outw(uint16_t port, uint16_t v) { __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port)); }
static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t lo, hi;
    __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return (uint64_t)hi << 32 | lo;
}
static inline void wrmsr(uint32_t msr, uint64_t v)
{
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline void cpuid(uint32_t leaf, uint32_t r[4])
{
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "0"(leaf), "2"(0));
}
#define READ_CR(n)                                                                                 \
    static inline uint64_t read_cr##n(void)                                                        \
    {                                                                                              \
        uint64_t v;                                                                                \
        __asm__ volatile("mov %%cr" #n ", %0" : "=r"(v));                                          \
        return v;                                                                                  \
    }
READ_CR(0)
READ_CR(3)
READ_CR(4)
static inline void write_cr0(uint64_t v) { __asm__ volatile("mov %0, %%cr0" : : "r"(v) : "memory"); }
static inline void write_cr4(uint64_t v) { __asm__ volatile("mov %0, %%cr4" : : "r"(v) : "memory"); }
