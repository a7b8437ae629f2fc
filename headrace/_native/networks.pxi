# The networks of `acting.pyx`, of which this is a part.


cdef class Layer:
    """A linear layer over `n` rows of float32, n a multiple of 4. Outputs are padded to a multiple of 8 with zeros.

    Args:
        n: number of rows.
        n_in: number of inputs, with their padding.
        n_out: number of outputs.
    """

    cdef cnp.ndarray weight, bias, output
    cdef long n, n_in, stride

    def __init__(self, long n, long n_in, long n_out):
        self.n, self.n_in, self.stride = n, n_in, _up(n_out, 8)
        self.weight = np.zeros((n_in, self.stride), np.float32)
        self.bias = np.zeros(self.stride, np.float32)
        self.output = np.zeros((n, self.stride), np.float32)

    cdef load(self, weight, bias):
        self.weight[: weight.shape[1], : weight.shape[0]] = weight.T
        self.bias[: len(bias)] = bias

    cdef float* run(self, const float* x):
        """Returns the outputs `[n, stride]` of inputs `[n, n_in]`."""
        cdef float* y = _floats(self.output)
        headrace_linear(x, _floats(self.weight), _floats(self.bias), y, self.n, self.n_in, self.stride)
        return y


cdef class Network:
    """Linear layers with tanh between them, over the rows of a batch of observations.

    Args:
        sizes: sizes of the input, of the hidden layers and of the output.
        observation: parts of the input, float32 `[T + 1, n, ...]`, that have `sizes[0]` numbers together.
    """

    cdef list _layers
    cdef list _parts, _part_sizes
    cdef cnp.ndarray _input, _shift, _scale
    cdef float _clip
    cdef long _n_seen
    cdef readonly long n, n_out, stride

    def __init__(self, sizes, observation):
        self._parts = list(observation)
        self.n, self.n_out, self._n_seen = self._parts[0].shape[1], sizes[len(sizes) - 1], sizes[0]
        self._part_sizes = [int(np.prod(part.shape[2:])) for part in self._parts]
        for part in self._parts:
            _require(part, np.float32, (self.n, *part.shape[2:]))
        if sum(self._part_sizes) != self._n_seen:
            raise ValueError(f"observations of {sum(self._part_sizes)} numbers, expected {self._n_seen}")
        self._layers = []
        self._build(sizes)

    def _build(self, sizes):
        cdef long n = _up(self.n, 4), n_in = sizes[0]
        self._input = np.zeros((n, n_in), np.float32)
        for size in sizes[1:]:
            self._layers.append(Layer(n, n_in, size))
            n_in = _up(size, 8)
        self.stride = n_in

    def load(self, layers, norm):
        """Copies the parameters.

        Args:
            layers: for each layer its weight `[n_out, n_in]` and bias `[n_out]`.
            norm: shift and scale, float32 as an observation, and clip, by which to normalize observations; None: they
                are not normalized.
        """
        cdef Layer layer
        for layer, (weight, bias) in zip(self._layers, layers):
            layer.load(weight, bias)
        self._shift = None
        if norm is not None:
            self._shift, self._scale = _vector(norm[0], self._n_seen), _vector(norm[1], self._n_seen)
            self._clip = norm[2]

    cdef float* _see(self, long t):
        """Writes the observations of row t, normalized, to the left of the input, and returns the input."""
        cdef float* x = _floats(self._input)
        cdef float* to = x
        cdef const char* seen
        cdef long i, size, stride = cnp.PyArray_DIM(self._input, 1)
        cdef Py_ssize_t k
        for k in range(len(self._parts)):
            seen, size = _row(self._parts[k], t), self._part_sizes[k]
            for i in range(self.n):
                memcpy(to + i * stride, seen + i * size * sizeof(float), size * sizeof(float))
            to += size
        if self._shift is not None:
            headrace_normalize(x, stride, _floats(self._shift), _floats(self._scale), self._clip, self.n, self._n_seen)
        return x

    cdef float* run(self, long t):
        """Returns the outputs `[n, stride]` of row t."""
        cdef float* x = self._see(t)
        cdef Layer layer
        cdef Py_ssize_t index, n_layers = len(self._layers)
        for index in range(n_layers):
            layer = self._layers[index]
            x = layer.run(x)
            if index < n_layers - 1:
                headrace_tanh(x, layer.n * layer.stride)
        return x

    cdef void keep(self):
        """Makes the state after the row that ran last the state of the next row."""


