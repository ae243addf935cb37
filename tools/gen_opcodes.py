#!/usr/bin/env python3
"""Makes C from the opcode table (docs/adding-an-instruction.md).

usage: gen_opcodes.py [--check] [--include DIR] TABLE FEATURES_DEF VIRT_H OUTDIR

Writes into OUTDIR: rows.h (enum row_id), rows.c (row descriptors and the decoder's maps; refers to
no body), handlers.h (prototypes of the raw bodies), handlers0.c ... handlers{PARTS-1}.c, bind.c, and
opcodes.json. --check only parses and validates. Errors are FILE:LINE: reason; exit status 1.
"""
import json
import os
import re
import sys

PARTS = 4

# The packed state of a decoded encoding that a row's constraints are tested against (decode.c has
# the same list; rows.c emits these values as #defines for it). ORDER K
K_66, K_F3, K_F2, K_W = 1 << 0, 1 << 1, 1 << 2, 1 << 3
K_L_SHIFT, K_MOD3, K_REG_SHIFT, K_RM_SHIFT = 4, 1 << 6, 7, 10
K_64, K_O16, K_O32, K_O64 = 1 << 13, 1 << 14, 1 << 15, 1 << 16
K_A16, K_A32, K_A64 = 1 << 17, 1 << 18, 1 << 19
K_REXB, K_AMD, K_EVEX_B = 1 << 20, 1 << 21, 1 << 22
K_PP = K_66 | K_F3 | K_F2
K_L, K_REG, K_RM = 3 << K_L_SHIFT, 7 << K_REG_SHIFT, 7 << K_RM_SHIFT
K_O, K_A = K_O16 | K_O32 | K_O64, K_A16 | K_A32 | K_A64
ONE_HOT = (K_O, K_A)

CHECKS = {  # table name -> enum insn_check names
    'lock': ['LOCK'], 'no64': ['NO64'], 'only64': ['ONLY64'], 'prot': ['PROT'], 'cpl0': ['CPL0'],
    'iopl': ['IOPL'], 'x87': ['X87'], 'mmx': ['MMX'], 'sse': ['SSE'], 'avx': ['AVX'], 'avx512': ['AVX512'],
    'umip': ['UMIP'], 'aligned': ['ALIGN16'], 'align': ['ALIGN16', 'ALIGN_MM'], 'vmxon': ['VMXON'],
    'svme': ['SVME'], 'v86_ud': ['V86_UD'], 'end': ['END'], 'fwait': ['FWAIT'], 'x87nw': ['X87_NOWAIT'],
    'tsd': ['TSD'], 'pce': ['PCE'], 'cpl0ud': ['CPL0_UD'], 'osxsave': ['OSXSAVE'], 'ts': ['TS'],
    'nocompat': ['NOCOMPAT'], 'fsgsbase': ['FSGSBASE'], 'enabled': ['ENABLED'],
}
FLAGS = {'C': 0, 'P': 2, 'A': 4, 'Z': 6, 'S': 7, 'T': 8, 'I': 9, 'D': 10, 'O': 11, 'L': 12, 'N': 14, 'R': 16,
         'M': 17, 'K': 18, 'F': 19, 'Q': 20, 'J': 21}
SEGS = {'ES': 0, 'CS': 1, 'SS': 2, 'DS': 3, 'FS': 4, 'GS': 5}
GPR_FIXED = {}
for _n, _r in enumerate(('A', 'C', 'D', 'B')):
    GPR_FIXED.update({_r + 'L': (_n, 'b'), _r + 'X': (_n, 'w'), 'E' + _r + 'X': (_n, 'd'), 'R' + _r + 'X': (_n, 'q'),
                      'r' + _r + 'X': (_n, 'v'), 'e' + _r + 'X': (_n, 'z'), 'y' + _r + 'X': (_n, 'y')})
SIZES = {  # letter -> operand.size
    'b': '1', 'w': '2', 'd': '4', 'q': '8', 'dq': '16', 'qq': '32', 't': '10', 'v': 'OPSZ_V', 'z': 'OPSZ_Z',
    'y': 'OPSZ_Y', 'x': 'OPSZ_X', 'xh': 'OPSZ_XH', 'xq': 'OPSZ_XQ', 'xe': 'OPSZ_XE', 'p': 'OPSZ_P', 's': 'OPSZ_S', 'a': 'OPSZ_P',
    'big': 'OPSZ_BIG', '': '0', 'bs': '1',
}
KINDS = {  # letter -> (operand kind, allowed size letters)
    'E': ('GPR_RM', 'b w d q v z y'), 'G': ('GPR_REG', 'b w d q v z y'), 'R': ('GPR_RM', 'b w d q v z y'),
    'M': ('MEM', 'b w d q dq qq t v z y x xh xq xe p s a big '), 'Z': ('GPR_OP', 'b v'), 'B': ('GPR_VVVV', 'y d q'),
    'I': ('IMM', 'b bs w z v'), 'J': ('REL', 'b z'), 'A': ('FARPTR', 'p'), 'O': ('MOFFS', 'b v'),
    'S': ('SEG_REG', 'w'), 'C': ('CR', 'y'), 'D': ('DR', 'y'), 'X': ('STR_SRC', 'b w d q z'),
    'Y': ('STR_DST', 'b w d q z'), 'P': ('MMX_REG', 'q'), 'Q': ('MMX_RM', 'q d'), 'N': ('MMX_RM', 'q'),
    'V': ('VEC_REG', 'b w d q dq qq x xh xq xe'), 'H': ('VEC_VVVV', 'b w d q dq qq x xh xq xe'),
    'W': ('VEC_RM', 'b w d q dq qq x xh xq xe'), 'U': ('VEC_RM', 'b w d q dq qq x xh xq xe'),
    'L': ('VEC_IS4', 'dq qq x'), 'VM': ('VSIB', 'd q'), 'KG': ('MASK_REG', 'b w d q'), 'KH': ('MASK_VVVV', 'b w d q'),
    'KE': ('MASK_RM', 'b w d q'), 'KR': ('MASK_RM', 'b w d q'),
}
MODRM_KINDS = {'E', 'G', 'R', 'M', 'S', 'C', 'D', 'P', 'Q', 'N', 'V', 'W', 'U', 'VM', 'KG', 'KE', 'KR'}
VAR_SIZES = {'v', 'z', 'y'}
BITS = {'b': 8, 'w': 16, 'd': 32, 'q': 64}
MAPS = ['legacy 0', 'legacy 1', 'legacy 2', 'legacy 3', 'VEX 1', 'VEX 2', 'VEX 3', 'EVEX 1', 'EVEX 2', 'EVEX 3',
        'EVEX 5', 'EVEX 6']
