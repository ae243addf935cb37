/* The two callbacks behind a device's ports or memory. */
#pragma once
#include "base/types.h"

struct io_ops {
    /*
     * @offset from the start of the region, @size 1, 2, 4 or 8 bytes (ports: 1, 2, 4). An access
     * the device does not decode reads as all ones and writes nowhere.
     */
    u64 (*read)(void *opaque, u64 offset, unsigned size);
    void (*write)(void *opaque, u64 offset, u64 value, unsigned size);
};
