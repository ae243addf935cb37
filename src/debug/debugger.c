/* Breakpoints, watchpoints and steps. Guest memory and the guest's own debug registers and TF are never touched. */
#include "debug/debugger.h"

#include "cpu/debug.h"
#include "cpu/isa/insn.h"

static u64 filter_bit(gva_t la) { return BIT64((la ^ la >> 6) & 63); }

static bool is_entry(const struct insn *i)
{
    const char *name = insn_row(i)->mnemonic;
    return !strcmp(name, "VMLAUNCH") || !strcmp(name, "VMRESUME") || !strcmp(name, "VMRUN");
}

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
        kind = STOP_WATCH;
    } else if (g->nbp && unlikely(g->bp_filter & filter_bit(la))) {
        for (unsigned n = 0; n < g->nbp; n++)
            if (g->bp[n].la == la && (g->level == LEVEL_ANY || v->guest_mode == (g->level == LEVEL_GUEST)))
                kind = g->bp[n].hardware ? STOP_HWBREAK : STOP_BREAK;
    }
    if (kind == STOP_NONE && unlikely(c->step))
        kind = STOP_STEP;
    if (kind == STOP_NONE && (g->entry_all || g->entry_failing || g->entry_rows_any) && is_entry(i) && entry_wanted(g, v))
        kind = STOP_ENTRY;
    if (likely(kind == STOP_NONE))
        return false;
    debugger_stop(g, v->index, kind);
    return true;
}

void debugger_stop(struct debugger *g, unsigned cpu, enum stop_kind kind)
{
    g->stop = kind;
    g->stop_cpu = g->general = cpu;
}

static bool armed(const struct debugger *g, const struct debug_cpu *c)
{
    return c->step || g->nbp || g->nwatch || g->entry_all || g->entry_failing || g->entry_rows_any;
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

void debugger_attach(struct debugger *g)
{
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
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        struct vcpu *v = g->m->cpu[i];
        memcpy(g->cpu[i].d.watch, g->watch, sizeof(g->watch));
        g->cpu[i].d.nwatch = g->nwatch;
        g->cpu[i].d.hit = false;
        if (v->debug)
            mmu_watch_changed(v);
    }
}

void debugger_detach(struct debugger *g)
{
    g->nbp = g->nwatch = 0;
    g->bp_filter = 0;
    g->level = LEVEL_ANY;
    g->entry_all = g->entry_failing = g->entry_rows_any = false;
    memset(g->entry_rows, 0, sizeof(g->entry_rows));
    g->walk.on = false;
    watches_changed(g);
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        struct debug_cpu *c = &g->cpu[i];
        c->run = true;
        c->step = false;
        if (g->m->cpu[i]->debug && !c->d.held)
            g->m->cpu[i]->debug = NULL;
    }
    g->attached = false;
    debugger_resume(g);
}

void debugger_resume(struct debugger *g)
{
    for (unsigned i = 0; i < g->m->ncpus; i++) {
        struct debug_cpu *c = &g->cpu[i];
        bool same = c->held_at && c->d.held && g->m->cpu[i]->rip == c->held_rip;
        c->first = c->run && (same || c->step);
        c->d.hit = false;
    }
    g->stop = STOP_NONE;
    g->note[0] = 0;
    g->walk.on = false;
}

/* ---- breakpoints ---- */

static void filter_make(struct debugger *g)
{
    g->bp_filter = 0;
    for (unsigned n = 0; n < g->nbp; n++)
        g->bp_filter |= filter_bit(g->bp[n].la);
}

bool debugger_break(struct debugger *g, gva_t la, bool hardware)
{
    if (g->nbp == BREAKPOINTS_MAX)
        return false;
    g->bp[g->nbp++] = (struct breakpoint){la, hardware};
    filter_make(g);
    return true;
}

bool debugger_unbreak(struct debugger *g, gva_t la, bool hardware)
{
    for (unsigned n = 0; n < g->nbp; n++)
        if (g->bp[n].la == la && g->bp[n].hardware == hardware) {
            g->bp[n] = g->bp[--g->nbp];
            filter_make(g);
            return true;
        }
    return false;
}

bool debugger_watch(struct debugger *g, gva_t la, u64 len, unsigned kind)
{
    if (g->nwatch == DEBUG_WATCHES || !len || len > DEBUG_WATCH_MAX)
        return false;
    g->watch[g->nwatch++] = (struct debug_watch){la, (u32)len, (u8)kind};
    watches_changed(g);
    return true;
}

bool debugger_unwatch(struct debugger *g, gva_t la, u64 len, unsigned kind)
{
    for (unsigned n = 0; n < g->nwatch; n++)
        if (g->watch[n].la == la && g->watch[n].len == len && g->watch[n].kind == kind) {
            g->watch[n] = g->watch[--g->nwatch];
            watches_changed(g);
            return true;
        }
    return false;
}
