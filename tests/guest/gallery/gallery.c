/*
 * Broken VM entries, one after the other: the table is a multiboot module, whose cases say which fields of a
 * valid VMCS or VMCB to change. After each refused entry the program calls gallery_refused(), where a debugger
 * looks, and puts the fields right again. Runs on boot.S of the demo.
 *
 *   u32 count of cases; each: u32 changes, u32 flags; each change: u32 field, u32 bytes (VMCB), u64 value
 */
#include "../../../firmware/demo/demo.h"

#define MSR_EFER 0xc0000080
#define CASE_LASTS 1u /* the change stays: part of the valid state */

struct change {
    uint32_t field, bytes;
    uint64_t value;
};
struct module_case {
    uint32_t changes, flags;
    struct change change[];
};
#define CHANGES_MAX 160

static struct registers regs;
static uint8_t page[6][4096] __attribute__((aligned(4096)));
static uint8_t tss[4096] __attribute__((aligned(4096)));
static uint8_t io_map[12288] __attribute__((aligned(4096)));
extern uint64_t demo_gdt[], demo_tss_descriptor[];
unsigned long vmx_enter(struct registers *regs, bool launched);
void svm_enter(struct registers *regs, void *vmcb, void *host);
void gallery_refused(unsigned n);
void gallery_entered(unsigned n);
void gallery_valid(void);

/* Where a debugger stops. */
void __attribute__((noinline)) gallery_refused(unsigned n) { __asm__ volatile("" : : "r"(n)); }
void __attribute__((noinline)) gallery_entered(unsigned n) { __asm__ volatile("" : : "r"(n)); }
void __attribute__((noinline)) gallery_valid(void) { __asm__ volatile(""); }

static void leave(unsigned status)
{
    outl(0xf4, status);
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* ---- VT-x ---- */

static bool vmwrite(uint64_t field, uint64_t value)
{
    bool failed;
    __asm__ volatile("vmwrite %2, %1" : "=@ccna"(failed) : "r"(field), "r"(value) : "memory");
    return !failed;
}
static uint64_t vmread(uint64_t field)
{
    uint64_t value = 0;
    __asm__ volatile("vmread %1, %0" : "=r"(value) : "r"(field) : "cc");
    return value;
}
static void pointer(unsigned what, const void *region)
{
    uint64_t pa = (uint64_t)region;
    if (what == 0)
        __asm__ volatile("vmxon (%0)" : : "r"(&pa) : "memory", "cc");
    else if (what == 1)
        __asm__ volatile("vmclear (%0)" : : "r"(&pa) : "memory", "cc");
    else
        __asm__ volatile("vmptrld (%0)" : : "r"(&pa) : "memory", "cc");
}

/* What the table's valid state cannot know: addresses of this program, and its host state. */
static void vmx_begin(void)
{
    uint64_t control = rdmsr(0x3a), base = (uint64_t)tss;
    if (!(control & 1))
        wrmsr(0x3a, control | 5);
    demo_tss_descriptor[0] = 0x67 | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    demo_tss_descriptor[1] = base >> 32;
    __asm__ volatile("ltr %w0" : : "r"(0x18));
    write_cr0(read_cr0() | rdmsr(0x486));
    write_cr4(read_cr4() | rdmsr(0x488));
    *(uint32_t *)page[0] = *(uint32_t *)page[1] = (uint32_t)rdmsr(0x480);
    pointer(0, page[0]);
    pointer(1, page[1]);
    pointer(2, page[1]);
    vmwrite(0x2800, ~0ull);                /* VMCS_LINK_POINTER */
    vmwrite(0x2004, (uint64_t)page[2]);    /* MSR_BITMAP */
    vmwrite(0x2000, (uint64_t)page[3]);    /* IO_BITMAP_A, B */
    vmwrite(0x2002, (uint64_t)page[4]);
    vmwrite(0x6c00, read_cr0());           /* HOST_CR0, CR3, CR4 */
    vmwrite(0x6c02, read_cr3());
    vmwrite(0x6c04, read_cr4());
    vmwrite(0x2c00, rdmsr(0x277));         /* HOST_IA32_PAT, EFER */
    vmwrite(0x2c02, rdmsr(MSR_EFER));
    vmwrite(0x0c02, 0x08);                 /* HOST_CS, SS, TR */
    vmwrite(0x0c04, 0x10);
    vmwrite(0x0c0c, 0x18);
    vmwrite(0x6c0a, base);
    vmwrite(0x6c0c, (uint64_t)demo_gdt);
}

static void vmx_case(unsigned n, const struct module_case *c)
{
    static uint64_t old[CHANGES_MAX];
    for (unsigned i = 0; i < c->changes; i++) {
        old[i] = vmread(c->change[i].field);
        if (!vmwrite(c->change[i].field, c->change[i].value))
            fail("a field of the table does not exist");
    }
    if (c->flags & CASE_LASTS)
        return;
    if (vmx_enter(&regs, false) || vmread(0x4402) >> 31) {
        gallery_refused(n);
    } else {
        gallery_entered(n);
        pointer(1, page[1]); /* clear again */
        pointer(2, page[1]);
    }
    for (unsigned i = c->changes; i--;)
        vmwrite(c->change[i].field, old[i]);
}

/* ---- AMD-V ---- */

static uint8_t vmcb[4096] __attribute__((aligned(4096))), host[4096] __attribute__((aligned(4096)));

static void put(unsigned offset, unsigned bytes, uint64_t value)
{
    for (unsigned i = 0; i < bytes; i++)
        vmcb[offset + i] = (uint8_t)(value >> 8 * i);
}
static uint64_t get(unsigned offset, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = bytes; i--;)
        value = value << 8 | vmcb[offset + i];
    return value;
}

