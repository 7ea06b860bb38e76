"""tools/gpu-check and tools/check-record, with programs that stand in for the GPU's."""
import importlib.machinery
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools"))
import gpu_record  # noqa: E402


def script(name):
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(ROOT / "tools" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


RECORD = {
    "device": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "date": "2026-01-02", "sources": "x",
    "tests": [{"name": "A.b", "outcome": "passed", "cases": 3}],
    "rows": [{"op": "gemm", "case": "m1", "us": 8.04, "floor_us": 7.8, "peers": {"cuBLAS": 12.6}},
             {"op": "gemm", "case": "m2", "us": 9.0, "floor_us": None}],
}


class Project(unittest.TestCase):
    """A folder with CUDA sources, a document and a record."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        for path in ("src/ops/cuda/hopper/a.h", "src/numerics/b.h", "docs/benchmarks.md"):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(path)

    def write_record(self, **changes):
        record = json.loads(json.dumps(RECORD)) | {"sources": gpu_record.sources_hash(self.root)} | changes
        gpu_record.save(self.root / "bench/results/h200.json", record)

    def check_record(self, *arguments):
        return subprocess.run([sys.executable, ROOT / "tools/check-record", "--root", self.root, *arguments],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def document(self, text=None):
        path = self.root / "docs/benchmarks.md"
        if text is not None:
            path.write_text(text)
        return path.read_text()


class Hash(Project):
    def test_moves_with_content_and_names_only(self):
        first = gpu_record.sources_hash(self.root)
        (self.root / "docs/benchmarks.md").write_text("else")
        self.assertEqual(gpu_record.sources_hash(self.root), first)
        (self.root / "src/numerics/b.h").write_text("changed")
        changed = gpu_record.sources_hash(self.root)
        (self.root / "src/numerics/b.h").rename(self.root / "src/numerics/c.h")
        self.assertEqual(len({first, changed, gpu_record.sources_hash(self.root)}), 3)


class Merge(unittest.TestCase):
    def test_same_sources_add_up(self):
        new = RECORD | {"tests": [{"name": "A.b", "outcome": "failed", "cases": 1}, {"name": "C.d", "outcome": "passed", "cases": 1}],
                        "rows": [{"op": "gemm", "case": "m1", "peers": {"torch": 11.0}}]}
        merged = gpu_record.merge(RECORD, new)
        self.assertEqual({t["name"]: t["outcome"] for t in merged["tests"]}, {"A.b": "failed", "C.d": "passed"})
        rows = {r["case"]: r for r in merged["rows"]}
        self.assertEqual(rows["m1"]["peers"], {"cuBLAS": 12.6, "torch": 11.0})
        self.assertEqual(rows["m1"]["us"], 8.04)
        self.assertEqual(len(rows), 2)
        self.assertEqual(RECORD["rows"][0]["peers"], {"cuBLAS": 12.6})

    def test_other_sources_start_anew(self):
        new = RECORD | {"sources": "y", "tests": [], "rows": []}
        self.assertEqual(gpu_record.merge(RECORD, new), new)
        self.assertEqual(gpu_record.merge(None, new), new)


class CheckRecord(Project):
    def test_missing_and_old_records_only_warn(self):
        missing = self.check_record()
        self.assertEqual(missing.returncode, 0)
        self.assertIn("warning", missing.stdout)
        self.write_record(sources="old")
        old = self.check_record()
        self.assertEqual(old.returncode, 0)
        self.assertIn("older", old.stdout)
        self.write_record()
        self.assertEqual(self.check_record().stdout, "")

    def test_figures_that_differ_fail_until_written(self):
        self.write_record()
        self.document("a <!-- record: value gemm m1 us -->9.9<!-- end record --> b\n"
                      "<!-- record: table gemm -->\n<!-- end record -->\n"
                      "<!-- record: value gemm m1 cuBLAS --><!-- end record -->, <!-- record: tests --><!-- end record -->\n")
        self.assertEqual(self.check_record().returncode, 1)
        self.assertEqual(self.check_record("--write").returncode, 0)
        text = self.document()
        self.assertIn("us -->8.0<!--", text)
        self.assertIn("| m1 | 8.0 | 7.8 | 12.6 |\n| m2 | 9.0 | – | – |\n", text)
        self.assertIn("cuBLAS -->12.6<!--", text)
        self.assertIn("1 of 1 tests passed, 3 cases", text)
        self.assertEqual(self.check_record().returncode, 0)
        self.document(text.replace("12.6", "12.5"))
        self.assertEqual(self.check_record().returncode, 1)

    def test_a_failed_test_fails(self):
        self.write_record(tests=[{"name": "A.b", "outcome": "failed", "cases": 3}])
        self.assertEqual(self.check_record().returncode, 1)


class Parsing(unittest.TestCase):
    def setUp(self):
        self.check = script("gpu-check")

    def test_list(self):
        listing = "Running main() from x.cc\nGpuA.\n  One\n  Two\nAll/GpuB.\n  Three/0  # GetParam() = 1.5\n"
        self.assertEqual(self.check.parse_list(listing), {"GpuA": ["One", "Two"], "All/GpuB": ["Three/0"]})

    def test_report(self):
        report = {"testsuites": [{"name": "GpuA", "testsuite": [
            {"name": "One", "result": "COMPLETED", "cases": "12"},
            {"name": "Two", "result": "COMPLETED", "failures": [{"failure": "x"}]},
            {"name": "Skipped", "result": "SKIPPED"}]}]}
        self.assertEqual(self.check.parse_report(report),
                         {"GpuA.One": (True, 12), "GpuA.Two": (False, 1), "GpuA.Skipped": (None, 1)})

    def test_counts(self):
        counted = {"device": "x", "ex2": {"cases": 5, "mismatches": 0}, "dot": {"cases": 7, "a": 1, "b": 2},
                   "scalar_rules": {"cases_each": 3, "fadd": 0, "multiply, then add": 4}}
        self.assertEqual(list(self.check.parse_counts(counted)),
                         [("ex2", 5, 0), ("dot", 7, 3), ("scalar_rules.fadd", 3, 0),
                          ("scalar_rules.multiply_then_add", 3, 4)])


class GpuCheck(Project):
    """The whole run, in sections that add up."""

    def program(self, name, body):
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\nimport json, sys\n" + textwrap.dedent(body))
        path.chmod(0o755)

    def setUp(self):
        super().setUp()
        self.out = self.root / "record.json"
        self.program("nvidia-smi", """
            print("NVIDIA H200, 580.1" if len(sys.argv) > 1 else "| Driver 580.1  CUDA Version: 13.0 |")""")
        self.program("gpu_tests", """
            if "--gtest_list_tests" in sys.argv:
                print("GpuA.\\n  Good\\n  Bad\\nGpuCrash.\\n  Dies")
                sys.exit()
            if any("GpuCrash" in a for a in sys.argv):
                sys.exit(134)
            out = [a for a in sys.argv if a.startswith("--gtest_output=json:")][0].split(":", 1)[1]
            suite = [{"name": "Good", "result": "COMPLETED", "cases": "7"},
                     {"name": "Bad", "result": "COMPLETED", "failures": [{}]}]
            json.dump({"testsuites": [{"name": "GpuA", "testsuite": suite}]}, open(out, "w"))
            sys.exit(1)""")
        self.program("gpu_bench", """
            if "--list" in sys.argv:
                print("gemm m1")
                sys.exit()
            print(json.dumps({"op": "gemm", "case": "m1", "us": 8.0, "floor_us": 7.0}))
            print(json.dumps({"op": "gemm", "case": "m2", "error": "no memory"}))""")
        self.program("contract_vectors", """print(json.dumps({"ex2": {"cases": 9, "mismatches": 0}}))""")
        self.peer = self.root / "peer.py"
        self.peer.write_text("import json, sys\nfor line in open(sys.argv[1]):\n"
                             "    op, case = line.split()\n"
                             "    print(json.dumps({'op': op, 'case': case, 'peer': 'cuBLAS', 'us': 9.5}))\n")

    def run_check(self, *arguments):
        return subprocess.run(
            [sys.executable, ROOT / "tools/gpu-check", self.root / "bin", "--out", self.out, "--peer", self.peer,
             *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={"PATH": f"{self.root / 'bin'}:/usr/bin:/bin"})

    def test_sections_add_up(self):
        done = self.run_check("--only", "tests")
        self.assertEqual(done.returncode, 1, done.stdout)
        for section in ("contract", "bench", "peers"):
            done = self.run_check("--only", section)
            self.assertEqual(done.returncode, 0, done.stdout)
        record = json.loads(self.out.read_text())
        self.assertEqual((record["device"], record["driver"], record["cuda"]), ("NVIDIA H200", "580.1", "13.0"))
        self.assertEqual(record["sources"], gpu_record.sources_hash())
        tests = {t["name"]: (t["outcome"], t["cases"]) for t in record["tests"]}
        self.assertEqual(tests, {"GpuA.Good": ("passed", 7), "GpuA.Bad": ("failed", 1), "GpuCrash.Dies": ("failed", 1),
                                 "contract.ex2": ("passed", 9)})
        self.assertEqual(record["rows"],
                         [{"op": "gemm", "case": "m1", "us": 8.0, "floor_us": 7.0, "peers": {"cuBLAS": 9.5}}])

    def test_sanitizers(self):
        self.run_check("--only", "sanitizers")
        self.assertEqual(json.loads(self.out.read_text())["tests"], [])  # none on the PATH: left out
        self.program("compute-sanitizer", """
            print("[  PASSED  ] 6 tests.")
            sys.exit("racecheck" in sys.argv)""")
        done = self.run_check("--only", "sanitizers")
        self.assertEqual(done.returncode, 1, done.stdout)
        tests = {t["name"]: (t["outcome"], t["cases"]) for t in json.loads(self.out.read_text())["tests"]}
        self.assertEqual(tests, {"sanitizer.memcheck": ("passed", 6), "sanitizer.racecheck": ("failed", 6)})

    def test_a_model_in_parts(self):
        self.program("isobit", """
            model = open(sys.argv[2]).read()
            print(json.dumps({"prompts": [1, 2]}) if "--digests" in sys.argv else model)
            sys.exit(model != "onetwo" or "--against" in sys.argv)""")
        model = self.root / "tiny.gguf"
        for number, text in enumerate(("one", "two")):
            (self.root / f"tiny.gguf.0{number}").write_text(text)
        done = self.run_check("--only", "model", "--model", model)
        self.assertEqual(done.returncode, 1, done.stdout)
        tests = {t["name"]: (t["outcome"], t["cases"]) for t in json.loads(self.out.read_text())["tests"]}
        self.assertEqual(tests, {"model.tiny.digests": ("passed", 1), "model.tiny.cpu_equals_gpu": ("failed", 2)})
        self.assertEqual(json.loads((self.root / "h200_digests_tiny.json").read_text()), {"prompts": [1, 2]})

    def test_throughput(self):
        self.program("isobit", """
            load = {k: sys.argv[sys.argv.index(k) + 1] for k in ("--requests", "--input", "--output")}
            row = {"op": "throughput", "case": "-".join(load.values()), "us": 2.0, "floor_us": 1.0, "output_tok_s": 5e5}
            print(json.dumps(row | {"failed": int(load["--input"] == "8000")}))""")
        self.run_check("--only", "throughput")
        rows = json.loads(self.out.read_text())["rows"]
        self.assertEqual([(r["case"], r["output_tok_s"]) for r in rows], [("80-1000-1000", 5e5)])

    def test_server(self):
        # It answers as a model would, in f16 with the time of day.
        self.program("isobit", """
            import http.server, time
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_POST(self):
                    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    logprob = time.monotonic() if "f16" in sys.argv else -1.5
                    answer = {"tokens": list(body.get("prompt", "").encode()), "meta_info": {"output_token_logprobs": [[logprob, 7]]}}
                    text = json.dumps(answer).encode()
                    self.send_response(200)
                    self.send_header("Content-Length", len(text))
                    self.end_headers()
                    self.wfile.write(text)
                def log_message(self, *_):
                    pass
            http.server.ThreadingHTTPServer.request_queue_size = 512
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            print(f"listening on http://127.0.0.1:{server.server_port}\\nx on cuda:0, ready after 1 s", file=sys.stderr, flush=True)
            server.serve_forever()""")
        done = self.run_check("--only", "server", "--trials", "2")
        self.assertEqual(done.returncode, 1, done.stdout)
        tests = {t["name"]: (t["outcome"], t["cases"]) for t in json.loads(self.out.read_text())["tests"]}
        self.assertEqual(tests.get("server.llama-1b-bf16.prefix", [done.stdout])[0], "passed")
        self.assertGreater(tests["server.llama-1b-bf16.prefix"][1], 1)
        self.assertEqual(tests["server.llama-1b-f16.prefix"][0], "failed", tests)
        self.program("isobit", """print("listening on http://127.0.0.1:1\\nisobit: no memory", file=sys.stderr)""")
        done = self.run_check("--only", "server", "--served", "random:llama-1b")
        self.assertIn("no memory", done.stdout)

    def test_quick_runs_the_tests_alone(self):
        self.run_check("--quick")
        record = json.loads(self.out.read_text())
        self.assertEqual(len(record["tests"]), 3)
        self.assertEqual(record["rows"], [])

    def test_a_machine_without_a_gpu(self):
        (self.root / "bin/nvidia-smi").unlink()
        done = self.run_check()
        self.assertEqual(done.returncode, 2)
        self.assertIn("no NVIDIA GPU", done.stdout)
        self.assertFalse(self.out.exists())


if __name__ == "__main__":
    unittest.main()
