"""What a source's columns mean to the visible units: fitted once on a sample, then fixed in the run's manifest.

Every column becomes one or more visible units::

    binary       0/1, false/true, or numbers cut at a threshold  -> 1 unit, uint8 0/1
    grey         numbers in a fixed range                        -> 1 unit, uint8 0..127, read as 0..1
    gaussian     any numbers, standardised by the sample         -> 1 unit, float32
    categorical  texts or codes from a fixed list                -> 1 binary unit per category (and one for "other")

A column may hold vectors (the pixels of an image): it then counts as ``size`` columns of one kind. Rows that do not fit
are refused with a DataError naming column, row and what was expected; nothing is guessed after the fit.
"""

from __future__ import annotations

from gossipdbn.schema.encode import encode
from gossipdbn.schema.fit import fit
from gossipdbn.schema.values import (
    Column,
    ColumnConfig,
    ColumnKind,
    Schema,
    SchemaConfig,
    column_types,
    columns_of,
    model_units,
    sample_types,
    schema_from_dict,
    schema_to_dict,
)  # fmt: skip

__all__ = [
    "Column", "ColumnConfig", "ColumnKind", "Schema", "SchemaConfig", "column_types", "columns_of", "encode", "fit",
    "model_units", "sample_types", "schema_from_dict", "schema_to_dict",
]  # fmt: skip
