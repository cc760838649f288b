#!/usr/bin/env bash
# Make the virtual environment that the Makefile works in, in five steps.
#
# Each step leaves a stamp in $VENV/.setup that holds a checksum of what the step was made from and of
# the steps before it. A step with an up-to-date stamp is skipped, so an interrupted set-up goes on
# where it stopped and a finished one costs milliseconds.
#
# Environment (see `make help`): PYTHON, VENV, TORCH, TORCH_ARGS, PIP_ARGS, CPU_ONLY, MAX_JOBS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
py=$venv/bin/python
state=$venv/.setup
constraints=requirements/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_USER=0
unset PIP_TARGET PIP_PREFIX

# Print an error, one argument a line, and stop.
die() {
    printf '\nset-up: %s\n' "$1" >&2
    shift
    [[ $# -eq 0 ]] || printf '        %s\n' "$@" >&2
    exit 1
}

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# What this environment was made with, or nothing.
chosen() { # NAME
    cat "$state/chosen-$1" 2>/dev/null || true
}

# ---------------------------------------------------------------- what is done already

# shellcheck disable=SC2034  # the keys are read by name
# Each key covers the key before it, so that a step is redone when an earlier one was.
plan() {
    torch=${TORCH:-$(chosen torch)}
    torch=${torch:-$(grep '^torch==' "$constraints")}
    # The options belong to the version they were given with.
    torch_args=${TORCH_ARGS:-}
    [[ -n ${TORCH:-}${TORCH_ARGS:-} ]] || torch_args=$(chosen torch-args)
    cpu_only=${CPU_ONLY:-$(chosen cpu-only)}
    [[ $cpu_only != 0 ]] || cpu_only=
    pins=$(grep -v '^torch==' "$constraints")
    key_venv=1
    key_torch=$(cksum <<<"$key_venv $torch $torch_args")
    key_libraries=$(cat <(echo "$key_torch $pins") requirements/{runtime,mminstall,tests}.txt | cksum)
    key_mmcv=$(cksum <<<"$key_libraries $cpu_only")
    key_package=$(cat <(echo "$key_mmcv $PWD") setup.py pyproject.toml mmrecur/version.py | cksum)
}

is_done() { # STEP
    local key=key_$1
    [[ -f $state/$1 && $(<"$state/$1") == "${!key}" ]]
}

all_done() {
    local step
    for step in venv torch libraries mmcv package; do
        is_done "$step" || return 1
    done
    "$py" -c '' 2>/dev/null
}

# Later runs need not be given the same variables again. A version nobody asked for is not kept, so
# that the environment follows the pinned one.
remember_choices() {
    [[ -z ${TORCH:-} ]] || printf '%s' "$torch" >"$state/chosen-torch"
    [[ -z ${TORCH:-}${TORCH_ARGS:-} ]] || printf '%s' "$torch_args" >"$state/chosen-torch-args"
    printf '%s' "$cpu_only" >"$state/chosen-cpu-only"
}

mark_done() { # STEP
    local key=key_$1
    printf '%s\n' "${!key}" >"$state/$1"
}

# ---------------------------------------------------------------- running pip

# Show pip's output, read from stdin, as one line that moves on a terminal and as a line now and then
# elsewhere. Compilation is counted by the "[3/78]" that ninja prints.
show_progress() {
    local line='' part='' text='' count=0 total=0 shown=-1 built=0 last=$SECONDS start=$SECONDS
    local terminal=0 changed drawn=''
    [[ ! -t 1 ]] || terminal=1
    while :; do
        changed=0
        if IFS= read -r -t 1 part; then
            line+=$part
            if [[ $line =~ ^\ *\[([0-9]+)/([0-9]+)\] ]]; then
                count=${BASH_REMATCH[1]} total=${BASH_REMATCH[2]}
                ((built)) || built=$SECONDS
                text="compiling: $count of $total files"
                if ((count > total / 10 && count < total)); then
                    text+=", about $(clock $(((SECONDS - built) * (total - count) / count))) left"
                fi
                ((count * 10 / total == shown)) || changed=1
                shown=$((count * 10 / total))
            elif [[ $line =~ ^\ *Downloading\ ([^ ]+)\ (\(.*\)) ]]; then
                text="downloading ${BASH_REMATCH[1]##*/} ${BASH_REMATCH[2]}"
                [[ ${BASH_REMATCH[2]} != *[0-9][0-9][0-9]*[MG]B* ]] || changed=1
            elif [[ $line =~ ^\ *Building\ (wheel|editable)\ for\ ([^ ]+) && $total == 0 ]]; then
                text="building ${BASH_REMATCH[2]}"
            elif [[ $line =~ ^\ *Installing\ collected ]]; then
                text='installing'
            elif [[ $line =~ ^\ *Collecting\ ([^ ]+) ]]; then
                text="collecting ${BASH_REMATCH[1]}"
            fi
            line=
        elif (($? > 128)); then
            line+=$part # timed out in mid-line
        else
            break
        fi
        [[ -n $text ]] || continue
        if ((terminal)); then
            [[ $SECONDS$text == "$drawn" ]] ||
                printf '\r\033[K      %s %s' "$(clock $((SECONDS - start)))" "${text:0:60}"
            drawn=$SECONDS$text
        elif ((changed || SECONDS - last >= 60)); then
            printf '      %s %s\n' "$(clock $((SECONDS - start)))" "$text"
            last=$SECONDS
        fi
    done
    ((!terminal)) || printf '\r\033[K'
}

# Run `pip ARGS` with its output in a log file; on failure say where that is.
run_pip() { # STEP ARGS...
    local log=$state/$1.log
    shift
    if ! PYTHONUNBUFFERED=1 "$py" -m pip "$@" "${pip_args[@]}" --progress-bar off 2>&1 </dev/null |
        tee "$log" | show_progress; then
        grep -iE '(^|[^a-z_])(fatal )?error( |:)|Killed|No space left' "$log" | tail -n 12 >&2 || true
        die "pip failed; the whole output is in $log" \
            "What was finished is kept: the same command goes on from here."
    fi
}

# ---------------------------------------------------------------- the steps

step_venv() {
    echo "[1/5] Making the virtual environment $venv"
    command -v "$python" >/dev/null || die "there is no $python: install Python 3.10 or newer" \
        "or name one: make env PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
        local version other found=''
        version=$("$python" --version 2>&1 || true)
        for other in python3.13 python3.12 python3.11 python3.10; do
            if "$other" -c '' 2>/dev/null; then
                found="Try: make env PYTHON=$other"
                break
            fi
        done
        die "Python 3.10 or newer is needed, and $python is ${version:-broken}." \
            "${found:-Install one, then: make env PYTHON=/path/to/it}"
    }
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$("$python" --version) lacks the modules venv and ensurepip." \
            "On Debian and Ubuntu: apt install python3-venv" \
            "Or use another one: make env PYTHON=/path/to/python3"
    if ! "$py" -m pip --version >/dev/null 2>&1; then
        "$python" -m venv "$venv" || die "$python -m venv $venv failed"
    fi
}

step_torch() {
    local words args
    read -ra words <<<"$torch"
    read -ra args <<<"$torch_args"
    echo "[2/5] Installing PyTorch ($torch${torch_args:+ $torch_args})"
    if [[ -f $state/torch ]]; then
        # Another build of the same version would count as installed.
        rm "$state/torch"
        "$py" -m pip uninstall -q -y torch
    fi
    run_pip torch install ${args[@]+"${args[@]}"} "${words[@]}"
}

# After PyTorch, which pulls in a setuptools that MMCV cannot be built with. MMCV itself comes last:
# its operators are compiled against what is installed here.
step_libraries() {
    echo "[3/5] Installing MMEngine, MMDetection, MMPretrain and what they and the tests need"
    run_pip build-tools install 'pip>=21.3' 'setuptools>=77,<81' wheel ninja psutil packaging
    grep -hvE '^(#|onedl-mmcv)' requirements/{mminstall,runtime,tests}.txt >"$state/requirements.txt"
    grep -v '^torch==' "$constraints" >"$state/constraints.txt"
    run_pip libraries install -r "$state/requirements.txt" -c "$state/constraints.txt" \
        'setuptools<81'
    install_torchvision
}

# MMPretrain imports torchvision's transforms. A torchvision that was compiled for another build of
# PyTorch does not import at all; that is what PyPI has for a CPU-only PyTorch. Its last release that
# does without its compiled operators, which nothing here uses, is 0.16.2.
install_torchvision() {
    local args installed
    read -ra args <<<"$torch_args"
    installed=$("$py" -c 'import torch; print(torch.__version__)')
    if ! "$py" -W ignore -c 'import torchvision' 2>/dev/null; then
        run_pip torchvision install ${args[@]+"${args[@]}"} torchvision "torch==$installed"
    fi
    if ! "$py" -W ignore -c 'import torchvision' 2>/dev/null; then
        if "$py" -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
            echo "      no torchvision is compiled for PyTorch $installed here: taking 0.16.2 without its operators"
            run_pip torchvision-plain install --no-deps torchvision==0.16.2
            run_pip torchvision-needs install requests
        fi
    fi
    "$py" -W ignore -c 'import torchvision' 2>"$state/check.log" || die \
        "torchvision, which MMPretrain needs, does not import: $(tail -n 1 "$state/check.log")" \
        "Take PyTorch from an index that has both, for example" \
        '  make env TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"'
}

# Exit 0 if the installed MMCV fits the installed PyTorch; otherwise say why not.
check_mmcv() {
    CPU_ONLY=$cpu_only "$py" - <<'PYTHON' 2>&1 | tail -n 1
import os

import torch
from mmcv.ops import get_compiling_cuda_version, nms

if torch.cuda.is_available() and not os.environ['CPU_ONLY']:
    if get_compiling_cuda_version() == 'not available':
        raise SystemExit('its operators were compiled without CUDA')
boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])
_, kept = nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
if kept.tolist() != [0]:
    raise SystemExit('its non-maximum suppression gives wrong results')
