#!/bin/bash
# stand_in.sh STORAGE-OPTIONS TAG PREFIX: an image of the name python:3.12-slim without a registry, so that the Dockerfile is
# built as it is. Debian's minbase, slimmed as the official image is (no manuals, no locales, no symbols), with the CPython of
# PREFIX in /usr/local. Whatever certificates and pip settings this machine needs to reach its registries go in, and nothing else.
# Needs root, buildah and mmdebstrap. Takes half a minute.
set -euo pipefail
storage=$1 tag=$2 prefix=$3
python=$(basename "$(ls -d "$prefix"/lib/python3.?? )")

slim=()
for path in doc man info locale groff lintian; do slim+=("--dpkgopt=path-exclude=/usr/share/$path/*"); done
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.*; do [ -s "$file" ] && sources+=("$file"); done
rootfs=$(mktemp --suffix .tar)
trap 'rm -f "$rootfs"' EXIT
mmdebstrap --quiet --variant=minbase --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --dpkgopt=force-unsafe-io --aptopt='APT::Install-Recommends "false"' "${slim[@]}" \
    --include=usr-is-merged,ca-certificates,netbase,tzdata,libssl3,libsqlite3-0,libffi8,libbz2-1.0,liblzma5,libreadline8,libncursesw6,zlib1g,libuuid1,libexpat1 \
    --customize-hook='rm -rf "$1"/var/cache/apt/*.bin "$1"/var/log/*' \
    bookworm "$rootfs" "${sources[@]}"

# shellcheck disable=SC2086  # the options are several words
buildah() { command buildah $storage "$@"; }
container=$(buildah from scratch)
buildah add --quiet "$container" "$rootfs" / >/dev/null
root=$(buildah mount "$container")
tar -C "$prefix" --exclude=__pycache__ --exclude='*/test' --exclude=idlelib --exclude=tkinter --exclude=turtledemo --exclude='*.a' \
    --exclude='config-*' --exclude='site-packages/*' -cf - "bin/$python" "lib/$python" "lib/lib$python.so" "lib/lib$python.so.1.0" \
    | tar -C "$root/usr/local" -xf -
find "$root/usr/local/lib" -name '*.so*' -type f -exec strip --strip-all {} +
ln -s "$python" "$root/usr/local/bin/python3"
ln -s "$python" "$root/usr/local/bin/python"
chroot "$root" ldconfig
chroot "$root" /usr/local/bin/python3 -m ensurepip >/dev/null 2>&1
ln -s pip3 "$root/usr/local/bin/pip"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$root/etc/pip.conf"
buildah umount "$container" >/dev/null
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 --cmd python3 "$container"
buildah commit --quiet --format docker --rm "$container" "$tag" >/dev/null
