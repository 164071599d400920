"""One table of languages: the 102 of FLEURS, with the codes by which other corpora call them."""

import dataclasses
import difflib
import functools
from collections.abc import Sequence

from xretrieval.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """One language; `code` (FLEURS, e.g. `de_de`) is its name everywhere in this package.

    Attributes:
      code: FLEURS code.
      name: English name.
      bcp47: BCP-47 tag, e.g. `zh-Hans`.
      iso639_3: ISO 639-3 code, e.g. `deu`.
      covost2: code in CoVoST 2 (languages spoken there and translated into English), or None.
      covost2_from_english: whether English is spoken there and translated into it.
      wikimatrix: code in WikiMatrix, or None where no file has this language.
      wikimatrix_english: whether there is a file of it with English.
      group: FLEURS's geographic group: WE, EE, CMN (Central Asia, Middle East, North Africa), SSA, SA, SEA or CJK.
      script: ISO 15924 code of the script of FLEURS's transcripts.
    """

    code: str
    name: str
    bcp47: str
    iso639_3: str
    covost2: str | None
    covost2_from_english: bool
    wikimatrix: str | None
    wikimatrix_english: bool
    group: str
    script: str


# FLEURS code | BCP-47 | ISO 639-3 | CoVoST 2, + where also from English | WikiMatrix, in brackets where not with English | group | script | name
# CoVoST 2: XX_EN_LANGUAGES and EN_XX_LANGUAGES of get_covost_splits.py (facebookresearch/covost). WikiMatrix: list_of_bitexts.txt
# (facebookresearch/LASER); its ar is Standard Arabic (Egyptian, arz, has files of its own), its zh is in both scripts.
_TABLE = """
af_za        af        afr  -       -     SSA  Latn  Afrikaans
am_et        am        amh  -       -     SSA  Ethi  Amharic
ar_eg        ar        ara  ar+     ar    CMN  Arab  Arabic
as_in        as        asm  -       (as)  SA   Beng  Assamese
ast_es       ast       ast  -       -     WE   Latn  Asturian
az_az        az        aze  -       az    CMN  Latn  Azerbaijani
be_by        be        bel  -       be    EE   Cyrl  Belarusian
bg_bg        bg        bul  -       bg    EE   Cyrl  Bulgarian
bn_in        bn        ben  -       bn    SA   Beng  Bengali
bs_ba        bs        bos  -       bs    WE   Latn  Bosnian
ca_es        ca        cat  ca+     ca    WE   Latn  Catalan
ceb_ph       ceb       ceb  -       ceb   SEA  Latn  Cebuano
ckb_iq       ckb       ckb  -       -     CMN  Arab  Sorani Kurdish
cmn_hans_cn  zh-Hans   cmn  zh-CN+  zh    CJK  Hans  Mandarin Chinese
cs_cz        cs        ces  -       cs    EE   Latn  Czech
cy_gb        cy        cym  cy+     -     WE   Latn  Welsh
da_dk        da        dan  -       da    WE   Latn  Danish
de_de        de        deu  de+     de    WE   Latn  German
el_gr        el        ell  -       el    WE   Grek  Greek
en_us        en        eng  -       en    WE   Latn  English
es_419       es-419    spa  es      es    WE   Latn  Spanish
et_ee        et        est  et+     et    EE   Latn  Estonian
fa_ir        fa        fas  fa+     fa    CMN  Arab  Persian
ff_sn        ff        ful  -       -     SSA  Latn  Fula
fi_fi        fi        fin  -       fi    WE   Latn  Finnish
fil_ph       fil       fil  -       tl    SEA  Latn  Filipino
fr_fr        fr        fra  fr      fr    WE   Latn  French
ga_ie        ga        gle  -       -     WE   Latn  Irish
gl_es        gl        glg  -       gl    WE   Latn  Galician
gu_in        gu        guj  -       -     SA   Gujr  Gujarati
ha_ng        ha        hau  -       -     SSA  Latn  Hausa
he_il        he        heb  -       he    CMN  Hebr  Hebrew
hi_in        hi        hin  -       hi    SA   Deva  Hindi
hr_hr        hr        hrv  -       hr    WE   Latn  Croatian
hu_hu        hu        hun  -       hu    WE   Latn  Hungarian
hy_am        hy        hye  -       (hy)  EE   Armn  Armenian
id_id        id        ind  id+     id    SEA  Latn  Indonesian
ig_ng        ig        ibo  -       -     SSA  Latn  Igbo
is_is        is        isl  -       is    WE   Latn  Icelandic
it_it        it        ita  it      it    WE   Latn  Italian
ja_jp        ja        jpn  ja+     ja    CJK  Jpan  Japanese
jv_id        jv        jav  -       jv    SEA  Latn  Javanese
ka_ge        ka        kat  -       ka    EE   Geor  Georgian
kam_ke       kam       kam  -       -     SSA  Latn  Kamba
kea_cv       kea       kea  -       -     WE   Latn  Kabuverdianu
kk_kz        kk        kaz  -       kk    CMN  Cyrl  Kazakh
km_kh        km        khm  -       -     SEA  Khmr  Khmer
kn_in        kn        kan  -       -     SA   Knda  Kannada
ko_kr        ko        kor  -       ko    CJK  Kore  Korean
ky_kg        ky        kir  -       -     CMN  Cyrl  Kyrgyz
lb_lu        lb        ltz  -       lb    WE   Latn  Luxembourgish
lg_ug        lg        lug  -       -     SSA  Latn  Ganda
ln_cd        ln        lin  -       -     SSA  Latn  Lingala
lo_la        lo        lao  -       -     SEA  Laoo  Lao
lt_lt        lt        lit  -       lt    EE   Latn  Lithuanian
luo_ke       luo       luo  -       -     SSA  Latn  Luo
lv_lv        lv        lav  lv+     -     EE   Latn  Latvian
mi_nz        mi        mri  -       -     SEA  Latn  Maori
mk_mk        mk        mkd  -       mk    EE   Cyrl  Macedonian
ml_in        ml        mal  -       ml    SA   Mlym  Malayalam
mn_mn        mn        mon  mn+     -     CMN  Cyrl  Mongolian
mr_in        mr        mar  -       mr    SA   Deva  Marathi
ms_my        ms        msa  -       -     SEA  Latn  Malay
mt_mt        mt        mlt  -       -     WE   Latn  Maltese
my_mm        my        mya  -       -     SEA  Mymr  Burmese
nb_no        nb        nob  -       no    WE   Latn  Norwegian
ne_np        ne        nep  -       ne    SA   Deva  Nepali
nl_nl        nl        nld  nl      nl    WE   Latn  Dutch
nso_za       nso       nso  -       -     SSA  Latn  Northern Sotho
ny_mw        ny        nya  -       -     SSA  Latn  Nyanja
oc_fr        oc        oci  -       oc    WE   Latn  Occitan
om_et        om        orm  -       -     SSA  Latn  Oromo
or_in        or        ori  -       -     SA   Orya  Oriya
pa_in        pa        pan  -       -     SA   Guru  Punjabi
pl_pl        pl        pol  -       pl    EE   Latn  Polish
ps_af        ps        pus  -       -     CMN  Arab  Pashto
pt_br        pt-BR     por  pt      pt    WE   Latn  Portuguese
ro_ro        ro        ron  -       ro    EE   Latn  Romanian
ru_ru        ru        rus  ru      ru    EE   Cyrl  Russian
sd_in        sd        snd  -       -     SA   Arab  Sindhi
sk_sk        sk        slk  -       sk    EE   Latn  Slovak
sl_si        sl        slv  sl+     sl    EE   Latn  Slovenian
sn_zw        sn        sna  -       -     SSA  Latn  Shona
so_so        so        som  -       -     SSA  Latn  Somali
sr_rs        sr        srp  -       sr    EE   Cyrl  Serbian
sv_se        sv        swe  sv-SE+  sv    WE   Latn  Swedish
sw_ke        sw        swa  -       sw    SSA  Latn  Swahili
ta_in        ta        tam  ta+     ta    SA   Taml  Tamil
te_in        te        tel  -       te    SA   Telu  Telugu
tg_tj        tg        tgk  -       tg    CMN  Cyrl  Tajik
th_th        th        tha  -       -     SEA  Thai  Thai
tr_tr        tr        tur  tr+     tr    CMN  Latn  Turkish
uk_ua        uk        ukr  -       uk    EE   Cyrl  Ukrainian
umb_ao       umb       umb  -       -     SSA  Latn  Umbundu
ur_pk        ur        urd  -       -     SA   Arab  Urdu
uz_uz        uz        uzb  -       -     CMN  Latn  Uzbek
vi_vn        vi        vie  -       vi    SEA  Latn  Vietnamese
wo_sn        wo        wol  -       -     SSA  Latn  Wolof
xh_za        xh        xho  -       -     SSA  Latn  Xhosa
yo_ng        yo        yor  -       -     SSA  Latn  Yoruba
yue_hant_hk  yue-Hant  yue  -       -     CJK  Hant  Cantonese
zu_za        zu        zul  -       -     SSA  Latn  Zulu
"""

