// hexad for C++17, header only: views of the caller's memory, errors as exceptions, one `call`.
//
//   std::vector<float> x(2 * 8), w(4 * 8), y(2 * 4);
//   hexad::call(hexad_linear, hexad::view(x, {2, 8}), hexad::view(w, {4, 8}), nullptr, nullptr,
//               hexad::view(y, {2, 4}), 0);
//
// A view owns nothing and copies nothing: it is valid as long as the memory under it. An output is
// a view of elements that are not const; the compiler refuses another.
#ifndef HEXAD_HPP_
#define HEXAD_HPP_

#include <hexad/hexad.h>

#include <cstddef>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace hexad {

// A call that failed: what() is hexad_last_error(), status() the reason's kind.
class Error : public std::runtime_error {
 public:
  Error(hexad_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
  hexad_status status() const { return status_; }

 private:
  hexad_status status_;
};

inline void check(hexad_status status) {
  if (status != HEXAD_OK) throw Error(status, hexad_last_error());
}

// Throws unless the library in this process was built with the header that this program was.
inline void require_abi() {
  const int found = hexad_abi_version();
  if (found != HEXAD_ABI_VERSION)
    throw Error(HEXAD_UNSUPPORTED, "libhexad has ABI version " + std::to_string(found) +
                                       ", this program was built for " +
                                       std::to_string(HEXAD_ABI_VERSION));
}

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// DLPack's code and width of an element.
template <class T>
struct Element;
template <uint8_t Code, uint8_t Bits>
struct ElementOf {
  static constexpr uint8_t code = Code, bits = Bits;
};
template <>
struct Element<float> : ElementOf<2, 32> {};
template <>
struct Element<double> : ElementOf<2, 64> {};
template <>
struct Element<float16> : ElementOf<2, 16> {};
template <>
struct Element<bfloat16> : ElementOf<4, 16> {};
template <>
struct Element<int8_t> : ElementOf<0, 8> {};
template <>
struct Element<int32_t> : ElementOf<0, 32> {};
template <>
struct Element<int64_t> : ElementOf<0, 64> {};
template <>
struct Element<bool> : ElementOf<6, 8> {};

inline constexpr int kMostDimensions = 8;

// A tensor in somebody else's memory. Shape and strides lie in the view itself.
template <class T>
class View {
  using E = Element<std::remove_const_t<T>>;

 public:
  View(T* data, std::initializer_list<int64_t> shape, std::initializer_list<int64_t> strides = {},
       hexad_device_type device = HEXAD_CPU, int32_t device_id = 0)
      : data_(data), device_(device), device_id_(device_id), ndim_(int(shape.size())) {
    if (shape.size() > size_t(kMostDimensions) ||
        (strides.size() && strides.size() != shape.size()))
      throw std::invalid_argument("hexad::View: at most 8 dimensions, a stride for each or none");
    int i = 0;
    for (int64_t size : shape) shape_[i++] = size;
    int64_t packed = 1;
    for (i = ndim_ - 1; i >= 0; packed *= shape_[i--]) strides_[i] = packed;
    i = 0;
    for (int64_t stride : strides) strides_[i++] = stride;
  }
  // A view to be read, of one to be written.
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
  View(const View<U>& other)
      : data_(other.data()),
        device_(other.device()),
        device_id_(other.device_id()),
        ndim_(other.ndim()) {
    for (int i = 0; i < ndim_; ++i) shape_[i] = other.size(i), strides_[i] = other.stride(i);
  }

  T* data() const { return data_; }
  int ndim() const { return ndim_; }
  int64_t size(int i) const { return shape_[i]; }
  int64_t stride(int i) const { return strides_[i]; }
  hexad_device_type device() const { return device_; }
  int32_t device_id() const { return device_id_; }

  // What the C functions take, valid as long as the view.
  hexad_tensor tensor() const {
    return {const_cast<std::remove_const_t<T>*>(data_),
            device_,
            device_id_,
            ndim_,
            E::code,
            E::bits,
            1,
            const_cast<int64_t*>(shape_),
            const_cast<int64_t*>(strides_),
            0};
  }

 private:
  T* data_;
  hexad_device_type device_;
  int32_t device_id_;
  int ndim_;
  int64_t shape_[kMostDimensions] = {}, strides_[kMostDimensions] = {};
};

// A packed view of a container with data() and size(), which must hold that many elements.
template <class C>
auto view(C& memory, std::initializer_list<int64_t> shape) {
  using T = std::remove_pointer_t<decltype(memory.data())>;
  size_t count = 1;
  for (int64_t size : shape) {
    if (size < 0 || (size && count > memory.size() && memory.size()))
      count = memory.size() + 1;
    else
      count *= size_t(size);
  }
  if (count > memory.size())
    throw std::invalid_argument("hexad::view: the shape has more elements than the memory");
  return View<T>(memory.data(), shape);
}

namespace detail {

template <class P>
struct Slot {  // a number
  P value;
  template <class A>
  explicit Slot(A given) : value(P(given)) {
    static_assert(std::is_arithmetic_v<A> || std::is_enum_v<A> || std::is_pointer_v<A>);
  }
  P pass() { return value; }
};
template <bool Written>
struct Operand {
  hexad_tensor tensor{};
  bool present = true;
  explicit Operand(std::nullptr_t) : present(false) {}
  template <class T>
  explicit Operand(const View<T>& view) : tensor(view.tensor()) {
    static_assert(!Written || !std::is_const_v<T>, "an output: its elements must not be const");
  }
  template <class T>
  explicit Operand(const View<T>* view) : present(view != nullptr) {
    static_assert(!Written || !std::is_const_v<T>, "an output: its elements must not be const");
    if (view) tensor = view->tensor();
  }
  hexad_tensor* pass() { return present ? &tensor : nullptr; }
};
template <>
struct Slot<hexad_tensor*> : Operand<true> {
  using Operand::Operand;
};
template <>
struct Slot<const hexad_tensor*> : Operand<false> {
  using Operand::Operand;
};

}  // namespace detail

// Calls a function of hexad.h: a View (or a pointer to one, or nullptr where it may be absent) for
// each tensor, numbers as they are, and last the stream, which may be left out. Throws Error.
template <class... P, class... A>
void call(hexad_status (*function)(P...), const A&... given) {
  static const bool same_abi = (require_abi(), true);
  static_cast<void>(same_abi);
  if constexpr (sizeof...(A) + 1 == sizeof...(P)) {
    call(function, given..., static_cast<hexad_stream>(nullptr));
  } else {
    static_assert(sizeof...(A) == sizeof...(P), "as many arguments as the function of hexad.h has");
    check(function(detail::Slot<P>(given).pass()...));
  }
}

}  // namespace hexad
#endif
