"""One card in at most eight minutes: training beside the textbook pipeline, token caching, prompts, scoring, memory.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json  # all of it; 49 GB of the card for NUS-WIDE's tokens
    python benchmarks/gpu.py --images 20000 --out gpu.json      # 6 GB for tokens; epochs still of 161,789 images
    python benchmarks/gpu.py --minutes 4 --out gpu.json         # what fits into four minutes
    python benchmarks/gpu.py --quick                            # on any processor: does it run at all?

First the head, its gradients and the losses are compared on the card with the authors' own numbers (`tests/data`). Then
come rates. The reference is the textbook pipeline: tower in every step, plain head, AdamW, batch 64. Ours is an epoch
as `qks train` runs it, on random tokens that lie on the card. "share_of_peak" is the rate of the products that torch
ran (`FlopCounterMode`) over the best rate of a product of square matrices in the same precision. "peak_gigabytes" is
the most memory of the card that a row held, with the tokens where they are there already. No row begins that might not
end in time: what was left out is named in the file, with the reason. The file is written anew after every row. An exit
status of 1 says that the golden numbers were missed.
"""

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from common import parser, peak_memory, settings, write
from prompts import LABELS, label_by_label
from score import TOPK, synthetic
from torch.utils.flop_counter import FlopCounterMode

from qks.core import QKSError
from qks.evaluate.metrics import evaluate_scores
from qks.model.authors import rename_authors_weights
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import AsymmetricLoss, bce_loss, ranking_loss
from qks.model.prompts import PromptPool
from qks.model.scoring import head_scores
from qks.model.sharing import share
from qks.train.config import TrainConfig
from qks.train.devices import temporary_accelerator
from qks.train.optimizer import make_optimizer
from qks.train.steps import HeadLoss
from qks.train.targets import Targets
from qks.train.trainer import Trainer, epoch_steps
from qks.vlp.loading import load_vlp

NUS_WIDE = 161_789  # images to train on
NUS_WIDE_TEST = 107_859
CACHE_BATCH = 256
REFERENCE_BATCH = 64
OUR_BATCHES = (64, 1024)
ROW_SECONDS = 20  # of measuring within one row
SPARE_BYTES = 12e9  # of the card, beside the tokens
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The largest difference, relative to the largest number. Sums in another order differ by about 1e-6 in fp32; TF32,
# which a card may use in fp32's place, by about 1e-3; bf16 has 8 bits.
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}
GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "data"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REPEAT_SECONDS = 3.0 if DEVICE.type == "cuda" else 0.2  # one call is repeated for so long


class Row(NamedTuple):
    """A line of the results that is still to be measured."""

    name: str
    needs: int  # seconds that must be left when it begins
    measure: Callable[[], dict]


# ---- time, memory, operations


def synchronize():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def best_seconds(function):
    """Seconds of one call with all of the card's work: the best of up to 20, after one that does not count."""
    function()
    synchronize()
    begun = time.perf_counter()
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        function()
        synchronize()
        now = time.perf_counter()
        best = min(best, now - start)
        if now - begun > REPEAT_SECONDS:
            break
    return best


def operations(function):
    """Additions and multiplications of the products that a call runs."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one large operator, whose products the counter does not see
    try:
        with FlopCounterMode(display=False) as counter:
            function()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()


def product_rate(side, dtype):
    """Operations a second of a product of two square matrices."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: a @ b)


def forget_peak():
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gigabytes():
    """Of the card since `forget_peak`; without a card, of the process since it began."""
    most = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else peak_memory()
    return round(most / 1e9, 2)


# ---- what the rows share


