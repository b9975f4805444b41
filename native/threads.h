// Rows shared out over the threads that PyTorch has already started.
//
// A second OpenMP runtime would bring a second pool, whose waiting threads take the processor from the first. So none is
// linked: the entry point that compilers call for `#pragma omp parallel` is looked up in the runtime that libtorch_cpu
// was linked to. Where there is none, the calling thread does all rows.
#pragma once

#include <cstddef>

namespace quept {

// Whether PyTorch's threads were found.
bool has_threads();

// `work(context, first, last, thread)` over parts of [0, rows), on at most `threads` threads numbered from zero.
void share_out(ptrdiff_t rows, int threads, void *context,
               void (*work)(void *context, ptrdiff_t first, ptrdiff_t last, int thread));

}  // namespace quept
