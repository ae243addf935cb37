/* VT-x from the guest's side: priorities of faults and VM exits, and what the exits record. */
#include "protected_guest.h"

#include "vmx_guest.h"

#define VMCS_AT 0x100000u
#define APIC_PAGE 0x40000u
#define VAPIC_PAGE 0x41000u
#define EPT_AT 0x120000u
#define UNMAPPED 0x200000u /* the second 2 MiB: not present in EPT */

static int setup_vmx(void **state) { return setup(state) || !vmx_new(((struct guest *)*state)->v); }
static int teardown_vmx(void **state)
{
    vmx_free(((struct guest *)*state)->v);
    return teardown(state);
}

static void set_field(struct guest *g, enum vmcs_slot s, u64 value) { g->v->vmx->f[s] = value; }
#define F(name) (g->v->vmx->f[VMCS_##name])

static void make_guest(struct guest *g)
{
    struct vmx *x = g->v->vmx;
    to_long(g);
    enter_vmx_operation(g);
    x->current = VMCS_AT;
    fill_guest(g, &x->caps, set_field);
    F(EXCEPTION_BITMAP) = ~0u;
}

/* Every exception exits; ring 3 of the guest's 64-bit code. */
static void guest_ring3(struct guest *g)
{
    F(GUEST_CS_SELECTOR) = CS3_64;
    F(GUEST_CS_AR_BYTES) = 0xa0fb;
    for (unsigned n = SEG_ES; n <= SEG_GS; n++)
        if (n != SEG_CS) {
            g->v->vmx->f[VMCS_GUEST_ES_SELECTOR + n] = DS3;
            g->v->vmx->f[VMCS_GUEST_ES_AR_BYTES + n] = 0xc0f3;
        }
}

static u64 exit_of(struct guest *g)
{
    g->v->vmx->launched = false;
    F(GUEST_RIP) = F(GUEST_RIP) ? F(GUEST_RIP) : GUEST_CODE;
    if (!enter(g, true))
        fail_msg("VM entry refused: %s", g->v->vmx->last_failure ? g->v->vmx->last_failure->id : "?");
    return F(VM_EXIT_REASON);
}

static void expect_exception(struct guest *g, unsigned vector, const char *what)
{
    u64 reason = exit_of(g);
    if (reason != EXIT_REASON_EXCEPTION_NMI || (F(VM_EXIT_INTR_INFO) & 0xff) != vector)
        fail_msg("%s: exit %#llx with information %#llx, expected vector %u", what, (unsigned long long)reason,
                 (unsigned long long)F(VM_EXIT_INTR_INFO), vector);
}

/* SDM "Instructions That Cause VM Exits Conditionally", MOV DR: before the privilege check and DR4's #UD. */
static void mov_dr_priority(void **state)
{
    struct guest *g = *state;
    make_guest(g);
    guest_ring3(g);
    CODE_AT(g, GUEST_CODE, 0x0f, 0x21, 0xe3); /* mov rbx, dr4 */
    F(GUEST_CR4) |= CR4_DE;
    F(GUEST_RIP) = GUEST_CODE;
    expect_exception(g, VEC_UD, "DR4 with CR4.DE");
    F(CPU_BASED_VM_EXEC_CONTROL) |= BIT(PRI_MOV_DR_EXITING);
    assert_int_equal(exit_of(g), EXIT_REASON_DR_ACCESS);
    assert_int_equal(F(EXIT_QUALIFICATION), 4 | BIT(4) | RBX << 8);
    CODE_AT(g, GUEST_CODE, 0x41, 0x0f, 0x23, 0xf9); /* mov dr7, r9 */
    assert_int_equal(exit_of(g), EXIT_REASON_DR_ACCESS);
    assert_int_equal(F(EXIT_QUALIFICATION), 7 | 9 << 8);
    F(CPU_BASED_VM_EXEC_CONTROL) &= ~(u64)BIT(PRI_MOV_DR_EXITING);
    expect_exception(g, VEC_GP, "MOV DR7 at CPL 3");
}

