#!/bin/bash
# 64-bit ARM without a board: installs the package from the real aarch64 wheels into an emulated root, runs
# tools/arm64_check.py there and here, and compares the outputs. Says what works and agrees; says nothing about time.
#
#     sudo tools/arm64.sh [WORKDIR]
#
# WORKDIR keeps the root and the wheels for the next run (default: nnf-edge/arm64 in the user's cache), and takes the
# result, arm64.json, which is also the last line of stdout. Exit codes: 0 all agreed, 1 something failed or differed,
# 2 usage, 5 this machine cannot run it. From the environment:
#     CORES    cores to emulate, as qemu names them (default: cortex-a72 cortex-a76 max)
#     MIRROR   where the root's packages come from (default: where this machine's own Debian packages come from)
#     PYTHON   makes the environment on this side (default: python3)
set -euo pipefail
unset PYTHONPATH PYTHONHOME # what is installed shall answer, not this folder

CORES=${CORES:-cortex-a72 cortex-a76 max}
PYTHON=${PYTHON:-python3}
SELF=$(realpath "$0")
SOURCE=$(dirname "$(dirname "$SELF")")
SUITE=bookworm # Python 3.11, as on Raspberry Pi OS 12
BINFMT=/proc/sys/fs/binfmt_misc
INSIDE=/opt/nnf-edge # the environment, as the emulated root sees it

say() { echo "arm64: $*" >&2; }
die() {
    local code=$1
    shift
    echo "error: $*" >&2
    exit "$code"
}

main() {
    [ $# -le 1 ] || die 2 "usage: tools/arm64.sh [WORKDIR]"
    check_machine
    local work=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/nnf-edge/arm64}
    mkdir -p "$work"
    # Mounts are made in a namespace of their own: they end with this process, however it ends.
    exec unshare --mount --propagation private "$BASH" "$SELF" --in-namespace "$(realpath "$work")"
}

