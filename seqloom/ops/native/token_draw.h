// How the token of one place is chosen from its logits; in token_draw.cpp.
#pragma once

#include <cstdint>

namespace seqloom {

// `ToldRace` in token_draw.py has the same fields.
struct Race {
    double sharpness;  // 0 takes the likeliest token
    int64_t k;
    double share, floor;
};

}  // namespace seqloom

// The token, as `token_draw` gives it; -1 if the largest logit is not finite.
extern "C" int64_t seqloom_token_choice(const float* logits, int64_t count, const seqloom::Race* race, uint64_t key);
