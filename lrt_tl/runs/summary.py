"""`summary.json`: its version, its schema, and the check that both its writer and its reader make."""

import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

from lrt_tl.errors import ArtifactError

SUMMARY_VERSION = 2
"""Of a transfer. 2: the answer, digests of the data, and the evidence beside the effect. Version 1 is read, too."""
COMPARISON_VERSION = 1
Kind = Literal["summary", "comparison"]
_VERSIONS: dict[Kind, int] = {"summary": SUMMARY_VERSION, "comparison": COMPARISON_VERSION}


def check_summary(summary: Mapping[str, Any], where: str = "the summary", *, kind: Kind = "summary") -> dict[str, Any]:
    """The summary as JSON holds it (lists for tuples), if it is as `summary.schema.json` says; that of two models that
    were compared, as `comparison.schema.json`.

    Raises:
        ArtifactError: another version, a number that is NaN or infinite, or an entry that is missing or of another
            kind; says where.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    found = summary.get("format_version")
    if found not in range(1, _VERSIONS[kind] + 1) or isinstance(found, bool):
        raise ArtifactError(
            f"{where} has format version {found!r:.40}; this lrt_tl reads up to {_VERSIONS[kind]}: use the one that "
            "wrote it"
        )
    if place := _not_finite(summary):
        raise ArtifactError(f"{where} holds NaN or infinity at {place}")
    plain: dict[str, Any] = json.loads(json.dumps(summary))
    error = best_match(Draft202012Validator(schema(kind)).iter_errors(plain))
    if error is not None:
        raise ArtifactError(f"{where} is not as its schema says: at {error.json_path}, {error.message:.200}")
    return plain


def schema(kind: Kind = "summary") -> dict[str, Any]:
    """The JSON Schema (2020-12) of `summary.json`."""
    read: dict[str, Any] = json.loads((resources.files("lrt_tl.runs") / f"{kind}.schema.json").read_text("utf-8"))
    return read


def _not_finite(value: Any, place: str = "$") -> str:
    """Where a number is NaN or infinite; empty where none is."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else place
    if not isinstance(value, (Mapping, list, tuple)):
        return ""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value)
    return next((found for key, each in inner if (found := _not_finite(each, f"{place}.{key}"))), "")