VEX_MAPS = {'0F': 1, '0F38': 2, '0F3A': 3, 'MAP5': 5, 'MAP6': 6}
TUPLES = ('FULL', 'HALF', 'QUARTER', 'FULLMEM', 'HALFMEM', 'QUARTERMEM', 'EIGHTHMEM', 'T1S', 'T2', 'T4', 'T8', 'M128', 'DUP')
EVEX_WORDS = ('er', 'sae', 'mxcsr', 'k', 'kz', 'k!', 'nf', 'packed', 'distinct')


class TableError(Exception):
    def __init__(self, where, text):
        super().__init__(f'{where}: {text}')


class Operand:
    def __init__(self, where, text):
        self.text = text
        self.access = 1
        body = text
        if body[:1] in '=+':
            self.access = 2 if body[0] == '=' else 3
            body = body[1:]
        self.letter = self.size = ''
        self.fixed = 0
        if body.startswith('{') and body.endswith('}'):
            name = body[1:-1]
            self.letter = 'fixed'
            if name in GPR_FIXED:
                self.kind, (self.fixed, self.size) = 'GPR_FIXED', GPR_FIXED[name]
            elif name in SEGS:
                self.kind, self.fixed, self.size = 'SEG_FIXED', SEGS[name], 'w'
            elif name == 'XMM0':
                self.kind, self.size = 'VEC_FIXED', 'dq'
            elif name == 'ST0':
                self.kind, self.size = 'X87_ST', 't'
            elif name.isdigit():
                self.kind, self.fixed, self.size = 'IMM_FIXED', int(name), 'b'
            else:
                raise TableError(where, f'unknown implicit operand {text}')
        elif body == 'ST':
            self.kind, self.size, self.letter = 'X87_STI', 't', 'ST'
        else:
            m = re.fullmatch(r'(VM|KG|KH|KE|KR|[A-Z])([a-z]*)', body)
            if not m or m[1] not in KINDS:
                raise TableError(where, f'unknown operand letter in {text}')
            self.letter, self.size = m[1], m[2]
            self.kind, sizes = KINDS[self.letter]
            if self.size not in sizes.split(' '):
                raise TableError(where, f'operand {text}: size letter "{self.size}" is not one of: {sizes.strip()}')

    def width(self, opsize):
        """Bits, given the effective operand size in bytes."""
        if self.size in BITS:
            return BITS[self.size]
        if self.size in ('v', 'y'):
            return opsize * 8
        if self.size == 'z':
            return min(opsize, 4) * 8
        if self.size == 'bs':
            return 8
        raise KeyError(self.size)


class Row:
    pass


def parse_encoding(row, where, text):
    row.mask = row.value = 0
    row.map = row.vex = row.opcode = None
    row.modrm = False      # the encoding says it has one
    row.opcode_reg = False  # +r
    row.rule = None
    row.dec = set()
    row.tuple = None
    row.elem = 0
    row.evex = set()

    def constrain(mask, value):
        if row.mask & mask:
            raise TableError(where, f'encoding "{text}" constrains the same thing twice')
        row.mask |= mask
        row.value |= value

    tokens = text.split()
    k = 0
    pp = None
    if tokens and re.match(r'E?VEX\.', tokens[0]):
        part = tokens[0].split('.')
        if len(part) != 5:
            raise TableError(where, f'{tokens[0]}: expected VEX.L.pp.map.W')
        row.vex = 2 if part[0] == 'EVEX' else 1
        lengths = {'128': 0, 'L0': 0, 'LZ': 0, '256': 1, 'L1': 1, '512': 2}
        if part[1] in lengths:
            constrain(K_L, lengths[part[1]] << K_L_SHIFT)
        elif part[1] == 'LIG':
            row.dec.add('LIG')
        elif part[1] == 'LX':
            if row.vex == 2:
                row.dec.add('VL')
        else:
            raise TableError(where, f'unknown vector length {part[1]}')
        if part[2] not in ('NP', '66', 'F3', 'F2'):
            raise TableError(where, f'unknown prefix {part[2]}')
        pp = part[2]
        if part[3] not in VEX_MAPS or (row.vex == 1 and VEX_MAPS[part[3]] > 3):
            raise TableError(where, f'unknown map {part[3]}')
        row.map = VEX_MAPS[part[3]]
        if part[4] in ('W0', 'W1'):
            constrain(K_W, K_W if part[4] == 'W1' else 0)
        elif part[4] != 'WIG':
            raise TableError(where, f'unknown W {part[4]}')
        k = 1
    else:
        row.vex = 0
        if tokens and tokens[0] in ('NP', 'NFx', '66', 'F3', 'F2') and len(tokens) > 1:
            pp = tokens[0]
            k = 1
        row.map = 0
        if tokens[k:k + 1] == ['0F'] and len(tokens) > k + 1:
            row.map = 1
            k += 1
            if tokens[k] in ('38', '3A') and len(tokens) > k + 1 and re.match('[0-9A-F]{2}', tokens[k + 1]):
                row.map = 2 if tokens[k] == '38' else 3
                k += 1
    row.pp = {None: 0, 'NP': 0, 'NFx': 0, '66': 1, 'F3': 2, 'F2': 3}[pp]
    if pp in ('NP', '66'):
        constrain(K_PP, K_66 if pp == '66' else 0)
    elif pp == 'NFx':
        constrain(K_F3 | K_F2, 0)
    elif pp in ('F3', 'F2'):
        if row.vex:
            constrain(K_PP, K_F3 if pp == 'F3' else K_F2)
        else:
            constrain(K_F3 | K_F2, K_F3 if pp == 'F3' else K_F2)
    row.has_pp = pp in ('66', 'F3', 'F2')
    if k >= len(tokens) or not re.fullmatch(r'[0-9A-F]{2}(\+r)?', tokens[k]):
        raise TableError(where, f'encoding "{text}": no opcode byte')
    row.opcode = int(tokens[k][:2], 16)
    row.opcode_reg = tokens[k].endswith('+r')
    k += 1
    if k < len(tokens) and re.fullmatch('[0-9A-F]{2}', tokens[k]):
        byte = int(tokens[k], 16)
        if byte < 0xC0:
            raise TableError(where, f'encoding "{text}": a fixed ModRM byte has mod = 3')
        constrain(K_MOD3 | K_REG | K_RM, K_MOD3 | (byte >> 3 & 7) << K_REG_SHIFT | (byte & 7) << K_RM_SHIFT)
        row.modrm = True
        k += 1
    for t in tokens[k:]:
        if t == '/r':
            row.modrm = True
        elif re.fullmatch('/[0-7]', t):
            row.modrm = True
            constrain(K_REG, int(t[1]) << K_REG_SHIFT)
        elif t in ('mod=3', 'mod!=3'):
            constrain(K_MOD3, K_MOD3 if t == 'mod=3' else 0)
        elif t in ('W0', 'W1'):
            constrain(K_W, K_W if t == 'W1' else 0)
        elif t in ('o16', 'o32', 'o64'):
            constrain(K_O, {'16': K_O16, '32': K_O32, '64': K_O64}[t[1:]])
        elif t in ('!o16', '!o32', '!o64'):
            constrain({'16': K_O16, '32': K_O32, '64': K_O64}[t[2:]], 0)
        elif t in ('a16', 'a32', 'a64'):
            constrain(K_A, {'16': K_A16, '32': K_A32, '64': K_A64}[t[1:]])
        elif t == 'noB':
            constrain(K_REXB, 0)
        elif t in ('amd', 'intel'):
            constrain(K_AMD, K_AMD if t == 'amd' else 0)
        elif t in ('d64', 'f64', 'n64', 'n64v'):
            row.rule = t.upper()
        elif t in ('sreg', 'sreg-load', 'creg', 'dreg', 'vsib'):
            row.dec.add(t.upper().replace('-', '_'))
        elif row.vex == 2 and re.fullmatch('[be](8|16|32|64|128)', t) and not row.elem:
            row.elem = int(t[1:]) // 8
            if t[0] == 'b':
                row.dec.add('BCST')
        elif row.vex == 2 and t in EVEX_WORDS:
            row.evex.add(t)
        elif row.vex == 2 and t in TUPLES:
            row.tuple = t
        else:
            raise TableError(where, f'encoding "{text}": unknown word {t}')


