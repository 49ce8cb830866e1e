"""The arrays that kernels work in, made once and used again: a steady state allocates nothing.

A workspace is taken from a pool by its shape and given back; two threads never hold the same one (a list's pop and
append are atomic). What no round has used for a while is let go. `IntegerSpace` trains bytes in exact integers,
`RealSpace` real-valued rows in float32, `StackSpace` a whole stack by backprop.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gossipdbn.kernels import backprop, cd_layout, cd_real, contrastive, dense, inference
from gossipdbn.kernels.cd_layout import aligned
from gossipdbn.kernels.rows import RowView, floats_of

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
AnyArray = NDArray[np.generic]
Features = NDArray[np.uint8] | NDArray[np.float32]
_BLOCK = 256
_NO_FLOATS, _NO_BYTES = np.zeros((0, 1), np.float32), np.zeros((0, 1), np.uint8)

_NO_MASTER = np.zeros((0, 64, 16), np.int32)

_POOL: dict[tuple[object, ...], list[object]] = {}
_USED: dict[tuple[object, ...], int] = {}
_UNUSED_MAX = 64
"""Workspaces not among the last so many that were given back are of a phase that is over."""


@dataclass(frozen=True, slots=True, eq=False)
class IntegerSpace:
    """One layer of bytes; see `cd_layout`."""

    visible: int
    hidden: int
    weights: cd_layout.Weights
    batches: dict[int, cd_layout.Batch] = field(default_factory=dict)
    tables: dict[int, NDArray[np.int64]] = field(default_factory=dict)  # addresses; making them takes 0.1 ms

    @classmethod
    def new(cls, visible: int, hidden: int) -> IntegerSpace:
        return cls(visible, hidden, cd_layout.Weights.new(visible, hidden))

    def load(self, w: Ints, a: Ints, b: Ints, mask: Ints | None, *, shift: int = 0) -> None:
        """Weights, visible and hidden biases from slices of the parameters.

        ``shift`` (of `cd_layout.one_plane_shift`) makes them 8-bit weights; `train` must be given the same.
        """
        del mask  # all visibles are binary here
        x = self.weights.arrays
        cd_layout.load_weights(
            w, self.visible, self.hidden, x[cd_layout.MASTER], x[cd_layout.HI], x[cd_layout.LO], shift
        )
        x[cd_layout.BIAS_V][:] = cd_layout.PAD_BIAS
        x[cd_layout.BIAS_H][:] = cd_layout.PAD_BIAS
        x[cd_layout.BIAS_V][: self.visible] = a
        x[cd_layout.BIAS_H][: self.hidden] = b
        self._prepare_biases()

    def _prepare_biases(self) -> None:
        if 0 not in self.tables:  # no minibatch has no rows
            self.tables[0] = cd_layout.addresses(self.weights.arrays)
        contrastive.prepare_biases(self.tables[0], self.visible, self.hidden)

    def center(self, mu: Floats) -> None:
        """Visible offsets float32 [V], 0..1."""
        self.weights.arrays[cd_layout.MU_NEG][: self.visible] = -mu

    def load_to_read(self, w: Ints, b: Ints) -> None:
        """Only what `hidden_of` needs, of weights and hidden biases."""
        x = self.weights.arrays
        cd_layout.load_weights(w, self.visible, self.hidden, _NO_MASTER, x[cd_layout.HI], x[cd_layout.LO], 0)
        x[cd_layout.BIAS_H][:] = cd_layout.PAD_BIAS
        x[cd_layout.BIAS_H][: self.hidden] = b
        self._prepare_biases()

    def store(self, w: Ints, a: Ints, b: Ints) -> None:
        """Back into the slices of the parameters."""
        x = self.weights.arrays
        cd_layout.store_weights(w, self.visible, self.hidden, x[cd_layout.MASTER])
        a[:] = x[cd_layout.BIAS_V][: self.visible]
        b[:] = x[cd_layout.BIAS_H][: self.hidden]

    def trained(self) -> tuple[Ints, Ints, Ints]:
        """What `store` would write, where it lies: weights in tiles int32 [G, Vp, 16], biases [V] and [H]."""
        x = self.weights.arrays
        w, a, b = (np.asarray(x[i], np.int32) for i in (cd_layout.MASTER, cd_layout.BIAS_V, cd_layout.BIAS_H))
        return w, a[: self.visible], b[: self.hidden]

    def _batch(self, rows: int) -> cd_layout.Batch:
        if rows not in self.batches:
            if len(self.batches) > 4:
                self.batches.clear()
                self.tables.clear()
            self.batches[rows] = cd_layout.Batch.new(self.visible, self.hidden, rows)
            self.tables[rows] = cd_layout.addresses(self.weights.arrays, self.batches[rows].arrays)
        return self.batches[rows]

    def train(
        self,
        x: RowView,
        first: int,
        count: int,
        rows: int,
        arrays: list[AnyArray],
        chains: AnyArray | None,
        rates: Floats,
        options: Floats,
        keys: NDArray[np.uint64],
        step: int,
        measure: bool,
        *,
        gibbs: int,
        one: int,
        shift: int = 0,
    ) -> float:
        """Train ``count`` minibatches; returns the squared error of the last one when ``measure``."""
        batch = self._batch(rows)
        names = (cd_layout.SPEED, cd_layout.SPEED_H, cd_layout.SPEED_V, cd_layout.LAM)
        table = self.tables[rows]
        for name, array in zip(names, arrays, strict=True):
            table[name] = array.ctypes.data
        states = batch.arrays[cd_layout.CH]
        if chains is not None:
            _chains_in(chains[:rows], states)
        error = contrastive.train(
            x, first, count, rows, batch.arrays[cd_layout.X], table, self.visible, self.hidden, one, shift, gibbs,
            chains is not None, rates * np.float32(2.0**24), options, keys, step, measure,
        )  # fmt: skip
        if chains is not None:
            _chains_out(chains[:rows], states)
        return float(error) / 1024.0

    def hidden_of(self, x: RowView, n: int, one: int, *, as_bytes: bool) -> Features:
        """Hidden probabilities float32 [n, H], or features uint8 [n, H], of ``n`` rows."""
        out: Features = np.empty((n, self.hidden), np.uint8 if as_bytes else np.float32)
        a = self.weights.arrays
        scratch = self._scratch()
        p, bytes_ = (_NO_FLOATS, out) if as_bytes else (out, _NO_BYTES)
        inference.hidden_of_bytes(
            x, scratch[0], a[cd_layout.HI], a[cd_layout.LO], a[cd_layout.NB_H], scratch[1], self.visible, self.hidden,
            one, p, bytes_,
        )  # fmt: skip
        _give(self._scratch_key, scratch)
        return out

    def _scratch(self) -> tuple[AnyArray, AnyArray]:
        spare = _spare(self._scratch_key)
        rows = (_BLOCK, cd_layout.padded(self.visible))
        return spare or (aligned(rows, np.uint8), aligned((2048,), np.int32))  # type: ignore[return-value]

    @property
    def _scratch_key(self) -> tuple[object, ...]:
        return ("hidden_of", cd_layout.padded(self.visible))


def _chains_in(chains: AnyArray, states: AnyArray) -> None:
    """Chain states uint8 [rows, H] -> quads [bp / 16, hp / 4, 16, 4]."""
    rows = np.zeros((states.shape[0] * 16, states.shape[1] * 4), np.uint8)
    rows[: chains.shape[0], : chains.shape[1]] = chains
    states[:] = rows.reshape(states.shape[0], 16, states.shape[1], 4).transpose(0, 2, 1, 3)


def _chains_out(chains: AnyArray, states: AnyArray) -> None:
    rows = states.transpose(0, 2, 1, 3).reshape(states.shape[0] * 16, states.shape[1] * 4)
    chains[:] = rows[: chains.shape[0], : chains.shape[1]]


@dataclass(frozen=True, slots=True, eq=False)
class RealSpace:
    """One layer of real-valued rows; see `cd_real`."""

    visible: int
    hidden: int
    arrays: dict[int, AnyArray]
    batches: dict[int, dict[int, AnyArray]] = field(default_factory=dict)
    tables: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    @classmethod
    def new(cls, visible: int, hidden: int) -> RealSpace:
        vp, hp = dense.pad16(visible), dense.pad32(hidden)
        f4 = np.float32
        shapes = {
            cd_real.W: (hp // 16, vp, 16), cd_real.BIAS_H: (hp,), cd_real.BIAS_V: (vp,), cd_real.MU_NEG: (vp,),
            cd_real.MEAN_H0: (hp,), cd_real.MEAN_H1: (hp,), cd_real.DV_NEG: (vp,), cd_real.DH: (hp,),
            cd_real.DA: (vp, 16),
        }  # fmt: skip
        arrays: dict[int, AnyArray] = {name: aligned(shape, f4) for name, shape in shapes.items()}
        arrays[cd_real.BINARY] = aligned((vp,), np.int32)
        return cls(visible, hidden, arrays)

    def load(self, w: Ints, a: Ints, b: Ints, mask: Ints | None, *, shift: int = 0) -> None:
        """As `IntegerSpace.load`; ``mask`` int32 [V] is 1 for binary columns, ``shift`` has no meaning here."""
        del shift
        x = self.arrays
        dense.panels_from_master(w, self.visible, self.hidden, x[cd_real.W])
        x[cd_real.BIAS_V][: self.visible] = a.astype(np.float32) * dense.UNIT
        x[cd_real.BIAS_H][: self.hidden] = b.astype(np.float32) * dense.UNIT
        if mask is not None:
            x[cd_real.BINARY][: self.visible] = mask

    def center(self, mu: Floats) -> None:
        """As `IntegerSpace.center`, in units of the data."""
        self.arrays[cd_real.MU_NEG][: self.visible] = -mu

    def load_to_read(self, w: Ints, b: Ints) -> None:
        """As `IntegerSpace.load_to_read`."""
        dense.panels_from_master(w, self.visible, self.hidden, self.arrays[cd_real.W])
        self.arrays[cd_real.BIAS_H][: self.hidden] = b.astype(np.float32) * dense.UNIT

    def store(self, w: Ints, a: Ints, b: Ints) -> None:
        """Add what was gained to the slices of the parameters."""
        x = self.arrays
        dense.master_from_panels(w, self.visible, self.hidden, x[cd_real.W])
        for flat, name in ((a, cd_real.BIAS_V), (b, cd_real.BIAS_H)):
            gained(flat, x[name])

    def train(
        self,
        x: RowView,
        first: int,
        count: int,
        rows: int,
        arrays: list[AnyArray],
        chains: AnyArray | None,
        rates: Floats,
        options: Floats,
        keys: NDArray[np.uint64],
        step: int,
        measure: bool,
        *,
        gibbs: int,
        one: int,
        shift: int = 0,
    ) -> float:
        """As `IntegerSpace.train`."""
        del one, shift
        batch = self._batch(rows)
        names = (cd_real.SPEED, cd_real.SPEED_H, cd_real.SPEED_V, cd_real.LAM)
        table = self.tables[rows]
        for name, array in zip(names, arrays, strict=True):
            table[name] = array.ctypes.data
        if chains is not None:
            batch[cd_real.CH][: self.hidden, :rows] = chains[:rows].T
        error = cd_real.train(
            x, first, count, rows, batch[cd_real.X], table, self.visible, self.hidden, gibbs, chains is not None,
            rates, options, keys, step, measure,
        )  # fmt: skip
        if chains is not None:
            chains[:rows] = batch[cd_real.CH][: self.hidden, :rows].T
        return float(error)

    def _batch(self, rows: int) -> dict[int, AnyArray]:
        if rows not in self.batches:
            if len(self.batches) > 4:
                self.batches.clear()
                self.tables.clear()
            vp, hp, bp = dense.pad16(self.visible), dense.pad32(self.hidden), dense.pad16(rows)
            f4 = np.float32
            self.batches[rows] = {
                cd_real.X: aligned((bp, vp), f4), cd_real.P0: aligned((bp, hp), f4),
                cd_real.P1: aligned((bp, hp), f4), cd_real.ST: aligned((hp, bp), f4),
                cd_real.CH: aligned((hp, bp), f4), cd_real.V1: aligned((vp, bp), f4),
                cd_real.C: aligned((32, 32), f4), cd_real.SAMPLES: aligned((bp, 32), f4),
                cd_real.PAIR_KEYS: aligned((2, bp), np.uint32), cd_real.ROW_KEYS: aligned((2, bp), np.uint32),
            }  # fmt: skip
            self.tables[rows] = np.zeros(cd_real.ADDRESSES, np.int64)
            for part in (self.arrays, self.batches[rows]):
                for name, array in part.items():
                    self.tables[rows][name] = array.ctypes.data
        return self.batches[rows]

    def hidden_of(self, x: RowView, n: int, one: int, *, as_bytes: bool) -> Features:
        """As `IntegerSpace.hidden_of`, from float32 rows."""
        del one
        out: Features = np.empty((n, self.hidden), np.uint8 if as_bytes else np.float32)
        p, bytes_ = (_NO_FLOATS, out) if as_bytes else (out, _NO_BYTES)
        rows_in = aligned((_BLOCK, dense.pad16(self.visible)), np.float32)
        c = aligned((_BLOCK, dense.pad32(self.hidden)), np.float32)
        for first in range(0, n, _BLOCK):
            rows = min(_BLOCK, n - first)
            floats_of(x, first, rows, self.visible, np.float32(1), rows_in)
            inference.hidden_of_floats(
                rows_in, rows, self.arrays[cd_real.W], self.arrays[cd_real.BIAS_H], c, first, self.hidden, p, bytes_
            )
        return out

    def visible_of(self, p: Floats, mask: Ints) -> Floats:
        """Visible means float32 [n, V] of hidden probabilities float32 [n, H]."""
        n = p.shape[0]
        out = np.empty((n, self.visible), np.float32)
        columns = aligned((self.hidden, _BLOCK), np.float32)
        c = aligned((dense.pad16(self.visible), _BLOCK), np.float32)
        for first in range(0, n, _BLOCK):
            inference.visible_means(
                p, first, min(_BLOCK, n - first), columns, self.arrays[cd_real.W], self.arrays[cd_real.BIAS_V],
                self.hidden, mask, c, out,
            )  # fmt: skip
        return out

    def free_energies(self, x: RowView, n: int, scale: np.float32, mask: Ints) -> NDArray[np.float64]:
        """Free energies float64 [n] of rows of bytes (times ``scale``) or floats."""
        out = np.empty(n, np.float64)
        rows_in = aligned((_BLOCK, dense.pad16(self.visible)), np.float32)
        c = aligned((_BLOCK, dense.pad32(self.hidden)), np.float32)
        for first in range(0, n, _BLOCK):
            rows = min(_BLOCK, n - first)
            floats_of(x, first, rows, self.visible, scale, rows_in)
            inference.free_energies(
                rows_in, rows, self.arrays[cd_real.W], self.arrays[cd_real.BIAS_H], self.arrays[cd_real.BIAS_V],
                mask, c, first, self.hidden, out,
            )  # fmt: skip
        return out


def gained(flat: Ints, now: AnyArray) -> None:
    """`dense.moved` for a vector of biases, in place; one that is no number goes to a limit, where its run ends."""
    old = np.clip(flat, -dense.LIMIT, dense.LIMIT)
    step = (now[: flat.size] - old.astype(np.float32) * dense.UNIT) * dense.PER_UNIT
    step = np.where(np.isnan(step), np.where(old < 0, np.inf, -np.inf), np.rint(np.clip(step, -(2.0**29), 2.0**29)))
    flat[:] = np.clip(old + step, -dense.LIMIT, dense.LIMIT)


LayerSpace = IntegerSpace | RealSpace


@dataclass(frozen=True, slots=True, eq=False)
class StackSpace:
    """A stack of dense layers, bottom up; ``sizes`` are (inputs, outputs), ``kinds`` those of `backprop`."""

    sizes: tuple[tuple[int, int], ...]
    kinds: tuple[int, ...]
    rows: int
    table: NDArray[np.int64]
    x: AnyArray
    scratch: AnyArray
    activations: tuple[AnyArray, ...]
    panels: tuple[AnyArray, ...]
    biases: tuple[AnyArray, ...]
    kept: tuple[AnyArray, ...]

    @classmethod
    def new(cls, sizes: tuple[tuple[int, int], ...], kinds: tuple[int, ...], rows: int) -> StackSpace:
        bp, f4 = dense.pad16(rows), np.float32
        table = np.zeros((len(sizes), backprop.FIELDS), np.int64)
        activations, panels, biases, kept = [], [], [], []
        for n, (below, out) in enumerate(sizes):
            width, k_rows = dense.pad32(out), dense.pad16(below)
            w, b, act = aligned((width // 16, k_rows, 16), f4), aligned((width,), f4), aligned((bp, width), f4)
            slope, delta = aligned((bp, width), f4), aligned((bp, width), f4)
            delta_t, below_t = aligned((width, bp), f4), aligned((k_rows, bp), f4)
            row = {
                backprop.IN: below, backprop.OUT: out, backprop.IN_ROWS: k_rows, backprop.W: w.ctypes.data,
                backprop.BIAS: b.ctypes.data, backprop.ACT: act.ctypes.data, backprop.SLOPE: slope.ctypes.data,
                backprop.DELTA: delta.ctypes.data, backprop.DELTA_T: delta_t.ctypes.data,
                backprop.BELOW_T: below_t.ctypes.data, backprop.KIND: kinds[n],
            }  # fmt: skip
            for name, value in row.items():
                table[n, name] = value
            activations.append(act)
            panels.append(w)
            biases.append(b)
            kept += [slope, delta, delta_t, below_t]
        x = aligned((bp, dense.pad16(sizes[0][0])), f4)
        return cls(sizes, kinds, rows, table, x, aligned((32, 32), f4), tuple(activations), tuple(panels),
                   tuple(biases), tuple(kept))  # fmt: skip

    def load(self, flat: list[tuple[Ints, Ints]], moments: list[tuple[AnyArray, ...]] | None) -> None:
        """Weights and biases from slices of the parameters; addresses of the optimiser's moments."""
        for n, (w, b) in enumerate(flat):
            below, out = self.sizes[n]
            dense.panels_from_master(w, below, out, self.panels[n])
            self.biases[n][:out] = b.astype(np.float32) * dense.UNIT
            if moments is not None:
                names = (backprop.W_M, backprop.W_V, backprop.BIAS_M, backprop.BIAS_V)
                for name, array in zip(names, moments[n], strict=True):
                    self.table[n, name] = array.ctypes.data

    def store(self, flat: list[tuple[Ints, Ints]]) -> None:
        """Add what was gained to the slices of the parameters."""
        for n, (w, b) in enumerate(flat):
            below, out = self.sizes[n]
            dense.master_from_panels(w, below, out, self.panels[n])
            gained(b, self.biases[n])


