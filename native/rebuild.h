// From a stored weight to packed codes, and from these to floats: StoredWeight.codes and PackedWeight.of, to the bit.
//
// Rows are done ROWS at a time, for which the adapter's inputs are read once. Every float is rounded after every step.
#pragma once

#include "tiles.h"
#include "values.h"

namespace {

using quept::Dense;
using quept::Rebuilt;
using quept::ROWS;
using quept::Stored;

constexpr float INTEGER = 12582912.0f;  // adding it leaves an integer in the lowest bits, halves to even

INLINE Floats lower(Floats a, Floats b) {
#if defined(__AVX2__)
    return _mm256_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

INLINE Floats higher(Floats a, Floats b) {
#if defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

INLINE Floats floats_of(const int8_t *from) {
#if defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))));
#else
    Floats result;
    for (int lane = 0; lane < LANES; ++lane) result[lane] = from[lane];
    return result;
#endif
}

INLINE Floats floats_of(const uint8_t *from) {
#if defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))));
#else
    Floats result;
    for (int lane = 0; lane < LANES; ++lane) result[lane] = from[lane];
    return result;
#endif
}

template <typename T>
INLINE Floats first_floats_of(const T *from, ptrdiff_t count) {
    T values[LANES] = {};
    std::memcpy(values, from, static_cast<size_t>(count));
    return floats_of(values);
}

// The sum of the products of two neighbours.
INLINE Ints pair_products(Shorts a, Shorts b) {
#if defined(__AVX2__)
    return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    Ints result;
    for (int lane = 0; lane < LANES; ++lane) result[lane] = a[2 * lane] * b[2 * lane] + a[2 * lane + 1] * b[2 * lane + 1];
    return result;
#endif
}

// Master times scale, a row behind the other, each with room for whole tiles.
INLINE void load_masters(const Stored &stored, ptrdiff_t row, ptrdiff_t rows, float *weights) {
    for (ptrdiff_t i = 0; i < rows; ++i, weights += stored.padded) {
        const int8_t *from = stored.master + (row + i) * stored.in;
        for (ptrdiff_t start = 0, group = 0; start < stored.in; start += stored.master_group, ++group) {
            const Floats scale = all(as_float(stored.master_scale[(row + i) * stored.master_groups + group]));
            const ptrdiff_t end = start + stored.master_group < stored.in ? start + stored.master_group : stored.in;
            ptrdiff_t at = start;
            for (; at + LANES <= end; at += LANES) store(weights + at, floats_of(from + at) * scale);
            if (at < end) store_first(weights + at, first_floats_of(from + at, end - at) * scale, end - at);
        }
        std::memset(weights + stored.in, 0, static_cast<size_t>(stored.padded - stored.in) * sizeof(float));
    }
}

// What the adapter adds to `rows` rows; `factors` has room for a word for each pair of ranks and row.
template <int rows>
INLINE void add_adapter(const Stored &stored, ptrdiff_t row, float *weights, uint32_t *factors) {
    constexpr int vectors = 2;
    const ptrdiff_t pairs = (stored.rank + 1) / 2;
    for (int r = 0; r < rows; ++r)
        for (ptrdiff_t pair = 0; pair < pairs; ++pair) {
            const int8_t *up = stored.up + (row + r) * stored.rank + 2 * pair;
            const int16_t first = up[0], second = 2 * pair + 1 < stored.rank ? up[1] : 0;
            factors[pair * rows + r] = static_cast<uint32_t>(static_cast<uint16_t>(second)) << 16 | static_cast<uint16_t>(first);
        }
    for (ptrdiff_t at = 0; at < stored.padded; at += vectors * LANES) {
        Ints total[rows][vectors] = {};
        for (ptrdiff_t pair = 0; pair < pairs; ++pair) {
            Shorts inputs[vectors];
            const int16_t *down = stored.down_pairs + (pair * stored.padded + at) * 2;
            for (int i = 0; i < vectors; ++i) std::memcpy(&inputs[i], down + i * 2 * LANES, sizeof(Shorts));
            for (int r = 0; r < rows; ++r) {
                const Shorts both = (Shorts)(Words{} + factors[pair * rows + r]);
                for (int i = 0; i < vectors; ++i) total[r][i] += pair_products(inputs[i], both);
            }
        }
        for (int r = 0; r < rows; ++r)
            for (int i = 0; i < vectors; ++i) {
                float *to = weights + r * stored.padded + at + i * LANES;
                const Floats product = __builtin_convertvector(total[r][i], Floats);
                store(to, load(to) + product * stored.adapter_scale[row + r]);
            }
    }
}

struct Grid {
    float scale, zero_point;
};

// numerics.affine.grid of one group.
INLINE Grid grid_of(const float *weights, ptrdiff_t count, const Rebuilt &to, float low_share, float high_share) {
    Floats least = {}, most = {};
    ptrdiff_t at = 0;
    for (; at + LANES <= count; at += LANES) {
        const Floats value = load(weights + at);
        least = lower(value, least);
        most = higher(value, most);
    }
    if (at < count) {
        const Floats value = load_first(weights + at, count - at);
        least = lower(value, least);
        most = higher(value, most);
    }
    float low = 0.0f, high = 0.0f;
    for (int lane = 0; lane < LANES; ++lane) {
        low = least[lane] < low ? least[lane] : low;
        high = most[lane] > high ? most[lane] : high;
    }
    low *= low_share;
    high *= high_share;
    if (to.symmetric) {
        const float middle = static_cast<float>(1 << (to.bits - 1));
        const float scale = (-low > high ? -low : high) / (middle - 1.0f);
        return {scale > 0.0f ? scale : 1.0f, middle};
    }
    float scale = (high - low) / static_cast<float>((1 << to.bits) - 1);
    scale = scale > 0.0f ? scale : 1.0f;
    return {scale, -low / scale + INTEGER - INTEGER};
}

// Up to a vector's bits of a plane, from weight `at` on.
INLINE Ints plane_bits(const uint8_t *plane, ptrdiff_t at, ptrdiff_t count) {
    uint32_t word = plane[at / 8];
    if (LANES != 8 || at % 8 != 0) {
        for (ptrdiff_t byte = at / 8 + 1; byte <= (at + count - 1) / 8; ++byte)
            word |= static_cast<uint32_t>(plane[byte]) << (8 * (byte - at / 8));
        word >>= at % 8;
    }
    Ints lanes;
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] = lane;
    return (Ints)(((Words{} + word) >> (Words)lanes) & 1);
}

// Codes of one group, `count` of them from `start` on; whether any is not its zero point.
template <bool planed>
INLINE bool round_group(const float *weights, const uint8_t *plane, ptrdiff_t start, ptrdiff_t count, Grid grid,
                        float highest, uint8_t *codes) {
    Words other = {};
    auto coded = [&](Floats value, ptrdiff_t at, ptrdiff_t here) {
        const Floats ratio = value / grid.scale;
        Floats nearest = ratio + INTEGER - INTEGER;
        if constexpr (planed) {
            const Floats rest = ratio - nearest;
            const Ints sign = (Ints)(rest < 0.0f) - (Ints)(rest > 0.0f);
            nearest += __builtin_convertvector(sign & -plane_bits(plane, at, here), Floats);
        }
        const Floats code = at_most(at_least(nearest + grid.zero_point, 0.0f), highest);
        other |= bits_of<Words>(code) ^ bits_of<Words>(all(grid.zero_point));
        return lowest_bytes(bits_of<Words>(code + INTEGER));
    };
    ptrdiff_t at = start;
    const ptrdiff_t end = start + count;
    for (; at + LANES <= end; at += LANES) {
        const Bytes bytes = coded(load(weights + at), at, LANES);
        std::memcpy(codes + at, &bytes, sizeof(bytes));
    }
    if (at < end) {
        const Bytes bytes = coded(load_first(weights + at, end - at), at, end - at);
        std::memcpy(codes + at, &bytes, static_cast<size_t>(end - at));
    }
    uint32_t any = 0;
    for (int lane = 0; lane < LANES; ++lane) any |= other[lane];
    return any != 0;
}

// Scales as float16, from those of the groups that are used and zeros.
INLINE void store_scales(const float *scales, ptrdiff_t groups, Half *halves, float *row_scale) {
    float most = 0.0f;
    for (ptrdiff_t group = 0; group < groups; ++group) most = scales[group] > most ? scales[group] : most;
    const int32_t exponent = static_cast<int32_t>(bits_of<uint32_t>(most) >> 23) - 14;
    *row_scale = bits_of<float>(static_cast<uint32_t>(exponent < 1 ? 1 : exponent) << 23);
    for (ptrdiff_t group = 0; group < groups; ++group) halves[group] = as_half(scales[group] / *row_scale);
}

template <int bits>
INLINE void pack_row(const uint8_t *codes, ptrdiff_t tiles, uint8_t *to) {
    for (ptrdiff_t tile = 0; tile < tiles; ++tile, to += bytes_of_tile(bits)) {
        Set sets[SETS];
        for (int set = 0; set < SETS; ++set) sets[set] = load_set(codes + tile * TILE + set * LANES_OF_SET);
        pack_tile<bits>(sets, to);
    }
}

template <int bits>
INLINE void unpack_row(const uint8_t *from, ptrdiff_t tiles, uint8_t *codes) {
    for (ptrdiff_t tile = 0; tile < tiles; ++tile, from += bytes_of_tile(bits)) {
        Set sets[SETS];
        unpack_tile<bits>(from, sets);
        for (int set = 0; set < SETS; ++set) store_set(codes + tile * TILE + set * LANES_OF_SET, sets[set]);
    }
}

template <int bits>
INLINE void rebuild_row(const Stored &stored, const Rebuilt &to, ptrdiff_t row, const float *weights, float *scales,
                        uint8_t *codes) {
    const float highest = static_cast<float>((1 << bits) - 1);
    const uint8_t *plane = stored.plane ? stored.plane + row * ((stored.in + 7) / 8) : nullptr;
    std::memset(codes + stored.in, 0, static_cast<size_t>(stored.padded - stored.in));
    for (ptrdiff_t group = 0, start = 0; group < to.groups; ++group, start += to.inputs_per_scale) {
        const ptrdiff_t rest = stored.in - start, count = rest < to.inputs_per_scale ? rest : to.inputs_per_scale;
        float low = 1.0f, high = 1.0f;
        if (stored.shares) {
            const ptrdiff_t index = row * to.groups + group;
            low = static_cast<float>(stored.shares[index] + 1) / 256.0f;
            high = static_cast<float>(stored.shares[stored.out * to.groups + index] + 1) / 256.0f;
        }
        const Grid grid = grid_of(weights + start, count, to, low, high);
        const bool used = plane ? round_group<true>(weights, plane, start, count, grid, highest, codes)
                                : round_group<false>(weights, plane, start, count, grid, highest, codes);
        scales[group] = used || !to.scale ? grid.scale : 0.0f;
        to.zero_point[row * to.groups + group] = static_cast<uint8_t>(grid.zero_point);
    }
    if (to.scale)
        store_scales(scales, to.groups, to.scale + row * to.groups, to.row_scale + row);
    else
        to.row_scale[row] = scales[0];
    const ptrdiff_t tiles = stored.padded / TILE;
    pack_row<bits>(codes, tiles, to.codes + row * tiles * bytes_of_tile(bits));
}

template <int bits>
void rebuild_rows(const Stored &stored, const Rebuilt &to, ptrdiff_t first, ptrdiff_t last, float *scratch) {
    float *weights = scratch, *scales = weights + ROWS * stored.padded;
    uint32_t *factors = reinterpret_cast<uint32_t *>(scales + to.groups);
    uint8_t *codes = reinterpret_cast<uint8_t *>(factors + ROWS * stored.rank);
    for (ptrdiff_t row = first; row < last; row += ROWS) {
        const ptrdiff_t rows = last - row < ROWS ? last - row : ROWS;
        load_masters(stored, row, rows, weights);
        if (stored.up) {
            if (rows == ROWS)
                add_adapter<ROWS>(stored, row, weights, factors);
            else
                for (ptrdiff_t i = 0; i < rows; ++i)
                    add_adapter<1>(stored, row + i, weights + i * stored.padded, factors);
        }
        for (ptrdiff_t i = 0; i < rows; ++i)
            rebuild_row<bits>(stored, to, row + i, weights + i * stored.padded, scales, codes);
    }
}

void rebuild(const Stored &stored, const Rebuilt &to, ptrdiff_t first, ptrdiff_t last, float *scratch) {
    switch (to.bits) {
        case 2: return rebuild_rows<2>(stored, to, first, last, scratch);
        case 3: return rebuild_rows<3>(stored, to, first, last, scratch);
        case 4: return rebuild_rows<4>(stored, to, first, last, scratch);
        case 5: return rebuild_rows<5>(stored, to, first, last, scratch);
        case 6: return rebuild_rows<6>(stored, to, first, last, scratch);
        case 7: return rebuild_rows<7>(stored, to, first, last, scratch);
        default: return rebuild_rows<8>(stored, to, first, last, scratch);
    }
}

template <int bits, typename T>
void dense_rows(const Packed &weight, const Dense &to, ptrdiff_t first, ptrdiff_t last, uint8_t *codes) {
    const ptrdiff_t tiles = (weight.in + TILE - 1) / TILE;
    for (ptrdiff_t row = first; row < last; ++row) {
        unpack_row<bits>(weight.codes + (to.first + row) * tiles * bytes_of_tile(bits), tiles, codes);
        T *result = static_cast<T *>(to.values) + row * weight.in;
        for (ptrdiff_t group = 0, start = 0; group < weight.groups; ++group, start += weight.inputs_per_scale) {
            const ptrdiff_t index = (to.first + row) * weight.groups + group;
            const float row_scale = weight.row_scale[to.first + row];
            const Floats scale = all(weight.scale ? as_float(weight.scale[index]) * row_scale : row_scale);
            const Floats zero_point = all(weight.zero_point[index]);
            const ptrdiff_t rest = weight.in - start;
            const ptrdiff_t end = start + (rest < weight.inputs_per_scale ? rest : weight.inputs_per_scale);
            ptrdiff_t at = start;
            for (; at + LANES <= end; at += LANES) store(result + at, (floats_of(codes + at) - zero_point) * scale);
            if (at < end)
                store_first(result + at, (first_floats_of(codes + at, end - at) - zero_point) * scale, end - at);
        }
    }
}

template <int bits>
void dense_at(const Packed &weight, const Dense &to, ptrdiff_t first, ptrdiff_t last, uint8_t *codes) {
    if (to.type == Type::float32)
        dense_rows<bits, float>(weight, to, first, last, codes);
    else if (to.type == Type::bfloat16)
        dense_rows<bits, uint16_t>(weight, to, first, last, codes);
    else
        dense_rows<bits, Half>(weight, to, first, last, codes);
}

void dense(const Packed &weight, const Dense &to, ptrdiff_t first, ptrdiff_t last, float *scratch) {
    uint8_t *codes = reinterpret_cast<uint8_t *>(scratch);
    switch (weight.bits) {
        case 2: return dense_at<2>(weight, to, first, last, codes);
        case 3: return dense_at<3>(weight, to, first, last, codes);
        case 4: return dense_at<4>(weight, to, first, last, codes);
        case 5: return dense_at<5>(weight, to, first, last, codes);
        case 6: return dense_at<6>(weight, to, first, last, codes);
        case 7: return dense_at<7>(weight, to, first, last, codes);
        default: return dense_at<8>(weight, to, first, last, codes);
    }
}

}  // namespace
