#!/usr/bin/env python3
"""Writes tests/text/data/hf_*.json: small tokenizer.json files of the shapes that the model families publish, and how
HF's tokenizers encode and decode the corpus with them.

    python3 tests/text/make_hf_tokenizer_goldens.py

The vocabularies are trained here; normalizers, pre-tokenizers, post-processors, decoders and the flags of the special
tokens are those of the published files of Llama 2, Llama 3, Mistral (Metaspace), Gemma, Phi-3, Qwen2 and SmolLM. It makes its
own venv.
"""
import collections
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from golden_venv import run_in_venv  # noqa: E402
from make_tokenizer_goldens import DATA, LLAMA3, MARKUP, QWEN2, CODE, SENTENCES, SPACES

ALPHABET = 256
PACKAGES = ["tokenizers==0.23.3"]
SPM_MARKUP = ["<s>hi</s> there", "a <|user|> \n b<|end|>\n\n<|assistant|>", "<start_of_turn>user\nHello<end_of_turn>\n", "▁▁ x ▁y",
              " <|end|> ", "<bos> a", "x<|end|>y  <|end|>  z", "", " ", "  two  spaces ", "<0x0A>", "é<unk>日本"]


def added(content, id, special=True, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": special, **flags}


def template(token, id):
    return {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}}


def frequent_characters(texts):
    """The alphabet, settled here: of characters that are equally rare the trainer would keep others in every run."""
    counts = collections.Counter("".join(texts).replace(" ", "▁"))
    return sorted(counts, key=lambda c: (-counts[c], c))[:ALPHABET]


def train(texts, pre, size, alphabet):
    """tokens and merges of a vocabulary whose words `pre` cuts."""
    from tokenizers import Tokenizer, models, trainers
    hf = Tokenizer(models.BPE())
    hf.pre_tokenizer = pre
    hf.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, show_progress=False, limit_alphabet=ALPHABET, initial_alphabet=list(alphabet)))
    model = json.loads(hf.to_str())["model"]
    return [t for t, _ in sorted(model["vocab"].items(), key=lambda item: item[1])], model["merges"]


def characters_model(texts, specials, more=()):
    from tokenizers import pre_tokenizers
    tokens, merges = train(texts, pre_tokenizers.Metaspace(), 900, frequent_characters(texts))
    first = specials + [f"<0x{b:02X}>" for b in range(256)] + list(more)
    order = first + [t for t in tokens if t not in first]
    vocab = {t: i for i, t in enumerate(order)}
    return {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab, "merges": merges}


def bytes_model(texts, pre, **more):
    from tokenizers import pre_tokenizers
    tokens, merges = train(texts, pre, 700, pre_tokenizers.ByteLevel.alphabet())
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges, **more}


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]}
UNREPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIPPING = {"type": "Sequence", "decoders": [UNREPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
KEEPING = {"type": "Sequence", "decoders": [UNREPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}]}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(pattern):
    return {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, BYTES]}


