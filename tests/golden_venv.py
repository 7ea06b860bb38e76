"""What the scripts that make goldens share: the cache folder, and a Python with the packages of the oracles."""
import os
import subprocess
import sys
import venv

CACHE = os.environ.get("ISOBIT_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "isobit")


def run_in_venv(name, packages):
    """Re-runs the calling script in a venv of its own, unless ISOBIT_GOLDENS_PYTHON says that this Python has the packages."""
    home = os.path.join(CACHE, "venv-" + name)
    python = os.path.join(home, "bin", "python")
    if os.environ.get("ISOBIT_GOLDENS_PYTHON") or os.path.abspath(sys.prefix) == os.path.abspath(home):
        return
    if not os.path.exists(python):
        venv.create(home, with_pip=True)
    subprocess.check_call([python, "-m", "pip", "install", "-q"] + packages)
    os.execv(python, [python, os.path.abspath(sys.argv[0])] + sys.argv[1:])
