/*
 * VT-x as the emulated processor offers it: the state of VMX operation and the tables behind it.
 * All of src/vmx follows the Intel SDM, order number 325462, chapter numbers as of 2023
 * ("VM Entries" is 27); code cites titles.
 */
#pragma once
#include "base/clock.h"
#include "base/log.h"
#include "cpu/cpu.h"
#include "cpu/virt_check.h"

/* ---- controls (controls.def) ---- */
enum vmx_word { WORD_PIN, WORD_PRI, WORD_SEC, WORD_TER, WORD_EXIT, WORD_ENTRY, WORD_VMFUNC, WORD_COUNT };

/* Bit numbers: PIN_NMI_EXITING, SEC_EPT, ... */
enum {
#define VMX_CONTROL(word, name, bit, true0, offered, evmcs) word##_##name = bit,
#include "vmx/controls.def"
#undef VMX_CONTROL
};

/* Row numbers in the table of controls: CTL_PIN_NMI_EXITING, ... */
enum vmx_control_index {
#define VMX_CONTROL(word, name, bit, true0, offered, evmcs) CTL_##word##_##name,
#include "vmx/controls.def"
#undef VMX_CONTROL
    CTL_COUNT,
    CTL_ALWAYS,
    CTL_NEVER,
};

struct vmx_control {
    const char *name;
    u8 word; /* enum vmx_word */
    u8 bit;
    bool true0;
    u16 feature; /* enum cpu_feature it needs; FEAT_NONE: none */
    bool offered;
    bool evmcs; /* an enlightened VMCS can express it */
};
extern const struct vmx_control vmx_controls[CTL_COUNT];

/* ---- VMCS fields (vmcs_fields.def) ---- */
enum vmcs_slot {
#define VMCS_FIELD(encoding, name, control, eoffset, egroup) VMCS_##name,
#include "vmx/vmcs_fields.def"
#undef VMCS_FIELD
    VMCS_SLOT_COUNT
};
enum vmcs_encoding {
#define VMCS_FIELD(encoding, name, control, eoffset, egroup) ENC_##name = encoding,
#include "vmx/vmcs_fields.def"
#undef VMCS_FIELD
};
enum vmcs_width { VMCS_16, VMCS_64, VMCS_32, VMCS_NATURAL };
enum vmcs_kind { VMCS_CONTROL, VMCS_READ_ONLY, VMCS_GUEST, VMCS_HOST };
/* eVMCS clean-field groups by the bit they have in clean_fields, then the groups without one. */
enum evmcs_group {
    EVMCS_IO_BITMAP, EVMCS_MSR_BITMAP, EVMCS_CONTROL_GRP2, EVMCS_CONTROL_GRP1, EVMCS_CONTROL_PROC, EVMCS_CONTROL_EVENT,
    EVMCS_CONTROL_ENTRY, EVMCS_CONTROL_EXCPN, EVMCS_CRDR, EVMCS_CONTROL_XLAT, EVMCS_GUEST_BASIC, EVMCS_GUEST_GRP1,
    EVMCS_GUEST_GRP2, EVMCS_HOST_POINTER, EVMCS_HOST_GRP1, EVMCS_ENLIGHTENMENTSCONTROL, EVMCS_ALWAYS_DIRTY,
    EVMCS_UNGROUPED, EVMCS_OUTPUT, EVMCS_NONE,
};

struct vmcs_field {
    const char *name;
    u16 encoding;
    u16 control; /* enum vmx_control_index: exists when offered */
    s16 evmcs_offset;
    u8 evmcs_group;
};
extern const struct vmcs_field vmcs_fields[VMCS_SLOT_COUNT];

