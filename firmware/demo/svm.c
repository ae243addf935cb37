/*
 * AMD-V for the demo's hypervisor: one guest, and -- when that guest uses AMD-V itself -- its guest too. VMRUN of
 * the guest is intercepted: the VMCB it names (vmcb12) is merged into a VMCB of our own (vmcb02). Section
 * titles are those of the APM, volume 2, chapter "Secure Virtual Machine".
 */
#include "demo.h"

enum {
    EXIT_CPUID = 0x72, EXIT_IOIO = 0x7b, EXIT_MSR = 0x7c, EXIT_VMRUN = 0x80, EXIT_VMMCALL = 0x81, EXIT_VMLOAD = 0x82,
    EXIT_VMSAVE = 0x83, EXIT_STGI = 0x84, EXIT_CLGI = 0x85, EXIT_SHUTDOWN = 0x7f,
};

#define MSR_EFER 0xc0000080
#define MSR_VM_CR 0xc0010114
#define MSR_VM_HSAVE_PA 0xc0010117
#define EFER_SVME (1u << 12)
#define NESTED_PAGING 1u

struct vmcb_segment {
    uint16_t selector, attributes;
    uint32_t limit;
    uint64_t base;
};

/* "Layout of VMCB", as far as the demo uses it. */
struct vmcb {
    uint32_t intercepts[6];
    uint8_t reserved1[0x40 - 0x18];
    uint64_t iopm, msrpm, tsc_offset;
    uint32_t asid, tlb_control;
    uint64_t interrupt_control, shadow; /* control: the vector in bits 39:32 */
    uint64_t exit_code, exit_info1, exit_info2, exit_interrupt_info, nested_control;
    uint8_t reserved2[0xa8 - 0x98];
    uint64_t event_injection, nested_cr3, virtual_extensions;
    uint64_t clean, next_rip;
    uint8_t reserved3[0x400 - 0xd0];
    struct vmcb_segment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
    uint8_t reserved4[43], cpl, reserved5[4];
    uint64_t efer;
    uint8_t reserved6[0x548 - 0x4d8];
    uint64_t cr4, cr3, cr0, dr7, dr6, rflags, rip;
    uint8_t reserved7[0x5d8 - 0x580];
    uint64_t rsp, reserved8[3], rax;
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip, cr2;
    uint8_t reserved9[0x668 - 0x648];
    uint64_t g_pat;
    uint8_t reserved10[4096 - 0x670];
};
_Static_assert(sizeof(struct vmcb) == 4096 && offsetof(struct vmcb, asid) == 0x58 && offsetof(struct vmcb, exit_code) == 0x70 &&
                   offsetof(struct vmcb, next_rip) == 0xc8 && offsetof(struct vmcb, efer) == 0x4d0 &&
                   offsetof(struct vmcb, rip) == 0x578 && offsetof(struct vmcb, rax) == 0x5f8 && offsetof(struct vmcb, g_pat) == 0x668,
               "the processor knows these offsets");

struct hypervisor { /* the state of one level's hypervisor */
    struct vmcb host, vmcb01, vmcb02;
    uint8_t host_save[4096], msr_map[8192];
    uint8_t io_map[12288];
    uint64_t npt_pml4[512], npt_pdpt[512], npt_pd[512];
    uint8_t guest_stack[16384];
    bool nested_paging;
    struct vmcb *vmcb12; /* while the guest's guest runs: the VMCB our guest named */
    struct registers regs;
} __attribute__((aligned(4096)));
static struct hypervisor hypervisors[DEEPEST_LEVEL];
extern uint64_t demo_gdt[];
void svm_enter(struct registers *regs, struct vmcb *vmcb, struct vmcb *host);

static bool available(void)
{
    uint32_t r[4];
    cpuid(0x80000000, r);
    if (r[0] < 0x8000000a)
        return false;
    cpuid(0x80000001, r);
    return r[2] & 1u << 2 && !(rdmsr(MSR_VM_CR) & 1u << 4); /* SVM, not disabled */
}

static const char *reason_name(unsigned reason)
{
    switch (reason) {
    case EXIT_CPUID: return "CPUID";
    case EXIT_IOIO: return "I/O";
    case EXIT_MSR: return "MSR";
    case EXIT_VMRUN: return "VMRUN";
    case EXIT_VMMCALL: return "VMMCALL";
    case EXIT_VMLOAD: return "VMLOAD";
    case EXIT_VMSAVE: return "VMSAVE";
    case EXIT_STGI: return "STGI";
    case EXIT_CLGI: return "CLGI";
    default: return "other";
    }
}

