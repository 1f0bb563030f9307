// The scan token after token, over states that are stored in place; in ssd_step.cpp.
#pragma once

#include "ssd.h"

namespace seqloom::scan {

// What becomes of the tokens of a row.
struct Plan {
    int64_t silent;  // so many at the front were answered before: only the state still has to meet them
    int64_t tokens;  // of all
    int64_t kept;    // the state after so many is stored; what follows, guesses, meets states that nobody keeps
};

// States of an engine's rows, [rows, heads, width, state], in one of the formats of narrow_states.h.
struct States {
    void* codes;
    float* scales;             // [rows, heads, width, blocks of a row]; null where a format has none
    const int64_t* positions;  // [rows] tokens that each row's state has met
    uint64_t key;              // of stochastic rounding
    int32_t format;
};

// Outputs of the tokens that are not silent, at y[row, token, head, width] with `in.shape.tokens` of them in a row. The
// inputs of all tokens, silent ones first, lie where `in` says.
template <class E>
void scan_rows(const Inputs<E>& in, const Plan* plans, const States& states, E* y, int threads);

}  // namespace seqloom::scan
