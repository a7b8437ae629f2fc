/* The arithmetic of small tanh networks. Each row is computed by the same operations in the same order, however many
 * rows there are, so that an action does not depend on which environments share a call. */
#ifndef HEADRACE_KERNELS_H
#define HEADRACE_KERNELS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One version of a function for CPUs with AVX2, chosen when the module is loaded. ("arch=haswell" would be for Intel's own
 * CPUs only, not for others that have AVX2.) */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#if __GNUC__ >= 12
#define HEADRACE_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define HEADRACE_CLONES __attribute__((target_clones("avx2", "default")))
#endif
#else
#define HEADRACE_CLONES
#endif

/* y[n, m] = x[n, k] w[k, m] + b[m]; n is a multiple of 4 and m of 8, so that there is one code path for every row. */
static void headrace_linear_plain(const float *restrict x, const float *restrict w, const float *restrict b,
                                  float *restrict y, long n, long k, long m) {
  for (long i = 0; i < n; i += 4, x += 4 * k, y += 4 * m) {
    const float *x0 = x, *x1 = x0 + k, *x2 = x1 + k, *x3 = x2 + k;
    float *restrict y0 = y, *restrict y1 = y0 + m, *restrict y2 = y1 + m, *restrict y3 = y2 + m;
    for (long j = 0; j < m; j++) y0[j] = y1[j] = y2[j] = y3[j] = b[j];
    for (long p = 0; p < k; p++) {
      const float a0 = x0[p], a1 = x1[p], a2 = x2[p], a3 = x3[p];
      const float *restrict row = w + p * m;
      for (long j = 0; j < m; j++) {
        y0[j] += a0 * row[j];
        y1[j] += a1 * row[j];
        y2[j] += a2 * row[j];
        y3[j] += a3 * row[j];
      }
    }
  }
}

#if defined(__GNUC__) && defined(__x86_64__)
/* The same, 4 to 5 times as fast: sums of four rows and sixteen columns stay in registers, a form that compilers do not
 * find by themselves. Without AVX2 these vectors would be ten times slower than the loops above. */
__attribute__((target("avx2,fma")))
static void headrace_linear_avx2(const float *restrict x, const float *restrict w, const float *restrict b,
                                 float *restrict y, long n, long k, long m) {
  typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
  for (long i = 0; i < n; i += 4, x += 4 * k, y += 4 * m) {
    const float *x0 = x, *x1 = x0 + k, *x2 = x1 + k, *x3 = x2 + k;
    long j = 0;
    for (; j + 16 <= m; j += 16) {
      const float *column = w + j;
      v8 y0 = *(const v8 *)(b + j), y1 = y0, y2 = y0, y3 = y0;
      v8 z0 = *(const v8 *)(b + j + 8), z1 = z0, z2 = z0, z3 = z0;
      for (long p = 0; p < k; p++, column += m) {
        const v8 u = *(const v8 *)column, v = *(const v8 *)(column + 8);
        y0 += x0[p] * u, z0 += x0[p] * v;
        y1 += x1[p] * u, z1 += x1[p] * v;
        y2 += x2[p] * u, z2 += x2[p] * v;
        y3 += x3[p] * u, z3 += x3[p] * v;
      }
      float *to = y + j;
      *(v8 *)to = y0, *(v8 *)(to + m) = y1, *(v8 *)(to + 2 * m) = y2, *(v8 *)(to + 3 * m) = y3;
      to += 8;
      *(v8 *)to = z0, *(v8 *)(to + m) = z1, *(v8 *)(to + 2 * m) = z2, *(v8 *)(to + 3 * m) = z3;
    }
    if (j < m) {
      const float *column = w + j;
      v8 y0 = *(const v8 *)(b + j), y1 = y0, y2 = y0, y3 = y0;
      for (long p = 0; p < k; p++, column += m) {
        const v8 v = *(const v8 *)column;
        y0 += x0[p] * v, y1 += x1[p] * v, y2 += x2[p] * v, y3 += x3[p] * v;
      }
      float *to = y + j;
      *(v8 *)to = y0, *(v8 *)(to + m) = y1, *(v8 *)(to + 2 * m) = y2, *(v8 *)(to + 3 * m) = y3;
    }
  }
}
#define HEADRACE_HAS_AVX2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#else
#define headrace_linear_avx2 headrace_linear_plain
#define HEADRACE_HAS_AVX2 0
#endif

