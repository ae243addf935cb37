/*
 * Shared by the files that implement protection: segments, far transfers, events, task switches.
 * Nothing outside those files needs it.
 */
#pragma once
#include "cpu/cpu.h"
#include "cpu/mem.h"

/* Type field of system descriptors (SDM vol. 3 table "System-Segment and Gate-Descriptor Types"). */
enum system_type {
    SYS_TSS16 = 1, SYS_LDT = 2, SYS_TSS16_BUSY = 3, SYS_CALL16 = 4, SYS_TASK_GATE = 5, SYS_INT16 = 6, SYS_TRAP16 = 7,
    SYS_TSS32 = 9, SYS_TSS32_BUSY = 11, SYS_CALL32 = 12, SYS_INT32 = 14, SYS_TRAP32 = 15,
};
#define TYPE_CODE 8u       /* code and data segments: bits of the type field */
#define TYPE_CONFORMING 4u /* code */
#define TYPE_EXPAND_DOWN 4u/* data */
#define TYPE_RW 2u         /* data: writable; code: readable */
#define TYPE_ACCESSED 1u
#define TYPE_BUSY 2u       /* TSS */

/* Access rights of the flat segments that SYSCALL and its relatives load. */
#define AR_FLAT_CODE64 (AR_G | AR_L | AR_P | AR_S | 0xbu)
#define AR_FLAT_CODE32 (AR_G | AR_DB | AR_P | AR_S | 0xbu)
#define AR_FLAT_DATA (AR_G | AR_DB | AR_P | AR_S | 0x3u)
#define AR_SET_DPL(dpl) ((u32)(dpl) << 5)
#define AR_V86 (AR_P | AR_S | AR_SET_DPL(3) | 3u)

static inline bool is_null(u16 sel) { return (sel & 0xfffc) == 0; }
static inline u16 sel_error(u16 sel) { return sel & 0xfffc; }
static inline unsigned rpl_of(u16 sel) { return sel & 3; }

/* The parts of a descriptor's low 8 bytes that the checks ask for. */
static inline unsigned desc_type(u64 d) { return (unsigned)(d >> 40) & 0xf; }
static inline bool desc_s(u64 d) { return d >> 44 & 1; }
static inline unsigned desc_dpl(u64 d) { return (unsigned)(d >> 45) & 3; }
static inline bool desc_present(u64 d) { return d >> 47 & 1; }
static inline bool desc_l(u64 d) { return d >> 53 & 1; }
static inline bool desc_d(u64 d) { return d >> 54 & 1; }
static inline bool desc_is_code(u64 d) { return desc_s(d) && (desc_type(d) & TYPE_CODE); }
static inline bool desc_is_conforming(u64 d) { return desc_type(d) & TYPE_CONFORMING; }
static inline bool desc_is_writable_data(u64 d) { return desc_s(d) && !(desc_type(d) & TYPE_CODE) && (desc_type(d) & TYPE_RW); }
/* Gates: target selector and offset (low 32 bits). */
static inline u16 gate_selector(u64 d) { return (u16)(d >> 16); }
static inline u32 gate_offset(u64 d) { return (u32)(d & 0xffff) | (u32)(d >> 48) << 16; }

bool cpu_is_amd(const struct vcpu *v);

/* ---- segment.c ---- */
/* As cpu_read_descriptor, but the upper half too: system descriptors are 16 bytes when LMA = 1. */
bool read_system_descriptor(struct vcpu *v, u16 sel, struct descriptor *d);
/* Sets the accessed bit of @sel's descriptor in memory when @desc lacks it. */
void desc_set_accessed(struct vcpu *v, u16 sel, u64 desc);
/* The null selector in @seg; @dpl matters for SS, whose DPL is the CPL. */
void segment_set_null(struct vcpu *v, unsigned seg, u16 sel, unsigned dpl);
/* A segment register as virtual-8086 mode has it. */
void segment_set_v86(struct vcpu *v, unsigned seg, u16 sel);
/* After a move to outer CPL: DS, ES, FS, GS that it may not see become null. */
void segments_drop_privileged(struct vcpu *v, unsigned cpl);

