// What functions of the extension module share.
#pragma once

#include <cstddef>
#include <cstdint>

#include <nanobind/nanobind.h>

#include "kernels.h"
#include "threads.h"

namespace quept {

// The path that is chosen.
const Kernels &kernels();

// Floats aligned to 64 bytes, kept for the next call from this thread; their size is rounded up to whole lines.
float *scratch_of(ptrdiff_t floats);

constexpr ptrdiff_t whole_lines(ptrdiff_t floats) { return (floats + 15) / 16 * 16; }

template <typename T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

// One thread where there are fewer values than `enough`: handing rows to others would take longer than doing them.
inline int threads_for(ptrdiff_t values, ptrdiff_t enough, int threads) {
    return values < enough || threads < 1 ? 1 : threads;
}

// Calls `work(first, last, thread)`.
template <typename Work>
void for_rows(ptrdiff_t rows, int threads, Work &work) {
    share_out(rows, threads, &work, [](void *context, ptrdiff_t first, ptrdiff_t last, int thread) {
        (*static_cast<Work *>(context))(first, last, thread);
    });
}

// Functions on packed weights.
void add_packed(nanobind::module_ &module);

}  // namespace quept
