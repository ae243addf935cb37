/* The board: which devices there are, how their lines are wired, and what a firmware would set up. */
#include "devices/acpi_pm.h"
#include "devices/apic_bus.h"
#include "devices/debug_exit.h"
#include "devices/debugcon.h"
#include "devices/fw_cfg.h"
#include "devices/hpet.h"
#include "devices/i8042.h"
#include "devices/i8254.h"
#include "devices/i8259.h"
#include "devices/ioapic.h"
#include "devices/ferr.h"
#include "devices/irq_router.h"
#include "devices/lapic.h"
#include "devices/pci.h"
#include "devices/pci_testdev.h"
#include "devices/rtc.h"
#include "devices/testdev.h"
#include "devices/uart16550.h"
#include "machine/machine.h"
#include "machine/memmap.h"

#include <stdlib.h>
#include <time.h>

struct machine_devices {
    struct apic_bus *apic_bus;
    struct lapic *lapic[MACHINE_MAX_CPUS];
    struct ioapic *ioapic;
    struct i8259 *pic;
    struct irq_router router;
    struct i8254 *pit;
    struct hpet *hpet;
    struct rtc *rtc;
    struct acpi_pm *pm;
    struct uart *uart;
    struct pci_bus *pci;
    struct pci_testdev *pci_testdev;
    struct fw_cfg *fw_cfg;
    struct debug_exit *debug_exit;
    struct testdev *testdev;
    struct ferr *ferr;
    struct i8042 *kbc;
    struct debugcon *debugcon;
};

static struct irq_line board_irq(struct board *b, unsigned gsi)
{
    struct nestor *m = container_of(b, struct nestor, board);
    return irq_router_line(&m->devices->router, gsi);
}

/* Ends the running slice: what a device asked for happens before the next instruction after this one. */
static void interrupt_slice(struct nestor *m)
{
    for (unsigned i = 0; i < m->ncpus; i++)
        vcpu_request(m->cpu[i], REQ_EXIT);
    machine_threads_kick(m);
}

static void request_reset(struct board *b)
{
    struct nestor *m = container_of(b, struct nestor, board);
    m->want_reset = true;
    interrupt_slice(m);
}

static void request_power_off(struct board *b)
{
    struct nestor *m = container_of(b, struct nestor, board);
    m->want_power_off = true;
    interrupt_slice(m);
}

static void request_exit(struct board *b, int status)
{
    struct nestor *m = container_of(b, struct nestor, board);
    m->want_exit = true;
    m->exit_status = status;
    interrupt_slice(m);
}

/*
 * A local APIC's wires to its processor. Whoever runs now has usually just sent the message and will
 * spin until it is answered: its slice ends soon, so that the answer does not take a whole round.
 */
#define AFTER_MESSAGE 256
static void hand_over(void *cpu)
{
    struct nestor *m = ((struct vcpu *)cpu)->machine;
    struct vcpu *v = m->running;
    if (v && v != cpu)
        cpu_end_slice(v, AFTER_MESSAGE);
}
static void pin_intr(void *cpu, bool asserted)
{
    vcpu_pins.intr(cpu, asserted);
    if (asserted)
        hand_over(cpu);
}
static void pin_nmi(void *cpu) { vcpu_pins.nmi(cpu), hand_over(cpu); }
static void pin_smi(void *cpu) { vcpu_pins.smi(cpu), hand_over(cpu); }
static void pin_init(void *cpu) { vcpu_pins.init(cpu), hand_over(cpu); }
static void pin_sipi(void *cpu, u8 vector) { vcpu_pins.sipi(cpu, vector), hand_over(cpu); }
static const struct cpu_pins pins = {pin_intr, pin_nmi, pin_smi, pin_init, pin_sipi};

static u64 cpu_tsc_callback(void *cpu) { return cpu_tsc(cpu); }
static u64 cpu_tsc_to_ns_callback(void *cpu, u64 tsc) { return cpu_tsc_to_ns(cpu, tsc); }

void machine_serial_flush(struct nestor *m)
{
    if (m->ntx && m->config.serial_tx)
        m->config.serial_tx(m->config.serial_arg, m->tx, m->ntx);
    m->ntx = 0;
}

