"""Views drawn per epoch, tokens moved to a device, batches read ahead."""

import threading
import time

import pytest
import torch

from qks.core import QKSError
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import bce_loss
from qks.tokens import DiskTokens, LiveTokens, StoredTokens, TokenSource
from qks.tokens.store import OpenFile
from qks.tokens.stream import ViewSampler, read_ahead, read_batches, send, to_device_if_it_fits
from qks.train.config import TrainConfig
from qks.train.devices import make_accelerator
from qks.train.loop import fit
from qks.train.steps import train_epoch
from qks.train.targets import Targets
from qks.train.trainer import Trainer

N = 12
V = 3


@pytest.fixture
def views():
    "Tokens [n, V, N, D] whose every number says which image and view it is."
    return (torch.arange(N * V).view(N, V, 1, 1) * torch.ones(1, 1, 4, 64)).half()


def test_every_source_plays_its_part(views, tmp_path, tiny_vlp):
    (tmp_path / "tokens").write_bytes(views.numpy().tobytes())
    on_disk = DiskTokens(OpenFile(tmp_path / "tokens"), views.shape, views.dtype)
    for tokens in (views[:, 0], on_disk, ViewSampler(views), ViewSampler(on_disk)):
        assert isinstance(tokens, TokenSource) and isinstance(tokens, StoredTokens)
    computed = LiveTokens(tiny_vlp, [])
    assert isinstance(computed, TokenSource) and not isinstance(computed, StoredTokens)


def test_one_view_per_image(views):
    sampler = ViewSampler(views)
    assert len(sampler) == N
    for rows in (torch.tensor([3, 0, 3]), [5], slice(2, 6)):
        found = sampler[rows]
        images = torch.arange(N)[rows]
        assert found.shape == (len(images), 4, 64)
        assert torch.equal(found[:, 0, 0].long(), images * V + sampler.view[images])


def test_the_draw_depends_on_seed_and_epoch_alone(views):
    def draws(seed, epochs):
        sampler = ViewSampler(views, seed)
        found = []
        for epoch in epochs:
            sampler.set_epoch(epoch)
            found.append(sampler.view.tolist())
        return found

    torch.manual_seed(0)
    first = draws(0, range(40))
    torch.manual_seed(1)
    assert draws(0, [7])[0] == first[7] and draws(0, reversed(range(40))) == first[::-1]
    assert draws(1, range(40)) != first and len({tuple(draw) for draw in first}) > 30
    counts = torch.tensor(first).flatten().bincount(minlength=V)
    assert len(counts) == V and counts.min() > 0.25 * counts.sum()


def test_tokens_without_views_are_refused(views):
    with pytest.raises(QKSError, match="hold no views"):
        ViewSampler(views[:, 0])


def test_fit_sets_the_epoch(views):
    epochs = []

    class Watched(ViewSampler):
        def set_epoch(self, epoch):
            epochs.append(epoch)
            super().set_epoch(epoch)

    torch.manual_seed(0)
    labels = torch.where(torch.rand(N, 3) < 0.5, 1, -1)
    tokens = torch.randn(N, V, 4, 64)
    names = torch.randn(3, 8)
    fit(
        QKSHead(torch.randn(64, 8), HeadConfig(2, 1)),
        (Watched(tokens), labels),
        names,
        (tokens[:, 0], labels),
        TrainConfig(epochs=3, topk=(1,)),
    )
    assert epochs == [0, 1, 2, 3]  # 0 by the constructor


@pytest.mark.parametrize("seeds", [(0, 1, 2), (7, 5, 2**40)], ids=str)
def test_every_seed_draws_its_own_views(views, seeds):
    "Seed 0 draws epoch by epoch; the same seed draws the same again."
    labels = torch.where(torch.arange(N)[:, None] % 3 == torch.arange(3), 1, -1)
    names = torch.randn(3, 8)
    drawn = []

    class Watched(ViewSampler):
        def __getitem__(self, rows):
            drawn[-1].add(tuple(self.view.tolist()))
            return super().__getitem__(rows)

    tokens = torch.randn(N, V, 4, 64)
    for seed in (*seeds, seeds[0]):
        drawn.append(set())
        fit(
            QKSHead(torch.randn(64, 8), HeadConfig(2, 1)),
            (Watched(tokens), labels),
            names,
            (tokens[:, 0], labels),
            TrainConfig(epochs=3, topk=(1,), seed=seed),
        )
    assert len(set.union(*drawn)) == 9 and drawn[3] == drawn[0]
    if seeds[0] == 0:
        sampler = ViewSampler(tokens)
        first = set()
        for epoch in (1, 2, 3):
            sampler.set_epoch(epoch)
            first.add(tuple(sampler.view.tolist()))
        assert drawn[0] == first


