/* The VM-exit instruction-information field and the displacement qualification (SDM "Information for
 * VM Exits Due to Instruction Execution"). */
#include "vmx/vmx.h"

static u32 address_size(const struct insn *i) { return i->adsize == 8 ? 2 : i->adsize == 4 ? 1 : 0; }

/* Scaling, address size, segment, index and base, where the other layouts agree. */
static u32 memory_operand(const struct insn *i)
{
    u32 info = address_size(i) << 7 | (u32)i->seg << 15;
    if (i->index < REG_NONE)
        info |= i->scale | (u32)i->index << 18;
    else
        info |= BIT(22);
    if (i->base < REG_NONE)
        info |= (u32)i->base << 23;
    else
        info |= BIT(27);
    return info;
}

u32 vmx_instruction_info(const struct insn *i, enum vmx_insn_info layout, unsigned identity)
{
    bool mem = i->flags & INSN_MEM;
    u32 rm = mem ? memory_operand(i) : BIT(10) | (u32)(i->rm & 15) << 3;
    switch (layout) {
    case INFO_MEMORY: return memory_operand(i);
    case INFO_INVALIDATE: return memory_operand(i) | (u32)(i->reg & 15) << 28;
    case INFO_VMREAD: return rm | (u32)(i->reg & 15) << 28;
    case INFO_LDTR_TR: return rm | identity << 28;
    case INFO_DESCRIPTOR_TABLE: return memory_operand(i) | (i->opsize == 2 ? 0 : BIT(11)) | identity << 28;
    case INFO_RDRAND: return (u32)(i->rm & 15) << 3 | (i->opsize == 8 ? 2u : i->opsize == 4 ? 1u : 0u) << 11;
    default: return 0;
    }
}

u64 vmx_displacement(const struct vcpu *v, const struct insn *i)
{
    if (!(i->flags & INSN_MEM))
        return 0;
    return (u64)i->disp + (i->base == REG_RIP ? v->next_rip : 0);
}
