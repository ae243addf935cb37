/*
 * Memory as the debugger sees it: through the tables of the level that runs, of the hypervisor below it
 * or of the guest above it, or by physical address; and page walks, printed from the walker's own value.
 */
#include "debug/debugger.h"

#include "cpu/mem.h"

#include <inttypes.h>

const char *const space_names[SPACE_COUNT] = {"current", "root", "guest", "guest-physical", "physical"};

/* ---- tables of another level ---- */

static void set_paging(struct walk_context *c, u64 cr0, u64 cr3, u64 cr4, u64 efer)
{
    c->paging = !(cr0 & CR0_PG)   ? PAGING_NONE
                : efer & EFER_LMA ? (cr4 & CR4_LA57 ? PAGING_5LEVEL : PAGING_4LEVEL)
                : cr4 & CR4_PAE   ? PAGING_PAE
                                  : PAGING_32BIT;
    c->cr3 = cr3;
    c->pse = cr4 & CR4_PSE;
    c->nx = cr4 & CR4_PAE && efer & EFER_NXE;
    c->wp = cr0 & CR0_WP;
}

static void load_pdptes(struct vcpu *v, struct walk_context *c)
{
    struct walk w;
    if (c->paging == PAGING_PAE && walk_load_pdptes(v->pm, c, c->cr3, c->pdpte, &w) != WALK_OK)
        memset(c->pdpte, 0, sizeof(c->pdpte));
}

static bool root_context(struct vcpu *v, struct walk_context *c)
{
    c->slat = (struct slat){.kind = SLAT_NONE};
    if (v->vmx) {
        const u64 *f = v->vmx->f;
        bool host64 = f[VMCS_VM_EXIT_CONTROLS] & BIT(EXIT_HOST_ADDRESS_SPACE_SIZE);
        u64 efer = f[VMCS_VM_EXIT_CONTROLS] & BIT(EXIT_LOAD_EFER) ? f[VMCS_HOST_IA32_EFER] : v->efer;
        set_paging(c, f[VMCS_HOST_CR0], f[VMCS_HOST_CR3], f[VMCS_HOST_CR4], (efer & ~EFER_LMA) | (host64 ? EFER_LMA : 0));
    } else {
        const struct svm_host *h = &v->svm->host;
        set_paging(c, h->cr0, h->cr3, h->cr4, h->efer);
    }
    load_pdptes(v, c);
    return true;
}

static bool guest_context(struct vcpu *v, struct walk_context *c, const char **why)
{
    pa_t vmcb;
    if (v->vmx) {
        const u64 *f = v->vmx->f;
        if (v->vmx->current == VMX_NO_VMCS || v->vmx->current_is_shadow) {
            *why = "there is no current VMCS";
            return false;
        }
        u32 sec = f[VMCS_CPU_BASED_VM_EXEC_CONTROL] & BIT(PRI_SECONDARY_CONTROLS) ? (u32)f[VMCS_SECONDARY_VM_EXEC_CONTROL] : 0;
        bool lma = f[VMCS_VM_ENTRY_CONTROLS] & BIT(ENTRY_IA32E_GUEST);
        c->slat = vmx_slat(v, sec);
        set_paging(c, f[VMCS_GUEST_CR0], f[VMCS_GUEST_CR3], f[VMCS_GUEST_CR4],
                   (f[VMCS_GUEST_IA32_EFER] & ~EFER_LMA) | (lma ? EFER_LMA : 0));
        memcpy(c->pdpte, &f[VMCS_GUEST_PDPTE0], sizeof(c->pdpte));
        if (c->slat.kind == SLAT_NONE)
            load_pdptes(v, c);
        return true;
    }
    if (!v->svm || !control_vmcb(v, &vmcb)) {
        *why = v->svm ? "there was no VMRUN yet" : "this processor model has neither VMX nor SVM";
        return false;
    }
    c->slat = (struct slat){.kind = SLAT_NONE};
    if (vmcb_read(v, vmcb, VMCB_NESTED_CTL) & NESTED_CTL_NP)
        c->slat = svm_slat(vmcb_read(v, vmcb, VMCB_N_CR3), v->efer, v->cr0, v->cr4);
    set_paging(c, vmcb_read(v, vmcb, VMCB_CR0), vmcb_read(v, vmcb, VMCB_CR3), vmcb_read(v, vmcb, VMCB_CR4), vmcb_read(v, vmcb, VMCB_EFER));
    load_pdptes(v, c);
    return true;
}

bool space_context(struct vcpu *v, enum space s, struct walk_context *ctx, const char **why)
{
    *ctx = *mmu_context(v);
    if (s == SPACE_ROOT && v->guest_mode)
        return root_context(v, ctx);
    if ((s == SPACE_GUEST || s == SPACE_GUEST_PHYSICAL) && !v->guest_mode)
        return guest_context(v, ctx, why);
    return true;
}

/* ---- reading and writing ---- */

static bool wide(const struct walk_context *c) { return c->paging >= PAGING_4LEVEL; }

