/*
 * What would satisfy a failing row: not written down anywhere but searched for, by changing the
 * fields that the row reads until its own predicates are content. One bit first, then whole values
 * that the rules favour, then two bits.
 */
#include "debug/check.h"

#include <inttypes.h>

/* ---- names of bits ---- */
struct bit_name {
    u8 bit;
    const char *name;
};
static const struct bit_name cr0_bits[] = {{0, "PE"}, {1, "MP"}, {2, "EM"}, {3, "TS"}, {4, "ET"}, {5, "NE"}, {16, "WP"}, {18, "AM"},
                                           {29, "NW"}, {30, "CD"}, {31, "PG"}, {0, NULL}};
static const struct bit_name cr4_bits[] = {{0, "VME"}, {1, "PVI"}, {2, "TSD"}, {3, "DE"}, {4, "PSE"}, {5, "PAE"}, {6, "MCE"}, {7, "PGE"},
                                           {8, "PCE"}, {9, "OSFXSR"}, {10, "OSXMMEXCPT"}, {11, "UMIP"}, {12, "LA57"}, {13, "VMXE"},
                                           {14, "SMXE"}, {16, "FSGSBASE"}, {17, "PCIDE"}, {18, "OSXSAVE"}, {19, "KL"}, {20, "SMEP"},
                                           {21, "SMAP"}, {22, "PKE"}, {23, "CET"}, {24, "PKS"}, {0, NULL}};
static const struct bit_name efer_bits[] = {{0, "SCE"}, {8, "LME"}, {10, "LMA"}, {11, "NXE"}, {0, NULL}};
static const struct bit_name rflags_bits[] = {{0, "CF"}, {1, "always 1"}, {2, "PF"}, {4, "AF"}, {6, "ZF"}, {7, "SF"}, {8, "TF"}, {9, "IF"},
                                              {10, "DF"}, {11, "OF"}, {14, "NT"}, {16, "RF"}, {17, "VM"}, {18, "AC"}, {19, "VIF"},
                                              {20, "VIP"}, {21, "ID"}, {0, NULL}};
static const struct bit_name ar_bits[] = {{0, "type bit 0"}, {1, "type bit 1"}, {2, "type bit 2"}, {3, "type bit 3"}, {4, "S"},
                                          {5, "DPL bit 0"}, {6, "DPL bit 1"}, {7, "P"}, {12, "AVL"}, {13, "L"}, {14, "D/B"},
                                          {15, "G"}, {16, "unusable"}, {0, NULL}};
static const struct bit_name interruptibility_bits[] = {{0, "blocking by STI"}, {1, "blocking by MOV SS"}, {2, "blocking by SMI"},
                                                        {3, "blocking by NMI"}, {4, "enclave interruption"}, {0, NULL}};
static const struct bit_name pending_dbg_bits[] = {{0, "B0"}, {1, "B1"}, {2, "B2"}, {3, "B3"}, {11, "BLD"}, {12, "enabled breakpoint"},
                                                   {14, "BS"}, {16, "RTM"}, {0, NULL}};
static const struct bit_name debugctl_bits[] = {{0, "LBR"}, {1, "BTF"}, {0, NULL}};
static const struct bit_name event_bits[] = {{11, "deliver error code"}, {31, "valid"}, {0, NULL}};
static const struct bit_name selector_bits[] = {{0, "RPL bit 0"}, {1, "RPL bit 1"}, {2, "TI"}, {0, NULL}};

static const struct bit_name *bit_names(unsigned slot)
{
    switch (slot) {
    case VMCS_GUEST_CR0: case VMCS_HOST_CR0: return cr0_bits;
    case VMCS_GUEST_CR4: case VMCS_HOST_CR4: return cr4_bits;
    case VMCS_GUEST_IA32_EFER: case VMCS_HOST_IA32_EFER: return efer_bits;
    case VMCS_GUEST_RFLAGS: return rflags_bits;
    case VMCS_GUEST_INTERRUPTIBILITY_INFO: return interruptibility_bits;
    case VMCS_GUEST_PENDING_DBG_EXCEPTIONS: return pending_dbg_bits;
    case VMCS_GUEST_IA32_DEBUGCTL: return debugctl_bits;
    case VMCS_VM_ENTRY_INTR_INFO_FIELD: return event_bits;
    default: break;
    }
    if (slot >= VMCS_GUEST_ES_AR_BYTES && slot <= VMCS_GUEST_TR_AR_BYTES)
        return ar_bits;
    if ((slot >= VMCS_GUEST_ES_SELECTOR && slot <= VMCS_GUEST_TR_SELECTOR) || (slot >= VMCS_HOST_ES_SELECTOR && slot <= VMCS_HOST_TR_SELECTOR))
        return selector_bits;
    return NULL;
}

