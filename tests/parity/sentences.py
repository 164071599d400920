"""Texts for the tokenizers: a sentence in each of 36 scripts, and what goes wrong elsewhere. TRAINING is what they are trained on."""

SCRIPTS = {
    "Latin": "Every child is born free, and every child may learn to read; don't you think it's so?",
    "Latin (Vietnamese)": "Mọi người đều được sinh ra tự do, và ai cũng được học đọc, học viết.",
    "Latin (Turkish)": "Işıklar söndüğünde İstanbul'un iğde ağaçları çiçek açar.",
    "Latin (Yoruba)": "Gbogbo ọmọ ni a bí ní òmìnira, wọ́n sì lè kọ́ ìwé.",
    "Cyrillic": "Каждый ребёнок рождается свободным, и каждый может научиться читать.",
    "Cyrillic (Mongolian)": "Хүүхэд бүр эрх чөлөөтэй төрдөг, бүгд уншиж сурна.",
    "Greek": "Κάθε παιδί γεννιέται ελεύθερο και μπορεί να μάθει να διαβάζει.",
    "Greek (polytonic)": "ἐν ἀρχῇ ἦν ὁ λόγος, καὶ ὁ λόγος ἦν πρὸς ᾠδήν.",
    "Armenian": "Ամեն երեխա ծնվում է ազատ և կարող է սովորել կարդալ։",
    "Georgian": "ყოველი ბავშვი თავისუფალი იბადება და კითხვას სწავლობს.",
    "Hebrew": "כל ילד נולד חופשי, וכל ילד יכול ללמוד לקרוא. שָׁלוֹם",
    "Arabic": "يولد كل طفل حرًّا، ويستطيع كل طفل أن يتعلّم القراءة.",
    "Arabic (Urdu)": "ہر بچہ آزاد پیدا ہوتا ہے اور پڑھنا سیکھ سکتا ہے۔",
    "Arabic (Persian)": "هر کودکی آزاد به دنیا می‌آید و می‌تواند خواندن بیاموزد.",
    "Syriac": "ܟܠ ܛܠܝܐ ܡܬܝܠܕ ܚܐܪܐ ܘܝܠܦ ܠܡܩܪܐ܀",
    "Thaana": "ކޮންމެ ކުއްޖަކީ މިނިވަންކުއްޖެއް، އަދި ކިޔަން ދަސްކުރޭ.",
    "N'Ko": "ߘߋ߲ ߓߍ߯ ߡߐ߬ߟߐ߲߬ߣߍ߲ ߦߋ߫ ߤߙߐ߬ߦߊ ߟߋ߬ ߘߐ߫",
    "Devanagari": "हर बच्चा आज़ाद पैदा होता है और पढ़ना सीख सकता है। क्षत्रिय श्री",
    "Bengali": "প্রতিটি শিশু স্বাধীন হয়ে জন্মায় এবং পড়তে শিখতে পারে।",
    "Gurmukhi": "ਹਰ ਬੱਚਾ ਆਜ਼ਾਦ ਪੈਦਾ ਹੁੰਦਾ ਹੈ ਅਤੇ ਪੜ੍ਹਨਾ ਸਿੱਖ ਸਕਦਾ ਹੈ।",
    "Gujarati": "દરેક બાળક સ્વતંત્ર જન્મે છે અને વાંચતા શીખી શકે છે.",
    "Odia": "ପ୍ରତ୍ୟେକ ଶିଶୁ ସ୍ୱାଧୀନ ଭାବେ ଜନ୍ମ ନିଏ ଏବଂ ପଢ଼ିବା ଶିଖେ।",
    "Tamil": "ஒவ்வொரு குழந்தையும் சுதந்திரமாகப் பிறக்கிறது; படிக்கக் கற்றுக்கொள்ளலாம்.",
    "Telugu": "ప్రతి బిడ్డ స్వేచ్ఛగా పుడుతుంది, చదవడం నేర్చుకోవచ్చు.",
    "Kannada": "ಪ್ರತಿ ಮಗು ಸ್ವತಂತ್ರವಾಗಿ ಹುಟ್ಟುತ್ತದೆ ಮತ್ತು ಓದಲು ಕಲಿಯುತ್ತದೆ.",
    "Malayalam": "ഓരോ കുഞ്ഞും സ്വതന്ത്രമായി ജനിക്കുന്നു, വായിക്കാൻ പഠിക്കുന്നു.",
    "Sinhala": "සෑම දරුවෙක්ම නිදහස්ව උපදින අතර කියවීමට ඉගෙන ගනී. ශ්‍රී",
    "Thai": "เด็กทุกคนเกิดมามีอิสระและเรียนอ่านหนังสือได้",
    "Lao": "ເດັກທຸກຄົນເກີດມາມີອິດສະຫຼະ ແລະ ຮຽນອ່ານໄດ້.",
    "Tibetan": "བྱིས་པ་ཚང་མ་རང་དབང་ལྡན་པར་སྐྱེས་ཤིང་ཀློག་པ་སློབ་ཐུབ།",
    "Myanmar": "ကလေးတိုင်း လွတ်လပ်စွာ မွေးဖွားပြီး စာဖတ်တတ်အောင် သင်ယူနိုင်သည်။",
    "Khmer": "កុមារគ្រប់រូបកើតមកមានសេរីភាព និងអាចរៀនអាន។",
    "Ethiopic": "እያንዳንዱ ልጅ ነጻ ሆኖ ይወለዳል፤ ማንበብም ይማራል።",
    "Cherokee": "ᏂᎦᏓ ᎠᏂᏲᏟ ᎤᏂᏓᏍᏗ ᎨᏎᏍᏗ ᎠᎴ ᎪᎵᏰᏍᎩ.",
    "Canadian syllabics": "ᓄᑕᕋᓕᒫᑦ ᐃᓅᓕᖅᐳᑦ ᐃᓱᒪᕐᓱᕐᓗᑎᒃ, ᐅᖃᓕᒫᕈᓐᓇᖅᓯᓗᑎᒡᓗ.",
    "Mongolian": "ᠬᠦᠦᠬᠡᠳ ᠪᠦᠷ ᠡᠷᠬᠡ ᠴᠢᠯᠦᠭᠡ ᠲᠡᠢ ᠲᠥᠷᠥᠳᠡᠭ᠃",
    "Tifinagh": "ⴽⵓ ⴰⵣⴰⵏ ⵉⵜⵜⵍⴰⵍ ⴷ ⴷⴰⵔⵙ ⵜⵉⵍⴻⵍⵍⵉ, ⵉⵖⵔ.",
    "Ol Chiki": "ᱡᱚᱛᱚ ᱜᱤᱫᱽᱨᱟᱹ ᱯᱷᱩᱨᱜᱟᱹᱞ ᱛᱮ ᱡᱟᱱᱟᱢᱚᱜᱼᱟ᱾",
    "Han (simplified)": "每个孩子生来自由，每个孩子都可以学会读书。",
    "Han (traditional)": "每個孩子生來自由，都可以學會讀書。𠮷野家",
    "Kana and kanji": "子供はみな自由に生まれ、本を読むことをまなべます。カタカナ、ﾊﾝｶｸ。",
    "Hangul": "모든 아이는 자유롭게 태어나며 글을 배울 수 있습니다.",
    "Yi": "ꀀꀁꀂ ꂷ ꊿ ꌠ ꉪꊇ.",
    "Javanese": "ꦱꦧꦼꦤ꧀ ꦧꦺꦴꦕꦃ ꦭꦲꦶꦂ ꦩꦂꦢꦶꦏ꧈",
    "Gothic": "𐌰𐍄𐍄𐌰 𐌿𐌽𐍃𐌰𐍂 𐌸𐌿 𐌹𐌽 𐌷𐌹𐌼𐌹𐌽𐌰𐌼",
    "Adlam": "𞤀𞤣𞤤𞤢𞤥 𞤬𞤮𞤲𞤣𞤫 𞤶𞤢𞤲𞤺𞤵𞤺𞤮𞤤",
}

