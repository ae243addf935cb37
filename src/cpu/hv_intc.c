/*
 * Automatic EOI (TLFS "SINT Registers"): the interrupt controller as it is, except that taking an
 * interrupt whose source asks for it ends the interrupt at once.
 */
#include "cpu/cpu.h"
#include "cpu/hyperv.h"

#define INNER(call, ...) \
    struct hyperv_vp *vp = opaque; \
    return vp->intc_ops->call(vp->intc, ##__VA_ARGS__)

static int peek(void *opaque) { INNER(peek); }
static u8 get_tpr(void *opaque) { INNER(get_tpr); }
static void set_tpr(void *opaque, u8 tpr) { INNER(set_tpr, tpr); }
static int read_msr(void *opaque, u32 msr, u64 *value) { INNER(rdmsr, msr, value); }
static int write_msr(void *opaque, u32 msr, u64 value) { INNER(wrmsr, msr, value); }
static void init(void *opaque) { INNER(init); }
static u32 id(void *opaque) { INNER(id); }
static u64 page(void *opaque) { INNER(page); }
static u64 mmio_read(void *opaque, u32 offset, unsigned size) { INNER(mmio_read, offset, size); }
static void mmio_write(void *opaque, u32 offset, u64 value, unsigned size) { INNER(mmio_write, offset, value, size); }
static void ipi(void *opaque, u32 ndst, u8 vector) { INNER(ipi, ndst, vector); }
static void pmi(void *opaque) { INNER(pmi); }

static int ack(void *opaque)
{
    enum { APIC_BASE = 0x1b, X2APIC_EOI = 0x80b, APIC_EOI = 0xb0 };
    struct hyperv_vp *vp = opaque;
    int vector = vp->intc_ops->ack(vp->intc);
    u64 base;
    if (vector >= 0 && hv_synic_auto_eoi(vp, (u8)vector)) {
        if (!vp->intc_ops->rdmsr(vp->intc, APIC_BASE, &base) && base & BIT64(10))
            vp->intc_ops->wrmsr(vp->intc, X2APIC_EOI, 0);
        else
            vp->intc_ops->mmio_write(vp->intc, APIC_EOI, 0, 4);
    }
    return vector;
}

static const struct intc_ops ops = {
    .peek = peek, .ack = ack, .get_tpr = get_tpr, .set_tpr = set_tpr, .rdmsr = read_msr, .wrmsr = write_msr, .init = init, .id = id,
    .page = page, .mmio_read = mmio_read, .mmio_write = mmio_write, .ipi = ipi, .pmi = pmi,
};

void hyperv_wrap_intc(struct vcpu *v)
{
    struct hyperv_vp *vp = v->hyperv;
    vp->intc_ops = v->intc_ops;
    vp->intc = v->intc;
    vcpu_attach_intc(v, &ops, vp);
}
