#!/usr/bin/env bash
# Create a virtual environment with everything the project needs; repeatable, safe to interrupt.
#   PYTHON=python3.12 bash scripts/setup_venv.sh .venv
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-python3}

die() { echo "setup: error: $*" >&2; exit 1; }

command -v "$python" >/dev/null || die "'$python' not found. Install Python 3.10 or newer, or name one: make setup PYTHON=/path/to/python3"
"$python" - <<'PY' || die "'$python' is too old: Python 3.10 or newer is needed. Name another: make setup PYTHON=python3.12"
import sys
sys.exit(sys.version_info < (3, 10))
PY

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "setup: creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || die "could not create $venv (Debian and Ubuntu: apt install python3-venv)"
fi
pip=(env PYTHONWARNINGS=ignore "$venv/bin/python" -m pip --disable-pip-version-check)
network="is there a network? pip's message is above; an interrupted set-up goes on when run again"

echo "setup: installing torch and torchvision (about 5 GB on the first run)"
"${pip[@]}" install -q -c constraints.txt --upgrade pip setuptools wheel || die "$network"
"${pip[@]}" install -q -c constraints.txt torch torchvision || die "$network"
echo "setup: installing Detectron2"
"$venv/bin/python" scripts/install_detectron2.py || die "Detectron2 could not be installed (see above)"
echo "setup: installing longtail_det2"
"${pip[@]}" install -q -c constraints.txt --no-build-isolation -e ".[dev]" || die "$network"
# The tests compare with lvis. It asks for opencv-python by name; all that it needs is there, with the headless build.
"${pip[@]}" install -q -c constraints.txt --no-deps lvis || die "$network"
PYTHONWARNINGS=ignore "$venv/bin/python" -m longtail_det2.utils.collect_env --check
