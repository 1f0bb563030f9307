// Work shared out to threads, and memory that each thread keeps for itself.
//
//     parallel_for(tasks, threads, [&](int64_t task) { ... });
//
// Threads take tasks in turn; which thread runs which task is chance, so tasks write to places of their own and a
// reduction over tasks is summed afterwards in their order. How work is cut into tasks must not depend on `threads`:
// then neither the result nor its last bit does.
//
// The pool is ours, as torch carries an OpenMP of its own. It is started when first needed, grows to the most threads
// asked for, waits briefly awake and then asleep, and is started anew in a forked child. The caller works too. A call
// from inside a task, or while another thread uses the pool, runs in the calling thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace seqloom {

// Runs task(context, i) for every i in [0, tasks).
void run_tasks(int64_t tasks, int threads, void (*task)(void*, int64_t), void* context);

template <class F>
void parallel_for(int64_t tasks, int threads, F&& task) {
    using Task = std::remove_reference_t<F>;
    run_tasks(
        tasks, threads, [](void* context, int64_t i) { (*static_cast<Task*>(context))(i); },
        const_cast<void*>(static_cast<const void*>(&task)));
}

// Memory of the calling thread, aligned to 64 bytes, its content undefined at every call. It stays valid until the same
// thread asks for more of the same slot. Slots 0 to 3 belong to gemm.h, 4 to 15 to the op that runs, the others to what
// calls one op after the other.
void* scratch(size_t bytes, int slot);

constexpr int scratch_slots = 20;

}  // namespace seqloom
