/*
 * Port I/O. Manuals: Intel SDM volume 1, "I/O Port Addressing" and "Protected-Mode I/O"; volume 2, IN,
 * INS, OUT, OUTS. Order: the privilege check (IOPL, then the TSS's permission bitmap), the
 * hypervisor's intercept, the memory operand, the port.
 */
#include "base/log.h"
#include "cpu/bodies_sys.h"
#include "cpu/mem.h"
#include "devices/bus.h"

/* Iterations of one REP INS or OUTS before the engine looks at its budget: RCX is the guest's to choose. */
#define REP_SLICE 1024

/* ---- permission ---- */

static bool bitmap_allows(struct vcpu *v, u16 port, unsigned size)
{
    const struct segment *tr = &v->seg[SEG_TR];
    unsigned type = tr->ar & AR_TYPE;
    u64 mask = cpu_lma(v) ? ~0ull : 0xffffffff;
    /* Only 32-bit (and 64-bit) TSSs, available or busy, have a map; its offset is in bytes 102 and 103. */
    if ((tr->ar & (AR_UNUSABLE | AR_S)) || !(tr->ar & AR_P) || (type != 9 && type != 11) || tr->limit < 103)
        return false;
    u32 at = (u32)sys_read(v, (tr->base + 102) & mask, 2) + port / 8;
    /* Two bytes are always read, so that an access at a byte's end finds all its bits. */
    if (at + 1 > tr->limit)
        return false;
    u32 bits = (u32)sys_read(v, (tr->base + at) & mask, 2);
    return !(bits >> (port & 7) & (BIT(size) - 1));
}

static void check_permission(struct vcpu *v, u16 port, unsigned size)
{
    if (v->mode == MODE_REAL)
        return;
    unsigned iopl = (unsigned)bits_get(v->rflags, 13, 12);
    if ((v->mode == MODE_V86 || v->cpl > iopl) && !bitmap_allows(v, port, size))
        cpu_gp0(v);
}

/* ---- breakpoints on ports: traps, with CR4.DE ---- */

static void port_breakpoints(struct vcpu *v, u16 port, unsigned size)
{
    static const u8 lengths[4] = {1, 2, 8, 4};
    if (likely(!(v->dr7 & 0xff)) || !(v->cr4 & CR4_DE))
        return;
    for (unsigned n = 0; n < 4; n++) {
        if (!(v->dr7 >> n * 2 & 3) || (v->dr7 >> (16 + n * 4) & 3) != 2)
            continue;
        u64 len = lengths[v->dr7 >> (18 + n * 4) & 3], first = v->dr[n] & ~(len - 1);
        if (port < first + len && first < (u64)port + size) {
            v->pending_dbg |= DR6_B(n);
            cpu_attention(v, ATT_DEBUG);
        }
    }
}

/* ---- the port itself ---- */

static u32 port_read(struct vcpu *v, u16 port, unsigned size)
{
    u32 value = pio_read(v->pio, port, size);
    log_at(pio, "cpu %u: rip %#llx: in %u bytes from %#x: %#x", v->index, (unsigned long long)v->rip, size, port,
           value);
    port_breakpoints(v, port, size);
    return value;
}

static void port_write(struct vcpu *v, u16 port, u32 value, unsigned size)
{
    log_at(pio, "cpu %u: rip %#llx: out %u bytes to %#x: %#x", v->index, (unsigned long long)v->rip, size, port, value);
    pio_write(v->pio, port, value, size);
    port_breakpoints(v, port, size);
}

static void intercept(struct vcpu *v, const struct io_access *io, const struct insn *i)
{
    if (unlikely(v->guest_mode))
        v->virt->io(v, io, i);
}

/* The byte forms have even opcodes; there is no 64-bit port access. */
static unsigned port_size(const struct insn *i) { return !(i->opcode & 1) ? 1 : i->opsize == 2 ? 2 : 4; }

static void begin(struct vcpu *v, const struct insn *i, u16 port, bool in, bool imm)
{
    unsigned size = port_size(i);
    check_permission(v, port, size);
    intercept(v, &(struct io_access){.port = port, .size = (u8)size, .in = in, .imm = imm}, i);
}

