/*
 * Differences between the opcode table and Capstone 4.0.2, each with its reason. "old": Capstone 4
 * does not know the instruction yet.
 */
#include "differences.h"

#include <ctype.h>
#include <fnmatch.h>
#include <string.h>

/* Two names of one instruction; fnmatch patterns. */
static const struct {
    const char *ours, *theirs;
} synonyms[] = {
    {"mov", "movabs"},
    {"fwait", "wait"},
    {"xlat", "xlatb"},
    {"jmp", "ljmp"},
    {"call", "lcall"},
    {"shl", "sal"},
    {"popad", "popal"},
    {"pushad", "pushal"},
    {"popa", "popaw"},
    {"pusha", "pushaw"},
    {"retf", "retfq"},
    {"fsetpm287_nop", "fsetpm"},
    {"sysretq", "sysret"},
    {"sysexitq", "sysexit"},
    {"movq", "movd"}, /* with REX.W */
    {"vcvtpd2ps", "vcvtpd2psx"},
    {"vcvtpd2dq", "vcvtpd2dqx"},
    {"vcvttpd2dq", "vcvttpd2dqx"},
    /* The predicate is part of the name. */
    {"cmpps", "cmp*ps"},
    {"cmppd", "cmp*pd"},
    {"cmpss", "cmp*ss"},
    {"cmpsd", "cmp*sd"},
    {"vcmpps", "vcmp*ps"},
    {"vcmppd", "vcmp*pd"},
    {"vcmpss", "vcmp*ss"},
    {"vcmpsd", "vcmp*sd"},
};

/* The same instruction, perhaps under two names. */
bool same_name(const char *ours, const char *theirs)
{
    if (!strcmp(ours, theirs))
        return true;
    for (unsigned n = 0; n < ARRAY_SIZE(synonyms); n++)
        if (!fnmatch(synonyms[n].ours, ours, 0) && !fnmatch(synonyms[n].theirs, theirs, 0))
            return true;
    return false;
}

static bool same_name_any_case(const char *ours, const char *theirs)
{
    char lower[24];
    unsigned n = 0;
    for (; ours[n] && n + 1 < sizeof(lower); n++)
        lower[n] = (char)tolower((unsigned char)ours[n]);
    lower[n] = 0;
    return same_name(lower, theirs);
}

/* ---- conditions ---- */

static bool is_legacy_prefix(u8 b)
{
    return b == 0x66 || b == 0x67 || b == 0xf0 || b == 0xf2 || b == 0xf3 || (b & 0xe7) == 0x26 || b == 0x64 || b == 0x65;
}

/* The first byte that is no prefix. */
static const u8 *opcode_bytes(const struct sample *s)
{
    const u8 *p = s->bytes;
    while (is_legacy_prefix(*p) || (s->mode == CODE_64 && *p >> 4 == 4))
        p++;
    return p;
}

static bool has_prefix(const struct sample *s, u8 prefix)
{
    for (const u8 *p = s->bytes; p < opcode_bytes(s); p++)
        if (*p == prefix)
            return true;
    return false;
}

/* Whether Capstone's answer is ours for the same bytes less the prefixes that @drop names. */
static bool answer_without(const struct sample *s, bool (*drop)(unsigned n, u8 prefix, unsigned arg), unsigned arg)
{
    const u8 *opcode = opcode_bytes(s);
    u8 bytes[16] = {0};
    unsigned n = 0, dropped = 0;
    for (const u8 *p = s->bytes; p < s->bytes + 16; p++) {
        if (p < opcode && drop((unsigned)(p - s->bytes), *p, arg))
            dropped++;
        else
            bytes[n++] = *p;
    }
    struct decode_ctx ctx = {.mode = s->mode};
    struct insn i;
    return dropped && insn_decode(&ctx, bytes, 15, &i) == DECODE_OK && i.row && i.len + dropped == s->theirs_len &&
           same_name_any_case(insn_rows[i.row].mnemonic, s->theirs);
}
static bool is_mandatory(unsigned n, u8 prefix, unsigned arg) { return prefix == 0x66 || prefix == 0xf2 || prefix == 0xf3; }
static bool is_number(unsigned n, u8 prefix, unsigned arg) { return n == arg; }
static bool is_rex(unsigned n, u8 prefix, unsigned arg) { return prefix >> 4 == 4; }

