/*
 * One witness per row of the VM-entry checks: a valid snapshot, one change, and exactly that row is the
 * first to fail. A row without a witness fails the test. Also: the field table, the capability MSRs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "vmx/vmx.h"

/* ---- neighbours that the tables do not need ---- */
u32 log_mask;
u64 cpu_cr4_reserved(const struct vcpu *v) { return ~0x11f77fffull; }
void physmap_read(struct physmap *pm, pa_t pa, void *buf, size_t len) { memset(buf, 0, len); }
void physmap_write(struct physmap *pm, pa_t pa, const void *buf, size_t len) {}

static struct vmx_caps caps, plain_caps;
static u64 f[VMCS_SLOT_COUNT];
static struct vmx_snapshot s;

#define F(name) f[VMCS_##name]
#define SET_PIN(name) (F(PIN_BASED_VM_EXEC_CONTROL) |= BIT64(PIN_##name))
#define SET_PRI(name) (F(CPU_BASED_VM_EXEC_CONTROL) |= BIT64(PRI_##name))
#define SET_SEC(name) (SET_PRI(SECONDARY_CONTROLS), F(SECONDARY_VM_EXEC_CONTROL) |= BIT64(SEC_##name))
#define SET_EXIT(name) (F(VM_EXIT_CONTROLS) |= BIT64(EXIT_##name))
#define SET_ENTRY(name) (F(VM_ENTRY_CONTROLS) |= BIT64(ENTRY_##name))
#define CLEAR_EXIT(name) (F(VM_EXIT_CONTROLS) &= ~BIT64(EXIT_##name))
#define CLEAR_ENTRY(name) (F(VM_ENTRY_CONTROLS) &= ~BIT64(ENTRY_##name))
#define NON_CANONICAL 0x0000800000000000ull

static const u16 selectors[SEG_COUNT] = { 0x10, 0x08, 0x10, 0x10, 0x10, 0x10, 0, 0x20 };

/* A 64-bit guest under a 64-bit host, nothing optional in use. */
static void valid_snapshot(void)
{
    memset(f, 0, sizeof(f));
    memset(&s, 0, sizeof(s));
    caps = plain_caps;
    s.f = f;
    s.caps = &caps;
    s.maxphyaddr = 40;
    s.linear_width = 48;
    s.lma = true;
    s.efer_reserved = ~0xd01ull;
    s.pgc_reserved = ~0x7000000ffull;
    s.current_vmcs = 0x7000;
    s.msr_index = 0xc0000081;
    s.msr_writable = true;
    F(PIN_BASED_VM_EXEC_CONTROL) = caps.allowed0[WORD_PIN];
    F(CPU_BASED_VM_EXEC_CONTROL) = caps.allowed0[WORD_PRI];
    F(VM_EXIT_CONTROLS) = caps.allowed0[WORD_EXIT] | BIT64(EXIT_HOST_ADDRESS_SPACE_SIZE);
    F(VM_ENTRY_CONTROLS) = caps.allowed0[WORD_ENTRY] | BIT64(ENTRY_IA32E_GUEST);
    F(VMCS_LINK_POINTER) = ~0ull;
    F(HOST_CR0) = F(GUEST_CR0) = CR0_PE | CR0_PG | CR0_NE | CR0_WP | CR0_ET;
    F(HOST_CR4) = F(GUEST_CR4) = CR4_PAE | CR4_VMXE;
    F(HOST_CR3) = F(GUEST_CR3) = 0x1000;
    for (unsigned n = 0; n < SEG_COUNT; n++) {
        f[VMCS_GUEST_ES_SELECTOR + n] = selectors[n];
        f[VMCS_GUEST_ES_LIMIT + n] = n < SEG_LDTR ? 0xffffffff : 0x67;
        f[VMCS_GUEST_ES_AR_BYTES + n] = n == SEG_CS ? 0xa09b : n == SEG_LDTR ? 0x10000 : n == SEG_TR ? 0x8b : 0xc093;
        if (n < SEG_LDTR)
            f[VMCS_HOST_ES_SELECTOR + n] = selectors[n];
    }
    F(HOST_TR_SELECTOR) = 0x20;
    F(GUEST_RIP) = F(HOST_RIP) = 0xffffffff80000000ull;
    F(GUEST_RFLAGS) = FL_FIXED;
    F(GUEST_DR7) = DR7_FIXED;
}

