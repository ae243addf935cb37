#include "demo.h"

void *demo_memset(void *p, int c, size_t n)
{
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
    return p;
}

void print(const char *s)
{
    for (; *s; s++) {
        if (*s == '\n')
            outb(CONSOLE_PORT, '\r');
        outb(CONSOLE_PORT, (uint8_t)*s);
    }
}

void print_number(uint64_t n)
{
    char text[24], *p = text + sizeof(text) - 1;
    *p = 0;
    do
        *--p = (char)('0' + n % 10);
    while (n /= 10);
    print(p);
}

void print_hex(uint64_t n)
{
    print("0x");
    bool started = false;
    for (int shift = 60; shift >= 0; shift -= 4) {
        unsigned digit = (n >> shift) & 15;
        if (digit || started || shift == 0) {
            char text[2] = {"0123456789abcdef"[digit], 0};
            print(text);
            started = true;
        }
    }
}

/* The exit port of the machine: status (1 << 1) | 1. */
void fail(const char *what)
{
    print("demo: ");
    print(what);
    print("\n");
    outl(0xf4, 1);
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void print_counts(unsigned level, const unsigned *count, const char *what, const struct extension *ext)
{
    bool any = false;
    for (unsigned reason = 0; reason < MAX_REASONS; reason++) {
        if (!count[reason])
            continue;
        if (!any) {
            print("L");
            print_number(level);
            print(what);
        }
        print(any ? ", " : " ");
        print(ext->reason_name(reason));
        print(" ");
        print_number(count[reason]);
        any = true;
    }
    if (any)
        print("\n");
}

const struct extension *find_extension(void)
{
    return extension_vmx.available() ? &extension_vmx : extension_svm.available() ? &extension_svm : NULL;
}

void demo_main(unsigned level)
{
    static struct exit_counts counts[DEEPEST_LEVEL + 1];
    uint32_t r[4], vendor[4] = {0};
    cpuid(0, r);
    vendor[0] = r[1], vendor[1] = r[3], vendor[2] = r[2];
    print("L");
    print_number(level);
    print(": hello from level ");
    print_number(level);
    print(level == 1 ? ", the first guest, on " : ", a guest of level ");
    if (level == 1)
        print((const char *)vendor);
    else
        print_number(level - 1);
    print("\n");
    if (level < DEEPEST_LEVEL) {
        const struct extension *ext = find_extension();
        if (!ext)
            fail("this CPU offers no hypervisor extension");
        run_guest(ext, level + 1, &counts[level]);
        print_counts(level, counts[level].handled, " handled exits of its guest:", ext);
        print_counts(level, counts[level].reflected, " passed on exits of its guest's guest:", ext);
    }
    if (level == 1) {
        outw(0x604, 5 << 10 | 1 << 13); /* ACPI PM1a_CNT: SLP_TYP of S5, SLP_EN: power off */
        for (;;)
            __asm__ volatile("cli; hlt");
    }
}