ODDITIES = {
    "nothing": "",
    "one space": " ",
    "spaces around": "  two before and three after   ",
    "double spaces": "one  two   three    four",
    "newlines": "one\ntwo\n\nthree\n\n\nfour\r\nfive\n",
    "tabs": "one\ttwo\t\tthree",
    "spaces and newlines": "one \n two  \n\n  three",
    "digits": "In 2024, 1234567 people paid 3.14 or 1,000,000 at 12:30.",
    "other digits": "١٢٣٤٥ १२३४५ ๑๒๓๔๕ ①②③ ½ ²³ Ⅻ",
    "emoji": "Good 👍🏽 morning ☀️ 👨‍👩‍👧‍👦 🇺🇳 🏳️‍🌈 🧑🏿‍🚀!",
    "combining marks": "e\u0301 = é, n\u0303 = ñ, s\u0323\u0307 = s\u0307\u0323 = ṩ, A\u030a = Å = \u212b, c\u0327\u0301\u0323",
    "compatibility forms": "ﬁne ﬂow ｆｕｌｌ ｗｉｄｔｈ ㎏ ℡ ﷺ",
    "Hangul in parts": "\u1112\u1161\u11ab\u1100\u1173\u11af and 한글 and \u1112\u1161",
    "direction marks": "\u200fשלום\u200e abc \u202bמה\u202c \u2067نعم\u2069",
    "joiners": "क्‍ष क्‌ष می‌خواهم ශ්‍රී zero\u200bwidth word\u2060joiner soft\u00adhyphen",
    "rare spaces": "a\u00a0b\u2003c\u3000d\u2028e\u0085f\u202fg",
    "byte order mark": "\ufeffbegins with one",
    "control characters": "a\x01b\x7fc\x0bd\x0ce",
    "contractions": "I'm, you're, we'll, they've, he'd, it's; I'M, YOU'RE, l’été, o'clock",
    "code": "def f(x):\n    return {'a': [x ** 2, x != 3], \"b\": `y`}  # done\n\n\tpass",
    "markup": "<table><tr><td>1</td></tr></table> <b>bold</b> &amp; <br/>",
    "address": "See www.example.org/a_b?c=d&e=%20#f or mail me@example.org.",
    "sigils": "▁under▁the▁bar ▁ ▁▁ _ __ ␣",
    "turns": "<start_of_turn>user\nHello!<end_of_turn>\n<start_of_turn>model\n",
    "names of special tokens": "<bos> and <eos>, <pad><unk>, <|endoftext|>, <|im_start|>user<|im_end|>, <mask>, <unused0>",
    "almost special tokens": "<start_of_turn <bos < eos> <|endoftext| > <0x41> <0xE2>",
    "mixed scripts": "Привет, world! 你好世界 مرحبا नमस्ते 🌍 Ελλάδα",
    "noncharacters": "private \ue000 use, last \U0010fffd, replacement \ufffd",
    "long word": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "one letter often": "aaaaaaaaaaaaaaaaaaaaaaaa bbbbbbb",
    "punctuation": "Wait... what?! -- “quoted” ‘so’ «ainsi» „also“ (a)[b]{c}—d–e…",
}

