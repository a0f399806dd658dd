// Whether a zip archive is whole. Torch's own reader is compiled without the
// check of checksums, and what lies in an explainer is code.

#include <caffe2/serialize/inline_container.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"

namespace pathways::detail {
namespace {

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value >> 1) ^ ((value & 1) != 0 ? 0xedb88320u : 0u);
    }
    table[i] = value;
  }
  return table;
}();

uint32_t crc_of(const unsigned char* bytes, size_t count, uint32_t crc) {
  for (size_t i = 0; i < count; ++i) {
    crc = (crc >> 8) ^ kCrcTable[(crc ^ bytes[i]) & 0xff];
  }
  return crc;
}

// A file read piece by piece; past its end, numbers are 0.
class File {
 public:
  explicit File(const std::string& path) : file_(path, std::ios::binary) {
    file_.seekg(0, std::ios::end);
    size_ = static_cast<uint64_t>(file_.tellg());
  }

  uint64_t size() const { return size_; }

  std::vector<unsigned char> read(uint64_t at, uint64_t count) {
    std::vector<unsigned char> bytes(count);
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(at));
    file_.read(reinterpret_cast<char*>(bytes.data()),
               static_cast<std::streamsize>(count));
    return bytes;
  }

  uint32_t checksum(uint64_t at, uint64_t count) {
    constexpr uint64_t kPiece = 1 << 20;
    uint32_t crc = 0xffffffffu;
    while (count > 0) {
      const uint64_t piece = count < kPiece ? count : kPiece;
      const std::vector<unsigned char> bytes = read(at, piece);
      crc = crc_of(bytes.data(), bytes.size(), crc);
      at += piece;
      count -= piece;
    }
    return ~crc;
  }

 private:
  std::ifstream file_;
  uint64_t size_ = 0;
};

// Little-endian, as zip has them.
template <typename T>
T number(const std::vector<unsigned char>& bytes, size_t at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T) && at + i < bytes.size(); ++i) {
    value = static_cast<T>(value | static_cast<T>(bytes[at + i]) << (8 * i));
  }
  return value;
}

}  // namespace

void check_archive(const std::string& path) {
  File file(path);
  // The end record is the last thing in what torch writes, without a comment.
  constexpr uint64_t kEndSize = 22;
  const auto damaged = [&](const std::string& what) {
    throw Error(path + " is damaged or not an explainer (" + what + ")");
  };
  if (file.size() < kEndSize) {
    damaged("it is too short for an archive");
  }
  const auto end = file.read(file.size() - kEndSize, kEndSize);
  if (number<uint32_t>(end, 0) != 0x06054b50) {
    damaged("it does not end as an archive does");
  }
  const uint64_t entries = number<uint16_t>(end, 10);
  const uint64_t size = number<uint32_t>(end, 12);
  const uint64_t begin = number<uint32_t>(end, 16);
  if (begin == 0xffffffffu || entries == 0xffff) {
    return;  // of 4 GiB and more, in a form that is not read here
  }
  if (begin + size > file.size()) {
    damaged("its table lies outside of it");
  }
  const auto table = file.read(begin, size);
  std::vector<std::pair<std::string, uint32_t>> packed;
  size_t at = 0;
  for (uint64_t i = 0; i < entries; ++i) {
    if (number<uint32_t>(table, at) != 0x02014b50) {
      damaged("its table cannot be read");
    }
    const auto crc = number<uint32_t>(table, at + 16);
    const uint64_t stored = number<uint32_t>(table, at + 20);
    const uint64_t name = number<uint16_t>(table, at + 28);
    const uint64_t local = number<uint32_t>(table, at + 42);
    // Before the data: a header of 30 bytes, the name and an extra field.
    const auto header = file.read(local, 30);
    const uint64_t data = local + 30 + number<uint16_t>(header, 26) +
                          number<uint16_t>(header, 28);
    const bool plain = number<uint16_t>(table, at + 10) == 0;
    if (data + stored > file.size() ||
        (plain && file.checksum(data, stored) != crc)) {
      damaged("an entry does not match its checksum");
    }
    if (!plain && at + 46 + name <= table.size()) {
      const auto* text = reinterpret_cast<const char*>(table.data()) + at + 46;
      packed.emplace_back(std::string(text, name), crc);
    }
    at += 46 + name + number<uint16_t>(table, at + 30) +
          number<uint16_t>(table, at + 32);
  }
  if (packed.empty()) {
    return;
  }
  // The checksum of a compressed entry (TorchScript's code) is that of its
  // contents. The reader names entries without the folder that all are in.
  try {
    caffe2::serialize::PyTorchStreamReader reader(path);
    for (const auto& [name, crc] : packed) {
      const auto [data, count] =
          reader.getRecord(name.substr(name.find('/') + 1));
      const auto* bytes = static_cast<const unsigned char*>(data.get());
      if (~crc_of(bytes, count, 0xffffffffu) != crc) {
        damaged("an entry does not match its checksum");
      }
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    damaged(sentence_of(error));
  }
}

}  // namespace pathways::detail
