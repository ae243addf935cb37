/* --stats: what ran, and why hypervisors were left; and the registers for a report. */
#include "cpu/exit_profile.h"
#include "cpu/hyperv.h"
#include "cpu/interp.h"
#include "jit/jit.h"
#include "machine/machine.h"
#include "svm/svm.h"
#include "vmx/vmx.h"

#include <inttypes.h>

static const char *vmx_exit_name(unsigned i) { return vmx_exits[i].name; }

/* Exits by reason, largest first; the table is short, so is the sort. */
static void print_exits(FILE *out, const u64 *exits, unsigned n, u64 total, const char *(*name)(unsigned))
{
    bool done[256] = {false};
    for (;;) {
        unsigned best = n;
        for (unsigned i = 0; i < n; i++) {
            if (!done[i] && exits[i] && (best == n || exits[i] > exits[best]))
                best = i;
        }
        if (best == n)
            break;
        done[best] = true;
        fprintf(out, "    %-34s %12" PRIu64 "  %5.1f %%\n", name(best) ? name(best) : "?", exits[best],
                100.0 * (double)exits[best] / (double)total);
    }
}
_Static_assert(VMX_EXIT_REASONS <= 256 && SVM_EXIT_SLOTS <= 256, "print_exits marks at most 256 reasons");

static u64 sum(const u64 *exits, unsigned n)
{
    u64 total = 0;
    for (unsigned i = 0; i < n; i++)
        total += exits[i];
    return total;
}

static void print_vmx(const struct vcpu *v, FILE *out)
{
    const struct vmx_stats *s = vmx_stats(v);
    if (!s || (!s->entries && !s->entry_failures && !s->vmfails))
        return;
    u64 total = sum(s->exits, VMX_EXIT_REASONS);
    fprintf(out, "  VM entries %" PRIu64 ", refused %" PRIu64 " (guest state) and %" PRIu64 " (VMfail); VM exits %" PRIu64 ":\n",
            s->entries, s->entry_failures, s->vmfails, total);
    if (s->evmcs_entries)
        fprintf(out, "  with an enlightened VMCS: %" PRIu64 " VM entries, %.1f of 16 groups clean on average; direct flushes %" PRIu64 "\n",
                s->evmcs_entries, (double)s->evmcs_clean_groups / (double)s->evmcs_entries, s->direct_flushes);
    print_exits(out, s->exits, VMX_EXIT_REASONS, total, vmx_exit_name);
}

static void print_svm(const struct vcpu *v, FILE *out)
{
    const struct svm_stats *s = svm_stats(v);
    if (!s || (!s->entries && !s->entry_failures))
        return;
    u64 total = sum(s->exits, SVM_EXIT_SLOTS);
    fprintf(out, "  VMRUNs %" PRIu64 ", refused %" PRIu64 "; VM exits %" PRIu64 ":\n", s->entries, s->entry_failures, total);
    print_exits(out, s->exits, SVM_EXIT_SLOTS, total, svm_exit_slot_name);
}

/* The largest few of @count, named by row. */
static void print_rows(const char *title, const u64 *count, FILE *out)
{
    u64 below = UINT64_MAX;
    fprintf(out, "  %s:", title);
    for (unsigned k = 0; k < 12; k++) {
        unsigned best = 0;
        u64 most = 0;
        for (unsigned r = 0; r < insn_row_count; r++)
            if (count[r] > most && count[r] < below) {
                best = r;
                most = count[r];
            }
        if (!most)
            break;
        below = most;
        fprintf(out, "%s %s %s %" PRIu64, k ? "," : "", insn_rows[best].mnemonic, insn_rows[best].operands, most);
    }
    fputc('\n', out);
}

static void print_jit(const struct vcpu *v, FILE *out)
{
    const struct jit_stats *s = jit_stats(v);
    if (!s || !s->translated)
        return;
    fprintf(out, "  translated %" PRIu64 " blocks, %" PRIu64 " instructions (%.1f %% calls), %" PRIu64 " bytes; lost %" PRIu64
            " (%" PRIu64 " to make room), cache flushes %" PRIu64 "; links made %" PRIu64 ", undone %" PRIu64 "\n", s->translated, s->insns,
            100.0 * (double)s->called / (double)s->insns, s->bytes, s->died, s->evicted, s->flushes, s->links, s->unlinks);
    fprintf(out, "  entered %" PRIu64 " times; left at a block's entry %" PRIu64 ", for a link %" PRIu64 ", a lookup %" PRIu64
            ", a far transfer %" PRIu64 ", attention %" PRIu64 ", another mapping %" PRIu64 "\n", s->entries, s->exits[JIT_EXIT_ENTRY], s->exits[JIT_EXIT_LINK],
            s->exits[JIT_EXIT_LOOKUP], s->exits[JIT_EXIT_FAR], s->exits[JIT_EXIT_ATTENTION], s->exits[JIT_EXIT_GUARD]);
    if (s->stepped_paths | s->stepped_parts)
        fprintf(out, "  in lock-step: %" PRIu64 " instructions in whole translations, %" PRIu64 " in parts of blocks\n", s->stepped_paths, s->stepped_parts);
    fprintf(out, "  bodies called %" PRIu64 " times, %" PRIu64 " of them as slow paths\n", s->calls, s->slow);
    print_rows("calls by row", s->row_calls, out);
    print_rows("slow paths by row", s->row_slow, out);
}

