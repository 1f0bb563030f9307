// RMS normalisation of rows, and of gated groups of channels, forward and backward; see norm.py.
//
// With r = 1 / sqrt(mean(x²) + eps) of the n numbers that share it and g = w dy:   dx = r g - x r³ mean(g x).
//
// A task is a stretch of rows. The backward pass sums the gradient of the gain over the rows of each task, then over the
// tasks in their order; how rows are cut depends on their number alone.
#include <algorithm>

#include "lanes.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr int64_t fewest_rows = 16;  // of a task
constexpr int64_t most_tasks = 64;
constexpr int slot_sums = 5, slot_row = 6;

// Calls body(row, sums) for every row, where `sums` belongs to the row's task, and leaves their total in `dweight`.
template <class F>
void rows_with_sums(int64_t rows, int64_t width, float* dweight, int threads, F&& body) {
    const int64_t share = std::max(fewest_rows, (rows + most_tasks - 1) / most_tasks);
    const int64_t tasks = (rows + share - 1) / share;
    float* sums = dweight ? static_cast<float*>(scratch(tasks * width * sizeof(float), slot_sums)) : nullptr;
    parallel_for(tasks, threads, [&](int64_t task) {
        float* mine = sums ? sums + task * width : nullptr;
        if (mine) std::fill_n(mine, width, 0.0f);
        for (int64_t row = task * share; row < std::min((task + 1) * share, rows); ++row) body(row, mine);
    });
    if (!dweight) return;
    std::fill_n(dweight, width, 0.0f);
    for (int64_t task = 0; task < tasks; ++task)
        for (int64_t i = 0; i < width; ++i) dweight[i] += sums[task * width + i];
}

template <class F>
void each_row(int64_t rows, int threads, F&& body) {
    rows_with_sums(rows, 0, nullptr, threads, [&](int64_t row, float*) { body(row); });
}

float inverse_root(float squares, int64_t n, float eps) { return 1.0f / std::sqrt(squares / float(n) + eps); }

template <class T>
void rms_forward(const T* x, int64_t x_row, const float* weight, float eps, T* y, float* inverse, int64_t rows,
                 int64_t width, int threads) {
    each_row(rows, threads, [&](int64_t row) {
        const T* in = x + row * x_row;
        T* out = y + row * width;
        const float r = inverse_root(sum_of(width, [&](int64_t i, auto lanes) {
            const vf v = load(in + i, lanes);
            return v * v;
        }), width, eps);
        inverse[row] = r;
        each_vector(width, [&](int64_t i, auto lanes) {
            store(out + i, load(in + i, lanes) * r * load(weight + i, lanes), lanes);
        });
    });
}

template <class T>
void rms_backward(const T* x, int64_t x_row, const float* weight, const float* inverse, const T* dy, int64_t dy_row,
                  T* dx, float* dweight, int64_t rows, int64_t width, int threads) {
    rows_with_sums(rows, width, dweight, threads, [&](int64_t row, float* sums) {
        const T* in = x + row * x_row;
        const T* d = dy + row * dy_row;
        T* out = dx + row * width;
        const float r = inverse[row];
        const float back = r * r * r / float(width) * sum_of(width, [&](int64_t i, auto lanes) {
            return load(d + i, lanes) * load(weight + i, lanes) * load(in + i, lanes);
        });
        each_vector(width, [&](int64_t i, auto lanes) {
            const vf v = load(in + i, lanes), g = load(d + i, lanes);
            store(out + i, g * load(weight + i, lanes) * r - v * back, lanes);
            if (sums) store(sums + i, fma(g, v * r, load(sums + i, lanes)), lanes);
        });
    });
}

// y and z of the gated norm, cut into groups.
template <class Y, class Z>
struct Gated {
    const Y* y;
    int64_t y_row;
    const Z* z;
    int64_t z_row;
    int64_t rows, groups, width;  // of a group

    int64_t channels() const { return groups * width; }
};

template <class Y, class Z>
void gated_forward(const Gated<Y, Z>& in, const float* weight, float eps, Z* out, float* inverse, int threads) {
    each_row(in.rows, threads, [&](int64_t row) {
        float* product = static_cast<float*>(scratch(in.width * sizeof(float), slot_row));
        for (int64_t group = 0; group < in.groups; ++group) {
            const int64_t first = group * in.width;
            const Y* y = in.y + row * in.y_row + first;
            const Z* z = in.z + row * in.z_row + first;
            Z* place = out + row * in.channels() + first;
            const float r = inverse_root(sum_of(in.width, [&](int64_t i, auto lanes) {
                const vf gate = load(z + i, lanes), g = load(y + i, lanes) * (gate * sigmoid(gate));
                store(product + i, g, lanes);
                return g * g;
            }), in.width, eps);
            inverse[row * in.groups + group] = r;
            each_vector(in.width, [&](int64_t i, auto lanes) {
                store(place + i, load(product + i, lanes) * r * load(weight + first + i, lanes), lanes);
            });
        }
    });
}

