/*
 * l2run [-c VCPUS] [-m MIB] KERNEL INITRD [CMDLINE]: boots a bzImage on /dev/kvm with a serial console, and
 * nothing else.
 * It is what a Linux L1 without QEMU needs to be a hypervisor. Linked statically, it runs as part of
 * an initramfs. Ends when the guest resets (triple fault) with 0, with 1 on any other end.
 *
 * Interfaces: Linux Documentation/virt/kvm/api.rst; boot protocol: Documentation/arch/x86/boot.rst.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CPUS_MAX 16
#define LOAD_AT 0x100000
#define PARAMS_AT 0x10000
#define CMDLINE_AT 0x20000
#define GDT_AT 0x800

static void die(const char *what)
{
    fprintf(stderr, "l2run: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *read_file(const char *path, size_t *size)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &st))
        die(path);
    uint8_t *data = malloc((size_t)st.st_size);
    for (*size = 0; *size < (size_t)st.st_size;) {
        ssize_t n = read(fd, data + *size, (size_t)st.st_size - *size);
        if (n <= 0)
            die(path);
        *size += (size_t)n;
    }
    close(fd);
    return data;
}

static void put32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static void put64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }

/*
 * The least ACPI (ACPI Specification 6.4, chapter 5) that tells Linux of the processors and KVM's I/O
 * APIC: with it the guest uses its local APIC's timer instead of reprogramming the 8254 at every tick.
 * "Hardware-reduced": there is no PM block. Linux then takes the legacy interrupts for absent, so the DSDT
 * tells of the serial port's.
 */
#define ACPI_AT 0xe0000
#define RSDP_AT 0xf0000

static uint8_t checksum(const uint8_t *p, size_t n)
{
    uint8_t sum = 0;
    while (n--)
        sum = (uint8_t)(sum + *p++);
    return (uint8_t)-sum;
}

static uint32_t acpi_table(uint8_t *ram, uint32_t at, const char *signature, uint8_t revision, uint32_t length)
{
    uint8_t *t = ram + at;
    memcpy(t, signature, 4);
    put32(t + 4, length);
    t[8] = revision;
    memcpy(t + 10, "NESTORL2RUN  ", 14);
    t[9] = checksum(t, length);
    return at;
}

/* Scope (\_SB) { Device (COM1) { _HID PNP0501; _CRS: ports 3F8..3FF, interrupt 4 (edge, high) } } */
static const uint8_t dsdt_aml[] = {
    0x10, 0x33, '\\', '_', 'S', 'B', '_', 0x5b, 0x82, 0x2b, 'C', 'O', 'M', '1',
    0x08, '_', 'H', 'I', 'D', 0x0c, 0x41, 0xd0, 0x05, 0x01,
    0x08, '_', 'C', 'R', 'S', 0x11, 0x16, 0x0a, 0x13,
    0x47, 0x01, 0xf8, 0x03, 0xf8, 0x03, 0x01, 0x08, 0x89, 0x06, 0x00, 0x03, 0x01, 0x04, 0, 0, 0, 0x79, 0x00,
};

static void write_acpi(uint8_t *ram, unsigned cpus)
{
    uint8_t *fadt = ram + ACPI_AT + 0x100, *madt = ram + ACPI_AT + 0x300, *e = madt + 44, *xsdt = ram + ACPI_AT + 0x800;
    static const uint8_t ioapic[12] = {1, 12, 0, 0, 0, 0, 0xc0, 0xfe};
    static const uint8_t irq0[10] = {2, 10, 0, 0, 2};
    memcpy(ram + ACPI_AT + 36, dsdt_aml, sizeof(dsdt_aml));
    uint32_t dsdt = acpi_table(ram, ACPI_AT, "DSDT", 2, 36 + sizeof(dsdt_aml));
    put32(fadt + 112, 1u << 20); /* HW_REDUCED_ACPI */
    fadt[131] = 1;               /* minor version */
    put64(fadt + 140, dsdt);
    put32(madt + 36, 0xfee00000);
    put32(madt + 40, 1); /* an 8259 pair is there */
    for (unsigned n = 0; n < cpus; n++, e += 8)
        memcpy(e, (uint8_t[8]){0, 8, (uint8_t)n, (uint8_t)n, 1}, 8);
    memcpy(e, ioapic, 12), e += 12;
    memcpy(e, irq0, 10), e += 10; /* the 8254 is on input 2 */
    put64(xsdt + 36, acpi_table(ram, ACPI_AT + 0x100, "FACP", 6, 276));
    put64(xsdt + 44, acpi_table(ram, ACPI_AT + 0x300, "APIC", 4, (uint32_t)(e - madt)));
    uint8_t *rsdp = ram + RSDP_AT;
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, "NESTOR", 6);
    rsdp[15] = 2;
    put32(rsdp + 20, 36);
    put64(rsdp + 24, acpi_table(ram, ACPI_AT + 0x800, "XSDT", 1, 52));
    rsdp[8] = checksum(rsdp, 20);
    rsdp[32] = checksum(rsdp, 36);
}

