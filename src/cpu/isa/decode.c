/*
 * The decoder. Prefixes, opcode map, ModRM and SIB are read by hand; which row an opcode byte means is
 * looked up in tables made from opcodes.tbl: isa_slots says where the candidates of (map, opcode) are,
 * split by ModRM.mod = 3 and reg or by mandatory prefix where rows differ in those, and the few
 * candidates left are compared with one packed word of encoding state (K_*, tables.h).
 *
 * Manuals: SDM vol. 2, "Instruction Format"; APM vol. 3, "Instruction Encoding".
 */
#include "cpu/isa/rows.h"
#include "cpu/isa/tables.h"
#include "base/bits.h"
#include "cpu/features.h"

enum prefix { P_NONE, P_SEG, P_OSZ, P_ASZ, P_LOCK, P_REPNE, P_REP, P_REX };

static const u8 prefix_class[256] = {
    [0x26] = P_SEG, [0x2e] = P_SEG, [0x36] = P_SEG, [0x3e] = P_SEG, [0x64] = P_SEG, [0x65] = P_SEG,
    [0x66] = P_OSZ, [0x67] = P_ASZ, [0xf0] = P_LOCK, [0xf2] = P_REPNE, [0xf3] = P_REP,
    [0x40 ... 0x4f] = P_REX, /* in 64-bit mode */
};

/* 16-bit addressing (SDM vol. 2 table "16-Bit Addressing Forms"): base, index, default segment. */
static const struct {
    u8 base, index, seg;
} address16[8] = {
    {RBX, RSI, SEG_DS}, {RBX, RDI, SEG_DS}, {RBP, RSI, SEG_SS}, {RBP, RDI, SEG_SS},
    {RSI, REG_NONE, SEG_DS}, {RDI, REG_NONE, SEG_DS}, {RBP, REG_NONE, SEG_SS}, {RBX, REG_NONE, SEG_DS},
};

struct reader {
    const u8 *at, *end;
    bool full; /* @end is the architectural limit of 15 bytes, not the end of what is there */
};

#define MISSING(r) ((r)->full ? DECODE_TOO_LONG : DECODE_SHORT)
#define NEED(r, n)                                                                                           \
    do {                                                                                                    \
        if (unlikely((r)->end - (r)->at < (ptrdiff_t)(n)))                                                     \
            return MISSING(r);                                                                               \
    } while (0)

/* The byte offset of byte register @n in the register file. */
static inline u8 byte_register(unsigned n, bool rex)
{
    return (u8)(rex || n < 4 || n > 7 ? n * 8 : (n - 4) * 8 + 1);
}

/* The part of the ModRM, SIB and displacement bytes that names memory. */
static enum decode_status decode_memory(struct reader *r, struct insn *out, unsigned mod, unsigned rm, unsigned rex_x,
                                        unsigned rex_b, bool mode64)
{
    out->flags |= INSN_MEM;
    if (out->adsize == 2) {
        if (mod == 0 && rm == 6) {
            NEED(r, 2);
            out->disp = (s16)load16(r->at);
            r->at += 2;
            return DECODE_OK;
        }
        out->base = address16[rm].base;
        out->index = address16[rm].index;
        if (!(out->flags & INSN_SEG))
            out->seg = address16[rm].seg;
        if (mod == 1) {
            NEED(r, 1);
            out->disp = (s8)*r->at++;
        } else if (mod == 2) {
            NEED(r, 2);
            out->disp = (s16)load16(r->at);
            r->at += 2;
        }
        return DECODE_OK;
    }
    unsigned base = rm;
    if (rm == 4) {
        NEED(r, 1);
        unsigned sib = *r->at++;
        out->scale = (u8)(sib >> 6);
        out->index = (u8)((sib >> 3 & 7) | rex_x);
        if (out->index == RSP)
            out->index = REG_NONE; /* vector indices put it back */
        base = sib & 7;
    }
    if (base == 5 && mod == 0) {
        NEED(r, 4);
        out->disp = (s32)load32(r->at);
        r->at += 4;
        if (rm == 5 && mode64)
            out->base = REG_RIP;
        return DECODE_OK;
    }
    out->base = (u8)(base | rex_b);
    if ((out->base == RSP || out->base == RBP) && !(out->flags & INSN_SEG))
        out->seg = SEG_SS;
    if (mod == 1) {
        NEED(r, 1);
        out->disp = (s8)*r->at++;
    } else if (mod == 2) {
        NEED(r, 4);
        out->disp = (s32)load32(r->at);
        r->at += 4;
    }
    return DECODE_OK;
}