static void serial_tx(void *opaque, u8 byte)
{
    struct nestor *m = opaque;
    if (!m->ntx)
        machine_threads_kick(m); /* that it comes out soon, line end or not */
    m->tx[m->ntx++] = byte;
    if (m->ntx == sizeof(m->tx) || byte == '\n')
        machine_serial_flush(m);
}

void machine_serial_input(struct nestor *m)
{
    /* One byte at a time: what the receiver has no room for stays with the host. */
    struct machine_devices *d = m->devices;
    u8 byte;
    if (!m->config.serial_rx)
        return;
    for (unsigned i = 0; i < 16; i++) {
        if (m->have_rx)
            byte = m->rx;
        else if (m->config.serial_rx(m->config.serial_arg, &byte, 1) != 1)
            return;
        m->have_rx = !uart_rx(d->uart, byte);
        m->rx = byte;
        if (m->have_rx)
            return;
    }
}

static void hpet_legacy(void *opaque, bool on)
{
    struct machine_devices *d = opaque;
    i8254_irq_enable(d->pit, !on);
    rtc_irq_enable(d->rtc, !on);
}

static int inta_peek(void *pic) { return i8259_peek(pic); }
static int inta_ack(void *pic) { return i8259_ack(pic); }
static void debugcon_tx(void *opaque, u8 byte)
{
    struct nestor *m = opaque;
    if (m->config.debugcon)
        m->config.debugcon(m->config.debugcon_arg, byte);
}

static int add_lapics(struct nestor *m, struct error *err)
{
    struct machine_devices *d = m->devices;
    for (unsigned i = 0; i < m->ncpus; i++) {
        struct vcpu *v = m->cpu[i];
        struct lapic_config c = {
            .id = i, .bsp = i == 0, .x2apic = cpu_has(v, FEAT_X2APIC), .tsc_deadline = cpu_has(v, FEAT_TSC_DEADLINE),
            .phys_bits = v->maxphyaddr, .pins = pins, .cpu = v,
            .tsc = cpu_tsc_callback, .tsc_to_ns = cpu_tsc_to_ns_callback,
        };
        d->lapic[i] = lapic_new(&m->board, d->apic_bus, &c, err);
        if (!d->lapic[i])
            return -1;
        vcpu_attach_intc(v, &lapic_intc_ops, d->lapic[i]);
    }
    return 0;
}

static void suspend(void *opaque)
{
    struct nestor *m = opaque;
    m->suspended = true;
    interrupt_slice(m);
}

static void rtc_alarm(void *opaque) { acpi_pm_event(opaque, PM1_RTC); }

static void a20_ignored(void *opaque, bool on)
{
    (void)opaque;
    if (!on)
        log_at(unimplemented, "the A20 gate: addresses do not wrap at 1 MiB");
}

static void assert_ignne(void *cpu) { ((struct vcpu *)cpu)->ignne = true; }

int machine_add_devices(struct nestor *m, struct error *err)
{
    struct board *b = &m->board;
    struct machine_devices *d = m->devices = calloc(1, sizeof(*d));
    if (!d)
        return error_set(err, "out of memory for the devices");
    b->irq = board_irq;
    b->request_reset = request_reset;
    b->request_power_off = request_power_off;
    b->request_exit = request_exit;
    d->apic_bus = apic_bus_new();
    b->msi = apic_bus_msi(d->apic_bus);
    s64 epoch = m->config.rtc_epoch;
    if (!epoch)
        epoch = m->clock.kind == CLOCK_HOST ? (s64)time(NULL) : 946684800;
    struct pci_bus_config pci = {.ecam_base = MAP_ECAM, .ecam_buses = 256};
    struct uart_host host = {.tx = serial_tx, .opaque = m};

    if (add_lapics(m, err) || !(d->ioapic = ioapic_new(b, d->apic_bus, err)) ||
        !(d->pic = i8259_new(b, apic_bus_lint0(d->apic_bus), err)))
        return -1;
    apic_bus_set_inta(d->apic_bus, inta_peek, inta_ack, d->pic);
    d->router = (struct irq_router){.pic = d->pic, .ioapic = d->ioapic};
    if (!(d->pit = i8254_new(b, err)) || !(d->rtc = rtc_new(b, epoch, err)) ||
        !(d->hpet = hpet_new(b, hpet_legacy, d, err)) || !(d->pm = acpi_pm_new(b, true, err)) ||
        !(d->uart = uart_new(b, 0x3f8, 4, &host, err)) || !(d->pci = pci_bus_new(b, &pci, err)) ||
        !(d->fw_cfg = fw_cfg_new(b, (u16)m->ncpus, m->ram, err)) || !(d->kbc = i8042_new(b, a20_ignored, m, err)) ||
        !(d->debugcon = debugcon_new(b, debugcon_tx, m, err)) || !(d->ferr = ferr_new(b, assert_ignne, m->cpu[0], err)))
        return -1;
    m->cpu[0]->ferr = ferr_line(d->ferr);
    acpi_pm_on_s3(d->pm, suspend, m);
    rtc_on_alarm(d->rtc, rtc_alarm, d->pm);
    if (m->config.debug_exit &&
        (!(d->debug_exit = debug_exit_new(b, DEBUG_EXIT_PORT, err)) || !(d->testdev = testdev_new(b, NULL, NULL, err)) ||
         !(d->pci_testdev = pci_testdev_new(d->pci, PCI_DEVFN(3, 0), err))))
        return -1;
    return 0;
}

