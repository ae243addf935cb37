/* Breakpoints, watchpoints and steps. Guest memory and the guest's own debug registers and TF are never touched. */
#include "debug/debugger.h"

#include "cpu/debug.h"
#include "cpu/isa/insn.h"

#include <strings.h>

static u64 filter_bit(gva_t la) { return BIT64((la ^ la >> 6) & 63); }
static u64 granule_bit(u64 at) { return BIT64(at >> 6 & 63); }

/* ---- levels ---- */

bool level_parse(const char *word, u8 *level)
{
    static const struct {
        const char *name;
        u8 level;
    } names[] = {{"any", LEVEL_ANY}, {"root", LEVEL_ROOT}, {"guest", LEVEL_GUEST}};
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (!strcasecmp(word, names[i].name)) {
            *level = names[i].level;
            return true;
        }
    word += *word == 'L' || *word == 'l';
    if (word[0] < '1' || word[0] > '9' || word[1])
        return false;
    *level = (u8)(word[0] - '0');
    return true;
}

const char *level_name(u8 level, char buf[8])
{
    if (level == LEVEL_ANY || level == LEVEL_GUEST)
        return level == LEVEL_ANY ? "any" : "guest";
    snprintf(buf, 8, "L%u", level);
    return buf;
}

static bool counts_here(const struct vcpu *v, u8 level)
{
    if (level == LEVEL_ANY)
        return true;
    return level == LEVEL_GUEST ? v->guest_mode : level == cpu_level(v, v->exits);
}

const char *cpu_level_name(const struct vcpu *v, char buf[48])
{
    unsigned level = cpu_level(v, v->exits);
    if (!v->guest_mode)
        return v->in_vmx_operation ? "L1 (VMX root operation)" : v->efer & EFER_SVME ? "L1 (SVM enabled)" : "L1";
    if (level)
        snprintf(buf, 48, "L%u (guest mode)", level);
    else
        snprintf(buf, 48, "L2 or deeper (guest mode)");
    return buf;
}

/* ---- before each instruction ---- */

static bool is_entry(const struct insn *i)
{
    const char *name = insn_row(i)->mnemonic;
    return !strcmp(name, "VMLAUNCH") || !strcmp(name, "VMRESUME") || !strcmp(name, "VMRUN");
}

static enum stop_kind breakpoint_at(struct debugger *g, struct vcpu *v, gva_t la)
{
    enum stop_kind kind = STOP_NONE;
    bool linear = g->bp_filter & filter_bit(la), physical = g->physical_filter & granule_bit(la);
    struct translation t = {0};
    struct walk w;
    if (physical)
        physical = mmu_translate(v, la, ACCESS_EXEC | ACCESS_NO_AD | (v->cpl == 3 ? ACCESS_USER : 0), &t, &w);
    for (unsigned n = 0; n < g->nbp && (linear || physical); n++) {
        struct breakpoint *b = &g->bp[n];
        if (b->physical ? !physical || b->at != t.pa : b->at != la)
            continue;
        if (!counts_here(v, b->kind == STOP_OWN ? b->level : g->level))
            continue;
        b->hits++;
        if (b->kind == STOP_OWN)
            snprintf(g->note, sizeof(g->note), "breakpoint %u\n", b->number);
        if (kind == STOP_NONE || b->kind != STOP_OWN)
            kind = b->kind;
    }
    return kind;
}

static bool watch_counts(struct debugger *g, struct vcpu *v)
{
    const struct vcpu_debug *d = v->debug;
    const struct debug_watch *w = &d->hit_watch;
    if (!counts_here(v, w->level))
        return false;
    for (unsigned n = 0; n < g->nwatch; n++)
        if (g->watch[n].number && g->watch[n].w.at == w->at && g->watch[n].w.physical == w->physical)
            snprintf(g->note, sizeof(g->note), "watchpoint %u: an access to %s 0x%llx\n", g->watch[n].number, w->physical ? "physical" : "linear",
                     (unsigned long long)(w->physical ? d->hit_pa : d->hit_la));
    return true;
}

