// The pool behind threads.h, on pthreads alone: the C++ runtime of one compiler may be newer than the one that Python
// has loaded, and the classes in <thread> and <condition_variable> then do not link.
//
// One job at a time. It is announced by a new `round`; workers that see it take a seat, work while there are tasks, and
// leave. The caller closes the job by taking the seats that are left, and waits for those who sat down.
#include "threads.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace seqloom {
namespace {

constexpr int most_workers = 255;
constexpr int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};  // of a thread's own making

void rest() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int64_t awake_ns = 50'000;  // about the time between two kernels of a step

// Tells for a while whether something has come true; false when it is time to sleep.
template <class F>
bool comes_true(F&& condition) {
    timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        for (int i = 0; i < 16; ++i) {
            if (condition()) return true;
            rest();
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - start.tv_sec) * 1'000'000'000 + now.tv_nsec - start.tv_nsec < awake_ns);
    return false;
}

struct Pool {
    std::atomic<bool> busy{false};
    int workers = 0;  // guarded by `busy`, as are the next two and the job
    pthread_t threads[most_workers];
    int avoided = -1;  // the processor that workers keep off

    void (*task)(void*, int64_t) = nullptr;
    void* context = nullptr;
    int64_t tasks = 0;
    alignas(64) std::atomic<int64_t> next{0};

    alignas(64) std::atomic<uint64_t> round{0};
    std::atomic<int> seats{0};             // workers that may still join this round
    alignas(64) std::atomic<int> left{0};  // workers that joined and are done

    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t announced = PTHREAD_COND_INITIALIZER;
    pthread_cond_t finished = PTHREAD_COND_INITIALIZER;
    std::atomic<int> sleepers{0};
    std::atomic<bool> caller_sleeps{false};
};

std::atomic<Pool*> current{nullptr};
thread_local bool inside = false;  // this thread runs a task

void work(Pool& pool) {
    inside = true;
    for (int64_t i; (i = pool.next.fetch_add(1)) < pool.tasks;) pool.task(pool.context, i);
    inside = false;
}

bool take_seat(Pool& pool) {
    int seats = pool.seats.load();
    while (seats > 0)
        if (pool.seats.compare_exchange_weak(seats, seats - 1)) return true;
    return false;
}

void wait_for_round(Pool& pool, uint64_t seen) {
    if (comes_true([&] { return pool.round.load() != seen; })) return;
    pthread_mutex_lock(&pool.mutex);
    ++pool.sleepers;  // before the last look at `round`; the caller looks the other way round
    while (pool.round.load() == seen) pthread_cond_wait(&pool.announced, &pool.mutex);
    --pool.sleepers;
    pthread_mutex_unlock(&pool.mutex);
}

void* worker(void* argument) {
    Pool& pool = *static_cast<Pool*>(argument);
    for (uint64_t seen = 0;;) {
        wait_for_round(pool, seen);
        seen = pool.round.load();
        if (!take_seat(pool)) continue;
        work(pool);
        ++pool.left;
        if (pool.caller_sleeps.load()) {
            pthread_mutex_lock(&pool.mutex);
            pthread_cond_signal(&pool.finished);
            pthread_mutex_unlock(&pool.mutex);
        }
    }
    return nullptr;
}

void wait_for_workers(Pool& pool, int joined) {
    if (comes_true([&] { return pool.left.load() == joined; })) return;
    pthread_mutex_lock(&pool.mutex);
    pool.caller_sleeps = true;
    while (pool.left.load() != joined) pthread_cond_wait(&pool.finished, &pool.mutex);
    pool.caller_sleeps = false;
    pthread_mutex_unlock(&pool.mutex);
}

// Signals from outside go to Python's threads, never to a worker. A worker that cannot start is done without.
void hire(Pool& pool, int wanted) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, size_t{4} << 20);
    sigset_t all, before;
    sigfillset(&all);
    for (int fault : faults) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pool.avoided = -1;
    while (pool.workers < wanted && pthread_create(&pool.threads[pool.workers], &attributes, worker, &pool) == 0)
        ++pool.workers;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
}

// Keeps workers off the caller's processor. While torch's own threads spin after their work, every other processor looks
// busy to the scheduler, so it wakes a worker where the caller runs, and nothing is gained from it.
void make_room(Pool& pool) {
#if defined(__linux__)
    const int here = sched_getcpu();
    if (here < 0 || here == pool.avoided) return;
    pool.avoided = here;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
    CPU_CLR(here, &allowed);
    for (int i = 0; i < pool.workers; ++i) pthread_setaffinity_np(pool.threads[i], sizeof allowed, &allowed);
#else
    (void)pool;
#endif
}

// A forked child has the memory of the pool and none of its threads; it leaves the old one behind.
void forget() { current = nullptr; }

Pool& pool_of_this_process() {
    static const int registered = pthread_atfork(nullptr, nullptr, forget);
    (void)registered;
    Pool* pool = current.load();
    if (pool) return *pool;
    Pool* fresh = new Pool;
    if (current.compare_exchange_strong(pool, fresh)) return *fresh;
    delete fresh;
    return *pool;
}

struct Scratch {
    void* memory[scratch_slots] = {};
    size_t bytes[scratch_slots] = {};
    ~Scratch() {
        for (void* part : memory) std::free(part);
    }
};

thread_local Scratch kept;
std::atomic<bool> poisoned{false};

}  // namespace

void run_tasks(int64_t tasks, int threads, void (*task)(void*, int64_t), void* context) {
    int helpers = static_cast<int>(tasks < threads ? tasks : threads) - 1;
    if (helpers > most_workers) helpers = most_workers;
    if (helpers > 0 && !inside) {
        Pool& pool = pool_of_this_process();
        if (!pool.busy.exchange(true)) {
            if (pool.workers < helpers) hire(pool, helpers);
            if (helpers > pool.workers) helpers = pool.workers;
            make_room(pool);
            pool.task = task;
            pool.context = context;
            pool.tasks = tasks;
            pool.next = 0;
            pool.left = 0;
            pool.seats = helpers;
            ++pool.round;
            if (pool.sleepers.load() > 0) {
                pthread_mutex_lock(&pool.mutex);
                pthread_cond_broadcast(&pool.announced);
                pthread_mutex_unlock(&pool.mutex);
            }
            work(pool);
            wait_for_workers(pool, helpers - pool.seats.exchange(0));
            pool.busy = false;
            return;
        }
    }
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
}

void* scratch(size_t bytes, int slot) {
    if (kept.bytes[slot] < bytes) {
        std::free(kept.memory[slot]);
        size_t size = (bytes + bytes / 4 + 63) / 64 * 64;
        kept.memory[slot] = std::aligned_alloc(64, size);
        if (!kept.memory[slot]) {
            std::fprintf(stderr, "seqloom: no memory for %zu bytes of scratch\n", size);
            std::abort();
        }
        kept.bytes[slot] = size;
    }
    if (poisoned.load(std::memory_order_relaxed)) std::memset(kept.memory[slot], 0xff, kept.bytes[slot]);
    return kept.memory[slot];
}

}  // namespace seqloom

// For tests: from now on scratch memory is handed out full of NaN (in FP32, FP64 and BF16).
extern "C" void seqloom_poison_scratch(int32_t on) { seqloom::poisoned = on != 0; }