static void svm_begin(void)
{
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1u << 12);
    wrmsr(0xc0010117, (uint64_t)page[0]);
    put(0x40, 8, (uint64_t)io_map);
    put(0x48, 8, (uint64_t)page[2]);
}

static void svm_case(unsigned n, const struct module_case *c)
{
    static uint64_t old[CHANGES_MAX];
    for (unsigned i = 0; i < c->changes; i++) {
        old[i] = get(c->change[i].field, c->change[i].bytes);
        put(c->change[i].field, c->change[i].bytes, c->change[i].value);
    }
    if (c->flags & CASE_LASTS)
        return;
    svm_enter(&regs, vmcb, host);
    if (get(0x70, 8) == ~0ull)
        gallery_refused(n);
    else
        gallery_entered(n);
    for (unsigned i = c->changes; i--;)
        put(c->change[i].field, c->change[i].bytes, old[i]);
}

/* ---- the table ---- */

struct multiboot_info {
    uint32_t flags, mem[2], boot_device, cmdline, mods_count, mods_addr;
};

void demo_main_with(unsigned level, const struct multiboot_info *mbi);
void demo_main_with(unsigned level, const struct multiboot_info *mbi)
{
    uint32_t r[4];
    (void)level;
    if (!mbi->mods_count)
        fail("the table is missing: give it with --initrd");
    const uint8_t *p = (const uint8_t *)(uint64_t) * (const uint32_t *)(uint64_t)mbi->mods_addr;
    uint32_t count = *(const uint32_t *)p;
    p += 8;
    cpuid(1, r);
    bool vmx = r[2] & 1u << 5;
    (vmx ? vmx_begin : svm_begin)();
    for (uint32_t n = 0; n < count; n++) {
        const struct module_case *c = (const void *)p;
        if (c->changes > CHANGES_MAX)
            fail("a case has too many changes");
        (vmx ? vmx_case : svm_case)(n, c);
        if (c->flags & CASE_LASTS)
            gallery_valid();
        p += sizeof(*c) + c->changes * sizeof(c->change[0]);
    }
    leave(0);
}

/* The demo's own files are not here. */
void print(const char *s)
{
    for (; *s; s++)
        outb(CONSOLE_PORT, (uint8_t)*s);
}
void fail(const char *what)
{
    print(what);
    print("\r\n");
    leave(1);
    for (;;)
        ;
}
__asm__(".globl demo_main\ndemo_main: jmp demo_main_with\n");