/* An instruction that the hypervisor has not enabled is undefined, whatever else is wrong with it. */
static void disabled_instructions(void **state)
{
    struct guest *g = *state;
    static const struct { const char *name; u8 code[5]; unsigned control, feature; int otherwise; } rows[] = {
        {"INVPCID", {0x66, 0x0f, 0x38, 0x82, 0x03}, SEC_INVPCID, FEAT_INVPCID, VEC_GP},
        {"RDTSCP", {0x0f, 0x01, 0xf9}, SEC_RDTSCP, FEAT_RDTSCP, VEC_GP},
        {"RDPID", {0xf3, 0x0f, 0xc7, 0xf8, 0xf4}, SEC_RDTSCP, FEAT_RDPID, VEC_GP}, /* runs; then HLT */
        {"TPAUSE", {0x66, 0x0f, 0xae, 0xf3}, SEC_USER_WAIT_PAUSE, FEAT_WAITPKG, VEC_GP},
        {"UMWAIT", {0xf2, 0x0f, 0xae, 0xf3}, SEC_USER_WAIT_PAUSE, FEAT_WAITPKG, VEC_GP},
        {"XSAVES", {0x0f, 0xc7, 0x2b}, SEC_XSAVES, FEAT_XSAVES, VEC_GP},
        {"XRSTORS", {0x0f, 0xc7, 0x1b}, SEC_XSAVES, FEAT_XSAVES, VEC_GP},
    };
    make_guest(g);
    guest_ring3(g);
    F(CPU_BASED_VM_EXEC_CONTROL) |= BIT(PRI_SECONDARY_CONTROLS);
    F(GUEST_CR4) |= CR4_TSD | CR4_OSXSAVE;
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        if (!cpu_has(g->v, rows[n].feature))
            continue;
        poke(g, GUEST_CODE, rows[n].code, sizeof(rows[n].code));
        F(GUEST_RIP) = GUEST_CODE;
        F(SECONDARY_VM_EXEC_CONTROL) = 0;
        expect_exception(g, VEC_UD, rows[n].name);
        F(SECONDARY_VM_EXEC_CONTROL) = BIT(rows[n].control);
        F(GUEST_RIP) = GUEST_CODE;
        expect_exception(g, (unsigned)rows[n].otherwise, rows[n].name);
    }
}

/* SDM "VM Exits due to APIC Accesses": access type 2 is an instruction fetch. */
static void apic_page_fetch(void **state)
{
    struct guest *g = *state;
    make_guest(g);
    CODE_AT(g, APIC_PAGE + 0x30, 0xf4);
    F(GUEST_RIP) = APIC_PAGE + 0x30;
    assert_int_equal(exit_of(g), EXIT_REASON_HLT); /* a page like any other */
    F(CPU_BASED_VM_EXEC_CONTROL) |= BIT(PRI_SECONDARY_CONTROLS) | BIT(PRI_TPR_SHADOW);
    F(SECONDARY_VM_EXEC_CONTROL) = BIT(SEC_VIRTUALIZE_APIC_ACCESSES) | BIT(SEC_APIC_REGISTER_VIRTUALIZATION);
    F(APIC_ACCESS_ADDR) = APIC_PAGE;
    F(VIRTUAL_APIC_PAGE_ADDR) = VAPIC_PAGE;
    F(GUEST_RIP) = APIC_PAGE + 0x30;
    assert_int_equal(exit_of(g), EXIT_REASON_APIC_ACCESS);
    assert_int_equal(F(EXIT_QUALIFICATION), 0x30 | 2 << 12);
    assert_int_equal(F(GUEST_LINEAR_ADDRESS), APIC_PAGE + 0x30);
    assert_int_equal(F(GUEST_RIP), APIC_PAGE + 0x30);
    /* An instruction whose second byte lies there. */
    CODE_AT(g, APIC_PAGE - 1, 0x90 | 0x66, 0x90);
    F(GUEST_RIP) = APIC_PAGE - 1;
    put(g, APIC_PAGE - 1, 0x66, 1);
    assert_int_equal(exit_of(g), EXIT_REASON_APIC_ACCESS);
    assert_int_equal(F(EXIT_QUALIFICATION), 2 << 12);
    assert_int_equal(F(GUEST_RIP), APIC_PAGE - 1);
}

static void use_ept(struct guest *g)
{
    put(g, EPT_AT, (EPT_AT + 0x1000) | 7, 8);
    put(g, EPT_AT + 0x1000, (EPT_AT + 0x2000) | 7, 8);
    put(g, EPT_AT + 0x2000, 0x80 | 6 << 3 | 7, 8);
    F(CPU_BASED_VM_EXEC_CONTROL) |= BIT(PRI_SECONDARY_CONTROLS);
    F(SECONDARY_VM_EXEC_CONTROL) |= BIT(SEC_EPT);
    F(EPT_POINTER) = EPT_AT | 3 << 3 | 6;
}

