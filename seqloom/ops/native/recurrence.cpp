// Recurrent layers over ragged rows, forward and backward through time; see recurrence.py.
//
// Rows do not know of each other, so threads share them out and never wait for one another within a pass. A task has
// some rows, the longest first, and takes them through all steps together: the rows that are alive at a step are its
// first ones. The weights are packed once into panels that the products of all steps read in order.
#include <algorithm>
#include <numeric>
#include <vector>

#include "gemm.h"
#include "lanes.h"
#include "threads.h"

namespace seqloom {
namespace {

using gemm_parts::kColumns;
using gemm_parts::kRows;

constexpr int64_t least_rows = 4;  // of a task; fewer would take as long
constexpr int slot_weights = 4, slot_state = 5, slot_sums = 6;
constexpr float gru_limit = 20.0f;

enum Kind : int32_t { plain, gated_tanh, gated_clipped };

struct Layer {
    int64_t rows, steps, width;
    const int64_t* lengths;
    int32_t kind, reverse;
    float limit;

    int64_t parts() const { return kind == plain ? 1 : 3; }
    int64_t at(int64_t row, int64_t t) const { return row * steps + t; }
};

// W [n, k] as panels of columns of its transpose, a little apart, since packing writes behind the end.
struct Panels {
    const float* data;
    int64_t n, k;

    Panels(Strided<float> w, int64_t n, int64_t k, int threads) : n(n), k(k) {
        const int64_t count = (n + kColumns - 1) / kColumns;
        float* to = static_cast<float*>(scratch(count * size() * sizeof(float), slot_weights));
        data = to;
        parallel_for(count, threads, [&](int64_t panel) {
            const int64_t first = panel * kColumns;
            gemm_parts::pack<kColumns>(Strided<float>{w.data + first * w.row, w.row, w.column},
                                       std::min<int64_t>(kColumns, n - first), k, to + panel * size());
        });
    }

    int64_t size() const { return k * kColumns + 16; }

    // out [rows, n] = or += x [rows, k] wᵀ.
    void multiply(int64_t rows, const float* x, float* out, bool accumulate) const {
        const int64_t strips = (rows + kRows - 1) / kRows;
        for (int64_t j = 0; j < n; j += kColumns)
            for (int64_t strip = 0; strip < strips; ++strip) {
                const int64_t i = rows * strip / strips, count = rows * (strip + 1) / strips - i;
                gemm_parts::tile_of(int(count), int(std::min<int64_t>(kColumns, n - j)), k, x + i * k, k, 1,
                                    data + j / kColumns * size(), kColumns, out + i * n + j, n, accumulate);
            }
    }
};

// Rows of a task, the longest first, and how many of them are alive.
struct Rows {
    std::vector<int64_t> row;
    const int64_t* lengths;
    int64_t live = 0;

    int64_t count() const { return int64_t(row.size()); }
    int64_t longest() const { return row.empty() ? 0 : lengths[row[0]]; }

    int64_t alive(int64_t t) {
        while (live > 0 && lengths[row[live - 1]] <= t) --live;
        while (live < count() && lengths[row[live]] > t) ++live;
        return live;
    }
};

// The rows dealt out in turn, so that every task gets long and short ones. A row's result does not depend on the cut.
std::vector<Rows> deal(const Layer& layer, int threads) {
    std::vector<int64_t> order(layer.rows);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return layer.lengths[a] > layer.lengths[b]; });
    const int64_t most = (layer.rows + least_rows - 1) / least_rows;
    std::vector<Rows> tasks(std::max<int64_t>(1, std::min<int64_t>(threads, most)), Rows{{}, layer.lengths});
    for (int64_t i = 0; i < layer.rows; ++i) tasks[i % int64_t(tasks.size())].row.push_back(order[i]);
    return tasks;
}

[[gnu::always_inline]] inline vf clip(vf x, float limit) { return min(broadcast(limit), max(vf{}, x)); }  // NaN stays

