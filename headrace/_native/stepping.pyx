# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The inner loop of `ScalarEnvs`: steps environments and records what the usual environment returns.

It has no rules of its own. An answer that differs in any way from the usual one (another type, shape, dtype or layout,
a NumPy reward …) goes to the function `record`, which is the one that also runs where this module is not built: it writes
the answer, casts it or raises.
"""

cimport numpy as cnp
from cpython.buffer cimport PyBUF_ND, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.dict cimport PyDict_GetItemWithError
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.ref cimport PyObject
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

import numpy as np
from gymnasium import spaces

cnp.import_array()

VERSION = 4  # of the interface; a build of another version is not used

cdef extern from "Python.h":
    PyObject* Py_TYPE_ptr "(PyObject*)Py_TYPE"(object)
    long long PyLong_AsLongLongAndOverflow(object, int*) except? -1
    double PyLong_AsDouble(object) except? -1.0

cdef object _ndarray = np.ndarray
cdef object _float64 = np.float64, _float32 = np.float32, _int64 = np.int64, _int32 = np.int32
cdef object _true = np.True_, _false = np.False_  # the only two of their type
cdef int64_t _EXACT = 1 << 53  # whole numbers up to this one are floats, too
cdef double _FLOAT32_MAX = float(np.finfo(np.float32).max)


cdef inline bint _is_true(object value):
    return value is True or value is _true


cdef inline bint _is_false(object value):
    return value is False or value is _false


# What a leaf does with a value.
cdef enum:
    UNUSUAL = 0  # not written: `record` decides
    WRITTEN = 1
    NOT_FINITE = 2  # written, and contains NaN or infinity


cdef class Leaf:
    """Where one leaf of an observation is written, for all columns; the base class writes nothing itself."""

    cdef int write(self, Py_ssize_t column, object value) except -1:
        return UNUSUAL


cdef class ArrayLeaf(Leaf):
    """An array of a fixed shape and dtype: the leaf of a Box, MultiDiscrete or MultiBinary."""

    cdef cnp.ndarray to
    cdef int type_num
    cdef char* data
    cdef Py_ssize_t stride, nbytes
    cdef int ndim
    cdef char kind

    def __cinit__(self, cnp.ndarray to):
        self.to = to
        self.type_num = cnp.PyArray_TYPE(to)
        self.data = <char*>cnp.PyArray_DATA(to)
        self.ndim = cnp.PyArray_NDIM(to) - 1
        self.stride = cnp.PyArray_STRIDE(to, 0)
        self.nbytes = to.itemsize
        cdef int axis
        for axis in range(self.ndim):
            self.nbytes *= cnp.PyArray_DIM(to, axis + 1)
        # 'd' and 'f' are checked here; other floats (float16, long double) are left to the caller.
        self.kind = ord(to.dtype.char) if to.dtype.kind == "f" else 0

    cdef int write(self, Py_ssize_t column, object value) except -1:
        if type(value) is not _ndarray:
            return UNUSUAL
        cdef cnp.ndarray array = <cnp.ndarray>value
        # Not the dtype objects: those that were pickled, as in workers, are copies.
        if cnp.PyArray_TYPE(array) != self.type_num or not self.fits(array):
            return UNUSUAL
        cdef char* to = self.data + column * self.stride
        memcpy(to, cnp.PyArray_DATA(array), self.nbytes)
        return self.checked(to)

    cdef bint fits(self, cnp.ndarray array):
        """Returns whether an array has the leaf's shape, and its bytes lie in this machine's usual order."""
        cdef int axis
        if cnp.PyArray_NDIM(array) != self.ndim:
            return False
        for axis in range(self.ndim):
            if cnp.PyArray_DIM(array, axis) != cnp.PyArray_DIM(self.to, axis + 1):
                return False
        return cnp.PyArray_IS_C_CONTIGUOUS(array) and cnp.PyArray_ISALIGNED(array) and not cnp.PyArray_ISBYTESWAPPED(array)

    cdef int checked(self, char* to):
        """Returns whether what was written is finite."""
        if self.kind == 0:
            return WRITTEN
        # All bits of the exponent are set in NaN and infinity, in no other number.
        cdef Py_ssize_t k
        cdef bint found = False
        if self.kind == c"f":
            for k in range(self.nbytes // 4):
                found |= ((<uint32_t*>to)[k] & 0x7F800000u) == 0x7F800000u
        elif self.kind == c"d":
            for k in range(self.nbytes // 8):
                found |= ((<uint64_t*>to)[k] & 0x7FF0000000000000u) == 0x7FF0000000000000u
        else:
            return NOT_FINITE
        return NOT_FINITE if found else WRITTEN


cdef class FieldLeaf(ArrayLeaf):
    """An array among the fields of an info dict: float64 is recorded as float32 where that is declared."""

    cdef int write(self, Py_ssize_t column, object value) except -1:
        cdef int result = ArrayLeaf.write(self, column, value)
        if result != UNUSUAL or self.kind != c"f" or type(value) is not _ndarray:
            return result
        cdef cnp.ndarray array = <cnp.ndarray>value
        if cnp.PyArray_TYPE(array) != cnp.NPY_FLOAT64 or not self.fits(array):
            return UNUSUAL
        cdef float* to = <float*>(self.data + column * self.stride)
        cdef const double* came = <const double*>cnp.PyArray_DATA(array)
        cdef Py_ssize_t k
        for k in range(self.nbytes // 4):
            to[k] = <float>came[k]
        return self.checked(<char*>to)


cdef class NumberLeaf(FieldLeaf):
    """One number among the fields of an info dict: Python's, NumPy's, or an array without dimensions."""

    cdef int64_t low, high
    cdef bint real, truth
    cdef object scalar

    def __cinit__(self, cnp.ndarray to):
        kind, self.scalar = to.dtype.kind, to.dtype.type
        self.real, self.truth = kind == "f", kind == "b"
        if self.real:
            self.low, self.high = -_EXACT, _EXACT
        elif self.truth:
            self.low, self.high = 0, 1
        else:
            limits = np.iinfo(to.dtype)
            self.low, self.high = limits.min, min(limits.max, np.iinfo(np.int64).max)

    cdef int write(self, Py_ssize_t column, object value) except -1:
        cdef char* to = self.data + column * self.stride
        cdef int overflow = 0
        cdef int64_t whole
        cdef int32_t short
        if type(value) is float or type(value) is _float64:
            return self.put_real(to, PyFloat_AS_DOUBLE(value)) if self.real else UNUSUAL
        if _is_true(value) or _is_false(value):
            return self.put_whole(to, _is_true(value))
        if type(value) is self.scalar:
            cnp.PyArray_ScalarAsCtype(value, to)
            return self.checked(to)
        if type(value) is _ndarray:
            return FieldLeaf.write(self, column, value)
        if self.truth:
            return UNUSUAL
        if type(value) is int:
            whole = PyLong_AsLongLongAndOverflow(value, &overflow)
            return UNUSUAL if overflow else self.put_whole(to, whole)
        if type(value) is _int64:
            cnp.PyArray_ScalarAsCtype(value, &whole)
            return self.put_whole(to, whole)
        if type(value) is _int32:
            cnp.PyArray_ScalarAsCtype(value, &short)
            return self.put_whole(to, short)
        return UNUSUAL

    cdef int put_real(self, char* to, double value):
        if self.kind == c"f":
            (<float*>to)[0] = <float>value
        else:
            (<double*>to)[0] = value
        return self.checked(to)

    cdef int put_whole(self, char* to, int64_t value):
        if value < self.low or value > self.high:
            return UNUSUAL
        if self.real:
            return self.put_real(to, <double>value)
        # The lowest bytes are those of the same number in a shorter type, signed or not.
        if self.nbytes == 1:
            (<int8_t*>to)[0] = <int8_t>value
        elif self.nbytes == 2:
            (<int16_t*>to)[0] = <int16_t>value
        elif self.nbytes == 4:
            (<int32_t*>to)[0] = <int32_t>value
        else:
            (<int64_t*>to)[0] = value
        return WRITTEN


cdef class DiscreteLeaf(Leaf):
    """A whole number in a range."""

    cdef cnp.ndarray to
    cdef char* data
    cdef Py_ssize_t stride
    cdef int64_t low, high

    def __cinit__(self, cnp.ndarray to, low, high):
        self.to = to
        self.data = <char*>cnp.PyArray_DATA(to)
        self.stride = cnp.PyArray_STRIDE(to, 0)
        self.low, self.high = low, high

    cdef int write(self, Py_ssize_t column, object value) except -1:
        cdef int overflow = 0
        if type(value) is not int:
            return UNUSUAL
        cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow or number < self.low or number >= self.high:
            return UNUSUAL
        (<int64_t*>(self.data + column * self.stride))[0] = number
        return WRITTEN


cdef class DictLeaf(Leaf):
    """A dict with fixed keys."""

    cdef tuple keys, children

    def __cinit__(self, tuple keys, tuple children):
        self.keys, self.children = keys, children

    cdef int write(self, Py_ssize_t column, object value) except -1:
        if type(value) is not dict or len(<dict>value) != len(self.keys):
            return UNUSUAL
        cdef int result = WRITTEN, one
        cdef Py_ssize_t k
        cdef PyObject* child
        for k in range(len(self.keys)):
            child = PyDict_GetItemWithError(value, self.keys[k])
            if child == NULL:
                return UNUSUAL
            one = (<Leaf>self.children[k]).write(column, <object>child)
            if one == UNUSUAL:
                return UNUSUAL
            if one == NOT_FINITE:
                result = NOT_FINITE
        return result


cdef class TupleLeaf(Leaf):
    """A tuple of a fixed length."""

    cdef tuple children

    def __cinit__(self, tuple children):
        self.children = children

    cdef int write(self, Py_ssize_t column, object value) except -1:
        if type(value) is not tuple or len(<tuple>value) != len(self.children):
            return UNUSUAL
        cdef int result = WRITTEN, one
        cdef Py_ssize_t k
        for k in range(len(self.children)):
            one = (<Leaf>self.children[k]).write(column, (<tuple>value)[k])
            if one == UNUSUAL:
                return UNUSUAL
            if one == NOT_FINITE:
                result = NOT_FINITE
        return result


def leaf_of(space, to):
    """Returns the `Leaf` that writes observations of `space` into the tree `to` of `[n, ...]`."""
    if isinstance(space, spaces.Dict):
        return DictLeaf(tuple(space.spaces), tuple([leaf_of(child, to[key]) for key, child in space.spaces.items()]))
    if isinstance(space, spaces.Tuple):
        return TupleLeaf(tuple([leaf_of(child, own) for child, own in zip(space.spaces, to)]))
    if to.dtype != space.dtype or not to.dtype.isnative or not to[:1].flags.c_contiguous:
        return Leaf()
    if isinstance(space, spaces.Discrete):
        return DiscreteLeaf(to, int(space.start), int(space.start + space.n)) if to.dtype == np.int64 else Leaf()
    return ArrayLeaf(to) if to.shape[1:] == space.shape else Leaf()


cdef class Fields:
    """Where the declared fields of info dicts are written.

    Args:
        fields: the fields, `headrace.envs.infos.InfoField`. Their `write` records what is unusual.
        to: arrays `[n, ...]` by key.
    """

    cdef tuple _keys, _leaves, _writes, _to

    def __init__(self, fields, to):
        self._keys = tuple([field.key for field in fields])
        self._to = tuple([to[key] for key in self._keys])
        self._leaves = tuple([field_leaf_of(own) for own in self._to])
        self._writes = tuple([field.write for field in fields])

    def write(self, Py_ssize_t column, info):
        """Records the fields of one environment's info dict; raises Mismatch for one that is missing or unfit."""
        self.record(column, info)

    cdef int record(self, Py_ssize_t column, object info) except -1:
        """Does the same, and returns whether everything that was written here is finite."""
        cdef bint usual = type(info) is dict
        cdef int result = WRITTEN, one
        cdef PyObject* value
        cdef Py_ssize_t k
        for k in range(len(self._keys)):
            value = PyDict_GetItemWithError(info, self._keys[k]) if usual else NULL
            one = UNUSUAL if value == NULL else (<Leaf>self._leaves[k]).write(column, <object>value)
            if one == UNUSUAL:
                self._writes[k](self._to[k], column, info)
            if one != WRITTEN:
                result = NOT_FINITE
        return result