def test_training_sees_the_drawn_views(views):
    sampler = ViewSampler(torch.randn(N, V, 4, 64))
    sampler.set_epoch(5)
    chosen = sampler.tokens[torch.arange(N), sampler.view]
    losses = []
    for tokens in (sampler, chosen):
        torch.manual_seed(0)
        head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
        optimizer = torch.optim.SGD(head.parameters(), lr=1e-2)
        losses.append(
            train_epoch(
                head,
                tokens,
                torch.ones(N, 3),
                torch.ones(3, 8),
                bce_loss,
                optimizer,
                5,
                torch.Generator().manual_seed(0),
            )
        )
    assert losses[0] == losses[1]


def test_tokens_stay_where_there_is_no_room(monkeypatch):
    tokens = torch.zeros(10)
    assert to_device_if_it_fits(tokens, "cpu") is tokens
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    assert to_device_if_it_fits(tokens, "cuda") is tokens  # 40 bytes fit, but not with the spare ones
    moved = []
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("empty"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append("free") or (100, 200))
    to_device_if_it_fits(tokens, "cuda", spare=60)
    to_device_if_it_fits(tokens, "cuda", spare=61)
    to_device_if_it_fits(tokens, "cuda", step=41, spare=20)
    assert moved == [torch.device("cuda")]
    assert asked == ["empty", "free"] * 3  # memory that torch holds of an earlier training counts as free only then


def test_tokens_of_a_file_go_to_the_device_in_parts(tmp_path, monkeypatch):
    values = torch.randn(10, 3, 4)
    (tmp_path / "tokens").write_bytes(values.numpy().tobytes())
    tokens = DiskTokens(OpenFile(tmp_path / "tokens"), values.shape, torch.float32)
    read = []
    read_items = DiskTokens.read_items
    assert to_device_if_it_fits(tokens, "cpu") is tokens
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (values.nbytes + 10, 0))

    def watched(self, rows, axes=1):
        read.append(len(rows))
        return read_items(self, rows, axes)

    monkeypatch.setattr(DiskTokens, "read_items", watched)
    assert to_device_if_it_fits(tokens, "cuda", spare=11) is tokens and read == []
    monkeypatch.setattr("qks.tokens.store.ITEMS_AT_ONCE", 4)
    moved = tokens.to("meta")  # stands for a GPU
    assert moved.device.type == "meta" and moved.shape == values.shape and read == [1, 4, 4, 2]
    to = DiskTokens.to
    monkeypatch.setattr(DiskTokens, "to", lambda self, device: (device.type, to(self, "cpu")))
    device, found = to_device_if_it_fits(tokens, "cuda", spare=10)
    assert device == "cuda" and torch.equal(found, values)


def test_views_go_to_the_device_as_well(views, monkeypatch):
    sampler = ViewSampler(views, seed=3)
    assert sampler.nbytes == views.nbytes and sampler.device == views.device
    moved = sampler.to("meta")  # stands for a GPU
    moved.set_epoch(2)
    assert moved.device.type == moved.view.device.type == "meta" and moved.seed == 3
    assert moved[torch.tensor([2, 0], device="meta")].shape == (2, 4, 64) and moved[[1]].device.type == "meta"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (views.nbytes + 10, 0))
    assert to_device_if_it_fits(sampler, "cuda", spare=11) is sampler
    to = torch.Tensor.to

    def to_meta(self, device):
        return to(self, "meta" if torch.device(device).type == "cuda" else device)

    monkeypatch.setattr(torch.Tensor, "to", to_meta)
    assert to_device_if_it_fits(sampler, "cuda", spare=10).device.type == "meta"


def test_a_trainer_asks_for_room_for_its_views(views, monkeypatch):
    asked = []
    elsewhere = ViewSampler(views)
    monkeypatch.setattr(
        "qks.train.trainer.to_device_if_it_fits", lambda tokens, device, step: asked.append(tokens) or elsewhere
    )
    sampler = ViewSampler(views)
    head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
    trainer = Trainer(
        head,
        sampler,
        Targets(-torch.ones(N, 3)),
        torch.randn(3, 8),
        TrainConfig(),
        make_accelerator(torch.device("cpu")),
    )
    assert asked == [sampler] and trainer.tokens is elsewhere


