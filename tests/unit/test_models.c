/* `--cpu`: models, features, and what is said about mistakes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/models.h"

static const struct cpu_model *model;
static u8 features[FEAT_COUNT];
static struct cpu_options options;
static struct error err;

static int parse(const char *text)
{
    err.text[0] = 0;
    return cpu_model_parse(text, &model, features, &options, &err);
}

static void refused(const char *text, const char *message)
{
    assert_int_equal(parse(text), -1);
    if (!strstr(err.text, message))
        fail_msg("'%s' said: %s", text, err.text);
}

static void names(void **state)
{
    assert_int_equal(parse("amd"), 0);
    assert_string_equal(model->name, "amd");
    assert_int_equal(parse(""), 0);
    assert_string_equal(model->name, "intel");
    assert_int_equal(parse("INTEL"), 0);
    refused("pentium", "unknown model 'pentium'; expected one of intel, amd, max");
}

static void plus_and_minus(void **state)
{
    assert_int_equal(parse("intel,-vmx,+hypervisor"), 0);
    assert_int_equal(features[FEAT_VMX], 0);
    assert_int_equal(features[FEAT_HYPERVISOR], 1);
    assert_int_equal(parse("intel,-la57,+LA57"), 0);
    assert_int_equal(features[FEAT_LA57], 1);
    refused("intel,+fma9", "unknown feature 'fma9'; did you mean FMA");
    refused("intel,+nonsense_feature", "unknown feature 'nonsense_feature'; 'nestor list cpus'");
    refused("intel,vmx", "expected +FEATURE, -FEATURE");
    refused("intel,", "expected +FEATURE");
    refused("intel,+0123456789012345678901234567890123456789012345678901234567890123456789", "too long");
}

static void spelling(void **state)
{
    assert_int_equal(cpu_feature_find("sse4.1"), FEAT_SSE4_1);
    assert_int_equal(cpu_feature_find("tsc-deadline"), FEAT_TSC_DEADLINE);
    assert_int_equal(cpu_feature_find("sse4"), FEAT_NONE);
    assert_int_equal(cpu_feature_find(""), FEAT_NONE);
}

static void absent(void **state)
{
    refused("intel,+dtes64", "+DTES64: Nestor does not implement it");
    refused("max,+skinit", "does not implement");
    const char *why;
    for (unsigned f = 1; f < FEAT_COUNT; f++)
        if (!cpu_feature_available((enum cpu_feature)f, &why)) {
            char text[64];
            snprintf(text, sizeof(text), "max,+%s", cpu_feature_info[f].name);
            refused(text, why);
            for (unsigned n = 0; n < cpu_model_count; n++) {
                cpu_model_features(cpu_models[n], features);
                assert_int_equal(features[f], 0);
            }
        }
}

static void dependencies(void **state)
{
    /* What nobody asked for goes with what it needs. */
    assert_int_equal(parse("intel,-xsave"), 0);
    assert_int_equal(features[FEAT_AVX], 0);
    assert_int_equal(features[FEAT_AVX2], 0);
    assert_int_equal(features[FEAT_XSAVES], 0);
    assert_int_equal(features[FEAT_PKU], 0);
    /* What was asked for does not. */
    refused("intel,-xsave,+pku", "PKU needs XSAVE");
    refused("intel,-lm,+la57", "LA57 needs LM");
    assert_int_equal(parse("intel,-avx"), 0);
    assert_int_equal(features[FEAT_FMA], 0);
    if (cpu_feature_available(FEAT_AVX2, NULL))
        refused("intel,-avx,+avx2", "AVX2 needs AVX");
}

static void numbers(void **state)
{
    assert_int_equal(parse("intel,maxphyaddr=40"), 0);
    assert_int_equal(options.maxphyaddr, 40);
    assert_int_equal(parse("intel"), 0);
    assert_int_equal(options.maxphyaddr, 0);
    refused("intel,maxphyaddr=64", "expected a number from 36 to 52");
    refused("intel,maxphyaddr=", "expected a number");
    refused("intel,maxphyaddr=-1", "expected a number");
    refused("intel,maxphyaddr=40x", "expected a number");
    refused("intel,cores=4", "unknown option 'cores'");
}

static void tables(void **state)
{
    for (unsigned f = 1; f < FEAT_COUNT; f++)
        assert_int_equal(cpu_feature_find(cpu_feature_info[f].name), f);
    for (unsigned n = 0; n < cpu_model_count; n++)
        assert_true(strlen(cpu_models[n]->brand) < 48);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),  cmocka_unit_test(plus_and_minus), cmocka_unit_test(spelling),
        cmocka_unit_test(absent), cmocka_unit_test(dependencies),   cmocka_unit_test(numbers),
        cmocka_unit_test(tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
