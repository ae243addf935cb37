/*
 * VT-x for the demo's hypervisor: one guest, and -- when that guest uses VT-x itself -- its guest too, by
 * keeping the VMCS of the guest's hypervisor (vmcs12) in an array and running the innermost guest on
 * a VMCS of its own (vmcs02). Chapter and section titles are those of the SDM, volume 3.
 */
#include "demo.h"

enum {
    PIN_CONTROLS = 0x4000, PRIMARY_CONTROLS = 0x4002, EXCEPTION_BITMAP = 0x4004, EXIT_CONTROLS = 0x400c,
    ENTRY_CONTROLS = 0x4012, ENTRY_INTERRUPTION_INFO = 0x4016, SECONDARY_CONTROLS = 0x401e,
    VM_INSTRUCTION_ERROR = 0x4400, EXIT_REASON = 0x4402, EXIT_INSTRUCTION_LENGTH = 0x440c,
    EXIT_INSTRUCTION_INFO = 0x440e, EXIT_QUALIFICATION = 0x6400,
    MSR_BITMAP = 0x2004, EPT_POINTER = 0x201a, LINK_POINTER = 0x2800,
    GUEST_CR0 = 0x6800, GUEST_CR3 = 0x6802, GUEST_CR4 = 0x6804, GUEST_DR7 = 0x681a, GUEST_RSP = 0x681c,
    GUEST_RIP = 0x681e, GUEST_RFLAGS = 0x6820, GUEST_EFER = 0x2806,
    HOST_CR0 = 0x6c00, HOST_CR3 = 0x6c02, HOST_CR4 = 0x6c04, HOST_TR_BASE = 0x6c0a, HOST_GDTR_BASE = 0x6c0c,
    HOST_IDTR_BASE = 0x6c0e, HOST_RSP = 0x6c14, HOST_RIP = 0x6c16, HOST_EFER = 0x2c02,
    HOST_CS_SELECTOR = 0x0c02, HOST_SS_SELECTOR = 0x0c04, HOST_DS_SELECTOR = 0x0c06, HOST_TR_SELECTOR = 0x0c0c,
};

enum {
    REASON_CPUID = 10, REASON_VMCALL = 18, REASON_VMCLEAR = 19, REASON_VMLAUNCH = 20, REASON_VMPTRLD = 21,
    REASON_VMREAD = 23, REASON_VMRESUME = 24, REASON_VMWRITE = 25, REASON_VMXOFF = 26, REASON_VMXON = 27,
    REASON_IO = 30,
};

#define MSR_FEATURE_CONTROL 0x3a
#define MSR_EFER 0xc0000080
#define MSR_VMX_BASIC 0x480
#define MSR_VMX_CR0_FIXED0 0x486
#define MSR_VMX_CR4_FIXED0 0x488
#define MSR_VMX_PROCBASED_CTLS2 0x48b
#define MSR_VMX_TRUE_PINBASED 0x48d /* then processor-based, exit and entry controls */

#define PRIMARY_IO_EXITING (1u << 24)
#define PRIMARY_MSR_BITMAPS (1u << 28)
#define PRIMARY_SECONDARY (1u << 31)
#define SECONDARY_EPT (1u << 1)
#define EXIT_HOST_64 (1u << 9)
#define EXIT_SAVE_EFER (1u << 20)
#define EXIT_LOAD_EFER (1u << 21)
#define ENTRY_IA32E (1u << 9)
#define ENTRY_LOAD_EFER (1u << 15)