/* A 32-bit guest and host with PAE paging. */
static void make_32bit(void)
{
    s.lma = false;
    CLEAR_ENTRY(IA32E_GUEST);
    CLEAR_EXIT(HOST_ADDRESS_SPACE_SIZE);
    F(GUEST_RIP) = F(HOST_RIP) = 0x1000;
    F(GUEST_CS_AR_BYTES) = 0xc09b;
}
static void make_v86(void)
{
    make_32bit();
    F(GUEST_RFLAGS) |= FL_VM;
    for (unsigned n = SEG_ES; n <= SEG_GS; n++) {
        f[VMCS_GUEST_ES_BASE + n] = f[VMCS_GUEST_ES_SELECTOR + n] << 4;
        f[VMCS_GUEST_ES_LIMIT + n] = 0xffff;
        f[VMCS_GUEST_ES_AR_BYTES + n] = 0xf3;
    }
}
static void use_ept(void)
{
    SET_SEC(EPT);
    F(EPT_POINTER) = 0x1e;
}
static void make_real_mode(void)
{
    make_32bit();
    use_ept();
    SET_SEC(UNRESTRICTED_GUEST);
    F(GUEST_CR0) = CR0_NE | CR0_ET;
    F(GUEST_CS_AR_BYTES) = 0x93;
    for (unsigned n = SEG_ES; n <= SEG_GS; n++)
        f[VMCS_GUEST_ES_LIMIT + n] = 0xffff, f[VMCS_GUEST_ES_AR_BYTES + n] = 0x93;
}
static void inject(unsigned type, unsigned vector) { F(VM_ENTRY_INTR_INFO_FIELD) = BIT(31) | type << 8 | vector; }
static void usable_ldtr(void) { F(GUEST_LDTR_AR_BYTES) = 0x82; }
static void posted(void)
{
    SET_PIN(EXTERNAL_INTERRUPT_EXITING);
    SET_PIN(POSTED_INTERRUPTS);
    SET_PRI(TPR_SHADOW);
    SET_SEC(VIRTUAL_INTERRUPT_DELIVERY);
    SET_EXIT(ACK_INTERRUPT);
}
static void ipi_virtualization(void)
{
    SET_PRI(TPR_SHADOW);
    SET_PRI(TERTIARY_CONTROLS);
    F(TERTIARY_VM_EXEC_CONTROL) = BIT64(TER_IPI_VIRTUALIZATION);
    F(PID_POINTER_TABLE) = 0x5008;
    F(LAST_PID_POINTER_INDEX) = 1;
}
static void vmfunc(void)
{
    use_ept();
    SET_SEC(VM_FUNCTIONS);
    F(VM_FUNCTION_CONTROL) = 1;
}
static void linked(void)
{
    F(VMCS_LINK_POINTER) = 0x9000;
    s.link_word = VMX_REVISION;
}

