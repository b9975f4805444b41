// One vector of the processor that a file is compiled for, written so that every path gives the same numbers.
//
// Only additions, single products and comparisons are used, in an order that does not depend on how wide the vector is.
// Files that include this are compiled once for each path, with other instructions allowed in each: everything here has
// internal linkage, and nothing of the standard library that could be shared between paths is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

using quept::Half;

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES)));  // a vector full of halves, as signed integers
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

#define INLINE static inline __attribute__((always_inline))

template <typename To, typename From>
INLINE To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

INLINE Floats all(float value) { return value - Floats{}; }  // exactly the value, whatever its sign

INLINE Floats load(const float *from) {
    Floats result;
    std::memcpy(&result, from, sizeof(result));
    return result;
}

INLINE void store(float *to, Floats value) { std::memcpy(to, &value, sizeof(value)); }

// Compilers make several steps of these conversions where the processor has one.
INLINE Words widened(Halves halves) {
#if defined(__AVX512F__)
    return (Words)_mm512_cvtepu16_epi32((__m256i)halves);
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepu16_epi32((__m128i)halves);
#else
    return __builtin_convertvector(halves, Words);
#endif
}

INLINE Halves upper_halves(Words words) {
#if defined(__AVX512F__)
    return (Halves)_mm512_cvtepi32_epi16((__m512i)(words >> 16));
#elif defined(__AVX2__)
    const __m256i low = (__m256i)(words >> 16);
    return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
#else
    return __builtin_convertvector(words >> 16, Halves);
#endif
}

// bfloat16, as the upper half of a float32.
INLINE Floats load(const uint16_t *from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof(halves));
    return bits_of<Floats>(widened(halves) << 16);
}

// The bits of the nearest bfloat16 in the upper half, ties to even; NaN stays NaN.
INLINE Words rounded_to_bfloat16(Floats value) {
    const Words bits = bits_of<Words>(value);
    const Words rounded = bits + (0x7fff + ((bits >> 16) & 1));
    const Words ordered = bits_of<Words>(value == value);
    return (rounded & ordered) | (~ordered & 0x7fc00000u);
}

INLINE void store(uint16_t *to, Floats value) {
    const Halves halves = upper_halves(rounded_to_bfloat16(value));
    std::memcpy(to, &halves, sizeof(halves));
}

INLINE float as_float(Half value) {
#if defined(__F16C__)
    return _cvtsh_ss(value.bits);
#else
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16, rest = value.bits & 0x7fffu;
    // Subnormals are exact this way, and infinity and NaN keep the highest exponent.
    float magnitude = bits_of<float>(rest << 13) * 0x1p112f;
    if (rest >= 0x7c00) magnitude = bits_of<float>((rest << 13) | 0x7f800000u);
    return bits_of<float>(bits_of<uint32_t>(magnitude) | sign);
#endif
}

// The nearest float16, ties to even.
INLINE Half as_half(float value) {
#if defined(__F16C__)
    return {static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
#else
    const uint32_t bits = bits_of<uint32_t>(value), sign = bits >> 16 & 0x8000;
    const float magnitude = bits_of<float>(bits & 0x7fffffff);
    uint32_t result;
    if (!(magnitude < 65520.0f)) {
        result = magnitude != magnitude ? 0x7e00 : 0x7c00;
    } else if (magnitude < 0x1p-14f) {
        result = bits_of<uint32_t>(magnitude + 0.5f) - bits_of<uint32_t>(0.5f);  // steps of 2**-24
    } else {
        const uint32_t positive = bits_of<uint32_t>(magnitude);
        result = (positive + 0xfff + (positive >> 13 & 1) - (112u << 23)) >> 13;
    }
    return {static_cast<uint16_t>(result | sign)};
#endif
}

INLINE Floats load(const Half *from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#elif defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#else
    Floats result;
    for (int lane = 0; lane < LANES; ++lane) result[lane] = as_float(from[lane]);
    return result;
#endif
}

INLINE void store(Half *to, Floats value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int lane = 0; lane < LANES; ++lane) to[lane] = as_half(value[lane]);
#endif
}

