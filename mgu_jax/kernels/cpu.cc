// The MGU over time on a CPU: all steps of a segment forward, and back with the gradients of all weights.
//
// cpu.py compiles this file for the processor it runs on. Each thread takes a part of the samples through all steps, so
// no thread waits for another between steps. The numbers in parentheses are those of the equations in layer/cell.py and
// layer/bptt.py. Shapes: xs [T, B, D]; states and gates [T, B, H]; arrays that a cell lacks, and gates that nobody asks
// for, are empty (nullptr here). Under vmap, every array has the members as its first axis.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {
namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRows = 8;  // of a vector register; rows of a product whose sums fit the registers
#elif defined(__AVX__)
constexpr int kBytes = 32, kRows = 6;
#else
constexpr int kBytes = 16, kRows = 6;
#endif
constexpr int kChunk = 192;  // rows (steps times samples) for which weight gradients are added up in registers
template <class R> constexpr int kLanes = kBytes / sizeof(R);
template <class R> constexpr int kPanel = 2 * kLanes<R>;  // columns that a product computes at once
template <class R> struct VectorOf {
  typedef R type __attribute__((vector_size(kBytes), aligned(sizeof(R)), may_alias));
};
template <class R> using Vector = typename VectorOf<R>::type;
template <class R> int padded(int n) { return (n + kPanel<R> - 1) / kPanel<R> * kPanel<R>; }

// ---- Memory: blocks that a thread keeps from call to call, since new pages cost as much as the arithmetic on them.

enum Block {
  kInput,
  kSum,
  kScaled,
  kBefore,
  kSeen,
  kGates,
  kZeros,
  kOnes,
  kAlpha,
  kX,
  kState,
  kReset,
  kdF,
  kdH,
  kdR,
  kdX,
  kBase,
  kWeights,
  kTotals,
  kBlocks
};

template <class R> R* block(Block which, size_t count) {
  struct Memory {
    R* data = nullptr;
    size_t size = 0;
    ~Memory() { ::operator delete(data, std::align_val_t(64)); }
  };
  static thread_local Memory kept[kBlocks];
  Memory& m = kept[which];
  if (m.size < count) {
    ::operator delete(m.data, std::align_val_t(64));
    m.data = static_cast<R*>(::operator new(count * sizeof(R), std::align_val_t(64)));
    m.size = count;
    std::fill(m.data, m.data + count, R(0));
  }
  return m.data;
}

// ---- Functions of one number, which the compiler turns into vectors. NaN stays NaN.

template <class R> struct Format;
template <> struct Format<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23, terms = 7;
  static constexpr float most = 87, magic = 12582912, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};
template <> struct Format<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52, terms = 13;
  static constexpr double most = 708, magic = 6755399441055744, ln2_high = 0.693145751953125,
                          ln2_low = 1.42860682030941723212e-6;
};

template <class R> struct Power {
  R two, rest;
};

// e^x = two + rest, where two is a power of 2: x = n ln 2 + r, and the series of e^r - 1 in r, |r| <= ln(2) / 2.
template <class R> inline Power<R> power(R x) {
  using F = Format<R>;
  x = x < -F::most ? -F::most : x;
  x = x > F::most ? F::most : x;
  const R shifted = x * R(1.44269504088896340736) + F::magic, n = shifted - F::magic;  // n is in shifted's last bits
  const R r = (x - n * F::ln2_high) - n * F::ln2_low;
  R series = 1;
#pragma GCC unroll 16
  for (int k = F::terms; k > 1; k--) series = series * r * (R(1) / k) + 1;
  using Bits = typename F::Bits;
  const Bits exponent = (__builtin_bit_cast(Bits, shifted) << F::mantissa) + __builtin_bit_cast(Bits, R(1));
  const R two = __builtin_bit_cast(R, exponent);
  return {two, two * (series * r)};
}

template <class R> inline R sigmoid(R x) {
  const Power<R> e = power(-x);
  return 1 / (1 + e.two + e.rest);
}

// The candidate's activation, and its derivative as a function of its value.
struct Tanh {
  template <class R> static R value(R x) {
    const Power<R> e = power(2 * x);
    const R less_one = e.two - 1 + e.rest;
    return less_one / (less_one + 2);
  }
  template <class R> static R slope(R c) { return 1 - c * c; }
};
struct Relu {
  template <class R> static R value(R x) { return x < 0 ? 0 : x; }
  template <class R> static R slope(R c) { return c > 0 ? 1 : 0; }
};
struct Identity {
  template <class R> static R value(R x) { return x; }
  template <class R> static R slope(R) { return 1; }
};