static int control_word(unsigned slot)
{
    switch (slot) {
    case VMCS_PIN_BASED_VM_EXEC_CONTROL: return WORD_PIN;
    case VMCS_CPU_BASED_VM_EXEC_CONTROL: return WORD_PRI;
    case VMCS_SECONDARY_VM_EXEC_CONTROL: return WORD_SEC;
    case VMCS_TERTIARY_VM_EXEC_CONTROL: return WORD_TER;
    case VMCS_VM_EXIT_CONTROLS: return WORD_EXIT;
    case VMCS_VM_ENTRY_CONTROLS: return WORD_ENTRY;
    case VMCS_VM_FUNCTION_CONTROL: return WORD_VMFUNC;
    default: return -1;
    }
}

const char *vmcs_bit_name(unsigned slot, unsigned bit)
{
    int word = control_word(slot);
    for (unsigned n = 0; word >= 0 && n < CTL_COUNT; n++)
        if (vmx_controls[n].word == word && vmx_controls[n].bit == bit)
            return strchr(vmx_controls[n].name, '_') + 1;
    for (const struct bit_name *b = bit_names(slot); b && b->name; b++)
        if (b->bit == bit)
            return b->name;
    return NULL;
}

/* ---- the search ---- */
struct search {
    struct check_case c; /* a copy to change */
    unsigned row;
    unsigned slots[VIRT_CHECK_FIELDS], bits[VIRT_CHECK_FIELDS], n;
    struct repairs *out;
    bool careful; /* a change that breaks another row is no repair */
    u64 failed[8]; /* rows that failed before any change */
};

static bool breaks_another(const struct search *s)
{
    unsigned n;
    vmx_check_table(&n);
    for (unsigned row = 0; row < n && row < 64 * ARRAY_SIZE(s->failed); row++)
        if (!(s->failed[row / 64] >> (row % 64) & 1) && case_run(&s->c, row, NULL) == RESULT_FAIL)
            return true;
    return false;
}

static bool content(struct search *s, bool must_apply)
{
    enum check_result r = case_run(&s->c, s->row, NULL);
    return (r == RESULT_PASS || (!must_apply && r == RESULT_NOT_APPLICABLE)) && !(s->careful && breaks_another(s));
}

static void describe_bit(const struct search *s, unsigned slot, unsigned bit, char *buf, size_t size)
{
    const char *name = vmcs_bit_name(slot, bit);
    snprintf(buf, size, "%s %s bit %u%s%s%s", s->c.f[slot] >> bit & 1 ? "set" : "clear", vmcs_fields[slot].name, bit, name ? " (" : "",
             name ? name : "", name ? ")" : "");
}

static void one_bit(struct search *s, bool must_apply)
{
    for (unsigned i = 0; i < s->n; i++) {
        unsigned slot = s->slots[i];
        for (unsigned bit = 0; bit < s->bits[i] && s->out->n < REPAIRS_MAX; bit++) {
            s->c.f[slot] ^= BIT64(bit);
            /* A row that stops applying by an unnamed bit is an accident, not advice. */
            bool good = content(s, true) || (!must_apply && vmcs_bit_name(slot, bit) && content(s, false));
            if (good && (must_apply || !content(s, true)))
                describe_bit(s, slot, bit, s->out->text[s->out->n++], sizeof(s->out->text[0]));
            s->c.f[slot] ^= BIT64(bit);
        }
    }
}

static void try_value(struct search *s, unsigned slot, u64 value)
{
    u64 old = s->c.f[slot];
    char text[sizeof(s->out->text[0])];
    if (s->out->n == REPAIRS_MAX || value == old)
        return;
    s->c.f[slot] = vmcs_put(0, vmcs_fields[slot].encoding, value);
    snprintf(text, sizeof(text), "%s = 0x%" PRIx64, vmcs_fields[slot].name, s->c.f[slot]);
    bool good = s->c.f[slot] != old && content(s, true);
    for (unsigned i = 0; i < s->out->n; i++)
        good &= strcmp(s->out->text[i], text) != 0;
    if (good)
        memcpy(s->out->text[s->out->n++], text, sizeof(text));
    s->c.f[slot] = old;
}

