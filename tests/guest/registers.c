/*
 * A guest of Nestor's that is a hypervisor of its own kind: checks each of the sixteen general registers, one at a
 * time and all at once, across VMRUN and #VMEXIT (registers.S). Switches the machine off when all is well; the
 * line of a register that was wrong otherwise, and any other status.
 */
#include "demo.h"

#define EFER 0xc0000080
#define VM_HSAVE_PA 0xc0010117

struct exchange {
    uint64_t in[16], out[16];
    void *vmcb;
    uint64_t host_rax, host_rsp, host_rsp_before;
};
_Static_assert(offsetof(struct exchange, host_rsp_before) == 280, "registers.S knows the offsets");

void enter_0(struct exchange *x), enter_1(struct exchange *x), enter_2(struct exchange *x);
extern uint8_t guest_begin[], guest_exit[];
extern uint64_t guest_saw[16];
extern uint64_t demo_gdt[];

static uint8_t vmcb[4096] __attribute__((aligned(4096))), host_save[4096] __attribute__((aligned(4096)));
static uint8_t permissions[12288] __attribute__((aligned(4096)));

static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                      "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static const struct way_out {
    const char *name;
    uint16_t code;
    uint8_t length, bytes[4];
} ways_out[] = {
    {"VMMCALL", 0x81, 3, {0x0f, 0x01, 0xd9}}, {"CPUID", 0x72, 2, {0x0f, 0xa2}}, {"HLT", 0x78, 1, {0xf4}},
    {"OUT", 0x7b, 2, {0xe6, 0x80}},           {"RDMSR", 0x7c, 2, {0x0f, 0x32}}, {"#UD", 0x46, 2, {0x0f, 0x0b}},
    {"VMRUN", 0x80, 3, {0x0f, 0x01, 0xd8}},   {"MOV DR", 0x27, 3, {0x0f, 0x21, 0xf8}},
};

static void put(unsigned offset, uint64_t value, unsigned bytes)
{
    for (unsigned n = 0; n < bytes; n++)
        vmcb[offset + n] = (uint8_t)(value >> 8 * n);
}
static uint64_t get(unsigned offset)
{
    uint64_t value = 0;
    for (unsigned n = 8; n-- > 0;)
        value = value << 8 | vmcb[offset + n];
    return value;
}

static void put_segment(unsigned offset, unsigned selector, unsigned attributes)
{
    put(offset, selector, 2), put(offset + 2, attributes, 2), put(offset + 4, 0xffffffff, 4), put(offset + 8, 0, 8);
}

/* "Layout of VMCB": a guest in our own mode and address space. */
static void make_vmcb(void)
{
    for (unsigned n = 0; n < sizeof(ways_out) / sizeof(ways_out[0]); n++)
        vmcb[ways_out[n].code / 8] |= (uint8_t)(1 << ways_out[n].code % 8);
    vmcb[0x7f / 8] |= 1 << 7; /* shutdown */
    demo_memset(permissions, 0xff, sizeof(permissions));
    put(0x40, (uint64_t)permissions, 8), put(0x48, (uint64_t)permissions, 8);
    put(0x58, 1, 4);
    put_segment(0x400, 0x10, 0xc93), put_segment(0x410, 0x08, 0xa9b), put_segment(0x420, 0x10, 0xc93), put_segment(0x430, 0x10, 0xc93);
    put(0x464, 0x27, 4), put(0x468, (uint64_t)demo_gdt, 8);
    put(0x4d0, rdmsr(EFER), 8), put(0x548, read_cr4(), 8), put(0x550, read_cr3(), 8), put(0x558, read_cr0(), 8);
    put(0x560, 0x400, 8), put(0x568, 0xffff0ff0, 8), put(0x570, 2, 8);
}

static uint64_t rotated(uint64_t v, unsigned n) { return v << n | v >> (64 - n); }

static void __attribute__((noreturn)) wrong(const char *what, unsigned r, unsigned order, const struct way_out *way, uint64_t is, uint64_t must)
{
    print(names[r]);
    print(what);
    print(" ");
    print_hex(is);
    print(", not ");
    print_hex(must);
    print(" (order ");
    print_number(order);
    print(", exit by ");
    print(way->name);
    print(")\n");
    fail("a register was not handed over");
}

static void check(struct exchange *x, unsigned order, const struct way_out *way)
{
    static void (*const enter[])(struct exchange *) = {enter_0, enter_1, enter_2};
    uint64_t given[16];
    for (unsigned r = 0; r < 16; r++) {
        given[r] = x->in[r];
        guest_saw[r] = 0;
        x->out[r] = 0;
    }
    put(0x5f8, given[0], 8), put(0x5d8, given[4], 8), put(0x578, (uint64_t)guest_begin, 8);
    x->host_rax = x->host_rsp = 0;
    enter[order](x);
    if (get(0x70) != way->code || get(0x578) != (uint64_t)guest_exit) {
        print_hex(get(0x70));
        print(" at ");
        print_hex(get(0x578));
        print("\n");
        fail("the guest's exit is not the one it made");
    }
    for (unsigned r = 0; r < 16; r++) {
        uint64_t out = r == 0 ? get(0x5f8) : r == 4 ? get(0x5d8) : x->out[r];
        if (guest_saw[r] != given[r])
            wrong(" reached the guest as", r, order, way, guest_saw[r], given[r]);
        if (out != rotated(given[r], r + 1))
            wrong(" came back as", r, order, way, out, rotated(given[r], r + 1));
        x->in[r] = given[r];
    }
    if (x->host_rax != (uint64_t)vmcb)
        wrong(" of the host is", 0, order, way, x->host_rax, (uint64_t)vmcb);
    if (x->host_rsp != x->host_rsp_before)
        wrong(" of the host is", 4, order, way, x->host_rsp, x->host_rsp_before);
}

void demo_main(unsigned level)
{
    static struct exchange x = {.vmcb = vmcb};
    wrmsr(EFER, rdmsr(EFER) | 1 << 12);
    wrmsr(VM_HSAVE_PA, (uint64_t)host_save);
    make_vmcb();
    uint64_t random = level;
    unsigned checks = 0;
    for (unsigned turn = 0; turn < 20; turn++) {
        for (unsigned w = 0; w < sizeof(ways_out) / sizeof(ways_out[0]); w++) {
            for (unsigned n = 0; n < ways_out[w].length; n++)
                guest_exit[n] = ways_out[w].bytes[n];
            for (unsigned order = 0; order < 3; order++) {
                /* One register at a time differs from zero and from all ones; then all differ. */
                for (unsigned r = 0; r <= 16; r++) {
                    for (unsigned k = 0; k < 16; k++) {
                        random = random * 6364136223846793005u + 1442695040888963407u;
                        x.in[k] = r == 16 || r == k ? random ^ random >> 29 : turn & 1 ? ~0ull : 0;
                    }
                    check(&x, order, &ways_out[w]);
                    checks++;
                }
            }
        }
    }
    print_number(checks);
    print(" hand-overs of sixteen registers\n");
    outw(0x604, 5 << 10 | 1 << 13); /* power off */
    for (;;)
        __asm__ volatile("cli; hlt");
}
