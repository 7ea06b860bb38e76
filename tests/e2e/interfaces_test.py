#!/usr/bin/env python3
"""`isobit serve`: structured output, SGLang's routes, the page, and `isobit bench serve` against it.

usage: interfaces_test.py ISOBIT BUILD_FOLDER [unittest flags]
"""
import json
import pathlib
import re
import subprocess
import sys
import time
import unittest

from server_test import BUILD, ISOBIT, Case

SCHEMA = {"type": "object",
          "properties": {"name": {"type": "string", "maxLength": 4}, "ok": {"type": "boolean"},
                         "kind": {"enum": ["cat", "dog"]}},
          "required": ["name", "ok", "kind"]}


def satisfies(text):
    value = json.loads(text)
    return (set(value) == {"name", "ok", "kind"} and isinstance(value["name"], str) and isinstance(value["ok"], bool)
            and value["kind"] in ("cat", "dog"))


class Structured(Case):
    flags = ("--draft-tokens", "4")

    def ask(self, seed, **how):
        a = self.server.post("/v1/chat/completions", self.chat(seed=seed, max_tokens=160, **how))["choices"][0]
        return a["message"]["content"], a["finish_reason"]

    def test_schemas(self):
        wrapped = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA}}
        complete = 0
        for seed in range(6):
            text, reason = self.ask(seed, response_format=wrapped)
            if reason == "stop":
                self.assertTrue(satisfies(text), text)
                complete += 1
            for same in ({"guided_json": SCHEMA}, {"guided_json": json.dumps(SCHEMA)}, {"structured_outputs": {"json": SCHEMA}}):
                self.assertEqual(self.ask(seed, **same), (text, reason))
            self.assertEqual(self.ask(seed, response_format=wrapped, speculate=False), (text, reason))
        self.assertGreater(complete, 2)

    def test_other_kinds(self):
        for seed in range(4):
            self.assertIn(self.ask(seed, guided_choice=["yes", "no"])[0], ("yes", "no"))
            self.assertRegex(self.ask(seed, guided_regex="[a-c]{3}[0-9]")[0], r"^[a-c]{3}[0-9]$")
            self.assertRegex(self.ask(seed, structured_outputs={"grammar": 'root ::= "<" [x-z]{2} ">"'})[0], "^<[x-z]{2}>$")
            text, reason = self.ask(seed, response_format={"type": "json_object"})
            self.assertEqual(text.lstrip()[:1], "{")
            if reason == "stop":
                self.assertIsInstance(json.loads(text), dict)

    def test_streams_and_choices(self):
        body = self.chat(response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}},
                         max_tokens=160, n=3)
        whole = self.server.post("/v1/chat/completions", body)["choices"]
        streamed = [""] * 3
        for event in self.server.stream("/v1/chat/completions", body):
            for c in event["choices"]:
                streamed[c["index"]] += c["delta"].get("content") or ""
        self.assertEqual(streamed, [c["message"]["content"] for c in whole])

    def test_refusals_name_the_parameter(self):
        for how, param, says in (({"guided_json": {"type": "unicorn"}}, "guided_json", "unicorn"),
                                 ({"guided_json": "{"}, "guided_json", "json_schema cannot be used"),
                                 ({"guided_regex": "(a"}, "guided_regex", "regex cannot be used"),
                                 ({"guided_grammar": "root ::= nobody"}, "guided_grammar", "nobody"),
                                 ({"guided_choice": []}, "guided_choice", "choice"),
                                 ({"guided_regex": 3}, "guided_regex", "string"),
                                 ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "give one of them"),
                                 ({"response_format": {"type": "xml"}}, "response_format", "xml"),
                                 ({"response_format": {"type": "json_schema"}}, "response_format", "schema is missing")):
            self.refused("/v1/chat/completions", self.chat(**how), param=param, says=says)
        self.assertEqual(self.ask(1, guided_choice=["ok"])[0], "ok")

    def test_receipts_are_replayed(self):
        a = self.server.post("/v1/chat/completions", self.chat(guided_json=SCHEMA, receipt=True, max_tokens=60))
        receipt = self.path / "receipt.json"
        receipt.write_text(json.dumps(a["choices"][0]["receipt"]))
        run = subprocess.run([ISOBIT, "replay", receipt, "--model", self.model], capture_output=True, text=True)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertIn("Equal", run.stdout)

    def test_command_line(self):
        (self.path / "schema.json").write_text(json.dumps(SCHEMA))
        run = subprocess.run([ISOBIT, "run", self.model, "Hi", "--choice", "left", "--choice", "right", "-s", "1", "-t", "2"],
                             capture_output=True, text=True)
        self.assertIn(run.stdout.strip(), ("left", "right"), run.stderr)
        run = subprocess.run([ISOBIT, "run", self.model, "Hi", "--json-schema", self.path / "schema.json", "-s", "1", "-n", "9"],
                             capture_output=True, text=True)
        self.assertEqual(run.stdout.strip()[:1], "{", run.stderr)
        run = subprocess.run([ISOBIT, "run", self.model, "Hi", "--regex", "("], capture_output=True, text=True)
        self.assertEqual(run.returncode, 2)
        self.assertIn("regex cannot be used", run.stderr)


