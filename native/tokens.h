// Rounding per token, and what follows a product of integers.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace {

using quept::Codes;
using quept::Finished;
using quept::Rows;
using quept::Type;

constexpr float SMALLEST = 1.17549435e-38f;  // float32's smallest normal number
constexpr int ZERO = 128;                   // what stands for a code of zero
// Adding it leaves no bits behind the point, so that the sum is rounded, halves to even; its lowest byte is then ZERO more
// than the code.
constexpr float ROUNDER = 12582912.0f + ZERO;

// The largest magnitude as bits: positive floats are ordered as these are, and NaN is above all of them.
INLINE float largest_magnitude(const float *row, ptrdiff_t width) {
    Ints most[4] = {};
    ptrdiff_t at = 0;
    auto take = [](Ints &most, Floats value) { most = larger(most, bits_of<Ints>(value) & 0x7fffffff); };
    for (; at + 4 * LANES <= width; at += 4 * LANES)
        for (int i = 0; i < 4; ++i) take(most[i], load(row + at + i * LANES));
    for (; at + LANES <= width; at += LANES) take(most[0], load(row + at));
    if (at < width) take(most[1], load_first(row + at, width - at));
    return bits_of<float>(largest(larger(larger(most[0], most[1]), larger(most[2], most[3]))));
}

INLINE float largest_magnitude(const uint16_t *row, ptrdiff_t width) {
    Shorts most[4] = {};
    ptrdiff_t at = 0;
    auto take = [](Shorts &most, Shorts value) { most = larger(most, value & 0x7fff); };
    for (; at + 8 * LANES <= width; at += 8 * LANES)
        for (int i = 0; i < 4; ++i) take(most[i], load_shorts(row + at + i * 2 * LANES));
    for (; at + 2 * LANES <= width; at += 2 * LANES) take(most[0], load_shorts(row + at));
    if (at < width) {
        uint16_t values[2 * LANES] = {};
        std::memcpy(values, row + at, static_cast<size_t>(width - at) * sizeof(uint16_t));
        take(most[1], load_shorts(values));
    }
    const Shorts last = larger(larger(most[0], most[1]), larger(most[2], most[3]));
    uint16_t result = 0;
    for (int lane = 0; lane < 2 * LANES; ++lane) {
        const uint16_t value = static_cast<uint16_t>(last[lane]);
        result = value > result ? value : result;
    }
    return bits_of<float>(static_cast<uint32_t>(result) << 16);
}

// `origin` says what the values' type is where they are no longer in it.
template <typename T, typename Origin>
INLINE void quantize_row(const T *row, ptrdiff_t width, const Codes &to, ptrdiff_t index, const Origin *origin) {
    float scale = to.share * largest_magnitude(row, width) / to.highest;
    scale = scale < SMALLEST ? SMALLEST : scale;  // NaN stays
    scale = kept(origin, all(scale))[0];
    uint8_t *codes = to.codes + index * width;
    to.scale[index] = scale;
    to.sums[index] = 0.0f;
    if (!(scale < bits_of<float>(0x7f800000))) {  // times the reciprocal, all is zero or not a number
        std::memset(codes, ZERO, static_cast<size_t>(width));
        return;
    }
    const float reciprocal = 1.0f / scale, low = -to.highest - 1.0f, high = to.highest;
    auto coded = [=](Floats value) {
        return bits_of<Words>(at_most(at_least(value * reciprocal, low), high) + ROUNDER);
    };
    Words total = {};
    ptrdiff_t at = 0;
    for (; at + LANES <= width; at += LANES) {
        const Words found = coded(load(row + at));
        total += found;
        const Bytes bytes = lowest_bytes(found);
        std::memcpy(codes + at, &bytes, sizeof(bytes));
    }
    if (at < width) {
        const Words found = coded(load_first(row + at, width - at));
        total += found;  // behind the row there are zeros
        const Bytes bytes = lowest_bytes(found);
        std::memcpy(codes + at, &bytes, static_cast<size_t>(width - at));
    }
    // Sums are modulo 2**32, and those of codes within int32.
    const uint32_t lanes = static_cast<uint32_t>((width + LANES - 1) / LANES * LANES);
    to.sums[index] = static_cast<float>(static_cast<int32_t>(sum(total) - lanes * bits_of<uint32_t>(ROUNDER)));
}

template <typename T>
void quantize_rows(const Rows &from, const Codes &to, ptrdiff_t first, ptrdiff_t last) {
    const T *values = static_cast<const T *>(from.values);
    for (ptrdiff_t index = first; index < last; ++index)
        quantize_row(values + index * from.stride, from.width, to, index, values);
}

void quantize(const Rows &from, const Codes &to, ptrdiff_t first, ptrdiff_t last) {
    from.type == Type::float32 ? quantize_rows<float>(from, to, first, last)
                               : quantize_rows<uint16_t>(from, to, first, last);
}

template <bool shifted, bool biased, typename From, typename To>
INLINE void finish_row(const Finished &what, const From *from, To *to, float scale, float sum) {
    ptrdiff_t at = 0;
    for (; at + LANES <= what.width; at += LANES) {
        Floats value = load(from + at);
        if (shifted) value += sum * load(what.shift + at);
        value *= scale;
        if (biased) value += load(what.bias + at);
        store(to + at, value);
    }
    if (at < what.width) {
        const ptrdiff_t rest = what.width - at;
        Floats value = load_first(from + at, rest);
        if (shifted) value += sum * load_first(what.shift + at, rest);
        value *= scale;
        if (biased) value += load_first(what.bias + at, rest);
        store_first(to + at, value, rest);
    }
}

template <typename From, typename To>
void finish_rows(const Finished &what, ptrdiff_t first, ptrdiff_t last) {
    for (ptrdiff_t index = first; index < last; ++index) {
        const From *from = static_cast<const From *>(what.product) + index * what.width;
        To *to = static_cast<To *>(what.result) + index * what.width;
        const float scale = what.scale[index];
        if (what.shift && what.bias)
            finish_row<true, true>(what, from, to, scale, what.sums[index]);
        else if (what.shift)
            finish_row<true, false>(what, from, to, scale, what.sums[index]);
        else if (what.bias)
            finish_row<false, true>(what, from, to, scale, 0.0f);
        else
            finish_row<false, false>(what, from, to, scale, 0.0f);
    }
}

void finish(const Finished &what, ptrdiff_t first, ptrdiff_t last) {
    if (what.from == Type::float32)
        what.to == Type::float32 ? finish_rows<float, float>(what, first, last)
                                 : finish_rows<float, uint16_t>(what, first, last);
    else
        what.to == Type::float32 ? finish_rows<uint16_t, float>(what, first, last)
                                 : finish_rows<uint16_t, uint16_t>(what, first, last);
}

}  // namespace
