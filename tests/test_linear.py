"""The linear map by oneDNN: the same numbers and gradients, only where it may be used, and invisible outside."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qks.core import arithmetic
from qks.core.arithmetic import (
    DirectAttention,
    FastLinears,
    can_use_onednn,
    in_chunks,
    linear,
    mkl_suits_processor,
    onednn_agrees,
    tower_arithmetic,
)

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not onednn_agrees(), reason="this torch has no oneDNN linear"
)


@pytest.fixture(autouse=True)
def another_makers_processor(monkeypatch):
    "As on a processor that is not Intel's, wherever the tests run."
    monkeypatch.setattr(arithmetic, "mkl_suits_processor", lambda: False)


def counted(monkeypatch, name):
    "A list that grows by one at every call of one of the module's functions."
    calls = []
    original = getattr(arithmetic, name)

    def spy(*args):
        calls.append(name)
        return original(*args)

    monkeypatch.setattr(arithmetic, name, spy)
    return calls


@pytest.fixture
def used(monkeypatch):
    return counted(monkeypatch, "_product")  # every product that oneDNN computes


@pytest.mark.parametrize("shape", [(5, 64), (2, 5, 64), (2, 3, 5, 64), (1, 64)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch(shape, bias):
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    layer = nn.Linear(64, 48, bias=bias)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(linear(x, layer.weight, layer.bias), expected, rtol=1e-5, atol=1e-5)
    expected_gradients = torch.autograd.grad(expected.pow(2).sum(), [x, *layer.parameters()])
    gradients = torch.autograd.grad(linear(x, layer.weight, layer.bias).pow(2).sum(), [x, *layer.parameters()])
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-4)


def test_gradients_by_differences():
    "The operator is fp32 only, so the check is coarse: a step of 1e-2, exact for a linear map up to rounding."
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    weight = torch.randn(2, 4)
    bias = torch.randn(2)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
        (gradient,) = torch.autograd.grad(linear(x, weight, bias).sum(), tensor)
        with torch.no_grad():
            for place in range(tensor.numel()):
                step = torch.zeros(tensor.numel()).index_fill_(0, torch.tensor([place]), 1e-2).view(tensor.shape)
                moved = [tensor + step if part is tensor else part for part in (x, weight, bias)]
                rise = (linear(*moved) - linear(x, weight, bias)).sum() / 1e-2
                assert gradient.flatten()[place].item() == pytest.approx(rise.item(), abs=1e-3)
        tensor.requires_grad_(False)


@needs_onednn
def test_tokens_that_are_frozen_cost_no_gradient(used):
    x = torch.randn(2, 5, 8)
    layer = nn.Linear(8, 8)
    linear(x, layer.weight, layer.bias).sum().backward()
    assert len(used) == 1 and layer.weight.grad.any() and layer.bias.grad.any()  # one product: forward
    linear(x.requires_grad_(), layer.weight, layer.bias).sum().backward()
    assert len(used) == 3 and x.grad.any()  # forward, and the gradient of x


def test_strided_and_expanded_input():
    layer = nn.Linear(8, 6)
    x = torch.randn(1, 5, 8).expand(3, -1, -1)
    for strange in (x, torch.randn(5, 3, 8).transpose(0, 1), torch.randn(8, 5).T, torch.randn(2, 5, 16)[..., ::2]):
        torch.testing.assert_close(linear(strange, layer.weight, layer.bias), layer(strange), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["bf16", "fp64", "autocast", "off", "empty", "vector"])
def test_everything_else_goes_to_torch(used, case):
    x = torch.randn(2, 8)
    layer = nn.Linear(8, 4)
    if case == "bf16":
        x = x.bfloat16()
        layer = layer.bfloat16()
    if case == "fp64":
        x = x.double()
        layer = layer.double()
    if case == "empty":
        x = x[:0]
    if case == "vector":
        x = x[0]
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"),
        torch.backends.mkldnn.flags(enabled=case != "off"),
    ):
        assert torch.equal(linear(x, layer.weight, layer.bias), layer(x))
    assert not used


@needs_onednn
def test_a_second_derivative_is_refused_and_not_wrong():
    x = torch.randn(2, 4, requires_grad=True)
    layer = nn.Linear(4, 4)
    (gradient,) = torch.autograd.grad(linear(x, layer.weight, layer.bias).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


@needs_onednn
def test_inside_the_context_onednn_computes_every_linear_map(used):
    torch.manual_seed(0)
    tower = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    tokens = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = tower(tokens)
        assert not used
        with DirectAttention(), FastLinears():
            actual = tower(tokens)
    assert len(used) == 4  # in and out of the attention, in and out of the feed-forward
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shortcut", [True, False])
def test_the_context_leaves_everything_as_it_was(used, shortcut):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(shortcut)
    try:
        with torch.no_grad(), pytest.raises(ZeroDivisionError), DirectAttention(), FastLinears():
            raise ZeroDivisionError
        assert torch.backends.mha.get_fastpath_enabled() is shortcut
        F.linear(torch.zeros(2, 2), torch.zeros(2, 2))
        assert not used
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# ---- which library


@pytest.mark.parametrize(
    "description, mkl, suits",
    [
        ("vendor_id\t: GenuineIntel", True, True),
        ("vendor_id\t: AuthenticAMD", True, False),
        ("CPU implementer : 0x41", False, False),
        ("vendor_id\t: GenuineIntel", False, False),
    ],
)
def test_mkl_suits_intels_processors(monkeypatch, description, mkl, suits):
    monkeypatch.setattr(arithmetic.Path, "read_text", lambda *args, **options: f"processor\t: 0\n{description}\n")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert mkl_suits_processor.__wrapped__() is suits


def test_without_a_list_of_processors_the_system_is_asked(monkeypatch):
    def absent(*args, **options):
        raise FileNotFoundError

    monkeypatch.setattr(arithmetic.Path, "read_text", absent)
    monkeypatch.setattr(arithmetic.platform, "processor", lambda: "Intel64 Family 6 Model 85 Stepping 7, GenuineIntel")
    assert mkl_suits_processor.__wrapped__() is torch.backends.mkl.is_available()


@needs_onednn
def test_on_intels_processor_mkl_multiplies(monkeypatch, used):
    layer = nn.Linear(8, 8)
    x = torch.randn(3, 8)
    linear(x, layer.weight, layer.bias)
    assert len(used) == 1
    monkeypatch.setattr(arithmetic, "mkl_suits_processor", lambda: True)
    assert torch.equal(linear(x, layer.weight, layer.bias), layer(x))
    with torch.no_grad(), tower_arithmetic(torch.device("cpu"), "fp32", 768):
        layer(x)
    assert len(used) == 1


# ---- the operator is not promised to stay


def missing(*args):
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def refused(*args):
    raise RuntimeError("could not create a primitive descriptor")


def other_arguments(x, weight):
    return x @ weight.T


def other_meaning(x, weight, bias, *rest):
    return x @ weight.T


@pytest.fixture
def operator(monkeypatch):
    "Put another function in the operator's place."

    def put(function):
        monkeypatch.setattr(
            torch.ops, "mkldnn", SimpleNamespace(_linear_pointwise=function) if function else SimpleNamespace()
        )
        onednn_agrees.cache_clear()

    yield put
    monkeypatch.undo()
    onednn_agrees.cache_clear()


def check_against_torch():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8, requires_grad=True)
    layer = nn.Linear(8, 6)
    expected = layer(x)
    actual = linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    expected_gradients = torch.autograd.grad(expected.pow(2).sum(), [x, *layer.parameters()])
    gradients = torch.autograd.grad(actual.pow(2).sum(), [x, *layer.parameters()])
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-5)
    with torch.no_grad(), FastLinears():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [None, missing, refused, other_arguments, other_meaning])
def test_without_the_operator_torch_answers(operator, function, recwarn):
    operator(function)
    assert not onednn_agrees() and not can_use_onednn(torch.zeros(2, 2), torch.zeros(2, 2))
    check_against_torch()
    assert not recwarn.list


@needs_onednn
def test_an_operator_that_fails_later_is_replaced_call_by_call(operator):
    original = torch.ops.mkldnn._linear_pointwise
    calls = []

    def once(*args):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("could not execute a primitive")
        return original(*args)

    operator(once)
    check_against_torch()
    assert len(calls) > 3  # asked each time
    with pytest.raises(RuntimeError, match="shape"):
        linear(torch.zeros(2, 3), torch.zeros(4, 5))


# ---- direct attention


def rows_multiplied(attention, *inputs, **options):
    "The shapes of the first factors of all matrix products in a call, attention's own apart."
    shapes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                shapes.append(tuple(next(arg for arg in args if arg.ndim > 1).shape))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        attention(*inputs, need_weights=False, **options)
    return shapes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_product_is_one(precision):
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(3, 5, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            assert (5, 3, 16) in rows_multiplied(attention, x, x, x)  # five small products
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        with DirectAttention():
            assert rows_multiplied(attention, x, x, x)[0] == (15, 16)


@pytest.fixture
def direct(monkeypatch):
    return counted(monkeypatch, "direct_attention")


CAUSAL = torch.full((5, 5), -torch.inf).triu_(1)


def check_direct(direct, attention, inputs, n_direct, rtol=1e-5, **options):
    torch.manual_seed(0)
    expected = attention(*inputs, **options)
    torch.manual_seed(0)
    with DirectAttention():
        actual = attention(*inputs, **options)
    assert len(direct) == n_direct
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("layer", [{}, {"bias": False}, {"batch_first": False}], ids=str)
@pytest.mark.parametrize("mask", [None, CAUSAL, CAUSAL < 0], ids=["all", "causal", "forbidden"])
def test_direct_attention_is_torchs(direct, layer, mask):
    attention = nn.MultiheadAttention(16, 2, **{"batch_first": True, **layer}).eval()
    x = torch.randn(5, 5, 16)
    check_direct(direct, attention, (x, x, x), 1, need_weights=False, attn_mask=mask)


@pytest.mark.parametrize(
    "layer, options",
    [
        ({}, {"need_weights": True}),
        ({}, {"key_padding_mask": torch.arange(5).expand(3, 5) > 3}),
        ({}, {"attn_mask": CAUSAL.expand(6, 5, 5)}),
        ({"add_bias_kv": True}, {}),
        ({"add_zero_attn": True}, {}),
        ({"dropout": 0.5}, {}),
    ],
    ids=str,
)
def test_a_call_for_more_goes_to_torch(direct, layer, options):
    attention = nn.MultiheadAttention(16, 2, batch_first=True, **layer).train("dropout" in layer)
    x = torch.randn(3, 5, 16)
    check_direct(direct, attention, (x, x, x), 0, **{"need_weights": False, **options})


def test_a_mask_of_truths_goes_to_torch(direct):
    "A layer turns it into numbers; the function itself may be given one."
    x = torch.randn(5, 3, 16)
    weight = torch.randn(48, 16)

    def attend(*inputs):
        return F.multi_head_attention_forward(
            *inputs,
            16,
            2,
            weight,
            None,
            None,
            None,
            False,
            0.0,
            weight[:16],
            None,
            need_weights=False,
            attn_mask=CAUSAL < 0,
        )

    check_direct(direct, attend, (x, x, x), 0)


def test_attention_to_other_tokens_goes_to_torch(direct):
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(3, 5, 16)
    y = torch.randn(3, 5, 16)
    for inputs in ((x, y, y), (x, y, x)):
        check_direct(direct, attention, inputs, 0, need_weights=False)
    check_direct(direct, attention, (x[0],) * 3, 0, need_weights=False)


@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_large_tower_on_a_cpu_gets_it(monkeypatch, intel, precision):
    monkeypatch.setattr(arithmetic, "mkl_suits_processor", lambda: intel)
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(3, 5, 16)
    with tower_arithmetic(torch.device("cpu"), precision, 768):
        assert not [shape for shape in rows_multiplied(attention, x, x, x) if len(shape) == 3]


# ---- a few images at a time


@pytest.mark.parametrize(
    "n_images, n_tokens, parts",
    [(20, 197, [8, 8, 4]), (8, 197, [8]), (3, 2000, [1, 1, 1]), (5, 1, [5]), (0, 197, [0])],
    ids=str,
)
def test_a_cpu_gets_a_few_images_at_a_time(n_images, n_tokens, parts):
    sizes = []

    def double(chunk):
        sizes.append(len(chunk))
        return 2 * chunk

    images = torch.randn(n_images, 3)
    assert torch.equal(in_chunks(double, images, n_tokens), 2 * images)
    assert sizes == parts


def test_another_device_gets_all_at_once():
    assert in_chunks(len, torch.empty(20, 3, device="meta"), 1600) == 20


@pytest.mark.parametrize(
    "precision, width, half, faster",
    [("fp32", 768, False, True), ("fp32", 192, False, False), ("bf16", 768, True, False)],
)
def test_arithmetic_of_a_tower(used, precision, width, half, faster):
    layer = nn.Linear(8, 8)
    x = torch.randn(3, 8)
    with torch.no_grad(), tower_arithmetic(torch.device("cpu"), precision, width):
        actual = layer(x)
    assert actual.dtype == (torch.bfloat16 if half else torch.float32)
    assert len(used) == (faster and can_use_onednn(x, layer.weight))


@pytest.mark.parametrize("precision, allowed", [("fp32", False), ("bf16", True)])
def test_full_precision_is_full_in_convolutions_too(monkeypatch, precision, allowed):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with tower_arithmetic(torch.device("cpu"), precision, 8):
        assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32


def test_a_compiled_graph_is_not_broken():
    x = torch.randn(4, 6)
    weight = torch.randn(3, 6)
    torch.testing.assert_close(torch.compile(linear, fullgraph=True, backend="eager")(x, weight), x @ weight.T)


def test_one_thread_at_a_time_changes_the_settings_of_the_process():
    order = []

    def other():
        with tower_arithmetic(torch.device("cpu"), "fp32", 8):
            order.append("other")

    cpu = torch.device("cpu")
    with tower_arithmetic(cpu, "fp32", 8), tower_arithmetic(cpu, "fp32", 8):  # nested in one thread
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
