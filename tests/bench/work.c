/*
 * work [SCALE-PERCENT [NAME...]]: small programs that load one thing each. The same static binary runs
 * natively and inside guests; tests/bench/run times it by the marks it prints, on the host's clock, and
 * compares the check sums. The environment's PREFIX goes before the names.
 */
#include <immintrin.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *self;

static uint64_t next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

/* ---- the processor ---- */

static uint64_t integer(unsigned n)
{
    uint64_t x = 88172645463325252ull, sum = 0;
    for (unsigned i = 0; i < n; i++) {
        uint64_t r = next(&x);
        if (r & 1)
            sum += r / ((r >> 40) | 1);
        else
            sum ^= r * 0x9e3779b97f4a7c15ull;
        sum = sum << 7 | sum >> 57;
    }
    return sum;
}

#define SIEVE 500000
static uint64_t sieve(unsigned n)
{
    static uint8_t composite[SIEVE];
    uint64_t primes = 0;
    while (n--) {
        memset(composite, 0, sizeof(composite));
        for (unsigned i = 2; i < SIEVE; i++) {
            if (composite[i])
                continue;
            primes++;
            for (unsigned j = 2 * i; j < SIEVE; j += i)
                composite[j] = 1;
        }
    }
    return primes;
}

static void quicksort(uint32_t *a, long lo, long hi)
{
    while (lo < hi) {
        uint32_t pivot = a[(lo + hi) / 2];
        long i = lo, j = hi;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                uint32_t t = a[i];
                a[i++] = a[j];
                a[j--] = t;
            }
        }
        if (j - lo < hi - i) {
            quicksort(a, lo, j);
            lo = i;
        } else {
            quicksort(a, i, hi);
            hi = j;
        }
    }
}

#define SORT 100000
static uint64_t sort(unsigned n)
{
    static uint32_t a[SORT];
    uint64_t x = 1234567, sum = 0;
    while (n--) {
        for (unsigned i = 0; i < SORT; i++)
            a[i] = (uint32_t)next(&x);
        quicksort(a, 0, SORT - 1);
        for (unsigned i = 0; i < SORT; i += 997)
            sum = sum * 31 + a[i];
    }
    return sum;
}

#define CHASE (4u << 20) /* 32 MiB: beyond what a TLB reaches */
static uint64_t chase(unsigned n)
{
    uint64_t *p = malloc(CHASE * sizeof(*p)), x = 42, at = 0;
    if (!p)
        exit(1);
    for (unsigned i = 0; i < CHASE; i++)
        p[i] = i;
    for (unsigned i = CHASE - 1; i > 0; i--) { /* one cycle (Sattolo) */
        unsigned j = (unsigned)(next(&x) % i);
        uint64_t t = p[i];
        p[i] = p[j];
        p[j] = t;
    }
    for (unsigned i = 0; i < n; i++)
        at = p[at];
    free(p);
    return at;
}

static uint64_t copy(unsigned n)
{
    static uint8_t a[65536], b[65536];
    uint64_t sum = 0;
    for (unsigned i = 0; i < sizeof(a); i++)
        a[i] = (uint8_t)(i * 7);
    while (n--) {
        memcpy(b, a, sizeof(a));
        a[n & 65535] ^= b[(n * 31) & 65535];
        sum += b[n & 65535];
    }
    return sum;
}

static uint64_t real(unsigned n)
{
    double x[3] = {1, 0, 0.5}, v[3] = {0, 0.9, 0.1};
    for (unsigned i = 0; i < n; i++) { /* a planet */
        double r2 = x[0] * x[0] + x[1] * x[1] + x[2] * x[2], r = __builtin_sqrt(r2), f = -0.001 / (r2 * r);
        for (int k = 0; k < 3; k++) {
            v[k] += f * x[k];
            x[k] += 0.001 * v[k];
        }
    }
    return (uint64_t)(int64_t)((x[0] + x[1] + x[2]) * 1e9);
}

static uint64_t x87(unsigned n)
{
    volatile long double start = 1.5L;
    long double x = start, sum = 0;
    for (unsigned i = 1; i <= n; i++) {
        x = (x + 2.0L / x) / 2.0L + 1.0L / (long double)i;
        sum += x;
    }
    return (uint64_t)(sum * 1000);
}

static uint64_t sse(unsigned n)
{
    static float a[1024] __attribute__((aligned(16))), b[1024] __attribute__((aligned(16)));
    for (unsigned i = 0; i < 1024; i++)
        a[i] = (float)i * 0.25f, b[i] = 1.0f / (float)(i + 1);
    while (n--)
        for (unsigned i = 0; i < 1024; i += 4) {
            __m128 va = _mm_load_ps(a + i), vb = _mm_load_ps(b + i);
            va = _mm_add_ps(_mm_mul_ps(va, vb), _mm_sub_ps(va, _mm_max_ps(va, vb)));
            _mm_store_ps(a + i, _mm_add_ps(va, _mm_set1_ps(0.5f)));
        }
    float sum = 0;
    for (unsigned i = 0; i < 1024; i++)
        sum += a[i];
    return (uint64_t)(int64_t)(sum * 16);
}