static enum decode_status decode_immediate(struct reader *r, struct insn *out, unsigned kind)
{
    const u8 *p = r->at;
    unsigned n;
    switch (kind) {
    case IMM_NONE:
        return DECODE_OK;
    case IMM_IB:
    case IMM_IBS:
        NEED(r, 1);
        out->imm = kind == IMM_IB ? *p : (u64)(s64)(s8)*p;
        r->at++;
        return DECODE_OK;
    case IMM_IW:
        NEED(r, 2);
        out->imm = load16(p);
        r->at += 2;
        return DECODE_OK;
    case IMM_IV:
        if (out->opsize == 8) {
            NEED(r, 8);
            out->imm = load64(p);
            r->at += 8;
            return DECODE_OK;
        }
        /* fall through */
    case IMM_IZ:
        n = out->opsize == 2 ? 2 : 4;
        NEED(r, n);
        out->imm = n == 2 ? (u64)(s64)(s16)load16(p) : (u64)(s64)(s32)load32(p);
        r->at += n;
        return DECODE_OK;
    case IMM_AP:
        n = out->opsize == 2 ? 2 : 4;
        NEED(r, n + 2);
        out->imm = n == 2 ? load16(p) : load32(p);
        out->imm2 = load16(p + n);
        r->at += n + 2;
        return DECODE_OK;
    case IMM_IW_IB:
        NEED(r, 3);
        out->imm = load16(p);
        out->imm2 = p[2];
        r->at += 3;
        return DECODE_OK;
    case IMM_IB_IB:
        NEED(r, 2);
        out->imm = p[0];
        out->imm2 = p[1];
        r->at += 2;
        return DECODE_OK;
    default: /* IMM_MOFFS */
        NEED(r, out->adsize);
        out->disp = (s64)load_le(p, out->adsize);
        out->flags |= INSN_MEM;
        r->at += out->adsize;
        return DECODE_OK;
    }
}

static inline u8 effective_opsize(const struct decode_ctx *ctx, unsigned rule, u8 size, bool osz, bool w)
{
    bool mode64 = ctx->mode == CODE_64;
    switch (rule) {
    default:
        return size;
    case RULE_B:
        return 1;
    case RULE_D64:
        return mode64 && size == 4 ? 8 : size;
    case RULE_F64:
        return mode64 ? (ctx->amd && osz && !w ? 2 : 8) : size;
    case RULE_Y:
        return w && mode64 ? 8 : 4;
    case RULE_Z:
        return size == 8 ? 4 : size;
    case RULE_N64:
        return mode64 ? 8 : 4;
    case RULE_N64V:
        return mode64 ? 8 : size;
    }
}

static enum decode_status undefined(struct insn *out, const u8 *start, const u8 *at)
{
    out->row = ROW_UD;
    out->len = (u8)(at - start);
    return DECODE_OK;
}

/* log2 of an operand's size in bytes, a power of two. */
static unsigned log2_size(unsigned bytes) { return (unsigned)__builtin_ctz(bytes); }

/* log2 of the disp8 scale (SDM vol. 2 "Compressed Displacement (disp8*N) Support in EVEX"). */
static unsigned disp8_shift(unsigned tuple, unsigned vl, unsigned elem, bool broadcast)
{
    if (broadcast)
        return log2_size(elem);
    switch (tuple) {
    case TUPLE_FULL: case TUPLE_FULLMEM:
        return 4 + vl;
    case TUPLE_HALF: case TUPLE_HALFMEM:
        return 3 + vl;
    case TUPLE_QUARTER: case TUPLE_QUARTERMEM:
        return 2 + vl;
    case TUPLE_EIGHTHMEM:
        return 1 + vl;
    case TUPLE_M128:
        return 4;
    case TUPLE_DUP:
        return vl == 0 ? 3 : 4 + vl;
    case TUPLE_T2:
        return log2_size(elem) + 1;
    case TUPLE_T4:
        return log2_size(elem) + 2;
    case TUPLE_T8:
        return log2_size(elem) + 3;
    default: /* TUPLE_T1S */
        return log2_size(elem);
    }
}

