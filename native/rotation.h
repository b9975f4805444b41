// Rotations by Kronecker products of Hadamard matrices, a row at a time, in float32.
//
// Along the last axis, a fast Walsh-Hadamard transform. Along each other axis a matrix of ones and minus ones, of which
// four inputs at a time are added up in all eight ways (up to a sign), so that an output adds a quarter as many.
#pragma once

#include "tokens.h"

namespace {

using quept::COLUMNS;
using quept::Factor;
using quept::GROUPS;
using quept::Part;
using quept::Rotated;

// The sum and difference of lanes `distance` apart.
template <int distance>
INLINE Floats butterfly(Floats value) {
    Ints other;
    Floats sign;
    for (int lane = 0; lane < LANES; ++lane) {
        other[lane] = lane ^ distance;
        sign[lane] = lane & distance ? -1.0f : 1.0f;
    }
#if defined(__clang__)
    Floats swapped;
    for (int lane = 0; lane < LANES; ++lane) swapped[lane] = value[lane ^ distance];
#else
    const Floats swapped = __builtin_shuffle(value, other);
#endif
    return with_sign(value, sign, swapped);
}

INLINE Floats butterflies(Floats value, ptrdiff_t power) {
    if (power >= 2) value = butterfly<1>(value);
    if (power >= 4) value = butterfly<2>(value);
#if defined(__AVX2__) || defined(__AVX512F__)
    if (power >= 8) value = butterfly<4>(value);
#endif
#if defined(__AVX512F__)
    if (power >= 16) value = butterfly<8>(value);
#endif
    return value;
}

// `scale` times Sylvester's matrix of `power` along the last axis; `row` has room up to the next whole vector.
template <typename T>
INLINE void walsh_hadamard(const T *from, float scale, float *row, ptrdiff_t size, ptrdiff_t power) {
    ptrdiff_t done = 0;
    if (power >= 4 * LANES) {
        for (; done < size; done += 4 * LANES) {
            Floats x[4];
            for (int i = 0; i < 4; ++i) x[i] = butterflies(load(from + done + i * LANES) * scale, LANES);
            const Floats e = x[0] + x[1], f = x[0] - x[1], g = x[2] + x[3], h = x[2] - x[3];
            store(row + done, e + g);
            store(row + done + LANES, f + h);
            store(row + done + 2 * LANES, e - g);
            store(row + done + 3 * LANES, f - h);
        }
    } else {
        for (; done + LANES <= size; done += LANES) store(row + done, butterflies(load(from + done) * scale, power));
        if (done < size) store(row + done, butterflies(load_first(from + done, size - done) * scale, power));
    }
    ptrdiff_t distance = power >= 4 * LANES ? 4 * LANES : LANES;
    for (; 2 * distance < power; distance *= 4)
        for (float *tile = row; tile < row + size; tile += 4 * distance)
            for (float *at = tile; at < tile + distance; at += LANES) {
                const Floats a = load(at), b = load(at + distance);
                const Floats c = load(at + 2 * distance), d = load(at + 3 * distance);
                const Floats e = a + b, f = a - b, g = c + d, h = c - d;
                store(at, e + g);
                store(at + distance, f + h);
                store(at + 2 * distance, e - g);
                store(at + 3 * distance, f - h);
            }
    if (distance < power)
        for (float *tile = row; tile < row + size; tile += 2 * distance)
            for (float *at = tile; at < tile + distance; at += LANES) {
                const Floats a = load(at), b = load(at + distance);
                store(at, a + b);
                store(at + distance, a - b);
            }
}

// The eight sums of four inputs, `vectors` of each next to each other; `count` columns where fewer than a vector.
template <int vectors>
INLINE void sums_of_four(const float *from, ptrdiff_t after, ptrdiff_t count, float *to) {
    for (int i = 0; i < vectors; ++i) {
        Floats x[4];
        for (int j = 0; j < 4; ++j) {
            const float *at = from + j * after + i * LANES;
            x[j] = count < LANES ? load_first(at, count) : load(at);
        }
        const Floats p = x[0] + x[1], m = x[0] - x[1], q = x[2] + x[3], n = x[2] - x[3];
        const Floats sums[8] = {p + q, m + q, p - n, m - n, p + n, m + n, p - q, m - q};
        for (int which = 0; which < 8; ++which) store(to + (which * vectors + i) * LANES, sums[which]);
    }
}

// `outputs` rows of the result in `vectors` of columns, from the sums of some groups of inputs.
template <int vectors, int outputs>
INLINE void add_up(const Factor::Term *terms, ptrdiff_t groups, ptrdiff_t begin, ptrdiff_t end, const float *sums,
                   float *to, ptrdiff_t after, ptrdiff_t count) {
    Floats total[outputs][vectors];
    for (int o = 0; o < outputs; ++o)
        for (int i = 0; i < vectors; ++i) {
            float *at = to + o * after + i * LANES;
            total[o][i] = begin == 0 ? Floats{} : count < LANES ? load_first(at, count) : load(at);
        }
    for (ptrdiff_t group = begin; group < end; ++group, sums += 8 * vectors * LANES)
        for (int o = 0; o < outputs; ++o) {
            const Factor::Term term = terms[o * groups + group];
            const float *found = sums + term.which * (vectors * LANES);
            for (int i = 0; i < vectors; ++i)
                total[o][i] = with_sign(load(found + i * LANES), all(term.sign), total[o][i]);
        }
    for (int o = 0; o < outputs; ++o)
        for (int i = 0; i < vectors; ++i) {
            float *at = to + o * after + i * LANES;
            count < LANES ? store_first(at, total[o][i], count) : store(at, total[o][i]);
        }
}

template <int vectors>
INLINE void multiply_columns(const Factor &factor, const float *from, float *to, ptrdiff_t count, float *sums) {
    const ptrdiff_t groups = factor.order / 4;
    for (ptrdiff_t begin = 0; begin < groups; begin += GROUPS) {
        const ptrdiff_t end = begin + GROUPS < groups ? begin + GROUPS : groups;
        for (ptrdiff_t group = begin; group < end; ++group)
            sums_of_four<vectors>(from + 4 * group * factor.after, factor.after, count,
                                  sums + (group - begin) * 8 * vectors * LANES);
        for (ptrdiff_t output = 0; output < factor.order; output += 2)
            add_up<vectors, 2>(factor.terms + output * groups, groups, begin, end, sums, to + output * factor.after,
                               factor.after, count);
    }
}

// Where columns are few: one at a time, over outputs next to each other.
INLINE void multiply_column(const Factor &factor, const float *from, float *to, float *result) {
    for (ptrdiff_t output = 0; output < factor.padded; output += LANES) {
        Floats total = {};
        for (ptrdiff_t input = 0; input < factor.order; ++input)
            total = with_sign(all(from[input * factor.after]), load(factor.signs + input * factor.padded + output), total);
        store(result + output, total);
    }
    for (ptrdiff_t output = 0; output < factor.order; ++output) to[output * factor.after] = result[output];
}

INLINE void multiply(const Factor &factor, const float *from, float *to, float *scratch) {
    if (factor.after < COLUMNS) {
        for (ptrdiff_t column = 0; column < factor.after; ++column)
            multiply_column(factor, from + column, to + column, scratch);
        return;
    }
    ptrdiff_t column = 0;
    for (; column + 4 * LANES <= factor.after; column += 4 * LANES)
        multiply_columns<4>(factor, from + column, to + column, LANES, scratch);
    for (; column + LANES <= factor.after; column += LANES)
        multiply_columns<1>(factor, from + column, to + column, LANES, scratch);
    if (column < factor.after)
        multiply_columns<1>(factor, from + column, to + column, factor.after - column, scratch);
}

// A part of a row; where the result is, in `one` or `other`, each of its size and up to a vector more.
template <typename T>
INLINE float *rotate_part(const Part &part, const T *from, float *one, float *other, float *scratch) {
    walsh_hadamard(from, part.scale, one, part.order, part.power);
    for (ptrdiff_t index = 0; index < part.count; ++index) {
        const Factor &factor = part.factors[index];
        const ptrdiff_t size = factor.order * factor.after;
        for (ptrdiff_t start = 0; start < part.order; start += size) multiply(factor, one + start, other + start, scratch);
        float *result = other;
        other = one;
        one = result;
    }
    return one;
}

template <typename T>
INLINE void store_row(const float *from, ptrdiff_t size, T *to) {
    ptrdiff_t at = 0;
    for (; at + LANES <= size; at += LANES) store(to + at, load(from + at));
    if (at < size) store_first(to + at, load(from + at), size - at);
}

// The same values in float32, as their own type would hold them.
template <typename T>
INLINE void keep_row(const float *from, ptrdiff_t size, float *to, const T *origin) {
    ptrdiff_t at = 0;
    for (; at + LANES <= size; at += LANES) store(to + at, kept(origin, load(from + at)));
    if (at < size) store_first(to + at, kept(origin, load(from + at)), size - at);
}

template <typename T>
void rotate_rows(const Rows &from, const Rotated &to, ptrdiff_t first, ptrdiff_t last, float *scratch) {
    const T *values = static_cast<const T *>(from.values);
    // A part's two buffers; the row that is quantized is put together behind them.
    const ptrdiff_t room = quept::padded_width(from.width);
    float *one = scratch, *other = one + room, *row = other + room, *rest = row + room;
    for (ptrdiff_t index = first; index < last; ++index) {
        ptrdiff_t start = 0;
        for (ptrdiff_t which = 0; which < to.count; ++which) {
            const Part &part = to.parts[which];
            const T *read = values + index * from.stride + start;
            const float *rotated = rotate_part(part, read, one, other, rest);
            if (to.values)
                store_row(rotated, part.order, static_cast<T *>(to.values) + index * from.width + start);
            else
                keep_row(rotated, part.order, row + start, values);
            start += part.order;
        }
        if (!to.values) quantize_row(row, from.width, *to.codes, index, values);
    }
}

void rotate(const Rows &from, const Rotated &to, ptrdiff_t first, ptrdiff_t last, float *scratch) {
    from.type == Type::float32 ? rotate_rows<float>(from, to, first, last, scratch)
                               : rotate_rows<uint16_t>(from, to, first, last, scratch);
}

}  // namespace
