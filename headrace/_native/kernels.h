/* The arithmetic of small tanh networks. Each row is computed by the same operations in the same order, however many
 * rows there are, so that an action does not depend on which environments share a call. */
#ifndef HEADRACE_KERNELS_H
#define HEADRACE_KERNELS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Processors with AVX2 are recognised at run time, because the compiler may only assume what every processor has. */
#if defined(__GNUC__) && defined(__x86_64__)
#define HEADRACE_AVX2 __attribute__((target("avx2,fma")))
#define HEADRACE_HAS_AVX2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#else
#define HEADRACE_AVX2
#define HEADRACE_HAS_AVX2 0
#endif
#define HEADRACE_INLINE static inline __attribute__((always_inline))

/* y[n, m] = x[n, k] w[k, m] + b[m]; n is a multiple of 4 and m of 8, so that there is one code path for every row. */
static void headrace_linear_plain(const float *restrict x, const float *restrict w, const float *restrict b,
                                  float *restrict y, long n, long k, long m) {
  for (long i = 0; i < n; i += 4) {
    const float *x0 = x + i * k, *x1 = x0 + k, *x2 = x1 + k, *x3 = x2 + k;
    float *restrict y0 = y + i * m, *restrict y1 = y0 + m, *restrict y2 = y1 + m, *restrict y3 = y2 + m;
    for (long j = 0; j < m; j++) y0[j] = y1[j] = y2[j] = y3[j] = b[j];
    for (long p = 0; p < k; p++) {
      const float a0 = x0[p], a1 = x1[p], a2 = x2[p], a3 = x3[p];
      const float *restrict row = w + p * m;
      for (long j = 0; j < m; j++) {
        const float v = row[j];
        y0[j] += a0 * v;
        y1[j] += a1 * v;
        y2[j] += a2 * v;
        y3[j] += a3 * v;
      }
    }
  }
}

#if defined(__GNUC__) && defined(__x86_64__)
typedef float headrace_v8 __attribute__((vector_size(32), aligned(4), may_alias));

/* The same with sums of 4 rows and 16 columns in registers, 4 to 5 times as fast: compilers do not find this form. */
HEADRACE_AVX2
static void headrace_linear_avx2(const float *restrict x, const float *restrict w, const float *restrict b,
                                 float *restrict y, long n, long k, long m) {
  typedef headrace_v8 v8;
  for (long i = 0; i < n; i += 4) {
    const float *x0 = x + i * k, *x1 = x0 + k, *x2 = x1 + k, *x3 = x2 + k;
    long j = 0;
    for (; j + 16 <= m; j += 16) {
      const float *row = w + j;
      v8 s0 = *(const v8 *)(b + j), s1 = s0, s2 = s0, s3 = s0;
      v8 t0 = *(const v8 *)(b + j + 8), t1 = t0, t2 = t0, t3 = t0;
      for (long p = 0; p < k; p++, row += m) {
        const v8 u = *(const v8 *)row, v = *(const v8 *)(row + 8);
        s0 += x0[p] * u, t0 += x0[p] * v;
        s1 += x1[p] * u, t1 += x1[p] * v;
        s2 += x2[p] * u, t2 += x2[p] * v;
        s3 += x3[p] * u, t3 += x3[p] * v;
      }
      float *to = y + i * m + j;
      *(v8 *)to = s0, *(v8 *)(to + m) = s1, *(v8 *)(to + 2 * m) = s2, *(v8 *)(to + 3 * m) = s3;
      to += 8;
      *(v8 *)to = t0, *(v8 *)(to + m) = t1, *(v8 *)(to + 2 * m) = t2, *(v8 *)(to + 3 * m) = t3;
    }
    for (; j < m; j += 8) {
      const float *row = w + j;
      v8 s0 = *(const v8 *)(b + j), s1 = s0, s2 = s0, s3 = s0;
      for (long p = 0; p < k; p++, row += m) {
        const v8 v = *(const v8 *)row;
        s0 += x0[p] * v, s1 += x1[p] * v, s2 += x2[p] * v, s3 += x3[p] * v;
      }
      float *to = y + i * m + j;
      *(v8 *)to = s0, *(v8 *)(to + m) = s1, *(v8 *)(to + 2 * m) = s2, *(v8 *)(to + 3 * m) = s3;
    }
  }
}
#else
#define headrace_linear_avx2 headrace_linear_plain
#endif

static void headrace_linear(const float *restrict x, const float *restrict w, const float *restrict b, float *restrict y,
                            long n, long k, long m) {
  if (HEADRACE_HAS_AVX2)
    headrace_linear_avx2(x, w, b, y, n, k, m);
  else
    headrace_linear_plain(x, w, b, y, n, k, m);
}

/* tanh(x) = 1 - 2 / (exp(2 x) + 1) in place; absolute error below 4e-7. exp by range reduction to [-ln2/2, ln2/2] and its
 * Taylor polynomial. NaN and infinity become NaN, so that the caller sees them. */
HEADRACE_INLINE void headrace_tanh_body(float *restrict x, long n) {
  for (long i = 0; i < n; i++) {
    float v = x[i];
    const float odd = v - v; /* 0, or NaN */
    v = v > 10.0f ? 10.0f : v;
    v = v < -10.0f ? -10.0f : v;
    const float z = v * 2.885390081777927f; /* 2 / ln 2 */
    const float whole = (z + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: rounds to the nearest whole number */
    const float r = (z - whole) * 0.6931471805599453f;
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
    x[i] = 1.0f - 2.0f / (e * scale + 1.0f) + odd;
  }
}

HEADRACE_AVX2
static void headrace_tanh_avx2(float *restrict x, long n) { headrace_tanh_body(x, n); }
static void headrace_tanh_plain(float *restrict x, long n) { headrace_tanh_body(x, n); }

static void headrace_tanh(float *restrict x, long n) {
  if (HEADRACE_HAS_AVX2)
    headrace_tanh_avx2(x, n);
  else
    headrace_tanh_plain(x, n);
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

#endif
