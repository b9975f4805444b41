// The extension module: tensors come as addresses, checked by quept.ops.cpu, which is the only caller.
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "calls.h"
#include "plan.h"

namespace nb = nanobind;
using namespace quept;

namespace {

// Best first.
const Kernels *const KNOWN[] = {
#ifdef QUEPT_X86
    &avx512,
    &avx2,
#endif
    &portable,
};

std::atomic<const Kernels *> chosen{nullptr};

std::vector<std::string> paths() {
    std::vector<std::string> names;
    for (const Kernels *each : KNOWN)
        if (each->runs_here()) names.emplace_back(each->name);
    return names;
}

void choose(const std::string &name) {
    for (const Kernels *each : KNOWN)
        if (name == each->name && each->runs_here()) return chosen.store(each);
    throw std::invalid_argument("this processor has no path " + name);
}

// Values below which handing rows to other threads takes longer than doing them.
constexpr ptrdiff_t ENOUGH = 1 << 15, ENOUGH_ROTATED = 1 << 13;

void quantize(uintptr_t values, int type, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride, float share, float highest,
              uintptr_t codes, uintptr_t scale, uintptr_t sums, int threads) {
    const Rows from{at<const void>(values), static_cast<Type>(type), stride, width};
    const Codes to{at<uint8_t>(codes), at<float>(scale), at<float>(sums), share, highest};
    const Kernels &path = kernels();
    auto work = [&](ptrdiff_t first, ptrdiff_t last, int) { path.quantize(from, to, first, last); };
    for_rows(rows, threads_for(rows * width, ENOUGH, threads), work);
}

void rotate_into(const Plan &plan, const Rows &from, ptrdiff_t rows, const Rotated &to, int threads) {
    if (plan.width() != from.width) throw std::invalid_argument("the rotation is of another width");
    threads = threads_for(rows * from.width, ENOUGH_ROTATED, threads < 1 ? 1 : threads);
    const ptrdiff_t each = scratch_for(from.width);
    float *scratch = scratch_of(each * threads);
    const Kernels &path = kernels();
    auto work = [&](ptrdiff_t first, ptrdiff_t last, int thread) {
        path.rotate(from, to, first, last, scratch + thread * each);
    };
    for_rows(rows, threads, work);
}

void rotate(const Plan &plan, uintptr_t values, int type, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride,
            uintptr_t result, int threads) {
    const Rows from{at<const void>(values), static_cast<Type>(type), stride, width};
    const Rotated to{plan.parts().data(), static_cast<ptrdiff_t>(plan.parts().size()), at<void>(result), nullptr};
    rotate_into(plan, from, rows, to, threads);
}

void rotate_and_quantize(const Plan &plan, uintptr_t values, int type, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride,
                         float share, float highest, uintptr_t codes, uintptr_t scale, uintptr_t sums, int threads) {
    const Rows from{at<const void>(values), static_cast<Type>(type), stride, width};
    const Codes written{at<uint8_t>(codes), at<float>(scale), at<float>(sums), share, highest};
    const Rotated to{plan.parts().data(), static_cast<ptrdiff_t>(plan.parts().size()), nullptr, &written};
    rotate_into(plan, from, rows, to, threads);
}

void finish(uintptr_t product, int from, uintptr_t result, int to, ptrdiff_t rows, ptrdiff_t width, uintptr_t scale,
            uintptr_t sums, uintptr_t shift, uintptr_t bias, int threads) {
    const Finished what{at<const void>(product), static_cast<Type>(from), at<void>(result),      static_cast<Type>(to), width,
                        at<const float>(scale),  at<const float>(sums),   at<const float>(shift), at<const float>(bias)};
    const Kernels &path = kernels();
    auto work = [&](ptrdiff_t first, ptrdiff_t last, int) { path.finish(what, first, last); };
    for_rows(rows, threads_for(rows * width, ENOUGH, threads), work);
}

}  // namespace

const Kernels &quept::kernels() { return *chosen.load(std::memory_order_relaxed); }

namespace {

struct Aligned {
    void operator()(float *memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

}  // namespace

// Kept for the next call from this thread.
float *quept::scratch_of(ptrdiff_t floats) {
    thread_local std::unique_ptr<float[], Aligned> memory;
    thread_local ptrdiff_t size = 0;
    if (size < floats) {
        memory.reset();
        size = 0;
        memory.reset(new (std::align_val_t{64}) float[static_cast<size_t>(floats)]);
        size = floats;
    }
    return memory.get();
}

NB_MODULE(_native, module) {
    nb::set_leak_warnings(false);  // plans are kept until Python ends
    choose(paths().front());
    using Released = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<Plan>(module, "Plan").def(nb::init<const std::vector<Plan::PartOf> &>());
    module.def("quantize", quantize, Released());
    module.def("rotate", rotate, Released());
    module.def("rotate_and_quantize", rotate_and_quantize, Released());
    module.def("finish", finish, Released());
    module.def("paths", paths);
    module.def("path", [] { return std::string(kernels().name); });
    module.def("choose", choose);
    module.def("has_threads", has_threads);
    add_packed(module);
}