@dataclass
class Bench:
    """The sizes, and what is made once for several rows."""

    args: object
    batches: tuple[int, int, tuple[int, ...]]  # for the cache, for the reference, for ours

    @cached_property
    def vlp(self):
        return load_vlp(device=DEVICE) if self.args.quick else load_vlp("ViT-B-16", False, device=DEVICE)

    @cached_property
    def embeddings(self):
        return torch.randn(self.args.labels, self.vlp.embed_dim, device=DEVICE)

    @cached_property
    def peaks(self):
        return {precision: product_rate(self.args.side, dtype) for precision, dtype in DTYPES.items()}

    @cached_property
    def tokens(self):
        """Random tokens in bf16 on the device, made in pieces: what its memory holds, at least two batches."""
        images = self.args.images
        if DEVICE.type == "cuda":
            room = torch.cuda.mem_get_info()[0] - SPARE_BYTES
            images = min(images, int(room / (2 * self.args.tokens * self.vlp.width)))
        images = max(images, 2 * self.batches[-1][-1])
        numbers = torch.empty(images, self.args.tokens, self.vlp.width, dtype=torch.bfloat16, device=DEVICE)
        for piece in numbers.split(4096):
            piece.normal_()
        return numbers

    @cached_property
    def labels(self):
        return random_labels(len(self.tokens), self.args.labels)

    def head(self):
        return QKSHead(self.vlp.projection, HeadConfig(self.args.queries, self.args.layers)).to(DEVICE).train()

    def images(self, batch, device=DEVICE):
        return torch.randn(batch, 3, self.vlp.image_size, self.vlp.image_size, device=device)


def random_labels(images, count):
    """Random labels [n, C], a hundredth of them present."""
    return torch.where(torch.rand(images, count, device=DEVICE) < 0.01, 1, -1).to(torch.int8)


def rate_of(bench, rate, precision, work, **more):
    """What a row says of a rate in images a second; `work` is the number of operations per image."""
    share_of_peak = rate * work / bench.peaks[precision]
    return {"images/s": round(rate, 1), "share_of_peak": round(share_of_peak, 4), **more}


# ---- the rows


def apart(found, expected):
    """The largest difference, relative to the largest number."""
    found = found.detach().float().cpu()
    expected = torch.as_tensor(expected).float()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def golden_arrays(name, device):
    return {key: torch.from_numpy(np.asarray(value)).to(device) for key, value in np.load(GOLDEN / name).items()}


def starting_with(prefix, arrays):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def golden_row(differences, precision, **more):
    """The differences, the tolerance, and whether all lie within it."""
    tolerance = TOLERANCES[precision]
    passes = all(difference <= tolerance for difference in differences.values()) and all(more.values())
    return {"apart": differences, "tolerance": tolerance, **more, "passes": passes}


def golden_head(precision):
    """The head's logits, its loss and the gradients of its weights, beside the authors'."""
    arrays = golden_arrays("model.npz", DEVICE)
    head = QKSHead.from_official(starting_with("weights/", arrays), n_heads=4).to(DEVICE).eval()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
        output = head(arrays["image_tokens"], arrays["text_features"])
    loss = AsymmetricLoss()(output.logits.float(), arrays["targets"])
    loss.backward()
    gradients = rename_authors_weights(starting_with("grad/", arrays))
    found = dict(head.named_parameters())
    differences = {
        "logits": apart(output.logits, arrays["logits"].cpu()),
        "loss": apart(loss, arrays["asl_loss"].cpu()),
    }
    if precision == "bf16":
        return golden_row(differences, precision)
    differences["gradients"] = apart(
        torch.cat([found[name].grad.flatten() for name in gradients]),
        torch.cat([gradient.flatten() for gradient in gradients.values()]).cpu(),
    )
    same_tokens = torch.equal(output.token_index, arrays["token_index"])
    return golden_row(differences, precision, same_tokens_chosen=same_tokens)


