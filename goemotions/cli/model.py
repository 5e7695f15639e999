"""``goemotions model``: commands on the versions of the registered model and on what serves them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from goemotions import defaults
from goemotions.cli import options as shared
from goemotions.cli.parameters import SERVICE
from goemotions.deployment import node_pools
from goemotions.errors import BadArgument
from goemotions.monitoring.rollout.plan import Plan
from goemotions.storage.temporary import temporary_folder

if TYPE_CHECKING:
    from goemotions.deployment.job import ManifestChange

REFERENCE = click.argument("reference", type=shared.REFERENCE, default=defaults.REFERENCE)
NAMESPACE = click.option("--namespace", default="", help="Namespace of the InferenceServices; default: the current context's.")
PRESET = click.option(
    "--preset", default="", help=f"Node pool of the predictor for GPUs: {', '.join(node_pools.PRESETS)}; default: as it is."
)
FILE = click.option(
    "--file", type=shared.FILE, help="The manifest; default: manifests/isvc.yaml, or manifests/models/<model name>/isvc.yaml."
)
SERVICE_OPTION = click.option("--service", default="", help="The InferenceService; default: <model name>-<variant>.")
WAIT = click.option("--wait-seconds", default=900.0, show_default=True, help="Longest time until it is ready; 0: do not wait.")
DATASET = click.option(
    "--dataset",
    type=shared.SOURCE,
    default="",
    help="Data of the version, if the champion was scored on other data: a Dataset folder, s3:// or a source. Default: its run's.",
)
TRAINED = shared.together(
    click.option("--run", default="", help="Id of a pipeline run, or the folder of a local one: take a model that it trained."),
    click.option("--profile", default="", help="The profile, with --run."),
    click.option("--store", type=shared.LOCATION, default="", help="With --run: the store to read; default: as MLflow says."),
)


@click.group()
def model() -> None:
    """Show, promote, roll out or back, deploy, download and retire versions of the registered model.

    REFERENCE is an alias such as challenger-cpu, a version number, or either as MLflow writes it: models:/goemotions@champion-cpu,
    models:/goemotions/3.
    """


@model.command()
@shared.MODEL_NAME
@NAMESPACE
@click.option("--cluster/--no-cluster", default=True, show_default=True, help="Show what Kubernetes serves.")
@FILE
def status(model_name: str, namespace: str, cluster: bool, file: Path | None) -> None:
    """Show what is registered, aliased, in the manifest and served, and where they differ."""
    from goemotions.deployment.model_folder import file_of
    from goemotions.deployment.status import collect

    state = collect(model_name, namespace, file or file_of(model_name), ask_cluster=cluster)
    click.echo(state.table())
    for line in state.disagreements():
        click.echo(f"disagree: {line}")


@model.command()
@REFERENCE
@shared.MODEL_NAME
@DATASET
@shared.LATENCY_BUDGET
@shared.QUALITY_TOLERANCE
@FILE
def promote(reference: str, model_name: str, file: Path | None, **options: Any) -> None:
    """Make a version the champion if it passes the gate, and write the manifest."""
    from goemotions.registry import promotion

    _show_move(promotion.promote(reference, model_name=model_name, **options), model_name, file)


@model.command()
@click.option("--variant", type=click.Choice(["gpu", "cpu"]), default="cpu", show_default=True, help="Whose champion.")
@shared.MODEL_NAME
@click.option("--to", default="", help="Number of an earlier champion; default: the previous one.")
@FILE
def rollback(variant: Any, model_name: str, to: str, file: Path | None) -> None:
    """Make the previous champion the champion again, and write the manifest."""
    from goemotions.registry import promotion

    _show_move(promotion.rollback(variant, model_name=model_name, to=to), model_name, file)


def _show_move(move: Any, model_name: str, file: Path | None) -> None:
    """Prints what happened to the alias, and updates the manifest if there is one."""
    from goemotions.deployment.job import ManifestChange
    from goemotions.deployment.kserve import service_name
    from goemotions.registry import model_registry

    if move.before == move.after:
        click.echo(f"version {move.after} is {move.alias} already: nothing moved")
    else:
        click.echo(f"{move.alias}: version {move.after}, before it {move.before or 'none'}")
    if move.verdict:
        outcome = "the gate passed" if move.verdict.passes else "validation shows no gain, which a rollout does not need"
        click.echo(f"{outcome}: {move.verdict.summary()}")
        for name, value in move.verdict.differences.items():
            click.echo(f"  {name:<18}{value.difference:+.4f} ({value.low:+.4f} to {value.high:+.4f})")
        for note in move.verdict.notes:
            click.echo(f"  note: {note}")
    version = model_registry.get_version(model_name, move.after)
    versions = {service_name(model_name, version.variant): version}
    write_manifest(ManifestChange(model_name, versions, str(file or "")))


def write_manifest(change: ManifestChange) -> None:
    """Writes versions into a manifest and says so. In a Job, the change is handed over to where the command was called."""
    from goemotions.deployment import isvc, model_folder

    if change.hand_over():
        return
    path = Path(change.file) if change.file else model_folder.file_of(change.model_name)
    if not change.is_complete:
        for version in change.versions.values() if path.exists() else ():
            for line in isvc.refresh(path, version, change.model_name):
                click.echo(f"{path}: {line}")
        return
    is_own = not change.file and change.model_name != defaults.MODEL_NAME
    if is_own:
        model_folder.add(path, change.model_name, change.versions)
    for line in isvc.write(path, change.versions, **change.options):
        click.echo(line)
    click.echo(f"{path}: kubectl apply {f'-k {path.parent}' if is_own else f'-f {path}'}")


@model.command()
@shared.MODEL_NAME
@click.option(
    "--keep", type=click.IntRange(min=0), default=defaults.KEPT_VERSIONS, show_default=True, help="Newest versions per variant."
)
@click.option(
    "--days",
    type=shared.Number(min=0),
    default=defaults.KEPT_DAYS,
    show_default=True,
    help="Keep versions younger than this, and bundles without a version and unfinished uploads whose run is younger.",
)
@click.option(
    "--trained-days",
    type=shared.Number(min=0),
    default=defaults.KEPT_TRAINED_DAYS,
    show_default=True,
    help="Keep trained models that are younger than this, and those of versions.",
)
@NAMESPACE
@click.option("--cluster/--no-cluster", default=True, show_default=True, help="Keep what Kubernetes serves.")
@FILE
@click.option("--yes/--dry-run", default=False, help="Remove the bundles; default: show what would be removed.")
def retire(
    model_name: str, keep: int, days: float, trained_days: float, namespace: str, cluster: bool, file: Path | None, yes: bool
) -> None:
    """Remove the bundles of old versions that nothing refers to, bundles without a version, old trained models and unfinished uploads.

    Kept are versions with an alias, what a rollback goes back to, both versions of an unfinished rollout, what is deployed or in the
    manifest, the newest of each variant, and young ones. Retired versions keep their metrics in MLflow. Interrupted, the same
    command goes on.
    """
    from goemotions.deployment.model_folder import file_of
    from goemotions.deployment.status import served_sources
    from goemotions.registry import orphans, retirement

    served = served_sources(namespace, file or file_of(model_name), ask_cluster=cluster)
    decisions = (retirement.retire if yes else retirement.plan)(model_name, retirement.Policy(keep, days), served)
    done = "removed" if yes else "would be removed"
    for one in decisions:
        version = one.version
        what = f"kept: {one.kept}" if one.kept else f"{done}, {one.size / 1e6:,.1f} MB"
        click.echo(f"version {version.number} ({version.tags.get('variant', '?')}, {version.tags.get('profile', '?')}): {what}")
    retired = [one for one in decisions if not one.kept]
    total = f"{len(retired)} of {len(decisions)} versions, {sum(one.size for one in retired) / 1e6:,.1f} MB"
    left = orphans.plan(model_name, days, trained_days, served)
    for orphan in orphans.remove(left) if yes else left:
        click.echo(f"{orphan.location}: {done}, {orphan.size / 1e6:,.1f} MB: {orphan.reason}")
    click.echo(f"{total} {done}" + ("" if yes else ": nothing was, --yes (YES=1) does it"))


@model.command("isvc")
@shared.MODEL_NAME
@click.option("--bucket", default="", help="Name of the bucket in the cluster; default: the one it was registered in.")
@click.option(
    "--registry",
    type=shared.IMAGE_PREFIX,
    help="Prefix of the predictor's image, such as registry.example/team; default: as in the file.",
)
@click.option("--image-tag", default="", help="Tag of the image without the variant; default: as in the file.")
@PRESET
@FILE
def write_isvc(model_name: str, file: Path | None, **options: Any) -> None:
    """Write the champions into the InferenceServices of the manifest.

    A model of another name gets a folder of its own: manifests/models/<model name>.
    """
    from goemotions.deployment import isvc
    from goemotions.deployment.job import ManifestChange

    if not (file or SERVICE.accepts(model_name)):
        raise BadArgument(f"the name of a model with services is {SERVICE.description}, not {model_name!r}")
    write_manifest(ManifestChange(model_name, isvc.champions(model_name), str(file or ""), is_complete=True, options=options))


@model.command()
@REFERENCE
@shared.MODEL_NAME
@NAMESPACE
@SERVICE_OPTION
@click.option("--canary-percent", type=click.IntRange(0, 99), default=0, help="Share of the traffic; 0: all of it.")
@PRESET
@WAIT
def deploy(reference: str, service: str, namespace: str, **options: Any) -> None:
    """Set a version on its InferenceService and wait until it is served."""
    from goemotions.deployment import kserve

    served = kserve.deploy(reference, service, namespace, **options)
    canary = f", canary version {served.canary_version} with {served.canary_percent}%" if served.canary_percent else ""
    click.echo(f"{served.service}: version {served.version}{canary}, {'ready' if served.is_ready else 'not ready yet'}")


@model.command()
@click.argument("reference", type=shared.REFERENCE, default="challenger-cpu")
@shared.MODEL_NAME
@NAMESPACE
@SERVICE_OPTION
@click.option(
    "--proxy", type=shared.SERVER, default="", help="Address of the proxy of one machine, instead of an InferenceService."
)
@click.option(
    "--prometheus", type=shared.SERVER, default="", help="Address of Prometheus; default: the servers' own metrics are read."
)
@click.option(
    "--texts", "texts_file", type=shared.FILE, help="Texts for both versions, one per line; default: those of the sample."
)
@DATASET
@shared.LATENCY_BUDGET
@shared.QUALITY_TOLERANCE
@click.option("--wait-seconds", default=900.0, show_default=True, help="Longest time until a canary is ready.")
@click.option("--restart", is_flag=True, help="Begin again, whatever was left of an unfinished rollout of the service.")
@shared.options_of(Plan)
@FILE
def rollout(
    reference: str,
    model_name: str,
    namespace: str,
    service: str,
    proxy: str,
    prometheus: str,
    texts_file: Path | None,
    wait_seconds: float,
    file: Path | None,
    **options: Any,
) -> None:
    """Give a version the traffic in steps; promote it, hold it, or roll it back by what they show.

    Interrupted, the same command goes on. It ends with an error if the version is held or rolled back.
    """
    from goemotions.deployment.kserve import service_name
    from goemotions.deployment.traffic import KServeSplit, ProxySplit, TrafficSplit
    from goemotions.monitoring.rollout import rollout as rollouts
    from goemotions.monitoring.rollout.answers import read_texts
    from goemotions.monitoring.rollout.sources import Prometheus, Scrape
    from goemotions.registry import model_registry

    version = model_registry.get_version(model_name, reference)
    service = service or service_name(model_name, version.variant)
    split: TrafficSplit
    if proxy:
        split, selector = ProxySplit(proxy, wait_seconds=wait_seconds), ""
    else:
        split = KServeSplit(service, namespace, model_name=model_name, wait_seconds=wait_seconds)
        selector = f'namespace="{split.namespace}",serving_kserve_io_inferenceservice="{service}"'
    observations = Prometheus(prometheus, selector) if prometheus else Scrape(split.targets)
    plan, texts = shared.record_of(Plan, options), read_texts(texts_file)
    move = rollouts.run(reference, split, observations, plan, model_name=model_name, texts=texts, show=click.echo, **options)
    _show_move(move, model_name, file)


@model.command()
@click.option("--variant", type=click.Choice(["gpu", "cpu"]), default="cpu", show_default=True, help="Whose pods.")
@shared.MODEL_NAME
@NAMESPACE
@SERVICE_OPTION
@WAIT
def restart(service: str, namespace: str, **options: Any) -> None:
    """Replace the pods of an InferenceService by new ones of the same version."""
    from goemotions.deployment import kserve

    served = kserve.restart(service, namespace, **options)
    click.echo(f"{served.service}: version {served.version}, {'ready' if served.is_ready else 'not ready yet'}")


@model.command()
@REFERENCE
@click.option(
    "--output", type=shared.FOLDER, help="Folder to write; default: .local/models/REFERENCE, or .local/models/RUN/PROFILE."
)
@shared.MODEL_NAME
@TRAINED
def download(reference: str, output: Path | None, model_name: str, run: str, profile: str, store: str) -> None:
    """Download and verify the files of a version; another version in the folder is replaced.

    REFERENCE may also be a location: a folder or s3://bucket/prefix/. With --run and --profile, the model that the run trained is
    downloaded: weights, tokenizer, metrics, thresholds, predictions and tables.
    """
    from goemotions.registry import bundle, references, trained

    _require_both(run, profile)
    if run:
        output = output or Path(".local/models", Path(run).name, profile)
        names = trained.download(run, profile, output, store_location=store)
        title = f"{profile} of the run {run}"
    else:
        output = output or Path(".local/models", reference.rstrip("/").rpartition("/")[2])
        version, names = references.download(reference, output, model_name)
        title = f"{reference} (version {version.number})" if version else reference
    click.echo(f"{output}: {title}, every file matches its manifest")
    for kind, files in bundle.by_kind(names).items():
        size = sum((output / name).stat().st_size for name in files)
        click.echo(f"  {kind:<12}{size / 1000:>11,.0f} kB  {', '.join(files)}")


def _require_both(run: str, profile: str) -> None:
    if bool(run) != bool(profile):
        raise BadArgument("--run and --profile belong together: give both, or neither")


@click.command("export-hf")
@click.argument("reference", type=shared.REFERENCE, default="champion-gpu")
@click.option("--output", type=shared.FOLDER, required=True, help="Folder to write, which must be empty or absent.")
@shared.MODEL_NAME
@TRAINED
@click.option("--license", "license_name", default="", help="Licence, as the hub names it; default: that of the encoder.")
@click.option("--language", default="en", show_default=True, help="Code of the language of the texts.")
@click.option("--data", default="", help="The data set on the hub, for the card, such as google-research-datasets/go_emotions.")
def export_hf(reference: str, output: Path, model_name: str, run: str, profile: str, store: str, **options: Any) -> None:
    """Write a model as a folder of the Hugging Face hub, which transformers loads without this package.

    REFERENCE is a version for GPUs; with --run and --profile, any trained model is taken.
    """
    from goemotions.registry import hugging_face, references, trained, trust

    _require_both(run, profile)
    with temporary_folder() as scratch:
        folder = scratch / "model"
        if run:
            trained.download(run, profile, folder, store_location=store)
        elif Path(reference).is_dir():
            folder = Path(reference)
            trust.verify(folder, reference)
        else:
            references.fetch(reference, folder, model_name)
        name = hugging_face.export(folder, output, **options)
    click.echo(f"{output}: {name}, for AutoModelForSequenceClassification and pipeline('text-classification', top_k=None)")