static void load_linux(uint8_t *ram, size_t ram_size, unsigned cpus, const char *kernel, const char *initrd, const char *cmdline)
{
    size_t ksize, isize;
    uint8_t *k = read_file(kernel, &ksize), *i = read_file(initrd, &isize), *zp = ram + PARAMS_AT;
    if (ksize < 0x1000 || memcmp(k + 0x202, "HdrS", 4)) {
        fprintf(stderr, "l2run: %s: not a bzImage\n", kernel);
        exit(1);
    }
    size_t setup = ((k[0x1f1] ? k[0x1f1] : 4) + 1) * 512u;
    size_t at = (ram_size - isize) & ~4095ul;
    memcpy(ram + LOAD_AT, k + setup, ksize - setup);
    memcpy(ram + at, i, isize);
    strcpy((char *)ram + CMDLINE_AT, cmdline);
    memcpy(zp + 0x1f1, k + 0x1f1, 0x202 + k[0x201] - 0x1f1);
    zp[0x210] = 0xff;                 /* type_of_loader */
    put32(zp + 0x218, (uint32_t)at);  /* ramdisk_image */
    put32(zp + 0x21c, (uint32_t)isize);
    put32(zp + 0x228, CMDLINE_AT);
    zp[0x1e8] = 3; /* e820 entries */
    put64(zp + 0x2d0, 0), put64(zp + 0x2d8, 0x9fc00), put32(zp + 0x2e0, 1);
    put64(zp + 0x2e4, 0x100000), put64(zp + 0x2ec, ram_size - 0x100000), put32(zp + 0x2f4, 1);
    put64(zp + 0x2f8, ACPI_AT), put64(zp + 0x300, 0x20000), put32(zp + 0x308, 2);
    write_acpi(ram, cpus);
    put64(ram + GDT_AT + 0x10, 0x00cf9b000000ffff);
    put64(ram + GDT_AT + 0x18, 0x00cf93000000ffff);
    free(k);
    free(i);
}

/* The 16550 as far as Linux's driver uses it to transmit. */
struct uart {
    uint8_t ier, lcr, mcr, scr, dll, dlm;
    int thre_pending;
};

static void uart_irq(int vm, struct uart *u)
{
    struct kvm_irq_level irq = {.irq = 4, .level = u->thre_pending && (u->ier & 2)};
    ioctl(vm, KVM_IRQ_LINE, &irq);
}

static void uart_write(int vm, struct uart *u, unsigned reg, uint8_t v)
{
    if (u->lcr & 0x80 && reg < 2) {
        *(reg ? &u->dlm : &u->dll) = v;
        return;
    }
    switch (reg) {
    case 0:
        if (write(1, &v, 1) != 1)
            exit(1);
        u->thre_pending = 0; /* the register was full for a moment: an edge for the I/O APIC */
        uart_irq(vm, u);
        u->thre_pending = 1;
        break;
    case 1:
        if (v & ~u->ier & 2)
            u->thre_pending = 1;
        u->ier = v & 15;
        break;
    case 3: u->lcr = v; break;
    case 4: u->mcr = v; break;
    case 7: u->scr = v; break;
    }
    uart_irq(vm, u);
}

