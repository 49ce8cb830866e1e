"""Files of signing keys: key id = hexadecimal key, in TOML or JSON."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from gossipdbn.errors import ConfigError

KEY_BYTES_MIN = 32


def read_keys(path: Path | str, key_id: int = 0) -> dict[int, bytes]:
    """The keys of a file by id; raises ConfigError (which never shows a key) when it is not what it should be.

    Parameters
    ----------
    path : ``*.toml`` or JSON: one table of key id (1 and above) to at least 64 hexadecimal digits.
    key_id : the key that must be among them; 0 = none.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"security.key_file: cannot read {path}: {error.strerror}") from error
    except ValueError:  # also TOML's, JSON's and UTF-8's errors, whose texts quote the file
        raise ConfigError(f"security.key_file: {path} is not valid TOML or JSON") from None
    if not isinstance(table, dict):
        raise ConfigError(f"security.key_file: {path} must hold one table of key id = hexadecimal key")
    keys: dict[int, bytes] = {}
    for name, value in table.items():
        if not name.isascii() or not name.isdigit() or not 0 < int(name) < 1 << 32:
            raise ConfigError(
                f"security.key_file: {path}: a key id is a whole number from 1 to {2**32 - 1}, not {name!r}"
            )
        try:
            key = bytes.fromhex(value)
        except (TypeError, ValueError):
            raise ConfigError(f"security.key_file: {path}: key {name} is not hexadecimal") from None
        if len(key) < KEY_BYTES_MIN:
            raise ConfigError(f"security.key_file: {path}: key {name} has {len(key)} bytes; at least {KEY_BYTES_MIN}")
        keys[int(name)] = key
    if key_id and key_id not in keys:
        raise ConfigError(f"security.key_id: {key_id} is not in {path}, which has {sorted(keys)}")
    return keys