static enum decode_status decode(const struct decode_ctx *ctx, const u8 *bytes, unsigned avail, struct insn *out)
{
    struct reader rd = {bytes, bytes + avail, avail >= 15};
    struct reader *r = &rd;
    const bool mode64 = ctx->mode == CODE_64;
    unsigned rex = 0, key = 0, lock = 0, rep = 0;
    unsigned map = 0, vex = 0;
    u8 opcode;

    *out = (struct insn){.base = REG_NONE, .index = REG_NONE, .seg = SEG_DS};

    /* ---- prefixes ---- */
    for (;;) {
        NEED(r, 1);
        opcode = *r->at++;
        unsigned class = prefix_class[opcode];
        if (likely(class == P_NONE))
            break;
        if (class == P_REX) {
            if (!mode64)
                break;
            rex = opcode;
            continue;
        }
        rex = 0; /* REX counts only right before the opcode */
        switch (class) {
        case P_SEG:
            if (opcode == 0x3e)
                out->flags |= INSN_NOTRACK;
            else
                out->flags &= (u16)~INSN_NOTRACK;
            if (opcode >= 0x64) {
                out->seg = opcode == 0x64 ? SEG_FS : SEG_GS;
                out->flags |= INSN_SEG;
            } else if (!mode64) {
                out->seg = opcode >> 3 & 3;
                out->flags |= INSN_SEG;
            }
            break;
        case P_OSZ:
            out->flags |= INSN_OSZ;
            break;
        case P_ASZ:
            out->flags |= INSN_ASZ;
            break;
        case P_LOCK:
            lock = 1;
            break;
        default:
            rep = class == P_REP ? K_F3 : K_F2;
            break;
        }
    }

    const bool osz = out->flags & INSN_OSZ;
    u8 opsize;
    if (mode64) {
        out->adsize = out->flags & INSN_ASZ ? 4 : 8;
        opsize = rex & 8 ? 8 : osz ? 2 : 4;
        key = K_64;
    } else {
        out->adsize = (ctx->mode == CODE_32) == !(out->flags & INSN_ASZ) ? 4 : 2;
        opsize = (ctx->mode == CODE_32) == !osz ? 4 : 2;
    }
    key |= (osz ? K_66 : 0) | rep | (rex & 8 ? K_W : 0);
    unsigned rex_r = rex << 1 & 8, rex_x = rex << 2 & 8, rex_b = rex << 3 & 8;
    unsigned high_r = 0, high_v = 0, vvvv_raw = 0, evex2 = 0;

