// What the kernels compute, and the paths (sets of instructions) that they are compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quept {

// How tensors that are read or written hold their values.
enum class Type : int { float32 = 0, bfloat16 = 1, float16 = 2 };

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

// IEEE's binary16, as bits.
struct Half {
    uint16_t bits;
};

constexpr ptrdiff_t TILE = 128;  // inputs whose codes lie together
constexpr int SUMS = 8;           // lanes in which floats are summed
constexpr ptrdiff_t AHEAD = 8192;  // bytes that codes are fetched before they are read

// A weight as quept.formats.packed describes it.
struct Packed {
    const uint8_t *codes;
    const Half *scale;          // (out, groups), or null where a row has one group
    const float *row_scale;     // (out)
    const uint8_t *zero_point;  // (out, groups)
    ptrdiff_t out, in, bits, inputs_per_scale, groups;
    ptrdiff_t units_per_group;  // tiles of a group, or one where a tile has several groups
};

// Tokens rounded tile by tile, and for each unit of inputs that share a scale: its unit, and that times its sum of codes.
struct TileTokens {
    int8_t *codes;  // (tokens, tiles, TILE)
    float *unit;    // (tokens, padded_units)
    float *sums;    // (tokens, padded_units)
    float *total;   // (tokens)
    ptrdiff_t tiles;
    ptrdiff_t padded_units;  // tiles * per_tile rounded up to a multiple of SUMS
    int per_tile;
};

struct Product {
    const Packed *weight;
    const TileTokens *tokens;
    ptrdiff_t count;   // tokens
    const void *bias;  // (out), or null
    void *result;      // (tokens, out), like the bias of this type
    Type type;
};

// A weight as quept.formats.stored describes it.
struct Stored {
    const int8_t *master;          // (out, in)
    const uint16_t *master_scale;  // bfloat16 (out, master_groups)
    ptrdiff_t master_group, master_groups;
    const int8_t *up;           // (out, rank), or null
    const int16_t *down_pairs;  // (rank / 2 rounded up, padded, 2): two neighbours in rank, zeros where there are none
    const float *adapter_scale;  // (out)
    const uint8_t *shares;       // (2, out, groups), or null
    const uint8_t *plane;        // (out, in / 8 rounded up), or null
    ptrdiff_t out, in, rank;
    ptrdiff_t padded;  // `in` rounded up to a multiple of TILE
};

// Where a rebuilt weight is written: `Packed`, of which a row is done at a time.
struct Rebuilt {
    uint8_t *codes;
    Half *scale;  // or null where a row has one group
    float *row_scale;
    uint8_t *zero_point;
    ptrdiff_t bits, inputs_per_scale, groups;
    bool symmetric;
};

struct Dense {
    ptrdiff_t first;  // row of the weight
    void *values;     // (rows, in)
    Type type;
};

constexpr ptrdiff_t ROWS = 4;      // that are rebuilt at a time
constexpr ptrdiff_t TOGETHER = 4;  // tokens that are multiplied at a time

struct Kernels {
    const char *name;
    bool (*runs_here)();
    void (*quantize)(const Rows &, const Codes &, ptrdiff_t first, ptrdiff_t last);
    // `scratch` holds scratch_for(width) floats, aligned to 64 bytes.
    void (*rotate)(const Rows &, const Rotated &, ptrdiff_t first, ptrdiff_t last, float *scratch);
    void (*finish)(const Finished &, ptrdiff_t first, ptrdiff_t last);
    // Of packed weights; null for AVX-512, where AVX2's are called.
    void (*round_tiles)(const Rows &, const TileTokens &, ptrdiff_t first, ptrdiff_t last);
    // Of rows of the weight; `scratch` holds TOGETHER * padded_units floats.
    void (*product)(const Product &, ptrdiff_t first, ptrdiff_t last, float *scratch);
    // `scratch` holds ROWS * (padded + rank) + groups floats and `padded` bytes.
    void (*rebuild)(const Stored &, const Rebuilt &, ptrdiff_t first, ptrdiff_t last, float *scratch);
    // `scratch` holds the codes of a row, a byte each, up to whole tiles.
    void (*dense)(const Packed &, const Dense &, ptrdiff_t first, ptrdiff_t last, float *scratch);
    // The sum of 64-bit words, as fast as they can be read; `bytes` is a multiple of 256.
    uint64_t (*read)(const void *from, ptrdiff_t bytes);
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
