# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Polls a counter in shared memory without the interpreter lock; see `headrace.processes.handoff`."""

from libc.stdint cimport int64_t

VERSION = 4  # of the interface; a build of another version is not used

cdef extern from *:
    """
    #include <sched.h>
    #include <time.h>
    static inline int64_t headrace_now(void) {
      struct timespec now;
      clock_gettime(CLOCK_MONOTONIC, &now);
      return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    static inline int64_t headrace_load(const int64_t *cell) { return __atomic_load_n(cell, __ATOMIC_ACQUIRE); }
    """
    int64_t headrace_now() nogil
    int64_t headrace_load(const int64_t*) nogil
    int sched_yield() nogil


def spin(const int64_t[::1] cell, int64_t number, int64_t spin_ns):
    """Polls the first number of `cell` until it is at least `number`; returns False if that took `spin_ns`.

    Every look is followed by `sched_yield`, because the process that moves the counter may need this core.
    """
    cdef int64_t end
    cdef bint reached = False
    with nogil:
        end = headrace_now() + spin_ns
        while headrace_now() < end:
            if headrace_load(&cell[0]) >= number:
                reached = True
                break
            sched_yield()
    return reached
