/*
 * exitloop COUNT: guests on /dev/kvm that do one thing COUNT times in a loop, then HLT: CPUID, a VM exit
 * that KVM answers in the kernel; OUT to a port of the VMM, which is in user space; first writes to
 * pages, each an EPT violation (NPT fault) for which KVM finds memory. What a round trip L2 -> L1 -> L2
 * costs, with KVM's share in it.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

#define RAM 0x4000000ul

/* Runs @code in real mode at 0x1000 with @esi; until HLT. */
static void guest(const char *name, const uint8_t *code, size_t size, unsigned esi)
{
    int kvm = open("/dev/kvm", O_RDWR), vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0)
        die("KVM_CREATE_VM");
    uint64_t identity_map = 0xfffbc000;
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul) || ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map))
        die("KVM_SET_TSS_ADDR");
    uint8_t *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {.memory_size = RAM, .userspace_addr = (uintptr_t)ram};
    if (ram == MAP_FAILED)
        die("guest memory");
    madvise(ram, RAM, MADV_NOHUGEPAGE);
    memcpy(ram + 0x1000, code, size);
    int cpu = ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) ? -1 : ioctl(vm, KVM_CREATE_VCPU, 0);
    int map = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = mmap(NULL, (size_t)map, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    struct kvm_sregs s;
    struct kvm_regs r = {.rip = 0x1000, .rflags = 2, .rsi = esi, .rdi = 0x2000};
    if (cpu < 0 || run == MAP_FAILED || ioctl(cpu, KVM_GET_SREGS, &s))
        die("KVM_CREATE_VCPU");
    s.cs.base = 0, s.cs.selector = 0;
    s.ds.limit = 0xffffffff; /* "unreal" */
    s.ds.g = 1;
    if (ioctl(cpu, KVM_SET_SREGS, &s) || ioctl(cpu, KVM_SET_REGS, &r))
        die("KVM_SET_REGS");
    printf("WORK-BEGIN %s\n", name);
    fflush(stdout);
    do
        if (ioctl(cpu, KVM_RUN, 0))
            die("KVM_RUN");
    while (run->exit_reason == KVM_EXIT_INTR || run->exit_reason == KVM_EXIT_IO);
    printf("WORK-END %s 0 0 %d\n", name, run->exit_reason == KVM_EXIT_HLT ? 1 : 0);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    unsigned n = argc > 1 ? (unsigned)atoi(argv[1]) : 10000;
    /* 1: cpuid; dec esi; jnz 1b; hlt */
    static const uint8_t cpuid[] = {0x0f, 0xa2, 0x66, 0x4e, 0x75, 0xfa, 0xf4};
    /* 1: add eax, [di]; xor eax, esi; mov [di], eax; dec esi; jnz 1b; hlt: guest mode without exits */
    static const uint8_t compute[] = {0x66, 0x03, 0x05, 0x66, 0x31, 0xf0, 0x66, 0x89, 0x05, 0x66, 0x4e, 0x75, 0xf3, 0xf4};
    /* 1: out 0x80, al; dec esi; jnz 1b; hlt */
    static const uint8_t port[] = {0xe6, 0x80, 0x66, 0x4e, 0x75, 0xfa, 0xf4};
    /* mov edi, 0x100000; 1: mov [edi], al; add edi, 4096; dec esi; jnz 1b; hlt */
    static const uint8_t pages[] = {0x66, 0xbf, 0, 0, 0x10, 0, 0x67, 0x88, 0x07, 0x66, 0x81, 0xc7, 0, 0x10, 0, 0,
                                    0x66, 0x4e, 0x75, 0xf2, 0xf4};
    unsigned npages = n < 15000 ? n : 15000;
    guest("exit-cpuid", cpuid, sizeof(cpuid), n ? n : 1);
    guest("exit-port", port, sizeof(port), n ? n : 1);
    guest("exit-page", pages, sizeof(pages), npages ? npages : 1);
    guest("l2-loop", compute, sizeof(compute), n * 100);
    return 0;
}
