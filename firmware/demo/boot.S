/*
 * Entry of the demo image: multiboot 1, 32-bit protected mode. Maps the first GiB one to one with
 * 2 MiB pages, switches to 64-bit mode and calls demo_main(1).
 */
        .section .multiboot, "a"
        .balign 4
        .long 0x1badb002
        .long 0
        .long -(0x1badb002)

        .section .bss
        .balign 4096
pml4:   .skip 4096
pdpt:   .skip 4096
pd:     .skip 4096
        .balign 16
        .skip 16384
stack_top:

        .section .data
        .balign 16
        .globl demo_gdt
demo_gdt:
        .quad 0
        .quad 0x00af9b000000ffff        /* 0x08: 64-bit code */
        .quad 0x00cf93000000ffff        /* 0x10: data */
        .globl demo_tss_descriptor
demo_tss_descriptor:
        .quad 0, 0                      /* 0x18: TSS, filled by C */
gdt_end:
gdt_pointer:
        .word gdt_end - demo_gdt - 1
        .quad demo_gdt

        .text
        .code32
        .globl _start
_start:
        cli
        mov $stack_top, %esp
        movl $(pdpt + 3), pml4
        movl $(pd + 3), pdpt
        mov $pd, %edi
        mov $0x83, %eax
        mov $512, %ecx
1:      mov %eax, (%edi)
        add $0x200000, %eax
        add $8, %edi
        loop 1b
        mov $pml4, %eax
        mov %eax, %cr3
        mov %cr4, %eax
        or $0x620, %eax                 /* PAE, OSFXSR, OSXMMEXCPT */
        mov %eax, %cr4
        mov $0xc0000080, %ecx
        rdmsr
        or $0x100, %eax                 /* LME */
        wrmsr
        mov %cr0, %eax
        and $~0xc, %eax                 /* EM, TS */
        or $0x80010022, %eax            /* PG, WP, NE, MP */
        mov %eax, %cr0
        lgdt gdt_pointer
        ljmp $0x08, $2f
        .code64
2:      mov $0x10, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %ss
        xor %eax, %eax
        mov %eax, %fs
        mov %eax, %gs
        mov $1, %edi
        mov %ebx, %esi                  /* multiboot information, which the demo does not need */
        call demo_main
3:      cli
        hlt
        jmp 3b

/*
 * unsigned long vmx_enter(struct registers *regs, bool launched): loads the guest's registers, enters
 * it, and returns after its exit with the registers saved: 0, or RFLAGS' CF and ZF when the entry
 * instruction failed.
 */
        .globl vmx_enter
vmx_enter:
        push %rbx
        push %rbp
        push %r12
        push %r13
        push %r14
        push %r15
        push %rdi
        mov $0x6c14, %eax               /* HOST_RSP */
        vmwrite %rsp, %rax
        lea vmx_exit_entry(%rip), %rcx
        mov $0x6c16, %eax               /* HOST_RIP */
        vmwrite %rcx, %rax
        test %esi, %esi
        mov 8(%rdi), %rcx
        mov 16(%rdi), %rdx
        mov 24(%rdi), %rbx
        mov 40(%rdi), %rbp
        mov 48(%rdi), %rsi
        mov 64(%rdi), %r8
        mov 72(%rdi), %r9
        mov 80(%rdi), %r10
        mov 88(%rdi), %r11
        mov 96(%rdi), %r12
        mov 104(%rdi), %r13
        mov 112(%rdi), %r14
        mov 120(%rdi), %r15
        mov 0(%rdi), %rax
        mov 56(%rdi), %rdi
        jnz 4f
        vmlaunch
        jmp 5f
4:      vmresume
5:      pushf                           /* the entry failed: CF or ZF is set */
        pop %rax
        and $0x41, %eax
        pop %rdi
        jmp 6f
vmx_exit_entry:
        push %rdi                       /* the guest's */
        mov 8(%rsp), %rdi
        mov %rax, 0(%rdi)
        mov %rcx, 8(%rdi)
        mov %rdx, 16(%rdi)
        mov %rbx, 24(%rdi)
        mov %rbp, 40(%rdi)
        mov %rsi, 48(%rdi)
        pop %rax
        mov %rax, 56(%rdi)
        mov %r8, 64(%rdi)
        mov %r9, 72(%rdi)
        mov %r10, 80(%rdi)
        mov %r11, 88(%rdi)
        mov %r12, 96(%rdi)
        mov %r13, 104(%rdi)
        mov %r14, 112(%rdi)
        mov %r15, 120(%rdi)
        pop %rdi
        xor %eax, %eax
6:      pop %r15
        pop %r14
        pop %r13
        pop %r12
        pop %rbp
        pop %rbx
        ret

/*
 * void svm_enter(struct registers *regs, struct vmcb *vmcb, struct vmcb *host): saves the host's further state
 * in @host, loads the guest's registers (RAX and RSP are in the VMCB), runs it until its next exit with GIF
 * clear around it, and returns with both states saved and the host's restored.
 */
        .globl svm_enter
svm_enter:
        push %rbx
        push %rbp
        push %r12
        push %r13
        push %r14
        push %r15
        push %rdx
        push %rdi
        clgi
        mov %rdx, %rax
        vmsave
        mov %rsi, %rax
        mov 8(%rdi), %rcx
        mov 16(%rdi), %rdx
        mov 24(%rdi), %rbx
        mov 40(%rdi), %rbp
        mov 48(%rdi), %rsi
        mov 64(%rdi), %r8
        mov 72(%rdi), %r9
        mov 80(%rdi), %r10
        mov 88(%rdi), %r11
        mov 96(%rdi), %r12
        mov 104(%rdi), %r13
        mov 112(%rdi), %r14
        mov 120(%rdi), %r15
        mov 56(%rdi), %rdi
        vmload
        vmrun
        vmsave
        push %rdi                       /* the guest's */
        mov 8(%rsp), %rdi
        mov %rcx, 8(%rdi)
        mov %rdx, 16(%rdi)
        mov %rbx, 24(%rdi)
        mov %rbp, 40(%rdi)
        mov %rsi, 48(%rdi)
        pop %rax
        mov %rax, 56(%rdi)
        mov %r8, 64(%rdi)
        mov %r9, 72(%rdi)
        mov %r10, 80(%rdi)
        mov %r11, 88(%rdi)
        mov %r12, 96(%rdi)
        mov %r13, 104(%rdi)
        mov %r14, 112(%rdi)
        mov %r15, 120(%rdi)
        pop %rdi
        pop %rax
        vmload
        stgi
        pop %r15
        pop %r14
        pop %r13
        pop %r12
        pop %rbp
        pop %rbx
        ret

        .section .note.GNU-stack, "", @progbits
