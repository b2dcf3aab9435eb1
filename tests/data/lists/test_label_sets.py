"""Class lists: the packaged ones are complete; names as words."""

import pytest

from m2clip.data.lists.label_sets import LABEL_SETS, load_class_names, match_key, prompt_name
from m2clip.errors import InputError

COUNTS = {"k400": 400, "k600": 600, "ssv2": 174, "ucf101": 101, "hmdb51": 51}


@pytest.mark.parametrize(("name", "count"), LABEL_SETS.items())
def test_built_in_list_is_complete_and_unambiguous(name: str, count: int) -> None:
    names = load_class_names(name)
    assert len(names) == count
    assert len({match_key(entry) for entry in names}) == count
    assert all(entry == entry.strip() and entry for entry in names)


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name: str) -> None:
    assert LABEL_SETS[name] == COUNTS[name]


@pytest.mark.parametrize("name", ["k400", "ssv2", "ucf101", "hmdb51"])
def test_base_and_novel_halves_partition_the_set(name: str) -> None:
    base, novel = load_class_names(f"{name}-base"), load_class_names(f"{name}-novel")
    assert sorted(base + novel) == sorted(load_class_names(name))


@pytest.mark.parametrize("split", [1, 2, 3])
def test_zero_shot_kinetics_600_classes_are_outside_kinetics_400(split: int) -> None:
    unseen = set(load_class_names(f"k600-zs{split}"))
    assert len(unseen) == 160
    assert unseen <= set(load_class_names("k600"))
    assert not unseen & set(load_class_names("k400"))


def test_kinetics_labels_are_in_sorted_order() -> None:
    assert load_class_names("k400") == sorted(load_class_names("k400"))


def test_names_with_commas_survive() -> None:
    assert "Lifting something up completely, then letting it drop down" in load_class_names("ssv2")


@pytest.mark.parametrize("typo", ["k40", "ucf-101", "hmdb51-bas"])
def test_typo_suggests_close_names(typo: str) -> None:
    with pytest.raises(InputError, match="did you mean (k400|ucf101|hmdb51-base)"):
        load_class_names(typo)


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(InputError, match="built-in lists: k400, .*hmdb51-novel"):
        load_class_names("zzzzzz")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("YoYo", "Yo Yo"),
        ("TVShow", "TV Show"),
        ("brush_hair", "brush hair"),
        ("Putting [something] on [something]", "Putting something on something"),
        ("riding a BMX bike", "riding a BMX bike"),
    ],
)
def test_prompt_name(name: str, words: str) -> None:
    assert prompt_name(name) == words


@pytest.mark.parametrize("name", ["k400", "ssv2", "hmdb51"])
def test_prompt_name_leaves_names_of_words_alone(name: str) -> None:
    names = load_class_names(name)
    assert [prompt_name(entry) for entry in names] == names
