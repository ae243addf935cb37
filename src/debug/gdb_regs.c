/*
 * The registers gdb sees: a table made for this machine's processors, the target description in XML
 * made from it, and reading and writing. Feature and register names that gdb prescribes are those of
 * its manual, "Standard Target Features", "i386 Features"; the others are ours.
 */
#include "debug/debugger.h"

#include "cpu/msr.h"
#include "devices/irq.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <strings.h>

enum reg_kind {
    REG_GPR, REG_PC, REG_FLAGS, REG_SELECTOR, REG_ST, REG_FPU, REG_VEC, REG_MXCSR, REG_VEC_HI, REG_ZMM_HI, REG_MASK, REG_SEG_BASE,
    REG_CR0, REG_CR2, REG_XCR0, REG_CR3, REG_CR4, REG_CR8, REG_EFER, REG_DR, REG_TABLE_BASE, REG_TABLE_LIMIT, REG_SEG_LIMIT, REG_SEG_AR,
    REG_MSR, /* through WRMSR's checks */
    REG_PKRU, REG_VMCS, REG_VMCB, REG_LEVEL,
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
    struct target_description *t;
    FILE *xml;
    const char *group;
    unsigned width; /* of the code: 64, 32 or 16 */
};

static void add(struct maker *m, enum reg_kind kind, unsigned index, unsigned bits, const char *type, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
static void add(struct maker *m, enum reg_kind kind, unsigned index, unsigned bits, const char *type, const char *fmt, ...)
{
    struct target_description *t = m->t;
    struct target_register *grown = realloc(t->regs, (t->nregs + 1) * sizeof(*t->regs));
    if (!grown)
        panic("out of memory for the target description");
    t->regs = grown;
    struct target_register *r = &t->regs[t->nregs];
    *r = (struct target_register){.type = type, .kind = (u8)kind, .index = (u16)index, .bits = (u16)bits};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->name, sizeof(r->name), fmt, ap);
    va_end(ap);
    for (char *p = r->name; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    fprintf(m->xml, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\" regnum=\"%u\"%s%s%s/>\n", r->name, bits, type, t->nregs,
            m->group ? " group=\"" : "", m->group ? m->group : "", m->group ? "\"" : "");
    t->nregs++;
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

/* MSRs behind members of struct vcpu: read there, written as WRMSR would. */
static const struct {
    const char *name;
    u16 offset;
    u32 msr;
} msrs[] = {
    {"k_gs_base", offsetof(struct vcpu, kernel_gs_base), 0xc0000102}, {"star", offsetof(struct vcpu, star), 0xc0000081},
    {"lstar", offsetof(struct vcpu, lstar), 0xc0000082}, {"cstar", offsetof(struct vcpu, cstar), 0xc0000083},
    {"sfmask", offsetof(struct vcpu, sfmask), 0xc0000084}, {"pat", offsetof(struct vcpu, pat), 0x277},
    {"debugctl", offsetof(struct vcpu, debugctl), 0x1d9}, {"tsc_aux", offsetof(struct vcpu, tsc_aux), 0xc0000103},
    {"sysenter_cs", offsetof(struct vcpu, sysenter_cs), 0x174}, {"sysenter_esp", offsetof(struct vcpu, sysenter_esp), 0x175},
    {"sysenter_eip", offsetof(struct vcpu, sysenter_eip), 0x176}, {"misc_enable", offsetof(struct vcpu, misc_enable), 0x1a0},
    {"feature_control", offsetof(struct vcpu, feature_control), 0x3a}, {"xss", offsetof(struct vcpu, xss), 0xda0},
};

static const u8 gdb_gpr[16] = {RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, 8, 9, 10, 11, 12, 13, 14, 15};
static const char *const gpr_names[16] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
static const u8 gdb_gpr32[8] = {RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI};
static const char *const gpr32_names[8] = {"eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"};
static const u8 gdb_seg[6] = {SEG_CS, SEG_SS, SEG_DS, SEG_ES, SEG_FS, SEG_GS};
static const char *const seg_names[6] = {"cs", "ss", "ds", "es", "fs", "gs"};
static const char *const all_segs[SEG_COUNT] = {"es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"};

/* gdb wants the core features first, each with its registers in this order. */
static void core_registers(struct maker *m)
{
    bool wide = m->width == 64;
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
    for (unsigned n = 0; wide && n < 16; n++)
        add(m, REG_GPR, gdb_gpr[n], 64, n == 6 || n == 7 ? "data_ptr" : "int64", "%s", gpr_names[n]);
    for (unsigned n = 0; !wide && n < 8; n++)
        add(m, REG_GPR, gdb_gpr32[n], 32, n == 4 || n == 5 ? "data_ptr" : "int32", "%s", gpr32_names[n]);
    add(m, REG_PC, 0, wide ? 64 : 32, "code_ptr", wide ? "rip" : "eip");
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
    for (unsigned n = 0; n < (wide ? 16 : 8); n++)
        add(m, REG_VEC, n, 128, "vec128", "xmm%u", n);
    m->group = "vector";
    add(m, REG_MXCSR, 0, 32, "int", "mxcsr");
    feature_end(m);
    if (wide) {
        feature(m, "org.gnu.gdb.i386.segments", NULL);
        add(m, REG_SEG_BASE, SEG_FS, 64, "int64", "fs_base");
        add(m, REG_SEG_BASE, SEG_GS, 64, "int64", "gs_base");
        feature_end(m);
    }
    m->t->ng = m->t->nregs;
}

static void vector_registers(struct maker *m, const struct vcpu *v)
{
    bool wide = m->width == 64;
    if (cpu_has(v, FEAT_AVX)) {
        feature(m, "org.gnu.gdb.i386.avx", NULL);
        for (unsigned n = 0; n < (wide ? 16 : 8); n++)
            add(m, REG_VEC_HI, n, 128, "uint128", "ymm%uh", n);
        feature_end(m);
    }
    if (wide && cpu_has(v, FEAT_AVX) && cpu_has(v, FEAT_AVX512F)) {
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
    if (wide && cpu_has(v, FEAT_PKU)) {
        feature(m, "org.gnu.gdb.i386.pkeys", NULL);
        add(m, REG_PKRU, 0, 32, "uint32", "pkru");
        feature_end(m);
    }
}

static void system_registers(struct maker *m)
{
    feature(m, "org.nestor.system", "system");
    add(m, REG_LEVEL, 0, 32, "int32", "level");
    add(m, REG_CR0, 0, 64, "int64", "cr0");
    add(m, REG_CR2, 0, 64, "int64", "cr2");
    add(m, REG_CR3, 0, 64, "int64", "cr3");
    add(m, REG_CR4, 0, 64, "int64", "cr4");
    add(m, REG_CR8, 0, 64, "int64", "cr8");
    add(m, REG_EFER, 0, 64, "int64", "efer");
    add(m, REG_XCR0, 0, 64, "int64", "xcr0");
    for (unsigned n = 0; n < ARRAY_SIZE(msrs); n++)
        add(m, REG_MSR, n, 64, "int64", "%s", msrs[n].name);
    for (unsigned n = 0; n < 8; n++)
        if (n != 4 && n != 5)
            add(m, REG_DR, n, 64, "int64", "dr%u", n);
    add(m, REG_SELECTOR, SEG_LDTR, 32, "int32", "ldtr");
    add(m, REG_SELECTOR, SEG_TR, 32, "int32", "tr");
    for (unsigned n = 0; n < SEG_COUNT; n++) {
        if (m->width != 64 || (n != SEG_FS && n != SEG_GS)) /* those two have a feature of gdb's own */
            add(m, REG_SEG_BASE, n, 64, "int64", "%s_base", all_segs[n]);
        add(m, REG_SEG_LIMIT, n, 32, "uint32", "%s_limit", all_segs[n]);
        add(m, REG_SEG_AR, n, 32, "uint32", "%s_ar", all_segs[n]);
    }
    add(m, REG_TABLE_BASE, 0, 64, "int64", "gdtr_base");
    add(m, REG_TABLE_LIMIT, 0, 32, "int32", "gdtr_limit");
    add(m, REG_TABLE_BASE, 1, 64, "int64", "idtr_base");
    add(m, REG_TABLE_LIMIT, 1, 32, "int32", "idtr_limit");
    feature_end(m);
}

static void control_registers(struct maker *m, const struct vcpu *v)
{
    static const char *const types[] = {[1] = "uint8", [2] = "uint16", [4] = "uint32", [8] = "uint64"};
    if (v->vmx) {
        feature(m, "org.nestor.vmcs", "vmcs");
        for (unsigned slot = 0; slot < VMCS_SLOT_COUNT; slot++)
            if (vmcs_exists(&v->vmx->caps, slot)) {
                unsigned bytes = vmcs_bytes(vmcs_fields[slot].encoding);
                add(m, REG_VMCS, slot, bytes * 8, types[bytes], "vmcs_%s", vmcs_fields[slot].name);
            }
        feature_end(m);
    }
    if (v->svm) {
        feature(m, "org.nestor.vmcb", "vmcb");
        for (unsigned n = 0; n < VMCB_FIELD_COUNT; n++) {
            unsigned bytes = vmcb_fields[n].bytes;
            add(m, REG_VMCB, n, bytes > 8 ? 128 : bytes * 8, bytes > 8 ? "uint128" : types[bytes], "vmcb_%s", vmcb_fields[n].name);
        }
        feature_end(m);
    }
}

static void describe(struct debugger *g, unsigned which)
{
    static const struct {
        u8 width;
        const char *architecture;
    } kinds[DESCRIPTIONS] = {[DESCRIBE_64] = {64, "i386:x86-64"}, [DESCRIBE_32] = {32, "i386"}, [DESCRIBE_16] = {16, "i8086"}};
    const struct vcpu *v = g->m->cpu[0];
    struct target_description *t = &g->target[which];
    struct maker maker = {.t = t, .width = kinds[which].width}, *m = &maker;
    maker.xml = open_memstream(&t->xml, &t->xml_size);
    if (!m->xml)
        panic("out of memory for the target description");
    fprintf(m->xml, "<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\n"
            "<architecture>%s</architecture>\n", kinds[which].architecture);
    core_registers(m);
    vector_registers(m, v);
    system_registers(m);
    control_registers(m, v);
    fputs("</target>\n", m->xml);
    fclose(m->xml);
}

void registers_make(struct debugger *g)
{
    for (unsigned n = 0; n < DESCRIPTIONS; n++)
        describe(g, n);
}

unsigned description_for(const struct vcpu *v)
{
    switch ((enum cpu_mode)v->mode) {
    case MODE_LONG64: return DESCRIBE_64;
    case MODE_PROT32: case MODE_COMPAT32: return DESCRIBE_32;
    default: return DESCRIBE_16;
    }
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

/* The bytes of the register, or NULL when it has no value now. @value: room for 16 bytes. */
static const void *reg_bytes(struct vcpu *v, const struct target_register *r, u64 *value)
{
    pa_t vmcb;
    switch ((enum reg_kind)r->kind) {
    case REG_GPR: return &v->gpr[r->index];
    case REG_PC: *value = (v->seg_base[SEG_CS] + v->rip) & v->linear_mask; break;
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
    case REG_MSR: return (const u8 *)v + msrs[r->index].offset;
    case REG_CR2: return &v->cr2;
    case REG_XCR0: return &v->xcr0;
    case REG_PKRU: return &v->pkru;
    case REG_SEG_LIMIT: return &v->seg[r->index].limit;
    case REG_SEG_AR: return &v->seg[r->index].ar;
    case REG_LEVEL: *value = cpu_level(v, v->exits); break;
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
    case REG_VMCB:
        if (!control_vmcb(v, &vmcb))
            return NULL;
        value[1] = 0;
        physmap_read(v->pm, vmcb + vmcb_fields[r->index].offset, value, vmcb_fields[r->index].bytes);
        break;
    }
    return value;
}

bool register_read(const struct target_description *t, struct vcpu *v, unsigned n, char *out)
{
    if (n >= t->nregs)
        return false;
    u64 value[2] = {0};
    const struct target_register *r = &t->regs[n];
    const u8 *bytes = reg_bytes(v, r, value);
    for (unsigned i = 0; i < r->bits / 8u; i++, out += 2)
        if (bytes)
            sprintf(out, "%02x", bytes[i]);
        else
            strcpy(out, "xx");
    return true;
}

int register_find(const struct target_description *t, const char *name)
{
    for (unsigned n = 0; n < t->nregs; n++)
        if (!strcasecmp(t->regs[n].name, name))
            return (int)n;
    return -1;
}
const char *register_name(const struct target_description *t, unsigned n) { return t->regs[n].name; }
unsigned register_bits(const struct target_description *t, unsigned n) { return t->regs[n].bits; }

bool register_value(const struct target_description *t, struct vcpu *v, unsigned n, u64 *value)
{
    u64 room[2] = {0};
    const struct target_register *r = &t->regs[n];
    const u8 *bytes = r->bits <= 64 ? reg_bytes(v, r, room) : NULL;
    if (bytes)
        *value = load_le(bytes, r->bits / 8u);
    return bytes;
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

/* A WRMSR that the processor would judge. */
static bool msr_write(struct vcpu *v, u32 msr, u64 value)
{
    jmp_buf kept;
    volatile bool ok = false;
    memcpy(&kept, &v->unwind, sizeof(kept));
    if (setjmp(v->unwind))
        v->raised.valid = false;
    else
        ok = cpu_wrmsr(v, msr, value);
    memcpy(&v->unwind, &kept, sizeof(kept));
    return ok;
}

void cpu_set_pc(struct vcpu *v, gva_t la) { v->rip = v->next_rip = (la - v->seg_base[SEG_CS]) & v->linear_mask; }

static bool value_write(struct vcpu *v, const struct target_register *r, u64 value)
{
    switch ((enum reg_kind)r->kind) {
    case REG_GPR: v->gpr[r->index] = value; return true; /* 32-bit code has no upper half to keep */
    case REG_PC: cpu_set_pc(v, value); return true;
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
    case REG_MSR: {
        u64 now = load64((const u8 *)v + msrs[r->index].offset);
        return value == now || msr_write(v, msrs[r->index].msr, value);
    }
    case REG_CR2: v->cr2 = value; return true;
    case REG_XCR0: return v->xcr0 == value; /* XSETBV is the guest's */
    case REG_PKRU:
        v->pkru = (u32)value;
        mmu_update(v);
        return true;
    case REG_SEG_LIMIT:
        v->seg[r->index].limit = (u32)value;
        cpu_segments_changed(v);
        return true;
    case REG_SEG_AR:
        /* gdb may not put code into a width or privilege that CS does not have. */
        if (value & ~0x1f0ffull || (r->index == SEG_CS && (value ^ v->seg[SEG_CS].ar) & (AR_L | AR_DB | 3u << 5)))
            return false;
        v->seg[r->index].ar = (u32)value;
        cpu_segments_changed(v);
        return true;
    case REG_TABLE_BASE:
        if (!cpu_canonical_any(v, value))
            return false;
        *(r->index ? &v->idtr.base : &v->gdtr.base) = value;
        return true;
    case REG_TABLE_LIMIT:
        if (value >> 16)
            return false;
        *(r->index ? &v->idtr.limit : &v->gdtr.limit) = (u16)value;
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
    case REG_VMCB: return control_vmcb_write(v, (enum vmcb_index)r->index, value);
    default: return false;
    }
}

bool register_set(const struct target_description *t, struct vcpu *v, unsigned n, u64 value)
{
    const struct target_register *r = &t->regs[n];
    if (r->bits > 64 || (r->bits < 64 && value >> r->bits))
        return false;
    return value_write(v, r, value);
}

bool register_write(const struct target_description *t, struct vcpu *v, unsigned n, const char *hex)
{
    u8 bytes[64] = {0};
    if (n >= t->nregs)
        return false;
    const struct target_register *r = &t->regs[n];
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
