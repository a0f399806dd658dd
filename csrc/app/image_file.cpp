#include "image_file.h"

// jpeglib.h wants these two before it.
#include <csetjmp>
#include <cstdio>

#include <jerror.h>
#include <jpeglib.h>
#include <png.h>

#include <pathways/explainer.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

namespace pathways::app {
namespace {

using Bytes = std::vector<uint8_t>;

// What a decoder leaves: interleaved samples before Pillow's conversions.
struct Decoded {
  int64_t height = 0;
  int64_t width = 0;
  int64_t channels = 0;  // 1 grey, 3 RGB, 4 CMYK
  Bytes values;
};

// More than any image of kMaxPixels takes, eight bytes for each.
constexpr uint64_t kMaxBytes = 1ull << 31;

bool starts_with(const Bytes& bytes, std::initializer_list<int> start) {
  return bytes.size() >= start.size() &&
         std::equal(start.begin(), start.end(), bytes.begin());
}

bool is_png(const Bytes& bytes) {
  return starts_with(bytes, {0x89, 'P', 'N', 'G'});
}

bool is_jpeg(const Bytes& bytes) {
  return starts_with(bytes, {0xff, 0xd8, 0xff});
}

// The bytes of a PNG or JPEG file; of anything else only the first are read.
Bytes read_bytes(const std::string& path) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none)) {
    throw Error("there is no image file " + path);
  }
  std::ifstream file(path, std::ios::binary);
  const uint64_t size = std::filesystem::file_size(path, none);
  constexpr uint64_t kStart = 4;
  Bytes bytes(std::min(size, kStart));
  const auto read = [&](size_t from) {
    file.read(reinterpret_cast<char*>(bytes.data() + from),
              static_cast<std::streamsize>(bytes.size() - from));
    if (!file) {
      throw Error(path + " cannot be read");
    }
  };
  read(0);
  if (!is_png(bytes) && !is_jpeg(bytes)) {
    throw Error(path + " must be a PNG or JPEG image, got something else");
  }
  if (size > kMaxBytes) {
    throw Error(path + " has " + std::to_string(size) + " bytes, more than " +
                std::to_string(kMaxBytes) + " are refused");
  }
  const size_t start = bytes.size();
  bytes.resize(size);
  read(start);
  return bytes;
}

void check_size(int64_t width, int64_t height) {
  if (width * height > kMaxPixels) {
    throw Error("it has " + std::to_string(width) + " x " +
                std::to_string(height) + " pixels, more than " +
                std::to_string(kMaxPixels) + " are refused");
  }
}

// -------------------------------------------------------------------- PNG