cdef class LstmNetwork(Network):
    """A tanh layer over observation, previous action and previous reward, an LSTM and a linear layer.

    Its layers are the tanh layer, the gates of the input, the gates of the state, both in the order i, f, g, o, and the
    linear layer.

    Args:
        sizes: sizes of the observation, of the previous action, of the tanh layer, of the LSTM, and of the output.
        observation: see `Network`.
        prev_action: float32 `[T + 1, n, sizes[1]]`, or int64 `[T + 1, n]`, of which the network sees the one-hot code.
        prev_reward: float32 `[T + 1, n]`.
    """

    cdef cnp.ndarray _prev_action, _prev_reward, _h, _c, _h_before, _h_next, _c_next
    cdef long _n_action, _size
    cdef bint _one_hot

    def __init__(self, sizes, observation, prev_action, prev_reward):
        super().__init__(sizes, observation)
        self._one_hot = prev_action.ndim == 2
        _require(prev_action, np.int64 if self._one_hot else np.float32, (self.n,) if self._one_hot else (self.n, sizes[1]))
        _require(prev_reward, np.float32, (self.n,))
        self._prev_action, self._prev_reward = prev_action, prev_reward

    def _build(self, sizes):
        n_seen, self._n_action, n_input, self._size, n_out = sizes
        cdef long n = _up(self.n, 4), n_in = n_seen + self._n_action + 1
        self._input = np.zeros((n, n_in), np.float32)
        self._h_before, self._h_next = np.zeros((2, n, self._size), np.float32)
        self._c_next = np.zeros((self.n, self._size), np.float32)
        self._layers.append(Layer(n, n_in, n_input))
        self._layers.append(Layer(n, _up(n_input, 8), 4 * self._size))
        self._layers.append(Layer(n, self._size, 4 * self._size))
        self._layers.append(Layer(n, self._size, n_out))
        self.stride = _up(n_out, 8)

    def enter(self, h, c):
        """Sets the memory of the state, float32 `[n, sizes[3]]` each, which `act` updates."""
        for part in (h, c):
            _require(np.expand_dims(part, 0), np.float32, (self.n, self._size))
        self._h, self._c = h, c

    cdef float* run(self, long t):
        cdef float* x = self._see(t)
        cdef const char* action = _row(self._prev_action, t)
        cdef const float* reward = <float*>_row(self._prev_reward, t)
        cdef long i, k, stride = cnp.PyArray_DIM(self._input, 1), m = self._n_action
        cdef float* own
        for i in range(self.n):
            own = x + i * stride + self._n_seen
            if self._one_hot:
                k = (<const int64_t*>action)[i]
                memset(own, 0, m * sizeof(float))
                own[0 if k < 0 else m - 1 if k >= m else k] = 1.0
            else:
                memcpy(own, action + i * m * sizeof(float), m * sizeof(float))
            own[m] = reward[i]
        cdef Layer layer = self._layers[0], of_state = self._layers[2]
        x = layer.run(x)
        headrace_tanh(x, layer.n * layer.stride)
        layer = self._layers[1]
        memcpy(_floats(self._h_before), _floats(self._h), self.n * self._size * sizeof(float))
        headrace_lstm(
            layer.run(x),
            of_state.run(_floats(self._h_before)),
            layer.stride,
            _floats(self._c),
            _floats(self._h_next),
            _floats(self._c_next),
            self.n,
            self._size,
        )
        layer = self._layers[3]
        return layer.run(_floats(self._h_next))

    cdef void keep(self):
        memcpy(_floats(self._h), _floats(self._h_next), self.n * self._size * sizeof(float))
        memcpy(_floats(self._c), _floats(self._c_next), self.n * self._size * sizeof(float))
