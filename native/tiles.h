// Codes of 2 to 8 bits in tiles of 128, as quept.formats.tiles describes them.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace {

using quept::TILE;
using quept::Packed;

constexpr int SETS = 4, LANES_OF_SET = 32;

// A set of codes, whatever the path: the compiler makes two vectors of it where it has to.
typedef uint8_t Set __attribute__((vector_size(32)));
typedef uint16_t Set16 __attribute__((vector_size(32)));
typedef uint64_t Set64 __attribute__((vector_size(32)));

INLINE Set load_set(const uint8_t *from) {
    Set result;
    std::memcpy(&result, from, sizeof(result));
    return result;
}

INLINE void store_set(uint8_t *to, Set value) { std::memcpy(to, &value, sizeof(value)); }

constexpr int bytes_of_tile(int bits) { return static_cast<int>(TILE) / 8 * bits; }

// What is at bits 2 * set of each byte, moved to bit `to`; `mask` has the bits that are wanted there.
template <int set, int to, int mask>
INLINE Set moved(Set value) {
    constexpr int left = to - 2 * set;
    const Set16 wide = (Set16)value;
    if constexpr (left > 0)
        value = (Set)(wide << left);
    else if constexpr (left < 0)
        value = (Set)(wide >> -left);
    return value & static_cast<uint8_t>(mask);
}

template <int part, int to, bool first>
INLINE void add_pairs(Set pairs, Set sets[SETS]) {
    constexpr int mask = ((1 << part) - 1) << to;
    const Set found[SETS] = {moved<0, to, mask>(pairs), moved<1, to, mask>(pairs), moved<2, to, mask>(pairs),
                             moved<3, to, mask>(pairs)};
    for (int set = 0; set < SETS; ++set) sets[set] = first ? found[set] : sets[set] | found[set];
}

// Sixteen bytes twice, the second time with the odd bits in the place of the even ones.
INLINE Set spread_bits(const uint8_t *from) {
#if defined(__AVX2__)
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
    return (Set)_mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 1, 1));
#else
    uint64_t words[2];
    std::memcpy(words, from, sizeof(words));
    return (Set)(Set64{words[0], words[1], words[0] >> 1, words[1] >> 1});
#endif
}

template <int bits>
INLINE void unpack_tile(const uint8_t *from, Set sets[SETS]) {
    if constexpr (bits == 8) {
        for (int set = 0; set < SETS; ++set) sets[set] = load_set(from + set * LANES_OF_SET);
        return;
    }
    if constexpr (bits >= 4)
        for (int half = 0; half < 2; ++half, from += LANES_OF_SET) {
            const Set both = load_set(from);
            sets[2 * half] = both & 15;
            sets[2 * half + 1] = (Set)((Set16)both >> 4) & 15;
        }
    if constexpr (bits & 2) {
        add_pairs<2, bits & 4, bits<4>(load_set(from), sets);
        from += LANES_OF_SET;
    }
    if constexpr (bits & 1) add_pairs<1, bits & 6, false>(spread_bits(from), sets);
}

template <int part, int from>
INLINE Set gathered_pairs(const Set sets[SETS]) {
    Set pairs = {};
    for (int set = 0; set < SETS; ++set) {
        const Set values = (Set)((Set16)sets[set] >> from) & static_cast<uint8_t>((1 << part) - 1);
        pairs |= (Set)((Set16)values << (2 * set));
    }
    return pairs;
}

template <int bits>
INLINE void pack_tile(const Set sets[SETS], uint8_t *to) {
    if constexpr (bits == 8) {
        for (int set = 0; set < SETS; ++set) store_set(to + set * LANES_OF_SET, sets[set]);
        return;
    }
    if constexpr (bits >= 4)
        for (int half = 0; half < 2; ++half, to += LANES_OF_SET)
            store_set(to, (sets[2 * half] & 15) | (Set)((Set16)(sets[2 * half + 1] & 15) << 4));
    if constexpr (bits & 2) {
        store_set(to, gathered_pairs<2, bits & 4>(sets));
        to += LANES_OF_SET;
    }
    if constexpr (bits & 1) {
        uint8_t pairs[LANES_OF_SET];
        store_set(pairs, gathered_pairs<1, bits & 6>(sets));
        for (int lane = 0; lane < LANES_OF_SET / 2; ++lane)
            to[lane] = static_cast<uint8_t>(pairs[lane] | pairs[LANES_OF_SET / 2 + lane] << 1);
    }
}

}  // namespace
