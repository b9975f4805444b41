#include "threads.h"

#include <type_traits>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace quept {
namespace {

struct Runtime {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned) = nullptr;
    int (*thread)() = nullptr;
    int (*threads)() = nullptr;
    int (*inside)() = nullptr;
};

Runtime find_runtime() {
    Runtime found;
#if defined(__linux__)
    // Looks through the libraries that libtorch_cpu depends on; it stays loaded as long as Python runs.
    void *torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!torch) return found;
    auto find = [torch](const char *name, auto &function) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(torch, name));
        return function != nullptr;
    };
    if (!find("omp_get_thread_num", found.thread) || !find("omp_get_num_threads", found.threads) ||
        !find("omp_in_parallel", found.inside) || !find("GOMP_parallel", found.parallel))
        found.parallel = nullptr;
#endif
    return found;
}

const Runtime &runtime() {
    static const Runtime found = find_runtime();
    return found;
}

struct Shared {
    ptrdiff_t rows;
    void *context;
    void (*work)(void *, ptrdiff_t, ptrdiff_t, int);
};

void do_part(void *shared) {
    const Shared &all = *static_cast<Shared *>(shared);
    const ptrdiff_t thread = runtime().thread(), threads = runtime().threads();
    const ptrdiff_t first = all.rows * thread / threads, last = all.rows * (thread + 1) / threads;
    if (first < last) all.work(all.context, first, last, static_cast<int>(thread));
}

}  // namespace

bool has_threads() { return runtime().parallel != nullptr; }

void share_out(ptrdiff_t rows, int threads, void *context, void (*work)(void *, ptrdiff_t, ptrdiff_t, int)) {
    if (rows < threads) threads = static_cast<int>(rows);
    if (threads <= 1 || !has_threads() || runtime().inside()) return work(context, 0, rows, 0);
    Shared shared{rows, context, work};
    runtime().parallel(do_part, &shared, static_cast<unsigned>(threads), 0);
}

}  // namespace quept
