"""One file that holds a run: every record of its topics, the verdicts on them, the objects they name, the environment.

A zip file (deflate) that any tool opens, with ``archive.json`` first: what it is, sizes and SHA-256 of every other
entry, and what a reader must find (verdicts, versions, digest). Reading is bounded: entries, names and sizes are
checked before anything is unpacked, and contents against their hashes while they are.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from gossipdbn.core.values import Version
from gossipdbn.errors import ConfigError, SnapshotCorrupt, SnapshotIncompatible, StoreError
from gossipdbn.replay.history import History
from gossipdbn.replay.spool import INDEX, Index, Spool, object_file, records_file

__all__ = [
    "ARCHIVE_FORMAT",
    "HEADER",
    "ArchiveFacts",
    "Entry",
    "Verdicts",
    "compare",
    "describe",
    "read_facts",
    "unpack",
    "write",
]

ARCHIVE_FORMAT = 1
HEADER = "archive.json"
_HEADER_BYTES_MAX = 64 << 20
_ENTRIES_MAX = 1_000_000
_TOTAL_BYTES_MAX = 1 << 40
_PIECE = 1 << 20
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError, struct.error, zlib.error)
"""What the zip reader raises about damaged, encrypted or strangely packed files."""
_AGAIN = "copy it again, and compare its sha256 with the one that `gossipdbn archive` printed"
_MOMENT = (1980, 1, 1, 0, 0, 0)  # equal runs give equal archives: no time of packing inside


class Entry(NamedTuple):
    """A file of the archive: its name, size unpacked, and SHA-256 in hexadecimal."""

    name: str
    size: Annotated[int, Meta(ge=0)]
    sha256: str


class Verdicts(NamedTuple):
    """Verdicts on one updates partition: one letter per record (c claim, u update, r revocation, v void).

    ``undecided``: why reading stopped there, or "".
    """

    partition: int
    letters: str
    undecided: str = ""


class ArchiveFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive says about itself.

    ``software``: packages of whoever packed it; the run's own are in its manifest. ``version`` and ``digest``
    (hexadecimal): of the replica after all records.
    """

    run: str
    format: int = ARCHIVE_FORMAT
    numerics: int = 1
    software: dict[str, str] = {}
    platform: str = ""
    state: str = ""
    version: tuple[int, ...] = ()
    digest: str = ""
    verdicts: tuple[Verdicts, ...] = ()
    entries: tuple[Entry, ...] = ()


def describe(history: History, software: dict[str, str], platform: str) -> ArchiveFacts:
    """What an archive shall say of a run; ``write`` adds the entries."""
    version = history.version
    return ArchiveFacts(
        run=history.run.spool.run, numerics=history.run.manifest.numerics, software=software, platform=platform,
        state=history.state, version=version, digest=f"{history.digest_at(version):016x}",
        verdicts=tuple(Verdicts(p.partition, p.letters, p.undecided) for p in history.partitions),
    )  # fmt: skip


def compare(facts: ArchiveFacts, history: History) -> list[str]:
    """Where the records, judged here, differ from what their archive says of them."""
    here = describe(history, {}, "")
    found = []
    for a, b in zip(facts.verdicts, here.verdicts, strict=False):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a.letters, b.letters, strict=False)) if x != y), len(b.letters))
            found.append(
                f"updates partition {b.partition}: the archive has another verdict on offset {at} than this reader"
            )
    for name in ("run", "state", "version", "digest"):
        a, b = getattr(facts, name), getattr(here, name)
        if a != b:
            found.append(f"the archive says {name} {_text(a)}, its records say {_text(b)}")
    if len(facts.verdicts) != len(here.verdicts):
        found.append(f"the archive has verdicts on {len(facts.verdicts)} partitions of {len(here.verdicts)}")
    return found


def _text(value: str | Version) -> str:
    return value if isinstance(value, str) else ",".join(str(n) for n in value)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(index: Index) -> list[str]:
    return [INDEX, *(records_file(p.kind, p.partition) for p in index.parts), *(object_file(o) for o in index.objects)]


def write(spool: Spool, facts: ArchiveFacts, path: Path) -> str:
    """Pack a spool; returns the SHA-256 of the file. The file gets its name when it is whole.

    Raises
    ------
    StoreError : the file cannot be written.
    """
    names = _names(spool.index)
    entries = tuple(
        Entry(n, (spool.folder / n).stat().st_size, _hash(spool.folder / n)) for n in names
    )  # fmt: skip
    facts = msgspec.structs.replace(facts, entries=entries)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as out:
            header = msgspec.json.format(msgspec.json.encode(facts), indent=1)
            out.writestr(_info(HEADER), header, zipfile.ZIP_DEFLATED, 6)
            for name in names:
                with (spool.folder / name).open("rb") as source, out.open(_info(name), "w", force_zip64=True) as target:
                    while piece := source.read(_PIECE):
                        target.write(piece)
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; choose another folder or make room"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return _hash(path)


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _MOMENT)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    return info