// What a store and a load of the type would make of a value.
INLINE Floats kept(const float *, Floats value) { return value; }
INLINE Floats kept(const uint16_t *, Floats value) {
    return bits_of<Floats>(rounded_to_bfloat16(value) & 0xffff0000u);
}

// Up to a vector's worth of values; what is missing is zero.
template <typename T>
INLINE Floats load_first(const T *from, ptrdiff_t count) {
    T values[LANES] = {};
    std::memcpy(values, from, static_cast<size_t>(count) * sizeof(T));
    return load(values);
}

template <typename T>
INLINE void store_first(T *to, Floats value, ptrdiff_t count) {
    T values[LANES];
    store(values, value);
    std::memcpy(to, values, static_cast<size_t>(count) * sizeof(T));
}

// a * sign + b, for signs of one and minus one alone: the product is exact, so it does not matter where it is fused.
INLINE Floats with_sign(Floats a, Floats sign, Floats b) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, sign, b);
#elif defined(__AVX2__) && defined(__FMA__)
    return _mm256_fmadd_ps(a, sign, b);
#else
    return a * sign + b;
#endif
}

// NaN in `value` becomes `bound`, like everything that is not above (below) it.
INLINE Floats at_least(Floats value, float bound) {
#if defined(__AVX512F__)
    return _mm512_max_ps(value, all(bound));
#elif defined(__AVX2__)
    return _mm256_max_ps(value, all(bound));
#elif defined(__SSE2__)
    return _mm_max_ps(value, all(bound));
#else
    return value > all(bound) ? value : all(bound);
#endif
}

INLINE Floats at_most(Floats value, float bound) {
#if defined(__AVX512F__)
    return _mm512_min_ps(value, all(bound));
#elif defined(__AVX2__)
    return _mm256_min_ps(value, all(bound));
#elif defined(__SSE2__)
    return _mm_min_ps(value, all(bound));
#else
    return value < all(bound) ? value : all(bound);
#endif
}

INLINE Ints larger(Ints a, Ints b) {
#if defined(__AVX512F__)
    return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Ints)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    return a > b ? a : b;
#endif
}

INLINE Shorts larger(Shorts a, Shorts b) {
#if defined(__AVX512F__)
    return (Shorts)_mm512_max_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Shorts)_mm256_max_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Shorts)_mm_max_epi16((__m128i)a, (__m128i)b);
#else
    return a > b ? a : b;
#endif
}

INLINE Shorts load_shorts(const uint16_t *from) {
    Shorts result;
    std::memcpy(&result, from, sizeof(result));
    return result;
}

// The lowest byte of each.
INLINE Bytes lowest_bytes(Words values) {
#if defined(__AVX512F__)
    return (Bytes)_mm512_cvtepi32_epi8((__m512i)values);
#elif defined(__SSE2__)
    const Words bytes = values & 0xff;
#if defined(__AVX2__)
    const __m128i low = _mm256_castsi256_si128((__m256i)bytes), high = _mm256_extracti128_si256((__m256i)bytes, 1);
#else
    const __m128i low = (__m128i)bytes, high = low;
#endif
    const __m128i shorts = _mm_packs_epi32(low, high), packed = _mm_packus_epi16(shorts, shorts);
    Bytes result;
    std::memcpy(&result, &packed, sizeof(result));
    return result;
#else
    return __builtin_convertvector(values, Bytes);
#endif
}

INLINE int32_t largest(Ints values) {
    int32_t result = values[0];
    for (int lane = 1; lane < LANES; ++lane) result = values[lane] > result ? values[lane] : result;
    return result;
}

INLINE uint32_t sum(Words values) {
    uint32_t result = 0;
    for (int lane = 0; lane < LANES; ++lane) result += values[lane];
    return result;
}

}  // namespace