/* ---- the witnesses ---- */
#define WITNESSES(W)                                                                                          \
    W(EXEC_PIN_ALLOWED, F(PIN_BASED_VM_EXEC_CONTROL) &= ~BIT64(1))                                             \
    W(EXEC_PRI_ALLOWED, F(CPU_BASED_VM_EXEC_CONTROL) |= BIT64(0))                                              \
    W(EXEC_SEC_ALLOWED, SET_SEC(BUS_LOCK_DETECTION))                                                           \
    W(EXEC_TER_ALLOWED, SET_PRI(TERTIARY_CONTROLS), F(TERTIARY_VM_EXEC_CONTROL) = BIT64(63))                   \
    W(EXEC_CR3_TARGET_COUNT, F(CR3_TARGET_COUNT) = 5)                                                          \
    W(EXEC_IO_BITMAP_A, SET_PRI(IO_BITMAPS), F(IO_BITMAP_A) = 0x1800)                                          \
    W(EXEC_IO_BITMAP_B, SET_PRI(IO_BITMAPS), F(IO_BITMAP_B) = BIT64(40))                                       \
    W(EXEC_MSR_BITMAP, SET_PRI(MSR_BITMAPS), F(MSR_BITMAP) = 1)                                                \
    W(EXEC_VAPIC_ADDR, SET_PRI(TPR_SHADOW), F(VIRTUAL_APIC_PAGE_ADDR) = 0x10)                                  \
    W(EXEC_TPR_THRESHOLD_RSVD, SET_PRI(TPR_SHADOW), F(TPR_THRESHOLD) = 0x10)                                   \
    W(EXEC_TPR_THRESHOLD_VTPR, SET_PRI(TPR_SHADOW), F(TPR_THRESHOLD) = 3, s.vtpr = 0x2f)                       \
    W(EXEC_VNMI_NEEDS_NMI_EXIT, SET_PIN(VIRTUAL_NMIS))                                                         \
    W(EXEC_NMI_WINDOW_NEEDS_VNMI, SET_PIN(NMI_EXITING), SET_PRI(NMI_WINDOW_EXITING))                           \
    W(EXEC_APIC_ACCESS_ADDR, SET_SEC(VIRTUALIZE_APIC_ACCESSES), F(APIC_ACCESS_ADDR) = 0xfee00800)              \
    W(EXEC_TPR_SHADOW_DEPS, SET_SEC(APIC_REGISTER_VIRTUALIZATION))                                             \
    W(EXEC_X2APIC_XOR_APICACC, SET_PRI(TPR_SHADOW), SET_SEC(VIRTUALIZE_X2APIC_MODE), SET_SEC(VIRTUALIZE_APIC_ACCESSES)) \
    W(EXEC_VID_NEEDS_EXTINT, SET_PRI(TPR_SHADOW), SET_SEC(VIRTUAL_INTERRUPT_DELIVERY))                         \
    W(EXEC_PI_DEPS, posted(), CLEAR_EXIT(ACK_INTERRUPT))                                                       \
    W(EXEC_PI_NV, posted(), F(POSTED_INTR_NV) = 0x100)                                                         \
    W(EXEC_PI_DESC, posted(), F(POSTED_INTR_DESC_ADDR) = 0x20)                                                 \
    W(EXEC_IPIV_TABLE, ipi_virtualization(), F(PID_POINTER_TABLE) = (1ull << 40) - 8)                          \
    W(EXEC_VPID_NONZERO, SET_SEC(VPID))                                                                        \
    W(EXEC_EPTP_MEMTYPE, use_ept(), F(EPT_POINTER) = 0x1c)                                                     \
    W(EXEC_EPTP_WALK, use_ept(), F(EPT_POINTER) = 0x2e)                                                        \
    W(EXEC_EPTP_AD, use_ept(), F(EPT_POINTER) |= BIT64(6), caps.ept_vpid &= ~VMX_EPT_AD)                       \
    W(EXEC_EPTP_SSS, use_ept(), F(EPT_POINTER) |= BIT64(7))                                                    \
    W(EXEC_EPTP_RSVD, use_ept(), F(EPT_POINTER) |= BIT64(9))                                                   \
    W(EXEC_PML_NEEDS_EPT, SET_SEC(PML))                                                                        \
    W(EXEC_PML_ADDR, use_ept(), SET_SEC(PML), F(PML_ADDRESS) = 8)                                              \
    W(EXEC_URG_NEEDS_EPT, SET_SEC(UNRESTRICTED_GUEST))                                                         \
    W(EXEC_MBEC_NEEDS_EPT, SET_SEC(MODE_BASED_EXECUTE))                                                        \
    W(EXEC_VMFUNC_ALLOWED, vmfunc(), F(VM_FUNCTION_CONTROL) = 2)                                               \
    W(EXEC_EPTP_SWITCH_NEEDS_EPT, SET_SEC(VM_FUNCTIONS), F(VM_FUNCTION_CONTROL) = 1)                           \
    W(EXEC_EPTP_LIST, vmfunc(), F(EPTP_LIST_ADDRESS) = 8)                                                      \
    W(EXEC_VMREAD_BM, SET_SEC(VMCS_SHADOWING), F(VMREAD_BITMAP) = 8)                                           \
    W(EXEC_VMWRITE_BM, SET_SEC(VMCS_SHADOWING), F(VMWRITE_BITMAP) = 8)                                         \
    W(EXEC_VE_INFO, use_ept(), SET_SEC(EPT_VIOLATION_VE), F(VE_INFORMATION_ADDRESS) = 8)                       \
    W(EXEC_TSC_MULT, SET_SEC(TSC_SCALING))                                                                     \
    W(EXIT_ALLOWED, F(VM_EXIT_CONTROLS) &= ~BIT64(0))                                                          \
    W(EXIT_SAVE_PREEMPT, SET_EXIT(SAVE_PREEMPTION_TIMER))                                                      \
    W(EXIT_MSR_STORE_ADDR, F(VM_EXIT_MSR_STORE_COUNT) = 1, F(VM_EXIT_MSR_STORE_ADDR) = 8)                      \
    W(EXIT_MSR_LOAD_ADDR, F(VM_EXIT_MSR_LOAD_COUNT) = 2, F(VM_EXIT_MSR_LOAD_ADDR) = BIT64(40) - 16)            \
    W(ENTRY_ALLOWED, F(VM_ENTRY_CONTROLS) &= ~BIT64(0))                                                        \
    W(INJ_TYPE_RSVD, inject(1, 0))                                                                             \
    W(INJ_VEC_NMI, inject(EV_NMI, 3))                                                                          \
    W(INJ_VEC_HWEXC, inject(EV_HARD_EXC, 32))                                                                  \
    W(INJ_VEC_OTHER, inject(EV_OTHER, 1))                                                                      \
    W(INJ_EC_TYPE, inject(EV_EXTINT, 13 | BIT(11)))                                                            \
    W(INJ_EC_REALMODE, make_real_mode(), inject(EV_HARD_EXC, 13 | BIT(11)))                                    \
    W(INJ_EC_REQUIRED, inject(EV_HARD_EXC, VEC_GP))                                                            \
    W(INJ_RSVD, inject(EV_HARD_EXC, VEC_UD | BIT(12)))                                                         \
    W(INJ_EC_HI, inject(EV_HARD_EXC, VEC_GP | BIT(11)), F(VM_ENTRY_EXCEPTION_ERROR_CODE) = BIT(16))            \
    W(INJ_ILEN, inject(EV_SOFT_INT, 0x80), F(VM_ENTRY_INSTRUCTION_LEN) = 16)                                   \
    W(ENTRY_MSR_LOAD_ADDR, F(VM_ENTRY_MSR_LOAD_COUNT) = 1, F(VM_ENTRY_MSR_LOAD_ADDR) = 4)                      \
    W(ENTRY_SMM, caps.allowed1[WORD_ENTRY] |= BIT64(ENTRY_TO_SMM), SET_ENTRY(TO_SMM))                          \
    W(HOST_CR0_FIXED, F(HOST_CR0) &= ~CR0_NE)                                                                  \
    W(HOST_CR4_FIXED, F(HOST_CR4) &= ~CR4_VMXE)                                                                \
    W(HOST_CET_NEEDS_WP, F(HOST_CR4) |= CR4_CET, F(HOST_CR0) &= ~CR0_WP)                                       \
    W(HOST_CR3_WIDTH, F(HOST_CR3) |= BIT64(40))                                                                \
    W(HOST_SYSENTER_ESP, F(HOST_IA32_SYSENTER_ESP) = NON_CANONICAL)                                            \
    W(HOST_SYSENTER_EIP, F(HOST_IA32_SYSENTER_EIP) = NON_CANONICAL)                                            \
    W(HOST_PGC, SET_EXIT(LOAD_PERF_GLOBAL_CTRL), F(HOST_IA32_PERF_GLOBAL_CTRL) = BIT64(8))                     \
    W(HOST_PAT, SET_EXIT(LOAD_PAT), F(HOST_IA32_PAT) = 2)                                                      \
    W(HOST_EFER_RSVD, SET_EXIT(LOAD_EFER), F(HOST_IA32_EFER) = EFER_LMA | EFER_LME | 2)                        \
    W(HOST_EFER_LMA_LME, SET_EXIT(LOAD_EFER), F(HOST_IA32_EFER) = EFER_LMA)                                    \
    W(HOST_CET_S_CET, SET_EXIT(LOAD_CET), F(HOST_S_CET) = BIT64(6))                                            \
    W(HOST_CET_SSP, SET_EXIT(LOAD_CET), F(HOST_SSP) = 1)                                                       \
    W(HOST_CET_TABLE, SET_EXIT(LOAD_CET), F(HOST_INTR_SSP_TABLE) = NON_CANONICAL)                              \
    W(HOST_PKRS, SET_EXIT(LOAD_PKRS), F(HOST_IA32_PKRS) = BIT64(32))                                           \
    W(HOST_SEL_RPL_TI, F(HOST_DS_SELECTOR) |= 3)                                                               \
    W(HOST_CS_NULL, F(HOST_CS_SELECTOR) = 0)                                                                   \
    W(HOST_TR_NULL, F(HOST_TR_SELECTOR) = 0)                                                                   \
    W(HOST_SS_NULL, make_32bit(), F(HOST_SS_SELECTOR) = 0)                                                     \
    W(HOST_BASE_CANON, F(HOST_GDTR_BASE) = NON_CANONICAL)                                                      \
    W(HASZ_NOT_LMA, make_32bit(), SET_ENTRY(IA32E_GUEST), SET_EXIT(HOST_ADDRESS_SPACE_SIZE))                   \
    W(HASZ_LMA, CLEAR_EXIT(HOST_ADDRESS_SPACE_SIZE))                                                           \
    W(HASZ_32, make_32bit(), F(HOST_RIP) = BIT64(32))                                                          \
    W(HASZ_64, F(HOST_RIP) = NON_CANONICAL)                                                                    \
    W(GUEST_CR0_FIXED, F(GUEST_CR0) &= ~CR0_NE)                                                                \
    W(GUEST_PG_NEEDS_PE, make_real_mode(), F(GUEST_CR0) |= CR0_PG)                                             \
    W(GUEST_CR4_FIXED, F(GUEST_CR4) &= ~CR4_VMXE)                                                              \
    W(GUEST_CET_NEEDS_WP, F(GUEST_CR4) |= CR4_CET, F(GUEST_CR0) &= ~CR0_WP)                                    \
    W(GUEST_DEBUGCTL, SET_ENTRY(LOAD_DEBUG), F(GUEST_IA32_DEBUGCTL) = BIT64(3))                                \
    W(GUEST_IA32E_PG_PAE, F(GUEST_CR4) &= ~CR4_PAE)                                                            \
    W(GUEST_NOT_IA32E_PCIDE, make_32bit(), F(GUEST_CR4) |= CR4_PCIDE)                                          \
    W(GUEST_CR3_WIDTH, F(GUEST_CR3) |= BIT64(63))                                                              \
    W(GUEST_DR7_HI, SET_ENTRY(LOAD_DEBUG), F(GUEST_DR7) |= BIT64(32))                                          \
    W(GUEST_SYSENTER_ESP, F(GUEST_SYSENTER_ESP) = NON_CANONICAL)                                               \
    W(GUEST_SYSENTER_EIP, F(GUEST_SYSENTER_EIP) = NON_CANONICAL)                                               \
    W(GUEST_CET_S_CET, SET_ENTRY(LOAD_CET), F(GUEST_S_CET) = BITS64(11, 10))                                   \
    W(GUEST_CET_TABLE, SET_ENTRY(LOAD_CET), F(GUEST_INTR_SSP_TABLE) = NON_CANONICAL)                           \
    W(GUEST_PGC, SET_ENTRY(LOAD_PERF_GLOBAL_CTRL), F(GUEST_IA32_PERF_GLOBAL_CTRL) = BIT64(35))                 \
    W(GUEST_PAT, SET_ENTRY(LOAD_PAT), F(GUEST_IA32_PAT) = 8ull << 56)                                          \
    W(GUEST_EFER_RSVD, SET_ENTRY(LOAD_EFER), F(GUEST_IA32_EFER) = EFER_LMA | EFER_LME | BIT64(63))             \
    W(GUEST_EFER_LMA, SET_ENTRY(LOAD_EFER), F(GUEST_IA32_EFER) = EFER_LME)                                     \
    W(GUEST_EFER_LME, SET_ENTRY(LOAD_EFER), F(GUEST_IA32_EFER) = EFER_LMA)                                     \
    W(GUEST_PKRS, SET_ENTRY(LOAD_PKRS), F(GUEST_IA32_PKRS) = BIT64(32))                                        \
    W(SEG_TR_TI, F(GUEST_TR_SELECTOR) |= 4)                                                                    \
    W(SEG_LDTR_TI, usable_ldtr(), F(GUEST_LDTR_SELECTOR) = 4)                                                  \
    W(SEG_SS_RPL_CS, F(GUEST_SS_SELECTOR) |= 3)                                                                \
    W(SEG_V86_BASE, make_v86(), F(GUEST_FS_BASE) += 16)                                                        \
    W(SEG_BASE_CANON, F(GUEST_FS_BASE) = NON_CANONICAL)                                                        \
    W(SEG_BASE_HI, F(GUEST_DS_BASE) = BIT64(32))                                                               \
    W(SEG_V86_LIMIT, make_v86(), F(GUEST_GS_LIMIT) = 0xfffe)                                                   \
    W(SEG_V86_AR, make_v86(), F(GUEST_SS_AR_BYTES) = 0x93)                                                     \
    W(SEG_CS_TYPE, F(GUEST_CS_AR_BYTES) = 0xa09a)                                                              \
    W(SEG_SS_TYPE, F(GUEST_SS_AR_BYTES) = 0xc091)                                                              \
    W(SEG_DATA_TYPE, F(GUEST_ES_AR_BYTES) = 0xc092)                                                            \
    W(SEG_S, F(GUEST_DS_AR_BYTES) &= ~0x10ull)                                                                 \
    W(SEG_CS_DPL, F(GUEST_CS_AR_BYTES) |= 0x60)                                                                \
    W(SEG_SS_DPL_RPL, F(GUEST_CS_SELECTOR) |= 3, F(GUEST_SS_SELECTOR) |= 3)                                    \
    W(SEG_SS_DPL_ZERO, make_real_mode(), F(GUEST_SS_AR_BYTES) |= 0x60)                                         \
    W(SEG_DATA_DPL, F(GUEST_DS_SELECTOR) |= 3)                                                                 \
    W(SEG_P, F(GUEST_GS_AR_BYTES) &= ~0x80ull)                                                                 \
    W(SEG_AR_RSVD, F(GUEST_DS_AR_BYTES) |= 0x100)                                                              \
    W(SEG_CS_DB, F(GUEST_CS_AR_BYTES) |= 0x4000)                                                               \
    W(SEG_G, F(GUEST_ES_LIMIT) = 0xffffe)                                                                      \
    W(SEG_TR_TYPE, F(GUEST_TR_AR_BYTES) = 0x83)                                                                \
    W(SEG_TR_S, F(GUEST_TR_AR_BYTES) |= 0x10)                                                                  \
    W(SEG_TR_P, F(GUEST_TR_AR_BYTES) &= ~0x80ull)                                                              \
    W(SEG_TR_RSVD, F(GUEST_TR_AR_BYTES) |= BIT(17))                                                            \
    W(SEG_TR_G, F(GUEST_TR_AR_BYTES) |= 0x8000)                                                                \
    W(SEG_TR_USABLE, F(GUEST_TR_AR_BYTES) |= 0x10000)                                                          \
    W(SEG_LDTR_TYPE, usable_ldtr(), F(GUEST_LDTR_AR_BYTES) = 0x83)                                             \
    W(SEG_LDTR_S, usable_ldtr(), F(GUEST_LDTR_AR_BYTES) = 0x92)                                                \
    W(SEG_LDTR_P, usable_ldtr(), F(GUEST_LDTR_AR_BYTES) = 0x02)                                                \
    W(SEG_LDTR_RSVD, usable_ldtr(), F(GUEST_LDTR_AR_BYTES) |= 0x800)                                           \
    W(SEG_LDTR_G, usable_ldtr(), F(GUEST_LDTR_LIMIT) = 0x100000)                                               \
    W(GDTR_BASE, F(GUEST_GDTR_BASE) = NON_CANONICAL)                                                           \
    W(IDTR_BASE, F(GUEST_IDTR_BASE) = NON_CANONICAL)                                                           \
    W(GDTR_LIMIT, F(GUEST_GDTR_LIMIT) = 0x10000)                                                               \
    W(IDTR_LIMIT, F(GUEST_IDTR_LIMIT) = 0x10000)                                                               \
    W(RIP_32, make_32bit(), F(GUEST_RIP) = BIT64(32))                                                          \
    W(RIP_64, F(GUEST_RIP) = BIT64(50))                                                                        \
    W(RFLAGS_RSVD, F(GUEST_RFLAGS) |= BIT64(15))                                                               \
    W(RFLAGS_VM, make_v86(), use_ept(), SET_SEC(UNRESTRICTED_GUEST), F(GUEST_CR0) &= ~(CR0_PE | CR0_PG))       \
    W(RFLAGS_IF_EXTINT, inject(EV_EXTINT, 0x30))                                                               \
    W(SSP, SET_ENTRY(LOAD_CET), F(GUEST_SSP) = 2)                                                              \
    W(ACT_SUPPORTED, F(GUEST_ACTIVITY_STATE) = 4)                                                              \
    W(ACT_HLT_DPL, F(GUEST_ACTIVITY_STATE) = 1, F(GUEST_CS_AR_BYTES) |= 0x60, F(GUEST_CS_SELECTOR) |= 3,       \
      F(GUEST_SS_AR_BYTES) |= 0x60, F(GUEST_SS_SELECTOR) |= 3)                                                 \
    W(ACT_BLOCKING, F(GUEST_ACTIVITY_STATE) = 1, F(GUEST_INTERRUPTIBILITY_INFO) = 2)                           \
    W(ACT_INJ_HLT, F(GUEST_ACTIVITY_STATE) = 1, inject(EV_HARD_EXC, VEC_UD))                                   \
    W(ACT_INJ_SHUTDOWN, F(GUEST_ACTIVITY_STATE) = 2, inject(EV_HARD_EXC, VEC_DB))                              \
    W(ACT_INJ_WFS, F(GUEST_ACTIVITY_STATE) = 3, inject(EV_NMI, VEC_NMI))                                       \
    W(ACT_SMM_WFS, caps.allowed1[WORD_ENTRY] |= BIT64(ENTRY_TO_SMM), s.smm = true, SET_ENTRY(TO_SMM),          \
      F(GUEST_INTERRUPTIBILITY_INFO) = 4, F(GUEST_ACTIVITY_STATE) = 3)                                         \
    W(INT_RSVD, F(GUEST_INTERRUPTIBILITY_INFO) = 0x20)                                                         \
    W(INT_STI_MOVSS, F(GUEST_INTERRUPTIBILITY_INFO) = 3, F(GUEST_RFLAGS) |= FL_IF)                             \
    W(INT_STI_IF, F(GUEST_INTERRUPTIBILITY_INFO) = 1)                                                          \
    W(INT_EXTINT_BLOCK, F(GUEST_RFLAGS) |= FL_IF, F(GUEST_INTERRUPTIBILITY_INFO) = 1, inject(EV_EXTINT, 0x30)) \
    W(INT_NMI_MOVSS, F(GUEST_INTERRUPTIBILITY_INFO) = 2, inject(EV_NMI, VEC_NMI))                              \
    W(INT_SMI, F(GUEST_INTERRUPTIBILITY_INFO) = 4)                                                             \
    W(INT_VNMI, SET_PIN(NMI_EXITING), SET_PIN(VIRTUAL_NMIS), F(GUEST_INTERRUPTIBILITY_INFO) = 8, inject(EV_NMI, VEC_NMI)) \
    W(INT_ENCLAVE, F(GUEST_INTERRUPTIBILITY_INFO) = 16)                                                        \
    W(PDBG_RSVD, F(GUEST_PENDING_DBG_EXCEPTIONS) = BIT64(4))                                                   \
    W(PDBG_BS, F(GUEST_INTERRUPTIBILITY_INFO) = 2, F(GUEST_RFLAGS) |= FL_TF)                                   \
    W(PDBG_RTM, F(GUEST_PENDING_DBG_EXCEPTIONS) = BIT64(16) | BIT64(12))                                       \
    W(LINK_ALIGN, linked(), F(VMCS_LINK_POINTER) = 0x9010)                                                     \
    W(LINK_REVID, linked(), s.link_word++)                                                                     \
    W(LINK_SHADOW_BIT, linked(), s.link_word |= BIT(31))                                                       \
    W(LINK_CURRENT, linked(), F(VMCS_LINK_POINTER) = s.current_vmcs)                                           \
    W(PDPTE_RSVD, make_32bit(), s.pdpte[2] = 0x3003)                                                           \
    W(MSRL_RSVD, s.msr_reserved = 1)                                                                           \
    W(MSRL_FSGS, s.msr_index = 0xc0000100)                                                                     \
    W(MSRL_X2APIC, s.msr_index = 0x808)                                                                        \
    W(MSRL_SMM, s.msr_index = 0x9b)                                                                            \
    W(MSRL_MODEL, s.msr_index = 0)                                                                             \
    W(MSRL_WRMSR_GP, s.msr_writable = false)