static uint8_t uart_read(int vm, struct uart *u, unsigned reg)
{
    uint8_t v = 0;
    if (u->lcr & 0x80 && reg < 2)
        return reg ? u->dlm : u->dll;
    switch (reg) {
    case 1: v = u->ier; break;
    case 2:
        v = 0xc1;
        if (u->thre_pending && u->ier & 2) {
            v = 0xc2;
            u->thre_pending = 0;
        }
        break;
    case 3: v = u->lcr; break;
    case 4: v = u->mcr; break;
    case 5: v = 0x60; break; /* the transmitter is always empty */
    case 6: v = u->mcr & 0x10 ? (uint8_t)((u->mcr & 3) << 4 | (u->mcr & 12) << 4) : 0xb0; break;
    case 7: v = u->scr; break;
    }
    uart_irq(vm, u);
    return v;
}

/* Every processor is a core of one package, without threads and without shared caches. */
static void set_cpuid(int kvm, int cpu, unsigned id, unsigned cpus)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[256];
    } c;
    memset(&c, 0, sizeof(c));
    c.head.nent = 256;
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &c))
        die("KVM_GET_SUPPORTED_CPUID");
    unsigned bits = 0; /* of an APIC ID within the package */
    while (1u << bits < cpus)
        bits++;
    for (unsigned i = 0; i < c.head.nent; i++) {
        struct kvm_cpuid_entry2 *e = &c.entries[i];
        switch (e->function) {
        case 1:
            e->ecx |= 1u << 31; /* HYPERVISOR: the guest looks for KVM's leaves, and its clock */
            e->ebx = (e->ebx & 0xffff) | cpus << 16 | id << 24;
            e->edx = (e->edx & ~(1u << 28)) | (uint32_t)(cpus > 1) << 28; /* HTT */
            break;
        case 4:
            e->eax &= 0x3fff;
            break;
        case 0xb: case 0x1f:
            e->eax = e->index == 1 ? bits : 0;
            e->ebx = e->index == 1 ? cpus : e->index == 0;
            e->ecx = e->index == 1 ? 0x201 : e->index == 0 ? 0x100 : e->index;
            e->edx = id;
            break;
        case 0x80000008:
            e->ecx = (e->ecx & ~0xf0ffu) | bits << 12 | (cpus - 1);
            break;
        case 0x8000001d:
            e->eax &= 0x3fff;
            break;
        case 0x8000001e:
            e->eax = e->ebx = id, e->ecx = 0;
            break;
        }
    }
    if (ioctl(cpu, KVM_SET_CPUID2, &c))
        die("KVM_SET_CPUID2");
}

static void set_msrs(int cpu)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } m;
    memset(&m, 0, sizeof(m));
    m.head.nmsrs = 1;
    m.entry.index = 0x1a0;
    if (ioctl(cpu, KVM_GET_MSRS, &m) != 1)
        die("KVM_GET_MSRS");
    m.entry.data |= 1;
    if (ioctl(cpu, KVM_SET_MSRS, &m) != 1)
        die("KVM_SET_MSRS");
}

static void set_registers(int cpu)
{
    struct kvm_sregs s;
    struct kvm_regs r;
    if (ioctl(cpu, KVM_GET_SREGS, &s))
        die("KVM_GET_SREGS");
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 0x18, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    s.cs = s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.cs.selector = 0x10;
    s.cs.type = 11;
    s.cr0 |= 1;
    s.gdt.base = GDT_AT;
    s.gdt.limit = 31;
    if (ioctl(cpu, KVM_SET_SREGS, &s))
        die("KVM_SET_SREGS");
    memset(&r, 0, sizeof(r));
    r.rip = LOAD_AT;
    r.rsi = PARAMS_AT;
    r.rflags = 2;
    if (ioctl(cpu, KVM_SET_REGS, &r))
        die("KVM_SET_REGS");
}

static void handle_io(int vm, struct uart *u, struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        unsigned port = run->io.port;
        if (port >= 0x3f8 && port < 0x400 && run->io.size == 1) {
            if (run->io.direction == KVM_EXIT_IO_OUT)
                uart_write(vm, u, port - 0x3f8, *data);
            else
                *data = uart_read(vm, u, port - 0x3f8);
        } else if (run->io.direction == KVM_EXIT_IO_IN) {
            memset(data, port == 0x71 ? 0 : 0xff, run->io.size); /* an RTC that is not updating; open bus */
        }
    }
}

