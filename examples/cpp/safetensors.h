// Reads a .safetensors file: 8 bytes of header length, a JSON header, then the tensors' bytes.
//
// A file from elsewhere may say anything, so nothing in it is believed: the header's length is
// capped before it is read, sizes are multiplied with a check, tensors must lie side by side from
// the first byte to the last, names are unique, and float tensors are finite.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Stored {
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;
};

class Safetensors {
 public:
  explicit Safetensors(const std::string& path) : path_(path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) fail("cannot be read");
    const uint64_t size = uint64_t(file.tellg());
    file.seekg(0);
    unsigned char head[8];
    if (size < 8 || !file.read(reinterpret_cast<char*>(head), 8)) fail("has no header");
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | head[i];
    if (length > kLongestHeader || length > size - 8)
      fail("has a header longer than the file may have");
    header_.resize(length);
    bytes_.resize(size - 8 - length);
    if (!file.read(header_.data(), std::streamsize(length))) fail("ends in its header");
    if (!file.read(bytes_.data(), std::streamsize(bytes_.size()))) fail("ends early");
    parse();
    check();
  }

  // The tensor `name` as float32 of that shape; bfloat16 is widened.
  std::vector<float> floats(const std::string& name, const std::vector<int64_t>& shape) const {
    const Stored& t = find(name, shape);
    const char* from = bytes_.data() + t.begin;
    std::vector<float> values(count(t));
    if (t.dtype == "F32") {
      if (!values.empty()) std::memcpy(values.data(), from, values.size() * 4);
    } else if (t.dtype == "BF16") {
      for (size_t i = 0; i < values.size(); ++i) {
        uint16_t half;
        std::memcpy(&half, from + 2 * i, 2);
        const uint32_t whole = uint32_t(half) << 16;
        std::memcpy(&values[i], &whole, 4);
      }
    } else {
      fail(name + " has dtype " + t.dtype + ", wants F32 or BF16");
    }
    for (float v : values)
      if (!std::isfinite(v)) fail(name + " holds a value that is not finite");
    return values;
  }

  std::vector<int32_t> integers(const std::string& name, const std::vector<int64_t>& shape) const {
    const Stored& t = find(name, shape);
    if (t.dtype != "I32") fail(name + " has dtype " + t.dtype + ", wants I32");
    std::vector<int32_t> values(count(t));
    if (!values.empty()) std::memcpy(values.data(), bytes_.data() + t.begin, values.size() * 4);
    return values;
  }

  bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  const std::vector<int64_t>& shape(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail("has no tensor " + name);
    return found->second.shape;
  }

 private:
  static constexpr uint64_t kLongestHeader = 16 << 20;

  [[noreturn]] void fail(const std::string& why) const {
    throw std::runtime_error(path_ + ": " + why);
  }

  const Stored& find(const std::string& name, const std::vector<int64_t>& want) const {
    if (shape(name) != want) fail(name + " has another shape than the model");
    return tensors_.at(name);
  }
  size_t count(const Stored& t) const { return size_t((t.end - t.begin) / width(t.dtype)); }
  uint64_t width(const std::string& dtype) const {
    static const std::map<std::string, uint64_t> known = {
        {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
        {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};
    const auto found = known.find(dtype);
    if (found == known.end()) fail("has a tensor of unknown dtype " + dtype);
    return found->second;
  }

  // The part of JSON that a header has: an object of objects of strings, numbers and lists of them.
  void skip() {
    while (at_ < header_.size() && std::strchr(" \t\r\n", header_[at_])) ++at_;
  }
  char peek() {
    skip();
    return at_ < header_.size() ? header_[at_] : '\0';
  }
  void expect(char c) {
    if (peek() != c)
      fail(std::string("its header wants '") + c + "' at byte " + std::to_string(at_));
    ++at_;
  }
  bool more(char end) {  // between the items of a list or an object
    if (peek() == ',') return ++at_, true;
    return expect(end), false;
  }
  std::string text() {
    expect('"');
    std::string found;
    while (at_ < header_.size() && header_[at_] != '"') {
      if (header_[at_] == '\\')
        fail("its header has an escaped character, which no name here wants");
      found += header_[at_++];
    }
    expect('"');
    return found;
  }
  uint64_t number() {
    if (peek() < '0' || peek() > '9')
      fail("its header wants a number at byte " + std::to_string(at_));
    uint64_t value = 0;
    for (; at_ < header_.size() && header_[at_] >= '0' && header_[at_] <= '9'; ++at_) {
      if (value > (uint64_t(1) << 58)) fail("its header has a number that is too large");
      value = value * 10 + uint64_t(header_[at_] - '0');
    }
    return value;
  }
  std::vector<uint64_t> numbers() {
    std::vector<uint64_t> found;
    expect('[');
    if (peek() == ']') return ++at_, found;
    do found.push_back(number());
    while (more(']'));
    return found;
  }
  void metadata() {
    expect('{');
    if (peek() == '}') return void(++at_);
    do text(), expect(':'), text();
    while (more('}'));
  }
  Stored tensor() {
    Stored t;
    std::vector<uint64_t> offsets;
    expect('{');
    do {
      const std::string key = text();
      expect(':');
      if (key == "dtype")
        t.dtype = text();
      else if (key == "shape")
        for (uint64_t n : numbers()) t.shape.push_back(int64_t(n));
      else if (key == "data_offsets")
        offsets = numbers();
      else
        fail("its header has an unknown key " + key);
    } while (more('}'));
    if (offsets.size() != 2) fail("a tensor without its two offsets");
    t.begin = offsets[0], t.end = offsets[1];
    return t;
  }
  void parse() {
    expect('{');
    if (peek() != '}') {
      do {
        const std::string name = text();
        expect(':');
        if (name == "__metadata__")
          metadata();
        else if (!tensors_.emplace(name, tensor()).second)
          fail(name + " is there twice");
      } while (more('}'));
    } else {
      ++at_;
    }
    if (peek() != '\0' || at_ != header_.size()) fail("has something behind its header");
  }
  void check() const {
    std::map<uint64_t, uint64_t> spans;
    for (const auto& [name, t] : tensors_) {
      uint64_t size = width(t.dtype);
      for (int64_t n : t.shape)
        if (__builtin_mul_overflow(size, uint64_t(n), &size)) fail(name + " is larger than memory");
      if (t.begin > t.end || t.end - t.begin != size)
        fail(name + " has offsets that are not its size");
      if (t.end > bytes_.size()) fail(name + " lies past the end of the file");
      if (size && !spans.emplace(t.begin, t.end).second) fail(name + " overlaps another tensor");
    }
    uint64_t next = 0;
    for (const auto& [begin, end] : spans) {
      if (begin != next) fail("has a gap or an overlap at byte " + std::to_string(begin));
      next = end;
    }
    if (next != bytes_.size()) fail("has bytes that belong to no tensor");
  }

  std::string path_, header_;
  std::vector<char> bytes_;
  std::map<std::string, Stored> tensors_;
  size_t at_ = 0;
};