def field_leaf_of(to):
    """Returns the `Leaf` that writes values of a field of info dicts into the array `to`, `[n, ...]`."""
    if to.dtype.char not in "fd?bBhHiIlLqQ" or not to.dtype.isnative or not to[:1].flags.c_contiguous:
        return Leaf()
    return FieldLeaf(to) if to.ndim > 1 else NumberLeaf(to)


cdef class Row:
    """Where the answers of one time step are written, `[n, ...]`.

    Args:
        leaf: writes the observations; see `leaf_of`.
        fields: writes the declared fields of info dicts; None: there are none.
        reward: float32 `[n]`.
        terminated: bool `[n]`.
        truncated: bool `[n]`.
    """

    cdef Leaf _leaf
    cdef readonly Fields fields
    cdef float[:] _reward
    cdef cnp.uint8_t[:] _terminated, _truncated

    def __init__(self, Leaf leaf not None, Fields fields, reward, terminated, truncated):
        self._leaf, self.fields, self._reward = leaf, fields, reward
        self._terminated, self._truncated = terminated.view(np.uint8), truncated.view(np.uint8)


cdef class Stepper:
    """Steps and resets environments.

    Args:
        env_ids: env ids by column.
        resets: functions without arguments that reset an environment, by column.
        env_cell: index of the cell of the status line that names the environment being called.
    """

    cdef list _env_ids, _resets
    cdef Py_ssize_t _env_cell

    def __init__(self, list env_ids not None, list resets not None, Py_ssize_t env_cell):
        self._env_ids, self._resets, self._env_cell = env_ids, resets, env_cell

    def step(
        self, Row row not None, columns, list steps not None, list actions not None, double[::1] rewards, line, record,
        keep_info, last_info, list ended not None, list infos not None
    ):
        """Steps columns; returns whether everything that was written here is finite.

        Args:
            row: where the answers are written.
            columns: list of the columns to step; None: all.
            steps: functions by column.
            actions: actions by column.
            rewards: receives the rewards, `[n]`; those of columns that are not stepped must be 0.
            line: the status line.
            record: called as record(column, answer) with an answer that is not written here.
            keep_info: called as keep_info(column, info) with the info dict of an answer that is written here; or None.
            last_info: called as last_info(info) with the last info dict of an episode; returns a copy.
            ended: receives the columns whose episodes ended.
            infos: receives the last info dicts of these episodes.
        """
        cdef Py_ssize_t k, column, n = len(self._env_ids) if columns is None else len(<list>columns)
        cdef object answer, reward, info
        cdef tuple parts
        cdef double number
        cdef int written
        cdef bint finite = True, terminated, truncated
        cdef Leaf leaf = row._leaf
        cdef Fields fields = row.fields
        cdef Py_buffer view
        PyObject_GetBuffer(line, &view, PyBUF_WRITABLE | PyBUF_ND)
        cdef int64_t* cells = <int64_t*>view.buf
        try:
            for k in range(n):
                column = k if columns is None else (<list>columns)[k]
                cells[self._env_cell] = <int64_t>self._env_ids[column]
                answer = steps[column](actions[column])
                if type(answer) is tuple and len(<tuple>answer) == 5:
                    parts = <tuple>answer
                    reward = parts[1]
                    terminated, truncated = _is_true(parts[2]), _is_true(parts[3])
                    if (terminated or _is_false(parts[2])) and (truncated or _is_false(parts[3])):
                        if type(reward) is float or type(reward) is _float64:
                            number = PyFloat_AS_DOUBLE(reward)
                        elif type(reward) is int:
                            try:
                                number = PyLong_AsDouble(reward)
                            except OverflowError:
                                number = 2 * _FLOAT32_MAX
                        else:
                            number = 2 * _FLOAT32_MAX
                        if -_FLOAT32_MAX <= number <= _FLOAT32_MAX:  # False for NaN
                            written = leaf.write(column, parts[0])
                            if written != UNUSUAL:
                                rewards[column] = number
                                finite &= written == WRITTEN
                                info = parts[4]
                                if fields is not None:
                                    finite &= fields.record(column, info) == WRITTEN
                                if keep_info is not None:
                                    keep_info(column, info)
                                if terminated or truncated:
                                    row._terminated[column] |= terminated
                                    row._truncated[column] |= truncated
                                    ended.append(column)
                                    infos.append({} if type(info) is dict and not <dict>info else last_info(info))
                                continue
                record(column, answer)
                finite = False
            for k in range(len(self._env_ids)):
                row._reward[k] = <float>rewards[k]
        finally:
            PyBuffer_Release(&view)
        return finite

    def reset(self, Row row not None, list columns not None, line, record):
        """Resets columns; returns whether everything that was written here is finite.

        Args:
            row: where the first observations are written.
            columns: the columns.
            line: the status line.
            record: called as record(column, answer) with an answer that is not written here.
        """
        cdef Py_ssize_t column
        cdef object answer
        cdef tuple parts
        cdef int written
        cdef bint finite = True
        cdef Py_buffer view
        PyObject_GetBuffer(line, &view, PyBUF_WRITABLE | PyBUF_ND)
        cdef int64_t* cells = <int64_t*>view.buf
        try:
            for place in columns:
                column = place
                cells[self._env_cell] = <int64_t>self._env_ids[column]
                answer = self._resets[column]()
                if type(answer) is tuple and len(<tuple>answer) == 2:
                    written = row._leaf.write(column, (<tuple>answer)[0])
                    if written != UNUSUAL:
                        finite &= written == WRITTEN
                        continue
                record(column, answer)
                finite = False
        finally:
            PyBuffer_Release(&view)
        return finite