#define W(id, ...) static void witness_##id(void) { (void)(__VA_ARGS__); }
WITNESSES(W)
#undef W

static const struct {
    const char *id;
    void (*change)(void);
} witnesses[] = {
#define W(id, ...) { #id, witness_##id },
    WITNESSES(W)
#undef W
};

static const struct virt_check *first_failure(void) { return vmx_check_first_failure(&s, STAGE_CONTROLS, STAGE_MSR_LOAD); }

static void expect_valid(const char *what)
{
    const struct virt_check *c = first_failure();
    if (c)
        fail_msg("%s is refused by %s: %s", what, c->id, c->rule);
}

static void test_valid(void **state)
{
    static const struct { const char *name; void (*make)(void); } states[] = {
        { "a 32-bit guest", make_32bit }, { "a virtual-8086 guest", make_v86 }, { "a real-mode guest", make_real_mode },
        { "posted interrupts", posted }, { "IPI virtualization", ipi_virtualization }, { "VM functions", vmfunc }, { "a linked VMCS", linked }, { "a usable LDTR", usable_ldtr },
    };
    valid_snapshot();
    expect_valid("a 64-bit guest");
    for (unsigned i = 0; i < ARRAY_SIZE(states); i++) {
        valid_snapshot();
        states[i].make();
        expect_valid(states[i].name);
    }
}

