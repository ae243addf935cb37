/*
 * The registers gdb sees: a table made for this machine's processors, the target description in XML
 * made from it, and reading and writing. Feature and register names that gdb prescribes are those of
 * its manual, "Standard Target Features", "i386 Features"; the others are ours.
 */
#include "debug/debugger.h"

#include "devices/irq.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>

enum reg_kind {
    REG_GPR, REG_PC, REG_FLAGS, REG_SELECTOR, REG_ST, REG_FPU, REG_VEC, REG_MXCSR, REG_VEC_HI, REG_ZMM_HI, REG_MASK, REG_SEG_BASE,
    REG_U64, /* a plain member of struct vcpu */
    REG_CR0, REG_CR3, REG_CR4, REG_CR8, REG_EFER, REG_DR, REG_TABLE_BASE, REG_TABLE_LIMIT, REG_VMCS,
};

struct target_register {
    char name[48];
    const char *type;
    u8 kind; /* enum reg_kind */
    u16 index;
    u16 bits;
};

/* ---- the table and its description ---- */
struct maker {
    struct debugger *g;
    FILE *xml;
    const char *group;
};

static void add(struct maker *m, enum reg_kind kind, unsigned index, unsigned bits, const char *type, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
static void add(struct maker *m, enum reg_kind kind, unsigned index, unsigned bits, const char *type, const char *fmt, ...)
{
    struct debugger *g = m->g;
    struct target_register *grown = realloc(g->regs, (g->nregs + 1) * sizeof(*g->regs));
    if (!grown)
        panic("out of memory for the target description");
    g->regs = grown;
    struct target_register *r = &g->regs[g->nregs];
    *r = (struct target_register){.type = type, .kind = (u8)kind, .index = (u16)index, .bits = (u16)bits};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->name, sizeof(r->name), fmt, ap);
    va_end(ap);
    for (char *p = r->name; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    fprintf(m->xml, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\" regnum=\"%u\"%s%s%s/>\n", r->name, bits, type, g->nregs,
            m->group ? " group=\"" : "", m->group ? m->group : "", m->group ? "\"" : "");
    g->nregs++;
}

static void feature(struct maker *m, const char *name, const char *group)
{
    fprintf(m->xml, "<feature name=\"%s\">\n", name);
    m->group = group;
}
static void feature_end(struct maker *m) { fputs("</feature>\n", m->xml); }

static void vec_types(struct maker *m)
{
    fputs("<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/><vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>"
          "<vector id=\"v16i8\" type=\"int8\" count=\"16\"/><vector id=\"v8i16\" type=\"int16\" count=\"8\"/>"
          "<vector id=\"v4i32\" type=\"int32\" count=\"4\"/><vector id=\"v2i64\" type=\"int64\" count=\"2\"/>\n"
          "<union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/><field name=\"v2_double\" type=\"v2d\"/>"
          "<field name=\"v16_int8\" type=\"v16i8\"/><field name=\"v8_int16\" type=\"v8i16\"/><field name=\"v4_int32\" type=\"v4i32\"/>"
          "<field name=\"v2_int64\" type=\"v2i64\"/><field name=\"uint128\" type=\"uint128\"/></union>\n", m->xml);
}

static const struct {
    const char *name;
    u16 offset;
} plain[] = {
    {"cr2", offsetof(struct vcpu, cr2)}, {"k_gs_base", offsetof(struct vcpu, kernel_gs_base)}, {"star", offsetof(struct vcpu, star)},
    {"lstar", offsetof(struct vcpu, lstar)}, {"cstar", offsetof(struct vcpu, cstar)}, {"sfmask", offsetof(struct vcpu, sfmask)},
    {"pat", offsetof(struct vcpu, pat)}, {"debugctl", offsetof(struct vcpu, debugctl)}, {"tsc_aux", offsetof(struct vcpu, tsc_aux)},
    {"sysenter_cs", offsetof(struct vcpu, sysenter_cs)}, {"sysenter_esp", offsetof(struct vcpu, sysenter_esp)},
    {"sysenter_eip", offsetof(struct vcpu, sysenter_eip)}, {"xcr0", offsetof(struct vcpu, xcr0)},
};
enum { PLAIN_CR2, PLAIN_K_GS_BASE };

static const u8 gdb_gpr[16] = {RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, 8, 9, 10, 11, 12, 13, 14, 15};
static const char *const gpr_names[16] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
static const u8 gdb_seg[6] = {SEG_CS, SEG_SS, SEG_DS, SEG_ES, SEG_FS, SEG_GS};
static const char *const seg_names[6] = {"cs", "ss", "ds", "es", "fs", "gs"};

void registers_make(struct debugger *g)
{
    const struct vcpu *v = g->m->cpu[0];
    char *text = NULL;
    size_t size;
    struct maker maker = {.g = g, .xml = open_memstream(&text, &size)}, *m = &maker;
    if (!m->xml)
        panic("out of memory for the target description");
    fputs("<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\n"
          "<architecture>i386:x86-64</architecture>\n", m->xml);

    feature(m, "org.gnu.gdb.i386.core", NULL);
    fputs("<flags id=\"eflags_type\" size=\"4\">", m->xml);
    static const struct {
        const char *name;
        u8 bit;
    } flags[] = {{"CF", 0}, {"PF", 2}, {"AF", 4}, {"ZF", 6}, {"SF", 7}, {"TF", 8}, {"IF", 9}, {"DF", 10}, {"OF", 11},
                 {"NT", 14}, {"RF", 16}, {"VM", 17}, {"AC", 18}, {"VIF", 19}, {"VIP", 20}, {"ID", 21}};
    for (unsigned n = 0; n < ARRAY_SIZE(flags); n++)
        fprintf(m->xml, "<field name=\"%s\" start=\"%u\" end=\"%u\"/>", flags[n].name, flags[n].bit, flags[n].bit);
    fputs("</flags>\n", m->xml);
    for (unsigned n = 0; n < 16; n++)
        add(m, REG_GPR, gdb_gpr[n], 64, n == 6 || n == 7 ? "data_ptr" : "int64", "%s", gpr_names[n]);
    add(m, REG_PC, 0, 64, "code_ptr", "rip");
    add(m, REG_FLAGS, 0, 32, "eflags_type", "eflags");
    for (unsigned n = 0; n < 6; n++)
        add(m, REG_SELECTOR, gdb_seg[n], 32, "int32", "%s", seg_names[n]);
    for (unsigned n = 0; n < 8; n++)
        add(m, REG_ST, n, 80, "i387_ext", "st%u", n);
    m->group = "float";
    static const char *const fpu[8] = {"fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"};
    for (unsigned n = 0; n < 8; n++)
        add(m, REG_FPU, n, 32, "int", "%s", fpu[n]);
    feature_end(m);

    feature(m, "org.gnu.gdb.i386.sse", NULL);
    vec_types(m);
    for (unsigned n = 0; n < 16; n++)
        add(m, REG_VEC, n, 128, "vec128", "xmm%u", n);
    m->group = "vector";
    add(m, REG_MXCSR, 0, 32, "int", "mxcsr");
    feature_end(m);

    feature(m, "org.gnu.gdb.i386.segments", NULL);
    add(m, REG_SEG_BASE, SEG_FS, 64, "int64", "fs_base");
    add(m, REG_SEG_BASE, SEG_GS, 64, "int64", "gs_base");
    feature_end(m);
    g->ng = g->nregs;

    if (cpu_has(v, FEAT_AVX)) {
        feature(m, "org.gnu.gdb.i386.avx", NULL);
        for (unsigned n = 0; n < 16; n++)
            add(m, REG_VEC_HI, n, 128, "uint128", "ymm%uh", n);
        feature_end(m);
    }
    if (cpu_has(v, FEAT_AVX) && cpu_has(v, FEAT_AVX512F)) {
        feature(m, "org.gnu.gdb.i386.avx512", NULL);
        vec_types(m);
        fputs("<vector id=\"v2ui128\" type=\"uint128\" count=\"2\"/>\n", m->xml);
        for (unsigned n = 16; n < 32; n++)
            add(m, REG_VEC, n, 128, "vec128", "xmm%u", n);
        for (unsigned n = 16; n < 32; n++)
            add(m, REG_VEC_HI, n, 128, "uint128", "ymm%uh", n);
        for (unsigned n = 0; n < 8; n++)
            add(m, REG_MASK, n, 64, "uint64", "k%u", n);
        for (unsigned n = 0; n < 32; n++)
            add(m, REG_ZMM_HI, n, 256, "v2ui128", "zmm%uh", n);
        feature_end(m);
    }

    feature(m, "org.nestor.system", "system");
    add(m, REG_CR0, 0, 64, "int64", "cr0");
    add(m, REG_U64, PLAIN_CR2, 64, "int64", "cr2");
    add(m, REG_CR3, 0, 64, "int64", "cr3");
    add(m, REG_CR4, 0, 64, "int64", "cr4");
    add(m, REG_CR8, 0, 64, "int64", "cr8");
    add(m, REG_EFER, 0, 64, "int64", "efer");
    for (unsigned n = PLAIN_K_GS_BASE; n < ARRAY_SIZE(plain); n++)
        add(m, REG_U64, n, 64, "int64", "%s", plain[n].name);
    for (unsigned n = 0; n < 8; n++)
        if (n != 4 && n != 5)
            add(m, REG_DR, n, 64, "int64", "dr%u", n);
    add(m, REG_SELECTOR, SEG_LDTR, 32, "int32", "ldtr");
    add(m, REG_SELECTOR, SEG_TR, 32, "int32", "tr");
    static const char *const bases[SEG_COUNT] = {"es", "cs", "ss", "ds", NULL, NULL, "ldtr", "tr"};
    for (unsigned n = 0; n < SEG_COUNT; n++)
        if (bases[n])
            add(m, REG_SEG_BASE, n, 64, "int64", "%s_base", bases[n]);
    add(m, REG_TABLE_BASE, 0, 64, "int64", "gdtr_base");
    add(m, REG_TABLE_LIMIT, 0, 32, "int32", "gdtr_limit");
    add(m, REG_TABLE_BASE, 1, 64, "int64", "idtr_base");
    add(m, REG_TABLE_LIMIT, 1, 32, "int32", "idtr_limit");
    feature_end(m);

    if (v->vmx) {
        feature(m, "org.nestor.vmcs", "vmcs");
        for (unsigned slot = 0; slot < VMCS_SLOT_COUNT; slot++)
            if (vmcs_exists(&v->vmx->caps, slot)) {
                unsigned bits = vmcs_bytes(vmcs_fields[slot].encoding) * 8;
                add(m, REG_VMCS, slot, bits, bits == 16 ? "uint16" : bits == 32 ? "uint32" : "uint64", "vmcs_%s", vmcs_fields[slot].name);
            }
        feature_end(m);
    }
    fputs("</target>\n", m->xml);
    fclose(m->xml);
    g->xml = text;
    g->xml_size = size;
}

/* ---- values ---- */

/* The full tag word of FSTENV from the abridged one: by physical register, 0 valid, 1 zero, 2 special, 3 empty. */
static u16 full_tags(const struct x87 *x)
{
    u16 tags = 0;
    for (unsigned physical = 0; physical < 8; physical++) {
        const u8 *st = x->st[(physical - (x->fsw >> 11)) & 7];
        unsigned exponent = load16(st + 8) & 0x7fff, tag = 0;
        if (!(x->ftw >> physical & 1))
            tag = 3;
        else if (exponent == 0)
            tag = load64(st) ? 2 : 1;
        else if (exponent == 0x7fff || !(st[7] & 0x80))
            tag = 2;
        tags |= (u16)(tag << (2 * physical));
    }
    return tags;
}

static u64 fpu_get(const struct x87 *x, unsigned n)
{
    switch (n) {
    case 0: return x->fcw;
    case 1: return x->fsw;
    case 2: return full_tags(x);
    case 3: return x->fcs;
    case 4: return (u32)x->fip;
    case 5: return x->fds;
    case 6: return (u32)x->fdp;
    default: return x->fop;
    }
}

static void fpu_put(struct x87 *x, unsigned n, u64 value)
{
    switch (n) {
    case 0: x->fcw = (u16)value; break;
    case 1: x->fsw = (u16)value; break;
    case 2:
        x->ftw = 0;
        for (unsigned physical = 0; physical < 8; physical++)
            if ((value >> (2 * physical) & 3) != 3)
                x->ftw |= (u8)BIT(physical);
        break;
    case 3: x->fcs = (u16)value; break;
    case 4: x->fip = value; break;
    case 5: x->fds = (u16)value; break;
    case 6: x->fdp = value; break;
    default: x->fop = (u16)value & 0x7ff; break;
    }
}

static struct vmx *current_vmcs(struct vcpu *v) { return v->vmx && v->vmx->current != VMX_NO_VMCS ? v->vmx : NULL; }

/* The bytes of the register, or NULL when it has no value now. @value: room for small ones. */
static const void *reg_bytes(struct vcpu *v, const struct target_register *r, u64 *value)
{
    switch ((enum reg_kind)r->kind) {
    case REG_GPR: return &v->gpr[r->index];
    case REG_PC: return &v->rip;
    case REG_FLAGS: *value = cpu_rflags(v); break;
    case REG_SELECTOR: *value = v->seg[r->index].sel; break;
    case REG_ST: return v->x87.st[r->index];
    case REG_FPU: *value = fpu_get(&v->x87, r->index); break;
    case REG_VEC: return v->vec[r->index].b;
    case REG_MXCSR: *value = v->mxcsr; break;
    case REG_VEC_HI: return v->vec[r->index].b + 16;
    case REG_ZMM_HI: return v->vec[r->index].b + 32;
    case REG_MASK: return &v->k[r->index];
    case REG_SEG_BASE: return &v->seg[r->index].base;
    case REG_U64: return (const u8 *)v + plain[r->index].offset;
    case REG_CR0: return &v->cr0;
    case REG_CR3: return &v->cr3;
    case REG_CR4: return &v->cr4;
    case REG_CR8: *value = v->intc_ops ? v->intc_ops->get_tpr(v->intc) >> 4 : 0; break;
    case REG_EFER: return &v->efer;
    case REG_DR: *value = r->index == 6 ? v->dr6 : r->index == 7 ? v->dr7 : v->dr[r->index]; break;
    case REG_TABLE_BASE: *value = r->index ? v->idtr.base : v->gdtr.base; break;
    case REG_TABLE_LIMIT: *value = r->index ? v->idtr.limit : v->gdtr.limit; break;
    case REG_VMCS:
        if (!current_vmcs(v))
            return NULL;
        return &v->vmx->f[r->index];
    }
    return value;
}

bool register_read(struct debugger *g, struct vcpu *v, unsigned n, char *out)
{
    if (n >= g->nregs)
        return false;
    u64 value;
    const struct target_register *r = &g->regs[n];
    const u8 *bytes = reg_bytes(v, r, &value);
    for (unsigned i = 0; i < r->bits / 8u; i++, out += 2)
        if (bytes)
            sprintf(out, "%02x", bytes[i]);
        else
            strcpy(out, "xx");
    return true;
}

/* A write that the processor would judge: false when it would fault. */
static bool judged(struct vcpu *v, void (*write)(struct vcpu *v, u64 value), u64 value)
{
    jmp_buf kept;
    volatile bool ok = true;
    memcpy(&kept, &v->unwind, sizeof(kept));
    if (setjmp(v->unwind)) {
        v->raised.valid = false;
        ok = false;
    } else {
        write(v, value);
    }
    memcpy(&v->unwind, &kept, sizeof(kept));
    return ok;
}

static bool selector_write(struct vcpu *v, unsigned seg, u16 sel)
{
    if (v->mode == MODE_REAL || v->mode == MODE_V86) {
        v->seg[seg].sel = sel;
        v->seg[seg].base = (u64)sel << 4;
        cpu_segments_changed(v);
        return true;
    }
    /* gdb writes back what it read; a new descriptor is loaded by the guest's own instructions. */
    return v->seg[seg].sel == sel;
}

static bool dr_write(struct vcpu *v, unsigned n, u64 value)
{
    if (n >= 6 && value >> 32)
        return false;
    if (n == 6)
        v->dr6 = (value & ~(BIT64(12))) | DR6_FIXED;
    else if (n == 7)
        v->dr7 = (value & ~(BIT64(12) | BIT64(14) | BIT64(15))) | DR7_FIXED;
    else
        v->dr[n] = value;
    mmu_watch_changed(v);
    cpu_rearm(v);
    return true;
}

static bool value_write(struct vcpu *v, const struct target_register *r, u64 value)
{
    switch ((enum reg_kind)r->kind) {
    case REG_GPR: v->gpr[r->index] = value; return true;
    case REG_PC: v->rip = v->next_rip = value & v->linear_mask; return true;
    case REG_FLAGS:
        cpu_put_rflags(v, (cpu_rflags(v) & ~0x3f7fd7ull) | (value & 0x3f7fd7));
        cpu_mode_changed(v); /* VM may have changed */
        cpu_flags_changed(v);
        return true;
    case REG_SELECTOR: return selector_write(v, r->index, (u16)value);
    case REG_FPU: fpu_put(&v->x87, r->index, value); return true;
    case REG_MXCSR:
        if (value & ~(u64)v->mxcsr_mask)
            return false;
        v->mxcsr = (u32)value;
        return true;
    case REG_MASK: v->k[r->index] = value; return true;
    case REG_SEG_BASE:
        if (!cpu_canonical_any(v, value))
            return false;
        v->seg[r->index].base = value;
        cpu_segments_changed(v);
        return true;
    case REG_U64:
        if (r->index != PLAIN_CR2 && r->index != PLAIN_K_GS_BASE)
            return false;
        memcpy((u8 *)v + plain[r->index].offset, &value, 8);
        return true;
    case REG_CR0: return judged(v, cpu_write_cr0, value);
    case REG_CR3:
        if (v->guest_mode || (value & ~(BITS64(v->maxphyaddr - 1, 0))))
            return v->cr3 == value;
        return judged(v, cpu_write_cr3, value);
    case REG_CR4: return judged(v, cpu_write_cr4, value);
    case REG_CR8:
        if (value > 15 || !v->intc_ops)
            return false;
        v->intc_ops->set_tpr(v->intc, (u8)(value << 4));
        return true;
    case REG_EFER: return judged(v, cpu_write_efer, value);
    case REG_DR: return dr_write(v, r->index, value);
    case REG_VMCS:
        if (!current_vmcs(v))
            return false;
        v->vmx->f[r->index] = vmcs_put(0, vmcs_fields[r->index].encoding, value);
        return true;
    default: return false;
    }
}

bool register_write(struct debugger *g, struct vcpu *v, unsigned n, const char *hex)
{
    u8 bytes[64] = {0};
    if (n >= g->nregs)
        return false;
    const struct target_register *r = &g->regs[n];
    for (unsigned i = 0; i < r->bits / 8u; i++) {
        unsigned byte;
        if (!isxdigit((unsigned char)hex[2 * i]) || !isxdigit((unsigned char)hex[2 * i + 1]) || sscanf(hex + 2 * i, "%2x", &byte) != 1)
            return false;
        bytes[i] = (u8)byte;
    }
    switch ((enum reg_kind)r->kind) {
    case REG_ST: memcpy(v->x87.st[r->index], bytes, 10); return true;
    case REG_VEC: memcpy(v->vec[r->index].b, bytes, 16); return true;
    case REG_VEC_HI: memcpy(v->vec[r->index].b + 16, bytes, 16); return true;
    case REG_ZMM_HI: memcpy(v->vec[r->index].b + 32, bytes, 32); return true;
    default: return value_write(v, r, load64(bytes));
    }
}

const char *cpu_level_name(const struct vcpu *v)
{
    if (v->guest_mode)
        return "L2 or deeper (guest mode)";
    return v->in_vmx_operation ? "L1 (VMX root operation)" : v->efer & EFER_SVME ? "L1 (SVM enabled)" : "L1";
}