static void headrace_linear(const float *restrict x, const float *restrict w, const float *restrict b, float *restrict y,
                            long n, long k, long m) {
  if (HEADRACE_HAS_AVX2)
    headrace_linear_avx2(x, w, b, y, n, k, m);
  else
    headrace_linear_plain(x, w, b, y, n, k, m);
}

/* exp(v), relative error below 2e-7, for v in [-87, 87]: range reduction to [-ln2/2, ln2/2] and the Taylor polynomial. */
static inline float headrace_exp(float v) {
  const float whole = (v * 1.4426950408889634f + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: the nearest whole number */
  const float r = (v - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts, the first exact */
  float e = 1.0f / 5040.0f;
  e = e * r + 1.0f / 720.0f;
  e = e * r + 1.0f / 120.0f;
  e = e * r + 1.0f / 24.0f;
  e = e * r + 1.0f / 6.0f;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const int32_t bits = ((int32_t)whole + 127) * (1 << 23);
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return e * scale;
}

/* tanh(x) = 1 - 2 / (exp(2 x) + 1) in place; absolute error below 4e-7. NaN and infinity become NaN, so that the caller
 * sees them. */
HEADRACE_CLONES
void headrace_tanh(float *restrict x, long n) {
  for (long i = 0; i < n; i++) {
    float v = x[i];
    const float odd = v - v; /* 0, or NaN */
    v = v > 10.0f ? 10.0f : v;
    v = v < -10.0f ? -10.0f : v;
    x[i] = 1.0f - 2.0f / (headrace_exp(2.0f * v) + 1.0f) + odd;
  }
}

/* x[n, k] = (x - shift[k]) scale[k] in place, limited to -clip ... clip; NaN stays NaN. Rows are `stride` apart. */
HEADRACE_CLONES
void headrace_normalize(float *restrict x, long stride, const float *restrict shift, const float *restrict scale,
                        float clip, long n, long k) {
  for (long i = 0; i < n; i++, x += stride) {
    for (long p = 0; p < k; p++) {
      float v = (x[p] - shift[p]) * scale[p];
      v = v > clip ? clip : v;
      x[p] = v < -clip ? -clip : v;
    }
  }
}

/* One step of an LSTM for n rows: the next state h_next[n, size], c_next[n, size] from c and the gates i, f, g, o, which are
 * the sum of two arrays [n, stride]. NaN and infinity in a gate become NaN. */
static void headrace_lstm(float *gates, const float *more, long stride, const float *c, float *h_next, float *c_next, long n,
                          long size) {
  for (long i = 0; i < n; i++, gates += stride, more += stride, c += size, h_next += size, c_next += size) {
    const float *in = gates, *forget = gates + size, *cell = gates + 2 * size, *out = gates + 3 * size;
    /* The sigmoid of v is (1 + tanh(v / 2)) / 2. */
    for (long j = 0; j < 2 * size; j++) gates[j] = 0.5f * (gates[j] + more[j]);
    for (long j = 2 * size; j < 3 * size; j++) gates[j] += more[j];
    for (long j = 3 * size; j < 4 * size; j++) gates[j] = 0.5f * (gates[j] + more[j]);
    headrace_tanh(gates, 4 * size);
    for (long j = 0; j < size; j++) {
      h_next[j] = c_next[j] = (0.5f + 0.5f * forget[j]) * c[j] + (0.5f + 0.5f * in[j]) * cell[j];
    }
    headrace_tanh(h_next, size);
    for (long j = 0; j < size; j++) h_next[j] *= 0.5f + 0.5f * out[j];
  }
}

/* Draws actions[n] from logits[n, stride], the smallest k whose cumulated probability reaches u times their sum, or takes the
 * most probable action (u NULL). Returns 0 if a logit or value is not finite. */
static int headrace_categorical(const float *logits, long stride, long n, long n_actions, const float *u, long u_stride,
                                int64_t *actions) {
  for (long i = 0; i < n; i++) {
    const float *own = logits + i * stride;
    float top = own[0];
    long best = 0;
    for (long k = 0; k < n_actions; k++) {
      if (!isfinite(own[k])) return 0;
      if (own[k] > top) top = own[k], best = k;
    }
    if (u != NULL) {
      float total = 0.0f;
      for (long k = 0; k < n_actions; k++) total += expf(own[k] - top);
      const float target = u[i * u_stride] * total;
      float reached = 0.0f;
      best = n_actions - 1;
      for (long k = 0; k < n_actions; k++) {
        reached += expf(own[k] - top);
        if (reached >= target) {
          best = k;
          break;
        }
      }
    }
    actions[i] = best;
  }
  return 1;
}

/* Draws actions[n, d] from Gaussians by the method of Box and Muller, as headrace.distributions.Gaussian does: of the
 * noise[n, d rounded up to even] the first half gives radii, the second half angles. Without noise (NULL) actions are means.
 * Returns 0 if a number is not finite. */
static int headrace_gaussian(const float *mean, const float *log_std, long n, long d, const float *noise,
                             float *actions) {
  const long half = (d + 1) / 2;
  for (long i = 0; i < n; i++, mean += d, log_std += d, actions += d) {
    for (long k = 0; k < d; k++) {
      if (!isfinite(mean[k]) || !isfinite(log_std[k])) return 0;
    }
    if (noise == NULL) {
      memcpy(actions, mean, d * sizeof(float));
      continue;
    }
    for (long k = 0; k < half; k++) {
      const float radius = sqrtf(-2.0f * logf(noise[k])), angle = 6.283185307179586f * noise[half + k];
      actions[k] = mean[k] + expf(log_std[k]) * (radius * cosf(angle));
      if (half + k < d) actions[half + k] = mean[half + k] + expf(log_std[half + k]) * (radius * sinf(angle));
    }
    noise += 2 * half;
    for (long k = 0; k < d; k++) {
      if (!isfinite(actions[k])) return 0;
    }
  }
  return 1;
}

/* Chooses actions[n] among those of values q[n, n_actions]: uniformly if noise 0 is below epsilon, by noise 1, else the
 * first of the highest value. Where each environment has an epsilon, noise 2 is its number. Returns 0 if a value is not
 * finite. */
static int headrace_epsilon_greedy(const float *q, long n, long n_actions, const float *noise, long noise_stride,
                                   const float *epsilon, long n_epsilon, int64_t *actions) {
  for (long i = 0; i < n; i++, q += n_actions, noise += noise_stride) {
    long best = 0;
    for (long k = 0; k < n_actions; k++) {
      if (!isfinite(q[k])) return 0;
      if (q[k] > q[best]) best = k;
    }
    if (noise[0] < epsilon[n_epsilon > 1 ? (long)noise[2] % n_epsilon : 0]) {
      const float target = noise[1] * (float)n_actions;
      for (best = 0; (float)(best + 1) < target;) best++;
    }
    actions[i] = best;
  }
  return 1;
}

/* Turns advantages a[n, n_actions n_atoms] into a - mean over actions + v[n, n_atoms], for each atom. */
static void headrace_dueling(float *a, long stride, const float *v, long v_stride, long n, long n_actions, long n_atoms) {
  for (long i = 0; i < n; i++, a += stride, v += v_stride) {
    for (long j = 0; j < n_atoms; j++) {
      float sum = 0.0f;
      for (long k = 0; k < n_actions; k++) sum += a[k * n_atoms + j];
      const float shift = v[j] - sum / (float)n_actions;
      for (long k = 0; k < n_actions; k++) a[k * n_atoms + j] += shift;
    }
  }
}

/* Returns the mean of the atoms, whose probabilities are the softmax of logits; NaN if a logit is not finite. */
HEADRACE_CLONES
float headrace_mean_of_atoms(const float *restrict logits, const float *restrict atoms, float *restrict weights, long n) {
  float top = logits[0], odd = 0.0f;
  for (long k = 0; k < n; k++) {
    odd += logits[k] - logits[k]; /* 0, or NaN */
    top = logits[k] > top ? logits[k] : top;
  }
  for (long k = 0; k < n; k++) {
    const float v = logits[k] - top;
    weights[k] = headrace_exp(v < -87.0f ? -87.0f : v);
  }
  double total = 0.0, mean = 0.0;
  for (long k = 0; k < n; k++) total += weights[k], mean += (double)weights[k] * atoms[k];
  return (float)(mean / total) + odd;
}

#endif