    /* ---- opcode maps ---- */
    if (opcode == 0x0f) {
        NEED(r, 1);
        opcode = *r->at++;
        map = 1;
        if (opcode == 0x38 || opcode == 0x3a) {
            map = opcode == 0x38 ? 2 : 3;
            NEED(r, 1);
            opcode = *r->at++;
        }
    } else if (opcode == 0xc4 || opcode == 0xc5 || opcode == 0x62) {
        /* Outside 64-bit mode LES, LDS and BOUND with a register operand, which does not exist, are the prefix. */
        NEED(r, 1);
        if ((mode64 || *r->at >= 0xc0) && !ctx->real_or_v86) {
            static const u8 pp_key[4] = {0, K_66, K_F3, K_F2};
            unsigned p0 = *r->at++, p1;
            if (lock || rep || osz || rex)
                return undefined(out, bytes, r->at);
            vex = 1;
            if (opcode == 0xc5) {
                p1 = p0;
                map = 4;
                rex_r = ~p0 >> 4 & 8;
                p1 &= 0x7f;
            } else {
                NEED(r, 1);
                p1 = *r->at++;
                rex_r = ~p0 >> 4 & 8;
                rex_x = ~p0 >> 3 & 8;
                rex_b = ~p0 >> 2 & 8;
                unsigned select = p0 & (opcode == 0x62 ? 0xf : 0x1f);
                if (opcode == 0xc4) {
                    if (select < 1 || select > 3)
                        return undefined(out, bytes, r->at);
                    map = 3 + select;
                } else {
                    static const u8 evex_map[8] = {0, 7, 8, 9, 0, 10, 11, 0};
                    NEED(r, 1);
                    evex2 = *r->at++;
                    vex = 2;
                    if (select > 7 || !evex_map[select] || !(p1 & 4) || (!mode64 && !(evex2 & 8)))
                        return undefined(out, bytes, r->at);
                    map = evex_map[select];
                    high_r = ~p0 & 0x10;
                    high_v = ~evex2 << 1 & 0x10; /* outside 64-bit mode: 0 */
                    out->flags |= INSN_EVEX | (evex2 & 0x80 ? INSN_ZERO : 0);
                    out->mask = evex2 & 7;
                }
            }
            vvvv_raw = ~p1 >> 3 & 15;
            key = (key & ~(unsigned)(K_66 | K_F3 | K_F2 | K_W)) | pp_key[p1 & 3] | (p1 & 0x80 ? K_W : 0);
            if (vex == 1) {
                out->flags |= INSN_VEX;
                out->vl = p1 >> 2 & 1;
            } else {
                out->vl = evex2 >> 5 & 3;
                if (evex2 & 0x10) {
                    key |= K_EVEX_B;
                    out->flags |= INSN_BCST;
                }
            }
            if (!mode64) {
                rex_r = rex_x = rex_b = 0;
                high_r = 0;
            }
            out->vvvv = (u8)((mode64 ? vvvv_raw : vvvv_raw & 7) | (mode64 ? high_v : 0));
            NEED(r, 1);
            opcode = *r->at++;
            opsize = mode64 && key & K_W ? 8 : 4;
        }
    }
    if (rex)
        out->flags |= INSN_REX;
    out->opcode = opcode;

    const struct opcode_slot *slot = &isa_slots[map][opcode];
    if (unlikely(!(slot->flags & SLOT_USED)))
        return undefined(out, bytes, r->at);
    key |= rex_b ? K_REXB : 0;
    key |= opsize == 4 ? K_O32 : opsize == 8 ? K_O64 : K_O16;
    key |= out->adsize == 8 ? K_A64 : out->adsize == 4 ? K_A32 : K_A16;
    key |= ctx->amd ? K_AMD : 0;

    /* ---- ModRM ---- */
    unsigned mod = 3, modreg = 0;
    const u8 *disp8 = NULL;
    if (slot->flags & SLOT_MODRM) {
        NEED(r, 1);
        unsigned modrm = *r->at++;
        mod = slot->flags & SLOT_REGONLY ? 3 : modrm >> 6; /* MOV CR and DR ignore mod */
        out->modrm = (u8)modrm;
        unsigned reg = modrm >> 3 & 7, rm = modrm & 7;
        key |= reg << K_REG_SHIFT | rm << K_RM_SHIFT;
        modreg = reg;
        out->reg = (u8)(reg | rex_r | high_r);
        if (mod == 3) {
            key |= K_MOD3;
            modreg |= 8;
            out->rm = (u8)(rm | rex_b | (vex == 2 && mode64 ? rex_x << 1 : 0));
        } else {
            enum decode_status st = decode_memory(r, out, mod, rm, rex_x, rex_b, mode64);
            if (unlikely(st != DECODE_OK))
                return st;
            disp8 = mod == 1 ? r->at - 1 : NULL;
        }
    } else {
        out->reg = out->rm = (u8)((opcode & 7) | rex_b);
    }
    key |= (unsigned)out->vl << K_L_SHIFT;

    /* ---- the row ---- */
    unsigned at = slot->base;
    if (slot->kind) {
        unsigned pp = key & K_F2 ? 3 : key & K_F3 ? 2 : key & K_66 ? 1 : 0;
        unsigned n = slot->kind == 1 ? modreg : slot->kind == 2 ? pp : pp * 16 + modreg;
        at = isa_subs[at + n];
    }
    const struct candidate *c = &isa_candidates[at];
    const u8 *features = ctx->features;
    if (unlikely(vex == 2 && out->flags & INSN_BCST && mod == 3))
        key = (key & ~(3u << K_L_SHIFT)) | 2u << K_L_SHIFT; /* L'L is the rounding mode: 512 bits */
    for (;; c++) {
        if ((key ^ c->value) & c->mask)
            continue;
        if (features && ((c->feature && !features[c->feature]) || (c->feature2 && !features[c->feature2])))
            continue;
        break;
    }
    out->row = c->row;
    if (unlikely(c->row == ROW_UD))
        return undefined(out, bytes, r->at);
    const struct row_decode *d = &isa_row_decode[c->row];
    const u32 dec = d->flags;