/* Where @at leads, whatever the rights say. */
static bool resolve(struct vcpu *v, enum space s, const struct walk_context *ctx, u64 at, pa_t *pa)
{
    struct walk_context c = *ctx;
    struct walk w;
    if (s == SPACE_PHYSICAL) {
        *pa = at;
        return true;
    }
    c.wp = c.smep = c.smap = c.pke = c.pks = false;
    bool ok = s == SPACE_GUEST_PHYSICAL
                  ? walk_gpa(v->pm, &c, at, ACCESS_READ | ACCESS_NO_AD, &w) || walk_gpa(v->pm, &c, at, ACCESS_EXEC | ACCESS_NO_AD, &w)
                  : (!wide(&c) || is_canonical(at, c.paging == PAGING_5LEVEL ? 57 : 48)) &&
                        (walk_linear(v->pm, &c, at, ACCESS_READ | ACCESS_NO_AD, &w) || walk_linear(v->pm, &c, at, ACCESS_EXEC | ACCESS_NO_AD, &w));
    *pa = w.pa;
    return ok;
}

static size_t piece(u64 at, size_t len)
{
    size_t n = PAGE_SIZE - (at & ~PAGE_MASK);
    return n < len ? n : len;
}

size_t space_read(struct vcpu *v, enum space s, u64 at, void *buf, size_t len)
{
    struct walk_context ctx;
    const char *why;
    size_t got = 0;
    if (!space_context(v, s, &ctx, &why))
        return 0;
    while (got < len) {
        size_t n = piece(at + got, len - got);
        pa_t pa;
        u8 flags;
        const u8 *host = resolve(v, s, &ctx, at + got, &pa) ? physmap_host(v->pm, pa, true, &flags) : NULL;
        if (!host)
            break;
        memcpy((u8 *)buf + got, host, n);
        got += n;
    }
    return got;
}

bool space_write(struct vcpu *v, enum space s, u64 at, const void *buf, size_t len)
{
    struct walk_context ctx;
    const char *why;
    if (!space_context(v, s, &ctx, &why))
        return false;
    for (size_t done = 0; done < len;) {
        size_t n = piece(at + done, len - done);
        pa_t pa;
        if (!resolve(v, s, &ctx, at + done, &pa) || !physmap_ram(v->pm, pa))
            return false;
        physmap_write(v->pm, pa, (const u8 *)buf + done, n); /* tells the trackers: code is patched this way */
        done += n;
    }
    return true;
}

/* ---- commands ---- */

static bool space_word(const char *word, enum space *s)
{
    for (unsigned n = 0; n < SPACE_COUNT; n++)
        if (!strcmp(space_names[n], word)) {
            *s = (enum space)n;
            return true;
        }
    return false;
}

void cmd_space(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    struct walk_context ctx;
    const char *why = "", *word = next_word(&args);
    enum space s = g->space;
    if (*word && !space_word(word, &s)) {
        fputs("expected space current, root (tables of the first hypervisor), guest (of its guest), guest-physical or physical\n", out);
        return;
    }
    if (!space_context(v, s, &ctx, &why))
        fprintf(out, "%s: %s; memory cannot be read until then\n", space_names[s], why);
    g->space = s;
    fprintf(out, "memory is read and written by addresses of: %s\n", space_names[s]);
}

static void print_step(const struct walk_step *s, FILE *out)
{
    static const char *const tables[] = {"32-bit", "PAE", "long", "EPT", "NPT"}, *const levels[] = {"", "PTE", "PDE", "PDPTE", "PML4E", "PML5E"};
    bool second = s->table == TABLE_EPT || s->table == TABLE_NPT;
    u64 e = s->entry;
    fprintf(out, "%s%-6s %-5s at 0x%" PRIx64, second ? "    " : "", tables[s->table], levels[s->level], s->pa);
    if (s->gpa != s->pa && !second)
        fprintf(out, " (guest-physical 0x%" PRIx64 ")", s->gpa);
    fprintf(out, " = 0x%016" PRIx64 "  ", e);
    if (s->table == TABLE_EPT)
        fprintf(out, "%c%c%c%s%s%s", e & 1 ? 'R' : '-', e & 2 ? 'W' : '-', e & 4 ? 'X' : '-', e & 0x80 ? " page" : "", e & 0x100 ? " A" : "",
                e & 0x200 ? " D" : "");
    else
        fprintf(out, "%s %s %s%s%s%s%s", e & 1 ? "P" : "not present", e & 2 ? "W" : "R", e & 4 ? "U" : "S", e & 0x20 ? " A" : "", e & 0x40 ? " D" : "",
                e & 0x80 && s->level > 1 ? " page" : "", s->table != TABLE_32BIT && e >> 63 ? " NX" : "");
    fputc('\n', out);
}

