// The kernels for one set of instructions. Compiled once for each, with the name of the path in QUEPT_PATH.
#if defined(__F16C__)
#include <cpuid.h>
#endif

#include "rotation.h"

#if !defined(__AVX512F__)
#include "product.h"
#include "rebuild.h"
#endif

#define TEXT_OF(name) #name
#define NAME_OF(name) TEXT_OF(name)

namespace {

#if defined(__F16C__)
// Not every compiler that is supported knows this one by name.
bool has_float16() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool runs_here() {
#if defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
           has_float16();
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_float16();
#else
    return true;
#endif
}

#if !defined(__AVX512F__)
uint64_t read(const void *from, ptrdiff_t bytes) {
    const uint8_t *at = static_cast<const uint8_t *>(from);
    Set64 sums[8] = {};
    for (const uint8_t *end = at + bytes; at < end; at += sizeof(sums)) {
#if defined(__SSE2__)
        for (int line = 0; line < 256; line += 64)
            _mm_prefetch(reinterpret_cast<const char *>(at + quept::AHEAD + line), _MM_HINT_T0);
#endif
        for (int i = 0; i < 8; ++i) sums[i] += (Set64)load_set(at + i * LANES_OF_SET);
    }
    uint64_t total = 0;
    for (Set64 each : sums)
        for (int lane = 0; lane < 4; ++lane) total += each[lane];
    return total;
}
#endif

}  // namespace

#if defined(__AVX512F__)
#define OF_PACKED_WEIGHTS nullptr, nullptr, nullptr, nullptr, nullptr
#else
#define OF_PACKED_WEIGHTS round_tiles, product, rebuild, dense, read
#endif

const quept::Kernels quept::QUEPT_PATH = {NAME_OF(QUEPT_PATH), runs_here, quantize, rotate, finish, OF_PACKED_WEIGHTS};