static void do_in(struct vcpu *v, const struct insn *i, u16 port, bool imm)
{
    unsigned size = port_size(i);
    begin(v, i, port, true, imm);
    u32 value = port_read(v, port, size);
    if (size == 1)
        reg8_set(v, 0, (u8)value);
    else if (size == 2)
        reg16_set(v, RAX, (u16)value);
    else
        reg32_set(v, RAX, value);
}

static void do_out(struct vcpu *v, const struct insn *i, u16 port, bool imm)
{
    unsigned size = port_size(i);
    begin(v, i, port, false, imm);
    port_write(v, port, (u32)(v->gpr[RAX] & BITS64(size * 8 - 1, 0)), size);
}

void insn_in_imm(struct vcpu *v, const struct insn *i) { do_in(v, i, (u8)i->imm, true); }
void insn_in_dx(struct vcpu *v, const struct insn *i) { do_in(v, i, reg16_get(v, RDX), false); }
void insn_out_imm(struct vcpu *v, const struct insn *i) { do_out(v, i, (u8)i->imm, true); }
void insn_out_dx(struct vcpu *v, const struct insn *i) { do_out(v, i, reg16_get(v, RDX), false); }

/* ---- INS and OUTS ---- */

static u64 size_mask(const struct insn *i) { return i->adsize == 8 ? ~0ull : i->adsize == 4 ? 0xffffffff : 0xffff; }

static void index_add(struct vcpu *v, unsigned r, const struct insn *i, u64 by)
{
    u64 value = v->gpr[r] + by;
    if (i->adsize == 2)
        reg16_set(v, r, (u16)value);
    else
        v->gpr[r] = value & size_mask(i);
}

static void ins_element(struct vcpu *v, u64 offset, u16 port, unsigned size)
{
    /* A store that would fault must do so before the port is read: reading may change the device. */
    mem_probe_write(v, SEG_ES, offset, size);
    u32 value = port_read(v, port, size);
    if (size == 1)
        mem_write8(v, SEG_ES, offset, (u8)value);
    else if (size == 2)
        mem_write16(v, SEG_ES, offset, (u16)value);
    else
        mem_write32(v, SEG_ES, offset, value);
}

static void outs_element(struct vcpu *v, unsigned seg, u64 offset, u16 port, unsigned size)
{
    u32 value = size == 1   ? mem_read8(v, seg, offset)
                : size == 2 ? mem_read16(v, seg, offset)
                            : mem_read32(v, seg, offset);
    port_write(v, port, value, size);
}

static void string_io(struct vcpu *v, const struct insn *i, bool in)
{
    unsigned size = port_size(i), index = in ? RDI : RSI, seg = in ? SEG_ES : i->seg;
    bool rep = i->flags & (INSN_REP | INSN_REPNE);
    u16 port = reg16_get(v, RDX);
    u64 step = v->rflags & FL_DF ? 0 - (u64)size : size;
    u64 mask = size_mask(i);
    for (unsigned n = 0;; n++) {
        if (rep && !(v->gpr[RCX] & mask))
            break;
        if (n && (n == REP_SLICE || atomic_load_explicit(&v->attention, memory_order_relaxed) & ~(u32)ATT_BLOCK)) {
            /* Unfinished: an event may be taken between elements; RF keeps a breakpoint here from firing again
             * (SDM "Instruction-Breakpoint Exception Condition"). */
            v->next_rip = v->rip;
            v->rflags |= FL_RF;
            v->unfinished++;
            cpu_attention(v, ATT_BLOCK); /* the engine must not go on behind it */
            return;
        }
        u64 offset = v->gpr[index] & mask;
        check_permission(v, port, size);
        intercept(v, &(struct io_access){.port = port, .size = (u8)size, .in = in, .string = true, .rep = rep,
                                         .seg = (u8)seg, .adsize = i->adsize,
                                         .linear = (v->seg_base[seg] + offset) & v->linear_mask}, i);
        if (in)
            ins_element(v, offset, port, size);
        else
            outs_element(v, seg, offset, port, size);
        index_add(v, index, i, step);
        if (!rep)
            break;
        index_add(v, RCX, i, ~0ull);
    }
    v->rflags &= ~FL_RF;
}

void insn_ins(struct vcpu *v, const struct insn *i) { string_io(v, i, true); }
void insn_outs(struct vcpu *v, const struct insn *i) { string_io(v, i, false); }
