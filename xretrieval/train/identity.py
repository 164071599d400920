"""What a run is: what must stay as it was begun, and what may change, which is said."""

import hashlib
import json
import pathlib
import sys
from typing import Any

from xretrieval.errors import UserError, read_json, write_json

_SETTINGS = "settings"  # the part of run.json that may change
_SHOWN = 60  # characters of a value in a message


def fingerprint(fixed: dict) -> str:
    """Of a run: checkpoints carry it."""
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:32]


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two trees of dicts, leaf by leaf: "name (before, now)"."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
            for line in differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [f"{name} ({_shown(before)} before, {_shown(now)} now)"]


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def check(workdir: str, fixed: dict, settings: dict, begun: bool, keep: bool) -> str:
    """Writes `run.json`, or compares with the one there: a run goes on with the batches and the tower that it began with.

    What says how an update is made from a batch (learning rate, weights of the loss, arithmetic, mesh) may change, for a run that went astray is
    led back so; it is said on stderr, field by field.

    Args:
      workdir: of the run.
      fixed: what decides the batches, and what the parameters are.
      settings: the rest.
      begun: whether there are checkpoints; without any there is nothing to go on from.
      keep: whether to write and to speak (of many hosts, one does).

    Returns:
      The fingerprint of `fixed`.

    Raises:
      UserError: the workdir is another run's, or cannot be written.
    """
    path = pathlib.Path(workdir) / "run.json"
    fixed, settings = json.loads(json.dumps(fixed)), json.loads(json.dumps(settings))
    if begun and path.exists():
        before = read_json(path)
        settings_before = before.pop(_SETTINGS, {})
        if changed := differences(before, fixed):
            raise UserError(
                f"{path}: this workdir was begun with another {', '.join(changed)}; give another workdir, or go back to what it was"
            )
        if keep and (changed := differences(settings_before, settings)):
            print(f"{path}: goes on with another {', '.join(changed)}", file=sys.stderr)
    if keep:
        try:
            write_json(path, {**fixed, _SETTINGS: settings})
        except OSError as error:
            raise UserError(f"{workdir}: cannot be written ({error.strerror}); give another workdir") from error
    return fingerprint(fixed)
