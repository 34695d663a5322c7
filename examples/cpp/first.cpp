// Causal attention from C++: views of the program's own memory, errors as exceptions.
#include <cmath>
#include <cstdio>
#include <hexad/hexad.hpp>
#include <vector>

int main() {
  const int64_t heads = 4, rows = 16, dim = 32;
  std::vector<float> q(heads * rows * dim), out(q.size()), lse(heads * rows);
  for (size_t i = 0; i < q.size(); ++i) q[i] = std::sin(float(i));

  const auto x = hexad::view(q, {1, heads, rows, dim});
  const int64_t no_limit = -1;
  hexad::call(hexad_attention, x, x, x, nullptr, nullptr, nullptr,
              hexad::view(out, {1, heads, rows, dim}), hexad::view(lse, {1, heads, rows}), 1,
              no_limit, no_limit, 0.0f, float(1 / std::sqrt(double(dim))));

  // The first row sees itself alone.
  float largest = 0;
  for (int64_t i = 0; i < dim; ++i) largest = std::fmax(largest, std::fabs(out[i] - q[i]));
  std::printf("largest difference of the first row from its value: %g\n", largest);

  try {
    hexad::call(hexad_rope, x, x, x, nullptr, x, 0);
  } catch (const hexad::Error& error) {
    std::printf("refused: %s\n", error.what());
  }
}
