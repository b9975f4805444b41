// A rotation as the kernels read it, made once for each.
#pragma once

#include <cstdint>
#include <deque>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace quept {

class Plan {
  public:
    // A factor: its order, the product of those behind it, and the address of its entries (order, order), int8.
    using FactorOf = std::tuple<ptrdiff_t, ptrdiff_t, uintptr_t>;
    // A part: its order, the power of two at its end, and the factors before that.
    using PartOf = std::tuple<ptrdiff_t, ptrdiff_t, std::vector<FactorOf>>;

    // Throws std::invalid_argument where the numbers do not fit each other.
    explicit Plan(const std::vector<PartOf> &parts);
    Plan(const Plan &) = delete;
    Plan &operator=(const Plan &) = delete;

    ptrdiff_t width() const { return width_; }
    const std::vector<Part> &parts() const { return parts_; }

  private:
    Factor made(const FactorOf &described);

    ptrdiff_t width_ = 0;
    // Deques, so that what is pointed to stays where it is.
    std::deque<std::vector<Factor>> factors_;
    std::deque<std::vector<Factor::Term>> terms_;
    std::deque<std::vector<float>> signs_;
    std::vector<Part> parts_;
};

}  // namespace quept