static void test_witnesses(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(witnesses); i++) {
        valid_snapshot();
        witnesses[i].change();
        const struct virt_check *c = first_failure();
        if (!c || strcmp(c->id, witnesses[i].id))
            fail_msg("witness of %s: first failure is %s", witnesses[i].id, c ? c->id : "none");
    }
}

/* The predicates that note what they read say the same as the processor's, and read what the row declares. */
static void compare_tracked(const char *state_name)
{
    unsigned n;
    const struct virt_check *rows = vmx_check_table(&n);
    for (unsigned r = 0; r < n; r++) {
        struct vmx_reads reads;
        assert_int_equal(vmx_check_tracked(r, &s, &reads), virt_check_run(&rows[r], &s));
        for (unsigned slot = 0; slot < VMCS_SLOT_COUNT; slot++) {
            bool declared = false;
            for (unsigned k = 0; k < rows[r].nfields; k++)
                declared |= vmcs_slot(rows[r].fields[k]) == (int)slot
                    /* the secondary controls count only when the primary ones activate them: SEC() */
                    || (slot == VMCS_CPU_BASED_VM_EXEC_CONTROL && rows[r].fields[k] == ENC_SECONDARY_VM_EXEC_CONTROL);
            if (reads.fields[slot / 64] >> (slot % 64) & 1 && !declared)
                fail_msg("%s reads %s, which its row does not name (state %s)", rows[r].id, vmcs_fields[slot].name, state_name);
        }
    }
}
static void test_tracked(void **state)
{
    valid_snapshot();
    compare_tracked("valid");
    for (unsigned i = 0; i < ARRAY_SIZE(witnesses); i++) {
        valid_snapshot();
        witnesses[i].change();
        compare_tracked(witnesses[i].id);
    }
}

