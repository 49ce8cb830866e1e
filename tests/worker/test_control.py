"""What a reader of the control topic remembers is bounded, however long the run."""

from __future__ import annotations

import pytest

from gossipdbn.core.values import ManifestRecord, SnapshotAnnounced, manifest_json
from gossipdbn.wire.messages import encode_control
from gossipdbn.worker.control import SNAPSHOTS_MIN, Control
from tests.replay.scene import manifest


@pytest.mark.parametrize(("keep", "remembered"), [(2, SNAPSHOTS_MIN), (100, 200)])
def test_the_last_snapshots_of_a_slot_are_remembered(keep: int, remembered: int):
    m = manifest(2, config={"keep": keep})
    control = Control(m.run)
    control.read(0, encode_control(ManifestRecord(m.run, manifest_json(m))))
    for seq in range(1000):
        message = SnapshotAnnounced(m.run, seq % 2, seq, f"snapshots/{seq}", 10, bytes(32), (seq, seq, 0), 7)
        control.read(1 + seq, encode_control(message))
    for slot in (0, 1):
        assert [a.seq for a in control.newest(slot)] == [998 + slot - 2 * i for i in range(remembered)]
