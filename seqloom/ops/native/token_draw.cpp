// Where the filters cut a distribution over tokens, the draw from what they leave, and the softmax's denominator.
//
// Weights are exp((logit - top) sharpness). Tokens are ranked by logit, the largest first, of equal ones the first id.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "softmax.h"
#include "token_draw.h"

namespace seqloom {
namespace {

constexpr int64_t block = 16 * W;  // logits that are passed over at once if none of them is large enough

struct Token {
    float logit, weight;
    int32_t id;
    bool operator<(const Token& other) const { return logit != other.logit ? logit > other.logit : id < other.id; }
};

vf weight(vf logit, float top, float sharpness) { return exp_below((logit - top) * sharpness); }

// Calls body(i) for every logit from `least` up, a NaN left out.
template <class Body>
void each_from(const float* logits, int64_t count, float least, Body&& body) {
    for (int64_t from = 0; from < count; from += block) {
        const int64_t to = std::min(from + block, count);
        if (to - from == block) {
            vf most = load(logits + from);
            for (int64_t i = from + W; i < to; i += W) most = max(most, load(logits + i));
            if (max(most) < least) continue;
        }
        for (int64_t i = from; i < to; ++i)
            if (logits[i] >= least) body(i);
    }
}

// Collects the tokens from `least` up; how much they weigh together.
template <class Weight>
double gather(const float* logits, int64_t count, float least, std::vector<Token>* found, Weight&& weigh) {
    found->clear();
    double held = 0;
    each_from(logits, count, least, [&](int64_t i) {
        found->push_back({logits[i], weigh(i), int32_t(i)});
        held += found->back().weight;
    });
    return held;
}

// The sum of all weights; keep(i, weights, lanes) is given every one.
template <class Keep>
double mass(const float* logits, int64_t count, float top, float sharpness, Keep&& keep) {
    double total = 0;
    for (int64_t from = 0; from < count; from += 4096)
        total += sum_of(std::min<int64_t>(4096, count - from), [&](int64_t i, auto lanes) {
            vf e = weight(load(logits + from + i, lanes), top, sharpness);
            keep(from + i, e, lanes);
            if constexpr (std::is_same_v<decltype(lanes), Part>) e = first_lanes(lanes.count) ? e : vf{};
            return e;
        });
    return total;
}

// Keeps those of many tokens among which a mass is reached, by the masses of equal steps of their logits.
void narrow(std::vector<Token>* tokens, float top, double* wanted) {
    constexpr int steps = 1024;
    float lowest = top;
    for (Token token : *tokens) lowest = token.weight > 0 ? std::min(lowest, token.logit) : lowest;
    if (!(lowest < top)) return;
    const float scale = steps / (top - lowest);  // the lowest is in the last step, which is so never empty
    auto step = [&](Token token) { return int(std::min((top - token.logit) * scale, steps - 1.0f)); };
    double held[steps] = {};
    for (Token token : *tokens) held[step(token)] += token.weight;
    int reached = 0;
    for (; reached < steps - 1 && held[reached] < *wanted; ++reached) *wanted -= held[reached];
    auto elsewhere = [&](Token token) { return step(token) != reached; };
    tokens->erase(std::remove_if(tokens->begin(), tokens->end(), elsewhere), tokens->end());
}

// The last token of those that it takes to hold a mass: half of the range is ranked below the other half, and the half
// goes on in which the mass is reached.
Token crossing(std::vector<Token>* tokens, float top, double wanted) {
    if (tokens->size() > 4096) narrow(tokens, top, &wanted);
    auto begin = tokens->begin(), end = tokens->end();
    while (end - begin > 1) {
        const auto middle = begin + (end - begin) / 2;
        std::nth_element(begin, middle, end);
        double upper = 0;
        for (auto token = begin; token < middle; ++token) upper += token->weight;
        if (upper >= wanted) {
            end = middle;
        } else {
            wanted -= upper;
            begin = middle;
        }
    }
    return *begin;
}

// The first of the tokens with the largest logit; -1 if that is not finite, or one is NaN.
int64_t likeliest(const float* logits, int64_t count) {
    vf top = broadcast(-INFINITY);
    vi ordered = top == top;
    each_vector(count, [&](int64_t i, auto lanes) {
        vf x = load(logits + i, lanes);
        if constexpr (std::is_same_v<decltype(lanes), Part>) x = first_lanes(lanes.count) ? x : top;
        ordered &= x == x;
        top = max(x, top);
    });
    for (int lane = 0; lane < W; ++lane)
        if (!ordered[lane]) return -1;
    const float most = max(top);
    if (!std::isfinite(most)) return -1;
    int64_t i = 0;
    while (i + block <= count && largest(logits + i, block) < most) i += block;
    while (logits[i] != most) ++i;
    return i;
}

// SplitMix64.
uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

}  // namespace
}  // namespace seqloom

