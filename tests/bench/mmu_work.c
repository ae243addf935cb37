/*
 * mmu-work [SCALE-PERCENT [NAME...]]: programs whose time is the MMU's: address-space switches, new address spaces,
 * page faults, and accesses that no TLB reaches. tests/bench/mmu-run runs the same static binary in L1 and in L2 and
 * times it by the marks, which stand behind the preparations.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *self;
static const char *name;

static void begin(void)
{
    printf("WORK-BEGIN %s\n", name);
    fflush(stdout);
}
static void end(uint64_t sum)
{
    printf("WORK-END %s 0 0 %llx\n", name, (unsigned long long)sum);
    fflush(stdout);
}

static uint8_t *pages(size_t n)
{
    uint8_t *p = mmap(NULL, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    madvise(p, n * 4096, MADV_NOHUGEPAGE);
    return p;
}

static uint64_t next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

/* Processes in a ring pass a byte on, each touching 128 pages of its own at its turn. */
#define SWITCH_PAGES 128
static uint64_t touch(uint8_t *p, unsigned turn)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < SWITCH_PAGES; i++)
        sum += p[i * 4096 + (turn & 63) * 64]++;
    return sum;
}
static void ring(unsigned processes, unsigned n)
{
    int pipes[16][2];
    uint64_t sum = 0;
    char c = 1;
    uint8_t *p = pages(SWITCH_PAGES);
    for (unsigned k = 0; k < processes; k++)
        if (pipe(pipes[k]))
            exit(1);
    fflush(stdout);
    for (unsigned k = 1; k < processes; k++) {
        if (fork())
            continue;
        for (unsigned i = 0; i < processes; i++)
            if (i != k)
                close(pipes[i][1]);
        for (unsigned turn = 0; read(pipes[k - 1][0], &c, 1) == 1; turn++) {
            touch(p, turn);
            if (write(pipes[k][1], &c, 1) != 1)
                break;
        }
        _exit(0);
    }
    for (unsigned k = 1; k < processes; k++)
        close(pipes[k][1]);
    for (unsigned i = 0; i < n + 2; i++) {
        if (i == 2)
            begin();
        sum += touch(p, i);
        if (write(pipes[0][1], &c, 1) != 1 || read(pipes[processes - 1][0], &c, 1) != 1)
            exit(1);
    }
    end(sum);
    close(pipes[0][1]);
    while (wait(NULL) > 0)
        continue;
}
/* So many that they share PCIDs: a kernel has a handful, and flushes when it gives one to another process. */
static void switches(unsigned n) { ring(16, n); }
/* Two, which have PCIDs of their own: what is in the TLB stays. */
static void pair(unsigned n) { ring(2, n); }

/* A process of 8 MiB that forks; the child executes this program anew. */
static void forks(unsigned n)
{
    uint64_t good = 0;
    uint8_t *p = pages(2048);
    memset(p, 1, 2048 * 4096);
    for (unsigned i = 0; i < n + 1; i++) {
        if (i == 1)
            begin();
        fflush(stdout);
        pid_t child = fork();
        int status = 1;
        if (!child) {
            execl(self, self, "0", (char *)NULL);
            _exit(1);
        }
        for (unsigned k = 0; k < 2048; k += 64) /* while it runs: copies */
            p[k * 4096]++;
        waitpid(child, &status, 0);
        good += i && status == 0;
    }
    end(good);
}

static void faults(unsigned n)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < n + 2; i++) {
        if (i == 2)
            begin();
        uint8_t *p = pages(256);
        for (size_t k = 0; k < 256; k++)
            p[k * 4096] = 1, sum++;
        munmap(p, 256 * 4096);
    }
    end(sum);
}

/* One cycle through all pages of 512 MiB, in random order, and another line of each page at every turn. */
#define CHASE 131072u
static void chase(unsigned n)
{
    uint8_t *p = pages(CHASE);
    uint32_t *order = malloc(CHASE * sizeof(*order));
    uint64_t x = 42;
    if (!order)
        exit(1);
    for (unsigned i = 0; i < CHASE; i++)
        order[i] = i;
    for (unsigned i = CHASE - 1; i > 0; i--) {
        unsigned j = (unsigned)(next(&x) % i);
        uint32_t t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (unsigned i = 0; i < CHASE; i++) {
        unsigned to = order[i] % CHASE;
        memcpy(p + (size_t)i * 4096 + (i & 63) * 64, &to, sizeof(to));
    }
    free(order);
    uint32_t at = 0;
    begin();
    for (unsigned i = 0; i < n; i++)
        memcpy(&at, p + (size_t)at * 4096 + (at & 63) * 64, sizeof(at));
    end(at);
    munmap(p, CHASE * 4096ul);
}

static const struct {
    const char *name;
    void (*run)(unsigned n);
    unsigned n; /* at 100 percent */
} works[] = {{"mmu-switch", switches, 800}, {"mmu-pair", pair, 6000}, {"mmu-fork", forks, 60}, {"mmu-fault", faults, 150}, {"mmu-chase", chase, 3000000}};

int main(int argc, char **argv)
{
    unsigned percent = argc > 1 ? (unsigned)atoi(argv[1]) : 100;
    self = argv[0];
    for (unsigned i = 0; percent && i < sizeof(works) / sizeof(works[0]); i++) {
        int wanted = argc <= 2;
        for (int k = 2; k < argc; k++)
            wanted |= !strcmp(argv[k], works[i].name);
        unsigned n = (unsigned)((uint64_t)works[i].n * percent / 100);
        name = works[i].name;
        if (wanted)
            works[i].run(n ? n : 1);
    }
    return 0;
}
