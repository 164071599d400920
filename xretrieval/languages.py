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
      group: FLEURS's geographic group: WE, EE, CMN (Central Asia, Middle East, North Africa), SSA, SA, SEA or CJK.
      script: ISO 15924 code of the script of FLEURS's transcripts.
    """

    code: str
    name: str
    bcp47: str
    iso639_3: str
    covost2: str | None
    group: str
    script: str


# FLEURS code | BCP-47 | ISO 639-3 | CoVoST 2 | group | script | name
_TABLE = """
af_za        af        afr  -      SSA  Latn  Afrikaans
am_et        am        amh  -      SSA  Ethi  Amharic
ar_eg        ar        ara  ar     CMN  Arab  Arabic
as_in        as        asm  -      SA   Beng  Assamese
ast_es       ast       ast  -      WE   Latn  Asturian
az_az        az        aze  -      CMN  Latn  Azerbaijani
be_by        be        bel  -      EE   Cyrl  Belarusian
bg_bg        bg        bul  -      EE   Cyrl  Bulgarian
bn_in        bn        ben  -      SA   Beng  Bengali
bs_ba        bs        bos  -      WE   Latn  Bosnian
ca_es        ca        cat  ca     WE   Latn  Catalan
ceb_ph       ceb       ceb  -      SEA  Latn  Cebuano
ckb_iq       ckb       ckb  -      CMN  Arab  Sorani Kurdish
cmn_hans_cn  zh-Hans   cmn  zh-CN  CJK  Hans  Mandarin Chinese
cs_cz        cs        ces  -      EE   Latn  Czech
cy_gb        cy        cym  cy     WE   Latn  Welsh
da_dk        da        dan  -      WE   Latn  Danish
de_de        de        deu  de     WE   Latn  German
el_gr        el        ell  -      WE   Grek  Greek
en_us        en        eng  -      WE   Latn  English
es_419       es-419    spa  es     WE   Latn  Spanish
et_ee        et        est  et     EE   Latn  Estonian
fa_ir        fa        fas  fa     CMN  Arab  Persian
ff_sn        ff        ful  -      SSA  Latn  Fula
fi_fi        fi        fin  -      WE   Latn  Finnish
fil_ph       fil       fil  -      SEA  Latn  Filipino
fr_fr        fr        fra  fr     WE   Latn  French
ga_ie        ga        gle  -      WE   Latn  Irish
gl_es        gl        glg  -      WE   Latn  Galician
gu_in        gu        guj  -      SA   Gujr  Gujarati
ha_ng        ha        hau  -      SSA  Latn  Hausa
he_il        he        heb  -      CMN  Hebr  Hebrew
hi_in        hi        hin  -      SA   Deva  Hindi
hr_hr        hr        hrv  -      WE   Latn  Croatian
hu_hu        hu        hun  -      WE   Latn  Hungarian
hy_am        hy        hye  -      EE   Armn  Armenian
id_id        id        ind  id     SEA  Latn  Indonesian
ig_ng        ig        ibo  -      SSA  Latn  Igbo
is_is        is        isl  -      WE   Latn  Icelandic
it_it        it        ita  it     WE   Latn  Italian
ja_jp        ja        jpn  ja     CJK  Jpan  Japanese
jv_id        jv        jav  -      SEA  Latn  Javanese
ka_ge        ka        kat  -      EE   Geor  Georgian
kam_ke       kam       kam  -      SSA  Latn  Kamba
kea_cv       kea       kea  -      WE   Latn  Kabuverdianu
kk_kz        kk        kaz  -      CMN  Cyrl  Kazakh
km_kh        km        khm  -      SEA  Khmr  Khmer
kn_in        kn        kan  -      SA   Knda  Kannada
ko_kr        ko        kor  -      CJK  Kore  Korean
ky_kg        ky        kir  -      CMN  Cyrl  Kyrgyz
lb_lu        lb        ltz  -      WE   Latn  Luxembourgish
lg_ug        lg        lug  -      SSA  Latn  Ganda
ln_cd        ln        lin  -      SSA  Latn  Lingala
lo_la        lo        lao  -      SEA  Laoo  Lao
lt_lt        lt        lit  -      EE   Latn  Lithuanian
luo_ke       luo       luo  -      SSA  Latn  Luo
lv_lv        lv        lav  lv     EE   Latn  Latvian
mi_nz        mi        mri  -      SEA  Latn  Maori
mk_mk        mk        mkd  -      EE   Cyrl  Macedonian
ml_in        ml        mal  -      SA   Mlym  Malayalam
mn_mn        mn        mon  mn     CMN  Cyrl  Mongolian
mr_in        mr        mar  -      SA   Deva  Marathi
ms_my        ms        msa  -      SEA  Latn  Malay
mt_mt        mt        mlt  -      WE   Latn  Maltese
my_mm        my        mya  -      SEA  Mymr  Burmese
nb_no        nb        nob  -      WE   Latn  Norwegian
ne_np        ne        nep  -      SA   Deva  Nepali
nl_nl        nl        nld  nl     WE   Latn  Dutch
nso_za       nso       nso  -      SSA  Latn  Northern Sotho
ny_mw        ny        nya  -      SSA  Latn  Nyanja
oc_fr        oc        oci  -      WE   Latn  Occitan
om_et        om        orm  -      SSA  Latn  Oromo
or_in        or        ori  -      SA   Orya  Oriya
pa_in        pa        pan  -      SA   Guru  Punjabi
pl_pl        pl        pol  -      EE   Latn  Polish
ps_af        ps        pus  -      CMN  Arab  Pashto
pt_br        pt-BR     por  pt     WE   Latn  Portuguese
ro_ro        ro        ron  -      EE   Latn  Romanian
ru_ru        ru        rus  ru     EE   Cyrl  Russian
sd_in        sd        snd  -      SA   Arab  Sindhi
sk_sk        sk        slk  -      EE   Latn  Slovak
sl_si        sl        slv  sl     EE   Latn  Slovenian
sn_zw        sn        sna  -      SSA  Latn  Shona
so_so        so        som  -      SSA  Latn  Somali
sr_rs        sr        srp  -      EE   Cyrl  Serbian
sv_se        sv        swe  sv-SE  WE   Latn  Swedish
sw_ke        sw        swa  -      SSA  Latn  Swahili
ta_in        ta        tam  ta     SA   Taml  Tamil
te_in        te        tel  -      SA   Telu  Telugu
tg_tj        tg        tgk  -      CMN  Cyrl  Tajik
th_th        th        tha  -      SEA  Thai  Thai
tr_tr        tr        tur  tr     CMN  Latn  Turkish
uk_ua        uk        ukr  -      EE   Cyrl  Ukrainian
umb_ao       umb       umb  -      SSA  Latn  Umbundu
ur_pk        ur        urd  -      SA   Arab  Urdu
uz_uz        uz        uzb  -      CMN  Latn  Uzbek
vi_vn        vi        vie  -      SEA  Latn  Vietnamese
wo_sn        wo        wol  -      SSA  Latn  Wolof
xh_za        xh        xho  -      SSA  Latn  Xhosa
yo_ng        yo        yor  -      SSA  Latn  Yoruba
yue_hant_hk  yue-Hant  yue  -      CJK  Hant  Cantonese
zu_za        zu        zul  -      SSA  Latn  Zulu
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
        code, bcp47, iso639_3, spoken, group, script, name = line.split(maxsplit=6)
        covost2 = None if spoken == "-" else spoken
        rows[code] = Language(code=code, name=name, bcp47=bcp47, iso639_3=iso639_3, covost2=covost2, group=group, script=script)
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
