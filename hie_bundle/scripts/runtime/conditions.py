"""Compare the settings of two runs: training and inference, a resumed training, a study, shards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 8  # differences in a message


def flat(content: Any, name: str = "") -> dict[str, Any]:
    """Nested values by id, as on a command line; lists of scalars are not split."""
    pairs = list(content.items() if isinstance(content, Mapping) else enumerate(content)) if _nested(content) else []
    if not pairs:
        return {name: content}
    return {key: one for part, value in pairs for key, one in flat(value, f"{name}#{part}".lstrip("#")).items()}


def _nested(content: Any) -> bool:
    in_list = isinstance(content, list) and any(isinstance(value, Mapping | list) for value in content)
    return in_list or isinstance(content, Mapping)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], ignored: re.Pattern[str] | None = None
) -> dict[str, tuple[str, str]]:
    """Different values by id, as JSON or ``absent``; ids that match ``ignored`` are skipped."""
    old, new = flat(before), flat(now)
    return {
        name: (_shown(old, name), _shown(new, name))
        for name in dict.fromkeys([*old, *new])
        if (name in old, old.get(name)) != (name in new, new.get(name)) and not (ignored and ignored.search(name))
    }


def listed(lines: Sequence[str]) -> str:
    """The first lines of a message, and the number of further lines."""
    return "\n".join([*lines[:SHOWN], *([f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])])


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], default=str) if name in values else "absent"
