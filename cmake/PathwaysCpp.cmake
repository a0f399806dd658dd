# What is written against the C++ interface of torch: gradients and the explainer. That interface has no stable ABI,
# so these targets are compiled together with the program that links them, against its own torch. Used by the build
# of pathways and, from an install tree or a wheel, by find_package(Pathways).

# The torch (or libtorch) to compile against: PATHWAYS_TORCH_DIR, what find_package(Torch) has found, or the first on
# CMAKE_PREFIX_PATH, which may name the prefix or its share/cmake as torch.utils.cmake_prefix_path does. Found
# without find_package(Torch), which for a CUDA build insists on a CUDA toolkit.
function(pathways_find_torch result)
  set(candidates "${PATHWAYS_TORCH_DIR}" "${TORCH_INSTALL_PREFIX}")
  if(Torch_DIR)
    list(APPEND candidates "${Torch_DIR}/../../..")
  endif()
  foreach(prefix IN LISTS CMAKE_PREFIX_PATH)
    list(APPEND candidates "${prefix}" "${prefix}/../..")
  endforeach()
  foreach(candidate IN LISTS candidates)
    if(candidate AND EXISTS "${candidate}/include/torch/csrc/stable/library.h")
      get_filename_component(found "${candidate}" REALPATH)
      set(${result} "${found}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(${result} "" PARENT_SCOPE)
endfunction()

# The target pathways_torch: headers and libraries of torch, with CUDA where it has it.
function(pathways_add_torch torch_dir)
  if(TARGET pathways_torch)
    return()
  endif()
  add_library(pathways_torch INTERFACE)
  target_include_directories(pathways_torch SYSTEM INTERFACE ${torch_dir}/include
                                                             ${torch_dir}/include/torch/csrc/api/include)
  target_compile_features(pathways_torch INTERFACE cxx_std_20)
  set(libraries ${torch_dir}/lib/libtorch_cpu.so ${torch_dir}/lib/libc10.so)
  if(EXISTS ${torch_dir}/lib/libtorch_cuda.so)
    # Nothing names a symbol of it: it registers its kernels when it is loaded.
    list(APPEND libraries "-Wl,--push-state,--no-as-needed,${torch_dir}/lib/libtorch_cuda.so,--pop-state")
  endif()
  target_link_libraries(pathways_torch INTERFACE ${libraries})
  # Libraries of a CUDA wheel need others that the linker cannot see; the loader finds them.
  target_link_options(pathways_torch INTERFACE LINKER:--allow-shlib-undefined)
endfunction()

# The targets Pathways::autograd and Pathways::explainer, from `sources` (holds autograd/ and explainer/). Both bring
# Pathways::pathways along.
function(pathways_add_cpp sources)
  if(TARGET pathways_autograd)
    return()
  endif()
  # Objects: their registrations are named by nobody, and a linker would leave them in an archive.
  add_library(pathways_autograd OBJECT EXCLUDE_FROM_ALL ${sources}/autograd/adaptive_avg_max_pool2d.cpp
                                                        ${sources}/autograd/binarize.cpp
                                                        ${sources}/autograd/gated_forward.cpp)
  target_link_libraries(pathways_autograd PUBLIC Pathways::pathways pathways_torch)
  add_library(Pathways::autograd ALIAS pathways_autograd)
  find_package(nlohmann_json QUIET)
  if(nlohmann_json_FOUND)
    add_library(
      pathways_explainer STATIC EXCLUDE_FROM_ALL
      ${sources}/explainer/archive.cpp ${sources}/explainer/compiled.cpp ${sources}/explainer/explainer.cpp
      ${sources}/explainer/info.cpp ${sources}/explainer/torchscript.cpp)
    target_link_libraries(pathways_explainer PUBLIC Pathways::pathways pathways_torch
                                             PRIVATE nlohmann_json::nlohmann_json)
    add_library(Pathways::explainer ALIAS pathways_explainer)
  endif()
endfunction()
