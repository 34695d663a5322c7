// Text and images without Python, from the checkpoints that hexad ships:
//
//   generate gpt gpt.safetensors "The with statement" 60 [temperature] [seed]
//   generate realnvp realnvp.safetensors 8 digits.pgm [seed]
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <hexad/hexad.hpp>
#include <string>

#include "gpt.h"
#include "realnvp.h"

namespace {

int text(const std::string& path, const std::string& prompt, int count, float temperature,
         int64_t seed) {
  const Safetensors file(path);
  GPT model(file);
  const int64_t merges = file.shape("merges").at(0);
  const Vocabulary vocabulary(file.integers("merges", {merges, 2}));
  if (int64_t(vocabulary.size()) != model.vocab())
    throw std::runtime_error("merges: another vocabulary than the model's");
  std::vector<float> logits;
  for (int32_t token : vocabulary.encode(prompt)) logits = model.next(token);
  if (logits.empty()) throw std::runtime_error("the prompt is empty");
  std::vector<int64_t> seeds = {seed}, token(1);
  for (int i = 0; i < count; ++i) {
    hexad::call(hexad_sample, hexad::view(logits, {1, model.vocab()}), hexad::view(seeds, {1}),
                nullptr, nullptr, nullptr, nullptr, nullptr, hexad::view(token, {1}), nullptr, i,
                temperature, 0, 1.0f, 0.0f);
    std::fputs(vocabulary.text(token[0]).c_str(), stdout);
    if (i + 1 < count) logits = model.next(int32_t(token[0]));
  }
  std::fputc('\n', stdout);
  return 0;
}

int images(const std::string& path, int count, const std::string& out, int64_t seed) {
  const Safetensors file(path);
  const RealNVP model(file);
  std::vector<int64_t> seeds;
  for (int i = 0; i < count; ++i) seeds.push_back(seed + i);
  const std::vector<float> x = model.sample(seeds);
  const int64_t s = model.size();
  std::ofstream pgm(out, std::ios::binary);
  pgm << "P5\n" << s * count << " " << s << "\n255\n";
  for (int64_t row = 0; row < s; ++row)
    for (int64_t b = 0; b < count; ++b)
      for (int64_t col = 0; col < s; ++col)
        pgm.put(char(int(x[size_t((b * s + row) * s + col)] * 255 + 0.5f)));
  if (!pgm) throw std::runtime_error(out + ": cannot be written");
  std::printf("%d images of %lldx%lld in %s, kernels for %s\n", count, (long long)s, (long long)s,
              out.c_str(), hexad_isa());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string what = argc > 1 ? argv[1] : "";
    const auto number = [&](int i, double other) { return argc > i ? std::atof(argv[i]) : other; };
    if (what == "gpt" && argc >= 5)
      return text(argv[2], argv[3], std::atoi(argv[4]), float(number(5, 0)), int64_t(number(6, 0)));
    if (what == "realnvp" && argc >= 5)
      return images(argv[2], std::atoi(argv[3]), argv[4], int64_t(number(5, 0)));
    std::fprintf(stderr,
                 "generate gpt FILE PROMPT TOKENS [TEMPERATURE] [SEED]\ngenerate realnvp FILE "
                 "COUNT OUT.pgm [SEED]\n");
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "generate: %s\n", error.what());
    return 1;
  }
}