unsigned vmcs_field_count(void);
const struct vmcs_field *vmcs_field_info(unsigned n);
static inline enum vmcs_width vmcs_width(u32 encoding) { return (enum vmcs_width)((encoding >> 13) & 3); }
static inline enum vmcs_kind vmcs_kind(u32 encoding) { return (enum vmcs_kind)((encoding >> 10) & 3); }
static inline unsigned vmcs_bytes(u32 encoding)
{
    static const u8 bytes[] = { [VMCS_16] = 2, [VMCS_64] = 8, [VMCS_32] = 4, [VMCS_NATURAL] = 8 };
    return bytes[vmcs_width(encoding)];
}
/* Slot of @encoding ("high" accesses included), or -1 when the table has no such field. */
int vmcs_slot(u32 encoding);

/* ---- capabilities (vmx_caps.c) ---- */
struct vmx_caps {
    u64 basic, misc, cr0_fixed0, cr0_fixed1, cr4_fixed0, cr4_fixed1, vmcs_enum, ept_vpid;
    u64 allowed0[WORD_COUNT];  /* bits that must be 1, by the TRUE MSRs */
    u64 default1[WORD_COUNT];  /* bits that must be 1, by the MSRs without TRUE */
    u64 allowed1[WORD_COUNT];  /* bits that may be 1 */
    u64 fields[(VMCS_SLOT_COUNT + 63) / 64]; /* bit per slot: the field exists */
};
void vmx_caps_init(struct vmx_caps *caps, const struct vcpu *v);
/* What is left of @all with an enlightened VMCS. */
void vmx_caps_evmcs(struct vmx_caps *caps, const struct vmx_caps *all);
void vmx_caps_apply(struct vcpu *v, const struct vmx_caps *caps); /* tells the core what VMX operation fixes */
void vmx_caps_fields(struct vmx_caps *caps); /* .fields from the controls */
/* vmx_caps_force.c: --vmx-cap. Returns 0, or -1 and fills *err; what @caps holds then is not to be used. */
int vmx_caps_force(struct vmx_caps *caps, const char *text, struct error *err);
void vmx_caps_list(const struct vmx_caps *c, FILE *out);
bool vmx_caps_msr(const struct vmx_caps *caps, u32 msr, u64 *value);
/* RDMSR of IA32_VMX_BASIC..0x493; false: no such MSR (#GP). */
bool vmx_capability_msr(const struct vcpu *v, u32 msr, u64 *value);
static inline bool vmx_offers(const struct vmx_caps *c, enum vmx_control_index n)
{
    return n == CTL_ALWAYS || (n < CTL_COUNT && c->allowed1[vmx_controls[n].word] >> vmx_controls[n].bit & 1);
}
static inline bool vmcs_exists(const struct vmx_caps *c, unsigned slot) { return c->fields[slot / 64] >> (slot % 64) & 1; }

/* IA32_VMX_BASIC */
#define VMX_REVISION 0x4e530001u /* "NS", layout 1: the layout vmcs.c writes */
#define VMX_BASIC_32BIT BIT64(48)
#define VMX_BASIC_TRUE_CONTROLS BIT64(55)
#define VMX_BASIC_NO_ERROR_CODE_RULE BIT64(56)
/* IA32_VMX_MISC */
#define VMX_MISC_TIMER_SHIFT 5u
#define VMX_MISC_ACTIVITY_HLT BIT64(6)
#define VMX_MISC_ACTIVITY_SHUTDOWN BIT64(7)
#define VMX_MISC_ACTIVITY_WAIT_SIPI BIT64(8)
/* Entries an MSR list may have: the recommended maximum, and our limit (a list may not hold up the host). */
#define VMX_MSR_LIST_MAX 512u
#define VMX_MISC_VMWRITE_ALL BIT64(29)
#define VMX_MISC_ZERO_LENGTH BIT64(30)
/* IA32_VMX_EPT_VPID_CAP */
#define VMX_EPT_EXEC_ONLY BIT64(0)
#define VMX_EPT_WALK_4 BIT64(6)
#define VMX_EPT_WALK_5 BIT64(7)
#define VMX_EPT_UC BIT64(8)
#define VMX_EPT_WB BIT64(14)
#define VMX_EPT_2M BIT64(16)
#define VMX_EPT_1G BIT64(17)
#define VMX_EPT_INVEPT BIT64(20)
#define VMX_EPT_AD BIT64(21)
#define VMX_EPT_ADVANCED_INFO BIT64(22)
#define VMX_EPT_SSS BIT64(23)
#define VMX_EPT_INVEPT_SINGLE BIT64(25)
#define VMX_EPT_INVEPT_ALL BIT64(26)
#define VMX_EPT_INVVPID BIT64(32)
#define VMX_EPT_INVVPID_ADDRESS BIT64(40)
#define VMX_EPT_INVVPID_SINGLE BIT64(41)
#define VMX_EPT_INVVPID_ALL BIT64(42)
#define VMX_EPT_INVVPID_SINGLE_NONGLOBAL BIT64(43)