// ---- Products: out[i, j] (+)= the sum over all factors and k of a[i, k] b[k, j], for panels of columns j.

template <class R> struct Factor {
  const R* a;
  long row, step;    // from a[i, k] to a[i+1, k] and a[i, k+1]
  const R* b;        // nullptr leaves the factor out
  long panel, next;  // from a panel to the next one, and from b[k, j] to b[k+1, j]
  int length;        // number of k
};

template <class R, int M, int N>
inline void add_products(int length, const R* a, long row, long step, const R* b, long next, Vector<R> (&sums)[M][N]) {
  for (int k = 0; k < length; k++, a += step, b += next) {
    const Vector<R> left = *(const Vector<R>*)b, right = *(const Vector<R>*)(b + (N - 1) * kLanes<R>);
    for (int i = 0; i < M; i++) {
      sums[i][0] += a[i * row] * left;
      if constexpr (N > 1) sums[i][1] += a[i * row] * right;
    }
  }
}

// M rows of N vectors; a last panel of few columns has one vector.
template <class R, int M, int N>
void tile(int rows, const Factor<R>* first, const Factor<R>* last, int i, int j, R* out, long ld, bool add) {
  if constexpr (M > 1)
    if (rows < M) return tile<R, M - 1, N>(rows, first, last, i, j, out, ld, add);
  Vector<R> sums[M][N] = {};
  for (const Factor<R>* f = first; f < last; f++) {
    const R *a = f->a + i * f->row, *b = f->b + j / kPanel<R> * f->panel;
    int k = 0;
    if constexpr (M <= 2) {  // few rows: several sums in turn, since each addition waits for the one before
      Vector<R> more[4][M][N] = {};
      for (; k + 4 <= f->length; k += 4)
        for (int u = 0; u < 4; u++)
          add_products<R, M, N>(1, a + (k + u) * f->step, f->row, 0, b + (k + u) * f->next, 0, more[u]);
      for (auto& part : more)
        for (int r = 0; r < M; r++)
          for (int n = 0; n < N; n++) sums[r][n] += part[r][n];
    }
    add_products<R, M, N>(f->length - k, a + k * f->step, f->row, f->step, b + k * f->next, f->next, sums);
  }
  for (int r = 0; r < M; r++)
    for (int n = 0; n < N; n++) {
      Vector<R>* place = (Vector<R>*)(out + r * ld + n * kLanes<R>);
      *place = add ? *place + sums[r][n] : sums[r][n];
    }
}

template <class R>
void product(int rows, int columns, std::initializer_list<Factor<R>> factors, R* out, long ld, bool add = false) {
  Factor<R> present[2];
  int count = 0, tiles = (rows + kRows - 1) / kRows;
  for (const Factor<R>& f : factors)
    if (f.b) present[count++] = f;
  for (int j = 0; j < columns; j += kPanel<R>)
    for (int p = 0; p < tiles; p++) {
      const int i = rows * p / tiles, n = rows * (p + 1) / tiles - i;
      const auto tiles_of = columns - j > kLanes<R> ? tile<R, kRows, 2> : tile<R, kRows, 1>;
      tiles_of(n, present, present + count, i, j, out + i * ld + j, ld, add);
    }
}

// A weight [K, N] in panels of columns, so that a product reads it from the first number to the last.
template <class R> struct Packed {
  const R* data = nullptr;
  int K = 0;
  static size_t size(int K, int N) { return (size_t)K * padded<R>(N); }
  Packed() = default;
  Packed(const R* W, int K, int N, R* place) : data(W ? place : nullptr), K(K) {
    for (int j = 0; W && j < N; j += kPanel<R>)
      for (int k = 0; k < K; k++, place += kPanel<R>) {
        const int n = std::min(kPanel<R>, N - j);
        std::memcpy(place, W + (long)k * N + j, n * sizeof(R));
        std::fill(place + n, place + kPanel<R>, R(0));
      }
  }
  Factor<R> times(const R* a, long ld) const { return {a, ld, 1, data, (long)K * kPanel<R>, kPanel<R>, K}; }
};

// ---- Threads: XLA's own. Whoever is free takes the next task; the caller waits only for tasks that others work on.

