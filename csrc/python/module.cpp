// pathways._C: what the dispatcher cannot carry. No torch tensor and no torch
// library: only numpy and the torch-free headers of csrc/core.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "../core/bits.h"
#include "../core/cpu_capability.h"

namespace py = pybind11;

namespace pathways {
namespace {

std::string shape_name(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  }
  return text + "]";
}

std::string dtype_name(const py::array& array) {
  return py::str(array.dtype()).cast<std::string>();
}

py::array_t<int64_t> pack_bits(const py::array& mask) {
  const char kind = mask.dtype().kind();
  if (kind != 'b' && kind != 'i' && kind != 'u' && kind != 'f') {
    throw py::type_error(
        "pack_bits: mask must be bool, integer or floating point, got " +
        dtype_name(mask));
  }
  if (mask.ndim() != 2) {
    throw py::value_error("pack_bits: mask must have shape [N, D], got " +
                          shape_name(mask));
  }
  // Nonzero, as numpy understands it for every dtype and stride, in one byte
  // per neuron.
  const auto bits =
      py::array_t<bool, py::array::c_style | py::array::forcecast>(
          mask.attr("astype")("bool"));
  const int64_t rows = bits.shape(0);
  const int64_t size = bits.shape(1);
  const int64_t width = word_count(size);
  py::array_t<int64_t> words({rows, width});
  const bool* from = bits.data();
  auto* to = reinterpret_cast<uint64_t*>(words.mutable_data());
  {
    py::gil_scoped_release release;
    pack_rows(from, to, rows, size);
  }
  return words;
}

py::array_t<bool> unpack_bits(const py::array& packed, int64_t size) {
  if (!py::isinstance<py::array_t<int64_t>>(packed)) {
    throw py::type_error("unpack_bits: words must be int64, got " +
                         dtype_name(packed));
  }
  if (packed.ndim() != 2) {
    throw py::value_error(
        "unpack_bits: words must have shape [N, ceil(D / 64)], got " +
        shape_name(packed));
  }
  if (size < 0) {
    throw py::value_error("unpack_bits: size must not be negative, got " +
                          std::to_string(size));
  }
  if (packed.shape(1) != word_count(size)) {
    throw py::value_error("unpack_bits: words must have " +
                          std::to_string(word_count(size)) +
                          " words per row for size " + std::to_string(size) +
                          ", got " + std::to_string(packed.shape(1)));
  }
  const auto words =
      py::array_t<int64_t, py::array::c_style | py::array::forcecast>(packed);
  const int64_t rows = words.shape(0);
  py::array_t<bool> mask({rows, size});
  const auto* from = reinterpret_cast<const uint64_t*>(words.data());
  bool* to = mask.mutable_data();
  {
    py::gil_scoped_release release;
    unpack_rows(from, to, rows, size);
  }
  return mask;
}

py::dict build_info() {
  py::dict info;
  info["version"] = PATHWAYS_VERSION;
  info["compiler"] = PATHWAYS_COMPILER;
  info["build_type"] = PATHWAYS_BUILD_TYPE;
  info["torch_headers"] = PATHWAYS_TORCH_HEADERS;
  info["torch_target"] = PATHWAYS_TORCH_TARGET;
  info["cuda"] = std::string(PATHWAYS_CUDA_COMPILER).empty()
                     ? py::object(py::none())
                     : py::object(py::str(PATHWAYS_CUDA_COMPILER));
  info["cuda_architectures"] =
      py::str(PATHWAYS_CUDA_ARCHITECTURES).attr("split")();
  return info;
}

}  // namespace
}  // namespace pathways

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts, CPU capability and numpy entry points of pathways.";
  m.attr("__version__") = PATHWAYS_VERSION;
  m.def("build_info", &pathways::build_info,
        "Facts of this build: version, compiler, build_type, torch_headers "
        "(version compiled against), torch_target\n"
        "(oldest torch the library loads under), cuda (nvcc version or None), "
        "cuda_architectures (list).");
  m.def(
      "cpu_capability_found",
      [] {
        return std::string(
            pathways::capability_name(pathways::detect_cpu_capability()));
      },
      "Best instruction set level of this machine: 'scalar', 'avx2', 'avx512' "
      "or 'neon'.");
  m.def(
      "cpu_capability",
      [] {
        return std::string(
            pathways::capability_name(pathways::cpu_capability()));
      },
      "Level that the CPU kernels use: the best one, or what "
      "PATHWAYS_CPU_CAPABILITY forces.");
  m.def("pack_bits", &pathways::pack_bits, py::arg("mask"),
        "Pack a numpy array [N, D], nonzero = 1, into int64 words [N, ceil(D / "
        "64)]: neuron d in bit d % 64 of word\n"
        "d // 64, tail bits zero.");
  m.def("unpack_bits", &pathways::unpack_bits, py::arg("words"),
        py::arg("size"),
        "Unpack int64 words [N, ceil(size / 64)] into a bool numpy array [N, "
        "size].");
}