/* ---- entry checks (checks.def, checks.c) ---- */
/* What a snapshot holds besides fields and capabilities, for those who have only a dump. */
enum vmx_fact {
    VMX_FACT_lma, VMX_FACT_vtpr, VMX_FACT_link_word, VMX_FACT_pdpte, VMX_FACT_current_vmcs, VMX_FACT_msr_index,
    VMX_FACT_msr_reserved, VMX_FACT_msr_writable,
};
/* What the predicates of a row have looked at. */
struct vmx_reads {
    u64 fields[(VMCS_SLOT_COUNT + 63) / 64];
    u32 facts; /* bits: enum vmx_fact */
};
struct vmx_snapshot {
    const u64 *f; /* by enum vmcs_slot */
    const struct vmx_caps *caps;
    u8 maxphyaddr, linear_width;
    /* the processor at the time of the VM entry */
    bool lma;
    u64 efer_reserved, pgc_reserved; /* of IA32_EFER, IA32_PERF_GLOBAL_CTRL */
    bool rtm, bus_lock, smm, sgx;
    u64 current_vmcs;
    /* memory the rules name; read once, before the checks */
    u8 vtpr;
    u32 link_word;     /* first 32 bits of the VMCS the link pointer names */
    u64 pdpte[4];      /* EPT off: from memory at CR3 */
    /* STAGE_MSR_LOAD: the list entry being judged */
    u32 msr_index, msr_reserved;
    bool msr_writable;
    struct vmx_reads *reads; /* vmx_check_tracked() alone uses it */
};
const struct virt_check *vmx_check_table(unsigned *n);
/* First row of stages @first..@last, in the manual's order, that fails on @s; NULL when all pass. */
const struct virt_check *vmx_check_first_failure(const struct vmx_snapshot *s, enum virt_stage first, enum virt_stage last);

/*
 * Row @row of the table, telling in *reads which fields and facts the outcome rests on (checks_tracked.c):
 * when something of it is unknown, so is the outcome.
 */
enum virt_outcome vmx_check_tracked(unsigned row, const struct vmx_snapshot *s, struct vmx_reads *reads);

/* ---- checks_again.c: only the rows whose outcome may be another than at the last VM entry ---- */
#define VMX_AGAIN_WORDS 4 /* up to 256 rows */
struct vmx_again {
    bool passed; /* all rows passed with what follows */
    u64 f[VMCS_SLOT_COUNT];
    struct vmx_snapshot facts; /* without its pointers */
    struct vmx_caps caps;
    u64 rows_of[VMCS_SLOT_COUNT][VMX_AGAIN_WORDS]; /* by field: the rows that have looked at it */
    u64 todo[VMX_AGAIN_WORDS];
};
/* @s was zeroed before it was filled. */
void vmx_again_begin(struct vmx_again *a, const struct vmx_snapshot *s);
/* As vmx_check_first_failure(): first the controls and the host area, then, if they pass, the guest area. */
const struct virt_check *vmx_again_first_failure(struct vmx_again *a, const struct vmx_snapshot *s, enum virt_stage first, enum virt_stage last);

/* The EPTP rules together, for INVEPT and EPTP switching. */
bool vmx_eptp_ok(const struct vmx_caps *c, unsigned maxphyaddr, u64 eptp);