class Sglang(Case):
    flags = ("--log", "info")

    def generate(self, expect=200, **body):
        return self.server.post("/generate", body, expect=expect)

    def test_one_and_lists(self):
        params = {"max_new_tokens": 8, "temperature": 1.0, "sampling_seed": 42, "ignore_eos": True}
        one = self.generate(text="Once", sampling_params=params)
        self.assertEqual(set(one), {"text", "output_ids", "meta_info"})
        self.assertEqual(len(one["output_ids"]), 8)
        meta = one["meta_info"]
        self.assertEqual((meta["prompt_tokens"], meta["completion_tokens"]), (4, 8))
        self.assertEqual(meta["finish_reason"], {"type": "length", "length": 8})
        many = self.generate(text=["Once", "Twice"], sampling_params=params)
        self.assertEqual([m["output_ids"] for m in many][0], one["output_ids"])
        ids = self.generate(input_ids=list(b"Once"), sampling_params=params)
        self.assertEqual(ids["output_ids"], one["output_ids"])
        self.assertEqual(self.generate(input_ids=[list(b"Once")], sampling_params=params)[0]["output_ids"], one["output_ids"])
        drawn = self.generate(text="Once", sampling_params={**params, "n": 3})
        self.assertEqual(drawn[0]["output_ids"], one["output_ids"])
        self.assertGreater(len({tuple(d["output_ids"]) for d in drawn}), 1)
        del params["sampling_seed"]
        self.assertEqual(self.generate(text="Once", sampling_params=params)["output_ids"], one["output_ids"])  # 42 it is

    def test_logprobs_are_those_of_the_score_route(self):
        a = self.generate(text="Once upon", return_logprob=True, logprob_start_len=0, top_logprobs_num=3,
                          return_text_in_logprobs=True, sampling_params={"max_new_tokens": 6, "ignore_eos": True})
        meta = a["meta_info"]
        self.assertEqual([t[1] for t in meta["output_token_logprobs"]], a["output_ids"])
        self.assertEqual([t[1] for t in meta["input_token_logprobs"]], list(b"Once upon"))
        self.assertEqual(meta["input_token_logprobs"][0][:1] + meta["input_token_logprobs"][1][2:], [None, "n"])
        self.assertTrue(all(len(t) == 3 for t in meta["output_top_logprobs"]))
        score = self.server.post("/v1/score", {"tokens": list(b"Once upon") + a["output_ids"]})
        self.assertEqual([t[0] for t in meta["input_token_logprobs"] + meta["output_token_logprobs"]], score["logprobs"])
        # What was sampled, given as a prompt: the same likeliest tokens, to the last bit.
        tops = self.generate(input_ids=list(b"Once upon") + a["output_ids"], return_logprob=True, logprob_start_len=0,
                             top_logprobs_num=3, return_text_in_logprobs=True, sampling_params={"max_new_tokens": 1})
        tops = tops["meta_info"]["input_top_logprobs"]
        self.assertIsNone(tops[0])
        self.assertEqual(tops, meta["input_top_logprobs"] + meta["output_top_logprobs"])
        late = self.generate(text="Once upon", return_logprob=True, logprob_start_len=5, sampling_params={"max_new_tokens": 1})
        self.assertEqual([t[1] for t in late["meta_info"]["input_token_logprobs"]], list(b"upon"))
        none = self.generate(text="Once upon", return_logprob=True, sampling_params={"max_new_tokens": 1})
        self.assertEqual(none["meta_info"]["input_token_logprobs"], [])
        zero = self.generate(text="Once upon", return_logprob=True, logprob_start_len=0, sampling_params={"max_new_tokens": 0})
        self.assertEqual(zero["meta_info"]["input_token_logprobs"], meta["input_token_logprobs"][:0] + [
            [v, t, None] for v, t, _ in meta["input_token_logprobs"]])

    def test_stream_holds_the_answer_so_far(self):
        body = {"text": "Once", "return_logprob": True, "sampling_params": {"max_new_tokens": 6, "ignore_eos": True}}
        whole = self.generate(**body)
        events = self.server.stream("/generate", body)
        for before, after in zip(events, events[1:]):
            self.assertTrue(after["text"].startswith(before["text"]))
        for key in ("text", "output_ids"):
            self.assertEqual(events[-1][key], whole[key])
        self.assertEqual(events[-1]["meta_info"]["output_token_logprobs"], whole["meta_info"]["output_token_logprobs"])
        listed = self.server.stream("/generate", {**body, "text": ["Once", "Twice"]})
        self.assertEqual({e["index"] for e in listed}, {0, 1})

    def test_structured_and_stops(self):
        params = {"max_new_tokens": 120, "json_schema": json.dumps(SCHEMA)}
        for seed in range(6):
            a = self.generate(text="x", sampling_params={**params, "sampling_seed": seed})
            if a["meta_info"]["finish_reason"]["type"] == "stop":
                self.assertTrue(satisfies(a["text"]))
        self.assertRegex(self.generate(text="x", sampling_params={"regex": "[ab]{4}"})["text"], "^[ab]{4}$")
        self.assertEqual(self.generate(text="x", sampling_params={"ebnf": 'root ::= "fixed"'})["text"], "fixed")
        stopped = self.generate(text="x", sampling_params={"regex": "abcde", "stop": ["cd"]})
        self.assertEqual((stopped["text"], stopped["meta_info"]["finish_reason"]), ("ab", {"type": "stop", "matched": "cd"}))

    def test_refusals(self):
        for body, param in (({}, "text"), ({"text": "a", "input_ids": [1]}, "text"), ({"text": []}, "text"),
                            ({"input_ids": [999999]}, "input_ids"),
                            ({"text": "a", "sampling_params": []}, "sampling_params"),
                            ({"text": "a", "sampling_params": {"min_new_tokens": 2}}, "sampling_params.min_new_tokens"),
                            ({"text": "a", "sampling_params": {"top_p": 2}}, "sampling_params.top_p"),
                            ({"text": "a", "sampling_params": {"regex": "("}}, "sampling_params.regex"),
                            ({"text": "a", "image_data": "x"}, "image_data")):
            self.refused("/generate", body, param=param)

    def test_other_routes(self):
        self.assertEqual(self.server.get("/health_generate")[0], 200)
        info = json.loads(self.server.get("/get_model_info")[1])
        self.assertEqual((info["model_path"], info["is_generation"]), ("tiny", True))
        self.assertEqual(self.server.call("GET", "/flush_cache")[0], 200)
        self.assertEqual(self.server.call("POST", "/flush_cache")[0], 200)
        self.assertEqual(self.server.call("DELETE", "/flush_cache")[0], 405)

    def test_request_ids(self):
        status, body, headers = self.server.call("POST", "/generate", json.dumps({"text": "a", "rid": "mine"}))
        self.assertEqual((status, json.loads(body)["meta_info"]["id"]), (200, "mine"))
        number = headers["X-Request-Id"]
        self.assertTrue(re.fullmatch(r"[0-9a-f]{9,}", number), headers)
        for _ in range(50):
            log = b"".join(self.server.log).decode()
            if f"request {number}: /generate 200" in log and "request mine: complete" in log:
                break
            time.sleep(0.1)
        else:
            self.fail(log)


