"""Write the performance report."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def report(
    dataset: Input[Dataset],
    models: Input[list[Model]],
    onnx: Input[list[Model]],
    gpu_validation: Input[list[Artifact]],
    gpu_test: Input[list[Artifact]],
    gpu_thresholds: Input[list[Artifact]],
    cpu_validation: Input[list[Artifact]],
    cpu_test: Input[list[Artifact]],
    cpu_thresholds: Input[list[Artifact]],
    registered: Input[Artifact],
    pipeline_run: str,
    page: Output[HTML],
    text: Output[Markdown],
) -> None:
    """Writes the report as an HTML and a Markdown artifact, and logs both and the CSV to the pipeline's MLflow run."""
    import json
    import shutil
    import tempfile
    from pathlib import Path

    from goemotions import registration, tracking
    from goemotions import report as reporting

    parts = registration.gather(
        models, onnx, {"gpu": (gpu_validation, gpu_test, gpu_thresholds), "cpu": (cpu_validation, cpu_test, cpu_thresholds)}
    )
    found = json.loads((Path(registered.path) / "registered.json").read_text())
    with tempfile.TemporaryDirectory() as scratch, tracking.step(pipeline_run) as run:
        folder = reporting.write(Path(dataset.path), parts, Path(scratch), found)
        for file in folder.iterdir():
            run.log_file(file, "report")
        shutil.copyfile(folder / "report.html", page.path)
        shutil.copyfile(folder / "report.md", text.path)