def take(integer: bool, visible: int, hidden: int) -> LayerSpace:
    """A layer's workspace from the pool, or a new one."""
    spare = _spare((integer, visible, hidden))
    return spare or (IntegerSpace if integer else RealSpace).new(visible, hidden)  # type: ignore[return-value]


def give(space: LayerSpace) -> None:
    """Back to the pool."""
    _give((isinstance(space, IntegerSpace), space.visible, space.hidden), space)


def _spare(key: tuple[object, ...]) -> object | None:
    """One that was given back, or None. Another thread may be faster between a look and a pop."""
    try:
        return _POOL[key].pop()
    except (KeyError, IndexError):
        return None


def _give(key: tuple[object, ...], space: object) -> None:
    _POOL.setdefault(key, []).append(space)
    now = max(_USED.values(), default=0) + 1
    _USED[key] = now
    for old in [k for k, used in list(_USED.items()) if used < now - _UNUSED_MAX]:
        _POOL.pop(old, None)
        _USED.pop(old, None)


def clear() -> None:
    """Let every spare workspace go; what another thread has taken comes back all the same."""
    _POOL.clear()
    _USED.clear()


def take_stack(sizes: tuple[tuple[int, int], ...], kinds: tuple[int, ...], rows: int) -> StackSpace:
    """A stack's workspace from the pool, or a new one."""
    return _spare((sizes, kinds, rows)) or StackSpace.new(sizes, kinds, rows)  # type: ignore[return-value]


def give_stack(space: StackSpace) -> None:
    """Back to the pool."""
    _give((space.sizes, space.kinds, space.rows), space)
