/* The interpreter under a debugger (cpu/debug.h). */
#include "cpu/debug.h"
#include "cpu/interp_loop.h"

static noinline enum run_result loop(struct vcpu *v)
{
    struct interp *ip = v->interp;
    struct vcpu_debug *d = v->debug;
    enum run_result result;

    for (;;) {
        struct context c;
        if (v->icount >= v->budget_end)
            return RUN_BUDGET;
        if (d->held)
            d->held = false;
        else if ((attention(v) || v->activity != ACTIVITY_ACTIVE) && !boundary(v, &result))
            return result;
        context_load(v, &c);
        const struct block *b = find(v, &c);
        const struct insn *i = b->insn, *end = i + b->n;
        u64 budget = v->budget_end - v->icount, rip = v->rip;
        if ((u64)(end - i) > budget)
            end = i + budget;
        ip->current = (struct block *)b;
        ip->start = i;
        do {
            v->rip = rip;
            if (unlikely(d->before(v, i))) {
                v->icount += (u64)(i - ip->start);
                ip->current = NULL;
                d->held = true;
                return RUN_REQUEST;
            }
            rip += i->len;
            v->next_rip = rip;
            v->insn = i;
            bool trace = log_on(LOG_insn);
            if (trace)
                trace_before(v);
            i->fn(v, i);
            if (trace)
                trace_after(v, i, rip - i->len);
            i++;
        } while (likely(!attention(v)) && i != end);
        v->rip = v->next_rip;
        v->icount += (u64)(i - ip->start);
    }
}

enum run_result interp_run_debug(struct vcpu *v)
{
    int reason = setjmp(v->unwind);
    run_unwound(v, reason);
    return run_ended(v, loop(v));
}