/*
 * A stack that may not be the current one: writes go to it before anything is committed, and to the
 * lowest address first, so that a fault leaves only bytes below the old stack pointer changed.
 */
struct frame {
    struct segment ss;
    u64 sp;            /* before the first push; frame_write moves it */
    u64 mask;          /* of the stack pointer */
    bool switched;     /* another privilege level's stack: written as the system */
    bool flat64;
    u32 error;         /* of the #SS when it does not fit */
};
/* The current stack. */
void frame_current(const struct vcpu *v, struct frame *f, u32 error);
/* Pushes @count values, values[0] first, of @size bytes. */
void frame_write(struct vcpu *v, struct frame *f, const u64 *values, unsigned count, unsigned size);
/* Stores the frame's stack pointer in RSP as the frame's width asks. */
void frame_commit_sp(struct vcpu *v, const struct frame *f);

/*
 * Reads the stack of privilege @cpl from the current TSS, with every check: #TS, #SS with @ext.
 * 64-bit: RSPn, or ISTn when @ist is not 0; SS is the null selector then.
 */
void tss_stack(struct vcpu *v, unsigned cpl, u32 ext, struct frame *f, u16 *ss_sel, u64 *ss_desc);
u64 tss_stack64(struct vcpu *v, unsigned cpl, unsigned ist, u32 ext);

/* Loads CS (checked by the caller) with @cpl as RPL; the mode follows. SS is left. */
void load_cs(struct vcpu *v, u16 sel, u64 desc, unsigned cpl);
/* Loads SS (checked). */
void load_ss(struct vcpu *v, u16 sel, u64 desc, unsigned cpl);
/* CS, SS or CPL were stored: brings the derived state up to date, cheaply when the mode stays. */
void cs_ss_changed(struct vcpu *v, unsigned cpl);

/* #GP(0)-class test of a new instruction pointer against @cs_desc; @ext is the error code. */
void check_target(struct vcpu *v, u64 desc, u64 rip, u32 ext);

/* ---- events.c ---- */
/* EXT of error codes: 1 while something other than a software interrupt is being delivered. */
u32 event_ext(const struct vcpu *v);
/* The IRET that ends an NMI handler, or a hypervisor's view of it. */
void nmi_unblock(struct vcpu *v);

/* ---- branch_record.c ---- */
/* Whether DEBUGCTL.LBR makes this processor record control transfers. */
bool branch_recording(const struct vcpu *v);
/* The instruction v->insn at v->boundary_rip has run with recording on. */
void branch_record_instruction(struct vcpu *v);
/* An interrupt or exception that belongs to the instruction at @from has reached its handler. */
void branch_record_event(struct vcpu *v, u64 from);

/* The 16-bit r/m operand that selector instructions take. */
static inline u16 operand_rm16(struct vcpu *v, const struct insn *i)
{
    return i->flags & INSN_MEM ? mem_read16(v, i->seg, insn_ea(v, i)) : (u16)v->gpr[i->rm];
}
static inline u64 size_bits(unsigned size) { return size == 8 ? ~0ull : size == 4 ? 0xffffffffull : 0xffffull; }
/* Stores @value in the low @size bytes of a GPR; 4 clears the upper half. */
static inline void gpr_set(struct vcpu *v, unsigned r, u64 value, unsigned size)
{
    if (size == 2)
        reg16_set(v, r, (u16)value);
    else
        v->gpr[r] = value & size_bits(size);
}

/* Bodies that the opcode table names (insn.h: insn_fn). */
insn_fn insn_lldt, insn_ltr, insn_sldt, insn_str, insn_lar, insn_lsl, insn_verr, insn_verw, insn_arpl;
insn_fn insn_mov_sreg_load, insn_mov_sreg_store, insn_push_sreg, insn_pop_sreg, insn_load_far_pointer;
insn_fn insn_call_far, insn_call_far_ind, insn_jmp_far, insn_jmp_far_ind, insn_ret_far, insn_iret;
insn_fn insn_int_n, insn_int3, insn_into, insn_int1, insn_rsm;
insn_fn insn_syscall, insn_sysret, insn_sysenter, insn_sysexit, insn_swapgs;
insn_fn insn_pushf, insn_popf, insn_cli, insn_sti, insn_clac, insn_stac;
