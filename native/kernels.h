// What the kernels compute, and the paths (sets of instructions) that they are compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quept {

// How tensors that are read or written hold their values.
enum class Type : int { float32 = 0, bfloat16 = 1 };

// One factor of a Kronecker product: a matrix of ones and minus ones, `order` a multiple of four.
struct Factor {
    // For output i and inputs 4g to 4g + 3: the sum of these, up to its sign, is one of eight.
    struct Term {
        uint32_t which;
        float sign;
    };
    ptrdiff_t order;
    ptrdiff_t after;      // the product of the orders behind it
    const Term *terms;    // (order, order / 4), read where `after` is at least COLUMNS
    const float *signs;   // (order, padded): of input j in output i at [j][i], read elsewhere
    ptrdiff_t padded;     // `order` rounded up to a multiple of COLUMNS
};

constexpr ptrdiff_t COLUMNS = 16;

// One part of a rotation: `factors`, then Sylvester's matrix of `power`, a power of two, the last in the Kronecker product.
struct Part {
    ptrdiff_t order;
    float scale;  // 1 / sqrt(order)
    ptrdiff_t power;
    const Factor *factors;
    ptrdiff_t count;
};

struct Rows {
    const void *values;
    Type type;
    ptrdiff_t stride;  // between rows, in values
    ptrdiff_t width;
};

struct Codes {
    uint8_t *codes;  // (rows, width)
    float *scale;
    float *sums;
    float share;
    float highest;
};

struct Rotated {
    const Part *parts;
    ptrdiff_t count;
    void *values;        // (rows, width) in the type that is read; or null, and
    const Codes *codes;  // what quantizing these values gives
};

struct Finished {
    const void *product;  // (rows, width)
    Type from;
    void *result;         // (rows, width); may be `product` where the types are the same
    Type to;
    ptrdiff_t width;
    const float *scale;   // (rows)
    const float *sums;    // (rows), with `shift` alone
    const float *shift;   // (width), or null
    const float *bias;    // (width), or null
};

struct Kernels {
    const char *name;
    bool (*runs_here)();
    void (*quantize)(const Rows &, const Codes &, ptrdiff_t first, ptrdiff_t last);
    // `scratch` holds scratch_for(width) floats, aligned to 64 bytes.
    void (*rotate)(const Rows &, const Rotated &, ptrdiff_t first, ptrdiff_t last, float *scratch);
    void (*finish)(const Finished &, ptrdiff_t first, ptrdiff_t last);
};

constexpr ptrdiff_t GROUPS = 12;          // of four inputs whose sums are kept at a time: up to 24 KiB
constexpr ptrdiff_t LARGEST_FACTOR = 512;  // of the matrices that are multiplied by here

// Three rows, each with room for the vector that holds its end, and what `multiply` keeps: floats.
constexpr ptrdiff_t padded_width(ptrdiff_t width) { return (width + 63) / 64 * 64; }
constexpr ptrdiff_t scratch_for(ptrdiff_t width) { return 3 * padded_width(width) + GROUPS * 8 * 64; }
static_assert(LARGEST_FACTOR <= GROUPS * 8 * 64, "a column fits what is kept");

extern const Kernels portable;
#ifdef QUEPT_X86
extern const Kernels avx2;
extern const Kernels avx512;
#endif

}  // namespace quept
