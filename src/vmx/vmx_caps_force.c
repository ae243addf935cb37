/*
 * --vmx-cap: the capability MSRs (480H to 493H) as another processor would have them, so that a hypervisor's
 * feature detection can be tested. A text is a list of NAME=VALUE; names are WORD.CONTROL or WORD.BIT for the
 * control words, AREA.NAME or AREA.BIT for the rest, or an MSR's number with a bit or without.
 *
 * What results must be a processor that could exist and that this one can be: nothing is offered that is not
 * implemented, what a control needs is offered with it, and what must be 1 may be.
 */
#include "vmx/vmx.h"

#include <ctype.h>
#include <stdlib.h>
#include <strings.h>

static const struct {
    const char *name;
    u8 word;
    u16 msr, true_msr; /* 0: none */
} words[] = {
    {"pin", WORD_PIN, 0x481, 0x48d}, {"primary", WORD_PRI, 0x482, 0x48e}, {"exit", WORD_EXIT, 0x483, 0x48f}, {"entry", WORD_ENTRY, 0x484, 0x490},
    {"secondary", WORD_SEC, 0x48b, 0}, {"vmfunc", WORD_VMFUNC, 0x491, 0}, {"tertiary", WORD_TER, 0x492, 0},
};

enum area { AREA_BASIC, AREA_MISC, AREA_CR0_FIXED0, AREA_CR0_FIXED1, AREA_CR4_FIXED0, AREA_CR4_FIXED1, AREA_VMCS_ENUM, AREA_EPT, AREA_COUNT };
static const struct {
    const char *name;
    u16 msr;
    u64 may_change; /* bits whose meaning the processor follows, whatever they are */
} areas[AREA_COUNT] = {
    [AREA_BASIC] = {"basic", 0x480, BIT64(48) | BITS64(53, 50) | BIT64(54) | BIT64(55) | BIT64(56)},
    [AREA_MISC] = {"misc", 0x485, BITS64(8, 6) | BITS64(24, 16) | BIT64(29) | BIT64(30)},
    [AREA_CR0_FIXED0] = {"cr0_fixed0", 0x486, CR0_MP | CR0_EM | CR0_TS | CR0_WP | CR0_AM | CR0_NE},
    [AREA_CR0_FIXED1] = {"cr0_fixed1", 0x487, CR0_MP | CR0_EM | CR0_TS | CR0_WP | CR0_AM | CR0_NW | CR0_CD},
    [AREA_CR4_FIXED0] = {"cr4_fixed0", 0x488, ~0ull},
    [AREA_CR4_FIXED1] = {"cr4_fixed1", 0x489, ~CR4_VMXE},
    [AREA_VMCS_ENUM] = {"vmcs_enum", 0x48a, BITS64(9, 1)},
    [AREA_EPT] = {"ept_vpid", 0x48c, ~0ull},
};

/* Bits of the areas that have a name. */
static const struct {
    u8 area, bit, last; /* last: of a field of several bits, set as a number */
    const char *name;
} bits[] = {
    {AREA_BASIC, 48, 48, "32bit_addresses"}, {AREA_BASIC, 50, 53, "memory_type"}, {AREA_BASIC, 54, 54, "ins_outs_information"},
    {AREA_BASIC, 55, 55, "true_controls"}, {AREA_BASIC, 56, 56, "no_error_code_rule"},
    {AREA_MISC, 6, 6, "activity_hlt"}, {AREA_MISC, 7, 7, "activity_shutdown"}, {AREA_MISC, 8, 8, "activity_wait_sipi"},
    {AREA_MISC, 16, 24, "cr3_targets"}, {AREA_MISC, 29, 29, "vmwrite_all"}, {AREA_MISC, 30, 30, "zero_length_injection"},
    {AREA_EPT, 0, 0, "execute_only"}, {AREA_EPT, 6, 6, "walk_4"}, {AREA_EPT, 7, 7, "walk_5"}, {AREA_EPT, 8, 8, "uc"}, {AREA_EPT, 14, 14, "wb"},
    {AREA_EPT, 16, 16, "2m"}, {AREA_EPT, 17, 17, "1g"}, {AREA_EPT, 20, 20, "invept"}, {AREA_EPT, 21, 21, "ad"},
    {AREA_EPT, 22, 22, "advanced_information"}, {AREA_EPT, 23, 23, "supervisor_shadow_stack"}, {AREA_EPT, 25, 25, "invept_single"},
    {AREA_EPT, 26, 26, "invept_all"}, {AREA_EPT, 32, 32, "invvpid"}, {AREA_EPT, 40, 40, "invvpid_address"}, {AREA_EPT, 41, 41, "invvpid_single"},
    {AREA_EPT, 42, 42, "invvpid_all"}, {AREA_EPT, 43, 43, "invvpid_single_nonglobal"}, {AREA_VMCS_ENUM, 1, 9, "highest_index"},
};