static void test_every_row_has_a_witness(void **state)
{
    unsigned n, missing = 0;
    const struct virt_check *rows = vmx_check_table(&n);
    for (unsigned r = 0; r < n; r++) {
        bool found = false;
        for (unsigned i = 0; i < ARRAY_SIZE(witnesses); i++)
            found |= !strcmp(rows[r].id, witnesses[i].id);
        if (!found) {
            print_error("no witness of %s\n", rows[r].id);
            missing++;
        }
    }
    assert_int_equal(missing, 0);
    assert_int_equal(n, ARRAY_SIZE(witnesses));
}

static void test_rows(void **state)
{
    unsigned n;
    const struct virt_check *rows = vmx_check_table(&n);
    for (unsigned r = 0; r < n; r++) {
        for (unsigned o = 0; o < r; o++)
            assert_string_not_equal(rows[r].id, rows[o].id);
        if (r)
            assert_true(rows[r].stage >= rows[r - 1].stage);
        assert_true(rows[r].nfields > 0);
        for (unsigned k = 0; k < rows[r].nfields; k++)
            assert_true(vmcs_slot(rows[r].fields[k]) >= 0);
        if (rows[r].qualification)
            assert_int_equal(rows[r].stage, STAGE_GUEST);
    }
}

/* Every vector with every combination of type and error code: which the manual's table accepts. */
static void test_error_code_vectors(void **state)
{
    const u32 with_error = BIT(8) | BIT(10) | BIT(11) | BIT(12) | BIT(13) | BIT(14) | BIT(17) | BIT(21);
    for (unsigned vector = 0; vector < 256; vector++)
        for (unsigned has = 0; has < 2; has++) {
            valid_snapshot();
            F(GUEST_RFLAGS) |= FL_IF;
            inject(EV_HARD_EXC, vector | has << 11);
            assert_int_equal(first_failure() == NULL, vector < 32 && (with_error >> vector & 1) == has);
            inject(EV_EXTINT, vector | has << 11);
            assert_int_equal(first_failure() == NULL, !has);
            inject(EV_SOFT_INT, vector | has << 11);
            assert_int_equal(first_failure() == NULL, !has);
        }
}