def parse_row(where, line, features, intercepts):
    cols = re.split(r' {2,}', line.strip())
    if len(cols) != 8:
        raise TableError(where, f'{len(cols)} columns instead of 8')
    cols = ['' if c == '-' else c for c in cols]
    row = Row()
    row.where = where
    head = cols[0].split(' ')
    row.mnemonic = head[0]
    if len(head) > 2 or not re.fullmatch(r'[A-Z][A-Z0-9_]*', row.mnemonic):
        raise TableError(where, f'"{cols[0]}": expected MNEMONIC or MNEMONIC OPERANDS')
    row.operands = head[1] if len(head) > 1 else ''
    row.opnd = [Operand(where, t) for t in row.operands.split(',')] if row.operands else []
    if len(row.opnd) > 6:
        raise TableError(where, 'more than 6 operands')
    row.encoding = cols[1]
    parse_encoding(row, where, cols[1])

    names = cols[2].split('+') if cols[2] else []
    if len(names) > 2:
        raise TableError(where, 'more than two features')
    for f in names:
        if f not in features:
            raise TableError(where, f'unknown feature {f}')
    row.features = names
    row.checks = []
    for c in cols[3].split(',') if cols[3] else []:
        if c not in CHECKS:
            raise TableError(where, f'unknown check {c}')
        row.checks += CHECKS[c]
    row.intercept = cols[4]
    if row.intercept and row.intercept not in intercepts:
        raise TableError(where, f'unknown intercept {row.intercept}')
    row.flags = {'w': 0, 'u': 0, 'r': 0}
    for group in cols[5].split():
        m = re.fullmatch(r'([wur]):([A-Z]+)', group)
        if not m:
            raise TableError(where, f'flags "{group}": expected w:, u: or r: and letters')
        for letter in m[2]:
            if letter not in FLAGS:
                raise TableError(where, f'unknown flag letter {letter}')
            row.flags[m[1]] |= (3 if letter == 'L' else 1) << FLAGS[letter]
    if cols[6] not in ('call', 'copy', 'emit'):
        raise TableError(where, f'unknown JIT class {cols[6]}')
    row.jit = cols[6]
    row.body = cols[7]
    if not re.fullmatch(r'(=borrow|@?[a-z][a-z0-9_]*)', row.body):
        raise TableError(where, f'body "{row.body}": expected name, @name or =borrow')
    finish_row(row)
    return row


