"""Trust: a bundle is used only if `register` stored it. Registry and store are real, and whoever attacks has MLflow's address."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow.pyfunc
import pytest
from click.testing import CliRunner

from goemotions.cli import main as cli
from goemotions.deployment import isvc, kserve
from goemotions.errors import IntegrityError, ModelError, StorageError, UntrustedBundle
from goemotions.metrics.classification import METRICS_FILE
from goemotions.prediction import plans, shards
from goemotions.prediction.predictor import Predictor
from goemotions.registry import (
    bundle,
    changes,
    mlflow_model,
    model_registry,
    promotion,
    references,
    registration,
    tracking,
    trained,
    trust,
)
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.registry.model_registry import Version
from goemotions.storage import layout, manifest, signature
from goemotions.storage import store as storage
from tests.support.bundles import assemble

ROOT = Path(__file__).parents[2]
RUN = 32 * "0"
STORE = "s3://goemotions/tests/trust/"


def version(source: str, **tags: str) -> Version:
    return Version("7", source, RUN, tags, "goemotions")


def test_the_location_that_register_writes_to_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"s3://bucket/prefix/models/goemotions/{RUN}/cpu/"
    for configured in ("", "s3://bucket/prefix/", "s3://bucket/prefix", "s3://other/ s3://bucket/prefix/"):
        monkeypatch.setenv(trust.STORE, configured)
        assert str(trust.require_source(version(source, variant="cpu"), "cpu")) == source


IN_STORE = f"models/goemotions/{RUN}/cpu/"
BAD_SOURCES = {
    "artifact proxy": f"mlflow-artifacts:/1/{RUN}/artifacts/bundle",
    "artifact proxy in form": f"mlflow-artifacts:/{IN_STORE}",
    "artifact proxy with host": f"mlflow-artifacts://host:5000/{IN_STORE}",
    "run": f"runs:/{RUN}/{IN_STORE}",
    "logged model": "models:/m-0123456789abcdef",
    "artifacts of a run": f"s3://goemotions/mlflow/1/{RUN}/artifacts/bundle/",
    "artifacts in form": f"s3://goemotions/mlflow/1/{RUN}/artifacts/{IN_STORE}",
    "MLflow's prefix in form": f"s3://goemotions/mlflow/{IN_STORE}",
    "MLflow's folder": f"/home/me/mlruns/{IN_STORE}",
    "web": f"https://host/{IN_STORE}",
    "file": f"file:///srv/{IN_STORE}",
    "capital scheme": f"S3://goemotions/{IN_STORE}",
    "dots": f"s3://goemotions/mlflow/../{IN_STORE}",
    "another model": f"s3://goemotions/models/other/{RUN}/cpu/",
    "another variant": f"s3://goemotions/models/goemotions/{RUN}/gpu/",
    "a checkpoint": "s3://goemotions/checkpoints/run/minilm/step-1/",
    "empty": "",
    "a megabyte": "s3://" + "x" * 2**20,
}


@pytest.mark.fault("bundle-forged")
@pytest.mark.parametrize("store", ["", "s3://goemotions/"])
@pytest.mark.parametrize("source", BAD_SOURCES)
def test_another_location_is_refused(source: str, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.STORE, store)
    with pytest.raises(
        UntrustedBundle, match=r"version 7 of goemotions is not used: its source '.*register the model again"
    ) as raised:
        trust.require_source(version(BAD_SOURCES[source], variant="cpu"), "cpu")
    assert len(str(raised.value)) < 700


@pytest.mark.fault("bundle-forged")
def test_a_source_in_another_store_is_refused_if_the_store_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.STORE, "s3://goemotions/")
    for elsewhere in ("s3://theirs/", "s3://goemotions/deeper/", "s3://goemotions.theirs/", "/tmp/"):
        with pytest.raises(UntrustedBundle, match=r"is not in s3://goemotions/; "):
            trust.require_source(version(elsewhere + IN_STORE))


@dataclass(frozen=True)
class Registry:
    """A model that was registered twice with a signing key, and the keys."""

    name: str
    keys: Path
    key: str
    locations: list[str]


@pytest.fixture(scope="module")
def registry(stack: Path, dataset: Path, candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    keys = tmp_path_factory.mktemp("keys")
    key = signature.create_keys(keys)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(signature.SIGNING_KEY, str(keys / signature.PRIVATE_FILE))
        parts = {"cpu": [CandidateArtifacts.below(candidate, "cpu")]}
        locations = [
            registration.register(dataset, parts, store=STORE, pipeline_run=f"{name}-{run}", model_name=name)["cpu"]["source"]
            for name, run in (("trust", "1"), ("trust", "2"), ("trust-other", "1"))
        ]
    return Registry("trust", keys, key, locations)


@pytest.fixture
def trusting(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A reader: it has the public key and knows the store."""
    monkeypatch.setenv(signature.TRUSTED_KEYS, str(registry.keys / signature.PUBLIC_FILE))
    monkeypatch.setenv(trust.STORE, STORE)
    return registry


