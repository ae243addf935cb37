#include "demo.h"

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