// libpng calls back and leaves by longjmp: nothing between the two may have a
// destructor, and what is changed after setjmp must not be a local variable.
class PngReader {
 public:
  explicit PngReader(const Bytes& bytes) : bytes_(bytes) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, &fail, &ignore);
    info_ = png_ == nullptr ? nullptr : png_create_info_struct(png_);
    if (info_ == nullptr) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      throw std::bad_alloc();
    }
  }
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  Decoded read() {
    if (!header()) {
      throw Error(message_);
    }
    check_size(image_.width, image_.height);
    const size_t row = static_cast<size_t>(row_bytes_);
    samples_.resize(row * static_cast<size_t>(image_.height));
    rows_.resize(static_cast<size_t>(image_.height));
    for (size_t i = 0; i < rows_.size(); ++i) {
      rows_[i] = samples_.data() + i * row;
    }
    if (!body()) {
      throw Error(message_);
    }
    if (wide_grey_) {
      // 16 bits of grey, most significant first; 65535 is white.
      image_.values.resize(samples_.size() / 2);
      for (size_t i = 0; i < image_.values.size(); ++i) {
        const int value = samples_[2 * i] << 8 | samples_[2 * i + 1];
        image_.values[i] = static_cast<uint8_t>(value / 257);
      }
    } else {
      image_.values = std::move(samples_);
    }
    return std::move(image_);
  }

 private:
  bool header() {
    if (setjmp(png_jmpbuf(png_)) != 0) {
      return false;
    }
    png_set_read_fn(png_, this, &feed);
    png_read_info(png_, info_);
    const int color = png_get_color_type(png_, info_);
    const int depth = png_get_bit_depth(png_, info_);
    wide_grey_ = color == PNG_COLOR_TYPE_GRAY && depth == 16;
    if (color == PNG_COLOR_TYPE_PALETTE) {
      png_set_palette_to_rgb(png_);
    }
    if (color == PNG_COLOR_TYPE_GRAY && depth < 8) {
      png_set_expand_gray_1_2_4_to_8(png_);
    }
    if (depth == 16 && !wide_grey_) {
      png_set_strip_16(png_);
    }
    png_set_strip_alpha(png_);
    png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    image_.width = png_get_image_width(png_, info_);
    image_.height = png_get_image_height(png_, info_);
    image_.channels = png_get_channels(png_, info_);
    row_bytes_ = static_cast<int64_t>(png_get_rowbytes(png_, info_));
    return true;
  }

  bool body() {
    if (setjmp(png_jmpbuf(png_)) != 0) {
      return false;
    }
    png_read_image(png_, rows_.data());
    png_read_end(png_, nullptr);
    return true;
  }

  static void feed(png_structp png, png_bytep to, size_t count) {
    auto* self = static_cast<PngReader*>(png_get_io_ptr(png));
    if (count > self->bytes_.size() - self->at_) {
      png_error(png, "the file ends too early");
    }
    std::memcpy(to, self->bytes_.data() + self->at_, count);
    self->at_ += count;
  }

  static void fail(png_structp png, png_const_charp message) {
    auto* self = static_cast<PngReader*>(png_get_error_ptr(png));
    std::snprintf(self->message_, sizeof(self->message_), "%s", message);
    png_longjmp(png, 1);
  }

  static void ignore(png_structp, png_const_charp) {}

  const Bytes& bytes_;
  size_t at_ = 0;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  Decoded image_;
  int64_t row_bytes_ = 0;
  bool wide_grey_ = false;
  Bytes samples_;
  std::vector<png_bytep> rows_;
  char message_[200] = "";
};

// ------------------------------------------------------------------- JPEG

