#include "machine/machine.h"

#include "cpu/hyperv.h"
#include "cpu/models.h"
#include "machine/acpi.h"
#include "machine/memmap.h"
#include "svm/svm.h"
#include "vmx/vmx.h"

#include <stdlib.h>
#include <unistd.h>

#define TSC_HZ 2600000000ull

extern const unsigned char demo_image[];
extern const size_t demo_image_size;

static const struct engine *const engines[] = {&engine_jit, &engine_interp, &engine_lockstep};

static int open_listings(struct nestor *m, const struct nestor_config *c, struct error *err)
{
    char map[64];
    m->jit_options.cache = c->jit_cache;
    if (c->jit_dump && !(m->jit_options.dump = fopen(c->jit_dump, "w")))
        return error_set(err, "--jit-dump %s: cannot be written", c->jit_dump);
    snprintf(map, sizeof(map), "/tmp/perf-%d.map", (int)getpid());
    if (c->perf_map && !(m->jit_options.map = fopen(map, "w")))
        return error_set(err, "--perf-map: %s cannot be written", map);
    return 0;
}

static int choose_engine(struct nestor *m, const char *name, struct error *err)
{
    m->engine = engines[0];
    if (!name)
        return 0;
    for (unsigned i = 0; i < ARRAY_SIZE(engines); i++) {
        m->engine = engines[i];
        if (!strcmp(m->engine->name, name))
            return 0;
    }
    return error_set(err, "--engine %s: unknown, expected jit, interp or lockstep", name);
}

static int choose_mmu(struct nestor *m, const char *name, struct error *err)
{
    static const char *const names[] = {[MMU_SHADOW] = "shadow", [MMU_WALK] = "walk", [MMU_CHECK] = "check"};
    m->mmu = MMU_SHADOW;
    for (unsigned i = 0; name && i < ARRAY_SIZE(names); i++) {
        m->mmu = (enum mmu_mode)i;
        if (!strcmp(names[i], name))
            return 0;
    }
    if (!name && m->config.threads)
        m->mmu = MMU_WALK; /* the shadow page tables are the machine's, for one thread */
    return name ? error_set(err, "--mmu %s: unknown, expected shadow, walk or check", name) : 0;
}

/* Code that was written is stale in every processor. */
static void code_written(void *opaque, pa_t pa, size_t len)
{
    struct nestor *m = opaque;
    if (m->threads) {
        machine_threads_code_written(m, pa, len);
        return;
    }
    for (size_t n; len; pa += n, len -= n) {
        n = PAGE_SIZE - (pa & ~PAGE_MASK);
        if (n > len)
            n = len;
        bool held = false;
        for (unsigned i = 0; i < m->ncpus; i++)
            held |= m->engine->holds_code(m->cpu[i], pa);
        for (unsigned i = 0; i < m->ncpus && held; i++)
            m->engine->code_written(m->cpu[i], pa, n);
        /* Data by now: writes are fast again. Code that is patched and called in turn keeps the flag, which is dear to set. */
        if (!held)
            physmap_clear_page_flag(m->pm, pa, PAGE_CODE);
    }
}

static int add_memory(struct nestor *m, struct error *err)
{
    u64 low = memmap_low_ram(m->ram);
    m->pm = physmap_new();
    if (physmap_add_ram(m->pm, 0, low, "RAM below 4 GiB", err))
        return -1;
    if (m->ram > low && physmap_add_ram(m->pm, MAP_HIGH_RAM, m->ram - low, "RAM above 4 GiB", err))
        return -1;
    physmap_subscribe(m->pm, PAGE_CODE, code_written, m);
    return 0;
}

/* "asids=8" */
static bool asids_text(const char *p, size_t n, u32 *asids)
{
    char text[24], *end;
    snprintf(text, sizeof(text), "%.*s", (int)(n < sizeof(text) ? n : 0), p);
    if (strncmp(text, "asids=", 6) || text[6] < '0' || text[6] > '9')
        return false;
    unsigned long value = strtoul(text + 6, &end, 0);
    *asids = (u32)value;
    return !*end && value >= 2 && value <= 0x8000;
}

/* --cpu with the bits of --svm-cap behind it: they are features of CPUID 0x8000000A. NULL: *err. */
static char *cpu_text(const struct nestor_config *c, u32 *asids, struct error *err)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        panic("out of memory for the processor's name");
    fputs(c->cpu ? c->cpu : c->svm_cap ? "amd" : "", f);
    bool good = true;
    for (const char *p = c->svm_cap ? c->svm_cap : ""; *p && good;) {
        char name[32];
        size_t n = strcspn(p, ",");
        if (asids_text(p, n, asids)) {
            p += n + (p[n] == ',');
            continue;
        }
        good = strncmp(p, "asids=", 6) && n > 2 && n < sizeof(name) + 2 && p[n - 2] == '=' && (p[n - 1] == '0' || p[n - 1] == '1');
        snprintf(name, sizeof(name), "%.*s", good ? (int)n - 2 : 0, p);
        enum cpu_feature feature = good ? cpu_feature_find(name) : FEAT_NONE;
        if (good && (feature == FEAT_NONE || cpu_feature_info[feature].leaf != 0x8000000a)) {
            good = false;
            error_set(err, "--svm-cap %s: no bit of CPUID 0x8000000A is called so", name);
        } else if (!good) {
            error_set(err, "--svm-cap %.*s: expected NAME=0, NAME=1 or asids=N (2 to 32768)", (int)n, p);
        }
        fprintf(f, ",%c%s", p[n - 1] == '0' ? '-' : '+', name);
        p += n + (p[n] == ',');
    }
    fclose(f);
    if (good)
        return text;
    free(text);
    return NULL;
}