def read_facts(path: Path) -> ArchiveFacts:
    """What an archive says about itself.

    Raises
    ------
    ConfigError : there is no such file. SnapshotCorrupt : it is no archive of a run. SnapshotIncompatible : of a format
    that this software does not know.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            return _facts(path, packed)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no archive {path}") from error
    except (*_DAMAGE, OSError) as error:
        raise SnapshotCorrupt(f"{path} is no archive of a run, or is cut off or damaged: {error}; {_AGAIN}") from error


def _facts(path: Path, packed: zipfile.ZipFile) -> ArchiveFacts:
    infos = packed.infolist()
    if not infos or infos[0].filename != HEADER or len(infos) > _ENTRIES_MAX:
        raise SnapshotCorrupt(f"{path} is no archive of a run: it does not begin with {HEADER}")
    try:
        raw = _read(packed, infos[0], _HEADER_BYTES_MAX)
        found = msgspec.json.decode(raw, type=dict[str, object])
        if found.get("format") != ARCHIVE_FORMAT:
            raise SnapshotIncompatible(
                f"{path} has archive format {found.get('format')}, known here is {ARCHIVE_FORMAT}: update gossipdbn"
            )
        return msgspec.json.decode(raw, type=ArchiveFacts)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise SnapshotCorrupt(f"{path}: {HEADER} cannot be read: {error}") from error


def _read(packed: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """An entry's bytes; ``most`` bounds what is unpacked, whatever the archive claims."""
    with packed.open(info) as source:
        data = source.read(most + 1)
    if len(data) > most:
        raise SnapshotCorrupt(f"entry {info.filename} is longer than {most} bytes")
    return data


def unpack(path: Path, folder: Path) -> tuple[Spool, ArchiveFacts]:
    """Check an archive and unpack it into ``folder``.

    Raises
    ------
    ConfigError, SnapshotCorrupt, SnapshotIncompatible : as ``read_facts``; also when any content has another hash.
    """
    facts = read_facts(path)
    by_name = {e.name: e for e in facts.entries}
    if len(by_name) != len(facts.entries) or sum(e.size for e in facts.entries) > _TOTAL_BYTES_MAX:
        raise SnapshotCorrupt(f"{path} names entries twice, or too many bytes")
    try:
        with zipfile.ZipFile(path) as packed:
            infos = packed.infolist()[1:]
            if sorted(i.filename for i in infos) != sorted(by_name):
                raise SnapshotCorrupt(f"{path} is damaged: it holds other entries than it names; {_AGAIN}")
            for info in infos:
                _unpack_one(packed, info, by_name[info.filename], folder)
    except _DAMAGE as error:
        raise SnapshotCorrupt(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot unpack {path} into {folder}: {error.strerror or error}") from error
    spool = Spool(folder)
    if spool.run != facts.run or sorted(_names(spool.index)) != sorted(by_name):
        raise SnapshotCorrupt(f"{path}: its index does not fit its entries")
    return spool, facts


def _unpack_one(packed: zipfile.ZipFile, info: zipfile.ZipInfo, entry: Entry, folder: Path) -> None:
    name = PurePosixPath(entry.name)
    plain = all(part not in ("..", ".") and "\\" not in part and "\0" not in part for part in name.parts)
    if name.is_absolute() or not plain or len(name.parts) > 2 or (len(name.parts) == 2 and name.parts[0] != "objects"):
        raise SnapshotCorrupt(f"the archive holds an entry of a strange name, {entry.name!r}")
    target = folder.joinpath(*name.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    seen, left = hashlib.sha256(), entry.size
    try:
        with packed.open(info) as source, target.open("wb") as out:
            while piece := source.read(min(_PIECE, left + 1)):
                left -= len(piece)
                if left < 0:
                    break
                seen.update(piece)
                out.write(piece)
    except _DAMAGE as error:
        raise SnapshotCorrupt(f"entry {entry.name} of the archive is damaged: {error}; {_AGAIN}") from error
    if left or seen.hexdigest() != entry.sha256:
        raise SnapshotCorrupt(f"entry {entry.name} of the archive is not what its checksum says; {_AGAIN}")
