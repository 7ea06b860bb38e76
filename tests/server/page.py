#!/usr/bin/env python3
"""The server's page in headless Chromium: asks, proves, and takes a screenshot.

usage: page.py URL [--screenshot FILE.png] [--question TEXT]

Speaks Chromium's DevTools protocol over a pipe, so that nothing needs to be installed but chromium. Exit code 1 when the page does
not answer, or the proof does not say that both digests are equal; 77 where there is no chromium.
"""
import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time


class Browser:
    def __init__(self, program, folder):
        to_read, self.to = os.pipe()
        self.from_, from_write = os.pipe()

        def pipes():  # 3 and 4 are what --remote-debugging-pipe reads and writes
            for fd, place in ((os.dup(to_read), 3), (os.dup(from_write), 4)):
                os.dup2(fd, place)
                os.set_inheritable(place, True)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}",
             "--no-first-run", "--hide-scrollbars", "--window-size=900,760", "about:blank"],
            preexec_fn=pipes, close_fds=False, stderr=subprocess.DEVNULL)
        self.rest, self.number, self.session = b"", 0, None

    def call(self, method, session=True, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session and self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                part = os.read(self.from_, 65536)
                if not part:
                    raise RuntimeError("chromium ended")
                self.rest += part
            line, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, url):
        target = self.call("Target.createTarget", session=False, url=url)["targetId"]
        self.session = self.call("Target.attachToTarget", session=False, targetId=target, flatten=True)["sessionId"]

    def value(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression, seconds=120):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := self.value(expression):
                return found
            time.sleep(0.1)
        raise RuntimeError(f"not within {seconds} s: {expression}")

    def close(self):
        self.process.terminate()
        self.process.wait(20)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("url")
    p.add_argument("--screenshot")
    p.add_argument("--question", default="Why should a computation give the same result every time?")
    p.add_argument("--longest", type=int, default=80)
    o = p.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if not program:
        print("no chromium here")
        sys.exit(77)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(program, folder)
        try:
            browser.open(o.url)
            browser.wait("document.querySelector('#fingerprint')?.textContent.includes('/')")
            browser.value(f"$('max_tokens').value = {o.longest}; $('text').value = {json.dumps(o.question)}; $('form').requestSubmit()")
            browser.wait("!!document.querySelector('button.prove')")
            browser.value("document.querySelector('button.prove').click()")
            proof = browser.wait("document.querySelector('.proof')?.textContent")
            print(proof)
            if o.screenshot:
                with open(o.screenshot, "wb") as f:
                    f.write(base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"]))
            sys.exit(0 if "equal" in proof and browser.value("!!document.querySelector('.proof.equal')") else 1)
        finally:
            browser.close()


if __name__ == "__main__":
    main()