static void whole_values(struct search *s)
{
    const struct vmx_caps *k = s->c.s.caps;
    for (unsigned i = 0; i < s->n; i++) {
        unsigned slot = s->slots[i], before = s->out->n;
        u64 v = s->c.f[slot], width = ~0ull >> (64 - s->c.s.maxphyaddr);
        int word = control_word(slot);
        if (word >= 0)
            try_value(s, slot, (v | k->allowed0[word]) & k->allowed1[word]);
        if (slot == VMCS_GUEST_CR0 || slot == VMCS_HOST_CR0)
            try_value(s, slot, (v | k->cr0_fixed0) & k->cr0_fixed1);
        if (slot == VMCS_GUEST_CR4 || slot == VMCS_HOST_CR4)
            try_value(s, slot, (v | k->cr4_fixed0) & k->cr4_fixed1);
        if (slot == VMCS_GUEST_IA32_EFER || slot == VMCS_HOST_IA32_EFER)
            try_value(s, slot, v & ~s->c.s.efer_reserved);
        if (slot == VMCS_GUEST_IA32_PERF_GLOBAL_CTRL || slot == VMCS_HOST_IA32_PERF_GLOBAL_CTRL)
            try_value(s, slot, v & ~s->c.s.pgc_reserved);
        const u64 kept[] = {v & PAGE_MASK, v & ~0xfull, v & ~63ull, v & width, v & width & PAGE_MASK, (u32)v, v & ~7ull, v & 0xffff, v & 0xff,
                            v & 0xf, v & ~3ull, (u64)sign_extend(v, 57), (u64)sign_extend(v, 48), v & 0x1f0ff,
                            (v & ~0xfull) | 11, (v & ~0xfull) | 3, (v & ~0xfull) | 2, v & 0x3f7fd7, (v & 0x3f7fd7) | 2};
        for (unsigned n = 0; n < ARRAY_SIZE(kept) && s->out->n == before; n++)
            try_value(s, slot, kept[n]);
        const u64 fixed[] = {0, 1, 2, ~0ull, 0x0007040600070406, 6 | 3 << 3, 0xffff, 0xfffff, 0xffffffff, 0xf3};
        for (unsigned n = 0; n < ARRAY_SIZE(fixed) && s->out->n == before; n++)
            try_value(s, slot, fixed[n]);
    }
}

static void two_bits(struct search *s)
{
    for (unsigned i = 0; i < s->n; i++)
        for (unsigned a = 0; a < s->bits[i]; a++) {
            s->c.f[s->slots[i]] ^= BIT64(a);
            for (unsigned j = i; j < s->n; j++)
                for (unsigned b = j == i ? a + 1 : 0; b < s->bits[j] && s->out->n < REPAIRS_MAX; b++) {
                    s->c.f[s->slots[j]] ^= BIT64(b);
                    if (content(s, true)) {
                        char first[90], second[90];
                        describe_bit(s, s->slots[i], a, first, sizeof(first));
                        describe_bit(s, s->slots[j], b, second, sizeof(second));
                        snprintf(s->out->text[s->out->n++], sizeof(s->out->text[0]), "%s and %s", first, second);
                    }
                    s->c.f[s->slots[j]] ^= BIT64(b);
                }
            s->c.f[s->slots[i]] ^= BIT64(a);
        }
}

void check_repair(const struct check_case *c, unsigned row, struct repairs *out)
{
    struct search s = {.c = *c, .row = row, .out = out};
    unsigned n;
    const struct virt_check *check = &vmx_check_table(&n)[row];
    s.c.s.f = s.c.f;
    s.c.s.caps = &s.c.caps;
    out->n = 0;
    for (unsigned i = 0; i < check->nfields; i++) {
        int slot = vmcs_slot(check->fields[i]);
        if (slot < 0)
            continue;
        s.slots[s.n] = (unsigned)slot;
        s.bits[s.n++] = vmcs_bytes(check->fields[i]) * 8;
    }
    for (unsigned r = 0; r < n && r < 64 * ARRAY_SIZE(s.failed); r++)
        if (case_run(c, r, NULL) == RESULT_FAIL)
            s.failed[r / 64] |= BIT64(r % 64);
    for (s.careful = true; !out->n; s.careful = false) {
        one_bit(&s, true);
        if (out->n < 3)
            one_bit(&s, false);
        if (!out->n)
            whole_values(&s);
        if (!out->n)
            two_bits(&s);
        if (!s.careful)
            break;
    }
}
