// Products of packed weights and tokens rounded tile by tile: ops.reference.tiles.tile_product, to the bit.
//
// A row is read once, in one stream, for up to TOGETHER tokens: sets of 32 codes are taken out of it by shifts and masks,
// multiplied by bytes, and summed in int16 as long as nothing can overflow. Floats come in once per tile and lane.
#pragma once

#include <type_traits>

#include "tiles.h"
#include "values.h"

namespace {

using quept::TileTokens;
using quept::Product;
using quept::Rows;
using quept::SUMS;
using quept::Type;

typedef int32_t Sums __attribute__((vector_size(4 * SUMS)));

constexpr float HIGHEST_CODE = 127.0f;
constexpr float SMALLEST_UNIT = 1.17549435e-38f;
constexpr float TO_INTEGER = 12582912.0f;  // adding it leaves an integer in the lowest bits, halves to even

INLINE Eight load_eight(const float *from) {
    Eight result;
    std::memcpy(&result, from, sizeof(result));
    return result;
}

INLINE float tree(Eight lanes) {
    float four[4], two[2];
    for (int lane = 0; lane < 4; ++lane) four[lane] = lanes[lane] + lanes[lane + 4];
    for (int lane = 0; lane < 2; ++lane) two[lane] = four[lane] + four[lane + 2];
    return two[0] + two[1];
}

// Tile `index` of a token, its `count` values as floats and zeros behind them, becomes codes; one unit's sum after another.
INLINE void round_tile(const float *values, int per_tile, int8_t *codes, float *unit, float *sums) {
    Ints most = {};
    for (int at = 0; at < TILE; at += LANES) most = larger(most, bits_of<Ints>(load(values + at)) & 0x7fffffff);
    float step = bits_of<float>(largest(most)) / HIGHEST_CODE;
    step = step < SMALLEST_UNIT ? SMALLEST_UNIT : step;  // NaN stays
    const bool finite = step < bits_of<float>(0x7f800000);
    if (!finite) step = bits_of<float>(0x7fc00000);
    const float reciprocal = 1.0f / step;
    const ptrdiff_t size = TILE / per_tile;
    for (int each = 0; each < per_tile; ++each, codes += size, values += size) {
        Words total = {};
        for (ptrdiff_t at = 0; at < size; at += LANES) {
            const Floats scaled = at_most(at_least(load(values + at) * reciprocal, -HIGHEST_CODE), HIGHEST_CODE);
            const Words words = bits_of<Words>(scaled + TO_INTEGER);
            total += words - bits_of<uint32_t>(TO_INTEGER);
            const Bytes bytes = lowest_bytes(words);
            std::memcpy(codes + at, &bytes, sizeof(bytes));
        }
        if (!finite) std::memset(codes, 0, static_cast<size_t>(size));
        unit[each] = step;
        sums[each] = step * static_cast<float>(static_cast<int32_t>(sum(total)));
    }
}

template <typename T>
void round_tokens(const T *values, const Rows &from, const TileTokens &to, ptrdiff_t first, ptrdiff_t last) {
    for (ptrdiff_t token = first; token < last; ++token) {
        const T *row = values + token * from.stride;
        float *unit = to.unit + token * to.padded_units, *sums = to.sums + token * to.padded_units;
        for (ptrdiff_t tile = 0; tile < to.tiles; ++tile) {
            float whole[TILE];
            const ptrdiff_t at = tile * TILE, rest = from.width - at;
            if (rest >= TILE) {
                for (int lane = 0; lane < TILE; lane += LANES) store(whole + lane, load(row + at + lane));
            } else {
                std::memset(whole, 0, sizeof(whole));
                for (ptrdiff_t lane = 0; lane < rest; ++lane) whole[lane] = as_float(row[at + lane]);
            }
            const ptrdiff_t index = tile * to.per_tile;
            round_tile(whole, to.per_tile, to.codes + (token * to.tiles + tile) * TILE, unit + index, sums + index);
        }
        Eight total = {};
        for (ptrdiff_t at = to.tiles * to.per_tile; at < to.padded_units; ++at) unit[at] = sums[at] = 0.0f;
        for (ptrdiff_t at = 0; at < to.padded_units; at += SUMS) total += load_eight(sums + at);
        to.total[token] = tree(total);
    }
}

void round_tiles(const Rows &from, const TileTokens &to, ptrdiff_t first, ptrdiff_t last) {
    if (from.type == Type::float32)
        round_tokens(static_cast<const float *>(from.values), from, to, first, last);
    else if (from.type == Type::bfloat16)
        round_tokens(static_cast<const uint16_t *>(from.values), from, to, first, last);
    else
        round_tokens(static_cast<const Half *>(from.values), from, to, first, last);
}

// How many products of pairs, each of a code below 2**bits and one of an activation, sum within int16.
constexpr int within_int16(int bits) { return bits <= 5 ? 4 : bits == 6 ? 2 : 1; }

#if defined(__AVX2__)

template <int bits, int count>
INLINE Sums dot(const Set *sets, const int8_t *codes) {
    constexpr int fit = within_int16(bits) < count ? within_int16(bits) : count;
    __m256i total;
#pragma GCC unroll 4
    for (int set = 0; set < count; set += fit) {
        __m256i pairs;
#pragma GCC unroll 4
        for (int i = set; i < set + fit; ++i) {
            __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes + i * LANES_OF_SET));
            __m256i weight = (__m256i)sets[i];
            if constexpr (bits == 8) {  // signed: magnitudes up to 128 times codes up to 127
                code = _mm256_sign_epi8(code, weight);
                weight = _mm256_abs_epi8(weight);
            }
            const __m256i product = _mm256_maddubs_epi16(weight, code);
            pairs = i == set ? product : _mm256_add_epi16(pairs, product);
        }
        const __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        total = set == 0 ? sums : _mm256_add_epi32(total, sums);
    }
    return (Sums)total;
}

