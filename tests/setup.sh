# Makes ready what tests/run.sh and examples/run.sh run on; they source it from the top of the repository.
# Plain POSIX sh: a fresh Debian has neither bash habits nor make nor uv.
#
#   setup_packages PACKAGE...    install those that are missing, where we may; else say what is missing
#   setup_venv REQUIREMENTS      .venv with exactly the locked versions, checked by their hashes, and zkd editable

say() { printf '%s: %s\n' "$0" "$*" >&2; }

# Whether the thing that a Debian package is for is here, by whatever way it came.
has_package() {
    case $1 in
    python3-venv) find_python >/dev/null ;;
    openjdk-17-jre-headless) command -v java >/dev/null || [ -n "${JAVA_HOME:-}" ] ;;
    zookeeper) [ -e /usr/share/java/zookeeper.jar ] || [ -n "${ZOOKEEPER_HOME:-}" ] ;;
    systemd-container) command -v systemd-nspawn >/dev/null && [ -x /lib/systemd/systemd ] ;;
    chromium) command -v chromium >/dev/null || command -v google-chrome >/dev/null ;;
    *) dpkg -s "$1" >/dev/null 2>&1 ;;
    esac
}

# The first Python that is new enough and can make environments. Debian's own comes first: what is installed
# from it runs in a sandboxed service too, which cannot see interpreters below a home directory.
find_python() {
    for python in ${PYTHON:-} /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    return 1
}

# Returns 1, after saying so, if something is missing and could not be installed.
setup_packages() {
    missing=
    for package in "$@"; do
        has_package "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "missing:$missing. As root on Debian: apt-get install --no-install-recommends$missing"
        return 1
    fi
    say "installing:$missing"
    # shellcheck disable=SC2086  # one word a package
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 $missing >/dev/null
}

setup_venv() {
    stamp=".venv/.installed-$(cat pyproject.toml "$1" | cksum | tr ' ' -)"
    [ -e "$stamp" ] && .venv/bin/python -c '' 2>/dev/null && return
    if ! .venv/bin/python -c '' 2>/dev/null; then
        if ! python=$(find_python); then
            say "no Python >= 3.11 with venv found. As root on Debian: apt-get install python3-venv"
            return 1
        fi
        say "making .venv from $python"
        if command -v uv >/dev/null; then
            uv venv -q --clear --python "$python" .venv
        else
            "$python" -m venv --clear .venv
        fi
    fi
    say "installing the packages of $1"
    if command -v uv >/dev/null; then
        VIRTUAL_ENV=$PWD/.venv uv pip install -q --require-hashes -r "$1"
        VIRTUAL_ENV=$PWD/.venv uv pip install -q --no-deps --no-build-isolation -e .
    else
        .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r "$1"
        .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
    fi
    rm -f .venv/.installed-* # of another state of the tree
    : >"$stamp"
}
