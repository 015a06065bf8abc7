"""The small mistakes that scripts/mutate.py makes on purpose, one at a time: each must make a test fail."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake: in `file`, the text `old`, which is there exactly once, becomes `new`."""

    file: str  # relative to the root
    old: str
    new: str
    tests: tuple[str, ...]  # the files in tests/ that are run; file::test where a file takes minutes


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
        ("return self.output(gathered), weights", "return self.output(gathered), self.dropout(weights)"),
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
        "qks/model/targets.py",
        ("test_losses.py",),
        ("annotated = targets != 0", "annotated = targets > 0"),
        ("return logits, targets > 0", "return logits, targets >= 0"),
    ),
    *mutants_of(
        "qks/evaluate/metrics.py",
        ("test_metrics.py", "test_protocols.py"),
        ("2 * correct / (predicted + total)", "correct / (predicted + total)"),
        ("(hits[:, :k] >= 0).sum()", "(hits >= 0).sum()"),
        ("(positives > 0) | count_absent_labels", "(positives > 1) | count_absent_labels"),
        ("(block != -1) & (block != 0) & (block != 1)", "(block != -1) & (block != 0) & (block > 1)"),
    ),
    *mutants_of(
        "qks/evaluate/protocols.py",
        ("test_protocols.py", "test_metrics.py", "test_own_data.py"),
        ("np.arange(n_seen, n_labels)", "np.arange(n_seen + 1, n_labels)"),
        ("images = np.ones_like(images)", "pass"),
        ("has_positive & has_negative", "has_positive | has_negative"),
        ("if max(topk) > len(", "if max(topk) >= len("),
        ("np.concatenate([seen, unseen])", "np.concatenate([unseen, seen])"),
        ("!= 0).any(axis=0)", "> 0).any(axis=0)"),
        ('parts.get("gzsl") or', 'parts.get("zsl") or'),
        ("len(stem) >= 3", "len(stem) >= 2"),
    ),
    *mutants_of(
        "qks/data/index.py",
        ("test_index.py", "test_splits.py", "test_data.py"),
        ("index.columns < S", "index.columns <= S"),
        ("order[n_held_out:])), data.subset(np.sort(order[:n_held_out]))", "order)), data.subset(np.sort(order))"),
        ("(-values.astype(np.int8)", "(values.astype(np.int8)"),
        ("(starts > 0) & (starts < E)", "starts < E"),
        ("(seen_counts > 0) | (counts == 0)", "seen_counts > 0"),
        ("\\0{state.st_size}\\0{state.st_mtime_ns}", "\\0{state.st_size}"),
    ),
    *mutants_of(
        "qks/data/splits.py",
        ("test_splits.py",),
        ("test.label_ids[: test.n_seen]", "test.label_ids[-test.n_seen :]"),
        ("train.image_folder == test.image_folder", "train.image_folder != test.image_folder"),
        ("max(saved, key=os.path.getmtime)", "min(saved, key=os.path.getmtime)"),
        ("if image not in names])", "if image in names])"),
        ("if cause not in (errno.EACCES,", "if cause in (errno.ENOENT,"),  # a full disk: saved elsewhere
    ),
    *mutants_of(
        "qks/model/fast.py",
        ("test_fast_query.py",),
        ("attention.query.bias) / d**0.5", "attention.query.bias) / d"),
        ("torch.softmax(scores, -1)", "torch.softmax(scores, 1)"),
        ("mask.mul_(2**16 / n_kept)", "mask"),
        ("if attention.dropout.training:\n        bias =", "if not attention.dropout.training:\n        bias ="),
        ("weights.expand(n_images, -1, -1, -1)", "weights"),  # one dropout for all images
        ('cost["absorbed"] < cost["projected"]', 'cost["absorbed"] <= cost["rest"]'),
    ),
    *mutants_of(
        "qks/model/tagger.py",
        ("test_tagging.py", "test_model.py"),
        ("check_image_exists(image)", "pass"),
        ("logits.sigmoid() >= torch.as_tensor(threshold)", "logits.sigmoid() > torch.as_tensor(threshold)"),
        ("descending=True, stable=True", "descending=True, stable=False"),
        ("columns[order][:top_k]", "columns[order]"),
        ("with eval_mode(self.head):", "if True:"),
    ),
    *mutants_of(
        "qks/tokens/store.py",
        ("test_cache.py",),
        (  # the line is there before its numbers
            """        write_flushed(self.numbers, raw.data, start * self.item_bytes)  # first the numbers,
        write_flushed(self.record, batch.line().encode())  # then the line that says they are there
""",
            """        write_flushed(self.record, batch.line().encode())
        write_flushed(self.numbers, raw.data, start * self.item_bytes)
""",
        ),
        ("os.fsync(file.fileno())", "file.flush()"),
        ("(stop - 1) // self.views", "stop // self.views"),
        ("batch.stop <= n_items", "batch.stop < n_items"),
        ("end <= batch.start < batch.stop", "end < batch.start < batch.stop"),
        ("images * n_views + views", "images + n_views * views"),
        ("self.offset + row * size", "row * size"),
    ),
    *mutants_of(
        "qks/tokens/cache.py",
        ("test_cache.py",),
        ("|{stat.st_mtime_ns}|{stat.st_ctime_ns}", ""),
        ('(folder / "finished.txt").unlink(missing_ok=True)', "pass"),
        ("file.n_bytes - min(file.size, file.n_bytes)", "file.n_bytes"),
        ("images.data.path(items[0] // images.views)", "images.data.path(items[0])"),
        ("n_items = (meta.get(", "n_items = 2 * (meta.get("),
    ),
    *mutants_of(
        "qks/train/checkpoint.py",
        ("test_checkpoint.py",),
        (  # the name is there before the bytes are safe
            """        with open(part, "rb+") as file:
            os.fsync(file.fileno())  # the bytes reach the disk before the name does
        os.replace(part, path)
""",
            """        os.replace(part, path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
""",
        ),
        ("os.replace(part, path)\n        _flush_folder(folder)", "os.replace(part, path)"),
        ("list(checkpoints)[-keep:]", "list(checkpoints)[:keep]"),
        ('steps_to_keep.add(int(file.metadata()["best"]))', "steps_to_keep.add(step)"),
        ("in reversed(list_checkpoints(folder).values())", "in list_checkpoints(folder).values()"),
        ('folder.glob(".step-*.part")', 'folder.glob("step-*.part")'),
        ("if not all(tensor.isfinite().all()", "if not any(tensor.isfinite().all()"),
    ),
    *mutants_of(
        "qks/data/own_splits.py",
        ("test_own_data.py",),
        ("int(difference < 0)", "int(difference > 0)"),
        ("desire[chosen, labels_of[image]] -= 1", "desire[chosen, labels_of[image]] -= 0"),
        ("if not count and shown[label]]", "if not count]"),
        ("if name not in known]", "if name in known]"),
    ),
    *mutants_of(
        "qks/train/selection.py",
        ("test_training.py",),
        (
            'evaluate_scores(logits, labels, n_seen, topk, rules)["zsl"]',
            'evaluate_scores(logits, labels, n_seen, topk, rules)["gzsl"]',
        ),
        ('metrics["mAP"] + sum(', 'metrics["mAP"] - sum('),
        ("[:, :n_columns]", "[:, -n_columns:]"),
        ("n_labels <= n_seen", "n_labels < n_seen"),
    ),
    *mutants_of(
        "qks/train/trainer.py",
        ("test_trainer.py::test_the_memory_of_a_step",),
        ("return 4 * _COPIES_OF_WEIGHTS * weights +", "return 0 * weights +"),
        ("config.batch_size / processes / config.accumulate", "config.batch_size / config.accumulate"),
        ("needed = step_bytes(head, config, accelerator.num_processes)", "needed = 0"),
    ),
    *mutants_of(
        "qks/experiment/run_folder.py",
        ("test_reproduce.py::test_a_replaced_run_keeps_its_tokens",),
        (  # a kill leaves a run that looks finished
            '    "results.json",\n    "table.md",\n    "model/head.safetensors",\n',
            '    "table.md",\n    "model/head.safetensors",\n    "results.json",\n',
        ),
        ('"training/seed*/.lock",', '"training/seed*/.lock",\n    "tokens/tokens.bin",'),
    ),
]
