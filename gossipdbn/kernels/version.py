"""The version of the arithmetic: changing any bit of any result means a new number, new golden digests, new runs."""

from __future__ import annotations

NUMERICS = 2
"""Stamped into manifests, claims and snapshots; rounds of another number cannot be recomputed here."""