/* SDM "Exit Qualification for EPT Violations": bits 11:9 say what the guest's own paging allows. */
static void ept_violation_advanced_information(void **state)
{
    struct guest *g = *state;
    make_guest(g);
    use_ept(g);
    assert_true(g->v->vmx->caps.ept_vpid & BIT64(22));
    F(VM_ENTRY_CONTROLS) |= BIT(ENTRY_LOAD_EFER);
    F(GUEST_IA32_EFER) = g->v->efer | EFER_NXE;
    for (unsigned n = 0; n < 16; n++) {
        bool user = n & 1, writable = n & 2, nx = n & 4, write = n & 8;
        if (write && !writable)
            continue;
        put(g, PML4 + 0x2008, UNMAPPED | 0xe1 | (user ? 4u : 0) | (writable ? 2u : 0) | (nx ? 1ull << 63 : 0), 8);
        CODE_AT(g, GUEST_CODE, 0x8a, 0x04, 0x25, 0x34, 0x12, 0x20, 0x00); /* mov al, [201234H], or the reverse */
        put(g, GUEST_CODE, write ? 0x88 : 0x8a, 1);
        F(GUEST_RIP) = GUEST_CODE;
        mmu_flush_all(g->v);
        assert_int_equal(exit_of(g), EXIT_REASON_EPT_VIOLATION);
        assert_int_equal(F(EXIT_QUALIFICATION), (write ? 2u : 1u) | BIT(7) | BIT(8) | (user ? BIT(9) : 0) | (writable ? BIT(10) : 0) | (nx ? BIT(11) : 0));
        assert_int_equal(F(GUEST_PHYSICAL_ADDRESS), 0x201234);
    }
}

/* A guest-physical address of 49 bits: no translation of four levels reaches it, one of five does. */
static void five_levels_of_ept(void **state)
{
    struct guest *g = *state;
    g->v->maxphyaddr = 52;
    make_guest(g);
    use_ept(g);
    put(g, PML4 + 0x2010, BIT64(48) | UNMAPPED | 0xe7, 8);
    put(g, EPT_AT + 0x4000, EPT_AT | 7, 8);
    put(g, EPT_AT + 0x4008, (EPT_AT + 0x5000) | 7, 8);
    put(g, EPT_AT + 0x5000, (EPT_AT + 0x6000) | 7, 8);
    put(g, EPT_AT + 0x6000, (EPT_AT + 0x7000) | 7, 8);
    put(g, EPT_AT + 0x7008, UNMAPPED | 0x80 | 6 << 3 | 7, 8);
    put(g, UNMAPPED + 0x1234, 0x5a, 1);
    CODE_AT(g, GUEST_CODE, 0x8a, 0x04, 0x25, 0x34, 0x12, 0x40, 0x00, 0xf4); /* mov al, [401234H]; hlt */
    F(GUEST_RIP) = GUEST_CODE;
    assert_int_equal(exit_of(g), EXIT_REASON_EPT_VIOLATION);
    assert_int_equal(F(GUEST_PHYSICAL_ADDRESS), BIT64(48) | 0x201234);
    assert_int_equal(F(EXIT_QUALIFICATION) & 0x3f, 1); /* a read, and nothing is allowed there */
    F(EPT_POINTER) = (EPT_AT + 0x4000) | 4 << 3 | 6;
    F(GUEST_RIP) = GUEST_CODE;
    assert_int_equal(exit_of(g), EXIT_REASON_HLT);
    assert_int_equal(g->v->gpr[RAX] & 0xff, 0x5a);
    /* Not on a processor that does not say so. */
    g->v->vmx->caps.ept_vpid &= ~VMX_EPT_WALK_5;
    F(GUEST_RIP) = GUEST_CODE;
    g->v->vmx->launched = false;
    assert_false(enter(g, true));
    assert_string_equal(g->v->vmx->last_failure->id, "EXEC_EPTP_WALK");
}

/* ---- IPI virtualization ---- */
#define PID_TABLE 0x42000u
#define DESCRIPTOR(n) (0x43000u + (n) * 64u)
static struct { unsigned n; u32 ndst; u8 vector; } notified;
static void notify(void *intc, u32 ndst, u8 vector)
{
    notified.n++;
    notified.ndst = ndst;
    notified.vector = vector;
}
static bool posted(struct guest *g, unsigned n, u8 vector) { return get(g, DESCRIPTOR(n) + vector / 64 * 8, 8) == BIT64(vector % 64); }