#else

// Not inline: this loop would be unrolled in every product.
template <typename T>
__attribute__((noinline)) void add_products(const T *weights, const int8_t *codes, int32_t *sums) {
    for (int lane = 0; lane < SUMS; ++lane)
        for (int i = 4 * lane; i < 4 * lane + 4; ++i) sums[lane] += weights[i] * codes[i];
}

template <int bits, int count>
INLINE Sums dot(const Set *sets, const int8_t *codes) {
    int32_t sums[SUMS] = {};
    for (int set = 0; set < count; ++set) {
        std::conditional_t<bits == 8, int8_t, uint8_t> weights[LANES_OF_SET];
        std::memcpy(weights, &sets[set], sizeof(weights));
        add_products(weights, codes + set * LANES_OF_SET, sums);
    }
    Sums total;
    std::memcpy(&total, sums, sizeof(total));
    return total;
}

#endif

INLINE Eight to_floats(Sums sums) { return __builtin_convertvector(sums, Eight); }

// `count` tokens' sums over a row: `lanes` gets what ops.reference.tiles calls lane, from factors (count, units).
template <int bits, int per_tile, int count>
INLINE void multiply_row(const uint8_t *row, ptrdiff_t tiles, const int8_t *const *codes, const float *const *factors,
                         Eight *lanes) {
    Eight total[count] = {};
    for (ptrdiff_t tile = 0; tile < tiles; ++tile, row += bytes_of_tile(bits)) {
#if defined(__SSE2__)
        for (int line = 0; line < bytes_of_tile(bits); line += 64)
            _mm_prefetch(reinterpret_cast<const char *>(row + quept::AHEAD + line), _MM_HINT_T0);
#endif
        Set sets[SETS];
        unpack_tile<bits>(row, sets);
        if constexpr (bits == 8)
            for (Set &set : sets) set ^= 128;
#pragma GCC unroll 4
        for (int token = 0; token < count; ++token)
#pragma GCC unroll 4
            for (int unit = 0; unit < per_tile; ++unit) {
                constexpr int each = SETS / per_tile;
                const int8_t *at = codes[token] + tile * TILE + unit * each * LANES_OF_SET;
                const Sums sums = dot<bits, each>(sets + unit * each, at);
                total[token] += to_floats(sums) * factors[token][tile * per_tile + unit];
            }
    }
    for (int token = 0; token < count; ++token) lanes[token] = total[token];
}

