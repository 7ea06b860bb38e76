#!/usr/bin/env python3
"""`isobit serve` over its socket: routes, answers, streams, bits beside neighbours, receipts, what it refuses and survives.

usage: server_test.py ISOBIT BUILD_FOLDER [unittest flags]
"""
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from tiny_gguf import I32, TinyModel, pair

ISOBIT, BUILD = sys.argv[1:3]


class Server:
    """A server on a free port, from its first line to its end."""

    def __init__(self, model, *flags, env=None):
        self.process = subprocess.Popen([ISOBIT, "serve", model, "--port", "0", "-t", "2", *flags], stderr=subprocess.PIPE,
                                        env={**os.environ, **(env or {})})
        line = self.process.stderr.readline().decode()
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", line).group(1))
        self.log = []
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()
        self.wait_ready()

    def wait_ready(self):
        for _ in range(600):
            if self.get("/health")[0] == 200:
                return
            time.sleep(0.05)
        raise RuntimeError("the server is not ready after 30 s")

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def call(self, method, path, body=None, headers=None):
        c = self.connect()
        try:
            c.request(method, path, body, headers or {})
            r = c.getresponse()
            return r.status, r.read(), dict(r.getheaders())
        finally:
            c.close()

    def get(self, path, **headers):
        status, body, _ = self.call("GET", path, headers=headers)
        return status, body.decode()

    def post(self, path, body, expect=200):
        status, text, _ = self.call("POST", path, json.dumps(body))
        answer = json.loads(text)
        assert status == expect, (status, answer)
        return answer

    def stream(self, path, body):
        status, text, headers = self.call("POST", path, json.dumps({**body, "stream": True}))
        assert status == 200, text
        events = [line[6:] for line in text.decode().split("\n\n") if line.startswith("data: ")]
        assert events[-1] == "[DONE]", events[-1]
        return [json.loads(e) for e in events[:-1]]

    def raw(self, data, wait=10, shut=False):
        """Sends bytes, returns all that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as s:
            try:
                s.sendall(data)
                if shut:
                    s.shutdown(socket.SHUT_WR)
                got = b""
                while part := s.recv(65536):
                    got += part
            except (ConnectionResetError, BrokenPipeError):
                pass
            return got

    def metric(self, name):
        _, text = self.get("/metrics")
        return float(re.search(rf"^isobit_{re.escape(name)} (\S+)$", text, re.M).group(1))

    def stop(self, wait=30):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(wait)


class Case(unittest.TestCase):
    flags = ()
    states = ()  # pairs of the model's metadata

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.path = pathlib.Path(cls.folder.name)
        cls.model = str(cls.path / "tiny.gguf")
        model = TinyModel()
        model.more = list(cls.states)
        pathlib.Path(cls.model).write_bytes(model.build())
        cls.server = Server(cls.model, *cls.flags)

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        cls.folder.cleanup()
        assert code == 0, (code, cls.server.log)

    def chat(self, text="Hi", **more):
        return {"messages": [{"role": "user", "content": text}], "seed": 7, "max_tokens": 12, **more}

    def refused(self, path, body, status=400, param=None, says=""):
        answer = self.server.post(path, body, expect=status)
        self.assertEqual(set(answer), {"error"})
        self.assertEqual(set(answer["error"]), {"message", "type", "param", "code"})
        self.assertIn(says, answer["error"]["message"])
        if param is not None:
            self.assertEqual(answer["error"]["param"], param, answer)
        return answer["error"]


class Routes(Case):
    def test_models_and_health(self):
        models = json.loads(self.server.get("/v1/models")[1])
        self.assertEqual(models["data"][0]["id"], "tiny")
        self.assertRegex(models["data"][0]["fingerprint"], r"^isobit-1\S*/[0-9a-f]{16}/b?f16$")
        self.assertEqual(json.loads(self.server.get("/health")[1])["status"], "ok")

    def test_tokens_there_and_back(self):
        got = self.server.post("/tokenize", {"prompt": "Hello wörld"})
        self.assertEqual(got["tokens"], list("Hello wörld".encode()))  # the tiny model's tokens are the bytes
        self.assertEqual(got["count"], len(got["tokens"]))
        self.assertEqual(self.server.post("/detokenize", {"tokens": got["tokens"]})["prompt"], "Hello wörld")
        chat = self.server.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]})
        self.assertEqual(chat["count"], self.server.post("/v1/chat/completions", self.chat())["usage"]["prompt_tokens"])

    def test_unknown_places_and_methods(self):
        self.assertEqual(self.server.get("/nothing")[0], 404)
        self.assertEqual(self.server.get("/v1/chat/completions")[0], 405)
        self.assertEqual(self.server.call("DELETE", "/v1/models")[0], 405)
        self.assertEqual(self.server.call("HEAD", "/health")[:2], (200, b""))

    def test_metrics(self):
        self.server.post("/v1/completions", {"prompt": "abc", "max_tokens": 5, "ignore_eos": True})
        self.assertGreaterEqual(self.server.metric("generated_tokens_total"), 5)
        self.assertGreaterEqual(self.server.metric("time_to_first_token_seconds_count"), 1)
        _, text = self.server.get("/metrics")
        for line in text.strip().split("\n"):
            self.assertRegex(line, r'^(# (HELP|TYPE) isobit_\w+ .+|isobit_\w+(\{[^{}]+\})? [0-9.e+-]+)$')
        pages = dict(re.findall(r'kv_pages\{state="(\w+)"\} (\d+)', text))
        self.assertEqual(sum(map(int, pages.values())), self.server.metric("kv_pages_total"))


class Answers(Case):
    def test_chat(self):
        a = self.server.post("/v1/chat/completions", self.chat())
        self.assertEqual(a["object"], "chat.completion")
        self.assertEqual(a["choices"][0]["message"]["role"], "assistant")
        self.assertIn(a["choices"][0]["finish_reason"], ("stop", "length"))
        self.assertEqual(a["usage"]["total_tokens"], a["usage"]["prompt_tokens"] + a["usage"]["completion_tokens"])
        self.assertEqual(a["seed"], 7)

    def test_content_parts_and_system(self):
        parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
        a = self.server.post("/v1/chat/completions", {**self.chat(), "messages": [{"role": "user", "content": parts}]})
        b = self.server.post("/v1/chat/completions", self.chat())
        self.assertEqual(a["choices"], b["choices"])

    def test_n_choices_are_those_of_single_requests(self):
        body = {"prompt": "Once upon a time", "seed": 3, "max_tokens": 10, "logprobs": 2, "n": 5}
        a = self.server.post("/v1/completions", body)
        self.assertEqual([c["index"] for c in a["choices"]], list(range(5)))
        self.assertGreater(len({c["text"] for c in a["choices"]}), 1)
        two = self.server.post("/v1/completions", {**body, "n": 2})
        self.assertEqual(two["choices"], a["choices"][:2])

    def test_several_prompts(self):
        a = self.server.post("/v1/completions", {"prompt": ["one", "two"], "seed": 3, "max_tokens": 6})
        for i, prompt in enumerate(["one", "two"]):
            alone = self.server.post("/v1/completions", {"prompt": list(prompt.encode()), "seed": 3, "max_tokens": 6})
            self.assertEqual(alone["choices"][0]["text"], a["choices"][i]["text"])

    def test_stop_strings(self):
        whole = self.server.post("/v1/completions", {"prompt": "x", "seed": 1, "max_tokens": 40, "ignore_eos": True})
        text = whole["choices"][0]["text"]
        stop = next(c for c in text[5:] if c.isascii() and c.isprintable())
        cut = self.server.post("/v1/completions", {"prompt": "x", "seed": 1, "max_tokens": 40, "ignore_eos": True, "stop": stop})
        self.assertEqual(cut["choices"][0]["text"], text[: text.index(stop)])
        self.assertEqual(cut["choices"][0]["finish_reason"], "stop")
        self.assertLess(cut["usage"]["completion_tokens"], whole["usage"]["completion_tokens"])

    def test_bias_forbids_and_forces(self):
        a = self.server.post("/v1/completions", {"prompt": "x", "max_tokens": 5, "temperature": 0, "logit_bias": {"65": 100}})
        self.assertEqual(a["choices"][0]["text"], "AAAAA")

    def test_a_seed_is_drawn_and_told(self):
        body = {"prompt": "x", "max_tokens": 10}
        a = self.server.post("/v1/completions", body)
        self.assertEqual(self.server.post("/v1/completions", {**body, "seed": a["seed"]})["choices"], a["choices"])

    def test_echo_and_score_report_what_sampling_did(self):
        a = self.server.post("/v1/completions", {"prompt": "Once", "seed": 6, "max_tokens": 40, "logprobs": 0, "ignore_eos": True})
        r = self.server.post("/v1/completions", {"prompt": "Once", "seed": 6, "max_tokens": 40, "receipt": True, "ignore_eos": True})
        tokens = list(b"Once") + r["choices"][0]["receipt"]["tokens"]
        scored = self.server.post("/v1/score", {"tokens": tokens})
        self.assertEqual(scored["logprobs"][4:], a["choices"][0]["logprobs"]["token_logprobs"])
        echo = self.server.post("/v1/completions", {"prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 0})
        self.assertEqual(echo["choices"][0]["logprobs"]["token_logprobs"], scored["logprobs"])
        best = self.server.post("/v1/completions", {"prompt": tokens, "max_tokens": 1, "echo": True, "logprobs": 2, "seed": 6})
        best = best["choices"][0]["logprobs"]
        self.assertEqual(best["token_logprobs"][:-1], scored["logprobs"])
        self.assertIsNone(best["top_logprobs"][0])
        for top, token, argmax, logprob in zip(best["top_logprobs"][1:], tokens[1:], scored["argmax"], scored["logprobs"][1:]):
            self.assertIn(len(top), (1, 2))  # tokens that are no text of their own may look alike
            if len(top) == 2:
                self.assertEqual(max(top.values()) == logprob, token == argmax)

    def test_deadline(self):
        a = self.server.post("/v1/completions", {"prompt": "x", "max_tokens": 500, "ignore_eos": True, "timeout": 0.001})
        self.assertEqual(a["choices"][0]["finish_reason"], "deadline")


class ModelsOwnSampling(Case):
    """A model that states top-k 1: greedy, whatever the seed, for who says nothing."""
    states = (pair("general.sampling.top_k", I32, struct.pack("<i", 1)),)

    def test_chat_and_text(self):
        def text(seed, **more):
            return self.server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 12, "seed": seed, **more})["choices"][0]["text"]
        greedy = text(1, temperature=0)
        self.assertEqual([text(seed) for seed in (1, 2, 3)], [greedy] * 3)
        self.assertGreater(len({text(seed, top_k=0) for seed in (1, 2, 3)}), 1)
        chat = [self.server.post("/v1/chat/completions", self.chat(seed=seed, logprobs=True))["choices"][0] for seed in (1, 2)]
        self.assertEqual(chat[0], chat[1])

    def test_sglang(self):
        def ids(seed, **more):
            params = {"max_new_tokens": 12, "sampling_seed": seed, "ignore_eos": True, **more}
            return self.server.post("/generate", {"text": "Hi", "sampling_params": params})["output_ids"]
        self.assertEqual([ids(seed) for seed in (1, 2)], [ids(1, temperature=0)] * 2)
        self.assertGreater(len({tuple(ids(seed, top_k=-1)) for seed in (1, 2, 3)}), 1)


class Streams(Case):
    def test_a_stream_is_the_answer_in_pieces(self):
        for n in (1, 3):
            body = self.chat(n=n, logprobs=True, top_logprobs=2, max_tokens=30)
            whole = self.server.post("/v1/chat/completions", body)
            events = self.server.stream("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
            self.assertEqual(events[-1]["usage"]["completion_tokens"], whole["usage"]["completion_tokens"])
            for want in whole["choices"]:
                mine = [c for e in events for c in e["choices"] if c["index"] == want["index"]]
                self.assertEqual(mine[0]["delta"]["role"], "assistant")
                self.assertEqual("".join(c["delta"].get("content", "") for c in mine), want["message"]["content"])
                self.assertEqual([x for c in mine[1:] for x in c["logprobs"]["content"]], want["logprobs"]["content"])
                self.assertEqual(mine[-1]["finish_reason"], want["finish_reason"])
                self.assertTrue(all(c["finish_reason"] is None for c in mine[:-1]))

    def test_text_streams(self):
        body = {"prompt": "abc", "seed": 2, "max_tokens": 20}
        whole = self.server.post("/v1/completions", body)
        events = self.server.stream("/v1/completions", body)
        self.assertEqual("".join(e["choices"][0]["text"] for e in events), whole["choices"][0]["text"])

    def test_a_connection_serves_many_requests(self):
        c = self.server.connect()
        for i in range(5):
            c.request("POST", "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 3, "stream": i % 2 == 1}))
            r = c.getresponse()
            self.assertEqual(r.status, 200)
            r.read()
        c.close()


class Bits(Case):
    """The same prompt alone and among others: every token and log-probability equal, cold cache and warm, drafts or not."""
    flags = ("--max-requests", "6", "--tokens-per-step", "48", "--pages", "40", "--draft-tokens", "8", "--draft-topk", "3")

    def test_nobody_moves_anybodys_bits(self):
        generator = random.Random()
        seed = generator.randrange(1 << 30)
        generator.seed(seed)
        shared = "It is a long way to the sea, and the road goes on. " * 3
        bodies = []
        for i in range(8):
            prompt = shared[: generator.randrange(len(shared))] + "abcabc" * generator.randrange(4) + "?"
            bodies.append({"prompt": prompt, "seed": 42, "max_tokens": 24, "logprobs": 3, "ignore_eos": True,
                           "temperature": generator.choice([0, 0.7]), "presence_penalty": generator.choice([0, 0.5])})
        bodies[0].update(prompt="abcabcabcabc", temperature=0, presence_penalty=0)  # text for drafts
        alone = [self.server.post("/v1/completions", {**b, "speculate": False})["choices"] for b in bodies]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for round in range(6):
                if round % 2 == 0:
                    self.server.post("/flush_cache", {})
                order = [generator.randrange(len(bodies)) for _ in range(24)]
                got = list(pool.map(lambda i: self.server.post("/v1/completions", {**bodies[i], "priority": i % 3})["choices"], order))
                for i, choices in zip(order, got):
                    self.assertEqual(choices, alone[i], f"seed {seed}, round {round}, request {i}")
        self.assertGreater(self.server.metric("draft_tokens_total"), 0)
        self.assertGreater(self.server.metric("cached_tokens_total"), 0)


class Receipts(Case):
    def replay(self, receipt, *flags):
        path = self.path / "receipt.json"
        path.write_text(json.dumps(receipt))
        r = subprocess.run([ISOBIT, "replay", str(path), "--model", self.model, *flags], capture_output=True, timeout=120)
        return r.returncode, r.stdout.decode(), r.stderr.decode()

    def receipt(self, **more):
        a = self.server.post("/v1/chat/completions", self.chat(n=2, receipt=True, max_tokens=20, ignore_eos=True, **more))
        return a["choices"][1]["receipt"]

    def test_the_bits_come_again(self):
        receipt = self.receipt(presence_penalty=0.3, logit_bias={"70": 1.5}, top_p=0.9)
        for flags in ((), ("-t", "1"), ("--simd", "scalar")):
            code, out, err = self.replay(receipt, *flags)
            self.assertEqual(code, 0, out + err)
            self.assertIn("Equal: 20 tokens", out)

    def test_the_first_difference_is_named(self):
        receipt = self.receipt()
        forged = json.loads(json.dumps(receipt))
        forged["tokens"][13] ^= 1
        code, out, _ = self.replay(forged)
        self.assertEqual(code, 6)
        self.assertIn("the token of answer token 13", out)
        forged = json.loads(json.dumps(receipt))
        forged["logits"][9:] = ["0" * 16] * 11
        code, out, _ = self.replay(forged)
        self.assertEqual(code, 6)
        self.assertIn("the logits of answer token 9", out)
        forged = {**receipt, "sampling": {**receipt["sampling"], "seed": 8}}
        self.assertEqual(self.replay(forged)[0], 6)

    def test_other_models_and_no_receipts(self):
        receipt = self.receipt()
        self.assertIn("0123456789abcdef", self.replay({**receipt, "model_digest": "0123456789abcdef"})[2])
        self.assertIn("isobit-0", self.replay({**receipt, "contract": "isobit-0"})[2])
        self.assertIn("use --dtype f16", self.replay({**receipt, "compute": "f16"}, "--dtype", "bf16")[2])
        for bad in ({}, [], {**receipt, "tokens": "x"}, {**receipt, "logits": []}, {**receipt, "isobit_receipt": 9}):
            code, _, err = self.replay(bad)
            self.assertEqual(code, 2)
            self.assertIn("receipt", err)


class Refusals(Case):
    def test_values_out_of_range(self):
        for field, value in [("temperature", -1), ("temperature", "hot"), ("top_p", 0), ("top_p", 1.5), ("top_k", -2), ("min_p", 1),
                             ("presence_penalty", 3), ("frequency_penalty", -2.5), ("repetition_penalty", 0), ("n", 0),
                             ("n", 1000000), ("max_tokens", -1), ("max_tokens", 1e30), ("seed", 1.5), ("seed", "x"),
                             ("logit_bias", {"999999": 1}), ("logit_bias", {"x": 1}), ("logit_bias", {"1": 101}), ("logit_bias", []),
                             ("stop", ""), ("stop", ["a"] * 17), ("stop", [1]), ("stream", "yes"), ("priority", 5000),
                             ("timeout", -1), ("best_of", 3), ("stop_token_ids", [-1]), ("stop_token_ids", [1.5])]:
            with self.subTest(field=field, value=value):
                self.refused("/v1/completions", {"prompt": "x", field: value}, param=field)
        self.refused("/v1/completions", {"prompt": "x", "logprobs": 21}, param="logprobs")
        self.refused("/v1/chat/completions", self.chat(logprobs=True, top_logprobs=21), param="top_logprobs")
        self.refused("/v1/chat/completions", self.chat(top_logprobs=2), param="top_logprobs", says="logprobs")

    def test_prompts(self):
        for prompt in ("", [], {}, 5, [1, "a"], [-1], [99999], [[]], ["x", 5], None, [1.5]):
            with self.subTest(prompt=prompt):
                self.refused("/v1/completions", {"prompt": prompt})
        self.refused("/v1/completions", {"prompt": "x" * 600}, says="context holds 512")
        for messages in (None, [], "x", [5], [{"role": "user", "content": 5}], [{"content": "x"}], [{"role": 1, "content": "x"}],
                         [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]):
            with self.subTest(messages=messages):
                self.refused("/v1/chat/completions", {"messages": messages})

    def test_what_is_not_supported_says_so(self):
        self.refused("/v1/chat/completions", self.chat(response_format={"type": "structural_tag"}), param="response_format",
                     says="known are text, json_object and json_schema")
        self.server.post("/v1/chat/completions", self.chat(response_format={"type": "text"}))
        self.refused("/v1/embeddings", {"input": "x"}, says="embeddings")
        self.refused("/v1/completions", {"prompt": "x", "suffix": "y"}, param="suffix")
        self.refused("/v1/chat/completions", self.chat(tool_choice="required"), param="tool_choice")
        self.refused("/v1/chat/completions", self.chat(model="gpt-9"), status=404, param="model", says="gpt-9")
        self.refused("/v1/completions", {"prompt": "x", "echo": True, "stream": True}, param="echo")


class Malformed(Case):
    def body(self, data, **headers):
        status, text, _ = self.server.call("POST", "/v1/completions", data, headers)
        return status, json.loads(text)["error"]["message"]

    def test_bodies(self):
        for data in (b"", b"{", b"[]", b"5", b'"x"', b"{'prompt': 1}", b'{"prompt": "\xff\xfe"}', b'{"prompt": "\\ud800"}',
                     b'{"prompt": "x", "temperature": NaN}', b"\x00" * 100, b'{"prompt": "x"} trailing', b"[" * 100000,
                     b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"prompt": "x", "seed": 1e999}'):
            with self.subTest(data=data[:40]):
                self.assertEqual(self.body(data)[0], 400)

    def test_requests(self):
        for data in (b"\r\n\r\n\r\n", b"GARBAGE\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                     b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                     b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n",
                     b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100000 + b"\r\n", b"GET / HTTP/1.1\r\nno colon here\r\n\r\n"):
            with self.subTest(data=data[:40]):
                got = self.server.raw(data, shut=True)
                if got:
                    self.assertRegex(got, rb"^HTTP/1\.1 4\d\d ")
        self.assertEqual(self.server.get("/health")[0], 200)

    def test_flipped_bytes_never_crash(self):
        seed = random.randrange(1 << 30)
        generator = random.Random(seed)
        body = json.dumps({"prompt": "Hello", "max_tokens": 2, "logit_bias": {"5": 1.5}, "stop": ["x"], "n": 2, "seed": 3}).encode()
        whole = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        for i in range(300):
            bad = bytearray(whole)
            for _ in range(generator.randrange(1, 6)):
                kind, at = generator.randrange(3), generator.randrange(len(bad))
                if kind == 0:
                    bad[at] = generator.randrange(256)
                elif kind == 1:
                    del bad[at : at + generator.randrange(1, 9)]
                else:
                    bad[at:at] = bytes(generator.randrange(256) for _ in range(generator.randrange(1, 9)))
            got = self.server.raw(bytes(bad), shut=True)
            if got:
                self.assertRegex(got, rb"^HTTP/1\.1 [2345]\d\d ", f"seed {seed}, case {i}")
                self.assertFalse(got.startswith(b"HTTP/1.1 500"), f"seed {seed}, case {i}: {got}")
        self.assertEqual(self.server.get("/health")[0], 200)


class Limits(Case):
    flags = ("--max-body", "1", "--header-timeout", "0.5", "--body-timeout", "0.5", "--connections", "20", "--queue", "2",
             "--max-requests", "1", "--api-key", "secret")

    def setUp(self):
        self.key = {"Authorization": "Bearer secret"}

    def test_keys(self):
        for headers, status in (({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "secret"}, 401), (self.key, 200)):
            self.assertEqual(self.server.call("GET", "/v1/models", headers=headers)[0], status)

    def test_large_bodies(self):
        status, text, _ = self.server.call("POST", "/tokenize", json.dumps({"prompt": "x" * (2 << 20)}), self.key)
        self.assertEqual(status, 413)
        self.assertIn("1048576", json.loads(text)["error"]["message"])

    def test_slow_clients(self):
        start = time.time()
        self.assertIn(b" 408 ", self.server.raw(b"GET /health HT"))
        self.assertIn(b" 408 ", self.server.raw(b"POST /tokenize HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"))
        self.assertLess(time.time() - start, 8)

    def test_connections(self):
        held = [socket.create_connection(("127.0.0.1", self.server.port)) for _ in range(20)]
        time.sleep(0.2)
        self.assertIn(b" 503 ", self.server.raw(b"GET /health HTTP/1.1\r\n\r\n"))
        for s in held:
            s.close()
        time.sleep(0.2)
        self.assertEqual(self.server.get("/health")[0], 200)

    def test_the_queue_is_bounded(self):
        body = json.dumps({"prompt": "x", "max_tokens": 500, "ignore_eos": True})
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            got = list(pool.map(lambda _: self.server.call("POST", "/v1/completions", body, self.key), range(12)))
        statuses = [status for status, _, _ in got]
        self.assertEqual(set(statuses), {200, 429})
        refused = next(headers for status, _, headers in got if status == 429)
        self.assertIn("Retry-After", refused)


class Lifetime(Case):
    def test_a_client_that_leaves_is_cancelled(self):
        body = json.dumps({"prompt": "x", "max_tokens": 500, "ignore_eos": True, "n": 8, "stream": True}).encode()
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", self.server.port)) as s:
                s.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                s.recv(100)
        for _ in range(100):
            if self.server.metric("requests_running") + self.server.metric("requests_waiting") == 0:
                break
            time.sleep(0.1)
        self.assertEqual(self.server.metric("requests_running"), 0)
        self.assertGreater(self.server.metric("clients_gone_total"), 0)
        _, text = self.server.get("/metrics")
        self.assertIn('kv_pages{state="used"} 0', text)

    def test_shutdown_lets_answers_end(self):
        server = Server(self.model)
        body = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "seed": 1}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.post, "/v1/completions", body)
            for _ in range(200):
                if server.metric("requests_running") > 0 or answer.done():
                    break
            self.assertEqual(server.stop(), 0)
            self.assertEqual(answer.result()["usage"]["completion_tokens"], 400)

    def test_ports_and_addresses(self):
        for flags, says in ((("--port", str(self.server.port)), "another --port"), (("--host", "no.such.host.invalid"), "no.such.host")):
            r = subprocess.run([ISOBIT, "serve", self.model, *flags], capture_output=True, timeout=60)
            self.assertEqual(r.returncode, 5)
            self.assertIn(says, r.stderr.decode())

    def test_a_model_that_cannot_be_loaded(self):
        r = subprocess.run([ISOBIT, "serve", "nowhere.gguf", "--port", "0"], capture_output=True, timeout=60)
        self.assertEqual(r.returncode, 3)
        self.assertIn("nowhere.gguf", r.stderr.decode())


class Load(Case):
    """Many clients at once; some leave in mid-stream, some send nonsense. Each complete answer is that of its run alone."""
    flags = ("--max-requests", "8", "--tokens-per-step", "64", "--pages", "48", "--draft-tokens", "4", "--queue", "40")
    seconds = float(os.environ.get("ISOBIT_LOAD_SECONDS", "8"))

    def test_load(self):
        bodies = [{"prompt": "abc" * (1 + i * 5), "seed": i, "max_tokens": 10 + 6 * i, "ignore_eos": True, "logprobs": 1} for i in range(8)]
        alone = [self.server.post("/v1/completions", b)["choices"] for b in bodies]
        until = time.time() + self.seconds
        resident = []  # MiB, every 0.1 s
        counts = {"complete": 0, "refused": 0, "left": 0, "malformed": 0}
        lock, wrong = threading.Lock(), []

        def client(number):
            generator = random.Random(number)
            while time.time() < until:
                i, dice = generator.randrange(len(bodies)), generator.random()
                if dice < 0.05:
                    kind = "malformed"
                    status, _, _ = self.server.call("POST", "/v1/completions", b'{"prompt": ')
                    if status != 400:
                        wrong.append(status)
                elif dice < 0.15:
                    kind = "left"
                    data = json.dumps({**bodies[i], "stream": True}).encode()
                    with socket.create_connection(("127.0.0.1", self.server.port)) as s:
                        s.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
                        s.recv(generator.randrange(1, 2000))
                else:
                    status, text, _ = self.server.call("POST", "/v1/completions", json.dumps(bodies[i]))
                    kind = "complete" if status == 200 else "refused"
                    if status not in (200, 429) or (status == 200 and json.loads(text)["choices"] != alone[i]):
                        wrong.append((status, i, text))
                with lock:
                    counts[kind] += 1
                time.sleep(generator.random() * 0.02)

        clients = [threading.Thread(target=client, args=(n,)) for n in range(64)]
        for c in clients:
            c.start()
        while time.time() < until:
            _, text = self.server.get("/metrics")
            pages = dict(re.findall(r'kv_pages\{state="(\w+)"\} (\d+)', text))
            self.assertEqual(sum(map(int, pages.values())), 48)
            resident.append(self.resident_mib())
            time.sleep(0.1)
        for c in clients:
            c.join()
        self.assertEqual(wrong[:3], [])
        self.assertGreater(min(counts["complete"], counts["left"], counts["malformed"]), 10, counts)
        for _ in range(100):
            if self.server.metric("requests_running") + self.server.metric("requests_waiting") == 0:
                break
            time.sleep(0.1)
        self.assertIn('kv_pages{state="used"} 0', self.server.get("/metrics")[1])
        print(f"{counts}, memory {resident[0]:.1f} to {resident[-1]:.1f} MiB", file=sys.stderr)
        if self.seconds >= 30:  # short runs end before allocators have settled
            self.assertLess(resident[-1], resident[len(resident) // 3] + 8)

    def resident_mib(self):
        status = pathlib.Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) / 1024


class OpenAi(Case):
    """The openai package as its users call it."""

    def test_client(self):
        venv = pathlib.Path(BUILD) / "openai-venv"
        python = venv / "bin" / "python"
        if not (venv / "ready").exists():
            try:
                subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, capture_output=True)
                subprocess.run([str(python), "-m", "pip", "install", "-q", "openai>=1.40,<4"], check=True, capture_output=True, timeout=300)
            except (subprocess.SubprocessError, OSError) as e:
                self.skipTest(f"openai cannot be installed here: {e}")
            (venv / "ready").touch()
        script = pathlib.Path(__file__).with_name("openai_client.py")
        r = subprocess.run([str(python), str(script), f"http://127.0.0.1:{self.server.port}/v1"], capture_output=True, timeout=120)
        self.assertEqual(r.returncode, 0, r.stdout.decode() + r.stderr.decode())


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