static bool osz(const struct sample *s) { return has_prefix(s, 0x66); }
static bool rep(const struct sample *s) { return has_prefix(s, 0xf2) || has_prefix(s, 0xf3); }
static bool mandatory(const struct sample *s) { return osz(s) || rep(s); }
static bool locked(const struct sample *s) { return has_prefix(s, 0xf0); }
static bool mandatory_ignored(const struct sample *s) { return answer_without(s, is_mandatory, 0); }
static bool mandatory_16(const struct sample *s)
{
    return mandatory(s) && (!strcmp(s->theirs, "-") || answer_without(s, is_mandatory, 0));
}
static bool one_prefix_ignored(const struct sample *s)
{
    unsigned count = (unsigned)(opcode_bytes(s) - s->bytes);
    for (unsigned n = 0; n < count; n++)
        if (answer_without(s, is_number, n))
            return true;
    return s->mode == CODE_64 && answer_without(s, is_rex, 0);
}
static bool vex_w1(const struct sample *s)
{
    const u8 *p = opcode_bytes(s);
    return p[0] == 0xc4 && p[2] & 0x80;
}
static bool vex_map3(const struct sample *s)
{
    const u8 *p = opcode_bytes(s);
    return p[0] == 0xc4 && (p[1] & 0x1f) == 3;
}
static bool fence(const struct sample *s) { return s->insn->modrm & 7; }
static bool osz_near_branch(const struct sample *s) { return osz(s) && s->theirs_len + 2 == s->ours_len; }
static bool asz(const struct sample *s) { return has_prefix(s, 0x67); }
static bool asz_near_branch(const struct sample *s) { return has_prefix(s, 0x67) && s->theirs_len + 2 == s->ours_len; }
static bool osz_ret(const struct sample *s) { return osz(s) && s->theirs_len == s->ours_len + 2; }
static bool before_vex(const struct sample *s) { return opcode_bytes(s) > s->bytes && (*opcode_bytes(s) & 0xfe) == 0xc4; }
static bool osz_rep_moffs(const struct sample *s) { return osz(s) && rep(s) && s->insn->opcode >> 2 == 0xa0 >> 2; }
static bool rep_90(const struct sample *s) { return rep(s) && s->insn->opcode == 0x90; }