def golden_losses():
    """Every loss and its gradient by the logits, beside the authors'."""
    arrays = golden_arrays("losses.npz", DEVICE)
    losses = {"bce": (bce_loss, "binary"), "masked_bce": (partial(bce_loss, masked=True), "ternary")}
    losses |= {f"ranking_{labels}": (ranking_loss, labels) for labels in ("binary", "ternary")}
    for key in arrays:
        if found := re.fullmatch(r"(masked_)?asl_gn([\d.]+)_gp([\d.]+)_c([\d.]+)", key):
            masked, *numbers = found.groups()
            loss = AsymmetricLoss(*map(float, numbers), masked=bool(masked))
            losses[key] = (loss, "ternary" if masked else "binary")
    differences = {}
    for key, (loss, labels) in losses.items():
        logits = arrays["logits"].clone().requires_grad_()
        value = loss(logits, arrays[labels])
        value.backward()
        differences[key] = apart(value, arrays[key].cpu())
        differences[f"{key}, gradient"] = apart(logits.grad, arrays[f"{key}_grad"].cpu())
    return golden_row(differences, "fp32")


def reference(bench, precision):
    """Steps of the textbook pipeline."""
    batch = bench.batches[1]
    images = bench.images(batch)
    targets = random_labels(batch, bench.args.labels).float()
    head = bench.head()
    loss_function = AsymmetricLoss()
    optimizer = make_optimizer(head.parameters(), TrainConfig())

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                tokens = bench.vlp.tower.tokens(images)  # [B, N, D]
            logits = share(head.extractor(tokens) @ head.projection, bench.embeddings).logits  # [B, C]
        loss_function(logits.float(), targets).backward()
        optimizer.step()

    rate = batch / best_seconds(step)
    epoch = round(NUS_WIDE / rate, 1)
    return rate_of(bench, rate, precision, operations(step) / batch, batch=batch, epoch_seconds=epoch)


def caching(bench, precision):
    """Images through the tower, and their tokens to the processor's memory in fp16, as the cache keeps them."""
    batch = bench.batches[0]
    images = bench.images(batch, "cpu")
    bench.vlp.precision = precision
    rate = batch / best_seconds(lambda: bench.vlp.image_tokens(images).half().cpu())
    work = operations(lambda: bench.vlp.image_tokens(images)) / batch
    bench.vlp.precision = "fp32"
    return rate_of(bench, rate, precision, work, batch=batch, hours_for_nus_wide=round(NUS_WIDE / rate / 3600, 3))


def label_names(count):
    """Names of one word, then of two."""
    names = LABELS + [f"{first} {second}" for first in LABELS for second in LABELS]
    return names[:count]


def prompt_pool(bench, precision):
    """The prompts of all labels, a few labels at a time; and the textbook way, label by label in fp32."""
    names = label_names(bench.args.classes)
    pool = PromptPool()
    bench.vlp.precision = precision
    pool.embed(bench.vlp, names[:8], cache=False)
    synchronize()
    begun = time.perf_counter()
    done = 0
    while done < len(names) and time.perf_counter() - begun < ROW_SECONDS:
        piece = names[done : done + 128]
        pool.embed(bench.vlp, piece, cache=False)
        done += len(piece)
    seconds = time.perf_counter() - begun
    bench.vlp.precision = "fp32"
    rate = done * len(pool.templates) / seconds
    sentences = len(names) * len(pool.templates)
    result = {"prompts/s": round(rate, 1), "labels": done, "seconds_for_all": round(sentences / rate, 2)}
    if precision == "fp32":
        slow = len(pool.templates) / best_seconds(lambda: label_by_label_on_device(bench.vlp, pool, names[:1]))
        result |= {"label_by_label": round(slow, 1), "over_label_by_label": round(rate / slow, 2)}
    return result


def label_by_label_on_device(vlp, pool, names):
    """`label_by_label` where the tower is."""
    on_device = SimpleNamespace(model=vlp.model, tokenizer=lambda texts: vlp.tokenizer(texts).to(DEVICE))
    return label_by_label(on_device, pool, names)