static void intercept(struct vmcb *vmcb, unsigned code) { vmcb->intercepts[code / 32] |= 1u << code % 32; }

/* The same for the guest and for the guest's guest. */
static void write_controls(struct hypervisor *h, struct vmcb *vmcb, unsigned asid)
{
    static const uint8_t codes[] = {EXIT_CPUID, EXIT_IOIO, EXIT_MSR, EXIT_SHUTDOWN, EXIT_VMRUN, EXIT_VMMCALL, EXIT_VMLOAD, EXIT_VMSAVE,
                                    EXIT_STGI, EXIT_CLGI};
    for (unsigned i = 0; i < sizeof(codes); i++)
        intercept(vmcb, codes[i]);
    demo_memset(h->io_map, 0xff, sizeof(h->io_map));
    /* Two bits an MSR, the third range begins at 0xC0010000: writes of VM_HSAVE_PA. */
    h->msr_map[0x1000 + 2 * 0x117 / 8] = 2 << 2 * 0x117 % 8;
    vmcb->iopm = (uint64_t)h->io_map;
    vmcb->msrpm = (uint64_t)h->msr_map;
    vmcb->asid = asid;
    vmcb->tlb_control = 1;
    if (!h->nested_paging)
        return;
    h->npt_pml4[0] = (uint64_t)h->npt_pdpt | 7;
    h->npt_pdpt[0] = (uint64_t)h->npt_pd | 7;
    for (unsigned i = 0; i < 512; i++)
        h->npt_pd[i] = (uint64_t)i << 21 | 7 | 1 << 7; /* 2 MiB, user */
    vmcb->nested_control = NESTED_PAGING;
    vmcb->nested_cr3 = (uint64_t)h->npt_pml4;
}

static void write_guest_state(struct hypervisor *h, void (*entry)(unsigned), unsigned level)
{
    struct vmcb *vmcb = &h->vmcb01;
    const struct vmcb_segment data = {0x10, 0xc93, 0xffffffff, 0}, code = {0x08, 0xa9b, 0xffffffff, 0};
    __asm__ volatile("vmsave %0" : : "a"(vmcb) : "memory"); /* FS, GS, TR, LDTR and the MSRs are ours */
    vmcb->es = vmcb->ss = vmcb->ds = data;
    vmcb->cs = code;
    vmcb->gdtr = (struct vmcb_segment){.limit = 0x27, .base = (uint64_t)demo_gdt};
    vmcb->cr0 = read_cr0();
    vmcb->cr3 = read_cr3();
    vmcb->cr4 = read_cr4();
    vmcb->efer = rdmsr(MSR_EFER);
    vmcb->dr6 = 0xffff0ff0;
    vmcb->dr7 = 0x400;
    vmcb->g_pat = rdmsr(0x277);
    vmcb->rflags = 2;
    vmcb->rip = (uint64_t)entry;
    vmcb->rsp = (uint64_t)h->guest_stack + sizeof(h->guest_stack) - 8;
    h->regs.rdi = level;
}

/* What VMLOAD and VMSAVE move. */
static void copy_more_state(struct vmcb *to, const struct vmcb *from)
{
    to->fs = from->fs;
    to->gs = from->gs;
    to->ldtr = from->ldtr;
    to->tr = from->tr;
    to->star = from->star;
    to->lstar = from->lstar;
    to->cstar = from->cstar;
    to->sfmask = from->sfmask;
    to->kernel_gs_base = from->kernel_gs_base;
    to->sysenter_cs = from->sysenter_cs;
    to->sysenter_esp = from->sysenter_esp;
    to->sysenter_eip = from->sysenter_eip;
}

/* What VMRUN loads and #VMEXIT saves. */
static void copy_state(struct vmcb *to, const struct vmcb *from)
{
    to->es = from->es;
    to->cs = from->cs;
    to->ss = from->ss;
    to->ds = from->ds;
    to->gdtr = from->gdtr;
    to->idtr = from->idtr;
    to->cpl = from->cpl;
    to->efer = from->efer;
    to->cr0 = from->cr0;
    to->cr2 = from->cr2;
    to->cr3 = from->cr3;
    to->cr4 = from->cr4;
    to->dr6 = from->dr6;
    to->dr7 = from->dr7;
    to->rflags = from->rflags;
    to->rip = from->rip;
    to->rsp = from->rsp;
    to->rax = from->rax;
    to->shadow = from->shadow;
}

