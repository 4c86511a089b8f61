#!/usr/bin/env bash
# Builds an image: docker/build.sh [cpu|cuda] [options of docker build]
set -euo pipefail

usage() {
    cat <<END
Usage: $script [cpu|cuda] [options of docker build]

Builds localhost/qwenkit:cpu (the default) or localhost/qwenkit:cuda. Options that help:

  --build-arg EXTRAS=server,hub        further extras of the package
  --build-arg PIP_INDEX_URL=URL        a package index nearer to you
  --build-arg TORCH_INDEX_URL=URL      where builds of torch without CUDA are (cpu only)
  --build-arg PYTHON_IMAGE=IMAGE       another base, such as one named by its digest

CONTAINER_ENGINE chooses between docker and podman.
END
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=docker/common.sh
. "$here/common.sh"
target=cpu
case ${1-} in
    -h | --help) usage; exit 0 ;;
    cpu | cuda) target=$1; shift ;;
    '' | -*) ;;
    *) fail "'$1' is no image of ours; use cpu or cuda" ;;
esac
find_engine
cd -- "$here/.."
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/qwenkit/_version.py)
revision=$(git rev-parse --short=12 HEAD 2>/dev/null) || revision=unknown
# Images in Docker's own format, because the other one has no health check.
format=()
case $engine in *podman) format=(--format docker) ;; esac
exec "$engine" build ${format[@]+"${format[@]}"} --file docker/Dockerfile --target "$target" \
    --tag "localhost/qwenkit:$target" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" "$@" .