def finish_row(row):
    where = row.where
    # 64-bit mode or not is a constraint like any other, so that rows may share an encoding.
    for check, value in (('NO64', 0), ('ONLY64', K_64)):
        if check in row.checks:
            if row.mask & K_64:
                raise TableError(where, 'no64 and only64')
            row.mask |= K_64
            row.value |= value
    letters = {o.letter for o in row.opnd}
    if letters & MODRM_KINDS and not row.modrm:
        raise TableError(where, f'operands {row.operands} need a ModRM byte')
    if 'Z' in letters and not row.opcode_reg:
        raise TableError(where, f'operand Z needs an opcode with +r')
    if letters & {'M', 'VM'} and not (row.mask & K_MOD3 and not row.value & K_MOD3):
        raise TableError(where, f'a memory operand needs mod!=3')
    if letters & {'R', 'N', 'U', 'ST', 'KR'} and not (row.mask & K_MOD3 and row.value & K_MOD3) and not row.dec & {'CREG', 'DREG'}:
        raise TableError(where, f'operands {row.operands} need mod=3')
    if row.vex and not letters & {'B', 'H', 'KH'}:
        row.dec.add('NOVVVV')
    # Register fields have five bits for vectors, four for general-purpose and three for mask registers.
    if 'KG' in letters:
        row.dec.add('REG3')
    if 'KH' in letters:
        row.dec.add('VVVV3')
    if letters & {'KE', 'KR'}:
        row.dec.add('RM3')
    if 'L' in letters:
        row.dec.add('IS4')
    if row.vex == 2 and 'G' in letters:
        row.dec.add('REG4')
    if row.vex == 2 and letters & {'E', 'R'}:
        row.dec.add('RM4')
    if row.vex == 2 and any(o.access & 2 and o.letter in ('W', 'M', 'VM') for o in row.opnd):
        row.dec.add('STORE')
    if row.vex == 2 and letters & {'W', 'M', 'E', 'VM'} and not row.tuple:
        raise TableError(where, 'a memory operand needs a tuple type')
    if row.vex == 2 and letters & {'W', 'M', 'VM'} and not row.elem:
        raise TableError(where, 'a vector memory operand needs its element (b32, e32)')
    if 'LOCK' in row.checks:
        row.dec.add('LOCK')
        if not any(o.access >= 2 and o.letter in ('E', 'M') for o in row.opnd):
            raise TableError(where, 'lock needs a memory destination')
    if row.dec & {'CREG'}:
        row.dec.add('LOCKCR8')
    # What the immediate bytes are.
    imms = [o for o in row.opnd if o.letter in ('I', 'J', 'A', 'O', 'L')]
    key = ' '.join(o.letter + o.size for o in imms)
    table = {'': 'NONE', 'Ib': 'IB', 'Ibs': 'IBS', 'Iw': 'IW', 'Iz': 'IZ', 'Iv': 'IV', 'Jb': 'IBS', 'Jz': 'IZ', 'Ap': 'AP',
             'Iw Ib': 'IW_IB', 'Ib Ib': 'IB_IB', 'Ob': 'MOFFS', 'Ov': 'MOFFS', 'Ldq': 'IB', 'Lqq': 'IB', 'Lx': 'IB'}
    if key not in table:
        raise TableError(where, f'immediates {key} cannot be combined')
    row.imm = table[key]
    # The effective operand size.
    sizes = [o for o in row.opnd if o.letter not in ('I', 'J')]
    real = [o for o in sizes if o.letter != 'fixed'] or sizes
    if row.rule is None:
        variable = {o.size for o in row.opnd if o.letter not in ('I', 'J')} & VAR_SIZES
        if any(o.size == 'b' for o in real) and all(o.size == 'b' for o in real if not (o.letter == 'fixed' and o.size == 'w')):
            row.rule = 'B'
        elif len(row.opnd) > 1 and row.opnd[0].size == 'w' and row.opnd[0].letter == 'fixed' and \
                all(o.size == 'b' for o in row.opnd[1:]):
            row.rule = 'B'  # MUL Eb and the like
        elif variable == {'y'} or (not variable and (row.vex or pp_is_66(row))):
            row.rule = 'Y'  # a mandatory 66 is no operand size
        elif variable == {'z'}:
            row.rule = 'Z'
        else:
            row.rule = 'V'
    row.varies = any(o.size in VAR_SIZES for o in row.opnd if o.letter not in ('I', 'J'))
    row.opsizes = opsizes(row)
    row.memory = [o for o in row.opnd if o.letter in ('E', 'M', 'O', 'Q', 'W', 'VM', 'KE')]
    mod = row.value & K_MOD3 if row.mask & K_MOD3 else None
    row.forms = []  # False: registers, True: memory
    if not row.memory:
        row.forms = [False]
    elif mod is None:
        row.forms = [True] if any(o.letter == 'O' for o in row.memory) else [False, True]
    else:
        row.forms = [not mod]
    row.number = 0


def pp_is_66(row):
    return row.has_pp and row.pp == 1


def opsizes(row):
    """Effective operand sizes (bytes) that can reach a handler of this row."""
    states = set()
    for mode64 in (False, True):
        if row.mask & K_64 and bool(row.value & K_64) != mode64:
            continue
        for size, bit in ((2, K_O16), (4, K_O32), (8, K_O64)):
            if size == 8 and not mode64:
                continue
            if (row.value ^ bit) & row.mask & K_O:
                continue
            if not row.vex and row.mask & K_W and bool(row.value & K_W) != (size == 8):
                continue
            states.add((mode64, size))
    out = set()
    for mode64, size in states:
        if row.rule == 'B':
            out.add(1)
        elif row.rule == 'V':
            out.add(size)
        elif row.rule == 'D64':
            out.add(8 if mode64 and size != 2 else size)
        elif row.rule == 'F64':
            out |= {8, 2} if mode64 else {size}
        elif row.rule == 'Y':
            if row.vex:
                out |= {4} | ({8} if mode64 and not (row.mask & K_W and not row.value & K_W) else set())
            else:
                out.add(8 if size == 8 else 4)
        elif row.rule == 'Z':
            out.add(min(size, 4))
        elif row.rule == 'N64':
            out.add(8 if mode64 else 4)
        elif row.rule == 'N64V':
            out.add(8 if mode64 else size)
    return sorted(out)


def map_index(row):
    if row.vex == 0:
        return row.map
    if row.vex == 1:
        return 3 + row.map
    return {1: 7, 2: 8, 3: 9, 5: 10, 6: 11}[row.map]


def disjoint(a, b):
    if (a.value ^ b.value) & a.mask & b.mask:
        return True
    for group in ONE_HOT:  # "is 16" against "is 32", whatever bits each names
        allowed = []
        for r in (a, b):
            allowed.append({bit for bit in (1 << n for n in range(32)) if bit & group
                            and not (r.mask & bit and not r.value & bit)
                            and not (r.value & group and not r.value & bit)})
        if not allowed[0] & allowed[1]:
            return True
    return False


def subset(a, b):
    """Every encoding of @a is one of @b."""
    if b.mask & ~a.mask:
        # A one-hot group that is pinned to another value implies "not this one".
        rest = b.mask & ~a.mask
        for group in ONE_HOT:
            if a.value & group and not b.value & rest & group:
                rest &= ~group
        if rest:
            return False
    common = a.mask & b.mask
    return not (a.value ^ b.value) & common


def special_case(a, b):
    """@a goes before @b: a part of its encodings, or it names a prefix that @b says nothing about."""
    return subset(a, b) or bool(a.has_pp and not b.mask & K_PP)


