"""One Glow in scnf, nflows and normflows: images per second and memory; and how scnf's training step scales.

    pip install -e '.[bench]'
    python benchmarks/speed.py --seconds 10 --out logs/speed       # speed.json, speed.md, speed.png
    python benchmarks/speed.py --scaling --out logs/speed          # scaling.json, scaling.md, scaling.png

The Glow: images 1x28x28, two levels of a squeeze and four steps [ActNorm, invertible 1x1 convolution, affine coupling
of half of the channels], half factored out between them, coupling networks of 3x3, 1x1 and 3x3 convolutions with 64
channels. Each library brings its layers as they come; nflows has no such network and takes the plain one that its users
write. The base is the same code for all: a standard Gaussian for log p(x), and for p(y | x) one diagonal Gaussian per
class on the last latents, so that all classes take one pass of the flow. Everything is float32, without TF32, but for
the training step that is measured a second time with the loss under torch.autocast, as scnf trains where the hardware
has bf16: for all, with how far log p(x) of an image is off by it in the mean. All have the same fused Adam and, as
`scnf train` does, a C library that keeps freed memory.

Contenders take turns call by call, in a new order each time, so that what else the machine does hits all alike; figures
are medians. Memory is the peak of training steps in a process of its own, above that of the imports and the model (not
of the compiled contender, whose compiler takes more). OMP_NUM_THREADS sets the threads.
"""

import argparse
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scnf import UNLABELLED, transforms
from scnf.analysis import plots
from scnf.batch import Batch
from scnf.distributions.gaussian import gaussian_log_prob
from scnf.files import write_text
from scnf.machine import FreedMemory, compile_for, description, has_bfloat16
from scnf.nn import ConvNet
from scnf.objectives import semi_supervised_loss
from scnf.recipes import build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS, HIDDEN, CLASSES = 4, 64, 10
IMAGE, FIRST, ASIDE, LAST = (1, 28, 28), (4, 14, 14), (2, 14, 14), (8, 7, 7)  # squeezed once, factored out, at the end
LATENTS = math.prod(LAST)
# Where bf16 is emulated it takes very long.
BF16 = {"train_step_bf16": "training step, bf16"} if has_bfloat16(DEVICE) else {}
TRAINING = {"train_step": "training step", **BF16}
TASKS = {**TRAINING, "log_prob": "log p(x)", "posterior": "p(y given x)", "sample": "sampling"}
PEERS = ("nflows", "normflows")

Call = Callable[[], Any]
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]  # images to (latents [N, D], the deepest last; logabsdet [N])
Decode = Callable[[Tensor], Tensor]
Glow = tuple[nn.Module, Encode, Decode]


@dataclass(frozen=True)
class Contender:
    """A Glow, and what is asked of it: each task on one batch."""

    model: nn.Module
    encode: Encode
    decode: Decode
    train_step: Call
    train_step_bf16: Call
    log_prob: Call
    posterior: Call
    sample: Call