# What corpora and people also write: members of a macrolanguage, older codes, and the tags of other locales of a language.
_ALIASES = {
    "ar_eg": "arb arz standard-arabic",
    "az_az": "azj",
    "bn_in": "bangla",
    "ckb_iq": "ku kurdish",
    "cmn_hans_cn": "zh zho zh-tw zh-hant chinese mandarin",
    "es_419": "es-es es-mx castilian",
    "et_ee": "ekk",
    "fa_ir": "pes prs farsi",
    "ff_sn": "fuc fulah",
    "fil_ph": "tl tgl tagalog",
    "he_il": "iw",
    "id_id": "in",
    "kk_kz": "kk-cyrl",
    "kea_cv": "cape-verdean",
    "lg_ug": "luganda",
    "lv_lv": "lvs",
    "mi_nz": "māori",
    "mn_mn": "khk",
    "ms_my": "zsm zlm",
    "nb_no": "no nor bokmål norwegian-bokmål",
    "ne_np": "npi",
    "nso_za": "sepedi",
    "ny_mw": "chichewa",
    "om_et": "gaz",
    "or_in": "ory odia",
    "ps_af": "pbt pashto",
    "pt_br": "pt-pt",
    "sw_ke": "swh",
    "uz_uz": "uzn",
    "yue_hant_hk": "zh-hk",
}