/* Everything a VM exit saves and the other side may look at. */
static const uint16_t guest_fields[] = {
    0x0800, 0x0802, 0x0804, 0x0806, 0x0808, 0x080a, 0x080c, 0x080e, 0x2800, 0x2802, 0x2806, 0x4800, 0x4802, 0x4804,
    0x4806, 0x4808, 0x480a, 0x480c, 0x480e, 0x4810, 0x4812, 0x4814, 0x4816, 0x4818, 0x481a, 0x481c, 0x481e, 0x4820,
    0x4822, 0x4824, 0x4826, 0x482a, 0x6800, 0x6802, 0x6804, 0x6806, 0x6808, 0x680a, 0x680c, 0x680e, 0x6810, 0x6812,
    0x6814, 0x6816, 0x6818, 0x681a, 0x681c, 0x681e, 0x6820, 0x6822, 0x6824, 0x6826,
};
static const uint16_t exit_fields[] = {0x4402, 0x4404, 0x4406, 0x4408, 0x440a, 0x440c, 0x440e, 0x6400, 0x640a};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

#define VMCS12_FIELDS 160
struct hypervisor { /* the state of one level's hypervisor */
    uint8_t vmxon_region[4096], vmcs01[4096], vmcs02[4096], msr_bitmap[4096];
    uint64_t ept_pml4[512], ept_pdpt[512], ept_pd[512];
    uint8_t guest_stack[16384];
    /* our guest as a hypervisor */
    uint16_t encoding[VMCS12_FIELDS];
    uint64_t value[VMCS12_FIELDS];
    unsigned nfields;
    bool nested_paging, guest_has_current, vmcs02_ready, vmcs01_launched, vmcs02_launched, inner_runs;
    struct registers regs;
} __attribute__((aligned(4096)));
static struct hypervisor hypervisors[DEEPEST_LEVEL];
static uint8_t tss[4096] __attribute__((aligned(4096)));
extern uint64_t demo_gdt[], demo_tss_descriptor[];
unsigned long vmx_enter(struct registers *regs, bool launched);

