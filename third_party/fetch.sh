#!/usr/bin/env bash
# Clones sources of optional backends at their pinned commits and applies our patches: third_party/fetch.sh NAME... (or: all)
# Names, addresses and commits are those of sources.txt; ../patches/NAME.patch is applied where there is one. Safe to run again.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
known="$(awk '!/^#/ { print $1 }' "$here/sources.txt")"
if [ $# -eq 0 ]; then
  printf 'usage: %s NAME...\nnames: all' "$0" >&2; printf ' %s' $known >&2; echo >&2
  exit 2
fi
[ "$*" = all ] && set -- $known
for name in "$@"; do
  read -r _ url commit < <(awk -v name="$name" '$1 == name' "$here/sources.txt") || {
    echo "error: $name is unknown; known are: $(echo $known)" >&2
    exit 2
  }
  folder="$here/$name"
  if [ ! -d "$folder/.git" ]; then
    git clone --quiet "$url" "$folder"
  fi
  if [ "$(git -C "$folder" rev-parse HEAD)" != "$commit" ]; then
    git -C "$folder" cat-file -e "$commit^{commit}" 2>/dev/null || git -C "$folder" fetch --quiet origin "$commit"
    git -C "$folder" -c advice.detachedHead=false checkout --quiet "$commit"
  fi
  git -C "$folder" submodule --quiet update --init --recursive
  patch="$here/../patches/$name.patch"
  if [ -f "$patch" ] && ! git -C "$folder" apply --reverse --check "$patch" 2>/dev/null; then
    git -C "$folder" apply "$patch"
  fi
  echo "$name: $commit in $folder"
done
