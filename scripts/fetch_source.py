#!/usr/bin/env python3
"""Fetches a library's source package from PyPI once: download, check the sha256, unpack, move into place.

usage: fetch_source.py NAME==VERSION --sha256 HEX --to FOLDER [--archive FILE]
FOLDER then holds what the package does; it is complete or absent. --archive: use this file instead of downloading.
Exit codes: 0 done (or already there), 3 checksum or content wrong, 5 network or disk.
"""
import argparse
import glob
import os
import re
import subprocess
import sys
import tarfile
import tempfile

from fetch_model import sha256_of, stop

# pip asks a source package's build backend for its metadata even when it only downloads. This one, in the place of the
# package's own, hands out what the package says of itself, so that no build tools have to be fetched for that.
BACKEND = '''
import email, os, shutil
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    with open("PKG-INFO") as f:
        package = email.message_from_file(f)
    name = "{}-{}.dist-info".format(package["Name"], package["Version"])
    os.mkdir(os.path.join(folder, name))
    shutil.copy("PKG-INFO", os.path.join(folder, name, "METADATA"))
    return name
'''


def stand_in(folder, name):
    package = os.path.join(folder, name)
    os.makedirs(package)
    open(os.path.join(package, "__init__.py"), "w").close()
    with open(os.path.join(package, "build.py"), "w") as f:
        f.write(BACKEND)


def download(package, work):
    backends = os.path.join(work, "backends")
    stand_in(backends, "scikit_build_core")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--disable-pip-version-check",
               "--no-cache-dir", "--no-binary=:all:", "--progress-bar", "off", "--dest", work, package]
    path = os.pathsep.join(filter(None, [backends, os.environ.get("PYTHONPATH")]))
    result = subprocess.run(command, stdout=sys.stderr, check=False, env={**os.environ, "PYTHONPATH": path})
    archives = glob.glob(os.path.join(work, "*.tar.gz"))
    if result.returncode != 0 or len(archives) != 1:
        stop(5, f"{package} could not be fetched with pip (see above): check the network and that python3 has pip")
    return archives[0]


def unpack(archive, work):
    """The one folder at the archive's top. Nothing in it may lie outside, and links are left out."""
    target = os.path.join(work, "unpacked")
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = member.name.split("/")
            if member.name.startswith("/") or ".." in parts:
                stop(3, f"{os.path.basename(archive)} holds {member.name}, which lies outside of it; nothing was kept")
            if member.isfile() or member.isdir():
                tar.extract(member, target, set_attrs=False)
    tops = os.listdir(target)
    if len(tops) != 1:
        stop(3, f"{os.path.basename(archive)} has {len(tops)} entries at its top; one folder was expected")
    return os.path.join(target, tops[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("--sha256", required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--archive")
    a = parser.parse_args()
    if not re.fullmatch(r"[\w.-]+==[\w.]+", a.package):
        parser.error("the package must be NAME==VERSION")
    if os.path.isdir(a.to):
        return
    parent = os.path.dirname(os.path.abspath(a.to))
    try:
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as work:
            archive = a.archive or download(a.package, work)
            found = sha256_of(archive)
            if found != a.sha256:
                stop(3, f"{os.path.basename(archive)} has sha256 {found}, not {a.sha256}: it is damaged or not what it claims")
            os.replace(unpack(archive, work), a.to)
    except OSError as error:
        if not os.path.isdir(a.to):  # another process may have been faster
            stop(5, f"{a.to} could not be written: {error}. Free some space or set ISOBIT_CACHE to another folder")
    except tarfile.TarError as error:
        stop(3, f"{a.package}: {error}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop(130, "interrupted; nothing was kept")
