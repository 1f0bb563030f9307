// Causal attention over packed documents with its gradients; see attention_training.py.
//
//     P = softmax(S),  S = scale Q Kᵀ;   Y = P V
//     dV = Pᵀ dY;   dS = P ∘ (dY Vᵀ - rowsum(dY ∘ Y));   dQ = scale dS K;   dK = scale dSᵀ Q
//
// A task takes some queries at a time with the keys from the first that one of them sees to the last: what lies behind
// a query or in another document is mostly never multiplied. Scores live in scratch and are made anew on the way back,
// for which each query's logsumexp is kept. Query heads that share keys add up their gradients in their order.
// Source: Dao et al. 2022, FlashAttention, for the way back; here a row of scores fits, so it is not cut.
#include <algorithm>

#include "gemm.h"
#include "softmax.h"
#include "threads.h"
#include "transpose.h"

namespace seqloom {
namespace {

constexpr int64_t some_queries = 8 * gemm_parts::kRows;
constexpr int slot_work = 4;

// [row, token, head, K], heads of one token side by side or apart; as attention_training.py has it.
struct Heads {
    float* data;
    int64_t row, token, head;

    float* at(int64_t r, int64_t t, int64_t h) const { return data + r * row + t * token + h * head; }
};

struct Problem {
    int64_t rows, tokens, heads, groups, width;
    float scale;
    int32_t threads;
    Heads q, k, v, y, dy, dq, dk, dv;  // the last four only on the way back
    const int32_t* documents;          // [rows, tokens], -1 for padding; null for one a row
    float* normalizers;                // [rows, heads, tokens]: logsumexp of a query's scores

    int64_t shared_by() const { return heads / groups; }
    // Of the rows of a turned head: not on the same few places of the first cache.
    int64_t apart() const { return gemm_parts::up(tokens, 16) + 16; }
    const int32_t* documents_of(int64_t row) const { return documents ? documents + row * tokens : nullptr; }
    float* normalizers_of(int64_t row, int64_t head) const { return normalizers + (row * heads + head) * tokens; }
};

// Queries [first, last) and the keys [from, last) that they see; query t sees those from seen[t - first] on.
struct Block {
    int64_t first, last, from;
    int64_t seen[some_queries];

    Block(const Problem& p, int64_t row, int64_t first, const Block* before)
        : first(first), last(std::min(p.tokens, first + some_queries)) {
        const int32_t* documents = p.documents_of(row);
        int64_t start = before ? before->seen[before->queries() - 1] : 0;
        for (int64_t t = first; t < last; ++t) {
            if (documents && t > 0 && documents[t] != documents[t - 1]) start = t;
            seen[t - first] = start;
        }
        from = seen[0];
    }

