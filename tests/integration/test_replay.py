"""Looking back at runs on a real broker: workers killed, updates revoked, slots given up, children forked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.cli.app import app
from gossipdbn.core.topics import run_names
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.testing import RunHarness
from gossipdbn.wire import envelope
from gossipdbn.wire.shards import BITS, ShardSequence, encode_shard, make_shard, shard_id, slot_of
from gossipdbn.worker.process import WorkerSpec, run_worker

pytestmark = [pytest.mark.integration, pytest.mark.kafka]
PHASES = [
    PhaseSpec("cd", 0, 6, batch=20, tau=2),
    PhaseSpec("backprop", 0, 4, batch=20, tau=2, optimizer="adam", lr=0.01, lr_final=0.0),
]
WAIT_S = 240.0  # a machine that has not compiled the kernels yet and is busy
runner = CliRunner()


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, count).astype(np.int32)
    shapes = rng.random((4, 64)) < 0.4
    return (shapes[labels] ^ (rng.random((count, 64)) < 0.1)).astype(np.uint8), labels


def command(run: RunHarness, *words: str, status: int = 0) -> str:
    result = runner.invoke(app, [*words, "--bootstrap", run.bootstrap, "--home", str(run.folder / "home")])
    assert result.exit_code == status, result.output
    return result.output


def make(gossip_run: Callable[..., RunHarness], **options: object) -> RunHarness:
    return gossip_run(visible=64, hidden=(24,), phases=PHASES, classes=4, slots=3, **options)


def test_a_run_with_a_killed_worker_and_a_revocation_replays_and_travels(
    gossip_run: Callable[..., RunHarness], tmp_path: Path
) -> None:
    run = make(gossip_run)
    values, labels = rows(4000)
    run.feed_rows(values[:3000], labels[:3000], end=False)  # nobody can finish before the trouble
    run.start_workers(2)
    run.wait_for(
        lambda f: {"w1", "w2"} <= {t.worker for t in f.seen.turns} and f.replica.chains[0].count > 4, WAIT_S
    )
    run.kill_worker("w1")
    assert "subtracted" in command(
        run, "revoke", run.run, "--slot", "0", "--from", "2", "--to", "3", "--reason", "test"
    )
    run.feed_rows(values[3000:], labels[3000:])
    run.start_worker("w3")
    run.wait_until_finished(WAIT_S)
    run.assert_exact_ledger()
    digest = run.digests()["log"]

    output = command(run, "replay", run.run, "--verify", "--jobs", "2", "--json", str(tmp_path / "v.json"))
    assert f"digest {digest}" in output and "bit-identical" in output and "1 revocations" in output
    facts = json.loads((tmp_path / "v.json").read_text())
    assert facts["claims"] > 3 and facts["rows"] == 10 * 4000

    packed = tmp_path / "run.zip"
    command(run, "archive", run.run, "-o", str(packed))
    assert f"digest {digest}" in runner.invoke(app, ["replay", str(packed), "--jobs", "1"]).output
    assert "the books are exact" in command(run, "audit", run.run)
    command(run, "replay", "--last", "--until", "#10", "-o", str(tmp_path / "early.safetensors"))
    assert (tmp_path / "early.safetensors").stat().st_size > 0


def test_a_slot_given_up_under_a_live_worker_does_not_hold_the_run(gossip_run: Callable[..., RunHarness]) -> None:
    run = make(gossip_run)
    run.feed_rows(*rows(900), end=False)  # no end mark: nobody can finish yet
    run.start_workers(1)
    run.wait_for(lambda f: f.ledger.updates > 6, WAIT_S)
    assert "is closed" in command(run, "give-up", run.run, "--slot", "1", "--reason", "nobody wants it")
    assert "closed already" in command(run, "give-up", run.run, "--slot", "1", status=2)
    run.feed_rows(*rows(60))
    run.wait_until_finished(WAIT_S)
    summary = run.follower.summary()
    assert summary.exact and (summary.outstanding_rows or 0) > 0
    assert "bit-identical" in command(run, "replay", run.run, "--jobs", "1")


def test_a_child_run_goes_on_from_its_parents_version(gossip_run: Callable[..., RunHarness]) -> None:
    run = make(gossip_run)
    values, labels = rows(300)
    run.feed_rows(values, labels)
    run.start_workers(1)
    run.wait_until_finished(WAIT_S)
    child = f"{run.run}-child"
    output = command(run, "fork", run.run, "--at", "#12", "--slots", "2", "--name", child)
    assert "12 updates" in output and "2 slots" in output
    command(run, "fork", run.run, "--name", child, status=2)
    log = KafkaLog(run.bootstrap)
    writer, sequences = log.writer(), [ShardSequence(), ShardSequence()]
    for i, first in enumerate(range(0, 300, 50)):
        shard = make_shard(
            shard_id("child", i, first, 50), values[first : first + 50], labels[first : first + 50], BITS
        )
        slot = slot_of(shard.id, 2)
        sequences[slot].add(shard)
        writer.send(run_names(child).shards, slot, envelope.seal(encode_shard(shard)))
    for slot, sequence in enumerate(sequences):
        writer.send(run_names(child).shards, slot, envelope.seal(encode_shard(sequence.end_mark())))
    assert writer.flush(20.0)
    result = run_worker(WorkerSpec(child, run.bootstrap, "heir"))
    assert result.finished
    output = command(run, "replay", child, "--jobs", "1")
    assert "bit-identical" in output and f"{result.digest:016x}" in output
    writer.close()
    log.close()