/* ---- exits (exits.def) ---- */
enum vmx_exit_reason {
#define VMX_EXIT(number, name, control, qualification, info) EXIT_REASON_##name = number,
#include "vmx/exits.def"
#undef VMX_EXIT
    VMX_EXIT_REASONS = 70,
};
#define EXIT_ENTRY_FAILURE BIT(31)
/* TLFS "Synthetic VM-Exit": the guest has flushed, and others hold TLB locks. */
#define EXIT_REASON_TRAP_AFTER_FLUSH 0x10000031u
enum vmx_qualification {
    QUAL_NONE, QUAL_EXCEPTION, QUAL_SIPI, QUAL_TASK_SWITCH, QUAL_LINEAR_ADDRESS, QUAL_DISPLACEMENT, QUAL_CR_ACCESS,
    QUAL_DR_ACCESS, QUAL_IO, QUAL_ENTRY_FAILURE, QUAL_MSR_INDEX, QUAL_MWAIT, QUAL_APIC_ACCESS, QUAL_VECTOR,
    QUAL_EPT_VIOLATION, QUAL_APIC_WRITE, QUAL_PML,
};
enum vmx_insn_info {
    INFO_NONE, INFO_MEMORY, INFO_VMREAD, INFO_IO, INFO_DESCRIPTOR_TABLE, INFO_LDTR_TR, INFO_INVALIDATE, INFO_RDRAND,
};
struct vmx_exit_info {
    const char *name; /* NULL: no such exit */
    const char *control;
    u8 qualification; /* enum vmx_qualification */
    u8 info;          /* enum vmx_insn_info */
};
extern const struct vmx_exit_info vmx_exits[VMX_EXIT_REASONS];

struct vmx_stats {
    u64 exits[VMX_EXIT_REASONS];
    u64 entries, entry_failures, vmfails;
    u64 evmcs_entries, evmcs_clean_groups, direct_flushes;
};

/* ---- state ---- */
#define VMX_NO_VMCS (~0ull)

struct vmx {
    struct vcpu *v;
    struct vmx_caps caps;
    pa_t vmxon_region;
    /* The current VMCS, held here while it is current; the memory image is written at VMCLEAR,
     * VMXOFF and when another becomes current (SDM "Software Use of Virtual-Machine Control Structures"). */
    pa_t current; /* VMX_NO_VMCS: none */
    bool current_is_shadow;
    bool launched;
    /* The current VMCS is an enlightened one (evmcs.c): loaded at VM entries, stored at VM exits. */
    bool enlightened;
    u32 enlightenments; /* its enlightenments control */
    pa_t assist_page;   /* its partition assist page */
    bool pending_flush_trap; /* a direct flush is done; the hypervisor wants to know */
    struct vmx_caps evmcs_caps;
    u64 f[VMCS_SLOT_COUNT];
    struct vmx_again again;

    /* ---- guest mode: controls in force ---- */
    u32 pin, pri, sec, entry, exit;
    u64 ter;
    pa_t shadow_vmcs;           /* VMCS shadowing: the link pointer */
    bool virtual_nmi_blocked;   /* "virtual NMIs": blocking is virtual, physical NMIs always exit */
    bool iret_unblocked;        /* the IRET that executes has lifted NMI blocking */
    /* trap-like exits of APIC virtualization, taken at the next boundary */
    bool pending_apic_write, pending_eoi, pending_tpr;
    u16 apic_write_offset;
    u8 eoi_vector;
    bool mtf_event;             /* an injected "pending MTF" (type 7, vector 0) */
    /* Monitor trap flag: where the guest was at the first boundary after the entry (@marked). */
    bool marked, entry_vectored;
    u64 mark_icount, mark_rip, mark_rcx;
    /* VMX-preemption timer: expires when (TSC >> VMX_MISC_TIMER_SHIFT) reaches this */
    u64 timer_end;
    struct timer timer;
    /* PAUSE-loop exiting */
    u64 ple_first, ple_last;

