/*
 * The demo's hypervisor: one loop that runs a guest and handles its exits, whatever extension the processor
 * has. When the guest is a hypervisor itself, exits of its own guest are handed on to it.
 */
#include "demo.h"

static void guest_entry(unsigned level)
{
    demo_main(level);
    find_extension()->call(CALL_DONE);
    fail("a guest ran on after it was done");
}

static void __attribute__((noreturn)) unexpected(const struct extension *ext, const struct exit *e)
{
    print("exit reason ");
    print_hex(e->reason);
    print(" (");
    print(ext->reason_name(e->reason));
    print("), information ");
    print_hex(e->information[0]);
    print(" ");
    print_hex(e->information[1]);
    print("\n");
    fail("an exit nobody expected");
}

/* Returns false when the guest is done. */
static bool handle_exit(const struct extension *ext, struct hypervisor *h, const struct exit *e)
{
    struct registers *regs = ext->registers(h);
    uint32_t r[4];
    switch (e->kind) {
    case EXIT_OF_CPUID:
        cpuid((uint32_t)regs->rax, r);
        regs->rax = r[0], regs->rbx = r[1], regs->rcx = r[2], regs->rdx = r[3];
        ext->skip(h);
        return true;
    case EXIT_OF_OUT:
        if (e->port != CONSOLE_PORT)
            fail("a guest used a port it does not have");
        outb(CONSOLE_PORT, (uint8_t)regs->rax);
        ext->skip(h);
        return true;
    case EXIT_OF_CALL:
        if (regs->rax != CALL_DONE)
            fail("a guest asked for something the demo does not know");
        return false;
    default:
        if (!ext->handle(h, e))
            unexpected(ext, e);
        return true;
    }
}

void run_guest(const struct extension *ext, unsigned level, struct exit_counts *counts)
{
    /* The outermost hypervisor translates guest-physical addresses, the one inside shares its tables. */
    struct hypervisor *h = ext->begin(level, guest_entry, level == 2);
    for (;;) {
        struct exit e = {0};
        ext->enter(h, &e);
        if (e.inner) {
            counts->reflected[e.reason]++;
            ext->reflect(h);
            continue;
        }
        counts->handled[e.reason]++;
        if (!handle_exit(ext, h, &e))
            break;
    }
    ext->end(h);
}
