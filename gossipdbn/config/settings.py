"""Strict settings: frozen dataclasses whose fields carry their own documentation and bounds, filled from plain tables.

A field says its unit, its bound and what follows from it. :func:`read_table` walks a table (parsed TOML) against such a
class and collects every problem with the key's dotted path, what was found, what is allowed and the nearest known key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

T = TypeVar("T")

Options = tuple[tuple[str, str], ...]
"""A free table of texts (passed through to a library), as sorted pairs."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known about one key.

    Parameters
    ----------
    doc : unit, bound and consequence, in a sentence or two.
    low, high : inclusive bounds of numbers (of each number of a list).
    above : exclusive lower bound.
    pattern : regular expression that a text must match completely, with ``pattern_doc`` to say it in words.
    path : a path or glob; relative ones are taken from the configuration file's folder.
    secret : never shown.
    """

    doc: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    pattern: str = ""
    pattern_doc: str = ""
    path: bool = False
    secret: bool = False


def setting(default: Any, doc: str, **limits: Any) -> Any:
    """Declare a field of a settings class: its default (``...`` = required) and its :class:`Setting`."""
    known = Setting(doc, **limits)
    if default is ...:
        return dataclasses.field(metadata={"setting": known})
    return dataclasses.field(default=default, metadata={"setting": known})


@lru_cache(maxsize=64)
def _types(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _known(field: dataclasses.Field[Any], extra: Mapping[str, Setting]) -> Setting:
    found = field.metadata.get("setting") or extra.get(field.name)
    return found if isinstance(found, Setting) else Setting("")


def _optional(kind: Any) -> Any:
    """The X of ``X | None``; other types as they are."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        rest = [k for k in typing.get_args(kind) if k is not types.NoneType]
        if len(rest) == 1:
            return rest[0]
    return kind


def allowed_text(kind: Any, known: Setting) -> str:
    """In words, which values a key of this type and these bounds takes."""
    kind = _optional(kind)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(f'"{v}"' for v in typing.get_args(kind))
    if kind == Options:
        return "a table of texts"
    if typing.get_origin(kind) is tuple:
        return "a list; each entry " + allowed_text(typing.get_args(kind)[0], known)
    if kind is bool:
        return "true or false"
    if kind is str:
        return known.pattern_doc or "a text"
    name = "a whole number" if kind is int else "a number"
    if known.above is not None:
        name += f" above {_plain(known.above)}"
    if known.low is not None and known.high is not None:
        return f"{name} from {_plain(known.low)} to {_plain(known.high)}"
    if known.low is not None:
        return f"{name}, at least {_plain(known.low)}"
    if known.high is not None:
        return f"{name}, at most {_plain(known.high)}"
    return name


def _plain(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return "a table"
    return f"{value}" if len(f"{value}") < 60 else f"{f'{value}'[:57]}..."


def _value(kind: Any, known: Setting, value: object, folder: Path | None) -> Any:
    """``value`` as ``kind``, or raises ValueError with no text when it is not allowed."""
    kind = _optional(kind)
    if kind == Options:
        if not isinstance(value, Mapping) or any(isinstance(v, Mapping | list) for v in value.values()):
            raise ValueError
        return tuple(sorted((k, str(v).lower() if isinstance(v, bool) else str(v)) for k, v in value.items()))
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError
        return tuple(_value(typing.get_args(kind)[0], known, v, folder) for v in value)
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind) or isinstance(value, bool):
            raise ValueError
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError
        return value
    if kind is str:
        if not isinstance(value, str) or (known.pattern and not re.fullmatch(known.pattern, value)):
            raise ValueError
        return resolve_path(value, folder) if known.path and value else value
    return _number(kind, known, value)


def _number(kind: Any, known: Setting, value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    if kind is int and not isinstance(value, int):
        raise ValueError
    if not math.isfinite(value):
        raise ValueError
    below = known.low is not None and value < known.low
    if below or (known.high is not None and value > known.high) or (known.above is not None and value <= known.above):
        raise ValueError
    return value if kind is int else float(value)


def resolve_path(text: str, folder: Path | None) -> str:
    """A path of a configuration file: URLs and absolute paths as they are, others relative to ``folder``."""
    if folder is None or "://" in text:
        return text
    return str(folder / Path(text).expanduser())


def read_table(
    cls: type[T],
    table: object,
    path: str,
    problems: list[str],
    *,
    folder: Path | None = None,
    extra: Mapping[str, Setting] | None = None,
) -> T | None:
    """Fill a settings class from a table.

    Parameters
    ----------
    cls : frozen dataclass whose fields are declared by :func:`setting` (or described by ``extra``).
    table : the parsed table. path : its dotted path, for messages ("" = top level).
    problems : every problem found is appended here; the caller raises when there are any.
    folder : where relative paths start.

    Returns
    -------
    The value, or None when ``table`` has problems.
    """
    if not isinstance(table, Mapping):
        problems.append(f"{path}: found {_shown(table)}; allowed: a table [{path}]")
        return None
    before = len(problems)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    types_of: dict[str, Any] = _types(cast(Any, cls))
    values: dict[str, Any] = {}
    for key, value in table.items():
        dotted = f"{path}.{key}" if path else str(key)
        field = fields.get(key)
        if field is None:
            problems.append(unknown_key(dotted, key, list(fields)))
            continue
        known = _known(field, extra or {})
        try:
            values[key] = _value(types_of[key], known, value, folder)
        except ValueError:
            found = "a hidden value" if known.secret else _shown(value)
            problems.append(f"{dotted}: found {found}; allowed: {allowed_text(types_of[key], known)}")
    missing = [n for n, f in fields.items() if n not in table and f.default is dataclasses.MISSING]
    for name in missing:
        words = allowed_text(types_of[name], _known(fields[name], extra or {}))
        problems.append(f"{path}.{name}: missing; needed: {words}")
    return cls(**values) if len(problems) == before else None


def unknown_key(dotted: str, key: str, known: Sequence[str]) -> str:
    """The sentence about a key that does not exist, with the nearest ones that do."""
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{dotted}: unknown key.{hint} Known here: {', '.join(sorted(known))}"


@dataclass(frozen=True, slots=True)
class Explained:
    """One documented key; ``default`` is "required" where there is none."""

    path: str
    default: str
    allowed: str
    doc: str


def explain(cls: type, path: str, extra: Mapping[str, Setting] | None = None) -> Iterator[Explained]:
    """Every key of a settings class, in declaration order."""
    for field in dataclasses.fields(cls):
        known = _known(field, extra or {})
        if field.default is dataclasses.MISSING:
            default = "required"
        elif field.default is None or field.default in ((), ""):
            default = "unset"
        else:
            default = _shown(field.default)
        yield Explained(f"{path}.{field.name}", default, allowed_text(_types(cls)[field.name], known), known.doc)
