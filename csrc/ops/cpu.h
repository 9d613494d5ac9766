// How the CPU backend multiplies, for yardsticks.
#pragma once

#include <c10/core/ScalarType.h>

#include <string>

namespace cac {

// A product of two features is a sum of `products` products of `type`.
struct Multiplication {
  std::string instruction_set;
  at::ScalarType type;
  int products;
};

// Features of this type, with the instruction sets in use and torch's precision of float32.
Multiplication cpu_multiplication(at::ScalarType features);

}  // namespace cac