def ours(bench, precision, batch, compiled=False):
    """An epoch of the library over whole batches; its first steps do not count, and it ends early if it takes long."""
    images = len(bench.tokens) // batch * batch  # torch.compile would stop for a smaller last batch
    recipe = TrainConfig(batch_size=batch, precision=precision, fused=True, compile=compiled)
    warm_up = min(10, images // batch // 2)
    head = bench.head()
    begun = float("inf")
    with temporary_accelerator(DEVICE, precision) as accelerator:
        targets = Targets(bench.labels[:images])
        trainer = Trainer(head, bench.tokens[:images], targets, bench.embeddings, recipe, accelerator)
        steps = epoch_steps(trainer, lambda: trainer.step == warm_up or time.perf_counter() > begun + ROW_SECONDS)
        while next(steps) < warm_up:  # a yield has read the losses: the card is done
            pass
        first = trainer.step
        begun = time.perf_counter()
        for _ in steps:
            if time.perf_counter() > begun + ROW_SECONDS:
                break
        seconds = time.perf_counter() - begun
        measured = (trainer.step - first) * batch
        steps.close()
    rate = measured / seconds
    work = head_operations(bench, head, precision, min(batch, 64))
    return rate_of(
        bench,
        rate,
        precision,
        work,
        batch=batch,
        epoch_seconds=round(NUS_WIDE / rate, 1),
        images=measured,
        tokens_gigabytes=round(bench.tokens.nbytes / 1e9, 2),
        gigabytes_of_tokens_a_second=round(rate * bench.tokens[0].nbytes / 1e9, 1),
    )


def head_operations(bench, head, precision, images):
    """Operations of a step on cached tokens, per image."""
    model = HeadLoss(head, AsymmetricLoss())
    tokens = bench.tokens[:images].float()
    targets = bench.labels[:images].float()

    def step():
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(tokens, bench.embeddings, targets)
        loss.backward()

    return operations(step) / images


def head_scoring(bench):
    """Scores of cached tokens against all labels, fp32; as many images as time allows."""
    head = bench.head().eval()
    embeddings = torch.randn(bench.args.classes, bench.vlp.embed_dim, device=DEVICE)
    few = bench.tokens[:1024]
    rate = len(few) / best_seconds(lambda: head_scores(head, few, embeddings))
    images = min(len(bench.tokens), bench.args.test, max(len(few), int(rate * ROW_SECONDS)))
    start = time.perf_counter()
    head_scores(head, bench.tokens[:images], embeddings)
    rate = images / (time.perf_counter() - start)
    with torch.no_grad():
        work = operations(lambda: head(few.float(), embeddings)) / len(few)
    return rate_of(bench, rate, "fp32", work, images=images, seconds_for_all=round(bench.args.test / rate, 1))


def metric_scoring(bench):
    """The metrics of scores that are in the processor's memory: the card has no part in it."""
    scores, labels, n_seen = synthetic(bench.args.test, bench.args.classes)
    start = time.perf_counter()
    evaluate_scores(scores, labels, n_seen, TOPK)
    return {"seconds": round(time.perf_counter() - start, 2), "images": len(scores), "labels": labels.shape[1]}


def plan(bench):
    """All rows, in the order of their worth; those that hold NUS-WIDE's tokens after those that do not."""
    first, second = bench.batches[-1]
    return [
        Row("golden head, fp32", 10, partial(golden_head, "fp32")),
        Row("golden head, bf16", 10, partial(golden_head, "bf16")),
        Row("golden losses", 10, golden_losses),
        Row("reference, fp32", 30, partial(reference, bench, "fp32")),
        Row("reference, bf16", 30, partial(reference, bench, "bf16")),
        Row("token caching, bf16", 30, partial(caching, bench, "bf16")),
        Row("token caching, fp32", 30, partial(caching, bench, "fp32")),
        Row("prompts, fp32", 45, partial(prompt_pool, bench, "fp32")),
        Row("prompts, bf16", 45, partial(prompt_pool, bench, "bf16")),
        Row(f"ours, fp32, batch {first}", 45, partial(ours, bench, "fp32", first)),
        Row(f"ours, bf16, batch {first}", 45, partial(ours, bench, "bf16", first)),
        Row(f"ours, bf16, batch {second}", 45, partial(ours, bench, "bf16", second)),
        Row("scoring, head", 45, partial(head_scoring, bench)),
        Row("scoring, metrics", 45, partial(metric_scoring, bench)),
        Row(f"ours, bf16, compiled, batch {first}", 120, partial(ours, bench, "bf16", first, True)),
        Row(f"ours, bf16, compiled, batch {second}", 120, partial(ours, bench, "bf16", second, True)),
    ]


# ---- the run


def summary(row):
    """A row as it is printed: its numbers, and its largest difference where it has several."""
    shown = {key: value for key, value in row.items() if key not in ("row", "apart")}
    if "apart" in row:
        shown = {"largest difference": f"{max(row['apart'].values()):.1e}"} | shown
    return f"{row['row']:36s} " + ", ".join(f"{key} {value}" for key, value in shown.items())


def measure(bench, row, references):
    """One row with its memory, and how many times the references' rate its own is."""
    forget_peak()
    start = time.perf_counter()
    result = {"row": row.name} | row.measure()
    if row.name.startswith("ours"):
        result["over"] = {name: round(result["images/s"] / rate, 2) for name, rate in references.items()}
    return result | {"peak_gigabytes": peak_gigabytes(), "took": round(time.perf_counter() - start, 1)}


def describe(bench):
    """The card, and what it can do at most."""
    return {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "processor",
        "peak_tflops": {precision: round(rate / 1e12, 3) for precision, rate in bench.peaks.items()},
        "fp32_products": torch.get_float32_matmul_precision(),
    }


def main():
    begun = time.perf_counter()
    sizes = {"images": NUS_WIDE, "tokens": 197, "layers": 7, "queries": 12, "labels": 925}
    sizes |= {"test": NUS_WIDE_TEST, "classes": 1006, "side": 8192, "minutes": 8}
    small = {"images": 48, "tokens": 16, "layers": 1, "queries": 2, "labels": 20, "test": 60, "classes": 20}
    args = parser(__doc__, sizes, small | {"side": 128}).parse_args()
    sizes = settings(args)
    if DEVICE.type == "cpu" and not args.quick:
        sys.exit("this benchmark needs a GPU, and there is none; --quick shows on the processor that it runs")
    torch.manual_seed(0)
    bench = Bench(args, (4, 4, (4, 16)) if args.quick else (CACHE_BATCH, REFERENCE_BATCH, OUR_BATCHES))
    about = describe(bench)
    print(f"{about['device']}: {about['peak_tflops']} TFLOP/s of products", flush=True)
    rows = []
    left_out = {}
    references = {}
    for row in plan(bench):
        seconds_left = 60 * args.minutes - (time.perf_counter() - begun)
        if args.quick and "compiled" in row.name:
            left_out[row.name] = "--quick compiles nothing"
        elif row.needs > seconds_left:
            left_out[row.name] = f"{max(0, round(seconds_left))} s were left, it may need {row.needs} s"
        else:
            try:
                rows.append(measure(bench, row, references))
                print(summary(rows[-1]), flush=True)
            except (QKSError, RuntimeError) as error:  # no compiler, no room
                left_out[row.name] = f"failed: {str(error).splitlines()[0]}"
        if row.name in left_out:
            print(f"{row.name:36s} left out: {left_out[row.name]}", flush=True)
        elif row.name.startswith("reference"):
            references[row.name] = rows[-1]["images/s"]
        write(args.out, about | {"rows": rows, "left_out": left_out}, sizes)
    missed = [row["row"] for row in rows if not row.get("passes", True)]
    if missed:
        sys.exit(f"the authors' numbers were missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
