"""One model asked by several threads at once, which wait for each other in the middle of their forward passes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import torch

from m2clip.evaluate.scoring import scoring_mode
from m2clip.towers.block import Switch, switched_off
from tests.clips import NAMES, random_video
from tests.methods.whole_models import OPTIONS, build

OTHERS = ["yawning", "sneezing"]
TOGETHER = 60  # seconds that a thread waits for the others at most, which happens only where a test fails


@contextmanager
def in_the_middle(model, act):
    """Within the context every forward pass does something once its vision tower is through."""

    def hook(*_):
        act()

    handle = model.visual.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def together(model, *asks):
    """The results of functions, each in a thread of its own, all of them in the middle of a forward pass together."""
    barrier = threading.Barrier(len(asks))

    def run(ask):
        with torch.no_grad():
            return ask()

    with in_the_middle(model, lambda: barrier.wait(TOGETHER)), ThreadPoolExecutor(len(asks)) as pool:
        return [future.result() for future in [pool.submit(run, ask) for ask in asks]]


def same(given, expected):
    assert torch.equal(given.similarity, expected.similarity)
    assert (given.logits is None) == (expected.logits is None)
    assert expected.logits is None or torch.equal(given.logits, expected.logits)


FORMS = {
    "names": lambda model, names: partial(model, random_video(), class_names=names),
    "label set": lambda model, names: partial(model, random_video(), model.label_set(names)),
    "model of its own": lambda model, names: partial(model.with_class_names(names), random_video()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", OPTIONS)
def test_label_sets_travel_with_the_call(method, form):
    model = build(method)
    with torch.no_grad():
        expected = [build(method).with_class_names(names)(random_video()) for names in (NAMES, OTHERS)]
    found = together(model, *(FORMS[form](model, names) for names in (NAMES, OTHERS, NAMES)))
    for given, own in zip(found, (*expected, expected[0]), strict=True):
        same(given, own)
    assert model.class_names == NAMES


def test_a_forward_pass_reads_the_label_set_once():
    model = build("m2clip")
    with torch.no_grad():
        expected = model(random_video())
        with in_the_middle(model, lambda: model.set_class_names(OTHERS)):
            same(model(random_video()), expected)
    assert model.class_names == OTHERS and model(random_video()).logits is None


@pytest.mark.parametrize("method", ["m2clip", "aim", "ma_fsar", "msta"])
def test_adapters_are_disabled_for_the_thread_alone(method):
    model = build(method)
    video = random_video()

    def plain():
        with model.adapters_disabled():
            return model(video)

    with torch.no_grad():
        expected = [plain(), model(video)]
    assert not torch.equal(expected[0].similarity, expected[1].similarity)
    for given, own in zip(together(model, plain, lambda: model(video)), expected, strict=True):
        same(given, own)


def test_disabled_adapters_nest_and_hold_for_models_of_the_same_weights_alone():
    model, other = build("m2clip"), build("m2clip")
    with torch.no_grad():
        adapted = model(random_video())
        with model.adapters_disabled():
            plain = model(random_video())
            with model.adapters_disabled("visual"):
                same(model.with_class_names()(random_video()), plain)
            same(model(random_video()), plain)
            same(other(random_video()), adapted)
        same(model(random_video()), adapted)


def test_scoring_leaves_the_mode_of_the_model_to_others():
    model = build("m2clip").train()
    with torch.no_grad():
        expected = build("m2clip")(random_video())
        with scoring_mode(model, None) as second, ExitStack() as first:
            first.enter_context(scoring_mode(model, OTHERS))
            first.close()  # the first thread is through while the second one goes on
            assert model.training
            same(second(random_video()), expected)
    assert model.training and model.class_names == NAMES


@pytest.mark.parametrize("method", ["m2clip", "st_adapter"])
def test_a_call_under_autocast_leaves_no_rounding_to_others(method):
    model, fresh = build(method), build(method)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            model(random_video())
        same(model(random_video()), fresh(random_video()))


def test_models_of_the_same_weights_follow_their_changes():
    model = build("m2clip")
    twin = model.with_class_names(OTHERS)
    model.double()
    with torch.no_grad():
        model.vc.fc.weight.zero_()
        assert twin(random_video()).similarity.dtype == torch.float64 and not twin.vc.fc.weight.any()
        assert torch.equal(twin(random_video()).similarity, model(random_video(), OTHERS).similarity)


def test_what_is_compiled_sees_that_adapters_are_disabled():
    switch = Switch()
    compiled = torch.compile(lambda x: x + 1 if switch.on else x, backend="eager", fullgraph=True)
    for _ in range(2):
        assert compiled(torch.zeros(1)) == 1
        with switched_off([switch]):
            assert compiled(torch.zeros(1)) == 0
