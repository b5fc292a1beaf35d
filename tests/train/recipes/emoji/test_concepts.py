"""Emoji to concepts: codes, families, names, and the icon of each in every set."""

from pathlib import Path

import pytest

import fake_packages
from train.recipes.emoji import concepts
from train.recipes.emoji.concepts import (
    CALLED,
    Concept,
    clean_name,
    code_of,
    extra_icons,
    family_of,
    icon_keys,
    read_concepts,
    slug,
    svg,
)
from train.recipes.emoji.packages import LANGUAGES, Package, Style, Tarball


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1F408-200D-2B1B-FE0F", "1f408-200d-2b1b"),
        ("1f34e", "1f34e"),
        ("0023-FE0F-20E3", "23-20e3"),
        ("00A9", "a9"),
        ("🍎", "1f34e"),
        ("❤️", "2764"),
        ("🐈‍⬛", "1f408-200d-2b1b"),
        ("#️⃣", "23-20e3"),
    ],
)
def test_a_code_is_the_same_from_hex_or_from_the_emoji(text: str, code: str):
    assert code_of(text) == code


@pytest.mark.parametrize(
    ("code", "family"),
    [
        ("1f34e", "1f34e"),
        ("1f44b-1f3fd", "1f44b"),  # waving hand, medium skin
        ("1f3c3-200d-2640", "1f3c3"),  # woman running
        ("1f3c3-1f3fb-200d-2640", "1f3c3"),
        ("1f468-200d-1f9b0", "1f468"),  # man, red hair
        ("1f3c3-200d-2640-200d-27a1", "1f3c3-200d-27a1"),  # woman running facing right
        ("1f408-200d-2b1b", "1f408-200d-2b1b"),  # black cat: the joiner stays where it joins
        ("1f468-200d-1f373", "1f468-200d-1f373"),  # man cook
    ],
)
def test_a_family_forgets_skin_gender_and_hair(code: str, family: str):
    assert family_of(code) == family


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("flag: Egypt", "flag of Egypt"),
        ("keycap: #", "keycap #"),
        ("woman: red hair", "woman red hair"),
        ("man’s shoe", "man's shoe"),
        ("Japanese “free of charge” button", 'Japanese "free of charge" button'),
        (" cat ", "cat"),
    ],
)
def test_names_are_made_as_people_write_them(name: str, clean: str):
    assert clean_name(name) == clean


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("red apple", "red-apple"),
        ("T-Rex", "t-rex"),
        ("man's shoe", "mans-shoe"),
        ("flag: Egypt", "flag-egypt"),
        ("piñata!", "pi-ata"),
    ],
)
def test_slugs_are_the_keys_that_icon_sets_use(name: str, key: str):
    assert slug(name) == key


class TestPackages:
    """Concepts and icons read from tiny packages."""

    @pytest.fixture
    def fakes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fake_packages.Fakes:
        fakes = fake_packages.make(tmp_path)
        fakes.patch(monkeypatch)
        return fakes

    @pytest.fixture
    def tarballs(self, fakes: fake_packages.Fakes) -> dict[Package, Tarball]:
        return {package: Tarball(fakes.folder / package.tarball) for package in fakes.packages}

    def style(self, fakes: fake_packages.Fakes, word: str) -> Style:
        return next(style for style in fakes.styles if style.word == word)

    def test_concepts_come_in_unicode_order_with_names_in_every_language(self, tarballs: dict[Package, Tarball]):
        found = read_concepts(tarballs)
        assert [concept.code for concept in found] == list(fake_packages.NAMES)
        others = {language: f"red apple {language}" for language in LANGUAGES}
        names = others | {"en": "red apple", "ar": "تفاحة حمراء"}
        keywords = {language: (f"{names[language]} {i}",) for i, language in enumerate(LANGUAGES)}
        assert found[0] == Concept("1f34e", "1f34e", names, keywords, "food-drink", "food-fruit")

    @pytest.mark.parametrize(
        ("word", "key"), [("noto", "red-apple"), ("emojione", "red-apple"), ("fluent 3d", "assets/1f34e.webp")]
    )
    def test_icons_are_found_by_code_by_name_and_by_file(
        self, fakes, tarballs: dict[Package, Tarball], word: str, key: str
    ):
        icons = icon_keys(self.style(fakes, word), read_concepts(tarballs), tarballs)
        assert set(icons) == set(fake_packages.NAMES)
        assert icons["1f34e"] == key

    def extra(self, fakes, tarballs: dict[Package, Tarball], *keys: str) -> dict[str, str]:
        """What a set with these icons has of the concepts."""
        icons = {"icons": dict.fromkeys(keys, {})}
        package = fake_packages.pack(fakes.folder, "icons", {"icons.json": icons, "chars.json": {}})
        style = Style("new", package, "MIT", "info.json", "nobody", "new")
        return extra_icons(
            style, read_concepts(tarballs), tarballs | {package: Tarball(fakes.folder / package.tarball)}
        )

    def test_an_extra_style_is_matched_by_names_without_hyphens_and_may_draw_a_thing_twice(self, fakes, tarballs):
        found = self.extra(fakes, tarballs, "redapple", "lemon-1", "lemon-2", "moon")
        assert found == {"redapple": "1f34e", "lemon-1": "1f34b", "lemon-2": "1f34b"}

    def test_a_short_name_counts_where_no_icon_has_the_name(self, fakes, tarballs):
        assert self.extra(fakes, tarballs, "plantain", "dog") == {"plantain": "1f34c", "dog": "1f436"}
        assert self.extra(fakes, tarballs, "plantain", "banana") == {"banana": "1f34c"}

    def test_an_icon_may_go_by_other_words(self, fakes, tarballs, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(CALLED, "sourfruit", "lemon")
        assert self.extra(fakes, tarballs, "sourfruit", "dragonside") == {"sourfruit": "1f34b"}

    def test_a_short_name_that_means_another_thing_is_not_taken(self, fakes, tarballs, monkeypatch: pytest.MonkeyPatch):
        assert self.extra(fakes, tarballs, "sunglasses") == {}
        monkeypatch.setattr(concepts, "MISNAMED", set())
        assert self.extra(fakes, tarballs, "sunglasses") == {"sunglasses": "1f34a"}

    def test_only_icons_of_the_given_concepts_are_listed(self, fakes, tarballs: dict[Package, Tarball]):
        assert set(icon_keys(self.style(fakes, "noto"), read_concepts(tarballs)[:2], tarballs)) == {"1f34e", "1f34a"}

    def test_an_icon_is_a_whole_svg_document(self, fakes, tarballs: dict[Package, Tarball]):
        text = svg(self.style(fakes, "noto"), "lemon", tarballs)
        assert text.startswith("<svg xmlns=") and text.endswith("</svg>")
        assert 'viewBox="0 0 36 36"' in text and "<rect" in text
