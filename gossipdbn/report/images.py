"""Small pictures without an imaging library: PNG bytes, grids of tiles, data URIs."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def png(pixels: U8) -> bytes:
    """PNG of uint8 [h, w] (grey), [h, w, 3] (colour) or [h, w, 4] (colour with opacity)."""
    kind = {1: 0, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    h, w = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(h, -1)
    raw = np.concatenate((np.zeros((h, 1), np.uint8), rows), axis=1).tobytes()

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", w, h, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(raw, 9)) + part(b"IEND", b"")


def data_uri(image: bytes) -> str:
    """A PNG as the value of an ``src`` attribute."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def diverging(values: NDArray[Any]) -> U8:
    """Signed values as colours [..., 3]: blue below zero, white at zero, red above; each tile scaled by itself."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    scale = np.maximum(np.quantile(np.abs(flat), 0.995, axis=1), 1e-12)
    x = np.clip(flat / scale[:, None], -1, 1).reshape(values.shape)[..., None]
    white, red, blue = (np.array(c, np.float64) for c in ((247, 247, 247), (178, 24, 43), (33, 102, 172)))
    return np.rint(np.where(x >= 0, white + x * (red - white), white - x * (blue - white))).astype(np.uint8)


def grid(tiles: U8, columns: int, gap: int = 2) -> U8:
    """Tiles [n, h, w] or [n, h, w, 3] side by side in rows of ``columns`` on a transparent ground: [H, W, 4]."""
    n, h, w = tiles.shape[:3]
    colour = np.repeat(tiles[..., None], 3, axis=-1) if tiles.ndim == 3 else tiles
    lines = -(-n // columns)
    out = np.zeros((lines * (h + gap) - gap, columns * (w + gap) - gap, 4), np.uint8)
    for i in range(n):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        out[y : y + h, x : x + w, :3] = colour[i]
        out[y : y + h, x : x + w, 3] = 255
    return out


def filters(weights: NDArray[Any], shape: tuple[int, int], count: int = 100, columns: int = 20) -> U8:
    """The strongest ``count`` hidden units of weights [V, H] as images of ``shape`` in a grid."""
    strength = np.square(weights).sum(0)
    best = np.argsort(-strength, kind="stable")[:count]
    return grid(diverging(weights.T[best].reshape(len(best), *shape)), min(columns, len(best)))