PYTHON
}

mmcv_names() {
    mmcv_version=$(sed -n 's/^onedl-mmcv==//p' "$constraints")
    mmcv_wheel="onedl_mmcv-$mmcv_version-$("$py" -c \
        'import sys; print("cp{}{}".format(*sys.version_info))')-*"
}

mmcv_is_installed() {
    [[ $("$py" -c 'from importlib.metadata import version as v; print(v("onedl-mmcv"))' 2>&1) == \
        "$mmcv_version" ]]
}

mmcv_is_cached() {
    [[ -n $("$py" -m pip cache list "$mmcv_wheel" --format abspath 2>/dev/null || true) ]]
}

# Nobody should wait for gigabytes only to learn that they cannot be used.
check_before_downloads() {
    mmcv_names
    mmcv_is_installed || mmcv_is_cached || {
        check_compiler
        check_nvcc
    }
}

# Before PyTorch is there: whether it is going to ask for a CUDA compiler, as far as can be seen.
check_nvcc() {
    [[ -z $cpu_only && $torch_args != */whl/cpu* && $torch != *+cpu* ]] || return 0
    nvidia-smi -L >/dev/null 2>&1 || return 0
    [[ -n ${CUDA_HOME:-${CUDA_PATH:-}} || -d /usr/local/cuda ]] || command -v nvcc >/dev/null || no_nvcc ''
}

