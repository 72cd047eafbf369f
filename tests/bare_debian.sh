#!/bin/sh
# Runs a command of this repository on a Debian 12 with nothing installed, to see that it needs nothing else:
#
#   sh tests/bare_debian.sh                          tests/run.sh as root
#   sh tests/bare_debian.sh sh examples/run.sh       something else
#   USER_IN_ROOT=nobody sh tests/bare_debian.sh ...  as a user who may install nothing
#
# Needs root and mmdebstrap. What is committed is copied, so commit first. ROOT keeps and re-uses the system
# there; FILES are copied into it: what this machine needs to reach the network (certificates, pip.conf, ...).
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- sh tests/run.sh
root=${ROOT:-$(mktemp -d /var/tmp/zkd-bare.XXXXXX)}
[ -n "${ROOT:-}" ] || trap 'rm -rf --one-file-system "$root"' EXIT

if [ ! -e "$root/etc/debian_version" ]; then
    mmdebstrap --variant=minbase bookworm "$root"
fi
for file in /etc/resolv.conf ${FILES:-}; do
    mkdir -p "$root$(dirname "$file")"
    cp -L "$file" "$root$file"
done
user=${USER_IN_ROOT:-root}
rm -rf "$root/srv/zkd"
mkdir -p "$root/srv/zkd"
git archive HEAD | tar -x -C "$root/srv/zkd"
chroot "$root" chown -R "$user" /srv/zkd

# Mounts in a namespace of their own are gone when the command is.
# shellcheck disable=SC2016  # expanded inside
unshare --mount --propagation private sh -c '
    root=$1 user=$2; shift 2
    mount --rbind "$root" "$root" # a mount point of its own, as the root of a machine is
    for each in proc dev sys; do mount --rbind "/$each" "$root/$each"; done
    mount -t tmpfs tmpfs "$root/run"
    if [ "$user" = root ]; then
        exec chroot "$root" sh -c '\''cd /srv/zkd; exec "$@"'\'' sh "$@"
    fi
    exec chroot --userspec="$user" "$root" env HOME=/srv/zkd sh -c '\''cd /srv/zkd; exec "$@"'\'' sh "$@"
' sh "$root" "$user" "$@"
