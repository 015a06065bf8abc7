"""The small mistakes that scripts/mutate.py makes on purpose, one at a time: each must make a test fail."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake: in `file`, the text `old`, which is there exactly once, becomes `new`."""

    file: str  # relative to the root
    old: str
    new: str
    tests: tuple[str, ...]  # the files in tests/ that are run


def mutants_of(file, tests, *changes):
    """The mutants of one file, from pairs (old, new)."""
    return [Mutant(file, old, new, tests) for old, new in changes]


MUTANTS = [
    *mutants_of(
        "qks/model/query.py",
        ("test_query.py", "test_model.py"),
        ("/ self.head_width**0.5", "/ self.head_width"),
        ("-1)  # [B, h, K, N]", "-2)  # [B, h, K, N]"),
        ("self.dropout(weights) @ v", "weights @ v"),
        ("LAYER_NORM_EPS = 1e-12", "LAYER_NORM_EPS = 1e-3"),
        ("INIT_STD = 0.02", "INIT_STD = 0.2"),
        ("nn.init.zeros_(module.bias)", "nn.init.ones_(module.bias)"),
        ("nn.init.normal_(self.query_tokens, std=INIT_STD)", "nn.init.normal_(self.query_tokens)"),
        ("nn.GELU()", "nn.GELU('tanh')"),
        ("self.self_norm(x + self.dropout(", "self.self_norm(self.dropout("),
        ("self.cross_norm(x + self.dropout(", "self.self_norm(x + self.dropout("),
        ("self.cross_norm(x + self.dropout(", "self.cross_norm(x + ("),
        ("self.ffn_norm(x + self.dropout(", "(x + self.dropout("),
        ("n_heads = n_heads or max(1, width // 64)", "n_heads = n_heads or max(1, width // 32)"),
        ("ffn_width = ffn_width or 4 * width", "ffn_width = ffn_width or 2 * width"),
        ("if width % n_heads:", "if False:"),
        ("self.context_width = context_width or width", "self.context_width = width"),
        ("shape[2] != self.context_width", "shape[2] > self.context_width"),
        ("self.dropout(self.norm(self.query_tokens))", "self.dropout(self.query_tokens)"),
        ("attention.append(weights)", "attention.insert(0, weights)"),
    ),
    *mutants_of(
        "qks/model/losses.py",
        ("test_losses.py",),
        ("1 + negative[None, :] - positive[:, None]", "1 - negative[None, :] + positive[:, None]"),
        ("1 + negative[None, :] - positive[:, None]", "negative[None, :] - positive[:, None]"),
        ("image_targets < 0", "image_targets <= 0"),
        ("(hinge > 0).sum()", "(hinge >= 0).sum()"),
        ("(hinge > 0).sum().clamp(min=1)", "(hinge > 0).sum()"),
        ("return total / max(len(logits), 1)", "return total"),
        ("annotated = targets != 0", "annotated = targets > 0"),
        ("return logits, targets > 0", "return logits, targets >= 0"),
        ("max(entries.numel(), 1)", "max(len(logits), 1)"),
        ("LOG_FLOOR = 1e-5", "LOG_FLOOR = 1e-8"),
        ("UNMASKED_SCALE = 1000.0", "UNMASKED_SCALE = 100.0"),
        ("1 - present + margin", "1 - present - margin"),
        ("with torch.no_grad():", "with torch.enable_grad():"),
        ("** gamma_pos, (1 - correct) ** gamma_neg", "** gamma_neg, (1 - correct) ** gamma_pos"),
        ("correct.clamp(min=LOG_FLOOR)", "correct.clamp(min=LOG_FLOOR / 10)"),
        ("gamma_neg >= 0 and gamma_pos >= 0", "gamma_neg >= 0 and gamma_pos >= -1"),
        ("0 <= margin < 1", "0 <= margin <= 1"),
    ),
    *mutants_of(
        "qks/evaluate/metrics.py",
        ("test_metrics.py", "test_protocols.py"),
        ("2 * correct / (predicted + total)", "correct / (predicted + total)"),
        ("predicted = k * len(hits)", "predicted = max(topk) * len(hits)"),
        ("precision[positives > 0]", "precision[positives > 1]"),
        ("(block != -1) & (block != 0) & (block != 1)", "(block != -1) & (block != 0) & (block > 1)"),
    ),
    *mutants_of(
        "qks/evaluate/protocols.py",
        ("test_protocols.py", "test_metrics.py"),
        ("np.arange(n_seen, n_labels)", "np.arange(n_seen + 1, n_labels)"),
        ("images = np.ones_like(images)", "pass"),
        ("absent_labels=False", "absent_labels=True"),
        ("if max(topk) > len(", "if max(topk) >= len("),
    ),
]