#define MATRIX 160
static uint64_t matrix(unsigned n)
{
    static double a[MATRIX][MATRIX], b[MATRIX][MATRIX], c[MATRIX][MATRIX];
    double sum = 0;
    for (unsigned i = 0; i < MATRIX; i++)
        for (unsigned j = 0; j < MATRIX; j++)
            a[i][j] = (i * 7 + j) % 13, b[i][j] = (i + j * 3) % 11;
    while (n--) {
        memset(c, 0, sizeof(c));
        for (unsigned i = 0; i < MATRIX; i++)
            for (unsigned k = 0; k < MATRIX; k++)
                for (unsigned j = 0; j < MATRIX; j++)
                    c[i][j] += a[i][k] * b[k][j];
        a[n % MATRIX][n % 7] = c[n % 5][n % MATRIX] * 1e-4;
        sum += c[1][n % MATRIX];
    }
    return (uint64_t)(int64_t)(sum * 16);
}

/* Eight particles that attract each other. */
static uint64_t nbody(unsigned n)
{
    double p[8][3], v[8][3] = {{0}};
    for (unsigned i = 0; i < 8; i++)
        for (unsigned k = 0; k < 3; k++)
            p[i][k] = (double)((i * 5 + k * 3) % 8) - 3.5;
    while (n--) {
        for (unsigned i = 0; i < 8; i++)
            for (unsigned j = i + 1; j < 8; j++) {
                double d[3], r2 = 0.01;
                for (unsigned k = 0; k < 3; k++)
                    d[k] = p[i][k] - p[j][k], r2 += d[k] * d[k];
                double f = 1e-4 / (r2 * __builtin_sqrt(r2));
                for (unsigned k = 0; k < 3; k++)
                    v[i][k] -= d[k] * f, v[j][k] += d[k] * f;
            }
        for (unsigned i = 0; i < 8; i++)
            for (unsigned k = 0; k < 3; k++)
                p[i][k] += 0.01 * v[i][k];
    }
    return (uint64_t)(int64_t)(p[0][0] * 1e9) ^ (uint64_t)(int64_t)(p[7][2] * 1e9);
}

#define VECTOR 4096
__attribute__((target("avx2"))) static uint64_t avx2(unsigned n)
{
    static uint32_t a[VECTOR] __attribute__((aligned(32))), b[VECTOR] __attribute__((aligned(32)));
    for (unsigned i = 0; i < VECTOR; i++)
        a[i] = i * 2654435761u, b[i] = i ^ 0x55aa;
    while (n--)
        for (unsigned i = 0; i < VECTOR; i += 8) {
            __m256i x = _mm256_load_si256((__m256i *)(a + i)), y = _mm256_loadu_si256((__m256i *)(b + i));
            x = _mm256_add_epi32(_mm256_mullo_epi32(x, y), _mm256_shuffle_epi8(y, x));
            y = _mm256_xor_si256(_mm256_srli_epi32(x, 5), _mm256_max_epu32(x, y));
            _mm256_store_si256((__m256i *)(a + i), _mm256_permute4x64_epi64(x, 0x4e));
            _mm256_storeu_si256((__m256i *)(b + i), y);
        }
    uint64_t sum = 0;
    for (unsigned i = 0; i < VECTOR; i++)
        sum = sum * 31 + a[i] + b[i];
    return sum;
}

/* ---- the system ---- */

/* Code that is written and called at once, as compilers at run time do it. */
static uint64_t patch(unsigned n)
{
    uint64_t sum = 0;
    uint8_t *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        exit(1);
    memcpy(p, "\xb8\0\0\0\0\xc3", 6); /* mov eax, imm32; ret */
    uint32_t (*f)(void) = (uint32_t(*)(void))(uintptr_t)p;
    for (uint32_t i = 0; i < n; i++) {
        memcpy(p + 1, &i, 4);
        sum += f();
    }
    munmap(p, 4096);
    return sum;
}

/* A child that writes to the pages it got from its parent. */
static uint64_t cow(unsigned n)
{
    uint64_t good = 0;
    size_t size = 256 * 4096;
    volatile uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        exit(1);
    madvise((void *)p, size, MADV_NOHUGEPAGE);
    for (size_t k = 0; k < size; k += 4096)
        p[k] = 1;
    for (unsigned i = 0; i < n; i++) {
        int status = 1;
        pid_t child = fork();
        if (!child) {
            for (size_t k = 0; k < size; k += 4096)
                p[k] = (uint8_t)(p[k] + 1);
            _exit(p[4096] - 2);
        }
        waitpid(child, &status, 0);
        good += status == 0;
    }
    munmap((void *)p, size);
    return good;
}

