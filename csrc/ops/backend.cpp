#include "ops/backend.h"

#include <c10/util/Exception.h>

#include <array>

namespace cac {
namespace {

auto& backends() {
  static std::array<const Backend*,
                    static_cast<size_t>(at::DeviceType::COMPILE_TIME_MAX_DEVICE_TYPES)>
      registered{};
  return registered;
}

}  // namespace

void register_backend(at::DeviceType device, const Backend* backend) {
  backends()[static_cast<size_t>(device)] = backend;
}

const Backend& backend_for(at::DeviceType device) {
  const Backend* backend = backends()[static_cast<size_t>(device)];
  TORCH_CHECK_NOT_IMPLEMENTED(backend != nullptr, "cac_ext was built without support for ", device,
                              " tensors; see cac_ext.build_info()");
  return *backend;
}

DType kernel_type(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return DType::kFloat64;
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      TORCH_INTERNAL_ASSERT(false, "unchecked type ", type);
  }
}

at::ScalarType scalar_type(DType type) {
  switch (type) {
    case DType::kFloat64:
      return at::kDouble;
    case DType::kFloat32:
      return at::kFloat;
    case DType::kBFloat16:
      return at::kBFloat16;
    case DType::kFloat16:
      return at::kHalf;
  }
  TORCH_INTERNAL_ASSERT(false, "unknown type");
}

}  // namespace cac