no_nvcc() { # VERSION
    die 'PyTorch uses a GPU here, and there is no CUDA compiler (nvcc) to compile MMCV with.' \
        "Install the CUDA toolkit${1:+ $1} and set CUDA_HOME," \
        'or leave the GPU out: make env CPU_ONLY=1, then run detectors with CUDA_VISIBLE_DEVICES= (empty)'
}

# What a compilation needs and a missing part of which shows only late and obscurely.
check_compiler() {
    local cxx=${CXX:-c++}
    command -v "${cxx%% *}" >/dev/null || die "there is no C++ compiler (${cxx%% *}) to compile MMCV with." \
        'On Debian and Ubuntu: apt install g++. With conda: conda install -c conda-forge gxx'
    "$py" -c 'import os, sysconfig as s; exit(not os.path.exists(s.get_path("include") + "/Python.h"))' ||
        die "the header Python.h of $("$py" --version) is missing." \
            'On Debian and Ubuntu: apt install python3-dev'
}

check_cuda_home() {
    [[ -n $cpu_only ]] || "$py" - <<'PYTHON' || no_nvcc "$("$py" -c 'import torch; print(torch.version.cuda)')"
import torch
from torch.utils.cpp_extension import CUDA_HOME

raise SystemExit(torch.cuda.is_available() and CUDA_HOME is None)
PYTHON
}

