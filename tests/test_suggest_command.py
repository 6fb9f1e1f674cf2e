"""The round of labelling by commands: train, suggest, fill in labels, go on with them, check labels."""

import csv
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import scnf as package
from conftest import TINY
from scnf.runs import Run

SMALL = [
    *TINY[TINY.index("--batch_size") : TINY.index("--augment")],
    *["--recipe", "scnf-digits", "--model.channels", "8", "--model.steps", "1", "--conditional_hidden", "8"],
    *["--passes", "1", "--epochs", "1", "--device", "cpu", "--threads", "1"],
]
"""A model that trains in no time."""
SHORT = ["--passes", "1", "--epochs", "1", "--device", "cpu", "--threads", "1", "--runs.root", "logs"]
"""What a training with the model of another run needs to be short."""


@pytest.fixture
def trained(scnf: Callable[..., Any], photos: Path) -> Path:
    """The photos, on which a run has trained."""
    assert scnf("train photos", *SMALL).code == 0
    return photos


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8", newline="")))


def fill_in(path: Path, label_of: Callable[[str], str]) -> None:
    """Write a label beside each file of a table."""
    rows = rows_of(path)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "label"])
        writer.writeheader()
        writer.writerows({"file": row["file"], "label": row["label"] or label_of(row["file"])} for row in rows)


def true_label(file: str) -> str:
    return "day" if int(Path(file).stem) % 2 else "nuit, étoilée"


