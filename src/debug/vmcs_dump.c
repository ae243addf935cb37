/*
 * Reads the VMCS of other people's systems: the lines KVM's dump_vmcs prints into a Linux kernel log
 * (5.x and 6.x differ in how they group them; whatever journald, dmesg or a mail client put around a
 * line is ignored), and JSON. A key counts where its word begins, so that no layout of columns matters.
 */
#include "debug/check.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <strings.h>

#define LINE_MAX_BYTES 512

/* ---- Linux kernel logs ---- */
enum part { PART_NONE = -1, PART_GUEST, PART_HOST, PART_CONTROL, PART_COUNT };
static const char *const part_marks[PART_COUNT] = {"*** Guest State ***", "*** Host State ***", "*** Control State ***"};

/* @line must occur in the line (NULL: any line); behind it, @key gives the field. Blanks around = and : do not count. */
static const struct log_key {
    s8 part;
    const char *line, *key;
    u16 slot;
} log_keys[] = {
#define ROW(part_, line_, key_, field) {PART_##part_, line_, key_, VMCS_##field},
#define SEGMENT(name, field)                                                                                   \
    ROW(GUEST, name ":sel=", "sel=", GUEST_##field##_SELECTOR) ROW(GUEST, name ":sel=", "attr=", GUEST_##field##_AR_BYTES) \
    ROW(GUEST, name ":sel=", "limit=", GUEST_##field##_LIMIT) ROW(GUEST, name ":sel=", "base=", GUEST_##field##_BASE)
    ROW(GUEST, "CR0:actual=", "actual=", GUEST_CR0) ROW(GUEST, "CR0:actual=", "shadow=", CR0_READ_SHADOW)
    ROW(GUEST, "CR0:actual=", "gh_mask=", CR0_GUEST_HOST_MASK)
    ROW(GUEST, "CR4:actual=", "actual=", GUEST_CR4) ROW(GUEST, "CR4:actual=", "shadow=", CR4_READ_SHADOW)
    ROW(GUEST, "CR4:actual=", "gh_mask=", CR4_GUEST_HOST_MASK)
    ROW(GUEST, NULL, "CR3=", GUEST_CR3)
    ROW(GUEST, NULL, "PDPTR0=", GUEST_PDPTE0) ROW(GUEST, NULL, "PDPTR1=", GUEST_PDPTE1)
    ROW(GUEST, NULL, "PDPTR2=", GUEST_PDPTE2) ROW(GUEST, NULL, "PDPTR3=", GUEST_PDPTE3)
    ROW(GUEST, "Sysenter RSP=", "CS:RIP=", GUEST_SYSENTER_CS) ROW(GUEST, NULL, "Sysenter RSP=", GUEST_SYSENTER_ESP)
    ROW(GUEST, NULL, "RSP=", GUEST_RSP) ROW(GUEST, NULL, "RIP=", GUEST_RIP)
    ROW(GUEST, NULL, "RFLAGS=", GUEST_RFLAGS) ROW(GUEST, NULL, "DR7=", GUEST_DR7)
    SEGMENT("CS", CS) SEGMENT("DS", DS) SEGMENT("SS", SS) SEGMENT("ES", ES) SEGMENT("FS", FS) SEGMENT("GS", GS)
    SEGMENT("LDTR", LDTR) SEGMENT("TR", TR)
    ROW(GUEST, "GDTR:limit=", "limit=", GUEST_GDTR_LIMIT) ROW(GUEST, "GDTR:limit=", "base=", GUEST_GDTR_BASE)
    ROW(GUEST, "IDTR:limit=", "limit=", GUEST_IDTR_LIMIT) ROW(GUEST, "IDTR:limit=", "base=", GUEST_IDTR_BASE)
    ROW(GUEST, NULL, "EFER=", GUEST_IA32_EFER) ROW(GUEST, NULL, "PAT=", GUEST_IA32_PAT)
    ROW(GUEST, NULL, "DebugCtl=", GUEST_IA32_DEBUGCTL) ROW(GUEST, NULL, "DebugExceptions=", GUEST_PENDING_DBG_EXCEPTIONS)
    ROW(GUEST, NULL, "PerfGlobCtl=", GUEST_IA32_PERF_GLOBAL_CTRL) ROW(GUEST, NULL, "BndCfgS=", GUEST_BNDCFGS)
    ROW(GUEST, NULL, "Interruptibility=", GUEST_INTERRUPTIBILITY_INFO) ROW(GUEST, NULL, "ActivityState=", GUEST_ACTIVITY_STATE)
    ROW(GUEST, NULL, "InterruptStatus=", GUEST_INTR_STATUS)
    ROW(GUEST, NULL, "S_CET=", GUEST_S_CET) ROW(GUEST, NULL, "SSP=", GUEST_SSP) ROW(GUEST, NULL, "SSP TABLE=", GUEST_INTR_SSP_TABLE)

    ROW(HOST, "Sysenter RSP=", "CS:RIP=", HOST_IA32_SYSENTER_CS) ROW(HOST, NULL, "Sysenter RSP=", HOST_IA32_SYSENTER_ESP)
    ROW(HOST, NULL, "RIP=", HOST_RIP) ROW(HOST, NULL, "RSP=", HOST_RSP)
    ROW(HOST, NULL, "CS=", HOST_CS_SELECTOR) ROW(HOST, NULL, "SS=", HOST_SS_SELECTOR) ROW(HOST, NULL, "DS=", HOST_DS_SELECTOR)
    ROW(HOST, NULL, "ES=", HOST_ES_SELECTOR) ROW(HOST, NULL, "FS=", HOST_FS_SELECTOR) ROW(HOST, NULL, "GS=", HOST_GS_SELECTOR)
    ROW(HOST, NULL, "TR=", HOST_TR_SELECTOR)
    ROW(HOST, NULL, "FSBase=", HOST_FS_BASE) ROW(HOST, NULL, "GSBase=", HOST_GS_BASE) ROW(HOST, NULL, "TRBase=", HOST_TR_BASE)
    ROW(HOST, NULL, "GDTBase=", HOST_GDTR_BASE) ROW(HOST, NULL, "IDTBase=", HOST_IDTR_BASE)
    ROW(HOST, NULL, "CR0=", HOST_CR0) ROW(HOST, NULL, "CR3=", HOST_CR3) ROW(HOST, NULL, "CR4=", HOST_CR4)
    ROW(HOST, NULL, "EFER=", HOST_IA32_EFER) ROW(HOST, NULL, "PAT=", HOST_IA32_PAT)
    ROW(HOST, NULL, "PerfGlobCtl=", HOST_IA32_PERF_GLOBAL_CTRL)
    ROW(HOST, NULL, "S_CET=", HOST_S_CET) ROW(HOST, NULL, "SSP=", HOST_SSP) ROW(HOST, NULL, "SSP TABLE=", HOST_INTR_SSP_TABLE)

    ROW(CONTROL, NULL, "PinBased=", PIN_BASED_VM_EXEC_CONTROL) ROW(CONTROL, NULL, "CPUBased=", CPU_BASED_VM_EXEC_CONTROL)
    ROW(CONTROL, NULL, "SecondaryExec=", SECONDARY_VM_EXEC_CONTROL) ROW(CONTROL, NULL, "TertiaryExec=", TERTIARY_VM_EXEC_CONTROL)
    ROW(CONTROL, NULL, "EntryControls=", VM_ENTRY_CONTROLS) ROW(CONTROL, NULL, "ExitControls=", VM_EXIT_CONTROLS)
    ROW(CONTROL, NULL, "SecondaryExitControls=", SECONDARY_VM_EXIT_CONTROLS)
    ROW(CONTROL, NULL, "ExceptionBitmap=", EXCEPTION_BITMAP) ROW(CONTROL, NULL, "PFECmask=", PAGE_FAULT_ERROR_CODE_MASK)
    ROW(CONTROL, NULL, "PFECmatch=", PAGE_FAULT_ERROR_CODE_MATCH)
    ROW(CONTROL, "VMEntry:intr_info=", "intr_info=", VM_ENTRY_INTR_INFO_FIELD)
    ROW(CONTROL, "VMEntry:intr_info=", "errcode=", VM_ENTRY_EXCEPTION_ERROR_CODE)
    ROW(CONTROL, "VMEntry:intr_info=", "ilen=", VM_ENTRY_INSTRUCTION_LEN)
    ROW(CONTROL, "VMExit:intr_info=", "intr_info=", VM_EXIT_INTR_INFO)
    ROW(CONTROL, "VMExit:intr_info=", "errcode=", VM_EXIT_INTR_ERROR_CODE)
    ROW(CONTROL, "VMExit:intr_info=", "ilen=", VM_EXIT_INSTRUCTION_LEN)
    ROW(CONTROL, NULL, "reason=", VM_EXIT_REASON) ROW(CONTROL, NULL, "qualification=", EXIT_QUALIFICATION)
    ROW(CONTROL, "IDTVectoring:info=", "info=", IDT_VECTORING_INFO_FIELD)
    ROW(CONTROL, "IDTVectoring:info=", "errcode=", IDT_VECTORING_ERROR_CODE)
    ROW(CONTROL, NULL, "TSC Offset=", TSC_OFFSET) ROW(CONTROL, NULL, "TSC Multiplier=", TSC_MULTIPLIER)
    ROW(CONTROL, NULL, "TPR Threshold=", TPR_THRESHOLD)
    ROW(CONTROL, NULL, "APIC-access addr=", APIC_ACCESS_ADDR) ROW(CONTROL, NULL, "virt-APIC addr=", VIRTUAL_APIC_PAGE_ADDR)
    ROW(CONTROL, NULL, "PostedIntrVec=", POSTED_INTR_NV) ROW(CONTROL, NULL, "EPT pointer=", EPT_POINTER)
    ROW(CONTROL, NULL, "PLE Gap=", PLE_GAP) ROW(CONTROL, "PLE Gap=", "Window=", PLE_WINDOW)
    ROW(CONTROL, NULL, "Virtual processor ID=", VIRTUAL_PROCESSOR_ID) ROW(CONTROL, NULL, "VE info address=", VE_INFORMATION_ADDRESS)
#undef SEGMENT
#undef ROW
};

static bool word_byte(char c) { return isalnum((unsigned char)c) || c == '_'; }

/* @key in @line, at the beginning of a word. */
static const char *find_key(const char *line, const char *key)
{
    for (const char *p = line; (p = strstr(p, key)); p++)
        if (p == line || !word_byte(p[-1]))
            return p;
    return NULL;
}

/* One blank for several, none around = and :, so that "EFER =     0x1" and "EFER= 0x1" look alike. */
static void squeeze(const char *from, size_t len, char out[LINE_MAX_BYTES])
{
    size_t n = 0;
    for (size_t i = 0; i < len && n < LINE_MAX_BYTES - 1; i++) {
        char c = from[i];
        if (isspace((unsigned char)c))
            c = ' ';
        if (c == ' ' && (!n || out[n - 1] == ' ' || out[n - 1] == '=' || out[n - 1] == ':'))
            continue;
        if ((c == '=' || c == ':') && n && out[n - 1] == ' ')
            n--;
        out[n++] = c;
    }
    out[n] = 0;
}

/* Hexadecimal digits with or without 0x; returns what follows them, NULL when there are none or too many. */
static const char *read_hex(const char *p, u64 *value)
{
    unsigned digits = 0;
    if (p[0] == '0' && (p[1] | 0x20) == 'x')
        p += 2;
    for (*value = 0; isxdigit((unsigned char)*p); p++, digits++) {
        if (digits == 16)
            return NULL;
        *value = *value << 4 | (u64)(isdigit((unsigned char)*p) ? *p - '0' : (*p | 0x20) - 'a' + 10);
    }
    return digits ? p : NULL;
}

static int store(struct vmcs_dump *d, unsigned slot, u64 value, const char *where, struct error *err)
{
    unsigned bits = vmcs_bytes(vmcs_fields[slot].encoding) * 8;
    if (bits < 64 && value >> bits)
        return error_set(err, "%s: %s = 0x%" PRIx64 " does not fit the field's %u bits", where, vmcs_fields[slot].name, value, bits);
    case_set(&d->c, slot, value);
    return 0;
}

/* @last: the text ends with this line, without a line end. */
static int read_log_line(struct vmcs_dump *d, char *line, int part, unsigned number, bool last, struct error *err)
{
    char where[32];
    snprintf(where, sizeof(where), "line %u", number);
    for (unsigned i = 0; i < ARRAY_SIZE(log_keys); i++) {
        const struct log_key *k = &log_keys[i];
        const char *start = line;
        if (k->part != part || (k->line && !(start = find_key(line, k->line))))
            continue;
        const char *at = find_key(start, k->key);
        if (!at)
            continue;
        /* EFER that the entry does not load from the VMCS is printed too, and says so. */
        if (k->slot == VMCS_GUEST_IA32_EFER && (strstr(at, "(effective)") || strstr(at, "(autoload)")))
            continue;
        u64 value = 0;
        const char *end = read_hex(at + strlen(k->key), &value);
        if (!end || (*end && word_byte(*end)))
            continue; /* noise that looks like the key */
        if (last && !*end) {
            d->cut = true;
            continue;
        }
        if (store(d, k->slot, value, where, err))
            return -1;
        if (!strcmp(k->key, "CS:RIP=") && *end == ':') {
            const char *rip_end = read_hex(end + 1, &value);
            if (rip_end && !(last && !*rip_end) && store(d, part == PART_GUEST ? VMCS_GUEST_SYSENTER_EIP : VMCS_HOST_IA32_SYSENTER_EIP, value, where, err))
                return -1;
        }
        /* What has been read is not read again: the RSP in "Sysenter RSP=". */
        if (!k->line)
            memset(line + (at - line), '.', strlen(k->key) - 1);
        else if (!strcmp(k->key, "CS:RIP="))
            memset(line + (at - line), '.', 6);
    }
    return 0;
}

/* The processor facts that a dump implies. */
static void derive(struct vmcs_dump *d)
{
    struct check_case *c = &d->c;
    if (case_knows(c, VMCS_HOST_IA32_EFER) && case_knows(c, VMCS_VM_EXIT_CONTROLS) && c->f[VMCS_VM_EXIT_CONTROLS] & BIT(EXIT_LOAD_EFER)) {
        c->s.lma = c->f[VMCS_HOST_IA32_EFER] & EFER_LMA;
        c->known.facts |= BIT(VMX_FACT_lma);
    } else if (case_knows(c, VMCS_HOST_RIP) && c->f[VMCS_HOST_RIP] >> 32) {
        c->s.lma = true; /* code up there runs in IA-32e mode only */
        c->known.facts |= BIT(VMX_FACT_lma);
    }
}

static const char *line_end(const char *p, const char *end)
{
    const char *nl = memchr(p, '\n', (size_t)(end - p));
    return nl ? nl : end;
}

static int part_of(const char *line)
{
    for (int i = 0; i < PART_COUNT; i++)
        if (strstr(line, part_marks[i]))
            return i;
    return PART_NONE;
}

static int read_log(struct vmcs_dump *d, const char *text, size_t len, unsigned wanted, struct error *err)
{
    char line[LINE_MAX_BYTES];
    const char *end = text + len;
    unsigned count = 0, seen = 0;
    /* A dump begins where a part comes again that the one before has had. */
    for (const char *p = text; p < end; p = line_end(p, end) + 1) {
        squeeze(p, (size_t)(line_end(p, end) - p), line);
        int part = part_of(line);
        if (part == PART_NONE)
            continue;
        if (!count || seen >> part & 1) {
            count++;
            seen = 0;
        }
        seen |= 1u << part;
    }
    if (!count)
        return error_set(err, "no VMCS dump in it, expected the lines of KVM's dump_vmcs (\"%s\", ...) or a JSON object", part_marks[0]);
    if (wanted > count)
        return error_set(err, "dump %u is asked for, there %s %u", wanted, count == 1 ? "is" : "are", count);
    if (!wanted)
        wanted = count;
    d->kind = "Linux kernel log";
    d->number = wanted;
    d->count = count;

    unsigned number = 0, dump = 0;
    int part = PART_NONE;
    bool tagged = false; /* the log says of each line who wrote it: only the kernel's count */
    seen = 0;
    for (const char *p = text; p < end; p = line_end(p, end) + 1) {
        const char *stop = line_end(p, end);
        bool last = stop == end;
        squeeze(p, (size_t)(stop - p), line);
        number++;
        const char *hw = strstr(line, "hardware error 0x");
        if (hw && read_hex(hw + strlen("hardware error "), &d->hardware_error))
            d->has_hardware_error = true;
        int mark = part_of(line);
        if (mark != PART_NONE) {
            if (!dump || seen >> mark & 1) {
                dump++;
                seen = 0;
            }
            seen |= 1u << mark;
            part = mark;
            tagged = strstr(line, "kernel:") != NULL;
            if (dump == wanted) {
                d->last_line = number;
                if (!d->first_line)
                    d->first_line = number;
            }
            continue;
        }
        if (dump != wanted || part == PART_NONE || (tagged && !strstr(line, "kernel:")))
            continue;
        struct vmx_reads before = d->c.known;
        if (read_log_line(d, line, part, number, last, err))
            return -1;
        if (memcmp(&before, &d->c.known, sizeof(before)))
            d->last_line = number;
    }
    return 0;
}

/* ---- JSON ---- */

static void set_word(struct vmx_caps *k, enum vmx_word w, u64 value)
{
    k->allowed0[w] = (u32)value;
    k->allowed1[w] = value >> 32;
}

/* Capability MSRs and the like; false: not one. The TRUE MSRs are the ones in force. */
static bool set_capability(struct vmcs_dump *d, const char *name, u64 value)
{
    struct check_case *c = &d->c;
    struct vmx_caps *k = &c->caps;
    static const struct {
        const char *name;
        int word;
    } words[] = {{"IA32_VMX_TRUE_PINBASED_CTLS", WORD_PIN}, {"IA32_VMX_TRUE_PROCBASED_CTLS", WORD_PRI}, {"IA32_VMX_PROCBASED_CTLS2", WORD_SEC},
                 {"IA32_VMX_TRUE_EXIT_CTLS", WORD_EXIT}, {"IA32_VMX_TRUE_ENTRY_CTLS", WORD_ENTRY}};
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++)
        if (!strcasecmp(name, words[i].name)) {
            set_word(k, (enum vmx_word)words[i].word, value);
            return true;
        }
    const struct {
        const char *name;
        u64 *at;
    } plain[] = {{"IA32_VMX_BASIC", &k->basic}, {"IA32_VMX_MISC", &k->misc}, {"IA32_VMX_CR0_FIXED0", &k->cr0_fixed0},
                 {"IA32_VMX_CR0_FIXED1", &k->cr0_fixed1}, {"IA32_VMX_CR4_FIXED0", &k->cr4_fixed0}, {"IA32_VMX_CR4_FIXED1", &k->cr4_fixed1},
                 {"IA32_VMX_EPT_VPID_CAP", &k->ept_vpid}, {"IA32_VMX_VMFUNC", &k->allowed1[WORD_VMFUNC]}};
    for (unsigned i = 0; i < ARRAY_SIZE(plain); i++)
        if (!strcasecmp(name, plain[i].name)) {
            *plain[i].at = value;
            return true;
        }
    if (!strcasecmp(name, "MAXPHYADDR") && value >= 32 && value <= 52)
        return c->s.maxphyaddr = (u8)value, true;
    if (!strcasecmp(name, "LINEAR_WIDTH") && (value == 48 || value == 57))
        return c->s.linear_width = (u8)value, true;
    return false;
}

static int set_named(struct json *j, const char *name, u64 value)
{
    struct vmcs_dump *d = j->target;
    char where[32];
    snprintf(where, sizeof(where), "line %u", j->line);
    /* Linux's spelling of the PDPTE fields. */
    char other[32];
    if (!strncasecmp(name, "GUEST_PDPTR", 11) && strlen(name) == 12) {
        snprintf(other, sizeof(other), "GUEST_PDPTE%c", name[11]);
        name = other;
    }
    for (unsigned slot = 0; slot < VMCS_SLOT_COUNT; slot++)
        if (!strcasecmp(vmcs_fields[slot].name, name))
            return store(d, slot, value, where, j->err);
    if (set_capability(d, name, value))
        return 0;
    return error_set(j->err, "%s: \"%.64s\" is no VMCS field (nestor list vmcs-fields), capability MSR, MAXPHYADDR (32 to 52) or LINEAR_WIDTH (48 or 57)",
                     where, name);
}

static int read_json(struct vmcs_dump *d, const char *text, size_t len, unsigned wanted, struct error *err)
{
    struct json j = {.p = text, .end = text + len, .line = 1, .err = err, .set = set_named, .target = d};
    if (wanted > 1)
        return error_set(err, "dump %u is asked for, JSON has one", wanted);
    d->kind = "JSON";
    d->number = d->count = 1;
    if (json_read(&j))
        return -1;
    d->first_line = j.first_line;
    d->last_line = j.line;
    return 0;
}

int vmcs_dump_read(struct vmcs_dump *d, const char *text, size_t len, unsigned number, struct error *err)
{
    memset(d, 0, sizeof(*d));
    case_init_unknown(&d->c);
    if (memchr(text, 0, len))
        return error_set(err, "is not text: it has bytes of value 0");
    size_t i = 0;
    while (i < len && isspace((unsigned char)text[i]))
        i++;
    if (i < len && text[i] == '{' ? read_json(d, text, len, number, err) : read_log(d, text, len, number, err))
        return -1;
    derive(d);
    for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++)
        if (case_knows(&d->c, s))
            return 0;
    return error_set(err, "the dump has no field with a value");
}
