// A gated PixelCNN along its pixels: the vertical stack a row at a time, the horizontal stack a
// pixel at a time, for a few images together so that weights are read once for all of them. Sums
// run in maskedconv's order and everything else in the order of the equations, so the logits are
// those of the network over the whole image, bit for bit.
#include "op/gated_pixelcnn.h"

#include "cpu/parallel.h"
#include "cpu/weight_panel.h"
#include "op/sample.h"

namespace hexad {

namespace HEXAD_ISA {
void sample(const SampleArgs&);
}

namespace {

constexpr int64_t kScratch = kTileRows * 2 * kPixelcnnChannels;
constexpr int kTogether = 4;  // images at one pixel: twice 4 costs less than 6 and 2

struct Product {
  const float *panel, *bias;
  int64_t size, outputs;

  int64_t stride() const { return panels_of(outputs) * kLanes; }  // of the sums' rows
  void operator()(const float* const* x, int rows, Runs runs, float* sums) const {
    multiply_rows<Multiply>(x, rows, runs, panel, size * kLanes, panels_of(outputs), sums,
                            stride());
  }
};

struct Layer {
  Product vertical, down, horizontal, out;
  const float *vertical_place, *horizontal_place;
  int64_t v, h, d;  // in the cache: its input of the vertical stack, its output, what goes down
};

struct Reader {
  const float* at;
  const float* take(int64_t floats) {
    const float* from = at;
    at += floats;
    return from;
  }
  Product product(int64_t outputs, int64_t size) {
    const float* panel = take(PixelcnnShape::panel_floats(outputs, size));
    return {panel, take(outputs), size, outputs};
  }
};

// body(c, get, set) over n channels, 16 at a time: get(p) and set(p, v) are at channel c of p.
// Where a vector is two registers, one `get` for whole and partial ones would go through memory.
template <class Body>
HEXAD_INLINE void each(int64_t n, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes)
    body([&](const float* p) __attribute__((always_inline)) { return load(p + c); },
         [&](float* p, vf v) __attribute__((always_inline)) { store(p + c, v); });
  if (c < n)
    body([&](const float* p) __attribute__((always_inline)) { return load_part(p + c, n - c); },
         [&](float* p, vf v) __attribute__((always_inline)) { store_first(p + c, v, n - c); });
}

// to = (sums + bias) + place; to may be sums.
HEXAD_INLINE void add(const float* sums, const float* bias, const float* place, int64_t n,
                      float* to) {
  if (place)
    each(n, [&](auto get, auto set)
                __attribute__((always_inline)) { set(to, get(sums) + get(bias) + get(place)); });
  else
    each(n, [&](auto get, auto set)
                __attribute__((always_inline)) { set(to, get(sums) + get(bias)); });
}

// f(a) (1 + f(b / 2)) / 2 with f(t) = t / sqrt(1 + t^2), of x = (a, b); `residual` may be null.
HEXAD_INLINE void gate(const float* x, int64_t channels, const float* residual, float* to) {
  const vf one = set1(1.f), half = set1(0.5f);
  each(channels, [&](auto get, auto set) __attribute__((always_inline)) {
    const vf a = get(x), b = half * get(x + channels);
    const vf open = half + half * (b * (one / sqrt(one + b * b)));
    const vf y = a * (one / sqrt(one + a * a)) * open;
    if (residual)
      set(to, y + get(residual));
    else
      set(to, y);
  });
}

struct Images {
  const GatedPixelcnnArgs& a;
  const PixelcnnShape& s;
  int64_t first, count;

  float* cache(int64_t b) const { return a.cache + (first + b) * a.cache_stride; }
  int64_t* image(int64_t b) const { return a.image + (first + b) * s.places(); }
  float* logits(int64_t b, int64_t pixel) const {
    return a.logits + ((first + b) * (a.end - a.begin) + pixel - a.begin) * s.levels;
  }

