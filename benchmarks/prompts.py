"""The prompt pool: prompts per second, beside the reference that embeds label by label and reads all 77 tokens.

    python benchmarks/prompts.py                        # a text tower of ViT-B/16's size, random weights; 3 minutes
    python benchmarks/prompts.py --out benchmarks/results/prompts.json

The reference embeds fewer labels, because it takes equally long for each; both are given in prompts per second.
"""

from statistics import median

import torch
from common import parser, settings, time_in_turn, write

from qks.model.prompts import DEFAULT_TEMPLATES, PromptPool
from qks.vlp.loading import load_vlp

LABELS = """
airport animal beach bear birds boats book bridge buildings cars castle cat cityscape clouds
computer coral cow dancing dog earthquake elk fire fish flags flowers food fox frost garden glacier
grass harbor horses house lake leaf map military moon mountain nighttime ocean person plane plants
police protest railroad rainbow reflection road rocks running sand sign sky snow soccer sports
statue street sun sunset surf swimmers tattoo temple tiger tower town toy train tree valley vehicle
water waterfall wedding whales window zebra
""".split()  # the 81 concepts of NUS-WIDE


def label_by_label(vlp, pool, labels):
    """The textbook way: [C, E], each label's sentences in one batch, every token of the context computed."""
    with torch.no_grad():
        features = [vlp.model.encode_text(vlp.tokenizer(pool.prompts(label))) for label in labels]  # C times [P, E]
        return torch.stack([sentences.mean(0) for sentences in features])


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
    sentences = [sentence for label in labels for sentence in pool.prompts(label)]
    mean_tokens = (vlp.tokenizer(sentences).argmax(-1) + 1).float().mean().item()  # per sentence, up to the end of text
    ways = {
        "reference": lambda: label_by_label(vlp, pool, few),
        "ours": lambda: pool.embed(vlp, labels, args.batch_size, cache=False),
    }
    times = time_in_turn(ways, args.rounds)
    prompts = {"reference": len(few) * len(DEFAULT_TEMPLATES), "ours": len(labels) * len(DEFAULT_TEMPLATES)}
    rates = {name: prompts[name] / median(times[name]) for name in ways}
    rounds = zip(times["reference"], times["ours"])
    ratio = median((prompts["ours"] / fast) / (prompts["reference"] / slow) for slow, fast in rounds)
    context = vlp.tokenizer.context_length
    print(
        f"reference {rates['reference']:.1f} prompts/s, ours {rates['ours']:.1f} prompts/s: {ratio:.2f} times; "
        f"apart by {apart:.0e}"
    )
    print(
        f"tokens per sentence: {context} in the context, {mean_tokens:.1f} on average up to the end: "
        f"{context / mean_tokens:.2f} times fewer"
    )
    write(
        args.out,
        {
            "prompts/s": {name: round(rate, 2) for name, rate in rates.items()},
            "ratio": round(ratio, 2),
            "apart": apart,
            "context": context,
            "mean_tokens": round(mean_tokens, 2),
            "templates": len(DEFAULT_TEMPLATES),
        },
        sizes,
    )


if __name__ == "__main__":
    main()