    const struct virt_check *last_failure; /* row that refused the latest refused entry */
    struct vmx_stats stats;
};

struct vmx *vmx_new(struct vcpu *v); /* sets v->vmx; NULL without memory */
void vmx_free(struct vcpu *v);
void vmx_reset(struct vcpu *v); /* RESET: out of VMX operation */
const struct vmx_stats *vmx_stats(const struct vcpu *v);

static inline bool pin_ctl(const struct vmx *x, unsigned bit) { return x->pin >> bit & 1; }
static inline bool pri_ctl(const struct vmx *x, unsigned bit) { return x->pri >> bit & 1; }
static inline bool sec_ctl(const struct vmx *x, unsigned bit) { return x->sec >> bit & 1; }
static inline bool ter_ctl(const struct vmx *x, unsigned bit) { return x->ter >> bit & 1; }
static inline bool exit_ctl(const struct vmx *x, unsigned bit) { return x->exit >> bit & 1; }
static inline bool entry_ctl(const struct vmx *x, unsigned bit) { return x->entry >> bit & 1; }

/* ---- vmcs.c ---- */
bool vmcs_memory_revision(struct vcpu *v, pa_t pa, u32 *word);
void vmcs_load(struct vcpu *v, pa_t pa, bool shadow); /* makes @pa current */
void vmcs_flush(struct vcpu *v);                      /* writes the current VMCS to memory */
void vmcs_clear_memory(struct vcpu *v, pa_t pa);      /* launch state of a VMCS that is not current */
void vmcs_set_abort(struct vcpu *v, u32 code);
u64 vmcs_memory_read(struct vcpu *v, pa_t pa, unsigned slot);
void vmcs_memory_write(struct vcpu *v, pa_t pa, unsigned slot, u64 value);
/* Value of the field as VMREAD gives it and the stored value after VMWRITE; @encoding may name the high half. */
u64 vmcs_get(u64 stored, u32 encoding);
u64 vmcs_put(u64 stored, u32 encoding, u64 value);

/* ---- evmcs.c: the enlightened VMCS ---- */
/* The hypervisor has switched this processor to enlightened VM entries. */
bool evmcs_in_use(const struct vcpu *v, u64 *pointer);
/* Makes the page at @pa the current VMCS, or reads again what its clean fields do not vouch for. False: no such VMCS. */
bool evmcs_load(struct vcpu *v, pa_t pa);
/* Writes what a VM exit leaves. */
void evmcs_store(struct vcpu *v);
void evmcs_store_error(struct vcpu *v); /* the VM-instruction error alone */
/* Is @pa an enlightened VMCS? VMCLEAR leaves those alone. */
bool evmcs_page(struct vcpu *v, pa_t pa);
/* Direct virtual flush: does the guest's VMCALL stay below its hypervisor? And the call itself. */
bool evmcs_takes_hypercall(const struct vcpu *v);
void evmcs_hypercall(struct vcpu *v);
/* The capabilities that hold for the current VMCS. */
static inline const struct vmx_caps *vmx_caps_now(const struct vmx *x) { return x->enlightened ? &x->evmcs_caps : &x->caps; }

/* ---- entry.c ---- */
void vmx_enter(struct vcpu *v, bool launch);
/* Fills @s from the current VMCS and the processor. */
void vmx_take_snapshot(struct vcpu *v, struct vmx_snapshot *s);
void vmx_fail_invalid(struct vcpu *v);
void vmx_fail_valid(struct vcpu *v, u32 error);
void vmx_fail(struct vcpu *v, u32 error); /* Valid when there is a current VMCS, else Invalid */
void vmx_succeed(struct vcpu *v);
/* EPT as the current VMCS has it, under secondary controls @sec; none when they do not have it on. */
struct slat vmx_slat(const struct vcpu *v, u32 sec);
void vmx_apply_slat(struct vcpu *v); /* tells the MMU about EPTP and VPID in force */