const struct difference known[] = {
    /* Undefined here, defined there. */
    {IN_ALL, "-", "*", mandatory_ignored, "rows without a mandatory prefix (NP) are #UD with one; Capstone ignores it"},
    {IN_ALL, "-", "*", locked, "LOCK without a lockable memory destination is #UD"},
    {IN32 | IN64, "-", "*", vex_w1, "rows that ask for VEX.W0 are #UD with W1; Capstone ignores W"},
    {IN32 | IN64, "-", "v*", before_vex, "66, F2, F3, LOCK or REX before VEX is #UD"},
    {IN_ALL, "-", "extrq", NULL, "66 0F 78 is EXTRQ with ModRM.reg 0 only"},
    {IN_ALL, "-", "pcommit", NULL, "PCOMMIT was withdrawn"},
    {IN_ALL, "-", "mov", NULL, "8C and 8E with ModRM.reg 6 or 7, and loading CS, are #UD"},
    {IN32 | IN64, "-", "v*gather*", NULL, "a gather needs a SIB byte and three distinct registers"},
    {IN_ALL, "-", "femms", NULL, "3DNow! is absent"},
    {IN_ALL, "-", "pf*", NULL, "3DNow! is absent"},
    {IN_ALL, "-", "pi2f*", NULL, "3DNow! is absent"},
    {IN_ALL, "-", "pmulhrw", NULL, "3DNow! is absent"},
    {IN_ALL, "-", "pswapd", NULL, "3DNow! is absent"},
    {IN32 | IN64, "-", "vf*", vex_map3, "FMA4 is absent"},
    {IN32 | IN64, "-", "vpermil2p?", NULL, "XOP is absent"},
    {IN_ALL, "-", "getsec", NULL, "SMX is absent"},
    {IN_ALL, "-", "encl?", NULL, "SGX is absent"},
    {IN_ALL, "-", "xbegin", NULL, "TSX is absent"},
    {IN_ALL, "-", "xabort", NULL, "TSX is absent"},
    {IN_ALL, "-", "xend", NULL, "TSX is absent"},
    {IN_ALL, "-", "xtest", NULL, "TSX is absent"},
    {IN_ALL, "-", "xcrypt*", NULL, "PadLock is absent"},
    {IN_ALL, "-", "xstore*", NULL, "PadLock is absent"},
    {IN_ALL, "-", "xsha*", NULL, "PadLock is absent"},
    {IN_ALL, "-", "montmul", NULL, "PadLock is absent"},
    {IN16 | IN32, "-", "syscall", NULL, "Intel: 64-bit mode only"},
    {IN16 | IN32, "-", "sysret", NULL, "Intel: 64-bit mode only"},
    {IN16 | IN32, "-", "swapgs", NULL, "64-bit mode only"},
    {IN_ALL, "-", "k*", NULL, "AVX-512 mask instructions are absent"},
    /* Defined here, undefined there. */
    {IN_ALL, "nop", "-", NULL, "0F 0D and 0F 18 to 0F 1E are reserved NOPs"},
    {IN_ALL, "prefetch*", "-", NULL, "all of 0F 0D /r is a prefetch hint"},
    {IN_ALL, "ud0", "*", NULL, "UD0 has a ModRM byte (SDM vol. 2 \"UD\")"},
    {IN_ALL, "ud1", "ud2b", NULL, "UD1 has a ModRM byte (SDM vol. 2 \"UD\")"},
    {IN64, "mov", "-", NULL, "REX.R and REX.B do not extend segment register numbers"},
    {IN_ALL, "?fence", "-", fence, "ModRM.rm is ignored"},
    {IN_ALL, "movdir*", "-", NULL, "old"},
    {IN_ALL, "gf2p8*", "-", NULL, "old"},
    {IN32 | IN64, "vgf2p8*", "-", NULL, "old"},
    {IN32 | IN64, "vpdp*", "-", NULL, "old (AVX-VNNI)"},
    {IN32 | IN64, "vaes*", "-", NULL, "old (VAES)"},
    {IN32 | IN64, "vpclmulqdq", "-", NULL, "old (VPCLMULQDQ)"},
    {IN_ALL, "clzero", "-", NULL, "old"},
    {IN_ALL, "rdpru", "-", NULL, "old"},
    {IN_ALL, "rdssp?", "-", NULL, "old"},
    {IN_ALL, "incssp?", "-", NULL, "old"},
    {IN_ALL, "wrss?", "-", NULL, "old"},
    {IN_ALL, "wruss?", "-", NULL, "old"},
    {IN_ALL, "*ssbsy", "-", NULL, "old"},
    {IN_ALL, "clrssbsy", "xsaveopt", NULL, "old: with 66 and F3"},
    {IN_ALL, "saveprevssp", "-", NULL, "old"},
    {IN_ALL, "rstorssp", "-", NULL, "old"},
    {IN_ALL, "endbr*", "-", NULL, "old"},
    {IN_ALL, "umonitor", "*", NULL, "old"},
    {IN_ALL, "umwait", "*", NULL, "old"},
    {IN_ALL, "tpause", "*", NULL, "old"},
    {IN_ALL, "serialize", "-", NULL, "old"},
    {IN_ALL, "??pkru", "-", NULL, "old"},
    {IN32 | IN64, "vbroadcasti128", "-", NULL, "Capstone refuses displacements without a base"},
    /* Two opinions. */
    {IN_ALL, "rdpid", "rdseed", NULL, "old"},
    {IN_ALL, "wbnoinvd", "wbinvd", NULL, "old"},
    {IN_ALL, "cldemote", "nop", NULL, "old"},
    {IN16, "cbw", "cwde", NULL, "Capstone takes 98 and 99 for the 32-bit forms in 16-bit code"},
    {IN16, "cwd", "cdq", NULL, "Capstone takes 98 and 99 for the 32-bit forms in 16-bit code"},
    {IN64, "j*", "j*", osz_near_branch, "Intel: 66 does not shorten near branches in 64-bit mode"},
    {IN64, "call", "call", osz_near_branch, "Intel: 66 does not shorten near branches in 64-bit mode"},
    {IN64, "call", "call", asz_near_branch, "Capstone takes 67 with REX for an operand size"},
    {IN64, "ret", "ret", osz_ret, "Capstone takes RET Iw with 66 and REX.W for a 32-bit immediate"},
    {IN64, "outsd", "outsw", asz, "Capstone takes 67 with REX.W for an operand size"},
    {IN64, "pushfq", "pushf", asz, "Capstone takes 67 with REX.W for an operand size"},
    {IN32, "mov", "-", osz_rep_moffs, "Capstone refuses A0 to A3 with 66 and F2 or F3"},
    {IN16, "*", "*", mandatory_16, "Capstone does not select by mandatory prefix in 16-bit code"},
    {IN_ALL, "*", "*", one_prefix_ignored, "Capstone drops one of several prefixes"},
    {IN_ALL, "sqrt?[sd]", "sqrtp?", NULL, "Capstone takes 0F 51 for SQRTPS or SQRTPD whatever the prefix"},
    {IN_ALL, "pause", "*", rep_90, "F3 90 is PAUSE unless REX.B is there"},
    {IN32, "vpinsrd", "vpinsrq", NULL, "VEX.W is ignored outside 64-bit mode"},
    {IN32, "vpextrd", "vpextrq", NULL, "VEX.W is ignored outside 64-bit mode"},
};
const unsigned known_count = ARRAY_SIZE(known);
u64 known_hits[ARRAY_SIZE(known)];