/* WRMSR of the ICR: what becomes a posted interrupt, and what the hypervisor hears of. */
static void ipi_virtualization(void **state)
{
    struct guest *g = *state;
    static const struct { const char *name; u64 icr; u8 how; } rows[] = {
        {"virtual processor 1", 1ull << 32 | 0xa3, 'p'},
        {"level bit set", 1ull << 32 | 0x40a3, 'p'},
        {"lowest legal vector", 1ull << 32 | 0x10, 'p'},
        {"illegal vector", 1ull << 32 | 0x0f, 'e'},
        {"beyond the table", 4ull << 32 | 0xa3, 'e'},
        {"pointer not valid", 2ull << 32 | 0xa3, 'e'},
        {"pointer with reserved bits", 3ull << 32 | 0xa3, 'e'},
        {"to itself", 0x400a3, 'e'},
        {"to all", 0x800a3, 'e'},
        {"logical", 1ull << 32 | 0x8a3, 'e'},
        {"NMI", 1ull << 32 | 0x400, 'e'},
        {"level-triggered", 1ull << 32 | 0x80a3, 'e'},
        {"bit 12", 1ull << 32 | 0x10a3, 'g'}, {"bit 13", 1ull << 32 | 0x20a3, 'g'}, {"bit 16", 1ull << 32 | 0x100a3, 'g'},
        {"bit 20", 1ull << 32 | 0x1000a3, 'g'}, {"bit 31", 1ull << 32 | 0x800000a3, 'g'},
    };
    static struct intc_ops intc;
    intc = fake_intc;
    intc.ipi = notify;
    vcpu_attach_intc(g->v, &intc, g);
    make_guest(g);
    F(CPU_BASED_VM_EXEC_CONTROL) |= BIT(PRI_SECONDARY_CONTROLS) | BIT(PRI_TERTIARY_CONTROLS) | BIT(PRI_TPR_SHADOW) | BIT(PRI_MSR_BITMAPS);
    F(SECONDARY_VM_EXEC_CONTROL) = BIT(SEC_VIRTUALIZE_X2APIC_MODE);
    F(TERTIARY_VM_EXEC_CONTROL) = BIT(TER_IPI_VIRTUALIZATION);
    F(MSR_BITMAP) = 0x60000; /* zeros */
    F(VIRTUAL_APIC_PAGE_ADDR) = VAPIC_PAGE;
    F(PID_POINTER_TABLE) = PID_TABLE;
    F(LAST_PID_POINTER_INDEX) = 3;
    for (unsigned n = 0; n < 4; n++)
        put(g, PID_TABLE + n * 8, DESCRIPTOR(n) | (n == 2 ? 0 : n == 3 ? 3 : 1), 8);
    CODE_AT(g, GUEST_CODE, 0xb9, 0x30, 8, 0, 0, 0x0f, 0x30, 0xf4); /* mov ecx, 830h; wrmsr; hlt */
    for (unsigned n = 0; n < ARRAY_SIZE(rows); n++) {
        for (unsigned at = 0; at < 256; at += 8)
            put(g, DESCRIPTOR(0) + at, 0, 8);
        put(g, DESCRIPTOR(1) + 32, 0x77ull << 32 | 0xf2 << 16, 8); /* NDST, NV */
        put(g, VAPIC_PAGE + 0x300, 0, 8);
        notified.n = 0;
        g->v->gpr[RAX] = (u32)rows[n].icr;
        g->v->gpr[RDX] = rows[n].icr >> 32;
        F(GUEST_RIP) = GUEST_CODE;
        u64 reason = exit_of(g), wanted = rows[n].how == 'p' ? EXIT_REASON_HLT : rows[n].how == 'e' ? EXIT_REASON_APIC_WRITE : EXIT_REASON_EXCEPTION_NMI;
        bool sent = rows[n].how == 'p', stored = rows[n].how != 'g';
        if (reason != wanted || posted(g, 1, (u8)rows[n].icr) != sent || notified.n != sent || get(g, VAPIC_PAGE + 0x300, 8) != (stored ? rows[n].icr : 0))
            fail_msg("%s: exit %llu, %u notifications", rows[n].name, (unsigned long long)reason, notified.n);
        if (rows[n].how == 'e') {
            assert_int_equal(F(EXIT_QUALIFICATION), 0x300);
            assert_int_equal(F(GUEST_RIP), GUEST_CODE + 7);
        }
    }
    /* The notification says where to and what; none while one is outstanding or notifications are suppressed. */
    for (unsigned control = 0; control < 4; control++) {
        put(g, DESCRIPTOR(1), 0, 8);
        put(g, DESCRIPTOR(1) + 32, 0x77ull << 32 | 0xf2 << 16 | control, 8);
        notified.n = 0;
        g->v->gpr[RAX] = 0x31;
        g->v->gpr[RDX] = 1;
        F(GUEST_RIP) = GUEST_CODE;
        assert_int_equal(exit_of(g), EXIT_REASON_HLT);
        assert_true(posted(g, 1, 0x31));
        assert_int_equal(notified.n, control == 0);
        assert_int_equal(get(g, DESCRIPTOR(1) + 32, 1), control ? control : 1);
    }
    assert_int_equal(notified.ndst, 0x77);
    assert_int_equal(notified.vector, 0xf2);
    /* The xAPIC's way: the destination is in the upper half, written before. */
    F(SECONDARY_VM_EXEC_CONTROL) = BIT(SEC_VIRTUALIZE_APIC_ACCESSES);
    F(APIC_ACCESS_ADDR) = APIC_PAGE;
    put(g, DESCRIPTOR(1), 0, 8);
    put(g, DESCRIPTOR(1) + 32, 0, 8);
    put(g, VAPIC_PAGE + 0x310, 1u << 24, 4);
    /* mov dword [40300H], 35h; hlt */
    CODE_AT(g, GUEST_CODE, 0xc7, 0x04, 0x25, 0x00, 0x03, 0x04, 0x00, 0x35, 0, 0, 0, 0xf4);
    F(GUEST_RIP) = GUEST_CODE;
    assert_int_equal(exit_of(g), EXIT_REASON_HLT);
    assert_true(posted(g, 1, 0x35));
    /* Without the control the write is the hypervisor's. */
    F(TERTIARY_VM_EXEC_CONTROL) = 0;
    F(GUEST_RIP) = GUEST_CODE;
    assert_int_equal(exit_of(g), EXIT_REASON_APIC_ACCESS);
}

