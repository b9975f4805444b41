#include "plan.h"

#include <cmath>
#include <stdexcept>

namespace quept {
namespace {

void require(bool holds, const char *what) {
    if (!holds) throw std::invalid_argument(what);
}

// Which of the sums of four inputs, as `sums_of_four` numbers them, and its sign.
Factor::Term term_of(const int8_t *signs) {
    const bool flip = signs[0] < 0;
    uint32_t which = 0;
    for (int input = 1; input < 4; ++input)
        if ((signs[input] < 0) != flip) which |= 1u << (input - 1);
    return {which, flip ? -1.0f : 1.0f};
}

}  // namespace

Plan::Plan(const std::vector<PartOf> &parts) {
    for (const auto &[order, power, described] : parts) {
        require(order > 0 && power > 0 && (power & (power - 1)) == 0, "orders are positive, the last factor a power of two");
        std::vector<Factor> &factors = factors_.emplace_back();
        ptrdiff_t total = power;
        for (auto at = described.rbegin(); at != described.rend(); ++at) {
            require(std::get<1>(*at) == total, "a factor is in front of those behind it");
            factors.push_back(made(*at));
            total *= factors.back().order;
        }
        require(total == order, "the factors of a part multiply to its order");
        const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(order)));
        parts_.push_back({order, scale, power, factors.data(), static_cast<ptrdiff_t>(factors.size())});
        width_ += order;
    }
}

Factor Plan::made(const FactorOf &described) {
    const auto &[order, after, entries] = described;
    require(order > 0 && order % 4 == 0 && order <= LARGEST_FACTOR && after > 0, "a factor's order is a multiple of four");
    const auto *signs = reinterpret_cast<const int8_t *>(entries);
    const ptrdiff_t padded = (order + COLUMNS - 1) / COLUMNS * COLUMNS;
    if (after >= COLUMNS) {
        std::vector<Factor::Term> &terms = terms_.emplace_back();
        for (ptrdiff_t at = 0; at < order * order; at += 4) terms.push_back(term_of(signs + at));
        return {order, after, terms.data(), nullptr, padded};
    }
    std::vector<float> &columns = signs_.emplace_back(static_cast<size_t>(order * padded), 0.0f);
    for (ptrdiff_t output = 0; output < order; ++output)
        for (ptrdiff_t input = 0; input < order; ++input)
            columns[static_cast<size_t>(input * padded + output)] = signs[output * order + input];
    return {order, after, nullptr, columns.data(), padded};
}

}  // namespace quept
