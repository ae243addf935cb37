/*
 * Page walks. The walker reads a plain context, raises nothing, and returns a value that says where
 * the address leads or why it does not, with every table entry it read: the layer above makes an
 * exception or a VM exit of it, the debugger prints the same value.
 */
#pragma once
#include "mmu/physmap.h"

enum access {
    ACCESS_READ = BIT(0),
    ACCESS_WRITE = BIT(1),
    ACCESS_EXEC = BIT(2),
    ACCESS_USER = BIT(3),     /* user-mode access (CPL 3, not implicit) */
    ACCESS_AC = BIT(4),       /* supervisor data access with SMAP lifted (RFLAGS.AC = 1, explicit) */
    ACCESS_SHADOW_STACK = BIT(5),
    ACCESS_NO_AD = BIT(6),    /* look only: set no accessed or dirty bit (debugger, prefetch) */
};

enum paging_mode { PAGING_NONE, PAGING_32BIT, PAGING_PAE, PAGING_4LEVEL, PAGING_5LEVEL };

/* Second-level address translation. */
enum slat_kind { SLAT_NONE, SLAT_EPT, SLAT_NPT };
struct slat {
    u8 kind;     /* enum slat_kind */
    u8 levels;   /* EPT: 4 or 5. NPT: see host_mode */
    u8 host_mode;/* NPT: enum paging_mode of the host's tables */
    bool ad;     /* EPT accessed and dirty flags (EPTP bit 6) */
    bool mbec;   /* mode-based execute control */
    bool exec_only, huge_1g, huge_2m; /* EPT capabilities */
    bool nx;     /* NPT: host EFER.NXE */
    bool smep, pse; /* NPT: host CR4.SMEP (error code only) and CR4.PSE (32-bit host tables) */
    bool wp;     /* NPT: host CR0.WP is not consulted by NPT walks; kept for completeness */
    bool advanced_info; /* EPT: report advanced exit information (qualification bits 9-11) */
    bool ve;     /* EPT-violation #VE enabled: record suppress-#VE of the leaf */
    bool pml;
    u16 *pml_index;  /* EPT with pml: the PML index of the current VMCS, counted down as entries are logged */
    u64 pml_address; /* EPT with pml: physical address of the log page */
    u64 root;    /* physical address of the root table */
    u64 tag;     /* EPTP or nCR3 as written: names the address space */
};

/* All a walk depends on besides memory; rebuilt by the CPU at control-register writes and guest-mode switches. */
struct walk_context {
    u8 paging; /* enum paging_mode */
    bool wp, nx, smep, smap, pke, pks, cet, pse, pse36;
    bool lam48;  /* LAM48 under 5-level paging: bits 56:48 of a user pointer are no address, but of a fetch they are */
    bool amd;    /* AMD's reserved bits: bit 8 of PML4 and PML5 entries too */
    u8 maxphyaddr;
    bool pdpe1gb;
    u64 cr3;      /* as in CR3; PCID or PWT/PCD bits are ignored by the walk */
    u64 pdpte[4]; /* PAE: the registers */
    u32 pkru, pkrs;
    struct slat slat;
};

enum walk_fault {
    WALK_OK,
    WALK_PAGE_FAULT,    /* #PF with .error_code */
    WALK_EPT_VIOLATION, /* .gpa and .qualification */
    WALK_EPT_MISCONFIG, /* .gpa */
    WALK_NPF,           /* .gpa; .error_code is EXITINFO1 */
    WALK_PML_FULL,      /* EPT: a dirty flag must be set and the page-modification log is full; .gpa */
};

enum table_kind { TABLE_32BIT, TABLE_PAE, TABLE_LONG, TABLE_EPT, TABLE_NPT };

struct walk_step {
    u8 table;  /* enum table_kind */
    u8 level;  /* 1 = PTE .. 5 = PML5E */
    pa_t pa;   /* physical address of the entry */
    gpa_t gpa; /* guest-physical address of the entry, under SLAT */
    u64 entry; /* as read (before A/D bits were set) */
};
#define WALK_MAX_STEPS 36 /* five guest levels, each and the data through five EPT levels: 35 */

struct walk {
    u8 fault;       /* enum walk_fault */
    u8 lg2_page;    /* size of the smallest translation used, log2: 12, 21, 22, 30 */
    u8 lg2_linear;  /* page size that the linear tables gave (what INVLPG invalidates); 12 without paging */
    bool user;      /* leaf and all upper entries have U/S */
    bool writable;  /* linear R/W rights through all levels, before CR0.WP */
    bool nx;
    bool dirty;     /* the translation may be cached writable: dirty flags are set at all levels */
    bool global;
    bool suppress_ve; /* EPT violation: bit 63 of the entry that caused it */
    u8 perms;       /* ACCESS_READ/WRITE/EXEC allowed for this kind of access (privilege, WP, SMEP, SMAP, SLAT): what a TLB may grant */
    u8 pkey;
    u8 memtype;     /* PAT or EPT memory type, informative */
    u32 error_code; /* #PF error code; NPF: EXITINFO1 low half */
    u64 error_hi;   /* NPF: EXITINFO1 bits 63:32 */
    u64 qualification; /* EPT violation exit qualification, complete */
    gpa_t gpa;      /* guest-physical address: of the data, or of the table entry that faulted */
    bool gpa_is_table; /* the faulting gpa is that of a paging-structure entry */
    pa_t pa;        /* where the address leads */
    u8 nsteps;
    struct walk_step steps[WALK_MAX_STEPS];
};

/* What of it a TLB keeps. */
struct leads {
    pa_t pa;
    u8 perms;
    bool dirty, global;
    u8 lg2_linear;
};
static inline struct leads walk_leads(const struct walk *w)
{
    return (struct leads){.pa = w->pa, .perms = w->perms, .dirty = w->dirty, .global = w->global, .lg2_linear = w->lg2_linear};
}

/* Translates linear address @la (canonical; checked by the caller) for @access. Sets A/D bits as an access does. */
bool walk_linear(struct physmap *pm, const struct walk_context *ctx, gva_t la, u32 access, struct walk *w);
/* Translates a guest-physical address through ctx->slat alone (w->pa = @gpa when there is none). */
bool walk_gpa(struct physmap *pm, const struct walk_context *ctx, gpa_t gpa, u32 access, struct walk *w);
/*
 * PAE: loads the four PDPTEs at @cr3 (through SLAT when on) into @pdpte. Returns WALK_OK,
 * WALK_PAGE_FAULT (a reserved bit: the caller raises #GP(0) or fails the entry), or a SLAT fault in @w.
 * Under NPT nothing is loaded or checked: there the PDPTEs are read at every walk (APM "Legacy PAE Mode").
 */
enum walk_fault walk_load_pdptes(struct physmap *pm, const struct walk_context *ctx, u64 cr3, u64 pdpte[4], struct walk *w);
