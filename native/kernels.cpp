// The kernels for one set of instructions. Compiled once for each, with the name of the path in QUEPT_PATH.
#include "rotation.h"

#define TEXT_OF(name) #name
#define NAME_OF(name) TEXT_OF(name)

namespace {

bool runs_here() {
#if defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

}  // namespace

const quept::Kernels quept::QUEPT_PATH = {NAME_OF(QUEPT_PATH), runs_here, quantize, rotate, finish};
