#!/usr/bin/env bash
# Makes the base of the images from this machine's own Debian sources, for machines that reach no registry, and prints its
# tag. The archive is kept under target/image and made again only when its recipe changes.
#
#     scripts/base-image.sh [PACKAGE...]      further packages; the bundle needs none
set -euo pipefail
. "$(dirname "$0")/lib.sh"

packages=git,ca-certificates
for package in "$@"; do packages+=,$package; done
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}

suite=bookworm
sources=()
if [ "$(. /etc/os-release && printf '%s' "${ID:-}")" = debian ]; then
    suite=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-bookworm}")
    # Debian's own two files; what third parties left in sources.list.d does not belong in the image.
    if [ -s /etc/apt/sources.list ] && grep -q '^deb ' /etc/apt/sources.list; then sources+=(/etc/apt/sources.list); fi
    if [ -s /etc/apt/sources.list.d/debian.sources ]; then sources+=(/etc/apt/sources.list.d/debian.sources); fi
fi

recipe=$({ cat "$0" "${sources[@]}" /dev/null; printf '%s' "$packages"; } | sha256sum | cut -c1-12)
tag=bottlecap-base:$suite-$recipe
directory=$(target_dir)/image
archive=$directory/base-$suite-$recipe.tar

if ! docker image inspect "$tag" >/dev/null 2>&1; then
    if [ ! -s "$archive" ]; then
        bash "$ROOT/scripts/need.sh" mmdebstrap
        mkdir -p "$directory"
        say "making the base image from Debian packages: $packages"
        # Without a terminal there is nobody for its bar.
        quiet=()
        [ -t 2 ] || quiet=(--quiet)
        mmdebstrap "${quiet[@]}" --format=tar --variant=essential --include="$packages" \
            --dpkgopt='path-exclude=/usr/share/man/*' \
            --dpkgopt='path-exclude=/usr/share/doc/*' \
            --dpkgopt='path-include=/usr/share/doc/*/copyright' \
            --dpkgopt='path-exclude=/usr/share/locale/*' \
            "$suite" "$archive.new" "${sources[@]}" </dev/null >&2
        mv "$archive.new" "$archive"
    fi
    say "docker import $tag"
    docker import "$archive" "$tag" >/dev/null
fi
printf '%s\n' "$tag"
