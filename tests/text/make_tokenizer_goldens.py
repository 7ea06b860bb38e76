#!/usr/bin/env python3
"""Writes tests/text/data/tokenizer_*.json, unicode_nfc.json and pretokenizer_classes.json.

The oracles are the tokenizers of the models themselves: HF `tokenizers` for byte-level BPE, `sentencepiece` for
SentencePiece-style vocabularies, Python's unicodedata for NFC; llama.cpp is run beside them and where it differs is
recorded. SmolLM2's vocabulary comes from its GGUF; the others are small ones trained here with the published
pre-splitting patterns. Python 3.11 (Unicode 14). It makes its own venv:

    python3 tests/text/make_tokenizer_goldens.py
"""
import glob
import io
import json
import os
import random
import sys
import unicodedata

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from golden_venv import CACHE, run_in_venv  # noqa: E402

PACKAGES = ["tokenizers==0.23.3", "sentencepiece==0.2.1", "protobuf", "gguf==0.19.0", "llama-cpp-python==0.3.36"]
DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
MODEL = os.path.join(CACHE, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SENTENCES = [
    "The quick brown fox jumps over the lazy dog. It's what they'd've said, isn't it? WE'LL SEE; I'M SURE THEY'RE.",
    "Les élèves français mangèrent où bon leur semblait, à Noël, près du château. Ça va ? « Oui ! »",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Straße, ẞ, Größe.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia. ¿Qué? ¡Ñandú!",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy. Árvíztűrő tükörfúrógép.",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Україна: їжак, ґанок, єдність.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Γαζέες καὶ μυρτιὲς δὲν θὰ βρῶ πιὰ στὸ χρυσαφὶ ξέφωτο.",
    "今天天气很好，我们去公园散步吧。汉字与漢字：「你好」、『世界』！１２３ＡＢＣ",
    "いろはにほへと ちりぬるを。東京タワーへ行きました。カタカナ、ｶﾀｶﾅ、ー々〆ヶ。",
    "다람쥐 헌 쳇바퀴에 타고파. 안녕하세요, 세계! \u1112\u1161\u11ab\u1100\u1173\u11af (자모)",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت. مرحبا بالعالم ١٢٣ ۴۵۶؟ پارسی: گچ پژ چای.",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם עוֹלָם!",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण। क्षत्रिय ज्ञान १२३ हिन्दी, काग़ज़।",
    "আমি কাঁচ খেতে পারি। বাংলা ভাষা ১২৩। ড় ঢ় য়",
    "தமிழ் மொழி வாழ்க. ௧௨௩ శ్రీ తెలుగు ಕನ್ನಡ മലയാളം සිංහල",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓",
    "ພາສາລາວ ភាសាខ្មែរ မြန်မာဘာသာ བོད་སྐད། ᠮᠣᠩᠭᠣᠯ\u180eᠠ ქართული Հայերեն አማርኛ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ",
    "Tiếng Việt: Chó sủa là chó không cắn. Đường đến trường, người Việt Nam.",
    "İstanbul'da yağız şoföre çabucak güvendi; ISPARTA ılık ığdır. 'S 'ſ 'K \u212a",
    "👋🌍 😀😃😄 👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇫🇷🇯🇵 1️⃣2️⃣ ❤️‍🔥 🧑🏿‍🤝‍🧑🏻 ☃️ 🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β ⇒ γ; ∫₀^∞ e^{−x²}dx = √π/2 ≈ 0.886; ½ ¾ ⅷ Ⅷ ① ㊿ x² H₂O",
    "€100 £20 ¥3000 ₹50 ₿1 ¢5 — “quotes” ‘single’ „low“ … • · † ‡ § ¶ © ® ™ № ℃",
]
CODE = [
    "def fib(n):\n    a, b = 0, 1\n    while n > 0:\n        a, b = b, a + b\n        n -= 1\n    return a\n",
    "#include <vector>\r\ntemplate <typename T>\r\nstd::vector<T> f(const T&& x) { return {x, x}; }  // 0xDEADBEEF\r\n",
    "for (let i = 0; i < 10; ++i) {\n\tconsole.log(`${i}: ${arr[i] ?? 'none'}`);\n\t}\n\n\n",
    "SELECT id, COUNT(*) FROM t WHERE name LIKE '%x%' AND d >= '2024-01-31' GROUP BY 1;--",
    '{"key": [1, 2.50, -3e10, true, null], "nested": {"a": "\\u00e9\\n"}}',
    "<div class=\"a b\"><p>Text &amp; more</p></div><!-- c -->\n\n<br/>",
    "$ curl -sSL https://example.org/a?b=c&d=%20e#f | sh -x 2>&1 >/dev/null",
    "\\begin{align}\\frac{\\partial f}{\\partial x_1} &= \\sum_{i=1}^{n} w_i\\end{align}",
    "x=1;y =22;z= 333;w = 4444;v=55555 666666 7777777 3.14159 1,000,000 2024-06-01T12:34:56Z 0b1010 1e-9",
]
SPACES = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n\n", "\r\n", "\r\n\r\n", "\r", "\n\r\n\r", "\t", "\t\t\t", " \n", "\n ", " \t \n \t ",
    "a  b   c    d     e", "a \nb\n  c\r\n   d\n\n    e", "  leading", "trailing  ", "  both  ", " x  1   2    !", "1 2  3   4",
    "tab\tseparated\t\tvalues\t", "a\u00a0b\u00a0\u00a0c", "a\u3000b\u3000 c", "\u2003\u2002 x\u205f\u202fy\u1680z", "a\u2028b\u2029c\u0085d",
    "a\u200bb\ufeffc\u2060d\u180ee", "\x0b\x0c x \x1c\x1d\x1e\x1f y", "line1\n\n   \n\t\nline2   \n   ", " " * 33, "a" + " " * 100 + "b", "\n" * 50,
]
CONTROLS = [
    "\x00", "a\x00b\x00\x00c", "\x01\x02\x03\x05\x07\x08\x0e\x1b[31mred\x1b[0m\x7f", "\x80\x81\x9f", "a\x04b\x06c\x1dd", "!\x04!= .\x06. (\x1d) =\x13=\x14=>", "\U000f0000\U00040000x\U00080001",
    "\ufffd\ufffd\ufffe\uffff", "e\u0301 e\u0301\u0327 \u0301 a\u0323\u0302 q\u0307\u0323 Z\u0300\u0301\u0302\u0303\u0304\u0305\u0306", "\u1e9b\u0323 \u212b \u2126 ﬁ ﬃ",
    "\u0344\u0958\u0f73\u1100\u1161\u11a8 \uac00\u11a8 \ufb1d", "Z̸̢̛͖͎a̷̡͓l̵̨̛g̶̢͝o̸͜",
]
RUNS = ["a" * 70, "ab" * 60, "0123456789" * 9, "é" * 40, "字" * 40, "😀" * 20, "=" * 80, "-_" * 40, "AAAAaaaa" * 12, "ing" * 50, "'s't're'S'T" * 6, "the" * 40]
MARKUP = [
    "<|im_start|>user\nhi<|im_end|>", "<|endoftext|>", "x<|im_start|><|im_start|>y", "<s>hi</s> <unk> <0x0A> <0xFF>", "<think>\nok\n</think>", "<|eot_id|> <|begin_of_text|>",
    "▁a ▁ b▁", "Ġthe Ċ", "<td>a</td><td>", "\n\n\n\n\n<td>foo bar<2mass >foo bar",
]


