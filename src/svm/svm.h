/*
 * AMD-V as the emulated processor offers it: the state of SVM and the tables behind it. All of src/svm
 * follows the AMD64 Architecture Programmer's Manual, order number 24593, volume 2, chapter 15 "Secure
 * Virtual Machine"; code cites titles.
 */
#pragma once
#include "base/log.h"
#include "cpu/cpu.h"
#include "cpu/virt_check.h"

/* ---- the VMCB (vmcb_fields.def) ---- */
enum vmcb_index {
#define VMCB_FIELD(offset, bytes, name, clean, use) VMCB_##name,
#include "svm/vmcb_fields.def"
#undef VMCB_FIELD
    VMCB_FIELD_COUNT
};
enum vmcb_offset {
#define VMCB_FIELD(offset, bytes, name, clean, use) OFFSET_##name = offset,
#include "svm/vmcb_fields.def"
#undef VMCB_FIELD
};
/* "VMCB Clean Bits": bit numbers. */
enum vmcb_clean {
    CLEAN_INTERCEPTS, CLEAN_PERM_MAP, CLEAN_ASID, CLEAN_INTR, CLEAN_NPT, CLEAN_CR, CLEAN_DR, CLEAN_DT, CLEAN_SEG, CLEAN_CR2,
    CLEAN_LBR, CLEAN_AVIC, CLEAN_CET, CLEAN_NONE,
};
enum vmcb_use { USE_NEVER, USE_IN, USE_OUT, USE_BOTH, USE_NPT, USE_LBR, USE_SPEC, USE_CET, USE_LOAD };

struct vmcb_field {
    const char *name;
    u16 offset;
    u8 bytes;
    u8 clean; /* enum vmcb_clean */
    u8 use;   /* enum vmcb_use */
};
extern const struct vmcb_field vmcb_fields[VMCB_FIELD_COUNT];
/* The field that begins at @offset, or -1. */
int vmcb_find(unsigned offset);

#define VMCB_BYTES 0x6e8u

/* INT_CTL */
#define V_TPR 0xfull
#define V_IRQ BIT64(8)
#define V_GIF BIT64(9)
#define V_NMI BIT64(11)
#define V_NMI_MASK BIT64(12)
#define V_INTR_PRIO(x) bits_get(x, 19, 16)
#define V_IGN_TPR BIT64(20)
#define V_INTR_MASKING BIT64(24)
#define V_GIF_ENABLE BIT64(25)
#define V_NMI_ENABLE BIT64(26)
/* NESTED_CTL, VIRT_EXT */
#define NESTED_CTL_NP BIT64(0)
#define VIRT_EXT_LBR BIT64(0)
#define VIRT_EXT_VMLOAD_VMSAVE BIT64(1)
/* EVENTINJ and EXITINTINFO */
#define EVENT_VALID BIT64(31)
#define EVENT_ERROR_VALID BIT64(11)
enum svm_event_type { EVENT_INTR = 0, EVENT_NMI = 2, EVENT_EXCEPTION = 3, EVENT_SOFT_INT = 4 };
/* TLB_CONTROL */
enum { TLB_NOTHING = 0, TLB_FLUSH_ALL = 1, TLB_FLUSH_ASID = 3, TLB_FLUSH_ASID_LOCAL = 7 };

/* ---- exits (exits.def) ---- */
enum svm_exit_code {
#define SVM_EXIT(code, name) SVM_EXIT_##name = code,
#include "svm/exits.def"
#undef SVM_EXIT
};
#define SVM_EXIT_INVALID (~0ull)
/* Places in the statistics: codes below 0xC0, then #NPF and VMEXIT_INVALID. */
enum { SVM_SLOT_NPF = 0xc0, SVM_SLOT_INVALID, SVM_EXIT_SLOTS };
static inline unsigned svm_exit_slot(u64 code) { return code < SVM_SLOT_NPF ? (unsigned)code : code == SVM_EXIT_NPF ? SVM_SLOT_NPF : SVM_SLOT_INVALID; }
const char *svm_exit_slot_name(unsigned slot); /* NULL: no such code */
static inline const char *svm_exit_name(u64 code) { return svm_exit_slot_name(svm_exit_slot(code)); }

struct svm_stats {
    u64 exits[SVM_EXIT_SLOTS];
    u64 entries, entry_failures;
};

/* ---- VMRUN checks (checks.def, checks.c) ---- */
struct svm_snapshot {
    const u64 *f;       /* by enum vmcb_index: the VMCB as VMRUN sees it, clean bits applied */
    const u8 *features; /* by enum cpu_feature */
    u8 maxphyaddr;
    u64 cr4_reserved, efer_reserved;
    bool host_paging;   /* CR0.PG of the host */
    u64 u_cet;          /* guest and host share it */
    u64 pdpte[4];       /* PAE guest without nested paging: from memory at CR3 */
};
const struct virt_check *svm_check_table(unsigned *n);
/* The first row that fails on @s; NULL when all pass. */
const struct virt_check *svm_check_first_failure(const struct svm_snapshot *s);