static uint64_t syscalls(unsigned n)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < n; i++)
        sum += syscall(SYS_getppid) > 0;
    return sum;
}

static uint64_t faults(unsigned n)
{
    uint64_t sum = 0;
    size_t size = 256 * 4096;
    for (unsigned i = 0; i < n; i += 256) {
        uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            exit(1);
        madvise(p, size, MADV_NOHUGEPAGE);
        for (size_t k = 0; k < size; k += 4096)
            p[k] = 1, sum++;
        munmap(p, size);
    }
    return sum;
}

static uint64_t processes(unsigned n)
{
    uint64_t good = 0;
    for (unsigned i = 0; i < n; i++) {
        pid_t child = fork();
        int status = 1;
        if (!child) {
            execl(self, self, "0", "exit", (char *)NULL);
            _exit(1);
        }
        waitpid(child, &status, 0);
        good += status == 0;
    }
    return good;
}

static uint64_t pipes(unsigned n)
{
    int to[2], from[2];
    uint64_t sum = 0;
    char c = 1;
    if (pipe(to) || pipe(from))
        exit(1);
    pid_t child = fork();
    if (!child) {
        close(to[1]);
        while (read(to[0], &c, 1) == 1)
            if (write(from[1], &c, 1) != 1)
                break;
        _exit(0);
    }
    close(to[0]);
    for (unsigned i = 0; i < n; i++)
        if (write(to[1], &c, 1) == 1 && read(from[0], &c, 1) == 1)
            sum++;
    close(to[1]), close(from[0]), close(from[1]);
    waitpid(child, NULL, 0);
    return sum;
}

static volatile uint64_t caught;
static void on_signal(int number) { caught += number == SIGUSR1; }

static uint64_t signals(unsigned n)
{
    caught = 0;
    signal(SIGUSR1, on_signal);
    for (unsigned i = 0; i < n; i++)
        raise(SIGUSR1);
    return caught;
}

static const struct {
    const char *name;
    uint64_t (*run)(unsigned n);
    unsigned n; /* at 100 percent */
} works[] = {
    {"integer", integer, 8000000}, {"sieve", sieve, 10},       {"sort", sort, 4},           {"chase", chase, 1000000},
    {"copy", copy, 30000},         {"double", real, 3000000},  {"x87", x87, 1500000},       {"sse", sse, 20000},
    {"syscall", syscalls, 300000}, {"fault", faults, 25600},   {"process", processes, 100}, {"pipe", pipes, 10000},
    {"signal", signals, 40000},    {"matrix", matrix, 25},     {"nbody", nbody, 100000},    {"avx2", avx2, 15000},
    {"patch", patch, 200000},      {"cow", cow, 60},
};

static uint64_t ns(const struct timeval *t) { return (uint64_t)t->tv_sec * 1000000000 + (uint64_t)t->tv_usec * 1000; }

static uint64_t cpu_time(void)
{
    uint64_t sum = 0;
    for (int who = RUSAGE_CHILDREN; who <= RUSAGE_SELF; who++) {
        struct rusage r;
        getrusage(who, &r);
        sum += ns(&r.ru_utime) + ns(&r.ru_stime);
    }
    return sum;
}

int main(int argc, char **argv)
{
    unsigned percent = argc > 1 ? (unsigned)atoi(argv[1]) : 100;
    const char *prefix = getenv("PREFIX") ? getenv("PREFIX") : "";
    self = argv[0];
    if (!percent)
        return 0;
    for (unsigned i = 0; i < sizeof(works) / sizeof(works[0]); i++) {
        int wanted = argc <= 2;
        for (int k = 2; k < argc; k++)
            wanted |= !strcmp(argv[k], works[i].name);
        if (!wanted || (works[i].run == avx2 && !__builtin_cpu_supports("avx2")))
            continue;
        unsigned n = (unsigned)((uint64_t)works[i].n * percent / 100);
        struct timespec t0, t1;
        printf("WORK-BEGIN %s%s\n", prefix, works[i].name);
        fflush(stdout);
        uint64_t cpu = cpu_time();
        clock_gettime(CLOCK_MONOTONIC, &t0);
        uint64_t sum = works[i].run(n ? n : 1);
        clock_gettime(CLOCK_MONOTONIC, &t1);
        cpu = cpu_time() - cpu;
        printf("WORK-END %s%s %llu %llu %llx\n", prefix, works[i].name,
               (unsigned long long)((t1.tv_sec - t0.tv_sec) * 1000000000ll + t1.tv_nsec - t0.tv_nsec),
               (unsigned long long)cpu, (unsigned long long)sum);
        fflush(stdout);
    }
    return 0;
}
