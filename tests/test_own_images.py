"""The commands on images of one's own: train a folder, predict, resume, sample by name."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import scnf as package
from conftest import TINY_DIGITS
from scnf.data.decode import Preprocessing
from scnf.data.folder import Reading, load_folder
from scnf.runs import Run

SMALL = [*TINY_DIGITS, "--passes", "1", "--epochs", "1"]
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
    assert "note: skipped 1 file (unlabelled/broken.png: " in outcome.err
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open(encoding="utf-8")))
    assert [*rows[0]] == ["file", "class", "confidence", "p(day)", "p(nuit, étoilée)", "log_prob", "unusual"]
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
    assert "200 vectors of 3 numbers in" in outcome.out and "scnf-vectors" in outcome.out
    outcome = scnf("predict last", tmp_path / "points.npz")
    assert outcome.code == 0 and "200 images" not in outcome.err


ROWS = "0.png,cat\n1.png,dog\n"
FOLDERS: dict[str, tuple[dict[str, str | bytes | tuple[int, int]], str]] = {
    "no images": ({"a.txt": "x"}, "data.root holds no images (png, jpg"),
    "one class": ({"cat/0.png": (8, 8)}, "data.root needs two classes or more and has one, 'cat'"),
    "no labels": ({"0.png": (8, 8)}, "data.root holds no labels: put the images of each class into a folder"),
    "unknown files": (
        {"0.png": (8, 8), "labels.csv": "file,label\n" + ROWS},
        "lists files that do not exist (1): 1.png",
    ),
    "two labels": ({"0.png": (8, 8), "labels.csv": "file,label\n0.png,cat\n0.png,dog\n"}, "twice and differently"),
    "another delimiter": ({"0.png": (8, 8), "labels.csv": "file|label\n0.png|cat\n"}, "not 'file|label'"),
    "both conventions": (
        {"cat/0.png": (8, 8), "dog/0.png": (8, 8), "3_0.png": (8, 8)},
        "with a number prefix (3_0.png)",
    ),
    "small images": (
        {"cat/0.png": (5, 5), "dog/0.png": (7, 9)},
        "(cat/0.png: it has 5x5 pixels (height x width), less",
    ),
    "unreadable files": (
        {"cat/0.png": b"x", "dog/0.png": b""},
        "holds no image that can be decoded: skipped 2 files (",
    ),
    "names that differ in case": ({"cat/0.png": (8, 8), "Cat/0.png": (8, 8)}, "'Cat' and 'cat', which are easily"),
    "names that differ in encoding": (
        {"caf\u00e9/0.png": (8, 8), "cafe\u0301/0.png": (8, 8)},
        "which are easily confused: give them one name",
    ),
}


def write_folder(root: Path, files: Mapping[str, str | bytes | tuple[int, int]]) -> None:
    """Write files by name, with a text, bytes, or an image of a height and width for content."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            Image.new("RGB", content[::-1]).save(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(("files", "message"), FOLDERS.values(), ids=FOLDERS)
def test_train_command_on_an_unusable_folder_says_what_to_do(
    scnf: Callable[..., Any], tmp_path: Path, image_cache: Path, files: Any, message: str
) -> None:
    write_folder(tmp_path / "bad", files)
    outcome = scnf("train bad", *SMALL)
    assert outcome.code == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert message in outcome.err and "\\n" not in outcome.err and not (tmp_path / "logs").exists()


USABLE: dict[str, tuple[dict[str, str | bytes | tuple[int, int]], str]] = {
    "a class with one label": ({"fox/0.png": (8, 8)}, "note: fox has fewer than two labels"),
    "more classes than labels": (
        {"labels.csv": "\ufefffile;label\r\n" + "".join(f"{i}.png;{i}\r\n" for i in range(6)), "6.png": (8, 8)}
        | {f"{i}.png": (8, 8) for i in range(6)},
        "note: 0, 1, 2, 3, 4, 5 have fewer than two labels",
    ),
    "a class with a line end": ({"a\nb/0.png": (8, 8)}, r"25 labels (a\nb 1, day 12, nuit, étoilée 12)"),
    "damaged files": ({"day/broken.png": b"\x89PNG"}, "skipped 1 file (day/broken.png: it is not an image of a known"),
}


@pytest.mark.parametrize(("files", "note"), USABLE.values(), ids=USABLE)
def test_train_command_says_what_is_odd_of_a_usable_folder(
    scnf: Callable[..., Any], tmp_path: Path, photos: Path, files: Any, note: str
) -> None:
    root = tmp_path / "new" if "labels.csv" in files else photos
    write_folder(root, files)
    outcome = scnf("train", root, *SMALL, "--max_steps 1")
    assert outcome.code == 0 and note in outcome.out, outcome.err + outcome.out


