"""xretrieval's tokenizer as a seqio.Vocabulary."""

import seqio
import tensorflow as tf

from xretrieval.data.vocabulary import PAD_ID, Vocabulary


class ExtendedVocabulary(seqio.SentencePieceVocabulary):
    """SentencePiece text tokens and, above them, unit tokens; IDs equal to `xretrieval.data.vocabulary.Vocabulary`."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__(str(vocabulary.tokenizer_file), extra_ids=0)
        self.extended = vocabulary

    @property
    def _base_vocab_size(self) -> int:
        return self.extended.size

    @property
    def pad_id(self) -> int:
        return PAD_ID

    def _encode(self, s: str) -> list[int]:
        return self.extended.encode_text(s).tolist()

    def _decode(self, ids) -> str:
        return self.extended.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        # seqio.preprocessors.tokenize also calls this on features that are IDs already (units).
        return s if s.dtype.is_integer else super()._encode_tf(s)

    def __eq__(self, other) -> bool:
        return isinstance(other, ExtendedVocabulary) and other.extended.fingerprint == self.extended.fingerprint