    int64_t queries() const { return last - first; }
    int64_t keys() const { return last - from; }
};

// f(block) for all blocks of a row, but for those of padding alone.
template <class F>
void each_block(const Problem& p, int64_t row, F&& f) {
    const int32_t* documents = p.documents_of(row);
    Block before(p, row, 0, nullptr);
    for (int64_t first = 0; first < p.tokens; first += some_queries) {
        const Block block(p, row, first, first ? &before : nullptr);
        const bool padded = documents && std::all_of(documents + block.first, documents + block.last,
                                                     [](int32_t document) { return document < 0; });
        if (!padded) f(block);
        before = block;
    }
}

Strided<float> rows_of(const Heads& x, int64_t row, int64_t token, int64_t head) {
    return {x.at(row, token, head), x.token, 1};
}

// [width, apart] of one head.
void turn(const Problem& p, const Heads& x, int64_t row, int64_t head, float* to) {
    transpose(p.tokens, p.width, x.at(row, 0, head), x.token, to, p.apart());
}

// a [queries, width] of the block against the keys or values in `turned`: [queries, keys].
void against(const Problem& p, const Block& block, Strided<float> a, const float* turned, float* out) {
    gemm(block.queries(), block.keys(), p.width, a, Strided<float>{turned + block.from, p.apart(), 1}, out, block.keys(),
         false);
}

// Exponentials of a row of scores, zero where a key is not seen: less `less`, or less the largest if that is null.
// Gives their sum and what was taken off.
struct Sum {
    float total, less;
};

Sum exponentiate(const Block& block, int64_t i, float scale, const float* less, float* scores) {
    const int64_t begin = block.seen[i] - block.from, end = block.first + i + 1 - block.from;
    float* row = scores + i * block.keys();
    std::fill_n(row, begin, 0.0f);
    std::fill_n(row + end, block.keys() - end, 0.0f);
    row += begin;
    each_vector(end - begin, [&](int64_t at, auto lanes) { store(row + at, load(row + at, lanes) * scale, lanes); });
    const float top = less ? *less : largest(row, end - begin);
    auto keep = [&](int64_t at, vf e, auto lanes) { store(row + at, e, lanes); };
    return {exponentials(row, end - begin, top, keep), top};
}

bool padding(const Problem& p, int64_t row, int64_t token) { return p.documents && p.documents_of(row)[token] < 0; }

void forward(const Problem& p) {
    parallel_for(p.rows * p.heads, p.threads, [&](int64_t task) {
        const int64_t row = task / p.heads, head = task % p.heads, group = head / p.shared_by();
        float* turned = static_cast<float*>(scratch((p.width + some_queries) * p.apart() * sizeof(float), slot_work));
        float* scores = turned + p.width * p.apart();
        turn(p, p.k, row, group, turned);
        for (int64_t t = 0; t < p.tokens; ++t) std::fill_n(p.y.at(row, t, head), p.width, 0.0f);
        each_block(p, row, [&](const Block& block) {
            float totals[some_queries];
            against(p, block, rows_of(p.q, row, block.first, head), turned, scores);
            for (int64_t i = 0; i < block.queries(); ++i) {
                const Sum sum = exponentiate(block, i, p.scale, nullptr, scores);
                totals[i] = sum.total;
                p.normalizers_of(row, head)[block.first + i] = sum.less + std::log(sum.total);
            }
            gemm(block.queries(), p.width, block.keys(), Strided<float>{scores, block.keys(), 1},
                 rows_of(p.v, row, block.from, group), p.y.at(row, block.first, head), p.y.token, false);
            for (int64_t i = 0; i < block.queries(); ++i) {
                float* y = p.y.at(row, block.first + i, head);
                const float factor = padding(p, row, block.first + i) ? 0.0f : 1.0f / totals[i];
                each_vector(p.width, [&](int64_t at, auto lanes) {
                    store(y + at, load(y + at, lanes) * factor, lanes);
                });
            }
        });
    });
}

// The gradient of a row of scores, in the place of that of its probabilities.
void through_softmax(const Problem& p, const Block& block, int64_t i, const float* y, const float* dy,
                     const float* probabilities, float* change) {
    const float mean = sum_of(p.width, [&](int64_t at, auto lanes) {
        return load(y + at, lanes) * load(dy + at, lanes);
    });
    const float* probability = probabilities + i * block.keys();
    float* row = change + i * block.keys();
    each_vector(block.keys(), [&](int64_t at, auto lanes) {
        store(row + at, load(probability + at, lanes) * (load(row + at, lanes) - mean) * p.scale, lanes);
    });
}

void backward(const Problem& p) {
    parallel_for(p.rows * p.groups, p.threads, [&](int64_t task) {
        const int64_t row = task / p.groups, group = task % p.groups;
        const int64_t turned = p.width * p.apart(), block_scores = some_queries * p.tokens;
        float* keys = static_cast<float*>(scratch(2 * (turned + block_scores) * sizeof(float), slot_work));
        float *values = keys + turned, *scores = values + turned, *change = scores + block_scores;
        turn(p, p.k, row, group, keys);
        turn(p, p.v, row, group, values);
        for (int64_t t = 0; t < p.tokens; ++t) {
            std::fill_n(p.dk.at(row, t, group), p.width, 0.0f);
            std::fill_n(p.dv.at(row, t, group), p.width, 0.0f);
        }
        for (int64_t head = group * p.shared_by(); head < (group + 1) * p.shared_by(); ++head) {
            for (int64_t t = 0; t < p.tokens; ++t) std::fill_n(p.dq.at(row, t, head), p.width, 0.0f);
            each_block(p, row, [&](const Block& block) {
                const Strided<float> q = rows_of(p.q, row, block.first, head), dy = rows_of(p.dy, row, block.first, head);
                const int64_t n = block.queries(), m = block.keys();
                against(p, block, q, keys, scores);
                against(p, block, dy, values, change);
                for (int64_t i = 0; i < n; ++i) {
                    const int64_t t = block.first + i;
                    if (padding(p, row, t)) {
                        std::fill_n(scores + i * m, m, 0.0f);
                        std::fill_n(change + i * m, m, 0.0f);
                        continue;
                    }
                    exponentiate(block, i, p.scale, p.normalizers_of(row, head) + t, scores);
                    through_softmax(p, block, i, p.y.at(row, t, head), p.dy.at(row, t, head), scores, change);
                }
                gemm(m, p.width, n, Strided<float>{scores, 1, m}, dy, p.dv.at(row, block.from, group), p.dv.token, true);
                gemm(n, p.width, m, Strided<float>{change, m, 1}, rows_of(p.k, row, block.from, group),
                     p.dq.at(row, block.first, head), p.dq.token, false);
                gemm(m, p.width, n, Strided<float>{change, 1, m}, q, p.dk.at(row, block.from, group), p.dk.token, true);
            });
        }
    });
}

}  // namespace
}  // namespace seqloom

extern "C" void seqloom_attention_training_forward(const seqloom::Problem* problem) { seqloom::forward(*problem); }
extern "C" void seqloom_attention_training_backward(const seqloom::Problem* problem) { seqloom::backward(*problem); }