def test_predict_and_evaluate_commands_say_what_is_converted(
    scnf: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    assert scnf("train photos", *SMALL, "--max_steps 1").code == 0
    write_folder(tmp_path / "new", {"day/0.png": (20, 30), "day/1.png": (8, 8), "day/2.png": (5, 5)})
    Image.new("L", (8, 9)).save(tmp_path / "new" / "day" / "grey.png")
    Image.new("1", (11000, 10000)).save(tmp_path / "new" / "day" / "large.png")
    note = (
        "2 images are resized to 8x8 (height x width), and cropped to the centre; 1 image becomes RGB (greyscale 1)\n"
    )
    for command in ("predict", "evaluate"):
        outcome = scnf(command, "last new")
        assert outcome.code == 0 and note in outcome.err, outcome.err
        assert "skipped 2 files (" in outcome.err and "more than 100 megapixels" in outcome.err
        assert "Warning" not in outcome.err
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 20, 30), np.uint8))
    assert (
        "3 images are resized to 8x8 (height x width), and cropped to the centre; 3 images"
        in scnf("predict last a.npz").err
    )
    assert scnf("predict last photos").err == ""


def test_evaluate_command_takes_files_of_one_class(scnf: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    assert scnf("train photos", *SMALL, "--max_steps 1").code == 0
    write_folder(tmp_path / "one", {"day/0.png": (8, 8), "day/1.png": (8, 8)})
    np.savez(tmp_path / "one.npz", x=np.zeros((2, 8, 8, 3), np.uint8), y=["day", "day"])
    for files in ("one", "one.npz"):
        outcome = scnf("evaluate last --classes", files)
        assert outcome.code == 0 and outcome.out.startswith("files       accuracy"), outcome.err


def test_train_command_knows_arguments_of_the_recipe_that_it_chooses(
    scnf: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    outcome = scnf("train photos --model.semantic_share 0.5 --model.channels 8 --print_config")
    assert outcome.code == 0 and "recipe: scnf-digits" in outcome.out and "semantic_share: 0.5" in outcome.out
    outcome = scnf("train photos --model.hidden 8")
    assert outcome.code == 2 and "the recipe scnf-digits takes no argument 'hidden'" in outcome.err
    for word, message in (("--model.semantic_hsare 1", "did you mean"), ("--epoch 1", "did you mean train.epochs?")):
        outcome = scnf("train photos", word)
        assert outcome.code == 2 and message in outcome.err and not outcome.out  # before images are decoded


def test_train_command_moves_no_images_where_nothing_learns_from_them(
    scnf: Callable[..., Any], photos: Path, last_run: Callable[[], Run]
) -> None:
    words = "train photos --model.channels 8 --model.steps 1 --max_steps 1 --threads 1 --ema 0 --consistency_weight 0"
    outcome = scnf(words, "--classifier_weight 0")
    assert outcome.code == 0 and "data.augment" not in outcome.out, outcome.err
    assert "augment: 0.0" in (last_run().path / "config.yaml").read_text()
    outcome = scnf(words, "--classifier_weight 0 --augment 1")
    assert outcome.code == 2 and "moved images count in cross-entropies alone" in outcome.err
    assert "data.augment 0.5" in scnf(words, "--classifier_weight 1").out


def test_runs_command_shows_the_folder_and_the_number_of_labels(scnf: Callable[..., Any], photos: Path) -> None:
    assert scnf("train photos", *SMALL, "--max_steps 1").code == 0
    assert "  photos      24  " in scnf("runs").out
    assert "000001" in scnf("runs --where data=photos --where labels=24").out


def test_wrong_value_in_a_file_of_settings_names_the_file(scnf: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "data: {name: digits}\ntrain: {lr: abc}\nmodel: {recipe: scnf-digits, blocks: 3}\n"
    )
    assert "error: c.yaml: wrong setting: train.lr must be a number" in scnf("train --config c.yaml").err
    assert "error: c.yaml: wrong setting: model.blocks has an effect" in scnf("train --config c.yaml --lr 1").err
    assert "error: wrong setting: train.lr must be" in scnf("train --config c.yaml --lr xyz").err


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
        ("predict scnf-digits vectors.npz", "vectors.npz must hold images, as the model takes, not vectors"),
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
    for name, value in {
        "XDG_CACHE_HOME": str(tmp_path / "caches"),
        "SCNF_NATIVE": "0",
        "MALLOC_ARENA_MAX": "1",
    }.items():
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
    words += ["--num_validation", "4", "--select", "last", "--max_steps", "1", "--ema", "0", "--baseline", "false"]
    words += ["--conditional_hidden", "1", "--model.channels", "1", "--detail_channels", "1", "--detail_steps", "1"]
    process = start("-c", LIMITED, str(pixels.nbytes + 330 * 2**20), *words)  # 212 MiB for the pixels, 220 for others
    assert process.wait() == 0, process.stderr.read()


def test_train_command_goes_on_with_weights_on_arrays_and_keeps_their_augmentation(
    scnf: Callable[..., Any], tmp_path: Path, last_run: Callable[[], Run]
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "arrays.npz", x=x, y=np.where(np.arange(60) < 30, np.arange(60) % 3, -1))
    words = [*SMALL, "--classifier_weight 1 --augment 0.7 --augmentation photo"]
    assert scnf("train arrays.npz", *words).code == 0
    outcome = scnf("train arrays.npz --pretrained last --passes 1 --epochs 1 --max_steps 1 --threads 1")
    assert outcome.code == 0, outcome.err
    text = (last_run().path / "config.yaml").read_text()
    assert "augment: 0.7" in text and "augmentation: photo" in text


def test_train_command_chooses_no_arguments_for_a_recipe_that_is_named(
    scnf: Callable[..., Any], tmp_path: Path
) -> None:
    np.savez(tmp_path / "points.npz", x=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40) % 2)
    outcome = scnf("train points.npz --recipe scnf-reader --max_steps 1")
    assert outcome.code == 2 and "for points use the recipe" in outcome.err
    outcome = scnf("train points.npz --recipe scnf-toy --lr 0.003 --max_steps 1 --threads 1")
    assert outcome.code == 0, outcome.err
    chosen = next(line for line in outcome.out.splitlines() if line.startswith("chosen for these data: "))
    assert "model." not in chosen and "train.lr" not in chosen and "data.augment 1" in chosen


def test_vectors_refuse_the_augmentation_of_images(scnf: Callable[..., Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", x=np.eye(4), y=np.arange(4) % 2)
    outcome = scnf("train v.npz --augmentation photo")
    assert outcome.code == 2 and "data.augmentation has an effect on images alone" in outcome.err
    assert not (tmp_path / "logs").exists()
    outcome = scnf("train v.npz --augmentation affine --max_steps 2 --threads 1")
    assert outcome.code == 0 and "image" not in outcome.out, outcome.err


def deep_folder(folder: Path) -> None:
    """Make a folder below which nothing can be read, for its path is longer than systems take."""
    place = os.open(folder, os.O_RDONLY)
    for _ in range(18):
        os.mkdir(250 * "d", dir_fd=place)
        below = os.open(250 * "d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)


@pytest.mark.skipif(sys.platform != "linux", reason="PATH_MAX differs")
def test_command_names_folders_that_cannot_be_read(scnf: Callable[..., Any], photos: Path) -> None:
    deep_folder(photos / "day")
    message = "cannot be read: File name too long"
    assert message in scnf("train photos", *SMALL, "--max_steps 1").out
    for words in ("predict last photos", "evaluate last photos", "suggest last photos --num 2 --labels new.csv"):
        outcome = scnf(words)
        assert outcome.code == 0 and message in outcome.err, (words, outcome.err)
    outcome = scnf("train photos --data.strict true")
    assert outcome.code == 2 and "data.strict is set, and skipped 1 file (day/dd" in outcome.err


def test_predict_command_takes_several_files_and_replaces_no_list(
    scnf: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    assert scnf("train photos", *SMALL, "--max_steps 1").code == 0
    files = sorted((photos / "unlabelled").iterdir())[:3]
    outcome = scnf("predict", "last", *files, files[0], photos / "day")
    assert outcome.code == 0 and outcome.out.startswith("15 images: "), outcome.err
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open(encoding="utf-8")))
    assert [row["file"] for row in rows[:3]] == [f"unlabelled/{file.name}" for file in files]
    text = "file,label\n" + "".join(f"{file},\n" for file in files)
    (tmp_path / "list.csv").write_text(text)
    outcome = scnf("predict last list.csv --out ./list.csv")
    assert outcome.code == 2 and "would replace the list of images" in outcome.err
    assert (tmp_path / "list.csv").read_text() == text
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 8, 8, 3), np.uint8))
    assert "an .npz file stands alone" in scnf("predict last a.npz photos").err


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8")
def test_predict_command_escapes_a_name_that_is_not_utf_8(
    scnf: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    assert scnf("train photos", *SMALL, "--max_steps 1").code == 0
    os.rename(photos / "day" / "0.png", os.fsencode(photos / "day") + b"/\xff.png")
    for out in ("a.csv", "a.jsonl"):
        assert scnf("predict last photos --out", out).code == 0
        assert "day/\\udcff.png" in (tmp_path / out).read_text(encoding="utf-8")
    outcome = scnf("suggest last", photos / "day", "--num 2 --labels new.csv")
    assert outcome.code == 0, outcome.err


def test_evaluate_and_calibrate_commands_warn_of_the_rows_of_the_training(
    scnf: Callable[..., Any], photos: Path
) -> None:
    assert scnf("train photos", *SMALL, "--max_steps 1").code == 0
    note = f"note: the model has learned the labels of {photos}: it is worse on new images"
    for words in ("evaluate last", "calibrate last --labels"):
        assert note in scnf(words, photos).err
        assert note not in scnf(words, photos / "day").err
