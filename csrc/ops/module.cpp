// The importable module cac_ext._C: loading it registers the operators; its functions report what
// was built and what runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels/cpu/cpu_capability.h"
#include "ops/aten_backend.h"
#include "ops/backend.h"
#include "ops/cpu.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled operators of cac_ext; see torch.ops.cac_ext and cac_ext.ops.";
  m.def("cpu_capabilities", &cac::cpu::cpu_capabilities,
        "Instruction sets built and supported here, least to most capable.");
  m.def("cpu_capability", &cac::cpu::cpu_capability, "The instruction set in use.");
  m.def("limit_cpu_capability", &cac::cpu::limit_cpu_capability, pybind11::arg("name"),
        "Use instruction sets up to this one only; for tests and benchmarks.");
  m.def(
      "cpu_peak_capabilities",
      [](int dtype) {
        return cac::cpu::peak_capabilities(cac::kernel_type(static_cast<at::ScalarType>(dtype)));
      },
      pybind11::arg("dtype"),
      "Those of cpu_capabilities() that multiply this type (an at::ScalarType) themselves.");
  m.def(
      "cpu_peak",
      [](int dtype, const std::string& name, int threads) {
        const auto type = static_cast<at::ScalarType>(dtype);
        const cac::cpu::PeakLoop* loop = cac::cpu::find_peak_loop(cac::kernel_type(type), name);
        if (loop == nullptr || threads < 1) {
          throw std::invalid_argument("no instruction set up to '" + name +
                                      "' multiplies this type, or fewer threads than one");
        }
        const pybind11::gil_scoped_release release;
        return cac::cpu::measure_peak(*loop, threads);
      },
      pybind11::arg("dtype"), pybind11::arg("name"), pybind11::arg("threads"),
      "Operations a second of multiply-adds on registers; see cac_ext.cpu_peak.");
  m.def(
      "cpu_multiplication",
      [](int dtype) {
        const cac::Multiplication used =
            cac::cpu_multiplication(static_cast<at::ScalarType>(dtype));
        return std::tuple<std::string, int, int>(used.instruction_set, static_cast<int>(used.type),
                                                 used.products);
      },
      pybind11::arg("dtype"),
      "How features of this type (an at::ScalarType) are multiplied now: instruction set, type of "
      "the factors, and how many of their products make one product of features.");
  m.def(
      "prepared_layout",
      [](const std::string& device, int dtype) {
        const cac::Backend& backend = cac::backend_for(c10::Device(device).type());
        const auto type = backend.compute_type(static_cast<at::ScalarType>(dtype));
        return std::pair<int, int64_t>(static_cast<int>(type), backend.channel_multiple(type));
      },
      pybind11::arg("device"), pybind11::arg("dtype"),
      "Type (as at::ScalarType) and channel multiple of prepared negatives.");
  m.def(
      "channel_multiple",
      [](const std::string& device, int dtype) {
        const cac::Backend& backend = cac::backend_for(c10::Device(device).type());
        return backend.channel_multiple(static_cast<at::ScalarType>(dtype));
      },
      pybind11::arg("device"), pybind11::arg("dtype"),
      "The multiple to which channels of prepared negatives of this type (as at::ScalarType) are "
      "padded.");
  m.def(
      "replace_cpu_backend_by_aten",
      [](bool replace) {
        static const cac::Backend* kernels = &cac::backend_for(at::kCPU);
        static const cac::AtenBackend aten(at::kCPU);
        cac::register_backend(at::kCPU, replace ? &aten : kernels);
      },
      pybind11::arg("replace"),
      "Run on the CPU the backend of plain ATen operations, to which other devices fall back; for "
      "tests.");
}
