"""What the verbs do that read no gin file. `main.py` calls these functions with the flags; imports wait until a verb runs."""

import argparse
import collections
import pathlib

from xretrieval.errors import UserError


def manifest(arguments: argparse.Namespace) -> None:
    """A corpus on disk to a manifest; says what is in it, and what is not and why."""
    from xretrieval.corpora.readers.writing import write

    names = ("splits", "into", "threshold", "text", "audio_dir")
    given = {name: getattr(arguments, name) for name in names}
    languages = arguments.languages.split(",") if arguments.languages else None
    summary = write(arguments.corpus, arguments.source, arguments.out, languages=languages, **given)
    print("\n".join(summary.lines()))
    print(f"wrote {arguments.out}")


def check(arguments: argparse.Namespace) -> int:
    """The report on a manifest; exit code 2 where something is wrong."""
    from xretrieval.corpora.check import check_manifest, print_report

    report = check_manifest(arguments.manifest)
    print_report(report)
    return 2 if report.problems else 0


def import_llm(arguments: argparse.Namespace) -> None:
    """A Hugging Face folder to a model directory; says what it found, and what of it is not in the tower."""
    from xretrieval.model import pretrained
    from xretrieval.model.huggingface_weights import left_out_kinds

    done = pretrained.import_llm(arguments.source, arguments.out)
    llm = done.llm
    print(
        f"{llm.name} ({llm.family}): {done.parameters:,} parameters in {' and '.join(done.dtypes)}, {llm.config.text_size:,} text tokens, licence: {done.licence}"
    )
    if llm.weights.left_out:
        print(f"  left out, for a tower of text has no place for them: {', '.join(left_out_kinds(llm.weights.left_out))}")
    for path in llm.weights.ignored:
        print(f"  {path}: beside the files that the model is in, not read")
    print(f"wrote {arguments.out}")


def import_encoder(arguments: argparse.Namespace) -> None:
    """A released speech encoder to the folder that `units fit` takes; says what it found, and what of it is not in there."""
    from xretrieval.units.encoders import files
    from xretrieval.units.encoders.encoder import Encoder, init
    from xretrieval.units.encoders.pretrained import import_encoder

    encoder, left_out = import_encoder(arguments.source, arguments.layer, arguments.average)
    if arguments.random_weights is not None:
        origin = {
            **encoder.source,
            "name": f"{encoder.source['name']}, weights of seed {arguments.random_weights}",
            "licence": "none",
            "terms": "",
        }
        encoder = Encoder(encoder.config, init(encoder.config, arguments.random_weights), encoder.average, origin)
    parameters = sum(x.size for x in encoder.params.values())
    files.save(encoder, arguments.out)
    print(
        f"{encoder.source['name']} ({encoder.source['model_type']}): layer {encoder.layer}, {parameters:,} parameters up to it, features of "
        f"{encoder.config.width} at {encoder.frame_rate:g} Hz, licence: {encoder.source['licence']}"
    )
    if left_out:
        kinds = collections.Counter(".".join(name.split(".")[:2]) for name in left_out)
        print(f"  left out: {', '.join(f'{kind}.* ({count} tensors)' for kind, count in sorted(kinds.items()))}")
    print(f"  fingerprint {encoder.fingerprint}")
    print(f"wrote {arguments.out}")


def import_codebook(arguments: argparse.Namespace) -> None:
    """A published codebook and the encoder that it was made for, held against each other, to a unit tokenizer."""
    import numpy as np

    from xretrieval.units import codebooks
    from xretrieval.units.encoders import files
    from xretrieval.units.fit import features_of, sample_recordings
    from xretrieval.units.tokenizer import UnitTokenizer

    encoder, codebook_KD = files.load(arguments.encoder), codebooks.read_codebook(arguments.codebook)
    codebooks.check_declared(arguments.codebook, codebook_KD, encoder, arguments.made_for, arguments.layer)
    sample = sample_recordings(arguments.check, arguments.recordings, seed=0)
    features_ND = np.concatenate(list(features_of(encoder, sample)))
    found, wanted = codebooks.check_measured(arguments.codebook, codebook_KD, features_ND)
    made_from = {"codebook": files.file_hash(arguments.codebook), "made_for": arguments.made_for, "explained": round(found, 4)}
    UnitTokenizer(encoder, codebook_KD, not arguments.keep_repeats, made_from).save(arguments.out)
    print(
        f"{len(codebook_KD)} centroids explain {found:.1%} of the variance of {len(features_ND):,} frames of {len(sample)} recordings; a few clusters "
        f"fitted on them {wanted:.1%}"
    )
    print(f"wrote {arguments.out}")


def report_units(arguments: argparse.Namespace) -> None:
    """Unit tokenizers side by side; the demo's recordings are aligned by speaking them again."""
    from xretrieval.units.report import report

    alignments = arguments.alignments
    if alignments is None:
        manifest = pathlib.Path(arguments.manifest)
        if not (manifest.parent / "corpus.json").exists():
            raise UserError(f"{manifest}: not a manifest of the demo's corpus, whose phones are known; give --alignments")
        alignments = str(manifest.with_suffix(".phones.jsonl"))
        if not pathlib.Path(alignments).exists():
            from xretrieval.demo.phones import write_phones

            print(f"wrote {write_phones(str(manifest.parent), manifest.stem)}")
    report(arguments.manifest, alignments, arguments.tokenizers, arguments.out, arguments.per_language, arguments.seed)


def search(arguments: argparse.Namespace) -> None:
    """Prints the hits of one query."""
    from xretrieval.search.index import Index
    from xretrieval.search.retriever import Retriever

    retriever = Retriever.load(arguments.model)
    if (arguments.text is None) == (arguments.speech is None):
        raise UserError("give one of --text and --speech")
    vocabulary = retriever.model.vocabulary
    if vocabulary.has_unknown(vocabulary.encode_text(arguments.text or "")):
        print(f"{arguments.text!r} holds characters that the model's text tokenizer does not know: they cannot help to find anything")
    query = (
        retriever.encode_text([arguments.text], arguments.language)
        if arguments.text is not None
        else retriever.encode_speech([arguments.speech], arguments.language)
    )
    with Index.open(arguments.index, retriever.fingerprint) as opened:
        hits = opened.search(query, arguments.top_k, arguments.in_language, arguments.kind)[0]
        if not hits:
            print(f"{arguments.index}: nothing in it is of that language and kind")
        for hit in hits:
            print(f"{hit.score:.3f}  {hit.kind:6}  {hit.language:6}  {hit.text}  {hit.file}")
