/*
 * Exception handlers of the guests in twins.c, copied to fixed places below 64 KiB. Each mixes what
 * was pushed (vector, error code, RIP, CS, RFLAGS, RSP, SS) and CR2 into MIX, counts, and goes on at the
 * address in RECOVER, so that the memory of the two guests at the end tells of every fault on the way.
 */
#define RECOVER 0x7000
#define MIX 0x7008
#define COUNT 0x7010

    .section .rodata
    .globl twin_long_stubs, twin_long_handler, twin_long_end
    .globl twin_legacy_stubs, twin_legacy_handler, twin_legacy_end
    .globl twin_real_handler, twin_real_end
    .hidden twin_long_stubs, twin_long_handler, twin_long_end
    .hidden twin_legacy_stubs, twin_legacy_handler, twin_legacy_end
    .hidden twin_real_handler, twin_real_end

    .macro stubs
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector != 8) && (vector != 10) && (vector != 11) && (vector != 12) && (vector != 13) && (vector != 14) && (vector != 17) && (vector != 21)
    push $0
    .endif
    push $vector
    .byte 0xe9
    .long 512 - (. + 4 - 9b)
    .set vector, vector + 1
    .endr
    .balign 16
    .endm

    /* 32 stubs of 16 bytes, then the handler. */
    .code64
    .balign 16
9:
twin_long_stubs:
    stubs
twin_long_handler:
    push %rax
    push %rcx
    mov MIX, %rax
    .irp at, 16, 24, 32, 40, 48, 56, 64
    rol $7, %rax
    add \at(%rsp), %rax
    .endr
    mov %cr2, %rcx
    rol $7, %rax
    add %rcx, %rax
    mov %rax, MIX
    incl COUNT
    mov RECOVER, %rax
    mov %rax, 32(%rsp)
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq
twin_long_end:

    .code32
    .balign 16
9:
twin_legacy_stubs:
    stubs
twin_legacy_handler:
    push %ds
    pushl $0x10
    pop %ds
    push %eax
    mov MIX, %eax
    .irp at, 8, 12, 16, 20, 24
    rol $7, %eax
    add \at(%esp), %eax
    .endr
    mov %eax, MIX
    incl COUNT
    mov RECOVER, %eax
    mov %eax, 16(%esp)
    pop %eax
    pop %ds
    add $8, %esp
    iretl
twin_legacy_end:

    .code16
    .balign 16
twin_real_handler:
    push %bp
    push %eax
    mov %sp, %bp
    xor %eax, %eax
    mov %fs:MIX, %eax
    .irp at, 6, 8, 10
    rol $7, %eax
    add \at(%bp), %ax
    .endr
    mov %eax, %fs:MIX
    incl %fs:COUNT
    mov %fs:RECOVER, %ax
    mov %ax, 6(%bp)
    pop %eax
    pop %bp
    iret
twin_real_end:
    .section .note.GNU-stack, "", @progbits
