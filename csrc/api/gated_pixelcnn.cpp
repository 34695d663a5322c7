#include "op/gated_pixelcnn.h"

#include "api/rows.h"
#include "cpu/table.h"

using namespace hexad;

namespace {

int64_t within(int64_t value, const char* name, int64_t low, int64_t high) {
  HEXAD_REQUIRE(value >= low && value <= high, "%s: is %lld, wants %lld to %lld", name,
                (long long)value, (long long)low, (long long)high);
  return value;
}

}  // namespace

extern "C" hexad_status hexad_gated_pixelcnn(hexad_tensor* image, const hexad_tensor* weights,
                                             hexad_tensor* cache, const hexad_tensor* seeds,
                                             hexad_tensor* logits, int64_t levels, int64_t channels,
                                             int64_t layers, int64_t kernel, int64_t begin,
                                             float temperature, hexad_stream) {
  return guarded([&] {
    require_rank(image, "image", 3);
    require_rank(weights, "weights", 1);
    require_rank(cache, "cache", 2);
    require_rank(logits, "logits", 3);
    require_dtype(*image, "image", DType::i64);
    const hexad_tensor* tensors[] = {image, weights, cache, logits};
    const char* names[] = {"image", "weights", "cache", "logits"};
    for (int i = 0; i < 4; ++i) {
      require_device(*tensors[i], names[i], *image);
      require_contiguous(*tensors[i], names[i]);
      if (i) require_dtype(*tensors[i], names[i], DType::f32);
    }
    GatedPixelcnnArgs a{};
    a.shape = {within(levels, "levels", 2, 2 * kPixelcnnChannels),
               within(image->shape[1], "image's height", 1, 4096),
               within(image->shape[2], "image's width", 1, 4096),
               within(channels, "channels", 1, kPixelcnnChannels),
               within(layers, "layers", 1, 1 << 16),
               within(kernel, "kernel", 1, 1 << 10)};
    HEXAD_REQUIRE(kernel % 2 == 1, "kernel: is %lld, wants an odd size", (long long)kernel);
    a.batch = image->shape[0];
    a.begin = within(begin, "begin", 0, a.shape.places());
    a.end = begin + logits->shape[1];
    within(a.end, "end", begin, a.shape.places());
    require_size(*weights, "weights", 0, a.shape.weights());
    require_size(*cache, "cache", 0, a.batch);
    require_size(*cache, "cache", 1, a.shape.cache());
    require_size(*logits, "logits", 0, a.batch);
    require_size(*logits, "logits", 2, levels);
    if (seeds) {
      require_rank(seeds, "seeds", 1);
      require_dtype(*seeds, "seeds", DType::i64);
      require_device(*seeds, "seeds", *image);
      require_contiguous(*seeds, "seeds");
      require_size(*seeds, "seeds", 0, a.batch);
      a.seeds = data<int64_t>(*seeds);
    }
    const bool draw = seeds != nullptr;
    a.temperature = temperature;
    HEXAD_REQUIRE(temperature >= 0 && temperature <= 3.4e38f,
                  "temperature: is %g, wants a finite number of at least 0", temperature);
    require_cpu(*image, "gated_pixelcnn");
    a.weights = data<float>(*weights);
    a.image = data<int64_t>(*image);
    a.cache = data<float>(*cache);
    a.cache_stride = a.shape.cache();
    a.logits = data<float>(*logits);
    if (a.begin == a.end || !a.batch) return;
    const int64_t places = a.shape.places();
    for (int64_t b = 0; b < a.batch; ++b) {
      const float held = a.cache[b * a.cache_stride];
      HEXAD_REQUIRE(!begin || held == float(begin),
                    "cache: row %lld holds %g pixels, wants begin's %lld", (long long)b, held,
                    (long long)begin);
      for (int64_t p = a.begin; p < a.end; ++p) {
        int64_t& level = a.image[b * places + p];
        if (draw) level = 0;
        HEXAD_REQUIRE(level >= 0 && level < levels,
                      "image: pixel %lld of row %lld is %lld, wants levels 0 to %lld", (long long)p,
                      (long long)b, (long long)level, (long long)levels - 1);
      }
    }
    cpu().gated_pixelcnn(a);
    for (int64_t b = 0; draw && b < a.batch; ++b)
      for (int64_t p = a.begin; p < a.end; ++p)
        HEXAD_REQUIRE(a.image[b * places + p] >= 0,
                      "logits: those of pixel %lld of row %lld have NaN or are -inf everywhere",
                      (long long)p, (long long)b);
  });
}
