"""The prompt pool: prompts a second, beside the reference that embeds label by label and reads all 77 tokens.

    python benchmarks/prompts.py                        # a text tower of ViT-B/16's size, random weights; 3 minutes
    python benchmarks/prompts.py --out benchmarks/results/prompts.json

The reference embeds fewer labels than ours does, since it takes as long for each; both are told as prompts a second.
"""

from statistics import median

import torch
from common import in_turn, parser, settings, write

from qks.model.prompts import DEFAULT_TEMPLATES, PromptPool
from qks.vlp.loading import load_vlp

LABELS = (
    "airport",
    "animal",
    "beach",
    "bear",
    "birds",
    "boats",
    "book",
    "bridge",
    "buildings",
    "cars",
    "castle",
    "cat",
    "cityscape",
    "clouds",
    "computer",
    "coral",
    "cow",
    "dancing",
    "dog",
    "earthquake",
    "elk",
    "fire",
    "fish",
    "flags",
    "flowers",
    "food",
    "fox",
    "frost",
    "garden",
    "glacier",
    "grass",
    "harbor",
    "horses",
    "house",
    "lake",
    "leaf",
    "map",
    "military",
    "moon",
    "mountain",
    "nighttime",
    "ocean",
    "person",
    "plane",
    "plants",
    "police",
    "protest",
    "railroad",
    "rainbow",
    "reflection",
    "road",
    "rocks",
    "running",
    "sand",
    "sign",
    "sky",
    "snow",
    "soccer",
    "sports",
    "statue",
    "street",
    "sun",
    "sunset",
    "surf",
    "swimmers",
    "tattoo",
    "temple",
    "tiger",
    "tower",
    "town",
    "toy",
    "train",
    "tree",
    "valley",
    "vehicle",
    "water",
    "waterfall",
    "wedding",
    "whales",
    "window",
    "zebra",
)  # the 81 concepts of NUS-WIDE


def label_by_label(vlp, pool, labels):
    """The textbook way: [C, E], each label's sentences in one batch, every token of the context computed."""
    with torch.no_grad():
        return torch.stack([vlp.model.encode_text(vlp.tokenizer(pool.prompts(label))).mean(0) for label in labels])


def main():
    sizes = {"labels": 27, "reference": 2, "rounds": 3, "batch-size": 256}
    args = parser(__doc__, sizes, {"labels": 3, "reference": 1, "rounds": 1}).parse_args()
    sizes = settings(args)
    torch.manual_seed(0)
    vlp = load_vlp() if args.quick else load_vlp("ViT-B-16", False)
    pool = PromptPool()
    step = max(1, len(LABELS) // args.labels)
    labels = [LABELS[i % len(LABELS)] for i in range(0, step * args.labels, step)]  # spread over the list
    few = labels[:: max(1, len(labels) // args.reference)][: args.reference]
    ours = pool.embed(vlp, few, args.batch_size, cache=False)
    reference = label_by_label(vlp, pool, few)
    apart = ((ours - reference).abs().max() / reference.abs().max()).item()
    places = (
        vlp.tokenizer([sentence for label in labels for sentence in pool.prompts(label)]).argmax(-1) + 1
    )  # as many tokens a sentence
    ways = {
        "reference": lambda: label_by_label(vlp, pool, few),
        "ours": lambda: pool.embed(vlp, labels, args.batch_size, cache=False),
    }
    times = in_turn(ways, args.rounds)
    prompts = {"reference": len(few) * len(DEFAULT_TEMPLATES), "ours": len(labels) * len(DEFAULT_TEMPLATES)}
    rates = {name: prompts[name] / median(times[name]) for name in ways}
    ratio = median(
        prompts["ours"] / fast / (prompts["reference"] / slow) for slow, fast in zip(times["reference"], times["ours"])
    )
    context = vlp.tokenizer.context_length
    print(
        f"reference {rates['reference']:.1f} prompts/s, ours {rates['ours']:.1f} prompts/s: {ratio:.2f} times; apart by {apart:.0e}"
    )
    print(
        f"tokens a sentence: {context} in the context, {places.float().mean():.1f} on average up to the end: {context / places.float().mean():.2f} times fewer"
    )
    write(
        args.out,
        {
            "prompts/s": {name: round(rate, 2) for name, rate in rates.items()},
            "ratio": round(ratio, 2),
            "apart": apart,
            "context": context,
            "mean_tokens": round(places.float().mean().item(), 2),
            "templates": len(DEFAULT_TEMPLATES),
        },
        sizes,
    )


if __name__ == "__main__":
    main()
