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
chroot "$root" chown -R "$user" /srv

# In a mount namespace of its own, where everything is gone when the command is. With pivot_root in place of
# chroot, since nobody can make user namespaces below a chroot, and services have one.
# shellcheck disable=SC2016  # expanded inside
unshare --mount --propagation private sh -c '
    root=$1 user=$2; shift 2
    mount --rbind "$root" "$root"
    for each in proc dev sys; do mount --rbind "/$each" "$root/$each"; done
    mount -t tmpfs tmpfs "$root/run"
    cd "$root"
    mkdir -p outside
    pivot_root . outside
    umount -l /outside
    cd /srv/zkd
    exec setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups env HOME=/srv "$@"
' sh "$root" "$user" "$@"
