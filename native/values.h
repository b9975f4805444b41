// Single values of every type, and eight of float16.
#pragma once

#include "vector.h"

namespace {

using quept::SUMS;
using quept::Type;

typedef float Eight __attribute__((vector_size(4 * SUMS)));

INLINE float as_float(float value) { return value; }
INLINE float as_float(uint16_t value) { return bits_of<float>(static_cast<uint32_t>(value) << 16); }

INLINE Eight eight_halves(const Half *from) {
#if defined(__F16C__)
    return (Eight)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#else
    Eight result;
    for (int lane = 0; lane < SUMS; ++lane) result[lane] = as_float(from[lane]);
    return result;
#endif
}

INLINE Eight eight_bytes(const uint8_t *from) {
#if defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(from));
    return (Eight)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
#else
    Eight result;
    for (int lane = 0; lane < SUMS; ++lane) result[lane] = from[lane];
    return result;
#endif
}

INLINE uint16_t as_bfloat16(float value) {
    const uint32_t bits = bits_of<uint32_t>(value);
    return value != value ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE float value_at(const void *values, Type type, ptrdiff_t index) {
    if (type == Type::float32) return static_cast<const float *>(values)[index];
    if (type == Type::bfloat16) return as_float(static_cast<const uint16_t *>(values)[index]);
    return as_float(static_cast<const Half *>(values)[index]);
}

INLINE void put(void *values, Type type, ptrdiff_t index, float value) {
    if (type == Type::float32)
        static_cast<float *>(values)[index] = value;
    else if (type == Type::bfloat16)
        static_cast<uint16_t *>(values)[index] = as_bfloat16(value);
    else
        static_cast<Half *>(values)[index] = as_half(value);
}

}  // namespace