@pytest.mark.parametrize("ahead", [0, 1, 2, 100])
@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_batches_come_in_order(ahead, batch_size):
    tokens = torch.randn(N, 2, 3)
    batches = torch.randperm(N).split(batch_size)
    found = list(read_batches(tokens, batches, ahead))
    assert len(found) == len(batches) and all(torch.equal(part, tokens[rows]) for part, rows in zip(found, batches))
    assert list(read_batches(tokens, [], ahead)) == []


class Rows(int):
    "Stands for a batch on the processor."

    device = torch.device("cpu")

    def __init__(self, rows):
        self.pinned = False
        self.sent = None

    def is_pinned(self):
        return self.pinned

    def pin_memory(self):
        self.pinned = threading.current_thread()
        return self

    def to(self, device, non_blocking=False):
        self.sent = (torch.device(device), non_blocking)
        return self


class Counted:
    "Tokens that count how often they were read, and by which thread."

    def __init__(self, fail_at=None):
        self.read = 0
        self.threads = set()
        self.fail_at = fail_at

    def __getitem__(self, rows):
        self.read += 1
        self.threads.add(threading.current_thread())
        if self.read == self.fail_at:
            raise QKSError("this batch cannot be read")
        return Rows(rows)


def test_no_more_than_so_many_wait():
    tokens = Counted()
    for i, _ in enumerate(read_batches(tokens, range(20), ahead=3)):
        time.sleep(0.01)
        assert tokens.read <= i + 4
    assert tokens.read == 20 and threading.main_thread() not in tokens.threads


@pytest.mark.parametrize(
    "device, ahead", [("cpu", 0), (torch.device("cpu"), 0), ("cuda", 2), (torch.device("cuda:1"), 2)], ids=str
)
def test_a_device_has_batches_waiting_and_the_processor_none(device, ahead):
    tokens = Counted()
    for i, _ in enumerate(read_ahead(tokens, range(20), device)):
        time.sleep(0.005)
        assert tokens.read == min(20, i + 1 + ahead)
    assert (threading.main_thread() in tokens.threads) == (ahead == 0)


def test_tokens_that_are_on_the_device_are_not_read_ahead():
    tokens = Counted()
    tokens.device = torch.device("cuda:0")
    for i, batch in enumerate(read_ahead(tokens, range(20), "cuda")):
        assert tokens.read == i + 1 and not batch.pinned
    assert tokens.threads == {threading.main_thread()}


def test_a_gpu_fetches_batches_by_itself():
    "Pinned by the thread that reads, or at last when they are sent; to another device they go as they are."
    for batch in read_ahead(Counted(), range(3), "cuda"):
        thread = batch.pinned
        assert thread is not threading.main_thread()
        assert send(batch, "cuda").sent == (torch.device("cuda"), True) and batch.pinned is thread
    unpinned = send(Rows(1), "cuda:1")
    assert unpinned.pinned is threading.main_thread() and unpinned.sent == (torch.device("cuda:1"), True)
    elsewhere = send(Rows(1), "cpu")
    assert elsewhere.pinned is False and elsewhere.sent == (torch.device("cpu"), False)


def test_what_fails_beside_is_raised_here():
    found = []
    with pytest.raises(QKSError, match="cannot be read"):
        for batch in read_batches(Counted(fail_at=3), range(9)):
            found.append(batch)
    assert found == [0, 1]


def test_stopping_early_leaves_no_thread():
    before = threading.active_count()
    tokens = Counted()
    for batch in read_batches(tokens, range(1000)):
        if batch == 2:
            break
    del batch
    deadline = time.time() + 5
    while threading.active_count() > before and time.time() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before and tokens.read < 10


def test_parts_of_views_are_no_larger(tmp_path, monkeypatch):
    values = torch.randn(6, 3, 2, 4)
    read = []
    read_items = DiskTokens.read_items
    (tmp_path / "tokens").write_bytes(values.numpy().tobytes())
    monkeypatch.setattr("qks.tokens.store.ITEMS_AT_ONCE", 6)

    def watched(self, rows, axes=1):
        read.append(len(rows))
        return read_items(self, rows, axes)

    monkeypatch.setattr(DiskTokens, "read_items", watched)
    tokens = DiskTokens(OpenFile(tmp_path / "tokens"), values.shape, torch.float32)
    assert torch.equal(tokens.to(torch.float64), values.double()) and read == [1, 2, 2, 2]
