/* x87 errors with CR0.NE = 0: FERR# is an interrupt, IGNNE# lets the handler go on. The device, and the processor. */
#include "protected_guest.h"
#include "devices/ferr.h"

static unsigned level, raised_times;
static struct guest *wired;
static void set_line(void *opaque, unsigned n, bool on)
{
    if (on && !level) {
        raised_times++;
        if (wired)
            interrupt(wired, 0x75);
    }
    level = on;
}
static const struct irq_line line = {.set = set_line, .n = 13};

/* fld1; fldz; fdivp with the division error unmasked; then a waiting instruction. */
static struct guest *divide(void **state, bool interrupts)
{
    struct guest *g = *state;
    struct vcpu *v = g->v;
    level = raised_times = 0;
    wired = g;
    v->cr0 &= ~CR0_NE;
    cpu_simd_changed(v);
    v->ferr = &line;
    v->x87 = (struct x87){.fcw = 0x37b};
    cpu_put_rflags(v, FL_FIXED | (interrupts ? FL_IF : 0));
    cpu_flags_changed(v);
    CODE_AT(g, CODE, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0xd9, 0xe8, 0xf4); /* fld1 at 6 waits; hlt */
    return g;
}

static void interrupt_and_retry(void **state)
{
    struct guest *g = divide(state, true);
    struct vcpu *v = g->v;
    CODE_AT(g, HANDLER(0x75), 0xdb, 0xe2, 0xcf); /* fnclex; iret */
    assert_int_equal(run(g, 3), RUN_BUDGET);
    assert_int_equal(raised_times, 0); /* the next waiting instruction reports it */
    assert_true(v->x87.fsw & 0x80);
    assert_int_equal(run(g, 20), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 9);
    assert_int_equal(raised_times, 1);
    assert_int_equal(v->x87.fsw & 0xff, 0);
}

/* With interrupts off it waits for ever, but the run loop gets its turn. */
static void waits(void **state)
{
    struct guest *g = divide(state, false);
    g->v->budget_end = g->v->icount + 1000;
    engine_interp.run(g->v);
    assert_int_equal(g->v->rip, CODE + 6);
    assert_true(level);
}

static void ignne(void **state)
{
    struct guest *g = divide(state, true);
    struct vcpu *v = g->v;
    v->ignne = true;
    assert_int_equal(run(g, 20), RUN_HALTED);
    assert_int_equal(v->rip, CODE + 9);
    assert_int_equal(raised_times, 0);
    assert_true(v->ignne);
    CODE_AT(g, CODE, 0xdb, 0xe2, 0xf4);
    v->rip = CODE;
    v->activity = ACTIVITY_ACTIVE;
    assert_int_equal(run(g, 20), RUN_HALTED);
    assert_false(v->ignne); /* FERR# is gone */
    /* CR0.NE = 1: #MF, whatever IGNNE# says. */
    divide(state, true);
    v->rip = CODE;
    v->activity = ACTIVITY_ACTIVE;
    v->ignne = true;
    v->cr0 |= CR0_NE;
    cpu_simd_changed(v);
    expect_handler(g, VEC_MF);
    v->ferr = NULL;
}

static struct irq_line board_irq(struct board *b, unsigned gsi) { return line; }
static void on_ignne(void *opaque) { *(bool *)opaque = true; }

static void port(void **state)
{
    struct board b = {.pio = pio_bus_new(), .irq = board_irq};
    struct error err;
    bool asserted = false;
    wired = NULL;
    level = 0;
    struct ferr *d = ferr_new(&b, on_ignne, &asserted, &err);
    assert_non_null(d);
    assert_null(ferr_new(&b, on_ignne, &asserted, &err)); /* the port is taken */
    irq_set(ferr_line(d), true);
    assert_true(level);
    assert_int_equal(pio_read(b.pio, FERR_PORT, 1), 0xff);
    assert_false(asserted);
    pio_write(b.pio, FERR_PORT, 0, 1);
    assert_true(asserted);
    assert_false(level);
    irq_set(ferr_line(d), true);
    ferr_reset(d);
    assert_false(level);
    ferr_free(d);
    pio_bus_free(b.pio);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {T(interrupt_and_retry), T(waits), T(ignne), cmocka_unit_test(port)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
