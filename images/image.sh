#!/usr/bin/env bash
# Names, builds, pushes and pins the images, with docker, podman or buildah: whichever is running. The make targets
# of the images call it; docs/installation.md lists the variables.
set -euo pipefail
cd "$(dirname "$0")/.."

CONTENT=(images pyproject.toml constraints.txt LICENSE NOTICE goemotions components pipelines)

fail() {
    echo "images: $*" >&2
    exit 1
}

[[ ${REGISTRY:-} != *://* ]] || fail "the name of an image has no scheme: write REGISTRY=${REGISTRY#*://}"

engine() {
    for candidate in ${ENGINE:-docker podman buildah}; do
        if "$candidate" info >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "no container engine is running (${ENGINE:-docker, podman, buildah}): install or start one, or set ENGINE"
}

# The commit that last changed what goes into an image: a commit of documents or manifests does not change it.
commit() {
    git log -1 --format=%H -- "${CONTENT[@]}"
}

# The version of that commit as setuptools-scm has it (pyproject.toml): its tag, or the newest tag before it and the distance to it.
version() {
    local commit tag distance
    commit=$(commit)
    tag=$(git describe --tags --abbrev=0 --match 'v[0-9]*' "$commit" 2>/dev/null || true)
    distance=$(git rev-list --count "${tag:+$tag..}$commit")
    tag=${tag:-v$(sed -n 's/^fallback_version = "\(.*\)"/\1/p' pyproject.toml)}
    [ "$distance" = 0 ] && echo "${tag#v}" || echo "${tag#v}.post1.dev$distance+g${commit:0:9}"
}

# trainer, predictor-cpu or predictor-gpu -> the image's full name
name() {
    local revision prefix=${REGISTRY:+${REGISTRY%/}/}
    revision=$(commit)
    case $1 in
    trainer) echo "${prefix}goemotions-trainer:$revision" ;;
    predictor-cpu | predictor-gpu) echo "${prefix}goemotions-predictor:$revision-${1#predictor-}" ;;
    *) fail "there is no image $1: give trainer, predictor-cpu or predictor-gpu" ;;
    esac
}

build() {
    local engine name options
    engine=$(engine)
    name=$(name "$1")
    options=(--tag "$name" --file "images/${1%%-*}/Dockerfile")
    options+=(--build-arg "REVISION=$(commit)" --build-arg "SOURCE=${SOURCE:-}")
    options+=(--build-arg "VERSION=$(version)")
    options+=(--build-arg "PIP_OPTIONS=${PIP_OPTIONS:-}")
    [ -z "${BASE_IMAGE:-}" ] || options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
    [[ $1 != predictor-* ]] || options+=(--build-arg "VARIANT=${1#predictor-}")
    # As with docker: the OCI format has no health check, and without layers every change of code pushes gigabytes.
    [ "$engine" = docker ] || options+=(--format docker --layers)
    # shellcheck disable=SC2086 # several options in one variable
    "$engine" build "${options[@]}" ${BUILD_OPTIONS:-} .
}

push() {
    [ -n "${REGISTRY:-}" ] || fail "no registry is set: add it, such as REGISTRY=registry.example/team"
    local engine name
    engine=$(engine)
    name=$(name "$1")
    "$engine" push "$name"
}

digest() {
    if command -v skopeo >/dev/null; then
        skopeo inspect --no-tags --format '{{.Digest}}' "docker://$1"
    elif docker buildx version >/dev/null 2>&1; then
        docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$1"
    else
        fail "reading a digest from a registry needs skopeo or docker buildx: install one"
    fi
}

pin_base() {
    local base digest
    base=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' images/trainer/Dockerfile)}
    base=${base%@*}
    digest=$(digest "$base") || fail "the registry returned no digest of $base: see the error above; no file was changed"
    sed -i.before "s|^ARG BASE_IMAGE=.*|ARG BASE_IMAGE=$base@$digest|" images/*/Dockerfile
    rm images/*/Dockerfile.before
    echo "images/*/Dockerfile: the base is now $base@$digest"
}

case ${1:-} in
commit) commit ;;
version) version ;;
name) name "$2" ;;
build)
    changed=$(git status --porcelain -- "${CONTENT[@]}")
    if [ -z "${FORCE:-}" ] && [ -n "$changed" ]; then
        fail "an image's tag is its commit, which lacks these changes: commit them, or set FORCE=1 (${changed//$'\n'/,})"
    fi
    for image in "${@:2}"; do build "$image"; done
    ;;
push) for image in "${@:2}"; do push "$image"; done ;;
pin-base) pin_base ;;
*) fail "give commit, version, name, build, push or pin-base" ;;
esac
