"""Metrics as JSON lines and TensorBoard events."""

import json
import os
import pathlib

import jax


class MetricWriter:
    """Appends to `metrics.jsonl` and to TensorBoard events in `workdir`; on process 0 only.

    On resuming from `start_step`, later lines are taken away, because those steps are about to be done again.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int):
        from tensorboardX import SummaryWriter

        self.active = jax.process_index() == 0
        if not self.active:
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # the last line of a run that was killed while it wrote
                if entry["step"] <= start_step:
                    kept.append(json.dumps(entry))
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)
        self._lines = path.open("a", buffering=1)
        self._events = SummaryWriter(str(pathlib.Path(workdir) / "tensorboard"), purge_step=start_step + 1)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        if not self.active:
            return
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if self.active:
            self._lines.close()
            self._events.close()
