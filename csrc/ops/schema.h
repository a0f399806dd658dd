#pragma once

// Registration of schemas with tags. The stable headers have it from target
// version 2.12 on; our target is 2.11, where the functions below do not exist.
// They are weak here, so that the library loads under both and tags the ops
// where it can. To be deleted for m.def(schema, {tags}) at target 2.12.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <initializer_list>

extern "C" {
__attribute__((weak)) AOTITorchError
torch_library_def_with_tags(TorchLibraryHandle self, const char* schema,
                            const int32_t* tags, int32_t num_tags);
__attribute__((weak)) int32_t torch_tag_pt2_compliant_tag();
}

namespace pathways {

// Defines schemas in the namespace `pathways` while the library is loaded, each
// with the tag that tells torch.compile that its fake kernel can be relied on.
class Schemas {
 public:
  Schemas(const char* file, uint32_t line,
          std::initializer_list<const char*> schemas) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_library_init_fragment("pathways", file, line, &library_));
    for (const char* schema : schemas) {
      if (&torch_library_def_with_tags != nullptr &&
          &torch_tag_pt2_compliant_tag != nullptr) {
        const int32_t tag = torch_tag_pt2_compliant_tag();
        TORCH_ERROR_CODE_CHECK(
            torch_library_def_with_tags(library_, schema, &tag, 1));
      } else {
        TORCH_ERROR_CODE_CHECK(aoti_torch_library_def(library_, schema));
      }
    }
  }

  Schemas(const Schemas&) = delete;
  Schemas& operator=(const Schemas&) = delete;

  ~Schemas() { aoti_torch_delete_library_object(library_); }

 private:
  TorchLibraryHandle library_ = nullptr;
};

}  // namespace pathways

#define PATHWAYS_SCHEMAS(...)                                           \
  static const ::pathways::Schemas pathways_schemas(__FILE__, __LINE__, \
                                                    __VA_ARGS__)