    if (vex)
        out->opsize = effective_opsize(ctx, d->rule, opsize, false, key & K_W);
    else
        out->opsize = effective_opsize(ctx, d->rule, opsize, osz, rex & 8);
    if (rep && !(dec & DEC_PPREP) && !vex)
        out->flags |= rep == K_F3 ? INSN_REP : INSN_REPNE;
    if (dec & DEC_PP66)
        out->flags &= (u16)~INSN_OSZ;
    out->reg8 = byte_register(out->reg, rex);
    out->rm8 = byte_register(out->rm, rex);

    if (unlikely(d->imm)) {
        enum decode_status st = decode_immediate(r, out, d->imm);
        if (unlikely(st != DECODE_OK))
            return st;
    }

    /* ---- what remains is rare ---- */
    if (unlikely(lock)) {
        if (dec & DEC_LOCKCR8 && out->reg < 8 && ctx->amd && features && features[FEAT_CR8_LEGACY])
            out->reg |= 8; /* APM vol. 3 "MOV CRn": LOCK MOV CR0 is MOV CR8 */
        else if (!(dec & DEC_LOCK) || !(out->flags & INSN_MEM))
            return undefined(out, bytes, r->at);
        else
            out->flags |= INSN_LOCK;
    }
    if (dec & (DEC_SREG | DEC_SREG_LOAD | DEC_CREG | DEC_DREG)) {
        if (dec & (DEC_SREG | DEC_SREG_LOAD)) {
            out->reg &= 7;
            if (out->reg > SEG_GS || (dec & DEC_SREG_LOAD && out->reg == SEG_CS))
                return undefined(out, bytes, r->at);
        } else if (dec & DEC_CREG) {
            if (!(1u << out->reg & (1u << 0 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 8)))
                return undefined(out, bytes, r->at);
        } else if (out->reg > 7) {
            return undefined(out, bytes, r->at);
        }
    }
    if (vex) {
        if (dec & DEC_NOVVVV && (vvvv_raw || (mode64 && high_v && !(dec & DEC_VSIB))))
            return undefined(out, bytes, r->at);
        if (dec & DEC_LIG)
            out->vl = 0;
        if (dec & DEC_IS4 && !mode64)
            out->imm &= 0x7f; /* of eight registers: bit 7 is ignored */
        if (dec & DEC_VSIB) {
            /* A SIB byte there must be; its index is a vector, 4 included (SDM vol. 2 "Vector SIB (VSIB) Memory Addressing"). */
            if ((out->modrm & 7) != 4 || out->adsize == 2)
                return undefined(out, bytes, r->at);
            if (out->index == REG_NONE)
                out->index = 4;
            out->flags |= INSN_VSIB;
            if (vex == 2) {
                out->index |= (u8)high_v;
                if (!(dec & DEC_STORE) && out->index == out->reg) /* a gather */
                    return undefined(out, bytes, r->at);
            } else if (out->index == out->reg || out->index == out->vvvv || out->reg == out->vvvv) {
                return undefined(out, bytes, r->at);
            }
        }
        /* Register fields wider than the registers they name: SDM vol. 2 "#UD Conditions of Operand-Encoding EVEX
         * Prefix Bit Fields"; the bits that extend ModRM.rm are ignored instead. */
        if ((dec & DEC_REG3 && out->reg > 7) || (dec & DEC_VVVV3 && out->vvvv > 7) || (dec & DEC_REG4 && out->reg > 15))
            return undefined(out, bytes, r->at);
        if (dec & (DEC_RM3 | DEC_RM4))
            out->rm &= dec & DEC_RM3 ? 7 : 15;
        if (vex == 2) {
            if ((out->mask && dec & DEC_NOMASK) || (!out->mask && (dec & DEC_NEEDMASK || out->flags & INSN_ZERO)) ||
                (out->flags & INSN_ZERO && (dec & DEC_NOZERO || (dec & DEC_STORE && out->flags & INSN_MEM))))
                return undefined(out, bytes, r->at);
            if (dec & DEC_DISTINCT && (out->reg == out->vvvv || (!(out->flags & INSN_MEM) && out->reg == out->rm)))
                return undefined(out, bytes, r->at);
            bool broadcast = false;
            if (out->flags & INSN_BCST && !(out->flags & INSN_MEM)) {
                if (!(dec & DEC_RND))
                    return undefined(out, bytes, r->at);
                out->flags |= INSN_RND;
                out->vl = evex2 >> 5 & 3;
            } else {
                if ((evex2 >> 5 & 3) == 3 || (out->flags & INSN_BCST && !(dec & DEC_BCST)))
                    return undefined(out, bytes, r->at);
                if (dec & DEC_VL && out->vl < 2 && features && !features[FEAT_AVX512VL])
                    return undefined(out, bytes, r->at);
                broadcast = out->flags & INSN_BCST;
            }
            if (disp8)
                out->disp = (s64)((u64)out->disp << disp8_shift(d->tuple, out->vl, d->elem ? d->elem : out->opsize, broadcast));
        }
    }
    out->len = (u8)(r->at - bytes);
    return DECODE_OK;
}

