// Packed weights: tensors come as addresses, checked by quept.ops.cpu.packed, which is the only caller.
#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>

#include <nanobind/stl/pair.h>

#include "calls.h"

namespace nb = nanobind;

namespace quept {
namespace {

// Values below which handing rows to other threads takes longer than doing them.
constexpr ptrdiff_t ENOUGH_ROUNDED = 1 << 16, ENOUGH_MULTIPLIED = 1 << 17, ENOUGH_REBUILT = 1 << 14;

// AVX2's where the processor has AVX-512: products wait for memory, not for wider vectors.
const Kernels &kernels_of_packed() {
#ifdef QUEPT_X86
    if (&kernels() == &avx512) return avx2;
#endif
    return kernels();
}

ptrdiff_t tiles_of(ptrdiff_t in) { return (in + TILE - 1) / TILE; }

// The weight, and how its inputs are shared out over scales.
struct PackedWeight : Packed {
    int per_tile;  // units of a tile; 0 where products are not of integers

    PackedWeight(uintptr_t codes, uintptr_t scale, uintptr_t row_scale, uintptr_t zero_point, ptrdiff_t out, ptrdiff_t in,
                 ptrdiff_t bits, ptrdiff_t inputs_per_scale)
        : Packed{at<const uint8_t>(codes), at<const Half>(scale), at<const float>(row_scale), at<const uint8_t>(zero_point),
                 out, in, bits, inputs_per_scale, (in + inputs_per_scale - 1) / inputs_per_scale, 1},
          per_tile(0) {
        if (bits < 2 || bits > 8 || out < 1 || in < 1) throw std::invalid_argument("a packed weight has 2 to 8 bits");
        if ((groups > 1) != (scale != 0)) throw std::invalid_argument("rows of several groups have float16 scales");
        if (groups == 1 || inputs_per_scale % TILE == 0) {
            per_tile = 1;
            units_per_group = groups == 1 ? tiles_of(in) : inputs_per_scale / TILE;
        } else if (inputs_per_scale == 32 || inputs_per_scale == 64) {
            per_tile = static_cast<int>(TILE / inputs_per_scale);
        }
    }
};

void multiply(const PackedWeight &weight, uintptr_t values, int type, ptrdiff_t count, ptrdiff_t stride, uintptr_t bias,
              uintptr_t result, int threads) {
    if (!weight.per_tile) throw std::invalid_argument("groups of this size are not multiplied in integers");
    const ptrdiff_t tiles = tiles_of(weight.in);
    const ptrdiff_t units = (tiles * weight.per_tile + SUMS - 1) / SUMS * SUMS;
    const ptrdiff_t codes = whole_lines(count * tiles * TILE / 4), floats = whole_lines(count * units);
    const ptrdiff_t each = whole_lines(TOGETHER * units);
    const int many = threads_for(weight.out * weight.in, ENOUGH_MULTIPLIED, threads);
    float *scratch = scratch_of(codes + 2 * floats + whole_lines(count) + many * each);
    const TileTokens tokens{reinterpret_cast<int8_t *>(scratch), scratch + codes, scratch + codes + floats,
                             scratch + codes + 2 * floats,        tiles,          units,
                             weight.per_tile};
    float *rest = tokens.total + whole_lines(count);
    const Type held = static_cast<Type>(type);
    const Rows from{at<const void>(values), held, stride, weight.in};
    const Product what{&weight, &tokens, count, at<const void>(bias), at<void>(result), held};
    const Kernels &path = kernels_of_packed();
    auto round = [&](ptrdiff_t first, ptrdiff_t last, int) { path.round_tiles(from, tokens, first, last); };
    for_rows(count, threads_for(count * weight.in, ENOUGH_ROUNDED, threads), round);
    auto work = [&](ptrdiff_t first, ptrdiff_t last, int thread) {
        path.product(what, first, last, rest + thread * each);
    };
    for_rows(weight.out, many, work);
}

void dense(const PackedWeight &weight, ptrdiff_t first_row, ptrdiff_t rows, uintptr_t result, int type, int threads) {
    if (first_row < 0 || rows < 0 || first_row + rows > weight.out) throw std::invalid_argument("no such rows");
    const ptrdiff_t each = whole_lines(tiles_of(weight.in) * TILE / 4);
    const int many = threads_for(rows * weight.in, ENOUGH_REBUILT, threads);
    float *scratch = scratch_of(many * each);
    const Dense to{first_row, at<void>(result), static_cast<Type>(type)};
    const Kernels &path = kernels_of_packed();
    auto work = [&](ptrdiff_t first, ptrdiff_t last, int thread) {
        path.dense(weight, to, first, last, scratch + thread * each);
    };
    for_rows(rows, many, work);
}

void rebuild(const PackedWeight &weight, bool symmetric, uintptr_t master, uintptr_t master_scale, ptrdiff_t master_group,
             uintptr_t up, uintptr_t down, ptrdiff_t rank, uintptr_t adapter_scale, uintptr_t shares, uintptr_t plane,
             int threads) {
    const ptrdiff_t padded = tiles_of(weight.in) * TILE, pairs = up ? (rank + 1) / 2 : 0;
    const ptrdiff_t kept = whole_lines(pairs * padded);
    const ptrdiff_t each = whole_lines(ROWS * (padded + rank) + weight.groups + padded / 4);
    const int many = threads_for(weight.out * weight.in, ENOUGH_REBUILT, threads);
    float *scratch = scratch_of(kept + many * each);
    auto *down_pairs = reinterpret_cast<int16_t *>(scratch);
    for (ptrdiff_t row = 0; row < 2 * pairs; ++row) {
        const int8_t *from = row < rank ? at<const int8_t>(down) + row * weight.in : nullptr;
        int16_t *to = down_pairs + row / 2 * 2 * padded + row % 2;
        for (ptrdiff_t i = 0; i < padded; ++i) to[2 * i] = from && i < weight.in ? from[i] : int16_t{0};
    }
    const Stored stored{at<const int8_t>(master), at<const uint16_t>(master_scale), master_group,
                        (weight.in + master_group - 1) / master_group, at<const int8_t>(up), down_pairs,
                        at<const float>(adapter_scale), at<const uint8_t>(shares), at<const uint8_t>(plane),
                        weight.out, weight.in, rank, padded};
    // What the weight points to is new memory here, nobody else's.
    const Rebuilt to{const_cast<uint8_t *>(weight.codes), const_cast<Half *>(weight.scale),
                     const_cast<float *>(weight.row_scale), const_cast<uint8_t *>(weight.zero_point),
                     weight.bits, weight.inputs_per_scale, weight.groups, symmetric};
    const Kernels &path = kernels_of_packed();
    auto work = [&](ptrdiff_t first, ptrdiff_t last, int thread) {
        path.rebuild(stored, to, first, last, scratch + kept + thread * each);
    };
    for_rows(weight.out, many, work);
}

// Bytes per second, and the sum of what was read, of the fastest of some passes over new memory.
std::pair<double, uint64_t> read_bandwidth(ptrdiff_t bytes, int passes, int threads) {
    constexpr ptrdiff_t STRETCH = 1 << 16;
    const ptrdiff_t stretches = bytes / STRETCH;
    if (stretches < 1 || passes < 1) throw std::invalid_argument("at least one stretch is read at least once");
    struct Aligned {
        void operator()(uint64_t *memory) const { ::operator delete[](memory, std::align_val_t{4096}); }
    };
    constexpr ptrdiff_t words = STRETCH / sizeof(uint64_t);
    const std::unique_ptr<uint64_t[], Aligned> memory(new (std::align_val_t{4096}) uint64_t[stretches * words]);
    const Kernels &path = kernels_of_packed();
    auto fill = [&](ptrdiff_t first, ptrdiff_t last, int) {
        for (ptrdiff_t i = first * words; i < last * words; ++i) memory[i] = static_cast<uint64_t>(i);
    };
    for_rows(stretches, threads, fill);
    std::atomic<uint64_t> total{0};
    auto read = [&](ptrdiff_t first, ptrdiff_t last, int) {
        total += path.read(memory.get() + first * words, (last - first) * STRETCH);
    };
    double best = 0.0;
    for (int pass = 0; pass < passes; ++pass) {
        const auto start = std::chrono::steady_clock::now();
        for_rows(stretches, threads, read);
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
        const double rate = static_cast<double>(stretches * STRETCH) / time.count();
        best = rate > best ? rate : best;
    }
    return {best, total.load()};
}

}  // namespace

void add_packed(nb::module_ &module) {
    using Released = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<PackedWeight>(module, "PackedWeight")
        .def(nb::init<uintptr_t, uintptr_t, uintptr_t, uintptr_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t>())
        .def_prop_ro("multiplies_integers", [](const PackedWeight &weight) { return weight.per_tile != 0; });
    module.def("multiply", multiply, Released());
    module.def("dense", dense, Released());
    module.def("rebuild", rebuild, Released());
    module.def("read_bandwidth", read_bandwidth, Released());
}

}  // namespace quept