# As many compilers as there are cores, and 2 GiB of memory for each.
compile_jobs() {
    local jobs kib
    jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
    kib=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo 2>/dev/null || true)
    [[ -z $kib ]] || ((kib / 2097152 >= jobs)) || jobs=$((kib / 2097152))
    echo "${MAX_JOBS:-$((jobs > 1 ? jobs : 1))}"
}

compile_mmcv() { # LOG ARGS...
    local log=$1 jobs
    shift
    jobs=$(compile_jobs)
    if mmcv_is_cached; then
        echo "      found its compiled operators in pip's cache"
    else
        check_compiler
        check_cuda_home
        echo "      compiling its operators, once: about $(((7 + jobs) / jobs)) to" \
            "$(((19 + jobs) / jobs)) minutes with $jobs job(s), several times that for a GPU"
    fi
    (
        [[ -z $cpu_only ]] || export CUDA_VISIBLE_DEVICES=
        export CFLAGS="-O2 -g0 ${CFLAGS:-}" MAX_JOBS=$jobs
        run_pip "$log" install -v --no-build-isolation "$@" "onedl-mmcv==$mmcv_version"
    )
}

# pip's cache knows a compiled MMCV by its version alone, not by the PyTorch it was compiled for, so
# what comes out of it is tried, and compiled again if it fails.
step_mmcv() {
    local problem
    mmcv_names
    echo "[4/5] Installing MMCV (onedl-mmcv $mmcv_version)"
    mmcv_is_installed || compile_mmcv mmcv
    if ! problem=$(check_mmcv); then
        echo "      its operators do not fit this PyTorch: ${problem:-import failed}"
        "$py" -m pip cache remove "$mmcv_wheel" >/dev/null 2>&1 || true
        compile_mmcv mmcv-again --force-reinstall --no-deps --no-binary onedl-mmcv
        problem=$(check_mmcv) ||
            die "MMCV was compiled and still does not work: ${problem:-import failed}" \
                "The output of its compilation is in $state/mmcv-again.log"
    fi
}

step_package() {
    echo '[5/5] Installing mmrecur (editable)'
    run_pip package install --no-build-isolation --no-deps -e .
    "$py" -c 'import cv2, mmcv.ops, mmdet.models, mmengine, mmpretrain.models, mmrecur' 2>"$state/check.log" ||
        die "a library does not import: $(tail -n 1 "$state/check.log")" \
            'If libGL.so.1 is missing: apt install libgl1 (Debian and Ubuntu)' \
            "The whole message is in $state/check.log"
}

# ----------------------------------------------------------------

plan
if all_done; then
    exit 0
fi
if [[ -n $(ls -A "$venv" 2>/dev/null) && ! -f $venv/pyvenv.cfg && ! -d $state ]]; then
    die "$venv exists and is no virtual environment: choose another place with VENV="
fi
mkdir -p "$state"
# A second set-up beside this one would fight over the same files.
if command -v flock >/dev/null; then
    exec 9>"$state/lock"
    flock -n 9 || {
        echo "Another set-up of $venv is running: waiting for it"
        flock 9
    }
    if all_done; then
        exit 0
    fi
fi
read -ra pip_args <<<"${PIP_ARGS:-}"
pip_args+=(--retries 5)
trap 'printf "\nset-up: interrupted; the same command goes on from here\n" >&2; exit 130' INT TERM
SECONDS=0
if [[ -f $state/venv ]] && ! "$py" -c '' 2>/dev/null; then
    echo "The Python that $venv was made from is gone: making it again"
    rm -rf "${venv:?}"/{bin,include,lib,lib64,share,pyvenv.cfg} \
        "$state"/{venv,torch,libraries,mmcv,package}
fi
for step in venv torch libraries mmcv package; do
    is_done "$step" || "step_$step"
    mark_done "$step"
    [[ $step != venv ]] || is_done mmcv || check_before_downloads
    [[ $step != torch ]] || remember_choices
done
echo "Environment $venv is ready ($(clock $SECONDS))"