static void print_mmu(const struct vcpu *v, FILE *out)
{
    static const char *const causes[FLUSH_CAUSES] = {"INVLPG", "CR3", "global", "all", "INVPCID", "INVVPID", "INVEPT", "INVLPGA",
                                                     "ASID", "map"};
    const struct mmu_stats *s = mmu_stats(v);
    fprintf(out, "  TLB misses %" PRIu64 "; page walks %" PRIu64 " (%" PRIu64 " faults, %" PRIu64 " entries read); filled from shadows %" PRIu64
            ", in translated code %" PRIu64 ", faults %" PRIu64 "\n", s->walks + s->shadow_hits + s->refills + s->shadow_faults, s->walks,
            s->walk_faults, s->walk_steps, s->shadow_hits, s->refills, s->shadow_faults);
    fprintf(out, "  address spaces made %" PRIu64 ", switched %" PRIu64 "; pages write-protected %" PRIu64 "; entries flushed %" PRIu64
            ", found unchanged after it %" PRIu64 ", by", s->spaces_made, s->space_switches, s->protects, s->flushed, s->renewed);
    for (unsigned i = 0; i < FLUSH_CAUSES; i++)
        if (s->flushes[i])
            fprintf(out, " %s %" PRIu64, causes[i], s->flushes[i]);
    fputc('\n', out);
}

static void print_shadows(const struct shadow_stats *s, FILE *out)
{
    static const char *const kinds[SHADOW_WRITES] = {"of 1 or 2 bytes", "of 4", "of 8", "of more", "misaligned"};
    if (!s)
        return;
    fprintf(out, "shadow page tables: %" PRIu64 " made (%u now), %" PRIu64 " refused, %" PRIu64 " evicted; %" PRIu64
            " pages tracked (%u now), %" PRIu64 " floods\n", s->fills, s->live, s->refused, s->evicted, s->tracked, s->tables, s->floods);
    fprintf(out, "  %" PRIu64 " dropped by writes; tracked writes", s->dropped);
    for (unsigned i = 0; i < SHADOW_WRITES; i++)
        fprintf(out, "%s %s %" PRIu64, i ? "," : "", kinds[i], s->writes[i]);
    fprintf(out, "; %" PRIu64 " of them dropped none\n", s->silent);
}

static void print_cpu(const struct vcpu *v, FILE *out)
{
    struct interp_stats is;
    interp_stats(v, &is);
    fprintf(out, "processor %u: %" PRIu64 " instructions; %" PRIu64 " blocks decoded, %" PRIu64 " looked up, %" PRIu64
            " lost to %" PRIu64 " writes into code\n", v->index, v->icount, is.blocks, is.lookups, is.smc_blocks, is.smc_writes);
    print_mmu(v, out);
    print_jit(v, out);
    if (v->hyperv && v->hyperv->hypercalls)
        fprintf(out, "  hypercalls %" PRIu64 ", of which flushes %" PRIu64 "\n", v->hyperv->hypercalls, v->hyperv->flushes);
    print_vmx(v, out);
    print_svm(v, out);
}

void machine_profile_exits(struct nestor *m)
{
    for (unsigned i = 0; i < m->ncpus; i++) {
        struct vcpu *v = m->cpu[i];
        if ((v->vmx || v->svm) && !v->exits && !(v->exits = exit_profile_new()))
            panic("out of memory for the profile of VM exits");
    }
}

void nestor_print_stats(struct nestor *m, FILE *out)
{
    u64 insns = 0;
    for (unsigned i = 0; i < m->ncpus; i++)
        insns += m->cpu[i]->icount;
    double ran = (double)m->ran_ns / 1e9, idle = (double)m->idle_ns / 1e9, busy = ran - idle;
    fprintf(out, "\nran %.2f s, of which %.2f s idle; %" PRIu64 " instructions, %.1f million a second (engine %s)\n", ran, idle,
            insns, busy > 0 ? (double)insns / busy / 1e6 : 0.0, m->engine->name);
    for (unsigned i = 0; i < m->ncpus; i++)
        print_cpu(m->cpu[i], out);
    machine_threads_stats(m, out);
    if (m->ncpus)
        print_shadows(mmu_shadow_stats(m->cpu[0]), out);
}

void nestor_print_registers(struct nestor *m, FILE *out)
{
    static const char *const gpr[16] = {"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
                                        "R8",  "R9",  "R10", "R11", "R12", "R13", "R14", "R15"};
    static const char *const seg[SEG_COUNT] = {"ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"};
    static const char *const mode[] = {"real", "virtual-8086", "protected 16", "protected 32",
                                       "compatibility 16", "compatibility 32", "64-bit"};
    for (unsigned i = 0; i < m->ncpus; i++) {
        const struct vcpu *v = m->cpu[i];
        fprintf(out, "processor %u: %s mode, CPL %u%s, activity %u\n", i, mode[v->mode], v->cpl,
                v->guest_mode ? ", guest mode" : "", v->activity);
        for (unsigned r = 0; r < 16; r++)
            fprintf(out, "  %-3s %016" PRIx64 "%s", gpr[r], v->gpr[r], r % 4 == 3 ? "\n" : "");
        fprintf(out, "  RIP %016" PRIx64 "  RFLAGS %08" PRIx64 "  CR0 %08" PRIx64 "  CR2 %" PRIx64 "  CR3 %" PRIx64 "  CR4 %" PRIx64
                "  EFER %" PRIx64 "\n", v->rip, cpu_rflags(v), v->cr0, v->cr2, v->cr3, v->cr4, v->efer);
        for (unsigned s = 0; s < SEG_COUNT; s++)
            fprintf(out, "  %-4s %04x base %016" PRIx64 " limit %08x ar %05x\n", seg[s], v->seg[s].sel, v->seg[s].base,
                    v->seg[s].limit, v->seg[s].ar);
        fprintf(out, "  GDTR %016" PRIx64 " %04x  IDTR %016" PRIx64 " %04x\n", v->gdtr.base, v->gdtr.limit, v->idtr.base,
                v->idtr.limit);
    }
}