def check_duplicates(rows):
    """Two rows may share encodings only if one is a special case of the other."""
    slots = {}
    for r in rows:
        for n in range(8) if r.opcode_reg else (0,):
            slots.setdefault((map_index(r), r.opcode + n), []).append(r)
    for (m, op), members in slots.items():
        if len({r.modrm for r in members}) != 1 and m != 0:
            raise TableError(members[1].where, f'opcode {op:02X}: some rows have a ModRM byte and some have not '
                                               f'(see {members[0].where})')
        if len({r.modrm for r in members}) != 1:
            raise TableError(members[1].where, f'opcode {op:02X}: some rows have a ModRM byte (see {members[0].where})')
        for i, a in enumerate(members):
            for b in members[i + 1:]:
                if disjoint(a, b):
                    continue
                ab, ba = special_case(a, b), special_case(b, a)
                if ab and ba:
                    raise TableError(b.where, f'{b.mnemonic} {b.operands}: same encoding as {a.mnemonic} {a.operands} at {a.where}')
                if not ab and not ba:
                    raise TableError(b.where, f'{b.mnemonic} {b.operands} ({b.encoding}): overlaps {a.mnemonic} {a.operands} '
                                              f'({a.encoding}) at {a.where}, and neither is the special case')
    return slots


def name_rows(rows):
    used = {}
    for r in rows:
        base = 'ROW_' + r.mnemonic
        ops = re.sub(r'[=+{}]', '', r.operands).replace(',', '_')
        full = (('ROW_V_' if r.vex == 1 else 'ROW_E_') + r.mnemonic if r.vex else base) + ('_' + ops if ops else '')
        if r.vex:
            full = base + ('_' + ops if ops else '') + ('_EVEX' if r.vex == 2 else '')
        for attempt in (full, f'{full}_{r.opcode:02X}', f'{full}_{r.opcode:02X}_{r.value >> K_REG_SHIFT & 7}',
                        f'{full}_{r.opcode:02X}_{r.value:X}'):
            if attempt not in used:
                break
        else:
            raise TableError(r.where, f'no unique name for {full}')
        used[attempt] = r
        r.name = attempt


# ---------------------------------------------------------------- decoder tables

def decoder_tables(rows, slots):
    cands, cand_index = [], {}
    subs, sub_index = [], {}

    def cand_list(members, known_mask, known_value):
        entries = []
        for r in members:
            if (r.value ^ known_value) & r.mask & known_mask:
                continue
            entries.append((r.mask & ~known_mask, r.value & ~known_mask, r.number, tuple(r.features)))
            if not r.mask & ~known_mask and not r.features:
                break
        else:
            entries.append((0, 0, 0, ()))
        key = tuple(entries)
        if key not in cand_index:
            cand_index[key] = len(cands)
            cands.extend(entries)
        return cand_index[key]

    pps = (0, K_66, K_F3, K_F2)
    table = []
    for m in range(len(MAPS)):
        for op in range(256):
            members = slots.get((m, op), [])
            if not members:
                table.append((0, 0, 0))
                continue
            # More specific rows first.
            members = sorted(members, key=lambda r: (not r.has_pp, -bin(r.mask).count('1')))
            for i, a in enumerate(members):
                for b in members[i + 1:]:
                    if not disjoint(a, b) and not special_case(a, b):
                        raise TableError(b.where, f'internal: order of {a.name} and {b.name}')
            used = 0
            for r in members:
                used |= r.mask
            # 66 together with F3 or F2 is F3 or F2 for rows that name one, but plain rows ask for 66 alone.
            by_pp = bool(used & K_PP) and m >= 4
            by_modreg = bool(used & (K_MOD3 | K_REG)) and members[0].modrm
            keys = []
            for pp in range(4) if by_pp else (None,):
                for mr in range(16) if by_modreg else (None,):
                    mask = value = 0
                    if pp is not None:
                        mask |= K_PP
                        value |= pps[pp]
                    if mr is not None:
                        mask |= K_MOD3 | K_REG
                        value |= (K_MOD3 if mr & 8 else 0) | (mr & 7) << K_REG_SHIFT
                    keys.append(cand_list(members, mask, value))
            kind = (1 if by_modreg else 0) | (2 if by_pp else 0)
            flags = 0
            if members[0].modrm:
                flags |= 1
            if members[0].dec & {'CREG', 'DREG'}:
                flags |= 2
            if kind == 0:
                table.append((keys[0], 0, flags | 4))
            else:
                key = tuple(keys)
                if key not in sub_index:
                    sub_index[key] = len(subs)
                    subs.extend(key)
                table.append((sub_index[key], kind, flags | 4))
    return table, subs, cands


RULES = ['V', 'B', 'D64', 'F64', 'Y', 'Z', 'N64', 'N64V']
IMMS = ['NONE', 'IB', 'IBS', 'IW', 'IZ', 'IV', 'AP', 'IW_IB', 'IB_IB', 'MOFFS']
DECS = ['LOCK', 'NOVVVV', 'VSIB', 'SREG', 'SREG_LOAD', 'CREG', 'DREG', 'LIG', 'LOCKCR8', 'PP66', 'PPREP', 'OPREG',
        'NOMASK', 'NOZERO', 'NEEDMASK', 'RND', 'BCST', 'VL', 'STORE', 'DISTINCT', 'REG3', 'REG4', 'VVVV3', 'RM3', 'RM4',
        'IS4']
GENERATED = '/* Made by tools/gen_opcodes.py from src/cpu/isa/opcodes.tbl. */\n'


def c_string(s):
    return '"' + s.replace('\\', '\\\\').replace('"', '\\"') + '"'


def emit_rows_h(rows):
    out = [GENERATED, '#pragma once', 'enum row_id {', '    ROW_UD, /* no row: raises #UD */']
    out += [f'    {r.name},' for r in rows]
    out += ['    ROW_COUNT', '};', '']
    return '\n'.join(out)


def dec_flags(r):
    d = set(r.dec)
    if r.has_pp and not r.vex:
        d.add('PP66' if r.pp == 1 else 'PPREP')
    if r.opcode_reg:
        d.add('OPREG')
    if r.vex == 2:
        if not r.evex & {'k', 'kz', 'k!'}:
            d.add('NOMASK')
        if 'kz' not in r.evex:
            d.add('NOZERO')
        if 'k!' in r.evex:
            d.add('NEEDMASK')
        if r.evex & {'er', 'sae'}:
            d.add('RND')
        if 'distinct' in r.evex:
            d.add('DISTINCT')
    return d