/* VM entries and exits since the processor last ran under the debugger's eyes. */
static bool transition(struct debugger *g, struct debug_cpu *c, struct vcpu *v)
{
    const struct exit_profile *p = v->exits;
    bool exited = p->exits != c->seen_exits, entered = p->entries != c->seen_entries;
    if (!exited && !entered)
        return false;
    c->seen_exits = p->exits;
    c->seen_entries = p->entries;
    bool wanted_exit = exited && (g->exit_all || g->until == 'x' ||
                                  (g->exit_reasons_any && g->exit_reasons[p->last_reason / 64] >> (p->last_reason % 64) & 1));
    bool wanted_entry = entered && v->guest_mode && (g->entered_all || g->until == 'e');
    if (wanted_exit) {
        const char *name = exit_reason_name(v, p->last_reason);
        snprintf(g->note, sizeof(g->note), "%s on processor %u: %s%s\n", v->guest_mode ? "VM exit and entry" : "VM exit", v->index,
                 name ? name : "?", p->last_failed ? ", the VM entry failed" : "");
    } else if (wanted_entry) {
        snprintf(g->note, sizeof(g->note), "VM entry on processor %u, before the guest's first instruction (%s 0x%llx)\n", v->index,
                 v->vmx ? "VMCS" : "VMCB", (unsigned long long)p->control);
    }
    if (wanted_exit || wanted_entry)
        g->until = 0;
    return wanted_exit || wanted_entry;
}

static bool virt_events(const struct debugger *g) { return g->entered_all || g->exit_all || g->exit_reasons_any || g->until; }

static bool before(struct vcpu *v, const struct insn *i)
{
    struct vcpu_debug *d = v->debug;
    struct debug_cpu *c = d->opaque;
    struct debugger *g = c->g;
    if (c->first) {
        c->first = false;
        d->hit = false;
        return false;
    }
    enum stop_kind kind = STOP_NONE;
    gva_t la = (v->seg_base[SEG_CS] + v->rip) & v->linear_mask;
    if (unlikely(d->hit)) {
        if (watch_counts(g, v))
            kind = STOP_WATCH;
        d->hit = false;
    }
    if (kind == STOP_NONE && g->nbp)
        kind = breakpoint_at(g, v, la);
    if (kind == STOP_NONE && virt_events(g) && v->exits && transition(g, c, v))
        kind = STOP_ENTRY;
    if (kind == STOP_NONE && unlikely(c->step))
        kind = STOP_STEP;
    if (kind == STOP_NONE && (g->entry_all || g->entry_failing || g->entry_rows_any) && is_entry(i) && entry_wanted(g, v))
        kind = STOP_ENTRY;
    if (likely(kind == STOP_NONE))
        return false;
    if (kind == STOP_STEP && g->steps_left > 1) {
        g->steps_left--;
        return false;
    }
    debugger_stop(g, v->index, kind);
    return true;
}

void debugger_stop(struct debugger *g, unsigned cpu, enum stop_kind kind)
{
    g->stop = kind;
    g->stop_cpu = g->general = cpu;
    g->steps_left = 0;
}

static bool armed(const struct debugger *g, const struct debug_cpu *c)
{
    return c->step || g->nbp || g->nwatch || g->entry_all || g->entry_failing || g->entry_rows_any || virt_events(g);
}

enum run_result debugger_run(struct nestor *m, struct vcpu *v, bool *stop)
{
    struct debugger *g = m->debugger_state;
    struct debug_cpu *c = &g->cpu[v->index];
    if (!c->run && g->attached)
        return RUN_HALTED;
    if (!v->debug)
        return m->engine->run(v);
    if (!armed(g, c)) {
        if (!c->d.held)
            return m->engine->run(v);
        /* The boundary before the next instruction has been taken: the engine must not take it again. */
        v->budget_end = v->icount + 1;
    }
    enum run_result r = interp_run_debug(v);
    *stop = g->stop != STOP_NONE;
    if (!g->attached && !c->d.held)
        v->debug = NULL;
    return r;
}

/* ---- clients come and go ---- */

void debugger_attach(struct debugger *g)
{
    if (g->attached)
        return;
    g->attached = true;
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        struct debug_cpu *c = &g->cpu[i];
        bool held = g->m->cpu[i]->debug && c->d.held;
        *c = (struct debug_cpu){.g = g, .run = true, .d = {.before = before, .opaque = c, .held = held}};
        g->m->cpu[i]->debug = &c->d;
    }
}

static void watches_changed(struct debugger *g)
{
    bool physical = false;
    for (unsigned n = 0; n < g->nwatch; n++)
        physical |= g->watch[n].w.physical;
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        struct vcpu *v = g->m->cpu[i];
        struct vcpu_debug *d = &g->cpu[i].d;
        for (unsigned n = 0; n < g->nwatch; n++)
            d->watch[n] = g->watch[n].w;
        d->nwatch = g->nwatch;
        d->hit = false;
        if (!v->debug)
            continue;
        mmu_watch_changed(v);
        if (physical)
            mmu_watch_physical(v);
    }
}