def random_texts(count, seed):
    rng = random.Random(seed)
    pool = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    near = list(" \t\n\r\u00a0\u3000\u200d'sStTdDmMrReEvVlL0189²½٣Ⅷ①aZéßſK字ा\u0301\u0327.,!?-_<|>▁😀👨👩🏽\ufe0f\x00\x04") + [
        "'re", "'VE", "'ll", "  ", "\r\n", "   \n", " the", "ing", " and "]
    texts = []
    for _ in range(count):
        share = rng.random()
        texts.append("".join(rng.choice(near if rng.random() < share else pool) for _ in range(rng.randrange(1, 25))))
    return texts


def training_texts():
    files = sorted(glob.glob(os.path.join(os.path.dirname(os.__file__), "*.py")))
    texts = []
    for path in files[:120]:
        with open(path, encoding="utf-8") as f:
            texts.append(f.read())
    return texts + (SENTENCES + CODE + SPACES) * 20


def write(name, value):
    path = os.path.join(DATA, name)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")
    print(f"{name}: {os.path.getsize(path)} bytes")


def golden(texts, encode, decode):
    """ids of each text, and what they decode to where that is not the text."""
    ids = [encode(t) for t in texts]
    decoded = {i: d for i, (t, d) in enumerate(zip(texts, map(decode, ids))) if d != t}
    return {"ids": ids, "decoded": {str(i): d for i, d in decoded.items()}}


def smollm2_spec():
    import gguf
    reader = gguf.GGUFReader(MODEL)
    field = lambda key: reader.fields["tokenizer.ggml." + key].contents()
    return {"pre": "smollm", "tokens": field("tokens"), "types": field("token_type"), "merges": field("merges")}


def pretokenizer(name):
    from tokenizers import Regex, pre_tokenizers as p
    bytes_only = p.ByteLevel(add_prefix_space=False, use_regex=False)
    with_regex = p.ByteLevel(add_prefix_space=False, use_regex=True)
    return {
        "smollm": lambda: p.Sequence([p.Digits(individual_digits=True), with_regex]),
        "gpt-2": lambda: with_regex,
        "llama-bpe": lambda: p.Sequence([p.Split(Regex(LLAMA3), "isolated"), bytes_only]),
        "qwen2": lambda: p.Sequence([p.Split(Regex(QWEN2), "isolated"), bytes_only]),
    }[name]()


