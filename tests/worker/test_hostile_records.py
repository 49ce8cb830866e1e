"""Records that should not be there: void ones count for nothing, unknown ones stop their partition, others go on."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from gossipdbn.core.values import Claim, ManifestRecord, Update
from gossipdbn.errors import ConfigError
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import RunWire, encode_control
from gossipdbn.wire.shards import BITS, encode_shard, make_shard, shard_id, slot_of
from gossipdbn.worker.control import load_control
from tests.replay.scene import Scene, manifest, rows


def _junk(scene: Scene) -> list[bytes]:
    true = next(scene.log.read(scene.names.updates, 0, 1, 2)).value
    message = RunWire().decode(true).message  # type: ignore[union-attr]
    assert isinstance(message, Update)
    return [
        b"", b"gdbn", true[:-1], true + b"\0", true[:40] + bytes([true[40] ^ 255]) + true[41:],
        envelope.seal(b"\xc1"), envelope.seal(b"\x93\x01\x02\x03"), envelope.seal(b"\xdd\xff\xff\xff\xff"), true,
        *(RunWire().encode(Claim(run, 0, 9, "x", 0, 0, 1)) for run in ("other-run", scene.run)),
    ]  # fmt: skip


def test_junk_on_the_updates_topic_is_void_and_changes_nothing():
    scene = Scene()
    scene.feed(*rows())
    scene.work("first", until=12)
    junk = _junk(scene)
    for slot in range(3):
        for raw in junk:
            scene.log.append(scene.names.updates, slot, raw)
    worker = scene.worker("second", threading.Event())
    assert worker.run().finished
    again = scene.worker("reader", threading.Event())
    assert again.run().digest == worker.host.replica.digest()
    assert all(c.voids >= len(junk) - 1 for c in worker.host.replica.chains[:-1])


def test_an_unknown_format_stops_its_partition_and_no_other():
    scene = Scene()
    scene.feed(*rows())
    scene.work("first", until=12)
    newer = bytearray(envelope.seal(b"from the future"))
    newer[4] = 9
    scene.log.append(scene.names.updates, 2, bytes(newer))
    stop = threading.Event()
    worker = scene.worker("second", stop)
    threading.Timer(2.0, stop.set).start()
    result = worker.run()
    assert not result.finished
    chains = worker.host.replica.chains
    assert chains[0].closed and chains[1].closed and not chains[2].closed
    assert "format 9" in worker.host.held[2]


def test_junk_among_shards_and_on_control_is_passed_over():
    scene = Scene()
    for slot in range(3):
        scene.log.append(scene.names.shards, slot, b"no shard")
    scene.log.append(scene.names.control, 0, b"no record")
    scene.log.append(scene.names.control, 0, encode_control(ManifestRecord(scene.run, b"{}")))
    scene.feed(*rows())
    scene.log.append(scene.names.shards, 0, b"after the end mark")
    worker = scene.worker("w", threading.Event())
    assert worker.run().finished
    assert worker.control.voids == 1
    assert sum(c.cursor[1] for c in worker.host.replica.chains[:-1]) == 300


def test_the_first_manifest_counts_and_newer_formats_are_named():
    scene = Scene()
    import msgspec

    from gossipdbn.core.values import manifest_json

    other = msgspec.structs.replace(scene.manifest, run_key=6)
    scene.log.append(scene.names.control, 0, encode_control(ManifestRecord(scene.run, manifest_json(other))))
    assert load_control(scene.log, scene.run, {}).manifest == scene.manifest
    newer = Scene(manifest=manifest(3, run="newer", format=2))
    with pytest.raises(ConfigError, match="format 2"):
        load_control(newer.log, "newer", {})
    with pytest.raises(ConfigError, match="no run"):
        load_control(scene.log, "absent", {})


def test_signed_runs_ignore_who_has_no_key():
    """An unsigned or wrongly signed record is void; a worker without the key says what it lacks."""
    keys = {7: b"k" * 32}
    scene = Scene()
    scene.feed(*rows(60))
    signed = RunWire(7, keys)
    scene.log.append(scene.names.updates, 0, signed.encode(Claim(scene.run, 0, 1, "signer", 0, 7, 1)))
    scene.log.append(scene.names.updates, 0, RunWire().encode(Claim(scene.run, 0, 1, "forger", 0, 7, 1)))
    forged = bytearray(signed.encode(Claim(scene.run, 0, 2, "forger", 0, 7, 1)))
    forged[20] ^= 1
    scene.log.append(scene.names.updates, 0, bytes(forged))
    from gossipdbn.core.replica import Replica

    replica = Replica(scene.manifest, signed.decode, np.zeros(1, np.int32))
    for record in scene.log.read(scene.names.updates, 0, 0, 3):
        replica.read(0, record.offset, record.value)
    assert replica.chains[0].worker == "signer" and replica.chains[0].voids == 2
    without = Replica(scene.manifest, RunWire().decode, np.zeros(1, np.int32))
    verdict = without.read(0, 0, next(scene.log.read(scene.names.updates, 0, 0, 1)).value)
    assert "key 7" in verdict.reason  # type: ignore[union-attr]


def test_a_shard_that_comes_again_with_other_content_counts_once_as_it_was_first():
    scene = Scene()
    values, labels = rows()
    other = make_shard(shard_id("rows", 0, 0, 25), 1 - values[:25], labels[:25], BITS)
    scene.feed(values, labels)
    slot = slot_of(other.id, 3)
    scene.log.data[scene.names.shards][slot].insert(1, (envelope.seal(encode_shard(other)), 0))
    worker = scene.worker("w", threading.Event())
    assert worker.run().finished
    clean = Scene()
    clean.feed(values, labels)
    assert [c.cursor for c in worker.host.replica.chains[:-1]] == [
        c.cursor for c in _finished(clean).host.replica.chains[:-1]
    ]


def _finished(scene: Scene):
    worker = scene.worker("w", threading.Event())
    assert worker.run().finished
    return worker


def test_an_end_mark_that_does_not_fit_fails_its_slot_with_the_reason():
    scene = Scene()
    scene.feed(*rows())
    records = scene.log.data[scene.names.shards][1]
    del records[1]
    worker = scene.worker("w", threading.Event())
    result = worker.run()
    assert "end mark" in result.failed
    assert worker.host.replica.chains[0].closed and not worker.host.replica.chains[0].failed
