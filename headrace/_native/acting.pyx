# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Acts for the rows of a batch in place: a small tanh network and the draw of its actions, without a tensor."""

cimport numpy as cnp
from libc.math cimport isfinite
from libc.stdint cimport int64_t
from libc.string cimport memcpy

import numpy as np

cnp.import_array()

VERSION = 2  # of the interface; a build of another version is not used

cdef extern from "kernels.h":
    void headrace_linear(const float*, const float*, const float*, float*, long, long, long) nogil
    void headrace_tanh(float*, long) nogil
    int headrace_categorical(const float*, long, long, long, const float*, long, int64_t*) nogil


cdef long _up(long n, long unit):
    return (n + unit - 1) // unit * unit


cdef class Network:
    """A network of linear layers with tanh between them, over up to `n` rows of float32.

    Args:
        sizes: sizes of the input, of the hidden layers and of the output.
        n: number of rows.
    """

    cdef list _weights, _biases, _outputs
    cdef cnp.ndarray _input
    cdef readonly long n, n_in, n_out, stride
    cdef long _n_rows

    def __init__(self, sizes, long n):
        self.n, self.n_in, self.n_out = n, sizes[0], sizes[len(sizes) - 1]
        self._n_rows = _up(n, 4)
        self._input = np.zeros((self._n_rows, sizes[0]), np.float32)
        self._weights, self._biases, self._outputs = [], [], []
        cdef long k = sizes[0]
        for size in sizes[1:]:
            m = _up(size, 8)
            self._weights.append(np.zeros((k, m), np.float32))
            self._biases.append(np.zeros(m, np.float32))
            self._outputs.append(np.zeros((self._n_rows, m), np.float32))
            k = m
        self.stride = k

    def load(self, layers):
        """Copies the parameters: for each layer its weight `[n_out, n_in]` and bias `[n_out]`."""
        for (weight, bias), to, to_bias in zip(layers, self._weights, self._biases):
            to[: weight.shape[1], : weight.shape[0]] = weight.T
            to_bias[: len(bias)] = bias

    cdef const float* run(self, const char* rows):
        """Returns the outputs `[n, stride]` of contiguous input rows."""
        cdef cnp.ndarray weight, bias, output, x = self._input
        cdef Py_ssize_t layer, n_layers = len(self._weights)
        memcpy(cnp.PyArray_DATA(x), rows, self.n * self.n_in * sizeof(float))
        for layer in range(n_layers):
            weight, bias, output = self._weights[layer], self._biases[layer], self._outputs[layer]
            headrace_linear(
                <float*>cnp.PyArray_DATA(x),
                <float*>cnp.PyArray_DATA(weight),
                <float*>cnp.PyArray_DATA(bias),
                <float*>cnp.PyArray_DATA(output),
                self._n_rows,
                cnp.PyArray_DIM(weight, 0),
                cnp.PyArray_DIM(weight, 1),
            )
            if layer < n_layers - 1:
                headrace_tanh(<float*>cnp.PyArray_DATA(output), cnp.PyArray_SIZE(output))
            x = output
        return <const float*>cnp.PyArray_DATA(x)


def _require(array, dtype, shape):
    """Raises ValueError unless the rows of an array `[T, n, ...]` are contiguous and of this dtype and shape."""
    if array.dtype != dtype or array.shape[1:] != shape or not array[0].flags.c_contiguous:
        raise ValueError(f"rows of {array.dtype} {array.shape}, expected contiguous rows of {np.dtype(dtype)} {shape}")


cdef class CategoricalRows:
    """Computes actions, logits and values of rows of a batch from its observations and noise, all in place.

    Args:
        policy: gives logits, and the value as its last output if there is no `value`.
        value: gives the value; None: see `policy`.
        observation: float32 `[T + 1, n, n_in]`.
        noise: float32 `[T + 1, n, 1]`.
        action: int64 `[T, n]`, written.
        logits: float32 `[T, n, n_actions]`, written.
        values: float32 `[T, n]`, written.
    """

    cdef Network _policy, _value
    cdef cnp.ndarray _observation, _noise, _action, _logits, _values
    cdef long _n, _n_actions

    def __init__(self, Network policy not None, Network value, observation, noise, action, logits, values):
        self._policy, self._value = policy, value
        self._n, self._n_actions = policy.n, policy.n_out - (value is None)
        n = policy.n
        _require(observation, np.float32, (n, policy.n_in))
        _require(noise, np.float32, (n, 1))
        _require(action, np.int64, (n,))
        _require(logits, np.float32, (n, self._n_actions))
        _require(values, np.float32, (n,))
        self._observation, self._noise, self._action = observation, noise, action
        self._logits, self._values = logits, values

    cdef bint _infer(self, long t, float* logits, float* values):
        """Returns whether the values, written to `[n]`, are finite; writes logits to `[n, n_actions]` unless NULL."""
        cdef const char* rows = <const char*>cnp.PyArray_DATA(self._observation) + t * cnp.PyArray_STRIDE(self._observation, 0)
        cdef const float* outputs = self._policy.run(rows)
        cdef const float* own = outputs + self._n_actions
        cdef long i, stride = self._policy.stride, value_stride = stride
        cdef bint finite = True
        if logits != NULL:
            for i in range(self._n):
                memcpy(logits + i * self._n_actions, outputs + i * stride, self._n_actions * sizeof(float))
        if self._value is not None:
            own, value_stride = self._value.run(rows), self._value.stride
        for i in range(self._n):
            values[i] = own[i * value_stride]
            finite &= isfinite(values[i]) != 0
        return finite

    def act(self, long t, bint greedy):
        """Writes row t; returns False, having written nothing of use, if an output is not finite."""
        cdef float* logits = <float*>(<char*>cnp.PyArray_DATA(self._logits) + t * cnp.PyArray_STRIDE(self._logits, 0))
        cdef float* values = <float*>(<char*>cnp.PyArray_DATA(self._values) + t * cnp.PyArray_STRIDE(self._values, 0))
        cdef int64_t* action = <int64_t*>(<char*>cnp.PyArray_DATA(self._action) + t * cnp.PyArray_STRIDE(self._action, 0))
        cdef float* noise = <float*>(<char*>cnp.PyArray_DATA(self._noise) + t * cnp.PyArray_STRIDE(self._noise, 0))
        if not self._infer(t, logits, values):
            return False
        return bool(
            headrace_categorical(
                logits, self._n_actions, self._n, self._n_actions, NULL if greedy else noise, 1, action
            )
        )

    def value(self, long t, cnp.float32_t[::1] to):
        """Writes the values of row t into `to`; returns whether they are finite."""
        return bool(self._infer(t, NULL, &to[0]))