// 1 where a clipped value lies between its ends, where its slope is.
[[gnu::always_inline]] inline vf inside(vf y, float limit) {
    return y > 0.0f && y < limit ? broadcast(1.0f) : vf{};
}

[[gnu::always_inline]] inline vf tanh(vf x) { return fma(sigmoid(x * 2.0f), broadcast(2.0f), broadcast(-1.0f)); }

struct Forward {
    const float* x;
    int64_t x_row, x_step;
    const float* initial;  // [rows, width], or null for zeros
    float *y, *gates;      // [rows, steps, width]; [rows, steps, 4 width]: z, r, n, U_n h, or null
};

// A step of a row from U h, whose state is replaced.
void forward_unit(const Layer& layer, const float* x, const float* sums, float* state, float* y, float* gates) {
    const int64_t H = layer.width;
    each_vector(H, [&](int64_t i, auto lanes) {
        vf h;
        if (layer.kind == plain) {
            h = clip(load(x + i, lanes) + load(sums + i, lanes), layer.limit);
        } else {
            const vf z = sigmoid(load(x + i, lanes) + load(sums + i, lanes));
            const vf r = sigmoid(load(x + H + i, lanes) + load(sums + H + i, lanes));
            const vf u = load(sums + 2 * H + i, lanes), before = load(state + i, lanes);
            const vf a = fma(r, u, load(x + 2 * H + i, lanes));
            const vf n = layer.kind == gated_tanh ? tanh(a) : clip(a, gru_limit);
            h = fma(z, n - before, before);
            if (gates) {
                store(gates + i, z, lanes);
                store(gates + H + i, r, lanes);
                store(gates + 2 * H + i, n, lanes);
                store(gates + 3 * H + i, u, lanes);
            }
        }
        store(state + i, h, lanes);
        store(y + i, h, lanes);
    });
}

void forward_rows(const Layer& layer, const Panels& weights, const Forward& to, Rows rows) {
    const int64_t H = layer.width, longest = rows.longest();
    float* state = static_cast<float*>(scratch(rows.count() * H * sizeof(float), slot_state));
    float* sums = static_cast<float*>(scratch(rows.count() * layer.parts() * H * sizeof(float), slot_sums));
    for (int64_t i = 0; i < rows.count(); ++i) {
        if (to.initial)
            std::copy_n(to.initial + rows.row[i] * H, H, state + i * H);
        else
            std::fill_n(state + i * H, H, 0.0f);
        const int64_t length = layer.lengths[rows.row[i]];
        std::fill_n(to.y + layer.at(rows.row[i], length) * H, (layer.steps - length) * H, 0.0f);
    }
    for (int64_t step = 0; step < longest; ++step) {
        const int64_t t = layer.reverse ? longest - 1 - step : step, live = rows.alive(t);
        weights.multiply(live, state, sums, false);
        for (int64_t i = 0; i < live; ++i) {
            const int64_t row = rows.row[i], place = layer.at(row, t);
            forward_unit(layer, to.x + row * to.x_row + t * to.x_step, sums + i * layer.parts() * H, state + i * H,
                         to.y + place * H, to.gates ? to.gates + place * 4 * H : nullptr);
        }
    }
}

struct Backward {
    const float *dy, *y, *gates, *before;  // before [rows, steps, width]: the state that each step began with
    float *dx, *dsums, *dinitial;          // dsums [rows, steps, width]: by U_n h, of gated layers; or null
};

