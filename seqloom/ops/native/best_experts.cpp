// The K largest of every row of scores, largest first, of equal ones the first in the row: K times the largest that is
// left, each found without a branch.
#include <algorithm>
#include <cstdint>

#include "simd.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr int64_t block = 64;  // rows of a task
constexpr int32_t taken = -INT32_MAX;

// Whole numbers that order as scores do, -0 as 0, NaN above all, and all above `taken`.
vi ranks(vf score) {
    vi bits = (vi)(score + 0.0f);
    vi rank = bits ^ ((bits >> 31) & INT32_MAX);
    return score == score ? rank : vi{} + INT32_MAX;
}

// The place of the largest of count W-vectors.
int64_t largest(const vi* rank, int64_t count) {
    vi best = rank[0], where{};
    for (int64_t i = 1; i < count; ++i) {
        vi larger = rank[i] > best;
        best = larger ? rank[i] : best;
        where = larger ? vi{} + int32_t(i) : where;
    }
    int64_t key = INT64_MIN;  // the rank, then the place, the first above the rest
    for (int lane = 0; lane < W; ++lane)
        key = std::max(key, int64_t(best[lane]) * (int64_t(1) << 32) - (int64_t(where[lane]) * W + lane));
    return -int64_t(int32_t(uint32_t(key)));
}

}  // namespace
}  // namespace seqloom

// scores [S, E], contiguous; a bias [E] is added unless it is NULL; best [S, K].
extern "C" void seqloom_best_experts(const float* scores, const float* bias, int64_t* best, int64_t S, int64_t E,
                                     int64_t K, int32_t threads) {
    using namespace seqloom;
    parallel_for((S + block - 1) / block, threads, [=](int64_t task) {
        const int64_t vectors = (E + W - 1) / W;
        vi lanes;
        for (int lane = 0; lane < W; ++lane) lanes[lane] = lane;
        vi* rank = static_cast<vi*>(scratch(size_t(vectors) * sizeof(vi), 4));
        for (int64_t s = task * block; s < std::min(S, (task + 1) * block); ++s) {
            const float* row = scores + s * E;
            for (int64_t i = 0; i < E / W; ++i)
                rank[i] = ranks(load(row + i * W) + (bias ? load(bias + i * W) : vf{}));
            if (const int64_t n = E % W) {
                rank[vectors - 1] = ranks(load(row + E - n, n) + (bias ? load(bias + E - n, n) : vf{}));
                rank[vectors - 1] = lanes < int32_t(n) ? rank[vectors - 1] : vi{} + taken;
            }
            for (int64_t k = 0; k < K; ++k) {
                const int64_t place = largest(rank, vectors);
                vi& found = rank[place / W];
                found = lanes == int32_t(place % W) ? vi{} + taken : found;
                best[s * K + k] = place;
            }
        }
    });
}
