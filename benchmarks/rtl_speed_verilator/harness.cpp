// Plays one fold of a GEMM to the model of top.sv again and again and prints the shortest time.
//
// Usage: Vtop INPUT OUTPUT ROWS COLS CYCLES M REPEATS
// INPUT holds, one after the other: the masks in the order below, each as the bytes of its vector; then for each clock cycle a byte
// of control (bits: reset, stream, load, load_last, write), ROWS activations and COLS weights, a byte each.
// OUTPUT gets the outputs, int32 [M][COLS]. On the terminal: seconds.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "Vtop.h"
#include "verilated.h"

static std::vector<uint8_t> contents(const char *path) {
  std::vector<uint8_t> bytes;
  FILE *file = fopen(path, "rb");
  if (!file) { perror(path); exit(1); }
  fseek(file, 0, SEEK_END);
  bytes.resize(ftell(file));
  rewind(file);
  if (fread(bytes.data(), 1, bytes.size(), file) != bytes.size()) { perror(path); exit(1); }
  fclose(file);
  return bytes;
}

int main(int argc, char **argv) {
  if (argc != 8) { fprintf(stderr, "usage: Vtop INPUT OUTPUT ROWS COLS CYCLES M REPEATS\n"); return 2; }
  const std::vector<uint8_t> input = contents(argv[1]);
  const size_t rows = atoi(argv[3]), cols = atoi(argv[4]), cycles = atoi(argv[5]), m = atoi(argv[6]);
  const int repeats = atoi(argv[7]);
  const size_t pes = rows * cols;

  VerilatedContext context;
  Vtop top{&context};
  top.clock = 0;
  top.eval();

  const uint8_t *next = input.data();
  auto set = [&](void *port, size_t bytes) { memcpy(port, next, bytes); next += bytes; };
  set(&top.bypass, (pes + 7) / 8);
  set(&top.weight_clear, pes);
  set(&top.weight_set, pes);
  set(&top.weight_load_clear, pes);
  set(&top.weight_load_set, pes);
  set(&top.activation_clear, pes);
  set(&top.activation_set, pes);
  set(&top.product_clear, 2 * pes);
  set(&top.product_set, 2 * pes);
  set(&top.psum_clear, 4 * pes);
  set(&top.psum_set, 4 * pes);
  set(&top.accumulator_clear, 4 * cols);
  set(&top.accumulator_set, 4 * cols);
  const uint8_t *const stimulus = next;
  const size_t step = 1 + rows + cols;
  if (size_t(input.data() + input.size() - stimulus) != cycles * step) { fprintf(stderr, "input has a wrong size\n"); return 1; }

  auto control = [&](uint8_t bits) {
    top.reset = bits & 1;
    top.stream = bits >> 1 & 1;
    top.load = bits >> 2 & 1;
    top.load_last = bits >> 3 & 1;
    top.write = bits >> 4 & 1;
  };
  auto clock = [&] {
    top.clock = 1;
    top.eval();
    top.clock = 0;
    top.eval();
  };

  std::vector<int32_t> outputs(m * cols);
  std::vector<size_t> count(cols);
  double best = 1e300;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    memset(outputs.data(), 0, outputs.size() * sizeof(int32_t));
    memset(count.data(), 0, count.size() * sizeof(size_t));
    control(1);
    top.set_masks = 1;
    clock();
    top.set_masks = 0;
    clock();
    const auto begun = std::chrono::steady_clock::now();
    // What is written shows two cycles after what it came from: registers on either side.
    for (size_t cycle = 0; cycle < cycles + 2; ++cycle) {
      if (cycle < cycles) {
        const uint8_t *given = stimulus + cycle * step;
        control(given[0]);
        memcpy(&top.activation_west, given + 1, rows);
        if (top.load) memcpy(&top.weight_north, given + 1 + rows, cols);
      } else {
        control(0);
      }
      clock();
      uint64_t written = top.written;
      if (cols > 64) { fprintf(stderr, "at most 64 columns\n"); return 1; }
      const int32_t *data = reinterpret_cast<const int32_t *>(&top.written_data);
      while (written) {
        const int column = __builtin_ctzll(written);
        written &= written - 1;
        if (count[column] < m) outputs[count[column]++ * cols + column] = data[column];
      }
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    if (seconds < best) best = seconds;
  }
  for (size_t column = 0; column < cols; ++column)
    if (count[column] != m) { fprintf(stderr, "column %zu has %zu outputs\n", column, count[column]); return 1; }
  FILE *file = fopen(argv[2], "wb");
  if (!file || fwrite(outputs.data(), sizeof(int32_t), outputs.size(), file) != outputs.size() || fclose(file)) { perror(argv[2]); return 1; }
  printf("%.9f\n", best);
  return 0;
}
