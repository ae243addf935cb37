/*
 * The model-specific registers as a table: the two functions of cpu.h (cpu_rdmsr, cpu_wrmsr), the
 * debugger and `nestor list msrs` read it.
 */
#pragma once
#include "cpu/state.h"

enum msr_rule {
    MSR_PLAIN,     /* bits outside .allowed must be zero */
    MSR_MASKED,    /* bits outside .allowed are not stored */
    MSR_CANONICAL, /* a linear address, by the width the processor supports */
    MSR_READ_ONLY, /* writes fault */
    MSR_IGNORED,   /* writes are accepted and change nothing */
};

enum msr_for { MSR_ANY, MSR_INTEL, MSR_AMD };

struct msr_desc {
    u32 first, last;  /* a range is one row; sorted by first */
    const char *name; /* with the manuals' IA32_ or MSR prefix left out */
    u8 who;           /* enum msr_for */
    u8 rule;          /* enum msr_rule: of writes, when there is no write function */
    u16 feature, feature2; /* either must be offered; both 0: always there */
    u16 offset;       /* of the u64 in struct vcpu when there is no read or write function; 0: reads as .value */
    u64 allowed;      /* see enum msr_rule */
    u64 value;        /* constant, when there is no storage */
    bool (*read)(struct vcpu *v, u32 msr, u64 *value); /* false: #GP(0) */
    bool (*write)(struct vcpu *v, u32 msr, u64 value);
};

extern const struct msr_desc msr_table[];
extern const unsigned msr_count;

/* The row of @msr as this processor has it, or NULL. */
const struct msr_desc *msr_find(const struct vcpu *v, u32 msr);

/* Registers without a named field of their own: places in v->misc_msr. */
enum msr_slot {
    SLOT_MC_BANK, /* 4 banks of CTL, STATUS, ADDR, MISC */
    SLOT_HWCR = SLOT_MC_BANK + 16,
    SLOT_SYSCFG,
    SLOT_NB_CFG,
    SLOT_DE_CFG,
    SLOT_VM_CR,
    SLOT_VM_HSAVE_PA,
    SLOT_TOP_MEM,
    SLOT_TOP_MEM2,
    SLOT_OSVW_STATUS,
    SLOT_TSC_RATIO,
    SLOT_SVM_KEY,
    SLOT_LAST_BRANCH, /* BR_FROM, BR_TO, LASTEXCPFROM, LASTEXCPTO */
    SLOT_UMWAIT_CONTROL = SLOT_LAST_BRANCH + 4,
    SLOT_COUNT
};
_Static_assert(SLOT_COUNT <= ARRAY_SIZE(((struct vcpu *)0)->misc_msr), "misc_msr is too small");

#define MC_BANKS 4

#define FEATURE_CONTROL_LOCK          BIT64(0)
#define FEATURE_CONTROL_VMX_IN_SMX    BIT64(1)
#define FEATURE_CONTROL_VMX_OUTSIDE   BIT64(2)
#define MISC_ENABLE_FAST_STRING       BIT64(0)
#define MISC_ENABLE_TCC               BIT64(3)
#define MISC_ENABLE_PERFMON           BIT64(7)
#define MISC_ENABLE_BTS_UNAVAILABLE   BIT64(11)
#define MISC_ENABLE_PEBS_UNAVAILABLE  BIT64(12)
#define MISC_ENABLE_EIST              BIT64(16)
#define MISC_ENABLE_MONITOR           BIT64(18)
#define MISC_ENABLE_LIMIT_CPUID       BIT64(22)
#define MISC_ENABLE_XTPR_DISABLE      BIT64(23)
#define MISC_ENABLE_XD_DISABLE        BIT64(34)
#define VM_CR_R_INIT                  BIT64(1)
#define VM_CR_LOCK                    BIT64(3)
#define VM_CR_SVMDIS                  BIT64(4)
#define HWCR_TSC_FREQ_SEL             BIT64(24)

/* Whether every byte of @pat is a memory type the PAT may hold. */
bool pat_valid(u64 pat);

/* The bits of SPEC_CTRL that this processor has. */
u64 cpu_spec_ctrl_allowed(const struct vcpu *v);

/* The VMX capability registers 0x480.. (src/vmx); false: this one does not exist. */
bool vmx_capability_msr(const struct vcpu *v, u32 msr, u64 *value);
