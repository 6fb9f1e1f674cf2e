"""The commands on images of one's own: train a folder, predict, resume, sample by name."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import scnf as package
from conftest import TINY
from scnf.data.decode import Preprocessing
from scnf.data.folder import Reading, load_folder
from scnf.runs import Run

SMALL = [
    *TINY[TINY.index("--batch_size") :],
    *["--recipe", "scnf-digits", "--model.channels", "8", "--model.steps", "1", "--conditional_hidden", "8"],
    *["--passes", "1", "--epochs", "1", "--flip", "false"],
]
"""A model that trains in no time."""


def test_train_command_on_a_folder_chooses_and_keeps_everything(
    scnf: Callable[..., Any], photos: Path, last_run: Callable[[], Run]
) -> None:
    outcome = scnf("train photos", *SMALL)
    assert outcome.code == 0, outcome.err
    for line in (
        "chosen for these data: data.num_labels all, data.num_validation 0, train.select last",
        f"54 images in {photos}, labels from class folders",
        "24 labels (day 12, nuit, étoilée 12), 30 images without a label, no test images",
        "on photos, 24 labelled of 54 training rows",
        "no validation",
        "test        no rows",
    ):
        assert line in outcome.out
    run = last_run()
    assert run.read_json("summary.json")["status"] == "finished" and run.name == "photos-scnf-digits"
    assert run.read_json("inputs.json")["class_names"] == ["day", "nuit, étoilée"]
    text = (run.path / "config.yaml").read_text()
    assert f"root: {photos}" in text and "channels: 3" in text and "nuit, étoilée" in text
    assert (run.path / "samples.png").is_file()


def test_train_command_resumes_on_the_same_folder(scnf: Callable[..., Any], photos: Path) -> None:
    assert scnf("train photos", *SMALL, "--epochs 3 --max_steps 1").code == 0
    assert "resuming after" in scnf("train --resume last --max_steps 2").out
    Image.new("RGB", (8, 8)).save(photos / "day" / "new.png")
    outcome = scnf("train --resume last --max_steps 3")
    assert outcome.code == 2 and "another label split" in outcome.err


def test_train_command_takes_a_configuration_for_a_folder(scnf: Callable[..., Any], photos: Path) -> None:
    outcome = scnf("train photos --config digits.yaml --num_labels all --num_validation 4 --max_steps 1", *SMALL)
    assert outcome.code == 0, outcome.err
    assert "20 labelled of 50 training rows" in outcome.out and "validation  accuracy" in outcome.out


def test_predict_command_writes_a_line_for_each_image(scnf: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    assert scnf("train photos", *SMALL, "--epochs 3 --classifier_weight 10").code == 0
    (photos / "unlabelled" / "broken.png").write_bytes(b"\x89PNG")
    Image.new("L", (30, 20), 255).save(photos / "unlabelled" / "grey.jpg")
    outcome = scnf("predict last photos")
    assert outcome.code == 0 and "55 images: " in outcome.out and "predictions.csv" in outcome.out
    assert "note: skipped 1 files (broken.png: " in outcome.err
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open(encoding="utf-8")))
    assert [*rows[0]] == ["file", "class", "confidence", "p(day)", "p(nuit, étoilée)", "log_prob"]
    assert len(rows) == 55 and {"day/0.png", "unlabelled/grey.jpg"} <= {row["file"] for row in rows}
    model = package.load("last", tmp_path / "logs")
    for row in rows[::16]:
        posterior = model.predict_proba(photos / row["file"])[0]
        np.testing.assert_allclose([float(row["p(day)"]), float(row["p(nuit, étoilée)"])], posterior, atol=1e-4)
        assert row["class"] == model.predict(photos / row["file"])[0]
        assert abs(float(row["log_prob"]) - model.log_prob(photos / row["file"])[0]) < 0.1


def test_predict_command_reads_arrays_files_and_lists(scnf: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    assert scnf("train photos", *SMALL, "--max_steps 1").code == 0
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 8, 8, 3), np.uint8))
    (tmp_path / "list.csv").write_text("file,label\nphotos/unlabelled/0.png,\nphotos/unlabelled/1.png,\n")
    for path, number in (("a.npz", 3), ("list.csv", 2), ("photos/unlabelled/0.png", 1)):
        outcome = scnf("predict last", path, "--out lines.jsonl")
        assert outcome.code == 0, outcome.err
        lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
        assert len(lines) == number and set(lines[0]["p"]) == {"day", "nuit, étoilée"}
        assert lines[0]["confidence"] == max(lines[0]["p"].values())


def test_sample_command_knows_classes_by_name(scnf: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    assert scnf("train photos", *SMALL, "--max_steps 1").code == 0
    for path in sorted(photos.rglob("*.png")):
        path.unlink()  # samples need no data
    arguments = ["sample", "last", "--label", "nuit, étoilée", "--num", "4", "--out", "night.png"]
    assert package.cli.main(arguments) == 0 and (tmp_path / "night.png").is_file()
    outcome = scnf("sample last --label cloudy")
    assert outcome.code == 2 and "--label must be one of the classes day, nuit, étoilée, not 'cloudy'" in outcome.err


def test_vectors_of_an_array_file_train(scnf: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    labels = np.where(rng.random(200) < 0.2, y, -1)
    np.savez(tmp_path / "points.npz", x=rng.normal(size=(200, 3)) + 4 * y[:, None], y=labels)
    outcome = scnf("train points.npz --model.channels 8 --model.steps 1 --max_steps 2 --threads 1")
    assert outcome.code == 0, outcome.err
    assert "200 vectors of 3 numbers in" in outcome.out and "scnf-toy" in outcome.out
    outcome = scnf("predict last", tmp_path / "points.npz")
    assert outcome.code == 0 and "200 images" not in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train nowhere", "there is no folder or file nowhere: `scnf train FOLDER` trains on your own images"),
        ("train empty", "data.root holds no images (png, jpg"),
        ("train photos.zip", "data.root is an archive"),
        ("train photos --resume last", "--resume continues with the data of its run: leave photos out"),
        ("train photos --data.size [8]", "data.size must be one number, or height and width, not [8]"),
        ("train photos --data.size 4", "data.size must be between 8 and 4096, not 4"),
        ("train photos --data.channels 2", "data.channels must be 1 (greyscale) or 3 (RGB), not 2"),
        ("train photos --data.background nocolour", "data.background must be the name of a colour"),
        ("train photos --data.classes [a,b]", "data.classes must hold every class of"),
        ("train photos --num_labels 30", "data.num_labels asks for 30 labels and the data has 24 rows with a label"),
        ("train photos --num_validation 24 --select accuracy", "data.num_validation must be between 0 and 23, not 24"),
        ("train photos --num_validation 0 --select accuracy", "there are no validation rows to select weights by"),
        ("train --config digits.yaml --data.size 8", "data.size has an effect with data.name folder alone"),
        ("predict scnf-digits nowhere", "nowhere does not exist"),
        ("predict scnf-digits empty", "empty holds no images"),
        ("predict scnf-digits photos --out a.txt", "predictions are written as .csv or .jsonl"),
        ("predict scnf-digits vectors.npz", "vectors.npz does not fit the model, which takes rows of shape [1, 8, 8]"),
        ("predict scnf-digits", "the following arguments are required: IMAGES"),
    ],
)
def test_command_on_unusable_images_says_what_to_do(
    scnf: Callable[..., Any], photos: Path, tmp_path: Path, words: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos.zip").write_bytes(b"PK")
    np.savez(tmp_path / "vectors.npz", x=np.zeros((2, 3)))
    outcome = scnf(words)
    assert outcome.code == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert message in outcome.err and not (tmp_path / "logs").exists()


LIMITED = """
import os, re, resource, sys
from pathlib import Path