static void filters_make(struct debugger *g)
{
    g->bp_filter = g->physical_filter = 0;
    for (unsigned n = 0; n < g->nbp; n++)
        if (g->bp[n].physical)
            g->physical_filter |= granule_bit(g->bp[n].at);
        else
            g->bp_filter |= filter_bit(g->bp[n].at);
}

static void forget(struct debugger *g, bool of_gdb, bool own)
{
    for (unsigned n = g->nbp; n--;)
        if (g->bp[n].kind == STOP_OWN ? own : of_gdb)
            g->bp[n] = g->bp[--g->nbp];
    for (unsigned n = g->nwatch; n--;)
        if (g->watch[n].number ? own : of_gdb)
            g->watch[n] = g->watch[--g->nwatch];
    filters_make(g);
    watches_changed(g);
}

void debugger_client_left(struct debugger *g, bool gdb)
{
    bool last = g->fd < 0 && g->line.fd < 0;
    if (!g->attached)
        return;
    forget(g, gdb || last, !gdb || last);
    if (gdb)
        g->level = LEVEL_ANY;
    if (!last && !gdb)
        return; /* gdb stays: the machine does what it says */
    /* What gdb held goes on. */
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        g->cpu[i].run = true;
        g->cpu[i].step = false;
    }
    if (last) {
        g->entry_all = g->entry_failing = g->entry_rows_any = g->entered_all = g->exit_all = g->exit_reasons_any = false;
        g->until = 0;
        memset(g->entry_rows, 0, sizeof(g->entry_rows));
        memset(g->exit_reasons, 0, sizeof(g->exit_reasons));
        for (unsigned i = 0; i < g->m->ncpus; i++)
            if (g->m->cpu[i]->debug && !g->cpu[i].d.held)
                g->m->cpu[i]->debug = NULL;
        g->attached = false;
    }
    debugger_resume(g);
    g->resumed = true;
}

void debugger_resume(struct debugger *g)
{
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        struct debug_cpu *c = &g->cpu[i];
        const struct vcpu *v = g->m->cpu[i];
        bool same = c->held_at && c->d.held && v->rip == c->held_rip;
        c->first = c->run && (same || c->step);
        c->d.hit = false;
        if (v->exits) {
            c->seen_entries = v->exits->entries;
            c->seen_exits = v->exits->exits;
        }
    }
    g->stop = STOP_NONE;
    g->note[0] = 0;
    g->walk.on = false;
}

struct vcpu *debugger_cpu(struct debugger *g) { return g->m->cpu[g->general < g->m->ncpus ? g->general : 0]; }

/* ---- breakpoints ---- */

bool debugger_break(struct debugger *g, const struct breakpoint *b)
{
    if (g->nbp == BREAKPOINTS_MAX)
        return false;
    g->bp[g->nbp++] = *b;
    filters_make(g);
    return true;
}

bool debugger_unbreak(struct debugger *g, u64 at, u8 kind)
{
    for (unsigned n = 0; n < g->nbp; n++)
        if (g->bp[n].at == at && g->bp[n].kind == kind) {
            g->bp[n] = g->bp[--g->nbp];
            filters_make(g);
            return true;
        }
    return false;
}

bool debugger_watch(struct debugger *g, const struct debug_watch *w, unsigned number)
{
    if (g->nwatch == DEBUG_WATCHES || !w->len || (!w->physical && w->len > DEBUG_WATCH_MAX) || w->at + w->len - 1 < w->at)
        return false;
    g->watch[g->nwatch++] = (struct own_watch){*w, number};
    watches_changed(g);
    return true;
}

bool debugger_unwatch(struct debugger *g, u64 at, u64 len, unsigned kind)
{
    for (unsigned n = 0; n < g->nwatch; n++) {
        const struct debug_watch *w = &g->watch[n].w;
        if (!g->watch[n].number && w->at == at && w->len == len && w->kind == kind) {
            g->watch[n] = g->watch[--g->nwatch];
            watches_changed(g);
            return true;
        }
    }
    return false;
}

bool debugger_delete(struct debugger *g, unsigned number)
{
    bool any = false;
    for (unsigned n = g->nbp; n--;)
        if (g->bp[n].kind == STOP_OWN && (!number || g->bp[n].number == number)) {
            g->bp[n] = g->bp[--g->nbp];
            any = true;
        }
    for (unsigned n = g->nwatch; n--;)
        if (g->watch[n].number && (!number || g->watch[n].number == number)) {
            g->watch[n] = g->watch[--g->nwatch];
            any = true;
        }
    filters_make(g);
    watches_changed(g);
    return any;
}
