/* Segmentation for tests that run with flat segments only (the real one is cpu/segment.c). */
#include "cpu/mem.h"

gva_t seg_linear_slow(struct vcpu *v, unsigned seg, u64 offset, unsigned size, u32 access)
{
    (void)size;
    (void)access;
    return (v->seg_base[seg] + offset) & v->linear_mask;
}