/* A model without a part of VT-x reports its absence in the capability MSRs, and has no fields for it. */
static void lesser_models(void **state)
{
    static const enum vmx_word words[] = {WORD_PIN, WORD_PRI, WORD_SEC, WORD_EXIT, WORD_ENTRY, WORD_VMFUNC};
    static const u32 msrs[] = {0x48d, 0x48e, 0x48b, 0x48f, 0x490, 0x491};
    unsigned tested = 0;
    for (unsigned f = FEAT_VMX_TPR_SHADOW; f <= FEAT_PMU; f++, tested++) {
        const struct cpu_model *m;
        struct error err;
        struct vmx_caps full, less;
        char text[64];
        struct vcpu *v = calloc(1, sizeof(*v));
        assert_int_equal(cpu_model_parse("intel", &m, v->features, NULL, &err), 0);
        vmx_caps_init(&full, v);
        snprintf(text, sizeof(text), "intel,-%s", cpu_feature_info[f].name);
        assert_int_equal(cpu_model_parse(text, &m, v->features, NULL, &err), 0);
        vmx_caps_init(&less, v);
        bool differs = full.ept_vpid != less.ept_vpid;
        assert_int_equal(less.ept_vpid & ~full.ept_vpid, 0);
        for (unsigned n = 0; n < CTL_COUNT; n++) {
            if (vmx_controls[n].feature != f)
                continue;
            u64 value = 0;
            differs = true;
            assert_true(vmx_offers(&full, n) && !vmx_offers(&less, n));
            for (unsigned w = 0; w < ARRAY_SIZE(words); w++)
                if (words[w] == vmx_controls[n].word && vmx_caps_msr(&less, msrs[w], &value))
                    assert_int_equal((msrs[w] == 0x491 ? value : value >> 32) >> vmx_controls[n].bit & 1, 0);
            for (unsigned s = 0; s < VMCS_SLOT_COUNT; s++)
                if (vmcs_fields[s].control == n)
                    assert_false(vmcs_exists(&less, s));
        }
        if (!differs)
            fail_msg("without %s nothing is missing", cpu_feature_info[f].name);
        free(v);
    }
    assert_int_equal(tested, 25);
}

