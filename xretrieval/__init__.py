"""Cross-modal and cross-lingual retrieval with LLMs and discrete speech units (arXiv 2404.01616), in JAX.

Arrays carry their axes as a suffix: `x_RLD` has shape [R, L, D]. The key:

    B pairs              R rows of tokens       L tokens in a row      S segments in a row
    D model width        E embedding width      V rows of the extended embedding table
    H query heads        G key/value heads      C channels of a head   M hidden width of the MLP
    T samples of sound   F frames               W mel or cepstral bins of a frame, or all values of a stacked frame
    K clusters (units)   N examples or candidates                      Q queries
"""

import importlib

__version__ = "0.1.0"

# Public name -> module that holds it. Imported on first use, so that `xretrieval --help` does not wait for JAX.
_PUBLIC = {
    "Retriever": "xretrieval.search.retriever",
    "Index": "xretrieval.search.index",
    "UnitTokenizer": "xretrieval.units.tokenizer",
    "Vocabulary": "xretrieval.data.vocabulary",
    "UserError": "xretrieval.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'xretrieval' has no attribute {name!r}")
