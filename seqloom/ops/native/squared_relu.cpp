// relu(x)² and its gradient 2 relu(x) dy; see squared_relu.py. A NaN stays one.
#include <algorithm>

#include "lanes.h"
#include "threads.h"

namespace seqloom {
namespace {

constexpr int64_t task_numbers = 1 << 15;

template <class F>
void each_piece(int64_t n, int threads, F&& body) {
    parallel_for((n + task_numbers - 1) / task_numbers, threads, [&](int64_t task) {
        const int64_t first = task * task_numbers;
        body(first, std::min(task_numbers, n - first));
    });
}

template <class T>
void forward(const T* x, T* y, int64_t n, int threads) {
    each_piece(n, threads, [&](int64_t first, int64_t count) {
        each_vector(count, [&](int64_t i, auto lanes) {
            const vf active = max(vf{}, load(x + first + i, lanes));
            store(y + first + i, active * active, lanes);
        });
    });
}

template <class T>
void backward(const T* x, const T* dy, T* dx, int64_t n, int threads) {
    each_piece(n, threads, [&](int64_t first, int64_t count) {
        each_vector(count, [&](int64_t i, auto lanes) {
            const vf active = max(vf{}, load(x + first + i, lanes));
            store(dx + first + i, load(dy + first + i, lanes) * (2.0f * active), lanes);
        });
    });
}

}  // namespace
}  // namespace seqloom

#define SEQLOOM_SQUARED_RELU(T, NAME)                                                                          \
    extern "C" void seqloom_squared_relu_forward_##NAME(const T* x, T* y, int64_t n, int32_t threads) {        \
        seqloom::forward(x, y, n, threads);                                                                    \
    }                                                                                                          \
    extern "C" void seqloom_squared_relu_backward_##NAME(const T* x, const T* dy, T* dx, int64_t n,            \
                                                         int32_t threads) {                                    \
        seqloom::backward(x, dy, dx, n, threads);                                                              \
    }

SEQLOOM_SQUARED_RELU(float, f32)
SEQLOOM_SQUARED_RELU(seqloom::bf16, bf16)
