# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""What a gradient step on a small network consists of, each part in one pass instead of many operators."""

from libc.math cimport exp, log
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

import numpy as np

VERSION = 4  # of the interface; a build of another version is not used

cdef extern from "gradients.h" nogil:
    void headrace_tanh_gradient(float *g, const float *y, float *b, long n, long m)
    void headrace_layer(
        const float *x, const float *w, const float *b, float *y, long n, long k, long m, int hidden, float *scratch
    )
    void headrace_weight_gradient(const float *g, const float *x, float *to, long n, long k, long m, float *scratch)
    void headrace_product(const float *x, const float *w, float *y, long n, long k, long m, float *scratch)
    long headrace_scratch(long n, long k, long m)


cdef float *_scratch(Py_ssize_t n, list weights) except NULL:
    """Allocates what every product of a network needs, for n rows."""
    cdef Py_ssize_t size = 0, k, m
    for weight in weights:
        m, k = weight.shape
        size = max(size, k * m + headrace_scratch(n, k, m), n * m + headrace_scratch(m, n, k), headrace_scratch(n, m, k))
    cdef float *memory = <float *>malloc(max(size, 1) * sizeof(float))
    if memory == NULL:
        raise MemoryError(f"{size} numbers for the products of a network")
    return memory


def network(const float[:, ::1] rows, list weights, list biases, list outputs):
    """Computes linear layers with tanh between them.

    Args:
        rows: `[n, k]`, n > 0.
        weights: of each layer, `[m, k]`.
        biases: of each layer, `[m]`.
        outputs: receive the outputs of each layer, `[n, m]`.

    Raises:
        ValueError: the shapes of weights, biases and rows do not fit.
    """
    cdef float *scratch = _scratch(rows.shape[0], weights)
    cdef const float[:, ::1] weight
    cdef const float[::1] bias
    cdef float[:, ::1] to
    cdef Py_ssize_t index, n = rows.shape[0]
    try:
        for index in range(len(weights)):
            weight, bias, to = weights[index], biases[index], outputs[index]
            if weight.shape[1] != rows.shape[1] or len(bias) != weight.shape[0]:
                raise ValueError(
                    f"a layer with a weight [{weight.shape[0]}, {weight.shape[1]}] and a bias [{len(bias)}] cannot take rows "
                    f"of {rows.shape[1]} numbers"
                )
            headrace_layer(
                &rows[0, 0], &weight[0, 0], &bias[0], &to[0, 0], n, weight.shape[1], weight.shape[0],
                index < len(weights) - 1, scratch
            )
            rows = to
    finally:
        free(scratch)


def network_gradient(
    float[:, ::1] gradient, list weights, list inputs, list of_weights, list of_biases, float[:, ::1] of_rows
):
    """Computes the gradients of a network from that of its outputs.

    Args:
        gradient: that of the outputs, `[n, m]`, n > 0.
        weights: of each layer, `[m, k]`.
        inputs: of each layer, `[n, k]`.
        of_weights, of_biases: receive the gradients of each layer.
        of_rows: receives the gradient of the inputs of the first layer, or None.
    """
    cdef float *scratch = _scratch(gradient.shape[0], weights)
    cdef const float[:, ::1] weight, rows
    cdef float[:, ::1] of_weight, before
    cdef float[::1] of_bias
    cdef Py_ssize_t i, j, index, n = gradient.shape[0], k, m
    try:
        of_bias = of_biases[len(weights) - 1]
        of_bias[:] = 0
        for i in range(n):
            for j in range(gradient.shape[1]):
                of_bias[j] += gradient[i, j]
        for index in range(len(weights) - 1, -1, -1):
            weight, rows, of_weight = weights[index], inputs[index], of_weights[index]
            m, k = weight.shape[0], weight.shape[1]
            headrace_weight_gradient(&gradient[0, 0], &rows[0, 0], &of_weight[0, 0], n, k, m, scratch)
            if index:
                before = np.empty((n, k), np.float32)
                of_bias = of_biases[index - 1]
                headrace_product(&gradient[0, 0], &weight[0, 0], &before[0, 0], n, m, k, scratch)
                headrace_tanh_gradient(&before[0, 0], &rows[0, 0], &of_bias[0], n, k)
                gradient = before
            elif of_rows is not None:
                headrace_product(&gradient[0, 0], &weight[0, 0], &of_rows[0, 0], n, m, k, scratch)
    finally:
        free(scratch)


