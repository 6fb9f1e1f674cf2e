"""Measure how well candidates for the score `unusual` tell unusual images from the images of a training.

    python benchmarks/unusual.py scnf-hybrid --own mnist --data.root data --photos photos
    python benchmarks/unusual.py last --own photos --data.root data --photos photos --classes cat dog

Rows of the table are candidates and columns are sets of images; a number is the AUROC between test images of the
model's own data and such a set. `alarms` is the share of own test images above the 95 % quantile of the reference.

Sets are test images of the other data in the shape of the model, plain grey pictures, grey with slight noise, plain
colours, own images after a Gaussian blur of 1 or 2 pixels, inverted, flipped left to right and upside down, and uniform
noise. `--photos` is a folder of photos that were not trained on; `--training` holds those of the training, where --own
is photos. Statistics are of one draw of the noise, so that a CPU takes seconds.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from scnf import load
from scnf.analysis.unusual import Usual, code_lengths
from scnf.data.listing import image_files
from scnf.data.sources import load as load_data
from scnf.models.flow import SemiConditionalFlow
from scnf.trained import TrainedModel

Statistics = dict[str, np.ndarray]
TERMS = ("log det", "log p(z_aux)", "log p(z_f)")


class Images:
    """Images of one of the data sets in the shape of a model."""

    def __init__(self, model: TrainedModel, options: argparse.Namespace) -> None:
        self.model, self.options = model, options

    def of(self, name: str, split: str, number: int, skip: int = 0) -> np.ndarray:
        """Images uint8 [N, C, H, W] from the "train" or "test" split of a data set."""
        if name == "photos":
            folder = self.options.training if split == "train" else self.options.photos
            files = [path for path in image_files(folder) if self._is_used(path)]
            order = np.random.default_rng(0).permutation(len(files))[skip : skip + number]
            return self.shaped([Image.open(files[index]).convert("RGB") for index in order])
        data = load_data(name, self.options.root)
        x = data.train_x if split == "train" else data.test_x
        order = np.random.default_rng(0).permutation(len(x))[skip : skip + number]
        return self.shaped([Image.fromarray(x[index, 0].numpy()) for index in order])

    def _is_used(self, path: Path) -> bool:
        names = self.options.classes
        return self.options.own != "photos" or not names or any(name in str(path) for name in names)

    def shaped(self, images: list[Image.Image]) -> np.ndarray:
        channels, height, width = self.model.inputs.shape
        resized = [
            image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
            for image in images
        ]
        arrays = np.stack([np.asarray(image).reshape(height, width, channels) for image in resized])
        return np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))

    def sets(self, number: int) -> dict[str, np.ndarray]:
        """All sets of images by name; "own" comes first."""
        own, rng = self.options.own, np.random.default_rng(0)
        sets = {"own": self.of(own, "test", number)}
        for name in ("mnist", "fashion", "photos"):
            if name != own and (name != "photos" or self.options.photos):
                sets[name] = self.of(name, "test", number)
        shape, others = sets["own"].shape, self.of(own, "test", number, skip=number)
        grey = rng.integers(0, 256, (number, 1, 1, 1))
        sets["grey"] = np.broadcast_to(grey, shape)
        sets["grey+"] = np.clip(grey + rng.normal(0, 4, shape).round(), 0, 255)
        sets["colour"] = np.broadcast_to(rng.integers(0, 256, (number, shape[1], 1, 1)), shape)
        for sigma in (1, 2):
            blur = ImageFilter.GaussianBlur(sigma)
            sets[f"blur {sigma}"] = self.shaped([_picture(image).filter(blur) for image in others])
        sets["noise"] = rng.integers(0, 256, shape)
        sets |= {"inverted": 255 - others, "flipped": others[..., ::-1], "turned": others[..., ::-1, :]}
        return {name: np.ascontiguousarray(images).astype(np.uint8) for name, images in sets.items()}

    def statistics(self, images: np.ndarray) -> Statistics:
        """Everything that the candidates are made of, at one draw of the noise."""
        rows, model = self.model.inputs.rows(images), self.model.model
        assert isinstance(model, SemiConditionalFlow)
        x = self.model._dequantised(rows, self.model.noise[0])
        with torch.no_grad():
            z_aux, z_f, logabsdet = model.latents(x)
            by_class = model.conditional.log_prob_all(z_f) + model.prior.log_prob_all()
            aux = torch.zeros(len(x)) if model.auxiliary is None else model.auxiliary.log_prob(z_aux)
        values = dict(zip(TERMS, (logabsdet, aux, by_class.logsumexp(dim=1)), strict=True))
        result = {name: value.double().numpy() for name, value in values.items()}
        result["log p(x)"] = np.sum([result[name] for name in TERMS], axis=0)
        result["code"] = code_lengths(images, 256)
        result["png"] = np.array([_png_length(image) for image in images])
        return result | {"z_f": z_f.numpy()}


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def _png_length(image: np.ndarray) -> float:
    """Return the length of an image as PNG, in nats."""
    file = io.BytesIO()
    _picture(image).save(file, "png", optimize=True)
    return len(file.getvalue()) * 8 * np.log(2)


def candidates(reference: Statistics) -> dict[str, Callable[[Statistics], np.ndarray]]:
    """Functions from statistics to how unusual images are; larger is more unusual."""

    def two_sided(name: str) -> Callable[[Statistics], np.ndarray]:
        middle = np.median(reference[name])
        return lambda of: np.abs(of[name] - middle)

    def joint(*names: str) -> Callable[[Statistics], np.ndarray]:
        def table(of: Statistics) -> np.ndarray:
            return np.stack([np.log(of[name]) if name in ("code", "png") else of[name] for name in names], axis=1)

        usual = Usual.fit(table(reference))
        return lambda of: usual.scores(table(of))

    def neighbours(normalised: bool) -> Callable[[Statistics], np.ndarray]:
        mean, scale = reference["z_f"].mean(axis=0), reference["z_f"].std(axis=0) + 1e-6

        def features(of: Statistics) -> np.ndarray:
            z = (of["z_f"] - mean) / scale
            return z / np.linalg.norm(z, axis=1, keepdims=True) if normalised else z

        search = NearestNeighbors(n_neighbors=6).fit(features(reference))

        def distance(of: Statistics) -> np.ndarray:
            distances = search.kneighbors(features(of))[0]
            return distances[:, -1 if of is reference else -2]  # a row is its own nearest neighbour

        return distance

    def worst(*parts: Callable[[Statistics], np.ndarray]) -> Callable[[Statistics], np.ndarray]:
        sorts = [np.sort(part(reference)) for part in parts]
        return lambda of: np.max(
            [np.searchsorted(each, part(of)) for each, part in zip(sorts, parts, strict=True)], axis=0
        )

    excess = np.median(reference["log p(x)"] + reference["png"])
    return {
        "low log p(x)": lambda of: -of["log p(x)"],
        **{f"{name} two-sided": two_sided(name) for name in ("log p(x)", *TERMS)},
        "low log p(x) + PNG": lambda of: -of["log p(x)"] - of["png"],
        "log p(x) + PNG two-sided": lambda of: np.abs(of["log p(x)"] + of["png"] - excess),
        "code length": joint("code"),
        "5th neighbour in z_f": neighbours(normalised=False),
        "5th neighbour in z_f, angle": neighbours(normalised=True),
        "three terms, joint": joint(*TERMS),
        "three terms and code, joint": joint(*TERMS, "code"),
        "log p(x) and PNG, joint": joint("log p(x)", "png"),
        "log p(x) and code, joint": joint("log p(x)", "code"),
        "that and 5th neighbour, worst": worst(joint("log p(x)", "code"), neighbours(normalised=False)),
    }


def auroc(own: np.ndarray, other: np.ndarray) -> float:
    labels = np.r_[np.zeros(len(own)), np.ones(len(other))]
    return float(roc_auc_score(labels, np.nan_to_num(np.r_[own, other], posinf=1e30)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a run, a directory of weights, or the name of shipped weights")
    parser.add_argument("--own", required=True, choices=["mnist", "fashion", "photos"], help="data of the training")
    parser.add_argument("--data.root", dest="root", default="data", help="where the data lie (data)")
    parser.add_argument("--photos", type=Path, help="folder of photos that were not trained on")
    parser.add_argument("--training", type=Path, help="folder of photos of the training")
    parser.add_argument("--classes", nargs="*", help="use own photos alone whose path has one of these words")
    parser.add_argument("--logs", default="logs", help="directory of the runs (logs)")
    parser.add_argument("--reference", type=int, default=1000, help="number of training images (1000)")
    parser.add_argument("--number", type=int, default=300, help="number of images in a set (300)")
    options = parser.parse_args()
    images = Images(load(options.weights, options.logs, "cpu"), options)
    reference = images.statistics(images.of(options.own, "train", options.reference))
    sets = {name: images.statistics(each) for name, each in images.sets(options.number).items()}
    names = [name for name in sets if name != "own"]
    print("| candidate | " + " | ".join(names) + " | alarms |\n|---|" + "---|" * (len(names) + 1))
    for candidate, score in candidates(reference).items():
        values = {name: score(each) for name, each in sets.items()}
        alarms = (values["own"] > np.quantile(score(reference), 0.95)).mean()
        numbers = [f"{auroc(values['own'], values[name]):.2f}" for name in names]
        print(f"| {candidate} | " + " | ".join(numbers) + f" | {100 * alarms:.0f} % |")


if __name__ == "__main__":
    main()
