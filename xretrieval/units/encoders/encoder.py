"""An encoder: 16 kHz mono sound to features at a fixed rate. Every path that makes units calls `Encoder.features`.

An utterance is padded to a length that its own length decides, and every batch of such utterances has one shape. Networks mask what is padding, so
that neither the padding nor the neighbours change an utterance's features.
"""

import abc
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xretrieval.errors import UserError

SAMPLING_RATE = 16_000
_STEP = SAMPLING_RATE // 4  # of the shortest buckets, in samples
# Seconds of sound of one batch on an accelerator. XLA:CPU is as fast with one utterance, which a search by voice is.
_BATCH_SECONDS = 64

Params = Mapping[str, np.ndarray]


class EncoderConfig(abc.ABC):
    """The numbers of an encoder: a frozen dataclass in each family's file.

    Attributes:
      family: name of that file.
      version: raised whenever the same numbers begin to give other features.
    """

    family: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    @abc.abstractmethod
    def frame_rate(self) -> float:
        """Frames a second."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """D, values of a frame."""

    @abc.abstractmethod
    def frames(self, samples: int) -> int:
        """Frames of an utterance of so many samples; 0 where it is too short to have one."""

    @abc.abstractmethod
    def network(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network, whose `nnx.Param`s are the encoder's parameters by their dotted paths.

        It is called as `network(samples_BT, lengths_B, keep)`: float32 samples padded with zeros, int32 numbers of samples (1 or more frames each). It
        returns (float32 features [B, F, D] of the tapped layer, and with `keep` float32 [layer + 1, B, F, D], what went into the first layer and came out of
        each up to the tapped one, else None), where F = frames(T). Frames beyond frames(length) mean nothing.
        """


