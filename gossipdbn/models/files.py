"""Trained models as one file: `model.safetensors`.

The tensors of the layout are stored as int32 in units 2^-24, the very integers that the replicas agreed upon, so a
model file is exact. Any safetensors reader opens it. The metadata holds one JSON document under ``gossipdbn`` (format
number, specification, schema of the rows, class names, provenance) and under ``sha256`` a digest over that document and
all tensor bytes, because safetensors itself does not notice flipped bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as _save_tensors

from gossipdbn.errors import ConfigError, SnapshotCorrupt, SnapshotIncompatible, SnapshotMissing, StoreError
from gossipdbn.models.spec import UNIT, ModelSpec, Tensor, layout, parameter_count, spec_problem

FORMAT = 1
"""Format number written; files with a greater one are refused."""

HEADER_BYTES_MAX = 4 << 20
"""Longest header (specification, schema, provenance) that is read."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a model comes from.

    Parameters
    ----------
    run : run id; "" for a model trained without a log. version : updates contained, per updates partition.
    digest : digest of the parameters in hexadecimal. numerics : version of the arithmetic.
    packages : (name, version) of the software. extra : anything else that is worth keeping (JSON values).
    """

    run: str = ""
    version: tuple[int, ...] = ()
    digest: str = ""
    numerics: int = 0
    packages: tuple[tuple[str, str], ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A trained model: what it is, its parameters and what its rows and classes mean.

    Parameters
    ----------
    spec : shape of the network.
    parameters : int32 [P] in units 2^-24, read-only, in layout order.
    schema : how columns become units, as the schema wrote it down; {} where rows come as arrays.
    classes : names of the softmax outputs, () where they are just numbers.
    """

    spec: ModelSpec
    parameters: NDArray[np.int32]
    schema: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        p = np.ascontiguousarray(self.parameters)
        if p.dtype != np.int32 or p.shape != (parameter_count(self.spec),):
            raise ConfigError(f"parameters are {p.dtype} {p.shape}, wanted are int32 ({parameter_count(self.spec)},)")
        if self.classes and len(self.classes) != self.spec.classes:
            raise ConfigError(f"{len(self.classes)} class names for {self.spec.classes} classes: give one name each")
        p = p.view() if p.flags.owndata else p.copy()
        p.flags.writeable = False
        object.__setattr__(self, "parameters", p)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32 in its shape, for example ``layer0.weights`` [V, H]."""
        return tensor_of(self.spec, self.parameters, name)


def tensor_of(spec: ModelSpec, parameters: NDArray[np.int32], name: str) -> NDArray[np.float32]:
    """A named tensor of a flat parameter vector as float32; raises ConfigError for a name the layout lacks."""
    for t in layout(spec):
        if t.name == name:
            return (parameters[t.offset : t.offset + t.size].astype(np.float32) * np.float32(UNIT)).reshape(t.shape)
    raise ConfigError(f"the model has no tensor {name!r}; it has {', '.join(t.name for t in layout(spec))}")


def _document(model: Model) -> str:
    facts = {
        "format": FORMAT,
        "spec": asdict(model.spec),
        "schema": model.schema,
        "classes": list(model.classes),
        "provenance": asdict(model.provenance),
    }
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _content_digest(document: str, parameters: NDArray[np.int32]) -> str:
    h = hashlib.sha256(document.encode())
    h.update(parameters.astype("<i4", copy=False).tobytes())
    return h.hexdigest()


def dumps(model: Model) -> bytes:
    """The model as the bytes of a safetensors file."""
    document = _document(model)
    tensors = {t.name: model.parameters[t.offset : t.offset + t.size].reshape(t.shape) for t in layout(model.spec)}
    data: bytes = _save_tensors(
        tensors, metadata={"gossipdbn": document, "sha256": _content_digest(document, model.parameters)}
    )
    if int.from_bytes(data[:8], "little") > HEADER_BYTES_MAX:
        raise ConfigError(f"schema and provenance are larger than {HEADER_BYTES_MAX} bytes: shorten them")
    return data


def _spec(facts: dict[str, Any]) -> ModelSpec:
    known = {f.name for f in fields(ModelSpec)}
    raw = {k: v for k, v in facts.items() if k in known}
    raw["hidden"] = tuple(int(h) for h in raw["hidden"])
    raw["binary_columns"] = tuple(int(c) for c in raw.get("binary_columns", ()))
    spec = ModelSpec(**raw)
    if problem := spec_problem(spec):
        raise ValueError(problem)
    return spec


def _provenance(facts: dict[str, Any]) -> Provenance:
    return Provenance(
        run=str(facts.get("run", "")),
        version=tuple(int(v) for v in facts.get("version", ())),
        digest=str(facts.get("digest", "")),
        numerics=int(facts.get("numerics", 0)),
        packages=tuple((str(a), str(b)) for a, b in facts.get("packages", ())),
        extra=dict(facts.get("extra", {})),
    )


def _header(data: bytes, name: str) -> tuple[dict[str, Any], int]:
    """The safetensors header and where the tensor bytes begin."""
    n = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
    if not 2 <= n <= HEADER_BYTES_MAX or 8 + n > len(data):
        raise SnapshotCorrupt(f"{name} is not a model file: a header of {n} bytes cannot be; export the model again")
    try:
        header = json.loads(data[8 : 8 + n])
    except (ValueError, RecursionError) as e:
        raise SnapshotCorrupt(f"{name} is not a model file: no header can be read ({e}); export it again") from e
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or "gossipdbn" not in metadata:
        raise SnapshotCorrupt(f"{name} is a safetensors file but no gossipdbn model: it lacks the entry 'gossipdbn'")
    return header, 8 + n


def _parameters(data: bytes, start: int, header: dict[str, Any], spec: ModelSpec, name: str) -> NDArray[np.int32]:
    body = memoryview(data)[start:]
    if len(body) != 4 * parameter_count(spec):
        wanted = 4 * parameter_count(spec)
        raise SnapshotCorrupt(
            f"{name} holds {len(body)} bytes of parameters, not {wanted}: it is cut short or mixed up"
        )
    out = np.empty(parameter_count(spec), np.int32)
    for t in layout(spec):
        out[t.offset : t.offset + t.size] = _tensor(body, header.get(t.name), t, name)
    return out


def _tensor(body: memoryview, entry: Any, t: Tensor, name: str) -> NDArray[np.int32]:
    try:
        fits = entry["dtype"] == "I32" and tuple(entry["shape"]) == t.shape
        a, b = (int(x) for x in entry["data_offsets"])
    except (TypeError, KeyError, ValueError):
        fits, a, b = False, 0, 0
    if not fits or not 0 <= a <= b <= len(body) or b - a != 4 * t.size:
        raise SnapshotCorrupt(f"{name}: tensor {t.name} is missing or not int32 {t.shape}; export the model again")
    return np.frombuffer(body[a:b], "<i4")


def loads(data: bytes, name: str = "model") -> Model:
    """A model from the bytes of its file.

    Raises
    ------
    SnapshotCorrupt : not a model file, cut short, or bytes that differ from the digest inside.
    SnapshotIncompatible : written in a newer format.
    """
    header, start = _header(data, name)
    document = header["__metadata__"]["gossipdbn"]
    try:
        facts = json.loads(document)
        number = int(facts["format"])
    except (TypeError, KeyError, ValueError, RecursionError) as e:
        raise SnapshotCorrupt(f"{name}: its description cannot be read ({e}); export the model again") from e
    if number > FORMAT:
        raise SnapshotIncompatible(f"{name} has model format {number}, known is up to {FORMAT}: use a newer gossipdbn")
    try:
        spec = _spec(facts["spec"])
        parameter_count(spec)
    except (TypeError, KeyError, ValueError, IndexError, AttributeError) as e:
        raise SnapshotCorrupt(f"{name}: its specification cannot be read ({e}); export the model again") from e
    parameters = _parameters(data, start, header, spec, name)
    if _content_digest(document, parameters) != header["__metadata__"].get("sha256"):
        raise SnapshotCorrupt(f"{name}: content and sha256 differ, it was damaged or edited; export the model again")
    provenance = _provenance(facts.get("provenance", {}))
    return Model(spec, parameters, dict(facts.get("schema", {})), tuple(facts.get("classes", ())), provenance)


def save_model(path: str | os.PathLike[str], model: Model) -> str:
    """Write the model under ``path`` atomically (temporary name, sync, rename); returns the sha256 of the file.

    Raises StoreError when the folder cannot be written.
    """
    target = Path(path)
    data = dumps(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as e:
        raise StoreError(
            f"cannot write the model to {target}: {e.strerror or e}; choose another folder or make room"
        ) from e
    return hashlib.sha256(data).hexdigest()


def load_model(path: str | os.PathLike[str]) -> Model:
    """Read a model file.

    Raises
    ------
    SnapshotMissing : there is no such file.
    SnapshotCorrupt, SnapshotIncompatible : see `loads`.
    StoreError : it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as e:
        raise SnapshotMissing(f"there is no model file {os.fspath(path)}: train one first, or check the path") from e
    except OSError as e:
        raise StoreError(f"the model file {os.fspath(path)} cannot be read: {e.strerror or e}") from e
    return loads(data, os.fspath(path))
