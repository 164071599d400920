"""What a run is measured by while it trains."""

import os
from collections.abc import Callable
from typing import Any

from xretrieval import distributed
from xretrieval.evaluate.embed import embed_sequences
from xretrieval.evaluate.evaluation import evaluate_records, fingerprint, mean_r1
from xretrieval.units.extract import read_unit_records


def validation(mixture: Any, units_dir: str, split: str = "validation") -> Callable[..., dict[str, float]]:
    """A function of (tower config, parameters, compute config) for `train.validate`: mean R@1 over the languages of a split of unit records,
    with the vocabulary of the mixture that trains.

    Raises:
      UserError: of several processes, one reads other records: with more or longer ones it would wait for the others in vain.
    """
    folder, vocabulary = os.path.join(units_dir, split), mixture.vocabulary
    records = list(read_unit_records(folder))
    distributed.check_same(f"validation data in {folder}", fingerprint(records))

    def validate(config, params, compute) -> dict[str, float]:
        def embed(tokens, languages, modality):
            return embed_sequences(
                config,
                params,
                [vocabulary.sequence(ids, code, modality) for ids, code in zip(tokens, languages, strict=True)],
                compute=None if compute.attention == "splash" else compute,  # rows of any length, which splash does not take
            )

        def encode_units(units, languages):
            return embed([vocabulary.encode_units(u) for u in units], languages, "speech")

        def encode_text(texts, languages):
            return embed([vocabulary.encode_text(text) for text in texts], languages, "text")

        languages = evaluate_records(records, encode_units, encode_text, seen=())
        return {f"{split}/{name}_r1": value for name, value in mean_r1(languages).items()}

    return validate