static void test_single_step_relation(void **state)
{
    for (unsigned bits = 0; bits < 8; bits++) {
        bool tf = bits & 1, btf = bits & 2, bs = bits & 4;
        valid_snapshot();
        F(GUEST_INTERRUPTIBILITY_INFO) = 2;
        F(GUEST_RFLAGS) |= tf ? FL_TF : 0;
        F(GUEST_IA32_DEBUGCTL) = btf ? DEBUGCTL_BTF : 0;
        F(GUEST_PENDING_DBG_EXCEPTIONS) = bs ? DR6_BS : 0;
        assert_int_equal(first_failure() == NULL, bs == (tf && !btf));
    }
}

/* ---- fields ---- */
static void test_fields(void **state)
{
    for (unsigned i = 0; i < VMCS_SLOT_COUNT; i++) {
        const struct vmcs_field *a = vmcs_field_info(i);
        assert_int_equal(vmcs_slot(a->encoding), i);
        assert_int_equal(a->encoding & 1, 0);
        assert_int_equal(a->encoding & 0x9380, 0);
        for (unsigned k = 0; k < i; k++) {
            assert_int_not_equal(a->encoding, vmcs_fields[k].encoding);
            assert_string_not_equal(a->name, vmcs_fields[k].name);
            assert_true(a->evmcs_offset < 0 || a->evmcs_offset != vmcs_fields[k].evmcs_offset);
        }
        /* The high half exists of 64-bit fields only. */
        assert_int_equal(vmcs_slot(a->encoding | 1), vmcs_width(a->encoding) == VMCS_64 ? (int)i : -1);
        assert_int_equal(a->evmcs_offset >= 0, a->evmcs_group != EVMCS_NONE);
        if (a->evmcs_offset >= 0)
            assert_true(a->evmcs_offset % vmcs_bytes(a->encoding) == 0 && a->evmcs_offset + vmcs_bytes(a->encoding) <= 0x400);
        if (a->evmcs_group == EVMCS_OUTPUT)
            assert_int_equal(vmcs_kind(a->encoding), VMCS_READ_ONLY);
    }
    assert_null(vmcs_field_info(VMCS_SLOT_COUNT));
    assert_int_equal(vmcs_slot(0x10000), -1);
    assert_int_equal(vmcs_slot(ENC_GUEST_RIP | 0x1000), -1);
}

static void test_field_access(void **state)
{
    assert_int_equal(vmcs_put(0, ENC_GUEST_CS_SELECTOR, 0x12345), 0x2345);
    assert_int_equal(vmcs_put(0, ENC_EXCEPTION_BITMAP, ~0ull), 0xffffffff);
    assert_int_equal(vmcs_put(0x1111111122222222ull, ENC_TSC_OFFSET | 1, 0x33333333), 0x3333333322222222ull);
    assert_int_equal(vmcs_get(0x1111111122222222ull, ENC_TSC_OFFSET | 1), 0x11111111);
    assert_int_equal(vmcs_put(0, ENC_GUEST_RIP, ~0ull), ~0ull);
}

