#!/usr/bin/env bash
# A kind cluster with KServe, the Gateway API and Kubeflow Pipelines, from their releases (versions.env). Running it again installs what is
# missing. The images of the checkout are loaded if they are built.
set -euo pipefail
cd "$(dirname "$0")"
. ./versions.env
name=${KIND_NAME:-goemotions}
github=https://github.com
for program in kind kubectl docker; do
    command -v "$program" >/dev/null || { echo "kind-up: $program is not installed" >&2; exit 1; }
done

kubectl() { command kubectl --context "kind-$name" "$@"; }
install() { kubectl apply --server-side --force-conflicts -f "$1" >/dev/null && echo "kind-up: $1"; }
wait_for() { kubectl -n "$1" wait --for=condition=Available deployment --all --timeout=10m >/dev/null; }

kind get clusters 2>/dev/null | grep -qx "$name" || kind create cluster --name "$name" --image "kindest/node:$KUBERNETES_VERSION"

install "$github/cert-manager/cert-manager/releases/download/$CERT_MANAGER_VERSION/cert-manager.yaml"
wait_for cert-manager
install "$github/kubernetes-sigs/gateway-api/releases/download/$GATEWAY_API_VERSION/standard-install.yaml"
install "$github/envoyproxy/gateway/releases/download/$ENVOY_GATEWAY_VERSION/install.yaml"
wait_for envoy-gateway-system

install "$github/kserve/kserve/releases/download/$KSERVE_VERSION/kserve.yaml"
wait_for kserve
install gateway.yaml
kubectl -n kserve patch configmap inferenceservice-config --type merge --patch-file inferenceservice-config.yaml >/dev/null
kubectl -n kserve rollout restart deployment kserve-controller-manager >/dev/null
wait_for kserve

pipelines="$github/kubeflow/pipelines/manifests/kustomize"
kubectl apply -k "$pipelines/cluster-scoped-resources?ref=$KUBEFLOW_PIPELINES_VERSION" >/dev/null
kubectl wait --for=condition=established --timeout=60s crd/applications.app.k8s.io >/dev/null
kubectl apply -k "$pipelines/env/platform-agnostic?ref=$KUBEFLOW_PIPELINES_VERSION" >/dev/null
wait_for kubeflow

commit=$(../../images/image.sh commit)
for image in "goemotions-trainer:$commit" "goemotions-predictor:$commit-cpu"; do
    if docker image inspect "$image" >/dev/null 2>&1; then
        kind load docker-image --name "$name" "$image"
    else
        echo "kind-up: $image is not built (make images VARIANTS=cpu), so it is not in the cluster"
    fi
done
echo "kind-up: the context is kind-$name; make cluster-test KUBE_CONTEXT=kind-$name tries it, kind delete cluster --name $name removes it"
