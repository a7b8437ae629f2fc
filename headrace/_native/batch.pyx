# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""What happens once per batch: noise by address, and the statistics of episodes."""

cimport numpy as cnp
from libc.math cimport pow
from libc.stdint cimport int64_t, uint64_t

import numpy as np

cnp.import_array()

VERSION = 4  # of the interface; a build of another version is not used


cdef inline uint64_t _mix(uint64_t x) noexcept nogil:
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


def uniforms(const uint64_t[::1] keys, uint64_t first, float[:, :, :] to):
    """Draws the numbers of `headrace.rng.uniforms`.

    Args:
        keys: keys of the environments, `[n]`.
        first: number of the first draw of each environment, modulo 2^64.
        to: receives the draws, `[n_steps, n, size]`.
    """
    cdef Py_ssize_t t, column, k, size = to.shape[2]
    cdef uint64_t address
    for t in range(to.shape[0]):
        for k in range(size):
            address = _mix((first + <uint64_t>(t * size + k)) * <uint64_t>0x9E3779B97F4A7C15)
            for column in range(to.shape[1]):
                to[t, column, k] = (<float>(_mix(address ^ keys[column]) >> 41) + 0.5) * <float>(1.0 / 8388608.0)


def add_episodes(
    const float[:, :] reward,
    const int64_t[::1] stepped,
    const int64_t[::1] times,
    const int64_t[::1] columns,
    const int64_t[::1] begin,
    int64_t gap,
    double discount,
    int64_t[::1] first,
    int64_t[::1] length,
    double[::1] returns,
    double[::1] discounted,
    int64_t[::1] nonzero,
):
    """Adds a batch to the statistics of running episodes; see `headrace.samplers.traj_info.EpisodeColumns.add`.

    Args:
        reward: rewards `[T, n]`.
        stepped: `[n]`, the row in which each environment stopped.
        times: `[N]`, rows in which episodes ended, ascending.
        columns: `[N]`, columns in which they ended.
        begin: `[n]`, first row of each column that belongs to an episode.
        gap: number of rows after each end that belong to no episode.
        discount: discount factor.
        first: `[n]`, receives `begin` for the next batch.
        length, returns, discounted, nonzero: `[n]`, statistics of the running episodes, updated.

    Returns:
        length, return, discounted return and number of nonzero rewards of the ended episodes, each `[N]`.
    """
    cdef Py_ssize_t k, column, n_ends = len(times), n = len(begin)
    cdef int64_t[::1] start = np.array(begin)
    ended_length, ended_nonzero = np.empty(n_ends, np.int64), np.empty(n_ends, np.int64)
    ended_return, ended_discounted = np.empty(n_ends), np.empty(n_ends)
    cdef int64_t[::1] lengths = ended_length, nonzeros = ended_nonzero
    cdef double[::1] sums = ended_return, discounted_sums = ended_discounted
    for k in range(n_ends):
        column = columns[k]
        _add(reward, column, start[column], times[k] + 1, discount, length, returns, discounted, nonzero)
        lengths[k], nonzeros[k] = length[column], nonzero[column]
        sums[k], discounted_sums[k] = returns[column], discounted[column]
        length[column] = nonzero[column] = 0
        returns[column] = discounted[column] = 0
        start[column] = times[k] + 1 + gap
    for column in range(n):
        _add(reward, column, start[column], stepped[column], discount, length, returns, discounted, nonzero)
        first[column] = max(start[column] - reward.shape[0], 0)
    return ended_length, ended_return, ended_discounted, ended_nonzero


cdef void _add(
    const float[:, :] reward,
    Py_ssize_t column,
    Py_ssize_t start,
    Py_ssize_t stop,
    double discount,
    int64_t[::1] length,
    double[::1] returns,
    double[::1] discounted,
    int64_t[::1] nonzero,
) noexcept:
    """Adds the rows start to stop − 1 of a column. Sums over them are taken first, as in the NumPy twin."""
    cdef Py_ssize_t t
    cdef double value, total = 0, weighted = 0, weight = 1
    cdef int64_t count = 0
    for t in range(start, stop):
        value = reward[t, column]
        total += value
        count += value != 0
        weighted += weight * value
        weight *= discount
    if stop > start:
        if discount != 1:
            weighted *= pow(discount, <double>length[column])
        returns[column] += total
        discounted[column] += weighted
        nonzero[column] += count
        length[column] += stop - start