/* ---- capabilities ---- */
static void test_capabilities(void **state)
{
    static const struct { u32 plain, with_true; enum vmx_word word; } words[] = {
        { 0x481, 0x48d, WORD_PIN }, { 0x482, 0x48e, WORD_PRI }, { 0x483, 0x48f, WORD_EXIT }, { 0x484, 0x490, WORD_ENTRY },
    };
    u64 a, b;
    assert_true(vmx_caps_msr(&plain_caps, 0x480, &a));
    assert_true(a & BIT64(55));
    assert_int_equal(a & BIT64(31), 0);
    assert_true(bits_get(a, 44, 32) >= 1024 && bits_get(a, 44, 32) <= 4096);
    assert_int_equal(bits_get(a, 53, 50), 6);
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        assert_true(vmx_caps_msr(&plain_caps, words[i].plain, &a));
        assert_true(vmx_caps_msr(&plain_caps, words[i].with_true, &b));
        /* What must be 1 may be 1; TRUE loosens, and only the allowed-0 half differs. */
        assert_int_equal((u32)a & ~(a >> 32), 0);
        assert_int_equal((u32)b & ~(b >> 32), 0);
        assert_int_equal((u32)b & ~(u32)a, 0);
        assert_int_equal(a >> 32, b >> 32);
    }
    assert_true(vmx_caps_msr(&plain_caps, 0x48b, &a));
    assert_int_equal((u32)a, 0);
    assert_true(vmx_caps_msr(&plain_caps, 0x482, &a));
    assert_int_equal((u32)a, 0x0401e172);
    assert_true(vmx_caps_msr(&plain_caps, 0x48e, &a));
    assert_int_equal((u32)a, 0x04006172);
    assert_true(vmx_caps_msr(&plain_caps, 0x483, &a));
    assert_int_equal((u32)a, 0x00036dff);
    assert_true(vmx_caps_msr(&plain_caps, 0x484, &a));
    assert_int_equal((u32)a, 0x000011ff);
    assert_true(vmx_caps_msr(&plain_caps, 0x486, &a));
    assert_true(vmx_caps_msr(&plain_caps, 0x487, &b));
    assert_int_equal(a & ~b, 0);
    assert_true(vmx_caps_msr(&plain_caps, 0x488, &a));
    assert_true(vmx_caps_msr(&plain_caps, 0x489, &b));
    assert_int_equal(a & ~b, 0);
    assert_true(vmx_caps_msr(&plain_caps, 0x492, &a));
    assert_int_equal(a, BIT64(TER_IPI_VIRTUALIZATION));
    assert_false(vmx_caps_msr(&plain_caps, 0x493, &a)); /* no secondary exit controls */
    assert_false(vmx_caps_msr(&plain_caps, 0x47f, &a));
    for (unsigned n = 0; n < CTL_COUNT; n++)
        for (unsigned o = 0; o < n; o++)
            assert_false(vmx_controls[n].word == vmx_controls[o].word && vmx_controls[n].bit == vmx_controls[o].bit);
    /* A field exists exactly when its control is offered. */
    for (unsigned i = 0; i < VMCS_SLOT_COUNT; i++)
        assert_int_equal(vmcs_exists(&plain_caps, i), vmx_offers(&plain_caps, vmcs_fields[i].control));
    assert_false(vmcs_exists(&plain_caps, VMCS_HLAT_POINTER));
    assert_true(vmcs_exists(&plain_caps, VMCS_GUEST_RIP));
}

static int setup(void **state)
{
    struct vcpu *v = calloc(1, sizeof(*v));
    memset(v->features, 1, sizeof(v->features));
    vmx_caps_init(&plain_caps, v);
    free(v);
    return 0;
}

/* ---- the cheaper way ---- */

static struct vmx_again again;
static const struct virt_check *first_failure_again(void)
{
    vmx_again_begin(&again, &s);
    const struct virt_check *c = vmx_again_first_failure(&again, &s, STAGE_CONTROLS, STAGE_HOST);
    return c ? c : vmx_again_first_failure(&again, &s, STAGE_GUEST, STAGE_GUEST);
}

static void expect_same(const char *what)
{
    const struct virt_check *all = vmx_check_first_failure(&s, STAGE_CONTROLS, STAGE_GUEST), *few = first_failure_again();
    if (all != few)
        fail_msg("%s: all rows say %s, those that changed %s", what, all ? all->id : "nothing", few ? few->id : "nothing");
}

/* Every witness, and random changes, after an entry that passed. */
static void test_again(void **state)
{
    void (*const states[])(void) = { valid_snapshot, make_32bit, make_v86, make_real_mode, use_ept, posted };
    u64 seed = 0x9e3779b97f4a7c15ull;
    unsigned few = 0;
    for (unsigned n = 0; n < ARRAY_SIZE(witnesses); n++) {
        valid_snapshot();
        expect_same("a valid state");
        if (n % 2)
            states[n / 2 % ARRAY_SIZE(states)]();
        expect_same("another state");
        valid_snapshot();
        expect_same("the valid state once more");
        witnesses[n].change();
        expect_same(witnesses[n].id);
    }
    for (unsigned n = 0; n < 20000; n++) {
        if (n % 16 == 0) {
            valid_snapshot();
            states[n / 16 % ARRAY_SIZE(states)]();
            expect_same("a state to begin with");
        }
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        unsigned slot = (unsigned)(seed >> 33) % VMCS_SLOT_COUNT;
        u64 before = f[slot];
        f[slot] = vmcs_put(0, vmcs_fields[slot].encoding, seed >> 20 & 1 ? f[slot] ^ BIT64(seed >> 58) : f[(unsigned)(seed >> 40) % VMCS_SLOT_COUNT]);
        few += again.passed;
        expect_same(vmcs_fields[slot].name);
        if (!again.passed) {
            f[slot] = before;
            expect_same("taken back");
        }
    }
    assert_true(few > 10000); /* or this has tested nothing */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid), cmocka_unit_test(test_witnesses), cmocka_unit_test(test_tracked), cmocka_unit_test(test_again), cmocka_unit_test(test_every_row_has_a_witness),
        cmocka_unit_test(test_rows), cmocka_unit_test(test_error_code_vectors), cmocka_unit_test(test_single_step_relation),
        cmocka_unit_test(test_fields), cmocka_unit_test(test_field_access), cmocka_unit_test(test_capabilities),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