def bucket(samples: int) -> int:
    """The padded length of an utterance, which depends on its length alone: from 1 s on, four steps an octave."""
    steps = max(4, -(-samples // _STEP))
    grain = 1 << (steps.bit_length() - 3)
    return -(-steps // grain) * grain * _STEP


def rows_of(bucket_samples: int) -> int:
    """Rows of a batch, which depends on the bucket alone."""
    if jax.default_backend() == "cpu":
        return 1
    return max(1, _BATCH_SECONDS * SAMPLING_RATE // bucket_samples)


def merge(config: EncoderConfig, params: Mapping[str, Any]) -> nnx.Module:
    """The network with these parameters; cheap enough to call while tracing."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: config.network(nnx.Rngs(params=0))), nnx.Param)
    flat = [(path, leaf.replace(params[".".join(map(str, path))])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def init(config: EncoderConfig, seed: int) -> dict[str, np.ndarray]:
    """Random parameters by dotted name, float32."""
    state = jax.jit(lambda: nnx.state(config.network(nnx.Rngs(params=seed)), nnx.Param))()
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter."""
    state = nnx.state(nnx.eval_shape(lambda: config.network(nnx.Rngs(params=0))), nnx.Param)
    return {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}


@functools.partial(jax.jit, static_argnames=("config", "keep"))
def states(params: Mapping[str, Any], samples_BT: jax.Array, lengths_B: jax.Array, config: EncoderConfig, keep: bool = True):
    """(features, what every layer gave): see `EncoderConfig.network`."""
    # Lower precisions of a TPU or a GPU would be other units.
    with jax.default_matmul_precision("highest"):
        return merge(config, params)(samples_BT, lengths_B, keep)


@functools.partial(jax.jit, static_argnames=("config", "average"))
def _features(
    params: Mapping[str, Any], samples_BT: jax.Array, lengths_B: jax.Array, frames_B: jax.Array, config: EncoderConfig, average: int
):
    features_BFD, _ = states(params, samples_BT, lengths_B, config, keep=False)
    if average == 1:
        return features_BFD
    rows, frames, width = features_BFD.shape
    valid_BF1 = (jnp.arange(frames) < frames_B[:, None])[:, :, None]
    missing = -frames % average
    blocks_BGKD = jnp.pad(jnp.where(valid_BF1, features_BFD, 0.0), ((0, 0), (0, missing), (0, 0))).reshape(rows, -1, average, width)
    counts_BGK1 = jnp.pad(valid_BF1, ((0, 0), (0, missing), (0, 0))).reshape(rows, -1, average, 1)
    return blocks_BGKD.sum(2) / jnp.maximum(counts_BGK1.sum(2), 1)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network with its parameters, as units are made with it.

    Attributes:
      config: of its family.
      params: by dotted name; none where it has no weights.
      average: so many frames are averaged to one (2 makes 25 Hz, the paper's rate, of 50 Hz); the last ones of an utterance may be fewer.
      source: where the weights come from, and their licence; empty where there are none.
    """

    config: EncoderConfig
    params: Params
    average: int = 1
    source: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if type(self.average) is not int or self.average < 1:
            raise UserError(f"average = {self.average!r}: a whole number of frames, 1 or more, is averaged to one")
        wanted = shapes(self.config)
        for name in sorted(wanted.keys() | self.params.keys()):
            found = self.params[name].shape if name in self.params else None
            if wanted.get(name) != found:
                raise UserError(f"encoder {self.config.family}: tensor {name} is {found}, its config wants {wanted.get(name)}")

    @property
    def frame_rate(self) -> float:
        """Of its features, in Hz."""
        return self.config.frame_rate / self.average

    @property
    def layer(self) -> int:
        """The tapped layer; 0 where there are none."""
        return getattr(self.config, "layer", 0)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of all that decides its features."""
        identity = {
            "family": self.config.family,
            "version": self.config.version,
            "config": dataclasses.asdict(self.config),  # type: ignore[call-overload]
            "average": self.average,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        for name in sorted(self.params):
            x = np.asarray(self.params[name])
            digest.update(f"{name} {x.dtype} {x.shape} ".encode())
            digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
        return digest.hexdigest()

    @functools.cached_property
    def _on_device(self) -> dict[str, jax.Array]:
        return {name: jnp.asarray(x) for name, x in self.params.items()}

    def features(self, sounds: Sequence[np.ndarray], rows: int | None = None) -> list[np.ndarray]:
        """Features of utterances, in their order.

        Args:
          sounds: float32 [T] each, 16 kHz mono.
          rows: of a batch; `rows_of` by default.

        Returns:
          float32 [F, D] each, at `frame_rate`.

        Raises:
          UserError: an utterance is too short for one frame.
        """
        frames = [self.config.frames(len(samples_T)) for samples_T in sounds]
        if 0 in frames:
            short = len(sounds[frames.index(0)])
            raise UserError(f"{short} samples of sound, {short / SAMPLING_RATE:.3f} s, give no frame: the recording is too short")
        groups: dict[int, list[int]] = {}
        for place, samples_T in enumerate(sounds):
            groups.setdefault(bucket(len(samples_T)), []).append(place)
        out: list[np.ndarray] = [np.empty(0)] * len(sounds)
        for length, places in groups.items():
            size = rows or rows_of(length)
            for first in range(0, len(places), size):
                chosen = places[first : first + size]
                samples_BT = np.zeros((size, length), np.float32)
                # A row that nobody asked for is silence of the whole length.
                lengths_B, frames_B = np.full(size, length, np.int32), np.full(size, self.config.frames(length), np.int32)
                for row, place in enumerate(chosen):
                    samples_BT[row, : len(sounds[place])] = sounds[place]
                    lengths_B[row], frames_B[row] = len(sounds[place]), frames[place]
                features_BFD = np.asarray(_features(self._on_device, samples_BT, lengths_B, frames_B, self.config, self.average))
                for row, place in enumerate(chosen):
                    out[place] = features_BFD[row, : -(-frames[place] // self.average)]
        return out
