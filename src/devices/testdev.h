/* pc-testdev, the device kvm-unit-tests expects: see testdev.c for its ports. */
#pragma once
#include "devices/bus.h"

#define TESTDEV_MMIO      0xff000000u
#define TESTDEV_MMIO_SIZE 0x10000u

struct testdev;

/* @flush, which may be NULL, is asked to drop every cached translation of the page at @pa. */
struct testdev *testdev_new(struct board *b, void (*flush)(void *opaque, pa_t pa), void *opaque, struct error *err);
void testdev_reset(struct testdev *t);
void testdev_free(struct testdev *t);
