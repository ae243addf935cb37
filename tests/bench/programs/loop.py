import sys
total = 0
for n in range(int(sys.argv[1])):
    for i in range(200000):
        total = (total * 31 + i * n) & 0xffffffff
        if total & 7 == 3:
            total ^= i
print(total)
