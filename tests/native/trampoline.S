/*
 * Runs one instruction natively: loads every register the guest has from nat_in, jumps to nat_entry,
 * and saves everything to nat_out when the code jumps to native_exit. A fault leaves through the
 * signal handler instead (native_diff.c).
 */
    .text
    .globl native_enter
    .type native_enter, @function
native_enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushfq
    mov %rsp, nat_host_rsp(%rip)
    lea nat_in_xsave(%rip), %rdi
    mov nat_mask(%rip), %eax
    xor %edx, %edx
    xrstor64 (%rdi)
    push nat_in_flags(%rip)
    popfq
    mov nat_in_gpr+0(%rip), %rax
    mov nat_in_gpr+8(%rip), %rcx
    mov nat_in_gpr+16(%rip), %rdx
    mov nat_in_gpr+24(%rip), %rbx
    mov nat_in_gpr+32(%rip), %rsp
    mov nat_in_gpr+40(%rip), %rbp
    mov nat_in_gpr+48(%rip), %rsi
    mov nat_in_gpr+56(%rip), %rdi
    mov nat_in_gpr+64(%rip), %r8
    mov nat_in_gpr+72(%rip), %r9
    mov nat_in_gpr+80(%rip), %r10
    mov nat_in_gpr+88(%rip), %r11
    mov nat_in_gpr+96(%rip), %r12
    mov nat_in_gpr+104(%rip), %r13
    mov nat_in_gpr+112(%rip), %r14
    mov nat_in_gpr+120(%rip), %r15
    jmp *nat_entry(%rip)

    .globl native_enter_legacy
    .type native_enter_legacy, @function
native_enter_legacy:
    ljmp *nat_far(%rip)

    /* The signal handler; EFLAGS.AC would make C code fault. */
    .globl native_signal
    .type native_signal, @function
native_signal:
    pushfq
    andl $~0x40000, (%rsp)
    popfq
    jmp native_on_signal

    .globl native_exit
    .type native_exit, @function
native_exit:
    mov %rax, nat_out_gpr+0(%rip)
    mov %rcx, nat_out_gpr+8(%rip)
    mov %rdx, nat_out_gpr+16(%rip)
    mov %rbx, nat_out_gpr+24(%rip)
    mov %rsp, nat_out_gpr+32(%rip)
    mov %rbp, nat_out_gpr+40(%rip)
    mov %rsi, nat_out_gpr+48(%rip)
    mov %rdi, nat_out_gpr+56(%rip)
    mov %r8, nat_out_gpr+64(%rip)
    mov %r9, nat_out_gpr+72(%rip)
    mov %r10, nat_out_gpr+80(%rip)
    mov %r11, nat_out_gpr+88(%rip)
    mov %r12, nat_out_gpr+96(%rip)
    mov %r13, nat_out_gpr+104(%rip)
    mov %r14, nat_out_gpr+112(%rip)
    mov %r15, nat_out_gpr+120(%rip)
    mov nat_host_rsp(%rip), %rsp
    pushfq
    popq nat_out_flags(%rip)
    lea nat_out_xsave(%rip), %rdi
    mov nat_mask(%rip), %eax
    xor %edx, %edx
    xsave64 (%rdi)
    fninit
    ldmxcsr nat_mxcsr(%rip)
    popfq
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .size native_enter, . - native_enter

    .section .rodata
    .align 4
nat_mxcsr:
    .long 0x1f80
    .section .note.GNU-stack, "", @progbits