def scnf_glow() -> Glow:
    def level(channels: int, *last: transforms.Transform) -> transforms.Transform:
        layers: list[transforms.Transform] = [transforms.Squeeze()]
        for _ in range(STEPS):
            part = transforms.ChannelPartition(channels)
            coupling = transforms.AffineCoupling(ConvNet(channels // 2, channels, HIDDEN), part)
            layers += [transforms.ActNorm(channels), transforms.FullLinear(channels), coupling]
        return transforms.CompositeTransform([*layers, *last])

    inner = level(LAST[0], transforms.Flatten(LAST))
    model = level(FIRST[0], transforms.FactorOut(inner, FIRST))
    return model, model, lambda z: model.inverse(z)[0]


class PlainNetwork(nn.Sequential):
    """What a user of nflows writes as the network of a Glow coupling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        last = nn.Conv2d(HIDDEN, outputs, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        first, second = nn.Conv2d(inputs, HIDDEN, 3, padding=1), nn.Conv2d(HIDDEN, HIDDEN, 1)
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), last)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(inputs)


def nflows_glow() -> Glow:
    import nflows.transforms as nft
    from nflows.utils.torchutils import create_mid_split_binary_mask

    def level(channels: int) -> Any:
        layers: list[Any] = [nft.SqueezeTransform()]
        for _ in range(STEPS):
            coupling = nft.AffineCouplingTransform(create_mid_split_binary_mask(channels), PlainNetwork)
            layers += [nft.ActNorm(channels), nft.OneByOneConvolution(channels), coupling]
        return nft.CompositeTransform(layers)

    model = nft.MultiscaleCompositeTransform(num_transforms=2)
    model.add_transform(level(FIRST[0]), FIRST)
    model.add_transform(level(LAST[0]), LAST)
    return model, model, lambda z: model.inverse(z)[0]


def normflows_glow() -> Glow:
    import normflows as nf

    def level(channels: int) -> list[Any]:  # from latents to images
        return [*(nf.flows.GlowBlock(channels, HIDDEN) for _ in range(STEPS)), nf.flows.Squeeze()]

    bases = [nf.distributions.DiagGaussian(shape, trainable=False) for shape in (LAST, ASIDE)]
    model = nf.MultiscaleFlow(bases, [level(LAST[0]), level(FIRST[0])], [nf.flows.Merge()], class_cond=False)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        (last, aside), logabsdet = model.inverse_and_log_det(x)
        return torch.cat([aside.flatten(1), last.flatten(1)], dim=1), logabsdet

    def decode(z: Tensor) -> Tensor:
        parts = [z[:, -LATENTS:].unflatten(1, LAST), z[:, :-LATENTS].unflatten(1, ASIDE)]
        return cast(Tensor, model.forward_and_log_det(parts)[0])

    return model, encode, decode


GLOWS = {"scnf": scnf_glow, "scnf compiled": scnf_glow, "nflows": nflows_glow, "normflows": normflows_glow}


def in_bf16(call: Call) -> Call:
    """The call where torch.autocast rounds what it takes for safe."""

    def autocast() -> Any:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return call()

    return autocast


def training_step(model: nn.Module, loss: Call) -> Call:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def contender(name: str, batch: int) -> Contender:
    """A fresh Glow with started ActNorm, and its tasks on one batch of noise."""
    torch.manual_seed(0)
    model, encode, decode = GLOWS[name]()
    model.to(DEVICE).train()
    x, y = torch.rand(batch, *IMAGE, device=DEVICE), torch.arange(batch, device=DEVICE) % CLASSES
    means = torch.randn(CLASSES, LATENTS, device=DEVICE)
    log_scales, standard = torch.zeros_like(means), x.new_zeros(())
    with torch.no_grad():
        transforms.initialize_from_data(model, x[:8])
        encode(x[:8])  # where the layers of nflows and normflows start
    if name == "scnf compiled":
        encode, decode = compile_for(encode, DEVICE), compile_for(decode, DEVICE)

    def log_likelihood() -> Tensor:
        z, logabsdet = encode(x)
        return gaussian_log_prob(z, 0.0, standard) + logabsdet

    @torch.no_grad()
    def posterior() -> Tensor:
        z, logabsdet = encode(x)
        aside, last = z.split(LATENTS, dim=1)
        common = logabsdet + gaussian_log_prob(aside, 0.0, standard)
        table = common.unsqueeze(1) + gaussian_log_prob(last.unsqueeze(2), means.T, log_scales.T)
        return table.softmax(dim=1)

    @torch.no_grad()
    def sample() -> Tensor:
        z = torch.randn(batch, 2 * LATENTS, device=DEVICE)
        z[:, -LATENTS:] += means[y]
        return decode(z)

    def loss() -> Tensor:
        return -log_likelihood().mean()

    steps = training_step(model, loss), training_step(model, in_bf16(loss))
    return Contender(model, encode, decode, *steps, torch.no_grad()(log_likelihood), posterior, sample)


def check(name: str, this: Contender, batch: int) -> None:
    """Refuse to time a model that does something else: finite densities, an inverse that inverts."""
    x = torch.rand(batch, *IMAGE, device=DEVICE)
    with torch.no_grad():
        z, logabsdet = this.encode(x)
        error = float((this.decode(z.clone()) - x).abs().max())  # of a CUDA graph z lasts until the next call
    finite = all(bool(values.isfinite().all()) for values in (logabsdet, this.log_prob(), this.posterior()))
    if not finite or not error < 1e-3 or z.shape != (batch, 2 * LATENTS):
        raise SystemExit(f"{name} is wrong: finite {finite}, inverse off by {error:.1e}, latents {list(z.shape)}")


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Of the coupling networks, which alone are made of convolution modules, and of all."""
    networks = nn.ModuleList(module for module in model.modules() if isinstance(module, nn.Conv2d))
    return sum(p.numel() for p in networks.parameters()), sum(p.numel() for p in model.parameters())


def race(calls: Mapping[str, Call], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, again and again, all in turns: `seconds` for each in all, and three times at least."""
    for call in [*calls.values(), *calls.values()]:
        call()
    wait = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    order, draw = list(calls), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(times[order[0]]) < 3:
        draw.shuffle(order)
        for name in order:
            wait()
            started = time.perf_counter()
            calls[name]()
            wait()
            times[name].append(time.perf_counter() - started)
    return times


def recipe_step(
    batch: int,
    shape: Sequence[int] = IMAGE,
    num_classes: int = CLASSES,
    reversible: bool = False,
    bf16: bool = False,
    compiled: bool = False,
    **more: Any,
) -> tuple[Call, Call]:
    """The training step of scnf-fast on images of noise, half of them labelled; and its forward part alone."""
    torch.manual_seed(0)
    x, y = torch.rand(batch, *shape, device=DEVICE), torch.arange(batch, device=DEVICE) % num_classes
    y[::2] = UNLABELLED
    model = build("scnf-fast", shape, num_classes, **more).to(DEVICE).train()
    model.initialize(x[:8], y[:8])
    for module in model.modules():
        if isinstance(module, transforms.CompositeTransform):
            module.reversible = reversible
    forward = compile_for(model, DEVICE) if compiled else model
    rows = Batch(x, y)

    def loss() -> Tensor:
        return semi_supervised_loss(forward(rows), rows)[0]

    return training_step(model, in_bf16(loss) if bf16 else loss), loss


def matrix_products(matrix: Tensor) -> dict[str, Call]:
    """A square matrix times itself or its transpose by each of PyTorch's libraries: MKL keeps to AVX2 on AMD's."""
    ways = {"torch.mm": partial(torch.mm, matrix, matrix)}
    if DEVICE.type == "cpu" and torch.backends.mkldnn.is_available():
        ways["oneDNN"] = partial(F.linear, matrix.to_mkldnn(), matrix)
    return ways


def training_flops(forward: Call) -> int:
    with FlopCounterMode(display=False) as counter:
        forward()
    return 3 * counter.get_total_flops()


def peak_bytes() -> int:
    """The most memory held so far: allocated on the GPU, else resident."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would start at the peak of the process that started this one
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(seconds: float, **job: Any) -> dict[str, float]:
    """Of training steps, of a contender if the job names one: peak bytes above those of the build, median seconds."""
    step = contender(**job).train_step if "name" in job else recipe_step(**job)[0]
    before = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else peak_bytes()
    times = race({"step": step}, seconds)["step"]
    return {"bytes": peak_bytes() - before, "seconds": statistics.median(times)}


def apart(**job: Any) -> dict[str, float]:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job} ended with {done.returncode}: {done.stderr[-800:]}")
    return cast(dict[str, float], json.loads(done.stdout.splitlines()[-1]))


def machine() -> dict[str, Any]:
    """What the figures depend on. Warns where something else is running."""
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: a load of {load:.1f} before the start: something else is running", file=sys.stderr)
    return {**description(DEVICE), "torch": torch.__version__, "load": load}


def speed(seconds: float, batch: int, recipe_batches: Sequence[int], out: Path) -> None:
    figures: dict[str, Any] = {**machine(), "batch": batch}
    names = list(GLOWS)
    ways: dict[str, dict[str, Any]] = {
        "": {},
        " reversible": {"reversible": True},
        " compiled": {"compiled": True},
    }
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        print("scnf compiled is skipped: torch.compile needs a C++ compiler, and there is none", file=sys.stderr)
        names.remove("scnf compiled")
        del ways[" compiled"]
    recipes = {f"scnf-fast{way}, batch {n}": {"batch": n, **how} for n in recipe_batches for way, how in ways.items()}
    contenders = {name: contender(name, batch) for name in names}
    parameters = {name: parameter_counts(each.model) for name, each in contenders.items()}
    for name, (networks, total) in parameters.items():
        print(f"{name}: {networks:,} parameters in coupling networks, {total:,} in all", flush=True)
    sizes = [size for size, _ in parameters.values()]
    if max(sizes) > 1.01 * min(sizes):
        raise SystemExit("these are not the same Glow: their coupling networks differ in size")
    for name, each in contenders.items():
        each.train_step()  # the networks start at zero
        check(name, each, batch)
    recipe_steps = {
        task: {name: recipe_step(bf16=task in BF16, **how)[0] for name, how in recipes.items()} for task in TRAINING
    }
    matrix = torch.randn(8192, 8192, device=DEVICE) if DEVICE.type == "cuda" else torch.randn(2048, 2048)
    products = {task: matrix_products(matrix.bfloat16() if task in BF16 else matrix) for task in TRAINING}
    work = dict.fromkeys(names, training_flops(contenders["scnf"].log_prob))
    flops = {n: training_flops(recipe_step(n)[1]) for n in recipe_batches}
    work |= {name: flops[how["batch"]] for name, how in recipes.items()}
    work |= dict.fromkeys(products["train_step"], 2 * len(matrix) ** 3)
    quartiles: dict[str, dict[str, list[float]]] = {}
    for task in TASKS:
        calls: dict[str, Call] = {name: getattr(each, task) for name, each in contenders.items()}
        for each in contenders.values():
            each.model.train(task in TRAINING)
        if task in TRAINING:
            calls |= {**recipe_steps[task], **products[task]}
        quartiles[task] = {name: statistics.quantiles(times) for name, times in race(calls, seconds).items()}
    rounding = {}
    for name, each in contenders.items():
        check(name, each, batch)
        if BF16:
            rounding[name] = float((in_bf16(each.log_prob)() - each.log_prob()).abs().mean())
    rates = {task: {name: work[name] / median for name, (_, median, _) in quartiles[task].items()} for task in TRAINING}
    fastest = {task: max(products[task], key=lambda way: rates[task][way]) for task in TRAINING}
    share = {task: {name: rate / of[fastest[task]] for name, rate in of.items()} for task, of in rates.items()}
    images = {task: {name: batch / quartiles[task][name][1] for name in names} for task in TASKS}
    memory = {name: apart(name=name, batch=batch, seconds=0)["bytes"] for name in ("scnf", *PEERS)}
    figures |= {"parameters": parameters, "flops": work, "flops_per_second": rates, "share_of_matrix_products": share}
    figures |= {"images_per_second": images, "quartiles_of_seconds": quartiles, "training_bytes": memory}
    figures |= {"nats_off_in_bf16": rounding}

    off = ["bf16 is off by"] if BF16 else []
    head = [*TASKS.values(), "share of matrix products", *off, "peak memory in training"]
    lines = [f"| images/s (times the faster peer) | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for name in names:
        ratios = [each[name] / max(each[peer] for peer in PEERS) for each in images.values()]
        cells = [f"{each[name]:,.0f} ({ratio:.2f})" for each, ratio in zip(images.values(), ratios, strict=True)]
        cells += [f"{share['train_step'][name]:.1%}", *(f"{rounding[name]:.3f} nats" for _ in off)]
        cells += [f"{memory[name] / 1e6:,.0f} MB" if name in memory else "-"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(f"\nBatch {batch}; the share is that of the training step in float32.")
    lines += [
        f"{name}, in {kind}: trains on {recipes[name]['batch'] / quartiles[task][name][1]:,.0f} images/s, "
        f"{share[task][name]:.1%} of the rate of matrix products."
        for task, kind in zip(TRAINING, ("float32", "bf16"), strict=False)
        for name in recipes
    ]
    for task, kind in zip(TRAINING, ("float32", "bf16"), strict=False):
        ways = [f"{rates[task][way] / 1e9:,.0f} GFLOP/s by {way}" for way in products[task]]
        lines.append(f"Matrix products in {kind}: {', '.join(ways)}; the faster is their rate.")
    figure = Figure(figsize=(3 * len(TASKS), 3), layout="constrained")
    for axes, (task, title) in zip(figure.subplots(1, len(TASKS)), TASKS.items(), strict=True):
        axes.barh(names[::-1], [images[task][name] for name in names[::-1]])
        axes.set(title=title, xlabel="images/s")
    save(out, "speed", figures, lines, figure)


def scaling(seconds: float, out: Path) -> None:
    points: list[tuple[str, str, int, dict[str, Any]]] = []  # axis, series, place on the axis, job
    points += [("batch, 1x28x28", "plain", n, {"batch": n}) for n in (16, 32, 64, 128, 256)]
    for series in ("plain", "reversible"):
        flow = {"batch": 64, "reversible": series == "reversible"}
        points += [("steps at 7x7, batch 64", series, n, {"steps": n, **flow}) for n in (8, 16, 32, 64)]
    points += [("side of 3 channels, batch 32", "plain", n, {"shape": (3, n, n), "batch": 32}) for n in (28, 32, 64)]
    for chunk, sizes in ((None, (10, 100)), (50, (100, 1000))):
        series, more = f"{chunk} at a time" if chunk else "at once", {"batch": 64, "class_chunk": chunk}
        points += [("classes, batch 64", series, n, {"num_classes": n, **more}) for n in sizes]
    rows: list[dict[str, Any]] = []
    figures = {**machine(), "points": rows}
    lines = ["| scnf-fast | | at | ms per image | MB in training |", "|---|---|---|---|---|"]
    for axis, series, at, job in points:
        found = apart(**job, seconds=seconds)
        row = {"ms per image": 1e3 * found["seconds"] / job["batch"], "MB": found["bytes"] / 1e6}
        rows.append({"axis": axis, "series": series, "at": at, **row})
        lines.append(f"| {axis} | {series} | {at} | {row['ms per image']:.2f} | {row['MB']:,.0f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    names = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(3.2 * len(names), 5.5), layout="constrained")
    for quantity, line in zip(("ms per image", "MB"), figure.subplots(2, len(names)), strict=True):
        for axis, axes in zip(names, line, strict=True):
            for series in dict.fromkeys(row["series"] for row in rows if row["axis"] == axis):
                drawn = [row for row in rows if (row["axis"], row["series"]) == (axis, series)]
                axes.plot([row["at"] for row in drawn], [row[quantity] for row in drawn], "o-", label=series)
            axes.set(xscale="log", xlabel=axis, ylabel=quantity, ylim=(0, None))
            places = sorted({row["at"] for row in rows if row["axis"] == axis})
            axes.set_xticks(places, [str(place) for place in places])
            axes.minorticks_off()
            axes.legend()
    save(out, "scaling", figures, lines, figure)


def save(out: Path, name: str, figures: Mapping[str, Any], lines: Sequence[str], figure: Figure) -> None:
    write_text(out / f"{name}.json", json.dumps(figures, indent=1) + "\n")
    write_text(out / f"{name}.md", "\n".join(lines) + "\n")
    plots.save(figure, out / f"{name}.png", dpi=150)
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each contender and task, or each point (10)")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch (64)")
    batches = "sizes of the batches in which scnf-fast is measured (64 256 512)"
    parser.add_argument("--recipe_batches", type=int, nargs="+", default=[64, 256, 512], help=batches)
    parser.add_argument("--out", type=Path, default=Path("logs/speed"), help="directory of the results (logs/speed)")
    parser.add_argument("--scaling", action="store_true", help="measure how the training step of scnf-fast scales")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*is deprecated in favor of")  # solvers that the peers call
    torch.backends.cudnn.allow_tf32 = False
    FreedMemory()
    if options.job:
        print(json.dumps(measure(**options.job)))
    elif options.scaling:
        scaling(options.seconds, options.out)
    else:
        speed(options.seconds, options.batch, options.recipe_batches, options.out)


if __name__ == "__main__":
    main()