/* VMRUN by the guest: its guest runs on vmcb02, with our nested paging. */
static void enter_inner(struct hypervisor *h)
{
    struct vmcb *vmcb = &h->vmcb02;
    h->vmcb12 = (struct vmcb *)h->vmcb01.rax;
    if (h->vmcb12->asid == 0 || h->vmcb12->nested_control & NESTED_PAGING)
        fail("a guest entered a guest in a way that the demo does not know");
    copy_state(vmcb, h->vmcb12);
    copy_more_state(vmcb, &h->vmcb01);
    vmcb->g_pat = h->vmcb01.g_pat;
    vmcb->event_injection = h->vmcb12->event_injection;
    vmcb->interrupt_control = h->vmcb12->interrupt_control;
    for (unsigned i = 0; i < 6; i++)
        vmcb->intercepts[i] |= h->vmcb12->intercepts[i];
    h->regs.rax = vmcb->rax;
}

/* An exit of the innermost guest: to our guest it is the end of its VMRUN. */
static void reflect(struct hypervisor *h)
{
    copy_state(h->vmcb12, &h->vmcb02);
    copy_more_state(&h->vmcb01, &h->vmcb02);
    h->vmcb12->exit_code = h->vmcb02.exit_code;
    h->vmcb12->exit_info1 = h->vmcb02.exit_info1;
    h->vmcb12->exit_info2 = h->vmcb02.exit_info2;
    h->vmcb12->exit_interrupt_info = h->vmcb02.exit_interrupt_info;
    h->vmcb12->next_rip = h->vmcb02.next_rip;
    h->vmcb12->event_injection = 0;
    h->vmcb12 = NULL;
    h->regs.rax = h->vmcb01.rax;
}

static void skip(struct hypervisor *h) { h->vmcb01.rip = h->vmcb01.next_rip; }

/* The guest's own SVM instructions. */
static bool handle(struct hypervisor *h, const struct exit *e)
{
    struct vmcb *vmcb = &h->vmcb01;
    skip(h);
    switch (e->reason) {
    case EXIT_MSR: /* VM_HSAVE_PA: the guest's VMRUN does not use it */
    case EXIT_STGI:
    case EXIT_CLGI:
        return true;
    case EXIT_VMLOAD:
        copy_more_state(vmcb, (struct vmcb *)vmcb->rax);
        return true;
    case EXIT_VMSAVE:
        copy_more_state((struct vmcb *)vmcb->rax, vmcb);
        return true;
    case EXIT_VMRUN:
        enter_inner(h);
        return true;
    default:
        return false;
    }
}

static void enter(struct hypervisor *h, struct exit *e)
{
    struct vmcb *vmcb = h->vmcb12 ? &h->vmcb02 : &h->vmcb01;
    vmcb->rax = h->regs.rax;
    svm_enter(&h->regs, vmcb, &h->host);
    h->regs.rax = vmcb->rax;
    vmcb->tlb_control = 0;
    e->information[0] = vmcb->exit_info1;
    e->information[1] = vmcb->exit_info2;
    if (vmcb->exit_code >= MAX_REASONS) {
        print("exit code ");
        print_hex(vmcb->exit_code);
        print(" ");
        print_hex(vmcb->exit_info1);
        print(" ");
        print_hex(vmcb->exit_info2);
        print("\n");
        fail("VMRUN failed, or a nested page fault");
    }
    e->reason = (unsigned)vmcb->exit_code;
    e->inner = h->vmcb12 != NULL;
    switch (e->reason) {
    case EXIT_CPUID: e->kind = EXIT_OF_CPUID; break;
    case EXIT_VMMCALL: e->kind = EXIT_OF_CALL; break;
    case EXIT_IOIO:
        if ((vmcb->exit_info1 & 0x7d) == 1 << 4) /* OUT of one byte */
            e->kind = EXIT_OF_OUT, e->port = vmcb->exit_info1 >> 16;
        break;
    }
}

static struct hypervisor *begin(unsigned level, void (*entry)(unsigned level), bool nested_paging)
{
    struct hypervisor *h = &hypervisors[level - 2];
    h->nested_paging = nested_paging;
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);
    wrmsr(MSR_VM_HSAVE_PA, (uint64_t)h->host_save);
    write_controls(h, &h->vmcb01, 1);
    write_controls(h, &h->vmcb02, 2);
    write_guest_state(h, entry, level);
    return h;
}

static void end(struct hypervisor *h) { (void)h; }
static struct registers *registers(struct hypervisor *h) { return &h->regs; }
static void call(enum hypercall what) { __asm__ volatile("vmmcall" : : "a"(what) : "memory"); }

const struct extension extension_svm = {
    .name = "AMD-V", .available = available, .reason_name = reason_name, .begin = begin, .end = end, .registers = registers,
    .enter = enter, .skip = skip, .handle = handle, .reflect = reflect, .call = call,
};
