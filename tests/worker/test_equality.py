"""What gossip must equal: the single-machine trainer with one slot, and one big minibatch with equal versions."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from gossipdbn.core import rounds
from gossipdbn.core.values import Manifest
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models import dbn, learners
from gossipdbn.models.spec import ModelSpec, PhaseSpec, layout
from tests.replay.scene import Scene

PLAN = (
    PhaseSpec("cd", layer=0, epochs=2, batch=20, tau=3, lr=0.1, lr_final=0.01),
    PhaseSpec("pcd", layer=1, epochs=2, batch=20, tau=3, lr=0.05, lr_final=0.0),
    PhaseSpec("backprop", epochs=3, batch=15, tau=4, lr=0.01, lr_final=0.0, optimizer="adam"),
)


def _rows(n, visible, units, seed=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n).astype(np.int32)
    if units == "gaussian":
        return rng.normal(0, 1, (n, visible)).astype(np.float32), labels
    return rng.integers(0, 2 if units == "binary" else 128, (n, visible)).astype(np.uint8), labels


@pytest.mark.parametrize("units", ["binary", "grey", "gaussian"])
def test_one_slot_with_the_exact_codec_equals_training_in_memory(units):
    """S = 1: the replica is what the slot trained, so not a bit may differ, takeover in the middle included."""
    spec = ModelSpec(19, (13, 7), units, 3)
    values, labels = _rows(157, 19, units)
    mean = np.full(19, 0.0 if units == "gaussian" else 0.4, np.float32)
    manifest = Manifest(
        run="one", slots=1, spec=spec, phases=PLAN, run_key=77, visible_mean=mean.astype("<f4").tobytes(), codec=0,
        numerics=NUMERICS, inline_bytes=2048,
    )  # fmt: skip
    scene = Scene(rounds.run, manifest)
    scene.feed(values, labels)
    scene.work("w1", until=9)
    worker = scene.worker("w2", threading.Event())
    result = worker.run()
    assert result.finished and worker.host.replica.chains[0].incarnation == 2
    alone = dbn.train(spec, PLAN, values, labels, run_key=77, mean=mean)
    assert np.array_equal(worker.host.replica.acc, alone)


def test_slots_at_equal_versions_equal_one_big_minibatch():
    """tau = 1, exact codec, plain gradient steps (no momentum): S slots that start from one version add up to one step.

    Each slot moves by S * lr * its mean gradient and publishes 1/S of it, so the sum is lr times the sum of the slots'
    mean gradients: S times the learning rate on the mean over all rows. Backprop is deterministic, so the equality can
    be seen without random draws; it holds to rounding, which float32 does per slot.
    """
    slots, batch = 4, 16
    spec = ModelSpec(12, (9,), "binary", 3)
    phase = PhaseSpec("backprop", epochs=1, batch=batch, tau=1, lr=0.05, lr_final=0.05, optimizer="sgd", momentum=0.0)
    values, labels = _rows(slots * batch, 12, "binary")
    mean = np.full(12, 0.5, np.float32)
    start = learners.initial_parameters(spec, 5, mean)
    total = np.zeros(start.shape, np.int64)
    for s in range(slots):
        theta = start.copy()
        at = slice(s * batch, (s + 1) * batch)
        context = learners.RoundContext(5, s, 0, slots, mean, np.array([0.05], np.float32))
        learners.train_round(spec, phase, theta, learners.new_state(spec, phase), values[at], labels[at], context)
        total += theta.astype(np.int64) - start
    big = PhaseSpec(
        "backprop", epochs=1, batch=slots * batch, tau=1, lr=0.2, lr_final=0.2, optimizer="sgd", momentum=0.0
    )
    theta = start.copy()
    context = learners.RoundContext(5, 0, 0, 1, mean, np.array([0.05 * slots], np.float32))
    learners.train_round(spec, big, theta, learners.new_state(spec, big), values, labels, context)
    moved = theta.astype(np.int64) - start
    assert np.abs(moved).max() > 10_000
    assert np.abs(moved - total).max() <= slots + np.abs(moved).max() * 1e-5


def test_contrastive_divergence_adds_up_over_slots():
    """CD: the published shares of S slots, at S times the learning rate, sum to the step of one big minibatch.

    Draws differ between slots and the big batch (they are keyed by slot and row), so the equality is exact only in the
    positive phase: here the hidden units are saturated by their biases, so that every draw has one outcome.
    """
    slots, batch = 4, 8
    spec = ModelSpec(10, (6,), "binary")
    mean = np.full(10, 0.5, np.float32)
    values, _ = _rows(slots * batch, 10, "binary")
    start = learners.initial_parameters(spec, 5, mean)
    w, a, b = layout(spec)
    start[w.offset : w.offset + w.size] = 0
    start[a.offset : a.offset + a.size] = 40 << 24
    start[b.offset : b.offset + b.size] = 40 << 24
    total = np.zeros(start.shape, np.int64)
    phase = PhaseSpec("cd", epochs=1, batch=batch, tau=1, lr=0.01, lr_final=0.01, momentum=0.0)
    for s in range(slots):
        theta = start.copy()
        context = learners.RoundContext(5, s, 0, slots, mean, np.array([0.01], np.float32))
        at = slice(s * batch, (s + 1) * batch)
        learners.train_round(spec, phase, theta, learners.new_state(spec, phase), values[at], None, context)
        total += np.rint((theta.astype(np.int64) - start) / slots).astype(np.int64)
    big = PhaseSpec("cd", epochs=1, batch=slots * batch, tau=1, lr=0.04, lr_final=0.04, momentum=0.0)
    theta = start.copy()
    context = learners.RoundContext(5, 0, 0, 1, mean, np.array([0.04], np.float32))
    learners.train_round(spec, big, theta, learners.new_state(spec, big), values, None, context)
    moved = theta.astype(np.int64) - start
    assert np.abs(moved).max() > 1000
    assert np.abs(moved - total).max() <= 2 * slots + np.abs(moved).max() * 2e-3
