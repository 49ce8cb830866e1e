"""The scaling model does what arithmetic says it must."""

from __future__ import annotations

import pytest

from gossipdbn.sim.costs import measure
from gossipdbn.sim.scaling import Costs, curve, scale

FREE = Costs(0.01, 1000, 0.0, 0.0, 1000, 0.0, 1000, latency_s=0.001, spread=0.0)


def test_without_costs_of_gossip_it_scales_perfectly():
    for slots in (1, 8, 64):
        p = scale(FREE, slots)
        assert p.efficiency == pytest.approx(1.0, abs=0.05) and p.limit == "kernels"


def test_merging_limits_a_broadcast():
    p = scale(Costs(0.01, 1000, 0.0, 0.001, 1000, 0.001, 1000, spread=0.0), 21)
    assert p.limit == "merging" and p.efficiency == pytest.approx(1 / 3, abs=0.05)  # 20 merges of 1 ms on 10 ms


def test_a_relay_makes_merges_few_and_updates_later():
    costs = Costs(0.01, 1000, 0.0, 0.001, 1000, 0.001, 1000, spread=0.0)
    plain, relayed = scale(costs, 64), scale(costs, 64, relays=1)
    assert relayed.efficiency > 0.85 > 0.3 > plain.efficiency
    assert relayed.stale_rounds > plain.stale_rounds


def test_links_limit_what_brokers_cannot_deliver():
    p = scale(Costs(0.01, 1000, 0.0, 0.0, 100_000, 0.0, 100_000, broker_bytes_per_s=1e8), 64)
    assert p.limit == "links" and p.bytes_per_worker_s <= 1.6e6


def test_slower_workers_do_not_hold_up_others():
    p = scale(Costs(0.01, 1000, 0.0, 0.0, 1000, 0.0, 1000, spread=0.2), 32)
    assert p.efficiency > 0.9


def test_costs_are_measured_with_production_code():
    c = measure(tau=1, times=1, batch=10, visible=32, hidden=16)
    assert min(c.round_s, c.publish_s, c.merge_s, c.combined_s) > 0 and c.round_rows == 10
    assert 0 < c.update_bytes < 3000 and c.combined_bytes > 32 * 16
    assert [p.slots for p in curve(c, (1, 8))] == [1, 8, 8]