/* IA32_PERF_GLOBAL_CTRL: loaded and saved by the three controls, each by itself, and left alone without them. */
static void perf_global_ctrl(void **state)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    const u64 own = 0x700000011ull, guests = 0x300000003ull, hosts = 0x40ull, written = 0x80;
    u64 value;
    make_guest(g);
    u64 exit = F(VM_EXIT_CONTROLS), entry = F(VM_ENTRY_CONTROLS);
    /* mov ecx, 38fh; rdmsr; mov esi, eax; mov eax, 80h; xor edx, edx; wrmsr; hlt */
    CODE_AT(g, GUEST_CODE, 0xb9, 0x8f, 3, 0, 0, 0x0f, 0x32, 0x89, 0xc6, 0xb8, 0x80, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0xf4);
    F(CPU_BASED_VM_EXEC_CONTROL) |= BIT(PRI_MSR_BITMAPS);
    F(MSR_BITMAP) = 0x60000; /* zeros */
    for (unsigned n = 0; n < 8; n++) {
        bool load = n & 1, back = n & 2, save = n & 4;
        F(VM_ENTRY_CONTROLS) = entry | (load ? BIT64(ENTRY_LOAD_PERF_GLOBAL_CTRL) : 0);
        F(VM_EXIT_CONTROLS) = exit | (back ? BIT64(EXIT_LOAD_PERF_GLOBAL_CTRL) : 0) | (save ? BIT64(EXIT_SAVE_PERF_GLOBAL_CTRL) : 0);
        F(GUEST_IA32_PERF_GLOBAL_CTRL) = guests;
        F(HOST_IA32_PERF_GLOBAL_CTRL) = hosts;
        assert_true(cpu_wrmsr(v, 0x38f, own));
        F(GUEST_RIP) = GUEST_CODE;
        assert_int_equal(exit_of(g), EXIT_REASON_HLT);
        assert_true(cpu_rdmsr(v, 0x38f, &value));
        if (v->gpr[RSI] != (u32)(load ? guests : own) || value != (back ? hosts : written) ||
            F(GUEST_IA32_PERF_GLOBAL_CTRL) != (save ? written : guests))
            fail_msg("load %d, load back %d, save %d: %llx in the guest, %llx after it, %llx saved", load, back, save,
                     (unsigned long long)v->gpr[RSI], (unsigned long long)value, (unsigned long long)F(GUEST_IA32_PERF_GLOBAL_CTRL));
    }
    /* What the entry enables counts the guest's instructions and no others. */
    assert_true(cpu_wrmsr(v, 0x38f, 0) && cpu_wrmsr(v, 0x186, BIT64(22) | BIT64(17) | 0xc0) && cpu_wrmsr(v, 0xc1, 0));
    CODE_AT(g, GUEST_CODE, 0x90, 0x90, 0x90, 0xf4);
    F(VM_ENTRY_CONTROLS) = entry | BIT64(ENTRY_LOAD_PERF_GLOBAL_CTRL);
    F(VM_EXIT_CONTROLS) = exit | BIT64(EXIT_LOAD_PERF_GLOBAL_CTRL);
    F(GUEST_IA32_PERF_GLOBAL_CTRL) = 1;
    F(HOST_IA32_PERF_GLOBAL_CTRL) = 0;
    F(GUEST_RIP) = GUEST_CODE;
    assert_int_equal(exit_of(g), EXIT_REASON_HLT);
    assert_true(cpu_rdmsr(v, 0xc1, &value));
    assert_int_equal(value, 1 + 3); /* VMLAUNCH enabled it; the HLT that exits does not retire */
    /* RDPMC */
    CODE_AT(g, GUEST_CODE, 0x31, 0xc9, 0x0f, 0x33, 0xf4);
    F(GUEST_RIP) = GUEST_CODE;
    assert_int_equal(exit_of(g), EXIT_REASON_HLT);
    assert_int_equal(v->gpr[RAX], 4 + 2); /* VMLAUNCH, XOR */
    F(CPU_BASED_VM_EXEC_CONTROL) |= BIT(PRI_RDPMC_EXITING);
    F(GUEST_RIP) = GUEST_CODE;
    assert_int_equal(exit_of(g), EXIT_REASON_RDPMC);
    assert_int_equal(F(VM_EXIT_INSTRUCTION_LEN), 2);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup_vmx, teardown_vmx)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(mov_dr_priority), T(disabled_instructions), T(apic_page_fetch), T(perf_global_ctrl), T(ept_violation_advanced_information), T(five_levels_of_ept), T(ipi_virtualization),
        cmocka_unit_test(lesser_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
