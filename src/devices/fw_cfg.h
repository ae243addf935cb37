/* QEMU's firmware configuration device: selector 0x510, data 0x511, DMA 0x514. */
#pragma once
#include "devices/bus.h"

enum fw_cfg_key {
    FW_CFG_SIGNATURE = 0x00,
    FW_CFG_ID = 0x01,
    FW_CFG_RAM_SIZE = 0x03,
    FW_CFG_NB_CPUS = 0x05,
    FW_CFG_MAX_CPUS = 0x0f,
    FW_CFG_FILE_DIR = 0x19,
    FW_CFG_FILE_FIRST = 0x20,
};

struct fw_cfg;

struct fw_cfg *fw_cfg_new(struct board *b, u16 cpus, u64 ram_size, struct error *err);
void fw_cfg_reset(struct fw_cfg *f);
void fw_cfg_free(struct fw_cfg *f);
/* Copies @data; a key below FW_CFG_FILE_FIRST replaces what was there. */
int fw_cfg_add(struct fw_cfg *f, u16 key, const void *data, size_t size, struct error *err);
/* A named file (at most 55 characters), e.g. "opt/org.example/x" or "etc/acpi/tables". */
int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, size_t size, struct error *err);