// The sum of all weights.
extern "C" void seqloom_token_mass(const float* logits, int64_t count, float top, float sharpness, double* total) {
    *total = seqloom::mass(logits, count, top, sharpness, [](auto...) {});
}

// The logit and id of the last token that stays: of the k largest (0: of all; ties with the k-th stay) those that it
// takes to hold this share of their mass.
extern "C" void seqloom_token_cut(const float* logits, int64_t count, float top, float sharpness, int64_t k, double share,
                                  float* least, int64_t* last) {
    using namespace seqloom;
    thread_local std::vector<Token> tokens;
    thread_local std::vector<float> weights;
    double wanted = INFINITY;
    if (k > 0) {
        for (float depth = 3;; depth *= 1.5f) {
            const float from = depth < 1e5f ? top - depth : -INFINITY;
            gather(logits, count, from, &tokens, [](int64_t) { return 0.0f; });
            if (int64_t(tokens.size()) >= k || from == -INFINITY) break;
        }
        if (int64_t(tokens.size()) > k) {
            std::nth_element(tokens.begin(), tokens.begin() + (k - 1), tokens.end());
            const float kth = tokens[k - 1].logit;
            auto stays = [&](Token token) { return token.logit >= kth; };
            tokens.erase(std::partition(tokens.begin(), tokens.end(), stays), tokens.end());
        }
        double held = 0;
        for (Token& token : tokens) held += token.weight = std::exp((token.logit - top) * sharpness);
        if (share < 1) wanted = share * held;
    } else {
        weights.resize(count);
        auto keep = [&](int64_t i, vf e, auto lanes) { store(weights.data() + i, e, lanes); };
        wanted = share * mass(logits, count, top, sharpness, keep);
        for (float depth = 6;; depth *= 1.5f) {
            const float from = depth < 100 ? top - depth / sharpness : -INFINITY;
            const double held = gather(logits, count, from, &tokens, [&](int64_t i) { return weights[i]; });
            if (held >= wanted || from == -INFINITY) break;
        }
    }
    const Token crossed = crossing(&tokens, top, wanted);
    *least = crossed.logit;
    *last = crossed.id;
}

// The token that wins the race weight / -log(u), u the token's number from SplitMix64 with this key, among those with a
// logit above `least`, or equal to it and an id up to `last`. Since -log(u) > 1 - u, few need a logarithm.
extern "C" void seqloom_token_race(const float* logits, int64_t count, float top, double sharpness, float least,
                                   int64_t last, uint64_t key, int64_t* winner) {
    using namespace seqloom;
    constexpr uint64_t golden = 0x9E3779B97F4A7C15u;
    constexpr double unit = 1.0 / (uint64_t(1) << 52);
    double best = 0;
    auto compete = [&](int64_t i, double bound) {
        const uint64_t number = mixed(key + uint64_t(i + 1) * golden) >> 12;
        const double u = (double(number) + 0.5) * unit;
        if (bound <= best * (1 - u) || (logits[i] == least && i > last)) return;
        const double score = std::exp((double(logits[i]) - double(top)) * sharpness) / -std::log(u);
        if (score > best) {
            best = score;
            *winner = i;
        }
    };
    if (least > -INFINITY) {
        each_from(logits, count, least, [&](int64_t i) { compete(i, INFINITY); });
        return;
    }
    float bounds[W];
    each_vector(count, [&](int64_t i, auto lanes) {
        store(bounds, weight(load(logits + i, lanes), top, float(sharpness)) * 1.001f);
        const int64_t n = std::min<int64_t>(W, count - i);
        for (int64_t lane = 0; lane < n; ++lane) compete(i + lane, bounds[lane]);
    });
}

extern "C" int64_t seqloom_token_choice(const float* logits, int64_t count, const seqloom::Race* race, uint64_t key) {
    const int64_t likeliest = seqloom::likeliest(logits, count);
    if (likeliest < 0 || race->sharpness == 0) return likeliest;
    const float top = logits[likeliest];
    const int64_t k = race->k < count ? race->k : 0;
    float least = -INFINITY;
    int64_t last = int64_t(1) << 31, winner = -1;  // more than any id
    if (k || race->share < 1)
        seqloom_token_cut(logits, count, top, float(race->sharpness), k, race->share, &least, &last);
    const double floor = race->floor > 0 ? top + std::log(race->floor) / race->sharpness : -INFINITY;
    if (floor > least) {
        least = float(floor);
        last = int64_t(1) << 31;
    }
    seqloom_token_race(logits, count, top, race->sharpness, least, last, key, &winner);
    return winner;
}