def evex_traits(r):
    t = []
    if r.evex & {'er', 'sae', 'mxcsr'}:
        t.append('EVEX_MXCSR')
    if 'nf' in r.evex:
        t.append('EVEX_NF')
    if 'packed' in r.evex:
        t.append('EVEX_PACKED')
    if r.tuple in ('T1S', 'T2', 'T4', 'T8') and 'LIG' not in r.dec:
        t.append('EVEX_REPEATED')
    return '|'.join(t) or '0'


def emit_rows_c(rows, table, subs, cands):
    out = [GENERATED, '#include "cpu/isa/tables.h"', '#include "cpu/isa/rows.h"', '#include "cpu/state.h"',
           '#include "cpu/virt.h"', '', 'const struct insn_row insn_rows[] = {']
    out.append('    {"UD", "", "", {{0}}, 0, JIT_CALL, 0, 0, 0, CHK_END, 0, 0, 0, 0, 0, 0, 0, 0, 0},')
    for r in rows:
        ops = ', '.join(f'{{OPND_{o.kind}, {SIZES[o.size]}, {o.fixed}, {o.access}}}' for o in r.opnd) or '{0}'
        feats = [f'FEAT_{f}' for f in r.features] + ['0', '0']
        checks = '|'.join('CHK_' + c for c in dict.fromkeys(r.checks)) or '0'
        out.append('    {%s, %s, %s, {%s}, %d, JIT_%s, %s, %s, %s, %s, 0x%x, 0x%x, 0x%x, %d, %d, 0x%02x, %d, %d, %s},' % (
            c_string(r.mnemonic), c_string(r.encoding), c_string(r.operands), ops, len(r.opnd), r.jit.upper(),
            'INTERCEPT_' + r.intercept if r.intercept else '0', feats[0], feats[1], checks,
            r.flags['w'], r.flags['u'], r.flags['r'], r.map, r.pp, r.opcode, r.vex, r.elem, evex_traits(r)))
    out += ['};', 'const unsigned insn_row_count = sizeof(insn_rows) / sizeof(insn_rows[0]);', '']
    out.append('const struct row_decode isa_row_decode[] = {')
    out.append('    {0, RULE_V, IMM_NONE, 0, 0},')
    for r in rows:
        flags = '|'.join('DEC_' + d for d in sorted(dec_flags(r))) or '0'
        out.append(f'    {{{flags}, RULE_{r.rule}, IMM_{r.imm}, {"TUPLE_" + r.tuple if r.tuple else 0}, {r.elem}}},')
    out += ['};', '', f'const struct opcode_slot isa_slots[{len(MAPS)}][256] = {{']
    for m in range(len(MAPS)):
        out.append(f'    {{ /* {MAPS[m]} */')
        for op in range(0, 256, 8):
            out.append('        ' + ' '.join('{%d,%d,%d},' % table[m * 256 + op + n] for n in range(8)))
        out.append('    },')
    out += ['};', '', 'const u16 isa_subs[] = {']
    for n in range(0, len(subs), 16):
        out.append('    ' + ' '.join(f'{s},' for s in subs[n:n + 16]))
    if not subs:
        out.append('    0')
    out += ['};', '', 'const struct candidate isa_candidates[] = {']
    for mask, value, number, feats in cands:
        f = [f'FEAT_{x}' for x in feats] + ['0', '0']
        out.append(f'    {{0x{mask:x}, 0x{value:x}, {rows[number - 1].name if number else "ROW_UD"}, {f[0]}, {f[1]}}},')
    out += ['};', '', '_Static_assert(FEAT_COUNT <= 256, "struct candidate keeps features in bytes");',
            '_Static_assert(sizeof(isa_candidates) / sizeof(isa_candidates[0]) < 65536, "isa_subs are 16 bits");', '']
    return '\n'.join(out)


def emit_tables_h():
    out = [GENERATED, '/* What decode.c and rows.c share. */', '#pragma once', '#include "cpu/isa/insn.h"', '']
    out.append('/* The packed encoding state that a candidate\'s mask and value test. */')
    for n in ('K_66', 'K_F3', 'K_F2', 'K_W', 'K_MOD3', 'K_64', 'K_O16', 'K_O32', 'K_O64', 'K_A16', 'K_A32', 'K_A64', 'K_REXB',
              'K_AMD', 'K_EVEX_B'):
        out.append(f'#define {n} 0x{globals()[n]:x}u')
    for n in ('K_L_SHIFT', 'K_REG_SHIFT', 'K_RM_SHIFT'):
        out.append(f'#define {n} {globals()[n]}')
    out += ['', 'enum { ' + ', '.join('RULE_' + r for r in RULES) + ' };', 'enum { ' + ', '.join('IMM_' + r for r in IMMS) + ' };',
            'enum { TUPLE_NONE, ' + ', '.join('TUPLE_' + r for r in TUPLES) + ' };', 'enum {']
    out += [f'    DEC_{d} = 1u << {n},' for n, d in enumerate(DECS)]
    out += ['};', '''
struct row_decode {
    u32 flags;  /* DEC_* */
    u8 rule;    /* RULE_*: effective operand size */
    u8 imm;     /* IMM_* */
    u8 tuple;   /* TUPLE_*: EVEX disp8*N */
    u8 elem;    /* EVEX: bytes of an element of the memory operand; 0: the operand size */
};

enum { SLOT_MODRM = 1, SLOT_REGONLY = 2, SLOT_USED = 4 };

/* One opcode byte of one map. kind bit 0: split by mod = 3 and reg (16 ways), bit 1: by prefix (4 ways). */
struct opcode_slot {
    u16 base; /* kind 0: first of the candidates; else index into isa_subs */
    u8 kind;
    u8 flags;
};

struct candidate {
    u32 mask, value;
    u16 row;
    u8 feature, feature2;
};

extern const struct row_decode isa_row_decode[];
extern const struct opcode_slot isa_slots[%d][256];
extern const u16 isa_subs[];
extern const struct candidate isa_candidates[];
''' % len(MAPS)]
    return '\n'.join(out)


# ---------------------------------------------------------------- handlers