static int add_cpus(struct nestor *m, struct error *err)
{
    const struct cpu_model *model;
    struct cpu_options options = {0};
    u8 features[FEAT_COUNT];
    u32 asids = 0;
    char *text = cpu_text(&m->config, &asids, err);
    int bad = !text || cpu_model_parse(text, &model, features, &options, err);
    free(text);
    if (bad)
        return -1;
    if (m->config.hyperv) {
        if (!features[FEAT_VMX])
            return error_set(err, "--hyperv: expected a processor model with VT-x, not %s", model->name);
        /* A hypercall that flushes returns when all have flushed; no processor can wait for another's thread. */
        if (m->config.threads)
            return error_set(err, "--hyperv: expected without --threads");
        features[FEAT_HYPERVISOR] = 1;
        m->hyperv = hyperv_new(&m->clock, m->pm, &m->board.msi);
        if (!m->hyperv)
            return error_set(err, "out of memory for --hyperv");
    }
    if (m->config.vmx_cap && !features[FEAT_VMX])
        return error_set(err, "--vmx-cap: the processor model has no VMX");
    unsigned count = m->config.smp ? m->config.smp : 1;
    if (count > MACHINE_MAX_CPUS)
        return error_set(err, "--smp %u: at most %u processors", count, MACHINE_MAX_CPUS);
    for (unsigned i = 0; i < count; i++) {
        struct cpu_config c = {
            .model = model, .features = features, .index = i, .nr_cpus = count, .maxphyaddr = options.maxphyaddr, .svm_asids = asids,
            .tsc_hz = TSC_HZ, .pm = m->pm, .pio = m->pio, .clock = &m->clock, .machine = m,
        };
        m->cpu[i] = vcpu_new(&c, err);
        if (!m->cpu[i])
            return -1;
        m->ncpus++;
        if (m->clock.kind == CLOCK_ICOUNT) /* a run that repeats: RDRAND too */
            m->cpu[i]->random_state = 0x853c49e6748fea9bull + i;
        mmu_set_mode(m->cpu[i], m->mmu);
        if (cpu_has(m->cpu[i], FEAT_VMX) && !vmx_new(m->cpu[i]))
            return error_set(err, "out of memory for VMX");
        if (m->config.vmx_cap) {
            if (vmx_caps_force(&m->cpu[i]->vmx->caps, m->config.vmx_cap, err))
                return -1;
            vmx_caps_apply(m->cpu[i], &m->cpu[i]->vmx->caps);
            vmx_caps_evmcs(&m->cpu[i]->vmx->evmcs_caps, &m->cpu[i]->vmx->caps);
        }
        if (cpu_has(m->cpu[i], FEAT_SVM) && !svm_new(m->cpu[i]))
            return error_set(err, "out of memory for SVM");
        m->cpu[i]->jit_options = m->jit_options;
        if (m->hyperv && hyperv_attach(m->hyperv, m->cpu[i]))
            return error_set(err, "out of memory for --hyperv");
        if (m->engine->attach(m->cpu[i]))
            return error_set(err, "--engine %s: no memory for translated code, or the host forbids it (--engine interp needs none)", m->engine->name);
    }
    return 0;
}

/* The state a boot loader leaves: 32-bit protected mode, flat segments, paging and interrupts off. */
static void enter_image(struct vcpu *v, const struct boot_entry *e)
{
    for (unsigned s = SEG_ES; s <= SEG_GS; s++) {
        bool code = s == SEG_CS;
        v->seg[s] = (struct segment){.sel = code ? 0x10 : 0x18, .limit = 0xffffffff, .ar = code ? 0xc09b : 0xc093};
    }
    v->gdtr = (struct desc_table){.base = e->gdt, .limit = e->gdt_limit};
    v->cr0 = CR0_PE | CR0_ET;
    cpu_put_rflags(v, FL_FIXED);
    cpu_mode_changed(v);
    v->gpr[RAX] = e->eax;
    v->gpr[RBX] = e->ebx;
    v->gpr[RSI] = e->esi;
    v->rip = e->eip;
}

static void reset_hardware(struct nestor *m, bool power_on)
{
    m->want_reset = m->suspended = false;
    for (unsigned i = 0; i < m->ncpus; i++) {
        if (m->cpu[i]->vmx)
            vmx_reset(m->cpu[i]);
        svm_reset(m->cpu[i]);
        cpu_reset(m->cpu[i]);
        cpu_firmware_defaults(m->cpu[i]);
    }
    if (m->hyperv)
        hyperv_reset(m->hyperv);
    machine_reset_devices(m, power_on);
    /* Application processors wait for SIPI, as after a firmware's start-up. */
    for (unsigned i = 1; i < m->ncpus; i++)
        m->cpu[i]->activity = ACTIVITY_WAIT_SIPI;
}