  Layer layer(int64_t i) const {
    const int64_t c = s.channels, c2 = 2 * c;
    Reader read{a.weights + (i ? s.layer_weights(0) + (i - 1) * s.layer_weights(1) : 0)};
    Layer l;
    l.vertical = read.product(c2, s.vertical_size(i));
    l.vertical_place = read.take(s.places() * c2);
    l.down = read.product(c2, c2);
    l.horizontal = read.product(c2, s.horizontal_size(i));
    l.horizontal_place = read.take(s.places() * c2);
    l.out = read.product(c, c);
    l.v = PixelcnnShape::kHeader + (i ? s.layer_cache(0) + (i - 1) * s.layer_cache(1) : 0);
    l.h = l.v + (s.reach() + 1) * s.row_floats(i);
    l.d = l.h + s.across_floats();
    return l;
  }

  // Where the pixel at `col` of this row lies in the vertical stack's input.
  int64_t now(const Layer& l, int64_t i, int64_t col) const {
    return l.v + s.reach() * s.row_floats(i) + (s.reach() + col) * s.inputs(i);
  }

  // The vertical stack along a row; the rows above are complete.
  void start_row(int64_t row) const {
    const int64_t c2 = 2 * s.channels;
    float x[kScratch], sums[kScratch];
    for (int64_t i = 0; i < s.layers; ++i) {
      const Layer l = layer(i);
      if (row)
        for (int64_t b = 0; b < count; ++b) {
          float* rows = cache(b) + l.v;
          memmove(rows, rows + s.row_floats(i), s.reach() * s.row_floats(i) * sizeof(float));
        }
    }
    for (int64_t i = 0; i < s.layers; ++i) {
      const Layer l = layer(i);
      const Layer after = i + 1 < s.layers ? layer(i + 1) : Layer{};
      const Runs runs{s.vertical_runs(i), s.row_floats(i), s.kernel * s.inputs(i)};
      for (int64_t p = 0; p < count * s.width; p += kTileRows) {
        const int rows = int(std::min<int64_t>(kTileRows, count * s.width - p));
        const float* from[kTileRows];
        for (int r = 0; r < rows; ++r)
          from[r] = cache((p + r) / s.width) + l.v + (p + r) % s.width * s.inputs(i);
        l.vertical(from, rows, runs, x);
        for (int r = 0; r < rows; ++r) {
          const int64_t col = (p + r) % s.width;
          float *own = cache((p + r) / s.width), *mine = x + r * l.vertical.stride();
          add(mine, l.vertical.bias, l.vertical_place + (row * s.width + col) * c2, c2, mine);
          if (i + 1 < s.layers)
            gate(mine, s.channels, i ? own + now(l, i, col) : nullptr,
                 own + now(after, i + 1, col));
          from[r] = mine;
        }
        l.down(from, rows, {1, 0, c2}, sums);
        for (int r = 0; r < rows; ++r)
          add(sums + r * l.down.stride(), l.down.bias, nullptr, c2,
              cache((p + r) / s.width) + l.d + (p + r) % s.width * c2);
      }
    }
  }

