import collections
import json
import pathlib

import pytest

from xretrieval.errors import UserError
from xretrieval.languages import language, languages, table

# The source languages of CoVoST 2's X -> English half, by its own codes.
COVOST2 = "fr de es ca it ru zh-CN pt fa et mn nl tr ar sv-SE lv sl ta ja id cy".split()


def test_the_table_is_fleurs():
    assert len(table()) == 102
    groups = collections.Counter(row.group for row in table().values())
    assert groups == {"WE": 25, "EE": 16, "CMN": 12, "SSA": 20, "SA": 14, "SEA": 11, "CJK": 4}
    assert sorted(row.covost2 for row in table().values() if row.covost2) == sorted(COVOST2)
    for field in ("name", "bcp47", "iso639_3"):
        values = [getattr(row, field) for row in table().values()]
        assert len(set(values)) == len(values), field
    assert all(len(row.iso639_3) == 3 and len(row.script) == 4 and code == row.code for code, row in table().items())


# The targets of its English -> X half.
FROM_ENGLISH = "de tr fa sv-SE mn zh-CN cy ca sl et id ar ta lv ja".split()
# Where mteb says otherwise: the member of a macrolanguage, where ISO 639-3 has one, and Hangul alone, where Korean may be written with Han as well.
OTHERWISE = {"ko_kr": "kor-Hang", "lv_lv": "lvs-Latn", "ne_np": "npi-Deva", "sw_ke": "swh-Latn", "uz_uz": "uzn-Latn"}


def test_languages_and_scripts_are_those_of_mteb():
    """`make parity` wrote the package's table."""
    theirs = json.loads((pathlib.Path(__file__).parent / "data/parity/mteb_fleurs.json").read_text())
    ours = {code: f"{row.iso639_3}-{row.script}" for code, row in table().items()}
    assert {code: found for code, [found] in theirs.items()} == ours | OTHERWISE
    for found in OTHERWISE.values():
        assert language(found[:3]).code in OTHERWISE


def test_what_covost2_and_wikimatrix_have():
    rows = table().values()
    assert sorted(row.covost2 for row in rows if row.covost2_from_english) == sorted(FROM_ENGLISH)
    lacking = {row.code for row in rows if row.covost2 and not row.wikimatrix}
    assert lacking == {"mn_mn", "lv_lv", "cy_gb"}
    assert all(row.wikimatrix for row in rows if row.wikimatrix_english)
    assert sum(row.wikimatrix_english for row in rows) == 56
    assert {row.code for row in rows if row.wikimatrix and not row.wikimatrix_english} == {"as_in", "hy_am", "en_us"}
    assert not table()["en_us"].wikimatrix_english
    codes = [row.wikimatrix for row in rows if row.wikimatrix]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    "alias, code",
    [
        ("de", "de_de"),
        ("de_de", "de_de"),
        ("de-AT", "de_de"),
        ("deu", "de_de"),
        ("German", "de_de"),
        ("eng", "en_us"),
        ("zh-CN", "cmn_hans_cn"),
        ("zh", "cmn_hans_cn"),
        ("sv-SE", "sv_se"),
        ("es-419", "es_419"),
        ("es", "es_419"),
        ("no", "nb_no"),
        ("pt", "pt_br"),
        ("Northern Sotho", "nso_za"),
    ],
)
def test_aliases(alias, code):
    assert language(alias).code == code


def test_every_form_in_the_table_is_accepted():
    for code, row in table().items():
        for form in (row.code, row.bcp47, row.iso639_3, row.name, row.covost2 or code):
            assert language(form).code == code, form


@pytest.mark.parametrize("wrong, nearest", [("gemran", "de_de"), ("de_dee", "de_de"), ("xx", "xh_za"), ("", None), ("zh-Latn", None)])
def test_an_unknown_language_names_the_nearest(wrong, nearest):
    with pytest.raises(UserError, match=nearest or "nearest"):
        language(wrong)


def test_lists_of_languages():
    assert [row.code for row in languages("de, fr,en")] == ["de_de", "fr_fr", "en_us"]
    assert [row.code for row in languages(["de", "eng"])] == ["de_de", "en_us"]
    with pytest.raises(UserError, match="de_de is named more than once"):
        languages("de,German")