class Determinism(Case):
    """A little of tests/server/determinism.py, with chunks, drafts, the prefix cache, and too few pages for all."""
    flags = ("--draft-tokens", "4", "--max-requests", "12", "--tokens-per-step", "96", "--pages", "70")

    def test_every_mode(self):
        script = pathlib.Path(__file__).parent.parent / "server" / "determinism.py"
        out = self.path / "determinism.json"
        run = subprocess.run([sys.executable, script, f"http://127.0.0.1:{self.server.port}", "--trials", "6", "--largest", "24",
                              "--lengths", "1,100,255,300", "--long", "200", "--tokens", "16", "--json", out],
                             capture_output=True, text=True, timeout=300)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        results = json.loads(out.read_text())["results"]
        self.assertEqual([r["mode"] for r in results], ["single", "mixed", "prefix"])
        for r in results:
            self.assertGreater(sum(p["samples"] for p in r["prompts"].values()), 20)


class Bench(Case):
    def test_figures(self):
        out = self.path / "load.json"
        run = subprocess.run([ISOBIT, "bench", "serve", "--url", f"http://127.0.0.1:{self.server.port}", "-r", "12", "--rate", "40",
                              "--input", "5:40", "--output", "4:9", "--json", out], capture_output=True, text=True, timeout=120)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        figures = json.loads(out.read_text())
        self.assertEqual((figures["completed"], figures["failed"]), (12, 0))
        each = figures["each_sent_first_last_in_out"]
        self.assertTrue(all(5 <= e[3] <= 40 and 4 <= e[4] <= 9 for e in each), each)
        self.assertEqual(figures["output_tokens"], sum(e[4] for e in each))
        self.assertEqual(figures["accepted_length"], 1.0)
        for key in ("time_to_first_token_s", "time_per_output_token_s", "end_to_end_s"):
            self.assertTrue(0 < figures[key]["median"] <= figures[key]["p99"], figures[key])
        none = subprocess.run([ISOBIT, "bench", "serve", "--url", "http://127.0.0.1:9"], capture_output=True, text=True)
        self.assertEqual(none.returncode, 5)
        self.assertIn("no server answers", none.stderr)

    def test_throughput(self):
        for model in (self.model, "random:tiny"):
            run = subprocess.run([ISOBIT, "bench", "throughput", "-m", model, "--device", "cpu", "-t", "2", "-r", "5", "--input", "20",
                                  "--output", "6", "--json"], capture_output=True, text=True, timeout=120)
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
            figures = json.loads(run.stdout)
            self.assertEqual((figures["completed"], figures["failed"], figures["output_tokens"]), (5, 0, 30))
            self.assertEqual(figures["case"].split("-")[-2:], ["5x20", "6"])
            self.assertAlmostEqual(figures["us"] * figures["output_tok_s"], 1e6, delta=1)
            self.assertTrue(0 < figures["floor_us"] < figures["us"], figures)
            self.assertEqual(figures["steps"], 6)


class Page(Case):
    def test_dashboard_names_what_there_is(self):
        dashboard = (pathlib.Path(__file__).parent.parent.parent / "docs" / "grafana.json").read_text()
        _, metrics = self.server.get("/metrics")
        there = set(re.findall(r"^# TYPE (isobit_\w+)", metrics, re.M))
        for name in re.findall(r"isobit_\w+", dashboard):
            self.assertIn(re.sub("_bucket$", "", name), there)

    def test_page(self):
        status, body, headers = self.server.call("GET", "/")
        self.assertEqual((status, headers["Content-Type"]), (200, "text/html; charset=utf-8"))
        self.assertIn("default-src 'none'", headers["Content-Security-Policy"])
        text = body.decode()
        self.assertIn("Prove it", text)
        self.assertNotRegex(text, r"(src|href)=\"(https?:)?//")


if __name__ == "__main__":
    unittest.main(argv=["interfaces_test", *__import__("sys").argv[3:]])