import scnf.commands.train, scnf.fitting.course, scnf.cli

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a thread for each processor has a stack of its own
used = 1024 * int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[1]),) * 2)
sys.exit(scnf.cli.main(sys.argv[2:]))
"""
"""A command in a process that may take so many bytes, among which mapped files count."""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_training_reads_its_rows_from_the_cache_without_a_copy_of_them(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"XDG_CACHE_HOME": str(tmp_path), "SCNF_NATIVE": "0", "MALLOC_ARENA_MAX": "1"}.items():
        monkeypatch.setenv(name, value)
    rng = np.random.default_rng(0)
    for name, number in (("cat", 20), ("dog", 20), ("unlabelled", 8000)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), np.uint8)).save(folder / "0.bmp")
        for index in range(1, number):
            os.link(folder / "0.bmp", folder / f"{index}.bmp")
    pixels = load_folder(tmp_path / "photos", Reading(Preprocessing((96, 96)))).train_x  # decodes into the cache
    words = ["train", "photos", *SMALL, "--data.size", "96", "--batch_size", "2", "--labelled_share", "0.5"]
    words += ["--num_validation", "4", "--select", "last", "--max_steps", "1", "--ema", "0"]
    words += ["--conditional_hidden", "1", "--model.channels", "1", "--detail_channels", "1", "--detail_steps", "1"]
    process = start("-c", LIMITED, str(pixels.nbytes + 270 * 2**20), *words)  # 212 MiB for the pixels, 160 for others
    assert process.wait() == 0, process.stderr.read()