/* The first control means nothing, or breaks a check of VM entry, without the second. */
static const struct {
    u16 control, needs;
} needs[] = {
    {CTL_PIN_VIRTUAL_NMIS, CTL_PIN_NMI_EXITING}, {CTL_PRI_NMI_WINDOW_EXITING, CTL_PIN_VIRTUAL_NMIS},
    {CTL_SEC_VIRTUALIZE_X2APIC_MODE, CTL_PRI_TPR_SHADOW}, {CTL_SEC_APIC_REGISTER_VIRTUALIZATION, CTL_PRI_TPR_SHADOW},
    {CTL_SEC_VIRTUAL_INTERRUPT_DELIVERY, CTL_PRI_TPR_SHADOW}, {CTL_SEC_VIRTUAL_INTERRUPT_DELIVERY, CTL_PIN_EXTERNAL_INTERRUPT_EXITING},
    {CTL_PIN_POSTED_INTERRUPTS, CTL_SEC_VIRTUAL_INTERRUPT_DELIVERY}, {CTL_PIN_POSTED_INTERRUPTS, CTL_EXIT_ACK_INTERRUPT},
    {CTL_SEC_UNRESTRICTED_GUEST, CTL_SEC_EPT}, {CTL_SEC_PML, CTL_SEC_EPT}, {CTL_SEC_EPT_VIOLATION_VE, CTL_SEC_EPT},
    {CTL_SEC_MODE_BASED_EXECUTE, CTL_SEC_EPT}, {CTL_VMFUNC_EPTP_SWITCHING, CTL_SEC_EPT},
    {CTL_EXIT_SAVE_PREEMPTION_TIMER, CTL_PIN_PREEMPTION_TIMER},
};
/* The control without which the word of @control is not looked at. */
static unsigned activation(unsigned control)
{
    unsigned word = vmx_controls[control].word;
    return word == WORD_VMFUNC ? CTL_SEC_VM_FUNCTIONS : word == WORD_SEC ? CTL_PRI_SECONDARY_CONTROLS : word == WORD_TER ? CTL_PRI_TERTIARY_CONTROLS : CTL_NEVER;
}

struct force {
    struct vmx_caps *caps;
    struct vmx_caps base; /* what this processor offers by itself */
    u64 named[WORD_COUNT]; /* controls that the text wants */
    struct error *err;
};

static u64 *area_value(struct vmx_caps *c, enum area a)
{
    u64 *const values[AREA_COUNT] = {&c->basic, &c->misc, &c->cr0_fixed0, &c->cr0_fixed1, &c->cr4_fixed0, &c->cr4_fixed1, &c->vmcs_enum, &c->ept_vpid};
    return values[a];
}

static int word_find(const char *name)
{
    for (unsigned n = 0; n < ARRAY_SIZE(words); n++)
        if (!strcasecmp(words[n].name, name))
            return (int)n;
    return -1;
}

/* "secondary.unrestricted_guest" */
static void control_text(unsigned word, unsigned bit, char out[64])
{
    unsigned n = 0, c = 0;
    while (words[n].word != word)
        n++;
    while (c < CTL_COUNT && (vmx_controls[c].word != word || vmx_controls[c].bit != bit))
        c++;
    if (c < CTL_COUNT)
        snprintf(out, 64, "%s.%s", words[n].name, strchr(vmx_controls[c].name, '_') + 1);
    else
        snprintf(out, 64, "%s.%u", words[n].name, bit);
    for (char *p = out; *p; p++)
        *p = (char)tolower((unsigned char)*p);
}