UD_CHECKS = [('PROT', 'check_prot(v)'), ('V86_UD', 'check_not_v86(v)'), ('NOCOMPAT', 'check_not_compat(v)'),
             ('VMXON', 'check_vmxon(v)'), ('SVME', 'check_svme(v)'), ('OSXSAVE', 'check_cr4_ud(v, CR4_OSXSAVE)'),
             ('FSGSBASE', 'check_cr4_ud(v, CR4_FSGSBASE)'), ('CPL0_UD', 'check_cpl0_ud(v)')]
GP_CHECKS = [('CPL0', 'check_cpl0(v)'), ('UMIP', 'check_umip(v)'), ('TSD', 'check_tsd(v)'), ('PCE', 'check_pce(v)'),
             ('IOPL', 'check_v86_iopl(v)')]
SIMD = ('X87', 'MMX', 'SSE', 'AVX', 'AVX512', 'X87_NOWAIT')


def prologue(row, mem):
    """Statements for the row's checks, in the order #UD, #NM and #MF, #GP, then the intercept."""
    out = []
    if 'ENABLED' in row.checks:
        out.append(f'check_enabled(v, INTERCEPT_{row.intercept});')
    for name, call in UD_CHECKS:
        if name in row.checks:
            out.append(call + ';')
    simd = [c for c in SIMD if c in row.checks]
    if simd:
        out.append(f'check_simd(v, {"|".join("CHK_" + c for c in simd)});')
    if 'FWAIT' in row.checks:
        out.append('check_fwait(v);')
    if 'TS' in row.checks:
        out.append('check_ts(v);')
    for name, call in GP_CHECKS:
        if name in row.checks:
            out.append(call + ';')
    if 'ALIGN16' in row.checks and mem:
        out.append('check_aligned_mm(v, i);' if 'ALIGN_MM' in row.checks else 'check_aligned(v, i);')
    if row.intercept:
        out.append(f'virt_insn(v, INTERCEPT_{row.intercept}, i);')
    return out


def reg_index(o, bits):
    byte = bits == 8
    if o.letter == 'G':
        return 'i->reg8' if byte else 'i->reg'
    if o.letter in ('E', 'R', 'Z'):
        return 'i->rm8' if byte else 'i->rm'
    if o.letter == 'B':
        return 'i->vvvv'
    if o.kind == 'GPR_FIXED':
        return str(o.fixed * 8) if byte else str(o.fixed)
    raise KeyError(o.text)


def is_memory(o, mem):
    return o.letter in ('M', 'O') or (o.letter == 'E' and mem)


def value_handler(row, opsize, mem):
    """The text of a handler around a value body."""
    out = prologue(row, mem)
    first = row.opnd[0]
    fbits = first.width(opsize)
    dest = [o for o in row.opnd if o.access & 2]
    if len(dest) > 1 or (dest and dest[0] is not first):
        raise TableError(row.where, f'a value body writes its first operand only')
    dest = dest[0] if dest else None
    args = []
    lines = []
    rmw = dest and is_memory(dest, mem) and dest.access == 3
    for n, o in enumerate(row.opnd):
        if not o.access & 1:
            continue
        name = f'x{n}'
        if o.kind == 'IMM':
            args.append('(u8)i->imm' if o.size == 'b' else f'(u{fbits})i->imm')
            continue
        if o.kind == 'IMM_FIXED':
            args.append(str(o.fixed))
            continue
        if o.letter == 'M' and o.size == '':
            args.append('insn_ea(v, i)')
            continue
        bits = o.width(opsize)
        if is_memory(o, mem):
            if rmw and o is dest:
                lines.insert(0, f'u{bits} {name} = rmw_begin{bits}(v, i->seg, insn_ea(v, i), &m);')
                lines.insert(0, 'struct rmw m;')
            else:
                lines.append(f'u{bits} {name} = mem_read{bits}(v, i->seg, insn_ea(v, i));')
        else:
            lines.append(f'u{bits} {name} = reg{bits}_get(v, {reg_index(o, bits)});')
        args.append(name)
    out += lines
    call = f'op_{row.body}{fbits}({", ".join(["v"] + args)})'
    if not dest:
        out.append(call + ';')
    elif rmw:
        n = row.opnd.index(dest)
        if 'LOCK' in row.checks:
            size = int(fbits) // 8
            out += ['if (unlikely(i->flags & INSN_LOCK)) {', f'    void *at = rmw_place(&m, {size});', '    u32 aflags = v->aflags;',
                    '    if (at) {', f'        while (!host_cas{fbits}(at, &x{n}, {call}))', '            v->aflags = aflags;',
                    f'        rmw_told(v, &m, {size});', '        return;', '    }',
                    f'    x{n} = (u{fbits})rmw_alone(v, &m, x{n}, {size});', f'    rmw_end{fbits}(v, &m, {call});',
                    '    mem_together(v);', '    return;', '}']
        out.append(f'rmw_end{fbits}(v, &m, {call});')
    elif is_memory(dest, mem):
        out.append(f'mem_write{fbits}(v, i->seg, insn_ea(v, i), {call});')
    else:
        out.append(f'reg{fbits}_set(v, {reg_index(dest, fbits)}, {call});')
    return out


def size_slot(size):
    return size >> 2  # 1, 2 -> 0; 4 -> 1; 8 -> 2


class Part:
    def __init__(self):
        self.functions = []   # (name, lines)
        self.by_text = {}
        self.table = []       # function names
        self.layouts = {}

    def function(self, name, lines):
        key = tuple(lines)
        if key not in self.by_text:
            self.by_text[key] = name
            self.functions.append((name, lines))
        return self.by_text[key]

    def place(self, layout):
        layout = tuple(layout)
        if layout not in self.layouts:
            self.layouts[layout] = len(self.table)
            self.table += layout
        return self.layouts[layout]


