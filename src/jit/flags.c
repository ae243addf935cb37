/*
 * The guest's arithmetic flags in translated code. Liveness within the block says which matter behind
 * each instruction; behind the last all do. They stay in the host's EFLAGS while nothing disturbs them;
 * a TLB check does, so where some matter they are saved first (LAHF, SETO) and loaded again where an
 * instruction needs them.
 */
#include "jit/tr.h"

/* What the instruction does to the arithmetic flags: which it reads and which it replaces, whatever they were. */
void flag_effects(const struct insn *i, bool native, u32 *reads, u32 *writes)
{
    const struct insn_row *row = insn_row(i);
    if (!native) { /* the body finds and leaves all of them in struct vcpu */
        *reads = (u32)FL_ARITH;
        *writes = 0;
        return;
    }
    u32 r = row->flags_read & FL_ARITH, w = row->flags_written & FL_ARITH, u = row->flags_undefined & FL_ARITH;
    bool plain = !row->vex && row->map == 0;
    bool shift = plain && ((row->opcode & 0xfe) == 0xc0 || (row->opcode & 0xfc) == 0xd0);
    unsigned ext = i->modrm >> 3 & 7;
    if (shift && (row->opcode & 0xfe) == 0xc0) {
        unsigned count = (unsigned)i->imm & (i->opsize == 8 ? 63 : 31);
        if (!count)
            r = w = u = 0;
        else if (ext != 2 && ext != 3)
            r = 0;
    }
    /* Undefined flags are what the host makes of them, which may be what they were. Not so in the plain
     * logical operations and shifts, which the interpreter runs without loading the flags either. */
    bool logic = plain && (row->opcode < 0x40 || row->opcode == 0x80 || row->opcode == 0x81 || row->opcode == 0x82 ||
                           row->opcode == 0x83 || row->opcode == 0x84 || row->opcode == 0x85 || row->opcode == 0xa8 ||
                           row->opcode == 0xa9 || (row->opcode >= 0xf6 && row->opcode <= 0xf7 && ext < 4));
    if (!logic && !(shift && ext >= 4))
        r |= u;
    *reads = r;
    *writes = w | u;
}

void flags_save(struct tr *t) /* RAX */
{
    struct code_buf *c = t->c;
    put1(c, 0x9f);                          /* lahf */
    put1(c, 0x0f), put1(c, 0x90), put1(c, 0xc0); /* seto al */
    put_rm(c, false, 0x89, H_RAX, H_RSP, F_AT(flags));
}
void flags_load(struct tr *t) /* RAX */
{
    struct code_buf *c = t->c;
    put_rm(c, false, 0x8b, H_RAX, H_RSP, F_AT(flags));
    put1(c, 0x04), put1(c, 0x7f); /* add al, 0x7f: OF comes back */
    put1(c, 0x9e);                /* sahf */
}
/* EFLAGS are about to be overwritten by something that is not the instruction. */
void flags_disturb(struct tr *t)
{
    if (t->flags == FL_HOST)
        t->flags = FL_NOWHERE;
    else if (t->flags == FL_BOTH)
        t->flags = FL_MEMORY;
}
void flags_keep(struct tr *t)
{
    if (t->flags == FL_HOST) {
        flags_save(t);
        t->flags = FL_BOTH;
    }
}
/* Before the instruction itself, when RAX is free: the flags it needs. */
void flags_want(struct tr *t)
{
    if (t->need && t->flags == FL_MEMORY) {
        flags_load(t);
        t->flags = FL_BOTH;
    }
}
void flags_spare(struct tr *t)
{
    flags_keep(t);
    flags_disturb(t);
}