static bool number(const char *text, u64 *value)
{
    char *end;
    *value = strtoull(text, &end, 0);
    return isdigit((unsigned char)*text) && !*end;
}

/* ---- reading the text ---- */

static int force_control(struct force *f, unsigned word, unsigned bit, const char *value)
{
    u64 mask = BIT64(bit);
    bool must = !strcmp(value, "must");
    if (!must && strcmp(value, "0") && strcmp(value, "1"))
        return error_set(f->err, "expected 0 (may not be 1), 1 (may be either) or must (may not be 0)");
    struct vmx_caps *c = f->caps;
    c->allowed1[word] &= ~mask;
    c->allowed0[word] &= ~mask;
    f->named[word] &= ~mask;
    if (*value != '0') {
        c->allowed1[word] |= mask;
        f->named[word] |= mask;
    }
    if (must) {
        c->allowed0[word] |= mask;
        c->default1[word] |= mask;
    } else if (*value == '0') {
        c->default1[word] &= ~mask;
    }
    return 0;
}

static int force_bits(struct force *f, enum area a, unsigned first, unsigned last, const char *text)
{
    u64 value, mask = BITS64(last, first);
    if (!number(text, &value) || value > mask >> first)
        return error_set(f->err, "expected a number from 0 to %llu", (unsigned long long)(mask >> first));
    u64 *at = area_value(f->caps, a);
    *at = (*at & ~mask) | value << first;
    return 0;
}

static void set_word_half(struct force *f, unsigned n, bool true_msr, bool high, u64 value, u64 mask)
{
    struct vmx_caps *c = f->caps;
    unsigned w = words[n].word;
    if (high) {
        c->allowed1[w] = (c->allowed1[w] & ~mask) | (value & mask);
        f->named[w] |= value & mask & ~f->base.allowed1[w];
        return;
    }
    if (true_msr || !words[n].true_msr)
        c->allowed0[w] = (c->allowed0[w] & ~mask) | (value & mask);
    if (!true_msr)
        c->default1[w] = (c->default1[w] & ~mask) | (value & mask);
}

/* @bit < 0: the whole MSR. */
static int force_msr(struct force *f, u64 msr, int bit, const char *text)
{
    u64 value, mask = bit < 0 ? ~0ull : BIT64(bit);
    if (!number(text, &value) || (bit >= 0 && value > 1))
        return error_set(f->err, "expected %s", bit < 0 ? "a number of 64 bits" : "0 or 1");
    if (bit >= 0)
        value <<= bit;
    for (unsigned a = 0; a < AREA_COUNT; a++)
        if (areas[a].msr == msr) {
            u64 *at = area_value(f->caps, (enum area)a);
            *at = (*at & ~mask) | value;
            return 0;
        }
    for (unsigned n = 0; n < ARRAY_SIZE(words); n++) {
        if (words[n].msr != msr && words[n].true_msr != msr)
            continue;
        if (words[n].word == WORD_TER || words[n].word == WORD_VMFUNC) { /* allowed-1 in all 64 bits */
            set_word_half(f, n, false, true, value, mask);
            return 0;
        }
        set_word_half(f, n, words[n].true_msr == msr, false, (u32)value, (u32)mask);
        set_word_half(f, n, words[n].true_msr == msr, true, value >> 32, mask >> 32);
        return 0;
    }
    return error_set(f->err, "this processor has no such capability MSR, expected 0x480 to 0x492");
}

static int force_one(struct force *f, char *name, const char *value)
{
    u64 msr, bit = 0;
    char *dot = strchr(name, '.');
    if (dot)
        *dot++ = 0;
    bool numbered = dot && number(dot, &bit);
    if (numbered && bit > 63)
        return error_set(f->err, "expected a bit from 0 to 63");
    if (number(name, &msr))
        return dot && !numbered ? error_set(f->err, "expected a bit behind the MSR") : force_msr(f, msr, dot ? (int)bit : -1, value);
    int w = word_find(name);
    if (w >= 0 && dot) {
        for (unsigned n = 0; n < CTL_COUNT; n++)
            if (vmx_controls[n].word == words[w].word && !strcasecmp(strchr(vmx_controls[n].name, '_') + 1, dot))
                return force_control(f, words[w].word, vmx_controls[n].bit, value);
        if (numbered && bit < 32)
            return force_control(f, words[w].word, (unsigned)bit, value);
        return error_set(f->err, "no such control (nestor list vmx-caps)");
    }
    for (unsigned a = 0; a < AREA_COUNT && dot; a++) {
        if (strcasecmp(areas[a].name, name))
            continue;
        for (unsigned n = 0; n < ARRAY_SIZE(bits); n++)
            if (bits[n].area == a && !strcasecmp(bits[n].name, dot))
                return force_bits(f, (enum area)a, bits[n].bit, bits[n].last, value);
        if (numbered)
            return force_bits(f, (enum area)a, (unsigned)bit, (unsigned)bit, value);
    }
    return error_set(f->err, "no such capability (nestor list vmx-caps)");
}