def handlers(rows):
    parts = [Part() for _ in range(PARTS)]
    bodies = {'insn_ud'}
    value_bodies = set()
    order = sorted({r.body for r in rows if r.body[0] not in '@='})
    weight = {b: sum(len(r.opsizes) * len(r.forms) for r in rows if r.body == b) for b in order}
    total = sum(weight.values())
    home, at = {}, 0
    for b in order:
        home[b] = min(PARTS - 1, at * PARTS // max(total, 1))
        at += weight[b]
    for r in rows:
        raw = r.body[0] in '@='
        value = not raw
        part = parts[0 if raw else home[r.body]]
        if raw:
            target = 'insn_' + r.body[1:]
            bodies.add(target)
        else:
            for s in r.opsizes:
                value_bodies.add(f'op_{r.body}{r.opnd[0].width(s)}')
        sized = value and r.varies and len(r.opsizes) > 1
        memvar = len(r.forms) == 2 and (value or 'ALIGN16' in r.checks)
        layout = []
        for slot in range(3) if sized else (None,):
            size = next((s for s in r.opsizes if size_slot(s) == slot), None) if sized else r.opsizes[0]
            for mem in (False, True) if memvar else (r.forms[-1],):
                if size is None:
                    layout.append('insn_ud')
                    continue
                name = 'h_' + r.name[4:] + (f'_{size * 8}' if sized else '') + (('_m' if mem else '_r') if memvar else '')
                if value:
                    layout.append(part.function(name, value_handler(r, size, mem)))
                else:
                    pro = prologue(r, mem)
                    layout.append(part.function(name, pro + [f'{target}(v, i);']) if pro else target)
        r.part, r.first, r.sized, r.memvar = parts.index(part), part.place(layout), sized, memvar
    return parts, bodies, value_bodies


def emit_handlers_h(bodies):
    out = [GENERATED, '/* The raw bodies: what the table names with @, and the borrowed ALU. */', '#pragma once',
           '#include "cpu/isa/insn.h"', '']
    out += [f'void {b}(struct vcpu *v, const struct insn *i);' for b in sorted(bodies)]
    out += ['', '/* The generated handlers, by file (bind.c). */']
    out += [f'extern insn_fn *const insn_handlers{n}[];' for n in range(PARTS)]
    out.append('')
    return '\n'.join(out)


def emit_part(n, part):
    out = [GENERATED, '#include "cpu/checks.h"', '#include "cpu/isa/handlers.h"', '#include "cpu/mem.h"']
    out.append('#include "cpu/ops.h"' if any('op_' in l for _, ls in part.functions for l in ls) else '')
    out.append('')
    for name, lines in part.functions:
        out.append(f'static void {name}(struct vcpu *v, const struct insn *i)\n{{')
        out += ['    ' + l for l in lines]
        out.append('}')
    out.append(f'insn_fn *const insn_handlers{n}[] = {{')
    for k in range(0, len(part.table), 4):
        out.append('    ' + ' '.join(f + ',' for f in part.table[k:k + 4]))
    if not part.table:
        out.append('    insn_ud')
    out += ['};', '']
    return '\n'.join(out)


def emit_bind(rows):
    out = [GENERATED, '#include "cpu/isa/handlers.h"', '#include "cpu/isa/rows.h"', '', '''struct bind {
    u16 first;  /* index into the part's table */
    u8 part;
    u8 stride;  /* handlers per operand size; 0: one size */
    u8 mem;     /* 1: the memory form is the next one */
};
''', 'static const struct bind binds[ROW_COUNT] = {', '    [ROW_UD] = {0, 255, 0, 0},']
    for r in rows:
        out.append(f'    [{r.name}] = {{{r.first}, {r.part}, {(2 if r.memvar else 1) if r.sized else 0}, {int(r.memvar)}}},')
    out += ['};', '', f'static insn_fn *const *const parts[] = {{{", ".join(f"insn_handlers{n}" for n in range(PARTS))}}};', '''
void insn_bind(struct insn *i)
{
    const struct bind *b = &binds[i->row];
    if (b->part == 255) {
        i->fn = insn_ud;
        return;
    }
    i->fn = parts[b->part][b->first + (i->opsize >> 2) * b->stride + (i->flags & INSN_MEM ? b->mem : 0)];
}
''']
    return '\n'.join(out)


def dump(rows, bodies, value_bodies):
    return json.dumps({
        'rows': [{
            'row': r.name, 'number': r.number, 'mnemonic': r.mnemonic, 'operands': r.operands, 'encoding': r.encoding,
            'features': r.features, 'checks': r.checks, 'intercept': r.intercept, 'flags': r.flags, 'jit': r.jit,
            'body': r.body, 'map': r.map, 'vex': r.vex, 'opcode': r.opcode, 'pp': r.pp, 'mask': r.mask, 'value': r.value,
            'modrm': r.modrm, 'opsizes': r.opsizes, 'rule': r.rule,
            'opnd': [{'kind': o.kind, 'size': o.size, 'fixed': o.fixed, 'access': o.access} for o in r.opnd],
        } for r in rows],
        'raw_bodies': sorted(bodies), 'value_bodies': sorted(value_bodies)}, indent=0)


def read_table(path, features, intercepts):
    rows = []
    with open(path) as f:
        for n, line in enumerate(f, 1):
            line = line.split('#', 1)[0].rstrip()
            if line.strip():
                rows.append(parse_row(f'{path}:{n}', line, features, intercepts))
    for n, r in enumerate(rows, 1):
        r.number = n
    return rows


def main(argv):
    check_only = '--check' in argv
    argv = [a for a in argv if a != '--check']
    if len(argv) != 4:
        print(__doc__, file=sys.stderr)
        return 2
    path, features_def, virt_h, outdir = argv
    with open(features_def) as f:
        features = set(re.findall(r'^FEATURE\((\w+),', f.read(), re.M))
    with open(virt_h) as f:
        text = f.read()
    block = re.search(r'#define INTERCEPTS\(X\)(.*?)\nenum intercept', text, re.S)
    intercepts = set(re.findall(r'X\((\w+)\)', block[1]))
    try:
        rows = read_table(path, features, intercepts)
        slots = check_duplicates(rows)
        name_rows(rows)
        parts, bodies, value_bodies = handlers(rows)
        table, subs, cands = decoder_tables(rows, slots)
    except TableError as e:
        print(e, file=sys.stderr)
        return 1
    if check_only:
        return 0
    files = {'rows.h': emit_rows_h(rows), 'tables.h': emit_tables_h(), 'handlers.h': emit_handlers_h(bodies),
             'rows.c': emit_rows_c(rows, table, subs, cands), 'bind.c': emit_bind(rows),
             'opcodes.json': dump(rows, bodies, value_bodies)}
    for n, p in enumerate(parts):
        files[f'handlers{n}.c'] = emit_part(n, p)
    for name, text in files.items():
        with open(os.path.join(outdir, name), 'w') as f:
            f.write(text)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