void parallel(ffi::ThreadPool& pool, int tasks, const std::function<void(int)>& work) {
  struct Shared {
    std::atomic<int> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  const std::function<void(int)>* function = &work;
  auto help = [shared, function, tasks] {  // a helper that comes too late finds no task and never looks at function
    for (int i; (i = shared->next++) < tasks; shared->done++) (*function)(i);
  };
  const int helpers = std::min<long>(pool.num_threads(), tasks) - 1;
  for (int i = 0; i < helpers; i++) pool.Schedule(std::function<void()>(help));
  help();
  while (shared->done < tasks) std::this_thread::yield();
}

// ---- The two loops.

enum Reset { kResetBefore, kResetAfter, kResetNone };

struct Sizes {
  int members, T, B, D, H, reset, flipped, activation, reverse, wide;
  double beta;
  int place(int s) const { return reverse ? T - 1 - s : s; }  // of the step that runs as number s
};

// What both loops read, of one member. alpha is [T, B, H] if wide, else [T, B]; the weights are transposed on the way
// back.
template <class R> struct Inputs {
  const R *xs, *h0, *h_reset, *alpha, *mask, *W_f, *U_f, *W_h, *U_h;
  const bool* reset;

  // The states [n, H] from which the samples b, b+1, ... start the step at place t, which runs as number s.
  const R* before(const Sizes& z, const R* hs, int s, int t, int b, int n) const {
    const R* h = (s ? hs + (long)(z.reverse ? t + 1 : t - 1) * z.B * z.H : h0) + (long)b * z.H;
    if (!reset) return h;
    R* local = block<R>(kBefore, (size_t)n * z.H);
    for (int i = 0; i < n; i++)
      std::copy_n((reset[(long)t * z.B + b + i] ? h_reset + (long)b * z.H : h) + (long)i * z.H, z.H,
                  local + (long)i * z.H);
    return local;
  }
  // The same states as the products see them.
  const R* seen(const Sizes& z, const R* h, int b, int n) const {
    if (!mask) return h;
    R* local = block<R>(kSeen, (size_t)n * z.H);
    for (long i = 0; i < (long)n * z.H; i++) local[i] = h[i] * mask[(long)b * z.H + i];
    return local;
  }
  // alpha [H] of one sample.
  const R* share_of(const Sizes& z, int t, int b, const R* ones) const {
    const long at = (long)t * z.B + b;
    if (!alpha) return ones;
    if (z.wide) return alpha + at * z.H;
    R* local = block<R>(kAlpha, z.H);
    std::fill_n(local, z.H, alpha[at]);
    return local;
  }
};

// How (3) weighs the state and the candidate: the share u given up is from + sign*f, which is f or 1 - f. The share
// written is the same, unless the member has a beta; less is exp(-beta).
template <class R> struct Update {
  R from, sign, less;
};

template <class R, bool has_beta> inline R written(R u, R less) { return has_beta ? u / (u + (1 - u) * less) : u; }

// Rows [H] of one sample.
template <class R, class A, bool has_beta> void candidate(int H, Update<R> of, const R* z, const R* r, const R* b,
                                                          const R* alpha, const R* f, const R* h, R* c, R* next) {
#pragma GCC ivdep
  for (int j = 0; j < H; j++) {
    c[j] = A::value(z[j] + r[j] + b[j]);  // (2)
    const R u = of.from + of.sign * f[j], w = written<R, has_beta>(u, of.less);
    next[j] = (1 - u * alpha[j]) * h[j] + w * alpha[j] * c[j];  // (3)
  }
}

template <class R, class A, bool has_beta> void through_update(int H, Update<R> of, const R* dhs, const R* alpha,
                                                               const R* f, const R* c, const R* h, R* dh, R* dz_f,
                                                               R* dz_h) {
#pragma GCC ivdep
  for (int j = 0; j < H; j++) {
    const R dh_next = dhs[j] + dh[j], u = of.from + of.sign * f[j];  // (13)
    const R w = written<R, has_beta>(u, of.less), slope = f[j] * (1 - f[j]);
    const R change = has_beta ? w * (1 - w) * c[j] - slope * h[j] : slope * (c[j] - h[j]);
    dz_h[j] = dh_next * (w * alpha[j]) * A::slope(c[j]);  // (4)
    dz_f[j] = dh_next * alpha[j] * (of.sign * change);    // (6, 7) through (3)
    dh[j] = dh_next * (1 - u * alpha[j]);                 // (8) through (3)
  }
}

// The function for an activation, in the order of ACTIVATIONS, without and with a beta.
#define CHOSEN(function)                                                                           \
  z.beta == 0 ? (z.activation == 0   ? function<R, Tanh, false>                                    \
                 : z.activation == 1 ? function<R, Relu, false>                                    \
                                     : function<R, Identity, false>)                               \
              : (z.activation == 0   ? function<R, Tanh, true>                                     \
                 : z.activation == 1 ? function<R, Relu, true>                                     \
                                     : function<R, Identity, true>)

template <class R> Update<R> update_of(const Sizes& z) {
  return {R(z.flipped), R(1 - 2 * z.flipped), R(std::exp(-z.beta))};
}

template <class R> struct Outputs {
  R *hs, *f, *c, *s_r;
};

template <class R> void forward(const Sizes& z, const Inputs<R>& in, const R* b_f, const R* b_h, const R* b_r,
                                const Packed<R> (&W)[4], int b0, int n, Outputs<R> out) {
  const int H = z.H, D = z.D, P = padded<R>(H), steps = std::max(1, kChunk / n);
  const auto chosen = CHOSEN(candidate);
  const auto update = update_of<R>(z);
  const R* zeros = block<R>(kZeros, H);
  R *x = block<R>(kX, (size_t)steps * n * D), *a_f = block<R>(kInput, (size_t)2 * steps * n * P),
    *a_h = a_f + (size_t)steps * n * P;
  R *s = block<R>(kSum, (size_t)n * P), *r = block<R>(kScaled, (size_t)n * P), *ones = block<R>(kOnes, H);
  // The gates of one step, where those of all steps are not asked for.
  R* passing = out.f ? nullptr : block<R>(kGates, (size_t)3 * n * H);
  std::fill_n(ones, H, R(1));
  for (int number = 0; number < z.T; number++) {
    const int t = z.place(number), ahead = std::min(steps, z.T - number), q = number % steps;
    const long at = ((long)t * z.B + b0) * H;
    if (q == 0) {
      for (int k = 0; k < ahead; k++)
        std::copy_n(in.xs + ((long)z.place(number + k) * z.B + b0) * D, n * D, x + (size_t)k * n * D);
      if (W[0].data) product<R>(ahead * n, H, {W[0].times(x, D)}, a_f, P);
      product<R>(ahead * n, H, {W[2].times(x, D)}, a_h, P);
    }
    R *z_f = a_f + (size_t)q * n * P, *z_h = a_h + (size_t)q * n * P;
    const R *h = in.before(z, out.hs, number, t, b0, n), *seen = in.seen(z, h, b0, n);
    product<R>(n, H, {W[1].times(seen, H)}, z_f, P, W[0].data);
    if (z.reset == kResetAfter) product<R>(n, H, {W[3].times(seen, H)}, s, P);
    R *f_t = passing ? passing : out.f + at, *c_t = passing ? passing + (long)n * H : out.c + at;
    R* s_r_t = passing ? passing + 2L * n * H : z.reset == kResetAfter ? out.s_r + at : nullptr;
    for (int i = 0; i < n; i++) {
      R *f = f_t + (long)i * H, *r_i = r + (long)i * P;
      const R *a = z_f + (long)i * P, *bias = b_f ? b_f : zeros, *e = seen + (long)i * H;
#pragma GCC ivdep
      for (int j = 0; j < H; j++) f[j] = sigmoid(a[j] + bias[j]);  // (1)
      if (z.reset == kResetBefore)
        for (int j = 0; j < H; j++) r_i[j] = f[j] * e[j];
      if (z.reset == kResetAfter) {
        R *s_r = s_r_t + (long)i * H, *s_i = s + (long)i * P;
        for (int j = 0; j < H; j++) s_r[j] = s_i[j] + b_r[j];
        for (int j = 0; j < H; j++) r_i[j] = f[j] * s_r[j];
      }
    }
    if (z.reset == kResetBefore) product<R>(n, H, {W[3].times(r, P)}, z_h, P, true);
    if (z.reset == kResetNone) product<R>(n, H, {W[3].times(seen, H)}, z_h, P, true);
    for (int i = 0; i < n; i++) {
      const long row = (long)i * H;
      const R* scaled = z.reset == kResetAfter ? r + (long)i * P : zeros;
      chosen(H, update, z_h + (long)i * P, scaled, b_h, in.share_of(z, t, b0 + i, ones), f_t + row, h + row, c_t + row,
             out.hs + at + row);
    }
  }
}

// The sums of all weight gradients of one task, [K, P] each; biases are rows of their own.
template <class R> struct Totals {
  R *W_f, *U_f, *W_h, *U_h, *b_f, *b_h, *b_r;
  static size_t size(int D, int H) { return (size_t)(2 * D + 2 * H + 3) * padded<R>(H); }
  Totals(R* place, int D, int H) {
    const long P = padded<R>(H);
    W_f = place, U_f = W_f + D * P, W_h = U_f + H * P, U_h = W_h + D * P, b_f = U_h + H * P, b_h = b_f + P,
    b_r = b_h + P;
  }
};

template <class R> void backward(const Sizes& z, const Inputs<R>& in, const Packed<R> (&W)[4], int b0, int n,
                                 const R* dhs, Outputs<const R> kept, Totals<R> total, R* dxs, R* dh, R* dh_reset) {
  const int H = z.H, D = z.D, P = padded<R>(H), Q = padded<R>(D), steps = std::max(1, kChunk / n);
  const long ld = P + kLanes<R>;  // a row more than a power of 2, which would use few sets of the cache
  const size_t rows = (size_t)steps * n;
  const auto chosen = CHOSEN(through_update);
  const auto update = update_of<R>(z);
  R *x = block<R>(kX, rows * D), *e = block<R>(kState, rows * ld), *r = block<R>(kReset, rows * ld),
    *dx = block<R>(kdX, rows * Q);
  R *dz_fs = block<R>(kdF, rows * ld), *dz_hs = block<R>(kdH, rows * ld),
    *ds_rs = z.reset == kResetAfter ? block<R>(kdR, rows * ld) : dz_hs;
  R *dr = block<R>(kSum, (size_t)n * P), *base = block<R>(kBase, (size_t)n * H), *ones = block<R>(kOnes, H),
    *zeros = block<R>(kZeros, H);
  std::fill_n(total.W_f, Totals<R>::size(D, H), R(0));
  std::fill_n(ones, H, R(1));
  for (int number = z.T - 1, filled = 0; number >= 0; number--) {
    const int t = z.place(number);
    const long at = ((long)t * z.B + b0) * H, first = filled * ld;
    const R *h = in.before(z, kept.hs, number, t, b0, n), *seen = in.seen(z, h, b0, n);
    R *dz_f = dz_fs + first, *dz_h = dz_hs + first, *ds_r = ds_rs + first;
    std::copy_n(in.xs + ((long)t * z.B + b0) * D, n * D, x + (long)filled * D);
    for (int i = 0; i < n; i++) {
      const long row = at + (long)i * H, to = i * ld;
      const R *f = kept.f + row, *e_i = seen + (long)i * H;
      chosen(H, update, dhs ? dhs + row : zeros, in.share_of(z, t, b0 + i, ones), f, kept.c + row, h + (long)i * H,
             dh + (long)i * H, dz_f + to, dz_h + to);
      std::copy_n(e_i, H, e + first + to);
      if (z.reset == kResetBefore) {
        R* r_i = r + first + to;
        for (int j = 0; j < H; j++) r_i[j] = f[j] * e_i[j];
      }
      if (z.reset == kResetAfter) {
        const R* s_r = kept.s_r + row;
        R *to_f = dz_f + to, *to_h = dz_h + to, *to_r = ds_r + to;
        for (int j = 0; j < H; j++)
          to_f[j] += to_h[j] * (f[j] * (1 - f[j])) * s_r[j];  // (6, 7) of a reset after the product
        for (int j = 0; j < H; j++) to_r[j] = to_h[j] * f[j];
      }
    }
    if (z.reset == kResetBefore) {
      product<R>(n, H, {W[3].times(dz_h, ld)}, dr, P);  // (5)
      for (int i = 0; i < n; i++) {
        const R *f = kept.f + at + (long)i * H, *e_i = seen + (long)i * H, *dr_i = dr + (long)i * P;
        R *to_f = dz_f + i * ld, *dseen = base + (long)i * H;
#pragma GCC ivdep
        for (int j = 0; j < H; j++) {
          to_f[j] += dr_i[j] * (f[j] * (1 - f[j])) * e_i[j];  // (6, 7) through r
          dseen[j] = dr_i[j] * f[j];                          // (8) through r
        }
      }
      product<R>(n, H, {W[1].times(dz_f, ld)}, dr, P);  // (8) through (1)
    } else {
      product<R>(n, H, {W[3].times(ds_r, ld), W[1].times(dz_f, ld)}, dr, P);  // (8) through (1) and (2)
    }
    for (int i = 0; i < n; i++) {
      const R *dr_i = dr + (long)i * P, *dseen = z.reset == kResetBefore ? base + (long)i * H : zeros;
      const R* mask = in.mask ? in.mask + (long)(b0 + i) * H : ones;
      R* dh_i = dh + (long)i * H;
      for (int j = 0; j < H; j++) dh_i[j] += (dseen[j] + dr_i[j]) * mask[j];  // (8)
      if (in.reset && in.reset[(long)t * z.B + b0 + i])
        for (int j = 0; j < H; j++) dh_reset[(long)i * H + j] += dh_i[j], dh_i[j] = 0;  // (15)
    }
    filled += n;
    if ((size_t)(filled + n) <= rows && number > 0) continue;
    product<R>(filled, D, {W[0].times(dz_fs, ld), W[2].times(dz_hs, ld)}, dx, Q);  // (9)
    for (int i = 0; i < filled; i++) {
      const int place = z.place(number + filled / n - 1 - i / n);
      std::copy_n(dx + (long)i * Q, D, dxs + ((long)place * z.B + b0 + i % n) * D);
    }
    const auto transposed = [&](const R* a, int K, long lda, const R* dz, R* sum) {
      product<R>(K, H, {Factor<R>{a, 1, lda, dz, kPanel<R>, ld, filled}}, sum, P, true);
    };
    if (W[0].data) transposed(x, D, D, dz_fs, total.W_f);                  // (10)
    if (W[1].data) transposed(e, H, ld, dz_fs, total.U_f);                 // (10)
    transposed(x, D, D, dz_hs, total.W_h);                                 // (11)
    transposed(z.reset == kResetBefore ? r : e, H, ld, ds_rs, total.U_h);  // (11)
    for (int i = 0; i < filled; i++)
      for (int j = 0; j < H; j++) {
        total.b_f[j] += dz_fs[i * ld + j];  // (10)
        total.b_h[j] += dz_hs[i * ld + j];  // (11)
        total.b_r[j] += ds_rs[i * ld + j];  // (11)
      }
    filled = 0;
  }
}

// ---- The calls from XLA. The order of arguments and results is that of cpu.py.

struct Arrays {
  const ffi::RemainingArgs& arguments;
  const ffi::RemainingRets& results;
  int members;
  template <class R, class B> R* of(const B& buffer, int m) const {
    const size_t count = buffer.element_count();
    return count ? static_cast<R*>(buffer.untyped_data()) + count / members * m : nullptr;
  }
  template <class R> const R* in(int i, int m) const { return of<R>(*arguments.get<ffi::AnyBuffer>(i), m); }
  template <class R> R* out(int i, int m) const { return of<R>(**results.get<ffi::AnyBuffer>(i), m); }
  template <class R> Inputs<R> inputs(int m) const {
    return {in<R>(0, m), in<R>(1, m), in<R>(2, m), in<R>(3, m), in<R>(4, m),
            in<R>(5, m), in<R>(6, m), in<R>(7, m), in<R>(8, m), in<bool>(9, m)};
  }
};

// A task is a part of the samples of one member; all samples, if there are as many members as threads.
template <class R, class F>
int for_parts(ffi::ThreadPool& pool, const Arrays& arrays, const Sizes& z, bool back, F work) {
  const int threads = std::max<long>(1, pool.num_threads()), parts = z.members >= threads ? 1 : std::min(threads, z.B);
  const int D = z.D, H = z.H, K[4] = {back ? H : D, H, back ? H : D, H}, N[4] = {back ? D : H, H, back ? D : H, H};
  size_t size = 0;
  for (int w = 0; w < 4; w++) size += Packed<R>::size(K[w], N[w]);
  R* place = block<R>(kWeights, size * z.members);
  std::vector<Packed<R>> packed(4 * z.members);
  parallel(pool, 2 * z.members, [&](int i) {  // W_f and U_f, or W_h and U_h
    const Inputs<R> in = arrays.inputs<R>(i / 2);
    R* to = place + size / 2 * i;
    const R* weights[2] = {i % 2 ? in.W_h : in.W_f, i % 2 ? in.U_h : in.U_f};
    for (int w = 0; w < 2; w++) {
      packed[2 * i + w] = Packed<R>(weights[w], K[w], N[w], to);
      to += Packed<R>::size(K[w], N[w]);
    }
  });
  parallel(pool, z.members * parts, [&](int task) {
    const int m = task / parts, b0 = (long)z.B * (task % parts) / parts, b1 = (long)z.B * (task % parts + 1) / parts;
    const Packed<R> W[4] = {packed[4 * m], packed[4 * m + 1], packed[4 * m + 2], packed[4 * m + 3]};
    work(task, m, W, b0, b1 - b0);
  });
  return parts;
}

template <class R> void run_forward(ffi::ThreadPool& pool, const Arrays& a, const Sizes& z) {
  for_parts<R>(pool, a, z, false, [&](int, int m, const Packed<R>(&W)[4], int b0, int n) {
    forward<R>(z, a.inputs<R>(m), a.in<R>(10, m), a.in<R>(11, m), a.in<R>(12, m), W, b0, n,
               {a.out<R>(0, m), a.out<R>(1, m), a.out<R>(2, m), a.out<R>(3, m)});
  });
}

template <class R> void run_backward(ffi::ThreadPool& pool, const Arrays& a, const Sizes& z) {
  const int D = z.D, H = z.H, P = padded<R>(H), K[7] = {D, H, D, H, 1, 1, 1};
  const size_t size = Totals<R>::size(D, H);
  R* totals = block<R>(kTotals, size * z.members * std::max<long>(1, std::min<long>(pool.num_threads(), z.B)));
  const int parts = for_parts<R>(pool, a, z, true, [&](int task, int m, const Packed<R>(&W)[4], int b0, int n) {
    const long at = (long)b0 * H;
    R *dh = a.out<R>(8, m) + at, *dh_reset = a.out<R>(9, m);
    std::copy_n(a.in<R>(11, m) + at, (long)n * H, dh);
    if (dh_reset) std::fill_n(dh_reset += at, (long)n * H, R(0));
    const Outputs<const R> kept = {a.in<R>(12, m), a.in<R>(13, m), a.in<R>(14, m), a.in<R>(15, m)};
    backward<R>(z, a.inputs<R>(m), W, b0, n, a.in<R>(10, m), kept, Totals<R>(totals + size * task, D, H),
                a.out<R>(7, m), dh, dh_reset);
  });
  parallel(pool, z.members,
           [&](int m) {  // (14): the parts' sums in their order, so that a result does not depend on who was faster
             long at = 0;
             for (int which = 0; which < 7; at += (long)K[which++] * P)
               for (int k = 0; a.out<R>(which, m) && k < K[which]; k++) {
                 R* sum = a.out<R>(which, m) + (long)k * H;
                 for (int p = 0; p < parts; p++) {
                   const R* part = totals + size * (m * parts + p) + at + (long)k * P;
                   for (int j = 0; j < H; j++) sum[j] = p ? sum[j] + part[j] : part[j];
                 }
               }
           });
}

template <bool back> ffi::Error run(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                                    ffi::Span<const int64_t> sizes, double beta) {
  const auto W_h = *arguments.get<ffi::AnyBuffer>(7);
  Sizes z;
  int* fields[] = {&z.T, &z.B, &z.D, &z.H, &z.reset, &z.flipped, &z.activation, &z.reverse, &z.wide};
  for (int i = 0; i < 9; i++) *fields[i] = sizes[i];
  z.beta = beta;
  z.members = W_h.element_count() / ((size_t)z.D * z.H);
  const Arrays arrays{arguments, results, z.members};
  if (W_h.element_type() == ffi::DataType::F32)
    back ? run_backward<float>(pool, arrays, z) : run_forward<float>(pool, arrays, z);
  else back ? run_backward<double>(pool, arrays, z) : run_forward<double>(pool, arrays, z);
  return ffi::Error::Success();
}
}  // namespace

#define SIGNATURE                              \
  ffi::Ffi::Bind()                             \
      .Ctx<ffi::ThreadPool>()                  \
      .RemainingArgs()                         \
      .RemainingRets()                         \
      .Attr<ffi::Span<const int64_t>>("sizes") \
      .Attr<double>("beta")
XLA_FFI_DEFINE_HANDLER_SYMBOL(mgu_jax_forward, run<false>, SIGNATURE);
XLA_FFI_DEFINE_HANDLER_SYMBOL(mgu_jax_backward, run<true>, SIGNATURE);