static void vmwrite(uint64_t field, uint64_t value)
{
    bool failed;
    __asm__ volatile("vmwrite %2, %1" : "=@ccna"(failed) : "r"(field), "r"(value) : "memory");
    if (failed)
        fail("VMWRITE failed");
}
static uint64_t vmread(uint64_t field)
{
    uint64_t value;
    __asm__ volatile("vmread %1, %0" : "=r"(value) : "r"(field) : "cc");
    return value;
}
/* The address operand always sits in a register, so that the hypervisor below can find it easily. */
#define VMX_POINTER_INSN(name)                                                                     \
    static void name(const void *region)                                                           \
    {                                                                                              \
        uint64_t pa = (uint64_t)region;                                                            \
        bool failed;                                                                               \
        __asm__ volatile(#name " (%1)" : "=@ccna"(failed) : "a"(&pa) : "memory");                  \
        if (failed)                                                                                \
            fail(#name " failed");                                                                 \
    }
VMX_POINTER_INSN(vmxon)
VMX_POINTER_INSN(vmclear)
VMX_POINTER_INSN(vmptrld)

static bool available(void)
{
    uint32_t r[4];
    cpuid(1, r);
    return r[2] & 1u << 5;
}

static const char *reason_name(unsigned reason)
{
    switch (reason) {
    case REASON_CPUID: return "CPUID";
    case REASON_VMCALL: return "VMCALL";
    case REASON_VMCLEAR: return "VMCLEAR";
    case REASON_VMLAUNCH: return "VMLAUNCH";
    case REASON_VMPTRLD: return "VMPTRLD";
    case REASON_VMREAD: return "VMREAD";
    case REASON_VMRESUME: return "VMRESUME";
    case REASON_VMWRITE: return "VMWRITE";
    case REASON_VMXOFF: return "VMXOFF";
    case REASON_VMXON: return "VMXON";
    case REASON_IO: return "I/O";
    default: return "other";
    }
}

/* Algorithms for determining VMX capabilities: bits that must be 1, and those that may. */
static uint32_t adjust(uint32_t msr, uint32_t wanted)
{
    uint64_t cap = rdmsr(msr);
    return (wanted | (uint32_t)cap) & (uint32_t)(cap >> 32);
}

static void enter_vmx_operation(struct hypervisor *h)
{
    uint64_t control = rdmsr(MSR_FEATURE_CONTROL);
    if (!(control & 1))
        wrmsr(MSR_FEATURE_CONTROL, control | 5);
    write_cr0(read_cr0() | rdmsr(MSR_VMX_CR0_FIXED0));
    write_cr4(read_cr4() | rdmsr(MSR_VMX_CR4_FIXED0));
    uint32_t revision = (uint32_t)rdmsr(MSR_VMX_BASIC);
    *(uint32_t *)h->vmxon_region = *(uint32_t *)h->vmcs01 = *(uint32_t *)h->vmcs02 = revision;
    vmxon(h->vmxon_region);
}

static void load_task_register(void)
{
    uint64_t base = (uint64_t)tss;
    demo_tss_descriptor[0] = 0x67 | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    demo_tss_descriptor[1] = base >> 32;
    __asm__ volatile("ltr %w0" : : "r"(0x18));
}

/* "VM-Execution Control Fields": the same for the guest and for the guest's guest. */
static void write_controls(struct hypervisor *h)
{
    vmwrite(PIN_CONTROLS, adjust(MSR_VMX_TRUE_PINBASED, 0));
    vmwrite(PRIMARY_CONTROLS, adjust(MSR_VMX_TRUE_PINBASED + 1, PRIMARY_IO_EXITING | PRIMARY_MSR_BITMAPS |
                                                                    (h->nested_paging ? PRIMARY_SECONDARY : 0)));
    vmwrite(EXIT_CONTROLS, adjust(MSR_VMX_TRUE_PINBASED + 2, EXIT_HOST_64 | EXIT_SAVE_EFER | EXIT_LOAD_EFER));
    vmwrite(ENTRY_CONTROLS, adjust(MSR_VMX_TRUE_PINBASED + 3, ENTRY_IA32E | ENTRY_LOAD_EFER));
    vmwrite(MSR_BITMAP, (uint64_t)h->msr_bitmap);
    vmwrite(EXCEPTION_BITMAP, 0);
    vmwrite(ENTRY_INTERRUPTION_INFO, 0);
    vmwrite(LINK_POINTER, ~0ull);
    if (!h->nested_paging)
        return;
    vmwrite(SECONDARY_CONTROLS, adjust(MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT));
    h->ept_pml4[0] = (uint64_t)h->ept_pdpt | 7;
    h->ept_pdpt[0] = (uint64_t)h->ept_pd | 7;
    for (unsigned i = 0; i < 512; i++)
        h->ept_pd[i] = (uint64_t)i << 21 | 7 | 6 << 3 | 1 << 7; /* 2 MiB, write-back */
    vmwrite(EPT_POINTER, (uint64_t)h->ept_pml4 | 3 << 3 | 6);
}

static void write_host_state(void)
{
    vmwrite(HOST_CR0, read_cr0());
    vmwrite(HOST_CR3, read_cr3());
    vmwrite(HOST_CR4, read_cr4());
    vmwrite(HOST_EFER, rdmsr(MSR_EFER));
    vmwrite(HOST_CS_SELECTOR, 0x08);
    vmwrite(HOST_SS_SELECTOR, 0x10);
    vmwrite(HOST_DS_SELECTOR, 0x10);
    vmwrite(HOST_TR_SELECTOR, 0x18);
    vmwrite(HOST_TR_BASE, (uint64_t)tss);
    vmwrite(HOST_GDTR_BASE, (uint64_t)demo_gdt);
    vmwrite(HOST_IDTR_BASE, 0);
}

/* The segments every level runs with; also what a VM exit loads ("Loading Host Segment and Descriptor-Table Registers"). */
static void write_flat_segments(void)
{
    for (unsigned s = 0; s < 8; s++) { /* ES CS SS DS FS GS LDTR TR */
        bool code = s == 1, task = s == 7, ldt = s == 6;
        vmwrite(0x0800 + 2 * s, code ? 0x08 : task ? 0x18 : ldt ? 0 : 0x10);
        vmwrite(0x4800 + 2 * s, task ? 0x67 : ldt ? 0 : 0xffffffff);
        vmwrite(0x4814 + 2 * s, code ? 0xa09b : task ? 0x8b : ldt ? 0x10000 : 0xc093);
        vmwrite(0x6806 + 2 * s, task ? (uint64_t)tss : 0);
    }
    vmwrite(0x4810, 0x27);
    vmwrite(0x6816, (uint64_t)demo_gdt);
    vmwrite(0x4812, 0);
    vmwrite(0x6818, 0);
}

static void write_guest_state(struct hypervisor *h, void (*entry)(unsigned), unsigned level)
{
    write_flat_segments();
    vmwrite(GUEST_CR0, read_cr0());
    vmwrite(GUEST_CR3, read_cr3());
    vmwrite(GUEST_CR4, read_cr4());
    vmwrite(GUEST_EFER, rdmsr(MSR_EFER));
    vmwrite(GUEST_DR7, 0x400);
    vmwrite(GUEST_RFLAGS, 2);
    vmwrite(GUEST_RIP, (uint64_t)entry);
    vmwrite(GUEST_RSP, (uint64_t)h->guest_stack + sizeof(h->guest_stack) - 8);
    h->regs.rdi = level;
}

static uint64_t *vmcs12(struct hypervisor *h, uint64_t encoding)
{
    for (unsigned i = 0; i < h->nfields; i++) {
        if (h->encoding[i] == encoding)
            return &h->value[i];
    }
    if (h->nfields == VMCS12_FIELDS)
        fail("the guest's VMCS has too many fields");
    h->encoding[h->nfields] = (uint16_t)encoding;
    return &h->value[h->nfields++];
}

static void skip(struct hypervisor *h)
{
    (void)h;
    vmwrite(GUEST_RIP, vmread(GUEST_RIP) + vmread(EXIT_INSTRUCTION_LENGTH));
}

/* "Conventions": VMsucceed for the guest's VMX instruction. */
static void succeed(struct hypervisor *h)
{
    vmwrite(GUEST_RFLAGS, vmread(GUEST_RFLAGS) & ~0x8d5ull);
    skip(h);
}

static uint64_t *guest_register(struct hypervisor *h, unsigned n) { return &(&h->regs.rax)[n & 15]; }

/* VMLAUNCH or VMRESUME by the guest: its guest runs on vmcs02. */
static void enter_inner(struct hypervisor *h)
{
    if (!h->vmcs02_ready) {
        vmclear(h->vmcs02);
        vmptrld(h->vmcs02);
        write_controls(h);
        write_host_state();
        h->vmcs02_ready = true;
    } else {
        vmptrld(h->vmcs02);
    }
    for (unsigned i = 0; i < COUNT(guest_fields); i++)
        vmwrite(guest_fields[i], *vmcs12(h, guest_fields[i]));
    vmwrite(ENTRY_INTERRUPTION_INFO, *vmcs12(h, ENTRY_INTERRUPTION_INFO));
    h->inner_runs = true;
}

/* An exit of the innermost guest: its state goes to vmcs12, and our guest goes on at its host RIP. */
static void reflect(struct hypervisor *h)
{
    for (unsigned i = 0; i < COUNT(guest_fields); i++)
        *vmcs12(h, guest_fields[i]) = vmread(guest_fields[i]);
    for (unsigned i = 0; i < COUNT(exit_fields); i++)
        *vmcs12(h, exit_fields[i]) = vmread(exit_fields[i]);
    vmptrld(h->vmcs01);
    write_flat_segments();
    vmwrite(GUEST_CR0, *vmcs12(h, HOST_CR0));
    vmwrite(GUEST_CR3, *vmcs12(h, HOST_CR3));
    vmwrite(GUEST_CR4, *vmcs12(h, HOST_CR4));
    vmwrite(GUEST_EFER, *vmcs12(h, HOST_EFER));
    vmwrite(GUEST_RIP, *vmcs12(h, HOST_RIP));
    vmwrite(GUEST_RSP, *vmcs12(h, HOST_RSP));
    vmwrite(GUEST_RFLAGS, 2);
    h->inner_runs = false;
}

/* The guest's own VMX instructions. */
static bool handle(struct hypervisor *h, const struct exit *e)
{
    uint64_t info = vmread(EXIT_INSTRUCTION_INFO);
    h->regs.rsp = vmread(GUEST_RSP); /* the one register that the VMCS holds */
    switch (e->reason) {
    case REASON_VMXON:
    case REASON_VMXOFF:
    case REASON_VMCLEAR:
        succeed(h);
        return true;
    case REASON_VMPTRLD:
        h->guest_has_current = true;
        succeed(h);
        return true;
    case REASON_VMREAD: /* Reg1 (bits 6:3) is the destination, Reg2 (31:28) names the field */
        *guest_register(h, (unsigned)(info >> 3)) = *vmcs12(h, *guest_register(h, (unsigned)(info >> 28)));
        succeed(h);
        return true;
    case REASON_VMWRITE:
        *vmcs12(h, *guest_register(h, (unsigned)(info >> 28))) = *guest_register(h, (unsigned)(info >> 3));
        succeed(h);
        return true;
    case REASON_VMLAUNCH:
    case REASON_VMRESUME:
        if (!h->guest_has_current)
            fail("a guest entered a guest without a VMCS");
        enter_inner(h);
        return true;
    default:
        return false;
    }
}

static void enter(struct hypervisor *h, struct exit *e)
{
    bool *launched = h->inner_runs ? &h->vmcs02_launched : &h->vmcs01_launched;
    if (vmx_enter(&h->regs, *launched)) {
        print("VM-instruction error ");
        print_number(vmread(VM_INSTRUCTION_ERROR));
        print("\n");
        fail("VM entry failed");
    }
    *launched = true;
    e->reason = (unsigned)vmread(EXIT_REASON);
    if (e->reason >= MAX_REASONS) {
        print("exit reason ");
        print_hex(e->reason);
        print("\n");
        fail("VM entry failed on the guest's state");
    }
    e->inner = h->inner_runs;
    if (e->inner)
        return;
    uint64_t qualification = vmread(EXIT_QUALIFICATION);
    e->information[0] = qualification;
    switch (e->reason) {
    case REASON_CPUID: e->kind = EXIT_OF_CPUID; break;
    case REASON_VMCALL: e->kind = EXIT_OF_CALL; break;
    case REASON_IO:
        if (!(qualification & 0xf)) /* OUT of one byte */
            e->kind = EXIT_OF_OUT, e->port = qualification >> 16;
        break;
    }
}

static struct hypervisor *begin(unsigned level, void (*entry)(unsigned level), bool nested_paging)
{
    struct hypervisor *h = &hypervisors[level - 2];
    h->nested_paging = nested_paging;
    if (level == 2)
        load_task_register();
    enter_vmx_operation(h);
    vmclear(h->vmcs01);
    vmptrld(h->vmcs01);
    write_controls(h);
    write_host_state();
    write_guest_state(h, entry, level);
    return h;
}

static void end(struct hypervisor *h)
{
    (void)h;
    __asm__ volatile("vmxoff" : : : "cc");
}

static struct registers *registers(struct hypervisor *h) { return &h->regs; }
static void call(enum hypercall what) { __asm__ volatile("vmcall" : : "a"(what) : "memory"); }

const struct extension extension_vmx = {
    .name = "VT-x", .available = available, .reason_name = reason_name, .begin = begin, .end = end, .registers = registers,
    .enter = enter, .skip = skip, .handle = handle, .reflect = reflect, .call = call,
};
