#!/usr/bin/env python3
"""What tools/gen_opcodes.py must refuse, and how it says so: one changed table per case.

usage: test_generator.py GENERATOR TABLE FEATURES_DEF VIRT_H
"""
import subprocess
import sys
import tempfile

generator, table, features, virt = sys.argv[1:]
with open(table) as f:
    good = f.read()

TAIL = '  -  -  -  -  call  @nop\n'
CASES = [  # a line appended to the table, and what the error must say
    ('ADD +Eb,Gb  00 /r' + TAIL, 'same encoding as ADD'),
    ('FOO  0F 0B' + TAIL, 'same encoding as UD2'),
    ('FOO Gv,Ev  66 0F FC /r' + TAIL, 'same encoding as PADDB'),
    ('FOO Rv,Gv  0F BA /r mod=3' + TAIL, 'neither is the special case'),
    ('FOO Kv,Ev  0F 04 /r' + TAIL, 'unknown operand letter'),
    ('FOO Gk,Ev  0F 04 /r' + TAIL, 'size letter "k"'),
    ('FOO {QAX}  0F 04' + TAIL, 'unknown implicit operand'),
    ('FOO Gv,Ev  0F 04' + TAIL, 'need a ModRM byte'),
    ('FOO Gv,Mv  0F 04 /r' + TAIL, 'needs mod!=3'),
    ('FOO  0F 04 /9' + TAIL, 'unknown word /9'),
    ('FOO  VEX.77.66.0F.W0 04' + TAIL, 'unknown vector length'),
    ('FOO  0F 04  NOSUCH  -  -  -  call  @nop\n', 'unknown feature NOSUCH'),
    ('FOO  0F 04  -  cpl9  -  -  call  @nop\n', 'unknown check cpl9'),
    ('FOO  0F 04  -  lock  -  -  call  @nop\n', 'lock needs a memory destination'),
    ('FOO  0F 04  -  -  NOSUCH  -  call  @nop\n', 'unknown intercept NOSUCH'),
    ('FOO  0F 04  -  -  -  w:OY  call  @nop\n', 'unknown flag letter Y'),
    ('FOO  0F 04  -  -  -  x:O  call  @nop\n', 'expected w:, u: or r:'),
    ('FOO  0F 04  -  -  -  -  fast  @nop\n', 'unknown JIT class'),
    ('FOO  0F 04  -  -  -  -  call  %nop\n', 'expected name, @name or =borrow'),
    ('FOO  0F 04  -  -  -  call  @nop\n', '7 columns instead of 8'),
]


def run(text):
    with tempfile.NamedTemporaryFile('w', suffix='.tbl') as f:
        f.write(text)
        f.flush()
        r = subprocess.run([sys.executable, generator, '--check', f.name, features, virt, '/'], capture_output=True, text=True)
        return r.returncode, r.stderr.replace(f.name, 'TABLE')


failures = 0
status, err = run(good)
if status != 0:
    print(f'the table itself is refused: {err}')
    failures += 1
last = good.count('\n') + 1
for line, want in CASES:
    status, err = run(good + line)
    if status != 1 or want not in err or not err.startswith(f'TABLE:{last}: '):
        print(f'{line.strip()}\n  expected status 1 and TABLE:{last}: ...{want}...\n  got status {status}: {err.strip()}')
        failures += 1
print(f'{len(CASES) + 1} cases, {failures} failures')
sys.exit(failures != 0)
