"""Configuration: recipes, overrides, and one clear line for every mistake."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest

from m2clip.choices import Crops, Statistics
from m2clip.config import RunConfig, flatten, load_config, read_yaml, save_config, validate
from m2clip.config_fields import EvalConfig, ModelConfig, deciding, same, setting, settings_of
from m2clip.errors import InputError


@pytest.mark.parametrize("seed", [2**63, 2**64])
def test_seeds_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(InputError, match="it must be below"):
        load_config(None, [f"seed={seed}"])


def test_every_whole_number_has_a_highest_value() -> None:
    counts = {name: setting for name, setting in settings_of(RunConfig).items() if setting.type is int}
    assert [name for name, setting in counts.items() if setting.at_most is setting.below is None] == []


def test_overrides_come_after_the_file_in_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: 1e-4, epochs: 3}\nmodel: {options: {width: 8}}\n")
    config = load_config(file, ["optim.lr=2e-4", "--optim.lr=3e-4", "model.options.text_width=4", "eval.crops=m2clip4"])
    assert (config.optim.lr, config.optim.epochs, config.eval.crops) == (3e-4, 3, "m2clip4")
    assert config.model.options == {"width": 8, "text_width": 4}
    assert load_config(None, ["optim.clip_grad=0.5", "optim.clip_grad=null"]).optim.clip_grad is None


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=1e-3", 1e-3),
        ("optim.lr=2", 2.0),
        ("optim.clip_grad=null", None),
        ("eval.crops=3", 3),
        ("model.image_size=224", 224),
        ("model.image_size=224x320", [224, 320]),
        ("model.image_size=[224, 320]", [224, 320]),
        ("model.image_size=[224, 224]", 224),
        ("model.image_size=null", None),
        ("data.flip=no", False),
        ("data.train=null", None),
        ("data.train=12", "12"),
        ("data.train=no", "no"),
        ("data.train= a: b #c", " a: b #c"),
        ("output=null", "null"),
        ("output=2020-01-01", "2020-01-01"),
        ("output=[a", "[a"),
        ("model={options: {width: 3}, method: aim}", "aim"),
        ("model.options={cmc_scale: 1e-3}", {"cmc_scale": 1e-3}),
        ("model.options.head_weights.supervised=0.5", {"head_weights": {"supervised": 0.5}}),
    ],
)
def test_values_of_overrides(tmp_path: Path, override: str, value: object) -> None:
    name = override.partition("=")[0]
    found = flatten(load_config(None, [override]))["model.method" if name == "model" else name.partition(".head")[0]]
    assert found == value and type(found) is type(value)


def test_numbers_and_dates_of_files(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "optim: {lr: '1e-3', epochs: '3', clip_grad: 1E5}\nmodel: {options: {cmc_scale: 1e-3}}\noutput: 2020-01-01\n"
    )
    config = load_config(file)
    assert (config.optim.lr, config.optim.epochs, config.optim.clip_grad) == (1e-3, 3, 1e5)
    assert config.model.options == {"cmc_scale": 1e-3} and config.output == "2020-01-01"
    for text in ("", "# nothing\n", "null"):
        file.write_text(text)
        assert load_config(file) == RunConfig()


def test_a_configuration_made_in_python_is_checked_as_well() -> None:
    config = RunConfig()
    config.optim.lr = 1
    validate(config)
    config.optim.lr = "1e-3"  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"^optim\.lr must be a number, not '1e-3'"):
        validate(config)
    config = RunConfig(model=ModelConfig(image_size=(32, 48)))  # type: ignore[arg-type]
    validate(config)
    assert config.model.image_size == [32, 48]


def test_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = load_config(
        "m2clip_ssv2_b16_32f", ["optim.clip_grad=1", "data.train=a list.txt", "model.image_size=224x320"]
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(tmp_path) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {num_frame: 8}", ("data.num_frame", "data.num_frames")),
        ("epochs: 3", ("epochs", "optim.epochs")),
        ("data: 3", ("data", "mapping")),
        ("optim: {epochs: many}", ("optim.epochs", "whole number", "many")),
        ("optim: {epochs: 1.5}", ("optim.epochs", "whole number")),
        ("optim: {epochs: 0}", ("optim.epochs", "1 or more")),
        ("optim: {lr: -1}", ("optim.lr", "above 0")),
        ("model: {image_size: 0}", ("model.image_size", "from 1 to 8192")),
        ("model: {image_size: [224, -1]}", ("model.image_size", "from 1 to 8192")),
        ("model: {image_size: [3, 224, 224]}", ("model.image_size", "height and width as in 224x320")),
        ("model: {image_size: large}", ("model.image_size", "'large'", "height and width as in 224x320")),
        ("model: {image_size: {height: 2}}", ("model.image_size", "height and width as in 224x320")),
        (f"model: {{image_size: 0x{'f' * 5000}}}", ("model.image_size", "from 1 to 8192")),
        ("optim: {epochs: 1000000000000000000000000}", ("optim.epochs", "1000000 or less")),
        ("optim: {accumulate: 99999999999999999999999}", ("optim.accumulate", "1000000 or less")),
        ("optim: {lr: 1e308}", ("optim.lr", "1000 or less")),
        ("optim: {weight_decay: 1e308}", ("optim.weight_decay", "1000 or less")),
        ("eval: {clips: 10001}", ("eval.clips", "10000 or less")),
        ("data: {workers: 1000000}", ("data.workers", "1024 or less")),
        ("timeout: 1e300", ("timeout", "1000000 or less")),
        (f"data: {{flip: 0x{'f' * 5000}}}", ("data.flip", "true or false", "thousands of digits")),
        (f"optim: {{epochs: 0x{'f' * 5000}}}", ("optim.epochs", "1000000 or less")),
        ("optim: {lr_floor: 1}", ("optim.lr_floor", "below 1")),
        ("optim: {lr_floor: -0.1}", ("optim.lr_floor", "0 or more")),
        ("optim: {beta2: 1.0}", ("optim.beta2", "below 1")),
        ("optim: {schedule: linear}", ("optim.schedule", "cosine_under_warmup", "linear")),
        ("episodes: {way: 1}", ("episodes.way", "2 or more")),
        ("episodes: {shots: 0}", ("episodes.shots", "1 or more")),
        ("episodes: {select_by: test}", ("episodes.select_by", "episodes.test is not set")),
        ("episodes: {way: five}", ("episodes.way", "whole number", "five")),
        ("optim: {lr: .nan}", ("optim.lr", "finite")),
        ("optim: {warmup_epochs: 20}", ("optim.warmup_epochs", "optim.epochs")),
        ("optim: {precision: fp8}", ("optim.precision", "bf16", "fp8")),
        ("data: {num_frames: 0}", ("data.num_frames", "1 or more")),
        ("data: {sampling: sparse}", ("data.sampling", "uniform, dense", "sparse")),
        ("data: {flip: sometimes}", ("data.flip", "true or false")),
        ("eval: {crops: 2}", ("eval.crops", "m2clip4")),
        ("model: {method: m3clip}", ("model.method", "m2clip")),
        ("model: {preset: mine}", ("model.preset", "official")),
        ("model: {options: {widht: 3}}", ("model.options.widht", "width")),
        ("model: {pretrained: 12}", ("model.pretrained", "text or null")),
        ("eval: {crops: true}", ("eval.crops", "one of 1, 3, m2clip4", "True")),
        ("optim: {epochs: 3.0}", ("optim.epochs", "whole number")),
        ("optim: {lr: yes}", ("optim.lr", "a number", "True")),
        ("data: {flip: 1}", ("data.flip", "true or false")),
        ("seed: null", ("seed", "whole number", "null")),
        ("model: null", ("model", "mapping", "null")),
        ("model: {options: null}", ("model.options", "mapping", "null")),
        ("model: {options: {width: !!python/name:os.system }}", ("not a configuration", "python/name")),
        ("model: {options: {width: {class_path: os.system}}}", ("model.options.width", "class_path")),
        ("model: {options: {width: wide}}", ("model.options.width", "wide")),
        ("model: {class_path: os.system}", ("unknown field model.class_path",)),
        ("seed: 1\n---\nseed: 2", ("not a configuration", "single document")),
        ("data: {num_frames: [1}", ("not a configuration",)),
        ("- 1", ("not a configuration",)),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text + "\n")
    with pytest.raises(InputError) as caught:
        load_config(file)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words)


@pytest.mark.parametrize("override", ["num_frames=3", "data.num_frames", "data.num_frames=x", "data=3", "a.b=1"])
def test_bad_overrides(override: str) -> None:
    with pytest.raises(InputError, match=override.partition("=")[0]):
        load_config(None, [override])


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="m2clip_k400_b16_8f"):
        load_config("m2clip_k401")
    with pytest.raises(InputError, match="File name too long"):
        load_config("a" * 5000)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="x.yaml"):
        load_config(tmp_path / "x.yaml")


def nested_aliases(levels: int) -> str:
    """A short text that stands for 2 to the power of `levels` values."""
    return "\n".join(["l0: &l0 [1]", *(f"l{n}: &l{n} [*l{n - 1}, *l{n - 1}]" for n in range(1, levels))])


MERGED = "\n".join(["l0: &l0 {a: 1}", *(f"l{n}: &l{n} {{<<: [*l{n - 1}, *l{n - 1}]}}" for n in range(1, 18))])
INDENTED = nested_aliases(18).replace("\n", "\n    ")


@pytest.mark.parametrize(
    "text",
    [
        f"model:\n  options:\n    {INDENTED}",
        MERGED,
        "model: {options: &a {b: *a}}",  # within itself
        "model: {options: {a: [" + "1, " * 5001 + "]}}",
    ],
)
def test_texts_that_stand_for_more_than_they_hold(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match="more than 5000 values, or aliases"):
        load_config(tmp_path / "run.yaml")
    for name in ("model.options", "model", "seed"):
        with pytest.raises(InputError, match="more than 5000 values, or aliases"):
            load_config(None, [f"{name}={text}"])
    # Where text is wanted, it is not read as YAML.
    assert load_config(None, [f"output={text}"]).output == text
    indented = text.replace("\n", "\n    ")
    for name in ("model", "seed"):
        (tmp_path / "run.yaml").write_text(f"{name}: |\n    {indented}")
        with pytest.raises(InputError, match="more than 5000 values, or aliases"):
            load_config(tmp_path / "run.yaml")


def test_the_work_of_checking_grows_with_the_text() -> None:
    def calls(levels: int) -> int:
        count = 0

        def tally(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(tally)
        try:
            with suppress(InputError):
                read_yaml(nested_aliases(levels), "text")
        finally:
            sys.setprofile(None)
        return count

    calls(2)  # imports
    assert calls(80) < 2.5 * calls(40)


@pytest.mark.parametrize("part", ["[", "a: ", "{a: ", "? ", "- ", "xxxxxxx"])
def test_deep_and_long_texts(tmp_path: Path, part: str) -> None:
    text = part * 10_000
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError):
        load_config(tmp_path / "run.yaml")
    with suppress(InputError):
        load_config(None, [f"output={text}"])


def test_only_a_regular_file_is_a_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "config.yaml")
    for path in (tmp_path / "pipe.yaml", tmp_path / "run", "/dev/zero"):
        with pytest.raises(InputError, match="neither a file nor a bundled recipe"):
            load_config(path)


def test_a_field_that_does_not_say_what_it_decides_is_refused() -> None:
    @dataclass
    class Wider(EvalConfig):
        frames: int = 8

    @dataclass
    class Run:
        eval: EvalConfig = field(default_factory=Wider)
        seed: int = setting(0, "training", "of the draw")

    Run.__annotations__["eval"] = Wider
    for kind in (Wider, Run):
        with pytest.raises(TypeError, match=r"Wider\.frames does not say what it decides"):
            settings_of(kind)
        with pytest.raises(TypeError, match=r"Wider\.frames does not say what it decides"):
            deciding(kind(), "training")
    for decides in ("", "trainings", "training, views"):
        with pytest.raises(ValueError, match="a field decides one or more of training, choice"):
            setting(0, decides, "of the draw")


def test_what_fields_decide() -> None:
    config = RunConfig()
    training, scores = deciding(config, "training"), deciding(config, "views", "scores")
    assert {"optim.lr", "seed", "data.sampling", "model.method"} <= training.keys()
    assert not {"output", "data.train", "data.workers", "eval.clips", "optim.compile", "keep"} & training.keys()
    assert {"eval.crops", "eval.on_error", "data.sampling"} <= scores.keys() and "optim.lr" not in scores
    assert deciding(config, "videos").keys() >= {"data.train", "data.classes"}
    with pytest.raises(ValueError, match="trainings"):
        deciding(config, "trainings")
    frozen = deciding(config, "clip", "views", "scores")
    assert {"model.clip", "model.pretrained", "model.tokenizer", "optim.precision"} <= frozen.keys()
    assert not {"data.augmentation", "optim.lr", "model.method"} & frozen.keys()


def test_declared_once_and_taken_elsewhere() -> None:
    from m2clip.data.clips import ClipSettings
    from m2clip.data.transforms import CROPS, NORMALIZATION

    @dataclass
    class Views:
        clips: int = same(EvalConfig, "clips")
        crops: int = same(EvalConfig, "crops", default=3)

    assert (Views().clips, Views().crops) == (1, 3) and deciding(Views(), "views") == {"clips": 1, "crops": 3}
    # What can be chosen is what there is an implementation of.
    assert get_args(Crops) == tuple(CROPS) and get_args(Statistics) == tuple(NORMALIZATION)
    of_run = settings_of(RunConfig)
    for name, declared in settings_of(ClipSettings).items():
        for section in ("data", "eval"):
            if (run := of_run.get(f"{section}.{name}")) is not None:
                assert declared.decides == run.decides


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2", "seed stands twice, on lines 1 and 2"),
        ("optim: {lr: 0.5}\ndata: {}\noptim: {epochs: 3}", "optim stands twice, on lines 1 and 3"),
        ("optim:\n  lr: 1\n  epochs: 3\n  lr: 2", "lr stands twice, on lines 2 and 4"),
    ],
)
def test_a_name_that_stands_twice(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("name", ["data.train", "output", "model.clip"])
def test_empty_text_is_no_value(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is empty: give a value"):
        load_config(None, [f"{name}="])


def test_options_are_read_by_their_type(tmp_path: Path) -> None:
    texts = ["model.options.prompt=a video of: {}", "model.options.width=5", "model.options.head_weights.vc=2"]
    for order in (texts, texts[::-1]):
        options = load_config(None, order).model.options
        assert options == {"prompt": "a video of: {}", "width": 5, "head_weights": {"vc": 2}}
    assert load_config(None, ["model.options.prompt={}"]).model.options == {"prompt": "{}"}
    for text, value in (("2024", "2024"), ("[a, b]", ["a", "b"]), ("null", None)):
        assert load_config(None, [f"model.options.word_list={text}"]).model.options == {"word_list": value}
    (tmp_path / "run.yaml").write_text('model: {options: {width: "5", word_list: ["1", "no"]}}')
    assert load_config(tmp_path / "run.yaml").model.options == {"width": 5, "word_list": ["1", "no"]}


def test_options_given_together_are_added_to_those_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text("model: {options: {width: 8, text_width: 8, head_weights: {vc: 2}}}")

    def options(*overrides: str) -> dict[str, object]:
        return load_config(recipe, overrides).model.options

    kept = {"text_width": 8, "head_weights": {"vc": 2}}
    assert options("model.options={width: 4}") == {"width": 4, **kept}
    assert options("model={options: {width: 4}}") == {"width": 4, **kept}
    assert options("model.options={}", "model.options={width: 4}") == {"width": 4}
    assert options("model.options.num_t_adapters=2", "model.method=aim") == {
        "num_t_adapters": 2
    }  # the recipe's are another method's
    with pytest.raises(InputError, match=r"model\.options\.widht.*width"):
        options("model.options={widht: 4}")
    with pytest.raises(InputError, match=r"model\.options must be a mapping"):
        options("model.options=4")
