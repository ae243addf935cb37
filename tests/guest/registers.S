/*
 * The register hand-over of VMRUN under hosts that save and load the registers each in an order of its own.
 *
 *   void enter_N(struct exchange *x)
 *
 * puts x->in into the guest's registers, runs it until an exit, and stores what the guest left in x->out. RAX and
 * RSP travel in the VMCB; what the host's RAX and RSP are behind VMRUN goes to x->host_rax and x->host_rsp.
 */
#define IN 0
#define OUT 128
#define VMCB 256
#define HOST_RAX 264
#define HOST_RSP 272
#define HOST_RSP_BEFORE 280

        .macro begin
        push %rbx
        push %rbp
        push %r12
        push %r13
        push %r14
        push %r15
        mov %rdi, current(%rip)
        mov %rsp, HOST_RSP_BEFORE(%rdi)
        .endm
        .macro finish
        mov HOST_RSP_BEFORE(%rdi), %rsp
        pop %r15
        pop %r14
        pop %r13
        pop %r12
        pop %rbp
        pop %rbx
        ret
        .endm

        .macro exchange_in at, reg
        xchg IN+\at(%rax), \reg
        .endm
        /* The host's register comes back, the guest's goes to the output. */
        .macro exchange_out at, reg
        xchg IN+\at(%rax), \reg
        push IN+\at(%rax)
        pop OUT+\at(%rax)
        .endm

        .bss
        .balign 8
current: .skip 8
scratch: .skip 8
        .text

/* Upwards into the registers, downwards out of them: one by one, with moves. */
        .globl enter_0
enter_0:
        begin
        mov VMCB(%rdi), %rax
        mov IN+8(%rdi), %rcx
        mov IN+16(%rdi), %rdx
        mov IN+24(%rdi), %rbx
        mov IN+40(%rdi), %rbp
        mov IN+48(%rdi), %rsi
        mov IN+64(%rdi), %r8
        mov IN+72(%rdi), %r9
        mov IN+80(%rdi), %r10
        mov IN+88(%rdi), %r11
        mov IN+96(%rdi), %r12
        mov IN+104(%rdi), %r13
        mov IN+112(%rdi), %r14
        mov IN+120(%rdi), %r15
        mov IN+56(%rdi), %rdi
        vmrun
        mov %rdi, scratch(%rip)
        mov current(%rip), %rdi
        mov %rax, HOST_RAX(%rdi)
        mov %rsp, HOST_RSP(%rdi)
        mov %r15, OUT+120(%rdi)
        mov %r14, OUT+112(%rdi)
        mov %r13, OUT+104(%rdi)
        mov %r12, OUT+96(%rdi)
        mov %r11, OUT+88(%rdi)
        mov %r10, OUT+80(%rdi)
        mov %r9, OUT+72(%rdi)
        mov %r8, OUT+64(%rdi)
        mov %rsi, OUT+48(%rdi)
        mov %rbp, OUT+40(%rdi)
        mov %rbx, OUT+24(%rdi)
        mov %rdx, OUT+16(%rdi)
        mov %rcx, OUT+8(%rdi)
        mov scratch(%rip), %rax
        mov %rax, OUT+56(%rdi)
        finish

/* By exchanges, every third register: the array holds the host's registers while the guest runs. */
        .globl enter_1
enter_1:
        begin
        mov %rdi, %rax
        .irp pair, "24,%rbx", "48,%rsi", "72,%r9", "96,%r12", "120,%r15", "8,%rcx", "40,%rbp", "64,%r8", "88,%r11", "112,%r14", "16,%rdx", "80,%r10", "104,%r13", "56,%rdi"
        exchange_in \pair
        .endr
        mov VMCB(%rax), %rax
        vmrun
        mov %rax, scratch(%rip)
        mov current(%rip), %rax
        mov %rsp, HOST_RSP(%rax)
        .irp pair, "56,%rdi", "8,%rcx", "120,%r15", "16,%rdx", "112,%r14", "24,%rbx", "104,%r13", "40,%rbp", "96,%r12", "48,%rsi", "88,%r11", "64,%r8", "80,%r10", "72,%r9"
        exchange_out \pair
        .endr
        mov current(%rip), %rdi
        mov scratch(%rip), %rax
        mov %rax, HOST_RAX(%rdi)
        finish

/* With pushes and pops. */
        .globl enter_2
enter_2:
        begin
        .irp at, 56,120,8,112,16,104,24,96,40,88,48,80,64,72
        push IN+\at(%rdi)
        .endr
        mov VMCB(%rdi), %rax
        .irp reg, r9,r8,r10,rsi,r11,rbp,r12,rbx,r13,rdx,r14,rcx,r15,rdi
        pop %\reg
        .endr
        vmrun
        .irp reg, r8,r15,rdi,rcx,r9,r14,rdx,rsi,r10,r13,rbx,rbp,r11,r12
        push %\reg
        .endr
        mov current(%rip), %rdi
        mov %rax, HOST_RAX(%rdi)
        .irp at, 96,88,40,24,104,80,48,16,112,72,8,56,120,64
        pop OUT+\at(%rdi)
        .endr
        mov %rsp, HOST_RSP(%rdi)
        finish

/*
 * The guest: stores each register as it found it in guest_saw, turns it by its number and 1, and makes the exit
 * that the code behind it is.
 */
        .globl guest_begin, guest_saw
        .bss
        .balign 8
guest_saw: .skip 128
        .text
guest_begin:
        mov %r12, guest_saw+96(%rip)
        mov %rax, guest_saw+0(%rip)
        mov %r15, guest_saw+120(%rip)
        mov %rsp, guest_saw+32(%rip)
        mov %rcx, guest_saw+8(%rip)
        mov %r8, guest_saw+64(%rip)
        mov %rbx, guest_saw+24(%rip)
        mov %rdi, guest_saw+56(%rip)
        mov %r9, guest_saw+72(%rip)
        mov %rsi, guest_saw+48(%rip)
        mov %r14, guest_saw+112(%rip)
        mov %rdx, guest_saw+16(%rip)
        mov %r10, guest_saw+80(%rip)
        mov %rbp, guest_saw+40(%rip)
        mov %r13, guest_saw+104(%rip)
        mov %r11, guest_saw+88(%rip)
        rol $1, %rax
        rol $2, %rcx
        rol $3, %rdx
        rol $4, %rbx
        rol $5, %rsp
        rol $6, %rbp
        rol $7, %rsi
        rol $8, %rdi
        rol $9, %r8
        rol $10, %r9
        rol $11, %r10
        rol $12, %r11
        rol $13, %r12
        rol $14, %r13
        rol $15, %r14
        rol $16, %r15
        .globl guest_exit
guest_exit:
        .skip 16, 0x90
        jmp guest_begin

        .section .note.GNU-stack, "", @progbits
