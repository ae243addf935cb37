/* What every program inside needs: text on the console, and an end. */
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