def hf_bpe(spec):
    """The tokenizers object of the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    types = spec["types"]
    vocab = {t: i for i, t in enumerate(spec["tokens"]) if types[i] == NORMAL}
    hf = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in spec["merges"]],
                              ignore_merges=spec["pre"] == "llama-bpe"))
    hf.pre_tokenizer = pretokenizer(spec["pre"])
    hf.decoder = decoders.ByteLevel()
    if spec["pre"] == "qwen2":
        hf.normalizer = normalizers.NFC()
    return hf, types, AddedToken


def train_bpe(name, texts, added):
    """A vocabulary trained with the pattern, then the added (text, type)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    hf = Tokenizer(models.BPE())
    hf.pre_tokenizer = pretokenizer(name)
    if name == "qwen2":
        hf.normalizer = normalizers.NFC()
    hf.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2600, show_progress=False,
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(hf.to_str())["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    types = [NORMAL] * len(tokens) + [kind for _, kind in added]
    return {"pre": name, "tokens": tokens + [text for text, _ in added], "types": types,
            "merges": [" ".join(m) for m in model["merges"]]}


def add_tokens(hf, spec, AddedToken):
    """HF gives added tokens the next ids: they are the vocabulary's last."""
    for text, kind in zip(spec["tokens"], spec["types"]):
        if kind == CONTROL and hf.token_to_id(text) is None:
            hf.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            hf.add_tokens([AddedToken(text, normalized=False, special=False)])
        assert hf.token_to_id(text) is not None


def bpe_golden(spec, corpus):
    hf, _, AddedToken = hf_bpe(spec)
    add_tokens(hf, spec, AddedToken)
    assert [hf.id_to_token(i) for i in range(len(spec["tokens"]))] == spec["tokens"]
    hf.encode_special_tokens = True  # specials in text are text
    decode = lambda ids: hf.decode(ids, skip_special_tokens=False)
    out = golden(corpus, lambda t: hf.encode(t, add_special_tokens=False).ids, decode)
    hf.encode_special_tokens = False
    out["parse_special"] = [[t, hf.encode(t, add_special_tokens=False).ids] for t in MARKUP]
    return out


def smollm2_golden(corpus):
    """SmolLM2's specials have the first ids, so the model holds only the rest and the specials keep the file's ids."""
    import llama_cpp
    from tokenizers import Tokenizer
    spec = smollm2_spec()
    hf, _, AddedToken = hf_bpe(spec)
    state = json.loads(hf.to_str())
    state["model"]["vocab"] = {t: i for i, t in enumerate(spec["tokens"])}
    hf = Tokenizer.from_str(json.dumps(state))
    hf.add_special_tokens([AddedToken(t, normalized=False, special=True)
                           for t, kind in zip(spec["tokens"], spec["types"]) if kind == CONTROL])
    hf.encode_special_tokens = True
    out = golden(corpus, lambda t: hf.encode(t).ids, lambda ids: hf.decode(ids, skip_special_tokens=False))
    hf.encode_special_tokens = False
    out["parse_special"] = [[t, hf.encode(t).ids] for t in MARKUP]
    llama = llama_cpp.Llama(MODEL, vocab_only=True, verbose=False)
    differs = [i for i, t in enumerate(corpus) if llama.tokenize(t.encode(), add_bos=False, special=False) != out["ids"][i]]
    differs_special = [i for i, (t, ids) in enumerate(out["parse_special"])
                       if llama.tokenize(t.encode(), add_bos=False, special=True) != ids]
    print(f"llama.cpp differs on {len(differs)} of {len(corpus)} texts:", [ascii(corpus[i])[:60] for i in differs[:9]], differs_special)
    out["llama_cpp_differs"] = differs
    return out


def train_spm(texts, **options):
    import sentencepiece
    lines = [line for t in texts for line in t.split("\n") if line.strip() and "\0" not in line]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type="bpe", vocab_size=2000, minloglevel=2,
        max_sentence_length=20000, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=0.999,
        num_threads=1, **options)
    return out.getvalue()


def spm_golden(name, proto, corpus, user_defined=(), unused_share=0.0, add_space_prefix=True, remove_extra=False):
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(proto)
    rng = random.Random(7)
    for piece in model.pieces:
        if piece.type == NORMAL and len(piece.piece) > 1 and rng.random() < unused_share:
            piece.type = UNUSED
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    spec = {"tokens": [p.piece for p in model.pieces], "types": [p.type for p in model.pieces],
            "scores": [p.score for p in model.pieces], "unknown_id": 0, "bos_id": 1, "eos_id": 2,
            "add_space_prefix": add_space_prefix, "remove_extra_whitespaces": remove_extra}
    assert [p.piece for p in model.pieces if p.type == USER_DEFINED] == list(user_defined)
    texts = [i for i, t in enumerate(corpus) if "\0" not in t]  # the Python binding stops at NUL
    ids = {str(i): sp.encode(corpus[i]) for i in texts}
    write(name, {"spec": spec, "ids": ids})