check_machine() {
    [ "$(uname -sm)" = "Linux x86_64" ] || die 5 "this compares with x86-64 Linux, and runs there only"
    [ "$(id -u)" = 0 ] || die 5 "needs root, for chroot and mounts: sudo tools/arm64.sh"
    local missing=()
    command -v debootstrap >/dev/null || missing+=(debootstrap)
    command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user-static)
    [ ${#missing[@]} = 0 ] || die 5 "install first: apt-get install ${missing[*]}"
    unshare --mount true || die 5 "no mounts are allowed here; a container has to be privileged"
}

work() {
    WORK=$1
    # The registration of the emulator is the kernel's: two runs would take it from each other, wherever they work.
    exec 9<"$(command -v qemu-aarch64-static)"
    flock --nonblock 9 || die 5 "another run is going on"
    make_root
    mount_root
    register_emulator
    make_wheels
    install_here
    install_inside
    local core answers=() emulator
    for core in $CORES; do
        # A step that failed is in the answers too, and the comparison reports it.
        run_inside "$core" || [ -e "$WORK/answers/$core.npz" ] || die 1 "nothing ran on an emulated $core"
        answers+=("$WORK/answers/$core.npz")
    done
    say "the same here, and the comparison"
    emulator=$(qemu-aarch64-static --version)
    HOME=$WORK "$WORK/x86/bin/python" -B "$SOURCE/tools/arm64_check.py" --emulator "${emulator%%$'\n'*}" \
        --json "$WORK/arm64.json" --compare "${answers[@]}"
}

# A folder that works as a root without debootstrap's second stage: minutes of emulation less.
make_root() {
    ROOT=$WORK/root
    [ ! -e "$ROOT/.complete" ] || return 0
    say "making the root: Debian $SUITE for arm64, once"
    rm -rf "$ROOT" "$WORK/stage"
    local mirror archive
    mirror=${MIRROR:-$(own_mirror)}
    [ -n "$mirror" ] || die 5 "no Debian packages in this machine's apt lists: apt-get update, or name a MIRROR"
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,python3-venv "$SUITE" "$WORK/stage" \
        "$mirror" >"$WORK/debootstrap.log" 2>&1 || die 1 "debootstrap failed, see $WORK/debootstrap.log"
    mkdir -p "$ROOT"
    for archive in "$WORK"/stage/var/cache/apt/archives/*.deb; do
        dpkg -x "$archive" "$ROOT"
    done
    rm -rf "$WORK/stage"
    touch "$ROOT/.complete"
}

own_mirror() {
    # shellcheck disable=SC2016 # apt-get fills these in
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v suite="$SUITE" '$1 == "Debian" && $2 == "main" && $3 !~ /-/ { found[$3] = $4; any = $4 }
            END { print suite in found ? found[suite] : any }'
}

# No /sys: onnxruntime would read the topology of the real processor there, and end with a segmentation fault.
mount_root() {
    mkdir -p "$ROOT"/{proc,dev,tmp,wheels,check,answers,root} "$WORK"/{wheels,answers}
    mount -t proc proc "$ROOT/proc"
    mount -t tmpfs tmpfs "$ROOT/tmp"
    mount -t tmpfs tmpfs "$ROOT/dev"
    local node
    for node in null zero random urandom; do
        touch "$ROOT/dev/$node"
        mount --bind "/dev/$node" "$ROOT/dev/$node"
    done
    mount --bind "$WORK/wheels" "$ROOT/wheels"
    mount --bind "$WORK/answers" "$ROOT/answers"
    mount --bind -o ro "$SOURCE/tools" "$ROOT/check"
}

register_emulator() {
    [ -e "$BINFMT/register" ] || mount -t binfmt_misc binfmt_misc "$BINFMT"
    if ! grep -qs '^magic 7f454c46.*b700$' "$BINFMT"/*; then # else somebody's own, which stays
        trap 'echo -1 >"$BINFMT/qemu-aarch64"' EXIT
        cat /usr/lib/binfmt.d/qemu-aarch64.conf >"$BINFMT/register"
    fi
    chroot "$ROOT" /usr/bin/python3 -I -c "" ||
        die 1 "programs of the root cannot be started; is aarch64 registered in $BINFMT without the flag F?"
}

# What a device would be given: our wheel, and what its metadata asks for, as built for aarch64.
make_wheels() {
    say "the wheels"
    rm -f "$WORK"/wheels/nnf_edge-*.whl
    [ -x "$WORK/x86/bin/python" ] || "$PYTHON" -m venv "$WORK/x86"
    pip_here wheel --no-deps --wheel-dir "$WORK/wheels" "$SOURCE"
    download --no-index --find-links "$WORK/wheels" 2>/dev/null && return
    find "$WORK/wheels" -name '*.whl' ! -name 'nnf_edge-*' -delete # one version of each
    download
}

download() {
    local libc platforms=() version
    for libc in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
        platforms+=(--platform "${libc}_aarch64")
    done
    version=$(chroot "$ROOT" /usr/bin/python3 -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    pip_here download --only-binary=:all: "${platforms[@]}" --python-version "$version" --dest "$WORK/wheels" "$@" \
        "$WORK"/wheels/nnf_edge-*.whl
}

pip_here() { "$WORK/x86/bin/python" -m pip --quiet --disable-pip-version-check "$@" >&2; }

# The same versions on this side: file names of wheels begin with name-version-.
install_here() {
    local name version pins=()
    for name in "$WORK"/wheels/*.whl; do
        IFS=- read -r name version _ <<<"$(basename "$name")"
        [ "$name" = nnf_edge ] || pins+=("$name==$version")
    done
    pip_here install --only-binary=:all: "${pins[@]}"
    pip_here install --no-deps --force-reinstall "$WORK"/wheels/nnf_edge-*.whl
}

install_inside() {
    say "installing in the emulated root"
    inside "" /usr/bin/python3 -m venv --clear "$INSIDE"
    inside "" "$INSIDE/bin/pip" --quiet --disable-pip-version-check install --no-index --find-links /wheels nnf-edge >&2
    inside "" "$INSIDE/bin/pip" --disable-pip-version-check check >&2
}

run_inside() {
    say "running on an emulated $1"
    rm -rf "${ROOT:?}/home" "$WORK/answers/$1.npz"
    mkdir -p "$ROOT/home"
    inside "$1" "$INSIDE/bin/python" /check/arm64_check.py --write "/answers/$1.npz" >&2
}

inside() {
    local core=$1
    shift
    env -i ${core:+"QEMU_CPU=$core"} HOME=/home LANG=C.UTF-8 PATH="$INSIDE/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        chroot "$ROOT" "$@"
}

if [ "${1:-}" = --in-namespace ]; then work "$2"; else main "$@"; fi