/* The vectors that PC firmware gives the interrupt controllers: 08H..0FH and 70H..77H, every input open. */
static void firmware_pic(struct pio_bus *pio)
{
    static const struct { u16 port; u8 value; } writes[] = {
        {0x20, 0x11}, {0x21, 0x08}, {0x21, 0x04}, {0x21, 0x01}, {0x21, 0},
        {0xa0, 0x11}, {0xa1, 0x70}, {0xa1, 0x02}, {0xa1, 0x01}, {0xa1, 0},
    };
    for (unsigned n = 0; n < ARRAY_SIZE(writes); n++)
        pio_write(pio, writes[n].port, writes[n].value, 1);
}

bool machine_wants_wake(const struct nestor *m) { return acpi_pm_wants_wake(m->devices->pm); }
void machine_woken(struct nestor *m) { acpi_pm_event(m->devices->pm, PM1_WAK); }

/* Not at @power_on: the clock and the wake logic kept their power while the machine slept. */
void machine_reset_devices(struct nestor *m, bool power_on)
{
    struct machine_devices *d = m->devices;
    for (unsigned i = 0; i < m->ncpus; i++) {
        lapic_reset(d->lapic[i]);
        lapic_virtual_wire(d->lapic[i]);
    }
    ioapic_reset(d->ioapic);
    i8259_reset(d->pic);
    firmware_pic(m->pio);
    i8254_reset(d->pit);
    hpet_reset(d->hpet);
    if (power_on) {
        rtc_reset(d->rtc);
        rtc_set_memory(d->rtc, memmap_low_ram(m->ram), m->ram - memmap_low_ram(m->ram));
        acpi_pm_reset(d->pm);
    }
    uart_reset(d->uart);
    fw_cfg_reset(d->fw_cfg);
    i8042_reset(d->kbc);
    ferr_reset(d->ferr);
    if (d->testdev)
        testdev_reset(d->testdev);
    pci_bus_reset(d->pci);
    pci_assign(d->pci, MAP_PCI_MEM, MAP_PCI_MEM_END, MAP_PCI_IO);
    m->have_rx = false;
}

void machine_free_devices(struct nestor *m)
{
    struct machine_devices *d = m->devices;
    if (!d)
        return;
#define FREE(member, free_it)                                                                      \
    do {                                                                                           \
        if (d->member)                                                                             \
            free_it(d->member);                                                                    \
    } while (0)
    FREE(pci_testdev, pci_testdev_free);
    FREE(testdev, testdev_free);
    FREE(debug_exit, debug_exit_free);
    FREE(debugcon, debugcon_free);
    FREE(ferr, ferr_free);
    FREE(kbc, i8042_free);
    FREE(fw_cfg, fw_cfg_free);
    FREE(pci, pci_bus_free);
    FREE(uart, uart_free);
    FREE(pm, acpi_pm_free);
    FREE(hpet, hpet_free);
    FREE(rtc, rtc_free);
    FREE(pit, i8254_free);
    FREE(pic, i8259_free);
    FREE(ioapic, ioapic_free);
    for (unsigned i = 0; i < m->ncpus; i++)
        FREE(lapic[i], lapic_free);
    FREE(apic_bus, apic_bus_free);
#undef FREE
    free(d);
    m->devices = NULL;
}