def tokenizers(texts):
    from tokenizers import Regex, pre_tokenizers as p
    no_regex = p.ByteLevel(add_prefix_space=False, use_regex=False)
    base = {"version": "1.0", "truncation": None, "padding": None}
    three = ["<unk>", "<s>", "</s>"]
    plain = characters_model(texts, three)
    specials = [added(t, i) for i, t in enumerate(three)]
    yield "hf_llama2.json", {**base, "added_tokens": specials, "normalizer": PREPEND, "pre_tokenizer": None,
                             "post_processor": template("<s>", 1), "decoder": STRIPPING, "model": plain}
    size = len(plain["vocab"])
    turns = [added(t, size + i, rstrip=True) for i, t in enumerate(["<|user|>", "<|end|>", "<|assistant|>"])]
    yield "hf_phi3.json", {**base, "added_tokens": specials[:2] + [added("</s>", 2, special=False, rstrip=True)] + turns, "normalizer": PREPEND,
                           "pre_tokenizer": None, "post_processor": template("<s>", 1), "decoder": STRIPPING, "model": plain}
    yield "hf_mistral.json", {**base, "added_tokens": specials, "normalizer": None,
                              "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
                              "post_processor": template("<s>", 1),
                              "decoder": {"type": "Sequence", "decoders": STRIPPING["decoders"]}, "model": plain}
    gemma = ["<pad>", "<eos>", "<bos>", "<unk>"]
    own = ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "<start_of_turn>", "<end_of_turn>"]
    model = characters_model(texts, gemma, own)
    model["merges"] = [["\n", "\n"]] + model["merges"] if "\n" in model["vocab"] else model["merges"]
    extra = [added(t, model["vocab"][t], special=t.startswith("<")) for t in own]
    yield "hf_gemma.json", {**base, "added_tokens": [added(t, i) for i, t in enumerate(gemma)] + extra, "normalizer": REPLACE,
                            "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
                            "post_processor": template("<bos>", 2), "decoder": KEEPING, "model": model}
    llama3 = bytes_model(texts, p.Sequence([p.Split(Regex(LLAMA3), "isolated"), no_regex]), ignore_merges=True)
    size = len(llama3["vocab"])
    byte_decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    llama3["merges"] = [" ".join(m) for m in llama3["merges"]]  # as files were written before tokenizers 0.20
    yield "hf_llama3.json", {**base, "added_tokens": [added(t, size + i) for i, t in enumerate(["<|begin_of_text|>", "<|eot_id|>"])],
                             "normalizer": None, "pre_tokenizer": split(LLAMA3),
                             "post_processor": {"type": "Sequence", "processors": [BYTES, template("<|begin_of_text|>", size)]},
                             "decoder": byte_decoder, "model": llama3}
    qwen2 = bytes_model(texts, p.Sequence([p.Split(Regex(QWEN2), "isolated"), no_regex]))
    size = len(qwen2["vocab"])
    yield "hf_qwen2.json", {**base, "added_tokens": [added("<|endoftext|>", size), added("<|im_start|>", size + 1), added("<|im_end|>", size + 2),
                                                     added("<think>", size + 3, special=False)],
                            "normalizer": {"type": "NFC"}, "pre_tokenizer": split(QWEN2), "post_processor": BYTES, "decoder": byte_decoder,
                            "model": qwen2}
    smollm = bytes_model(texts, p.Sequence([p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)]))
    names = ["<|endoftext|>", "<|im_start|>"]
    smollm["vocab"] = {t: i for i, t in enumerate(names + list(smollm["vocab"]))}
    yield "hf_smollm.json", {**base, "added_tokens": [added(t, i) for i, t in enumerate(names)], "normalizer": None,
                             "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}]},
                             "post_processor": None, "decoder": byte_decoder, "model": smollm}


def main():
    run_in_venv("hf-tokenizer-goldens", PACKAGES)
    from tokenizers import Tokenizer
    with open(os.path.join(DATA, "tokenizer_corpus.json"), encoding="utf-8") as f:
        corpus = json.load(f)
    for name, description in tokenizers((SENTENCES + CODE + SPACES) * 3):
        hf = Tokenizer.from_str(json.dumps(description))
        cases = []
        for text in corpus[::3] + MARKUP + SPM_MARKUP:
            ids = hf.encode(text).ids
            decoded = hf.decode(ids, skip_special_tokens=True)
            cases.append([text, ids] if decoded == text else [text, ids, decoded])
        path = os.path.join(DATA, name)
        with open(path, "w", encoding="utf-8") as f:
            json.dump({"tokenizer": description, "cases": cases}, f, ensure_ascii=True, separators=(",", ":"))
            f.write("\n")
        print(f"{name}: {os.path.getsize(path)} bytes, {len(description['model']['vocab'])} tokens")


if __name__ == "__main__":
    main()