def ranges(points):
    """[first, last] of each run of sorted code points."""
    out = []
    for c in points:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def nfc_golden():
    hash64 = 0xCBF29CE484222325
    points = [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    for c in points:
        for byte in unicodedata.normalize("NFC", "a" + chr(c) + "\u0301\u0323" + chr(c)).encode():
            hash64 = (hash64 ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    rng = random.Random(11)
    marks = [chr(c) for c in points if unicodedata.combining(chr(c))]
    special = [chr(c) for c in points if unicodedata.decomposition(chr(c)) and "<" not in unicodedata.decomposition(chr(c))]
    jamo = [chr(c) for c in list(range(0x1100, 0x1113)) + list(range(0x1161, 0x1176)) + list(range(0x11A7, 0x11C3)) + [0xAC00, 0xAC01, 0xD788]]
    cases = []
    for _ in range(600):
        text = "".join(rng.choice(rng.choice([marks, special, jamo, list("aeoAZ1 字")])) for _ in range(rng.randrange(1, 9)))
        cases.append([text, unicodedata.normalize("NFC", text)])
    return {"sweep_fnv1a64": f"{hash64:016x}", "assigned": ranges(points), "cases": cases}


def class_golden():
    """Letters, numbers, white space, as HF's GPT-2 pattern sees each code point, in [first, last] ranges."""
    gpt2 = pretokenizer("gpt-2")
    pieces = lambda text: len(gpt2.pre_tokenize_str(text))
    found = {"letter": [], "number": [], "space": []}
    for c in range(0x110000):
        if 0xD800 <= c <= 0xDFFF:
            continue
        if pieces("a" + chr(c)) == 1:
            found["letter"].append(c)
        elif pieces("1" + chr(c)) == 1:
            found["number"].append(c)
        elif pieces("!" + chr(c)) == 2:
            found["space"].append(c)
    return {kind: ranges(points) for kind, points in found.items()}


def main():
    run_in_venv("tokenizer-goldens", PACKAGES)
    if unicodedata.unidata_version != "14.0.0":
        sys.exit(f"this Python has Unicode {unicodedata.unidata_version}; the NFC golden needs 14.0.0 (Python 3.11)")
    os.makedirs(DATA, exist_ok=True)
    corpus = SENTENCES + CODE + SPACES + CONTROLS + RUNS + MARKUP + random_texts(500, 2024)
    write("tokenizer_corpus.json", corpus)
    write("tokenizer_smollm2.json", smollm2_golden(corpus))
    texts = training_texts()
    control = [(t, CONTROL) for t in ("<|begin_of_text|>", "<|eot_id|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    user = [(t, USER_DEFINED) for t in ("<think>", "</think>", "<t", "<think>\nok")]
    whole = [("Ġunmergeable", NORMAL), ("ingingquux", NORMAL), ("\u0120caf\u00c3\u00a9quux", NORMAL)]  # no merges give these
    for name, file, added in (("gpt-2", "gpt2", []), ("llama-bpe", "llama3", whole + control), ("qwen2", "qwen2", control + user)):
        spec = train_bpe(name, texts, added)
        write(f"tokenizer_{file}.json", {"spec": spec} | bpe_golden(spec, corpus + [" unmergeable ingingquux caf\u00e9quux caf\u00e9quuxes"]))
    identity = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    llama2 = train_spm(texts, byte_fallback=True, **identity)
    spm_golden("tokenizer_spm_llama2.json", llama2, corpus)
    spm_golden("tokenizer_spm_unused.json", llama2, corpus, unused_share=0.2)
    symbols = ("\n\n", "\n\n\n", "<td>", "<2mass>", "▁▁", "foo▁bar")
    gemma = train_spm(texts, byte_fallback=True, add_dummy_prefix=False, user_defined_symbols=list(symbols), **identity)
    spm_golden("tokenizer_spm_gemma.json", gemma, corpus, user_defined=symbols, add_space_prefix=False)
    spm_golden("tokenizer_spm_unknown.json", train_spm(texts, byte_fallback=False, **identity), corpus)
    trimmed = train_spm(texts, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=True)
    spm_golden("tokenizer_spm_trimmed.json", trimmed, corpus, remove_extra=True)
    write("unicode_nfc.json", nfc_golden())
    write("pretokenizer_classes.json", class_golden())


if __name__ == "__main__":
    main()