def categorical(const float[:, :] logits, float[:, ::1] probability, float[::1] log_total):
    """Computes softmax(logits), and the logarithm of the sum that it divides by.

    Args:
        logits: `[n, k]`.
        probability: receives the probabilities, `[n, k]`.
        log_total: receives log Σ exp(logits), `[n]`.
    """
    cdef Py_ssize_t i, j, n = logits.shape[0], k = logits.shape[1]
    cdef double largest, total
    if probability.shape[0] != n or probability.shape[1] != k or len(log_total) != n:
        raise ValueError("logits and probability have different shapes")
    for i in range(n):
        largest = logits[i, 0]
        for j in range(1, k):
            # NaN must not be overlooked: a comparison with it is false.
            if not (logits[i, j] <= largest):
                largest = logits[i, j]
        total = 0.0
        for j in range(k):
            total += exp(logits[i, j] - largest)
        for j in range(k):
            probability[i, j] = <float>(exp(logits[i, j] - largest) / total)
        log_total[i] = <float>(largest + log(total))


def categorical_log_prob(
    const float[:, :] logits, const int64_t[:] action, float[:, ::1] probability, float[::1] log_prob
):
    """Computes log π(action).

    Args:
        logits: `[n, k]`.
        action: `[n]`.
        probability: receives softmax(logits), `[n, k]`.
        log_prob: `[n]`.

    Returns:
        Whether all actions are in 0 … k − 1.
    """
    cdef Py_ssize_t i
    if len(action) != logits.shape[0]:
        raise ValueError("logits and action have different lengths")
    categorical(logits, probability, log_prob)
    for i in range(logits.shape[0]):
        if action[i] < 0 or action[i] >= logits.shape[1]:
            return False
        log_prob[i] = logits[i, action[i]] - log_prob[i]
    return True


def categorical_log_prob_gradient(
    const float[:] gradient, const float[:, ::1] probability, const int64_t[:] action, float[:, ::1] to
):
    """Computes the gradient of logits, (1[action] − p) · gradient.

    Args:
        gradient: that of the log-probabilities, `[n]`.
        probability: `[n, k]`.
        action: `[n]`.
        to: receives the gradient, `[n, k]`.
    """
    cdef Py_ssize_t i, j
    for i in range(to.shape[0]):
        for j in range(to.shape[1]):
            to[i, j] = -gradient[i] * probability[i, j]
        to[i, action[i]] += gradient[i]


def categorical_entropy(const float[:, :] logits, float[:, ::1] probability, float[::1] log_total, float[::1] entropy):
    """Computes −Σ p log p; actions of probability 0 (a logit of −∞) contribute nothing.

    Args:
        logits: `[n, k]`.
        probability: receives softmax(logits), `[n, k]`.
        log_total: receives log Σ exp(logits), `[n]`.
        entropy: `[n]`.
    """
    cdef Py_ssize_t i, j
    cdef double total
    categorical(logits, probability, log_total)
    for i in range(logits.shape[0]):
        total = 0.0
        for j in range(logits.shape[1]):
            if probability[i, j] != 0.0:
                total -= probability[i, j] * (<double>logits[i, j] - log_total[i])
        entropy[i] = <float>total


