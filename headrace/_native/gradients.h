/* The arithmetic of gradient steps on small tanh networks. */
#ifndef HEADRACE_GRADIENTS_H
#define HEADRACE_GRADIENTS_H

#include "kernels.h"

/* x[n, m] = tanh(x + b[m]) in place. */
HEADRACE_CLONES
void headrace_tanh_layer(float *restrict x, const float *restrict b, long n, long m) {
  for (long i = 0; i < n; i++) {
    for (long j = 0; j < m; j++) x[i * m + j] += b[j];
  }
  headrace_tanh(x, n * m);
}

/* The gradient of a loss before tanh from that after it, g[n, m] *= 1 - y^2 in place, and its sums over rows, b[m]. */
HEADRACE_CLONES
void headrace_tanh_gradient(float *restrict g, const float *restrict y, float *restrict b, long n, long m) {
  for (long j = 0; j < m; j++) b[j] = 0.0f;
  for (long i = 0; i < n; i++, g += m, y += m) {
    for (long j = 0; j < m; j++) {
      g[j] *= 1.0f - y[j] * y[j];
      b[j] += g[j];
    }
  }
}

static inline long headrace_padded(long n, long to) { return (n + to - 1) / to * to; }

/* Number of floats that `headrace_product` needs for copies. */
static long headrace_scratch(long n, long k, long m) {
  const long rows = headrace_padded(n, 4), columns = headrace_padded(m, 8);
  return rows * k + k * columns + columns + rows * columns;
}

/* y[n, m] = x[n, k] w[k, m] for any n and m: copies with padding where `headrace_linear` needs it. */
static void headrace_product(const float *x, const float *w, float *y, long n, long k, long m, float *scratch) {
  const long rows = headrace_padded(n, 4), columns = headrace_padded(m, 8);
  float *x_copy = scratch, *w_copy = x_copy + rows * k, *zero = w_copy + k * columns, *to = zero + columns;
  memset(zero, 0, columns * sizeof *zero);
  if (rows != n) {
    memcpy(x_copy, x, n * k * sizeof *x);
    memset(x_copy + n * k, 0, (rows - n) * k * sizeof *x);
    x = x_copy;
  }
  if (columns != m) {
    for (long p = 0; p < k; p++) {
      memcpy(w_copy + p * columns, w + p * m, m * sizeof *w);
      memset(w_copy + p * columns + m, 0, (columns - m) * sizeof *w);
    }
    w = w_copy;
  }
  if (rows == n && columns == m) {
    headrace_linear(x, w, zero, y, n, k, m);
    return;
  }
  headrace_linear(x, w, zero, to, rows, k, columns);
  for (long i = 0; i < n; i++) memcpy(y + i * m, to + i * columns, m * sizeof *y);
}

/* y[k, n] = x[n, k], in blocks that stay in the cache. */
static void headrace_transpose(const float *restrict x, float *restrict y, long n, long k) {
  for (long i = 0; i < n; i += 8) {
    const long stop = i + 8 < n ? i + 8 : n;
    for (long p = 0; p < k; p++) {
      for (long q = i; q < stop; q++) y[p * n + q] = x[q * k + p];
    }
  }
}

/* y[n, m] = x[n, k] w[m, k]^T + b[m], then tanh if `hidden`. scratch: k m floats and those of the product. */
static void headrace_layer(const float *x, const float *w, const float *b, float *y, long n, long k, long m, int hidden,
                           float *scratch) {
  headrace_transpose(w, scratch, m, k);
  headrace_product(x, scratch, y, n, k, m, scratch + k * m);
  if (hidden) {
    headrace_tanh_layer(y, b, n, m);
    return;
  }
  for (long i = 0; i < n; i++) {
    for (long j = 0; j < m; j++) y[i * m + j] += b[j];
  }
}

/* The gradient of w[m, k] from that of the outputs, g[n, m], and the inputs x[n, k]. scratch: n m floats and those of the
 * product. */
static void headrace_weight_gradient(const float *g, const float *x, float *to, long n, long k, long m, float *scratch) {
  headrace_transpose(g, scratch, n, m);
  headrace_product(scratch, x, to, m, n, k, scratch + n * m);
}

#endif