/* The virtual machine and what its processors share. */
static struct {
    int kvm, vm;
    unsigned cpus;
    struct uart uart;
    pthread_mutex_t lock; /* of uart and the counts */
    unsigned long exits, io, mmio;
    struct timespec began;
} machine = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int make_cpu(unsigned id)
{
    int cpu = ioctl(machine.vm, KVM_CREATE_VCPU, id);
    if (cpu < 0)
        die("KVM_CREATE_VCPU");
    set_cpuid(machine.kvm, cpu, id, machine.cpus);
    set_msrs(cpu);
    if (id == 0)
        set_registers(cpu);
    return cpu;
}

/* Ends the program, whatever the other processors do. */
static void __attribute__((noreturn)) finish(int status)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double s = (double)(now.tv_sec - machine.began.tv_sec) + (double)(now.tv_nsec - machine.began.tv_nsec) / 1e9;
    printf("l2run: L2 ran %.2f s of L1's time; %lu exits to user space (%lu port, %lu memory)\n", s, machine.exits, machine.io,
           machine.mmio);
    exit(status);
}

static void *run_cpu(void *arg)
{
    int cpu = (int)(intptr_t)arg, size = ioctl(machine.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    if (size < 0 || run == MAP_FAILED)
        die("KVM_GET_VCPU_MMAP_SIZE");
    for (;;) {
        if (ioctl(cpu, KVM_RUN, 0)) {
            if (errno != EINTR && errno != EAGAIN)
                die("KVM_RUN");
            continue; /* a signal, or a processor that has got its SIPI */
        }
        pthread_mutex_lock(&machine.lock);
        machine.exits++;
        switch (run->exit_reason) {
        case KVM_EXIT_IO:
            machine.io++;
            handle_io(machine.vm, &machine.uart, run);
            break;
        case KVM_EXIT_MMIO:
            machine.mmio++;
            if (!run->mmio.is_write)
                memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
            break;
        case KVM_EXIT_INTR:
            break;
        case KVM_EXIT_SHUTDOWN:
            finish(0);
            break;
        case KVM_EXIT_FAIL_ENTRY:
            fprintf(stderr, "l2run: VM entry failed, hardware reason %#llx\n",
                    (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
            finish(1);
            break;
        default:
            fprintf(stderr, "l2run: exit reason %u, suberror %u\n", run->exit_reason, run->internal.suberror);
            finish(1);
        }
        pthread_mutex_unlock(&machine.lock);
    }
}

static void usage(void)
{
    fputs("usage: l2run [-c VCPUS] [-m MIB] KERNEL INITRD [CMDLINE]\n", stderr);
    exit(2);
}

int main(int argc, char **argv)
{
    unsigned cpus = machine.cpus = 1;
    size_t ram_size = 256ul << 20;
    for (int o; (o = getopt(argc, argv, "c:m:")) >= 0;) {
        unsigned long n = strtoul(optarg ? optarg : "", NULL, 0);
        if (o == 'c' && n >= 1 && n <= CPUS_MAX)
            cpus = machine.cpus = (unsigned)n;
        else if (o == 'm' && n >= 32 && n <= 3072)
            ram_size = n << 20;
        else
            usage();
    }
    if (argc - optind < 2)
        usage();
    clock_gettime(CLOCK_MONOTONIC, &machine.began);
    int kvm = machine.kvm = open("/dev/kvm", O_RDWR);
    if (kvm < 0)
        die("/dev/kvm");
    int vm = machine.vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0)
        die("KVM_CREATE_VM");
    uint64_t identity_map = 0xfffbc000;
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul) || ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) ||
        ioctl(vm, KVM_CREATE_IRQCHIP, 0) || ioctl(vm, KVM_CREATE_PIT2, &pit))
        die("setting the virtual machine up");
    uint8_t *ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ram == MAP_FAILED)
        die("guest memory");
    load_linux(ram, ram_size, cpus, argv[optind], argv[optind + 1],
               argc - optind > 2 ? argv[optind + 2] : "console=ttyS0 reboot=t panic=-1");
    struct kvm_userspace_memory_region region = {.memory_size = ram_size, .userspace_addr = (uintptr_t)ram};
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
        die("KVM_SET_USER_MEMORY_REGION");
    int cpu[CPUS_MAX];
    for (unsigned n = 0; n < cpus; n++)
        cpu[n] = make_cpu(n);
    for (unsigned n = 1; n < cpus; n++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run_cpu, (void *)(intptr_t)cpu[n]))
            die("a processor's thread");
    }
    run_cpu((void *)(intptr_t)cpu[0]);
    return 1; /* run_cpu() ends the program */
}
