"""An epoch of NUS-WIDE's size on a GPU, beside training with the image tower in every step, and beside the GPU's peak.

    python benchmarks/gpu.py --images 20000 --out gpu.json      # 6 GB of GPU memory; epochs still of 161,789 images
    python benchmarks/gpu.py --out benchmarks/results/gpu.json  # 161,789 images' tokens in bf16: 49 GB
    python benchmarks/gpu.py --quick                            # on any processor: does it run at all?

Tokens, images and labels are random. First the peak: the best rate of a bf16 product of square matrices. Then the tower
alone in bf16, then the reference in fp32 (tower in every step, plain head, AdamW, batch 64), then our epochs, bf16,
fused AdamW, with and without torch.compile, at batch 64 and 1,024. A rate counts the operations of the products that
torch ran (`FlopCounterMode`) in a second; its share is of the peak. "GB/s of tokens" is what the head reads of the
cache: a second limit, beside the memory's rate. The file is written anew after every row, so that what was measured
stays when a later row fails or time runs out.
"""

import time

import torch
from common import parser, settings, write
from torch.utils.flop_counter import FlopCounterMode

from qks.core import QKSError
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import AsymmetricLoss
from qks.model.sharing import share
from qks.train.config import TrainConfig
from qks.train.devices import temporary_accelerator
from qks.train.optimizer import make_optimizer
from qks.train.steps import HeadLoss
from qks.train.targets import Targets
from qks.train.trainer import Trainer, epoch_steps
from qks.vlp.loading import load_vlp

NUS_WIDE = 161_789
TOWER_BATCH = 256
REFERENCE_BATCH = 64
OUR_BATCHES = (64, 1024)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(function, repeats=1):
    """Seconds of one call, including all of the GPU's work; the best of `repeats`, after one unmeasured call."""
    best = float("inf")
    for number in range(repeats + 1):
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        if number:
            best = min(best, time.perf_counter() - start)
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


