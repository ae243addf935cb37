/*
 * Every value body (docs/adding-an-instruction.md): what an instruction computes from its operands
 * and flags, without saying where they are. The generated handlers include this.
 */
#pragma once
#include "cpu/ops_arith.h"
#include "cpu/ops_bit.h"
#include "cpu/ops_move.h"
#include "cpu/ops_shift.h"