@contextlib.contextmanager
def champion(model: str, number: str) -> Iterator[None]:
    """Moves the alias, as whoever reaches MLflow can, and back at the end."""
    before = model_registry.get_version(model, "champion-cpu").number
    model_registry.set_alias(model, "champion-cpu", number)
    yield
    model_registry.set_alias(model, "champion-cpu", before)


def forge(original: Path, folder: Path) -> Path:
    """A bundle with other thresholds, and a manifest that fits them."""
    shutil.copytree(original, folder)
    content = json.loads((folder / "thresholds.json").read_text())
    (folder / "thresholds.json").write_text(json.dumps(content, indent=2))
    metadata = {name: value for name, value in json.loads((folder / manifest.NAME).read_text()).items() if name != "files"}
    manifest.write(folder, **metadata)
    return folder


@pytest.mark.fault("bundle-forged")
@pytest.mark.parametrize("is_signed", [True, False], ids=["signed", "no key"])
@pytest.mark.parametrize("other", ["run", "model", "variant"])
def test_a_server_refuses_another_bundle_than_the_one_of_its_service(
    trusting: Registry, tmp_path: Path, other: str, is_signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KServe downloads whatever is at the location of the service: whoever can write there can put another signed bundle there."""
    if not is_signed:
        monkeypatch.delenv(signature.TRUSTED_KEYS)
    own, another, of_other_model = trusting.locations
    folder = storage.fetch(own, tmp_path / "models")
    sources = {"run": another, "model": of_other_model, "variant": own.replace("/cpu/", "/gpu/")}
    with references.as_folder(str(folder), "goemotions", own) as (_, number):
        assert number == ("1" if is_signed else own.split("/")[-3])
    monkeypatch.setenv("GOEMOTIONS_SERVE_BUNDLE_SOURCE", sources[other])
    result = CliRunner().invoke(
        cli.commands, ["serve", "--bundle", str(folder), "--port", "0"], auto_envvar_prefix="GOEMOTIONS"
    )
    assert isinstance(result.exception, UntrustedBundle)
    assert f"{sources[other]} holds another bundle: its " in str(result.exception)


@pytest.mark.fault("version-renumbered")
@pytest.mark.parametrize("place", ["models/goemotions/today/cpu", "trained/team/best"])
def test_a_downloaded_bundle_is_used_wherever_it_is_kept(
    trusting: Registry, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only in a store does the location say which bundle it must be."""
    references.download("1", tmp_path / place, "trust")
    with references.as_folder(str(tmp_path / place), "trust") as (_, number):
        assert number == "1"
    monkeypatch.delenv(signature.TRUSTED_KEYS)
    with references.as_folder(str(tmp_path / place), "trust") as (folder, _):
        assert folder == tmp_path / place


def test_a_server_refuses_the_number_of_another_version(trusting: Registry, tmp_path: Path) -> None:
    """The deploy account writes the number into the service; a dashboard, a rollout and the request log go by it."""
    folder = storage.fetch(trusting.locations[0], tmp_path / "models")
    environment = {"GOEMOTIONS_SERVE_VERSION_NUMBER": "2", "GOEMOTIONS_SERVE_BUNDLE_SOURCE": trusting.locations[0]}
    serve = ["serve", "--bundle", str(folder), "--port", "0"]
    result = CliRunner().invoke(cli.commands, serve, env=environment, auto_envvar_prefix="GOEMOTIONS")
    assert isinstance(result.exception, UntrustedBundle)
    assert str(result.exception).startswith(f"{folder} is version 1 of its model, not 2: ")
    for number in ("1", ""):
        with references.as_folder(str(folder), "trust", trusting.locations[0], number) as (_, served):
            assert served == "1"


@pytest.mark.fault("version-renumbered")
def test_a_version_with_the_bundle_of_another_one_is_refused(trusting: Registry, tmp_path: Path) -> None:
    """Whoever can write to MLflow can give an older bundle the newest number."""
    original = model_registry.get_version("trust", "1")
    tags = {"variant": "cpu"}
    number = mlflow.MlflowClient().create_model_version("trust", original.source, original.run_id, tags=tags).version
    repeated = model_registry.get_version("trust", number)
    for read in (lambda: references.fetch(number, tmp_path / "out", "trust"), lambda: trust.check(repeated, "cpu")):
        with pytest.raises(UntrustedBundle, match=f"its version is '1', not '{number}'"):
            read()
    mlflow.MlflowClient().delete_model_version("trust", number)


@pytest.mark.fault("version-renumbered", "registration-interrupted")
def test_a_registration_that_was_killed_before_it_signed_the_number_is_completed(
    trusting: Registry, dataset: Path, candidate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, number = trusting.locations[2], model_registry.get_version("trust-other", "champion-cpu").number
    monkeypatch.setenv(signature.SIGNING_KEY, str(trusting.keys / signature.PRIVATE_FILE))
    content = storage.read(location, manifest.NAME) or b""
    before = signature.sign(content, trust.identity(BundleLocation.parse(location))) or b""
    storage.write(location, signature.NAME, before)
    references.fetch(number, tmp_path / "of-before", "trust-other")
    assert trust.number_of(tmp_path / "of-before", "9") == "9"
    assert trust.check(model_registry.get_version("trust-other", number)).endswith(
        f"without its number: `goemotions keys sign {number}`"
    )
    parts = {"cpu": [CandidateArtifacts.below(candidate, "cpu")]}
    for _ in range(2):
        registration.register(dataset, parts, store=STORE, pipeline_run="trust-other-1", model_name="trust-other")
        references.fetch(number, tmp_path / "completed", "trust-other")
        assert trust.number_of(tmp_path / "completed") == number


def test_what_register_signed_is_served_by_every_reader(trusting: Registry, tmp_path: Path) -> None:
    version, names = references.download("champion-cpu", tmp_path / "out", trusting.name)
    assert version
    assert (tmp_path / "out" / signature.NAME).is_file()
    assert signature.NAME not in names
    assert bundle.load(tmp_path / "out").signature.key == trusting.key
    assert f"signed by the key `{trusting.key}`" in (tmp_path / "out" / bundle.CARD).read_text()
    assert trust.check(version, "cpu") == f"signed by the key {trusting.key}"
    assert len(mlflow.pyfunc.load_model(str(tmp_path / "out")).predict(["the lake"])) == 1
    result = CliRunner().invoke(cli.commands, ["model", "status", "--model-name", trusting.name, "--no-cluster"])
    assert f"version {version.number}: signed by the key {trusting.key}" in result.output


def test_registering_again_finds_the_signed_bundle(
    trusting: Registry, dataset: Path, candidate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(signature.SIGNING_KEY, str(trusting.keys / signature.PRIVATE_FILE))
    parts = {"cpu": [CandidateArtifacts.below(candidate, "cpu")]}
    again = registration.register(dataset, parts, store=STORE, pipeline_run="trust-1", model_name="trust")
    assert again["cpu"]["source"] == trusting.locations[0]


@pytest.mark.fault("bundle-forged")
@pytest.mark.parametrize("changed", ["bundle", "trained"])
def test_metrics_that_were_changed_in_the_store_are_not_registered(
    trusting: Registry, dataset: Path, candidate: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """A step that is retried reads back what its first attempt stored."""
    monkeypatch.setenv(signature.SIGNING_KEY, str(trusting.keys / signature.PRIVATE_FILE))
    run = {"pipeline_run": f"team/trust-{changed}", "model_name": f"trust-{changed}"}
    parts = {"cpu": [CandidateArtifacts.below(candidate, "cpu")]}
    first = registration.register(dataset, parts, store=STORE, **run)["cpu"]
    assert registration.register(dataset, parts, store=STORE, **run)["cpu"]["metrics"] == first["metrics"]
    location, name = {
        "bundle": (first["source"], METRICS_FILE),
        "trained": (layout.trained(STORE, run["pipeline_run"], first["profile"]), f"cpu/{METRICS_FILE}"),
    }[changed]
    storage.write(location, name, json.dumps(first["metrics"] | {"test/f1_macro": 0.999}).encode())
    with pytest.raises(IntegrityError, match=rf"{name} is missing or differs from its manifest"):
        registration.register(dataset, parts, store=STORE, **run)


@pytest.fixture(scope="module")
def uploaded(registry: Registry, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The numbers of versions of a bundle that was uploaded by MLflow's artifact proxy, by how its source is written."""
    forged = forge(whole, tmp_path_factory.mktemp("forged") / "bundle")
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("attack")).info
    with pytest.MonkeyPatch.context() as environment:
        # The proxy needs no keys of the store.
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            environment.delenv(name)
        client.log_artifacts(run.run_id, str(forged), f"models/trust/{run.run_id}/cpu")
    below = f"{run.experiment_id}/{run.run_id}/artifacts/models/trust/{run.run_id}/cpu"
    stored = f"s3://goemotions/mlflow/{below}/"
    assert storage.has(stored, manifest.NAME)
    sources = {
        "proxy": f"mlflow-artifacts:/{below}",
        "run": f"runs:/{run.run_id}/models/trust/{run.run_id}/cpu",
        "store": stored,
    }
    return {
        way: client.create_model_version("trust", source, run.run_id, tags={"variant": "cpu"}).version
        for way, source in sources.items()
    }


@pytest.mark.fault("bundle-forged")
@pytest.mark.parametrize("store", ["", STORE])
@pytest.mark.parametrize("way", ["proxy", "run", "store"])
def test_a_bundle_that_was_uploaded_to_mlflow_is_not_used(
    way: str, store: str, uploaded: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trust.STORE, store)
    monkeypatch.setattr(storage, "fetch_named", lambda *_: pytest.fail("it was downloaded"))
    with champion("trust", uploaded[way]):
        result = CliRunner().invoke(cli.commands, ["predict", "--model-name", "trust", "the lake"])
    assert isinstance(result.exception, UntrustedBundle)
    assert f"version {uploaded[way]} of trust is not used: its source" in str(result.exception)


@pytest.mark.fault("version-forged")
@pytest.mark.parametrize("has_keys", [True, False])
@pytest.mark.parametrize("elsewhere", ["another run", "a bundle", "an alias", "MLflow's artifacts", "a folder"])
def test_a_trained_model_is_not_fetched_from_where_mlflow_alone_says_that_it_is(
    trusting: Registry, whole: Path, tmp_path: Path, elsewhere: str, has_keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The location is a tag of the run, which whoever can write to MLflow can change."""
    if not has_keys:
        monkeypatch.delenv(signature.TRUSTED_KEYS)
    run = next(run for run in tracking.tags_of_runs("trust-2").values() if trained.LOCATION_TAG in run)
    child, profile = trusting.locations[1].split("/")[-3], run[tracking.PROFILE_TAG]
    download = ["model", "download", "--run", "trust-2", "--profile", profile, "--output", str(tmp_path / "out")]
    location = {
        "another run": layout.trained(STORE, "trust-1", profile),
        "a bundle": trusting.locations[0],
        "an alias": "champion-cpu",
        "MLflow's artifacts": layout.trained("s3://goemotions/mlflow/1/artifacts/", "trust-2", profile),
        "a folder": str(whole),
    }[elsewhere]
    client = mlflow.MlflowClient()
    try:
        client.set_tag(child, trained.LOCATION_TAG, location)
        result = CliRunner().invoke(cli.commands, download)
    finally:
        client.set_tag(child, trained.LOCATION_TAG, run[trained.LOCATION_TAG])
    assert isinstance(result.exception, UntrustedBundle), result.output
    assert f"its location '{location}' in MLflow is not " in str(result.exception)
    assert CliRunner().invoke(cli.commands, download).exit_code == 0


def overwritten(trusting: Registry, change: Callable[[Path], None], scratch: Path) -> Iterator[str]:
    """Writes into the store in place of a bundle, as whoever has the key of `models/` can; the original returns at the end."""
    location = trusting.locations[1]
    original = storage.fetch(location, scratch / "original")
    shutil.copytree(original, scratch / "changed")
    change(scratch / "changed")
    storage.remove(location)
    storage.put(scratch / "changed", location)
    yield location
    storage.remove(location)
    storage.put(original, location)


def replaced_by(other: str) -> Callable[[Path], None]:
    """A change that makes a bundle another one, with its signature."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        storage.fetch(other, folder)

    return change


def forge_in_place(folder: Path) -> None:
    shutil.move(folder, folder.with_name("before"))
    forge(folder.with_name("before"), folder)


FORGED = {
    "files and manifest": (forge_in_place, "SIGNATURE.json signs another MANIFEST.json"),
    "no signature": (lambda folder: (folder / signature.NAME).unlink(), "is not signed, and GOEMOTIONS_TRUSTED_KEYS is set"),
    "an older bundle": (lambda folder: replaced_by(LOCATIONS[0])(folder), "holds another bundle: its run_id is"),
    "another model's bundle": (
        lambda folder: replaced_by(LOCATIONS[2])(folder),
        "its model_name is 'trust-other', not 'trust'",
    ),
}
LOCATIONS: list[str] = []


@pytest.mark.fault("bundle-forged")
@pytest.mark.parametrize(
    "forgery",
    [pytest.param(name, marks=[] if name == "files and manifest" else pytest.mark.slow) for name in FORGED],
)
def test_a_bundle_that_others_wrote_into_the_store_is_refused_by_every_reader(
    forgery: str, trusting: Registry, tmp_path: Path
) -> None:
    LOCATIONS[:] = trusting.locations
    change, message = FORGED[forgery]
    with contextlib.contextmanager(overwritten)(trusting, change, tmp_path) as location:
        version = next(
            one for one in (model_registry.get_version("trust", number) for number in ("1", "2")) if one.source == location
        )
        readers: dict[str, Callable[[], object]] = {
            "predict": lambda: CliRunner().invoke(
                cli.commands, ["predict", "--model-name", "trust", "--bundle", version.number, "x"], catch_exceptions=False
            ),
            "serve": lambda: CliRunner().invoke(cli.commands, ["serve", "--bundle", location], catch_exceptions=False),
            "score": lambda: shards.score(planned(version.number, tmp_path)),
            "download": lambda: references.download(version.number, tmp_path / "out", "trust"),
            "promote": lambda: promotion.promote(version.number, model_name="trust"),
            "rollback": lambda: promotion.rollback("cpu", model_name="trust", to=version.number),
            "deploy": lambda: kserve.deploy(version.number, "", "", model_name="trust"),
            "manifest": lambda: isvc.write(copied_manifest(tmp_path), {"goemotions-cpu": version}),
        }
        # Whoever reaches MLflow can write that it was champion before.
        changes.record("trust", version, "promote", "champion-cpu", "")
        for name, read in readers.items():
            with pytest.raises(UntrustedBundle, match=message):
                pytest.fail(f"{name} used it: {read()}")


def planned(number: str, folder: Path) -> str:
    source = folder / "texts"
    source.mkdir()
    (source / "a.csv").write_text("text\nthe lake\n")
    plans.plan(str(source), str(folder / "scored"), number, model_name="trust")
    return str(folder / "scored")


def copied_manifest(folder: Path) -> Path:
    return Path(shutil.copyfile(ROOT / "manifests" / "isvc.yaml", folder / "isvc.yaml"))


def not_signed(folder: Path) -> None:
    """A manifest that nobody signed: what it names may have terabytes, too."""


def larger_file(folder: Path) -> None:
    with (folder / "model.int8.onnx").open("ab") as file:
        file.truncate(2**26)


def large_signature(folder: Path) -> None:
    with (folder / signature.NAME).open("wb") as file:
        file.truncate(2**26)


@pytest.mark.fault("bundle-forged")
@pytest.mark.parametrize(
    ("change", "has_keys", "message"),
    [
        (not_signed, True, "is not signed"),
        (larger_file, False, r"model\.int8\.onnx differs from its manifest"),
        (large_signature, False, r"SIGNATURE\.json has more than 16 MiB"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_of_a_bundle_that_is_refused_nothing_is_copied(
    change: Callable[[Path], None], has_keys: bool, message: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature.create_keys(tmp_path / "keys")
    if has_keys:
        monkeypatch.setenv(signature.TRUSTED_KEYS, str(tmp_path / "keys" / signature.PUBLIC_FILE))
    folder = Path(shutil.copytree(whole, tmp_path / "bundle"))
    change(folder)
    with pytest.raises((IntegrityError, StorageError, UntrustedBundle), match=message):
        references.fetch(str(folder), tmp_path / "copy")
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]


@pytest.mark.fault("bundle-forged")
def test_a_folder_is_refused_without_the_right_signature(
    trusting: Registry, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsigned = Path(shutil.copytree(whole, tmp_path / "bundle"))
    readers: tuple[Callable[[], object], ...] = (
        lambda: Predictor.load(unsigned),
        lambda: mlflow.pyfunc.load_model(str(unsigned)),
        lambda: CliRunner().invoke(
            cli.commands, ["export-hf", str(unsigned), "--output", str(tmp_path / "out")], catch_exceptions=False
        ),
    )
    for read in readers:
        with pytest.raises(UntrustedBundle, match="is not signed"):
            read()
    with pytest.raises(UntrustedBundle, match="is not signed"), references.as_folder(str(unsigned)):
        pass
    monkeypatch.delenv(signature.TRUSTED_KEYS)
    assert str(Predictor.load(unsigned, threads=1).bundle.signature) == "not signed"


def code_in(folder: Path, mark: Path) -> None:
    """Has the MLmodel name a module within the bundle, whose import leaves a mark."""
    (folder / "code").mkdir()
    (folder / "code" / "theirs.py").write_text(f"open({str(mark)!r}, 'w').close()")
    text = (folder / "MLmodel").read_text()
    named = text.replace("loader_module: goemotions.prediction.predictor", "loader_module: theirs\n    code: code")
    assert named != text
    (folder / "MLmodel").write_text(named)


@pytest.mark.fault("bundle-forged")
@pytest.mark.parametrize("has_keys", [True, False])
def test_mlflow_imports_nothing_of_a_bundle_that_is_not_verified(
    trusting: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_keys: bool
) -> None:
    assert len(mlflow_model.load("champion-cpu", trusting.name).predict(["the lake"])) == 1
    original = storage.fetch(trusting.locations[0], tmp_path / "original")
    code_in(original, tmp_path / "imported")
    if not has_keys:
        monkeypatch.delenv(signature.TRUSTED_KEYS)
    with pytest.raises(IntegrityError, match="MLmodel differs from its manifest"):
        mlflow_model.load(str(original))
    with pytest.raises(UntrustedBundle, match="signs another MANIFEST" if has_keys else "MLmodel of .* is not that of this"):
        mlflow_model.load(str(forge(original, tmp_path / "forged")))
    assert not (tmp_path / "imported").exists()


def test_a_bundle_of_before_is_signed_by_hand(
    trusting: Registry, candidate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracking.get_or_create_run("trust-before").run_id
    location = str(BundleLocation(STORE, "trust-before", run, "cpu"))
    assemble(tmp_path / "bundle", candidate, run_id=run)
    storage.put(tmp_path / "bundle", location)
    number = model_registry.get_or_create_version("trust-before", run, location, {"variant": "cpu"}).number
    sign = ["keys", "sign", number, "--model-name", "trust-before"]
    with pytest.raises(UntrustedBundle, match="is not signed"):
        references.fetch(number, tmp_path / "refused", "trust-before")
    assert "GOEMOTIONS_SIGNING_KEY is not set" in str(CliRunner().invoke(cli.commands, sign).exception)
    monkeypatch.setenv(signature.SIGNING_KEY, str(trusting.keys / signature.PRIVATE_FILE))
    assert f"{location}: signed by the key {trusting.key}" in CliRunner().invoke(cli.commands, sign).output
    monkeypatch.delenv(signature.SIGNING_KEY)
    references.fetch(number, tmp_path / "accepted", "trust-before")
    assert trust.number_of(tmp_path / "accepted") == number


def test_a_bundle_of_a_key_that_is_taken_away_is_signed_again(
    trusting: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/security.md describes it: the readers trust both keys until every version that is needed has the new one."""
    signature.create_keys(tmp_path / "new")
    old, new = (folder / signature.PUBLIC_FILE for folder in (trusting.keys, tmp_path / "new"))
    number = model_registry.get_version("trust-other", "champion-cpu").number
    before = references.fetch(number, tmp_path / "0", "trust-other")
    monkeypatch.setenv(signature.TRUSTED_KEYS, new.read_text())
    with pytest.raises(UntrustedBundle, match=f"it names '{trusting.key}'"):
        references.fetch(number, tmp_path / "1", "trust-other")
    monkeypatch.setenv(signature.SIGNING_KEY, str(tmp_path / "new" / signature.PRIVATE_FILE))
    sign = CliRunner().invoke(cli.commands, ["keys", "sign", number, "--model-name", "trust-other"])
    assert sign.exit_code == 0, sign.output
    assert references.fetch(number, tmp_path / "2", "trust-other") == before
    monkeypatch.setenv(signature.TRUSTED_KEYS, old.read_text() + new.read_text())
    references.fetch(number, tmp_path / "3", "trust-other")
    assert promotion.champion("trust-other", "cpu")
    # The others of this file trust the old key.
    monkeypatch.setenv(signature.SIGNING_KEY, str(trusting.keys / signature.PRIVATE_FILE))
    CliRunner().invoke(cli.commands, ["keys", "sign", number, "--model-name", "trust-other"])


def test_the_keys_of_all_versions_are_listed_before_one_is_taken_away(
    trusting: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed() -> list[str]:
        return CliRunner().invoke(cli.commands, ["keys", "list", "--model-name", "trust-other"]).output.splitlines()

    signed = f"version 1 (cpu, champion-cpu): signed by the key {trusting.key}"
    assert listed() == [signed, "trust-other: 0 of 1 versions are refused here"]
    signature.create_keys(tmp_path)
    monkeypatch.setenv(signature.TRUSTED_KEYS, str(tmp_path / signature.PUBLIC_FILE))
    version, last = listed()
    assert version.startswith("version 1 (cpu, champion-cpu): refused: ")
    assert f"it names '{trusting.key}'" in version
    assert last == "trust-other: 1 of 1 versions are refused here"


@pytest.mark.fault("bundle-forged")
def test_of_a_manifest_that_replaces_the_checked_one_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signature.TRUSTED_KEYS, str(tmp_path / "keys" / signature.PUBLIC_FILE))
    signature.create_keys(tmp_path / "keys")
    monkeypatch.setenv(signature.SIGNING_KEY, str(tmp_path / "keys" / signature.PRIVATE_FILE))
    location = BundleLocation(f"{tmp_path}/", "goemotions", RUN, "cpu")
    folder = Path(str(location))
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    manifest.write(folder, run_id=RUN, variant="cpu")
    signature.sign_folder(folder, trust.identity(location))
    assert trust.fetch(str(location), tmp_path / "copy")["run_id"] == RUN
    check = trust.stored

    def replaced(place: str) -> object:
        checked = check(place)
        (folder / "a.json").write_text("x" * 1000)
        (folder / "another.json").write_text("x" * 1000)
        manifest.write(folder, run_id=RUN, variant="cpu")
        return checked

    monkeypatch.setattr(trust, "stored", replaced)
    with pytest.raises(IntegrityError, match=r"a\.json differs from its manifest"):
        trust.fetch(str(location), tmp_path / "again")
    assert not [path for path in tmp_path.joinpath("again").rglob("*") if path.is_file()]


@pytest.mark.fault("bundle-forged")
def test_a_bundle_that_lies_in_wait_is_not_adopted_by_register(
    trusting: Registry, dataset: Path, candidate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracking.get_or_create_run("trust-waiting", "minilm").run_id
    assemble(tmp_path / "bundle", candidate, run_id=run)
    storage.put(tmp_path / "bundle", str(BundleLocation(STORE, "trust-waiting", run, "cpu")))
    monkeypatch.setenv(signature.SIGNING_KEY, str(trusting.keys / signature.PRIVATE_FILE))
    parts = {"cpu": [CandidateArtifacts.below(candidate, "cpu")]}
    with pytest.raises(UntrustedBundle, match="is not signed"):
        registration.register(dataset, parts, store=STORE, pipeline_run="trust-waiting", model_name="trust-waiting")
    with pytest.raises(ModelError, match="has no version or alias"):
        model_registry.get_version("trust-waiting", "1")


@pytest.mark.fault("bundle-forged")
def test_a_version_of_another_run_than_its_bundle_is_refused(trusting: Registry, tmp_path: Path) -> None:
    run = tracking.get_or_create_run("trust-elsewhere").run_id
    number = mlflow.MlflowClient().create_model_version("trust", trusting.locations[0], run, tags={"variant": "cpu"}).version
    with pytest.raises(UntrustedBundle, match=f"its run_id is '.*', not '{run}'"):
        references.fetch(number, tmp_path / "out", "trust")
