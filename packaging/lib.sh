# Shell functions that `demo`, vagrant/prepare and vagrant/provision share: talking, and building the binaries and images.
#
# For bash with `set -euo pipefail`, in the root of the project. Whoever sources this sets before:
#
#   root      the root of the project
#   program   how it calls itself in its errors
#   again     the command to run again once what was wrong is set right
#
# shellcheck shell=bash
# shellcheck disable=SC2154 # root, program and again come from outside

label=demo.inputs # marks our images; its value says what they were made from

# --- talking ----------------------------------------------------------------------------------------------------------

bold='' plain=''
if [ -t 1 ]; then
    bold=$'\e[1m' plain=$'\e[0m'
fi
step() { printf '\n%s==> %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '%s\n' "$*"; }
die() {
    printf '\n%s: %s\n' "$program" "$1" >&2
    shift
    [ $# -eq 0 ] || printf '      %s\n' "$@" >&2
    exit 1
}
bad_usage() {
    printf '%s: %s\n' "$program" "$1" >&2
    exit 2
}
have() { command -v "$1" >/dev/null 2>&1; }

# version_at_least HAVE WANTED: compares dotted numbers.
version_at_least() {
    local -a is want
    local i
    IFS=. read -ra is <<<"$1"
    IFS=. read -ra want <<<"$2"
    for i in 0 1 2; do
        ((${is[i]:-0} > ${want[i]:-0})) && return 0
        ((${is[i]:-0} < ${want[i]:-0})) && return 1
    done
    return 0
}

# After a failure: is it because a disk is full? Says so for each place that has less than 300 MB left.
say_if_disk_is_full() {
    local dir free
    for dir in "$root" "$(docker info --format '{{.DockerRootDir}}' 2>/dev/null || true)" "${TMPDIR:-/tmp}"; do
        [ -d "$dir" ] || continue
        free=$(df -Pk "$dir" | awk 'NR == 2 { print int($4 / 1024) }')
        [ "$free" -ge 300 ] || say "Only $free MB are left on the disk of $dir: free some space and run $again again." >&2
    done
}

# --- what is needed ---------------------------------------------------------------------------------------------------

find_cargo() {
    have cargo || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    have cargo
}

is_debian() { have apt-get && grep -qE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release 2>/dev/null; }

# in_apt PACKAGE: can apt install it?
in_apt() { [[ $(apt-cache policy "$1" 2>/dev/null) =~ Candidate:\ [^\(] ]]; }

check_docker() {
    have docker || die "The docker command is missing." "See https://docs.docker.com/engine/install/"
    local error api
    if ! error=$(docker version 2>&1 >/dev/null); then
        case $error in
        *"permission denied"*)
            die "You may not use Docker's socket." \
                "Run $again with sudo, or join the group: sudo usermod -aG docker $(id -un), then log in again." ;;
        *)
            die "The Docker engine does not answer. Is it running?" \
                "sudo systemctl start docker" "Docker says: $(printf '%s' "$error" | tail -n 1)" ;;
        esac
    fi
    api=$(docker version --format '{{.Server.APIVersion}}')
    version_at_least "$api" 1.41 ||
        die "This Docker engine is too old (API $api): version 20.10 or newer is needed."
}

# --- building ---------------------------------------------------------------------------------------------------------

# The Debian release of the images.
suite=${SUITE:-bookworm}

# Chooses where the programs are built. They are static, with the C library in them: so they run on every Linux, in images of
# any release and in those that hold nothing else. It takes glibc's static half, which Debian has in libc6-dev, and of a version
# whose resolver needs no plug-in for /etc/hosts and DNS.
build_in_container=false why_container=''
choose_builder() {
    local wanted found glibc archive
    wanted=$(awk -F'"' '$1 ~ /^rust-version/ { print $2; exit }' Cargo.toml)
    glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | awk '{ print $2 }') || true
    archive=$(cc -print-file-name=libc.a 2>/dev/null) || true
    if ! find_cargo; then
        why_container="there is no cargo here"
    elif found=$(cargo --version | awk '{ print $2 }') && ! version_at_least "${found%%-*}" "$wanted"; then
        why_container="cargo here is $found, $wanted or newer is needed (rustup update)"
    elif [ -z "$glibc" ]; then
        why_container="this machine's C library is not glibc"
    elif ! version_at_least "$glibc" 2.34; then
        why_container="this machine's glibc is $glibc, 2.34 or newer is needed"
    elif ! [ -f "$archive" ]; then
        why_container="this machine has no static C library (libc.a)"
    fi
    [ -z "$why_container" ] || build_in_container=true
    export SUITE=$suite
}