int machine_wake(struct nestor *m, struct error *err)
{
    struct vcpu *v = m->cpu[0];
    u32 vector = acpi_waking_vector(m->pm);
    if (!vector)
        return machine_reset(m, err);
    reset_hardware(m, false);
    machine_woken(m);
    /* "Firmware Waking Vector": real mode, the vector's paragraph in CS. */
    v->seg[SEG_CS].sel = (u16)(vector >> 4);
    v->seg[SEG_CS].base = vector & 0xffff0;
    v->rip = v->next_rip = vector & 0xf;
    cpu_mode_changed(v);
    return 0;
}

int machine_reset(struct nestor *m, struct error *err)
{
    struct boot_entry entry;
    reset_hardware(m, true);
    if (acpi_write_tables(m->pm, m->ncpus, err) || boot_load(&m->boot, m->pm, &entry, err))
        return -1;
    boot_drop(&m->boot);
    enter_image(m->cpu[0], &entry);
    return 0;
}

static int build(struct nestor *m, struct error *err)
{
    const struct nestor_config *c = &m->config;
    m->ram = c->memory ? c->memory : 2ull << 30;
    if (m->ram < 1 << 20)
        return error_set(err, "--memory: %llu bytes, expected at least 1 MiB", (unsigned long long)m->ram);
    if (choose_engine(m, c->engine, err) || choose_mmu(m, c->mmu, err) || open_listings(m, c, err))
        return -1;
    if (c->demo ? boot_open_memory(&m->boot, "demo", demo_image, demo_image_size, c->append, m->ram, err)
                : boot_open(&m->boot, c->kernel, c->initrd, c->append, c->modules, c->nmodules, m->ram, err))
        return -1;
    clock_init(&m->clock, c->clock == NESTOR_CLOCK_ICOUNT ? CLOCK_ICOUNT : CLOCK_HOST);
    m->pio = pio_bus_new();
    if (add_memory(m, err))
        return -1;
    m->board = (struct board){.clock = &m->clock, .pio = m->pio, .pm = m->pm, .dma = {.pm = m->pm}, .tsc_hz = TSC_HZ};
    if (add_cpus(m, err) || machine_add_devices(m, err))
        return -1;
    for (unsigned i = 0; m->hyperv && i < m->ncpus; i++)
        hyperv_wrap_intc(m->cpu[i]);
    if (c->threads && machine_threads_new(m, err))
        return -1;
    return machine_reset(m, err);
}

struct nestor *nestor_new(const struct nestor_config *config, struct nestor_error *nerr)
{
    struct error err = {""};
    struct nestor *m = NULL;
    if (config->api_version != NESTOR_API_VERSION)
        error_set(&err, "API version %u, this library has %u", config->api_version, NESTOR_API_VERSION);
    else if (!config->kernel && !config->demo)
        error_set(&err, "nothing to boot: expected a kernel image");
    else
        m = calloc(1, sizeof(*m));
    if (m) {
        m->config = *config;
        if (!build(m, &err))
            return m;
        nestor_free(m);
    }
    if (nerr)
        snprintf(nerr->text, sizeof(nerr->text), "%s", err.text);
    return NULL;
}

void nestor_free(struct nestor *m)
{
    if (!m)
        return;
    if (m->debugger)
        m->debugger->free(m);
    machine_free_devices(m);
    hyperv_free(m->hyperv);
    for (unsigned i = 0; i < m->ncpus; i++) {
        m->engine->detach(m->cpu[i]);
        vmx_free(m->cpu[i]);
        svm_free(m->cpu[i]);
        vcpu_free(m->cpu[i]);
    }
    machine_threads_free(m);
    if (m->pio)
        pio_bus_free(m->pio);
    if (m->pm)
        physmap_free(m->pm);
    boot_close(&m->boot);
    if (m->jit_options.dump)
        fclose(m->jit_options.dump);
    if (m->jit_options.map)
        fclose(m->jit_options.map);
    free(m);
}

struct nestor_result nestor_run(struct nestor *m, double timeout) { return machine_run(m, timeout); }

void nestor_stop(struct nestor *m)
{
    atomic_store_explicit(&m->want_stop, true, memory_order_relaxed);
    for (unsigned i = 0; i < m->ncpus; i++)
        vcpu_request(m->cpu[i], REQ_EXIT);
    machine_threads_kick(m);
}

int nestor_trace(const char *events, struct nestor_error *nerr)
{
    struct error err;
    int r = log_enable(events, &err);
    if (r && nerr)
        snprintf(nerr->text, sizeof(nerr->text), "%s", err.text);
    return r;
}

int nestor_log(const char *path, struct nestor_error *nerr)
{
    struct error err;
    int r = log_open(path, &err);
    if (r && nerr)
        snprintf(nerr->text, sizeof(nerr->text), "%s", err.text);
    return r;
}