TEXTS = SCRIPTS | ODDITIES

# Mostly these: the many other scripts must fall to bytes.
_LEARNED = ("Latin", "Latin (Vietnamese)", "Cyrillic", "Greek", "Arabic", "Devanagari", "Han (simplified)", "Hangul")
_PARAGRAPH = """The old ferry leaves at seven, when the fog still lies on the river and the lamps are still lit.
Nobody speaks. The driver counts the people who come aboard, then he counts them again, as he has done for thirty years.
On the other side there is the market: bread, apples, tea, shoes, radios, and the woman who repairs umbrellas.
Das alte Schiff fährt um sieben ab, wenn der Nebel noch über dem Fluss liegt und die Lampen noch brennen.
Niemand spricht. Der Fährmann zählt die Leute, die an Bord kommen, und dann zählt er sie noch einmal.
Le vieux bac part à sept heures, quand la brume est encore sur le fleuve et que les lampes sont encore allumées.
Personne ne parle. Le passeur compte les gens qui montent à bord, puis il les compte une deuxième fois.
Старый паром уходит в семь, когда туман ещё лежит на реке и фонари ещё горят.
Никто не говорит. Паромщик считает людей, которые поднимаются на борт, потом считает ещё раз.
task: search result | query: where does the ferry go? title: none | text: The ferry goes to the market.
Given a question, find the sentences that answer it. Retrieve the speech of this text, or the text of this speech.
def count(people):
    return {name: 1 for name in people}"""
TRAINING = [
    *_PARAGRAPH.splitlines() * 3,
    *(SCRIPTS[name] for name in _LEARNED),
    *(ODDITIES[name] for name in ("digits", "code", "punctuation")),
]