static void print_walk(struct vcpu *v, enum space s, u64 at, u32 access, FILE *out)
{
    static const char *const faults[] = {"", "page fault", "EPT violation", "EPT misconfiguration", "nested page fault", "page-modification log full"};
    const char *what = access & ACCESS_WRITE ? "a write" : access & ACCESS_EXEC ? "a fetch" : "a read", *why;
    struct walk w;
    struct walk_context ctx;
    if (!space_context(v, s, &ctx, &why)) {
        fprintf(out, "%s\n", why);
        return;
    }
    if (s == SPACE_GUEST_PHYSICAL) {
        if (ctx.slat.kind == SLAT_NONE) {
            fputs("there is no second level: a guest-physical address is the physical one\n", out);
            return;
        }
        walk_gpa(v->pm, &ctx, at, access | ACCESS_NO_AD, &w);
    } else {
        if (wide(&ctx) && !is_canonical(at, ctx.paging == PAGING_5LEVEL ? 57 : 48)) {
            fprintf(out, "0x%" PRIx64 " is not canonical\n", at);
            return;
        }
        walk_linear(v->pm, &ctx, at, access | ACCESS_NO_AD, &w);
    }
    for (unsigned i = 0; i < w.nsteps; i++)
        print_step(&w.steps[i], out);
    switch (w.fault) {
    case WALK_OK:
        fprintf(out, "0x%" PRIx64 " leads to physical 0x%" PRIx64, at, w.pa);
        if (ctx.slat.kind != SLAT_NONE && s != SPACE_GUEST_PHYSICAL)
            fprintf(out, ", guest-physical 0x%" PRIx64, w.gpa);
        fprintf(out, "; page of %u KiB, %s, %s%s%s\n", 1u << (w.lg2_page - 10), w.user ? "user" : "supervisor", w.writable ? "writable" : "read-only",
                w.nx ? ", no execution" : "", w.global ? ", global" : "");
        break;
    case WALK_PAGE_FAULT: fprintf(out, "stops: page fault, error code 0x%x for %s\n", w.error_code, what); break;
    case WALK_EPT_VIOLATION:
        fprintf(out, "stops: EPT violation at guest-physical 0x%" PRIx64 ", qualification 0x%" PRIx64 " for %s\n", w.gpa, w.qualification, what);
        break;
    default: fprintf(out, "stops: %s at guest-physical 0x%" PRIx64 " for %s\n", faults[w.fault], w.gpa, what); break;
    }
}

void cmd_walk(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    static const struct {
        const char *name;
        u32 access;
    } accesses[] = {{"read", ACCESS_READ}, {"write", ACCESS_WRITE}, {"fetch", ACCESS_EXEC}};
    u64 at;
    enum space s = SPACE_CURRENT;
    u32 access = ACCESS_READ, user = 0;
    bool good = parse_address(g, v, next_word(&args), &at);
    for (char *word; good && *(word = next_word(&args));) {
        good = space_word(word, &s) || !strcmp(word, "user");
        if (!strcmp(word, "user"))
            user = ACCESS_USER;
        for (unsigned n = 0; n < ARRAY_SIZE(accesses); n++)
            if (!strcmp(accesses[n].name, word)) {
                access = accesses[n].access;
                good = true;
            }
    }
    if (good && s != SPACE_PHYSICAL)
        print_walk(v, s, at, access | user, out);
    else
        fputs("expected walk ADDRESS [root|guest|guest-physical] [read|write|fetch] [user]\n", out);
}

static void dump(struct vcpu *v, enum space s, u64 at, u64 len, FILE *out)
{
    for (u64 n = 0; n < len; n++) {
        u8 byte;
        if (n % 16 == 0)
            fprintf(out, "%s0x%" PRIx64 ":", n ? "\n" : "", at + n);
        if (space_read(v, s, at + n, &byte, 1))
            fprintf(out, " %02x", byte);
        else
            fputs(" ..", out);
    }
    fputc('\n', out);
}

static void dump_command(struct debugger *g, struct vcpu *v, enum space s, const char *name, char *args, FILE *out)
{
    u64 at, len = 64;
    char *a = next_word(&args), *n = next_word(&args);
    if (!parse_address(g, v, a, &at) || (*n && !parse_number(n, &len)) || len > 4096)
        fprintf(out, "expected %s ADDRESS [BYTES], at most 4096\n", name);
    else
        dump(v, s, at, len, out);
}

void cmd_x(struct debugger *g, struct vcpu *v, char *args, FILE *out) { dump_command(g, v, g->space, "x", args, out); }
void cmd_phys(struct debugger *g, struct vcpu *v, char *args, FILE *out) { dump_command(g, v, SPACE_PHYSICAL, "phys", args, out); }

void cmd_map(struct debugger *g, struct vcpu *v, char *args, FILE *out)
{
    static const char *const kinds[] = {"RAM", "ROM", "device"};
    (void)args;
    pa_t first, last;
    const struct region *r;
    for (unsigned n = 0; (r = physmap_nth(v->pm, n, &first, &last)); n++)
        fprintf(out, "0x%012" PRIx64 " to 0x%012" PRIx64 "  %-6s %s\n", first, last, kinds[r->kind], r->name);
    (void)g;
}
