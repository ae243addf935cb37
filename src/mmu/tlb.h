/*
 * The software TLB. One `struct tlb` per address space (paging mode and permissions bits, CR3 with
 * PCID, VPID or ASID, EPTP or nCR3), a few kept per vCPU, so that an address-space switch, a VM
 * entry or a VM exit is a pointer change. Within it one array per privilege context.
 *
 * A tag is the page's linear address when the access may go straight to host memory, or TLB_NONE.
 * Pages that need attention at each access (device memory, tracked pages for writes, watchpoints)
 * are simply not granted: they take the slow path in cpu/mem.c.
 */
#pragma once
#include "mmu/walk.h"

#define TLB_BITS 11 /* booting Linux: 12 million walks with 9 bits, 4 with 10, 0.2 with 11 and with 12 */
#define TLB_SIZE (1u << TLB_BITS)
#define TLB_NONE (~0ull) /* never a page address */

enum tlb_context {
    TLB_SUPERVISOR,    /* CPL < 3, SMAP in force (or off) */
    TLB_USER,          /* CPL 3 */
    TLB_SUPERVISOR_AC, /* CPL < 3 with SMAP lifted by RFLAGS.AC */
    TLB_UNCACHED,      /* never filled: every access is slow (alignment checking) */
    TLB_CONTEXT_COUNT,
};

struct tlb_entry {
    u64 tag_read, tag_write, tag_exec;
    u64 addend; /* host address = linear address + addend */
};

struct tlb;