  // The horizontal stack at one pixel, and its logits.
  void pixel(int64_t row, int64_t col) const {
    const int64_t c = s.channels, c2 = 2 * c, place = row * s.width + col;
    float x[kScratch], gated[kScratch / 2], sums[kScratch];
    const auto tiles = [&](auto&& body) {
      for (int64_t b = 0; b < count; b += kTogether)
        body(b, int(std::min<int64_t>(kTogether, count - b)));
    };
    int64_t before = 0;  // the last layer's output along the row
    for (int64_t i = 0; i < s.layers; ++i) {
      const Layer l = layer(i);
      const int64_t inputs = s.inputs(i), taps = s.reach() + (i > 0);
      const int64_t left = i ? before + col * inputs : now(l, i, col) - s.reach() * inputs;
      const int64_t here = i ? before + (s.reach() + col) * c : 0, to = l.h + (s.reach() + col) * c;
      tiles([&](int64_t b, int rows) {
        const float* from[kTileRows];
        for (int r = 0; r < rows; ++r) from[r] = cache(b + r) + left;
        l.horizontal(from, rows, {1, 0, taps * inputs}, x);
        for (int r = 0; r < rows; ++r) {
          float* mine = x + r * l.horizontal.stride();
          add(mine, l.horizontal.bias, cache(b + r) + l.d + col * c2, c2, mine);
          add(mine, l.horizontal_place + place * c2, nullptr, c2, mine);
          from[r] = gated + r * c;
          gate(mine, c, nullptr, gated + r * c);
        }
        l.out(from, rows, {1, 0, c}, sums);
        for (int r = 0; r < rows; ++r)
          add(sums + r * l.out.stride(), l.out.bias, i ? cache(b + r) + here : nullptr, c,
              cache(b + r) + to);
      });
      before = l.h;
    }
    Reader read{a.weights + s.layer_weights(0) + (s.layers - 1) * s.layer_weights(1)};
    const Product head = read.product(c2, c), last = read.product(s.levels, c);
    tiles([&](int64_t b, int rows) {
      const float* from[kTileRows];
      for (int r = 0; r < rows; ++r) from[r] = cache(b + r) + before + (s.reach() + col) * c;
      head(from, rows, {1, 0, c}, x);
      for (int r = 0; r < rows; ++r) {
        float* mine = x + r * head.stride();
        add(mine, head.bias, nullptr, c2, mine);
        from[r] = gated + r * c;
        gate(mine, c, nullptr, gated + r * c);
      }
      last(from, rows, {1, 0, c}, sums);
      for (int r = 0; r < rows; ++r)
        add(sums + r * last.stride(), last.bias, read.at + place * s.levels, s.levels,
            logits(b + r, place));
    });
  }

  // The level of each image's pixel; false where one can't be drawn.
  bool levels(int64_t pixel, int64_t* level) const {
    for (int64_t b = 0; b < count; ++b) level[b] = image(b)[pixel];
    if (!a.seeds) return true;
    SampleArgs draw{};
    draw.logits = logits(0, pixel);
    draw.batch = count;
    draw.vocabulary = s.levels;
    draw.logits_stride = (a.end - a.begin) * s.levels;
    draw.seeds = a.seeds + first;
    draw.position.all = pixel;
    draw.temperature.all = a.temperature;
    draw.top_p.all = 1;
    draw.out = level;
    HEXAD_ISA::sample(draw);
    bool drawn = true;
    for (int64_t b = 0; b < count; ++b) {
      image(b)[pixel] = level[b];
      drawn = drawn && level[b] >= 0;
    }
    return drawn;
  }

  void run() const {
    if (a.begin == 0)
      for (int64_t b = 0; b < count; ++b)
        memset(static_cast<void*>(cache(b)), 0, s.cache() * sizeof(float));
    const Layer planes = layer(0);
    const float scale = float(2.0 / double(s.levels - 1));
    for (int64_t p = a.begin; p < a.end; ++p) {
      const int64_t row = p / s.width, col = p % s.width;
      if (col == 0) start_row(row);
      pixel(row, col);
      int64_t level[kPixelcnnTile];
      if (!levels(p, level)) return;
      for (int64_t b = 0; b < count; ++b) {
        float* plane = cache(b) + now(planes, 0, col);
        plane[0] = float(level[b]) * scale - 1.f;
        plane[1] = 1.f;
        cache(b)[0] = float(p + 1);
      }
    }
  }
};

}  // namespace

namespace HEXAD_ISA {

void gated_pixelcnn(const GatedPixelcnnArgs& a) {
  const int64_t threads = parallel_threads(), share = (a.batch + threads - 1) / threads;
  parallel_for(a.batch, std::min(share, kPixelcnnTile), [&](int64_t begin, int64_t end) {
    for (; begin < end; begin += kPixelcnnTile)
      Images{a, a.shape, begin, std::min(kPixelcnnTile, end - begin)}.run();
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