/* ---- state ---- */
struct svm_host { /* what VMRUN saves and #VMEXIT restores: the host state-save area, kept here */
    struct segment es, cs, ss, ds;
    struct desc_table gdtr, idtr;
    u64 efer, cr0, cr3, cr4, rflags, rip, rsp, rax, pat, s_cet, ssp, isst;
    u64 spec_ctrl;                /* where SPEC_CTRL is virtualized */
    u64 debugctl, last_branch[4]; /* under LBR virtualization */
};

struct svm {
    u64 f[VMCB_FIELD_COUNT]; /* the VMCB of the latest VMRUN */
    u8 insn_bytes[15];
    pa_t vmcb;
    bool cached; /* f holds what the VMCB at @vmcb held at the latest #VMEXIT */
    struct svm_host host;

    /* ---- guest mode ---- */
    u32 intercepts[6];
    bool nested_paging, vgif, vnmi, virtual_vmload, virtual_lbr;
    u16 pause_count; /* of the pause filter */
    u64 pause_last;  /* instruction count at the latest PAUSE */

    const struct virt_check *last_failure; /* row that refused the latest refused VMRUN */
    struct svm_stats stats;
};

struct svm *svm_new(struct vcpu *v); /* sets v->svm; NULL without memory */
void svm_free(struct vcpu *v);
void svm_reset(struct vcpu *v);
const struct svm_stats *svm_stats(const struct vcpu *v);

static inline bool svm_intercepts(const struct svm *x, unsigned code) { return x->intercepts[code / 32] >> (code % 32) & 1; }
/* What masks virtual interrupts and NMIs of the guest. */
static inline bool svm_guest_gif(const struct vcpu *v) { return v->svm->vgif ? v->svm->f[VMCB_INT_CTL] & V_GIF : v->gif; }

/* ---- vmcb.c ---- */
u64 vmcb_read(struct vcpu *v, pa_t vmcb, enum vmcb_index n);
void vmcb_write(struct vcpu *v, pa_t vmcb, enum vmcb_index n, u64 value);
/* Fills f from memory, but for what a clean bit lets the processor keep. */
void vmcb_load(struct vcpu *v, pa_t vmcb);
/* Writes the fields #VMEXIT writes. */
void vmcb_store(struct vcpu *v);
struct segment vmcb_segment(u64 sel, u64 attrib, u64 limit, u64 base);
u64 vmcb_attrib(const struct segment *s);
/* VMLOAD and VMSAVE. */
void vmcb_load_more(struct vcpu *v, pa_t vmcb);
void vmcb_save_more(struct vcpu *v, pa_t vmcb);

/* ---- entry.c, exit.c ---- */
void svm_enter(struct vcpu *v, pa_t vmcb) __attribute__((noreturn));
/* Nested paging with the tables at @n_cr3 under that host. */
struct slat svm_slat(u64 n_cr3, u64 host_efer, u64 host_cr0, u64 host_cr4);
void svm_take_snapshot(struct vcpu *v, struct svm_snapshot *s);
struct svm_exit {
    u64 code, info1, info2;
    bool next_rip;     /* NRIP is valid: an instruction intercept */
    bool insn_bytes;   /* the bytes of the instruction at RIP are provided (decode assists) */
    bool no_vectoring; /* the exit does not count as occurring during event delivery */
};
void svm_exit(struct vcpu *v, const struct svm_exit *e) __attribute__((noreturn));
void svm_exit_insn(struct vcpu *v, u64 code, u64 info1, u64 info2) __attribute__((noreturn));
void svm_load_host(struct vcpu *v);

/* ---- intercepts.c, guest_events.c: the hooks of svm_virt_ops ---- */
extern const struct virt_ops svm_virt_ops;
void svm_hook_insn(struct vcpu *v, enum intercept what, const struct insn *i);
void svm_hook_io(struct vcpu *v, const struct io_access *io, const struct insn *i);
void svm_hook_msr(struct vcpu *v, u32 msr, bool write, u64 value, const struct insn *i);
bool svm_hook_cr_read(struct vcpu *v, unsigned cr, unsigned gpr, u64 *value, const struct insn *i);
bool svm_hook_cr_write(struct vcpu *v, unsigned cr, unsigned gpr, u64 *value, const struct insn *i);
bool svm_hook_clts(struct vcpu *v, const struct insn *i);
bool svm_hook_lmsw(struct vcpu *v, u16 *source, bool mem, gva_t la, const struct insn *i);
u64 svm_hook_smsw(struct vcpu *v, u64 cr0, const struct insn *i);
void svm_hook_dr(struct vcpu *v, unsigned dr, unsigned gpr, bool write, const struct insn *i);
bool svm_hook_rdmsr(struct vcpu *v, u32 msr, u64 *value);
bool svm_hook_wrmsr(struct vcpu *v, u32 msr, u64 value);
u64 svm_hook_tsc(struct vcpu *v, u64 tsc);
void svm_hook_slat_fault(struct vcpu *v, gva_t la, u32 access, const struct walk *w) __attribute__((noreturn));
