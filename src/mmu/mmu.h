/*
 * The memory-management unit of one vCPU: the walk context, the pool of TLBs, and invalidation.
 * It reads and writes struct vcpu (state.h) but raises nothing.
 */
#pragma once
#include "cpu/state.h"
#include "mmu/shadow.h"
#include "mmu/tlb.h"

struct mmu;

struct mmu *mmu_new(struct physmap *pm);
void mmu_free(struct mmu *m);
/* How a miss of the TLB is answered; MMU_SHADOW at first. Before the first access. */
enum mmu_mode {
    MMU_SHADOW, /* from the shadow page tables (shadow.h) where they know */
    MMU_WALK,   /* always by a walk: the reference */
    MMU_CHECK,  /* from the shadow page tables, each answer compared with a walk */
};
void mmu_set_mode(struct vcpu *v, enum mmu_mode mode);

/* Rebuilds the walk context from v's CR0, CR3, CR4, EFER, PDPTEs, PKRU and picks the TLB for the
 * address space (created empty or found by its tag), then sets v->tlb_now for the privilege context.
 * Call after any change of those, and at guest-mode switches. Flushes nothing by itself. */
void mmu_update(struct vcpu *v);
/* Only the privilege context changed (CPL, RFLAGS.AC, alignment checking). Cheap. */
void mmu_update_privilege(struct vcpu *v);
/* Guest mode: the SLAT in force (NULL: none) and the tag (VPID or ASID; 0 = host) of linear translations. The TLB
 * for it is chosen by the mmu_update() that follows the control-register loads, or by the first access. */
void mmu_set_guest(struct vcpu *v, const struct slat *slat, u32 vpid);
const struct walk_context *mmu_context(const struct vcpu *v);

/* What a slow-path access found out. */
struct translation {
    pa_t pa;       /* of the first byte */
    u8 *host;      /* host address when RAM (or ROM, reading), else NULL */
    u8 page_flags; /* enum page_flag of the page */
};
/*
 * Translates @la for @access (ACCESS_READ/WRITE/EXEC, plus USER/AC computed by the caller) and fills
 * the TLB for the context the access belongs to (never for accesses that only look). Returns false
 * with *w describing the fault.
 */
bool mmu_translate(struct vcpu *v, gva_t la, u32 access, struct translation *t, struct walk *w);
/*
 * For translated code that found no grant for @page (of the last byte accessed) at @slot of v->tlb_now (of the first
 * byte): enters one if the shadow page tables have it, no accessed or dirty flag is due and nobody must see the access.
 * Asking early, or for an access that is never made, does no harm. Uses no vector or x87 registers, so that
 * the caller need not save any. mmu_refills(): it is worth asking.
 */
void mmu_refill(struct vcpu *v, gva_t page, struct tlb_entry *slot, u64 access);
bool mmu_refills(const struct vcpu *v);
/* ACCESS_USER / ACCESS_AC bits of an ordinary access by the running code. */
u32 mmu_access_mode(const struct vcpu *v);

/* ---- invalidation; names after the instructions. All set ATT_BLOCK when code mappings may have changed. ---- */
void mmu_invlpg(struct vcpu *v, gva_t la);                    /* current PCID and globals, this VPID/ASID */
void mmu_flush_cr3(struct vcpu *v, u16 pcid);                 /* non-global entries of @pcid (MOV to CR3) */
void mmu_flush_global(struct vcpu *v);                        /* every entry of the current VPID/ASID */
void mmu_flush_all(struct vcpu *v);                           /* everything, all tags */
enum invpcid_type { INVPCID_ADDRESS, INVPCID_CONTEXT, INVPCID_ALL_GLOBAL, INVPCID_ALL };
void mmu_invpcid(struct vcpu *v, enum invpcid_type type, u16 pcid, gva_t la);
void mmu_invvpid(struct vcpu *v, bool all_vpids, u16 vpid, bool keep_global, bool one_address, gva_t la);
void mmu_invept(struct vcpu *v, bool all, u64 eptp);
void mmu_invlpga(struct vcpu *v, u32 asid, gva_t la);
void mmu_flush_asid(struct vcpu *v, u32 asid, bool keep_global);
/* Physical page @page became tracked (code, table, dirty log): no TLB entry of @v may grant writes to it. For processors
 * on threads of their own, while this one stands still; otherwise the physical map tells every MMU itself. */
