"""A HuBERT-base-shaped encoder of random weights beside transformers on PyTorch: the same weights, as many threads. Two minutes on two idle cores."""

import pathlib
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers

from benchmarks import rows
from xretrieval.units.encoders.encoder import SAMPLING_RATE
from xretrieval.units.encoders.pretrained import import_encoder

UTTERANCES = 64
SHORTEST, LONGEST = 2.0, 15.0  # seconds
# Utterances after which the sides take turns, so that both meet the same machine.
GROUP = 8
# Of the peer's batches.
SIZES = (1, 2, 4)
# Of the largest value; 12 layers.
TOLERANCE = 1e-4


def sounds() -> list[np.ndarray]:
    """Noise, float32 [T] each, from the shortest to the longest."""
    random = np.random.default_rng(0)
    lengths = np.sort(random.uniform(SHORTEST, LONGEST, UTTERANCES) * SAMPLING_RATE).astype(int)
    return [0.1 * random.standard_normal(length, dtype=np.float32) for length in lengths]


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def encoder_rows() -> list[dict]:
    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig()).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        encoder = import_encoder(pathlib.Path(folder)).encoder

    @torch.inference_mode()
    def peer(group: list[np.ndarray], size: int) -> list[np.ndarray]:
        """Batches of neighbours in length, padded with zeros and without a mask, which is fast and, but for one at a time, not right."""
        features: list[np.ndarray] = []
        for first in range(0, len(group), size):
            inputs = [extractor(samples_T, sampling_rate=SAMPLING_RATE, return_tensors="pt") for samples_T in group[first : first + size]]
            inputs_BT = torch.nn.utils.rnn.pad_sequence([each["input_values"][0] for each in inputs], batch_first=True)
            features.extend(model(inputs_BT).last_hidden_state.numpy())
        return features

    def compared(group: list[np.ndarray]) -> list[float]:
        """Seconds of ours, and of the peer by size of batch."""
        for got, wanted in zip(encoder.features(group), peer(group[:1], 1), strict=False):
            assert np.abs(got - wanted).max() < TOLERANCE * np.abs(wanted).max()
        return [seconds(lambda: encoder.features(group)), *(seconds(lambda size=size: peer(group, size)) for size in SIZES)]

    everything = sounds()
    taken = [compared(everything[first : first + GROUP]) for first in range(0, UTTERANCES, GROUP)]
    ours, *theirs = (sum(column) for column in zip(*taken, strict=True))
    best = theirs.index(min(theirs))
    total = sum(len(samples_T) for samples_T in everything) / SAMPLING_RATE
    name = f"HuBERT base, {UTTERANCES} utterances of {SHORTEST:g} to {LONGEST:g} s, audio seconds per second"
    peer_name = f"transformers, {SIZES[best]} at a time, the fastest of {SIZES}"
    return [rows.row(name, total / ours, total / theirs[best], peer_name, 1.2, more_is_better=True)]
