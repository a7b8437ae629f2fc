# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Acts for the rows of a batch in place: a small tanh network and the draw of its actions, without a tensor.

`headrace/numpy_acting.py` has the same classes in NumPy.
"""

cimport numpy as cnp
from libc.math cimport isfinite
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

import numpy as np

cnp.import_array()

VERSION = 4  # of the interface; a build of another version is not used
#: Whether the outputs of a row are the same bits whatever the number of rows.
ROWS_ARE_INDEPENDENT = True
#: Multiplications of one matrix product. Beyond this, BLAS is faster where it may use several threads.
LARGEST_PRODUCT = 1 << 22

cdef extern from "kernels.h":
    void headrace_linear(const float*, const float*, const float*, float*, long, long, long) nogil
    void headrace_tanh(float*, long) nogil
    void headrace_normalize(float*, long, const float*, const float*, float, long, long) nogil
    void headrace_lstm(float*, const float*, long, const float*, float*, float*, long, long) nogil
    int headrace_categorical(const float*, long, long, long, const float*, long, int64_t*) nogil
    int headrace_gaussian(const float*, const float*, long, long, const float*, float*) nogil
    int headrace_epsilon_greedy(const float*, long, long, const float*, long, const float*, long, int64_t*) nogil
    void headrace_dueling(float*, long, const float*, long, long, long, long) nogil
    float headrace_mean_of_atoms(const float*, const float*, float*, long) nogil


cdef long _up(long n, long unit):
    return (n + unit - 1) // unit * unit


cdef float* _floats(cnp.ndarray array):
    return <float*>cnp.PyArray_DATA(array)


cdef char* _row(cnp.ndarray array, long t):
    return <char*>cnp.PyArray_DATA(array) + t * cnp.PyArray_STRIDE(array, 0)


def _require(array, dtype, shape):
    """Raises ValueError unless the rows of an array `[T, n, ...]` are contiguous and of this dtype and shape."""
    if array.dtype != dtype or array.shape[1:] != shape or not array[0].flags.c_contiguous:
        raise ValueError(f"rows of {array.dtype} {array.shape}, expected contiguous rows of {np.dtype(dtype)} {shape}")


def _vector(values, long n):
    """Returns a copy, float32 `[n]`; raises ValueError for another number of values."""
    copy = np.array(values, np.float32)
    if copy.shape != (n,):
        raise ValueError(f"{copy.shape}, expected {(n,)}")
    return copy


include "networks.pxi"


cdef class ActorRows:
    """Computes actions, the distributions they are drawn from, and values of rows of a batch, all in place.

    Args:
        policy: gives the outputs of the policy, and the value as its last output if there is no `value`.
        value: gives the value; None: see `policy`.
        noise: float32 `[T + 1, n, noise_size]`.
        action: `[T, n, ...]`, written.
        values: float32 `[T, n]`, written.
    """

    cdef Network _policy, _value
    cdef cnp.ndarray _noise, _action, _values
    cdef long _n, _n_outputs, _noise_size

    def __init__(self, Network policy not None, Network value, noise, action, values):
        self._policy, self._value, self._n = policy, value, policy.n
        self._n_outputs = policy.n_out - (value is None)
        self._noise_size = noise.shape[2]
        _require(noise, np.float32, (self._n, self._noise_size))
        _require(values, np.float32, (self._n,))
        self._noise, self._action, self._values = noise, action, values

    cdef const float* _infer(self, long t, float* values, bint* finite):
        """Returns the outputs of row t, `[n, stride]`, and writes values `[n]` and whether they are finite."""
        cdef const float* outputs = self._policy.run(t)
        cdef const float* own = outputs + self._n_outputs
        cdef long i, stride = self._policy.stride
        if self._value is not None:
            own, stride = self._value.run(t), self._value.stride
        finite[0] = True
        for i in range(self._n):
            values[i] = own[i * stride]
            finite[0] &= isfinite(values[i]) != 0
        return outputs

    cdef bint _draw(self, long t, const float* outputs):
        """Writes distributions and actions of row t; returns whether they are finite."""
        raise NotImplementedError

    def act(self, long t):
        """Writes row t and updates the state; returns False, with the state unchanged, if an output is not finite."""
        cdef bint finite
        cdef const float* outputs = self._infer(t, <float*>_row(self._values, t), &finite)
        if not finite or not self._draw(t, outputs):
            return False
        self._policy.keep()
        return True

    def value(self, long t, cnp.float32_t[::1] to):
        """Writes the values of row t into `to`, `[n]`; returns whether they are finite."""
        cdef bint finite
        self._infer(t, &to[0], &finite)
        return bool(finite)


cdef class CategoricalRows(ActorRows):
    """`ActorRows` of a softmax over logits.

    Args:
        policy, value, noise, values: see `ActorRows`; noise_size is 1.
        action: int64 `[T, n]`, written.
        logits: float32 `[T, n, n_actions]`, written.
    """

    cdef cnp.ndarray _logits
    cdef bint _greedy

    def __init__(self, Network policy not None, Network value, noise, action, values, logits):
        super().__init__(policy, value, noise, action, values)
        _require(action, np.int64, (self._n,))
        _require(logits, np.float32, (self._n, self._n_outputs))
        self._logits = logits

    def load(self, bint greedy):
        """Sets whether to take the most probable actions."""
        self._greedy = greedy

    cdef bint _draw(self, long t, const float* outputs):
        cdef float* logits = <float*>_row(self._logits, t)
        cdef const float* noise = NULL if self._greedy else <float*>_row(self._noise, t)
        cdef long i, m = self._n_outputs
        for i in range(self._n):
            memcpy(logits + i * m, outputs + i * self._policy.stride, m * sizeof(float))
        return headrace_categorical(logits, m, self._n, m, noise, self._noise_size, <int64_t*>_row(self._action, t))


cdef class GaussianRows(ActorRows):
    """`ActorRows` of diagonal Gaussians over vectors of `d` numbers.

    Args:
        policy, value, noise, values: see `ActorRows`; noise_size is `d` rounded up to an even number.
        action: float32 `[T, n, d]`, written.
        mean: float32 `[T, n, d]`, written.
        log_std: float32 `[T, n, d]`, written.
    """

    cdef cnp.ndarray _mean, _log_std, _middle, _half, _offset, _low, _high
    cdef long _d
    cdef bint _greedy, _state_dependent

    def __init__(self, Network policy not None, Network value, noise, action, values, mean, log_std):
        super().__init__(policy, value, noise, action, values)
        self._d = mean.shape[2]
        if self._n_outputs not in (self._d, 2 * self._d) or self._noise_size != _up(self._d, 2):
            raise ValueError(f"{self._n_outputs} outputs and {self._noise_size} uniforms for {self._d} numbers")
        self._state_dependent = self._n_outputs > self._d
        for array in (action, mean, log_std):
            _require(array, np.float32, (self._n, self._d))
        self._mean, self._log_std = mean, log_std

    def load(self, bint greedy, middle, half, offset, low, high):
        """Sets whether to take the means, and how outputs become distributions.

        A mean is middle + half · output; the logarithm of a standard deviation is offset + its output, or + 0 if the
        policy outputs means only, limited to low … high. All are float32 `[d]`.
        """
        self._greedy = greedy
        self._middle, self._half, self._offset = (_vector(x, self._d) for x in (middle, half, offset))
        self._low, self._high = _vector(low, self._d), _vector(high, self._d)

    cdef bint _draw(self, long t, const float* outputs):
        cdef float* mean = <float*>_row(self._mean, t)
        cdef float* log_std = <float*>_row(self._log_std, t)
        cdef float* middle = _floats(self._middle)
        cdef float* half = _floats(self._half)
        cdef float* offset = _floats(self._offset)
        cdef float* low = _floats(self._low)
        cdef float* high = _floats(self._high)
        cdef const float* noise = NULL if self._greedy else <float*>_row(self._noise, t)
        cdef long i, k, d = self._d
        cdef float v
        for i in range(self._n):
            for k in range(d):
                mean[i * d + k] = middle[k] + half[k] * outputs[k]
                v = offset[k] + outputs[d + k] if self._state_dependent else offset[k]
                v = low[k] if v < low[k] else v  # NaN stays NaN
                log_std[i * d + k] = high[k] if v > high[k] else v
            outputs += self._policy.stride
        return headrace_gaussian(mean, log_std, self._n, d, noise, <float*>_row(self._action, t))


cdef class ValueRows:
    """Computes values of all actions and chooses ε-greedily among them, for rows of a batch, in place.

    Args:
        network: gives the values of the actions, or logits of atoms, as many for each action in turn.
        shared: None, or the V of a dueling head, of which `network` is the advantages.
        noise: float32 `[T + 1, n, 2]`, or 3 with the env id as the last.
        action: int64 `[T, n]`, written.
        q: float32 `[T, n, n_actions]`, written.
    """

    cdef Network _network, _shared
    cdef cnp.ndarray _noise, _action, _q, _atoms, _work, _last, _epsilon
    cdef long _n, _n_actions, _n_atoms, _noise_size

    def __init__(self, Network network not None, Network shared, noise, action, q):
        self._network, self._shared, self._n = network, shared, network.n
        self._n_actions, self._n_atoms = q.shape[2], network.n_out // q.shape[2]
        self._noise_size = noise.shape[2]
        if network.n_out != self._n_actions * self._n_atoms or self._noise_size not in (2, 3):
            raise ValueError(f"{network.n_out} outputs and {self._noise_size} numbers of noise for {q.shape[2]} actions")
        if shared is not None and (shared.n, shared.n_out) != (self._n, self._n_atoms):
            raise ValueError(f"a shared value of {shared.n_out} outputs for {self._n_atoms} per action")
        _require(noise, np.float32, (self._n, self._noise_size))
        _require(action, np.int64, (self._n,))
        _require(q, np.float32, (self._n, self._n_actions))
        self._noise, self._action, self._q = noise, action, q
        self._work = np.zeros(self._n_atoms, np.float32)
        self._last = np.zeros((self._n, self._n_actions), np.float32)

    def load(self, epsilon, atoms):
        """Sets ε, float32 `[1]` or of every environment by its env id, and the atoms, float32 `[n_atoms]`.

        Without atoms (None) the network gives values.
        """
        if len(epsilon) > 1 and self._noise_size < 3:
            raise ValueError("ε of every environment, but no env ids in the noise")
        self._epsilon, self._atoms = _vector(epsilon, len(epsilon)), None
        if atoms is not None or self._n_atoms > 1:
            self._atoms = _vector(atoms, self._n_atoms)

    cdef void _infer(self, long t, float* q):
        """Writes the values of row t into `[n, n_actions]`."""
        cdef float* outputs = self._network.run(t)
        cdef long i, k, stride = self._network.stride, m = self._n_actions
        if self._shared is not None:
            headrace_dueling(outputs, stride, self._shared.run(t), self._shared.stride, self._n, m, self._n_atoms)
        for i in range(self._n):
            if self._atoms is None:
                memcpy(q + i * m, outputs, m * sizeof(float))
            else:
                for k in range(m):
                    q[i * m + k] = headrace_mean_of_atoms(
                        outputs + k * self._n_atoms, _floats(self._atoms), _floats(self._work), self._n_atoms
                    )
            outputs += stride

    def act(self, long t):
        """Writes row t; returns False, having written nothing of use, if a value is not finite."""
        cdef float* q = <float*>_row(self._q, t)
        self._infer(t, q)
        return bool(
            headrace_epsilon_greedy(
                q,
                self._n,
                self._n_actions,
                <float*>_row(self._noise, t),
                self._noise_size,
                _floats(self._epsilon),
                cnp.PyArray_SIZE(self._epsilon),
                <int64_t*>_row(self._action, t),
            )
        )

    def value(self, long t, cnp.float32_t[::1] to):
        """Writes the values of the best actions of row t into `to`, `[n]`; returns whether all values are finite."""
        cdef float* q = _floats(self._last)
        cdef long i, k
        cdef bint finite = True
        self._infer(t, q)
        for i in range(self._n):
            to[i] = q[0]
            for k in range(self._n_actions):
                finite &= isfinite(q[k]) != 0
                to[i] = q[k] if q[k] > to[i] else to[i]
            q += self._n_actions
        return bool(finite)