// The same holds for libjpeg.
class JpegReader {
 public:
  explicit JpegReader(const Bytes& bytes) : bytes_(bytes) {
    jpeg_.err = jpeg_std_error(&errors_);
    jpeg_.client_data = this;
    errors_.error_exit = &fail;
    errors_.emit_message = &warn;
  }
  ~JpegReader() { jpeg_destroy_decompress(&jpeg_); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  Decoded read() {
    if (!header()) {
      throw Error(message_);
    }
    check_size(image_.width, image_.height);
    image_.values.resize(
        static_cast<size_t>(image_.width * image_.height * image_.channels));
    if (!body()) {
      throw Error(message_);
    }
    if (image_.channels == 4 && jpeg_.saw_Adobe_marker) {
      // Adobe's programs store the ink that is left out.
      for (uint8_t& value : image_.values) {
        value = static_cast<uint8_t>(255 - value);
      }
    }
    return std::move(image_);
  }

 private:
  bool header() {
    if (setjmp(jump_) != 0) {
      return false;
    }
    jpeg_create_decompress(&jpeg_);
    jpeg_mem_src(&jpeg_, bytes_.data(), bytes_.size());
    jpeg_read_header(&jpeg_, TRUE);
    const int components = jpeg_.num_components;
    jpeg_.out_color_space = components == 1   ? JCS_GRAYSCALE
                            : components == 4 ? JCS_CMYK
                                              : JCS_RGB;
    image_.width = jpeg_.image_width;
    image_.height = jpeg_.image_height;
    image_.channels = components == 1 || components == 4 ? components : 3;
    return true;
  }

  bool body() {
    if (setjmp(jump_) != 0) {
      return false;
    }
    jpeg_start_decompress(&jpeg_);
    while (jpeg_.output_scanline < jpeg_.output_height) {
      JSAMPROW row = image_.values.data() +
                     static_cast<size_t>(jpeg_.output_scanline) *
                         static_cast<size_t>(image_.width * image_.channels);
      jpeg_read_scanlines(&jpeg_, &row, 1);
    }
    jpeg_finish_decompress(&jpeg_);
    return true;
  }

  [[noreturn]] static void fail(j_common_ptr jpeg) {
    auto* self = static_cast<JpegReader*>(jpeg->client_data);
    char text[JMSG_LENGTH_MAX];
    jpeg->err->format_message(jpeg, text);
    std::snprintf(self->message_, sizeof(self->message_), "%s", text);
    std::longjmp(self->jump_, 1);
  }

  // libjpeg goes on after the end of the file, and fills in grey.
  static void warn(j_common_ptr jpeg, int level) {
    if (level < 0 && jpeg->err->msg_code == JWRN_JPEG_EOF) {
      fail(jpeg);
    }
  }

  const Bytes& bytes_;
  jpeg_decompress_struct jpeg_ = {};
  jpeg_error_mgr errors_ = {};
  std::jmp_buf jump_;
  Decoded image_;
  char message_[JMSG_LENGTH_MAX] = "";
};

// ------------------------------------------------------------ conversions

uint8_t clipped(int value) {
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// a * b / 255, rounded.
int multiplied(int a, int b) {
  const int product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

void rgb_of(const uint8_t* from, int64_t channels, uint8_t* rgb) {
  for (int i = 0; i < 3; ++i) {
    if (channels == 4) {
      const int white = 255 - from[3];
      rgb[i] = clipped(white - multiplied(from[i], white));
    } else {
      rgb[i] = channels == 1 ? from[0] : from[i];
    }
  }
}

// ITU-R 601-2 luma in fixed point.
uint8_t grey_of(const uint8_t* rgb) {
  return static_cast<uint8_t>(
      (rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16);
}

Pixels converted(Decoded image, int64_t channels) {
  Pixels pixels{image.height, image.width, channels, {}};
  if (image.channels == channels) {
    pixels.values = std::move(image.values);
    return pixels;
  }
  const int64_t count = image.height * image.width;
  pixels.values.resize(static_cast<size_t>(count * channels));
  for (int64_t i = 0; i < count; ++i) {
    uint8_t rgb[3];
    rgb_of(image.values.data() + i * image.channels, image.channels, rgb);
    uint8_t* to = pixels.values.data() + i * channels;
    if (channels == 1) {
      *to = grey_of(rgb);
    } else {
      std::memcpy(to, rgb, sizeof(rgb));
    }
  }
  return pixels;
}

}  // namespace

Pixels read_image(const std::string& path, int64_t channels) {
  const Bytes bytes = read_bytes(path);
  try {
    return converted(
        is_png(bytes) ? PngReader(bytes).read() : JpegReader(bytes).read(),
        channels);
  } catch (const std::exception& error) {
    throw Error(path + " is not a readable image (" + error.what() + ")");
  }
}

void write_png(const std::string& path, const Pixels& pixels) {
  png_image image = {};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(pixels.width);
  image.height = static_cast<png_uint_32>(pixels.height);
  image.format = pixels.channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  namespace fs = std::filesystem;
  std::error_code failed;
  // A symbolic link is followed, not replaced.
  const fs::path final = fs::weakly_canonical(path, failed);
  if (failed || (fs::exists(final, failed) && !fs::is_regular_file(final))) {
    throw Error(path + " cannot be written (" +
                (failed ? failed.message() : "it is not a regular file") + ")");
  }
  // A name that no other file has, nor another program takes at the same time.
  std::string name = ".";
  name += final.filename().string();
  for (const unsigned part :
       {static_cast<unsigned>(getpid()), std::random_device{}()}) {
    name += '.';
    name += std::to_string(part);
  }
  const fs::path temporary = final.parent_path() / (name + ".tmp");
  const bool written =
      png_image_write_to_file(&image, temporary.c_str(), 0,
                              pixels.values.data(), 0, nullptr) != 0;
  if (written) {
    fs::rename(temporary, final, failed);
  }
  if (!written || failed) {
    std::error_code none;
    fs::remove(temporary, none);
    throw Error(path + " cannot be written (" +
                (written ? failed.message() : std::string(image.message)) +
                ")");
  }
}

}  // namespace pathways::app
