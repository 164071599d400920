"""The languages of the polyglot corpus: those with words in CLDR and a voice in espeak-ng."""

from xretrieval.errors import UserError
from xretrieval.languages import language, table

# FLEURS code -> (CLDR locale, file name of espeak-ng's voice), where they are not the bare language code.
_OWN = {
    "cmn_hans_cn": ("zh", "cmn"),
    "en_us": ("en", "en-us"),
    "es_419": ("es_419", "es-419"),
    "pt_br": ("pt", "pt-br"),
    "yue_hant_hk": ("yue", "yue"),
}
_NO_VOICE = (
    "ast_es ceb_ph ckb_iq ff_sn fil_ph gl_es ha_ng ig_ng jv_id kam_ke kea_cv km_kh lg_ug ln_cd lo_la luo_ke mn_mn nso_za ny_mw oc_fr "
    "ps_af sn_zw so_so tg_tj umb_ao wo_sn xh_za yo_ng zu_za"
).split()
_REASONS = dict.fromkeys(_NO_VOICE, "espeak-ng has no voice for it") | {
    "ja_jp": "espeak-ng says “Chinese letter” for every kanji",
    "as_in": "espeak-ng spells many of its words letter by letter",
    "he_il": "espeak-ng speaks it without its vowels, which are not written",
    "lb_lu": "espeak-ng says only the last digit of its numbers",
    "mi_nz": "CLDR has no list pattern for it",
    "mt_mt": "CLDR has no currency names in it",
    "my_mm": "espeak-ng speaks it without most of its vowels",
    "ne_np": "espeak-ng says its numbers in English",
    "om_et": "CLDR has no list pattern and few currency names in it",
    "or_in": "espeak-ng spells some of its words letter by letter",
    "th_th": "espeak-ng reads its letters one by one",
    "vi_vn": "many of its words in CLDR are English, and spoken so",
}

LANGUAGES = tuple(code for code in table() if code not in _REASONS)
# English and every source language of CoVoST 2 that can be spoken here; all others are for testing transfer.
TRAINABLE = ("en_us", *(code for code in LANGUAGES if language(code).covost2))
UNSEEN = tuple(code for code in LANGUAGES if code not in TRAINABLE)


def cldr_and_voice(code: str) -> tuple[str, str]:
    """The CLDR locale and espeak-ng voice of a language.

    Raises:
      UserError: the corpus cannot have this language; the message says why.
    """
    if code not in LANGUAGES:
        row = language(code)
        raise UserError(f"the polyglot corpus has no {row.name} ({row.code}): {_REASONS[row.code]}. It has: {', '.join(LANGUAGES)}")
    bare = language(code).bcp47.split("-")[0]
    return _OWN.get(code, (bare, bare))