// From the gradient dh by the state after a step to those by x, by U h, and by the state before, but for what goes
// through U.
void backward_unit(const Layer& layer, const Backward& to, int64_t place, float* dh, float* dsums) {
    const int64_t H = layer.width;
    const float *dy = to.dy + place * H, *gates = to.gates + place * 4 * H, *before = to.before + place * H;
    float *dx = to.dx + place * layer.parts() * H, *kept = to.dsums + place * H;
    each_vector(H, [&](int64_t i, auto lanes) {
        const vf d = load(dh + i, lanes) + load(dy + i, lanes);
        if (layer.kind == plain) {
            const vf da = d * inside(load(to.y + place * H + i, lanes), layer.limit);
            store(dx + i, da, lanes);
            store(dsums + i, da, lanes);
            return;
        }
        const vf z = load(gates + i, lanes), r = load(gates + H + i, lanes), n = load(gates + 2 * H + i, lanes);
        const vf u = load(gates + 3 * H + i, lanes);
        const vf slope = layer.kind == gated_tanh ? 1.0f - n * n : inside(n, gru_limit);
        const vf dz = d * (n - load(before + i, lanes)) * z * (1.0f - z), dn = d * z * slope;
        const vf dr = dn * u * r * (1.0f - r), du = dn * r;
        store(dh + i, d * (1.0f - z), lanes);
        store(dx + i, dz, lanes);
        store(dx + H + i, dr, lanes);
        store(dx + 2 * H + i, dn, lanes);
        store(dsums + i, dz, lanes);
        store(dsums + H + i, dr, lanes);
        store(dsums + 2 * H + i, du, lanes);
        store(kept + i, du, lanes);
    });
}

void backward_rows(const Layer& layer, const Panels& weights, const Backward& to, Rows rows) {
    const int64_t H = layer.width, parts = layer.parts(), longest = rows.longest();
    float* dh = static_cast<float*>(scratch(rows.count() * H * sizeof(float), slot_state));
    float* dsums = static_cast<float*>(scratch(rows.count() * parts * H * sizeof(float), slot_sums));
    std::fill_n(dh, rows.count() * H, 0.0f);
    for (int64_t step = 0; step < longest; ++step) {
        const int64_t t = layer.reverse ? step : longest - 1 - step, live = rows.alive(t);
        for (int64_t i = 0; i < live; ++i)
            backward_unit(layer, to, layer.at(rows.row[i], t), dh + i * H, dsums + i * parts * H);
        weights.multiply(live, dsums, dh, layer.kind != plain);
    }
    for (int64_t i = 0; i < rows.count(); ++i) {
        const int64_t row = rows.row[i], length = layer.lengths[row], rest = (layer.steps - length) * H;
        std::fill_n(to.dx + layer.at(row, length) * parts * H, rest * parts, 0.0f);
        if (layer.kind != plain) std::fill_n(to.dsums + layer.at(row, length) * H, rest, 0.0f);
        if (to.dinitial) std::copy_n(dh + i * H, H, to.dinitial + row * H);
    }
}

}  // namespace
}  // namespace seqloom

using namespace seqloom;

extern "C" void seqloom_recurrence_forward(int64_t rows, int64_t steps, int64_t width, const int64_t* lengths,
                                           int32_t kind, int32_t reverse, float limit, const float* weight,
                                           const float* x, int64_t x_row, int64_t x_step, const float* initial,
                                           float* y, float* gates, int32_t threads) {
    const Layer layer{rows, steps, width, lengths, kind, reverse, limit};
    const Panels weights({weight, width, 1}, layer.parts() * width, width, threads);
    const std::vector<Rows> tasks = deal(layer, threads);
    parallel_for(int64_t(tasks.size()), threads, [&](int64_t task) {
        forward_rows(layer, weights, {x, x_row, x_step, initial, y, gates}, tasks[task]);
    });
}

extern "C" void seqloom_recurrence_backward(int64_t rows, int64_t steps, int64_t width, const int64_t* lengths,
                                            int32_t kind, int32_t reverse, float limit, const float* weight,
                                            const float* dy, const float* y, const float* gates, const float* before,
                                            float* dx, float* dsums, float* dinitial, int32_t threads) {
    const Layer layer{rows, steps, width, lengths, kind, reverse, limit};
    const Panels weights({weight, 1, width}, width, layer.parts() * width, threads);
    const std::vector<Rows> tasks = deal(layer, threads);
    parallel_for(int64_t(tasks.size()), threads, [&](int64_t task) {
        backward_rows(layer, weights, {dy, y, gates, before, dx, dsums, dinitial}, tasks[task]);
    });
}