@functools.cache
def table() -> dict[str, Language]:
    """Every language by FLEURS code, in alphabetical order."""
    rows = {}
    for line in _TABLE.strip().splitlines():
        code, bcp47, iso639_3, covost2, wikimatrix, group, script, name = line.split(maxsplit=7)
        rows[code] = Language(
            code=code,
            name=name,
            bcp47=bcp47,
            iso639_3=iso639_3,
            covost2=None if covost2 == "-" else covost2.rstrip("+"),
            covost2_from_english=covost2.endswith("+"),
            wikimatrix=None if wikimatrix == "-" else wikimatrix.strip("()"),
            wikimatrix_english=wikimatrix not in ("-", "en") and not wikimatrix.startswith("("),
            group=group,
            script=script,
        )
    return rows


def _key(text: str) -> str:
    return text.strip().lower().replace("_", "-").replace(" ", "-")


@functools.cache
def _names() -> dict[str, str]:
    names: dict[str, str] = {}
    for code, row in table().items():
        bare = row.bcp47.split("-")[0]
        for alias in (code, row.bcp47, bare, row.iso639_3, row.covost2 or code, row.name, *_ALIASES.get(code, "").split()):
            owner = names.setdefault(_key(alias), code)
            assert owner == code, f"{alias} means both {owner} and {code}"
    return names


def language(code_or_alias: str) -> Language:
    """The language of a code or name in any of the table's forms: `de_de`, `de`, `de-DE`, `deu`, `German`, `zh-CN`, `sv-SE`.

    A tag of a language with another territory (`fr-CA`, `en-GB`) means the language.

    Raises:
      UserError: no such language; the message gives the nearest name.
    """
    names = _names()
    key = _key(code_or_alias)
    primary, _, rest = key.partition("-")
    is_territory = (len(rest) == 2 and rest.isalpha()) or (len(rest) == 3 and rest.isdigit())
    code = names.get(key) or (names.get(primary) if is_territory and len(primary) <= 3 else None)
    if code is None:
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
        row = table()[names[near]]
        raise UserError(
            f"unknown language {code_or_alias!r}; the nearest known one is {row.code} ({row.name}). Languages are written as in FLEURS, e.g. de_de"
        )
    return table()[code]


def languages(codes_or_aliases: Sequence[str] | str) -> list[Language]:
    """Several languages, from a list or one comma-separated string; a language named twice is an error."""
    if isinstance(codes_or_aliases, str):
        codes_or_aliases = [part for part in codes_or_aliases.split(",") if part.strip()]
    rows = [language(code) for code in codes_or_aliases]
    twice = {row.code for row in rows if rows.count(row) > 1}
    if twice:
        raise UserError(f"language {', '.join(sorted(twice))} is named more than once; name each language once")
    return rows