// The scale and zero point, less what codes count from, of eight units from `unit` on.
template <int bits>
INLINE void units_of(const Packed &weight, ptrdiff_t row, ptrdiff_t unit, Eight *scale, Eight *zero_point) {
    constexpr int from = bits == 8 ? 128 : 0;
    const Half *scales = weight.scale + row * weight.groups;
    const uint8_t *zeros = weight.zero_point + row * weight.groups;
    if (weight.units_per_group == 1 && unit + SUMS <= weight.groups) {
        *scale = eight_halves(scales + unit);
        *zero_point = eight_bytes(zeros + unit) - static_cast<float>(from);
        return;
    }
    Half some[SUMS] = {};
    float others[SUMS] = {};
    ptrdiff_t group = unit / weight.units_per_group, left = weight.units_per_group - unit % weight.units_per_group;
    for (int lane = 0; lane < SUMS && group < weight.groups; ++lane) {
        some[lane] = scales[group];
        others[lane] = static_cast<float>(zeros[group] - from);
        if (--left == 0) {
            ++group;
            left = weight.units_per_group;
        }
    }
    *scale = eight_halves(some);
    *zero_point = load_eight(others);
}

template <int bits, int per_tile, bool several, int count>
INLINE void product_of_row(const Product &what, ptrdiff_t row, ptrdiff_t token, float *scratch) {
    const Packed &weight = *what.weight;
    const TileTokens &tokens = *what.tokens;
    const ptrdiff_t units = tokens.padded_units;
    const int8_t *codes[count];
    const float *factors[count];
    Eight zero[count] = {}, lanes[count];
    for (int i = 0; i < count; ++i) {
        codes[i] = tokens.codes + (token + i) * tokens.tiles * TILE;
        factors[i] = several ? scratch + i * units : tokens.unit + (token + i) * units;
    }
    if constexpr (several)
        for (ptrdiff_t unit = 0; unit < units; unit += SUMS) {
            Eight scale, zero_point;
            units_of<bits>(weight, row, unit, &scale, &zero_point);
            const Eight shift = scale * zero_point;
            for (int i = 0; i < count; ++i) {
                const ptrdiff_t at = (token + i) * units + unit;
                const Eight factor = scale * load_eight(tokens.unit + at);
                std::memcpy(scratch + i * units + unit, &factor, sizeof(factor));
                zero[i] += shift * load_eight(tokens.sums + at);
            }
        }
    const uint8_t *from = weight.codes + row * tokens.tiles * bytes_of_tile(bits);
    multiply_row<bits, per_tile, count>(from, tokens.tiles, codes, factors, lanes);
    for (int i = 0; i < count; ++i) {
        float value;
        if constexpr (several) {
            value = tree(lanes[i] - zero[i]);
        } else {
            const float zero_point = static_cast<float>(weight.zero_point[row] - (bits == 8 ? 128 : 0));
            value = tree(lanes[i]) - zero_point * tokens.total[token + i];
        }
        value *= weight.row_scale[row];
        if (what.bias) value += value_at(what.bias, what.type, row);
        put(what.result, what.type, (token + i) * weight.out + row, value);
    }
}

template <int bits, int per_tile, bool several>
void product_of_rows(const Product &what, ptrdiff_t first, ptrdiff_t last, float *scratch) {
    for (ptrdiff_t row = first; row < last; ++row) {
        ptrdiff_t token = 0;
        for (; token + 4 <= what.count; token += 4)
            product_of_row<bits, per_tile, several, 4>(what, row, token, scratch);
        for (; token + 2 <= what.count; token += 2)
            product_of_row<bits, per_tile, several, 2>(what, row, token, scratch);
        if (token < what.count) product_of_row<bits, per_tile, several, 1>(what, row, token, scratch);
    }
}

template <int bits>
void product_at(const Product &what, ptrdiff_t first, ptrdiff_t last, float *scratch) {
    const int per_tile = what.tokens->per_tile;
    if (!what.weight->scale)
        product_of_rows<bits, 1, false>(what, first, last, scratch);
    else if (per_tile == 1)
        product_of_rows<bits, 1, true>(what, first, last, scratch);
    else if (per_tile == 2)
        product_of_rows<bits, 2, true>(what, first, last, scratch);
    else
        product_of_rows<bits, 4, true>(what, first, last, scratch);
}

void product(const Product &what, ptrdiff_t first, ptrdiff_t last, float *scratch) {
    switch (what.weight->bits) {
        case 2: return product_at<2>(what, first, last, scratch);
        case 3: return product_at<3>(what, first, last, scratch);
        case 4: return product_at<4>(what, first, last, scratch);
        case 5: return product_at<5>(what, first, last, scratch);
        case 6: return product_at<6>(what, first, last, scratch);
        case 7: return product_at<7>(what, first, last, scratch);
        default: return product_at<8>(what, first, last, scratch);
    }
}

}  // namespace