template <class Y, class Z>
struct GatedGradients {
    const Z* dout;
    int64_t dout_row;
    Y* dy;
    Z* dz;
    float* dweight;
};

template <class Y, class Z>
void gated_backward(const Gated<Y, Z>& in, const float* weight, const float* inverse, const GatedGradients<Y, Z>& out,
                    int threads) {
    rows_with_sums(in.rows, in.channels(), out.dweight, threads, [&](int64_t row, float* sums) {
        float* open = static_cast<float*>(scratch(in.width * sizeof(float), slot_row));  // sigmoid(z)
        for (int64_t group = 0; group < in.groups; ++group) {
            const int64_t first = group * in.width, place = row * in.channels() + first;
            const Y* y = in.y + row * in.y_row + first;
            const Z* z = in.z + row * in.z_row + first;
            const Z* d = out.dout + row * out.dout_row + first;
            const float* w = weight + first;
            const float r = inverse[row * in.groups + group];
            const float back = r * r * r / float(in.width) * sum_of(in.width, [&](int64_t i, auto lanes) {
                const vf gate = load(z + i, lanes), opened = sigmoid(gate);
                store(open + i, opened, lanes);
                return load(d + i, lanes) * load(w + i, lanes) * (load(y + i, lanes) * (gate * opened));
            });
            each_vector(in.width, [&](int64_t i, auto lanes) {
                const vf gate = load(z + i, lanes), opened = load(open + i, lanes), value = load(y + i, lanes);
                const vf silu = gate * opened, g = value * silu, dnormed = load(d + i, lanes);
                const vf dg = dnormed * load(w + i, lanes) * r - g * back;
                store(out.dy + place + i, dg * silu, lanes);
                store(out.dz + place + i, dg * value * (opened * fma(gate, 1.0f - opened, broadcast(1.0f))), lanes);
                if (sums) store(sums + first + i, fma(dnormed, g * r, load(sums + first + i, lanes)), lanes);
            });
        }
    });
}

}  // namespace
}  // namespace seqloom

#define SEQLOOM_RMS_NORM(T, NAME)                                                                                      \
    extern "C" void seqloom_rms_norm_forward_##NAME(const T* x, int64_t x_row, const float* weight, float eps, T* y,   \
                                                    float* inverse, int64_t rows, int64_t width, int32_t threads) {    \
        seqloom::rms_forward(x, x_row, weight, eps, y, inverse, rows, width, threads);                                 \
    }                                                                                                                  \
    extern "C" void seqloom_rms_norm_backward_##NAME(const T* x, int64_t x_row, const float* weight,                   \
                                                     const float* inverse, const T* dy, int64_t dy_row, T* dx,         \
                                                     float* dweight, int64_t rows, int64_t width, int32_t threads) {   \
        seqloom::rms_backward(x, x_row, weight, inverse, dy, dy_row, dx, dweight, rows, width, threads);               \
    }

#define SEQLOOM_GATED_NORM(Y, Z, NAME)                                                                               \
    extern "C" void seqloom_gated_norm_forward_##NAME(                                                               \
        const Y* y, int64_t y_row, const Z* z, int64_t z_row, const float* weight, float eps, Z* out, float* inverse, \
        int64_t rows, int64_t groups, int64_t width, int32_t threads) {                                              \
        seqloom::gated_forward<Y, Z>({y, y_row, z, z_row, rows, groups, width}, weight, eps, out, inverse, threads);  \
    }                                                                                                                \
    extern "C" void seqloom_gated_norm_backward_##NAME(                                                              \
        const Y* y, int64_t y_row, const Z* z, int64_t z_row, const float* weight, const float* inverse,             \
        const Z* dout, int64_t dout_row, Y* dy, Z* dz, float* dweight, int64_t rows, int64_t groups, int64_t width,  \
        int32_t threads) {                                                                                           \
        seqloom::gated_backward<Y, Z>({y, y_row, z, z_row, rows, groups, width}, weight, inverse,                    \
                                      {dout, dout_row, dy, dz, dweight}, threads);                                   \
    }

SEQLOOM_RMS_NORM(float, f32)
SEQLOOM_RMS_NORM(seqloom::bf16, bf16)
SEQLOOM_GATED_NORM(float, float, f32_f32)
SEQLOOM_GATED_NORM(float, seqloom::bf16, f32_bf16)
SEQLOOM_GATED_NORM(seqloom::bf16, seqloom::bf16, bf16_bf16)
