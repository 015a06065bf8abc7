"""Training with cached tokens beside training that runs the image tower in every step.

    python benchmarks/train.py       # ViT-B/16 of random weights, L=7, K=12, 925 labels, batch 16; 3 minutes
    python benchmarks/train.py --out benchmarks/results/train.json

The reference is the textbook pipeline, fp32: open_clip's tower, the plain head, the loss, AdamW, on images that are
read and preprocessed already. Ours is the epoch of `qks.train.steps` over the same images' tokens in a cache on disk
(fp16), as `qks train` runs it, then with `--fused`, then with `--precision bf16` too. "cache, plain head" shows what
the cache alone brings. Ours runs in a process that keeps freed memory, as `qks train` does, the others in one that
does not. The ways take turns; a speedup is the median over rounds of the ratio within a round. "apart" is the
relative difference of an epoch's loss to the reference's, without dropout, at a learning rate that changes nothing.

The promise: 8 times the reference where bf16 products are at least as fast as fp32 ones, 6 times elsewhere. Beside it
stands the machine's limit, by `roofline.py`: the share of a step that its matrix products would take alone, and how
many times the reference a step would be that is nothing but these products.
"""

import tempfile
from pathlib import Path
from statistics import median

import roofline
import torch
from common import SeparateProcess, machine, parser, serve, settings, speedups, time_in_turn, write

from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import AsymmetricLoss
from qks.model.sharing import share
from qks.tokens.store import BatchFile
from qks.train.config import TrainConfig
from qks.train.devices import make_accelerator
from qks.train.optimizer import make_optimizer
from qks.train.targets import Targets
from qks.train.trainer import Trainer, epoch_steps
from qks.vlp.loading import load_vlp


def cached(vlp, images, folder):
    """The images' tokens as the token cache keeps them."""
    tokens = torch.cat([vlp.image_tokens(batch) for batch in images.split(16)]).half()  # [n, N, D]
    file = BatchFile(folder, tuple(tokens.shape), torch.float16, [i.to_bytes(16, "big") for i in range(len(tokens))])
    file.numbers.touch()
    file.write(0, tokens)
    return file.tensor()


def textbook(head, recipe, take, targets, embeddings):
    """An epoch of plain steps, in the order of the images; `take` gives a batch's tokens. Returns the mean loss."""
    optimizer = make_optimizer(head.parameters(), recipe)
    loss_function = AsymmetricLoss()

    def epoch():
        total = 0.0
        for rows in torch.arange(len(targets)).split(recipe.batch_size):
            optimizer.zero_grad(set_to_none=True)
            features = head.extractor(take(rows)) @ head.projection  # [B, K, E]
            loss = loss_function(share(features, embeddings).logits, targets[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        return total / len(targets)

    return epoch


def engine(head, recipe, tokens, targets, embeddings):
    """An epoch as the library runs it; returns the mean loss."""
    trainer = Trainer(
        head, tokens, Targets(targets), embeddings, recipe, make_accelerator(torch.device("cpu"), recipe.precision)
    )

    def epoch():
        trainer.step = 0
        trainer.loss_sum = 0.0
        for _ in epoch_steps(trainer):
            pass
        return trainer.loss_sum / len(targets)

    return epoch


def ways(args, dropout, lr):
    """For each way a function that runs an epoch, from the same first weights."""
    torch.manual_seed(0)
    vlp = load_vlp() if args.quick else load_vlp("ViT-B-16", False)
    images = torch.randn(args.images, 3, vlp.image_size, vlp.image_size)
    embeddings = torch.randn(args.labels, vlp.embed_dim)
    targets = torch.where(torch.rand(args.images, args.labels) < 0.01, 1.0, -1.0)
    with tempfile.TemporaryDirectory() as folder:
        tokens = cached(vlp, images, Path(folder))  # stays open when its name is gone

    def head():
        torch.manual_seed(1)
        return QKSHead(vlp.projection, HeadConfig(args.queries, args.layers, dropout=dropout))

    recipe = {"batch_size": args.batch_size, "lr": lr}

    def tower(rows):
        with torch.no_grad():
            return vlp.tower.tokens(images[rows])

    return {
        "reference": textbook(head(), TrainConfig(**recipe), tower, targets, embeddings),
        "cache, plain head": textbook(
            head(), TrainConfig(**recipe), lambda rows: tokens[rows].float(), targets, embeddings
        ),
        "ours, fp32": engine(head(), TrainConfig(**recipe), tokens, targets, embeddings),
        "ours, fp32, fused AdamW": engine(head(), TrainConfig(**recipe, fused=True), tokens, targets, embeddings),
        "ours, bf16, fused AdamW": engine(
            head(), TrainConfig(**recipe, fused=True, precision="bf16"), tokens, targets, embeddings
        ),
    }


def limit(args, precision, speedup):
    """The share of a training step that its products take alone, and the speedup if they were all of it."""
    vlp = load_vlp() if args.quick else load_vlp("ViT-B-16", False)
    images = min(args.batch_size, args.images)
    sizes = roofline.Sizes(images, vlp.n_tokens, vlp.width, vlp.embed_dim, args.labels, args.layers, args.queries)
    row = roofline.limit(sizes, "training", precision, min(args.rounds, 3))
    at_most = round(speedup / row["share"], 2)
    print(f"nothing but these products would be {at_most} times the reference, the step is {speedup:.2f} times")
    return row | {"speedup_of_products_alone": at_most}


def main():
    sizes = {"images": 32, "batch-size": 16, "layers": 7, "queries": 12, "labels": 925, "rounds": 5}
    args = parser(__doc__, sizes, {"images": 6, "batch-size": 2, "layers": 1, "labels": 20, "rounds": 1}).parse_args()
    sizes = settings(args)
    if args.group:
        return serve(ways(args, HeadConfig.dropout, TrainConfig.lr))
    first = {name: epoch() for name, epoch in ways(args, 0.0, 1e-12).items()}
    textbook = SeparateProcess("textbook")
    ours = SeparateProcess("ours")
    processes = {name: ours if name.startswith("ours") else textbook for name in first}
    times = time_in_turn({name: process.way(name) for name, process in processes.items()}, args.rounds)
    rows = []
    over_reference = speedups(times, "reference")
    for name, speedup in over_reference.items():
        apart = abs(first[name] / first["reference"] - 1)
        rate = round(args.images / median(times[name]), 2)
        rows.append({"way": name, "images/s": rate, "speedup": round(speedup, 2), "apart": apart})
        print(
            f"{name:26s} {rate:9.2f} images/s, {speedup:6.2f} times the reference, loss apart by {apart:.0e}",
            flush=True,
        )
    limits = [
        limit(args, precision, over_reference[f"ours, {precision}, fused AdamW"]) for precision in ("fp32", "bf16")
    ]
    rates = machine()["billion_operations_a_second"]
    promise = 8 if rates["bfloat16"] >= rates["float32"] else 6
    best = max(over_reference.values())
    print(f"promise on this machine: {promise} times the reference; reached: {best:.2f}")
    write(args.out, {"ways": rows, "promise": promise, "roofline": limits}, sizes)


if __name__ == "__main__":
    main()