# in_container IMAGE: sets `in_container`, what stands before a command that builds in a container of an image, as us, in /src.
in_container=()
in_container() {
    mkdir -p target/container
    in_container=(docker run --rm --user "$(id -u):$(id -g)" --security-opt label=disable --volume "$root:/src" --workdir /src
        --env CARGO_HOME=/src/target/container/cargo)
    # Where this machine trusts another authority, such as a company's proxy, what runs there does so too.
    if [ -f "${SSL_CERT_FILE:-}" ]; then
        in_container+=(--volume "$SSL_CERT_FILE:/authorities.pem:ro" --env CARGO_HTTP_CAINFO=/authorities.pem)
    fi
    in_container+=("$1")
}

programs=target/static # where they are, in the root of the project
# build_binaries PROGRAM...: as $programs/PROGRAM.
build_binaries() {
    local -a names=("$@") what=(build --release --locked)
    local name host made
    for name in "${names[@]}"; do what+=(-p "$name"); done
    step "Building ${names[*]} (the first time takes a few minutes)"
    # With a target named, the flags are for the programs alone, and not for what runs while they are built.
    local flags="${RUSTFLAGS:-} -C target-feature=+crt-static"
    if ! $build_in_container; then
        host=$(cargo -vV | sed -n 's/^host: //p')
        RUSTFLAGS=$flags cargo "${what[@]}" --target "$host" --target-dir target || {
            say_if_disk_is_full
            die "cargo could not build the programs; what it says stands above."
        }
        made=target/$host/release
    else
        local rust=rust:1-slim-bookworm
        say "In a container of $rust, because $why_container."
        docker image inspect "$rust" >/dev/null 2>&1 || docker pull "$rust" ||
            die "It cannot be built on this machine ($why_container), and the image $rust cannot be had." \
                "Install or update Rust here (https://rustup.rs) and run $again again."
        in_container "$rust"
        host=$("${in_container[@]}" rustc -vV | sed -n 's/^host: //p')
        "${in_container[@]}" env RUSTFLAGS="$flags" cargo "${what[@]}" --target "$host" --target-dir target/container || {
            say_if_disk_is_full
            die "cargo could not build the programs; what it says stands above."
        }
        made=target/container/$host/release
    fi
    mkdir -p "$programs"
    for name in "${names[@]}"; do
        [ -x "$made/$name" ] || die "cargo left no $made/$name."
        # A file of the same content stays: what was made from it is up to date.
        cmp -s "$made/$name" "$programs/$name" || install -m 755 "$made/$name" "$programs/$name"
    done
}

sha256() { if have sha256sum; then sha256sum; else shasum -a 256; fi | cut -c1-64; }

build_flags=() # more flags for `docker build`

# build_image NAME DOCKERFILE CONTEXT INPUT...: builds it unless it was made from the same inputs, on the same base.
build_image() {
    local name=$1 dockerfile=$2 context=$3 inputs old
    shift 3
    inputs=$(
        {
            docker image inspect --format '{{.Id}}' "local/debian:$suite"
            find "$dockerfile" "$@" -type f | LC_ALL=C sort | while IFS= read -r file; do
                printf '%s\n' "$file"
                cat "$file"
            done
        } | sha256
    )
    old=$(docker image inspect --format "{{.Id}} {{index .Config.Labels \"$label\"}}" "$name" 2>/dev/null) || old=''
    if [ "${old#* }" = "$inputs" ]; then
        say "$name is up to date"
        return 0
    fi
    say "Building $name ..."
    # Engines without BuildKit say at each build that their builder is old; once known, that is noise.
    docker build --tag "$name" --label "$label=$inputs" --build-arg "SUITE=$suite" ${build_flags[@]+"${build_flags[@]}"} \
        --file "$dockerfile" "$context" \
        2> >(sed '/^DEPRECATED: The legacy builder/,/^$/d' >&2) || {
        say_if_disk_is_full
        die "The image $name could not be built; what Docker says stands above."
    }
}

build_base() {
    packaging/images/base "$suite" || {
        say_if_disk_is_full
        die "Without its base image nothing can be built; the reason stands above."
    }
}
build_etcd() { build_image local/etcd packaging/images/etcd/Dockerfile packaging/images/etcd; }
build_hello() { build_image local/hello packaging/images/hello/Dockerfile . vagrant/server.js; }
build_dockreg() {
    build_image local/dockreg vagrant/Dockerfile . \
        vagrant/server.js vagrant/sidekick vagrant/supervisord.conf "$programs/registrar"
}

# Former versions of our images, which have lost their name to a newer one.
remove_old_images() {
    local id
    for id in $(docker images --quiet --filter dangling=true --filter "label=$label"); do
        docker image rm "$id" >/dev/null 2>&1 || true # a container that is yet to be replaced still has it
    done
}