def peak_rate(side, repeats=20):
    """Operations a second of a bf16 product of two square matrices."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, repeats)


def random_tokens(images, tokens, width):
    """Tokens in bf16 on the device, made in pieces."""
    numbers = torch.empty(images, tokens, width, dtype=torch.bfloat16, device=DEVICE)
    for piece in numbers.split(4096):
        piece.normal_()
    return numbers


def row(way, batch, rate, peak, work, **more):
    """One line of the table; `work` is the number of operations per image."""
    epoch_seconds = round(NUS_WIDE / rate, 1)
    share_of_peak = round(rate * work / peak, 4)
    print(
        f"{way:28s} batch {batch:5d} {rate:12,.1f} images/s, {epoch_seconds:10,.1f} s per epoch, "
        f"{100 * share_of_peak:6.1f} % of the peak",
        flush=True,
    )
    return {
        "way": way,
        "batch": batch,
        "images/s": round(rate, 1),
        "epoch_seconds": epoch_seconds,
        "share_of_peak": share_of_peak,
        **more,
    }


def tower(vlp, batch, peak):
    """The tower alone, bf16."""
    images = torch.randn(batch, 3, vlp.image_size, vlp.image_size, device=DEVICE)
    vlp.precision = "bf16"
    rate = batch / seconds(lambda: vlp.image_tokens(images), 5)
    work = operations(lambda: vlp.image_tokens(images)) / batch
    return row("tower, bf16", batch, rate, peak, work)


def reference(vlp, head, embeddings, batch, peak):
    """Steps of the textbook pipeline."""
    images = torch.randn(batch, 3, vlp.image_size, vlp.image_size, device=DEVICE)
    loss_function = AsymmetricLoss()
    targets = labels(batch, len(embeddings)).float()
    optimizer = make_optimizer(head.parameters(), TrainConfig())

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            tokens = vlp.tower.tokens(images)  # [B, N, D]
        logits = share(head.extractor(tokens) @ head.projection, embeddings).logits  # [B, C]
        loss_function(logits, targets).backward()
        optimizer.step()

    return row("reference, fp32", batch, batch / seconds(step, 5), peak, operations(step) / batch)


def labels(images, count):
    """Random labels [n, C], a hundredth of them present."""
    return torch.where(torch.rand(images, count, device=DEVICE) < 0.01, 1, -1).to(torch.int8)


def ours(head, tokens, targets, embeddings, batch, peak, compiled):
    """An epoch of the library; the first one is not measured."""
    recipe = TrainConfig(batch_size=batch, precision="bf16", fused=True, compile=compiled)
    with temporary_accelerator(DEVICE, "bf16") as accelerator:
        trainer = Trainer(head, tokens, Targets(targets), embeddings, recipe, accelerator)

        def epoch():
            trainer.step = 0
            trainer.loss_sum = 0.0
            for _ in epoch_steps(trainer):
                pass

        rate = len(tokens) / seconds(epoch)
    n_images = min(batch, len(tokens))
    model = HeadLoss(head, AsymmetricLoss())
    with torch.autocast(DEVICE.type, torch.bfloat16):
        step_targets = targets[:n_images].float()
        work = operations(lambda: model(tokens[:n_images], embeddings, step_targets).backward()) / n_images
    head.zero_grad(set_to_none=True)
    way = "ours, bf16, compiled" if compiled else "ours, bf16"
    gigabytes = round(rate * tokens[0].nbytes / 1e9, 1)
    return row(way, batch, rate, peak, work, gigabytes_of_tokens_a_second=gigabytes)


def main():
    sizes = {"images": NUS_WIDE, "tokens": 197, "layers": 7, "queries": 12, "labels": 925, "side": 8192}
    small = {"images": 48, "tokens": 16, "layers": 1, "queries": 2, "labels": 20, "side": 128}
    args = parser(__doc__, sizes, small).parse_args()
    sizes = settings(args)
    if DEVICE.type == "cpu" and not args.quick:
        raise SystemExit("this benchmark needs a GPU, and there is none; --quick shows on the processor that it runs")
    torch.manual_seed(0)
    vlp = load_vlp(device=DEVICE) if args.quick else load_vlp("ViT-B-16", False, device=DEVICE)
    embeddings = torch.randn(args.labels, vlp.embed_dim, device=DEVICE)

    def head():
        return QKSHead(vlp.projection, HeadConfig(args.queries, args.layers)).to(DEVICE).train()

    peak = peak_rate(args.side)
    kind = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "processor"
    print(f"{kind}: {peak / 1e12:,.1f} TFLOP/s in bf16 products", flush=True)
    rows = []
    small_batch = 4 if args.quick else None

    def record(measured):
        rows.append(measured)
        if len(rows) > 1:
            measured["over_reference"] = round(measured["images/s"] / rows[1]["images/s"], 2)
        memory = torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" else 0.0
        write(
            args.out,
            {"device": kind, "peak_tflops": round(peak / 1e12, 2), "gpu_gigabytes": round(memory, 1), "ways": rows},
            sizes,
        )

    record(tower(vlp, small_batch or TOWER_BATCH, peak))
    vlp.precision = "fp32"
    record(reference(vlp, head(), embeddings, small_batch or REFERENCE_BATCH, peak))
    tokens = random_tokens(args.images, args.tokens, vlp.width)
    targets = labels(args.images, args.labels)
    for compiled in (False,) if args.quick else (False, True):
        for batch in (4, 16) if args.quick else OUR_BATCHES:
            try:
                record(ours(head(), tokens, targets, embeddings, batch, peak, compiled))
            except (QKSError, RuntimeError) as error:  # no compiler, no room
                print(f"batch {batch}{', compiled' if compiled else ''}: {error}", flush=True)
    best = max(rows[2:], key=lambda row: row["images/s"], default=None)
    if best:
        print(f"best: {best['way']}, batch {best['batch']}, {best['over_reference']:.1f} times the reference")


if __name__ == "__main__":
    main()
