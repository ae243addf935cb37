/* The interpreter: the engine that runs every block one call per instruction (interp_loop.h). */
#include "cpu/interp_loop.h"

static noinline enum run_result run_plain(struct vcpu *v) { return run_loop(v, false, NULL); }
static noinline enum run_result run_traced(struct vcpu *v) { return run_loop(v, true, NULL); }

static enum run_result run(struct vcpu *v)
{
    int reason = setjmp(v->unwind);
    if (run_unwound(v, reason))
        return RUN_REQUEST;
    return run_ended(v, log_on(LOG_insn) ? run_traced(v) : run_plain(v));
}

static int attach(struct vcpu *v)
{
    v->interp = interp_new();
    return v->interp ? 0 : -1;
}

static void detach(struct vcpu *v)
{
    interp_free(v->interp);
    v->interp = NULL;
}

static void code_written(struct vcpu *v, pa_t pa, size_t len)
{
    if (v->interp)
        block_written(v, pa, len);
}

static bool holds_code(struct vcpu *v, pa_t pa) { return v->interp && block_page_holds_code(v, pa); }

const struct engine engine_interp = {
    .name = "interp",
    .attach = attach,
    .detach = detach,
    .run = run,
    .code_written = code_written,
    .holds_code = holds_code,
};

u64 cpu_retired(const struct vcpu *v)
{
    const struct interp *ip = v->interp;
    return v->icount + (ip && ip->current && v->insn ? (u64)(v->insn - ip->start) : 0);
}

void cpu_end_slice(struct vcpu *v, u64 count)
{
    u64 end = cpu_retired(v) + count;
    if (end >= v->budget_end)
        return;
    v->budget_end = end;
    cpu_attention(v, ATT_BLOCK); /* the running block may be longer */
}

void interp_stats(const struct vcpu *v, struct interp_stats *stats) { *stats = v->interp->stats; }