void mmu_protect_page(struct vcpu *v, pa_t page);
/* Debug registers changed: pages with enabled data breakpoints must take the slow path. */
void mmu_watch_changed(struct vcpu *v);
/* A debugger's physical ranges changed: their pages, wherever they are mapped, must too. */
void mmu_watch_physical(struct vcpu *v);

/* The jump cache of the current address space and privilege (user or not): (rip -> block) hints that every
 * flush clears. Ask again after a change of address space or CPL. */
#define JUMP_CACHE_BITS 14
struct jump_cache_entry { gva_t rip; void *block; };
struct jump_cache_entry *mmu_jump_cache(struct vcpu *v);
/* Enters a hint there. */
void mmu_jump_hint(struct vcpu *v, gva_t rip, void *block);

/*
 * Likewise for translated code, in two ways: where to jump for a RIP. .block is the code. An entry must not
 * outlive the memory of its code: mmu_jump_codes_forget().
 */
enum jump_kind { JUMP_BLOCKS, JUMP_CODE64, JUMP_CODE32, JUMP_KINDS };
#define JUMP_CODE_FACTOR 0x9e3779b1u
#define JUMP_CODE_SHIFT (32 - JUMP_CACHE_BITS + 1)
/* The first way's entry; the second is the next. */
static inline unsigned jump_code_way(gva_t rip) { return ((u32)rip * JUMP_CODE_FACTOR >> JUMP_CODE_SHIFT) * 2; }
struct jump_cache_entry *mmu_jump_codes(struct vcpu *v, enum jump_kind kind);
void mmu_jump_code(struct vcpu *v, enum jump_kind kind, gva_t rip, void *code);
void mmu_jump_codes_forget(struct vcpu *v); /* all of all spaces */

static inline struct tlb_entry *tlb_slot(struct vcpu *v, gva_t la)
{
    return &v->tlb_now[(la >> PAGE_SHIFT) & (TLB_SIZE - 1)];
}

/* Read-only view of one privilege context's entries in the current address space (mem.c's fast paths). */
const struct tlb_entry *mmu_entries(const struct vcpu *v, enum tlb_context context);

/* What dropped TLB entries. */
enum flush_cause {
    FLUSH_INVLPG, FLUSH_CR3, FLUSH_GLOBAL, FLUSH_ALL, FLUSH_INVPCID, FLUSH_INVVPID, FLUSH_INVEPT, FLUSH_INVLPGA, FLUSH_ASID,
    FLUSH_MAP, /* the physical map or the APIC's page changed */
    FLUSH_CAUSES,
};

/* What one vCPU's MMU did so far. */
struct mmu_stats {
    u64 walks;          /* page walks made */
    u64 walk_faults;    /* of which failed */
    u64 walk_steps;     /* table entries read */
    u64 cached;         /* slow-path translations answered by the TLB */
    u64 shadow_hits;    /* answered by the shadow page tables: TLB entries filled without a walk */
    u64 refills;        /* likewise, asked by translated code */
    u64 shadow_faults;  /* page faults answered by them */
    u64 spaces_made;    /* address spaces set up (a TLB taken from the pool) */
    u64 space_switches; /* changes of the current address space */
    u64 flushes[FLUSH_CAUSES]; /* invalidations asked for */
    u64 flushed;        /* entries they dropped, */
    u64 renewed;        /* and kept, since the tables still said the same (renew.c) */
    u64 protects;       /* pages whose write permission was withdrawn */
};
const struct mmu_stats *mmu_stats(const struct vcpu *v);
/* Of the shadow page tables that all vCPUs share; NULL without. */
const struct shadow_stats *mmu_shadow_stats(const struct vcpu *v);