def test_suggest_command_lists_draws_and_writes_files_to_label(
    scnf: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    outcome = scnf("suggest last photos --num 5")
    assert outcome.code == 0, outcome.err
    assert "5 of 30 images without a label, by diverse:" in outcome.out
    assert "scnf train photos --labels labels.csv --pretrained last" in outcome.out
    rows = rows_of(tmp_path / "labels.csv")
    assert len(rows) == 5 and all(row["file"].startswith("unlabelled/") and not row["label"] for row in rows)
    posterior = package.load("last").predict_proba(trained / rows[0]["file"])[0]
    line = next(line for line in outcome.out.splitlines() if line.startswith(rows[0]["file"]))
    assert f"{-(posterior * np.log(posterior)).sum():.2f}" in line and f"{posterior.max():.2f}" in line
    with Image.open(tmp_path / "suggestions.png") as picture:
        assert min(picture.size) > 50
    assert (
        scnf("suggest last photos --num 5").out.replace("0 lines added, 5 were there", "5 lines added") == outcome.out
    )


@pytest.mark.parametrize("by", ["entropy", "margin"])
def test_suggest_command_orders_files_by_the_criterion(
    scnf: Callable[..., Any], trained: Path, tmp_path: Path, by: str
) -> None:
    assert scnf(f"suggest last photos --num 4 --by {by}").code == 0
    files = sorted((trained / "unlabelled").glob("*.png"))
    top = np.sort(package.load("last").predict_proba(files), axis=1)
    order = np.argsort(top[:, 1] - top[:, 0], kind="stable")[:4]  # of two classes, both criteria have one order
    assert {row["file"] for row in rows_of(tmp_path / "labels.csv")} == {f"unlabelled/{files[i].name}" for i in order}


def test_suggest_command_keeps_labels_that_are_filled_in_and_suggests_others(
    scnf: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    assert scnf("suggest last photos --num 3").code == 0
    fill_in(tmp_path / "labels.csv", true_label)
    before = (tmp_path / "labels.csv").read_text()
    outcome = scnf("suggest last photos --num 3")
    assert "3 of 27 images without a label" in outcome.out and "3 lines added" in outcome.out
    rows = rows_of(tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_text().startswith(before) and len({row["file"] for row in rows}) == 6
    (tmp_path / "labels.csv").write_text("name\n1.png\n")
    outcome = scnf("suggest last photos")
    assert outcome.code == 2 and "--labels needs the header file,label" in outcome.err
    assert (tmp_path / "labels.csv").read_text() == "name\n1.png\n"


def test_training_goes_on_with_the_labels_of_a_table(
    scnf: Callable[..., Any], trained: Path, tmp_path: Path, last_run: Callable[[], Run]
) -> None:
    assert scnf("suggest last photos --num 6").code == 0
    fill_in(tmp_path / "labels.csv", true_label)
    first = last_run()
    outcome = scnf("train photos --labels labels.csv --pretrained last", *SHORT)
    assert outcome.code == 0, outcome.err
    assert (
        "30 labelled of 54 training rows" in outcome.out
        and f"those of {first.path.relative_to(tmp_path)}" in outcome.out
    )
    run = last_run()
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["data"]["labels"] == str(tmp_path / "labels.csv") and config["model"]["channels"] == 8
    assert config["pretrained"].startswith(f"logs/{first.path.name}/model.safetensors#sha256=")
    assert scnf(f"train --resume last --max_steps {run.read_json('summary.json')['steps'] + 1} --epochs 2").code == 0


def test_training_of_a_list_takes_labels_without_pretrained_weights(
    scnf: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "more.csv").write_text("file,label\nunlabelled/1.png,day\nunlabelled/2.png,dusk\n")
    outcome = scnf("train photos --labels more.csv", *SMALL)
    assert outcome.code == 0 and "more.csv adds the classes 'dusk'" in outcome.out
    assert "26 labels (day 13, dusk 1, nuit, étoilée 12)" in outcome.out


def test_labels_option_of_a_folder_names_the_table_for_every_recipe(
    scnf: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "more.csv").write_text("file,label\nunlabelled/1.png,day\n")
    recipe = "--recipe m2 --hidden 8 --latent 2 --likelihood logistic --max_steps 1 --threads 1"
    assert "more.csv" in scnf(f"train photos --labels=more.csv --model.labels gumbel {recipe}").out


def test_suggest_command_on_the_unlabelled_folder_goes_on_with_the_whole_one(
    scnf: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    outcome = scnf("suggest last photos/unlabelled --num 2")
    assert outcome.code == 0 and "\n  scnf train photos --labels labels.csv --pretrained last\n" in outcome.out
    fill_in(tmp_path / "labels.csv", true_label)
    outcome = scnf("suggest last photos/unlabelled --num 1")
    assert "1 of 28 images without a label" in outcome.out and "labels.csv: 1 line added." in outcome.out
    outcome = scnf("train photos --labels labels.csv --pretrained last --max_steps 1", *SHORT)
    assert outcome.code == 0 and "26 labels (day" in outcome.out, outcome.err


def test_suggest_command_on_images_from_elsewhere_says_what_the_training_needs(
    scnf: Callable[..., Any], trained: Path
) -> None:
    (trained / "unlabelled").rename(trained.parent / "new")
    outcome = scnf("suggest last new --num 1")
    assert "  scnf train FOLDER --labels labels.csv --pretrained last\n" in outcome.out, outcome.err
    assert "where FOLDER holds these images and those with a label" in outcome.out


def test_suggest_check_lists_the_wrong_label_first(scnf: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    (photos / "day" / "3.png").rename(photos / "nuit, étoilée" / "wrong.png")
    assert scnf("train photos", *SMALL, "--epochs 6 --classifier_weight 10").code == 0
    outcome = scnf("suggest last photos --check --num 3")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "3 of 24 labels, the most doubtful first:" and lines[2].startswith("nuit, étoilée/wrong.png")
    assert (tmp_path / "doubts.png").is_file() and not (tmp_path / "labels.csv").exists()


def test_suggest_command_reads_arrays(scnf: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=["day"] * 4 + ["nuit, étoilée"] * 4 + [""] * 12)
    outcome = scnf("suggest last a.npz --num 3 --labels rows.csv")
    assert outcome.code == 0 and "3 of 12 images" in outcome.out
    assert {int(row["file"]) for row in rows_of(tmp_path / "rows.csv")} <= set(range(8, 20))
    np.savez(tmp_path / "b.npz", x=x)
    assert "2 of 20 images" in scnf("suggest last b.npz --num 2 --labels b.csv").out
    outcome = scnf("suggest last a.npz --check")
    assert outcome.code == 0 and "8 of 8 labels" in outcome.out


def test_suggest_command_reads_vectors_without_a_picture(scnf: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = rng.normal(size=(200, 3)) + 4 * y[:, None]
    np.savez(tmp_path / "points.npz", x=x, y=np.where(rng.random(200) < 0.2, y, -1))
    assert scnf("train points.npz --model.channels 8 --model.steps 1 --max_steps 2 --threads 1").code == 0
    outcome = scnf("suggest last points.npz --num 3")
    assert outcome.code == 0 and "image" not in outcome.out and outcome.out.splitlines()[1].startswith("row ")
    assert re.match("3 of [0-9]+ vectors without a label", outcome.out)
    assert "labelled vectors that have this label" in scnf("suggest last points.npz --check").out
    assert "give these rows their class in y of points.npz" in outcome.out
    assert not (tmp_path / "labels.csv").exists() and not (tmp_path / "suggestions.png").exists()


def test_suggest_command_leaves_test_images_and_damaged_files_out(
    scnf: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    lines = [f"unlabelled/{i}.png,,{'test' if i < 5 else 'train'}" for i in range(8)]
    lines += ["day/0.png,day,test", '"nuit, étoilée/0.png","nuit, étoilée",test']
    (trained / "unlabelled" / "7.png").write_bytes(b"\x89PNG")
    (trained / "list.csv").write_text("\n".join(["file,label,split", *lines, ""]))
    outcome = scnf("suggest last photos/list.csv")
    assert outcome.code == 0, outcome.err
    assert "2 of 2 images without a label" in outcome.out and "skipped 1 file (unlabelled/7.png" in outcome.err
    assert {row["file"] for row in rows_of(tmp_path / "labels.csv")} == {"unlabelled/5.png", "unlabelled/6.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("suggest last nowhere", "nowhere does not exist"),
        ("suggest last photos --num 0", "--num: it must be a whole number"),
        ("suggest last photos --by chance", "--by: invalid choice"),
        ("suggest last photos --out a.npz", "--out: pictures are written as PNG: name the file a.png"),
        ("suggest last photos --labels photos/labels.csv", "would take the place of the labels of the folder photos"),
        ("suggest last done.csv", "all images of done.csv have a label: there is nothing to suggest"),
        ("suggest last photos/unlabelled --check", "holds no image with a label that the model knows"),
        ("suggest last photos --labels other.csv", "--labels names files in other.csv that are no images of photos"),
        ("train photos --labels none.csv", "data.labels cannot be read: No such file or directory: none.csv"),
        ("train photos --labels other.csv", "data.labels names files in other.csv that are no images of"),
        ("train photos --labels new.csv --pretrained last", ": correct the label, or train without --pretrained"),
        ("train points.npz --labels new.csv", "data.labels has an effect with data.name folder alone"),
    ],
)
def test_command_on_unusable_labels_says_what_to_do(
    scnf: Callable[..., Any], trained: Path, tmp_path: Path, words: str, message: str
) -> None:
    (tmp_path / "other.csv").write_text("file,label\nelsewhere.png,day\n")
    (tmp_path / "new.csv").write_text("file,label\nunlabelled/1.png,dusk\n")
    (tmp_path / "done.csv").write_text('file,label\nphotos/day/1.png,day\n"photos/nuit, étoilée/1.png",night\n')
    np.savez(tmp_path / "points.npz", x=np.zeros((4, 2)), y=[0, 1, 0, 1])
    outcome = scnf(words)
    assert outcome.code == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert message in outcome.err and not (tmp_path / "labels.csv").exists()


def test_training_with_a_configuration_refuses_weights_of_other_classes(
    scnf: Callable[..., Any], trained: Path
) -> None:
    words = ["train photos --config digits.yaml --num_labels all --num_validation 0 --select last", *SMALL]
    outcome = scnf(*words, "--pretrained last --data.classes", Path("['nuit, étoilée', day]"))
    assert (
        outcome.code == 2
        and "knows the classes day, nuit, étoilée, and the data have nuit, étoilée, day" in outcome.err
    )


def test_suggest_command_ignores_a_default_table_of_other_images(
    scnf: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    assert scnf("suggest last photos --num 3").code == 0
    fill_in(tmp_path / "labels.csv", true_label)
    folder = tmp_path / "others" / "day"
    folder.mkdir(parents=True)
    for row in range(3):
        Image.new("RGB", (8, 8), (row, 0, 0)).save(folder / f"{row}.png")
    outcome = scnf("suggest last others --check")
    assert outcome.code == 0, outcome.err
    outcome = scnf("suggest last others --check --labels labels.csv")
    assert outcome.code == 2 and "that are no images of others" in outcome.err


def test_suggested_names_with_spaces_and_line_ends_are_read_back(
    scnf: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    names = [" a.png", "b\r.png", "c\n.png", "d,.png"]
    for path in (trained / "unlabelled").iterdir():
        path.unlink()
    for row, name in enumerate(names):
        Image.new("RGB", (8, 8), (60 * row, 0, 0)).save(trained / "unlabelled" / name)
    for _ in range(2):
        assert scnf("suggest last photos --num 4").code == 0
    rows = rows_of(tmp_path / "labels.csv")
    assert sorted(row["file"] for row in rows) == sorted(f"unlabelled/{name}" for name in names)
    fill_in(tmp_path / "labels.csv", lambda name: "day")
    outcome = scnf("train photos --labels labels.csv --pretrained last --max_steps 1", *SHORT)
    assert outcome.code == 0 and "28 labels (day 16, nuit, étoilée 12), 0 images without a label" in outcome.out


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8")
def test_suggest_command_skips_a_name_that_no_table_holds(scnf: Callable[..., Any], trained: Path) -> None:
    os.rename(trained / "unlabelled" / "7.png", os.fsencode(trained / "unlabelled") + b"/\xff.png")
    outcome = scnf("suggest last photos --num 3")
    assert outcome.code == 0 and "its name is not UTF-8" in outcome.err and "3 of 29 images" in outcome.out
