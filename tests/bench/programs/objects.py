import sys


class Node:
    def __init__(self, key):
        self.key, self.left, self.right = key, None, None

    def insert(self, key):
        node = self
        while node.key != key:
            side = "left" if key < node.key else "right"
            child = getattr(node, side)
            if child is None:
                setattr(node, side, Node(key))
                return
            node = child


def depth(node):
    return 0 if node is None else 1 + max(depth(node.left), depth(node.right))


out = []
for n in range(int(sys.argv[1])):
    root, x = Node(1 << 30), n + 1
    for _ in range(6000):
        x = x * 1103515245 + 12345 & 0x7fffffff
        root.insert(x)
    words = ["w%d" % (k * k % 1009) for k in range(20000)]
    count = {}
    for w in words:
        count[w] = count.get(w, 0) + 1
    out.append((depth(root), len(count), "".join(sorted(count))[-5:]))
print(out[-1])