/* ---- what results ---- */

static int impossible(struct force *f, const char *fmt, const char *a, const char *b)
{
    char text[256];
    snprintf(text, sizeof(text), fmt, a, b);
    return error_set(f->err, "--vmx-cap: %s", text);
}

static int judge_words(struct force *f)
{
    struct vmx_caps *c = f->caps;
    char name[64];
    for (unsigned w = 0; w < WORD_COUNT; w++)
        for (unsigned bit = 0; bit < 64; bit++) {
            u64 m = BIT64(bit);
            control_text(w, bit, name);
            if (c->allowed1[w] & ~f->base.allowed1[w] & m)
                return impossible(f, "%s cannot be offered: it is not implemented%s", name, "");
            if (f->base.allowed0[w] & ~c->allowed0[w] & m)
                return impossible(f, "%s must be 1 on every processor%s", name, "");
            if (c->allowed0[w] & ~c->allowed1[w] & m)
                return impossible(f, "%s must be 1 and may not be 1%s", name, "");
            if (c->allowed0[w] & ~c->default1[w] & m)
                return impossible(f, "%s must be 1 by the TRUE capability MSR and not by the other%s", name, "");
            if (c->default1[w] & ~c->allowed1[w] & m)
                return impossible(f, "%s may not be 1, and is of the default1 class, whose bits always may%s", name, "");
        }
    return 0;
}

/* Controls whose need is gone go too, unless the text wants them. */
static int judge_needs(struct force *f)
{
    struct vmx_caps *c = f->caps;
    for (bool again = true; again;) {
        again = false;
        for (unsigned ctl = 0; ctl < CTL_COUNT; ctl++) {
            unsigned word = vmx_controls[ctl].word, bit = vmx_controls[ctl].bit;
            if (!vmx_offers(c, (enum vmx_control_index)ctl))
                continue;
            for (unsigned n = 0; n <= ARRAY_SIZE(needs); n++) {
                unsigned wants = n == ARRAY_SIZE(needs) ? activation(ctl) : needs[n].control == ctl ? needs[n].needs : CTL_NEVER;
                if (wants == CTL_NEVER || vmx_offers(c, (enum vmx_control_index)wants))
                    continue;
                char a[64], b[64];
                control_text(word, bit, a);
                control_text(vmx_controls[wants].word, vmx_controls[wants].bit, b);
                if ((f->named[word] | c->allowed0[word]) >> bit & 1)
                    return impossible(f, "%s is wanted, and needs %s, which is not offered", a, b);
                c->allowed1[word] &= ~BIT64(bit);
                again = true;
                break;
            }
        }
    }
    return 0;
}