def categorical_entropy_gradient(
    const float[:] gradient,
    const float[:, :] logits,
    const float[:, ::1] probability,
    const float[::1] log_total,
    const float[::1] entropy,
    float[:, ::1] to,
):
    """Computes the gradient of logits, −p (log p + H) · gradient.

    Args:
        gradient: that of the entropy, `[n]`.
        logits, probability, log_total, entropy: of `categorical_entropy`.
        to: receives the gradient, `[n, k]`.
    """
    cdef Py_ssize_t i, j
    for i in range(to.shape[0]):
        for j in range(to.shape[1]):
            to[i, j] = 0.0
            if probability[i, j] != 0.0:
                to[i, j] = -gradient[i] * probability[i, j] * (logits[i, j] - log_total[i] + entropy[i])


def gaussian_log_prob(
    const float[:, :] mean,
    const float[:, :] log_std,
    const float[:, :] action,
    float[::1] log_prob,
    float[:, ::1] by_mean,
    float[:, ::1] by_log_std,
):
    """Computes the log density of vectors, and its derivatives.

    Args:
        mean, log_std, action: `[n, d]`.
        log_prob: `[n]`.
        by_mean, by_log_std: receive the derivatives, `[n, d]`.
    """
    cdef Py_ssize_t i, j, n = mean.shape[0], d = mean.shape[1]
    cdef double total, inverse, standard
    if log_std.shape[0] != n or action.shape[0] != n or log_std.shape[1] != d or action.shape[1] != d:
        raise ValueError("mean, log_std and action have different shapes")
    for i in range(n):
        total = 0.0
        for j in range(d):
            inverse = exp(-log_std[i, j])
            standard = (action[i, j] - mean[i, j]) * inverse
            total -= 0.5 * standard * standard + log_std[i, j] + 0.9189385332046727  # log √(2 π)
            by_mean[i, j] = <float>(standard * inverse)
            by_log_std[i, j] = <float>(standard * standard - 1.0)
        log_prob[i] = <float>total


def ppo_losses(
    const float[:] log_prob,
    const float[:] entropy,
    const float[:] value,
    const float[:] old_log_prob,
    const float[:] advantage,
    const float[:] returns,
    const float[:] old_value,
    double clip,
    double value_clip,
    float[::1] by_log_prob,
    float[::1] by_value,
):
    """Computes the losses of PPO and their derivatives; see `headrace.algos.pg.surrogate`.

    Args:
        log_prob, entropy, value: of the current parameters, `[n]`.
        old_log_prob, advantage, returns, old_value: of the batch, `[n]`.
        clip, value_clip: the clip ranges; no clipping of values if `value_clip` is negative.
        by_log_prob: receives the derivative of the policy loss, `[n]`.
        by_value: receives the derivative of the value loss, `[n]`.

    Returns:
        Policy loss, value loss, mean entropy, KL divergence and clipped fraction.
    """
    cdef Py_ssize_t i, n = len(log_prob)
    cdef double policy = 0.0, values = 0.0, entropies = 0.0, divergence = 0.0, clipped = 0.0
    cdef double log_ratio, ratio, near, gain, limited, error, other
    for i in range(n):
        log_ratio = <double>log_prob[i] - old_log_prob[i]
        ratio = exp(log_ratio)
        near = min(max(ratio, 1.0 - clip), 1.0 + clip)
        gain, limited = ratio * advantage[i], near * advantage[i]
        if gain <= limited or not (limited <= gain):  # the second for NaN
            by_log_prob[i] = <float>(-gain / n)
            policy -= gain
        else:
            by_log_prob[i] = 0.0
            policy -= limited
        divergence += ratio - 1.0 - log_ratio
        clipped += abs(ratio - 1.0) > clip
        error = <double>value[i] - returns[i]
        if value_clip >= 0.0:
            other = old_value[i] + min(max(<double>value[i] - old_value[i], -value_clip), value_clip) - returns[i]
            if other * other > error * error:
                values += other * other
                by_value[i] = 0.0
            else:
                values += error * error
                by_value[i] = <float>(error / n)
        else:
            values += error * error
            by_value[i] = <float>(error / n)
        entropies += entropy[i]
    return policy / n, 0.5 * values / n, entropies / n, divergence / n, clipped / n