/*
 * Whether an encoding that its prefixes make undefined is longer than 15 bytes: the length comes first (SDM
 * vol. 3 "Priority Among Concurrent Events"). It is that of the same opcode without those prefixes.
 */
static bool undefined_too_long(const struct decode_ctx *ctx, const u8 *bytes)
{
    unsigned n = 0;
    while (n < 15 && prefix_class[bytes[n]] != P_NONE && (prefix_class[bytes[n]] != P_REX || ctx->mode == CODE_64))
        n++;
    for (unsigned osz = 0; n && osz < 2; osz++) {
        u8 rest[16] = {0};
        unsigned kept = 0;
        struct insn i = {0};
        u32 seen = 0;
        for (unsigned k = 0; k < n; k++) {
            unsigned class = prefix_class[bytes[k]];
            if (((class == P_OSZ && !osz) || class == P_ASZ || (class == P_REX && k == n - 1)) && (class == P_REX || !(seen & BIT(class))))
                rest[kept++] = bytes[k];
            seen |= BIT(class);
        }
        unsigned room = 15 - kept < 15 - n ? 15 - kept : 15 - n; /* what lies beyond the 15 bytes counts as zero */
        memcpy(rest + kept, bytes + n, room);
        enum decode_status status = decode(ctx, rest, 15, &i);
        if (status == DECODE_OK && i.row != ROW_UD)
            return n + i.len - kept > 15;
        if (status == DECODE_OK && n + i.len - kept > 15)
            return true;
        /* Undefined with 66 too, which VEX does not go with: without it. */
    }
    return false;
}

enum decode_status insn_decode(const struct decode_ctx *ctx, const u8 *bytes, unsigned avail, struct insn *out)
{
    enum decode_status status = decode(ctx, bytes, avail, out);
    if (unlikely(out->row == ROW_UD) && status == DECODE_OK && avail >= 15 && undefined_too_long(ctx, bytes))
        return DECODE_TOO_LONG;
    return status;
}

unsigned operand_bytes(const struct insn *i, unsigned n)
{
    const struct operand *o = &insn_rows[i->row].opnd[n];
    unsigned vector = 16u << (i->flags & INSN_RND ? 2 : i->vl);
    if (o->kind == OPND_VEC_RM && (i->flags & (INSN_BCST | INSN_MEM)) == (INSN_BCST | INSN_MEM))
        return insn_rows[i->row].elem;
    switch (o->size) {
    case OPSZ_V:
        return o->kind == OPND_NONE ? 0 : i->opsize;
    case OPSZ_Z:
        return i->opsize == 2 ? 2 : 4;
    case OPSZ_Y:
        return i->opsize;
    case OPSZ_X:
    case OPSZ_XH:
    case OPSZ_XQ:
    case OPSZ_XE:
        return vector >> (o->size - OPSZ_X);
    case OPSZ_P:
        return i->opsize + 2u;
    case OPSZ_S:
        return i->opsize == 8 ? 10 : 6;
    case OPSZ_STACK:
        return i->opsize;
    case OPSZ_BIG:
        return 0;
    default:
        return o->size;
    }
}