static int judge_areas(struct force *f)
{
    struct vmx_caps *c = f->caps;
    for (unsigned a = 0; a < AREA_COUNT; a++) {
        u64 changed = *area_value(c, (enum area)a) ^ *area_value(&f->base, (enum area)a), bad = changed & ~areas[a].may_change;
        char bit[8];
        snprintf(bit, sizeof(bit), "%d", bad ? __builtin_ctzll(bad) : 0);
        if (bad)
            return impossible(f, "%s.%s cannot be another: the processor would not behave so", areas[a].name, bit);
    }
    unsigned type = (unsigned)bits_get(c->basic, 53, 50), index = (unsigned)bits_get(c->vmcs_enum, 9, 1);
    if (type != 0 && type != 6)
        return impossible(f, "basic.memory_type is 0 (UC) or 6 (WB)%s%s", "", "");
    if (index < bits_get(f->base.vmcs_enum, 9, 1))
        return impossible(f, "vmcs_enum.highest_index is below that of a field there is%s%s", "", "");
    if (!(c->cr4_fixed0 & CR4_VMXE))
        return impossible(f, "cr4_fixed0: VMXE is fixed to 1 on every processor%s%s", "", "");
    if (c->cr0_fixed0 & ~c->cr0_fixed1)
        return impossible(f, "a bit of CR0 is fixed to 1 and to 0%s%s", "", "");
    if (c->cr4_fixed1 & ~f->base.cr4_fixed1)
        return impossible(f, "cr4_fixed1: a bit of CR4 that this processor does not have%s%s", "", "");
    if (c->cr4_fixed0 & ~c->cr4_fixed1)
        return impossible(f, "a bit of CR4 is fixed to 1 and to 0, or is not there%s%s", "", "");
    u64 e = c->ept_vpid;
    if (e & ~f->base.ept_vpid)
        return impossible(f, "ept_vpid: a bit cannot be offered: it is not implemented%s%s", "", "");
    if (vmx_offers(c, CTL_SEC_EPT) && (!(e & VMX_EPT_WALK_4) || !(e & (VMX_EPT_UC | VMX_EPT_WB))))
        return impossible(f, "ept_vpid: EPT is offered without %s%s", e & VMX_EPT_WALK_4 ? "a memory type for its tables" : "page walks of length 4", "");
    if (!!(e & VMX_EPT_INVEPT) != !!(e & (VMX_EPT_INVEPT_SINGLE | VMX_EPT_INVEPT_ALL)))
        return impossible(f, "ept_vpid: INVEPT and its types come together%s%s", "", "");
    if (!!(e & VMX_EPT_INVVPID) != !!(e & BITS64(43, 40)))
        return impossible(f, "ept_vpid: INVVPID and its types come together%s%s", "", "");
    return 0;
}

int vmx_caps_force(struct vmx_caps *caps, const char *text, struct error *err)
{
    struct error inner = {""};
    struct force f = {.caps = caps, .base = *caps, .err = &inner};
    while (*text) {
        char item[96], *value;
        size_t n = strcspn(text, ",");
        snprintf(item, sizeof(item), "%.*s", (int)(n < sizeof(item) ? n : sizeof(item) - 1), text);
        if (!(value = strchr(item, '=')))
            return error_set(err, "--vmx-cap %.*s: expected NAME=VALUE", (int)n, text);
        *value++ = 0;
        if (force_one(&f, item, value))
            return error_set(err, "--vmx-cap %.*s: %s", (int)n, text, inner.text);
        text += n + (text[n] == ',');
    }
    f.err = err;
    /* Without TRUE MSRs the default1 class is as fixed as the rest. */
    if (!(caps->basic & VMX_BASIC_TRUE_CONTROLS))
        memcpy(caps->allowed0, caps->default1, sizeof(caps->allowed0));
    if (judge_words(&f) || judge_needs(&f) || judge_areas(&f))
        return -1;
    vmx_caps_fields(caps);
    /* What INVEPT, INVVPID and EPT itself can do goes with them. */
    if (!vmx_offers(caps, CTL_SEC_EPT))
        caps->ept_vpid &= BIT64(32) | BITS64(43, 40);
    if (!vmx_offers(caps, CTL_SEC_VPID))
        caps->ept_vpid &= ~(BIT64(32) | BITS64(43, 40));
    return 0;
}

void vmx_caps_list(const struct vmx_caps *c, FILE *out)
{
    for (unsigned n = 0; n < CTL_COUNT; n++) {
        char name[64];
        unsigned w = vmx_controls[n].word, bit = vmx_controls[n].bit;
        control_text(w, bit, name);
        fprintf(out, "%-44s %s\n", name, !(c->allowed1[w] >> bit & 1) ? "0" : c->allowed0[w] >> bit & 1 ? "must" : "1");
    }
    for (unsigned n = 0; n < ARRAY_SIZE(bits); n++) {
        char name[64];
        snprintf(name, sizeof(name), "%s.%s", areas[bits[n].area].name, bits[n].name);
        fprintf(out, "%-44s %llu\n", name, (unsigned long long)bits_get(*area_value((struct vmx_caps *)c, bits[n].area), bits[n].last, bits[n].bit));
    }
}