/* ---- exit.c ---- */
struct vmx_exit {
    u32 reason;
    u64 qualification;
    u32 intr_info, intr_error;
    u32 insn_len, insn_info;
    u64 linear, physical;
    bool has_linear, has_physical;
    bool keeps_rf;     /* RFLAGS.RF is saved as it is; else 0 */
    bool sets_rf;      /* a fault that would have pushed RF = 1 */
    bool no_vectoring; /* the exit does not count as occurring during event delivery */
};
void vmx_exit(struct vcpu *v, const struct vmx_exit *e) __attribute__((noreturn));
void vmx_exit_insn(struct vcpu *v, u32 reason, u64 qualification, const struct insn *i) __attribute__((noreturn));
void vmx_entry_failed(struct vcpu *v, u32 reason, u64 qualification) __attribute__((noreturn));
void vmx_abort(struct vcpu *v, u32 code) __attribute__((noreturn));
static inline u32 vmx_intr_info(unsigned type, unsigned vector, bool has_error)
{
    return BIT(31) | (has_error ? BIT(11) : 0) | (u32)type << 8 | (u32)vector;
}

/* ---- insn_info.c ---- */
u32 vmx_instruction_info(const struct insn *i, enum vmx_insn_info layout, unsigned identity);
u64 vmx_displacement(const struct vcpu *v, const struct insn *i);

/* ---- intercepts.c, guest_events.c, vapic.c: the hooks of vmx_virt_ops ---- */
extern const struct virt_ops vmx_virt_ops;
bool vmx_hook_enabled(const struct vcpu *v, enum intercept what);
void vmx_hook_insn(struct vcpu *v, enum intercept what, const struct insn *i);
void vmx_hook_io(struct vcpu *v, const struct io_access *io, const struct insn *i);
void vmx_hook_msr(struct vcpu *v, u32 msr, bool write, u64 value, const struct insn *i);
bool vmx_hook_cr_read(struct vcpu *v, unsigned cr, unsigned gpr, u64 *value, const struct insn *i);
bool vmx_hook_cr_write(struct vcpu *v, unsigned cr, unsigned gpr, u64 *value, const struct insn *i);
bool vmx_hook_clts(struct vcpu *v, const struct insn *i);
bool vmx_hook_lmsw(struct vcpu *v, u16 *source, bool mem, gva_t la, const struct insn *i);
u64 vmx_hook_smsw(struct vcpu *v, u64 cr0, const struct insn *i);
void vmx_hook_dr(struct vcpu *v, unsigned dr, unsigned gpr, bool write, const struct insn *i);
u64 vmx_hook_tsc(struct vcpu *v, u64 tsc);
void vmx_hook_boundary(struct vcpu *v);
bool vmx_hook_rdmsr(struct vcpu *v, u32 msr, u64 *value);
bool vmx_hook_wrmsr(struct vcpu *v, u32 msr, u64 value);
bool vmx_hook_apic_access(struct vcpu *v, u32 offset, bool write, unsigned size, u64 *value, u32 access, gva_t la);
void vmx_hook_slat_fault(struct vcpu *v, gva_t la, u32 access, const struct walk *w) __attribute__((noreturn));

/* vapic.c: APIC virtualization */
u32 vapic_read(struct vcpu *v, u32 offset);
void vapic_tpr_written(struct vcpu *v);      /* TPR virtualization */
void vapic_evaluate(struct vcpu *v);         /* pending virtual interrupts */
bool vapic_interrupt_pending(const struct vcpu *v); /* recognised, not yet delivered */
int vapic_take(struct vcpu *v);              /* virtual-interrupt delivery: the vector */
bool vapic_post(struct vcpu *v, u8 vector);  /* posted-interrupt processing; true: the vector was the notification */
bool vapic_eoi_exit(const struct vcpu *v, u8 vector);

/* intercepts.c */
void vmx_vmfunc(struct vcpu *v, const struct insn *i);
